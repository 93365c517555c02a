"""Orders found by gradient search: complete, connected, nested, and closer than the order that they start from."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from conftest import IDS, make_module

import densitometer as dm
from densitometer._util.metrics import kl_divergence, total_variation
from densitometer.errors import PluginError
from densitometer.graph.importance import search
from densitometer.graph.importance.gradients import divergence_slopes
from densitometer.graph.masked_runs import masked_logits

pytestmark = pytest.mark.usefixtures("rows_skipped")

TEXTS = (
    "The whale swam under the ship, and the captain cried to his men",
    "In 1998 the band released its second album in the United Kingdom",
    "Le parlement européen a adopté la proposition de la Commission",
)


SHORT, LONG = search.Search(4, 0.5, 0.2, 0.9), search.Search(50, 0.25, 0.2, 0.9)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(search.SEARCHES, "learned", [SHORT, LONG])


@pytest.mark.parametrize("importance", ["best", "learned"])
@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
def test_places_are_a_permutation_that_growth_follows(make_model, name, importance):
    graph = dm.build_graph(make_model(name), IDS, importance=importance)
    places = graph.importance[graph.index]
    assert len(set(places.tolist())) == graph.n_edges
    assert places.max() == 1
    assert places.min() > 0
    by_place = graph.index[numpy.argsort(-places)]
    numpy.testing.assert_array_equal(graph.order, by_place)  # so every prefix is connected


def test_its_traces_are_far_closer_than_those_of_fisher(demo):
    """Over the sizes between which it searches: the geometric mean of the divergence, and the size that holds."""
    sizes = [0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2]
    ratios, held = [], []
    for text in TEXTS:
        found, slope = (dm.build_graph(demo, text, importance=name) for name in ("best", "fisher"))
        logits = [masked_logits(g.forward, [g.trace(size=s).flat for s in sizes]) for g in (found, slope)]
        best, fisher = (kl_divergence(found.forward.logits, these) for these in logits)
        ratios.append(float((best + 1e-3).log().mean() - (fisher + 1e-3).log().mean()))
        gaps = [total_variation(found.forward.logits, these) for these in logits]
        held.append([max((i + 1 for i, g in enumerate(these) if g > 0.1), default=0) for these in gaps])
    assert numpy.mean(ratios) < math.log(0.6)
    assert all(best <= fisher for best, fisher in held)


def test_what_starts_closer_than_the_search_ends_is_kept(demo, monkeypatch):
    monkeypatch.setattr(
        search, "_search", lambda forward, information, *rest: 9.0 - information.astype(float)
    )
    found, slope = (dm.build_graph(demo, TEXTS[1], importance=name) for name in ("best", "fisher"))
    numpy.testing.assert_array_equal(found.order, slope.order)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_learned_keeps_the_order_that_holds_from_the_smallest_size(demo, monkeypatch, kept):
    """Of the start and two searches, each of which is made to find an order that holds from another size."""
    slope = dm.build_graph(demo, TEXTS[0], importance="fisher")
    held = [0.31, 0.32, 0.33]
    held[kept] = 0.02
    starts, runs = [], []

    def searched(forward, roots, size, settings):
        starts.append((size, settings))
        return numpy.random.default_rng(settings.n_steps).random(roots.size)

    def size_at(forward, ran, sizes):
        if not any(ran is one for one in runs):
            runs.append(ran)
        return held[next(i for i, one in enumerate(runs) if ran is one)]

    monkeypatch.setattr(search, "_search", searched)
    monkeypatch.setattr(search, "_size_at", size_at)
    found = dm.build_graph(demo, TEXTS[0], importance="learned")
    assert starts == [(held[0], SHORT), (held[0], LONG)]
    if kept == 0:
        want = slope.order
    else:
        scores = numpy.random.default_rng((4, 50)[kept - 1]).random(slope.space.size)
        want = search.best_first_order(slope.space, scores, slope.forward.reachable)
    numpy.testing.assert_array_equal(found.order, want)


@pytest.mark.parametrize("granularity", ["block", "neuron"])
def test_slopes_are_those_of_the_divergence(make_model, granularity):
    """Against finite differences along single masks, norms' scales held as they are in the gradient."""
    graph = dm.build_graph(make_model("gpt2"), IDS[:4], granularity=granularity)
    forward, adapter = graph.forward, graph.model.adapter
    generator = torch.Generator().manual_seed(5)
    masks = torch.rand(graph.space.size, generator=generator)
    slopes = divergence_slopes(forward, masks)
    assert slopes.shape == (graph.space.size,)
    leaf = masks[None].clone().requires_grad_()
    with torch.enable_grad(), adapter.differentiable():
        logits = adapter.masked_logits(forward.ids, forward.block_masks(leaf))
        p = forward.logits.log_softmax(-1)
        (want,) = torch.autograd.grad((p.exp() * (p - logits[0].log_softmax(-1))).sum(), leaf)
    numpy.testing.assert_allclose(slopes, want[0], atol=1e-6 * float(want.abs().max()))
    assert slopes.abs().max() > 0


