"""The additive floor: how many edges a prediction would need if removals did not interact.

It is a model, not a bound. A trace that was run may be smaller, if the effects of removals cancel,
but most are larger.
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
    """Return the least share of edges that keeps TV within `eps`, if removals did not interact.

    This is a model, not a bound. The least informative edges are removed first. Removing an edge
    costs s_e^2 / 2 nats, and costs add up. Edges are removed as long as the sum is at most pi eps^2
    nats. That is the KL divergence at which a small shift of the logits moves TV by `eps`: for
    normal shifts of variance v under the prediction, KL = v / 2 and TV = sqrt(v / (2 pi)).

    Args:
        information: (E,), s_e^2 of every edge, from `fisher_information`.
        eps: total variation.
    """
    off = _additive_costs(information)[1:]
    return 1.0 - int(off.searchsorted(math.pi * eps**2, side="right")) / information.size


def additive_density(information: numpy.ndarray, sizes: Sequence[float], eps: float) -> Density:
    """Return the density that measured information would give if removals did not interact.

    At each size s the floor(s E) most informative edges are on. TV is then sqrt(cost / pi), at most
    1, for the cost of all others (`additive_floor`).

    Args:
        information: (E,), s_e^2 of every edge.
        sizes: shares of the edges, rising, in (0, 1].
        eps: total variation. The place where TV falls to it is found to one edge, and is among the
            density's refined sizes.
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
    """Cost of removing the n least informative edges, for n = 0 to E, (E + 1,) float64, nats."""
    return numpy.append(0.0, numpy.sort(information.astype(numpy.float64)).cumsum() / 2)
