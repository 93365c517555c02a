"""Factors that go with density, by gradient-boosted trees on texts that they have not seen.

SHAP values explain the trees. Tests then say whether the explanations differ between models and
between domains.

A profile is each factor's share of a group's mean |SHAP value|. How far groups are apart is the mean over groups of the total
variation distance of their profile from the mean of all profiles: 0 where all are one, 1 - 1/groups at most. Even groups that
are alike are some way apart, because texts are few. The distance is therefore compared with chance:

    domains  one set of trees, which does not see the domains, explains all texts; then the domains are dealt out anew among the
             texts. Given the trees, each deal is as likely as the true one if explanations do not depend on the domain: the
             test is exact. The trees are those of one model.
    models   each model has trees of its own, so that they differ by what they happened to learn, too. Within each text its
             rows are dealt out anew among the models, and the trees of every deal are grown anew (two folds of 25). Each
             model's values have their mean taken off and are divided by their deviation first: a model that needs more of
             every text, or differs more between texts, is not another explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from ..errors import InputError
from .properties import FACTORS, GROUPS, factor_columns, with_properties
from .statistics import FEWEST, GROUP, PIECE, bootstraps, holm, package, usable

FEWEST_TEXTS = 20  # for trees on texts that they have not seen
MOST_TEXTS = 500  # that trees are grown on and explain, drawn at random from more
FOLDS = 5
SHUFFLES = 5
DEALS = 999  # of domains
MOST_REGROWN = 200  # texts, where trees are grown anew for each deal
GROWN = 200  # sets of trees for the deals among models, for all models together, but
FEWEST_DEALS = 59


@dataclass(frozen=True, eq=False)
class Trees:
    """What boosted trees make of the factors, each text predicted by trees that have not seen it.

    Args:
        scores: model, importance, r_squared (of all held-out predictions; 0 is no better than the mean, less is worse),
            shuffled_mean and shuffled_best (of the same trees on values dealt out anew, `SHUFFLES` times), n (rows), n_texts.
        importances: model, importance, factor, mean_shap (mean of |SHAP value| over the held-out rows, in the value's unit;
            of a class, the values of its levels are summed first).
        values: model, importance, text_id, piece, factor, level, x (numbers only), shap: a row per held-out row and column.
    """

    scores: polars.DataFrame
    importances: polars.DataFrame
    values: polars.DataFrame


@dataclass(frozen=True, eq=False)
class Differences:
    """Whether groups' explanations differ.

    Args:
        profiles: importance, model (null where models are the groups), group, factor, share (of the group's mean |SHAP|),
            low, high (texts drawn anew, trees kept), n_texts.
        tests: importance, model, factor (null: all together), apart (as in `boosting`; of one factor, its largest share
            less its smallest), chance (the median of the deals), p (share of deals at least as far apart), p_corrected (all
            together: Holm's, over the table; a factor: share of deals in which any factor is at least as far out, in
            standard deviations of its deals; Westfall and Young 1993, single step), deals, n_texts, r_squared (of the
            worst trees, held out), beats_chance (whether each trees' score is above 0 and above a shuffled control's).
    """

    profiles: polars.DataFrame
    tests: polars.DataFrame


class _Design:
    """Rows as numbers, by column. A class becomes several columns."""

    def __init__(self, table: polars.DataFrame, value: str, names: Sequence[str]) -> None:
        self.columns = factor_columns(table, names)
        self.x = numpy.column_stack([column.to_numpy() for column in self.columns.values()])
        self.y = table[value].to_numpy().astype(numpy.float64)
        self.texts = numpy.unique(table["text_id"].to_numpy(), return_inverse=True)[1]
        self.factors = list(dict.fromkeys(factor for factor, _ in self.columns))
        self.sums = numpy.array([[f == factor for f in self.factors] for factor, _ in self.columns], float)

    def of_texts(self, explained: numpy.ndarray, texts: numpy.ndarray) -> numpy.ndarray:
        """Mean |SHAP| of each text (sorted by id) and factor."""
        totals = numpy.zeros((texts.max() + 1, len(self.factors)))
        numpy.add.at(totals, texts, numpy.abs(explained @ self.sums))
        return totals / numpy.bincount(texts)[:, None]


def _held_out(
    x: numpy.ndarray,
    y: numpy.ndarray,
    texts: numpy.ndarray,
    seed: int,
    explain: bool = True,
    quick: bool = False,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Predictions and SHAP values of each row by trees that have seen no row of its text.

    Args:
        quick: do a fifth of the work.
    """
    predicted, explained = numpy.empty(len(y)), numpy.empty(x.shape)
    splits = package("sklearn.model_selection").GroupKFold(
        2 if quick else FOLDS, shuffle=True, random_state=seed
    )
    for train, test in splits.split(x, y, texts):
        fitted = package("sklearn.ensemble").HistGradientBoostingRegressor(
            max_iter=25 if quick else 50, learning_rate=0.2 if quick else 0.1, max_leaf_nodes=8, min_samples_leaf=5,
            early_stopping=False, random_state=seed,
        ).fit(x[train], y[train])  # fmt: skip
        predicted[test] = fitted.predict(x[test])
        if explain:
            explained[test] = package("shap").TreeExplainer(fitted).shap_values(x[test])
    return predicted, explained


def _score(design: _Design, predicted: numpy.ndarray, seed: int, shuffles: int = SHUFFLES) -> dict[str, Any]:
    """R² of held-out predictions, beside that of trees on values dealt out anew."""
    r2 = package("sklearn.metrics").r2_score
    rng = numpy.random.default_rng(seed)
    controls = []
    for _ in range(shuffles):
        dealt = rng.permutation(design.y)
        controls.append(r2(dealt, _held_out(design.x, dealt, design.texts, seed, explain=False)[0]))
    return {
        "r_squared": float(r2(design.y, predicted)), "shuffled_mean": float(numpy.mean(controls)),
        "shuffled_best": float(max(controls)),
    }  # fmt: skip


def _prepare(
    measurements: polars.DataFrame, value: str, names: Sequence[str], seed: int, most_texts: int
) -> tuple[polars.DataFrame, list[str]]:
    """The rows, of so many texts at most, and the names that they have."""
    table = usable(with_properties(measurements), value)
    texts = table["text_id"].unique().sort()
    if len(texts) > most_texts:
        table = table.filter(polars.col("text_id").is_in(texts.sample(most_texts, seed=seed).to_list()))
    return table.sort(*PIECE), [name for name in names if name in table.columns]


def trees(
    measurements: polars.DataFrame,
    value: str = "size_at",
    names: Sequence[str] = (*FACTORS, *GROUPS),
    seed: int = 0,
    most_texts: int = MOST_TEXTS,
) -> Trees:
    """Fit gradient-boosted trees for each model and importance, explained by SHAP.

    The predictions that SHAP explains are held out.

    Texts are dealt into `FOLDS` folds with all their pieces. A model with fewer than `FEWEST_TEXTS` texts is left out; of more
    than `most_texts` so many are drawn. Nulls stay nulls: trees know them.
    """
    table, names = _prepare(measurements, value, names, seed, most_texts)
    scores, importances, values = [], [], []
    for own in table.partition_by(*GROUP):
        group = {name: own[name][0] for name in GROUP}
        n_texts = own["text_id"].n_unique()
        design = (
            _Design(own, value, names) if n_texts >= FEWEST_TEXTS and factor_columns(own, names) else None
        )
        if design is None:
            continue
        predicted, explained = _held_out(design.x, design.y, design.texts, seed)
        scores.append({**group, **_score(design, predicted, seed), "n": len(own), "n_texts": n_texts})
        means = numpy.abs(explained @ design.sums).mean(axis=0)
        importances += [
            {**group, "factor": f, "mean_shap": m} for f, m in zip(design.factors, means, strict=True)
        ]
        keys = own.select(*PIECE).with_columns(polars.col("piece").cast(polars.Int32))
        values += [
            keys.with_columns(
                factor=polars.lit(factor), level=polars.lit(level, polars.String), x=column,
                shap=polars.Series(explained[:, i]),
            )
            for i, ((factor, level), column) in enumerate(design.columns.items())
        ]  # fmt: skip
    strings: dict[str, Any] = dict.fromkeys(GROUP, polars.String)
    numbers = dict.fromkeys(("r_squared", "shuffled_mean", "shuffled_best"), polars.Float64)
    counts = {"n": polars.Int64, "n_texts": polars.Int64}
    empty = {"text_id": polars.String, "piece": polars.Int32, "factor": polars.String, "level": polars.String}
    empty |= {"x": polars.Float64, "shap": polars.Float64}
    return Trees(
        polars.DataFrame(scores, schema=strings | numbers | counts),
        polars.DataFrame(
            importances, schema=strings | {"factor": polars.String, "mean_shap": polars.Float64}
        ),
        polars.concat([polars.DataFrame(schema=strings | empty), *values]),
    )


def shap_differences(
    measurements: polars.DataFrame,
    by: str = "domain",
    value: str = "size_at",
    names: Sequence[str] = (*FACTORS, *GROUPS),
    seed: int = 0,
    most_texts: int = MOST_TEXTS,
) -> Differences:
    """Compare what factors contribute, in trees' held-out explanations, between domains or between models.

    Args:
        by: "domain" or "language" (of a model's texts; groups of at least `FEWEST` texts), or "model" (over the texts that
            all models have measured, of which at least twice `FEWEST_TEXTS` are needed).

    Of more than `most_texts` texts so many are drawn, for models `MOST_REGROWN` at most. The deals among models are `FEWEST_DEALS` at least, else as many as make
    `GROWN` sets of trees: p is never below 1 / (deals + 1).

    Raises:
        InputError: another `by`.
    """
    if by not in ("model", *GROUPS):
        raise InputError(f"unknown groups {by!r}; expected 'model', 'domain' or 'language'")
    most_texts = min(most_texts, MOST_REGROWN) if by == "model" else most_texts
    table, names = _prepare(measurements, value, [name for name in names if name != by], seed, most_texts)
    profiles: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    key = ("importance",) if by == "model" else ("importance", "model")
    compare = _between_models if by == "model" else _between_texts
    for own in table.partition_by(*key):
        found = compare(own, by, value, names, seed)
        if found is None:
            continue
        head = {"importance": own["importance"][0], "model": None if by == "model" else own["model"][0]}
        profiles += [head | row for row in found[0]]
        tests += [head | row for row in found[1]]
    every = polars.DataFrame(tests, schema=_TESTS)
    together = every.filter(polars.col("factor").is_null())
    return Differences(
        polars.DataFrame(profiles, schema=_PROFILES),
        polars.concat(
            [
                together.with_columns(p_corrected=holm(together)["p_holm"]),
                every.filter(polars.col("factor").is_not_null()),
            ]
        ),
    )


_PROFILES: dict[str, Any] = {
    "importance": polars.String, "model": polars.String, "group": polars.String, "factor": polars.String,
    "share": polars.Float64, "low": polars.Float64, "high": polars.Float64, "n_texts": polars.Int64,
}  # fmt: skip
_TESTS: dict[str, Any] = {
    "importance": polars.String, "model": polars.String, "factor": polars.String, "apart": polars.Float64,
    "chance": polars.Float64, "p": polars.Float64, "p_corrected": polars.Float64, "deals": polars.Int64, "n_texts": polars.Int64,
    "r_squared": polars.Float64, "beats_chance": polars.Boolean,
}  # fmt: skip


def _shares(means: numpy.ndarray) -> numpy.ndarray:
    totals = means.sum(axis=-1, keepdims=True)
    return numpy.divide(means, totals, out=numpy.zeros_like(means), where=totals > 0)


def _apart(shares: numpy.ndarray) -> numpy.ndarray:
    """Distance between groups over all factors together, then factor by factor.

    Args:
        shares: (..., groups, factors).
    """
    away = numpy.abs(shares - shares.mean(axis=-2, keepdims=True)).sum(axis=-1) / 2
    return numpy.concatenate([away.mean(axis=-1)[..., None], numpy.ptp(shares, axis=-2)], axis=-1)


def _told(
    groups: dict[str, numpy.ndarray], factors: list[str], test: Any, about: dict[str, Any], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Profiles of groups (mean |SHAP| of their texts and factors), and scipy's test of `_apart` as rows."""
    profiles = []
    for group, own in groups.items():

        def shares(drawn: numpy.ndarray, axis: int = -1, own: numpy.ndarray = own) -> numpy.ndarray:
            return numpy.moveaxis(_shares(own[drawn].mean(axis=-2)), -1, 0)

        low, high = bootstraps([numpy.arange(len(own))], shares, seed)
        told = zip(factors, _shares(own.mean(axis=0)), low, high, strict=True)
        profiles += [
            {"group": group, "factor": f, "share": s, "low": a, "high": b, "n_texts": len(own)}
            for f, s, a, b in told
        ]
    chance = numpy.median(test.null_distribution, axis=0)
    corrected = [None, *_westfall_young(test.statistic[1:], test.null_distribution[:, 1:])]
    columns = zip([None, *factors], test.statistic, chance, test.pvalue, corrected, strict=True)
    tests = [
        {
            "factor": f, "apart": a, "chance": c, "p": p, "p_corrected": q, "deals": len(test.null_distribution), **about,
        }
        for f, a, c, p, q in columns
    ]  # fmt: skip
    return profiles, tests


def _westfall_young(found: numpy.ndarray, dealt: numpy.ndarray) -> numpy.ndarray:
    """p of each factor, corrected for all of them, by Westfall and Young.

    Args:
        found: (factors,).
        dealt: (deals, factors).
    """
    scale = dealt.std(axis=0)
    varies = scale > 1e-12
    scale = numpy.where(varies, scale, 1.0)
    out = numpy.where(varies, (found - dealt.mean(axis=0)) / scale, -numpy.inf)
    most = numpy.where(varies, (dealt - dealt.mean(axis=0)) / scale, -numpy.inf).max(axis=1)
    return (1 + (most[:, None] >= out - 1e-9).sum(axis=0)) / (1 + len(dealt))


def _between_texts(
    table: polars.DataFrame, by: str, value: str, names: Sequence[str], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Groups of texts under one model."""
    table = table.filter(polars.col(by).is_not_null(), polars.col("text_id").n_unique().over(by) >= FEWEST)
    n_texts = table["text_id"].n_unique()
    if table[by].n_unique() < 2 or n_texts < FEWEST_TEXTS or not factor_columns(table, names):
        return None
    design = _Design(table, value, names)
    predicted, explained = _held_out(design.x, design.y, design.texts, seed)
    score = _score(design, predicted, seed, shuffles=1)
    own = design.of_texts(explained, design.texts)
    kinds = table.unique("text_id").sort("text_id")[by].cast(polars.String).to_numpy()
    members = [numpy.flatnonzero(kinds == kind) for kind in numpy.unique(kinds)]

    def statistic(*texts: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        return _apart(_shares(numpy.stack([own[one].mean(axis=-2) for one in texts], axis=-2)))

    test = package("scipy.stats").permutation_test(
        members, statistic, permutation_type="independent", vectorized=True, n_resamples=DEALS, alternative="greater",
        batch=max(1, 10**6 // own.size), rng=numpy.random.default_rng(seed),
    )  # fmt: skip
    about = {"n_texts": n_texts, "r_squared": score["r_squared"], "beats_chance": _beats(score)}
    groups = {str(kinds[texts[0]]): own[texts] for texts in members}
    return _told(groups, design.factors, test, about, seed)


def _between_models(
    table: polars.DataFrame, by: str, value: str, names: Sequence[str], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Models on the same texts, whose rows are dealt out among them text by text."""
    models = table["model"].unique().sort().to_list()
    m = len(models)
    table = table.filter(polars.len().over("text_id", "piece") == m).sort("text_id", "piece", "model")
    n_texts = table["text_id"].n_unique()
    constant = (
        table.group_by("model", maintain_order=True).agg(polars.col(value).n_unique() == 1)[value].any()
    )
    if m < 2 or n_texts < 2 * FEWEST_TEXTS or constant or not factor_columns(table, names):
        return None
    design = _Design(table, value, names)
    x, y, texts = design.x.reshape(-1, m, design.x.shape[1]), design.y.reshape(-1, m), design.texts[::m]
    y = package("scipy.stats").zscore(y, axis=0)
    pieces = numpy.arange(len(texts))

    def explain(whose: numpy.ndarray) -> numpy.ndarray:
        """Mean |SHAP| of texts and factors where the rows of a text are those of this model."""
        rows = whose[texts]
        return design.of_texts(_held_out(x[pieces, rows], y[pieces, rows], texts, seed, quick=True)[1], texts)

    def statistic(*dealt: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        deals = numpy.stack(dealt).reshape(m, -1, n_texts) % m  # (models, deals, texts)
        means = [[explain(whose).mean(axis=0) for whose in deal] for deal in deals.swapaxes(0, 1)]
        return _apart(_shares(numpy.array(means).reshape(*dealt[0].shape[:-1], m, -1)))

    rows = numpy.arange(n_texts * m).reshape(
        n_texts, m
    )  # a number of its own for each, as scipy compares them
    test = package("scipy.stats").permutation_test(
        list(rows.T), statistic, permutation_type="samples", vectorized=True, n_resamples=max(FEWEST_DEALS, GROWN // m),
        alternative="greater", batch=1, rng=numpy.random.default_rng(seed),
    )  # fmt: skip
    scores = []
    for model in models:
        own = _Design(table.filter(model=model), value, names)
        scores.append(
            _score(own, _held_out(own.x, own.y, own.texts, seed, explain=False)[0], seed, shuffles=1)
        )
    about = {
        "n_texts": n_texts, "r_squared": min(score["r_squared"] for score in scores),
        "beats_chance": all(_beats(score) for score in scores),
    }  # fmt: skip
    groups = {model: explain(numpy.full(n_texts, i)) for i, model in enumerate(models)}
    return _told(groups, design.factors, test, about, seed)


def _beats(score: dict[str, Any]) -> bool:
    return bool(score["r_squared"] > max(0.0, score["shuffled_best"]))
