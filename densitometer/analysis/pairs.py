"""Two values of the same thing: a text and its translation, a model before and after more training.

Of n pairs: do they go together (rank correlation), and does one need more than the other (the median of the differences, its
bootstrap interval, and Wilcoxon's signed-rank test of differences that lie around 0)?
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
    """How n pairs of values go together and differ.

    Returns:
        rho (Spearman), low, high, p, n, median_one, median_other, difference (the median of other - one), difference_low,
        difference_high, difference_p (Wilcoxon, two-sided; pairs without a difference are dropped); null where it cannot be
        computed.
    """
    differences = other - one
    found = correlate(one, other, "spearman", seed) | dict.fromkeys(
        ("median_one", "median_other", "difference", "difference_low", "difference_high", "difference_p")
    )
    if not len(one):
        return found
    medians = (float(numpy.median(values)) for values in (one, other, differences))
    found |= dict(zip(("median_one", "median_other", "difference"), medians, strict=True))
    found["difference_low"], found["difference_high"] = bootstrap([differences], numpy.median, seed)
    if len(one) >= FEWEST and differences.any():
        found["difference_p"] = float(package("scipy.stats").wilcoxon(differences).pvalue)
    return found


def aligned_texts(measurements: polars.DataFrame, value: str = "size_at", seed: int = 0) -> polars.DataFrame:
    """Compare languages over translations: texts with one value in the corpus's column `pair`.

    Args:
        measurements: `Study.measurements()`, of a corpus with the columns pair and language.

    Returns:
        model, importance, one, other (languages, in alphabetical order), and of the pairs that both have what `paired` says;
        p_holm and difference_p_holm are corrected over the rows. A text, and several of one language in a pair, count by their
        mean; n is the number of pairs.

    Raises:
        InputError: the corpus has no column pair, or a value is not a column of numbers.
    """
    if "pair" not in measurements.columns:
        raise InputError(
            "aligned texts need a column 'pair' in the corpus, the same for a text and its translations; this one has "
            + ", ".join(measurements.columns)
        )
    table = usable(measurements, value).drop_nulls(["pair", "language"])
    sides = table.group_by("model", "importance", "language", "pair", maintain_order=True).agg(
        polars.col(value).mean()
    )
    rows: list[dict[str, Any]] = []
    for (model, importance), own in sides.sort("model", "importance").group_by(
        "model", "importance", maintain_order=True
    ):
        for one, other in combinations(own["language"].unique().sort(), 2):
            both = own.filter(language=one).join(own.filter(language=other), on="pair").sort("pair")
            found = paired(both[value].to_numpy(), both[f"{value}_right"].to_numpy(), seed)
            rows.append({"model": model, "importance": importance, "one": one, "other": other} | found)
    names = dict.fromkeys(("model", "importance", "one", "other"), polars.String)
    return _corrected(rows, names)


@dataclass(frozen=True, eq=False)
class Training:
    """Density over the training of a model.

    Args:
        checkpoints: model, revision, step, importance, value, median, low, high, lower_quartile, upper_quartile, n, n_texts,
            n_never, n_failed, as `distribution` gives them; by step.
        to_last: model, importance, one (revision), step, other (the last revision), and of the texts that both measured what
            `paired` says; p_holm and difference_p_holm are corrected over the rows.
    """

    checkpoints: polars.DataFrame
    to_last: polars.DataFrame


def training(
    measurements: polars.DataFrame,
    value: str = "size_at",
    order: Sequence[str] | None = None,
    seed: int = 0,
) -> Training:
    """Follow the density of models of which several revisions were measured.

    Args:
        measurements: `Study.measurements()`.
        order: revisions in the order of training; by default those whose names hold stepN, by N, and no others.

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
    for (model, importance), own in texts.sort("model", "importance").group_by(
        "model", "importance", maintain_order=True
    ):
        *earlier, last = sorted(own["revision"].unique(), key=lambda name: steps[name])
        for name in earlier:
            both = own.filter(revision=name).join(own.filter(revision=last), on="text_id").sort("text_id")
            found = paired(both[value].to_numpy(), both[f"{value}_right"].to_numpy(), seed)
            names = {
                "model": model,
                "importance": importance,
                "one": name,
                "step": steps[name],
                "other": last,
            }
            rows.append(names | found)
    columns = {"model": polars.String, "importance": polars.String, "one": polars.String, "step": polars.Int64,
               "other": polars.String}  # fmt: skip
    return Training(checkpoints, _corrected(rows, columns))


def _step(revision: str, order: Sequence[str] | None) -> int | None:
    """Return the number that a revision is ordered by. None where it has none."""
    if order is not None:
        return list(order).index(revision) if revision in order else None
    found = _STEP.search(revision)
    return None if found is None else int(found[1])


def _corrected(rows: Sequence[dict[str, Any]], columns: dict[str, Any]) -> polars.DataFrame:
    """Correct both tests for all rows (Holm)."""
    table = polars.DataFrame(rows, schema=columns | _PAIRED)
    differences = holm(table.select(p="difference_p"))["p_holm"]
    return holm(table).with_columns(difference_p_holm=differences)
