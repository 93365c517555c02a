"""The command: as a user starts it, and called in this process where a process of its own would hold no more.

A process takes six seconds to import torch and transformers. Exit codes, streams, encodings, signals and the
quiet of other libraries are seen in real ones: a few of each kind.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from densitometer.study.engines import local

COMMAND = [str(Path(sys.executable).with_name("densitometer"))]
(SCRIPT,) = entry_points(group="console_scripts", name="densitometer")

# A process that has imported everything, and nothing more, is forked for each run that is killed, limited or weighed.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["densitometer.study.run", "densitometer.measuring.measurement", "duckdb", "studies", "imported"]
)


def run(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`densitometer` in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


def call(
    *arguments: object, stdin: str = "", encoding: str = "utf-8", **environment: str
) -> subprocess.CompletedProcess[str]:
    """What the script `densitometer` calls, called here: its exit code and what it writes to its streams."""
    stdin_, stdout, stderr = (
        io.TextIOWrapper(io.BytesIO(content), encoding=encoding, errors=errors)
        for content, errors in ((stdin.encode(), "strict"), (b"", "strict"), (b"", "backslashreplace"))
    )
    threshold = gc.get_threshold()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*COMMAND, *map(str, arguments)])
        for name, stream in (("stdin", stdin_), ("stdout", stdout), ("stderr", stderr)):
            patch.setattr(sys, name, stream)
        for name, value in {"COLUMNS": "80", **environment}.items():
            patch.setenv(name, value)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            code = SCRIPT.load()()
        except SystemExit as end:
            code = end.code
        finally:
            gc.set_threshold(*threshold)
    assert code is None or isinstance(code, int), code
    written = []
    for stream in (stdout, stderr):
        stream.flush()
        written.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code or 0, *written)


def command_in(folder: Path, arguments: list[str], limit: int | None = None) -> None:
    """For `SERVER.Process`: `densitometer` in that process and folder, what it prints in files, none above a limit."""
    os.chdir(folder)
    assert not {"", str(folder)} & set(sys.path)  # as it is for a script
    for name, handle in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv[1:] = arguments
    SCRIPT.load()()


class ForkedWorker:
    """Stands in for `Popen` where a study starts a worker: the same worker, as a fork of `SERVER`."""

    def __init__(
        self, command: list[str], env: dict[str, str], pass_fds: list[int], **streams: object
    ) -> None:
        theirs = Connection(os.dup(pass_fds[0]))
        self._process = SERVER.Process(target=_serve_study, args=(theirs, env))
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def _serve_study(pipe: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    local._serve(pipe.fileno(), os.getppid())
