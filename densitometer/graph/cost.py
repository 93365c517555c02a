"""Three currencies: what a trace costs in edges, in floating-point operations, and in parameters.

One attention edge is one multiply-add of a head's value; one MLP edge is a whole block (or one unit of it). So the share of edges says
little about work. Operations counted are those that have to run for a trace under recomputed attention:

    MLP                 for each token and unit of an MLP whose edge is on: the whole MLP, an expert or a neuron
    router              for each token that has any unit of a mixture of experts on
    query, output       for each head and token into which an edge of that head leads
    key                 for each key-value head and token that such a target may attend to and whose stream is not empty
    value               for each key-value head and token from which an edge of that head leads
    scores              for each pair of such a target and key
    mix                 for each attention edge

Parameters counted are those of the heads, and of the units of MLPs, that any edge of the trace uses. Embeddings and
output head always run and are not edges: they are in neither count. Nor are, at the grain of experts, the parameters of
those that the text sends no token to: they have no edges. Rules for single products: `models/counting.py`.

Every item has an *onset*: the position, in an order in which edges are added, from which on it has to run. Summing
items by onset gives the cost of every nested trace at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ..models.counting import BlockCost
from .forward_pass import EdgeSpace


@dataclass(frozen=True)
class CostCurve:
    """Cost of the nested traces of 0, 1, ... edges, as shares of the full trace's.

    Args:
        flops, parameters: (n + 1,) float64, never falling.
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
    """Cost of every prefix of an order of edges.

    Args:
        positions: (F,) integers, when each edge is added: 0 to n - 1; n for edges that never are.
        total: of the full trace (`full_cost`).

    Returns:
        Shares of the full trace's cost, for 0 to n edges.
    """
    shares = (
        numpy.concatenate([[0.0], numpy.cumsum(items[:n]) / whole])
        for items, whole in zip(_items(space, costs, reachable, positions, n), total, strict=True)
    )
    return CostCurve(*shares)


def full_cost(space: EdgeSpace, costs: Sequence[BlockCost], reachable: numpy.ndarray) -> tuple[float, float]:
    """Operations and parameters of the full trace."""
    flops, parameters = costs_of_sets(space, costs, reachable, reachable[None])
    return float(flops[0]), float(parameters[0])


def costs_of_sets(
    space: EdgeSpace, costs: Sequence[BlockCost], reachable: numpy.ndarray, masks: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Operations and parameters of K sets of edges, (K,) float64 each.

    Args:
        masks: (K, F) bool.
    """
    n_sets = len(masks)
    flops, parameters = numpy.zeros(n_sets), numpy.zeros(n_sets)
    live: numpy.ndarray = numpy.ones(
        (n_sets, space.n_tokens), dtype=bool
    )  # whether a stream into the level is not empty
    for level, on, exists in zip(space.levels, space.views(masks), space.views(reachable), strict=True):
        cost = costs[level.layer]
        onward: numpy.ndarray = on.residual.copy()
        if on.attention is not None:
            group = on.attention.shape[1] // cost.n_groups
            asks = on.attention.any(axis=3)  # (K, H, T): heads that a token asks
            read = on.attention.any(axis=2)  # (K, H, S): tokens that a head reads values of
            allowed = exists.attention.astype(numpy.float32)  # (H, T, S)
            # sources with a stream, of the rows of attention that are computed: their keys take part in the softmax
            keys = numpy.matmul(asks.transpose(1, 0, 2).astype(numpy.float32), allowed)  # (H, K, S)
            keys = keys.transpose(1, 0, 2) * live[:, None]  # (K, H, S)
            flops += (cost.query_flops + cost.output_flops) * asks.sum(axis=(1, 2))
            flops += cost.score_flops * keys.sum(axis=(1, 2), dtype=numpy.float64)
            flops += cost.mix_flops * on.attention.sum(axis=(1, 2, 3))
            flops += cost.key_flops * _any_of_group(keys > 0, group).sum(axis=(1, 2))
            flops += cost.value_flops * _any_of_group(read, group).sum(axis=(1, 2))
            heads = asks.any(axis=2)  # (K, H)
            parameters += (cost.query_parameters + cost.output_parameters) * heads.sum(axis=1)
            parameters += (cost.key_parameters + cost.value_parameters) * _any_of_group(heads, group).sum(
                axis=1
            )
            onward = numpy.logical_or(onward, asks.any(axis=1))
        if on.mlp is not None:
            runs = on.mlp.any(axis=1)  # (K, T)
            flops += on.mlp.sum(axis=2) @ cost.mlp_flops + cost.router_flops * runs.sum(axis=1)
            parameters += on.mlp.any(axis=2) @ cost.mlp_parameters + cost.router_parameters * runs.any(axis=1)
            onward = numpy.logical_or(onward, runs)
        live = onward
    return flops, parameters


def _any_of_group(on: numpy.ndarray, group: int) -> numpy.ndarray:
    """Whether any of the query heads (second axis) that share a key-value head is on."""
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
    """Operations and parameters by onset, (n + 1,) each. Index n holds what never runs."""
    flops, parameters = numpy.zeros(n + 1), numpy.zeros(n + 1)

    def add(to: numpy.ndarray, onset: numpy.ndarray, cost: float) -> None:
        to += cost * numpy.bincount(onset.ravel().clip(0), minlength=n + 1)[: n + 1]

    def add_units(to: numpy.ndarray, onset: numpy.ndarray, costs: numpy.ndarray, shared: float) -> None:
        """Onsets (M, ...) of units of these costs (M,), and of what they share."""
        for cost in numpy.unique(costs):
            add(to, onset[costs == cost], cost)
        add(to, onset.min(axis=0), shared)

    # when a token's stream into the level stops being empty
    live = numpy.full(space.n_tokens, -1, dtype=positions.dtype)
    for level, at, exists in zip(space.levels, space.views(positions), space.views(reachable), strict=True):
        cost = costs[level.layer]
        onward = at.residual.copy()
        if at.attention is not None:
            group = at.attention.shape[0] // cost.n_groups
            active = at.attention.min(axis=2)  # (H, T)
            started = numpy.maximum(active[:, :, None], live)
            pairs = numpy.where(exists.attention, started, n)  # (H, T, S)
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
    """The earliest onset among the query heads (first axis) that share a key-value head."""
    return onsets.reshape(-1, group, *onsets.shape[1:]).min(axis=1)
