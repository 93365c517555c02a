"""Scores from the edges' own vectors: how much each brings to the node that it is added to.

Each is divided by its sum over the edges into a node, so that these sum to 1.

    l1          |e|_1                                   (arXiv 2601.22795; 2605.27033)
    l2          |e|_2
    cosine      |cos(e, n)| between the edge's vector and the node n that it is added to
    projection  |<e, n>|
    proximity   max(0, |n|_1 - |n - e|_1)               (arXiv 2403.00824)
    random      uniform in (0, 1], seeded; not divided

The first two are separable: an attention weight is a non-negative number, so |a W v|_1 = a |W v|_1. One norm per
(head, source) is enough and no edge vector is ever built: O(H S D) work a layer instead of O(H T S D). Only where a
gate of the target stands between head and projection are the vectors built, for a few targets at a time. So with neurons:
|act_i w_i|_1 = |act_i| |w_i|_1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from .forward import ForwardPass, LevelEdges, PerLevel

TINY = torch.finfo(torch.float32).tiny


def _normalise(scores: PerLevel) -> PerLevel:
    """Divide by the sum over the incoming edges of each target."""
    residual, attention, mlp = scores
    total = residual.clone()
    if attention is not None:
        total += attention.sum(dim=(0, 2))
    if mlp is not None:
        total += mlp.sum(dim=0)
    total = total.clamp_min(TINY)
    return PerLevel(
        residual / total,
        None if attention is None else attention / total[:, None],
        None if mlp is None else mlp / total,
    )


def _separable(edges: LevelEdges, size: Callable[[Tensor], Tensor]) -> PerLevel:
    """Score each edge by a size of its vector that scales with the vector. size maps (n, D) to (n,)."""
    attention = None if edges.weights is None else edges.attention_sizes(size)
    mlp = None if edges.units is None else edges.units.sizes(size)
    return _normalise(PerLevel(size(edges.residual), attention, mlp))


# Sizes of vectors (..., D) that scale with the vector, so that a weight can be taken out of them.
SEPARABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda v: v.abs().sum(-1),
    "l2": lambda v: v.norm(dim=-1),
}


def l1(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|e|_1 over the sum of |e'|_1 of the target's incoming edges (arXiv 2601.22795, section 3)."""
    return [_separable(edges, SEPARABLE["l1"]) for edges in forward.levels()]


def l2(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|e|_2 over the sum of |e'|_2 of the target's incoming edges."""
    return [_separable(edges, SEPARABLE["l2"]) for edges in forward.levels()]


def cosine(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|cos(e, n)| over its sum, e the edge's vector and n its target node (method, section 2)."""
    return [_along_node(edges, unit=True) for edges in forward.levels()]


def projection(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|<e, n>| over its sum, e the edge's vector and n its target node (method, section 2)."""
    return [_along_node(edges, unit=False) for edges in forward.levels()]


def _along_node(edges: LevelEdges, unit: bool) -> PerLevel:
    """|<e, n>| of each edge, divided by |e|_2 where `unit`; separable through <n_t, W v_s>."""

    def along(vectors: Tensor) -> Tensor:  # (T, D), one per target
        dots = (vectors * edges.node).sum(-1).abs()
        return dots / vectors.norm(dim=-1).clamp_min(TINY) if unit else dots

    attention = None
    if edges.weights is not None:
        attention = edges.attention_along(edges.node).abs()
        if unit:
            attention /= edges.attention_sizes(lambda v: v.norm(dim=-1)).clamp_min(TINY)
    mlp = None
    if edges.units is not None:
        mlp = edges.units.along(edges.node).abs()
        if unit:
            mlp /= edges.units.sizes(lambda v: v.norm(dim=-1)).clamp_min(TINY)
    return _normalise(PerLevel(along(edges.residual), attention, mlp))


def proximity(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """max(0, |n|_1 - |n - e|_1) over its sum (information flow routes, arXiv 2403.00824, section 2).

    Not separable: vectors are built for a few targets or neurons at a time, never all T x S x D of a head.
    """
    return [_proximity(edges) for edges in forward.levels()]


def _proximity(edges: LevelEdges) -> PerLevel:
    def near(vectors: Tensor, node: Tensor) -> Tensor:
        return (node.abs().sum(-1) - (node - vectors).abs().sum(-1)).clamp_min(0)

    attention = None if edges.weights is None else edges.each_attention_edge(near)
    mlp = None if edges.units is None else edges.units.each(near, edges.node)
    return _normalise(PerLevel(near(edges.residual, edges.node), attention, mlp))


def random(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Uniform in (0, 1], the same for the same seed and shape on every machine."""
    space = forward.space
    return space.views(torch.from_numpy(uniform_scores(space.size, seed)))


def uniform_scores(size: int, seed: int) -> numpy.ndarray:
    """(size,) float32, uniform in (0, 1]."""
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    return (1.0 - generator.random(size)).astype(numpy.float32)
