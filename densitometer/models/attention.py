"""The one attention function that all models call while densitometer runs them.

Registered with transformers' `AttentionInterface`, it computes attention as the eager implementation does, hands its
weights and values to a recorder, and multiplies the weights by a mask *after* the softmax, without renormalising.
Scores, softmax and weights are float32 whatever the model's dtype: a score beyond float16's range must not become
infinite, and rounded weights would tie. What the heads give is rounded to the dtype once.

An attention module that computes attention itself (Falcon, BLOOM, GPT-J; many with code of their own) calls none. There
`interception.py` watches the module's calls of torch, and hands the weights and values that it sees to `attended`.

Long inputs go by *tiles*: the edges, of all heads, into a few targets. No weight outlives its tile; what weights are made
of is recorded instead (`AttentionInputs`), and the same code computes any tile again.

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads, G key-value heads,
K key head size, V value head size.
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
from .blocks import BlockMask

IMPLEMENTATION = "densitometer"
GRAPH_WEIGHTS = 2**26  # attention weights of a layer that a backward pass may keep; a few copies, float32

# What models hand to their attention function besides queries, keys, values and mask. A keyword that is in
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
    """The state of one run under the adapter, looked up by the attention function.

    Args:
        block_of: id of an attention submodule to the index of its block.
        masks: one per block, or None: everything is on.
        recorded: one dictionary per block to write to, or None.
        own: the blocks whose attention modules compute attention themselves.
        queries: set while a block runs on packed rows (`packed.py`).
        tile_targets: how many targets' weights are computed at a time; None for all at once.
        mask_rows: whether the model is handed masks that are built for a few targets at a time.
        seen: the blocks whose attention was called.
    """

    block_of: Mapping[int, int]
    masks: Sequence[BlockMask] | Mapping[int, BlockMask] | None = None
    recorded: Sequence[dict[str, Any]] | Mapping[int, dict[str, Any]] | None = None
    own: Collection[int] = ()
    queries: Queries | None = None
    tile_targets: int | None = None
    mask_rows: bool = False
    seen: set[int] = field(default_factory=set)


class Asking(NamedTuple):
    """Query tokens of a bucket of variants, for one packed attention call.

    The variants of a bucket are padded to the same count. Arrays are int64.

    variants (A, 1); tokens (A, Q); queries (A, Q) and sources (A, S): the rows of the call that hold them; asked (n,): which
    of the A x Q are not padding.
    """

    variants: Any
    tokens: Any
    queries: Any
    sources: Any
    asked: Any


@dataclass
class Queries:
    """Query tokens of one call of the attention module on packed rows.

    Args:
        index: of the block.
        askings: tensors on its device.
        mask: the block's, for all B variants.
        heads: (1, n + 1, H V), written by the attention function: what the n queries give to the output projection, and a
            row of zeros.
    """

    index: int
    askings: Sequence[Asking]
    mask: BlockMask
    heads: Tensor | None = None


RUN: ContextVar[Run | None] = ContextVar("densitometer_run", default=None)


class Tile(NamedTuple):
    """The edges, of all heads, into a few targets from the sources that any of them may attend to."""

    targets: slice
    sources: slice


@dataclass(frozen=True)
class MaskRows:
    """An additive attention mask that is built for a few targets at a time.

    Models pass it on as they pass a tensor.

    Args:
        arguments: what the model asked `eager_mask` for.
    """

    arguments: Mapping[str, Any]

    def rows(self, targets: slice) -> Tensor:
        """Rows of the mask, (1, 1, t, S)."""
        offset = self.arguments["q_offset"] + targets.start
        length = targets.stop - targets.start
        return eager_mask(**{**self.arguments, "batch_size": 1, "q_length": length, "q_offset": offset})


def _mask(**arguments: Any) -> Tensor | MaskRows:
    run = RUN.get()
    if run is not None and run.mask_rows and {"q_length", "q_offset"} <= arguments.keys():
        return MaskRows(arguments)
    return eager_mask(**arguments)


def _mask_rows(mask: Tensor | MaskRows | None, targets: slice) -> Tensor | None:
    """Rows of the mask for some targets, (1, 1 or H, t, S), or None."""
    if mask is None:
        return None
    return mask.rows(targets) if isinstance(mask, MaskRows) else mask[..., targets, :]


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of one layer's attention weights, on one input.

    Any tile of the weights can be computed again.

    Args:
        query: (1, H, T, K); key: (1, G, S, K).
        mask: (1, 1 or H, T, S) additive, its rows, or None.
        arguments: scaling, softcap, s_aux, position_bias.
        tile_targets: targets of a tile.
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
            ModelError: the mask is not causal.
        """
        n_tokens, n_sources = self.query.shape[2], self.key.shape[2]
        tiles = []
        for start in range(0, n_tokens, self.tile_targets):
            targets = slice(start, min(start + self.tile_targets, n_tokens))
            allowed = self.allowed(Tile(targets, slice(0, n_sources)))
            _refuse_later_sources(self.module, allowed, start)
            read = allowed.any(dim=0).nonzero()
            tiles.append(Tile(targets, slice(int(read[0]), int(read[-1]) + 1)))
        return tuple(tiles)

    def allowed(self, tile: Tile) -> Tensor:
        """What the layer's mask allows, (t, s) bool."""
        mask = _mask_rows(self.mask, tile.targets)
        if mask is None:
            shape = (tile.targets.stop - tile.targets.start, tile.sources.stop - tile.sources.start)
            return torch.ones(shape, dtype=torch.bool, device=self.query.device)
        return above_least(mask[..., tile.sources])

    def weights(self, tile: Tile) -> Tensor:
        """Return the weights of a tile after the softmax, (H, t, s).

        The numbers are the same whenever the same tile is computed.
        """
        mask = _mask_rows(self.mask, tile.targets)
        return _attention_weights(
            self.module, self.query[:, :, tile.targets], self.key[:, :, tile.sources],
            None if mask is None else mask[..., tile.sources], _of_tile(self.arguments, tile.targets, tile.sources),
        )[0]  # fmt: skip

    def mix(self, values: Tensor) -> Tensor:
        """Heads' outputs (1, H, T, V) from values (1, G, S, V).

        Where gradients are computed and the weights of all tiles would take much memory, those of
        a tile are computed again by the backward pass.
        """

        def mixed(tile: Tile) -> Tensor:
            weights = self.weights(tile)[None]
            return _of_groups(weights, values[:, :, tile.sources].to(weights.dtype)).to(values.dtype)

        n_weights = self.query.shape[1] * self.query.shape[2] * self.key.shape[2]
        again = torch.is_grad_enabled() and n_weights > GRAPH_WEIGHTS
        parts = [
            checkpoint(mixed, tile, use_reentrant=False) if again else mixed(tile) for tile in self.tiles
        ]
        return torch.cat(parts, dim=2)


