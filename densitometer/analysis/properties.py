"""Properties of a prediction, as columns beside the measurements: what may go with density.

    n_tokens, entropy, surprisal       are stored: of the context, and of the full model's prediction, nats
    prompt_surprisal                   is stored by newer studies: mean nats per token of the prompt under the model
    position_in_text                   tokens of the text before the predicted one, where that is not n_tokens
    predicted_log_frequency, actual_log_frequency
                                       how frequent the token is in the study's other texts
    predicted_class, actual_class      what kind of token it is
    and those of the prompt and of the word that comes next (prompts.py)

What is not known is null, and a property that is null everywhere goes with nothing.
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
GROUPS = ("language", "domain")  # columns of the corpus
FEWEST_OF_A_LEVEL = 5  # texts, for a level of a class to be compared with the others

# Scripts that write words without spaces between them, as Unicode names their letters.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
_BYTES = re.compile(r"\\x[0-9a-f]{2}")


def describe(study: Study) -> polars.DataFrame:
    """Measurements of a study, with all properties that its tables give.

    Returns:
        `Study.measurements()`, in its order, with the columns `FACTORS` that it does not have itself.
    """
    window = study.manifest["settings"].get("window")
    return with_properties(with_prompts(study.measurements(), study.texts(), window), window)


def with_properties(measurements: polars.DataFrame, window: str | None = None) -> polars.DataFrame:
    """Add what the measurements alone give: frequencies, classes, the position.

    Columns that exist are kept.
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
    """Add how frequent the predicted and the actual next token are in the study's other texts.

    Counted in each model's own tokens: of each text, its longest piece. The text itself does not count, else each actual
    token would have been seen. log10((count + 1) / (tokens + 1)), no unit; null where there is no next token.
    """
    model = named(measurements)["model"]
    table = measurements.with_columns(_model=model)
    longest = (
        table.filter(polars.col("error").is_null(), polars.col("ids").is_not_null())
        .select("_model", "text_id", "ids")
        .sort(polars.col("ids").list.len(), descending=True, maintain_order=True)
        .unique(["_model", "text_id"], keep="first", maintain_order=True)
    )
    own = (
        longest.select("_model", "text_id", id="ids")
        .explode("id")
        .group_by("_model", "text_id", "id", maintain_order=True)
        .len("own")
    )
    every = own.group_by("_model", "id", maintain_order=True).agg(every=polars.col("own").sum())
    sizes = own.group_by("_model", "text_id", maintain_order=True).agg(size=polars.col("own").sum())
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
            own, left_on=["_model", "text_id", column], right_on=["_model", "text_id", "id"], how="left",
            maintain_order="left",
        )  # fmt: skip
        count = polars.col("every").fill_null(0) - polars.col("own").fill_null(0)
        share = ((count + 1) / (polars.col("others") + 1)).log10()
        table = table.with_columns(polars.when(polars.col(column).is_not_null()).then(share).alias(name))
        table = table.drop("every", "own")
    return table.drop("others", "_model")


def with_classes(measurements: polars.DataFrame) -> polars.DataFrame:
    """Add the class of the predicted and of the actual next token, from the stored tokens, which are readable text.

    "word start", "continuation" (of a word), "unspaced" (of a script without spaces between words), "digit", "punctuation"
    or "other" (special tokens, single bytes, white space). A tokenizer that marks beginnings writes them as a space before
    the token; a letter without one begins a word too where the prompt, if it is known, does not end in a word. One that
    marks ends does not say where the next token begins: words of such a model are null, and so are those of a model none
    of whose tokens begins with a space.
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
    """The class of a token.

    Args:
        token: as readable text.
        end: of the text before it, its last two characters; None where unknown.
        marked: whether the tokenizer writes the beginning of a word as a space.
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
    """Whether a letter after this text goes on with a word.

    It does after a letter or digit, also with an apostrophe or hyphen between.
    """
    if end[-1:] in ("'", "’", "-"):
        end = end[:-1]
    return end[-1:].isalnum() or unicodedata.category(end[-1:] or " ")[0] == "M"


def factor_columns(
    table: polars.DataFrame, names: Sequence[str]
) -> dict[tuple[str, str | None], polars.Series]:
    """Factors as numbers: by name and level, a column each.

    A number has no level. A class is as many columns of 0 and 1 as it has levels of `FEWEST_OF_A_LEVEL` texts, or one
    column for two; null stays null. Columns of one value are left out.
    """
    columns: dict[tuple[str, str | None], polars.Series] = {}
    for name in names:
        if table.schema[name].is_numeric():
            columns[name, None] = table[name].cast(polars.Float64)
            continue
        own = table.select("text_id", polars.col(name).cast(polars.String)).drop_nulls()
        counts = own.unique().group_by(name, maintain_order=True).len().sort(name)
        levels = counts.filter(polars.col("len") >= FEWEST_OF_A_LEVEL)[name].to_list()
        if len(counts) == 2:
            levels = levels[1:]
        for level in levels:
            columns[name, level] = (table[name].cast(polars.String) == level).cast(polars.Float64)
    return {key: column for key, column in columns.items() if column.drop_nulls().n_unique() > 1}


def label(factor: str, level: str | None) -> str:
    """A column of `factor_columns` in a word or two."""
    return factor if level is None else f"{factor} {level}"
