"""The one attention function that all models call while densitometer runs them.

Registered with transformers' `AttentionInterface`, it computes attention as the eager implementation does, hands its
weights and values to a recorder, and multiplies the weights by a mask *after* the softmax, without renormalising.
Scores, softmax and weights are float32 whatever the model's dtype: a score beyond float16's range must not become
infinite, and rounded weights would tie. What the heads give is rounded to the dtype once.

An attention module that computes attention itself (Falcon, BLOOM, GPT-J; many with code of their own) calls none. There
`interception.py` watches the module's calls of torch, and hands the weights and values that it sees to `attended`.

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads, G key-value heads,
K key head size, V value head size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ..errors import ModelError, UnknownLayoutError
from .blocks import BlockMask

IMPLEMENTATION = "densitometer"

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
        seen: the blocks whose attention was called.
    """

    block_of: Mapping[int, int]
    masks: Sequence[BlockMask] | Mapping[int, BlockMask] | None = None
    recorded: Sequence[dict[str, Any]] | Mapping[int, dict[str, Any]] | None = None
    own: Collection[int] = ()
    queries: Queries | None = None
    seen: set[int] = field(default_factory=set)


class Asking(NamedTuple):
    """Tokens that ask, of variants that are padded to one number of them, in a call on packed rows. Arrays of int64.

    variants (A, 1); tokens (A, Q); queries (A, Q) and sources (A, S): the rows of the call that hold them; asked (n,): which
    of the A x Q are no padding.
    """

    variants: Any
    tokens: Any
    queries: Any
    sources: Any
    asked: Any


@dataclass
class Queries:
    """Who asks in a call of the attention module on packed rows.

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
        return _packed_attention(module, query, key, value, attention_mask, kwargs, run.queries)
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
        _refuse_later_tokens(module, allowed)
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
    """Attention of the queries that are asked for, on the packed rows of all variants.

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
            """(1 or H, T, T) to (A, 1 or H, Q, S)."""
            return x[:, asking.tokens, :n_sources].transpose(0, 1)

        keys = key[0][:, asking.sources].transpose(0, 1)  # (A, G, S, K)
        values = value[0][:, asking.sources].transpose(0, 1)  # (A, G, S, V)
        if asked.mask.attention_weights is not None:
            weights = of_queries(asked.mask.attention_weights)
        else:
            queries = query[0][:, asking.queries].transpose(0, 1)  # (A, H, Q, K)
            allowed = of_queries(attention_mask[0]) if attention_mask is not None else None
            named = dict(kwargs)
            if named.get("position_bias") is not None:
                named["position_bias"] = of_queries(named["position_bias"][0])
            weights = _attention_weights(module, queries, keys, allowed, named)  # (A, H, Q, S)
        on = asked.mask.attention[asking.variants, :, asking.tokens, :n_sources]  # (A, Q, H, S)
        output = _of_groups(weights.mul_(on.transpose(1, 2)), values.to(weights.dtype))  # (A, H, Q, V)
        outputs.append(output.transpose(1, 2).flatten(0, 1).flatten(1)[asking.asked].to(value.dtype))
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
    """(A, H, Q, S), float32; float64 in a float64 model."""
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
    """The mask, with only the sources that an indexer chose for each token, (B, T, n); the eager implementation masks so."""
    least = torch.finfo(query.dtype).min
    chosen = query.new_full((*indices.shape[:2], n_sources), least).scatter(-1, indices.long(), 0.0)[:, None]
    return chosen if attention_mask is None else torch.minimum(chosen, attention_mask[..., :n_sources])


def _allowed_by(
    attention_mask: Tensor | None, n_targets: int, n_sources: int, device: torch.device
) -> Tensor:
    """(T, S) bool: what a layer's additive mask allows."""
    if attention_mask is None:
        return torch.ones(n_targets, n_sources, dtype=torch.bool, device=device)
    least = torch.finfo(attention_mask.dtype).min / 2
    return (attention_mask[0, :, :, :n_sources] > least).any(dim=0)


def _refuse_later_tokens(module: nn.Module, allowed: Tensor) -> None:
    if bool(allowed.triu(1).any()):
        raise ModelError(
            f"{type(module).__name__} lets tokens attend to later ones: densitometer measures causal (decoder) "
            "language models, not encoders"
        )


AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
