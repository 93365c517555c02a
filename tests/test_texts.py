"""The bundled corpus is what its description says, line by line."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter

import pytest

from densitometer.errors import InputError
from densitometer.study.corpus import BUNDLED_CORPORA, Window, read_corpus

DOMAINS = ("news", "fiction", "science", "law", "conversation")
LANGUAGES = ("en", "fr")
CONTENT = BUNDLED_CORPORA["short-texts"].read_bytes().decode("utf-8")
ROWS = [json.loads(line) for line in CONTENT.splitlines()]


def test_fifteen_pairs_a_domain_both_languages_of_each():
    assert [row["id"] for row in ROWS] == [
        f"{domain}-{number:02d}-{language}"
        for domain in DOMAINS
        for number in range(1, 16)
        for language in LANGUAGES
    ]
    for row in ROWS:
        assert list(row) == ["id", "text", "language", "domain", "pair"]
        assert row["id"] == f"{row['pair']}-{row['language']}"
        assert row["pair"].rpartition("-")[0] == row["domain"]


def test_no_text_stands_twice_and_none_is_left_untranslated():
    assert max(Counter(row["text"].casefold() for row in ROWS).values()) == 1
    english, french = ({row["pair"]: row["text"] for row in ROWS if row["language"] == x} for x in LANGUAGES)
    for pair in english:
        shared = set(re.findall(r"\w{4,}", english[pair])) & set(re.findall(r"\w{4,}", french[pair]))
        assert len(shared) < 6, (pair, shared)  # names, and words that both languages have
    assert all(re.search(r"\b(the|a|an)\b", text.casefold()) for text in english.values())
    assert all(re.search(r"\b(le|la|l'|les|un|une|du|des)", text.casefold()) for text in french.values())


def test_the_same_numbers_on_both_sides():
    """What is written in digits, but for the decimal mark, the groups of thousands, and a clock time."""
    english, french = ({row["pair"]: row["text"] for row in ROWS if row["language"] == x} for x in LANGUAGES)
    for pair in english:
        left = re.sub(r"(\d),(\d{3})", r"\1\2", english[pair])
        right = re.sub(r"(\d),(\d)", r"\1.\2", re.sub(r"(\d) (\d{3})", r"\1\2", french[pair]))
        numbers = [Counter(re.findall(r"\d+(?:\.\d+)?", text)) for text in (left, right)]
        if pair == "conversation-15":  # 11:52 in the evening
            numbers[0] = Counter({"23" if n == "11" else n: k for n, k in numbers[0].items()})
        assert numbers[0] == numbers[1], pair


def test_every_text_is_set_as_its_language_is():
    for row in ROWS:
        text, where = row["text"], row["id"]
        assert 30 <= len(text.split()) <= 45, where
        assert unicodedata.is_normalized("NFC", text), where
        assert text == " ".join(text.split()), (
            f"{where}: spaces are single and ordinary, and none is at an end"
        )
        assert not re.search(r"[‘’“”\u00a0\u202f…–]", text), where
        assert text[0] in '"«' or text[0].isupper(), where
        assert text.rstrip('"» ')[-1] in ".!?", where
        if row["language"] == "en":
            assert text.count('"') % 2 == 0, where
            assert not re.search(r"[«»]| [;:!?%,.]", text), where
        else:
            assert '"' not in text, where
            assert text.count("«") == text.count("»"), where
            assert not re.search(r"«(?! )|(?<! )[»;:!?%]| [,.]", text), where


def test_the_name_reads_it_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = read_corpus("short-texts")
    assert corpus.name == "short-texts"
    assert corpus.texts.select("id", "text", "language", "domain", "pair").to_dicts() == ROWS
    assert corpus.texts["problem"].null_count() == len(corpus) == 150


def test_a_bundled_name_comes_first_as_with_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short-texts").mkdir()
    (tmp_path / "short-texts" / "mine.txt").write_text("one two")
    assert len(read_corpus("short-texts")) == 150
    assert read_corpus("./short-texts").texts["text"].to_list() == ["one two"]


def test_a_missing_file_is_told_what_is_bundled():
    with pytest.raises(InputError, match=r"'short-text'.* bundled corpus \(short-texts\)"):
        read_corpus("short-text")


def test_thirty_words_leave_a_next_word_in_every_text():
    """So every text of the corpus has a measurement under `words:30`, with a surprisal."""
    seen: list[str] = []

    def encode(text):
        """A token a word."""
        seen.append(text)
        return [2 + len(word) for word in text.split()]

    for row in ROWS:
        (piece,) = Window.parse("words:30").pieces(row["text"], None, encode)
        assert piece.position == 29
        assert len(piece.ids) == 31
