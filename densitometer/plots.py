"""Figures for papers, drawn with matplotlib from measurements, traces and tables.

Each function draws into `ax` if it is given, else into a new figure, and returns the figure.
`save_plot` writes a figure as SVG or PDF, in which text stays text, or as PNG. Colours are Okabe
and Ito's and cividis, which differ for any colour vision; whatever differs in colour differs in
form too. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import polars

from ._util.digits import percent
from ._util.progress import visible
from .errors import InputError
from .graph.graph import Trace
from .graph.sinks import Sinks
from .measuring.measurement import Measurement
from .measuring.records import shown_name
from .report.figures import COLOURS, GREY, cumulative_on, matrix_on, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# Characters in a line of a token strip.
STRIP_COLUMNS = 80
# Width of a character of DejaVu Sans Mono, and height of a line of a token strip, in font sizes.
MONOSPACE_ADVANCE = 0.602
LINE_HEIGHT = 1.9

_BASELINES = {
    "inverse": ("#7f7f7f", "--", "all but {first}'s trace of this size"),
    "random": ("#b0b0b0", ":", "random of this size"),
}
_RESIDUAL, _ATTENTION, _MLP = GREY, COLOURS[0], COLOURS[1]
_NAMES = {
    "size_at": "share of the full trace from which TV stays ≤ eps",
    "auc_log": "area under TV over log size",
    "auc_linear": "area under TV over size",
    "entropy": "entropy of the prediction, nats",
    "surprisal": "surprisal of the next token, nats",
}

# What `plot_components` draws, the first of these that a table has, and its words.
_COMPONENT_VALUES = {
    "effect": "total variation when it alone is off",
    "importance_share": "share of the importance of all edges",
    "importance": "importance",
    "edge_share": "share of its edges that are on",
}


def plot_curve(measurement: Measurement, eps: float = 0.1, *, ax: Axes | None = None) -> Figure:
    """Draw total variation over trace size, with baselines, landmarks and `size_at(eps)`.

    Args:
        measurement: the measurement.
        eps: total variation at which `size_at` is placed.
        ax: axes to draw into; by default those of a new figure.
    """
    figure, axes = _axes(ax, 7.2, 4.4)
    curve = measurement.curve
    first = next(iter(measurement.density))
    for kind, (colour, style, label) in _BASELINES.items():
        part = curve.filter((polars.col("kind") == kind) & (polars.col("importance") == first))
        if part.height:
            axes.plot(
                part["size"], part["tv"], style, color=colour, label=label.format(first=first), linewidth=1.2
            )
    for (name, density), colour in zip(measurement.density.items(), COLOURS * 9, strict=False):
        part = curve.filter((polars.col("kind") == "trace") & (polars.col("importance") == name))
        size = density.size_at(eps)
        start = percent(size, 2)
        label = f"trace by {name}: TV ≤ {eps:g} from {start}"
        axes.plot(part["size"], part["tv"], "o-", color=colour, markersize=3, linewidth=1.6, label=label)
        if size is not None:
            axes.plot([size], [eps], marker="|", color=colour, markersize=16, markeredgewidth=2)
    axes.axhline(eps, color="#444444", linewidth=0.6)
    for name, size in measurement.graph.landmarks.items():
        axes.axvline(size, color="#999999", linewidth=0.7, linestyle=(0, (1, 2)))
        if size == 0:  # that of components without any; the axis is logarithmic
            continue
        of_edges = measurement.units == "edges"
        label = {
            "residual_chain": "residual chain ",
            "residual_mlp_chain": " with MLPs" if of_edges else " MLPs alone",
        }[name]
        side = "right" if name == "residual_chain" else "left"
        axes.text(
            size, 1.015, label, ha=side, va="bottom", fontsize=7, color=GREY, transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"share of the {measurement.graph.n_edges:,} {measurement.units} that are on")
    if measurement.sinks is not None and len(measurement.sinks.tokens):
        axes.text(
            0, -0.16, _sinks(measurement, measurement.sinks, eps), fontsize=7, color=GREY, va="top",
            transform=axes.transAxes, parse_math=False,
        )  # fmt: skip
    axes.set_ylabel("total variation to the model's prediction")
    token = measurement.prediction["token"][0]
    probability = measurement.prediction["probability"][0]
    title = f"{visible(shown_name(measurement.model.name))}: next token {token!r}, p = {probability:.2f}"
    axes.set_title(title, fontsize=10, pad=16, parse_math=False)
    _legend(figure, axes, ax is None)
    return figure


def plot_densities(
    measurements: polars.DataFrame,
    importance: str | None = None,
    eps: float = 0.1,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw the cumulative distribution of `size_at`, with a line per model.

    It is the share of measurements whose prediction is held at each trace size.

    Args:
        measurements: table with importance, size_at (null if no size holds the prediction) and
            model, such as `Study.measurements()`. Without a column model, as from
            `measure_positions`, there is a line per importance.
        importance: importance whose rows are drawn; by default the first, or all without models.
        eps: total variation at which size_at was placed, for the label.
        ax: axes to draw into; by default those of a new figure.

    Raises:
        InputError: a column is missing, or no row has the importance.
    """
    by = "model" if "model" in measurements.columns else "importance"
    if importance is None and by == "importance":
        rows = _with_columns(measurements, "importance", "size_at")
    else:
        rows = _of_importance(measurements, importance, "size_at", by)
    # a study has rows of texts that could not be measured
    if "error" in rows.columns:
        rows = rows.filter(polars.col("error").is_null())
    figure, axes = _axes(ax, 5.2, 3.8)
    cumulative_on(axes, rows, by, eps)
    _legend(figure, axes, ax is None)
    return figure


