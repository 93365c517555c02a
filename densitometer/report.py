"""A study as one HTML file: each finding as a claim, its figure, its numbers, and what would have refuted it.

The page needs no network and runs no script. A finding that the study's data cannot answer is left out, and the page says
why. Claims are written from the numbers: where an interval holds zero, the claim says that nothing was shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import polars

from .analysis import (
    FACTORS,
    FEWEST,
    FEWEST_TEXTS,
    RESAMPLES,
    component_shares,
    correlation_across_models,
    curve_quartiles,
    distribution,
    factors,
    named,
    resources,
    trees,
)
from .errors import DensitometerError, StorageError
from .figures import (
    draw_bars,
    draw_components,
    draw_cumulative,
    draw_curves,
    draw_intervals,
    draw_matrix,
    draw_resources,
    draw_scatter,
    svg,
)
from .files import check_writable, write_file
from .study_store import Study, open_study

ROWS = 40  # of a table on the page; `tables` writes all
VALUE = "size_at"
MOST_TRACED = 1000  # measurements whose curves and components are read; medians of so many are as good


@dataclass(frozen=True)
class Finding:
    """One claim and what it rests on.

    Args:
        name: short, also of its tables' files.
        claim: what the numbers say, in a sentence or two.
        figure: an svg element.
        tables: by caption.
        reading: how to read the figure and the numbers.
        refuted: what would have shown the claim to be wrong.
    """

    name: str
    claim: str
    figure: str
    tables: dict[str, polars.DataFrame]
    reading: str
    refuted: str


@dataclass(frozen=True)
class LeftOut:
    """A finding that the data cannot answer."""

    name: str
    why: str


@dataclass(frozen=True, eq=False)
class _Tables:
    """What findings are made of, read once."""

    measurements: polars.DataFrame  # all rows
    measured: polars.DataFrame  # those without an error, revisions in the model's name
    curves: polars.DataFrame
    components: polars.DataFrame
    eps: float


def report(
    study: Study | str | Path, output: str | Path = "report.html", tables: str | Path | None = None
) -> Path:
    """Write a study's findings as one HTML file.

    Args:
        study: an open study, or its folder.
        output: the file; written whole or not at all.
        tables: a folder for every table as CSV.

    Raises:
        StorageError: no study there, or a file that cannot be written.
        DensitometerError: nothing in the study has been measured; the extra [analysis] is not installed.
    """
    study = study if isinstance(study, Study) else open_study(study)
    output = Path(output)
    check_writable(output)
    if tables is not None:
        _make_folder(Path(tables))
    found = findings(study)
    page = _page(study, found).encode()
    if tables is not None:
        _write_tables(Path(tables), found)
    write_file(output, lambda file: file.write(page))
    return output


def findings(study: Study) -> list[Finding | LeftOut]:
    """What the study's tables say, in the order of the report."""
    measurements = study.measurements()
    if measurements.is_empty():
        raise DensitometerError(
            f"the study {str(study.folder)!r} holds no measurement yet; run densitometer study first"
        )
    measured = measurements.filter(polars.col("error").is_null())
    if measured.is_empty():
        common = measurements["error"].mode().sort()[0]
        raise DensitometerError(
            f"all {len(measurements):,} rows of the study {str(study.folder)!r} failed, so there is nothing to report; most "
            f"often: {common}"
        )
    traced = traced_texts(measured)
    data = _Tables(
        measurements,
        named(measured),
        study.curves(traced).drop("top_ids", "top_token"),
        study.components(traced),
        study.manifest["settings"]["eps"],
    )
    makers: list[Callable[[_Tables], Finding | LeftOut]] = [
        _needed, _differs, _correlated, _phases, _factors, _trees, _components, _resources,
    ]  # fmt: skip
    return [make(data) for make in makers]


