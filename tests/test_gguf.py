"""GGUF files as models: tiny ones that are written here, whole and damaged."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from command import call
from conftest import IDS, VOCABULARY
from test_placement import lora, make_module, of_peft

import densitometer as dm
from densitometer.errors import ModelError
from densitometer.models.gguf import read_header

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("rows_skipped")]

HIDDEN, WIDTH, LAYERS, HEADS, GROUPS = 24, 44, 2, 4, 2


def write_gguf(path: Path, architecture: str = "llama", shards: int | None = None) -> Path:
    """A tiny model of random float32 weights, without a tokenizer."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if shards is not None:
        writer.add_uint16("split.count", shards)
    drawn = numpy.random.default_rng(3)

    def add(name: str, *shape: int) -> None:
        scale = 1.0 if len(shape) == 1 else 0.2
        writer.add_tensor(name, (scale * drawn.standard_normal(shape)).astype(numpy.float32))

    key = HIDDEN // HEADS * GROUPS
    add("token_embd.weight", VOCABULARY, HIDDEN)
    add("output_norm.weight", HIDDEN)
    add("output.weight", VOCABULARY, HIDDEN)
    for i in range(LAYERS):
        add(f"blk.{i}.attn_norm.weight", HIDDEN)
        add(f"blk.{i}.attn_q.weight", HIDDEN, HIDDEN)
        add(f"blk.{i}.attn_k.weight", key, HIDDEN)
        add(f"blk.{i}.attn_v.weight", key, HIDDEN)
        add(f"blk.{i}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{i}.ffn_norm.weight", HIDDEN)
        add(f"blk.{i}.ffn_gate.weight", WIDTH, HIDDEN)
        add(f"blk.{i}.ffn_up.weight", WIDTH, HIDDEN)
        add(f"blk.{i}.ffn_down.weight", HIDDEN, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def load(name, **keywords):
    """The model, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = dm.load_model(name, **keywords)
    return model, [str(warning.message) for warning in caught]


def test_a_gguf_file_is_a_model(tiny):
    model, _ = load(tiny)
    assert model.name == str(tiny)
    assert model.adapter.dtype == torch.float32
    assert dm.check_model(model, IDS).passed
    # the file's own numbers, read by the library that defines the format
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(str(tiny)).tensors}
    for i, layer in enumerate(model.module.model.layers):
        down = torch.from_numpy(numpy.array(stored[f"blk.{i}.ffn_down.weight"]))
        assert torch.equal(layer.mlp.down_proj.weight.data, down)
    # the last bits of products depend on where weights lie, so they lie alike in each process
    assert [name for name, weight in model.module.named_parameters() if weight.data_ptr() % 64] == []


def test_the_file_its_quantisation_and_its_fingerprint_are_told(tiny, tmp_path):
    model, _ = load(tiny)
    m = dm.measure(model, IDS, sizes=[0.4, 1.0])
    assert (m.model["file"], m.model["quantization"]) == ("tiny.gguf", "F32")
    assert m.model["fingerprint"] == model.commit
    m.save(tmp_path / "m.json")
    assert dm.load_measurement(tmp_path / "m.json").model == m.model
    # a byte in the middle of the weights is another model
    changed = shutil.copy(tiny, tmp_path / "tiny.gguf")
    content = bytearray(Path(changed).read_bytes())
    content[len(content) // 2] ^= 1
    Path(changed).write_bytes(content)
    assert load(changed)[0].commit != model.commit


def test_a_folder_with_a_file_is_that_file(tiny):
    one, other = load(tiny)[0], load(tiny.parent, gguf_file=tiny.name)[0]
    assert torch.equal(one.adapter.logits(IDS), other.adapter.logits(IDS))
    assert one.commit == other.commit
    with pytest.raises(dm.DensitometerError, match=r"holds GGUF files; name one: '.*tiny\.gguf'"):
        dm.load_model(tiny.parent)
    with pytest.raises(dm.DensitometerError, match=r"no file 'other\.gguf' in .*; it holds tiny\.gguf"):
        dm.load_model(tiny.parent, gguf_file="other.gguf")
    with pytest.raises(ValueError, match="is a GGUF file already"):
        dm.load_model(tiny, gguf_file="tiny.gguf")
    with pytest.raises(dm.DensitometerError, match="there is no file"):
        dm.load_model(tiny.parent / "none.gguf")


def test_without_a_tokenizer_ids_are_measured_and_texts_are_refused(tiny):
    model, warned = load(tiny)
    assert model.tokenizer is None
    assert any("no tokenizer can be built from the GGUF file" in message for message in warned)
    assert dm.measure(model, IDS, sizes=[1.0], baselines=()).graph["n_tokens"] == len(IDS)
    with pytest.raises(ValueError, match="token ids only"):
        dm.measure(model, "some text")
    assert load(tiny, tokenizer=False)[1] == []


def test_a_plan_reads_the_header_alone(tiny, monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight was read")

    with monkeypatch.context() as watched:
        watched.setattr(gguf, "dequantize", refuse)
        with pytest.raises(Exception, match="a weight was read"):
            load(tiny)
        assert dm.plan(tiny, length=7).n_layers == LAYERS
    n_layers = dm.plan(tiny, length=7).n_layers
    assert n_layers == LAYERS
    plan = dm.plan(tiny.parent, length=7, gguf_file="tiny.gguf")
    assert plan.n_edges == dm.build_graph(load(tiny)[0], IDS).n_edges


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_cut_file_is_one_clear_line(tiny, tmp_path, share):
    content = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(dm.DensitometerError, match=r"'cut\.gguf'.*(cut short|not a GGUF file)") as caught:
        dm.load_model(cut)
    assert "\n" not in str(caught.value)


def test_a_damaged_header_neither_hangs_nor_guesses(tiny, tmp_path):
    """Each byte of the first 400 set to 255 in turn: a clear refusal, or the same model."""
    content = tiny.read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for at in range(4, 400, 7):
        damaged.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
        with contextlib.suppress(ModelError):
            read_header(damaged)  # any other error, or none that ends, is a fault


def test_other_architectures_and_shards_are_refused_by_name(tmp_path):
    with pytest.raises(dm.DensitometerError, match=r"cannot build a model of the architecture 'warp'"):
        dm.load_model(write_gguf(tmp_path / "warp.gguf", "warp"))
    with pytest.raises(dm.DensitometerError, match=r"one of the 3 files.*llama-gguf-split --merge"):
        dm.load_model(write_gguf(tmp_path / "tiny-00001-of-00003.gguf", shards=3))


def test_a_missing_library_is_named_with_the_extra(tiny, monkeypatch):
    monkeypatch.setattr("densitometer.models.gguf._NEEDED", ("gguf", "no_such_library"))
    with pytest.raises(
        dm.DensitometerError, match=r"needs no_such_library.*pip install 'densitometer\[gguf\]'"
    ):
        dm.load_model(tiny)


def test_the_command_takes_a_file_where_it_takes_a_model(tiny, tmp_path):
    checked = call("doctor", tiny, "--json", tmp_path / "check.json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads((tmp_path / "check.json").read_text())["passed"]
    refused = call("measure", "some text", "-m", tiny)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") <= 2


@of_peft
def test_an_adapter_folder_is_laid_onto_its_base_model(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_module("llama").save_pretrained(base)
    wrapped = lora(make_module("llama"), "o_proj", "up_proj")
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(adapter)
    model = dm.load_model(adapter)
    with torch.no_grad():
        expected = wrapped.eval()(torch.tensor([IDS])).logits[0, -1]
    torch.testing.assert_close(model.adapter.logits(IDS), expected)
    plain = dm.load_model(base)
    assert not torch.allclose(plain.adapter.logits(IDS), expected, atol=1e-3)
    assert model.commit not in (None, plain.commit)
    assert dm.check_model(model, IDS).passed


@of_peft
def test_an_adapter_without_its_base_says_which_is_lacking(tmp_path):
    wrapped = lora(make_module("llama"), "o_proj")
    make_module("llama").save_pretrained(tmp_path / "gone")
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "gone")
    wrapped.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(dm.DensitometerError, match=r"base model '.*gone' of the adapter"):
        dm.load_model(tmp_path / "adapter")


def test_a_name_that_begins_with_a_tilde_is_in_the_home_folder(tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert load("~/tiny.gguf")[0].commit == load(tiny)[0].commit
