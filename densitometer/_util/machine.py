"""How fast this machine is, and how far the last prediction was off: one small JSON file in the user's cache folder.

Four speeds are timed once, in about a second, and kept (delete the file to have them timed anew):

    matmul     operations per second of a float32 matrix product, as a decoder's linear layers are
    stream     bytes per second read and written by an elementwise sum, larger than the caches
    sort       numbers per second that numpy sorts
    call       calls per second of a small torch operation: what is left when nothing else costs

The file is written by `densitometer plan` only. Where it is there, `measure` adds by how much the plan of its own run was
off; where it is not, or cannot be written, nothing happens: a measurement never fails for it. No network.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from ..errors import StorageError
from .files import write_file

_REPEATS = 3


@dataclass(frozen=True)
class Machine:
    """Speeds of this machine, per second: operations, bytes, numbers, calls."""

    matmul: float
    stream: float
    sort: float
    call: float


@dataclass(frozen=True)
class LastRun:
    """How the last measurement compared with its plan.

    Args:
        seconds_ratio: actual over predicted.
        peak_ratio: the same of the memory added to that of the weights; None where the process had used more before.
    """

    model: str
    n_tokens: int
    seconds_ratio: float
    peak_ratio: float | None


def cache_folder() -> Path:
    """Folder of the cache file: $XDG_CACHE_HOME/densitometer, or the like of the system."""
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "densitometer"
    if platform.system() == "Darwin" and not os.environ.get("XDG_CACHE_HOME"):
        return Path.home() / "Library/Caches/densitometer"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densitometer"


def this_machine() -> Machine:
    """Return the speeds that were kept, or time them now and keep them where possible."""
    kept = _read()
    if kept is not None:
        return kept[0]
    machine = time_machine()
    with suppress(StorageError, OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        _write(machine, None)
    return machine


def last_run() -> LastRun | None:
    """How the last measurement on this machine compared with its plan."""
    kept = _read()
    return None if kept is None else kept[1]


def known_machine() -> Machine | None:
    """Return the speeds that were kept. None where no plan was ever made on this machine."""
    kept = _read()
    return None if kept is None else kept[0]


def remember(run: LastRun) -> None:
    """Keep how a measurement compared with its plan, where speeds are kept already."""
    kept = _read()
    if kept is not None:
        with suppress(StorageError, OSError):
            _write(kept[0], run)


def time_machine() -> Machine:
    """Time the four speeds. Each is the best of three runs."""
    x, y = torch.rand(256, 1024), torch.rand(1024, 3072)
    long = torch.rand(2**23)
    out = torch.empty_like(long)
    numbers = numpy.random.default_rng(0).random(2**19).astype(numpy.float32)
    small = torch.rand(8)

    def calls() -> None:
        for _ in range(1000):
            small.add(small)

    with torch.no_grad():
        return Machine(
            matmul=2.0 * 256 * 1024 * 3072 / _seconds(lambda: x @ y),
            stream=3.0 * long.nbytes / _seconds(lambda: torch.add(long, long, out=out)),
            sort=numbers.size / _seconds(lambda: numpy.argsort(-numbers, kind="stable")),
            call=1000 / _seconds(calls),
        )


def _seconds(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


def _read() -> tuple[Machine, LastRun | None] | None:
    """Return what the file holds. None where there is not a file that can be used."""
    try:
        document = json.loads((cache_folder() / "machine.json").read_text(encoding="utf-8"))
        machine = Machine(**document["machine"])
        if not all(isinstance(v, float) and math.isfinite(v) and v > 0 for v in asdict(machine).values()):
            return None
        run = document.get("last_run")
        return machine, None if run is None else LastRun(**run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(machine: Machine, run: LastRun | None) -> None:
    document = {"machine": asdict(machine), "last_run": None if run is None else asdict(run)}
    text = json.dumps(document, indent=1)
    write_file(cache_folder() / "machine.json", lambda file: file.write(text.encode()))
