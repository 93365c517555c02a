"""Half precision: scores in float32 from whatever the model computes in, no overflow of ours, and none that is hidden."""

from __future__ import annotations

import numpy
import pytest
import torch
import transformers
from conftest import IDS, make_module
from hypothesis import given, settings
from hypothesis import strategies as st
from snippets import registries_kept
from torch import nn

import densitometer as dm
from densitometer.errors import NonFiniteError, PluginError
from densitometer.graph.importance.norms import l1
from densitometer.graph.importance.registry import compute_importance
from densitometer.models.attention import Run, attention_forward
from densitometer.models.blocks import _kept
from densitometer.models.interception import our_attention
from densitometer.models.linear import head_weights, linearise
from densitometer.models.tolerances import tolerance_tv

pytestmark = pytest.mark.usefixtures("rows_skipped")

HALF = (torch.bfloat16, torch.float16)
TEXT = "The old captain looked at the sea and said that the white whale"


@torch.no_grad()
def by_the_definition(graph):
    """l1 of every edge in float64, each edge's vector built from the recorded tensors: no norm is taken out, no sum shared."""
    found = []
    for block, record in zip(graph.model.adapter.blocks, graph.forward.records, strict=True):
        weights, values = record.weights.double(), record.values.double()
        write = block.projection.weight.double()
        write = write if isinstance(block.projection, transformers.pytorch_utils.Conv1D) else write.T
        n_heads, n_tokens, size = weights.shape[0], weights.shape[1], values.shape[-1]
        attention = torch.zeros(weights.shape, dtype=torch.float64)
        for h in range(n_heads):
            for t in range(n_tokens):
                for s in range(t + 1):
                    vector = values[h // (n_heads // len(values)), s] @ write[h * size : (h + 1) * size]
                    attention[h, t, s] = (weights[h, t, s] * vector).abs().sum()
        mlp = record.mlp.double().abs().sum(-1)
        if block.layout.parallel:
            into = [record.residual_mlp.double().abs().sum(-1), attention, mlp]
            total = into[0] + attention.sum((0, 2)) + mlp
            found += [into[0] / total, attention / total[:, None], mlp / total]
        else:
            residual = record.residual_attention.double().abs().sum(-1)
            total = residual + attention.sum((0, 2))
            found += [residual / total, attention / total[:, None]]
            residual = record.residual_mlp.double().abs().sum(-1)
            found += [residual / (residual + mlp), mlp / (residual + mlp)]
    return torch.cat([part.flatten() for part in found]).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", ["llama", "neox", "gpt2"])
@settings(max_examples=4, deadline=None)
@given(ids=st.lists(st.integers(0, 100), min_size=2, max_size=6))
def test_importances_are_those_of_the_recorded_tensors_in_float32(name, dtype, ids):
    """Whatever the dtype: to float32's rounding, not to the dtype's."""
    graph = dm.build_graph(_of(name, dtype), ids)
    assert all(record.weights.dtype == torch.float32 for record in graph.forward.records)
    expected = by_the_definition(graph)
    numpy.testing.assert_allclose(graph.importance, expected, rtol=2e-5, atol=1e-7)


_MODELS: dict = {}


def _of(name, dtype):
    if (name, dtype) not in _MODELS:
        _MODELS[name, dtype] = dm.load_model(make_module(name).to(dtype))
    return _MODELS[name, dtype]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["demo", "demo-parallel", "demo-branchnorm"])
def test_bundled_models_in_half_precision(name, dtype):
    """The full trace is the model within the dtype's noise, and the orders are those of float32."""
    half, full = dm.load_model(name, dtype=dtype), dm.load_model(name)
    graphs = [dm.build_graph(model, TEXT) for model in (half, full)]
    logits = dm.reconstruct(half, graphs[0], [graphs[0].trace(size=1.0)])[0]
    gap = 0.5 * float((logits.softmax(-1) - half.adapter.logits(graphs[0].input_ids).softmax(-1)).abs().sum())
    assert gap <= {torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype] <= tolerance_tv(dtype)
    for score, least in (("l1", 0.995), ("fisher", 0.98)):
        ours, theirs = (compute_importance(g.forward, score)[g.index] for g in graphs)
        ranks = [numpy.argsort(numpy.argsort(x)) for x in (ours, theirs)]
        assert numpy.corrcoef(*ranks)[0, 1] > least
    assert dm.check_model(half).passed


