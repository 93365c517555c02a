"""Geometry of the last token's final state as traces grow, compared with the full model's state.

The state is the input of the unembedding, after the final norm (`models/unembedding.py`). The
prediction depends on nothing else. h(s) is the state of the trace of size s, and h that of the full
model. The states of n texts are a *population*.

Measures of one text, along its path of sizes s_1 < s_2 < ...

    cosine      <h(s), h> / |h(s)| |h|
    distance    |h(s) - h| / |h|
    velocity    |h(s_i) - h(s_i-1)| / |h| / (log10 s_i - log10 s_i-1), in norms of h per decade
    curvature   angle between h(s_i) - h(s_i-1) and h(s_i+1) - h(s_i), in degrees: 0 is straight on,
                180 is straight back

Measures of the population of states at one size, against the population of full models' states

    cka         linear centred kernel alignment, |Y'X|^2 / |X'X| |Y'Y| (Frobenius norms) of centred
                X (n, D) and Y (n, D). It is 1 if one is the other rotated and scaled. Kornblith et
                al. 2019, arXiv 1905.00414
    imbalance   information imbalance: 2 / n^2 times the sum over texts of the rank, among distances
                in one space, of the nearest neighbour in the other. It is about 0 if neighbours in
                the first space are neighbours in the second, about 1 if the two are unrelated, and
                has a direction. Glielmo et al. 2022, PNAS Nexus 1(2), pgac039

Both depend on n and on the hidden size: with few texts in many dimensions, linear CKA is far above
0 even for unrelated states. So each is reported together with its value for shuffled texts
(`_dealt`), which is its chance level at this n. Neither has an interval, because a bootstrap
resample contains texts twice, which are then each other's nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from .statistics import FEWEST, GROUP, PIECE, bootstrap, named, package
from .traces import at_shared_sizes

# A step shorter than this share of |h| may be rounding alone, and its direction means nothing.
STILL = 1e-3
# Shuffles of the texts from which the chance level is averaged.
DEALS = 5
# Most texts of a population, because distances are computed between all pairs.
MOST_TEXTS = 500
MEASURES = ("cosine", "distance", "velocity", "curvature")


@dataclass(frozen=True, eq=False)
class Geometry:
    """Measures of the last token's state over trace size.

    Sizes are those that at least half of the measurements share.

    Args:
        paths: a row per model, importance, measure (one of `MEASURES`) and size. `median` has the
            interval low, high, from a bootstrap over texts. Then lower_quartile and upper_quartile
            over texts, and n, the number of texts for which the measure is defined. A text counts
            with the mean of its pieces.
        populations: a row per model, importance and size, with cka, imbalance_to_model (from the
            traces' states to the model's), imbalance_from_model, and the chance levels cka_dealt
            and imbalance_dealt. n counts texts; each is represented by its first piece.
    """

    paths: polars.DataFrame
    populations: polars.DataFrame


def state_geometry(states: polars.DataFrame, seed: int = 0) -> Geometry:
    """Measure paths and populations of the states of a study.

    A state of length 0 has no cosine. If all states of a population are equal, as those of empty
    traces are, cka and imbalance are null.

    Args:
        states: `Study.states()`.
        seed: seed of bootstraps and shuffles.
    """
    path_rows: list[dict[str, Any]] = []
    population_rows: list[dict[str, Any]] = []
    for group, texts in _texts(states):
        path_rows += [group | row for row in _paths(texts, seed)]
        population_rows += [group | row for row in _populations(texts, seed)]
    return Geometry(
        polars.DataFrame(path_rows, schema=_PATHS).sort(*GROUP, "measure", "size"),
        polars.DataFrame(population_rows, schema=_POPULATIONS).sort(*GROUP, "size"),
    )


_PATHS = {
    "model": polars.String, "importance": polars.String, "measure": polars.String, "size": polars.Float64,
    "median": polars.Float64, "low": polars.Float64, "high": polars.Float64, "lower_quartile": polars.Float64,
    "upper_quartile": polars.Float64, "n": polars.Int64,
}  # fmt: skip
_POPULATIONS = {
    "model": polars.String, "importance": polars.String, "size": polars.Float64, "cka": polars.Float64,
    "cka_dealt": polars.Float64, "imbalance_to_model": polars.Float64, "imbalance_from_model": polars.Float64,
    "imbalance_dealt": polars.Float64, "n": polars.Int64,
}  # fmt: skip


@dataclass(frozen=True)
class _Piece:
    """States of one piece.

    Args:
        text_id: id of its text.
        first: whether it is the first piece of its text.
        sizes: (k,) increasing.
        states: (k, D), one per size.
        full: (D,), the full model's state.
    """

    text_id: str
    first: bool
    sizes: numpy.ndarray
    states: numpy.ndarray
    full: numpy.ndarray


def _texts(states: polars.DataFrame) -> Iterator[tuple[dict[str, str], list[_Piece]]]:
    """Group states by model and importance, and yield the pieces of each group."""
    table = named(states)
    traces = at_shared_sizes(table.filter(polars.col("kind") == "trace")).sort(*PIECE, "size")
    models = {row[:4]: row[4] for row in table.filter(kind="model").select(*PIECE, "state").iter_rows()}
    for group, group_traces in traces.group_by(*GROUP, maintain_order=True):
        pieces: list[_Piece] = []
        for (text_id, piece), rows in group_traces.group_by("text_id", "piece", maintain_order=True):
            pieces.append(
                _Piece(
                    str(text_id),
                    first=not pieces or pieces[-1].text_id != text_id,
                    sizes=rows["size"].to_numpy(),
                    states=numpy.array(rows["state"].to_list(), dtype=numpy.float64),
                    full=numpy.array(models[(*group, text_id, piece)], dtype=numpy.float64),
                )
            )
        yield dict(zip(GROUP, map(str, group), strict=True)), pieces


def _paths(pieces: list[_Piece], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `Geometry.paths` for one model and importance."""
    measured = polars.concat(
        [
            polars.DataFrame({"text_id": piece.text_id, "size": piece.sizes} | path_measures(piece.sizes, piece.states, piece.full))
            for piece in pieces
        ]
    )  # fmt: skip
    by_text = measured.group_by("text_id", "size", maintain_order=True).agg(
        polars.col(MEASURES).fill_nan(None).mean()
    )
    for (size,), rows in by_text.sort("size", "text_id").group_by("size", maintain_order=True):
        for measure in MEASURES:
            values = rows[measure].drop_nulls().to_numpy()
            quartiles = numpy.percentile(values, [25, 50, 75]).tolist() if len(values) else [None] * 3
            low, high = bootstrap([values], numpy.median, seed)
            yield {
                "measure": measure, "size": size, "median": quartiles[1], "low": low, "high": high,
                "lower_quartile": quartiles[0], "upper_quartile": quartiles[2], "n": len(values),
            }  # fmt: skip


