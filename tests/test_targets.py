"""Targets: what the value of a trace is, what gradient importances follow, and where faithfulness holds."""

from __future__ import annotations

import json
import math

import numpy
import polars
import pytest
import torch
from command import call
from conftest import IDS

import densitometer as dm
from densitometer.errors import (
    ArgumentTypeError,
    DensitometerWarning,
    InputError,
    ModelError,
    PluginError,
    StorageError,
)
from densitometer.graph.targets import Scale, Target, TargetScore
from densitometer.graph.tiled import tiles
from densitometer.measuring import measurement as measuring

pytestmark = pytest.mark.fast

TEXT = "The captain looked at the"
PAIR = (" sea", " man")
SIZES = (0.1, 0.3, 0.6, 1.0)


@pytest.fixture(scope="module")
def contrasted(demo):
    return dm.measure(demo, TEXT, importance=("l1", "fisher"), sizes=SIZES, target=PAIR)


def id_of(model, token):
    (only,) = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    return only


def test_without_a_target_nothing_changes(demo):
    plain = dm.measure(demo, TEXT, importance="fisher", sizes=SIZES)
    assert "target" not in plain.curve.columns
    assert plain.target is None
    assert plain.density["fisher"].faithfulness == ()
    with pytest.raises(InputError, match="no target was measured"):
        plain.density["fisher"].size_at(0.1, by="faithfulness")
    with pytest.raises(InputError, match="no target was measured"):
        plain.minimal_trace(faithfulness=0.1)


def test_every_value_and_faithfulness_follows_from_the_logits_of_its_trace(demo, contrasted):
    a, b = (id_of(demo, token) for token in PAIR)
    full = demo.adapter.logits(demo.encode(TEXT)).double()
    for name in ("l1", "fisher"):
        graph = dm.build_graph(demo, TEXT, importance=name, target=PAIR)
        nothing = graph.trace(n_edges=0).logits().double()
        for row in contrasted.curve.filter(importance=name, kind="trace").iter_rows(named=True):
            logits = graph.trace(size=row["size"]).logits().double()
            value = float(logits[a] - logits[b])
            assert row["target"] == pytest.approx(value, abs=1e-4)
            ends = float(full[a] - full[b]), float(nothing[a] - nothing[b])
            assert row["faithfulness"] == pytest.approx((value - ends[1]) / (ends[0] - ends[1]), abs=1e-4)
    assert contrasted.target.full == pytest.approx(ends[0], abs=1e-5)
    assert contrasted.target.nothing == pytest.approx(ends[1], abs=1e-5)
    assert {"target", "faithfulness"} <= {*contrasted.baselines.columns} & {*contrasted.refined.columns}


def test_the_value_of_a_token_is_its_probability_and_of_sets_their_log_odds(demo):
    ids = [id_of(demo, token) for token in (" sea", " man", " ship")]
    logits = demo.adapter.logits(demo.encode(TEXT))
    p = logits.double().softmax(-1)
    assert float(Target.of(" sea").resolved(demo).value(logits)) == pytest.approx(float(p[ids[0]]), rel=1e-5)
    sets = Target.of(([" sea", ids[2]], [" man"])).resolved(demo)
    odds = math.log(float(p[ids[0]] + p[ids[2]]) / float(p[ids[1]]))
    assert float(sets.value(logits)) == pytest.approx(odds, abs=1e-5)
    assert sets.name == f"' sea' or {ids[2]} against ' man'"
    assert sets.kind == "logit difference"


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
def test_fisher_by_a_target_is_the_slope_of_its_value(make_model, name):
    """Central differences of the value, as the mask of one edge goes from 1 +- h, norms held at their scale."""
    model = make_model(name)
    graph = dm.build_graph(model, IDS, importance="fisher", target=(5, 17))
    forward = graph.forward
    rng = numpy.random.default_rng(0)
    chosen = rng.choice(graph.index, 6, replace=False)
    masks = torch.ones(1, forward.space.size, requires_grad=True)
    with model.adapter.differentiable():
        logits = model.adapter.masked_logits(forward.ids, forward.block_masks(masks))
        (slope,) = torch.autograd.grad(logits[0, 5] - logits[0, 17], masks)
    want = slope[0].abs().numpy()
    assert graph.importance[chosen] == pytest.approx(want[chosen], rel=1e-3, abs=1e-6)
    bound = dm.build_graph(model, IDS, importance="bound", target=(5, 17)).importance
    # the bound of Cauchy and Schwarz: |<g, e>| <= |g| |e|
    assert (bound[graph.index] >= graph.importance[graph.index] * (1 - 1e-3) - 1e-6).all()


