"""The tables of a measurement, and the densities of its curve.

A row stands for a trace that was run, with its prediction and its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars
from torch import Tensor

from .._util.metrics import compute_metrics, rank, surprisal
from ..graph.targets import Scale
from ..models.loading import Model
from .columns import COMPONENT_TYPES, CURVE_TYPES, TARGET_TYPES
from .density import Density, empty_sizes

# Tokens in the table of the model's prediction.
TOP_TOKENS = 10


def densities(curve: polars.DataFrame, refined: polars.DataFrame, n_edges: int | None) -> dict[str, Density]:
    """Return the density of each importance, over the share of edges.

    Args:
        curve: rows of the curve.
        refined: rows of further traces, which placed `size_at`.
        n_edges: edges of the graph, which place the empty trace (`density.empty_sizes`). None
            leaves the empty trace out, as older versions did.
    """
    by_importance = {}
    for name in curve["importance"].unique(maintain_order=True):
        traces = curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
        traces = traces.sort("size", maintain_order=True)
        none, some = traces.filter(polars.col("size") == 0), traces.filter(polars.col("size") > 0)
        extra = refined.filter((polars.col("importance") == name) & (polars.col("size") > 0))
        sizes = some["size"].to_list()
        empty: tuple[float, ...] = ()
        if n_edges is not None and len(none):  # only a threshold gives a trace of size 0
            empty = empty_sizes(n_edges)
        gaps: dict[str, Any] = {}
        for column in ("tv", "faithfulness"):
            if column in curve.columns:
                first = [none[column][0]] * len(empty) if empty else []
                refined_column = tuple(extra[column]) if column in extra.columns else ()
                gaps |= {column: (*first, *some[column]), f"refined_{column}": refined_column}
        by_importance[name] = Density((*empty, *sizes), refined_sizes=tuple(extra["size"]), **gaps)
    return by_importance


def table_of(
    model: Model,
    rows: Sequence[tuple[str, str, float, Any]],
    full: Tensor,
    logits: Tensor,
    next_token: int | None,
    scale: Scale | None = None,
    of_components: bool = False,
) -> polars.DataFrame:
    """Return a table with a row for each of K traces that were run (columns: `CURVE_TYPES`).

    With a target it also has the columns of `TARGET_TYPES`; for traces of components, those of
    `COMPONENT_TYPES`.

    Args:
        rows: importance, kind, size and trace of each run.
        full: (vocabulary,), logits of the model.
        logits: (K, vocabulary), logits of the traces.
        next_token: id of the token that comes next in the text, or None at its end.
        scale: scale of the target's values; None without a target.
        of_components: whether traces are sets of whole heads and MLPs.
    """
    metrics = {name: values.tolist() for name, values in compute_metrics(full, logits).items()}
    top = logits.softmax(-1).max(-1)
    nothing = [None] * len(rows)
    traces = [row[3] for row in rows]
    # runs are of one forward pass
    flops, parameters = traces[0].graph.shares_of(traces) if traces else ([], [])
    columns: dict[str, Any] = {
        "importance": [row[0] for row in rows],
        "kind": [row[1] for row in rows],
        "size": [row[2] for row in rows],
        "n_edges": [row[3].n_edges for row in rows],
        "threshold": [row[3].graph.reached_by(row[3]) if row[1] == "trace" else None for row in rows],
        "flops_share": flops,
        "parameter_share": parameters,
        **metrics,
        "top_token": model.pieces(top.indices.tolist()),
        "top_probability": top.values.tolist(),
        "surprisal": nothing if next_token is None else surprisal(logits, next_token).tolist(),
        "rank": nothing if next_token is None else rank(logits, next_token).tolist(),
    }
    if scale is not None:
        values = scale.score.value(logits)
        columns |= {"target": values.tolist(), "faithfulness": scale.faithfulness(values).tolist()}
    if of_components:
        columns |= {name: [getattr(trace, name) for trace in traces] for name in COMPONENT_TYPES}
    types = CURVE_TYPES | (TARGET_TYPES if scale else {}) | (COMPONENT_TYPES if of_components else {})
    return polars.DataFrame(columns, schema_overrides=types)


def curve_of(table: polars.DataFrame, names: Sequence[str]) -> polars.DataFrame:
    """Return the rows of the curves of some importances.

    The random baseline is run once, under the name "random", and its rows are repeated for each
    importance. For traces of components, each importance has its own random baseline.
    """
    random = table.filter(polars.col("kind") == "random")
    others = table.filter(polars.col("kind") != "random")
    parts = []
    for name in names:
        own = random.filter(polars.col("importance") == name)
        shared = random.filter(polars.col("importance") == "random")
        parts += [
            others.filter(polars.col("importance") == name),
            (own if len(own) else shared).with_columns(importance=polars.lit(name)),
        ]
    return polars.concat(parts)


def prediction_of(model: Model, full: Tensor) -> polars.DataFrame:
    """Return the most probable next tokens by logits (vocabulary,), a row each.

    Columns: rank (from 1), token, id, probability.
    """
    top = full.softmax(-1).topk(min(TOP_TOKENS, full.shape[-1]))
    ids = top.indices.tolist()
    return polars.DataFrame(
        {
            "rank": range(1, len(ids) + 1),
            "token": model.pieces(ids),
            "id": ids,
            "probability": top.values.tolist(),
        }
    )