def plot_correlations(
    matrix: polars.DataFrame, importance: str | None = None, *, ax: Axes | None = None
) -> Figure:
    """Draw the correlations of models' values over the same texts, as a matrix with numbers.

    Args:
        matrix: `matrix` of `analysis.correlation_across_models`: importance, model, and a column
            per model.
        importance: importance that is drawn; by default the first.
        ax: axes to draw into; by default those of a new figure.

    Raises:
        InputError: a column is missing, such as that of a model, or no row has the importance.
    """
    rows = _of_importance(matrix, importance, "model")
    _with_columns(rows, *rows["model"].unique(maintain_order=True).cast(polars.String))
    side = 1.8 + 0.55 * len(rows)
    figure, axes = _axes(ax, side + 0.6, side, spines=True)
    matrix_on(axes, rows)
    return figure


def plot_components(table: polars.DataFrame, column: str | None = None, *, ax: Axes | None = None) -> Figure:
    """Draw a value of each head and MLP: layers over heads, with the MLPs beside them.

    Args:
        table: a row per component, from `Measurement.components`, `Trace.components` or
            `TaskMeasurement.components`. Residual edges are left out. What has no row is blank.
        column: the column that is drawn; by default the first of effect, importance_share,
            importance and edge_share that the table has.
        ax: axes to draw into; by default those of a new figure.

    Raises:
        InputError: the table has no row of a head or an MLP, or lacks the column.
    """
    column = column or next((name for name in _COMPONENT_VALUES if name in table.columns), "effect")
    rows = _with_columns(table, "layer", "kind", "head", column)
    rows = rows.filter(polars.col("kind").is_in(["attention", "mlp"]))
    if rows.is_empty():
        raise InputError("there is nothing to draw: the table has no row of kind 'attention' or 'mlp'")
    n_layers, n_heads = int(rows["layer"].max()) + 1, int(rows["head"].max() or 0) + 1  # type: ignore[arg-type]
    # MLPs stand half a head apart, so they are drawn as an image of their own
    heads, mlps = numpy.full((n_layers, n_heads), numpy.nan), numpy.full((n_layers, 1), numpy.nan)
    for layer, head, value in rows.select(
        "layer", "head", polars.col(column).cast(polars.Float64)
    ).iter_rows():
        (mlps if head is None else heads)[layer, 0 if head is None else head] = value
    figure, axes = _axes(ax, 2.6 + 0.3 * (n_heads + 1), 1.6 + 0.2 * n_layers, spines=True)
    most = float(numpy.nanmax(numpy.concatenate([heads, mlps], axis=1)))
    drawn: dict[str, Any] = {
        "origin": "lower",
        "aspect": "auto",
        "cmap": "cividis",
        "vmin": min(0.0, most),
        "vmax": most or 1.0,
    }
    edge = n_heads - 0.5
    axes.imshow(heads, extent=(-0.5, edge, -0.5, n_layers - 0.5), **drawn)
    image = axes.imshow(mlps, extent=(edge + 0.5, edge + 1.5, -0.5, n_layers - 0.5), **drawn)
    axes.set_xlim(-0.5, edge + 1.5)
    step = 1 if n_heads <= 16 else 4
    axes.set_xticks([*range(0, n_heads, step), n_heads + 0.5], [*map(str, range(0, n_heads, step)), "MLP"])
    axes.set_xlabel("attention head")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label=_COMPONENT_VALUES.get(column, column))
    return figure


