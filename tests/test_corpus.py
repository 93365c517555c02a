"""Corpora of every kind, and windows against plain slices."""

from __future__ import annotations

import json

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