def _of_tile(arguments: Mapping[str, Any], targets: slice | Tensor, sources: slice) -> dict[str, Any]:
    """Keywords of the attention function, cut to a tile."""
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
    """Attention as the eager implementation computes it, recorded and masked after the softmax.

    Args:
        module: the attention module that calls.
        query: (B, H, T, K); key: (B, G, S, K); value: (B, G, S, V).
        attention_mask: (B or 1, H or 1, T, S), additive.

    Returns:
        output (B, T, H, V) and weights (B, H, T, S).
    """
    run = RUN.get()
    if run is None or id(module) not in run.block_of:
        raise ModelError(
            f"{type(module).__name__} called densitometer's attention outside one of the model's decoder blocks; "
            "densitometer measures the decoder blocks of a causal language model only"
        )
    index = run.block_of[id(module)]
    run.seen.add(index)
    unknown = sorted(name for name, v in kwargs.items() if v is not None and name not in _HANDLED | _IGNORED)
    if unknown:
        raise UnknownLayoutError(
            f"{type(module).__name__} passes {unknown} to its attention function: densitometer does not know "
            f"what they do (it handles {sorted(_HANDLED)}) and will not guess"
        )
    if run.queries is not None:
        if kwargs.get("indices") is not None:
            raise NotImplementedError(
                "an indexer chooses the sources of each token, so rows cannot be skipped"
            )
        packed = _packed_attention
        if not isinstance(run.queries.mask.attention, Tensor):
            packed = _packed_attention_by_tiles
        return packed(module, query, key, value, attention_mask, kwargs, run.queries)
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
    allowed = None
    if run.recorded is not None:
        # an indexer reads every token that the mask allows, so those that it does not choose are needed too
        allowed = _allowed_by(attention_mask, query.shape[2], key.shape[2], query.device)
    if kwargs.get("indices") is not None:
        attention_mask = _of_indices(attention_mask, kwargs["indices"], query, key.shape[2])
    frozen = frozen_weights(run, index)
    if frozen is None:
        weights = _attention_weights(module, query, key, attention_mask, kwargs)  # (B, H, T, S)
    else:
        weights = frozen.expand(query.shape[0], -1, -1, -1)
    output, kept = attended(run, index, module, weights, value, allowed, query.shape[-1])
    return output.transpose(1, 2).contiguous(), kept


