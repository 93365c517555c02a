"""Logits of given traces: `masked_runs.py` with checks of the user's arguments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._util.arguments import checked_list
from ..errors import ArgumentTypeError, InputError
from ..graph.graph import Graph, Trace
from ..graph.masked_runs import masked_logits
from ..models.loading import Model
from .settings import Ablation, Attention, MeasureSettings


def reconstruct(
    model: Model,
    graph: Graph,
    traces: Sequence[Trace],
    *,
    attention: Attention = "recomputed",
    ablation: Ablation = "zero",
) -> Tensor:
    """Run the model with only each trace's edges on, and return the logits.

    Args:
        model: the model that the graph was built from.
        graph: the graph, from `build_graph`.
        traces: traces that were cut from that graph.
        attention: "recomputed" computes attention weights from the pruned stream, "frozen" keeps
            the full run's, "kept" leaves every attention edge on.
        ablation: what replaces the vector of a removed edge: "zero", or reference means
            (`reference_means`, `load_means`). With a counterfactual, its vectors replace them.

    Returns:
        Logits at the graph's position, (traces, vocabulary) float32, on the CPU.

    Raises:
        InputError: an option is unknown, or traces or means are of another graph or model.
        ArgumentTypeError: an argument is not a model, a graph or a list of traces.

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
    settings = MeasureSettings(attention=attention, ablation=ablation, granularity=graph.granularity)
    settings.model_for(model)
    if graph.model.module is not model.module:
        raise InputError(f"the graph was built from another model ({graph.model.name}), not {model.name}")
    if settings.means is not None and graph.forward.counterfactual is not None:
        raise InputError(
            "the graph has a counterfactual, by which edges that are off carry what they carry there; give no reference means"
        )
    if isinstance(traces, Trace):
        raise ArgumentTypeError("expected a list of traces, got one trace; put it into a list")
    traces = checked_list("traces", traces)
    for trace in traces:
        if not isinstance(trace, Trace):
            raise ArgumentTypeError(
                f"expected traces such as graph.trace(size=0.1), got {type(trace).__name__}; a mask is made one by graph.trace(mask=...)"
            )
        # a graph of the same input that was built again has the same edges
        same = trace.graph is graph or (
            trace.graph.model.module is model.module
            and trace.graph.forward.ids == graph.forward.ids
            and trace.graph.granularity == graph.granularity
        )
        if not same:
            raise InputError("a trace was cut from another graph; build traces from the graph that is given")
    flat = (trace.flat for trace in traces)
    return masked_logits(graph.forward, flat, settings.frozen, settings.means, kept=settings.kept)
