"""Long inputs against the stored path: every importance, key, count, threshold, mask, logit and curve."""

from __future__ import annotations

import weakref

import numpy
import polars
import pytest
import torch
import transformers
from conftest import CONFIGS, IDS, make_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.errors import InputError, NonFiniteError
from densitometer.graph.graph import Graph, Trace
from densitometer.graph.growth import NATURAL, natural_mask, residual_mask
from densitometer.graph.masked_runs import masked_logits
from densitometer.graph.reference_means import ReferenceMeans, _identity, _means, _sums
from densitometer.graph.tiled import tiles
from densitometer.graph.tiled.tiles import TiledGraph, run_tiled, tiled_graph
from densitometer.models import attention
from densitometer.models.adapter import Adapter

pytestmark = pytest.mark.usefixtures("rows_skipped")

LONGER = [*IDS, 90, 17, 64, 33]  # 11 tokens
OTHER = [3, 88, 12, 7, 59, 40, 71, 90, 18, 64, 33]  # as many, four of them others
TILE_TARGETS = 3  # divides neither 7 nor 11


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of three targets."""
    monkeypatch.setattr(tiles, "_tile_targets", lambda model, n_tokens: TILE_TARGETS)


def both(model: dm.Model, ids: list[int], name: str, **keywords) -> tuple[Graph, TiledGraph]:
    stored = dm.build_graph(model, ids, importance=name, **keywords)
    return stored, tiled_graph(run_tiled(model, ids, [name], **keywords), ids, len(ids) - 1, name)


def tiled_logits(subgraphs, frozen: bool = False, **keywords) -> torch.Tensor:
    """Logits of subgraphs of a tiled graph."""
    return masked_logits(subgraphs[0].graph.forward, subgraphs, frozen, **keywords)


def flat_of(graph: TiledGraph, of_level) -> numpy.ndarray:
    """(F,) from values per level and tile."""
    space = graph.forward.space
    flat = numpy.zeros(space.size, dtype=numpy.float32)
    for level, view in enumerate(space.views(flat)):
        for tile in graph.forward.tiles(level):
            residual, attention, mlp = of_level(level, tile)
            view.residual[tile.targets] = residual
            if attention is not None:
                view.attention[:, tile.targets, tile.sources] = attention
            if mlp is not None:
                view.mlp[:, tile.targets] = mlp
    return flat


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_edges_of_a_node_where_all_are_zero_have_equal_shares(name):
    model = dm.load_model(make_module(name))
    with torch.no_grad():
        model.module.get_input_embeddings().weight[LONGER[0]] = 0.0
        for parameter, value in model.module.named_parameters():
            if parameter.endswith("bias"):
                value.zero_()
    for importance in ("l1", "l2"):
        stored, tiled = both(model, LONGER, importance)
        got = flat_of(tiled, tiled.source.importance)
        first = stored.edges()["target"].to_numpy() == 0
        numpy.testing.assert_allclose(got[stored.index], stored.importance[stored.index], rtol=1e-5)
        assert (got[stored.index][first] >= 1 / 8).all()


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize(
    ("score", "ids"),
    [
        ("l1", LONGER),
        ("l2", IDS),
        ("fisher", LONGER),
        ("bound", IDS),
        ("cosine", LONGER),
        ("projection", IDS),
    ],
    ids=["l1-11", "l2-7", "fisher-11", "bound-7", "cosine-11", "projection-7"],
)
def test_importances_keys_and_thresholds_are_the_stored_ones(make_model, name, score, ids):
    stored, tiled = both(make_model(name), ids, score)
    assert len(tiled.forward.tiles(0)) == -(-len(ids) // TILE_TARGETS)
    assert tiled.forward.space == stored.space
    torch.testing.assert_close(tiled.forward.logits, stored.forward.logits)
    there = stored.reachable
    importance = flat_of(tiled, tiled.source.importance)
    numpy.testing.assert_allclose(importance[there], stored.importance[there], rtol=2e-5, atol=1e-7)
    assert tiled.n_edges == stored.n_edges
    for got, want in zip(tiled.keys, stored.space.views(stored.keys), strict=True):
        numpy.testing.assert_allclose(got.residual, want.residual, rtol=2e-5, atol=1e-7)
        if want.mlp is not None:
            numpy.testing.assert_allclose(got.mlp, want.mlp, rtol=2e-5, atol=1e-7)
    # from here on against the stored path on the tiles' own importances, so that nothing is close but not equal
    same = stored.with_importance(score, importance)
    falling = numpy.sort(same.keys[there])[::-1]
    counts = [*range(0, stored.n_edges, stored.n_edges // 40), stored.n_edges]
    for count, trace in zip(counts, tiled.traces(n_edges=counts), strict=True):
        if count < stored.n_edges:
            assert trace.threshold == falling[count]
        assert trace.n_edges == (falling > trace.threshold).sum() <= count
        want = same.trace(threshold=trace.threshold)
        assert trace.n_edges == want.n_edges
        assert tiled.reached_by(trace) == pytest.approx(float(same.thresholds[trace.n_edges]), abs=0)
        if trace.n_edges == count:  # no tie is split: the best-first trace is that of a threshold
            assert (same.trace(n_edges=count).flat == want.flat).all()
    assert tiled.trace(size=1.0).n_edges == stored.n_edges
    for threshold in (0.3, 0.002, 0.0, 2.0):
        assert tiled.trace(threshold=threshold).n_edges == same.trace(threshold=threshold).n_edges


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("llama", "neuron"),
        ("cohere", "neuron"),
        ("gemma2", "neuron"),
        ("gpt2", "neuron"),
        ("mixtral", "expert"),
        ("gpt-oss", "expert"),
    ],
)
@pytest.mark.parametrize("score", ["l1", "cosine", "fisher", "bound"])
def test_importances_of_neurons_and_experts_are_the_stored_ones(make_model, name, granularity, score):
    stored, tiled = both(make_model(name), IDS, score, granularity=granularity)
    assert tiled.forward.space == stored.space
    assert (tiled.n_edges, tiled.granularity) == (stored.n_edges, granularity)
    importance = flat_of(tiled, tiled.source.importance)
    numpy.testing.assert_allclose(
        importance[stored.index], stored.importance[stored.index], rtol=2e-5, atol=1e-7
    )
    for got, want in zip(tiled.keys, stored.space.views(stored.keys), strict=True):
        assert got.mlp.shape == (0 if want.mlp is None else len(want.mlp), len(IDS))
        if want.mlp is not None:
            numpy.testing.assert_allclose(got.mlp, want.mlp, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "granularity"),
    [*((name, "block") for name in sorted(CONFIGS)), ("llama", "neuron"), ("mixtral", "expert")],
)
def test_runs_and_costs_of_subgraphs_are_the_stored_ones(make_model, name, granularity):
    model = make_model(name)
    stored, tiled = both(model, LONGER, "l1", granularity=granularity)
    same = stored.with_importance("l1", flat_of(tiled, tiled.source.importance))
    traces = tiled.traces([0.03, 0.3, 1.0])
    subgraphs = [
        *traces,
        traces[1].inverse(),
        traces[0].inverse(keep_residual=True),
        traces[1].with_residual(),
    ]
    wanted = [same.trace(threshold=trace.threshold) for trace in traces]
    residual = Trace(stored, residual_mask(stored.space, stored.reachable))
    wanted += [
        wanted[1].inverse(), wanted[0].inverse(keep_residual=True), Trace(stored, wanted[1].flat | residual.flat),
    ]  # fmt: skip
    for rule in NATURAL:
        subgraphs.append(tiles.NaturalSubgraph(tiled, rule))
        wanted.append(Trace(stored, natural_mask(stored.space, stored.reachable, rule)))
    assert [s.n_edges for s in subgraphs] == [w.n_edges for w in wanted]
    for frozen in (False, True):
        got = tiled_logits(subgraphs, frozen)
        want = masked_logits(stored.forward, [w.flat for w in wanted], frozen)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    for subgraph, trace in zip(subgraphs, wanted, strict=True):
        assert subgraph.tally.n_edges == trace.n_edges
        assert subgraph.flops_share == pytest.approx(trace.flops_share)
        assert subgraph.parameter_share == pytest.approx(trace.parameter_share)
        counted = subgraph.__dict__.pop("_tally")  # while it ran; now again without a run
        assert subgraph.tally.flops == pytest.approx(counted.flops)
        assert subgraph.tally.parameters == pytest.approx(counted.parameters)


def compared_runs(stored: Graph, tiled: TiledGraph, **keywords) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three traces, of one's inverse and of the output token's chain, tile by tile and stored."""
    same = stored.with_importance("same", flat_of(tiled, tiled.source.importance))
    traces = tiled.traces([0.05, 0.4, 1.0])
    wanted = [same.trace(threshold=trace.threshold) for trace in traces]
    chosen = [*traces, traces[1].inverse(), tiled.natural_subgraphs()["residual_mlp_chain"]]
    wanted += [wanted[1].inverse(), same.natural_subgraphs()["residual_mlp_chain"]]
    got = tiled_logits(chosen, **keywords)
    assert [each.tally.n_edges for each in chosen] == [trace.n_edges for trace in wanted]
    return got, masked_logits(stored.forward, [trace.flat for trace in wanted], **keywords)


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2", "gpt-oss", "mistral-window"])
@pytest.mark.parametrize("frozen", [False, True], ids=["recomputed", "frozen"])
def test_edges_that_are_off_carry_their_means_in_long_inputs_too(make_model, name, frozen):
    model = make_model(name)
    records, _ = model.adapter.capture(OTHER)
    means = ReferenceMeans(tuple(_means(_sums(record), len(OTHER)) for record in records), {})
    got, want = compared_runs(*both(model, LONGER, "l1"), frozen=frozen, means=means)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    without, _ = compared_runs(*both(model, LONGER, "l1"), frozen=frozen)
    assert float((got - without)[0].abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2", "gpt-oss", "mistral-window"])
@pytest.mark.parametrize("score", ["fisher", "bound"])
def test_edges_that_are_off_carry_another_inputs_in_long_inputs_too(make_model, name, score):
    model = make_model(name)
    stored, tiled = both(model, LONGER, score, counterfactual=OTHER)
    importance = flat_of(tiled, tiled.source.importance)
    # the stored path takes the difference of two sums, each of the size of the whole slope
    whole = both(model, LONGER, score)[0].importance[stored.index]
    gap = numpy.abs(importance[stored.index] - stored.importance[stored.index])
    assert (gap <= 2e-5 * numpy.maximum(whole, stored.importance[stored.index]) + 1e-7).all()
    for frozen in (False, True):
        got, want = compared_runs(stored, tiled, frozen=frozen)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(
        tiled_logits([tiled.trace(n_edges=0)])[0], model.adapter.logits(OTHER), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("name", ["llama", "neox", "gpt-oss", "mistral-window"])
def test_attention_edges_are_kept_on_in_long_inputs_too(make_model, name):
    stored, tiled = both(make_model(name), LONGER, "l1")
    got, want = compared_runs(stored, tiled, kept=True)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    # an empty trace by hand: every attention edge is on, and nothing else
    only_attention = numpy.zeros(stored.space.size, dtype=bool)
    for view in stored.space.views(only_attention):
        if view.attention is not None:
            view.attention[...] = True
    got = tiled_logits([tiled.trace(n_edges=0)], kept=True)
    torch.testing.assert_close(got, masked_logits(stored.forward, [only_attention]), rtol=2e-5, atol=2e-5)


def test_models_whose_rows_hang_together_are_run_whole_tile_by_tile(make_model, monkeypatch):
    stored, tiled = both(make_model("gemma2"), LONGER, "l1")
    monkeypatch.setattr(Adapter, "_packs_with", lambda self, units: False)
    monkeypatch.setattr(
        Adapter, "_packed_logits", lambda *a, **k: pytest.fail("rows were skipped"), raising=True
    )
    for frozen in (False, True):
        got, want = compared_runs(stored, tiled, frozen=frozen)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def long_curves(model, monkeypatch, **keywords):
    """The same measurement, stored and tile by tile."""
    keywords = {"importance": "l1", "keep_graphs": True, **keywords}
    stored = dm.measure(model, LONGER, **keywords)
    monkeypatch.setattr(tiles, "STORED_EDGES", 1)
    return stored, dm.measure(model, LONGER, **keywords)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen3", {}),
        ("neox", {"position": 8}),
        ("olmo2", {"attention": "frozen"}),
        ("qwen3", {"attention": "kept"}),
        ("neox", {"ablation": "mean"}),
        ("gemma2", {"counterfactual": OTHER, "position": 8}),
        ("llama", {"granularity": "neuron"}),
    ],
    ids=["qwen3", "neox-position", "olmo2-frozen", "kept", "means", "counterfactual", "neurons"],
)
def test_a_long_measurement_is_the_stored_one_at_the_same_thresholds(make_model, name, settings, monkeypatch):
    taus, model = [0.2, 0.05, 0.01, 0.001], make_model(name)
    if "ablation" in settings:
        records, _ = model.adapter.capture(OTHER)
        means = tuple(_means(_sums(record), len(OTHER)) for record in records)
        settings = {"ablation": ReferenceMeans(means, {"model": _identity(model)})}
    stored, tiled = long_curves(
        model,
        monkeypatch,
        sizes=taus,
        by="threshold",
        importance=["l1", "l2"],
        baselines=("inverse",),
        **settings,
    )
    assert (stored.provenance["edges"], tiled.provenance["edges"]) == ("stored", "tiled")
    assert stored.graph == tiled.graph
    assert_same_rows(tiled.curve, stored.curve)
    chosen = ~polars.col("kind").is_in(["inverse_residual"])  # of sizes, which thresholds need not give
    assert_same_rows(tiled.baselines.filter(chosen), stored.baselines.filter(chosen))
    assert tiled.full_trace_tv < 1e-5
    assert tiled.density["l1"].auc_log == pytest.approx(stored.density["l1"].auc_log, abs=1e-5)


