"""Fingerprints: every weight and the tokenizer count, on disk and in memory, and a study and a replay hold to them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from studies import TEXTS, save_model

import densitometer as dm
from densitometer._util.files import file_digest
from densitometer.errors import DensitometerWarning, StorageError
from densitometer.models import fingerprint
from densitometer.models.fingerprint import as_cached, comparable, files_fingerprint, older_fingerprint
from densitometer.models.source import Origin, model_files
from densitometer.study import manifest as manifest_room

pytestmark = pytest.mark.models

OPTIONS = {"importance": "l1", "sizes": (0.3, 1.0)}


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(save_model(tmp_path / "m", 0))


def zeroed(folder: Path) -> None:
    """Zero 4 kB in the middle of the weights, which the first and last 64 KiB leave out in a larger model."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


def retokenized(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(tokenizer))


def reconfigured(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))


CHANGES = pytest.mark.parametrize("change", [zeroed, retokenized, reconfigured])


@CHANGES
def test_every_file_that_numbers_depend_on_is_in_the_fingerprint(folder, change):
    before = dm.load_model(folder).commit
    assert before == dm.load_model(folder).commit
    assert before.startswith("files:")
    (folder / "README.md").write_text("of no effect")
    assert dm.load_model(folder).commit == before
    change(folder)
    assert dm.load_model(folder).commit != before


@CHANGES
def test_a_study_does_not_go_on_under_another_model(folder, tmp_path, change):
    study = dm.run_study(TEXTS, str(folder), tmp_path / "s", shard="1/2", **OPTIONS)
    assert study.manifest["models"] == {str(folder): dm.load_model(folder).commit}
    change(folder)
    with pytest.raises(StorageError, match="are of other weights, or of another tokenizer"):
        dm.run_study(TEXTS, str(folder), tmp_path / "s", **OPTIONS)


def test_a_model_that_changes_while_the_study_is_under_way_is_seen(folder, tmp_path, monkeypatch):
    """Another process has begun with other weights, after this one looked for what is known."""
    seen = []

    def noted(self, model, commit, note=dm.study.store.StudyStore.note_model):
        if not seen:
            seen.append(commit)
            manifest = manifest_room.read_manifest(self.folder)
            manifest_room.write_manifest(self.folder, manifest | {"models": {model: "files:" + "0" * 64}})
        note(self, model, commit)

    monkeypatch.setattr("densitometer.study.store.StudyStore.note_model", noted)
    with pytest.raises(StorageError, match="are of other weights"):
        dm.run_study(TEXTS[:2], str(folder), tmp_path / "s", **OPTIONS)
    assert not list((tmp_path / "s").glob("parts/*/*.parquet"))


def as_older(folder: Path, out: Path, weights: str) -> None:
    """A study as older versions left it: no models in the manifest, the older fingerprint in the rows."""
    import polars

    from densitometer.study.part_files import digest_of, parquet_of

    for path in out.glob("parts/*/*.parquet"):
        table = polars.read_parquet(path, hive_partitioning=False).with_columns(commit=polars.lit(weights))
        content = parquet_of(table)
        path.unlink()
        path.with_name(path.name[:-20] + digest_of(content) + ".parquet").write_bytes(content)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["models"], manifest["texts"]
    (out / "manifest.json").write_text(json.dumps(manifest))


