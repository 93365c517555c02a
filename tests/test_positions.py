"""Density along a text: every row is what a measurement of that position finds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy
import polars
import pytest
import torch
import transformers
from conftest import IDS, VOCABULARY
from torch.utils.flop_counter import FlopCounterMode

import densitometer as dm
from densitometer.graph.forward_pass import run_forward
from densitometer.graph.importance import registry as importance
from densitometer.graph.masked_runs import masked_logits
from densitometer.graph.tiled import tiles
from densitometer.measuring import positions
from densitometer.models import adapter

pytestmark = pytest.mark.usefixtures("rows_skipped")

SIZES = [0.003, 0.02, 0.09, 0.3, 0.7, 1.0]
LAYOUTS = ("llama", "mistral-window", "neox", "gemma2", "opt", "mixtral", "gpt-oss")


def row_of(m: dm.Measurement, name: str, eps: float) -> dict:
    density = m.density[name]
    return {
        "position": m.input["position"],
        "token": m.input["tokens"][m.input["position"]],
        "token_id": m.input["ids"][m.input["position"]],
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


def test_positions_beyond_what_is_stored_are_measured_tile_by_tile(make_model, monkeypatch):
    model = make_model("llama")
    stored = dm.measure_positions(model, IDS, sizes=SIZES, eps=0.3)
    monkeypatch.setattr(tiles, "STORED_EDGES", 18 * 5**2)  # of 7 tokens
    table = dm.measure_positions(model, IDS, sizes=SIZES, eps=0.3)
    for got, want in zip(table.rows(named=True), stored.rows(named=True), strict=True):
        if got["position"] >= 5:
            alone = dm.measure(model, IDS, importance="l1", sizes=SIZES, eps=0.3, position=got["position"])
            assert alone.provenance.edges == "tiled"
            assert got["n_edges"] == want["n_edges"]
            want = row_of(alone, "l1", 0.3)
        assert_same(got, want)


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
    table = dm.measure_positions(model, IDS, importance=names, sizes=SIZES, seed=5, eps=0.2)
    for row in table.iter_rows(named=True):
        alone = dm.measure(
            model, IDS, importance=names, sizes=SIZES, position=row["position"], baselines=(), seed=5, eps=0.2
        )
        assert_same(row, row_of(alone, row["importance"], 0.2))


def test_the_other_semantics_are_followed(demo):
    ids = demo.encode("The harbour was quiet")
    means = dm.reference_means(demo, ["The king had three sons.", "A ship lay in the bay"])
    for settings in ({"attention": "frozen"}, {"ablation": means}):
        table = dm.measure_positions(demo, ids, sizes=SIZES, **settings)
        alone = dm.measure(demo, ids, sizes=SIZES, position=4, baselines=(), **settings)
        assert_same(table.row(4, named=True), row_of(alone, "l1", 0.1))


def test_a_text_is_measured_the_same_in_small_groups(demo, monkeypatch):
    # Not "The harbour was": TV 0.09999985 at one size, which machines round to either side of 0.1.
    ids = demo.encode("The sailors were quiet that morning")
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
    dm.measure_positions(model, IDS, importance=["l1", "fisher"], sizes=SIZES)
    assert captures == [IDS] or captures == [tuple(IDS)]


@pytest.mark.parametrize("name", ["cosine", "l1", "l2", "projection", "proximity"])
@pytest.mark.parametrize("layout", ["mistral-window", "neox"])
def test_local_scores_do_not_depend_on_later_tokens(make_model, name, layout):
    model = make_model(layout)
    whole, _ = run_forward(model, IDS)
    part, _ = run_forward(model, IDS, 3)
    assert importance.is_local(name)
    scores = importance.compute_importance(whole, name)
    cut = numpy.empty(part.space.size, dtype=numpy.float32)
    whole.space.copy_to(part.space, scores, cut)
    want = importance.compute_importance(part, name)
    numpy.testing.assert_allclose(cut[part.reachable], want[part.reachable], atol=2e-5)


def test_scores_of_the_prediction_are_not_local():
    for name in ("fisher", "bound", "best", "learned", "random"):
        assert not importance.is_local(name)


@pytest.mark.parametrize("layout", ["llama", "neox", "olmo2"])
@pytest.mark.parametrize("packs", [True, False])
def test_masked_logits_are_read_at_each_variants_position(make_model, layout, packs, monkeypatch):
    model = make_model(layout)
    monkeypatch.setattr(adapter.Adapter, "always_skip", packs)
    monkeypatch.setattr(adapter, "pays", lambda *_: False)
    forward, _ = run_forward(model, IDS)
    generator = numpy.random.Generator(numpy.random.PCG64(2))
    masks = [generator.random(forward.space.size) < share for share in (0.9, 0.5, 0.7, 0.2)]
    places = [6, 2, 0, 4]
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
    with pytest.raises(dm.DensitometerError, match="changes when later tokens are added"):
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
        dm.measure_positions(3, "a text")


# --- while the model writes ---------------------------------------------------------------------------


def written_by_transformers(model: dm.Model, ids: list[int], n_tokens: int) -> list[int]:
    batch = torch.tensor([ids])
    whole = model.module.generate(
        batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=n_tokens, pad_token_id=0
    )
    return whole[0].tolist()


def same_tables(got: polars.DataFrame, want: polars.DataFrame) -> None:
    order = ["importance", "position"]
    got, want = got.sort(order), want.sort(order)
    numbers = polars.selectors.float()
    assert got.select(~numbers).equals(want.select(~numbers))
    for name in got.select(numbers).columns:
        assert got[name].to_list() == pytest.approx(want[name].to_list(), abs=2e-5), name


@pytest.mark.parametrize(
    ("layout", "n_tokens"),
    [("llama", 1), ("mistral-window", positions.AHEAD), ("neox", 2), ("gpt2", positions.AHEAD + 3)],
)
def test_what_is_measured_while_the_model_writes_is_what_measuring_the_finished_text_gives(
    make_model, layout, n_tokens
):
    model, names = make_model(layout), ["l1", "random"]
    frames = list(dm.measure_generation(model, IDS, n_tokens=n_tokens, importance=names, sizes=SIZES, seed=3))
    ids = written_by_transformers(model, IDS, n_tokens)
    assert [frame["position"].unique().to_list() for frame in frames] == [
        list(range(len(IDS))),
        *([position] for position in range(len(IDS), len(ids))),
    ]
    table = polars.concat(frames)
    assert table.filter(importance="l1")["token_id"].to_list() == ids
    same_tables(table, dm.measure_positions(model, ids, importance=names, sizes=SIZES, seed=3))


def test_a_text_that_is_written_is_recorded_a_few_tokens_at_a_time(make_model, monkeypatch):
    model, captured, scored = make_model("qwen3"), [], []
    capture, score = adapter.Adapter.capture, positions.compute_importance
    monkeypatch.setattr(
        adapter.Adapter, "capture", lambda self, ids: captured.append(len(ids)) or capture(self, ids)
    )
    monkeypatch.setattr(
        positions, "compute_importance", lambda f, *rest: scored.append(f.n_tokens) or score(f, *rest)
    )
    n = 2 * positions.AHEAD
    assert (
        sum(len(frame) for frame in dm.measure_generation(model, IDS, n_tokens=n, sizes=[0.2]))
        == len(IDS) + n
    )
    assert captured == scored == [len(IDS) + n // 2, len(IDS) + n]


def test_rows_of_the_first_tokens_come_before_the_rest_is_written(make_model, monkeypatch):
    model, drawn = make_model("qwen3"), []
    tokens = positions.written
    monkeypatch.setattr(
        positions, "written", lambda *a: (drawn.append(token) or token for token in tokens(*a))
    )
    rows = dm.measure_generation(model, IDS, n_tokens=40, sizes=[0.2])
    assert drawn == []
    next(rows)
    next(rows)
    assert len(drawn) == positions.AHEAD


def test_writing_ends_with_an_end_of_sequence_token(make_model, monkeypatch):
    model = make_model("llama")
    ids = written_by_transformers(model, IDS, 6)[len(IDS) :]
    for ends in (ids[3], [100, ids[3]]):
        monkeypatch.setattr(model.module.generation_config, "eos_token_id", ends)
        table = polars.concat(dm.measure_generation(model, IDS, n_tokens=30, sizes=[0.2]))
        got = table["token_id"].to_list()[len(IDS) :]
        assert got == ids[: ids.index(ids[3]) + 1]
        assert table["surprisal"].null_count() == 1


def test_a_model_that_keeps_no_keys_writes_the_same(make_model, monkeypatch):
    model = make_model("llama")
    want = polars.concat(dm.measure_generation(model, IDS, n_tokens=4, sizes=[0.2]))
    forward, lengths = model.module.forward, []

    def keep_nothing(input_ids, past_key_values=None, **more):
        lengths.append(input_ids.shape[1])
        output = forward(input_ids=input_ids, past_key_values=past_key_values, **more)
        output.past_key_values = None
        return output

    monkeypatch.setattr(model.module, "forward", keep_nothing)
    tokens = list(islice(positions.written(model, IDS), 4))
    assert lengths == [len(IDS) + i for i in range(4)]
    assert IDS + tokens == want["token_id"].to_list()


def test_tokens_are_drawn_by_the_seed_where_it_is_not_greedy(make_model):
    model = make_model("qwen3")

    def drawn(seed: int, temperature: float = 3.0) -> list[int]:
        frames = dm.measure_generation(
            model, IDS, n_tokens=9, sizes=[0.2], seed=seed, temperature=temperature
        )
        return polars.concat(frames)["token_id"].to_list()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1, 1e-6) == drawn(2, 0) == drawn(3, 0)


@pytest.mark.parametrize(
    ("n_tokens", "more", "message"),
    [
        (0, {}, "at least 1"),
        (2.5, {}, "an integer"),
        (True, {}, "an integer"),
        (10, {"temperature": -1.0}, "temperature"),
        (10, {"temperature": float("nan")}, "temperature"),
        (600, {}, "write at most 50"),
        (10, {"importance": "nothing"}, "unknown importance"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(demo, n_tokens, more, message):
    with pytest.raises(dm.DensitometerError, match=message):
        dm.measure_generation(demo, "a text of some words", n_tokens=n_tokens, **more)


def test_a_document_of_positions_holds_the_table_and_how_it_was_made(make_model):
    model = make_model("qwen3")
    table = dm.measure_positions(model, IDS, importance=["l1", "l2"], sizes=SIZES)
    document = positions.positions_document(model, table, dm.MeasureSettings(seed=3))
    assert document["schema"] == "densitometer.positions/1"
    assert document["input"]["ids"] == IDS
    assert polars.DataFrame(document["positions"], schema=positions.TYPES).equals(table)
    assert document["provenance"]["seed"] == 3
    assert document["model"]["architecture"] == "Qwen3ForCausalLM"


# --- counted work -------------------------------------------------------------------------------------


def counted(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def narrowed() -> dm.Model:
    """SmolLM2-135M's shape with 3 of its 30 layers and fewer tokens in its vocabulary, of random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=576, intermediate_size=1536, num_hidden_layers=3, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return dm.load_model(transformers.AutoModelForCausalLM.from_config(config))


def test_a_text_is_recorded_once_for_all_positions(narrowed):
    """In plain passes; the bound is what was counted, and 2 % more: of 24 full traces, half of a pass each on average."""
    ids = list(range(7, 31))
    dm.measure_positions(narrowed, ids[:2], sizes=[1.0])  # what is tried once for each model
    whole = counted(lambda: dm.measure_positions(narrowed, ids, sizes=[1.0]))
    assert whole < 1.02 * 11.97 * counted(lambda: narrowed.adapter.logits(ids))


def test_the_work_of_a_written_token_grows_no_faster_than_the_text(narrowed):
    """In plain passes of the text, tokens 9 to 16; the bound is what was counted, and 2 % more.

    With a recording for each token it was 4.7.
    """
    frames = dm.measure_generation(narrowed, list(range(8)), n_tokens=17, sizes=[0.3, 1.0], eps=0.999)
    work = [counted(lambda: next(frames)) for _ in range(17)]
    plain = counted(lambda: narrowed.adapter.logits(list(range(24)))) / 24
    passes = [done / plain / (8 + i) for i, done in enumerate(work)]
    assert sum(passes[9:]) / 8 < 1.02 * 1.46
    assert sum(passes[9:]) < sum(passes[1:9])
