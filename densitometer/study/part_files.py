"""Parts: the Parquet files with a study's results, the columns of their rows, and their cells.

    parts/MODEL/START-END-DIGEST.parquet    the results of cells START to END - 1 of one model

A row is a measurement: one piece of a text by one importance. Its curve, component shares, states
and trace are columns of lists; a reader who does not select them does not pay for them. DIGEST is
the first digits of the SHA-256 of the file's content, by which damage is detected. The column `key`
of a row is a digest of its text, model and settings (`cell_key`), by which a part of another study
is detected. If two parts cover the same cell, the part that begins first counts, and of two that
begin together the longer one.

All readers of parts, with polars or with DuckDB, read the list that `parts_of` returns.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars

from .._util.files import file_digest, write_file
from ..errors import StorageError
from ..measuring.columns import CURVE_TYPES

# A curve's columns, with `refined` (whether a row placed `size_at`) after those that say which run
# it is, and what is kept beyond.
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
    "faithful_at": polars.Float64, "noise": polars.Float64, "n_sinks": polars.Int32, "sink_share": polars.Float64,
    "sink_share_of_trace": polars.Float64, "size_at_without_sinks": polars.Float64,
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

# What polars raises for files that are not what they seem. A panic is not an Exception.
UNREADABLE = (polars.exceptions.PolarsError, polars.exceptions.PanicException)
_PART = re.compile(r"(\d{8,})-(\d{8,})-([0-9a-f]{12})\.parquet")


@dataclass(frozen=True)
class Part:
    """One file of results: cells start to end - 1 of one model.

    Args:
        path: the file.
        start: number of the first cell.
        end: one more than the number of the last cell.
        digest: first 12 hexadecimal digits of the SHA-256 of the file's content, from its name.
        first: the first cell that counts. Earlier ones are covered by another part.
    """

    path: Path
    start: int
    end: int
    digest: str
    first: int

    @property
    def whole(self) -> bool:
        """Whether the file's content has the digest that its name gives.

        Raises:
            StorageError: the file cannot be read.
        """
        try:
            return file_digest(self.path)[: len(self.digest)] == self.digest
        except FileNotFoundError:
            # another process has merged it since it was listed
            return True
        except OSError as error:
            raise StorageError(f"cannot read {str(self.path)!r}: {error.strerror or error}") from error

    def read(self) -> polars.DataFrame:
        """Read the rows of the cells that count, from bytes that have the digest of the name.

        Raises:
            StorageError: the content is damaged, or is not a part of a study.
            FileNotFoundError: another process has merged the part since it was listed.
        """
        content = self.path.read_bytes()
        if digest_of(content) != self.digest:
            raise StorageError(f"the part {str(self.path)!r} is damaged; run the study again")
        try:
            return polars.read_parquet(BytesIO(content)).filter(polars.col("cell") >= self.first)
        except UNREADABLE as error:
            raise not_a_part(self.path) from error


def not_a_part(path: Path) -> StorageError:
    """Make the error for a file with the name and the digest of a part that is not a part."""
    return StorageError(
        f"cannot read {str(path)!r} as a part of a study; remove the file, and its texts are measured again"
    )


def cell_key(model: str, text: Mapping[str, Any], settings: str, per_text: Sequence[str] = ()) -> str:
    """Return a digest of everything on which a cell's numbers depend: model, text and settings.

    It is the first 16 hexadecimal digits of a SHA-256.

    Args:
        model: NAME or NAME@REVISION.
        text: row of the corpus.
        settings: settings of the study as JSON, with sorted keys.
        per_text: columns of the corpus that are settings of each text.
    """
    values = [model, text["id"], text["text"], text["next"], text["problem"]]
    # a side of a target may be a list
    values += [v if v is None else json.dumps(v) for v in (text[name] for name in per_text)]
    # the JSON of a list; `json.dumps` takes five times as long for so little
    written = ["null" if value is None else encode_basestring_ascii(value) for value in values]
    content = f"[{', '.join(written)}, {settings}]"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest_of(content: bytes) -> str:
    """First 12 hexadecimal digits of the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()[:12]


def part_of(
    rows: Sequence[Mapping[str, Any]],
    nested: Sequence[Mapping[str, polars.DataFrame]],
    metrics: Sequence[str] = (),
) -> bytes:
    """Build the content of a part: measurements, with their tables as columns of lists.

    Args:
        rows: one measurement each, by the names of `MEASUREMENTS`; a missing value becomes null.
        nested: tables of each row, by the names of `NESTED` and "histogram".
        metrics: names of further float columns of the curve, from metrics that plugins register.
    """
    schemas = {**NESTED, "curve": CURVE | dict.fromkeys(metrics, polars.Float64)}
    table = polars.DataFrame([{k: row.get(k) for k in MEASUREMENTS} for row in rows], schema=MEASUREMENTS)
    table = table.with_columns(_lists(name, schema, nested) for name, schema in schemas.items())
    histograms = [t["histogram"]["count"].to_list() if "histogram" in t else None for t in nested]
    table = table.with_columns(polars.Series("histogram", histograms, dtype=HISTOGRAM["histogram"]))
    return parquet_of(table)


