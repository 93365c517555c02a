"""Check the identities that every measurement relies on, with real numbers.

sums                 the vectors of a node's incoming edges, and its constants, sum to the node
full trace           a run with every edge on gives the model's own logits, also with frozen
                     attention
by hand              masking half of a layer's edges gives the same as hooks that subtract the
                     vectors of these edges in the unmodified model
removal, per kind    removing the most important edge of a kind changes the output
removal, half        removing a random half of the edges changes the output
packed rows          computing only the rows that can affect the result gives the same as computing
                     all rows, block by block
batch                a trace's result does not depend on the other traces of its batch
later tokens         a prediction does not depend on tokens after it
repeat               the same run twice gives the same logits
finite               nothing is NaN or infinite (else `NonFiniteError` names the layer)

The report also lists facts about the model: layouts, heads, the device of each part, and whether
the tokenizer adds a BOS token. It lists the features that do not work on this model, with reasons.
The last report of a loaded model is remembered until its weights change, so that measurements can
record whether the model was checked.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import Tensor, nn

from .._util.metrics import total_variation
from ..errors import DensitometerError
from ..graph.forward_pass import ForwardPass
from ..graph.graph import Graph, Trace, build_graph
from ..graph.importance.registry import compute_importance
from ..graph.importance.search import SEARCHES
from ..graph.masked_runs import masked_logits
from ..graph.sinks import describe_activations, describe_tokens, massive_activations, sink_tokens
from ..models.adapter import vocabulary_size
from ..models.blocks import Block, first
from ..models.linear import head_weights
from ..models.loading import AnyModel, Model, as_model
from ..models.placement import probe_ids
from ..models.tokenization import ids_of
from ..models.tolerances import LINEAR_TOLERANCE, sum_tolerance, tolerance_tv
from ..models.units import Granularity
from ..models.weights import is_plain
from .noise import noise_of, noise_table

_GRADIENT_IMPORTANCES = ("fisher", "bound")
SEED = 0
# Sizes of the traces that are run again for the model's noise.
NOISE_SIZES = (0.01, 0.1, 0.4)


@dataclass(frozen=True)
class CheckRow:
    """One identity, and whether it holds for the model.

    Args:
        identity: the identity, in words.
        detail: unit of the gap, and where it was measured.
        gap: the difference that was measured.
        bound: "at most" or "more than": how the gap must compare with the tolerance.
        tolerance: the difference that is allowed, or must be exceeded.
    """

    identity: str
    detail: str
    gap: float
    bound: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the identity holds."""
        return self.gap <= self.tolerance if self.bound == "at most" else self.gap > self.tolerance


