"""Traces that a measurement runs: nested families, and the subgraphs that need no importance.

Families are by size or by threshold.

A row is (importance, kind, size, trace).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

from .._util.digits import significant
from ..errors import InputError
from ..graph.tiled.tiles import TiledGraph

BASELINE_SIZES = (0.1, 0.4)  # where baselines are run, unless sizes are given
FLAVOUR_SIZES = (0.01, 0.1, 0.4)  # where the papers' flavours of the baselines are run
BASELINE = "baseline"  # stands for an importance where there is none
N_THRESHOLDS = 26  # of a curve by threshold


def traces_by_size(graph: Any, sizes: Sequence[float]) -> list[tuple[float, Any]]:
    """Return the best-first traces of sizes, each with its size as given.

    Of a tiled graph these are the traces that thresholds give, each with its own size.
    """
    traces = graph.traces(sizes)
    if isinstance(graph, TiledGraph):
        family = _by_size([trace for trace in traces if trace.n_edges])
        if not family:
            least = graph.trace(threshold=math.nextafter(graph.threshold_range[0], 0))
            raise InputError(
                f"no importance threshold gives a trace of at most {max(sizes):g} of the edges: the smallest has "
                f"{least.n_edges:,} of {graph.n_edges:,} (size {significant(least.size, 3)}); give larger sizes"
            )
        return family
    return list(zip(sizes, traces, strict=True))


def traces_by_threshold(graph: Any, thresholds: Sequence[float] | None) -> list[tuple[float, Any]]:
    """The traces of importance thresholds and the full one, with their sizes, smallest first."""
    if thresholds is None:
        largest, least = graph.threshold_range
        # Edges of importance 0 are in the full trace alone; the others begin twelve decades below.
        least = least if least > 0 else largest / 1e12
        thresholds = numpy.geomspace(largest, least, N_THRESHOLDS).tolist() if least > 0 else [0.0]
    return _by_size([*graph.traces(thresholds=thresholds), graph.trace(size=1.0)])


def nearest_sizes(family: Sequence[tuple[float, Any]], sizes: Sequence[float]) -> list[tuple[float, Any]]:
    """Return those traces whose sizes are nearest, in log size, to the given ones, each once."""
    logs = [math.log(max(size, 1e-9)) for size, _ in family]
    places = {min(range(len(logs)), key=lambda i: abs(logs[i] - math.log(size))) for size in sizes}
    return [family[i] for i in sorted(places)]


def _by_size(traces: Sequence[Any]) -> list[tuple[float, Any]]:
    """Traces of different numbers of edges, smallest first, with their sizes."""
    by_count = {trace.n_edges: (trace.size, trace) for trace in traces}
    return [by_count[count] for count in sorted(by_count)]


def natural_traces(graph: Any, baselines: Sequence[str], seed: int) -> list[tuple[str, str, float, Any]]:
    """Subgraphs that need no importance, and the chosen baselines.

    The baselines are windows of attention, and the papers' flavours of inverse and random at a few
    sizes.
    """
    natural = graph.natural_subgraphs().items()
    traces = [
        (name, trace) for name, trace in natural if "window" in baselines or not name.startswith("window")
    ]
    if "residual" in baselines:
        own = graph.traces(FLAVOUR_SIZES)
        traces += [("inverse_residual", trace.inverse(keep_residual=True)) for trace in own]
        drawn = graph.random_graph(seed).traces(FLAVOUR_SIZES)
        traces += [("random_residual", trace.with_residual()) for trace in drawn]
    return [(BASELINE, name, trace.size, trace) for name, trace in traces]
