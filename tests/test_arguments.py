"""Wrong arguments: one clear message that is a ValueError or a TypeError, wherever they come in."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import IDS
from snippets import registries_kept

import densitometer as dm
from densitometer._util import arguments

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("llama")


@pytest.fixture(scope="module")
def graph(model):
    return dm.build_graph(model, IDS)


def refused(call, *words: str) -> None:
    with pytest.raises(dm.DensitometerError) as caught:
        call()
    assert isinstance(caught.value, ValueError | TypeError)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("seed", [-1, "a", 1.5, 2**70, True, None])
def test_a_seed_is_a_number_that_every_generator_takes(model, graph, seed):
    refused(lambda: dm.measure(model, IDS, seed=seed), "seed", repr(seed))
    refused(lambda: dm.measure_positions(model, IDS, importance="random", seed=seed), "seed")
    refused(lambda: dm.build_graph(model, IDS, importance="fisher", seed=seed), "seed")
    refused(lambda: graph.random_trace(0.5, seed=seed), "seed")
    refused(lambda: dm.calibrate("random", seed=seed), "seed")


def test_numbers_of_numpy_are_numbers(model, tmp_path):
    sizes, eps = numpy.array([0.3, 1.0]), numpy.float32(0.25)
    ours = dm.measure(
        model, IDS, importance="fisher", sizes=sizes, seed=numpy.int64(2), position=numpy.int64(3), eps=eps
    )
    plain = dm.measure(model, IDS, importance="fisher", sizes=[0.3, 1.0], seed=2, position=3, eps=0.25)
    assert dm.difference(ours, plain).same_numbers
    ours.save(tmp_path / "m.json")
    assert dm.load_measurement(tmp_path / "m.json").provenance["seed"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"importance": None}, {"importance": 3}, {"importance": [["l1"]]}, {"sizes": 0.1}, {"sizes": "abc"}, {"sizes": ["a"]},
        {"sizes": [None, 0.1]}, {"sizes": [True]}, {"baselines": None}, {"baselines": 3}, {"eps": True}, {"eps": 2},
        {"position": 1.5}, {"position": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_measure_is_asked_for(model, wrong):
    refused(lambda: dm.measure(model, IDS, **wrong), next(iter(wrong))[:-1])


def test_what_a_graph_is_asked_for(model, graph):
    refused(lambda: dm.build_graph(model, IDS, importance=["l1"]), "l1", "string")
    refused(lambda: graph.traces(0.5), "sizes must be a list", "0.5")
    refused(lambda: graph.traces(None), "sizes must be a list")


def test_what_is_run(model, graph):
    trace = graph.trace(size=0.5)
    refused(lambda: dm.reconstruct("demo", graph, [trace]), "load_model", "str")
    refused(lambda: dm.reconstruct(model, None, []), "build_graph", "NoneType")
    refused(lambda: dm.reconstruct(model, graph, None), "traces must be a list")
    refused(lambda: dm.reconstruct(model, graph, ["a"]), "str")
    refused(lambda: dm.reconstruct(model, graph, [trace.mask]), "graph.trace(mask=...)")


def test_a_path_is_a_path(model):
    measured = dm.measure(model, IDS, sizes=[1.0], baselines=())
    refused(lambda: measured.save(None), "expected a path", "None")
    refused(lambda: measured.save(3.5), "3.5")
    refused(lambda: dm.load_measurement(None), "expected a path")
    refused(lambda: dm.open_study(None), "expected a path")
    refused(lambda: dm.load_means(None), "expected a path")


def test_what_is_registered_has_a_name_and_can_be_called():
    with registries_kept():
        for register in (dm.register_importance, dm.register_metric):
            refused(lambda register=register: register("zzz", 3), "must be a function", "int")
            refused(lambda register=register: register(3, len), "string", "3")
            refused(lambda register=register: register("", len), "not empty")


def test_a_goal_is_named_as_it_was_given(model):
    measured = dm.measure(model, IDS, sizes=[0.3, 1.0], baselines=())
    refused(lambda: measured.minimal_trace(tv=2), "tv is a total variation")
    refused(lambda: measured.minimal_trace(kl=True), "kl is a divergence")


def test_a_model_without_a_name_is_none():
    refused(lambda: dm.load_model(""), "name of the model is empty")


def test_a_number_that_is_none_and_a_choice_of_none_or_two():
    refused(lambda: arguments.checked_number("x", float("nan")), "NaN")
    refused(lambda: arguments.only_one({"a": None, "b": None}), "exactly one of a, b; got none")
    refused(lambda: arguments.only_one({"a": 1, "b": 2}), "got a, b")
    assert arguments.only_one({"a": 0, "b": None}) == {"a": 0}
    assert arguments.checked_count(torch.tensor(3), 3) == 3
