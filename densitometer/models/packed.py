"""Many variants of one input, run with only the rows that can matter, each distinct one once.

The model's own forward sees one input; inside the decoder blocks the variants' residual streams are the rows of one
table, and an index says which row is whose:

    stream of variant b at token t  =  table[index[b, t]]

A stream into which no edge leads is the same constant in all variants (the biases; often zero), so all of them are one
row, the last. Before the first block every variant has the same rows. Norms, projections and MLPs work row by row and
are called on the rows that are needed:

    keys and values   of the tokens up to the last that asks, in variants where any asks. A row without edges counts:
                      under recomputed attention its key still takes part in the softmax
    queries, output   of the tokens into which an attention edge leads
    MLP               of the tokens whose MLP edge is on

That a model's modules do work row by row is not assumed: the adapter compares this with a run in which nothing is
skipped before it is used (`Adapter.packs`).

Axes: B variants, T target tokens, S source tokens, N rows of a table, P rows that a call of the attention module gets,
A variants that ask, Q tokens that ask (of one variant, padded), H query heads, G key-value heads, K key head size,
V value head size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention import Queries, Run
from .blocks import Block, BlockMask, first, instance_attribute, mlp_branch, scaled

# What a decoder block hands to its attention besides the stream, and the axis of its tokens. A tensor under any other
# name may or may not belong to tokens, so a model that hands one over is run without skipping.
_TOKEN_AXIS = {"position_embeddings": 1, "position_ids": 1, "cache_position": 0}
_OF_ALL_TOKENS = ("attention_mask",)


class NotPackedError(Exception):
    """This model cannot be run on packed rows."""


@dataclass(frozen=True)
class Rows:
    """Residual streams of B variants: `table[index[b, t]]`.

    Args:
        table: (N + 1, D); the last row is the stream into which no edge leads.
        index: (B, T) int64.
    """

    table: Tensor
    index: Tensor

    def at(self, where: Tensor) -> Tensor:
        """The rows (n, D) at the True places of a mask (B, T), in order."""
        return self.table[self.index[where]]


def _rows(live: Tensor, values: Tensor, constant: Tensor, stream_of: Callable[..., Tensor]) -> Rows:
    """Streams of these sums (n, D) at the n live places (B, T), and the constant (1, D) elsewhere."""
    index = torch.full(live.shape, len(values), device=live.device)
    index[live] = torch.arange(len(values), device=live.device)
    return Rows(stream_of(torch.cat([values, constant])[None])[0], index)


def packed_add_up(
    block: Block, table: Tensor, index: Tensor, arguments: dict[str, Any], mask: BlockMask, run: Run
) -> Rows:
    """`blocks.add_up` with boolean masks, row by row.

    Args:
        table, index: the streams into the block.
        arguments: what the block hands to its attention, for one input.
        run: the state that the attention function reads.
    """
    stream = Rows(table, index.to(table.device))
    attention = _attention_rows(block, stream, arguments, mask, run)
    constant = attention.table[-1:]
    into_attention = attention.index < len(attention.table) - 1
    attention_scale, mlp_scale = block.residual_scales
    if block.layout.parallel:
        live = mask.residual_mlp | into_attention | mask.mlp
        out = scaled(stream.at(live), mlp_scale) * _of(mask.residual_mlp, live, table) + attention.at(live)
        return _rows(live, _plus_mlp(block, out, live, stream, mask.mlp), constant, block.stream_out)
    assert mask.residual_attention is not None
    live = mask.residual_attention | into_attention
    residual = scaled(stream.at(live), attention_scale) * _of(mask.residual_attention, live, table)
    mid = _rows(live, residual + attention.at(live), constant, block.child(block.layout.attention_sum_norm))
    live = mask.residual_mlp | mask.mlp
    out = scaled(mid.at(live), mlp_scale) * _of(mask.residual_mlp, live, table)
    return _rows(
        live, _plus_mlp(block, out, live, mid, mask.mlp), torch.zeros_like(constant), block.stream_out
    )


def _of(mask: Tensor, live: Tensor, like: Tensor) -> Tensor:
    """A mask (B, T) at the live places, as a column (n, 1) of numbers."""
    return mask[live][:, None].to(like.dtype)


def _plus_mlp(block: Block, out: Tensor, live: Tensor, stream: Rows, on: Tensor) -> Tensor:
    """Add the MLP's output, where its edge is on, to the live rows (n, D)."""
    if not bool(on.any()):
        return out
    return out.index_add_(0, on[live].nonzero()[:, 0], mlp_branch(block, stream.at(on)[None])[0])


