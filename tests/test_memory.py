"""Memory over many measurements: what one leaves behind would sum up in a study of thousands."""

from __future__ import annotations

import gc
import weakref

import pytest
from conftest import IDS

import densitometer as dm
from densitometer.measuring.planning import resident_bytes

MEBIBYTE = 2**20


def measure(model, number, **options):
    """A measurement of a text of its own, with gradients."""
    ids = [3 + (7 * number + 11 * place) % 90 for place in range(7)]
    dm.measure(model, ids, importance="fisher", sizes=[0.05, 0.3, 1.0], **options)


@pytest.mark.slow
@pytest.mark.skipif(resident_bytes() is None, reason="this system does not tell what memory a process holds")
def test_two_hundred_measurements_leave_no_memory_behind(make_model):
    """Measured: 0.6 MiB; with the graph of each kept, 2.7 MiB after 60."""
    model = make_model("llama")
    held = []
    for number in range(250):
        measure(model, number)
        if number >= 49:  # after caches are filled and the allocator has found its size
            gc.collect()
            held.append(resident_bytes()[0])
    assert len(held) == 201
    assert held[-1] - held[0] < 3 * MEBIBYTE


def test_nothing_keeps_a_graph_or_its_pass_alive(make_model):
    model = make_model("llama")
    graph = dm.build_graph(model, IDS, importance="fisher")
    dm.reconstruct(model, graph, [graph.trace(size=0.4), graph.random_trace(0.4)])
    kept = [weakref.ref(graph), weakref.ref(graph.forward)]
    del graph
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_the_number_of_objects_does_not_grow_with_measurements(make_model):
    model = make_model("llama")
    counts = []
    for number in range(7):
        measure(model, number, baselines=())
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[-1] - counts[2] < 4 * 20  # fewer than 20 a measurement; one that keeps its graph leaves 85
