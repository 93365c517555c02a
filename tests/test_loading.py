"""Loading: bundled models, folders, modules, and everything that is no causal language model."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
import transformers
from conftest import IDS, make_module

import densitometer as dm
from densitometer.models.source import DEMO_FOLDER, bundled_models

pytestmark = pytest.mark.fast

BUNDLED = ("demo", "demo-branchnorm", "demo-parallel")


def test_three_models_are_bundled():
    assert bundled_models() == BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_small_and_say_how_they_were_made(name):
    assert (DEMO_FOLDER / name / "model.safetensors").stat().st_size <= 6_000_000
    card = (DEMO_FOLDER / name / "README.md").read_text()
    for word in ("seed", "steps", "time", "loss", "wikitext2-test.txt", "bits per byte"):
        assert word in card


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_trained(name):
    """Far better than chance on plain English and French, and better on text than on the same words shuffled."""
    model = dm.load_model(name)
    for text in (
        "The president of the United States said that the government would not be able to pay for the war.",
        "Le président de la République a déclaré que le gouvernement de la France ne peut pas payer la guerre.",
    ):
        ids = model.encode(text)
        with torch.no_grad():
            logits = model.module(torch.tensor([ids])).logits[0, :-1]
        nats = float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))
        assert nats < 0.6 * math.log(4096)


def test_the_tokenizers_are_the_same_and_round_trip():
    tokenizers = [dm.load_model(name).tokenizer for name in BUNDLED]
    text = "Ça va ? 12.5 % — “naïve” 日本\n\tend"
    assert len({tuple(t(text)["input_ids"]) for t in tokenizers}) == 1
    assert tokenizers[0].decode(tokenizers[0](text)["input_ids"]) == text
    assert len(tokenizers[0]) == 4096


def test_pieces_are_readable(demo):
    pieces = demo.pieces(demo.encode("The sea, déjà\nvu"))
    assert "".join(pieces) == "The sea, déjà\nvu"
    assert any(piece.startswith("\\x") for piece in demo.pieces(demo.encode("日 本 語")))


def test_a_folder_and_a_module_give_the_same_model(tmp_path, make_model):
    module = make_module("llama")
    module.save_pretrained(tmp_path / "saved")
    loaded = dm.load_model(tmp_path / "saved", tokenizer=False)
    assert loaded.name == str(tmp_path / "saved")
    torch.testing.assert_close(loaded.adapter.logits(IDS), make_model("llama").adapter.logits(IDS))


def test_keywords_reach_hugging_face(tmp_path):
    assert dm.load_model("demo", dtype=torch.bfloat16).adapter.dtype == torch.bfloat16
    assert dm.load_model("demo", dtype="float16").adapter.dtype == torch.float16
    assert dm.load_model("demo").adapter.dtype == torch.float32


def test_encoders_and_encoder_decoders_are_refused(tmp_path):
    encoder = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertForMaskedLM(encoder).save_pretrained(tmp_path / "bert")
    t5 = transformers.T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(dm.DensitometerError, match=r"encoder"):
        dm.load_model(tmp_path / "bert", tokenizer=False)
    with pytest.raises(dm.DensitometerError, match="encoder-decoder"):
        dm.load_model(tmp_path / "t5", tokenizer=False)
    with pytest.raises(dm.DensitometerError, match="encoder-decoder"):
        dm.load_model(transformers.T5ForConditionalGeneration(t5))
    with pytest.raises(dm.DensitometerError):
        dm.load_model(transformers.BertModel(encoder))


def test_a_headless_model_is_refused():
    config = make_module("llama").config
    with pytest.raises(dm.DensitometerError, match="no language-model head"):
        dm.load_model(transformers.LlamaModel(config))


def test_things_that_are_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"')
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    (tmp_path / "weightless").mkdir()
    make_module("llama").config.save_pretrained(tmp_path / "weightless")
    for name, message in (
        ("empty", "no config.json"), ("file.txt", "is a file"), ("broken", "cannot load"),
        ("strange", "cannot load"), ("weightless", "cannot load"), ("missing", "there is no folder"),
    ):  # fmt: skip
        with pytest.raises(dm.DensitometerError, match=message):
            dm.load_model(tmp_path / name)
    with pytest.raises(dm.DensitometerError, match="demo"):
        dm.load_model("")
    for value in (None, 3, ["demo"]):
        with pytest.raises(TypeError):
            dm.load_model(value)
    with pytest.raises(dm.DensitometerError, match="PreTrainedModel"):
        dm.load_model(torch.nn.Linear(2, 3))


def test_an_unknown_hub_id_is_one_error_that_names_what_is_bundled(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(dm.DensitometerError, match=r"nobody/nothing.*demo"):
        dm.load_model("nobody/nothing", local_files_only=True)


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'cuda:77'"):
        dm.load_model("demo", device="cuda:77")


def test_keywords_for_a_module_are_refused():
    with pytest.raises(ValueError, match="revision"):
        dm.load_model(make_module("llama"), revision="main")


def test_a_handler_of_transformers_that_was_off_stays_off():
    transformers.utils.logging.disable_default_handler()
    try:
        before = list(logging.getLogger("transformers").handlers)
        dm.load_model("demo")
        assert logging.getLogger("transformers").handlers == before
    finally:
        transformers.utils.logging.enable_default_handler()
    before = list(logging.getLogger("transformers").handlers)
    dm.load_model("demo")
    assert logging.getLogger("transformers").handlers == before


def test_the_old_name_of_the_dtype_is_heeded_too():
    assert dm.load_model("demo", torch_dtype=torch.bfloat16).adapter.dtype is torch.bfloat16
