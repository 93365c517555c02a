"""Memory of a study's workers: what is free, which weights they share, and what is said before they start."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import polars
import pytest
import torch
from studies import TEXTS, nothing_starts, save_model  # noqa: F401  (a fixture)

import densitometer as dm
from densitometer._util.memory import free_memory
from densitometer.errors import DensitometerWarning, InputError
from densitometer.measuring.planning import is_tiled
from densitometer.measuring.settings import MeasureSettings
from densitometer.models.blueprint import blueprint
from densitometer.study.engines import WORKER_BYTES, local
from densitometer.study.room import Need, need_of
from densitometer.study.worker import StudySettings

study_room = import_module("densitometer.study.run")
OPTIONS = {"importance": "l1", "sizes": [0.1, 1.0]}
GIB = 2**30


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "a", 0)


# -- what is free ------------------------------------------------------------------------------


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A machine with 8 GiB available, in control groups whose files are given."""
    contents = {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n",
        "proc/self/cgroup": groups,
    } | files
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def v2(folder: str, limit: object, used: int, inactive: int = 0) -> dict[str, str]:
    place = f"sys/fs/cgroup/{folder}"
    return {
        f"{place}/memory.max": f"{limit}\n",
        f"{place}/memory.current": f"{used}\n",
        f"{place}/memory.stat": f"anon 1\ninactive_file {inactive}\n",
    }


def v1(folder: str, limit: int, used: int, inactive: int) -> dict[str, str]:
    place = f"sys/fs/cgroup/memory/{folder}"
    return {
        f"{place}/memory.limit_in_bytes": f"{limit}\n",
        f"{place}/memory.usage_in_bytes": f"{used}\n",
        f"{place}/memory.stat": f"inactive_file 0\ntotal_inactive_file {inactive}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8 * GIB),
        ("0::/\n", v2("", 3 * GIB, GIB), 2 * GIB),
        ("0::/\n", v2("", 3 * GIB, 2 * GIB, GIB), 2 * GIB),
        ("0::/a/b\n", v2("a/b", "max", GIB) | v2("a", 5 * GIB, GIB), 4 * GIB),
        ("0::/a/b\n", v2("a/b", 2 * GIB, GIB) | v2("a", 5 * GIB, GIB), GIB),
        # a container sees its own group as the topmost
        ("0::/docker/1\n", v2("", 3 * GIB, GIB), 2 * GIB),
        ("0::/a\n", v2("unified/a", 3 * GIB, GIB), 2 * GIB),
        (
            "5:cpu:/x\n4:memory:/job/1\n",
            v1("job/1", 6 * GIB, 4 * GIB, GIB) | v1("", 2**63 - 1, 0, 0),
            3 * GIB,
        ),
        ("4:memory:/job/1\n", v1("job", 2 * GIB, 0, 0), 2 * GIB),
        ("4:memory:/1\n", v1("", 2 * GIB, 3 * GIB, 0), 0),
    ],
)
def test_free_memory_is_the_least_of_the_machine_and_of_every_group(tmp_path, groups, files, expected):
    assert free_memory(machine(tmp_path, groups, files)) == expected


def test_a_plan_and_an_engine_ask_the_same(monkeypatch):
    assert local.free_memory is free_memory
    monkeypatch.setattr("densitometer.measuring.planning.free_memory", lambda: 7)
    assert dm.plan("demo", 9).available["cpu"] == 7


# -- which weights are shared ------------------------------------------------------------------


