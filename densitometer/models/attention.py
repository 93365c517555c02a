"""The attention function that all models call when densitometer runs them.

The function is registered with transformers' `AttentionInterface`. It works on *blocks of query
rows*: the query tokens of some variants that lie in a tile of targets. `attend_rows` computes:

1. the attention weights, as the eager implementation does, or takes those of the full run;
2. the weights times a mask *after* the softmax, without renormalising them (`blocks.EdgeMask`);
3. the sum of the values by these weights, and what removed edges contribute (`blocks.StandIns`).

A call of the attention function computes

    one block       of all rows, if weights are recorded or masked at once
    many tiles      in long inputs: weights are freed after each tile. The tensors from which any
                    tile can be computed again are recorded instead (`AttentionInputs`)
    many buckets    on packed rows (`packed.py`), where each variant has its own query tokens

Attention scores, softmax and weights are float32 in models of any dtype (float64 in float64): a
score beyond float16's range must not become infinite, and rounded weights would be equal too often.
The heads' outputs are rounded to the model's dtype once.

Some attention modules compute attention themselves (Falcon, BLOOM, GPT-J and many models with their
own code), so they do not call this function. `interception.py` watches their calls of torch and
passes the weights and values that it sees to `attend_rows`.

What this file does not do: it does not choose which edges are on, or change a config.

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads, G key-value
heads, K key head size, V value head size. Small letters (t, s) are parts of an axis. In a block of
query rows: A variants, Q query tokens of each. On packed rows: P rows of the call, n query tokens
of all variants together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ..errors import ModelError, UnknownLayoutError
from .blocks import BlockMask, Tile

IMPLEMENTATION = "densitometer"
# Most attention weights of a layer that are kept for the backward pass, in a few float32 copies.
GRAPH_WEIGHTS = 2**26

# Keywords that models pass to their attention function besides queries, keys, values and mask. A
# keyword in neither set could change the result unnoticed, so it raises an error.
_OF_WEIGHTS = ("scaling", "softcap", "s_aux", "position_bias")
_HANDLED = frozenset({*_OF_WEIGHTS, "dropout", "indices"})
_IGNORED = frozenset(
    {
        "sliding_window",  # already in the mask
        "is_causal",  # already in the mask
        "position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
        "use_cache", "output_attentions", "output_hidden_states", "return_dict", "deterministic", "cache",
        "output_router_logits", "num_items_in_batch", "is_first_iteration", "seq_idx", "logits_to_keep",
    }
)  # fmt: skip


@dataclass
class Run:
    """State of one run under the adapter, which the attention function looks up.

    Args:
        block_of: id of an attention submodule to the index of its block.
        masks: one mask per block; None where every edge is on.
        recorded: one dictionary per block to write to; None where nothing is recorded.
        own: indices of the blocks whose attention modules compute attention themselves.
        queries: the query tokens of the block that runs on packed rows (`packed.py`); else None.
        tile_targets: number of targets whose weights are computed at a time; None for all at once.
        mask_rows: whether the model gets masks that are built for a few targets at a time.
        seen: indices of the blocks whose attention was called.
    """

    block_of: Mapping[int, int]
    masks: Sequence[BlockMask] | Mapping[int, BlockMask] | None = None
    recorded: Sequence[dict[str, Any]] | Mapping[int, dict[str, Any]] | None = None
    own: Collection[int] = ()
    queries: Queries | None = None
    tile_targets: int | None = None
    mask_rows: bool = False
    seen: set[int] = field(default_factory=set)


class QueryBucket(NamedTuple):
    """Query tokens of some variants, whose attention is computed at once.

    The variants of a bucket are padded to the same number of query tokens. Arrays are int64. The
    bucket without arrays, `EVERY_ROW`, stands for all rows of a call: every token of every variant.

    Args:
        variants: (A, 1), the variants of the bucket.
        tokens: (A, Q), the query tokens of each variant, padding included.
        queries: (A, Q), the row of the call that holds each query token.
        sources: (A, S), the row of the call that holds each source token.
        valid: (n,), which of the A x Q query tokens are not padding.
    """

    variants: Any = None
    tokens: Any = None
    queries: Any = None
    sources: Any = None
    valid: Any = None

    def inside(self, tile: Tile) -> QueryBucket | None:
        """Return the part of the bucket whose targets lie in a tile. None where none does.

        Only a bucket of one variant is cut: its tokens rise, and none is padding.
        """
        if self.tokens is None or len(self.tokens) > 1:
            return self
        ends = torch.tensor([tile.targets.start, tile.targets.stop], device=self.tokens.device)
        start, stop = torch.searchsorted(self.tokens[0], ends).tolist()
        cut = slice(start, stop)
        return (
            self._replace(tokens=self.tokens[:, cut], queries=self.queries[:, cut]) if stop > start else None
        )

    def of_targets(self, x: Tensor, tile: Tile, sources: slice) -> Tensor:
        """Select the bucket's query tokens from a tensor with a row for each target of a tile.

        Args:
            x: (B or 1, X, t, S), where X is 1 or H.
            tile: the tile.
            sources: the sources to select, of S.

        Returns:
            (A, X, Q, s), or (B or 1, X, t, s) for the bucket of all rows.
        """
        if self.tokens is None:
            return x[..., sources]
        return x[0][:, self.tokens - tile.targets.start, sources].transpose(0, 1)

    def of_queries(self, query: Tensor, tile: Tile) -> Tensor:
        """Select the bucket's queries in a tile, (A, H, Q, K), from all queries of a call."""
        return query[:, :, tile.targets] if self.queries is None else _gather_rows(query, self.queries)

    def of_sources(self, x: Tensor) -> Tensor:
        """Select the bucket's keys or values, (A, G, S, X), from those of a call."""
        return x if self.sources is None else _gather_rows(x, self.sources)


