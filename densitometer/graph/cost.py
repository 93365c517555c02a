"""Cost of a trace in floating-point operations and in parameters.

One attention edge is one multiply-add of a head's value. One MLP edge is a whole MLP, or one unit
of it. So the share of edges says little about the work. The operations that must run for a trace
are counted, with recomputed attention. A token is a *query token* of a head if an edge of that head
leads into it.

    MLP              for each token and unit whose MLP edge is on: whole MLP, expert or neuron
    router           for each token that has any unit of a mixture of experts on
    query, output    for each head and query token of it
    key              for each key-value head and token to which such a query token may attend, if
                     any edge leads into the token's stream
    value            for each key-value head and token that is the source of an edge of that head
    scores           for each pair of such a query token and key
    mix              for each attention edge

The parameters of every head and every unit of an MLP that has an edge in the trace are counted.
Embeddings and output head always run and are not edges, so neither count includes them. At
granularity "expert", experts to which no token of the text is routed have no edges, so they are not
counted. The cost of single products is in `models/counting.py`.

A `Tally` counts these items, tile by tile. It is written once for two kinds of arrays:

    sets      one boolean per edge and set, for K sets. The result is a count for each set
    onsets    one number per edge: its position in an order. The *onset* of an item is the position
              from which on it must run. Items are counted by onset. Cumulative sums of these counts
              are the costs of all nested traces at once (`cost_curve`)

What this file does not do: it does not measure time or count memory.

Axes: F flat edge axis, K sets of edges (1 for onsets), N counts (K of sets; n + 1 of onsets), H
query heads, G key-value heads, T tokens, t targets and s sources of a tile, M units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
from torch import Tensor

from ..models.blocks import Tile
from ..models.counting import BlockCost
from .forward_pass import EdgeSpace, PerLevel

# Turns booleans of numpy or of torch into float32 numbers.
ONE = numpy.float32(1)


@dataclass(frozen=True)
class CostCurve:
    """Cost of the nested traces of 0, 1, ..., n edges, as shares of the full trace's cost.

    Args:
        flops: (n + 1,) float64, shares of the operations, never falling.
        parameters: (n + 1,) float64, shares of the parameters, never falling.
    """

    flops: numpy.ndarray
    parameters: numpy.ndarray


def cost_curve(
    space: EdgeSpace,
    costs: Sequence[BlockCost],
    reachable: numpy.ndarray,
    positions: numpy.ndarray,
    n: int,
    total: tuple[float, float],
) -> CostCurve:
    """Compute the cost of every prefix of an order of edges.

    Args:
        space: the edge space.
        costs: the cost of each decoder block.
        reachable: (F,) bool, the edges of the full trace.
        positions: (F,) integers, the place of each edge in the order: 0 to n - 1; n for edges that
            are not in it.
        n: number of edges in the order.
        total: operations and parameters of the full trace (`full_cost`).

    Returns:
        Shares of the full trace's cost, for 0 to n edges.
    """
    items = _tallied(Onsets(n), space, costs, reachable, positions[None])
    shares = (
        numpy.concatenate([[0.0], numpy.cumsum(each[:n]) / whole])
        for each, whole in zip((items.flops, items.parameters), total, strict=True)
    )
    return CostCurve(*shares)


def full_cost(space: EdgeSpace, costs: Sequence[BlockCost], reachable: numpy.ndarray) -> tuple[float, float]:
    """Count the operations and parameters of the full trace.

    Args:
        space: the edge space.
        costs: the cost of each decoder block.
        reachable: (F,) bool, the edges of the full trace.
    """
    flops, parameters = costs_of_sets(space, costs, reachable, reachable[None])
    return float(flops[0]), float(parameters[0])


def costs_of_sets(
    space: EdgeSpace, costs: Sequence[BlockCost], reachable: numpy.ndarray, masks: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Count the operations and parameters of K sets of edges, (K,) float64 each.

    Args:
        space: the edge space.
        costs: the cost of each decoder block.
        reachable: (F,) bool, the edges of the full trace.
        masks: (K, F) bool, the sets.
    """
    tally = _tallied(Sets(len(masks)), space, costs, reachable, masks)
    return tally.flops, tally.parameters


def _tallied(
    kind: Sets | Onsets,
    space: EdgeSpace,
    costs: Sequence[BlockCost],
    reachable: numpy.ndarray,
    edges: numpy.ndarray,
) -> Tally:
    """Count stored edges (K, F), as booleans or as onsets."""
    views, everything = space.views(edges), slice(0, space.n_tokens)
    tally = Tally(kind, space, costs, views)
    for level, (on, exists) in enumerate(zip(views, space.views(reachable), strict=True)):
        if on.attention is not None:
            # what exists is the same for every head
            tally.add(level, Tile(everything, everything), on.attention, exists.attention[0])
    tally.close()
    return tally


