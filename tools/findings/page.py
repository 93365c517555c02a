"""docs/findings.md, from the stored studies: nothing is typed that can be computed, and what is missing is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import brief
import polars
import questions
import stored_studies
from evidence import MODELS, SHORT, Evidence
from evidence import PARTS as PARTS_OF

# Fewer unseen passages than this are not judged by themselves.
UNSEEN_ENOUGH = 20
PAGE = stored_studies.ROOT / "docs/findings.md"
NAMES = {
    "passages": "first 40 words of WikiText passages, `l1` and `fisher`", "kept": "the same passages, the published way: `l1`, attention kept",
    "languages": "articles of the Universal Declaration in four languages, 20 words", "code": "functions of this package, 16 words",
    "contexts": "WikiText passages of 64 words, the same target after 8, 16, 32 and 64 tokens", "states": "passages again, with the last token's states",
    "search": "passages by `l1`, `fisher` and `best`",
}  # fmt: skip


def page(folder: Path) -> str:
    return "\n".join(lines(Evidence(folder))) + "\n"


def pages(folder: Path) -> dict[Path, str]:
    """The text of each page, by its path."""
    e = Evidence(folder)
    return {PAGE: "\n".join(lines(e)) + "\n", brief.PAGE: brief.page(e)}


def lines(e: Evidence) -> Iterator[str]:
    yield "# The papers' findings, their way and with every edge off that is off"
    yield ""
    yield "<!-- Written by `make findings` (tools/findings) from the studies in findings/: change those, not this page. -->"
    yield ""
    yield "Every number here is computed from the studies stored in `findings/` by one command, `make findings`; a test holds this page to them."
    yield 'The papers are arXiv 2601.22795 ("January", withdrawn by its authors in April 2026) and arXiv 2605.27033 ("May"); their models have 7 to'
    yield "14 billion parameters. Ours are three small real ones, whose weights are of four bits, dequantised to float32, so that they are not the"
    yield "published models to the digit; and three toys of about 3 million parameters. **Where we differ, the models may be why.**"
    yield ""
    yield "*The published way*: as the May paper's code stands in public, its mask of attention is not obeyed, so attention edges are always on"
    yield "(`attention=\"kept\"`; see the method). Whether the paper's own runs had this is not known. January's code did apply it."
    yield ""
    yield "Numbers are medians or Spearman correlations over texts with 95 % intervals (bootstrap over texts); * is p < .05 after Holm's correction"
    yield "over the models of a column. Verdicts are by one rule, of the three real models. An estimate of ours *stands* if it is clearly on the papers'"
    yield "side on all three: *holds*. It *falls* if that is so on none and it is clearly on the other side on one at least: *contradicted*, or *holds only the"
    yield "published way* if theirs stands. All else is *not decidable here*: with few texts an estimate that is not clear says nothing."
    yield "`tools/findings/questions.py` has the rule."
    yield ""
    answered = {part: [ask(e) for ask in asked] for part, asked in PARTS.items()}
    unseen, again = Evidence(e.folder, unseen=True), {}
    fewest = unseen.fewest("passages")
    if fewest >= UNSEEN_ENOUGH:
        again = {found.title: found.verdict for found in (ask(unseen) for ask in questions.OF_PASSAGES)}
        yield f"The last column is the verdict on the {fewest} passages or more (of each model) that were measured when questions, readings and rule"
        yield "were settled, and had not been looked at: the others were, at 15, 25 and 40 texts, so that their p are a little too small."
        yield ""
    header = ["question", "paper", "verdict"] + ["on unseen passages alone"] * bool(again)
    rows = [
        dict(zip(header, (f"[{a.title}](#{anchor(a.title)})", part, a.verdict, again.get(a.title, "")), strict=False))
        for part, answers in answered.items() if part != "Beyond the papers" for a in answers
    ]  # fmt: skip
    yield from table(rows)
    yield ""
    yield "## What was measured"
    yield ""
    yield from amounts(e)
    for part, answers in answered.items():
        yield ""
        yield f"## {part}"
        for a in answers:
            yield ""
            yield from answer(a, judged=part != "Beyond the papers")
            if a.title.startswith("Do models agree"):
                yield ""
                yield "All pairs, `size_at`: by `fisher` above the diagonal, by `l1` below it; * after Holm over the pairs of an order."
                yield ""
                yield from table(questions.matrix(e))
    yield ""
    yield "## Confounds"
    yield ""
    yield "Spearman of `size_at` on the passages of the real models: as it is, and of the ranks that are left when those of what is held are regressed"
    yield "out. Vocabulary and four-bit weights differ between the models and cannot be told from them; neither can more than six models tell."
    yield ""
    yield from table(questions.confounds(e))
    yield ""
    yield "Size in another language over that in English, of the same articles, with the log entropy and log length of each prediction held (least"
    yield "squares; intervals draw articles): 1 is no difference."
    yield ""
    yield from table(questions.held_languages(e))
    yield ""
    yield "## What is not here"
    yield ""
    yield from missing(e)


PARTS = {"January": questions.JANUARY, "May": questions.MAY, "Beyond the papers": questions.BEYOND}


def anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return "-".join(kept.split())


def answer(a: questions.Answer, judged: bool = True) -> Iterator[str]:
    yield f"### {a.title}"
    yield ""
    yield f"- **Their claim.** {a.paper}"
    yield f"- **Theirs, re-enacted.** {a.theirs}"
    yield f"- **Ours.** {a.ours}"
    yield ""
    yield from table(a.rows)
    yield ""
    head = f"**{a.verdict[0].upper()}{a.verdict[1:]}**: " if judged else ""
    because = a.because if a.rows else "nothing was measured yet, or of too few texts."
    yield head + (because if judged else because[:1].upper() + because[1:])
    if a.notes:
        yield a.notes


def table(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """A Markdown table; a sentence where there are no rows."""
    if not rows:
        yield "*No table: nothing is stored that answers this.*"
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(row.get(name, "") for name in names) + " |"


def amounts(e: Evidence) -> Iterator[str]:
    """Texts measured, of each study and model, and the seconds of a core that one text took."""
    rows = []
    for name, what in NAMES.items():
        own = e.rows(name)
        row = {"study": f"`{name}`", "what": what}
        for model in MODELS:
            part = own.filter(model=model) if len(own) else own
            n = part["text_id"].n_unique() if len(part) else 0
            row[model] = f"{n}, {part['seconds'].sum() / n:.1f} s" if n else "0"
        rows.append(row)
    yield "Texts of each study, and seconds of one core that a text took."
    yield ""
    yield from table(rows)
    changed = e.rows("changed")
    if len(changed):
        yield ""
        yield (
            f"`changed`: the first {changed.group_by('model').agg(polars.col('text_id').n_unique())['text_id'].min()} passages or more, on "
            f"{changed['model'].n_unique()} models made from these (`tools/findings/changed_models.py`)."
        )
    every = (*NAMES, "changed")
    seconds = sum(e.rows(name)["seconds"].sum() for name in every if len(e.rows(name)))
    failed = sum(e.failed(name) for name in every)
    yield ""
    rounding = [e.rows(name)["full_trace_tv"].max() for name in NAMES if len(e.rows(name))]
    if rounding:
        yield (
            f"The trace of all edges gives the model's own prediction back to a TV of {max(rounding):.0e} at most; what rounding does to smaller "
            "traces was not measured."
        )
    yield f"{seconds / 3600:.1f} core-hours in all; {failed} rows failed. Sizes are the default grid of 26 and a bisection to 5 %."


def missing(e: Evidence) -> Iterator[str]:
    """Parts of the plan that are not stored yet, and what the plan does not have."""
    for name in NAMES:
        kinds = [stored_studies.KINDS[part] for part in PARTS_OF.get(name, (name,))]
        count, own = max(kind.count for kind in kinds), e.rows(name)
        left = {}
        for model in kinds[0].models:
            n = own.filter(model=SHORT[model])["text_id"].n_unique() if len(own) else 0
            if n < count:
                left[SHORT[model]] = count - n
        if left:
            yield f"- `{name}`: of {count} texts are left: {', '.join(f'{m} {n}' for m, n in left.items())}."
    changed = e.rows("changed")
    have = changed["model"].unique().to_list() if len(changed) else []
    if absent := [name for name in stored_studies.KINDS["changed"].models if name not in have]:
        yield f"- `changed`: nothing yet of {', '.join(absent)}."
    yield "- Training checkpoints, and full weights against four-bit ones, of a real model: neither is at hand."
    yield "- Models of the papers' size. The three real ones are of 135 to 500 million parameters."


def write(folder: Path) -> None:
    """Write the pages and the figures."""
    for path, text in pages(folder).items():
        path.write_text(text, encoding="utf-8")
    brief.draw(Evidence(folder))
