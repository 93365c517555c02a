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
    MLP               of the tokens that have an MLP edge on, all of whose units run

Which rows these are follows from the masks alone, so it is planned beforehand, for all blocks, on the CPU (`plan_rows`); on
the device nothing waits for a number. Where nearly every row lives, skipping the rest does not pay (`pays`).

That a model's modules do work row by row is not assumed: the adapter compares this with a run in which nothing is
skipped before it is used (`Adapter.packs`).

Axes: B variants, T target tokens, S source tokens, N rows of a table, P rows that a call of the attention module gets,
A variants that ask, Q tokens that ask (of one variant, padded), n of them all, H query heads, G key-value heads, K key
head size, V value head size, M units of the MLP, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy
import torch
from torch import Tensor

from .attention import Asking, Queries, Run
from .blocks import Block, BlockMask, first, instance_attribute, mlp_branch, scaled

# What a decoder block hands to its attention besides the stream, and the axis of its tokens. A tensor under any other
# name may or may not belong to tokens, so a model that hands one over is run without skipping.
_TOKEN_AXIS = {"position_embeddings": 1, "position_ids": 1, "cache_position": 0}
_OF_ALL_TOKENS = ("attention_mask",)

# Variants are padded to one number of asking tokens, bucket by bucket. A further bucket must save this many weights.
WEIGHTS_PER_BUCKET = 2**12


# What skipping rows costs (`pays`), fitted on the CPU to runs of the bundled models (D = 192) of 40 to 1,040 rows
# and checked at D = 1,024 (dev/LOG.md, 2026-11-25).
ONCE = 1230.0
PER_ROW = 118.0


class NotPackedError(Exception):
    """Raised where a model cannot be run on packed rows."""


class Sum(NamedTuple):
    """The n live nodes of a level: what is added into each.

    Arrays are int64, or bool where noted.

    stream (n,): rows of the stream into the level; kept (n,) bool: whether its residual edge is on; attention (n,): rows of
    what the attention adds, the last where it adds its constant.
    """

    stream: Any
    kept: Any
    attention: Any


class OfMLP(NamedTuple):
    """The m tokens with an MLP edge on.

    Rows (m,) of the stream that the MLP reads, places (m,) among the live nodes that it is added
    to, and which variant (m,) and token (m,) each is.
    """

    rows: Any
    places: Any
    variants: Any
    tokens: Any


class BlockPlan(NamedTuple):
    """What one decoder block computes.

    rows (P,), positions (P,): the rows of its table that its attention module gets, and where they stand in the text.
    askings: which of them ask, bucket by bucket. mid: the sum of stream and attention, None in a parallel block. out: the
    block's last sum. mlp: who has an MLP edge on.
    """

    rows: Any
    positions: Any
    askings: tuple[Asking, ...]
    mid: Sum | None
    out: Sum
    mlp: OfMLP


@dataclass(frozen=True)
class RowPlan:
    """What all blocks compute for some masks.

    Args:
        index: (B, T) int64, the row of each stream out of the last block.
    """

    blocks: tuple[BlockPlan, ...]
    index: numpy.ndarray


def pays(blocks: Sequence[Block], masks: Sequence[BlockMask]) -> bool:
    """Whether skipping rows is expected to cost less than it saves.

    In rows of a run that skips nothing, B x T of them: planning and gathering cost some once, and each row that lives costs
    more than it would there. Both weigh less in wide models, whose matrix products cost more. The share of rows that live
    is taken to be that of tokens that ask and of tokens with an MLP edge.
    """
    n_rows = masks[0].residual_mlp.numel()
    once = (ONCE / blocks[0].hidden_size) ** 2
    if once >= n_rows:
        return False
    live = sum(int(_asks(mask).sum()) + int(_any(_host(mask.mlp), 1).sum()) for mask in masks)
    share = live / (2 * len(blocks) * n_rows)
    return once + share * n_rows * (1 + PER_ROW / blocks[0].hidden_size) < n_rows


def plan_rows(blocks: Sequence[Block], masks: Sequence[BlockMask]) -> RowPlan:
    """Find the rows that the blocks need under boolean masks of B variants."""
    plans = []
    n_variants, _, n_tokens = masks[0].mlp.shape
    index = numpy.broadcast_to(numpy.arange(n_tokens), (n_variants, n_tokens))
    for block, mask in zip(blocks, masks, strict=True):
        plan, index = plan_block(block, mask, index)
        plans.append(plan)
    return RowPlan(tuple(plans), index)


