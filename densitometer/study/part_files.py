"""Parts: the files of a study's results, what a row of them holds, and which of them count.

    parts/MODEL/START-END-DIGEST.parquet    the results of the cells START to END - 1 of a model

Its rows are measurements (a row per piece of text and importance); the curve, the component shares, the states and the trace of
each are columns that hold lists, which cost nothing to those who do not read them. DIGEST is of the file's content. Where two
parts cover the same cell, the one that begins first (then: reaches farthest) counts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars

from .._util.files import write_file
from ..errors import StorageError
from ..measuring.columns import CURVE_TYPES

# A curve's columns, `refined` (whether a row placed `size_at`) after those that say which run it is, and what is kept beyond.
CURVE: dict[str, Any] = {
    "importance": CURVE_TYPES["importance"], "kind": CURVE_TYPES["kind"], "refined": polars.Boolean, **CURVE_TYPES,
    "unigram_correlation": polars.Float64, "top_ids": polars.List(polars.Int32),
    "top_probabilities": polars.List(polars.Float32),
}  # fmt: skip
COMPONENTS: dict[str, Any] = {
    "size": polars.Float64, "kind": polars.String, "layer": polars.Int32, "head": polars.Int32, "n_edges": polars.Int64,
    "total": polars.Int64,
}  # fmt: skip
TRACE: dict[str, Any] = {
    "kind": polars.String, "layer": polars.Int32, "head": polars.Int32, "source": polars.Int32, "target": polars.Int32,
    "edge_importance": polars.Float32,
}  # fmt: skip
MEASUREMENTS: dict[str, Any] = {
    "cell": polars.Int64, "key": polars.String, "text_id": polars.String, "piece": polars.Int32, "model": polars.String,
    "revision": polars.String, "commit": polars.String, "architecture": polars.String, "dtype": polars.String,
    "device": polars.String, "importance": polars.String, "auc_log": polars.Float64, "auc_linear": polars.Float64,
    "size_at": polars.Float64, "size_below": polars.Float64, "flops_at": polars.Float64, "parameters_at": polars.Float64,
    "entropy": polars.Float64, "surprisal": polars.Float64, "prompt_surprisal": polars.Float64,
    "unigram_correlation": polars.Float64, "n_unigrams": polars.Int64, "rank": polars.Int64, "next_id": polars.Int32,
    "next_token": polars.String, "top_id": polars.Int32, "top_token": polars.String, "top_probability": polars.Float64,
    "ids": polars.List(polars.Int32), "position": polars.Int32, "n_tokens": polars.Int32, "n_edges": polars.Int64,
    "n_layers": polars.Int32, "n_heads": polars.Int32, "residual_chain": polars.Float64,
    "residual_mlp_chain": polars.Float64, "full_trace_tv": polars.Float64, "seconds": polars.Float64,
    "error": polars.String,
}  # fmt: skip
STATES: dict[str, Any] = {"kind": polars.String, "size": polars.Float64, "state": polars.List(polars.Float32)}
NESTED: dict[str, Any] = {"curve": CURVE, "components": COMPONENTS, "states": STATES, "trace": TRACE}
HISTOGRAM: dict[str, Any] = {"histogram": polars.List(polars.Int64)}
# The columns of a part; a metric that a plugin registered is one more field of the curve.
SCHEMA: dict[str, Any] = {
    **MEASUREMENTS,
    **{name: polars.List(polars.Struct(schema)) for name, schema in NESTED.items()},
    **HISTOGRAM,
}
# Columns that a row of a nested table takes from the measurement that it belongs to.
KEY = ("text_id", "piece", "model", "revision", "importance")

_PART = re.compile(r"(\d{8,})-(\d{8,})-([0-9a-f]{12})\.parquet")


@dataclass(frozen=True)
class Part:
    """One file of results: cells start to end - 1 of a model. `first` is the first of them that counts."""

    path: Path
    start: int
    end: int
    digest: str
    first: int

    @property
    def whole(self) -> bool:
        """Whether the file holds what was written to it."""
        try:
            return digest_of(self.path.read_bytes()) == self.digest
        except FileNotFoundError:  # merged by another process since it was listed
            return True


def digest_of(content: bytes) -> str:
    """The first 12 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


def part_of(
    rows: Sequence[Mapping[str, Any]],
    nested: Sequence[Mapping[str, polars.DataFrame]],
    metrics: Sequence[str] = (),
) -> bytes:
    """The content of a part: measurements, each with its tables inside.

    Args:
        rows: values of `MEASUREMENTS`; what is missing is null.
        nested: for each row its tables by name (`NESTED`), and "histogram".
        metrics: columns of the curve beyond `CURVE`, numbers.
    """
    schemas = {**NESTED, "curve": CURVE | dict.fromkeys(metrics, polars.Float64)}
    table = polars.DataFrame([{k: row.get(k) for k in MEASUREMENTS} for row in rows], schema=MEASUREMENTS)
    table = table.with_columns(_lists(name, schema, nested) for name, schema in schemas.items())
    histograms = [own["histogram"]["count"].to_list() if "histogram" in own else None for own in nested]
    table = table.with_columns(polars.Series("histogram", histograms, dtype=HISTOGRAM["histogram"]))
    return parquet_of(table)


