"""Corpora of every kind, and windows against plain slices."""

from __future__ import annotations

import io
import json
import math
import zipfile

import numpy
import polars
import pytest

from densitometer.errors import ArgumentTypeError, InputError
from densitometer.study.corpus import Window, read_corpus

pytestmark = pytest.mark.fast


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path, *names, **options):
    return read_corpus(path, **options).texts.select(*names).rows()


def test_a_text_a_line_and_the_line_is_its_id(tmp_path):
    file = write(tmp_path / "a.txt", "\ufeffone\r\n\r\n  \nzwei drei\nétat\n")
    assert rows(file, "id", "text") == [("1", "one"), ("4", "zwei drei"), ("5", "état")]


def test_a_text_a_paragraph_or_a_file(tmp_path):
    file = write(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n")
    assert rows(file, "id", "text", unit="paragraph") == [("1", "one\ntwo"), ("5", "three")]
    assert rows(file, "text", unit="file") == [("one\ntwo\n\n\nthree",)]
    with pytest.raises(InputError, match="unit 'word'"):
        read_corpus(file, unit="word")


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([{"p": 1}, {"p": 2, "q": 3}], ['{"p": 1}', '{"p": 2, "q": 3}']),
        ([[{"p": 1}], [{"q": 2}, {"p": 3}]], ['[{"p": 1}]', '[{"q": 2}, {"p": 3}]']),
        ([{"p": {"r": 1}}, {"p": {"s": 1}}], ['{"p": {"r": 1}}', '{"p": {"s": 1}}']),
        ([{"p": 1}, {"p": 2}], [{"p": 1}, {"p": 2}]),
        ([(1, 2), (3,)], [[1, 2], [3]]),
        ([{"p": math.nan}, None], [{"p": math.nan}, None]),
    ],
)
def test_an_object_keeps_keys_that_the_first_one_lacks(values, stored):
    rows_ = [{"text": f"one {i}", "about": value} for i, value in enumerate(values)]
    assert repr(read_corpus(rows_).texts["about"].to_list()) == repr(stored)


def test_jsonl_keeps_what_it_does_not_know(tmp_path):
    lines = [{"id": 7, "text": "a b", "language": "en", "year": 1851}, {"text": "c d", "domain": "sea"}]
    file = write(tmp_path / "a.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert rows(file, "id", "text", "language", "domain", "next", "year") == [
        ("7", "a b", "en", None, None, 1851),
        ("2", "c d", None, "sea", None, None),
    ]


def test_csv_with_quotes_and_a_column_of_another_name(tmp_path):
    file = write(tmp_path / "a.csv", 'uid,content,next\nx,"say ""a"", then\nb",c\ny,d e,\n')
    mapped = {"text": "content", "id": "uid"}
    assert rows(file, "id", "text", "next", columns=mapped) == [
        ("x", 'say "a", then\nb', "c"),
        ("y", "d e", None),
    ]


def test_the_papers_table_of_context_and_next_word(tmp_path):
    file = write(tmp_path / "a.tsv", 'the "white\twhale\nand the\tship\n')
    assert rows(file, "text", "next") == [('the "white', "whale"), ("and the", "ship")]
    write(file, "the white\twhale\nand the ship\n")
    with pytest.raises(InputError, match="line 2"):
        read_corpus(file)


