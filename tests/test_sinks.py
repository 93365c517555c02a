"""Sink tokens, massive activations and the edges that serve sinks: plain loops, attention made by hand, the table of edges."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace

import numpy
import polars
import pytest
import torch
from conftest import make_module
from rich.console import Console

import densitometer as dm
from densitometer.cli.terminal import show_measurement, show_report
from densitometer.errors import InputError, StorageError
from densitometer.graph import sinks
from densitometer.graph.forward_pass import run_forward
from densitometer.graph.sinks import (
    LEAST_LATER,
    OWN,
    READ,
    find_sinks,
    massive_activations,
    mean_attention,
    serving_edges,
    sink_tokens,
)
from densitometer.measuring.density import SMALLEST_SIZE
from densitometer.plots import plot_curve
from densitometer.study.worker import columns_of_sinks

pytestmark = pytest.mark.usefixtures("rows_skipped")

IDS = [3, 88, 41, 7, 59, 26, 11, 64, 90, 17, 35, 72, 8]  # 13 tokens
SIZES = [0.05, 0.2, 0.5, 1.0]


@pytest.fixture(scope="module")
def sinking():
    """A model whose first token is a sink: its position has one large number, which every key reads and every query seeks."""
    module = make_module("gpt2")
    hidden = module.config.n_embd
    with torch.no_grad():
        module.transformer.wpe.weight[0, 5] = 300.0
        for layer in module.transformer.h:
            layer.attn.c_attn.weight[5, hidden : 2 * hidden] = 1.0
            layer.attn.c_attn.bias[:hidden] = 1.0
    return dm.load_model(module)


@pytest.fixture(scope="module")
def measured(sinking):
    return dm.measure(sinking, IDS, importance=("l1", "fisher"), sizes=SIZES, keep_graphs=True)


def printed(what) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def slow_means(forward) -> list[list[float]]:
    """Each head's mean attention to each token, number by number."""
    rows = []
    for record in forward.records:
        allowed = record.allowed.tolist()
        for head in record.weights.tolist():
            row = []
            for s in range(len(allowed)):
                own = [head[t][s] for t in range(s + 1, len(allowed)) if allowed[t][s]]
                row.append(sum(own) / len(own) if len(own) >= LEAST_LATER else 0.0)
            rows.append(row)
    return rows


