"""docs/findings-in-brief.md: the findings on one page, for people who do not work on language models, and its three figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import polars
import questions
import stored_studies
from evidence import MODELS, REAL, Evidence
from questions import number, share, told

from densitometer import analysis
from densitometer.report import figures

PAGE = stored_studies.ROOT / "docs/findings-in-brief.md"
FIGURES = stored_studies.ROOT / "docs/figures"
WAYS = (
    ("kept", "l1", "l1, attention always on (as published)"),
    ("passages", "l1", "l1"),
    ("passages", "fisher", "fisher"),
)


def page(e: Evidence) -> str:
    return "\n".join(lines(e)) + "\n"


def lines(e: Evidence) -> Iterator[str]:
    passages = e.rows("passages")
    yield "# The findings in brief"
    yield ""
    yield "<!-- Written by `make findings` (tools/findings/brief.py) from the studies in findings/: change those, not this page. -->"
    yield ""
    if not len(passages) or not set(REAL) <= set(passages["model"]):
        yield "Nothing is stored yet from which it could be written: run `make findings`."
        return
    n = min(passages.filter(model=m)["text_id"].n_unique() for m in REAL)
    size = {name: questions.medians(passages, "size_at", name) for name in questions.BOTH}
    edges = questions.told(
        questions.medians(passages, "n_edges", "fisher"), lambda value: f"{value / 1e3:.0f} thousand"
    )
    flops = questions.medians(passages, "flops_at", "fisher")
    kept = questions.medians(e.rows("kept"), "size_at", "l1")
    yield "A language model guesses the next word by adding up very many small contributions: each word it has read adds something to each later one,"
    yield f"layer by layer. For one guess after forty words these are {edges} (median, in the order of the models below). **How many of them does a guess need?** We keep"
    yield "the most important ones, switch all others off, run the model again and see whether it still says the same."
    yield ""
    yield f"We asked three small language models ({', '.join(REAL)}; their weights rounded to four bits) about the word after the first forty of "
    yield f"{n} passages of Wikipedia, and did the same with three toy models. Two papers asked this before us, of larger models."
    yield ""
    yield f"**A guess needs much.** With the papers' measure of importance, half of the guesses hold only once {told(size['l1'], share)} of the contributions"
    yield f"are on (in the order of the models above); with a better measure {told(size['fisher'], share)}, which is {told(flops, share)} of the arithmetic. The public code of the"
    yield "later paper never switches off attention, the part in which words look at each other; done that way the same guesses seem to need "
    yield f"{told(kept, share) or 'a share that is not stored yet'} only."
    yield ""
    yield "![Total variation between the full model and the pruned one, over the share of contributions kept](figures/curves.svg)"
    yield ""
    yield "*How far the pruned model's guess is from the full one's (0: the same, 1: nothing in common), over the share of contributions that are kept."
    yield "Median and middle half of the passages.*"
    yield ""
    spread = questions._spread(passages, "size_at", "fisher")
    by_entropy = questions.correlations(passages, "size_between", "entropy", "fisher")
    yield f"**It depends on the text.** Between the passages of the upper and of the lower quarter lies a factor of {told(spread)}. How unsure a model is of"
    yield f"its guess has to do with it: the rank correlation of what a guess needs with its uncertainty is {told(by_entropy)} (1: the same order)."
    yield ""
    yield "![Share of passages whose guess holds, over the share of contributions kept](figures/held.svg)"
    yield ""
    yield "*Share of the passages whose guess holds (within a tenth), over the share of contributions that are kept.*"
    yield ""
    pairs = questions._within(questions._pairs(passages, "size_between", "fisher"), "real")
    free = questions._within(questions._pairs(passages, "size_between", "fisher", hold=True), "real")
    values = ", ".join(number(r["rho"]) for r in pairs)
    yield f"**Do models agree on which texts need much?** The rank correlations between two of the three are {values}. When their uncertainty and the"
    yield f"length of the text are taken out, {', '.join(number(r['rho']) for r in free)} are left."
    yield ""
    yield "![Rank correlations between six models of how much a passage needs](figures/models.svg)"
    yield ""
    yield "*Rank correlation between models of how much a passage needs.*"
    yield ""
    answers = [ask(e) for ask in (*questions.JANUARY, *questions.MAY)]
    counts = {v: sum(a.verdict == v for a in answers) for v in questions.VERDICTS}
    yield f"Of {len(answers)} questions that the two papers answer, {', '.join(f'{n} {v!r}'.replace(chr(39), '*') for v, n in counts.items())}, by one rule for all:"
    yield "[the findings](findings.md) have each claim, what its own method gives here, and what ours gives. Small models, few texts, weights of four bits:"
    yield "where we differ from the papers, that may be why."


def draw(e: Evidence, folder: Path = FIGURES) -> list[Path]:
    """Write the three figures. None where the passages are not there."""
    passages = e.rows("passages")
    if not len(passages):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for study, importance, name in WAYS:
        curves = e.curves(study)
        if len(curves):
            table = analysis.curve_quartiles(
                curves.filter(polars.col("model").is_in(REAL), importance=importance)
            )
            tables.append(table.with_columns(importance=polars.lit(name)))
    held = (
        passages.filter(polars.col("model").is_in(REAL))
        .select("model", "importance", "size_at")
        .sort("model")
    )
    drawn = {
        "curves": figures.draw_curves(polars.concat(tables), None, 0.1),
        "held": figures.draw_cumulative(held, 0.1),
        "models": figures.draw_matrix(_matrix(passages)),
    }
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.svg")
    return [folder / f"{name}.svg" for name in drawn]


def _matrix(passages: polars.DataFrame) -> polars.DataFrame:
    """The matrix of `analysis.correlation_across_models`, in our order of models."""
    found = analysis.correlation_across_models(passages, "size_between").matrix
    models = [m for m in MODELS if m in found.columns]
    place = polars.col("model").replace_strict(models, numpy.arange(len(models)), return_dtype=polars.Int64)
    return found.sort("importance", place).select("importance", "model", *models)
