"""Findings from pairs: texts in two languages, and checkpoints of one model."""

from __future__ import annotations

from typing import Any

import polars

from ..._util.digits import percent, significant
from ...analysis import FEWEST, aligned_texts, training
from ..figures import Lines, draw_intervals, draw_lines
from .finding import PLACED, VALUE, Evidence, Finding, LeftOut, between, number, span


def across_languages(evidence: Evidence) -> Finding | LeftOut:
    """Finding on whether translations need as much, and whether their densities are correlated."""
    name = "The same text in two languages"
    if "pair" not in evidence.measured.columns:
        return LeftOut(name, "the corpus has no column pair that aligns texts")
    table = aligned_texts(evidence.placed, PLACED)
    enough = table.filter(polars.col("n") >= FEWEST)
    if enough.is_empty():
        return LeftOut(name, f"fewer than {FEWEST} pairs of texts in two languages were measured")
    details = [
        (
            f"{r['model']} by {r['importance']}, {r['other']} less {r['one']}",
            f"{_change(r)}; across pairs rho {_rho(r)}",
        )
        for r in enough.iter_rows(named=True)
    ]
    shown = enough.with_columns(languages=polars.format("{} less {}", "other", "one"))
    return Finding(
        name,
        "The share of edges needed differs within pairs of translations by a median of "
        f"{span(enough['difference'].to_list(), _points)}; {_tested(enough['difference_p_holm'])}.",
        draw_intervals(
            shown, "languages", "difference", "difference_low", "difference_high",
            "difference of the share of edges needed, 95 % interval of the median", zero=True,
        ),
        {"Languages in pairs": table},
        "A pair is a text and its translation. size_at is read between the two traces around it (size_between). "
        "The difference is the median over pairs, tested by Wilcoxon's signed-rank "
        "test. rho is Spearman's over pairs: whether contents that need much in one language need much in the other. Both "
        "are corrected over the rows (Holm). Tokenizers cut languages differently, so translations differ in length too.",
        "An interval that contains 0 would have refuted that languages differ; a rho whose interval contains 0, that contents "
        "matter.",
        details=tuple(details),
    )  # fmt: skip


def over_training(evidence: Evidence) -> Finding | LeftOut:
    """Finding on the density of a model's checkpoints over training."""
    name = "Over training"
    densities = training(evidence.measurements, VALUE)
    known = densities.checkpoints.filter(polars.col("n") > 0)
    if densities.to_last.is_empty() or known.is_empty():
        return LeftOut(name, "no model was measured at two revisions with stepN in their names")
    details, pairs = [], []
    for (model, importance), rows in known.group_by("model", "importance", maintain_order=True):
        first, last = rows.row(0, named=True), rows.row(-1, named=True)
        pair = densities.to_last.filter(model=model, importance=importance).row(0, named=True)
        pairs.append(pair)
        details.append(
            (
                f"{model} by {importance}",
                f"{percent(first['median'], 2)} at step {first['step']:,}, {percent(last['median'], 2)} at {last['step']:,}; "
                f"in pairs {_change(pair)}",
            )
        )
    return Finding(
        name,
        "From a model's first checkpoint to its last the share of edges needed changes by a median of "
        f"{span([pair['difference'] for pair in pairs], _points)} on the same texts.",
        draw_lines(
            known.with_columns(polars.col("low", "high").cast(polars.Float64)), "step", "training step",
            [Lines(f"share of edges needed (TV ≤ {evidence.eps:g}), median, 95 %", "median", "low", "high")],
        ),
        {"Checkpoints": densities.checkpoints, "Each checkpoint against the last, text by text": densities.to_last},
        "Differences are between the last checkpoint and an earlier one on the same texts (median, Wilcoxon's signed-rank "
        "test). rho is Spearman's over texts: whether the same texts needed much earlier. An early checkpoint's "
        "predictions are close to uniform and easy to hold, so compare its entropy.",
        "Intervals of the differences that contain 0 would have refuted that training changes what is needed.",
        details=tuple(details),
    )  # fmt: skip


def _change(row: dict[str, Any]) -> str:
    p = row["difference_p_holm"]
    tested = "not tested" if p is None else f"p {p:.2g}" if p >= 1e-4 else "p < 1e-4"
    interval = between(row["difference_low"], row["difference_high"], _points)
    return f"{_points(row['difference'])} ({interval}; {tested}, n = {row['n']})"


def _tested(p_values: polars.Series) -> str:
    """Clause on how many differences hold after correction."""
    n = len(p_values.drop_nulls())
    return f"{int((p_values.drop_nulls() < 0.05).sum())} of {n} hold after Holm's correction (p < 0.05)"


def _points(share: float) -> str:
    return f"{'+' * (share >= 0)}{significant(100 * share, 2)} points"


def _rho(row: dict[str, Any]) -> str:
    if row["rho"] is None:
        return "unknown"
    return f"{row['rho']:z.2f} ({between(row['low'], row['high'], number)})"
