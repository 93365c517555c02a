"""Engine for this machine: one worker in this process, or several worker processes.

A worker process runs `python -m densitometer.study.engines.local` and exchanges messages over a
pipe. Nothing is forked, which threads and CUDA would not survive, and the user's main module is not
imported again. A worker ends when its parent does, even if the parent is killed.

Workers are started together where there is memory for all of them, and else one after another: the
next one once the one before is ready and has taken its memory, as long as there is memory for it.
With fewer workers than requested, a study takes longer and gives the same numbers.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from ..._util.memory import free_memory as free_memory  # of this room: tests stand in for it
from ...errors import DensitometerWarning, EngineError
from . import WORKER_BYTES, Answer, Run

# What a worker sends when it can take tasks.
_READY = "ready"


class Here:
    """Pool of one worker, which runs in this process."""

    size = 1

    def __init__(self, make: Callable[[str | None], Run], device: str | None) -> None:
        self._run = make(device)
        self._task: Any = None

    def submit(self, worker: int, task: Any) -> None:
        self._task = task

    def wait(self) -> tuple[int, Answer]:
        return 0, answer(self._run, self._task)

    def close(self) -> None:
        pass


class Processes:
    """Pool of worker processes on this machine. Each may have GPUs that no other worker sees."""

    def __init__(
        self,
        make: Callable[[str | None], Run],
        workers: int,
        device: str | None,
        gpus: int,
        threads: int,
        memory: int = WORKER_BYTES,
        shared: int = 0,
    ) -> None:
        self.size = 1
        self._most, self._memory, self._shared = workers, memory, shared
        self._ready: set[int] = set()
        self._make, self._device, self._gpus, self._threads = make, device, gpus, threads
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._pipes: dict[int, Connection] = {}
        self._start(0)

    def _grow(self) -> bool:
        """Start one worker more, if there is memory for it.

        A worker that is not ready yet may not have allocated its memory, so this memory counts as
        used. The next worker waits until its own fits too.
        """
        if self.size == self._most:
            return False
        free, starting = free_memory(), self.size - len(self._ready)
        needed = self._shared + (starting + 1) * self._memory
        if free is not None and free < needed:
            if starting:
                return False
            warnings.warn(
                f"memory is short: {free / 2**30:.1f} GiB are free, and a worker needs about {needed / 2**30:.1f}. The study "
                f"goes on with {self.size} of {self._most} workers",
                DensitometerWarning,
                stacklevel=2,
            )
            self._most = self.size
            return False
        self._start(self.size)
        self.size += 1
        return True

    def _start(self, worker: int) -> None:
        ours, theirs = Pipe()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
        environment = {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"}
        device = self._device
        if self._gpus:
            gpus = visible_gpus()[worker * self._gpus : (worker + 1) * self._gpus]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            device = device or "cuda"
        command = [
            sys.executable,
            "-m",
            "densitometer.study.engines.local",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        try:
            self._processes[worker] = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        except OSError as error:
            raise EngineError(f"cannot start a worker process: {error.strerror or error}") from error
        # once only the child holds the other end, its death closes the pipe, which `wait` notices
        theirs.close()
        self._pipes[worker] = ours
        # if it has died already, `wait` reports it
        with contextlib.suppress(OSError):
            ours.send(sys.path)
            ours.send((self._make, device))

    def submit(self, worker: int, task: Any) -> None:
        # if the worker has died, `wait` reports it
        with contextlib.suppress(OSError):
            self._pipes[worker].send(task)

    def wait(self) -> tuple[int, Answer]:
        while True:
            if self._grow():
                return self.size - 1, Answer(grown=True)
            ready = wait(list(self._pipes.values()))[0]
            worker = next(number for number, pipe in self._pipes.items() if pipe is ready)
            try:
                message = self._pipes[worker].recv()
            except (EOFError, OSError):
                self._pipes[worker].close()
                code = self._processes[worker].wait()
                # one that died on its way up may have died for want of memory
                if worker not in self._ready:
                    self._most = self.size
                self._ready.discard(worker)
                self._start(worker)
                return worker, Answer(died=_cause(code))
            if message != _READY:
                return worker, message
            self._ready.add(worker)

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        for pipe in self._pipes.values():
            pipe.close()


def visible_gpus() -> list[str]:
    """GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cause(code: int) -> str:
    """Describe why a worker process ended, from its return code."""
    if code >= 0:
        return f"its process exited with code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
    return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def answer(run: Run, task: Any) -> Answer:
    """Do a task, and return its value or the exception that it raised as an answer."""
    try:
        return Answer(value=run(task))
    except Exception as error:
        return Answer(raised=error)


def made(make: Callable[[str | None], Run], device: str | None) -> Run:
    """Call `make` in a process that does nothing but work, and return what it returns.

    Imported modules stay in memory, so the garbage collector is told to skip their million objects.
    """
    run = make(device)
    gc.freeze()
    return run


def _serve(handle: int, parent: int) -> None:
    """Run a worker process: receive a function and tasks on a pipe, and send answers.

    Args:
        handle: file descriptor of the pipe.
        parent: process id of the parent.
    """
    # a terminal sends Ctrl-C to every process; only the parent reacts to it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    pipe = Connection(handle)
    try:
        sys.path[:] = pipe.recv()
        make, device = pipe.recv()
        run = made(make, device)
        pipe.send(_READY)
        while True:
            pipe.send(answer(run, pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # the parent has closed the pipe
        pass


def _follow(parent: int) -> None:
    """End this process when the parent has ended, even in the middle of a task."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