def test_parquet_and_frames_and_lists(tmp_path):
    frame = polars.DataFrame({"text": ["a b", "c d"], "id": [5, 6]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert (
        rows(tmp_path / "a.parquet", "id", "text")
        == rows(frame, "id", "text")
        == [("5", "a b"), ("6", "c d")]
    )
    assert rows(["a b", "c d"], "id", "text") == [("1", "a b"), ("2", "c d")]
    with pytest.raises(ArgumentTypeError, match="texts"):
        read_corpus([1, 2])


def test_a_folder_is_all_its_files_in_order(tmp_path):
    write(tmp_path / "b" / "z.txt", "one\ntwo")
    write(tmp_path / "a.jsonl", '{"text": "three"}')
    write(tmp_path / "notes.md", "not a corpus")
    assert rows(tmp_path, "id", "text", "file") == [
        ("a.jsonl:1", "three", "a.jsonl"),
        ("b/z.txt:1", "one", "b/z.txt"),
        ("b/z.txt:2", "two", "b/z.txt"),
    ]


def test_a_data_set_through_datasets(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path / "d" / "test.jsonl", '{"text": "one two"}\n{"text": "three four"}\n')
    assert rows(f"hf:{tmp_path / 'd'}:test", "text") == [("one two",), ("three four",)]
    with pytest.raises(InputError, match="validation"):
        read_corpus(f"hf:{tmp_path / 'd'}:validation")


def test_the_hash_is_of_the_content_not_of_the_file(tmp_path):
    line = write(tmp_path / "a.txt", "one two\nthree")
    other = write(tmp_path / "b.jsonl", '{"text": "one two", "id": "1"}\n{"text": "three", "id": "2"}')
    assert read_corpus(line).sha256 == read_corpus(other).sha256
    assert read_corpus(line).sha256 != read_corpus(["one two", "four"]).sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"\n \n", "empty"),
        ("a.tsv", b"\t", "empty"),
        ("a.tsv", b"\t\n \t\n", "empty"),
        ("a.txt", b"PK\x03\x04\x00\x00", "binary"),
        ("a.parquet", b"PAR1 but no more", "Parquet"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2"),
        ("a.jsonl", b'{"text": "a"}\n[1]', "line 2"),
        ("a.csv", b"id,content\n1,a b\n", "no column 'text': it has id, content"),
        ("a.csv", b'text\n"a b\n', "malformed"),
        ("a.csv", b"text\na,b\n", "more fields"),
        ("a.csv", b"id,text\n1,a b\n1,c d\n", "ids on more than one row, such as '1'"),
        ("a.doc", b"one", r"\.jsonl"),
        ("a.txt", b"\xe9tat\n", "UTF-8"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_corpus(write(tmp_path / name, content))


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(InputError, match="no corpus"):
        read_corpus(tmp_path / "none.txt")
    with pytest.raises(InputError, match="holds no corpus"):
        read_corpus(tmp_path)
    with pytest.raises(InputError, match="'content'"):
        read_corpus(["a b"], columns={"text": "content"})


def test_a_line_in_another_encoding_is_a_problem_of_that_line_only(tmp_path):
    file = write(tmp_path / "a.txt", "état\n".encode() + "état\n".encode("latin-1") + b"plain\n")
    texts = read_corpus(file).texts
    assert texts["text"][0] == "état"
    assert texts["problem"].to_list()[::2] == [None, None]
    assert "byte 0xe9" in texts["problem"][1]
    utf16 = write(tmp_path / "b.txt", "état\nà".encode("utf-16"))
    assert rows(utf16, "text") == [("état",), ("à",)]


WORDS = ["a", "bb", "c", "dd", "e", "ff", "g"]
START = 1


def encode(text):
    """A token a word, after a start token."""
    return [START, *(100 + len(word) * 10 + "abcdefg".index(word[0]) for word in text.split())]


TOKENS = encode(" ".join(WORDS))[1:]


TEXT = " ".join(WORDS)


def cut(window, text=TEXT, after=None, start=START):
    return [(list(p.ids), p.position) for p in Window.parse(window).pieces(text, after, encode, start)]


def test_windows_are_slices():
    assert cut(None) == [([1, *TOKENS], 7)]
    assert cut(None, after="g") == [([1, *TOKENS, TOKENS[-1]], 7)]
    assert cut("words:3") == [([1, *TOKENS[:4]], 3)]
    assert cut("words:7", after="g") == [([1, *TOKENS, TOKENS[-1]], 7)]
    assert cut("tokens:5") == [([1, *TOKENS[:6]], 5)]
    assert cut("sliding:3:2") == [([1, *TOKENS[i : i + 4]], 3) for i in (0, 2, 4)]
    assert cut("positions") == [([1, *TOKENS[: i + 1]], i) for i in range(1, 8)]
    assert cut("positions", start=None) == [([1, *TOKENS[: i + 1]], i) for i in range(1, 8)]


def test_a_sweep_has_one_target_and_growing_contexts():
    assert cut("sweep:4,2,6") == [([1, *TOKENS[6 - n :]], n) for n in (2, 4, 6)]
    assert cut("sweep:2,5", after="g") == [([1, *TOKENS[7 - n :], TOKENS[-1]], n) for n in (2, 5)]


def test_words_stand_as_they_were():
    seen = []
    Window.parse("words:2").pieces("  a \n bb\tc", None, lambda text: seen.append(text) or [1, 2], None)
    assert seen == ["  a \n bb", "  a \n bb\tc"]


def test_no_next_token_where_one_spans_the_seam():
    merged = {"a": [5], "a b": [6]}
    (piece,) = Window().pieces("a", "b", lambda text: merged[text], None)
    assert (piece.ids, piece.position) == ((5,), 0)


@pytest.mark.parametrize(
    ("window", "message"),
    [("words:8", "7 words, fewer than the 8"), ("tokens:8", "7 tokens"), ("sliding:8:1", "7 tokens"),
     ("sweep:3,7", "6 tokens of context, fewer than the 7")],
)  # fmt: skip
def test_a_text_shorter_than_the_window_says_so(window, message):
    with pytest.raises(InputError, match=message):
        cut(window)


@pytest.mark.parametrize(
    "window", ["words", "words:0", "words:x", "words:3:4", "sliding:3", "sweep:", "all", "positions:3"]
)
def test_unknown_windows_are_refused(window):
    with pytest.raises(InputError, match="unknown window"):
        Window.parse(window)


# What people bring: dev/LOG.md, 2026-11-30, has the whole list with what came out.

TWO = [{"id": "a", "text": "one two", "domain": "x"}, {"id": "b", "text": "three four", "domain": "y"}]
EXPECTED = [("a", "one two", "x"), ("b", "three four", "y")]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
]


def lines_of(rows_):
    return "\n".join(json.dumps(row) for row in rows_) + "\n"


def in_memory():
    """Each kind of corpus in memory, as a function that makes it."""
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    columns = {name: [row[name] for row in TWO] for name in TWO[0]}
    return {
        "dicts": TWO,
        "generator of dicts": (row for row in TWO),
        "polars": polars.DataFrame(TWO),
        "polars, lazy": polars.LazyFrame(TWO),
        "pandas": pandas.DataFrame(TWO),
        "pandas, by index": pandas.DataFrame(TWO).set_index("id"),
        "pandas, shuffled index": pandas.DataFrame(TWO, index=[7, 7]),
        "pyarrow": pyarrow.table(columns),
        "pyarrow batch": pyarrow.RecordBatch.from_pydict(columns),
        "datasets": datasets.Dataset.from_list(TWO),
        "datasets, streamed": datasets.Dataset.from_list(TWO).to_iterable_dataset(),
    }


@pytest.mark.parametrize(
    "kind",
    ["dicts", "generator of dicts", "polars", "polars, lazy", "pandas", "pandas, by index", "pandas, shuffled index",
     "pyarrow", "pyarrow batch", "datasets", "datasets, streamed"],
)  # fmt: skip
def test_a_table_in_memory_is_its_rows_and_not_its_keys(kind):
    assert rows(in_memory()[kind], "id", "text", "domain") == EXPECTED


def test_a_column_in_memory_is_texts():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    texts = ["one two", "three four"]
    for column in (pandas.Series(texts), pandas.Index(texts), polars.Series(texts), pyarrow.array(texts)):
        assert rows(column, "id", "text") == [("1", "one two"), ("2", "three four")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"text": ["a b"], "source_document": ["c d"]}, "its keys are 'text', 'source_document'"),
        ({"a": "one two", "b": "three four"}, "its keys are 'a', 'b'"),
        ({"text": "one two"}, r"\[row\]"),
        ({"one two", "three four"}, "has none; give a list"),
        (b"one two", "bytes"),
        ([b"one two"], r"item 1 is bytes; decode"),
        ([["one two"]], "item 1 is of type list"),
        (7, "got 7"),
    ],
)
def test_what_has_no_rows_or_no_order_is_refused(source, message):
    with pytest.raises(ArgumentTypeError, match=message):
        read_corpus(source)


