"""The check-up passes on sound models and fails where an identity is broken."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import CONFIGS, IDS, make_module
from snippets import registries_kept

import densitometer as dm
from densitometer.graph.forward_pass import ForwardPass
from densitometer.measuring import check

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("rows_skipped")]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_layout_passes(make_model, name):
    report = dm.check_model(make_model(name), IDS)
    assert report.passed, report
    assert len(report.rows) >= 6


@pytest.mark.parametrize("name", ["demo", "demo-parallel", "demo-branchnorm"])
def test_bundled_models_pass(name):
    assert dm.check_model(dm.load_model(name)).passed


BY_HAND = "edges removed = their vectors taken out by hand"
HALF = "removing half of the edges changes the output"


def removal(kind):
    return f"removing one {kind} edge changes the output"


def changed(monkeypatch, change):
    """Let every run change its masks first; `change` maps a BlockMask, and whether weights are frozen, to another."""
    real = ForwardPass.block_masks

    def other(self, flat, frozen=False, means=None):
        return [change(mask, frozen) for mask in real(self, flat, frozen, means)]

    monkeypatch.setattr(ForwardPass, "block_masks", other)


def ignoring(monkeypatch, *fields):
    """Let every run ignore some fields of its masks."""
    changed(monkeypatch, lambda m, _: replace(m, **{f: torch.ones_like(getattr(m, f)) for f in fields}))


def test_attention_masks_that_are_silently_ignored_are_caught(make_model, monkeypatch):
    """The fault of the public code: removing attention edges changes nothing."""
    ignoring(monkeypatch, "attention")
    report = dm.check_model(make_model("llama"), IDS)
    assert report.failed == (BY_HAND, removal("attention"))
    assert repr(report).endswith(f"12 of 14 identities hold; FAILED: {BY_HAND}, {removal('attention')})")


@pytest.mark.parametrize(("name", "kind"), [("neox", "residual"), ("llama", "residual_mlp")])
def test_residual_masks_that_are_ignored_are_caught(make_model, monkeypatch, name, kind):
    ignoring(monkeypatch, "residual_mlp")
    report = dm.check_model(make_model(name), IDS)
    assert report.failed == (removal(kind),)


def test_mlp_masks_that_are_ignored_are_caught(make_model, monkeypatch):
    ignoring(monkeypatch, "mlp")
    report = dm.check_model(make_model("gemma2"), IDS)
    assert report.failed == (BY_HAND, removal("mlp"))


def test_masks_that_are_all_ignored_are_caught(make_model, monkeypatch):
    ignoring(monkeypatch, "residual_attention", "attention", "residual_mlp", "mlp")
    report = dm.check_model(make_model("llama"), IDS)
    kinds = ("attention", "mlp", "residual_attention", "residual_mlp")
    assert report.failed == (BY_HAND, *map(removal, kinds), HALF)


@pytest.mark.parametrize("name", ["llama", "olmo2", "neox"])
@pytest.mark.parametrize("way", ["heads", "targets", "sources"])
def test_masks_of_other_edges_are_caught(make_model, monkeypatch, name, way):
    """Something is removed, but not what was said: no other identity sees it."""
    axis = {"heads": 1, "targets": 2, "sources": 3}[way]
    changed(monkeypatch, lambda m, _: replace(m, attention=_moved(m.attention, axis)))
    assert BY_HAND in dm.check_model(make_model(name), IDS).failed


def _moved(on, axis):
    """Masks of the next head, target or source; edges that do not exist stay as they are."""
    there = torch.ones_like(on[0, 0], dtype=torch.bool).tril()
    return torch.where(there, on.roll(1, axis), on) if axis == 1 else torch.where(there, on.flip(axis), on)


def test_a_full_trace_that_lacks_an_edge_is_caught(make_model, monkeypatch):
    def without_last_mlp(mask, _):
        mlp = mask.mlp.clone()
        mlp[:, -1] = 0
        return replace(mask, mlp=mlp)

    changed(monkeypatch, without_last_mlp)
    failed = dm.check_model(make_model("llama"), IDS).failed
    assert {"full trace = the model", "full trace = the model, attention frozen", removal("mlp")} <= set(
        failed
    )


def test_frozen_weights_that_are_not_the_models_are_caught(make_model, monkeypatch):
    def less(mask, frozen):
        return replace(mask, attention_weights=0.9 * mask.attention_weights) if frozen else mask

    changed(monkeypatch, less)
    report = dm.check_model(make_model("llama"), IDS)
    assert report.failed == ("full trace = the model, attention frozen",)


def test_edges_that_do_not_sum_are_caught(make_model, monkeypatch):
    from densitometer.graph import forward_pass as forward

    real = forward.head_weights
    monkeypatch.setattr(forward, "head_weights", lambda *a: real(*a) * 1.01)
    report = dm.check_model(make_model("llama"), IDS)
    assert report.failed == ("incoming edges sum to every node",)


def test_skipped_rows_that_matter_are_caught(monkeypatch):
    from densitometer.models import adapter

    model = dm.load_model(make_module("llama"))
    assert model.adapter.packs
    real = adapter.plan_rows

    def fewer(blocks, masks):
        planned = []
        for mask in masks:
            mlp = mask.mlp.clone()
            mlp[..., 0] = False  # the first token's MLP is taken not to matter
            planned.append(replace(mask, mlp=mlp))
        return real(blocks, planned)

    with monkeypatch.context() as broken:
        broken.setattr(adapter, "plan_rows", fewer)
        assert "full trace = the model, rows skipped" in dm.check_model(model, IDS).failed
    real_block = adapter.plan_block

    def fewer_of_a_block(block, mask, index):
        return real_block(
            block, replace(mask, mlp=torch.cat([mask.mlp[..., :1] & False, mask.mlp[..., 1:]], -1)), index
        )

    monkeypatch.setattr(adapter, "plan_block", fewer_of_a_block)
    assert dm.check_model(model, IDS).failed == ("rows skipped = every row computed",)


def test_rows_that_cannot_be_skipped_are_told(monkeypatch):
    from densitometer.models import adapter

    def refuse(*_):
        raise adapter.NotPackedError("rows of this model hang together")

    monkeypatch.setattr(adapter, "packed_add_up", refuse)
    report = dm.check_model(dm.load_model(make_module("llama")), IDS)
    assert report.passed
    assert report.unsupported == {"skipping rows": "rows of this model hang together"}
    assert "rows skipped = every row computed" not in [row.identity for row in report.rows]


def test_batch_mates_that_matter_are_caught(make_model, monkeypatch):
    from densitometer.models.adapter import Adapter

    real = Adapter.masked_logits

    def crowded(self, ids, masks, recorded=None, positions=None, always_skip=False):
        logits = real(self, ids, masks, recorded, positions, always_skip)
        return logits + 0.3 * (len(logits) - 1) * torch.arange(logits.shape[-1]) % 7

    monkeypatch.setattr(Adapter, "masked_logits", crowded)
    report = dm.check_model(make_model("llama"), IDS)
    assert report.failed == ("results do not depend on batch mates",)


def test_a_model_that_looks_ahead_is_caught():
    module = make_module("llama")
    module.get_input_embeddings().register_forward_hook(lambda m, args, out: out + out.mean(1, keepdim=True))
    report = dm.check_model(dm.load_model(module), IDS)
    assert report.failed == ("a prediction does not depend on later tokens",)


def test_a_model_that_is_not_the_same_twice_is_caught():
    module = make_module("llama")
    calls, size = iter(range(1000)), [0.0]
    tilt = torch.arange(module.config.vocab_size) % 5
    module.lm_head.register_forward_hook(lambda m, args, out: out + size[0] * next(calls) * tilt)
    model = dm.load_model(module)
    size[0] = 0.01
    assert "the same run twice gives the same" in dm.check_model(model, IDS).failed


def test_gradient_scores_that_do_not_work_are_named_with_the_reason():
    module = make_module("llama")
    model = dm.load_model(module)
    module.model.layers[1].mlp.register_forward_hook(lambda m, args, out: out.detach())
    module.model.layers[1].self_attn.register_forward_hook(lambda m, args, out: (out[0].detach(), *out[1:]))
    module.model.norm.register_forward_hook(lambda m, args, out: out.detach())
    report = dm.check_model(model, IDS)
    assert report.passed
    assert set(report.unsupported) == {"fisher", "bound", "best", "learned"}
    assert "passes no gradient" in report.unsupported["fisher"]


def test_the_report_says_what_was_found(demo):
    report = dm.check_model(demo)
    assert report.facts["layout"] == "sequential (6 of 6 layers)"
    assert report.facts["heads"] == "8 query, 2 key-value, values of 32"
    assert "cpu: embeddings, head, layers 0-5, 11.7 MB" in report.facts["devices"]
    assert report.noise < 1e-5
    document = report.to_document()
    assert json.loads(json.dumps(document)) == document
    assert document["passed"]
    assert all(
        row["passed"] and {"identity", "gap", "bound", "tolerance"} <= set(row) for row in document["rows"]
    )


def test_bos_is_told(make_model):
    class Tokenizer:
        bos_token, bos_token_id = "<s>", 1

        def __init__(self, adds):
            self.adds = adds

        def __call__(self, text, verbose):
            return {"input_ids": [1, 5] if self.adds else [5]}

        def __len__(self):
            return 6

        def convert_ids_to_tokens(self, ids):
            raise AssertionError("not needed")

    module = make_model("llama").module
    assert "adds '<s>' (id 1)" in check._bos(dm.load_model(module, tokenizer=Tokenizer(True)))
    assert "has '<s>' (id 1) but adds none" in check._bos(dm.load_model(module, tokenizer=Tokenizer(False)))
    assert "no tokenizer" in check._bos(make_model("llama"))


def test_layers_with_a_window_are_counted(make_model):
    assert dm.check_model(make_model("gemma2"), IDS).facts["attention to"] == (
        "fewer (2 layers); all earlier tokens (1 layers) on 7 tokens"
    )


def test_a_measurement_carries_the_verdict(tmp_path):
    model = dm.load_model(make_module("llama"))
    before = dm.measure(model, IDS, sizes=[0.5]).provenance["check"]
    assert before["passed"]
    assert before["full_trace_tv"] <= before["tolerance"] == 1e-4
    assert before["full_check"] is None
    dm.check_model(model, IDS)
    measured = dm.measure(model, IDS, sizes=[0.5])
    assert measured.provenance["check"]["full_check"] == {"passed": True, "failed": []}
    measured.save(tmp_path / "m.json")
    assert dm.load_measurement(tmp_path / "m.json").provenance["check"] == measured.provenance["check"]
    with torch.no_grad():
        model.module.lm_head.weight.mul_(2)  # another model now
    assert dm.measure(model, IDS, sizes=[0.5]).provenance["check"]["full_check"] is None


def test_a_failed_check_up_is_carried_too(monkeypatch):
    model = dm.load_model(make_module("llama"))
    with monkeypatch.context() as patch:
        ignoring(patch, "attention")
        dm.check_model(model, IDS)
    found = dm.measure(model, IDS, sizes=[0.5]).provenance["check"]["full_check"]
    assert found == {"passed": False, "failed": [BY_HAND, removal("attention")]}


def test_a_gate_between_attention_and_projection_is_refused():
    module = make_module("llama")
    factor = [1.0]
    projection = module.model.layers[2].self_attn.o_proj
    projection.register_forward_pre_hook(lambda m, args: (args[0] * factor[0],))
    model = dm.load_model(module)
    factor[0] = 0.5
    with pytest.raises(dm.DensitometerError, match=r"layer 2.*hands its output projection something else"):
        dm.check_model(model, IDS)


def test_a_block_that_does_more_than_its_layout_says_is_refused():
    module = make_module("llama")
    layer = module.model.layers[1]
    real = layer.forward
    layer.forward = lambda *a, **k: real(*a, **k) * 1.5
    with pytest.raises(dm.DensitometerError, match=r"does not add up.*register_layout"):
        dm.load_model(module)
    del layer.forward
    assert dm.load_model(module).adapter.blocks[1].layout.name == "sequential"


def test_an_unknown_block_is_refused_with_what_was_looked_for():
    module = make_module("llama")
    module.model.layers[0].gadget = torch.nn.Linear(2, 3)
    with pytest.raises(
        dm.DensitometerError, match=r"1 decoder blocks of 3.*block 0.*gadget.*register_layout"
    ):
        dm.load_model(module)


def test_a_registered_layout_is_used():
    module = make_module("llama")
    for layer in module.model.layers:
        layer.gadget = torch.nn.Dropout(0.1)
    layout = dm.Layout(
        "with a gadget",
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        ignored=("gadget",),
    )
    with registries_kept():
        dm.register_layout(layout)
        assert dm.load_model(module).adapter.blocks[0].layout.name == "with a gadget"
        with pytest.raises(ValueError, match="declared already"):
            dm.register_layout(dm.Layout("with a gadget", "self_attn", ("mlp",)))
