"""Make a model's attention modules use densitometer's attention during a run.

There are two ways, and everything is restored afterwards:

1. Through transformers' `AttentionInterface`: the configs name densitometer's attention function.
2. For modules that compute attention themselves, by watching their calls of torch:

       softmax over the last axis            its result is the weights; its argument, the attention
                                             scores, shows which tokens are masked
       the next product with these weights   its other factor is the values; the product is replaced
                                             by one that is masked and recorded
       scaled_dot_product_attention          both at once

   The product must take the weights as the softmax returned them, apart from dtype and shape;
   otherwise an error is raised. Whatever the module does before the softmax and after the product
   stays as it is. `probing.py` checks it on real activations.

What this file does not do: it does not mask or record anything itself (`attention.py`).

Axes: as in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UnknownLayoutError
from .attention import IMPLEMENTATION, RUN, Run, attend_rows, attention_forward, record_weights
from .blocks import Tile, configs_set, instance_attribute

# An attention score this far below the largest of its row is masked: models mask with -inf, the
# dtype's least number, or -1e4.
_MASKED_BELOW = 5e3

_SOFTMAX = (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)
_PRODUCTS = (
    torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__, torch.baddbmm, Tensor.baddbmm,
)  # fmt: skip


class _Watch(TorchFunctionMode):
    """Watch one call of an attention module that computes attention itself.

    Args:
        run: the state of the run.
        index: index of the module's block.
        module: the attention module.
        n_variants: the batch size B of the stream that the module got.
    """

    def __init__(self, run: Run, index: int, module: nn.Module, n_variants: int) -> None:
        super().__init__()
        self.run, self.index, self.module, self.n_variants = run, index, module, n_variants
        # (B, H, T, S), from the softmax until they are multiplied with values
        self.weights: Tensor | None = None
        self.allowed: Tensor | None = None  # (T, S) bool, the module's own mask
        self.key_size = 0  # inner size of the latest product before the softmax

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._whole_attention(*args, **kwargs)
        if func in _SOFTMAX:
            return self._softmax(func, args, kwargs)
        if func in _PRODUCTS:
            # after the softmax this is weights @ values; before it, queries @ keys
            if self.weights is not None and func not in (torch.baddbmm, Tensor.baddbmm):
                return self._product(args[0], args[1] if len(args) > 1 else next(iter(kwargs.values())))
            last = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)][-1]
            self.key_size = last.shape[-2]
        return func(*args, **kwargs)

    def _softmax(self, func: Callable[..., Tensor], args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Call the softmax, and remember its weights and the module's mask.

        Raises:
            UnknownLayoutError: it is not a softmax over heads, targets and sources.
        """
        weights = func(*args, **kwargs)
        scores = args[0]
        if self.weights is not None or weights.ndim < 3 or weights.shape[-1] != weights.shape[-2]:
            raise UnknownLayoutError(
                f"{type(self.module).__name__} computes attention itself, in a way that is not known: a softmax of shape "
                f"{tuple(weights.shape)} where one over heads, targets and sources was expected"
            )
        self.weights = self._by_variant(weights)
        allowed = scores > scores.amax(-1, keepdim=True) - _MASKED_BELOW
        self.allowed = self._by_variant(allowed)[0].any(dim=0)  # (T, S), of any head
        return weights

    def _product(self, weights: Tensor, values: Tensor) -> Tensor:
        """Compute masked and recorded attention in place of the module's weights @ values.

        Raises:
            UnknownLayoutError: the weights are not those of the softmax.
        """
        noted, self.weights = self.weights, None
        assert noted is not None
        if weights.numel() != noted.numel() or not torch.equal(
            self._by_variant(weights), noted.to(weights.dtype)
        ):
            raise UnknownLayoutError(
                f"{type(self.module).__name__} computes attention itself and changes its weights after the softmax, which "
                "densitometer does not know how to follow"
            )
        output = self._attended(noted.to(weights.dtype), self._by_variant(values))
        return output.reshape(*weights.shape[:-1], values.shape[-1])

    def _whole_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute attention in place of torch's `scaled_dot_product_attention`, (B, H, T, V)."""
        n_targets, n_sources = query.shape[-2], key.shape[-2]
        # an additive mask (1, 1, T, S), as `attention_forward` takes it
        least = torch.finfo(query.dtype).min
        if is_causal:
            attn_mask = torch.ones(n_targets, n_sources, dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, least)
        if attn_mask is not None:
            attn_mask = (
                attn_mask.clamp_min(least).expand(1, 1, n_targets, n_sources)
                if attn_mask.ndim < 4
                else attn_mask
            )
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        output, _ = attention_forward(self.module, query, key, value, attn_mask, scaling=scale)
        return output.transpose(1, 2)

    def _attended(self, weights: Tensor, values: Tensor) -> Tensor:
        """Record the weights, mask them, and sum the values by them, (B, H, T, V).

        Raises:
            NotImplementedError: the run is on packed rows.
        """
        run = self.run
        run.seen.add(self.index)
        if run.queries is not None:
            raise NotImplementedError("this module computes attention itself, on all of a text's tokens")
        mask = run.masks[self.index] if run.masks is not None else None
        everything = Tile(slice(0, weights.shape[2]), slice(0, weights.shape[3]))
        output, used, _ = attend_rows(lambda: weights, values, mask, everything)
        if run.recorded is not None:
            assert self.allowed is not None
            record_weights(run, self.index, self.module, used, values, self.allowed, self.key_size)
        return output

    def _by_variant(self, x: Tensor) -> Tensor:
        """Reshape a tensor to (B, H, n, m): some modules have variants and heads on one axis."""
        return x.reshape(self.n_variants, -1, *x.shape[-2:])


@contextmanager
def _watched(module: nn.Module, run: Run) -> Iterator[None]:
    """Watch the attention modules that compute attention themselves, while this context lasts.

    Of nested modules, only the outermost is watched.
    """
    inside: set[str] = set()
    with ExitStack() as stack:
        for name, part in module.named_modules():
            index = run.block_of.get(id(part))
            if index is None or index not in run.own or any(name.startswith(outer + ".") for outer in inside):
                continue
            inside.add(name)

            def forward(
                *args: Any,
                part: nn.Module = part,
                real: Any = part.forward,
                index: int = index,
                **kwargs: Any,
            ) -> Any:
                stream = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
                with _Watch(run, index, part, stream.shape[0]):
                    return real(*args, **kwargs)

            stack.enter_context(instance_attribute(part, "forward", forward))
        yield


@contextmanager
def our_attention(module: nn.Module, run: Run) -> Iterator[None]:
    """Make a model's attention modules use densitometer's attention, while this context lasts.

    If all of a model's attention modules compute attention themselves, the configs are not changed:
    Falcon's two implementations, `eager` and `sdpa`, differ with ALiBi (transformers 5.23).

    Args:
        module: the model.
        run: what is masked and recorded.
    """
    calls_interface = not set(run.block_of.values()) <= set(run.own)
    token = RUN.set(run)
    try:
        with ExitStack() as stack:
            if calls_interface:
                stack.enter_context(configs_set(module, "_attn_implementation_internal", IMPLEMENTATION))
            stack.enter_context(_watched(module, run))
            yield
    finally:
        RUN.reset(token)
