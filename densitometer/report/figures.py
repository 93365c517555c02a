"""Figures of a report, drawn from tables of `analysis`. Nothing is computed here.

Models differ by colour and also by marker or line, so that no figure needs colour to be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import polars

from .._util.files import write_file
from .._util.progress import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, whose colours differ for any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
# Most points of a line or a cloud; more cannot be seen.
POINTS = 400
# Most panels of a figure with a panel for each model and importance.
PANELS = 6
GREY = "#666666"
# Labels of the first and the last quarter of a model's layers.
ENDS = {1: " (first layers)", 4: " (last)"}
# Text stays text in the files, and equal figures give equal bytes.
_PLAIN: Any = {"svg.fonttype": "none", "svg.hashsalt": "densitometer", "pdf.fonttype": 42}
# The name of a caption in a file's metadata.
_CAPTION = {"pdf": "Subject", "png": "Description"}
_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {},
}


def svg(figure: Figure, caption: str = "") -> str:
    """Return the text of a figure as an SVG file. Text in it stays text.

    XML forbids control characters, which a label may contain. They are replaced by visible text.

    Args:
        figure: the figure.
        caption: description of the figure, which is written into the file's metadata.
    """
    import matplotlib

    file = StringIO()
    with matplotlib.rc_context(_PLAIN):
        about = {"Description": caption} if caption else {}
        figure.savefig(file, format="svg", metadata=_UNDATED["svg"] | about)
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda c: visible(c[0]), file.getvalue()
    )


def save(figure: Figure, path: Path, caption: str = "") -> None:
    """Write a figure as SVG, PDF or PNG.

    Args:
        figure: the figure.
        path: the file, whose suffix (.svg, .pdf or .png) selects the format.
        caption: description of the figure, which is written into the file's metadata.

    Raises:
        StorageError: the path cannot be written.
    """
    import matplotlib

    form = path.suffix[1:].lower()
    if form == "svg":
        text = svg(figure, caption)
        write_file(path, lambda file: file.write(text.encode()))
        return
    with matplotlib.rc_context(_PLAIN):
        about = {_CAPTION[form]: caption} if caption else {}
        write_file(path, lambda file: figure.savefig(file, format=form, metadata=_UNDATED[form] | about))


def _panels(n: int, height: float = 3.4, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Create a figure of n panels. `height` is of a row of panels, in inches."""
    from matplotlib.figure import Figure

    columns = min(n, columns)
    rows = -(-n // columns)
    width = 8.6 if columns > 1 else 7.2
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
    for one in axes[n:]:
        one.set_axis_off()
    return figure, list(axes[:n])


def _plain(text: object) -> str:
    """Return a name as a label: without mathematics, and at most 40 characters.

    A long name, such as that of a folder, keeps its end.
    """
    name = visible(str(text))
    return (name if len(name) <= 40 else "…" + name[-39:]).replace("$", r"\$")


def _groups(table: polars.DataFrame, column: str) -> Iterator[tuple[Any, polars.DataFrame]]:
    for (key,), rows in table.group_by(column, maintain_order=True):
        yield key, rows


def _styles(table: polars.DataFrame, by: str = "model") -> dict[str, dict[str, Any]]:
    """Style of lines for each value of a column."""
    names = table[by].unique().sort().to_list()
    return {
        name: {
            "color": COLOURS[i % 7],
            "linestyle": LINES[i % 6],
            "marker": MARKERS[i % 10],
            "label": _plain(name),
        }
        for i, name in enumerate(names)
    }


def _shares(axes: Axes, most: int | None = None) -> None:
    """Make the x axis a logarithmic axis of shares, in percent.

    Args:
        axes: the panel.
        most: most labels of a narrow panel; None for as many as its width takes.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,), numticks=most))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def draw_cumulative(measured: polars.DataFrame, eps: float) -> Figure:
    """Draw the share of measurements whose prediction is held at each trace size.

    Args:
        measured: columns model, importance and size_at (null if no size holds the prediction).
        eps: largest total variation distance at which a prediction counts as held.
    """
    figure, every = _panels(measured["importance"].n_unique())
    for axes, (importance, part) in zip(every, _groups(measured, "importance"), strict=True):
        cumulative_on(axes, part, "model", eps)
        axes.set_title(f"importance: {_plain(importance)}", fontsize=9, loc="left")
    _legend(figure, every[0])
    return figure


def cumulative_on(axes: Axes, measured: polars.DataFrame, by: str, eps: float) -> None:
    """Draw into a panel the share of rows whose prediction is held at each trace size.

    Args:
        axes: the panel.
        measured: the rows, with the column size_at (null if no size holds the prediction).
        by: column with a line for each of its values.
        eps: largest total variation distance at which a prediction counts as held.
    """
    styles = _styles(measured, by)
    for name, rows in _groups(measured, by):
        sizes = rows["size_at"].drop_nulls().sort().to_numpy()
        if not len(sizes):
            continue
        shares = numpy.arange(1, len(sizes) + 1) / len(rows)
        kept = numpy.unique(numpy.linspace(0, len(sizes) - 1, POINTS).astype(int))
        marks = max(1, len(kept) // 8)
        axes.step(sizes[kept], shares[kept], where="post", markevery=marks, markersize=5, **styles[name])
    _shares(axes)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"share of the full trace from which TV stays ≤ {eps:g}", fontsize=8)
    axes.set_ylabel("share of measurements", fontsize=8)
    axes.axhline(0.5, color=GREY, linewidth=0.6, linestyle=":")


def draw_curves(table: polars.DataFrame, landmark: float | None, eps: float) -> Figure:
    """Draw the median TV over trace size, with the middle half as a band.

    Args:
        table: `analysis.curve_quartiles`.
        landmark: size of a trace of one token's own path, drawn as a line; None for no line.
        eps: goal of TV, drawn as a line.
    """
    figure, every = _panels(table["importance"].n_unique())
    styles = _styles(table)
    for axes, (importance, part) in zip(every, _groups(table, "importance"), strict=True):
        for model, rows in _groups(part, "model"):
            axes.plot(rows["size"], rows["median"], markersize=3.5, linewidth=1.3, **styles[model])
            axes.fill_between(
                rows["size"],
                rows["lower_quartile"],
                rows["upper_quartile"],
                color=styles[model]["color"],
                alpha=0.15,
                lw=0,
            )
        axes.axhline(eps, color=GREY, linewidth=0.7)
        if landmark is not None:
            axes.axvline(landmark, color=GREY, linewidth=0.8, linestyle=":")
            axes.text(landmark, 0.0, " one token's own path", fontsize=7, color=GREY, va="bottom")
        _shares(axes)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"importance: {_plain(importance)}", fontsize=9, loc="left")
        axes.set_xlabel("size of the trace, share of the full one", fontsize=8)
        axes.set_ylabel("TV to the model's prediction", fontsize=8)
    _legend(figure, every[0])
    return figure


@dataclass(frozen=True)
class Lines:
    """Columns that a panel of `draw_lines` shows.

    Args:
        label: label of the y axis.
        middle: column of the lines.
        low: column of the lower ends of the bands.
        high: column of their upper ends.
        control: column of dotted lines, for comparison.
        dotted: meaning of the dotted lines.
    """

    label: str
    middle: str
    low: str | None = None
    high: str | None = None
    control: str | None = None
    dotted: str = ""


def draw_lines(table: polars.DataFrame, x: str, axis: str, panels: Sequence[Lines]) -> Figure:
    """Draw columns over another one, with a line per model. Each importance has all panels.

    Args:
        table: columns model, importance, `x`, and those that the panels name.
        x: column of the x axis. "size" has a logarithmic axis of shares, any other a symmetric
            logarithmic one, on which 0 has a place.
        axis: label of the x axis.
        panels: columns of each panel.
    """
    figure, every = _panels(len(panels) * table["importance"].n_unique(), height=3.0)
    styles = _styles(table)
    for i, (importance, part) in enumerate(_groups(table, "importance")):
        for axes, panel in zip(every[i * len(panels) :], panels, strict=False):
            for model, rows in _groups(part.sort("model", x), "model"):
                rows = rows.filter(polars.col(panel.middle).is_not_null())
                axes.plot(rows[x], rows[panel.middle], markersize=3.5, linewidth=1.3, **styles[model])
                colour = styles[model]["color"]
                if panel.low and panel.high:
                    bounds = rows.select(polars.col(panel.low, panel.high).cast(polars.Float64)).to_numpy()
                    axes.fill_between(rows[x], bounds[:, 0], bounds[:, 1], color=colour, alpha=0.15, lw=0)
                if panel.control:
                    axes.plot(rows[x], rows[panel.control], color=colour, linewidth=0.9, linestyle=":")
            if x == "size":
                _shares(axes)
            else:
                axes.set_xscale("symlog", linthresh=1)
            axes.set_xlabel(axis, fontsize=8)
            axes.set_ylabel(panel.label, fontsize=8)
            dotted = f" (dotted: {panel.dotted})" if panel.dotted else ""
            axes.set_title(f"importance: {_plain(importance)}{dotted}", fontsize=9, loc="left")
    _legend(figure, every[0])
    return figure


def draw_intervals(
    table: polars.DataFrame, label: str, middle: str, low: str, high: str, axis: str, zero: bool = False
) -> Figure:
    """Draw points with intervals, in a row per label and model and a panel per importance.

    Args:
        table: columns model, importance, and those named by the next four arguments.
        label: column of the labels.
        middle: column of the points.
        low: column of the intervals' lower ends; null for none.
        high: column of their upper ends.
        axis: label of the x axis.
        zero: whether to draw a line at 0.
    """
    labels = table[label].unique(maintain_order=True).to_list()
    n_models = table["model"].n_unique()
    figure, every = _panels(
        table["importance"].n_unique(),
        height=max(2.2, 0.9 + len(labels) * (0.16 + 0.1 * n_models)),
        columns=1,
    )
    styles = _styles(table)
    for axes, (importance, part) in zip(every, _groups(table, "importance"), strict=True):
        for i, (model, style) in enumerate(styles.items()):
            rows = part.filter(model=model).drop_nulls(middle)
            places = [labels.index(x) + 0.7 * ((i + 0.5) / n_models - 0.5) for x in rows[label]]
            m = rows[middle].to_numpy()
            error = [
                numpy.nan_to_num(m - rows[low].cast(polars.Float64).fill_null(float("nan")).to_numpy()).clip(
                    0
                ),
                numpy.nan_to_num(rows[high].cast(polars.Float64).fill_null(float("nan")).to_numpy() - m).clip(
                    0
                ),
            ]
            axes.errorbar(
                m, places, xerr=error, color=style["color"], marker=style["marker"], linestyle="none", markersize=5,
                linewidth=1.3, label=style["label"],
            )  # fmt: skip
        axes.set_yticks(range(len(labels)), [_plain(x) for x in labels], fontsize=8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        for i in range(1, len(labels)):
            axes.axhline(i - 0.5, color="#dddddd", linewidth=0.5)
        if zero:
            axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel(axis, fontsize=8)
        axes.set_title(f"importance: {_plain(importance)}", fontsize=9, loc="left")
    _legend(figure, every[0])
    return figure


def draw_matrix(table: polars.DataFrame) -> Figure:
    """Draw matrices of correlations between models, in a panel per importance."""
    figure, every = _panels(table["importance"].n_unique(), height=1.6 + 0.5 * len(table.columns[2:]))
    for axes, (importance, part) in zip(every, _groups(table, "importance"), strict=True):
        matrix_on(axes, part)
        axes.set_title(f"importance: {_plain(importance)}", fontsize=9, loc="left")
        place = axes.get_subplotspec()
        if place is not None and not place.is_first_col():  # the names of its rows stand before it
            axes.set_yticklabels([])
    return figure


def matrix_on(axes: Axes, table: polars.DataFrame) -> None:
    """Draw a matrix of correlations into a panel, each field with its number.

    Args:
        axes: the panel.
        table: a row per model; its columns from the third on are the models.
    """
    models = table.columns[2:]
    values = table.select(polars.col(models).cast(polars.Float64)).to_numpy()
    axes.imshow(values, cmap="cividis", vmin=-1, vmax=1)
    for (i, j), value in numpy.ndenumerate(values):
        text = "–" if numpy.isnan(value) else f"{value:z.2f}"
        # white on the dark half; an unknown value (NaN) is on white and gets black
        colour = "white" if value <= 0.3 else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(models)), [_plain(m) for m in models], rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(models)), [_plain(m) for m in models], fontsize=8)


def draw_scatter(
    pairs: list[tuple[str, numpy.ndarray, numpy.ndarray]], names: tuple[str, str], value: str
) -> Figure:
    """Draw the values of each text under two models, in a panel per importance."""
    figure, every = _panels(len(pairs))
    for axes, (importance, x, y) in zip(every, pairs, strict=True):
        axes.plot(x[:POINTS], y[:POINTS], "o", color=COLOURS[0], markersize=4, alpha=0.7)
        axes.set_xlabel(f"{value}, {_plain(names[0])}", fontsize=8)
        axes.set_ylabel(f"{value}, {_plain(names[1])}", fontsize=8)
        axes.set_title(f"importance: {_plain(importance)}", fontsize=9, loc="left")
    return figure


def draw_bars(importances: polars.DataFrame, scores: polars.DataFrame, unit: str) -> Figure:
    """Draw mean |SHAP| of each factor, in a panel per model and importance."""
    shown = scores.head(PANELS)
    n = importances["factor"].n_unique()
    figure, every = _panels(len(shown), height=1.2 + 0.22 * n)
    for axes, score in zip(every, shown.iter_rows(named=True), strict=True):
        shap = importances.filter(model=score["model"], importance=score["importance"]).sort("mean_shap")
        axes.barh([_plain(f).replace("_", " ") for f in shap["factor"]], shap["mean_shap"], color=COLOURS[0])
        axes.set_xlabel(f"mean |SHAP value|, {unit}", fontsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(
            f"{_plain(score['model'])}, {_plain(score['importance'])}\nR² {score['r_squared']:z.2f}, "
            f"shuffled {score['shuffled_mean']:z.2f}", fontsize=8, loc="left",
        )  # fmt: skip
    return figure


def draw_components(
    kinds: polars.DataFrame, depth: polars.DataFrame, core: polars.DataFrame, gini: polars.DataFrame
) -> Figure:
    """Draw the composition of traces, in three panels per model and importance.

    They show the share kept of each kind of edges, the share kept of each quarter of the layers,
    and the static core with the Gini coefficient of use. The tables are those of
    `analysis.ComponentShares`.
    """
    groups = kinds.select("model", "importance").unique(maintain_order=True).head(PANELS // 2).rows()
    figure, every = _panels(3 * len(groups), height=3.2, columns=3)
    for i, (model, importance) in enumerate(groups):
        by_kind, by_depth, common = every[3 * i : 3 * i + 3]
        group = {"model": model, "importance": importance}
        for axes, table, column in ((by_kind, kinds, "kind"), (by_depth, depth, "quarter")):
            for j, (value, rows) in enumerate(_groups(table.filter(**group).sort(column, "size"), column)):
                named = column == "kind"
                label = value.replace("_", " ") if named else f"quarter {value}{ENDS.get(value, '')}"
                style: dict[str, Any] = {
                    "color": COLOURS[j % 7],
                    "ls": LINES[j % 6],
                    "marker": MARKERS[j],
                    "ms": 3,
                }
                axes.plot(rows["size"], rows["share_kept"], label=label, **style)
        rows = core.filter(**group)
        common.plot(
            rows["size"],
            rows["n_static"] / rows["n_components"],
            color=COLOURS[0],
            marker="o",
            ms=3,
            label="static core",
        )
        rows = gini.filter(**group)
        common.plot(rows["size"], rows["gini"], "--s", color=COLOURS[1], ms=3, label="Gini of use")
        names = ("of each kind's edges", "of each quarter's edges", "of the components; Gini")
        for axes, name in zip((by_kind, by_depth, common), names, strict=True):
            _shares(axes, most=4)
            axes.set_ylim(-0.02, 1.02)
            axes.set_xlabel("size of the trace, share of the full one", fontsize=8)
            axes.set_ylabel(f"share {name}", fontsize=8)
            axes.legend(fontsize=7, frameon=False)
        by_kind.set_title(f"{_plain(model)}, {_plain(importance)}", fontsize=9, loc="left")
    return figure


def draw_lorenz(lorenz: polars.DataFrame, gini: polars.DataFrame) -> Figure:
    """Draw Lorenz curves of the use of components, in a panel per model and importance.

    At most `PANELS` panels are drawn.
    """
    groups = lorenz.select("model", "importance").unique(maintain_order=True).head(PANELS).rows()
    figure, every = _panels(len(groups), height=3.6)
    for axes, (model, importance) in zip(every, groups, strict=True):
        group = lorenz.filter(model=model, importance=importance)
        sizes = group["size"].unique().sort().to_list()
        near = {
            min(sizes, key=lambda size: abs(numpy.log(size / wanted))) for wanted in (1e-3, 1e-2, 0.1, 0.4)
        }
        for i, size in enumerate(sorted(near)):
            rows = group.filter(size=size)
            value = gini.filter(model=model, importance=importance, size=size)["gini"].item()
            axes.plot(
                [0, *rows["components"]], [0, *rows["use"]], color=COLOURS[i], ls=LINES[i], linewidth=1.3,
                label=f"{100 * size:g} % of edges, Gini {value:z.2f}",
            )  # fmt: skip
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, linestyle=":")
        axes.set_xlabel("share of components, the least used first", fontsize=8)
        axes.set_ylabel("share of use", fontsize=8)
        axes.set_title(f"{_plain(model)}, {_plain(importance)}", fontsize=9, loc="left")
        axes.legend(fontsize=7, frameon=False)
    return figure


def draw_resources(table: polars.DataFrame) -> Figure:
    """Draw agreement and excess surprisal against the share of operations."""
    known = bool(table["n_next"].sum())
    figure, every = _panels((1 + known) * table["importance"].n_unique())
    styles = _styles(table)
    for i, (importance, part) in enumerate(_groups(table, "importance")):
        panels = every[(1 + known) * i : (1 + known) * (i + 1)]
        for model, rows in _groups(part, "model"):
            panels[0].plot(rows["flops_share"], rows["top1"], ms=3.5, lw=1.3, **styles[model])
            panels[0].fill_between(
                rows["flops_share"],
                rows["top1_low"],
                rows["top1_high"],
                color=styles[model]["color"],
                alpha=0.15,
                lw=0,
            )
            if known:
                panels[1].plot(rows["flops_share"], rows["excess_surprisal"], ms=3.5, lw=1.3, **styles[model])
        panels[0].set_ylim(-0.02, 1.02)
        for axes, label in zip(
            panels, ("traces with the model's own top token", "excess surprisal, nats"), strict=False
        ):
            axes.set_xlabel("share of operations that run", fontsize=8)
            axes.set_ylabel(label, fontsize=8)
            axes.set_title(f"importance: {_plain(importance)}", fontsize=9, loc="left")
    _legend(figure, every[0])
    return figure
