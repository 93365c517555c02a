"""A decoder block: what it records, how it is masked, and how it adds up.

`add_up` is the forward pass of every block that densitometer runs: the block's own submodules, called in the order that
its `Layout` declares, with a mask on the residual stream and on the MLP's output, or on the units of the MLP (`units.py`).

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads, G key-value heads,
V value head size, M units of the MLP, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import UnknownLayoutError
from .layouts import ATTENTION_PROJECTIONS, Layout

if TYPE_CHECKING:
    from .units import Units


@dataclass(frozen=True)
class BlockMeans:
    """What removed edges of one block contribute instead of nothing, float32.

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
_signature = cache(inspect.signature)  # of a class's `forward`: asked for in every block of every run


class TiledEdges(Protocol):
    """Attention edges of one block that are on, tile by tile: `BlockMask.attention` of long inputs.

    asks: (B, T) bool, the targets into which an edge may lead. tiles: of all targets. frozen: whether the full run's
    weights are used instead of recomputed ones.
    """

    asks: Tensor
    frozen: bool

    @property
    def tiles(self) -> Sequence[Any]: ...

    def on(self, tile: Any, variant: int) -> Tensor:
        """Edges of a tile that are on, (H, t, s) bool."""

    def weights(self, tile: Any) -> Tensor:
        """Weights of a tile in the full run, (H, t, s)."""


@dataclass(frozen=True)
class BlockMask:
    """Mask of the edges of one decoder block, for B variants. 1 is on, 0 is off.

    Floats may carry gradients.

    Args:
        residual_attention: (B, T), the stream into the attention's sum; None in a parallel block.
        attention: (B, H, T, S), or known tile by tile.
        residual_mlp: (B, T), the stream into the MLP's sum; in a parallel block, into the only sum.
        mlp: (B, M, T).
        attention_weights: (H, T, S) weights to use instead of recomputed ones ("frozen"), or None.
        means: what removed edges contribute, or None for nothing.
        units: what the M MLP edges of a token are; None where its only one is the whole MLP.
    """

    residual_attention: Tensor | None
    attention: Any
    residual_mlp: Tensor
    mlp: Tensor
    attention_weights: Tensor | None = None
    means: BlockMeans | None = None
    units: Units | None = None

    def to(self, device: torch.device) -> BlockMask:
        """Return this mask on the device that its block works on."""
        moved: Any = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def variant(self, index: int) -> BlockMask:
        """The mask of one variant alone, as floats: every row is computed."""
        parts = {n: getattr(self, n) for n in ("residual_attention", "attention", "residual_mlp", "mlp")}
        return replace(self, **{n: v[index, None].float() for n, v in parts.items() if v is not None})


@dataclass(frozen=True)
class BlockRecord:
    """What one block did on one input: all that its edges' vectors are made of.

    Args:
        stream: (T, D), the residual stream into the block.
        weights: (H, T, S) float32, attention after the softmax.
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
        """Return what the block did on the first tokens.

        In a causal model this is what it does on them alone.
        """
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

    def mlp_stream(self, block: Block) -> Tensor:
        """Stream that the block's MLP got, (T, D)."""
        if self.attention_sum is None:
            return self.stream
        with torch.no_grad():
            mid: Tensor = block.child(block.layout.attention_sum_norm)(self.attention_sum)
        return mid


@dataclass(frozen=True)
class Block:
    """A decoder block with the layout that was found for it.

    Args:
        dtype: of the stream.
        gated: whether something multiplies the heads' outputs before the output projection: a gate computed from the
            target's stream, or a norm.
        chooses: whether the tokens that a token attends to depend on the streams; it then reads those it may choose from.
        own_attention: whether the attention module computes attention itself instead of calling the attention function.
    """

    index: int
    module: nn.Module
    layout: Layout
    hidden_size: int
    n_heads: int
    dtype: torch.dtype
    gated: bool = False
    chooses: bool = False
    own_attention: bool = False

    def child(self, name: str | None) -> Callable[..., Any]:
        """Return the submodule of a path. The identity for None."""
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
                wraps = len(inside) == 1 and inside[0] is getattr(projection, "linear", None)
                return inside[0] if wraps else projection
    raise UnknownLayoutError(
        f"{type(attention).__name__} has no output projection that is known: it has "
        f"{sorted(n for n, _ in attention.named_children())}, looked for {list(ATTENTION_PROJECTIONS)}"
    )


