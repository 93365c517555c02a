"""Draw the pictures of the documentation from the product itself: docs/pictures/*.svg.

    python tools/draw_idea.py [FOLDER]

Small, without dates and with the same names at every run, so that a picture changes only where what it shows does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.plots import plot_curve

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
WHALE = "The old captain looked at the sea and said that the white whale"
PRESIDENT = "The president of the United"
SIZES = (0.01, 0.05, 0.2)
KINDS = {
    "attention": "#d55e00",
    "mlp": "#009e73",
    "residual": "#0072b2",
}  # told apart without colour vision too
OFF = "#d8d8d8"


def draw(folder: Path) -> dict[str, list[str]]:
    """Write every picture; the words in each."""
    style = {"svg.hashsalt": "densitometer", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        model = dm.load_model("demo")
        graph = dm.build_graph(model, PRESIDENT, importance="fisher")
        figures = {
            "graph": _graph(graph),
            "traces": _traces(model, graph),
            "curve": plot_curve(dm.measure(model, WHALE, importance=["l1", "fisher"])),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return {
        name: [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
        for name, figure in figures.items()
    }


def _graph(graph: dm.Graph) -> Figure:
    """All edges, and beside them those into one node."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    every, one = figure.subplots(1, 2, sharey=True)
    edges = numpy.ones(graph.n_edges, dtype=bool)
    _edges(every, graph, edges, edges)
    every.set_title(f"every edge that can reach the output: {graph.n_edges:,}", fontsize=10)
    table = graph.edges()
    chosen = (
        (table["layer"] == 3)
        & (table["target"] == graph.position)
        & (table["kind"] != "residual_mlp")
        & (table["kind"] != "mlp")
    )
    _edges(one, graph, edges, chosen.to_numpy())
    heads = table.filter(chosen & (table["kind"] == "attention")).height
    one.set_title(f"into one node: 1 residual edge, {heads} of attention", fontsize=10)
    for axes in (every, one):
        _tokens(axes, graph)
    every.set_ylabel("layer")
    handles = [matplotlib.lines.Line2D([], [], color=colour, label=label) for label, colour in (
        ("residual stream", KINDS["residual"]), ("attention (8 heads on each line)", KINDS["attention"]), ("MLP", KINDS["mlp"]),
    )]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _traces(model: dm.Model, graph: dm.Graph) -> Figure:
    """Traces of three sizes, and what the model predicts with each alone."""
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    panels = figure.subplots(2, len(SIZES) + 1, height_ratios=(3, 1.1), sharey="row")
    sizes = (*SIZES, 1.0)
    traces = [graph.trace(size=size) for size in sizes]
    logits = dm.reconstruct(model, graph, traces)
    probabilities = logits.softmax(-1)
    shown = probabilities[-1].topk(3).indices.tolist()
    edges = numpy.ones(graph.n_edges, dtype=bool)
    for size, trace, row, tv, (above, below) in zip(
        sizes, traces, probabilities, total_variation(logits[-1], logits), panels.T, strict=True
    ):
        _edges(above, graph, edges, trace.mask)
        _tokens(above, graph)
        above.set_title(f"{100 * size:.3g} %: {trace.n_edges:,} edges", fontsize=10)
        below.bar(range(len(shown)), row[shown].tolist(), color="#444444")
        below.set_xticks(range(len(shown)), [model.pieces([i])[0] for i in shown], fontsize=8)
        below.set_title(f"TV {tv:.2f}", fontsize=9)
        below.set_ylim(0, 1)
        below.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("layer")
    panels[1, 0].set_ylabel("probability")
    return figure


def _edges(axes: Axes, graph: dm.Graph, drawn: numpy.ndarray, on: numpy.ndarray) -> None:
    """Edges between (token, level): attention of all heads of two tokens as one line, as thick as many of them are on."""
    table = graph.edges()
    level = 2 * table["layer"].to_numpy() + numpy.isin(table["kind"].to_numpy(), ["residual_mlp", "mlp"])
    source, target = table["source"].to_numpy(), table["target"].to_numpy()
    kind = table["kind"].to_numpy()
    for name, colour in KINDS.items():
        own = (kind == name) if name != "residual" else numpy.char.startswith(kind.astype(str), "residual")
        places: dict[tuple[int, int, int], int] = {}
        for i in numpy.flatnonzero(own & drawn):
            key = (source[i], level[i], target[i])
            places[key] = places.get(key, 0) + int(on[i])
        lines: dict[float, list[numpy.ndarray]] = {}  # by width; 0 is off
        for (s, at, t), count in places.items():
            width = 0.0 if not count else 0.5 + 0.25 * count if name == "attention" else 1.4
            lines.setdefault(width, []).append(_line(s, at, t, bulge=0.22 if name == "mlp" else 0.0))
        for width, parts in lines.items():  # lines of one style are one path: a third of the size
            x, y = numpy.concatenate([numpy.append(part, [[numpy.nan] * 2], axis=0) for part in parts]).T
            if width:
                axes.plot(x, y, color=colour, linewidth=width, alpha=0.85, zorder=2)
            else:
                axes.plot(x, y, color=OFF, linewidth=0.5, zorder=1)


def _line(source: int, level: int, target: int, bulge: float) -> numpy.ndarray:
    steps = numpy.linspace(0, 1, 7 if bulge else 2)
    return numpy.stack(
        [source + (target - source) * steps + bulge * numpy.sin(numpy.pi * steps), level + steps], axis=1
    )


def _tokens(axes: Axes, graph: dm.Graph) -> None:
    names = [token.strip() or token for token in graph.tokens]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    levels = 2 * graph.n_layers
    axes.set_yticks(range(0, levels + 1, 2), [str(i) for i in range(graph.n_layers + 1)], fontsize=8)
    axes.plot([graph.position], [levels], "o", color="black", markersize=5, zorder=3)
    axes.set_xlim(-0.5, len(names) - 0.4)
    axes.set_ylim(-0.4, levels + 0.5)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
