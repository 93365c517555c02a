"""The one attention function that all models call while densitometer runs them.

The function is registered with transformers' `AttentionInterface`. For each call it

1. computes attention as the eager implementation does,
2. records weights and values, where the run asks for it,
3. multiplies the weights by a mask *after* the softmax, without renormalising them.

Attention scores, softmax and weights are float32 in models of any dtype (float64 in float64). A
score beyond float16's range must not become infinite, and rounded weights would tie. The heads'
outputs are rounded to the model's dtype once.

Some attention modules compute attention themselves (Falcon, BLOOM, GPT-J and many models with code
of their own), so they do not call this function. `interception.py` watches their calls of torch and
passes the weights and values that it sees to `attended`.

Long inputs are run by *tiles*. A tile is the edges, of all heads, into a few targets. No weights
outlive their tile. Their inputs are recorded instead (`AttentionInputs`), from which the same code
computes any tile again.

What this file does not do: it does not choose which edges are on, and it changes no config.

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads, G key-value
heads, K key head size, V value head size. Small letters (t, s) are parts of an axis. On packed rows
(`packed.py`): P rows of the call, A variants of a bucket, Q query tokens of each, n of all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ..errors import ModelError, UnknownLayoutError
from .blocks import BlockMask, Tile

IMPLEMENTATION = "densitometer"
# Attention weights of a layer that a backward pass may keep. It keeps a few copies, float32.
GRAPH_WEIGHTS = 2**26

# What models pass to their attention function besides queries, keys, values and mask. A keyword in
# neither set could change the result in a way that we would miss, so it is refused.
_HANDLED = frozenset({"scaling", "dropout", "softcap", "s_aux", "position_bias", "indices"})
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
    """Query tokens of a bucket of variants, for one packed attention call.

    The variants of a bucket are padded to the same number of query tokens. Arrays are int64.

    Args:
        variants: (A, 1), the variants of the bucket.
        tokens: (A, Q), the query tokens of each variant, padding included.
        queries: (A, Q), the row of the call that holds each query token.
        sources: (A, S), the row of the call that holds each source token.
        valid: (n,), which of the A x Q query tokens are not padding.
    """

    variants: Any
    tokens: Any
    queries: Any
    sources: Any
    valid: Any

    def inside(self, tile: Tile) -> slice:
        """Which of the Q query tokens of each variant are targets of a tile.

        Only a bucket of one variant is cut: its tokens rise, and none is padding.
        """
        if len(self.tokens) > 1:
            return slice(0, self.tokens.shape[1])
        ends = torch.tensor([tile.targets.start, tile.targets.stop], device=self.tokens.device)
        start, stop = torch.searchsorted(self.tokens[0], ends).tolist()
        return slice(start, stop)


@dataclass
class Queries:
    """Query tokens of one call of the attention module on packed rows.

    Args:
        index: index of the block.
        buckets: the query tokens, bucket by bucket, as tensors on the block's device.
        mask: the mask of the block, for all B variants.
        heads: (1, n + 1, H V), the heads' outputs of the n query tokens, and a row of zeros. The
            attention function writes it; the output projection reads it.
    """

    index: int
    buckets: Sequence[QueryBucket]
    mask: BlockMask
    heads: Tensor | None = None


RUN: ContextVar[Run | None] = ContextVar("densitometer_run", default=None)


@dataclass(frozen=True)
class MaskRows:
    """An additive attention mask that is built for a few targets at a time.

    Models pass it to their attention modules as they pass a tensor.

    Args:
        arguments: the arguments of `eager_mask` for the whole mask.
    """

    arguments: Mapping[str, Any]

    def rows(self, targets: slice) -> Tensor:
        """Build the rows of the mask for some targets, (1, 1, t, S)."""
        offset = self.arguments["q_offset"] + targets.start
        length = targets.stop - targets.start
        return eager_mask(**{**self.arguments, "batch_size": 1, "q_length": length, "q_offset": offset})


def _mask(**arguments: Any) -> Tensor | MaskRows:
    """Build the additive mask that transformers requests, whole or as `MaskRows`."""
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
    """Inputs of one layer's attention weights, from which any tile of the weights can be computed.

    Args:
        module: the attention module.
        query: (1, H, T, K).
        key: (1, G, S, K).
        mask: additive, (1, 1 or H, T, S) or `MaskRows`; None where every source is allowed.
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
        mask = _mask_rows(self.mask, tile.targets)
        return _attention_weights(
            self.module, self.query[:, :, tile.targets], self.key[:, :, tile.sources],
            None if mask is None else mask[..., tile.sources],
            _cut_to_tile(self.arguments, tile.targets, tile.sources),
        )[0]  # fmt: skip

    def mix(self, values: Tensor) -> Tensor:
        """Compute the heads' outputs (1, H, T, V) from values (1, G, S, V).

        Where gradients are computed and the weights of all tiles would take much memory, those of
        a tile are computed again by the backward pass.
        """

        def mixed(tile: Tile) -> Tensor:
            weights = self.weights(tile)[None]  # (1, H, t, s)
            return _grouped_matmul(weights, values[:, :, tile.sources].to(weights.dtype)).to(values.dtype)

        n_weights = self.query.shape[1] * self.query.shape[2] * self.key.shape[2]
        again = torch.is_grad_enabled() and n_weights > GRAPH_WEIGHTS
        parts = [
            checkpoint(mixed, tile, use_reentrant=False) if again else mixed(tile) for tile in self.tiles
        ]
        return torch.cat(parts, dim=2)