def traced_texts(measured: polars.DataFrame) -> list[str] | None:
    """Ids of texts drawn at random, with about `MOST_TRACED` measurements; None where all are no more."""
    if len(measured) <= MOST_TRACED:
        return None
    texts = measured["text_id"].unique().sort()
    n = max(1, MOST_TRACED * len(texts) // len(measured))
    return texts.sample(n, seed=0).to_list()


def _percent(share: float | None) -> str:
    return "never" if share is None else f"{100 * share:.3g} %"


def _between(low: float | None, high: float | None, form: Callable[[float], str] = _percent) -> str:
    return "no interval: too few texts" if low is None or high is None else f"{form(low)} to {form(high)}"


def _number(value: float) -> str:
    return f"{value:.2f}"


def _listed(parts: list[str], most: int = 6) -> str:
    more = len(parts) - most
    return "; ".join(parts[:most]) + (f"; and {more} more in the table" if more > 0 else "")


def _needed(data: _Tables) -> Finding | LeftOut:
    name = "How much is needed"
    table = distribution(data.measurements, ["model", "importance"], ["size_at", "flops_at", "auc_log"])
    own = table.filter(polars.col("value") == VALUE, polars.col("n") > 0)
    if own.is_empty():
        return LeftOut(name, f"no size evaluated holds any prediction (TV ≤ {data.eps:g})")
    parts = [
        f"{r['model']} by {r['importance']}: {_percent(r['median'])} (95 %: {_between(r['low'], r['high'])})"
        for r in own.iter_rows(named=True)
    ]
    never = int(own["n_never"].sum())
    missed = f" {never:,} predictions are held by no size and are not in the medians." if never else ""
    return Finding(
        name,
        f"To hold a prediction (TV ≤ {data.eps:g} from there on), the median share of edges is {_listed(parts)}.{missed}",
        svg(draw_cumulative(data.measured.select("model", "importance", "size_at").sort("model"), data.eps)),
        {"Median, its interval and quartiles": table},
        "Each line climbs as predictions are held; further left is sparser. size_at: share of edges; flops_at: share of "
        "operations; auc_log: mean TV over log10 size from 1e-5 to 1. An absolute share is a statement about the score too: a "
        "better score finds smaller traces.",
        "That predictions need much: a score under which the median falls to a few percent. That they need little: no such score.",
    )


def _differs(data: _Tables) -> Finding | LeftOut:
    name = "Between languages and domains"
    by = [c for c in ("language", "domain") if data.measured[c].drop_nulls().n_unique() > 1]
    if not by:
        return LeftOut(name, "the corpus names one language and one domain at most")
    table = distribution(data.measurements, ["model", "importance", *by], [VALUE, "auc_log"])
    own = table.filter(polars.col("value") == VALUE, polars.col("n") > 0)
    if own.is_empty():
        return LeftOut(name, "no size evaluated holds any prediction")
    own = own.with_columns(
        group=polars.concat_str([polars.col(c).fill_null("(none)") for c in by], separator=", ")
    )
    parts = []
    for (model, importance), rows in own.group_by("model", "importance", maintain_order=True):
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
        parts.append(
            f"{model} by {importance}: from {_percent(least['median'])} ({least['group']}) to {_percent(most['median'])} "
            f"({most['group']}), {word}"
        )
    return Finding(
        name,
        f"The median share of edges, least and most of {own['group'].n_unique()} groups: {_listed(parts)}.",
        svg(
            draw_intervals(
                own.sort(*by), "group", "median", "lower_quartile", "upper_quartile",
                f"share of edges from which TV stays ≤ {data.eps:g}: median and middle half",
            )
        ),
        {"Median, its interval and quartiles": table},
        "Points are medians, bars the middle half of the texts (not intervals of the median: those are in the table). The least "
        "and the most of many groups differ by chance too; the intervals are not corrected for that choice.",
        "A difference: intervals of the medians that overlap, or that a second corpus turns around.",
    )  # fmt: skip


def _correlated(data: _Tables) -> Finding | LeftOut:
    name = "Across models"
    models = data.measured["model"].unique().sort().to_list()
    if len(models) < 2:
        return LeftOut(name, "one model only; two or more are needed")
    found = {value: correlation_across_models(data.measurements, value) for value in (VALUE, "auc_log")}
    pairs = polars.concat(
        [c.pairs.select(polars.lit(value).alias("value"), polars.all()) for value, c in found.items()]
    )
    own = pairs.filter(polars.col("value") == VALUE).drop_nulls("rho")
    if own.is_empty():
        return LeftOut(name, f"fewer than {FEWEST} texts were measured by two models")
    shown = own.filter(polars.col("p_holm") < 0.05, polars.col("rho") > 0)
    parts = [
        f"{r['one']} and {r['other']} by {r['importance']}: {r['rho']:.2f} ({_between(r['low'], r['high'], _number)}, n = {r['n']})"
        for r in own.iter_rows(named=True)
    ]
    matrix = found[VALUE].matrix
    if len(models) == 2:
        clouds = []
        for importance in matrix["importance"].unique(maintain_order=True):
            one, other = (
                data.measured.filter(
                    polars.col("importance") == importance, polars.col("model") == model
                ).drop_nulls(VALUE)
                for model in models
            )
            both = one.join(other, on=["text_id", "piece"], suffix="_other").group_by(
                "text_id", maintain_order=True
            )
            means = both.agg(polars.col(VALUE, f"{VALUE}_other").mean())
            clouds.append((importance, means[VALUE].to_numpy(), means[f"{VALUE}_other"].to_numpy()))
        figure = draw_scatter(clouds, (models[0], models[1]), f"size_at({data.eps:g})")
    else:
        figure = draw_matrix(matrix)
    return Finding(
        name,
        f"{_correlation_claim(len(shown), len(own))} after Holm's correction (p < 0.05). Spearman of size_at: {_listed(parts)}.",
        svg(figure),
        {"Pairs (p_holm: corrected over the pairs of a value)": pairs, "Matrix of size_at": matrix},
        "A text counts once (the mean of its pieces); n is the number of texts that both models measured. auc_log correlates also "
        "because at tiny sizes TV mostly follows the entropy of the prediction; size_at is free of that.",
        "Intervals that hold 0, or a correlation that goes when entropy is held constant.",
    )


def _correlation_claim(n_shown: int, n: int) -> str:
    if n_shown == 0:
        return f"That texts which need much of one model need much of another is not shown: {'the one pair does not hold' if n == 1 else f'none of {n} pairs holds'}"
    which = "the one pair" if n == 1 else f"all {n} pairs" if n_shown == n else f"{n_shown} of {n} pairs"
    return f"Texts that need much of one model need much of another: for {which}"


def _phases(data: _Tables) -> Finding | LeftOut:
    name = "How the prediction comes back"
    table = curve_quartiles(data.curves)
    if table.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    parts = []
    for (model, importance), rows in table.group_by("model", "importance", maintain_order=True):
        at = {row["size"]: row["median"] for row in rows.iter_rows(named=True)}
        told = [f"{at[size]:.2f} at {_percent(size)}" for size in (1e-4, 1e-2, 0.1, 0.4) if size in at]
        parts.append(f"{model} by {importance}: " + (", ".join(told) or "see the table"))
    landmarks = data.measured["residual_mlp_chain"]
    landmark = landmarks.median()
    return Finding(
        name,
        f"Median TV over size. {_listed(parts)}.",
        svg(draw_curves(table, float(landmark) if isinstance(landmark, float) else None, data.eps)),
        {"Quartiles of TV by size": table},
        "The band is the middle half of the measurements. Left of the dotted line (median over texts of 3L/E) a trace cannot hold "
        "even the last token's own path with its MLPs, so what happens there is about size and entropy, not about the model.",
        "The May paper's two phases (construction 1e-4 to 1e-2, refinement above): a curve with a single slope, or one that falls "
        "elsewhere.",
    )


def _factors(data: _Tables) -> Finding | LeftOut:
    name = "What goes with it"
    found = factors(data.measurements, VALUE)
    own = found.univariate.drop_nulls("rho")
    if own.is_empty():
        return LeftOut(name, f"fewer than {FEWEST} texts, or no factor that varies")
    shown = own.filter(polars.col("p_holm") < 0.05).sort(polars.col("rho").abs(), descending=True)
    parts = [
        f"{_words(r['factor'])} ({r['model']}, {r['importance']}): {r['rho']:.2f} ({_between(r['low'], r['high'], _number)}, n = {r['n']})"
        for r in shown.iter_rows(named=True)
    ]
    claim = (
        f"{len(shown)} of {len(own)} correlations of size_at with a factor hold after Holm's correction (p < 0.05): {_listed(parts)}."
        if parts
        else f"None of {len(own)} correlations of size_at with a factor holds after Holm's correction (p < 0.05): nothing is shown."
    )
    absent = [f for f in FACTORS if f not in own["factor"].to_list()]
    if absent:
        claim += f" Not in this study's data: {', '.join(_words(f) for f in absent)}."
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
        svg(
            draw_intervals(
                own.with_columns(polars.col("factor").str.replace_all("_", " ")), "factor", "rho", "low", "high",
                "Spearman with size_at, 95 % interval", zero=True,
            )
        ),
        tables,
        "Above zero: more of it goes with larger traces. Frequencies are counted in the study's other texts, in the model's own tokens "
        "(log10); with few texts they say little. n_tokens is the context's length, and the position too. Least squares: errors "
        "are HC3, or clustered by text where a text has several rows. A correlation is no cause.",
        "For each factor: an interval that holds 0, or a sign that turns in the regression.",
    )  # fmt: skip


