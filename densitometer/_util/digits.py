"""Numbers as text: shares in per cent, significant digits without an exponent, no negative zero."""

from __future__ import annotations


def significant(value: float, digits: int) -> str:
    """Format a number with some significant digits.

    Rounding to one more place before the point than there are digits gives 100, not 1e+02. Only
    numbers from a million on and below 0.0001 have an exponent. Zero has no sign.
    """
    return f"{float(f'{value:.{digits}g}'):zg}"


def percent(share: float | None, digits: int = 3) -> str:
    """Format a share in per cent with some significant digits. "never" for None."""
    return "never" if share is None else f"{significant(100 * share, digits)} %"
