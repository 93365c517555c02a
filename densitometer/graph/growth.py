"""Subgraphs of one forward pass, grown from the output: pure array code on the edge space.

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

What this file does not do: it computes no importance, and it runs no model.

Axes: F flat edge axis, E edges that can reach the output, H heads, M units of an MLP, T target
tokens, S source tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from .forward_pass import EdgeSpace

WINDOWS = (2, 4, 8)  # tokens of the attention-window baselines


def _within(width: int) -> Callable[[Any, Any, int], Any]:
    """Rule of an attention window: on where the source is one of the latest `width` tokens."""
    return lambda target, source, n_tokens: target - source < width


# Rules of the subgraphs that need no importance: which attention edges are on, by target, source
# and number of tokens. None stands for the output token's own edges, without any attention.
NATURAL: dict[str, Callable[[Any, Any, int], Any] | None] = {
    "residual_chain": None,
    "residual_mlp_chain": None,
    "last_attention": lambda target, source, n_tokens: target == n_tokens - 1,
    **{f"window_{width}": _within(width) for width in WINDOWS},
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


def bottleneck_keys(space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray) -> numpy.ndarray:
    """Key of each edge, (F,) float32: the smallest importance on its best path to the output.

    The best path is the one whose smallest importance is largest. The key is -inf where no path
    leads to the output.

    Args:
        importance: (F,) float.
        reachable: (F,) bool, the edges that can reach the output.
    """
    values = numpy.where(reachable, importance, -numpy.inf).astype(numpy.float32)  # (F,)
    keys = numpy.empty_like(values)
    # B(n) of the nodes of the current level, from the last level to the first, (T,)
    bottleneck = numpy.full(space.n_tokens, -numpy.inf, dtype=numpy.float32)
    bottleneck[-1] = numpy.inf
    for value, key in zip(reversed(space.views(values)), reversed(space.views(keys)), strict=True):
        numpy.minimum(value.residual, bottleneck, out=key.residual)
        # B of the level before: the best key of the edges that leave each node
        onward = key.residual.copy()
        if key.attention is not None:
            numpy.minimum(value.attention, bottleneck[:, None], out=key.attention)
            numpy.maximum(onward, key.attention.max(axis=(0, 1)), out=onward)
        if key.mlp is not None:
            numpy.minimum(value.mlp, bottleneck, out=key.mlp)
            numpy.maximum(onward, key.mlp.max(axis=0), out=onward)
        bottleneck = onward
    return keys


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


def natural_masks(space: EdgeSpace, reachable: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """Subgraphs that need no importance, which a trace has to beat.

    residual_chain      the output token's own residual edges
    residual_mlp_chain  these, and its MLP edges
    last_attention      all residual and MLP edges, and attention into the output token only
    window_N            all residual and MLP edges, and attention to the N latest tokens, the token
                        itself among them

    Returns:
        The edges of each subgraph that can reach the output, (F,) bool, by name.
    """
    t = space.n_tokens
    tokens = numpy.arange(t)
    last = tokens == t - 1
    masks = {}
    for name, rule in NATURAL.items():
        on = None if rule is None else rule(tokens[:, None], tokens, t)  # (T, S)
        masks[name] = numpy.zeros(space.size, dtype=bool)
        for place in space.views(masks[name]):
            place.residual[:] = last if on is None else True
            if place.attention is not None and on is not None:
                place.attention[...] = on
            if place.mlp is not None and name != "residual_chain":
                place.mlp[:] = last if on is None else True
        masks[name] &= reachable
    return masks


def residual_mask(space: EdgeSpace, reachable: numpy.ndarray) -> numpy.ndarray:
    """Choose all residual edges that can reach the output, (F,) bool."""
    mask = numpy.zeros(space.size, dtype=bool)
    for view, exists in zip(space.views(mask), space.views(reachable), strict=True):
        view.residual[:] = exists.residual
    return mask
