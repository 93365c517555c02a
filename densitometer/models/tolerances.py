"""Tolerances: the largest differences at which two ways of computing a result count as equal.

All tolerances are in this file. Rounding and the choice of kernel cause such differences. Each
tolerance is well above the differences that were measured, and far below the effect of a wrong edge
(removing half of the edges changes the output by more than `tolerance_tv`, which
`densitometer doctor` checks). A dtype that is not listed has the tolerance of bfloat16, the largest
one. The values for float64 were not measured.
"""

from __future__ import annotations

import torch

# Total variation, at the output, between two ways of running one model. Measured between the full
# trace and the model's own logits, at most: float32 4.2e-7, float16 8.6e-4, bfloat16 7.1e-3
# (dev/LOG.md, 2026-11-25, three bundled models, 6 texts each).
_TV = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}
# A block's output computed in two ways from equal inputs, relative to what the block adds. Measured
# between packed rows and all rows, float32, at most 4.2e-7 (dev/LOG.md, 2026-11-29, six models).
_BLOCK = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
# Difference between a node and the sum of its incoming edges' vectors, relative to the node.
_SUM = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}
# Relative difference between what a branch adds to the stream, or the input of its projection, and
# the same computed again from recorded activations.
_BRANCH = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 2e-2,
}
# Difference between an MLP's output and the sum over its neurons or experts, relative to the
# output.
_UNITS = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 3e-2,
}
# Relative error of the output of a layer that computes less precisely than its dtype, such as a
# quantised one. Measured: bitsandbytes' nf4 2.5e-3, torchao's eight-bit activations 5.9e-3
# (dev/LOG.md, 2026-11-25).
LINEAR_TOLERANCE = 3e-2


def tolerance_tv(dtype: torch.dtype) -> float:
    """Return the largest total variation, at the output, between equal ways of running a model."""
    return _of(_TV, dtype)


def block_tolerance(dtype: torch.dtype) -> float:
    """Return the largest difference between equal ways of running a block.

    It is relative to what the block adds to the stream.
    """
    return _of(_BLOCK, dtype)


def sum_tolerance(dtype: torch.dtype) -> float:
    """Return the largest difference between a node and the sum of its edges, relative to it."""
    return _of(_SUM, dtype)


def branch_tolerance(dtype: torch.dtype) -> float:
    """Return the largest relative difference between equal ways of computing a branch.

    The same tolerance holds for the branch's output and for the input of its projection.
    """
    return _of(_BRANCH, dtype)


def units_tolerance(dtype: torch.dtype) -> float:
    """Return the largest relative difference of an MLP's output from the sum over its units."""
    return _of(_UNITS, dtype)


def _of(table: dict[torch.dtype, float], dtype: torch.dtype) -> float:
    return table.get(dtype, table[torch.bfloat16])
