"""The steps of the calibration are what they say, by intervention, and every score reads them as documented."""

from __future__ import annotations

import numpy
import pytest
from oracles import mask_of

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.graph.masked_runs import masked_logits
from densitometer.measuring.calibration import calibrate_step, calibration_steps

STEPS = {step.name: step for step in calibration_steps()}

# What each score asks for beyond the minimal set is known too: it is why there are several.
FOOLED = {("distractor", name) for name in ("l1", "l2", "cosine", "projection", "proximity", "bound")}


@pytest.mark.parametrize("name", sorted(STEPS))
def test_the_minimal_set_is_enough_and_every_edge_of_it_is_needed(name):
    step = STEPS[name]
    graph = dm.build_graph(step.model, step.ids)
    needed = mask_of(graph, step.needed)
    assert needed.sum() == len(step.needed)
    without = numpy.repeat(numpy.stack([needed, graph.reachable]), len(step.needed), axis=0)
    for row, edge in zip(without, numpy.tile(numpy.flatnonzero(needed), 2), strict=True):
        row[edge] = False
    tv = total_variation(graph.forward.logits, masked_logits(graph.forward, [needed, *without]))
    assert float(tv[0]) <= 0.01
    assert float(tv[1:].min()) > 0.1


@pytest.mark.parametrize("importance", ["fisher", "l1"])
@pytest.mark.parametrize("name", sorted(STEPS))
def test_scores_ask_for_the_minimal_set(name, importance):
    row = calibrate_step(STEPS[name], importance)
    if (name, importance) in FOOLED:
        assert row.ratio > 3
    elif name == "induction":
        assert row.measured_edges <= 20  # a saturated head's key scores low by slope
    else:
        assert row.ratio == 1


@pytest.mark.parametrize("step", sorted(STEPS))
def test_a_search_asks_for_no_more_than_the_order_that_it_starts_from(step):
    found, start = (calibrate_step(STEPS[step], name) for name in ("best", "fisher"))
    assert found.measured_edges <= start.measured_edges


def test_the_table_has_a_row_per_step_and_score():
    table = dm.calibrate(["fisher", "random"])
    assert table.columns == ["step", "importance", "expected_edges", "measured_edges", "ratio", "n_edges"]
    assert table.height == 2 * len(STEPS)
    random = table.filter(importance="random")
    assert (random["ratio"] > 3).all()
    with pytest.raises(ValueError, match="'noise'"):
        dm.calibrate(["noise"])
    with pytest.raises(ValueError, match="got none"):
        dm.calibrate([])
