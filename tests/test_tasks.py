"""Tasks: sets of components and edges against traces put together by hand, and prompts that are refused."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy
import polars
import pytest
import torch

import densitometer as dm
from densitometer.errors import ArgumentTypeError, InputError
from densitometer.graph.growth import best_first_order
from densitometer.study.bundled_tasks import list_tasks, load_task
from densitometer.study.corpus import read_corpus
from densitometer.study.prompts import align, prompt_of

pytestmark = pytest.mark.models

# of pairwise different numbers of tokens in `demo`
PROMPTS = [
    dm.Prompt("The old captain looked at the", " sea", " ship"),
    dm.Prompt("She said that the", " man", " sea"),
    dm.Prompt("The captain", " man", " ship"),
    dm.Prompt("It was a dark night and all the", " man", " sea"),
]


@pytest.fixture(scope="module")
def measured(demo: dm.Model) -> dm.TaskMeasurement:
    return dm.measure_task(demo, PROMPTS, importance="l1", seed=3)


def value(model: dm.Model, prompt: dm.Prompt, logits: torch.Tensor) -> float:
    """Logit difference, by hand."""
    target, against = (
        model.tokenizer.convert_tokens_to_ids("Ġ" + side[1:]) for side in (prompt.target, prompt.against)
    )
    return float(logits[target] - logits[against])


def graphs_of(model: dm.Model) -> list[dm.Graph]:
    return [dm.build_graph(model, prompt.text, importance="l1") for prompt in PROMPTS]


def places(graph: dm.Graph, unit: str) -> list[tuple]:
    """Unit of each edge (E,), as the columns that name it."""
    edges = graph.edges().with_columns(polars.col("source", "target") - graph.position)
    return edges.select("layer", "kind", "head", *(["source", "target"] if unit == "edge" else [])).rows()


def check_half(model: dm.Model, task: dm.TaskMeasurement, half: str, n_units: int) -> None:
    """Hold a row of the curve to traces that are put together by hand."""
    names = ["source", "target"] if task.unit == "edge" else []
    kept = set(task.components.head(n_units).select("layer", "kind", "head", *names).rows())
    values, tv = [], []
    for graph, prompt in zip(graphs_of(model), PROMPTS, strict=True):
        if prompt.text in task.prompts.filter(half=half)["text"].to_list():
            rows = places(graph, task.unit)
            always = numpy.array([task.unit == "component" and "residual" in row[1] for row in rows])
            ours = numpy.array([row in kept for row in rows]) | always
            logits = dm.reconstruct(model, graph, [graph.trace(mask=ours), graph.trace(mask=always)])
            full = graph.forward.logits
            values.append([value(model, prompt, row) for row in (full, *logits)])
            tv.append(float((full.softmax(-1) - logits[0].softmax(-1)).abs().sum() / 2))
    full, ours, nothing = numpy.mean(values, axis=0)
    row = task.curve.row(
        by_predicate=(polars.col("half") == half)
        & (polars.col("n_units") == n_units)
        & (polars.col("kind") == "trace"),
        named=True,
    )
    assert row["faithfulness"] == pytest.approx((ours - nothing) / (full - nothing), abs=2e-4)
    assert row["tv"] == pytest.approx(numpy.mean(tv), abs=1e-5)


def squares_of(model: dm.Model, task: dm.TaskMeasurement) -> dict[tuple, float]:
    """Mean squares of the importances of units over the chosen prompts."""
    chosen = task.prompts.filter(half="chosen")["text"].to_list()
    total: dict[tuple, float] = {}
    for graph, prompt in zip(graphs_of(model), PROMPTS, strict=True):
        if prompt.text in chosen:
            for place, importance in zip(places(graph, task.unit), graph.edges()["importance"], strict=True):
                total[place] = total.get(place, 0.0) + importance**2 / len(chosen)
    return total


def test_components_are_their_edges_over_all_tokens_with_the_residual_edges(
    demo: dm.Model, measured: dm.TaskMeasurement
) -> None:
    task = measured
    assert task.n_units == 6 * (8 + 1)
    squares = squares_of(demo, task)
    wanted = [squares[place] ** 0.5 for place in task.components.select("layer", "kind", "head").rows()]
    assert task.components["importance"].to_numpy() == pytest.approx(wanted, rel=1e-5)
    assert task.components["importance"].is_sorted(descending=True)
    for half in ("chosen", "held_out"):
        check_half(demo, task, half, 16)
        check_half(demo, task, half, 43)
    row = task.curve.filter(n_units=16, half="held_out", kind="trace").row(0, named=True)
    kinds = task.components.head(16)["kind"].to_list()
    numbers = kinds.count("attention"), kinds.count("mlp")
    drawn = task.curve.filter(n_units=16, half="held_out", kind="random").row(0, named=True)
    assert (row["n_heads"], row["n_mlps"]) == (drawn["n_heads"], drawn["n_mlps"]) == numbers
    assert abs(drawn["faithfulness"] - row["faithfulness"]) > 0.01


def test_edges_are_shared_by_their_place_from_the_last_token(demo: dm.Model) -> None:
    task = dm.measure_task(demo, PROMPTS, unit="edge", importance="l1", seed=1)
    longest = max(graphs_of(demo), key=lambda graph: graph.n_tokens)
    assert task.n_units == longest.n_edges
    squares = squares_of(demo, task)
    flat = numpy.zeros(longest.space.size, dtype=numpy.float32)
    flat[longest.index] = [squares.get(place, 0.0) ** 0.5 for place in places(longest, "edge")]
    order = best_first_order(longest.space, flat, longest.reachable)
    row_of = {int(edge): row for row, edge in enumerate(longest.index)}
    wanted = [places(longest, "edge")[row_of[int(edge)]] for edge in order]
    got = task.components.select("layer", "kind", "head", "source", "target").rows()
    assert got[:100] == wanted[:100]
    for half in ("chosen", "held_out"):
        check_half(demo, task, half, round(0.3 * task.n_units))


def test_the_set_is_the_smallest_that_holds_from_there_on(demo: dm.Model) -> None:
    task = dm.measure_task(demo, PROMPTS, eps=0.2, seed=2)
    rows = task.curve.filter(half="chosen", kind="trace").sort("n_units")
    holds = ((1 - rows["faithfulness"]).abs() <= 0.2).to_list()
    from_there = [all(holds[i:]) for i in range(len(holds))]
    assert task.found == rows["n_units"][from_there.index(True)]
    assert task.size_at(0.2) == task.found / task.n_units
    # it is known to one component, or to 5 %
    below = rows["n_units"][from_there.index(True) - 1]
    assert task.found - below == 1 or task.found <= 1.05 * below
    assert task.components["in_set"].sum() == task.found
    drawn = task.curve.filter(half="held_out", kind="random", n_units=task.found)
    assert drawn["seed"].n_unique() == 5
    assert task.summary().count("\n") == 0


def test_without_targets_sets_hold_by_total_variation(demo: dm.Model) -> None:
    task = dm.measure_task(demo, [prompt.text for prompt in PROMPTS], importance="l1")
    assert task.curve["faithfulness"].null_count() == task.curve.height
    full = task.curve.filter(kind="trace", n_units=task.n_units)
    assert full["tv"].max() < 1e-5
    assert full["accuracy"].to_list() == [1.0, 1.0]
    rows = task.curve.filter(half="chosen", kind="trace").sort("n_units")
    assert rows.filter(n_units=task.found)["tv"].item() <= 0.1


def test_overlap_by_hand(demo: dm.Model, measured: dm.TaskMeasurement) -> None:
    one = measured
    other = dm.measure_task(demo, PROMPTS, importance="random", eps=0.3, seed=4)
    sets = [set(t.components.filter("in_set").select("layer", "kind", "head").rows()) for t in (one, other)]
    both = one.overlap(other)
    assert both["shared"] == len(sets[0] & sets[1])
    assert both["jaccard"] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    chance = len(sets[0]) * len(sets[1]) / one.n_units
    assert both["expected"] == pytest.approx(chance / (len(sets[0]) + len(sets[1]) - chance))
    with pytest.raises(InputError, match=r"component sets of 54 on demo, and edge sets of 99"):
        one.overlap(replace(one, unit="edge", n_units=99))


@pytest.mark.parametrize(
    ("prompts", "keywords", "message"),
    [
        (PROMPTS[:3], {}, "at least 4 prompts.*got 3"),
        (PROMPTS[:1], {}, "at least 4 prompts.*got 1.*measure"),
        ([*PROMPTS, dm.Prompt("The")], {}, "1 of 5 prompts have no target, the first of them 'The'"),
        ([*PROMPTS, "The"], {}, "got also str"),
        (PROMPTS, {"unit": "head"}, "unknown unit 'head'; expected 'component' or 'edge'"),
        (PROMPTS, {"importance": "nope"}, "unknown importance 'nope'"),
        (PROMPTS, {"eps": 2}, "eps"),
        ([{"text": "The", "against": " sea"}] * 4, {}, "has `against` and no `target`"),
        ("no-such-task", {}, "no-such-task"),
    ],
)
def test_what_is_no_task_is_refused(demo: dm.Model, prompts, keywords, message) -> None:
    with pytest.raises((InputError, ArgumentTypeError), match=message):
        dm.measure_task(demo, prompts, **keywords)


def test_a_corpus_is_a_task(demo: dm.Model, measured: dm.TaskMeasurement, tmp_path) -> None:
    rows = [{"text": p.text, "target": p.target, "against": [p.against]} for p in PROMPTS]
    polars.DataFrame(rows).write_ndjson(tmp_path / "task.jsonl")
    task = dm.measure_task(demo, str(tmp_path / "task.jsonl"), importance="l1", seed=3)
    assert task.curve.equals(measured.curve)
    assert task.task == str(tmp_path / "task.jsonl")


@pytest.mark.parametrize("name", list_tasks())
def test_bundled_prompts_are_different_and_their_counterfactuals_change_one_word(name: str) -> None:
    prompts = load_task(name)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 48
    assert prompts == load_task(name)
    assert prompts != load_task(name, seed=1)
    for prompt in prompts:
        words, others = (re.findall(r"\w+", text) for text in (prompt.text, prompt.counterfactual))
        assert len(words) == len(others)
        changed = [pair for pair in zip(words, others, strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1
        sides = [(side,) if isinstance(side, str) else side for side in (prompt.target, prompt.against)]
        assert not set(sides[0]) & set(sides[1])


def test_the_counterfactual_has_the_other_answer() -> None:
    # of each task whose prompts name the answer, the counterfactual is a prompt of the same template for it
    for name in ("capitals", "induction", "docstring"):
        for prompt in load_task(name, 40):
            turned = {p.text: p.target for p in load_task(name, 40)}
            if prompt.counterfactual in turned:
                assert turned[prompt.counterfactual] == prompt.against
    for prompt in load_task("indirect-object", 30):
        *_, giver = re.findall(r", (\w+) gave", prompt.counterfactual)
        assert prompt.target == f" {giver}"
        assert prompt.against.strip() in prompt.counterfactual


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ioi",), "unknown task 'ioi'; expected one of induction"),
        (("capitals", 5000), "about [0-9]+ different"),
    ],
)
def test_unknown_tasks_and_too_many_prompts_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        load_task(*arguments)


PAIRS = [
    dm.Prompt("He said that", " he", " she", "She said that"),
    dm.Prompt("He looked at the old man and", " he", " she", "She looked at the old man and"),
    dm.Prompt("He went to the", " sea", " ship", "She went to the"),
    dm.Prompt(
        "He was the captain of the ship and he", " said", " looked", "She was the captain of the ship and he"
    ),
]


def test_off_components_carry_what_they_carry_in_the_counterfactual(demo: dm.Model) -> None:
    task = dm.measure_task(demo, PAIRS, importance="l1")
    for row, prompt in zip(task.prompts.iter_rows(named=True), PAIRS, strict=True):
        here, there = (
            value(demo, prompt, dm.build_graph(demo, text).forward.logits)
            for text in (prompt.text, prompt.counterfactual)
        )
        assert row["full"] == pytest.approx(here, abs=1e-4)
        # the embedding's residual edges are on, so it is the other prompt's value only up to them
        edges = dm.build_graph(demo, prompt.text, counterfactual=prompt.counterfactual)
        residual = edges.edges()["kind"].str.contains("residual").to_numpy()
        assert row["nothing"] == pytest.approx(
            value(demo, prompt, edges.trace(mask=residual).logits()), abs=1e-4
        )
        assert abs(row["full"] - here) < 1e-3 < abs(row["nothing"] - here) or abs(here - there) < 1e-3
    without = dm.measure_task(demo, PAIRS, importance="l1", counterfactual=False)
    assert not without.curve.equals(task.curve)
    with pytest.raises(InputError, match="1 of 5 prompts have no counterfactual"):
        dm.measure_task(demo, [*PAIRS, PROMPTS[0]], counterfactual=True)


SPANNED = [
    dm.Prompt("The old man said that", " he", " she", spans={"who": "old man"}),
    dm.Prompt("She said that", " she", " he", spans={"who": (0, 3)}),
    dm.Prompt("And the very old woman said that", " she", " he", spans={"who": "very old woman"}),
    dm.Prompt("And then he said that", " he", " she", spans={"who": "he said"}),
]


def pieces_of(prompts):
    """Words with the space before them, as tokens."""
    return [re.findall(r" ?\S+", prompt.text) for prompt in prompts]


def test_tokens_of_a_span_are_counted_from_its_end():
    aligned = align(SPANNED, pieces_of(SPANNED))
    # before: at most two tokens; the span: at most three; after: at most two
    assert aligned.roles == (None, None, "who", "who", "who", None, None)
    assert [list(places) for places in aligned.places] == [
        [1, 3, 4, 5, 6], [4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 4, 6],
    ]  # fmt: skip
    plain = align([replace(prompt, spans={}) for prompt in SPANNED], pieces_of(SPANNED))
    assert plain.roles == (None,) * 7
    assert [list(places) for places in plain.places] == [list(range(7 - n, 7)) for n in (5, 3, 7, 5)]
    spaced = align([replace(SPANNED[0], spans={"who": " old man"})], pieces_of(SPANNED[:1]))
    assert spaced.roles == (None, "who", "who", None, None)
    begun = align(SPANNED[:1], [["<s>", *pieces_of(SPANNED)[0]]])
    assert begun.roles == (None, None, "who", "who", None, None)


def test_edges_are_shared_by_the_roles_of_their_tokens(demo: dm.Model) -> None:
    task = dm.measure_task(demo, SPANNED, unit="edge", importance="l1", seed=1)
    graphs = [dm.build_graph(demo, prompt.text, importance="l1") for prompt in SPANNED]
    aligned = align(SPANNED, [graph.tokens for graph in graphs])
    chosen = task.prompts.filter(half="chosen")["text"].to_list()
    wanted: dict[tuple, float] = {}
    for graph, prompt, places in zip(graphs, SPANNED, aligned.places, strict=True):
        for layer, kind, head, source, target, importance in graph.edges().drop("edge").rows():
            key = (layer, kind, head, *(int(places[i]) - len(aligned.roles) + 1 for i in (source, target)))
            wanted.setdefault(key, 0.0)
            wanted[key] += importance**2 / len(chosen) * (prompt.text in chosen)
    assert task.n_units == len(wanted)
    table = task.components
    got = {
        row[:5]: row[5]
        for row in table.select("layer", "kind", "head", "source", "target", "importance").rows()
    }
    assert got.keys() == wanted.keys()
    assert [got[key] for key in wanted] == pytest.approx([value**0.5 for value in wanted.values()], rel=1e-4)
    spans = dict(table.select(polars.col("source"), "source_span").unique().rows())
    assert spans == {i - len(aligned.roles) + 1: role for i, role in enumerate(aligned.roles)}


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            {"who": "woman"},
            "the span 'who' of 'The old man said that' is 'woman', which occurs 0 times in it",
        ),
        ({"who": "a"}, "occurs 3 times in it"),
        ({"who": (4, 99)}, "is from character 4 to 99, of 21"),
        (
            {"who": "old man", "what": "man said"},
            "the spans 'who' and 'what' of 'The old man said that' share a token",
        ),
        ({"what": "old"}, "has what, and 'She said that' who"),
        ({"who": "said that"}, "ends with a span, and other prompts go on after it"),
    ],
)
def test_spans_that_cannot_be_used_are_refused(spans, message):
    prompts = [replace(SPANNED[0], spans=spans), SPANNED[1]]
    with pytest.raises(InputError, match=re.escape(message)):
        align(prompts, pieces_of(prompts))
    with pytest.raises(InputError, match="do not spell it"):
        align(SPANNED[:1], [["The", "old"]])


def test_spans_come_from_a_corpus():
    for second in ("d", [0, 1]):  # of one type, and of two, which a corpus keeps as JSON
        rows = read_corpus(
            [{"text": "a b", "spans": {"x": "a"}}, {"text": "c d", "spans": {"x": second}}]
        ).texts
        one, other = (prompt_of(row) for row in rows.iter_rows(named=True))
        assert (one.spans, other.spans) == ({"x": "a"}, {"x": second})
    assert prompt_of({"id": "1", "text": "a", "spans": '{"x": [0, 1]}'}).spans == {"x": [0, 1]}
    with pytest.raises(InputError, match="the spans of the text '1' are 'a'; give an object"):
        prompt_of({"id": "1", "text": "a", "spans": "a"})
