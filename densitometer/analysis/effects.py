"""What goes with density: one factor at a time, and all at once by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import polars

from .properties import with_frequencies
from .statistics import CORRELATION, FEWEST, GROUP, LEVEL, correlate, holm, package, usable

FACTORS = ("n_tokens", "entropy", "surprisal", "predicted_log_frequency", "actual_log_frequency")


@dataclass(frozen=True, eq=False)
class Factors:
    """What goes with a value.

    Args:
        univariate: model, importance, factor, rho (Spearman), low, high, p, n (texts), p_holm (over all rows).
        regression: importance, term, coefficient (change of the value per standard deviation of a factor, or from the
            first model or language to this one), low, high, p, errors ("HC3", or "by text": clustered, where a text has
            several rows), n (rows), n_texts, r_squared. All terms of an importance are of one fit.
    """

    univariate: polars.DataFrame
    regression: polars.DataFrame


def factors(
    measurements: polars.DataFrame, value: str = "size_at", names: Sequence[str] = FACTORS, seed: int = 0
) -> Factors:
    """Correlate a value with each factor, then regress it on all of them, with an effect of each model and language.

    n_tokens is the length of the context in tokens; it is the position too, which is one less in every row. entropy and
    surprisal are in nats, of the full model. Frequencies: `with_frequencies`. A factor that has no value or only one is
    left out; a row that lacks one of the others is left out of the regression.
    """
    table = with_frequencies(
        usable(measurements, value).with_columns(revision=polars.lit(None, polars.String))
    )
    rows = []
    for (model, importance), group in table.sort("model", "importance").group_by(*GROUP, maintain_order=True):
        for name in names:
            own = (
                group.filter(polars.col(name).is_not_null())
                .group_by("text_id")
                .agg(polars.col(value, name).cast(polars.Float64).mean())
                .sort("text_id")
            )
            found = correlate(own[name].to_numpy(), own[value].to_numpy(), "spearman", seed)
            rows.append({"model": model, "importance": importance, "factor": name, **found})
    schema = dict.fromkeys(("model", "importance", "factor"), polars.String) | CORRELATION
    univariate = holm(polars.DataFrame(rows, schema=schema))
    fits = [
        _regress(group, str(importance), value, names)
        for (importance,), group in table.sort("importance", "model", "text_id", "piece").group_by(
            "importance", maintain_order=True
        )
    ]
    return Factors(univariate, polars.concat([_REGRESSION, *fits]))


_REGRESSION = polars.DataFrame(
    schema={
        "importance": polars.String, "term": polars.String, "coefficient": polars.Float64, "low": polars.Float64,
        "high": polars.Float64, "p": polars.Float64, "errors": polars.String, "n": polars.Int64,
        "n_texts": polars.Int64, "r_squared": polars.Float64,
    }
)  # fmt: skip


def _regress(group: polars.DataFrame, importance: str, value: str, names: Sequence[str]) -> polars.DataFrame:
    """Ordinary least squares; nothing where there are too few rows, or the factors determine each other."""
    names = [name for name in names if group[name].drop_nulls().n_unique() > 1]
    group = group.drop_nulls(names)
    names = [name for name in names if group[name].n_unique() > 1]
    columns = [
        (name, (x - x.mean()) / x.std(ddof=1))
        for name in names
        for x in [group[name].to_numpy().astype(numpy.float64)]
    ]
    for effect in ("model", "language"):
        for level in group[effect].drop_nulls().unique().sort().to_list()[1:]:
            columns.append(
                (f"{effect} {level}", (group[effect] == level).fill_null(False).to_numpy().astype(float))
            )
    n_texts = group["text_id"].n_unique()
    if not names or n_texts < len(columns) + 1 + FEWEST:
        return _REGRESSION
    design = numpy.column_stack([numpy.ones(len(group)), *(x for _, x in columns)])
    if numpy.linalg.matrix_rank(design) < design.shape[1]:
        return _REGRESSION
    regression = package("statsmodels.regression.linear_model")
    model = regression.OLS(group[value].to_numpy().astype(numpy.float64), design)
    if n_texts == len(group):
        errors, fit = "HC3", model.fit(cov_type="HC3", use_t=True)
    else:
        texts = numpy.unique(group["text_id"].to_numpy(), return_inverse=True)[1]
        errors, fit = "by text", model.fit(cov_type="cluster", cov_kwds={"groups": texts}, use_t=True)
    interval = fit.conf_int(1 - LEVEL)
    return polars.DataFrame(
        [
            {
                "importance": importance,
                "term": term,
                "coefficient": fit.params[i],
                "low": interval[i, 0],
                "high": interval[i, 1],
                "p": fit.pvalues[i],
                "errors": errors,
                "n": len(group),
                "n_texts": n_texts,
                "r_squared": fit.rsquared,
            }
            for i, (term, _) in enumerate(columns, start=1)
        ],
        schema=_REGRESSION.schema,
    )
