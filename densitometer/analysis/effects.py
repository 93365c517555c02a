"""Correlation of density with each factor, and regression of density on all factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from .properties import FACTORS, GROUPS, factor_columns, label, with_properties
from .statistics import CORRELATION, FEWEST, GROUP, LEVEL, bootstrap, correlate, holm, package, usable

# A factor that is missing in a larger share of the rows is left out of a regression.
MOST_MISSING = 0.2
# A regression with this R² leaves nothing for the error.
SATURATED = 1 - 1e-9
# Largest variance inflation of a factor by those before it.
MOST_INFLATED = 10


@dataclass(frozen=True, eq=False)
class Factors:
    """Correlations of a value with factors, and a regression on all of them.

    Args:
        univariate: a row per model, importance, factor and level (of a class, against all other
            levels; null for numbers). `units` is "texts" (a text's pieces are averaged) or "pieces"
            (the mean over texts of the correlation among a text's pieces). Then rho (Spearman),
            low, high, p, n (texts) and p_holm (corrected over all rows).
        regression: a row per importance, effects and term; one fit for each importance and effects.
            `effects` is "groups" (of models, languages and domains) or "texts" (a constant for each
            text, so only differences within texts are explained). `coefficient` is the change of
            the value per standard deviation of a number, or from the reference level of a class to
            this one. The reference is the most frequent level and all levels of too few texts. Then
            low, high, p, errors ("HC3", or "by text": clustered, if a text has several rows), n
            (rows), n_texts and r_squared (within texts for "texts").
        left_out: importance, effects and term of each factor without a coefficient, and why.
    """

    univariate: polars.DataFrame
    regression: polars.DataFrame
    left_out: polars.DataFrame


def factors(
    measurements: polars.DataFrame,
    value: str = "size_at",
    names: Sequence[str] = (*FACTORS, *GROUPS),
    seed: int = 0,
) -> Factors:
    """Correlate a value with each factor, then regress it on all of them.

    The correlation with a class is one with each of its levels: rank-biserial, tested by Mann and
    Whitney's test. Within texts, Wilcoxon's test is applied to the texts' correlations. A factor of
    only one value is left out. The regression also leaves out factors that are missing in more
    than a fifth of the rows, and those that earlier ones determine (variance inflation above 10).
    The number of factors is limited by the number of texts (within texts, by the number of texts
    with several rows). A saturated fit, without degrees of freedom for the error, is not returned.
    `left_out` lists everything that is left out.

    Args:
        measurements: `describe(study)`, or `Study.measurements()`, which lacks properties of texts.
        value: column to explain, such as size_at.
        names: columns of numbers or of classes to explain it by; see `properties` for the default.
        seed: seed of the bootstraps.

    Raises:
        InputError: the value is not a column of numbers.
    """
    table = usable(with_properties(measurements), value).sort(*GROUP, "text_id", "piece")
    names = [name for name in names if name in table.columns]
    rows = [row for part in table.partition_by(*GROUP) for row in _univariate(part, value, names, seed)]
    schema: dict[str, Any] = dict.fromkeys((*GROUP, "factor", "level", "units"), polars.String)
    univariate = holm(polars.DataFrame(rows, schema=schema | CORRELATION))
    fits, left_out = [], []
    for part in table.partition_by("importance"):
        for effects in ("groups", "texts"):
            fit, absent = _regress(part, effects, value, names)
            fits.append(fit)
            left_out += absent
    return Factors(
        univariate,
        polars.concat([polars.DataFrame(schema=_REGRESSION), *fits]),
        polars.DataFrame(left_out, dict.fromkeys(("importance", "effects", "term", "why"), polars.String), orient="row"),
    )  # fmt: skip


def _univariate(
    table: polars.DataFrame, value: str, names: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of `Factors.univariate` for one model and importance."""
    group = {name: table[name][0] for name in GROUP}
    columns = factor_columns(table, names)
    for (factor, level), column in columns.items():
        row = {**group, "factor": factor, "level": level}
        pieces = table.select("text_id", y=polars.col(value).cast(polars.Float64), x=column)
        pieces = pieces.drop_nulls("x")
        texts = pieces.group_by("text_id", maintain_order=True).mean()
        yield {
            **row,
            "units": "texts",
            **correlate(texts["x"].to_numpy(), texts["y"].to_numpy(), "spearman", seed),
        }
        if len(texts) < len(pieces) and (within := _within(pieces, seed)):
            yield {**row, "units": "pieces", **within}


def _within(pieces: polars.DataFrame, seed: int) -> dict[str, Any] | None:
    """Correlate x and y by rank within each text, over its pieces, and average over texts.

    A text whose values of x are all equal is left out. One whose values of y are all equal counts
    as a correlation of 0. None if too few texts are left.
    """
    x, y = polars.col("x"), polars.col("y")
    by_text = (
        pieces.group_by("text_id", maintain_order=True)
        .agg(rho=polars.corr(x.rank(), y.rank()), varies=x.n_unique() > 1)
        .filter("varies")
    )
    rho = by_text["rho"].fill_nan(0).fill_null(0).to_numpy()
    if len(rho) < FEWEST or not rho.any():
        return None
    low, high = bootstrap([rho], numpy.mean, seed)
    p = package("scipy.stats").wilcoxon(rho, zero_method="zsplit").pvalue
    return {"rho": rho.mean(), "low": low, "high": high, "p": float(p), "n": len(rho)}


_REGRESSION: dict[str, Any] = {
    "importance": polars.String, "effects": polars.String, "term": polars.String, "coefficient": polars.Float64,
    "low": polars.Float64, "high": polars.Float64, "p": polars.Float64, "errors": polars.String, "n": polars.Int64,
    "n_texts": polars.Int64, "r_squared": polars.Float64,
}  # fmt: skip


def _regress(
    table: polars.DataFrame, effects: str, value: str, names: Sequence[str]
) -> tuple[polars.DataFrame, list[tuple[str, str, str, str]]]:
    """Regress one importance by least squares. Return the rows and the factors left out."""
    importance = table["importance"][0]
    empty = polars.DataFrame(schema=_REGRESSION)
    left_out: list[tuple[str, str, str, str]] = []
    # with one row per text nothing differs within a text
    if effects == "texts" and table["text_id"].n_unique() == len(table):
        return empty, left_out
    columns = _candidates(table, names)
    for key in [key for key, column in columns.items() if column.null_count() > MOST_MISSING * len(table)]:
        left_out.append((importance, effects, label(*key), "known of too few rows"))
        del columns[key]
    design = polars.DataFrame({label(*key): column for key, column in columns.items()})
    design = design.with_columns(table.select(_value=polars.col(value).cast(polars.Float64), _text="text_id"))
    design = design.drop_nulls()
    numbers = [label(*key) for key in columns if key[1] is None]
    scale = polars.col(numbers).std()
    design = design.with_columns((polars.col(numbers) - polars.col(numbers).mean()) / scale)
    if effects == "texts":
        # subtracting each text's means is the same as a constant for each text
        within = polars.all().exclude("_text")
        design = design.with_columns(within - within.mean().over("_text"))
    texts = design["_text"]
    n_texts = texts.n_unique()
    # each coefficient needs a text, and FEWEST texts stay for the error
    most = n_texts - 1 - FEWEST
    if effects == "texts":
        # a text of one row shows no difference within itself
        n_repeated = int((texts.value_counts()["count"] > 1).sum())
        most = min(most, n_repeated - 1 - FEWEST)
    kept = _independent(design.drop("_value", "_text"), most, importance, effects, left_out)
    # a regression on groups alone explains nothing that the distributions do not show
    if not {*numbers, *(label(*key) for key in columns if key[0] not in ("model", *GROUPS))} & set(kept):
        return empty, left_out
    x = design.select(kept).to_numpy()
    x = numpy.column_stack([numpy.ones(len(x)), x]) if effects == "groups" else x
    model = package("statsmodels.regression.linear_model").OLS(design["_value"].to_numpy(), x)
    if n_texts == len(design):
        errors, fit = "HC3", model.fit(cov_type="HC3", use_t=True)
    else:
        clusters = numpy.unique(texts.to_numpy(), return_inverse=True)[1]
        errors, fit = "by text", model.fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    # Where nothing is left for the error, every p is tiny and means nothing.
    if not fit.rsquared < SATURATED:
        left_out += [(importance, effects, name, "the fit is saturated") for name in kept]
        return empty, left_out
    # without the constant
    terms = slice(x.shape[1] - len(kept), None)
    interval = fit.conf_int(1 - LEVEL)[terms]
    estimates = {
        "term": kept, "coefficient": fit.params[terms], "low": interval[:, 0], "high": interval[:, 1],
        "p": fit.pvalues[terms],
    }  # fmt: skip
    shared = {
        "importance": importance, "effects": effects, "errors": errors, "n": len(design), "n_texts": n_texts,
        "r_squared": fit.rsquared,
    }  # fmt: skip
    rows = polars.DataFrame(estimates).with_columns(**{k: polars.lit(v) for k, v in shared.items()})
    return rows.select([polars.col(k).cast(dtype) for k, dtype in _REGRESSION.items()]), left_out


def _candidates(table: polars.DataFrame, names: Sequence[str]) -> dict[tuple[str, str | None], polars.Series]:
    """Return the columns that a regression may use: those of groups first, then those of factors.

    A class has no column for its most frequent level, with which the other levels are compared.
    """
    groups = [name for name in ("model", *GROUPS) if name in table.columns]
    order = [*groups, *(name for name in names if name not in groups)]
    columns = factor_columns(table, order)
    for name in {factor for factor, level in columns if level is not None}:
        levels = table[name].cast(polars.String).drop_nulls()
        first = levels.value_counts(sort=True).sort("count", name, descending=[True, False])[name][0]
        if levels.n_unique() == 2:
            # a class of two levels has one column, which may be that of the frequent level
            del columns[next(key for key in columns if key[0] == name)]
            other = levels.filter(levels != first)[0]
            columns[name, other] = (table[name].cast(polars.String) == other).cast(polars.Float64)
        else:
            columns.pop((name, first), None)
    return dict(sorted(columns.items(), key=lambda item: order.index(item[0][0])))


def _independent(
    design: polars.DataFrame,
    most: int,
    importance: str,
    effects: str,
    left_out: list[tuple[str, str, str, str]],
) -> list[str]:
    """Return the columns, in order, that the ones before them do not determine.

    Args:
        design: a column per candidate.
        most: largest number of columns, so that enough texts stay for the error.
        importance: the importance, for `left_out`.
        effects: "groups" or "texts", for `left_out`.
        left_out: list to which each column that is left out is added, with the reason.
    """
    x = design.to_numpy()
    x = x - x.mean(axis=0)
    norm = numpy.linalg.norm(x, axis=0)
    varies = norm > 1e-9 * numpy.sqrt(len(x))
    gram = (x.T @ x) / numpy.outer(numpy.where(varies, norm, 1), numpy.where(varies, norm, 1))
    kept: list[int] = []
    for i, name in enumerate(design.columns):
        if not varies[i]:
            why = "it does not vary" + (" within texts" if effects == "texts" else "")
        elif len(kept) >= most:
            why = "too few texts"
        else:
            # R^2 of the column on those kept. Its variance inflation is 1 / (1 - R^2).
            shared = gram[kept, i]
            explained = shared @ numpy.linalg.solve(gram[numpy.ix_(kept, kept)], shared) if kept else 0.0
            if explained <= 1 - 1 / MOST_INFLATED:
                kept.append(i)
                continue
            why = "those before it determine it"
        left_out.append((importance, effects, name, why))
    return [design.columns[i] for i in kept]
