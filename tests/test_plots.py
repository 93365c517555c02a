"""Figures hold the numbers of what they were made of."""

from __future__ import annotations

import xml.etree.ElementTree

import numpy
import polars
import pytest
from conftest import IDS
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import densitometer as dm
from densitometer import plots


@pytest.fixture(scope="module")
def measured(make_model):
    return dm.measure(
        make_model("qwen3"),
        IDS,
        importance=["l1", "l2"],
        sizes=[0.01, 0.1, 0.5, 1.0],
        eps=0.5,
        keep_graphs=True,
    )


def positions() -> polars.DataFrame:
    sizes = [0.5, 0.02, None, 0.2, 0.2]
    return polars.DataFrame(
        {"position": range(5), "token": ["The", " old\n", "$x_1$", "a" * 100, " end"], "importance": ["l1"] * 5, "size_at": sizes}
    )  # fmt: skip


def axes_of(figure: Figure, number: int = 0):
    return figure.axes[number]


def drawn_edges(axes) -> dict[str, list[tuple[float, ...]]]:
    """Start and end of every curve, by colour."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            colour = to_hex(collection.get_edgecolor()[0]) if len(collection.get_paths()) else ""
            found[colour] = [
                (*path.vertices[0].tolist(), *path.vertices[-1].tolist()) for path in collection.get_paths()
            ]
    return found


@pytest.mark.parametrize("layout", ["qwen3", "neox"])
def test_a_trace_is_drawn_with_its_most_important_edges(make_model, layout):
    graph = dm.build_graph(make_model(layout), IDS, importance="random", seed=2)
    trace = graph.trace(size=0.9)
    top = 150
    found = drawn_edges(axes_of(plots.plot_trace(trace, top)))
    table = (
        graph.edges()
        .filter(polars.Series(trace.mask))
        .sort("importance", descending=True, maintain_order=True)
    )
    levels = {(lv.layer, lv.residual_kind): i for i, lv in enumerate(graph.space.levels)}
    place = {
        "attention": "residual_attention" if layout == "qwen3" else "residual",
        "mlp": "residual_mlp" if layout == "qwen3" else "residual",
    }
    want: dict[str, list[tuple[float, ...]]] = {"#666666": [], "#0072b2": [], "#d55e00": []}
    for row in table.head(top).iter_rows(named=True):
        level = levels[row["layer"], place.get(row["kind"], row["kind"])]
        colour = {"attention": "#0072b2", "mlp": "#d55e00"}.get(row["kind"], "#666666")
        want[colour].append((row["source"], level, row["target"], level + 1))
    assert {colour: sorted(edges) for colour, edges in found.items()} == {
        colour: sorted(edges) for colour, edges in want.items()
    }
    assert sum(map(len, found.values())) == top
    title = axes_of(plots.plot_trace(trace, top)).get_title(loc="left")
    assert title == f"{trace.n_edges:,} of {graph.n_edges:,} edges by random, the 150 most important drawn"


def test_an_empty_trace_is_no_drawing(measured):
    graph = measured.session.graphs["l1"]
    for trace, top in ((graph.trace(n_edges=0), 5), (graph.trace(size=0.5), 0)):
        with pytest.raises(dm.DensitometerError, match="nothing to draw"):
            plots.plot_trace(trace, top)


def test_a_curve_holds_what_was_measured(measured):
    axes = axes_of(plots.plot_curve(measured, eps=0.5))
    lines = {line.get_label(): line for line in axes.get_lines()}
    for name in ("l1", "l2"):
        label = next(label for label in lines if label.startswith(f"trace by {name}"))
        own = measured.curve.filter(kind="trace", importance=name)
        assert lines[label].get_xdata().tolist() == own["size"].to_list()
        assert lines[label].get_ydata().tolist() == own["tv"].to_list()
    assert "random of this size" in lines


def test_densities_are_their_empirical_distribution():
    sizes = [0.3, 0.01, None, 0.1, 0.1]
    table = polars.DataFrame(
        {"model": ["b"] * 5 + ["a"], "importance": ["l1"] * 6, "size_at": [*sizes, 0.7], "error": [None] * 6},
        schema_overrides={"error": polars.String},
    )
    lines = {line.get_label(): line for line in axes_of(plots.plot_densities(table)).get_lines()}
    assert lines["b"].get_xdata().tolist() == [0.01, 0.1, 0.1, 0.3]
    assert lines["b"].get_ydata().tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert lines["a"].get_ydata().tolist() == [1.0]
    failed = table.with_columns(error=polars.Series([None, None, "bad", None, None, None]))
    lines = {line.get_label(): line for line in axes_of(plots.plot_densities(failed)).get_lines()}
    assert lines["b"].get_ydata().tolist() == [0.25, 0.5, 0.75, 1.0]
    along = {line.get_label() for line in axes_of(plots.plot_densities(positions())).get_lines()}
    assert "l1" in along


def test_correlations_stand_in_their_fields():
    matrix = polars.DataFrame(
        {"importance": ["l1"] * 2 + ["l2"] * 2, "model": ["a", "b$"] * 2, "a": [1.0, 0.5, 1.0, -0.25], "b$": [0.5, 1.0, None, 1.0]}
    )  # fmt: skip
    axes = axes_of(plots.plot_correlations(matrix, "l2"))
    assert [text.get_text() for text in axes.texts] == ["1.00", "–", "-0.25", "1.00"]
    assert [text.get_color() for text in axes.texts] == ["black", "black", "white", "black"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", r"b\$"]


COMPONENTS = polars.DataFrame(
    {
        "layer": [0, 0, 2, 2],
        "kind": ["attention", "mlp", "attention", "residual_mlp"],
        "head": [1, None, 3, None],
        "edge_share": [0.5, 0.25, 1.0, 1.0],
        "effect": [0.1, 0.9, 0.3, 1.0],
    }
)


def test_components_stand_in_the_row_of_their_layer_and_the_column_of_their_head():
    axes = axes_of(plots.plot_components(COMPONENTS))
    heads, mlps = (image.get_array().filled(numpy.nan) for image in axes.get_images())
    nan = numpy.nan
    assert numpy.array_equal(heads, [[nan, 0.1, nan, nan], [nan] * 4, [nan, nan, nan, 0.3]], equal_nan=True)
    assert numpy.array_equal(mlps, [[0.9], [nan], [nan]], equal_nan=True)
    # the residual edges' value does not stretch the scale
    assert {image.get_clim() for image in axes.get_images()} == {(0.0, 0.9)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3", "MLP"]
    shares = axes_of(plots.plot_components(COMPONENTS, "edge_share")).get_images()[0].get_array()
    assert shares[0, 1] == 0.5


def test_tokens_are_as_dark_as_their_values_are_large():
    axes = axes_of(plots.plot_tokens(positions()))
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["The", " old⏎", "$x_1$", "a" * 79 + "…", " end", "…"]
    light = [plots._luminance(patch.get_facecolor()) for patch in axes.patches]
    # each has the value of the row before it
    assert light[1] < light[4] == light[5] < light[2] < light[0] == light[3] == 1.0
    assert [patch.get_hatch() for patch in axes.patches] == ["////", None, None, "////", None, None]
    assert [patch.get_y() + 0.42 for patch in axes.patches] == pytest.approx([0, 0, 1, 2, 3, 3])
    assert [patch.get_x() for patch in axes.patches] == [0, 3, 0, 0, 0, 4]
    for text, lightness in zip(axes.texts, light, strict=True):
        ink = 0.0 if text.get_color() == "black" else 1.0
        assert (max(ink, lightness) + 0.05) / (min(ink, lightness) + 0.05) > 4.5
    plots.plot_tokens(positions().with_columns(size_at=polars.lit(None, dtype=polars.Float64)))
    # what is not of predictions is the token's own
    own = axes_of(plots.plot_tokens(positions().with_columns(frequency="size_at"), "frequency"))
    assert [patch.get_facecolor() for patch in own.patches[:5]] == [
        patch.get_facecolor() for patch in axes.patches[1:]
    ]
    assert [patch.get_hatch() for patch in own.patches] == [None, None, "////", None, None, "////"]


def test_every_figure_is_drawn_on_axes_that_are_given_and_saved_as_text(measured, tmp_path):
    matrix = polars.DataFrame({"importance": ["l1"], "model": ["a"], "a": [1.0]})
    calls = [
        lambda ax: plots.plot_curve(measured, ax=ax),
        lambda ax: plots.plot_densities(positions(), ax=ax),
        lambda ax: plots.plot_correlations(matrix, ax=ax),
        lambda ax: plots.plot_trace(measured.session.graphs["l1"].trace(size=0.3), ax=ax),
        lambda ax: plots.plot_tokens(positions(), ax=ax),
        lambda ax: plots.plot_components(COMPONENTS, ax=ax),
    ]
    for i, call in enumerate(calls):
        figure = Figure(layout="constrained")
        first, second = figure.subplots(1, 2)
        assert call(second) is figure
        assert not first.has_data() or first.get_lines() == []
        assert second.has_data()
        assert not figure.legends
        alone = call(None)
        assert isinstance(alone, Figure)
        for extension in plots.FORMATS:
            plots.save_plot(alone, tmp_path / f"{i}.{extension}")
        root = xml.etree.ElementTree.parse(tmp_path / f"{i}.svg").getroot()
        assert any("text" in element.tag for element in root.iter())
        assert (tmp_path / f"{i}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: plots.plot_tokens(t, "density"), "no column density"),
        (lambda t: plots.plot_tokens(t, importance="l2"), "no row has the importance 'l2'"),
        (lambda t: plots.plot_tokens(t.head(0)), "no row has the importance"),
        (lambda t: plots.plot_densities(t.drop("size_at")), "no column size_at"),
        (lambda t: plots.plot_correlations(t), "no column model"),
        (lambda t: plots.plot_components(t), "no column layer"),
        (lambda t: plots.plot_components(COMPONENTS, "nope"), "no column nope"),
        (lambda t: plots.plot_components(COMPONENTS.tail(1)), "no row of kind 'attention' or 'mlp'"),
    ],
)
def test_a_table_that_lacks_something_is_told(call, message):
    with pytest.raises(dm.DensitometerError, match=message):
        call(positions())


def test_luminance_is_that_of_the_standard():
    assert plots._luminance((1.0, 1.0, 1.0)) == pytest.approx(1.0)
    assert plots._luminance(numpy.array([0.5, 0.5, 0.5])) == pytest.approx(0.2140, abs=1e-4)
