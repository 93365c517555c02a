"""A decoder block: its record, its mask, and the sum of its branches.

`add_up` is the forward pass of every block that densitometer runs on all rows. It calls the block's
own submodules in the order that the block's `Layout` declares:

1. the attention branch; its edges are masked inside the attention function (`attention.py`);
2. the sum of attention and residual stream, the latter under a mask;
3. the MLP branch, under a mask on its output or on its units (`units.py`);
4. the sum of MLP and residual stream, the latter under a mask.

In a parallel block there is one sum, of stream, attention and MLP.

What this file does not do: it does not find a block's layout (`probing.py`).

Axes: B batch (variants of one input), T target tokens, S source tokens, H query heads,
G key-value heads, V value head size, M units of the MLP, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy
import torch
from torch import Tensor, nn

from ..errors import UnknownLayoutError
from .layouts import ATTENTION_PROJECTIONS, Layout

if TYPE_CHECKING:
    from .units import Units


class StandIns(Protocol):
    """Vectors that replace those of removed edges of one block.

    For residual and MLP edges they are (D,), the same for every token, or (T, D). None stands for
    zeros.
    """

    @property
    def residual_attention(self) -> Tensor | None: ...

    @property
    def residual_mlp(self) -> Tensor | None: ...

    @property
    def mlp(self) -> Tensor | None: ...

    def removed_attention(self, tile: Tile, weights: Tensor, on: Tensor) -> Tensor | None:
        """Sum what the removed attention edges of a tile add to the heads' outputs, (B, H, t, V).

        Args:
            tile: the tile.
            weights: (B, H, t, s), attention weights of this run before the mask.
            on: (B, H, t, s), which edges are on: 0 and 1 as int8, or in the dtype of the weights.
        """


@dataclass(frozen=True)
class BlockMeans:
    """Mean vectors that replace those of removed edges of one block, float32. None for zeros.

    Args:
        residual_attention: (D,), for residual edges into the attention's sum; None in a parallel
            block.
        attention: (H, V), for attention edges: each head's mean output per unit of attention
            weight, before the output projection.
        residual_mlp: (D,), for residual edges into the MLP's sum.
        mlp: (D,), for MLP edges.
    """

    residual_attention: Tensor | None = None
    attention: Tensor | None = None
    residual_mlp: Tensor | None = None
    mlp: Tensor | None = None

    def removed_attention(self, tile: Tile, weights: Tensor, on: Tensor) -> Tensor | None:
        """Sum what removed edges add: each has its own weight and the head's mean output."""
        if self.attention is None:
            return None
        removed = (weights - weights * on).sum(dim=-1, keepdim=True)  # (B, H, t, 1)
        return removed * self.attention[:, None].to(weights)


@dataclass(frozen=True)
class BlockOfAnotherRun:
    """Vectors of the edges of one block in another run, which replace those of removed edges.

    Args:
        residual_attention: (T, D), what the stream adds to the attention's sum; None in a parallel
            block.
        weights: function that returns the attention weights of a tile, (H, t, s).
        values: (G, S, V), the values of the key-value heads.
        residual_mlp: (T, D), what the stream adds to the MLP's sum.
        mlp: (T, D), what the MLP adds.
    """

    residual_attention: Tensor | None
    weights: Callable[[Tile], Tensor]
    values: Tensor
    residual_mlp: Tensor
    mlp: Tensor

    @classmethod
    def of(cls, record: BlockRecord, weights: Callable[[Tile], Tensor] | None = None) -> BlockOfAnotherRun:
        """Take the vectors of the edges from the record of a block.

        Args:
            record: the record.
            weights: function that returns the attention weights of a tile, if the record has none.
        """
        kept = weights or partial(_in_tile, record.weights)
        return cls(record.residual_attention, kept, record.values, record.residual_mlp, record.mlp)

    def removed_attention(self, tile: Tile, weights: Tensor, on: Tensor) -> Tensor | None:
        """Sum what removed edges add: each has the weight and the value of the other run."""
        off = self.weights(tile).to(weights) * (1 - on)  # (B, H, t, s)
        n_variants, n_heads, n_tokens, n_sources = off.shape
        values = self.values[:, tile.sources].to(off)  # (G, s, V)
        grouped = off.reshape(n_variants, len(values), -1, n_sources)  # H / G heads share values
        return (grouped @ values).view(n_variants, n_heads, n_tokens, -1)


def _in_tile(weights: Tensor, tile: Tile) -> Tensor:
    """Cut weights (H, T, S) to a tile."""
    return weights[:, tile.targets, tile.sources]


_NO_MEANS = BlockMeans()
_signature = cache(inspect.signature)  # of a class's `forward`, needed in every block of every run


