"""Statistics of a study against tables whose answer is known, formulas written out, and a second way."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy
import polars
import pytest
import scipy.stats

from densitometer import analysis
from densitometer.analysis import statistics
from densitometer.analysis.statistics import correlate
from densitometer.errors import InputError


def rows(n_texts=30, models=("a", "b"), pieces=1, seed=0):
    """Measurements in which size_at = 0.1 + 0.02 entropy (+ 0.3 under "b") + a little noise."""
    rng = numpy.random.default_rng(seed)
    found = []
    for i in range(n_texts):
        for piece in range(pieces):
            entropy = rng.uniform(0, 8)
            for model in models:
                size = 0.1 + 0.02 * entropy + 0.3 * (model == "b") + 0.005 * rng.normal()
                found.append(
                    {
                        "text_id": f"t{i:03d}",
                        "piece": piece,
                        "model": model,
                        "revision": None,
                        "importance": "l1",
                        "size_at": size,
                        "auc_log": size / 2,
                        "entropy": entropy,
                        "surprisal": rng.uniform(0, 9),
                        "n_tokens": int(rng.integers(5, 40)),
                        "top_id": int(rng.integers(0, 7)),
                        "next_id": int(rng.integers(0, 7)),
                        "ids": [int(x) for x in rng.integers(0, 7, 11)],
                        "language": ("en", "fr")[i % 2],
                        "domain": ("law", "sea", "sky")[i % 3],
                        "error": None,
                    }
                )
    return polars.DataFrame(found, schema_overrides={"revision": polars.String, "error": polars.String})


def test_distribution_of_a_table_by_hand():
    table = polars.DataFrame(
        {
            "text_id": [f"{i}" for i in range(7)],
            "piece": [0] * 7,
            "model": ["m"] * 7,
            "revision": [None] * 6 + ["r"],
            "importance": ["l1"] * 7,
            "language": ["en"] * 7,
            "domain": [None] * 7,
            "size_at": [0.1, 0.2, 0.4, 0.8, None, None, 0.5],
            "auc_log": [0.1, 0.2, 0.3, 0.4, 0.5, None, 0.5],
            "error": [None, None, None, None, None, "no memory", None],
        }
    )
    found = analysis.distribution(table)
    first = found.filter(model="m", value="size_at").row(0, named=True)
    assert first["median"] == pytest.approx(0.3)
    assert first["lower_quartile"] == pytest.approx(0.175)
    assert first["upper_quartile"] == pytest.approx(0.5)
    assert (first["n"], first["n_texts"], first["n_never"], first["n_failed"]) == (4, 4, 1, 1)
    assert first["low"] is None  # too few texts for an interval
    assert found.filter(model="m", value="auc_log")["n"].item() == 5
    assert found.filter(model="m@r", value="size_at")["median"].item() == 0.5
    only_failed = analysis.distribution(table.filter(polars.col("error").is_not_null()), ["model"])
    assert only_failed["median"].to_list() == [None, None]
    with pytest.raises(InputError, match="not a column of numbers"):
        analysis.distribution(table, values=["domain"])
    with pytest.raises(InputError, match="no column 'genre'"):
        analysis.distribution(table, by=["genre"])


def test_bootstrap_of_a_median_draws_texts_with_their_pieces():
    one = analysis.distribution(rows(25, ("a",)), ["model"], ["size_at"]).row(0, named=True)
    x = rows(25, ("a",))["size_at"].to_numpy()
    drawn = numpy.median(numpy.random.default_rng(9).choice(x, (4000, 25)), axis=1)
    assert [one["low"], one["high"]] == pytest.approx(numpy.percentile(drawn, [2.5, 97.5]), abs=0.01)
    # The same numbers as 25 texts and as 25 texts told four times over: the interval must not shrink.
    four = polars.concat([rows(25, ("a",)).with_columns(piece=polars.lit(i, polars.Int64)) for i in range(4)])
    told = analysis.distribution(four, ["model"], ["size_at"]).row(0, named=True)
    assert (told["n"], told["n_texts"]) == (100, 25)
    assert told["high"] - told["low"] == pytest.approx(one["high"] - one["low"], rel=0.25)


def test_correlation_is_that_of_shared_texts():
    table = rows(30, ("a", "b", "c"))
    table = table.filter(~((polars.col("model") == "c") & (polars.col("text_id") < "t011")))
    table = table.with_columns(
        error=polars.when((polars.col("model") == "b") & (polars.col("text_id") == "t005")).then(polars.lit("x")),
        size_at=polars.when((polars.col("model") == "a") & (polars.col("text_id") == "t006")).then(None).otherwise("size_at"),
    )  # fmt: skip
    found = analysis.correlation_across_models(table, "size_at")
    pairs = {(r["one"], r["other"]): r for r in found.pairs.iter_rows(named=True)}
    assert {key: r["n"] for key, r in pairs.items()} == {("a", "b"): 28, ("a", "c"): 19, ("b", "c"): 19}
    values = {
        m: dict(
            table.filter(polars.col("error").is_null(), model=m)
            .select("text_id", "size_at")
            .drop_nulls()
            .iter_rows()
        )
        for m in "abc"
    }
    for (one, other), row in pairs.items():
        shared = sorted(set(values[one]) & set(values[other]))
        x, y = ([values[m][t] for t in shared] for m in (one, other))
        ranks = [numpy.argsort(numpy.argsort(v)) for v in (x, y)]
        d = ranks[0] - ranks[1]
        n = len(x)
        assert row["rho"] == pytest.approx(1 - 6 * (d**2).sum() / (n * (n**2 - 1)))
        assert row["low"] < row["rho"] < row["high"]
    p = sorted(r["p"] for r in pairs.values())
    holm = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert sorted(r["p_holm"] for r in pairs.values()) == pytest.approx(holm)
    assert (
        pytest.approx(found.matrix.select("a", "b", "c").to_numpy())
        == found.matrix.select("a", "b", "c").to_numpy().T
    )
    assert found.matrix.filter(model="b")["c"].item() == pairs["b", "c"]["rho"]
    linear = analysis.correlation_across_models(
        table.filter(polars.col("model") != "c"), "size_at", "pearson"
    ).pairs
    x, y = (numpy.array([values[m][t] for t in sorted(set(values["a"]) & set(values["b"]))]) for m in "ab")
    assert linear["rho"].item() == pytest.approx(numpy.corrcoef(x, y)[0, 1])
    with pytest.raises(InputError, match="unknown method"):
        analysis.correlation_across_models(table, method="kendall")


def test_pieces_of_a_text_count_once():
    table = rows(12, pieces=5)
    row = analysis.correlation_across_models(table, "size_at").pairs.row(0, named=True)
    means = table.group_by("model", "text_id").agg(polars.col("size_at").mean()).sort("model", "text_id")
    x, y = (means.filter(model=m)["size_at"].to_numpy() for m in "ab")
    assert row["n"] == 12
    assert row["rho"] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_frequencies_are_counted_in_the_other_texts():
    table = polars.DataFrame(
        {
            "text_id": ["x", "x", "y", "z"], "piece": [0, 1, 0, 0], "model": ["m"] * 4, "revision": [None] * 4,
            "ids": [[1, 2], [1, 2, 2], [2, 3], [5, 5, 5, 3]], "top_id": [2, 3, 5, 9], "next_id": [None, 2, 3, 5],
            "error": [None] * 4,
        },
        schema_overrides={"revision": polars.String, "error": polars.String},
    )  # fmt: skip
    found = analysis.with_frequencies(table)
    # Of x its longest piece counts, [1, 2, 2]: 9 tokens in all, 6 beside x, 7 beside y, 5 beside z.
    expected = [(1 + 1) / 7, (2 + 1) / 7, (3 + 1) / 8, 1 / 6]
    assert found["predicted_log_frequency"].to_list() == pytest.approx(numpy.log10(expected))
    assert found["actual_log_frequency"][0] is None
    assert found["actual_log_frequency"][1:].to_list() == pytest.approx(numpy.log10([2 / 7, 2 / 8, 1 / 6]))
    assert found.drop("predicted_log_frequency", "actual_log_frequency").equals(table)


def test_factors_find_what_made_the_numbers():
    table = rows(40)
    found = analysis.factors(table)
    own = found.univariate.filter(factor="entropy", model="a").row(0, named=True)
    values = table.filter(model="a")
    assert own["rho"] == pytest.approx(scipy.stats.spearmanr(values["entropy"], values["size_at"]).statistic)
    assert own["p_holm"] < 1e-6
    assert set(found.univariate.filter(polars.col("p_holm") < 0.05)["factor"]) == {"entropy"}
    terms = {r["term"]: r for r in found.regression.iter_rows(named=True)}
    assert terms["model b"]["low"] < 0.3 < terms["model b"]["high"]
    assert terms["entropy"]["coefficient"] == pytest.approx(0.02 * table["entropy"].std(), rel=0.05)
    assert terms["language fr"]["low"] < 0 < terms["language fr"]["high"]
    assert {r["errors"] for r in terms.values()} == {"by text"}


def test_errors_are_hc3_where_each_text_has_one_row():
    table = rows(40, ("a",))
    found = analysis.factors(table, names=("entropy",)).regression
    assert set(found["errors"]) == {"HC3"}
    z = table["entropy"].to_numpy()
    # of the language and the domain, the most frequent level (of equals, the first) is what the others are told from
    effects = [table["language"] == "fr", table["domain"] == "sea", table["domain"] == "sky"]
    assert found["term"].to_list() == ["language fr", "domain sea", "domain sky", "entropy"]
    design = numpy.column_stack([numpy.ones(40), *effects, (z - z.mean()) / z.std(ddof=1)]).astype(float)
    inverse = numpy.linalg.inv(design.T @ design)
    y = table["size_at"].to_numpy()
    beta = inverse @ design.T @ y
    leverage = numpy.einsum("ij,jk,ik->i", design, inverse, design)
    meat = design.T @ (design * ((y - design @ beta) / (1 - leverage))[:, None] ** 2)
    error = numpy.sqrt(numpy.diag(inverse @ meat @ inverse))
    half = scipy.stats.t.ppf(0.975, 40 - 5) * error
    assert found["coefficient"].to_list() == pytest.approx(beta[1:])
    assert found["low"].to_list() == pytest.approx((beta - half)[1:])


def test_factors_that_cannot_be_told_are_left_out():
    table = rows(30).with_columns(surprisal=polars.lit(None, polars.Float64), n_tokens=polars.lit(9))
    found = analysis.factors(table)
    absent = found.univariate.filter(polars.col("factor").is_in(["surprisal", "n_tokens"]))
    assert absent.is_empty()
    assert not {"surprisal", "n_tokens"} & set(found.regression["term"])
    assert "entropy" in found.regression["term"]
    twice = analysis.factors(
        rows(30).with_columns(twice=2 * polars.col("entropy")), names=("entropy", "twice")
    )
    assert "entropy" in twice.regression["term"]
    assert "twice" not in twice.regression["term"]
    assert twice.left_out.rows() == [
        ("l1", "groups", "twice", "those before it determine it"),
        *(
            ("l1", "texts", term, "it does not vary within texts")
            for term in ("language fr", "domain sea", "domain sky", "entropy", "twice")
        ),
    ]
    few = analysis.factors(rows(5))
    assert few.univariate["rho"].null_count() == len(few.univariate) > 0
    assert few.regression.is_empty()
    assert set(few.left_out["why"]) >= {"too few texts"}


def test_levels_of_a_class_are_told_against_all_others():
    table = rows(50, ("a",), seed=3)
    levels = ["word start"] * 17 + ["digit"] * 15 + ["punctuation"] * 14 + ["rare"] * 4
    kinds = numpy.random.default_rng(6).permutation(levels)
    table = table.with_columns(
        predicted_class=polars.Series(kinds), null_class=polars.Series(kinds).shuffle(0)
    )
    raised = polars.col("size_at") + 0.4 * (polars.col("predicted_class") == "digit")
    found = analysis.factors(
        table.with_columns(size_at=raised), names=("predicted_class", "null_class", "entropy")
    )
    own = {(r["factor"], r["level"]): r for r in found.univariate.iter_rows(named=True)}
    assert {level for factor, level in own if factor == "predicted_class"} == {
        "word start",
        "digit",
        "punctuation",
    }
    digit = own["predicted_class", "digit"]
    y = table.select(raised.alias("y"))["y"].to_numpy()
    is_digit = kinds == "digit"
    assert digit["rho"] == pytest.approx(scipy.stats.spearmanr(is_digit, y).statistic)
    # the rank-biserial correlation of Mann and Whitney, on the scale of Spearman's
    u = scipy.stats.mannwhitneyu(y[is_digit], y[~is_digit]).statistic
    n, k = len(y), is_digit.sum()
    assert digit["rho"] == pytest.approx(
        (2 * u / (k * (n - k)) - 1) * numpy.sqrt(3 * k * (n - k) / (n**2 - 1))
    )
    assert digit["low"] > 0.3
    assert digit["p_holm"] < 1e-4
    shown = found.univariate.filter(polars.col("p_holm") < 0.05)["factor"].unique().to_list()
    assert "null_class" not in shown
    terms = {r["term"]: r for r in found.regression.iter_rows(named=True)}
    assert "predicted_class word start" not in terms  # the most frequent: what the others are told from
    assert terms["predicted_class digit"]["low"] < 0.4 < terms["predicted_class digit"]["high"]
    assert terms["predicted_class digit"]["coefficient"] == pytest.approx(0.4, abs=0.02)


def swept(n_texts=16, sizes=(8, 16, 32), seed=0):
    """The same texts after more and more context, which makes size_at fall; between texts it says nothing."""
    table = rows(n_texts, ("a",), pieces=len(sizes), seed=seed)
    rng = numpy.random.default_rng(seed)
    level = numpy.repeat(rng.uniform(0, 1, n_texts), len(sizes))
    tokens = numpy.tile(sizes, n_texts)
    return table.with_columns(
        n_tokens=polars.Series(tokens), size_at=polars.Series(level - 0.004 * tokens + 0.02 * rng.normal(size=len(tokens)))
    )  # fmt: skip


def test_context_is_told_within_texts():
    table = swept()
    found = analysis.factors(table, names=("n_tokens", "entropy"))
    own = {(r["factor"], r["units"]): r for r in found.univariate.iter_rows(named=True)}
    within = own["n_tokens", "pieces"]
    rhos = [
        scipy.stats.spearmanr(text["n_tokens"], text["size_at"]).statistic
        for text in table.partition_by("text_id", maintain_order=True)
    ]
    assert within["rho"] == pytest.approx(numpy.mean(rhos))
    assert within["p"] == pytest.approx(scipy.stats.wilcoxon(rhos).pvalue)
    assert (within["n"], within["rho"] < -0.8) == (16, True)
    assert within["low"] <= within["rho"] <= within["high"] < -0.6
    assert own["n_tokens", "texts"]["rho"] is None  # the mean of a text's pieces is the same in all
    assert own["entropy", "pieces"]["p_holm"] > 0.05


def test_effects_of_texts_are_those_of_dummies():
    table = swept()
    found = analysis.factors(table, names=("n_tokens", "entropy")).regression.filter(effects="texts")
    dummies = table["text_id"].to_dummies().to_numpy()
    z = [(table[c] - table[c].mean()) / table[c].std() for c in ("n_tokens", "entropy")]
    beta = numpy.linalg.lstsq(numpy.column_stack([*z, dummies]), table["size_at"].to_numpy(), rcond=None)[0]
    assert dict(found.select("term", "coefficient").iter_rows()) == pytest.approx(
        {"n_tokens": beta[0], "entropy": beta[1]}
    )
    row = found.filter(term="n_tokens").row(0, named=True)
    assert (row["errors"], row["n"], row["n_texts"]) == ("by text", 48, 16)
    assert row["low"] < -0.004 * table["n_tokens"].std() < row["high"]
    assert found.filter(term="entropy")["p"].item() > 0.01


def test_what_is_in_no_regression_is_named_with_its_reason():
    table = rows(40, ("a",)).with_columns(
        alike=polars.col("entropy") + 0.01 * polars.col("surprisal"),
        scarce=polars.when(polars.col("text_id") < "t028").then("surprisal"),
        known=polars.when(polars.col("text_id") < "t033").then("surprisal"),
    )
    found = analysis.factors(table, names=("entropy", "alike", "scarce", "known"))
    assert {(r["term"], r["why"]) for r in found.left_out.iter_rows(named=True)} == {
        ("alike", "those before it determine it"), ("scarce", "known of too few rows"),
    }  # fmt: skip
    assert set(found.regression["n"]) == {33}
    few = analysis.factors(table.head(10), names=("entropy", "surprisal"))
    assert few.left_out.filter(why="too few texts")["term"].to_list() == ["entropy", "surprisal"]
    assert few.regression.is_empty()


def test_intervals_of_many_units_are_those_of_a_bootstrap(monkeypatch):
    rng = numpy.random.default_rng(1)
    x = rng.exponential(size=900)
    y = x**2 + 6 * rng.normal(size=900)
    for method in ("spearman", "pearson"):
        parts = statistics.correlate(x, y, method, 0)
        with monkeypatch.context() as context:
            context.setattr(statistics, "LARGE", 10**6)
            drawn = statistics.correlate(x, y, method, 0)
        assert parts["rho"] == drawn["rho"]
        assert parts["high"] - parts["low"] == pytest.approx(drawn["high"] - drawn["low"], rel=0.4)
        assert abs(parts["low"] - drawn["low"]) < 0.03
    # Of 200 draws without correlation the interval holds 0 in 95 %: 190 with a deviation of 3.
    held = 0
    for i in range(200):
        x, y = numpy.random.default_rng(100 + i).normal(size=(2, 501))
        found = statistics.correlate(x, y, "spearman", i)
        held += found["low"] < 0 < found["high"]
    assert 181 <= held <= 199


def test_a_rare_level_has_an_interval():
    y = numpy.random.default_rng(0).normal(size=120)
    found = statistics.correlate((numpy.arange(120) < 3).astype(float), y, "spearman", 0)
    assert found["low"] < found["rho"] < found["high"]


def test_component_shares_by_hand():
    def one(text, size, counts):
        kinds = [("attention", 0, 0, 8), ("attention", 1, 0, 4), ("mlp", 0, None, 2), ("mlp", 1, None, 1)]
        return [
            {"text_id": text, "piece": 0, "model": "m", "revision": None, "importance": "l1", "size": size, "kind": kind,
             "layer": layer, "head": head, "n_edges": n, "total": total}
            for (kind, layer, head, total), n in zip(kinds, counts, strict=True)
        ]  # fmt: skip

    table = polars.DataFrame(
        [
            *one("x", 0.5, [4, 0, 2, 1]),
            *one("y", 0.5, [2, 1, 0, 1]),
            *one("x", 0.01, [0] * 4),
            *one("y", 0.01, [0] * 4),
            *one("z", 0.5, [8, 4, 2, 1]),
            *one("z", 0.37, [1, 0, 0, 0]),
        ],
        schema_overrides={"revision": polars.String, "head": polars.Int32},
    )
    found = analysis.component_shares(table)
    assert set(found.kinds["size"]) == {0.5}  # 0.37 is one search's; at 0.01 there is no edge
    attention = found.kinds.filter(kind="attention").row(0, named=True)
    assert attention["share_kept"] == pytest.approx((4 / 12 + 3 / 12 + 1) / 3)
    assert attention["share_of_trace"] == pytest.approx((4 / 7 + 3 / 4 + 12 / 15) / 3)
    assert attention["n"] == 3
    depth = {r["quarter"]: r for r in found.depth.iter_rows(named=True)}
    assert depth[1]["share_kept"] == pytest.approx((6 / 10 + 2 / 10 + 1) / 3)
    assert depth[3]["share_of_trace"] == pytest.approx((1 / 7 + 2 / 4 + 5 / 15) / 3)
    often = {(r["kind"], r["layer"]): r["share_of_traces"] for r in found.often.iter_rows(named=True)}
    assert often == {("attention", 0): 1, ("attention", 1): 2 / 3, ("mlp", 0): 2 / 3, ("mlp", 1): 1}
    assert found.core.row(0, named=True) | {"model": 0} == {
        "model": 0, "importance": "l1", "size": 0.5, "n_static": 2, "n_components": 4, "n": 3,
    }  # fmt: skip

    def gini(use):  # mean absolute difference over twice the mean
        use = numpy.array(use)
        return numpy.abs(use[:, None] - use[None]).mean() / (2 * use.mean())

    expected = numpy.mean([gini([4 / 8, 0, 1, 1]), gini([2 / 8, 1 / 4, 0, 1]), gini([1, 1, 1, 1])])
    assert found.gini["gini"].item() == pytest.approx(expected)
    # Uses from the least on: 0, 1/2, 1, 1 of x; 0, 1/4, 1/4, 1 of y; 1, 1, 1, 1 of z.
    curves = [numpy.cumsum(use) / sum(use) for use in ([0, 0.5, 1, 1], [0, 0.25, 0.25, 1], [1, 1, 1, 1])]
    assert found.lorenz["use"].to_list() == pytest.approx(numpy.mean(curves, axis=0).tolist())
    assert found.lorenz["components"].to_list() == [0.25, 0.5, 0.75, 1]


def test_resources_by_hand():
    n = 4
    table = polars.DataFrame(
        {
            "text_id": [str(i) for i in range(n)] * 2 + ["0"], "piece": 0, "model": "m", "importance": "l1",
            "kind": ["trace"] * (2 * n) + ["random"], "refined": False, "size": [0.1] * n + [1.0] * n + [0.1],
            "flops_share": [0.2, 0.3, 0.3, 0.8] + [1.0] * n + [0.0], "tv": [0.4, 0.1, 0.2, 0.5] + [0.0] * n + [1.0],
            "top1": [True, True, True, False] + [True] * n + [False], "rank": [1, 1, 3, None, 1, 2, 3, None, 1],
            "surprisal": [2.0, 3.0, 4.0, None, 1.0, 1.5, 4.5, None, 9.0],
            "top_probabilities": [[0.5, 0.1], [0.2, 0.2], [0.9, 0.1], [0.9, 0.1]] + [[0.9, 0.1]] * (n + 1),
        }
    ).with_columns(revision=polars.lit(None, polars.String))  # fmt: skip
    found = analysis.resources(table)
    row = found.filter(size=0.1).row(0, named=True)
    assert row["flops_share"] == pytest.approx(0.3)
    assert row["top1"] == 0.75
    z, p = scipy.stats.norm.ppf(0.975), 0.75
    centre, half = (p + z**2 / (2 * n)), z * numpy.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert [row["top1_low"], row["top1_high"]] == pytest.approx(
        [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)]
    )
    assert row["accuracy"] == pytest.approx(1 / 3)  # the second ties with another token, so it is no answer
    assert row["excess_surprisal"] == pytest.approx((1 + 1.5 - 0.5) / 3)
    assert (row["n"], row["n_next"]) == (4, 3)
    quartiles = analysis.curve_quartiles(table).filter(size=0.1).row(0, named=True)
    assert quartiles["median"] == pytest.approx(0.3)
    assert quartiles["lower_quartile"] == pytest.approx(0.175)


def test_without_the_extra_it_is_named():
    code = (
        "import sys; sys.modules['scipy.stats'] = sys.modules['scipy'] = None\n"
        "from densitometer.analysis.statistics import package; package('scipy.stats')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the analysis needs scipy" in result.stderr
    assert "densitometer[analysis]" in result.stderr


def test_texts_of_one_row_give_no_fit_within_texts():
    """14 rows over 12 texts: two pairs of rows explain any two factors whole."""
    twice = polars.col("text_id").is_in(["t000", "t001"])
    table = rows(12, ("a", "b")).filter((polars.col("model") == "a") | twice)
    assert len(table) == 14
    found = analysis.factors(table)
    assert "texts" not in set(found.regression["effects"])
    assert "too few texts" in set(found.left_out.filter(effects="texts")["why"])
    assert (found.regression["r_squared"] < 1 - 1e-9).all()


def test_a_saturated_fit_is_withheld():
    """The value is one of its own factors, so that nothing is left for the error."""
    table = rows(30, ("a",)).with_columns(entropy=polars.col("size_at"))
    found = analysis.factors(table)
    assert found.regression.is_empty()
    assert "the fit is saturated" in set(found.left_out["why"])


def test_ties_are_counted_and_no_p_is_zero():
    x = numpy.arange(9.0)
    told = correlate(x, x**2, "spearman", 0)
    assert (told["rho"], told["n_tied"]) == (1.0, 0)
    assert told["p"] == pytest.approx(2 / math.factorial(9))
    nodes = numpy.array([0.4, 0.529, 0.529, 0.529, 0.529, 0.6, 0.6, 0.7, 0.8])
    assert correlate(x, nodes, "spearman", 0)["n_tied"] == 6
    assert correlate(nodes, x, "pearson", 0)["n_tied"] == 6
    assert correlate(x[:3], nodes[1:4], "spearman", 0)["n_tied"] == 3