EVERY_ROW = QueryBucket()


@dataclass
class Queries:
    """Query tokens of one call of the attention module on packed rows.

    Args:
        buckets: the query tokens, bucket by bucket, as tensors on the block's device.
        heads: the heads' outputs of each bucket, (A, H, Q, V). The attention function writes them;
            the output projection reads them.
    """

    buckets: Sequence[QueryBucket]
    heads: Sequence[Tensor] | None = None


RUN: ContextVar[Run | None] = ContextVar("densitometer_run", default=None)


@dataclass(frozen=True)
class MaskRows:
    """An additive attention mask that is built for a few targets at a time.

    Models pass it to their attention modules as they pass a tensor.

    Args:
        arguments: the arguments of `eager_mask` for the whole mask.
    """

    arguments: Mapping[str, Any]
    # the rows that were built last, by their targets: every bucket of a tile needs them
    _latest: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def rows(self, targets: slice) -> Tensor:
        """Build the rows of the mask for some targets, (1, 1, t, S)."""
        place, length = (targets.start, targets.stop), targets.stop - targets.start
        if place not in self._latest:
            offset = self.arguments["q_offset"] + targets.start
            several = {"batch_size": 1, "q_length": length, "q_offset": offset}
            self._latest.clear()
            self._latest[place] = eager_mask(**{**self.arguments, **several})
        return self._latest[place]


def _mask(**arguments: Any) -> Tensor | MaskRows:
    """Build the additive mask that transformers requests, as a tensor or as `MaskRows`."""
    run = RUN.get()
    if run is not None and run.mask_rows and {"q_length", "q_offset"} <= arguments.keys():
        return MaskRows(arguments)
    return eager_mask(**arguments)


