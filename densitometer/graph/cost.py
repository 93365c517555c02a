"""What a trace costs in floating-point operations and in parameters, besides edges.

One attention edge is one multiply-add of a head's value. One MLP edge is a whole MLP, or one unit
of it. So the share of edges says little about the work. Counted are the operations that must run
for a trace when attention is recomputed. A token is a *query token* of a head where an edge of that
head leads into it.

    MLP              for each token and unit whose MLP edge is on: whole MLP, expert or neuron
    router           for each token that has any unit of a mixture of experts on
    query, output    for each head and query token of it
    key              for each key-value head and token that such a query token may attend to, where
                     any edge leads into the token's stream
    value            for each key-value head and token from which an edge of that head leads
    scores           for each pair of such a query token and key
    mix              for each attention edge

Counted parameters are those of the heads, and of the units of MLPs, that any edge of the trace
uses. Embeddings and output head always run and are not edges, so neither count includes them. At
granularity "expert", neither do experts that the text sends no token to: they have no edges. The
cost of single products is in `models/counting.py`.

Nested traces. Every item of this list has an *onset*: the position, in the order in which edges are
added, from which on the item must run. Summing items by onset gives the cost of all nested traces
at once (`cost_curve`); `costs_of_sets` counts sets of edges one by one.

What this file does not do: it times nothing, and it counts no memory.

Axes: F flat edge axis, K sets of edges, H query heads, T target tokens, S source tokens, M units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ..models.counting import BlockCost
from .forward_pass import EdgeSpace


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
    shares = (
        numpy.concatenate([[0.0], numpy.cumsum(items[:n]) / whole])
        for items, whole in zip(_items(space, costs, reachable, positions, n), total, strict=True)
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
    n_sets = len(masks)
    flops, parameters = numpy.zeros(n_sets), numpy.zeros(n_sets)
    # (K, T): whether any edge leads into a token's stream; taken as true before the first level
    live: numpy.ndarray = numpy.ones((n_sets, space.n_tokens), dtype=bool)
    for level, on, exists in zip(space.levels, space.views(masks), space.views(reachable), strict=True):
        cost = costs[level.layer]
        onward: numpy.ndarray = on.residual.copy()  # `live` of the next level
        if on.attention is not None:
            group = on.attention.shape[1] // cost.n_groups  # query heads per key-value head
            queries = on.attention.any(axis=3)  # (K, H, T): query tokens of each head
            read = on.attention.any(axis=2)  # (K, H, S): tokens whose values a head reads
            allowed = exists.attention.astype(numpy.float32)  # (H, T, S)
            # How many query tokens use each key. The keys of all sources that a query token may
            # attend to take part in its softmax, edges or not, unless their stream is empty.
            keys = numpy.matmul(queries.transpose(1, 0, 2).astype(numpy.float32), allowed)
            keys = keys.transpose(1, 0, 2) * live[:, None]  # (K, H, S)
            flops += (cost.query_flops + cost.output_flops) * queries.sum(axis=(1, 2))
            flops += cost.score_flops * keys.sum(axis=(1, 2), dtype=numpy.float64)
            flops += cost.mix_flops * on.attention.sum(axis=(1, 2, 3))
            flops += cost.key_flops * _any_of_group(keys > 0, group).sum(axis=(1, 2))
            flops += cost.value_flops * _any_of_group(read, group).sum(axis=(1, 2))
            heads = queries.any(axis=2)  # (K, H)
            parameters += (cost.query_parameters + cost.output_parameters) * heads.sum(axis=1)
            parameters += (cost.key_parameters + cost.value_parameters) * _any_of_group(heads, group).sum(
                axis=1
            )
            onward = numpy.logical_or(onward, queries.any(axis=1))
        if on.mlp is not None:
            runs = on.mlp.any(axis=1)  # (K, T)
            flops += on.mlp.sum(axis=2) @ cost.mlp_flops + cost.router_flops * runs.sum(axis=1)
            parameters += on.mlp.any(axis=2) @ cost.mlp_parameters + cost.router_parameters * runs.any(axis=1)
            onward = numpy.logical_or(onward, runs)
        live = onward
    return flops, parameters


def _any_of_group(on: numpy.ndarray, group: int) -> numpy.ndarray:
    """Whether any query head of a key-value head is on: (K, H, ...) to (K, G, ...)."""
    grouped = on.reshape(len(on), -1, group, *on.shape[2:])
    some: numpy.ndarray = numpy.logical_or.reduce(grouped, axis=2)
    return some


def _items(
    space: EdgeSpace,
    costs: Sequence[BlockCost],
    reachable: numpy.ndarray,
    positions: numpy.ndarray,
    n: int,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Sum operations and parameters by onset, (n + 1,) each. Entry n holds what never runs.

    An item that needs any of several edges starts with the first of them, the minimum of their
    positions. An item that needs all of several starts with the last, the maximum.
    """
    flops, parameters = numpy.zeros(n + 1), numpy.zeros(n + 1)

    def add(to: numpy.ndarray, onset: numpy.ndarray, cost: float) -> None:
        """Add items of one cost each at their onsets. Onset -1, from the start on, counts as 0."""
        to += cost * numpy.bincount(onset.ravel().clip(0), minlength=n + 1)[: n + 1]

    def add_units(to: numpy.ndarray, onset: numpy.ndarray, costs: numpy.ndarray, shared: float) -> None:
        """Add the units of an MLP at their onsets (M, ...), and what they share at the first."""
        for cost in numpy.unique(costs):
            add(to, onset[costs == cost], cost)
        add(to, onset.min(axis=0), shared)

    # (T,): the position at which a token's stream gets its first edge; -1 for the first level
    live = numpy.full(space.n_tokens, -1, dtype=positions.dtype)
    for level, at, exists in zip(space.levels, space.views(positions), space.views(reachable), strict=True):
        cost = costs[level.layer]
        onward = at.residual.copy()
        if at.attention is not None:
            group = at.attention.shape[0] // cost.n_groups
            active = at.attention.min(axis=2)  # (H, T): when a token becomes a head's query token
            # (H, T, S): when a query token and a key come together
            started = numpy.maximum(active[:, :, None], live)
            pairs = numpy.where(exists.attention, started, n)
            add(flops, active, cost.query_flops + cost.output_flops)
            add(flops, pairs, cost.score_flops)
            add(flops, at.attention, cost.mix_flops)
            add(flops, _by_group(pairs.min(axis=1), group), cost.key_flops)
            add(flops, _by_group(at.attention.min(axis=1), group), cost.value_flops)
            head = active.min(axis=1)  # (H,)
            add(parameters, head, cost.query_parameters + cost.output_parameters)
            add(parameters, _by_group(head, group), cost.key_parameters + cost.value_parameters)
            onward = numpy.minimum(onward, active.min(axis=0))
        if at.mlp is not None:
            add_units(flops, at.mlp, cost.mlp_flops, cost.router_flops)
            add_units(parameters, at.mlp.min(axis=1), cost.mlp_parameters, cost.router_parameters)
            onward = numpy.minimum(onward, at.mlp.min(axis=0))
        live = onward
    return flops, parameters


def _by_group(onsets: numpy.ndarray, group: int) -> numpy.ndarray:
    """Earliest onset among the query heads that share a key-value head: (H, ...) to (G, ...)."""
    return onsets.reshape(-1, group, *onsets.shape[1:]).min(axis=1)
