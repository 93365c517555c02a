"""Exact ranks among more float32 numbers than fit in memory, by radix selection on their bits.

The bits of a non-negative float32, read as an integer, rise with the number. One pass over the
numbers counts them by their high 16 bits, in 2^15 *high bins*. A second pass takes the few high
bins that hold a wanted rank, and counts the numbers in them by their low 16 bits. Counts are int64.
Ties and zeros are counted like other numbers. Minus infinity marks a missing number and is not
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

# Bins by high and by low bits. The sign bit of a non-negative number is 0, so 15 high bits are
# left.
N_HIGH, N_LOW = 2**15, 2**16
# High bits, with the sign, of -0.0 and of minus infinity.
_MINUS_ZERO, _NOTHING = 0x8000, 0xFF80


class KeyHistogram:
    """Counts of non-negative float32 numbers, which give ranks and thresholds.

    Numbers are added as tensors of any shape.
    """

    def __init__(self) -> None:
        # counts by high bits, and for each refined high bin, counts (N_LOW,) by low bits
        self._high = numpy.zeros(N_HIGH, dtype=numpy.int64)
        self._low: dict[int, numpy.ndarray] = {}
        # whether a number with a sign, which only a NaN may have, was added
        self._signed = False

    def add(self, numbers: Tensor) -> None:
        """Count numbers by their high bits, in a first pass.

        Args:
            numbers: float32, of any shape, non-negative or minus infinity.
        """
        counts = torch.bincount(_high_bits(numbers), minlength=2 * N_HIGH).cpu().numpy()
        self._high += counts[:N_HIGH]
        self._high[0] += counts[_MINUS_ZERO]
        counts[[_MINUS_ZERO, _NOTHING]] = 0
        self._signed |= bool(counts[N_HIGH:].any())

    @property
    def total(self) -> int:
        """Number of counted numbers."""
        return int(self._high.sum())

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite."""
        # the bits of infinity and of every NaN are above those of all finite numbers
        return not self._signed and not self._high[_bits(numpy.inf) >> 16 :].any()

    @property
    def steps(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Values just below each high bin that holds numbers, with the exact counts above them.

        Returns:
            Values (n,) float32, falling. The last one is -1 where the lowest bin holds numbers.
            How many numbers are larger than each value, (n,) int64.
        """
        filled = numpy.flatnonzero(self._high)[::-1].astype(numpy.int64)
        # the bits of the largest number under each bin; -1 under bin 0
        below = filled * N_LOW - 1
        values = below.clip(min=0).astype(numpy.int32).view(numpy.float32)
        return numpy.where(below < 0, numpy.float32(-1), values), self._high[filled].cumsum()

    def bins_for_rank(self, rank: int) -> set[int]:
        """Return the high bins to refine so that `ranked(rank)`, and counts near it, are exact."""
        return self._with_next(self.bin_of_rank(rank)) if rank < self.total else self.bins_for_value(-1.0)

    def bins_for_value(self, value: float) -> set[int]:
        """Return the high bins to refine so that `above(value)`, `next_above(value)` are exact."""
        return self._with_next(_bits(value) >> 16 if value >= 0 else -1)

    def _with_next(self, high: int) -> set[int]:
        """Return a high bin (-1 for none) and the next higher one that holds numbers."""
        higher = high + 1 + numpy.flatnonzero(self._high[high + 1 :])
        return {b for b in (high, *higher[:1].tolist()) if b >= 0}

    def missing(self, bins: Iterable[int]) -> list[int]:
        """High bins among these that hold numbers and are not refined yet."""
        return sorted(b for b in set(bins) - self._low.keys() if self._high[b])

    def refine(self, bins: Sequence[int], passes: Iterable[Tensor]) -> None:
        """Count the numbers of some high bins by their low 16 bits, in a second pass over them all.

        Args:
            bins: the high bins, none of which was refined before.
            passes: the same tensors that `add` was called with in the first pass.
        """
        if not bins:
            return
        # (2 N_HIGH,), the place of each high bin among the chosen ones, -1 for all others. It is
        # made on the device of the first tensor.
        slots: Tensor | None = None
        counts = numpy.zeros(len(bins) * N_LOW, dtype=numpy.int64)
        for numbers in passes:
            bits = numbers.view(torch.int32).flatten()
            if slots is None:
                slots = torch.full((2 * N_HIGH,), -1, dtype=torch.int32, device=bits.device)
                slots[list(bins)] = torch.arange(len(bins), dtype=torch.int32, device=bits.device)
                if 0 in bins:
                    slots[_MINUS_ZERO] = slots[0]
            slot = slots.take(_high_bits(numbers).long())
            chosen = (slot >= 0).nonzero()[:, 0]
            index = slot[chosen] * N_LOW + (bits[chosen] & (N_LOW - 1))
            # few of the many fine bins are hit by one tensor, so only those are copied to the CPU
            hit, number = index.unique(return_counts=True)
            counts[hit.cpu().numpy()] += number.cpu().numpy()
        for high, low in zip(bins, counts.reshape(len(bins), N_LOW), strict=True):
            assert low.sum() == self._high[high], "the second pass saw other numbers than the first"
            self._low[high] = low

    def ranked(self, rank: int) -> float:
        """Return the number that has a rank. Rank 0 is the largest number."""
        high = self.bin_of_rank(rank)
        # numbers in higher bins, which come before; then counts within the bin from its top
        before = int(self._high[high + 1 :].sum())
        falling = numpy.cumsum(self._low[high][::-1])
        return _value(high, N_LOW - 1 - int(numpy.searchsorted(falling, rank - before, side="right")))

    def above(self, value: float) -> int:
        """Count the numbers that are larger than a value."""
        if value < 0:
            return self.total
        high, low = divmod(_bits(value), N_LOW)
        inside = self._low[high][low + 1 :].sum() if self._high[high] else 0
        return int(self._high[high + 1 :].sum() + inside)

    def next_above(self, value: float) -> float | None:
        """Return the smallest counted number that is larger than a value, or None."""
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

    def bin_of_rank(self, rank: int) -> int:
        """High bin that holds the number of a rank, which `ranked(rank)` needs to be refined."""
        falling = numpy.cumsum(self._high[::-1])
        return N_HIGH - 1 - int(numpy.searchsorted(falling, rank, side="right"))


def _high_bits(numbers: Tensor) -> Tensor:
    """High bits of each number of a tensor, with the sign as the highest, (n,) int32."""
    return (numbers.view(torch.int32).flatten() >> 16) & (2 * N_HIGH - 1)


def _bits(value: float) -> int:
    """Bit pattern of the largest float32 that is <= value."""
    # adding 0 turns -0.0 into 0.0
    number = numpy.float32(value) + numpy.float32(0)
    if float(number) > value:
        number = numpy.nextafter(number, numpy.float32(-1))
    return int(number.view(numpy.int32))


def _value(high: int, low: int) -> float:
    """The float32 with these high and low bits."""
    return float(numpy.int32(high * N_LOW + low).view(numpy.float32))
