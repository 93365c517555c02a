"""How much rounding alone changes pruned runs, estimated in each measurement on its own traces.

A pruned run amplifies rounding more than the model's own run does. Two ways of running one trace
that differ by rounding alone can differ far more than the full trace differs from the model. So
some traces are run once more with every residual stream moved at random by one unit in the last
place, before each block (`Adapter.streams_moved`). Rounding moves streams by about as much anyway.
The total variation by which the prediction moves is the *noise* of that trace. On real models it is
within a factor of about three of the distance between the run and the same run in float64
(dev/LOG.md, 2026-11-29).

For each importance two traces are run again: the one at `size_at`, and the one nearest to 4 % of
the edges. One random subgraph is run again, too. Its noise is far larger than that of traces, and
does not count for the density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import polars
from torch import Tensor

from .._util.metrics import total_variation
from .columns import CURVE_TYPES

# Sizes of traces that are run again, besides `size_at`, and of the random subgraph.
SIZES = (0.04,)
RANDOM_SIZE = 0.1
_RUN = ("importance", "kind", "size", "n_edges")
# Columns of the table of repeated runs.
NOISE_TYPES = {**{name: CURVE_TYPES[name] for name in _RUN}, "noise": polars.Float64}
# Further column where a target was measured: how far its value moved.
TARGET_NOISE = "target_noise"

# importance, kind, size, trace
Row = tuple[str, str, float, Any]


def rows_to_repeat(rows: Sequence[Row], held_from: dict[str, list[float | None]]) -> list[int]:
    """Choose the runs that are repeated. Return their indices among the rows.

    Args:
        rows: all runs, including those of the bisection that placed `size_at`.
        held_from: for each importance, `size_at`; with a target, also that by faithfulness.
    """
    chosen = []
    for name, held in held_from.items():
        of_name = [
            i for i, (importance, kind, *_) in enumerate(rows) if (importance, kind) == (name, "trace")
        ]
        sizes = [*SIZES, *(1.0 if size is None else size for size in held)]
        chosen += [_nearest(rows, of_name, size) for size in sizes]
    drawn = [i for i, (_, kind, *_) in enumerate(rows) if kind == "random"]
    if drawn:
        chosen.append(_nearest(rows, drawn, RANDOM_SIZE))
    return sorted(set(chosen))


def _nearest(rows: Sequence[Row], among: Sequence[int], size: float) -> int:
    """Index, among these, of the row whose size is nearest."""
    return min(among, key=lambda i: abs(rows[i][2] - size))


def noise_table(
    rows: Sequence[Row],
    logits: Tensor,
    run: Callable[[Sequence[Any]], Tensor],
    value: Callable[[Tensor], Tensor] | None = None,
) -> polars.DataFrame:
    """Repeat K runs, and return a table of their noise.

    Args:
        rows: the runs.
        logits: (K, vocabulary), logits of the first runs.
        run: function that returns the logits of traces, run with every residual stream perturbed.
        value: computes a target's values (K,) from logits (K, vocabulary); None without a target.

    Returns:
        A row for each run: importance, kind, size, n_edges, and noise, a total variation. With a
        target also target_noise, how far its value moved.
    """
    again = run([row[3] for row in rows])
    gaps = [float(total_variation(one, moved[None])) for one, moved in zip(logits, again, strict=True)]
    columns = [[*row[:3], row[3].n_edges, gap] for row, gap in zip(rows, gaps, strict=True)]
    table = polars.DataFrame(columns, NOISE_TYPES, orient="row")
    if value is None:
        return table
    moves = (value(again).double() - value(logits).double()).abs()
    return table.with_columns(polars.Series(TARGET_NOISE, moves.tolist(), dtype=polars.Float64))


def noise_near(table: polars.DataFrame, name: str, size: float, least: float, column: str = "noise") -> float:
    """Noise of an importance at a size, that of the repeated trace nearest in log size.

    It is at least `least`. Small traces may be far noisier than those that hold the prediction, as
    in bfloat16, so the noise of all repeated traces would be too large.

    Args:
        table: from `noise_table`.
        name: the importance.
        column: "noise", or "target_noise".
    """
    traces = table.filter(
        (polars.col("importance") == name) & (polars.col("kind") == "trace") & (polars.col("size") > 0)
    )
    if traces.is_empty():
        return least
    nearest = min(traces.iter_rows(named=True), key=lambda row: abs(math.log(row["size"] / size)))
    return max(least, nearest[column])


def noise_of(table: polars.DataFrame, least: float, column: str = "noise") -> float:
    """Largest noise of all repeated traces, random subgraphs left out. At least `least`."""
    traces = table.filter(polars.col("kind") == "trace")[column]
    return max(least, float(traces.max())) if len(traces) else least  # type: ignore[arg-type]
