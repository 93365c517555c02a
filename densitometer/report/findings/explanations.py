"""What goes with the size that a prediction needs, and whether that is the same for all domains and models."""

from __future__ import annotations

import polars

from ...analysis import (
    FACTORS,
    FEWEST,
    FEWEST_TEXTS,
    MOST_TEXTS,
    factors,
    installed_pipelines,
    shap_differences,
    trees,
)
from ..figures import draw_bars, draw_intervals
from .finding import VALUE, Evidence, Finding, LeftOut, between, listed, number, percent, words

LABELS = 20  # rows of a figure of correlations
SHARES = 10  # and of shares


def what_goes_with_it(evidence: Evidence) -> Finding | LeftOut:
    """Each factor alone, and all by least squares."""
    name = "What goes with it"
    found = factors(evidence.described, VALUE)
    own = found.univariate.drop_nulls("rho").with_columns(
        label=polars.concat_str(
            polars.col("factor").str.replace_all("_", " "),
            polars.when(polars.col("level").is_not_null()).then(polars.format(": {}", "level")),
            polars.when(polars.col("units") == "pieces").then(polars.lit(", within texts")),
            ignore_nulls=True,
        )
    )
    if own.is_empty():
        return LeftOut(name, f"fewer than {FEWEST} texts, or no factor that varies")
    shown = own.filter(polars.col("p_holm") < 0.05).sort(polars.col("rho").abs(), descending=True)
    parts = [
        f"{r['label']} ({r['model']}, {r['importance']}): {r['rho']:.2f} ({between(r['low'], r['high'], number)}, n = {r['n']})"
        for r in shown.iter_rows(named=True)
    ]
    claim = (
        f"{len(shown)} of {len(own)} correlations of size_at with a factor hold after Holm's correction (p < 0.05): {listed(parts)}."
        if parts
        else f"None of {len(own)} correlations of size_at with a factor holds after Holm's correction (p < 0.05): none is established; the figure shows the estimates."
    )
    absent = [f for f in FACTORS if f not in own["factor"].to_list()]
    if absent:
        claim += f" Not in this study's data, or the same in all: {', '.join(words(f) for f in absent)}."
    tables = {"Spearman, one factor at a time": found.univariate}
    if found.regression.height:
        tables["Least squares, all at once: change of size_at per standard deviation, and between groups"] = (
            found.regression
        )
        tables["What is in no regression, and why"] = found.left_out
    else:
        claim += " No regression: too few texts, or factors that determine each other."
    strongest = (
        own.group_by("label", maintain_order=True)
        .agg(polars.col("rho").abs().max())
        .sort("rho", "label", descending=[True, False])
    )
    drawn = strongest["label"].head(LABELS).to_list()
    cut = f" The figure shows the {LABELS} largest of {len(strongest)}." if len(strongest) > LABELS else ""
    order = polars.col("label").replace_strict(drawn, range(len(drawn)), return_dtype=polars.Int64)
    return Finding(
        name,
        claim,
        draw_intervals(
            own.filter(polars.col("label").is_in(drawn)).sort(order, "importance", "model"), "label", "rho", "low", "high",
            "Spearman with size_at, 95 % interval", zero=True,
        ),
        tables,
        f"Above zero: more of it goes with larger traces.{cut} A class is told level by level, each against all others. Frequencies are log10 "
        "shares in the study's other texts, in the model's own tokens or in words; with few texts they say little. Zipf values are of large "
        "corpora. n_tokens is the context's length, and the position too. Within texts: the mean over texts of the correlation "
        f"among a text's pieces. {_tagger()} Least squares: errors are HC3, or clustered by text where a text has several rows; effects are "
        "of groups, or of each text. A correlation is no cause.",
        "For each factor: an interval that holds 0, or a sign that turns in the regression.",
    )  # fmt: skip


def _tagger() -> str:
    pipelines = installed_pipelines()
    if not pipelines:
        return (
            "Parts of speech need spaCy and a pipeline of the text's language, and neither is installed here."
        )
    return f"Parts of speech are of the next word, by spaCy ({', '.join(pipelines.values())})."