def assert_same_rows(got: polars.DataFrame, want: polars.DataFrame) -> None:
    assert got.schema == want.schema
    assert got.height == want.height
    for column in want.columns:
        if want[column].dtype == polars.Float64:
            numpy.testing.assert_allclose(
                got[column].cast(float).to_numpy(),
                want[column].cast(float).to_numpy(),
                rtol=1e-4,
                atol=2e-5,
                err_msg=column,
            )
        else:
            assert got[column].to_list() == want[column].to_list(), column


@pytest.mark.parametrize(
    ("name", "eps"), [("llama", 0.2), ("gpt2", 0.3)]
)  # in the second, ties leave large gaps
def test_a_long_measurement_by_size_says_the_sizes_that_it_ran(make_model, monkeypatch, tmp_path, name, eps):
    model = make_model(name)
    sizes = [1e-4, 0.02, 0.1, 0.3, 0.6, 1.0]  # the first has no edge, and no row
    m = long_curves(model, monkeypatch, sizes=sizes, eps=eps)[1]
    own = m.curve.filter(polars.col("kind") == "trace")
    assert own["size"].to_list() == [n / m.graph["n_edges"] for n in own["n_edges"]]
    assert own["n_edges"].is_sorted()
    assert own["n_edges"].is_unique().all()
    assert own["n_edges"][0] > 0
    assert 0 < m.density["l1"].auc_log < 1
    for size in sizes[1:]:
        assert own.filter(polars.col("size") <= size).height
    assert set(m.curve["kind"]) == {"trace", "inverse", "random"}
    drawn = m.curve.filter(kind="random")
    assert drawn["size"].to_list() == [n / m.graph.n_edges for n in drawn["n_edges"]]
    full = own.row(-1, named=True)
    assert (full["size"], full["flops_share"], full["parameter_share"]) == (1.0, 1.0, 1.0)
    assert not set(m.refined["n_edges"]) & set(own["n_edges"])
    points = sorted(
        zip([*own["n_edges"], *m.refined["n_edges"]], [*own["tv"], *m.refined["tv"]], strict=True)
    )
    held = next(n for i, (n, _) in enumerate(points) if all(tv <= eps for _, tv in points[i:]))
    assert m.density["l1"].size_at(eps) == pytest.approx(held / m.graph["n_edges"])
    trace = m.minimal_trace(tv=eps)
    assert float(m.session.values("l1", "tv", [trace.n_edges])[0]) <= eps
    assert "TV <= 0.1 from" in m.summary()
    m.save(tmp_path / "m.json")
    assert dm.load_measurement(tmp_path / "m.json").curve.equals(m.curve)


