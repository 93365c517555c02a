"""Report of a study as one HTML file.

Each finding has a claim, a figure, tables, and what would have refuted the claim. Claims are
written from the numbers: if an interval contains zero, the claim says that nothing is shown. A
finding that the study's data cannot answer is left out, and the page gives the reason. The page
needs no network and runs no script.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars

from .._util.digits import percent, significant
from .._util.files import check_writable, write_file
from .._util.progress import visible
from ..analysis import FEWEST, RESAMPLES, distribution, named
from ..errors import StorageError
from ..study.store import Study, open_study
from .figures import save
from .findings import Evidence, Finding, LeftOut, findings
from .findings.finding import between, two_digits, worded, words

# Most rows of a table on the page. With `tables`, all rows are written to files.
ROWS = 40
# Version of `findings.json`.
FACTS = 1
# The findings whose claims open the page.
_OPENING = ("How much is needed", "Across models", "What goes with it")
_DETAILS = ["of", "what was found"]
_DENSITIES = [
    "model", "importance", "median", "95 % interval", "texts", "predictions held", "never held", "texts left out",
]  # fmt: skip


def report(
    study: Study | str | Path,
    output: str | Path = "report.html",
    tables: str | Path | None = None,
    figures: str | Path | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Write a study's findings as one HTML file.

    Args:
        study: an open study, or its folder.
        output: the HTML file. It is written whole or not at all.
        tables: a folder for all tables, as CSV files, and for the same facts as `findings.json`.
        figures: a folder for all figures, as SVG and PDF files, whose metadata has captions and
            settings.
        names: names for the report by the model's name in the study. Other models are named by the
            last part of theirs.

    Returns:
        Path of the HTML file.

    Raises:
        InputError: `names` has a model that the study lacks, or two models would have one name.
        StorageError: the folder is not a study, or a file cannot be written.
        DensitometerError: nothing in the study has been measured, or the extra [analysis] is not
            installed.
    """
    study = study if isinstance(study, Study) else open_study(study)
    output = Path(output)
    check_writable(output)
    for folder, what in ((tables, "tables"), (figures, "figures")):
        if folder is not None:
            _make_folder(Path(folder), what)
    evidence = Evidence(study, names)
    answers = findings(evidence)
    shown = [answer for answer in answers if isinstance(answer, Finding)]
    measured_by = evidence.measured_by
    # each figure is drawn once, for the page and for its file
    drawings = [finding.svg(measured_by) for finding in shown]
    left_out = [answer for answer in answers if isinstance(answer, LeftOut)]
    page = "".join(_html(evidence, shown, drawings, left_out)).encode()
    if tables is not None:
        _write_tables(Path(tables), evidence, shown, left_out)
    if figures is not None:
        for finding, drawing in zip(shown, drawings, strict=True):
            _write_figure(Path(figures), finding, drawing, measured_by)
    write_file(output, lambda file: file.write(page))
    return output


