"""Properties of predictions and prompts: by hand, by a real spaCy pipeline that is made here, and null where nothing tells them."""

from __future__ import annotations

import zlib
from importlib.metadata import EntryPoint

import numpy
import polars
import pytest
import spacy
import wordfreq

from densitometer import analysis
from densitometer.analysis import prompts
from densitometer.analysis.properties import FACTORS, factor_columns, token_class
from densitometer.study.corpus import Window
from densitometer.study.part_files import part_of
from densitometer.study.store import StudyStore, open_study


@pytest.mark.parametrize(
    ("token", "end", "marked", "expected"),
    [
        (" whale", "he", True, "word start"),
        ("ale", "wh", True, "continuation"),
        ("ale", None, True, "continuation"),
        ("Ale", "« ", True, "word start"),  # a letter after no letter begins a word
        ("ale", "s(", True, "word start"),
        ("t", "n'", True, "continuation"),
        ("then", " '", True, "word start"),
        ("́", "ne", True, "continuation"),
        (" ́e", "ne", True, "word start"),
        ("whale", "he", False, None),  # without a mark a letter tells nothing
        (" 1851", "in", True, "digit"),
        ("½", "in", False, "digit"),
        (",", "he", True, "punctuation"),
        (" €", "he", False, "punctuation"),
        ("鲸", "白", True, "unspaced"),
        ("くじら", None, False, "unspaced"),
        ("<|endoftext|>", "he", True, "other"),
        ("[SEP]", "he", True, "other"),
        ("\\xe2", "he", True, "other"),
        ("\n", "he", True, "other"),
        ("<", "he", True, "punctuation"),
        (None, "he", True, None),
    ],
)
def test_classes_of_tokens(token, end, marked, expected):
    assert token_class(token, end, marked) == expected


def test_a_model_that_marks_no_beginnings_has_no_words():
    table = polars.DataFrame(
        {
            "model": ["marks", "marks", "ends", "ends"], "revision": [None] * 4, "prompt": ["the", "the", None, None],
            "top_token": [" sea", "sea", "sea ", ","], "next_token": [None, "7", "wha", None],
        },
        schema_overrides={"revision": polars.String},
    )  # fmt: skip
    found = analysis.with_classes(table)
    assert found["predicted_class"].to_list() == ["word start", "continuation", None, "punctuation"]
    assert found["actual_class"].to_list() == [None, "digit", None, None]
    assert found.drop("predicted_class", "actual_class").equals(table)


TEXTS = {
    "a": ("The whale sang. The whale dived, and the old", "captain slept", "en"),
    "b": ("A sea of sand is a sea.", None, "en-GB"),
    "c": ("La mer dort", "et l'eau", "FR"),
    "d": ("Das Meer", "schläft", "xx"),
}


@pytest.fixture
def study(tmp_path):
    def make(window, rows=None, **columns):
        texts = polars.DataFrame(
            [(i, t, n, lang, None) for i, (t, n, lang) in TEXTS.items()],
            schema=["id", "text", "next", "language", "problem"], orient="row",
            schema_overrides={"problem": polars.String},
        ).with_columns(domain=polars.lit("sea"))  # fmt: skip
        about = {"name": "c", "sha256": "0", "n_texts": len(texts)}
        settings = {"importance": ["l1"], "eps": 0.1, "window": window}
        store = StudyStore.create(tmp_path / "s", settings, about, texts, {})
        rows = rows or [{"text_id": i} for i in TEXTS]
        base = {"piece": 0, "model": "m", "importance": "l1", "ids": [1, 2], "top_id": 1}
        rows = [base | {"cell": i} | row for i, row in enumerate(rows)]
        store.write("m", 0, len(rows), part_of(rows, [{}] * len(rows)))
        store.close()
        return open_study(tmp_path / "s")

    return make


def by_text(study):
    return {row["text_id"]: row for row in analysis.describe(study).iter_rows(named=True)}


