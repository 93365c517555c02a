"""The n-th largest of more numbers than fit in memory, exactly: radix selection on the bits of float32.

The bits of a non-negative float32, read as an integer, rise with the number. One pass over the numbers counts them by
their high 16 bits; a second counts, by their low 16 bits, those in the few high bins that hold a rank that is asked for.
Counts are int64; ties and zeros are numbers like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

N_HIGH, N_LOW = 2**15, 2**16  # the sign bit of a non-negative number is 0


class KeyHistogram:
    """Counts of non-negative float32 numbers, which give ranks and thresholds.

    Numbers are given as tensors of any shape. Where a tensor holds zeros that stand for nothing, their number comes with
    it and they are not counted.
    """

    def __init__(self) -> None:
        self._high = numpy.zeros(N_HIGH, dtype=numpy.int64)
        self._low: dict[int, numpy.ndarray] = {}

    def add(self, numbers: Tensor, empty: int = 0) -> None:
        """Count numbers in a first pass. `empty` of the zeros stand for nothing."""
        bits = (numbers.view(torch.int32).flatten() >> 16) & (
            N_HIGH - 1
        )  # without the sign, which a NaN may have
        self._high += torch.bincount(bits, minlength=N_HIGH).cpu().numpy()
        self._high[0] -= empty

    @property
    def total(self) -> int:
        return int(self._high.sum())

    @property
    def finite(self) -> bool:
        """Whether no number was infinite or NaN."""
        return not self._high[_bits(numpy.inf) >> 16 :].any()

    @property
    def steps(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Exact steps of the distribution, at the ends of the high bins that hold anything.

        Returns:
            Values (n,) float32, falling. The last one is -1, below all numbers.
            How many numbers are larger than each value, (n,) int64.
        """
        filled = numpy.flatnonzero(self._high)[::-1].astype(numpy.int64)
        below = filled * N_LOW - 1  # the bits of the largest number under each bin
        values = below.clip(min=0).astype(numpy.int32).view(numpy.float32)
        return numpy.where(below < 0, numpy.float32(-1), values), self._high[filled].cumsum()

    def bins_for_rank(self, rank: int) -> set[int]:
        """High bins that must be refined before `ranked(rank)` is known.

        So are `above` and `next_above` of that number.
        """
        return self._with_next(self._bin_of_rank(rank)) if rank < self.total else self.bins_for_value(-1.0)

    def bins_for_value(self, value: float) -> set[int]:
        """High bins to refine before `above(value)` and `next_above(value)` are known."""
        return self._with_next(_bits(value) >> 16 if value >= 0 else -1)

    def _with_next(self, high: int) -> set[int]:
        higher = high + 1 + numpy.flatnonzero(self._high[high + 1 :])
        return {b for b in (high, *higher[:1].tolist()) if b >= 0}

    def missing(self, bins: Iterable[int]) -> list[int]:
        """Bins that were not refined yet and hold anything."""
        return sorted(b for b in set(bins) - self._low.keys() if self._high[b])

    def refine(self, bins: Sequence[int], passes: Iterable[tuple[Tensor, int]]) -> None:
        """Count some high bins finely, in a second pass over the same tensors."""
        if not bins:
            return
        slots: Tensor | None = None
        counts = numpy.zeros(len(bins) * N_LOW, dtype=numpy.int64)
        for numbers, empty in passes:
            bits = numbers.view(torch.int32).flatten()
            if slots is None:
                slots = torch.full((N_HIGH,), -1, dtype=torch.int32, device=bits.device)
                slots[list(bins)] = torch.arange(len(bins), dtype=torch.int32, device=bits.device)
            slot = slots.take((bits >> 16).long())
            chosen = (slot >= 0).nonzero()[:, 0]
            index = slot[chosen] * N_LOW + (bits[chosen] & (N_LOW - 1))
            found, number = index.unique(return_counts=True)
            counts[found.cpu().numpy()] += number.cpu().numpy()
            if 0 in bins:
                counts[list(bins).index(0) * N_LOW] -= empty
        for high, low in zip(bins, counts.reshape(len(bins), N_LOW), strict=True):
            assert low.sum() == self._high[high], "the second pass saw other numbers than the first"
            self._low[high] = low

    def ranked(self, rank: int) -> float:
        """Return the number of a rank. Rank 0 is the largest number."""
        high = self._bin_of_rank(rank)
        before = int(self._high[high + 1 :].sum())
        falling = numpy.cumsum(self._low[high][::-1])
        return _value(high, N_LOW - 1 - int(numpy.searchsorted(falling, rank - before, side="right")))

    def above(self, value: float) -> int:
        """Number of counted numbers that are larger than a value."""
        if value < 0:
            return self.total
        high, low = divmod(_bits(value), N_LOW)
        inside = self._low[high][low + 1 :].sum() if self._high[high] else 0
        return int(self._high[high + 1 :].sum() + inside)

    def next_above(self, value: float) -> float | None:
        """Return the smallest number that is larger than a value.

        None where there is no such number.
        """
        high, low = divmod(_bits(value), N_LOW) if value >= 0 else (-1, 0)
        if high >= 0 and self._high[high]:
            inside = numpy.flatnonzero(self._low[high][low + 1 :])
            if inside.size:
                return _value(high, low + 1 + int(inside[0]))
        filled = numpy.flatnonzero(self._high[high + 1 :])
        if not filled.size:
            return None
        higher = high + 1 + int(filled[0])
        return _value(higher, int(numpy.flatnonzero(self._low[higher])[0]))

    def _bin_of_rank(self, rank: int) -> int:
        falling = numpy.cumsum(self._high[::-1])
        return N_HIGH - 1 - int(numpy.searchsorted(falling, rank, side="right"))


def _bits(value: float) -> int:
    """Bit pattern of the largest float32 that is <= value."""
    number = numpy.float32(value)
    if float(number) > value:
        number = numpy.nextafter(number, numpy.float32(-1))
    return int(number.view(numpy.int32))


def _value(high: int, low: int) -> float:
    return float(numpy.int32(high * N_LOW + low).view(numpy.float32))
