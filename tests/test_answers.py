"""Answers of several tokens: each token's own prediction, its own traces, one density."""

from __future__ import annotations

import pytest

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.errors import DensitometerWarning, InputError

pytestmark = pytest.mark.fast

TEXT, ANSWER = "The president of the", " United States"
SIZES = (0.1, 0.3, 0.6, 1.0)


@pytest.fixture(scope="module")
def answered(demo):
    return dm.measure_answer(demo, TEXT, ANSWER, importance=("l1", "fisher"), sizes=SIZES)


def test_the_answers_tokens_are_those_behind_the_prompt(demo, answered):
    prompt, whole = demo.encode(TEXT), demo.encode(TEXT + ANSWER)
    assert answered.tokens["id"].to_list() == whole[len(prompt) :]
    assert answered.tokens["position"].to_list() == list(range(len(prompt) - 1, len(whole) - 1))
    own = demo.adapter.logits_of_all(whole).log_softmax(-1)
    want = [float(own[i - 1, whole[i]]) for i in range(len(prompt), len(whole))]
    assert answered.tokens["log_probability"].to_list() == pytest.approx(want, abs=1e-4)
    assert answered.log_probability == pytest.approx(sum(want), abs=1e-4)


@pytest.mark.parametrize("importance", ["l1", "fisher"])
def test_every_size_is_the_mean_and_the_sum_over_the_tokens_own_traces(demo, answered, importance):
    whole = demo.encode(TEXT + ANSWER)
    rows = answered.curve.filter(importance=importance)
    ends = answered.tokens["log_probability"].sum(), answered.tokens["nothing"].sum()
    for size, tv, value, kept in rows.select("size", "tv", "log_probability", "faithfulness").iter_rows():
        tvs, values = [], []
        for place, token in answered.tokens.select("position", "id").iter_rows():
            graph = dm.build_graph(
                demo, whole[: place + 1], importance=importance,
                target=lambda logits, token=token: logits.log_softmax(-1)[..., token],
            )  # fmt: skip
            logits = graph.trace(size=size).logits()
            tvs.append(float(total_variation(demo.adapter.logits(whole[: place + 1]), logits[None])))
            values.append(float(logits.log_softmax(-1)[token]))
        # a few edges of equal importance may change places, as the longer run rounds differently
        assert tv == pytest.approx(sum(tvs) / len(tvs), abs=2e-3)
        assert value == pytest.approx(sum(values), abs=2e-2)
        assert kept == pytest.approx((value - ends[1]) / (ends[0] - ends[1]), abs=1e-9)
    density = answered.density[importance]
    for by in ("tv", "faithfulness"):
        low, high = density.bracket(0.1, by=by)
        assert high <= 1.06 * low + 2 / 100
    assert f"({importance})" in answered.summary()


def test_a_range_and_ids_give_the_same(demo, answered):
    whole, prompt = demo.encode(TEXT + ANSWER), demo.encode(TEXT)
    places = range(len(prompt) - 1, len(whole) - 1)
    ranged = dm.measure_answer(demo, whole, positions=places, importance=("l1", "fisher"), sizes=SIZES)
    given = dm.measure_answer(demo, prompt, whole[len(prompt) :], importance=("l1", "fisher"), sizes=SIZES)
    assert ranged.density == given.density == answered.density


def test_a_chat_is_measured_at_its_last_answer(demo, monkeypatch):
    said = (
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
    )
    template = said + "{% if add_generation_prompt %}\nassistant:\n{% endif %}"
    monkeypatch.setattr(demo.tokenizer, "chat_template", template)
    chat = [
        {"role": "user", "content": "The president of the"},
        {"role": "assistant", "content": "United States"},
    ]
    found = dm.measure_answer(demo, chat, importance="l1", sizes=SIZES)
    prompt = demo.encode(chat[:1])
    assert found.tokens["position"][0] == len(prompt) - 1
    assert "".join(found.tokens["token"]).strip() == "United States"


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((TEXT,), {}, "the answer is missing: give answer="), (([{"role": "user", "content": "x"}],), {}, "the answer is missing"),
        ((TEXT, ""), {}, "the answer is empty"), ((TEXT,), {"positions": range(2, 9)}, r"range\(2, 9\) is not within the text"),
        ((TEXT,), {"positions": (0, 2)}, r"positions is 'answer', or a range .* got \(0, 2\)"),
        ((TEXT, ANSWER), {"positions": range(2)}, "without an answer beside it"),
    ],
)  # fmt: skip
def test_what_has_no_answer_is_refused(demo, arguments, keywords, message):
    with pytest.raises(InputError, match=message):
        dm.measure_answer(demo, *arguments, importance="l1", sizes=SIZES, **keywords)


def test_an_answer_that_is_likelier_with_its_space_gives_a_warning(demo, recwarn):
    message = "the model predicts ' Un' more readily than 'Un': the space before a word"
    with pytest.warns(DensitometerWarning, match=message) as caught:
        dm.measure_answer(demo, TEXT, ANSWER.strip(), importance="l1", sizes=SIZES)
    assert [warning.filename for warning in caught] == [__file__]
    recwarn.clear()
    dm.measure_answer(demo, TEXT, ANSWER, importance="l1", sizes=SIZES)
    assert not recwarn.list