def _words(factor: str) -> str:
    return factor.replace("_", " ")


def _trees(data: _Tables) -> Finding | LeftOut:
    name = "What trees make of it"
    found = trees(data.measurements, VALUE)
    if found.scores.is_empty():
        return LeftOut(name, f"fewer than {FEWEST_TEXTS} texts per model, too few to hold some out")
    parts = []
    for r in found.scores.iter_rows(named=True):
        beats = r["r_squared"] > max(0.0, r["shuffled_best"])
        own = found.importances.filter(model=r["model"], importance=r["importance"]).sort(
            "mean_shap", descending=True
        )
        first = " and ".join(_words(f) for f in own["factor"][:2])
        parts.append(
            f"{r['model']} by {r['importance']}: R² {r['r_squared']:.2f} on held-out texts (shuffled: {r['shuffled_mean']:.2f}), "
            + (f"most by {first}" if beats else "no better than chance, so its SHAP values mean nothing")
        )
    return Finding(
        name,
        f"Boosted trees that predict size_at from the factors: {_listed(parts)}.",
        svg(draw_bars(found.importances, found.scores, "share of edges")),
        {"Scores on held-out texts": found.scores, "Mean |SHAP|": found.importances},
        "Each text is predicted by trees that have not seen it (5 folds). R² 0 is no better than the mean; below it, worse. The control "
        "deals the values out anew among the texts, 5 times. SHAP values explain the trees, not the model.",
        "A score no better than the best of the shuffled controls.",
    )


