"""What small traces know: means, intervals and counts of correlations, by hand."""

from __future__ import annotations

import numpy
import polars
import pytest

from densitometer.analysis import unigram_knowledge


def tables(n, pieces=1):
    """Correlations of n texts: traces of 0.1 have 0.5 more than the model, those of 0.01 predict uniformly in text 0."""
    rng = numpy.random.default_rng(4)
    curves, measurements = [], []
    for i in range(n):
        for piece in range(pieces):
            key = {"text_id": str(i), "piece": piece, "model": "m", "revision": None, "importance": "l1"}
            full = float(rng.uniform(-0.4, 0.4))
            measurements.append(key | {"unigram_correlation": full, "n_unigrams": 50 + i})
            for size, rho in ((0.01, None if i == 0 else 0.9), (0.1, full + 0.5), (1.0, full)):
                curves.append(
                    key | {"kind": "trace", "size": size, "refined": False, "unigram_correlation": rho}
                )
            curves.append(key | {"kind": "trace", "size": 0.3, "refined": True, "unigram_correlation": None})
            curves.append(key | {"kind": "random", "size": 0.1, "refined": False, "unigram_correlation": 0.0})
    types = {"revision": polars.String, "unigram_correlation": polars.Float64}
    return polars.DataFrame(curves, schema_overrides=types), polars.DataFrame(
        measurements, schema_overrides=types
    )


def test_means_stand_beside_the_models_own():
    curves, measurements = tables(11, pieces=2)
    found = unigram_knowledge(curves.sample(fraction=1, shuffle=True, seed=1), measurements)
    assert found["size"].to_list() == [0.01, 0.1, 1.0]
    smallest, middle, whole = found.iter_rows(named=True)
    own = measurements.group_by("text_id").agg(polars.col("unigram_correlation").mean())[
        "unigram_correlation"
    ]
    assert smallest["rho"] == pytest.approx(0.9)
    assert (smallest["n"], smallest["n_uniform"]) == (10, 2)
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
    assert found["low"].null_count() == found["difference_high"].null_count() == 3
    assert found["rho"].null_count() == 0
    nothing = polars.lit(None, dtype=polars.Float64)
    older = unigram_knowledge(
        curves.with_columns(unigram_correlation=nothing),
        measurements.with_columns(unigram_correlation=nothing),
    )
    assert older.is_empty()