def test_a_set_of_splits_is_refused_by_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(TWO)
    splits = datasets.DatasetDict({"train": data, "test": data})
    with pytest.raises(ArgumentTypeError, match=r"splits 'train', 'test'; give one: data\['train'\]"):
        read_corpus(splits)
    splits.save_to_disk(tmp_path / "both")
    data.save_to_disk(tmp_path / "one")
    with pytest.raises(InputError, match="splits train, test; give one"):
        read_corpus(tmp_path / "both")
    for place in (tmp_path / "one", tmp_path / "both" / "train", f"hf:{tmp_path / 'both'}:test"):
        assert rows(place, "id", "text", "domain") == EXPECTED
    with pytest.raises(InputError, match="no split 'dev'"):
        read_corpus(f"hf:{tmp_path / 'both'}:dev")


def test_an_open_file_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "one two\nthree\n")
    with path.open() as file, pytest.raises(ArgumentTypeError, match="open file"):
        read_corpus(file)


def test_missing_values_of_pandas_are_missing():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"text": ["one two", None, float("nan"), pandas.NA, 5], "n": [1.5, None, 2, 3, 4]}
    )
    texts = read_corpus(frame).texts
    assert texts["problem"].to_list() == [None, *["the text is empty"] * 3, "text must be a string, got int"]
    assert texts["n"].to_list() == [1.5, None, 2.0, 3.0, 4.0]
    assert rows(["one two", None], "text", "problem") == [("one two", None), (None, "the text is empty")]
    with pytest.raises(
        InputError, match=r"no text of the corpus .* can be used; the first: text must be a string"
    ):
        read_corpus(polars.DataFrame({"text": [1, 2]}))


