"""Run the model with only some edges of a recorded pass on, many sets of edges at once.

The vector of an edge that is off is taken out of the sum to which it was added. It is replaced by:

    zero    nothing (the papers)
    mean    the mean of that vector over a reference corpus (`reference_means.py`)
    counterfactual    the edge's vector in another input with the same number of tokens: resample
                      ablation (`input_pairs.py`). The input is `ForwardPass.counterfactual`

Attention weights come from one of two runs:

    recomputed    weights follow from the pruned stream. Those of removed edges are set to zero
                  after the softmax, and the others are not renormalised (the papers)
    frozen        the full run's weights are kept, and only values change
    kept          weights are recomputed, and every attention edge stays on, whatever the mask says:
                  as in the code published with arXiv 2605.27033 (docs/method.md, section 4)

A *variant* is the input under one set of edges. Variants of one input form a batch without padding.
A batch has as many variants as fit a memory budget with their attention and activations. If it runs
out of memory nevertheless, it is halved, down to one variant.

Axes: F flat edge axis, K variants, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError, OutOfMemoryError
from ..models.blocks import BlockMask, StandIns
from ..models.loading import Model
from ..models.placement import memory_watched
from ..models.unembedding import states_read
from .reference_means import ReferenceMeans

# Memory budget of one batch of variants, in bytes: with stored edges, and for long inputs. Batches
# of long inputs have taken up to 1.3 times their budget.
BATCH_BYTES = 160 * 2**20
LONG_BATCH_BYTES = 2**29


class MaskedPass(Protocol):
    """What masked runs need of a recorded pass, a `ForwardPass` or a `TiledPass`."""

    @property
    def model(self) -> Model: ...

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def logits(self) -> Tensor: ...

    @property
    def dtype(self) -> torch.dtype | None: ...

    @property
    def stored(self) -> bool:
        """Whether edges are stored, so that masks are arrays over the flat edge axis."""

    @property
    def run_sizes(self) -> tuple[int, int, int, int, int]:
        """Sizes on which the memory of a run depends: the first five arguments of `batch_size`."""

    def masks_of(
        self, sets: Sequence[Any], frozen: bool, means: Sequence[StandIns] | None
    ) -> tuple[list[BlockMask], Callable[[], None]]:
        """Return the mask of each decoder block, and a function to call after the run.

        That function checks the number of edges that ran.
        """


def masked_logits(
    forward: MaskedPass,
    masks: Iterable[Any],
    frozen: bool = False,
    means: ReferenceMeans | None = None,
    advance: Callable[[int], None] = lambda done: None,
    positions: Sequence[int] | None = None,
    states: list[Tensor] | None = None,
    kept: bool = False,
) -> Tensor:
    """Run the model with only the edges of each of K masks on.

    Args:
        forward: the recorded pass whose edges are masked.
        masks: K masks, as `EdgeSet.edges_on` returns them: (F,) bool each if edges are stored.
        frozen: whether to keep the full run's attention weights.
        means: mean vectors that removed edges contribute. None for their vectors in the pass's
            counterfactual, or for zeros if it has none.
        advance: called with the number of masks done since the last call.
        positions: for each mask, the token after which logits are read; None for the last one.
        states: a list to which the inputs of the unembedding are appended, (k, D) float32 for each
            batch of k variants (`models.unembedding`).
        kept: whether to keep every attention edge on.

    Returns:
        Logits (K, vocabulary) float32, on the CPU.

    Raises:
        InputError: the module was cast to another dtype after the pass was recorded.
        OutOfMemoryError: not even one variant fits.
        NonFiniteError: a variant yields NaN or infinities; the message names the layer.
        IdentityError: the number of edges that ran differs from the number counted before, on a
            long input.
    """
    now = forward.model.module.dtype
    if forward.dtype not in (None, now):
        raise InputError(
            f"the graph was built while {forward.model.name} was {_name(forward.dtype)}, and the module is {_name(now)} now; build "
            "the graph or measure again, or cast the module back"
        )
    # an empty batch first, so that the result has the right shape even without masks
    out = [torch.empty(0, forward.logits.shape[-1], dtype=torch.float32, device="cpu")]
    step, rest = variants_per_batch(forward), iter(zip(masks, positions or repeat(None), strict=False))
    # Masks that were taken from the iterator but have not run. After a batch ran out of memory,
    # they are more than one batch.
    waiting: list[tuple[Any, int | None]] = []
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
    forward: MaskedPass,
    batch: Sequence[tuple[Any, int | None]],
    frozen: bool,
    means: ReferenceMeans | None,
    kept: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Run one batch of K masks.

    Args:
        batch: pairs of a mask and the token after which its logits are read; None for the last one.

    Returns:
        Logits (K, vocabulary) float32, on the CPU.
        The unembedding's input, (K, D) float32, in a list. The list is empty if the model does not
            call its unembedding as a module.

    Raises:
        OutOfMemoryError: the batch does not fit.
        NonFiniteError: a variant yields NaN or infinities.
    """
    adapter = forward.model.adapter
    with (
        memory_watched(f"running {len(batch)} traces of {len(forward.ids)} tokens"),
        adapter.running(),
        states_read(adapter) as read,
    ):
        means_of = means.blocks if means is not None else None
        blocks, check_counts = forward.masks_of([mask for mask, _ in batch], frozen, means_of)
        if kept:
            blocks = [mask.with_attention_kept() for mask in blocks]
        at = [place for _, place in batch if place is not None]
        positions = torch.tensor(at) if at else None
        logits = adapter.masked_logits(forward.ids, blocks, positions=positions).cpu()
        finite = logits.isfinite().all(dim=-1)
        if not bool(finite.all()):
            _refuse_non_finite(forward, blocks, int((~finite).nonzero()[0]))
        # with every attention edge on, no tile of the mask is computed, so no edge was counted
        if not kept:
            check_counts()
        return logits, read[-1:]