def test_importances_without_gradients_do_not_follow_a_target(demo):
    for name in ("l1", "proximity"):
        plain, aimed = (dm.build_graph(demo, TEXT, importance=name, target=t) for t in (None, PAIR))
        assert (plain.importance == aimed.importance).all()
    plain, aimed = (dm.build_graph(demo, TEXT, importance="fisher", target=t) for t in (None, PAIR))
    assert not numpy.allclose(plain.importance, aimed.importance, rtol=0.1)


def test_best_searches_for_the_targets_value(make_model):
    model = make_model("llama")
    found, slope = (dm.build_graph(model, IDS, importance=n, target=(5, 17)) for n in ("best", "fisher"))
    score = found.forward.target
    scale = Scale.of(score, found.forward.logits, found.trace(n_edges=0).logits())
    sizes = (0.05, 0.1, 0.2, 0.4)

    def distance(graph):
        logits = dm.reconstruct(model, graph, [graph.trace(size=s) for s in sizes])
        return float(((1 - scale.faithfulness(score.value(logits))).square() + 1e-3).log().mean())

    assert distance(found) <= distance(slope) + 1e-6


def test_size_at_by_faithfulness_is_bisected_and_the_minimal_trace_holds(demo, contrasted):
    for name, density in contrasted.density.items():
        low, high = density.bracket(0.1, by="faithfulness")
        size = density.size_at(0.1, by="faithfulness")
        assert size <= high
        trace = contrasted.minimal_trace(faithfulness=0.1, importance=name)
        n_edges = contrasted.graph.n_edges
        assert trace.n_edges <= math.ceil(1.05 * size * n_edges) + 1
        score, scale = trace.graph.forward.target, contrasted.target
        kept = (float(score.value(trace.logits())) - scale.nothing) / (scale.full - scale.nothing)
        assert abs(1 - kept) <= 0.1 + 1e-3
        # every point evaluated from there on holds
        points = polars.concat([contrasted.curve, contrasted.refined]).filter(importance=name, kind="trace")
        above = points.filter(polars.col("size") >= size)["faithfulness"]
        assert ((above - 1).abs() <= 0.1).all()
        below = points.filter(polars.col("size") < size).sort("size")
        assert abs(1 - below["faithfulness"][-1]) > 0.1
        assert below["size"][-1] >= size / 1.06 - 1.5 / n_edges
        assert low <= below["size"][-1]


def test_operations_and_parameters_keep_the_faithfulness_of_their_traces(contrasted):
    columns = {"flops": "flops_share", "parameters": "parameter_share", "edges": "size"}
    for currency, column in columns.items():
        for name, density in contrasted.density_in(currency).items():
            edges = contrasted.density[name].size_at(0.1, by="faithfulness")
            points = polars.concat([contrasted.curve, contrasted.refined]).filter(
                importance=name, kind="trace"
            )
            cost = points.filter(size=edges)[column][0]
            assert density.size_at(0.1, by="faithfulness") == pytest.approx(cost, abs=1e-12)


def test_a_target_is_saved_loaded_replayed_and_compared(demo, contrasted, tmp_path):
    contrasted.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.density == contrasted.density
    assert loaded.target.to_document() == contrasted.target.to_document()
    assert loaded.settings == contrasted.settings
    document = json.loads((tmp_path / "m.json").read_text())
    assert document["provenance"]["target"] == list(PAIR)
    assert document["target"]["ids"] == [id_of(demo, PAIR[0])]
    found = dm.difference(loaded, dm.replay(loaded, demo))
    assert found.asked.is_empty()
    assert found.same_numbers
    plain = dm.measure(demo, TEXT, importance=("l1", "fisher"), sizes=SIZES)
    assert dm.difference(plain, loaded).asked["name"].to_list() == ["target"]


