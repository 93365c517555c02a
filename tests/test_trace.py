"""Traces against a heap of edges, thresholds and nuclei in plain Python; exact sizes, nesting, connectivity."""

from __future__ import annotations

import itertools

import numpy
import oracles
import pytest
import torch
from conftest import CONFIGS, IDS, make_module
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import densitometer as dm
from densitometer.graph.forward_pass import EdgeSpace, Level
from densitometer.graph.growth import (
    NATURAL,
    best_first_order,
    bottleneck_keys,
    natural_mask,
    nucleus_mask,
    rank_edges,
    residual_mask,
)

pytestmark = pytest.mark.fast

SIZES = (0.0, 0.003, 0.02, 0.1, 0.37, 0.5, 0.9, 1.0)


GRAINS = [("llama", "l1", "neuron"), ("mixtral", "l1", "expert")]


@pytest.fixture(
    params=[*((n, i, "block") for n in ("llama", "neox", "gemma2") for i in ("l1", "random")), *GRAINS],
    ids="-".join,
)
def graph(request, make_model):
    name, importance, granularity = request.param
    return dm.build_graph(make_model(name), IDS, importance=importance, seed=5, granularity=granularity)


def heap_order(graph) -> numpy.ndarray:
    rows = oracles.rows_of(graph)
    return numpy.array(oracles.best_first(rows, graph.importance[graph.index], graph.position))


def test_order_equals_a_heap_of_edges(graph):
    got = numpy.searchsorted(graph.index, graph.order)
    numpy.testing.assert_array_equal(got, heap_order(graph))


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_scores_are_ranked_stably_to_their_last_bit(dtype):
    generator = numpy.random.Generator(numpy.random.PCG64(3))
    scores = generator.choice([0.0, -0.0, 1e-42, 1e-9, 0.25, 3.0, 7e8], 400).astype(dtype)
    scores[::5] = 0.5 * (1 + generator.integers(0, 9, 80) * numpy.finfo(dtype).eps)
    reachable = generator.random(400) < 0.8
    want = [i for _, i in sorted((-s, i) for i, s in enumerate(scores.tolist()) if reachable[i])]
    _, ranks = rank_edges(scores, reachable)
    assert numpy.argsort(ranks, kind="stable")[: len(want)].tolist() == want
    assert (ranks[~reachable] == 400).all()


def test_sorted_keys_equal_the_running_minimum_of_the_best_first_order(graph):
    keys = numpy.sort(graph.keys[graph.index])[::-1]
    running = numpy.minimum.accumulate(graph.importance[graph.index][heap_order(graph)])
    numpy.testing.assert_array_equal(keys, running)


@pytest.mark.parametrize("size", SIZES)
def test_a_trace_of_a_size_has_exactly_its_edges_and_is_connected(graph, size):
    trace = graph.trace(size=size)
    assert trace.mask.dtype == bool
    assert trace.mask.shape == (graph.n_edges,)
    assert trace.n_edges == trace.mask.sum() == int(size * graph.n_edges)
    assert oracles.connected(oracles.rows_of(graph), trace.mask, graph.position)
    assert graph.trace(n_edges=trace.n_edges).mask.tolist() == trace.mask.tolist()


def test_traces_are_nested(graph):
    masks = [trace.mask for trace in graph.traces(SIZES)]
    for smaller, larger in itertools.pairwise(masks):
        assert (larger | ~smaller).all()


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.8, 0.95, 1.0])
def test_threshold_traces(graph, quantile):
    importance = graph.importance[graph.index]
    threshold = float(numpy.quantile(importance, quantile))
    rows = oracles.rows_of(graph)
    mask = graph.trace(threshold=threshold).mask
    got = {row for row, on in zip(rows, mask, strict=True) if on}
    assert got == oracles.threshold_trace(rows, importance, threshold, graph.position)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.62, 0.93])
def test_nucleus_traces(graph, share):
    rows = oracles.rows_of(graph)
    mask = graph.trace(nucleus=share).mask
    got = {row for row, on in zip(rows, mask, strict=True) if on}
    assert got == oracles.nucleus_trace(rows, graph.importance[graph.index], share, graph.position)


