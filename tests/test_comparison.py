"""One input's trace on another: the alignment, the curves and the overlaps, each against a plain loop."""

from __future__ import annotations

import itertools
import math

import numpy
import polars
import pytest
from conftest import IDS
from hypothesis import given, settings, strategies

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.errors import ArgumentTypeError, InputError
from densitometer.measuring.density import DEFAULT_SIZES
from densitometer.measuring.transfer import counterparts, mapped_order, overlap, rank_biased_overlap, transfer

pytestmark = pytest.mark.usefixtures("rows_skipped")

OTHER = [9, 14, 63, 2, 77, 35, 50]  # as many tokens as IDS
SHORT = [63, 2, 77, 35, 5]  # two fewer
SIZES = [0.01, 0.05, 0.2, 0.5, 1.0]
TEXT = "The old captain looked at the sea and said that the white whale"
LIKE = "The young captain looked at the ship and said that the black whale"
UNLIKE = "In 1842 a treaty was signed by both of the states, which"


def aligned_rows(graph) -> list[tuple]:
    """(layer, kind, head, source, target) of every edge, tokens counted back from the last one."""
    last = graph.position
    columns = graph.edges().select("layer", "kind", "head", "source", "target")
    return [(layer, kind, head, last - s, last - t) for layer, kind, head, s, t in columns.iter_rows()]


def aligned_set(trace) -> set[tuple]:
    return {row for row, on in zip(aligned_rows(trace.graph), trace.mask, strict=True) if on}


def loop_order(first, second) -> list[int]:
    """The first graph's best-first order as flat indices of the second's, one edge at a time."""
    flat_of = dict(zip(aligned_rows(second), second.index.tolist(), strict=True))
    row_of = dict(zip(first.index.tolist(), aligned_rows(first), strict=True))
    return [flat_of[row_of[edge]] for edge in first.order.tolist() if row_of[edge] in flat_of]


def loop_rbo(first: list, second: list, p: float) -> float:
    """RBO_ext as it is written, sets counted anew at every depth."""
    shorter, longer = sorted((first, second), key=len)
    s, l = len(shorter), len(longer)  # noqa: E741
    x = {d: len(set(shorter[:d]) & set(longer[:d])) for d in range(1, l + 1)}
    body = sum(x[d] / d * p**d for d in range(1, l + 1))
    body += sum(x[s] * (d - s) / (s * d) * p**d for d in range(s + 1, l + 1))
    return (1 - p) / p * body + ((x[l] - x[s]) / l + x[s] / s) * p**l


def naive_jaccard(first: set, second: set) -> float | None:
    return len(first & second) / len(first | second) if first | second else None


def curve_of(result, kind: str) -> polars.DataFrame:
    return result.curve.filter(polars.col("kind") == kind).drop("kind")


@pytest.mark.parametrize("name", ["llama", "neox", "mistral-window"])
@pytest.mark.parametrize(("a", "b"), [(IDS, OTHER), (IDS, SHORT), (SHORT, IDS)])
def test_edges_are_aligned_as_a_plain_loop_aligns_rows(make_model, name, a, b):
    model = make_model(name)
    first, second = dm.build_graph(model, a), dm.build_graph(model, b)
    assert mapped_order(first, second).tolist() == loop_order(first, second)


def test_edges_that_the_others_masks_do_not_allow_are_dropped(make_model):
    # as with attention in chunks, where what a token sees depends on its place from the start
    model = make_model("llama")
    first, second = dm.build_graph(model, OTHER), dm.build_graph(model, IDS)
    attention = numpy.flatnonzero(
        second.space.columns(numpy.arange(second.space.size))["kind"] == "attention"
    )
    allowed = second.reachable.copy()
    allowed[attention[::3]] = False
    second.__dict__["reachable"] = allowed
    order = mapped_order(first, second)
    assert order.tolist() == loop_order(first, second)
    assert order.size == allowed.sum() < first.n_edges


def test_the_same_length_is_aligned_edge_by_edge_and_missing_tokens_are_marked(make_model):
    model = make_model("llama")
    long, short = dm.build_graph(model, IDS).space, dm.build_graph(model, SHORT).space
    assert counterparts(long, long).tolist() == list(range(long.size))
    there, back = counterparts(short, long), counterparts(long, short)
    assert there.min() >= 0
    assert back[there].tolist() == list(range(short.size))
    assert (back >= 0).sum() == short.size < long.size


