"""Statistics that every analysis uses: bootstraps, correlations, and corrections for many tests."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy
import polars

from ..errors import DensitometerError, InputError

LEVEL = 0.95
RESAMPLES = 1000
# With fewer units neither an interval nor a test is given.
FEWEST = 8
# Values drawn in all resamples of a bootstrap together. Ranking costs more, so fewer are ranked.
DRAWN = 3 * 10**6
RANKED = 150_000
# With more units the interval of a correlation comes from this many parts, not from a bootstrap.
LARGE = 500
PARTS = 25
# With as many units 2 / n! is below every p that is printed.
FACTORIAL = 20
VALUES = ("size_at", "auc_log", "auc_linear", "flops_at", "parameters_at")
GROUP = ("model", "importance")
PIECE = ("model", "importance", "text_id", "piece")


def package(name: str) -> Any:
    """Import a package of the extra [analysis] when it is first needed.

    Raises:
        DensitometerError: the package is not installed.
    """
    try:
        with warnings.catch_warnings():
            # these packages warn about each other's versions
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise DensitometerError(
            f"the analysis needs {name.partition('.')[0]}, which cannot be imported ({error}): "
            "pip install 'densitometer[analysis]'"
        ) from error


def named(table: polars.DataFrame) -> polars.DataFrame:
    """Add the revision to the model's name, as NAME@REVISION."""
    revised = polars.format("{}@{}", "model", "revision")
    return table.with_columns(
        model=polars.when(polars.col("revision").is_null()).then("model").otherwise(revised)
    )


def check_numbers(measurements: polars.DataFrame, *values: str) -> None:
    """Check that each value is a column of numbers.

    Raises:
        InputError: a value is not a column, or its column does not hold numbers.
    """
    for value in values:
        if value not in measurements.columns or not measurements.schema[value].is_numeric():
            raise InputError(
                f"{value!r} is not a column of numbers of the measurements; expected one such as "
                f"{', '.join(VALUES)}"
            )


def usable(measurements: polars.DataFrame, value: str) -> polars.DataFrame:
    """Return the rows that have a value, with NAME@REVISION as the model's name.

    Raises:
        InputError: the value is not a column of numbers.
    """
    check_numbers(measurements, value)
    return named(measurements).filter(polars.col("error").is_null(), polars.col(value).is_not_null())


