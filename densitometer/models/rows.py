"""Rows that cannot matter are not computed, in the linear layers of the attention modules.

A row of an input projection whose residual stream has no incoming edge holds the same vector as every other such row of
its block, so one of them is computed and copied: under recomputed attention its key still takes part in the softmax. A
row of the output projection into which no attention edge leads holds zeros, and so does every other such row. That they
are the same is looked at before it is used, so skipping is exact.

Axes: B batch (variants of one input), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .blocks import Block, BlockMask, instance_attribute

# Above this share of live rows, gathering them costs more than it saves.
DENSE_SHARE = 0.9


class RowSkipping:
    """Linear layers of the attention modules that compute only rows that can matter under these masks."""

    def __init__(self, blocks: Sequence[Block], masks: Sequence[BlockMask]) -> None:
        self.blocks = blocks
        self.live_in: list[Tensor | None] = [None]  # the embeddings are all live
        self.live_out: list[Tensor] = []
        for block, mask in zip(blocks, masks, strict=True):
            into_attention = mask.attention.any(dim=-1).any(dim=1)  # (B, T)
            live = mask.residual_mlp | mask.mlp
            self.live_out.append(into_attention)
            self.live_in.append(live | into_attention if block.layout.parallel else live)

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            for block in self.blocks:
                projection = block.projection
                for module in block.attention.modules():
                    if type(module) is not nn.Linear or vars(module).get("_hf_hook") is not None:
                        continue
                    of_stream = module is not projection
                    live = self.live_in[block.index] if of_stream else self.live_out[block.index]
                    if live is None or live.float().mean() > DENSE_SHARE:
                        continue
                    forward = _rows_only(module, live)
                    stack.enter_context(instance_attribute(module, "forward", forward))
            yield


def _rows_only(module: nn.Linear, live: Tensor) -> Callable[[Tensor], Tensor]:
    rows = live.flatten().nonzero().squeeze(1)
    dead = (~live).flatten().nonzero().squeeze(1)

    def forward(x: Tensor) -> Tensor:
        if x.shape[:2] != live.shape:
            return nn.functional.linear(x, module.weight, module.bias)
        flat = x.reshape(live.numel(), -1)
        like = flat[dead[:1]]  # zeros, in an output projection
        if not torch.equal(flat[dead], like.expand(len(dead), -1)):
            return nn.functional.linear(x, module.weight, module.bias)  # reads something else than the stream
        output = nn.functional.linear(like, module.weight, module.bias).repeat(live.numel(), 1)
        output[rows] = nn.functional.linear(flat[rows], module.weight, module.bias)
        return output.view(*x.shape[:-1], -1)

    return forward
