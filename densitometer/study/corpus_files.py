"""Rows of a corpus from files, folders, standard input and data sets, in every format that is read.

A file's format is the ending of its name: .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or
.xlsx, and each of them with .gz, .zst, .bz2 or .xz behind it. Standard input has no name, so its
format is found from its beginning.

    tables        The delimiter is the one that the caller gives. Otherwise it is the format's
                  own, if the header then has the column of texts, or the first of , ; tab | with
                  which it has. In a .tsv, a quote is a character of the text, unless a program that
                  quotes fields wrote the whole file (`_quoted_by_writer`).
    folders       Every file in it and in its subfolders, sorted by name. Files and folders whose
                  name begins with a dot or with ~$, and __MACOSX, are not read: notebooks, version
                  control and operating systems leave them.
    saved sets    A folder that `datasets` wrote (`save_to_disk`).

What this file does not do: it does not check the values (`corpus.py`).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars

from ..errors import DensitometerWarning, InputError

Row = dict[str, Any]
Unit = Literal["line", "paragraph", "file"]
OWN_COLUMNS = ("id", "text", "language", "domain", "next", "problem")
# Columns that hold chats, which are read where there is no column of texts.
CHAT_COLUMNS = ("messages", "conversations", "conversation")
EXTENSIONS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xlsx")
# Keys under which a row keeps its line, its file in a folder, and whether that file has bytes that
# are not UTF-8. No file has columns of these names.
LINE, FILE, RAW = "\0line", "\0file", "\0raw"
_PRIVATE = (LINE, FILE, RAW)
_DELIMITERS = (",", ";", "\t", "|")
# Encodings other than UTF-8, by the mark that a file in them begins with. Longer ones come first.
_WIDE = {
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip
# What Git LFS leaves in place of a file that was not fetched.
_POINTER = b"version https://git-lfs.github.com/spec/"
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda content: _zstd(content),
}
# Longest path that Linux takes. A longer name is a text, not a path.
_LONGEST_PATH = 4096
_SECONDS_FOR_THE_HUB = 5.0


@dataclass(frozen=True)
class Reading:
    """How files are to be read.

    Args:
        unit: what one text of a .txt file is.
        columns: names that the source gives to columns, by the names used here.
        delimiter: what separates the fields of a table; None to find it.
    """

    unit: Unit = "line"
    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None

    @property
    def text(self) -> str:
        """Name of the column of the texts."""
        return self.columns.get("text", "text")

    def has_texts(self, names: Mapping[str, Any] | list[str]) -> bool:
        """Whether one of the columns holds texts or chats."""
        return self.text in names or ("text" not in self.columns and any(c in names for c in CHAT_COLUMNS))


def is_private(key: str) -> bool:
    """Whether a key of a row is used by this file alone, or is the empty name of a column."""
    return key == "" or key in _PRIVATE


def checked_delimiter(delimiter: str | None) -> str | None:
    r"""Return a delimiter as one character. `tab` and `\t` are a tab.

    Raises:
        InputError: it is not one character, or is a quote or a line break.
    """
    if delimiter is None:
        return None
    found = "\t" if delimiter in ("tab", "\\t") else delimiter
    if not isinstance(found, str) or len(found) != 1 or found in '"\r\n\0 ':
        raise InputError(
            f"a delimiter must be one character, such as ; or | or tab, and not a quote or space; got {delimiter!r}"
        )
    return found


def read_path(path: Path, reading: Reading, bundled: str) -> list[Row]:
    """Read the rows of a file, a folder or a saved data set.

    Args:
        path: where it is.
        reading: how to read it.
        bundled: names of bundled corpora, for the message.

    Raises:
        InputError: there is nothing there, or it cannot be read.
    """
    if not _exists(path):
        shown = str(path) if len(str(path)) <= 200 else str(path)[:200] + "..."
        raise InputError(
            f"there is no corpus {shown!r}; give a file, a folder, - for standard input, hf:NAME or a bundled "
            f"corpus ({bundled}). One text of your own goes into a list: [text]"
        )
    if not path.is_dir():
        return read_file(path, reading)
    return _read_saved(path, None) if _is_saved(path) else _read_folder(path, reading)


def _exists(path: Path) -> bool:
    """Whether there is something at a path.

    Raises:
        InputError: a file cannot have this name, or the user may not access it.
    """
    name = str(path)
    if "\0" in name:
        raise InputError(
            f"a path cannot hold a null character, got {name[:60]!r}; give the path of a corpus, or its texts as a list"
        )
    if len(name.encode(errors="surrogateescape")) > _LONGEST_PATH:
        raise InputError(
            f"a path of {len(name):,} characters is longer than any file's, got {name[:40]!r}...; give the path of a "
            "corpus, or its texts as a list"
        )
    try:
        return path.exists()
    except OSError as error:
        raise InputError(
            f"cannot read {name[:200]!r} as a path: {error.strerror or error}; give the path of a corpus, or its texts as a "
            "list"
        ) from error


def _is_hidden(inside: Path) -> bool:
    return any(part.startswith((".", "~$")) or part == "__MACOSX" for part in inside.parts)


def _read_folder(path: Path, reading: Reading) -> list[Row]:
    try:
        found = [p for p in path.rglob("*") if format_of(p) in EXTENSIONS and p.is_file()]
    except OSError as error:
        raise InputError(f"cannot read the folder {str(path)!r}: {error.strerror or error}") from error
    shown = sorted(p for p in found if not _is_hidden(p.relative_to(path)))
    # of a file that lies there packed too, only the unpacked one is read
    files = [p for p in shown if p.suffix.lower() not in _COMPRESSED or p.with_suffix("") not in shown]
    if not files:
        hidden = f"; its {len(found)} hidden files are not read" if found else ""
        checkpoint = (
            " (it holds a model: give that by -m)" if (path / "config.json").is_file() and not hidden else ""
        )
        raise InputError(
            f"the folder {str(path)!r} holds no corpus{hidden}{checkpoint}; expected a file ending in "
            f"{', '.join(EXTENSIONS)}"
        )
    # JSON files beside a corpus are mostly descriptions of it
    descriptions = [p for p in files if format_of(p) == ".json"] if len(files) > 1 else []
    rows = []
    for file in files:
        inside = file.relative_to(path).as_posix()
        try:
            read = read_file(file, reading)
        except InputError:
            if file not in descriptions:
                raise
            read = []
        if file in descriptions and not (read and reading.has_texts(read[0])):
            warnings.warn(
                f"{inside} in the folder {str(path)!r} is not an array of rows with a text, and is left out; move it "
                "elsewhere if it is not part of the corpus",
                DensitometerWarning,
                stacklevel=5,
            )
            continue
        for number, row in enumerate(read, start=1):
            # a file that is one text is its own id; otherwise ids are file:line
            one_text = reading.unit == "file" and _unpacked_name(file).endswith(".txt")
            identifier = inside if one_text else f"{inside}:{row.pop(LINE, number)}"
            rows.append({"id": identifier} | row | {"file": inside, FILE: inside})
    return rows


def format_of(path: Path) -> str:
    """Return the ending of a file's name that gives its format, without that of a compression."""
    return Path(_unpacked_name(path)).suffix.lower()


