"""Traces of whole heads and MLPs: against sets of edges put together by hand, and against hooks on the module itself."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace

import numpy
import polars
import pytest
import torch
from command import call

import densitometer as dm
from densitometer import plots
from densitometer._util.metrics import total_variation
from densitometer.errors import InputError, StorageError
from densitometer.graph.components import ComponentGraph, Components
from densitometer.graph.tiled import tiles
from densitometer.measuring.answers import measure_answer
from densitometer.report.findings import Evidence
from densitometer.report.page import _summary

pytestmark = pytest.mark.fast

TEXT = "The captain looked at the"
PAIR = (" sea", " man")
SIZES = (0.1, 0.3, 0.6, 1.0)
BY_COMPONENT = {"granularity": "component", "sizes": SIZES}


@pytest.fixture(scope="module")
def graph(demo) -> ComponentGraph:
    return ComponentGraph.of(dm.build_graph(demo, TEXT, importance="fisher"))


@pytest.fixture(scope="module")
def measured(demo) -> dm.Measurement:
    return dm.measure(demo, TEXT, importance=("l1", "fisher"), target=PAIR, keep_graphs=True, **BY_COMPONENT)


def by_hand(edges: polars.DataFrame, chosen: set[tuple]) -> numpy.ndarray:
    """Edges (E,) of chosen components, and every residual edge."""
    rows = edges.select("layer", "kind", "head").rows()
    return numpy.array([row in chosen or row[1].startswith("residual") for row in rows])


def rows_of(trace) -> set[tuple]:
    kept = trace.graph.components().filter(polars.Series(trace.mask))
    return set(kept.select("layer", "kind", "head").rows())


def test_a_set_is_all_edges_of_its_heads_and_mlps_and_every_residual_edge(graph):
    edges = graph.edge_graph.edges()
    assert graph.n_edges == 6 * (8 + 1)
    for n in (0, 1, 17, 54):
        trace = graph.trace(n_edges=n)
        assert (trace.n_edges, trace.n_heads + trace.n_mlps) == (n, n)
        assert (trace.edge_trace.mask == by_hand(edges, rows_of(trace))).all()
    assert graph.trace(size=1.0).edge_trace.n_edges == graph.edge_graph.n_edges
    assert graph.trace(size=0.32).n_edges == 17
    both = graph.trace(n_edges=17).mask.astype(int) + graph.trace(n_edges=17).inverse().mask
    assert (both == 1).all()


def test_an_importance_is_the_root_of_the_sum_of_squares_of_its_edges(graph):
    edges = graph.edge_graph.edges().filter(polars.col("kind").is_in(["attention", "mlp"]))
    squares = edges.group_by("layer", "kind", "head").agg((polars.col("importance") ** 2).sum())
    wanted = {row[:3]: row[3] ** 0.5 for row in squares.rows()}
    table = graph.components()
    assert table.select("layer", "kind", "head").rows() == sorted(
        wanted, key=lambda r: (r[0], r[1], r[2] or 0)
    )
    got = table["importance"].to_numpy()
    assert got == pytest.approx(
        [wanted[row] for row in table.select("layer", "kind", "head").rows()], rel=1e-5
    )
    assert rows_of(graph.trace(n_edges=7)) == set(sorted(wanted, key=lambda row: -wanted[row])[:7])
    above = graph.trace(threshold=float(numpy.sort(got)[-8]))
    assert rows_of(above) == rows_of(graph.trace(n_edges=7))


def test_heads_and_mlps_that_are_off_are_zeroed_by_hooks_on_the_module(demo, graph):
    trace = graph.trace(mask=numpy.random.default_rng(2).random(54) < 0.8)
    layers, size = demo.module.model.layers, demo.module.config.head_dim

    def without(heads):
        def hook(_, args):
            (heard,) = args
            heard = heard.clone()
            for head in heads:
                heard[..., head * size : (head + 1) * size] = 0
            return (heard,)

        return hook

    off = rows_of(trace.inverse())
    assert {kind for _, kind, _ in off} == {"attention", "mlp"}
    with ExitStack() as stack:
        for i, layer in enumerate(layers):
            heads = [head for at, kind, head in off if (at, kind) == (i, "attention")]
            handle = layer.self_attn.o_proj.register_forward_pre_hook(without(heads))
            stack.callback(handle.remove)
            if (i, "mlp", None) in off:
                handle = layer.mlp.register_forward_hook(lambda _, args, out: torch.zeros_like(out))
                stack.callback(handle.remove)
        with torch.no_grad():
            wanted = demo.module(torch.tensor([graph.input_ids])).logits[0, -1]
    assert trace.logits() == pytest.approx(wanted, abs=2e-4)


def test_the_full_set_is_the_model_and_each_component_counts(graph):
    full = graph.forward.logits
    assert float(total_variation(full, graph.trace(size=1.0).logits()[None])) < 1e-6
    effects = graph.trace(size=1.0).components(effect=True)
    assert effects.height == 54
    assert (effects["effect"] > 1e-6).all()
    masks = ~numpy.eye(54, dtype=bool)[[3, 50]]
    gaps = [float(total_variation(full, graph.trace(mask=mask).logits()[None])) for mask in masks]
    order = graph.components()[[3, 50]]
    wanted = order.join(effects, on=["layer", "kind", "head"], nulls_equal=True, maintain_order="left")
    assert gaps == pytest.approx(wanted["effect"].to_list(), abs=1e-6)


def test_a_curve_is_of_components(demo, measured):
    edges = dm.build_graph(demo, TEXT, importance="fisher")
    table = edges.edges()
    whole = edges.forward.logits.cpu()
    score = edges.forward.model.tokenizer.convert_tokens_to_ids
    sea, man = (score("Ġ" + token[1:]) for token in PAIR)
    nothing = edges.trace(mask=by_hand(table, set())).logits()
    v0, v1 = (float(logits[sea] - logits[man]) for logits in (nothing, whole))
    rows = measured.curve.filter(importance="fisher", kind="trace")
    assert rows["n_edges"].to_list() == [5, 16, 32, 54]
    assert measured.graph.n_edges == 54
    for row, size in zip(rows.iter_rows(named=True), SIZES, strict=True):
        trace = measured.session.graphs["fisher"].trace(size=size)
        assert (trace.n_heads, trace.n_mlps) == (row["n_heads"], row["n_mlps"])
        logits = edges.trace(mask=by_hand(table, rows_of(trace))).logits()
        assert row["tv"] == pytest.approx(float(total_variation(whole, logits[None])), abs=1e-5)
        v = float(logits[sea] - logits[man])
        assert row["faithfulness"] == pytest.approx((v - v0) / (v1 - v0), abs=1e-4)
        assert row["flops_share"] == pytest.approx(trace.edge_trace.flops_share, abs=1e-12)
    assert measured.target.nothing == pytest.approx(v0, abs=1e-4)
    assert measured.full_trace_tv < 1e-6


def test_size_at_is_a_number_of_components_that_hold_and_one_fewer_does_not(demo, measured):
    for name, density in measured.density.items():
        low, high = density.bracket(0.1)
        graph = measured.session.graphs[name]
        tv = [
            float(total_variation(graph.forward.logits, graph.trace(n_edges=round(54 * s)).logits()[None]))
            for s in (low, high)
        ]
        assert tv[1] <= 0.1 < tv[0]
        assert round(54 * high) - round(54 * low) <= max(1, 0.05 * 54 * high)
        heads = measured.density_in("heads")[name].size_at(0.1)
        trace = measured.minimal_trace(tv=0.1, importance=name)
        assert trace.n_edges == round(54 * high)
        assert heads == pytest.approx(trace.n_heads / 48)
        kept = measured.minimal_trace(faithfulness=0.1, importance=name)
        value = measured.session.scale.score.value(kept.logits()[None])
        assert float(abs(1 - measured.session.scale.faithfulness(value))) <= 0.1


def test_random_sets_have_as_many_heads_and_mlps_as_each_importances_own(measured):
    counts = ["n_edges", "n_heads", "n_mlps"]
    for name in ("l1", "fisher"):
        ours, random, inverse = (
            measured.curve.filter(importance=name, kind=kind) for kind in ("trace", "random", "inverse")
        )
        assert random.select(counts).rows() == ours.select(counts).rows()
        assert (random["n_heads"] + random["n_mlps"] == random["n_edges"]).all()
        assert (ours["n_edges"] + inverse["n_edges"]).to_list() == [54] * 4
    drawn = {name: graph.random_graph(0).trace(n_edges=16) for name, graph in measured.session.graphs.items()}
    assert any(
        len(rows_of(drawn[n]) - rows_of(g.trace(n_edges=16))) for n, g in measured.session.graphs.items()
    )
    random = measured.curve.filter(importance="l1", kind="random", n_edges=16)["tv"][0]
    full = measured.session.full
    assert random == pytest.approx(float(total_variation(full, drawn["l1"].logits()[None])), abs=1e-6)


def test_the_order_of_a_random_set_keeps_kinds_in_place():
    parts = Components(
        tuple(c for c in dm_components() if c.kind != "residual_attention" and c.kind != "residual_mlp")
    )
    order = numpy.array([4, 0, 3, 1, 2, 5])
    drawn = [parts.shuffled(order, seed) for seed in range(20)]
    assert all((parts.kinds[d] == parts.kinds[order]).all() for d in drawn)
    assert all(sorted(d) == [0, 1, 2, 3, 4, 5] for d in drawn)
    assert len({tuple(d) for d in drawn}) > 5
    assert (order == [4, 0, 3, 1, 2, 5]).all()


def dm_components():
    from densitometer.graph.forward_pass import EdgeSpace, Level

    levels = [
        level
        for layer in range(2)
        for level in (Level(layer, "residual_attention", 2, 0), Level(layer, "residual_mlp", 0, 1))
    ]
    return EdgeSpace(tuple(levels), 3).components()


def test_without_components_a_counterfactual_is_what_is_predicted(demo):
    other = "The captain looked in the"
    m = dm.measure(demo, TEXT, importance="fisher", counterfactual=other, keep_graphs=True, **BY_COMPONENT)
    nothing = m.session.first.trace(n_edges=0).logits()
    there = demo.adapter.logits(demo.encode(other))
    # the last tokens are the same, so that the residual edges carry the same embedding
    assert float(total_variation(there, nothing[None])) < 1e-5
    assert m.minimal_trace(tv=0.1).n_edges < 54


def test_what_was_measured_is_saved_loaded_and_replayed(demo, measured, tmp_path):
    measured.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.summary() == measured.summary()
    assert (loaded.units, loaded.curve.schema) == ("components", measured.curve.schema)
    assert loaded.curve.equals(measured.curve)
    heads = {name: density.size_at(0.1) for name, density in measured.density_in("heads").items()}
    assert {name: density.size_at(0.1) for name, density in loaded.density_in("heads").items()} == heads
    assert dm.difference(measured, dm.replay(loaded, demo)).same_numbers
    assert "of the components" in measured.summary()
    assert "of 48 heads" in measured.summary()
    assert "54 components" in measured.summary()
    assert "edges" not in measured.summary()
    taken_up = loaded.with_model(demo).components("fisher", effect=False)
    assert set(taken_up["kind"]) == {"attention", "mlp"}
    document = json.loads((tmp_path / "m.json").read_text())
    assert document["provenance"]["granularity"] == "component"
    assert (document["sinks"], document["floor"]) == (None, None)
    for change, message in (
        (lambda row: {k: v for k, v in row.items() if k != "n_heads"}, "curves have no column 'n_heads'"),
        (
            lambda row: row | {"n_mlps": row["n_mlps"] + 1},
            "curves.n_heads and curves.n_mlps are not curves.n_edges",
        ),
    ):
        tables = ("curves", "refined", "baselines")
        changed = document | {name: [change(row) for row in document[name]] for name in tables}
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        with pytest.raises(StorageError, match=message):
            dm.load_measurement(tmp_path / "changed.json")


def test_positions_and_answers_are_of_components_too(demo):
    table = dm.measure_positions(demo, TEXT, importance="l1", **BY_COMPONENT)
    assert table["n_edges"].unique().to_list() == [54]
    for place in (1, 4):
        alone = dm.measure(demo, TEXT, importance="l1", position=place, baselines=(), **BY_COMPONENT)
        row = table.row(place, named=True)
        assert row["size_at"] == pytest.approx(alone.density["l1"].size_at(0.1))
        assert row["auc_linear"] == pytest.approx(alone.density["l1"].auc_linear, abs=1e-5)
    answer = measure_answer(demo, TEXT, answer=" sea", importance="l1", **BY_COMPONENT)
    alone = dm.measure(demo, TEXT, importance="l1", baselines=(), **BY_COMPONENT)
    assert answer.curve["tv"].to_list() == pytest.approx(alone.curve["tv"].to_list(), abs=1e-5)


def test_a_study_measures_components(demo, tmp_path):
    texts = [TEXT, "It was a dark night and all the"]
    study = dm.run_study(
        texts, "demo", tmp_path / "s", importance=("l1", "fisher"), baselines=("random",), **BY_COMPONENT
    )
    m = dm.measure(demo, TEXT, importance=("l1", "fisher"), baselines=("random",), **BY_COMPONENT)
    row = study.measurements().filter(text_id="1", importance="fisher").row(0, named=True)
    assert (row["error"], row["n_edges"], row["size_at"]) == (None, 54, m.density["fisher"].size_at(0.1))
    curve = study.curves().filter(text_id="1", importance="fisher", refined=False)
    for kind in ("trace", "random"):
        want = m.curve.filter(importance="fisher", kind=kind)
        # baselines are stored with the first importance alone
        name = "fisher" if kind == "trace" else "l1"
        want = m.curve.filter(importance=name, kind=kind)
        curve = study.curves().filter(text_id="1", importance=name, kind=kind, refined=False)
        assert curve["n_heads"].to_list() == want["n_heads"].to_list()
        assert curve["tv"].to_list() == pytest.approx(want["tv"].to_list(), abs=1e-6)
        assert curve["top_ids"].null_count() == 0
    assert "Sizes are of components." in "".join(_summary(Evidence(study), []))


def test_the_terminal_and_the_plot_say_components(measured, tmp_path):
    done = call(
        "measure", TEXT, "--granularity", "component", "--importance", "fisher", "--sizes", "0.1,0.5,1"
    )
    assert done.returncode == 0
    assert "components" in done.stdout
    assert "heads" in done.stdout
    assert "edges" not in done.stdout
    full = call(
        "measure", TEXT, "--granularity", "component", "--importance", "fisher", "--sizes", "0.1,1", "--full"
    )
    assert "residual edges are always on" in full.stdout.replace("\n", " ")
    assert full.stdout.replace("residual edges", "").count("edges") == 0
    along = call("tokens", "The captain", "--granularity", "component", "--sizes", "0.1,1")
    assert "share of the components (l1)" in along.stdout.replace("\n", " ")
    axes = plots.plot_curve(measured).axes[0]
    assert axes.get_xlabel() == "share of the 54 components that are on"
    assert len(axes.texts) == 1  # the landmark of no component has no place on a logarithmic axis


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"attention": "kept"}, "no head is ever off"),
        ({"baselines": ("residual",)}, "'residual' makes no sense with granularity='component'"),
        ({"baselines": ("window",)}, "'window' makes no sense with granularity='component'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(demo, keywords, message):
    with pytest.raises(InputError, match=message):
        dm.measure(demo, TEXT, granularity="component", **keywords)


def test_what_components_cannot_give_is_refused_by_name(demo, measured, graph, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected one of components, flops, parameters, heads"):
        measured.density_in("edges")
    with pytest.raises(InputError, match=r"expected one of edges, flops, parameters, edges_without_sinks"):
        dm.measure(demo, TEXT, importance="l1", sizes=SIZES).density_in("heads")
    with pytest.raises(InputError, match=r"mask must be 54 booleans, one per row of components\(\)"):
        graph.trace(mask=numpy.ones(53, dtype=bool))
    with pytest.raises(InputError, match="a nucleus is of the edges"):
        graph.trace(nucleus=0.5)
    with pytest.raises(InputError, match="the explorer shows graphs by block"):
        measured.show()
    with pytest.raises(InputError, match="'component' is of measure, measure_positions and run_study"):
        dm.build_graph(demo, TEXT, granularity="component")
    with pytest.raises(InputError, match="traces='top' stores the edges of traces"):
        dm.run_study([TEXT], "demo", tmp_path / "s", traces="top", granularity="component")
    page = call("tokens", TEXT, "--granularity", "component", "--html", str(tmp_path / "p.html"))
    assert (page.returncode, "--html shows graphs by block" in page.stderr.replace("\n", " ")) == (2, True)
    monkeypatch.setattr(tiles, "STORED_EDGES", 1)
    with pytest.raises(InputError, match="granularity='component' needs them stored"):
        dm.measure(demo, TEXT, granularity="component")


def test_budgets_are_kept(graph):
    for currency in ("flops", "parameters"):
        trace = graph.trace(**{currency: 0.5})
        spent = {
            n: getattr(
                graph.trace(n_edges=n),
                f"{currency.removesuffix('s') if currency == 'parameters' else currency}_share",
            )
            for n in (trace.n_edges, trace.n_edges + 1)
        }
        assert spent[trace.n_edges] <= 0.5 < spent[trace.n_edges + 1]


def test_a_set_that_suffices_beside_what_is_left_without_it(graph):
    trace = graph.trace(n_edges=30)
    table = trace.necessity(n_random=2, seed=5)
    assert table["removed"].to_list() == ["trace", "random", "random"]
    assert table["n_edges"].to_list() == [30] * 3
    rest = graph.trace(mask=~trace.mask).logits()
    assert table["tv"][0] == pytest.approx(float(total_variation(graph.forward.logits, rest[None])), abs=1e-6)


def test_a_graph_of_another_importance_shares_the_pass(graph):
    other = replace(graph, importance_name="flat", importance=numpy.ones(54, dtype=numpy.float32))
    assert rows_of(other.trace(n_edges=3)) == {(0, "attention", head) for head in range(3)}
    assert repr(other.trace(n_edges=27)) == "ComponentTrace(27 of 54 components, 50 %)"
    assert repr(other).startswith("ComponentGraph(54 components by flat")
