"""Engine whose workers are actors of a Ray cluster, started on this machine or running already.

Ray pickles the messages between processes. None of them is stored.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from ...errors import EngineError, InputError
from . import Answer, Run
from .local import answer


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
        self._started = not ray.is_initialized()
        try:
            if self._started:
                # A cluster that is started here claims enough CPUs for all workers. With fewer, Ray
                # would wait forever to start the last ones.
                room: dict[str, Any] = (
                    {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
                )
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **room)
        except Exception as error:
            # Ray raises errors of many classes here
            raise EngineError(
                f"cannot reach a Ray cluster at {address or 'this machine'}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        if gpus_per_worker and device is None:
            device = "cuda"
        self._options = {
            "num_cpus": threads,
            "num_gpus": gpus_per_worker,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}},
        }
        self._arguments = (make, device, list(sys.path) if address is None else [])
        self._actors = [self._actor() for _ in range(workers)]
        self._tasks: dict[Any, int] = {}

    def _actor(self) -> Any:
        return self._ray.remote(_Actor).options(**self._options).remote(*self._arguments)

    def submit(self, worker: int, task: Any) -> None:
        self._tasks[self._actors[worker].run.remote(task)] = worker

    def wait(self) -> tuple[int, Answer]:
        ready = self._ray.wait(list(self._tasks), num_returns=1)[0][0]
        worker = self._tasks.pop(ready)
        try:
            return worker, self._ray.get(ready)
        except self._ray.exceptions.RayActorError as error:
            self._actors[worker] = self._actor()
            return worker, Answer(died=" ".join(str(error).split())[:200])
        except self._ray.exceptions.RayError as error:
            return worker, Answer(raised=EngineError(f"Ray: {' '.join(str(error).split())[:500]}"))

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()


class _Actor:
    """Worker in the process of a Ray actor."""

    def __init__(self, make: Callable[[str | None], Run], device: str | None, path: list[str]) -> None:
        sys.path += [place for place in path if place not in sys.path]
        self._run = make(device)

    def run(self, task: Any) -> Answer:
        return answer(self._run, task)