def _components(data: _Tables) -> Finding | LeftOut:
    name = "What traces are made of"
    found = component_shares(data.components)
    if found.kinds.is_empty():
        return LeftOut(name, "no component shares were stored, or no sizes are common")
    parts = []
    for (model, importance), depth in found.depth.group_by("model", "importance", maintain_order=True):
        own = {"model": model, "importance": importance}
        size = min(depth["size"].unique(), key=lambda s: abs(s - 0.1))
        at = dict(depth.filter(size=size).select("quarter", "share_kept").iter_rows())
        core = found.core.filter(**own, size=size).row(0, named=True)
        kinds = dict(found.kinds.filter(**own, size=size).select("kind", "share_kept").iter_rows())
        parts.append(
            f"{model} by {importance}, at {_percent(size)} of all edges, keep {_percent(at[min(at)])} of those of the first quarter "
            f"of the layers and {_percent(at[max(at)])} of the last; "
            + ", ".join(f"{_percent(v)} of {_words(k)}" for k, v in kinds.items())
            + f"; {core['n_static']} of {core['n_components']} components are in at least 95 % of traces"
        )
    return Finding(
        name,
        f"Traces of {_listed(parts)}.",
        svg(draw_components(found.kinds, found.depth, found.core, found.gini)),
        {
            "By kind": found.kinds, "By quarter of the layers": found.depth, "Static core": found.core,
            "Gini of component use": found.gini,
        },
        "Means over traces. share_kept is of the kind's or quarter's own edges, share_of_trace of the trace's: attention has by far "
        "the most edges. The static core shares its components, not the tokens between which they work. Gini 0: all components use "
        "the same share of their edges; towards 1: few do all. Few edges of the last layers can reach the output.",
        "Early layers first: quarters that fill alike, or the last first. A static core: no components above 95 % before most edges "
        "are on.",
    )  # fmt: skip


