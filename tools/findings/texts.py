"""The texts of the findings: cut from where a user has them, and after that read back from the stored studies.

    passages    the first 40 words of passages of WikiText-2's test file, spread evenly over it
    contexts    the first 64 words of other passages, for the same target after shorter and longer contexts
    languages   the articles of the Universal Declaration of Human Rights in four languages, aligned, at most 20 words each
    code        functions of this package

A text comes with the one word that follows it, so that the next token is known; nothing more is stored.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from math import gcd
from pathlib import Path
from typing import Any

import polars

import densitometer as dm
from densitometer.study.corpus import Corpus, read_corpus

PACKAGE = Path(dm.__file__).parent
WIKITEXT = "wikitext2-test.txt"
DECLARATION = "udhr.jsonl"
HUB_WIKITEXT = "hf:Salesforce/wikitext/wikitext-2-raw-v1:test"
LANGUAGES = ("en", "fr", "es", "de")
PASSAGES, WORDS = 100, 40
LONG_PASSAGES, LONG = 30, 64
WORDS_OF_AN_ARTICLE = 20
FUNCTIONS, WORDS_OF_CODE = 30, 16


class MissingTexts(Exception):
    """Texts that a study needs are not where they were looked for."""


def corpus(name: str, stored: Iterable[Path], data: str | None) -> Corpus:
    """Texts of a study: those that it or another study of the same texts has stored, else those of the data.

    Args:
        name: passages, contexts, languages or code.
        stored: folders of studies of these texts.
        data: a folder with the files, or `hf:` for WikiText from the Hub.

    Raises:
        MissingTexts: no such study is begun, and the data is not there.
    """
    for folder in stored:
        if (folder / "texts.parquet").is_file():
            return Corpus(name, polars.read_parquet(folder / "texts.parquet"))
    rows = {"passages": passages, "contexts": contexts, "languages": languages, "code": code}[name](data)
    return Corpus(name, read_corpus(rows).texts)


def first(text: str, words: int) -> dict[str, str]:
    """The first words of a text as they are written, and the word after them."""
    places = [match.span() for match in re.finditer(r"\S+", text)]
    words = min(words, len(places) - 1)
    return {"text": text[: places[words - 1][1]], "next": text[slice(*places[words])]}


def wikitext(data: str | None, words: int, count: int) -> list[str]:
    """Passages that are long enough, without headings and unknown words, spread evenly over the file."""
    if data == "hf:":
        lines = read_corpus(HUB_WIKITEXT).texts["text"].to_list()
    else:
        lines = file(data, WIKITEXT).read_text(encoding="utf-8").split("\n")
    found = [
        plain
        for line in lines
        if line and not line.strip().startswith("=")
        and len((plain := _untokenised(line)).split()) > words and "<unk>" not in " ".join(plain.split()[: words + 1])
    ]  # fmt: skip
    if len(found) < count:
        raise MissingTexts(f"{WIKITEXT} has {len(found)} passages of {words} words; {count} are needed")
    spread = [found[i * len(found) // count] for i in range(count)]
    # neighbours in the file are of one article: any first part of these is spread over all of it
    step = next(n for n in range(count * 3 // 8, count) if gcd(n, count) == 1)
    return [spread[i * step % count] for i in range(count)]


def passages(data: str | None) -> list[dict[str, Any]]:
    about = {"language": "en", "domain": "encyclopaedia"}
    found = wikitext(data, WORDS, PASSAGES)
    return [{"id": f"wiki-{i:03}", **about, **first(text, WORDS)} for i, text in enumerate(found)]


def contexts(data: str | None) -> list[dict[str, Any]]:
    about = {"language": "en", "domain": "encyclopaedia"}
    found = wikitext(data, LONG, LONG_PASSAGES)
    return [{"id": f"long-{i:03}", **about, **first(text, LONG)} for i, text in enumerate(found)]


def languages(data: str | None) -> list[dict[str, Any]]:
    """Articles one after the other, each in all languages; `pair` is the article."""
    found: dict[str, dict[str, str]] = {}
    for row in declaration(data):
        found.setdefault(row["id"], {})[row["language"]] = row["text"]
    # the long articles first, so that a first part of them is the part that is most alike in length
    order = sorted(
        found, key=lambda key: min(20, *(len(found[key][name].split()) for name in LANGUAGES)) < 20
    )
    return [
        {"id": f"{article}-{language}", "language": language, "domain": "law", "pair": article}
        | first(found[article][language], WORDS_OF_AN_ARTICLE)
        for article in order for language in LANGUAGES
    ]  # fmt: skip


def declaration(data: str | None) -> list[dict[str, Any]]:
    """Rows of the Universal Declaration: id of the article, language, text."""
    return [json.loads(line) for line in file(data, DECLARATION).read_text(encoding="utf-8").splitlines()]


def code(data: str | None) -> list[dict[str, Any]]:
    """Functions of this package, one of a file, from the `def` on, without the docstring."""
    del data
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = next((t for t in _functions(path) if len(t.split()) > WORDS_OF_CODE), None)
        if text:
            name = path.relative_to(PACKAGE).with_suffix("").as_posix()
            found.append(
                {"id": f"code-{name}", "language": "python", "domain": "code", **first(text, WORDS_OF_CODE)}
            )
    return [found[i * len(found) // FUNCTIONS] for i in range(FUNCTIONS)]


def _functions(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is None:
            yield ast.get_source_segment(source, node) or ""


def _untokenised(line: str) -> str:
    text = line.strip()
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    text = re.sub(r'" ([^"]*) "', r'"\1"', text)
    text = re.sub(r" ([.,;:!?)\]%]|'s\b)", r"\1", text)
    return re.sub(r"([(\[$£]) ", r"\1", text)


def file(data: str | None, name: str) -> Path:
    if data is None or data == "hf:" or not (Path(data) / name).is_file():
        where = "no data folder is given" if data in (None, "hf:") else f"{name} is not in it"
        raise MissingTexts(f"{name} is needed to begin; {where}: give --data FOLDER, or FINDINGS_DATA")
    return Path(data) / name
