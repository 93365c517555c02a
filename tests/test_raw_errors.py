"""What ended in a raw error, or ran in an unusual state of torch: one clear message, or the plain module's numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from command import call
from conftest import CONFIGS, IDS, make_module

import densitometer as dm
from densitometer.models.source import DEMO_FOLDER

SIZES = [0.2, 0.6, 1.0]


def numbers(model):
    m = dm.measure(model, IDS, sizes=SIZES, baselines=(), importance="l1")
    return m.curve["tv"].to_list(), m.prediction["probability"].to_list()


@pytest.mark.parametrize("texts", [None, 5, "one text", dm])
def test_texts_of_reference_means_are_a_list(demo, texts):
    with pytest.raises(dm.DensitometerError, match="texts must be a list"):
        dm.reference_means(demo, texts)


def test_reference_means_take_a_model(demo):
    with pytest.raises(dm.DensitometerError, match="load_model, got NoneType"):
        dm.reference_means(None, ["one two three"])


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(5, dtype=torch.long, device="meta"), torch.tensor([3, 4, 5]).to_sparse()],
    ids=["meta", "sparse"],
)
@pytest.mark.parametrize(
    "wrap", [lambda ids: ids, lambda ids: {"input_ids": ids}, lambda ids: ids[None]], ids=range(3)
)
def test_ids_without_values_are_refused(demo, ids, wrap):
    with pytest.raises(dm.DensitometerError, match="plain tensor with values"):
        dm.measure(demo, wrap(ids))


@pytest.mark.parametrize("by", ["size", "threshold"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_embedding_of_zeros_is_measured(by, name):
    """All importances by `fisher` are 0, and have no logarithm between which thresholds could be spread."""
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        module.get_input_embeddings().weight.zero_()
    found = dm.measure(dm.load_model(module), IDS, importance=["l1", "fisher"], by=by, baselines=())
    for density in found.density.values():
        assert density.auc_log == pytest.approx(0, abs=1e-6)  # the prediction is uniform
    assert found.curve.filter(importance="fisher")["n_edges"].to_list()[-1] == found.graph.n_edges
    assert "no edge at all" in found.summary()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_that_was_cast_after_loading(dtype):
    model = dm.load_model(make_module("llama"))
    numbers(model)
    model.module.to(dtype)
    fresh = dm.load_model(make_module("llama").to(dtype))
    try:
        assert numbers(model) == numbers(fresh)
    except dm.DensitometerError as error:
        assert str(dtype).removeprefix("torch.") in str(error)  # noqa: PT017


def test_what_was_built_before_a_cast_is_not_run_after_it():
    model = dm.load_model(make_module("llama"))
    graph = dm.build_graph(model, IDS)
    kept = dm.measure(model, IDS, sizes=SIZES, importance="l1", keep_graphs=True)
    data = dm.measure(model, IDS, sizes=SIZES, importance="l1")
    model.module.half()
    for use in (
        lambda: dm.reconstruct(model, graph, [graph.trace(size=0.5)]),
        lambda: graph.trace(size=0.5).logits(),
        lambda: kept.minimal_trace(tv=0.3),
        lambda: data.minimal_trace(tv=0.3),
        lambda: data.with_graphs(),
    ):
        with pytest.raises(dm.DensitometerError, match=r"float32.*float16 now"):
            use()
    model.module.float()
    assert data.minimal_trace(tv=0.3) is not None
    assert dm.reconstruct(model, graph, [graph.trace(size=0.5)]).isfinite().all()


def test_a_module_that_went_to_the_meta_device_is_named():
    model = dm.load_model(make_module("llama"))
    model.module.to("meta")
    with pytest.raises(dm.DensitometerError, match="meta"):
        numbers(model)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_nothing(demo, device):
    plain = numbers(dm.load_model(make_module("llama")))
    before = dm.measure_positions(demo, "The captain", sizes=[0.3, 1.0])
    torch.set_default_device(device)
    try:
        positions = dm.measure_positions(demo, "The captain", sizes=[0.3, 1.0])
        means = dm.reference_means(demo, ["The captain looked"])
        graph = dm.build_graph(demo, "The captain looked")
        logits = dm.reconstruct(demo, graph, [graph.trace(size=0.5)])
        trace = dm.measure(demo, "The captain looked", importance="l1", keep_graphs=True).minimal_trace(
            tv=0.1
        )
        loaded = dm.load_model("demo")
        assert loaded.device.type == "cpu"
    finally:
        torch.set_default_device(None)
    assert positions.equals(before)
    assert logits.device.type == "cpu"
    assert trace is not None
    assert means.provenance["n_texts"] == 1
    torch.set_default_device(device)
    try:
        again = dm.measure(demo, "The captain looked", sizes=SIZES)
    finally:
        torch.set_default_device(None)
    assert again.curve.equals(dm.measure(demo, "The captain looked", sizes=SIZES).curve)
    assert plain == numbers(dm.load_model(make_module("llama")))


@pytest.mark.parametrize("when", ["before", "after", "a layer"])
def test_a_compiled_module_runs_as_it_was_written(when):
    """`module.compile()` replaces what a call of the module runs, and would be traced once for each mask."""
    plain = numbers(dm.load_model(make_module("llama")))
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    module = make_module("llama")
    part = module.model.layers[0] if when == "a layer" else module
    if when == "after":
        model = dm.load_model(module)
        part.compile(backend=backend)
    else:
        part.compile(backend=backend)
        model = dm.load_model(module)
    called = part._compiled_call_impl
    assert numbers(model) == plain
    assert calls == []
    assert part._compiled_call_impl is called  # and is compiled afterwards, as before


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_of_another_class_is_one_clear_error(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO_FOLDER / "demo", folder)
    path = folder / "tokenizer_config.json"
    config, refused = json.loads(path.read_text()), []
    for name in (
        "T5Tokenizer",
        "BertTokenizer",
        "LlamaTokenizer",
        "WhisperTokenizer",
        "CanineTokenizer",
        "ByT5Tokenizer",
    ):
        path.write_text(json.dumps(config | {"tokenizer_class": name}))
        try:
            dm.measure(dm.load_model(folder), "The captain looked", sizes=[1.0], baselines=())
        except dm.DensitometerError as error:
            assert "tokenizer" in str(error)  # noqa: PT017
            refused.append(name)
    assert "BertTokenizer" in refused  # "WordPiece error: Missing [UNK] token", a bare Exception


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp932", "utf-16"])
def test_a_terminal_of_another_encoding_gets_its_result(encoding, tmp_path):
    result = call(
        "measure", "Der Wal – größer als 鯨 🐋", "--importance", "l1", "--sizes", "0.3,1", encoding=encoding
    )
    assert result.returncode == 0, result.stderr
    assert "TV <= 0.1" in result.stdout
    missing = call("measure", "@größer–鯨.txt", encoding=encoding)
    assert missing.returncode == 2
    assert "cannot read" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_strict_error_stream_loses_no_message(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    program = "import sys; sys.argv = ['densitometer', 'diff', 'größer–鯨.json', 'b']; from densitometer.cli.commands import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment, cwd=tmp_path, check=False
    )
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert b"cannot read" in result.stderr
