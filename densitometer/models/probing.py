"""Find the properties of a decoder block by running it.

Before a block is measured, three things are checked on real activations:

1. Its layout: the first candidate of the table that reproduces the block's own output.
2. The operation between the heads' outputs and the output projection: nothing, or factors (a gate
   computed from the target's stream; a norm). Anything that mixes heads or channels is refused.
3. The sources of edges. A token's values and MLP output must not depend on another token's stream,
   and its values must depend on its own. Otherwise an edge would have another source than in the
   graph.

What this file does not do: it does not look for the blocks in a model (`adapter.py`), and it checks
neither norms (`linear.py`) nor units of MLPs (`units.py`).

Axes: T tokens (targets or sources S), H query heads, G key-value heads, V value head size,
D hidden size.
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
    """One call of a decoder block by its model: the arguments, and what the block returned."""

    args: tuple
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class _Attended:
    """Tensors recorded in one run of a block's attention.

    Args:
        heads: (T, H, V), the heads' outputs that the attention function returned.
        projection_input: (T, H, V), the input of the output projection.
        values: (G, S, V), the values of the key-value heads.
        allowed: (T, S) bool, the layer's own mask.
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
    """Find a decoder block's layout: the first candidate that reproduces the block's own output.

    Args:
        model: the whole model, whose configs are set while the block runs.
        index: index of the block.
        module: the block.
        candidates: the layouts to try, at least one.
        call: the model's own call of the block, on the probe.
        tolerance: largest difference of the outputs, relative to what the block adds to the stream.
        own_attention: whether the block's attention module computes attention itself.

    Raises:
        UnknownLayoutError: no layout reproduces the output, or the block does something that edges
            cannot show.
        NonFiniteError: the block yields NaN or infinities.
    """
    args, kwargs, output = on_device((call.args, call.kwargs, call.output), device_of(module))
    expected = first(output).float()  # (1, T, D)
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
        # the largest number that the block adds; the second term below avoids a division by 0 for a
        # block that adds nothing
        added = (expected - stream.float()).abs().amax()
        gap = float((got - expected).abs().amax() / (added + 1e-3 * expected.abs().amax() + 1e-30))
        if gap <= tolerance:
            n_heads = recorded[index]["weights"].shape[1]
            return _examine(model, replace(block, n_heads=n_heads), stream, arguments, tolerance)
        tried.append(f"{layout.name!r} (off by {gap:.1e} of what the block adds)")
    children = [name for name, _ in module.named_children()]
    raise UnknownLayoutError(
        f"layer {index} ({type(module).__name__}) has the children {children} of a known layout but does "
        f"not add up as one: tried {', '.join(tried)}. Declare its layout with "
        "densitometer.register_layout(Layout(...)); it is used if it gives the block's own output back"
    )


@torch.no_grad()
def _examine(
    model: nn.Module, block: Block, stream: Tensor, arguments: dict[str, Any], tolerance: float
) -> Block:
    """Check points 2 and 3 of this file. Return the block with `gated` and `chooses` filled in.

    Raises:
        UnknownLayoutError: the block does something that edges cannot show.
    """
    n_tokens = stream.shape[1]
    generator = torch.Generator().manual_seed(0)
    plain = _attend(model, block, stream, arguments)
    where = f"in layer {block.index}, {type(block.attention).__name__}"
    # Point 2: is anything between heads and output projection, and does it only multiply?
    gated = not _same(plain.projection_input, plain.heads, tolerance)
    if gated:
        # With other attention weights the heads' outputs change. The factors of a gate do not.
        part = torch.rand(1, block.n_heads, n_tokens, n_tokens, generator=generator).to(stream)
        other = _attend(model, block, stream, arguments, part)
        if not _same_factors(plain, other, tolerance):
            raise UnknownLayoutError(
                f"{where} changes the heads' outputs before the output projection by more than factors (such as a gate or "
                "a norm), which cannot be shown as edges"
            )
    # Point 3: what changes if the stream of one token changes?
    token = n_tokens // 2
    moved = stream.clone()
    moved[:, token] += torch.randn(stream.shape[-1], generator=generator).to(stream) * stream.std()
    rest = [t for t in range(n_tokens) if t != token]
    after = _attend(model, block, moved, arguments)
    if not _same(after.values[:, rest], plain.values[:, rest], tolerance):
        raise UnknownLayoutError(
            f"{where} mixes tokens into the values it attends to; its edges would not come from one token"
        )
    values = plain.values[:, token]
    if torch.equal(after.values[:, token], values) and bool(values.any()):
        raise UnknownLayoutError(
            f"{where} attends to values that do not come from the stream into its own layer (it shares them with an earlier "
            "one); its edges would come from elsewhere than the graph says"
        )
    if gated and not _same_factors(plain, after, tolerance, rest):
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
    """Run the block's attention on a stream (1, T, D), and record its tensors.

    Args:
        part: (1, H, T, S), factors that the attention weights are multiplied by; None to leave the
            weights as they are.

    Raises:
        UnknownLayoutError: the output projection is not called as a module, or does not read the
            heads' outputs.
    """
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
    weights, values = recorded["weights"], recorded["values"]  # (1, H, T, S), (1, G, S, V)
    weights = weights if part is None else weights * part
    group = weights.shape[1] // values.shape[1]  # query heads per key-value head
    # what the attention function returned
    heads = weights[0] @ values[0].to(weights.dtype).repeat_interleave(group, dim=0)  # (H, T, V)
    heads = heads.transpose(0, 1)  # (T, H, V)
    read = recorded["projection_input"]
    if read.numel() != heads.numel():
        raise UnknownLayoutError(
            f"{type(block.attention).__name__} passes its output projection {tuple(read.shape)} numbers, where the heads' "
            f"outputs are {tuple(heads.shape)}"
        )
    return _Attended(heads, read.reshape(heads.shape), values[0], recorded["allowed"])


def _run_of(block: Block, masks: Any = None, recorded: Any = None) -> Run:
    """Make the state of a run of one block alone."""
    block_of = {id(part): block.index for part in block.attention.modules()}
    return Run(block_of, masks, recorded, own=(block.index,) if block.own_attention else ())


def _same(x: Tensor, y: Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal up to a tolerance relative to the second."""
    x, y = x.float(), y.float()
    return float((x - y).norm()) <= tolerance * float(y.norm()) + 1e-30


def _same_factors(
    one: _Attended, other: _Attended, tolerance: float, tokens: Sequence[int] | None = None
) -> bool:
    """Whether two runs multiply the heads' outputs by the same factors.

    The factors may differ by one common scale per token and head: a gate's factors do not depend on
    the heads' outputs, but those of a norm are its weights times a scale that does.

    Args:
        one: the first run.
        other: the second run.
        tolerance: a tenth of the largest relative difference that is allowed.
        tokens: the tokens to compare; None for all.
    """
    chosen = slice(None) if tokens is None else list(tokens)
    heads, read = one.heads[chosen].float(), one.projection_input[chosen].float()  # (t, H, V)
    factors = torch.where(heads == 0, 0.0, read / heads)
    expected = factors * other.heads[chosen].float()
    got = other.projection_input[chosen].float()
    # (t, H, 1), the common scale: least squares of `got` against `expected`
    scale = (expected * got).sum(-1, keepdim=True) / expected.square().sum(-1, keepdim=True).clamp_min(1e-30)
    return _same(scale * expected, got, 10 * tolerance)
