"""Texts and models that are added to a study: only they are measured, and nothing else is accepted as the same corpus."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy
import polars
import pytest
from command import SERVER, call
from studies import TEXTS, rows, save_model

import densitometer as dm
from densitometer.errors import DensitometerWarning, StorageError
from densitometer.report.page import _settings
from densitometer.study.corpus import Corpus, read_corpus
from densitometer.study.manifest import read_manifest
from densitometer.study.part_files import cell_key, part_of
from densitometer.study.store import StudyStore

pytestmark = pytest.mark.models

MODEL = "owner/m"
SETTINGS = {"importance": ["l1"], "seed": 0, "eps": 0.1}
OLD = read_corpus(
    [{"id": f"t{i}", "text": f"text {i}", "year": i, "tags": ["a"] * i, "language": "en"} for i in range(5)]
).texts
# the known texts in another order, and two new ones among them
MORE = read_corpus(
    [
        {"id": i, "text": f"text {i[1:]}", "year": int(i[1:]), "tags": ["a"] * int(i[1:]), "language": "en"}
        for i in ("t3", "t9", "t0", "t4", "t1", "t7", "t2")
    ]
).texts
ORDER = ["t0", "t1", "t2", "t3", "t4", "t9", "t7"]


def create(folder, texts=OLD) -> StudyStore:
    corpus = Corpus("c", texts)
    about = {"name": "c", "sha256": corpus.sha256, "n_texts": len(corpus)}
    return StudyStore.create(folder, SETTINGS, about, texts, {"torch": "2"})


def put(store: StudyStore, start: int, end: int) -> None:
    keyed = json.dumps(SETTINGS, sort_keys=True)
    found = [
        {"cell": i, "key": cell_key(MODEL, store.texts.row(i, named=True), keyed), "text_id": store.texts["id"][i], "piece": 0,
         "model": MODEL, "importance": "l1", "auc_log": float(i)}
        for i in range(start, end)
    ]  # fmt: skip
    store.write(MODEL, start, end, part_of(found, [{}] * len(found)))


@pytest.fixture
def begun(tmp_path) -> Path:
    store = create(tmp_path / "s")
    put(store, 0, 5)
    store.close()
    return store.folder


def state(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_new_texts_follow_the_known_ones_whatever_the_order_of_the_corpus(begun):
    reader = dm.open_study(begun)
    before = reader.measurements()
    store = create(begun, MORE)
    assert store.warnings == (f"2 texts were added to the 5 of the study {str(begun)!r}",)
    assert store.texts["id"].to_list() == ORDER
    assert store.missing(MODEL, 0, 7) == [(5, 7)]
    assert store.set_foreign_aside(MODEL, 0, 7) == {}
    put(store, 5, 7)
    assert reader.measurements().head(5).equals(before)
    assert reader.sql("select text_id, year from measurements order by auc_log").rows() == [
        (i, int(i[1:])) for i in ORDER
    ]
    study = dm.open_study(begun)
    assert study.texts().equals(store.texts)
    assert study.manifest["counted"] == 5
    assert study.manifest["corpus"] == {"name": "c", "sha256": Corpus("c", store.texts).sha256, "n_texts": 7}
    assert study._facts()["added"] == "2 of these texts, to 5"


def test_the_same_texts_again_change_nothing(begun):
    create(begun, MORE)
    before = state(begun)
    for texts in (MORE, MORE[[6, 2, 4, 0, 1, 5, 3]]):
        store = create(begun, texts)
        assert store.warnings == ()
        assert store.texts["id"].to_list() == ORDER
    assert state(begun) == before
    once_more = polars.concat(
        [MORE, MORE.head(1).with_columns(id=polars.lit("t12"), text=polars.lit("text 12"))]
    )
    assert create(begun, once_more).texts["id"].to_list() == [*ORDER, "t12"]
    assert read_manifest(begun)["counted"] == 5


def changed(name, value):
    return MORE.with_columns(
        polars.when(polars.col("id") == "t4").then(polars.lit(value)).otherwise(name).alias(name)
    )


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (MORE.filter(polars.col("id") != "t2"), r"6 texts, lacks 1 of them, such as 't2'\. Give all"),
        (OLD.head(3), r"3 texts, lacks 2 of them, such as 't3'"),
        (MORE.with_columns(id="i" + polars.col("id")), r"lacks 5 of them, such as 't0'"),
        (
            changed("text", "text 5"),
            r"has another text for the id 't4', 'text 5' where the study has 'text 4'",
        ),
        (changed("next", "word"), r"has another next for the id 't4', 'word' where the study has None"),
        (
            changed("language", "fr"),
            r"has another language for the id 't4', 'fr' where the study has 'en'",
        ),
        (changed("year", 4.5), r"has another year for the id 't4', 4\.5 where the study has 4"),
        (
            MORE.with_columns(tags=polars.Series([["b"]] * 7)),
            r"has another tags for the id 't0'",
        ),
        (
            MORE.with_columns(domain=polars.lit("sea")),
            r"has another domain for the id 't0', 'sea' where the study has None",
        ),
    ],
)
def test_a_corpus_in_which_a_known_text_is_missing_or_another_is_refused(begun, texts, reason):
    before = state(begun)
    with pytest.raises(StorageError, match=rf"is of another corpus: 'c', 5 texts; 'c', .*{reason}") as caught:
        create(begun, texts)
    assert "\n" not in str(caught.value)
    assert state(begun) == before


def test_columns_may_come_and_change_their_type_with_the_new_texts(begun):
    new = polars.col("id").is_in(["t7", "t9"])
    more = MORE.with_columns(
        year=polars.when(new).then(polars.lit(0.5)).otherwise("year"),
        author=polars.when(new).then(polars.lit("x")),
    )
    store = create(begun, more.drop("problem").with_columns(problem=polars.lit(None, polars.String)))
    assert store.texts["year"].to_list() == [0.0, 1.0, 2.0, 3.0, 4.0, 0.5, 0.5]
    assert store.texts["author"].to_list() == [None] * 5 + ["x"] * 2
    again = create(begun, more)
    assert again.warnings == ()
    assert again.texts.equals(store.texts)
    assert dm.open_study(begun).measurements().height == 5


def test_a_whole_number_is_not_taken_for_a_fraction(tmp_path):
    half = OLD.with_columns(year=polars.col("year") + 0.5)
    create(tmp_path / "s", half).close()
    with pytest.raises(StorageError, match=r"another year for the id 't0', 0 where the study has 0\.5"):
        create(tmp_path / "s", MORE)


def test_a_folder_may_get_a_second_file_and_a_third(tmp_path):
    place = tmp_path / "texts"
    place.mkdir()
    for name, ids in (
        ("b", ["1", "2"]),
        ("c", ["1", "2", "c.jsonl:1", "c.jsonl:2"]),
        ("a", ["1", "2", "c.jsonl:1", "c.jsonl:2", "a.jsonl:1", "a.jsonl:2"]),
    ):
        lines = [json.dumps({"id": i, "text": f"text {i} of {name}"}) for i in (1, 2)]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
        store = create(tmp_path / "s", read_corpus(place).texts)
        assert store.texts["id"].to_list() == ids
        put(store, len(ids) - 2, len(ids))
    assert store.set_foreign_aside(MODEL, 0, 6) == {}
    (place / "b.jsonl").write_text('{"id": 1, "text": "another"}\n{"id": 2, "text": "text 2 of b"}')
    with pytest.raises(StorageError, match="lacks 2 of them, such as '1'"):
        create(tmp_path / "s", read_corpus(place).texts)


def test_a_folder_s_files_may_get_longer(tmp_path):
    place = tmp_path / "texts"
    place.mkdir()
    (place / "b.txt").write_text("one\ntwo\n")
    assert create(tmp_path / "s", read_corpus(place).texts).texts["id"].to_list() == ["b.txt:1", "b.txt:2"]
    (place / "a.txt").write_text("three\n")
    (place / "b.txt").write_text("one\ntwo\nfour\n")
    grown = create(tmp_path / "s", read_corpus(place).texts).texts
    assert grown["id"].to_list() == ["b.txt:1", "b.txt:2", "a.txt:1", "b.txt:3"]


def killed_at(folder: str, n: int, when: str) -> None:
    """Add the texts, and be killed right before or after the n-th file is renamed."""
    count, rename = 0, os.replace

    def replace(source, target):
        nonlocal count
        count += 1
        if count == n and when == "after":
            rename(source, target)
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace
    create(folder, MORE)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_kill_between_any_two_writes_leaves_the_old_texts_or_the_new_ones(begun, n, when):
    reader = dm.open_study(begun)
    before = reader.measurements()
    process = SERVER.Process(target=killed_at, args=(str(begun), n, when))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    written = n > 2 or (n == 2 and when == "after")
    for study in (reader, dm.open_study(begun)):
        assert study.texts()["id"].to_list() == (ORDER if written else ORDER[:5])
        assert study.measurements().equals(before)
    if n == 1:
        # whoever goes on with the old corpus does
        assert create(begun).warnings == ()
    if written:
        with pytest.raises(StorageError, match="lacks 2 of them"):
            create(begun)
    store = create(begun, MORE)
    assert len(store.warnings) == (not written)
    assert store.texts["id"].to_list() == ORDER
    assert store.missing(MODEL, 0, 7) == [(5, 7)]
    put(store, 5, 7)
    manifest = read_manifest(begun)
    assert (manifest["counted"], manifest["corpus"]["n_texts"]) == (5, 7)
    assert "adding" not in manifest
    assert dm.open_study(begun).measurements()["text_id"].to_list() == ORDER


@pytest.mark.parametrize(("n", "when"), [(1, "before"), (1, "after"), (2, "before"), (2, "after")])
def test_a_kill_while_a_study_begins_is_no_hindrance(tmp_path, n, when):
    """Nor is it taken for one where another file of that name lies in the folder."""
    process = SERVER.Process(target=killed_at, args=(str(tmp_path / "s"), n, when))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = create(tmp_path / "s", MORE)
    assert store.warnings == ()
    assert dm.open_study(tmp_path / "s").texts().equals(MORE)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "texts.parquet").write_bytes(b"of the user")
    with pytest.raises(StorageError, match="is not empty and is not a study"):
        create(tmp_path / "t", MORE)
    assert (tmp_path / "t" / "texts.parquet").read_bytes() == b"of the user"


def test_texts_that_are_damaged_are_written_again_and_added_to(begun):
    path = begun / "texts.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    more = polars.concat([OLD, MORE.filter(polars.col("id") == "t9")])
    repaired, added = create(begun, more).warnings
    assert "written again from the corpus" in repaired
    assert "1 text was added to the 5" in added
    assert dm.open_study(begun).texts()["id"].to_list() == ORDER[:6]
    path.unlink()
    with pytest.raises(
        StorageError, match=r"cannot be compared with it, as texts\.parquet is missing or damaged"
    ):
        create(begun, MORE)


def test_a_process_that_began_before_texts_were_added_takes_their_parts_for_the_study_s(begun):
    first = create(begun)
    second = create(begun, MORE)
    put(second, 5, 7)
    second.merge(MODEL)
    assert first.set_foreign_aside(MODEL, 0, 5) == {}
    first.note_model(MODEL, "files:1")
    assert read_manifest(begun)["corpus"]["n_texts"] == 7
    assert dm.open_study(begun).measurements().height == 7


def test_an_older_study_without_a_digest_of_its_texts_may_grow(begun):
    path = begun / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["texts"]
    path.write_text(json.dumps(manifest))
    assert create(begun, MORE).texts["id"].to_list() == ORDER
    assert dm.open_study(begun).measurements().height == 5


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"counted": 6}, "counted is above"),
        ({"adding": {}}, r"adding\.corpus is missing"),
        ({"adding": {"corpus": {}, "texts": "0", "counted": 5}}, r"adding\.corpus\.name is missing"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_damaged(begun, damage, reason):
    path = begun / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    for open_ in (dm.open_study, create):
        with pytest.raises(StorageError, match=rf"manifest\.json' is damaged: {reason}"):
            open_(begun)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    place = tmp_path_factory.mktemp("models")
    return [save_model(place / str(seed), seed) for seed in (0, 1)]


OPTIONS = {
    "importance": "l1",
    "sizes": (0.1, 1.0),
    "part_seconds": 0.001,
    "window": "words:4",
    "baselines": (),
}
FRAME = polars.DataFrame({"id": [f"x{i}" for i in range(5)], "text": TEXTS[:5]})
SHUFFLED = FRAME[[4, 2, 0, 1, 3]]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory) -> dm.Study:
    return dm.run_study(FRAME, models[0], tmp_path_factory.mktemp("s") / "s", **OPTIONS)


def test_only_what_is_new_is_measured_and_its_numbers_are_those_of_a_study_of_all(models, whole, tmp_path):
    began = dm.run_study(FRAME.head(3), models[0], tmp_path / "s", **OPTIONS)
    first, curves = began.measurements(), began.curves()
    with pytest.warns(DensitometerWarning, match="2 texts were added to the 3"):
        grown = dm.run_study(SHUFFLED, models, tmp_path / "s", **OPTIONS)
    ours = polars.col("model") == models[0]
    known = polars.col("text_id").is_in(FRAME["id"][:3]) & ours
    # the seconds that they took too: they were not measured again
    assert grown.measurements().filter(known).equals(first)
    assert grown.curves().filter(known).equals(curves)
    assert sorted(grown.measurements().filter(~ours)["text_id"]) == FRAME["id"].to_list()
    counts = ("unigram_correlation", "n_unigrams")
    for mine, theirs in list(zip(rows(grown), rows(whole), strict=True))[:3]:
        mine = mine.filter(ours)
        assert mine.height == theirs.height > 0
        assert mine.drop(counts, strict=False).equals(theirs.drop(counts, strict=False))
    # tokens are counted in the three first texts, for every row, without the text itself
    model = dm.load_model(models[0])
    ids = {row["id"]: model.tokenizer(row["text"], add_special_tokens=False)["input_ids"] for row in FRAME.head(3).to_dicts()}  # fmt: skip
    for row in grown.measurements().filter(polars.col("error").is_null()).iter_rows(named=True):
        others = [token for text_id, tokens in ids.items() if text_id != row["text_id"] for token in tokens]
        assert row["n_unigrams"] == len(numpy.unique(others))
    assert "<td>texts at first</td><td>3</td>" in "".join(_settings(grown, {}))
    with pytest.raises(StorageError, match="lacks 2 of them"):
        dm.run_study(FRAME.head(3), models, tmp_path / "s", **OPTIONS)


def run_until(out: str, model: str, n: int) -> None:
    """Go on with all texts, and be killed as the n-th part is there."""
    count, rename = 0, os.replace

    def replace(source, target):
        nonlocal count
        rename(source, target)
        count += "parts" in str(target)
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    dm.run_study(SHUFFLED, model, out, **OPTIONS)


def test_a_study_that_is_killed_while_it_measures_what_was_added_loses_and_doubles_nothing(models, tmp_path):
    dm.run_study(FRAME.head(2), models[0], tmp_path / "s", **OPTIONS)
    process = SERVER.Process(target=run_until, args=(str(tmp_path / "s"), models[0], 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert dm.open_study(tmp_path / "s").measurements()["text_id"].n_unique() == 4
    found = dm.run_study(SHUFFLED, models[0], tmp_path / "s", **OPTIONS)
    assert sorted(found.measurements()["text_id"]) == FRAME["id"].to_list()


def test_the_same_line_again_after_the_file_grew(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["study", "c.txt", "-m", models[0], "-o", "s", "--window", "words:2", "--sizes", "0.1,1"]
    Path("c.txt").write_text("\n".join(TEXTS[:2]))
    assert call(*line).stderr == ""
    Path("c.txt").write_text("\n".join(TEXTS[:5]))
    found = call(*line)
    assert found.returncode == 0
    assert found.stderr == "densitometer: warning: 3 texts were added to the 2 of the study 's'\n"
    assert call(*line).stderr == ""
    assert dm.open_study("s").measurements().height == 5
    Path("c.txt").write_text("\n".join(["A new first line", *TEXTS[:5]]))
    refused = call(*line)
    assert refused.returncode == 1
    assert (
        "has another text for the id '1', 'A new first line' where the study has 'The captain"
        in refused.stderr
    )
    assert len(refused.stderr.splitlines()) == 1