def _mask_rows(mask: Tensor | MaskRows | None, targets: slice) -> Tensor | None:
    """Rows of an additive mask for some targets, (1, 1 or H, t, S). None without a mask."""
    if mask is None:
        return None
    return mask.rows(targets) if isinstance(mask, MaskRows) else mask[..., targets, :]


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of one layer's attention weights, from which any block of them can be computed.

    Args:
        module: the attention module.
        query: (B, H, T, K); on packed rows (1, H, P, K).
        key: (B, G, S, K); on packed rows (1, G, P, K).
        mask: additive, (B or 1, 1 or H, T, S) or `MaskRows`; None where every source is allowed.
        arguments: scaling, softcap, s_aux and position_bias, where the model passes them.
        tile_targets: number of targets in a tile.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    mask: Tensor | MaskRows | None
    arguments: Mapping[str, Any]
    tile_targets: int

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Tiles of all targets, in order.

        Raises:
            ModelError: the mask lets a token attend to a later one.
        """
        n_tokens, n_sources = self.query.shape[2], self.key.shape[2]
        tiles = []
        for start in range(0, n_tokens, self.tile_targets):
            targets = slice(start, min(start + self.tile_targets, n_tokens))
            allowed = self.allowed(Tile(targets, slice(0, n_sources)))
            _refuse_later_sources(self.module, allowed, start)
            # from the first to the last source that any of these targets may attend to: with a
            # sliding window far fewer than all
            read = allowed.any(dim=0).nonzero()
            tiles.append(Tile(targets, slice(int(read[0]), int(read[-1]) + 1)))
        return tuple(tiles)

    def allowed(self, tile: Tile) -> Tensor:
        """Which sources of a tile each target may attend to by the layer's mask, (t, s) bool."""
        mask = _mask_rows(self.mask, tile.targets)
        if mask is None:
            shape = (tile.targets.stop - tile.targets.start, tile.sources.stop - tile.sources.start)
            return torch.ones(shape, dtype=torch.bool, device=self.query.device)
        return above_least(mask[..., tile.sources])

    def weights(self, tile: Tile) -> Tensor:
        """Compute the attention weights of a tile after the softmax, (H, t, s).

        The same tile always gives the same numbers.
        """
        return self.weights_of(EVERY_ROW, tile, self.key[:, :, tile.sources])[0]

    def weights_of(self, bucket: QueryBucket, tile: Tile, keys: Tensor) -> Tensor:
        """Compute the attention weights of a bucket's query tokens in a tile, (A, H, Q, s).

        Args:
            keys: (A, G, s, K), those of the bucket's sources in the tile.
        """
        sources = slice(tile.sources.start, tile.sources.start + keys.shape[2])
        named, mask = dict(self.arguments), _mask_rows(self.mask, tile.targets)
        if named.get("position_bias") is not None:
            bias = named["position_bias"][..., tile.targets, :]
            named["position_bias"] = bucket.of_targets(bias, tile, sources)
        additive = None if mask is None else bucket.of_targets(mask, tile, sources)
        query = bucket.of_queries(self.query, tile)
        return _attention_weights(self.module, query, keys, additive, named)

    def attend(
        self, values: Tensor, tiles: Sequence[Tile], buckets: Sequence[QueryBucket], mask: BlockMask | None
    ) -> list[Tensor]:
        """Compute the attention of all query tokens, tile by tile, and in a tile bucket by bucket.

        So the mask computes each tile once for all variants. If gradients are computed and the
        weights of all tiles would take much memory, the backward pass computes each tile again.

        Args:
            values: (B, G, S, V); on packed rows (1, G, P, V).
            tiles: tiles that together have all targets.
            buckets: the query tokens, bucket by bucket.
            mask: the mask of the decoder block; None where every edge is on.

        Returns:
            The heads' outputs of each bucket, (A, H, Q, V).
        """
        read = [(bucket.of_sources(self.key), bucket.of_sources(values)) for bucket in buckets]

        def of_tile(tile: Tile) -> list[Tensor | None]:
            return [
                None
                if (part := bucket.inside(tile)) is None
                # a bucket has no sources after its last query token, so slices may end early
                else attend_rows(
                    partial(self.weights_of, part, tile, keys[:, :, tile.sources]),
                    of_keys[:, :, tile.sources], mask, tile, part, overwrite=True,
                )[0]
                for bucket, (keys, of_keys) in zip(buckets, read, strict=True)
            ]  # fmt: skip

        # activation checkpointing: the backward pass runs `of_tile` again and keeps no weights
        n_weights = self.query.shape[1] * self.query.shape[2] * self.key.shape[2]
        again = torch.is_grad_enabled() and n_weights > GRAPH_WEIGHTS
        every = [checkpoint(of_tile, tile, use_reentrant=False) if again else of_tile(tile) for tile in tiles]
        # `every` is by tile; for each bucket, its parts in the tiles are joined
        parts = [[part for part in of_bucket if part is not None] for of_bucket in zip(*every, strict=True)]
        return [some[0] if len(some) == 1 else torch.cat(some, dim=2) for some in parts]


