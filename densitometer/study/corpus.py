"""A corpus of texts to measure, and the windows that cut pieces from each text.

This file knows nothing of models. A corpus is read from

    .txt                one text per line, paragraph or file (`unit`)
    .jsonl              one object per line
    .csv, .tsv          with a header, or without one the papers' `context<TAB>next word`
    .parquet            one text per row
    a folder            every such file in it and in its subfolders, sorted by name
    hf:NAME[:split]     a Hub dataset or a local folder, read with `datasets`; NAME is
                        owner/name[/configuration]
    short-texts         bundled: 75 texts of 30 to 45 words in five domains, each in English and
                        French (with the same `pair`)

A bundled name goes before a file of the same name, as with bundled models. Give ./short-texts for a
file or folder called short-texts in the current folder.

Columns are `id` (by default the number of the line or row), `text`, `language`, `domain`, `next`
(the words that follow the text; not measured, but their first token's surprisal is reported), and
any others, which are carried into the results. A row whose text is empty or is not UTF-8 stays in
the corpus with its `problem`. It becomes a failed row of the study, so that nothing is lost
silently.

Windows:

    words:N             the first N words (the papers take 40)
    tokens:N            the first N tokens
    sliding:N:STRIDE    N tokens from each STRIDE-th token on
    positions           every position from the second token on, each with all the text before it
    sweep:N,N,...       the same target, the text's last token, after N tokens of context
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars

from ..errors import ArgumentTypeError, InputError

Unit = Literal["line", "paragraph", "file"]
OWN_COLUMNS = ("id", "text", "language", "domain", "next", "problem")
EXTENSIONS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
BUNDLED_CORPORA = {"short-texts": Path(__file__).parent / "texts" / "short.jsonl"}
# Deepest nesting of a carried value. The time that polars takes grows with the cube of the depth.
MOST_NESTING = 64
# Key under which a row that was read keeps its line number. No file has a column of this name.
_LINE = "\0"


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
        with _readable(f"the corpus {self.name!r}"):
            for row in self.texts.iter_rows():
                digest.update(json.dumps(row, default=str, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.texts.height


def read_corpus(
    source: str | Path | Corpus | polars.DataFrame | Iterable[str],
    unit: Unit = "line",
    columns: Mapping[str, str] | None = None,
) -> Corpus:
    """Read a corpus.

    Args:
        source: a path, `hf:NAME[:split]` or `short-texts` (bundled, no network); or texts in
            memory, as a list of strings or a frame with a column `text`.
        unit: what one text of a .txt file is: a line, a paragraph or the file.
        columns: names that the source gives to columns, by the names used here, such as
            {"text": "content"}.

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
    if isinstance(source, Corpus):
        return source
    name = "texts in memory"
    if isinstance(source, polars.DataFrame):
        with _readable("the frame of texts"):
            rows = source.to_dicts()
    elif isinstance(source, str | Path):
        name = str(source)
        path = BUNDLED_CORPORA.get(name, Path(source))
        rows = _read_hub(name[3:]) if name.startswith("hf:") else _read_path(path, unit)
    else:
        texts = list(source) if isinstance(source, Iterable) else [source]
        if not all(isinstance(text, str) for text in texts):
            raise ArgumentTypeError(
                "a corpus must be a path, hf:NAME, a frame or a list of texts; got "
                f"{type(source).__name__} with values that are not strings"
            )
        rows = [{"text": text} for text in texts]
    return _corpus(name, rows, columns or {})


def _read_path(path: Path, unit: Unit) -> list[dict[str, Any]]:
    if not path.exists():
        raise InputError(
            f"there is no corpus {str(path)!r}; give a file, a folder, hf:NAME or a bundled corpus "
            f"({', '.join(BUNDLED_CORPORA)})"
        )
    if not path.is_dir():
        return _read_file(path, unit)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not files:
        raise InputError(
            f"the folder {str(path)!r} holds no corpus; expected a file ending in {', '.join(EXTENSIONS)}"
        )
    rows = []
    for file in files:
        inside = file.relative_to(path).as_posix()
        for number, row in enumerate(_read_file(file, unit), start=1):
            # a file that is one text is its own id; otherwise ids are file:line
            one_text = unit == "file" and file.suffix == ".txt"
            identifier = inside if one_text else f"{inside}:{row.pop(_LINE, number)}"
            rows.append({"id": identifier} | row | {"file": inside})
    return rows


