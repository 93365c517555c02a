"""Where work runs: one contract, several answers. Nothing of the science is known here.

    here        this process, one worker                     (local.py)
    local       processes of this machine                    (local.py)
    ray         actors of a Ray cluster                      (ray.py)

A pool has numbered workers. Each makes its own object, once, from a function that it is sent, and then answers tasks, one
at a time. Who uses a pool hands out tasks with `submit` and takes what comes with `wait`. A worker that dies is reported as an
answer and is there again, made anew; the task is the caller's to give again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..._util.arguments import checked_number
from ...errors import InputError

Run = Callable[[Any], Any]
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Answer:
    """Outcome of a task: a value, what was raised, or why the worker died."""

    value: Any = None
    raised: BaseException | None = None
    died: str | None = None


class Pool(Protocol):
    """Workers that answer tasks."""

    size: int

    def submit(self, worker: int, task: Any) -> None:
        """Hand a task to a worker that has none."""
        ...

    def wait(self) -> tuple[int, Answer]:
        """Return the next answer, and which worker gave it. Some worker must have a task."""
        ...

    def close(self) -> None:
        """End every worker at once."""
        ...


def open_pool(
    engine: str,
    make: Callable[[str | None], Run],
    workers: int,
    device: str | None = None,
    address: str | None = None,
    gpus_per_worker: float = 0.0,
    threads: int = 1,
) -> Pool:
    """Start workers.

    Args:
        engine: "local" or "ray".
        make: called in each worker with its device; returns what answers tasks.
        workers: how many.
        device: of every worker; by default a GPU each where GPUs are given, else None.
        address: of a Ray cluster that runs already; by default one is started on this machine.
        gpus_per_worker: share of a GPU that a worker takes; Ray may give a GPU to several workers.
        threads: of the CPU that a worker takes.

    Raises:
        InputError: as `check_engine`.
        EngineError: the workers cannot be started.
    """
    check_engine(engine, workers, address, gpus_per_worker)
    if engine == "ray":
        from .ray import Actors

        return Actors(make, workers, device, address, gpus_per_worker, threads)
    from .local import Here, Processes

    if workers == 1:
        return Here(make, device or ("cuda" if gpus_per_worker else None))
    return Processes(make, workers, device, int(gpus_per_worker), threads)


def check_engine(engine: str, workers: int, address: str | None = None, gpus_per_worker: float = 0.0) -> None:
    """Refuse what no engine could start.

    Raises:
        InputError: an unknown engine, no worker, an argument that the engine does not take, or more GPUs than there are.
    """
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; expected one of {', '.join(ENGINES)}")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"workers is the number of workers, at least 1; got {workers!r}")
    if not checked_number("gpus_per_worker", gpus_per_worker) >= 0:
        raise InputError(f"gpus_per_worker is a number of GPUs, at least 0; got {gpus_per_worker!r}")
    if engine == "ray":
        return
    if address is not None:
        raise InputError("an address is for --engine ray; got one for the local engine")
    if gpus_per_worker != int(gpus_per_worker):
        raise InputError(
            f"the local engine gives whole GPUs to its workers; got gpus_per_worker={gpus_per_worker:g}. Give a whole number, or "
            "engine='ray'"
        )
    if gpus_per_worker:
        from .local import visible_gpus

        there, asked = len(visible_gpus()), workers * int(gpus_per_worker)
        if asked > there:
            raise InputError(
                f"{workers} workers with {gpus_per_worker:g} GPUs each need {asked}, and {there} can be seen; give fewer workers, or "
                "device='cpu'"
            )