class Sets:
    """How `Tally` combines and counts the edges of K sets, each an array of booleans.

    `Onsets` does the same for the positions of edges in an order. Arrays are of numpy or of torch.

    Args:
        n: number of sets, K.
    """

    counts_edges: ClassVar[bool] = True

    def __init__(self, n: int) -> None:
        self.n = n

    def some(self, on: Any, axis: int) -> Any:
        """Whether any edge along an axis is on."""
        return on.any(axis=axis)

    def either(self, one: Any, other: Any) -> Any:
        """Whether at least one of two edges is on, elementwise."""
        return one | other

    def nothing(self, like: Any) -> Any:
        """Make an array of the same shape in which nothing is on."""
        return like & False

    def count(self, on: Any) -> numpy.ndarray:
        """Count the entries that are on, (N,) float64."""
        if isinstance(on, Tensor):
            return _numbers(on.reshape(len(on), -1).sum(dim=1))
        # set by set: numpy counts booleans without an axis many times faster
        return numpy.array([numpy.count_nonzero(each) for each in on], dtype=numpy.float64)

    def cost_of_units(self, on: Any, costs: numpy.ndarray) -> numpy.ndarray:
        """Add up the costs (M,) of the units (K, M, T) that are on, (N,) float64."""
        return _numbers(on.sum(axis=2)) @ costs

    def met(self, queries: Any, allowed: Any, live: Any) -> tuple[numpy.ndarray, Any]:
        """Count the pairs of a query token and a key that it may attend to.

        Args:
            queries: (K, H, t), which targets are query tokens.
            allowed: (t, s) bool, which sources the attention mask allows.
            live: (K, s), which sources have a stream with an edge on; None if all have. Other
                sources do not count.

        Returns:
            Number of pairs, (N,) float64.
            Keys that are in any pair, (K, H, s).
        """
        pairs = (queries * ONE) @ (allowed * ONE)  # how many query tokens meet each key
        pairs = pairs if live is None else pairs * live[:, None]
        # summed over heads first, because large sums of float32 are not exact
        return _numbers(pairs.sum(axis=1)).sum(axis=1), pairs > 0


class Onsets:
    """How `Tally` combines and counts positions of edges in an order, arrays (1, ...) of integers.

    It has the methods of `Sets`. An operation that needs any of several edges starts with the first
    of them, the minimum of their positions. One that needs all of several starts with the last, the
    maximum.

    Args:
        n: number of edges in the order. Operations that never run have position n.
    """

    # the n-th trace has n edges
    counts_edges: ClassVar[bool] = False

    def __init__(self, n: int) -> None:
        self._last = n
        self.n = n + 1

    def some(self, on: Any, axis: int) -> Any:
        return on.min(axis=axis)

    def either(self, one: Any, other: Any) -> Any:
        return numpy.minimum(one, other)

    def nothing(self, like: Any) -> Any:
        return numpy.full_like(like, self._last)

    def count(self, on: Any) -> numpy.ndarray:
        return numpy.bincount(on.ravel(), minlength=self.n)

    def cost_of_units(self, on: Any, costs: numpy.ndarray) -> numpy.ndarray:
        each = (cost * self.count(on[:, costs == cost]) for cost in numpy.unique(costs))
        return sum(each, numpy.zeros(self.n))

    def met(self, queries: Any, allowed: Any, live: Any) -> tuple[numpy.ndarray, Any]:
        started = (
            queries[..., None] if live is None else numpy.maximum(queries[..., None], live[:, None, None])
        )
        pairs = numpy.where(allowed, started, self._last)  # (1, H, t, s)
        return self.count(pairs), pairs.min(axis=2)


