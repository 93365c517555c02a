"""Density of a curve of total variation (TV) over size: how dense a computation is.

    auc_linear   area under TV over size in [0, 1]                          (arXiv 2601.22795)
    auc_log      area under TV over log10 size in [1e-5, 1], divided by 5   (arXiv 2605.27033)
    size_at(e)   the smallest size from which TV stays <= e at every larger size evaluated

If a target was measured, `size_at` can also be computed from its faithfulness: the smallest size
from which |1 - faithfulness| stays <= e.

For both areas TV is interpolated linearly in log10 size between the sizes evaluated, and the linear
area is then integrated exactly. Below the smallest size TV is assumed to be constant. At size 1 it
is the measured value, or 0 if size 1 was not evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy

from .._util.digits import percent
from .._util.notebook_table import Described
from ..errors import InputError

# The sizes of arXiv 2605.27033.
DEFAULT_SIZES = (
    1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1e-3, 1.2e-3, 1.4e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3, 1e-2, 2e-2,
    4e-2, 6e-2, 8e-2, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0,
)  # fmt: skip
# What `size_at` is read from.
By = Literal["tv", "faithfulness"]
# Size at which the areas begin.
SMALLEST_SIZE = 1e-5


@dataclass(frozen=True)
class Density(Described):
    """How dense a computation is, under three definitions.

    Args:
        sizes: sizes of the curve, rising: shares of the full trace's edges, or of its operations or
            parameters.
        tv: total variation at each size.
        refined_sizes: sizes of further points, which were evaluated to place `size_at` more finely.
            They are not part of the areas.
        refined_tv: total variation at each of them.
        noise: how much rounding alone changes the TV of traces near `size_at`. `bracket` is wider
            for it.
        faithfulness: faithfulness of the target at each size; empty without a target.
        refined_faithfulness: faithfulness at each of the refined sizes.
        faithfulness_noise: how much rounding alone changes it near `size_at`.

    Examples:
        >>> density = dm.Density(sizes=(0.01, 0.1, 0.5, 1.0), tv=(0.8, 0.2, 0.05, 0.0))
        >>> density.size_at(0.1), density.bracket(0.1)
        (0.5, (0.1, 0.5))
        >>> round(density.auc_log, 3), round(density.auc_linear, 3)
        (0.599, 0.097)
    """

    sizes: tuple[float, ...]
    tv: tuple[float, ...]
    refined_sizes: tuple[float, ...] = ()
    refined_tv: tuple[float, ...] = ()
    noise: float = 0.0
    faithfulness: tuple[float, ...] = ()
    refined_faithfulness: tuple[float, ...] = ()
    faithfulness_noise: float = 0.0

    @property
    def auc_log(self) -> float:
        """Area under TV over log10 size in [1e-5, 1], divided by 5, which puts it in [0, 1]."""
        sizes, tv = _with_ends(self.sizes, self.tv)
        return float(numpy.trapezoid(tv, numpy.log10(sizes)) / -math.log10(SMALLEST_SIZE))

    @property
    def auc_linear(self) -> float:
        """Area under TV over size in [0, 1]. It is in [0, 1] itself."""
        sizes, tv = _with_ends(self.sizes, self.tv)
        steps, rise = numpy.diff(sizes), numpy.diff(tv)
        # the mean over [a, b] of what is linear in log size: tv_b - rise (1 / log(b/a) - a / (b -
        # a))
        ratio = numpy.log(sizes[1:] / sizes[:-1])
        inner = steps * (tv[1:] - rise * (1 / ratio - sizes[:-1] / steps))
        return float(sizes[0] * tv[0] + inner.sum())

    def size_at(self, eps: float = 0.1, first_crossing: bool = False, *, by: By = "tv") -> float | None:
        """The smallest size from which TV stays <= eps at every larger size evaluated.

        Args:
            eps: total variation, in (0, 1); or distance of the faithfulness from 1.
            first_crossing: whether to return the smallest size with TV <= eps instead, even if TV
                is above eps at a larger size.
            by: "tv", or "faithfulness" for |1 - faithfulness| <= eps in place of TV <= eps.

        Returns:
            The size, or None where not even the largest size has TV <= eps.

        Raises:
            InputError: eps is not in (0, 1), `by` is unknown, or no target was measured.
        """
        bracket = self._bracket(check_eps(eps), first_crossing, by)
        return None if bracket is None else bracket[1]

    def bracket(
        self, eps: float = 0.1, first_crossing: bool = False, *, by: By = "tv"
    ) -> tuple[float, float] | None:
        """Return two sizes: the largest one evaluated below `size_at(eps)`, and `size_at(eps)`.

        The true place lies between them. The lower size is 0 where no smaller size was evaluated.
        Where TV comes within `noise` of eps, rounding could place `size_at` elsewhere. The two
        sizes then enclose all such places. Arguments are as for `size_at`.

        Returns:
            The two sizes, or None where `size_at` is None.
        """
        eps = check_eps(eps)
        bracket = self._bracket(eps, first_crossing, by)
        noise = self.noise if by == "tv" else self.faithfulness_noise
        if bracket is None or not noise:
            return bracket
        # `size_at` if every TV were smaller, and if every TV were larger, by the noise
        lower = self._bracket(eps + noise, first_crossing, by)
        upper = self._bracket(eps - noise, first_crossing, by)
        # where TV holds at eps it holds at a larger eps
        assert lower is not None
        return lower[0], 1.0 if upper is None else upper[1]

    def _gaps(self, by: By) -> tuple[float, ...]:
        """TV, or the distance of faithfulness from 1, at each size and then at each refined size.

        Raises:
            InputError: `by` is unknown, or no target was measured.
        """
        if by == "tv":
            return self.tv + self.refined_tv
        if by not in get_args(By):
            raise InputError(f"unknown by {by!r}; expected {' or '.join(map(repr, get_args(By)))}")
        if not self.faithfulness:
            raise InputError(
                "no target was measured, so there is no faithfulness; measure with a target: measure(..., target=...)"
            )
        return tuple(abs(1 - value) for value in self.faithfulness + self.refined_faithfulness)

    def _bracket(self, eps: float, first_crossing: bool, by: By = "tv") -> tuple[float, float] | None:
        """Return the bracket without noise."""
        # place: index of the first point from which TV holds
        points = sorted(zip(self.sizes + self.refined_sizes, self._gaps(by), strict=True))
        if first_crossing:
            place = next((i for i, (_, tv) in enumerate(points) if tv <= eps), len(points))
        else:
            above = [i for i, (_, tv) in enumerate(points) if not tv <= eps]
            place = above[-1] + 1 if above else 0
        if place == len(points):
            return None
        return (points[place - 1][0] if place else 0.0), points[place][0]

    def _facts(self) -> dict[str, str]:
        bracket = self.bracket(0.1)
        return {
            "TV <= 0.1 from": percent(self.size_at(0.1)),
            "which lies in": "-" if bracket is None else f"{percent(bracket[0])} to {percent(bracket[1])}",
            "auc_log": f"{self.auc_log:z.3f}",
            "auc_linear": f"{self.auc_linear:z.3f}",
            **({"faithful from": percent(self.size_at(0.1, by="faithfulness"))} if self.faithfulness else {}),
        }

    def __repr__(self) -> str:
        held = f"TV <= 0.1 from {percent(self.size_at(0.1))}"
        return f"Density({held}, auc_log {self.auc_log:z.3f}, auc_linear {self.auc_linear:z.3f}, {len(self.sizes)} sizes)"


def empty_sizes(n_edges: int) -> tuple[float, ...]:
    """Return the sizes at which the empty trace is a point of a curve, rising.

    Every size below one edge gives the empty trace. So the curve has its TV from the smallest size
    of the areas to just below one edge.

    Args:
        n_edges: edges of which sizes are shares.
    """
    last = (1 - 1e-9) / n_edges
    return (SMALLEST_SIZE, last) if last > SMALLEST_SIZE else (last,)


def density_of(
    shares: Sequence[float],
    tv: Sequence[float],
    refined: Sequence[tuple[float, float]] = (),
    noise: float = 0.0,
    faithfulness: Sequence[float] = (),
    refined_faithfulness: Sequence[float] = (),
) -> Density:
    """Return the density of traces from their costs, where several traces may cost the same.

    Of traces with the same cost the last one counts. Shares below 1e-5, where the areas begin,
    count as 1e-5.

    Args:
        shares: cost of each trace as a share of the full trace's, rising.
        tv: total variation of each trace.
        refined: cost and total variation of further traces, which are not part of the areas.
        noise: how much rounding alone changes the TV of traces near `size_at`.
        faithfulness: faithfulness of each trace; empty without a target.
        refined_faithfulness: faithfulness of the further traces.
    """
    # by share, the index of the last trace that costs as much
    points = {max(share, SMALLEST_SIZE): i for i, share in enumerate(shares)}
    extra = {max(share, SMALLEST_SIZE): i for i, (share, _) in enumerate(refined)}
    extra = {share: i for share, i in extra.items() if share not in points}
    return Density(
        tuple(points), tuple(tv[i] for i in points.values()), tuple(extra), tuple(refined[i][1] for i in extra.values()), noise,
        tuple(faithfulness[i] for i in points.values() if faithfulness),
        tuple(refined_faithfulness[i] for i in extra.values() if refined_faithfulness),
    )  # fmt: skip


def check_eps(eps: float, name: str = "eps") -> float:
    """Check a total variation, and return it as a float.

    Raises:
        InputError: it is not a number strictly between 0 and 1.
    """
    is_number = isinstance(eps, int | float | numpy.number) and not isinstance(eps, bool)
    if not is_number or not 0 < eps < 1:
        raise InputError(f"{name} is a total variation strictly between 0 and 1; got {eps!r}")
    return float(eps)


def _with_ends(sizes: Sequence[float], tv: Sequence[float]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Extend or cut a curve to sizes in [1e-5, 1].

    TV is constant below the smallest size, and 0 at size 1 where that was not evaluated.
    """
    x, y = numpy.asarray(sizes, dtype=float), numpy.asarray(tv, dtype=float)
    if x[0] > SMALLEST_SIZE:
        x, y = numpy.append(SMALLEST_SIZE, x), numpy.append(y[0], y)
    if x[-1] < 1.0:
        # the full trace is the model
        x, y = numpy.append(x, 1.0), numpy.append(y, 0.0)
    if x[0] < SMALLEST_SIZE:
        start = numpy.interp(math.log10(SMALLEST_SIZE), numpy.log10(x), y)
        inside = x > SMALLEST_SIZE
        x, y = numpy.append(SMALLEST_SIZE, x[inside]), numpy.append(start, y[inside])
    return x, y
