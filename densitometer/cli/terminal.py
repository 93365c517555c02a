"""Results as text for a terminal: tables and a curve. Nothing is computed here.

Printed texts, tokens, names and errors may come from any source and contain control characters. So
each cell is a rich `Text` without markup, passed through `_seen`, and `Printed` checks the whole
output again. Numbers are never truncated: `Columns` splits a table that is too wide.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePath
from typing import Any, Literal

import polars
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .._util.digits import percent, significant
from .._util.progress import visible
from ..graph.sinks import Sinks, describe_activations, describe_tokens
from ..measuring.calibration import ASKED_TV
from ..measuring.check import CheckReport
from ..measuring.measurement import Measurement, size_range
from ..measuring.planning import Plan
from ..measuring.replay import Difference
from ..measuring.trace_sets import FLAVOUR_SIZES
from ..study.store import Study
from ..study.tasks import TaskMeasurement

# Largest width of the curve, and its height. A step of the height is a sixth of TV.
_WIDTH, _HEIGHT = 64, 6
_TICKS = ("0.001 %", "0.01 %", "0.1 %", "1 %", "10 %", "100 %")
_FILES = {"one": "first", "other": "second"}
_MARKS = ("●", "▲", "■", "◆")
_MARK_STYLES = ("cyan", "magenta", "yellow", "green")
# Rows of the first screen, as shares of the edges. Rows with equal results are merged before.
_CHOSEN_SIZES = (0.001, 0.04, 0.1, 0.2, 0.4, 1.0)
# Most importances in the first screen's table.
_MOST_IMPORTANCES = 4
# Most cells of a text, and of a fact beside its name on a terminal of 80 columns.
_MOST_CELLS = 130
_FACT_CELLS = 68
# Baselines in the papers' variants, at `FLAVOUR_SIZES`.
_SUBGRAPHS = {
    "inverse_residual": "all but the {} trace, residual edges kept",
    "random_residual": "random of {}, residual edges added",
}
# From light to dark in even steps of lightness and one hue, so that colour vision is not needed.
_SHADES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
# Replacements for characters that a terminal's encoding lacks. Each has the same width.
_PLAIN = {
    "●": "o", "▲": "^", "■": "#", "◆": "%", "·": ".", "┊": ":", "┤": "|", "└": "+", "─": "-", "▇": "#", "⏎": "/",
    "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-",
}  # fmt: skip
# Parts of Persian, Hindi and emoji, which do not control the terminal.
_JOINERS = "\u200c\u200d"
# Put after a right-to-left token, so that numbers after it keep their place.
_LEFT_TO_RIGHT = "\u200e"


# --- what reaches the terminal
# ------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """Output that is safe to print on a terminal.

    It contains no control characters and only characters of the terminal's encoding. No line ends
    in blanks.

    Args:
        what: anything that rich can print.
    """

    what: Any

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # blanks are held back until text follows them on the same line
        blanks: list[Segment] = []
        for segment in console.render(self.what, options):
            text, style = segment.text, segment.style
            if segment.control or (style is not None and style.bgcolor):
                head, tail = text, ""
            else:
                head = text.rstrip(" ")
                tail = text[len(head) :]
            if head:
                yield from blanks if not head.startswith("\n") else ()
                blanks = []
                shown = _seen(head, kept=_JOINERS + _LEFT_TO_RIGHT)
                yield segment if segment.control else Segment(_encodable(shown, options.encoding), style)
            if tail:
                blanks.append(Segment(tail, style))
        yield from blanks


def _seen(text: str, kept: str = _JOINERS) -> str:
    """Replace control characters as `visible` does, but keep some characters."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in kept else visible(c) for c in text)


def _encodable(text: str, encoding: str) -> str:
    """Replace each character that an encoding lacks by another of the same width."""

    def stand_in(character: str) -> str:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return _PLAIN.get(character, "?" * cell_len(character))
        return character

    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(map(stand_in, text))
    return text


def _text(text: object, style: str = "") -> Text:
    """Make a rich text of anything, without markup or control characters."""
    return Text(_seen(str(text)), style)


def _styled(*parts: str | tuple[str, str]) -> Text:
    """Make a rich text of parts, each a string or a pair of string and style."""
    return Text.assemble(*((_seen(p), "") if isinstance(p, str) else (_seen(p[0]), p[1]) for p in parts))


def _quoted(text: str) -> str:
    """Return a text in quotes, with control characters escaped.

    Backslashes are escaped too if anything else is, so that escapes are unambiguous.
    """
    escaped = "".join("\\n" if c == "\n" else _seen(c) for c in text)
    if escaped != text:
        escaped = "".join("\\\\" if c == "\\" else "\\n" if c == "\n" else _seen(c) for c in text)
    quote = '"' if "'" in text and '"' not in text else "'"
    back = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text)
    return f"{quote}{escaped}{quote}{_LEFT_TO_RIGHT * back}"


