"""The page of a long input, measured tile by tile, against the stored graph of the same input."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from test_tiles import LONGER, both, flat_of
from test_tiles import small_tiles as small_tiles
from test_viewer import unpack

import densitometer as dm
from densitometer.graph.graph import Graph
from densitometer.graph.growth import KeyTile
from densitometer.graph.tiled import tiles
from densitometer.graph.tiled.histogram import KeyHistogram
from densitometer.models.blocks import Tile
from densitometer.viewer.answers import Answers
from densitometer.viewer.long import LongEdges, _Best, long_edges
from densitometer.viewer.payload import N_BINS, _long_histogram, decode, encode, traces_payload


def same_edges(model: dm.Model, score: str) -> tuple[Graph, tiles.TiledGraph]:
    """A stored graph with the tiles' own importances, and the tiled one."""
    stored, tiled = both(model, LONGER, score)
    return stored.with_importance(score, flat_of(tiled, tiled.source.importance)), tiled


def rows_of(stored: Graph) -> list[tuple]:
    """(level, kind, head, source, target) of every edge."""
    columns = stored.space.columns(stored.index)
    names = ("level", "kind", "head", "source", "target")
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


@pytest.mark.parametrize("budget", [60, 400, 10**6])
@pytest.mark.parametrize(
    ("layout", "score"), [("qwen3", "l1"), ("mistral-window", "l2"), ("neox", "l1"), ("gemma2", "l1")]
)
def test_one_sweep_finds_what_the_stored_graph_holds(make_model, layout, score, budget):
    stored, tiled = same_edges(make_model(layout), score)
    measured = [trace.n_edges for trace in tiled.traces([0.05, 0.3, 1.0])]
    found = long_edges(tiled, measured, budget, 25)
    rows, keys = rows_of(stored), stored.keys[stored.index]
    importance = stored.importance[stored.index]
    edge = {row: i for i, row in enumerate(rows)}
    # the grid: sizes of thresholds, those measured among them, and the counts at each
    assert set(measured) - {0} <= set(found.grid.tolist())
    assert found.grid[-1] == stored.n_edges
    assert len(found.grid) > 12
    falling = numpy.sort(keys)[::-1]
    for n, counts in zip(found.grid.tolist(), found.counts, strict=True):
        on = keys >= falling[n - 1]
        assert on.sum() == n  # no key is on both sides
        for (level, _, kind, head, _), count in zip(stored.space.components(), counts.tolist(), strict=True):
            assert count == sum(on[i] for row, i in edge.items() if row[:3] == (level, kind, head))
    assert found.totals.sum() == stored.n_edges
    # what is kept: the best by key; of those that share one, the bottleneck, then by importance
    kept = found.kept
    got = [
        edge[level, kind, head, source, target]
        for level, kind, head, source, target in zip(
            *(kept[name].tolist() for name in ("level", "kind", "head", "source", "target")), strict=True
        )
    ]
    assert len(set(got)) == len(got) == min(budget, stored.n_edges)
    order = sorted(range(len(rows)), key=lambda i: (-keys[i], importance[i] != keys[i], -importance[i]))
    ranked = [i for _, i in sorted(zip(kept["rank"].tolist(), got, strict=True))]
    assert sorted(kept["rank"].tolist()) == list(range(len(got)))
    for values in (keys, importance):  # edges alike in both may change places
        assert values[ranked].tolist() == values[order][: len(got)].tolist()
    numpy.testing.assert_array_equal(kept["importance"], importance[got])
    there = numpy.zeros(stored.n_edges, dtype=bool)
    there[got] = True
    for n in found.grid[found.grid <= found.exact_to].tolist():
        assert there[keys >= falling[n - 1]].all()
    complete = len(got) == stored.n_edges
    assert found.exact_to == (stored.n_edges if complete else int((keys > keys[got].min()).sum()))
    # all importances
    assert found.importances.total == stored.n_edges
    assert found.zeros == int((importance == 0).sum())


def test_of_edges_behind_one_bottleneck_the_most_important_are_kept_wherever_they_come():
    best, every = _Best(3), []
    generator = torch.Generator().manual_seed(4)
    for level in range(5):
        scores = 0.5 + torch.rand(7, generator=generator)
        swept = KeyTile(level, Tile(slice(0, 7), slice(0, 7)), None, None, None)
        best.add(0, -1, swept, torch.full_like(scores, 0.5), scores)
        every += scores.tolist()
    scores = torch.tensor([0.51, 0.5])
    swept = KeyTile(5, Tile(slice(0, 2), slice(0, 2)), None, None, None)
    best.add(0, -1, swept, scores * 0 + 0.5, scores)
    kept, exact_to = best.closed(37)
    ranked = kept["importance"][numpy.argsort(kept["rank"])]
    assert ranked.tolist() == pytest.approx([0.5, *sorted(every)[:-3:-1]])  # the bottleneck first
    assert exact_to == 0


