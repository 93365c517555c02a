"""The edges of a forward pass and their importances, against plain loops."""

from __future__ import annotations

import numpy
import oracles
import polars
import pytest
from conftest import CONFIGS, IDS, PARALLEL

import densitometer as dm

pytestmark = pytest.mark.fast


def expected_edges(graph, window: int | None = None) -> set[tuple]:
    n_tokens, n_layers, n_heads = graph.position + 1, graph.n_layers, graph.n_heads
    single = "residual" in set(graph.edges()["kind"])
    exist = set()
    for layer in range(n_layers):
        mid, out = (layer, layer) if single else (2 * layer, 2 * layer + 1)
        for t in range(n_tokens):
            exist.add((mid, "residual" if single else "residual_attention", None, t, t))
            exist.add((out, "mlp", None, t, t))
            if not single:
                exist.add((out, "residual_mlp", None, t, t))
            for s in range(t + 1):
                if window is None or t - s < window:
                    exist |= {(mid, "attention", h, s, t) for h in range(n_heads)}
    n_levels = n_layers if single else 2 * n_layers
    return oracles.reachable_edges(exist, n_levels, graph.position)


@pytest.mark.parametrize("name", ["llama", "neox", "olmo2"])
@pytest.mark.parametrize("position", [-1, 4, 0])
def test_edge_set_is_what_walking_back_from_the_output_finds(make_model, name, position):
    graph = dm.build_graph(make_model(name), IDS, position=position)
    rows = oracles.rows_of(graph)
    assert len(rows) == len(set(rows)) == graph.n_edges
    assert set(rows) == expected_edges(graph)


def test_sliding_window_removes_edges_that_the_layer_does_not_allow(make_model):
    graph = dm.build_graph(make_model("mistral-window"), IDS)
    assert set(oracles.rows_of(graph)) == expected_edges(graph, window=3)