def by_hand(folder: Path) -> str:
    """The fingerprint that 49b11c9 gave: ends of the weights, and the config."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        digest.update(
            f"{name} {len(content)}\n".encode() + content[: 2**16] + content[max(0, len(content) - 2**16) :]
        )
    return digest.hexdigest()


def test_a_study_with_the_older_fingerprint_goes_on_and_holds_to_the_whole_then(folder, tmp_path):
    out = tmp_path / "s"
    dm.run_study(TEXTS, str(folder), out, shard="1/3", **OPTIONS)
    as_older(folder, out, by_hand(folder))
    study = dm.run_study(TEXTS, str(folder), out, shard="2/3", **OPTIONS)
    assert study.manifest["models"][str(folder)].startswith("files:")
    retokenized(folder)
    with pytest.raises(StorageError, match="other weights"):
        dm.run_study(TEXTS, str(folder), out, **OPTIONS)


def test_a_study_with_the_older_fingerprint_of_other_weights_is_refused(folder, tmp_path):
    dm.run_study(TEXTS, str(folder), tmp_path / "s", shard="1/3", **OPTIONS)
    as_older(folder, tmp_path / "s", by_hand(folder))
    reconfigured(folder)
    with pytest.raises(StorageError, match="other weights"):
        dm.run_study(TEXTS, str(folder), tmp_path / "s", **OPTIONS)


def test_a_file_is_hashed_once_and_again_when_it_has_changed(folder, monkeypatch):
    path = folder / "model.safetensors"
    os.utime(path, (0, 0))
    digest = file_digest(path)
    opened, read = Path.open, []
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: read.append(self) or opened(self, *a, **k))
    assert file_digest(path) == digest
    assert not read
    zeroed(folder)
    os.utime(path, (0, 0))
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest() != digest


def test_of_files_that_take_minutes_blocks_are_read_and_the_fingerprint_says_so(folder, monkeypatch):
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 1)
    monkeypatch.setattr(fingerprint, "SAMPLED_BYTES", 2**15)
    monkeypatch.setattr(fingerprint, "_BLOCK", 2**12)
    files = model_files(folder)
    before = files_fingerprint(files)
    assert before.startswith("sampled:")
    path = folder / "model.safetensors"
    for place in (0, -1):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        assert files_fingerprint(files) != before
        before = files_fingerprint(files)


def test_weights_that_are_edited_after_loading_are_no_longer_those_of_the_files(folder):
    model = dm.load_model(folder)
    before = model.commit
    weight = model.module.model.layers[0].mlp.down_proj.weight
    # behind torch's count of changes
    weight.data.mul_(2)
    edited = model.commit
    assert edited.startswith("memory:")
    assert model.matches(before) is None
    weight.data.mul_(0.5)
    assert model.commit == before
    with torch.no_grad():
        weight[3, 5] += 1
    assert model.commit not in (before, edited)
    assert model.matches(by_hand(folder)) is False


def test_files_that_change_after_loading_are_not_what_was_loaded(folder):
    model = dm.load_model(folder)
    zeroed(folder)
    assert model.commit.startswith("memory:")


def test_another_tokenizer_is_another_fingerprint(folder, tmp_path):
    own = dm.load_model(folder)
    other = dm.load_model(folder, tokenizer=own.tokenizer)
    assert other.commit.startswith(f"{own.commit}+")
    assert dm.load_model(folder, tokenizer=False).commit == own.commit
    own.tokenizer.add_tokens(["whale1"])
    assert own.commit.startswith("files:")
    assert "+" in own.commit


def test_modules_of_the_same_numbers_have_one_fingerprint_whatever_changes_it(folder):
    def loaded(change=None):
        module = dm.load_model(folder).module
        if change is not None:
            with torch.no_grad():
                change(module)
        return dm.load_model(module).commit

    plain = loaded()
    assert plain == loaded()
    rows = torch.tensor([1, 0, *range(2, 24)])
    others = [
        loaded(lambda m: m.model.layers[1].mlp.up_proj.weight[7].neg_()),
        loaded(
            lambda m: m.model.layers[1].self_attn.o_proj.weight.copy_(
                m.model.layers[1].self_attn.o_proj.weight[rows]
            )
        ),
        loaded(lambda m: m.model.norm.weight.zero_()),
        loaded(lambda m: setattr(m.config, "rms_norm_eps", 0.5)),
    ]
    assert len({plain, *others}) == 5


def test_a_replay_under_other_weights_warns(folder):
    m = dm.measure(folder, TEXTS[0], importance="l1", sizes=[1.0], baselines=())
    again = dm.replay(m)
    assert dm.difference(m, again).asked.is_empty()
    zeroed(folder)
    with pytest.warns(DensitometerWarning, match="is not the model that was measured"):
        other = dm.replay(m)
    assert dm.difference(m, other).asked["name"].to_list() == ["model fingerprint"]


def test_a_file_of_the_hub_s_cache_is_what_its_name_says(tmp_path):
    content = b"x" * 1000
    blobs = {hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob 1000\0" + content).hexdigest()}
    for blob in blobs:
        (tmp_path / blob).write_bytes(content)
        link = tmp_path / f"link{len(blob)}"
        link.symlink_to(tmp_path / blob)
        origin = Origin("c" * 40, cached=(link,))
        assert origin.fingerprint == "c" * 40
        (tmp_path / blob).write_bytes(b"y" + content[1:])
        assert not as_cached([link])
        assert Origin("c" * 40, cached=(link,)).fingerprint.startswith("files:")


def test_only_fingerprints_of_one_kind_are_compared():
    whole, older, commit = "files:" + "a" * 64, "a" * 64, "a" * 40
    assert comparable(whole, "files:" + "b" * 64)
    assert not any(comparable(whole, other) for other in (older, commit, None, "memory:" + "a" * 64))
    assert comparable(older, "b" * 64)
    assert not comparable(older, commit)
    assert older_fingerprint((), False) == hashlib.sha256().hexdigest()
