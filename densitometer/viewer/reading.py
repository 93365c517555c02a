"""What the explorer computes about a measured input beyond its curve: lens, writes and traces.

    nodes     logit lens: the stream of a node, read by the model's final norm and head
    writes    tokens that an edge's vector promotes and demotes most
    chosen    trace of edges that the user has chosen
    run       prediction of such a trace

**What an edge writes.** Let r(x) be the final norm and head, x the output stream, and e an edge's
vector, scaled to the norm of x. Tokens are ranked by (r(e) - r(-e)) / 2. If the norm divides by the
size of its input, this is the direct effect of e on the logits, up to a positive factor. Biases of
the norm and the head cancel. The direct effect ignores everything between the edge and the output
that reads the vector. It is a direction, not a measured effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from .._util.metrics import compute_metrics, total_variation
from ..errors import InputError
from ..graph.edge_graph import EdgeSet
from ..graph.forward_pass import LevelEdges
from ..measuring.measurement import Measurement

# Tokens of a node's logit lens.
N_LENS = 5
# Tokens that an edge promotes most, and as many that it demotes most.
N_WRITES = 5
# Tokens of a trace's prediction.
N_TOP = 10
# Largest total variation between the model and the lens at the output. Above it no lens is shown.
LENS_TOLERANCE_TV = 0.05
# Rows that the head reads at once.
ROWS_AT_ONCE = 256


class Node(NamedTuple):
    """Node of the graph: the residual stream of a token at a depth.

    Row 0 is the input of the first block. Row i + 1 is the stream into which the edges of level i
    lead.
    """

    row: int
    token: int


class Writer(NamedTuple):
    """Component that writes a vector: a head at a source token, or an MLP at a token.

    head is -1 for an MLP. target is -1 unless the model gates its heads, which makes a head's
    vector depend on the target token.
    """

    level: int
    head: int
    source: int
    target: int


@dataclass(frozen=True, eq=False)
class Reader:
    """Computations about one measured input.

    Args:
        measurement: the measurement.
        kept: columns of the edges that the page has numbers of, where edges are not stored: level,
            kind, head, source and target, (n,) each.

    Raises:
        InputError: the measurement was loaded from a file and has no model, or its graph is not by
            block.
    """

    measurement: Measurement
    kept: Mapping[str, numpy.ndarray] | None = None
    _levels: dict[int, LevelEdges] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.measurement.session is None:
            raise InputError(
                "this measurement was loaded from a file and has no model; give it one: "
                "measurement.with_model(load_model(...))"
            )
        if self.measurement.granularity != "block":
            raise InputError(
                "the explorer shows graphs by block; measure this input with granularity='block'"
            )

    @property
    def session(self) -> Any:
        return self.measurement.session

    @property
    def graphs(self) -> dict[str, Any]:
        graphs: dict[str, Any] = self.session.graphs
        return graphs

    @cached_property
    def first(self) -> Any:
        return next(iter(self.graphs.values()))

    @cached_property
    def lens_gap(self) -> float:
        """Total variation between the model's prediction and the lens at the output node."""
        node = Node(len(self.first.space.levels), self.first.space.n_tokens - 1)
        logits = self.first.model.adapter.read_out(self._streams([node])).cpu()
        return float(total_variation(self.session.full, logits))

    def nodes(self, nodes: Sequence[Node]) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Logit lens of nodes: the five most probable tokens of each.

        Returns:
            Token ids, (N, 5) int32, by decreasing probability.
            Their probabilities, (N, 5) float32.
        """
        ids, probabilities = [], []
        for start in range(0, len(nodes), ROWS_AT_ONCE):
            streams = self._streams(nodes[start : start + ROWS_AT_ONCE])
            top = self.first.model.adapter.read_out(streams).softmax(-1).topk(N_LENS)
            ids.append(top.indices.cpu().numpy().astype(numpy.int32))
            probabilities.append(top.values.cpu().numpy().astype(numpy.float32))
        return _stacked(ids, numpy.int32, N_LENS), _stacked(probabilities, numpy.float32, N_LENS)

    def writes(self, writers: Sequence[Writer]) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Find the tokens that the vectors of components promote and demote most.

        Args:
            writers: N components, each of which writes one vector.

        Returns:
            Token ids, (N, 10) int32: the five that are promoted most, then the five that are
                demoted most, each five with the largest change first.
            The changes of their logits, (N, 10) float32 (see the module docstring).
        """
        size = self.edges(len(self.first.space.levels) - 1).node[-1].norm()
        ids, changes = [], []
        for start in range(0, len(writers), ROWS_AT_ONCE):
            vectors = torch.stack([self._vector(w) for w in writers[start : start + ROWS_AT_ONCE]])
            vectors = vectors * (size / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-30))
            both = self.first.model.adapter.read_out(torch.cat([vectors, -vectors]))
            change = (both[: len(vectors)] - both[len(vectors) :]) / 2
            up, down = change.topk(N_WRITES), change.topk(N_WRITES, largest=False)
            ids.append(torch.cat([up.indices, down.indices], -1).cpu().numpy().astype(numpy.int32))
            changes.append(torch.cat([up.values, down.values], -1).cpu().numpy().astype(numpy.float32))
        return _stacked(ids, numpy.int32, 2 * N_WRITES), _stacked(changes, numpy.float32, 2 * N_WRITES)

    def writer_of(self, edge: int) -> Writer | None:
        """Return the component that writes the vector of an edge.

        None for a residual edge, which carries its source unchanged.

        Args:
            edge: number of the edge (`columns`).

        Raises:
            InputError: there is no such edge.
        """
        columns = self.columns([edge])
        kind = str(columns["kind"][0])
        if kind.startswith("residual"):
            return None
        level, head, source, target = (int(columns[n][0]) for n in ("level", "head", "source", "target"))
        gated = head >= 0 and self.edges(level).gate is not None
        return Writer(level, head, source, target if gated else -1)

    def columns(self, edges: Iterable[int]) -> dict[str, numpy.ndarray]:
        """Return level, kind, head, source and target of edges by their numbers.

        The number of an edge is its row of `graph.edges()`, or of the kept edges.
        """
        rows = self._checked(edges)
        if self.kept is not None:
            return {name: column[rows] for name, column in self.kept.items()}
        return self.first.space.columns(self.first.index[rows])

    def chosen(
        self,
        importance: str,
        n_edges: int,
        pinned: Sequence[int] = (),
        hidden: Sequence[int] = (),
        hidden_components: Sequence[tuple[int, str, int]] = (),
    ) -> EdgeSet:
        """Return the best-first trace of n edges, without hidden edges and with pinned ones.

        Args:
            importance: an importance that was measured.
            n_edges: number of edges before any is hidden or pinned.
            pinned: numbers of edges that are on.
            hidden: numbers of edges that are off, unless they are pinned.
            hidden_components: components (layer, kind, head) whose edges are off; head is -1 for a
                component that is not a head.

        Raises:
            InputError: the importance was not measured, or a number of edges, an edge or a
                component does not exist.
        """
        if importance not in self.graphs:
            raise InputError(
                f"importance {importance!r} was not measured; expected one of {list(self.graphs)}"
            )
        trace = self.graphs[importance].trace(n_edges=n_edges)
        return trace.altered(hidden_components, self.columns(hidden), self.columns(pinned))

    def run(self, traces: Sequence[EdgeSet]) -> list[dict[str, Any]]:
        """Run traces. Return the size, costs, metrics and most probable tokens of each."""
        logits: Tensor = self.session.run(traces, "running what was chosen")
        metrics = {
            name: values.tolist() for name, values in compute_metrics(self.session.full, logits).items()
        }
        if (scale := self.session.scale) is not None:
            values = scale.score.value(logits)
            metrics |= {"target": values.tolist(), "faithfulness": scale.faithfulness(values).tolist()}
        top = logits.softmax(-1).topk(min(N_TOP, logits.shape[-1]))
        return [
            {
                "n_edges": trace.n_edges,
                "size": trace.size,
                "flops_share": trace.flops_share,
                "parameter_share": trace.parameter_share,
                **{name: values[i] for name, values in metrics.items()},
                "top": [
                    {"token": token, "probability": probability}
                    for token, probability in zip(self.pieces(ids), probabilities, strict=True)
                ],
            }
            for i, (trace, ids, probabilities) in enumerate(
                zip(traces, top.indices.tolist(), top.values.tolist(), strict=True)
            )
        ]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return self.first.model.pieces(list(ids))

    def edges(self, level: int) -> LevelEdges:
        """Return the edges into one level, with the parts of their vectors."""
        if level not in self._levels:
            self._levels.clear()
            self._levels.update(self.first.forward.levels_with(level))
        return self._levels[level]

    def _streams(self, nodes: Sequence[Node]) -> Tensor:
        return torch.stack(
            [
                self._first_stream[token] if row == 0 else self.edges(row - 1).node[token]
                for row, token in nodes
            ]
        )

    @cached_property
    def _first_stream(self) -> Tensor:
        return self.first.forward.stream.float()

    def _vector(self, writer: Writer) -> Tensor:
        edges = self.edges(writer.level)
        if writer.head < 0:
            assert edges.mlp is not None
            return edges.mlp[writer.source]
        values, write = edges.head(writer.head)
        value = values[writer.source]
        if edges.gate is not None:
            value = value * edges.gate[writer.target, writer.head]
        return value @ write

    def _checked(self, edges: Iterable[int]) -> numpy.ndarray:
        rows = list(edges)
        n_edges = self.first.n_edges if self.kept is None else len(self.kept["level"])
        if rows and not (min(rows) >= 0 and max(rows) < n_edges):
            raise InputError(f"edges must be from 0 to {n_edges - 1}; got {min(rows)} to {max(rows)}")
        return numpy.asarray(rows, dtype=numpy.int64)


def _stacked(parts: list[numpy.ndarray], dtype: Any, width: int) -> numpy.ndarray:
    return numpy.concatenate(parts) if parts else numpy.empty((0, width), dtype)