def _cell(token: str) -> Text:
    return Text(_quoted(token))


def _joined(tokens: Sequence[str]) -> str:
    """Join tokens to a text. Characters whose bytes are split over several tokens are restored."""
    return re.sub(
        r"(?:\\x[0-9a-f]{2})+",
        lambda run: bytes.fromhex(run[0].replace("\\x", "")).decode(errors="backslashreplace"),
        "".join(tokens),
    )


def _bracket(bracket: tuple[float, float] | None) -> str:
    return "never" if bracket is None else size_range(*bracket)


# --- tables
# -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        head: heading.
        right: whether to align the column to the right.
        folds: smallest width to which words may be broken over lines; 0 for columns of numbers,
            which are never broken.
        style: style of the cells.
        spare: whether to leave the column out if it does not fit.
    """

    head: str
    right: bool = True
    folds: int = 0
    style: str = ""
    spare: bool = False

    def least(self, width: int) -> int:
        """Smallest width of this column, if its widest cell has the given width."""
        return min(width, max(self.folds, cell_len(self.head))) if self.folds else width


@dataclass
class Columns:
    """A table that is split by columns if it is too wide. Each part repeats the first column."""

    columns: Sequence[Column]
    rows: list[Sequence[Text | str]] = field(default_factory=list)
    title: str = ""
    heads: bool = True

    def add(self, *cells: Text | str) -> None:
        """Add a row."""
        assert len(cells) == len(self.columns), (cells, self.columns)
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [[cell if isinstance(cell, Text) else _text(cell) for cell in row] for row in self.rows]
        if self.title:
            yield _text(self.title, "italic")
        for i, part in enumerate(self._parts(cells, options.max_width)):
            if i:
                yield Text()
            yield self._table(
                [self.columns[c] for c in part], [[row[c] for c in part] for row in cells], options
            )

    def _parts(self, cells: list[list[Text]], width: int) -> list[list[int]]:
        """Return the columns of each part, as many as fit."""
        widths = _widths(self.columns, cells, self.heads)
        least = [column.least(whole) + 2 for column, whole in zip(self.columns, widths, strict=True)]
        left = list(range(len(self.columns)))
        for c in reversed(left.copy()):
            if self.columns[c].spare and sum(least[i] for i in left) - 2 > width:
                left.remove(c)
        parts = [[0]]
        for c in left[1:]:
            if sum(least[i] for i in (*parts[-1], c)) - 2 > width and len(parts[-1]) > 1:
                parts.append([0])
            parts[-1].append(c)
        return parts

    def _table(self, columns: Sequence[Column], cells: list[list[Text]], options: ConsoleOptions) -> Table:
        table = Table(box=None, pad_edge=False, show_header=self.heads)
        widths = _widths(columns, cells, self.heads)
        least = sum(c.least(whole) + 2 for c, whole in zip(columns, widths, strict=True)) - 2
        for column in columns:
            table.add_column(
                _text(column.head), justify="right" if column.right else "left", style=column.style, overflow="fold",
                no_wrap=not column.folds and least <= options.max_width,
            )  # fmt: skip
        for row in cells:
            table.add_row(*row)
        return table


def _widths(columns: Sequence[Column], cells: list[list[Text]], heads: bool) -> list[int]:
    return [
        max(
            cell_len(column.head) if heads else 0,
            *(cell_len(line) for row in cells for line in row[c].plain.split("\n")),
            1,
        )
        for c, column in enumerate(columns)
    ]


def _named(facts: dict[str, str | Text]) -> Columns:
    table = Columns([Column("", right=False, style="dim"), Column("", right=False, folds=12)], heads=False)
    for name, fact in facts.items():
        table.add(_text(name), fact)
    return table


# --- a measurement
# ------------------------------------------------------------------------------------


def show_measurement(measurement: Measurement, full: bool = False) -> Group:
    """Return a measurement as text: summary line, facts, curve and a table.

    Args:
        measurement: the measurement.
        full: whether to show every size, column and baseline, not only the first screen.
    """
    m = measurement
    parts: list[Any] = [_Quote(m.summary(_eps(m))), _headline(m), _Curve(m)]
    parts += [Text(), *_everything(m)] if full else _first_table(m)
    return Group(*parts)


def _eps(m: Measurement) -> float:
    return float(m.provenance.settings.get("eps", 0.1))


@dataclass(frozen=True)
class _Quote:
    """A line to quote, in bold. It is broken at words, but never between a number and its unit."""

    line: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = re.sub(r"(?<=\d) (?=%|to \d|edges|tokens?)", "\u00a0", _seen(self.line))
        for part in textwrap.wrap(line, options.max_width, break_on_hyphens=False):
            yield Text(part.replace("\u00a0", " "), "bold")


def _headline(m: Measurement) -> Columns:
    model, g = m.model, m.graph
    built = [model.architecture, model.dtype]
    if model.quantization:
        file = PurePath(model.file or "").name
        where = f" in {file}" if file and PurePath(model.name).name != file else ""
        built.append(f"{model.quantization}{where}")
    built.append(model.device)
    shape = f"{g.n_layers} layers, {g.n_heads} heads"
    top = [
        f"{_quoted(token)} {p:z.2f}"
        for token, p in m.prediction.select("token", "probability").head(4).iter_rows()
    ]
    entropy = f"; entropy {m.entropy:z.2f} nats"
    while len(top) > 1 and cell_len(", ".join(top) + entropy) > _FACT_CELLS:
        top.pop()
    facts: dict[str, str | Text] = {
        "model": _styled((model.name, "bold"), f"  {', '.join(built)}; {shape}"),
        "text": Text(_quoted(_shown_text(m))),
        "predicts": Text(", ".join(top) + entropy),
    }
    if m.next_token is not None:
        n = m.next_token
        facts["next token"] = Text(
            f"{_quoted(n['token'])} in the text: surprisal {n['surprisal']:z.2f} nats, rank {n['rank']:,}"
        )
    if m.target is not None:
        t, eps = m.target, _eps(m)
        held = ", ".join(
            f"{_bracket(d.bracket(eps, by='faithfulness'))} ({name})" for name, d in m.density.items()
        )
        facts["target"] = Text(
            _seen(
                f"{t.kind} {t.name}: {significant(t.full, 3)} in the full model, {significant(t.nothing, 3)} with no edge on; "
                f"faithfulness within {eps:g} of 1 from {held}"
            )
        )
    most, there = f"{m.noise:.1g}", f"{max(density.noise for density in m.density.values()):.1g}"
    nearby = f", {there} where <= {_eps(m):g}" if there != most else ""
    facts["TV"] = f"total variation, 0 to 1; by rounding alone {most}{nearby}"
    return _named(facts)


def _shown_text(m: Measurement) -> str:
    """Return the text up to the measured position, or its end if it is long."""
    text, tokens = m.input.text, m.input.tokens
    if text is None or m.input.position + 1 < len(m.input.ids):
        text = _joined(tokens[: m.input.position + 1])
    if cell_len(text) <= _MOST_CELLS:
        return str(text)
    return "... " + "".join(text[-_MOST_CELLS // (2 if cell_len(text) > 1.5 * len(text) else 1) :])


@dataclass(frozen=True)
class _Curve:
    """Curve of TV (0 to 1) over log10 size (1e-5 to 1).

    It has a mark per importance, and shows the landmarks and the random baseline.
    """

    m: Measurement

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        m, width = self.m, max(min(_WIDTH, options.max_width - 6), 8)
        grid = [[(" ", "")] * width for _ in range(_HEIGHT + 1)]

        def column(size: float) -> int:
            return round((math.log10(max(size, 1e-5)) + 5) / 5 * (width - 1))

        for size in m.graph.landmarks.values():
            if 1e-5 <= size <= 1:
                for row in grid:
                    row[column(size)] = ("┊", "dim")
        names = list(m.density)
        series = [("random", names[0], "·", "dim")]
        series += [("trace", n, _MARKS[i % 4], _MARK_STYLES[i % 4]) for i, n in enumerate(names)]
        for kind, name, mark, style in series:
            part = m.curve.filter((polars.col("kind") == kind) & (polars.col("importance") == name))
            for size, tv in zip(part["size"], part["tv"], strict=True):
                grid[round((1 - tv) * _HEIGHT)][column(size)] = (mark, style)
        for i, row in enumerate(grid):
            label = {0: "TV 1", _HEIGHT // 2: "0.5", _HEIGHT: "0"}.get(i, "")
            yield Text.assemble(f"{label:>4} ┤", *row)
        axis = ["─"] * (width + 6)
        axis[:5] = list("     ")
        axis[5] = "└"
        for exponent, name in enumerate(_TICKS[:: 1 if width > 48 else len(_TICKS) - 1]):
            share = exponent / (5 if width > 48 else 1)
            at = (
                6
                + round(share * (width - 1))
                - round(share * (len(name) - 1) if share in (0, 1) else len(name) / 2)
            )
            axis[at : at + len(name)] = name
        yield Text("".join(axis))
        legend = Text(f"      share of {m.units}:")
        for i, name in enumerate(names):
            legend.append(f"   {_MARKS[i % 4]} ", _MARK_STYLES[i % 4]).append(_seen(name))
        if (m.curve["kind"] == "random").any():
            legend.append("   · random")
        landmarks = "   ┊ residual chain, with MLPs" if m.units == "edges" else "   ┊ MLPs alone"
        if legend.cell_len + cell_len(landmarks) > options.max_width:
            yield legend
            legend = Text("     ")
        yield legend.append(landmarks)


def _first_table(m: Measurement) -> list[Any]:
    """Table of the first screen: some sizes, by importances that were run at the same sizes.

    Densities and baselines follow.
    """
    names = _side_by_side(m)
    costs = {"size": "size", m.units: "n_edges"}
    if len(names) == 1:
        costs |= {"heads": "n_heads"} if m.units == "components" else {}
        costs |= {"operations": "flops_share", "parameters": "parameter_share"}
    tops = names if len(names) < 3 else [_tightest(m)] if len(names) == 3 else []
    columns = [Column(head) for head in costs]
    for name in names:
        columns.append(Column(f"TV by {name}"))
        if name in tops:
            columns.append(Column("predicts", right=False, folds=9, spare=True))
    table = Columns(columns)
    traces = {name: list(_traces(m, name).iter_rows(named=True)) for name in names}

    def results(place: int) -> tuple[str, ...]:
        shown = []
        for name in names:
            row = traces[name][place]
            shown += [f"{row['tv']:z.2f}", *([_top_token(row)] if name in tops else [])]
        return tuple(shown)

    sizes = [row["size"] for row in traces[names[0]]]
    # sizes with equal results share a row, but the full trace has its own
    last = len(sizes) - 1
    runs = [
        (list(run), key[1:]) for key, run in groupby(range(len(sizes)), lambda i: (i == last, *results(i)))
    ]
    for places, shown in _chosen(runs, sizes):
        rows = [traces[name][place] for place in (places[0], places[-1]) for name in names]
        spans = (_span([row[column] for row in rows], column) for column in costs.values())
        table.add(*spans, *map(Text, shown))
    _add_densities(m, table, names, list(costs)[2:])
    return [table, _named({"baselines": _compared(m)})]


def _tightest(m: Measurement) -> str:
    return m.tightest(_eps(m)) or next(iter(m.density))


def _side_by_side(m: Measurement) -> list[str]:
    """Return the importances of the first screen's table: the tightest, and others at its sizes."""
    sizes = {name: _traces(m, name)["size"].to_list() for name in m.density}
    same = [name for name in m.density if sizes[name] == sizes[_tightest(m)]]
    at = {name: m.density[name].size_at(_eps(m)) or math.inf for name in same}
    tightest = sorted(same, key=lambda name: at[name])[:_MOST_IMPORTANCES]
    return [name for name in same if name in tightest]


