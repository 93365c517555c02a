"""A corpus of texts to measure, and the windows that cut pieces from each text.

This file knows nothing of models. A corpus is read from

    .txt                one text per line, paragraph or file (`unit`)
    .jsonl, .ndjson     one object per line
    .json               an array of texts or objects
    .csv, .tsv          with a header, or without one the papers' `context<TAB>next word`
    .parquet, .xlsx     one text per row
    any of these compressed, with .gz, .zst, .bz2 or .xz at the end of its name
    a folder            every such file in it and in its subfolders, sorted by name; or what
                        `save_to_disk` of `datasets` wrote
    hf:NAME[:split]     a Hub dataset or a local folder, read with `datasets`; NAME is
                        owner/name[/configuration]
    -                   standard input: JSON, a table with a header, or lines of text
    short-texts         bundled: 75 texts of 30 to 45 words in five domains, each in English and
                        French (with the same `pair`)
    memory              texts, chats or dicts in a list; a frame of polars or pandas, a table of
                        pyarrow, a `datasets.Dataset` (`corpus_memory.py`)

A bundled name is preferred to a file of that name, as with bundled models. Give ./short-texts for a
file or folder called short-texts in the current folder.

Columns are `id` (by default the number of the line or row), `text`, `language`, `domain`, `next`
(the words that follow the text; not measured, but their first token's surprisal is reported), and
any others, which are carried into the results. A row whose text is empty or is not UTF-8 stays in
the corpus with its `problem`. It becomes a failed row of the study, so that nothing is lost
silently. Where the files of a folder give the same ids, ids are FILE:ID.

Where there is no column `text`, chats are read from `messages` or `conversations` (`chats.py`). A
chat is measured at the first token of its last answer. Its row has the messages before that as JSON
in `chat_messages`, their contents as `text`, and the answer as `next`.

Windows:

    words:N             the first N words (the papers take 40)
    tokens:N            the first N tokens
    sliding:N:STRIDE    N tokens from each STRIDE-th token on
    positions           every position from the second token on, each with all the text before it
    sweep:N,N,...       the same target, the text's last token, after N tokens of context
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars

from ..errors import ArgumentTypeError, InputError
from .chats import CHAT, Chat, chat_of, is_chat_value
from .corpus_files import (
    CHAT_COLUMNS,
    EXTENSIONS,
    FILE,
    LINE,
    OWN_COLUMNS,
    RAW,
    Reading,
    Unit,
    checked_delimiter,
    is_private,
    read_hub,
    read_path,
    read_standard_input,
    readable,
    refuse_address,
)
from .corpus_memory import is_null, plain, rows_in_memory

__all__ = [
    "BUNDLED_CORPORA", "CHAT", "EXTENSIONS", "OWN_COLUMNS", "Corpus", "Piece", "Unit", "Window", "read_corpus",
]  # fmt: skip

BUNDLED_CORPORA = {"short-texts": Path(__file__).parent / "texts" / "short.jsonl"}
# Deepest nesting of a carried value. The time that polars takes grows with the cube of the depth.
MOST_NESTING = 64
_SURROGATE = "holds a lone surrogate"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts to measure.

    Args:
        name: where the texts come from.
        texts: one row per text, with the columns id, text, language, domain, next and problem (all
            String, null if unknown), and any others.
    """

    name: str
    texts: polars.DataFrame = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the content of all rows. It does not depend on the format of the file.

        Raises:
            InputError: a value has no counterpart in Python, such as a date after the year 9999.
        """
        digest = hashlib.sha256(json.dumps(self.texts.columns).encode())
        with readable(f"the corpus {self.name!r}"):
            for row in self.texts.iter_rows():
                digest.update(json.dumps(row, default=str, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()

    def usable(self) -> list[Any]:
        """Return what can be measured of each row without a problem: its text, or its chat."""
        rows = self.texts.filter(polars.col("problem").is_null())
        chats = rows[CHAT].to_list() if CHAT in rows.columns else [None] * rows.height
        return [
            text if chat is None else Chat.parse(chat, after).whole
            for text, after, chat in zip(rows["text"], rows["next"], chats, strict=True)
        ]

    def __len__(self) -> int:
        return self.texts.height


def read_corpus(
    source: Any,
    unit: Unit = "line",
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
) -> Corpus:
    """Read a corpus.

    Args:
        source: a path, `-` (standard input), `hf:NAME[:split]` or `short-texts` (bundled, no
            network); or rows in memory: a list of texts, of dicts or of chats, a frame of polars or
            pandas, a table of pyarrow, or a `datasets.Dataset`, with a column of texts or chats.
        unit: what one text of a .txt file is: a line, a paragraph or the file.
        columns: names that the source gives to columns, by the names used here, such as
            {"text": "content"}.
        delimiter: the character between the fields of a .csv or .tsv, or "tab"; by default it is
            found from the header.

    Raises:
        InputError: the file does not exist, or is empty, binary or malformed; the corpus has no
            text column; two rows have the same id.
        ArgumentTypeError: the source is neither a path nor texts.
    """
    if unit not in ("line", "paragraph", "file"):
        raise InputError(f"unknown unit {unit!r}; expected 'line', 'paragraph' or 'file'")
    if not isinstance(columns, Mapping | None):
        raise ArgumentTypeError(
            f"columns must map names to names, such as {{'text': 'content'}}; got {columns!r}"
        )
    reading = Reading(unit, dict(columns or {}), checked_delimiter(delimiter))
    if isinstance(source, Corpus):
        return source
    if not isinstance(source, str | Path):
        return _corpus("texts in memory", rows_in_memory(source, reading.text), reading)
    name = str(source)
    if name == "-":
        return _corpus("standard input", read_standard_input(reading), reading)
    refuse_address(name)
    if name.startswith("hf:"):
        return _corpus(name, read_hub(name[3:]), reading)
    path = BUNDLED_CORPORA.get(name, Path(source))
    return _corpus(name, read_path(path, reading, ", ".join(BUNDLED_CORPORA)), reading)


def _corpus(name: str, rows: list[dict[str, Any]], reading: Reading) -> Corpus:
    columns = reading.columns
    if not rows:
        raise InputError(f"the corpus {name!r} is empty: it holds no text")
    present = list(dict.fromkeys(key for row in rows for key in row if not is_private(key)))
    wanted = {column: columns.get(column, column) for column in OWN_COLUMNS if column != "problem"}
    for column, source in columns.items():
        if column not in wanted or source not in present:
            raise InputError(
                f"cannot take the column {column!r} from {source!r}; columns that can be mapped are "
                f"{', '.join(wanted)}, and {name!r} has {', '.join(present)}"
            )
    if wanted["text"] not in present and "text" not in columns:
        wanted["text"] = next((column for column in CHAT_COLUMNS if column in present), "text")
    if wanted["text"] not in present:
        raise InputError(
            f"the corpus {name!r} has no column {wanted['text']!r}: it has {', '.join(present)}; rename one, "
            "or name the column of the texts (columns={'text': NAME}, --column text=NAME); of a table also the "
            "delimiter, if it is another (delimiter=';', --delimiter ';')"
        )
    others = [key for key in present if key not in {*wanted.values(), "problem"}]
    _refuse_columns_of_results(name, set(others))
    table: dict[str, list[Any]] = {key: [] for key in (*OWN_COLUMNS, *others)}
    chats: list[str | None] = []
    for number, row in enumerate(rows, start=1):
        values = {column: _no_null(row.get(source)) for column, source in wanted.items()}
        identifier = values.pop("id")
        table["id"].append(str(row.get(LINE, number) if identifier is None else identifier))
        chat = None
        if is_chat_value(values["text"], of_chats=wanted["text"] in CHAT_COLUMNS):
            found = chat_of(values["text"])
            if isinstance(found, Chat):
                chat = found.context_json
                values |= {"text": found.text, "next": found.answer}
            problem = found if isinstance(found, str) else _problem(values, raw=False)
        else:
            problem = _problem(values, row.get(RAW, False))
        chats.append(None if chat is None else _clean(chat))
        table["problem"].append(problem)
        for column, value in values.items():
            table[column].append(None if value is None else _clean(str(value)))
        for key in others:
            value = row.get(key)
            if _is_deeper(value, MOST_NESTING):
                raise InputError(
                    f"the corpus {name!r} has values nested more than {MOST_NESTING} deep in the column "
                    f"{key!r} (text {table['id'][-1]}); leave that column out, or flatten it"
                )
            table[key].append(_clean(value) if isinstance(value, str) else value)
    if any(chat is not None for chat in chats):
        if CHAT in others:
            raise InputError(
                f"the corpus {name!r} has chats and a column {CHAT!r}, which is the name under which they are kept; rename it"
            )
        table[CHAT] = chats
    table["id"] = _of_files(table["id"], [row.get(FILE) for row in rows])
    repeated = [i for i, n in Counter(table["id"]).items() if n > 1]
    if repeated:
        raise InputError(
            f"the corpus {name!r} has {len(repeated):,} ids on more than one row, such as {repeated[0]!r}; "
            "ids name the rows of the results, so give each row its own"
        )
    # A file in another encoding or of empty lines is a mistake. A text that cannot be stored is one
    # row's fault.
    if all(problem is not None and _SURROGATE not in problem for problem in table["problem"]):
        raise InputError(f"no text of the corpus {name!r} can be used; the first: {table['problem'][0]}")
    return Corpus(name, _frame(name, table, others))


def _of_files(ids: list[str], files: list[str | None]) -> list[str]:
    """Return ids as FILE:ID if two files of a folder have the same id, otherwise unchanged."""
    first: dict[str, str | None] = {}
    for identifier, file in zip(ids, files, strict=True):
        if first.setdefault(identifier, file) != file:
            return [
                i if f is None or i == f or i.startswith(f"{f}:") else f"{f}:{i}"
                for i, f in zip(ids, files, strict=True)
            ]
    return ids


def _frame(name: str, table: dict[str, list[Any]], others: Sequence[str]) -> polars.DataFrame:
    """Build the frame of a corpus. Columns without a common type or common keys become JSON.

    Raises:
        InputError: a value is not a character or cannot be stored.
    """
    types: dict[str, Any] = dict.fromkeys(OWN_COLUMNS, polars.String)
    if CHAT in table:
        types[CHAT] = polars.String
    try:
        json.dumps(table, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the corpus {name!r} holds half of a surrogate pair, {error.object[error.start]!a}, in an id or "
            "another column than its text; it is not a character and cannot be stored. Remove it"
        ) from error
    except (TypeError, ValueError) as error:
        # keys that are not strings, or a value that holds itself
        raise InputError(
            f"the corpus {name!r} has a value that cannot be stored ({error}); leave its column out, or make text of it"
        ) from error
    try:
        frame = polars.DataFrame(table, schema_overrides=types, infer_schema_length=None)
    except (
        TypeError,
        ValueError,
        OverflowError,
        polars.exceptions.PolarsError,
        polars.exceptions.PanicException,
    ):
        # A carried column has mixed types, or numbers beyond 128 bits. All carried columns become
        # JSON, so that nothing is dropped.
        text = {k: [None if v is None else json.dumps(v, default=str) for v in table[k]] for k in others}
        return polars.DataFrame(table | text, schema_overrides=types)
    changed = [key for key in others if _is_changed(frame[key], table[key])]
    if not changed:
        return frame
    text = {}
    for key in changed:
        try:
            text[key] = [None if v is None else json.dumps(v, default=plain) for v in table[key]]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the corpus {name!r} has values in the column {key!r} that cannot be stored: {error}; leave that "
                "column out, or make text or numbers of it"
            ) from error
    return polars.DataFrame(table | text, schema_overrides=types, infer_schema_length=None)


def _is_changed(column: polars.Series, values: list[Any]) -> bool:
    """Whether polars cannot store a column, or has dropped keys that its first object lacks."""
    return "Object" in str(column.dtype) or (
        column.dtype.is_nested() and not _is_same(column.to_list(), values)
    )


def _is_same(stored: Any, given: Any) -> bool:
    if isinstance(given, Mapping):
        return (
            stored is not None
            and stored.keys() == given.keys()
            and all(_is_same(stored[k], given[k]) for k in given)
        )
    if isinstance(given, list | tuple):
        return stored is not None and len(stored) == len(given) and all(map(_is_same, stored, given))
    return bool(stored == given or (stored != stored and given != given))  # NaN is not itself


def _no_null(value: Any) -> Any:
    """Return a value, or None if it is another package's missing value (NaN, NA, NaT)."""
    return None if is_null(value) else value


