"""Pairs of values against scipy; translations and checkpoints of made-up studies with known differences."""

from __future__ import annotations

import numpy
import polars
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from densitometer.analysis import aligned_texts, training
from densitometer.analysis.pairs import paired
from densitometer.errors import InputError


def test_pairs_are_told_as_scipy_tells_them():
    rng = numpy.random.default_rng(0)
    one = rng.lognormal(size=23)
    other = one + rng.normal(0.3, 0.2, size=23)
    found = paired(one, other)
    assert found["rho"] == pytest.approx(stats.spearmanr(one, other).statistic)
    assert found["difference"] == pytest.approx(numpy.median(other - one))
    assert found["difference_p"] == pytest.approx(stats.wilcoxon(one, other).pvalue)
    assert found["median_one"] == pytest.approx(numpy.median(one))
    assert found["median_other"] == pytest.approx(numpy.median(other))
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert found["n"] == 23
    few = paired(one[:7], other[:7])
    assert few["difference"] is not None
    assert few["rho"] is few["difference_low"] is few["difference_p"] is None
    same = paired(one, one)
    assert same["difference"] == 0
    assert same["difference_p"] is None
    assert paired(one[:0], one[:0])["median_one"] is None


def rows(values, **columns):
    """A measurement per value; other columns are lists, or one for all."""
    n = len(values)
    own = {
        "piece": 0,
        "model": "m",
        "revision": None,
        "importance": "l1",
        "error": None,
        "text_id": [str(i) for i in range(n)],
    }
    own |= columns
    table = polars.DataFrame(
        own | {"size_at": values}, schema_overrides={"revision": polars.String, "error": polars.String}
    )
    return table.with_columns(piece=polars.col("piece").cast(polars.Int32))


def test_translations_are_matched_by_pair():
    rng = numpy.random.default_rng(3)
    english = rng.uniform(0.1, 0.5, 17)
    french = english + 0.1 + 0.01 * rng.normal(size=17)
    arabic = rng.uniform(0.1, 0.5, 9)
    pairs = [f"p{i:02d}" for i in range(17)]
    table = polars.concat(
        [
            rows(english, language="en", pair=pairs, text_id=[f"e{i}" for i in range(17)]),
            rows(french[::-1], language="fr", pair=pairs[::-1], text_id=[f"f{i}" for i in range(17)]),
            rows(arabic, language="ar", pair=pairs[:9], text_id=[f"a{i}" for i in range(9)]),
            rows([0.9, 0.9], language="fr", pair=[None, "alone"], text_id=["x", "y"]),
        ]
    )
    found = aligned_texts(table)
    assert found.select("one", "other", "n").rows() == [("ar", "en", 9), ("ar", "fr", 9), ("en", "fr", 17)]
    row = found.row(2, named=True)
    assert row["rho"] == pytest.approx(stats.spearmanr(english, french).statistic)
    assert row["difference"] == pytest.approx(numpy.median(french - english))
    assert row["difference_p"] == pytest.approx(stats.wilcoxon(french - english).pvalue)
    assert row["difference_p_holm"] == pytest.approx(3 * row["difference_p"])
    assert row["p_holm"] == pytest.approx(3 * row["p"])
    assert row["difference_low"] > 0.09
    assert found.row(0, named=True)["median_one"] == pytest.approx(numpy.median(arabic))


def test_pieces_and_texts_of_one_language_in_a_pair_count_by_their_mean():
    table = polars.concat(
        [
            rows([0.1, 0.3], language="en", pair="p", text_id=["1", "1"], piece=[0, 1]),
            rows([0.5], language="en", pair="p", text_id=["2"]),
            rows([0.6], language="fr", pair="p", text_id=["3"]),
        ]
    )
    row = aligned_texts(table).row(0, named=True)
    assert row["n"] == 1
    assert row["difference"] == pytest.approx(0.6 - 0.3)


def test_aligned_texts_need_pairs():
    with pytest.raises(InputError, match="column 'pair'"):
        aligned_texts(rows([0.1], language="en"))
    alone = aligned_texts(rows([0.1, 0.2], language="en", pair=["a", "b"]))
    assert alone.is_empty()
    assert {"p_holm", "difference_p_holm"} <= set(alone.columns)


def checkpoints():
    rng = numpy.random.default_rng(8)
    last = rng.uniform(0.1, 0.5, 12)
    return last, polars.concat(
        [
            rows(last, revision="step143000"),
            rows(last + 0.3, revision="step9"),
            rows(rng.uniform(0.4, 0.5, 12), revision="step512"),
            rows(last, revision="main"),
            rows(last, model="other", revision="step1"),
            rows(last, model="third"),
        ]
    )


def test_checkpoints_are_followed_in_the_order_of_their_steps():
    last, table = checkpoints()
    found = training(table.sample(fraction=1, shuffle=True, seed=2))
    assert found.checkpoints.select("model", "revision", "step", "n_texts").rows() == [
        ("m", "step9", 9, 12), ("m", "step512", 512, 12), ("m", "step143000", 143000, 12),
    ]  # fmt: skip
    assert found.checkpoints["median"][2] == pytest.approx(numpy.median(last))
    assert found.to_last.select("one", "step", "other", "n").rows() == [
        ("step9", 9, "step143000", 12), ("step512", 512, "step143000", 12),
    ]  # fmt: skip
    first = found.to_last.row(0, named=True)
    assert first["rho"] == pytest.approx(1)
    assert first["difference"] == pytest.approx(-0.3)
    corrected = multipletests(found.to_last["difference_p"].to_numpy(), method="holm")[1]
    assert found.to_last["difference_p_holm"].to_list() == pytest.approx(corrected.tolist())


def test_checkpoints_of_other_names_are_ordered_as_given():
    _, table = checkpoints()
    found = training(table, order=["main", "step9"])
    assert found.checkpoints.select("revision", "step").rows() == [("main", 0), ("step9", 1)]
    assert found.to_last["difference"].to_list() == pytest.approx([0.3])
    olmo = table.with_columns(revision=polars.col("revision").replace("step9", "stage1-step9-tokens4B"))
    assert training(olmo).checkpoints["step"].to_list() == [9, 512, 143000]
    assert training(table.filter(model="other")).to_last.is_empty()
    assert training(table.filter(model="third")).checkpoints.is_empty()