def _traces(m: Measurement, name: str) -> polars.DataFrame:
    return m.curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))


def _chosen(runs: list[tuple[list[int], Any]], sizes: Sequence[float]) -> list[tuple[list[int], Any]]:
    """Choose the rows to show: all if few, else the first and those nearest to chosen sizes."""
    if len(runs) <= len(_CHOSEN_SIZES) + 1:
        return runs
    logs = [math.log(max(size, 1e-9)) for size in sizes]
    places = {min(range(len(logs)), key=lambda i: abs(logs[i] - math.log(size))) for size in _CHOSEN_SIZES}
    return [run for run in runs if run is runs[0] or places & set(run[0])]


def _span(values: Sequence[float], column: str) -> str:
    """Format the range from the smallest to the largest of some costs."""
    low, high = min(values), max(values)
    if column in ("n_edges", "n_heads"):
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"
    ends = (percent(low), percent(high))
    return ends[0] if ends[0] == ends[1] else f"{ends[0].removesuffix(' %')} to {ends[1]}"


def _top_token(row: dict[str, Any]) -> str:
    """Return a trace's most probable token in quotes, or "(uniform)" if all are equally likely."""
    # a prediction is uniform if its entropy is minus the log of its largest probability
    tie = abs(row["entropy"] + math.log(row["top_probability"])) < 1e-3
    return "(uniform)" if tie else _quoted(row["top_token"])


