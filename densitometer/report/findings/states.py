"""Findings on the last token's state as traces grow, and on what small traces predict."""

from __future__ import annotations

import numpy
import polars

from ..._util.digits import percent
from ...analysis import FEWEST, state_geometry, unigram_knowledge
from ..figures import Lines, draw_lines
from .finding import Evidence, Finding, LeftOut, between, number, span

# Trace sizes that claims quote.
QUOTED = (0.001, 0.01, 0.1, 0.4)


def _quoted(rows: polars.DataFrame, column: str) -> str:
    """Write a column's values at the trace sizes `QUOTED`, such as "0.31 at 1 %, 0.62 at 10 %"."""
    at = dict(rows.drop_nulls(column).select("size", column).iter_rows())
    values = [f"{at[size]:z.2f} at {percent(size)}" for size in QUOTED if size in at]
    return ", ".join(values) or "see the table"


def _least_and_most(rows: polars.DataFrame) -> str:
    """Write the median cosines at the smallest and at the largest of the trace sizes `QUOTED`."""
    cosines = rows.drop_nulls("cosine").filter(polars.col("size").is_in(QUOTED)).sort("size")
    if cosines.is_empty():
        return "see the table"
    ends = cosines.filter(polars.col("size").is_in([cosines["size"][0], cosines["size"][-1]]))
    return ", ".join(
        f"{span(part['cosine'].to_list(), number)} at {percent(size)}"
        for (size,), part in ends.group_by("size", maintain_order=True)
    )


def where_the_state_goes(evidence: Evidence) -> Finding | LeftOut:
    """Finding on the geometry of the last token's state over trace size."""
    name = "Where the last token's state goes"
    if evidence.states.is_empty():
        return LeftOut(name, "the study stored no states (--states)")
    geometry = state_geometry(evidence.states)
    if geometry.paths.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    key = ["model", "importance", "size"]
    wide = geometry.populations
    for measure in ("cosine", "velocity", "curvature"):
        path = geometry.paths.filter(measure=measure)
        path = path.select(
            *key,
            **{measure: "median", f"{measure}_low": "lower_quartile", f"{measure}_high": "upper_quartile"},
        )
        wide = wide.join(path, on=key, how="full", coalesce=True)
    wide = wide.sort(key)
    details = []
    for (model, importance), rows in wide.group_by("model", "importance", maintain_order=True):
        fastest = rows.drop_nulls("velocity").sort("velocity", descending=True)
        part = f"cosine {_quoted(rows, 'cosine')}"
        if rows["cka"].drop_nulls().len():
            part += f"; CKA {_quoted(rows, 'cka')} (texts shuffled: {_quoted(rows, 'cka_dealt')})"
        if len(fastest):
            part += f"; fastest just before {percent(fastest['size'][0])}"
        details.append((f"{model} by {importance}", part))
    few = "" if wide["cka"].drop_nulls().len() else f" Fewer than {FEWEST} texts, so no CKA and no imbalance."
    return Finding(
        name,
        f"The last token's state has, in the median trace, this cosine with the full model's: {_least_and_most(wide)}.{few}",
        draw_lines(
            wide, "size", "size of the trace, share of the full one",
            [
                Lines("cosine with the model's state", "cosine", "cosine_low", "cosine_high"),
                Lines("velocity, model norms per decade", "velocity", "velocity_low", "velocity_high"),
                Lines("linear CKA", "cka", control="cka_dealt", dotted="texts shuffled"),
                Lines(
                    "imbalance to the model", "imbalance_to_model", control="imbalance_dealt", dotted="texts shuffled",
                ),
            ],
        ),
        {
            "Paths: medians over texts (curvature in degrees)": geometry.paths,
            "Populations: CKA and information imbalance": geometry.populations,
        },
        "The state is the input of the unembedding at the last token, after the final norm. Bands are the middle half of "
        "the texts. Linear CKA compares the positions of texts relative to each other; 1 is equal. With few texts in many "
        "dimensions it is high by chance, so read it against the dotted line. An information imbalance near 0 means that "
        "neighbours among the traces' states are neighbours among the model's; near 1 they are unrelated.",
        "A cosine that does not rise with size would have refuted that a trace's state approaches the model's; CKA and imbalance "
        "no better than with shuffled texts, that texts are placed as in the model.",
        details=tuple(details),
    )  # fmt: skip


def what_small_traces_know(evidence: Evidence) -> Finding | LeftOut:
    """Finding on the correlation of predictions with unigram frequencies over trace size."""
    name = "What small traces know"
    table = unigram_knowledge(evidence.curves, evidence.measurements)
    known = table.drop_nulls("rho")
    if known.is_empty():
        return LeftOut(
            name, "the study stored no correlation with unigram frequencies, or its texts share no sizes"
        )
    details, above = [], 0
    for (model, importance), rows in known.group_by("model", "importance", maintain_order=True):
        # the smallest size at which most traces see anything
        small = rows.filter(2 * polars.col("n") >= rows["n"].max()).sort("size").row(0, named=True)
        low, high = small["difference_low"], small["difference_high"]
        word = (
            "too few texts to show a difference"
            if low is None
            else "more than the model"
            if low > 0
            else "less than the model"
            if high < 0
            else "not shown to differ from the model"
        )
        above += low is not None and low > 0
        details.append(
            (
                f"{model} by {importance}",
                f"{small['rho']:z.2f} ({between(small['low'], small['high'], number)}, n = {small['n']}) at "
                f"{percent(small['size'])}, the full model's {small['full']:z.2f}: {word}; then "
                + _quoted(rows.filter(polars.col("size") > small["size"]), "rho"),
            )
        )
    tokens = int(numpy.median(known["n_unigrams"].drop_nulls()))
    reference = evidence.study.manifest["settings"]["unigrams"]
    first = evidence.study.manifest.get("counted")
    others = "the study's other texts" + ("" if first is None else f" (of the {first:,} with which it began)")
    counted = others if reference is None else reference["name"]
    return Finding(
        name,
        "The smallest traces that read any of their text follow token frequencies more closely than the full model for "
        f"{above} of {len(details)} models and importances.",
        draw_lines(
            known, "size", "size of the trace, share of the full one",
            [Lines("rank correlation with token counts", "rho", "low", "high", "full", "the model")],
        ),
        {"By size": table},
        f"Spearman correlation between a prediction's probabilities and token counts in {counted}, over the tokens that "
        f"occur there (about {tokens:,} of the vocabulary; counts in a small corpus are rough). Bands are 95 % intervals "
        "of the mean over texts. Traces without a path from the text to the output predict from biases alone and are left "
        "out; a size with few others shows little.",
        "A correlation that is not above the full model's at small sizes would have refuted that small traces encode unigram "
        "frequencies.",
        details=tuple(details),
    )  # fmt: skip