def _attention_rows(block: Block, stream: Rows, arguments: dict[str, Any], mask: BlockMask, run: Run) -> Rows:
    """What the attention adds, at the tokens into which an attention edge leads; elsewhere its constant."""
    tiled = not isinstance(mask.attention, Tensor)
    asks = mask.attention.asks if tiled else mask.attention.any(dim=-1).any(dim=1)  # (B, T)
    n_tokens = asks.shape[1]
    variants = asks.any(dim=1).nonzero()[:, 0]  # (A,)
    counts = asks[variants].sum(dim=1)
    places = torch.arange(n_tokens, device=asks.device)
    if len(variants):
        most, reach = int(counts.max()), int(asks.any(dim=0).nonzero().max()) + 1
    else:
        most, reach = 0, 1  # one row, to learn the constant
    # (A, Q): the tokens that ask, first to last; where a variant has fewer, others pad it and are not read
    tokens = (~asks[variants]).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    valid = torch.arange(most, device=asks.device) < counts[:, None]
    # distinct pairs of row and position among the sources that the asking variants have
    sources = stream.index[variants, :reach] if len(variants) else stream.index[:1, :reach]
    pairs, place = (sources * n_tokens + places[:reach]).unique(return_inverse=True)
    row, position = pairs // n_tokens, pairs % n_tokens
    queries = Queries(block.index, place[: len(variants)], tokens, valid, mask, variants)
    normed = block.child(block.layout.attention_norm)(stream.table[row][None])
    projection = block.projection
    forward = projection.forward

    def project(ones: Tensor) -> Tensor:
        heads = queries.heads  # (1, n + 1, H V)
        if heads is None:
            raise NotPackedError("the attention function was not called")
        if block.gated:  # what came of the ones that the attention function returned is the gate
            gate = ones[0, queries.sources.gather(1, tokens)[valid]]
            heads = torch.cat([heads[:, :-1] * gate, heads[:, -1:]], dim=1)
        return forward(heads)  # (1, n + 1, D)

    run.queries = queries
    try:
        with instance_attribute(projection, "forward", project):
            output = first(block.attention(normed, **_at_positions(arguments, position, n_tokens)))
            output = block.child(block.layout.attention_projection)(output)
    finally:
        run.queries = None
    output = block.child(block.layout.attention_branch_norm)(output)
    output = output * block.multiplier if block.layout.multiplier else output
    if output.shape[1] != int(valid.sum()) + 1:
        raise NotPackedError("the attention does not return what its output projection wrote")
    index = torch.full_like(stream.index, output.shape[1] - 1)
    index[variants[:, None].expand_as(tokens)[valid], tokens[valid]] = torch.arange(
        output.shape[1] - 1, device=index.device
    )
    return Rows(output[0], index)


def _at_positions(arguments: dict[str, Any], position: Tensor, n_tokens: int) -> dict[str, Any]:
    """The arguments of an attention module, as if the tokens at these positions (P,) were its input."""

    def gathered(name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(gathered(name, part) for part in value)
        if not isinstance(value, Tensor) or name in _OF_ALL_TOKENS:
            return value
        axis = _TOKEN_AXIS.get(name)
        if axis is None or value.shape[axis] != n_tokens:
            raise NotPackedError(f"the attention takes a tensor {name!r} of shape {tuple(value.shape)}")
        return value.index_select(axis, position.to(value.device))

    return {name: gathered(name, value) for name, value in arguments.items()}