def plan_block(block: Block, mask: BlockMask, index: numpy.ndarray) -> tuple[BlockPlan, numpy.ndarray]:
    """Plan one block, from the rows (B, T) of the streams into it.

    Also return the rows of the streams out of it.
    """
    asks = _asks(mask)
    residual = _host(mask.residual_mlp)
    mlp = _any(_host(mask.mlp), 1)
    rows, positions, askings, added = _plan_attention(asks, index, isinstance(mask.attention, Tensor))
    mid, stream, live = None, index, residual | mlp
    if block.layout.parallel:
        live |= asks
        out = Sum(index[live], residual[live], added[live])
    else:
        assert mask.residual_attention is not None
        into_mid = _host(mask.residual_attention)
        live_mid = into_mid | asks
        mid = Sum(index[live_mid], into_mid[live_mid], added[live_mid])
        stream = _numbered(live_mid)
        out = Sum(stream[live], residual[live], numpy.empty(0, dtype=numpy.int64))
    variants, tokens = mlp.nonzero()
    of_mlp = OfMLP(stream[mlp], mlp[live].nonzero()[0], variants, tokens)
    return BlockPlan(rows, positions, askings, mid, out, of_mlp), _numbered(live)


def _plan_attention(
    asks: numpy.ndarray, index: numpy.ndarray, padded: bool
) -> tuple[numpy.ndarray, numpy.ndarray, tuple[Asking, ...], numpy.ndarray]:
    """Rows (P,) and positions (P,) of the call, the askings, and the row (B, T) of what the attention adds.

    Args:
        padded: whether variants are padded to one number of tokens, so that buckets save work; tiles are not.
    """
    n_tokens = asks.shape[1]
    counts = asks.sum(axis=1)
    by_count = numpy.argsort(counts, kind="stable")[(counts == 0).sum() :]
    ranges = _buckets(counts[by_count], n_tokens) if padded else [(0, len(by_count))][: len(by_count)]
    buckets = [by_count[start:stop] for start, stop in ranges]
    reaches = [int(_any(asks[bucket], 0).nonzero()[0].max()) + 1 for bucket in buckets]
    # distinct pairs of row and position among the sources of the variants that ask; one row, to learn the constant, if none
    pairs = [
        (index[bucket, :reach] * n_tokens + numpy.arange(reach)).ravel()
        for bucket, reach in zip(buckets, reaches, strict=True)
    ]
    distinct, places = numpy.unique(
        numpy.concatenate(pairs) if pairs else index[:1, 0] * n_tokens, return_inverse=True
    )
    added = numpy.full(asks.shape, asks.sum())
    askings, start, n_asked = [], 0, 0
    for bucket, reach in zip(buckets, reaches, strict=True):
        stop = start + len(bucket) * reach
        sources = places[start:stop].reshape(len(bucket), reach)
        # the tokens that ask, first to last; where a variant has fewer, others pad it and are not read
        tokens = numpy.argsort(~asks[bucket], axis=1, kind="stable")[:, : counts[bucket].max()]
        asked = (numpy.arange(tokens.shape[1]) < counts[bucket, None]).ravel().nonzero()[0]
        askings.append(
            Asking(bucket[:, None], tokens, numpy.take_along_axis(sources, tokens, axis=1), sources, asked)
        )
        added[numpy.repeat(bucket, counts[bucket]), tokens.ravel()[asked]] = n_asked + numpy.arange(
            len(asked)
        )
        start, n_asked = stop, n_asked + len(asked)
    return distinct // n_tokens, distinct % n_tokens, tuple(askings), added


def _buckets(counts: numpy.ndarray, n_tokens: int) -> list[tuple[int, int]]:
    """Ranges of rising counts (A,) that are padded to one: cut in two where that saves most, while it saves enough."""
    if not len(counts):
        return []
    places = numpy.arange(1, len(counts))
    saved = places * (counts[-1] - counts[:-1]) * n_tokens
    best = int(saved.argmax()) + 1 if len(places) else 0
    if not best or saved[best - 1] < WEIGHTS_PER_BUCKET:
        return [(0, len(counts))]
    lower, upper = _buckets(counts[:best], n_tokens), _buckets(counts[best:], n_tokens)
    return lower + [(start + best, stop + best) for start, stop in upper]


def _numbered(live: numpy.ndarray) -> numpy.ndarray:
    """The row of each stream: the live ones in order, the rest the one after them."""
    index = numpy.full(live.shape, live.sum())
    index[live] = numpy.arange(live.sum())
    return index


def _host(mask: Tensor) -> numpy.ndarray:
    return mask.cpu().numpy()


def _asks(mask: BlockMask) -> numpy.ndarray:
    """Tokens into which an attention edge leads, (B, T)."""
    if not isinstance(mask.attention, Tensor):
        return _host(mask.attention.asks)
    return _any(_any(_host(mask.attention), 1), -1)  # heads first, which is several times faster


def _any(mask: numpy.ndarray, axis: int) -> numpy.ndarray:
    some: numpy.ndarray = numpy.logical_or.reduce(mask, axis=axis)
    return some


Planned = TypeVar("Planned")


def _on(device: torch.device, planned: Planned) -> Planned:
    """A plan with its arrays as tensors on a device."""
    if isinstance(planned, numpy.ndarray):
        return torch.from_numpy(numpy.ascontiguousarray(planned)).to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(planned, tuple):
        parts = [_on(device, part) for part in planned]
        return type(planned)(*parts) if hasattr(planned, "_fields") else tuple(parts)  # type: ignore[return-value]
    return planned