def _resources(data: _Tables) -> Finding | LeftOut:
    name = "What operations buy"
    table = resources(data.curves)
    if table.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    parts = []
    for (model, importance), rows in table.group_by("model", "importance", maintain_order=True):
        enough = rows.filter(polars.col("top1").reverse().cum_min().reverse() >= 0.9)
        if len(enough):
            r = enough.row(0, named=True)
            parts.append(
                f"{model} by {importance}: {_percent(r['flops_share'])} of the operations ({_percent(r['size'])} of the edges; "
                f"{_percent(r['top1'])}, 95 %: {_between(r['top1_low'], r['top1_high'])}, n = {r['n']})"
            )
        else:
            parts.append(f"{model} by {importance}: no share evaluated")
    known = int(table["n_next"].sum())
    return Finding(
        name,
        "The fewest operations evaluated from which at least 90 % of traces keep the model's own most probable token: "
        f"{_listed(parts)}."
        + ("" if known else " No text has a known next token, so surprisal is left out."),
        svg(draw_resources(table)),
        {"By size": table},
        "Operations are those of the traces' edges (median over measurements); the output head and the embeddings always run and are "
        "not counted. Excess surprisal: nats of the actual next token above the full model's; below 0 the trace predicts it better. "
        "Bands: Wilson intervals, measurements taken as independent.",
        "That much can be saved: agreement that falls in step with the operations.",
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write tables to {str(folder)!r}: {error.strerror or error}") from error


def _write_tables(folder: Path, found: list[Finding | LeftOut]) -> None:
    for finding in found:
        for i, table in enumerate(finding.tables.values() if isinstance(finding, Finding) else (), start=1):
            name = f"{finding.name.lower().replace(' ', '-')}-{i}.csv"
            write_file(folder / name, table.write_csv)


def _page(study: Study, found: list[Finding | LeftOut]) -> str:
    return "".join(_html(study, found))


def _html(study: Study, found: list[Finding | LeftOut]) -> Iterator[str]:
    corpus = study.manifest["corpus"]
    title = f"Computation density: {Path(corpus['name']).name}"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
    yield from _summary(study)
    shown = [f for f in found if isinstance(f, Finding)]
    yield (
        "<nav><ol>"
        + "".join(f'<li><a href="#f{i}">{escape(f.name)}</a></li>' for i, f in enumerate(shown, 1))
        + "</ol></nav>"
    )
    for i, finding in enumerate(shown, start=1):
        yield f'<section id="f{i}"><h2>{i}. {escape(finding.name)}</h2><p class="claim">{escape(finding.claim)}</p>'
        yield f"<figure>{finding.figure}</figure>"
        yield f"<p><b>How to read it.</b> {escape(finding.reading)}</p>"
        yield f"<p><b>What would have refuted it.</b> {escape(finding.refuted)}</p>"
        for caption, table in finding.tables.items():
            yield from _table(caption, table)
        yield "</section>"
    left_out = [f for f in found if isinstance(f, LeftOut)]
    if left_out:
        yield "<section><h2>What this study cannot say</h2><ul>"
        yield (
            "".join(f"<li><b>{escape(f.name)}</b>: {escape(f.why)}.</li>" for f in left_out)
            + "</ul></section>"
        )
    yield from _settings(study)
    yield "</main></body></html>\n"


def _summary(study: Study) -> Iterator[str]:
    table = named(study.measurements())
    failed = table.filter(polars.col("error").is_not_null())
    models = table["model"].unique().sort().to_list()
    yield (
        f"<p>{table['text_id'].n_unique():,} of {study.manifest['corpus']['n_texts']:,} texts, {len(models)} "
        f"model{'s' * (len(models) > 1)} ({escape(', '.join(models))}), scores {escape(', '.join(table['importance'].unique().sort()))}: "
        f"{len(table) - len(failed):,} measurements, "
        + (
            f"{len(failed):,} failed rows, which are left out everywhere.</p>"
            if len(failed)
            else "no failed rows.</p>"
        )
    )
    traced = traced_texts(table.filter(polars.col("error").is_null()))
    if traced is not None:
        yield (
            f"<p>Curves, components and operations are those of {len(traced):,} texts, drawn at random (seed 0); all else is of "
            "all texts.</p>"
        )
    if len(failed):
        counts = failed.group_by("model", "error").len("rows").sort("rows", descending=True)
        yield from _table("Failed rows", counts)


def _settings(study: Study) -> Iterator[str]:
    manifest = study.manifest
    models = study.measurements().pipe(named)["model"].unique().sort().to_list()
    settings = manifest["settings"]
    words = ["densitometer", "study", manifest["corpus"]["name"]]
    for model in models:
        words += ["-m", model]
    words += ["-o", study.folder.name, "--importance", ",".join(settings["importance"])]
    for name in ("window", "attention", "by", "seed", "traces", "dtype", "threads"):
        if settings.get(name) is not None:
            words += [f"--{name}", str(settings[name])]
    if settings.get("baselines"):
        words += ["--baselines", ",".join(settings["baselines"])]
    for plugin in settings.get("plugins", ()):
        words += ["--plugin", plugin]
    yield "<section><h2>Settings</h2><p>The study, as a command (settings that only Python sets are in the list below):</p>"
    yield f"<pre>{escape(shlex.join(words))}\n{escape(shlex.join(['densitometer', 'report', study.folder.name]))}</pre><dl>"
    rows = {
        **settings,
        "corpus": manifest["corpus"],
        "versions": manifest["versions"],
        "schema": manifest["schema"],
    }
    for name, value in rows.items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
    yield (
        f"</dl><p>Intervals are at 95 %. Bootstraps: percentile, at most {RESAMPLES:,} resamples, seed 0; no interval "
        f"under {FEWEST} texts.</p></section>"
    )


def _table(caption: str, table: polars.DataFrame) -> Iterator[str]:
    more = f" (the first {ROWS} of {len(table):,} rows; --tables writes all)" if len(table) > ROWS else ""
    opened = " open" if len(table) <= 12 else ""
    yield f"<details{opened}><summary>{escape(caption)}{more}</summary><div class='wide'><table><thead><tr>"
    yield "".join(f"<th>{escape(name)}</th>" for name in table.columns) + "</tr></thead><tbody>"
    for row in table.head(ROWS).iter_rows():
        yield "<tr>" + "".join(_cell(value) for value in row) + "</tr>"
    yield "</tbody></table></div></details>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, float):
        return f"<td class='n'>{value:.3g}</td>"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td class='n'>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:0}
main{max-width:56rem;margin:0 auto;padding:1rem 1.25rem 4rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}
.claim{font-size:1.05rem;border-left:4px solid #0072B2;padding-left:.8rem;overflow-wrap:anywhere}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto}
details{margin:.6rem 0}summary{cursor:pointer}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums;margin:.4rem 0}
th,td{padding:.15rem .6rem .15rem 0;text-align:left;border-bottom:1px solid #ddd;white-space:nowrap}
td.n{text-align:right}pre{background:#f4f4f4;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.85rem}dt{color:#555}dd{margin:0;overflow-wrap:anywhere}
"""
