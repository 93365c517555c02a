"""Importances from the edges' vectors: how much each edge contributes to its target node.

The importance of an edge is one of the sizes below, divided by the sum of that size over all edges
into the same node. So importances sum to 1 over the edges into a node. Where all sizes are 0, the
importances are equal, as in the transparency tool (arXiv 2403.00824). With e the edge's vector and
n its target node:

    l1          |e|_1                                   (arXiv 2601.22795; 2605.27033)
    l2          |e|_2
    cosine      |cos(e, n)|
    projection  |<e, n>|
    proximity   max(0, |n|_1 - |n - e|_1)               (arXiv 2403.00824)
    random      uniform in (0, 1], seeded; not divided

The first two are separable: an attention weight a is a non-negative number, so
|a W v|_1 = a |W v|_1. One norm per (head, source) is enough, and no edge vector is computed:
O(H S D) operations per layer instead of O(H T S D). Neurons are separable too:
|act_i w_i|_1 = |act_i| |w_i|_1. Only if a gate multiplies the heads' outputs before the projection
are vectors computed, for a few targets at a time.

What this file does not do: it uses no gradients, so these importances do not depend on an edge's
effect on the prediction (`gradients.py`).

Axes: H heads, T target tokens, S source tokens, M units of an MLP, D hidden size, F flat edge axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy
import torch
from torch import Tensor

from ..edge_source import per_target
from ..forward_pass import ForwardPass, LevelEdges, PerLevel

TINY = torch.finfo(torch.float32).tiny


def shares(sizes: PerLevel, existing: Callable[[], PerLevel]) -> PerLevel:
    """Turn the sizes of edges into shares of the total size of all edges into the same node.

    Where that total is 0, the edges that exist have equal shares.

    Args:
        sizes: residual (T,), attention (H, T, S) or None, mlp (M, T) or None.
        existing: returns which edges exist, bool: residual (T,), attention (T, S), mlp (M, T). It
            is called only where a total is 0.
    """
    total = _sums(sizes)  # (T,)
    empty = total < TINY
    if bool(empty.any()):
        there = existing()
        sizes = PerLevel(
            *(
                None if size is None else torch.where(per_target(empty, size), on.to(size), size)
                for size, on in zip(sizes, there, strict=True)
            )
        )
        total = _sums(sizes)
    return PerLevel(*(None if size is None else size / per_target(total, size) for size in sizes))


def _sums(sizes: PerLevel) -> Tensor:
    """Sum over the incoming edges of each target, (T,)."""
    total = sizes.residual.clone()
    if sizes.attention is not None:
        total += sizes.attention.sum(dim=(0, 2))
    if sizes.mlp is not None:
        total += sizes.mlp.sum(dim=0)
    return total


def _separable(forward: ForwardPass, size: Callable[[Tensor], Tensor]) -> list[PerLevel]:
    """Compute each edge's importance from a size of its vector that scales with the vector.

    Args:
        size: maps vectors (..., D) to (...).
    """
    return _shares(forward, lambda edges: edges.sizes(size))


def _shares(forward: ForwardPass, sized: Callable[[LevelEdges], PerLevel]) -> list[PerLevel]:
    """Compute importances of all levels, as shares of the total size of the edges into each node.

    Args:
        sized: computes the size of each edge into a level.
    """
    return [shares(sized(edges), partial(forward.existing, edges.level)) for edges in forward.levels()]


# Sizes of vectors (..., D) that scale with the vector, so that a weight can be taken out of them.
SEPARABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda v: v.abs().sum(-1),
    "l2": lambda v: v.norm(dim=-1),
}
# Importances made of dot products with the target's node, and the norm that divides these.
ALONG: dict[str, str | None] = {"cosine": "l2", "projection": None}


def l1(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|e|_1 of the edge's vector e, as a share of its target node (arXiv 2601.22795, section 3)."""
    return _separable(forward, SEPARABLE["l1"])


def l2(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|e|_2 of the edge's vector e, as a share of its target node."""
    return _separable(forward, SEPARABLE["l2"])


def cosine(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|cos(e, n)| of the edge's vector e and its target node n, as a share of that node."""
    return _shares(forward, lambda edges: along_node(edges, unit=True))


def projection(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|<e, n>| of the edge's vector e and its target node n, as a share of that node."""
    return _shares(forward, lambda edges: along_node(edges, unit=False))


def along_node(edges: LevelEdges, unit: bool) -> PerLevel:
    """Compute |<e, n>| of each edge into a level, e its vector and n its target node.

    No vector is built: an attention edge's product is its weight times <n_t, W v_s>.

    Args:
        unit: whether to divide by |e|_2.
    """

    def along(vectors: Tensor) -> Tensor:  # (T, D) to (T,), one edge per target
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
    """max(0, |n|_1 - |n - e|_1) of the edge's vector e and its target node n, as a share of n.

    This is the importance of information flow routes (arXiv 2403.00824, section 2). It is not
    separable, so vectors are built, for a few targets or neurons at a time.
    """
    return _shares(forward, _proximity)


def _proximity(edges: LevelEdges) -> PerLevel:
    """Compute max(0, |n|_1 - |n - e|_1) of each edge into a level."""

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
    """Draw uniform numbers in (0, 1], (size,) float32, the same for the same seed everywhere."""
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    return (1.0 - generator.random(size)).astype(numpy.float32)
