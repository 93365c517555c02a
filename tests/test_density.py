"""Areas against closed forms and a fine sum; size_at and its refinement."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densitometer import DensitometerError, Density
from densitometer.bracket import goal_of, narrow, size_of
from densitometer.density import DEFAULT_SIZES


def test_default_sizes_are_those_of_the_paper():
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