@dataclass(frozen=True)
class CheckReport:
    """Every identity of one model, and facts about the model.

    Args:
        model: the model's name.
        layouts: names of its block layouts.
        rows: one per identity.
        facts: by name, in words: architecture, heads, devices, tokenizer, sinks.
        unsupported: by name of a feature that does not work on this model, the reason.
        noise: total variation that rounding alone makes in pruned runs (`noise.py`): the largest of
            the traces at `NOISE_SIZES`.
        seconds: time that the check-up took.

    Examples:
        >>> report = dm.check_model(model)
        >>> report
        CheckReport(demo: 14 of 14 identities hold)
        >>> report.passed, report.failed, len(report.rows)
        (True, (), 14)
        >>> report.layouts
        ('sequential',)
    """

    model: str
    layouts: tuple[str, ...]
    rows: tuple[CheckRow, ...]
    facts: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    noise: float = 0.0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every identity holds."""
        return all(row.passed for row in self.rows)

    @property
    def failed(self) -> tuple[str, ...]:
        """Identities that do not hold."""
        return tuple(row.identity for row in self.rows if not row.passed)

    def __repr__(self) -> str:
        failed = f"; FAILED: {', '.join(self.failed)}" if self.failed else ""
        held = len(self.rows) - len(self.failed)
        return f"CheckReport({self.model}: {held} of {len(self.rows)} identities hold{failed})"

    def to_document(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        rows = [{**asdict(row), "passed": row.passed} for row in self.rows]
        return {
            "schema": "densitometer.check/1", **asdict(self), "layouts": list(self.layouts), "rows": rows,
            "passed": self.passed,
        }  # fmt: skip


# of each module, a key of its weights when it was checked, and the report
_REPORTS: WeakKeyDictionary[nn.Module, tuple[int, CheckReport]] = WeakKeyDictionary()


def last_report(model: Model) -> CheckReport | None:
    """Return the last check-up of a loaded model in this process.

    None where there was none, or where the weights were changed since.
    """
    weights, report = _REPORTS.get(model.module, (0, None))
    return report if weights == _state_of(model.module) else None


def verdict(model: Model, full_trace_tv: float) -> dict[str, Any]:
    """Return what a measurement's provenance says about the correctness of its model.

    Args:
        full_trace_tv: total variation between the model and its full trace on the measured text.

    Returns:
        full_trace_tv, tolerance and passed: checked by the measurement itself, on its own text.
        full_check: whether the last check-up (`check_model`) passed, and its failed identities.
        None where this loaded model was not checked in this process.
    """
    report = last_report(model)
    return {
        "full_trace_tv": full_trace_tv,
        "tolerance": tolerance_tv(model.adapter.dtype),
        # measure raises IdentityError otherwise
        "passed": True,
        "full_check": None if report is None else {"passed": report.passed, "failed": list(report.failed)},
    }


def _state_of(module: nn.Module) -> int:
    """Key that changes when a weight is replaced, moved or written to."""
    return hash(tuple((id(p), p._version, p.dtype, p.device) for p in module.parameters()))


def check_model(
    model: AnyModel, text_or_ids: str | Sequence[int] | None = None, *, granularity: Granularity = "block"
) -> CheckReport:
    """Check the identities of a model on one input.

    Args:
        model: a model, or what `load_model` takes: a name, a folder, a module.
        text_or_ids: the input. By default 16 fixed token ids, spread over the vocabulary.
        granularity: what an MLP edge is. See `build_graph`.

    Raises:
        ModelError: the model cannot be run at all.

    Examples:
        >>> dm.check_model(model).passed
        True
    """
    model = as_model(model)
    with model.running():
        return _checked(model, text_or_ids, granularity)


def _checked(model: Model, text_or_ids: str | Sequence[int] | None, granularity: Granularity) -> CheckReport:
    """Check a model while it may be run (`Model.running`), and remember the report."""
    start = time.perf_counter()
    graph = build_graph(model, _probe(model) if text_or_ids is None else text_or_ids, granularity=granularity)
    own = model.adapter.logits(graph.forward.ids).cpu()
    full = masked_logits(graph.forward, [graph.reachable])
    tolerance = tolerance_tv(model.adapter.dtype)
    # largest difference of a logit between two ways of running the full model
    again = masked_logits(graph.forward, [graph.reachable])
    noise = max(float((again - full).abs().max()), float((full - own).abs().max()))
    unsupported = _gradients(graph.forward)
    rows = [
        _sums(graph.forward, model.adapter.dtype),
        _full_trace(graph, own, full, tolerance),
        _frozen(graph, own, tolerance),
        _by_hand(graph, tolerance),
    ]
    rows += [_removal(graph, kind, full[0], noise) for kind in sorted(set(graph.edges()["kind"]))]
    rows.append(_half(graph, own, tolerance))
    if model.adapter.packs:
        rows += [_packed(graph), _packed_full_trace(graph, own, tolerance)]
    else:
        unsupported["skipping rows"] = (
            model.adapter.not_packed or "it changes the result; every row is computed"
        )
    later = _later_tokens(graph, tolerance)
    # In some models each token chooses a few sources, as by an indexer. What it could attend to and
    # did not choose has weight 0 in all heads.
    chooses = any(bool((r.allowed & (r.weights == 0).all(dim=0)).any()) for r in graph.forward.records)
    if later.passed or not chooses:
        rows.append(later)
    else:
        # A measurement runs the tokens up to its position alone, so it is right all the same. Only
        # positions that share one run are not.
        unsupported["measure_positions"] = (
            f"what its tokens choose to attend to depends on later tokens (total variation {later.gap:.1e})"
        )
    rows += [_batch(graph, tolerance), _repeat(graph, own, tolerance)]
    rounding = torch.finfo(model.adapter.dtype).eps / 2
    noise_of_runs = max(rounding, float(total_variation(own, full)), _noise(graph))
    report = CheckReport(
        model.name,
        tuple(sorted({block.layout.name for block in model.adapter.blocks})),
        tuple(rows),
        _facts(graph),
        unsupported,
        noise_of_runs,
        time.perf_counter() - start,
    )
    _REPORTS[model.module] = (_state_of(model.module), report)
    return report


def _noise(graph: Graph) -> float:
    """Largest noise of the traces at `NOISE_SIZES`, a total variation."""
    rows = [("l1", "trace", size, graph.trace(size=size)) for size in NOISE_SIZES]

    def run(traces: Sequence[Trace]) -> Tensor:
        return masked_logits(graph.forward, [trace.flat for trace in traces])

    logits = run([row[3] for row in rows])
    with graph.model.adapter.streams_moved(SEED):
        return noise_of(noise_table(rows, logits, run), 0.0)


def _probe(model: Model) -> list[int]:
    """Token ids of the default input."""
    return probe_ids(vocabulary_size(model.module), min(16, model.context_length or 16))


def _sums(forward: ForwardPass, dtype: torch.dtype) -> CheckRow:
    """Check that incoming edges and constants sum to the nodes, in every level."""
    worst, where = 0.0, ""
    for edges in forward.levels():
        total = edges.residual + edges.attention_sum() + edges.constant
        if edges.mlp is not None:
            total = total + edges.mlp
        gap = float((total - edges.node).norm() / edges.node.norm().clamp_min(1e-30))
        if gap >= worst:
            worst, where = gap, f"worst in layer {edges.level.layer}, edges {edges.level.residual_kind}"
    tolerance = sum_tolerance(dtype)
    if not all(is_plain(block.projection) for block in forward.model.adapter.blocks):
        # quantised layers compute more coarsely than their dtype
        tolerance = LINEAR_TOLERANCE
    return CheckRow("incoming edges sum to every node", where, worst, "at most", tolerance)


def _full_trace(graph: Graph, own: Tensor, full: Tensor, tolerance: float) -> CheckRow:
    gap = float(total_variation(own, full))
    largest = float((full[0] - own).abs().max())
    detail = f"total variation; largest difference of a logit {largest:.1e}"
    return CheckRow("full trace = the model", detail, gap, "at most", tolerance)


def _frozen(graph: Graph, own: Tensor, tolerance: float) -> CheckRow:
    gap = float(total_variation(own, masked_logits(graph.forward, [graph.reachable], frozen=True)))
    return CheckRow("full trace = the model, attention frozen", "total variation", gap, "at most", tolerance)


def _by_hand(graph: Graph, tolerance: float) -> CheckRow:
    """Compare a masked run with the model's own code, in which hooks subtract edges' vectors.

    Half of a layer's attention and MLP edges are removed, for three layers in turn. The run with
    hooks has no mask, no replaced forward, and the model's own attention function.

    If a gate or a norm is between heads and projection, only MLP edges are removed, because no hook
    can be put before it.
    """
    forward, adapter = graph.forward, graph.model.adapter
    generator = numpy.random.default_rng(SEED)
    worst, where, least = 0.0, "", float("inf")
    full = adapter.logits(forward.ids).cpu()
    gated = "; MLP edges only: the heads are gated" if all(b.gated for b in adapter.blocks) else ""
    chosen = sorted({0, len(adapter.blocks) // 2, len(adapter.blocks) - 1})
    for index in chosen:
        block = adapter.blocks[index]
        # all edges, not only those of the full run: an indexer may choose others in the pruned run
        keep = numpy.ones(graph.space.size, dtype=bool)
        for level, view in zip(graph.space.levels, graph.space.views(keep), strict=True):
            if level.layer == index:
                of_mlp = view.mlp if graph.granularity == "block" else None
                for place in (None if block.gated else view.attention, of_mlp):
                    if place is not None:
                        place &= generator.random(place.shape) < 0.5
        attention, mlp = _masks_of(graph, index, keep)
        masked = masked_logits(forward, [keep])
        with _taken_out(forward, block, attention, mlp):
            by_hand = adapter.logits(forward.ids).cpu()
        gap = float(total_variation(by_hand, masked))
        least = min(least, float(total_variation(full, masked)))
        if gap >= worst:
            worst, where = (
                gap,
                f"total variation, worst in layer {index} of {chosen}; they move it by {least:.1e} or more{gated}",
            )
    return CheckRow("edges removed = their vectors taken out by hand", where, worst, "at most", tolerance)


def _masks_of(graph: Graph, index: int, keep: numpy.ndarray) -> tuple[Tensor, Tensor]:
    """Make the masks of a layer: attention (H, T, S) and MLP (T,), float32, 1 where an edge is on.

    At a finer granularity than the block all of the MLP is on.

    Args:
        index: index of the layer.
        keep: (F,) bool, edges that are on.
    """
    views = zip(graph.space.levels, graph.space.views(keep), strict=True)
    of_layer = [view for level, view in views if level.layer == index]
    attention = next(view.attention for view in of_layer if view.attention is not None)
    mlp = next(view.mlp for view in of_layer if view.mlp is not None)
    mlp = mlp[0] if graph.granularity == "block" else numpy.ones_like(mlp[0])
    return torch.from_numpy(attention).float(), torch.from_numpy(mlp).float()


@contextmanager
def _taken_out(forward: ForwardPass, block: Block, attention: Tensor, mlp: Tensor) -> Iterator[None]:
    """Hook a block so that it runs without the vectors of edges that are off.

    These vectors are subtracted from the outputs of its output projection and its MLP. The hooks
    are removed when the context ends.

    Args:
        attention: (H, T, S), 1 where an attention edge is on.
        mlp: (T,), 1 where an MLP edge is on.
    """
    record = forward.records[block.index]
    weights = record.weights.float()
    # (H, T, S), weights of the edges that are off
    off = (1 - attention.to(weights.device)) * weights
    group = weights.shape[0] // record.values.shape[0]
    heads = off @ record.values.float().repeat_interleave(group, dim=0)  # (H, T, V)
    writes = head_weights(block.projection, weights.shape[0], record.projection_input, record.projected)
    # (T, D), the sum of the vectors of edges that are off
    vectors = torch.einsum("htv,hvd->td", heads, writes.to(heads))

    def project(_: nn.Module, args: tuple, output: Any) -> Any:
        return first(output) - vectors.to(first(output)).view(first(output).shape)

    def branch(part: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        given = first(output)
        on = mlp.to(given).reshape(-1, 1)  # (T, 1)
        called = inspect.signature(type(part).forward).bind(part, *args, **kwargs).arguments
        # some modules add the stream themselves, which is not part of the edge
        stream = called.get(layout.stream_argument or "", torch.zeros_like(given))
        kept = ((given - stream).reshape(len(on), -1) * on).view(given.shape) + stream
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    layout = block.layout
    # the last modules of the MLP's branch
    ends = (layout.mlp_branch_norm,) if layout.mlp_branch_norm else (layout.mlp[-1], *layout.mlp_beside[-1:])
    handles = [block.projection.register_forward_hook(project)]
    handles += [
        block.module.get_submodule(name).register_forward_hook(branch, with_kwargs=True) for name in ends
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _removal(graph: Graph, kind: str, full: Tensor, noise: float) -> CheckRow:
    """Check that removing the most important edge of a kind changes the logits.

    That edge is the one with the highest bottleneck importance. The change must be more than twice
    the difference between two ways of running the full model.

    Args:
        full: (vocabulary,), logits of the full trace.
        noise: that difference, the largest of a logit.
    """
    columns = graph.space.columns(graph.index)
    of_kind = graph.index[columns["kind"] == kind]
    edge = of_kind[numpy.argmax(graph.keys[of_kind])]
    without = graph.reachable.copy()
    without[edge] = False
    change = float((masked_logits(graph.forward, [without])[0] - full).abs().max())
    where = graph.space.columns(numpy.array([edge]))
    head = f", head {where['head'][0]}" if where["head"][0] >= 0 else ""
    if graph.granularity != "block" and where["unit"][0] >= 0:
        head = f", {graph.granularity} {where['unit'][0]}"
    detail = f"largest change of a logit; layer {where['layer'][0]}{head}, {where['source'][0]} to {where['target'][0]}"
    return CheckRow(f"removing one {kind} edge changes the output", detail, change, "more than", 2 * noise)


def _half(graph: Graph, own: Tensor, tolerance: float) -> CheckRow:
    half = graph.reachable & (numpy.random.default_rng(SEED).random(graph.space.size) < 0.5)
    change = float(total_variation(own, masked_logits(graph.forward, [half])))
    detail = f"total variation; {int(half.sum()):,} of {graph.n_edges:,} edges kept, at random"
    return CheckRow("removing half of the edges changes the output", detail, change, "more than", tolerance)


def _packed(graph: Graph) -> CheckRow:
    """Check block by block that computing only some rows gives the same as computing all of them.

    Whole runs of random sets of edges are not compared, because later blocks amplify rounding.
    """
    adapter = graph.model.adapter
    gap, tolerance = adapter.packing_gap(graph.granularity)
    detail = "block by block on equal streams, 3 random sets; of what a block adds"
    return CheckRow("rows skipped = every row computed", detail, gap, "at most", tolerance)


def _packed_full_trace(graph: Graph, own: Tensor, tolerance: float) -> CheckRow:
    on = torch.from_numpy(graph.reachable[None]).to(graph.forward.logits.device)
    masks = graph.forward.block_masks(on)
    got = graph.model.adapter.masked_logits(graph.forward.ids, masks, always_skip=True).cpu()
    gap = float(total_variation(own, got))
    return CheckRow("full trace = the model, rows skipped", "total variation", gap, "at most", tolerance)


def _batch(graph: Graph, tolerance: float) -> CheckRow:
    """Check that two traces give the same alone and in a batch with random sets of edges.

    They are the full trace and a large one, in whose runs rounding stays small.
    """
    masks = [graph.trace(size=size).flat for size in (1.0, 0.8)]
    mates = [graph.random_trace(size).flat for size in (0.5, 0.1)]
    together = masked_logits(graph.forward, [mates[0], *masks, mates[1]])[1:3]
    alone = torch.cat([masked_logits(graph.forward, [mask]) for mask in masks])
    gap = max(float(total_variation(a, b[None])) for a, b in zip(alone, together, strict=True))
    detail = "total variation, 2 traces beside 2 random sets"
    return CheckRow("results do not depend on batch mates", detail, gap, "at most", tolerance)


def _later_tokens(graph: Graph, tolerance: float) -> CheckRow:
    """Check that the prediction at a middle position is the same with and without later tokens.

    A measurement runs the tokens up to its position only.
    """
    ids = graph.forward.ids
    position = len(ids) // 2
    cut = graph.model.adapter.logits(ids[: position + 1]).cpu()
    module = graph.model.module
    with torch.no_grad():
        batch = torch.tensor([list(ids)], device=graph.model.adapter.device)
        whole = module(input_ids=batch, use_cache=False).logits[0, position].float().cpu()
    gap = float(total_variation(whole, cut[None]))
    detail = f"total variation, position {position} of {len(ids)} tokens"
    return CheckRow("a prediction does not depend on later tokens", detail, gap, "at most", tolerance)


def _repeat(graph: Graph, own: Tensor, tolerance: float) -> CheckRow:
    again = graph.model.adapter.logits(graph.forward.ids).cpu()
    gap = float(total_variation(own, again[None]))
    return CheckRow("the same run twice gives the same", "total variation", gap, "at most", tolerance)


def _gradients(forward: ForwardPass) -> dict[str, str]:
    """Importances by gradients that do not work on this model, each with the reason."""
    reasons = {}
    for name in _GRADIENT_IMPORTANCES:
        try:
            compute_importance(forward, name, SEED)
        except (DensitometerError, RuntimeError, NotImplementedError) as error:
            reasons[name] = " ".join(str(error).split())
    if reasons:
        reasons |= {name: f"it starts from {' and '.join(reasons)}" for name in SEARCHES}
    return reasons


def _facts(graph: Graph) -> dict[str, str]:
    """Describe a model: by name of each fact, a text for the report."""
    model, adapter = graph.model, graph.model.adapter
    layouts = Counter(block.layout.name + (", gated" if block.gated else "") for block in adapter.blocks)
    records = graph.forward.records
    heads = Counter((r.weights.shape[0], r.values.shape[0], r.values.shape[-1]) for r in records)
    parameters = sum(p.numel() for p in model.module.parameters())
    masks = Counter("all earlier tokens" if _sees_all(r.allowed) else "fewer" for r in records)
    return {
        "model": f"{model.architecture}, {parameters:,} parameters, {str(adapter.dtype).removeprefix('torch.')}",
        "layout": "; ".join(
            f"{name} ({count} of {len(adapter.blocks)} layers)" for name, count in layouts.items()
        ),
        "heads": "; ".join(
            f"{h} query, {g} key-value, values of {v}" + (f" ({n} layers)" if len(heads) > 1 else "")
            for (h, g, v), n in heads.items()
        ),
        "attention to": "; ".join(f"{name} ({count} layers)" for name, count in masks.items())
        + f" on {graph.n_tokens} tokens",
        "BOS": _bos(model),
        "devices": _devices(model),
        "rows that cannot matter": "are skipped" if adapter.packs else "are computed all the same",
        "sink tokens": describe_tokens(sink_tokens(graph.forward)),
        "massive dimensions": describe_activations(massive_activations(graph.forward)),
    }


def _sees_all(allowed: Tensor) -> bool:
    """Whether each token may attend to itself and to all earlier ones, by a mask (T, S)."""
    return bool(torch.equal(allowed, torch.ones_like(allowed).tril()))


def _bos(model: Model) -> str:
    """Describe whether the tokenizer adds a BOS token, and whether it is that of the config."""
    config = model.module.config.get_text_config()
    of_model = getattr(config, "bos_token_id", None)
    tokenizer = model.tokenizer
    if tokenizer is None:
        return f"no tokenizer was given; the model's config names {of_model}"
    known = tokenizer.bos_token_id
    ids = ids_of(tokenizer, "a")
    if known is None:
        return f"the tokenizer has none and adds none; the model's config names {of_model}"
    bos = f"{tokenizer.bos_token!r} (id {known})"
    adds = f"the tokenizer adds {bos}" if ids[:1] == [known] else f"the tokenizer has {bos} but adds none"
    return adds if of_model in (known, None) else f"{adds}; the model's config names {of_model}, another"


def _devices(model: Model) -> str:
    """List the devices with the parts of the model on each, and their bytes."""
    places: dict[str, Counter[str]] = {}
    of = {id(p): b.index for b in model.adapter.blocks for p in b.module.parameters()}
    size: Counter[str] = Counter()
    for p in model.module.parameters():
        place = str(p.device)
        size[place] += p.numel() * p.element_size()
        layer = of.get(id(p))
        places.setdefault(place, Counter())["embeddings, head" if layer is None else f"{layer}"] += 1
    shown = []
    for place, parts in places.items():
        layers = sorted(int(part) for part in parts if part.isdigit())
        named = ["embeddings, head"] if "embeddings, head" in parts else []
        named += [f"layers {_ranges(layers)}"] if layers else []
        offloaded = " (offloaded: loaded when it runs)" if place == "meta" else ""
        shown.append(f"{place}{offloaded}: {', '.join(named)}, {size[place] / 1e6:,.1f} MB")
    return "; ".join(shown)


def _ranges(numbers: Sequence[int]) -> str:
    """Write sorted integers as ranges, such as "0-3, 5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
