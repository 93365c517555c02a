"""Checks of JSON from outside: each key must hold a value of a declared kind.

Numbers must fit 64 bits and be finite.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

# A sum of float32 shares may be above 1 by this much.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Kind:
    """Kind of value that a key may hold.

    Args:
        words: description for error messages.
        holds: function that checks a value.
    """

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_unicode(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number from 0 on", lambda value: type(value) is int and value >= 0)
NUMBER = Kind("a finite number", _is_number)
SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1 + ROUNDING)
TEXT = Kind("a string of valid Unicode", _is_unicode)
# A path may contain lone surrogates, by which Python represents bytes that are not UTF-8.
PATH = Kind("a string", lambda value: isinstance(value, str))
MAPPING = Kind("an object", lambda value: isinstance(value, dict))


def one_of(names: Mapping[str, Any]) -> Kind:
    """Kind of a value that is one of these names."""
    return Kind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def or_null(kind: Kind) -> Kind:
    """Kind of a value that is of another kind, or null."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


def list_of(kind: Kind) -> Kind:
    """Kind of a list of values of one kind."""
    return Kind(
        f"a list, each {kind.words}", lambda value: isinstance(value, list) and all(map(kind.holds, value))
    )


def mapping_of(kind: Kind) -> Kind:
    """Kind of an object whose values are of one kind."""
    return Kind(
        f"an object, each value {kind.words}",
        lambda value: isinstance(value, dict) and all(map(kind.holds, value.values())),
    )


def read_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: the text is not JSON, or holds a number beyond 64 bits, NaN or an infinity.
        RecursionError: the text is nested too deeply.
    """
    return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_no_number)


def check_keys(name: str, found: Any, kinds: Mapping[str, Kind], optional: bool = False) -> None:
    """Check that each key of an object has the kind of value that it must have.

    Other keys may hold anything.

    Args:
        name: name of the object, for error messages.
        found: the object.
        kinds: kind of each key.
        optional: whether keys may be missing.

    Raises:
        ValueError: the value is not an object, or a key is missing or holds a value of another
            kind.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be an object, got {reprlib.repr(found)}")
    for key, kind in kinds.items():
        if key not in found:
            if optional:
                continue
            raise ValueError(f"{name}.{key} is missing, expected {kind.words}")
        if not kind.holds(found[key]):
            raise ValueError(f"{name}.{key} must be {kind.words}, got {reprlib.repr(found[key])}")


def _integer(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"it holds the number {digits[:30]}, beyond 64 bits")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"it holds the number {digits[:30]}, beyond 64 bits")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not a number")