def test_what_was_on_for_longer_comes_first(demo, monkeypatch):
    graph = dm.build_graph(demo, TEXTS[2], importance="fisher")
    on, soft = [], search._soft

    def recorded(theta, *rest):
        boundary, masks = soft(theta, *rest)
        on.append(masks.double().numpy())
        return boundary, masks

    monkeypatch.setattr(search, "_soft", recorded)
    scores = search._search(graph.forward, graph.importance, 0.05, search.Search(12, 0.5, 0.2, 0.9))
    scores, total = scores[graph.reachable], sum(on)
    assert len(on) == 12
    assert len(set(total.tolist())) > 100
    assert (numpy.diff(total[numpy.argsort(scores)]) >= 0).all()
    assert sorted(scores.tolist()) == list(range(1, graph.n_edges + 1))


def test_masks_shrink_to_the_smallest_size_and_stay_there(demo, monkeypatch):
    graph = dm.build_graph(demo, TEXTS[2], importance="fisher")
    totals, soft = [], search._soft

    def recorded(theta, total, *rest):
        totals.append(total / graph.n_edges)
        return soft(theta, total, *rest)

    monkeypatch.setattr(search, "_soft", recorded)
    search._search(graph.forward, graph.importance, 0.05, search.Search(11, 0.5, 0.3, 0.6))
    want = [0.05 * 1.8 * (0.3 / 1.8) ** (min(step, 6) / 6) for step in range(11)]
    numpy.testing.assert_allclose(totals, want, rtol=1e-9)


def test_of_edges_that_were_on_equally_long_the_higher_theta_comes_first(demo, monkeypatch):
    graph = dm.build_graph(demo, TEXTS[2], importance="fisher")
    monkeypatch.setattr(search, "_soft", lambda theta, *rest: (0.0, torch.full_like(theta, 0.5)))
    monkeypatch.setattr(search, "divergence_slopes", lambda forward, masks: torch.zeros_like(masks))
    scores = search._search(graph.forward, graph.importance, 0.05, search.Search(2, 0.5, 0.2, 0.9))
    theta = search._start(torch.from_numpy(graph.importance[graph.reachable])).numpy()
    assert len(set(theta.tolist())) > 100
    assert (numpy.diff(theta[numpy.argsort(scores[graph.reachable])]) >= 0).all()


@pytest.mark.parametrize("share", [1e-3, 0.03, 0.5, 0.97])
@pytest.mark.parametrize("temperature", [0.2, 1e-3])
def test_soft_masks_sum_to_the_size(share, temperature):
    theta = torch.randn(3001, generator=torch.Generator().manual_seed(2)) * 3
    boundary, on = search._soft(theta, share * 3001, temperature, 0.0)
    assert float(on.sum()) == pytest.approx(share * 3001, rel=2e-3)
    torch.testing.assert_close(on, torch.sigmoid((theta - boundary) / temperature))


def test_where_fisher_holds_lies_between_two_sizes_that_were_run(demo):
    graph = dm.build_graph(demo, TEXTS[0], importance="fisher")
    sizes = search.SIZES["best"]
    closeness = search.Closeness.of(graph.forward)
    size = search._size_at(closeness, search._run(graph.forward, graph.order, sizes), sizes)
    tried = [s for s in sizes if s > size]
    gaps = total_variation(
        graph.forward.logits, masked_logits(graph.forward, [graph.trace(size=s).flat for s in sizes])
    )
    assert all(gaps[-len(tried) :] <= search.HELD)
    assert gaps[-len(tried) - 1] > search.HELD


def test_the_same_seed_gives_the_same_order(make_model):
    model = make_model("llama")
    first, second, other = (
        dm.build_graph(model, IDS, importance="best", seed=seed).importance for seed in (3, 3, 4)
    )
    numpy.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize("importance", ["best", "learned"])
def test_two_tokens_and_a_prediction_without_slopes_give_an_order_all_the_same(importance):
    module = make_module("llama")
    with torch.no_grad():
        module.lm_head.weight.zero_()  # every token is as probable: no edge matters
    for ids in (IDS[:2], IDS):
        graph = dm.build_graph(dm.load_model(module), ids, importance=importance)
        assert sorted(set(graph.importance[graph.index].tolist()))[0] > 0
        assert len(set(graph.importance[graph.index].tolist())) == graph.n_edges


def test_gradients_that_overflow_are_named(demo, monkeypatch):
    monkeypatch.setattr(search, "divergence_slopes", lambda forward, masks: masks * math.nan)
    with pytest.raises(PluginError, match=r"NaN or infinite.*bfloat16"):
        dm.build_graph(demo, IDS, importance="best")


def test_a_layer_without_gradient_is_named(make_model):
    model = make_model("llama")
    block = model.adapter.blocks[1].module.mlp
    handle = block.register_forward_hook(lambda part, args, out: out.detach())
    try:
        assert dm.build_graph(model, IDS, importance="fisher").n_edges  # other ways to the masks are left
    finally:
        handle.remove()
    head = model.module.lm_head
    handle = head.register_forward_hook(lambda part, args, out: out.detach())
    try:
        with pytest.raises(dm.DensitometerError, match="l1"):
            dm.build_graph(model, IDS, importance="best")
    finally:
        handle.remove()
