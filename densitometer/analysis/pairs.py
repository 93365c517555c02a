"""Paired comparisons: a text with its translation, or a model with a later checkpoint of it.

Two statistics describe n pairs. The rank correlation shows whether high values of one side go with
high values of the other. The median of the differences, with a bootstrap interval and Wilcoxon's
signed-rank test, shows whether one side needs more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy
import polars

from ..errors import InputError
from .densities import distribution
from .statistics import CORRELATION, FEWEST, bootstrap, correlate, holm, package, usable

_STEP = re.compile(r"step[-_]?(\d+)")
_PAIRED: dict[str, Any] = CORRELATION | {
    "median_one": polars.Float64, "median_other": polars.Float64, "difference": polars.Float64,
    "difference_low": polars.Float64, "difference_high": polars.Float64, "difference_p": polars.Float64,
    "p_holm": polars.Float64, "difference_p_holm": polars.Float64,
}  # fmt: skip


def paired(one: numpy.ndarray, other: numpy.ndarray, seed: int = 0) -> dict[str, Any]:
    """Correlate n pairs of values, and test their differences.

    Args:
        one: (n,).
        other: (n,).
        seed: seed of the bootstraps.

    Returns:
        rho (Spearman), low, high, p, n, median_one, median_other, difference (median of other -
        one), difference_low, difference_high and difference_p (Wilcoxon, two-sided, without pairs
        of equal values). A value that cannot be computed is None.
    """
    differences = other - one
    result = correlate(one, other, "spearman", seed) | dict.fromkeys(
        ("median_one", "median_other", "difference", "difference_low", "difference_high", "difference_p")
    )
    if not len(one):
        return result
    medians = (float(numpy.median(values)) for values in (one, other, differences))
    result |= dict(zip(("median_one", "median_other", "difference"), medians, strict=True))
    result["difference_low"], result["difference_high"] = bootstrap([differences], numpy.median, seed)
    if len(one) >= FEWEST and differences.any():
        result["difference_p"] = float(package("scipy.stats").wilcoxon(differences).pvalue)
    return result


def aligned_texts(measurements: polars.DataFrame, value: str = "size_at", seed: int = 0) -> polars.DataFrame:
    """Compare languages over translations, which are texts with the same `pair` in the corpus.

    Args:
        measurements: `Study.measurements()`, of a corpus with the columns pair and language.
        value: column to compare.
        seed: seed of the bootstraps.

    Returns:
        A row per model, importance and two languages (one and other, in alphabetical order), with
        the columns of `paired` over the pairs that have both. p_holm and difference_p_holm are
        corrected over the rows. n counts pairs. Pieces of a text, and several texts of a language
        in a pair, count by their mean.

    Raises:
        InputError: the corpus has no column pair, or a value is not a column of numbers.
    """
    if "pair" not in measurements.columns:
        raise InputError(
            "aligned texts need a column 'pair' in the corpus, the same for a text and its translations; "
            "the measurements have " + ", ".join(measurements.columns)
        )
    table = usable(measurements, value).drop_nulls(["pair", "language"])
    sides = table.group_by("model", "importance", "language", "pair", maintain_order=True).agg(
        polars.col(value).mean()
    )
    rows: list[dict[str, Any]] = []
    for (model, importance), part in sides.sort("model", "importance").group_by(
        "model", "importance", maintain_order=True
    ):
        for one, other in combinations(part["language"].unique().sort(), 2):
            both = part.filter(language=one).join(part.filter(language=other), on="pair").sort("pair")
            result = paired(both[value].to_numpy(), both[f"{value}_right"].to_numpy(), seed)
            rows.append({"model": model, "importance": importance, "one": one, "other": other} | result)
    names = dict.fromkeys(("model", "importance", "one", "other"), polars.String)
    return _corrected(rows, names)


@dataclass(frozen=True, eq=False)
class Training:
    """Density of a model's checkpoints over training.

    Args:
        checkpoints: a row per model, revision, step and importance, in the order of steps, with the
            columns of `distribution`.
        to_last: a row per model, importance, earlier revision (one, with its step) and last
            revision (other), with the columns of `paired` over the texts that both measured. p_holm
            and difference_p_holm are corrected over the rows.
    """

    checkpoints: polars.DataFrame
    to_last: polars.DataFrame


def training(
    measurements: polars.DataFrame,
    value: str = "size_at",
    order: Sequence[str] | None = None,
    seed: int = 0,
) -> Training:
    """Compare the density of several revisions of each model.

    Args:
        measurements: `Study.measurements()`.
        value: column to compare.
        order: revisions in the order of training; by default those with stepN in their names, by N,
            and no others.
        seed: seed of the bootstraps.

    Raises:
        InputError: a value is not a column of numbers.
    """
    steps = {
        name: step
        for name in measurements["revision"].drop_nulls().unique().sort()
        if (step := _step(name, order)) is not None
    }
    known = measurements.filter(polars.col("revision").is_in(list(steps)))
    known = known.filter(polars.col("revision").n_unique().over("model") > 1)
    step_of = polars.col("revision").replace_strict(steps, return_dtype=polars.Int64, default=None)
    checkpoints = distribution(
        known.with_columns(of="revision", revision=polars.lit(None, polars.String)),
        ["model", "of", "importance"], [value], seed,
    ).rename({"of": "revision"}).with_columns(step=step_of).sort("model", "importance", "step")  # fmt: skip
    texts = (
        known.filter(polars.col("error").is_null(), polars.col(value).is_not_null())
        .group_by("model", "importance", "revision", "text_id", maintain_order=True)
        .agg(polars.col(value).mean())
    )
    rows: list[dict[str, Any]] = []
    for (model, importance), part in texts.sort("model", "importance").group_by(
        "model", "importance", maintain_order=True
    ):
        *earlier, last = sorted(part["revision"].unique(), key=lambda name: steps[name])
        for name in earlier:
            both = part.filter(revision=name).join(part.filter(revision=last), on="text_id").sort("text_id")
            result = paired(both[value].to_numpy(), both[f"{value}_right"].to_numpy(), seed)
            names = {
                "model": model,
                "importance": importance,
                "one": name,
                "step": steps[name],
                "other": last,
            }
            rows.append(names | result)
    columns = {"model": polars.String, "importance": polars.String, "one": polars.String, "step": polars.Int64,
               "other": polars.String}  # fmt: skip
    return Training(checkpoints, _corrected(rows, columns))


def _step(revision: str, order: Sequence[str] | None) -> int | None:
    """Return the number by which a revision is ordered, or None if it has none."""
    if order is not None:
        return list(order).index(revision) if revision in order else None
    match = _STEP.search(revision)
    return None if match is None else int(match[1])


def _corrected(rows: Sequence[dict[str, Any]], columns: dict[str, Any]) -> polars.DataFrame:
    """Build a table of rows, with p of both tests corrected over all rows (Holm)."""
    table = polars.DataFrame(rows, schema=columns | _PAIRED)
    differences = holm(table.select(p="difference_p"))["p_holm"]
    return holm(table).with_columns(difference_p_holm=differences)