# Currencies of densities, by the heads of their columns.
_CURRENCIES: dict[str, Literal["flops", "heads", "parameters"]] = {
    "operations": "flops", "heads": "heads", "parameters": "parameters",
}  # fmt: skip


def _add_densities(m: Measurement, table: Columns, names: Sequence[str], currencies: Sequence[str]) -> None:
    """Add a last row to the first screen's table: the size from which TV holds."""
    eps = _eps(m)
    holds = {f"TV by {name}": _bracket(m.density[name].bracket(eps)) for name in names}
    for currency in currencies:
        density = m.density_in(_CURRENCIES[currency])[names[0]]
        holds[currency] = _bracket(density.bracket(eps))
    cells = (_text(holds.get(column.head, ""), "bold") for column in table.columns[1:])
    table.add(f"TV <= {eps:g} from", *cells)


def _compared(m: Measurement) -> str:
    """Describe the baselines at the first size from which the tightest importance's traces hold.

    If they never hold, the baselines of the largest size are described.
    """
    more, name = "every size, column and baseline: --full", _tightest(m)
    baselines = m.curve.filter((polars.col("importance") == name) & (polars.col("kind") != "trace"))
    if baselines.is_empty():
        return more
    held = m.density[name].size_at(_eps(m)) or 1.0
    size = min((size for size in baselines["size"] if held <= size < 1), default=max(baselines["size"]))
    tv = dict(baselines.filter(polars.col("size") == size).select("kind", "tv").iter_rows())
    share = percent(size, 2)
    names = {"random": f"random {share}", "inverse": f"all but {name}'s {share}"}
    return "; ".join(
        [*(f"{what}: TV {tv[kind]:z.2f}" for kind, what in names.items() if kind in tv), "more: --full"]
    )