def attention_branch(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What the attention adds to the stream, (B, T, D)."""
    layout = block.layout
    normed = block.child(layout.attention_norm)(stream)
    output = first(
        block.attention(
            *[normed] * layout.attention_inputs, **arguments, **_no_stream(layout, block.attention, stream)
        )
    )
    output = block.child(layout.attention_projection)(output)
    output = block.child(layout.attention_branch_norm)(output)
    return output * block.multiplier if layout.multiplier else output


def mlp_branch(block: Block, stream: Tensor, units: Units | None = None, on: Tensor | None = None) -> Tensor:
    """What the MLP adds to the stream, (B, T, D).

    Args:
        on: (B, M, T), the units that are on; None for all.
    """
    if units is not None and on is not None:
        with units.gated(on.transpose(1, 2)):
            output = mlp_output(block, stream)
    else:
        output = mlp_output(block, stream)
    output = block.child(block.layout.mlp_branch_norm)(output)
    return output * block.multiplier if block.layout.multiplier else output


def mlp_output(block: Block, stream: Tensor) -> Tensor:
    """The MLP's own output, (B, T, D), before a norm on the branch."""
    layout = block.layout
    normed = block.child(layout.mlp_norm)(stream)
    output = _chain(block, layout.mlp, normed)
    if layout.mlp_beside:
        output = output + _chain(block, layout.mlp_beside, normed)
    return output


def _chain(block: Block, names: tuple[str, ...], normed: Tensor) -> Tensor:
    output = normed
    for name in names:
        part = block.child(name)
        output = first(part(output, **_no_stream(block.layout, part, normed)))
    return output.view(normed.shape)  # some mixtures of experts return their tokens in one row


def _no_stream(layout: Layout, part: Any, stream: Tensor) -> dict[str, Tensor]:
    """Zeros in place of the stream, for a module that takes it and adds it to its output.

    Empty for any other module.
    """
    name = layout.stream_argument
    if name is None or name not in _signature(type(part).forward).parameters:
        return {}
    return {name: torch.zeros_like(stream)}


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
    residual_mlp = scaled(mid, block.residual_scales[1])
    mlp = mlp_branch(block, mid, *((mask.units, mask.mlp) if mask is not None else ()))
    kept = residual_mlp
    if mask is not None:
        kept = _kept(residual_mlp, mask.residual_mlp, means.residual_mlp)
        if mask.units is None:
            mlp = _kept(mlp, mask.mlp[:, 0], means.mlp)
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
    on = mask[..., None]
    if on.is_floating_point():  # a mask's gradient is a sum over D, which float16 may not hold
        vectors, dtype = vectors.to(on.dtype), vectors.dtype
        return (vectors * on if mean is None else vectors * on + mean.to(vectors) * (1 - on)).to(dtype)
    on = on.to(vectors.dtype)
    return vectors * on if mean is None else vectors * on + mean.to(vectors) * (1 - on)


def attention_arguments(
    block: nn.Module, attention: nn.Module, args: tuple, kwargs: dict
) -> tuple[Tensor, dict]:
    """Split a block's call into its stream and the keywords that its attention takes."""
    signature = _signature(type(block).forward)
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
    accepted = _signature(type(attention).forward).parameters
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


@contextmanager
def configs_set(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on every config in a module that has it, and put back exactly what was there."""
    configs = (getattr(part, "config", None) for part in module.modules())
    with ExitStack() as stack:
        for config in {id(config): config for config in configs if hasattr(config, name)}.values():
            stack.enter_context(instance_attribute(config, name, value))
        yield