def test_objects_of_a_frame_are_stored_as_text_or_refused():
    numpy = pytest.importorskip("numpy")
    import uuid
    from pathlib import Path

    key = uuid.UUID(int=7)
    kept = polars.DataFrame({"text": ["one two"], "key": polars.Series([key], dtype=polars.Object)})
    assert read_corpus(kept).texts["key"].to_list() == [f'"{key}"']
    assert read_corpus([{"text": "one two", "at": Path("a/b")}]).texts["at"].to_list() == ['"a/b"']
    pandas = pytest.importorskip("pandas")
    assert read_corpus(pandas.DataFrame({"text": ["one two"], "v": [numpy.array([1, 2])]})).texts["v"][
        0
    ].to_list() == [1, 2]
    for odd in (object(), {1, 2}):
        frame = polars.DataFrame({"text": ["one two"], "x": polars.Series([odd], dtype=polars.Object)})
        with pytest.raises(InputError, match=f"column 'x' that cannot be stored.*{type(odd).__name__}"):
            read_corpus(frame)


PACKERS = {"": lambda c: c, ".gz": "gzip", ".bz2": "bz2", ".xz": "lzma", ".zst": "zstd"}


def packed(ending, content):
    if ending == "":
        return content
    if ending == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        return pyarrow.compress(content, codec="zstd", asbytes=True)
    import importlib

    return importlib.import_module(PACKERS[ending]).compress(content)


