"""The graph of one forward pass with the importance of its edges, and the traces cut from it.

`build_graph` records a run and computes the importance of its edges. A `Graph` has the edges that
can reach the output. A `Trace` is a set of these edges; the others are switched off.

What this file does not do: methods that graphs of long inputs have, too, are in `edge_graph.py`.
Traces are grown in `growth.py`, importances are computed in `importance/`, and masked runs are in
`masked_runs.py`.

Axes: F flat edge axis, E edges that can reach the output, K sets of edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy
import polars
from torch import Tensor

from .._util.arguments import checked_seed, checked_share
from .._util.metrics import total_variation
from ..errors import InputError
from ..models.conditions import tensors_on_cpu
from ..models.loading import AnyModel, Text, as_model
from ..models.placement import memory_watched
from ..models.units import Granularity
from . import export
from .cost import CostCurve, cost_curve, costs_of_sets, full_cost
from .edge_graph import EdgeGraph, EdgeSet
from .forward_pass import ForwardPass, run_forward
from .growth import best_first_order, bottleneck_keys, natural_mask, nucleus_mask, residual_mask
from .importance.norms import uniform_importance
from .importance.registry import check_importance, compute_importance
from .input_pairs import check_pairing, counterfactual_ids, with_counterfactual
from .masked_runs import masked_logits
from .targets import Target

# Bytes of the masks whose costs are counted at once.
MASK_BYTES = 8 * 2**20


@dataclass(frozen=True, eq=False, repr=False)
class Graph(EdgeGraph["Trace"]):
    """The edges of one forward pass that can reach its output, with their importances.

    Args:
        model: the model.
        forward: the recorded pass.
        input_ids: token ids of the whole input.
        tokens: the same tokens as readable texts.
        position: index of the token whose prediction is measured; later tokens have no edges.
        importance_name: name of the importance.
        importance: (F,) float32, the importance of each edge of the flat axis.
        seed: random seed of the importance.

    Examples:
        >>> graph = dm.build_graph(model, "The captain looked")
        >>> graph.n_edges, graph.n_layers, graph.n_heads, graph.n_tokens
        (312, 6, 8, 3)
        >>> graph.edges().columns
        ['edge', 'layer', 'kind', 'head', 'source', 'target', 'importance']
        >>> graph.trace(size=0.1)
        Trace(31 of 312 edges, 9.94 %)
    """

    forward: ForwardPass = field(repr=False)
    importance: numpy.ndarray = field(repr=False)
    seed: int = 0
    stored: ClassVar[bool] = True

    @cached_property
    def reachable(self) -> numpy.ndarray:
        """Edges of the flat axis that can reach the output, (F,) bool."""
        return self.forward.reachable

    @cached_property
    def index(self) -> numpy.ndarray:
        """Index on the flat axis of each row of `edges()`, (E,) int64."""
        return numpy.flatnonzero(self.reachable)

    @property
    def n_edges(self) -> int:
        """Number E of edges that can reach the output."""
        return int(self.index.size)

    def edges(self) -> polars.DataFrame:
        """Table of the edges that can reach the output, one row each.

        Returns:
            Columns: edge (number of the row), layer, kind, head (null where an edge has none),
            source, target, importance (float32). At a finer granularity than the block there is
            also unit: the expert (a shared one is the last) or the neuron of an MLP edge; null for
            other edges.
        """
        columns = self.space.columns(self.index)
        head = polars.Series(columns["head"], dtype=polars.Int32)
        table = polars.DataFrame(
            {
                "edge": polars.Series(range(self.n_edges), dtype=polars.Int64),
                "layer": polars.Series(columns["layer"], dtype=polars.Int32),
                "kind": polars.Series(columns["kind"].tolist(), dtype=polars.String),
                "head": head.replace(-1, None),
                "source": polars.Series(columns["source"], dtype=polars.Int32),
                "target": polars.Series(columns["target"], dtype=polars.Int32),
                "importance": polars.Series(self.importance[self.index], dtype=polars.Float32),
            }
        )
        if self.granularity == "block":
            return table
        unit = polars.Series("unit", columns["unit"], dtype=polars.Int32).replace(-1, None)
        return table.insert_column(table.columns.index("source"), unit)

    @cached_property
    def order(self) -> numpy.ndarray:
        """Edges in the order in which best-first growth from the output adds them, (E,) int64.

        They are indices on the flat axis.
        """
        return best_first_order(self.space, self.importance, self.reachable)

    @cached_property
    def keys(self) -> numpy.ndarray:
        """Largest threshold at which each edge is still in the trace, (F,) float32.

        It is the smallest importance on the edge's best path to the output, the edge included. The
        best path is the one on which this smallest importance is largest.
        """
        return bottleneck_keys(self.space, self.importance, self.reachable)

    @cached_property
    def thresholds(self) -> numpy.ndarray:
        """Threshold of the best-first trace of n edges, for n from 0 to E, (E + 1,) float32.

        It is the smallest importance of the trace's edges. For n = 0 it is the largest importance
        of all edges.
        """
        falling = numpy.minimum.accumulate(self.importance[self.order])
        return numpy.concatenate([self.importance[self.index].max(keepdims=True), falling])

    @cached_property
    def costs(self) -> CostCurve:
        """Cost of the best-first traces of 0 to E edges, as shares of the full trace's cost."""
        positions = numpy.full(self.space.size, self.n_edges, dtype=numpy.int64)
        positions[self.order] = numpy.arange(self.n_edges)
        costs, n = self.forward.block_costs, self.n_edges
        return cost_curve(self.space, costs, self.reachable, positions, n, self.full_cost)

    def _costs_of(self, sets: Sequence[Trace]) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Count the operations and the parameters of K traces, (K,) float64 each.

        A few traces are counted at a time, which bounds the memory of their masks.
        """
        step = max(1, MASK_BYTES // self.space.size)
        parts = [
            costs_of_sets(
                self.space,
                self.forward.block_costs,
                self.reachable,
                numpy.stack([trace.flat for trace in sets[start : start + step]]),
            )
            for start in range(0, len(sets), step)
        ]
        flops, parameters = (numpy.concatenate(costs) for costs in zip(*parts, strict=True))
        return flops, parameters

    @cached_property
    def full_cost(self) -> tuple[float, float]:
        """Operations and parameters of the full trace."""
        return full_cost(self.space, self.forward.block_costs, self.reachable)

    def _cut(self, counts: Sequence[int], thresholds: Sequence[float]) -> list[Trace]:
        above = (self.keys > threshold for threshold in thresholds)
        return [*(self._prefix(count) for count in counts), *(self._trace_of(mask) for mask in above)]

    def _cut_by(self, name: str, value: Any) -> Trace:
        if name == "mask":
            return self._chosen(numpy.asarray(value))
        share = checked_share(name, value)
        if name == "nucleus":
            return self._trace_of(nucleus_mask(self.space, self.importance, self.reachable, share))
        return self._prefix(int(getattr(self.costs, name).searchsorted(share + 1e-12, side="right")) - 1)

    def _natural(self, name: str) -> Trace:
        return Trace(self, natural_mask(self.space, self.reachable, name))

    @property
    def _largest(self) -> float:
        return float(self.thresholds[0])

    def _key_at(self, rank: int) -> float:
        return float(self.thresholds[rank + 1])

    def _least_key_above(self, value: float) -> float | None:
        above = self.thresholds[1:][self.thresholds[1:] > value]
        return float(above[-1]) if above.size else None

    def _random(self, seed: int) -> Graph:
        return self.with_importance("random", uniform_importance(self.space.size, seed), seed)

    def with_importance(self, name: str, importance: numpy.ndarray, seed: int = 0) -> Graph:
        """Make a graph of the same edges with other importances.

        Args:
            name: name of the importance.
            importance: (F,) float32.
            seed: random seed of the importance.
        """
        return replace(self, importance_name=name, importance=importance, seed=seed)

    def _prefix(self, n: int) -> Trace:
        """Cut the best-first trace of n edges."""
        mask = numpy.zeros(self.space.size, dtype=bool)
        mask[self.order[:n]] = True
        return Trace(self, mask)

    def _chosen(self, chosen: numpy.ndarray) -> Trace:
        """Make a trace of edges (E,) bool.

        Raises:
            InputError: the array is not boolean, or does not have the shape (E,).
        """
        if chosen.dtype != bool or chosen.shape != (self.n_edges,):
            raise InputError(
                f"mask must be {self.n_edges} booleans, one per row of edges(); got {chosen.dtype} of shape {chosen.shape}"
            )
        flat = numpy.zeros(self.space.size, dtype=bool)
        flat[self.index] = chosen
        return Trace(self, flat)

    def _trace_of(self, mask: numpy.ndarray) -> Trace:
        """Make a trace of edges (F,) bool, without those that cannot reach the output."""
        return Trace(self, mask & self.reachable)


class Trace(EdgeSet):
    """Set of edges of one graph that are on. All other edges are off.

    Args:
        graph: the graph.
        flat: (F,) bool, True for edges of the flat axis that are on. It is kept as bits, because a
            measurement holds about a hundred traces.

    Examples:
        >>> graph = dm.build_graph(model, "The captain looked")
        >>> trace = graph.trace(n_edges=100)
        >>> trace.n_edges, trace.mask.shape, trace.inverse().n_edges
        (100, (312,), 212)
        >>> graph.trace(n_edges=50).mask[trace.mask].sum()  # traces are nested
        np.int64(50)
    """

    def __init__(self, graph: Graph, flat: numpy.ndarray) -> None:
        if flat.dtype != bool or flat.shape != (graph.space.size,):
            raise InputError(
                f"a trace must be {graph.space.size} booleans over the flat edge axis; got {flat.dtype} of shape {flat.shape}. "
                "For edges chosen by rows of graph.edges(), use graph.trace(mask=...)"
            )
        self.graph = graph
        self._bits = numpy.packbits(flat)

    @property
    def flat(self) -> numpy.ndarray:
        """Edges that are on, (F,) bool over the flat edge axis. Each call makes a new array."""
        return numpy.unpackbits(self._bits, count=self.graph.space.size).view(bool)

    @property
    def edges_on(self) -> numpy.ndarray:
        return self.flat

    @property
    def key(self) -> bytes:
        """Value that identifies the trace: traces of one pass with equal edges have equal keys."""
        return self._bits.tobytes()

    @cached_property
    def mask(self) -> numpy.ndarray:
        """Edges that are on, (E,) bool, one per row of `graph.edges()`."""
        return self.flat[self.graph.index]

    @cached_property
    def n_edges(self) -> int:
        return int(numpy.bitwise_count(self._bits).sum())

    def edges(self) -> polars.DataFrame:
        """Table of the edges that are on, with the columns of `Graph.edges`."""
        return self.graph.edges().filter(polars.Series(self.mask))

    def components(self, *, effect: bool = False) -> polars.DataFrame:
        """Table of the components that have edges in the trace.

        A component is an attention head, the MLP or the residual edges of one layer.

        Args:
            effect: whether to run the model without each component, which costs a run each.

        Returns:
            One row per component, in the order of `Graph.edges`: layer, kind, head (null where it
            has none), n_edges (number of its edges that are on), edge_share (share of its edges
            that are on), importance_share (their share of the importance of all edges of the
            graph), n_read (number of their source tokens), reads (the source token with most of
            their importance). With `effect` also effect: the total variation from the model when
            all edges of this component are off, also those outside the trace, and all others on.
        """
        graph = self.graph
        numbers = graph.space.component_numbers()[graph.index]  # (E,)
        every = graph.edges().with_columns(on=polars.Series(self.mask), component=polars.Series(numbers))
        total = every["importance"].sum()
        kept = polars.col("on")
        of_sources = (
            every.filter(kept)
            .group_by("component", "source", maintain_order=True)
            .agg(polars.col("importance").sum())
            .sort("importance", descending=True, maintain_order=True)
            .group_by("component", maintain_order=True)
            .agg(n_read=polars.len().cast(polars.Int64), reads=polars.col("source").first())
        )
        table = (
            every.group_by("component", "layer", "kind", "head", maintain_order=True)
            .agg(
                n_edges=kept.sum().cast(polars.Int64),
                edge_share=kept.mean(),
                importance_share=polars.col("importance").filter(kept).sum().cast(polars.Float64) / total,
            )
            .filter(polars.col("n_edges") > 0)
            .join(of_sources, on="component", how="left", maintain_order="left")
        )
        table = table.with_columns(reads=polars.Series([graph.tokens[i] for i in table["reads"]]))
        if effect:
            flat_numbers = graph.space.component_numbers()  # (F,)
            masks = (graph.reachable & (flat_numbers != number) for number in table["component"])
            gaps = total_variation(graph.forward.logits.cpu(), masked_logits(graph.forward, masks))
            table = table.with_columns(effect=polars.Series(gaps.tolist(), dtype=polars.Float64))
        return table.drop("component")

    def tokens(self) -> polars.DataFrame:
        """Table of the tokens whose streams have edges in the trace.

        Returns:
            One row per token, the one with the largest share of the importance first: position,
            token, n_edges (number of edges that are on and lead into its streams), n_read (number
            of attention edges that are on and read it from another token), importance_share (share
            of the importance of the trace that leads into its streams).
        """
        edges = self.edges()
        total = edges["importance"].sum() or 1.0
        into = edges.group_by("target", maintain_order=True).agg(
            n_edges=polars.len().cast(polars.Int64),
            importance_share=polars.col("importance").sum().cast(polars.Float64) / total,
        )
        elsewhere = edges.filter(kind="attention").filter(polars.col("source") != polars.col("target"))
        read = elsewhere.group_by("source", maintain_order=True).agg(n_read=polars.len().cast(polars.Int64))
        table = into.join(read, left_on="target", right_on="source", how="full", coalesce=True)
        names = polars.DataFrame({"target": range(self.graph.n_tokens), "token": self.graph.tokens})
        return (
            table.join(names.cast({"target": polars.Int32}), on="target")
            .select(
                polars.col("target").alias("position"),
                "token",
                polars.col("n_edges", "n_read").fill_null(0),
                polars.col("importance_share").fill_null(0.0),
            )
            .sort("importance_share", "position", descending=[True, False], maintain_order=True)
        )

    def to_networkx(self) -> Any:
        """Return the trace as a `networkx.MultiDiGraph`.

        A node is a token's stream at one depth, "depth:position": depth 0 is the embedding, and
        each level of the graph adds one. Nodes have depth, layer, position and token. Edges have
        kind, layer, head and importance.
        """
        return export.to_networkx(self)

    def write_graphml(self, path: str | Path) -> None:
        """Write the graph of `to_networkx` as GraphML.

        Raises:
            StorageError: the path cannot be written.
        """
        export.write_graphml(self, path)

    def write_json(self, path: str | Path) -> None:
        """Write the graph of `to_networkx` as JSON, schema densitometer.trace/1.

        `networkx.node_link_graph(document, edges="links")` reads it.

        Raises:
            StorageError: the path cannot be written.
        """
        export.write_json(self, path)

    def to_mask(self) -> list[dict[str, Tensor]]:
        """Return the edges that are on as boolean tensors, for use in your own hooks.

        Returns:
            One dictionary per layer, first to last: residual_attention (T,), attention (H, T, S),
            residual_mlp (T,) and mlp (M, T); in a parallel block residual, attention and mlp. T
            targets, S sources (both the tokens up to the position), H heads, M units of the MLP.

        Examples:
            >>> masks = dm.build_graph(model, "The captain looked").trace(size=0.3).to_mask()
            >>> len(masks), {kind: tuple(mask.shape) for kind, mask in masks[0].items()}["attention"]
            (6, (8, 3, 3))
        """
        return export.to_mask(self)

    def inverse(self, *, keep_residual: bool = False) -> Trace:
        """Make the trace of all edges that are not in this trace.

        Args:
            keep_residual: whether to add every residual edge, as the papers' code does.
        """
        rest = Trace(self.graph, self.graph.reachable & ~self.flat)
        return rest.with_residual() if keep_residual else rest

    def altered(
        self,
        components: Sequence[tuple[int, str, int]],
        off: Mapping[str, numpy.ndarray],
        on: Mapping[str, numpy.ndarray],
    ) -> Trace:
        """Make a trace of these edges with some edges switched off and some others on.

        Args:
            components: components (layer, kind, head) whose edges are off; head is -1 for a
                component that is not a head.
            off: edges that are off, as columns (`EdgeSpace.index_of`).
            on: edges that are on, as columns. They win over `off` and `components`.
        """
        flat, space = self.flat, self.graph.space
        index = numpy.flatnonzero(flat)
        columns = space.columns(index)
        for component in components:
            same = (
                columns[name] == value
                for name, value in zip(("layer", "kind", "head"), component, strict=True)
            )
            flat[index[numpy.logical_and.reduce(list(same))]] = False
        flat[space.index_of(off)] = False
        flat[space.index_of(on)] = True
        return Trace(self.graph, flat)

    def with_residual(self) -> Trace:
        """Make the trace of these edges and every residual edge, as the papers' code does."""
        graph = self.graph
        return Trace(graph, self.flat | residual_mask(graph.space, graph.reachable))