@pytest.mark.parametrize("position", [-1, 4])
def test_a_text_transfers_onto_itself_as_its_own_curve(make_model, position):
    found = transfer(make_model("llama"), IDS, IDS, position=position)
    assert curve_of(found, "transferred").equals(curve_of(found, "own"))
    if found.auc_log_random > found.auc_log_own:
        assert found.efficiency == 1.0
    assert found.n_counterparts == found.n_edges


def test_own_and_random_are_what_measure_measures(demo):
    found = transfer(demo, LIKE, TEXT, seed=5)
    measured = dm.measure(demo, TEXT, importance="l1", sizes=DEFAULT_SIZES, seed=5)
    assert found.auc_log_own == pytest.approx(measured.density["l1"].auc_log, abs=1e-5)
    for kind, name in (("own", "trace"), ("random", "random")):
        theirs = measured.curve.filter(polars.col("kind") == name)
        ours = curve_of(found, kind)
        assert ours["size"].to_list() == list(DEFAULT_SIZES)
        assert ours["n_edges"].to_list() == theirs["n_edges"].to_list()
        assert ours["tv"].to_list() == pytest.approx(theirs["tv"].to_list(), abs=1e-4)
        assert ours["kl"].to_list() == pytest.approx(theirs["kl"].to_list(), abs=1e-3)
    areas = found.auc_log_random - found.auc_log_transferred, found.auc_log_random - found.auc_log_own
    assert found.efficiency == areas[0] / areas[1]


@pytest.mark.parametrize(("a", "b"), [(OTHER, IDS), (SHORT, IDS), (IDS, SHORT)])
def test_the_transferred_curve_is_that_of_the_mapped_traces_run_one_by_one(make_model, a, b):
    model = make_model("llama")
    first, second = dm.build_graph(model, a), dm.build_graph(model, b)
    order = loop_order(first, second)
    found = transfer(model, a, b, sizes=SIZES)
    curve = curve_of(found, "transferred")
    for size, n_edges, tv in curve.select("size", "n_edges", "tv").iter_rows():
        kept = order[: math.floor(size * second.n_edges)]
        flat = numpy.zeros(second.space.size, dtype=bool)
        for edge in kept:
            flat[edge] = True
        logits = dm.reconstruct(model, second, [dm.Trace(second, flat)])
        assert n_edges == len(kept)
        assert tv == pytest.approx(float(total_variation(second.forward.logits, logits)), abs=1e-5)
    assert curve["n_edges"].to_list() == curve_of(found, "random")["n_edges"].to_list()
    assert found.n_counterparts == len(order)
    assert found.n_tokens == (len(a), len(b))


def test_a_shorter_input_has_no_edge_for_the_first_tokens_and_a_longer_one_has_all(make_model):
    model = make_model("llama")
    last = {}
    for name, a, b in (("shorter", SHORT, IDS), ("longer", IDS, SHORT)):
        found = transfer(model, a, b, sizes=[0.3])  # 1 is added
        last[name] = found, curve_of(found, "transferred").row(-1, named=True)
        assert curve_of(found, "own")["size"].to_list() == [0.3, 1.0]
        assert curve_of(found, "own")["tv"][-1] < 1e-4
    found, row = last["shorter"]
    assert row["n_edges"] == found.n_counterparts < found.n_edges
    assert row["tv"] > 1e-3
    found, row = last["longer"]
    assert row["n_edges"] == found.n_counterparts == found.n_edges
    assert row["tv"] < 1e-4


def test_a_trained_model_is_served_better_by_a_like_text_than_by_chance(demo):
    like, unlike = transfer(demo, LIKE, TEXT), transfer(demo, UNLIKE, TEXT)
    assert 0 < like.efficiency <= 1.2
    assert unlike.efficiency < like.efficiency


def test_efficiency_is_none_where_own_traces_are_no_better_than_random(make_model):
    found = transfer(make_model("llama"), IDS, OTHER, importance="random", sizes=[1.0], seed=3)
    assert found.auc_log_random == found.auc_log_own
    assert found.efficiency is None


