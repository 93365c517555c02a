"""The end of a model's run: what the unembedding reads, and the logits of every token of a text.

The *state* of a run is the vector that the unembedding (the output projection onto the vocabulary) reads at the last token:
the last residual stream after the final norm, and after whatever else the model does to it before that projection.

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

LOGITS_AT_ONCE = 2**24  # of several tokens, 64 MiB


@contextmanager
def states_read(adapter: Adapter) -> Iterator[list[Tensor]]:
    """Collect the state of every run of the model, (B, D) float32 on the CPU.

    States are collected while this context lasts. No run is changed.

    No run is changed.

    Meanwhile no other thread runs a model. What is asked for is the last: the first masked run of a model tries the model on a probe before. Nothing is collected
    of a model that does not call its output embeddings as a module.
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
    """Surprisal of each token but the first, given those before it, (T - 1,) float64, nats.

    Args:
        logits: (vocabulary,), the model's own after the last token; what is read out of the streams must give them, else the
            model is run for the logits of every token.
        streams: (T, D), out of the last block, of a run of the whole model; without them it is run once more.
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
    found = [
        -torch.log_softmax(part, -1).gather(-1, ids_of[:, None].to(part.device))[:, 0].double().cpu()
        for part, ids_of in zip(rows, following.split(step), strict=True)
    ]
    return torch.cat(found)


def _last_streams(adapter: Adapter, ids: Sequence[int]) -> Tensor:
    """Streams out of the last block, (T, D). Nothing is replaced."""
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
