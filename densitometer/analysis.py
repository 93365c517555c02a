"""Statistics over the tables of a study: what its rows, taken together, say. Frames in, frames out; nothing is run here.

    distribution                how much is needed, per model, score, language, domain
    correlation_across_models   do the same texts need much of every model?
    factors                     what goes with it: one factor at a time, and all at once by least squares
    trees                       the same by boosted trees, on texts that they have not seen, with SHAP values
    component_shares            which kinds, depths and components a trace of a size holds
    resources                   what a share of the operations buys

The statistics are those of scipy, statsmodels, scikit-learn and shap (`pip install 'densitometer[analysis]'`).

What counts: a row with an `error` has no numbers and is left out (`n_failed` says how many). `size_at` is null where no size
evaluated holds the prediction; such rows have no place on the scale and are left out too (`n_never` says how many). A text may be
measured in several pieces, which are not independent; where an interval or a test needs independent units, a text is one
unit (its pieces averaged, drawn together or clustered), and `n` counts what the unit is: each docstring says. Intervals are
at 95 %; bootstraps are seeded, percentile intervals. With fewer than `FEWEST` units there is no interval: null.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from .errors import DensitometerError, InputError

LEVEL = 0.95
RESAMPLES = 1000
FEWEST = 8  # units under which neither an interval nor a test is given
FEWEST_TEXTS = 20  # for trees on texts that they have not seen
FOLDS = 5
SHUFFLES = 5
STATIC = 0.95  # of the traces hold a component of the static core
VALUES = ("size_at", "auc_log", "auc_linear", "flops_at", "parameters_at")
FACTORS = ("n_tokens", "entropy", "surprisal", "predicted_log_frequency", "actual_log_frequency")
_GROUP = ("model", "importance")
_PIECE = ("model", "importance", "text_id", "piece")


def _package(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how they import each other
            return importlib.import_module(name)
    except ImportError as error:
        raise DensitometerError(
            f"the analysis needs {name.partition('.')[0]}, which cannot be imported ({error}): pip install 'densitometer[analysis]'"
        ) from error


def named(table: polars.DataFrame) -> polars.DataFrame:
    """A revision is part of a model's name."""
    revised = polars.format("{}@{}", "model", "revision")
    return table.with_columns(
        model=polars.when(polars.col("revision").is_null()).then("model").otherwise(revised)
    )


def _check(measurements: polars.DataFrame, *values: str) -> None:
    for value in values:
        if value not in measurements.columns or not measurements.schema[value].is_numeric():
            raise InputError(
                f"{value!r} is no column of numbers of the measurements; expected such as {', '.join(VALUES)}"
            )


def _usable(measurements: polars.DataFrame, value: str) -> polars.DataFrame:
    _check(measurements, value)
    return named(measurements).filter(polars.col("error").is_null(), polars.col(value).is_not_null())


