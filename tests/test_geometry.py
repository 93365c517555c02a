"""States over size: hand-worked paths, CKA and information imbalance against their definitions, and a study's tables."""

from __future__ import annotations

import numpy
import polars
import pytest
from scipy.spatial.distance import cdist

from densitometer.analysis import geometry as room
from densitometer.analysis.geometry import information_imbalance, linear_cka, path_measures, state_geometry


def test_a_path_worked_out_by_hand():
    sizes = numpy.array([0.001, 0.01, 0.1, 0.2, 1.0])
    states = numpy.array([[0.0, 0], [0, 3], [4, 3], [4, 3], [0, 5]])
    found = path_measures(sizes, states, numpy.array([0.0, 5]))
    assert found["cosine"] == pytest.approx([numpy.nan, 1, 0.6, 0.6, 1], nan_ok=True)
    assert found["distance"] == pytest.approx([1, 0.4, 20**0.5 / 5, 20**0.5 / 5, 0])
    last = 20**0.5 / 5 / numpy.log10(5)
    assert found["velocity"] == pytest.approx([numpy.nan, 3 / 5, 4 / 5, 0, last], nan_ok=True)
    # a right angle; then no step, so no direction
    assert found["curvature"] == pytest.approx([numpy.nan, 90, numpy.nan, numpy.nan, numpy.nan], nan_ok=True)
    back = path_measures(sizes[:3], numpy.array([[0.0, 1], [0, 4], [0, 2]]), numpy.array([0.0, 5]))
    assert back["curvature"][1] == pytest.approx(180)


def test_steps_of_rounding_have_no_direction():
    states = numpy.array([[0.0, 0], [0, 1], [1e-4, 1 + 1e-4]])
    assert numpy.isnan(
        path_measures(numpy.array([0.1, 0.2, 0.4]), states, numpy.array([0.0, 1]))["curvature"]
    ).all()


def cka_by_features(x, y):
    """As it is written: through D x E matrices."""
    x, y = x - x.mean(0), y - y.mean(0)
    norm = numpy.linalg.norm
    return norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))


def imbalance_by_loops(x, y):
    """As it is written: rank by rank, for distances that differ."""
    near, other = cdist(x, x), cdist(y, y)
    total = 0
    for i in range(len(x)):
        neighbours = [j for j in range(len(x)) if j != i]
        nearest = min(neighbours, key=lambda j: near[i, j])
        total += 1 + sum(other[i, j] < other[i, nearest] for j in neighbours)
    return 2 / len(x) ** 2 * total


@pytest.mark.parametrize(("n", "d", "e"), [(40, 3, 5), (11, 29, 31)])
def test_cka_and_imbalance_are_those_of_their_definitions(n, d, e):
    rng = numpy.random.default_rng(n)
    x = rng.normal(size=(n, d))
    y = x @ rng.normal(size=(d, e)) + 0.5 * rng.normal(size=(n, e)) + 100
    assert linear_cka(x, y) == pytest.approx(cka_by_features(x, y), rel=1e-9)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y))
    assert information_imbalance(x, y) == pytest.approx(imbalance_by_loops(x, y))
    assert information_imbalance(y, x) == pytest.approx(imbalance_by_loops(y, x))
    rotation = numpy.linalg.qr(rng.normal(size=(d, d)))[0]
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert information_imbalance(x, 3 * x @ rotation + 7) == pytest.approx(2 / n)


def test_what_has_nothing_to_do_with_each_other():
    rng = numpy.random.default_rng(1)
    x, y = rng.normal(size=(400, 4)), rng.normal(size=(400, 6))
    assert linear_cka(x, y) < 0.05
    assert information_imbalance(x, y) == pytest.approx(1, abs=0.1)
    few, wide = rng.normal(size=(10, 300)), rng.normal(size=(10, 300))
    assert linear_cka(few, wide) > 0.5  # why the dealt control stands beside it


def test_imbalance_has_a_direction():
    rng = numpy.random.default_rng(2)
    x = rng.normal(size=(300, 2))
    part = x[:, :1]  # x tells its first coordinate; that does not tell x
    assert information_imbalance(x, part) < 0.15
    assert information_imbalance(part, x) > information_imbalance(x, part) + 0.2