def _unpacked_name(path: Path) -> str:
    return path.stem if path.suffix.lower() in _COMPRESSED else path.name


def read_file(path: Path, reading: Reading) -> list[Row]:
    """Read the rows of a corpus file, unchanged.

    Raises:
        InputError: the file cannot be read, or its name or content is not that of a corpus.
    """
    kind = format_of(path)
    if kind not in EXTENSIONS:
        what = ""
        if path.suffix.lower() in _ARCHIVES or kind in _ARCHIVES:
            what = "; it is an archive: unpack it, and give the folder"
        elif path.suffix.lower() in _COMPRESSED:
            what = f"; name it by what it holds, such as {path.stem}.jsonl{path.suffix}"
        elif kind == ".xls":
            what = "; save it as .xlsx or .csv"
        raise InputError(
            f"cannot read {str(path)!r} as a corpus{what}; expected a file ending in {', '.join(EXTENSIONS)} (or these "
            f"with {', '.join(_COMPRESSED)} behind), a folder, hf:NAME, or - for standard input"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if content.startswith(_POINTER):
        raise InputError(
            f"{str(path)!r} is a pointer of Git LFS, in place of the file itself; fetch it (git lfs pull)"
        )
    if path.suffix.lower() in _COMPRESSED:
        content = _unpacked(str(path), content, path.suffix.lower())
    return _rows_of(str(path), content, kind, reading)


def read_standard_input(reading: Reading) -> list[Row]:
    """Read the rows of a corpus from standard input: JSON, a table with a header, or lines of text.

    Raises:
        InputError: standard input is closed or empty, or cannot be read.
    """
    name = "standard input"
    if sys.stdin is None:
        raise InputError("standard input is closed; give a file, a folder or hf:NAME")
    try:
        content = sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read standard input: {error}") from error
    for magic, ending in ((b"\x1f\x8b", ".gz"), (b"\x28\xb5\x2f\xfd", ".zst")):
        if content.startswith(magic):
            content = _unpacked(name, content, ending)
    if content.startswith(b"PAR1"):
        return _rows_of(name, content, ".parquet", reading)
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b'{"') or start.startswith((b"[{", b'["', b"[[")):
        kind = ".json" if start.startswith(b"[") else ".jsonl"
        return _rows_of(name, content, kind, reading)
    first = start.split(b"\n", 1)[0].decode(errors="replace").strip("\r")
    if reading.delimiter is not None or _is_header(first, reading):
        return _rows_of(name, content, ".csv", reading)
    return _rows_of(name, content, ".txt", reading)


