"""What every analysis rests on: which rows count, intervals that draw texts, correlations, corrections for many tests."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy
import polars

from ..errors import DensitometerError, InputError

LEVEL = 0.95
RESAMPLES = 1000
FEWEST = 8  # units under which neither an interval nor a test is given
DRAWN = 3 * 10**6  # values, of all resamples together
RANKED = 150_000  # of those that are ranked, which costs more
LARGE = 500  # units above which the interval of a correlation is not a bootstrap's
PARTS = 25  # into which they are dealt then
VALUES = ("size_at", "auc_log", "auc_linear", "flops_at", "parameters_at")
GROUP = ("model", "importance")
PIECE = ("model", "importance", "text_id", "piece")


def package(name: str) -> Any:
    """Return a package of the extra [analysis], imported when it is first needed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how they import each other
            return importlib.import_module(name)
    except ImportError as error:
        raise DensitometerError(
            f"the analysis needs {name.partition('.')[0]}, which cannot be imported ({error}): pip install 'densitometer[analysis]'"
        ) from error


def named(table: polars.DataFrame) -> polars.DataFrame:
    """Make the revision a part of the model's name."""
    revised = polars.format("{}@{}", "model", "revision")
    return table.with_columns(
        model=polars.when(polars.col("revision").is_null()).then("model").otherwise(revised)
    )


def check_numbers(measurements: polars.DataFrame, *values: str) -> None:
    """Refuse a value that is not a column of numbers."""
    for value in values:
        if value not in measurements.columns or not measurements.schema[value].is_numeric():
            raise InputError(
                f"{value!r} is no column of numbers of the measurements; expected such as {', '.join(VALUES)}"
            )


def usable(measurements: polars.DataFrame, value: str) -> polars.DataFrame:
    """Return the rows that have a value. The revision becomes part of the model's name."""
    check_numbers(measurements, value)
    return named(measurements).filter(polars.col("error").is_null(), polars.col(value).is_not_null())


def _resamples(n: int, drawn: int) -> int:
    """Number of resamples: fewer where each costs much, but at least 300."""
    return int(min(RESAMPLES, max(300, drawn // n)))


def bootstrap(
    columns: Sequence[numpy.ndarray], statistic: Any, seed: int, drawn: int = DRAWN
) -> tuple[float | None, float | None]:
    """Percentile interval of a statistic, the columns drawn together.

    (None, None) under `FEWEST` rows.

    The statistic takes `axis`, as scipy calls it.
    """
    if len(columns[0]) < FEWEST:
        return None, None
    low, high = (float(end) for end in bootstraps(columns, statistic, seed, drawn))
    return (low, high) if numpy.isfinite([low, high]).all() else (None, None)


def bootstraps(
    columns: Sequence[numpy.ndarray], statistic: Any, seed: int, drawn: int = DRAWN
) -> tuple[Any, Any]:
    """Percentile intervals of a statistic with several values.

    Its values are (several, resamples) for drawn columns (resamples, n).
    """
    n = len(columns[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a resample in which all values are one
        found = package("scipy.stats").bootstrap(
            tuple(columns), statistic, paired=len(columns) > 1, vectorized=True, method="percentile",
            confidence_level=LEVEL, n_resamples=_resamples(n, drawn), batch=max(1, 2 * 10**6 // n),
            rng=numpy.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return found.low, found.high


def median_interval(
    values: numpy.ndarray, texts: numpy.ndarray, seed: int
) -> tuple[float | None, float | None]:
    """Percentile interval of the median of all values. Texts are drawn with all their pieces."""
    names, place = numpy.unique(texts, return_inverse=True)
    if len(names) == len(texts):
        return bootstrap([values], numpy.median, seed)
    order = numpy.argsort(place, kind="stable")
    pieces = numpy.split(values[order], numpy.cumsum(numpy.bincount(place))[:-1])

    def medians(drawn: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        found = [
            numpy.median(numpy.concatenate([pieces[i] for i in row])) for row in drawn.reshape(-1, len(names))
        ]
        return numpy.array(found).reshape(drawn.shape[:-1])

    return bootstrap([numpy.arange(len(names))], medians, seed)


def _pearson(x: numpy.ndarray, y: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    """Correlation along the last axis, 0 where all values are equal.

    A resample may miss a rare level: it then shows no correlation.
    """
    return numpy.nan_to_num(package("scipy.stats").pearsonr(x, y, axis=axis).statistic)


def _spearman(x: numpy.ndarray, y: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    rank = package("scipy.stats").rankdata
    return _pearson(rank(x, axis=axis), rank(y, axis=axis), axis)


def correlate(x: numpy.ndarray, y: numpy.ndarray, method: str, seed: int) -> dict[str, Any]:
    """rho, its interval, p of a two-sided test of no correlation, and n.

    null where one cannot be computed.

    The interval is a bootstrap's; of more than `LARGE` units, where that takes long, it is from the spread of the
    correlations in `PARTS` parts, dealt at random: rho ± t s / sqrt(PARTS), t of PARTS - 1 degrees of freedom.
    """
    stats = package("scipy.stats")
    empty = {"rho": None, "low": None, "high": None, "p": None, "n": len(x)}
    if len(x) < FEWEST or numpy.ptp(x) == 0 or numpy.ptp(y) == 0:
        return empty
    found = (stats.spearmanr if method == "spearman" else stats.pearsonr)(x, y)
    rho, statistic = float(found.statistic), _spearman if method == "spearman" else _pearson
    interval = (
        _by_parts(x, y, statistic, rho, seed)
        if len(x) > LARGE
        else bootstrap([x, y], statistic, seed, RANKED)
    )
    return empty | {"rho": rho, "low": interval[0], "high": interval[1], "p": float(found.pvalue)}


def _by_parts(
    x: numpy.ndarray, y: numpy.ndarray, statistic: Any, rho: float, seed: int
) -> tuple[float, float]:
    size = len(x) // PARTS
    dealt = numpy.random.default_rng(seed).permutation(len(x))[: size * PARTS].reshape(PARTS, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a part in which all values are one
        parts = statistic(x[dealt], y[dealt])
    stats = package("scipy.stats")
    half = stats.t.ppf(0.5 + LEVEL / 2, PARTS - 1) * stats.sem(parts)
    return max(-1.0, float(rho - half)), min(1.0, float(rho + half))


def holm(table: polars.DataFrame) -> polars.DataFrame:
    """Add p corrected for all tests of the table (Holm's step-down)."""
    corrected = numpy.full(len(table), numpy.nan)
    tested = table["p"].is_not_null().to_numpy()
    if tested.any():
        found = package("statsmodels.stats.multitest").multipletests(
            table["p"].to_numpy()[tested], method="holm"
        )
        corrected[tested] = found[1]
    return table.with_columns(p_holm=polars.Series(corrected).fill_nan(None))


CORRELATION: dict[str, Any] = {
    "rho": polars.Float64,
    "low": polars.Float64,
    "high": polars.Float64,
    "p": polars.Float64,
    "n": polars.Int64,
}
