"""Radix selection against sorting, with ties, zeros and numbers that stand for nothing."""

from __future__ import annotations

import numpy
import pytest
import torch

from densitometer.graph.tiled.histogram import KeyHistogram

pytestmark = pytest.mark.fast


def chunks_of(numbers: numpy.ndarray, empty: int) -> list[torch.Tensor]:
    """Three tensors, of which the second holds minus infinity besides, which stands for nothing."""
    parts = numpy.array_split(numbers, 3)
    parts[1] = numpy.concatenate([numpy.full(empty, -numpy.inf, dtype=numpy.float32), parts[1]])
    return [torch.from_numpy(part) for part in parts]


def drawn(kind: str) -> numpy.ndarray:
    generator = numpy.random.default_rng(3)
    numbers = {
        "spread": numpy.exp(generator.normal(size=501) * 20 - 10),
        "close": 1 + generator.random(501) * 1e-5,
        "ties": generator.integers(0, 7, 501) / 7,
        "zeros": numpy.where(generator.random(501) < 0.4, 0, generator.random(501)),
        "one": numpy.array([0.25]),
        "same": numpy.full(13, 0.3),
        "signed zeros": generator.choice([0.0, -0.0, 0.5], 50),
        "tiny": generator.random(501) * 1e-40,
    }[kind]
    return numbers.astype(numpy.float32)


@pytest.mark.parametrize("kind", ["spread", "close", "ties", "zeros", "one", "same", "signed zeros", "tiny"])
@pytest.mark.parametrize("empty", [0, 17])
def test_ranks_and_counts_are_those_of_the_sorted_numbers(kind, empty):
    numbers = drawn(kind)
    chunks = chunks_of(numbers, empty)
    histogram = KeyHistogram()
    for part in chunks:
        histogram.add(part)
    assert histogram.finite
    assert histogram.total == len(numbers)
    falling = sorted((float(x) for x in numbers), reverse=True)
    values = sorted({*falling[::7], 0.0, -1.0, falling[0] / 3, falling[-1] * 1.0001, falling[0]})
    ranks = [0, len(falling) // 3, len(falling) // 2, len(falling) - 1]
    for rank in ranks:
        histogram.refine(histogram.missing(histogram.bins_for_rank(rank)), chunks)
        assert histogram.ranked(rank) == falling[rank]
        assert histogram.above(falling[rank]) == sum(x > falling[rank] for x in falling)
    histogram.refine(histogram.missing({b for v in values for b in histogram.bins_for_value(v)}), chunks)
    assert histogram.missing({b for v in values for b in histogram.bins_for_value(v)}) == []
    for value in values:
        above = [x for x in falling if x > value]
        assert histogram.above(value) == len(above)
        assert histogram.next_above(value) == (above[-1] if above else None)


def test_a_rank_beyond_the_last_is_told_by_the_least():
    histogram, chunks = KeyHistogram(), [torch.tensor([0.5, 0.0, 0.25])]
    histogram.add(chunks[0])
    histogram.refine(histogram.missing(histogram.bins_for_rank(3)), chunks)
    assert histogram.next_above(-1.0) == 0.0
    assert histogram.above(-1.0) == 3


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -float("nan")])
def test_numbers_that_are_none_are_seen(bad):
    histogram = KeyHistogram()
    histogram.add(torch.tensor([0.5, 2.0]))
    assert histogram.finite
    histogram.add(torch.tensor([0.5, bad]))
    assert not histogram.finite


def test_another_second_pass_is_refused():
    histogram = KeyHistogram()
    histogram.add(torch.tensor([0.5, 0.25]))
    with pytest.raises(AssertionError, match="other numbers"):
        histogram.refine(sorted(histogram.bins_for_rank(0)), [torch.tensor([0.5, 0.5, 0.25])])