def test_steps_of_a_histogram_are_counts_of_its_numbers():
    generator = numpy.random.Generator(numpy.random.PCG64(1))
    numbers = (generator.random(500) ** 9).astype(numpy.float32)
    numbers[:20] = 0.0
    known = KeyHistogram()
    known.add(torch.from_numpy(numbers))
    values, larger = known.steps
    assert values[-1] == -1
    assert (numpy.diff(values) < 0).all()
    assert larger.tolist() == [int((numbers > value).sum()) for value in values]
    assert larger[-1] == 500
    assert known._low == {}


@pytest.fixture
def long_measurement(make_model, monkeypatch):
    monkeypatch.setattr(tiles, "STORED_EDGES", 1)
    return dm.measure(
        make_model("qwen3"),
        LONGER,
        importance=["l1", "l2"],
        sizes=[0.05, 0.3, 1.0],
        baselines=(),
        eps=0.5,
        keep_graphs=True,
    )


def test_a_long_input_has_a_view_for_each_score(long_measurement):
    payload = traces_payload(long_measurement, edge_budget=400)
    assert decode(encode(payload)) == payload
    for name, view in zip(("l1", "l2"), payload["views"], strict=True):
        graph = long_measurement.session.graphs[name]
        assert view["importances"] == [name]
        assert view["readings"] is None
        assert view["edges"]["kept"] == 200
        grid = unpack(view["grid"])
        assert grid[-1] == graph.n_edges
        counts = unpack(view["components"]["counts"][name])
        assert counts.sum(axis=1).tolist() == grid.tolist()
        assert counts[-1].tolist() == view["components"]["n_edges"]
        costs = dict(zip(grid.tolist(), unpack(view["costs"][name]["flops"]).tolist(), strict=True))
        for point in view["curves"][name]:
            if point["n_edges"]:
                assert costs.pop(point["n_edges"]) == pytest.approx(point["flops_share"])
        assert all(math.isnan(cost) for cost in costs.values())
        bins = view["histograms"][name]
        assert sum(bins["all"]) + bins["zero"] == graph.n_edges
        assert sum(bins["kept"]) == int((unpack(view["edges"]["orders"][name]["importance"]) > 0).sum())
        assert all(k <= a for k, a in zip(bins["kept"], bins["all"], strict=True))
        assert len(bins["all"]) == N_BINS


def test_a_histogram_of_importances_is_that_of_the_numbers(long_measurement):
    view = traces_payload(long_measurement, edge_budget=10**6)["views"][0]
    bins = view["histograms"]["l1"]
    importance = unpack(view["edges"]["orders"]["l1"]["importance"]).astype(float)
    assert importance.size == long_measurement.graph["n_edges"]
    assert bins["all"] == bins["kept"]
    borders = numpy.linspace(bins["from"], bins["to"], N_BINS + 1)
    want = numpy.histogram(numpy.log10(importance[importance > 0]).clip(borders[0], borders[-1]), borders)[0]
    # a number may count a bin lower by the low bits that are left out, under 1 %
    assert numpy.abs(numpy.cumsum(want) - numpy.cumsum(bins["all"])).max() <= 0.05 * importance.size


def test_zeros_and_the_smallest_importances_are_counted_once():
    numbers = numpy.array([0.0] * 7 + [1e-42] * 3 + [0.25, 0.26, 1.0], dtype=numpy.float32)
    known = KeyHistogram()
    known.add(torch.from_numpy(numbers))
    none = numpy.empty(0)
    found = LongEdges({"importance": numbers[7:]}, 0, none, none, none, known, 7)
    bins = _long_histogram(found)
    assert (bins["zero"], sum(bins["all"]), sum(bins["kept"])) == (7, 6, 6)
    assert (bins["all"][0], bins["kept"][0], bins["all"][-1]) == (3, 3, bins["kept"][-1])


