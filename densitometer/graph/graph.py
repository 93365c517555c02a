"""The graph of one forward pass with the importance of its edges, and the traces cut from it.

`build_graph` records a run and computes the importance of its edges. A `Graph` has the edges that
can reach the output. A `Trace` is a set of these edges; the others are switched off.

What this file does not do: traces are grown in `growth.py`, importances are computed in
`importance/`, and masked runs are in `masked_runs.py`.

Axes: F flat edge axis, E edges that can reach the output, K sets of edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy
import polars
from torch import Tensor

from .._util.arguments import (
    checked_count,
    checked_list,
    checked_number,
    checked_seed,
    checked_share,
    only_one,
)
from .._util.digits import percent
from .._util.metrics import compute_metrics, total_variation
from .._util.notebook_table import Described
from ..errors import InputError
from ..models.conditions import tensors_on_cpu
from ..models.loading import AnyModel, Model, Text, as_model
from ..models.placement import memory_watched
from ..models.units import Granularity
from . import export
from .cost import CostCurve, cost_curve, costs_of_sets, full_cost
from .forward_pass import EdgeSpace, ForwardPass, run_forward
from .growth import best_first_order, bottleneck_keys, natural_masks, nucleus_mask, residual_mask
from .importance.norms import uniform_importance
from .importance.registry import check_importance, compute_importance
from .input_pairs import check_pairing, counterfactual_ids, with_counterfactual
from .masked_runs import masked_logits
from .targets import Target


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Described):
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

    model: Model = field(repr=False)
    forward: ForwardPass = field(repr=False)
    input_ids: tuple[int, ...] = field(repr=False)
    tokens: tuple[str, ...]
    position: int
    importance_name: str
    importance: numpy.ndarray = field(repr=False)
    seed: int = 0

    def _facts(self) -> dict[str, str]:
        text = "".join(self.tokens[: self.position + 1])
        return {
            "edges": f"{self.n_edges:,}" + (f" by {self.granularity}" if self.granularity != "block" else ""),
            "importance": self.importance_name,
            "of": f"{self.n_layers} layers, {self.n_heads} heads, {self.position + 1} tokens",
            "model": self.model.name,
            "text": text if len(text) <= 60 else f"…{text[-60:]}",
        }

    def __repr__(self) -> str:
        facts = self._facts()
        return f"Graph({facts['edges']} edges by {facts['importance']}; {facts['of']}; {facts['model']})"

    @property
    def space(self) -> EdgeSpace:
        """Edge space of the tokens up to the position."""
        return self.forward.space

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

    @property
    def granularity(self) -> Granularity:
        """What an MLP edge is: "block" for a whole MLP, "expert" or "neuron"."""
        return self.forward.granularity

    @property
    def n_layers(self) -> int:
        return len(self.model.adapter.blocks)

    @property
    def n_heads(self) -> int:
        """Number of query heads of a layer. Where layers differ, the largest."""
        return max(level.n_heads for level in self.space.levels)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the whole input."""
        return len(self.input_ids)

    @property
    def landmarks(self) -> dict[str, float]:
        """Sizes of the output token's own path: its residual edges, and these with its MLPs.

        With L layers and E edges the sizes are 2L/E and 3L/E (docs/method.md, section 6). In models
        of parallel blocks they are L/E and 2L/E. At a finer granularity than the block, all units
        of the output token's MLPs count.
        """
        levels = self.space.levels
        views = self.space.views(self.reachable)
        mlps = sum(int(view.mlp[:, -1].sum()) for view in views if view.mlp is not None)
        return {
            "residual_chain": len(levels) / self.n_edges,
            "residual_mlp_chain": (len(levels) + mlps) / self.n_edges,
        }

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
        """Smallest importance on each edge's best path to the output, (F,) float32."""
        return bottleneck_keys(self.space, self.importance, self.reachable)

    @cached_property
    def thresholds(self) -> numpy.ndarray:
        """Threshold of the best-first trace of n edges, for n from 0 to E, (E + 1,) float32.

        It is the least importance of the trace's edges. For n = 0 it is the largest importance of
        all edges.
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

    def shares_of(self, masks: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Cost of sets of edges, as shares of the full trace's cost.

        Args:
            masks: (K, F) bool, the sets.

        Returns:
            Shares of the operations, (K,) float64.
            Shares of the parameters, (K,) float64.
        """
        costs = costs_of_sets(self.space, self.forward.block_costs, self.reachable, masks)
        flops, parameters = (cost / whole for cost, whole in zip(costs, self.full_cost, strict=True))
        return flops, parameters

    @cached_property
    def full_cost(self) -> tuple[float, float]:
        """Operations and parameters of the full trace."""
        return full_cost(self.space, self.forward.block_costs, self.reachable)

    def n_edges_at(self, size: float) -> int:
        """Number of edges of a trace of a given size: floor(size x E).

        Raises:
            InputError: the size is not in [0, 1].
        """
        return math.floor(checked_share("size", size) * self.n_edges)

    def trace(
        self,
        size: float | None = None,
        *,
        n_edges: int | None = None,
        threshold: float | None = None,
        nucleus: float | None = None,
        flops: float | None = None,
        parameters: float | None = None,
        mask: numpy.ndarray | None = None,
    ) -> Trace:
        """Cut a trace. Exactly one argument must be given.

        Args:
            size: share of the edges, best first: floor(size x E) of them.
            n_edges: number of edges, best first.
            threshold: keep the edges with importance above it from which the output is reached
                through such edges.
            nucleus: keep, for each reached node, the fewest incoming edges whose shares of the
                node's total importance sum to at least this.
            flops: the largest best-first trace with at most this share of the full trace's
                operations.
            parameters: the largest best-first trace with at most this share of the full trace's
                parameters.
            mask: (E,) bool, one per row of `edges()`: keep exactly these edges, such as all but
                one, to see what that one does.

        Raises:
            InputError: no argument or several are given, or one is out of range.
        """
        given = {
            "size": size, "n_edges": n_edges, "threshold": threshold, "nucleus": nucleus, "flops": flops,
            "parameters": parameters, "mask": mask,
        }  # fmt: skip
        named = only_one(given)
        if mask is not None:
            return self._chosen(numpy.asarray(mask))
        if threshold is not None:
            return self._trace_of(self.keys > checked_number("threshold", threshold))
        if nucleus is not None:
            share = checked_share("nucleus", nucleus)
            return self._trace_of(nucleus_mask(self.space, self.importance, self.reachable, share))
        if size is not None:
            return self._prefix(self.n_edges_at(size))
        if n_edges is not None:
            return self._prefix(checked_count(n_edges, self.n_edges))
        name, budget = next(iter(named.items()))
        costs = getattr(self.costs, name)
        return self._prefix(int(costs.searchsorted(checked_share(name, budget) + 1e-12, side="right")) - 1)

    def traces(
        self,
        sizes: Sequence[float] = (),
        *,
        n_edges: Sequence[int] = (),
        thresholds: Sequence[float] = (),
    ) -> list[Trace]:
        """Cut traces of several sizes, then of numbers of edges, then of thresholds.

        Of any two of these traces, the larger holds the smaller.
        """
        return [
            *(self.trace(size=size) for size in checked_list("sizes", sizes)),
            *(self.trace(n_edges=count) for count in checked_list("n_edges", n_edges)),
            *(self.trace(threshold=threshold) for threshold in checked_list("thresholds", thresholds)),
        ]

    def natural_subgraphs(self) -> dict[str, Trace]:
        """Traces that need no importance, by name (`growth.natural_masks`)."""
        return {name: Trace(self, mask) for name, mask in natural_masks(self.space, self.reachable).items()}

    def reached_by(self, trace: Trace) -> float:
        """Least importance of the edges of a best-first trace."""
        return float(self.thresholds[trace.n_edges])

    @property
    def threshold_range(self) -> tuple[float, float]:
        """Largest threshold of a trace, and the smallest one above 0."""
        keys = self.thresholds[1:]
        largest = float(keys.max()) if keys.size else 1.0
        return largest, float(keys[keys > 0].min(initial=largest))

    def random_trace(self, size: float, *, seed: int = 0, keep_residual: bool = False) -> Trace:
        """Cut a random trace that is connected to the output: best-first, by random importances.

        Args:
            size: share of the edges.
            seed: random seed.
            keep_residual: add every residual edge, as the papers' code does. The trace is then
                larger than `size`.
        """
        trace = self.random_graph(seed).trace(size=size)
        return trace.with_residual() if keep_residual else trace

    def random_graph(self, seed: int = 0) -> Graph:
        """Make a graph of the same edges with uniform random importances."""
        seed = checked_seed(seed)
        cache = self.__dict__.setdefault("_random_graphs", {})
        if seed not in cache:
            importance = uniform_importance(self.space.size, seed)
            cache[seed] = self.with_importance("random", importance, seed)
        return cache[seed]

    def with_importance(self, name: str, importance: numpy.ndarray, seed: int = 0) -> Graph:
        """Make a graph of the same edges with other importances.

        Args:
            name: name of the importance.
            importance: (F,) float32.
            seed: random seed of the importance.
        """
        return Graph(
            self.model, self.forward, self.input_ids, self.tokens, self.position, name, importance, seed
        )

    def _prefix(self, n: int) -> Trace:
        """Cut the best-first trace of n edges."""
        mask = numpy.zeros(self.space.size, dtype=bool)
        mask[self.order[:n]] = True
        return Trace(self, mask)

    def _chosen(self, chosen: numpy.ndarray) -> Trace:
        """Make a trace of edges (E,) bool.

        Raises:
            InputError: the array is not of booleans, or has another shape.
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


class Trace(Described):
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
    def key(self) -> bytes:
        """Bytes that are equal for two traces of one pass exactly if they have the same edges."""
        return self._bits.tobytes()

    @cached_property
    def mask(self) -> numpy.ndarray:
        """Edges that are on, (E,) bool, one per row of `graph.edges()`."""
        return self.flat[self.graph.index]

    @cached_property
    def n_edges(self) -> int:
        return int(self.flat.sum())

    @property
    def size(self) -> float:
        """Share of the graph's edges."""
        return self.n_edges / self.graph.n_edges

    @property
    def flops_share(self) -> float:
        """Share of the full trace's operations that must run (rules: `densitometer.graph.cost`)."""
        return self._shares[0]

    @property
    def parameter_share(self) -> float:
        """Share of the full trace's parameters that is used."""
        return self._shares[1]

    @cached_property
    def _shares(self) -> tuple[float, float]:
        flops, parameters = self.graph.shares_of(self.flat[None])
        return float(flops[0]), float(parameters[0])

    def edges(self) -> polars.DataFrame:
        """Table of the edges that are on, with the columns of `Graph.edges`."""
        return self.graph.edges().filter(polars.Series(self.mask))

    def components(self, *, effect: bool = False) -> polars.DataFrame:
        """Table of the components that have edges in the trace.

        A component is an attention head, the MLP or the residual edges of one layer.

        Args:
            effect: also run the model without each of them, a run each.

        Returns:
            One row per component, in the order of `Graph.edges`: layer, kind, head (null where it
            has none), n_edges (number of its edges that are on), edge_share (share of its edges
            that are on), importance_share (their share of the importance of all edges of the
            graph), n_read (number of tokens from which they lead), reads (the one from which most
            importance comes). With `effect` also effect: the total variation from the model when
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

    def logits(self, *, attention: Literal["recomputed", "frozen", "kept"] = "recomputed") -> Tensor:
        """Run the model with only these edges on.

        Args:
            attention: "recomputed" to compute attention weights from the trace's own streams,
                "frozen" to keep those of the full run, "kept" to leave every attention edge on.

        Returns:
            Logits at the graph's position, (vocabulary,) float32 on the CPU.

        Raises:
            InputError: `attention` is none of these.
        """
        if attention not in ("recomputed", "frozen", "kept"):
            raise InputError(f"unknown attention {attention!r}; expected one of recomputed, frozen, kept")
        kept = attention == "kept"
        return masked_logits(self.graph.forward, [self.flat], attention == "frozen", kept=kept)[0]

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

    def necessity(self, *, n_random: int = 3, seed: int = 0) -> polars.DataFrame:
        """Turn this trace off and all other edges on: is it needed?

        A trace that suffices need not be needed, as other edges may do the same work.

        Args:
            n_random: number of connected random traces of as many edges that are turned off
                instead, for comparison.
            seed: random seed of the first of them; the others follow.

        Returns:
            One row per run: removed ("trace" or "random"), seed (null for the trace), n_edges
            (number of edges that are off), and the metrics of a curve: tv, kl, js, top1, ...

        Raises:
            InputError: `n_random` is not a whole number of at least 0.
        """
        n_random = checked_count(n_random, 10_000)
        seeds = [checked_seed(seed) + i for i in range(n_random)]
        removed = [self, *(self.graph.random_graph(s).trace(n_edges=self.n_edges) for s in seeds)]
        logits = masked_logits(self.graph.forward, [trace.inverse().flat for trace in removed])
        metrics = compute_metrics(self.graph.forward.logits.cpu(), logits)
        return polars.DataFrame(
            {
                "removed": ["trace"] + ["random"] * n_random,
                "seed": polars.Series([None, *seeds], dtype=polars.Int64),
                "n_edges": [trace.n_edges for trace in removed],
                **{name: values.tolist() for name, values in metrics.items()},
            }
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
        """Return the edges that are on as boolean tensors, for hooks of your own.

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
            keep_residual: add every residual edge, as the papers' code does.
        """
        rest = Trace(self.graph, self.graph.reachable & ~self.flat)
        return rest.with_residual() if keep_residual else rest

    def with_residual(self) -> Trace:
        """Make the trace of these edges and every residual edge, as the papers' code does."""
        graph = self.graph
        return Trace(graph, self.flat | residual_mask(graph.space, graph.reachable))

    def _facts(self) -> dict[str, str]:
        return {
            "edges": f"{self.n_edges:,} of {self.graph.n_edges:,}, {percent(self.size)}",
            "operations": f"{percent(self.flops_share)} of the full trace's",
            "parameters": f"{percent(self.parameter_share)} of the full trace's",
        }

    def __repr__(self) -> str:
        return f"Trace({self.n_edges} of {self.graph.n_edges} edges, {percent(self.size)})"


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
        target: what importances from gradients follow: a token, a pair, or a function of logits, as
            for `measure`. None for the whole distribution.
        counterfactual: another input of as many tokens: what edges that are off carry, wherever the
            graph's traces are run, as for `measure`. None for nothing.

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
