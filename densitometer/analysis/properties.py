"""Properties of a prediction, as columns beside the measurements, to be related to density.

    n_tokens                           tokens of the context; stored by the study
    entropy, surprisal                 of the full model's prediction, in nats; stored by the study
    prompt_surprisal                   mean surprisal of the prompt's tokens, in nats; stored by
                                       newer studies
    position_in_text                   tokens of the text before the predicted one, if that is not
                                       n_tokens
    predicted_log_frequency, actual_log_frequency
                                       frequency of the token in the study's other texts
    predicted_class, actual_class      class of the token
    properties of the prompt and of the next word (prompts.py)

Unknown values are null. A property that is null everywhere is not related to anything.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars

from ..study.corpus import Window
from .prompts import with_prompts
from .statistics import named

if TYPE_CHECKING:
    from ..study.store import Study

NUMBERS = (
    "n_tokens", "position_in_text", "entropy", "surprisal", "predicted_log_frequency", "actual_log_frequency",
    "next_word_zipf", "prompt_surprisal", "prompt_log_frequency", "prompt_zipf", "prompt_words", "prompt_characters",
    "type_token_ratio", "sentence_length", "compression_ratio", "lix",
)  # fmt: skip
CLASSES = ("predicted_class", "actual_class", "part_of_speech")
FACTORS = (*NUMBERS, *CLASSES)
# Columns of the corpus.
GROUPS = ("language", "domain")
# A level of a class is compared with the others only if it has at least this many texts.
FEWEST_OF_A_LEVEL = 5

# First words of Unicode's names for letters of scripts without spaces between words.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
_BYTES = re.compile(r"\\x[0-9a-f]{2}")


def describe(study: Study) -> polars.DataFrame:
    """Return the measurements of a study with all properties that can be derived from its tables.

    Returns:
        `Study.measurements()`, in its order, with the columns `FACTORS` that it does not have yet.
    """
    window = study.manifest["settings"].get("window")
    return with_properties(with_prompts(study.measurements(), study.texts(), window), window)


def with_properties(measurements: polars.DataFrame, window: str | None = None) -> polars.DataFrame:
    """Add properties that follow from the measurements alone: frequencies, classes and position.

    Existing columns are kept. Properties that cannot be derived become null.

    Args:
        measurements: `Study.measurements()`.
        window: the window of the study's settings.
    """
    missing = [name for name in FACTORS if name not in measurements.columns]
    if not missing:
        return measurements
    table = with_frequencies(measurements)
    if {"top_token", "next_token"} & set(table.columns):
        table = with_classes(table)
    cut = Window.parse(window)
    if cut.kind == "sliding":
        size, step = cut.sizes
        table = table.with_columns(position_in_text=(polars.col("piece") * step + size).cast(polars.Int64))
    rest = {
        name: polars.lit(None, polars.Float64 if name in NUMBERS else polars.String)
        for name in FACTORS
        if name not in table.columns
    }
    return table.with_columns(**rest)


def with_frequencies(measurements: polars.DataFrame) -> polars.DataFrame:
    """Add the frequency of the predicted and of the actual next token in the study's other texts.

    It is log10((count + 1) / (tokens + 1)), counted with each model's tokenizer over the longest
    piece of each text. The measured text does not count, because every actual next token occurs in
    it. Null without a next token.
    """
    model = named(measurements)["model"]
    table = measurements.with_columns(_model=model)
    longest = (
        table.filter(polars.col("error").is_null(), polars.col("ids").is_not_null())
        .select("_model", "text_id", "ids")
        .sort(polars.col("ids").list.len(), descending=True, maintain_order=True)
        .unique(["_model", "text_id"], keep="first", maintain_order=True)
    )
    in_text = (
        longest.select("_model", "text_id", id="ids")
        .explode("id")
        .group_by("_model", "text_id", "id", maintain_order=True)
        .len("own")
    )
    every = in_text.group_by("_model", "id", maintain_order=True).agg(every=polars.col("own").sum())
    sizes = in_text.group_by("_model", "text_id", maintain_order=True).agg(size=polars.col("own").sum())
    sizes = sizes.with_columns(others=polars.col("size").sum().over("_model") - polars.col("size"))
    table = table.join(
        sizes.select("_model", "text_id", "others"),
        on=["_model", "text_id"],
        how="left",
        maintain_order="left",
    )
    for column, name in (("top_id", "predicted_log_frequency"), ("next_id", "actual_log_frequency")):
        table = table.join(
            every, left_on=["_model", column], right_on=["_model", "id"], how="left", maintain_order="left"
        ).join(
            in_text, left_on=["_model", "text_id", column], right_on=["_model", "text_id", "id"], how="left",
            maintain_order="left",
        )  # fmt: skip
        count = polars.col("every").fill_null(0) - polars.col("own").fill_null(0)
        share = ((count + 1) / (polars.col("others") + 1)).log10()
        table = table.with_columns(polars.when(polars.col(column).is_not_null()).then(share).alias(name))
        table = table.drop("every", "own")
    return table.drop("others", "_model")


def with_classes(measurements: polars.DataFrame) -> polars.DataFrame:
    """Add the class of the predicted and of the actual next token.

    Classes are "word start", "continuation" (of a word), "unspaced" (a script without spaces
    between words), "digit", "punctuation" and "other" (special tokens, single bytes, white space).

    In most tokenizers, a token that begins a word starts with a space. A token of letters without a
    space also begins a word if the prompt is known and does not end inside a word. Some tokenizers
    mark the ends of words instead, which does not show whether the next token begins a word. For
    them, and for models without any token that starts with a space, tokens of letters have the
    class null.
    """
    tokens = {"top_token": "predicted_class", "next_token": "actual_class"}
    model = named(measurements)["model"]
    end = polars.col("prompt").str.tail(2) if "prompt" in measurements.columns else polars.lit(None)
    table = measurements.with_columns(_model=model, _end=end.cast(polars.String))
    marked = polars.any_horizontal(polars.col(c).str.starts_with(" ") for c in tokens if c in table.columns)
    table = table.with_columns(_marked=marked.fill_null(False).any().over("_model"))
    for column, name in tokens.items():
        if column not in table.columns:
            continue
        key = [column, "_end", "_marked"]
        known = table.select(key).unique(maintain_order=True)
        classes = [token_class(*row) for row in known.iter_rows()]
        known = known.with_columns(polars.Series(name, classes, polars.String))
        table = table.join(known, on=key, how="left", nulls_equal=True, maintain_order="left")
    return table.drop("_model", "_end", "_marked")


def token_class(token: str | None, end: str | None, marked: bool) -> str | None:
    """Class of a token, as described in `with_classes`. None if it is unknown.

    Args:
        token: the token as readable text.
        end: the last two characters of the text before it; None if unknown.
        marked: whether the tokenizer marks the beginning of a word by a space.
    """
    if token is None:
        return None
    text = token.strip()
    if not text or _SPECIAL.fullmatch(text) or _BYTES.match(text):
        return "other"
    first = text[0]
    category = unicodedata.category(first)
    if category[0] == "N":
        return "digit"
    if category[0] in "PS":
        return "punctuation"
    if category[0] not in "LM":
        return "other"
    if unicodedata.name(first, "").startswith(_UNSPACED):
        return "unspaced"
    if not marked:
        return None
    if token[0].isspace() or (end is not None and not _inside_a_word(end)):
        return "word start"
    return "continuation"


def _inside_a_word(end: str) -> bool:
    """Whether a letter after this text would continue a word.

    It would after a letter or digit, even with an apostrophe or hyphen between.
    """
    if end[-1:] in ("'", "’", "-"):
        end = end[:-1]
    return end[-1:].isalnum() or unicodedata.category(end[-1:] or " ")[0] == "M"


def factor_columns(
    table: polars.DataFrame, names: Sequence[str]
) -> dict[tuple[str, str | None], polars.Series]:
    """Return factors as columns of numbers, by name and level.

    A factor that is a number becomes one column, with level None. A class becomes a column of 0 and
    1 for each level with at least `FEWEST_OF_A_LEVEL` texts, or one column if it has two levels.
    Nulls stay null. Columns of only one value are left out.
    """
    columns: dict[tuple[str, str | None], polars.Series] = {}
    for name in names:
        if table.schema[name].is_numeric():
            columns[name, None] = table[name].cast(polars.Float64)
            continue
        known = table.select("text_id", polars.col(name).cast(polars.String)).drop_nulls()
        counts = known.unique().group_by(name, maintain_order=True).len().sort(name)
        levels = counts.filter(polars.col("len") >= FEWEST_OF_A_LEVEL)[name].to_list()
        if len(counts) == 2:
            levels = levels[1:]
        for level in levels:
            columns[name, level] = (table[name].cast(polars.String) == level).cast(polars.Float64)
    return {key: column for key, column in columns.items() if column.drop_nulls().n_unique() > 1}


def label(factor: str, level: str | None) -> str:
    """Readable name of a column of `factor_columns`, such as "domain news"."""
    return factor if level is None else f"{factor} {level}"
