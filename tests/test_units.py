"""Finer grains than the block: neurons and experts as edges, against forward passes written by hand and interventions on
the model's own forward pass."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager

import architectures
import numpy
import oracles
import polars
import pytest
import torch
from conftest import CONFIGS, IDS, make_module
from typer.testing import CliRunner

import densitometer as dm
from densitometer.graph.forward_pass import PerLevel
from densitometer.graph.masked_runs import masked_logits
from densitometer.measuring.transfer import mapped_order, overlap, transfer
from densitometer.models import units as units_module

pytestmark = pytest.mark.usefixtures("rows_skipped")

MIXTURES = ("mixtral", "gpt-oss")
DENSE = sorted(set(CONFIGS) - set(MIXTURES))
# with a shared expert, a gate on it, one beside the MLP, first layers that are dense, and every expert called with every token
CHANGES = {"dots1": {"first_k_dense_replace": 1}, "granitemoeshared": {"shared_intermediate_size": 20}}
OTHER_MIXTURES = ("qwen2_moe", "granitemoeshared", "dots1", "ernie4_5_moe", "llama4_text")
CASES = [(name, "neuron") for name in DENSE] + [(name, "expert") for name in (*MIXTURES, *OTHER_MIXTURES)]
HAND_WRITTEN = {
    ("llama", "neuron"): lambda module, on: oracles.masked_llama(module, IDS, on, neurons=True),
    ("olmo2", "neuron"): lambda module, on: oracles.masked_olmo2(module, IDS, on, neurons=True),
    ("neox", "neuron"): lambda module, on: oracles.masked_neox(module, IDS, on, neurons=True),
    ("mixtral", "expert"): lambda module, on: oracles.masked_llama(module, IDS, on, mlp_of=oracles.mixture),
}


@pytest.fixture(scope="module")
def load(make_model):
    cache = {}

    def loaded(name):
        if name in CONFIGS:
            return make_model(name)
        if name not in cache:
            cache[name] = dm.load_model(architectures.tiny_module(name, **CHANGES.get(name, {})))
        return cache[name]

    return loaded


@pytest.mark.parametrize(("name", "granularity"), sorted(HAND_WRITTEN))
def test_masked_runs_equal_a_forward_pass_written_by_hand(make_model, name, granularity):
    """In the mixture the router reads the pruned stream, and experts that it did not choose in the full run are off."""
    model = make_model(name)
    graph = dm.build_graph(model, IDS, granularity=granularity)
    rows = oracles.rows_of(graph)
    traces = [graph.trace(size=1.0), graph.trace(size=0.3), graph.trace(size=0.2).inverse()]
    loose = numpy.zeros(graph.space.size, dtype=bool)
    loose[graph.index] = numpy.random.default_rng(0).random(graph.n_edges) < 0.5
    traces.append(dm.Trace(graph, loose))
    packed, dense = dm.reconstruct(model, graph, traces), _dense(graph, traces)
    for i, trace in enumerate(traces):
        kept = {row for row, on in zip(rows, trace.mask, strict=True) if on}
        want = HAND_WRITTEN[name, granularity](model.module, lambda *edge, kept=kept: float(edge in kept))
        for logits in (packed[i], dense[i]):
            assert float((logits - want).abs().max()) < 2e-5 * max(1.0, float(want.abs().max()))


def _dense(graph, traces):
    masks = torch.from_numpy(numpy.stack([trace.flat for trace in traces])).float()
    with torch.no_grad():
        return graph.model.adapter.masked_logits(graph.forward.ids, graph.forward.block_masks(masks))


def test_a_pruned_stream_is_routed_anew(make_model):
    """Otherwise the case above would hold nothing against a router that reads the full stream."""
    model = make_model("mixtral")
    graph = dm.build_graph(model, IDS, granularity="expert")
    seen = []
    handle = model.adapter.blocks[-1].module.mlp.experts.register_forward_pre_hook(
        lambda module, args: seen.append(args[1].sort(dim=-1).values)
    )
    try:
        for trace in (graph.trace(size=1.0), graph.trace(size=0.3)):
            _dense(graph, [trace])
    finally:
        handle.remove()
    assert not torch.equal(seen[0], seen[1])


# ------------------------------------------------------------------ interventions on the model's own forward pass

DOWN = {
    "llama": "mlp.down_proj", "neox": "mlp.dense_4h_to_h", "gemma2": "mlp.down_proj", "olmo2": "mlp.down_proj",
    "opt": "fc2", "gpt2": "mlp.c_proj", "granite": "mlp.down_proj", "cohere": "mlp.down_proj",
}  # fmt: skip


@contextmanager
def neuron_off(model, name, layer, unit, token):
    """Zero one activation where the down projection reads it."""

    def zero(module, args):
        read = args[0].clone()
        read.view(-1, read.shape[-1])[token, unit] = 0
        return (read, *args[1:])

    down = model.adapter.blocks[layer].module.get_submodule(DOWN[name])
    handle = down.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def experts_off(model, name, graph, mask):
    """Zero the routing weights, in what the routers give, of all experts whose edges are off: those of the mask, and those
    that only the changed stream would choose. A shared expert's output is zeroed."""
    shared = {
        "qwen2_moe": "mlp.shared_expert", "dots1": "mlp.shared_experts", "ernie4_5_moe": "mlp.shared_experts",
        "llama4_text": "feed_forward.shared_expert", "granitemoeshared": "shared_mlp",
    }  # fmt: skip
    handles = []
    levels = zip(graph.space.levels, graph.space.views(mask), strict=True)
    for layer, view in ((level.layer, view) for level, view in levels if view.mlp is not None):
        units = model.adapter.units("expert")[layer]
        if units is None:
            continue
        block = model.adapter.blocks[layer].module
        exists = graph.space.views(graph.reachable)
        exists = next(
            v
            for lv, v in zip(graph.space.levels, exists, strict=True)
            if lv.layer == layer and v.mlp is not None
        )
        reached = torch.from_numpy(
            exists.mlp.any(axis=0)
        )  # tokens of the last layer that nothing reads stay as they are
        on = torch.from_numpy(view.mlp.copy()).T | ~reached[:, None]  # (T, M)

        def zero_weights(module, args, output, on=on):
            if name == "llama4_text":
                return output[0] * on[:, :5], *output[1:]
            index = next(x for x in output if x.dtype == torch.int64)
            weights = output[1] * on.gather(1, index)
            return tuple(weights if i == 1 else x for i, x in enumerate(output))

        def zero_rows(module, args, output, on=on):
            return output * on[:, -1].view(*output.shape[:-1], 1)

        parent = next(part for part in block.modules() if units.module in set(part.children()))
        router = getattr(parent, "router", None) or parent.gate
        handles.append(router.register_forward_hook(zero_weights))
        if units.shared is not None:
            assert block.get_submodule(shared[name]) is units.shared
            handles.append(units.shared.register_forward_hook(zero_rows))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("name", "granularity"),
    [*((name, "neuron") for name in DOWN), *((name, "expert") for name in (*MIXTURES, *OTHER_MIXTURES))],
)
def test_removing_one_unit_is_zeroing_it_in_the_models_own_forward_pass(load, name, granularity):
    model = load(name)
    graph = dm.build_graph(model, IDS, granularity=granularity)
    own = model.adapter.logits(IDS)
    columns = graph.space.columns(graph.index)
    routed = [u is not None for u in model.adapter.units(granularity)]
    of_units = numpy.flatnonzero((columns["kind"] == "mlp") & numpy.array(routed)[columns["layer"]])
    generator = numpy.random.default_rng(0)
    chosen = list(generator.choice(of_units, size=8, replace=False))
    chosen += [
        of_units[-1],
        of_units[0],
    ]  # the last is of the last unit: the shared expert where there is one
    changes = []
    for i in chosen:
        mask = graph.reachable.copy()
        mask[graph.index[i]] = False
        got = masked_logits(graph.forward, [mask])[0]
        place = (int(columns[column][i]) for column in ("layer", "unit", "target"))
        with (
            neuron_off(model, name, *place)
            if granularity == "neuron"
            else experts_off(model, name, graph, mask)
        ):
            want = model.adapter.logits(IDS)
        assert float((got - want).abs().max()) < 2e-5 * max(1.0, float(own.abs().max()))
        changes.append(float((want - own).abs().max()))
    assert max(changes) > 1e-2