def test_a_long_measurement_from_a_file_is_taken_up_again(make_model, monkeypatch, tmp_path):
    model = make_model("llama")
    m = long_curves(model, monkeypatch, sizes=[0.3, 1.0], baselines=(), eps=0.4)[1]
    m.save(tmp_path / "m.json")
    again = dm.load_measurement(tmp_path / "m.json").with_model(model)
    trace, want = (one.session.graphs["l1"].trace(size=0.3) for one in (again, m))
    assert (trace.n_edges, trace.threshold) == (want.n_edges, want.threshold)
    assert again.minimal_trace(tv=0.4).n_edges == m.minimal_trace(tv=0.4).n_edges


def test_what_needs_stored_edges_is_refused_by_its_name(make_model, monkeypatch):
    model = make_model("llama")
    graph = both(model, IDS, "l1")[1]
    trace = graph.trace(size=0.4)
    assert (graph.stored, dm.build_graph(model, IDS).stored) == (False, True)
    for ask, name in [
        (lambda: graph.order, "Graph.order"),
        (lambda: graph.edges(), "Graph.edges"),
        (lambda: trace.components(), "Trace.components"),
        (lambda: graph.natural_subgraphs()["window_2"].flat, "Trace.flat"),
        (lambda: graph.trace(nucleus=0.5), r"trace\(nucleus=...\)"),
        (lambda: graph.trace(flops=0.5), r"trace\(flops=...\)"),
    ]:
        with pytest.raises(InputError, match=f"^{name} needs every edge stored.*measure fewer tokens"):
            ask()
    assert not hasattr(trace, "of_no_kind")
    m = long_curves(model, monkeypatch, sizes=[0.3, 1.0], baselines=())[1]
    with pytest.raises(InputError, match=r"^Trace.components needs every edge stored"):
        m.components(size=0.3)