# --- all of a measurement
# -----------------------------------------------------------------------------

_HEADS = {
    "size": "size", "n_edges": "edges", "threshold": "threshold", "flops_share": "operations",
    "parameter_share": "parameters", "tv": "TV", "kl": "KL", "js": "JS", "top1": "top-1", "nucleus": "nucleus",
    "nucleus_unordered": "as set", "entropy": "entropy", "surprisal": "surprisal", "rank": "rank", "target": "target",
    "faithfulness": "faithful", "n_heads": "heads", "n_mlps": "MLPs",
}  # fmt: skip
_FIRST = ("size", "n_edges", "tv", "kl")


def _everything(m: Measurement) -> list[Any]:
    parts: list[Any] = []
    for name in m.density:
        parts += [_sizes(m, name), Text()]
    parts += [_baselines(m), Text(), _densities(m), _landmarks(m), Text()]
    return [*parts, *([] if m.sinks is None else [_sinks(m, m.sinks), Text()]), _noise_runs(m)]


def _shown(column: str, value: Any) -> str:
    """Format a value of a column of the curve."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column in ("size", "flops_share", "parameter_share"):
        return percent(value)
    if column.startswith("nucleus"):
        return f"{value} %" if value else "-"
    if isinstance(value, int):
        return f"{value:,}"
    if column in ("entropy", "surprisal"):
        return f"{value:z.2f}"
    return f"{value:z.3f}" if column in ("tv", "kl", "js") else significant(value, 2)


def _head(m: Measurement, column: str) -> str:
    """Head of a column of the curve."""
    return m.units if column == "n_edges" else _HEADS.get(column, column)


def _measured_columns(table: polars.DataFrame) -> list[str]:
    """Return the columns that are not all null, including registered metrics."""
    left_out = ("importance", "kind", "top_token", "top_probability")
    return [c for c in table.columns if c not in left_out and table[c].null_count() < len(table)]


def _sizes(m: Measurement, name: str) -> Columns:
    traces = _traces(m, name)
    rows = m.curve.filter(polars.col("importance") == name)
    others = {
        kind: dict(rows.filter(polars.col("kind") == kind).select("size", "tv").iter_rows())
        for kind in ("inverse", "random")
    }
    columns = [c for c in _measured_columns(traces) if c not in _FIRST]
    drawn = "as many random ones" if m.units == "edges" else "as many heads and MLPs at random"
    table = Columns(
        [
            *(Column(_head(m, column)) for column in _FIRST),
            Column("top token", right=False, folds=20),
            *map(Column, others),
            *(Column(_HEADS.get(column, column)) for column in columns),
        ],
        title=f"traces by {name}; inverse and random: TV of all other {m.units}, of {drawn}",
    )
    # tiny sizes that round to the same number of edges share a row
    for _, run in groupby(traces.iter_rows(named=True), lambda row: row["n_edges"]):
        same = list(run)
        last = same[-1]
        baselines = [next((tv[r["size"]] for r in same if r["size"] in tv), None) for tv in others.values()]
        table.add(
            _span([row["size"] for row in same], "size"),
            *(_shown(column, last[column]) for column in _FIRST[1:]),
            Text(f"{_top_token(last)} {last['top_probability']:z.2f}"),
            *(_shown("tv", tv) for tv in baselines),
            *(_text(_shown(column, last[column])) for column in columns),
        )
    return table


def _baselines(m: Measurement) -> Columns:
    columns = _measured_columns(m.baselines)
    table = Columns(
        [Column("subgraph", right=False, folds=12)]
        + [Column(_head(m, column)) for column in columns]
        + [Column("top token", right=False, folds=20)],
        title="without an importance",
    )
    counts = dict(m.baselines["kind"].value_counts().iter_rows())
    sizes = {kind: iter(FLAVOUR_SIZES) for kind in _SUBGRAPHS if counts.get(kind) == len(FLAVOUR_SIZES)}
    for row in m.baselines.iter_rows(named=True):
        name = row["kind"].replace("_", " ")
        if row["kind"] in sizes:
            name = _SUBGRAPHS[row["kind"]].format(percent(next(sizes[row["kind"]])))
        shown = (_shown(column, row[column]) for column in columns)
        table.add(name, *shown, Text(f"{_top_token(row)} {row['top_probability']:z.2f}"))
    return table


def _densities(m: Measurement) -> Columns:
    eps = _eps(m)
    heads = (f"TV <= {eps:g} from", "operations", "parameters", "auc_log", "auc_linear")
    table = Columns([Column("density by", right=False), *map(Column, heads)])
    flops, parameters = m.density_in("flops"), m.density_in("parameters")
    for name, density in m.density.items():
        sizes = [_bracket(d.bracket(eps)) for d in (density, flops[name], parameters[name])]
        table.add(name, *sizes, f"{density.auc_log:z.3f}", f"{density.auc_linear:z.3f}")
    return table


def _landmarks(m: Measurement) -> Text:
    marks = m.graph.landmarks
    if m.units == "components":
        return _text(
            f"landmark: the MLPs alone, without a head, are {percent(marks['residual_mlp_chain'])} of {m.graph.n_edges:,} "
            "components (heads and MLPs over all tokens; residual edges are always on)"
        )
    return _text(
        f"landmarks: residual chain {percent(marks['residual_chain'])}, with MLPs "
        f"{percent(marks['residual_mlp_chain'])} of {m.graph.n_edges:,} edges"
    )


def _sinks(m: Measurement, sinks: Sinks) -> Columns:
    """Table of sink tokens, massive activations, and the edges that serve sinks."""
    facts: dict[str, str | Text] = {"sink tokens": describe_tokens(sinks.tokens)}
    name = _tightest(m)
    size = m.density[name].size_at(_eps(m))
    if len(sinks.tokens):
        trace = ""
        if size is not None:
            share = percent(sinks.share_of_trace(name, size))
            trace = f", {share} of the trace by {name} from which TV <= {_eps(m):g}"
        facts["edges that serve them"] = f"{percent(sinks.share_of_graph)} of all{trace}"
        others = _bracket(m.density_in("edges_without_sinks")[name].bracket(_eps(m)))
        facts[f"TV <= {_eps(m):g} from"] = (
            f"{_bracket(m.density[name].bracket(_eps(m)))} of the edges, {others} of the others ({name})"
        )
    facts["massive dimensions"] = describe_activations(sinks.activations)
    return _named(facts)


def _noise_runs(m: Measurement) -> Columns:
    table = Columns(
        [
            Column("importance", right=False),
            Column("kind", right=False),
            *map(Column, ("size", m.units, "TV")),
        ],
        title=f"effect of rounding alone on some runs; TV {m.noise:.1g} in all",
    )
    for row in m.noise_runs.iter_rows(named=True):
        table.add(
            row["importance"],
            row["kind"],
            percent(row["size"]),
            f"{row['n_edges']:,}",
            f"{row['noise']:.1e}",
        )
    return table


# --- other results
# ------------------------------------------------------------------------------------


def show_positions(
    table: polars.DataFrame, importance: str, drawn: bool = False, units: str = "edges"
) -> Group:
    """Return the density along a text: the text with shaded tokens, and a table.

    Tokens that need much of the model have a dark background.

    Args:
        table: table of `measure_positions`.
        importance: importance whose rows are shown.
        drawn: whether the text was printed before, shaded by size itself; then only the table
            follows.
        units: what shares are of, "edges" or "components".
    """
    named = table.filter(polars.col("importance") == importance)
    size = named["size_at"].fill_null(1.0)
    low, high = float(size.min()), float(size.max())  # type: ignore[arg-type]
    light, dark = (0.0, 1.0) if drawn else (low, high)
    text = Text()
    for token, value in zip(named["token"], size, strict=True):
        text.append_text(shaded(token, 0.0 if light == dark else (value - light) / (dark - light)))
    heads = ("share", units, "auc_log", "entropy", "surprisal")
    rows = Columns(
        [
            Column("at"),
            Column("token", right=False, folds=12),
            *map(Column, heads),
            Column("", right=False),
        ]
    )
    for row, value in zip(named.iter_rows(named=True), size, strict=True):
        surprisal = "-" if row["surprisal"] is None else f"{row['surprisal']:z.2f}"
        rows.add(
            str(row["position"]), _cell(row["token"]), percent(row["size_at"], 2), f"{row['n_edges']:,}",
            f"{row['auc_log']:z.3f}", f"{row['entropy']:z.2f}", surprisal, "▇" * round(10 * value),
        )  # fmt: skip
    middle = percent(float(size.median()), 2)  # type: ignore[arg-type]
    line = (
        f"share of the {units} ({importance}) that the prediction after each token needs: {percent(low, 2)} to "
        f"{percent(high, 2)}, median {middle}; light is {percent(light, 2)}, dark {percent(dark, 2)}"
    )
    return Group(*([] if drawn else [text, Text()]), rows, Text(), _Quote(line))


def shaded(token: str, share: float) -> Text:
    """Return a token on a background from light (share 0) to dark (share 1)."""
    shade = _SHADES[round(share * (len(_SHADES) - 1))]
    style = f"{'black' if share < 0.55 else 'white'} on {shade}"
    return Text(_seen(token.replace("\n", "⏎")), style=style, end="")


def show_report(report: CheckReport) -> Group:
    """Return a check-up as text: facts of the model, every identity, and unsupported features."""
    table = Columns(
        [
            Column("", right=False), Column("identity", right=False, folds=12), Column("gap"),
            Column("allowed", right=False), Column("detail", right=False, folds=12, style="dim"),
        ]
    )  # fmt: skip
    for row in report.rows:
        verdict = Text("ok", "green") if row.passed else Text("FAILED", "bold red")
        sign = "<=" if row.bound == "at most" else ">"
        table.add(verdict, row.identity, f"{row.gap:.1e}", f"{sign} {row.tolerance:.0e}", row.detail)
    parts: list[Any] = [_text(report.model, "bold"), _named(dict(report.facts)), Text(), table]
    if report.unsupported:
        parts += [Text(), Text("not supported on this model", "yellow"), _named(dict(report.unsupported))]
    rows, failed = len(report.rows), len(report.failed)
    if report.passed:
        verdict = _styled(("every identity holds", "bold green"), f" ({rows - failed} of {rows})")
    else:
        verdict = _styled(
            (f"{failed} of {rows} identities FAILED", "bold red"), ": do not measure on this model"
        )
    verdict.append(f"; noise floor TV {report.noise:.1e}; {report.seconds:.1f} s")
    return Group(*parts, Text(), verdict)


def show_difference(found: Difference) -> Group:
    """Return the differences of two measurements as text."""
    parts: list[Any] = []
    for title, facts in (("what was measured", found.asked), ("versions and platform", found.surroundings)):
        if len(facts):
            table = Columns(
                [
                    Column("", right=False),
                    *(Column(name, right=False, folds=12) for name in ("one", "other")),
                ],
                title=title,
            )
            for values in facts.iter_rows():
                table.add(*(value if len(value) <= 60 else f"{value[:57]}..." for value in values))
            parts += [table, Text()]
    if len(found.numbers):
        table = Columns(
            [
                Column("", right=False), Column("different"), Column("of"), Column("largest difference"),
                Column("where it is largest", right=False, folds=12, style="dim"),
            ],
            title="numbers",
        )  # fmt: skip
        for row in found.numbers.iter_rows(named=True):
            gap = "" if row["largest"] is None else f"{row['largest']:.2g}"
            where = (
                ""
                if row["kind"] is None
                else f"{row['importance'] or ''} {row['kind']} at {significant(row['size'], 3)}".strip()
            )
            table.add(row["quantity"], str(row["n_different"]), str(row["n"]), gap, where)
        parts += [table, Text()]
    for (only_in,), rows in found.missing.group_by("only_in", maintain_order=True):
        names = rows["importance"].drop_nulls().unique(maintain_order=True)
        by = ", ".join(names) or "no importance"
        parts.append(_text(f"{len(rows)} traces only in the {_FILES[str(only_in)]} ({by})"))
    if found.same_numbers:
        parts.append(Text("every number is the same, bit for bit", "green"))
    else:
        parts.append(Text(f"largest difference of a total variation: {found.largest_tv:.2g}"))
    return Group(*parts)


def show_plan(plan: Plan) -> Group:
    """Return a plan as text: edges, time, disk, memory by item and device, and advice."""
    edges = f"{plan.n_edges:,}" + (
        "" if plan.edges_exact else " at most (the config does not determine the masks)"
    )
    each = "" if plan.texts == 1 else f" for {plan.texts:,} texts"
    time = "not known: no weight is loaded; --time measures two short texts"
    if plan.fits is False:
        time = "not known: its memory does not fit, so nothing is measured"
    elif plan.seconds is not None:
        time = f"about {_duration(plan.seconds)}{each}, rough: by a dry run of two short texts"
    facts: dict[str, str | Text] = {
        "model": f"{plan.architecture}, {plan.n_layers} layers, {plan.n_parameters:,} parameters, {plan.dtype}",
        "text": f"{plan.length:,} tokens, by {', '.join(plan.importance)}",
        "edges": edges,
        "time": time,
        "disk": f"{_bytes(plan.disk_bytes)} as JSON{each}",
    }
    table = Columns([Column("memory at the largest moment", right=False), Column("")])
    for device, items in plan.memory.items():
        free = plan.available.get(device)
        for name, size in items.items():
            table.add(f"  {name}", _bytes(size))
        beside = "" if free is None else f" of {_bytes(free)} {'given' if device in plan.budget else 'free'}"
        table.add(_text(f"peak on {device}", "bold"), _styled((_bytes(plan.peaks[device]), "bold"), beside))
    parts: list[Any] = [_text(plan.model, "bold"), _named(facts), Text(), table, Text()]
    if plan.fits is None:
        parts.append(_styled(("whether its memory fits is not known", "yellow")))
        parts += [_text(f"  {line}") for line in plan.advice]
    elif plan.fits:
        parts.append(
            _styled(("its memory fits", "green"), "; Python and torch themselves take some 0.5 GB more")
        )
    else:
        parts.append(_styled(("its memory does not fit", "bold red"), "; what would help:"))
        parts += [_text(f"  {line}") for line in plan.advice]
    return Group(*parts)


def _bytes(n: int) -> str:
    """Format a number of bytes, such as 1.2 GB, 34 MB or 5 kB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{significant(n / size, 3)} {unit}" if n < 1000 * size else f"{n / size:,.0f} {unit}"
    return f"{n} bytes"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{significant(seconds / size, 2)} {unit}"
    return f"{significant(seconds, 2)} seconds"


