"""The papers' findings on the bundled models and texts: two studies, their reports, and docs/findings.md. `make study`.

    python tools/study_findings.py out/findings

    contexts    150 short texts (75 in English and in French, five domains), the token after the 30th word after 8, 16 and 32
                tokens of context, three models, by l1 and by fisher
    search      40 of them after 32 tokens, by l1, by fisher and by best, the tightest importance there is, which costs ten times more

Stopped, it goes on where it was. What it writes says what came out, question by question, beside what the papers say.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import polars

import densitometer as dm
from densitometer import analysis
from densitometer._util.digits import percent
from densitometer.report.findings.finding import between, number
from densitometer.report.page import report
from densitometer.study.corpus import read_corpus

MODELS = ["demo", "demo-parallel", "demo-branchnorm"]
CONTEXTS = (8, 16, 32)  # tokens
WORDS = 30  # of a text before the token that is predicted
SEARCHED = 4  # pairs of texts of each domain that are searched
PAGE = Path(__file__).parents[1] / "docs/findings.md"
TOLD = (1e-4, 1e-3, 1e-2, 0.06, 0.1, 0.2, 0.4)  # shares of the edges that tables tell of


def corpora() -> tuple[polars.DataFrame, polars.DataFrame]:
    """Each text cut after its 30th word, with what follows as `next`; and the part of them that is searched."""
    words = polars.col("text").str.split(" ").list
    texts = read_corpus("short-texts").texts.drop("next", "problem")
    texts = texts.with_columns(next=words.slice(WORDS).list.join(" "), text=words.head(WORDS).list.join(" "))
    number_of = polars.col("pair").str.extract(r"(\d+)$").cast(polars.Int32)
    return texts, texts.filter(number_of <= SEARCHED)


def studies(out: Path) -> tuple[dm.Study, dm.Study]:
    texts, few = corpora()
    sweep = "sweep:" + ",".join(map(str, CONTEXTS))
    contexts = dm.run_study(
        texts, MODELS, out / "contexts", importance=["l1", "fisher"], window=sweep, states=True, workers=2
    )
    search = dm.run_study(
        few,
        MODELS,
        out / "search",
        importance=["l1", "fisher", "best"],
        window=f"sweep:{CONTEXTS[-1]}",
        workers=2,
    )
    return contexts, search


# Questions. Each is what the papers say, and rows of a table: whom they are about, and the numbers.

Answer = tuple[str, list[dict[str, str]], str]


def verdict(rows: polars.DataFrame, sign: int) -> str:
    """How many of the rows' intervals lie on the side that the papers tell, and on the other."""
    same = rows.filter(sign * polars.col("low") > 0, sign * polars.col("high") > 0).height
    other = rows.filter(sign * polars.col("low") < 0, sign * polars.col("high") < 0).height
    return (f"Of {rows.height} intervals, {same} lie on the papers' side, {other} on the other, "
            f"{rows.height - same - other} hold zero.")  # fmt: skip


def interval(row: dict[str, Any], form: Callable[[float], str] = number) -> str:
    middle = row.get("median", row.get("rho"))
    return "" if middle is None else f"{form(middle)} ({between(row['low'], row['high'], form)})"


def by_model(rows: polars.DataFrame, cell: Callable[[dict[str, Any]], str]) -> list[dict[str, str]]:
    """A row per model, a column per importance."""
    found = []
    for (model,), own in rows.sort("importance", descending=True).group_by("model", maintain_order=True):
        found.append({"model": model} | {r["importance"]: cell(r) for r in own.iter_rows(named=True)})
    return sorted(found, key=lambda row: MODELS.index(row["model"]))


def spread(table: polars.DataFrame, size: float, column: str) -> str:
    """The least and the most of a share at a size, over models and importances."""
    values = table.filter(size=size)[column]
    return f"{percent(values.min())} to {percent(values.max())}"


