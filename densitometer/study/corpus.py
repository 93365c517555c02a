"""A corpus: texts with ids and what is known about them, and the windows that are cut from them. No model is known here.

    .txt                a text a line, a paragraph or a file (`unit`)
    .jsonl              an object a line
    .csv, .tsv          with a header; or, without one, the papers' `context<TAB>next word`
    .parquet
    a folder            every such file in it, by name, subfolders too
    hf:NAME[:split]     a dataset of the Hub or a local folder, through `datasets`; NAME is owner/name[/configuration]
    short-texts         bundled: 75 texts of 30 to 45 words in five domains, each in English and in French (same `pair`)

A bundled name comes first, as with bundled models; a file or folder of that name in the current folder is ./short-texts.

Columns: `id` (by default the number of the line or row), `text`, `language`, `domain`, `next` (what comes after the text,
not measured but reported), and any others, which are carried along. A row whose text cannot be read (not UTF-8, empty) stays,
with its `problem`: it becomes a failed row of the study, so that nothing is lost silently.

Windows:

    words:N             the first N words (the papers' 40)
    tokens:N            the first N tokens
    sliding:N:STRIDE    N tokens, from every STRIDE-th on
    positions           every position that has an earlier token, over the whole text before it
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
MOST_NESTING = 64  # of a carried value; polars' time grows with its cube
_LINE = "\0"  # under this name a row keeps the number of its line


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts to measure.

    Args:
        name: where they came from.
        texts: a row per text: id, text, language, domain, next, problem (all String, null where unknown), and others.
    """

    name: str
    texts: polars.DataFrame = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the content of every row, whatever kind of file it came from."""
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
        source: a path, `hf:NAME[:split]` or `short-texts` (bundled, no network); or texts in memory: a list of strings, or
            a frame with a column `text`.
        unit: what one text of a .txt file is.
        columns: where the source calls a column otherwise, such as {"text": "content"}.

    Raises:
        InputError: there is no such file; it is empty, binary or malformed; it has no text column; two rows share an id.
        ArgumentTypeError: neither a path nor texts.
    """
    if unit not in ("line", "paragraph", "file"):
        raise InputError(f"unknown unit {unit!r}; a text of a .txt file is a line, a paragraph or a file")
    if not isinstance(columns, Mapping | None):
        raise ArgumentTypeError(f"columns are names by name, such as {{'text': 'content'}}; got {columns!r}")
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
                f"a corpus is a path, hf:NAME, a frame or texts; got {type(source).__name__} with something else in it"
            )
        rows = [{"text": text} for text in texts]
    return _corpus(name, rows, columns or {})


def _read_path(path: Path, unit: Unit) -> list[dict[str, Any]]:
    if not path.exists():
        raise InputError(
            f"there is no corpus {str(path)!r}; give a file, a folder, hf:NAME or a bundled one: {', '.join(BUNDLED_CORPORA)}"
        )
    if not path.is_dir():
        return _read_file(path, unit)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not files:
        raise InputError(f"the folder {str(path)!r} holds no corpus: no {', '.join(EXTENSIONS)} file")
    rows = []
    for file in files:
        inside = file.relative_to(path).as_posix()
        for number, row in enumerate(_read_file(file, unit), start=1):
            own = inside if unit == "file" and file.suffix == ".txt" else f"{inside}:{row.pop(_LINE, number)}"
            rows.append({"id": own} | row | {"file": inside})
    return rows


