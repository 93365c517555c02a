"""Gradients of the prediction for long inputs, which `fisher` and `bound` are made of.

Their formulas are in `importance/gradients.py`. There the mask m_e of every edge is a leaf of one
autograd graph, whose size grows with the square of the tokens. Here gradients stop at the nodes and
at the heads' outputs, which are O(T) numbers. The slope of an edge's mask follows from these, for
each of K projections c_k of the logits z:

    residual or MLP edge    d (c_k . z) / d m_e = <e, g_kt>
    attention edge          d (c_k . z) / d m_e = a_hts <v_s, u_kht>

e is the edge's vector, g the gradient of its target node, a the attention weight, v the source's
value, and u the gradient of the head's output.

The model is run once. Then each block is run again, from the last to the first, and its gradients
are taken (`Adapter.walk_back`). So the autograd graph of only one block is in memory at a time.

Axes: K projections, T targets, S sources, H query heads, G key-value heads, V value size,
D hidden size, t targets and s sources of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.adapter import BlockGraph
from ...models.loading import Model
from ..importance.gradients import directions_of, gradients_of
from ..targets import TargetScore


@dataclass(frozen=True)
class BlockSlopes:
    """Gradients of one block, float32. Means of squares are over the projections.

    Args:
        residual: of each level, root-mean-square slopes of the residual edges, (T,).
        mlp: root-mean-square slopes of the MLP edges, (T,).
        nodes: of each level, root-mean-square norms of the gradients of its nodes, (T,).
        heads: (K, H, T, V), gradients of the heads' outputs.
        values: (G, S, V), the values of the recorded run.
    """

    residual: tuple[Tensor, ...]
    mlp: Tensor
    nodes: tuple[Tensor, ...]
    heads: Tensor
    values: Tensor

    def attention(self, weights: Tensor, targets: slice, sources: slice) -> Tensor:
        """Root-mean-square slopes of the attention edges of a tile, (H, t, s) float32.

        Args:
            weights: (H, t, s) float32, the tile's attention weights.
            targets: target tokens of the tile.
            sources: source tokens of the tile.
        """
        n_heads, n_targets, n_sources = weights.shape
        values = self.values[:, sources].transpose(1, 2)  # (G, V, s)
        squares = torch.zeros_like(weights)  # (H, t, s), summed over the projections
        # one projection at a time: all of them would be K times as large as the tile
        for gradient in self.heads[:, :, targets]:  # (H, t, V)
            # the heads of a group have the same values: (G, H / G t, V)
            grouped = gradient.reshape(len(values), n_heads // len(values) * n_targets, -1)
            # <v_s, u_ht>, (H, t, s)
            along = torch.matmul(grouped, values).view(n_heads, n_targets, n_sources)
            squares.addcmul_(along, along)
        return squares.div_(len(self.heads)).sqrt_().mul_(weights)


def block_slopes(
    model: Model, ids: Sequence[int], tile_targets: int, eps: Tensor, target: TargetScore | None = None
) -> list[BlockSlopes]:
    """Take the gradients of every block along random projections of the logits.

    Args:
        tile_targets: how many targets' attention weights are computed at a time.
        eps: (K, vocabulary), the random numbers of the projections.
        target: takes the place of the projections; None for none.

    Returns:
        The gradients of each block, first to last.

    Raises:
        ModelError: a layer passes no gradient.
    """
    # last block first
    blocks: list[BlockSlopes] = []

    def start(logits: Tensor, stream: Tensor) -> Tensor:
        directions = directions_of(logits, eps.to(logits.device), target)
        return _slopes(logits, [stream], directions)[0]

    def visit(graph: BlockGraph, gradients: Tensor) -> Tensor:
        # a parallel block has no sum of its own for the attention
        did = graph.did
        nodes = [did[name] for name in ("attention_sum", "mlp_sum") if did[name] is not None]
        edges = [did[name] for name in ("residual_attention", "residual_mlp") if did[name] is not None]
        *of_nodes, heads, onward = _slopes(graph.out, [*nodes, did["heads"], graph.stream], gradients)
        blocks.append(
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
    return blocks[::-1]


def _slopes(output: Tensor, inputs: Sequence[Tensor], directions: Tensor) -> list[Tensor]:
    """Gradients d (direction . output) / d input for K directions, (K, ...) for each input."""
    last = len(directions) - 1
    # the autograd graph is freed with the last direction
    each = [gradients_of(output, inputs, d, retain_graph=k < last) for k, d in enumerate(directions)]
    return [torch.stack(some) for some in zip(*each, strict=True)]


def _along(vectors: Tensor, gradients: Tensor) -> Tensor:
    """Root mean square over K projections of <vector, gradient>, (T,).

    Args:
        vectors: (1, T, D).
        gradients: (K, 1, T, D).
    """
    return (vectors.detach().float() * gradients.float()).sum(-1).square().mean(0)[0].sqrt()