def _resamples(n: int, drawn: int) -> int:
    """Number of resamples for n units: fewer if each costs much, but at least 300."""
    return int(min(RESAMPLES, max(300, drawn // n)))


def bootstrap(
    columns: Sequence[numpy.ndarray], statistic: Any, seed: int, drawn: int = DRAWN
) -> tuple[float | None, float | None]:
    """Compute a percentile interval of a statistic. (None, None) with fewer than `FEWEST` rows.

    Args:
        columns: the data; rows of all columns are drawn together.
        statistic: function of the columns and `axis`, as scipy calls it.
        seed: seed of the resamples.
        drawn: number of values to draw, over all resamples.
    """
    if len(columns[0]) < FEWEST:
        return None, None
    low, high = (float(end) for end in bootstraps(columns, statistic, seed, drawn))
    return (low, high) if numpy.isfinite([low, high]).all() else (None, None)


def bootstraps(
    columns: Sequence[numpy.ndarray], statistic: Any, seed: int, drawn: int = DRAWN
) -> tuple[Any, Any]:
    """Percentile intervals of a statistic of several numbers: lower ends, then upper ends.

    Args:
        columns: the data; rows of all columns are drawn together.
        statistic: function from drawn columns, (resamples, n), to (several, resamples).
        seed: seed of the resamples.
        drawn: number of values to draw, over all resamples.
    """
    n = len(columns[0])
    with warnings.catch_warnings():
        # scipy warns about resamples in which all values are equal
        warnings.simplefilter("ignore")
        interval = package("scipy.stats").bootstrap(
            tuple(columns), statistic, paired=len(columns) > 1, vectorized=True, method="percentile",
            confidence_level=LEVEL, n_resamples=_resamples(n, drawn), batch=max(1, 2 * 10**6 // n),
            rng=numpy.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return interval.low, interval.high


def median_interval(
    values: numpy.ndarray, texts: numpy.ndarray, seed: int
) -> tuple[float | None, float | None]:
    """Compute a bootstrap interval of the median of all values, drawing texts with their pieces."""
    names, place = numpy.unique(texts, return_inverse=True)
    if len(names) == len(texts):
        return bootstrap([values], numpy.median, seed)
    order = numpy.argsort(place, kind="stable")
    pieces = numpy.split(values[order], numpy.cumsum(numpy.bincount(place))[:-1])

    def medians(drawn: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        middles = [
            numpy.median(numpy.concatenate([pieces[i] for i in row])) for row in drawn.reshape(-1, len(names))
        ]
        return numpy.array(middles).reshape(drawn.shape[:-1])

    return bootstrap([numpy.arange(len(names))], medians, seed)


def _pearson(x: numpy.ndarray, y: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    """Pearson correlation along the last axis. 0 if all values are equal.

    A resample may miss a rare level of a class. It then shows no correlation.
    """
    return numpy.nan_to_num(package("scipy.stats").pearsonr(x, y, axis=axis).statistic)


def _spearman(x: numpy.ndarray, y: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    """Spearman correlation along the last axis."""
    rank = package("scipy.stats").rankdata
    return _pearson(rank(x, axis=axis), rank(y, axis=axis), axis)


def correlate(x: numpy.ndarray, y: numpy.ndarray, method: str, seed: int) -> dict[str, Any]:
    """Correlate two columns. Return rho, its interval low and high, p (two-sided), n and n_tied.

    n_tied counts the rows that share a value with another row, in the column with more such rows. p
    of Spearman's rho is at least 2 / n!, the probability of a perfect order or its reverse. Without
    this limit the t distribution would give p = 0 for rho = 1.

    All but n and n_tied are None with fewer than `FEWEST` rows, or if all values of a column are
    equal. The interval is a bootstrap's. With more than `LARGE` rows, where that takes long, it
    comes from the spread s of the correlations in `PARTS` random parts: rho ± t s / sqrt(PARTS),
    with t of PARTS - 1 degrees of freedom.

    Args:
        x: (n,).
        y: (n,).
        method: "spearman" or "pearson".
        seed: seed of resamples and parts.
    """
    stats = package("scipy.stats")
    empty = {
        "rho": None,
        "low": None,
        "high": None,
        "p": None,
        "n": len(x),
        "n_tied": max(map(_tied, (x, y))),
    }
    if len(x) < FEWEST or numpy.ptp(x) == 0 or numpy.ptp(y) == 0:
        return empty
    result = (stats.spearmanr if method == "spearman" else stats.pearsonr)(x, y)
    rho, statistic = float(result.statistic), _spearman if method == "spearman" else _pearson
    interval = (
        _by_parts(x, y, statistic, rho, seed)
        if len(x) > LARGE
        else bootstrap([x, y], statistic, seed, RANKED)
    )
    p = float(result.pvalue)
    if method == "spearman" and len(x) < FACTORIAL:
        p = max(p, 2 / math.factorial(len(x)))
    return empty | {"rho": rho, "low": interval[0], "high": interval[1], "p": p}


def _tied(values: numpy.ndarray) -> int:
    """Number of values that occur more than once, each occurrence counted."""
    counts = numpy.unique(values, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def _by_parts(
    x: numpy.ndarray, y: numpy.ndarray, statistic: Any, rho: float, seed: int
) -> tuple[float, float]:
    """Interval of a correlation of many units from its spread over `PARTS` random parts."""
    size = len(x) // PARTS
    dealt = numpy.random.default_rng(seed).permutation(len(x))[: size * PARTS].reshape(PARTS, size)
    with warnings.catch_warnings():
        # scipy warns about parts in which all values are equal
        warnings.simplefilter("ignore")
        parts = statistic(x[dealt], y[dealt])
    stats = package("scipy.stats")
    half = stats.t.ppf(0.5 + LEVEL / 2, PARTS - 1) * stats.sem(parts)
    return max(-1.0, float(rho - half)), min(1.0, float(rho + half))


def holm(table: polars.DataFrame) -> polars.DataFrame:
    """Add `p_holm`, the p-values corrected for all tests of the table by Holm's method."""
    corrected = numpy.full(len(table), numpy.nan)
    tested = table["p"].is_not_null().to_numpy()
    if tested.any():
        results = package("statsmodels.stats.multitest").multipletests(
            table["p"].to_numpy()[tested], method="holm"
        )
        corrected[tested] = results[1]
    return table.with_columns(p_holm=polars.Series(corrected).fill_nan(None))


CORRELATION: dict[str, Any] = {
    "rho": polars.Float64,
    "low": polars.Float64,
    "high": polars.Float64,
    "p": polars.Float64,
    "n": polars.Int64,
    "n_tied": polars.Int64,
}