def test_inverse_is_everything_else(graph):
    trace = graph.trace(size=0.3)
    assert (trace.inverse().mask == ~trace.mask).all()
    residual = graph.edges()["kind"].str.starts_with("residual").to_numpy()
    assert (trace.inverse(keep_residual=True).mask == (~trace.mask | residual)).all()


@pytest.mark.parametrize("size", [0.01, 0.2, 0.7])
def test_random_traces_are_size_matched_connected_and_seeded(graph, size):
    trace = graph.random_trace(size, seed=1)
    assert trace.n_edges == int(size * graph.n_edges)
    assert oracles.connected(oracles.rows_of(graph), trace.mask, graph.position)
    assert (graph.random_trace(size, seed=1).mask == trace.mask).all()
    kept = graph.random_trace(size, seed=1, keep_residual=True)
    residual = graph.edges()["kind"].str.starts_with("residual").to_numpy()
    assert (kept.mask == (trace.mask | residual)).all()


def test_random_traces_differ_by_seed(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    assert (graph.random_trace(0.5, seed=1).mask != graph.random_trace(0.5, seed=2).mask).any()


@st.composite
def scored_spaces(draw):
    """Small edge spaces of either layout with scores full of ties, some edges not reachable."""
    n_tokens = draw(st.integers(1, 4))
    n_heads = draw(st.integers(1, 3))
    levels = []
    for layer in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            levels.append(Level(layer, "residual", n_heads, draw(st.integers(1, 3))))
        else:
            levels += [
                Level(layer, "residual_attention", n_heads, 0),
                Level(layer, "residual_mlp", 0, draw(st.integers(1, 3))),
            ]
    space = EdgeSpace(tuple(levels), n_tokens)
    scores = draw(st.lists(st.integers(0, 4), min_size=space.size, max_size=space.size))
    return space, numpy.array(scores, dtype=numpy.float32)


def plain(space: EdgeSpace) -> tuple[list[tuple], numpy.ndarray]:
    """(level, kind, head or unit, source, target) of every place on the flat axis, and which can reach the output."""
    columns = space.columns(numpy.arange(space.size))
    names = ("level", "kind", "head", "unit", "source", "target")
    rows = [
        (int(level), kind, int(max(head, unit)), int(source), int(target))
        for level, kind, head, unit, source, target in zip(*(columns[name] for name in names), strict=True)
    ]
    causal = {row for row in rows if row[3] <= row[4]}
    reachable_rows = oracles.reachable_edges(causal, len(space.levels), space.n_tokens - 1)
    return rows, numpy.array([row in reachable_rows for row in rows])


@settings(max_examples=150, deadline=None)
@given(scored_spaces())
def test_order_and_keys_with_ties(scored):
    space, importance = scored
    t = space.n_tokens
    rows, reachable = plain(space)
    index = numpy.flatnonzero(reachable)
    expected = oracles.best_first([rows[i] for i in index], importance[index], t - 1)
    order = best_first_order(space, importance, reachable)
    numpy.testing.assert_array_equal(order, index[expected])
    keys = bottleneck_keys(space, importance, reachable)
    running = numpy.minimum.accumulate(importance[order])
    numpy.testing.assert_array_equal(numpy.sort(keys[index])[::-1], running)
    assert (keys[~reachable] == -numpy.inf).all()


@settings(max_examples=100, deadline=None)
@given(scored_spaces())
def test_every_prefix_of_the_order_is_connected_and_counts_its_edges(scored):
    space, importance = scored
    rows, reachable = plain(space)
    order = best_first_order(space, importance, reachable)
    assert sorted(order.tolist()) == numpy.flatnonzero(reachable).tolist()
    reached = {(len(space.levels) - 1, space.n_tokens - 1)}
    for level, _, _, source, target in (rows[i] for i in order):
        assert (level, target) in reached  # so each prefix, whatever its size, is connected
        reached.add((level - 1, source))


@settings(max_examples=100, deadline=None)
@given(scored_spaces(), st.sampled_from([0.0, 0.2, 0.34, 0.5, 0.75, 1.0]), st.integers(0, 4))
def test_nuclei_and_thresholds_with_ties(scored, share, threshold):
    space, importance = scored
    t = space.n_tokens
    rows, reachable = plain(space)
    index = numpy.flatnonzero(reachable)
    causal = [rows[i] for i in index]

    def chosen(mask):
        return {row for row, on in zip(rows, mask, strict=True) if on}

    nucleus = nucleus_mask(space, importance, reachable, share)
    assert chosen(nucleus) == oracles.nucleus_trace(causal, importance[index], share, t - 1)
    kept = bottleneck_keys(space, importance, reachable) > threshold
    assert chosen(kept) == oracles.threshold_trace(causal, importance[index], threshold, t - 1)


@settings(max_examples=60, deadline=None)
@given(scored_spaces())
def test_subgraphs_that_need_no_score(scored):
    space, _ = scored
    last = space.n_tokens - 1
    rows, reachable = plain(space)
    want = {
        "residual_chain": lambda kind, s, t: kind.startswith("residual") and t == last,
        "residual_mlp_chain": lambda kind, s, t: kind != "attention" and t == last,
        "last_attention": lambda kind, s, t: kind != "attention" or t == last,
        "window_2": lambda kind, s, t: kind != "attention" or t - s < 2,
        "window_4": lambda kind, s, t: kind != "attention" or t - s < 4,
        "window_8": lambda kind, s, t: kind != "attention" or t - s < 8,
    }
    got = {name: natural_mask(space, reachable, name) for name in NATURAL}
    assert list(got) == list(want)
    for name, rule in want.items():
        expected = [
            bool(exists) and rule(row[1], *row[3:]) for row, exists in zip(rows, reachable, strict=True)
        ]
        assert got[name].tolist() == expected, name
    residual = [bool(e) and row[1].startswith("residual") for row, e in zip(rows, reachable, strict=True)]
    assert residual_mask(space, reachable).tolist() == residual


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_cost_of_nested_traces_equals_the_cost_of_each_alone(make_model, name):
    graph = dm.build_graph(make_model(name), IDS)
    for size in SIZES:
        trace = graph.trace(size=size)
        assert trace.flops_share == pytest.approx(graph.costs.flops[trace.n_edges], abs=1e-12)
        assert trace.parameter_share == pytest.approx(graph.costs.parameters[trace.n_edges], abs=1e-12)
    assert graph.costs.flops[0] == 0
    assert graph.costs.flops[-1] == pytest.approx(1.0)
    assert (numpy.diff(graph.costs.flops) >= 0).all()


@pytest.mark.parametrize("budget", ["flops", "parameters"])
def test_budget_traces_are_the_largest_that_fit(make_model, budget):
    graph = dm.build_graph(make_model("llama"), IDS)
    share = {"flops": "flops_share", "parameters": "parameter_share"}[budget]
    trace = graph.trace(**{budget: 0.4})
    assert getattr(trace, share) <= 0.4
    assert getattr(graph.trace(n_edges=trace.n_edges + 1), share) > 0.4


def test_flops_of_one_trace_counted_by_hand(make_model):
    """Llama, two edges: the last MLP and the residual into it cost one MLP."""
    model = make_model("llama")
    graph = dm.build_graph(model, IDS)
    config = model.module.config
    d, mlp, h, g, v, t = 36, 44, 6, 2, 8, len(IDS)
    mlp_flops = 2 * 3 * d * mlp
    query, key, value, output = 2 * d * h * v, 2 * d * g * v, 2 * d * g * v, 2 * h * v * d
    pairs = t * (t + 1) // 2 * h
    last_pairs = t * h
    inner = config.num_hidden_layers - 1
    total = inner * (t * (mlp_flops + query + key + value + output) + pairs * 4 * v)
    total += mlp_flops + query + output + t * (key + value) + last_pairs * 4 * v
    only_mlp = numpy.array([row[0] == 5 and row[1] == "mlp" for row in oracles.rows_of(graph)])
    flat = numpy.zeros(graph.space.size, dtype=bool)
    flat[graph.index[only_mlp]] = True
    assert dm.Trace(graph, flat).flops_share == pytest.approx(mlp_flops / total)


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2", "gpt2", "mistral-window"])
def test_operations_of_a_block_equal_torchs_count(make_model, name):
    """Every token and pair of tokens, in each decoder block, against torch.utils.flop_counter."""
    model = make_model(name)
    forward = dm.build_graph(model, IDS).forward
    t = len(IDS)
    implementation = model.module.config._attn_implementation
    model.module.set_attn_implementation("eager")  # torch does not count its fused attention on a CPU
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.module(torch.tensor([IDS]))
    finally:
        model.module.set_attn_implementation(implementation)
    counted = {key: sum(ops.values()) for key, ops in counter.get_flop_counts().items()}
    paths = {part: path for path, part in model.module.named_modules()}
    root = type(model.module).__name__
    for block, cost in zip(model.adapter.blocks, forward.block_costs, strict=True):
        h, g = block.n_heads, cost.n_groups
        per_token = h * (cost.query_flops + cost.output_flops) + g * (cost.key_flops + cost.value_flops)
        mlp_flops = cost.mlp_flops.sum() + cost.router_flops
        ours = t * (per_token + mlp_flops) + h * t * t * (cost.score_flops + cost.mix_flops)
        assert ours == pytest.approx(counted[f"{root}.{paths[block.module]}"], rel=1e-12)


def test_costs_are_counted_once_and_again_where_a_weight_has_another_shape(monkeypatch):
    from densitometer.models import adapter

    model = dm.load_model(make_module("llama", 0))
    counted = []
    real = adapter.block_cost
    monkeypatch.setattr(
        adapter, "block_cost", lambda block, *a: counted.append(block.index) or real(block, *a)
    )
    before = dm.build_graph(model, IDS).forward.block_costs
    assert dm.build_graph(model, IDS[:3]).forward.block_costs == before
    assert counted == list(range(len(before)))
    mlp = model.adapter.blocks[1].module.mlp
    inner, size = mlp.gate_proj.weight.shape
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight = torch.nn.Parameter(layer.weight[: inner // 2].detach().clone())
    mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, : inner // 2].detach().clone())
    after = dm.build_graph(model, IDS).forward.block_costs
    assert float(after[1].mlp_flops.sum()) == 2 * 3 * (inner // 2) * size
    assert after[0].mlp_flops == before[0].mlp_flops == 2 * 3 * inner * size


def test_unusable_budgets_are_refused(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    for keywords in ({}, {"size": 0.1, "n_edges": 3}, {"size": 1.5}, {"size": float("nan")}, {"n_edges": -1}):
        with pytest.raises(dm.DensitometerError):
            graph.trace(**keywords)
    with pytest.raises(TypeError, match="'all'"):
        graph.trace(size="all")
    with pytest.raises(TypeError):
        graph.trace(n_edges=2.5)


def test_a_trace_is_booleans_over_the_flat_axis(demo):
    graph = dm.build_graph(demo, "the sea was")
    rows, flat = numpy.ones(graph.n_edges, dtype=bool), numpy.ones(graph.space.size, dtype=bool)
    for wrong in (rows, flat.astype(int), flat[:-1], numpy.arange(10), numpy.zeros(0, dtype=bool)):
        with pytest.raises(dm.DensitometerError, match=r"use graph\.trace\(mask=\.\.\.\)"):
            dm.Trace(graph, wrong)


def test_a_trace_of_chosen_edges_has_just_these(demo):
    graph = dm.build_graph(demo, "the sea was")
    chosen = numpy.random.default_rng(3).random(graph.n_edges) < 0.6
    trace = graph.trace(mask=chosen)
    assert (trace.mask == chosen).all()
    assert trace.n_edges == chosen.sum()
    for wrong in (chosen[:-1], chosen.astype(int), graph.reachable):
        with pytest.raises(dm.DensitometerError, match=f"mask must be {graph.n_edges} booleans"):
            graph.trace(mask=wrong)
