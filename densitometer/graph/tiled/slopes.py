"""Gradients of the prediction for long inputs: what `fisher` and `bound` are made of, without any array of tokens by tokens.

`importance/gradients.py` has the formulas. There the masks of all edges are leaves of one graph. Here gradients stop at the nodes
and at the heads' outputs, which are O(T) numbers, and the slope of an edge's mask follows from them (K projections c_k of
the logits z):

    residual, MLP edge      d (c_k . z) / d m_e = <e, g_kt>,        g the gradient of the target node
    attention edge          d (c_k . z) / d m_e = a_hts <v_s, u_kht>,  u the gradient of the head's output, a its weight

The model is run once, and then each block again from the last to the first, as its gradients are taken
(`Adapter.walk_back`): the graph of one block is in memory at a time.

Axes: K projections, T targets, S sources, H query heads, G key-value heads, V value size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.adapter import BlockGraph
from ...models.loading import Model
from ..importance.gradients import fisher_directions, gradients_of


@dataclass(frozen=True)
class BlockSlopes:
    """Gradients of one block, float32.

    Args:
        residual, mlp: root-mean-square slopes over the projections of the residual edges of each level, and of
            the MLP's edge, (T,) each.
        nodes: root-mean-square norms of the gradients of each level's nodes, (T,) each.
        heads: (K, H, T, V), gradients of the heads' outputs.
        values: (G, S, V).
    """

    residual: tuple[Tensor, ...]
    mlp: Tensor
    nodes: tuple[Tensor, ...]
    heads: Tensor
    values: Tensor

    def attention(self, weights: Tensor, targets: slice, sources: slice) -> Tensor:
        """Root-mean-square slopes of the attention edges of a tile, (H, t, s), from its weights (H, t, s) float32."""
        n_heads, n_targets, n_sources = weights.shape
        values = self.values[:, sources].transpose(1, 2)  # (G, V, s)
        squares = torch.zeros_like(weights)
        for gradient in self.heads[:, :, targets]:  # (H, t, V)
            grouped = gradient.reshape(len(values), n_heads // len(values) * n_targets, -1)  # (G, H / G t, V)
            along = torch.matmul(grouped, values).view(n_heads, n_targets, n_sources)
            squares.addcmul_(along, along)
        return squares.div_(len(self.heads)).sqrt_().mul_(weights)


def block_slopes(model: Model, ids: Sequence[int], tile_targets: int, eps: Tensor) -> list[BlockSlopes]:
    """Take the gradients of every block, first to last, along projections eps (K, vocabulary).

    Raises:
        ModelError: a layer passes no gradient.
    """
    found: list[BlockSlopes] = []

    def start(logits: Tensor, stream: Tensor) -> Tensor:
        directions = fisher_directions(logits, eps.to(logits.device))
        return _slopes(logits, [stream], directions)[0]

    def visit(graph: BlockGraph, gradients: Tensor) -> Tensor:
        did = graph.did
        nodes = [did[name] for name in ("attention_sum", "mlp_sum") if did[name] is not None]
        edges = [did[name] for name in ("residual_attention", "residual_mlp") if did[name] is not None]
        *of_nodes, heads, onward = _slopes(graph.out, [*nodes, did["heads"], graph.stream], gradients)
        found.append(
            BlockSlopes(
                residual=tuple(_along(edge, g) for edge, g in zip(edges, of_nodes, strict=True)),
                mlp=_along(did["mlp"], of_nodes[-1]),
                nodes=tuple(g.float().square().sum((1, 3)).mean(0).sqrt() for g in of_nodes),
                heads=heads[:, 0].float().transpose(1, 2).contiguous(),
                values=did["values"][0].detach().float(),
            )
        )
        return onward

    with model.adapter.differentiable():
        model.adapter.walk_back(ids, tile_targets, start, visit)
    return found[::-1]


def _slopes(output: Tensor, inputs: Sequence[Tensor], directions: Tensor) -> list[Tensor]:
    """Gradients d (direction . output) / d inputs, (K, ...) each."""
    last = len(directions) - 1
    each = [gradients_of(output, inputs, d, retain_graph=k < last) for k, d in enumerate(directions)]
    return [torch.stack(some) for some in zip(*each, strict=True)]


def _along(vectors: Tensor, gradients: Tensor) -> Tensor:
    """Root mean square over K of <vector, gradient>, (T,): vectors (1, T, D), gradients (K, 1, T, D)."""
    return (vectors.detach().float() * gradients.float()).sum(-1).square().mean(0)[0].sqrt()
