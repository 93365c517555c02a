"""The public face: models and texts in any form, and what a trace tells of itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy
import polars
import pytest
import torch
from conftest import IDS

import densitometer as dm

TEXT = "The captain looked at the sea"


def test_a_model_may_be_what_load_model_takes(demo, make_model):
    module = make_model("llama").module
    keywords = {"importance": "l1", "sizes": [0.5, 1.0], "baselines": ()}
    named = dm.measure("demo", TEXT, **keywords)
    assert named.curve.equals(dm.measure(demo, TEXT, **keywords).curve)
    assert dm.build_graph(module, IDS).n_edges == dm.build_graph(make_model("llama"), IDS).n_edges
    table = dm.measure_positions("demo", TEXT, sizes=[0.5, 1.0])
    assert table.equals(dm.measure_positions(demo, TEXT, sizes=[0.5, 1.0]))
    assert dm.check_model(module, IDS[:5]).passed
    graph = dm.build_graph(demo, TEXT)
    trace = graph.trace(size=0.5)
    torch.testing.assert_close(dm.reconstruct(demo, graph, [trace]), trace.logits()[None])
    for wrong in (3, None, ["demo"]):
        with pytest.raises(dm.DensitometerError):
            dm.measure(wrong, TEXT)


def test_a_text_may_be_what_a_tokenizer_returns(demo):
    want = demo.encode(TEXT)
    for given in (demo.tokenizer(TEXT), demo.tokenizer(TEXT, return_tensors="pt"), demo.tokenizer([TEXT])):
        assert demo.encode(given) == want
    for given in (torch.tensor(want), torch.tensor([want]), numpy.array(want)):
        assert demo.encode(given) == want
    with pytest.raises(dm.DensitometerError):
        demo.encode(demo.tokenizer([TEXT, TEXT]))


def test_a_model_says_where_and_in_what_it_is(make_model):
    model = make_model("llama")
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert model.config is model.module.config


def test_a_trace_has_its_edges_components_and_logits(demo):
    graph = dm.build_graph(demo, TEXT, importance="fisher")
    trace = graph.trace(size=0.2)
    edges, every = trace.edges(), graph.edges()
    assert edges.columns == every.columns
    assert edges["edge"].to_list() == every["edge"].to_numpy()[trace.mask].tolist()
    found = trace.components()
    assert found["n_edges"].sum() == trace.n_edges
    assert found["importance_share"].sum() == pytest.approx(
        edges["importance"].sum() / every["importance"].sum()
    )
    row = found.filter(kind="attention").sort("n_edges").row(-1, named=True)
    own = (
        (polars.col("layer") == row["layer"])
        & (polars.col("kind") == "attention")
        & (polars.col("head") == row["head"])
    )
    assert row["n_edges"] == edges.filter(own).height
    assert row["edge_share"] == pytest.approx(edges.filter(own).height / every.filter(own).height)
    assert (graph.trace(size=1.0).components()["edge_share"] == 1).all()
    torch.testing.assert_close(trace.logits(), dm.reconstruct(demo, graph, [trace])[0])
    frozen = dm.reconstruct(demo, graph, [trace], attention="frozen")[0]
    torch.testing.assert_close(trace.logits(attention="frozen"), frozen)
    assert not torch.equal(trace.logits(), trace.logits(attention="frozen"))
    with pytest.raises(ValueError, match="unknown attention 'warm'"):
        trace.logits(attention="warm")


def test_a_measurement_is_loaded_beside_where_it_is_saved(demo, tmp_path: Path):
    m = dm.measure(demo, TEXT, importance="l1", sizes=[0.5, 1.0])
    m.save(tmp_path / "m.json")
    assert dm.Measurement.load(tmp_path / "m.json").curve.equals(m.curve)


def test_what_a_measurement_is_of_is_typed_and_reads_as_its_document(demo, tmp_path: Path):
    ids = demo.encode(TEXT)
    m = dm.measure(demo, TEXT, position=3, importance="l1", sizes=[0.5, 1.0], baselines=(), seed=5)
    m.save(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    loaded = dm.load_measurement(tmp_path / "m.json")
    for name in ("model", "input", "graph", "next_token", "provenance"):
        record = getattr(m, name)
        assert dict(record) == document[name] == dict(getattr(loaded, name))
        for key, value in document[name].items():
            assert record[key] == value
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, next(iter(record)), None)
        with pytest.raises(KeyError):
            record["no such field"]
    assert (m.input.ids, m.input.position, m.graph.n_tokens) == (tuple(ids), 3, len(ids))
    assert (m.next_token.id, m.next_token.token) == (ids[4], m.input.tokens[4])
    assert m.provenance["seed"] == m.provenance.settings["seed"] == m.settings.seed == 5
    assert dm.measure(demo, TEXT, importance="l1", sizes=[1.0], baselines=()).next_token is None
    del document["provenance"]["torch"], document["provenance"]["seed"], document["model"]["fingerprint"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    old = dm.load_measurement(tmp_path / "old.json")
    assert (old.provenance.torch, old.model.fingerprint) == (None, None)
    assert "torch" not in old.provenance
    with pytest.raises(ValueError, match="setting seed cannot be read"):
        dm.replay(old, demo)
