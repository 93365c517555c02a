"""What goes with density: one factor at a time, and all at once by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from .properties import FACTORS, GROUPS, factor_columns, label, with_properties
from .statistics import CORRELATION, FEWEST, GROUP, LEVEL, bootstrap, correlate, holm, package, usable

MOST_MISSING = 0.2  # of the rows; a factor that lacks more is left out of a regression
MOST_INFLATED = 10  # variance inflation of a factor by those before it


@dataclass(frozen=True, eq=False)
class Factors:
    """What goes with a value.

    Args:
        univariate: model, importance, factor, level (of a class, against all others; null for numbers), units ("texts", a
            text's pieces averaged; or "pieces": within texts, mean over texts of the correlation among a text's pieces),
            rho (Spearman), low, high, p, n (texts), p_holm (over all rows).
        regression: importance, effects ("groups": of models, languages and domains; "texts": each text has its own, so
            only what differs within a text is explained), term, coefficient (change of the value per standard deviation
            of a factor, or from the most frequent level, and from those of too few texts, to this one), low, high, p,
            errors ("HC3", or "by text": clustered, where a text has several rows), n (rows), n_texts, r_squared (of
            "texts": within texts). All terms of an importance and kind of effects are of one fit.
        left_out: importance, effects, term, why it is in no regression.
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
    """Correlate a value with each factor, then regress it on all of them, with effects of models, languages and domains.

    Args:
        measurements: of `describe(study)`, or `Study.measurements()`, which lacks what the texts give.
        value: such as size_at, a share.
        names: columns of numbers, or of classes; see `properties` for those of the default.

    A correlation with a class is one with each of its levels: rank-biserial, the test that of Mann and Whitney. Within
    texts, the test is Wilcoxon's of the texts' correlations. A factor without two values is left out, of the regression
    also one that lacks more than a fifth of the rows, one that those before it determine (variance inflation above 10), and
    what there are too few texts for; `left_out` names it.
    """
    table = usable(with_properties(measurements), value).sort(*GROUP, "text_id", "piece")
    names = [name for name in names if name in table.columns]
    rows = [row for own in table.partition_by(*GROUP) for row in _univariate(own, value, names, seed)]
    schema: dict[str, Any] = dict.fromkeys((*GROUP, "factor", "level", "units"), polars.String)
    univariate = holm(polars.DataFrame(rows, schema=schema | CORRELATION))
    fits, left_out = [], []
    for own in table.partition_by("importance"):
        for effects in ("groups", "texts"):
            fit, absent = _regress(own, effects, value, names)
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
    """Mean over texts of the correlation among their pieces.

    A text whose values are all equal counts as 0.
    """
    x, y = polars.col("x"), polars.col("y")
    own = (
        pieces.group_by("text_id", maintain_order=True)
        .agg(rho=polars.corr(x.rank(), y.rank()), varies=x.n_unique() > 1)
        .filter("varies")
    )
    rho = own["rho"].fill_nan(0).fill_null(0).to_numpy()
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
    """Ordinary least squares, and what is not in it."""
    importance = table["importance"][0]
    empty = polars.DataFrame(schema=_REGRESSION)
    left_out: list[tuple[str, str, str, str]] = []
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
        within = polars.all().exclude("_text")
        design = design.with_columns(within - within.mean().over("_text"))
    texts = design["_text"]
    n_texts = texts.n_unique()
    kept = _independent(design.drop("_value", "_text"), n_texts - 1 - FEWEST, importance, effects, left_out)
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
    own = slice(x.shape[1] - len(kept), None)
    interval = fit.conf_int(1 - LEVEL)[own]
    found = {
        "term": kept, "coefficient": fit.params[own], "low": interval[:, 0], "high": interval[:, 1],
        "p": fit.pvalues[own],
    }  # fmt: skip
    shared = {
        "importance": importance, "effects": effects, "errors": errors, "n": len(design), "n_texts": n_texts,
        "r_squared": fit.rsquared,
    }  # fmt: skip
    rows = polars.DataFrame(found).with_columns(**{k: polars.lit(v) for k, v in shared.items()})
    return rows.select([polars.col(k).cast(dtype) for k, dtype in _REGRESSION.items()]), left_out


def _candidates(table: polars.DataFrame, names: Sequence[str]) -> dict[tuple[str, str | None], polars.Series]:
    """Candidate effects: those of groups first, then the factors.

    The most frequent level of a class is the one that its other levels are compared with.
    """
    groups = [name for name in ("model", *GROUPS) if name in table.columns]
    order = [*groups, *(name for name in names if name not in groups)]
    columns = factor_columns(table, order)
    for name in {factor for factor, level in columns if level is not None}:
        own = table[name].cast(polars.String).drop_nulls()
        first = own.value_counts(sort=True).sort("count", name, descending=[True, False])[name][0]
        if own.n_unique() == 2:  # one column, which may be of the frequent level
            del columns[next(key for key in columns if key[0] == name)]
            other = own.filter(own != first)[0]
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
    """The columns, in their order, that those before them do not determine, as many as there are texts for."""
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
            own = gram[kept, i]
            explained = own @ numpy.linalg.solve(gram[numpy.ix_(kept, kept)], own) if kept else 0.0
            if explained <= 1 - 1 / MOST_INFLATED:
                kept.append(i)
                continue
            why = "those before it determine it"
        left_out.append((importance, effects, name, why))
    return [design.columns[i] for i in kept]
