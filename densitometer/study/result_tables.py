"""Tables that a study stores for each measured piece of a text.

curve        the rows of the curve, with each run's most probable tokens and its correlation with
             unigram frequencies
components   how many edges of each trace each kind, layer and head holds
states       the input of the unembedding, for the model and for each trace
trace        the first edges that best-first growth adds
histogram    how many edges have which importance
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import polars
import torch

from ..errors import ModelError
from ..graph.forward_pass import EdgeSpace, ForwardPass
from ..graph.graph import Graph, Trace
from ..measuring.measurement import Measurement, Runs
from ..measuring.trace_sets import BASELINE
from ..models.loading import Model
from ..models.unembedding import surprisals
from .part_files import COMPONENTS, CURVE, STATES, TRACE
from .unigrams import correlations

# Edges that are stored of a trace with traces="top".
TOP_EDGES = 1000
# Most probable tokens that are stored of each run.
TOP_TOKENS = 10
# Upper ends (log10) of the bins of importances. Smaller and larger values go into the first and
# last.
BINS = tuple(round(-16 + 0.25 * i, 2) for i in range(81))
# Kind of the full model's state.
MODEL = "model"
# A state keeps float32's range and float16's precision: these of the 23 bits after the point are
# zero.
_SPARE_BITS = 13


class Observation:
    """A measured piece and the model runs that its curve was computed from.

    Args:
        measurement: the measurement of the piece.
        runs: logits and states of its runs.
        counts: (vocabulary,) int64, how often each token occurs in other texts
            (`unigrams.Unigrams.without`).
    """

    def __init__(self, measurement: Measurement, runs: Runs, counts: numpy.ndarray) -> None:
        self._measurement, self._runs = measurement, runs
        self.n_unigrams = int((counts > 0).sum())
        self.full_correlation = correlations(counts, runs.full[None].numpy())[0]
        top = runs.logits.softmax(-1).topk(min(TOP_TOKENS, runs.logits.shape[-1]))
        names, kinds, sizes, _ = zip(*runs.rows, strict=True)
        columns = {
            "importance": names,
            "kind": kinds,
            "size": sizes,
            "unigram_correlation": correlations(counts, runs.logits.numpy()),
            "top_ids": top.indices.tolist(),
            "top_probabilities": top.values.tolist(),
        }
        table = polars.DataFrame(columns, schema={name: CURVE[name] for name in columns})
        # in a small graph two requested sizes of a baseline may give the same subgraph, and equal
        # rows
        self._per_run = table.unique(["importance", "kind", "size"], keep="last", maintain_order=True)

    def _traces(self, name: str) -> list[tuple[int, float, Trace]]:
        """Traces of an importance, each as number of the run, size and trace."""
        rows = enumerate(self._runs.rows)
        return [(i, row[2], row[3]) for i, row in rows if row[:2] == (name, "trace")]

    @property
    def forward(self) -> ForwardPass | None:
        """The recorded forward pass. None for a long input, whose edges are not stored."""
        forward: ForwardPass = self._runs.rows[0][3].graph.forward
        return forward if forward.stored else None

    def prompt_surprisal(self, model: Model, ids: Sequence[int]) -> float | None:
        """Mean surprisal of the prompt's tokens in nats, each given the tokens before it.

        None for a prompt of one token.

        Args:
            model: the model of the measurement.
            ids: token ids of the prompt, up to the measured position.
        """
        if len(ids) < 2:
            return None
        streams = None
        if self.forward is not None:
            with torch.no_grad(), model.running():
                streams = model.adapter.blocks[-1].stream_out(self.forward.records[-1].mlp_sum)
        return float(surprisals(model.adapter, ids, self._runs.full, streams).mean())

    def curve(self, name: str, with_baselines: bool) -> polars.DataFrame:
        """Table of the curve of an importance.

        Args:
            name: the importance.
            with_baselines: whether to add the rows of the baselines, which depend on no importance.
        """
        m, ours = self._measurement, polars.col("importance") == name
        parts = [
            m.curve.filter(ours).with_columns(refined=polars.lit(False)),
            m.refined.filter(ours).with_columns(refined=polars.lit(True)),
        ]
        if with_baselines:
            parts.append(m.baselines.with_columns(importance=polars.lit(BASELINE), refined=polars.lit(False)))
        # Random subgraphs of edges are run once for all importances, and their runs go by the name
        # "random". Runs of the bisection (refined) were not kept; their rows get nulls.
        shared = (polars.col("kind") == "random") & (m.units == "edges")
        run_as = polars.when(shared).then(polars.lit("random")).otherwise("importance")
        table = polars.concat(parts, how="diagonal").with_columns(run_as=run_as)
        per_run = self._per_run.rename({"importance": "run_as"}).with_columns(refined=polars.lit(False))
        return table.join(
            per_run, on=["run_as", "kind", "size", "refined"], how="left", maintain_order="left"
        )

    def components(self, name: str) -> polars.DataFrame:
        """Table of each component's number of edges, in each trace and in all.

        A component is (kind, layer, head)."""
        traces = self._traces(name)
        graph: Graph = traces[0][2].graph
        components = graph.space.components()
        n = len(components)
        return polars.DataFrame(
            {
                "size": numpy.repeat([size for _, size, _ in traces], n),
                "kind": [component.kind for component in components] * len(traces),
                "layer": [component.layer for component in components] * len(traces),
                "head": [component.head for component in components] * len(traces),
                "n_edges": numpy.concatenate([_count(graph.space, trace.flat) for *_, trace in traces]),
                "total": numpy.tile(_count(graph.space, graph.reachable), len(traces)),
            },
            schema=COMPONENTS,
        ).with_columns(head=polars.col("head").replace(-1, None))

    def states(self, name: str) -> polars.DataFrame:
        """Table of the unembedding's inputs, for the full model and for each trace.

        The full model's row has kind "model" and size null.

        Raises:
            ModelError: the model does not call its unembedding as a module.
        """
        states, full = self._runs.states, self._runs.full_state
        if states is None or full is None:
            raise ModelError(
                f"{self._measurement.model['architecture']} does not call its unembedding as a module, so its "
                "input cannot be recorded; run the study without states"
            )
        traces = self._traces(name)
        kept = _rounded(numpy.stack([full.numpy(), *(states[i].numpy() for i, _, _ in traces)]))
        return polars.DataFrame(
            {
                "kind": [MODEL] + ["trace"] * len(traces),
                "size": [None, *(size for _, size, _ in traces)],
                "state": polars.Series(kept.tolist(), dtype=STATES["state"]),
            },
            schema=STATES,
        )

    def edges(self, name: str, most: int | None) -> dict[str, polars.DataFrame]:
        """Tables "trace" and "histogram" of the edges of one measurement.

        "trace" has a row for each edge, in the order in which best-first growth adds them.
        "histogram" counts all edges by the decimal logarithm of their importance.

        Args:
            name: the importance.
            most: number of edges in the table "trace"; None for all.
        """
        graph: Graph = self._traces(name)[0][2].graph
        order = graph.order[:most]
        columns = graph.space.columns(order) | {"edge_importance": graph.importance[order]}
        table = polars.DataFrame(
            {name: columns[name].tolist() if name == "kind" else columns[name] for name in TRACE}
        )
        with numpy.errstate(divide="ignore"):
            exponents = numpy.log10(numpy.abs(graph.importance[graph.index]).astype(numpy.float64))
        bins = numpy.searchsorted(BINS, exponents.clip(BINS[0], BINS[-1]), side="left")
        counts = numpy.bincount(bins, minlength=len(BINS))
        return {
            "trace": table.with_columns(head=polars.col("head").replace(-1, None)),
            "histogram": polars.DataFrame({"count": counts}),
        }


def _count(space: EdgeSpace, mask: numpy.ndarray) -> numpy.ndarray:
    """Number of edges of each component that are on, (components,) int64.

    Components are in the order of `EdgeSpace.components`.
    """
    counts = []
    for view in space.views(mask):
        counts.append([view.residual.sum()])
        counts += [view.attention.sum((1, 2))] if view.attention is not None else []
        counts += [[view.mlp.sum()]] if view.mlp is not None else []
    return numpy.concatenate(counts).astype(numpy.int64)


def _rounded(values: numpy.ndarray) -> numpy.ndarray:
    """Round float32 numbers so that their last bits are zero, which compresses well.

    Rounding is to the nearest, halves away from zero.
    """
    bits = numpy.ascontiguousarray(values, dtype=numpy.float32).view(numpy.uint32)
    half = numpy.uint32(1 << (_SPARE_BITS - 1))
    mask = numpy.uint32(~((1 << _SPARE_BITS) - 1) & 0xFFFFFFFF)
    return ((bits + half) & mask).view(numpy.float32)
