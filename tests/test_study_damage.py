"""A study's folder whose bytes are not what was written: every reader says so, and the next run measures them again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import polars
import pytest
from studies import TEXTS, assert_same, save_model

import densitometer as dm
from densitometer.errors import DensitometerWarning, StorageError
from densitometer.report.page import report
from densitometer.study import integrity
from densitometer.study import store as study_store
from densitometer.study.part_files import digest_of, list_parts, slug

pytestmark = pytest.mark.models

OPTIONS = {
    "importance": ("l1", "l2"),
    "sizes": (0.1, 1.0),
    "part_seconds": 0.001,
    "traces": "top",
    "states": True,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    place = tmp_path_factory.mktemp("models")
    return [save_model(place / "a", 0), save_model(place / "b", 1)]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory) -> dm.Study:
    return dm.run_study(TEXTS, models, tmp_path_factory.mktemp("s") / "s", **OPTIONS)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole.folder, tmp_path / "s"))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("parts/*/*.parquet"))


def flipped(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def reads(study: dm.Study) -> list:
    texts = lambda: study.sql("select count(*) from measurements")  # noqa: E731
    return [
        study.measurements,
        study.curves,
        study.components,
        study.states,
        study.traces,
        study.histograms,
        texts,
    ]


def test_no_bit_of_a_part_can_turn_unseen(whole, folder):
    rng = random.Random(5)
    for _ in range(60):
        path = rng.choice(parts(folder))
        content = path.read_bytes()
        flipped(path, rng.randrange(len(content)), rng.randrange(8))
        study = dm.open_study(folder)
        with pytest.raises(StorageError, match=f"{path.name} is damaged"):
            rng.choice(reads(study))()
        path.write_bytes(content)
    assert_same(dm.open_study(folder), whole)


def test_what_is_damaged_after_it_was_read_is_seen_by_the_same_study(folder):
    study = dm.open_study(folder)
    study.measurements()
    path = parts(folder)[0]
    flipped(path, 900)
    for read in reads(study):
        with pytest.raises(StorageError, match=path.name):
            read()
    with pytest.raises(StorageError, match=path.name):
        report(folder, folder.parent / "r.html")


def test_a_part_is_read_for_its_digest_once(folder, monkeypatch):
    for path in folder.rglob("*.parquet"):
        os.utime(path, (0, 0))
    dm.open_study(folder).measurements()
    read = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: read.append(self) or opened(self, *a, **k))
    monkeypatch.setattr(integrity, "_reason", lambda *a: pytest.fail("keys are checked a second time"))
    dm.open_study(folder).measurements()
    assert not [path for path in read if path.suffix == ".parquet"]


def test_whole_parts_are_looked_at_together(whole, folder, monkeypatch):
    """Each alone takes five times as long."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(integrity, "_reason", lambda *a: pytest.fail("a part is looked at alone"))
    for place in (folder, Path(folder.name)):
        assert dm.open_study(place).measurements().height == whole.measurements().height


def test_merging_makes_no_damaged_part_good(whole, folder, models):
    """The first text's part is damaged; a run of the other half merges what it finds."""
    place = folder / "parts" / slug(models[0])
    first = list_parts(place)[0]
    table = first.read()
    for cell in range(first.end):
        content = study_store.parquet_of(table.filter(polars.col("cell") == cell))
        (place / f"{cell:08d}-{cell + 1:08d}-{digest_of(content)}.parquet").write_bytes(content)
    first.path.unlink()
    path = parts(place.parents[1])[0]
    flipped(path, 900)
    dm.run_study(TEXTS, models, folder, shard="2/2", **OPTIONS)
    with pytest.raises(StorageError, match="is damaged"):
        dm.open_study(folder).measurements()
    with pytest.warns(DensitometerWarning, match=f"{path.name} is damaged"):
        again = dm.run_study(TEXTS, models, folder, **OPTIONS)
    assert_same(again, whole)