def path_measures(
    sizes: numpy.ndarray, states: numpy.ndarray, full: numpy.ndarray
) -> dict[str, numpy.ndarray]:
    """Measures of one path, each (k,) float64. NaN where a measure is undefined.

    The formulas are in the module's docstring.

    Args:
        sizes: (k,), increasing, above 0.
        states: (k, D), one per size.
        full: (D,), the full model's state.
    """
    norm = numpy.linalg.norm(full)
    steps = numpy.diff(states, axis=0)  # (k - 1, D)
    lengths = numpy.linalg.norm(steps, axis=-1)
    velocity, curvature = numpy.full(len(sizes), numpy.nan), numpy.full(len(sizes), numpy.nan)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        velocity[1:] = lengths / norm / numpy.diff(numpy.log10(sizes))
        cosine = states @ full / (numpy.linalg.norm(states, axis=-1) * norm)
        turn = (steps[1:] * steps[:-1]).sum(-1) / (lengths[1:] * lengths[:-1])
        moving = lengths > STILL * norm
        curvature[1:-1] = numpy.where(
            moving[1:] & moving[:-1], numpy.degrees(numpy.arccos(turn.clip(-1, 1))), numpy.nan
        )
        distance = numpy.linalg.norm(states - full, axis=-1) / norm
    return {"cosine": cosine, "distance": distance, "velocity": velocity, "curvature": curvature}