def earlier(depth: polars.DataFrame, importance: str) -> str:
    """In how many models a tenth of the edges holds more of the first quarter of the layers than of the last."""
    own = depth.filter(importance=importance, size=0.1).pivot("quarter", index="model", values="share_kept")
    return f"{own.filter(polars.col('1') > polars.col('4')).height} of {own.height}"


def dense_or_sparse(longest: polars.DataFrame, search: polars.DataFrame) -> Answer:
    table = analysis.distribution(longest, ["model", "importance"], ["size_at"])
    of_few = analysis.distribution(search, ["model", "importance"], ["size_at"])
    rows = by_model(table, lambda r: interval(r, percent))
    few = {row["model"]: row for row in by_model(of_few, lambda r: interval(r, percent))}
    for row in rows:
        row |= {f"{name}, {r['n']} texts": few[row["model"]][name] for name, r in
                ((name, of_few.filter(importance=name).row(0, named=True)) for name in ("l1", "fisher", "best"))}  # fmt: skip
    never = int(table["n_never"].sum())
    return (
        "January: processing is dense as a rule.",
        rows,
        "Median share of edges from which on the prediction holds (TV ≤ 0.1), by `l1`, the papers' importance, and by tighter ones. "
        f"{never} predictions hold at no size and are in no median.",
    )


def dynamic(longest: polars.DataFrame) -> Answer:
    table = analysis.distribution(longest, ["model", "importance"], ["size_at"])
    table = table.with_columns(ratio=polars.col("upper_quartile") / polars.col("lower_quartile"))
    rows = by_model(
        table,
        lambda r: (
            f"{percent(r['lower_quartile'])} to {percent(r['upper_quartile'])} ({r['ratio']:.1f} times)"
        ),
    )
    return (
        "January: density varies with the input.",
        rows,
        "Quartiles of `size_at` over texts, and the upper over the lower. A single `size_at` is placed to 5 %, so what is beyond "
        "1.05 times is the texts.",
    )


def across_models(longest: polars.DataFrame) -> Answer:
    rows = []
    tables = []
    for value in ("size_at", "auc_log"):
        pairs = analysis.correlation_across_models(longest, value).pairs
        tables.append(pairs)
        for (one, other), own in pairs.group_by("one", "other", maintain_order=True):
            rows.append(
                {"value": value, "models": f"{one}, {other}"}
                | {
                    r["importance"]: interval(r)
                    for r in own.sort("importance", descending=True).iter_rows(named=True)
                }
            )
    return (
        "Both: a text's density correlates across models; May, Spearman of `auc_log` over 45 pairs: mean .52, .26 to .71.",
        rows,
        "Spearman over texts. " + verdict(polars.concat(tables), 1),
    )


def rarity(longest: polars.DataFrame, factors: polars.DataFrame) -> Answer:
    own = factors.filter(polars.col("factor").is_in(["predicted_log_frequency", "actual_log_frequency"]))
    rows = [
        {"factor": factor.replace("_", " ")} | row
        for (factor,), part in own.group_by("factor", maintain_order=True)
        for row in by_model(part, interval)
    ]
    return (
        "January: rarer tokens need more (a negative correlation with frequency).",
        rows,
        "Spearman of `size_at` with the log frequency of the predicted and of the actual token, counted in the study's other texts, "
        "so rarity is known coarsely. " + verdict(own, -1),
    )