@pytest.mark.parametrize(
    ("name", "granularity"), [case for case in CASES if case[0] not in ("gemma2", "olmo2")]
)
def test_removing_a_unit_of_the_last_level_takes_its_vector_off_the_last_node(load, name, granularity):
    model = load(name)
    graph = dm.build_graph(model, IDS, granularity=granularity)
    *_, edges = graph.forward.levels()
    columns = graph.space.columns(graph.index)
    into_root = (columns["level"] == len(graph.space.levels) - 1) & (columns["target"] == graph.position)
    of_units = graph.index[into_root & (columns["kind"] == "mlp")]
    assert len(of_units) >= (2 if granularity == "expert" else 30)
    for flat in of_units[:9]:
        unit = int(graph.space.columns(numpy.array([flat]))["unit"][0])
        full, without = (_last_node(graph, flat if removed else None) for removed in (False, True))
        gap = (full - without - edges.units.at(unit)[-1]).abs().max()
        assert float(gap) < 2e-5 * float(edges.node[-1].abs().max())


def _last_node(graph, removed):
    mask = torch.from_numpy(graph.reachable.copy()).float()[None]
    if removed is not None:
        mask[0, removed] = 0
    recorded = [{} for _ in graph.forward.records]
    with torch.no_grad():
        graph.model.adapter.masked_logits(graph.forward.ids, graph.forward.block_masks(mask), recorded)
    return recorded[-1]["mlp_sum"][0, -1]


