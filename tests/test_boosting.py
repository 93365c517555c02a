"""Trees of known relations: what they explain, and whether groups that differ are told from groups that do not."""

from __future__ import annotations

import numpy
import polars
import pytest
import sklearn.ensemble
import sklearn.model_selection
import threadpoolctl
from test_analysis import rows

from densitometer import analysis
from densitometer.analysis import boosting
from densitometer.analysis.statistics import package
from densitometer.errors import InputError


def test_trees_explain_texts_that_they_have_not_seen():
    table = rows(45, ("a",), pieces=2)
    found = analysis.trees(table)
    score = found.scores.row(0, named=True)
    assert score["r_squared"] > 0.8
    assert score["shuffled_best"] < 0.3
    assert (score["n"], score["n_texts"]) == (90, 45)
    first = found.importances.sort("mean_shap", descending=True)["factor"][0]
    assert first == "entropy"
    # Fold by fold again, by hand; SHAP values and the expected value must add up to the prediction.
    wide = found.values.with_columns(
        column=polars.format("{} {}", "factor", polars.col("level").fill_null(""))
    ).pivot("column", index=["text_id", "piece"], values="x")
    x = wide.drop("text_id", "piece").to_numpy()
    y = table.sort("text_id", "piece")["size_at"].to_numpy()
    summed = found.values.group_by("text_id", "piece", maintain_order=True).agg(polars.col("shap").sum())[
        "shap"
    ]
    folds = sklearn.model_selection.GroupKFold(5, shuffle=True, random_state=0)
    for train, test in folds.split(x, y, wide["text_id"].to_numpy()):
        assert not set(wide["text_id"].to_numpy()[train]) & set(wide["text_id"].to_numpy()[test])
        fitted = sklearn.ensemble.HistGradientBoostingRegressor(
            max_iter=50,
            learning_rate=0.1,
            max_leaf_nodes=8,
            min_samples_leaf=5,
            early_stopping=False,
            random_state=0,
        ).fit(x[train], y[train])
        base = float(numpy.ravel(package("shap").TreeExplainer(fitted).expected_value)[0])
        assert summed.to_numpy()[test] + base == pytest.approx(fitted.predict(x[test]), abs=1e-5)
    assert analysis.trees(rows(19)).scores.is_empty()


def test_trees_grow_on_one_thread(monkeypatch):
    """On some hundred rows several only wait for each other."""
    threads = []
    growing = sklearn.ensemble.HistGradientBoostingRegressor
    fit = growing.fit

    def counted(self, *given):
        threads.append(max(pool["num_threads"] for pool in threadpoolctl.threadpool_info()))
        return fit(self, *given)

    monkeypatch.setattr(growing, "fit", counted)
    with threadpoolctl.threadpool_limits(3):
        analysis.trees(rows(20, ("a",)))
        assert max(pool["num_threads"] for pool in threadpoolctl.threadpool_info()) > 1
    assert set(threads) == {1}


def test_levels_are_summed_into_their_class_and_texts_are_drawn():
    table = rows(60, ("a",)).with_columns(
        kind=polars.Series(numpy.array(["u", "v", "w"])[numpy.random.default_rng(5).integers(0, 3, 60)])
    )
    table = table.with_columns(size_at=polars.col("size_at") + 0.3 * (polars.col("kind") == "v"))
    found = analysis.trees(table, names=("entropy", "kind"), most_texts=47)
    assert found.scores.select("n", "n_texts").row(0) == (47, 47)
    by_row = found.values.filter(factor="kind").group_by("text_id").agg(polars.col("shap").sum())
    mean = found.importances.filter(factor="kind")["mean_shap"].item()
    assert by_row["shap"].abs().mean() == pytest.approx(mean)
    assert mean > 0.05


