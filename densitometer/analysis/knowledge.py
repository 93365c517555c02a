"""Correlation of traces' predictions with unigram frequencies, compared with the full model's.

A trace is *blind* if no path through it leads from any token to the output. Its prediction comes
from biases alone, whatever the text. Every path has an edge into each level, so a trace with fewer
edges than levels is blind. A larger trace with the same prediction as one of these is blind too.
"""

from __future__ import annotations

import numpy
import polars

from .statistics import GROUP, PIECE, bootstrap, named
from .traces import traces_of

# Largest difference of TV or entropy between runs with the same prediction.
ROUNDING = 1e-6
_SCHEMA = {
    "model": polars.String, "importance": polars.String, "size": polars.Float64, "rho": polars.Float64,
    "low": polars.Float64, "high": polars.Float64, "full": polars.Float64, "full_low": polars.Float64,
    "full_high": polars.Float64, "difference": polars.Float64, "difference_low": polars.Float64,
    "difference_high": polars.Float64, "n": polars.Int64, "n_blind": polars.Int64, "n_unigrams": polars.Float64,
}  # fmt: skip


def unigram_knowledge(
    curves: polars.DataFrame, measurements: polars.DataFrame, seed: int = 0
) -> polars.DataFrame:
    """Correlate traces' predictions with unigram frequencies, by trace size.

    The correlations are those of `densitometer.study.unigrams`.

    Args:
        curves: `Study.curves()`. Traces at shared sizes count, without those that the bisection
            added.
        measurements: `Study.measurements()`, for the full models' correlations.
        seed: seed of the bootstraps.

    Returns:
        A row per model, importance and size. A text counts with the mean of its pieces. Intervals
        are from bootstraps over texts.

        rho, low, high: mean Spearman correlation of the traces.
        full, full_low, full_high: mean correlation of the full model, over the same pieces.
        difference, difference_low, difference_high: mean of rho less full, text by text.
        n: texts.
        n_blind: blind traces, which are left out.
        n_unigrams: median number of tokens over which the correlation is computed.
    """
    # residual_chain is the share of edges that one edge into each level makes
    n_levels = (polars.col("residual_chain") * polars.col("n_edges")).round()
    models = named(measurements).select(*PIECE, "n_unigrams", full="unigram_correlation", n_levels=n_levels)
    table = traces_of(curves).join(models, on=PIECE, how="inner").drop_nulls("full")
    table = _sighted(table).sort(*PIECE, "size")
    rows = []
    for key, group in table.group_by(*GROUP, "size", maintain_order=True):
        known = group.drop_nulls("unigram_correlation")
        texts = known.group_by("text_id", maintain_order=True).agg(
            polars.col("unigram_correlation", "full").mean()
        )
        trace, full = texts["unigram_correlation"].to_numpy(), texts["full"].to_numpy()
        row = dict(zip((*GROUP, "size"), key, strict=True)) | {
            "n": len(texts),
            "n_blind": len(group) - len(known),
            "n_unigrams": known["n_unigrams"].median(),
        }
        columns = (("", trace), ("full", full), ("difference", trace - full))
        for name, values in columns if len(texts) else ():
            low, high = bootstrap([values], numpy.mean, seed)
            prefix = f"{name}_" if name else ""
            row |= {name or "rho": float(values.mean()), f"{prefix}low": low, f"{prefix}high": high}
        rows.append(row)
    return polars.DataFrame(rows, schema=_SCHEMA)


def _sighted(table: polars.DataFrame) -> polars.DataFrame:
    """Replace the correlations of blind traces by null."""
    few = polars.col("n_edges") < polars.col("n_levels")
    key = [*PIECE, "size"]
    pairs = table.select(*key, "tv", "entropy").join(
        table.filter(few).select(*PIECE, blind_tv="tv", blind_entropy="entropy"), on=PIECE
    )
    same = [(polars.col(name) - polars.col(f"blind_{name}")).abs() < ROUNDING for name in ("tv", "entropy")]
    blind = pairs.filter(*same).select(key).unique().with_columns(blind=True)
    rho = polars.when(polars.col("blind").is_null()).then("unigram_correlation")
    return table.join(blind, on=key, how="left", maintain_order="left").with_columns(unigram_correlation=rho)
