"""Traces in other tools' forms, what is in them, and whether they are needed."""

from __future__ import annotations

import json
import math

import networkx
import numpy
import polars
import pytest
import torch
from conftest import IDS, PARALLEL, make_module
from transformers import AttentionInterface

import densitometer as dm
from densitometer._util.metrics import total_variation

pytestmark = pytest.mark.fast
TEXT = "The captain looked at the sea"


@pytest.fixture(scope="module")
def trace(demo) -> dm.Trace:
    return dm.build_graph(demo, TEXT, importance="fisher").trace(size=0.2)


@pytest.mark.parametrize("name", ["llama", "neox", "mixtral"])
def test_paths_in_the_graph_are_those_of_the_trace(make_model, name):
    graph = dm.build_graph(make_model(name), IDS, importance="fisher", position=5)
    trace = graph.trace(size=0.1)
    found = trace.to_networkx()
    assert found.number_of_edges() == trace.n_edges
    n_levels = len(graph.space.levels)
    assert n_levels == 3 * (1 if name in PARALLEL else 2)
    # every edge of a best-first trace lies on a path to the output
    output = f"{n_levels}:5"
    assert found.graph["output"] == output
    assert set(found.nodes) == networkx.ancestors(found, output) | {output}
    rows = {tuple(row) for row in trace.edges().select("layer", "kind", "head", "source", "target").rows()}
    edges = set()
    for source, target, data in found.edges(data=True):
        one, other = found.nodes[source], found.nodes[target]
        assert other["depth"] == one["depth"] + 1
        assert other["layer"] == data["layer"] == graph.space.levels[one["depth"]].layer
        assert (one["token"], other["token"]) == (
            graph.tokens[one["position"]],
            graph.tokens[other["position"]],
        )
        edges.add((data["layer"], data["kind"], data.get("head"), one["position"], other["position"]))
    assert edges == rows
    assert sum(d["importance"] for *_, d in found.edges(data=True)) == pytest.approx(
        trace.edges()["importance"].sum()
    )


def test_graphml_and_json_hold_the_graph(trace, tmp_path):
    want = trace.to_networkx()
    trace.write_json(tmp_path / "trace.json")
    document = json.loads((tmp_path / "trace.json").read_text())
    assert document["schema"] == "densitometer.trace/1"
    read = networkx.node_link_graph(document, edges="links")
    assert networkx.utils.graphs_equal(read, want)
    trace.write_graphml(tmp_path / "trace.graphml")
    other = networkx.read_graphml(tmp_path / "trace.graphml", force_multigraph=True)
    assert set(other.nodes) == set(want.nodes)
    assert sorted(other.edges()) == sorted(want.edges())
    assert json.loads(other.graph["tokens"]) == want.graph["tokens"]
    for name, node in other.nodes(data=True):
        assert node["token"] == want.nodes[name]["token"]
    with pytest.raises(dm.DensitometerError, match="cannot write"):
        trace.write_json(tmp_path / "nowhere" / "trace.json")


def test_graphml_holds_tokens_that_xml_cannot(make_model, tmp_path):
    graph = dm.build_graph(make_model("llama"), IDS)
    object.__setattr__(graph, "tokens", ("\x00", "\ud800", "<&>", "\u202e", "é", "\n", "x"))
    graph.trace(size=0.5).write_graphml(tmp_path / "t.graphml")
    read = networkx.read_graphml(tmp_path / "t.graphml", force_multigraph=True)
    tokens = {node["position"]: node["token"] for _, node in read.nodes(data=True)}
    assert [tokens[i] for i in (0, 1, 2, 3, 4, 6)] == ["\\x00", "\\ud800", "<&>", "\\u202e", "é", "x"]


