"""Nested subgraphs of one forward pass, grown from the output: pure array code on the edge space.

Best first (the s-Trace of arXiv 2605.27033): a max-heap holds the incoming edges of every reached node; the most
important is popped and added, its source is reached. Ties go to the lower edge index. The full order is found
without a heap over edges:

    1. Rank all edges by (importance, index); ranks are unique.
    2. A node is reached by its best edge from any reached target. One step per *node* (not per edge) takes the
       unreached node with the best such edge: c_j is the rank of the edge by which the j-th node is reached.
    3. An edge of rank r whose target was reached in step k is popped just before the first step j > k whose c_j is
       worse than r. Between two steps nothing new is reached, so edges are popped by rank.

By threshold (arXiv 2601.22795): keep edges with importance > tau, then those from which the output is reached through
kept edges. All thresholds at once: B(n) is the largest, over paths from n to the output, of the smallest importance on
the path; key(e) = min(importance(e), B(target of e)); the trace of tau is {e: key(e) > tau}. One sweep over the levels.
Sorted keys equal the running minimum of the best-first order.

By nucleus: per reached node the fewest incoming edges whose shares of the node's total sum to at least p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from .forward_pass import EdgeSpace

WINDOWS = (2, 4, 8)  # tokens of the attention-window baselines


def _within(width: int) -> Callable[[Any, Any, int], Any]:
    return lambda target, source, n_tokens: target - source < width


# Subgraphs that need no score: which attention edges are on, by target, source and number of tokens; None for the output
# token's own edges and no attention.
NATURAL: dict[str, Callable[[Any, Any, int], Any] | None] = {
    "residual_chain": None,
    "residual_mlp_chain": None,
    "last_attention": lambda target, source, n_tokens: target == n_tokens - 1,
    **{f"window_{width}": _within(width) for width in WINDOWS},
}


def rank_edges(importance: numpy.ndarray, reachable: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Rank the edges, most important first, ties by index.

    Returns:
        The edges by rank, (E,) int64.
        The rank of each edge, (F,) int32, F for edges that cannot reach the output.
    """
    index = numpy.flatnonzero(reachable)
    by_rank = index[_falling(importance[index])]
    ranks = numpy.full(importance.size, importance.size, dtype=numpy.int32)
    ranks[by_rank] = numpy.arange(by_rank.size, dtype=numpy.int32)
    return by_rank, ranks


def _falling(importance: numpy.ndarray) -> numpy.ndarray:
    """Stable order of non-negative numbers, largest first.

    Numbers in float32 are sorted by the two halves of their bits, which rise with the number. numpy
    sorts 16-bit numbers by their digits, four times as fast as floats.
    """
    if importance.dtype != numpy.float32:  # a search's own scores, finer than float32
        return (-importance).argsort(kind="stable")
    bits = ~(importance + numpy.float32(0)).view(numpy.uint32)  # -0.0 as 0.0
    order = bits.astype(numpy.uint16).argsort(kind="stable")
    return order[(bits >> 16).astype(numpy.uint16)[order].argsort(kind="stable")]


def best_first_order(space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray) -> numpy.ndarray:
    """The order in which best-first growth from the output adds the edges.

    Args:
        importance: (F,) float; reachable: (F,) bool.

    Returns:
        (E,) int64, indices on the flat axis, first added first.
    """
    by_rank, ranks = rank_edges(importance, reachable)
    reached_at, connecting = _reach_nodes(space, ranks)
    steps = _pop_steps(_steps_of_targets(space, reached_at)[by_rank], connecting)
    return by_rank[steps.argsort(kind="stable")]