def slow_massive(forward) -> dict[tuple[int, int], tuple[int, int, float]]:
    """First and last layer and largest ratio by token and dimension, number by number."""
    found: dict[tuple[int, int], tuple[int, int, float]] = {}
    for layer, record in enumerate(forward.records):
        stream = [[abs(x) for x in row] for row in record.stream.float().tolist()]
        ordered = sorted(x for row in stream for x in row)
        median = ordered[(len(ordered) - 1) // 2]
        for token, row in enumerate(stream):
            for dimension, x in enumerate(row):
                if x > 50 * median:
                    first, _, ratio = found.get((token, dimension), (layer, layer, 0.0))
                    found[token, dimension] = (first, layer, max(ratio, x / median))
    return found


@pytest.mark.parametrize("name", ["sinking", "demo", "mistral-window", "neox"])
def test_shares_of_heads_are_those_of_a_plain_loop(name, request, make_model):
    model = request.getfixturevalue(name) if name in ("sinking", "demo") else make_model(name)
    forward, _ = run_forward(model, IDS)
    slow = slow_means(forward)
    numpy.testing.assert_allclose(mean_attention(forward).numpy(), slow, atol=1e-6)
    heads = [sum(row[token] > 0.3 for row in slow) / len(slow) for token in range(len(IDS))]
    own = sink_tokens(forward)
    assert own["token"].to_list() == [token for token, share in enumerate(heads) if share > 1 / 3]
    assert own["heads"].to_list() == pytest.approx([heads[token] for token in own["token"]])
    for row in own.iter_rows(named=True):
        attending = [head[row["token"]] for head in slow if head[row["token"]] > 0.3]
        assert row["attention"] == pytest.approx(sum(attending) / len(attending))
        assert row["text"] == model.pieces(IDS)[row["token"]]
    assert (own["token"].to_list() == [0]) == (name == "sinking")


def by_hand(model, attend: dict[int, tuple[int, float]]):
    """A pass of uniform attention to the token itself, but for heads, numbered through the layers, that give a share to a token."""
    forward, _ = run_forward(model, IDS)
    t, records, head = len(IDS), [], 0
    for record in forward.records:
        weights = torch.eye(t).repeat(len(record.weights), 1, 1)
        for own in weights:
            if head in attend:
                token, share = attend[head]
                own[token + 1 :] *= 1 - share
                own[token + 1 :, token] += share
            head += 1
        records.append(replace(record, weights=weights))
    return replace(forward, records=tuple(records))


def test_sinks_of_attention_made_by_hand(make_model):
    model = make_model("gpt2")  # 3 layers of 4 heads
    four = dict.fromkeys(range(1, 5), (2, 0.9))
    assert sink_tokens(by_hand(model, four)).is_empty()  # a third is not more than a third
    five = sink_tokens(by_hand(model, four | {11: (2, 0.4), 7: (2, 0.2)}))
    assert five["token"].to_list() == [2]
    assert five["heads"].item() == pytest.approx(5 / 12)
    assert five["attention"].item() == pytest.approx((4 * 0.9 + 0.4) / 5)
    assert sink_tokens(by_hand(model, four | {11: (2, 0.29)})).is_empty()
    last = len(IDS) - 1 - LEAST_LATER
    for token, there in ((last, True), (last + 1, False)):
        found = sink_tokens(by_hand(model, dict.fromkeys(range(12), (token, 0.9))))
        assert found["token"].to_list() == ([token] if there else [])


def test_uniform_attention_has_no_sinks_however_short_the_text(make_model):
    for n in range(1, 13):
        forward, _ = run_forward(make_model("gpt2"), IDS[:n])
        weights = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
        records = tuple(replace(r, weights=weights.expand_as(r.weights)) for r in forward.records)
        assert sink_tokens(replace(forward, records=records)).is_empty(), n


@pytest.mark.parametrize("name", ["sinking", "demo", "gemma2"])
def test_massive_activations_are_those_of_a_plain_loop(name, request, make_model):
    model = request.getfixturevalue(name) if name in ("sinking", "demo") else make_model(name)
    forward, _ = run_forward(model, IDS)
    if name == "gemma2":  # one that comes, goes, and comes again, in another dimension larger
        grown = [r.stream.clone() for r in forward.records]
        grown[0][3, 7], grown[2][3, 7], grown[1][6, 2] = 500.0, -900.0, 5000.0
        median = grown[1].abs().median()
        grown[1][4, 1], grown[1][5, 1] = -55 * median, 45 * median
        records = (replace(r, stream=x) for r, x in zip(forward.records, grown, strict=True))
        forward = replace(forward, records=tuple(records))
    own, slow = massive_activations(forward), slow_massive(forward)
    assert {(row[0], row[1]) for row in own.iter_rows()} == set(slow)
    for token, dimension, *found in own.iter_rows():
        assert found == pytest.approx(slow[token, dimension]), (token, dimension)
    assert own["ratio"].is_sorted(descending=True)
    assert ((0, 5) in slow) == (name == "sinking")
    if name == "gemma2":
        assert slow[3, 7][:2] == (0, 2)
        assert ((4, 1) in slow, (5, 1) in slow) == (True, False)


def test_a_stream_of_zeros_has_no_massive_activations(sinking):
    forward, _ = run_forward(sinking, IDS)
    streams = [torch.zeros_like(r.stream) for r in forward.records]
    for stream in streams:
        stream[2, 3] = 7.0
    records = (replace(r, stream=x) for r, x in zip(forward.records, streams, strict=True))
    assert massive_activations(replace(forward, records=tuple(records))).is_empty()


def kinds_of(graph, tokens) -> numpy.ndarray:
    """How each row of `graph.edges()` serves, by its source and target."""
    table = graph.edges().select(
        polars.when(polars.col("target").is_in(tokens))
        .then(OWN)
        .when(polars.col("source").is_in(tokens))
        .then(READ)
        .otherwise(0)
        .alias("serves")
    )
    return table["serves"].to_numpy()


@pytest.mark.parametrize(
    ("name", "granularity"), [("llama", "block"), ("neox", "block"), ("mixtral", "expert")]
)
@pytest.mark.parametrize("tokens", [[0], [1, 4], []])
def test_serving_edges_are_those_of_the_table_of_edges(make_model, name, granularity, tokens):
    graph = dm.build_graph(make_model(name), IDS, granularity=granularity)
    serving = serving_edges(graph.space, tokens)
    numpy.testing.assert_array_equal(serving[graph.index], kinds_of(graph, tokens))
    assert set(serving) == ({0, READ, OWN} if tokens else {0})


def test_a_trace_is_counted_as_the_table_of_edges_says(make_model, monkeypatch):
    monkeypatch.setattr(sinks, "sink_tokens", lambda forward: polars.DataFrame({"token": [1, 4]}))
    graph = dm.build_graph(make_model("llama"), IDS)
    traces = [("l1", "trace", size, graph.trace(size=size)) for size in (0.0, 0.02, 0.3, 1.0)]
    runs = [*traces, ("l1", "inverse", 0.3, graph.trace(size=0.3).inverse())]
    found, kinds = find_sinks(graph.forward, runs), kinds_of(graph, [1, 4])
    assert (found.n_edges, found.n_read, found.n_own) == (len(kinds), sum(kinds == READ), sum(kinds == OWN))
    assert len(found.served) == len(traces)
    for row, (*_, size, trace) in zip(found.served.iter_rows(named=True), traces, strict=True):
        assert (row["size"], row["n_edges"]) == (size, trace.n_edges)
        assert row["read"] == (kinds[trace.mask] == READ).sum()
        assert row["own"] == (kinds[trace.mask] == OWN).sum()


def test_a_measurement_tells_what_serves_its_sinks(measured):
    found = measured.sinks
    assert found.tokens["token"].to_list() == [0]
    assert found.activations.row(0)[:2] == (0, 5)
    runs = polars.concat([measured.curve, measured.refined]).filter(polars.col("kind") == "trace")
    assert found.served.select("importance", "size", "n_edges").equals(
        runs.select("importance", "size", "n_edges")
    )
    for name, size, n_edges, read, own in found.served.iter_rows():
        graph = measured.session.graphs[name]
        kinds = kinds_of(graph, [0])[graph.trace(n_edges=n_edges).mask]
        assert (read, own) == ((kinds == READ).sum(), (kinds == OWN).sum())
        assert found.share_of_trace(name, size) == (read + own) / n_edges
    kinds = kinds_of(measured.session.first, [0])
    assert found.share_of_graph == (kinds > 0).mean()
    with pytest.raises(InputError, match="no trace by 'l1'"):
        found.share_of_trace("l1", 0.123)


def test_densities_without_sinks_are_the_same_runs_counted_by_the_other_edges(measured):
    default = copy.deepcopy(measured.density)
    for name, density in measured.density_in("edges_without_sinks").items():
        graph = measured.session.graphs[name]
        others = kinds_of(graph, [0]) == 0
        points = []
        for table in (measured.curve, measured.refined):
            own = table.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
            for n_edges, tv in own.select("n_edges", "tv").sort("n_edges").iter_rows():
                share = graph.trace(n_edges=n_edges).mask[others].sum() / others.sum()
                points.append((max(share, SMALLEST_SIZE), tv))
        known = dict(zip(density.sizes, density.tv, strict=True))
        known |= dict(zip(density.refined_sizes, density.refined_tv, strict=True))
        assert known == pytest.approx(dict(points))
        assert density.size_at(0.1) != measured.density[name].size_at(0.1)
    assert measured.density == default


def test_a_row_of_a_study_tells_what_serves_its_sinks(measured):
    row = columns_of_sinks(measured, "fisher", 0.1)
    size = measured.density["fisher"].size_at(0.1)
    served = measured.sinks.served.filter(importance="fisher", size=size).row(0, named=True)
    serving = served["read"] + served["own"]
    every = measured.sinks.n_read + measured.sinks.n_own
    assert row["n_sinks"] == 1
    assert row["sink_share"] == every / measured.graph.n_edges
    assert row["sink_share_of_trace"] == serving / served["n_edges"]
    others = (served["n_edges"] - serving) / (measured.graph.n_edges - every)
    assert row["size_at_without_sinks"] == pytest.approx(others, rel=1e-12)
    assert 0 < row["sink_share"] != row["sink_share_of_trace"] > 0


def test_without_a_sink_the_densities_are_those_by_edges(demo):
    m = dm.measure(demo, "The captain looked at the sea and the sea was calm", sizes=SIZES)
    assert m.sinks.tokens.is_empty()
    assert m.sinks.served.is_empty()
    assert m.sinks.share_of_graph == m.sinks.share_of_trace("l1", 0.2) == 0
    assert m.density_in("edges_without_sinks") == m.density_in("edges")


def test_sinks_are_stored(measured, tmp_path):
    measured.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    for name in ("tokens", "activations", "served"):
        assert getattr(loaded.sinks, name).equals(getattr(measured.sinks, name))
    assert (loaded.sinks.n_read, loaded.sinks.n_own) == (measured.sinks.n_read, measured.sinks.n_own)
    densities = (m.density_in("edges_without_sinks") for m in (loaded, measured))
    assert next(densities) == next(densities)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "m.json").read_bytes()