def test_complexity_of_whole_texts_by_hand(study):
    found = by_text(study(None))
    a, b, c, d = (found[i] for i in "abcd")
    assert a["prompt"] == TEXTS["a"][0]
    assert (a["prompt_words"], a["prompt_characters"]) == (9, 44)
    assert a["type_token_ratio"] == pytest.approx(6 / 9)  # the, whale, sang, dived, and, old
    assert a["sentence_length"] == pytest.approx(9 / 2)  # the second is cut
    assert b["sentence_length"] == 7  # whole
    assert c["sentence_length"] == 3
    raw = TEXTS["a"][0].encode()
    assert a["compression_ratio"] == pytest.approx(len(zlib.compress(raw, 9)) / len(raw))
    # In the other English text, with what comes after it: a sea of sand is a sea, 7 words.
    counted = {"a": 2, "sea": 2, "of": 1, "sand": 1, "is": 1}
    words = ["the", "whale", "sang", "the", "whale", "dived", "and", "the", "old"]
    assert a["prompt_log_frequency"] == pytest.approx(
        numpy.mean([numpy.log10((counted.get(w, 0) + 1) / 8) for w in words])
    )
    assert b["prompt_log_frequency"] == pytest.approx(
        numpy.log10(1 / 12)
    )  # none of its words is in the other's 11
    assert a["prompt_zipf"] == pytest.approx(numpy.mean([wordfreq.zipf_frequency(w, "en") for w in words]))
    assert d["prompt_zipf"] is None  # no such language
    # textstat leaves sentences of two words or fewer out, and counts words by white space
    assert a["lix"] == pytest.approx(9 / 2 + 100 * 0 / 9)
    assert a["next_word_zipf"] == wordfreq.zipf_frequency("captain", "en")
    assert c["next_word_zipf"] == wordfreq.zipf_frequency("et", "fr")
    assert b["next_word_zipf"] is None
    assert set(FACTORS) <= set(a)
    assert [row["text_id"] for row in found.values()] == list("abcd")


def test_prompts_of_words_end_where_the_window_ends(study):
    rows = [
        {"text_id": "a"},
        {"text_id": "c", "error": "the text has 3 words, fewer than the 5 of the window"},
    ]
    found = by_text(study("words:5", rows))
    assert found["a"]["prompt"] == "The whale sang. The whale"
    assert found["a"]["next_word_zipf"] == wordfreq.zipf_frequency("dived", "en")
    assert found["c"]["prompt"] is None
    assert found["c"]["prompt_words"] is None


def test_prompts_of_tokens_are_known_where_they_are_stored(study, monkeypatch):
    rows = [{"text_id": "a", "piece": 0}, {"text_id": "a", "piece": 3}, {"text_id": "b", "piece": 1}]
    one = study("sliding:4:2", rows)
    found = analysis.describe(one)
    assert found["prompt"].null_count() == found["prompt_words"].null_count() == 3
    assert found["position_in_text"].to_list() == [4, 10, 6]
    stored = one.measurements().with_columns(prompt=polars.Series(["The wha", "the whale sang", "A sea"]))
    told = prompts.with_prompts(stored, one.texts(), "sliding:4:2")
    assert told["prompt_words"].to_list() == [2, 3, 2]
    # The word that the seam cuts, none for a prompt that is not the text, and the next one.
    expected = [wordfreq.zipf_frequency("whale", "en"), None, wordfreq.zipf_frequency("of", "en")]
    assert told["next_word_zipf"].to_list() == expected


def pipeline(folder):
    """A pipeline of spaCy that tags a few words, on disk."""
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("attribute_ruler")
    for word, tag in (("captain", "NOUN"), ("sea", "PROPN"), ("whale", "NOUN"), ("dived", "VERB")):
        ruler.add([[{"LOWER": word}]], {"POS": tag})
    nlp.to_disk(folder)
    return str(folder)


