"""Findings on factors of density, and on whether domains and models differ in them."""

from __future__ import annotations

import polars

from ..._util.digits import percent
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
from ..figures import PANELS, draw_bars, draw_intervals
from .finding import PLACED, Evidence, Finding, LeftOut, between, cut, number, span, words

# Most labels of a figure of correlations, and most factors of a figure of shares.
LABELS = 20
SHARES = 10


def what_goes_with_it(evidence: Evidence) -> Finding | LeftOut:
    """Finding on correlations of density with each factor, and a regression on all."""
    name = "What goes with it"
    results = factors(evidence.described, PLACED)
    rhos = results.univariate.drop_nulls("rho").with_columns(
        label=polars.concat_str(
            polars.col("factor").str.replace_all("_", " "),
            polars.when(polars.col("level").is_not_null()).then(polars.format(": {}", "level")),
            polars.when(polars.col("units") == "pieces").then(polars.lit(", within texts")),
            ignore_nulls=True,
        )
    )
    if rhos.is_empty():
        return LeftOut(name, f"fewer than {FEWEST} texts, or no factor that varies")
    shown = rhos.filter(polars.col("p_holm") < 0.05).sort(polars.col("rho").abs(), descending=True)
    details = [
        (
            f"{r['label']} ({r['model']}, {r['importance']})",
            f"{r['rho']:z.2f} ({between(r['low'], r['high'], number)}, n = {r['n']})",
        )
        for r in shown.iter_rows(named=True)
    ]
    claim = (
        f"{len(shown)} of {len(rhos)} correlations of the share of edges needed with a factor hold after Holm's correction "
        f"(p < 0.05); the largest is with {details[0][0]}: {shown['rho'][0]:z.2f}."
        if details
        else f"None of {len(rhos)} correlations of the share of edges needed with a factor holds after Holm's correction "
        "(p < 0.05): none is established; the figure shows the estimates."
    )
    absent = [f for f in FACTORS if f not in rhos["factor"].to_list()]
    notes = ""
    if absent:
        notes += f" Not in this study's data, or equal in all of it: {', '.join(words(f) for f in absent)}."
    tables = {"Spearman, one factor at a time": results.univariate}
    if results.regression.height:
        tables["Least squares, all at once: change of size_at per standard deviation, and between groups"] = (
            results.regression
        )
        tables["What is in no regression, and why"] = results.left_out
    else:
        notes += " No regression: too few texts, or factors that determine each other."
    strongest = (
        rhos.group_by("label", maintain_order=True)
        .agg(polars.col("rho").abs().max())
        .sort("rho", "label", descending=[True, False])
    )
    drawn = strongest["label"].head(LABELS).to_list()
    cut_off = (
        f" The figure shows the {LABELS} largest of {len(strongest)}." if len(strongest) > LABELS else ""
    )
    order = polars.col("label").replace_strict(drawn, range(len(drawn)), return_dtype=polars.Int64)
    return Finding(
        name,
        claim,
        draw_intervals(
            rhos.filter(polars.col("label").is_in(drawn)).sort(order, "importance", "model"), "label", "rho", "low", "high",
            "rank correlation (Spearman) with the share of edges needed, 95 % interval", zero=True,
        ),
        tables,
        f"Above zero, more of the factor goes with larger traces.{cut_off} size_at is read between the two traces around it "
        "(size_between); n_tied counts texts that share a value. Each level of a class is compared with all others. "
        "Frequencies are log10 shares in the study's other texts, of the model's tokens or of words; with few texts they "
        "are rough. Zipf values are of large corpora. n_tokens is the context's length, and the position too. Within "
        f"texts: the mean over texts of the correlation among a text's pieces. {_tagger()} Least squares: errors are HC3, "
        "or clustered by text if a text has several rows; effects are of groups, or of each text. A correlation is not a "
        f"cause.{notes}",
        "For each factor, an interval that contains 0 or a sign that changes in the regression would have refuted that density "
        "goes with it.",
        details=tuple(details),
    )  # fmt: skip


def _tagger() -> str:
    """Sentence on the pipelines that tagged parts of speech."""
    pipelines = installed_pipelines()
    if not pipelines:
        return "Parts of speech need spaCy and a pipeline for the text's language; no pipeline is installed here."
    return f"Parts of speech are of the next word, by spaCy ({', '.join(pipelines.values())})."


