"""The edges of a forward pass and their importances, against plain loops."""

from __future__ import annotations

import numpy
import oracles
import polars
import pytest
from conftest import CONFIGS, IDS, PARALLEL

import densitometer as dm


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
