"""Findings on density: how much is needed, in which groups of texts, and whether models agree."""

from __future__ import annotations

import polars

from ..._util.digits import percent
from ...analysis import FEWEST, correlation_across_models, distribution, named
from ..figures import draw_cumulative, draw_intervals, draw_matrix, draw_scatter
from .finding import PLACED, VALUE, Evidence, Finding, LeftOut, between, number, span, two_digits


def how_much_is_needed(evidence: Evidence) -> Finding | LeftOut:
    """Finding on the smallest size that holds a prediction, per model and importance."""
    name = "How much is needed"
    table = distribution(evidence.measurements, ["model", "importance"], ["size_at", "flops_at", "auc_log"])
    sizes = table.filter(polars.col("value") == VALUE, polars.col("n") > 0)
    if sizes.is_empty():
        return LeftOut(name, f"no size evaluated holds any prediction (TV ≤ {evidence.eps:g})")
    details = [
        (
            f"{r['model']} by {r['importance']}",
            f"{percent(r['median'], 2)} (95 %: {between(r['low'], r['high'], two_digits)})",
        )
        for r in sizes.iter_rows(named=True)
    ]
    never = int(sizes["n_never"].sum())
    missed = f" {never:,} predictions are held by no size and are not in the medians." if never else ""
    least = sizes.sort("median").unique("model", keep="first", maintain_order=True)
    by = ", ".join(least["importance"].unique().sort())
    return Finding(
        name,
        f"Half of the predictions hold (TV ≤ {evidence.eps:g}) with {span(least['median'].to_list(), two_digits)} of the edges, by each "
        f"model's tightest importance ({by}).{missed}",
        draw_cumulative(
            evidence.measured.select("model", "importance", "size_at").sort("importance", "model"),
            evidence.eps,
        ),
        {"Median, its interval and quartiles": table},
        "Each line rises as predictions are held; further left is sparser. size_at: share of edges; flops_at: share of "
        "operations; auc_log: mean TV over log10 size from 1e-5 to 1. An absolute share depends on the importance too: a "
        "better importance finds smaller traces.",
        "An importance with which the median falls to a few percent would have refuted that predictions need much; that there is "
        "none would have refuted that they need little.",
        details=tuple(details),
    )


def between_groups(evidence: Evidence) -> Finding | LeftOut:
    """Finding on whether density differs between languages and domains."""
    name = "Between languages and domains"
    by = [c for c in ("language", "domain") if evidence.measured[c].drop_nulls().n_unique() > 1]
    if not by:
        return LeftOut(name, "the corpus names one language and one domain at most")
    table = distribution(evidence.measurements, ["model", "importance", *by], [VALUE, "auc_log"])
    sizes = table.filter(polars.col("value") == VALUE, polars.col("n") > 0)
    if sizes.is_empty():
        return LeftOut(name, "no size evaluated holds any prediction")
    sizes = sizes.with_columns(
        group=polars.concat_str([polars.col(c).fill_null("(none)") for c in by], separator=", ")
    )
    details, found = [], []
    for (model, importance), rows in sizes.group_by("model", "importance", maintain_order=True):
        rows = rows.sort("median")
        least, most = rows.row(0, named=True), rows.row(-1, named=True)
        apart = None
        if least["high"] is not None and most["low"] is not None:
            apart = least["high"] < most["low"]
        word = {
            None: "too few texts for intervals",
            True: "intervals apart",
            False: "intervals overlap, so no difference is shown",
        }[apart]
        found.append(apart)
        details.append(
            (
                f"{model} by {importance}",
                f"from {percent(least['median'], 2)} ({least['group']}) to {percent(most['median'], 2)} ({most['group']}), {word}",
            )
        )
    return Finding(
        name,
        f"Of {sizes['group'].n_unique()} groups the least and the most demanding have medians whose intervals are apart for "
        f"{sum(map(bool, found))} of {len(found)} models and importances.",
        draw_intervals(
                sizes.sort(*by), "group", "median", "lower_quartile", "upper_quartile",
                f"share of edges from which TV stays ≤ {evidence.eps:g}: median and middle half",
            ),
        {"Median, its interval and quartiles": table},
        "Points are medians, bars the middle half of the texts (not intervals of the median, which are in the table). The "
        "least and the most of many groups differ by chance too; the intervals are not corrected for that choice.",
        "Intervals of the medians that overlap, or a second corpus in which the order is reversed, would have refuted that "
        "groups differ.",
        details=tuple(details),
    )  # fmt: skip


