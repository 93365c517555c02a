"""The order found by search: complete, connected, nested, and no worse than what it proposes from."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from conftest import IDS

import densitometer as dm
from densitometer import search
from densitometer.ablation import masked_logits
from densitometer.fisher import node_gradients_of_kl
from densitometer.metrics import kl_divergence

TEXTS = (
    "The whale swam under the ship, and the captain cried to his men",
    "In 1998 the band released its second album in the United Kingdom",
    "Le parlement européen a adopté la proposition de la Commission",
)


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
def test_places_are_a_permutation_that_growth_follows(make_model, name):
    graph = dm.build_graph(make_model(name), IDS, importance="best")
    places = graph.importance[graph.index]
    assert len(set(places.tolist())) == graph.n_edges
    assert places.max() == 1
    assert places.min() > 0
    by_place = graph.index[numpy.argsort(-places)]
    numpy.testing.assert_array_equal(graph.order, by_place)  # so every prefix is connected


def test_along_its_ladder_it_is_closer_than_fisher(demo):
    """The geometric mean: in an arithmetic one the first, tiny traces, where no order helps, would be all there is."""
    for text in TEXTS:
        found = dm.build_graph(demo, text, importance="best")
        slope = dm.build_graph(demo, text, importance="fisher")
        counts = list(search._ladder(len(found.space.levels), found.n_edges))
        assert len(counts) > 10
        best, fisher = (
            kl_divergence(
                found.forward.logits, masked_logits(g.forward, [g.trace(n_edges=n).flat for n in counts])
            )
            for g in (found, slope)
        )
        assert float((best + 1e-3).log().mean()) < math.log(0.9) + float((fisher + 1e-3).log().mean())


def test_what_an_edge_mends_is_the_slope_of_the_divergence_where_its_source_is_whole(demo):
    """With everything on but one edge, adding it is a step along its own mask: the slope there is known by autograd."""
    graph = dm.build_graph(demo, IDS)
    edge = graph.order[graph.n_edges // 3]
    kept = graph.reachable.copy()
    kept[edge] = False
    masks = torch.from_numpy(kept).float()[None].requires_grad_()
    adapter = demo.adapter
    with torch.enable_grad(), adapter.differentiable():
        logits = adapter.masked_logits(graph.forward.ids, graph.forward.block_masks(masks))
        p = graph.forward.logits.log_softmax(-1)
        kl = (p.exp() * (p - logits[0].log_softmax(-1))).sum()
        (slope,) = torch.autograd.grad(kl, masks)
    got = search._mended(graph.forward, kept)[edge]
    assert got == pytest.approx(max(0.0, -float(slope[0, edge])), rel=2e-2, abs=1e-7)
    assert len(node_gradients_of_kl(graph.forward, kept)) == len(graph.space.levels)


def test_residual_edges_get_their_part_of_what_edges_further_up_mend(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    generator = numpy.random.default_rng(5)
    flat = generator.exponential(size=graph.space.size).astype(numpy.float32)
    lent = flat.copy()
    search._lend_to_residuals(graph.space.views(lent))
    columns = graph.space.columns(numpy.arange(flat.size))
    for edge in range(flat.size):  # a plain loop from the top: levels are laid out in order
        if columns["kind"][edge].startswith("residual"):
            out = (columns["level"] == columns["level"][edge] + 1) & (
                columns["source"] == columns["target"][edge]
            )
            most = float(lent[out].max()) if out.any() else 0.0
            assert lent[edge] == pytest.approx(max(float(flat[edge]), search.LENT * most))
        else:
            assert lent[edge] == flat[edge]


def test_the_same_seed_gives_the_same_order(make_model):
    model = make_model("llama")
    first, second = (dm.build_graph(model, IDS, importance="best", seed=3).importance for _ in range(2))
    numpy.testing.assert_array_equal(first, second)


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
            dm.build_graph(model, IDS, importance="fisher")
    finally:
        handle.remove()
