"""attention="kept": every attention edge is on, paid for or not, as the code published with arXiv 2605.27033 runs."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import IDS

import densitometer as dm
from densitometer._util.metrics import total_variation

pytestmark = pytest.mark.fast

SIZES = (0.05, 0.2, 0.5, 1.0)


@torch.no_grad()
def by_hand(model, graph, trace) -> torch.Tensor:
    """That data flow, written out for a Llama: residual streams and MLPs are masked, and attention never is."""
    module, on = model.module.model, trace.to_mask()
    x = module.embed_tokens(torch.tensor([graph.input_ids]))
    turns = module.rotary_emb(x, torch.arange(graph.n_tokens)[None])
    causal = torch.full((graph.n_tokens, graph.n_tokens), -torch.inf).triu(1)
    for layer, kept in zip(module.layers, on, strict=True):
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            project(normed).view(1, graph.n_tokens, -1, attention.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        half = attention.head_dim // 2
        q, k = (y * turns[0] + torch.cat([-y[..., half:], y[..., :half]], -1) * turns[1] for y in (q, k))
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
        weights = (q @ k.mT * attention.head_dim**-0.5 + causal).softmax(-1)
        heads = (weights @ v).transpose(1, 2).reshape(1, graph.n_tokens, -1)
        x = kept["residual_attention"][:, None] * x + attention.o_proj(heads)
        mlp = layer.mlp(layer.post_attention_layernorm(x))
        x = kept["residual_mlp"][:, None] * x + kept["mlp"][0][:, None] * mlp
    return model.module.lm_head(module.norm(x))[0, -1]


@pytest.mark.parametrize("importance", ["l1", "fisher"])
def test_it_equals_that_flow_written_by_hand(make_model, importance):
    model = make_model("llama")
    m = dm.measure(model, IDS, importance=importance, sizes=SIZES, attention="kept", baselines=())
    graph = dm.build_graph(model, IDS, importance=importance)
    full = model.adapter.logits(IDS)
    for size, tv in m.curve.select("size", "tv").iter_rows():
        trace = graph.trace(size=size)
        want = by_hand(model, graph, trace)
        assert tv == pytest.approx(float(total_variation(full, want[None])), abs=1e-5)
        got = dm.reconstruct(model, graph, [trace], attention="kept")[0]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        assert torch.equal(trace.logits(attention="kept"), got)
        if size < 1:  # with attention edges that are off removed, it is another prediction
            assert float((trace.logits() - want).abs().max()) > 1e-2
    assert m.floor is None
    assert "every attention edge kept on" in m.summary()


def test_attention_edges_change_nothing_whether_they_are_on_or_off(make_model):
    model = make_model("neox")
    graph = dm.build_graph(model, IDS)
    attention = (graph.edges()["kind"] == "attention").to_numpy()
    some = numpy.random.default_rng(0).random(graph.n_edges) < 0.4
    one, other = (graph.trace(mask=mask) for mask in (some | attention, some & ~attention))
    assert torch.equal(one.logits(attention="kept"), other.logits(attention="kept"))
    assert torch.allclose(one.logits(), one.logits(attention="kept"), atol=1e-4)
    assert other.n_edges < one.n_edges


def test_positions_and_studies_run_it_too(make_model, tmp_path):
    model = make_model("llama")
    keywords = {"importance": "l1", "sizes": SIZES, "attention": "kept"}
    table = dm.measure_positions(model, IDS, **keywords)
    one = dm.measure(model, IDS, position=4, baselines=(), **keywords)
    assert table.filter(position=4)["auc_log"][0] == pytest.approx(one.density["l1"].auc_log, abs=1e-5)
    study = dm.run_study(["The captain looked"], "demo", tmp_path / "s", sizes=[0.3, 1.0], attention="kept")
    own = dm.measure(
        dm.load_model("demo"),
        "The captain looked",
        importance="l1",
        sizes=[0.3, 1.0],
        attention="kept",
        baselines=(),
    )
    assert study.measurements()["auc_log"][0] == own.density["l1"].auc_log
