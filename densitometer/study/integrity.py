"""Checks that the parts in a study's folder are unchanged and belong to this study.

    damaged     a part's content does not have the digest in its name
    foreign     a part's rows belong to another model than its folder, have cells outside of its
                range, or have other keys than those computed from this study's texts and settings
                (`part_files.cell_key`)

Digests are checked at every reading, once per file and modification. Keys are checked, too, for at
most `MOST_KEYS` cells spread over all parts. When a study is resumed, all keys are checked.

All parts are first checked together, which takes a fifth of the time. If that finds a fault, or a
file cannot be read, each part is checked alone, to find which it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars

from .._util.files import file_state
from .part_files import UNREADABLE, Part, cell_key, not_a_part, slug

# Most cells whose keys are computed again at a reading.
MOST_KEYS = 20_000
# Settings that the migration from schema 1 adds. The keys of rows from before are without them.
_ADDED = {"states": False, "unigrams": None, "means": None}
_COLUMNS = ("cell", "key", "text_id", "model", "revision")
_TYPES = polars.Schema(
    {"cell": polars.Int64, "key": polars.String, "text_id": polars.String, "model": polars.String}
)
# What tells whether a column has one value: the least and the most of the others, and the nulls.
_SPREAD = {"least": polars.Expr.min, "most": polars.Expr.max, "nulls": polars.Expr.null_count}
# Parts that were found to be of a study: path, state of the file, the study, number of keys.
_OWN: dict[tuple[Any, ...], int] = {}


def damaged(parts: Sequence[Part]) -> list[Part]:
    """Return the parts whose content does not have the digest in their name."""
    if len(parts) < 2:
        return [part for part in parts if not part.whole]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return [
            part
            for part, whole in zip(parts, threads.map(lambda p: p.whole, parts), strict=True)
            if not whole
        ]


def foreign(
    parts: Sequence[Part], settings: Mapping[str, Any], corpus: str, texts: polars.DataFrame, every: bool = False
) -> list[tuple[Part, str]]:  # fmt: skip
    """Return the parts that do not belong to this study, each with the reason.

    For a row without a key, only the model of its folder is checked.

    Args:
        parts: parts whose digests are right.
        settings: settings in the study's manifest.
        corpus: SHA-256 of the study's corpus.
        texts: the study's texts, one row per cell.
        every: whether to check the keys of all cells.

    Raises:
        StorageError: a file is not a part of a study.
    """
    written = [settings]
    if all(name in settings and settings[name] == value for name, value in _ADDED.items()):
        written.append({name: value for name, value in settings.items() if name not in _ADDED})
    forms = [json.dumps(form, sort_keys=True) for form in written]
    per_text = tuple(settings.get("per_text", ()))
    texts = texts.select("id", "text", "next", "problem", *per_text)
    cells = sum(part.end - part.first for part in parts)
    step = 1 if every else max(1, -(-cells // MOST_KEYS))

    new: dict[tuple[Any, ...], Part] = {}
    for part in parts:
        try:
            known = (str(part.path), *file_state(part.path), corpus, forms[0])
        except FileNotFoundError:
            # another process has merged it since it was listed
            continue
        if _OWN.get(known, step + 1) > step:
            new[known] = part
    if len(new) > 1 and _all_own(list(new.values()), forms, texts, step, per_text):
        _OWN.update(dict.fromkeys(new, step))
        return []
    found = []
    for known, part in new.items():
        try:
            reason = _reason(part, forms, texts, step, per_text)
        except FileNotFoundError:
            continue
        if reason is None:
            _OWN[known] = step
        else:
            found.append((part, reason))
    return found


def _all_own(
    parts: Sequence[Part], forms: Sequence[str], texts: polars.DataFrame, step: int, per_text: Sequence[str]
) -> bool:
    """Return whether all parts belong to this study, by one query over all of their files.

    It checks what `_reason` checks part by part. False also if a part cannot be read.
    """
    try:
        rows = (
            polars.scan_parquet(
                [part.path for part in parts], hive_partitioning=False, glob=False, include_file_paths="path"
            )
            .select("path", *_COLUMNS)
            .cast(_TYPES)
            .collect()
        )
    except (OSError, *UNREADABLE):
        return False
    ranges = {str(part.path): (part.start, part.end - 1, part.end - part.start) for part in parts}
    cell, kinds = polars.col("cell"), (polars.col("model"), polars.col("revision"))
    covered = rows.group_by("path", maintain_order=True).agg(
        cell.min().alias("first"), cell.max().alias("last"), cell.n_unique().alias("n"), polars.len().alias("rows"),
        *(of(kind).name.suffix(f"_{name}") for kind in kinds for name, of in _SPREAD.items()),
    )  # fmt: skip
    if covered.height != len(ranges):
        return False
    for found in covered.iter_rows(named=True):
        model, revision = found["model_least"], found["revision_least"]
        one = found["model_nulls"] == 0 and model == found["model_most"]
        one &= found["revision_nulls"] in (0, found["rows"]) and revision == found["revision_most"]
        name = model if revision is None else f"{model}@{revision}"
        path = found["path"]
        if not one or slug(name) != Path(path).parent.name:
            return False
        if (found["first"], found["last"], found["n"]) != ranges.get(path):
            return False
    keyed = rows.filter(polars.col("key").is_not_null()) if rows["key"].null_count() else rows
    if keyed.is_empty():
        return True
    if (keyed["cell"] >= texts.height).any():
        return False
    if (texts["id"].gather(keyed["cell"]) != keyed["text_id"]).fill_null(True).any():
        return False
    another = (cell != cell.shift()) | (polars.col("path") != polars.col("path").shift())
    firsts = keyed.filter(another.fill_null(True))
    chosen = firsts.filter(polars.int_range(polars.len()).over("path") % step == 0)
    for (key, model, revision), row in zip(
        chosen.select("key", "model", "revision").iter_rows(),
        texts[chosen["cell"]].iter_rows(named=True),
        strict=True,
    ):
        name = model if revision is None else f"{model}@{revision}"
        if all(cell_key(name, row, form, per_text) != key for form in forms):
            return False
    return True


def _reason(
    part: Part, forms: Sequence[str], texts: polars.DataFrame, step: int, per_text: Sequence[str]
) -> str | None:
    """Return why a part does not belong to this study, or None if it does."""
    try:
        rows = polars.read_parquet(
            part.path, hive_partitioning=False, glob=False, columns=list(_COLUMNS)
        ).cast(_TYPES)
    except UNREADABLE as error:
        raise not_a_part(part.path) from error
    for model, revision in rows.select("model", "revision").unique().iter_rows():
        name = model if revision is None else f"{model}@{revision}"
        if name is None or slug(name) != part.path.parent.name:
            return f"its rows are of the model {name!r}"
    covered = rows["cell"].unique().sort()
    if covered.to_list() != list(range(part.start, part.end)):
        return f"its rows are of other cells than {part.start} to {part.end - 1}"
    keyed = rows.filter(polars.col("key").is_not_null()).unique("cell", keep="first", maintain_order=True)
    if keyed.is_empty():
        return None
    if (keyed["cell"] >= texts.height).any():
        return f"it is of more than the {texts.height:,} texts of this study"
    ids = texts["id"].gather(keyed["cell"])
    differ = (ids != keyed["text_id"]).fill_null(True)
    if differ.any():
        at = int(differ.arg_max() or 0)
        return f"it has the text {keyed['text_id'][at]!r} where this study has {ids[at]!r}"
    chosen = keyed.gather_every(step)
    for (cell, key, text_id), row in zip(
        chosen.select("cell", "key", "text_id").iter_rows(),
        texts[chosen["cell"]].iter_rows(named=True),
        strict=True,
    ):
        if all(cell_key(name, row, form, per_text) != key for form in forms):
            return f"its row of the text {text_id!r} (cell {cell}) is of another text or of other settings"
    return None