@pytest.mark.parametrize("n_tokens", [2, 5, 7])
def test_number_of_edges_of_sequential_blocks(make_model, n_tokens):
    graph = dm.build_graph(make_model("llama"), IDS[:n_tokens])
    layers, heads, t = graph.n_layers, graph.n_heads, n_tokens
    formula = layers * (heads * t * (t + 1) // 2 + 3 * t)
    formula -= 2 * (t - 1) + heads * t * (t - 1) // 2 + (t - 1)
    assert graph.n_edges == formula


@pytest.mark.parametrize("name", ["llama", "neox"])
@pytest.mark.parametrize("seed", [0, 1])
def test_l1_equals_the_norms_of_edge_vectors_built_one_by_one(make_model, name, seed):
    model = make_model(name, seed)
    graph = dm.build_graph(model, IDS)
    expected = oracles.sums_of_l1(model, IDS)
    got = graph.edges()["importance"].to_numpy()
    want = numpy.array([expected[row] for row in oracles.rows_of(graph)])
    assert got.dtype == numpy.float32
    numpy.testing.assert_allclose(got, want, atol=1e-6)
    assert got.std() > 0.01


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_incoming_importances_of_every_inner_node_sum_to_one(make_model, name, importance):
    graph = dm.build_graph(make_model(name), IDS, importance=importance)
    level = [row[0] for row in oracles.rows_of(graph)]
    sums = (
        graph.edges()
        .with_columns(level=polars.Series(level))
        .group_by("level", "target")
        .agg(polars.sum("importance"))
    )
    numpy.testing.assert_allclose(sums["importance"].to_numpy(), 1.0, atol=1e-5)


def test_random_importance_is_seeded(make_model):
    one, again, other = (
        dm.build_graph(make_model("llama"), IDS, importance="random", seed=seed).importance
        for seed in (3, 3, 4)
    )
    assert (one == again).all()
    assert (one != other).mean() > 0.99


def test_edges_table_has_the_columns_users_rely_on(make_model):
    table = dm.build_graph(make_model("llama"), IDS).edges()
    assert table.columns == ["edge", "layer", "kind", "head", "source", "target", "importance"]
    assert table["importance"].dtype == polars.Float32
    assert table.filter(polars.col("kind") != "attention")["head"].null_count() > 0
    assert table.filter(polars.col("kind") == "attention")["head"].null_count() == 0
    assert (table["edge"] == polars.Series(range(table.height))).all()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_landmarks_count_the_edges_of_the_output_tokens_own_chain(make_model, name):
    graph = dm.build_graph(make_model(name), IDS)
    rows = oracles.rows_of(graph)
    chain = [r for r in rows if r[1].startswith("residual") and r[4] == graph.position]
    mlps = [r for r in rows if r[1] == "mlp" and r[4] == graph.position]
    assert graph.landmarks["residual_chain"] == len(chain) / graph.n_edges
    assert graph.landmarks["residual_mlp_chain"] == (len(chain) + len(mlps)) / graph.n_edges
    assert len(chain) == (3 if name in PARALLEL else 6)


def test_a_position_does_not_see_later_tokens(make_model):
    model = make_model("llama")
    inner = dm.build_graph(model, IDS, position=4)
    alone = dm.build_graph(model, IDS[:5])
    assert inner.n_tokens == len(IDS)
    assert inner.tokens == dm.build_graph(model, IDS).tokens
    assert (inner.importance == alone.importance).all()


def test_registered_importance_is_used_and_checked(make_model):
    model = make_model("llama")

    def reversed_index(forward, seed):
        import torch

        space = forward.space
        return space.views(torch.arange(space.size, 0, -1, dtype=torch.float32))

    dm.register_importance("test-index", reversed_index)
    graph = dm.build_graph(model, IDS, importance="test-index")
    assert graph.order[0] == graph.index[numpy.argmax(graph.importance[graph.index] * _into_root(graph))]
    with pytest.raises(ValueError, match="exists already"):
        dm.register_importance("test-index", reversed_index)

    dm.register_importance("test-negative", lambda f, seed: f.space.views(-_ones(f)))
    dm.register_importance("test-nan", lambda f, seed: f.space.views(_ones(f) * float("nan")))
    dm.register_importance("test-shape", lambda f, seed: f.space.views(_ones(f))[:-1])
    for name, message in (("negative", "negative"), ("nan", "NaN"), ("shape", "levels")):
        with pytest.raises(dm.DensitometerError, match=f"test-{name}.*{message}"):
            dm.build_graph(model, IDS, importance=f"test-{name}")


def _ones(forward):
    import torch

    return torch.ones(forward.space.size)


def _into_root(graph):
    columns = graph.space.columns(graph.index)
    return (columns["level"] == len(graph.space.levels) - 1) & (columns["target"] == graph.position)


def test_budgets_at_their_ends_and_beyond(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    n = graph.n_edges
    for budget, count in (({"size": 0}, 0), ({"size": 1}, n), ({"n_edges": 0}, 0), ({"n_edges": n}, n)):
        assert graph.trace(**budget).n_edges == count
    assert graph.trace(n_edges=numpy.int64(n - 1)).n_edges == n - 1
    assert graph.trace(threshold=0).n_edges == n
    assert graph.trace(threshold=float("inf")).n_edges == 0
    assert graph.trace(nucleus=numpy.float32(0)).n_edges == 0
    assert graph.trace(flops=1.0).n_edges == graph.trace(parameters=1.0).n_edges == n
    for share in ("size", "nucleus", "flops", "parameters"):
        for value in (-1e-9, 1 + 1e-9):
            with pytest.raises(dm.DensitometerError, match=f"{share} must be a share from 0 to 1"):
                graph.trace(**{share: value})
    for name in ("size", "nucleus", "flops", "parameters", "threshold"):
        with pytest.raises(ValueError, match=f"{name} must be a number, got NaN"):
            graph.trace(**{name: float("nan")})
        for value in (True, "0.5"):
            with pytest.raises(TypeError, match=f"{name} must be a number"):
                graph.trace(**{name: value})
    for count in (-1, n + 1):
        with pytest.raises(ValueError, match=f"n_edges must be from 0 to {n}"):
            graph.trace(n_edges=count)
    for count in (True, 2.0, "3"):
        with pytest.raises(TypeError, match="n_edges must be an integer"):
            graph.trace(n_edges=count)
    with pytest.raises(
        ValueError,
        match="exactly one of size, n_edges, threshold, nucleus, flops, parameters, mask; got none",
    ):
        graph.trace()
    with pytest.raises(ValueError, match="got size, nucleus"):
        graph.trace(size=0.5, nucleus=0.5)


def test_a_budget_that_a_trace_costs_exactly_takes_that_trace(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    for name in ("flops", "parameters"):
        shares = getattr(graph.costs, name)
        for count in (0, 1, 30, 77, graph.n_edges):
            largest = int(numpy.flatnonzero(shares <= shares[count] + 1e-12)[-1])
            assert graph.trace(**{name: float(shares[count])}).n_edges == largest


def test_traces_come_in_the_order_of_sizes_counts_and_thresholds(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    got = graph.traces([0.5, 0.1], n_edges=[9, 4], thresholds=[0.2, 0.05])
    want = [graph.trace(size=0.5), graph.trace(size=0.1), graph.trace(n_edges=9), graph.trace(n_edges=4)]
    want += [graph.trace(threshold=0.2), graph.trace(threshold=0.05)]
    assert [t.mask.tolist() for t in got] == [t.mask.tolist() for t in want]
    assert graph.traces() == []


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_thresholds_are_what_each_best_first_trace_reaches(make_model, name):
    graph = dm.build_graph(make_model(name), IDS)
    scores = graph.importance[graph.index].tolist()
    order = oracles.best_first(oracles.rows_of(graph), scores, graph.position)
    want = [max(scores), *(min(scores[i] for i in order[: n + 1]) for n in range(len(order)))]
    assert graph.thresholds.tolist() == want
    for count in (0, 1, 25, graph.n_edges):
        assert graph.reached_by(graph.trace(n_edges=count)) == want[count]
    keys = graph.keys[graph.index]
    assert graph.threshold_range[1] == keys[keys > 0].min()


def test_the_least_threshold_is_above_zero(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    some = graph.with_importance(
        "some", numpy.where(graph.importance > 0.1, graph.importance, 0).astype("float32")
    )
    assert 0.1 < some.threshold_range[1] == some.keys[some.keys > 0].min()
    two = graph.with_importance("two", numpy.full_like(graph.importance, 2.5))
    assert two.threshold_range == (2.5, 2.5)


def test_the_largest_threshold_is_the_largest_key(make_model):
    """As in `TiledGraph`; else part of the default thresholds gives empty traces."""
    graph = dm.build_graph(make_model("llama"), IDS)
    assert graph.threshold_range[0] == graph.keys[graph.index].max()


def test_an_edge_of_a_finer_grain_names_its_unit(make_model):
    graph = dm.build_graph(make_model("mixtral"), IDS, granularity="expert")
    table = graph.edges()
    assert table.columns == ["edge", "layer", "kind", "head", "unit", "source", "target", "importance"]
    of_mlp = polars.col("kind") == "mlp"
    units = table.filter(of_mlp)["unit"]
    assert units.dtype == polars.Int32
    assert set(units) == set(range(5))
    assert table.filter(~of_mlp)["unit"].null_count() == table.filter(~of_mlp).height
    per_token = table.filter(of_mlp).group_by("layer", "target").len()["len"]
    assert set(per_token) == {2}  # as many experts as a token is sent to
    own = table.filter(of_mlp, polars.col("target") == graph.position).height
    assert graph.landmarks["residual_mlp_chain"] == (6 + own) / graph.n_edges


def test_what_a_graph_tells_of_itself(make_model):
    model = make_model("llama")
    graph = dm.build_graph(model, IDS, position=-2, importance="random", seed=3)
    assert (graph.n_layers, graph.n_heads, graph.n_tokens, graph.position) == (3, 6, 7, 5)
    assert (graph.input_ids, graph.tokens) == (tuple(IDS), tuple(model.pieces(IDS)))
    assert (graph.importance_name, graph.seed, graph.granularity) == ("random", 3, "block")
    usual = dm.build_graph(model, IDS)
    assert (usual.position, usual.importance_name, usual.seed, usual.granularity) == (6, "l1", 0, "block")
    trace = usual.trace(n_edges=usual.n_edges // 4)
    assert trace.size == trace.n_edges / usual.n_edges
    assert repr(trace) == f"Trace({trace.n_edges} of {usual.n_edges} edges, {100 * trace.size:.3g} %)"
    with pytest.raises(TypeError, match="name, folder or module, got 3"):
        dm.build_graph(3, IDS)


def test_a_random_graph_is_made_once_for_each_seed(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    first, second = graph.random_graph(), graph.random_graph(1)
    assert first is graph.random_graph(0)
    assert second is graph.random_graph(1)
    assert (first.importance_name, first.seed, second.seed) == ("random", 0, 1)
    assert first.forward is graph.forward
    assert (
        first.importance.tolist() == dm.build_graph(graph.model, IDS, importance="random").importance.tolist()
    )
    kept = graph.random_trace(0.2)
    assert kept.n_edges == int(0.2 * graph.n_edges)
    assert kept.mask.tolist() == first.trace(size=0.2).mask.tolist()
    assert graph.with_importance("l1", graph.importance).seed == 0


def test_natural_subgraphs_are_traces_of_the_graph(make_model):
    graph = dm.build_graph(make_model("neox"), IDS)
    found = graph.natural_subgraphs()
    assert list(found)[:2] == ["residual_chain", "residual_mlp_chain"]
    for name in ("residual_chain", "residual_mlp_chain"):
        assert found[name].size == graph.landmarks[name]
    kinds = graph.edges()["kind"].to_numpy()
    assert found["window_8"].n_edges == graph.n_edges  # as wide as the text
    assert found["residual_chain"].with_residual().mask.tolist() == (kinds == "residual").tolist()