def _reach_nodes(space: EdgeSpace, ranks: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The step at which each node is reached, (levels, T), and the rank c_j of the edge that does it, (steps,)."""
    t, never = space.n_tokens, space.size
    views = space.views(ranks)
    best_edge = numpy.full((len(views), t, t), never, dtype=numpy.int32)  # by target, source
    diagonal = numpy.arange(t)
    for edge, view in zip(best_edge, views, strict=True):
        if view.attention is not None:
            view.attention.min(axis=0, out=edge)
        edge[diagonal, diagonal] = numpy.minimum(edge[diagonal, diagonal], view.residual)
        if view.mlp is not None:
            edge[diagonal, diagonal] = numpy.minimum(edge[diagonal, diagonal], view.mlp.min(axis=0))

    n_nodes = len(views) * t
    best = numpy.full(n_nodes, never, dtype=numpy.int32)  # best edge out of an unreached node
    open_ = numpy.ones(n_nodes, dtype=bool)
    reached_at = numpy.full(n_nodes, n_nodes, dtype=numpy.int64)
    connecting = numpy.full(n_nodes, never, dtype=numpy.int64)
    node = n_nodes - 1
    for step in range(n_nodes):
        reached_at[node], open_[node], best[node] = step, False, never
        level, token = divmod(node, t)
        if level > 0:
            sources = slice((level - 1) * t, level * t)
            numpy.minimum(best[sources], best_edge[level, token], out=best[sources], where=open_[sources])
        node = int(best.argmin())
        if best[node] == never:
            connecting = connecting[: step + 1]
            break
        if step + 1 < n_nodes:
            connecting[step + 1] = best[node]
    connecting[0] = -1
    return reached_at.reshape(-1, t), connecting


def _steps_of_targets(space: EdgeSpace, reached_at: numpy.ndarray) -> numpy.ndarray:
    """Step at which each edge's target is reached, (F,).

    16 bits where they suffice, as these are sorted by their digits.
    """
    found = numpy.empty(space.size, dtype=numpy.min_scalar_type(reached_at.size))
    for steps, place in zip(reached_at, space.views(found), strict=True):
        place.residual[:] = steps
        if place.attention is not None:
            place.attention[...] = steps[:, None]
        if place.mlp is not None:
            place.mlp[...] = steps
    return found


def _pop_steps(reached: numpy.ndarray, connecting: numpy.ndarray) -> numpy.ndarray:
    """First step, after an edge's target is reached, whose connecting edge is worse, (E,) by rank.

    Args:
        reached: (E,) the step at which the target of the edge of each rank is reached.
        connecting: (steps,) c_j.
    """
    n_steps = connecting.size
    by_target = reached.argsort(kind="stable")  # within a target, by rank
    ends = numpy.bincount(reached, minlength=n_steps)[:n_steps].cumsum()
    popped = numpy.full(reached.size, n_steps, dtype=reached.dtype)
    worse = numpy.empty(
        n_steps, dtype=numpy.int64
    )  # from `top` on: each c_j, j > k, above all between k and j
    where = numpy.empty(n_steps + 1, dtype=reached.dtype)  # its j
    where[top := n_steps] = n_steps  # where nothing is worse
    for k in range(n_steps - 1, -1, -1):
        edges = by_target[ends[k - 1] if k else 0 : ends[k]]
        popped[edges] = where[top:][worse[top:].searchsorted(edges)]
        while top < n_steps and worse[top] <= connecting[k]:
            top += 1
        top -= 1
        worse[top], where[top] = connecting[k], k
    return popped


def bottleneck_keys(space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray) -> numpy.ndarray:
    """Smallest importance on each edge's best path to the output, (F,) float32.

    -inf where no path leads there.
    """
    scores = numpy.where(reachable, importance, -numpy.inf).astype(numpy.float32)
    keys = numpy.empty_like(scores)
    bottleneck = numpy.full(space.n_tokens, -numpy.inf, dtype=numpy.float32)
    bottleneck[-1] = numpy.inf
    for score, key in zip(reversed(space.views(scores)), reversed(space.views(keys)), strict=True):
        numpy.minimum(score.residual, bottleneck, out=key.residual)
        onward = key.residual.copy()
        if key.attention is not None:
            numpy.minimum(score.attention, bottleneck[:, None], out=key.attention)
            numpy.maximum(onward, key.attention.max(axis=(0, 1)), out=onward)
        if key.mlp is not None:
            numpy.minimum(score.mlp, bottleneck, out=key.mlp)
            numpy.maximum(onward, key.mlp.max(axis=0), out=onward)
        bottleneck = onward
    return keys


def nucleus_mask(
    space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray, share: float
) -> numpy.ndarray:
    """Choose each reached node's fewest edges whose shares sum to at least `share`, (F,) bool.

    Nodes are reached from the output down.
    """
    t = space.n_tokens
    scores = numpy.where(reachable, importance, 0.0)
    mask = numpy.zeros(space.size, dtype=bool)
    reached = numpy.zeros(t, dtype=bool)
    reached[-1] = True
    levels = zip(
        reversed(space.views(scores)),
        reversed(space.views(reachable)),
        reversed(space.views(mask)),
        strict=True,
    )
    for score, exists, place in levels:
        parts = [(score.residual[:, None], exists.residual[:, None])]
        if score.attention is not None:
            parts.append(
                tuple(a.transpose(1, 0, 2).reshape(t, -1) for a in (score.attention, exists.attention))
            )
        if score.mlp is not None:
            parts.append((score.mlp.T, exists.mlp.T))
        values = numpy.concatenate([p[0] for p in parts], axis=1).astype(numpy.float64)
        there = numpy.concatenate([p[1] for p in parts], axis=1)
        order = numpy.argsort(-values, axis=1, kind="stable")
        ordered = numpy.take_along_axis(values, order, axis=1)
        before = numpy.cumsum(ordered, axis=1) - ordered
        needed = before < share * values.sum(axis=1, keepdims=True)
        keep = numpy.zeros_like(there)
        numpy.put_along_axis(keep, order, needed, axis=1)
        keep &= there & reached[:, None]
        place.residual[:] = keep[:, 0]
        sources = keep[:, 0].copy()
        if place.attention is not None:
            kept = keep[:, 1 : 1 + score.attention.shape[0] * t].reshape(t, -1, t).transpose(1, 0, 2)
            place.attention[...] = kept
            sources |= kept.any(axis=(0, 1))
        if place.mlp is not None:
            kept = keep[:, -len(place.mlp) :].T
            place.mlp[:] = kept
            sources |= kept.any(axis=0)
        reached = sources
    return mask


def natural_masks(space: EdgeSpace, reachable: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """Subgraphs that need no importance, (F,) bool each. A trace has to beat them.

    residual_chain: the output token's own residual edges. residual_mlp_chain: and its MLPs. last_attention: all residual
    and MLP edges, attention only into the output token. window_N: all residual and MLP edges, attention to the N latest
    tokens, the token itself among them.
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
    """Set of all residual edges, (F,) bool."""
    mask = numpy.zeros(space.size, dtype=bool)
    for view, exists in zip(space.views(mask), space.views(reachable), strict=True):
        view.residual[:] = exists.residual
    return mask