def longer_context(contexts: polars.DataFrame) -> Answer:
    """Within each text: the same target after the most context and after the least."""
    of = {n: contexts.filter(n_context=n) for n in (CONTEXTS[0], CONTEXTS[-1])}
    both = of[CONTEXTS[0]].join(of[CONTEXTS[-1]], on=["model", "importance", "text_id"], suffix="_long")
    both = both.filter(polars.col("size_at").is_not_null(), polars.col("size_at_long").is_not_null())
    found = []
    for (model, importance), own in both.group_by("model", "importance", maintain_order=True):
        change = numpy.log2((own["size_at_long"] / own["size_at"]).to_numpy())
        edges = change + numpy.log2((own["n_edges_long"] / own["n_edges"]).to_numpy())
        low, high = analysis.statistics.median_interval(change, own["text_id"].to_numpy(), 0)
        found.append(
            {"model": model, "importance": importance, "median": float(numpy.median(change)), "low": low, "high": high,
             "less": float((change < 0).mean()), "n": len(change),
                "edges": float(numpy.median(edges))}
        )  # fmt: skip
    table = polars.DataFrame(found)
    rows = by_model(
        table, lambda r: f"{interval(r)}; less in {percent(r['less'])} of {r['n']}; edges {r['edges']:+.2f}"
    )
    return (
        "January: longer contexts often need less.",
        rows,
        f"log2 of `size_at` after {CONTEXTS[-1]} tokens over that after {CONTEXTS[0]}, the same target, median over texts: -1 is half. "
        "The longer context has more edges in all, so a smaller share may still be more of them: `edges` is log2 of their number. "
        + verdict(table, -1),
    )


def entropy(factors: polars.DataFrame) -> Answer:
    own = factors.filter(factor="entropy")
    return (
        "May: the size needed correlates with the entropy of the prediction.",
        by_model(own, interval),
        "Spearman of `size_at` with entropy. (Areas such as `auc_log` hold an artefact of entropy at tiny sizes, so they are not "
        "used here.) " + verdict(own, 1),
    )


def two_phases(longest: polars.DataFrame, curves: polars.DataFrame) -> Answer:
    bought = analysis.resources(curves).select("model", "importance", "size", "top1")
    table = analysis.curve_quartiles(curves).join(bought, on=["model", "importance", "size"]).sort("size")
    rows = []
    for (model, importance), own in table.group_by("model", "importance", maintain_order=True):
        at = {r["size"]: r for r in own.iter_rows(named=True)}
        rows.append(
            {"model": model, "importance": importance}
            | {percent(size): f"{at[size]['median']:.2f} / {percent(at[size]['top1'])}" for size in TOLD}
        )
    rows.sort(key=lambda row: (MODELS.index(row["model"]), row["importance"] != "l1"))
    return (
        "May: construction from 0.01 to 1 % of the edges, refinement from there on; about 0.1 % give the most probable token back.",
        rows,
        "Median TV to the model, and in how many texts the most probable token is the model's, at shares of the edges. With "
        f"{longest['n_edges'].min():,} to {longest['n_edges'].max():,} edges, 0.1 % are little more than a path or two from a token "
        "to the output: small models have little room for the papers' first phase. 0.1 % give the most probable token back in "
        f"{spread(table, 0.001, 'top1')} of the texts, 1 % in {spread(table, 0.01, 'top1')}: not as a rule, as the papers have it.",
    )


def early_layers(components: polars.DataFrame) -> Answer:
    depth = analysis.component_shares(components).depth
    rows = []
    for (model, importance, size), own in (
        depth.filter(polars.col("size").is_in([0.01, 0.1, 0.4]))
        .sort("size", "quarter")
        .group_by("model", "importance", "size", maintain_order=True)
    ):
        rows.append(
            {"model": model, "importance": importance, "size": percent(size)}
            | {f"quarter {r['quarter']}": percent(r["share_kept"]) for r in own.iter_rows(named=True)}
        )
    rows.sort(key=lambda row: (MODELS.index(row["model"]), row["importance"] != "l1"))
    return (
        "May: early layers come first.",
        rows,
        "Mean share of the edges of each quarter of the layers that a trace holds. Traces grow from the output, so the smallest begin "
        f"late whatever the importance. At 10 %, the first quarter is ahead of the last in {earlier(depth, 'l1')} models by `l1` and in "
        f"{earlier(depth, 'fisher')} by `fisher`: which layers come first is a statement about the importance.",
    )