def test_a_long_trace_is_run_alone_and_turned_off(make_model):
    stored, graph = both(make_model("llama"), LONGER, "l1")
    trace = graph.trace(size=0.4)
    same = stored.trace(threshold=trace.threshold)
    assert trace.n_edges == same.n_edges
    for weights in ("recomputed", "frozen"):
        assert trace.logits(attention=weights) == pytest.approx(same.logits(attention=weights), abs=1e-4)
    table, want = trace.necessity(n_random=1, seed=3), same.necessity(n_random=0)
    assert table["tv"][0] == pytest.approx(want["tv"][0], abs=1e-5)
    drawn = graph.random_graph(3).trace(n_edges=trace.n_edges)
    assert table["n_edges"].to_list() == [trace.n_edges, drawn.n_edges]
    assert float(total_variation(graph.forward.logits, tiled_logits([drawn.inverse()]))) == pytest.approx(
        table["tv"][1]
    )
    with pytest.raises(InputError, match="attention='kept' needs every edge stored"):
        trace.logits(attention="kept")


def test_a_long_graph_shows_what_a_stored_one_does(make_model):
    stored, tiled = both(make_model("llama"), LONGER, "l1")
    assert repr(tiled) == "Tiled" + repr(stored)
    assert tiled._facts() == stored._facts()
    assert tiled.landmarks == stored.landmarks == {"residual_chain": 6 / 927, "residual_mlp_chain": 9 / 927}
    trace = tiled.trace(size=0.3)
    assert repr(trace) == f"TiledTrace({trace.n_edges} of 927 edges, {100 * trace.size:.3g} %)"
    assert (
        tiled.random_trace(0.3, seed=3, keep_residual=True).n_edges > tiled.random_trace(0.3, seed=3).n_edges
    )


