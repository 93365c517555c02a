"""The store: parts that count, settings that do not mix, damage that is found, and what another process sees."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import polars
import pytest

import densitometer as dm
from densitometer.errors import InputError, StorageError
from densitometer.measuring.columns import COMPONENT_TYPES, TARGET_TYPES
from densitometer.study import manifest as manifest_room
from densitometer.study import part_files
from densitometer.study import store as study_store
from densitometer.study.corpus import read_corpus
from densitometer.study.manifest import read_manifest
from densitometer.study.part_files import (
    CURVE,
    cell_key,
    digest_of,
    list_parts,
    parquet_of,
    part_of,
    ranges_of,
    slug,
)
from densitometer.study.store import StudyStore

TEXTS = read_corpus(polars.DataFrame({"text": ["a b"] * 40, "language": ["en"] * 40})).texts.with_columns(
    id=polars.Series(str(i) for i in range(40))
)
CORPUS = {"name": "c.txt", "sha256": "ab" * 32, "n_texts": 40}
SETTINGS = {"importance": ["l1"], "seed": 0, "eps": 0.1}
MODEL = "owner/m@main"


def test_the_columns_of_a_curve_keep_their_order():
    order = (
        "importance kind refined size n_edges threshold flops_share parameter_share tv kl js top1 nucleus nucleus_unordered "
        "entropy top_token top_probability surprisal rank unigram_correlation top_ids top_probabilities"
    )
    assert list(CURVE) == order.split()


def test_a_study_is_opened_without_torch():
    code = "import sys, densitometer.study.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def create(folder, settings=SETTINGS, corpus=CORPUS, versions=None, texts=TEXTS):
    return StudyStore.create(folder, settings, corpus, texts, versions or {"torch": "2"})


def row(i, auc_log, error=None, settings=SETTINGS):
    """A row as a study writes it, with the key that this study gives."""
    key = cell_key(MODEL, TEXTS.row(i, named=True), json.dumps(settings, sort_keys=True))
    return {
        "cell": i, "key": key, "text_id": str(i), "piece": 0, "model": "owner/m", "revision": "main", "importance": "l1",
        "auc_log": auc_log, "error": error,
    }  # fmt: skip


def part(start, end, mark=0.0, error=None):
    rows = [row(i, i + mark, error) for i in range(start, end)]
    return part_of(rows, [{}] * len(rows))


def put(store, start, end, mark=0.0, error=None):
    return store.write(MODEL, start, end, part(start, end, mark, error))


def place(store):
    return store.folder / "parts" / slug(MODEL)


def read(store):
    return dm.open_study(store.folder).measurements().select("text_id", "auc_log").sort("auc_log").rows()


def test_what_no_part_covers_is_missing(tmp_path):
    store = create(tmp_path / "s")
    assert store.missing(MODEL, 0, 40) == [(0, 40)]
    put(store, 5, 9)
    put(store, 20, 25)
    assert store.missing(MODEL, 0, 40) == [(0, 5), (9, 20), (25, 40)]
    assert store.missing(MODEL, 6, 22) == [(9, 20)]
    assert store.missing(MODEL, 6, 8) == []
    assert store.missing("another", 0, 3) == [(0, 3)]


def test_a_cell_counts_once_where_parts_overlap(tmp_path):
    store = create(tmp_path / "s")
    for start, end, mark in ((0, 4, 0.0), (0, 2, 0.5), (2, 6, 0.25), (5, 6, 0.5), (8, 9, 0.0)):
        put(store, start, end, mark)
    expected = [
        (str(i), i + mark) for i, mark in ((0, 0.0), (1, 0), (2, 0), (3, 0), (4, 0.25), (5, 0.25), (8, 0))
    ]
    assert read(store) == expected
    assert (
        dm.open_study(store.folder).sql("select text_id, auc_log from measurements order by auc_log").rows()
        == expected
    )
    assert [(p.first, p.end) for p in list_parts(place(store))] == [(0, 4), (4, 6), (8, 9)]


def test_merging_changes_no_row_and_a_kill_in_between_does_no_harm(tmp_path, monkeypatch):
    store = create(tmp_path / "s")
    for start, end in ((0, 3), (3, 5), (5, 6), (8, 12), (12, 13)):
        put(store, start, end)
    before = read(store)
    small = sorted(p.name for p in place(store).iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(
            "pathlib.Path.unlink", lambda self, missing_ok=False: None
        )  # killed before the old parts go
        store.merge(MODEL)
    assert len(list(place(store).glob("*.parquet"))) == len(small) + 2
    assert read(store) == before
    store.merge(MODEL)
    assert read(store) == before
    assert [(p.start, p.end) for p in list_parts(place(store))] == [(0, 6), (8, 13)]


def test_parts_are_not_merged_beyond_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(study_store, "MERGED_CELLS", 5)
    store = create(tmp_path / "s")
    for start in range(0, 14, 2):
        put(store, start, start + 2)
    before = read(store)
    store.merge(MODEL)
    assert [(p.start, p.end) for p in list_parts(place(store))] == [(0, 4), (4, 8), (8, 12), (12, 14)]
    assert read(store) == before


def test_many_small_parts_are_merged_while_a_study_is_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(study_store, "SMALL_CELLS", 3)
    monkeypatch.setattr(study_store, "SMALL_PARTS", 4)
    store = create(tmp_path / "s")
    for start, end in (
        (0, 4),
        (4, 5),
        (5, 8),
        (8, 9),
        (10, 11),
        (11, 12),
        (12, 14),
        (14, 15),
        (15, 16),
        (16, 20),
    ):
        put(store, start, end)
    before = read(store)
    store.merge(MODEL, small=True)
    runs = [
        (0, 4),
        (4, 5),
        (5, 8),
        (8, 9),
        (10, 16),
        (16, 20),
    ]  # three small ones are too few; 0 to 4 is none
    assert [(p.start, p.end) for p in list_parts(place(store))] == runs
    assert len(list(place(store).glob("*.parquet"))) == len(runs)
    assert read(store) == before


def test_only_the_parts_of_a_shard_are_looked_at_for_damage(tmp_path):
    store = create(tmp_path / "s")
    for start, end in ((0, 3), (3, 6), (6, 9)):
        put(store, start, end).write_bytes(b"")
    assert [name.split("/")[-1][:17] for name in store.set_damaged_aside(MODEL, 4, 6)] == [
        "00000003-00000006"
    ]
    assert len(store.set_damaged_aside(MODEL, 0, 40)) == 2


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_part_cut_short_is_named_and_set_aside(tmp_path, cut):
    store = create(tmp_path / "s")
    put(store, 0, 3)
    path = put(store, 3, 5)
    path.write_bytes(path.read_bytes()[:cut])
    if cut < 100:
        with pytest.raises(StorageError, match=path.name):
            dm.open_study(store.folder).measurements()
    (name,) = store.set_damaged_aside(MODEL, 0, 40)
    assert name.endswith(path.name)
    assert store.missing(MODEL, 0, 5) == [(3, 5)]
    assert len(read(store)) == 3


def test_one_flipped_bit_is_found(tmp_path):
    store = create(tmp_path / "s")
    path = put(store, 0, 3)
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert len(store.set_damaged_aside(MODEL, 0, 40)) == 1


def test_failed_cells_are_forgotten_and_the_others_kept(tmp_path):
    store = create(tmp_path / "s")
    rows = [row(i, float(i), "no" if i in (2, 3, 6) else None) for i in range(7)]
    store.write(MODEL, 0, 7, part_of(rows, [{}] * 7))
    assert store.count(MODEL, 1, 7) == (6, 3)
    assert store.forget_failures(MODEL) == 3
    assert store.missing(MODEL, 0, 7) == [(2, 4), (6, 7)]
    assert [i for i, _ in read(store)] == ["0", "1", "4", "5"]
    assert store.forget_failures(MODEL) == 0


def test_other_settings_are_refused_with_what_differs(tmp_path):
    create(tmp_path / "s").close()
    with pytest.raises(StorageError, match=r"seed was 0, now 3; eps was 0.1, now 0.2"):
        create(tmp_path / "s", SETTINGS | {"seed": 3, "eps": 0.2})


def test_another_corpus_of_the_same_name_is_refused(tmp_path):
    create(tmp_path / "s").close()
    other = TEXTS.with_columns(id="x" + polars.col("id"))
    with pytest.raises(StorageError, match=r"another corpus: 'c.txt', 40 texts; 'c.txt', 41 texts, lacks 40"):
        create(tmp_path / "s", corpus=CORPUS | {"sha256": "cd" * 32, "n_texts": 41}, texts=other)


def test_other_versions_are_told_and_written_down(tmp_path):
    assert create(tmp_path / "s").warnings == ()
    (warning,) = create(tmp_path / "s", versions={"torch": "3"}).warnings
    assert "torch was '2', now '3'" in warning
    assert dm.open_study(tmp_path / "s").manifest["versions"] == [{"torch": "2"}, {"torch": "3"}]
    assert create(tmp_path / "s", versions={"torch": "3"}).warnings == ()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="not empty"):
        create(tmp_path)
    with pytest.raises(StorageError, match="is not a study"):
        dm.open_study(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        create(tmp_path / "file")


def test_newer_schemas_are_refused_and_older_ones_migrated(tmp_path, monkeypatch):
    store = create(tmp_path / "s")
    put(store, 0, 2)
    path = store.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema": "densitometer.study/99"}))
    for open_ in (dm.open_study, create):
        with pytest.raises(StorageError, match=r"densitometer\.study/99.*up to densitometer\.study/3"):
            open_(store.folder)
    old = manifest | {"schema": "densitometer.study/0", "config": manifest["settings"]}
    path.write_text(json.dumps({k: v for k, v in old.items() if k != "settings"}))
    with pytest.raises(StorageError, match="too old"):
        dm.open_study(store.folder)

    def migrate(folder, found):
        return {"settings": found.pop("config"), **found}

    monkeypatch.setitem(manifest_room.MIGRATIONS, 0, migrate)
    monkeypatch.setitem(manifest_room.MIGRATIONS, 1, lambda folder, found: found)
    assert dm.open_study(store.folder).manifest == manifest
    assert json.loads(path.read_text()) == manifest
    assert len(read(create(store.folder))) == 2


NEW_SINCE = (
    "prompt_surprisal", "unigram_correlation", "n_unigrams", "states", "faithful_at", "noise", "n_sinks", "sink_share",
    "sink_share_of_trace", "size_at_without_sinks",
)  # fmt: skip


def as_version_1(folder):
    """Make a study what version 1 wrote: without what came later, parts under the digest of that."""
    for path in folder.glob("parts/*/*.parquet"):
        table = polars.read_parquet(path, hive_partitioning=False).drop(NEW_SINCE)
        fields = [f.name for f in table.schema["curve"].inner.fields if f.name != "unigram_correlation"]
        of_curve = polars.struct([polars.element().struct.field(name) for name in fields])
        content = parquet_of(table.with_columns(polars.col("curve").list.eval(of_curve)))
        path.unlink()
        path.with_name(path.name[:-20] + digest_of(content) + ".parquet").write_bytes(content)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"schema": "densitometer.study/1"}
    for name in ("states", "unigrams", "means"):
        del manifest["settings"][name]
    path.write_text(json.dumps(manifest))


@pytest.fixture
def older(tmp_path):
    """A store of version 1 in three parts, one with a metric of a plugin; and the rows that it was made of."""
    settings = SETTINGS | {"states": False, "unigrams": None, "means": None}
    store = create(tmp_path / "s", settings)
    curve = polars.DataFrame(
        {"kind": ["trace", "trace"], "size": [0.5, 1.0], "tv": [0.25, 0.0], "largest": [3.0, 4.0]}
    )
    curve = curve.with_columns(
        polars.lit(None, dtype=t).alias(c) for c, t in CURVE.items() if c not in curve.columns
    )
    for start, end in ((0, 3), (3, 4), (4, 9)):
        rows = [row(i, i / 8, settings=settings) for i in range(start, end)]
        store.write(
            MODEL, start, end, part_of(rows, [{"curve": curve}] * (end - start - 1) + [{}], ["largest"])
        )
    store.close()
    study = dm.open_study(store.folder)
    tables = study.measurements(), study.curves()
    as_version_1(store.folder)
    return store.folder, settings, tables


def test_an_older_store_is_migrated_with_nulls_for_what_it_lacks(older):
    folder, settings, (measurements, curves) = older
    found = dm.open_study(folder)
    assert found.manifest["schema"] == "densitometer.study/3"
    assert found.measurements().equals(measurements)
    assert found.measurements()["prompt_surprisal"].null_count() == 9
    assert found.curves().equals(curves)
    assert found.curves()["largest"].to_list() == [3.0, 4.0] * 6
    assert found.states().is_empty()
    assert found.sql("select sum(tv) as tv, count(unigram_correlation) as n from curves").row(0) == (1.5, 0)
    store = create(folder, settings)  # the settings are those that a run of today has
    assert store.missing(MODEL, 0, 10) == [(9, 10)]
    assert store.set_damaged_aside(MODEL, 0, 40) == []
    store.merge(MODEL)
    assert dm.open_study(folder).measurements().equals(measurements)


def test_a_kill_while_a_store_is_migrated_does_no_harm(older, monkeypatch):
    folder, _, (measurements, curves) = older

    def killed(self, missing_ok=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", killed)  # the new part is there, the old one still too
        with pytest.raises(KeyboardInterrupt):
            dm.open_study(folder)
    assert len(list(folder.glob("parts/*/*.parquet"))) == 4
    assert read_manifest(folder)["schema"] == "densitometer.study/1"
    found = dm.open_study(folder)
    assert found.measurements().equals(measurements)
    assert found.curves().equals(curves)


def test_a_damaged_part_of_an_older_store_is_not_made_good(older):
    folder, settings, _ = older
    path = sorted(folder.glob("parts/*/*.parquet"))[1]
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    store = create(folder, settings)
    assert store.set_damaged_aside(MODEL, 0, 40) == [str(path.relative_to(folder))]
    assert store.missing(MODEL, 0, 9) == [(3, 4)]
    assert len(dm.open_study(folder).measurements()) == 8


def test_a_damaged_manifest_is_named(tmp_path):
    create(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text('{"schema": ')
    with pytest.raises(StorageError, match=r"manifest\.json.*damaged"):
        dm.open_study(tmp_path / "s")


def test_another_process_cannot_claim_what_this_one_has_until_it_is_gone(tmp_path):
    store = create(tmp_path / "s")
    code = (
        "import sys; from test_study_store import create; store = create(sys.argv[1])\n"
        "print([store.claim('m', a, b) for a, b in ((3, 5), (0, 4), (6, 8), (2, 3))], store.claim('n', 3, 5), flush=True)\n"
        "sys.stdin.read()"
    )
    assert store.claim("m", 3, 6)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder)],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "[False, False, True, True] True\n"
        assert not store.claim("m", 6, 7)
        assert store.claim("m", 8, 9)
        other.kill()
    assert store.claim("m", 6, 7)


def test_an_empty_study_has_empty_tables_with_their_columns(tmp_path):
    study = dm.open_study(create(tmp_path / "s").folder)
    tables = [
        study.measurements(),
        study.curves(),
        study.components(),
        study.traces(),
        study.histograms(),
        study.states(),
    ]
    assert [len(table) for table in tables] == [0] * 6
    assert {"text_id", "auc_log", "language"} <= set(tables[0].columns)
    assert {"tv", "kind", "importance"} <= set(tables[1].columns)
    assert study.sql("select count(*) n from measurements").item() == 0


def test_sql_sees_the_tables_and_refuses_what_is_none(tmp_path):
    store = create(tmp_path / "it's")
    put(store, 0, 3)
    study = dm.open_study(store.folder)
    query = "select language, count(*) n, max(auc_log) most from measurements group by language"
    assert study.sql(query).to_dicts() == [{"language": "en", "n": 3, "most": 2.0}]
    with pytest.raises(InputError, match="no_such_column"):
        study.sql("select no_such_column from measurements")


def test_ranges():
    assert ranges_of([1, 2, 3, 7, 9, 10]) == [(1, 4), (7, 8), (9, 11)]
    assert ranges_of([]) == []


def test_slugs_are_names_of_folders_and_differ(tmp_path):
    names = ["a/b", "a%2Fb", "A/b", "a/b@main", "x" * 300, "../up"]
    assert len({slug(name).lower() for name in names}) == len(names)
    for name in names:
        (tmp_path / slug(name)).mkdir()


def test_the_reference_tells_every_column():
    page = (Path(__file__).parents[1] / "docs/reference/columns.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"\n## (\w+).*?\n(.*?)(?=\n## |\Z)", page, re.DOTALL))
    tables = {
        "measurements": [*part_files.MEASUREMENTS],
        "curves": [*part_files.CURVE, *TARGET_TYPES, *COMPONENT_TYPES],
        "components": [*part_files.COMPONENTS],
        "traces": [*part_files.TRACE, "place"],
        "states": [*part_files.STATES],
    }
    assert set(sections) == set(tables)
    for name, columns in tables.items():
        told = re.findall(r"`(\w+)`", " ".join(re.findall(r"(?m)^\| ([^|]*`[^|]*) \|", sections[name])))
        assert sorted(told) == sorted(set(columns) - {"cell"}), name
