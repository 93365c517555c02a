"""Where the edges of a graph and their importances come from: tiles of the targets of a level.

A *tile* holds the edges into a few targets, of all kinds and heads. Two sources yield them:

    stored    one tile per level, kept in memory (`StoredEdges`)
    tiled     many tiles of a long input, computed whenever they are needed (`tiled/tiles.py`)

Bottleneck keys, thresholds, landmarks, subgraphs that need no importance, costs, masked runs and
the counts that the explorer shows are written once, for any source. What only stored edges allow,
such as a place for every edge in the best-first order, raises an error for a long input that names
it (`edge_graph.py`).

Axes: T tokens, F flat edge axis, H query heads, M units of an MLP, t targets and s sources of a
tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy
import torch
from torch import Tensor

from ..models.blocks import Tile
from .forward_pass import EdgeSpace, PerLevel


class EdgeSource(Protocol):
    """Edges of one forward pass with their importances, tile by tile."""

    @property
    def space(self) -> EdgeSpace: ...

    def tiles(self, level: int) -> Sequence[Tile]:
        """Tiles of a level. Together they have every target once, in order."""

    def importance(self, level: int, tile: Tile) -> PerLevel:
        """Importances of a tile's edges. They are the same numbers whenever they are computed.

        Returns:
            residual (t,), attention (H, t, s) or None, mlp (M, t) or None, float32.
        """

    def existing(self, level: int, tile: Tile) -> PerLevel | None:
        """Which edges of a tile exist, bool.

        Returns:
            residual (t,), attention (t, s) or None, mlp (M, t) or None. None instead of all three
            if the source marks places without an edge by the importance minus infinity.
        """


class StoredEdges:
    """`EdgeSource` that keeps all importances in memory, with one tile for each level.

    Args:
        space: the edge space.
        importance: (F,) float.
        reachable: (F,) bool, the edges that can reach the output.
    """

    def __init__(self, space: EdgeSpace, importance: numpy.ndarray, reachable: numpy.ndarray) -> None:
        self.space = space
        values = numpy.where(reachable, importance, -numpy.inf).astype(numpy.float32)
        self._levels = space.views(torch.from_numpy(values))

    def tiles(self, level: int) -> Sequence[Tile]:
        everything = slice(0, self.space.n_tokens)
        return (Tile(everything, everything),)

    def importance(self, level: int, tile: Tile) -> PerLevel:
        return self._levels[level]

    def existing(self, level: int, tile: Tile) -> None:
        return None


def per_target(values: Tensor, edges: Tensor) -> Tensor:
    """Reshape values (t,) so that they go with a tile's edges (t,), (H, t, s) or (M, t)."""
    return values[:, None] if edges.dim() == 3 else values