def test_costs_are_counted_alike_where_arrays_stay_in_torch(make_model, monkeypatch):
    """As on another device than the CPU."""
    _, tiled = both(make_model("qwen3"), LONGER, "l1")
    of_numpy = [tiled.trace(size=size).tally for size in (0.05, 0.4)]
    monkeypatch.setattr(tiles, "countable", lambda on: on)
    for size, want in zip((0.05, 0.4), of_numpy, strict=True):
        got = tiled.trace(size=size).tally
        for name in ("n_edges", "flops", "parameters"):
            assert getattr(got, name).tolist() == getattr(want, name).tolist()


def test_half_precision_is_measured_tile_by_tile(monkeypatch):
    model = dm.load_model(make_module("llama").bfloat16())
    stored, tiled = long_curves(model, monkeypatch, sizes=[0.3, 1.0], baselines=())
    assert stored.graph == tiled.graph
    assert tiled.full_trace_tv < 5e-2
    full = [m.curve.row(-1, named=True)["kl"] for m in (stored, tiled)]
    assert full[0] == pytest.approx(full[1], abs=5e-3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"importance": "best"},
            "2,178 possible edges.*'best' needs them stored; use one of l1, l2, cosine, projection, fisher, bound.*at most 2 tokens",
        ),
        ({"importance": ["l1", "proximity"]}, "'proximity'"),
        ({"importance": "l1", "sizes": [1e-5]}, r"at most 1e-05 of the edges: the smallest has \d+ of 927"),
    ],
)
def test_what_needs_every_edge_is_refused_on_a_long_input(make_model, monkeypatch, keywords, message):
    monkeypatch.setattr(tiles, "STORED_EDGES", 100)
    with pytest.raises(dm.DensitometerError, match=message):
        dm.measure(make_model("llama"), LONGER, **keywords)