@pytest.mark.parametrize(("name", "plus_one"), [("olmo2", 0.0), ("gemma2", 1.0)])
def test_a_neuron_behind_a_branch_norm_is_read_at_the_norms_actual_scale(make_model, name, plus_one):
    """The vector by hand: act_i w_i * weight / root mean square of the whole MLP's output."""
    model = make_model(name)
    graph = dm.build_graph(model, IDS, granularity="neuron")
    *_, edges = graph.forward.levels()
    block = model.adapter.blocks[-1].module
    seen = {}
    handles = [
        block.mlp.down_proj.register_forward_pre_hook(oracles.keep(seen, "read", takes_input=True)),
        block.mlp.register_forward_hook(oracles.keep(seen, "written")),
    ]
    model.adapter.logits(IDS)
    for handle in handles:
        handle.remove()
    norm = block.post_feedforward_layernorm
    eps = getattr(norm, "eps", None) or norm.variance_epsilon
    for unit in (0, 17, 43):
        for t in (0, 6):
            written = seen["written"][t]
            vector = seen["read"][t, unit] * block.mlp.down_proj.weight[:, unit]
            want = vector * (norm.weight + plus_one) / torch.sqrt(written.square().mean() + eps)
            torch.testing.assert_close(edges.units.at(unit)[t], want.detach(), atol=1e-5, rtol=1e-3)