def _read_file(path: Path, unit: Unit) -> list[dict[str, Any]]:
    """Read the rows of a corpus file, unchanged."""
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise InputError(
            f"cannot read {str(path)!r} as a corpus; expected a file ending in {', '.join(EXTENSIONS)}, "
            "a folder or hf:NAME"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if suffix == ".parquet":
        with _readable(repr(str(path)), "is not a Parquet file, or is damaged"):
            return polars.read_parquet(io.BytesIO(content)).to_dicts()
    text = _decode(path, content)
    if suffix == ".txt":
        return _paragraphs(text, unit)
    if suffix == ".jsonl":
        return _objects(path, text)
    return _table(path, text, "\t" if suffix == ".tsv" else ",")


@contextmanager
def _readable(what: str, fault: str = "cannot be read") -> Iterator[None]:
    """Turn whatever polars raises on damaged files and unrepresentable values into an InputError.

    Args:
        what: the thing that is read, for the message.
        fault: the message's verb.
    """
    try:
        yield
    except (
        OSError, ValueError, OverflowError, polars.exceptions.PolarsError, polars.exceptions.PanicException,
    ) as error:  # fmt: skip
        raise InputError(
            f"{what} {fault}: {error}; write it again, with values that Python cannot represent (dates "
            "after the year 9999) as text"
        ) from error


def _decode(path: Path, content: bytes) -> str:
    """Decode the text of a file.

    Bytes that are not UTF-8 become lone surrogates, which `_problem` reports text by text.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    elif b"\0" in content:
        raise InputError(
            f"{str(path)!r} is binary (a zero byte at {content.index(0)}); a corpus is UTF-8 text"
        )
    else:
        text = content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _paragraphs(text: str, unit: Unit) -> list[dict[str, Any]]:
    if unit == "file":
        return [{_LINE: 1, "text": text.strip()}] if text.strip() else []
    rows: list[dict[str, Any]] = []
    inside_paragraph = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            inside_paragraph = False
        elif inside_paragraph and unit == "paragraph":
            rows[-1]["text"] += "\n" + line
        else:
            rows.append({_LINE: number, "text": line})
            inside_paragraph = True
    return rows


def _objects(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{str(path)!r}, line {number}, is not a JSON object: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            # a number too long or nesting too deep for Python's reader
            raise InputError(f"{str(path)!r}, line {number}, cannot be read: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{str(path)!r}, line {number}, is not a JSON object: {line[:60]!r}")
        rows.append({_LINE: number} | row)
    return rows


def _table(path: Path, text: str, separator: str) -> list[dict[str, Any]]:
    first = text.split("\n", 1)[0].split(separator)
    # the papers' format: no header, two fields on each line, and quotes are part of the text
    if separator == "\t" and len(first) == 2 and not set(OWN_COLUMNS) & {name.strip() for name in first}:
        lines = [
            (number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
        wrong = next((number for number, parts in lines if len(parts) != 2), None)
        if wrong is not None:
            raise InputError(
                f"{str(path)!r}, line {wrong}, is not context<TAB>next word; expected that on every line, or a "
                "header with a column 'text'"
            )
        return [{_LINE: number, "text": parts[0], "next": parts[1]} for number, parts in lines]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    csv.field_size_limit(2**31 - 1)
    rows = []
    try:
        names = Counter(name for name in reader.fieldnames or () if name)
        if twice := [name for name, n in names.items() if n > 1]:
            raise InputError(
                f"{str(path)!r} has more than one column {twice[0]!r}; rename all but one in its first line"
            )
        for row in reader:
            if None in row:
                raise InputError(f"{str(path)!r}, line {reader.line_num}, has more fields than the header")
            rows.append({_LINE: reader.line_num} | {k: v if v != "" else None for k, v in row.items()})
    except csv.Error as error:
        raise InputError(f"{str(path)!r}, line {reader.line_num}, is malformed: {error}") from error
    return rows


def _read_hub(name: str) -> list[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            "a corpus hf:NAME needs the package datasets: pip install 'densitometer[hub]'"
        ) from error
    name, _, split = name.partition(":")
    parts = name.split("/")
    configuration = None
    if not Path(name).exists() and len(parts) == 3:
        name, configuration = "/".join(parts[:2]), parts[2]
    try:
        dataset = load_dataset(name, configuration, split=split or "train")
    except Exception as error:
        # `datasets` passes on whatever its loaders raise
        message = " ".join(str(error).split())[:300]
        raise InputError(f"cannot read the data set {name!r}: {type(error).__name__}: {message}") from error
    return [dict(row) for row in dataset]


def _corpus(name: str, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> Corpus:
    if not rows:
        raise InputError(f"the corpus {name!r} is empty: it holds no text")
    present = list(dict.fromkeys(key for row in rows for key in row if key not in ("", _LINE)))
    wanted = {column: columns.get(column, column) for column in OWN_COLUMNS if column != "problem"}
    for column, source in columns.items():
        if column not in wanted or source not in present:
            raise InputError(
                f"cannot take the column {column!r} from {source!r}; columns that can be mapped are "
                f"{', '.join(wanted)}, and {name!r} has {', '.join(present)}"
            )
    if wanted["text"] not in present:
        raise InputError(
            f"the corpus {name!r} has no column {wanted['text']!r}: it has {', '.join(present)}; rename one, "
            "or name the column of the texts (columns={'text': NAME}, --column text=NAME)"
        )
    others = [key for key in present if key not in {*wanted.values(), "problem"}]
    _refuse_columns_of_results(name, set(others))
    table: dict[str, list[Any]] = {key: [] for key in (*OWN_COLUMNS, *others)}
    for number, row in enumerate(rows, start=1):
        values = {column: row.get(source) for column, source in wanted.items()}
        identifier = values.pop("id")
        table["id"].append(str(row.get(_LINE, number) if identifier is None else identifier))
        problem = _problem(values)
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
    repeated = [i for i, n in Counter(table["id"]).items() if n > 1]
    if repeated:
        raise InputError(
            f"the corpus {name!r} has {len(repeated):,} ids on more than one row, such as {repeated[0]!r}; "
            "ids name the rows of the results, so give each row its own"
        )
    if all(problem is not None for problem in table["problem"]):
        raise InputError(f"no text of the corpus {name!r} can be used; the first: {table['problem'][0]}")
    types = dict.fromkeys(OWN_COLUMNS, polars.String)
    try:
        json.dumps(table, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the corpus {name!r} holds half of a surrogate pair, {error.object[error.start]!a}, in an id or "
            "another column than its text; it is not a character and cannot be stored. Remove it"
        ) from error
    try:
        return Corpus(name, polars.DataFrame(table, schema_overrides=types, infer_schema_length=None))
    except (TypeError, OverflowError, polars.exceptions.PolarsError, polars.exceptions.PanicException):
        # A carried column has mixed types, or numbers beyond 128 bits. All carried columns become
        # JSON, so that nothing is dropped.
        text = {k: [None if v is None else json.dumps(v, default=str) for v in table[k]] for k in others}
        return Corpus(name, polars.DataFrame(table | text, schema_overrides=types))


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


def _problem(values: Mapping[str, Any]) -> str | None:
    text = values["text"]
    if text is None or not str(text).strip():
        return "the text is empty"
    if not isinstance(text, str):
        return f"text must be a string, got {type(text).__name__}"
    for name in ("text", "next"):
        bad = next((c for c in str(values[name] or "") if "\ud800" <= c <= "\udfff"), None)
        if bad is not None:
            return f"the {name} is not UTF-8 (byte 0x{ord(bad) & 0xFF:02x}); convert the corpus to UTF-8"
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

        None is the whole text.

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
