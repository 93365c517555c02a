"""Run many variants of one input, computing only rows that affect the result, each of them once.

A variant is the input run under one mask. The model's own forward gets one input. Inside the
decoder blocks, the residual streams of all variants are the rows of one table. An index finds the
row of each stream:

    stream of variant b at token t  =  table[index[b, t]]

A stream is *live* if an edge that is on leads into it. Each live stream has a row of its own. All
other streams are the same constant in all variants (the biases; often zero), and share the last
row. Before the first block all variants share the same rows. Norms, projections and MLPs work row
by row, so each is called on the rows that it has to compute:

    keys and values   for the tokens up to the last query token, in variants that have a query
                      token. This includes streams without edges: with recomputed attention, their
                      keys still take part in the softmax
    queries, output   for the query tokens: those into which an attention edge leads
    MLP               for the tokens that have an MLP edge on; all of its units run there

Steps:

1. `plan_rows` follows the masks through all blocks, on the CPU, and lists the rows of each block.
   These depend on the masks alone, so no number has to be copied back from the device.
2. `packed_add_up` computes one block on the rows that its plan lists.

If nearly all rows are live, skipping the others takes longer than computing them (`pays`).

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

# Tensors that a decoder block passes to its attention besides the stream, with their token axis. A
# tensor with any other name may or may not have one row per token, so a model that passes one is
# run without skipping rows.
_TOKEN_AXIS = {"position_embeddings": 1, "position_ids": 1, "cache_position": 0}
_OF_ALL_TOKENS = ("attention_mask",)

# The variants of a bucket are padded to the same number of query tokens. One more bucket is made
# only where it saves at least this many attention weights.
WEIGHTS_PER_BUCKET = 2**12


# Constants of the cost estimate in `pays`. Both were fitted on the CPU to runs of the bundled
# models (D = 192) with 40 to 1,040 rows, and checked at D = 1,024 (dev/LOG.md, 2026-11-25).
ONCE = 1230.0
PER_ROW = 118.0


class NotPackedError(Exception):
    """Raised if a model cannot be run on packed rows."""


class LiveNodes(NamedTuple):
    """The n nodes of a level with an incoming edge that is on, and the rows that are their terms.

    Arrays are int64 unless noted.

    Args:
        stream: (n,), the row of the stream that the node's residual edge carries.
        kept: (n,) bool, whether the residual edge is on.
        attention: (n,), the row of the attention's output that is added. For a node without an
            attention edge it is the last row, the attention's constant.
    """

    stream: Any
    kept: Any
    attention: Any


class MLPRows(NamedTuple):
    """The m nodes, of all variants, that have an MLP edge on. Arrays are int64.

    Args:
        rows: (m,), the row of the stream that the MLP reads.
        places: (m,), the index of the live node to which the MLP's output is added.
        variants: (m,), the variant of each node.
        tokens: (m,), the token of each node.
    """

    rows: Any
    places: Any
    variants: Any
    tokens: Any


class BlockPlan(NamedTuple):
    """The rows that one decoder block computes.

    Args:
        rows: (P,) int64, the rows of the block's table that its attention module gets.
        positions: (P,) int64, the position of each row in the text.
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
    """Whether skipping rows is expected to take less time than computing all of them.

    The unit of cost is one row of a run that skips nothing; that run has B x T rows. Planning has a
    fixed cost, and gathering makes each live row cost more than one. Both matter less in models
    with a large hidden size, whose matrix products take longer. The share of live rows is estimated
    from the tokens that have an attention edge or an MLP edge on.
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
    # In a sequential block the MLP reads the sum of stream and attention. This sum is a separate
    # level with its own rows. In a parallel block the MLP reads the stream into the block.
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
        shared: whether a bucket may hold several variants, padded to the same number of tokens.

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
    # The call returns a row per query token, and a last row: what the attention adds without edges.
    # All streams point to that last row first; those of query tokens are set below.
    added = numpy.full(queried.shape, queried.sum())  # (B, T)
    # start: index of the bucket's first pair; n_queries: query tokens of all earlier buckets
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
    """Divide variants into buckets by their numbers of query tokens.

    A bucket is padded to its largest number. It is cut in two at the place where this saves most
    attention weights, as long as it saves at least `WEIGHTS_PER_BUCKET`.

    Args:
        counts: (A,), the number of query tokens of each variant, rising.
        n_tokens: number of tokens of the input, T.

    Returns:
        Index of the first variant of each bucket, and one more than that of its last.
    """
    if not len(counts):
        return []
    places = numpy.arange(1, len(counts))
    # After a cut behind the first n variants, these are padded to their own largest count instead
    # of the largest of all.
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
    """Copy a plan to a device: each array, at any depth of nested tuples, becomes a tensor."""
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
        (n + 1, D), the streams of the n live nodes, and as the last row the stream without edges.

    Raises:
        NotPackedError: the attention does not take or return its rows in a known way.
    """
    plan = _on(table.device, plan)
    assert run.masks is not None
    attention = _attention_rows(block, table, plan, arguments, run)  # (n + 1, D)
    # (1, D), the sum at a node without edges: the attention's constant
    constant = attention[-1:]
    scale_of_attention, scale_of_mlp = block.residual_scales
    if plan.mid is None:
        stream = table
        out = _kept(table, plan.out, scale_of_mlp) + attention.index_select(0, plan.out.attention)
    else:
        mid = _kept(table, plan.mid, scale_of_attention) + attention.index_select(0, plan.mid.attention)
        # the new table: one row per live node, and as the last row the constant after the norm
        stream = block.child(block.layout.attention_sum_norm)(torch.cat([mid, constant])[None])[0]
        # the attention was added at `mid`; at a node without a residual edge it does not reach the
        # block's last sum, so the constant starts from zero there
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

    If the MLP has units, its output with all of them off is a constant, which is added to every
    node and to `constant`.

    Args:
        block: the block.
        out: (n, D), the sums of the live nodes so far.
        constant: (1, D), the sum of a node without edges so far.
        stream: (N, D), the table that the MLP reads.
        plan: the nodes with an MLP edge on.
        mask: the block's mask, which says which units are on.

    Returns:
        `out` and `constant`, with what the MLP adds.
    """
    if mask.units is None:
        added = mlp_branch(block, stream.index_select(0, plan.rows)[None])[0] if len(plan.rows) else out[:0]
        return out.index_add_(0, plan.places, added), constant
    units = mask.mlp[plan.variants, :, plan.tokens]  # (m, M)
    # one more row with every unit off, which gives the MLP's constant
    units = torch.cat([units, units.new_zeros(1, units.shape[1])])  # (m + 1, M)
    streams = torch.cat([stream.index_select(0, plan.rows), stream[-1:]])  # (m + 1, D)
    added = mlp_branch(block, streams[None], mask.units, units.T[None])[0]  # (m + 1, D)
    every = added[-1:].expand_as(out).index_copy(0, plan.places, added[:-1])  # (n, D)
    return out + every, constant + added[-1:]


def _attention_rows(
    block: Block, table: Tensor, plan: BlockPlan, arguments: dict[str, Any], run: Run
) -> Tensor:
    """Compute what the attention adds at the n query tokens, and its constant, (n + 1, D).

    The constant is the last row. The attention module gets the P rows of the plan as if they were
    one text of P tokens. It would pass P rows to its output projection, but only n + 1 are needed.
    So the attention function leaves its result in `Queries.heads` and returns ones. The projection
    is replaced by one that reads `Queries.heads`.

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
            # The module has multiplied the ones by its gate, so the argument is the gate itself,
            # (1, P, H V). The row of each query token is selected. The constant has no gate.
            gates = [ones[0, bucket.queries.flatten()[bucket.valid]] for bucket in plan.buckets]
            rows = [row * gate for row, gate in zip(rows, gates, strict=True)]
        # one more row, of zeros, gives the constant
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
        NotPackedError: a tensor may not have one row per token.
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
