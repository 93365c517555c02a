"""What reads files of others never raises anything but our own errors: any bytes, any JSON, and any change to a good file."""

from __future__ import annotations

import copy
import json

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import densitometer as dm
from densitometer.errors import DensitometerError, StorageError
from densitometer.study.corpus import Window, read_corpus

pytestmark = pytest.mark.fast

ANY_TEXT = st.text(max_size=12)
NUMBERS = st.integers() | st.floats(allow_nan=True, allow_infinity=True)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["id", "text", "language", "domain", "next", "problem", "year"]) | ANY_TEXT
WINDOWS = st.builds(
    lambda kind, separator, sizes: ":".join([kind, separator.join(sizes)]),
    st.sampled_from(["whole", "words", "tokens", "sliding", "positions", "sweep"]),
    st.sampled_from([":", ",", "::"]),
    st.lists(st.integers(-1, 3).map(str) | st.sampled_from("x²٣"), max_size=3),
)
BYTES = st.binary(max_size=60) | st.text('ab ",\t\r\n{}[]:1\\\ufeff', max_size=60).map(str.encode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parsers")


def read(path, content, **options):
    """The texts of a corpus, or None where it is refused by name."""
    path.write_bytes(content)
    try:
        return read_corpus(path, **options).texts
    except DensitometerError:
        return None


@settings(max_examples=60, deadline=None)
@given(
    BYTES,
    st.sampled_from([".txt", ".jsonl", ".csv", ".tsv", ".parquet"]),
    st.sampled_from(["line", "paragraph", "file"]),
)
def test_any_bytes_are_a_corpus_or_are_refused(folder, content, extension, unit):
    texts = read(folder / f"a{extension}", content, unit=unit)
    if texts is not None:
        assert texts["id"].is_unique().all()
        assert texts["id"].null_count() == 0
        usable = texts.filter(polars.col("problem").is_null())["text"]
        assert usable.len() > 0
        assert all(text.strip() for text in usable)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=3))
def test_any_objects_are_a_corpus_or_are_refused(folder, rows):
    rows = [{"text": "one two", **rows[0]}, *rows[1:]]
    texts = read(folder / "a.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
    if texts is not None:
        assert texts.height == len(rows)  # nothing is lost silently


@settings(max_examples=60, deadline=None)
@given(WINDOWS | ANY_TEXT)
def test_any_window_is_known_or_refused(text):
    try:
        window = Window.parse(text)
    except DensitometerError:
        return
    assert all(isinstance(size, int) and size > 0 for size in window.sizes)


@pytest.mark.parametrize(
    "more",
    [
        {"id": "\ud800"},
        {"\ud800": 1},
        {"x": ["\ud800"]},
        {"language": "\ud800"},
        {"next": "\ud800"},
        {"x": "\ud800"},
        {"x": 2**70},
    ],
)
def test_what_json_can_hold_and_a_table_cannot(folder, more):
    rows = [{"text": "one two"}, {"text": "three", **more}]
    texts = read(folder / "a.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
    assert texts is None or texts.height == 2


def test_a_window_of_more_digits_than_python_reads_is_refused():
    with pytest.raises(DensitometerError, match="unknown window"):
        Window.parse("words:" + "1" * 5000)


@pytest.fixture(scope="module")
def document(make_model, folder):
    model = make_model("llama")
    dm.measure(model, [3, 88, 41], sizes=[0.3, 1.0]).save(folder / "good.json")
    return json.loads((folder / "good.json").read_text("utf-8"))


@st.composite
def changes(draw):
    """A place in a document, by the choices on the way there, and what is put there."""
    return draw(st.lists(st.integers(0, 40), min_size=1, max_size=4)), draw(st.just(...) | VALUES)


def changed(document, way, value):
    """The document with another value (... is none at all) at the end of a way through its members."""
    result = place = copy.deepcopy(document)
    for step, choice in enumerate(way):
        members = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = members[choice % len(members)]
        if step == len(way) - 1 or not isinstance(place[key], dict | list) or not place[key]:
            if value is ...:
                del place[key]
            else:
                place[key] = value
            break
        place = place[key]
    return result


@settings(max_examples=80, deadline=None)
@given(changes())
def test_any_change_to_a_measurement_is_read_or_refused(folder, document, change):
    path = folder / "changed.json"
    path.write_text(json.dumps(changed(document, *change)), "utf-8")
    try:
        read_back = dm.load_measurement(path)
    except StorageError:
        return
    assert read_back.curve.width > 0


@settings(max_examples=40, deadline=None)
@given(BYTES)
def test_any_bytes_are_no_measurement(folder, content):
    (folder / "bytes.json").write_bytes(content)
    with pytest.raises(DensitometerError, match=r"bytes\.json"):
        dm.load_measurement(folder / "bytes.json")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_measurement_that_is_cut_short_is_refused(folder, document, data):
    whole = (folder / "good.json").read_bytes()
    end = data.draw(st.integers(0, len(whole.rstrip()) - 1))
    (folder / "cut.json").write_bytes(whole[:end])
    with pytest.raises(DensitometerError, match=r"cut\.json"):
        dm.load_measurement(folder / "cut.json")