def test_masks_in_hooks_of_ones_own_give_our_logits():
    """A forward pass that knows nothing of densitometer but the masks."""
    module = make_module("llama").eval()
    trace = dm.build_graph(module, IDS, importance="fisher").trace(size=0.4)
    masks, ours = trace.to_mask(), trace.logits()
    assert [sorted(mask) for mask in masks] == [
        ["attention", "mlp", "residual_attention", "residual_mlp"]
    ] * 3

    def attend(attention, query, key, value, mask, scaling, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = (query @ key.mT * scaling).masked_fill(~torch.ones(7, 7).tril().bool(), -math.inf)
        weights = scores.softmax(-1) * masks[attention.layer_idx]["attention"]
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("masked", attend)
    module.set_attn_implementation("masked")
    for layer, mask in zip(module.model.layers, masks, strict=True):

        def forward(x, layer=layer, on=mask, **arguments):
            attention, _ = layer.self_attn(layer.input_layernorm(x), **arguments)
            x = on["residual_attention"][:, None] * x + attention
            mlp = layer.mlp(layer.post_attention_layernorm(x))
            return on["residual_mlp"][:, None] * x + on["mlp"][0][:, None] * mlp

        layer.forward = forward
    with torch.no_grad():
        logits = module(torch.tensor([IDS]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4)


def test_a_component_s_effect_is_that_of_the_model_without_it(demo, trace):
    graph = trace.graph
    table = trace.components(effect=True)
    assert table.columns[-1] == "effect"
    assert table.drop("effect").equals(trace.components())
    edges = graph.edges()
    full = demo.adapter.logits(graph.input_ids)
    for row in table.sort("effect").gather_every(7).iter_rows(named=True):
        own = (edges["layer"] == row["layer"]) & (edges["kind"] == row["kind"])
        own &= edges["head"].eq_missing(row["head"])
        without = graph.trace(mask=~own.to_numpy()).logits()
        assert row["effect"] == pytest.approx(float(total_variation(full, without[None])), abs=1e-6)
        inside = trace.edges().filter(own.filter(polars.Series(trace.mask)))
        assert row["n_read"] == inside["source"].n_unique()
        by_source = inside.group_by("source").agg(polars.col("importance").sum()).sort("importance")
        assert row["reads"] == graph.tokens[by_source["source"][-1]]


def test_tokens_add_up_to_the_trace(trace):
    table = trace.tokens()
    assert table["n_edges"].sum() == trace.n_edges
    assert table["importance_share"].sum() == pytest.approx(1)
    assert table["importance_share"].is_sorted(descending=True)
    edges = trace.edges()
    for row in table.iter_rows(named=True):
        assert row["token"] == trace.graph.tokens[row["position"]]
        read = edges.filter(
            (polars.col("kind") == "attention") & (polars.col("source") != polars.col("target"))
        )
        assert row["n_read"] == read.filter(source=row["position"]).height


def test_necessity_is_the_model_without_the_trace(demo, trace):
    table = trace.necessity(n_random=2, seed=5)
    assert table["removed"].to_list() == ["trace", "random", "random"]
    assert table["seed"].to_list() == [None, 5, 6]
    assert (table["n_edges"] == trace.n_edges).all()
    full = demo.adapter.logits(trace.graph.input_ids)
    assert table["tv"][0] == pytest.approx(
        float(total_variation(full, trace.inverse().logits()[None])), abs=1e-6
    )
    drawn = trace.graph.random_graph(6).trace(n_edges=trace.n_edges).inverse()
    assert table["tv"][2] == pytest.approx(float(total_variation(full, drawn.logits()[None])), abs=1e-6)
    assert trace.necessity(n_random=0).height == 1
    with pytest.raises(ValueError, match="-1"):
        trace.necessity(n_random=-1)


def test_components_of_a_measurement_are_those_of_its_tightest_trace(demo, monkeypatch):
    m = dm.measure(demo, TEXT, sizes=[0.1, 0.3, 0.6, 1.0])
    table = m.components()
    name = m.tightest()
    want = (
        m.with_graphs().session.graphs[name].trace(size=m.density[name].size_at(0.1)).components(effect=True)
    )
    assert table.equals(want.sort("effect", descending=True, maintain_order=True))
    by_share = m.components("l1", 0.05, effect=False)
    assert by_share["importance_share"].is_sorted(descending=True)
    assert by_share["n_edges"].sum() == numpy.floor(0.05 * m.graph.n_edges)
    with pytest.raises(ValueError, match="'l2' was not measured"):
        m.components("l2")
    monkeypatch.setattr("densitometer.graph.tiled.tiles.STORED_EDGES", 10)
    with pytest.raises(ValueError, match=r"Trace\.components needs every edge stored"):
        dm.measure(demo, TEXT, importance="l1", sizes=[0.3, 1.0]).components()
