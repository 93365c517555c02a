"""The additive floor: what a prediction would need if removals of edges did not interact.

A model, not a bound: a trace that runs may be smaller, where removals make up for each other, and most traces are larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from .density import Density, density_of

ADDITIVE_FLOOR = (
    "What would suffice if removals did not interact, by Fisher information: a model, not a bound."
)


def additive_floor(information: numpy.ndarray, eps: float) -> float:
    """The least share of the edges with which the rest would cost less than TV `eps`, if removals did not interact.

    This is a model, not a bound. The costs s_e^2 / 2 of the edges that are off are added up, those of the least informative first, as long
    as they stay within pi eps^2 nats, the KL divergence at which a small shift of the logits moves TV by `eps` (shifts normal:
    KL = v / 2 and TV = sqrt(v / (2 pi)) for their variance v under the prediction). Real traces may be smaller, where removals
    make up for each other, and mostly are larger.

    Args:
        information: (E,) s_e^2 of every edge, as `fisher_information` gives it.
        eps: total variation.
    """
    off = _additive_costs(information)[1:]
    return 1.0 - int(off.searchsorted(math.pi * eps**2, side="right")) / information.size


def additive_density(information: numpy.ndarray, sizes: Sequence[float], eps: float) -> Density:
    """The density of the model behind `additive_floor`: TV sqrt(cost / pi), at most 1, of the floor(size E) most informative edges.

    Args:
        information: (E,) s_e^2 of every edge.
        sizes: shares of the edges, rising, in (0, 1].
        eps: total variation whose floor is placed to one edge, as `refined_sizes`.
    """
    costs, n_edges = _additive_costs(information), information.size

    def tv(count: int) -> float:
        return min(1.0, math.sqrt(costs[n_edges - count] / math.pi))

    floor = n_edges - int(costs[1:].searchsorted(math.pi * eps**2, side="right"))
    placed = [count for count in (floor - 1, floor) if count > 0]
    return density_of(
        sizes, [tv(int(size * n_edges)) for size in sizes], [(count / n_edges, tv(count)) for count in placed]
    )


def _additive_costs(information: numpy.ndarray) -> numpy.ndarray:
    """Sum of s_e^2 / 2 over the n least informative edges, for each n, (E + 1,) float64, nats."""
    return numpy.append(0.0, numpy.sort(information.astype(numpy.float64)).cumsum() / 2)