def frozen_weights(run: Run, index: int) -> Tensor | None:
    """The weights (H, T, S) that a block uses instead of those it computes, or None."""
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
    """Record a block's attention and mask it.

    Args:
        weights: (B, H, T, S), after the softmax; values: (B, G, S, V).
        allowed: (T, S) bool, the layer's own mask; needed where something is recorded.

    Returns:
        output (B, H, T, V), and the weights (B, H, T, S) that are left.

    Raises:
        ModelError: tokens attend to later ones, or the module attends twice.
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
        return _of_groups(weights, values.to(weights.dtype)).to(values.dtype), weights
    kept = weights * mask.attention.to(weights.dtype)
    output = _of_groups(kept, values.to(kept.dtype))  # (B, H, T, V)
    if mask.means is not None and mask.means.attention is not None:
        removed = (weights - kept).sum(dim=-1, keepdim=True)  # (B, H, T, 1)
        output = output + removed * mask.means.attention[:, None].to(output)
    return output.to(values.dtype), kept


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    kwargs: Mapping[str, Any],
    asked: Queries,
) -> tuple[Tensor, None]:
    """Attention of some query tokens, on the packed rows of all variants.

    Args:
        query: (1, H, P, K); key: (1, G, P, K); value: (1, G, P, V).
        attention_mask: (1, 1 or H, T, T), additive.

    Returns:
        Ones (1, P, H, V) and None: the result is in `asked.heads`.
    """
    n_heads, size = query.shape[1], value.shape[-1]
    outputs = []
    for asking in asked.askings:
        n_sources = asking.sources.shape[1]

        def of_queries(x: Tensor, asking: Asking = asking, n_sources: int = n_sources) -> Tensor:
            """Select query tokens: (1 or H, T, T) to (A, 1 or H, Q, S)."""
            return x[:, asking.tokens, :n_sources].transpose(0, 1)

        keys = _of_rows(key, asking.sources)  # (A, G, S, K)
        values = _of_rows(value, asking.sources)  # (A, G, S, V)
        if asked.mask.attention_weights is not None:
            weights = of_queries(asked.mask.attention_weights)
        else:
            queries = _of_rows(query, asking.queries)  # (A, H, Q, K)
            allowed = of_queries(attention_mask[0]) if attention_mask is not None else None
            named = dict(kwargs)
            if named.get("position_bias") is not None:
                named["position_bias"] = of_queries(named["position_bias"][0])
            weights = _attention_weights(module, queries, keys, allowed, named)  # (A, H, Q, S)
        heads = torch.arange(n_heads, device=query.device)[:, None]
        on = asked.mask.attention[
            asking.variants[:, None], heads, asking.tokens[:, None], :n_sources
        ]  # (A, H, Q, S)
        # as int8, which torch multiplies several times faster than bool
        output = _of_groups(weights.mul_(on.view(torch.int8)), values.to(weights.dtype))  # (A, H, Q, V)
        outputs.append(
            output.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, asking.asked).to(value.dtype)
        )
    asked.heads = torch.cat([*outputs, value.new_zeros(1, n_heads * size)])[None]
    return query.new_ones(1, 1, 1, 1).expand(1, query.shape[2], n_heads, size), None


def _of_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Select queries (A, Q) of packed rows (1, H, P, X), (A, H, Q, X)."""
    n_heads, size = x.shape[1], x.shape[-1]
    flat = rows[:, None] * n_heads + torch.arange(n_heads, device=rows.device)[:, None]  # (A, H, Q)
    return x[0].transpose(0, 1).reshape(-1, size).index_select(0, flat.flatten()).view(*flat.shape, size)


