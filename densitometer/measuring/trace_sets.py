"""Traces that a measurement runs: nested traces, and the subgraphs that need no importance.

A *family* is a list of nested traces of one importance, by size or by threshold. Each comes with
its size. A run is described by a row (importance, kind, size, trace).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

from .._util.digits import significant
from ..errors import InputError
from ..graph.edge_graph import EdgeGraph

# Sizes of the baselines, unless sizes are given.
BASELINE_SIZES = (0.1, 0.4)
# Sizes of the papers' flavours of the baselines.
FLAVOUR_SIZES = (0.01, 0.1, 0.4)
# What subgraphs that need no importance have in the column of importances.
BASELINE = "baseline"
# Thresholds of a curve by threshold, without the full trace.
N_THRESHOLDS = 26


def traces_by_size(graph: EdgeGraph[Any], sizes: Sequence[float]) -> list[tuple[float, Any]]:
    """Return the best-first traces of some sizes, each with its size as given.

    If edges are not stored, traces are cut at thresholds instead, so each comes with its own size.

    Raises:
        InputError: no threshold gives a trace that is within these sizes and not empty.
    """
    traces = graph.traces(sizes)
    if graph.stored:
        return list(zip(sizes, traces, strict=True))
    family = _by_size([trace for trace in traces if trace.n_edges])
    if not family:
        least = graph.trace(threshold=math.nextafter(graph.threshold_range[0], 0))
        raise InputError(
            f"no importance threshold gives a trace of at most {max(sizes):g} of the edges: the smallest has "
            f"{least.n_edges:,} of {graph.n_edges:,} (size {significant(least.size, 3)}); give larger sizes"
        )
    return family


def traces_by_threshold(graph: EdgeGraph[Any], thresholds: Sequence[float] | None) -> list[tuple[float, Any]]:
    """Return the traces of importance thresholds and the full trace, smallest first, with sizes.

    Args:
        thresholds: importances. None for `N_THRESHOLDS` that are spread evenly, on a log scale,
            over the range of the graph's importances.
    """
    if thresholds is None:
        largest, least = graph.threshold_range
        # Edges of importance 0 are in the full trace alone; the others begin twelve decades below.
        least = least if least > 0 else largest / 1e12
        thresholds = numpy.geomspace(largest, least, N_THRESHOLDS).tolist() if least > 0 else [0.0]
    return _by_size([*graph.traces(thresholds=thresholds), graph.trace(size=1.0)])


def nearest_sizes(family: Sequence[tuple[float, Any]], sizes: Sequence[float]) -> list[tuple[float, Any]]:
    """Return the traces of a family whose log sizes are nearest to those given, each once."""
    logs = [math.log(max(size, 1e-9)) for size, _ in family]
    places = {min(range(len(logs)), key=lambda i: abs(logs[i] - math.log(size))) for size in sizes}
    return [family[i] for i in sorted(places)]


def _by_size(traces: Sequence[Any]) -> list[tuple[float, Any]]:
    """Sort traces by number of edges, keep one per number, and return them with their sizes."""
    by_count = {trace.n_edges: (trace.size, trace) for trace in traces}
    return [by_count[count] for count in sorted(by_count)]


def natural_traces(
    graph: EdgeGraph[Any], baselines: Sequence[str], seed: int
) -> list[tuple[str, str, float, Any]]:
    """Return the rows of subgraphs that need no importance, and of baselines that are chosen.

    Args:
        baselines: baselines that were requested. "window" includes windows of attention, "residual"
            the papers' versions of inverse and random, which keep all residual edges.
        seed: random seed of the random baseline.
    """
    natural = graph.natural_subgraphs().items()
    traces = [
        (name, trace) for name, trace in natural if "window" in baselines or not name.startswith("window")
    ]
    if "residual" in baselines:
        grown = graph.traces(FLAVOUR_SIZES)
        traces += [("inverse_residual", trace.inverse(keep_residual=True)) for trace in grown]
        drawn = graph.random_graph(seed).traces(FLAVOUR_SIZES)
        traces += [("random_residual", trace.with_residual()) for trace in drawn]
    return [(BASELINE, name, trace.size, trace) for name, trace in traces]