def test_a_long_input_is_measured_by_the_default_importances(make_model, monkeypatch):
    model, sizes = make_model("llama"), [0.2, 0.5, 1.0]
    monkeypatch.setattr(tiles, "STORED_EDGES", 100)
    m = dm.measure(model, LONGER, sizes=sizes, keep_graphs=True, seed=4)
    assert m.provenance.edges == "tiled"
    monkeypatch.setattr(tiles, "STORED_EDGES", 2**27)
    stored = dm.build_graph(model, LONGER, importance="fisher")  # seed 0
    for name, graph in m.session.graphs.items():
        for row in m.curve.filter(importance=name, kind="trace").iter_rows(named=True):
            want = stored.with_importance(name, flat_of(graph, graph.source.importance))
            trace = want.trace(threshold=graph.trace(n_edges=row["n_edges"]).threshold)
            assert trace.n_edges == row["n_edges"]
            full = model.adapter.logits(LONGER)
            assert row["tv"] == pytest.approx(float(total_variation(full, trace.logits()[None])), abs=1e-5)
    drawn = m.session.graphs["fisher"]
    other = flat_of(drawn, drawn.source.importance)
    seeded = dm.build_graph(model, LONGER, importance="fisher", seed=4)
    numpy.testing.assert_allclose(other[stored.index], seeded.importance[stored.index], rtol=2e-5, atol=1e-7)
    assert not numpy.allclose(other[stored.index], stored.importance[stored.index], rtol=1e-2)


