"""What small traces know: means, intervals and counts of correlations, by hand."""

from __future__ import annotations

import numpy
import polars
import pytest

from densitometer.analysis import unigram_knowledge


def tables(n, pieces=1):
    """Correlations of n texts: traces of 0.1 have 0.5 more than the model, those of 0.01 are blind in text 0."""
    rng = numpy.random.default_rng(4)
    curves, measurements = [], []
    for i in range(n):
        for piece in range(pieces):
            key = {"text_id": str(i), "piece": piece, "model": "m", "revision": None, "importance": "l1"}
            full = float(rng.uniform(-0.4, 0.4))
            measurements.append(
                key
                | {
                    "unigram_correlation": full,
                    "n_unigrams": 50 + i,
                    "n_edges": 1000,
                    "residual_chain": 0.006,
                }
            )
            rows = [  # kind, size, refined, correlation, TV
                ("trace", 0.001, False, 0.7, 0.9 + i / 100),  # fewer edges than levels
                ("trace", 0.005, False, 0.7, 0.7),  # these too
                ("trace", 0.01, False, 0.9, 0.7 if i == 0 else 0.8),  # in text 0 it predicts the same
                ("trace", 0.1, False, full + 0.5, 0.5),
                ("trace", 1.0, False, full, 0.0),
                ("trace", 0.3, True, None, 0.2),
                ("random", 0.1, False, 0.0, 0.6),
            ]
            for kind, size, refined, rho, tv in rows:
                told = {"kind": kind, "size": size, "refined": refined, "unigram_correlation": rho, "tv": tv}
                curves.append(key | told | {"entropy": 3.0, "n_edges": round(1000 * size)})
    types = {"revision": polars.String, "unigram_correlation": polars.Float64}
    return polars.DataFrame(curves, schema_overrides=types), polars.DataFrame(
        measurements, schema_overrides=types
    )


def test_means_stand_beside_the_models_own():
    curves, measurements = tables(11, pieces=2)
    found = unigram_knowledge(curves.sample(fraction=1, shuffle=True, seed=1), measurements)
    assert found["size"].to_list() == [0.001, 0.005, 0.01, 0.1, 1.0]
    blind, _, smallest, middle, whole = found.iter_rows(named=True)
    assert (blind["n"], blind["n_blind"], blind["rho"], blind["full"]) == (0, 22, None, None)
    own = measurements.group_by("text_id").agg(polars.col("unigram_correlation").mean())[
        "unigram_correlation"
    ]
    assert smallest["rho"] == pytest.approx(0.9)
    assert (smallest["n"], smallest["n_blind"]) == (10, 2)
    assert smallest["n_unigrams"] == 55.5
    assert smallest["full"] != pytest.approx(own.mean(), abs=1e-9)  # of the same pieces
    assert middle["full"] == pytest.approx(own.mean())
    assert middle["rho"] == pytest.approx(own.mean() + 0.5)
    assert (
        middle["difference"]
        == middle["difference_low"]
        == pytest.approx(middle["difference_high"])
        == pytest.approx(0.5)
    )
    assert middle["full_low"] < middle["full"] < middle["full_high"]
    assert middle["high"] - middle["low"] == pytest.approx(middle["full_high"] - middle["full_low"])
    width = 2 * 1.96 * own.std(ddof=0) / 11**0.5
    assert middle["high"] - middle["low"] == pytest.approx(width, rel=0.2)
    assert whole["difference"] == 0


def test_few_texts_have_no_interval_and_old_stores_no_rows():
    curves, measurements = tables(5)
    found = unigram_knowledge(curves, measurements)
    assert found["low"].null_count() == found["difference_high"].null_count() == 5
    assert found["rho"].null_count() == 2
    larger = unigram_knowledge(
        curves.filter(polars.col("size") > 0.005), measurements
    )  # none is blind by its size
    assert larger["n_blind"].to_list() == [0, 0, 0]
    nothing = polars.lit(None, dtype=polars.Float64)
    older = unigram_knowledge(
        curves.with_columns(unigram_correlation=nothing),
        measurements.with_columns(unigram_correlation=nothing),
    )
    assert older.is_empty()
