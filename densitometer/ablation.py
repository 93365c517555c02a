"""Run the model with only some edges of a recorded pass on, many sets of edges at once.

What is off is taken out of every sum that it was added to. What stands in its place:

    zero    nothing (the papers)
    mean    its mean over a reference corpus (`means.py`)

Attention weights are recomputed from the pruned stream, and those of removed edges set to zero after the softmax without
renormalising (the papers); or the full run's weights are kept ("frozen") and only values flow.

Sets of edges of one input form a batch; there is no padding, and a batch is split so that its attention and activations
stay within a memory budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import numpy
import torch
from torch import Tensor

from .forward import ForwardPass
from .means import ReferenceMeans

# Working memory of one batch of variants, in bytes.
BATCH_BYTES = 128 * 2**20


def masked_logits(
    forward: ForwardPass,
    masks: Iterable[numpy.ndarray],
    frozen: bool = False,
    means: ReferenceMeans | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Logits (K, vocabulary) float32 of K masks (F,) bool over the edges of a recorded pass.

    Args:
        frozen: keep the full run's attention weights.
        means: what removed edges contribute; None for nothing.
        advance: called with the number of masks done since the last call.
    """
    out = [torch.empty(0, forward.logits.shape[-1])]
    step, rest = variants_per_batch(forward), iter(masks)
    while some := list(islice(rest, step)):
        batch = torch.from_numpy(numpy.stack(some)).to(forward.logits.device)
        blocks = forward.block_masks(batch, frozen, means.blocks if means is not None else None)
        out.append(forward.model.adapter.masked_logits(forward.ids, blocks).cpu())
        advance(len(batch))
    return torch.cat(out)


def variants_per_batch(forward: ForwardPass) -> int:
    """How many variants of this input fit the memory budget together; at least one."""
    record = forward.records[0]
    return batch_size(record.weights.shape[0], record.stream.shape[-1], forward.n_tokens, forward.space.size)


def batch_size(n_heads: int, hidden_size: int, n_tokens: int, size: int) -> int:
    """The same from sizes alone; `size` is F."""
    # about four copies of the attention weights and sixteen of the stream live at once, and the masks of all edges
    per_variant = 4 * (4 * n_heads * n_tokens**2 + 16 * hidden_size * n_tokens) + size
    return max(1, BATCH_BYTES // per_variant)