@pytest.mark.parametrize("dtype", HALF)
def test_attention_weights_do_not_tie_for_want_of_bits(dtype):
    """Rounded to the dtype, dozens of sources of a row would have one weight, and be ordered by their place."""
    model = dm.load_model("demo", dtype=dtype)
    weights = dm.build_graph(model, TEXT).forward.records[2].weights
    seen = weights[weights > 0]
    assert len(seen.unique()) > 0.98 * len(seen)
    assert len(seen.to(dtype).unique()) < {torch.bfloat16: 0.8, torch.float16: 0.97}[dtype] * len(seen)


def test_scores_beyond_float16_do_not_overflow():
    """Before scaling, 8 entries of 200 make a score of 320,000; the model's own kernels take it in float32."""
    query = torch.full((1, 2, 3, 8), 200.0, dtype=torch.float16)
    key = query.clone()
    key[:, :, 1] = 199.0
    value = torch.randn(1, 2, 3, 5).half()
    module = nn.Module()
    with our_attention(module, Run({id(module): 0})):
        output, weights = attention_forward(module, query, key, value, None, scaling=1e-3)
    expected = nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), scale=1e-3
    )
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(output.float(), expected.transpose(1, 2), atol=2e-3, rtol=2e-3)


def test_a_masks_gradient_is_summed_in_float32():
    """36 entries of 30,000 add up to more than float16 holds."""
    mask = torch.ones(1, 2, requires_grad=True)
    vectors = torch.full((1, 2, 36), 30000.0, dtype=torch.float16)
    kept = _kept(vectors, mask, None)
    assert kept.dtype == torch.float16
    (slope,) = torch.autograd.grad(kept, mask, torch.ones_like(kept))
    assert slope.tolist() == [[36 * 30000.0] * 2]


def massive(name="llama", dtype=torch.float16, size=30000.0):
    """A model whose first token's stream has one entry far larger than the others, as large models have."""
    module = make_module(name)
    with torch.no_grad():
        module.get_input_embeddings().weight[IDS[0], 3] = size
    return module.to(dtype)


