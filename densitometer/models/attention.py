"""The one attention function that all models call while densitometer runs them.

Registered with transformers' `AttentionInterface`, it computes attention as the eager implementation does, hands its
weights and values to a recorder, and multiplies the weights by a mask *after* the softmax, without renormalising.
Scores, softmax and weights are float32 whatever the model's dtype: a score beyond float16's range must not become
infinite, and rounded weights would tie. What the heads give is rounded to the dtype once.

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads, G key-value heads,
K key head size, V value head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        queries: set while a block runs on packed rows (`packed.py`).
        seen: the blocks whose attention was called.
    """

    block_of: Mapping[int, int]
    masks: Sequence[BlockMask] | Mapping[int, BlockMask] | None = None
    recorded: Sequence[dict[str, Any]] | Mapping[int, dict[str, Any]] | None = None
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


_RUN: ContextVar[Run | None] = ContextVar("densitometer_run", default=None)


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
    run = _RUN.get()
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
    if kwargs.get("indices") is not None:
        attention_mask = _of_indices(attention_mask, kwargs["indices"], query, key.shape[2])
    mask = run.masks[index] if run.masks is not None else None
    if mask is not None and mask.attention_weights is not None:
        weights = mask.attention_weights.expand(query.shape[0], -1, -1, -1)
    else:
        weights = _attention_weights(module, query, key, attention_mask, kwargs)  # (B, H, T, S)
    if run.recorded is not None:
        run.recorded[index].update(
            weights=weights,
            values=value,
            allowed=_allowed(module, attention_mask, weights),
            key_size=query.shape[-1],
        )
    kept = weights if mask is None else weights * mask.attention.to(weights.dtype)
    output = _of_groups(kept, value.to(kept.dtype))  # (B, H, T, V)
    if mask is not None and mask.means is not None and mask.means.attention is not None:
        removed = (weights - kept).sum(dim=-1, keepdim=True)  # (B, H, T, 1)
        output = output + removed * mask.means.attention[:, None].to(output)
    return output.to(value.dtype).transpose(1, 2).contiguous(), kept


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


def _allowed(module: nn.Module, attention_mask: Tensor | None, weights: Tensor) -> Tensor:
    """(T, S) bool: what the layer's mask allows. Refused where it is not causal."""
    n_tokens = weights.shape[-2]
    if attention_mask is None:
        allowed = torch.ones(n_tokens, weights.shape[-1], dtype=torch.bool, device=weights.device)
    else:
        least = torch.finfo(attention_mask.dtype).min / 2
        allowed = (attention_mask[0, :, :, : weights.shape[-1]] > least).any(dim=0)
    if bool(allowed.triu(1).any()):
        raise ModelError(
            f"{type(module).__name__} lets tokens attend to later ones: densitometer measures causal (decoder) "
            "language models, not encoders"
        )
    return allowed


AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


@contextmanager
def our_attention(module: nn.Module, run: Run) -> Iterator[None]:
    """Let the whole model call `attention_forward` for this run; its configs are put back as they were."""
    configs = {
        id(config): config
        for part in module.modules()
        if (config := getattr(part, "config", None)) is not None
        and hasattr(config, "_attn_implementation_internal")
    }
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    token = _RUN.set(run)
    try:
        for config in configs.values():
            config._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        _RUN.reset(token)
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