def bytes_in_files(module: torch.nn.Module) -> int:
    """Bytes of the parameters that lie in a safetensors file, by this process's maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
    return sum(
        p.numel() * p.element_size()
        for p in module.parameters()
        if any(int(start, 16) <= p.data_ptr() < int(end, 16) for start, end in spans)
    )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell a process's maps")
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_are_read_in_place_unless_they_are_converted(model, dtype):
    loaded = dm.load_model(model, dtype=dtype or "auto")
    dm.measure(loaded, "The captain looked", importance=["l1", "fisher"], sizes=[0.5])
    total = sum(p.numel() * p.element_size() for p in loaded.module.parameters())
    drawn = blueprint(model, 4, dtype)
    assert (bytes_in_files(loaded.module), drawn.mapped_bytes) == ((total,) * 2 if dtype is None else (0, 0))


def test_bundled_models_and_pickles_are_held_by_each_worker(model, tmp_path):
    assert blueprint("demo", 4).mapped_bytes == 0
    loaded = dm.load_model(model)
    loaded.module.config.save_pretrained(tmp_path)
    torch.save(loaded.module.state_dict(), tmp_path / "pytorch_model.bin")
    assert blueprint(tmp_path, 4).mapped_bytes == 0
    (tmp_path / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{}x")
    assert blueprint(tmp_path, 4).mapped_bytes == 0


# -- what workers need -------------------------------------------------------------------------


def needed(model, texts, fits=lambda need: True, window=None, **settings):
    frame = polars.DataFrame({"text": texts})
    chosen = StudySettings(measuring=MeasureSettings("l1"), window=window, **settings)
    return need_of([model], frame, chosen, None, fits)


def test_a_need_is_that_of_the_plan(model):
    need, shorter = needed(model, ["short", "The captain looked at the sea"])
    assert shorter is None
    # the bound: one token a byte, and what is put around a text; the context is 64
    assert need.n_tokens == 64
    planned = dm.plan(model, 64, importance="l1").memory["cpu"]
    assert need.shared == blueprint(model, 64).mapped_bytes
    assert need.own == planned["weights"] - need.shared
    assert need.measuring == sum(planned.values()) - planned["weights"]
    assert need.of(3) - need.of(2) == need.each == WORKER_BYTES + need.own + need.measuring
    converted, _ = needed(model, ["short"], dtype="float64")
    assert (converted.shared, converted.own) == (0, blueprint(model, 64, "float64").weight_bytes)


def test_texts_are_tokenized_where_the_bound_does_not_fit(model):
    texts = [" ".join(["whale"] * 30), "The captain"]
    length = len(dm.load_model(model).encode(texts[0]))
    bound, _ = needed(model, texts)
    need, shorter = needed(model, texts, lambda need: need.measuring < bound.measuring)
    assert (need.n_tokens, shorter) == (length, None)
    need, _ = needed(model, texts, lambda need: need.measuring < bound.measuring, "tokens:5")
    assert need.n_tokens == 5
    small = dm.plan(model, length // 2, importance="l1")
    most = small.peak_bytes - small.memory["cpu"]["weights"]
    need, shorter = needed(model, texts, lambda need: need.measuring <= most)
    assert (need.n_tokens, shorter) == (length, length // 2)
    assert needed(model, texts, lambda need: False)[1] is None


def test_just_short_enough_to_be_stored_takes_more_than_longer_inputs(model, monkeypatch):
    monkeypatch.setattr("densitometer.measuring.planning.STORED_EDGES", 10**3)
    monkeypatch.setattr("densitometer.study.room.STORED_EDGES", 10**3)
    sizes = {True: 10, False: 500}
    monkeypatch.setattr(
        "densitometer.study.room.memory_items",
        lambda shape, names, n, place: {"cpu": {"weights": 9, "all": sizes[is_tiled(shape, names)]}},
    )
    need, _ = needed(model, ["whale " * 30])
    # two layers of four heads
    assert (need.n_tokens, need.measuring) == (int((10**3 / 8) ** 0.5), 500)
    sizes[True] = 1000
    need, _ = needed(model, ["whale " * 30])
    assert (need.n_tokens, need.measuring) == (64, 1000)


def test_models_that_cannot_be_planned_count_their_files_or_nothing(model, tmp_path):
    size = sum(path.stat().st_size for path in Path(model).iterdir() if path.suffix == ".safetensors")
    need, _ = needed(model, TEXTS, options={"device_map": "auto"})
    assert need.shared == need.measuring == 0
    assert need.own >= size
    assert needed("no-such-model", TEXTS)[0] == Need()
    (tmp_path / "config.json").write_text("{")
    assert needed(str(tmp_path), TEXTS)[0].measuring == 0


# -- what is said before a study starts --------------------------------------------------------


def test_workers_whose_longest_text_does_not_fit_are_refused(model, tmp_path, nothing_starts, monkeypatch):  # noqa: F811
    texts = ["The captain", " ".join(["whale"] * 30)]
    need, _ = needed(model, texts, lambda need: False)
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(local, "free_memory", lambda: need.of(2) + 1000)
    expected = (
        f"3 workers are more than this machine has room for: 8 cores.* of memory free, .* GiB a worker under {re.escape(model)} "
        rf"\(0.3 Python and torch \+ .* measuring a text of {need.n_tokens} tokens\), and 0.0 GiB of weights that workers share; give at most workers=2"
    )
    for engine in ("local", "ray"):
        with pytest.raises(InputError, match=expected):
            dm.run_study(texts, model, tmp_path / "s", workers=3, engine=engine, sizes=None)
    assert not (tmp_path / "s").exists()


def test_a_window_that_fits_is_advised(model, tmp_path, nothing_starts, monkeypatch):  # noqa: F811
    texts = [" ".join(["whale"] * 30)]
    need, _ = needed(model, texts, lambda need: False)
    monkeypatch.setattr(local, "free_memory", lambda: need.of(2) - 1)
    with pytest.raises(
        InputError, match=r"give at most workers=1, or a shorter window, such as window='tokens:(\d+)'"
    ) as told:
        dm.run_study(texts, model, tmp_path / "s", workers=2)
    window = re.search(r"window='(.*?)'", str(told.value))[1]
    with pytest.raises(AssertionError, match="a worker was started"):
        dm.run_study(texts, model, tmp_path / "s", workers=2, window=window)


def test_one_worker_that_may_not_fit_is_warned_of_and_runs(model, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "free_memory", lambda: 1000)
    with pytest.warns(
        DensitometerWarning,
        match="memory may run out: 0.0 GiB are free, and the study needs up to .* GiB a worker",
    ):
        study = dm.run_study(TEXTS[:1], model, tmp_path / "s", **OPTIONS)
    assert study.measurements()["error"].to_list() == [None]


def test_only_the_texts_of_the_shard_count(model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        study_room,
        "need_of",
        lambda names, texts, *rest: seen.append(texts["text"].to_list()) or (Need(), None),
    )
    dm.run_study(TEXTS[:2], model, tmp_path / "s", shard="1/2", **OPTIONS)
    assert seen == [TEXTS[:1]]


def test_no_more_workers_start_than_texts_are_left(model, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 8)
    asked = []

    def pool(engine, make, workers, *rest):
        asked.append(workers)
        return local.Here(make, None)

    monkeypatch.setattr(study_room, "open_pool", pool)
    dm.run_study(TEXTS[:4], model, tmp_path / "s", workers=6, shard="1/2", **OPTIONS)
    dm.run_study(TEXTS[:4], model, tmp_path / "s", workers=6, **OPTIONS)
    assert asked == [2, 2]


def test_workers_start_together_where_memory_is_there_for_all(monkeypatch):
    started = []
    monkeypatch.setattr(local.Processes, "_start", lambda self, worker: started.append(worker))
    free = [0]
    monkeypatch.setattr(local, "free_memory", lambda: free[0])
    pool = local.Processes(None, 4, None, 0, 1, memory=10, shared=5)
    free[0] = 25  # room for two that are on their way, and not for three
    assert pool._grow()
    assert not pool._grow()
    assert started == [0, 1]
    # both are ready, and what is free is less what they took
    pool._ready |= {0, 1}
    free[0] = 15
    assert pool._grow()
    free[0] = 14
    assert not pool._grow()  # waits for the third
    pool._ready.add(2)
    with pytest.warns(DensitometerWarning, match="goes on with 3 of 4 workers"):
        assert not pool._grow()
    assert started == [0, 1, 2]
    assert not pool._grow()


def test_a_worker_process_is_told_what_to_leave_alone(monkeypatch):
    frozen = []
    monkeypatch.setattr(local.gc, "freeze", lambda: frozen.append(True))
    assert local.made(lambda device: device, "cpu") == "cpu"
    assert frozen == [True]
