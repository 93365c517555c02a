"""The edges of a long input for the page: the most important ones up to a budget, exact counts of all the others.

A long input's importances are computed tile by tile and never stored (`tiles.py`). One sweep over them gives everything:

    kept        a buffer of the best edges so far; what falls behind the budget is dropped
    counts      each key against the grid's thresholds, counted by component
    histogram   the high bits of each importance, counted (`histogram.py`)

The best are those with the largest keys. Of edges that share one, which are those behind one bottleneck, the bottleneck itself
comes first, then the most important; their ranks say so, and a trace holds all of them or none.

The sizes of the grid are those of thresholds between the bins of the keys' histogram, which the measurement has made
already: how many keys are above such a threshold is known exactly without another look at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from ..graph.forward_pass import Component
from ..graph.tiled.histogram import KeyHistogram
from ..graph.tiled.tiles import ReachedTile, TiledGraph


@dataclass(frozen=True)
class LongEdges:
    """What one sweep found.

    Args:
        kept: arrays (n,): level, kind (index of `kinds`), head (-1 for none), source, target, importance, rank.
        exact_to: up to how many edges every edge of a trace is kept.
        grid: (G,) int64, numbers of edges of traces, rising; counts: (G, C) int64, how many are of each component.
        totals: (C,) int64, edges of each component.
        importances: counts of all importances.
        zeros: how many are 0.
    """

    kinds: list[str]
    components: list[Component]
    kept: dict[str, numpy.ndarray]
    exact_to: int
    grid: numpy.ndarray
    counts: numpy.ndarray
    totals: numpy.ndarray
    importances: KeyHistogram
    zeros: int


def long_edges(graph: TiledGraph, measured: Sequence[int], budget: int, n_grid: int) -> LongEdges:
    """Sweep the edges of a long input once.

    Args:
        measured: numbers of edges of traces that were run; they are in the grid.
        budget: edges kept.
        n_grid: about so many sizes beside those measured.
    """
    grid, thresholds = _grid(graph, measured, n_grid)
    components = graph.forward.space.components()
    kinds = list(dict.fromkeys(component.kind for component in components))
    number = {(each.level, each.kind, each.head): i for i, each in enumerate(components)}
    # of each component, how many keys lie between two thresholds
    between = numpy.zeros((len(components), len(thresholds) + 1), dtype=numpy.int64)
    rising = torch.from_numpy(thresholds[::-1].copy()).to(graph.forward.logits.device)
    importances, zeros, best = KeyHistogram(), 0, _Best(budget)
    for tile in graph.reached_tiles():
        for kind, head, scores, absent in _parts(tile):
            keys = scores.minimum(tile.bottleneck[:, None] if scores.ndim == 2 else tile.bottleneck)
            place = torch.bucketize(keys, rising)
            if absent is not None:
                place = place.masked_fill(absent, -1)
            own = torch.bincount(place.flatten() + 1, minlength=len(thresholds) + 2)[1:]
            between[number[tile.level, kind, head]] += own.cpu().numpy()
            empty = 0 if absent is None else int(absent.sum())
            importances.add(scores.contiguous(), empty)
            zeros += int((scores == 0).sum()) - empty
            best.add(kinds.index(kind), head, tile, keys, scores, absent)
    above = between[:, ::-1].cumsum(axis=1)[:, :-1]  # keys above each threshold, the highest first
    kept, exact_to = best.closed(graph.n_edges)
    return LongEdges(
        kinds, components, kept, exact_to, grid, above.T.copy(), between.sum(axis=1), importances, zeros
    )  # fmt: skip


def _grid(graph: TiledGraph, measured: Sequence[int], n_grid: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Numbers of edges, rising, (G,) int64, and the thresholds (G,) float32 above which so many keys are."""
    thresholds, counts = graph.threshold_steps
    wanted = numpy.geomspace(1, graph.n_edges, n_grid)
    nearest = numpy.unique(numpy.searchsorted(numpy.log(counts), numpy.log(wanted)).clip(max=len(counts) - 1))
    found = dict(zip(counts[nearest].tolist(), thresholds[nearest].tolist(), strict=True))
    traces = graph.traces(n_edges=sorted({n for n in measured if n}))
    found |= {trace.n_edges: trace.threshold for trace in traces if trace.n_edges}
    grid = sorted(found)
    return numpy.array(grid, dtype=numpy.int64), numpy.array([found[n] for n in grid], dtype=numpy.float32)


def _parts(tile: ReachedTile) -> Iterator[tuple[str, int, Tensor, Tensor | None]]:
    """Parts of a tile: kind, head, importances (t,) or (t, s), and which of them are not edges."""
    yield tile.residual_kind, -1, tile.scores.residual, None
    if tile.scores.mlp is not None:
        yield "mlp", -1, tile.scores.mlp, None
    if tile.scores.attention is not None:
        for head, scores in enumerate(tile.scores.attention):
            yield "attention", head, scores, tile.absent


@dataclass
class _Best:
    """The best edges so far."""

    budget: int
    cutoff: float = -1.0  # no key below it can be among the best
    parts: list[dict[str, numpy.ndarray]] = field(default_factory=list)
    n: int = 0

    def add(
        self, kind: int, head: int, tile: ReachedTile, keys: Tensor, scores: Tensor, absent: Tensor | None
    ) -> None:
        chosen = keys >= self.cutoff
        if absent is not None:
            chosen &= ~absent
        place = chosen.nonzero()
        if not len(place):
            return
        target = tile.targets[place[:, 0]].cpu().numpy()
        source = target if scores.ndim == 1 else place[:, 1].cpu().numpy() + tile.sources.start
        same = numpy.ones(len(place), dtype=numpy.int32)
        self.parts.append(
            {
                "level": tile.level * same, "kind": kind * same, "head": head * same, "source": source.astype(numpy.int32),
                "target": target.astype(numpy.int32), "key": keys[chosen].cpu().numpy(), "importance": scores[chosen].cpu().numpy(),
            }
        )  # fmt: skip
        self.n += len(place)
        if self.n > 4 * self.budget:
            self._trim()

    def _trim(self) -> None:
        every = {name: numpy.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        through = every["importance"] == every["key"]  # a bottleneck itself comes before what lies behind it
        order = numpy.lexsort((-every["importance"], ~through, -every["key"]))[: self.budget]
        self.parts = [{name: values[order] for name, values in every.items()}]
        self.n = len(order)
        if self.n == self.budget:
            self.cutoff = float(self.parts[0]["key"][-1])

    def closed(self, n_edges: int) -> tuple[dict[str, numpy.ndarray], int]:
        """The best, with the rank of each, and how far they are complete."""
        self._trim()
        (best,) = self.parts
        keys = best.pop("key")
        best["rank"] = numpy.arange(self.n, dtype=numpy.int32)
        exact_to = n_edges if self.n == n_edges else int((keys > keys[-1]).sum())
        order = numpy.lexsort([best[name] for name in ("source", "target", "head", "kind", "level")])
        return {name: values[order] for name, values in best.items()}, exact_to
