"""Run the model with only a trace's edges on, many traces at once.

`attention="recomputed"` (the papers): weights are recomputed from the pruned stream, and those of removed edges are set
to zero after the softmax, without renormalising. `attention="frozen"`: the full run's weights are kept and only values
flow. `ablation="zero"`: a removed edge contributes nothing.

Variants of one input form a batch; there is no padding, and a batch is split so that its attention and activations
stay within a memory budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy
import torch
from torch import Tensor

from .errors import ArgumentTypeError, InputError
from .forward import ForwardPass
from .graph import Graph, Trace
from .models.loading import Model

# Working memory of one batch of variants, in bytes.
BATCH_BYTES = 128 * 2**20


def reconstruct(
    model: Model,
    graph: Graph,
    traces: Sequence[Trace],
    attention: Literal["recomputed", "frozen"] = "recomputed",
    ablation: Literal["zero"] = "zero",
) -> Tensor:
    """Logits at the graph's position with only each trace's edges on.

    Args:
        model: the one that the graph was built from.
        traces: cut from that graph.
        attention: whether attention weights are recomputed from the pruned stream, or the full run's are kept.
        ablation: what a removed edge contributes: "zero", nothing.

    Returns:
        (traces, vocabulary) float32, on the CPU.

    Raises:
        InputError: an unknown option, or traces of another graph or model.
    """
    if attention not in ("recomputed", "frozen"):
        raise InputError(f"unknown attention {attention!r}; expected 'recomputed' or 'frozen'")
    if ablation not in ("zero",):
        raise InputError(f"unknown ablation {ablation!r}; expected 'zero'")
    if graph.model.module is not model.module:
        raise InputError(f"the graph was built from another model ({graph.model.name}), not {model.name}")
    if isinstance(traces, Trace):
        raise ArgumentTypeError("expected a list of traces, got one trace; put it into a list")
    for trace in traces:
        same = trace.graph is graph or (
            trace.graph.model.module is model.module and trace.graph.forward.ids == graph.forward.ids
        )
        if not same:
            raise InputError("a trace was cut from another graph; build traces from the graph that is given")
    masks = [trace.flat for trace in traces]
    return masked_logits(graph.forward, masks, frozen=attention == "frozen")


def masked_logits(
    forward: ForwardPass,
    masks: Sequence[numpy.ndarray],
    frozen: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Logits (K, vocabulary) float32 of K masks (F,) bool over the edges of a recorded pass.

    Args:
        frozen: keep the full run's attention weights.
        advance: called with the number of masks done since the last call.
    """
    vocabulary = forward.logits.shape[-1]
    if not masks:
        return torch.empty(0, vocabulary)
    out = []
    step = variants_per_batch(forward)
    for start in range(0, len(masks), step):
        batch = torch.from_numpy(numpy.stack(masks[start : start + step])).to(forward.logits.device)
        blocks = forward.block_masks(batch, frozen)
        out.append(forward.model.adapter.masked_logits(forward.ids, blocks).cpu())
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