def test_every_format_packed_or_not(tmp_path):
    import io

    parquet = io.BytesIO()
    polars.DataFrame(TWO).write_parquet(parquet)
    contents = {
        ".jsonl": lines_of(TWO).encode(),
        ".ndjson": lines_of(TWO).encode(),
        ".json": json.dumps(TWO).encode(),
        ".csv": b"id,text,domain\na,one two,x\nb,three four,y\n",
        ".tsv": b"id\ttext\tdomain\na\tone two\tx\nb\tthree four\ty\n",
        ".parquet": parquet.getvalue(),
    }
    digest = read_corpus(TWO).sha256
    for kind, content in contents.items():
        for ending in PACKERS:
            found = read_corpus(write(tmp_path / f"a{kind}{ending}", packed(ending, content)))
            assert found.texts.select("id", "text", "domain").rows() == EXPECTED, (kind, ending)
            assert found.sha256 == digest
    for ending in PACKERS:
        assert rows(write(tmp_path / f"b.txt{ending}", packed(ending, b"one two\nthree\n")), "text") == [
            ("one two",), ("three",),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b'{"text": "one two"}', r"not a \.gz file"),
        ("a.jsonl.gz", packed(".gz", b'{"text": "one two"}')[:-6], r"not a \.gz file, or is damaged"),
        ("a.csv.zst", b"id,text", r"not a \.zst file"),
        ("a.xz", packed(".xz", b"one"), r"name it by what it holds, such as a\.jsonl\.xz"),
        ("a.tar.gz", b"", "archive: unpack"),
        ("a.zip", b"PK", "archive: unpack"),
        ("a.jsonl", packed(".gz", b'{"text": "one two"}'), r"packed: name it \.gz"),
        ("a.json", b'{"version": 1, "data": [{"text": "a b"}]}', r"object with version, data.*jq '\.data'"),
        ("a.json", b"7", "expected an array"),
        ("a.json", b'[{"text": "a"}, 5]', "item 2, is of type int"),
        ("a.json", b'[{"text": "a"},\n {"text" "b"}]', "line 2, is not JSON"),
    ],
)
def test_files_that_are_not_what_their_names_say(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_corpus(write(tmp_path / name, content))


def test_json_is_an_array_of_texts_or_lines(tmp_path):
    assert rows(write(tmp_path / "a.json", '["one two", "three"]'), "id", "text") == [
        ("1", "one two"),
        ("2", "three"),
    ]
    assert rows(write(tmp_path / "b.json", lines_of(TWO)), "id", "text", "domain") == EXPECTED
    assert rows(write(tmp_path / "c.json", '{"text": "one two"}'), "text") == [("one two",)]
    assert rows(write(tmp_path / "d.jsonl", '"one two"\n"three"\n'), "text") == [("one two",), ("three",)]


def test_sheets_need_fastexcel_and_the_message_says_so(tmp_path, monkeypatch):
    file = write(tmp_path / "a.xlsx", b"PK\x03\x04")

    def absent(source, **options):
        raise ModuleNotFoundError("required package 'fastexcel' not found")

    monkeypatch.setattr(polars, "read_excel", absent)
    with pytest.raises(InputError, match=r"pip install 'densitometer\[excel\]', or save the sheet as \.csv"):
        read_corpus(file)

    def present(source, has_header=True, **options):
        frame = polars.DataFrame(TWO)
        return frame if has_header else polars.DataFrame([frame.columns], orient="row")

    monkeypatch.setattr(polars, "read_excel", present)
    assert rows(file, "id", "text", "domain") == EXPECTED


def workbook(*lines: list[object]) -> bytes:
    """A workbook of one sheet, as small as Excel's can be; None is an empty cell and `#N/A` an error."""

    def cell(column: int, number: int, value: object) -> str:
        place = f'r="{chr(65 + column)}{number}"'
        if isinstance(value, int | float):
            return f"<c {place}><v>{value}</v></c>"
        if value == "#N/A":
            return f'<c {place} t="e"><v>#N/A</v></c>'
        return f'<c {place} t="inlineStr"><is><t>{value}</t></is></c>'

    data = "".join(
        f'<row r="{n}">{"".join(cell(c, n, v) for c, v in enumerate(line) if v is not None)}</row>'
        for n, line in enumerate(lines, start=1)
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kinds = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in {
            "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
            f'"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
            f'ContentType="{kinds}.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" '
            f'ContentType="{kinds}.worksheet+xml"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{office}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
            "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="s" sheetId="1" r:id="r1"/>'
            "</sheets></workbook>",
            "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
            f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
            "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{data}</sheetData></worksheet>',
        }.items():
            file.writestr(name, text)
    return content.getvalue()


def test_sheets_as_their_reader_gives_them(tmp_path):
    """Late values of another type, rows without values, columns without a name or of one name (pola-rs/polars 14874, 18250)."""
    pytest.importorskip("fastexcel")
    late = [[f"text {i}", None if i < 1200 else f"word{i}", i if i < 1300 else "x"] for i in range(1400)]
    file = write(tmp_path / "a.xlsx", workbook(["text", "next", "year"], *late))
    assert rows(file, "text", "next", "year")[1200:] == [(t, n, str(y)) for t, n, y in late[1200:]]
    assert rows(file, "next")[:1200] == [(None,)] * 1200
    gaps = workbook(["text", None], ["one", 5], [None], ["#N/A"], ["four"], [None], ["#N/A"])
    frame = read_corpus(write(tmp_path / "b.xlsx", gaps)).texts
    assert frame.select("id", "text").rows() == [("2", "one"), ("3", None), ("4", None), ("5", "four")]
    assert frame["problem"].to_list() == [None, "the text is empty", "the text is empty", None]
    assert len(frame.columns) == 6
    with pytest.raises(InputError, match="more than one column 'text'"):
        read_corpus(write(tmp_path / "c.xlsx", workbook(["text", "text"], ["a", "b"])))
    for empty in (workbook(), workbook(["text"])):
        with pytest.raises(InputError, match="is empty"):
            read_corpus(write(tmp_path / "d.xlsx", empty))
    with pytest.raises(InputError, match=r"is not an \.xlsx file, or is damaged"):
        read_corpus(write(tmp_path / "e.xlsx", gaps[:300]))


@pytest.mark.parametrize("ending", ["txt", "csv", "tsv", "jsonl", "json", "parquet", "xlsx", "jsonl.gz"])
def test_a_pointer_of_git_lfs_is_no_corpus(tmp_path, ending):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
    with pytest.raises(InputError, match=r"is a pointer of Git LFS.*git lfs pull"):
        read_corpus(write(tmp_path / f"a.{ending}", pointer))


def test_files_that_were_put_together_keep_no_marks_of_their_beginnings(tmp_path):
    text = "\ufeffone\r\n\ufefftwo \ufeff three\n"
    assert rows(write(tmp_path / "a.txt", text), "text") == [("one",), ("two \ufeff three",)]
    lines = '\ufeff{"text": "one"}\n\ufeff{"text": "two"}\n'
    assert rows(write(tmp_path / "a.jsonl", lines), "text") == [("one",), ("two",)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be", "utf-32-le"])
def test_wide_encodings_by_their_mark(tmp_path, encoding):
    text = "one tw\u00f6\nthree"
    content = (("" if encoding in ("utf-16", "utf-32") else "\ufeff") + text).encode(encoding)
    assert rows(write(tmp_path / "a.txt", content), "text") == [("one tw\u00f6",), ("three",)]
    with pytest.raises(InputError, match=f"begins as {encoding[:6].upper()} and is not: truncated data"):
        read_corpus(write(tmp_path / "b.txt", content[:-1]))


def test_a_half_of_a_surrogate_pair_in_a_wide_encoding_is_one_row_s_fault(tmp_path):
    content = "\ufeffone\n\ud83d two\n".encode("utf-16-le", errors="surrogatepass")
    frame = read_corpus(write(tmp_path / "a.txt", content)).texts
    assert frame["problem"].to_list()[0] is None
    assert "U+D83D" in frame["problem"].to_list()[1]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_key_that_stands_twice_in_an_object_is_refused(tmp_path, ending):
    line = '{"text": "one", "meta": {"a": 1, "b": 2, "a": 3}}'
    with pytest.raises(InputError, match="has the key 'a' more than once"):
        read_corpus(write(tmp_path / f"a.{ending}", line if ending == "jsonl" else f"[{line}]"))


def test_words_that_stand_for_nothing_elsewhere_are_words(tmp_path):
    """As a table has them (huggingface/datasets 4467, confident-ai/deepeval 3298)."""
    words = [("null", "NA"), ("None", "nan"), ("007", "N/A"), ("1e5", "True")]
    for delimiter, ending in ((",", "csv"), ("\t", "tsv")):
        table = "\n".join(delimiter.join(row) for row in [("text", "next"), *words])
        assert rows(write(tmp_path / f"a.{ending}", table), "text", "next") == words


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
def test_lines_end_where_editors_end_them(tmp_path, ending):
    """Not at the other characters at which str.splitlines does (huggingface/datasets 3729)."""
    text = "one\u2028two\u2029three\x85four\x0cfive\x1csix"
    content = {
        "txt": f"{text}\nseven",
        "jsonl": f'{{"text": "{text.replace(chr(12), "")}"}}\n{{"text": "seven"}}',
        "csv": f"text\n{text}\nseven",
    }
    if ending == "jsonl":
        text, content[ending] = (
            text.replace("\x0c", "").replace("\x1c", ""),
            content[ending].replace("\x1c", ""),
        )
    assert rows(write(tmp_path / f"a.{ending}", content[ending]), "text") == [(text,), ("seven",)]


def test_an_array_without_dimensions_is_no_corpus():
    with pytest.raises(ArgumentTypeError, match="a corpus must be"):
        read_corpus(numpy.array("one two"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("extension", ["csv", "tsv"])
def test_the_delimiter_is_found_from_the_header_or_given(tmp_path, delimiter, extension):
    table = "\n".join(delimiter.join(row) for row in [("id", "text", "domain"), *EXPECTED])
    assert rows(write(tmp_path / f"a.{extension}", table), "id", "text", "domain") == EXPECTED
    other = write(tmp_path / f"b.{extension}", table.replace("text", "content"))
    name = "tab" if delimiter == "\t" else delimiter
    options = {"columns": {"text": "content"}}
    assert rows(other, "id", "text", "domain", **options) == EXPECTED
    assert rows(other, "id", "text", "domain", delimiter=name, **options) == EXPECTED


def test_odd_delimiters(tmp_path):
    file = write(tmp_path / "a.csv", "id^text\na^one two\n")
    with pytest.raises(InputError, match=r"has no column 'text': it has id.text.*--delimiter"):
        read_corpus(file)
    assert rows(file, "id", "text", delimiter="^") == [("a", "one two")]
    assert rows(write(tmp_path / "b.csv", "sep=;\nid;text\na;one two\n"), "id", "text") == [("a", "one two")]
    for wrong in ("", ";;", '"', "\n"):
        with pytest.raises(InputError, match="one character"):
            read_corpus(file, delimiter=wrong)


def test_quotes_of_a_tsv_are_characters_of_the_text(tmp_path):
    texts = ['"He said no', "and she went away", 'then she said yes"', '"Quoted whole."', 'a "word" in it']
    file = write(tmp_path / "a.tsv", "id\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts)))
    assert rows(file, "id", "text") == [(str(i), t) for i, t in enumerate(texts)]


@pytest.mark.parametrize("quoting", ["minimal", "all"])
def test_a_tsv_that_a_program_wrote_is_read_as_it_wrote_it(tmp_path, quoting):
    import csv

    texts = ['say "yes" now', "plain words"] + (["two\nlines"] if quoting == "all" else [])
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        writer = csv.writer(
            file, delimiter="\t", quoting=csv.QUOTE_ALL if quoting == "all" else csv.QUOTE_MINIMAL
        )
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
    assert rows(tmp_path / "a.tsv", "text") == [(text,) for text in texts]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", 'id\ttext\n1\t"no\n2\tand\n3\tyes"\n4\tfive\tsix\n', "line 2: a quote that opens there"),
        (
            "a.csv",
            'id,text\n1,"no\n2,and\n3,yes"\n',
            "line 2: a quote that opens there encloses lines up to 4",
        ),
        ("a.csv", 'id,text\n1,a b\n2,"c d\n3,e\n', "line 3, is malformed.*close the quote"),
        ("a.csv", 'id,text\n1,a b\n2,"c" d\n3,e\n', "line 3, is malformed"),
        ("a.csv", "id,text\n1,a b\n2,c,d\n", "line 3, has more fields"),
    ],
)
def test_a_bad_quote_or_row_is_refused_by_its_own_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_corpus(write(tmp_path / name, content))


def test_a_header_in_place_of_the_papers_table_is_pointed_out(tmp_path):
    from densitometer.errors import DensitometerWarning

    file = write(tmp_path / "a.tsv", "sentence\tlabel\nthe white whale swam\tx\nit was a ship\ty\n")
    with pytest.warns(DensitometerWarning, match="looks like a header.*--column text=sentence"):
        read_corpus(file)
    assert rows(file, "text", "label", columns={"text": "sentence"}) == [
        ("the white whale swam", "x"),
        ("it was a ship", "y"),
    ]
    # the word that comes next may be the name of a column
    write(file, "he read all of the\ttext\nand went into the\tship\n")
    assert rows(file, "text", "next") == [("he read all of the", "text"), ("and went into the", "ship")]


def test_hidden_files_are_not_texts(tmp_path):
    write(tmp_path / "t.txt", "one two\n")
    for hidden in (".ipynb_checkpoints/t-checkpoint.txt", ".git/COMMIT.txt", "._t.txt", ".t.txt.swp", "~$t.txt",
                   "__MACOSX/t.txt", "sub/.cache/x.jsonl"):  # fmt: skip
        write(tmp_path / hidden, "hidden text\n")
    assert rows(tmp_path, "id", "text") == [("t.txt:1", "one two")]
    (tmp_path / "t.txt").unlink()
    with pytest.raises(InputError, match="hidden files are not read"):
        read_corpus(tmp_path)
    # a hidden folder that is named is read
    assert len(read_corpus(tmp_path / ".git")) == 1


def test_a_folder_reads_a_file_once_and_leaves_descriptions_out(tmp_path):
    from densitometer.errors import DensitometerWarning

    write(tmp_path / "a.jsonl", lines_of(TWO))
    write(tmp_path / "a.jsonl.gz", packed(".gz", lines_of(TWO).encode()))
    write(tmp_path / "b.jsonl.gz", packed(".gz", b'{"id": "c", "text": "five six"}'))
    assert rows(tmp_path, "id", "file") == [("a", "a.jsonl"), ("b", "a.jsonl"), ("c", "b.jsonl.gz")]
    write(tmp_path / "info.json", '{"name": "a set"}')
    with pytest.warns(DensitometerWarning, match=r"info\.json .* is left out"):
        assert len(read_corpus(tmp_path)) == 3


def test_ids_that_start_anew_in_each_file_get_the_files_name(tmp_path):
    for name in ("a", "sub/b"):
        write(tmp_path / f"{name}.jsonl", lines_of([{"id": i, "text": f"text {name}"} for i in (1, 2)]))
    names = ["a.jsonl:1", "a.jsonl:2", "sub/b.jsonl:1", "sub/b.jsonl:2"]
    assert read_corpus(tmp_path).texts["id"].to_list() == names
    write(tmp_path / "c.jsonl", lines_of([{"id": 9, "text": "x"}, {"id": 9, "text": "y"}]))
    with pytest.raises(InputError, match=r"such as 'c\.jsonl:9'"):
        read_corpus(tmp_path)


SHAREGPT = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "What is the capital of France?"},
            {"from": "gpt", "value": "Paris."}]  # fmt: skip


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_chats_are_read_up_to_their_last_answer(tmp_path, column, form):
    chat = CHAT if form == "messages" else SHAREGPT
    found = read_corpus(write(tmp_path / "a.jsonl", lines_of([{"id": "0", column: chat}])))
    (row,) = found.texts.to_dicts()
    assert json.loads(row["chat_messages"]) == CHAT[:2]
    assert (row["text"], row["next"]) == ("Be brief.\n\nWhat is the capital of France?", "Paris.")
    assert found.usable() == [CHAT]
    assert found.sha256 == read_corpus([{"id": "0", column: CHAT}]).sha256
    as_json = write(
        tmp_path / "a.csv", f'id,{column}\n0,"{json.dumps(chat).replace(chr(34), chr(34) * 2)}"\n'
    )
    assert read_corpus(as_json).sha256 == found.sha256


def test_chats_in_memory_and_in_tables(tmp_path):
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    expected = read_corpus([CHAT, CHAT[1:2]])
    assert expected.texts["next"].to_list() == ["Paris.", None]
    column = {"messages": [CHAT, CHAT[1:2]]}
    polars.DataFrame(column).write_parquet(tmp_path / "a.parquet")
    for source in (column["messages"], polars.DataFrame(column), pandas.DataFrame(column),
                   datasets.Dataset.from_dict(column), tmp_path / "a.parquet"):  # fmt: skip
        assert read_corpus(source).sha256 == expected.sha256
    mapped = read_corpus([{"dialog": CHAT}], columns={"text": "dialog"})
    assert mapped.texts["next"].to_list() == ["Paris."]
    # where there are texts, they are what is measured
    assert rows([{"text": "one two", "messages": "x"}], "text", "messages") == [("one two", "x")]


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        ([], "the chat is empty"),
        ([{"role": "assistant", "content": "Paris."}], "no message before the answer"),
        ([{"role": "user"}], "message 1 of the chat must have role and content"),
        ([{"role": "user", "content": None}], "must have a text as content, got NoneType"),
        (["hello"], "message 1 of the chat is not an object, got str"),
        (None, "the text is empty"),
    ],
)  # fmt: skip
def test_a_chat_that_is_none_is_a_problem_of_its_row(chat, problem):
    found = read_corpus([{"messages": CHAT}, {"messages": chat}]).texts["problem"].to_list()
    assert found[0] is None
    assert problem in found[1]


