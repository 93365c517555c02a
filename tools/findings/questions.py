"""The questions put to the stored studies: what the papers say, what their way gives here, what ours gives, and a verdict.

A verdict follows one rule, for the real models alone. An *estimate* is on the papers' side if its p, corrected by Holm over
the estimates of the question, is below .05 and it has the sign that they tell (where there is no test: if its whole interval
lies there). It *stands* if it does so on every real model, and *falls* if it does on none and is on the other side on one at least.

    holds                        ours stands
    holds only the published way ours falls, theirs stands
    contradicted                 ours falls, theirs does not stand
    not decidable here           else, and where models or texts are missing
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import changed_models
import numpy
import polars
from evidence import MODELS, REAL, Evidence, held, holm, shift

from densitometer import analysis
from densitometer._util.digits import percent, significant
from densitometer.analysis import statistics

BOTH = ("l1", "fisher")
SIZES = (1e-4, 1e-3, 1e-2, 0.06, 0.1, 0.2, 0.4)
VERDICTS = ("holds", "holds only the published way", "contradicted", "not decidable here")


@dataclass
class Answer:
    """A question's answer, as the page prints it.

    Args:
        title: the question.
        paper: what the papers say.
        theirs: how their way was done here.
        ours: what ours does.
        rows: the table.
        verdict: one of VERDICTS.
        because: the sentence after it, with numbers.
        notes: what else has to be known.
    """

    title: str
    paper: str
    theirs: str
    ours: str
    rows: list[dict[str, str]] = field(default_factory=list)
    verdict: str = VERDICTS[3]
    because: str = ""
    notes: str = ""


def side(row: dict[str, Any], sign: int) -> int:
    """1 if an estimate is on the papers' side, -1 on the other, 0 if it is on none."""
    if row.get("rho") is None or row.get("low") is None:
        return 0
    if "p_holm" in row:
        clear = row["p_holm"] is not None and row["p_holm"] < 0.05
    else:
        clear = row["low"] > 0 or row["high"] < 0
    return int(numpy.sign(row["rho"] * sign)) if clear else 0


def stands(rows: Sequence[dict[str, Any]], sign: int) -> str:
    """ "stands", "falls" or "open": what the real models' estimates say."""
    real = {row["model"]: side(row, sign) for row in rows if row["model"] in REAL}
    if set(real) != set(REAL):
        return "missing"
    if all(s == 1 for s in real.values()):
        return "stands"
    return "falls" if max(real.values()) < 1 and min(real.values()) < 0 else "open"


def judged(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], sign: int) -> str:
    """The verdict on estimates of their way and of ours. That ours is not clear is no verdict: it may be for want of texts."""
    mine, published = stands(ours, sign), stands(theirs, sign)
    if mine == "stands":
        return VERDICTS[0]
    if mine == "falls":
        return VERDICTS[1] if published == "stands" else VERDICTS[2]
    return VERDICTS[3]


def number(value: float) -> str:
    return f"{value:z.2f}"


def cell(row: dict[str, Any] | None, form: Callable[[float], str] = number, starred: bool = True) -> str:
    """An estimate with its interval, n, and a star where Holm's p is below .05."""
    if row is None or row.get("rho") is None:
        return ""
    star = "*" if starred and row.get("p_holm") is not None and row["p_holm"] < 0.05 else ""
    ends = "" if row.get("low") is None else f" ({form(row['low'])} to {form(row['high'])})"
    return f"{form(row['rho'])}{star}{ends}, n = {row['n']}"


def share(value: float) -> str:
    return percent(value, 2)


def points(value: float) -> str:
    """A difference of two shares in percentage points. A % would be read as relative."""
    return f"{100 * value:z.1f}"


def by_model(
    columns: dict[str, list[dict[str, Any]]], form: Callable[[float], str] = number
) -> list[dict[str, str]]:
    """A row per model, a column per estimate that some model has."""
    columns = {name: own for name, own in columns.items() if own}
    rows = []
    for model in MODELS:
        found = {name: next((r for r in own if r["model"] == model), None) for name, own in columns.items()}
        if any(found.values()):
            rows.append({"model": model} | {name: cell(row, form) for name, row in found.items()})
    return rows


def told(rows: Sequence[dict[str, Any]], form: Callable[[float], str] = number) -> str:
    """The real models' estimates, in one line."""
    values = [form(r["rho"]) for m in REAL for r in rows if r["model"] == m and r["rho"] is not None]
    return ", ".join(values)


def medians(table: polars.DataFrame, value: str, importance: str) -> list[dict[str, Any]]:
    """The median of a value over texts, of each model."""
    if table.is_empty():
        return []
    found = analysis.distribution(table.filter(importance=importance), ["model"], [value])
    return [r | {"rho": r["median"]} for r in found.iter_rows(named=True) if r["n"]]