def packed_add_up(
    block: Block, table: Tensor, plan: BlockPlan, arguments: dict[str, Any], mask: BlockMask, run: Run
) -> Tensor:
    """Compute `blocks.add_up` with boolean masks, row by row.

    Args:
        table: (N, D), the streams into the block.
        arguments: what the block hands to its attention, for one input.
        run: the state that the attention function reads.

    Returns:
        (N, D), the streams out of it.
    """
    plan = _on(table.device, plan)
    attention = _attention_rows(block, table, plan, arguments, mask, run)
    constant = attention[-1:]
    scale_of_attention, scale_of_mlp = block.residual_scales
    if plan.mid is None:
        stream = table
        out = _kept(table, plan.out, scale_of_mlp) + attention.index_select(0, plan.out.attention)
    else:
        mid = _kept(table, plan.mid, scale_of_attention) + attention.index_select(0, plan.mid.attention)
        stream = block.child(block.layout.attention_sum_norm)(torch.cat([mid, constant])[None])[0]
        out, constant = _kept(stream, plan.out, scale_of_mlp), torch.zeros_like(constant)
    out, constant = _plus_mlp(block, out, constant, stream, plan.mlp, mask)
    return block.stream_out(torch.cat([out, constant])[None])[0]


def _kept(table: Tensor, into: Sum, scale: Tensor | None) -> Tensor:
    """The streams (n, D) of live nodes, zero where their residual edge is off."""
    return scaled(table.index_select(0, into.stream), scale).mul_(into.kept[:, None])


def _plus_mlp(
    block: Block, out: Tensor, constant: Tensor, stream: Tensor, plan: OfMLP, mask: BlockMask
) -> tuple[Tensor, Tensor]:
    """Add the MLP's output to the live rows (n, D) that have an MLP edge on.

    What the MLP adds anyway goes to all rows, and to the constant (1, D).
    """
    if mask.units is None:
        added = mlp_branch(block, stream.index_select(0, plan.rows)[None])[0] if len(plan.rows) else out[:0]
        return out.index_add_(0, plan.places, added), constant
    units = mask.mlp[plan.variants, :, plan.tokens]  # (m, M)
    units = torch.cat([units, units.new_zeros(1, units.shape[1])])
    streams = torch.cat(
        [stream.index_select(0, plan.rows), stream[-1:]]
    )  # one more, to learn what no unit adds
    added = mlp_branch(block, streams[None], mask.units, units.T[None])[0]
    every = added[-1:].expand_as(out).index_copy(0, plan.places, added[:-1])
    return out + every, constant + added[-1:]


def _attention_rows(
    block: Block, table: Tensor, plan: BlockPlan, arguments: dict[str, Any], mask: BlockMask, run: Run
) -> Tensor:
    """What the attention adds at the query tokens, and last its constant, (n + 1, D)."""
    queries = Queries(block.index, plan.askings, mask)
    normed = block.child(block.layout.attention_norm)(table.index_select(0, plan.rows)[None])
    projection = block.projection
    forward = projection.forward

    def project(ones: Tensor) -> Tensor:
        heads = queries.heads  # (1, n + 1, H V)
        if heads is None:
            raise NotPackedError("the attention function was not called")
        if block.gated:  # what came of the ones that the attention function returned is the gate
            gates = [ones[0, asking.queries.flatten()[asking.asked]] for asking in plan.askings]
            heads = torch.cat([heads[:, :-1] * torch.cat([*gates, ones[0, :0]]), heads[:, -1:]], dim=1)
        return forward(heads)  # (1, n + 1, D)

    run.queries = queries
    try:
        with instance_attribute(projection, "forward", project):
            inputs = [normed] * block.layout.attention_inputs
            output = first(block.attention(*inputs, **_at_positions(arguments, plan.positions)))
            output = block.child(block.layout.attention_projection)(output)
    finally:
        run.queries = None
    output = block.child(block.layout.attention_branch_norm)(output)
    output = output * block.multiplier if block.layout.multiplier else output
    if output.shape[1] != 1 + sum(len(asking.asked) for asking in plan.askings):
        raise NotPackedError("the attention does not return what its output projection wrote")
    return output[0]


def _at_positions(arguments: dict[str, Any], positions: Tensor) -> dict[str, Any]:
    """The arguments of an attention module, as if the tokens at these positions (P,) were its input."""
    mask = arguments.get("attention_mask")
    n_tokens = mask.shape[-2] if isinstance(mask, Tensor) else None

    def gathered(name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(gathered(name, part) for part in value)
        if not isinstance(value, Tensor) or name in _OF_ALL_TOKENS:
            return value
        axis = _TOKEN_AXIS.get(name)
        if axis is None or (n_tokens is not None and value.shape[axis] != n_tokens):
            raise NotPackedError(f"the attention takes a tensor {name!r} of shape {tuple(value.shape)}")
        return value.index_select(axis, positions.to(value.device))

    return {name: gathered(name, value) for name, value in arguments.items()}
