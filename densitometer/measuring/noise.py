"""What rounding alone does to pruned runs, estimated in each measurement on its own traces.

A pruned run is worse conditioned than the model's own: two exact ways of running one trace can differ far more than the
full trace differs from the model. So some of the traces are run once more with every residual stream moved by one unit in
the last place, at random, before each block (`Adapter.streams_moved`), which is about what rounding does there anyway.
How far the prediction moves, in total variation, is the noise of that trace. On real models this follows the distance of
the run from the same run in float64 to within a factor of about three (dev/LOG.md, 2026-11-29).

Run again are, for each importance, the traces at `size_at` and that nearest to 4 % of the edges.
Random subgraphs are far noisier than traces, and show nothing of the density, so their noise is reported apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import polars
from torch import Tensor

from .._util.metrics import total_variation
from .columns import CURVE_TYPES

SIZES = (0.04,)  # sizes of traces that are run again, besides those that place `size_at`
RANDOM_SIZE = 0.1
_RUN = ("importance", "kind", "size", "n_edges")
NOISE_TYPES = {**{name: CURVE_TYPES[name] for name in _RUN}, "noise": polars.Float64}

Row = tuple[str, str, float, Any]  # importance, kind, size, trace


def rows_to_repeat(rows: Sequence[Row], held_from: dict[str, float | None]) -> list[int]:
    """Which runs are repeated, by their places among the rows.

    Args:
        rows: of all runs, those that place `size_at` too.
        held_from: `size_at` of each importance.
    """
    chosen = []
    for name, size_at in held_from.items():
        own = [i for i, (importance, kind, *_) in enumerate(rows) if (importance, kind) == (name, "trace")]
        chosen += [_nearest(rows, own, size) for size in (*SIZES, 1.0 if size_at is None else size_at)]
    drawn = [i for i, (_, kind, *_) in enumerate(rows) if kind == "random"]
    if drawn:
        chosen.append(_nearest(rows, drawn, RANDOM_SIZE))
    return sorted(set(chosen))


def _nearest(rows: Sequence[Row], among: Sequence[int], size: float) -> int:
    return min(among, key=lambda i: abs(rows[i][2] - size))


def noise_table(
    rows: Sequence[Row], logits: Tensor, run: Callable[[Sequence[Any]], Tensor]
) -> polars.DataFrame:
    """Repeat K runs, and return their noise.

    The table has a row for each run: importance, kind, size, n_edges, and noise, a total variation.

    Args:
        logits: (K, vocabulary), of the first time.
        run: logits of traces, with every residual stream moved.
    """
    again = run([row[3] for row in rows])
    gaps = [float(total_variation(one, moved[None])) for one, moved in zip(logits, again, strict=True)]
    columns = [[*row[:3], row[3].n_edges, gap] for row, gap in zip(rows, gaps, strict=True)]
    return polars.DataFrame(columns, NOISE_TYPES, orient="row")


def noise_near(table: polars.DataFrame, name: str, size: float, least: float) -> float:
    """Noise of an importance's trace that is nearest, in log size, to this one. At least `least`.

    Small traces may be chaotic where those that hold the prediction are not, as in bfloat16.
    """
    own = table.filter(
        (polars.col("importance") == name) & (polars.col("kind") == "trace") & (polars.col("size") > 0)
    )
    if own.is_empty():
        return least
    nearest = min(own.iter_rows(named=True), key=lambda row: abs(math.log(row["size"] / size)))
    return max(least, nearest["noise"])


def noise_of(table: polars.DataFrame, least: float) -> float:
    """Largest noise of a trace. At least `least`."""
    traces = table.filter(polars.col("kind") == "trace")["noise"]
    return max(least, float(traces.max())) if len(traces) else least  # type: ignore[arg-type]