def _cut_to_tile(arguments: Mapping[str, Any], targets: slice | Tensor, sources: slice) -> dict[str, Any]:
    """Cut the keywords of the attention function to a tile: only a position bias has token axes."""
    named = dict(arguments)
    if named.get("position_bias") is not None:
        named["position_bias"] = named["position_bias"][..., targets, :][..., sources]
    return named


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
        **kwargs: what the model passes besides, such as `scaling`.

    Returns:
        The heads' outputs, (B, T, H, V).
        The weights that are left, (B, H, T, S); None on packed rows and by tiles.

    Raises:
        ModelError: no run of the adapter is under way for the module, the mask is not causal, or an
            indexer chooses the sources on a long input.
        UnknownLayoutError: the model passes a keyword that is not known, or attends twice.
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
    # 1. packed rows: only the query tokens of the plan, of all variants at once
    if run.queries is not None:
        if kwargs.get("indices") is not None:
            raise NotImplementedError(
                "an indexer chooses the sources of each token, so rows cannot be skipped"
            )
        return _packed_attention(module, query, key, value, attention_mask, kwargs, run.queries)
    # 2. a long input, tile by tile: record what weights are made of, not the weights
    if run.tile_targets is not None:
        if kwargs.get("indices") is not None:
            raise ModelError(
                f"{type(module).__name__} lets an indexer choose the sources of each token: its attention cannot be run "
                "tile by tile, as long inputs need; measure fewer tokens"
            )
        named = {
            name: given.detach() if isinstance(given, Tensor) else given
            for name in ("scaling", "softcap", "s_aux", "position_bias")
            if (given := kwargs.get(name)) is not None
        }
        tiled = (query.contiguous(), key.contiguous(), attention_mask, named, run.tile_targets)
        inputs = AttentionInputs(module, *tiled)
        heads = inputs.mix(value).transpose(1, 2).contiguous()  # (1, T, H, V)
        if run.recorded is not None:
            run.recorded[index].update(inputs=inputs, heads=heads, values=value, key_size=query.shape[-1])
        return heads, None
    # 3. all weights at once
    allowed = None
    if run.recorded is not None:
        # taken before an indexer narrows the mask: the indexer reads every token that the mask
        # allows, so those that it does not choose are needed too
        allowed = _allowed_by(attention_mask, query.shape[2], key.shape[2], query.device)
    if kwargs.get("indices") is not None:
        attention_mask = _narrowed_mask(attention_mask, kwargs["indices"], query, key.shape[2])
    frozen = frozen_weights(run, index)
    if frozen is None:
        weights = _attention_weights(module, query, key, attention_mask, kwargs)  # (B, H, T, S)
    else:
        weights = frozen.expand(query.shape[0], -1, -1, -1)
    output, kept = attended(run, index, module, weights, value, allowed, query.shape[-1])
    return output.transpose(1, 2).contiguous(), kept


def frozen_weights(run: Run, index: int) -> Tensor | None:
    """Weights (H, T, S) that a block uses instead of computing them. None where it does."""
    return run.masks[index].attention_weights if run.masks is not None else None