def _lists(
    name: str, schema: Mapping[str, Any], nested: Sequence[Mapping[str, polars.DataFrame]]
) -> polars.Series:
    """Rows of a nested table as one list for each measurement, null where it has none.

    All are cast at once, which is fastest.
    """
    has = [i for i, own in enumerate(nested) if name in own]
    frames = [nested[i][name].select(*schema, row=polars.lit(i, dtype=polars.Int64)) for i in has]
    rows = (
        polars.concat(frames, how="vertical_relaxed")
        if has
        else polars.DataFrame(schema={**schema, "row": polars.Int64})
    )
    structs = rows.cast(polars.Schema({**schema, "row": polars.Int64})).select(
        "row", polars.struct(*schema).alias(name)
    )
    lists = structs.group_by("row", maintain_order=True).agg(polars.col(name))
    every = polars.DataFrame({"row": range(len(nested))}, schema={"row": polars.Int64})
    return every.join(lists, on="row", how="left", maintain_order="left")[name]


def parquet_of(table: polars.DataFrame) -> bytes:
    """A table as the content of a Parquet file."""
    file = BytesIO()
    table.write_parquet(file, compression="zstd", statistics=True)
    return file.getvalue()


def with_all_columns(part: Part) -> None:
    """Write a part of an older version anew, with nulls in the columns that it lacks.

    The old file is removed last.
    """
    table = polars.read_parquet(part.path, hive_partitioning=False, glob=False)
    for name, dtype in SCHEMA.items():
        if name not in table.columns:
            table = table.with_columns(polars.lit(None, dtype=dtype).alias(name))
        elif name in NESTED:
            had = [field.name for field in table.schema[name].inner.fields]  # type: ignore[attr-defined]
            wanted = [*NESTED[name], *(metric for metric in had if metric not in NESTED[name])]
            fields = [
                polars.element().struct.field(field)
                if field in had
                else polars.lit(None, dtype=NESTED[name][field]).alias(field)
                for field in wanted
            ]
            table = table.with_columns(polars.col(name).list.eval(polars.struct(fields)))
    content = parquet_of(table.select(*SCHEMA))
    path = part.path.with_name(f"{part.start:08d}-{part.end:08d}-{digest_of(content)}.parquet")
    if path != part.path:
        write_file(path, lambda file: file.write(content))
        part.path.unlink()


def slug(model: str) -> str:
    """A model's name as the name of a folder, its own also where a file system knows no capitals."""
    return f"model={quote(model, safe='@')[-80:]}-{digest_of(model.encode())[:6]}"


def is_part(name: str) -> bool:
    """Whether a file of this name is a part."""
    return _PART.fullmatch(name) is not None


def list_parts(place: Path) -> list[Part]:
    """The parts of a model that count, in the order of their cells, each cell covered once."""
    names = _names(place)
    while names != (again := _names(place)):  # parts were merged while the folder was read
        names = again
    found = []
    for name in names:
        if (match := _PART.fullmatch(name)) is not None:
            start, end = int(match[1]), int(match[2])
            found.append(Part(place / name, start, end, match[3], start))
    parts: list[Part] = []
    at = 0
    for part in sorted(found, key=lambda p: (p.start, -p.end, p.path.name)):
        if part.end > at:
            parts.append(Part(part.path, part.start, part.end, part.digest, max(at, part.start)))
            at = part.end
    return parts


def check_place(place: Path) -> None:
    """Refuse a place for a model's parts that is a link or is not a folder.

    A link may lead out of the study.

    Raises:
        StorageError: a place is a link, or is not a folder.
    """
    for folder in (place.parent, place):
        if folder.is_symlink():
            raise StorageError(
                f"{str(folder)!r} is a symbolic link; expected a folder within the study. Move there what it leads to"
            )
        if folder.exists() and not folder.is_dir():
            raise StorageError(f"{str(folder)!r} is no folder, but a study's parts go there; move it away")


def _names(place: Path) -> list[str]:
    check_place(place)
    try:
        return sorted(entry.name for entry in os.scandir(place) if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {str(place)!r}: {error.strerror or error}") from error


def ranges_of(cells: Sequence[int]) -> list[tuple[int, int]]:
    """Rising numbers as ranges (first, last + 1)."""
    found: list[tuple[int, int]] = []
    for cell in cells:
        if found and found[-1][1] == cell:
            found[-1] = (found[-1][0], cell + 1)
        else:
            found.append((cell, cell + 1))
    return found
