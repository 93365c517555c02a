"""The explorer's data, pages and server, without a browser: every number in the payload against a plain loop."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import http.client
import json
import math
import re
import socket
import threading
from pathlib import Path

import numpy
import polars
import pytest
import torch
from command import call
from conftest import IDS

import densitometer as dm
from densitometer.viewer import answers as answers_room
from densitometer.viewer import payload as payload_room
from densitometer.viewer.answers import KEPT, Answers, held_bytes, opened
from densitometer.viewer.page import measurement_page, script
from densitometer.viewer.payload import SCHEMA, TracesOfTokens, decode, encode, tokens_payload, traces_payload
from densitometer.viewer.reading import Node, Reader, Writer
from densitometer.viewer.server import HOST, MOST_BODY_BYTES, application, bind

ROOT = Path(__file__).parents[1]
SIZES = [0.02, 0.07, 0.3, 1.0]


def unpack(packed: dict) -> numpy.ndarray:
    """An array of the payload, as the page reads it."""
    values = numpy.frombuffer(base64.b64decode(packed["data"]), dtype="<" + packed["dtype"])
    values = values.reshape(packed["shape"])
    return values.cumsum(axis=0) if packed.get("delta") else values


@pytest.fixture(scope="module", params=["qwen3", "neox", "gemma2"])
def measured(request, make_model):
    """A sequential, a parallel and a branch-normed model, two scores."""
    return dm.measure(
        make_model(request.param), IDS, importance=["l1", "fisher"], sizes=SIZES, eps=0.5, keep_graphs=True
    )


@pytest.fixture(scope="module")
def view(measured):
    return traces_payload(measured)["views"][0]


# --- payload ------------------------------------------------------------------------------------------


def test_ranks_give_the_traces_of_the_library(measured, view):
    edges = view["edges"]
    rows = unpack(edges["edge"])
    assert edges["kept"] == edges["exact_to"] == measured.graph["n_edges"] == rows.size
    for name, graph in measured.session.graphs.items():
        table = graph.edges()
        rank = unpack(edges["orders"][name]["rank"])
        assert numpy.array_equal(
            unpack(edges["orders"][name]["importance"]), table["importance"].to_numpy()[rows]
        )
        for n in (1, 2, 17, graph.n_edges // 3, graph.n_edges):
            mask = numpy.zeros(graph.n_edges, dtype=bool)
            mask[rows[rank < n]] = True
            assert numpy.array_equal(mask, graph.trace(n_edges=n).mask)
        kinds = numpy.array(view["kinds"])[unpack(edges["kind"])]
        assert kinds.tolist() == table["kind"].to_numpy()[rows].tolist()
        for column in ("source", "target"):
            assert numpy.array_equal(unpack(edges[column]), table[column].to_numpy()[rows])
        assert numpy.array_equal(unpack(edges["head"]), table["head"].fill_null(-1).to_numpy()[rows])
        layers = numpy.array([level["layer"] for level in view["levels"]])[unpack(edges["level"])]
        assert numpy.array_equal(layers, table["layer"].to_numpy()[rows])


def test_counts_and_costs_are_those_of_a_plain_loop(measured, view):
    grid = unpack(view["grid"])
    components = view["components"]
    assert (numpy.diff(grid) > 0).all()
    assert grid[-1] == measured.graph["n_edges"]
    for name, graph in measured.session.graphs.items():
        assert {p["n_edges"] for p in view["curves"][name] if p["n_edges"]} <= set(grid.tolist())
        counts = unpack(components["counts"][name])
        for i in (0, grid.size // 2, grid.size - 1):
            trace = graph.trace(n_edges=int(grid[i]))
            want: dict[tuple, int] = {}
            for row, on in zip(graph.edges().iter_rows(named=True), trace.mask, strict=True):
                key = (row["layer"], row["kind"], -1 if row["head"] is None else row["head"])
                want[key] = want.get(key, 0) + int(on)
            for c, n in enumerate(counts[i]):
                layer = view["levels"][components["level"][c]]["layer"]
                key = (layer, view["kinds"][components["kind"][c]], components["head"][c])
                assert want.get(key, 0) == n
            for currency, share in (
                ("flops", trace.flops_share),
                ("parameters", trace.parameter_share),
            ):
                assert unpack(view["costs"][name][currency])[i] == pytest.approx(share, abs=1e-6)
        assert sum(components["n_edges"]) == graph.n_edges


def test_a_budget_keeps_the_first_edges_of_every_order_and_counts_the_rest(measured):
    n_edges = measured.graph["n_edges"]
    budget = n_edges // 4
    view = traces_payload(measured, edge_budget=budget)["views"][0]
    edges = view["edges"]
    exact = edges["exact_to"]
    orders = [graph.order for graph in measured.session.graphs.values()]
    assert edges["kept"] <= budget < len({int(e) for order in orders for e in order[: exact + 1]})
    for name, graph in measured.session.graphs.items():
        rank = unpack(edges["orders"][name]["rank"])
        kept = set(unpack(edges["edge"])[rank < exact].tolist())
        assert kept == set(numpy.flatnonzero(graph.trace(n_edges=exact).mask).tolist())
        histogram = view["histograms"][name]
        assert sum(histogram["all"]) + histogram["zero"] == n_edges
        assert sum(histogram["kept"]) <= edges["kept"]
        assert unpack(view["components"]["counts"][name])[-1].sum() == n_edges


def test_the_tokens_of_a_trace_are_those_of_its_reconstruction(measured, view):
    for name, graph in measured.session.graphs.items():
        for point in view["curves"][name][::4]:
            logits = dm.reconstruct(graph.model, graph, [graph.trace(n_edges=point["n_edges"])])[0]
            top = logits.softmax(-1).topk(10)
            assert [t["token"] for t in point["top"]] == [str(i) for i in top.indices.tolist()]
            assert [t["probability"] for t in point["top"]] == pytest.approx(top.values.tolist(), abs=1e-6)


def test_a_target_and_a_counterfactual_are_those_of_plain_runs(make_model):
    model = make_model("qwen3")
    other = [IDS[0], IDS[1] + 1, *IDS[2:]]
    m = dm.measure(
        model, IDS, importance="l1", sizes=SIZES, target=(5, 9), counterfactual=other, keep_graphs=True
    )
    payload = traces_payload(m)
    view = decode(encode(payload))["views"][0]

    def difference(ids: list[int]) -> float:
        logits = model.module(torch.tensor([ids])).logits[0, -1].detach()
        return float(logits[5] - logits[9])

    full, nothing = difference(IDS), difference(other)
    assert view["target"]["kind"] == "logit difference"
    assert view["target"]["full"] == pytest.approx(full, abs=1e-4)
    assert view["target"]["nothing"] == pytest.approx(nothing, abs=1e-4)
    assert view["counterfactual"]["tokens"] == model.pieces(other)
    graph = m.session.graphs["l1"]
    for point, run in zip(
        view["curves"]["l1"],
        Reader(m).run([graph.trace(n_edges=p["n_edges"]) for p in view["curves"]["l1"]]),
        strict=True,
    ):
        logits = graph.trace(n_edges=point["n_edges"]).logits()
        for value in (point, run):
            assert value["target"] == pytest.approx(float(logits[5] - logits[9]), abs=1e-4)
            assert value["faithfulness"] == pytest.approx(
                (value["target"] - nothing) / (full - nothing), abs=1e-3
            )
    assert view["density"]["l1"]["faithful_at"] == m.density["l1"].size_at(0.1, by="faithfulness")


def test_folders_are_shown_by_their_own_names_unless_these_are_alike(measured):
    def named(*names: str) -> list[str]:
        models = [dataclasses.replace(measured.model, name=name) for name in names]
        pages = traces_payload([dataclasses.replace(measured, model=m) for m in models])
        return [view["model"]["name"] for view in pages["views"]]

    assert named("./one/last", "org/last") == ["last", "org/last"]
    assert named("./one/last", "./two/last") == ["./one/last", "./two/last"]
    assert named("./one/last", "./one/last") == ["last", "last"]


def test_without_a_target_nothing_is_said_of_one(view):
    assert view["target"] is None
    assert view["counterfactual"] is None
    assert "faithfulness" not in view["curves"]["l1"][0]
    assert "faithful_at" not in view["density"]["l1"]


def test_a_measurement_from_a_file_has_its_curve_and_no_trace(measured, tmp_path):
    measured.save(tmp_path / "m.json")
    view = traces_payload(dm.load_measurement(tmp_path / "m.json"))["views"][0]
    assert view["edges"] is None
    assert [p["tv"] for p in view["curves"]["l1"]][-1] < 1e-3


def test_encode_and_decode_are_exact_and_refuse_what_is_damaged(measured):
    payload = traces_payload(measured)
    data = encode(payload)
    assert decode(data) == payload
    assert data == encode(payload)
    for cut in (data[:-20], data[: len(data) // 2], b"", b"not gzip"):
        with pytest.raises(dm.DensitometerError, match="cut short or damaged"):
            decode(cut)
    with pytest.raises(dm.DensitometerError, match=re.escape(SCHEMA)):
        decode(gzip.compress(b'{"schema": "densitometer.payload/2"}'))


# --- readings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "neox", "gemma2", "opt", "cohere", "granite", "gpt2"])
def test_the_lens_at_the_output_is_the_model(make_model, name):
    model = make_model(name)
    graph = dm.build_graph(model, IDS)
    records = graph.forward.records
    got = model.adapter.read_out(records[-1].mlp_sum[-1:])
    assert torch.allclose(got[0].cpu(), model.adapter.logits(graph.forward.ids), atol=2e-4)
    assert len(model.adapter.blocks) == len(records)  # and the blocks are what they were
    assert torch.equal(model.adapter.logits(IDS), model.adapter.logits(IDS))


def test_lens_and_writes_against_the_modules_called_by_hand(make_model):
    module = make_model("qwen3").module
    measured = dm.measure(
        make_model("qwen3"), IDS, importance="l1", sizes=[1.0], baselines=(), keep_graphs=True
    )
    reader = Reader(measured)
    assert reader.lens_gap < 1e-5
    levels = list(reader.first.forward.levels())
    with torch.no_grad():
        stream = levels[3].node[4]  # after the second layer's MLP, token 4
        want = module.lm_head(module.model.norm(stream)).softmax(-1).topk(5)
        ids, probabilities = reader.nodes([Node(4, 4)])
        assert ids[0].tolist() == want.indices.tolist()
        assert probabilities[0] == pytest.approx(want.values.numpy(), abs=1e-6)
        first = module.model.embed_tokens.weight[IDS[2]]
        want = module.lm_head(module.model.norm(first)).argmax()
        assert reader.nodes([Node(0, 2)])[0][0, 0] == want

        # an edge of layer 2, head 3, source 1 into target 5; an MLP of layer 0 at token 6
        size = levels[-1].node[-1].norm()
        for writer, vector in (
            (Writer(4, 3, 1, -1), levels[4].attention_vectors(3)[5, 1]),
            (Writer(1, -1, 6, -1), levels[1].mlp[6]),
        ):
            scaled = vector * size / vector.norm()
            direct = (
                scaled / scaled.pow(2).mean().sqrt() * module.model.norm.weight
            ) @ module.lm_head.weight.T
            ids, changes = reader.writes([writer])
            assert ids[0, :5].tolist() == direct.topk(5).indices.tolist()
            assert ids[0, 5:].tolist() == direct.topk(5, largest=False).indices.tolist()
            assert changes[0] == pytest.approx(direct[ids[0]].numpy(), rel=1e-3, abs=1e-4)


def test_a_bias_of_norm_or_head_does_not_count_as_written(make_model):
    measured = dm.measure(
        make_model("neox"), IDS, importance="l1", sizes=[1.0], baselines=(), keep_graphs=True
    )
    module, reader = measured.session.model.module, Reader(measured)
    vector = list(reader.first.forward.levels())[1].mlp[3]
    with torch.no_grad():
        direct = (vector - vector.mean()) * module.gpt_neox.final_layer_norm.weight @ module.lm_head.weight.T
    assert reader.writes([Writer(1, -1, 3, -1)])[0][0, :5].tolist() == direct.topk(5).indices.tolist()


def test_chosen_edges_are_run_as_chosen(measured):
    reader = Reader(measured)
    graph = measured.session.graphs["fisher"]
    table = graph.edges()
    n = graph.n_edges // 3
    wanted = graph.trace(n_edges=n).mask.copy()
    pinned = [int(e) for e in numpy.flatnonzero(~wanted)[[0, 5]]]
    hidden = [int(e) for e in numpy.flatnonzero(wanted)[[1, 7, 11]]]
    off = table.filter(
        (polars.col("kind") == "attention") & (polars.col("layer") == 1) & (polars.col("head") == 2)
    )
    wanted[off["edge"].to_numpy()] = False
    wanted[hidden] = False
    wanted[pinned] = True
    trace = reader.chosen("fisher", n, pinned, hidden, [(1, "attention", 2)])
    assert numpy.array_equal(trace.mask, wanted)
    point = reader.run([trace])[0]
    logits = dm.reconstruct(graph.model, graph, [trace])[0]
    full = graph.model.adapter.logits(IDS)
    assert point["tv"] == pytest.approx(
        0.5 * float((logits.softmax(-1) - full.softmax(-1)).abs().sum()), abs=1e-6
    )
    assert point["n_edges"] == int(wanted.sum())
    assert point["top"][0]["token"] == str(int(logits.argmax()))


def test_a_measurement_is_taken_up_again_with_its_model_and_no_other(measured, make_model, tmp_path):
    measured.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    with pytest.raises(dm.DensitometerError, match="with_model"):
        Reader(loaded)
    again = loaded.with_model(measured.session.model)
    for name, graph in measured.session.graphs.items():
        assert numpy.array_equal(again.session.graphs[name].order, graph.order)
    assert traces_payload(again)["views"][0]["edges"] == traces_payload(measured)["views"][0]["edges"]
    other = make_model("llama" if measured.model["architecture"] != "LlamaForCausalLM" else "qwen3", 1)
    with pytest.raises(dm.DensitometerError, match="not the model that was measured"):
        loaded.with_model(other)


# --- answers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(make_model):
    model = make_model("qwen3")
    answers = Answers([model])
    payload = answers.payload(dm.measure(model, IDS, importance="l1", sizes=SIZES, eps=0.5))
    return answers, payload["views"][0]["id"]


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("format", {}, "unknown question 'format'"),
        ("run", [], "expected an object"),
        ("run", {"id": 3}, "id must be of type str"),
        ("run", {"id": "gone"}, "no longer in memory"),
        ("run", {"importance": "l1", "n_edges": "all"}, "n_edges must be of type int"),
        ("run", {"importance": "l1", "n_edges": True}, "n_edges must be of type int"),
        ("run", {"importance": "l1", "n_edges": 10**9}, "n_edges must be from 0"),
        ("run", {"importance": "fisher", "n_edges": 3}, "was not measured"),
        ("run", {"importance": "l1", "n_edges": 3, "pinned": [10**9]}, "edges must be from 0"),
        ("run", {"importance": "l1", "n_edges": 3, "hidden": [-1]}, "edges must be from 0"),
        ("run", {"importance": "l1", "n_edges": 3, "hidden": ["1"]}, "hidden must be a list of int"),
        ("run", {"importance": "l1", "n_edges": 3, "hidden_components": [[1]]}, "a component must be"),
        ("edge", {"edge": -1}, "edges must be from 0"),
        ("node", {"row": 99, "token": 0}, "no node in row 99"),
        ("measure", {"text": "", "importance": ["l1"]}, "tokenizer"),
        ("measure", {"text": "a", "importance": "l1"}, "importance must be a list of str"),
        ("measure", {"text": "a" * 300_000, "importance": ["l1"]}, "300,000 characters"),
        ("trace_at", {"position": 99, "importance": "l1"}, "out of range"),
    ],
)
def test_a_bad_question_is_told_what_is_wrong_with_it(answers, method, parameters, message):
    own, name = answers
    if isinstance(parameters, dict):
        parameters = {"id": name} | parameters
    with pytest.raises(dm.DensitometerError, match=re.escape(message)):
        own.ask(method, parameters)


def test_edges_and_nodes_are_answered_as_the_payload_has_them(answers, make_model):
    own, name = answers
    reader = Reader(dm.measure(make_model("qwen3"), IDS, importance="l1", sizes=SIZES, keep_graphs=True))
    edge = int(numpy.flatnonzero(reader.first.edges()["kind"] == "mlp")[2])
    got = own.ask("edge", {"id": name, "edge": edge})
    ids, changes = reader.writes([reader.writer_of(edge)])
    assert got == {"tokens": [str(i) for i in ids[0]], "changes": changes[0].tolist()}
    assert len(own.ask("node", {"id": name, "row": 2, "token": 3})["probabilities"]) == 5
    with pytest.raises(dm.DensitometerError, match="carries its source"):
        own.ask(
            "edge",
            {"id": name, "edge": int(numpy.flatnonzero(reader.first.edges()["kind"] == "residual_mlp")[0])},
        )


def test_the_text_and_any_of_its_tokens_are_answered(answers):
    own, name = answers
    payload = own.ask("tokens", {"id": name, "importance": "l1"})
    assert payload["kind"] == "tokens"
    assert payload["columns"]["position"] == list(range(len(IDS)))
    at = own.ask("trace_at", {"id": payload["id"], "position": 4, "importance": "l1"})["views"][0]
    assert at["n_tokens_run"] == 5
    assert at["density"]["l1"]["size_at"] == pytest.approx(payload["columns"]["size_at"][4], rel=0.06)


def test_several_models_are_asked_each_about_its_own(make_model):
    models = [make_model("qwen3"), make_model("qwen3", 1)]
    own = Answers(models)
    payload = own.payload([dm.measure(model, IDS, importance="l1", sizes=SIZES, eps=0.5) for model in models])
    names = [view["id"] for view in payload["views"]]
    for name, model in zip(names, models, strict=True):
        run = own.ask("run", {"id": name, "importance": "l1", "n_edges": 40})
        graph = dm.build_graph(model, IDS)
        logits = dm.reconstruct(model, graph, [graph.trace(n_edges=40)])[0]
        assert run["top"][0]["probability"] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-5)
        along = own.ask("tokens", {"id": name, "importance": "l1"})
        want = dm.measure_positions(model, IDS)["auc_log"].to_list()
        assert along["columns"]["auc_log"] == pytest.approx(want, abs=1e-5)
        at = own.ask("trace_at", {"id": name, "position": 3, "importance": "l1"})["views"][0]
        assert at["entropy"] == pytest.approx(
            dm.measure(model, IDS, sizes=[1.0], position=3).entropy, rel=1e-5
        )


def test_a_page_opens_with_a_text_or_a_file_under_several_models(demo, tmp_path, monkeypatch):
    loaded: list[str] = []
    load = lambda name: loaded.append(name) or demo  # noqa: E731
    text = "A ship lay"
    measurements, models = opened(text, load, {"importance": "l1"}, None, ["demo-parallel"])
    assert (loaded, len(models), len(measurements)) == (["demo", "demo-parallel"], 2, 2)
    measurements[0].save(tmp_path / "m.json")
    loaded.clear()
    measurements, models = opened(
        str(tmp_path / "m.json"), load, {"importance": "l1"}, "other", ["one", "two"]
    )
    assert loaded == ["other", "one", "two"]
    assert [m.input["text"] for m in measurements] == [text] * 3
    views = Answers(models).payload(measurements)["views"]
    assert len({view["id"] for view in views}) == 3


def test_what_is_measured_beside_keeps_place_and_settings(make_model, demo, tmp_path):
    model = make_model("qwen3")
    saved = dm.measure(model, IDS, importance="l1", sizes=[0.3, 1.0], position=3, attention="frozen", seed=5)
    saved.save(tmp_path / "m.json")
    measurements, models = opened(
        str(tmp_path / "m.json"), lambda name: model, {"importance": "l1"}, None, ["other"]
    )
    assert [m.input["position"] for m in measurements] == [3, 3]
    assert [m.provenance["attention"] for m in measurements] == ["frozen"] * 2
    own = Answers(models)
    name = own.payload(measurements[0])["views"][0]["id"]
    at = own.ask("trace_at", {"id": name, "position": 4, "importance": "l1"})["views"][0]
    alike = dm.measure(model, IDS, importance="l1", position=4, attention="frozen", seed=5)
    tv = dict(alike.curve.filter(kind="trace").select("n_edges", "tv").iter_rows())
    for row in at["curves"]["l1"]:
        assert row["tv"] == pytest.approx(tv.get(row["n_edges"], row["tv"]), abs=1e-6)
    assert len(tv.keys() & {row["n_edges"] for row in at["curves"]["l1"]}) > 5
    dm.measure(demo, "A ship lay still", sizes=[1.0], position=1).save(tmp_path / "text.json")
    other = dm.Model(demo.module, _Letters(demo.tokenizer), "letters", None)
    load = {"demo": demo, "letters": other}
    with pytest.raises(dm.DensitometerError, match="cuts the text into other tokens"):
        opened(str(tmp_path / "text.json"), load.__getitem__, {"importance": "l1"}, "demo", ["letters"])


class _Letters:
    """A tokenizer that reads a letter at a time."""

    def __init__(self, tokenizer):
        self._own = tokenizer

    def __getattr__(self, name):
        return getattr(self._own, name)

    def __call__(self, text, **keywords):
        return {"input_ids": [i for letter in text for i in self._own(letter, **keywords)["input_ids"]]}


def test_only_the_latest_inputs_are_kept(make_model):
    model = make_model("qwen3")
    own = Answers([model])
    measured = dm.measure(model, IDS[:2], importance="l1", sizes=[1.0], baselines=(), keep_graphs=True)
    names = [own.payload(measured)["views"][0]["id"] for _ in range(KEPT + 1)]
    with pytest.raises(dm.DensitometerError, match="no longer in memory"):
        own.ask("node", {"id": names[0], "row": 0, "token": 0})
    own.ask("node", {"id": names[-1], "row": 0, "token": 0})


def test_inputs_are_kept_up_to_a_number_of_bytes(make_model, monkeypatch):
    model = make_model("qwen3")
    own = Answers([model])

    def asked(n: int) -> str:
        return own.ask("measure", {"text": " ".join("a" * n), "importance": ["l1"]})["views"][0]["id"]

    def measured(text, settings):
        ids = [3 + i % 90 for i in range(len(text.split()))]
        return [dm.measure(model, ids, sizes=[1.0], baselines=(), keep_graphs=True, **settings)]

    monkeypatch.setattr(own, "measured", measured)
    first = asked(30)
    alone = held_bytes(own._readers[first])
    assert alone > sum(g.importance.nbytes for g in own._readers[first].graphs.values())
    assert held_bytes([own._readers[first]] * 3) == alone  # each array once
    monkeypatch.setattr(answers_room, "KEPT_BYTES", int(2.5 * alone))
    names = [first, *(asked(30) for _ in range(4))]
    assert list(own._readers) == names[-2:]
    assert held_bytes(list(own._readers.values())) <= 2.5 * alone
    # reading a node builds the vectors of all edges, which count too
    monkeypatch.setattr(answers_room, "KEPT_BYTES", held_bytes(list(own._readers.values())))
    own.ask("node", {"id": names[-1], "row": 1, "token": 0})
    assert list(own._readers) == names[-1:]
    monkeypatch.setattr(answers_room, "KEPT_BYTES", 1)
    own.ask("node", {"id": names[-1], "row": 0, "token": 0})  # the latest stays, whatever its size


def test_a_models_name_cannot_turn_the_text_around_it(measured, make_model):
    name = "evil\u202egpj.exe\u2066\u200f"
    model = dataclasses.replace(measured.model, name=name, revision="\u202edet")
    page = traces_payload(dataclasses.replace(measured, model=model))["views"][0]
    table = dm.measure_positions(make_model("qwen3"), IDS, sizes=[1.0])
    turned = tokens_payload(table, label=f"{name} \u200d")
    html = dataclasses.replace(measured, model=model)._repr_html_()
    for text in (json.dumps(page, ensure_ascii=False), turned["label"], html):
        assert not set("\u202e\u2066\u200f") & set(text)
    assert page["model"]["name"] == r"evil\u202egpj.exe\u2066\u200f"
    assert r"evil\u202egpj.exe" in page["summary"]
    assert "\u200d" in turned["label"]  # a joiner of emoji is a part of a text
    fact = make_model("qwen3")
    assert "\u202e" not in dataclasses.replace(fact, name=name)._repr_html_()


def test_without_a_model_there_is_the_curve_and_a_clear_message(measured, tmp_path):
    measured.save(tmp_path / "m.json")

    def load(name: str) -> dm.Model:
        raise dm.load_model("/no/such/folder")

    with pytest.warns(UserWarning, match="the curve without traces"):
        (loaded,), models = opened(str(tmp_path / "m.json"), load, {"importance": "l1"})
    assert models == []
    with pytest.raises(dm.DensitometerError, match="no model is loaded"):
        Answers(models).ask("measure", {"text": "a b", "importance": ["l1"]})
    assert traces_payload(loaded)["views"][0]["edges"] is None


# --- pages --------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>window.hacked=1</script>", "</script><img src=x onerror=window.hacked=1>", "\"'`&lt;", "\u202eright\u202c",
    "שלום", "👩‍🚀", "\x00\x07\ud800",
]  # fmt: skip


def hostile(measured: dm.Measurement) -> dm.Measurement:
    """The measurement with tokens that would like to be something else than text."""
    tokens = [*HOSTILE[:-1], "\x00\x07", "</SCRIPT >", "\n", "ordinary"]  # a table holds no lone surrogate
    prediction = measured.prediction.with_columns(token=polars.Series(tokens[: measured.prediction.height]))
    n = len(measured.input.tokens)
    own = dataclasses.replace(measured.input, text="".join(HOSTILE), tokens=tuple((HOSTILE * n)[:n]))
    return dataclasses.replace(measured, input=own, prediction=prediction)


def test_a_page_holds_no_token_as_html(measured):
    page = measurement_page(hostile(measured))
    program = script()
    assert page.count("</script>") == 2  # the program's and the data's
    rest = page.replace(program, "")
    for token in ("hacked", "onerror", "שלום", "\x00"):
        assert token not in rest
    data = re.search(r'id="densitometer-payload">([A-Za-z0-9+/=]*)</script>', rest)[1]
    assert decode(base64.b64decode(data))["views"][0]["input"]["tokens"] == HOSTILE


def test_a_page_lets_only_its_own_script_run_and_nothing_be_fetched(measured):
    page = measurement_page(measured)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    assert "unsafe" not in policy
    assert not re.findall(r'(?:src|href)="(?!data:)', page.replace(script(), ""))


def test_the_token_page_needs_the_columns_of_measure_positions():
    table = polars.DataFrame({"position": [0], "token": ["a"]})
    with pytest.raises(dm.DensitometerError, match="auc_log"):
        tokens_payload(table)


def test_the_token_page_holds_nulls_and_extra_columns(make_model):
    table = dm.measure_positions(make_model("qwen3"), IDS, sizes=SIZES).with_columns(
        frequency=polars.lit(0.25)
    )
    payload = tokens_payload(table)
    assert payload["columns"]["frequency"] == [0.25] * len(IDS)
    assert payload["columns"]["surprisal"][-1] is None
    assert decode(encode(payload)) == payload


def test_traces_of_tokens_are_measured_when_asked_for_those_that_need_most_first(make_model, monkeypatch):
    model, measured = make_model("qwen3"), []
    whole = payload_room.measured

    def counted(*arguments, **keywords):
        measured.append(arguments[3])
        return whole(*arguments, **keywords)

    monkeypatch.setattr(payload_room, "measured", counted)
    asked = {"importance": ["l2", "l1"], "seed": 4, "attention": "frozen"}
    table, settings = dm.measure_positions(model, IDS, **asked), dm.MeasureSettings(**asked)
    traces = TracesOfTokens(model, table, settings, 4)
    own = table.filter(importance="l2")
    size = [1.0 if s is None else s for s in own["size_at"]]
    want = sorted(range(len(IDS)), key=lambda p: -size[p])[:4]
    assert list(traces) == want
    assert measured == []
    found = traces[want[1]]
    assert measured == [want[1]]
    assert found.density["l2"].size_at(0.1) == own["size_at"][want[1]]
    assert list(found.density) == ["l2", "l1"]
    assert (found.provenance["seed"], found.provenance["attention"]) == (4, "frozen")
    with pytest.raises(KeyError):
        traces[next(p for p in range(len(IDS)) if p not in want)]
    assert len(TracesOfTokens(model, table, settings, 0)) == 0


def test_traces_that_do_not_fit_the_page_are_left_out(make_model, monkeypatch):
    model = make_model("qwen3")
    table = dm.measure_positions(model, IDS, sizes=SIZES)
    traces = TracesOfTokens(model, table, dm.MeasureSettings("l1"))
    every = tokens_payload(table, traces=traces)
    assert [int(p) for p in every["views"]] == list(traces)
    sizes = [len(encode(view)) for view in every["views"].values()]
    budget = len(encode(every | {"views": {}})) + sum(sizes[:3]) + 10
    monkeypatch.setattr(payload_room, "PAYLOAD_BYTES", budget)
    some = tokens_payload(table, traces=traces)
    assert list(some["views"]) == list(every["views"])[:3]
    assert len(encode(some)) < budget


def test_traces_of_tokens_share_the_edges(make_model):
    model = make_model("qwen3")
    table = dm.measure_positions(model, IDS, sizes=SIZES)
    views = tokens_payload(
        table, traces=TracesOfTokens(model, table, dm.MeasureSettings("l1")), edge_budget=7 * 30
    )["views"]
    assert max(view["edges"]["kept"] for view in views.values()) == 30


def test_the_built_program_is_that_of_its_sources():
    folder = ROOT / "viewer"
    sources = (p.relative_to(folder).as_posix() for p in (folder / "src").rglob("*") if p.is_file())
    names = sorted([*sources, "package-lock.json", "vite.config.js"])
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode() + (folder / name).read_bytes() + b"\0")
    found = re.match(r"/\*! densitometer explorer, sources sha256 ([0-9a-f]{64}) \*/", script())
    assert found, "the built program does not say what it was built from"
    assert found[1] == digest.hexdigest(), "viewer/ has changed: run `make viewer` and commit what it builds"


def test_the_page_calls_an_importance_by_its_name():
    for path in sorted((ROOT / "viewer" / "src").rglob("*.ts")):
        assert not re.findall(r"\bscore\w*", path.read_text(encoding="utf-8"), re.IGNORECASE), path.name


def test_every_panel_is_one_file_with_a_place_of_its_own():
    places = []
    for path in sorted((ROOT / "viewer" / "src" / "panels").iterdir()):
        source = path.read_text(encoding="utf-8")
        kind = re.search(r'^export default \{\n  place: "(\w+)",\n  order: (\d+),', source, re.MULTILINE)
        assert kind, f"{path.name} does not begin its default export with a place and an order"
        assert "} satisfies PanelKind;" in source, f"{path.name} is not held to what a panel has to be"
        others = re.findall(r'from "(?:\./|\.\./panels/)', source)
        assert not others, f"{path.name} imports another panel; what both need belongs beside panels/"
        places.append(kind.groups())
    assert len(places) > 10
    assert len(set(places)) == len(places), "two panels have the same place and order"


def test_the_pages_types_have_no_holes():
    for path in (ROOT / "viewer" / "src").rglob("*.ts"):
        found = re.search(r"(?:\bas|[:<|,])\s*any\b\s*[\])>;,=)|[]", path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found[0]}"


def test_the_lock_file_names_no_host():
    lock = (ROOT / "viewer" / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "http" not in re.sub(r'"url": "[^"]*"', "", lock)  # pages that ask for funding


# --- server -------------------------------------------------------------------------------------------

TOKEN = "right-token"


@pytest.fixture(scope="module")
def server(make_model):
    import uvicorn

    model = make_model("qwen3")
    answers = Answers([model])
    payload = answers.payload(dm.measure(model, IDS, importance="l1", sizes=SIZES, eps=0.5))
    listening = bind()
    config = uvicorn.Config(application(payload, answers, TOKEN), log_level="error", lifespan="off")
    own = uvicorn.Server(config)
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1], payload["views"][0]["id"]
    own.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        if body is not None:
            headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        if body:
            connection.send(body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def question(port: int, method: str, parameters: object, **headers: str):
    body = json.dumps(parameters).encode()
    headers = {"Content_Type": "application/json"} | headers
    status, _, data = ask(port, "POST", f"/{TOKEN}/ask/{method}", body, **headers)
    return status, json.loads(data)


def test_the_server_gives_page_program_and_payload(server):
    port, _ = server
    status, headers, body = ask(port, "GET", f"/{TOKEN}/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert b"explorer.js" in body
    assert ask(port, "GET", f"/{TOKEN}/explorer.js")[2] == script().encode()
    assert decode(ask(port, "GET", f"/{TOKEN}/payload")[2])["schema"] == SCHEMA


@pytest.mark.parametrize(
    "path",
    [
        "/", "/wrong/", "/right-toke/", "/right-token2/payload", f"/{TOKEN}/../../etc/passwd", f"/{TOKEN}/%2e%2e/%2e%2e/etc/passwd",
        f"/{TOKEN}/..%2fpyproject.toml", f"/{TOKEN}/explorer.js/../../page.py", f"/{TOKEN}/static/explorer.js", f"/{TOKEN}//etc/passwd",
        f"/{TOKEN}/page.py", "/%00/",
    ],
)  # fmt: skip
def test_a_wrong_token_and_a_path_outside_are_not_found(server, path):
    status, _, body = ask(server[0], "GET", path)
    assert status == 404
    assert "densitometer explore" in json.loads(body)["error"]


def test_only_this_machine_is_answered(server):
    port, name = server
    assert ask(port, "GET", f"/{TOKEN}/", Host="evil.example:80")[0] == 421
    run = {"id": name, "importance": "l1", "n_edges": 3}
    assert question(port, "run", run, Origin="http://evil.example")[0] == 403
    assert question(port, "run", run, Origin="null")[0] == 403
    assert question(port, "run", run, Origin=f"http://{HOST}:{port}")[0] == 200
    for host in (
        f"{HOST}:{port}.evil.example", f"{HOST}.evil.example:{port}", "localhost:x.evil.example", f"{HOST}:", "", "localhost:1:2",
        f"evil.example@{HOST}:{port}", f"[{HOST}]:{port}", f"{HOST}:{port}/", "localhost.", f"evil.example:{HOST}:{port}",
    ):  # fmt: skip
        assert ask(port, "GET", f"/{TOKEN}/", Host=host)[0] in (400, 421), host
        assert question(port, "run", run, Origin=f"http://{host}")[0] == 403, host
    for origin in (
        f"https://{HOST}:{port}",
        f"{HOST}:{port}",
        "http://localhost:1",
        f"http://{HOST}:{port}/",
        "file://",
    ):
        assert question(port, "run", run, Origin=origin)[0] == 403, origin
    # a tunnel from another port of the reader's own machine
    for host in (HOST, f"localhost:{port}", "localhost:1"):
        assert ask(port, "GET", f"/{TOKEN}/", Host=host)[0] == 200, host
        assert question(port, "run", run, Host=host, Origin=f"http://{host}")[0] == 200, host
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
    own = bind()
    assert own.getsockname()[0] == "127.0.0.1"
    own.close()


def test_a_question_too_large_or_malformed_is_refused(server):
    port, _ = server
    path = f"/{TOKEN}/ask/run"
    large = b'{"a": "' + b"x" * MOST_BODY_BYTES + b'"}'
    status, _, body = ask(port, "POST", path, large, Content_Type="application/json")
    assert (status, "too large" in json.loads(body)["error"]) == (413, True)
    for bad in (b"{", b"\xff", b"[" * 100_000):
        assert ask(port, "POST", path, bad, Content_Type="application/json")[0] == 400
    assert ask(port, "POST", path, b"{}", Content_Type="text/plain")[0] == 415
    assert ask(port, "GET", path)[0] == 405
    status, answer = question(port, "run", {"id": "gone", "importance": "l1", "n_edges": 1})
    assert (status, answer["error"]) == (422, "this input is no longer in memory; measure the text again")


def test_questions_asked_at_once_are_each_answered(server):
    port, name = server
    found: dict[int, float] = {}

    def run(n: int) -> None:
        found[n] = question(port, "run", {"id": name, "importance": "l1", "n_edges": n})[1]["n_edges"]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: n for n in range(1, 9)}


def test_a_port_in_use_is_named_with_what_to_do():
    taken = bind()
    port = taken.getsockname()[1]
    result = call("explore", "a text", "--port", port)
    taken.close()
    assert result.returncode == 2
    assert f"port {port} " in result.stderr
    assert "--port 0" in result.stderr
    assert "Traceback" not in result.stderr
    for bad in (-1, 65536):
        with pytest.raises(dm.DensitometerError, match=str(bad)):
            bind(bad)


def test_measure_writes_a_page(tmp_path):
    command = ["measure", "The whale swam under the ship and"]
    result = call(*command, "--html", tmp_path / "m.html")
    assert (result.returncode, result.stderr) == (0, "")
    assert "page written to" in result.stdout
    assert (tmp_path / "m.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    bad = call(*command, "--html", tmp_path / "no" / "m.html")
    assert bad.returncode == 1
    assert "there is no such folder" in bad.stderr


def test_no_number_of_the_payload_is_missing(view):
    for points in view["curves"].values():
        for point in points:
            assert all(math.isfinite(point[k]) for k in ("tv", "kl", "entropy", "flops_share"))
