"""The end of a model's run: the state that the unembedding reads, and surprisals of tokens.

The unembedding is the output projection onto the vocabulary. The *state* of a run is its input at
the last token: the last residual stream after the final norm, and after any other operation of the
model before that projection.

What this file does not do: it does not mask edges, and it does not divide a state into edges.

Axes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .._util.metrics import total_variation
from .adapter import Adapter
from .blocks import first
from .tolerances import tolerance_tv

LOGITS_AT_ONCE = 2**24  # numbers in the logits of several tokens that are computed at once, 64 MiB


@contextmanager
def states_read(adapter: Adapter) -> Iterator[list[Tensor]]:
    """Collect the state of every run of the model while this context lasts.

    The results of runs do not change, and other threads wait. Read the last entry of the list: a
    model is tested on a few tokens before its first masked run, which adds entries too.

    Yields:
        A list to which the state of each run is appended, (B, D) float32 on the CPU. It stays empty
            if the model does not call its output embeddings as a module.
    """
    module = adapter.module
    head = module.get_output_embeddings() or getattr(module, "lm_head", None)
    read: list[Tensor] = []

    def keep(_: nn.Module, args: tuple) -> None:
        read.append(args[0].detach()[:, -1].float().cpu())

    if not isinstance(head, nn.Module):
        yield read
        return
    with adapter.running():
        handle = head.register_forward_pre_hook(keep)
        try:
            yield read
        finally:
            handle.remove()


def surprisals(adapter: Adapter, ids: Sequence[int], logits: Tensor, streams: Tensor | None = None) -> Tensor:
    """Compute the surprisal of each token but the first, given the tokens before it.

    Logits are computed from the last block's output, some tokens at a time. If that does not give
    the model's own logits at the last token, the model is run for the logits of all tokens.

    Args:
        adapter: the adapter that runs the model.
        ids: token ids of the text.
        logits: (vocabulary,), the model's own logits after the last token.
        streams: (T, D), streams out of the last block, from a run of the whole model; None to run
            the model again.

    Returns:
        Surprisals in nats, (T - 1,) float64.
    """
    following = torch.tensor(ids[1:])
    if not len(following):
        return following.double()
    if streams is None:
        streams = _last_streams(adapter, ids)
    last = adapter.read_out(streams[-1:])[0].cpu()
    gap = float(total_variation(logits.cpu(), last))
    step = max(1, LOGITS_AT_ONCE // len(last))
    if gap <= tolerance_tv(adapter.dtype):
        rows: Iterable[Tensor] = (adapter.read_out(part) for part in streams[:-1].split(step))
    else:
        rows = adapter.logits_of_all(ids)[:-1].split(step)
    parts = [
        -torch.log_softmax(part, -1).gather(-1, ids_of[:, None].to(part.device))[:, 0].double().cpu()
        for part, ids_of in zip(rows, following.split(step), strict=True)
    ]
    return torch.cat(parts)


def _last_streams(adapter: Adapter, ids: Sequence[int]) -> Tensor:
    """Run the whole model and return the streams out of its last block, (T, D)."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple, output: object) -> None:
        kept.append(first(output)[0])

    with adapter.running():
        handle = adapter.blocks[-1].module.register_forward_hook(keep)
        try:
            adapter.logits(ids)
        finally:
            handle.remove()
    return kept[-1]
