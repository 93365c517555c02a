"""The columns of a curve and their types, in order: the only list of them.

Tables, saved measurements, studies and pages take their columns from it. It does not import torch,
so that a study can be opened without.
"""

from __future__ import annotations

from typing import Any

import polars

# Columns of the built-in metrics, in the order in which `_util/metrics.py` registers them.
METRIC_TYPES: dict[str, Any] = {
    "tv": polars.Float64, "kl": polars.Float64, "js": polars.Float64, "top1": polars.Boolean, "nucleus": polars.Int64,
    "nucleus_unordered": polars.Int64, "entropy": polars.Float64,
}  # fmt: skip
CURVE_TYPES: dict[str, Any] = {
    "importance": polars.String, "kind": polars.String, "size": polars.Float64, "n_edges": polars.Int64, "threshold": polars.Float64,
    "flops_share": polars.Float64, "parameter_share": polars.Float64, **METRIC_TYPES, "top_token": polars.String, "top_probability": polars.Float64,
    "surprisal": polars.Float64, "rank": polars.Int64,
}  # fmt: skip
# Columns of a curve that was measured with a target: its value, and its faithfulness.
TARGET_TYPES: dict[str, Any] = {"target": polars.Float64, "faithfulness": polars.Float64}
# Columns of a curve whose traces are of components: how many of these are heads and MLPs.
COMPONENT_TYPES: dict[str, Any] = {"n_heads": polars.Int64, "n_mlps": polars.Int64}
MAY_BE_NULL = ("threshold", "surprisal", "rank")