def _refuse_non_finite(forward: MaskedPass, blocks: Sequence[BlockMask], variant: int) -> NoReturn:
    """Raise an error that names the first layer with NaN or infinities, if edges are stored.

    To find that layer, the variant is run again.

    Raises:
        NonFiniteError: always.
    """
    adapter = forward.model.adapter
    where = f", first in {_not_finite_in(forward, blocks, variant)}" if forward.stored else ""
    raise NonFiniteError(
        f"with only some edges on, {forward.model.name} yields NaN or infinities{where}, though the full model "
        f"does not ({adapter.dtype}); load it in a wider dtype (dtype='float32' or 'bfloat16')"
    )


def _not_finite_in(forward: MaskedPass, blocks: Sequence[BlockMask], variant: int) -> str:
    """Run a variant again, with every row, and name the first layer that is not finite."""
    adapter = forward.model.adapter
    one = [mask.variant(variant) for mask in blocks]
    recorded: list[dict[str, Any]] = [{} for _ in one]
    with torch.no_grad():
        adapter.masked_logits(forward.ids, one, recorded)
    bad = [i for i, what in enumerate(recorded) if not bool(what["mlp_sum"].isfinite().all())]
    return f"layer {bad[0]} of {len(recorded)}" if bad else "the output head"


def variants_per_batch(forward: MaskedPass) -> int:
    """Number of variants of a recorded input that fit the memory budget together, at least one."""
    return batch_size(*forward.run_sizes, budget=BATCH_BYTES if forward.stored else LONG_BATCH_BYTES)


def batch_size(
    n_heads: int, hidden_size: int, n_tokens: int, size: int, n_units: int = 1, budget: int = BATCH_BYTES
) -> int:
    """Number of variants that fit a memory budget together, from sizes alone, at least one.

    Args:
        n_heads: number of query heads whose attention weights are in memory at once.
        size: number of edges on the flat axis, F.
        n_units: units of an MLP, 1 if the whole MLP is one edge.
        budget: bytes of memory.
    """
    # In memory at once are about four copies of the attention weights, sixteen of the stream, and
    # the masks of all edges. The mask of one layer's neurons is also in memory as float32.
    per_token = 4 * n_heads * n_tokens + 16 * hidden_size + 2 * (n_units - 1)
    per_variant = 4 * per_token * n_tokens + size
    return max(1, budget // per_variant)