def test_graphs_built_before_are_used_as_they_are(make_model):
    model = make_model("neox")
    graphs = [dm.build_graph(model, ids, importance="l2") for ids in (SHORT, IDS)]
    given_graphs = transfer(model, *graphs, importance="l2", sizes=SIZES, attention="frozen")
    given_ids = transfer(model, SHORT, IDS, importance="l2", sizes=SIZES, attention="frozen")
    assert given_graphs.curve.equals(given_ids.curve)
    assert given_graphs.importance == "l2"


def test_transfer_refuses_what_it_cannot_use(make_model):
    model = make_model("llama")
    other = dm.build_graph(make_model("llama", seed=1), IDS)
    graph = dm.build_graph(model, IDS)
    with pytest.raises(InputError, match="trace_of is a graph of another model"):
        transfer(model, other, IDS)
    with pytest.raises(ValueError, match="on is a graph of another model"):
        transfer(model, IDS, other)
    with pytest.raises(InputError, match="is a graph by 'l1', but importance is 'l2'"):
        transfer(model, graph, IDS, importance="l2")
    with pytest.raises(InputError, match="5 and 7 tokens"):
        transfer(model, SHORT, IDS, align="same")
    with pytest.raises(InputError, match="unknown align"):
        transfer(model, IDS, IDS, align="first")
    with pytest.raises(InputError, match="unknown attention"):
        transfer(model, IDS, IDS, attention="none")
    with pytest.raises(InputError, match="sizes are shares"):
        transfer(model, IDS, IDS, sizes=[0.0])
    with pytest.raises(InputError, match="out of range"):
        transfer(model, SHORT, IDS, position=6)
    with pytest.raises(ArgumentTypeError, match="got one trace"):
        transfer(model, graph.trace(size=0.1), IDS)
    with pytest.raises(ArgumentTypeError, match="name, folder or module, got 3"):
        transfer(3, IDS, IDS)
    with pytest.raises(dm.DensitometerError):
        transfer(model, 3, IDS)


@pytest.mark.parametrize("name", ["llama", "neox"])
@pytest.mark.parametrize(("a", "b"), [(IDS, OTHER), (IDS, SHORT), (SHORT, IDS)])
def test_overlaps_are_those_of_sets_of_rows(make_model, name, a, b):
    model = make_model(name)
    first, second = dm.build_graph(model, a).trace(size=0.3), dm.build_graph(model, b).trace(size=0.15)
    found = overlap(first, second)
    rows = aligned_set(first), aligned_set(second)
    assert found.jaccard == naive_jaccard(*rows)
    assert (found.n_first, found.n_second) == (len(rows[0]), len(rows[1]))
    assert found.n_shared == len(rows[0] & rows[1]) > 0
    assert found.jaccard_components == naive_jaccard(*({row[:3] for row in part} for part in rows))

    kinds = ["residual", "attention", "mlp"] if name == "neox" else None
    kinds = kinds or ["residual_attention", "attention", "residual_mlp", "mlp"]
    assert found.kinds["kind"].to_list() == kinds
    for row in found.kinds.iter_rows(named=True):
        parts = [{edge for edge in part if edge[1] == row["kind"]} for part in rows]
        used = [{edge[:3] for edge in part} for part in parts]
        assert row["jaccard"] == naive_jaccard(*parts)
        assert [row["n_first"], row["n_second"]] == [len(part) for part in parts]
        assert row["n_shared"] == len(parts[0] & parts[1])
        assert row["jaccard_components"] == naive_jaccard(*used)
        assert row["components_shared"] == len(used[0] & used[1])

    seen = set()
    for layer, kind, head, n_first, n_second, n_shared, jaccard in found.components.iter_rows():
        parts = [{edge for edge in part if edge[:3] == (layer, kind, head)} for part in rows]
        assert [n_first, n_second, n_shared] == [len(parts[0]), len(parts[1]), len(parts[0] & parts[1])]
        assert jaccard == naive_jaccard(*parts)
        seen.add((layer, kind, head))
    assert seen == {row[:3] for part in rows for row in part}


