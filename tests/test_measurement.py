"""The spine on real models: curves, baselines, densities, minimal traces, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import oracles
import polars
import pytest
import torch
import transformers
from conftest import CONFIGS, IDS, make_module
from snippets import registries_kept

import densitometer as dm
from densitometer._util.metrics import compute_metrics, total_variation
from densitometer.errors import StorageError
from densitometer.graph.growth import NATURAL, natural_mask
from densitometer.measuring.columns import CURVE_TYPES
from densitometer.measuring.density import DEFAULT_SIZES, Density
from densitometer.measuring.floor import additive_floor
from densitometer.measuring.trace_sets import BASELINE_SIZES

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("rows_skipped")]

TEXT = "The old captain looked at the sea and said that the white whale"


@pytest.fixture(scope="module")
def measured(demo):
    return dm.measure(demo, TEXT, importance=["l1", "l2"], sizes=DEFAULT_SIZES, seed=3, keep_graphs=True)


def test_curve_has_a_row_per_importance_kind_and_size(measured):
    counts = measured.curve.group_by("importance", "kind").len()
    assert counts.height == 6
    assert set(counts["len"]) == {len(DEFAULT_SIZES)}
    wanted = {
        "importance",
        "kind",
        "size",
        "n_edges",
        "flops_share",
        "parameter_share",
        "tv",
        "kl",
        "js",
        "top1",
    }
    assert wanted | {"nucleus", "entropy"} <= set(measured.curve.columns)
    assert list(measured.curve.schema.items()) == list(CURVE_TYPES.items())


def test_by_default_baselines_are_run_at_two_sizes_and_numbers_of_traces_are_those_of_all(demo, measured):
    m = dm.measure(demo, TEXT, importance=["l1", "l2"], seed=3)
    of = {kind: m.curve.filter(polars.col("kind") == kind) for kind in ("trace", "inverse", "random")}
    assert sorted(set(of["inverse"]["size"])) == sorted(set(of["random"]["size"])) == list(BASELINE_SIZES)
    for kind, rows in of.items():
        theirs = measured.curve.filter(
            (polars.col("kind") == kind) & polars.col("size").is_in(rows["size"].to_list())
        )
        assert rows["n_edges"].to_list() == theirs["n_edges"].to_list()
        assert rows["tv"].to_list() == pytest.approx(theirs["tv"].to_list(), abs=1e-5)
    assert m.density["l1"].size_at(0.1) == pytest.approx(measured.density["l1"].size_at(0.1), rel=1e-9)


def test_the_full_trace_is_the_model_and_the_empty_inverse_is_not(measured):
    full = measured.curve.filter(polars.col("size") == 1.0)
    assert full.filter(polars.col("kind") != "inverse")["tv"].max() < 1e-4
    assert full.filter(polars.col("kind") == "inverse")["tv"].min() > 0.1
    assert measured.full_trace_tv < 1e-4
    assert full.filter(polars.col("kind") == "trace")["flops_share"].to_list() == pytest.approx([1.0, 1.0])


def test_a_trained_models_trace_beats_random_ones_of_its_size(measured):
    own = measured.curve.filter((polars.col("importance") == "l1") & polars.col("size").is_between(0.1, 0.9))
    tv = {
        kind: own.filter(polars.col("kind") == kind)["tv"].mean() for kind in ("trace", "inverse", "random")
    }
    assert tv["trace"] < tv["random"] - 0.2
    assert tv["trace"] < tv["inverse"] - 0.2


def test_every_row_equals_a_trace_run_by_itself(demo, measured):
    graph = dm.build_graph(demo, TEXT)
    full = demo.adapter.logits(graph.input_ids)
    for size in (0.004, 0.1, 0.6):
        row = measured.curve.filter(
            (polars.col("size") == size)
            & (polars.col("importance") == "l1")
            & (polars.col("kind") == "trace")
        ).row(0, named=True)
        trace = graph.trace(size=size)
        logits = dm.reconstruct(demo, graph, [trace])
        assert row["tv"] == pytest.approx(float(total_variation(full, logits)), abs=1e-5)
        assert row["n_edges"] == trace.n_edges == math.floor(size * graph.n_edges)
        assert row["flops_share"] == pytest.approx(trace.flops_share)


def test_size_at_is_bisected_and_the_minimal_trace_holds(demo, measured):
    density = measured.density["l1"]
    low, high = density.bracket(0.1)
    assert high / low <= 1.05
    trace = measured.minimal_trace(tv=0.1)
    graph = dm.build_graph(demo, TEXT)
    full = demo.adapter.logits(graph.input_ids)
    logits = dm.reconstruct(demo, graph, [trace, graph.trace(size=low)])
    at, below = total_variation(full, logits).tolist()
    assert at <= 0.1 < below
    assert measured.minimal_trace(tv=0.4, importance="l2").n_edges < trace.n_edges


def test_prediction_and_position(demo):
    ids = demo.encode(TEXT)
    inner = dm.measure(demo, ids, sizes=[0.1, 1.0], position=5)
    assert inner.input["position"] == 5
    assert inner.next_token["id"] == ids[6]
    own = demo.adapter.logits(ids[:6]).softmax(-1)
    assert inner.prediction["probability"][0] == pytest.approx(float(own.max()), abs=1e-5)
    assert inner.next_token["surprisal"] == pytest.approx(-math.log(float(own[ids[6]])), abs=1e-4)
    assert inner.curve["surprisal"].null_count() == 0
    last = dm.measure(demo, ids, sizes=[0.1, 1.0])
    assert last.next_token is None
    assert last.curve["surprisal"].null_count() == last.curve.height


def test_same_seed_same_numbers(demo):
    one, again = (dm.measure(demo, TEXT, sizes=[0.05, 0.3], seed=9) for _ in range(2))
    assert one.curve.equals(again.curve)


def test_save_and_load_is_an_exact_round_trip(measured, tmp_path):
    path = tmp_path / "measurement.json"
    measured.save(path)
    loaded = dm.load_measurement(path)
    assert loaded.curve.equals(measured.curve)
    assert loaded.curve.schema == measured.curve.schema
    assert loaded.baselines.equals(measured.baselines)
    assert loaded.summary() == measured.summary()
    assert loaded.prediction.equals(measured.prediction)
    assert loaded.density == measured.density
    for name in ("model", "input", "graph", "entropy", "next_token", "full_trace_tv", "provenance"):
        assert getattr(loaded, name) == getattr(measured, name)
    assert [p.name for p in tmp_path.iterdir()] == ["measurement.json"]
    with pytest.raises(ValueError, match="with_model"):
        loaded.minimal_trace()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b'{"schema": "densitometer.measurement/1", "curv', "cut short"),
        (b'{"schema": "densitometer.measurement/1"}', "damaged"),
        (b'{"schema": "densitometer.measurement/9"}', "densitometer.measurement/9"),
        (b"[1, 2]", "schema None"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(dm.DensitometerError, match=message):
        dm.load_measurement(path)


def test_unwritable_paths_are_refused_and_leave_nothing(measured, tmp_path):
    for path in (tmp_path / "missing" / "m.json", tmp_path):
        with pytest.raises(dm.DensitometerError, match="cannot write"):
            measured.save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_error_and_leaves_nothing(measured, tmp_path, monkeypatch):
    import os

    def full(descriptor):
        raise OSError(28, "No space left on device")

    old = tmp_path / "m.json"
    old.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(dm.DensitometerError, match="No space left"):
        measured.save(old)
    assert old.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"importance": "l3"}, "'l3'.*l1"),
        ({"importance": []}, "at least one"),
        ({"sizes": [0.1, 1.2]}, r"\(0, 1\].*1\.2"),
        ({"sizes": []}, r"\(0, 1\]"),
        ({"baselines": ["reverse"]}, "reverse"),
        ({"position": 99}, "position 99 is out of range.*-7 to 6"),
        ({"position": -8}, "out of range"),
        ({"position": 1.5}, "integer"),
        ({"eps": 0}, "between 0 and 1"),
    ],
)
def test_wrong_arguments(make_model, keywords, message):
    with pytest.raises(ValueError, match=message) as caught:
        dm.measure(make_model("llama"), IDS, **keywords)
    assert isinstance(caught.value, dm.DensitometerError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ([], "empty"),
        ("a", "one token long"),
        ([5], "one token long"),
        ("word " * 2000, "more than the 512 of the context of demo"),
        ([1, 5000], "5000 is outside the vocabulary.*4095"),
        ([1, -2], "-2 is outside"),
    ],
)
def test_unusable_texts(demo, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        dm.measure(demo, text)
    assert isinstance(caught.value, dm.DensitometerError)


@pytest.mark.parametrize("text", [None, 3.5, [1, 2.5], [1, "a"], [True, False]])
def test_things_that_are_no_text(demo, text):
    with pytest.raises(TypeError) as caught:
        dm.measure(demo, text)
    assert isinstance(caught.value, dm.DensitometerError)


def test_a_text_without_a_tokenizer_is_refused(make_model):
    with pytest.raises(ValueError, match="without a tokenizer"):
        dm.measure(make_model("llama"), "some text")


def test_ids_may_be_a_tensor(demo):
    ids = demo.encode(TEXT)
    assert dm.build_graph(demo, torch.tensor(ids)).input_ids == tuple(ids)
    assert dm.build_graph(demo, torch.tensor([ids])).input_ids == tuple(ids)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_models_are_refused_with_the_first_bad_layer(value):
    module = make_module("llama")
    model = dm.load_model(module)
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(dm.DensitometerError, match="first in layer 1 of 3"):
        dm.measure(model, IDS)
    with pytest.raises(dm.DensitometerError, match="layer 1"):
        dm.load_model(module)


def test_a_model_whose_full_trace_is_not_itself_is_refused(demo, monkeypatch):
    from densitometer.measuring import measurement

    real = measurement.masked_logits
    monkeypatch.setattr(measurement, "masked_logits", lambda *a, **k: real(*a, **k) * 1.1)
    with pytest.raises(dm.DensitometerError, match="the full trace of demo is not the model"):
        dm.measure(demo, TEXT, sizes=[0.5])


def test_natural_language_in_many_scripts_is_measured(demo):
    for text in (
        "Le chat dort sur la table.",
        "Die Würde des Menschen",
        "日本語の文章",
        "שלום עולם",
        "🙂🙃 emoji",
    ):
        m = dm.measure(demo, text, sizes=[0.1, 1.0], baselines=())
        assert m.full_trace_tv < 1e-4
        assert m.input["text"] == text


def test_natural_baselines_are_the_edges_that_they_say(make_model):
    model = make_model("llama")
    graph = dm.build_graph(model, IDS)
    rows, last = oracles.rows_of(graph), len(IDS) - 1
    wanted = {
        "residual_chain": lambda kind, s, t: kind.startswith("residual") and t == last,
        "residual_mlp_chain": lambda kind, s, t: kind != "attention" and t == last,
        "last_attention": lambda kind, s, t: kind != "attention" or t == last,
        "window_2": lambda kind, s, t: kind != "attention" or t - s < 2,
        "window_4": lambda kind, s, t: kind != "attention" or t - s < 4,
        "window_8": lambda kind, s, t: True,
    }
    masks = {name: natural_mask(graph.space, graph.reachable, name) for name in NATURAL}
    assert list(masks) == list(wanted)
    for name, keeps in wanted.items():
        want = [keeps(kind, s, t) for _, kind, _, s, t in rows]
        assert masks[name][graph.index].tolist() == want
        assert not masks[name][~graph.reachable].any()
    measured = dm.measure(model, IDS, sizes=[0.5])
    assert set(measured.baselines["kind"]) == {name for name in wanted if not name.startswith("window")}
    measured = dm.measure(model, IDS, sizes=[0.5], baselines=("residual", "window"))
    assert set(measured.baselines["kind"]) == {*wanted, "inverse_residual", "random_residual"}
    row = measured.baselines.filter(polars.col("kind") == "residual_chain").row(0, named=True)
    assert row["size"] == graph.landmarks["residual_chain"]


def test_the_bracket_tells_both_sides_and_what_each_is(demo, measured):
    density = {
        "l1": Density((0.1, 1.0), (0.05, 0.0)),
        "l2": Density((0.04, 1.0), (0.02, 0.0)),
        "bound": Density((0.5, 1.0), (0.9, 0.5)),
    }
    floor = Density((0.02, 1.0), (0.1, 0.0))
    found = replace(measured, density=density, floor=floor)
    rows = found.bracket(0.1).drop("what").rows()
    assert rows == [("floor", 0.02, 0.5), ("l2", 0.04, 1.0), ("l1", 0.1, 2.5), ("bound", None, None)]
    assert found.tightest(0.1) == "l2"
    assert found.bracket(0.1)["what"].str.len_chars().min() > 20
    never = replace(measured, density={"l1": density["bound"]}, floor=None)
    assert never.bracket(0.1).drop("what").rows() == [("l1", None, None)]
    assert never.tightest(0.1) is None
    assert "never" in never.summary()


def test_the_floor_of_a_measurement_is_that_of_its_fisher_information(demo, tmp_path):
    m = dm.measure(demo, TEXT, importance=["l1", "fisher"], eps=0.2, baselines=())
    graph = dm.build_graph(demo, TEXT, importance="fisher")
    information = graph.edges()["importance"].to_numpy().astype(float) ** 2
    assert m.floor.size_at(0.2) == pytest.approx(additive_floor(information, 0.2))
    m.save(tmp_path / "m.json")
    assert dm.load_measurement(tmp_path / "m.json").floor == m.floor
    document = json.loads((tmp_path / "m.json").read_text())
    for damaged in (
        {"sizes": [0.1]},
        {**document["floor"], "tv": [0.1]},
        {**document["floor"], "tv": "x"},
        3,
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**document, "floor": damaged}))
        with pytest.raises(StorageError, match="floor"):
            dm.load_measurement(tmp_path / "bad.json")
    del document["floor"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert dm.load_measurement(tmp_path / "old.json").floor is None
    assert dm.measure(demo, TEXT, importance="l1", baselines=()).floor is None


def test_minimal_traces_by_other_goals(demo, measured):
    graph = dm.build_graph(demo, TEXT)
    full = demo.adapter.logits(graph.input_ids)
    for goal, value in (("kl", 0.05), ("top1", True), ("nucleus", 50)):
        trace = measured.minimal_trace(**{goal: value})
        got = compute_metrics(full, dm.reconstruct(demo, graph, [trace]))[goal][0]
        assert bool(got <= value if goal == "kl" else got >= value)
    early = measured.minimal_trace(tv=0.3, first_crossing=True)
    assert early.n_edges <= measured.minimal_trace(tv=0.3).n_edges
    with pytest.raises(ValueError, match="one goal"):
        measured.minimal_trace(tv=0.1, kl=0.1)


def test_a_goal_beyond_the_budget_gives_nothing_and_the_reason(measured):
    chain = measured.baselines.filter(polars.col("kind") == "residual_mlp_chain")
    with pytest.warns(UserWarning, match=r"operations, more than the budget of 0\.2"):
        assert measured.minimal_trace(tv=0.05, flops=0.2) is None
    parameters = chain["parameter_share"].item()
    with pytest.warns(UserWarning, match="parameters, more than the budget"):
        assert measured.minimal_trace(tv=0.05, parameters=parameters) is None
    assert measured.minimal_trace(tv=0.05, flops=1.0) is not None
    with pytest.raises(ValueError, match=r"flops=0.01 does not pay for the output token's own path"):
        measured.minimal_trace(tv=0.05, flops=0.01)
    with pytest.raises(ValueError, match="share of the full trace's"):
        measured.minimal_trace(tv=0.05, parameters=2)


def test_densities_in_the_three_currencies(demo, measured):
    graph = measured.session.graphs["l1"]
    assert measured.density_in("edges")["l1"].size_at(0.1) == measured.density["l1"].size_at(0.1)
    trace = graph.trace(n_edges=math.floor(measured.density["l1"].size_at(0.1) * graph.n_edges))
    for currency, cost in (("flops", trace.flops_share), ("parameters", trace.parameter_share)):
        density = measured.density_in(currency)["l1"]
        assert density.size_at(0.1) == pytest.approx(cost, rel=1e-9)
    with pytest.raises(ValueError, match="'watts'"):
        measured.density_in("watts")


def test_the_summary_names_score_bracket_and_costs(demo):
    m = dm.measure(demo, TEXT, importance=["l1", "fisher"], baselines=())
    sizes = {name: 100 * d.size_at(0.1) for name, d in m.density.items()}
    least = min(sizes, key=sizes.get)
    assert least == "fisher"
    assert f"from {sizes['fisher']:.2g} % of the edges (fisher; {sizes['l1']:.2g} % by l1)" in m.summary()
    assert f"{100 * m.density_in('flops')['fisher'].size_at(0.1):.2g} % of the operations" in m.summary()


def test_no_size_is_called_exact_below_the_noise_floor(measured):
    assert measured.noise >= measured.full_trace_tv
    assert measured.noise >= 2.0**-24
    with pytest.raises(ValueError, match="rounding alone"):
        measured.minimal_trace(tv=1e-9)


def test_a_curve_by_threshold_holds_the_traces_of_its_thresholds(demo):
    graph = dm.build_graph(demo, TEXT)
    given = [0.3, 0.01, 0.001]
    m = dm.measure(demo, TEXT, importance="l1", sizes=given, by="threshold", baselines=("random",))
    own = m.curve.filter(polars.col("kind") == "trace")
    assert own["n_edges"].to_list() == [*(graph.trace(threshold=tau).n_edges for tau in given), graph.n_edges]
    for tau, reached in zip(given, own["threshold"], strict=False):
        assert reached > tau
    assert own["size"].to_list() == pytest.approx([n / graph.n_edges for n in own["n_edges"]])
    random = m.curve.filter(polars.col("kind") == "random")
    assert random["n_edges"].to_list() == own["n_edges"].to_list()
    default = dm.measure(demo, TEXT, importance="l1", by="threshold", baselines=())
    assert 10 < default.curve.height <= 27
    assert default.curve["n_edges"].is_sorted()
    some = default.curve.filter(polars.col("n_edges") > 0)
    same = dm.measure(demo, TEXT, importance="l1", sizes=some["size"].to_list(), baselines=()).curve
    assert same["n_edges"].to_list() == some["n_edges"].to_list()
    assert same["tv"].to_list() == pytest.approx(some["tv"].to_list(), abs=1e-5)
    with pytest.raises(ValueError, match="unknown by 'length'"):
        dm.measure(demo, TEXT, by="length")


def test_the_threshold_of_a_trace_gives_it_back(demo, measured):
    graph = dm.build_graph(demo, TEXT)
    for row in measured.curve.filter(
        (polars.col("kind") == "trace") & (polars.col("importance") == "l1")
    ).iter_rows(named=True):
        kept = graph.keys[graph.index] >= row["threshold"]
        assert kept.sum() >= row["n_edges"] or row["n_edges"] == 0
        assert (graph.keys[graph.index] > row["threshold"]).sum() <= row["n_edges"]


def test_a_prediction_that_needs_no_edge_is_said_to_need_none():
    torch.manual_seed(0)
    fresh = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]())  # of nearly uniform predictions
    measured = dm.measure(dm.load_model(fresh), [3, 5, 7], sizes=[1e-5, 1.0], baselines=[])
    assert measured.curve["n_edges"][0] == 0
    assert measured.curve["tv"][0] < 0.1
    assert measured.summary().startswith("TV <= 0.1 with no edge at all (l1)")


@pytest.mark.parametrize("returned", [1, [1, 2], None])
def test_scores_and_metrics_that_return_no_tensors_are_refused_by_name(demo, returned):
    with registries_kept():
        dm.register_importance("wrong", lambda forward, seed: returned)
        with pytest.raises(
            dm.DensitometerError, match=r"importance 'wrong' returned .*expected a PerLevel of tensors"
        ):
            dm.measure(demo, TEXT, importance="wrong", sizes=[1.0], baselines=[])
        dm.register_metric("wrong", lambda full, traces: returned)
        with pytest.raises(dm.DensitometerError, match="metric 'wrong' returned"):
            dm.measure(demo, TEXT, sizes=[1.0], baselines=[])


def test_a_mixture_whose_experts_are_views_is_measured():
    from architectures import IDS, tiny_module

    measured = dm.measure(dm.load_model(tiny_module("dbrx")), list(IDS), sizes=[0.2, 1.0], baselines=[])
    assert measured.full_trace_tv < 1e-5


def test_a_model_whose_weights_changed_is_not_the_one_that_was_measured(tmp_path):
    m = dm.measure(dm.load_model(make_module("llama")), IDS, importance="l1", sizes=[0.3, 1.0], baselines=())
    m.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.with_model(dm.load_model(make_module("llama"))).session is not None
    changed = make_module("llama")
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-5
    with pytest.raises(ValueError, match="is not the model that was measured: its weights"):
        loaded.with_model(dm.load_model(changed))
