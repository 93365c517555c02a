"""Hold a model to the identities that every measurement relies on, with real numbers.

sums                 the vectors of a node's incoming edges, and its constants, sum to the node, in every level
full trace           the run with every edge on gives the model's own logits back
removal, per kind    removing the most important edge of a kind changes the output
batch                a trace's result does not depend on the other traces of its batch
finite               nothing is NaN or infinite (else `NonFiniteError` names the layer)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

from .ablation import masked_logits
from .errors import ArgumentTypeError
from .forward import ForwardPass
from .graph import Graph, Trace, build_graph
from .metrics import total_variation
from .models.adapter import vocabulary_size
from .models.linear import LINEAR_TOLERANCE
from .models.loading import Model
from .models.placement import TOLERANCE_TV
from .models.weights import is_plain

_SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2}


@dataclass(frozen=True)
class CheckRow:
    """One identity.

    Args:
        gap: what was found; tolerance: what is allowed. `bound` says which way: "at most" or "more than".
    """

    identity: str
    detail: str
    gap: float
    bound: str
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.gap <= self.tolerance if self.bound == "at most" else self.gap > self.tolerance


@dataclass(frozen=True)
class CheckReport:
    """Every identity of one model.

    Args:
        layouts: the block layouts that were found.
    """

    model: str
    layouts: tuple[str, ...]
    rows: tuple[CheckRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every identity holds."""
        return all(row.passed for row in self.rows)


def check_model(model: Model, text_or_ids: str | Sequence[int] | None = None) -> CheckReport:
    """Hold a model to its identities on one input.

    Args:
        model: from `load_model`.
        text_or_ids: the input; by default 16 fixed token ids spread over the vocabulary.

    Raises:
        ModelError: it cannot be run at all.
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"expected a model from densitometer.load_model, got {type(model).__name__}")
    if text_or_ids is None:
        text_or_ids = _probe(model)
    graph = build_graph(model, text_or_ids)
    dtype = model.adapter.dtype
    rows = [_sums(graph.forward, dtype), _full_trace(graph, dtype)]
    rows += [_removal(graph, kind) for kind in sorted(set(graph.edges()["kind"]))]
    rows.append(_batch(graph, dtype))
    layouts = tuple(sorted({block.layout.name for block in model.adapter.blocks}))
    return CheckReport(model.name, layouts, tuple(rows))


def _probe(model: Model) -> list[int]:
    vocabulary = vocabulary_size(model.module)
    length = min(16, model.context_length or 16)
    return [(7919 * i + 17) % vocabulary for i in range(length)]


def _sums(forward: ForwardPass, dtype: torch.dtype) -> CheckRow:
    worst, where = 0.0, ""
    for edges in forward.levels():
        total = edges.residual + edges.attention_sum() + edges.constant
        if edges.mlp is not None:
            total = total + edges.mlp
        gap = float((total - edges.node).norm() / edges.node.norm().clamp_min(1e-30))
        if gap >= worst:
            worst, where = gap, f"worst in layer {edges.level.layer}, edges {edges.level.residual_kind}"
    tolerance = _SUM_TOLERANCE.get(dtype, 3e-2)
    if not all(is_plain(block.projection) for block in forward.model.adapter.blocks):
        tolerance = LINEAR_TOLERANCE  # quantised layers compute more coarsely than their dtype
    return CheckRow("incoming edges sum to every node", where, worst, "at most", tolerance)


def _full_trace(graph: Graph, dtype: torch.dtype) -> CheckRow:
    own = graph.model.adapter.logits(graph.forward.ids).cpu()
    full = masked_logits(graph.forward, [graph.reachable])
    gap = float(total_variation(own, full))
    largest = float((full[0] - own).abs().max())
    detail = f"total variation; largest difference of a logit {largest:.1e}"
    return CheckRow("full trace = the model", detail, gap, "at most", TOLERANCE_TV.get(dtype, 5e-2))


def _removal(graph: Graph, kind: str) -> CheckRow:
    """Removing the edge of this kind with the highest bottleneck importance changes the logits."""
    columns = graph.space.columns(graph.index)
    of_kind = graph.index[columns["kind"] == kind]
    edge = of_kind[numpy.argmax(graph.keys[of_kind])]
    without = graph.reachable.copy()
    without[edge] = False
    full, removed = masked_logits(graph.forward, [graph.reachable, without])
    again = masked_logits(graph.forward, [graph.reachable])[0]
    noise = float((again - full).abs().max())
    change = float((removed - full).abs().max())
    where = graph.space.columns(numpy.array([edge]))
    head = f", head {where['head'][0]}" if where["head"][0] >= 0 else ""
    detail = f"largest change of a logit; layer {where['layer'][0]}{head}, {where['source'][0]} to {where['target'][0]}"
    return CheckRow(f"removing one {kind} edge changes the output", detail, change, "more than", 10 * noise)


def _batch(graph: Graph, dtype: torch.dtype) -> CheckRow:
    traces: list[Trace] = [graph.trace(size=size) for size in (1.0, 0.5, 0.1)]
    traces.append(graph.random_trace(0.5))
    masks = [trace.flat for trace in traces]
    together = masked_logits(graph.forward, masks)
    alone = torch.cat([masked_logits(graph.forward, [mask]) for mask in masks])
    gap = max(float(total_variation(a, b[None])) for a, b in zip(alone, together, strict=True))
    return CheckRow(
        "results do not depend on batch mates",
        "total variation, 4 traces",
        gap,
        "at most",
        TOLERANCE_TV.get(dtype, 5e-2),
    )
