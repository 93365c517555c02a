"""Gradients of the prediction for long inputs, from which `fisher` and `bound` are computed.

Their formulas are in `importance/gradients.py`. There the mask m_e of every edge is a leaf of one
autograd graph, whose size grows with the square of the tokens. Here gradients stop at the nodes and
at the heads' outputs, which are O(T) numbers. The slope of an edge's mask follows from these, for
each of K projections c_k of the logits z:

    residual or MLP edge    d (c_k . z) / d m_e = <e, g_kt>
    attention edge          d (c_k . z) / d m_e = a_hts <v_s, u_kht>

e is the edge's vector, g the gradient of its target node, a the attention weight, v the source's
value, and u the gradient of the head's output. With a counterfactual, the edge's vector there is
subtracted: e - e' takes the place of e, and a v - a' v' that of a v.

The model is run once. Then each block is run again, from the last to the first, and its gradients
are taken (`Adapter.walk_back`). So the autograd graph of only one block is in memory at a time.

Axes: K projections, T targets, S sources, H query heads, G key-value heads, V value size,
D hidden size, M units of an MLP, t targets and s sources of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.adapter import BlockGraph
from ...models.blocks import BlockOfAnotherRun, Tile
from ...models.loading import Model
from ...models.units import Units
from ..forward_pass import mlp_edges
from ..importance.gradients import directions_of, gradients_of
from ..targets import TargetScore


@dataclass(frozen=True)
class BlockSlopes:
    """Gradients of one block, float32. A root mean square is over the K projections.

    Args:
        residual: for each level, (T,), root mean square of the slopes of the residual edges.
        mlp: (M, T), root mean square of the slopes of the MLP edges.
        nodes: for each level, (T,), root mean square of the norms of its nodes' gradients.
        heads: (K, H, T, V), gradients of the heads' outputs.
        values: (G, S, V), the values of the recorded run.
    """

    residual: tuple[Tensor, ...]
    mlp: Tensor
    nodes: tuple[Tensor, ...]
    heads: Tensor
    values: Tensor

    def attention(self, weights: Tensor, tile: Tile, other: BlockOfAnotherRun | None = None) -> Tensor:
        """Root-mean-square slopes of the attention edges of a tile, (H, t, s) float32.

        Args:
            weights: (H, t, s) float32, the tile's attention weights.
            other: the values and weights of the counterfactual; None without one.
        """
        values, squares = self.values[:, tile.sources], torch.zeros_like(weights)
        there = (
            None if other is None else (other.weights(tile).float(), other.values[:, tile.sources].float())
        )
        # one projection at a time: all of them would be K times as large as the tile
        for gradient in self.heads[:, :, tile.targets]:  # (H, t, V)
            slope = along_values(gradient, values)
            if there is not None:
                slope = slope.mul_(weights).sub_(along_values(gradient, there[1]).mul_(there[0]))
            squares.addcmul_(slope, slope)
        root = squares.div_(len(self.heads)).sqrt_()
        return root.mul_(weights) if there is None else root


def along_values(directions: Tensor, values: Tensor) -> Tensor:
    """Dot product of each target's direction with each source's value, head by head, (H, t, s).

    Args:
        directions: (H, t, V), one per head and target.
        values: (G, s, V), one per key-value head and source.
    """
    n_heads, n_targets, _ = directions.shape
    # the heads of a group have the same values: (G, H / G t, V)
    grouped = directions.reshape(len(values), n_heads // len(values) * n_targets, -1)
    return torch.matmul(grouped, values.transpose(1, 2)).view(n_heads, n_targets, -1)


def block_slopes(
    model: Model,
    ids: Sequence[int],
    tile_targets: int,
    eps: Tensor,
    units: Sequence[Units | None],
    target: TargetScore | None = None,
    others: Sequence[BlockOfAnotherRun] | None = None,
) -> list[BlockSlopes]:
    """Compute the gradients of every block along random projections of the logits.

    Args:
        model: the model.
        ids: token ids of the input.
        tile_targets: number of targets whose attention weights are computed at a time.
        eps: (K, vocabulary), the random numbers of the projections.
        units: for each block, the units of its MLP; None where the whole MLP is one edge.
        target: function of the logits whose gradient is taken instead of the projections; None to
            use the projections.
        others: for each block, the vectors of its edges in the counterfactual; None without one.

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
        did, block = graph.did, graph.block
        nodes = [did[name] for name in ("attention_sum", "mlp_sum") if did[name] is not None]
        # K gradients of each node, of the heads' outputs, and of the stream into the block
        *of_nodes, heads, onward = _slopes(graph.out, [*nodes, did["heads"], graph.stream], gradients)

        def lost(name: str) -> Tensor:
            """Return what the stream loses if an edge is off, e or e - e', (T, D)."""
            here: Tensor = did[name].detach()[0]
            return here if others is None else here.float() - getattr(others[block.index], name).float()

        edges = [lost(name) for name in ("residual_attention", "residual_mlp") if did[name] is not None]
        with torch.no_grad():
            mlp, _ = mlp_edges(block, lambda: _mlp_stream(graph), lost("mlp"), units[block.index])
        blocks.append(
            BlockSlopes(
                residual=tuple(_along(edge, g) for edge, g in zip(edges, of_nodes, strict=True)),
                mlp=_root_mean_square(torch.stack([mlp.along(g[0].float()) for g in of_nodes[-1]])),
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


def _mlp_stream(graph: BlockGraph) -> Tensor:
    """Compute the stream that a block's MLP read, (T, D)."""
    block, summed = graph.block, graph.did["attention_sum"]
    if summed is None:
        return graph.stream[0].detach()
    mid: Tensor = block.child(block.layout.attention_sum_norm)(summed)[0]
    return mid


def _along(vectors: Tensor, gradients: Tensor) -> Tensor:
    """Root mean square over K projections of <vector, gradient>, (T,).

    Args:
        vectors: (T, D).
        gradients: (K, 1, T, D).
    """
    return _root_mean_square((vectors.float() * gradients[:, 0].float()).sum(-1))


def _root_mean_square(slopes: Tensor) -> Tensor:
    """Root mean square over K projections of slopes (K, ...)."""
    return slopes.square().mean(0).sqrt()
