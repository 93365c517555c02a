"""Engines that run a study's workers: one interface, `Pool`, with several implementations.

    Here        one worker, in this process                  (local.py)
    Processes   worker processes on this machine             (local.py)
    Actors      actors of a Ray cluster                      (ray.py)

A pool has numbered workers. Each calls, once, a function that it is sent, and keeps the result to
do its tasks, one at a time. The user of a pool hands out tasks with `submit` and collects answers
with `wait`. If a worker dies, at work or idle, `wait` returns an answer that says so and the pool
starts the worker again; the caller decides whether to submit the task again. A pool may grow while
it works: it starts its next worker as long as there is memory for it. Engines know nothing of what
a task measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..._util.arguments import checked_number
from ...errors import InputError

Run = Callable[[Any], Any]
# Memory of a worker process before it has a model: Python, torch, transformers. It does not include
# the 125 MiB of libraries that processes share (dev/LOG.md, 2026-12-01).
WORKER_BYTES = 320 * 2**20
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Answer:
    """Outcome of a task: a value, an exception, or the reason why the worker died.

    If `grown` is True, it does not belong to a task: the pool has one worker more than before.
    """

    value: Any = None
    raised: BaseException | None = None
    died: str | None = None
    grown: bool = False


class Pool(Protocol):
    """Numbered workers that do tasks."""

    size: int

    def submit(self, worker: int, task: Any) -> None:
        """Hand a task to a worker, which must not have one."""
        ...

    def wait(self) -> tuple[int, Answer]:
        """Wait for the next answer. Return its worker's number and the answer.

        At least one worker must have a task. A worker without a task may die too, and is then
        returned as well.

        Raises:
            EngineError: no answer can come any more, for example because Ray's node is gone.
        """
        ...

    def close(self) -> None:
        """End every worker at once, whatever it is doing."""
        ...


def open_pool(
    engine: str,
    make: Callable[[str | None], Run],
    workers: int,
    device: str | None = None,
    address: str | None = None,
    gpus_per_worker: float = 0.0,
    threads: int = 1,
    memory: int = WORKER_BYTES,
    shared: int = 0,
) -> Pool:
    """Start a pool of workers.

    Args:
        engine: "local" or "ray".
        make: function that each worker calls once, with its device. It returns the function that
            does tasks.
        workers: number of workers.
        device: device of every worker; by default "cuda" if workers have GPUs, else None.
        address: address of a running Ray cluster; by default one is started on this machine.
        gpus_per_worker: GPUs per worker. With Ray it may be a fraction, so that workers share a
            GPU.
        threads: CPU threads per worker.
        memory: bytes that a worker is expected to need.
        shared: bytes that all workers of a machine share.

    Raises:
        InputError: the arguments do not pass `check_engine`, or Ray is not installed.
        EngineError: the workers cannot be started.
    """
    check_engine(engine, workers, address, gpus_per_worker)
    check_room(engine, workers, threads, memory, address, gpus_per_worker, shared)
    if engine == "ray":
        from .ray import Actors

        return Actors(make, workers, device, address, gpus_per_worker, threads)
    from .local import Here, Processes

    if workers == 1:
        return Here(make, device or ("cuda" if gpus_per_worker else None))
    return Processes(make, workers, device, int(gpus_per_worker), threads, memory, shared)


def check_engine(engine: str, workers: int, address: str | None = None, gpus_per_worker: float = 0.0) -> None:
    """Check an engine's arguments before it is started.

    Raises:
        InputError: the engine is unknown, there is no worker, the engine does not take an argument,
            or more GPUs are requested than can be seen.
    """
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; expected one of {', '.join(ENGINES)}")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"workers must be a number of workers, at least 1; got {workers!r}")
    if not checked_number("gpus_per_worker", gpus_per_worker) >= 0:
        raise InputError(f"gpus_per_worker must be a number of GPUs, at least 0; got {gpus_per_worker!r}")
    if engine == "ray":
        return
    if address is not None:
        raise InputError("an address is for --engine ray; got one for the local engine")
    if gpus_per_worker != int(gpus_per_worker):
        raise InputError(
            f"the local engine gives whole GPUs to its workers; got gpus_per_worker={gpus_per_worker:g}. "
            "Give a whole number, or engine='ray'"
        )
    if gpus_per_worker:
        from .local import visible_gpus

        visible, needed = len(visible_gpus()), workers * int(gpus_per_worker)
        if needed > visible:
            raise InputError(
                f"{workers} workers with {gpus_per_worker:g} GPUs each need {needed}, and {visible} can be seen; "
                "give fewer workers, or device='cpu'"
            )


def check_room(
    engine: str,
    workers: int,
    threads: int = 1,
    memory: int = WORKER_BYTES,
    address: str | None = None,
    gpus_per_worker: float = 0.0,
    shared: int = 0,
    what: str | None = None,
    instead: str = "",
) -> None:
    """Check that this machine has cores and memory for a number of workers.

    A cluster that is running elsewhere checks its own. Cores never limit the number of workers to
    fewer than two, or to fewer than one per GPU.

    Args:
        engine, workers, threads, memory, address, gpus_per_worker, shared: as in `open_pool`.
        what: what the memory is for, for the message.
        instead: what else would help where memory is short, for the message.

    Raises:
        InputError: there are more workers than fit the cores or the memory.
    """
    if workers < 2 or address is not None:
        return
    from .local import cores, free_memory, visible_gpus

    n_cores, free = cores(), free_memory()
    gpus = int(len(visible_gpus()) / gpus_per_worker) if gpus_per_worker else 0
    most = max(2, n_cores // threads, gpus)
    fit = most if free is None else max(1, (free - shared) // memory)
    if workers > min(most, fit):
        raise InputError(
            f"{workers:,} workers are more than this machine has room for: {n_cores} cores, {threads} threads a worker"
            + (f", {gpus} workers on GPUs" if gpus else "")
            + (
                ""
                if free is None
                else f", {free / 2**30:.1f} GiB of memory free, {what or f'{memory / 2**30:.1f} GiB a worker'}"
            )
            + f"; give at most workers={min(most, fit)}"
            + (instead if workers > fit else "")
            + ", or engine='ray' with the address of a larger cluster"
        )