class Tally:
    """Counter of edges and of their cost, fed tile by tile in the order of levels.

    Args:
        kind: how entries of the arrays are combined and counted: `Sets` or `Onsets`.
        space: the edge space.
        costs: the cost of each decoder block.
        nodes: for each level, the residual edges (K, T) and the MLP edges (K, M, T).

    Attributes:
        n_edges: (N,) float64, number of edges, counted for sets only. This and the next two are
            complete once the tally is closed.
        flops: operations, (N,) float64.
        parameters: (N,) float64.
    """

    def __init__(
        self, kind: Sets | Onsets, space: EdgeSpace, costs: Sequence[BlockCost], nodes: Sequence[PerLevel]
    ) -> None:
        self._kind, self._space, self._costs, self._nodes = kind, space, costs, nodes
        self.n_edges, self.flops, self.parameters = (numpy.zeros(kind.n) for _ in range(3))
        # (K, T) of each level: whether any edge leads into a token's stream. Attention edges are
        # added as they come, and a level is complete before the next one reads its streams.
        self._live = [
            kind.either(on.residual, on.residual if on.mlp is None else kind.some(on.mlp, 1)) for on in nodes
        ]
        # the level that is fed, and which keys (K, H, T), values (K, H, T) and heads (K, H) of it
        # are needed; None before its first tile
        self._level = 0
        self._used: list[Any] | None = None

    def add(self, level: int, tile: Tile, on: Any, allowed: Any) -> None:
        """Count the attention edges of a tile.

        Args:
            on: (K, H, t, s).
            allowed: (t, s) bool, edges that the attention mask allows.
        """
        while self._level < level:
            self._close_level()
        kind, cost = self._kind, self._costs[self._space.levels[level].layer]
        queries, read = kind.some(on, 3), kind.some(on, 2)  # (K, H, t) and (K, H, s)
        # The keys of all sources that a query token may attend to take part in its softmax, edges
        # or not, unless their stream is empty. No stream before the first level is.
        pairs, keys = kind.met(queries, allowed, self._live[level - 1][:, tile.sources] if level else None)
        n_attention, heads = kind.count(on), kind.some(queries, 2)
        if kind.counts_edges:
            self.n_edges += n_attention
        self.flops += (cost.query_flops + cost.output_flops) * kind.count(queries)
        self.flops += cost.score_flops * pairs
        self.flops += cost.mix_flops * n_attention
        live = self._live[level]
        live[:, tile.targets] = kind.either(live[:, tile.targets], kind.some(queries, 1))
        if self._used is None and keys.shape[-1] == self._space.n_tokens:
            self._used = [keys, read, heads]
            return
        if self._used is None:
            # (K, H, T), nothing
            rows = kind.nothing(kind.either(queries[:, :, :1], live[:, None]))
            self._used = [rows, kind.nothing(rows), kind.nothing(rows[:, :, 0])]
        places = (self._used[0][..., tile.sources], self._used[1][..., tile.sources], self._used[2])
        for place, needed in zip(places, (keys, read, heads), strict=True):
            place[...] = kind.either(place, needed)

    def _close_level(self) -> None:
        """Add what is counted once in the level: keys, values, heads, and the MLP."""
        kind, on = self._kind, self._nodes[self._level]
        cost = self._costs[self._space.levels[self._level].layer]
        if kind.counts_edges:
            self.n_edges += kind.count(on.residual)
            self.n_edges += 0 if on.mlp is None else kind.count(on.mlp)
        if self._used is not None:
            # those of a key-value head, (K, G, T), (K, G, T) and (K, G)
            keys, values, heads = (
                kind.some(used.reshape(len(used), cost.n_groups, -1, *used.shape[2:]), 2)
                for used in self._used
            )
            self.flops += cost.key_flops * kind.count(keys)
            self.flops += cost.value_flops * kind.count(values)
            self.parameters += (cost.query_parameters + cost.output_parameters) * kind.count(self._used[2])
            self.parameters += (cost.key_parameters + cost.value_parameters) * kind.count(heads)
            self._used = None
        if on.mlp is not None:
            # tokens (K, T) and units (K, M) of which any is on
            runs, units = kind.some(on.mlp, 1), kind.some(on.mlp, 2)
            self.flops += kind.cost_of_units(on.mlp, cost.mlp_flops) + cost.router_flops * kind.count(runs)
            self.parameters += kind.cost_of_units(units[..., None], cost.mlp_parameters)
            self.parameters += cost.router_parameters * kind.count(kind.some(runs, 1))
        self._level += 1

    def close(self) -> None:
        """Finish the count after the last tile."""
        while self._level < len(self._nodes):
            self._close_level()


def countable(on: Tensor) -> Any:
    """Return an array for counting. A tensor on the CPU becomes a numpy array, which is faster."""
    return on.numpy() if on.device.type == "cpu" else on


def _numbers(counts: Any) -> numpy.ndarray:
    """Return counts, of numpy or of torch, as a float64 array of numpy."""
    return numpy.asarray(counts.cpu() if isinstance(counts, Tensor) else counts, dtype=numpy.float64)