def attend_rows(
    weights_of: Callable[[], Tensor],
    values: Tensor,
    mask: BlockMask | None,
    tile: Tile,
    bucket: QueryBucket = EVERY_ROW,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the attention of some query rows: mask their weights, and sum the values by them.

    Args:
        weights_of: function that computes the weights after the softmax, (A, H, Q, s). It is not
            called if the mask has the weights of the full run, which are used instead.
        values: (A, G, s, V).
        mask: the mask of the decoder block; None where every edge is on.
        overwrite: whether the weights may be overwritten, because nothing reads them afterwards.

    Returns:
        The heads' outputs (A, H, Q, V), the weights (A, H, Q, s), and the weights after the mask.
    """
    full = None if mask is None else mask.edges.full_weights(tile)  # (H, t, s) or None
    weights = weights_of() if full is None else bucket.of_targets(full[None], tile, slice(values.shape[2]))
    if mask is None:
        return _grouped_matmul(weights, values.to(weights.dtype)).to(values.dtype), weights, weights
    on = mask.edges.on(tile, bucket.variants, bucket.tokens, values.shape[2])  # (A, H, Q, s)
    # as int8, which torch multiplies several times faster than bool
    on = on.view(torch.int8) if on.dtype == torch.bool else on.to(weights.dtype)
    # Weights may be overwritten if they were just computed or copied. Those of the full run, and
    # those that removed edges keep, are needed again.
    fresh = (full is None or bucket.tokens is not None) and mask.stand_ins is None
    overwrite = overwrite and fresh and not torch.is_grad_enabled()
    left = weights.mul_(on) if overwrite else weights * on
    output = _grouped_matmul(left, values.to(left.dtype))
    if mask.stand_ins is not None:
        removed = mask.stand_ins.removed_attention(tile, weights, on)
        output = output if removed is None else output + removed
    return output.to(values.dtype), weights, left


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention as the eager implementation does, record it, and mask it after the softmax.

    The state of the run (`RUN`) says what is recorded and masked, and whether rows are packed or
    weights are computed by tiles.

    Args:
        module: the attention module that calls.
        query: (B, H, T, K).
        key: (B, G, S, K).
        value: (B, G, S, V).
        attention_mask: (B or 1, H or 1, T, S), additive; None where every source is allowed.
        **kwargs: further keywords that the model passes, such as `scaling`.

    Returns:
        The heads' outputs, (B, T, H, V).
        The weights after the mask, (B, H, T, S). None on packed rows and by tiles.

    Raises:
        ModelError: the adapter is not running the module, the mask is not causal, or an indexer
            chooses the sources on a long input.
        UnknownLayoutError: the model passes an unknown keyword, or a module attends twice.
    """
    run = RUN.get()
    if run is None or id(module) not in run.block_of:
        raise ModelError(
            f"{type(module).__name__} called densitometer's attention outside one of the model's decoder blocks; "
            "densitometer measures the decoder blocks of a causal language model only"
        )
    index = run.block_of[id(module)]
    run.seen.add(index)
    # None is a keyword's default in every model, so it changes nothing
    unknown = sorted(name for name, v in kwargs.items() if v is not None and name not in _HANDLED | _IGNORED)
    if unknown:
        raise UnknownLayoutError(
            f"{type(module).__name__} passes {unknown} to its attention function: densitometer does not know "
            f"what they do (it handles {sorted(_HANDLED)}) and will not guess"
        )
    mask = run.masks[index] if run.masks is not None else None
    tiles = mask.edges.tiles if mask is not None else ()
    by_tiles = run.queries is None and (run.tile_targets is not None or len(tiles) > 1)
    chosen = kwargs.get("indices")
    if chosen is not None and run.queries is not None:
        raise NotImplementedError("an indexer chooses the sources of each token, so rows cannot be skipped")
    if chosen is not None and by_tiles:
        raise ModelError(
            f"{type(module).__name__} lets an indexer choose the sources of each token: its attention cannot be run "
            "tile by tile, as long inputs need; measure fewer tokens"
        )
    named = {name: given for name in _OF_WEIGHTS if (given := kwargs.get(name)) is not None}
    if run.tile_targets is not None:
        # These tensors are kept. As copies without an autograd history, they do not keep larger
        # tensors alive, of which they are views or from which they were computed.
        query, key = query.contiguous(), key.contiguous()
        named = {
            name: given.detach() if isinstance(given, Tensor) else given for name, given in named.items()
        }
    additive = attention_mask
    if chosen is not None:
        additive = _narrowed_mask(attention_mask, chosen, query, key.shape[2])
    inputs = AttentionInputs(module, query, key, additive, named, run.tile_targets or query.shape[2])
    # 1. Packed rows: only the query tokens of the plan, of all variants. The result is left in
    #    `run.queries`; the ones that are returned only have the expected shape (`packed.py`).
    if run.queries is not None:
        run.queries.heads = inputs.attend(value, tiles, run.queries.buckets, mask)
        return query.new_ones(1, 1, 1, 1).expand(1, query.shape[2], query.shape[1], value.shape[-1]), None
    # 2. Every row, tile by tile: the inputs of the weights are recorded instead of the weights.
    if by_tiles:
        (output,) = inputs.attend(value, tiles or inputs.tiles, [EVERY_ROW], mask)
        heads = output.transpose(1, 2).contiguous()  # (B, T, H, V)
        if run.recorded is not None:
            run.recorded[index].update(inputs=inputs, heads=heads, values=value, key_size=query.shape[-1])
        return heads, None
    # 3. Every row at once.
    everything = Tile(slice(0, query.shape[2]), slice(0, key.shape[2]))
    of_rows = partial(inputs.weights_of, EVERY_ROW, everything, key)
    output, weights, left = attend_rows(of_rows, value, mask, everything)
    if run.recorded is not None:
        # The mask before an indexer narrowed it: the indexer reads every token that the mask
        # allows, so tokens that it does not choose still have edges.
        allowed = replace(inputs, mask=attention_mask).allowed(everything)
        record_weights(run, index, module, weights, value, allowed, query.shape[-1])
    return output.transpose(1, 2).contiguous(), left


def record_weights(
    run: Run,
    index: int,
    module: nn.Module,
    weights: Tensor,
    values: Tensor,
    allowed: Tensor,
    key_size: int,
) -> None:
    """Record the attention of a block.

    Args:
        index: index of the block.
        module: the attention module, for messages.
        weights: (B, H, T, S), after the softmax.
        values: (B, G, S, V).
        allowed: (T, S) bool, the layer's own mask.
        key_size: the size of a query or key head.

    Raises:
        ModelError: a token attends to a later one.
        UnknownLayoutError: the module attends more than once in a forward pass.
    """
    assert run.recorded is not None
    if "weights" in run.recorded[index]:
        raise UnknownLayoutError(
            f"{type(module).__name__} attends more than once in a forward pass; its edges would not be one per head and "
            "pair of tokens"
        )
    _refuse_later_sources(module, allowed)
    run.recorded[index].update(weights=weights, values=values, allowed=allowed, key_size=key_size)


def _gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Gather rows (A, Q) of packed queries, keys or values (1, H, P, X) into (A, H, Q, X)."""
    n_heads, size = x.shape[1], x.shape[-1]
    # Rows and heads become one axis, so that one index_select gathers whole vectors.
    flat = rows[:, None] * n_heads + torch.arange(n_heads, device=rows.device)[:, None]  # (A, H, Q)
    return x[0].transpose(0, 1).reshape(-1, size).index_select(0, flat.flatten()).view(*flat.shape, size)


def _grouped_matmul(x: Tensor, y: Tensor) -> Tensor:
    """Multiply x (A, H, Q, X) with y (A, G, X, Y), where each y serves H / G heads.

    The result is (A, H, Q, Y). The heads of a group become rows of one product, so y is not
    repeated.
    """
    a, h, q, _ = x.shape
    g = y.shape[1]
    return torch.matmul(x.reshape(a, g, h // g * q, x.shape[-1]), y).view(a, h, q, y.shape[-1])


def _attention_weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    kwargs: Mapping[str, Any],
) -> Tensor:
    """Compute attention weights after the softmax, (A, H, Q, S) float32.

    In a float64 model they are float64.

    Args:
        query: (A, H, Q, K).
        key: (A, G, S, K).
        attention_mask: additive, up to (A, H, Q, S or more); None where every source is allowed.
        kwargs: keywords of the attention function, of which scaling, softcap, position_bias and
            s_aux are used.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = getattr(module, "scaling", None) or query.shape[-1] ** -0.5
    scores = _grouped_matmul(query.to(wide), key.to(wide).transpose(2, 3)) * scaling  # (A, H, Q, S)
    if kwargs.get("softcap") is not None:
        scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
    if kwargs.get("position_bias") is not None:
        scores = scores + kwargs["position_bias"]
    if attention_mask is not None:
        scores = scores + attention_mask[..., : scores.shape[-1]]
    sinks = kwargs.get("s_aux")
    if sinks is not None:
        # A learned score per head that takes part in the softmax like a source whose value is 0.
        # Its column is dropped after the softmax.
        column = sinks.to(scores).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)  # (A, H, Q, S + 1)
        scores = scores - scores.amax(dim=-1, keepdim=True)
    weights = torch.softmax(scores, dim=-1)
    return weights[..., :-1] if sinks is not None else weights


