"""A decoder block: what it records, how it is masked, and how its branches are added up.

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
    """What removed edges of one block contribute instead of nothing.

    Residual and MLP edges: (D,) for every token, or (T, D). None for nothing.
    """

    @property
    def residual_attention(self) -> Tensor | None: ...

    @property
    def residual_mlp(self) -> Tensor | None: ...

    @property
    def mlp(self) -> Tensor | None: ...

    def removed_attention(self, tile: Tile, weights: Tensor, on: Tensor) -> Tensor | None:
        """What removed attention edges of a tile add to the heads' outputs, (B, H, t, V).

        Args:
            weights: (B, H, t, s), attention weights of this run, none of them removed.
            on: (B, H, t, s), which edges are on: 0 and 1 as int8, or in the dtype of the weights.
        """


@dataclass(frozen=True)
class BlockMeans:
    """Mean vectors that removed edges of one block contribute instead of nothing, float32.

    Args:
        residual_attention: (D,), for residual edges into the attention's sum; None in a parallel
            block.
        attention: (H, V), for attention edges: each head's mean output per unit of attention,
            before the output projection.
        residual_mlp: (D,), for residual edges into the MLP's sum.
        mlp: (D,), for MLP edges.
    """

    residual_attention: Tensor | None = None
    attention: Tensor | None = None
    residual_mlp: Tensor | None = None
    mlp: Tensor | None = None

    def removed_attention(self, tile: Tile, weights: Tensor, on: Tensor) -> Tensor | None:
        """A removed edge keeps its weight and carries the head's mean output instead."""
        if self.attention is None:
            return None
        removed = (weights - weights * on).sum(dim=-1, keepdim=True)  # (B, H, t, 1)
        return removed * self.attention[:, None].to(weights)


@dataclass(frozen=True)
class BlockOfAnotherRun:
    """What each edge of one block carries in another run, which removed edges contribute instead.

    Args:
        residual_attention: (T, D), what the stream brings to the attention's sum; None in a
            parallel block.
        weights: returns the attention weights of a tile, (H, t, s).
        values: (G, S, V).
        residual_mlp: (T, D), what the stream brings to the MLP's sum.
        mlp: (T, D), what the MLP adds.
    """

    residual_attention: Tensor | None
    weights: Callable[[Tile], Tensor]
    values: Tensor
    residual_mlp: Tensor
    mlp: Tensor

    @classmethod
    def of(cls, record: BlockRecord, weights: Callable[[Tile], Tensor] | None = None) -> BlockOfAnotherRun:
        """Take what the edges carry from the record of a block.

        Args:
            weights: returns the attention weights of a tile, where the record has none.
        """
        kept = weights or partial(_in_tile, record.weights)
        return cls(record.residual_attention, kept, record.values, record.residual_mlp, record.mlp)

    def removed_attention(self, tile: Tile, weights: Tensor, on: Tensor) -> Tensor | None:
        """A removed edge has the weight and the value of the other run."""
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
    """Which attention edges of one block are on, for B variants, asked block by block of rows.

    A stored mask has one tile of everything; that of a long input has many, which are computed.

    Args:
        query_tokens: (B, T) bool, the targets into which an edge may lead.
        shares_buckets: whether several variants with other query tokens can be asked about at once.
    """

    @property
    def query_tokens(self) -> Tensor: ...

    @property
    def shares_buckets(self) -> bool: ...

    @property
    def tiles(self) -> Sequence[Tile]:
        """Tiles of all targets, in order."""

    def on(self, tile: Tile, variants: Tensor | None, tokens: Tensor | None, n_sources: int) -> Tensor:
        """Which edges of a tile are on, (A, H, Q, n_sources) or a shape that is broadcast to it.

        They are bool, or floats that gradients reach.

        Args:
            variants: (A, 1) int64; None for all of them.
            tokens: (A, Q) int64, targets in the tile; None for all of them.
            n_sources: how many of the tile's sources, from its first.
        """

    def full_weights(self, tile: Tile) -> Tensor | None:
        """Weights of a tile in the full run, (H, t, s). None to recompute them."""


@dataclass(frozen=True)
class StoredEdges:
    """An `EdgeMask` that is one tensor.

    Args:
        mask: (B, H, T, S), bool or float.
        weights: (H, T, S), those of the full run, to use instead of recomputed ones; or None.
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
    """An `EdgeMask` with every edge on, whatever another one says.

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
    """What one block did on one input: everything from which the vectors of its edges follow.

    Args:
        stream: (T, D), the residual stream into the block.
        weights: (H, T, S) float32, attention after the softmax.
        values: (G, S, V); G divides H.
        allowed: (T, S) bool, what the layer's own mask lets a token attend to.
        key_size: the size of a query or key head.
        projection_input: (T, H V), what the attention's output projection read.
        projected: (T, D), what the projection wrote, before a norm on the branch.
        attention: (T, D), what the attention added to the stream: its edges and a constant.
        mlp: (T, D), what the MLP added to the stream.
        residual_attention: (T, D), what the stream brought to the attention's sum; None in a
            parallel block.
        residual_mlp: (T, D), what the stream brought to the MLP's sum; in a parallel block, to the
            only sum.
        attention_sum: (T, D), the sum of stream and attention; None in a parallel block.
        mlp_sum: (T, D), the sum that the MLP is added to; in a parallel block, the only sum.
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
        """Cut this record to the first tokens, as if the text ended there (in a causal model)."""
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
        """Compute the stream that the block's MLP read, (T, D)."""
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
        layout: how its branches are added up.
        hidden_size: size D of the stream.
        n_heads: number H of query heads.
        dtype: dtype of the stream.
        gated: whether factors multiply the heads' outputs before the output projection: a gate
            computed from the target's stream, or a norm.
        chooses: whether an indexer chooses, by the streams, which tokens a token attends to. It
            reads every token that it may choose.
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
        """Factors of the stream, (D,) or None, before attention and before MLP are added."""
        names = (self.layout.attention_residual_scale, self.layout.mlp_residual_scale)
        attention, mlp = (getattr(self.module, name) if name else None for name in names)
        return attention, mlp

    @property
    def multiplier(self) -> float:
        """Number that scales both branches. 1 where the layout has none."""
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
    """Keyword that gives zeros to a module which takes the stream to add it to its own output.

    It is empty for any other module.
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
        recorded: a dictionary to which streams, branches and sums are written; None for none.

    Returns:
        The stream out of the block, (B, T, D).
    """
    layout = block.layout
    attention = attention_branch(block, stream, arguments)  # (B, T, D), masked already
    stand_ins: StandIns = (mask.stand_ins if mask is not None else None) or _NO_MEANS
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
    """Keep vectors (B, T, D) where a mask (B, T) is on, and put others, or zeros, elsewhere.

    Args:
        other: (D,) or (T, D); None for zeros.
    """
    on = mask[..., None]
    # in the mask's dtype: a mask's gradient is a sum over D, which float16 may not hold
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
    """Set an attribute on an instance while this context lasts, then put back what was there."""
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
    """Set an attribute on the configs of a module that have it, then put back what was there."""
    configs = (getattr(part, "config", None) for part in module.modules())
    with ExitStack() as stack:
        for config in {id(config): config for config in configs if hasattr(config, name)}.values():
            stack.enter_context(instance_attribute(config, name, value))
        yield
