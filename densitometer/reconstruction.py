"""Logits of traces: the public face of `ablation.py`, which refuses what does not belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from .ablation import masked_logits
from .arguments import checked_list
from .errors import ArgumentTypeError, InputError
from .graph import Graph, Trace
from .means import ReferenceMeans, check_means
from .models.loading import Model


def reconstruct(
    model: Model,
    graph: Graph,
    traces: Sequence[Trace],
    attention: Literal["recomputed", "frozen"] = "recomputed",
    ablation: Literal["zero", "mean"] = "zero",
    means: ReferenceMeans | None = None,
) -> Tensor:
    """Logits at the graph's position with only each trace's edges on.

    Args:
        model: the one that the graph was built from.
        traces: cut from that graph.
        attention: whether attention weights are recomputed from the pruned stream, or the full run's are kept.
        ablation: what a removed edge contributes: "zero", nothing; "mean", its mean over a reference corpus.
        means: for "mean", from `reference_means` or `load_means`.

    Returns:
        (traces, vocabulary) float32, on the CPU.

    Raises:
        InputError: an unknown option, or traces or means of another graph or model.

    Examples:
        >>> graph = dm.build_graph(model, "The captain looked")
        >>> logits = dm.reconstruct(model, graph, [graph.trace(size=0.5), graph.trace(size=1.0)])
        >>> logits.shape
        torch.Size([2, 4096])
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"expected a model from densitometer.load_model, got {type(model).__name__}")
    if not isinstance(graph, Graph):
        raise ArgumentTypeError(f"expected a graph from densitometer.build_graph, got {type(graph).__name__}")
    check_semantics(model, attention, ablation, means, graph.granularity)
    if graph.model.module is not model.module:
        raise InputError(f"the graph was built from another model ({graph.model.name}), not {model.name}")
    if isinstance(traces, Trace):
        raise ArgumentTypeError("expected a list of traces, got one trace; put it into a list")
    traces = checked_list("traces", traces)
    for trace in traces:
        if not isinstance(trace, Trace):
            raise ArgumentTypeError(
                f"expected traces such as graph.trace(size=0.1), got {type(trace).__name__}; a mask is made one by graph.trace(mask=...)"
            )
        same = trace.graph is graph or (
            trace.graph.model.module is model.module
            and trace.graph.forward.ids == graph.forward.ids
            and trace.graph.granularity == graph.granularity
        )
        if not same:
            raise InputError("a trace was cut from another graph; build traces from the graph that is given")
    return masked_logits(graph.forward, (trace.flat for trace in traces), attention == "frozen", means)


def check_semantics(
    model: Model, attention: str, ablation: str, means: ReferenceMeans | None, granularity: str = "block"
) -> None:
    """Refuse an unknown semantics of what is off, and means that are missing or of another model or grain.

    Raises:
        InputError: so it is.
    """
    if attention not in ("recomputed", "frozen"):
        raise InputError(f"unknown attention {attention!r}; expected 'recomputed' or 'frozen'")
    if ablation not in ("zero", "mean"):
        raise InputError(f"unknown ablation {ablation!r}; expected 'zero' or 'mean'")
    if (ablation == "mean") != (means is not None):
        raise InputError(
            "ablation='mean' and means=... go together: compute means with densitometer.reference_means(model, texts), "
            "or with `densitometer means CORPUS -m MODEL -o FILE` and densitometer.load_means(FILE)"
        )
    if means is not None:
        check_means(means, model)
        if granularity != "block":
            raise InputError(
                f"means are of whole MLPs, so ablation='mean' needs granularity='block'; got {granularity!r}"
            )
