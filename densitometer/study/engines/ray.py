"""Engine whose workers are actors of a Ray cluster, started on this machine or running already.

Ray pickles the messages between processes. None of them is stored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import EngineError, InputError
from . import Answer, Run
from .local import answer, made

# Time between looks at whether the node of this process is alive, and the longest wait for Ray to
# say so, or to end.
POLL_SECONDS = 5.0
SILENT_SECONDS = 15.0


class Actors:
    """Pool of Ray actors. One that dies is started again, if need be on another machine."""

    def __init__(
        self,
        make: Callable[[str | None], Run],
        workers: int,
        device: str | None,
        address: str | None,
        gpus_per_worker: float,
        threads: int,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("the engine 'ray' needs Ray: pip install 'densitometer[ray]'") from error
        self.size = workers
        self._ray = ray
        self._lost = False
        self._started = not ray.is_initialized()
        environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        # Workers of a cluster that is started here inherit it, so that they are those which Ray
        # has started already. With an environment of their own Ray starts others.
        inherited = self._started and address is None
        try:
            if self._started:
                # A cluster that is started here claims enough CPUs for all workers. With fewer, Ray
                # would wait forever to start the last ones.
                room: dict[str, Any] = (
                    {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
                )
                with _environment(environment if inherited else {}):
                    ray.init(
                        address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **room
                    )
        except Exception as error:
            # Ray raises errors of many classes here
            raise EngineError(
                f"cannot reach a Ray cluster at {address or 'this machine'}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        self._node = ray.get_runtime_context().get_node_id()
        # more workers than there is room for would wait forever to be started
        room = ray.cluster_resources()
        needed = {"CPU": workers * threads, "GPU": workers * gpus_per_worker}
        short = [
            f"{n:g} {kind}s, of which it has {room.get(kind, 0):g}"
            for kind, n in needed.items()
            if n > room.get(kind, 0)
        ]
        if short:
            self._shut_down()
            raise EngineError(
                f"{workers:,} workers need more than the Ray cluster has: {' and '.join(short)}; give fewer workers"
            )
        if gpus_per_worker and device is None:
            device = "cuda"
        self._options = {
            "num_cpus": threads,
            "num_gpus": gpus_per_worker,
            "runtime_env": {} if inherited else {"env_vars": environment},
        }
        self._arguments = (make, device, list(sys.path) if address is None else [])
        self._actors = [self._actor() for _ in range(workers)]
        self._tasks: dict[Any, int] = {}

    def _actor(self) -> Any:
        return self._ray.remote(_Actor).options(**self._options).remote(*self._arguments)

    def submit(self, worker: int, task: Any) -> None:
        self._tasks[self._actors[worker].run.remote(task)] = worker

    def wait(self) -> tuple[int, Answer]:
        while not (done := self._ray.wait(list(self._tasks), num_returns=1, timeout=POLL_SECONDS)[0]):
            self._check_node()
        ready = done[0]
        worker = self._tasks.pop(ready)
        try:
            return worker, self._ray.get(ready)
        except self._ray.exceptions.RayActorError as error:
            self._actors[worker] = self._actor()
            return worker, Answer(died=" ".join(str(error).split())[:200])
        except self._ray.exceptions.RayError as error:
            return worker, Answer(raised=EngineError(f"Ray: {' '.join(str(error).split())[:500]}"))

    def _check_node(self) -> None:
        """Raise EngineError if the node of this process is gone, without which no answer comes."""
        nodes = _within(SILENT_SECONDS, self._ray.nodes)
        if nodes is None or not any(node["NodeID"] == self._node and node["Alive"] for node in nodes):
            self._lost = True
            raise EngineError(
                "Ray's node on this machine has died (its raylet was ended, or memory ran out), so its workers cannot answer. "
                "Results stored before are kept; run the same command again to resume"
            )

    def close(self) -> None:
        def kill() -> None:
            for actor in self._actors:
                self._ray.kill(actor)

        # what is lost cannot be asked to end its actors; they end with their node
        if not self._lost:
            _within(SILENT_SECONDS, kill)
        self._shut_down()

    def _shut_down(self) -> None:
        if self._started:
            _within(SILENT_SECONDS, self._ray.shutdown)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Result of a call of Ray's, which may never return where a part of Ray is gone. None then."""
    answers: list[Any] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            answers.append(call())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while this context lasts, for processes that are started in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        # others that were set meanwhile stay
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Actor:
    """Worker in the process of a Ray actor."""

    def __init__(self, make: Callable[[str | None], Run], device: str | None, path: list[str]) -> None:
        sys.path += [place for place in path if place not in sys.path]
        self._run = made(make, device)

    def run(self, task: Any) -> Answer:
        return answer(self._run, task)