def across_models(evidence: Evidence) -> Finding | LeftOut:
    """Finding on whether the same texts need much of every model."""
    name = "Across models"
    models = evidence.measured["model"].unique().sort().to_list()
    if len(models) < 2:
        return LeftOut(name, "one model only; two or more are needed")
    correlations = {
        (value, method): correlation_across_models(evidence.placed, value, method)
        for value in (PLACED, "auc_log")
        for method in ("spearman", "pearson")
    }
    pairs = polars.concat(
        c.pairs.select(polars.lit(value).alias("value"), polars.lit(method).alias("method"), polars.all())
        for (value, method), c in correlations.items()
    )
    rhos = pairs.filter(polars.col("value") == PLACED, polars.col("method") == "spearman").drop_nulls("rho")
    if rhos.is_empty():
        return LeftOut(name, f"fewer than {FEWEST} texts were measured by two models")
    shown = rhos.filter(polars.col("p_holm") < 0.05, polars.col("rho") > 0)
    details = [
        (
            f"{r['one']} and {r['other']} by {r['importance']}",
            f"{r['rho']:z.2f} ({between(r['low'], r['high'], number)}, n = {r['n']})",
        )
        for r in rhos.iter_rows(named=True)
    ]
    matrix = correlations[PLACED, "spearman"].matrix
    if len(models) == 2:
        clouds = []
        for importance in matrix["importance"].unique(maintain_order=True):
            one, other = (
                named(evidence.placed)
                .filter(polars.col("importance") == importance, polars.col("model") == model)
                .drop_nulls(PLACED)
                for model in models
            )
            both = one.join(other, on=["text_id", "piece"], suffix="_other").group_by(
                "text_id", maintain_order=True
            )
            means = both.agg(polars.col(PLACED, f"{PLACED}_other").mean())
            clouds.append((importance, means[PLACED].to_numpy(), means[f"{PLACED}_other"].to_numpy()))
        figure = draw_scatter(
            clouds, (models[0], models[1]), f"share of edges needed (TV ≤ {evidence.eps:g})"
        )
    else:
        figure = draw_matrix(matrix)
    return Finding(
        name,
        f"{_correlation_claim(len(shown), len(rhos))} (Holm's correction, p < 0.05); Spearman {span(rhos['rho'].to_list(), number)}.",
        figure,
        {
            "Pairs (p_holm: corrected over the pairs of a value and method)": pairs,
            "Matrix of size_at (Spearman)": matrix,
        },
        "A text counts once, by the mean of its pieces; n is the number of texts that both models measured, n_tied of "
        "those that share a value with another text. size_at is read between the two traces around it (size_between), as "
        "many texts share the same traces' sizes. auc_log "
        "correlates also because TV at tiny sizes mostly follows the entropy of the prediction; size_at does not.",
        "Intervals that contain 0, or a correlation that vanishes when entropy is held constant, would have refuted that models agree.",
        details=tuple(details),
    )


def _correlation_claim(n_shown: int, n: int) -> str:
    if n_shown == 0:
        which = "the one pair does not hold" if n == 1 else f"none of {n} pairs holds"
        return f"That texts which need much of one model need much of another is not shown: {which}"
    which = "the one pair" if n == 1 else f"all {n} pairs" if n_shown == n else f"{n_shown} of {n} pairs"
    return f"Texts that need much of one model need much of the other in {which} of models"
