"""Areas against closed forms and a fine sum; size_at and its refinement."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densitometer import DensitometerError, Density
from densitometer.measuring.bisection import goal_of, narrow, size_of
from densitometer.measuring.density import DEFAULT_SIZES, density_of

pytestmark = pytest.mark.fast


def test_default_sizes_are_those_of_the_paper():
    thousandths = [0.01, 0.02, 0.04, 0.08, 0.1, 0.2, 0.4, 0.8, 1, 1.2, 1.4, 2, 3, 4, 6, 8, 10, 20, 40, 60, 80]
    thousandths += [100, 200, 400, 600, 800, 1000]
    assert [1000 * size for size in DEFAULT_SIZES] == pytest.approx(thousandths, rel=1e-12)
    assert len(DEFAULT_SIZES) == 27
    assert list(DEFAULT_SIZES) == sorted(DEFAULT_SIZES)
    assert (DEFAULT_SIZES[0], DEFAULT_SIZES[-1]) == (1e-5, 1.0)


def test_areas_of_a_constant_and_of_a_straight_line():
    flat = Density((1e-5, 0.01, 1.0), (0.7, 0.7, 0.7))
    assert flat.auc_log == pytest.approx(0.7)
    assert flat.auc_linear == pytest.approx(0.7)
    line = Density((1e-5, 1.0), (1.0, 0.0))  # TV = -log10(s) / 5
    assert line.auc_log == pytest.approx(0.5)
    assert line.auc_linear == pytest.approx(1 / (5 * math.log(10)), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=27, max_size=27))
def test_areas_against_a_fine_sum(tv):
    density = Density(DEFAULT_SIZES, tuple(tv))
    x = numpy.linspace(-5, 0, 200_001)
    y = numpy.interp(x, numpy.log10(DEFAULT_SIZES), tv)
    assert density.auc_log == pytest.approx(numpy.trapezoid(y, x) / 5, abs=1e-4)
    assert density.auc_linear == pytest.approx(numpy.trapezoid(y, 10**x) + 1e-5 * tv[0], abs=1e-4)


def test_sizes_that_do_not_span_the_axis():
    density = Density((0.1, 0.5), (0.4, 0.2))
    x = numpy.linspace(-5, 0, 200_001)
    y = numpy.interp(x, [-5, -1, math.log10(0.5), 0], [0.4, 0.4, 0.2, 0.0])
    assert density.auc_log == pytest.approx(numpy.trapezoid(y, x) / 5, abs=1e-4)
    finer = Density((1e-7, 1.0), (0.7, 0.0))
    assert finer.auc_log == pytest.approx(0.5 * 0.7 * 5 / 7, abs=1e-6)


def test_size_at_is_where_it_stays_below():
    density = Density((0.01, 0.1, 0.2, 0.5, 1.0), (0.05, 0.3, 0.08, 0.02, 0.0))
    assert density.size_at(0.1) == 0.2
    assert density.size_at(0.1, first_crossing=True) == 0.01
    assert density.bracket(0.1) == (0.1, 0.2)
    assert density.size_at(0.5) == 0.01
    assert density.bracket(0.5) == (0.0, 0.01)
    assert Density((0.1, 1.0), (0.9, 0.4)).size_at(0.1) is None


def test_size_at_is_at_a_tenth_and_for_good_unless_asked_otherwise():
    density = Density((0.02, 0.1, 0.3, 0.6, 1.0), (0.05, 0.4, 0.15, 0.1, 0.0))
    assert density.size_at() == density.size_at(0.1, first_crossing=False) == 0.6
    assert density.bracket() == (0.3, 0.6)
    assert density.bracket(first_crossing=True) == (0.0, 0.02)
    assert density.size_at(0.15) == 0.3


def test_refined_points_place_the_crossing_and_are_no_part_of_the_areas():
    coarse = Density((0.02, 0.1, 1.0), (0.9, 0.5, 0.0))
    fine = Density((0.02, 0.1, 1.0), (0.9, 0.5, 0.0), (0.4, 0.2), (0.05, 0.3))
    assert (coarse.bracket(0.1), fine.bracket(0.1)) == ((0.1, 1.0), (0.2, 0.4))
    assert (fine.auc_log, fine.auc_linear) == (coarse.auc_log, coarse.auc_linear)


def test_of_traces_of_one_cost_the_last_counts_and_none_costs_less_than_where_the_areas_begin():
    got = density_of(
        [0.0, 1e-7, 0.2, 0.2, 0.7], [0.9, 0.8, 0.5, 0.4, 0.0], [(0.2, 0.1), (0.3, 0.3), (0.3, 0.25)]
    )
    assert got == Density((1e-5, 0.2, 0.7), (0.8, 0.4, 0.0), (0.3,), (0.25,))
    assert density_of([0.2, 1.0], [0.5, 0.0]) == Density((0.2, 1.0), (0.5, 0.0))


@st.composite
def curves(draw):
    """A curve from 1e-5 to 1, and another that nowhere lies below it."""
    inner = draw(st.lists(st.floats(-4.9, -0.01), max_size=6, unique_by=lambda x: round(x, 2)))
    sizes = (1e-5, *(10**x for x in sorted(inner)), 1.0)
    tv = draw(st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes)))
    more = draw(st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes)))
    return sizes, tuple(tv), tuple(max(a, b) for a, b in zip(tv, more, strict=True))


@settings(max_examples=80, deadline=None)
@given(curves())
def test_areas_lie_between_the_sums_of_the_smaller_and_of_the_larger_ends(curve):
    sizes, tv, _ = curve
    density = Density(sizes, tv)
    pairs = list(zip(sizes, sizes[1:], tv, tv[1:], strict=False))
    for area, widths, start in (
        (density.auc_linear, [b - a for a, b, _, _ in pairs], 1e-5 * tv[0]),
        (density.auc_log, [math.log10(b / a) / 5 for a, b, _, _ in pairs], 0.0),
    ):
        ends = [(min(u, v), max(u, v)) for _, _, u, v in pairs]
        least = start + math.fsum(w * low for w, (low, _) in zip(widths, ends, strict=True))
        most = start + math.fsum(w * high for w, (_, high) in zip(widths, ends, strict=True))
        assert least - 1e-9 <= area <= most + 1e-9
        assert -1e-9 <= area <= 1 + 1e-9


@settings(max_examples=80, deadline=None)
@given(curves(), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_curve_that_is_nowhere_lower_has_no_smaller_density(curve, eps, other):
    sizes, tv, above = curve
    low, high = Density(sizes, tv), Density(sizes, above)
    assert low.auc_log <= high.auc_log + 1e-9
    assert low.auc_linear <= high.auc_linear + 1e-9
    never = math.inf
    for first in (False, True):
        small, large = (d.size_at(eps, first) or never for d in (low, high))
        assert small <= large
        strict, lax = (low.size_at(e, first) or never for e in (min(eps, other), max(eps, other)))
        assert lax <= strict
    assert (low.size_at(eps, True) or never) <= (low.size_at(eps) or never)
    if (bracket := low.bracket(eps)) is not None:
        below, size = bracket
        assert all(value <= eps for s, value in zip(sizes, tv, strict=True) if s >= size)
        assert below == 0 or tv[sizes.index(below)] > eps


@pytest.mark.parametrize("eps", [0, 1, -0.1, 1.5, float("nan"), True, "0.1"])
def test_eps_outside_the_open_interval_is_refused(eps):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Density((0.1, 1.0), (0.9, 0.0)).size_at(eps)
    assert issubclass(ValueError, Exception)
    assert issubclass(DensitometerError, Exception)


@pytest.mark.parametrize("crossing", [1, 2, 31_700, 999_999])
def test_narrowing_finds_the_crossing_to_five_percent(crossing):
    asked = []

    def evaluate(counts):
        asked.extend(counts)
        return [0.8 if count < crossing else 0.01 for count in counts]

    values = {0: 0.8, 1_000_000: 0.0}
    narrow(values, goal_of("tv", 0.1), evaluate)
    found = min(count for count, tv in values.items() if tv <= 0.1)
    below = max(count for count, tv in values.items() if tv > 0.1)
    assert below < crossing <= found
    assert found <= max(1.05 * below, below + 1)
    assert len(asked) == len(set(asked)) <= 30


def test_narrowing_where_the_goal_holds_twice():
    def evaluate(counts):
        return [0.01 if 40 <= count < 60 or count >= 700 else 0.8 for count in counts]

    grid = [1, 10, 50, 100, 1000]
    last = dict(zip(grid, evaluate(grid), strict=True))
    first = dict(last)
    narrow(last, goal_of("tv", 0.1), evaluate)
    narrow(first, goal_of("tv", 0.1), evaluate, first_crossing=True)
    assert min(c for c in last if c >= 700) <= 700 * 1.05
    assert 40 <= min(c for c, tv in first.items() if tv <= 0.1) <= 42
    never = {1: 0.8, 10: 0.5}
    narrow(never, goal_of("tv", 0.1), evaluate)
    assert never == {1: 0.8, 10: 0.5}


@pytest.mark.parametrize(
    ("metric", "goal"), [("kl", 0), ("kl", "x"), ("top1", False), ("nucleus", 33), ("tv", 1.0)]
)
def test_impossible_goals_are_refused(metric, goal):
    with pytest.raises(ValueError, match=metric if metric != "tv" else "between"):
        goal_of(metric, goal)


@given(st.integers(1, 10**7), st.data())
def test_a_size_stands_for_its_number_of_edges(n_edges, data):
    count = data.draw(st.integers(0, n_edges))
    assert math.floor(size_of(count, n_edges) * n_edges) == count


def test_a_tv_that_is_no_number_does_not_hold():
    density = Density((0.1, 0.3, 1.0), (math.nan, 0.05, 0.0))
    assert density.bracket(0.1) == (0.1, 0.3)
