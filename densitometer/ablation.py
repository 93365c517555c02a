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

from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor

from .forward import ForwardPass
from .means import ReferenceMeans

# Working memory of one batch of variants, in bytes.
BATCH_BYTES = 128 * 2**20


def masked_logits(
    forward: ForwardPass,
    masks: Sequence[numpy.ndarray],
    frozen: bool = False,
    means: ReferenceMeans | None = None,
    advance: Callable[[int], None] = lambda done: None,
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Logits (K, vocabulary) float32 of K masks (F,) bool over the edges of a recorded pass.

    Args:
        frozen: keep the full run's attention weights.
        means: what removed edges contribute; None for nothing.
        advance: called with the number of masks done since the last call.
        positions: of each mask, the token after which its logits are; the last one where None.
    """
    vocabulary = forward.logits.shape[-1]
    if not masks:
        return torch.empty(0, vocabulary)
    out = []
    step = variants_per_batch(forward)
    for start in range(0, len(masks), step):
        batch = torch.from_numpy(numpy.stack(masks[start : start + step])).to(forward.logits.device)
        blocks = forward.block_masks(batch, frozen, means.blocks if means is not None else None)
        at = None if positions is None else torch.tensor(positions[start : start + step])
        out.append(forward.model.adapter.masked_logits(forward.ids, blocks, positions=at).cpu())
        advance(len(batch))
    return torch.cat(out)


def variants_per_batch(forward: ForwardPass) -> int:
    """How many variants of this input fit the memory budget together; at least one."""
    t = forward.n_tokens
    record = forward.records[0]
    n_heads, hidden_size = record.weights.shape[0], record.stream.shape[-1]
    # about four copies of the attention weights and sixteen of the stream live at once, and the masks of all edges
    per_variant = 4 * (4 * n_heads * t * t + 16 * hidden_size * t) + forward.space.size
    return max(1, BATCH_BYTES // per_variant)