def _lists(
    name: str, schema: Mapping[str, Any], nested: Sequence[Mapping[str, polars.DataFrame]]
) -> polars.Series:
    """Column of a nested table: a list of structs per measurement, null if it has no table."""
    # Concatenating, casting and grouping once is far faster than building a list per measurement.
    # The join puts a null for each measurement without the table, and keeps the order.
    has = [i for i, tables in enumerate(nested) if name in tables]
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
    """Return a table as the bytes of a Parquet file."""
    file = BytesIO()
    # Level 9 is 5 % smaller than level 3 and takes twice its time, .1 s for a megabyte.
    table.write_parquet(file, compression="zstd", compression_level=9, statistics=True)
    return file.getvalue()


def with_all_columns(part: Part) -> None:
    """Rewrite a part of an older version, with nulls in the columns that it lacks.

    The old file is removed last, so that a kill at any moment loses nothing.
    """
    table = polars.read_parquet(part.path, hive_partitioning=False, glob=False)
    for name, dtype in SCHEMA.items():
        if name not in table.columns:
            table = table.with_columns(polars.lit(None, dtype=dtype).alias(name))
        elif name in NESTED:
            structs = table.schema[name].inner  # type: ignore[attr-defined]
            had = [field.name for field in structs.fields]
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
    """Name of the folder for a model's parts.

    The digest keeps two names apart that differ only in case or beyond the 80th character.
    """
    return f"model={quote(model, safe='@')[-80:]}-{digest_of(model.encode())[:6]}"


def is_part(name: str) -> bool:
    """Whether a file name is the name of a part."""
    return _PART.fullmatch(name) is not None


def list_parts(place: Path) -> list[Part]:
    """Return the parts of a model that count, in the order of their cells, each cell covered once.

    Args:
        place: the folder of the model's parts; it may be missing.

    Raises:
        StorageError: the folder cannot be read, is a link or is not a folder, or an entry with the
            name of a part is a link or a folder.
    """
    # A listing made while another process merges may hold neither the old parts nor the new one.
    # Two equal listings in a row were not made then.
    names = _names(place)
    while names != (again := _names(place)):
        names = again
    listed = []
    for name in names:
        if (match := _PART.fullmatch(name)) is not None:
            start, end = int(match[1]), int(match[2])
            listed.append(Part(place / name, start, end, match[3], start))
    parts: list[Part] = []
    # A merged part begins where its first original does and reaches farther, so it comes first and
    # the originals that a kill left behind add no cells.
    at = 0
    for part in sorted(listed, key=lambda p: (p.start, -p.end, p.path.name)):
        if part.end > at:
            parts.append(Part(part.path, part.start, part.end, part.digest, max(at, part.start)))
            at = part.end
    return parts


def parts_of(folder: Path) -> list[Part]:
    """Return the parts of every model of a study that count, in the order of models and cells.

    Args:
        folder: the study's folder.

    Raises:
        StorageError: a model's folder cannot be read, is a link or is not a folder.
    """
    _check_folder(folder / "parts")
    return [part for place in sorted((folder / "parts").glob("model=*")) for part in list_parts(place)]


def reads_of(parts: Sequence[Part]) -> list[tuple[list[Path], int]]:
    """Group parts into as few reads as possible: files, and the first cell that counts in them.

    Of most parts all cells count. They form one group, whose first cell is 0.
    """
    whole = [part.path for part in parts if part.first == part.start]
    others = [([part.path], part.first) for part in parts if part.first != part.start]
    return ([(whole, 0)] if whole else []) + others


def check_place(place: Path) -> None:
    """Refuse a folder of parts that is a link, which may lead out of the study, or is not a folder.

    Args:
        place: the folder of a model's parts. The folder above it is checked too.

    Raises:
        StorageError: either is a link, or is not a folder.
    """
    for folder in (place.parent, place):
        _check_folder(folder)


def _check_folder(folder: Path) -> None:
    if folder.is_symlink():
        raise StorageError(
            f"{str(folder)!r} is a symbolic link; expected a folder within the study. Put the "
            "folder that it leads to in its place"
        )
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{str(folder)!r} is not a folder, but a study's parts go there; move it away")


def _names(place: Path) -> list[str]:
    """Sorted names of a folder's files, without temporary ones. Empty if it does not exist."""
    check_place(place)
    try:
        entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        for entry in entries:
            if is_part(entry.name) and not entry.is_file(follow_symlinks=False):
                what = "a symbolic link" if entry.is_symlink() else "not a file"
                raise StorageError(
                    f"{entry.path!r} is {what}, and has the name of a part of a study; put the file there, or remove it and "
                    "its texts are measured again"
                )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {str(place)!r}: {error.strerror or error}") from error
    return sorted(entry.name for entry in entries)


def ranges_of(cells: Sequence[int]) -> list[tuple[int, int]]:
    """Group increasing numbers into ranges (first, last + 1)."""
    ranges: list[tuple[int, int]] = []
    for cell in cells:
        if ranges and ranges[-1][1] == cell:
            ranges[-1] = (ranges[-1][0], cell + 1)
        else:
            ranges.append((cell, cell + 1))
    return ranges