def test_a_lone_surrogate_is_not_called_a_byte(tmp_path):
    good = '{"id": "0", "text": "a b"}\n'
    for code in ("d800", "dc80"):
        file = write(tmp_path / "a.jsonl", good + '{"id": "1", "text": "a \\u' + code + ' b"}\n')
        problem = read_corpus(file).texts["problem"][1]
        assert f"lone surrogate, U+{code.upper()}" in problem
        assert "byte" not in problem
    assert "byte 0xe9" in rows(write(tmp_path / "b.txt", b"plain\n\xe9tat\n"), "problem")[1][0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\0b.txt", "null character"),
        ("x" * 5000, "5,000 characters"),
        ("x" * 300 + ".txt", "there is no corpus|too long"),
        ("hf:a\0b", "null character"),
        ("https://huggingface.co/datasets/owner/name/viewer", "Give hf:owner/name"),
        ("hf:https://huggingface.co/datasets/owner/name", "Give hf:owner/name"),
        ("https://example.com/a.csv", "Download"),
        ("The captain looked at the sea", r"goes into a list: \[text\]"),
    ],
)
def test_what_cannot_be_a_path_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        read_corpus(source)


def test_a_lone_surrogate_is_a_failed_row_even_alone(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"id": "1", "text": "a \\ud800 b"}\n')
    assert "lone surrogate" in rows(file, "problem")[0][0]