def show_calibration(rows: polars.DataFrame) -> Group:
    """Return a calibration as text: needed edges per step, and edges that each importance takes."""
    names = rows["importance"].unique(maintain_order=True).to_list()
    table = Columns(
        [Column(head, right=head != "step") for head in ("step", "of", "needed", *names)],
        title="edges needed, and edges that each importance takes",
    )
    for (step,), by_importance in rows.group_by("step", maintain_order=True):
        needed = by_importance["expected_edges"][0]
        measured = dict(by_importance.select("importance", "measured_edges").iter_rows())
        cells = [_taken(measured[name], needed) for name in names]
        table.add(str(step), str(by_importance["n_edges"][0]), str(needed), *cells)
    caption = f"taken: the fewest best-first edges from which TV stays at most {ASKED_TV:g}"
    return Group(table, Text(caption, "dim"))


def _taken(measured: int | None, needed: int) -> Text:
    """Format the edges that an importance takes, green if none is superfluous."""
    if measured is None:
        return Text("never", "bold red")
    return Text(str(measured), "green" if measured <= needed else "")


def show_task(task: TaskMeasurement) -> Group:
    """Return a task as text: its summary, the curve of both halves, and the first units."""
    curve = Columns(
        [
            Column(head)
            for head in (f"{task.unit}s", "heads", "MLPs", "found on", "held out", "at random", "accuracy")
        ],
        title="mean total variation" if task.by == "tv" else "mean faithfulness, and accuracy held out",
    )
    halves = {
        (row["half"], row["kind"], row["n_units"]): row
        for row in task.curve.unique(
            ["half", "kind", "n_units"], keep="first", maintain_order=True
        ).iter_rows(named=True)
    }
    for count in task.curve.filter(half="held_out", kind="trace")["n_units"]:
        ours = halves["held_out", "trace", count]
        cells = [ours, halves["held_out", "random", count]]
        chosen = halves.get(("chosen", "trace", count))
        numbers = [None if row is None else row[task.by] for row in (chosen, *cells)]
        named = [ours["n_heads"], ours["n_mlps"]]
        curve.add(
            f"{count:,}",
            *("" if n is None else str(n) for n in named),
            *("" if n is None else f"{round(n, 2) + 0.0:.2f}" for n in numbers),
            "" if ours["accuracy"] is None else f"{ours['accuracy']:.2f}",
        )
    places = ["source", "target"] if task.unit == "edge" else []
    first = Columns(
        [
            Column(head, right=head != "kind")
            for head in ("rank", "layer", "kind", "head", *places, "importance")
        ],
        title=f"the first {task.unit}s" + (", tokens counted from the last one" if places else ""),
    )
    for row in task.components.head(10).iter_rows(named=True):
        cells = [row[name] for name in ("rank", "layer", "kind", "head", *places)]
        first.add(*("" if cell is None else str(cell) for cell in cells), significant(row["importance"], 3))
    return Group(_Quote(task.summary()), Text(), curve, Text(), first)


def show_study(study: Study) -> Group:
    """Return a study's summary as text, by model and importance.

    It has the numbers of measured and failed pieces, and their densities.
    """
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
    heads = ("measured", "failed", "median", "middle half", "auc_log", "auc_linear")
    table = Columns([Column("model", right=False, folds=8), Column("by", right=False), *map(Column, heads)])
    for row in rows.iter_rows(named=True):
        half = "" if row["low"] is None else size_range(row["low"], row["high"])
        numbers = ("" if row[name] is None else f"{row[name]:z.3f}" for name in ("auc_log", "auc_linear"))
        failed = Text(f"{row['failed']:,}", style="yellow" if row["failed"] else "")
        middle = percent(row["middle"], 2) if row["measured"] else ""
        table.add(row["model"], row["importance"], f"{row['measured']:,}", failed, middle, half, *numbers)
    lines = [
        _text(f"{n:,} failed: {error} (such as {model}, text {text})", "yellow")
        for error, n, model, text in errors.head(5).iter_rows()
    ]
    units = "components" if study.manifest["settings"].get("granularity") == "component" else "edges"
    caption = f"median, middle half: of the shares of {units} from which TV stays <= {eps:g}"
    return Group(table, Text(caption, "dim"), *lines)