def test_counts_beyond_31_bits_are_exact(long_measurement, monkeypatch):
    graph = long_measurement.session.graphs["l1"]
    small = traces_payload(long_measurement, edge_budget=50)["views"][0]
    monkeypatch.setattr("densitometer.viewer.payload.LARGEST_INTEGER", 100)
    large = traces_payload(long_measurement, edge_budget=50)["views"][0]
    assert large["grid"]["dtype"] == "f8"
    assert unpack(large["grid"]).tolist() == unpack(small["grid"]).tolist()
    assert unpack(large["grid"])[-1] == graph.n_edges
    counts = [unpack(view["components"]["counts"]["l1"]).tolist() for view in (small, large)]
    assert counts[0] == counts[1]


def test_questions_about_a_long_input_are_answered_as_for_a_stored_one(make_model, monkeypatch):
    model = make_model("qwen3")
    measuring = {"importance": "l1", "sizes": [0.3, 1.0], "baselines": (), "eps": 0.5, "keep_graphs": True}
    answers = Answers([model])
    stored = answers.payload(dm.measure(model, LONGER, **measuring))["views"][0]
    rows = answers._readers[stored["id"]].first.edges().drop("edge", "importance").rows()
    monkeypatch.setattr(tiles, "STORED_EDGES", 1)
    view = answers.payload(dm.measure(model, LONGER, **measuring))["views"][0]
    names = ("level", "kind", "head", "source", "target")
    columns = [unpack(view["edges"][name]).tolist() for name in names]
    space = answers._readers[view["id"]].first.space
    numbers = [  # of the same edges in the stored view
        rows.index(
            (space.levels[level].layer, view["kinds"][kind], None if head < 0 else head, source, target)
        )
        for level, kind, head, source, target in zip(*columns, strict=True)
    ]
    graph = answers._readers[view["id"]].first
    n = graph.trace(size=0.1).n_edges
    on = answers._readers[stored["id"]].first.trace(n_edges=n).edges().filter(kind="attention")
    asking = set(on.select("layer", "target").rows())
    of_kind = {
        kind: [i for i, k in enumerate(columns[1]) if view["kinds"][k] == kind] for kind in view["kinds"]
    }
    # the first one leads into a token that asks for nothing else
    alone = [
        i for i in of_kind["attention"] if (space.levels[columns[0][i]].layer, columns[4][i]) not in asking
    ]
    chosen = [
        alone[0],
        of_kind["mlp"][-1],
        of_kind["residual_mlp"][3],
        of_kind["attention"][5],
    ]
    asked = [
        ("node", lambda edge: {"row": 0, "token": 2}),
        ("node", lambda edge: {"row": 3, "token": 7}),
        ("edge", lambda edge: {"edge": edge(of_kind["attention"][7])}),
        ("edge", lambda edge: {"edge": edge(of_kind["mlp"][4])}),
        ("run", lambda edge: {"importance": "l1", "n_edges": n}),
        (
            "run",
            lambda edge: {
                "importance": "l1", "n_edges": n, "pinned": [edge(i) for i in chosen[:2]], "hidden": [edge(i) for i in chosen[1:]],
                "hidden_components": [[1, "attention", 2], [2, "mlp", -1], [0, "residual_mlp", -1]],
            },
        ),
    ]  # fmt: skip
    # the traces of this number of edges are the same, as it is that of a threshold
    for method, parameters in asked:
        got = answers.ask(method, {"id": view["id"], **parameters(lambda i: i)})
        want = answers.ask(method, {"id": stored["id"], **parameters(lambda i: numbers[i])})
        assert flat_answer(got) == pytest.approx(flat_answer(want), rel=1e-3, abs=2e-5), method
        assert got.get("tokens") == want.get("tokens")
    with pytest.raises(dm.DensitometerError, match="measurement each"):
        answers.ask("tokens", {"id": view["id"], "importance": "l1"})


def test_all_views_of_a_long_input_are_kept_whatever_their_size(long_measurement, make_model, monkeypatch):
    monkeypatch.setattr("densitometer.viewer.answers.KEPT_BYTES", 1)
    answers = Answers([make_model("qwen3")])
    views = answers.payload(long_measurement)["views"]
    for view in views:
        assert answers.ask("node", {"id": view["id"], "row": 6, "token": 10})["tokens"]
    assert len(views) == len(answers._readers) == 2


def flat_answer(answer: dict) -> list[float]:
    """All numbers of an answer, in the order of its keys."""
    numbers = []
    for name in sorted(answer):
        values = answer[name] if isinstance(answer[name], list) else [answer[name]]
        for value in values:
            value = value["probability"] if isinstance(value, dict) else value
            numbers += [] if isinstance(value, str) else [float(value)]
    return numbers
