"""Grow subgraphs of one forward pass from the output. This is array code without a model.

Best first (the s-Trace of arXiv 2605.27033). A max-heap holds the incoming edges of every reached
node; the output is reached first. The most important edge is popped and added, and its source is
reached. Ties go to the lower edge index. The traces of all sizes are nested: they are the prefixes
of one order. That order is found without a heap over edges:

    1. Rank all edges by (importance, index). Ranks are unique; rank 0 is the best.
    2. A node is reached by its best edge into any reached target. One step per *node*, not per
       edge, takes the unreached node with the best such edge. Let c_j be the rank of the edge by
       which the j-th node is reached.
    3. An edge of rank r whose target was reached in step k is popped before the first step j > k
       whose c_j is worse than r. Between two steps nothing new is reached, so edges are popped by
       rank.

By threshold (arXiv 2601.22795). Keep the edges with importance > tau, and of these the edges from
which the output is reached through kept edges. One sweep over the levels serves all thresholds:

    B(n) = the largest, over paths from node n to the output, of the smallest importance on the path
    key(e) = min(importance(e), B(target of e))
    trace of tau = {e: key(e) > tau}

Sorted keys equal the running minimum of the importances in best-first order.

By nucleus. Keep, for each reached node, the fewest incoming edges whose shares of the node's total
importance sum to at least p.

What this file does not do: it does not compute importances or run a model.

Axes: F flat edge axis, E edges that can reach the output, H heads, M units of an MLP, T target
tokens, S source tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ..models.blocks import Tile
from .edge_source import EdgeSource, StoredEdges, per_target
from .forward_pass import EdgeSpace, PerLevel

# Bottleneck of a node from which the output cannot be reached, and key of an edge that does not
# exist. Keys of edges are at least 0.
NOWHERE = -math.inf


class Natural(NamedTuple):
    """Rule for a subgraph that needs no importance. A trace is compared with it as a baseline.

    Args:
        everywhere: whether the residual and MLP edges of all tokens are on, or those of the output
            token alone.
        mlps: whether MLP edges are on, besides residual ones.
        attention: function of target, source and number of tokens that returns which attention
            edges are on. Its arguments are arrays of numpy or of torch. If it allows a target any
            source at all, it also allows the target itself.
    """

    everywhere: bool
    mlps: bool
    attention: Callable[[Any, Any, int], Any]

    def nodes(self, tokens: Any) -> Any:
        """Return which tokens (T,) have residual edges, bool."""
        return (tokens == len(tokens) - 1) | self.everywhere


def _window(width: int) -> Natural:
    """Subgraph with attention to the `width` latest tokens, the token itself among them."""
    return Natural(True, True, lambda target, source, n_tokens: target - source < width)


# The output token's own residual edges, these with its MLP edges, and all residual and MLP edges
# with attention into the output token only, or within a window.
NATURAL: dict[str, Natural] = {
    "residual_chain": Natural(False, False, lambda target, source, n_tokens: target - source > n_tokens),
    "residual_mlp_chain": Natural(False, True, lambda target, source, n_tokens: target - source > n_tokens),
    "last_attention": Natural(
        True, True, lambda target, source, n_tokens: target + 0 * source == n_tokens - 1
    ),
    **{f"window_{width}": _window(width) for width in (2, 4, 8)},
}


def rank_edges(importance: numpy.ndarray, reachable: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Rank the edges, most important first, ties by index.

    Args:
        importance: (F,) float.
        reachable: (F,) bool, the edges that can reach the output.

    Returns:
        The edges by rank, (E,) int64.
        The rank of each edge, (F,) int32; F for edges that cannot reach the output.
    """
    index = numpy.flatnonzero(reachable)
    by_rank = index[_falling(importance[index])]
    ranks = numpy.full(importance.size, importance.size, dtype=numpy.int32)
    ranks[by_rank] = numpy.arange(by_rank.size, dtype=numpy.int32)
    return by_rank, ranks