def test_a_data_set_that_cannot_be_reached_is_not_tried_again_and_again(monkeypatch):
    pytest.importorskip("datasets")
    import huggingface_hub

    def refused():
        raise OSError("no network")

    def waited(seconds):
        raise AssertionError("it waited to try again")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", refused)
    monkeypatch.setattr("time.sleep", waited)
    with pytest.raises(InputError, match=r"cannot be reached \(no network\), and it is not among those"):
        read_corpus("hf:owner/name")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one two\nthree four\n", ["one two", "three four"]),
        (lines_of(TWO).encode(), ["one two", "three four"]),
        (json.dumps(TWO).encode(), ["one two", "three four"]),
        (b"id,text\na,one two\nb,three four\n", ["one two", "three four"]),
        (b"id\ttext\na\tone two\nb\tthree four\n", ["one two", "three four"]),
        (packed(".gz", b"one two\nthree four\n"), ["one two", "three four"]),
        (b"[citation needed] he said\n{x} and y\n", ["[citation needed] he said", "{x} and y"]),
    ],
)
def test_standard_input(monkeypatch, content, expected):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [row[0] for row in rows("-", "text")] == expected


def test_empty_or_closed_standard_input(monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(InputError, match="'standard input' is empty"):
        read_corpus("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="closed"):
        read_corpus("-")


def test_digests_of_corpora_that_were_read_before(tmp_path):
    """From commit 49b11c9; a study resumes only where they stay."""
    folder = tmp_path / "folder"
    write(folder / "a.csv", 'id,text,next,year\nx,"say ""a"", then\nb",c,5\ny,d e,,6\n')
    write(folder / "b.jsonl", '{"text": "one", "domain": "sea"}\n\n{"id": 7, "text": "two", "tags": ["a"]}\n')
    write(folder / "c.txt", "état\n\nplain\n")
    write(folder / "d.tsv", 'the "white\twhale\nand the\tship\n')
    write(folder / "e.tsv", "id\ttext\n1\ta b\n2\tc d\n")
    found = {p.name: read_corpus(p).sha256[:12] for p in sorted(folder.iterdir())}
    found |= {"folder": read_corpus(folder).sha256[:12], "list": read_corpus(["a b", "c"]).sha256[:12]}
    found["frame"] = read_corpus(polars.DataFrame({"text": ["a b", "c d"], "id": [5, 6]})).sha256[:12]
    assert found == DIGESTS


DIGESTS = {
    "a.csv": "54854a6362a3", "b.jsonl": "c8e181a23326", "c.txt": "98e8edd20dd9", "d.tsv": "5595c94294c0",
    "e.tsv": "e218e96289f3", "folder": "8871f9497e57", "list": "cfe142c91695", "frame": "31bed487ba78",
}  # fmt: skip