@pytest.mark.parametrize("name", ["llama", "gemma2", "neox"])
def test_massive_activations_in_float16(name):
    """Squares and sums of a stream near 65504 do not fit float16; every norm and score is accumulated in float32."""
    size = (
        600.0 if name == "gemma2" else 30000.0
    )  # Gemma multiplies its embeddings by the root of the hidden size
    model = dm.load_model(massive(name, size=size))
    assert float(model.adapter.capture(IDS)[0][0].stream.abs().max()) > 3000
    exact = dm.load_model(massive(name, torch.float32, size))
    for score in ("l1", "l2", "cosine", "proximity", "fisher", "bound"):
        ours, theirs = (dm.build_graph(m, IDS, importance=score).importance for m in (model, exact))
        assert numpy.isfinite(ours).all()
        ranks = [numpy.argsort(numpy.argsort(x)) for x in (ours, theirs)]
        assert numpy.corrcoef(*ranks)[0, 1] > 0.9, score
    assert dm.check_model(model, IDS).passed


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_are_read_in_half_precision_as_in_float32(norm, dtype):
    """The weights to the last bit, the scale to the rounding of what the norm wrote; near the dtype's limit too."""
    torch.manual_seed(0)
    module = transformers.models.llama.modeling_llama.LlamaRMSNorm(38) if norm == "rms" else nn.LayerNorm(38)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) + 2.0
    module = module.to(dtype)
    x = (60000.0 * (torch.rand(5, 38) - 0.3)).to(dtype)
    found = linearise(module, x, module(x))
    torch.testing.assert_close(found.weight, module.weight.float(), atol=1e-2, rtol=1e-2)
    if norm == "rms":
        assert torch.equal(found.weight, module.weight.float())
    centred = x.float() - (x.float().mean(-1, keepdim=True) if norm == "layer" else 0)
    scale = centred.square().mean(-1).rsqrt()
    assert found.centred == (norm == "layer")
    torch.testing.assert_close(found.scale, scale, rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", [1e-4, 1e-16, 1e-24, 1e-38, 1.3e-44])
def test_a_stream_of_which_next_to_nothing_is_left_has_its_scale_too(size):
    """Down to numbers of three bits, near the least that float32 has."""
    module = torch.nn.RMSNorm(6, eps=1e-6)
    module.weight.data *= 0.03
    x = torch.zeros(4, 6)
    x[-1] = size * torch.tensor([0.3, -1.0, 0.2, 0.7, -0.1, 0.5])
    with torch.no_grad():
        y = module(x)
    found = linearise(module, x, y)
    scale = (x[-1].double().square().mean() + 1e-6).rsqrt()
    assert float(found.scale[-1]) == pytest.approx(float(scale), rel=1e-5)
    torch.testing.assert_close(found.weight, module.weight.data)


@pytest.mark.parametrize("dtype", HALF)
def test_a_layer_that_is_asked_answers_as_its_weight(dtype):
    class Wrapped(nn.Linear):
        pass

    torch.manual_seed(1)
    layer = nn.Linear(600, 20).to(dtype)
    layer.bias.data *= 300  # larger than the weights by far: it must not round them away
    wrapped = Wrapped(600, 20).to(dtype)
    wrapped.load_state_dict(layer.state_dict())
    like = torch.zeros(3, 600, dtype=dtype)
    read, asked = (head_weights(m, 6, like, m(like).detach()) for m in (layer, wrapped))
    assert float((read - asked).abs().max()) < 0.03 * float(read.abs().max())


def test_what_is_not_finite_is_named_with_its_layer():
    """In the full run, in a pruned run, and in a score."""
    module = make_module("llama").half()
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.fill_(60000.0)
    with pytest.raises(NonFiniteError, match=r"layer 1"):
        dm.load_model(module)
    head = make_module("llama").half()
    with torch.no_grad():
        head.lm_head.weight[5].fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="output head"):
        dm.load_model(head)


@torch.no_grad()
def test_a_pruned_run_that_overflows_is_named_with_its_layer():
    """40,000 - 20,000 + 40,000 fits float16 in the full run; without the MLP that takes away, it does not."""
    module = make_module("llama")
    module.get_input_embeddings().weight[:, 3] = 40000.0
    for layer, amount in ((module.model.layers[0], -20000.0), (module.model.layers[1], 40000.0)):
        layer.post_attention_layernorm.weight[3] = 1.0
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            projection.weight.zero_()
        layer.mlp.gate_proj.weight[0, 3] = layer.mlp.up_proj.weight[0, 3] = 1.0
        large = torch.tensor(36**0.5)  # what one entry far above the others is after the norm, of 36
        layer.mlp.down_proj.weight[3, 0] = amount / (nn.functional.silu(large) * large)
    model = dm.load_model(module.half())
    graph = dm.build_graph(model, IDS)
    assert 55000 < float(graph.forward.records[1].mlp_sum.abs().max()) < 65000
    columns = graph.space.columns(graph.index)
    on = graph.reachable.copy()
    on[graph.index[(columns["kind"] == "mlp") & (columns["layer"] == 0)]] = False
    whole = graph.trace(size=1.0)
    assert torch.isfinite(dm.reconstruct(model, graph, [whole])).all()
    with pytest.raises(NonFiniteError, match=r"only some edges on.*layer 1 of 3.*float16"):
        dm.reconstruct(model, graph, [whole, dm.Trace(graph, on)])


def test_a_score_that_is_not_finite_is_named_with_its_layer(make_model):
    def broken(forward, seed):
        levels = l1(forward, seed)
        levels[2].residual[-1] = float("nan")
        return levels

    with registries_kept():
        dm.register_importance("broken", broken)
        with pytest.raises(PluginError, match=r"NaN or infinities, first in layer 1"):
            dm.build_graph(make_model("llama"), IDS, importance="broken")
