"""A score found by search: the tightest that densitometer knows, at the price of a few dozen runs.

`fisher` scores each edge once, in the full model. What an edge is worth in a small trace is another matter, and no second
score taken elsewhere was found to be better on average (LOG.md). But several orders, none of which is best everywhere,
can be tried and the best kept. `best` grows one nested family of traces, from the output token's residual chain up, in
steps of 30 % more edges. In each step it

    1. proposes extensions of the trace: best first by `fisher`; by `bound`; and by two mixtures of `fisher` with what the
       edge would mend in this very trace, to first order: -<dKL/dn, e>, n the target node in the run of the trace and e
       the edge's vector in the full run; 0.7 of it goes to the residual edges that lead to the edge's source, too;
    2. runs the model on each, and keeps the one whose KL divergence from the full model is smallest.

From a fifth of the edges on it follows `fisher`. It chooses by KL divergence, not by the total variation that the curve
reports. A trace found by search is a trace: that its edges alone give the prediction back is measured, not claimed, so
whatever it finds is an upper bound of what the prediction needs. Its score is the place in that order, from 1 (first) down.

Cost: two gradient scores, and per step (about 24 for 40 tokens) one run forward and backward and one batch of four traces.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch

from .ablation import masked_logits
from .fisher import bound, fisher, node_gradients_of_kl
from .forward import ForwardPass, PerLevel
from .metrics import kl_divergence
from .trace import best_first_order

STEP = 1.3  # edges of a trace over edges of the one before
LARGEST = 0.2  # share of the edges from which on `fisher` is followed
MIXTURES = (0.03, 0.2)  # share of what an edge mends, against its Fisher information
LENT = 0.7  # of what an edge mends, to the residual edges that lead to its source


def best(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """The place of each edge in the order that the search found, from 1 (first) down to above 0."""
    space, reachable = forward.space, forward.reachable
    information = space.flatten(fisher(forward, seed))
    scores = [_up_to_one(information, reachable), _up_to_one(space.flatten(bound(forward, seed)), reachable)]
    order = numpy.empty(0, dtype=numpy.int64)
    for n_edges in _ladder(len(space.levels), int(reachable.sum())):
        kept = numpy.zeros(space.size, dtype=bool)
        kept[order] = True
        proposed = [*scores, *_mixtures(forward, information, kept)] if order.size else scores
        orders = [_extended(forward, order, score) for score in proposed]
        masks = numpy.zeros((len(orders), space.size), dtype=bool)
        for mask, extended in zip(masks, orders, strict=True):
            mask[extended[:n_edges]] = True
        divergence = kl_divergence(forward.logits.cpu(), masked_logits(forward, list(masks)))
        order = orders[int(divergence.argmin())][:n_edges]
    order = _extended(forward, order, scores[0])
    places = numpy.zeros(space.size, dtype=numpy.float32)
    places[order] = 1.0 - numpy.arange(order.size) / order.size
    return space.views(torch.from_numpy(places))


def _ladder(smallest: int, n_edges: int) -> Iterator[int]:
    """Numbers of edges of the traces that are tried, rising."""
    size = float(smallest)
    while size < LARGEST * n_edges:
        yield int(size)
        size = max(size + 1, size * STEP)


def _extended(forward: ForwardPass, order: numpy.ndarray, score: numpy.ndarray) -> numpy.ndarray:
    """The best-first order of all edges by a score (F,) in [0, 1], after those of a connected trace, in their order."""
    scores = score.astype(numpy.float64)
    scores[order] = 2.0 + numpy.arange(order.size, 0, -1)
    return best_first_order(forward.space, scores, forward.reachable)


def _mixtures(
    forward: ForwardPass, information: numpy.ndarray, kept: numpy.ndarray
) -> Iterator[numpy.ndarray]:
    """Scores (F,) that weigh what an edge mends in the trace `kept` against its Fisher information."""
    mended = _mended(forward, kept)
    mended[kept] = 0.0
    reachable = forward.reachable
    for share in MIXTURES:
        both = (1 - share) * _up_to_one(information**2, reachable) + share * _up_to_one(mended, reachable)
        yield _up_to_one(numpy.sqrt(both), reachable)


def _mended(forward: ForwardPass, kept: numpy.ndarray) -> numpy.ndarray:
    """(F,): by how much adding each edge, as it is in the full run, lowers the trace's KL divergence, to first order; at
    least 0."""
    mended = []
    for edges, gradient in zip(forward.levels(), node_gradients_of_kl(forward, kept), strict=True):
        attention = None if edges.weights is None else -edges.attention_along(gradient)
        mlp = None if edges.units is None else -edges.units.along(gradient)
        mended.append(PerLevel(-(edges.residual * gradient).sum(-1), attention, mlp))
    flat = numpy.maximum(forward.space.flatten(mended), 0.0)
    _lend_to_residuals(forward.space.views(flat))
    return flat


def _lend_to_residuals(mended: list[PerLevel]) -> None:
    """Let the residual edge into a node have LENT of the most that an edge out of the node has, if that is more, in place.

    An edge from a node that the trace does not reach mends nothing until the node's own chain of residual edges is on.
    """
    most = numpy.zeros_like(mended[-1].residual)  # (T,), of the edges out of the nodes of the level
    for into in reversed(mended):
        numpy.maximum(into.residual, LENT * most, out=into.residual)
        most = into.residual.copy()
        if into.attention is not None:
            most = numpy.maximum(most, into.attention.max(axis=(0, 1)))
        if into.mlp is not None:
            most = numpy.maximum(most, into.mlp.max(axis=0))


def _up_to_one(values: numpy.ndarray, reachable: numpy.ndarray) -> numpy.ndarray:
    most = float(values[reachable].max())
    return values / most if most > 0 else values