def what_trees_make_of_it(evidence: Evidence) -> Finding | LeftOut:
    """The finding on what goes with density, by boosted trees on texts that they have not seen."""
    name = "What trees make of it"
    found = trees(evidence.described, VALUE)
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
            f"{r['model']} by {r['importance']}: R² {r['r_squared']:.2f} on held-out texts (best shuffled: {r['shuffled_best']:.2f}), "
            + (f"most by {first}" if beats else "no better than chance, so its SHAP values mean nothing")
        )
    return Finding(
        name,
        f"Boosted trees that predict size_at from the factors: {listed(parts)}.",
        draw_bars(found.importances, found.scores, "share of edges"),
        {"Scores on held-out texts": found.scores, "Mean |SHAP|": found.importances},
        "Each text is predicted by trees that have not seen it (5 folds). R² 0 is no better than the mean; below it, worse. The control "
        f"deals the values out anew among the texts, 5 times. Of more than {MOST_TEXTS} texts so many are drawn (n_texts). SHAP values explain the trees, not the model.",
        "A score no better than 0, or than the best of the shuffled controls.",
    )


def do_domains_explain_alike(evidence: Evidence) -> Finding | LeftOut:
    """Whether factors contribute in other shares in other domains."""
    why = f"fewer than two domains of {FEWEST} texts, or fewer than {FEWEST_TEXTS} texts in all"
    return _alike(
        evidence, "Whether domains differ in it", "domain", "domains", why,
        "For each model one set of trees, which is not told the domains, explains all texts; then the domains are dealt out anew "
        "among the texts. Where languages are not spread alike over the domains, a difference may be theirs.",
    )  # fmt: skip


def do_models_explain_alike(evidence: Evidence) -> Finding | LeftOut:
    """Whether factors contribute in other shares in other models."""
    why = f"fewer than two models, or fewer than {2 * FEWEST_TEXTS} texts that all have measured"
    return _alike(
        evidence, "Whether models differ in it", "model", "models", why,
        "Each model has trees of its own, on its values less their mean and over their deviation; within each text the rows are dealt "
        "out anew among the models, and all trees are grown anew each time.",
    )  # fmt: skip


def _alike(evidence: Evidence, name: str, by: str, groups: str, why: str, dealing: str) -> Finding | LeftOut:
    found = shap_differences(evidence.described, by, VALUE)
    together = found.tests.filter(polars.col("factor").is_null())
    if together.is_empty():
        return LeftOut(name, why)
    parts = []
    for r in together.iter_rows(named=True):
        who = f"by {r['importance']}" if r["model"] is None else f"{r['model']} by {r['importance']}"
        numbers = (
            f"{percent(r['apart'])} apart (by chance {percent(r['chance'])}; p = {r['p']:.2g}, corrected {r['p_corrected']:.2g}; "
            f"n = {r['n_texts']}, {r['deals']} deals)"
        )
        own = found.tests.filter(
            polars.col("factor").is_not_null(), polars.col("p_corrected") < 0.05, importance=r["importance"]
        ).filter(polars.col("model").eq_missing(polars.lit(r["model"], polars.String)))
        which = f", in {', '.join(words(f) for f in own['factor'])}" if len(own) else ""
        if not r["beats_chance"]:
            verdict = "trees no better than chance, so nothing is told"
        elif r["p_corrected"] < 0.05:
            verdict = f"they differ{which}"
        else:
            verdict = "no difference is shown"
        parts.append(f"{who}: {numbers}: {verdict}")
    profiles = found.profiles.with_columns(
        factor=polars.col("factor").str.replace_all("_", " "),
        importance=polars.concat_str("importance", "model", separator=", ", ignore_nulls=True),
        model="group",
    )
    size = polars.col("share").max()
    order = (
        profiles.group_by("factor", maintain_order=True)
        .agg(size)
        .sort("share", descending=True)
        .head(SHARES)["factor"]
        .to_list()
    )
    profiles = profiles.filter(polars.col("factor").is_in(order))
    place = polars.col("factor").replace_strict(order, range(len(order)), return_dtype=polars.Int64)
    return Finding(
        name,
        f"How far {groups} are apart in the factors' shares of what trees make of size_at. {listed(parts)}.",
        draw_intervals(
            profiles.sort("importance", place, "model"), "factor", "share", "low", "high",
            f"share of the mean |SHAP value|, 95 % interval (texts drawn, trees kept); {groups} by marker",
        ),
        {"Tests (factor –: all together)": found.tests, "Shares": found.profiles},
        f"{dealing} Apart is the mean total variation distance of the {groups}' shares from their mean: 0 where all are alike; chance is the "
        "median of the deals, because few texts are never quite alike. p is corrected over all such tests (Holm), and for all factors of "
        "the same trees (Westfall and Young). The intervals do not know what the trees happened to learn: p does. SHAP values are of texts "
        "that the trees have not seen.",
        f"A difference: {groups} that are no further apart than the deals, or trees that predict no better than on shuffled values.",
    )  # fmt: skip
