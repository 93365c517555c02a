"""Traces that are made of whole heads and MLPs instead of single edges.

A *component* is an attention head or an MLP: all of its edges, at every token. Residual edges do
not belong to a component. They are always on, because a head alone does not reach the output.

    importance     root of the sum of the squares of the importances of its edges
    trace          the most important components, and every residual edge
    full trace     every component: the model itself
    empty trace    the residual edges alone: what the last token's embedding predicts
    random         as many heads and as many MLPs as the trace, drawn at random. Without MLPs no
                   set predicts well, so random sets of both kinds mixed would be easy to beat

A `ComponentGraph` is one forward pass with these sets. Sets that suffice for many prompts
(`study/tasks.py`) are made of the same components.

Why squares: for `fisher`, the square of an edge's importance is the cost of turning it off, to
second order. Their sum is the cost of turning off a whole component if its edges do not interact.

What this file does not do: it records no run and computes no importance. Both are in the graph of
edges from which a `ComponentGraph` is made.

Axes: F flat edge axis, C components, K sets of components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy
import polars

from .._util.arguments import checked_share
from ..errors import InputError
from .edge_graph import LANDMARKS, EdgeGraph, EdgeSet, TraceGranularity
from .forward_pass import Component, EdgeSpace
from .graph import Graph, Trace

# Kinds of edges that belong to a component.
KINDS = ("attention", "mlp")


@dataclass(frozen=True, eq=False)
class Components:
    """The C heads and MLPs of a model, numbered layer by layer, the heads of a layer first.

    Args:
        listed: the components.
    """

    listed: tuple[Component, ...]

    @classmethod
    def of(cls, space: EdgeSpace) -> Components:
        """List the components of a model from the edge space of any of its inputs.

        The number of tokens makes no difference.
        """
        return cls(tuple(component for component in space.components() if component.kind in KINDS))

    def __len__(self) -> int:
        return len(self.listed)

    @cached_property
    def kinds(self) -> numpy.ndarray:
        """Kind of each component, (C,) str: "attention" or "mlp"."""
        return numpy.array([component.kind for component in self.listed])

    @cached_property
    def table(self) -> polars.DataFrame:
        """A row per component. Columns: layer, kind, head (null for an MLP)."""
        return polars.DataFrame(
            {
                "layer": [component.layer for component in self.listed],
                "kind": [component.kind for component in self.listed],
                "head": [component.head if component.head >= 0 else None for component in self.listed],
            },
            schema_overrides={"layer": polars.Int32, "head": polars.Int32},
        )

    def numbers(self, space: EdgeSpace) -> numpy.ndarray:
        """Component of each edge, (F,) int64, or C for edges that do not belong to a component."""
        every = space.components()
        of_every = numpy.full(len(every), len(self))
        of_every[[component.kind in KINDS for component in every]] = numpy.arange(len(self))
        return of_every[space.component_numbers()]

    def shuffled(self, order: numpy.ndarray, seed: int) -> numpy.ndarray:
        """Shuffle an order (C,) of the components. Heads take the places of heads, MLPs of MLPs."""
        drawn, generator = order.copy(), numpy.random.default_rng(seed)
        for kind in KINDS:
            places = self.kinds[order] == kind
            drawn[places] = generator.permutation(order[places])
        return drawn


def sum_of_squares(
    importance: numpy.ndarray, reachable: numpy.ndarray, numbers: numpy.ndarray, n: int
) -> numpy.ndarray:
    """Add up the squared importances of the edges of each of n units, (n,) float64.

    Args:
        importance: (F,) float.
        reachable: (F,) bool, the edges that can reach the output. The others do not count.
        numbers: (F,) integers, the unit of each edge; n for edges that do not belong to a unit.
    """
    squares = numpy.where(reachable, importance, 0.0).astype(numpy.float64) ** 2
    return numpy.bincount(numbers, squares, minlength=n + 1)[:n]


@dataclass(frozen=True, eq=False, repr=False)
class ComponentGraph(EdgeGraph["ComponentTrace"]):
    """Graph of one forward pass whose traces are sets of whole heads and MLPs.

    Sizes, numbers and masks count components, not edges. So `n_edges` is the number C of
    components.

    Args:
        edge_graph: the graph of the same pass whose traces are sets of single edges.
        parts: the components.
        importance: (C,) float32, the importance of each component.
    """

    edge_graph: Graph = field(repr=False)
    parts: Components = field(repr=False)
    importance: numpy.ndarray = field(repr=False)
    stored: ClassVar[bool] = True
    units: ClassVar[str] = "components"
    one_random: ClassVar[bool] = False

    @classmethod
    def of(cls, graph: Graph) -> ComponentGraph:
        """Join the edges of a graph at granularity "block" into components."""
        parts = Components.of(graph.space)
        numbers = parts.numbers(graph.space)
        squares = sum_of_squares(graph.importance, graph.reachable, numbers, len(parts))
        return cls(
            graph.model, graph.forward, graph.input_ids, graph.tokens, graph.position, graph.importance_name,
            graph, parts, numpy.sqrt(squares).astype(numpy.float32),
        )  # fmt: skip

    @property
    def granularity(self) -> TraceGranularity:
        return "component"

    @property
    def n_edges(self) -> int:
        """Number C of components."""
        return len(self.parts)

    @property
    def reachable(self) -> numpy.ndarray:
        """Edges of the flat axis that can reach the output, (F,) bool."""
        return self.edge_graph.reachable

    @cached_property
    def numbers(self) -> numpy.ndarray:
        """Component of each edge, (F,) int64. C for residual edges."""
        return self.parts.numbers(self.space)

    @cached_property
    def order(self) -> numpy.ndarray:
        """Components by falling importance, (C,) int64. Of equal ones the lower number is first."""
        return numpy.argsort(-self.importance, kind="stable")

    def components(self) -> polars.DataFrame:
        """Table of the components. Columns: layer, kind, head (null for an MLP), importance."""
        return self.parts.table.with_columns(importance=polars.Series(self.importance))

    def natural_subgraphs(self) -> dict[str, Any]:
        """Subgraphs that need no importance: the residual edges alone, and these with all MLPs."""
        return {name: self._natural(name) for name in LANDMARKS}

    def _natural(self, name: str) -> ComponentTrace:
        # Without heads nothing leads from one token to another, so these two predict what the
        # output token's own chain does.
        return ComponentTrace(self, (self.parts.kinds == "mlp") & (name == "residual_mlp_chain"))

    def _cut(self, counts: Sequence[int], thresholds: Sequence[float]) -> list[ComponentTrace]:
        above = (self.importance > threshold for threshold in thresholds)
        return [*map(self._first, counts), *(ComponentTrace(self, chosen) for chosen in above)]

    def _cut_by(self, name: str, value: Any) -> ComponentTrace:
        if name == "mask":
            return ComponentTrace(self, numpy.asarray(value))
        if name == "nucleus":
            raise InputError(
                "a nucleus is of the edges into one token's stream, and a component has edges at every token; cut by size, "
                "n_edges (a number of components), threshold, flops or parameters"
            )
        costs = self._costs[0 if name == "flops" else 1]
        return self._first(int(costs.searchsorted(checked_share(name, value) + 1e-12, side="right")) - 1)

    @cached_property
    def _costs(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Cost of the traces of 0 to C components, as shares of the full trace's cost."""
        return self.shares_of([self._first(n) for n in range(self.n_edges + 1)])

    def _first(self, n: int) -> ComponentTrace:
        """Make the trace of the n most important components."""
        chosen = numpy.zeros(self.n_edges, dtype=bool)
        chosen[self.order[:n]] = True
        return ComponentTrace(self, chosen)

    @property
    def _largest(self) -> float:
        return float(self.importance.max())

    def _key_at(self, rank: int) -> float:
        return float(self.importance[self.order[rank]])

    def _least_key_above(self, value: float) -> float | None:
        above = self.importance[self.importance > value]
        return float(above.min()) if above.size else None

    def _costs_of(self, sets: Sequence[ComponentTrace]) -> tuple[numpy.ndarray, numpy.ndarray]:
        return self.edge_graph._costs_of([each.edge_trace for each in sets])

    @property
    def full_cost(self) -> tuple[float, float]:
        """Operations and parameters of the full trace."""
        return self.edge_graph.full_cost

    def _random(self, seed: int) -> ComponentGraph:
        """Make a graph whose traces have as many heads and MLPs as this one's, at random."""
        importance = numpy.empty(self.n_edges, dtype=numpy.float32)
        falling = numpy.linspace(1, 0, self.n_edges, endpoint=False, dtype=numpy.float32)
        importance[self.parts.shuffled(self.order, seed)] = falling
        return replace(self, importance_name="random", importance=importance)


