"""Areas against closed forms and a fine sum; size_at and its refinement."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densitometer import DensitometerError, Density
from densitometer.density import DEFAULT_SIZES
from densitometer.measurement import refine, size_of


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


def test_refinement_finds_the_crossing_to_five_percent():
    asked = []

    def tv(size):
        asked.append(size)
        return 0.8 if size < 0.0317 else 0.01

    coarse = Density((0.001, 0.02, 0.08, 1.0), (0.8, 0.8, 0.01, 0.0))
    fine = refine(coarse, 0.1, tv, 10**6)
    low, high = fine.bracket(0.1)
    assert low < 0.0317 <= high
    assert high / low <= 1.05
    assert len(asked) == len(fine.refined_sizes) <= 6
    assert fine.auc_log == coarse.auc_log


def test_refinement_stops_at_one_edge():
    coarse = Density((0.1, 0.4, 1.0), (0.8, 0.01, 0.0))
    fine = refine(coarse, 0.1, lambda size: 0.8 if size < 0.3 else 0.01, 10)
    low, high = fine.bracket(0.1)
    assert int(high * 10) - int(low * 10) <= 1


@given(st.integers(1, 10**7), st.data())
def test_a_size_stands_for_its_number_of_edges(n_edges, data):
    count = data.draw(st.integers(0, n_edges))
    assert math.floor(size_of(count, n_edges) * n_edges) == count