def _falling(importance: numpy.ndarray) -> numpy.ndarray:
    """Sort non-negative numbers, largest first, and return their indices. The sort is stable.

    The bits of a non-negative float32, read as an integer, rise with the number. So such numbers
    are sorted by the lower half of their bits, then by the upper half: numpy sorts 16-bit integers
    by radix, four times as fast as floats.
    """
    # the values of `search.py`, which are finer than float32
    if importance.dtype != numpy.float32:
        return (-importance).argsort(kind="stable")
    # adding 0 turns -0.0 into 0.0; inverted bits fall with the number
    bits = ~(importance + numpy.float32(0)).view(numpy.uint32)
    order = bits.astype(numpy.uint16).argsort(kind="stable")  # by the lower half
    return order[(bits >> 16).astype(numpy.uint16)[order].argsort(kind="stable")]


def best_first_order(space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray) -> numpy.ndarray:
    """Order in which best-first growth from the output adds the edges.

    Args:
        importance: (F,) float, non-negative.
        reachable: (F,) bool, the edges that can reach the output.

    Returns:
        Indices on the flat axis, (E,) int64, first added first.
    """
    by_rank, ranks = rank_edges(importance, reachable)
    reached_at, connecting = _reach_nodes(space, ranks)
    steps = _pop_steps(_steps_of_targets(space, reached_at)[by_rank], connecting)
    # edges that are popped in the same step stay in the order of their ranks
    return by_rank[steps.argsort(kind="stable")]


