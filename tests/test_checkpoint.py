"""Checkpoints that are damaged, incomplete, contradictory, gated or not there: refused by name, in real files and processes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from conftest import IDS, make_module
from hub import COMMIT, SECRET, hub

import densitometer as dm
from densitometer.models.source import DEMO_FOLDER

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("rows_skipped")]

Tensors = dict[str, torch.Tensor]


def saved(folder: Path, kind: str = "llama", **changes: object) -> Path:
    """A model's folder, with changes to its config."""
    make_module(kind).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def edited(folder: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    path = folder / "model.safetensors"
    safetensors.torch.save_file(edit(safetensors.torch.load_file(path)), path, {"format": "pt"})
    return folder


def refusal(name: object, **keywords: object) -> str:
    with pytest.raises(dm.DensitometerError) as caught:
        dm.load_model(name, **keywords)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert str(name) in message
    return message


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in parts)}


# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "edit", "parts"),
    [
        ({"num_hidden_layers": 5}, None, ("lacks 18 of 48 weights", "model.layers.3.", "at random")),
        ({"num_hidden_layers": 2}, None, ("9 weights in its blocks", "model.layers.2.")),
        ({"vocab_size": 90}, None, ("lm_head.weight is (101, 36)", "(90, 36) by the config", "1 more")),
        ({"intermediate_size": 45}, None, ("(36, 44)", "(36, 45)", "8 more")),
        ({"hidden_size": 40}, None, ("hidden size (40)", "config.json")),
        ({"num_attention_heads": 0}, None, ("config",)),
        ({}, without("model.norm"), ("lacks 1 of 30 weights (model.norm.weight)",)),
        ({}, without("lm_head"), ("lm_head.weight",)),
        ({}, lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}, ("q_proj.bias",)),
    ],
)
def test_a_config_that_contradicts_its_weights_is_refused(tmp_path, changes, edit, parts):
    folder = saved(tmp_path / "m", **changes)
    if edit is not None:
        edited(folder, edit)
    message = refusal(folder)
    for part in parts:
        assert part in message


def test_weights_of_another_kind_of_model_are_refused(tmp_path):
    message = refusal(saved(tmp_path / "m", "qwen3", model_type="llama", architectures=["LlamaForCausalLM"]))
    assert "k_norm.weight" in message


def test_an_expert_that_is_missing_is_refused(tmp_path):
    message = refusal(edited(saved(tmp_path / "m", "mixtral"), without("experts.3.w1")))
    assert "experts" in message
    assert "above report" not in message


def test_what_older_versions_saved_and_what_is_tied_is_no_contradiction(tmp_path):
    constants = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.zeros(()),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.zeros(4),
    }
    old = edited(saved(tmp_path / "old", "neox"), lambda tensors: tensors | constants)
    tied = edited(saved(tmp_path / "tied", tie_word_embeddings=True), without("lm_head"))
    for folder in (old, tied):
        assert len(dm.load_model(folder).adapter.logits(IDS)) == 101


def test_weights_beside_the_model_are_named_in_a_warning(tmp_path):
    folder = edited(saved(tmp_path / "m"), lambda tensors: tensors | {"vision.tower.weight": torch.ones(4)})
    with pytest.warns(dm.DensitometerWarning, match=r"vision\.tower\.weight"):
        dm.load_model(folder)


