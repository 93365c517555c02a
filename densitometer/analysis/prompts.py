"""Properties of the prompt that a prediction was made from, and of the next word.

    prompt                  the text that the model read
    prompt_words, prompt_characters
                            its length
    prompt_log_frequency    mean over its words of log10((count + 1) / (words + 1)), counted in the
                            other texts of the language
    prompt_zipf             mean Zipf value of its words, log10 of occurrences in 10^9 words, from
                            wordfreq's large corpora
    type_token_ratio        distinct words over words; falls with length
    sentence_length         words per sentence; the last sentence counts even if the window cut it
    compression_ratio       bytes after zlib over bytes before, UTF-8; above 1 for short prompts
    lix                     readability by textstat: words per sentence plus percent of words of
                            more than six letters (Björnsson 1968). It needs no dictionary, so it is
                            the same measure in every language
    next_word_zipf          Zipf value of the next word, from wordfreq
    part_of_speech          universal tag of the next word, from a spaCy pipeline of the language

`lix`, part_of_speech and the Zipf values need `pip install 'densitometer[linguistics]'`, and are
null without it. The language is an ISO 639 code in the corpus's column `language`. A prompt is
known if the study stored it, or if it follows from the window, as it does for whole texts and
words. Words are runs of letters and digits, in lower case ("don't" has two; wordfreq has rules of
its own).
"""

from __future__ import annotations

import importlib
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import polars

from ..study.corpus import Window

WORD = r"[\p{L}\p{M}\p{N}]+"
SENTENCE_END = r"[.!?…]+[\"'”’»)\]]*(?:\s|$)|[。！？]+"
# Most texts of a language whose next words are tagged; of more, a random sample is.
MOST_TAGGED = 2000
# Characters from the next word on in which wordfreq looks for the word.
MOST_LETTERS = 50
# Sizes of spaCy's pipelines. The first that is installed for a language is used.
PIPELINES = ("sm", "md", "lg", "trf")


def with_prompts(
    measurements: polars.DataFrame, texts: polars.DataFrame, window: str | None
) -> polars.DataFrame:
    """Add the properties of prompts and next words.

    Args:
        measurements: `Study.measurements()`.
        texts: `Study.texts()`.
        window: the window of the study's settings.
    """
    table = _with_prompt(measurements, texts, window)
    known = table.select("text_id", "prompt").drop_nulls().unique(maintain_order=True)
    if known.is_empty():
        return table
    languages = texts.select("id", _language=_code(texts), _text="text", _next="next")
    known = known.join(languages, left_on="text_id", right_on="id", how="left", maintain_order="left")
    known = _complexity(known, texts.select(text=_whole(texts), language=_code(texts), text_id="id"))
    known = _next_word(known).drop("_language", "_text", "_next")
    return table.join(known, on=["text_id", "prompt"], how="left", maintain_order="left")


def installed_pipelines() -> dict[str, str]:
    """Return the installed spaCy pipeline of each language, by language code."""
    # the entry points by which spaCy itself finds them; importing spaCy would take seconds
    names = {entry.name for entry in entry_points(group="spacy_models")}

    def order(name: str) -> tuple[int, str]:
        size = name.rpartition("_")[2]
        return (PIPELINES.index(size) if size in PIPELINES else len(PIPELINES), name)

    pipelines: dict[str, str] = {}
    for name in sorted(names, key=order):
        pipelines.setdefault(name.partition("_")[0], name)
    return pipelines


@cache
def _optional(name: str) -> Any:
    """Import a package of the extra [linguistics]. Return None if it is not installed."""
    try:
        with warnings.catch_warnings():
            # these packages warn about each other's versions
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        return None


def _code(texts: polars.DataFrame) -> polars.Expr:
    """Expression for the base language of a tag: fr for fr, FR, fr-CA and fr_CA."""
    return polars.col("language").cast(polars.String).str.to_lowercase().str.extract(r"^([a-z]+)")


def _whole(texts: polars.DataFrame) -> polars.Expr:
    """Expression for a text with the words that follow it."""
    return polars.concat_str(["text", "next"], separator=" ", ignore_nulls=True)


def _with_prompt(
    measurements: polars.DataFrame, texts: polars.DataFrame, window: str | None
) -> polars.DataFrame:
    """Add the column `prompt`, null if it is unknown or the row has failed."""
    if "prompt" in measurements.columns:
        return measurements
    cut = Window.parse(window)
    if cut.kind == "whole":
        prompt = polars.col("text")
    elif cut.kind == "words":
        prompt = polars.col("text").str.extract(rf"^(\s*(?:\S+\s+){{{cut.sizes[0] - 1}}}\S+)")
    else:
        prompt = polars.lit(None, polars.String)
    prompts = texts.select(text_id="id", prompt=prompt)
    table = measurements.join(prompts, on="text_id", how="left", maintain_order="left")
    return table.with_columns(prompt=polars.when(polars.col("error").is_null()).then("prompt"))


