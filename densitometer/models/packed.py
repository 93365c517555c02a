"""Run many variants of one input, with only the rows that can matter, and each distinct row once.

A variant is the input run under one mask. The model's own forward sees one input. Inside the
decoder blocks, the residual streams of all variants are the rows of one table, and an index says
which row is whose:

    stream of variant b at token t  =  table[index[b, t]]

A stream is *live* where an edge that is on leads into it; then it has a row. All other streams are
the same constant in all variants (the biases; often zero), and share one row, the last. Before the
first block every variant has the same rows. Norms, projections and MLPs work row by row, so each is
called on the rows that are needed:

    keys and values   of the tokens up to the last query token, in variants that have a query token.
                      A row without edges counts: under recomputed attention its key still takes
                      part in the softmax
    queries, output   of the query tokens: those into which an attention edge leads
    MLP               of the tokens that have an MLP edge on; all units run there

Steps:

1. `plan_rows` follows the masks through all blocks, on the CPU, and lists the rows of each block.
   Which rows these are depends on the masks alone, so the device never waits for a number.
2. `packed_add_up` computes one block on the rows that its plan lists.

Where nearly every row is live, skipping the rest costs more than it saves (`pays`).

What this file does not do: it does not assume that a model's modules work row by row. Before
packed rows are used, the adapter compares them with a run in which nothing is skipped
(`Adapter.packs`).

Axes: B variants, T target tokens, S source tokens, N rows of a table, P rows that one call of the
attention module gets, A variants in a bucket, Q query tokens of one variant (padded), n rows of a
list, H query heads, G key-value heads, K key head size, V value head size, M units of the MLP,
D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy
import torch
from torch import Tensor

from .attention import Queries, QueryBucket, Run
from .blocks import Block, BlockMask, first, instance_attribute, mlp_branch, scaled

# Tensors that a decoder block passes to its attention besides the stream, with the axis of their
# tokens. A tensor under any other name may or may not belong to tokens, so a model that passes one
# is run without skipping rows.
_TOKEN_AXIS = {"position_embeddings": 1, "position_ids": 1, "cache_position": 0}
_OF_ALL_TOKENS = ("attention_mask",)

# The variants of a bucket are padded to the same number of query tokens. One more bucket is made
# only where it saves at least this many attention weights.
WEIGHTS_PER_BUCKET = 2**12


# What skipping rows costs (`pays`). Both were fitted on the CPU to runs of the bundled models
# (D = 192) with 40 to 1,040 rows, and checked at D = 1,024 (dev/LOG.md, 2026-11-25).
ONCE = 1230.0
PER_ROW = 118.0


class NotPackedError(Exception):
    """Raised where a model cannot be run on packed rows."""


class LiveNodes(NamedTuple):
    """The n nodes of a level with an incoming edge that is on, and the rows that each adds up.

    Arrays are int64 unless noted.

    Args:
        stream: (n,), the row of the stream into the level.
        kept: (n,) bool, whether the residual edge is on.
        attention: (n,), the row of what the attention adds; the last row for its constant alone.
    """

    stream: Any
    kept: Any
    attention: Any


class MLPRows(NamedTuple):
    """The m streams, of all variants, that have an MLP edge on. Arrays are int64.

    Args:
        rows: (m,), the row of the stream that the MLP reads.
        places: (m,), the index of the live node that the MLP's output is added to.
        variants: (m,), the variant of each.
        tokens: (m,), the token of each.
    """

    rows: Any
    places: Any
    variants: Any
    tokens: Any


class BlockPlan(NamedTuple):
    """The rows that one decoder block computes.

    Args:
        rows: (P,) int64, the rows of the block's table that its attention module gets.
        positions: (P,) int64, the position of each in the text.
        buckets: the query tokens among these rows, bucket by bucket.
        mid: the nodes where stream and attention are added; None in a parallel block.
        out: the nodes of the block's last sum.
        mlp: the streams with an MLP edge on.
    """

    rows: Any
    positions: Any
    buckets: tuple[QueryBucket, ...]
    mid: LiveNodes | None
    out: LiveNodes
    mlp: MLPRows


@dataclass(frozen=True)
class RowPlan:
    """The rows that all blocks compute under the masks of some variants.

    Args:
        blocks: one plan per decoder block.
        index: (B, T) int64, the row of each stream out of the last block.
    """

    blocks: tuple[BlockPlan, ...]
    index: numpy.ndarray


def pays(blocks: Sequence[Block], masks: Sequence[BlockMask]) -> bool:
    """Whether skipping rows is expected to save more than it costs.

    Costs are in rows of a run that skips nothing, which has B x T of them. Planning and gathering
    cost some rows once, and each live row costs more than it would there. Both weigh less in wide
    models, whose matrix products cost more. The share of live rows is estimated from the tokens
    that have an attention edge or an MLP edge on.
    """
    n_rows = masks[0].residual_mlp.numel()  # B x T
    once = (ONCE / blocks[0].hidden_size) ** 2
    if once >= n_rows:
        return False
    live = sum(int(mask.edges.query_tokens.sum()) + int(_any(_host(mask.mlp), 1).sum()) for mask in masks)
    share = live / (2 * len(blocks) * n_rows)
    return once + share * n_rows * (1 + PER_ROW / blocks[0].hidden_size) < n_rows


def plan_rows(blocks: Sequence[Block], masks: Sequence[BlockMask]) -> RowPlan:
    """Find the rows that the blocks need under boolean masks of B variants."""
    plans = []
    n_variants, _, n_tokens = masks[0].mlp.shape
    # before the first block all variants share the T rows of the one input
    index = numpy.broadcast_to(numpy.arange(n_tokens), (n_variants, n_tokens))  # (B, T)
    for block, mask in zip(blocks, masks, strict=True):
        plan, index = plan_block(block, mask, index)
        plans.append(plan)
    return RowPlan(tuple(plans), index)


def plan_block(block: Block, mask: BlockMask, index: numpy.ndarray) -> tuple[BlockPlan, numpy.ndarray]:
    """Find the rows that one decoder block computes, and the rows of its output.

    Args:
        block: the block.
        mask: its boolean mask, of B variants.
        index: (B, T) int64, the row of each stream into the block.

    Returns:
        The plan.
        The row of each stream out of the block, (B, T) int64.
    """
    queried = _host(mask.edges.query_tokens)  # (B, T), an attention edge leads into the token
    residual = _host(mask.residual_mlp)  # (B, T)
    mlp = _any(_host(mask.mlp), 1)  # (B, T), any unit of the token's MLP is on
    rows, positions, buckets, added = _plan_attention(queried, index, mask.edges.shares_buckets)
    # In a sequential block the MLP reads the sum of stream and attention, which is a level of its
    # own with rows of its own. In a parallel block it reads the stream into the block.
    mid, stream, live = None, index, residual | mlp
    if block.layout.parallel:
        live |= queried
        out = LiveNodes(index[live], residual[live], added[live])
    else:
        assert mask.residual_attention is not None
        into_mid = _host(mask.residual_attention)  # (B, T)
        live_mid = into_mid | queried
        mid = LiveNodes(index[live_mid], into_mid[live_mid], added[live_mid])
        stream = _numbered(live_mid)
        out = LiveNodes(stream[live], residual[live], numpy.empty(0, dtype=numpy.int64))
    variants, tokens = mlp.nonzero()
    # mlp[live] flags the live nodes with an MLP edge; both lists are in (variant, token) order
    mlp_rows = MLPRows(stream[mlp], mlp[live].nonzero()[0], variants, tokens)
    return BlockPlan(rows, positions, buckets, mid, out, mlp_rows), _numbered(live)


def _plan_attention(
    queried: numpy.ndarray, index: numpy.ndarray, shared: bool
) -> tuple[numpy.ndarray, numpy.ndarray, tuple[QueryBucket, ...], numpy.ndarray]:
    """Find the rows for one call of an attention module, and its query tokens.

    Args:
        queried: (B, T) bool, the query tokens of each variant.
        index: (B, T) int64, the row of each stream.
        shared: whether several variants may share a bucket, padded to one number of query tokens.

    Returns:
        Rows (P,) of the table that the call gets.
        Their positions (P,) in the text.
        The query tokens, bucket by bucket.
        The row of what the attention adds to each stream, (B, T).
    """
    n_tokens = queried.shape[1]
    counts = queried.sum(axis=1)  # (B,), query tokens of each variant
    # variants by rising count, without those that have no query token
    by_count = numpy.argsort(counts, kind="stable")[(counts == 0).sum() :]
    alone = [(i, i + 1) for i in range(len(by_count))]
    ranges = _buckets(counts[by_count], n_tokens) if shared else alone
    buckets = [by_count[start:stop] for start, stop in ranges]
    # A causal query reads no later token, so a bucket needs the sources up to its last query token.
    reaches = [int(_any(queried[bucket], 0).nonzero()[0].max()) + 1 for bucket in buckets]
    # A key depends on its stream and, through rotary embeddings, on its position. So the sources of
    # the call are the distinct pairs (row, position), written as one number row * T + position.
    # Without any query token one pair is kept, to learn the attention's constant.
    pairs = [
        (index[bucket, :reach] * n_tokens + numpy.arange(reach)).ravel()
        for bucket, reach in zip(buckets, reaches, strict=True)
    ]
    # distinct: (P,); places: for each pair, its index in the call
    distinct, places = numpy.unique(
        numpy.concatenate(pairs) if pairs else index[:1, 0] * n_tokens, return_inverse=True
    )
    # The call returns a row per query token, and one more: what the attention adds without edges.
    # Every stream starts with that last row.
    added = numpy.full(queried.shape, queried.sum())  # (B, T)
    # start: first of the bucket's pairs; n_queries: query tokens of the buckets before
    planned, start, n_queries = [], 0, 0
    for bucket, reach in zip(buckets, reaches, strict=True):
        stop = start + len(bucket) * reach
        sources = places[start:stop].reshape(len(bucket), reach)  # (A, S)
        # (A, Q): the sort moves the query tokens of each variant to the front, first to last. Where
        # a variant has fewer than the bucket's most, other tokens pad it; their output is not read.
        tokens = numpy.argsort(~queried[bucket], axis=1, kind="stable")[:, : counts[bucket].max()]
        valid = (numpy.arange(tokens.shape[1]) < counts[bucket, None]).ravel().nonzero()[0]  # (n,)
        planned.append(
            QueryBucket(
                bucket[:, None], tokens, numpy.take_along_axis(sources, tokens, axis=1), sources, valid
            )
        )
        added[numpy.repeat(bucket, counts[bucket]), tokens.ravel()[valid]] = n_queries + numpy.arange(
            len(valid)
        )
        start, n_queries = stop, n_queries + len(valid)
    return distinct // n_tokens, distinct % n_tokens, tuple(planned), added


def _buckets(counts: numpy.ndarray, n_tokens: int) -> list[tuple[int, int]]:
    """Cut rising counts (A,) into ranges, each padded to its largest count.

    A range is cut in two where that saves most attention weights, as long as it saves at least
    `WEIGHTS_PER_BUCKET`.

    Returns:
        Start and stop of each range.
    """
    if not len(counts):
        return []
    places = numpy.arange(1, len(counts))
    # A cut after the first n variants spares these the padding from their largest count to the
    # largest of all.
    saved = places * (counts[-1] - counts[:-1]) * n_tokens
    best = int(saved.argmax()) + 1 if len(places) else 0
    if not best or saved[best - 1] < WEIGHTS_PER_BUCKET:
        return [(0, len(counts))]
    lower, upper = _buckets(counts[:best], n_tokens), _buckets(counts[best:], n_tokens)
    return lower + [(start + best, stop + best) for start, stop in upper]


def _numbered(live: numpy.ndarray) -> numpy.ndarray:
    """Number the live streams in order, (B, T) int64. All others share the number after them."""
    index = numpy.full(live.shape, live.sum())
    index[live] = numpy.arange(live.sum())
    return index


def _host(mask: Tensor) -> numpy.ndarray:
    """Copy a mask to the CPU as an array."""
    return mask.cpu().numpy()


def _any(mask: numpy.ndarray, axis: int) -> numpy.ndarray:
    """Whether any entry along an axis is True."""
    some: numpy.ndarray = numpy.logical_or.reduce(mask, axis=axis)
    return some


Planned = TypeVar("Planned")


def _on(device: torch.device, planned: Planned) -> Planned:
    """Copy a plan to a device: each array, however nested, becomes a tensor there."""
    if isinstance(planned, numpy.ndarray):
        return torch.from_numpy(numpy.ascontiguousarray(planned)).to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(planned, tuple):
        parts = [_on(device, part) for part in planned]
        return type(planned)(*parts) if hasattr(planned, "_fields") else tuple(parts)  # type: ignore[return-value]
    return planned


def packed_add_up(
    block: Block, table: Tensor, plan: BlockPlan, arguments: dict[str, Any], run: Run
) -> Tensor:
    """Compute a decoder block under boolean masks, as `blocks.add_up` does, but on packed rows.

    Args:
        table: (N, D), the streams into the block; the last row is the stream without edges.
        plan: the rows to compute, from `plan_block`.
        arguments: keywords that the block passes to its attention, for one input.
        run: the state that the attention function reads, with the masks of B variants.

    Returns:
        (n + 1, D), the streams out of the n live nodes, and last the stream without edges.

    Raises:
        NotPackedError: the attention does not take or return its rows in a known way.
    """
    plan = _on(table.device, plan)
    assert run.masks is not None
    attention = _attention_rows(block, table, plan, arguments, run)  # (n + 1, D)
    # (1, D), the sum of a node that no edge leads into: what the attention adds anyway
    constant = attention[-1:]
    scale_of_attention, scale_of_mlp = block.residual_scales
    if plan.mid is None:
        stream = table
        out = _kept(table, plan.out, scale_of_mlp) + attention.index_select(0, plan.out.attention)
    else:
        mid = _kept(table, plan.mid, scale_of_attention) + attention.index_select(0, plan.mid.attention)
        # the constant goes through the norm too, as the last row of the new table
        stream = block.child(block.layout.attention_sum_norm)(torch.cat([mid, constant])[None])[0]
        # the attention was added at mid; without a residual edge nothing of it reaches the last sum
        out, constant = _kept(stream, plan.out, scale_of_mlp), torch.zeros_like(constant)
    out, constant = _add_mlp(block, out, constant, stream, plan.mlp, run.masks[block.index])
    return block.stream_out(torch.cat([out, constant])[None])[0]


def _kept(table: Tensor, into: LiveNodes, scale: Tensor | None) -> Tensor:
    """Vectors of the residual edges into live nodes, (n, D), zero where the edge is off."""
    return scaled(table.index_select(0, into.stream), scale).mul_(into.kept[:, None])


def _add_mlp(
    block: Block, out: Tensor, constant: Tensor, stream: Tensor, plan: MLPRows, mask: BlockMask
) -> tuple[Tensor, Tensor]:
    """Add the MLP's output to the live nodes that have an MLP edge on.

    Where the MLP has units, what it adds with all of them off goes to every node, and to the
    constant.

    Args:
        out: (n, D), the sums of the live nodes so far.
        constant: (1, D), the sum of a node that no edge leads into.
        stream: (N, D), the table that the MLP reads.

    Returns:
        The two sums, with what the MLP adds.
    """
    if mask.units is None:
        added = mlp_branch(block, stream.index_select(0, plan.rows)[None])[0] if len(plan.rows) else out[:0]
        return out.index_add_(0, plan.places, added), constant
    units = mask.mlp[plan.variants, :, plan.tokens]  # (m, M)
    # one more row with every unit off, to learn what the MLP adds anyway
    units = torch.cat([units, units.new_zeros(1, units.shape[1])])  # (m + 1, M)
    streams = torch.cat([stream.index_select(0, plan.rows), stream[-1:]])  # (m + 1, D)
    added = mlp_branch(block, streams[None], mask.units, units.T[None])[0]  # (m + 1, D)
    every = added[-1:].expand_as(out).index_copy(0, plan.places, added[:-1])  # (n, D)
    return out + every, constant + added[-1:]


def _attention_rows(
    block: Block, table: Tensor, plan: BlockPlan, arguments: dict[str, Any], run: Run
) -> Tensor:
    """Compute what the attention adds at the n query tokens, and last its constant, (n + 1, D).

    The attention module gets the P rows of the plan as if they were one text of P tokens. It would
    pass P rows to its output projection, but only n + 1 are wanted. So the attention function
    leaves those in `Queries.heads` and returns ones, and the projection is made to read the former.

    Raises:
        NotPackedError: the module does not call the attention function, or changes what its output
            projection wrote.
    """
    queries = Queries(plan.buckets)
    # (1, P, D), what the attention module reads
    normed = block.child(block.layout.attention_norm)(table.index_select(0, plan.rows)[None])
    projection = block.projection
    forward = projection.forward

    def project(ones: Tensor) -> Tensor:
        if queries.heads is None:
            raise NotPackedError("the attention function was not called")
        # to one row (H V) per query token, without the padding
        rows = [
            heads.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, bucket.valid)
            for heads, bucket in zip(queries.heads, plan.buckets, strict=True)
        ]
        if block.gated:
            # The module multiplied the ones by its gate, so what arrives here is the gate,
            # (1, P, H V). Each query token's row is picked from it. The constant has no gate.
            gates = [ones[0, bucket.queries.flatten()[bucket.valid]] for bucket in plan.buckets]
            rows = [row * gate for row, gate in zip(rows, gates, strict=True)]
        # a row of zeros, to learn the constant
        return forward(torch.cat([*rows, ones.new_zeros(1, ones.shape[-1])])[None])  # (1, n + 1, D)

    run.queries = queries
    try:
        with instance_attribute(projection, "forward", project):
            inputs = [normed] * block.layout.attention_inputs
            output = first(block.attention(*inputs, **_at_positions(arguments, plan.positions)))
            output = block.child(block.layout.attention_projection)(output)  # (1, n + 1, D)
    finally:
        run.queries = None
    output = block.child(block.layout.attention_branch_norm)(output)
    output = output * block.multiplier if block.layout.multiplier else output
    if output.shape[1] != 1 + sum(len(bucket.valid) for bucket in plan.buckets):
        raise NotPackedError("the attention does not return what its output projection wrote")
    return output[0]


def _at_positions(arguments: dict[str, Any], positions: Tensor) -> dict[str, Any]:
    """Select the tokens at some positions (P,) from the keywords of an attention module.

    Raises:
        NotPackedError: a tensor is not known to belong to tokens.
    """
    mask = arguments.get("attention_mask")
    n_tokens = mask.shape[-2] if isinstance(mask, Tensor) else None

    def gathered(name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(gathered(name, part) for part in value)
        if not isinstance(value, Tensor) or name in _OF_ALL_TOKENS:
            return value
        axis = _TOKEN_AXIS.get(name)
        if axis is None or (n_tokens is not None and value.shape[axis] != n_tokens):
            raise NotPackedError(
                f"the attention takes a tensor {name!r} of shape {tuple(value.shape)}, which may not be one row per token"
            )
        return value.index_select(axis, positions.to(value.device))

    return {name: gathered(name, value) for name, value in arguments.items()}
