"""Rows of a corpus that is in memory: texts, dicts or chats, and tables of other packages.

A table is recognised by its package, or by its columns. It is never iterated directly: iterating
over a pandas DataFrame or a dict gives its keys, which would be measured as texts.

What this file does not do: it never imports a package that the caller has not imported already.
"""

from __future__ import annotations

import datetime
import decimal
import io
import math
import uuid
from collections.abc import Iterable, Mapping, Set
from pathlib import PurePath
from typing import Any

import polars

from ..errors import ArgumentTypeError, InputError
from .corpus_files import Row, readable, row_of

_WANTED = (
    "a corpus must be a path, hf:NAME, a list of texts, dicts or chats, a frame of polars or pandas, a table of pyarrow or a "
    "datasets.Dataset"
)


def rows_in_memory(source: Any, text: str) -> list[Row]:
    """Return the rows of a corpus that is in memory.

    Args:
        source: the corpus.
        text: name of the column of texts. A single column without a name gets this name.

    Raises:
        ArgumentTypeError: the source does not hold texts, or has no order.
        InputError: a table cannot be read, or a set of splits is given for one.
    """
    kind = type(source).__name__
    if isinstance(source, polars.LazyFrame):
        with readable("the lazy frame of texts"):
            source = source.collect()
    if isinstance(source, polars.Series):
        with readable("the series of texts"):
            return _items(source.to_list())
    if isinstance(source, polars.DataFrame):
        with readable("the frame of texts"):
            return source.to_dicts()
    if isinstance(source, Mapping):
        raise _no_mapping(source)
    if _is_of("pandas", source):
        return _of_pandas(source, text)
    if hasattr(source, "to_pylist"):
        # a table, batch or column of pyarrow
        with readable(f"the {kind} of texts"):
            return _items(source.to_pylist())
    # any other table that follows Arrow's protocol: of DuckDB, ibis, cuDF ...
    if hasattr(source, "__arrow_c_stream__") and not _is_of("datasets", source):
        with readable(f"the {kind} of texts"):
            return polars.DataFrame(source).to_dicts()
    if hasattr(source, "columns"):
        raise ArgumentTypeError(f"{_WANTED}; got a table of type {kind}. Make one of these of it")
    if isinstance(source, Set):
        raise ArgumentTypeError(
            f"a corpus needs an order, and a {kind} has none; give a list (sorted(texts))"
        )
    if isinstance(source, io.IOBase):
        raise ArgumentTypeError(f"{_WANTED}; got an open file ({kind}). Give its path")
    # an array of numpy without any dimension looks iterable, and is not
    alone = getattr(source, "ndim", 1) == 0
    if isinstance(source, bytes | bytearray | memoryview) or alone or not isinstance(source, Iterable):
        raise ArgumentTypeError(f"{_WANTED}; got {str(source)[:60]} ({kind})")
    return _items(list(source))


def _items(items: list[Any]) -> list[Row]:
    items = [
        item.tolist() if hasattr(item, "tolist") and not isinstance(item, str) else item for item in items
    ]
    rows = []
    for number, item in enumerate(items, start=1):
        if isinstance(item, bytes):
            raise ArgumentTypeError(
                f"a corpus must be of texts, and item {number} is bytes; decode it (item.decode('utf-8'))"
            )
        try:
            rows.append(
                row_of(None if is_null(item) else item, f"the corpus must be of texts; item {number}")
            )
        except InputError as error:
            raise ArgumentTypeError(str(error)) from None
    return rows


def _no_mapping(source: Mapping[Any, Any]) -> ArgumentTypeError:
    """Make the error for a mapping, which is not a list of texts."""
    names = ", ".join(repr(key) for key in list(source)[:5])
    kind = type(source).__name__
    if any(hasattr(value, "column_names") for value in source.values()):
        return ArgumentTypeError(
            f"a corpus is one split of a data set, and this {kind} has the splits {names}; give one: "
            f"data[{next(iter(source))!r}]"
        )
    if "text" in source and isinstance(source["text"], str):
        return ArgumentTypeError(f"a corpus must be several rows, and this {kind} is one; give a list: [row]")
    return ArgumentTypeError(
        f"a corpus cannot be a {kind} (its keys are {names}); give a frame of its columns (polars.DataFrame(columns)), or "
        "a list of its texts (list(texts.values()))"
    )


def _is_of(package: str, value: Any) -> bool:
    """Whether a value's class, or a class that it derives from, is of a package."""
    return any(kind.__module__.split(".")[0] == package for kind in type(value).__mro__)


def _of_pandas(source: Any, text: str) -> list[Row]:
    """Return the rows of a frame or a series of pandas, with an index that has a name."""
    if not hasattr(source, "to_frame") and not hasattr(source, "iterrows"):
        raise ArgumentTypeError(f"{_WANTED}; got a {type(source).__name__} of pandas")
    frame = source
    if not hasattr(source, "iterrows"):
        # an index of texts has an index that is itself
        frame = (
            source.to_frame(name=text).reset_index(drop=True)
            if _is_index(source)
            else source.to_frame(name=text)
        )
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    if getattr(frame.columns, "nlevels", 1) > 1:
        raise InputError(
            "the frame of texts has columns of several levels; give it one level (frame.columns = ['id', 'text', ...])"
        )
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise InputError(f"the frame of texts has columns of the same name: {', '.join(names)}; rename them")
    columns = [frame.iloc[:, number].tolist() for number in range(len(names))]
    return [
        {name: None if is_null(value) else _of_numpy(value) for name, value in zip(names, row, strict=True)}
        for row in zip(*columns, strict=True)
    ]


def _is_index(source: Any) -> bool:
    return not hasattr(source, "index")


def _of_numpy(value: Any) -> Any:
    """Convert an array or number of numpy, or a time of pandas, to a plain Python value."""
    if hasattr(value, "to_pydatetime"):
        return value.to_pydatetime(warn=False)
    if hasattr(value, "tolist") and not isinstance(value, str):
        return value.tolist()
    return value


def is_null(value: Any) -> bool:
    """Whether a value marks a missing one: None, NaN, or pandas' NA or NaT."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in ("NAType", "NaTType")


def plain(value: Any) -> Any:
    """Convert a value to a JSON type: dates, paths and the like to texts, arrays to lists.

    Raises:
        TypeError: the value is of a type whose text may differ from one run to the next.
    """
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, decimal.Decimal | uuid.UUID | PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"got a value of type {type(value).__name__}")