def _refuse_columns_of_results(name: str, others: set[str]) -> None:
    """Refuse columns whose names a study's table of measurements needs (`Study.measurements`)."""
    if "text_id" in others:
        raise InputError(
            f"the corpus {name!r} has a column 'text_id', which is the results' name for the id of a text; "
            "rename it, or use it as the id (columns={'id': 'text_id'}, --column id=text_id)"
        )
    for column in sorted(others):
        if (twin := f"{column}_of_text") in others:
            raise InputError(
                f"the corpus {name!r} has columns {column!r} and {twin!r}; results rename {column!r} of a corpus "
                f"to {twin!r} if they have a column {column!r} themselves. Rename one of the two"
            )


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper than `depth`. The search itself stops there."""
    if not isinstance(value, dict | list | tuple):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(
        _is_deeper(part, depth - 1) for part in inside if isinstance(part, dict | list | tuple)
    )


def _problem(values: Mapping[str, Any], raw: bool) -> str | None:
    """Write why a text cannot be measured. None if it can.

    Args:
        values: the row's own columns.
        raw: whether lone surrogates in the text stand for bytes of the file that are not UTF-8.
    """
    text = values["text"]
    if text is None or not str(text).strip():
        return "the text is empty"
    if not isinstance(text, str):
        return f"text must be a string, got {type(text).__name__}"
    for name in ("text", "next"):
        bad = next((c for c in str(values[name] or "") if "\ud800" <= c <= "\udfff"), None)
        if bad is None:
            continue
        if raw and "\udc80" <= bad <= "\udcff":
            return f"the {name} is not UTF-8 (byte 0x{ord(bad) & 0xFF:02x}); convert the corpus to UTF-8"
        return (
            f"the {name} {_SURROGATE}, U+{ord(bad):04X}: half of a surrogate pair, which is not a character; "
            "remove it"
        )
    return None


def _clean(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8") if not text.isascii() else text


@dataclass(frozen=True)
class Piece:
    """One prediction to measure: a context from a text, and the position that predicts.

    Args:
        number: index of the piece within its text, from 0.
        ids: token ids of the context, and of the next token if it is known.
        position: index of the token whose next-token prediction is measured.
    """

    number: int
    ids: tuple[int, ...]
    position: int


@dataclass(frozen=True)
class Window:
    """Rule by which pieces are cut from a text.

    Args:
        kind: "whole", "words", "tokens", "sliding", "positions" or "sweep".
        sizes: the numbers of the rule, such as the length and stride of "sliding".
    """

    kind: str = "whole"
    sizes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Window:
        """Parse `words:40`, `tokens:32`, `sliding:32:16`, `positions` or `sweep:8,16,32`.

        None means the whole text.

        Raises:
            InputError: the string is none of these, or a number in it is not positive.
            ArgumentTypeError: the window is neither a string nor None.
        """
        if not isinstance(text, str | None):
            raise ArgumentTypeError(f"a window must be a string such as words:40, or None; got {text!r}")
        kind, _, rest = (text or "whole").partition(":")
        parts = [part for part in rest.replace(",", ":").split(":") if part]
        numbers = tuple(
            int(part)
            for part in parts
            if part.isascii() and part.isdigit() and len(part) < 10 and int(part) > 0
        )
        expected = {
            "whole": 0,
            "words": 1,
            "tokens": 1,
            "sliding": 2,
            "positions": 0,
            "sweep": len(parts) or 1,
        }
        if kind not in expected or len(parts) != len(numbers) or len(numbers) != expected[kind]:
            raise InputError(
                f"unknown window {text!r}; expected words:N, tokens:N, sliding:N:STRIDE, positions or "
                "sweep:N,N,..."
            )
        return cls(kind, tuple(sorted(set(numbers))) if kind == "sweep" else numbers)

    def pieces(
        self, text: str, after: str | None, encode: Callable[[str], Sequence[int]], start: int | None = None
    ) -> list[Piece]:
        """Cut a text into pieces.

        Args:
            text: the text.
            after: the words that follow the text; their first token is reported as the next one.
            encode: function from a text to its token ids.
            start: id of the token that the tokenizer puts before every text, if any. It stays in
                front of every piece and does not count as context.

        Raises:
            InputError: the text is shorter than the window.
        """
        if self.kind == "words":
            text, after = _first_words(text, self.sizes[0], after)
        ids = tuple(encode(text))
        context = len(ids)
        if after:
            joint = "" if text[-1:].isspace() or after[:1].isspace() else " "
            longer = tuple(encode(text + joint + after))
            # otherwise a token spans the seam between the two, and no token is the next one
            if longer[:context] == ids:
                ids = longer[: context + 1]
        head = ids[:1] if ids and ids[0] == start else ()
        body, context = ids[len(head) :], context - len(head)
        return [
            Piece(number, (*head, *body[begin : end + 1]), len(head) + end - begin - 1)
            for number, (begin, end) in enumerate(self._spans(context, len(body), len(head)))
        ]

    def _spans(self, context: int, total: int, head: int) -> list[tuple[int, int]]:
        """Begin and end of each piece's context, counted in tokens after the start token.

        Args:
            context: tokens of the text.
            total: tokens of the text and of what is known to follow it.
            head: start tokens, 0 or 1.
        """
        sizes = self.sizes
        if self.kind in ("whole", "words"):
            return [(0, context)]
        if self.kind == "positions":
            return [(0, end) for end in range(2 - head, context + 1)]
        if self.kind == "sweep":
            # the target is the token after the text if that is known, else the text's last token
            end = context if total > context else context - 1
            self._check(end, "tokens of context")
            return [(end - size, end) for size in sizes]
        self._check(context, "tokens")
        step = sizes[1] if self.kind == "sliding" else context
        return [(begin, begin + sizes[0]) for begin in range(0, context - sizes[0] + 1, step)]

    def _check(self, found: int, what: str) -> None:
        needed = self.sizes[-1] if self.kind == "sweep" else self.sizes[0]
        if found < needed:
            raise InputError(f"the text has {found} {what}, fewer than the {needed} of the window")


def _first_words(text: str, count: int, after: str | None) -> tuple[str, str | None]:
    """Return the first `count` words with the white space between them, and the word after them.

    If the text has no further word, that is `after`.
    """
    words = text.split(maxsplit=count + 1)[: count + 1]
    if len(words) < count:
        raise InputError(f"the text has {len(words)} words, fewer than the {count} of the window")
    end = 0
    for word in words[:count]:
        end = text.index(word, end) + len(word)
    if len(words) == count:
        return text[:end], after
    return text[:end], text[end : text.index(words[count], end) + len(words[count])]
