"""Run the model with only some edges of a recorded pass on, many sets of edges at once.

The vector of an edge that is off is taken out of the sum that it was added to. In its place stands:

    zero    nothing (the papers)
    mean    the mean of that vector over a reference corpus (`reference_means.py`)
    another input's    what the edge carries in another input of as many tokens: resample ablation
                       (`input_pairs.py`). The pass says which (`ForwardPass.counterfactual`)

Attention weights come from one of two runs:

    recomputed    weights follow from the pruned stream. Those of removed edges are set to zero
                  after the softmax, and the others are not renormalised (the papers)
    frozen        the full run's weights are kept, and only values change
    kept          weights are recomputed, and no attention edge is ever off, whatever the mask says:
                  as the code published with arXiv 2605.27033 runs (docs/method.md, section 4)

A *variant* is the input under one set of edges. Variants of one input form a batch without padding.
A batch has as many as keep its attention and activations within a memory budget. If it runs out of
memory all the same, it is halved, down to one variant.

Axes: F flat edge axis, K variants, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError, OutOfMemoryError
from ..models.blocks import BlockMask
from ..models.placement import memory_watched
from ..models.unembedding import states_read
from .forward_pass import ForwardPass
from .reference_means import ReferenceMeans

# Working memory of one batch of variants, in bytes.
BATCH_BYTES = 160 * 2**20


def masked_logits(
    forward: ForwardPass,
    masks: Iterable[numpy.ndarray],
    frozen: bool = False,
    means: ReferenceMeans | None = None,
    advance: Callable[[int], None] = lambda done: None,
    positions: Sequence[int] | None = None,
    states: list[Tensor] | None = None,
    kept: bool = False,
) -> Tensor:
    """Run the model with only the edges of each of K masks on.

    Args:
        forward: the recorded pass whose edges the masks are of.
        masks: K of them, (F,) bool each.
        frozen: keep the full run's attention weights.
        means: what removed edges contribute; None for what the pass's counterfactual gives, or
            nothing.
        advance: called with the number of masks done since the last call.
        positions: of each mask, the token after which its logits are read; None for the last one.
        states: a list that gets what the unembedding read in these runs, (k, D) float32 for each
            batch of k variants (`models.unembedding`).
        kept: keep every attention edge on.

    Returns:
        Logits (K, vocabulary) float32, on the CPU.

    Raises:
        InputError: the module was cast to another dtype after the pass was recorded.
        OutOfMemoryError: not even one variant fits.
        NonFiniteError: a variant yields NaN or infinities; the message names the layer.
    """
    now = forward.model.module.dtype
    if forward.dtype not in (None, now):
        raise InputError(
            f"the graph was built while {forward.model.name} was {_name(forward.dtype)}, and the module is {_name(now)} now; build "
            "the graph or measure again, or cast the module back"
        )
    # one batch without variants, so that no masks give logits of the right shape
    out = [torch.empty(0, forward.logits.shape[-1], dtype=torch.float32, device="cpu")]
    step, rest = variants_per_batch(forward), iter(zip(masks, positions or repeat(None), strict=False))
    # Masks that were drawn but not run. After a batch ran out of memory there are more than a step.
    waiting: list[tuple[numpy.ndarray, int | None]] = []
    while waiting := waiting or list(islice(rest, step)):
        batch = waiting[:step]
        try:
            logits, read = _run(forward, batch, frozen, means, kept)
        except OutOfMemoryError:
            if len(batch) == 1:
                raise
            step = len(batch) // 2
            continue
        out.append(logits)
        if states is not None:
            states += read
        waiting = waiting[step:]
        advance(len(batch))
    return torch.cat(out)


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _run(
    forward: ForwardPass,
    batch: Sequence[tuple[numpy.ndarray, int | None]],
    frozen: bool,
    means: ReferenceMeans | None,
    kept: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Run one batch of K masks.

    Args:
        batch: each mask, with the token after which its logits are read; None for the last one.

    Returns:
        Logits (K, vocabulary) float32, on the CPU.
        What the unembedding read, (K, D) float32, as a list of at most one tensor.

    Raises:
        OutOfMemoryError: the batch does not fit.
        NonFiniteError: a variant yields NaN or infinities.
    """
    adapter = forward.model.adapter
    with (
        memory_watched(f"running {len(batch)} traces of {forward.n_tokens} tokens"),
        adapter.running(),
        states_read(adapter) as read,
    ):
        flat = torch.from_numpy(numpy.stack([mask for mask, _ in batch])).to(forward.logits.device)
        if kept:
            for view in forward.space.views(flat):
                if view.attention is not None:
                    view.attention[...] = True
        blocks = forward.block_masks(flat, frozen, means.blocks if means is not None else None)
        at = [place for _, place in batch if place is not None]
        positions = torch.tensor(at) if at else None
        logits = adapter.masked_logits(forward.ids, blocks, positions=positions).cpu()
        finite = logits.isfinite().all(dim=-1)
        if not bool(finite.all()):
            _refuse_non_finite(forward, blocks, int((~finite).nonzero()[0]))
        return logits, read[-1:]


def _refuse_non_finite(forward: ForwardPass, blocks: Sequence[BlockMask], variant: int) -> NoReturn:
    """Run a variant again, with every row, and raise an error that names the first bad layer.

    Raises:
        NonFiniteError: always.
    """
    adapter = forward.model.adapter
    one = [mask.variant(variant) for mask in blocks]
    recorded: list[dict[str, Any]] = [{} for _ in one]
    with torch.no_grad():
        adapter.masked_logits(forward.ids, one, recorded)
    # layers whose output is not finite
    bad = [i for i, what in enumerate(recorded) if not bool(what["mlp_sum"].isfinite().all())]
    where = f"layer {bad[0]} of {len(recorded)}" if bad else "the output head"
    raise NonFiniteError(
        f"with only some edges on, {forward.model.name} yields NaN or infinities, first in {where}, though the full model "
        f"does not ({adapter.dtype}); load it in a wider dtype (dtype='float32' or 'bfloat16')"
    )


def variants_per_batch(forward: ForwardPass) -> int:
    """Number of variants of a recorded input that fit the memory budget together, at least one."""
    record = forward.records[0]
    n_units = max(level.n_units for level in forward.space.levels)
    sizes = (record.weights.shape[0], record.stream.shape[-1], forward.n_tokens, forward.space.size)
    return batch_size(*sizes, n_units)


def batch_size(n_heads: int, hidden_size: int, n_tokens: int, size: int, n_units: int = 1) -> int:
    """Number of variants that fit the memory budget together, from sizes alone, at least one.

    Args:
        size: F, edges on the flat axis.
        n_units: units of an MLP, 1 where the whole MLP is one edge.
    """
    # In memory at once are about four copies of the attention weights, sixteen of the stream, and
    # the masks of all edges. Masks of one layer's neurons are there as numbers too.
    per_token = 4 * n_heads * n_tokens + 16 * hidden_size + 2 * (n_units - 1)
    per_variant = 4 * per_token * n_tokens + size
    return max(1, BATCH_BYTES // per_variant)
