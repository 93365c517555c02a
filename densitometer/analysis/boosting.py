"""What goes with density, by gradient-boosted trees on texts that they have not seen, explained by SHAP values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from .effects import FACTORS
from .properties import with_frequencies
from .statistics import GROUP, PIECE, package, usable

FEWEST_TEXTS = 20  # for trees on texts that they have not seen
FOLDS = 5
SHUFFLES = 5


@dataclass(frozen=True, eq=False)
class Trees:
    """What boosted trees make of the factors, each text predicted by trees that have not seen it.

    Args:
        scores: model, importance, r_squared (of all held-out predictions; 0 is no better than the mean, less is worse),
            shuffled_mean and shuffled_best (of the same trees on values dealt out anew, `SHUFFLES` times), n (rows), n_texts.
        importances: model, importance, factor, mean_shap (mean of |SHAP value| over the held-out rows, in the value's unit).
        values: model, importance, text_id, piece, factor, x (numbers only), shap: a row per held-out row and factor.
    """

    scores: polars.DataFrame
    importances: polars.DataFrame
    values: polars.DataFrame


def trees(
    measurements: polars.DataFrame, value: str = "size_at", names: Sequence[str] = FACTORS, seed: int = 0
) -> Trees:
    """Fit gradient-boosted trees for each model and importance; explain their held-out predictions by SHAP.

    Texts are dealt into `FOLDS` folds with all their pieces. Factors are `names`, language and domain. A model with fewer
    than `FEWEST_TEXTS` texts is left out. Nulls stay nulls: trees know them.
    """
    shap = package("shap")
    ensemble = package("sklearn.ensemble")
    metrics = package("sklearn.metrics")
    folds = package("sklearn.model_selection").GroupKFold(FOLDS, shuffle=True, random_state=seed)
    table = with_frequencies(
        usable(measurements, value).with_columns(revision=polars.lit(None, polars.String))
    )
    scores, values = [], []

    def predict(x: numpy.ndarray, y: numpy.ndarray, texts: numpy.ndarray, explain: bool) -> tuple[Any, Any]:
        predicted, explained = numpy.empty(len(y)), numpy.empty(x.shape)
        for train, test in folds.split(x, y, texts):
            fitted = ensemble.HistGradientBoostingRegressor(
                max_iter=50, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=5, early_stopping=False,
                random_state=seed,
            ).fit(x[train], y[train])  # fmt: skip
            predicted[test] = fitted.predict(x[test])
            if explain:
                explained[test] = shap.TreeExplainer(fitted).shap_values(x[test])
        return predicted, explained

    for (model, importance), group in table.sort(*PIECE).group_by(*GROUP, maintain_order=True):
        n_texts = group["text_id"].n_unique()
        if n_texts < FEWEST_TEXTS:
            continue
        columns = {name: group[name] for name in names}
        for name in ("language", "domain"):
            levels = group[name].drop_nulls().unique().sort().to_list()
            for level in levels if len(levels) > 2 else levels[1:]:
                columns[f"{name} {level}"] = (group[name] == level).fill_null(False)
        columns = {name: x.cast(polars.Float64) for name, x in columns.items() if x.n_unique() > 1}
        x = numpy.column_stack([c.to_numpy() for c in columns.values()])
        y = group[value].to_numpy().astype(numpy.float64)
        texts = group["text_id"].to_numpy()
        predicted, explained = predict(x, y, texts, explain=True)
        rng = numpy.random.default_rng(seed)
        controls = []
        for _ in range(SHUFFLES):
            dealt = rng.permutation(y)
            controls.append(metrics.r2_score(dealt, predict(x, dealt, texts, explain=False)[0]))
        scores.append(
            {
                "model": model,
                "importance": importance,
                "r_squared": metrics.r2_score(y, predicted),
                "shuffled_mean": numpy.mean(controls),
                "shuffled_best": max(controls),
                "n": len(y),
                "n_texts": n_texts,
            }
        )
        for i, name in enumerate(columns):
            values.append(
                group.select(
                    "model", "importance", "text_id", polars.col("piece").cast(polars.Int32)
                ).with_columns(factor=polars.lit(name), x=columns[name], shap=polars.Series(explained[:, i]))
            )
    schema = {
        "model": polars.String, "importance": polars.String, "r_squared": polars.Float64,
        "shuffled_mean": polars.Float64, "shuffled_best": polars.Float64, "n": polars.Int64, "n_texts": polars.Int64,
    }  # fmt: skip
    empty = {
        "model": polars.String, "importance": polars.String, "text_id": polars.String, "piece": polars.Int32,
        "factor": polars.String, "x": polars.Float64, "shap": polars.Float64,
    }  # fmt: skip
    every = polars.concat([polars.DataFrame(schema=empty), *values])
    importances = every.group_by("model", "importance", "factor", maintain_order=True).agg(
        mean_shap=polars.col("shap").abs().mean()
    )
    return Trees(polars.DataFrame(scores, schema=schema), importances, every)