def correlations(
    table: polars.DataFrame, value: str, factor: str, importance: str, others: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Spearman of a value with a factor, of each model, with others held; Holm over models."""
    rows = []
    if table.is_empty() or factor not in table.columns:
        return []
    for model in MODELS:
        own = table.filter(model=model, importance=importance).drop_nulls([value, factor, *others])
        own = own.group_by("text_id").agg(polars.col(value, factor, *others).mean()).sort("text_id")
        if len(own):
            columns = [own[name].to_numpy().astype(float) for name in (value, factor, *others)]
            found = held(columns[0], columns[1], columns[2:])
            if found["rho"] is not None:
                rows.append({"model": model} | found)
    return holm(rows)


# --- January ---------------------------------------------------------------------------------------------------------


def dense(e: Evidence) -> Answer:
    passages, kept = e.rows("passages"), e.rows("kept")
    flops = medians(passages, "flops_at", "fisher")
    sizes = {name: medians(passages, "size_at", name) for name in BOTH}
    best = medians(e.rows("search"), "size_at", "best")
    columns = {
        "published way: `l1`, attention kept": medians(kept, "size_at", "l1"),
        "`l1`": sizes["l1"], "`fisher`": sizes["fisher"], "`best`, few texts": best, "operations, `fisher`": flops,
    }  # fmt: skip
    published, ours = ([_less(r, 0.5) for r in own] for own in (medians(passages, "flops_at", "l1"), flops))
    return Answer(
        "Is the computation dense?",
        "January: processing is dense as a rule.",
        "Median share of the edges from which on TV stays at most .1, by `l1`; as May's code stands in public, with attention kept.",
        "The same by `fisher`, a better order, and the share of the operations that those edges use. An edge share is a statement about "
        "the order, so *dense* is taken here as: at least half of the operations, by the better order.",
        by_model(columns, share),
        judged(published, ours, 1),
        f"by `fisher` the three real models need {told(sizes['fisher'], share)} of the edges and {told(flops, share)} of the operations "
        f"(`l1` {told(sizes['l1'], share)} of the edges; with attention kept {told(columns['published way: `l1`, attention kept'], share)}).",
        "A better order than `fisher` can only lower these; no order proves that less would not do.",
    )  # fmt: skip


def _less(row: dict[str, Any], by: float) -> dict[str, Any]:
    """An estimate with its interval, lowered."""
    return row | {name: None if row[name] is None else row[name] - by for name in ("rho", "low", "high")}


def _spread(table: polars.DataFrame, value: str, importance: str) -> list[dict[str, Any]]:
    """log2 of the upper quartile over the lower, of each model, with a bootstrap interval."""

    def ratio(values: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        low, high = numpy.percentile(values, [25, 75], axis=axis)
        return high / low

    rows = []
    for model in MODELS if len(table) else ():
        own = table.filter(model=model, importance=importance)[value].drop_nulls().to_numpy()
        if len(own) >= statistics.FEWEST:
            low, high = statistics.bootstrap([own], ratio, 0)
            rows.append({"model": model, "rho": float(ratio(own)), "low": low, "high": high, "n": len(own)})
    return rows


def dynamic(e: Evidence) -> Answer:
    theirs = _spread(e.rows("passages"), "auc_linear", "l1")
    ours = {name: _spread(e.rows("passages"), "size_at", name) for name in BOTH}
    beyond = [_less(r, 1.1) for r in ours["fisher"]]
    columns = {
        "theirs: `auc_linear`, `l1`": theirs,
        "`size_at`, `l1`": ours["l1"],
        "`size_at`, `fisher`": ours["fisher"],
    }
    return Answer(
        "Does it change with the input?",
        "January: density varies with the input.",
        "The upper quartile over the lower of `auc_linear` by `l1`, over texts of one length in words.",
        "The same of `size_at`, which is placed to 5 %: what is beyond 1.1 times is the texts.",
        by_model(columns),
        judged([_less(r, 1) for r in theirs], beyond, 1),
        f"the middle half of the passages spans a factor of {told(ours['fisher'])} by `fisher` and {told(ours['l1'])} by `l1`.",
        _explained(e),
    )  # fmt: skip


def _explained(e: Evidence) -> str:
    rows = []
    table = e.rows("passages")
    for model in REAL if len(table) else ():
        own = table.filter(model=model, importance="fisher").drop_nulls(["size_between", "entropy"])
        if len(own) >= statistics.FEWEST:
            rank = statistics.package("scipy.stats").rankdata
            design = numpy.column_stack(
                [numpy.ones(len(own)), *(rank(own[c].to_numpy()) for c in ("entropy", "n_tokens"))]
            )
            y = rank(own["size_between"].to_numpy())
            rest = y - design @ numpy.linalg.lstsq(design, y, rcond=None)[0]
            rows.append(share(1 - rest.var() / y.var()))
    return (
        f"Entropy and length explain {', '.join(rows)} of the variance of its ranks on the real models (`fisher`)."
        if rows
        else ""
    )


def _pairs(table: polars.DataFrame, value: str, importance: str, hold: bool = False) -> list[dict[str, Any]]:
    """Spearman between every two models over the texts that both measured; entropies and lengths of both held if asked."""
    rows = []
    if table.is_empty():
        return []
    part = table.filter(importance=importance).drop_nulls(value)
    models = [m for m in MODELS if m in part["model"].unique()]
    for i, one in enumerate(models):
        for other in models[i + 1 :]:
            both = (
                part.filter(model=one)
                .join(part.filter(model=other), on="text_id", suffix="_other")
                .sort("text_id")
            )
            others = ["entropy", "n_tokens", "entropy_other", "n_tokens_other"] if hold else []
            columns = [both[c].to_numpy().astype(float) for c in (value, f"{value}_other", *others)]
            rows.append({"one": one, "other": other} | held(columns[0], columns[1], columns[2:]))
    return holm(rows)


def _within(rows: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    real = {"real": 2, "across": 1, "bundled": 0}[kind]
    return [r for r in rows if r["rho"] is not None and (r["one"] in REAL) + (r["other"] in REAL) == real]


def _mean(rows: Sequence[dict[str, Any]]) -> str:
    values = [r["rho"] for r in rows]
    return (
        f"{number(sum(values) / len(values))} ({number(min(values))} to {number(max(values))}), {len(values)} pairs"
        if values
        else ""
    )


def across_models(e: Evidence) -> Answer:
    ways = {
        "published way: `auc_log`, `l1`, attention kept": _pairs(e.rows("kept"), "auc_log", "l1"),
        "`auc_log`, `l1`": _pairs(e.rows("passages"), "auc_log", "l1"),
        "`size_at`, `l1`": _pairs(e.rows("passages"), "size_between", "l1"),
        "`size_at`, `fisher`": _pairs(e.rows("passages"), "size_between", "fisher"),
        "`size_at`, `fisher`, entropy and length held": _pairs(
            e.rows("passages"), "size_between", "fisher", hold=True
        ),
        "`size_at`, `l1`, entropy and length held": _pairs(
            e.rows("passages"), "size_between", "l1", hold=True
        ),
    }
    names = {
        "real": "between the real models",
        "across": "real with bundled",
        "bundled": "between the bundled models",
    }
    rows = [{"value": way} | {names[k]: _mean(_within(own, k)) for k in names} for way, own in ways.items()]

    def of_pairs(own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # each real model counts by its weaker pair
        return [{**min((r for r in _within(own, "real") if m in (r["one"], r["other"])), key=lambda r: r["rho"]), "model": m}
                for m in REAL if any(m in (r["one"], r["other"]) for r in _within(own, "real"))]  # fmt: skip

    ours = ways["`size_at`, `fisher`"]
    return Answer(
        "Do models agree on which texts need much?",
        "Both: a text's density correlates across models. May, Spearman of `auc_log` over 45 pairs of 10 models of 7 to 14 billion parameters: "
        "mean .515, .263 to .711.",
        "Spearman of `auc_log` by `l1` with attention kept, over texts.",
        "Spearman of `size_at`, read between the traces around it, by `l1` and `fisher`; and of the ranks that are left when the entropies and "
        "lengths of both models are regressed out. Mean over pairs (least to most). A real model counts by its weakest pair.",
        rows,
        judged(of_pairs(ways["published way: `auc_log`, `l1`, attention kept"]), of_pairs(ours), 1),
        f"the pairs of real models correlate at {_mean(_within(ours, 'real')) or 'nothing yet'} by `fisher`, "
        f"{_mean(_within(ways['`size_at`, `l1`'], 'real'))} by `l1`; with entropy and length held "
        f"{_mean(_within(ways['`size_at`, `fisher`, entropy and length held'], 'real'))} by `fisher`, "
        f"{_mean(_within(ways['`size_at`, `l1`, entropy and length held'], 'real'))} by `l1`.",
    )  # fmt: skip


def matrix(e: Evidence) -> list[dict[str, str]]:
    """All pairs of `size_at`: `fisher` above the diagonal, `l1` below."""
    found = {
        name: {(r["one"], r["other"]): r for r in _pairs(e.rows("passages"), "size_between", name)}
        for name in BOTH
    }
    models = [m for m in MODELS if any(m in pair for pair in found["l1"])]
    rows = []
    for i, one in enumerate(models):
        row = {"": one}
        for j, other in enumerate(models):
            own = found["fisher"].get((one, other)) if i < j else found["l1"].get((other, one))
            row[other] = "" if i == j else cell((own or {}) | {"low": None}, starred=True) if own else ""
        rows.append(row)
    return rows


def rarity(e: Evidence) -> Answer:
    table = e.rows("passages")
    theirs = correlations(table, "auc_linear", "predicted_log_frequency", "l1")
    actual = correlations(table, "auc_linear", "next_word_zipf", "l1")
    ours = {name: correlations(table, "size_between", "next_word_zipf", name) for name in BOTH}
    free = correlations(table, "size_between", "next_word_zipf", "fisher", ["entropy", "n_tokens"])
    predicted = correlations(table, "size_between", "predicted_log_frequency", "fisher")
    columns = {
        "theirs: `auc_linear`, predicted token": theirs, "theirs: `auc_linear`, next word": actual,
        "`size_at`, `l1`, next word": ours["l1"], "`size_at`, `fisher`, next word": ours["fisher"],
        "`size_at`, `fisher`, predicted token": predicted, "`fisher`, next word, entropy and length held": free,
    }  # fmt: skip
    return Answer(
        "Do rarer tokens need more?",
        "January: rarer tokens need more (a negative correlation with frequency).",
        "Spearman of `auc_linear` by `l1` with the log frequency of the predicted token, counted in the study's other texts, and with the "
        "next word's frequency in large corpora (Zipf value, wordfreq).",
        "The same of `size_at`; and with entropy and length held.",
        by_model(columns),
        judged(actual, ours["fisher"], -1),
        f"with the next word's frequency `size_at` by `fisher` correlates at {told(ours['fisher'])} on the real models, with entropy and length "
        f"held at {told(free)}.",
        "Counts in a hundred passages are rough; the Zipf value is of words, not of tokens.",
    )  # fmt: skip


CONTEXTS = (8, 16, 32, 64)


def _changes(e: Evidence, value: str, importance: str, edges: bool = False) -> list[dict[str, Any]]:
    """log2 of a value after the longest context over that after the shortest, within texts."""
    rows = []
    table = e.rows("contexts")
    for model in MODELS if len(table) else ():
        own = table.filter(model=model, importance=importance).drop_nulls(value)
        longest, shortest = (own.filter(piece=p) for p in (len(CONTEXTS) - 1, 0))
        both = longest.join(shortest, on="text_id", suffix="_short").sort("text_id")
        change = numpy.log2((both[value] / both[f"{value}_short"]).to_numpy())
        if edges:
            change = change + numpy.log2((both["n_edges"] / both["n_edges_short"]).to_numpy())
        if len(change) >= statistics.FEWEST:
            rows.append({"model": model} | shift(change))
    return holm(rows)


def longer_context(e: Evidence) -> Answer:
    theirs = _changes(e, "auc_linear", "l1")
    ours = {name: _changes(e, "size_at", name) for name in BOTH}
    columns = {
        "theirs: `auc_linear`, `l1`": theirs, "`size_at`, `l1`": ours["l1"], "`size_at`, `fisher`": ours["fisher"],
        "number of edges, `fisher`": _changes(e, "size_at", "fisher", edges=True),
    }  # fmt: skip
    return Answer(
        "Does a longer context need less?",
        "January: longer contexts often need less.",
        f"log2 of `auc_linear` by `l1` after {CONTEXTS[-1]} tokens over that after {CONTEXTS[0]}, the same target, median over texts: -1 is half.",
        "The same of `size_at`, and of the number of edges: a longer context has more of them in all, so a smaller share can be more edges.",
        by_model(columns),
        judged(theirs, ours["fisher"], -1),
        f"after {CONTEXTS[-1]} tokens the share by `fisher` is {told(ours['fisher'], powers)} of that after {CONTEXTS[0]}, and the number of edges "
        f"that it is {told(columns['number of edges, `fisher`'], powers)} times as large.",
        _by_length(e),
    )  # fmt: skip


def powers(logarithm: float) -> str:
    return f"{2**logarithm:.2g}"


def _by_length(e: Evidence) -> str:
    table = e.rows("contexts")
    parts = []
    for model in REAL if len(table) else ():
        own = (
            table.filter(model=model, importance="fisher")
            .group_by("piece")
            .agg(polars.col("size_at").median())
            .sort("piece")
        )
        if len(own):
            parts.append(f"{model} {', '.join(share(v) for v in own['size_at'].to_list() if v is not None)}")
    return (
        f"Medians by `fisher` after {', '.join(map(str, CONTEXTS))} tokens: {'; '.join(parts)}."
        if parts
        else ""
    )


COMPLEXITY = {
    "prompt_surprisal": "surprisal of the prompt, nats a token", "compression_ratio": "bytes after compression over before",
    "lix": "readability (LIX, higher is harder)", "prompt_zipf": "frequency of its words (Zipf)",
    "type_token_ratio": "types over tokens", "sentence_length": "words a sentence",
}  # fmt: skip


def complexity(e: Evidence) -> Answer:
    table = e.rows("passages")
    found, theirs, free = {}, {}, {}
    for factor in COMPLEXITY:
        found[factor] = correlations(table, "size_between", factor, "fisher")
        theirs[factor] = correlations(table, "auc_linear", factor, "l1")
        free[factor] = correlations(table, "size_between", factor, "fisher", ["entropy", "n_tokens"])
    every = [r | {"factor": f} for f, own in found.items() for r in own if r["model"] in REAL]
    clear = [r for r in holm(every) if r["p_holm"] is not None and r["p_holm"] < 0.05]
    named = {f for f in COMPLEXITY if {r["model"] for r in clear if r["factor"] == f} == set(REAL)}
    rows = []
    for factor, name in COMPLEXITY.items():
        for way, own in (
            ("theirs: `auc_linear`, `l1`", theirs),
            ("`size_at`, `fisher`", found),
            ("the same, entropy and length held", free),
        ):
            if own[factor]:
                rows.append(
                    {"property": name, "value": way}
                    | {m: cell(next((r for r in own[factor] if r["model"] == m), None)) for m in REAL}
                )
    complete = set(REAL) <= {r["model"] for r in every}
    verdict = VERDICTS[3]
    if complete and named:
        verdict = VERDICTS[0]
    return Answer(
        "Does a more complex prompt need more?",
        "January: density goes with the prompt's complexity.",
        "Spearman of `auc_linear` by `l1` with six properties of the prompt.",
        "The same of `size_at` by `fisher`, and with entropy and length held. It stands if one property does on all real models after Holm over "
        f"all {len(every)} tests.",
        rows,
        verdict,
        f"{len(clear)} of {len(every)} correlations by `fisher` hold after Holm's correction"
        + (f", of all three models for {', '.join(sorted(COMPLEXITY[f] for f in named))}." if named else ", and no property holds on all three models."),
    )  # fmt: skip


def shap(e: Evidence) -> Answer:
    answer = Answer(
        "Do explanations differ between domains and between models?",
        "January: SHAP values of the inputs' features differ across domains and model variants.",
        "Boosted trees on `auc_linear` by `l1`; SHAP values on texts that were held out; shares of the factors compared by permutation.",
        "The same on `size_at` by `fisher`, beside trees of shuffled values. Where trees do not beat shuffled ones there is nothing to explain.",
    )
    table = e.domains
    if table.is_empty():
        return answer
    names = ["n_tokens", "entropy", "surprisal", "prompt_surprisal", "compression_ratio", "type_token_ratio", "prompt_characters",
             "predicted_log_frequency", "predicted_class"]  # fmt: skip
    table = table.filter(polars.col("model").is_in(REAL)).with_columns(
        revision=polars.lit(None, polars.String)
    )
    verdicts, apart, between = {}, {}, {}
    for way, value, importance in (
        ("theirs: `auc_linear`, `l1`", "auc_linear", "l1"),
        ("`size_at`, `fisher`", "size_between", "fisher"),
    ):
        own = table.filter(importance=importance)
        scores = analysis.trees(own, value, names).scores
        by_domain = analysis.shap_differences(own, "domain", value, names).tests.filter(
            polars.col("factor").is_null()
        )
        by_models = analysis.shap_differences(own, "model", value, names).tests.filter(
            polars.col("factor").is_null()
        )
        for model in REAL:
            s, d = (t.filter(model=model).to_dicts() for t in (scores, by_domain))
            if not s:
                continue
            answer.rows.append({
                "value": way, "model": model, "R², held out (best shuffled)": f"{s[0]['r_squared']:z.2f} ({s[0]['shuffled_best']:z.2f})",
                "texts": str(s[0]["n_texts"]),
                "domains apart (by chance), p": f"{d[0]['apart']:.2f} ({d[0]['chance']:.2f}), {significant(d[0]['p_corrected'], 2)}" if d else "too few texts",
            })  # fmt: skip
        for row in by_models.iter_rows(named=True):
            answer.rows.append({
                "value": way, "model": "between the three", "texts": str(row["n_texts"]),
                "R², held out (best shuffled)": f"{row['r_squared']:z.2f}",
                "domains apart (by chance), p": f"{row['apart']:.2f} ({row['chance']:.2f}), {significant(row['p'], 2)}",
            })  # fmt: skip
            between[way] = (
                f", and the models' explanations {'differ' if row['p'] < 0.05 else 'do not'} (p = {significant(row['p'], 2)})"
            )
        told_apart = [r for r in by_domain.iter_rows(named=True) if r["model"] in REAL]
        apart[way] = sum(r["p_corrected"] < 0.05 and r["beats_chance"] for r in told_apart)
        verdicts[way] = (
            "missing" if len(told_apart) < len(REAL) or by_models.is_empty()
            else "stands" if all(r["p_corrected"] < 0.05 and r["beats_chance"] for r in told_apart) and by_models["p"][0] < 0.05
            else "open"
        )  # fmt: skip
    answer.verdict = VERDICTS[0] if verdicts["`size_at`, `fisher`"] == "stands" else VERDICTS[3]
    answer.because = (
        f"domains (encyclopaedia, law, code) and models have to differ, each beyond chance, with trees that predict held-out texts. By `fisher` the "
        f"domains do on {apart['`size_at`, `fisher`']} of the three models (by `auc_linear` and `l1` on {apart['theirs: `auc_linear`, `l1`']})"
        f"{between.get('`size_at`, `fisher`', '')}."
    )
    return answer


# --- May --------------------------------------------------------------------------------------------------------------


def _falls(e: Evidence, study: str, importance: str) -> list[dict[str, Any]]:
    """TV that is lost from 0.01 to 1 % of the edges less what is lost from there on, a text."""
    rows = []
    curves = e.curves(study)
    for model in MODELS if len(curves) else ():
        own = curves.filter(
            polars.col("kind") == "trace", ~polars.col("refined"), model=model, importance=importance
        )
        wide = (
            own.filter(polars.col("size").is_in([1e-4, 1e-2, 1.0]))
            .pivot("size", index="text_id", values="tv")
            .sort("text_id")
            .drop_nulls()
        )
        if len(wide) >= statistics.FEWEST:
            low, middle, full = (wide[str(s)].to_numpy() for s in (0.0001, 0.01, 1.0))
            rows.append({"model": model} | shift((low - middle) - (middle - full)))
    return holm(rows)


def _quartiles(e: Evidence, study: str, importance: str) -> dict[str, dict[float, dict[str, Any]]]:
    curves = e.curves(study)
    if curves.is_empty():
        return {}
    own = curves.filter(importance=importance)
    table = analysis.curve_quartiles(own).join(
        analysis.resources(own).drop("n"), on=["model", "importance", "size"]
    )
    return {
        m: {r["size"]: r for r in table.filter(model=m).iter_rows(named=True)}
        for m in MODELS
        if m in table["model"].unique()
    }


def two_phases(e: Evidence) -> Answer:
    theirs, ours = _falls(e, "kept", "l1"), {name: _falls(e, "passages", name) for name in BOTH}
    rows = []
    for way, study, importance in (
        ("published way: `l1`, attention kept", "kept", "l1"),
        ("`l1`", "passages", "l1"),
        ("`fisher`", "passages", "fisher"),
    ):
        for model, at in _quartiles(e, study, importance).items():
            rows.append(
                {"way": way, "model": model}
                | {percent(s): f"{at[s]['median']:.2f}" for s in SIZES if s in at}
                | {"n": str(at[0.1]["n"])}
            )
    return Answer(
        "Two phases?",
        "May: construction from 0.01 to 1 % of the edges, refinement from 1 % on.",
        "Median TV at shares of the edges, `l1`, attention kept.",
        "The same with every edge off that is off, by `l1` and `fisher`. *Two phases* is taken as: more TV is lost from .01 to 1 % than from there "
        "on, text by text.",
        rows,
        judged(theirs, ours["fisher"], 1),
        f"the fall from .01 to 1 % less that from 1 % on is {told(theirs)} with attention kept, {told(ours['l1'])} by `l1` and "
        f"{told(ours['fisher'])} by `fisher` (real models, medians): below 0 the model comes back later.",
    )  # fmt: skip


def _agreeing(e: Evidence, study: str, importance: str, size: float) -> list[dict[str, Any]]:
    """Share of texts whose most probable token the trace gives back, less a half, with Wilson's interval."""
    rows = []
    for model, at in _quartiles(e, study, importance).items():
        if size in at:
            r = at[size]
            rows.append(
                {
                    "model": model,
                    "rho": r["top1"] - 0.5,
                    "low": r["top1_low"] - 0.5,
                    "high": r["top1_high"] - 0.5,
                    "n": r["n"],
                    "top1": r["top1"],
                }
            )
    return rows


def back(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shares themselves, of those less a half."""
    return [r | {name: r[name] + 0.5 for name in ("rho", "low", "high")} for r in rows]


def top_token(e: Evidence) -> Answer:
    theirs, ours = (
        _agreeing(e, "kept", "l1", 1e-3),
        {name: _agreeing(e, "passages", name, 1e-3) for name in BOTH},
    )
    columns = {
        "published way, 0.1 %": back(theirs),
        "`l1`, 0.1 %": back(ours["l1"]),
        "`fisher`, 0.1 %": back(ours["fisher"]),
    }
    for size in (1e-2, 1e-1):
        columns |= {f"published way, {percent(size)}": back(_agreeing(e, "kept", "l1", size)),
                    f"`fisher`, {percent(size)}": back(_agreeing(e, "passages", "fisher", size))}  # fmt: skip
    return Answer(
        "Do 0.1 % of the edges give the most probable token back?",
        "May: about 0.1 % of the edges give it back.",
        "Share of passages whose most probable token a trace of 0.1 % by `l1` gives back, attention kept.",
        "The same with every edge off that is off, by `l1` and `fisher`. The claim is taken as: in more than half of the texts (Wilson's interval).",
        by_model(columns, share),
        judged(theirs, ours["fisher"], 1),
        f"0.1 % give it back in {told(back(theirs), share)} of the passages with attention kept, {told(back(ours['fisher']), share)} by `fisher`.",
    )  # fmt: skip


def entropy(e: Evidence) -> Answer:
    theirs = correlations(e.rows("kept"), "auc_log", "entropy", "l1")
    ours = {name: correlations(e.rows("passages"), "size_between", "entropy", name) for name in BOTH}
    free = correlations(e.rows("passages"), "size_between", "entropy", "fisher", ["n_tokens"])
    columns = {
        "published way: `auc_log`, `l1`, attention kept": theirs, "`size_at`, attention kept": correlations(e.rows("kept"), "size_between", "entropy", "l1"),
        "`size_at`, `l1`": ours["l1"], "`size_at`, `fisher`": ours["fisher"], "`size_at`, `fisher`, length held": free,
    }  # fmt: skip
    return Answer(
        "Does uncertainty need more?",
        "May: the size needed correlates with the entropy of the prediction.",
        "Spearman of `auc_log` by `l1`, attention kept, with entropy. At tiny sizes TV is the distance to what a trace without any text predicts, "
        "which entropy rules, so this area holds an artefact of it.",
        "Spearman of `size_at`, which does not.",
        by_model(columns),
        judged(theirs, ours["fisher"], 1),
        f"`size_at` correlates with entropy at {told(ours['fisher'])} by `fisher` and {told(ours['l1'])} by `l1`; `auc_log` the published way at "
        f"{told(theirs)}.",
    )  # fmt: skip


def _quarters(e: Evidence, study: str, importance: str, size: float) -> list[dict[str, Any]]:
    """Share of the first quarter's edges that a trace holds less that of the last quarter's, a text."""
    rows = []
    table = e.components(study)
    if table.is_empty():
        return []
    table = table.filter(importance=importance, size=size)
    table = table.with_columns(
        quarter=4 * polars.col("layer") // (polars.col("layer").max().over("model") + 1) + 1
    )
    sums = table.group_by("model", "text_id", "quarter").agg(polars.col("n_edges", "total").sum())
    sums = sums.with_columns(kept=polars.col("n_edges") / polars.col("total"))
    for model in MODELS:
        wide = sums.filter(model=model).pivot("quarter", index="text_id", values="kept").sort("text_id")
        if len(wide) >= statistics.FEWEST:
            rows.append({"model": model} | shift((wide["1"] - wide["4"]).to_numpy()))
    return holm(rows)


def early_layers(e: Evidence) -> Answer:
    columns, answers = {}, {}
    for size in (1e-2, 1e-1):
        for way, study, importance in (("`l1`", "passages", "l1"), ("`fisher`", "passages", "fisher")):
            answers[way, size] = columns[f"{way}, {percent(size)}"] = _quarters(e, study, importance, size)
    theirs, ours = answers["`l1`", 0.1], answers["`fisher`", 0.1]
    return Answer(
        "Early layers first?",
        "May: early layers come first.",
        "Share of the edges of the first quarter of the layers that a trace by `l1` holds, less that of the last quarter, text by text, in "
        "percentage points. Which edges a trace holds does not depend on what is done with attention.",
        "The same by `fisher`. A trace grows from the output, so the smallest begin late whatever the order. Judged at 10 %.",
        by_model(columns, points),
        judged(theirs, ours, 1),
        f"at 10 % the first quarter is ahead of the last by {told(theirs, points)} percentage points by `l1` and {told(ours, points)} by `fisher`.",
        f"Of the first {len(e.first('passages', 25)) if len(e.rows('passages')) else 0} passages.",
    )  # fmt: skip


def unigrams(e: Evidence) -> Answer:
    def known(study: str, importance: str, size: float, of: str = "difference") -> list[dict[str, Any]]:
        if e.curves(study).is_empty():
            return []
        rows = e.rows(study).filter(importance=importance)
        table = analysis.unigram_knowledge(e.curves(study).filter(importance=importance), rows)
        ends = ("low", "high") if of == "rho" else ("difference_low", "difference_high")
        return [
            {"model": r["model"], "rho": r[of], "low": r[ends[0]], "high": r[ends[1]], "n": r["n"]}
            for r in table.filter(size=size).drop_nulls("rho").iter_rows(named=True)
        ]

    ways = {"published way": ("kept", "l1"), "`l1`": ("passages", "l1"), "`fisher`": ("passages", "fisher")}
    less = {way: known(*of, 1e-2) for way, of in ways.items()}
    plain = {way: known(*of, 1e-2, "rho") for way, of in ways.items()}
    columns = {f"{way}, 1 %": plain[way] for way in ways} | {
        f"{way}, 1 %, less the model's": less[way] for way in ways
    }
    columns |= {f"{way}, 0.1 %, less the model's": known(*of, 1e-3) for way, of in ways.items()}
    return Answer(
        "Do small traces know unigrams?",
        "May: small traces encode unigram frequencies.",
        "Mean over texts of the Spearman correlation between a trace's prediction and the frequencies of tokens in the study's other texts, `l1`, "
        "attention kept; and the same less the full model's.",
        "The same with every edge off that is off. Traces that read nothing of their text are left out: they predict from biases alone. "
        "Judged at 1 %, with *encode* taken as: small traces know more of it than the model does.",
        by_model(columns),
        judged(less["published way"], less["`fisher`"], 1),
        f"at 1 % the correlation is {told(plain['`fisher`'])} by `fisher`, less the model's own {told(less['`fisher`'])} "
        f"({told(less['published way'])} with attention kept).",
        "The verdict is of this reading. A correlation above 0 alone, of which the model itself has as much, would be no sign of small traces.",
    )  # fmt: skip


def topology(e: Evidence) -> Answer:
    rows = []
    table = e.components("passages")
    if len(table):
        shares = analysis.component_shares(table)
        for model in MODELS:
            for importance in BOTH:
                own = {"model": model, "importance": importance}
                row = {"model": model, "order": f"`{importance}`"}
                for size in (1e-2, 1e-1):
                    gini, core = (t.filter(size=size, **own).to_dicts() for t in (shares.gini, shares.core))
                    if gini and core:
                        row[f"Gini, {percent(size)}"] = f"{gini[0]['gini']:.2f}"
                        row[f"in 95 % of traces, {percent(size)}"] = (
                            f"{core[0]['n_static']} of {core[0]['n_components']}"
                        )
                kinds = dict(shares.kinds.filter(size=0.1, **own).select("kind", "share_kept").iter_rows())
                row |= {
                    f"of {k.replace('_', ' ')} edges, 10 %": share(v)
                    for k, v in kinds.items()
                    if k in ("attention", "mlp")
                }
                if len(row) > 2:
                    rows.append(row)
    return Answer(
        "What are traces made of?",
        "May: shares of components and of quarters of the layers, and Lorenz curves of the components' use; no claim that a test could refute "
        "is known to us.",
        "By `l1`; the same whatever is done with attention.",
        "By `l1` and `fisher`: Gini coefficient of the components' use (0: all alike), components (heads and MLPs of a layer) that are in at least "
        "95 % of the traces, share of attention and MLP edges that a trace of 10 % holds.",
        rows,
        VERDICTS[3],
        "there is no claim to hold; the table is for comparison.",
    )  # fmt: skip


def geometry(e: Evidence) -> Answer:
    states = e.states()
    columns: dict[str, list[dict[str, Any]]] = {}
    found = {}
    if len(states):
        result = analysis.state_geometry(states.with_columns(revision=polars.lit(None, polars.String)))
        for importance in BOTH:
            for size in (1e-3, 1e-2, 1e-1, 0.4):
                cosine = result.paths.filter(measure="cosine", importance=importance, size=size)
                columns[f"cosine, `{importance}`, {percent(size)}"] = [
                    r | {"rho": r["median"]} for r in cosine.iter_rows(named=True)
                ]
            cka = result.populations.filter(importance=importance, size=0.1).drop_nulls("cka")
            columns[f"CKA less shuffled, `{importance}`, 10 %"] = [
                {
                    "model": r["model"],
                    "rho": r["cka"] - r["cka_dealt"],
                    "low": None,
                    "high": None,
                    "n": r["n"],
                }
                for r in cka.iter_rows(named=True)
            ]
            wide = states.filter(polars.col("kind") == "trace", importance=importance)
            found[importance] = holm(
                [
                    {"model": m} | shift(_approach(states, m, importance))
                    for m in MODELS
                    if m in wide["model"].unique()
                ]
            )
    return Answer(
        "Where does the last token's state go?",
        "May: the last token's state approaches the model's as the trace grows (cosine, distance, CKA, information imbalance).",
        "Not re-enacted: `l1` was not run with states.",
        "Cosine of the state of a trace by `fisher` with the model's, before the unembedding, and CKA less that of shuffled texts. Judged by the "
        "cosine at 10 % less that at 1 %, text by text.",
        by_model(columns),
        judged(found.get("l1", []), found.get("fisher", []), 1),
        f"from 1 to 10 % the cosine rises by {told(found.get('fisher', []))} by `fisher` (medians).",
    )  # fmt: skip


def _approach(states: polars.DataFrame, model: str, importance: str) -> numpy.ndarray:
    own = states.filter(model=model, importance=importance)
    full = {r["text_id"]: numpy.array(r["state"]) for r in own.filter(kind="model").iter_rows(named=True)}
    cosines: dict[float, dict[str, float]] = {1e-2: {}, 1e-1: {}}
    for r in own.filter(polars.col("kind") == "trace", polars.col("size").is_in(list(cosines))).iter_rows(
        named=True
    ):
        h, g = numpy.array(r["state"]), full[r["text_id"]]
        cosines[r["size"]][r["text_id"]] = float(
            h @ g / max(1e-12, numpy.linalg.norm(h) * numpy.linalg.norm(g))
        )
    texts = sorted(set(cosines[1e-2]) & set(cosines[1e-1]))
    return numpy.array([cosines[1e-1][t] - cosines[1e-2][t] for t in texts])


def checkpoints(e: Evidence) -> Answer:
    """A model of demo's shape, trained anew: each checkpoint on the same passages."""
    table = e.rows("changed")
    rows = []
    for name in changed_models.TRAINED:
        own = table.filter(model=name) if len(table) else table
        if len(own):
            sizes = {i: _medians_of(own, "size_at", i) for i in BOTH}
            operations = _medians_of(own, "flops_at", "fisher")
            rows.append(
                {"steps of training": name.rpartition("step")[2], "bits a character": f"{bits_a_character(own):.2f}", "entropy": number(own["entropy"].median())}
                | {f"`size_at`, `{i}`": cell(r, share) for i, r in sizes.items()} | {"operations, `fisher`": cell(operations, share)}
            )  # fmt: skip
    order = [
        r["rho"]
        for name in changed_models.TRAINED
        if len(table) and (r := _medians_of(table.filter(model=name), "size_at", "fisher"))
    ]
    return Answer(
        "How does density change over training?",
        "May: followed over OLMo's training checkpoints.",
        "Not run: no training checkpoint of a real model is at hand here.",
        "A toy of the shape of demo, trained anew for 800 steps of 2,048 tokens on WikiText-2's validation file and kept at eight points; the same "
        "passages at each.",
        rows,
        VERDICTS[3],
        f"a toy alone says nothing of the papers' models. By `fisher` it needs {', '.join(share(v) for v in order)} of the edges from the first "
        "point to the last.",
    )  # fmt: skip


def _medians_of(table: polars.DataFrame, value: str, importance: str) -> dict[str, Any] | None:
    """The median of a value over the texts of one model."""
    if table.is_empty():
        return None
    found = analysis.distribution(table.filter(importance=importance), ["model"], [value]).to_dicts()
    return found[0] | {"rho": found[0]["median"]} if found and found[0]["n"] else None


def bits_a_character(own: polars.DataFrame) -> float:
    """Surprisal of the prompts of one model's rows, over all of their characters."""
    one = own.filter(importance=own["importance"][0])
    nats = (one["prompt_surprisal"] * (one["n_tokens"] - 1)).sum()
    return float(nats / numpy.log(2) / one["prompt_characters"].sum())


# --- beyond the papers ----------------------------------------------------------------------------------------------


def languages(e: Evidence) -> Answer:
    table = e.rows("languages")
    rows, ours = [], []
    if len(table):
        placed = table.with_columns(revision=polars.lit(None, polars.String))
        for importance in BOTH:
            found = analysis.aligned_texts(placed.filter(importance=importance), "size_between")
            for r in (
                found.filter((polars.col("one") == "en") | (polars.col("other") == "en")).iter_rows(
                    named=True
                )
                if len(found)
                else ()
            ):
                # languages come in alphabetical order: turn a pair so that it is the other language less English
                turned = -1 if r["other"] == "en" else 1
                low, high = sorted(
                    (turned * (r["difference_low"] or 0), turned * (r["difference_high"] or 0))
                )
                row = {"model": r["model"], "rho": turned * r["difference"], "low": low if r["difference_low"] is not None else None,
                       "high": high, "n": r["n"], "p_holm": r["difference_p_holm"], "language": r["one"] if turned < 0 else r["other"],
                       "importance": importance, "together": r["rho"]}  # fmt: skip
                ours.append(row)
        for model in MODELS:
            for language in sorted({r["language"] for r in ours}):
                own = {r["importance"]: r for r in ours if r["model"] == model and r["language"] == language}
                if own:
                    rows.append({"model": model, "language": language}
                                | {f"less English, `{i}`": cell(r, points) for i, r in own.items()}
                                | {f"rises with English, `{i}`": number(r["together"]) if r["together"] is not None else "" for i, r in own.items()})  # fmt: skip
    clear = [r for r in ours if r["model"] in REAL and r["importance"] == "fisher"]
    apart = [r for r in clear if r["p_holm"] is not None and r["p_holm"] < 0.05]
    return Answer(
        "Do languages need alike?",
        "Named by January as what is missing (English only); May adds Arabic, Spanish, Russian.",
        "Not re-enacted.",
        "Articles of the Universal Declaration, aligned: `size_at` in another language less that in English, of the same article, median, in percentage "
        "points of the edges; and the rank correlation over articles. The first 20 words each, so lengths in tokens differ; for that see the confounds.",
        rows,
        VERDICTS[3],
        f"{len(apart)} of {len(clear)} differences to English are clear by `fisher` on the real models"
        + (f" ({sum(r['rho'] > 0 for r in apart)} above, {sum(r['rho'] < 0 for r in apart)} below)." if apart else "."),
    )  # fmt: skip


def held_languages(e: Evidence) -> list[dict[str, str]]:
    """Each language's size over that in English, of each real model, with entropy and length held."""
    table = e.rows("languages")
    rows = []
    for model in REAL if len(table) else ():
        for importance in BOTH:
            own = table.filter(model=model, importance=importance).drop_nulls(["size_between", "entropy"])
            found = ratios_to_english(own)
            if found:
                rows.append(
                    {"model": model, "order": f"`{importance}`"} | {k: cell(r) for k, r in found.items()}
                )
    return rows


def ratios_to_english(own: polars.DataFrame) -> dict[str, dict[str, Any]]:
    """Least squares of log size on log entropy, log length and the language, of one model and importance.

    Returns:
        By language the size over that in English, as `rho`, with an interval for which articles are drawn, in all languages.
    """
    articles = own["pair"].unique().sort()
    others = [name for name in sorted(own["language"].unique()) if name != "en"]
    if len(articles) < statistics.FEWEST or len(others) == own["language"].n_unique():
        return {}
    y = numpy.log(own["size_between"].to_numpy())
    numbers = [numpy.log(own["entropy"].to_numpy() + 0.1), numpy.log(own["n_tokens"].to_numpy())]
    levels = [(own["language"] == name).to_numpy().astype(float) for name in others]
    design = numpy.column_stack([*levels, numpy.ones(len(y)), *numbers])
    parts = [numpy.flatnonzero((own["pair"] == article).to_numpy()) for article in articles]

    def ratios(drawn: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        found = []
        for row in drawn.reshape(-1, len(parts)):
            places = numpy.concatenate([parts[i] for i in row])
            fit = numpy.linalg.lstsq(design[places], y[places], rcond=None)[0]
            found.append(numpy.exp(fit[: len(others)]))
        return numpy.array(found).T.reshape(len(others), *drawn.shape[:-1])

    every = numpy.arange(len(articles))
    middle, (low, high) = ratios(every), statistics.bootstraps([every], ratios, 0, statistics.RANKED)
    return {
        name: {"rho": float(middle[i]), "low": float(low[i]), "high": float(high[i]), "n": len(articles)}
        for i, name in enumerate(others)
    }


def quality(e: Evidence) -> Answer:
    table = e.rows("passages")
    rows = []
    at_one = {f"`{name}`, entropy and length held": _adjusted(table, name) for name in BOTH}
    columns = {"`size_at`, `fisher`": medians(table, "size_at", "fisher"), **at_one}
    for row in by_model(columns, share):
        model = row.pop("model")
        rows.append(
            {"model": model, "bits a character": f"{bits_a_character(table.filter(model=model)):.2f}"} | row
        )
    return Answer(
        "Does a better model need a larger share?",
        "Not asked by the papers.",
        "Not re-enacted.",
        "Bits a character on the passages beside `size_at`; and the size at one entropy and length, their means over all models, from a regression "
        "of log size on log entropy and log length, of each model by itself.",
        rows,
        VERDICTS[3],
        "six models of two kinds are two points: between real and bundled models size, training and vocabulary differ at once. One toy over its "
        "training is under *How does density change over training?*",
    )  # fmt: skip


def _adjusted(table: polars.DataFrame, importance: str) -> list[dict[str, Any]]:
    """Each model's size at one log entropy and log length, the means over all models' rows: least squares with slopes of its own."""
    if table.is_empty():
        return []
    own = table.filter(importance=importance).drop_nulls(["size_between", "entropy"])
    own = own.with_columns(x1=(polars.col("entropy") + 0.1).log(), x2=polars.col("n_tokens").log())
    rows = []
    for model in MODELS:
        part = own.filter(model=model).sort("text_id")
        if len(part) >= statistics.FEWEST:
            centred = [part[c].to_numpy() - own[c].mean() for c in ("x1", "x2")]
            design = numpy.column_stack([numpy.ones(len(part)), *centred])
            rows.append({"model": model} | constant(design, numpy.log(part["size_between"].to_numpy())))
    return rows


def constant(design: numpy.ndarray, y: numpy.ndarray) -> dict[str, Any]:
    """exp of the first coefficient of a least-squares fit, with an interval for which rows are drawn."""

    def size(drawn: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        rows = drawn.reshape(-1, len(y))
        found = [numpy.linalg.lstsq(design[row], y[row], rcond=None)[0][0] for row in rows]
        return numpy.exp(numpy.array(found)).reshape(drawn.shape[:-1])

    every = numpy.arange(len(y))
    low, high = statistics.bootstrap([every], size, 0, statistics.RANKED)
    return {"rho": float(size(every)), "low": low, "high": high, "n": len(y)}


def order(e: Evidence) -> Answer:
    table = e.rows("search")
    columns = {f"`{name}`": medians(table, "size_at", name) for name in (*BOTH, "best")}
    ratio = []
    for model in MODELS if len(table) else ():
        wide = (
            table.filter(model=model)
            .pivot("importance", index="text_id", values="size_at")
            .drop_nulls()
            .sort("text_id")
        )
        if {"best", "fisher"} <= set(wide.columns) and len(wide):
            values = (wide["best"] / wide["fisher"]).to_numpy()
            ratio.append(
                {
                    "model": model,
                    "rho": float(numpy.median(values)),
                    "low": None,
                    "high": None,
                    "n": len(values),
                }
            )
    rows = by_model(columns, share)
    for row in rows:
        row["`best` over `fisher`"] = cell(next((r for r in ratio if r["model"] == row["model"]), None))
    return Answer(
        "How much of it is the order?",
        "Not asked by the papers, which use `l1`.",
        "`l1`.",
        "`fisher`, and `best`, a search of some ninety passes a text, on few texts: medians of `size_at`, and of the ratio text by text.",
        rows,
        VERDICTS[3],
        "`best` shows how far a lower order can go here; it is a search and no bound.",
    )  # fmt: skip


def least(e: Evidence) -> Answer:
    """The yardstick's inputs of which `learned` was run: what cheaper orders need over what it needs."""
    orders = ("learned", "best", "fisher", "l1")
    table = e.benchmark("importances").filter(polars.col("importance").is_in(orders))
    models = dict(zip(("smollm2", "gemma3", "qwen05"), REAL, strict=True))
    wide = (
        table.pivot("importance", index=["model", "text", "length"], values="size_at")
        .drop_nulls("learned")
        .sort("model", "text", "length")
    )
    rows = []
    for name, model in models.items():
        for length in sorted(wide["length"].unique()):
            own = wide.filter(model=name, length=length)
            if len(own):
                rows.append(
                    {"model": model, "tokens": str(length), "texts": str(len(own)), "`learned`": share(own["learned"].median())}
                    | {f"`{o}` over it": number((own[o] / own["learned"]).median()) for o in orders[1:]}
                )  # fmt: skip
    ratios = {o: (wide[o] / wide["learned"]).drop_nulls() for o in orders[1:]}
    return Answer(
        "How far is the order from the least that was found?",
        "Not asked by the papers.",
        "`l1`.",
        "The inputs of the yardstick (`benchmarks/importances.py`: eight texts, three lengths) of which `learned` was run, a search of some 500 "
        "passes for one text: its `size_at`, and how many times as much a cheaper order needs, median text by text.",
        rows,
        VERDICTS[3],
        f"over {len(wide)} inputs `l1` needs {number(ratios['l1'].median())} times what `learned` needs, `fisher` "
        f"{number(ratios['fisher'].median())} and `best` {number(ratios['best'].median())}.",
        "`learned` is the smallest that was found: no bound, and looser than `best` on some of the inputs.",
    )  # fmt: skip


CHANGES = {
    "SmolLM2-135M-rounded-again": ("SmolLM2 135M", "four bits, rounded once more"),
    "demo-rounded": ("demo", "16 bits rounded to four"),
    "SmolLM2-135M-fine-tuned": (
        "SmolLM2 135M",
        "fine-tuned: 300 steps of LoRA on French, German and Spanish",
    ),
}


def weights(e: Evidence) -> Answer:
    changed, plain = e.rows("changed"), e.rows("passages")
    rows, parts = [], []
    for name, (base, what) in CHANGES.items():
        after = changed.filter(model=name) if len(changed) else changed
        if after.is_empty() or plain.is_empty():
            continue
        texts = plain.filter(polars.col("text_id").is_in(after["text_id"].to_list()), model=base)
        row = {
            "model": base,
            "change": what,
            "bits a character": f"{bits_a_character(texts):.2f} to {bits_a_character(after):.2f}",
        }
        for importance in BOTH:
            both = after.filter(importance=importance).join(
                texts.filter(importance=importance), on="text_id", suffix="_before"
            )
            both = both.drop_nulls(["size_between", "size_between_before"]).sort("text_id")
            if len(both) >= statistics.FEWEST:
                now, before = (both[c].to_numpy() for c in ("size_between", "size_between_before"))
                change, alike = shift(numpy.log2(now / before)), held(now, before, [])
                ratio = change | {
                    key: None if change[key] is None else 2 ** change[key] for key in ("rho", "low", "high")
                }
                row |= {
                    f"size after over before, `{importance}`": cell(ratio),
                    f"Spearman of both, `{importance}`": cell(alike),
                }
                if importance == "fisher":
                    parts.append(f"{number(ratio['rho'])} times for {base}, {what}")
        rows.append(row)
    return Answer(
        "Do rounded or fine-tuned weights change it?",
        "Not asked by the papers.",
        "Not re-enacted.",
        "The same passages before and after: the size after over that before, median text by text, and the rank correlation of both. Rounding is to "
        "the nearest of 15 levels in groups of 32 weights, in the blocks' linear layers.",
        rows,
        VERDICTS[3],
        f"by `fisher` the size is {'; '.join(parts)}.",
        "SmolLM2's weights are of four bits already, so this rounding is a second one; a real model's full weights are not at hand here.",
    )  # fmt: skip


def sinks(e: Evidence) -> Answer:
    table = e.rows("passages")
    table = (
        table.drop_nulls(["n_sinks", "sink_share_of_trace", "size_at_without_sinks", "size_at"])
        if len(table)
        else table
    )
    rows = []
    for model in MODELS if len(table) else ():
        for importance in BOTH:
            own = table.filter(model=model, importance=importance).sort("text_id")
            if len(own) >= statistics.FEWEST:
                ratio = (own["size_at_without_sinks"] / own["size_at"]).to_numpy()
                low, high = statistics.bootstrap([ratio], numpy.median, 0)
                found = {"rho": float(numpy.median(ratio)), "low": low, "high": high, "n": len(own)}
                rows.append({
                    "model": model, "order": f"`{importance}`", "texts with a sink": f"{(own['n_sinks'] > 0).sum()} of {len(own)}",
                    "of all edges serve it": share(own["sink_share"].median()), "of the trace": share(own["sink_share_of_trace"].median()),
                    "size without over with": cell(found),
                })  # fmt: skip
    return Answer(
        "Do sink tokens hold it up?",
        "Not asked by the papers.",
        "Not re-enacted.",
        "A sink is a token that a third of the heads attend to (`densitometer.graph.sinks`). Share of the edges that lead from one to another token or "
        "into it, of all edges and of the trace at `size_at`; and `size_at` counted by the other edges alone, over that by all.",
        rows,
        VERDICTS[3],
        "the table says how much smaller a trace is when what serves sinks is not counted, on either side.",
        "Passages that were measured before studies told of sinks are not in it.",
    )  # fmt: skip


def rounding(e: Evidence) -> Answer:
    table = e.rows("passages")
    table = table.drop_nulls("noise") if len(table) else table
    rows, most = [], 0.0
    for model in MODELS if len(table) else ():
        own = table.filter(model=model)
        if len(own):
            most = max(most, own["noise"].max())
            rows.append({
                "model": model, "rows": str(len(own)), "noise of TV, median": f"{own['noise'].median():.0e}", "largest": f"{own['noise'].max():.0e}",
                "full trace's TV, largest": f"{own['full_trace_tv'].max():.0e}",
            })  # fmt: skip
    return Answer(
        "Do the findings lie within rounding?",
        "Not asked by the papers.",
        "Not re-enacted.",
        "The TV by which rounding alone moves traces near `size_at`: they are run again with streams moved by half a unit in the last place.",
        rows,
        VERDICTS[3],
        f"the largest is {most:.0e}, where `size_at` asks for a TV of .1: none of the sizes lies within rounding, which moves them by far less than the "
        "5 % to which they are placed.",
    )  # fmt: skip


def tasks(e: Evidence) -> Answer:
    table = e.benchmark("tasks")
    models = dict(zip(("smollm2", "gemma3", "qwen05"), REAL, strict=True))
    rows = []
    of_contrast = [
        share(table.filter(model=name, importance="fisher")["by_faithfulness"].median()) for name in models
    ]
    for name, model in models.items():
        for importance in ("l1", "fisher", "best"):
            own = table.filter(model=name, importance=importance)
            if len(own):
                rows.append({
                    "model": model, "order": f"`{importance}`", "prompts": str(len(own)), "contrast, full model": number(own["full"].median()),
                    "size by the contrast": share(own["by_faithfulness"].median()), "size by the distribution": share(own["by_tv"].median()),
                })  # fmt: skip
    return Answer(
        "What does a task need?",
        "January names resources against task performance as work to come.",
        "Not re-enacted.",
        "Prompts of indirect objects (*When Robert and Alice went to ...*) against the same with other names: the share of the edges from which on the contrast of the two names "
        "stays within a tenth of the full model's, and that by TV, with what is off carrying the other prompt (`benchmarks/tasks.py`).",
        rows,
        VERDICTS[3],
        f"by `fisher` the contrast needs {', '.join(of_contrast)} of the edges on the three models, where the other prompt takes the place of what is off.",
    )  # fmt: skip


def confounds(e: Evidence) -> list[dict[str, str]]:
    """Each finding on the real models by `fisher`: as it is, and with entropy and length held."""
    table = e.rows("passages")
    rows = []
    tests = (
        ("entropy", [], ["n_tokens"]), ("n_tokens", [], ["entropy"]), ("n_edges", [], ["entropy"]),
        ("next_word_zipf", [], ["entropy", "n_tokens"]), ("predicted_log_frequency", [], ["entropy", "n_tokens"]),
        ("prompt_surprisal", [], ["entropy", "n_tokens"]), ("surprisal", [], ["entropy", "n_tokens"]),
    )  # fmt: skip
    for importance in BOTH:
        for factor, _, others in tests:
            plain, free = (
                correlations(table, "size_between", factor, importance),
                correlations(table, "size_between", factor, importance, others),
            )
            for way, own in (
                ("as it is", plain),
                (f"{' and '.join(o.replace('n_tokens', 'length') for o in others)} held", free),
            ):
                if own:
                    rows.append({"`size_at` with": factor.replace("_", " "), "order": f"`{importance}`", "": way}
                                | {m: cell(next((r for r in own if r["model"] == m), None)) for m in REAL})  # fmt: skip
    return rows


JANUARY = (dense, dynamic, across_models, rarity, longer_context, complexity, shap)
MAY = (two_phases, top_token, entropy, early_layers, unigrams, topology, geometry, checkpoints)
BEYOND = (quality, order, least, sinks, weights, languages, tasks, rounding)
# Those of the papers' claims that ours answers from passages alone, and so from unseen ones too.
OF_PASSAGES = (dense, dynamic, across_models, rarity, complexity, two_phases, top_token, entropy, unigrams)
