"""A decoder block, what it records, how it is masked, and how it adds up.

`add_up` is the forward pass of every block that densitometer runs: the block's own submodules, called in the order that
its `Layout` declares, with a mask on the residual stream and on the MLP's output.

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads, G key-value heads,
V value head size, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UnknownLayoutError
from .layouts import ATTENTION_PROJECTIONS, Layout


@dataclass(frozen=True)
class BlockMeans:
    """What removed edges of one block contribute instead of nothing; float32.

    Args:
        residual_attention: (D,); None in a parallel block.
        attention: (H, V), of each head per unit of attention, before the output projection.
        residual_mlp, mlp: (D,).
    """

    residual_attention: Tensor | None = None
    attention: Tensor | None = None
    residual_mlp: Tensor | None = None
    mlp: Tensor | None = None


_NO_MEANS = BlockMeans()


@dataclass(frozen=True)
class BlockMask:
    """Which edges of one decoder block are on, for B variants. 1 is on, 0 is off; floats may carry gradients.

    Args:
        residual_attention: (B, T), the stream into the attention's sum; None in a parallel block.
        attention: (B, H, T, S).
        residual_mlp: (B, T), the stream into the MLP's sum; in a parallel block, into the only sum.
        mlp: (B, T).
        attention_weights: (H, T, S) weights to use instead of recomputed ones ("frozen"), or None.
        means: what removed edges contribute, or None for nothing.
    """

    residual_attention: Tensor | None
    attention: Tensor
    residual_mlp: Tensor
    mlp: Tensor
    attention_weights: Tensor | None = None
    means: BlockMeans | None = None


@dataclass(frozen=True)
class BlockRecord:
    """What one block did on one input: all that its edges' vectors are made of.

    Args:
        stream: (T, D), the residual stream into the block.
        weights: (H, T, S), attention after the softmax.
        values: (G, S, V), G dividing H.
        allowed: (T, S) bool, what the layer's own mask lets a token attend to.
        key_size: the size of a query or key head.
        projection_input: (T, H V), what the attention's output projection read.
        projected: (T, D), what it wrote, before a branch norm.
        attention: (T, D), what the attention adds to the stream: its sum of edges plus constants.
        mlp: (T, D), what the MLP adds to the stream.
        residual_attention: (T, D), what the stream brings to the attention's sum; None in a parallel block.
        residual_mlp: (T, D), what it brings to the MLP's sum; in a parallel block, to the only sum.
        attention_sum: (T, D), the node of stream and attention; None in a parallel block.
        mlp_sum: (T, D), the node that the MLP is added to; in a parallel block, the only one.
    """

    stream: Tensor
    weights: Tensor
    values: Tensor
    allowed: Tensor
    key_size: int
    projection_input: Tensor
    projected: Tensor
    attention: Tensor
    mlp: Tensor
    residual_attention: Tensor | None
    residual_mlp: Tensor
    attention_sum: Tensor | None
    mlp_sum: Tensor

    def prefix(self, n_tokens: int) -> BlockRecord:
        """What the block did on the first tokens; in a causal model, what it does on them alone."""
        n = n_tokens

        def cut(name: str, value: Any) -> Any:
            if name in ("weights", "values"):
                return value[:, :n, :n] if name == "weights" else value[:, :n]
            if name == "allowed":
                return value[:n, :n]
            return value[:n] if isinstance(value, Tensor) else value

        return BlockRecord(
            **{field.name: cut(field.name, getattr(self, field.name)) for field in fields(self)}
        )


@dataclass(frozen=True)
class Block:
    """A decoder block with the layout that was found for it.

    Args:
        gated: whether something multiplies the heads' outputs before the output projection: a gate computed from the
            target's stream, or a norm.
    """

    index: int
    module: nn.Module
    layout: Layout
    hidden_size: int
    n_heads: int
    gated: bool = False

    def child(self, name: str | None) -> Callable[..., Any]:
        """The submodule of that path; for None, the identity."""
        return self.module.get_submodule(name) if name else _identity

    @cached_property
    def attention(self) -> nn.Module:
        return self.module.get_submodule(self.layout.attention)

    @cached_property
    def projection(self) -> nn.Module:
        """The attention's output projection."""
        outside = self.layout.attention_projection
        return self.module.get_submodule(outside) if outside else output_projection(self.attention)

    @cached_property
    def residual_scales(self) -> tuple[Tensor | None, Tensor | None]:
        """What the stream is multiplied by before the attention and before the MLP is added, (D,) each."""
        names = (self.layout.attention_residual_scale, self.layout.mlp_residual_scale)
        attention, mlp = (getattr(self.module, name) if name else None for name in names)
        return attention, mlp

    @property
    def multiplier(self) -> float:
        """The number that scales both branches."""
        return float(getattr(self.module, self.layout.multiplier)) if self.layout.multiplier else 1.0

    def stream_out(self, mlp_sum: Tensor) -> Tensor:
        """The stream out of the block, from its last sum."""
        out = self.child(self.layout.mlp_sum_norm)(mlp_sum)
        return out * getattr(self.module, self.layout.stream_scale) if self.layout.stream_scale else out

    @cached_property
    def mlp_flops(self) -> float:
        """Operations of the MLP on one token, counted while it runs on one.

        A mixture of experts counts the experts that run.
        """
        like = next(self.module.parameters())
        token = torch.linspace(-1, 1, self.hidden_size, device=like.device, dtype=like.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            mlp_branch(self, token[None, None])
        return float(counter.get_total_flops())


def _identity(x: Tensor) -> Tensor:
    return x


def first(output: Any) -> Tensor:
    """The tensor that a submodule returns, alone or first in a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def output_projection(attention: nn.Module) -> nn.Module:
    """The attention's output projection, by the declared names.

    Raises:
        UnknownLayoutError: the module has none of them.
    """
    for owner in (attention, *attention.children()):
        for name in ATTENTION_PROJECTIONS:
            projection = getattr(owner, name, None)
            if isinstance(projection, nn.Module):
                inside = list(projection.children())  # Moshi wraps each linear layer in a module of one
                return inside[0] if len(inside) == 1 and type(inside[0]) is nn.Linear else projection
    raise UnknownLayoutError(
        f"{type(attention).__name__} has no output projection that is known: it has "
        f"{sorted(n for n, _ in attention.named_children())}, looked for {list(ATTENTION_PROJECTIONS)}"
    )


def attention_branch(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What the attention adds to the stream, (B, T, D)."""
    layout = block.layout
    normed = block.child(layout.attention_norm)(stream)
    output = first(block.attention(normed, **arguments))
    output = block.child(layout.attention_projection)(output)
    output = block.child(layout.attention_branch_norm)(output)
    return output * block.multiplier if layout.multiplier else output


def mlp_branch(block: Block, stream: Tensor) -> Tensor:
    """What the MLP adds to the stream, (B, T, D)."""
    layout = block.layout
    normed = block.child(layout.mlp_norm)(stream)
    output = _chain(block, layout.mlp, normed)
    if layout.mlp_beside:
        output = output + _chain(block, layout.mlp_beside, normed)
    output = block.child(layout.mlp_branch_norm)(output)
    return output * block.multiplier if layout.multiplier else output


def _chain(block: Block, names: tuple[str, ...], normed: Tensor) -> Tensor:
    output = normed
    for name in names:
        output = first(block.child(name)(output))
    return output.view(normed.shape)  # some mixtures of experts return their tokens in one row


def add_up(
    block: Block,
    stream: Tensor,
    arguments: dict[str, Any],
    mask: BlockMask | None = None,
    recorded: dict[str, Any] | None = None,
) -> Tensor:
    """A decoder block's forward pass as its layout declares it: stream in (B, T, D), stream out."""
    layout = block.layout
    attention = attention_branch(block, stream, arguments)
    means = (mask.means if mask is not None else None) or _NO_MEANS
    if layout.parallel:
        mid, residual_attention, attention_sum = stream, None, None
    else:
        residual_attention = scaled(stream, block.residual_scales[0])
        kept = residual_attention
        if mask is not None:
            assert mask.residual_attention is not None
            kept = _kept(residual_attention, mask.residual_attention, means.residual_attention)
        attention_sum = kept + attention
        mid = block.child(layout.attention_sum_norm)(attention_sum)
    residual_mlp, mlp = scaled(mid, block.residual_scales[1]), mlp_branch(block, mid)
    kept = residual_mlp
    if mask is not None:
        kept = _kept(residual_mlp, mask.residual_mlp, means.residual_mlp)
        mlp = _kept(mlp, mask.mlp, means.mlp)
    mlp_sum = mlp + attention + kept if layout.parallel else kept + mlp
    if recorded is not None:
        recorded.update(
            stream=stream,
            attention=attention,
            mlp=mlp,
            residual_attention=residual_attention,
            residual_mlp=residual_mlp,
            attention_sum=attention_sum,
            mlp_sum=mlp_sum,
        )
    return block.stream_out(mlp_sum)


def scaled(stream: Tensor, scale: Tensor | None) -> Tensor:
    """The stream, times a learned scale (D,) where there is one."""
    return stream if scale is None else stream * scale


def _kept(vectors: Tensor, mask: Tensor, mean: Tensor | None) -> Tensor:
    """Vectors (B, T, D) where the mask (B, T) is on, the mean (D,), or nothing, where it is off."""
    on = mask[..., None].to(vectors.dtype)
    return vectors * on if mean is None else vectors * on + mean.to(vectors) * (1 - on)


def attention_arguments(
    block: nn.Module, attention: nn.Module, args: tuple, kwargs: dict
) -> tuple[Tensor, dict]:
    """Split a block's call into its stream and the keywords that its attention takes."""
    signature = inspect.signature(type(block).forward)
    bound = signature.bind(block, *args, **kwargs).arguments
    names = iter(signature.parameters)
    next(names)  # self
    stream_name = next(names)
    arguments = dict(bound)
    arguments.pop("self", None)
    stream = arguments.pop(stream_name)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
    accepted = inspect.signature(type(attention).forward).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        arguments = {name: value for name, value in arguments.items() if name in accepted}
    return stream, arguments


@contextmanager
def instance_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on the instance and put back exactly what was there."""
    had, before = name in vars(owner), vars(owner).get(name)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if had:
            object.__setattr__(owner, name, before)
        else:
            object.__delattr__(owner, name)