def _is_header(line: str, reading: Reading) -> bool:
    """Whether a line is a header: it names columns, also that of texts, and cannot be a text."""
    return any(
        len(names := line.split(d)) > 1 and reading.text in names and all(len(n.split()) == 1 for n in names)
        for d in _DELIMITERS
    )


def _rows_of(name: str, content: bytes, kind: str, reading: Reading) -> list[Row]:
    """Read the rows of a file's content.

    Args:
        name: name of the file, for messages.
        content: the content, unpacked.
        kind: one of `EXTENSIONS`.
        reading: how to read it.
    """
    if kind == ".parquet":
        with readable(repr(name), "is not a Parquet file, or is damaged"):
            return polars.read_parquet(io.BytesIO(content)).to_dicts()
    if kind == ".xlsx":
        return _sheet(name, content)
    text = _decode(name, content)
    if kind == ".txt":
        rows = _paragraphs(text, reading.unit)
    elif kind in (".jsonl", ".ndjson"):
        rows = _objects(name, text)
    elif kind == ".json":
        rows = _array(name, text, reading)
    else:
        rows = _table(name, text, "\t" if kind == ".tsv" else ",", reading)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return [row | {RAW: True} for row in rows]
    return rows


@contextmanager
def readable(what: str, fault: str = "cannot be read") -> Iterator[None]:
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


def _unpacked(name: str, content: bytes, ending: str) -> bytes:
    try:
        return _COMPRESSED[ending](content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{name!r} is not a {ending} file, or is damaged: {error}; pack or download it again"
        ) from error
    except MemoryError as error:
        raise InputError(f"{name!r} does not fit in memory unpacked; cut it into smaller files") from error


def _zstd(content: bytes) -> bytes:
    """Unpack zstd, by Python (from 3.14 on) or by pyarrow.

    Raises:
        InputError: neither is there.
    """
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        pass
    else:
        try:
            return bytes(zstd.decompress(content))
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from error
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(
            "a .zst file needs Python 3.14 or pyarrow: pip install 'densitometer[hub]', or unpack it (unzstd)"
        ) from error
    with pyarrow.input_stream(io.BytesIO(content), compression="zstd") as stream:
        return bytes(stream.read())