@pytest.mark.parametrize("content", [b"", b"x" * 1000, None])
def test_damaged_safetensors_are_named(tmp_path, content):
    path = saved(tmp_path / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    message = refusal(path.parent)
    assert f"model.safetensors ({path.stat().st_size:,} bytes)" in message
    assert "download it again" in message


def test_a_shard_that_is_not_there_and_a_broken_index_are_named(tmp_path):
    make_module("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(dm.load_model(tmp_path).adapter.logits(IDS)) == 101
    (tmp_path / "model-00002-of-00008.safetensors").unlink()
    assert "model-00002-of-00008.safetensors" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ')
    assert "model.safetensors.index.json is not JSON" in refusal(tmp_path)


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_weights_are_read_as_tensors_or_not_at_all(tmp_path):
    folder = saved(tmp_path / "m")
    want = dm.load_model(folder).adapter.logits(IDS)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    pickled = folder / "pytorch_model.bin"
    torch.save(tensors, pickled)
    torch.testing.assert_close(dm.load_model(folder).adapter.logits(IDS), want)
    with pytest.raises(ValueError, match="weights_only=False"):
        dm.load_model(folder, weights_only=False)
    with pytest.raises(dm.DensitometerError, match=r"model\.safetensors"):
        dm.load_model(folder, use_safetensors=True)

    victim = tmp_path / "victim"
    evil = {**tensors, "x": _Runs(victim)}
    torch.save(evil, pickled)
    assert "pickle" in refusal(folder)
    pickled.write_bytes(pickle.dumps(evil))
    assert "pickle" in refusal(folder)
    assert not victim.exists()
    pickle.loads(pickled.read_bytes())["x"].close()  # noqa: S301  # it would have
    assert victim.exists()
    pickled.write_bytes(pickled.read_bytes()[:1000])
    refusal(folder)


def demo_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER / "demo", tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("config.json", b'{"model_type": "qwen3"', ("config.json is not JSON", "download it again")),
        ("config.json", b"\xff\xfe\x00", ("config.json is not JSON",)),
        ("config.json", b"{}", ("model_type", "config.json")),
        ("config.json", b"[1]", ("config.json",)),
        (
            "config.json",
            b'{"model_type": "no-such"}',
            ("does not know the model type 'no-such'", transformers.__version__),
        ),
        ("tokenizer.json", b'{"a', ("tokenizer", "tokenizer=False")),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"}}', ("tokenizer=False",)),
        ("tokenizer_config.json", b"{", ("tokenizer=False",)),
        ("tokenizer.json", None, ("tokenizer_config.json", "tokenizer=False")),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, parts):
    folder = demo_folder(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    message = refusal(folder)
    for part in parts:
        assert part in message
    if name.startswith("tokenizer"):
        assert dm.load_model(folder, tokenizer=False).tokenizer is None
        assert dm.load_model(folder, tokenizer="demo").encode("The whale")


@pytest.mark.parametrize(
    "kind", ["llama", "neox", "gpt2"]
)  # of the latter two transformers makes up empty ones
def test_without_a_tokenizer_token_ids_can_be_measured(tmp_path, kind):
    model = dm.load_model(saved(tmp_path / "m", kind))
    assert model.encode(IDS) == IDS
    with pytest.raises(ValueError, match="without a tokenizer"):
        model.encode("The whale")


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"dtype": "float7"}, ValueError, "'float7'"),
        ({"device_map": "nowhere"}, dm.DensitometerError, "nowhere"),
        ({"no_such_keyword": 3}, dm.DensitometerError, "no_such_keyword"),
        ({"quantization_config": {"quant_method": "nope"}}, dm.DensitometerError, "nope"),
    ],
)
def test_keywords_that_do_not_work_are_refused(keywords, kind, message):
    with pytest.raises(kind, match=message) as caught:
        dm.load_model("demo", **keywords)
    assert isinstance(caught.value, dm.DensitometerError)


def test_keywords_pass_through(tmp_path):
    model = dm.load_model(
        demo_folder(tmp_path),
        use_safetensors=True,
        low_cpu_mem_usage=True,
        attn_implementation="eager",
        revision="x",
    )
    assert model.module.config._attn_implementation == "eager"
    assert model.revision is None  # a folder has none


def test_code_that_comes_with_a_model_runs_only_when_trusted(tmp_path, monkeypatch):
    folder, ran = demo_folder(tmp_path), tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {
            "AutoConfig": "configuration_strange.StrangeConfig",
            "AutoModelForCausalLM": "modeling_strange.StrangeForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_strange.py").write_text(
        f"from pathlib import Path\nfrom transformers import Qwen3Config\nPath({str(ran)!r}).touch()\n"
        "class StrangeConfig(Qwen3Config):\n    model_type = 'strange'\n"
    )
    (folder / "modeling_strange.py").write_text(
        "from transformers import Qwen3ForCausalLM\nfrom .configuration_strange import StrangeConfig\n"
        "class StrangeForCausalLM(Qwen3ForCausalLM):\n    config_class = StrangeConfig\n"
    )
    for keywords in ({}, {"trust_remote_code": None}, {"trust_remote_code": False}):
        assert "give trust_remote_code=True" in refusal(folder, **keywords)
    assert not ran.exists()
    assert dm.load_model(folder, trust_remote_code=True).architecture == "StrangeForCausalLM"
    assert ran.exists()
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "modeling_strange.py").write_text("raise SystemError('out of order')\n")
    assert "out of order" in refusal(other, trust_remote_code=True)


