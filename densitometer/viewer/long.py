"""Edges of a long input for the page: the most important ones, and counts of all others.

Importances of a long input are computed tile by tile and never stored (`tiles.py`). One sweep over
the tiles computes everything that the page needs:

    kept        buffer of the best edges so far; edges beyond the budget are dropped
    counts      number of keys above each threshold of the grid, by component
    histogram   counts of importances by their high bits (`histogram.py`)

The best edges are those with the largest keys. All edges whose paths to the output lead through one
bottleneck edge have the key of that edge. Among them the bottleneck ranks first, then the most
important ones. A trace contains all of them or none.

The thresholds of the grid lie between bins of the keys' histogram, which the measurement has
computed already. So the number of keys above each threshold is known exactly before the sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from ..graph.growth import NOWHERE, KeyTile
from ..graph.tiled.histogram import KeyHistogram
from ..graph.tiled.tiles import TiledGraph


@dataclass(frozen=True)
class LongEdges:
    """Results of one sweep over the edges of a long input.

    Args:
        kept: the kept edges, as arrays (n,): level, kind (its name), head (-1 for none), source,
            target, importance, rank.
        exact_to: largest number of edges of a trace for which all its edges are kept.
        grid: (G,) int64, increasing, numbers of edges of traces.
        counts: (G, C) int64, edges of each of the C components in each of these traces.
        totals: (C,) int64, edges of each component.
        importances: histogram of all importances.
        zeros: number of importances that are 0.
    """

    kept: dict[str, numpy.ndarray]
    exact_to: int
    grid: numpy.ndarray
    counts: numpy.ndarray
    totals: numpy.ndarray
    importances: KeyHistogram
    zeros: int


def long_edges(graph: TiledGraph, measured: Sequence[int], budget: int, n_grid: int) -> LongEdges:
    """Sweep the edges of a long input once, and keep the best.

    Args:
        graph: graph of the input.
        measured: numbers of edges of traces that were run, which the grid contains.
        budget: number of edges to keep.
        n_grid: about how many further sizes the grid has.
    """
    grid, thresholds = _grid(graph, measured, n_grid)
    components = graph.space.components()
    kinds = list(dict.fromkeys(component.kind for component in components))
    number = {(each.level, each.kind, each.head): i for i, each in enumerate(components)}
    # number of keys of each component between two neighbouring thresholds
    between = numpy.zeros((len(components), len(thresholds) + 1), dtype=numpy.int64)
    rising = torch.from_numpy(thresholds[::-1].copy()).to(graph.forward.logits.device)
    importances, zeros, best = KeyHistogram(), 0, _Best(budget)
    for swept in graph.key_tiles():
        for kind, head, keys, values in _parts(swept, graph.space.levels[swept.level].residual_kind):
            there = keys > NOWHERE
            # whatever is not an edge is counted in bin 0 and dropped
            place = torch.bucketize(keys, rising).add_(1).mul_(there)
            counted = torch.bincount(place.flatten(), minlength=len(thresholds) + 2)[1:]
            between[number[swept.level, kind, head]] += counted.cpu().numpy()
            importances.add(values.where(there, NOWHERE))
            zeros += int(((values == 0) & there).sum())
            best.add(kinds.index(kind), head, swept, keys, values)
    # keys above each threshold, the highest threshold first
    above = between[:, ::-1].cumsum(axis=1)[:, :-1]
    kept, exact_to = best.closed(graph.n_edges)
    kept["kind"] = numpy.array(kinds)[kept["kind"]]
    return LongEdges(kept, exact_to, grid, above.T.copy(), between.sum(axis=1), importances, zeros)


def _grid(graph: TiledGraph, measured: Sequence[int], n_grid: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the grid of sizes.

    Returns:
        Numbers of edges, (G,) int64, increasing.
        Thresholds, (G,) float32, above which there are as many keys.
    """
    thresholds, counts = graph.threshold_steps
    wanted = numpy.geomspace(1, graph.n_edges, n_grid)
    nearest = numpy.unique(numpy.searchsorted(numpy.log(counts), numpy.log(wanted)).clip(max=len(counts) - 1))
    threshold_of = dict(zip(counts[nearest].tolist(), thresholds[nearest].tolist(), strict=True))
    traces = graph.traces(n_edges=sorted({n for n in measured if n}))
    threshold_of |= {trace.n_edges: trace.threshold for trace in traces if trace.n_edges}
    grid = sorted(threshold_of)
    return numpy.array(grid, dtype=numpy.int64), numpy.array(
        [threshold_of[n] for n in grid], dtype=numpy.float32
    )


def _parts(swept: KeyTile, residual_kind: str) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """Yield each part of a tile: kind, head, keys (t,) or (t, s), and importances."""
    importance, keys = swept.importance, swept.keys
    yield residual_kind, -1, keys.residual, importance.residual
    if keys.mlp is not None:
        yield "mlp", -1, keys.mlp[0], importance.mlp[0]
    if keys.attention is not None:
        for head, of_head in enumerate(zip(keys.attention, importance.attention, strict=True)):
            yield "attention", head, *of_head


@dataclass
class _Best:
    """Buffer of the best edges so far.

    It holds up to four budgets of edges before it is sorted, so that sorting is rare. `cutoff` is
    the smallest key that can still be among the best.
    """

    budget: int
    cutoff: float = -1.0
    parts: list[dict[str, numpy.ndarray]] = field(default_factory=list)
    n: int = 0

    def add(self, kind: int, head: int, swept: KeyTile, keys: Tensor, values: Tensor) -> None:
        # whatever is not an edge has a key below every cutoff
        chosen = keys >= self.cutoff
        place = chosen.nonzero()
        if not len(place):
            return
        target = place[:, 0].cpu().numpy() + swept.tile.targets.start
        source = target if values.ndim == 1 else place[:, 1].cpu().numpy() + swept.tile.sources.start
        same = numpy.ones(len(place), dtype=numpy.int32)
        self.parts.append(
            {
                "level": swept.level * same, "kind": kind * same, "head": head * same, "source": source.astype(numpy.int32),
                "target": target.astype(numpy.int32), "key": keys[chosen].cpu().numpy(), "importance": values[chosen].cpu().numpy(),
            }
        )  # fmt: skip
        self.n += len(place)
        if self.n > 4 * self.budget:
            self._trim()

    def _trim(self) -> None:
        every = {name: numpy.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        # a bottleneck's importance is its key, and it ranks before the edges behind it
        through = every["importance"] == every["key"]
        order = numpy.lexsort((-every["importance"], ~through, -every["key"]))[: self.budget]
        self.parts = [{name: column[order] for name, column in every.items()}]
        self.n = len(order)
        if self.n == self.budget:
            self.cutoff = float(self.parts[0]["key"][-1])

    def closed(self, n_edges: int) -> tuple[dict[str, numpy.ndarray], int]:
        """Return the best edges with ranks, and the size of the largest complete trace."""
        self._trim()
        (best,) = self.parts
        keys = best.pop("key")
        best["rank"] = numpy.arange(self.n, dtype=numpy.int32)
        # edges that share the last key may be incomplete
        exact_to = n_edges if self.n == n_edges else int((keys > keys[-1]).sum())
        order = numpy.lexsort([best[name] for name in ("source", "target", "head", "kind", "level")])
        return {name: column[order] for name, column in best.items()}, exact_to