def _make_folder(folder: Path, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {what} to {str(folder)!r}: {error.strerror or error}") from error


def _write_tables(
    folder: Path, evidence: Evidence, shown: Sequence[Finding], left_out: Sequence[LeftOut]
) -> None:
    """Write each finding's tables as CSV, and all facts of the page as `findings.json`."""
    facts = []
    for finding in shown:
        files = {}
        for i, (caption, table) in enumerate(finding.tables.items(), start=1):
            files[caption] = f"{_file_name(finding)}-{i}.csv"
            write_file(folder / files[caption], table.write_csv)
        facts.append(
            {
                "name": finding.name,
                "claim": finding.claim,
                "details": [{"of": of, "found": found} for of, found in finding.details],
                "reading": finding.reading,
                "refuted": finding.refuted,
                "tables": files,
            }
        )
    document = {
        "schema": FACTS,
        "names": evidence.names,
        "densities": _densities(evidence).to_dicts(),
        "findings": facts,
        "left_out": [{"name": answer.name, "why": answer.why} for answer in left_out],
        "settings": dict(_settings_of(evidence.study)),
    }
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    write_file(folder / "findings.json", lambda file: file.write(text.encode()))


def _write_figure(folder: Path, finding: Finding, drawing: str, measured_by: str) -> None:
    """Write a figure as SVG, which was drawn for the page, and as PDF."""
    name = _file_name(finding)
    write_file(folder / f"{name}.svg", lambda file: file.write(drawing.encode()))
    save(finding.figure, folder / f"{name}.pdf", finding.caption(measured_by))


def _file_name(finding: Finding) -> str:
    return re.sub(r"[^a-z0-9]+", "-", finding.name.lower().replace("'", ""))


def _html(
    evidence: Evidence, shown: Sequence[Finding], drawings: Sequence[str], left_out: Sequence[LeftOut]
) -> Iterator[str]:
    """Yield the HTML of the page, piece by piece."""
    corpus = evidence.study.manifest["corpus"]
    title = f"Computation density: {Path(corpus['name']).name}"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
    yield from _missing(evidence)
    yield from _summary(evidence, shown)
    yield (
        "<nav><ol>"
        + "".join(f'<li><a href="#f{i}">{escape(f.name)}</a></li>' for i, f in enumerate(shown, 1))
        + "</ol></nav>"
    )
    for i, (finding, drawing) in enumerate(zip(shown, drawings, strict=True), start=1):
        yield f'<section id="f{i}"><h2>{i}. {escape(finding.name)}</h2><p class="claim">{escape(finding.claim)}</p>'
        yield f"<figure>{drawing[drawing.index('<svg') :]}</figure>"
        absent = _absent(evidence, finding)
        if absent:
            yield f'<p class="missing"><b>Not in it:</b> {escape(absent)}</p>'
        if finding.details:
            yield from _table(
                "What was found", polars.DataFrame(finding.details, _DETAILS, orient="row"), "found"
            )
        yield f"<p><b>How to read it.</b> {escape(finding.reading)}</p>"
        yield f"<p><b>What would have refuted it.</b> {escape(finding.refuted)}</p>"
        for caption, table in finding.tables.items():
            yield from _table(caption, table, closed=bool(finding.details))
        yield "</section>"
    if left_out:
        yield "<section><h2>What this study cannot say</h2><ul>"
        yield (
            "".join(f"<li><b>{escape(f.name)}</b>: {escape(f.why)}.</li>" for f in left_out)
            + "</ul></section>"
        )
    yield from _settings(evidence.study, evidence.names)
    yield "</main></body></html>\n"


def _missing(evidence: Evidence) -> Iterator[str]:
    """Yield the page's first paragraph, on what is missing, if a study is unfinished or tiny."""
    n_texts = evidence.study.manifest["corpus"]["n_texts"]
    table = named(evidence.measurements)
    counts = table.group_by("model", maintain_order=True).agg(
        tried=polars.col("text_id").n_unique(),
        measured=polars.col("text_id").filter(polars.col("error").is_null()).n_unique(),
    )
    # what is missing, with the models of which it is
    found: dict[str, list[str]] = {}
    for model, tried, measured in counts.sort("model").iter_rows():
        if tried < n_texts:
            line = f"{tried:,} of {n_texts:,} texts were tried, so the study is unfinished"
            found.setdefault(line, []).append(model)
        if measured < tried:
            line = f"{tried - measured:,} of {tried:,} texts have no measurement, as all their pieces failed"
            found.setdefault(line, []).append(model)
        if 0 < measured < FEWEST:
            line = f"{measured:,} texts were measured, fewer than the {FEWEST} that intervals and tests need"
            found.setdefault(line, []).append(model)
    if found:
        items = "".join(
            f"<li>{escape(_all_of(models, len(counts)))}: {escape(line)}.</li>"
            for line, models in found.items()
        )
        yield f'<div class="missing"><b>What is missing</b><ul>{items}</ul></div>'


def _all_of(models: Sequence[str], n: int) -> str:
    """Name some of n models."""
    return f"All {n} models" if len(models) == n > 2 else ", ".join(models)


def _absent(evidence: Evidence, finding: Finding) -> str:
    """Name the measured models and importances for which a finding has no numbers."""
    tables = [t for t in finding.tables.values() if {"model", "importance"} <= set(t.columns)]
    known: set[tuple[str, ...]] = set()
    for table in tables:
        numbers = [name for name, dtype in table.schema.items() if dtype == polars.Float64]
        if numbers:
            some = table.filter(polars.any_horizontal(polars.col(numbers).is_not_null()))
            known |= set(some.select("model", "importance").drop_nulls().unique().iter_rows())
    if not known:
        return ""
    groups = evidence.measured.group_by("model", "importance", maintain_order=True).agg(
        polars.col("text_id").n_unique()
    )
    return "; ".join(
        f"{model} by {importance} ({n:,} text{'s' * (n != 1)})"
        for model, importance, n in groups.sort("model", "importance").iter_rows()
        if (model, importance) not in known
    )


def _densities(evidence: Evidence) -> polars.DataFrame:
    """The page's first table: what each model needs by each importance, and of how many texts."""
    table = named(evidence.measurements)
    key = ["model", "importance"]
    sizes = distribution(table, key, ["size_at"]).filter(polars.col("n") > 0)
    texts = table.group_by(key, maintain_order=True).agg(
        texts=polars.col("text_id").filter(polars.col("error").is_null()).n_unique(),
        without=polars.col("text_id").n_unique()
        - polars.col("text_id").filter(polars.col("error").is_null()).n_unique(),
    )
    held = sizes.select(*key, median="median", low="low", high="high", held="n", never="n_never")
    return texts.join(held, on=key, how="left").sort(key)


def _shown_densities(evidence: Evidence, units: str) -> Iterator[str]:
    rows = []
    for r in _densities(evidence).iter_rows(named=True):
        median = "–" if r["median"] is None else percent(r["median"], 2)
        interval = "–" if r["median"] is None else between(r["low"], r["high"], two_digits)
        rows.append(
            (r["model"], r["importance"], median, interval, r["texts"], r["held"], r["never"], r["without"])
        )
    yield from _table(
        f"Share of the {units} that a prediction needs (TV ≤ {evidence.eps:g} from there on)",
        polars.DataFrame(rows, _DENSITIES, orient="row"),
    )


def _summary(evidence: Evidence, shown: Sequence[Finding]) -> Iterator[str]:
    """The page's opening: what each model needs, what was measured, and what failed."""
    whole = evidence.study.manifest["settings"].get("granularity") == "component"
    if whole:
        yield (
            "<p><b>Sizes are of components.</b> Traces of this study are made of whole heads and MLPs over all tokens: where the page says "
            "that a trace has a share of the edges, it is that share of the heads and MLPs.</p>"
        )
    yield from _shown_densities(evidence, "components" if whole else "edges")
    first = [finding.claim for finding in shown if finding.name in _OPENING]
    if first:
        yield f'<ul class="claim">{"".join(f"<li>{escape(claim)}</li>" for claim in first)}</ul>'
    table = named(evidence.measurements)
    failed = table.filter(polars.col("error").is_not_null())
    # counted as densitometer study counts them
    pieces = failed.select("model", "text_id", "piece").n_unique()
    models = table["model"].unique().sort().to_list()
    importances = ", ".join(table["importance"].unique().sort())
    each = table.group_by("model", maintain_order=True).agg(polars.col("text_id").n_unique())["text_id"]
    low, high = int(each.min()), int(each.max())  # type: ignore[arg-type]
    texts = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    yield (
        f"<p>{texts} of {evidence.study.manifest['corpus']['n_texts']:,} texts, {len(models)} "
        f"model{'s' * (len(models) > 1)} ({escape(', '.join(models))}), importances {escape(importances)}: "
        f"{len(table) - len(failed):,} measurements, "
        + (
            f"{pieces:,} pieces of text failed ({len(failed):,} rows, one for each importance), which are "
            "left out everywhere.</p>"
            if len(failed)
            else "none failed.</p>"
        )
    )
    parts = [("Curves and operations", evidence.traced), ("Components", evidence.composed)]
    drawn = [f"{what} are those of {len(texts):,} texts" for what, texts in parts if texts is not None]
    if drawn:
        yield (
            f"<p>{'; '.join(drawn)}, drawn at random (seed 0). All other results are of all texts, unless "
            "the finding says otherwise.</p>"
        )
    if len(failed):
        counts = (
            failed.group_by("model", "error", maintain_order=True).len("rows").sort("rows", descending=True)
        )
        yield from _table("Failed rows", counts)


def escape(text: str) -> str:
    """Escape text for HTML, make control characters visible, and keep a number beside its %."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", html.escape(visible(text)))


def _settings(study: Study, names: Mapping[str, str]) -> Iterator[str]:
    """The page's last section: commands that repeat the study and the report, and all settings."""
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
    if settings.get("states"):
        words.append("--states")
    for name in ("unigrams", "means"):
        if settings.get(name):
            words += [f"--{name}", settings[name]["name"]]
    for plugin in settings.get("plugins", ()):
        words += ["--plugin", plugin]
    yield (
        "<section><h2>Settings</h2><p>The study as a command, without --column, --shard and what only "
        "Python can set.</p>"
    )
    report_words = ["densitometer", "report", study.folder.name]
    for model, name in names.items():
        if name not in (model, model.rstrip("/").rpartition("/")[2]):
            report_words += ["-m", f"{name}={model}"]
    yield f"<pre>{html.escape(visible(shlex.join(words)))}\n{html.escape(visible(shlex.join(report_words)))}</pre>"
    yield from _table(
        "All settings", polars.DataFrame(_settings_of(study), ["setting", "value"], orient="row"), "found"
    )
    yield (
        f"<p>Intervals are at 95 %. Bootstrap intervals are percentile intervals of at most {RESAMPLES:,} "
        f"resamples (seed 0). With fewer than {FEWEST} texts there is no interval.</p></section>"
    )


def _settings_of(study: Study) -> list[tuple[str, str]]:
    """All settings of a study as names (inner ones as OUTER: INNER) and values in words."""
    manifest = study.manifest
    rows: dict[str, Any] = {**manifest["settings"], "corpus": manifest["corpus"]}
    if "counted" in manifest:
        rows["texts at first"] = manifest["counted"]
    rows |= {"versions": manifest["versions"], "schema": manifest["schema"]}

    def flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for inner, of in value.items():
                yield from flat(f"{name}: {words(inner)}", of)
        elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            for i, of in enumerate(value, start=1):
                yield from flat(f"{name} {i}" if len(value) > 1 else name, of)
        elif isinstance(value, list | tuple) and value:
            yield name, ", ".join(map(worded, value))
        else:
            yield name, worded(value)

    return [row for name, value in rows.items() for row in flat(words(name), value)]


def _table(caption: str, table: polars.DataFrame, kind: str = "", closed: bool = False) -> Iterator[str]:
    """Yield the HTML of a table that opens with a click. A short one is open from the start.

    Args:
        caption: its caption.
        table: the table. Its first `ROWS` rows are shown.
        kind: "found" for cells that hold sentences, all of which are shown.
        closed: whether it is closed even where it is short.
    """
    rows = len(table) if kind else ROWS
    more = f" (the first {rows} of {len(table):,} rows; --tables writes all)" if len(table) > rows else ""
    # short tables are shown, long ones open with a click
    opened = " open" if len(table) <= 12 and not closed else ""
    look = f" class='{kind}'" if kind else ""
    yield f"<details{opened}><summary>{escape(caption)}{more}</summary><div class='wide'><table{look}><thead><tr>"
    for name, dtype in table.schema.items():
        number = " class='n'" if dtype.is_numeric() else ""
        yield f"<th{number}>{escape(name)}</th>"
    yield "</tr></thead><tbody>"
    for row in table.head(rows).iter_rows():
        yield "<tr>" + "".join(_cell(value) for value in row) + "</tr>"
    yield "</tbody></table></div></details>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, float):
        return f"<td class='n'>{significant(value, 3)}</td>"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td class='n'>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


# Figures keep a width at which their words can be read: on a phone they are moved sideways. They
# stand on white in the dark too.
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:0}
main{max-width:56rem;margin:0 auto;padding:1rem 1.25rem 4rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}
.missing{font-size:.95rem;border-left:4px solid #D55E00;padding-left:.8rem;overflow-wrap:anywhere}
ul.claim{list-style:none}ul.claim li{margin:.35rem 0}.claim{font-size:1.05rem;border-left:4px solid #0072B2;padding-left:.8rem;overflow-wrap:anywhere}
figure{margin:1rem 0;overflow-x:auto}figure svg{display:block;max-width:100%;min-width:34rem;height:auto}
details{margin:.6rem 0}summary{cursor:pointer}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums;margin:.4rem 0}
th,td{padding:.15rem .6rem .15rem 0;text-align:left;border-bottom:1px solid #ddd;white-space:nowrap}
th.n,td.n{text-align:right}table.found td:first-child{min-width:9rem}table.found td{white-space:normal;overflow-wrap:anywhere;vertical-align:top}pre{background:#f4f4f4;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){
body{color:#e6edf3;background:#0f1419}a{color:#7ab8ff}h2,th,td{border-color:#30363d}pre{background:#171d24}
figure{background:#fff;border-radius:.3rem;padding:.4rem}.missing{border-color:#ff9a5c}.claim{border-color:#56B4E9}
}
"""