@pytest.mark.parametrize("name", ["llama", "neox", "mistral-window"])
def test_random_traces_have_the_size_and_hold_the_output_token(make_model, name):
    model = make_model(name)
    stored, tiled = both(model, LONGER, "l1")
    random = tiled.random_graph(3)
    flat = flat_of(random, random.source.importance)
    assert (flat[~stored.reachable] == 0).sum() > 0
    drawn = flat[stored.reachable]
    assert ((drawn > 0) & (drawn <= 1)).all()
    assert len(numpy.unique(drawn)) > 0.99 * (len(drawn) - len(stored.space.levels))
    same = stored.with_importance("random", flat)
    sizes = [0.1, 0.3, 0.6, 0.9]
    traces = random.traces(sizes)
    for size, trace in zip(sizes, traces, strict=True):
        want = same.trace(threshold=trace.threshold)
        assert want.n_edges == trace.n_edges
        assert 0.9 * size <= trace.size <= size
        chain = want.edges().filter(polars.col("kind").str.starts_with("residual"), target=len(LONGER) - 1)
        assert len(chain) == len(stored.space.levels)
        torch.testing.assert_close(tiled_logits([trace])[0], want.logits(), rtol=2e-5, atol=2e-5)
    other = tiled.random_graph(4).trace(size=0.3)
    assert not torch.equal(tiled_logits([traces[1]]), tiled_logits([other]))
    assert tiled.random_graph(3) is random


@pytest.mark.parametrize("name", ["gpt-oss", "gemma2"])
def test_weights_that_the_backward_pass_computes_again_give_the_same_importances(
    make_model, monkeypatch, name
):
    kept = both(make_model(name), LONGER, "fisher")[1]
    calls = []
    real = attention.checkpoint
    monkeypatch.setattr(attention, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    monkeypatch.setattr(attention, "GRAPH_WEIGHTS", 0)
    again = both(make_model(name), LONGER, "fisher")[1]
    assert len(calls) == 3 * 4  # layers, tiles
    want = flat_of(kept, kept.source.importance)
    numpy.testing.assert_allclose(flat_of(again, again.source.importance), want, rtol=1e-6)


def test_of_the_default_importances_fisher_is_left_out_where_no_gradient_passes(make_model, monkeypatch):
    module = make_module("llama")
    mlp = module.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x.detach())
    attend = module.model.layers[1].self_attn.forward
    module.model.layers[1].self_attn.forward = lambda *a, **k: tuple(
        x if x is None else x.detach() for x in attend(*a, **k)
    )
    model = dm.load_model(module)
    monkeypatch.setattr(tiles, "STORED_EDGES", 100)
    with pytest.warns(dm.DensitometerWarning, match="fisher is left out: .* passes no gradient"):
        m = dm.measure(model, LONGER, sizes=[0.4, 1.0])
    assert list(m.density) == ["l1"]
    with pytest.raises(dm.DensitometerError, match="passes no gradient"):
        dm.measure(model, LONGER, importance=["l1", "fisher"], sizes=[0.4, 1.0])


def test_gates_are_refused_where_norms_are_needed_and_modules_that_attend_themselves_always(
    make_model, monkeypatch
):
    model = make_model("llama")
    monkeypatch.setitem(model.adapter.blocks[1].__dict__, "gated", True)
    with pytest.raises(
        dm.DensitometerError, match=r"layer 1 has a gate .* which 'l1' needs.*one of projection, fisher"
    ):
        tiles.check_tiled(model, ["fisher", "l1"], 11)
    tiles.check_tiled(model, ["fisher", "projection"], 11)
    monkeypatch.setitem(model.adapter.blocks[2].__dict__, "own_attention", True)
    with pytest.raises(
        dm.DensitometerError, match=r"LlamaAttention .* all attention weights of a layer itself"
    ):
        tiles.check_tiled(model, ["fisher"], 11)