@pytest.mark.parametrize(("a", "b"), [(IDS, OTHER), (IDS, SHORT), (SHORT, IDS)])
@pytest.mark.parametrize("depth_weight", [0.3, 0.9, 0.99])
def test_rank_biased_overlap_of_two_graphs_is_the_plain_loops(make_model, a, b, depth_weight):
    model = make_model("llama")
    graphs = [dm.build_graph(model, ids) for ids in (a, b)]
    orders = []
    for graph in graphs:
        row_of = dict(zip(graph.index.tolist(), aligned_rows(graph), strict=True))
        orders.append([row_of[edge] for edge in graph.order.tolist()])
    found = overlap(*(graph.trace(size=0.1) for graph in graphs), depth_weight=depth_weight)
    assert found.rank_biased_overlap == pytest.approx(loop_rbo(*orders, depth_weight), abs=1e-12)
    assert 0 < found.rank_biased_overlap < 1


@settings(max_examples=60, deadline=None)
@given(
    strategies.permutations(range(11)),
    strategies.permutations(range(4, 15)),
    strategies.integers(1, 11),
    strategies.integers(1, 11),
    strategies.floats(0.05, 0.95),
)
def test_rank_biased_overlap_is_the_plain_loops_on_any_orders(first, second, n, m, p):
    first, second = first[:n], second[:m]
    found = rank_biased_overlap(numpy.array(first), numpy.array(second), p)
    assert found == pytest.approx(loop_rbo(first, second, p), abs=1e-12)
    assert found == pytest.approx(rank_biased_overlap(numpy.array(second), numpy.array(first), p), abs=1e-12)
    assert -1e-12 <= found <= 1 + 1e-12


def test_rank_biased_overlap_worked_out_by_hand():
    # X = 0, 2: (1 - p)/p (0 + p^2) + p^2 = p at p = 1/2
    assert rank_biased_overlap(numpy.array([7, 8]), numpy.array([8, 7]), 0.5) == pytest.approx(0.5)
    assert rank_biased_overlap(numpy.arange(3), numpy.arange(9), 0.7) == pytest.approx(1.0)
    assert rank_biased_overlap(numpy.arange(3), numpy.arange(3, 9), 0.7) == 0.0


def test_a_trace_overlaps_itself_fully_and_nothing_with_nothing_not_at_all(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    trace, empty = graph.trace(size=0.2), graph.trace(n_edges=0)
    same = overlap(trace, trace)
    assert (same.jaccard, same.jaccard_components) == (1.0, 1.0)
    assert same.rank_biased_overlap == pytest.approx(1.0)
    assert overlap(trace, trace.inverse()).jaccard == 0.0
    nothing = overlap(empty, empty)
    assert (nothing.jaccard, nothing.jaccard_components) == (None, None)
    assert nothing.components.is_empty()
    assert nothing.kinds["jaccard"].null_count() == nothing.kinds.height
    nested = [
        overlap(graph.trace(n_edges=n), graph.trace(n_edges=m)).jaccard
        for n, m in itertools.pairwise((3, 6, 12))
    ]
    assert nested == [0.5, 0.5]


def test_overlap_refuses_what_it_cannot_compare(make_model):
    trace = dm.build_graph(make_model("llama"), IDS).trace(size=0.2)
    short = dm.build_graph(make_model("llama"), SHORT).trace(size=0.2)
    other = dm.build_graph(make_model("llama", seed=1), IDS).trace(size=0.2)
    with pytest.raises(InputError, match="different models"):
        overlap(trace, other)
    with pytest.raises(InputError, match="7 and 5 tokens"):
        overlap(trace, short, align="same")
    with pytest.raises(ArgumentTypeError, match="expected two traces, got Graph"):
        overlap(trace.graph, trace)
    for depth_weight in (0, 1, -0.5, math.nan, "0.9", True):
        with pytest.raises(InputError, match="depth_weight"):
            overlap(trace, trace, depth_weight=depth_weight)
    with pytest.raises(InputError, match="at least one entry"):
        rank_biased_overlap(numpy.array([]), numpy.array([1]), 0.9)


def test_a_transfer_shows_its_number(make_model):
    assert repr(transfer(make_model("llama"), IDS, IDS, importance="random", sizes=[1.0])).startswith(
        "Transfer(no efficiency, by random; "
    )
