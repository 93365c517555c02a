"""The spine: one text, from token ids to its computation density.

    1. Run the model as it is; keep its prediction p.                                  models/adapter.py
    2. Run it again, recorded: the graph of its edges.                                 forward.py
    3. Score every edge.                                                               importance.py
    4. Grow nested traces from the output, most important edges first.                 trace.py
    5. Run the model with each trace's edges alone; keep its prediction q.             reconstruction.py
    6. Compare q with p.                                                               metrics.py
    7. Say how fast q comes back: the density.                                         density.py

Beside each trace stand its baselines: everything but the trace (inverse), and a connected random subgraph of the same
number of edges (random). Both are size-matched: no edge is kept that is not paid for. Apart from the curve stand the
subgraphs that need no score, and, at a few sizes, the papers' flavour of the two, with every residual edge on.

Inputs with more edges than can be stored take the same way tile by tile (`tiles.py`); their traces are those of thresholds.
"""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import polars
import torch
from torch import Tensor

from .ablation import masked_logits
from .arguments import checked_seed
from .bracket import goal_of, holding, narrow, size_of
from .check import verdict
from .curve import curve_of, densities, describe_next, prediction_of, table_of
from .density import Density, density_of
from .errors import ArgumentTypeError, DensitometerWarning, IdentityError, InputError
from .families import (
    BASELINE,
    BASELINES,
    check_arguments,
    scoreless,
    traces_by_size,
    traces_by_threshold,
)
from .forward import checked_position, run_forward
from .graph import Trace, graph_of
from .means import ReferenceMeans
from .metrics import compute_metrics, entropy, total_variation
from .models.loading import Model, Text
from .models.placement import memory_watched, tolerance_tv
from .models.unembedding import states_read
from .models.units import Granularity
from .planning import Stopwatch
from .progress import progress
from .reconstruction import check_semantics
from .tiles import TiledGraph, TiledTrace, check_tiled, is_long, tiled_graphs, tiled_logits

# Relative rounding of one operation, by name of the dtype: half of the distance from 1 to the next number.
DTYPE_ROUNDING = {
    name: torch.finfo(getattr(torch, name)).eps / 2 for name in ("float64", "float32", "bfloat16", "float16")
}