def _resamples(n: int) -> int:
    """Fewer where each costs much: 10^7 drawn values, but 200 at least."""
    return int(min(RESAMPLES, max(200, 10**7 // n)))


def _bootstrap(
    columns: Sequence[numpy.ndarray], statistic: Any, seed: int
) -> tuple[float | None, float | None]:
    n = len(columns[0])
    if n < FEWEST:
        return None, None
    stats = _package("scipy.stats")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a resample in which all values are one
        found = stats.bootstrap(
            tuple(columns), statistic, paired=len(columns) > 1, vectorized=True, method="percentile",
            confidence_level=LEVEL, n_resamples=_resamples(n), batch=max(1, 2 * 10**6 // n),
            rng=numpy.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    low, high = float(found.low), float(found.high)
    return (low, high) if numpy.isfinite([low, high]).all() else (None, None)


def _median_interval(
    values: numpy.ndarray, texts: numpy.ndarray, seed: int
) -> tuple[float | None, float | None]:
    """Of the median of all values, texts drawn with all their pieces."""
    names, place = numpy.unique(texts, return_inverse=True)
    if len(names) == len(texts):
        return _bootstrap([values], numpy.median, seed)
    order = numpy.argsort(place, kind="stable")
    pieces = numpy.split(values[order], numpy.cumsum(numpy.bincount(place))[:-1])

    def medians(drawn: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        found = [
            numpy.median(numpy.concatenate([pieces[i] for i in row])) for row in drawn.reshape(-1, len(names))
        ]
        return numpy.array(found).reshape(drawn.shape[:-1])

    return _bootstrap([numpy.arange(len(names))], medians, seed)


def distribution(
    measurements: polars.DataFrame,
    by: Sequence[str] = ("model", "importance", "language", "domain"),
    values: Sequence[str] = ("size_at", "auc_log"),
    seed: int = 0,
) -> polars.DataFrame:
    """Median and quartiles of each value in each group.

    Args:
        measurements: `Study.measurements()`.
        by: columns that make the groups; a null is a group of its own.
        values: `size_at` and its like are shares in [0, 1]; `auc_log` and `auc_linear` are mean TVs in [0, 1].

    Returns:
        `by`, value, median, low, high (of the median; texts are drawn, with all their pieces), lower_quartile,
        upper_quartile, n (measurements), n_texts, n_never, n_failed (rows).
    """
    _check(measurements, *values)
    missing = [name for name in by if name not in measurements.columns]
    if missing:
        raise InputError(
            f"the measurements have no column {missing[0]!r}; they have {', '.join(measurements.columns)}"
        )
    if not by:
        raise InputError("distribution needs at least one column to group by, such as 'model'")
    rows = []
    for key, group in named(measurements).sort(*by, "text_id", "piece").group_by(*by, maintain_order=True):
        measured = group.filter(polars.col("error").is_null())
        for value in values:
            own = measured.filter(polars.col(value).is_not_null())
            numbers = own[value].to_numpy().astype(numpy.float64)
            low, high = _median_interval(numbers, own["text_id"].to_numpy(), seed)
            quartiles = numpy.percentile(numbers, [25, 50, 75]).tolist() if len(numbers) else [None] * 3
            rows.append(
                dict(zip(by, key, strict=True))
                | {
                    "value": value,
                    "median": quartiles[1],
                    "low": low,
                    "high": high,
                    "lower_quartile": quartiles[0],
                    "upper_quartile": quartiles[2],
                    "n": len(numbers),
                    "n_texts": own["text_id"].n_unique(),
                    "n_never": len(measured) - len(numbers),
                    "n_failed": len(group) - len(measured),
                }
            )
    numbers_of: dict[str, Any] = dict.fromkeys(
        ("median", "low", "high", "lower_quartile", "upper_quartile"), polars.Float64
    )
    counts_of = dict.fromkeys(("n", "n_texts", "n_never", "n_failed"), polars.Int64)
    schema: dict[str, Any] = {name: named(measurements).schema[name] for name in by} | {
        "value": polars.String
    }
    return polars.DataFrame(rows, schema=schema | numbers_of | counts_of)


def _pearson(x: numpy.ndarray, y: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    return _package("scipy.stats").pearsonr(x, y, axis=axis).statistic


def _spearman(x: numpy.ndarray, y: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
    rank = _package("scipy.stats").rankdata
    return _pearson(rank(x, axis=axis), rank(y, axis=axis), axis)


def _correlate(x: numpy.ndarray, y: numpy.ndarray, method: str, seed: int) -> dict[str, Any]:
    """rho, its bootstrap interval, p of a two-sided test of no correlation, n; null where it cannot be told."""
    stats = _package("scipy.stats")
    empty = {"rho": None, "low": None, "high": None, "p": None, "n": len(x)}
    if len(x) < FEWEST or numpy.ptp(x) == 0 or numpy.ptp(y) == 0:
        return empty
    found = (stats.spearmanr if method == "spearman" else stats.pearsonr)(x, y)
    low, high = _bootstrap([x, y], _spearman if method == "spearman" else _pearson, seed)
    return empty | {"rho": float(found.statistic), "low": low, "high": high, "p": float(found.pvalue)}


def _holm(table: polars.DataFrame) -> polars.DataFrame:
    """With p corrected for all tests of the table (Holm's step-down)."""
    corrected = numpy.full(len(table), numpy.nan)
    tested = table["p"].is_not_null().to_numpy()
    if tested.any():
        found = _package("statsmodels.stats.multitest").multipletests(
            table["p"].to_numpy()[tested], method="holm"
        )
        corrected[tested] = found[1]
    return table.with_columns(p_holm=polars.Series(corrected).fill_nan(None))


_CORRELATION: dict[str, Any] = {
    "rho": polars.Float64,
    "low": polars.Float64,
    "high": polars.Float64,
    "p": polars.Float64,
    "n": polars.Int64,
}


@dataclass(frozen=True, eq=False)
class Correlation:
    """How two models' values of the same texts go together.

    Args:
        pairs: importance, one, other, rho, low, high, p, n (texts measured by both), p_holm (over all pairs).
        matrix: importance, model, and a column per model: rho, 1 on the diagonal, null where unknown.
    """

    pairs: polars.DataFrame
    matrix: polars.DataFrame


def correlation_across_models(
    measurements: polars.DataFrame, value: str = "auc_log", method: str = "spearman", seed: int = 0
) -> Correlation:
    """Correlate the values of each two models over the texts that both have measured.

    Pieces that both measured are matched by number and averaged, so that a text counts once.

    Raises:
        InputError: a value that is no column of numbers; a method that is neither spearman nor pearson.
    """
    if method not in ("spearman", "pearson"):
        raise InputError(f"unknown method {method!r}; expected 'spearman' or 'pearson'")
    table = _usable(measurements, value)
    models = table["model"].unique().sort().to_list()
    importances = table["importance"].unique().sort().to_list()
    rows = []
    for importance in importances:
        own = table.filter(importance=importance)
        for i, one in enumerate(models):
            for other in models[i + 1 :]:
                both = (
                    own.filter(model=one)
                    .join(own.filter(model=other), on=["text_id", "piece"], suffix="_other")
                    .group_by("text_id")
                    .agg(polars.col(value, f"{value}_other").mean())
                    .sort("text_id")
                )
                found = _correlate(both[value].to_numpy(), both[f"{value}_other"].to_numpy(), method, seed)
                rows.append({"importance": importance, "one": one, "other": other, **found})
    names: dict[str, Any] = dict.fromkeys(("importance", "one", "other"), polars.String)
    pairs = _holm(polars.DataFrame(rows, schema=names | _CORRELATION))
    known = {(r["importance"], r["one"], r["other"]): r["rho"] for r in pairs.iter_rows(named=True)}
    matrix = [
        {"importance": importance, "model": one}
        | {o: 1.0 if o == one else known.get((importance, *sorted((one, o)))) for o in models}
        for importance in importances
        for one in models
    ]
    schema = {"importance": polars.String, "model": polars.String} | dict.fromkeys(models, polars.Float64)
    return Correlation(pairs, polars.DataFrame(matrix, schema=schema))


def with_frequencies(measurements: polars.DataFrame) -> polars.DataFrame:
    """Add how frequent the predicted and the actual next token are in the study's other texts.

    Counted in each model's own tokens: of each text, its longest piece. The text itself does not count, else each actual
    token would have been seen. log10((count + 1) / (tokens + 1)), no unit; null where there is no next token.
    """
    table = named(measurements)
    longest = (
        table.filter(polars.col("error").is_null(), polars.col("ids").is_not_null())
        .sort(polars.col("ids").list.len(), descending=True, maintain_order=True)
        .unique(["model", "text_id"], keep="first", maintain_order=True)
    )
    own = (
        longest.select("model", "text_id", id="ids")
        .explode("id")
        .group_by("model", "text_id", "id")
        .len("own")
    )
    every = own.group_by("model", "id").agg(every=polars.col("own").sum())
    sizes = own.group_by("model", "text_id").agg(size=polars.col("own").sum())
    sizes = sizes.with_columns(others=polars.col("size").sum().over("model") - polars.col("size"))
    table = table.join(
        sizes.select("model", "text_id", "others"), on=["model", "text_id"], how="left", maintain_order="left"
    )
    for column, name in (("top_id", "predicted_log_frequency"), ("next_id", "actual_log_frequency")):
        table = table.join(
            every, left_on=["model", column], right_on=["model", "id"], how="left", maintain_order="left"
        ).join(
            own, left_on=["model", "text_id", column], right_on=["model", "text_id", "id"], how="left",
            maintain_order="left",
        )  # fmt: skip
        count = polars.col("every").fill_null(0) - polars.col("own").fill_null(0)
        share = ((count + 1) / (polars.col("others") + 1)).log10()
        table = table.with_columns(polars.when(polars.col(column).is_not_null()).then(share).alias(name))
        table = table.drop("every", "own")
    return table.drop("others")


@dataclass(frozen=True, eq=False)
class Factors:
    """What goes with a value.

    Args:
        univariate: model, importance, factor, rho (Spearman), low, high, p, n (texts), p_holm (over all rows).
        regression: importance, term, coefficient (change of the value per standard deviation of a factor, or from the
            first model or language to this one), low, high, p, errors ("HC3", or "by text": clustered, where a text has
            several rows), n (rows), n_texts, r_squared. All terms of an importance are of one fit.
    """

    univariate: polars.DataFrame
    regression: polars.DataFrame


def factors(
    measurements: polars.DataFrame, value: str = "size_at", names: Sequence[str] = FACTORS, seed: int = 0
) -> Factors:
    """Correlate a value with each factor, then regress it on all of them, with an effect of each model and language.

    n_tokens is the length of the context in tokens; it is the position too, which is one less in every row. entropy and
    surprisal are in nats, of the full model. Frequencies: `with_frequencies`. A factor that has no value or only one is
    left out; a row that lacks one of the others is left out of the regression.
    """
    table = with_frequencies(
        _usable(measurements, value).with_columns(revision=polars.lit(None, polars.String))
    )
    rows = []
    for (model, importance), group in table.sort("model", "importance").group_by(
        *_GROUP, maintain_order=True
    ):
        for name in names:
            own = (
                group.filter(polars.col(name).is_not_null())
                .group_by("text_id")
                .agg(polars.col(value, name).cast(polars.Float64).mean())
                .sort("text_id")
            )
            found = _correlate(own[name].to_numpy(), own[value].to_numpy(), "spearman", seed)
            rows.append({"model": model, "importance": importance, "factor": name, **found})
    schema = dict.fromkeys(("model", "importance", "factor"), polars.String) | _CORRELATION
    univariate = _holm(polars.DataFrame(rows, schema=schema))
    fits = [
        _regress(group, str(importance), value, names)
        for (importance,), group in table.sort("importance", "model", "text_id", "piece").group_by(
            "importance", maintain_order=True
        )
    ]
    return Factors(univariate, polars.concat([_REGRESSION, *fits]))


_REGRESSION = polars.DataFrame(
    schema={
        "importance": polars.String, "term": polars.String, "coefficient": polars.Float64, "low": polars.Float64,
        "high": polars.Float64, "p": polars.Float64, "errors": polars.String, "n": polars.Int64,
        "n_texts": polars.Int64, "r_squared": polars.Float64,
    }
)  # fmt: skip


def _regress(group: polars.DataFrame, importance: str, value: str, names: Sequence[str]) -> polars.DataFrame:
    """Ordinary least squares; nothing where there are too few rows, or the factors determine each other."""
    names = [name for name in names if group[name].drop_nulls().n_unique() > 1]
    group = group.drop_nulls(names)
    names = [name for name in names if group[name].n_unique() > 1]
    columns = [
        (name, (x - x.mean()) / x.std(ddof=1))
        for name in names
        for x in [group[name].to_numpy().astype(numpy.float64)]
    ]
    for effect in ("model", "language"):
        for level in group[effect].drop_nulls().unique().sort().to_list()[1:]:
            columns.append(
                (f"{effect} {level}", (group[effect] == level).fill_null(False).to_numpy().astype(float))
            )
    n_texts = group["text_id"].n_unique()
    if not names or n_texts < len(columns) + 1 + FEWEST:
        return _REGRESSION
    design = numpy.column_stack([numpy.ones(len(group)), *(x for _, x in columns)])
    if numpy.linalg.matrix_rank(design) < design.shape[1]:
        return _REGRESSION
    regression = _package("statsmodels.regression.linear_model")
    model = regression.OLS(group[value].to_numpy().astype(numpy.float64), design)
    if n_texts == len(group):
        errors, fit = "HC3", model.fit(cov_type="HC3", use_t=True)
    else:
        texts = numpy.unique(group["text_id"].to_numpy(), return_inverse=True)[1]
        errors, fit = "by text", model.fit(cov_type="cluster", cov_kwds={"groups": texts}, use_t=True)
    interval = fit.conf_int(1 - LEVEL)
    return polars.DataFrame(
        [
            {
                "importance": importance,
                "term": term,
                "coefficient": fit.params[i],
                "low": interval[i, 0],
                "high": interval[i, 1],
                "p": fit.pvalues[i],
                "errors": errors,
                "n": len(group),
                "n_texts": n_texts,
                "r_squared": fit.rsquared,
            }
            for i, (term, _) in enumerate(columns, start=1)
        ],
        schema=_REGRESSION.schema,
    )


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
    shap = _package("shap")
    ensemble = _package("sklearn.ensemble")
    metrics = _package("sklearn.metrics")
    folds = _package("sklearn.model_selection").GroupKFold(FOLDS, shuffle=True, random_state=seed)
    table = with_frequencies(
        _usable(measurements, value).with_columns(revision=polars.lit(None, polars.String))
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

    for (model, importance), group in table.sort(*_PIECE).group_by(*_GROUP, maintain_order=True):
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


def _at_shared_sizes(table: polars.DataFrame) -> polars.DataFrame:
    """The rows at the sizes that at least half of the measurements of a model and importance have."""
    known = table.unique(_PIECE).group_by(*_GROUP).len("n_pieces")
    sizes = table.unique([*_PIECE, "size"]).group_by(*_GROUP, "size").len("n_traces").join(known, on=_GROUP)
    sizes = sizes.filter(2 * polars.col("n_traces") >= polars.col("n_pieces"))
    return table.join(sizes.select(*_GROUP, "size"), on=[*_GROUP, "size"], maintain_order="left")


def _traces(curves: polars.DataFrame) -> polars.DataFrame:
    """The traces of a curve at the common sizes, without those that a search added."""
    return _at_shared_sizes(named(curves).filter(polars.col("kind") == "trace", ~polars.col("refined")))


def curve_quartiles(curves: polars.DataFrame) -> polars.DataFrame:
    """TV over size.

    Args:
        curves: `Study.curves()`.

    Returns:
        model, importance, size, lower_quartile, median, upper_quartile (of the TV over traces, in [0, 1]), n (traces).
    """
    tv = polars.col("tv")
    quartiles = {
        name: tv.quantile(at, "linear")
        for name, at in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75))
    }
    return _traces(curves).group_by(*_GROUP, "size").agg(**quartiles, n=polars.len()).sort(*_GROUP, "size")


@dataclass(frozen=True, eq=False)
class ComponentShares:
    """What traces are made of. A component is a (kind, layer, head); n counts traces that hold any edge at all.

    Args:
        kinds: model, importance, size, kind, share_of_trace (of the trace's edges), share_kept (of the kind's edges), n.
        depth: model, importance, size, quarter (of the layers, 1 is the first), and the same.
        lorenz: model, importance, size, components (share of them, from the least used on), use (share of all use that is
            theirs). Use is the share of a component's own edges that the trace holds; components count alike.
        gini: model, importance, size, gini (0 all are used alike, towards 1 one alone), n.
        core: model, importance, size, n_static (components in at least `STATIC` of the traces), n_components, n.
    """

    kinds: polars.DataFrame
    depth: polars.DataFrame
    lorenz: polars.DataFrame
    gini: polars.DataFrame
    core: polars.DataFrame


def component_shares(components: polars.DataFrame) -> ComponentShares:
    """Sum up `Study.components()`: means over traces, at the sizes that at least half of the measurements share.

    Shares of edges: an attention head has many more edges than an MLP, so read share_of_trace beside share_kept.
    """
    trace = [*_PIECE, "size"]
    table = _at_shared_sizes(named(components).unique([*trace, "kind", "layer", "head"], maintain_order=True))
    held = polars.col("n_edges").sum().over(trace)
    table = table.with_columns(held=held).filter(polars.col("held") > 0)
    n_layers = polars.col("layer").max().over(*_GROUP) + 1
    table = table.with_columns(quarter=4 * polars.col("layer") // n_layers + 1)
    key = [*_GROUP, "size"]

    def shares(column: str) -> polars.DataFrame:
        own = table.group_by(*trace, column).agg(
            polars.col("n_edges", "total").sum(), polars.col("held").first()
        )
        return (
            own.group_by(*key, column)
            .agg(
                share_of_trace=(polars.col("n_edges") / polars.col("held")).mean(),
                share_kept=(polars.col("n_edges") / polars.col("total")).mean(),
                n=polars.len(),
            )
            .sort(*key, column)
        )

    use = table.with_columns(use=polars.col("n_edges") / polars.col("total")).sort(*trace, "use")
    curve = use.select(
        *trace,
        components=polars.int_range(1, polars.len() + 1).over(trace) / polars.len().over(trace),
        use=polars.col("use").cum_sum().over(trace) / polars.col("use").sum().over(trace),
    )
    lorenz = curve.group_by(*key, "components").agg(polars.col("use").mean()).sort(*key, "components")
    counts = table.unique(trace).group_by(*key).len("n")
    gini = []
    for names, own in lorenz.group_by(*key, maintain_order=True):
        x, y = (numpy.concatenate([[0.0], own[c].to_numpy()]) for c in ("components", "use"))
        gini.append(dict(zip(key, names, strict=True)) | {"gini": 1 - 2 * float(numpy.trapezoid(y, x))})
    schema = {name: table.schema[name] for name in key}
    core = (
        table.group_by(*key, "kind", "layer", "head")
        .agg(often=(polars.col("n_edges") > 0).mean())
        .group_by(*key)
        .agg(n_static=(polars.col("often") >= STATIC).sum(), n_components=polars.len())
    )
    return ComponentShares(
        shares("kind"),
        shares("quarter"),
        lorenz,
        polars.DataFrame(gini, schema=schema | {"gini": polars.Float64}).join(counts, on=key).sort(*key),
        core.join(counts, on=key).sort(*key),
    )


def resources(curves: polars.DataFrame) -> polars.DataFrame:
    """What traces of a size predict, against the operations that they need.

    Args:
        curves: `Study.curves()`; its traces at the common sizes count, not the sizes that a search added.

    Returns:
        model, importance, size, flops_share (median; of the full run's operations), top1 (share of traces whose most
        probable token is the model's own), top1_low, top1_high (Wilson; traces taken as independent), n (traces), accuracy
        (share whose most probable token is the actual next one; where several tie for the first place, as in an empty trace,
        it is wrong), excess_surprisal (mean nats of the actual next token above
        the full trace's), n_next (traces with a known next token; the two are null where there are none).
    """
    proportion = _package("statsmodels.stats.proportion")
    table = _traces(curves)
    if table.is_empty():
        return polars.DataFrame(schema=_RESOURCES)
    full = table.filter(size=1.0).select(*_PIECE, full="surprisal")
    table = table.join(full, on=_PIECE, how="left")
    best = polars.col("top_probabilities").list
    alone = (best.get(0, null_on_oob=True) > best.get(1, null_on_oob=True)).fill_null(True)
    found = (
        table.group_by(*_GROUP, "size")
        .agg(
            flops_share=polars.col("flops_share").median(),
            n_agreeing=polars.col("top1").sum(),
            n=polars.len(),
            accuracy=((polars.col("rank") == 1) & alone).mean(),
            excess_surprisal=(polars.col("surprisal") - polars.col("full")).mean(),
            n_next=polars.col("surprisal").is_not_null().sum(),
        )
        .sort(*_GROUP, "size")
    )
    low, high = proportion.proportion_confint(
        found["n_agreeing"].to_numpy(), found["n"].to_numpy(), 1 - LEVEL, "wilson"
    )
    return found.with_columns(
        top1=polars.col("n_agreeing") / polars.col("n"),
        top1_low=polars.Series(low).clip(0, 1),
        top1_high=polars.Series(high).clip(0, 1),
    ).select([polars.col(name).cast(dtype) for name, dtype in _RESOURCES.items()])


_RESOURCES = {
    "model": polars.String, "importance": polars.String, "size": polars.Float64, "flops_share": polars.Float64,
    "top1": polars.Float64, "top1_low": polars.Float64, "top1_high": polars.Float64, "n": polars.Int64,
    "accuracy": polars.Float64, "excess_surprisal": polars.Float64, "n_next": polars.Int64,
}  # fmt: skip
