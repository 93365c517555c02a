"""The check-up passes on sound models and fails where an identity is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import CONFIGS, IDS, make_module

import densitometer as dm
from densitometer.forward import ForwardPass


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_layout_passes(make_model, name):
    report = dm.check_model(make_model(name), IDS)
    assert report.passed, report
    assert len(report.rows) >= 6


@pytest.mark.parametrize("name", ["demo", "demo-parallel", "demo-branchnorm"])
def test_bundled_models_pass(name):
    assert dm.check_model(dm.load_model(name)).passed


def failed(report):
    return [row.identity for row in report.rows if not row.passed]


def ignoring(monkeypatch, field):
    """Let every run ignore one field of its masks."""
    real = ForwardPass.block_masks

    def fewer(*args):
        return [replace(m, **{field: torch.ones_like(getattr(m, field))}) for m in real(*args)]

    monkeypatch.setattr(ForwardPass, "block_masks", fewer)


def test_attention_masks_that_are_silently_ignored_are_caught(make_model, monkeypatch):
    """The fault of the public code: removing attention edges changes nothing."""
    ignoring(monkeypatch, "attention")
    report = dm.check_model(make_model("llama"), IDS)
    assert failed(report) == ["removing one attention edge changes the output"]


@pytest.mark.parametrize(("name", "kind"), [("neox", "residual"), ("llama", "residual_mlp")])
def test_residual_masks_that_are_ignored_are_caught(make_model, monkeypatch, name, kind):
    ignoring(monkeypatch, "residual_mlp")
    report = dm.check_model(make_model(name), IDS)
    assert failed(report) == [f"removing one {kind} edge changes the output"]


def test_mlp_masks_that_are_ignored_are_caught(make_model, monkeypatch):
    ignoring(monkeypatch, "mlp")
    report = dm.check_model(make_model("gemma2"), IDS)
    assert failed(report) == ["removing one mlp edge changes the output"]


def test_edges_that_do_not_sum_are_caught(make_model, monkeypatch):
    from densitometer import forward

    real = forward.head_weights
    monkeypatch.setattr(forward, "head_weights", lambda *a: real(*a) * 1.01)
    assert failed(dm.check_model(make_model("llama"), IDS)) == ["incoming edges sum to every node"]


def test_a_gate_between_attention_and_projection_is_refused():
    module = make_module("llama")
    model = dm.load_model(module)
    projection = module.model.layers[2].self_attn.o_proj
    projection.register_forward_pre_hook(lambda m, args: (args[0] * 0.5,))
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


def test_a_registered_layout_is_used(monkeypatch):
    from densitometer.models import layouts

    monkeypatch.setattr(layouts, "_LAYOUTS", list(layouts._LAYOUTS))
    module = make_module("llama")
    for layer in module.model.layers:
        layer.gadget = torch.nn.Dropout(0.1)
    dm.register_layout(
        dm.Layout(
            "with a gadget",
            "self_attn",
            ("mlp",),
            "input_layernorm",
            "post_attention_layernorm",
            ignored=("gadget",),
        )
    )
    assert dm.load_model(module).adapter.blocks[0].layout.name == "with a gadget"
    with pytest.raises(ValueError, match="declared already"):
        dm.register_layout(dm.Layout("with a gadget", "self_attn", ("mlp",)))
