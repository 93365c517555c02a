"""Engine for this machine: one worker in this process, or several worker processes.

A worker process runs `python -m densitometer.study.engines.local` and exchanges messages over a
pipe. Nothing is forked, which threads and CUDA would not survive, and the user's main module is not
imported again. A worker ends when its parent does, even if the parent is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from ...errors import EngineError
from . import Answer, Run


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
        self, make: Callable[[str | None], Run], workers: int, device: str | None, gpus: int, threads: int
    ) -> None:
        self.size = workers
        self._make, self._device, self._gpus, self._threads = make, device, gpus, threads
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._pipes: dict[int, Connection] = {}
        for worker in range(workers):
            self._start(worker)

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
        ours.send(sys.path)
        ours.send((self._make, device))

    def submit(self, worker: int, task: Any) -> None:
        # if the worker has died, `wait` reports it
        with contextlib.suppress(OSError):
            self._pipes[worker].send(task)

    def wait(self) -> tuple[int, Answer]:
        ready = wait(list(self._pipes.values()))[0]
        worker = next(number for number, pipe in self._pipes.items() if pipe is ready)
        try:
            return worker, self._pipes[worker].recv()
        except (EOFError, OSError):
            self._pipes[worker].close()
            code = self._processes[worker].wait()
            self._start(worker)
            return worker, Answer(died=_cause(code))

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
        run = make(device)
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
