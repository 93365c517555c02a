"""Masked runs against forward passes written by hand, and the identities that everything relies on."""

from __future__ import annotations

import numpy
import oracles
import pytest
import torch
from conftest import BRANCH_NORMED, CONFIGS, IDS

import densitometer as dm
from densitometer.graph.masked_runs import masked_logits
from densitometer.models.blocks import BlockMask

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("rows_skipped")]

HAND_WRITTEN = {"llama": oracles.masked_llama, "olmo2": oracles.masked_olmo2, "neox": oracles.masked_neox}


@pytest.mark.parametrize("name", sorted(HAND_WRITTEN))
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_runs_equal_a_forward_pass_written_by_hand(make_model, name, seed):
    model = make_model(name, seed)
    graph = dm.build_graph(model, IDS)
    rows = oracles.rows_of(graph)
    generator = numpy.random.default_rng(seed)
    traces = [graph.trace(size=s) for s in (1.0, 0.4, 0.05)]
    traces += [graph.random_trace(0.5, seed=seed), graph.trace(size=0.2).inverse()]
    loose = numpy.zeros(graph.space.size, dtype=bool)
    loose[graph.index] = generator.random(graph.n_edges) < 0.5  # not connected: any set of edges will do
    traces.append(dm.Trace(graph, loose))
    got = dm.reconstruct(model, graph, traces)
    assert got.shape == (len(traces), 101)
    assert got.dtype == torch.float32
    for logits, trace in zip(got, traces, strict=True):
        kept = {row for row, on in zip(rows, trace.mask, strict=True) if on}
        want = HAND_WRITTEN[name](model.module, IDS, lambda *edge, kept=kept: float(edge in kept))
        assert float((logits - want).abs().max()) < 2e-5 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("attention", ["recomputed", "frozen"])
def test_full_trace_is_the_model(make_model, name, attention):
    model = make_model(name)
    graph = dm.build_graph(model, IDS)
    logits = dm.reconstruct(model, graph, [graph.trace(size=1.0)], attention=attention)[0]
    with torch.no_grad():
        own = model.module(torch.tensor([IDS])).logits[0, -1]
    assert float((logits - own).abs().max()) < 1e-5 * max(1.0, float(own.abs().max()))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_removing_any_kind_of_edge_changes_the_output(make_model, name):
    model = make_model(name)
    graph = dm.build_graph(model, IDS)
    columns = graph.space.columns(graph.index)
    own = masked_logits(graph.forward, [graph.reachable])[0]
    for kind in set(columns["kind"]):
        of_kind = graph.index[columns["kind"] == kind]
        mask = graph.reachable.copy()
        mask[of_kind[numpy.argmax(graph.keys[of_kind])]] = False
        assert float((masked_logits(graph.forward, [mask])[0] - own).abs().max()) > 1e-3


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(BRANCH_NORMED)))
def test_removing_one_edge_into_the_last_level_takes_its_vector_off_the_last_node(make_model, name):
    """An edge's vector, checked by intervening on it: node - vector, through the model's own norm and head."""
    model = make_model(name)
    graph = dm.build_graph(model, IDS)
    *_, edges = graph.forward.levels()
    columns = graph.space.columns(graph.index)
    into_root = (columns["level"] == len(graph.space.levels) - 1) & (columns["target"] == graph.position)
    seen = {}
    layer = model.adapter.blocks[-1].module
    final = _module_after(model.module, layer)
    handle = final.register_forward_pre_hook(oracles.keep(seen, "in", takes_input=True))
    try:
        for flat in graph.index[into_root]:
            where = {k: v[0] for k, v in graph.space.columns(numpy.array([flat])).items()}
            mask = graph.reachable.copy()
            mask[flat] = False
            masked_logits(graph.forward, [mask])
            if where["kind"] == "attention":
                h, s = where["head"], where["source"]
                vector = edges.attention_vectors(h)[-1, s]
            else:
                vector = edges.mlp[-1] if where["kind"] == "mlp" else edges.residual[-1]
            gap = (seen["in"][-1] - (edges.node[-1] - vector)).abs().max()
            assert float(gap) < 1e-5 * float(edges.node[-1].abs().max())
    finally:
        handle.remove()