def plot_trace(trace: Trace, top: int = 400, *, ax: Axes | None = None) -> Figure:
    """Draw the most important edges of a trace, layers over tokens, with the output at the top
    right.

    More important edges are thicker. Attention is blue and leads from token to token. MLPs are
    orange with a square. Residual edges are grey and straight.

    Args:
        trace: the trace.
        top: most edges to draw.
        ax: axes to draw into; by default those of a new figure.

    Raises:
        InputError: the trace has no edges, or top is less than 1.
    """
    from matplotlib.collections import PathCollection, PolyCollection
    from matplotlib.lines import Line2D
    from matplotlib.path import Path as Outline

    graph, space = trace.graph, trace.graph.space
    if top < 1 or trace.n_edges == 0:
        raise InputError(
            f"there is nothing to draw: top is {top}, and the trace has {trace.n_edges} edges; both must be at "
            "least 1"
        )
    edges = graph.index[trace.mask]
    edges = edges[numpy.argsort(-graph.importance[edges], kind="stable")][:top]
    columns, strength = space.columns(edges), graph.importance[edges]
    width = 0.4 + 2.4 * numpy.sqrt(strength / max(float(strength.max()), 1e-30))
    n_tokens, n_levels = space.n_tokens, len(space.levels)
    figure, axes = _axes(ax, min(2.0 + 0.42 * n_tokens, 14.0), min(1.6 + 0.26 * n_levels, 12.0))

    source, target, level = (columns[name].astype(float) for name in ("source", "target", "level"))
    is_attention = columns["head"] >= 0
    is_residual = numpy.char.startswith(columns["kind"].astype(str), "residual")
    aside = numpy.where(is_residual, 0.0, numpy.where(source == target, 0.34, 0.0))
    # edges from a token to itself: attention bends to the left, MLP to the right
    aside = numpy.where(is_attention, -aside, aside)
    corners = numpy.stack(
        [
            numpy.stack([source, level], 1),
            numpy.stack([source + aside + 0.15 * (target - source), level + 0.45], 1),
            numpy.stack([target + aside - 0.2 * (target - source), level + 0.6], 1),
            numpy.stack([target, level + 1], 1),
        ],
        axis=1,
    )
    codes = [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4]
    kinds = {
        "residual": (is_residual, _RESIDUAL, ""),
        "attention": (is_attention, _ATTENTION, ""),
        "MLP": (~is_residual & ~is_attention, _MLP, "s"),
    }
    for mask, colour, _ in kinds.values():
        paths = [Outline(curve, codes) for curve in corners[mask]]
        axes.add_collection(
            PathCollection(paths, facecolors="none", edgecolors=colour, linewidths=width[mask], alpha=0.75)
        )
    centre = numpy.array([0.125, 0.375, 0.375, 0.125]) @ corners[kinds["MLP"][0]]
    square = numpy.array([[-0.09, -0.14], [0.09, -0.14], [0.09, 0.14], [-0.09, 0.14]])
    axes.add_collection(PolyCollection(centre[:, None] + square, facecolors=_MLP, zorder=3))
    nodes = numpy.unique(numpy.concatenate([corners[:, 0], corners[:, 3]]), axis=0)
    axes.plot(nodes[:, 0], nodes[:, 1], "o", color="black", markersize=2.4, zorder=4)
    axes.plot([n_tokens - 1], [n_levels], "o", color="white", markeredgecolor="black", markersize=7, zorder=5)
    axes.set_xlim(-0.7, n_tokens - 0.3)
    axes.set_ylim(-0.4, n_levels + 0.5)
    every = max(1, -(-n_tokens // 60))
    shown = range((n_tokens - 1) % every, n_tokens, every)
    axes.set_xticks(
        shown,
        [_visible(graph.tokens[i]) for i in shown],
        rotation=60,
        ha="right",
        fontsize=7,
        rotation_mode="anchor",
        parse_math=False,
    )
    # the last level of each layer
    ends = [i + 1 for i, at in enumerate(space.levels) if at.n_units]
    step = max(1, len(ends) // 16)
    axes.set_yticks(
        [0, *ends[::step]], ["input", *(str(space.levels[i - 1].layer) for i in ends[::step])], fontsize=7
    )
    axes.set_ylabel("layer", fontsize=8)
    axes.tick_params(length=0)
    drawn = "" if len(edges) == trace.n_edges else f", the {len(edges):,} most important drawn"
    axes.set_title(
        f"{trace.n_edges:,} of {graph.n_edges:,} edges by {graph.importance_name}{drawn}",
        fontsize=9,
        loc="left",
    )
    handles = [
        Line2D([], [], color=colour, marker=marker, label=kind)
        for kind, (mask, colour, marker) in kinds.items()
        if mask.any()
    ]
    _legend(figure, axes, ax is None, handles)
    return figure


def plot_tokens(
    table: polars.DataFrame,
    value: str = "size_at",
    importance: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw a text, each token on a background that is darker the more edges its prediction needs.

    A token's prediction is in the row of the token before it, and "…" stands for the token after
    the last one. A column that does not describe predictions, such as a frequency, is read from the
    token's own row. Tokens without a value, such as the first, are hatched.

    Args:
        table: table of `measure_positions`.
        value: column that is shown.
        importance: importance whose rows are drawn; by default the first.
        ax: axes to draw into; by default those of a new figure.

    Raises:
        InputError: a column is missing, or no row has the importance.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    rows = _of_importance(table, importance, "token", "position", value).sort("position")
    known = dict(zip(rows["position"], rows[value], strict=True))
    # what a prediction has is drawn on the token that it predicts; all else is the token's own
    shift = int(value in _NAMES)
    values = [known.get(position - shift) for position in [*known, max(known) + 1]]
    placed, n_lines = _lines([*rows["token"], "…"])
    figure, axes = _axes(ax, 7.2, 0.75 + 0.29 * n_lines)
    ends = (rows[value].min(), rows[value].max())
    low, high = (float(end) if isinstance(end, int | float) else 0.0 for end in ends)
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1.0), "cividis_r")
    # in points (72 to an inch)
    room = figure.get_figwidth() * axes.get_position().width * 72
    size = min(9.0, 0.97 * room / STRIP_COLUMNS / MONOSPACE_ADVANCE)
    for (text, line, column), number in zip(placed, values, strict=True):
        ground = "white" if number is None else scale.to_rgba(number)
        hatch = "////" if number is None else None
        edge = "white" if number is not None else GREY
        axes.add_patch(
            Rectangle(
                (column, line - 0.42), len(text), 0.84, facecolor=ground, edgecolor=edge, linewidth=0.6, hatch=hatch,
            )
        )  # fmt: skip
        # above this luminance black has more contrast than white
        ink = "black" if number is None or _luminance(ground) > 0.179 else "white"
        axes.text(
            column + len(text) / 2, line, text, ha="center", va="center", fontsize=size, family="monospace", color=ink,
            parse_math=False,
        )  # fmt: skip
    axes.set_xlim(0, STRIP_COLUMNS)
    axes.set_ylim(n_lines - 0.4, -0.6)
    axes.set_aspect(LINE_HEIGHT / MONOSPACE_ADVANCE, anchor="N")
    axes.set_axis_off()
    bar = figure.colorbar(scale, ax=axes, orientation="horizontal", fraction=0.06, pad=0.02, aspect=60)
    name = rows["importance"][0]
    bar.set_label(f"{_NAMES.get(value, value)} ({name})", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def save_plot(what: Measurement | Figure, path: str | Path) -> None:
    """Write a figure, or the curve of a measurement, as PNG, SVG or PDF.

    Args:
        what: a figure or a measurement.
        path: the file, whose extension selects the format.

    Raises:
        InputError: the extension is none of the three.
        StorageError: the path cannot be written.
    """
    check_extension(path)
    save(plot_curve(what) if isinstance(what, Measurement) else what, Path(path))


def check_extension(path: str | Path) -> str:
    """Return the format that a path's extension selects.

    Raises:
        InputError: the extension is not .png, .svg or .pdf.
    """
    extension = Path(path).suffix.lower().removeprefix(".")
    if extension not in FORMATS:
        expected = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"cannot plot to {str(path)!r}; expected a path that ends in {expected}")
    return extension


def _axes(ax: Axes | None, width: float, height: float, spines: bool = False) -> tuple[Figure, Axes]:
    """Return the axes to draw into, and their figure.

    Args:
        ax: axes of the caller, or None for a new figure.
        width: width of a new figure in inches.
        height: its height in inches.
        spines: whether to draw the top and right spines.
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(width, height), dpi=150, layout="constrained").add_subplot()
    if not spines:
        ax.spines[["top", "right"]].set_visible(False)
    figure: Any = ax.get_figure(root=True)
    return figure, ax


def _sinks(measurement: Measurement, sinks: Sinks, eps: float) -> str:
    """Describe sink tokens, and the shares of graph and tightest trace that serve them."""
    tokens = ", ".join(f"'{_visible(text)}'" for text in sinks.tokens["text"])
    plural = "s" * (len(sinks.tokens) > 1)
    line = f"sink token{plural} {tokens}: {percent(sinks.share_of_graph, 2)} of all edges serve it"
    sizes = {name: density.size_at(eps) for name, density in measurement.density.items()}
    held = {name: size for name, size in sizes.items() if size is not None}
    if held:
        name = min(held, key=lambda name: held[name])
        line += (
            f", {percent(sinks.share_of_trace(name, held[name]), 2)} of the trace by {name} (TV ≤ {eps:g})"
        )
    return line


def _legend(figure: Figure, axes: Axes, own: bool, handles: Sequence[Any] = ()) -> None:
    """Draw the legend: below the axes of a figure of our own, inside the axes of a caller's."""
    handles = handles or axes.get_legend_handles_labels()[0]
    if own:
        columns = 3 if len(handles) == 3 else 2
        figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside lower center", ncols=columns)
    else:
        axes.legend(handles=handles, frameon=False, fontsize=7)


def _with_columns(table: polars.DataFrame, *needed: str) -> polars.DataFrame:
    """Return the table, or raise InputError if it lacks a column."""
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise InputError(
            f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns) or 'none'}"
        )
    return table


