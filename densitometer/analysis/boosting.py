"""Prediction of density from factors by gradient-boosted trees, tested on held-out texts.

SHAP values explain the trees. Permutation tests then show whether the explanations differ between
models or between domains.

A group's profile is each factor's share of its mean |SHAP value|. The distance between groups is
the mean total variation distance of their profiles from the mean of all profiles. It is 0 if all
are equal, and at most 1 - 1/groups. Texts are few, so the distance is above 0 even for groups that
do not differ. A test therefore compares it with its distribution under permutations:

    domains  One set of trees, which does not see the domains, explains all texts of one model. The
             domains are then permuted among the texts. Given the trees, each permutation is as
             likely as the true assignment if explanations do not depend on the domain, so the test
             is exact.
    models   Each model has its own trees, which also differ by chance. Rows are permuted among the
             models, within each text, and the trees are fitted again for every permutation
             (2 folds, 25 trees). Each model's values are standardised first, so that models with a
             larger mean or a larger variance do not count as different.

    In the code a permutation is called a *deal*: groups or rows are dealt out again among texts or
    models.
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

# Fewest texts for trees with held-out predictions, and most texts; of more, a random sample is
# used.
FEWEST_TEXTS = 20
MOST_TEXTS = 500
# Cross-validation folds, and fits on shuffled values as a control.
FOLDS = 5
SHUFFLES = 5
# Permutations of domains.
DEALS = 999
# Among models, trees are fitted again for each permutation: on at most this many texts, with about
# this many sets of trees for all models together, but at least this many permutations.
MOST_REGROWN = 200
GROWN = 200
FEWEST_DEALS = 59


@dataclass(frozen=True, eq=False)
class Trees:
    """Boosted trees that predict a value from factors, with predictions for held-out texts.

    Args:
        scores: a row per model and importance. `r_squared` is that of all held-out predictions; at
            0 they are as good as the mean. shuffled_mean and shuffled_best are the mean and the
            largest R² of the same trees on shuffled values, over `SHUFFLES` shuffles. Then n (rows)
            and n_texts.
        importances: a row per model, importance and factor. `mean_shap` is the mean |SHAP value|
            over held-out rows, in the value's unit. The SHAP values of a class's levels are summed
            first.
        values: a row per held-out row and column of factors: model, importance, text_id, piece,
            factor, level, x (of the column) and shap.
    """

    scores: polars.DataFrame
    importances: polars.DataFrame
    values: polars.DataFrame


@dataclass(frozen=True, eq=False)
class Differences:
    """Profiles of groups, and tests of whether they differ.

    Args:
        profiles: a row per importance, model (null if the groups are models), group and factor.
            `share` is the factor's share of the group's mean |SHAP value|, with the interval low,
            high, from a bootstrap over texts with fixed trees. Then n_texts.
        tests: a row per importance, model and factor (null for all factors together). `apart` is
            the distance between groups (module docstring), for one factor its largest share less
            its smallest. `chance` is the median over permutations, and `p` the share of
            permutations with at least that distance. `p_corrected` is, for all factors together,
            Holm's correction over the table. For one factor it is the share of permutations in
            which any factor is as extreme, in standard deviations over permutations (Westfall and
            Young 1993, single step). Then deals (permutations), n_texts, r_squared (held out, of
            the worst trees), and beats_chance (whether each R² is above 0 and above a shuffled
            control's).
    """

    profiles: polars.DataFrame
    tests: polars.DataFrame


class _Design:
    """Matrix of factors, one column per number or level of a class, with values and texts.

    `sums` (columns, factors) adds the columns of each factor.
    """

    def __init__(self, table: polars.DataFrame, value: str, names: Sequence[str]) -> None:
        self.columns = factor_columns(table, names)
        self.x = numpy.column_stack([column.to_numpy() for column in self.columns.values()])
        self.y = table[value].to_numpy().astype(numpy.float64)
        self.texts = numpy.unique(table["text_id"].to_numpy(), return_inverse=True)[1]
        self.factors = list(dict.fromkeys(factor for factor, _ in self.columns))
        self.sums = numpy.array([[f == factor for f in self.factors] for factor, _ in self.columns], float)

    def of_texts(self, explained: numpy.ndarray, texts: numpy.ndarray) -> numpy.ndarray:
        """Mean |SHAP value| of each text and factor, (texts, factors), texts sorted by id.

        Args:
            explained: (rows, columns), SHAP values.
            texts: (rows,), number of each row's text.
        """
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
    """Predict and explain each row by trees that were fitted without its text.

    Args:
        x: (rows, columns), factors.
        y: (rows,), values.
        texts: (rows,), number of each row's text.
        seed: seed of folds and trees.
        explain: whether to compute SHAP values; otherwise the returned ones are uninitialised.
        quick: use 2 folds and 25 trees, a fifth of the work.

    Returns:
        Predictions (rows,) and SHAP values (rows, columns).
    """
    predicted, explained = numpy.empty(len(y)), numpy.empty(x.shape)
    splits = package("sklearn.model_selection").GroupKFold(
        2 if quick else FOLDS, shuffle=True, random_state=seed
    )
    # On so few rows threads only wait for each other: a report took three times as long with two.
    with package("threadpoolctl").threadpool_limits(1):
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
    """R² of held-out predictions, and of trees on shuffled values."""
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
    """Return the usable rows of at most `most_texts` texts, and the names of columns they have."""
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
    """Fit gradient-boosted trees for each model and importance, and explain them by SHAP values.

    Predictions and SHAP values are held out, in `FOLDS` folds of texts. A text's pieces are in the
    same fold. A model with fewer than `FEWEST_TEXTS` texts is left out. Trees accept nulls.

    Args:
        measurements: `describe(study)`, or `Study.measurements()`.
        value: column to predict.
        names: columns of numbers or of classes to predict it from.
        seed: seed of samples, folds and trees.
        most_texts: of more texts, a random sample of this many is used.

    Raises:
        InputError: the value is not a column of numbers.
    """
    table, names = _prepare(measurements, value, names, seed, most_texts)
    scores, importances, values = [], [], []
    for part in table.partition_by(*GROUP):
        group = {name: part[name][0] for name in GROUP}
        n_texts = part["text_id"].n_unique()
        design = (
            _Design(part, value, names) if n_texts >= FEWEST_TEXTS and factor_columns(part, names) else None
        )
        if design is None:
            continue
        predicted, explained = _held_out(design.x, design.y, design.texts, seed)
        scores.append({**group, **_score(design, predicted, seed), "n": len(part), "n_texts": n_texts})
        means = numpy.abs(explained @ design.sums).mean(axis=0)
        importances += [
            {**group, "factor": f, "mean_shap": m} for f, m in zip(design.factors, means, strict=True)
        ]
        keys = part.select(*PIECE).with_columns(polars.col("piece").cast(polars.Int32))
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
    """Compare factors' shares of held-out SHAP values between domains, languages or models.

    Among models there are `GROWN` / models permutations, but at least `FEWEST_DEALS`. p is never
    below 1 / (permutations + 1).

    Args:
        measurements: `describe(study)`, or `Study.measurements()`.
        by: "domain" or "language" to compare texts of one model, in groups of at least `FEWEST`; or
            "model" to compare models on the texts that all have measured, at least twice
            `FEWEST_TEXTS`.
        value: column to predict.
        names: columns of numbers or of classes to predict it from.
        seed: seed of samples, folds, trees and permutations.
        most_texts: of more texts, a random sample of this many is used; for models at most
            `MOST_REGROWN`.

    Raises:
        InputError: `by` is none of these, or the value is not a column of numbers.
    """
    if by not in ("model", *GROUPS):
        raise InputError(f"unknown groups {by!r}; expected 'model', 'domain' or 'language'")
    most_texts = min(most_texts, MOST_REGROWN) if by == "model" else most_texts
    table, names = _prepare(measurements, value, [name for name in names if name != by], seed, most_texts)
    profiles: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    key = ("importance",) if by == "model" else ("importance", "model")
    compare = _between_models if by == "model" else _between_texts
    for part in table.partition_by(*key):
        compared = compare(part, by, value, names, seed)
        if compared is None:
            continue
        head = {"importance": part["importance"][0], "model": None if by == "model" else part["model"][0]}
        profiles += [head | row for row in compared[0]]
        tests += [head | row for row in compared[1]]
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
    """Divide values by their sum over the last axis. Rows of zeros stay zero."""
    totals = means.sum(axis=-1, keepdims=True)
    return numpy.divide(means, totals, out=numpy.zeros_like(means), where=totals > 0)


def _apart(shares: numpy.ndarray) -> numpy.ndarray:
    """Distance between groups' profiles for all factors together, then for each factor.

    Args:
        shares: (..., groups, factors), profiles.

    Returns:
        (..., 1 + factors).
    """
    away = numpy.abs(shares - shares.mean(axis=-2, keepdims=True)).sum(axis=-1) / 2
    return numpy.concatenate([away.mean(axis=-1)[..., None], numpy.ptp(shares, axis=-2)], axis=-1)


def _rows(
    groups: dict[str, numpy.ndarray], factors: list[str], test: Any, about: dict[str, Any], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of `Differences.profiles` and `Differences.tests`.

    Args:
        groups: (texts, factors) mean |SHAP value| of each group.
        factors: names of the factors.
        test: scipy's permutation test of `_apart`.
        about: further columns of the tests.
        seed: seed of the bootstraps.
    """
    profiles = []
    for group, means in groups.items():

        def shares(drawn: numpy.ndarray, axis: int = -1, means: numpy.ndarray = means) -> numpy.ndarray:
            return numpy.moveaxis(_shares(means[drawn].mean(axis=-2)), -1, 0)

        low, high = bootstraps([numpy.arange(len(means))], shares, seed)
        estimates = zip(factors, _shares(means.mean(axis=0)), low, high, strict=True)
        profiles += [
            {"group": group, "factor": f, "share": s, "low": a, "high": b, "n_texts": len(means)}
            for f, s, a, b in estimates
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
    """Return p of each factor, corrected for all factors by Westfall and Young's single step.

    Args:
        found: (factors,), the statistics.
        dealt: (deals, factors), the statistics of each permutation.
    """
    # Factors are compared in standard deviations of their permutations. The largest over factors
    # gives the distribution that each must exceed. A factor that no permutation moves gets p = 1.
    scale = dealt.std(axis=0)
    varies = scale > 1e-12
    scale = numpy.where(varies, scale, 1.0)
    out = numpy.where(varies, (found - dealt.mean(axis=0)) / scale, -numpy.inf)
    most = numpy.where(varies, (dealt - dealt.mean(axis=0)) / scale, -numpy.inf).max(axis=1)
    return (1 + (most[:, None] >= out - 1e-9).sum(axis=0)) / (1 + len(dealt))


def _between_texts(
    table: polars.DataFrame, by: str, value: str, names: Sequence[str], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Compare groups of texts of one model and importance. None if there are too few texts."""
    table = table.filter(polars.col(by).is_not_null(), polars.col("text_id").n_unique().over(by) >= FEWEST)
    n_texts = table["text_id"].n_unique()
    if table[by].n_unique() < 2 or n_texts < FEWEST_TEXTS or not factor_columns(table, names):
        return None
    design = _Design(table, value, names)
    predicted, explained = _held_out(design.x, design.y, design.texts, seed)
    score = _score(design, predicted, seed, shuffles=1)
    means = design.of_texts(explained, design.texts)
    kinds = table.unique("text_id").sort("text_id")[by].cast(polars.String).to_numpy()
    members = [numpy.flatnonzero(kinds == kind) for kind in numpy.unique(kinds)]

    def statistic(*texts: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        return _apart(_shares(numpy.stack([means[one].mean(axis=-2) for one in texts], axis=-2)))

    test = package("scipy.stats").permutation_test(
        members, statistic, permutation_type="independent", vectorized=True, n_resamples=DEALS, alternative="greater",
        batch=max(1, 10**6 // means.size), rng=numpy.random.default_rng(seed),
    )  # fmt: skip
    about = {"n_texts": n_texts, "r_squared": score["r_squared"], "beats_chance": _beats(score)}
    groups = {str(kinds[texts[0]]): means[texts] for texts in members}
    return _rows(groups, design.factors, test, about, seed)


def _between_models(
    table: polars.DataFrame, by: str, value: str, names: Sequence[str], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Compare models over the same texts, permuting each text's rows among the models.

    None if there are too few texts, or one model's values are all equal.
    """
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
        """Compute mean |SHAP value| of texts and factors, each text's rows from a chosen model.

        Args:
            whose: (texts,), number of a model for each text.
        """
        rows = whose[texts]
        return design.of_texts(_held_out(x[pieces, rows], y[pieces, rows], texts, seed, quick=True)[1], texts)

    def statistic(*dealt: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        deals = numpy.stack(dealt).reshape(m, -1, n_texts) % m  # (models, deals, texts)
        means = [[explain(whose).mean(axis=0) for whose in deal] for deal in deals.swapaxes(0, 1)]
        return _apart(_shares(numpy.array(means).reshape(*dealt[0].shape[:-1], m, -1)))

    # scipy permutes numbers within each text. They must all differ, because scipy compares them;
    # modulo m they are numbers of models.
    rows = numpy.arange(n_texts * m).reshape(n_texts, m)
    test = package("scipy.stats").permutation_test(
        list(rows.T), statistic, permutation_type="samples", vectorized=True, n_resamples=max(FEWEST_DEALS, GROWN // m),
        alternative="greater", batch=1, rng=numpy.random.default_rng(seed),
    )  # fmt: skip
    scores = []
    for model in models:
        one = _Design(table.filter(model=model), value, names)
        predicted = _held_out(one.x, one.y, one.texts, seed, explain=False)[0]
        scores.append(_score(one, predicted, seed, shuffles=1))
    about = {
        "n_texts": n_texts, "r_squared": min(score["r_squared"] for score in scores),
        "beats_chance": all(_beats(score) for score in scores),
    }  # fmt: skip
    groups = {model: explain(numpy.full(n_texts, i)) for i, model in enumerate(models)}
    return _rows(groups, design.factors, test, about, seed)


def _beats(score: dict[str, Any]) -> bool:
    """Whether R² is above 0 and above the best on shuffled values."""
    return bool(score["r_squared"] > max(0.0, score["shuffled_best"]))