def _module_after(module, layer):
    """The norm that reads the last decoder block's output."""
    names = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
    for part in module.modules():
        if any(child is layer for children in part.children() for child in children.children()):
            return next(
                getattr(part, n) for n in names if isinstance(getattr(part, n, None), torch.nn.Module)
            )
    raise AssertionError("no norm found")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_incoming_edges_sum_to_every_node(make_model, name):
    graph = dm.build_graph(make_model(name), IDS)
    count = 0
    for edges in graph.forward.levels():
        total = edges.residual + edges.attention_sum() + edges.constant
        if edges.mlp is not None:
            total = total + edges.mlp
        torch.testing.assert_close(total, edges.node, atol=2e-5, rtol=1e-4)
        count += 1
    assert count == len(graph.space.levels)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_skipping_rows_is_exact(make_model, name):
    """Boolean masks skip rows, float masks compute everything."""
    graph = dm.build_graph(make_model(name), IDS)
    assert graph.model.adapter.packs
    sizes = (0.01, 0.05, 0.1, 0.3, 0.6, 1.0)
    masks = [t.flat for s in sizes for t in (graph.trace(size=s), graph.trace(size=s).inverse())]
    skipped = masked_logits(graph.forward, masks)
    dense_masks = graph.forward.block_masks(torch.from_numpy(numpy.stack(masks)).float())
    with torch.no_grad():
        dense = graph.model.adapter.masked_logits(graph.forward.ids, dense_masks)
    assert isinstance(dense_masks[0], BlockMask)
    torch.testing.assert_close(skipped, dense, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2", "mixtral"])
def test_a_result_does_not_depend_on_its_batch_mates(make_model, name):
    model = make_model(name)
    graph = dm.build_graph(model, IDS)
    traces = graph.traces([0.05, 0.3, 1.0])
    together = dm.reconstruct(model, graph, [*traces, graph.random_trace(0.5)])
    alone = torch.cat([dm.reconstruct(model, graph, [trace]) for trace in traces])
    torch.testing.assert_close(together[:3], alone, atol=2e-5, rtol=1e-4)


def test_batches_are_split_to_the_memory_budget(make_model, monkeypatch):
    from densitometer.graph import masked_runs as ablation

    model = make_model("llama")
    graph = dm.build_graph(model, IDS)
    traces = graph.traces([0.05, 0.3, 0.5, 1.0])
    whole = dm.reconstruct(model, graph, traces)
    monkeypatch.setattr(ablation, "BATCH_BYTES", 1)
    assert ablation.variants_per_batch(graph.forward) == 1
    torch.testing.assert_close(dm.reconstruct(model, graph, traces), whole, atol=2e-5, rtol=1e-4)


def test_frozen_attention_differs_from_recomputed(make_model):
    model = make_model("llama")
    graph = dm.build_graph(model, IDS)
    trace = [graph.trace(size=0.3)]
    frozen = dm.reconstruct(model, graph, trace, attention="frozen")
    assert float((frozen - dm.reconstruct(model, graph, trace)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
def test_the_model_is_left_as_it_was(make_model, name):
    model = make_model(name)
    own = model.adapter.logits(IDS)  # transformers installs hooks of its own at a module's first run
    before = _state(model.module)
    graph = dm.build_graph(model, IDS)
    dm.reconstruct(model, graph, graph.traces([0.1, 1.0]))
    assert _state(model.module) == before
    assert model.module.config._attn_implementation != "densitometer"
    assert torch.equal(model.adapter.logits(IDS), own)


def _state(module):
    """Everything about a module that a run under the adapter replaces."""
    return [
        (
            vars(part).get("forward"),
            list(part._forward_hooks),
            list(part._forward_pre_hooks),
            getattr(getattr(part, "config", None), "_attn_implementation", None),
            [p.requires_grad for p in part.parameters()],
        )
        for part in module.modules()
    ]


def test_the_model_is_left_as_it_was_after_an_error(make_model, monkeypatch):
    from densitometer.models import adapter

    model = make_model("llama")
    model.adapter.logits(IDS)
    before = _state(model.module)
    monkeypatch.setattr(adapter, "add_up", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dm.build_graph(model, IDS)
    assert _state(model.module) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_in_float32(dtype):
    from conftest import make_module

    model = dm.load_model(make_module("qwen3").to(dtype))
    graph = dm.build_graph(model, IDS)
    assert graph.importance.dtype == numpy.float32
    exact = dm.build_graph(dm.load_model(make_module("qwen3")), IDS)
    numpy.testing.assert_allclose(graph.importance, exact.importance, atol=0.03)
    assert dm.check_model(model, IDS).passed


def test_wrong_arguments_are_refused(make_model):
    model, other = make_model("llama"), make_model("neox")
    graph, theirs = dm.build_graph(model, IDS), dm.build_graph(other, IDS)
    longer = dm.build_graph(model, [*IDS, 5])
    trace = graph.trace(size=0.5)
    with pytest.raises(ValueError, match="another model"):
        dm.reconstruct(other, graph, [trace])
    with pytest.raises(ValueError, match="another graph"):
        dm.reconstruct(model, graph, [theirs.trace(size=0.5)])
    with pytest.raises(ValueError, match="another graph"):
        dm.reconstruct(model, graph, [longer.trace(size=0.5)])
    with pytest.raises(ValueError, match="'warm'"):
        dm.reconstruct(model, graph, [trace], attention="warm")
    with pytest.raises(ValueError, match="'noise'"):
        dm.reconstruct(model, graph, [trace], ablation="noise")
    with pytest.raises(TypeError, match="list of traces"):
        dm.reconstruct(model, graph, trace)
    assert dm.reconstruct(model, graph, []).shape[0] == 0


def test_where_memory_runs_out_batches_are_halved(make_model, monkeypatch):
    graph = dm.build_graph(make_model("llama"), IDS)
    masks = [graph.trace(n_edges=n).flat for n in (3, 40, 90, 150, 200, 210, 250)]
    expected = masked_logits(graph.forward, masks)
    adapter, sizes, told = type(graph.model.adapter), [], []
    run = adapter.masked_logits
    message = "out of memory"

    def little_memory(self, ids, blocks, positions=None):
        sizes.append(len(blocks[0].mlp))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError(message) if message == "out of memory" else RuntimeError(message)
        return run(self, ids, blocks, positions=positions)

    monkeypatch.setattr(adapter, "masked_logits", little_memory)
    found = masked_logits(graph.forward, masks, advance=told.append)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert sum(told) == len(masks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    message = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    torch.testing.assert_close(masked_logits(graph.forward, masks), expected, rtol=0, atol=1e-5)
    message = "shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="shapes"):
        masked_logits(graph.forward, masks)


def test_traces_of_the_same_text_will_do_and_of_another_grain_will_not(make_model):
    model = make_model("llama")
    graph, again = dm.build_graph(model, IDS), dm.build_graph(model, IDS, importance="l2")
    trace = again.trace(size=0.4)
    assert torch.equal(dm.reconstruct(model, graph, [trace]), dm.reconstruct(model, again, [trace]))
    fine = dm.build_graph(model, IDS, granularity="neuron")
    with pytest.raises(ValueError, match="another graph"):
        dm.reconstruct(model, graph, [fine.trace(size=0.4)])
    with pytest.raises(ValueError, match="another graph"):
        dm.reconstruct(model, graph, [trace, dm.build_graph(model, [*IDS[:-1], 9]).trace(size=0.4)])


def test_what_is_not_asked_for_is_recomputed_attention_and_zero_ablation(make_model):
    model = make_model("llama")
    graph = dm.build_graph(model, IDS)
    traces = [graph.trace(size=0.3)]
    default = dm.reconstruct(model, graph, traces)
    assert torch.equal(default, dm.reconstruct(model, graph, traces, attention="recomputed", ablation="zero"))
    assert torch.equal(default, masked_logits(graph.forward, [traces[0].flat]))
    frozen = masked_logits(graph.forward, [traces[0].flat], True)
    assert torch.equal(dm.reconstruct(model, graph, traces, attention="frozen"), frozen)


def test_means_are_of_this_model_and_of_whole_mlps(make_model):
    model = make_model("llama")
    means = dm.reference_means(model, [IDS])
    fine = dm.build_graph(model, IDS, granularity="neuron")
    with pytest.raises(ValueError, match="need granularity='block'; got 'neuron'"):
        dm.reconstruct(model, fine, [fine.trace(size=0.5)], ablation=means)
    graph = dm.build_graph(model, IDS)
    for ablation, told in (("mean", "lacks the means"), ("none", "unknown ablation 'none'"), (3, "got int")):
        with pytest.raises(dm.DensitometerError, match=told):
            dm.reconstruct(model, graph, [graph.trace(size=0.5)], ablation=ablation)
    dm.MeasureSettings(ablation=means, attention="frozen").model_for(model)
    with pytest.raises(ValueError, match="another model"):
        dm.MeasureSettings(ablation=means).model_for(make_model("neox"))
