"""Results as text for a terminal: tables and a curve; nothing is computed here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import polars
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .calibration import ASKED_TV
from .check import CheckReport
from .families import FLAVOUR_SIZES
from .measurement import Measurement
from .planning import Plan
from .progress import visible
from .reproduction import Difference
from .study_store import Study

_WIDTH, _HEIGHT = 64, 12
_FILES = {"one": "first", "other": "second"}
_MARKS = "●▲■◆"
_SUBGRAPHS = {  # the papers' flavours of the baselines, at `FLAVOUR_SIZES`
    "inverse_residual": "all but the {} trace, residual edges kept",
    "random_residual": "random of {}, residual edges added",
}
# From light to dark in even steps of lightness, one hue: readable without seeing colours.
_SHADES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")


def show_measurement(measurement: Measurement) -> Group:
    """A measurement: what was predicted, the curve, the table of sizes, the densities."""
    parts: list[object] = [_headline(measurement), Text(), _drawn_curve(measurement), Text()]
    parts += [_sizes(measurement, name) for name in measurement.density]
    parts += [Text(), _baselines(measurement), Text(), _densities(measurement)]
    parts += [Text(), Text(measurement.summary(), style="bold")]
    return Group(*parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Visible:
    """What is printed, with nothing in it that steers the terminal: texts, names and errors come from anywhere."""

    what: Any

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.what, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def _marked(markup: str) -> Text:
    return Text.from_markup(markup, emoji=False)


def _percent(share: float | None) -> str:
    return "never" if share is None else f"{100 * share:.3g} %"


def _shown(token: str) -> str:
    """A token between quotes, control characters escaped."""
    return escape(repr(token))


def _joined(tokens: Sequence[str]) -> str:
    """Tokens as one text, with characters whose bytes were split over tokens put together again."""
    return re.sub(
        r"(?:\\x[0-9a-f]{2})+",
        lambda run: bytes.fromhex(run[0].replace("\\x", "")).decode(errors="backslashreplace"),
        "".join(tokens),
    )


def _headline(m: Measurement) -> Text:
    g = m.graph
    top = ", ".join(
        f"{_shown(token)} {p:.2f}"
        for token, p in zip(m.prediction["token"][:4], m.prediction["probability"][:4], strict=True)
    )
    tokens = m.input["tokens"]
    shown = _joined(tokens[: m.input["position"] + 1])
    shown = shown if len(shown) <= 90 else "…" + shown[-89:]
    lines = [
        f"[bold]{escape(m.model['name'])}[/bold]  {m.model['architecture']}, {m.model['dtype']}, {m.model['device']}; "
        f"{g['n_layers']} layers, {g['n_heads']} heads, {g['n_tokens']} tokens, {g['n_edges']:,} edges"
        + (f" by {m.granularity}" if m.granularity != "block" else ""),
        f"text        {escape(repr(shown))}",
        f"predicts    {top}   (entropy {m.entropy:.2f} nats)",
    ]
    if m.next_token is not None:
        n = m.next_token
        lines.append(
            f"next token  {_shown(n['token'])}: surprisal {n['surprisal']:.2f} nats, rank {n['rank']}"
        )
    return _marked("\n".join(lines))


def _drawn_curve(m: Measurement) -> Text:
    """TV (0 to 1) over log10 size (1e-5 to 1), one mark per importance, landmarks and the random baseline."""
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT + 1)]

    def column(size: float) -> int:
        return round((math.log10(max(size, 1e-5)) + 5) / 5 * (_WIDTH - 1))

    for size in m.graph["landmarks"].values():
        if 1e-5 <= size <= 1:
            for row in grid:
                row[column(size)] = "┊"
    names = list(m.density)
    series = [("random", names[0], "·")]
    series += [("trace", n, _MARKS[i % len(_MARKS)]) for i, n in enumerate(names)]
    for kind, name, mark in series:
        part = m.curve.filter((polars.col("kind") == kind) & (polars.col("importance") == name))
        for size, tv in zip(part["size"], part["tv"], strict=True):
            grid[round((1 - tv) * _HEIGHT)][column(size)] = mark
    lines = []
    for i, row in enumerate(grid):
        label = {0: "1.0", _HEIGHT // 2: "0.5", _HEIGHT: "0.0"}.get(i, "")
        lines.append(f"{label:>4} ┤{''.join(row)}")
    lines.append("     └" + "─" * _WIDTH)
    ticks = [" "] * (_WIDTH + 12)
    for exponent, name in enumerate(("0.001 %", "0.01 %", "0.1 %", "1 %", "10 %", "100 %")):
        at = 6 + round(exponent / 5 * (_WIDTH - 1)) - (len(name) // 2 if exponent else 0)
        ticks[at : at + len(name)] = name
    lines.append("".join(ticks))
    legend = "   ".join(f"{_MARKS[i % len(_MARKS)]} {n}" for i, n in enumerate(names))
    random = "   · random" if (m.curve["kind"] == "random").any() else ""
    lines.append(f"      TV over share of edges:   {legend}{random}   ┊ residual chain, with MLPs")
    return Text("\n".join(lines))


def _sizes(m: Measurement, name: str) -> Table:
    table = Table(title=f"trace by {name}", title_justify="left", box=None, pad_edge=False)
    for header in (
        "size",
        "edges",
        "threshold",
        "FLOPs",
        "parameters",
        "TV",
        "KL",
        "top-1",
        "nucleus",
        "entropy",
    ):
        table.add_column(header, justify="right")
    table.add_column("trace's top token")
    for label in ("TV inverse", "TV random"):
        table.add_column(label, justify="right")
    own = m.curve.filter(polars.col("importance") == name)
    others = {
        kind: dict(own.filter(polars.col("kind") == kind).select("size", "tv").iter_rows())
        for kind in ("inverse", "random")
    }
    traces = own.filter(polars.col("kind") == "trace")
    different = traces.unique(
        "n_edges", keep="last", maintain_order=True
    )  # tiny sizes round to the same trace
    for row in different.iter_rows(named=True):
        table.add_row(
            _percent(row["size"]),
            f"{row['n_edges']:,}",
            f"{row['threshold']:.2g}",
            _percent(row["flops_share"]),
            _percent(row["parameter_share"]),
            f"{row['tv']:.3f}",
            f"{row['kl']:.3f}",
            "yes" if row["top1"] else "no",
            f"{row['nucleus']} %" if row["nucleus"] else "-",
            f"{row['entropy']:.2f}",
            f"{_shown(row['top_token'])} {row['top_probability']:.2f}",
            *(
                f"{others[kind][row['size']]:.3f}" if row["size"] in others[kind] else "-"
                for kind in ("inverse", "random")
            ),
        )
    return table


def _baselines(m: Measurement) -> Table:
    table = Table(title="without a score", title_justify="left", box=None, pad_edge=False)
    table.add_column("subgraph")
    for header in ("size", "edges", "FLOPs", "TV", "KL", "entropy"):
        table.add_column(header, justify="right")
    sizes = {kind: iter(FLAVOUR_SIZES) for kind in _SUBGRAPHS}
    for row in m.baselines.iter_rows(named=True):
        name = row["kind"].replace("_", " ")
        if row["kind"] in _SUBGRAPHS:
            name = _SUBGRAPHS[row["kind"]].format(_percent(next(sizes[row["kind"]], None)))
        table.add_row(
            name,
            _percent(row["size"]),
            f"{row['n_edges']:,}",
            _percent(row["flops_share"]),
            f"{row['tv']:.3f}",
            f"{row['kl']:.3f}",
            f"{row['entropy']:.2f}",
        )
    return table


def _densities(m: Measurement) -> Table:
    table = Table(title="density", title_justify="left", box=None, pad_edge=False)
    table.add_column("importance")
    for header in ("TV ≤ 0.1 from", "bracket", "of FLOPs", "of parameters", "auc_log", "auc_linear"):
        table.add_column(header, justify="right")
    flops, parameters = m.density_in("flops"), m.density_in("parameters")
    for name, density in m.density.items():
        bracket = density.bracket(0.1)
        shown = "-" if bracket is None else f"{_percent(bracket[0])} to {_percent(bracket[1])}"
        table.add_row(
            name, _percent(density.size_at(0.1)), shown, _percent(flops[name].size_at(0.1)),
            _percent(parameters[name].size_at(0.1)), f"{density.auc_log:.3f}", f"{density.auc_linear:.3f}",
        )  # fmt: skip
    marks = m.graph["landmarks"]
    table.caption = (
        f"landmarks: residual chain {_percent(marks['residual_chain'])}, with MLPs "
        f"{_percent(marks['residual_mlp_chain'])}; noise floor: TV {m.noise_floor:.1e}"
    )
    table.caption_justify = "left"
    return table


def show_positions(table: polars.DataFrame, importance: str, drawn: bool = False) -> Group:
    """Density along a text: each token on a background from light (little of the model) to dark (much), and a table.

    Args:
        drawn: the text was drawn before, each token `shaded` by its size itself: the table alone.
    """
    own = table.filter(polars.col("importance") == importance)
    size = own["size_at"].fill_null(1.0)
    low, high = float(size.min()), float(size.max())  # type: ignore[arg-type]
    light, dark = (0.0, 1.0) if drawn else (low, high)
    text = Text()
    for token, value in zip(own["token"], size, strict=True):
        text.append_text(shaded(token, 0.0 if light == dark else (value - light) / (dark - light)))
    rows = Table(box=None, pad_edge=False)
    for header in (
        "position",
        "read",
        "TV ≤ eps from",
        "",
        "of edges",
        "auc_log",
        "entropy",
        "surprisal of the next",
    ):
        rows.add_column(header, justify="left" if header in ("read", "") else "right")
    for row, value in zip(own.iter_rows(named=True), size, strict=True):
        surprisal = "-" if row["surprisal"] is None else f"{row['surprisal']:.2f}"
        rows.add_row(
            str(row["position"]), _shown(row["token"]), _percent(row["size_at"]), "▇" * round(20 * value),
            f"{row['n_edges']:,}", f"{row['auc_log']:.3f}", f"{row['entropy']:.2f}", surprisal,
        )  # fmt: skip
    middle = _percent(float(size.median()))  # type: ignore[arg-type]
    line = (
        f"share of the edges ({importance}) that the prediction after each token needs: {_percent(low)} to "
        f"{_percent(high)}, median {middle}; light is {_percent(light)}, dark {_percent(dark)}"
    )
    return Group(*([] if drawn else [text, Text()]), rows, Text(), Text(line, style="bold"))


def shaded(token: str, share: float) -> Text:
    """A token on a background from light (0) to dark (1)."""
    shade = _SHADES[round(share * (len(_SHADES) - 1))]
    return Text(
        visible(token.replace("\n", "⏎")), style=f"{'black' if share < 0.55 else 'white'} on {shade}", end=""
    )


def show_report(report: CheckReport) -> Group:
    """A check-up: what was found, every identity, what does not work."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("identity", no_wrap=True)
    table.add_column("gap", justify="right", no_wrap=True)
    table.add_column("allowed", no_wrap=True)
    table.add_column("detail", style="dim", overflow="fold")
    for row in report.rows:
        verdict = "[green]ok[/green]" if row.passed else "[bold red]FAILED[/bold red]"
        sign = "≤" if row.bound == "at most" else ">"
        table.add_row(
            verdict, row.identity, f"{row.gap:.1e}", f"{sign} {row.tolerance:.0e}", escape(row.detail)
        )
    parts: list[object] = [
        _marked(f"[bold]{escape(report.model)}[/bold]"),
        _named(report.facts),
        Text(),
        table,
    ]
    if report.unsupported:
        parts += [
            Text(),
            _marked("[yellow]not supported on this model[/yellow]"),
            _named(report.unsupported),
        ]
    holds = len(report.rows) - len(report.failed)
    verdict = (
        f"[bold green]every identity holds[/bold green] ({holds} of {len(report.rows)})"
        if report.passed
        else f"[bold red]{len(report.failed)} of {len(report.rows)} identities FAILED[/bold red]: do not measure on this model"
    )
    verdict += f"; noise floor TV {report.noise_floor:.1e}; {report.seconds:.1f} s"
    parts += [Text(), _marked(verdict)]
    return Group(*parts)  # type: ignore[arg-type]