@dataclass(frozen=True, eq=False)
class Measurement:
    """What `measure` found out about one prediction.

    Args:
        model: name, revision, architecture, dtype, device, layout.
        input: text (a chat as its template writes it; None where ids were given), ids, tokens, position.
        graph: n_edges, n_layers, n_heads, n_tokens, landmarks.
        prediction: the model's most probable next tokens: rank, token, id, probability.
        entropy: of the model's prediction, nats.
        next_token: the token that comes next in the text, its surprisal (nats) and rank; None at the end of the text.
        curve: one row per importance, kind (trace, inverse, random) and size.
        baselines: one row per subgraph that needs no score (`trace.natural_masks`), and per size of the papers' flavours
            inverse_residual (of the first importance) and random_residual.
        density: one `Density` per importance.
        refined: further traces that were run to place `size_at`, in the columns of the curve; no part of the areas.
        full_trace_tv: total variation between the model and its full trace.
        provenance: versions, seed and settings.

    Examples:
        >>> m = dm.measure(model, "The captain looked at the sea", ["l1", "fisher"], sizes=[0.1, 0.3, 0.6, 1.0])
        >>> m.input["tokens"][-2:], m.graph["n_edges"], m.prediction.columns
        ([' the', ' sea'], 981, ['rank', 'token', 'id', 'probability'])
        >>> m.curve.columns[:7]
        ['importance', 'kind', 'size', 'n_edges', 'threshold', 'flops_share', 'parameter_share']
        >>> {name: round(density.size_at(0.1), 2) for name, density in m.density.items()}
        {'l1': 0.37, 'fisher': 0.25}
    """

    model: dict[str, Any]
    input: dict[str, Any]
    graph: dict[str, Any]
    prediction: polars.DataFrame
    entropy: float
    next_token: dict[str, Any] | None
    curve: polars.DataFrame
    baselines: polars.DataFrame
    density: dict[str, Density]
    refined: polars.DataFrame
    full_trace_tv: float
    provenance: dict[str, Any]
    session: _Session | None = field(default=None, repr=False)

    @property
    def granularity(self) -> str:
        """What an MLP edge is: "block", "expert" or "neuron"."""
        return str(self.provenance.get("granularity", "block"))

    @property
    def noise_floor(self) -> float:
        """Total variation under which a trace cannot be told from the model: what the full trace itself shows, and at
        least the dtype's rounding. No trace is called exact below it."""
        return max(self.full_trace_tv, DTYPE_ROUNDING[self.model["dtype"]])

    def density_in(self, currency: Literal["edges", "flops", "parameters"]) -> dict[str, Density]:
        """The densities against the share of edges, of operations, or of parameters that the traces use.

        Raises:
            InputError: another currency.
        """
        columns = {"edges": "size", "flops": "flops_share", "parameters": "parameter_share"}
        if currency not in columns:
            raise InputError(f"unknown currency {currency!r}; expected one of {', '.join(columns)}")
        traces = self.curve.filter(polars.col("kind") == "trace")
        found = {}
        for name in self.density:
            own = traces.filter(polars.col("importance") == name).sort("n_edges")
            extra = self.refined.filter(polars.col("importance") == name).sort("n_edges")
            share = columns[currency]
            refined = list(zip(extra[share], extra["tv"], strict=True))
            found[name] = density_of(own[share].to_list(), own["tv"].to_list(), refined)
        return found

    def bracket(self, eps: float = 0.1) -> dict[str, Any]:
        """How dense, by the tightest score measured and by the papers': the smallest `size_at(eps)`, its importance, and
        that of `l1` (None where it was not measured or never holds)."""
        found = {name: density.size_at(eps) for name, density in self.density.items()}
        sizes = {name: size for name, size in found.items() if size is not None}
        tightest = min(sizes, key=lambda name: sizes[name]) if sizes else None
        smallest = None if tightest is None else sizes[tightest]
        return {"eps": eps, "smallest": smallest, "importance": tightest, "l1": sizes.get("l1")}

    def summary(self, eps: float = 0.1) -> str:
        """One line to quote: how much holds the prediction, by which score, of which model."""
        found = self.bracket(eps)
        n_tokens = self.input["position"] + 1
        where = (
            f"{self.model['name']}, {n_tokens} token{'s' * (n_tokens > 1)}, {self.graph['n_edges']:,} edges"
        )
        if self.granularity != "block":
            where += f" by {self.granularity}"
        if found["smallest"] is None:
            return (
                f"TV <= {eps:g} is never reached below the full model by {', '.join(self.density)} ({where})"
            )
        if math.floor(found["smallest"] * self.graph["n_edges"]) == 0:
            return (
                f"TV <= {eps:g} with no edge at all ({found['importance']}): the prediction is close to what the biases alone "
                f"give ({where})"
            )
        line = f"TV <= {eps:g} from {100 * found['smallest']:.2g} % of the edges ({found['importance']}"
        if found["importance"] != "l1" and found["l1"] is not None:
            line += f"; {100 * found['l1']:.2g} % by l1"
        costs = [
            self.density_in(currency)[found["importance"]].size_at(eps)
            for currency in ("flops", "parameters")
        ]
        shares = [f"{100 * cost:.3g} %" for cost in costs if cost is not None]
        return f"{line}), which use {shares[0]} of the operations and {shares[1]} of the parameters ({where})"

    def minimal_trace(
        self,
        tv: float | None = None,
        *,
        kl: float | None = None,
        top1: bool | None = None,
        nucleus: int | None = None,
        flops: float = 1.0,
        parameters: float = 1.0,
        importance: str | None = None,
        first_crossing: bool = False,
    ) -> Trace | TiledTrace | None:
        """The smallest best-first trace from which a goal holds at every larger size tried, to 5 % of its size.

        Args:
            tv: total variation of at most this; 0.1 where no goal is given.
            kl: or KL divergence of at most this, nats.
            top1: or, with True, the same most probable token.
            nucleus: or a nucleus recovery of at least this, per cent.
            flops, parameters: a budget; a trace that costs more than this share of the full one does not do.
            importance: the score; by default the first that was measured.
            first_crossing: the smallest trace for which the goal holds instead, whatever comes later.

        Returns:
            The trace (of a long input, a `TiledTrace`); None, with a warning that says why, where the goal never holds within
            the budget.

        Raises:
            InputError: the measurement was loaded from a file (it holds no model), no such score was measured, or not
                exactly one goal.
        """
        goals = {"tv": tv, "kl": kl, "top1": top1, "nucleus": nucleus}
        given = {name: value for name, value in goals.items() if value is not None} or {"tv": 0.1}
        if len(given) != 1:
            raise InputError(f"give one goal of {', '.join(goals)}; got {', '.join(given)}")
        (metric, goal), *_ = given.items()
        holds = goal_of(metric, goal)
        if metric == "tv" and goal < self.noise_floor:
            raise InputError(
                f"tv = {goal!r} is below the noise floor of this measurement, {self.noise_floor:.1e} "
                f"({self.model['dtype']}); no trace can be told to be that close"
            )
        for currency, budget in (("flops", flops), ("parameters", parameters)):
            self._check_budget(currency, budget)
        if self.session is None:
            raise InputError(
                "this measurement was loaded from a file and holds no model to run; give it one, measurement.with_model(model)"
            )
        name = importance or next(iter(self.density))
        if name not in self.density:
            raise InputError(f"importance {name!r} was not measured; expected one of {list(self.density)}")
        own = self.curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
        values = dict(zip(own["n_edges"], own[metric], strict=True))
        session, graph = self.session, self.session.graphs[name]
        values[graph.n_edges] = session.values(name, metric, [graph.n_edges])[0]
        narrow(values, holds, lambda counts: session.values(name, metric, counts), first_crossing)
        found = holding(values, holds, first_crossing)
        if found is None:
            warnings.warn(
                f"{metric} = {goal} holds at no size, not even in the full trace",
                DensitometerWarning,
                stacklevel=2,
            )
            return None
        trace: Trace | TiledTrace = graph.trace(n_edges=found[1])
        for currency, cost, budget in (
            ("operations", trace.flops_share, flops),
            ("parameters", trace.parameter_share, parameters),
        ):
            if cost > budget:
                warnings.warn(
                    f"{metric} = {goal} needs {found[1]} edges with {cost:.3g} of the full trace's {currency}, more than "
                    f"the budget of {budget:g}",
                    DensitometerWarning,
                    stacklevel=2,
                )
                return None
        return trace

    def _check_budget(self, currency: str, budget: float) -> None:
        """Refuse a budget that does not pay for the output token's own path, residual chain and MLPs."""
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
            raise InputError(f"{currency} is a budget, a share of the full trace's in (0, 1]; got {budget!r}")
        column = "flops_share" if currency == "flops" else "parameter_share"
        chain = self.baselines.filter(polars.col("kind") == "residual_mlp_chain")[column].item()
        if budget < chain:
            raise InputError(
                f"a budget of {currency}={budget:g} does not pay for the output token's own path, its residual chain with "
                f"MLPs, which costs {chain:.3g} of the full trace's; give at least that"
            )

    def with_model(self, model: Model) -> Measurement:
        """This measurement with its model behind it again, after it was loaded from a file: the graphs are built anew.

        Raises:
            InputError: another model than the one measured, or means that were not saved.
        """
        if self.provenance.get("ablation", "zero") != "zero":
            raise InputError(
                "a measurement with reference means cannot be taken up again; call measure(...) again"
            )
        if self.provenance.get("edges") == "tiled":
            raise InputError(
                "a measurement of a long input cannot be taken up again; call measure(...) again"
            )
        ids, granularity = self.input["ids"], self.granularity
        forward, position = run_forward(model, ids, self.input["position"], granularity)
        seed = self.provenance["seed"]
        graphs = {name: graph_of(forward, self.input["ids"], position, name, seed) for name in self.density}
        first = next(iter(graphs.values()))
        full = model.adapter.logits(forward.ids).cpu()
        expected = self.prediction["probability"][0]
        found = float(full.softmax(-1).max())
        if first.n_edges != self.graph["n_edges"] or abs(found - expected) > 1e-2:
            raise InputError(
                f"{model.name} is not the model that was measured ({self.model['name']}): {first.n_edges:,} edges and "
                f"p = {found:.3f} for its first token, expected {self.graph['n_edges']:,} and {expected:.3f}"
            )
        session = _Session(model, full, graphs, self.provenance.get("attention", "recomputed"), None)
        return replace(self, session=session)

    def show(self) -> Any:
        """The explorer in a notebook cell: a widget where those load, else a frame."""
        from .viewer.notebook import Explorer

        return Explorer(self)

    def save(self, path: Any) -> None:
        """Write everything but the model as JSON (schema densitometer.measurement/1); `load_measurement` reads it."""
        from .store import save_measurement

        save_measurement(self, path)

    def __repr__(self) -> str:
        return f"Measurement({self.summary()})"


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs that a curve and its baselines are made from. K runs, D hidden size; float32, on the CPU.

    Args:
        rows: importance, kind, size and trace of each.
        logits: (K, vocabulary); full: (vocabulary,), the model's own.
        states: (K, D), what the unembedding read (`models.unembedding`); full_state: (D,), the model's own. None where the
            model does not call its unembedding as a module.
    """

    rows: Sequence[tuple[str, str, float, Any]]
    logits: Tensor
    full: Tensor
    states: Tensor | None
    full_state: Tensor | None

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.logits)
        assert self.states is None or len(self.rows) == len(self.states)


@memory_watched("measuring a text")
def measure(
    model: Model,
    text_or_ids: Text,
    importance: str | Sequence[str] = "l1",
    sizes: Sequence[float] | None = None,
    baselines: Sequence[str] = BASELINES,
    position: int = -1,
    seed: int = 0,
    attention: Literal["recomputed", "frozen"] = "recomputed",
    ablation: Literal["zero", "mean"] = "zero",
    means: ReferenceMeans | None = None,
    eps: float = 0.1,
    by: Literal["size", "threshold"] = "size",
    granularity: Granularity = "block",
    observe: Callable[[Runs], None] | None = None,
) -> Measurement:
    """Measure how much of the model's computation one prediction needs.

    An input with more than `tiles.STORED_EDGES` possible edges (layers x heads x tokens squared) is measured tile by tile: by
    l1 or l2 only, and each size by the largest trace that an importance threshold gives within it; the curve says the sizes
    that were run, and provenance["edges"] is "tiled" instead of "stored".

    Args:
        model: from `load_model`.
        text_or_ids: a text, chat messages (`Model.encode`), or token ids.
        importance: a score, or several; each gives a curve and a density of its own.
        sizes: shares of the edges at which to reconstruct, in (0, 1]; by default the 27 of arXiv 2605.27033. With
            `by="threshold"` importances instead, by default 26 spread over the graph's, and the full trace.
        baselines: any of "inverse" and "random"; tile by tile there is no random one.
        position: the token whose next-token prediction is measured; negative counts from the end.
        seed: of the random baseline, and of scores that draw random numbers.
        attention: whether a trace's attention weights are recomputed from its own stream or kept from the full run.
        ablation: what a removed edge contributes: "zero", nothing (the papers); "mean", its mean over a corpus.
        means: for "mean", from `reference_means` or `load_means`.
        eps: total variation at which `size_at` is bisected to 5 %.
        by: whether the traces are the best-first ones of sizes (arXiv 2605.27033), or those of importance thresholds
            (arXiv 2601.22795). Either way the curve tells both for each trace.
        granularity: what an MLP edge is: "block", a token's whole MLP; "expert", one expert that the token is sent to, in
            a mixture of experts (an MLP that is none counts as one); "neuron", one input of the down projection. Shares of
            edges at different grains do not compare; shares of operations and parameters do.
        observe: for what a curve does not tell: called once with the runs of the curve and the baselines.

    Raises:
        InputError: an unusable text, position, importance, size or baseline.
        ModelError: the model cannot be measured on this text; IdentityError where its full trace is not the model.

    Examples:
        >>> m = dm.measure(model, "The captain looked at the sea", sizes=[0.1, 0.3, 0.6, 1.0])
        >>> round(m.density["l1"].size_at(0.1), 2), round(m.density_in("flops")["l1"].size_at(0.1), 2)
        (0.37, 0.93)
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"expected a model from densitometer.load_model, got {type(model).__name__}")
    names, wanted = check_arguments(importance, sizes, baselines, eps, by)
    seed, eps = checked_seed(seed), float(eps)
    check_semantics(model, attention, ablation, means, granularity)

    stopwatch = Stopwatch()
    ids = model.encode(text_or_ids)
    position = checked_position(ids, position)
    kept = ids[: position + 1]
    long = is_long(model, len(kept))
    if long:
        check_tiled(model, names, len(kept), ablation, granularity)
        graphs: dict[str, Any] = tiled_graphs(model, ids, position, names)
    else:
        forward, _ = run_forward(model, ids, position, granularity)
        graphs = {name: graph_of(forward, ids, position, name, seed) for name in names}
    with states_read(model.adapter) as full_state:
        full = model.adapter.logits(kept).cpu()
    session = _Session(model, full, graphs, attention, means)
    first = graphs[names[0]]

    rows: list[tuple[str, str, float, Any]] = []
    for name, graph in graphs.items():
        family = traces_by_size(graph, wanted) if wanted is not None else traces_by_threshold(graph, sizes)
        rows += [(name, "trace", s, t) for s, t in family]
        if "inverse" in baselines:
            rows += [(name, "inverse", s, t.inverse()) for s, t in family]
    asked = list(baselines)
    if long:  # thresholds on uniform scores give traces of few sizes
        baselines = [baseline for baseline in baselines if baseline != "random"]
    if "random" in baselines:
        matched = wanted if wanted is not None else [s for name, kind, s, _ in rows if kind == "trace"]
        matched = sorted(set(matched))
        rows += [("random", "random", s, first.random_trace(s, seed=seed)) for s in matched]
    rows += scoreless(first, baselines, seed)
    states: list[Tensor] = []
    logits = session.run([trace for *_, trace in rows], f"running {len(rows)} traces", states)

    if observe is not None:
        read = (torch.cat(states), full_state[-1][0]) if states and full_state else (None, None)
        observe(Runs(rows, logits, full, *read))

    table = table_of(model, rows, full, logits, _next_token(ids, position))
    curve = curve_of(table, names)
    full_trace_tv = session.full_trace_tv()
    refined_rows, refined_logits = [], []
    for name in names:
        own = curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
        found = session.refine(name, dict(zip(own["n_edges"], own["tv"], strict=True)), eps)
        refined_rows += [(name, "trace", size_of(n, first.n_edges), t) for n, (t, _) in sorted(found.items())]
        refined_logits += [logits for _, (_, logits) in sorted(found.items())]
    logits = torch.stack(refined_logits) if refined_logits else full.new_empty(0, len(full))
    refined = table_of(model, refined_rows, full, logits, _next_token(ids, position))
    if not long:
        stopwatch.compare(first.forward, first.n_edges, names, len(rows))
    return Measurement(
        model=describe_model(model),
        input={
            "text": model.text_of(text_or_ids),
            "ids": list(ids),
            "tokens": list(first.tokens),
            "position": position,
        },
        graph={
            "n_edges": first.n_edges,
            "n_layers": first.n_layers,
            "n_heads": first.n_heads,
            "n_tokens": first.n_tokens,
            "landmarks": first.landmarks,
        },
        prediction=prediction_of(model, full),
        entropy=float(entropy(full, full[None])),
        next_token=describe_next(model, full, _next_token(ids, position)),
        curve=curve,
        baselines=table.filter(polars.col("importance") == BASELINE).drop("importance"),
        density=densities(curve, refined),
        refined=refined,
        full_trace_tv=full_trace_tv,
        provenance=provenance(
            importance=names,
            sizes=None if sizes is None else [float(size) for size in sizes],
            baselines=asked,
            eps=eps,
            by=by,
            seed=seed,
            attention=attention,
            ablation=ablation,
            means=means.provenance if means is not None else None,
            granularity=granularity,
            check=verdict(model, full_trace_tv),
            edges="tiled" if long else "stored",
        ),
        session=session,
    )