class Tile(NamedTuple):
    """Edges of all heads into a few targets, from the sources that any of these may attend to."""

    targets: slice
    sources: slice


class EdgeMask(Protocol):
    """Attention edges of one block that are on, for B variants, read tile by tile.

    A stored mask has one tile with all edges. The mask of a long input has many tiles, which are
    computed when they are read.

    Args:
        query_tokens: (B, T) bool, the targets into which an edge that is on may lead.
        shares_buckets: whether `on` can be called for several variants with different tokens.
    """

    @property
    def query_tokens(self) -> Tensor: ...

    @property
    def shares_buckets(self) -> bool: ...

    @property
    def tiles(self) -> Sequence[Tile]:
        """Tiles of all targets, in order."""

    def on(self, tile: Tile, variants: Tensor | None, tokens: Tensor | None, n_sources: int) -> Tensor:
        """Return which edges of a tile are on, broadcastable to (A, H, Q, n_sources).

        The result is bool, or float if gradients are to flow to the mask.

        Args:
            tile: the tile.
            variants: (A, 1) int64; None for all variants.
            tokens: (A, Q) int64, targets in the tile; None for all of its targets.
            n_sources: number of sources to return, from the tile's first one.
        """

    def full_weights(self, tile: Tile) -> Tensor | None:
        """Return the attention weights of a tile in the full run, (H, t, s).

        None if weights are recomputed.
        """


@dataclass(frozen=True)
class StoredEdges:
    """`EdgeMask` that is stored as one tensor.

    Args:
        mask: (B, H, T, S), bool or float.
        weights: (H, T, S), attention weights of the full run; None to recompute weights.
    """

    mask: Tensor
    weights: Tensor | None
    shares_buckets: ClassVar[bool] = True

    @cached_property
    def query_tokens(self) -> Tensor:
        # heads first, which is several times faster; numpy is faster than torch here, too
        some = numpy.logical_or.reduce(self.mask.cpu().numpy(), axis=1)
        return torch.from_numpy(numpy.logical_or.reduce(some, axis=-1))

    @property
    def tiles(self) -> Sequence[Tile]:
        return (Tile(slice(0, self.mask.shape[2]), slice(0, self.mask.shape[3])),)

    def on(self, tile: Tile, variants: Tensor | None, tokens: Tensor | None, n_sources: int) -> Tensor:
        if variants is None or tokens is None:
            return self.mask
        heads = torch.arange(self.mask.shape[1], device=self.mask.device)[:, None]  # (H, 1)
        return self.mask[variants[:, None], heads, tokens[:, None], :n_sources]

    def full_weights(self, tile: Tile) -> Tensor | None:
        return self.weights


@dataclass(frozen=True)
class EveryEdge:
    """`EdgeMask` with every edge on. It has the tiles of another mask.

    Args:
        under: the other mask.
        query_tokens: (B, T) bool, all True.
    """

    under: EdgeMask
    query_tokens: Tensor

    @property
    def shares_buckets(self) -> bool:
        return self.under.shares_buckets

    @property
    def tiles(self) -> Sequence[Tile]:
        return self.under.tiles

    def on(self, tile: Tile, variants: Tensor | None, tokens: Tensor | None, n_sources: int) -> Tensor:
        return torch.ones((), dtype=torch.bool, device="cpu")

    def full_weights(self, tile: Tile) -> None:
        return None


@dataclass(frozen=True)
class BlockMask:
    """Mask of the edges of one decoder block, for B variants. 1 is on, 0 is off.

    Masks are bool or float; floats may carry gradients.

    Args:
        residual_attention: (B, T), residual edges into the attention's sum; None in a parallel
            block.
        attention: (B, H, T, S), attention edges; or an `EdgeMask` that is not stored.
        residual_mlp: (B, T), residual edges into the MLP's sum; in a parallel block, into the only
            sum.
        mlp: (B, M, T), MLP edges.
        attention_weights: (H, T, S), weights to use instead of recomputed ones ("frozen"); None to
            recompute them.
        stand_ins: what removed edges contribute; None for nothing.
        units: the M units of the MLP; None where the whole MLP is one edge.
    """

    residual_attention: Tensor | None
    attention: Any
    residual_mlp: Tensor
    mlp: Tensor
    attention_weights: Tensor | None = None
    stand_ins: StandIns | None = None
    units: Units | None = None

    @cached_property
    def edges(self) -> EdgeMask:
        """Which attention edges are on."""
        stored = isinstance(self.attention, Tensor)
        return StoredEdges(self.attention, self.attention_weights) if stored else self.attention

    def to(self, device: torch.device) -> BlockMask:
        """Copy this mask to a device."""
        moved: Any = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def variant(self, index: int) -> BlockMask:
        """Cut out the mask of one variant, as floats, so that every row is computed."""
        parts = {n: getattr(self, n) for n in ("residual_attention", "attention", "residual_mlp", "mlp")}
        one: Any = {n: v[index, None].float() for n, v in parts.items() if isinstance(v, Tensor)}
        return replace(self, **one)

    def with_attention_kept(self) -> BlockMask:
        """Return this mask with every attention edge on."""
        every = EveryEdge(self.edges, torch.ones_like(self.residual_mlp, dtype=torch.bool))
        return replace(self, attention=every)


