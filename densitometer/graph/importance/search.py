"""Importances found by gradient search: `best`, and `learned`, which takes seven times as long.

`fisher` computes each edge's importance once, in the full model. In a small trace an edge may have
a different effect, because removals interact. So an order of all edges is learned for this one
prediction, as masks of edges are learned to find circuits (arXiv 2406.16778), but for the nested
traces of all sizes at once. The importance of an edge is its place in that order.

    1. Each edge has a parameter theta, at first the logarithm of its importance by `fisher`. Let s
       be the size from which the traces of `fisher` hold (total variation <= 0.1), and E the number
       of edges.
    2. The masks m = sigmoid((theta - b) / T) are soft. The boundary b is chosen so that they sum to
       z E. From step to step the size z falls from 1.8 s to 0.25 s (`learned`: 0.2 s), and the
       temperature T from 0.2 to 0.05. So the masks harden towards the z E edges of highest theta.
    3. In each step, one run forward and backward gives the slope of KL(full || masked) by each
       mask. theta rises for edges that lower the divergence and falls for edges that raise it, in
       proportion to the mean slope at the boundary. It moves by at most 2 T (T / 2 in steps of a
       quarter of the length), times how near the edge is to the boundary, 4 m (1 - m).
    4. The order: edges come first whose mask was larger in the mean over all steps, so those that
       stayed above the boundary until a smaller z. Of equals the one with higher theta comes first.
    5. The choice: `best` runs the traces of this order and of `fisher`'s at 9 sizes, and keeps the
       order whose traces are closer to the full model.

`learned` searches twice, in 40 steps and in 200 of a quarter of the length. It keeps the order
whose traces, run at 56 sizes, hold from the smallest size on. It is the reference for what is
attainable. What holds at those sizes need not hold between them, so `best` can be tighter.

Three things make it work, as measured on real models (dev/LOG.md):

    - Masks are soft, and harden as the steps get shorter. Hard masks destroy the order, and masks
      that stay soft find sets that do not work as traces.
    - Only edges near the boundary move.
    - The order is by how long an edge was on. So the larger traces stay as they were when their
      edges were at the boundary.

With a target (`targets.py`), the divergence in steps 3 and 5 is the squared distance of its value
from the full model's, and a trace holds where its faithfulness is within 0.1 of 1.

What this file does not do: it proves nothing about the edges that it finds. Whether they alone give
the prediction is measured, as for every trace. So a trace's size is an upper bound of what the
prediction needs. The search minimises KL divergence, not the total variation that a curve reports.

Cost: `fisher`, 18 traces (`learned`: 168), and for each step one run forward and backward.

Axes: F flat edge axis, E edges that can reach the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ..._util.metrics import kl_divergence, total_variation
from ...errors import PluginError
from ..forward_pass import ForwardPass, PerLevel
from ..growth import best_first_order
from ..masked_runs import masked_logits
from ..targets import Scale
from .gradients import divergence_slopes, fisher


class Search(NamedTuple):
    """Settings of one search.

    Args:
        n_steps: number of steps.
        stride: length of a step, in temperatures.
        smallest: last size z, in units of s.
        descent: share of the steps in which z falls; then it stays.
    """

    n_steps: int
    stride: float
    smallest: float
    descent: float


SEARCHES = {
    "best": [Search(36, 1.0, 0.25, 1.0)],
    "learned": [Search(40, 1.0, 0.2, 0.9), Search(200, 0.25, 0.2, 0.9)],
}
HELD = 0.1  # a trace holds where its total variation is at most this
# Sizes at which the traces of an order are run: 1 to 88 % and 0.5 to 95 % of the edges.
SIZES = {
    "best": tuple(0.01 * 1.75**i for i in range(9)),
    "learned": tuple(0.005 * 1.1**i for i in range(56)),
}
FROM = 1.8  # first size z of a search, in units of s
LARGEST = 0.9  # largest size z, whatever s is
WARM, COLD = 0.2, 0.05  # first and last temperature T, in units of theta
MEMORY = 0.7  # weight of earlier steps in the direction of a step
SHARPEST = 2.0  # largest direction, in units of the mean slope at the boundary
AWAY = 0.05  # least part of a step: that of edges far from the boundary
LEAST = 0.02  # quantile of the Fisher information below which all edges start with the same theta


def best(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Place of each edge in the order that a short search found, from 1 (first) down to above 0."""
    return _places(forward, seed, "best")