def test_nan_in_the_weights_is_found_at_loading_with_its_layer(tmp_path):
    def spoil(tensors: Tensors) -> Tensors:
        return {k: v * float("nan") if "layers.1.mlp.down" in k else v for k, v in tensors.items()}

    with pytest.raises(dm.DensitometerError, match="layer 1"):
        dm.load_model(edited(saved(tmp_path / "m"), spoil))


# ----------------------------------------------------------------------------------------------------

CHILD = """
import json, sys
import densitometer as dm
from densitometer.measuring.records import MeasuredModel
for name, keywords in json.loads(sys.argv[1]):
    try:
        model = dm.load_model(name, **keywords)
        told = {"revision": MeasuredModel.of(model).revision, "ids": model.encode("The whale")}
    except dm.DensitometerError as error:
        told = {"error": str(error), "kind": type(error).__name__}
        try:
            dm.plan(name, 9, **keywords)
        except dm.DensitometerError as error:
            told["plan"] = str(error)
    print(json.dumps(told), flush=True)
"""


def loaded_elsewhere(cases: list, endpoint: str, home: Path, **environment: str) -> list[dict]:
    """Load models in a process that takes this endpoint for the Hub."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps(cases)], capture_output=True, text=True, check=False,
        env={**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # nor a word of tries that are repeated, which took half a minute
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(t["plan"] == t["error"] for t in told if "error" in t)  # a plan says the same
    return told


def test_the_hub_and_what_it_refuses(tmp_path):
    home = tmp_path / "home"
    bare = tmp_path / "bare"
    bare.mkdir()
    folders = {"owner/open": DEMO_FOLDER / "demo", "owner/gated": DEMO_FOLDER / "demo", "owner/bare": bare}
    cases = [
        ("owner/open", {}),
        ("owner/open", {"revision": "main"}),
        ("owner/gated", {}),
        ("owner/gated", {"token": SECRET}),
        ("owner/none", {}),
        ("owner/open", {"revision": "v9"}),
        ("owner/bare", {}),
    ]
    with hub(folders) as endpoint:
        told = loaded_elsewhere(cases, endpoint, home)
    assert [t.get("revision") for t in told] == [COMMIT, COMMIT, None, COMMIT, None, None, None]
    assert {t["kind"] for t in told if "error" in t} == {"ModelError"}
    assert f"it is gated: its owners give access on request at {endpoint}/owner/gated" in told[2]["error"]
    assert f"no such model on {endpoint}, or it is private" in told[4]["error"]
    assert "no revision 'v9'" in told[5]["error"]
    assert "no config.json" in told[6]["error"]

    # The server is gone: what was downloaded can be used, the rest is refused without minutes of retries.
    cases = [("owner/open", {}), ("owner/none", {})]
    unplugged = loaded_elsewhere(cases, endpoint, home)
    offline = loaded_elsewhere(cases, endpoint, home, HF_HUB_OFFLINE="1")
    for told, reason in (
        (unplugged, f"{endpoint} cannot be reached"),
        (offline, "the network is switched off"),
    ):
        assert told[0]["revision"] == COMMIT
        assert reason in told[1]["error"]
        assert "bundled" in told[1]["error"]


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (told,) = loaded_elsewhere([("owner/none", {})], address, tmp_path)
    assert "cannot be reached" in told["error"]


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.uint8, torch.complex64])
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_that_are_no_floats_are_refused_by_name(tmp_path, dtype, pickled):
    module = make_module("llama")
    module.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    # as the bits of the floats, where the dtype is as wide
    odd = weights[name].view(dtype) if dtype is torch.int32 else weights[name].to(dtype)
    if pickled:
        path.unlink()
        torch.save(weights | {name: odd}, tmp_path / "m" / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(weights | {name: odd}, path, {"format": "pt"})
    with pytest.raises(
        dm.DensitometerError, match=rf"1 weights of .*{name} \(.*config declares no quantisation"
    ):
        dm.load_model(tmp_path / "m")


def test_integers_that_are_integers_in_the_module_are_no_fault(tmp_path):
    """GPT-2's files hold causal masks as booleans; a file beside the weights may hold anything."""
    module = make_module("gpt2")
    module.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool) for i in range(3)}
    safetensors.torch.save_file(safetensors.torch.load_file(path) | masks, path, {"format": "pt"})
    safetensors.torch.save_file({"x": torch.arange(3)}, tmp_path / "m" / "other.safetensors")
    dm.load_model(tmp_path / "m")