def test_a_file_whose_faithfulness_was_changed_is_refused(contrasted, tmp_path):
    contrasted.save(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    document["curves"][1]["faithfulness"] += 0.1
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(StorageError, match="faithfulness is not that of"):
        dm.load_measurement(tmp_path / "m.json")
    del document["target"]
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(StorageError, match="curves have a column 'target'"):
        dm.load_measurement(tmp_path / "m.json")


def test_a_function_of_logits_is_a_target_that_is_named_and_not_replayed(demo, tmp_path):
    def confidence(logits):
        return logits.logsumexp(-1)

    m = dm.measure(demo, TEXT, importance="fisher", sizes=SIZES, target=confidence)
    logits = m.minimal_trace(tv=0.1).logits()
    assert m.target.kind == "function"
    assert m.target.name.endswith("confidence")
    assert m.curve.filter(kind="trace", size=1.0)["target"][0] == pytest.approx(m.target.full, abs=1e-4)
    assert math.isfinite(float(confidence(logits)))
    m.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.density == m.density
    with pytest.raises(InputError, match=r"Python function .*confidence.* call measure"):
        dm.replay(loaded, demo)


def test_positions_have_the_value_and_the_size_that_a_measurement_has(demo):
    ids = demo.encode(TEXT)
    table = dm.measure_positions(demo, TEXT, importance="fisher", sizes=SIZES, target=PAIR)
    for place in (2, len(ids) - 1):
        one = dm.measure(
            demo, ids, position=place, importance="fisher", sizes=SIZES, baselines=(), target=PAIR
        )
        row = table.filter(position=place).row(0, named=True)
        assert row["target"] == pytest.approx(one.target.full, abs=1e-4)
        assert row["faithful_at"] == pytest.approx(
            one.density["fisher"].size_at(0.1, by="faithfulness"), rel=0.06
        )
    assert "target" not in dm.measure_positions(demo, TEXT, sizes=[1.0]).columns


def test_a_study_stores_value_and_faithfulness(tmp_path):
    study = dm.run_study([TEXT], "demo", tmp_path / "s", sizes=list(SIZES), importance="fisher", target=PAIR)
    assert study.measurements()["error"].to_list() == [None]
    rows = study.curves().filter(kind="trace", refined=False).sort("size")
    own = dm.measure(dm.load_model("demo"), TEXT, importance="fisher", sizes=SIZES, baselines=(), target=PAIR)
    assert rows["faithfulness"].to_list() == own.curve.filter(kind="trace")["faithfulness"].to_list()
    with pytest.raises(InputError, match="cannot store the function"):
        dm.run_study([TEXT], "demo", tmp_path / "t", target=lambda logits: logits[..., 0])
    again = dm.run_study([TEXT], "demo", tmp_path / "s", sizes=list(SIZES), importance="fisher", target=PAIR)
    assert again.curves().height == study.curves().height


def test_long_inputs_follow_a_target_too(make_model, monkeypatch):
    model = make_model("llama")
    stored = dm.measure(model, IDS, importance=("fisher", "bound"), sizes=SIZES, target=(5, 17))
    monkeypatch.setattr(tiles, "STORED_EDGES", 1)
    monkeypatch.setattr(measuring, "is_long", lambda model, n: True)
    tiled = dm.measure(model, IDS, importance=("fisher", "bound"), sizes=SIZES, target=(5, 17))
    assert tiled.provenance.edges == "tiled"
    assert tiled.target.nothing == pytest.approx(stored.target.nothing, abs=1e-4)
    for name in ("fisher", "bound"):
        one, other = (m.curve.filter(importance=name, kind="trace").sort("n_edges") for m in (stored, tiled))
        both = one.join(other, on="n_edges", suffix="_tiled")
        assert both.height >= 2
        assert both["faithfulness_tiled"].to_list() == pytest.approx(both["faithfulness"].to_list(), abs=1e-3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (" densitometer", r"' densitometer' is \d+ tokens of demo, not one: ' d.* \+ .*measure_answer"),
        (4096, r"token id 4096 is not in the vocabulary of demo \(0 to 4095\)"),
        (-1, "token id -1 is not in the vocabulary"), ("", "'' is not in the vocabulary"),
        ((" sea", " sea"), "target and contrast share the token ' sea'"), (([" sea", " man"], " man"), "share the token ' man'"),
        ((" sea",), "pair .* got 1 parts"), ((" sea", []), "no token; give at least one"),
    ],
)  # fmt: skip
def test_a_wrong_target_is_refused_in_one_line(demo, target, message):
    with pytest.raises(InputError, match=message) as error:
        dm.measure(demo, TEXT, importance="l1", target=target)
    assert "\n" not in str(error.value)


