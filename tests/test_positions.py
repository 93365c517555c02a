"""Density along a text: every row is what a measurement of that position finds."""

from __future__ import annotations

import numpy
import polars
import pytest
import torch
import transformers
from conftest import IDS, VOCABULARY

import densitometer as dm
from densitometer import importance, positions
from densitometer.forward import run_forward
from densitometer.models import adapter

SIZES = [0.003, 0.02, 0.09, 0.3, 0.7, 1.0]
LAYOUTS = ("llama", "mistral-window", "neox", "gemma2", "opt", "mixtral", "gpt-oss")


def row_of(m: dm.Measurement, name: str, eps: float) -> dict:
    density = m.density[name]
    return {
        "position": m.input["position"],
        "token": m.input["tokens"][m.input["position"]],
        "importance": name,
        "auc_log": density.auc_log,
        "auc_linear": density.auc_linear,
        "size_at": density.size_at(eps),
        "entropy": m.entropy,
        "surprisal": m.next_token["surprisal"] if m.next_token else None,
        "n_edges": m.graph["n_edges"],
    }


def assert_same(got: dict, want: dict) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        close = pytest.approx(value, abs=2e-5) if isinstance(value, float) else value
        assert got[name] == close, (name, want["position"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_position_is_what_measuring_it_alone_gives(make_model, layout):
    model = make_model(layout)
    table = dm.measure_positions(model, IDS, sizes=SIZES)
    assert table["position"].to_list() == list(range(len(IDS)))
    for position in range(len(IDS)):
        alone = dm.measure(model, IDS, sizes=SIZES, position=position, baselines=())
        assert_same(table.row(position, named=True), row_of(alone, "l1", 0.1))


def test_sizes_without_the_full_trace_place_size_at_as_a_measurement_does(make_model):
    model, sizes = make_model("llama"), [0.1, 0.4]
    table = dm.measure_positions(model, IDS, sizes=sizes, eps=0.4)
    for row in table.iter_rows(named=True):
        alone = dm.measure(model, IDS, sizes=sizes, position=row["position"], baselines=(), eps=0.4)
        assert_same(row, row_of(alone, "l1", 0.4))


@pytest.mark.parametrize("layout", ["mistral-window", "neox", "olmo2", "mixtral"])
def test_the_first_tokens_of_a_recording_are_a_recording_of_the_first_tokens(make_model, layout):
    model = make_model(layout)
    whole, _ = run_forward(model, IDS)
    alone, _ = run_forward(model, IDS, 3)
    part = whole.prefix(4, alone.logits)
    assert part.ids == alone.ids
    assert part.space == alone.space
    for got, want in zip(part.records, alone.records, strict=True):
        for name, value in vars(want).items():
            torch.testing.assert_close(getattr(got, name), value, atol=1e-5, rtol=1e-5, msg=name)


def test_scores_that_look_at_the_prediction_are_taken_at_each_position(make_model):
    model, names = make_model("qwen3"), ["fisher", "random"]
    table = dm.measure_positions(model, IDS, names, SIZES, seed=5, eps=0.2)
    for row in table.iter_rows(named=True):
        alone = dm.measure(model, IDS, names, SIZES, position=row["position"], baselines=(), seed=5, eps=0.2)
        assert_same(row, row_of(alone, row["importance"], 0.2))


def test_the_other_semantics_are_followed(make_model):
    model = make_model("llama")
    means = dm.reference_means(model_with_texts(model), ["3 88 41", "7 59 26 11"])
    for settings in ({"attention": "frozen"}, {"ablation": "mean", "means": means}):
        table = dm.measure_positions(model, IDS, sizes=SIZES, **settings)
        alone = dm.measure(model, IDS, sizes=SIZES, position=4, baselines=(), **settings)
        assert_same(table.row(4, named=True), row_of(alone, "l1", 0.1))


def model_with_texts(model: dm.Model) -> dm.Model:
    class Numbers:
        def __call__(self, text, **_):
            return {"input_ids": [int(n) for n in text.split()]}

    return dm.Model(model.module, Numbers(), model.name)


def test_a_text_is_measured_the_same_in_small_groups(demo, monkeypatch):
    ids = demo.encode("The harbour was quiet that morning")
    whole = dm.measure_positions(demo, ids, sizes=SIZES)
    monkeypatch.setattr(positions, "MASK_BYTES", 1)
    parts = dm.measure_positions(demo, ids, sizes=SIZES)
    numbers = polars.selectors.float()
    gap = (whole.select(numbers) - parts.select(numbers)).to_numpy()
    assert numpy.nanmax(numpy.abs(gap)) < 2e-5
    assert whole.select(~numbers).equals(parts.select(~numbers))


def test_the_model_is_recorded_once(make_model, monkeypatch):
    model, captures = make_model("llama"), []
    capture = adapter.Adapter.capture
    monkeypatch.setattr(
        adapter.Adapter, "capture", lambda self, ids: captures.append(ids) or capture(self, ids)
    )
    dm.measure_positions(model, IDS, ["l1", "fisher"], SIZES)
    assert captures == [IDS] or captures == [tuple(IDS)]


@pytest.mark.parametrize("name", ["cosine", "l1", "l2", "projection", "proximity"])
@pytest.mark.parametrize("layout", ["mistral-window", "neox"])
def test_local_scores_do_not_depend_on_later_tokens(make_model, name, layout):
    model = make_model(layout)
    whole, _ = run_forward(model, IDS)
    part, _ = run_forward(model, IDS, 3)
    assert importance.is_local(name)
    scores = importance.score_edges(whole, name)
    cut = numpy.empty(part.space.size, dtype=numpy.float32)
    whole.space.copy_to(part.space, scores, cut)
    want = importance.score_edges(part, name)
    numpy.testing.assert_allclose(cut[part.reachable], want[part.reachable], atol=2e-5)


def test_scores_of_the_prediction_are_not_local():
    for name in ("fisher", "bound", "best", "random"):
        assert not importance.is_local(name)


@pytest.mark.parametrize("layout", ["llama", "neox", "olmo2"])
@pytest.mark.parametrize("packs", [True, False])
def test_masked_logits_are_read_at_each_variants_position(make_model, layout, packs, monkeypatch):
    model = make_model(layout)
    monkeypatch.setitem(model.adapter.__dict__, "packs", packs)
    forward, _ = run_forward(model, IDS)
    generator = numpy.random.Generator(numpy.random.PCG64(2))
    masks = [generator.random(forward.space.size) < share for share in (0.9, 0.5, 0.7, 0.2)]
    places = [6, 2, 0, 4]
    from densitometer.ablation import masked_logits

    got = masked_logits(forward, masks, positions=places)
    for mask, place, logits in zip(masks, places, got, strict=True):
        part, _ = run_forward(model, IDS, place)
        cut = numpy.zeros(part.space.size, dtype=bool)
        forward.space.copy_to(part.space, mask, cut)
        torch.testing.assert_close(masked_logits(part, [cut])[0], logits, atol=1e-4, rtol=1e-4)


def test_a_model_whose_predictions_depend_on_the_length_is_refused():
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, original_max_position_embeddings=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.0, 1.0], "long_factor": [3.0, 5.0, 7.0],
            "original_max_position_embeddings": 4,
        },
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pytest.raises(dm.DensitometerError, match="changes when later tokens are there"):
        dm.measure_positions(dm.load_model(module), IDS)


def test_a_full_trace_that_is_not_the_model_is_refused(make_model, monkeypatch):
    model = make_model("llama")
    run = positions.masked_logits
    monkeypatch.setattr(positions, "masked_logits", lambda *a, **k: run(*a, **k) * 0.5)
    with pytest.raises(dm.DensitometerError, match=r"full trace of .* at position 0 is not the model"):
        dm.measure_positions(model, IDS, sizes=SIZES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"importance": "nothing"}, "unknown importance"),
        ({"sizes": [2.0]}, "shares of the edges"),
        ({"eps": 1.0}, "strictly between 0 and 1"),
        ({"attention": "warm"}, "unknown attention"),
    ],
)
def test_wrong_arguments_are_refused(demo, arguments, message):
    with pytest.raises(dm.DensitometerError, match=message):
        dm.measure_positions(demo, "a text of some words", **arguments)
    with pytest.raises(TypeError, match="expected a model"):
        dm.measure_positions("demo", "a text")