def _sheet(name: str, content: bytes) -> list[Row]:
    """Read the first sheet of a workbook.

    Rows without any value are kept, because they may hold errors (#N/A), which are read as empty.
    Only those below the last value are left out.

    Raises:
        InputError: fastexcel is not installed, the file is not a workbook, or two columns have the
            same name.
    """
    # Types are found from all rows: from the first hundred, later values of another type are lost.
    whole: dict[str, Any] = {"drop_empty_rows": False, "drop_empty_cols": False, "raise_if_empty": False}
    try:
        frame = polars.read_excel(io.BytesIO(content), infer_schema_length=None, **whole)
        # as it stands: fastexcel gives names of its own to columns that have none or the same
        header = polars.read_excel(
            io.BytesIO(content), has_header=False, infer_schema_length=0, read_options={"n_rows": 1}, **whole
        )
    except ImportError as error:
        raise InputError(
            f"reading {name!r} needs fastexcel: pip install 'densitometer[excel]', or save the sheet as .csv"
        ) from error
    # fastexcel has error classes of its own
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(f"{name!r} is not an .xlsx file, or is damaged: {message}") from error
    names = [column or "" for row in header.rows() for column in row]
    _refuse_twice(name, names)
    rows = [
        {LINE: number} | dict(zip(names, row, strict=True))
        for number, row in enumerate(frame.rows(), start=2)
    ]
    while rows and all(value is None for key, value in rows[-1].items() if key != LINE):
        rows.pop()
    return rows


def _refuse_twice(name: str, header: list[str]) -> None:
    """Refuse a table in which two columns have the same name."""
    counts = Counter(column for column in header if column)
    if twice := [column for column, n in counts.items() if n > 1]:
        raise InputError(
            f"{name!r} has more than one column {twice[0]!r}; rename all but one in its first line"
        )


def _decode(name: str, content: bytes) -> str:
    """Decode the text of a file.

    Bytes that are not UTF-8 become lone surrogates, which `corpus._problem` reports text by text.
    """
    if mark := next((mark for mark in _WIDE if content.startswith(mark)), None):
        try:
            text = content.decode(_WIDE[mark], errors="surrogatepass").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name!r} begins as {_WIDE[mark].upper()} and is not: {error.reason} (byte {error.start}); save it as UTF-8"
            ) from error
    elif b"\0" in content:
        raise InputError(
            f"{name!r} is binary (a zero byte at {content.index(0)}); a corpus is UTF-8 text"
            + ("; it seems packed: name it .gz" if content.startswith(b"\x1f\x8b") else "")
        )
    else:
        text = content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    # files that were put together have the mark of each file's beginning at a line's
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\n\ufeff", "\n")


def _paragraphs(text: str, unit: Unit) -> list[Row]:
    if unit == "file":
        return [{LINE: 1, "text": text.strip()}] if text.strip() else []
    rows: list[Row] = []
    inside_paragraph = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            inside_paragraph = False
        elif inside_paragraph and unit == "paragraph":
            rows[-1]["text"] += "\n" + line
        else:
            rows.append({LINE: number, "text": line})
            inside_paragraph = True
    return rows


# --------------------------------------------------------------------------------------------------


def _objects(name: str, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name!r}, line {number},"
        row = _parsed(where, "a JSON object", line)
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object: {line[:60]!r}")
        rows.append({LINE: number} | row)
    return rows


