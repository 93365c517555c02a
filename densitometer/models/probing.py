"""Find out what a decoder block does by running it, not by its name.

Three things are held to real activations before a block is measured:

1. Its layout: the first candidate of the table that gives the block's own output back.
2. What stands between the heads' outputs and the output projection: nothing, or factors (a gate computed from the
   target's stream; a norm). Anything that mixes heads or channels is refused.
3. That no token's values and no token's MLP output depend on another token's stream, and that values do depend on the
   token's own: else an attention edge or an MLP edge would not come from where the graph says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, UnknownLayoutError
from .attention import Run
from .blocks import Block, BlockMask, add_up, attention_arguments, attention_branch, first, mlp_branch
from .interception import our_attention
from .layouts import Layout
from .placement import device_of, on_device


@dataclass(frozen=True)
class BlockCall:
    """How a model called a decoder block, and what it got."""

    args: tuple
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class _Attended:
    """One run of a block's attention, as seen from outside.

    heads (T, H, V) is what the attention function returned, projection_input (T, H, V) what the
    output projection read, values (G, S, V), allowed (T, S) the mask.
    """

    heads: Tensor
    projection_input: Tensor
    values: Tensor
    allowed: Tensor


def find_block(
    model: nn.Module,
    index: int,
    module: nn.Module,
    candidates: Sequence[Layout],
    call: BlockCall,
    tolerance: float,
    own_attention: bool,
) -> Block:
    """The block with the first layout that gives its own output back.

    Args:
        candidates: not empty.
        own_attention: whether its attention module computes attention itself.
        tolerance: largest difference, relative to what the block adds to the stream.

    Raises:
        UnknownLayoutError: no layout does, or the block does something that edges cannot show.
        NonFiniteError: the block yields NaN or infinities.
    """
    args, kwargs, output = on_device((call.args, call.kwargs, call.output), device_of(module))
    expected = first(output).float()
    if not bool(expected.isfinite().all()):
        raise NonFiniteError(f"{type(model).__name__} yields NaN or infinities first in layer {index}")
    tried = []
    for layout in candidates:
        attention = module.get_submodule(layout.attention)
        stream, arguments = attention_arguments(module, attention, args, kwargs)
        recorded: dict[int, dict[str, Any]] = {index: {}}
        block = Block(index, module, layout, stream.shape[-1], 0, stream.dtype, own_attention=own_attention)
        run = _run_of(block, recorded=recorded)
        with torch.no_grad(), our_attention(model, run):
            got = add_up(block, stream, arguments).float()
        added = (expected - stream.float()).abs().amax()
        gap = float((got - expected).abs().amax() / (added + 1e-3 * expected.abs().amax() + 1e-30))
        if gap <= tolerance:
            n_heads = recorded[index]["weights"].shape[1]
            return _examined(model, replace(block, n_heads=n_heads), stream, arguments, tolerance)
        tried.append(f"{layout.name!r} (off by {gap:.1e} of what the block adds)")
    children = [name for name, _ in module.named_children()]
    raise UnknownLayoutError(
        f"layer {index} ({type(module).__name__}) has the children {children} of a known layout but does "
        f"not add up as one: tried {', '.join(tried)}. Declare its layout with "
        "densitometer.register_layout(Layout(...)); it is used if it gives the block's own output back"
    )


@torch.no_grad()
def _examined(
    model: nn.Module, block: Block, stream: Tensor, arguments: dict[str, Any], tolerance: float
) -> Block:
    """Return the block with whether it is gated and whether it chooses.

    Points 2 and 3 are checked first.
    """
    n_tokens = stream.shape[1]
    generator = torch.Generator().manual_seed(0)
    plain = _attend(model, block, stream, arguments)
    where = f"in layer {block.index}, {type(block.attention).__name__}"
    gated = not _same(plain.projection_input, plain.heads, tolerance)
    if gated:
        part = torch.rand(1, block.n_heads, n_tokens, n_tokens, generator=generator).to(stream)
        other = _attend(model, block, stream, arguments, part)
        if not _multiplied_alike(plain, other, tolerance):
            raise UnknownLayoutError(
                f"{where} changes the heads' outputs before the output projection by more than factors (a gate or a norm "
                "would be such), which cannot be shown as edges"
            )
    token = n_tokens // 2
    moved = stream.clone()
    moved[:, token] += torch.randn(stream.shape[-1], generator=generator).to(stream) * stream.std()
    rest = [t for t in range(n_tokens) if t != token]
    after = _attend(model, block, moved, arguments)
    if not _same(after.values[:, rest], plain.values[:, rest], tolerance):
        raise UnknownLayoutError(
            f"{where} mixes tokens into the values it attends to; its edges would not come from one token"
        )
    own = plain.values[:, token]
    if torch.equal(after.values[:, token], own) and bool(own.any()):
        raise UnknownLayoutError(
            f"{where} attends to values that do not come from the stream into its own layer (it shares them with an earlier "
            "one); its edges would come from elsewhere than the graph says"
        )
    if gated and not _multiplied_alike(plain, after, tolerance, rest):
        raise UnknownLayoutError(f"{where} mixes tokens into the gate of the heads' outputs")
    if not _same(mlp_branch(block, moved)[0, rest], mlp_branch(block, stream)[0, rest], tolerance):
        raise UnknownLayoutError(
            f"in layer {block.index}, the MLP of {type(block.module).__name__} mixes tokens; its edges would not come "
            "from one token"
        )
    return replace(block, gated=gated, chooses=not torch.equal(after.allowed, plain.allowed))


def _attend(
    model: nn.Module, block: Block, stream: Tensor, arguments: dict[str, Any], part: Tensor | None = None
) -> _Attended:
    """Run the block's attention, with its weights multiplied by `part` (1, H, T, S) if given."""
    i, recorded = block.index, dict[str, Any]()
    masks = None
    if part is not None:
        on = part.new_ones(1, part.shape[2])
        masks = {i: BlockMask(on, part, on, on[:, None])}

    def hook(_: nn.Module, args: tuple) -> None:
        recorded["projection_input"] = args[0]

    handle = block.projection.register_forward_pre_hook(hook)
    try:
        with our_attention(model, _run_of(block, masks, {i: recorded})):
            attention_branch(block, stream, arguments)
    finally:
        handle.remove()
    if "projection_input" not in recorded:
        raise UnknownLayoutError(
            f"{type(block.attention).__name__} does not call its output projection {type(block.projection).__name__} as a "
            "module, so what it reads cannot be seen"
        )
    weights, values = recorded["weights"], recorded["values"]
    weights = weights if part is None else weights * part
    group = weights.shape[1] // values.shape[1]
    heads = weights[0] @ values[0].to(weights.dtype).repeat_interleave(group, dim=0)
    heads = heads.transpose(0, 1)  # (T, H, V)
    read = recorded["projection_input"]
    if read.numel() != heads.numel():
        raise UnknownLayoutError(
            f"{type(block.attention).__name__} hands its output projection {tuple(read.shape)} numbers, where the heads' "
            f"outputs are {tuple(heads.shape)}"
        )
    return _Attended(heads, read.reshape(heads.shape), values[0], recorded["allowed"])


def _run_of(block: Block, masks: Any = None, recorded: Any = None) -> Run:
    block_of = {id(part): block.index for part in block.attention.modules()}
    return Run(block_of, masks, recorded, own=(block.index,) if block.own_attention else ())


def _same(x: Tensor, y: Tensor, tolerance: float) -> bool:
    x, y = x.float(), y.float()
    return float((x - y).norm()) <= tolerance * float(y.norm()) + 1e-30


def _multiplied_alike(
    one: _Attended, other: _Attended, tolerance: float, tokens: Sequence[int] | None = None
) -> bool:
    """Whether the heads' outputs are multiplied by the same factors in both runs, up to one number per token and head.

    A gate has the same factors whatever the heads give; a norm has its weights, times a scale.
    """
    of = slice(None) if tokens is None else list(tokens)
    heads, read = one.heads[of].float(), one.projection_input[of].float()
    factors = torch.where(heads == 0, 0.0, read / heads)
    expected = factors * other.heads[of].float()
    got = other.projection_input[of].float()
    scale = (expected * got).sum(-1, keepdim=True) / expected.square().sum(-1, keepdim=True).clamp_min(1e-30)
    return _same(scale * expected, got, 10 * tolerance)
