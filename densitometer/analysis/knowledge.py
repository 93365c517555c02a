"""What small traces know: how far their predictions go with unigram frequencies, beside the model's own.

A trace is *blind* where no path leads through it from any token to the output: it predicts what biases give, whatever the text.
Every path has an edge into each level, so that a trace with fewer edges than levels is blind, and so is a larger one that
predicts the same as one of these.
"""

from __future__ import annotations

import numpy
import polars

from .statistics import GROUP, PIECE, bootstrap, named
from .traces import traces_of

ROUNDING = 1e-6  # of TV and entropy, between runs that predict the same
_SCHEMA = {
    "model": polars.String, "importance": polars.String, "size": polars.Float64, "rho": polars.Float64,
    "low": polars.Float64, "high": polars.Float64, "full": polars.Float64, "full_low": polars.Float64,
    "full_high": polars.Float64, "difference": polars.Float64, "difference_low": polars.Float64,
    "difference_high": polars.Float64, "n": polars.Int64, "n_blind": polars.Int64, "n_unigrams": polars.Float64,
}  # fmt: skip


def unigram_knowledge(
    curves: polars.DataFrame, measurements: polars.DataFrame, seed: int = 0
) -> polars.DataFrame:
    """The correlation of traces' predictions with unigram frequencies (`densitometer.study.unigrams`), by size.

    Args:
        curves: `Study.curves()`; its traces at the common sizes count, not the sizes that a search added.
        measurements: `Study.measurements()`, for the models' own correlations.

    Returns:
        model, importance, size, rho (mean over texts of the traces' Spearman correlation; a text is the mean of its pieces), low,
        high (texts are drawn), full, full_low, full_high (the model's own, of the same pieces), difference (of the two, in
        pairs), difference_low, difference_high, n (texts), n_blind (traces that are left out because they see nothing of their
        text), n_unigrams (median number of tokens that the correlation is over).
    """
    n_levels = (polars.col("residual_chain") * polars.col("n_edges")).round()
    own = named(measurements).select(*PIECE, "n_unigrams", full="unigram_correlation", n_levels=n_levels)
    table = traces_of(curves).join(own, on=PIECE, how="inner").drop_nulls("full")
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
    """Return the table with null in place of the correlations of blind traces."""
    few = polars.col("n_edges") < polars.col("n_levels")
    key = [*PIECE, "size"]
    pairs = table.select(*key, "tv", "entropy").join(
        table.filter(few).select(*PIECE, blind_tv="tv", blind_entropy="entropy"), on=PIECE
    )
    same = [(polars.col(name) - polars.col(f"blind_{name}")).abs() < ROUNDING for name in ("tv", "entropy")]
    blind = pairs.filter(*same).select(key).unique().with_columns(blind=True)
    rho = polars.when(polars.col("blind").is_null()).then("unigram_correlation")
    return table.join(blind, on=key, how="left", maintain_order="left").with_columns(unigram_correlation=rho)
