"""Find the smallest number of edges from which a goal holds at every larger number tried.

A *bracket* is two numbers of edges: with the lower one the goal does not hold, and with the upper
one and all larger ones it holds. Traces inside the bracket are run, a few at a time, spread over
log size, until the upper end is known to 5 % or to one edge.

What this file does not do: it runs no trace. The caller's function returns the values of some
numbers of edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .._util.metrics import NUCLEUS_SHARES
from ..errors import InputError
from .density import check_eps

# A bracket is narrowed until the ratio of its ends is at most this.
REFINEMENT = 1.05
# Traces that are run together when a bracket is narrowed.
PER_ROUND = 3


def goal_of(metric: str, goal: Any) -> Callable[[Any], bool]:
    """Return a function that decides whether a value of a metric reaches a goal.

    Args:
        metric: "tv" or "kl", which must be at most the goal; "top1" or "nucleus", which must be at
            least the goal; or "faithfulness", whose distance from 1 must be at most the goal.

    Raises:
        InputError: the metric cannot reach such a goal.
    """
    if metric in ("tv", "faithfulness"):
        check_eps(goal, metric)
    elif metric == "kl" and (isinstance(goal, bool) or not isinstance(goal, int | float) or not goal > 0):
        raise InputError(f"kl is a divergence in nats above 0; got {goal!r}")
    elif metric == "top1" and goal is not True:
        raise InputError(f"the goal for top1 must be True; got {goal!r}")
    elif metric == "nucleus" and goal not in NUCLEUS_SHARES:
        raise InputError(f"nucleus is one of {NUCLEUS_SHARES}, per cent; got {goal!r}")
    if metric == "faithfulness":
        return lambda value: bool(abs(1 - value) <= goal)
    if metric in ("tv", "kl"):
        return lambda value: bool(value <= goal)
    return lambda value: bool(value >= goal)


def narrow(
    values: dict[int, Any],
    holds: Callable[[Any], bool],
    evaluate: Callable[[Sequence[int]], Sequence[Any]],
    first_crossing: bool = False,
) -> None:
    """Evaluate numbers of edges until the bracket of a goal is narrowed to 5 % or to one edge.

    Args:
        values: by number of edges, the value of its trace. New values are added to it.
        holds: whether a value reaches the goal.
        evaluate: returns the values of several numbers of edges, which it runs in one batch.
        first_crossing: whether to find the smallest number for which the goal holds, even if it
            fails for a larger one.
    """
    while counts := counts_inside(values, holds, first_crossing):
        values.update(zip(counts, evaluate(counts), strict=True))


def counts_inside(
    values: dict[int, Any], holds: Callable[[Any], bool], first_crossing: bool = False
) -> list[int]:
    """Return the numbers of edges to try next, to find where a goal starts to hold.

    They are spread over log size inside the bracket. There are none if the bracket is narrower than
    5 % or one edge, or if the goal never holds. Arguments are as for `narrow`.
    """
    bracket = holding(values, holds, first_crossing)
    if bracket is None:
        return []
    fewest, most = bracket
    if most - fewest <= 1 or most <= REFINEMENT * fewest:
        return []
    # the ends may be 0 and 1, whose ratio is not a number
    ratio = most / max(fewest, 1)
    inside = {round(max(fewest, 1) * ratio ** (i / (PER_ROUND + 1))) for i in range(1, PER_ROUND + 1)}
    return sorted(inside - {fewest, most}) or [fewest + 1]


def holding(
    values: dict[int, Any], holds: Callable[[Any], bool], first_crossing: bool
) -> tuple[int, int] | None:
    """Return the bracket of the number of edges from which a goal holds.

    Arguments are as for `narrow`.

    Returns:
        The largest known number of edges below the upper end, or one less than the upper end if
        the goal holds for all known numbers. Then the upper end: the smallest known number from
        which the goal holds at every larger one. None if the goal never holds.
    """
    counts = sorted(values)
    held = [holds(values[count]) for count in counts]
    # place: index of the first number of edges from which the goal holds
    if first_crossing:
        place = held.index(True) if True in held else len(held)
    else:
        # one after the last number for which the goal does not hold
        place = len(held) - held[::-1].index(False) if False in held else 0
    if place == len(counts):
        return None
    return (counts[place - 1] if place else counts[0] - 1), counts[place]


def size_of(count: int, n_edges: int) -> float:
    """Return the size whose trace has exactly `count` of the edges.

    A trace of a size has floor(size x n_edges) edges. With size = count / n_edges, rounding can
    make that one edge too few.
    """
    size = count / n_edges
    return size if math.floor(size * n_edges) == count else math.nextafter(size, 1.0)