@pytest.mark.parametrize("score", ["fisher", "projection"])
def test_heads_behind_a_norm_are_measured_tile_by_tile(score):
    """In BitNet a norm stands between the heads and their projection, so norms of edges are not products."""
    config = transformers.BitNetConfig(
        vocab_size=101, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
        intermediate_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = dm.load_model(transformers.BitNetForCausalLM(config).float())
    assert all(block.gated for block in model.adapter.blocks)
    stored, tiled = both(model, LONGER, score)
    importance = flat_of(tiled, tiled.source.importance)
    numpy.testing.assert_allclose(
        importance[stored.index], stored.importance[stored.index], rtol=2e-5, atol=1e-7
    )
    got, want = compared_runs(stored, tiled)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def test_a_run_with_other_edges_than_were_counted_is_refused(make_model):
    _, tiled = both(make_model("llama"), LONGER, "l1")
    trace = tiled.trace(size=0.4)
    wrong = tiles.TiledTrace(tiled, trace.threshold, trace.n_edges + 1)
    with pytest.raises(dm.DensitometerError, match="computed twice"):
        tiled_logits([wrong])


def test_a_model_that_works_on_its_mask_is_given_a_whole_one(make_model, monkeypatch):
    _, tiled = both(make_model("gemma2"), LONGER, "l1")
    assert isinstance(tiled.forward.layers[0].inputs.mask, dm.models.attention.MaskRows)
    model = make_model("gemma2", 3)
    monkeypatch.setitem(model.adapter.__dict__, "takes_mask_rows", False)
    stored, tiled = both(model, LONGER, "l1")
    assert isinstance(tiled.forward.layers[0].inputs.mask, torch.Tensor)
    assert tiled.n_edges == stored.n_edges


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation makes, and the most bytes of such tensors alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.alive, self.peak = 0, 0, 0
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
                key = storage._cdata
                if key not in self._storages:
                    self._storages[key] = storage.nbytes()
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._freed, key)
        return result

    def _freed(self, key: int) -> None:
        self.alive -= self._storages.pop(key, 0)


def test_no_tensor_of_tokens_squared_is_made(make_model):
    """Neither recorded, nor swept, nor run: twice the tokens, less than three times the bytes (stored: four)."""
    model, peaks = make_model("mistral-window"), []
    assert model.adapter.packs  # tried on eleven tokens, before
    assert model.adapter.takes_mask_rows
    for n_tokens in (97, 194):
        ids = [(13 * i + 5) % 101 for i in range(n_tokens)]
        with LargestTensor() as seen:
            forward = run_tiled(model, ids, ["l1"])
            graph = tiled_graph(forward, ids, n_tokens - 1, "l1")
            tiled_logits(graph.traces([0.01, 0.5]))
        assert seen.largest < 6 * 194**2 / 2  # a histogram has 2 ** 15 bins
        peaks.append(seen.peak)
    assert peaks[1] < 3 * peaks[0]


def test_a_run_that_is_not_finite_is_refused(make_model, monkeypatch):
    _, tiled = both(make_model("llama"), IDS, "l1")
    trace = tiled.trace(size=0.5)
    monkeypatch.setattr(
        dm.models.adapter.Adapter,
        "masked_logits",
        lambda self, ids, masks, **given: torch.full((1, 101), torch.nan),
    )
    with pytest.raises(NonFiniteError, match="wider dtype"):
        tiled_logits([trace])


@pytest.mark.parametrize(
    "wrong", [{}, {"size": 7.0}, {"size": -1}, {"n_edges": 10**9}, {"size": 0.1, "n_edges": 3}], ids=str
)
def test_a_budget_is_one_and_within_range(make_model, wrong):
    _, tiled = both(make_model("llama"), IDS, "l1")
    with pytest.raises(InputError):
        tiled.trace(**wrong)