def test_parts_of_speech_are_of_the_next_word(study, tmp_path, monkeypatch):
    name = pipeline(tmp_path / "en_test")
    monkeypatch.setattr(prompts, "installed_pipelines", lambda: {"en": name})
    found = by_text(study(None))
    assert {i: row["part_of_speech"] for i, row in found.items()} == {
        "a": "NOUN",
        "b": None,
        "c": None,
        "d": None,
    }


def test_parts_of_speech_within_a_window(study, tmp_path, monkeypatch):
    name = pipeline(tmp_path / "en_test")
    monkeypatch.setattr(prompts, "installed_pipelines", lambda: {"en": name})
    rows = [{"text_id": "a"}, {"text_id": "b"}]
    assert [row["part_of_speech"] for row in by_text(study("words:5", rows)).values()] == ["VERB", None]


def test_the_next_words_of_many_texts_are_drawn(study, tmp_path, monkeypatch):
    name = pipeline(tmp_path / "en_test")
    monkeypatch.setattr(prompts, "installed_pipelines", lambda: {"en": name})
    monkeypatch.setattr(prompts, "MOST_TAGGED", 1)
    rows = [{"text_id": "a"}, {"text_id": "b"}]
    tags = [row["part_of_speech"] for row in by_text(study("words:1", rows)).values()]
    assert tags.count(None) == 1  # of two, "whale" and "sea"


def test_pipelines_are_those_installed_smallest_first(monkeypatch):
    names = ["fr_core_news_lg", "en_core_web_trf", "en_core_web_md", "fr_core_news_sm", "de_mine"]
    entries = [EntryPoint(name, name, "spacy_models") for name in names]
    monkeypatch.setattr(prompts, "entry_points", lambda group: entries if group == "spacy_models" else [])
    assert prompts.installed_pipelines() == {"fr": "fr_core_news_sm", "en": "en_core_web_md", "de": "de_mine"}


def test_without_the_extra_its_columns_are_null(study, monkeypatch):
    monkeypatch.setattr(prompts, "_optional", lambda name: None)
    found = analysis.describe(study(None))
    for column in ("lix", "prompt_zipf", "next_word_zipf", "part_of_speech"):
        assert found[column].null_count() == 4
    assert found["prompt_words"].null_count() == 0


def test_levels_of_a_class_are_columns():
    levels = ["x"] * 5 + ["y"] * 6 + ["z"] * 4 + [None] * 3
    table = polars.DataFrame(
        {"text_id": [f"{i}" for i in range(18)], "kind": levels, "number": range(18), "same": [1] * 18}
    )
    found = factor_columns(table, ["number", "kind", "same"])
    assert list(found) == [("number", None), ("kind", "x"), ("kind", "y")]  # of z there are four texts
    assert found["kind", "y"].to_list() == [0.0] * 5 + [1.0] * 6 + [0.0] * 4 + [None] * 3
    two = table.filter(polars.col("kind").is_in(["x", "y"]))
    assert list(factor_columns(two, ["kind"])) == [("kind", "y")]
    assert factor_columns(table.filter(polars.col("kind").is_in(["y", "z"])), ["kind"]) == {}


@pytest.mark.parametrize(("window", "same"), [("words:3,", "words:3"), ("sliding:8:4:", "sliding:8:4")])
def test_a_window_is_read_here_as_a_study_reads_it(window, same):
    rows = polars.DataFrame(
        {"text_id": ["a"], "error": [None], "piece": [2], "model": ["m"]},
        schema_overrides={"error": polars.String},
    )
    texts = polars.DataFrame(
        {"id": ["a"], "text": ["one two three four five"], "next": [None], "language": [None]},
        schema_overrides={"next": polars.String, "language": polars.String},
    )
    assert prompts.with_prompts(rows, texts, window).equals(prompts.with_prompts(rows, texts, same))
    assert Window.parse(window) == Window.parse(same)
