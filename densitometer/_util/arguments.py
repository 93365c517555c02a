"""Checks of arguments. Each returns the value as plain Python, or raises an error that names it."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy

from ..errors import ArgumentTypeError, InputError


def only_one(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one argument that is not None, by its name.

    Raises:
        InputError: no argument or more than one is not None.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise InputError(f"give exactly one of {', '.join(given)}; got {', '.join(named) or 'none'}")
    return named


def checked_number(name: str, value: Any) -> float:
    """Return a number as a float, or raise ArgumentTypeError, or InputError for NaN."""
    if isinstance(value, bool | numpy.bool_) or not isinstance(value, int | float | numpy.number):
        raise ArgumentTypeError(f"{name} must be a number, got {value!r}")
    if math.isnan(value):
        raise InputError(f"{name} must be a number, got NaN")
    return float(value)


def checked_share(name: str, value: Any) -> float:
    """Return a number from 0 to 1, or raise InputError."""
    number = checked_number(name, value)
    if not 0 <= number <= 1:
        raise InputError(f"{name} must be a share from 0 to 1, got {value!r}")
    return number


def checked_count(n_edges: Any, most: int) -> int:
    """Return a number of edges that is at most the number in the graph, or raise InputError."""
    count = checked_integer("n_edges", n_edges)
    if not 0 <= count <= most:
        raise InputError(f"n_edges must be from 0 to {most}, the edges of this graph; got {n_edges}")
    return count


def checked_integer(name: str, value: Any) -> int:
    """Return an integer of Python or numpy as an int, or raise ArgumentTypeError."""
    if not isinstance(value, bool | numpy.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ArgumentTypeError(f"{name} must be an integer, got {value!r}")


def checked_seed(seed: Any) -> int:
    """Return a seed that every random generator accepts, or raise InputError."""
    number = checked_integer("seed", seed)
    if not 0 <= number < 2**63:
        raise InputError(f"seed must be from 0 to 2^63 - 1, got {seed!r}")
    return number


def checked_list(name: str, values: Any) -> list[Any]:
    """Return an iterable's values as a list, or raise ArgumentTypeError. A string is refused."""
    if not isinstance(values, str):
        try:
            return list(values)
        except TypeError:
            pass
    raise ArgumentTypeError(f"{name} must be a list, got {values!r}")


def checked_name(what: str, name: Any, function: Any) -> None:
    """Check the name and the function of something to register, or raise ArgumentTypeError."""
    if not isinstance(name, str) or not name:
        raise ArgumentTypeError(f"the name of {what} must be a string that is not empty, got {name!r}")
    if not callable(function):
        raise ArgumentTypeError(f"{what} {name!r} must be a function, got {type(function).__name__}")
