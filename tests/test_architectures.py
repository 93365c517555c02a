"""Every causal language model that transformers registers: measured exactly, or refused; and the tables that say which."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import architectures
import pytest
import torch
import transformers
from architectures import IDS, KINDS, VARIATIONS, coverage_of, gaps, randomised, tiny_config, tiny_module
from torch import nn

import densitometer as dm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import architecture_table  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.models,
    pytest.mark.usefixtures("rows_skipped"),
]
STORED = json.loads(architecture_table.FILE.read_text())
EXACT = [row["kind"] for row in STORED["models"] if row["outcome"] == "exact"]


def test_the_aim_is_kept():
    assert len(EXACT) >= 120
    assert {row["kind"] for row in STORED["models"]} == set(KINDS)
    assert {row["outcome"] for row in STORED["models"]} == set(architecture_table.OUTCOMES)


@pytest.mark.parametrize("kind", EXACT)
def test_an_architecture_is_measured_exactly(kind):
    assert gaps(dm.load_model(tiny_module(kind))) == []


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_variation_of_a_family_is_measured_exactly(name):
    kind, changes = VARIATIONS[name]
    assert gaps(dm.load_model(tiny_module(kind, **changes))) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_what_runs(kind):
    stored = next(row for row in STORED["models"] if row["kind"] == kind)
    found = asdict(coverage_of(kind))
    assert found["outcome"] == stored["outcome"], found["detail"]
    if found["outcome"] == "exact":
        assert found == stored


def test_the_tables_are_what_the_file_says():
    rows, version = STORED["models"], STORED["transformers"]
    assert architecture_table.TABLE.read_text() == architecture_table.full_table(rows, version)
    readme = architecture_table.README.read_text()
    line = readme.split(architecture_table.BEGIN)[1].split(architecture_table.END)[0].strip()
    assert line == architecture_table.counts_line(rows, version)


# ------------------------------------------------------------------------------------------------------
# What is refused, and what must be noticed


@pytest.mark.parametrize("kind", ["mamba", "qwen3_next", "lfm2", "minimax", "recurrent_gemma"])
def test_layers_that_are_no_attention_are_refused_by_name(kind):
    mixer = {"mamba": "MambaMixer", "qwen3_next": "Qwen3NextGatedDeltaNet", "lfm2": "Lfm2ShortConv",
             "minimax": "MiniMaxLightningAttention", "recurrent_gemma": "RecurrentGemmaRecurrentBlock"}[kind]  # fmt: skip
    with pytest.raises(dm.DensitometerError, match=mixer):
        dm.load_model(tiny_module(kind))


def test_an_attention_that_attends_twice_is_refused():
    with pytest.raises(dm.DensitometerError, match="attends more than once"):
        dm.load_model(tiny_module("diffllama"))


def test_layers_that_run_on_some_tokens_only_are_refused():
    with pytest.raises(dm.DensitometerError, match="on 1 of 11 tokens"):
        dm.load_model(tiny_module("gemma4_unified_text", num_kv_shared_layers=1))


def test_what_an_indexer_may_choose_from_is_reachable():
    """Each token attends to 4 at most; the scores that choose them read all the earlier ones."""
    model = dm.load_model(tiny_module("deepseek_v32", index_topk=4))
    forward = dm.build_graph(model, IDS).forward
    weights = forward.records[-1].weights
    assert (weights[:, -1] > 0).sum(-1).max() == 4
    assert forward.records[-1].allowed.equal(torch.ones(9, 9, dtype=torch.bool).tril())


def test_a_choice_that_depends_on_the_stream_is_found():
    """Doge masks all but 4 sources of a token, by their values: those that it leaves out are still needed."""
    model = dm.load_model(tiny_module("doge", keep_window_size=4))
    assert all(block.chooses for block in model.adapter.blocks)
    record = dm.build_graph(model, IDS).forward.records[1]
    assert (record.weights[:, -1] > 0).sum(-1).max() == 4
    assert record.allowed.equal(torch.ones(9, 9, dtype=torch.bool).tril())


class _Changed(nn.Module):
    """An attention of Bloom's that does something between the softmax and the values."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        return self.dropout(weights) * 0.5


def test_weights_that_are_changed_after_the_softmax_are_refused():
    module = tiny_module("bloom")
    module.transformer.h[1].self_attention.attention_dropout = _Changed(nn.Dropout(0.0))
    with pytest.raises(dm.DensitometerError, match="changes its weights after the softmax"):
        dm.load_model(module)


def test_a_blocks_own_error_is_named():
    def failing(*args, **kwargs):
        raise ZeroDivisionError("of its own")

    module = tiny_module("llama")
    module.model.layers[1].mlp.forward = failing
    with pytest.raises(dm.DensitometerError, match="ZeroDivisionError: of its own"):
        dm.load_model(module)


# ------------------------------------------------------------------------------------------------------
# Attention that a module computes itself


class _SdpaAttention(nn.Module):
    """Llama's attention, with torch's own call in the place of transformers' interface, as remote code has it."""

    def __init__(self, of: nn.Module, whole: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = of.q_proj, of.k_proj, of.v_proj, of.o_proj
        self.head_dim, self.groups, self.whole = of.head_dim, of.num_key_value_groups, whole

    def forward(self, hidden_states: torch.Tensor, position_embeddings: tuple, **kwargs: object) -> tuple:
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q, k, v = (split(p(hidden_states)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, k, *position_embeddings)
        k, v = k.repeat_interleave(self.groups, 1), v.repeat_interleave(self.groups, 1)
        if self.whole:
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.mT * self.head_dim**-0.5).float()
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            out = scores.masked_fill(later, float("-inf")).softmax(-1).to(v.dtype) @ v
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("whole", [True, False], ids=["sdpa", "softmax"])
def test_attention_computed_by_the_module_is_seen_as_the_interface_sees_it(whole):
    """The same weights through the interface are the oracle: every edge's importance and a trace's logits."""
    plain, other = tiny_module("llama"), tiny_module("llama")
    for layer in other.model.layers:
        layer.self_attn = _SdpaAttention(layer.self_attn, whole)
    want, got = dm.load_model(plain), dm.load_model(other)
    assert all(block.own_attention for block in got.adapter.blocks)
    assert not got.adapter.packs
    for importance in ("l1", "fisher"):
        one, two = (dm.build_graph(model, IDS, importance=importance) for model in (want, got))
        assert one.n_edges == two.n_edges
        torch.testing.assert_close(
            torch.from_numpy(two.importance), torch.from_numpy(one.importance), rtol=1e-3, atol=1e-6
        )
    for attention in ("recomputed", "frozen"):
        logits = [
            dm.reconstruct(model, graph, [graph.trace(size=0.3), graph.trace(size=0.05)], attention=attention)
            for model, graph in ((want, dm.build_graph(want, IDS)), (got, dm.build_graph(got, IDS)))
        ]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [
        ("llama", "eager"),
        ("llama", "sdpa"),
        ("falcon", "eager"),
        ("falcon", "sdpa"),
        ("bloom", "eager"),
        ("gpt_oss", "eager"),
    ],
)
def test_the_attention_that_a_model_was_loaded_with_is_kept(kind, implementation):
    config = tiny_config(kind)
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    model = dm.load_model(randomised(module))
    assert gaps(model) == []
    assert module.config._attn_implementation == implementation


def test_every_kind_of_layout_is_among_the_exact():
    used = {
        name
        for row in STORED["models"]
        if row["outcome"] == "exact"
        for name in row["detail"].split("; ")[0].split(", ")
    }
    assert len(used) >= 20
    assert architectures.LAYERS == 3