@memory_watched("building a graph")
@tensors_on_cpu()
def build_graph(
    model: AnyModel,
    text_or_ids: Text,
    *,
    position: int = -1,
    importance: str = "l1",
    seed: int = 0,
    granularity: Granularity = "block",
    target: Any = None,
    counterfactual: Any = None,
) -> Graph:
    """Run the model once and compute the importance of each edge of its forward pass.

    Args:
        model: a model, or what `load_model` takes: a name, a folder, a module.
        text_or_ids: a text, chat messages (`Model.encode`), or token ids.
        position: index of the token whose next-token prediction is measured; negative counts from
            the end.
        importance: one of `list_importances()`.
        seed: random seed, for importances that draw random numbers.
        granularity: what an MLP edge is: "block", a token's whole MLP; "expert", one expert that
            the token is sent to (an MLP that is not a mixture of experts is one edge); "neuron",
            one input of the down projection.
        target: a token, a pair, or a function of logits, as for `measure`, of which importances
            take gradients. None for the whole distribution.
        counterfactual: another input with the same number of tokens, as for `measure`. When the
            graph's traces are run, edges that are off carry their vectors in that input. None if
            they carry nothing.

    Raises:
        InputError: the text is unusable, the position is out of range, or the importance or the
            granularity is unknown.
        ModelError: the model cannot be measured on this text.
        PluginError: the importance returned something other than a value per edge.

    Examples:
        >>> graph = dm.build_graph(model, "The captain looked", importance="fisher")
        >>> graph.tokens, graph.position, graph.n_edges
        (('The', ' captain', ' looked'), 2, 312)
    """
    model = as_model(model)
    check_importance(importance)
    seed = checked_seed(seed)
    asked = Target.of(target)
    ids = model.encode(text_or_ids)
    score = None if asked is None else asked.resolved(model)
    forward, position = run_forward(model, ids, position, granularity)
    if counterfactual is not None:
        check_pairing(granularity)
        forward = with_counterfactual(forward, counterfactual_ids(model, counterfactual, ids, position))
    return graph_of(replace(forward, target=score), ids, position, importance, seed)


def graph_of(
    forward: ForwardPass, ids: Sequence[int], position: int, importance: str, seed: int = 0
) -> Graph:
    """Make the graph of a recorded pass, with the importance of its edges."""
    values = compute_importance(forward, importance, seed)  # (F,)
    tokens = tuple(forward.model.pieces(ids))
    return Graph(forward.model, forward, tuple(ids), tokens, position, importance, values, seed)
