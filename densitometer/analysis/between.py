"""Sizes between the two traces that place `size_at`, for statistics that compare texts.

`size_at` is the size of a trace that was run. Many texts share the same few sizes, because the
bisection of a bracket has few steps, 5 % apart. So texts that need different sizes have equal
values, and a rank correlation loses information that the traces on both sides have. Here TV is
interpolated linearly in log size between these two traces, and the size with TV = eps is returned:

    log s = log b + (log a - log b) (TV_b - eps) / (TV_b - TV_a)

where a is the trace at `size_at` and b the largest trace below it (`size_below`). s is an estimate.
No trace of that size was run, and TV need not be linear between the two. On `demo` the estimate is
nearer to the true place than `size_at` is (dev/LOG.md, 2026-11-30). `size_at` itself remains the
size of a trace that was run and holds.
"""

from __future__ import annotations

import polars

from ..study.store import Study

_KEYS = ("model", "revision", "text_id", "piece", "importance")
_QUERY = """
select m.model, m.revision, m.text_id, m.piece, m.importance,
       max(c.tv) filter (c.size = m.size_at) as _tv_at, max(c.tv) filter (c.size = m.size_below) as _tv_below
from measurements m join curves c
  on c.text_id = m.text_id and c.piece = m.piece and c.model = m.model and c.importance = m.importance
     and c.revision is not distinct from m.revision
where c.kind = 'trace' and m.error is null and (c.size = m.size_at or c.size = m.size_below)
group by all
"""


def with_size_between(study: Study, measurements: polars.DataFrame) -> polars.DataFrame:
    """Add the column `size_between`, the size at which TV falls to eps between two traces.

    It equals `size_at` if no smaller trace was run, or if eps is not between the two traces' TV.

    Args:
        study: the study.
        measurements: `Study.measurements()`, or `describe(study)`.
    """
    eps = float(study.manifest["settings"]["eps"])
    found = study.sql(_QUERY).with_columns(
        polars.col("piece").cast(measurements.schema["piece"]),
        *(polars.col(name).cast(measurements.schema[name]) for name in _KEYS if name != "piece"),
    )
    table = measurements.join(found, on=_KEYS, how="left", nulls_equal=True, maintain_order="left")
    below, at = polars.col("size_below"), polars.col("size_at")
    share = (polars.col("_tv_below") - eps) / (polars.col("_tv_below") - polars.col("_tv_at"))
    line = (below.log() + share * (at.log() - below.log())).exp()
    inside = (below > 0) & (polars.col("_tv_below") > eps) & (polars.col("_tv_at") <= eps)
    between = polars.when(inside).then(line).otherwise(at)
    return table.with_columns(size_between=between).drop("_tv_at", "_tv_below")