def unigrams(measured: polars.DataFrame, curves: polars.DataFrame) -> Answer:
    table = analysis.unigram_knowledge(curves, measured)
    known = table.filter(size=0.001).drop_nulls("rho").select(low="difference_low", high="difference_high")
    rows = []
    for (model, importance), own in (
        table.drop_nulls("rho").sort("size").group_by("model", "importance", maintain_order=True)
    ):
        at = {r["size"]: r for r in own.iter_rows(named=True)}
        rows.append(
            {"model": model, "importance": importance}
            | {percent(size): f"{at[size]['rho']:.2f}" if size in at else "" for size in TOLD}
            | {"the model": f"{own['full'][-1]:.2f}"}
        )
    rows.sort(key=lambda row: (MODELS.index(row["model"]), row["importance"] != "l1"))
    return (
        "May: small traces encode unigram frequencies.",
        rows,
        "Mean over texts of the Spearman correlation between a trace's prediction and the frequencies of tokens in the study's other "
        "texts, at shares of the edges. Traces that read nothing of their text are left out: they predict from biases alone. "
        "Differences to the model at 0.1 %: " + verdict(known, 1),
    )


def table_of(rows: list[dict[str, str]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(row.get(name, "") for name in names) + " |"


def page(contexts: dm.Study, search: dm.Study) -> Iterator[str]:
    measured = contexts.measurements().filter(polars.col("error").is_null())
    measured = measured.with_columns(
        n_context=polars.col("piece").replace_strict(dict(enumerate(CONTEXTS)), return_dtype=polars.Int64)
    )
    longest = measured.filter(n_context=CONTEXTS[-1])
    last = polars.col("piece") == len(CONTEXTS) - 1
    curves = contexts.curves().filter(last)
    factors = analysis.factors(longest, "size_at").univariate
    failed = contexts.measurements()["error"].drop_nulls()
    yield "# The papers' findings, on the bundled models"
    yield ""
    yield "Written by `make study` (`tools/study_findings.py`); every number is of that run. What the papers say is from arXiv 2601.22795"
    yield '("January") and arXiv 2605.27033 ("May"), of models of 7 to 14 billion parameters. Ours are three of 6 layers and about'
    yield "3 million parameters, trained on a few MB of text: **where we differ, the models may be why**, and where we agree, it is on little."
    yield ""
    yield f"n: {longest['text_id'].n_unique()} short texts (English and French, five domains), {len(measured):,} measurements of contexts of"
    yield f"{', '.join(map(str, CONTEXTS))} tokens, by `l1` and `fisher`; {len(failed):,} failed. Unless said, contexts of {CONTEXTS[-1]} tokens. In"
    yield "brackets: 95 % intervals, bootstrap over texts. The bundled models cannot say much about language; they show that the"
    yield "instrument runs, and how its answers are read."
    answers = {
        "Dense or sparse?": dense_or_sparse(longest, search.measurements()),
        "Does it change with the input?": dynamic(longest),
        "Do models agree?": across_models(longest),
        "Do rarer tokens need more?": rarity(longest, factors),
        "Does a longer context need less?": longer_context(measured),
        "Does uncertainty need more?": entropy(factors),
        "Two phases?": two_phases(longest, curves),
        "Early layers first?": early_layers(contexts.components().filter(last)),
        "Do small traces know unigrams?": unigrams(measured, curves),
    }
    for question, (claim, rows, reading) in answers.items():
        yield ""
        yield f"## {question}"
        yield ""
        yield claim
        yield ""
        yield from table_of(rows)
        yield ""
        yield reading


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    started = time.monotonic()
    contexts, search = studies(arguments.out)
    measured = time.monotonic()
    arguments.page.write_text("\n".join(page(contexts, search)) + "\n")
    for name, study in (("contexts", contexts), ("search", search)):
        print(report(study, arguments.out / f"{name}.html", arguments.out / f"{name}-tables"))
    print(
        f"{arguments.page}; measured in {measured - started:.0f} s, written up in {time.monotonic() - measured:.0f} s"
    )


if __name__ == "__main__":
    main()
