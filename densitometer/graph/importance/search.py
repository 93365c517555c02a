"""Orders found by gradient search: `best`, and at six to seven times its price `learned`.

`fisher` scores each edge once, in the full model. What an edge is worth in a small trace is another matter: removals interact.
So the order itself is learned, for this one prediction, as masks of edges are learned to find circuits (arXiv 2406.16778), but
as one nested family of traces of all sizes.

    1. Each edge has a score theta, at first the logarithm of its Fisher information's root. Let s be the size from which the
       traces of `fisher` hold (TV <= 0.1).
    2. The masks m = sigmoid((theta - b) / T) are soft; b is chosen so that they sum to a share z of the edges. In each step z
       falls, from 1.8 s to 0.35 s, and T from 0.2 to 0.05, so that the masks become those of the z E edges of highest score.
    3. One run forward and backward gives the slope of KL(full || masked) by each mask. theta rises where the edge lowers the
       divergence by more than others at the boundary do, and falls where the edge raises it: by at most T, times how near the
       edge is to the boundary, 4 m (1 - m).
    4. The order: edges that stayed on until a later step (a smaller z) come first, of those the higher theta. Of it and the order
       of `fisher`, `best` keeps the one whose traces, run at 14 sizes, are closer to the full model.

`learned` searches twice, in 32 steps and in 200 of half the length, and keeps the order whose traces, run at 56 sizes, hold from the
smallest size on: it is the reference for what is attainable. What holds at those sizes need not hold between them, so `best` is tighter
on some inputs (4 of 20, by up to 13 %).

What makes it work, measured on real models (dev/LOG.md): soft masks whose temperature falls with the step's length (hard masks
destroy the order, and soft ones that never harden find sets that do not work as traces); moves at the boundary alone; and the order by
the step until which an edge stayed, which keeps the larger traces as they were when they were the boundary.

A trace found by search is a trace: that its edges alone give the prediction back is measured, not claimed, so whatever it finds
is an upper bound of what the prediction needs. It chooses by KL divergence, not by the total variation that the curve reports.

Cost: `fisher`, 28 traces (`learned`: 168), and for each step one run forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from ..._util.metrics import kl_divergence, total_variation
from ...errors import PluginError
from ..forward_pass import ForwardPass, PerLevel
from ..growth import best_first_order
from ..masked_runs import masked_logits
from .gradients import divergence_slopes, fisher

SEARCHES = {
    "best": [(32, 0.5)],
    "learned": [(32, 0.5), (200, 0.25)],
}  # steps, and the length of one in temperatures
HELD = 0.1  # total variation at most, where traces of `fisher` hold
SIZES = {  # at which the orders are run, 0.5 to 97 and to 95 %
    "best": tuple(0.005 * 1.5**i for i in range(14)),
    "learned": tuple(0.005 * 1.1**i for i in range(56)),
}
FROM, TO = 1.8, 0.35  # sizes between which the search moves, in units of where `fisher` holds
LARGEST = 0.9
DESCENT = 0.9  # share of the steps in which the size falls
WARM, COLD = 0.2, 0.05  # temperatures, in units of theta
MEMORY = 0.8  # of earlier steps' directions
SHARPEST = 2.0  # direction at most, in units of the mean slope at the boundary
AWAY = 0.05  # part of a step that edges far from the boundary take
LEAST = 0.02  # quantile of the Fisher information below which edges start as equals


def best(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """The place of each edge in the order that a short search found, from 1 (first) down to above 0."""
    return _places(forward, seed, "best")


def learned(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """The place of each edge in the tightest order that a short and a long search found: what is attainable."""
    return _places(forward, seed, "learned")


def _places(forward: ForwardPass, seed: int, name: str) -> list[PerLevel]:
    roots = forward.space.flatten(fisher(forward, seed))
    _refuse_non_finite(roots[forward.reachable])
    sizes = SIZES[name]
    orders = [best_first_order(forward.space, roots, forward.reachable)]
    runs = [_run(forward, orders[0], sizes)]
    held = _size_at(forward, runs[0], sizes)
    for n_steps, stride in SEARCHES[name]:
        scores = _search(forward, roots, held, n_steps, stride)
        orders.append(best_first_order(forward.space, scores, forward.reachable))
        runs.append(_run(forward, orders[-1], sizes))
    tightness = [_distance(forward, ran) for ran in runs]
    if name == "learned":
        tightness = [_size_at(forward, ran, sizes) + 1e-6 * _distance(forward, ran) for ran in runs]
    order = orders[int(numpy.argmin(tightness))]
    places = numpy.zeros(forward.space.size, dtype=numpy.float32)
    places[order] = 1.0 - numpy.arange(order.size) / order.size
    return forward.space.views(torch.from_numpy(places))


def _run(forward: ForwardPass, order: numpy.ndarray, sizes: Sequence[float]) -> Tensor:
    """Logits (sizes, vocabulary) of the traces of these sizes."""
    masks = numpy.zeros((len(sizes), forward.space.size), dtype=bool)
    for mask, size in zip(masks, sizes, strict=True):
        mask[order[: int(size * order.size)]] = True
    return masked_logits(forward, list(masks))


def _distance(forward: ForwardPass, ran: Tensor) -> float:
    """Mean logarithm of the KL divergences.

    Below a thousandth of a nat, differences hardly count.
    """
    return float((kl_divergence(forward.logits.cpu(), ran) + 1e-3).log().mean())


def _size_at(forward: ForwardPass, ran: Tensor, sizes: Sequence[float]) -> float:
    """The size from which on the traces hold, between two that were run."""
    failing = (total_variation(forward.logits.cpu(), ran) > HELD).nonzero()[:, 0].tolist()
    if not failing:
        return sizes[0]
    return math.sqrt(sizes[failing[-1]] * (*sizes, 1.0)[failing[-1] + 1])


def _search(
    forward: ForwardPass, roots: numpy.ndarray, held: float, n_steps: int, stride: float
) -> numpy.ndarray:
    """Last step in which each edge was on, (F,) float64 in [0, n_steps + 1).

    Its fraction is the rank of the edge's theta.

    Args:
        roots: (F,) of the Fisher information of each edge's mask.
        held: the size from which their traces hold.
    """
    device = forward.logits.device
    edges = torch.from_numpy(numpy.flatnonzero(forward.reachable)).to(device)
    theta = _start(torch.from_numpy(roots).to(device)[edges])
    largest, smallest = min(LARGEST, FROM * held), TO * held
    stayed = torch.zeros(len(edges), device=device)
    direction = torch.zeros_like(theta)
    boundary = float(theta.median())
    for step in range(n_steps):
        done = step / max(1, n_steps - 1)
        size = largest * (smallest / largest) ** min(1.0, done / DESCENT)
        temperature = WARM * (COLD / WARM) ** done
        boundary, on = _soft(theta, size * len(edges), temperature, boundary)
        stayed[theta >= boundary] = step + 1
        masks = torch.zeros(forward.space.size, device=device)
        masks[edges] = on
        gains = -divergence_slopes(forward, masks)[edges]
        _refuse_non_finite(gains)
        near = on * (1 - on)
        typical = (gains.abs() * near).sum() / near.sum().clamp_min(1e-30)
        wanted = (gains / typical.clamp_min(1e-30)).clamp(-SHARPEST, SHARPEST)
        direction = MEMORY * direction + (1 - MEMORY) * wanted
        theta = theta + stride * temperature * (4 * near).clamp_min(AWAY) * direction
    ranks = torch.empty(len(theta), dtype=torch.float64, device=device)
    ranks[theta.argsort(stable=True)] = torch.arange(len(theta), dtype=torch.float64, device=device)
    scores = numpy.zeros(forward.space.size)
    scores[forward.reachable] = (stayed.double() + ranks / len(theta)).cpu().numpy()
    return scores


def _start(roots: Tensor) -> Tensor:
    """Logarithms of the roots (E,). The least informative edges start as equals."""
    rising = roots.sort().values
    least = rising[int(LEAST * len(rising))]
    if least <= 0:
        least = rising[rising > 0][:1].sum()
    return roots.clamp_min(max(float(least), 1e-30)).log()


def _soft(theta: Tensor, total: float, temperature: float, boundary: float) -> tuple[float, Tensor]:
    """The boundary b for which sigmoid((theta - b) / T) sums to `total`, within a thousandth, and these masks (E,).

    Newton's steps from `boundary`; where one leaves what is known of b, that interval is halved.
    """
    low, high = float(theta.min()) - 20 * temperature, float(theta.max()) + 20 * temperature
    for _ in range(60):
        on = torch.sigmoid((theta - boundary) / temperature)
        over = float(on.sum(dtype=torch.float64)) - total
        if abs(over) <= 1e-3 * total:
            break
        low, high = (boundary, high) if over > 0 else (low, boundary)
        slope = float((on * (1 - on)).sum(dtype=torch.float64)) / temperature
        boundary += over / slope if slope > 0 else math.inf
        if not low < boundary < high:
            boundary = (low + high) / 2
    return boundary, on


def _refuse_non_finite(values: numpy.ndarray | Tensor) -> None:
    if not bool(torch.as_tensor(values).isfinite().all()):
        raise PluginError(
            "gradients of this prediction are NaN or infinite, which `best` and `learned` follow; they may overflow in float16: "
            "load the model in another dtype (dtype='bfloat16' or 'float32')"
        )