def test_a_file_of_an_older_version_has_none(measured, tmp_path):
    measured.save(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    del document["sinks"]
    (tmp_path / "m.json").write_text(json.dumps(document))
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.sinks is None
    assert loaded.density == measured.density
    with pytest.raises(InputError, match="sinks were not recorded"):
        loaded.density_in("edges_without_sinks")
    assert "sink" not in printed(show_measurement(loaded, full=True))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((), 5, "sinks must be an object"),
        (("tokens",), [], "sinks.tokens must be an object"),
        (("tokens", "token"), [99], "sinks.tokens.token is outside input.ids"),
        (("tokens", "heads"), ["a"], "sinks.tokens.heads"),
        (("tokens", "heads"), [0.5, 0.5], "sinks.tokens differ in length"),
        (("activations", "dimension"), None, "sinks.activations.dimension"),
        (("served", "own"), [], "sinks.served differ in length"),
        (("served",), {}, "sinks.served.importance is missing"),
        (("n_edges",), 7, "sinks.n_edges"),
        (("n_read",), -1, "sinks.n_read"),
        (("n_own",), 10**6, "more than the edges"),
    ],
)
def test_damaged_sinks_are_refused(measured, tmp_path, place, value, message):
    measured.save(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    inside = {"sinks": document["sinks"]}
    for key in (path := ("sinks", *place))[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    document["sinks"] = inside["sinks"] if not place else document["sinks"]
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(StorageError, match=message):
        dm.load_measurement(tmp_path / "m.json")


def test_served_must_hold_every_trace_of_the_curve_and_no_more_edges_than_it(measured, tmp_path):
    measured.save(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    served = document["sinks"]["served"]
    for change, message in (
        ({name: column[1:] for name, column in served.items()}, "lacks the trace of"),
        (served | {"read": [n + 10**6 for n in served["read"]]}, "more edges than the trace"),
    ):
        damaged = document | {"sinks": document["sinks"] | {"served": change}}
        (tmp_path / "m.json").write_text(json.dumps(damaged))
        with pytest.raises(StorageError, match=message):
            dm.load_measurement(tmp_path / "m.json")


def test_a_long_input_has_none(demo, monkeypatch):
    monkeypatch.setattr("densitometer.graph.tiled.tiles.STORED_EDGES", 1)
    m = dm.measure(demo, "The captain looked at the sea", importance="l1", sizes=[0.3, 1.0])
    assert m.sinks is None
    with pytest.raises(InputError, match="sinks were not recorded"):
        m.density_in("edges_without_sinks")


def test_sinks_are_shown(measured, sinking, demo):
    assert "sink" not in printed(show_measurement(measured))
    text = printed(show_measurement(measured, full=True))
    assert max(map(len, text.splitlines())) <= 80
    share = measured.sinks.tokens["heads"].item()
    assert f"(token 0; {100 * share:.0f} % of the heads attend to it)" in text
    assert f"{100 * measured.sinks.share_of_graph:.3g} % of all" in text
    ratio = measured.sinks.activations["ratio"][0]
    assert f"5 ({ratio:,.0f} times the median; token 0, layers 0 to 2)" in text
    report = printed(show_report(dm.check_model(sinking)))
    assert "of the heads attend to it)" in report
    assert "times the median; token 0, layers 0 to 2)" in report
    facts = dm.check_model(demo).facts
    assert facts["sink tokens"] == facts["massive dimensions"] == "none"


def test_a_picture_names_its_sink(measured, demo):
    texts = [text.get_text() for text in plot_curve(measured).axes[0].texts]
    name = min(measured.density, key=lambda name: measured.density[name].size_at(0.1))
    share = measured.sinks.share_of_trace(name, measured.density[name].size_at(0.1))
    (line,) = (text for text in texts if text.startswith("sink"))
    assert f"{100 * measured.sinks.share_of_graph:.2g} % of all edges" in line
    assert f"{100 * share:.2g} % of the trace by {name} (TV ≤ 0.1)" in line
    without = plot_curve(dm.measure(demo, "The captain looked", sizes=SIZES))
    assert not any(text.get_text().startswith("sink") for text in without.axes[0].texts)