def what_trees_make_of_it(evidence: Evidence) -> Finding | LeftOut:
    """Finding on how well boosted trees predict density on held-out texts, and by which factors."""
    name = "What trees make of it"
    fitted = trees(evidence.described, PLACED)
    if fitted.scores.is_empty():
        return LeftOut(name, f"fewer than {FEWEST_TEXTS} texts per model, too few to hold some out")
    details = []
    for r in fitted.scores.iter_rows(named=True):
        beats = r["r_squared"] > max(0.0, r["shuffled_best"])
        shap = fitted.importances.filter(model=r["model"], importance=r["importance"]).sort(
            "mean_shap", descending=True
        )
        first = " and ".join(words(f) for f in shap["factor"][:2])
        details.append(
            (
                f"{r['model']} by {r['importance']}",
                f"R² {r['r_squared']:z.2f} on held-out texts (best shuffled: {r['shuffled_best']:z.2f}), "
                + (f"most by {first}" if beats else "no better than chance, so its SHAP values mean nothing"),
            )
        )
    better = fitted.scores.filter(
        polars.col("r_squared") > polars.max_horizontal(polars.lit(0.0), "shuffled_best")
    )
    return Finding(
        name,
        f"Boosted trees predict the share of edges needed by held-out texts from the factors better than chance for {len(better)} of "
        f"{len(fitted.scores)} models and importances (R² {span(fitted.scores['r_squared'].to_list(), number)}).",
        draw_bars(fitted.importances, fitted.scores, "in shares of edges"),
        {"R² on held-out texts": fitted.scores, "Mean |SHAP|": fitted.importances},
        "Each text is predicted by trees that were fitted without it (5 folds). At R² 0 predictions are as good as the mean; "
        "below 0 they are worse. The control shuffles the values among the texts, 5 times. Of more than "
        f"{MOST_TEXTS} texts a random sample of that size is used (n_texts). SHAP values explain the trees, not the model."
        + cut(len(fitted.scores), PANELS),
        "An R² no better than 0, or than the best of the shuffled controls, would have refuted that the factors explain density.",
        details=tuple(details),
    )


def do_domains_explain_alike(evidence: Evidence) -> Finding | LeftOut:
    """Finding on whether factors contribute differently in different domains."""
    why = f"fewer than two domains of {FEWEST} texts, or fewer than {FEWEST_TEXTS} texts in all"
    return _alike(
        evidence, "Whether domains differ in it", "domain", "domains", why,
        "For each model one set of trees, which does not see the domains, explains all texts. The domains are then permuted "
        "among the texts. If languages are spread unevenly over the domains, they may cause a difference.",
    )  # fmt: skip


def do_models_explain_alike(evidence: Evidence) -> Finding | LeftOut:
    """Finding on whether factors contribute differently in different models."""
    why = f"fewer than two models, or fewer than {2 * FEWEST_TEXTS} texts that all have measured"
    return _alike(
        evidence, "Whether models differ in it", "model", "models", why,
        "Each model has trees of its own, on its standardised values. Within each text the rows are permuted among the models, "
        "and all trees are fitted again each time.",
    )  # fmt: skip


def _alike(evidence: Evidence, name: str, by: str, groups: str, why: str, dealing: str) -> Finding | LeftOut:
    differences = shap_differences(evidence.described, by, PLACED)
    together = differences.tests.filter(polars.col("factor").is_null())
    if together.is_empty():
        return LeftOut(name, why)
    details, differ = [], 0
    for r in together.iter_rows(named=True):
        who = f"by {r['importance']}" if r["model"] is None else f"{r['model']} by {r['importance']}"
        numbers = (
            f"{percent(r['apart'])} apart (by chance {percent(r['chance'])}; p = {r['p']:.2g}, corrected "
            f"{r['p_corrected']:.2g}; n = {r['n_texts']}, {r['deals']} permutations)"
        )
        factors_apart = differences.tests.filter(
            polars.col("factor").is_not_null(), polars.col("p_corrected") < 0.05, importance=r["importance"]
        ).filter(polars.col("model").eq_missing(polars.lit(r["model"], polars.String)))
        which = f", in {', '.join(words(f) for f in factors_apart['factor'])}" if len(factors_apart) else ""
        if not r["beats_chance"]:
            verdict = "trees no better than chance, so nothing is shown"
        elif r["p_corrected"] < 0.05:
            verdict = f"they differ{which}"
            differ += 1
        else:
            verdict = "no difference is shown"
        details.append((who, f"{numbers}: {verdict}"))
    profiles = differences.profiles.with_columns(
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
        f"The factors' shares of the mean |SHAP value| differ between {groups} more than by chance in {differ} of "
        f"{len(together)} comparisons.",
        draw_intervals(
            profiles.sort("importance", place, "model"), "factor", "share", "low", "high",
            f"share of the mean |SHAP value|, 95 % interval (texts resampled, trees fixed); {groups} by marker",
        ),
        {"Tests (factor –: all together)": differences.tests, "Shares": differences.profiles},
        f"{dealing} The distance is the mean total variation distance of the {groups}' shares from their mean: 0 if all are "
        "equal. Chance is the median over permutations, which few texts keep above 0. p is corrected over all such tests "
        "(Holm), and over all factors of the same trees (Westfall and Young). The intervals do not account for how trees vary "
        "between fits; p does. SHAP values are of held-out texts.",
        "A distance no larger than in permutations, or trees that predict no better than on shuffled values, would have refuted that "
        f"{groups} differ.",
        details=tuple(details),
    )  # fmt: skip