def _packed_attention_by_tiles(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | MaskRows | None,
    kwargs: Mapping[str, Any],
    asked: Queries,
) -> tuple[Tensor, None]:
    """`_packed_attention` for edges that are known to be on tile by tile (`blocks.TiledEdges`)."""
    edges = asked.mask.attention
    assert not isinstance(edges, Tensor)
    n_heads, size = query.shape[1], value.shape[-1]
    outputs = []
    for asking in asked.askings:
        n_variants, most = asking.tokens.shape
        output = value.new_zeros(n_variants * most, n_heads * size)
        is_asked = torch.zeros(n_variants * most, dtype=torch.bool, device=query.device)
        is_asked[asking.asked] = True
        rows_of = output.view(n_variants, most, -1)  # of each variant
        valid = is_asked.view(n_variants, most)
        keys = [key[:, :, sources] for sources in asking.sources]  # (1, G, S, K) of each variant
        values = [value[:, :, sources] for sources in asking.sources]
        for targets, all_sources in edges.tiles:
            sources = slice(all_sources.start, min(all_sources.stop, asking.sources.shape[1]))
            mask = None
            for i, variant in enumerate(asking.variants[:, 0].tolist()):
                inside = valid[i] & (asking.tokens[i] >= targets.start) & (asking.tokens[i] < targets.stop)
                tokens = asking.tokens[i][inside]
                if not len(tokens):
                    continue
                within, width = tokens - targets.start, sources.stop - sources.start
                if edges.frozen:
                    weights = edges.weights(Tile(targets, all_sources))[None, :, within, :width]
                else:
                    if mask is None and attention_mask is not None:
                        mask = _mask_rows(attention_mask, targets)
                    weights = _attention_weights(
                        module, query[:, :, asking.queries[i][inside]], keys[i][:, :, sources],
                        None if mask is None else mask[..., within, :][..., sources], _of_tile(kwargs, tokens, sources),
                    )  # fmt: skip  # (1, H, q, s)
                weights = weights * edges.on(Tile(targets, all_sources), variant)[:, within, :width]
                mixed = _of_groups(weights, values[i][:, :, sources].to(weights.dtype))[0]  # (H, q, V)
                rows_of[i][inside] = (
                    mixed.transpose(0, 1).reshape(len(tokens), n_heads * size).to(value.dtype)
                )
        outputs.append(output[asking.asked])
    asked.heads = torch.cat([*outputs, value.new_zeros(1, n_heads * size)])[None]
    return query.new_ones(1, 1, 1, 1).expand(1, query.shape[2], n_heads, size), None


def _of_groups(x: Tensor, y: Tensor) -> Tensor:
    """Matrix products of (A, H, Q, X) with (A, G, X, Y), each y serving H / G heads: (A, H, Q, Y)."""
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
    """Attention weights, (A, H, Q, S), float32. float64 in a float64 model."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = getattr(module, "scaling", None) or query.shape[-1] ** -0.5
    scores = _of_groups(query.to(wide), key.to(wide).transpose(2, 3)) * scaling
    if kwargs.get("softcap") is not None:
        scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
    if kwargs.get("position_bias") is not None:
        scores = scores + kwargs["position_bias"]
    if attention_mask is not None:
        scores = scores + attention_mask[..., : scores.shape[-1]]
    sinks = kwargs.get("s_aux")
    if sinks is not None:  # a learned score per head that takes weight and gives nothing
        column = sinks.to(scores).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
        scores = scores - scores.amax(dim=-1, keepdim=True)
    weights = torch.softmax(scores, dim=-1)
    return weights[..., :-1] if sinks is not None else weights


def _of_indices(attention_mask: Tensor | None, indices: Tensor, query: Tensor, n_sources: int) -> Tensor:
    """Mask with only the sources that an indexer chose for each token, (B, T, n).

    The eager implementation masks so.
    """
    least = torch.finfo(query.dtype).min
    chosen = query.new_full((*indices.shape[:2], n_sources), least).scatter(-1, indices.long(), 0.0)[:, None]
    return chosen if attention_mask is None else torch.minimum(chosen, attention_mask[..., :n_sources])


def _allowed_by(
    attention_mask: Tensor | None, n_targets: int, n_sources: int, device: torch.device
) -> Tensor:
    """What a layer's additive mask allows, (T, S) bool."""
    if attention_mask is None:
        return torch.ones(n_targets, n_sources, dtype=torch.bool, device=device)
    return above_least(attention_mask[..., :n_sources])


def above_least(mask: Tensor) -> Tensor:
    """What an additive mask (B, 1 or H, t, s) allows any head of the first input, (t, s) bool."""
    return (mask[0] > torch.finfo(mask.dtype).min / 2).any(dim=0)


def _refuse_later_sources(module: nn.Module, allowed: Tensor, first_target: int = 0) -> None:
    """Refuse a mask (t, S) that is not causal. Its first row is that of `first_target`."""
    if bool(allowed.triu(first_target + 1).any()):
        raise ModelError(
            f"{type(module).__name__} lets tokens attend to later ones: densitometer measures causal (decoder) "
            "language models, not encoders"
        )


AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