def _read_file(path: Path, unit: Unit) -> list[dict[str, Any]]:
    """Read the rows of a corpus file as they are."""
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise InputError(
            f"{str(path)!r} is no corpus that can be read; expected {', '.join(EXTENSIONS)}, a folder or hf:NAME"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if suffix == ".parquet":
        with _readable(repr(str(path)), "is no Parquet file, or is damaged"):
            return polars.read_parquet(io.BytesIO(content)).to_dicts()
    text = _decode(path, content)
    if suffix == ".txt":
        return _paragraphs(text, unit)
    if suffix == ".jsonl":
        return _objects(path, text)
    return _table(path, text, "\t" if suffix == ".tsv" else ",")


@contextmanager
def _readable(what: str, fault: str = "cannot be read") -> Iterator[None]:
    """One InputError for all that polars raises on damaged files, and on values that Python has not."""
    try:
        yield
    except (
        OSError, ValueError, OverflowError, polars.exceptions.PolarsError, polars.exceptions.PanicException,
    ) as error:  # fmt: skip
        raise InputError(
            f"{what} {fault}: {error}; write it anew, with values that Python has not (dates after the year 9999) as text"
        ) from error


def _decode(path: Path, content: bytes) -> str:
    """Decode the text of a file.

    Bytes that are not UTF-8 stay as surrogates, for `_corpus` to find.
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
    open_ = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            open_ = False
        elif open_ and unit == "paragraph":
            rows[-1]["text"] += "\n" + line
        else:
            rows.append({_LINE: number, "text": line})
            open_ = True
    return rows


def _objects(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{str(path)!r}, line {number}, is no JSON object: {error.msg}") from error
        except (ValueError, RecursionError) as error:  # numbers or nesting beyond what Python reads
            raise InputError(f"{str(path)!r}, line {number}, cannot be read: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{str(path)!r}, line {number}, is no JSON object: {line[:60]!r}")
        rows.append({_LINE: number} | row)
    return rows


def _table(path: Path, text: str, separator: str) -> list[dict[str, Any]]:
    first = text.split("\n", 1)[0].split(separator)
    if separator == "\t" and len(first) == 2 and not set(OWN_COLUMNS) & {name.strip() for name in first}:
        lines = [
            (number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
        wrong = next((number for number, parts in lines if len(parts) != 2), None)
        if wrong is not None:
            raise InputError(
                f"{str(path)!r}, line {wrong}: expected context<TAB>next word on every line, or a header with a column 'text'"
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
    except Exception as error:  # datasets raises what its loaders raise
        message = " ".join(str(error).split())[:300]
        raise InputError(f"cannot read the data set {name!r}: {type(error).__name__}: {message}") from error
    return [dict(row) for row in dataset]


def _corpus(name: str, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> Corpus:
    if not rows:
        raise InputError(f"the corpus {name!r} is empty: it holds no text")
    found = list(dict.fromkeys(key for row in rows for key in row if key not in ("", _LINE)))
    wanted = {own: columns.get(own, own) for own in OWN_COLUMNS if own != "problem"}
    for own, source in columns.items():
        if own not in wanted or source not in found:
            raise InputError(
                f"cannot take the column {own!r} from {source!r}; columns that can be mapped are {', '.join(wanted)}, and "
                f"{name!r} has {', '.join(found)}"
            )
    if wanted["text"] not in found:
        raise InputError(
            f"the corpus {name!r} has no column {wanted['text']!r}: it has {', '.join(found)}; rename one, or say which "
            "holds the text (columns={'text': NAME}, --column text=NAME)"
        )
    others = [key for key in found if key not in {*wanted.values(), "problem"}]
    _refuse_columns_of_results(name, set(others))
    table: dict[str, list[Any]] = {key: [] for key in (*OWN_COLUMNS, *others)}
    for number, row in enumerate(rows, start=1):
        values = {own: row.get(source) for own, source in wanted.items()}
        identifier = values.pop("id")
        table["id"].append(str(row.get(_LINE, number) if identifier is None else identifier))
        problem = _problem(values)
        table["problem"].append(problem)
        for own, value in values.items():
            table[own].append(None if value is None else _clean(str(value)))
        for key in others:
            value = row.get(key)
            if _is_deeper(value, MOST_NESTING):
                raise InputError(
                    f"the corpus {name!r} has values nested more than {MOST_NESTING} deep in the column {key!r} (text "
                    f"{table['id'][-1]}); leave that column out, or flatten it"
                )
            table[key].append(_clean(value) if isinstance(value, str) else value)
    repeated = [i for i, n in Counter(table["id"]).items() if n > 1]
    if repeated:
        raise InputError(
            f"the corpus {name!r} has {len(repeated):,} ids on more than one row, such as {repeated[0]!r}; ids name the rows "
            "of the results, so each must be its own"
        )
    if all(problem is not None for problem in table["problem"]):
        raise InputError(f"no text of the corpus {name!r} can be used; the first: {table['problem'][0]}")
    types = dict.fromkeys(OWN_COLUMNS, polars.String)
    try:
        json.dumps(table, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the corpus {name!r} holds half of a surrogate pair, {error.object[error.start]!a}, in an id or another column than "
            "its text; it is no character and cannot be stored"
        ) from error
    try:
        return Corpus(name, polars.DataFrame(table, schema_overrides=types, infer_schema_length=None))
    except (TypeError, OverflowError, polars.exceptions.PolarsError, polars.exceptions.PanicException):
        # a carried column of mixed types, or of numbers beyond 128 bits: as JSON, so that nothing is dropped
        text = {k: [None if v is None else json.dumps(v, default=str) for v in table[k]] for k in others}
        return Corpus(name, polars.DataFrame(table | text, schema_overrides=types))


def _refuse_columns_of_results(name: str, others: set[str]) -> None:
    """Refuse columns that a study's table of measurements has of its own (`Study.measurements`)."""
    if "text_id" in others:
        raise InputError(
            f"the corpus {name!r} has a column 'text_id', the name that results have for the id of a text; rename it, or take it "
            "for the id (columns={'id': 'text_id'}, --column id=text_id)"
        )
    for own in sorted(others):
        if (twin := f"{own}_of_text") in others:
            raise InputError(
                f"the corpus {name!r} has columns {own!r} and {twin!r}; results call a corpus's column {twin!r} where {own!r} is "
                "one of theirs, so rename one of them"
            )


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper, found without going deeper."""
    if not isinstance(value, dict | list | tuple):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(
        _is_deeper(own, depth - 1) for own in inside if isinstance(own, dict | list | tuple)
    )


def _problem(values: Mapping[str, Any]) -> str | None:
    text = values["text"]
    if text is None or not str(text).strip():
        return "the text is empty"
    if not isinstance(text, str):
        return f"the text is no text but {type(text).__name__}"
    for name in ("text", "next"):
        bad = next((c for c in str(values[name] or "") if "\ud800" <= c <= "\udfff"), None)
        if bad is not None:
            return f"the {name} is not UTF-8 (byte 0x{ord(bad) & 0xFF:02x}); convert the corpus to UTF-8"
    return None


def _clean(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8") if not text.isascii() else text


@dataclass(frozen=True)
class Piece:
    """What is measured of a text: one prediction.

    Args:
        number: counts the pieces of one text, from 0.
        ids: token ids, those after the position included only where the next token is known.
        position: index of the token whose next-token prediction is measured.
    """

    number: int
    ids: tuple[int, ...]
    position: int


@dataclass(frozen=True)
class Window:
    """How pieces are cut from a text: kind "whole", "words", "tokens", "sliding", "positions" or "sweep"."""

    kind: str = "whole"
    sizes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Window:
        """Read `words:40`, `tokens:32`, `sliding:32:16`, `positions` or `sweep:8,16,32`.

        None is the whole text.

        Raises:
            InputError: anything else.
        """
        if not isinstance(text, str | None):
            raise ArgumentTypeError(f"a window is a string such as words:40, or None; got {text!r}")
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
                f"unknown window {text!r}; expected words:N, tokens:N, sliding:N:STRIDE, positions or sweep:N,N,..."
            )
        return cls(kind, tuple(sorted(set(numbers))) if kind == "sweep" else numbers)

    def pieces(
        self, text: str, after: str | None, encode: Callable[[str], Sequence[int]], start: int | None = None
    ) -> list[Piece]:
        """Cut a text.

        Args:
            after: what comes after the text; its first token is reported as the next one.
            encode: a tokenizer.
            start: the id of the token that the tokenizer puts before every text, if any; it stays in front of every
                piece and counts as no context.

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
            if longer[:context] == ids:  # else a token spans the seam, and there is no next token to tell
                ids = longer[: context + 1]
        head = ids[:1] if ids and ids[0] == start else ()
        body, context = ids[len(head) :], context - len(head)
        return [
            Piece(number, (*head, *body[begin : end + 1]), len(head) + end - begin - 1)
            for number, (begin, end) in enumerate(self._spans(context, len(body), len(head)))
        ]

    def _spans(self, context: int, total: int, head: int) -> list[tuple[int, int]]:
        """Begin and end of the contexts among the tokens of the text, without the start token."""
        sizes = self.sizes
        if self.kind in ("whole", "words"):
            return [(0, context)]
        if self.kind == "positions":
            return [(0, end) for end in range(2 - head, context + 1)]
        if self.kind == "sweep":  # the last token is the target, unless what comes after the text is known
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
    """Return the first words, as they stand, and the word after them.

    Where the text has no further word, that is what comes after the text.
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
