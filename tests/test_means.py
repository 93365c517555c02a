"""Mean ablation against a forward pass written by hand, and means against plain averages."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import CONFIGS, IDS

import densitometer as dm

OTHER = [5, 77, 31, 9]


@pytest.fixture(scope="module")
def means_of(make_model):
    cache = {}

    def make(name):
        if name not in cache:
            cache[name] = dm.reference_means(make_model(name), [IDS, OTHER])
        return cache[name]

    return make


def test_means_are_plain_averages_over_tokens(make_model, means_of):
    model, means = make_model("llama"), means_of("llama")
    streams, heads, attended = [], [], []
    for ids in (IDS, OTHER):
        record = model.adapter.capture(ids)[0][1]
        streams += list(record.stream)
        values = record.values.repeat_interleave(3, dim=0)  # 6 query heads on 2 key-value heads
        heads += list(torch.einsum("hts,hsv->thv", record.weights, values))
        attended += list(record.weights.sum(-1).T)
    block = means.blocks[1]
    torch.testing.assert_close(block.residual_attention, torch.stack(streams).mean(0), atol=1e-5, rtol=1e-4)
    per_unit = torch.stack(heads).sum(0) / torch.stack(attended).sum(0)[:, None]
    torch.testing.assert_close(block.attention, per_unit, atol=1e-5, rtol=1e-4)
    assert means.provenance["n_tokens"] == len(IDS) + len(OTHER)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("attention", ["recomputed", "frozen"])
def test_the_full_trace_is_the_model_under_mean_ablation_too(make_model, means_of, name, attention):
    model = make_model(name)
    graph = dm.build_graph(model, IDS)
    traces = [graph.trace(size=1.0), graph.trace(size=0.4)]
    full, half = dm.reconstruct(model, graph, traces, attention=attention, ablation=means_of(name))
    own = model.adapter.logits(IDS)
    assert float((full - own).abs().max()) < 1e-5 * max(1.0, float(own.abs().max()))
    zero = dm.reconstruct(model, graph, traces[1:], attention=attention)[0]
    assert float((half - zero).abs().max()) > 1e-3


def test_what_stands_in_for_each_kind_of_edge(make_model, means_of):
    """Frozen attention, one edge off in the last block: the stream before the final norm moves by mean - vector."""
    model, means = make_model("llama"), means_of("llama").blocks[-1]
    graph = dm.build_graph(model, IDS)
    columns = graph.space.columns(graph.index)
    *_, mid, out = graph.forward.levels()
    write = model.adapter.blocks[-1].projection.weight.T.unflatten(0, (6, 8))
    stand_in = {"residual_mlp": means.residual_mlp, "mlp": means.mlp}
    vectors = {"residual_mlp": out.residual[-1], "mlp": out.mlp[-1]}
    last = columns["level"] == len(graph.space.levels) - 1
    seen = []
    handle = model.module.model.norm.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    try:
        for edge in graph.index[last]:
            kind = graph.space.columns(numpy.array([edge]))["kind"][0]
            mask = graph.reachable.copy()
            mask[edge] = False
            dm.reconstruct(
                model,
                graph,
                [dm.Trace(graph, mask)],
                attention="frozen",
                ablation=means_of("llama"),
            )
            want = out.node[-1] - vectors[kind] + stand_in[kind]
            torch.testing.assert_close(seen[-1][0, -1], want, atol=1e-4, rtol=1e-4)
        # all edges of one head: its mean output is left. The MLP of that block is off, so that mid is all that is seen
        head = (columns["layer"] == columns["layer"].max()) & (columns["head"] == 4)
        mask = graph.reachable.copy()
        mask[graph.index[head]] = False
        mask[graph.index[last & (columns["kind"] == "mlp")]] = False
        dm.reconstruct(
            model,
            graph,
            [dm.Trace(graph, mask)],
            attention="frozen",
            ablation=means_of("llama"),
        )
        vector = mid.attention_vectors(4)[-1].sum(0).detach()
        want = mid.node[-1] - vector + (means.attention[4] @ write[4]).detach() + means.mlp
        torch.testing.assert_close(seen[-1][0, -1], want, atol=1e-4, rtol=1e-4)
    finally:
        handle.remove()


def test_means_are_stored_whole_with_their_provenance(make_model, means_of, tmp_path):
    path = tmp_path / "means.safetensors"
    means = means_of("neox")
    means.save(path)
    read = dm.load_means(path)
    assert read.provenance == means.provenance
    for ours, theirs in zip(means.blocks, read.blocks, strict=True):
        assert theirs.residual_attention is None
        torch.testing.assert_close(ours.attention, theirs.attention, atol=0, rtol=0)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(dm.DensitometerError, match="damaged"):
        dm.load_means(path)
    with pytest.raises(dm.DensitometerError, match="cannot read"):
        dm.load_means(tmp_path / "none")


def test_a_measurement_under_mean_ablation_says_so(demo):
    means = dm.reference_means(demo, ["The whale swam under the ship.", "Le conseil a une politique."])
    m = dm.measure(demo, "The captain cried to his men", ablation=means, baselines=())
    assert m.provenance["ablation"] == "mean"
    assert m.provenance["means"]["n_texts"] == 2
    zero = dm.measure(demo, "The captain cried to his men", baselines=())
    assert m.curve["tv"].to_list() != zero.curve["tv"].to_list()
    assert m.curve["tv"][-1] < 1e-4


def test_wrong_arguments_are_refused(make_model, means_of):
    model = make_model("llama")
    graph = dm.build_graph(model, IDS)
    trace = [graph.trace(size=0.5)]
    with pytest.raises(ValueError, match="densitometer means"):
        dm.reconstruct(model, graph, trace, ablation="mean")
    with pytest.raises(TypeError, match="got tuple"):
        dm.reconstruct(model, graph, trace, ablation=means_of("llama").blocks)
    with pytest.raises(ValueError, match="another model"):
        dm.reconstruct(model, graph, trace, ablation=means_of("neox"))
    with pytest.raises(ValueError, match="no texts"):
        dm.reference_means(model, [])
