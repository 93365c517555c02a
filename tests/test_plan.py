"""A plan from the config alone: its edges are those of a real run, its memory that of a real process."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import transformers
from architectures import IDS as NINE
from architectures import KINDS, tiny_module
from command import SERVER, call
from conftest import CONFIGS, IDS, VOCABULARY, make_module

import densitometer as dm
from densitometer.models.blueprint import blueprint

plan_room = import_module("densitometer.measuring.planning")


@pytest.fixture
def folder(tmp_path):
    """A folder with a config.json and nothing else."""

    def write(config):
        config.save_pretrained(tmp_path)
        return tmp_path

    return write


def bytes_of(module):
    owned = {id(t): t for t in [*module.parameters(), *module.buffers()]}.values()
    return sum(t.numel() * t.element_size() for t in owned)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_edges_and_weights_are_those_of_a_real_run(make_model, folder, name):
    model = make_model(name)
    planned = dm.plan(folder(CONFIGS[name]()), len(IDS))
    assert planned.edges_exact
    assert planned.n_edges == dm.build_graph(model, IDS).n_edges
    assert planned.memory["cpu"]["weights"] == bytes_of(model.module)
    assert planned.n_layers == 3


@pytest.mark.parametrize("name", ["demo", "demo-parallel", "demo-branchnorm"])
def test_bundled_models_are_planned_by_name(name):
    graph = dm.build_graph(dm.load_model(name), list(range(5, 24)))
    assert dm.plan(name, 19).n_edges == graph.n_edges


@pytest.mark.slow
def test_every_architecture_that_can_be_measured_is_planned(tmp_path):
    wrong, exact = [], 0
    for kind in KINDS:
        if kind in ("blt", "chameleon"):  # not small
            continue
        try:
            model = dm.load_model(tiny_module(kind))
            graph = dm.build_graph(model, NINE)
        except Exception:
            continue
        model.module.config.save_pretrained(tmp_path / kind)
        try:
            planned = dm.plan(tmp_path / kind, len(NINE))
        except dm.DensitometerError:
            continue
        exact += planned.edges_exact
        right = planned.n_edges == graph.n_edges if planned.edges_exact else planned.n_edges >= graph.n_edges
        if not right or planned.memory["cpu"]["weights"] != bytes_of(model.module):
            wrong.append(kind)
    assert wrong == []
    assert exact >= 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_one_that_the_model_is_loaded_in(tmp_path, dtype):
    make_module("llama").to(dtype).save_pretrained(tmp_path)
    model = dm.load_model(tmp_path)
    planned = dm.plan(tmp_path, 7)
    assert (
        planned.dtype == str(model.adapter.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
    )
    assert planned.memory["cpu"]["weights"] == bytes_of(model.module)


def test_no_weight_is_read(folder):
    """Weights that are garbage do not matter to a plan; they do to `load_model`."""
    where = folder(CONFIGS["llama"]())
    (where / "model.safetensors").write_bytes(b"no weights at all")
    assert dm.plan(where, 7).n_edges > 0
    with pytest.raises(Exception, match="header"):  # what safetensors says of garbage
        dm.load_model(where)


def test_a_window_is_seen_in_the_config(folder):
    config = CONFIGS["mistral-window"]()
    windowed = dm.plan(folder(config), 40).n_edges
    config.sliding_window = None
    assert windowed < dm.plan(folder(config), 40).n_edges


def test_masks_too_long_to_make_are_bounded_from_above(folder, monkeypatch):
    from densitometer.models import blueprint as room

    where = folder(CONFIGS["mistral-window"]())
    exact = dm.plan(where, 40)
    monkeypatch.setattr(room, "LONGEST", 20)
    bounded = dm.plan(where, 40)
    assert exact.edges_exact
    assert not bounded.edges_exact
    assert bounded.n_edges > exact.n_edges
    text = CONFIGS["mistral-window"]()
    layers, heads, t = text.num_hidden_layers, text.num_attention_heads, 40
    unreached = 2 * (t - 1) + heads * t * (t - 1) // 2 + (t - 1)
    assert bounded.n_edges == layers * (heads * t * (t + 1) // 2 + 3 * t) - unreached


def test_a_model_that_looks_at_values_is_read_from_its_config(folder, monkeypatch):
    from densitometer.models import blueprint as room

    where = folder(CONFIGS["llama"]())
    seen = blueprint(where, 9)
    monkeypatch.setattr(room, "_run", lambda *_: None)
    read = blueprint(where, 9)
    assert not read.exact
    assert [replace(layer, allowed=None) for layer in seen.layers] == list(read.layers)
    assert (read.hidden_size, read.weight_bytes) == (seen.hidden_size, seen.weight_bytes)


SHAPES = {  # arguments of a config, tokens, importance
    "weights": ({"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12,
                 "num_key_value_heads": 4, "vocab_size": 4001}, 9, "l1"),
    "edges": ({"hidden_size": 96, "intermediate_size": 250, "num_hidden_layers": 9, "num_attention_heads": 16,
               "num_key_value_heads": 8, "vocab_size": 3001}, 80, "l1,fisher"),
    "vocabulary": ({"hidden_size": 200, "intermediate_size": 500, "num_hidden_layers": 3, "num_attention_heads": 5,
                    "num_key_value_heads": 5, "vocab_size": 150001, "tie_word_embeddings": True}, 21, "l1"),
}  # fmt: skip


def peak_of_a_measurement(folder, length, names, told):
    """Send how far the memory of this process rises while it loads and measures a model."""
    demo = dm.load_model("demo")
    # everything is imported and started now
    dm.measure(demo, "the whale and the ship", importance=names, sizes=[0.1])
    before = plan_room.resident_bytes()
    model = dm.load_model(folder, tokenizer=demo.tokenizer)
    ids = [(7919 * i + 17) % 3000 for i in range(length)]
    dm.measure(model, ids, importance=names, sizes=[0.01, 0.1, 0.3])
    told.send(plan_room.resident_bytes()[1] - before[0])


@pytest.mark.skipif(plan_room.resident_bytes() is None, reason="the system does not tell a process's memory")
@pytest.mark.parametrize("name", list(SHAPES))
def test_predicted_peak_is_within_25_percent_of_a_process(tmp_path, name):
    arguments, length, names = SHAPES[name]
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**arguments)).save_pretrained(tmp_path)
    heard, told = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=peak_of_a_measurement, args=(tmp_path, length, names.split(","), told))
    process.start()
    told.close()
    measured = heard.recv()
    process.join()
    assert measured > 100e6
    planned = dm.plan(tmp_path, length, importance=names.split(","), sizes=[0.01, 0.1, 0.3])
    assert planned.peak_bytes == pytest.approx(measured, rel=0.25)


def test_disk_is_within_25_percent_of_a_file(demo, tmp_path):
    ids = list(range(40, 61))
    dm.measure(demo, ids, importance=["l1", "l2"]).save(tmp_path / "m.json")
    planned = dm.plan("demo", len(ids), importance=["l1", "l2"], texts=3)
    assert planned.disk_bytes / 3 == pytest.approx((tmp_path / "m.json").stat().st_size, rel=0.25)


def test_the_shape_of_a_plan_is_that_of_a_run(make_model, folder):
    for name in ("llama", "neox", "gemma2"):
        graph = dm.build_graph(make_model(name), IDS)
        planned, records = (
            plan_room.shape_of(blueprint(folder(CONFIGS[name]()), len(IDS))),
            graph.forward.records,
        )
        heads = [(r.weights.shape[0], r.values.shape[0], r.key_size, r.values.shape[-1]) for r in records]
        assert list(planned.heads) == heads
        assert planned.size == graph.space.size
        assert (planned.hidden_size, planned.vocabulary_size) == (records[0].stream.shape[-1], VOCABULARY)


def test_more_of_anything_takes_more():
    small = dm.plan("demo", 30)
    assert dm.plan("demo", 60).peak_bytes > small.peak_bytes
    assert dm.plan("demo", 30, importance=["l1", "l2"]).peak_bytes > small.peak_bytes
    assert dm.plan("demo", 30, texts=7).disk_bytes == 7 * small.disk_bytes
    half = dm.plan("demo", 30, dtype="bfloat16").memory["cpu"]["weights"]
    assert half < 0.6 * small.memory["cpu"]["weights"]


@pytest.mark.parametrize(
    ("length", "measured"),
    [(100, [8, 8, 40, 40]), (40, [8, 8, 40, 40]), (15, [3, 3, 15, 15]), (9, [2, 2, 9, 9]), (2, [2, 2, 3, 3])],
)
def test_a_time_is_read_off_a_line_through_two_short_texts(monkeypatch, length, measured):
    """On a clock that only measuring moves: 3 s a text, 0.5 s a token, and 60 s at first and now and then."""
    asked, clock = [], [0.0]

    def measure(model, ids, settings):
        clock[0] += 3 + 0.5 * len(ids) + 60 * (len(asked) in (0, 3))
        asked.append((model.name, len(ids), settings.importance, settings.sizes))

    monkeypatch.setattr(plan_room, "measured", measure)
    monkeypatch.setattr(plan_room, "perf_counter", lambda: clock[0])
    planned = dm.plan("demo", length, texts=7, importance=["l2", "fisher"], sizes=[0.1, 0.3], time=True)
    assert planned.seconds == pytest.approx(7 * (3 + 0.5 * length))
    assert asked == [("demo", n, ("l2", "fisher"), (0.1, 0.3)) for n in measured]
    assert f"about {planned.seconds:,.1f} s, " in repr(planned)


def test_a_time_does_not_fall_where_the_longer_text_was_quicker(monkeypatch):
    clock = [0.0]

    def measure(model, ids, settings):
        clock[0] += 5.0 / len(ids)

    monkeypatch.setattr(plan_room, "measured", measure)
    monkeypatch.setattr(plan_room, "perf_counter", lambda: clock[0])
    assert dm.plan("demo", 400, time=True).seconds == pytest.approx(5.0 / 40)


@pytest.mark.parametrize("length", [2, 30])
def test_a_dry_run_measures(length):
    assert dm.plan("demo", length, time=True).seconds > 0


def test_nothing_is_loaded_unless_a_time_is_asked_for_and_the_memory_fits(monkeypatch):
    monkeypatch.setattr(plan_room, "load_model", lambda *_, **__: pytest.fail("loaded"))
    planned = dm.plan("demo", 30)
    assert planned.seconds is None
    assert " s, " not in repr(planned)
    monkeypatch.setattr(plan_room, "free_bytes", lambda device: 1)
    assert dm.plan("demo", 30, time=True).seconds is None


def test_a_dry_run_loads_what_the_plan_is_of(monkeypatch):
    models = []
    monkeypatch.setattr(plan_room, "measured", lambda model, *_: models.append(model))
    dm.plan("demo", 9, dtype="bfloat16", device="cpu", time=True)
    assert models[0].dtype == torch.bfloat16
    assert models[0].tokenizer is None


def test_the_graph_stays_on_the_cpu_wherever_the_model_is():
    on_gpu, on_cpu = dm.plan("demo", 50, device="cuda:1"), dm.plan("demo", 50)
    assert set(on_gpu.peaks) == {"cuda:1", "cpu"}
    assert on_gpu.peak_bytes == on_gpu.peaks["cuda:1"]
    assert on_gpu.memory["cuda:1"]["weights"] == on_cpu.memory["cpu"]["weights"]
    assert on_gpu.memory["cpu"]["traces"] == on_cpu.memory["cpu"]["traces"]


def test_what_does_not_fit_comes_with_what_to_change(monkeypatch):
    planned = dm.plan("demo", 400, importance=["l1", "fisher"])
    assert planned.fits
    assert planned.advice == ()
    monkeypatch.setattr(plan_room, "free_bytes", lambda device: planned.peak_bytes // 4)
    tight = dm.plan("demo", 400, importance=["l1", "fisher"])
    assert not tight.fits
    assert repr(planned).startswith(f"Plan(demo, 1 x 400 tokens, {planned.n_edges:,} edges, ")
    assert repr(planned).endswith("MB on cpu; fits)")
    assert repr(tight).endswith(f"does not fit: {'; '.join(tight.advice)})")
    said = "\n".join(tight.advice)
    for part in ("--length", "--dtype bfloat16", "--importance l1", "fewer sizes"):
        assert part in said
    shorter = int(said.split("--length ")[1].split()[0])
    assert dm.plan("demo", shorter, importance=["l1", "fisher"]).fits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", 1), "at least 2, got 1"),
        (("demo", 513), "513 tokens is more than the 512"),
        (("demo", 9.5), "integer, got 9.5"),
        (("demo", 9, 0), "at least 1, got 0"),
        (("demo", 9, 1, "l7"), "l7"),
        (("demo", 9, 1, ()), "got none"),
        (("demo", 9, 1, "l1", None, "float12"), "float12"),
        (("demo", 9, 1, "l1", None, None, "toaster"), "toaster"),
        (("no-such-model", 9), "no-such-model"),
        ((torch.nn.Linear(2, 3), 9), "Linear"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(dm.DensitometerError, match=message):
        dm.plan(*arguments)


def test_a_model_that_cannot_be_measured_is_told_before_it_is_loaded(folder):
    with pytest.raises(dm.DensitometerError, match="encoder-decoder"):
        dm.plan(folder(transformers.T5Config()), 9)
    with pytest.raises(dm.DensitometerError, match="layout"):
        dm.plan(folder(transformers.MambaConfig(num_hidden_layers=2, hidden_size=16, vocab_size=50)), 9)


# --- the command ------------------------------------------------------------------------------------


def test_the_command_prints_the_plan_and_writes_it(tmp_path):
    result = call("plan", "demo-parallel", "--length", 100, "--texts", 3, "--json", tmp_path / "p.json")
    assert result.returncode == 0, result.stderr
    for part in ("GPTNeoXForCausalLM", "153,102", "peak on cpu", "for 3 texts", "its memory fits"):
        assert part in result.stdout
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["n_edges"] == 153102
    assert document["fits"]
    assert document["seconds"] is None
    assert "last_run" not in document


def test_the_command_prints_a_time_where_it_is_asked_for(tmp_path):
    assert "not known: no weight is loaded" in call("plan", "demo", "--length", 9).stdout
    result = call("plan", "demo", "--length", 9, "--texts", 3, "--time", "--json", tmp_path / "p.json")
    assert result.returncode == 0, result.stderr
    assert "for 3 texts, rough: by a dry run of two short texts" in " ".join(result.stdout.split())
    assert json.loads((tmp_path / "p.json").read_text())["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan", "demo"], 2, "length"),
        (["plan", "demo", "--length", "1"], 2, "at least 2"),
        (["plan", "demo", "--length", "9", "--dtype", "float12"], 2, "float12"),
        (["plan", "no-such-model", "--length", "9"], 1, "no-such-model"),
    ],
)
def test_the_command_exits_as_the_contract_says(arguments, code, message):
    result = call(*arguments)
    assert result.returncode == code
    assert message in result.stderr


# --- memory that is not here, or given


def test_where_a_device_is_not_here_nothing_is_said_to_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planned = dm.plan("demo", 50, device="cuda")
    assert planned.fits is None
    assert planned.unknown == ("cuda",)
    assert "the memory of cuda cannot be read here; give it: --memory cuda=24GB" in repr(planned)
    assert planned.to_document()["fits"] is None
    result = call("plan", "demo", "--length", 50, "--device", "cuda")
    assert result.returncode == 0, result.stderr
    assert "its memory fits" not in result.stdout.replace("whether its memory fits is not known", "")
    assert "whether its memory fits is not known" in result.stdout


def test_a_budget_takes_the_place_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dm.plan("demo", 50, device="cuda", memory="24GB").fits is True
    peak = dm.plan("demo", 50, device="cuda").peaks["cuda"]
    assert dm.plan("demo", 50, device="cuda", memory=peak).fits is True
    tight = dm.plan("demo", 50, device="cuda", memory=peak - 1)
    assert tight.fits is False
    assert tight.available["cuda"] == peak - 1
    assert "--length" in "\n".join(tight.advice)
    both = dm.plan("demo", 50, device="cuda", memory={"cuda": "24GB", "cpu": "1kB"})
    assert both.fits is False
    result = call("plan", "demo", "--length", 50, "--device", "cuda", "--memory", "cuda=24GB,cpu=64GB")
    assert result.returncode == 0, result.stderr
    assert "its memory fits" in result.stdout
    assert "of 24 GB given" in result.stdout
    assert "does not fit" in call("plan", "demo", "--length", 50, "--memory", "1MB").stdout


@pytest.mark.parametrize(
    ("amount", "expected"),
    [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("7kb", 7000), ("80000", 80000), (12, 12)],
)
def test_amounts_of_memory(amount, expected):
    assert dm.plan("demo", 9, memory=amount).available["cpu"] == expected


@pytest.mark.parametrize(
    "amount", ["", "much", "-3GB", "0GB", 0, True, 2.5, "24 Gb of it", {"cuda": "24GB"}, {"cpu": None}]
)
def test_an_unusable_amount_of_memory_is_named(amount):
    with pytest.raises(dm.DensitometerError, match="memory"):
        dm.plan("demo", 9, memory=amount)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shards", ["1GB", "20kB"])
def test_a_config_without_a_dtype_is_planned_in_that_of_the_weights(tmp_path, dtype, shards):
    make_module("llama").to(dtype).save_pretrained(tmp_path, max_shard_size=shards)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("dtype") is not None
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = dm.load_model(tmp_path)
    assert dm.plan(tmp_path, 7).dtype == str(model.adapter.dtype).removeprefix("torch.")
    assert dm.plan(tmp_path, 7, dtype="auto").dtype == str(dtype).removeprefix("torch.")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert dm.plan(tmp_path, 7, dtype="float16").dtype == "float16"


def test_gradients_are_planned_before_orders_and_traces(tmp_path):
    """A process holds the one or the other, so a plan that adds them is too high."""
    arguments = {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 23,
        "num_attention_heads": 8,
    }
    config = transformers.LlamaConfig(**arguments, vocab_size=211)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    fisher, l1 = (dm.plan(tmp_path, 150, importance=name, sizes=[0.1, 1.0]) for name in ("fisher", "l1"))
    assert list(fisher.memory["cpu"]) == ["weights", "recorded run", "importances and orders", "gradients"]
    assert fisher.memory["cpu"]["importances and orders"] == 0
    assert list(l1.memory["cpu"])[3:] == ["traces", "logits", "masked runs or sorting"]
    assert fisher.peak_bytes > l1.peak_bytes


def test_a_long_input_is_planned_tile_by_tile(monkeypatch):
    assert "masked runs or gradients" not in dm.plan("demo", 400).memory["cpu"]
    monkeypatch.setattr(plan_room, "STORED_EDGES", 10**5)
    assert "masked runs or gradients" in dm.plan("demo", 400).memory["cpu"]
    twice = dm.plan("demo", 400, importance=["l1", "fisher"]).memory["cpu"]
    once = dm.plan("demo", 200, importance=["l1", "fisher"]).memory["cpu"]
    assert twice["kept gradients"] == 2 * once["kept gradients"]
    # of each layer: 8 projections of a value of each head, and the values of its key-value heads
    config = dm.load_model("demo").config
    value = config.head_dim
    numbers = 8 * config.num_attention_heads * value + config.num_key_value_heads * value
    assert once["kept gradients"] == 4 * 200 * config.num_hidden_layers * numbers
    refused = dm.plan("demo", 400, importance="proximity", memory="10MB")
    assert not refused.fits
    assert any("--importance l1,fisher" in line for line in refused.advice)
