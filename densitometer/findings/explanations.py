"""What goes with the size that a prediction needs."""

from __future__ import annotations

import polars

from ..analysis import FACTORS, FEWEST, FEWEST_TEXTS, factors, trees
from ..figures import draw_bars, draw_intervals
from .finding import VALUE, Evidence, Finding, LeftOut, between, listed, number, words


def what_goes_with_it(evidence: Evidence) -> Finding | LeftOut:
    """Each factor alone, and all by least squares."""
    name = "What goes with it"
    found = factors(evidence.measurements, VALUE)
    own = found.univariate.drop_nulls("rho")
    if own.is_empty():
        return LeftOut(name, f"fewer than {FEWEST} texts, or no factor that varies")
    shown = own.filter(polars.col("p_holm") < 0.05).sort(polars.col("rho").abs(), descending=True)
    parts = [
        f"{words(r['factor'])} ({r['model']}, {r['importance']}): {r['rho']:.2f} ({between(r['low'], r['high'], number)}, n = {r['n']})"
        for r in shown.iter_rows(named=True)
    ]
    claim = (
        f"{len(shown)} of {len(own)} correlations of size_at with a factor hold after Holm's correction (p < 0.05): {listed(parts)}."
        if parts
        else f"None of {len(own)} correlations of size_at with a factor holds after Holm's correction (p < 0.05): nothing is shown."
    )
    absent = [f for f in FACTORS if f not in own["factor"].to_list()]
    if absent:
        claim += f" Not in this study's data: {', '.join(words(f) for f in absent)}."
    tables = {"Spearman, one factor at a time": found.univariate}
    if found.regression.height:
        tables[
            "Least squares, all at once: change of size_at per standard deviation, and between models and languages"
        ] = found.regression
    else:
        claim += " No regression: too few texts, or factors that determine each other."
    return Finding(
        name,
        claim,
        draw_intervals(
                own.with_columns(polars.col("factor").str.replace_all("_", " ")), "factor", "rho", "low", "high",
                "Spearman with size_at, 95 % interval", zero=True,
            ),
        tables,
        "Above zero: more of it goes with larger traces. Frequencies are counted in the study's other texts, in the model's own tokens "
        "(log10); with few texts they say little. n_tokens is the context's length, and the position too. Least squares: errors "
        "are HC3, or clustered by text where a text has several rows. A correlation is no cause.",
        "For each factor: an interval that holds 0, or a sign that turns in the regression.",
    )  # fmt: skip


def what_trees_make_of_it(evidence: Evidence) -> Finding | LeftOut:
    """The same by boosted trees, on texts that they have not seen."""
    name = "What trees make of it"
    found = trees(evidence.measurements, VALUE)
    if found.scores.is_empty():
        return LeftOut(name, f"fewer than {FEWEST_TEXTS} texts per model, too few to hold some out")
    parts = []
    for r in found.scores.iter_rows(named=True):
        beats = r["r_squared"] > max(0.0, r["shuffled_best"])
        own = found.importances.filter(model=r["model"], importance=r["importance"]).sort(
            "mean_shap", descending=True
        )
        first = " and ".join(words(f) for f in own["factor"][:2])
        parts.append(
            f"{r['model']} by {r['importance']}: R² {r['r_squared']:.2f} on held-out texts (shuffled: {r['shuffled_mean']:.2f}), "
            + (f"most by {first}" if beats else "no better than chance, so its SHAP values mean nothing")
        )
    return Finding(
        name,
        f"Boosted trees that predict size_at from the factors: {listed(parts)}.",
        draw_bars(found.importances, found.scores, "share of edges"),
        {"Scores on held-out texts": found.scores, "Mean |SHAP|": found.importances},
        "Each text is predicted by trees that have not seen it (5 folds). R² 0 is no better than the mean; below it, worse. The control "
        "deals the values out anew among the texts, 5 times. SHAP values explain the trees, not the model.",
        "A score no better than the best of the shuffled controls.",
    )
