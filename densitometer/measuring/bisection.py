"""Where a goal starts to hold: the bracket of numbers of edges around that place.

At its lower end edges are too few. From its upper end on the goal holds for good.

The bracket is narrowed by running further traces inside it, a few at a time, spread in log size, until it is known to 5 % or to
one edge. Pure: what a number of edges gives is asked of a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .._util.metrics import NUCLEUS_SHARES
from ..errors import InputError
from .density import check_eps

REFINEMENT = 1.05  # size_at is bisected until its bracket is narrower than this ratio
PER_ROUND = 3  # traces run together when the bracket is narrowed


def goal_of(metric: str, goal: Any) -> Callable[[Any], bool]:
    """Whether a value of a metric reaches a goal.

    Raises:
        InputError: an impossible goal.
    """
    if metric == "tv":
        check_eps(goal, "tv")
    elif metric == "kl" and (isinstance(goal, bool) or not isinstance(goal, int | float) or not goal > 0):
        raise InputError(f"kl is a divergence in nats above 0; got {goal!r}")
    elif metric == "top1" and goal is not True:
        raise InputError(f"the goal for top1 must be True; got {goal!r}")
    elif metric == "nucleus" and goal not in NUCLEUS_SHARES:
        raise InputError(f"nucleus is one of {NUCLEUS_SHARES}, per cent; got {goal!r}")
    if metric in ("tv", "kl"):
        return lambda value: bool(value <= goal)
    return lambda value: bool(value >= goal)


def narrow(
    values: dict[int, Any],
    holds: Callable[[Any], bool],
    evaluate: Callable[[Sequence[int]], Sequence[Any]],
    first_crossing: bool = False,
) -> None:
    """Add values until the smallest number of edges from which `holds` is known to 5 %, or to one edge.

    Args:
        values: by number of edges; added to.
        evaluate: values of several numbers of edges, in one batch.
    """
    while counts := counts_inside(values, holds, first_crossing):
        values.update(zip(counts, evaluate(counts), strict=True))


def counts_inside(
    values: dict[int, Any], holds: Callable[[Any], bool], first_crossing: bool = False
) -> list[int]:
    """Return the numbers of edges to try next, to find where a goal starts to hold.

    They are spread in log size over the bracket that holds that place.

    Empty where that is known to 5 % or to one edge, or where the goal never holds.
    """
    bracket = holding(values, holds, first_crossing)
    if bracket is None:
        return []
    fewest, most = bracket
    if most - fewest <= 1 or most <= REFINEMENT * fewest:
        return []
    ratio = most / max(fewest, 1)
    inside = {round(max(fewest, 1) * ratio ** (i / (PER_ROUND + 1))) for i in range(1, PER_ROUND + 1)}
    return sorted(inside - {fewest, most}) or [fewest + 1]


def holding(
    values: dict[int, Any], holds: Callable[[Any], bool], first_crossing: bool
) -> tuple[int, int] | None:
    """The largest number of edges known below, and the smallest known number from which the goal holds.

    -1 below where there is none; None where it never holds.
    """
    counts = sorted(values)
    held = [holds(values[count]) for count in counts]
    if first_crossing:
        place = held.index(True) if True in held else len(held)
    else:
        place = len(held) - held[::-1].index(False) if False in held else 0
    if place == len(counts):
        return None
    return (counts[place - 1] if place else counts[0] - 1), counts[place]


def size_of(count: int, n_edges: int) -> float:
    """The share of the edges whose trace has just `count` of them, whatever rounding does to count / n_edges."""
    size = count / n_edges
    return size if math.floor(size * n_edges) == count else math.nextafter(size, 1.0)
