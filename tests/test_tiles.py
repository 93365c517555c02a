"""Long inputs against the stored path: every importance, key, count, threshold, mask, logit and curve."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import CONFIGS, IDS

import densitometer as dm
from densitometer import tiles
from densitometer.ablation import masked_logits
from densitometer.graph import Graph, Trace, graph_of
from densitometer.tiles import NormScores, RandomScores, TiledGraph, run_tiled, tiled_logits
from densitometer.trace import natural_masks

LONGER = [*IDS, 90, 17, 64, 33]  # 11 tokens
TILE_TARGETS = 3  # divides neither 7 nor 11


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of three targets."""
    real = dm.models.adapter.Adapter.capture_tiles
    monkeypatch.setattr(
        dm.models.adapter.Adapter,
        "capture_tiles",
        lambda self, ids, tile_targets, keep: real(self, ids, TILE_TARGETS, keep),
    )


def both(model: dm.Model, ids: list[int], name: str) -> tuple[Graph, TiledGraph]:
    stored = dm.build_graph(model, ids, importance=name)
    forward = run_tiled(model, ids, [name])
    return stored, TiledGraph(
        forward, NormScores(forward, name), tuple(ids), stored.tokens, len(ids) - 1, name
    )


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
                view.mlp[tile.targets] = mlp
    return flat


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize(("score", "ids"), [("l1", LONGER), ("l2", IDS)], ids=["l1-11", "l2-7"])
def test_importances_keys_and_thresholds_are_the_stored_ones(make_model, name, score, ids):
    stored, tiled = both(make_model(name), ids, score)
    assert len(tiled.forward.tiles(0)) == -(-len(ids) // TILE_TARGETS)
    assert tiled.forward.space == stored.space
    torch.testing.assert_close(tiled.forward.logits, stored.forward.logits)
    there = stored.reachable
    importance = flat_of(tiled, tiled.scores.importance)
    numpy.testing.assert_allclose(importance[there], stored.importance[there], rtol=2e-5, atol=1e-7)
    assert tiled.n_edges == stored.n_edges
    for got, want in zip(tiled.keys, stored.space.views(stored.keys), strict=True):
        numpy.testing.assert_allclose(got.residual, want.residual, rtol=2e-5, atol=1e-7)
        if want.mlp is not None:
            numpy.testing.assert_allclose(got.mlp, want.mlp, rtol=2e-5, atol=1e-7)
    # from here on against the stored path on the tiles' own importances, so that nothing is close but not equal
    same = stored.rescored(score, importance)
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


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_runs_and_costs_of_subgraphs_are_the_stored_ones(make_model, name):
    model = make_model(name)
    stored, tiled = both(model, LONGER, "l1")
    same = stored.rescored("l1", flat_of(tiled, tiled.scores.importance))
    traces = tiled.traces([0.03, 0.3, 1.0])
    subgraphs = [
        *traces,
        traces[1].inverse(),
        traces[0].inverse(keep_residual=True),
        traces[1].with_residual(),
    ]
    wanted = [same.trace(threshold=trace.threshold) for trace in traces]
    residual = Trace(stored, dm.trace.residual_mask(stored.space, stored.reachable))
    wanted += [
        wanted[1].inverse(), wanted[0].inverse(keep_residual=True), Trace(stored, wanted[1].flat | residual.flat),
    ]  # fmt: skip
    for rule, mask in natural_masks(stored.space, stored.reachable).items():
        subgraphs.append(tiles.NaturalSubgraph(tiled, rule))
        wanted.append(Trace(stored, mask))
    assert [s.n_edges for s in subgraphs] == [w.n_edges for w in wanted]
    for frozen in (False, True):
        got = tiled_logits(subgraphs, frozen)
        want = masked_logits(stored.forward, [w.flat for w in wanted], frozen)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    for subgraph, trace in zip(subgraphs, wanted, strict=True):
        assert subgraph.tally.n_edges == trace.n_edges
        assert subgraph.flops_share == pytest.approx(trace.flops_share)
        assert subgraph.parameter_share == pytest.approx(trace.parameter_share)
        assert tiles.tally(subgraph).flops == pytest.approx(subgraph.tally.flops)


@pytest.mark.parametrize("name", ["llama", "neox", "mistral-window"])
def test_random_scores_are_the_stored_ones(make_model, name):
    stored, tiled = both(make_model(name), LONGER, "l1")
    random = stored._random_graph(5)
    drawn = flat_of(
        TiledGraph(tiled.forward, RandomScores(tiled.forward, 5), (), (), 0, "random"),
        RandomScores(tiled.forward, 5).importance,
    )
    assert (drawn[stored.reachable] == random.importance[stored.reachable]).all()
    trace = tiled.random_trace(0.4, seed=5)
    assert trace.n_edges == random.trace(threshold=trace.threshold).n_edges <= 0.4 * stored.n_edges
