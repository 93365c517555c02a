"""Ends of studies that were raw errors, hangs or worse: too many workers, workers that die idle, threads, arguments."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import ForkedWorker
from studies import TEXTS, nothing_starts, save_model  # noqa: F401  (a fixture)

import densitometer as dm
from densitometer.errors import ArgumentTypeError, DensitometerWarning, EngineError, InputError
from densitometer.study import run as study_room
from densitometer.study.engines import Answer, check_room, local
from densitometer.study.engines import ray as ray_room

pytestmark = pytest.mark.models

OPTIONS = {"importance": "random", "sizes": (1.0,)}
GIB = 2**30


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "a", 0)


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("workers", [1000, 10**9])
def test_more_workers_than_the_machine_has_room_for_are_refused(
    model,
    tmp_path,
    nothing_starts,  # noqa: F811
    engine,
    workers,
):
    with pytest.raises(
        InputError, match=r"workers are more than this machine has room for: \d+ cores.* at most workers="
    ):
        dm.run_study(TEXTS, model, tmp_path / "s", workers=workers, engine=engine, **OPTIONS)
    assert not (tmp_path / "s").exists()


def test_workers_are_bound_by_cores_memory_and_gpus(monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 16)
    monkeypatch.setattr(local, "free_memory", lambda: 10 * GIB)
    monkeypatch.setattr(local, "visible_gpus", lambda: [str(i) for i in range(4)])
    check_room("local", 10, memory=GIB)
    with pytest.raises(
        InputError, match=r"10.0 GiB of memory free, 1.0 GiB a worker; give at most workers=10"
    ):
        check_room("local", 11, memory=GIB)
    with pytest.raises(InputError, match=r"16 cores, 8 threads a worker.* at most workers=2"):
        check_room("local", 3, threads=8, memory=GIB)
    check_room("local", 4, threads=16, memory=GIB, gpus_per_worker=1.0)
    check_room("ray", 10**6, address="cluster:6379")
    monkeypatch.setattr(local, "free_memory", lambda: None)
    check_room("local", 16, memory=10**15)
    monkeypatch.setattr(local, "free_memory", lambda: 1)
    check_room("local", 1)


def echo(device):
    return lambda task: task


@contextlib.contextmanager
def pool(workers, make=echo):
    found = local.Processes(make, workers, None, 0, 1)
    try:
        yield found
    finally:
        found.close()


def test_workers_start_one_after_another_and_no_more_than_memory_has_room_for(monkeypatch):
    with pool(2, os.path.exists) as found:
        assert (found.size, len(found._processes)) == (1, 1)
        monkeypatch.setattr(local, "free_memory", lambda: 1)
        found._ready.add(0)
        with pytest.warns(DensitometerWarning, match="memory is short.*goes on with 1 of 2 workers"):
            assert not found._grow()
        assert not found._grow()
        assert found.size == 1
    with pool(2) as found:
        found._ready.add(0)
        monkeypatch.setattr(local, "free_memory", lambda: 10**12)
        assert found.wait() == (1, Answer(grown=True))
        assert found.size == 2


def test_an_idle_worker_that_dies_ends_no_study(model, tmp_path, monkeypatch):
    """One text, two workers: the first one to be idle is killed."""
    killed = []

    def killing(self, wait=local.Processes.wait):
        number, answer = wait(self)
        if answer.grown:
            os.kill(self._processes[number].pid, signal.SIGKILL)
            killed.append(number)
        return number, answer

    monkeypatch.setattr(local.Processes, "wait", killing)
    monkeypatch.setattr(local, "subprocess", SimpleNamespace(Popen=ForkedWorker, DEVNULL=None))
    # the pool grows before the text is done, because the first worker is taken for ready
    monkeypatch.setattr(local.Processes, "_start", started(local.Processes._start))
    study = dm.run_study(TEXTS[:1], model, tmp_path / "s", workers=2, **OPTIONS)
    assert killed == [1]
    assert study.measurements()["error"].to_list() == [None]


def started(start):
    def start_and_count(self, worker):
        start(self, worker)
        self._ready.add(worker)

    return start_and_count


def test_workers_that_die_as_soon_as_they_start_end_the_study_in_one_error(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="workers keep dying"):
        dm.run_study(TEXTS, model, tmp_path / "s", workers=2, **OPTIONS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_without_its_raylet_is_one_error(model, tmp_path, monkeypatch):
    """In a process of its own, which Ray may end with the raylet."""
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_room, "POLL_SECONDS", 1.0)
    code = f"""
import os, signal, threading, psutil
import densitometer as dm
from densitometer.study.engines import ray as room
room.POLL_SECONDS = 1.0
def submit(self, worker, task, plain=room.Actors.submit):
    plain(self, worker, task)
    for process in psutil.Process().children(recursive=True):
        if process.name() == "raylet":
            process.kill()
room.Actors.submit = submit
try:
    dm.run_study({TEXTS!r}, {model!r}, {str(tmp_path / "s")!r}, engine="ray", workers=1, importance="random", sizes=[1.0])
except dm.DensitometerError as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=False
    )
    assert "EngineError" in result.stdout, result.stdout + result.stderr