def _populations(pieces: list[_Piece], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `Geometry.populations` for one model and importance."""
    rng = numpy.random.default_rng(seed)
    firsts = [piece for piece in pieces if piece.first]
    if len(firsts) > MOST_TEXTS:
        firsts = [firsts[i] for i in sorted(rng.choice(len(firsts), MOST_TEXTS, replace=False))]
    for size in sorted({float(size) for piece in firsts for size in piece.sizes}):
        pairs = [(p.states[p.sizes == size][0], p.full) for p in firsts if size in p.sizes]
        traces, models = (numpy.stack(column) for column in zip(*pairs, strict=True))
        row: dict[str, Any] = {"size": size, "n": len(pairs)}
        if len(pairs) >= FEWEST:
            dealt = [models[rng.permutation(len(models))] for _ in range(DEALS)]
            row |= {
                "cka": linear_cka(traces, models),
                "cka_dealt": _mean([linear_cka(traces, other) for other in dealt]),
                "imbalance_to_model": information_imbalance(traces, models),
                "imbalance_from_model": information_imbalance(models, traces),
                "imbalance_dealt": _mean([information_imbalance(traces, other) for other in dealt]),
            }
        yield row


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(numpy.mean(known)) if known else None


def linear_cka(x: numpy.ndarray, y: numpy.ndarray) -> float | None:
    """Linear centred kernel alignment of n pairs of vectors, in [0, 1].

    It is computed from the Gram matrices XX' and YY' (Kornblith et al. 2019), which are (n, n) and
    so are small for few texts. None if all rows of x, or all rows of y, are equal.

    Args:
        x: (n, D).
        y: (n, E).
    """
    grams = []
    for values in (x, y):
        if numpy.ptp(values, axis=0).max() == 0:
            return None
        centred = values - values.mean(0)
        gram = centred @ centred.T
        grams.append(gram / numpy.linalg.norm(gram))
    return float((grams[0] * grams[1]).sum())


def information_imbalance(x: numpy.ndarray, y: numpy.ndarray) -> float | None:
    """Information imbalance from x to y, in [2 / n, 2].

    It is 2 / n^2 times the sum over rows of the rank in y of the row's nearest neighbour in x, by
    Euclidean distance (Glielmo et al. 2022). Equal distances share the mean of their ranks; several
    nearest neighbours count by their mean. None if all rows of x, or all rows of y, are equal.

    Args:
        x: (n, D).
        y: (n, E).
    """
    if min(numpy.ptp(values, axis=0).max() for values in (x, y)) == 0:
        return None
    near, other = _distances(x), _distances(y)
    nearest = near == near.min(axis=1, keepdims=True)
    ranks = package("scipy.stats").rankdata(other, axis=1)
    return 2 / len(x) * float(numpy.mean((ranks * nearest).sum(1) / nearest.sum(1)))


def _distances(values: numpy.ndarray) -> numpy.ndarray:
    """Squared distances between rows, (n, n), divided by their mean.

    They are rounded, so that distances that differ by rounding alone are tied. The distance of a
    row to itself is infinite.
    """
    values = values - values.mean(0)
    squares = (values**2).sum(1)
    distances = (squares[:, None] + squares - 2 * values @ values.T).clip(0)
    distances = numpy.round(distances / distances.mean(), 9)
    numpy.fill_diagonal(distances, numpy.inf)
    return distances
