"""Where the last token's state goes as traces grow, and what small traces know."""

from __future__ import annotations

import numpy
import polars

from ...analysis import FEWEST, state_geometry, unigram_knowledge
from ..figures import Lines, draw_lines
from .finding import Evidence, Finding, LeftOut, between, listed, number, percent

TOLD = (0.001, 0.01, 0.1, 0.4)  # sizes that claims are about


def _told(rows: polars.DataFrame, column: str) -> str:
    """The values of a column at the sizes that claims are about."""
    at = dict(rows.drop_nulls(column).select("size", column).iter_rows())
    return ", ".join(f"{at[size]:.2f} at {percent(size)}" for size in TOLD if size in at) or "see the table"


def where_the_state_goes(evidence: Evidence) -> Finding | LeftOut:
    """The geometry of what the unembedding reads, over size."""
    name = "Where the last token's state goes"
    if evidence.states.is_empty():
        return LeftOut(name, "no states were kept (--states)")
    found = state_geometry(evidence.states)
    if found.paths.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    key = ["model", "importance", "size"]
    wide = found.populations
    for measure in ("cosine", "velocity", "curvature"):
        own = found.paths.filter(measure=measure)
        own = own.select(
            *key,
            **{measure: "median", f"{measure}_low": "lower_quartile", f"{measure}_high": "upper_quartile"},
        )
        wide = wide.join(own, on=key, how="full", coalesce=True)
    wide = wide.sort(key)
    parts = []
    for (model, importance), rows in wide.group_by("model", "importance", maintain_order=True):
        fastest = rows.drop_nulls("velocity").sort("velocity", descending=True)
        told = f"{model} by {importance}: cosine {_told(rows, 'cosine')}"
        if rows["cka"].drop_nulls().len():
            told += f"; CKA {_told(rows, 'cka')} (texts dealt anew: {_told(rows, 'cka_dealt')})"
        if len(fastest):
            told += f"; fastest just before {percent(fastest['size'][0])}"
        parts.append(told)
    few = "" if wide["cka"].drop_nulls().len() else f" Fewer than {FEWEST} texts, so no CKA and no imbalance."
    return Finding(
        name,
        f"The state of a trace against the model's own (medians over texts): {listed(parts, 4)}.{few}",
        draw_lines(
            wide, "size", "share of edges in the trace",
            [
                Lines("cosine with the model's state", "cosine", "cosine_low", "cosine_high"),
                Lines("velocity, model norms per decade", "velocity", "velocity_low", "velocity_high"),
                Lines("linear CKA", "cka", control="cka_dealt", dotted="texts dealt anew"),
                Lines("imbalance to the model", "imbalance_to_model", control="imbalance_dealt", dotted="texts dealt anew"),
            ],
        ),
        {
            "Paths: medians over texts (curvature in degrees)": found.paths,
            "Populations: CKA and information imbalance": found.populations,
        },
        "The state is what the unembedding reads at the last token, after the final norm. Bands are the middle half of the texts. "
        "Linear CKA compares how the texts lie to each other, 1 is alike; of few texts in many dimensions it is high by "
        "itself, so read it against the dotted line. Information imbalance towards 0: who is near whom among the traces' states "
        "tells who is near whom among the model's; about 1: it does not.",
        "That a trace's state nears the model's: a cosine that does not rise with size. That the texts lie to each other as in the "
        "model: CKA and imbalance no better than with the texts dealt anew.",
    )  # fmt: skip


def what_small_traces_know(evidence: Evidence) -> Finding | LeftOut:
    """Correlations with unigram frequencies, over size."""
    name = "What small traces know"
    table = unigram_knowledge(evidence.curves, evidence.measurements)
    known = table.drop_nulls("rho")
    if known.is_empty():
        return LeftOut(name, "no correlation with unigram frequencies was stored, or no sizes are common")
    parts = []
    for (model, importance), rows in known.group_by("model", "importance", maintain_order=True):
        # the smallest size at which most traces see anything
        small = rows.filter(2 * polars.col("n") >= rows["n"].max()).sort("size").row(0, named=True)
        low, high = small["difference_low"], small["difference_high"]
        word = (
            "too few texts to tell them apart"
            if low is None
            else "more than the model"
            if low > 0
            else "less than the model"
            if high < 0
            else "not shown to differ from the model"
        )
        parts.append(
            f"{model} by {importance}: {small['rho']:.2f} ({between(small['low'], small['high'], number)}, n = {small['n']}) at "
            f"{percent(small['size'])}, the model's own {small['full']:.2f}: {word}; then "
            + _told(rows.filter(polars.col("size") > small["size"]), "rho")
        )
    tokens = int(numpy.median(known["n_unigrams"].drop_nulls()))
    reference = evidence.study.manifest["settings"]["unigrams"]
    counted = "the study's other texts" if reference is None else reference["name"]
    return Finding(
        name,
        "The rank correlation of the predictions of the smallest traces that see anything of their text with how often tokens "
        f"occur: {listed(parts, 4)}.",
        draw_lines(
            known, "size", "share of edges in the trace",
            [Lines("rank correlation with token counts", "rho", "low", "high", "full", "the model")],
        ),
        {"By size": table},
        f"Spearman between a prediction's probabilities and token counts in {counted}, over the tokens that occur there (about "
        f"{tokens:,} of the vocabulary; a small corpus tells little of how frequent a token is). Bands are 95 % intervals "
        "of the mean over texts. Traces through which no path leads from the text to the output predict what biases give, if anything, and are left out; a size with few others says little.",
        "That small traces encode unigram frequencies: a correlation that is not above the model's own at small sizes.",
    )  # fmt: skip