def test_a_silent_ray_is_one_error(monkeypatch):
    """A call of Ray's that never returns, and a node that is not alive."""
    monkeypatch.setattr(ray_room, "SILENT_SECONDS", 0.05)
    never = threading.Event()

    class Ray:
        nodes = staticmethod(never.wait)

        @staticmethod
        def wait(tasks, num_returns, timeout):
            return [], tasks

        shutdown = kill = nodes

    actors = ray_room.Actors.__new__(ray_room.Actors)
    actors._ray, actors._tasks, actors._node, actors._lost, actors._started, actors._actors = (
        Ray,
        {1: 0},
        "n",
        False,
        True,
        [1],
    )
    for nodes in (
        never.wait,
        lambda: [{"NodeID": "n", "Alive": False}],
        lambda: [{"NodeID": "other", "Alive": True}],
    ):
        Ray.nodes = staticmethod(nodes)
        with pytest.raises(EngineError, match="Ray's node on this machine has died"):
            actors.wait()
    actors.close()
    never.set()


def in_threads(call, n=4) -> list:
    """What calls in several threads return or raise."""
    found = []

    def run(i):
        try:
            found.append(call(i))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_may_run_a_study_in_one_folder(model, tmp_path, monkeypatch):
    inside, most = [], []

    def counting(*arguments, run=study_room._run):
        inside.append(1)
        most.append(len(inside))
        try:
            return run(*arguments)
        finally:
            inside.pop()

    monkeypatch.setattr(study_room, "_run", counting)
    options = OPTIONS | {"part_seconds": 0.001}
    found = in_threads(lambda i: dm.run_study(TEXTS, model, tmp_path / "s", **options).measurements().height)
    assert found == [len(TEXTS)] * 4
    assert max(most) == 1


def test_threads_may_load_and_measure_at_once(model):
    loaded = in_threads(lambda i: dm.load_model(model), 6)
    assert {m.commit for m in loaded} == {dm.load_model(model).commit}
    shared = loaded[0]
    texts = [TEXTS[i] for i in (0, 1, 3, 5)]
    alone = [dm.measure(shared, text, importance="l1", sizes=[0.3, 1.0], baselines=()) for text in texts]
    both = in_threads(
        lambda i: (i, dm.measure(shared, texts[i], importance="l1", sizes=[0.3, 1.0], baselines=()))
    )
    assert sorted(i for i, _ in both) == [0, 1, 2, 3]
    for i, m in both:
        assert m.curve.equals(alone[i].curve)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"components": 5}, "components must be True or False, got 5"), ({"states": "x"}, "states must be True or False"),
        ({"plugins": [5]}, "names of modules.*got 5"), ({"plugins": 5}, "plugins must be a list"),
        ({"options": 5}, "options must map names"), ({"options": {3: 4}}, "options must map names"),
        ({"retry_failed": "no"}, "retry_failed must be True or False"), ({"device": 5}, "device must be a string"),
        ({"dtype": 5}, "dtype must be a string"), ({"address": 5}, "address must be a string"),
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_of_another_type_is_named_before_anything_is_written(model, tmp_path, wrong, message):
    with pytest.raises(ArgumentTypeError, match=message):
        dm.run_study(TEXTS, model, tmp_path / "s", **wrong)
    assert not (tmp_path / "s").exists()


def test_what_is_refused_leaves_a_folder_that_can_be_used(model, tmp_path):
    with contextlib.suppress(dm.DensitometerError):
        dm.run_study(TEXTS, model, tmp_path / "s", components=5)
    assert Path(dm.run_study(TEXTS[:1], model, tmp_path / "s", **OPTIONS).folder).exists()


@pytest.mark.parametrize("address", [None, "cluster:6379"])
def test_workers_of_a_cluster_that_is_started_here_are_those_that_it_has(monkeypatch, address):
    """An environment of their own makes Ray start others beside them; a cluster elsewhere has no other way."""
    seen = {}

    class Ray:
        is_initialized = staticmethod(lambda: False)

        @staticmethod
        def init(**keywords):
            seen.update(dict(os.environ))
            os.environ["SET_BY_RAY"] = "1"

        get_runtime_context = staticmethod(lambda: SimpleNamespace(get_node_id=lambda: "n"))
        cluster_resources = staticmethod(lambda: {"CPU": 8})

        @staticmethod
        def remote(kind):
            def options(**chosen):
                seen.update(chosen)
                return SimpleNamespace(remote=lambda *arguments: arguments)

            return SimpleNamespace(options=options)

    monkeypatch.setitem(sys.modules, "ray", Ray)
    monkeypatch.setenv("SET_BY_RAY", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    ray_room.Actors(echo, 2, None, address, 0.0, 3)
    own = {"OMP_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "false"}
    inherited = {name: seen.get(name) for name in own}
    if address is None:
        assert (inherited, seen["runtime_env"]) == (own, {})
    else:
        assert inherited == {"OMP_NUM_THREADS": "7", "TOKENIZERS_PARALLELISM": None}
        assert seen["runtime_env"] == {"env_vars": own}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["SET_BY_RAY"] == "1"
    assert "TOKENIZERS_PARALLELISM" not in os.environ
