"""Distribution of density in groups of measurements, and its correlation between models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from ..errors import InputError
from .statistics import CORRELATION, check_numbers, correlate, holm, median_interval, named, usable


def distribution(
    measurements: polars.DataFrame,
    by: Sequence[str] = ("model", "importance", "language", "domain"),
    values: Sequence[str] = ("size_at", "auc_log"),
    seed: int = 0,
) -> polars.DataFrame:
    """Median and quartiles of each value in each group.

    Args:
        measurements: `Study.measurements()`.
        by: columns that define the groups. Null is a group of its own.
        values: columns to summarise, such as those of `VALUES`, all in [0, 1].
        seed: seed of the bootstraps.

    Returns:
        A row per group and value, with median, its interval low, high (texts are drawn, with all
        their pieces), lower_quartile, upper_quartile, n (measurements), n_texts, n_never and
        n_failed (rows).

    Raises:
        InputError: a value is not a column of numbers, a column of `by` is missing, or `by` is
            empty.
    """
    check_numbers(measurements, *values)
    missing = [name for name in by if name not in measurements.columns]
    if missing:
        raise InputError(
            f"the measurements have no column {missing[0]!r}; they have {', '.join(measurements.columns)}"
        )
    if not by:
        raise InputError("distribution needs at least one column to group by, such as 'model'; got none")
    rows = []
    for key, group in named(measurements).sort(*by, "text_id", "piece").group_by(*by, maintain_order=True):
        measured = group.filter(polars.col("error").is_null())
        for value in values:
            known = measured.filter(polars.col(value).is_not_null())
            numbers = known[value].to_numpy().astype(numpy.float64)
            low, high = median_interval(numbers, known["text_id"].to_numpy(), seed)
            quartiles = numpy.percentile(numbers, [25, 50, 75]).tolist() if len(numbers) else [None] * 3
            rows.append(
                dict(zip(by, key, strict=True))
                | {
                    "value": value,
                    "median": quartiles[1],
                    "low": low,
                    "high": high,
                    "lower_quartile": quartiles[0],
                    "upper_quartile": quartiles[2],
                    "n": len(numbers),
                    "n_texts": known["text_id"].n_unique(),
                    "n_never": len(measured) - len(numbers),
                    "n_failed": len(group) - len(measured),
                }
            )
    numbers_of: dict[str, Any] = dict.fromkeys(
        ("median", "low", "high", "lower_quartile", "upper_quartile"), polars.Float64
    )
    counts_of = dict.fromkeys(("n", "n_texts", "n_never", "n_failed"), polars.Int64)
    schema: dict[str, Any] = {name: named(measurements).schema[name] for name in by} | {
        "value": polars.String
    }
    return polars.DataFrame(rows, schema=schema | numbers_of | counts_of)


@dataclass(frozen=True, eq=False)
class Correlation:
    """Correlations between models over the same texts.

    Args:
        pairs: a row per importance and pair of models (one, other), with rho, low, high, p, n
            (texts that both measured) and p_holm (over all pairs).
        matrix: rho as a matrix, a row per importance and model and a column per model, with 1 on
            the diagonal and null if unknown.
    """

    pairs: polars.DataFrame
    matrix: polars.DataFrame


def correlation_across_models(
    measurements: polars.DataFrame, value: str = "auc_log", method: str = "spearman", seed: int = 0
) -> Correlation:
    """Correlate the values of every two models over the texts that both have measured.

    Pieces that both measured are matched by number and averaged, so that a text counts once.

    Args:
        measurements: `Study.measurements()`.
        value: column to correlate.
        method: "spearman" or "pearson".
        seed: seed of the bootstraps.

    Raises:
        InputError: the value is not a column of numbers, or the method is neither of the two.
    """
    if method not in ("spearman", "pearson"):
        raise InputError(f"unknown method {method!r}; expected 'spearman' or 'pearson'")
    table = usable(measurements, value)
    models = table["model"].unique().sort().to_list()
    importances = table["importance"].unique().sort().to_list()
    rows = []
    for importance in importances:
        part = table.filter(importance=importance)
        for i, one in enumerate(models):
            for other in models[i + 1 :]:
                both = (
                    part.filter(model=one)
                    .join(part.filter(model=other), on=["text_id", "piece"], suffix="_other")
                    .group_by("text_id", maintain_order=True)
                    .agg(polars.col(value, f"{value}_other").mean())
                    .sort("text_id")
                )
                result = correlate(both[value].to_numpy(), both[f"{value}_other"].to_numpy(), method, seed)
                rows.append({"importance": importance, "one": one, "other": other, **result})
    names: dict[str, Any] = dict.fromkeys(("importance", "one", "other"), polars.String)
    pairs = holm(polars.DataFrame(rows, schema=names | CORRELATION))
    known = {(r["importance"], r["one"], r["other"]): r["rho"] for r in pairs.iter_rows(named=True)}
    matrix = [
        {"importance": importance, "model": one}
        | {o: 1.0 if o == one else known.get((importance, *sorted((one, o)))) for o in models}
        for importance in importances
        for one in models
    ]
    schema = {"importance": polars.String, "model": polars.String} | dict.fromkeys(models, polars.Float64)
    return Correlation(pairs, polars.DataFrame(matrix, schema=schema))