def _reach_nodes(space: EdgeSpace, ranks: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Find when best-first growth reaches each node (step 2 of this file).

    This is Prim's algorithm from the output, on the best edge between every two nodes.

    Args:
        ranks: (F,) int, the rank of each edge; F for edges that cannot reach the output.

    Returns:
        The step at which each node is reached, (levels, T) int64.
        The rank c_j of the edge by which the j-th node is reached, (steps,) int64.
    """
    t, never = space.n_tokens, space.size
    views = space.views(ranks)
    # (levels, T, S): the best rank of the edges from a source into a target, of any kind and head
    best_edge = numpy.full((len(views), t, t), never, dtype=numpy.int32)
    diagonal = numpy.arange(t)  # residual and MLP edges stay at their token
    for edge, view in zip(best_edge, views, strict=True):  # edge: (T, S)
        if view.attention is not None:
            view.attention.min(axis=0, out=edge)
        edge[diagonal, diagonal] = numpy.minimum(edge[diagonal, diagonal], view.residual)
        if view.mlp is not None:
            edge[diagonal, diagonal] = numpy.minimum(edge[diagonal, diagonal], view.mlp.min(axis=0))

    # A node is numbered level * T + token. The source of an edge into a level is a node of the
    # level before. The streams before the first level have no number: nothing beyond them is to be
    # reached.
    n_nodes = len(views) * t
    # the best rank of the edges from each unreached node into a reached one
    best = numpy.full(n_nodes, never, dtype=numpy.int32)
    open_ = numpy.ones(n_nodes, dtype=bool)  # not reached yet
    reached_at = numpy.full(n_nodes, n_nodes, dtype=numpy.int64)
    connecting = numpy.full(n_nodes, never, dtype=numpy.int64)  # c_j
    node = n_nodes - 1  # the output: the last token in the last level
    for step in range(n_nodes):
        reached_at[node], open_[node], best[node] = step, False, never
        level, token = divmod(node, t)
        # the new node's incoming edges may be better than those that its sources had
        if level > 0:
            sources = slice((level - 1) * t, level * t)
            numpy.minimum(best[sources], best_edge[level, token], out=best[sources], where=open_[sources])
        node = int(best.argmin())
        # no edge leads from an unreached node to a reached one
        if best[node] == never:
            connecting = connecting[: step + 1]
            break
        if step + 1 < n_nodes:
            connecting[step + 1] = best[node]
    # the output is reached without an edge, before any is popped
    connecting[0] = -1
    return reached_at.reshape(-1, t), connecting


def _steps_of_targets(space: EdgeSpace, reached_at: numpy.ndarray) -> numpy.ndarray:
    """Step at which each edge's target is reached, (F,).

    The dtype is the smallest that suffices: numpy sorts 16-bit integers fast, by radix.

    Args:
        reached_at: (levels, T), the step at which each node is reached.
    """
    by_edge = numpy.empty(space.size, dtype=numpy.min_scalar_type(reached_at.size))
    for steps, place in zip(reached_at, space.views(by_edge), strict=True):
        place.residual[:] = steps
        if place.attention is not None:
            place.attention[...] = steps[:, None]
        if place.mlp is not None:
            place.mlp[...] = steps
    return by_edge


def _pop_steps(reached: numpy.ndarray, connecting: numpy.ndarray) -> numpy.ndarray:
    """Step before which each edge is popped, (E,) by rank (step 3 of this file).

    It is the first step, after the edge's target is reached, whose connecting edge is worse, or is
    the edge itself.

    Args:
        reached: (E,), for each rank the step at which the target of its edge is reached.
        connecting: (steps,), the ranks c_j.
    """
    n_steps = connecting.size
    by_target = reached.argsort(kind="stable")  # ranks by step, and in their order within a step
    # the end of each step's ranks in `by_target`
    ends = numpy.bincount(reached, minlength=n_steps)[:n_steps].cumsum()
    popped = numpy.full(reached.size, n_steps, dtype=reached.dtype)
    # k runs from the last step to the first. A stack holds the steps j > k whose c_j is above all c
    # between k and j: only these can be the first that is worse than a rank. It lies in
    # worse[top:] (the c_j, rising) and where[top:] (their j), with n_steps at its end for "none".
    worse = numpy.empty(n_steps, dtype=numpy.int64)
    where = numpy.empty(n_steps + 1, dtype=reached.dtype)
    where[top := n_steps] = n_steps
    for k in range(n_steps - 1, -1, -1):
        # ranks of the edges into the k-th node
        edges = by_target[ends[k - 1] if k else 0 : ends[k]]
        popped[edges] = where[top:][worse[top:].searchsorted(edges)]
        # c_k hides every step on the stack whose c_j is not above it
        while top < n_steps and worse[top] <= connecting[k]:
            top += 1
        top -= 1
        worse[top], where[top] = connecting[k], k
    return popped


class KeyTile(NamedTuple):
    """Keys of the edges into some targets of one level, with the numbers they are computed from.

    Args:
        level: index of the level.
        tile: which edges these are.
        importance: the importances, as `EdgeSource.importance` returns them.
        keys: the keys, in the same shapes; NOWHERE where there is no edge from which the output can
            be reached.
        bottleneck: (t,), B of the targets.
    """

    level: int
    tile: Tile
    importance: PerLevel
    keys: PerLevel
    bottleneck: Tensor


def level_keys(source: EdgeSource, level: int, bottleneck: Tensor) -> Iterator[KeyTile]:
    """Compute the keys of the edges into one level, tile by tile.

    Tiles without a target from which the output can be reached are left out.

    Args:
        bottleneck: (T,), B of the level's nodes.
    """
    for tile in source.tiles(level):
        least = bottleneck[tile.targets]
        if bool((least > NOWHERE).any()):
            importance = source.importance(level, tile)
            keys = [v if v is None else v.minimum(per_target(least, v)) for v in importance]
            for values, there in zip(keys, source.existing(level, tile) or (), strict=False):
                if values is not None:
                    values.masked_fill_(~there, NOWHERE)
            yield KeyTile(level, tile, importance, PerLevel(*keys), least)


def sweep(source: EdgeSource, device: torch.device) -> Iterator[KeyTile]:
    """Compute the keys of all edges that can reach the output, from the last level to the first.

    All edges out of a level's nodes lead into the next level. So once the next level is done, the
    bottlenecks of these nodes are known.
    """
    # (T,), B of the targets of the level. The last token's last stream is the output itself.
    bottleneck = torch.full((source.space.n_tokens,), NOWHERE, device=device)
    bottleneck[-1] = math.inf
    for level in reversed(range(len(source.space.levels))):
        # (T,), B of the sources: the largest key of an edge out of each
        onward = torch.full_like(bottleneck, NOWHERE)
        for swept in level_keys(source, level, bottleneck):
            tile, keys = swept.tile, swept.keys
            into = keys.residual if keys.mlp is None else keys.residual.maximum(keys.mlp.amax(dim=0))
            onward[tile.targets] = onward[tile.targets].maximum(into)
            if keys.attention is not None:
                out = keys.attention.amax(dim=(0, 1))  # (s,)
                onward[tile.sources] = onward[tile.sources].maximum(out)
            yield swept
        bottleneck = onward


def bottleneck_keys(space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray) -> numpy.ndarray:
    """Key of each edge, (F,) float32: the smallest importance on its best path to the output.

    The best path is the one whose smallest importance is largest. The key is -inf where no path
    leads to the output.

    Args:
        importance: (F,) float.
        reachable: (F,) bool, the edges that can reach the output.
    """
    flat = numpy.empty(space.size, dtype=numpy.float32)
    views = space.views(flat)
    for swept in sweep(StoredEdges(space, importance, reachable), torch.device("cpu")):
        for place, keys in zip(views[swept.level], swept.keys, strict=True):
            if place is not None:
                place[...] = keys.numpy()
    return flat


def nucleus_mask(
    space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray, share: float
) -> numpy.ndarray:
    """Choose the fewest incoming edges of each reached node that hold a share of its importance.

    Nodes are reached from the output back, through the edges that are chosen.

    Args:
        importance: (F,) float.
        reachable: (F,) bool, the edges that can reach the output.
        share: least sum of the chosen edges' importance, as a share of the node's total, 0 to 1.

    Returns:
        The edges that are chosen, (F,) bool.
    """
    t = space.n_tokens
    values = numpy.where(reachable, importance, 0.0)  # (F,)
    mask = numpy.zeros(space.size, dtype=bool)
    # tokens whose node in the current level is reached, from the last level to the first, (T,)
    reached = numpy.zeros(t, dtype=bool)
    reached[-1] = True
    levels = zip(
        reversed(space.views(values)),
        reversed(space.views(reachable)),
        reversed(space.views(mask)),
        strict=True,
    )
    for value, exists, place in levels:
        # all edges into a node in one row: residual 1, attention H S, MLP M
        parts = [(value.residual[:, None], exists.residual[:, None])]
        if value.attention is not None:
            parts.append(
                tuple(a.transpose(1, 0, 2).reshape(t, -1) for a in (value.attention, exists.attention))
            )
        if value.mlp is not None:
            parts.append((value.mlp.T, exists.mlp.T))
        # (T, 1 + H S + M)
        incoming = numpy.concatenate([p[0] for p in parts], axis=1).astype(numpy.float64)
        there = numpy.concatenate([p[1] for p in parts], axis=1)
        order = numpy.argsort(-incoming, axis=1, kind="stable")
        ordered = numpy.take_along_axis(incoming, order, axis=1)
        # an edge is needed while the more important ones before it do not hold the share
        before = numpy.cumsum(ordered, axis=1) - ordered
        needed = before < share * incoming.sum(axis=1, keepdims=True)
        keep = numpy.zeros_like(there)
        numpy.put_along_axis(keep, order, needed, axis=1)
        keep &= there & reached[:, None]
        # back from rows to residual, attention and MLP edges
        place.residual[:] = keep[:, 0]
        sources = keep[:, 0].copy()
        if place.attention is not None:
            kept = keep[:, 1 : 1 + value.attention.shape[0] * t].reshape(t, -1, t).transpose(1, 0, 2)
            place.attention[...] = kept
            sources |= kept.any(axis=(0, 1))
        if place.mlp is not None:
            kept = keep[:, -len(place.mlp) :].T
            place.mlp[:] = kept
            sources |= kept.any(axis=0)
        reached = sources
    return mask


def natural_mask(space: EdgeSpace, reachable: numpy.ndarray, name: str) -> numpy.ndarray:
    """Edges that can reach the output of a subgraph that needs no importance, (F,) bool.

    Args:
        reachable: (F,) bool, the edges that can reach the output.
        name: key of `NATURAL`.
    """
    rules, tokens = NATURAL[name], numpy.arange(space.n_tokens)
    nodes = rules.nodes(tokens)
    attention = rules.attention(tokens[:, None], tokens, space.n_tokens)  # (T, S)
    mask = numpy.zeros(space.size, dtype=bool)
    for place in space.views(mask):
        place.residual[:] = nodes
        if place.attention is not None:
            place.attention[...] = attention
        if place.mlp is not None:
            place.mlp[:] = nodes & rules.mlps
    mask &= reachable
    return mask


def residual_mask(space: EdgeSpace, reachable: numpy.ndarray) -> numpy.ndarray:
    """Choose all residual edges that can reach the output, (F,) bool."""
    mask = numpy.zeros(space.size, dtype=bool)
    for view, exists in zip(space.views(mask), space.views(reachable), strict=True):
        view.residual[:] = exists.residual
    return mask