@dataclass(frozen=True)
class BlockRecord:
    """Activations of one block on one input, from which the vectors of its edges are computed.

    Args:
        stream: (T, D), the residual stream into the block.
        weights: (H, T, S) float32, attention after the softmax.
        values: (G, S, V); G divides H.
        allowed: (T, S) bool, the sources to which the layer's own mask lets each token attend.
        key_size: the size of a query or key head.
        projection_input: (T, H V), the input of the attention's output projection.
        projected: (T, D), the output of that projection, before a norm on the branch.
        attention: (T, D), what the attention added to the stream: its edges and a constant.
        mlp: (T, D), what the MLP added to the stream.
        residual_attention: (T, D), what the stream added to the attention's sum; None in a parallel
            block.
        residual_mlp: (T, D), what the stream added to the MLP's sum; in a parallel block, to the
            only sum.
        attention_sum: (T, D), the sum of stream and attention; None in a parallel block.
        mlp_sum: (T, D), the sum to which the MLP is added; in a parallel block, the only sum.
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
        """Cut this record to its first tokens. In a causal model it is that of the shorter text."""
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
        """Compute the stream that is the input of the block's MLP branch, (T, D)."""
        if self.attention_sum is None:
            return self.stream
        with torch.no_grad():
            mid: Tensor = block.child(block.layout.attention_sum_norm)(self.attention_sum)
        return mid


@dataclass(frozen=True)
class Block:
    """A decoder block with the layout that was found for it.

    Args:
        index: index of the block in the model.
        module: the block.
        layout: the order in which its norms, branches and sums are computed.
        hidden_size: size D of the stream.
        n_heads: number H of query heads.
        dtype: dtype of the stream.
        gated: whether factors multiply the heads' outputs before the output projection: a gate
            computed from the target's stream, or a norm.
        chooses: whether an indexer (sparse attention) chooses, from the streams, which tokens each
            token attends to. It reads every token that it may choose.
        own_attention: whether the attention module computes attention itself instead of calling the
            attention function.
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
        """Return the submodule at a path, or the identity function for None."""
        return self.module.get_submodule(name) if name else _identity

    @cached_property
    def attention(self) -> nn.Module:
        return self.module.get_submodule(self.layout.attention)

    @cached_property
    def projection(self) -> nn.Module:
        """Output projection of the attention."""
        outside = self.layout.attention_projection
        return self.module.get_submodule(outside) if outside else output_projection(self.attention)

    @cached_property
    def residual_scales(self) -> tuple[Tensor | None, Tensor | None]:
        """Learned factors of the stream, (D,) or None: for the attention's sum, for the MLP's."""
        names = (self.layout.attention_residual_scale, self.layout.mlp_residual_scale)
        attention, mlp = (getattr(self.module, name) if name else None for name in names)
        return attention, mlp

    @property
    def multiplier(self) -> float:
        """Factor of both branches, of the attention and of the MLP. 1 if the layout has none."""
        return float(getattr(self.module, self.layout.multiplier)) if self.layout.multiplier else 1.0

    def stream_out(self, mlp_sum: Tensor) -> Tensor:
        """Compute the stream out of the block from its last sum."""
        out = self.child(self.layout.mlp_sum_norm)(mlp_sum)
        return out * getattr(self.module, self.layout.stream_scale) if self.layout.stream_scale else out


def _identity(x: Tensor) -> Tensor:
    return x


def first(output: Any) -> Tensor:
    """Take the tensor that a submodule returned, alone or first in a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def output_projection(attention: nn.Module) -> nn.Module:
    """Find the output projection of an attention module by the names in `ATTENTION_PROJECTIONS`.

    Raises:
        UnknownLayoutError: the module has a submodule by none of these names.
    """
    for owner in (attention, *attention.children()):
        for name in ATTENTION_PROJECTIONS:
            projection = getattr(owner, name, None)
            if isinstance(projection, nn.Module):
                # Moshi wraps each linear layer in a module that holds nothing else
                inside = list(projection.children())
                wraps = len(inside) == 1 and inside[0] is getattr(projection, "linear", None)
                return inside[0] if wraps else projection
    raise UnknownLayoutError(
        f"{type(attention).__name__} has no output projection that is known: it has "
        f"{sorted(n for n, _ in attention.named_children())}, looked for {list(ATTENTION_PROJECTIONS)}"
    )


