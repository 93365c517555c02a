"""What one decoder block costs, per token and head: floating-point operations and parameters.

Counting rules. One multiply-add is two operations. Matrix products and attention are counted; norms, rotary
embeddings, softmax, activations and biases are not, as in `torch.utils.flop_counter`. The MLP is counted by running it
on one token under that counter (so a mixture of experts counts the experts that run). The attention's input projections
are counted by their weights and split between queries, keys and values in proportion to their head sizes. A quantised
layer counts as the matrix that it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

from .blocks import Block
from .weights import n_parameters


@dataclass(frozen=True)
class BlockCost:
    """Costs of one block. Operations are per head and token (MLP: per token), parameters per head (MLP: all).

    The cost of a key or value head is per key-value head; `score` and `mix` are operations per attention edge and head.
    """

    n_groups: int
    query_flops: float
    key_flops: float
    value_flops: float
    output_flops: float
    score_flops: float
    mix_flops: float
    mlp_flops: float
    query_parameters: float
    key_parameters: float
    value_parameters: float
    output_parameters: float
    mlp_parameters: float


def block_cost(block: Block, n_heads: int, n_groups: int, key_size: int, value_size: int) -> BlockCost:
    """Count a block.

    Args:
        n_heads: query heads; n_groups: key-value heads; key_size, value_size: their sizes.
    """
    into = n_parameters(block.attention, matrices_only=True, without=block.projection)
    output = n_parameters(block.projection, matrices_only=True)
    widths = (n_heads * key_size, n_groups * key_size, n_groups * value_size)
    query, key, value = (into * width / sum(widths) for width in widths)
    mlp = (*block.layout.mlp, *block.layout.mlp_beside)
    mlp_parameters = sum(n_parameters(block.module.get_submodule(name)) for name in mlp)
    return BlockCost(
        n_groups=n_groups,
        query_flops=2 * query / n_heads,
        key_flops=2 * key / n_groups,
        value_flops=2 * value / n_groups,
        output_flops=2 * output / n_heads,
        score_flops=2 * key_size,
        mix_flops=2 * value_size,
        mlp_flops=block.mlp_flops,
        query_parameters=query / n_heads,
        key_parameters=key / n_groups,
        value_parameters=value / n_groups,
        output_parameters=output / n_heads,
        mlp_parameters=mlp_parameters,
    )