def divided(n_texts=60, differ=True):
    """Under "sea" size_at follows entropy, under "law" surprisal, if they differ; else a bit of both everywhere."""
    rng = numpy.random.default_rng(8)
    table = rows(n_texts, ("a",), seed=2).with_columns(
        domain=polars.Series(rng.permutation(["sea", "law"] * (n_texts // 2)))
    )
    by_entropy = polars.col("entropy") * (1 if not differ else (polars.col("domain") == "sea"))
    by_surprisal = polars.col("surprisal") * (1 if not differ else (polars.col("domain") == "law"))
    # The trees are not told the domain, but a thing that goes with it.
    hint = polars.when(polars.col("domain") == "sea").then(1.0).otherwise(0.0)
    return table.with_columns(
        size_at=0.1 * by_entropy + 0.1 * by_surprisal,
        hint=hint if differ else polars.Series(rng.normal(size=n_texts)),
    )


NAMES = ("entropy", "surprisal", "hint")


def test_domains_that_differ_are_told():
    table = divided()
    found = analysis.shap_differences(table, "domain", names=NAMES)
    together = found.tests.filter(polars.col("factor").is_null()).row(0, named=True)
    assert (together["p"], together["deals"], together["n_texts"]) == (1 / 1000, 999, 60)
    assert together["apart"] > 2 * together["chance"]
    assert together["beats_chance"]
    own = {r["factor"]: r for r in found.tests.drop_nulls("factor").iter_rows(named=True)}
    assert own["entropy"]["p_corrected"] < 0.05
    # Shares, distances and p by hand, from the SHAP values of the same trees.
    trees = analysis.trees(table, names=NAMES)
    wide = (
        trees.values.with_columns(polars.col("shap").abs())
        .pivot("factor", index="text_id", values="shap")
        .sort("text_id")
    )
    means = wide.select(NAMES).to_numpy()
    domains = table.sort("text_id")["domain"].to_numpy()

    def shares(labels):
        sums = numpy.array([means[labels == domain].sum(axis=0) for domain in ("law", "sea")])
        return sums / sums.sum(axis=1, keepdims=True)

    for domain, expected in zip(("law", "sea"), shares(domains), strict=True):
        rows_of = found.profiles.filter(group=domain)
        assert dict(rows_of.select("factor", "share").iter_rows()) == pytest.approx(
            dict(zip(NAMES, expected, strict=True))
        )
        assert (rows_of["low"] < rows_of["share"]).all()
        assert (rows_of["high"] > rows_of["share"]).all()
    one, other = shares(domains)
    assert together["apart"] == pytest.approx(numpy.abs(one - other).sum() / 4)  # of each from their mean
    assert own["hint"]["apart"] == pytest.approx(abs(one[2] - other[2]))
    rng = numpy.random.default_rng(77)
    dealt = [numpy.abs(numpy.subtract(*shares(rng.permutation(domains)))) for _ in range(2000)]
    assert own["hint"]["p"] == pytest.approx(
        (numpy.array(dealt)[:, 2] >= own["hint"]["apart"]).mean(), abs=0.04
    )
    assert together["chance"] == pytest.approx(numpy.median(numpy.sum(dealt, axis=1) / 4), rel=0.1)


def test_domains_that_do_not_differ_are_not_told():
    found = analysis.shap_differences(divided(differ=False), "domain", names=NAMES).tests
    assert found.filter(polars.col("factor").is_null())["p_corrected"].item() > 0.05
    assert found.drop_nulls("factor")["p_corrected"].min() > 0.05


def paired(differ):
    """Of each text size_at follows entropy under "a"; under "b" surprisal, if they differ. Their scales are not alike."""
    table = rows(44, ("a", "b"), seed=4)
    rng = numpy.random.default_rng(0)
    cause = polars.when((polars.col("model") == "b") & differ).then("surprisal").otherwise("entropy")
    scale = polars.when(polars.col("model") == "b").then(3.0).otherwise(1.0)
    noise = polars.Series(0.3 * rng.normal(size=len(table)))
    return table.with_columns(size_at=0.2 * (polars.col("model") == "b") + 0.01 * scale * (cause + noise))


@pytest.mark.parametrize("differ", [True, False])
def test_models_that_differ_are_told_from_those_that_do_not(differ, monkeypatch):
    monkeypatch.setattr(boosting, "GROWN", 38)
    monkeypatch.setattr(boosting, "FEWEST_DEALS", 19)
    found = analysis.shap_differences(paired(differ), "model", names=("entropy", "surprisal", "n_tokens"))
    together = found.tests.filter(polars.col("factor").is_null()).row(0, named=True)
    assert (together["model"], together["deals"], together["n_texts"]) == (None, 19, 44)
    assert together["beats_chance"]
    assert set(found.profiles["group"]) == {"a", "b"}
    first = {
        group: rows_of.sort("share")["factor"][-1] for (group,), rows_of in found.profiles.group_by("group")
    }
    if differ:
        assert together["p"] == 1 / 20  # further apart than every deal
        assert first == {"a": "entropy", "b": "surprisal"}
    else:
        assert together["p"] > 0.1
        assert first == {"a": "entropy", "b": "entropy"}


def test_trees_no_better_than_chance_are_named():
    rng = numpy.random.default_rng(3)
    table = rows(40, ("a",)).with_columns(size_at=polars.Series(rng.random(40)))
    assert not analysis.shap_differences(table, "domain").tests["beats_chance"].any()


def test_correction_for_many_factors_by_hand():
    dealt = numpy.array([[0.0, 10.0, 5.0], [2.0, 30.0, 5.0], [4.0, 20.0, 5.0], [2.0, 20.0, 5.0]])
    # Deviations: sqrt(2), sqrt(50), none. In units of them the deals' largest are 0-ish: worked out below.
    found = numpy.array([4.0, 20.0, 5.0])
    a, b = numpy.sqrt(2), numpy.sqrt(50)
    largest = [max(-2 / a, -10 / b), max(0, 10 / b), max(2 / a, 0), 0]
    expected = [
        (1 + sum(x >= 2 / a - 1e-9 for x in largest)) / 5, (1 + sum(x >= -1e-9 for x in largest)) / 5, 1.0,
    ]  # fmt: skip
    assert boosting._westfall_young(found, dealt).tolist() == pytest.approx(expected)


def test_groups_that_cannot_be_compared():
    with pytest.raises(InputError, match="unknown groups 'size'"):
        analysis.shap_differences(rows(30), "size")
    assert analysis.shap_differences(rows(39), "model").tests.is_empty()  # texts
    assert analysis.shap_differences(rows(44, ("a",)), "model").tests.is_empty()
    assert analysis.shap_differences(rows(19, ("a",)), "language").tests.is_empty()
    one = rows(44, ("a",)).with_columns(domain=polars.lit("sea"))
    found = analysis.shap_differences(one, "domain")
    assert found.tests.is_empty()
    assert found.profiles.columns[:4] == ["importance", "model", "group", "factor"]
