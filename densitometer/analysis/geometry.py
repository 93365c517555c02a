"""Where the last token's state goes as traces grow: what the unembedding reads, of each trace and of the model.

The state is taken after the final norm (`models/unembedding.py`): what the prediction is made of, nothing else. h(s) is the state
of the trace of size s, h the model's own, n texts are a *population*.

Of each text, along its path of sizes s_1 < s_2 < ...

    cosine      <h(s), h> / |h(s)| |h|
    distance    |h(s) - h| / |h|
    velocity    |h(s_i) - h(s_i-1)| / |h| / (log10 s_i - log10 s_i-1): model norms per decade of size
    curvature   the angle between h(s_i) - h(s_i-1) and h(s_i+1) - h(s_i), degrees: 0 goes straight on, 180 turns back

Of the population of states at a size against that of the models' own states

    cka         linear centred kernel alignment, |Y'X|^2 / |X'X| |Y'Y| (Frobenius norms) of centred X (n, D) and Y (n, D): 1 where
                one is the other rotated and scaled. Kornblith et al. 2019, arXiv 1905.00414
    imbalance   information imbalance, 2 / n^2 times the sum over texts of the rank that the nearest neighbour in one space has
                among the neighbours in the other: about 0 where the first space tells who is near whom in the second, about 1
                where it does not. Glielmo et al. 2022, PNAS Nexus 1(2), pgac039. It has a direction

Both depend on n and on the hidden size: of few texts in many dimensions linear CKA is far above 0 by itself. So each stands
beside the same number with the texts dealt out anew, which is what nothing looks like at this n. Neither has an interval: a
resample holds texts twice, which are each other's nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from .statistics import FEWEST, GROUP, PIECE, bootstrap, named, package
from .traces import at_shared_sizes

STILL = 1e-3  # of the model's norm; a step below is one of rounding, and has no direction
DEALS = 5  # of the texts, for what nothing looks like
MOST_TEXTS = 500  # of a population; distances are between all pairs
MEASURES = ("cosine", "distance", "velocity", "curvature")


@dataclass(frozen=True, eq=False)
class Geometry:
    """The last token's states over size, at the sizes that at least half of the measurements share.

    Args:
        paths: model, importance, measure (of `MEASURES`), size, median, low, high (of the median; texts are drawn, each the mean
            of its pieces), lower_quartile, upper_quartile (over texts), n (texts for which the measure is defined).
        populations: model, importance, size, cka, cka_dealt, imbalance_to_model (from the traces' states to the model's),
            imbalance_from_model, imbalance_dealt, n (texts, of each its first piece).
    """

    paths: polars.DataFrame
    populations: polars.DataFrame


def state_geometry(states: polars.DataFrame, seed: int = 0) -> Geometry:
    """Sum up `Study.states()`.

    A state without length has no cosine; where all states of a population are one, as those of empty traces, it has neither
    cka nor imbalance: null.
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
    """A piece's states: sizes (k,) rising, states (k, D), the model's own (D,)."""

    text_id: str
    first: bool  # of its text
    sizes: numpy.ndarray
    states: numpy.ndarray
    full: numpy.ndarray


def _texts(states: polars.DataFrame) -> Iterator[tuple[dict[str, str], list[_Piece]]]:
    """The pieces of each model and importance."""
    table = named(states)
    traces = at_shared_sizes(table.filter(polars.col("kind") == "trace")).sort(*PIECE, "size")
    models = {row[:4]: row[4] for row in table.filter(kind="model").select(*PIECE, "state").iter_rows()}
    for group, own in traces.group_by(*GROUP, maintain_order=True):
        pieces: list[_Piece] = []
        for (text_id, piece), rows in own.group_by("text_id", "piece", maintain_order=True):
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
    """Measures of one path, (k,) float64 each, NaN where there is none (module docstring).

    Args:
        sizes: (k,), rising, above 0.
        states: (k, D).
        full: (D,), the model's own state.
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
    rng = numpy.random.default_rng(seed)
    firsts = [piece for piece in pieces if piece.first]
    if len(firsts) > MOST_TEXTS:
        firsts = [firsts[i] for i in sorted(rng.choice(len(firsts), MOST_TEXTS, replace=False))]
    for size in sorted({float(size) for piece in firsts for size in piece.sizes}):
        own = [(piece.states[piece.sizes == size][0], piece.full) for piece in firsts if size in piece.sizes]
        traces, models = (numpy.stack(column) for column in zip(*own, strict=True))
        row: dict[str, Any] = {"size": size, "n": len(own)}
        if len(own) >= FEWEST:
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
    """Linear centred kernel alignment of n pairs, x (n, D) and y (n, E), in [0, 1].

    None where all rows of x, or all rows of y, are the same.

    |Y'X|^2 / |X'X| |Y'Y| by its Gram matrices XX' and YY', which are small where n is (Kornblith et al. 2019).
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
    """Information imbalance from x (n, D) to y (n, E), in [2 / n, 2].

    None where all rows of x, or all rows of y, are the same.

    2 / n^2 times the sum of the ranks, among the neighbours in y, of each row's nearest neighbour in x; Euclidean distances
    (Glielmo et al. 2022). Equal distances share the mean of their ranks; several nearest neighbours count by their mean.
    """
    if min(numpy.ptp(values, axis=0).max() for values in (x, y)) == 0:
        return None
    near, other = _distances(x), _distances(y)
    nearest = near == near.min(axis=1, keepdims=True)
    ranks = package("scipy.stats").rankdata(other, axis=1)
    return 2 / len(x) * float(numpy.mean((ranks * nearest).sum(1) / nearest.sum(1)))


def _distances(values: numpy.ndarray) -> numpy.ndarray:
    """Squared distances (n, n) of the rows, in parts of their mean.

    Distances that differ by rounding alone are made equal. The distance of a row to itself is
    infinite.
    """
    values = values - values.mean(0)
    squares = (values**2).sum(1)
    found = (squares[:, None] + squares - 2 * values @ values.T).clip(0)
    found = numpy.round(found / found.mean(), 9)
    numpy.fill_diagonal(found, numpy.inf)
    return found
