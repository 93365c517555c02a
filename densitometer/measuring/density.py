"""Density of a curve (size, total variation): arrays in, numbers out.

    auc_linear   area under TV over size in [0, 1]                          (arXiv 2601.22795)
    auc_log      area under TV over log10 size in [1e-5, 1], divided by 5   (arXiv 2605.27033)
    size_at(e)   the smallest size from which TV stays <= e at every larger size evaluated

Between sizes TV is interpolated linearly in log10 size, for both areas (the linear one is then integrated exactly);
below the smallest size evaluated it is taken to be constant, and at size 1 to be what was measured there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from .._util.digits import percent
from .._util.notebook_table import Described
from ..errors import InputError

# arXiv 2605.27033, as in method.md section 6.
DEFAULT_SIZES = (
    1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1e-3, 1.2e-3, 1.4e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3, 1e-2, 2e-2,
    4e-2, 6e-2, 8e-2, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0,
)  # fmt: skip
SMALLEST_SIZE = 1e-5


@dataclass(frozen=True)
class Density(Described):
    """How dense a computation is, under three definitions.

    Args:
        sizes, tv: the curve that was asked for, sizes rising. Sizes are shares of the full trace's edges, or of its
            operations or parameters.
        refined_sizes, refined_tv: further points, evaluated to place `size_at` more finely; no part of the areas.
        noise: what rounding alone does to the TV of traces near `size_at`; `bracket` is as wide as it makes it.

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

    @property
    def auc_log(self) -> float:
        """Area under TV over log10 size in [1e-5, 1], divided by 5: in [0, 1]."""
        sizes, tv = _with_ends(self.sizes, self.tv)
        return float(numpy.trapezoid(tv, numpy.log10(sizes)) / -math.log10(SMALLEST_SIZE))

    @property
    def auc_linear(self) -> float:
        """Area under TV over size in [0, 1]: in [0, 1]."""
        sizes, tv = _with_ends(self.sizes, self.tv)
        steps, rise = numpy.diff(sizes), numpy.diff(tv)
        # the mean of log-linear interpolation over [a, b] is tv_b - rise (1 / log(b/a) - a / (b - a))
        ratio = numpy.log(sizes[1:] / sizes[:-1])
        inner = steps * (tv[1:] - rise * (1 / ratio - sizes[:-1] / steps))
        return float(sizes[0] * tv[0] + inner.sum())

    def size_at(self, eps: float = 0.1, first_crossing: bool = False) -> float | None:
        """The smallest size from which TV stays <= eps at every larger size evaluated.

        Args:
            eps: total variation, in (0, 1).
            first_crossing: the smallest size with TV <= eps instead, whatever comes later.

        Returns:
            The size, or None where it never holds.
        """
        bracket = self._bracket(check_eps(eps), first_crossing)
        return None if bracket is None else bracket[1]

    def bracket(self, eps: float = 0.1, first_crossing: bool = False) -> tuple[float, float] | None:
        """Return the two sizes that `size_at` lies between.

        They are the largest size evaluated below it, and `size_at` itself.

        The lower size is 0 where no smaller size was evaluated. The bracket is wider where rounding
        could place `size_at` elsewhere, as TV comes within `noise` of eps. None where TV never
        holds.
        """
        eps = check_eps(eps)
        found = self._bracket(eps, first_crossing)
        if found is None or not self.noise:
            return found
        lower = self._bracket(eps + self.noise, first_crossing)
        upper = self._bracket(eps - self.noise, first_crossing)
        assert lower is not None  # what holds at eps holds above it
        return lower[0], 1.0 if upper is None else upper[1]

    def _bracket(self, eps: float, first_crossing: bool) -> tuple[float, float] | None:
        points = sorted(zip(self.sizes + self.refined_sizes, self.tv + self.refined_tv, strict=True))
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
        }

    def __repr__(self) -> str:
        held = f"TV <= 0.1 from {percent(self.size_at(0.1))} of the edges"
        return f"Density({held}, auc_log {self.auc_log:z.3f}, auc_linear {self.auc_linear:z.3f}, {len(self.sizes)} sizes)"


def empty_sizes(n_edges: int) -> tuple[float, ...]:
    """Sizes at which the empty trace stands on the axis of a density, rising.

    Every size below one edge gives the empty trace. So its TV holds from the smallest size of the
    areas to just below one edge.

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
) -> Density:
    """The density of traces of rising cost, which may be the same for several: the last of them counts.

    Shares below 1e-5 count as 1e-5, where the areas begin.
    """
    points = {max(share, SMALLEST_SIZE): value for share, value in zip(shares, tv, strict=True)}
    extra = {max(share, SMALLEST_SIZE): value for share, value in refined}
    extra = {share: value for share, value in extra.items() if share not in points}
    return Density(tuple(points), tuple(points.values()), tuple(extra), tuple(extra.values()), noise)


def check_eps(eps: float, name: str = "eps") -> float:
    """Return eps, or raise InputError unless 0 < eps < 1."""
    is_number = isinstance(eps, int | float | numpy.number) and not isinstance(eps, bool)
    if not is_number or not 0 < eps < 1:
        raise InputError(f"{name} is a total variation strictly between 0 and 1; got {eps!r}")
    return float(eps)


def _with_ends(sizes: Sequence[float], tv: Sequence[float]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The curve on [1e-5, 1]: constant below the smallest size, and 0 at size 1 where that was not evaluated."""
    x, y = numpy.asarray(sizes, dtype=float), numpy.asarray(tv, dtype=float)
    if x[0] > SMALLEST_SIZE:
        x, y = numpy.append(SMALLEST_SIZE, x), numpy.append(y[0], y)
    if x[-1] < 1.0:
        x, y = numpy.append(x, 1.0), numpy.append(y, 0.0)  # the full trace is the model
    if x[0] < SMALLEST_SIZE:
        start = numpy.interp(math.log10(SMALLEST_SIZE), numpy.log10(x), y)
        inside = x > SMALLEST_SIZE
        x, y = numpy.append(SMALLEST_SIZE, x[inside]), numpy.append(start, y[inside])
    return x, y