def test_a_word_that_is_likelier_with_its_space_gives_a_warning(demo, recwarn):
    message = (
        "the model predicts ' man' more readily than 'man': the space before a word is part of its token"
    )
    with pytest.warns(DensitometerWarning, match=message) as caught:
        dm.measure(demo, TEXT, importance="l1", sizes=SIZES, target=(" sea", "man"))
    assert [warning.filename for warning in caught] == [__file__]
    recwarn.clear()
    for target in (" man", ([" man", "man"], " sea"), id_of(demo, "man"), "."):
        dm.measure(demo, TEXT, importance="l1", sizes=SIZES, target=target)
    assert not recwarn.list


@pytest.mark.parametrize("target", [[" sea", " man"], True, 1.5, (None, " sea"), {"a": 1}])
def test_a_target_of_another_type_is_refused(target):
    with pytest.raises(ArgumentTypeError, match="pair"):
        dm.MeasureSettings(target=target)


def test_a_target_of_text_needs_a_tokenizer(make_model):
    with pytest.raises(
        InputError, match=r"without a tokenizer, so a target can be a token id only; got ' sea'"
    ):
        dm.measure(make_model("llama"), IDS, target=" sea")


def test_a_target_that_nothing_moves_is_refused(demo):
    with pytest.raises(InputError, match="same value in the full model and with no edge on, 3"):
        dm.measure(demo, TEXT, importance="l1", target=lambda logits: logits[..., 0] * 0 + 3.0)


def test_a_contrast_under_the_noise_is_refused(demo, monkeypatch):
    table = measuring.noise_table
    moved = lambda *args: table(*args).with_columns(target_noise=polars.lit(50.0))  # noqa: E731
    monkeypatch.setattr(measuring, "noise_table", moved)
    with pytest.raises(InputError, match="' sea' against ' man' is under the noise: the logit difference is"):
        dm.measure(demo, TEXT, importance="l1", sizes=SIZES, target=PAIR)
    with pytest.raises(InputError, match="' sea' is under the noise: it is"):
        dm.measure(demo, TEXT, importance="l1", sizes=SIZES, target=" sea")


def test_a_function_that_returns_something_else_is_refused(demo):
    for function, message in (
        (lambda logits: logits, "returned .* expected a tensor of shape"),
        (lambda logits: 1.0, "returned float"),
        (lambda logits: logits[..., 0] * math.nan, "returned nan, expected finite"),
    ):
        with pytest.raises(PluginError, match=message):
            dm.measure(demo, TEXT, importance="l1", sizes=SIZES, target=function)


def test_a_target_without_a_slope_leaves_fisher_out_or_is_refused(demo):
    def most_probable(logits):
        return (logits.argmax(-1) == 5).float() + logits[..., 5].detach()

    with pytest.raises(ModelError, match=r"passes no gradient to the logits\. Give a contrast"):
        dm.measure(demo, TEXT, importance="fisher", sizes=SIZES, target=most_probable)
    with pytest.warns(DensitometerWarning, match="fisher is left out"):
        assert list(dm.measure(demo, TEXT, sizes=SIZES, target=most_probable).density) == ["l1"]
    sure = TargetScore("' a'", (0,))
    with pytest.raises(ModelError, match="no slope at the model's own prediction"):
        sure.slope(torch.tensor([500.0, 0.0, 0.0]))


def test_the_command_line_takes_a_target(tmp_path):
    path = tmp_path / "m.json"
    words = ["measure", TEXT, "--target", " sea", "--against", " man", "--sizes", "0.3,1"]
    ended = call(*words, "--json", path)
    assert ended.returncode == 0, ended.stderr
    printed = " ".join(ended.stdout.split())
    assert "logit difference ' sea' against ' man':" in printed
    assert "faithfulness of ' sea' against ' man' within 0.1 of 1 from" in printed
    assert dm.load_measurement(path).provenance["target"] == [" sea", " man"]
    assert (
        "faithful"
        in call(
            "measure", TEXT, "--target", " sea", "--sizes", "0.3,1", "--importance", "l1", "--full"
        ).stdout
    )
    alone = call("measure", TEXT, "--against", " man")
    assert alone.returncode == 2
    assert "--against ' man' needs --target" in alone.stderr