@pytest.fixture(scope="module")
def others(models, tmp_path_factory) -> dict[str, Path]:
    """Studies of the same names that differ in one thing."""
    place = tmp_path_factory.mktemp("others")
    changed = [*TEXTS[:3], TEXTS[3] + " again", *TEXTS[4:]]
    return {
        "corpus": dm.run_study(changed, models, place / "c", **OPTIONS).folder,
        "settings": dm.run_study(TEXTS, models, place / "t", **OPTIONS | {"seed": 1}).folder,
    }


@pytest.mark.parametrize("other", ["corpus", "settings", "model"])
def test_a_part_of_another_study_is_refused_and_measured_again(whole, folder, models, others, other):
    place = folder / "parts" / slug(models[0])
    source = folder / "parts" / slug(models[1]) if other == "model" else others[other] / "parts" / place.name
    for path in parts(folder):
        if path.parent == place:
            path.unlink()
    for path in source.glob("*.parquet"):
        shutil.copy(path, place)
    study = dm.open_study(folder)
    for read in reads(study):
        with pytest.raises(StorageError, match="of another study: "):
            read()
    with pytest.warns(DensitometerWarning, match="is of another study: "):
        again = dm.run_study(TEXTS, models, folder, **OPTIONS)
    assert_same(again, whole)


@pytest.mark.parametrize("what", ["folder", "link", "link to nothing"])
def test_what_has_the_name_of_a_part_and_is_no_file_is_refused(folder, models, what):
    path = parts(folder)[0]
    content = path.with_name("content")
    path.rename(content)
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(content if what == "link" else path.with_name("nothing"))
    kind = "not a file" if what == "folder" else "a symbolic link"
    for read in (*reads(dm.open_study(folder)), lambda: dm.run_study(TEXTS, models, folder, **OPTIONS)):
        with pytest.raises(StorageError, match=f"{path.name}' is {kind}, and has the name of a part"):
            read()


def test_a_file_in_place_of_the_parts_is_not_an_empty_study(folder):
    shutil.rmtree(folder / "parts")
    (folder / "parts").write_text("x")
    for read in reads(dm.open_study(folder)):
        with pytest.raises(StorageError, match="is not a folder, but a study's parts go there"):
            read()


@pytest.mark.parametrize("place", [1, -2, -6, -40, -90])
def test_texts_are_not_given_to_duckdb_before_their_digest_is_checked(folder, place):
    """It has errors of its own for what it cannot read."""
    path = folder / "texts.parquet"
    flipped(path, place % len(path.read_bytes()), 6)
    with pytest.raises(StorageError, match=r"texts\.parquet"):
        dm.open_study(folder).sql("select count(*) from measurements")