def attention_branch(block: Block, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Compute what the attention adds to the stream, (B, T, D).

    Args:
        stream: (B, T, D), the stream into the block.
        arguments: keywords that the block passes to its attention.
    """
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
    """Compute what the MLP adds to the stream, (B, T, D).

    Args:
        stream: (B, T, D), the stream that the MLP reads.
        units: the units of the MLP; None where the whole MLP is one edge.
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
    """Compute the MLP's own output, (B, T, D), before a norm on the branch."""
    layout = block.layout
    normed = block.child(layout.mlp_norm)(stream)
    output = _chain(block, layout.mlp, normed)
    if layout.mlp_beside:
        output = output + _chain(block, layout.mlp_beside, normed)
    return output


def _chain(block: Block, names: tuple[str, ...], normed: Tensor) -> Tensor:
    """Call the modules of an MLP one after the other."""
    output = normed
    for name in names:
        part = block.child(name)
        output = first(part(output, **_no_stream(block.layout, part, normed)))
    # some mixtures of experts return the tokens of all inputs on one axis
    return output.view(normed.shape)


def _no_stream(layout: Layout, part: Any, stream: Tensor) -> dict[str, Tensor]:
    """Return the keyword that passes zeros to a module that adds the stream to its own output.

    So the module returns its output alone. For any other module the keywords are empty.
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
    """Compute a decoder block's forward pass as its layout declares it.

    Args:
        stream: (B, T, D), the stream into the block.
        arguments: keywords that the block passes to its attention.
        mask: the edges that are on; None for all. Attention edges are masked by the attention
            function, which gets its mask from the state of the run.
        recorded: a dictionary to which streams, branches and sums are written; None to record
            nothing.

    Returns:
        The stream out of the block, (B, T, D).
    """
    layout = block.layout
    # 1. The attention branch, (B, T, D). Its edges are masked already.
    attention = attention_branch(block, stream, arguments)
    stand_ins: StandIns = (mask.stand_ins if mask is not None else None) or _NO_MEANS
    # 2. The sum of stream and attention, if the block is sequential.
    if layout.parallel:
        mid, residual_attention, attention_sum = stream, None, None
    else:
        residual_attention = scaled(stream, block.residual_scales[0])
        kept = residual_attention
        if mask is not None:
            assert mask.residual_attention is not None
            kept = _kept(residual_attention, mask.residual_attention, stand_ins.residual_attention)
        attention_sum = kept + attention
        mid = block.child(layout.attention_sum_norm)(attention_sum)
    # 3. The MLP branch, and the block's last sum.
    residual_mlp = scaled(mid, block.residual_scales[1])
    mlp = mlp_branch(block, mid, *((mask.units, mask.mlp) if mask is not None else ()))
    kept = residual_mlp
    if mask is not None:
        kept = _kept(residual_mlp, mask.residual_mlp, stand_ins.residual_mlp)
        # units were masked inside the MLP
        if mask.units is None:
            mlp = _kept(mlp, mask.mlp[:, 0], stand_ins.mlp)
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
    """Multiply a stream by a learned scale (D,), if there is one."""
    return stream if scale is None else stream * scale


def _kept(vectors: Tensor, mask: Tensor, other: Tensor | None) -> Tensor:
    """Keep vectors (B, T, D) where a mask (B, T) is on, and replace them elsewhere.

    Args:
        vectors: (B, T, D).
        mask: (B, T), bool or float.
        other: (D,) or (T, D), the vectors elsewhere; None for zeros.
    """
    on = mask[..., None]
    # in the mask's dtype, because its gradient is a sum over D, which may overflow float16
    if on.is_floating_point():
        vectors, dtype = vectors.to(on.dtype), vectors.dtype
        return (vectors * on if other is None else vectors * on + other.to(vectors) * (1 - on)).to(dtype)
    on = on.to(vectors.dtype)
    return vectors * on if other is None else vectors * on + other.to(vectors) * (1 - on)


def attention_arguments(
    block: nn.Module, attention: nn.Module, args: tuple, kwargs: dict
) -> tuple[Tensor, dict]:
    """Split a call of a decoder block into the stream and the keywords that its attention takes.

    Args:
        args: positional arguments of the call.
        kwargs: keywords of the call.
    """
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
    """Set an attribute on an instance while this context lasts, then restore the old value."""
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
    """Set an attribute on those configs of a module that have it, then restore the old values."""
    configs = (getattr(part, "config", None) for part in module.modules())
    with ExitStack() as stack:
        for config in {id(config): config for config in configs if hasattr(config, name)}.values():
            stack.enter_context(instance_attribute(config, name, value))
        yield
