"""Report of a study as one HTML file.

Each finding has a claim, a figure, tables, and what would have refuted the claim. Claims are
written from the numbers: if an interval contains zero, the claim says that nothing is shown. A
finding that the study's data cannot answer is left out, and the page gives the reason. The page
needs no network and runs no script.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars

from .._util.digits import significant
from .._util.files import check_writable, write_file
from .._util.progress import visible
from ..analysis import FEWEST, RESAMPLES, named
from ..errors import StorageError
from ..study.store import Study, open_study
from .figures import save
from .findings import Evidence, Finding, LeftOut, findings

# Most rows of a table on the page. With `tables`, all rows are written to files.
ROWS = 40


def report(
    study: Study | str | Path,
    output: str | Path = "report.html",
    tables: str | Path | None = None,
    figures: str | Path | None = None,
) -> Path:
    """Write a study's findings as one HTML file.

    Args:
        study: an open study, or its folder.
        output: the HTML file. It is written whole or not at all.
        tables: a folder for all tables, as CSV files.
        figures: a folder for all figures, as SVG and PDF files.

    Returns:
        Path of the HTML file.

    Raises:
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
    evidence = Evidence(study)
    answers = findings(evidence)
    page = "".join(_html(evidence, answers)).encode()
    if tables is not None:
        _write_tables(Path(tables), answers)
    if figures is not None:
        _write_figures(Path(figures), answers)
    write_file(output, lambda file: file.write(page))
    return output