def _narrowed_mask(attention_mask: Tensor | None, indices: Tensor, query: Tensor, n_sources: int) -> Tensor:
    """Narrow an additive mask to the sources that an indexer chose, as the eager attention does.

    Args:
        indices: (B, T, n), the n sources that are chosen for each token.

    Returns:
        (B, 1 or H, T, S).
    """
    least = torch.finfo(query.dtype).min
    chosen = query.new_full((*indices.shape[:2], n_sources), least).scatter(-1, indices.long(), 0.0)[:, None]
    return chosen if attention_mask is None else torch.minimum(chosen, attention_mask[..., :n_sources])


def above_least(mask: Tensor) -> Tensor:
    """Return which sources an additive mask allows for at least one head, (t, s) bool.

    Args:
        mask: (B, 1 or H, t, s). Only the first input is read. A source counts as masked if its
            number is below half of the dtype's most negative number.
    """
    return (mask[0] > torch.finfo(mask.dtype).min / 2).any(dim=0)


def _refuse_later_sources(module: nn.Module, allowed: Tensor, first_target: int = 0) -> None:
    """Refuse a mask (t, S) that lets a token attend to a later one.

    Args:
        first_target: the target of the mask's first row.

    Raises:
        ModelError: the mask is not causal.
    """
    if bool(allowed.triu(first_target + 1).any()):
        raise ModelError(
            f"{type(module).__name__} lets tokens attend to later ones: densitometer measures causal (decoder) "
            "language models, not encoders"
        )


AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