def test_equal_distances_share_their_ranks():
    x = numpy.array([[0.0], [1], [2], [10]])
    y = numpy.array([[0.0], [9], [1], [3]])
    # x: 0's nearest is 1, 1's are 0 and 2, 2's is 1, 10's is 2. Their ranks in y: 3; 3 and 2; 3; 1
    assert information_imbalance(x, y) == pytest.approx(2 / 16 * (3 + 2.5 + 3 + 1))
    same = numpy.array([[5.0], [5], [5], [7]])  # a rank shared by two is 1.5
    assert information_imbalance(x, same) == pytest.approx(2 / 16 * (1.5 + 1.5 + 1.5 + 2))


@pytest.mark.parametrize("measure", [linear_cka, information_imbalance])
def test_one_state_for_all_texts_says_nothing(measure):
    rng = numpy.random.default_rng(0)
    assert measure(numpy.ones((9, 4)), rng.normal(size=(9, 4))) is None
    assert measure(rng.normal(size=(9, 4)), numpy.ones((9, 4))) is None


def states_of(n, pieces=1, sizes=(0.01, 0.1, 1.0), revision=None):
    """Paths of n texts that come closer to the model's state from size to size; empty at the smallest."""
    rng = numpy.random.default_rng(7)
    rows = []
    for i in range(n):
        for piece in range(pieces):
            full = rng.normal(size=5)
            key = {"text_id": str(i), "piece": piece, "model": "m", "revision": revision, "importance": "l1"}
            rows.append(key | {"kind": "model", "size": None, "state": full})
            noise = rng.normal(size=5)
            for size in sizes:
                state = 0 * full if size == sizes[0] else full + 0.3 * (1 - size) * noise
                rows.append(key | {"kind": "trace", "size": size, "state": state})
    schema = {"revision": polars.String, "piece": polars.Int32, "size": polars.Float64}
    return polars.DataFrame([row | {"state": row["state"].tolist()} for row in rows], schema_overrides=schema)


def test_the_tables_of_a_study():
    table = states_of(12, pieces=2, revision="step5")
    found = state_geometry(table.sample(fraction=1, shuffle=True, seed=3))
    assert set(found.paths["model"]) == {"m@step5"}
    cosine = found.paths.filter(measure="cosine").sort("size")
    assert cosine["n"].to_list() == [0, 12, 12]
    assert cosine["median"].is_null().to_list() == [True, False, False]
    assert cosine["median"][2] == pytest.approx(1)
    distances = []
    for i in range(12):
        own = table.filter(text_id=str(i))
        of_pieces = []
        for piece in (0, 1):
            full, *_ = own.filter(piece=piece, kind="model")["state"]
            state, *_ = own.filter(piece=piece, size=0.1)["state"]
            of_pieces.append(numpy.linalg.norm(state - full) / numpy.linalg.norm(full))
        distances.append(numpy.mean(of_pieces))
    row = found.paths.filter(measure="distance", size=0.1).row(0, named=True)
    assert row["median"] == pytest.approx(numpy.median(distances))
    assert row["upper_quartile"] == pytest.approx(numpy.percentile(distances, 75))
    assert row["low"] < row["median"] < row["high"]
    firsts = table.filter(piece=0).sort("text_id")
    models = numpy.array(firsts.filter(kind="model")["state"].to_list())
    traces = numpy.array(firsts.filter(size=0.1)["state"].to_list())
    empty, middle, full = found.populations.sort("size").iter_rows(named=True)
    assert empty["cka"] is None
    assert middle["n"] == 12
    assert middle["cka"] == pytest.approx(cka_by_features(traces, models))
    assert middle["imbalance_to_model"] == pytest.approx(imbalance_by_loops(traces, models))
    assert middle["imbalance_from_model"] == pytest.approx(imbalance_by_loops(models, traces))
    assert full["cka"] == pytest.approx(1)
    assert full["imbalance_to_model"] == pytest.approx(2 / 12)
    assert full["cka_dealt"] < 0.8
    assert full["imbalance_dealt"] > 0.5


def test_few_texts_and_many(monkeypatch):
    assert state_geometry(states_of(7)).populations["cka"].null_count() == 3
    assert state_geometry(states_of(7)).paths.filter(size=1.0, measure="cosine")["low"].to_list() == [None]
    monkeypatch.setattr(room, "MOST_TEXTS", 9)
    assert state_geometry(states_of(12)).populations["n"].to_list() == [9, 9, 9]
    assert state_geometry(states_of(12).clear()).paths.is_empty()