def _complexity(known: polars.DataFrame, whole: polars.DataFrame) -> polars.DataFrame:
    """Add the properties of prompts.

    Args:
        known: a row per prompt.
        whole: text_id, language and text of every text of the corpus.
    """
    words = polars.col("prompt").str.to_lowercase().str.extract_all(WORD)
    known = known.with_columns(_words=words).with_row_index("_row")
    n = polars.col("_words").list.len()
    ends = polars.col("prompt").str.count_matches(SENTENCE_END)
    cut = ~polars.col("prompt").str.contains(rf"(?:{SENTENCE_END})\s*$")
    raw = known["prompt"].str.len_bytes()
    packed = polars.Series([len(zlib.compress(text.encode(), 9)) for text in known["prompt"]])
    known = known.with_columns(
        prompt_words=n,
        prompt_characters=polars.col("prompt").str.len_chars(),
        type_token_ratio=polars.when(n > 0).then(polars.col("_words").list.n_unique() / n),
        sentence_length=polars.when(n > 0).then(n / (ends + cut)),
        compression_ratio=packed / raw,
    )
    known = _word_frequency(known, whole)
    textstat, wordfreq = _optional("textstat"), _optional("wordfreq")
    if textstat is not None:
        lix = [float(textstat.lix(text)) for text in known["prompt"]]
        known = known.with_columns(lix=polars.when(n > 0).then(polars.Series(lix)))
    if wordfreq is not None:
        zipf = [_zipf(wordfreq, *row) for row in known.select("prompt", "_language").iter_rows()]
        means = [sum(values) / len(values) if values else None for values in zipf]
        known = known.with_columns(prompt_zipf=polars.Series(means, dtype=polars.Float64))
    return known.drop("_words", "_row")


def _word_frequency(known: polars.DataFrame, whole: polars.DataFrame) -> polars.DataFrame:
    """Add the mean log frequency of a prompt's words in the other texts of its language."""
    in_text = (
        whole.select("text_id", "language", word=polars.col("text").str.to_lowercase().str.extract_all(WORD))
        .explode("word")
        .drop_nulls("word")
        .group_by("text_id", "language", "word", maintain_order=True)
        .len("own")
    )
    every = in_text.group_by("language", "word", maintain_order=True).agg(every=polars.col("own").sum())
    sizes = in_text.group_by("language", "text_id", maintain_order=True).agg(size=polars.col("own").sum())
    sizes = sizes.with_columns(others=polars.col("size").sum().over("language") - polars.col("size"))
    used = (
        known.select("_row", "text_id", language="_language", word="_words")
        .explode("word")
        .drop_nulls("word")
        .join(every, on=["language", "word"], how="left", nulls_equal=True)
        .join(in_text, on=["text_id", "language", "word"], how="left", nulls_equal=True)
        .join(sizes.select("text_id", "others"), on="text_id", how="left")
    )
    count = polars.col("every").fill_null(0) - polars.col("own").fill_null(0)
    means = used.group_by("_row", maintain_order=True).agg(
        prompt_log_frequency=((count + 1) / (polars.col("others") + 1)).log10().mean()
    )
    return known.join(means, on="_row", how="left", maintain_order="left")


@cache
def _counted_languages() -> frozenset[str]:
    """Languages that wordfreq knows."""
    return frozenset(_optional("wordfreq").available_languages())


def _zipf(wordfreq: Any, text: str, language: str | None) -> list[float]:
    """Zipf values of a text's words. Empty for a language that wordfreq does not know."""
    if language not in _counted_languages():
        return []
    return [float(wordfreq.zipf_frequency(word, language)) for word in wordfreq.tokenize(text, language)]


def _next_word(known: polars.DataFrame) -> polars.DataFrame:
    """Add the properties of the word that follows each prompt."""
    places = [_place(*row) for row in known.select("prompt", "_text", "_next").iter_rows()]
    wordfreq = _optional("wordfreq")
    if wordfreq is not None:
        values = [
            next(iter(_zipf(wordfreq, _from_word(place), language)), None)
            for place, language in zip(places, known["_language"], strict=True)
        ]
        known = known.with_columns(next_word_zipf=polars.Series(values, dtype=polars.Float64))
    tags: list[str | None] = [None] * len(known)
    for language, name in installed_pipelines().items():
        rows = [i for i, place in enumerate(places) if place and known["_language"][i] == language]
        if len(rows) > MOST_TAGGED:
            rows = polars.Series(rows).sample(MOST_TAGGED, seed=0).sort().to_list()
        if rows:
            pipeline = load_pipeline(name)
            known_places = [place for i in rows if (place := places[i])]
            for i, tag in zip(rows, _tags(pipeline, known_places), strict=True):
                tags[i] = tag
    return known.with_columns(part_of_speech=polars.Series(tags, dtype=polars.String))


def _place(prompt: str, text: str, after: str | None) -> tuple[str, int] | None:
    """Return a text with the words that follow it, and the index of the prompt's continuation.

    The index is that of the first character after the prompt that is not white space. None if there
    is no such character, or if the text does not begin with the prompt.
    """
    if after:
        joint = "" if text[-1:].isspace() or after[:1].isspace() else " "
        text = text + joint + after
    # decoded tokens may differ from the text, for example in case
    if not text.startswith(prompt):
        return None
    rest = text[len(prompt) :].lstrip()
    return (text, len(text) - len(rest)) if rest else None


def _from_word(place: tuple[str, int] | None) -> str:
    """Return the text from the beginning of the word at an index.

    Empty if the character there is not part of a word.
    """
    if place is None or not place[0][place[1]].isalnum():
        return ""
    text, start = place
    while start and text[start - 1].isalnum():
        start -= 1
    return text[start : start + MOST_LETTERS]


@cache
def load_pipeline(name: str) -> Any:
    """Load a spaCy pipeline, without the components that tags do not need."""
    spacy = _optional("spacy")
    return spacy.load(name, exclude=["parser", "ner", "lemmatizer", "senter"])


def _tags(pipeline: Any, places: list[tuple[str, int]]) -> Iterator[str | None]:
    """Part of speech of the word at an index of each text."""
    for doc, at in pipeline.pipe(places, as_tuples=True):
        span = doc.char_span(at, at + 1, alignment_mode="expand")
        yield (span[0].pos_ or None) if span is not None and len(span) else None