@dataclass(frozen=True, eq=False)
class _Session:
    """What is needed to run further traces of a measured input: stored graphs and traces, or tiled ones."""

    model: Model
    full: Tensor
    graphs: dict[str, Any]
    attention: str
    means: ReferenceMeans | None

    def run(self, traces: Sequence[Any], label: str, states: list[Tensor] | None = None) -> Tensor:
        graph, frozen = next(iter(self.graphs.values())), self.attention == "frozen"
        with progress(label, len(traces)) as advance:
            if isinstance(graph, TiledGraph):
                return tiled_logits(traces, frozen, advance, states)
            masks = (trace.flat for trace in traces)  # a batch of them in memory at a time
            return masked_logits(graph.forward, masks, frozen, self.means, advance, states=states)

    def full_trace_tv(self) -> float:
        """TV between the model and its full trace.

        Raises:
            IdentityError: it is more than the dtype's noise.
        """
        graph = next(iter(self.graphs.values()))
        logits = self.run([graph.trace(size=1.0)], "full trace")
        gap = float(total_variation(self.full, logits))
        tolerance = tolerance_tv(self.model.adapter.dtype)
        if not gap <= tolerance:
            raise IdentityError(
                f"the full trace of {self.model.name} is not the model: total variation {gap:.2g}, expected at "
                f"most {tolerance:g}. Nothing that is measured on it can be trusted; run `densitometer doctor` on it"
            )
        return gap

    def refine(self, name: str, values: dict[int, float], eps: float) -> dict[int, tuple[Any, Tensor]]:
        """Bisect, in log size, the bracket in which TV falls below eps for good.

        Args:
            values: TV by number of edges, of traces run already.

        Returns:
            The traces that were run, with their logits (vocabulary,), by their own number of edges.
        """
        found: dict[int, tuple[Any, Tensor]] = {}
        known = dict(values)

        def evaluate(counts: Sequence[int]) -> list[float]:
            traces = self.graphs[name].traces(n_edges=counts)
            new = {trace.n_edges: trace for trace in traces if trace.n_edges not in known}
            if new:  # of a long input, several counts may have one trace
                logits = self.run(list(new.values()), "placing TV")
                found.update((n, pair) for n, *pair in zip(new, new.values(), logits, strict=True))  # type: ignore[misc]
                known.update(zip(new, total_variation(self.full, logits).tolist(), strict=True))
            return [known[trace.n_edges] for trace in traces]

        narrow(dict(values), goal_of("tv", eps), evaluate)
        return found

    def values(self, name: str, metric: str, counts: Sequence[int]) -> list[Any]:
        """A metric of the best-first traces with these numbers of edges, run in one batch."""
        traces = self.graphs[name].traces(n_edges=counts)
        logits = self.run(traces, f"placing {metric}")
        found: list[Any] = compute_metrics(self.full, logits)[metric].tolist()
        return found


def _next_token(ids: Sequence[int], position: int) -> int | None:
    return ids[position + 1] if position + 1 < len(ids) else None


def describe_model(model: Model) -> dict[str, Any]:
    """Name, revision, architecture, dtype, device and block layouts of a model."""
    adapter = model.adapter
    return {
        "name": model.name,
        "revision": model.revision,
        "architecture": model.architecture,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "device": str(adapter.device),
        "layout": sorted({block.layout.name for block in adapter.blocks}),
    }


def provenance(**settings: Any) -> dict[str, Any]:
    """Versions, platform and time, and the settings given."""
    return {
        "densitometer": version("densitometer"),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **settings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
