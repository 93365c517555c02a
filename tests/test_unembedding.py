"""What the unembedding reads: held to the logits that came of it, to the model's own hidden states, and to plain runs."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import CONFIGS, IDS, VOCABULARY, make_module

import densitometer as dm
from densitometer.errors import OutOfMemoryError
from densitometer.graph import masked_runs as ablation
from densitometer.graph.tiled import tiles
from densitometer.models import unembedding
from densitometer.models.unembedding import states_read, surprisals

pytestmark = pytest.mark.usefixtures("rows_skipped")

SIZES = [0.02, 0.3, 1.0]


def observed(model, **options):
    seen = []
    dm.measure(model, IDS, importance="l1", sizes=SIZES, observe=seen.append, **options)
    (runs,) = seen
    return runs


def unembedded(module, states):
    """Logits of states, by hand."""
    with torch.no_grad():
        logits = module.get_output_embeddings()(states.to(module.dtype)).float()
    config = module.config
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits * getattr(module, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_logits_of_every_run_come_of_its_state(name):
    model = dm.load_model(make_module(name))  # a new one: its first masked run tries it on a probe
    runs = observed(model)
    assert runs.states.shape == (len(runs.rows), model.module.config.hidden_size)
    torch.testing.assert_close(unembedded(model.module, runs.states), runs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        unembedded(model.module, runs.full_state[None])[0], runs.full, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2", "opt", "gpt2"])
def test_the_models_own_state_is_its_last_hidden_state(make_model, name):
    model = make_model(name)
    with torch.no_grad():
        own = model.module(torch.tensor([IDS]), output_hidden_states=True).hidden_states[-1][0, -1]
    runs = observed(model)
    torch.testing.assert_close(runs.full_state, own, atol=1e-5, rtol=1e-5)
    whole = next(i for i, row in enumerate(runs.rows) if row[:3] == ("l1", "trace", 1.0))
    torch.testing.assert_close(runs.states[whole], own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "neox", "mixtral"])
def test_both_executors_read_the_same_states(make_model, name, monkeypatch):
    graph = dm.build_graph(make_model(name), IDS)
    adapter = graph.model.adapter
    masks = graph.forward.block_masks(
        torch.stack([torch.from_numpy(graph.trace(size=size).flat) for size in SIZES])
    )
    assert adapter.packs
    with states_read(adapter) as packed:
        adapter.masked_logits(graph.forward.ids, masks, always_skip=True)
    monkeypatch.setattr("densitometer.models.adapter.pays", lambda *_: False)
    monkeypatch.setattr(adapter, "always_skip", False)
    with states_read(adapter) as dense:
        adapter.masked_logits(graph.forward.ids, masks)
    (one,), (other,) = packed, dense
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one[0], one[2], atol=1e-2)


def test_states_stay_in_step_when_a_batch_runs_out_of_memory_after_the_unembedding(make_model, monkeypatch):
    model = make_model("qwen3")
    graph = dm.build_graph(model, IDS)
    masks = [graph.trace(size=size).flat for size in (0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)]
    want: list[torch.Tensor] = []
    for mask in masks:
        ablation.masked_logits(graph.forward, [mask], states=want)
    run = model.adapter.masked_logits

    def little_memory(ids, blocks, **options):
        logits = run(ids, blocks, **options)
        if len(logits) > 2:
            raise OutOfMemoryError("full")
        return logits

    monkeypatch.setattr(model.adapter, "masked_logits", little_memory)
    got: list[torch.Tensor] = []
    ablation.masked_logits(graph.forward, masks, states=got)
    torch.testing.assert_close(torch.cat(got), torch.cat(want), atol=1e-4, rtol=1e-4)


def test_states_of_a_long_input_are_those_of_a_short_one(make_model, monkeypatch):
    model = make_model("llama")
    monkeypatch.setattr(tiles, "STORED_EDGES", 1)
    runs = observed(model)
    torch.testing.assert_close(unembedded(model.module, runs.states), runs.logits, atol=1e-4, rtol=1e-4)
    monkeypatch.undo()
    torch.testing.assert_close(runs.full_state, observed(model).full_state)


def test_a_model_without_an_unembedding_module_has_no_states(make_model, monkeypatch):
    model = make_model("llama")
    monkeypatch.setattr(type(model.module), "get_output_embeddings", lambda self: None)
    monkeypatch.setattr(unembedding, "getattr", lambda *_: None, raising=False)
    runs = observed(model)
    assert runs.states is None
    assert runs.full_state is None


def by_hand(module, ids):
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0].float()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")


@pytest.fixture(params=[*CONFIGS, "openai-gpt"])
def any_model(request, make_model):
    if request.param != "openai-gpt":
        return make_model(request.param)
    torch.manual_seed(3)  # normalises what a block hands on
    config = transformers.OpenAIGPTConfig(
        vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=4, n_positions=64
    )
    return dm.load_model(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("given", [True, False])
def test_surprisals_are_those_of_a_plain_run(any_model, given, monkeypatch):
    model = any_model
    monkeypatch.setattr(model.adapter, "logits_of_all", None)  # nothing falls back on it
    monkeypatch.setattr(unembedding, "LOGITS_AT_ONCE", 4 * VOCABULARY)  # 6 rows in two parts
    forward = dm.build_graph(model, IDS).forward
    streams = model.adapter.blocks[-1].stream_out(forward.records[-1].mlp_sum).detach() if given else None
    found = surprisals(model.adapter, IDS, forward.logits, streams)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), by_hand(model.module, IDS), atol=1e-4, rtol=1e-4)


def test_surprisals_do_not_rest_on_a_read_out_that_is_not_the_model(make_model, monkeypatch):
    model = make_model("qwen3")
    read_out = model.adapter.read_out
    monkeypatch.setattr(model.adapter, "read_out", lambda streams: 0.7 * read_out(streams))
    found = surprisals(model.adapter, IDS, model.adapter.logits(IDS))
    torch.testing.assert_close(found.float(), by_hand(model.module, IDS), atol=1e-4, rtol=1e-4)


def test_one_token_surprises_nobody(make_model):
    model = make_model("qwen3")
    assert surprisals(model.adapter, IDS[:1], model.adapter.logits(IDS[:1])).shape == (0,)
