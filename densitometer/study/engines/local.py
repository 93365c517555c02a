"""Workers on this machine: this process alone, or several processes.

A worker process runs `python -m densitometer.study.engines.local` and talks over a pipe: nothing is forked, and the user's main
module is not imported again. It ends when its parent does, however that ends.
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
    """One worker, in this process."""

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
    """Workers that are processes of this machine, with a GPU each where GPUs are given."""

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
            own = visible_gpus()[worker * self._gpus : (worker + 1) * self._gpus]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
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
        theirs.close()
        self._pipes[worker] = ours
        ours.send(sys.path)
        ours.send((self._make, device))

    def submit(self, worker: int, task: Any) -> None:
        with contextlib.suppress(OSError):  # it died; `wait` says so
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
    """What CUDA_VISIBLE_DEVICES may name: the GPUs that this process sees."""
    import torch

    there = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:there] if named else [str(number) for number in range(there)]


def _cause(code: int) -> str:
    if code >= 0:
        return f"its process exited with code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
    return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def answer(run: Run, task: Any) -> Answer:
    """Do a task, and return its result or what it raised as an answer."""
    try:
        return Answer(value=run(task))
    except Exception as error:
        return Answer(raised=error)


def _serve(handle: int, parent: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    pipe = Connection(handle)
    try:
        sys.path[:] = pipe.recv()
        make, device = pipe.recv()
        run = make(device)
        while True:
            pipe.send(answer(run, pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is done


def _follow(parent: int) -> None:
    """End with the parent, also in the middle of a task."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