def attended(
    run: Run,
    index: int,
    module: nn.Module,
    weights: Tensor,
    values: Tensor,
    allowed: Tensor | None,
    key_size: int,
) -> tuple[Tensor, Tensor]:
    """Record a block's attention, mask it, and mix the values.

    Args:
        run: the state of the run.
        index: index of the block.
        module: the attention module, for messages.
        weights: (B, H, T, S), after the softmax.
        values: (B, G, S, V).
        allowed: (T, S) bool, the layer's own mask; needed where something is recorded.
        key_size: the size of a query or key head.

    Returns:
        The heads' outputs, (B, H, T, V).
        The weights that are left, (B, H, T, S).

    Raises:
        ModelError: a token attends to a later one.
        UnknownLayoutError: the module attends more than once in a forward pass.
    """
    if run.recorded is not None:
        assert allowed is not None
        if "weights" in run.recorded[index]:
            raise UnknownLayoutError(
                f"{type(module).__name__} attends more than once in a forward pass; its edges would not be one per head and "
                "pair of tokens"
            )
        _refuse_later_sources(module, allowed)
        run.recorded[index].update(weights=weights, values=values, allowed=allowed, key_size=key_size)
    mask = run.masks[index] if run.masks is not None else None
    if mask is None:
        return _grouped_matmul(weights, values.to(weights.dtype)).to(values.dtype), weights
    on = mask.attention.to(weights.dtype)  # (B, H, T, S)
    kept = weights * on
    output = _grouped_matmul(kept, values.to(kept.dtype))  # (B, H, T, V)
    if mask.stand_ins is not None:
        removed = mask.stand_ins.removed_attention(weights, on)
        output = output if removed is None else output + removed
    return output.to(values.dtype), kept


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | MaskRows | None,
    kwargs: Mapping[str, Any],
    call: Queries,
) -> tuple[Tensor, None]:
    """Compute the attention of some query tokens, on the packed rows of all variants.

    Tile by tile, and within a tile bucket by bucket, so that what the mask computes for a tile
    serves all variants.

    Args:
        query: (1, H, P, K).
        key: (1, G, P, K).
        value: (1, G, P, V).
        attention_mask: (1, 1 or H, T, T), additive; None where every source is allowed.
        kwargs: keywords of the attention function.
        call: the query tokens; `heads` gets the result.

    Returns:
        Ones, (1, P, H, V), in place of the result, which is in `call.heads` (see `packed.py`).
        None in place of the weights.
    """
    n_heads, size = query.shape[1], value.shape[-1]
    edges = call.mask.edges
    keys = [_gather_rows(key, bucket.sources) for bucket in call.buckets]  # (A, G, S, K) each
    values = [_gather_rows(value, bucket.sources) for bucket in call.buckets]  # (A, G, S, V) each
    # of each bucket, (A, H, Q, V) of each tile
    outputs: list[list[Tensor]] = [[] for _ in call.buckets]
    for tile in edges.tiles:
        cuts = [(place, bucket, bucket.inside(tile)) for place, bucket in enumerate(call.buckets)]
        cuts = [(place, bucket, cut) for place, bucket, cut in cuts if cut.stop > cut.start]
        if not cuts:
            continue
        full = edges.full_weights(tile)  # (H, t, s) or None
        # (1, 1 or H, t, S)
        additive = _mask_rows(attention_mask, tile.targets) if full is None else None
        for place, bucket, cut in cuts:
            rows = bucket.tokens[:, cut] - tile.targets.start  # (A, Q), in the tile
            # the call has no sources after the last query token of the bucket
            sources = slice(tile.sources.start, min(tile.sources.stop, bucket.sources.shape[1]))
            n_sources = sources.stop - sources.start
            if full is not None:
                weights = full[:, rows, :n_sources].transpose(0, 1)  # (A, H, Q, s)
            else:
                weights = _attention_weights(
                    module, _gather_rows(query, bucket.queries[:, cut]), keys[place][:, :, sources],
                    None if additive is None else additive[0][:, rows, sources].transpose(0, 1),
                    _at_queries(kwargs, bucket.tokens[:, cut], sources),
                )  # fmt: skip  # (A, H, Q, s)
            on = edges.on(tile, bucket.variants, rows, n_sources)  # (A, H, Q, s)
            # as int8, which torch multiplies several times faster than bool
            weights = weights.mul_(on.view(torch.int8))
            outputs[place].append(
                _grouped_matmul(weights, values[place][:, :, sources].to(weights.dtype)).to(value.dtype)
            )
    # to one row (H V) per query token, without the padding
    rows_of = [
        torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, bucket.valid)
        for parts, bucket in zip(outputs, call.buckets, strict=True)
    ]
    call.heads = torch.cat([*rows_of, value.new_zeros(1, n_heads * size)])[None]  # (1, n + 1, H V)
    return query.new_ones(1, 1, 1, 1).expand(1, query.shape[2], n_heads, size), None


def _at_queries(arguments: Mapping[str, Any], tokens: Tensor, sources: slice) -> dict[str, Any]:
    """Cut keywords of the attention function to query tokens (A, Q) and sources.

    A position bias becomes (A, 1 or H, Q, s).
    """
    named = dict(arguments)
    if named.get("position_bias") is not None:
        named["position_bias"] = named["position_bias"][0][:, tokens, sources].transpose(0, 1)
    return named


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
        # A learned score per head that takes part in the softmax like a source without a value: it
        # takes weight and adds nothing. Its column is dropped after the softmax.
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


def _allowed_by(
    attention_mask: Tensor | None, n_targets: int, n_sources: int, device: torch.device
) -> Tensor:
    """Which sources each target may attend to by a layer's additive mask, (T, S) bool."""
    if attention_mask is None:
        return torch.ones(n_targets, n_sources, dtype=torch.bool, device=device)
    return above_least(attention_mask[..., :n_sources])


def above_least(mask: Tensor) -> Tensor:
    """Which sources an additive mask lets any head attend to, (t, s) bool.

    Args:
        mask: (B, 1 or H, t, s), of which the first input is read. A source is masked where the
            number is near the least of the dtype.
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