@pytest.mark.parametrize("step", [1, 7])
def test_texts_are_not_given_to_polars_before_their_digest_is_checked(folder, monkeypatch, step):
    """A flipped bit can make polars ask for 2 EiB, which ends the process."""
    path = folder / "texts.parquet"
    flipped(path, len(path.read_bytes()) // step - 1)
    monkeypatch.setattr(polars, "read_parquet", lambda *a, **k: pytest.fail("a damaged file is read"))
    with pytest.raises(StorageError, match=r"texts\.parquet"):
        dm.open_study(folder).texts()


def test_a_part_that_lacks_rows_is_refused(folder, models):
    place = folder / "parts" / slug(models[0])
    part = list_parts(place)[0]
    content = study_store.parquet_of(part.read().filter(polars.col("cell") != part.start + 1))
    part.path.unlink()
    (place / f"{part.start:08d}-{part.end:08d}-{digest_of(content)}.parquet").write_bytes(content)
    with pytest.raises(StorageError, match="other cells than"):
        dm.open_study(folder).measurements()


def test_more_rows_than_are_looked_at_are_looked_at_when_the_study_goes_on(
    folder, models, others, monkeypatch
):
    """With one key per part the changed text is not seen; going on sees it."""
    monkeypatch.setattr(integrity, "MOST_KEYS", 1)
    place = folder / "parts" / slug(models[0])
    shutil.rmtree(place)
    shutil.copytree(others["corpus"] / "parts" / place.name, place)
    dm.open_study(folder).measurements()
    with pytest.warns(DensitometerWarning, match="is of another study: "):
        dm.run_study(TEXTS, models, folder, **OPTIONS)


@pytest.mark.parametrize("damage", ["bit", "missing", "other"])
def test_texts_are_checked_and_repaired_from_the_corpus(whole, folder, models, others, damage):
    path = folder / "texts.parquet"
    if damage == "bit":
        flipped(path, 200)
    elif damage == "missing":
        path.unlink()
    else:
        shutil.copy(others["corpus"] / "texts.parquet", path)
    study = dm.open_study(folder)
    for read in (study.texts, *reads(study)):
        with pytest.raises(StorageError, match=r"texts\.parquet"):
            read()
    with pytest.warns(DensitometerWarning, match=r"texts\.parquet was damaged"):
        again = dm.run_study(TEXTS, models, folder, **OPTIONS)
    assert again.texts().equals(whole.texts())
    assert_same(again, whole)


def test_texts_of_a_manifest_without_their_digest_are_held_to_the_corpus(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["texts"]
    path.write_text(json.dumps(manifest))
    texts = dm.open_study(folder).texts()
    texts.with_columns(text=polars.lit("x")).write_parquet(folder / "texts.parquet")
    with pytest.raises(StorageError, match=r"texts\.parquet"):
        dm.open_study(folder).texts()


CHILD = """
import sys, warnings
warnings.simplefilter("ignore")
import densitometer as dm
from test_study_damage import OPTIONS, SOAKED
dm.run_study(SOAKED[:int(sys.argv[3])], sys.argv[2], sys.argv[1], workers=2, **OPTIONS)
"""
SOAKED = [f"{text} {i}" for i in range(20) for text in TEXTS]


def workers_of(driver: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{driver}/task/{driver}/children").read_text().split()]


@pytest.mark.slow
def test_soak(models, tmp_path):
    """50 SIGKILLs over driver and workers, then 100 damaged bytes: none lost, none doubled, none silently wrong.

    The corpus grows on the way, by a text or more with every second kill, until it is whole.
    """
    rng, killed = random.Random(23), {"driver": 0, "worker": 0}
    out = tmp_path / "s"
    command = [sys.executable, "-c", CHILD, str(out), models[0]]
    process, grown = None, []
    while sum(killed.values()) < 50:
        if process is None or process.poll() is not None:
            began = (out / "manifest.json").exists()
            n_texts = min(len(SOAKED), 70 + 3 * (sum(killed.values()) // 2)) if began else 70
            grown += [n_texts] if n_texts not in grown else []
            process = subprocess.Popen([*command, str(n_texts)], cwd=Path(__file__).parent)
        # a moment at random, of the start or of the work
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.5, 16.0))
            # finished before it was killed: half of what it did is done again
            assert process.returncode == 0
            for path in rng.sample(parts(out), max(1, len(parts(out)) // 2)):
                path.unlink()
            continue
        victims = workers_of(process.pid) if rng.random() < 0.5 else []
        os.kill(rng.choice(victims) if victims else process.pid, signal.SIGKILL)
        killed["worker" if victims else "driver"] += 1
        if not victims:
            process.wait()
    process.kill()
    process.wait()
    dm.run_study(SOAKED[:70], models[0], tmp_path / "whole", **OPTIONS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ texts? w.* added", DensitometerWarning)
        whole = dm.run_study(SOAKED, models[0], tmp_path / "whole", **OPTIONS)
        found = dm.run_study(SOAKED, models[0], out, retry_failed=True, **OPTIONS)
    assert_same(found, whole)
    silent = 0
    for _ in range(100):
        path = rng.choice([*parts(out), out / "texts.parquet"])
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            rng.choice(reads(dm.open_study(out)))()
            silent += 1
        except StorageError:
            pass
        path.write_bytes(content)
    print(
        f"soak: {killed}, {len(found.measurements())} rows, texts added {len(grown) - 1} times, 100 bytes damaged, "
        f"{silent} read without a word"
    )
    assert silent == 0
    assert_same(dm.open_study(out), whole)
