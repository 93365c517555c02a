"""What a study keeps of a measured piece beyond the curve's numbers, as tables for the store.

curve        the rows of the curve, with each run's most probable tokens and its correlation with unigram frequencies
components   which kinds, layers and heads hold the edges of each trace
states       what the unembedding reads, of the model and of each trace
trace        the first edges that best-first growth adds; histogram, of all importances
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

TOP_EDGES = 1000  # of a trace that is not kept whole
TOP_TOKENS = 10  # of each trace's prediction
# Upper ends, log10, of the bins of importances; what is smaller or larger is in the first or last.
BINS = tuple(round(-16 + 0.25 * i, 2) for i in range(81))
MODEL = "model"  # the kind of the full run's state
_SPARE_BITS = 13  # of float32's 23: a state is kept to float16's precision, in float32's range


class Observation:
    """A measured piece and the runs that its curve is made from.

    Args:
        counts: (vocabulary,), how often each token occurs elsewhere (`unigrams.Unigrams.without`).
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
        told = polars.DataFrame(columns, schema={name: CURVE[name] for name in columns})
        # a flavour of a baseline may be the same at two sizes of a small graph
        self._told = told.unique(["importance", "kind", "size"], keep="last", maintain_order=True)

    def _traces(self, name: str) -> list[tuple[int, float, Trace]]:
        """The traces of an importance: number of the run, size, trace."""
        rows = enumerate(self._runs.rows)
        return [(i, row[2], row[3]) for i, row in rows if row[:2] == (name, "trace")]

    @property
    def forward(self) -> ForwardPass | None:
        """The recorded pass. None for a long input, whose edges are not stored."""
        found = self._runs.rows[0][3].graph.forward
        return found if isinstance(found, ForwardPass) else None

    def prompt_surprisal(self, model: Model, ids: Sequence[int]) -> float | None:
        """Mean nats by which the tokens surprise the model, each given those before it.

        None for one token.

        Args:
            ids: those that were measured, up to the position.
        """
        if len(ids) < 2:
            return None
        streams = None
        if self.forward is not None:
            with torch.no_grad(), model.running():
                streams = model.adapter.blocks[-1].stream_out(self.forward.records[-1].mlp_sum)
        return float(surprisals(model.adapter, ids, self._runs.full, streams).mean())

    def curve(self, name: str, with_baselines: bool) -> polars.DataFrame:
        """Rows of an importance, with `with_baselines` also those of the natural subgraphs.

        Natural subgraphs need no importance.
        """
        m, own = self._measurement, polars.col("importance") == name
        parts = [
            m.curve.filter(own).with_columns(refined=polars.lit(False)),
            m.refined.filter(own).with_columns(refined=polars.lit(True)),
        ]
        if with_baselines:
            parts.append(m.baselines.with_columns(importance=polars.lit(BASELINE), refined=polars.lit(False)))
        # random subgraphs are run once for all importances
        run_as = (
            polars.when(polars.col("kind") == "random").then(polars.lit("random")).otherwise("importance")
        )
        table = polars.concat(parts, how="diagonal").with_columns(run_as=run_as)
        told = self._told.rename({"importance": "run_as"}).with_columns(refined=polars.lit(False))
        return table.join(told, on=["run_as", "kind", "size", "refined"], how="left", maintain_order="left")

    def components(self, name: str) -> polars.DataFrame:
        """How many edges of each trace are of each kind, layer and head, and how many there are in all."""
        traces = self._traces(name)
        graph: Graph = traces[0][2].graph
        found = graph.space.components()
        n = len(found)
        return polars.DataFrame(
            {
                "size": numpy.repeat([size for _, size, _ in traces], n),
                "kind": [component.kind for component in found] * len(traces),
                "layer": [component.layer for component in found] * len(traces),
                "head": [component.head for component in found] * len(traces),
                "n_edges": numpy.concatenate([_count(graph.space, trace.flat) for *_, trace in traces]),
                "total": numpy.tile(_count(graph.space, graph.reachable), len(traces)),
            },
            schema=COMPONENTS,
        ).with_columns(head=polars.col("head").replace(-1, None))

    def states(self, name: str) -> polars.DataFrame:
        """What the unembedding reads: first of the model (kind "model", size null), then of each trace of an importance.

        Raises:
            ModelError: the model does not call its unembedding as a module.
        """
        states, full = self._runs.states, self._runs.full_state
        if states is None or full is None:
            raise ModelError(
                f"what the unembedding of {self._measurement.model['architecture']} reads cannot be seen: it is not called as a "
                "module; run the study without states"
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
        """The first edges that best-first growth adds (trace), and how many edges have which importance (histogram)."""
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
    found = []
    for view in space.views(mask):
        found.append([view.residual.sum()])
        found += [view.attention.sum((1, 2))] if view.attention is not None else []
        found += [[view.mlp.sum()]] if view.mlp is not None else []
    return numpy.concatenate(found).astype(numpy.int64)


def _rounded(values: numpy.ndarray) -> numpy.ndarray:
    """Round float32 so that the last bits are zero, which zstd packs.

    Rounding is to the nearest, halves away from zero.
    """
    bits = numpy.ascontiguousarray(values, dtype=numpy.float32).view(numpy.uint32)
    half = numpy.uint32(1 << (_SPARE_BITS - 1))
    mask = numpy.uint32(~((1 << _SPARE_BITS) - 1) & 0xFFFFFFFF)
    return ((bits + half) & mask).view(numpy.float32)