def _of_importance(table: polars.DataFrame, importance: str | None, *needed: str) -> polars.DataFrame:
    """Return the rows of one importance, by default the first, or raise InputError."""
    _with_columns(table, "importance", *needed)
    names = table["importance"].unique(maintain_order=True).to_list()
    if importance is None and names:
        importance = names[0]
    if importance not in names:
        raise InputError(f"no row has the importance {importance!r}; expected one of {names}")
    return table.filter(polars.col("importance") == importance)


def _lines(tokens: list[str]) -> tuple[list[tuple[str, int, int]], int]:
    """Return each token as drawn, with its line and first column, and the number of lines."""
    placed, line, column = [], 0, 0
    for token in tokens:
        text = token.replace("\n", "⏎") or "∅"
        text = text if len(text) <= STRIP_COLUMNS else text[: STRIP_COLUMNS - 1] + "…"
        if column + len(text) > STRIP_COLUMNS:
            line, column = line + 1, 0
        placed.append((text, line, column))
        column += len(text)
        if token.endswith("\n"):
            line, column = line + 1, 0
    return placed, line + (column > 0)


def _luminance(colour: Any) -> float:
    """Relative luminance (WCAG 2) of an sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(numpy.dot(linear, [0.2126, 0.7152, 0.0722]))


def _visible(token: str) -> str:
    """Return a token with its outer spaces, line breaks and tabs shown as symbols."""
    text = token.replace("\n", "⏎").replace("\t", "⇥")
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    return "␣" * before + inner + "␣" * (len(text) - before - len(inner))
