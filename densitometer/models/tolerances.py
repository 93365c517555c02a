"""Largest differences at which two ways of computing one thing count as the same.

This is the only list of these figures.

Rounding and the choice of kernel make them differ. A figure stands well above what was measured,
and far below what a wrong edge does (removing half of the edges changes the output by more than
`tolerance_tv`, `densitometer doctor`). A dtype that is not listed has the figure of bfloat16, the
coarsest one. float64 was not measured on its own.
"""

from __future__ import annotations

import torch

# Total variation, at the output, between two ways of running one model. Full trace against the
# model's own logits, at most: float32 4.2e-7, float16 8.6e-4, bfloat16 7.1e-3 (dev/LOG.md,
# 2026-11-25, three bundled models, 6 texts each).
_TV = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}
# A block's output computed in two ways, on equal streams into it, relative to what the block adds.
# Packed rows against all rows, float32, at most 4.2e-7 (dev/LOG.md, 2026-11-29, six models).
_BLOCK = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
# Sum of a node's incoming edges against the node, relative to the node.
_SUM = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}
# What a branch adds to the stream, or its projection reads, against what it was computed from,
# relative.
_BRANCH = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 2e-2,
}
# Sum of an MLP's neurons or experts against its output, relative.
_UNITS = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 3e-2,
}
# Output of a layer that computes more coarsely than its dtype, relative to that output.
# bitsandbytes' nf4 is off by 2.5e-3, torchao's eight-bit activations by 5.9e-3 (dev/LOG.md,
# 2026-11-25).
LINEAR_TOLERANCE = 3e-2


def tolerance_tv(dtype: torch.dtype) -> float:
    """Total variation, at the output, up to which two ways of running one model are the same."""
    return _of(_TV, dtype)


def block_tolerance(dtype: torch.dtype) -> float:
    """Largest difference of two equal outputs of a block, relative to what the block adds."""
    return _of(_BLOCK, dtype)


def sum_tolerance(dtype: torch.dtype) -> float:
    """Difference up to which incoming edges sum to a node, relative to the node."""
    return _of(_SUM, dtype)


def branch_tolerance(dtype: torch.dtype) -> float:
    """Largest difference of what a branch adds, or its projection reads, relative to that."""
    return _of(_BRANCH, dtype)


def units_tolerance(dtype: torch.dtype) -> float:
    """Difference up to which neurons or experts sum to an MLP's output, relative to that."""
    return _of(_UNITS, dtype)


def _of(table: dict[torch.dtype, float], dtype: torch.dtype) -> float:
    return table.get(dtype, table[torch.bfloat16])