def _make_folder(folder: Path, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {what} to {str(folder)!r}: {error.strerror or error}") from error


def _write_tables(folder: Path, answers: list[Finding | LeftOut]) -> None:
    for finding in answers:
        if isinstance(finding, Finding):
            for i, table in enumerate(finding.tables.values(), start=1):
                write_file(folder / f"{_file_name(finding)}-{i}.csv", table.write_csv)


def _write_figures(folder: Path, answers: list[Finding | LeftOut]) -> None:
    for finding in answers:
        if isinstance(finding, Finding):
            _write_figure(folder, finding)


def _write_figure(folder: Path, finding: Finding) -> None:
    """Write a figure as SVG, drawn once for page and file, and as PDF."""
    name = _file_name(finding)
    write_file(folder / f"{name}.svg", lambda file: file.write(finding.svg.encode()))
    save(finding.figure, folder / f"{name}.pdf")


def _file_name(finding: Finding) -> str:
    return finding.name.lower().replace(" ", "-")


def _html(evidence: Evidence, answers: list[Finding | LeftOut]) -> Iterator[str]:
    """The page, piece by piece."""
    corpus = evidence.study.manifest["corpus"]
    title = f"Computation density: {Path(corpus['name']).name}"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
    yield from _missing(evidence)
    yield from _summary(evidence)
    shown = [f for f in answers if isinstance(f, Finding)]
    yield (
        "<nav><ol>"
        + "".join(f'<li><a href="#f{i}">{escape(f.name)}</a></li>' for i, f in enumerate(shown, 1))
        + "</ol></nav>"
    )
    for i, finding in enumerate(shown, start=1):
        yield f'<section id="f{i}"><h2>{i}. {escape(finding.name)}</h2><p class="claim">{escape(finding.claim)}</p>'
        drawing = finding.svg
        yield f"<figure>{drawing[drawing.index('<svg') :]}</figure>"
        absent = _absent(evidence, finding)
        if absent:
            yield f'<p class="missing"><b>Not in it:</b> {escape(absent)}</p>'
        yield f"<p><b>How to read it.</b> {escape(finding.reading)}</p>"
        yield f"<p><b>What would have refuted it.</b> {escape(finding.refuted)}</p>"
        for caption, table in finding.tables.items():
            yield from _table(caption, table)
        yield "</section>"
    left_out = [f for f in answers if isinstance(f, LeftOut)]
    if left_out:
        yield "<section><h2>What this study cannot say</h2><ul>"
        yield (
            "".join(f"<li><b>{escape(f.name)}</b>: {escape(f.why)}.</li>" for f in left_out)
            + "</ul></section>"
        )
    yield from _settings(evidence.study)
    yield "</main></body></html>\n"


def _missing(evidence: Evidence) -> Iterator[str]:
    """The page's first paragraph where a study is unfinished or tiny: what is missing."""
    n_texts = evidence.study.manifest["corpus"]["n_texts"]
    table = named(evidence.measurements)
    counts = table.group_by("model", maintain_order=True).agg(
        tried=polars.col("text_id").n_unique(),
        measured=polars.col("text_id").filter(polars.col("error").is_null()).n_unique(),
    )
    lines = []
    for model, tried, measured in counts.sort("model").iter_rows():
        if tried < n_texts:
            lines.append(f"{model}: {tried:,} of {n_texts:,} texts were tried, so the study is unfinished")
        if measured < tried:
            lines.append(
                f"{model}: {tried - measured:,} of {tried:,} texts have no measurement, as all their pieces failed"
            )
        if 0 < measured < FEWEST:
            lines.append(
                f"{model}: {measured:,} texts were measured, fewer than the {FEWEST} that intervals and tests need"
            )
    if lines:
        items = "".join(f"<li>{escape(line)}.</li>" for line in lines)
        yield f'<div class="missing"><b>What is missing</b><ul>{items}</ul></div>'


def _absent(evidence: Evidence, finding: Finding) -> str:
    """Name the measured models and importances that a finding has no numbers of."""
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


def _summary(evidence: Evidence) -> Iterator[str]:
    """The page's paragraphs on what was measured, and what failed."""
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
    if evidence.study.manifest["settings"].get("granularity") == "component":
        yield (
            "<p><b>Sizes are of components.</b> Traces of this study are made of whole heads and MLPs over all tokens: where the page says "
            "that a trace has a share of the edges, it is that share of the heads and MLPs.</p>"
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
    """Escape text for HTML, and make control characters visible."""
    return html.escape(visible(text))


def _settings(study: Study) -> Iterator[str]:
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
        "Python can set. All settings are in the list below.</p>"
    )
    yield f"<pre>{escape(shlex.join(words))}\n{escape(shlex.join(['densitometer', 'report', study.folder.name]))}</pre><dl>"
    rows = {
        **settings,
        "corpus": manifest["corpus"],
        **({"texts at first": manifest["counted"]} if "counted" in manifest else {}),
        "versions": manifest["versions"],
        "schema": manifest["schema"],
    }
    for name, value in rows.items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
    yield (
        f"</dl><p>Intervals are at 95 %. Bootstrap intervals are percentile intervals of at most {RESAMPLES:,} "
        f"resamples (seed 0). With fewer than {FEWEST} texts there is no interval.</p></section>"
    )


def _table(caption: str, table: polars.DataFrame) -> Iterator[str]:
    more = f" (the first {ROWS} of {len(table):,} rows; --tables writes all)" if len(table) > ROWS else ""
    # short tables are shown, long ones open with a click
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
        return f"<td class='n'>{significant(value, 3)}</td>"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td class='n'>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:0}
main{max-width:56rem;margin:0 auto;padding:1rem 1.25rem 4rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}
.missing{font-size:.95rem;border-left:4px solid #D55E00;padding-left:.8rem;overflow-wrap:anywhere}
.claim{font-size:1.05rem;border-left:4px solid #0072B2;padding-left:.8rem;overflow-wrap:anywhere}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto}
details{margin:.6rem 0}summary{cursor:pointer}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums;margin:.4rem 0}
th,td{padding:.15rem .6rem .15rem 0;text-align:left;border-bottom:1px solid #ddd;white-space:nowrap}
td.n{text-align:right}pre{background:#f4f4f4;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.85rem}dt{color:#555}dd{margin:0;overflow-wrap:anywhere}
"""