class ComponentTrace(EdgeSet):
    """Set of heads and MLPs that are on at all tokens, with every residual edge. Others are off.

    Args:
        graph: the graph.
        chosen: (C,) bool, one per row of `graph.components()`.

    Raises:
        InputError: `chosen` is not boolean, or does not have the shape (C,).
    """

    def __init__(self, graph: ComponentGraph, chosen: numpy.ndarray) -> None:
        if chosen.dtype != bool or chosen.shape != (graph.n_edges,):
            raise InputError(
                f"mask must be {graph.n_edges} booleans, one per row of components(); got {chosen.dtype} of shape "
                f"{chosen.shape}"
            )
        self.graph = graph
        self.mask = chosen

    @property
    def flat(self) -> numpy.ndarray:
        """Edges that are on, (F,) bool over the flat edge axis. Each call makes a new array."""
        return numpy.append(self.mask, True)[self.graph.numbers] & self.graph.reachable

    @property
    def edges_on(self) -> numpy.ndarray:
        return self.flat

    @property
    def key(self) -> bytes:
        """Bytes that are equal for two sets of one model exactly if they are the same."""
        return numpy.packbits(self.mask).tobytes()

    @cached_property
    def n_edges(self) -> int:
        """Number of components that are on."""
        return int(self.mask.sum())

    @property
    def n_heads(self) -> int:
        """Number of attention heads that are on."""
        return int(self.mask[self.graph.parts.kinds == "attention"].sum())

    @property
    def n_mlps(self) -> int:
        """Number of MLPs that are on."""
        return int(self.mask[self.graph.parts.kinds == "mlp"].sum())

    @property
    def edge_trace(self) -> Trace:
        """This set as a `Trace` of single edges, for tables of edges, exports, and hooks."""
        return Trace(self.graph.edge_graph, self.flat)

    def components(self, *, effect: bool = False) -> polars.DataFrame:
        """Table of the heads and MLPs that are on, in the columns of `Trace.components`.

        Args:
            effect: whether to run the model without each of them, which costs a run each.
        """
        return self.edge_trace.components(effect=effect).filter(polars.col("kind").is_in(KINDS))

    def inverse(self, *, keep_residual: bool = False) -> ComponentTrace:
        """Make the set of all components that are not in this one.

        Args:
            keep_residual: changes nothing, because residual edges are always on.
        """
        return ComponentTrace(self.graph, ~self.mask)

    def with_residual(self) -> ComponentTrace:
        """Return this set, which has every residual edge already."""
        return self

    def _facts(self) -> dict[str, str]:
        return {"made of": f"{self.n_heads} heads, {self.n_mlps} MLPs"} | super()._facts()
