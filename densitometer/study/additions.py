"""Add texts to a study: find the new ones, and check that the known ones have not changed.

A cell has the number of its text, so the known texts keep their places and the new ones follow, in
the order in which the corpus has them. Texts are found again by their ids, so the corpus may have
them in any order. A known text must have the same text, `next`, problem and other columns.

Rows of a folder may have ids of their own. If a second file has the same ids, all ids get the
file's name as a prefix, FILE:ID. Known texts are found with this prefix, too, and keep their ids.
"""

from __future__ import annotations

import json
import reprlib

import polars

from .part_files import UNREADABLE


def extended(known: polars.DataFrame, given: polars.DataFrame) -> polars.DataFrame:
    """Return the texts of a study with those of a corpus that are new.

    Args:
        known: the study's texts, one row per cell.
        given: a corpus with the study's texts and any others (`corpus.Corpus.texts`).

    Returns:
        The known texts in their order, then the new ones. Columns that only one of the two has are
        null in the rows of the other.

    Raises:
        ValueError: the corpus lacks a known text, or has another text with its id. The message is
            a part of a sentence, which the caller completes.
    """
    given = _with_known_ids(known, given)
    row = known.select("id").join(
        given.select("id").with_row_index("row"), on="id", how="left", maintain_order="left"
    )
    lacking = row.filter(polars.col("row").is_null())["id"]
    if len(lacking):
        raise ValueError(f"lacks {len(lacking):,} of them, such as {reprlib.repr(lacking[0])}")
    for name in known.columns:
        if name not in given.columns:
            given = given.with_columns(polars.lit(None, dtype=known.schema[name]).alias(name))
    given = given.select(*known.columns, *(name for name in given.columns if name not in known.columns))
    again = given[row["row"]]
    for name in again.columns:
        _refuse_other_values(known, again, name)
    new = given.join(known.select("id"), on="id", how="anti", maintain_order="left")
    return known if new.is_empty() else polars.concat([again, new])


def _with_known_ids(known: polars.DataFrame, given: polars.DataFrame) -> polars.DataFrame:
    """Remove the file's name from the ids of known texts, if all ids have it as a prefix."""
    ids = set(given["id"])
    lacking = [i for i in known["id"] if i not in ids]
    if not lacking:
        return given
    texts = dict(known.select("id", "text").iter_rows())
    for prefix in sorted({i.removesuffix(lacking[0]) for i in ids if i.endswith(f":{lacking[0]}")}):
        back = {prefix + i: i for i in lacking if prefix + i in ids}
        if len(back) == len(lacking) and all(
            texts[back[i]] == text for i, text in given.select("id", "text").iter_rows() if i in back
        ):
            return given.with_columns(polars.col("id").replace(back))
    return given


def _refuse_other_values(known: polars.DataFrame, again: polars.DataFrame, name: str) -> None:
    """Refuse known texts of which a column has other values than before.

    Raises:
        ValueError: a value differs.
    """
    theirs = known[name] if name in known.columns else polars.Series(name, [None] * known.height)
    ours = again[name]
    # New texts may have made the column one of another type, such as of floats. There and back, so
    # that no cast hides a difference.
    try:
        cast = theirs.cast(ours.dtype)
        differs = cast.ne_missing(ours) | cast.cast(theirs.dtype).ne_missing(theirs)
    except UNREADABLE:
        # lists, or types that do not cast
        differs = _as_json(theirs).ne_missing(_as_json(ours))
    if differs.any():
        at = int(differs.arg_max() or 0)
        now, before = (reprlib.repr(series.slice(at, 1).to_list()[0]) for series in (ours, theirs))
        raise ValueError(
            f"has another {name} for the id {known['id'][at]!r}, {now} where the study has {before}"
        )


def _as_json(values: polars.Series) -> polars.Series:
    return polars.Series([json.dumps(value, default=str) for value in values.to_list()])