def _named(facts: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(escape(name), escape(fact))
    return table


def show_difference(found: Difference) -> Group:
    """What differs between two measurements."""
    parts: list[object] = []
    for title, facts in (("what was measured", found.asked), ("versions and platform", found.surroundings)):
        if len(facts):
            table = Table("", "one", "other", box=None, pad_edge=False, title=title, title_justify="left")
            for told in facts.iter_rows():
                table.add_row(*(escape(fact if len(fact) <= 60 else f"{fact[:59]}…") for fact in told))
            parts += [table, Text()]
    if len(found.numbers):
        table = Table(box=None, pad_edge=False, title="numbers", title_justify="left")
        table.add_column("")
        for name in ("different", "of", "largest difference"):
            table.add_column(name, justify="right")
        table.add_column("where it is largest", style="dim")
        for row in found.numbers.iter_rows(named=True):
            gap = "" if row["largest"] is None else f"{row['largest']:.2g}"
            where = (
                ""
                if row["kind"] is None
                else f"{row['importance'] or ''} {row['kind']} at {row['size']:.3g}".strip()
            )
            table.add_row(escape(row["quantity"]), str(row["n_different"]), str(row["n"]), gap, escape(where))
        parts += [table, Text()]
    for (only_in,), rows in found.missing.group_by("only_in", maintain_order=True):
        scores = ", ".join(rows["importance"].drop_nulls().unique(maintain_order=True)) or "no score"
        parts.append(Text(f"{len(rows)} traces only in the {_FILES[str(only_in)]} ({scores})"))
    if found.same_numbers:
        parts.append(_marked("[green]every number is the same, bit for bit[/green]"))
    else:
        parts.append(Text(f"largest difference of a total variation: {found.largest_tv:.2g}"))
    return Group(*parts)  # type: ignore[arg-type]


def show_plan(plan: Plan) -> Group:
    """A plan: edges, memory by item and device, time, disk, and what to change."""
    edges = f"{plan.n_edges:,}" + (
        "" if plan.edges_exact else " at most (its masks cannot be told from the config)"
    )
    each = "" if plan.texts == 1 else f" for {plan.texts:,} texts"
    was = "no measurement was compared with its plan yet"
    if plan.last_run is not None:
        run = plan.last_run
        was = (
            f"{PurePath(run.model).name}, {run.n_tokens} tokens, took {run.seconds_ratio:.2g} times its plan"
        )
        if run.peak_ratio is not None:
            was += f", and {run.peak_ratio:.2g} times its memory"
    facts = {
        "model": f"{plan.architecture}, {plan.n_layers} layers, {plan.n_parameters:,} parameters, {plan.dtype}",
        "text": f"{plan.length:,} tokens, by {', '.join(plan.importance)}",
        "edges": edges,
        "time": f"about {_duration(plan.seconds)}{each}, without loading",
        "disk": f"{_bytes(plan.disk_bytes)} as JSON{each}",
        "last run": was,
    }
    table = Table(box=None, pad_edge=False)
    table.add_column("memory at the largest moment")
    table.add_column("", justify="right")
    for device, items in plan.memory.items():
        free = plan.available.get(device)
        for name, size in items.items():
            table.add_row(f"  {name}", _bytes(size))
        beside = "" if free is None else f" of {_bytes(free)} free"
        table.add_row(f"[bold]peak on {device}[/bold]", f"[bold]{_bytes(plan.peaks[device])}[/bold]{beside}")
    parts: list[object] = [
        _marked(f"[bold]{escape(plan.model)}[/bold]"),
        _named(facts),
        Text(),
        table,
        Text(),
    ]
    if plan.fits:
        parts.append(
            _marked("[green]its memory fits[/green]; Python and torch themselves take some 0.5 GB more")
        )
    else:
        parts.append(_marked("[bold red]its memory does not fit[/bold red]; what would help:"))
        parts += [Text(f"  {line}") for line in plan.advice]
    return Group(*parts)  # type: ignore[arg-type]


def _bytes(n: int) -> str:
    """1.2 GB, 34 MB, 5 kB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}" if n < 1000 * size else f"{n / size:,.0f} {unit}"
    return f"{n} bytes"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} seconds"


def show_calibration(rows: polars.DataFrame) -> Table:
    """Expected against measured edges, a row per step and a column per score."""
    names = rows["importance"].unique(maintain_order=True).to_list()
    table = Table(
        box=None, pad_edge=False, title="edges needed, and asked for by each score", title_justify="left"
    )
    for header in ("step", "of", "needed", *names):
        table.add_column(header, justify="left" if header == "step" else "right")
    for (step,), own in rows.group_by("step", maintain_order=True):
        needed = own["expected_edges"][0]
        measured = dict(own.select("importance", "measured_edges").iter_rows())
        cells = [_asked(measured[name], needed) for name in names]
        table.add_row(escape(str(step)), str(own["n_edges"][0]), str(needed), *cells)
    table.caption = f"asked for: the fewest best-first edges from which TV stays at most {ASKED_TV:g}"
    table.caption_justify = "left"
    return table


def _asked(measured: int | None, needed: int) -> str:
    if measured is None:
        return "[bold red]never[/bold red]"
    return f"[green]{measured}[/green]" if measured <= needed else str(measured)


def show_study(study: Study) -> Group:
    """What is in a study: per model and score how many pieces of text were measured and failed, and their densities."""
    rows = study.sql(
        "select coalesce(model || '@' || revision, model) as model, importance, count(*) filter (error is null) as measured, "
        "count(*) filter (error is not null) as failed, quantile_cont(size_at, 0.25) as low, median(size_at) as middle, "
        "quantile_cont(size_at, 0.75) as high, median(auc_log) as auc_log, median(auc_linear) as auc_linear "
        "from measurements group by all order by all"
    )
    errors = study.sql(
        "select error, count(distinct (model, text_id, piece)) as n, any_value(model) as model, min(text_id) as text "
        "from measurements where error is not null group by error order by n desc"
    )
    eps = study.manifest["settings"]["eps"]
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    table.add_column("importance")
    for name in ("measured", "failed", f"TV ≤ {eps:g} from", "middle half", "auc_log", "auc_linear"):
        table.add_column(name, justify="right")
    for row in rows.iter_rows(named=True):
        half = "" if row["low"] is None else f"{_percent(row['low'])} to {_percent(row['high'])}"
        numbers = ("" if row[name] is None else f"{row[name]:.3f}" for name in ("auc_log", "auc_linear"))
        failed = Text(f"{row['failed']:,}", style="yellow" if row["failed"] else "")
        table.add_row(
            escape(row["model"]),
            row["importance"],
            f"{row['measured']:,}",
            failed,
            _percent(row["middle"]) if row["measured"] else "",
            half,
            *numbers,
        )
    lines = [
        Text(f"{n:,} failed: {error} (such as {model}, text {text})", style="yellow")
        for error, n, model, text in errors.head(5).iter_rows()
    ]
    return Group(table, *lines)