def _parsed(where: str, what: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not {what}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        # a number too long or nesting too deep for Python's reader
        raise InputError(f"{where} cannot be read: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object, and refuse an object with a duplicate key.

    Python's own reader would silently keep the last value of such a key.

    Raises:
        ValueError: a key occurs more than once.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"an object has the key {key!r} more than once")
    return found


def _array(name: str, text: str, reading: Reading) -> list[Row]:
    """Read a JSON array of strings, objects or chats, or objects line by line as in a .jsonl."""
    if not text.strip():
        return []
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1 and lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"):
            return _objects(name, text)
        raise InputError(f"{name!r}, line {error.lineno}, is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name!r} cannot be read: {error}") from error
    if isinstance(content, dict):
        if reading.has_texts(content):
            return [content]
        inside = [key for key, value in content.items() if isinstance(value, list)]
        to_do = f"Write the array alone (jq '.{inside[0]}')" if inside else "Write its texts as an array"
        raise InputError(
            f"{name!r} is an object with {', '.join(list(content)[:5]) or 'nothing in it'}; expected an array of texts or of "
            f"objects. {to_do}"
        )
    if not isinstance(content, list):
        raise InputError(
            f"{name!r} is {json.dumps(content)[:40]}; expected an array of texts or of objects with a text"
        )
    return [row_of(item, f"{name!r}, item {number},") for number, item in enumerate(content, start=1)]


def row_of(item: Any, where: str) -> Row:
    """Turn an item of a list into a row: an object, a text or a chat.

    Raises:
        InputError: the item is none of these.
    """
    if isinstance(item, Mapping):
        return {str(key): value for key, value in item.items()}
    if item is None or isinstance(item, str):
        return {"text": item}
    if isinstance(item, list | tuple) and item and all(isinstance(message, Mapping) for message in item):
        return {"messages": list(item)}
    raise InputError(
        f"{where} is of type {type(item).__name__} ({str(item)[:40]}); expected a text, an object with a text, or a chat"
    )


# --------------------------------------------------------------------------------------------------


def _table(name: str, text: str, own: str, reading: Reading) -> list[Row]:
    """Read a table whose first line names its columns, or the papers' `context<TAB>next word`.

    Args:
        name: name of the file, for messages.
        text: its content.
        own: the usual delimiter of the format.
        reading: how to read it.
    """
    csv.field_size_limit(2**31 - 1)
    first, _, rest = text.partition("\n")
    skipped = 0
    # Excel writes the delimiter into a line of its own
    if reading.delimiter is None and first.lower().startswith("sep=") and len(first) == 5:
        own, text, skipped = first[4], rest, 1
        first = text.split("\n", 1)[0]
    delimiter = reading.delimiter or _delimiter(first, own, reading)
    names = first.split(delimiter)
    if delimiter == "\t" and own == "\t" and len(names) == 2 and not _names_columns(names, reading):
        return _contexts(name, text)
    if delimiter == "\t" and (rows := _unquoted(text, skipped)) is not None:
        header, records = rows
    else:
        header, records = _quoted(name, text, delimiter, skipped)
    _refuse_twice(name, header)
    rows_read = []
    for begin, end, fields in records:
        if len(fields) > len(header):
            raise InputError(
                f"{name!r}, line {begin}, has more fields than the header: {len(fields)} for {len(header)}, separated by "
                f"{delimiter!r}; quote a text that holds that character, or name another delimiter (--delimiter)"
            )
        values = fields + [""] * (len(header) - len(fields))
        row = {column: value if value != "" else None for column, value in zip(header, values, strict=True)}
        rows_read.append({LINE: end} | row)
    return rows_read


def _delimiter(first: str, own: str, reading: Reading) -> str:
    for delimiter in (own, *_DELIMITERS):
        names = next(csv.reader([first], delimiter=delimiter), []) if first else []
        # a name alone is a header of one column by any delimiter, so the format's own comes first
        if reading.has_texts(names) or (own == delimiter and len(names) > 1 and own == "\t"):
            return delimiter
    return own


def _names_columns(names: list[str], reading: Reading) -> bool:
    """Whether two fields of a first line are a header, and not a context with its next word."""
    stripped = [name.strip().strip('"') for name in names]
    known = {*OWN_COLUMNS, *CHAT_COLUMNS, *reading.columns.values()} & set(stripped)
    return bool(known) and all(len(name.split()) <= 3 for name in stripped)


def _contexts(name: str, text: str) -> list[Row]:
    """Read the papers' format: no header, two fields on each line, and quotes are characters."""
    lines = [(n, line.split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    wrong = next((number for number, parts in lines if len(parts) != 2), None)
    if wrong is not None:
        raise InputError(
            f"{name!r}, line {wrong}, is not context<TAB>next word; expected that on every line, or a "
            "header with a column 'text'"
        )
    others = lines[1:]
    first = lines[0][1] if others else []
    if others and len(first[0].split()) == 1 and all(len(parts[0].split()) > 2 for _, parts in others):
        warnings.warn(
            f"the first line of {name!r} ({first[0]!r}, {first[1]!r}) is measured as a text, but looks like a header; "
            f"if it is one, name the column of the texts (--column text={first[0]})",
            DensitometerWarning,
            stacklevel=8,
        )
    return [{LINE: number, "text": parts[0], "next": parts[1]} for number, parts in lines]


# Begin and end of a record, counted in lines from 1, and its fields.
Record = tuple[int, int, list[str]]


def _unquoted(text: str, skipped: int) -> tuple[list[str], list[Record]] | None:
    """Read a tab-separated table line by line, with quotes as ordinary characters.

    None if a line has a different number of fields than the header, or if a program that quotes
    fields wrote the file.
    """
    lines = [
        (number, line.split("\t"))
        for number, line in enumerate(text.split("\n"), start=1 + skipped)
        if line != ""
    ]
    if not lines or any(len(fields) != len(lines[0][1]) for _, fields in lines):
        return None
    if _quoted_by_writer([fields for _, fields in lines]):
        return None
    return lines[0][1], [(number, number, fields) for number, fields in lines[1:]]


def _quoted_by_writer(rows: list[list[str]]) -> bool:
    """Whether fields were quoted by a program, and not by the author of the text.

    A program quotes every field, including the header, or only fields that contain a quote, which
    it doubles.
    """
    if any(name.startswith('"') and name.endswith('"') and len(name) > 1 for name in rows[0]):
        return True
    quoted = [field for row in rows for field in row if '"' in field]
    return bool(quoted) and all(
        len(field) > 3
        and field[0] == field[-1] == '"'
        and '""' in field[1:-1]
        and '"' not in field[1:-1].replace('""', "")
        for field in quoted
    )


def _quoted(name: str, text: str, delimiter: str, skipped: int) -> tuple[list[str], list[Record]]:
    """Read a table in which quotes enclose fields, with doubled quotes and line ends inside.

    Raises:
        InputError: quotes are malformed, or enclose several lines that look like separate rows.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = text.split("\n")
    header: list[str] | None = None
    records: list[Record] = []
    begin = 1
    try:
        while True:
            begin = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            if not fields:
                continue
            if header is None:
                header = fields
                continue
            inside = lines[begin : reader.line_num]
            if inside and _swallowed(inside, delimiter, fields[0], len(header)):
                raise InputError(
                    f"{name!r}, line {begin + skipped}: a quote that opens there encloses lines up to "
                    f"{reader.line_num + skipped} that look like rows of their own. Double each quote that belongs to a text "
                    "and enclose that text in quotes, or write the corpus as .jsonl"
                )
            records.append((begin + skipped, reader.line_num + skipped, fields))
    except csv.Error as error:
        to_do = "close the quote that opens there, or double a quote that belongs to the text"
        raise InputError(f"{name!r}, line {begin + skipped}, is malformed: {error}; {to_do}") from error
    return header or [], records


def _swallowed(inside: list[str], delimiter: str, identifier: str, n_columns: int) -> bool:
    """Whether the lines within a quoted field look like rows.

    They do if each has the right number of tabs, which texts rarely contain, or if their first
    fields continue the numbering of rows.
    """
    if n_columns == 1:
        return False
    rows = [line.split(delimiter) for line in inside]
    if delimiter == "\t":
        return any(len(fields) == n_columns for fields in rows)
    return identifier.isdecimal() and any(
        len(fields) == n_columns and fields[0].isdecimal() and int(fields[0]) == int(identifier) + number
        for number, fields in enumerate(rows, start=1)
    )


# --------------------------------------------------------------------------------------------------


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / file).is_file() for file in ("state.json", "dataset_info.json")
    )


def _read_saved(path: Path, split: str | None) -> list[Row]:
    """Read a folder that `save_to_disk` wrote.

    Raises:
        InputError: `datasets` is not installed, the folder is damaged, or it has several splits and
            none was named.
    """
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(
            f"{str(path)!r} was written by the package datasets, which reading it needs: pip install "
            "'densitometer[hub]'"
        ) from error
    try:
        saved = load_from_disk(str(path))
    except Exception as error:
        # `datasets` passes on whatever its readers raise
        message = " ".join(str(error).split())[:300]
        raise InputError(
            f"cannot read the data set {str(path)!r}: {type(error).__name__}: {message}"
        ) from error
    if isinstance(saved, Mapping):
        names = list(saved)
        if split is None and len(names) != 1:
            raise InputError(
                f"{str(path)!r} has the splits {', '.join(names)}; give one: {str(path / names[0])!r}"
            )
        if split is not None and split not in saved:
            raise InputError(f"{str(path)!r} has no split {split!r}; it has {', '.join(names)}")
        saved = saved[split or names[0]]
    return [dict(row) for row in saved]


def refuse_address(source: str) -> None:
    """Refuse the address of a web page, and say what to give instead.

    Raises:
        InputError: the source is an address.
    """
    if not source.startswith(("http:", "https:", "huggingface.co/", "hf.co/")):
        return
    host, _, path = source.partition("://")[2].partition("/") if "://" in source else source.partition("/")
    if host in ("huggingface.co", "www.huggingface.co", "hf.co"):
        parts = [part for part in path.rstrip(":").split("/") if part]
        name = "/".join(parts[parts[:1] == ["datasets"] :][:2])
        raise InputError(
            f"a data set is given by its name, not by an address; got {source!r}. Give hf:{name or 'owner/name'}"
        )
    raise InputError(
        f"a corpus is not fetched from an address; got {source!r}. Download the file and give its path"
    )


def read_hub(name: str) -> list[Row]:
    """Read a data set by NAME[:split]: of the Hub, or a folder on this machine.

    Raises:
        InputError: `datasets` is not installed, or the data set cannot be read.
    """
    name, _, split = name.partition(":")
    refuse_address(f"{name}:{split}")
    if _exists(Path(name)) and _is_saved(Path(name)):
        return _read_saved(Path(name), split or None)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            "a corpus hf:NAME needs the package datasets: pip install 'densitometer[hub]'"
        ) from error
    parts = name.split("/")
    configuration = None
    if not _exists(Path(name)) and len(parts) == 3:
        name, configuration = "/".join(parts[:2]), parts[2]
    with _offline_where_unreachable(name) as unreachable:
        try:
            dataset = load_dataset(name, configuration, split=split or "train")
        except Exception as error:
            # `datasets` passes on whatever its loaders raise
            message = " ".join(str(error).split())[:300]
            if unreachable is not None:
                raise InputError(
                    f"cannot read the data set {name!r}: {unreachable}, and it is not among those that were downloaded before. "
                    "Connect, or give a file or a folder"
                ) from error
            raise InputError(
                f"cannot read the data set {name!r}: {type(error).__name__}: {message}"
            ) from error
    return [dict(row) for row in dataset]


@contextmanager
def _offline_where_unreachable(name: str) -> Iterator[str | None]:
    """Make `datasets` use earlier downloads if the Hub cannot be reached.

    By default `datasets` retries for 24 s.

    Yields:
        Why the Hub cannot be reached. None if it can be reached, or is not needed.
    """
    import datasets
    from huggingface_hub import constants, get_session

    unreachable = None
    if not _exists(Path(name)) and not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS_FOR_THE_HUB, follow_redirects=False)
        # the HTTP client's own error; the client depends on the version of the library
        except Exception as error:
            unreachable = f"{constants.ENDPOINT} cannot be reached ({error})"
    elif constants.HF_HUB_OFFLINE and not _exists(Path(name)):
        unreachable = "the network is switched off (HF_HUB_OFFLINE)"
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if unreachable is not None:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield unreachable
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