# ------------------------------------------------------------------------------------------- identities, every layout


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_every_identity_holds(load, name, granularity):
    model = load(name)
    report = dm.check_model(model, IDS, granularity=granularity)
    assert report.passed, report.rows
    graph = dm.build_graph(model, IDS, granularity=granularity)
    assert model.adapter._packs_with(model.adapter.units(granularity))
    traces = [graph.trace(size=1.0), graph.random_trace(0.5), graph.trace(size=0.2).inverse()]
    torch.testing.assert_close(
        dm.reconstruct(model, graph, traces), _dense(graph, traces), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_the_units_of_a_model_are_what_its_config_says(load, name, granularity):
    model = load(name)
    config = model.module.config
    graph = dm.build_graph(model, IDS, granularity=granularity)
    counts = [level.n_units for level in graph.space.levels if level.n_units]
    if granularity == "neuron":
        (wanted,) = {getattr(config, n, None) for n in ("intermediate_size", "ffn_dim")} - {None} or {
            4 * config.hidden_size
        }
        assert counts == [wanted] * graph.n_layers
        return
    shared = name not in MIXTURES
    dense_first = name in ("dots1", "ernie4_5_moe")
    assert counts == [1 if dense_first and i == 0 else 5 + shared for i in range(graph.n_layers)]
    per_token = 2 + shared
    if not dense_first:
        table = graph.edges().filter(polars.col("kind") == "mlp").group_by("layer", "target").len()
        assert set(table["len"]) == {per_token}


@pytest.mark.parametrize("n_tokens", [2, 5, 7])
def test_number_of_edges(make_model, n_tokens):
    t = n_tokens
    graph = dm.build_graph(make_model("llama"), IDS[:t], granularity="neuron")
    layers, heads, neurons = graph.n_layers, graph.n_heads, 44
    formula = layers * (heads * t * (t + 1) // 2 + (2 + neurons) * t)
    formula -= (1 + neurons) * (t - 1) + heads * t * (t - 1) // 2 + (t - 1)
    assert graph.n_edges == formula
    graph = dm.build_graph(make_model("mixtral"), IDS[:t], granularity="expert")
    layers, heads, chosen = graph.n_layers, graph.n_heads, 2
    formula = layers * (heads * t * (t + 1) // 2 + (2 + chosen) * t)
    formula -= (1 + chosen) * (t - 1) + heads * t * (t - 1) // 2 + (t - 1)
    assert graph.n_edges == formula


def test_only_experts_that_a_token_is_sent_to_have_an_edge(make_model):
    model = make_model("mixtral")
    graph = dm.build_graph(model, IDS, granularity="expert")
    seen = []
    handles = [
        block.module.mlp.gate.register_forward_hook(lambda m, args, out: seen.append(out[2]))
        for block in model.adapter.blocks
    ]
    model.adapter.logits(IDS)
    for handle in handles:
        handle.remove()
    last = graph.n_layers - 1
    want = {
        (layer, int(expert), t)
        for layer, index in enumerate(seen)
        for t, experts in enumerate(index)
        for expert in experts
        if layer < last or t == graph.position
    }
    table = graph.edges().filter(polars.col("kind") == "mlp")
    assert set(table.select("layer", "unit", "target").iter_rows()) == want


def test_the_unit_is_a_column_at_finer_grains_only(make_model):
    table = dm.build_graph(make_model("llama"), IDS, granularity="neuron").edges()
    assert table.columns == ["edge", "layer", "kind", "head", "unit", "source", "target", "importance"]
    assert (table["unit"].is_null() == (table["kind"] != "mlp")).all()
    assert "unit" not in dm.build_graph(make_model("llama"), IDS).edges().columns


@pytest.mark.parametrize(("name", "granularity"), [("llama", "neuron"), ("mixtral", "expert")])
def test_landmarks_count_every_unit_of_the_output_tokens_chain(make_model, name, granularity):
    graph = dm.build_graph(make_model(name), IDS, granularity=granularity)
    rows = [row for row in oracles.rows_of(graph) if row[4] == graph.position and row[1] != "attention"]
    assert graph.landmarks["residual_mlp_chain"] == len(rows) / graph.n_edges
    mask = dm.Trace(
        graph,
        graph.reachable & numpy.isin(graph.space.columns(numpy.arange(graph.space.size))["kind"], ["mlp"]),
    )
    assert mask.n_edges == sum(row[1] == "mlp" for row in oracles.rows_of(graph))


@pytest.mark.parametrize(("name", "granularity"), [("llama", "neuron"), ("mixtral", "expert")])
def test_best_is_a_connected_order_of_all_edges(make_model, name, granularity):
    graph = dm.build_graph(make_model(name), IDS, importance="best", granularity=granularity)
    places = graph.importance[graph.index]
    assert len(set(places.tolist())) == graph.n_edges
    numpy.testing.assert_array_equal(graph.order, graph.index[numpy.argsort(-places)])


@pytest.mark.parametrize(("name", "granularity"), [("opt", "neuron"), ("gpt-oss", "expert")])
def test_bound_is_never_below_fisher_of_the_same_projections(make_model, name, granularity, monkeypatch):
    from densitometer.graph.importance import gradients as fisher

    model = make_model(name)
    monkeypatch.setattr(fisher, "PROJECTIONS", 4)
    small, large = (
        dm.build_graph(model, IDS, importance=importance, seed=2, granularity=granularity)
        for importance in ("fisher", "bound")
    )
    index = small.index
    assert (large.importance[index] >= small.importance[index] * (1 - 1e-3) - 1e-6).all()


# ------------------------------------------------------------------------------------------------------- currencies


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_all_units_cost_what_the_mlp_costs(load, name, granularity):
    model = load(name)
    fine, coarse = (
        dm.build_graph(model, IDS, granularity=g).forward.block_costs for g in (granularity, "block")
    )
    for units, block, whole in zip(fine, model.adapter.blocks, coarse, strict=True):
        of_token = _flops_of_a_token(units, model.adapter.units(granularity)[block.index])
        assert of_token == pytest.approx(whole.mlp_flops.sum(), rel=1e-12)
        assert units.mlp_parameters.sum() + units.router_parameters == pytest.approx(
            whole.mlp_parameters.sum()
        )
        assert units.router_flops >= 0
        assert units.router_parameters >= 0


def _flops_of_a_token(cost, units):
    if isinstance(units, units_module.Experts):
        of_shared = cost.mlp_flops[-1] if units.shared is not None else 0.0
        return cost.router_flops + units.n_chosen * cost.mlp_flops[0] + of_shared
    return cost.router_flops + cost.mlp_flops.sum()


def test_costs_of_single_units_by_hand(make_model):
    d, inner, experts = 36, 44, 5
    (cost, *_) = dm.build_graph(make_model("llama"), IDS, granularity="neuron").forward.block_costs
    assert set(cost.mlp_flops) == set(2 * cost.mlp_parameters) == {2 * 3 * d}
    assert cost.router_parameters == 0
    (cost, *_) = dm.build_graph(make_model("opt"), IDS, granularity="neuron").forward.block_costs
    assert set(cost.mlp_parameters) == {2 * 24 + 1}  # a row, a column and an inner bias
    assert cost.router_parameters == 24  # the down projection's bias
    d = 24
    (cost, *_) = dm.build_graph(make_model("mixtral"), IDS, granularity="expert").forward.block_costs
    assert cost.mlp_flops.tolist() == [2 * 3 * d * inner] * experts
    assert cost.mlp_parameters.tolist() == [3 * d * inner] * experts
    assert (cost.router_flops, cost.router_parameters) == (2 * d * experts, d * experts)
    (whole, *_) = dm.build_graph(make_model("mixtral"), IDS).forward.block_costs
    assert whole.mlp_flops == 2 * (3 * d * inner) * 2 + 2 * d * experts  # the two that run, and the router


def test_shared_experts_and_their_gates_by_hand(load):
    (cost, *_) = dm.build_graph(load("qwen2_moe"), IDS, granularity="expert").forward.block_costs
    d, inner, experts = 32, 20, 5
    assert cost.mlp_flops.tolist() == [2 * 3 * d * inner] * (experts + 1)
    assert cost.mlp_parameters.tolist() == [3 * d * inner] * (experts + 1)
    assert cost.router_flops == 2 * d * experts + 2 * d  # and the shared expert's gate
    assert cost.router_parameters == d * experts + d


@pytest.mark.parametrize(
    ("name", "granularity"), [("opt", "neuron"), ("neox", "neuron"), ("qwen2_moe", "expert")]
)
def test_shares_of_a_trace_against_a_loop_over_its_mlp_edges(load, name, granularity):
    """Traces without attention: residual and MLP edges alone, each unit paid for each token, each parameter once."""
    graph = dm.build_graph(load(name), IDS, granularity=granularity)
    columns = graph.space.columns(numpy.arange(graph.space.size))
    generator = numpy.random.default_rng(1)
    kept = graph.reachable & (columns["kind"] != "attention") & (generator.random(graph.space.size) < 0.3)
    costs, flops, parameters = graph.forward.block_costs, 0.0, 0.0
    used, running = set(), set()
    for i in numpy.flatnonzero(kept & (columns["kind"] == "mlp")):
        layer, unit, token = int(columns["layer"][i]), int(columns["unit"][i]), int(columns["target"][i])
        flops += costs[layer].mlp_flops[unit]
        used.add((layer, unit))
        running.add((layer, token))
    flops += sum(costs[layer].router_flops for layer, _ in running)
    parameters += sum(costs[layer].mlp_parameters[unit] for layer, unit in used)
    parameters += sum(costs[layer].router_parameters for layer in {layer for layer, _ in running})
    trace, full = dm.Trace(graph, kept), graph.trace(size=1.0)
    of_all = graph.costs
    assert trace.flops_share / full.flops_share > 0
    none = dm.Trace(graph, graph.reachable & (columns["kind"] != "mlp"))
    all_mlp = dm.Trace(graph, graph.reachable & (columns["kind"] == "mlp"))
    totals = _loop_totals(graph, columns, costs)
    assert all_mlp.flops_share + none.flops_share == pytest.approx(1.0)
    assert trace.flops_share / all_mlp.flops_share == pytest.approx(flops / totals[0])
    assert trace.parameter_share / all_mlp.parameter_share == pytest.approx(parameters / totals[1])
    assert of_all.flops[-1] == pytest.approx(1.0)


def _loop_totals(graph, columns, costs):
    """Operations and parameters of every MLP edge that there is."""
    mlp = numpy.flatnonzero(graph.reachable & (columns["kind"] == "mlp"))
    layers, units, tokens = columns["layer"][mlp], columns["unit"][mlp], columns["target"][mlp]
    flops = sum(costs[layer].mlp_flops[unit] for layer, unit in zip(layers, units, strict=True))
    flops += sum(
        costs[layer].router_flops for layer, _ in set(zip(layers.tolist(), tokens.tolist(), strict=True))
    )
    parameters = sum(
        costs[layer].mlp_parameters[unit]
        for layer, unit in set(zip(layers.tolist(), units.tolist(), strict=True))
    )
    return flops, parameters + sum(costs[layer].router_parameters for layer in set(layers.tolist()))


@pytest.mark.parametrize(
    ("name", "granularity"), [("gemma2", "neuron"), ("gpt-oss", "expert"), ("dots1", "expert")]
)
def test_cost_of_nested_traces_equals_the_cost_of_each_alone(load, name, granularity):
    graph = dm.build_graph(load(name), IDS, granularity=granularity)
    for size in (0.0, 0.02, 0.37, 0.9, 1.0):
        trace = graph.trace(size=size)
        assert trace.flops_share == pytest.approx(graph.costs.flops[trace.n_edges], abs=1e-12)
        assert trace.parameter_share == pytest.approx(graph.costs.parameters[trace.n_edges], abs=1e-12)
    budget = graph.trace(parameters=0.5)
    assert budget.parameter_share <= 0.5
    assert graph.trace(n_edges=budget.n_edges + 1).parameter_share > 0.5


# ------------------------------------------------------------------------------- measuring, comparing, the command line


def test_measure_says_its_grain_and_keeps_it(demo, tmp_path):
    measured = dm.measure(
        demo, IDS, importance=["l1", "fisher"], granularity="neuron", sizes=[0.01, 0.1, 1.0]
    )
    assert measured.granularity == "neuron"
    assert "by neuron" in measured.summary()
    assert measured.graph["n_edges"] == dm.build_graph(demo, IDS, granularity="neuron").n_edges
    assert measured.full_trace_tv < 1e-5
    measured.save(tmp_path / "m.json")
    assert dm.load_measurement(tmp_path / "m.json").granularity == "neuron"
    assert dm.measure(demo, IDS, sizes=[1.0]).granularity == "block"
    trace = measured.minimal_trace(tv=0.2)
    assert trace is not None
    assert trace.graph.granularity == "neuron"


def test_the_command_line_measures_by_neuron(tmp_path):
    from densitometer.cli.commands import app

    path = tmp_path / "m.json"
    arguments = ["measure", "The white whale", "--granularity", "neuron", "--json", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "by neuron" in result.output
    assert json.loads(path.read_text())["provenance"]["granularity"] == "neuron"
    result = CliRunner().invoke(app, ["measure", "The white whale", "--granularity", "head"])
    assert result.exit_code == 2
    result = CliRunner().invoke(app, ["measure", "The white whale", "--granularity", "expert"])
    assert result.exit_code == 1


@pytest.mark.parametrize(("name", "granularity"), [("llama", "neuron"), ("mixtral", "expert")])
def test_edges_of_two_inputs_are_aligned_as_a_plain_loop_aligns_rows(make_model, name, granularity):
    model = make_model(name)
    first, second = (dm.build_graph(model, ids, granularity=granularity) for ids in (IDS, [63, 2, 77, 35, 5]))
    rows = [
        [
            (level, kind, unit, g.position - s, g.position - t)
            for level, kind, unit, s, t in oracles.rows_of(g)
        ]
        for g in (first, second)
    ]
    flat_of = dict(zip(rows[1], second.index.tolist(), strict=True))
    row_of = dict(zip(first.index.tolist(), rows[0], strict=True))
    want = [flat_of[row_of[edge]] for edge in first.order.tolist() if row_of[edge] in flat_of]
    assert mapped_order(first, second).tolist() == want
    assert 0 < len(want) < first.n_edges
    found = transfer(model, IDS, IDS, granularity=granularity, sizes=[0.1, 1.0])
    assert found.auc_log_own == found.auc_log_transferred
    a, b = first.trace(size=0.4), first.trace(size=0.2)
    common = overlap(a, b)
    assert common.jaccard == b.n_edges / a.n_edges
    used = {(row[0], row[1], row[2]) for row, on in zip(oracles.rows_of(first), a.mask, strict=True) if on}
    assert common.components.filter(polars.col("n_first") > 0).height == len(used)
    assert "unit" in common.components.columns


def test_a_score_of_ones_own_may_leave_the_axis_of_an_only_unit_out(make_model):
    def by_residual(forward, seed):
        scores = []
        for edges in forward.levels():
            attention = None if edges.weights is None else torch.ones_like(edges.weights)
            mlp = None if edges.mlp is None else torch.full(edges.mlp.shape[:1], 2.0)
            scores.append(PerLevel(torch.ones(len(edges.node)), attention, mlp))
        return scores

    dm.register_importance("test-plain-mlp", by_residual)
    graph = dm.build_graph(make_model("llama"), IDS, importance="test-plain-mlp")
    table = graph.edges()
    assert (table.filter(polars.col("kind") == "mlp")["importance"] == 2.0).all()
    with pytest.raises(dm.DensitometerError, match="mlp edges"):
        dm.build_graph(make_model("llama"), IDS, importance="test-plain-mlp", granularity="neuron")


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "granularity", "message"),
    [
        ("llama", "expert", "no MLP of LlamaForCausalLM is a mixture"),
        ("mixtral", "neuron", "granularity='block', or 'expert'"),
        ("llama4_text", "neuron", "granularity='block', or 'expert'"),
        ("dots1", "neuron", "the MLP of layer 1"),
        ("llama", "head", "unknown granularity 'head'; expected one of block, expert, neuron"),
    ],
)
def test_models_without_such_units_are_refused(load, name, granularity, message):
    with pytest.raises(dm.DensitometerError, match=message):
        dm.build_graph(load(name), IDS, granularity=granularity)


def test_grains_do_not_mix(make_model):
    model = make_model("llama")
    fine, coarse = (dm.build_graph(model, IDS, granularity=g) for g in ("neuron", "block"))
    with pytest.raises(dm.DensitometerError, match="another graph"):
        dm.reconstruct(model, fine, [coarse.trace(size=0.5)])
    with pytest.raises(dm.DensitometerError, match="one granularity"):
        overlap(fine.trace(size=0.5), coarse.trace(size=0.5))
    with pytest.raises(dm.DensitometerError, match="one granularity"):
        transfer(model, fine, coarse)


def test_means_are_of_whole_mlps(demo):
    means = dm.reference_means(demo, ["The captain looked at the sea", "A white whale"])
    with pytest.raises(dm.DensitometerError, match="granularity='block'"):
        dm.measure(demo, IDS, ablation=means, granularity="neuron")


def test_a_mixture_with_a_norm_on_its_sum_is_refused():
    """Its experts do not add up: the norm's scale is the sum's."""
    model = dm.load_model(architectures.tiny_module("axk1"))
    assert dm.build_graph(model, IDS).n_edges
    with pytest.raises(dm.DensitometerError, match="do not sum to its output"):
        dm.build_graph(model, IDS, granularity="expert")


def test_units_that_do_not_sum_on_this_text_are_refused(make_model, monkeypatch):
    model = make_model("llama")
    model.adapter.units("neuron")
    real = units_module.Neurons.read
    monkeypatch.setattr(units_module.Neurons, "read", lambda *a: (1.01 * real(*a)[0], real(*a)[1]))
    with pytest.raises(dm.DensitometerError, match="do not sum to its MLP's output on this text"):
        dm.build_graph(model, IDS, granularity="neuron")


@pytest.mark.parametrize(("name", "granularity"), [("qwen3", "neuron"), ("mixtral", "expert")])
def test_half_precision(name, granularity):
    # torch's grouped product wants rows of 16 bytes, so the experts are 48 wide
    module = make_module(name) if name == "qwen3" else architectures.tiny_module(name, intermediate_size=48)
    model = dm.load_model(module.bfloat16())
    assert dm.check_model(model, IDS, granularity=granularity).passed
    graph = dm.build_graph(model, IDS, granularity=granularity)
    assert graph.importance.dtype == numpy.float32


def test_the_model_is_left_as_it_was(load):
    for name, granularity in (("llama", "neuron"), ("qwen2_moe", "expert")):
        model = load(name)
        own = model.adapter.logits(IDS)
        before = [vars(part).get("forward") for part in model.module.modules()]
        graph = dm.build_graph(model, IDS, importance="fisher", granularity=granularity)
        dm.reconstruct(model, graph, graph.traces([0.1, 1.0]))
        assert math.isfinite(graph.costs.flops[1])
        assert [vars(part).get("forward") for part in model.module.modules()] == before
        assert model.module.config._experts_implementation != "eager" or name == "llama"
        assert torch.equal(model.adapter.logits(IDS), own)