def learned(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Place of each edge in the better order of a short and a long search, from 1 (first) down."""
    return _places(forward, seed, "learned")


def _places(forward: ForwardPass, seed: int, name: str) -> list[PerLevel]:
    """Search by the settings of `best` or `learned`. Return each edge's place in the order kept.

    Raises:
        PluginError: gradients of the prediction are NaN or infinite.
    """
    roots = forward.space.flatten(fisher(forward, seed))  # (F,)
    _refuse_non_finite(roots[forward.reachable])
    sizes = SIZES[name]
    closeness = Closeness.of(forward)
    # `fisher`'s own order comes first: of equals it is kept
    orders = [best_first_order(forward.space, roots, forward.reachable)]
    runs = [_run(forward, orders[0], sizes)]
    held = _size_at(closeness, runs[0], sizes)  # s
    for search in SEARCHES[name]:
        # set once for all steps, so that each norm is found once
        with forward.model.adapter.differentiable():
            values = _search(forward, roots, held, search)  # (F,)
        orders.append(best_first_order(forward.space, values, forward.reachable))
        runs.append(_run(forward, orders[-1], sizes))
    # the order with the least of these is kept
    tightness = [_distance(closeness, logits) for logits in runs]
    if name == "learned":
        # the distance decides only between orders that hold from the same size on
        tightness = [
            _size_at(closeness, logits, sizes) + 1e-6 * _distance(closeness, logits) for logits in runs
        ]
    order = orders[int(numpy.argmin(tightness))]
    places = numpy.zeros(forward.space.size, dtype=numpy.float32)
    places[order] = 1.0 - numpy.arange(order.size) / order.size
    return forward.space.views(torch.from_numpy(places))


def _run(forward: ForwardPass, order: numpy.ndarray, sizes: Sequence[float]) -> Tensor:
    """Run the traces of an order at some sizes, and return their logits, (sizes, vocabulary).

    Args:
        order: (E,), edges of the flat axis, first added first.
        sizes: shares of the edges.
    """
    masks = numpy.zeros((len(sizes), forward.space.size), dtype=bool)
    for mask, size in zip(masks, sizes, strict=True):
        mask[order[: int(size * order.size)]] = True
    return masked_logits(forward, list(masks))


class Closeness(NamedTuple):
    """How close traces come to the full model.

    Args:
        full: (vocabulary,), logits of the full model.
        scale: scale of the target's values; None for the whole distribution.
    """

    full: Tensor
    scale: Scale | None

    @classmethod
    def of(cls, forward: ForwardPass) -> Closeness:
        full, target = forward.logits.cpu(), forward.target
        if target is None:
            return cls(full, None)
        off = numpy.zeros(forward.space.size, dtype=bool)
        return cls(full, Scale.of(target, full, masked_logits(forward, [off])[0]))

    def divergence(self, logits: Tensor) -> Tensor:
        """KL divergences from the full model to traces, or (1 - faithfulness) squared, (K,)."""
        return kl_divergence(self.full, logits) if self.scale is None else self.gap(logits).square()

    def gap(self, logits: Tensor) -> Tensor:
        """Total variation, or |1 - faithfulness|, of traces, (K,)."""
        if self.scale is None:
            return total_variation(self.full, logits)
        return (1 - self.scale.faithfulness(self.scale.score.value(logits))).abs()


def _distance(closeness: Closeness, logits: Tensor) -> float:
    """Mean logarithm of the divergences from the full model to some traces.

    A thousandth of a nat is added to each, so that smaller divergences hardly count.

    Args:
        closeness: how close traces come to the full model.
        logits: (sizes, vocabulary), logits of the traces.
    """
    return float((closeness.divergence(logits) + 1e-3).log().mean())


def _size_at(closeness: Closeness, logits: Tensor, sizes: Sequence[float]) -> float:
    """Return the size above which every trace predicts nearly what the full model does.

    It is the geometric mean of the largest size that fails and the next larger one. It is the
    smallest size if none fails.

    Args:
        closeness: how close traces come to the full model.
        logits: (sizes, vocabulary), logits of the trace of each size.
        sizes: sizes that were run, rising.
    """
    failing = (closeness.gap(logits) > HELD).nonzero()[:, 0].tolist()
    if not failing:
        return sizes[0]
    # where the largest size fails, the next is 1.0, the full trace
    return math.sqrt(sizes[failing[-1]] * (*sizes, 1.0)[failing[-1] + 1])


def _search(forward: ForwardPass, roots: numpy.ndarray, held: float, search: Search) -> numpy.ndarray:
    """Learn an order of the edges by gradient steps on soft masks (steps 2 to 4 of this file).

    Args:
        roots: (F,), the root of the Fisher information of each edge's mask.
        held: the size s from which the traces of `fisher` hold.

    Returns:
        A number per edge, (F,) float64, larger for edges that come first: its rank by the mean of
        its mask over the steps, and of equals by theta.
    """
    device = forward.logits.device
    # (E,), indices on the flat axis
    edges = torch.from_numpy(numpy.flatnonzero(forward.reachable)).to(device)
    theta = _start(torch.from_numpy(roots).to(device)[edges])  # (E,)
    largest, smallest = min(LARGEST, FROM * held), search.smallest * held
    been_on = torch.zeros(len(edges), dtype=torch.float64, device=device)  # sum of the masks, (E,)
    direction = torch.zeros_like(theta)  # running mean of where each theta is to move, (E,)
    boundary = float(theta.median())
    for step in range(search.n_steps):
        done = step / max(1, search.n_steps - 1)  # 0 to 1
        # both fall by the same factor in each step
        size = largest * (smallest / largest) ** min(1.0, done / search.descent)
        temperature = WARM * (COLD / WARM) ** done
        boundary, on = _soft(theta, size * len(edges), temperature, boundary)
        been_on += on
        masks = torch.zeros(forward.space.size, device=device)
        masks[edges] = on
        # how much each edge lowers the divergence, (E,)
        gains = -divergence_slopes(forward, masks)[edges]
        _refuse_non_finite(gains)
        # largest at the boundary, where m = 0.5; next to 0 for edges that are clearly on or off
        near = on * (1 - on)
        # the mean slope at the boundary
        typical = (gains.abs() * near).sum() / near.sum().clamp_min(1e-30)
        wanted = (gains / typical.clamp_min(1e-30)).clamp(-SHARPEST, SHARPEST)
        direction = MEMORY * direction + (1 - MEMORY) * wanted
        theta = theta + search.stride * temperature * (4 * near).clamp_min(AWAY) * direction
    last_first = theta.argsort(stable=True)
    last_first = last_first[been_on[last_first].argsort(stable=True)]
    values = numpy.zeros(forward.space.size)
    values[edges[last_first].cpu().numpy()] = numpy.arange(1, len(edges) + 1)
    return values


def _start(roots: Tensor) -> Tensor:
    """Make the first theta, (E,): logarithms of the roots of the Fisher information.

    The least informative edges all get the same theta; a 0 has no logarithm.
    """
    rising = roots.sort().values
    least = rising[int(LEAST * len(rising))]
    # more zeros than the quantile holds: take the least positive root (0 where there is none)
    if least <= 0:
        least = rising[rising > 0][:1].sum()
    return roots.clamp_min(max(float(least), 1e-30)).log()


def _soft(theta: Tensor, total: float, temperature: float, boundary: float) -> tuple[float, Tensor]:
    """Find the boundary b for which the masks sigmoid((theta - b) / T) sum to `total`.

    Newton's method starts from an earlier boundary. A step that leaves the interval in which b is
    known to lie is replaced by the middle of that interval.

    Args:
        theta: (E,).
        total: the required sum, reached within a thousandth.
        temperature: T.
        boundary: where to start.

    Returns:
        The boundary.
        The masks, (E,).
    """
    low, high = float(theta.min()) - 20 * temperature, float(theta.max()) + 20 * temperature
    for _ in range(60):
        on = torch.sigmoid((theta - boundary) / temperature)
        over = float(on.sum(dtype=torch.float64)) - total
        if abs(over) <= 1e-3 * total:
            break
        # a higher boundary makes the sum smaller
        low, high = (boundary, high) if over > 0 else (low, boundary)
        slope = float((on * (1 - on)).sum(dtype=torch.float64)) / temperature
        boundary += over / slope if slope > 0 else math.inf
        if not low < boundary < high:
            boundary = (low + high) / 2
    return boundary, on


def _refuse_non_finite(values: numpy.ndarray | Tensor) -> None:
    """Refuse gradients that are NaN or infinite."""
    if not bool(torch.as_tensor(values).isfinite().all()):
        raise PluginError(
            "gradients of this prediction, which `best` and `learned` follow, are NaN or infinite. They may overflow in "
            "float16: load the model in another dtype (dtype='bfloat16' or 'float32')"
        )
