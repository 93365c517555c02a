"""Importances from the edges' own vectors: how much each brings to the node that it is added to.

Each is divided by its sum over the edges into a node, so that these sum to 1; where all are 0, they are equal, as in the
transparency tool (arXiv 2403.00824).

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
from functools import partial

import numpy
import torch
from torch import Tensor

from ..forward_pass import ForwardPass, LevelEdges, PerLevel

TINY = torch.finfo(torch.float32).tiny


def shares(scores: PerLevel, existing: Callable[[], PerLevel]) -> PerLevel:
    """Divide by the sum over the incoming edges of each target. Where that sum is 0, every edge has an equal share.

    Args:
        scores: residual (T,), attention (H, T, S) or None, mlp (M, T) or None.
        existing: returns which edges there are, bool: residual (T,), attention (T, S), mlp (M, T).
    """
    total = _sums(scores)
    empty = total < TINY
    if bool(empty.any()):
        there = existing()
        scores = PerLevel(
            *(
                None if score is None else torch.where(_per_target(empty, score), on.to(score), score)
                for score, on in zip(scores, there, strict=True)
            )
        )
        total = _sums(scores)
    return PerLevel(*(None if score is None else score / _per_target(total, score) for score in scores))


def _sums(scores: PerLevel) -> Tensor:
    """Sum over the incoming edges of each target, (T,)."""
    total = scores.residual.clone()
    if scores.attention is not None:
        total += scores.attention.sum(dim=(0, 2))
    if scores.mlp is not None:
        total += scores.mlp.sum(dim=0)
    return total


def _per_target(values: Tensor, score: Tensor) -> Tensor:
    """Reshape values (T,) so that they multiply importances of residual, attention or MLP edges."""
    return values[:, None] if score.dim() == 3 else values


def _separable(forward: ForwardPass, size: Callable[[Tensor], Tensor]) -> list[PerLevel]:
    """Compute each edge's importance from a size of its vector that scales with the vector.

    Args:
        size: maps (n, D) to (n,).
    """

    def sized(edges: LevelEdges) -> PerLevel:
        attention = None if edges.weights is None else edges.attention_sizes(size)
        mlp = None if edges.units is None else edges.units.sizes(size)
        return PerLevel(size(edges.residual), attention, mlp)

    return _shares(forward, sized)


def _shares(forward: ForwardPass, score: Callable[[LevelEdges], PerLevel]) -> list[PerLevel]:
    """Importances of each level as shares of its targets' incoming edges."""
    return [shares(score(edges), partial(forward.existing, edges.level)) for edges in forward.levels()]


# Sizes of vectors (..., D) that scale with the vector, so that a weight can be taken out of them.
SEPARABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda v: v.abs().sum(-1),
    "l2": lambda v: v.norm(dim=-1),
}


def l1(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|e|_1 over the sum of |e'|_1 of the target's incoming edges (arXiv 2601.22795, section 3)."""
    return _separable(forward, SEPARABLE["l1"])


def l2(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|e|_2 over the sum of |e'|_2 of the target's incoming edges."""
    return _separable(forward, SEPARABLE["l2"])


def cosine(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|cos(e, n)| over its sum, e the edge's vector and n its target node (method, section 2)."""
    return _shares(forward, lambda edges: _along_node(edges, unit=True))


def projection(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|<e, n>| over its sum, e the edge's vector and n its target node (method, section 2)."""
    return _shares(forward, lambda edges: _along_node(edges, unit=False))


def _along_node(edges: LevelEdges, unit: bool) -> PerLevel:
    """|<e, n>| of each edge, over |e|_2 where `unit`. Separable through <n_t, W v_s>."""

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
    return PerLevel(along(edges.residual), attention, mlp)


def proximity(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """max(0, |n|_1 - |n - e|_1) over its sum (information flow routes, arXiv 2403.00824, section 2).

    Not separable: vectors are built for a few targets or neurons at a time, never all T x S x D of a head.
    """
    return _shares(forward, _proximity)


def _proximity(edges: LevelEdges) -> PerLevel:
    def near(vectors: Tensor, node: Tensor) -> Tensor:
        return (node.abs().sum(-1) - (node - vectors).abs().sum(-1)).clamp_min(0)

    attention = None if edges.weights is None else edges.each_attention_edge(near)
    mlp = None if edges.units is None else edges.units.each(near, edges.node)
    return PerLevel(near(edges.residual, edges.node), attention, mlp)


def random(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Uniform in (0, 1], the same for the same seed and shape on every machine."""
    space = forward.space
    return space.views(torch.from_numpy(uniform_importance(space.size, seed)))


def uniform_importance(size: int, seed: int) -> numpy.ndarray:
    """Uniform numbers in (0, 1], (size,) float32."""
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    return (1.0 - generator.random(size)).astype(numpy.float32)
