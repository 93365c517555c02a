"""Progress bars on terminals, for studies and for work that takes longer than a second.

Without a terminal, a study prints a line each minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unicodedata import category

from .digits import significant

DELAY_SECONDS = 1.0
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


def visible(text: str) -> str:
    """Return a text with control characters replaced by their escapes, such as \\x1b.

    Characters that change the direction of writing are replaced too.
    """
    return "".join(c if c.isprintable() or c == "\n" or category(c) == "Zs" else repr(c)[1:-1] for c in text)


@contextmanager
def silent() -> Iterator[None]:
    """Show no bars while this context lasts, because the caller shows a bar for the whole work."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while this context lasts.

    The context yields a function to call with the number of units done since the last call. No bar
    is shown before `DELAY_SECONDS`, within `silent`, or if stderr is not a terminal.

    Args:
        label: text before the bar.
        total: number of units.
    """
    if _SILENT.get() or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=total)
    started = time.monotonic()
    shown = False

    def advance(done: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > DELAY_SECONDS:
            bar.start()
            shown = True
        bar.advance(task, done)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


@dataclass
class StudyProgress:
    """Progress of a study: a bar on a terminal, or lines on stderr, as for the log of a cluster.

    Args:
        total: number of cells.
        finished: cells done, including failed ones.
        failed: failed cells.
        bar: bar of rich, or None for lines.
        line_seconds: seconds between two lines.
        before: cells that were done at the start.
        started: time of the start.
        last_line: time of the last line.
        memory: largest resident size of each worker, in bytes.
        said: errors that were printed.
    """

    total: int
    finished: int
    failed: int
    bar: Any = None
    line_seconds: float = 60.0
    before: int = field(init=False)
    started: float = field(init=False, default_factory=time.monotonic)
    last_line: float = field(init=False, default_factory=time.monotonic)
    memory: dict[int, int] = field(init=False, default_factory=dict)
    said: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.before = self.finished

    def add(self, worker: int, done: int, failed: int, error: str | None, memory: int) -> None:
        """Count the cells that a worker has done. Print the first few different errors."""
        self.memory[worker] = memory
        self.failed += failed
        self.done(self.finished + done)
        if error is not None and error not in self.said and len(self.said) < 5:
            self.said.add(error)
            self.say(f"failed: {error}")

    def done(self, finished: int) -> None:
        """Set the number of cells that are done, and update the bar or print a line."""
        self.finished = finished
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=finished, summary=self.summary())
        elif time.monotonic() - self.last_line >= self.line_seconds:
            self.last_line = time.monotonic()
            print(
                f"densitometer: {finished:,} of {self.total:,} texts x models, {self.summary()}",
                file=sys.stderr,
                flush=True,
            )

    def summary(self) -> str:
        """Summary of failed cells, speed, time left and memory."""
        here = self.finished - self.before
        speed = here / max(time.monotonic() - self.started, 1e-9)
        parts = [f"{self.failed:,} failed"]
        if here:
            parts += [
                f"{significant(speed, 3)} per second",
                f"{_duration((self.total - self.finished) / speed)} left",
            ]
        if any(self.memory.values()):
            parts.append(f"{sum(self.memory.values()) / 2**30:.1f} GiB")
        return ", ".join(parts)

    def say(self, line: str) -> None:
        """Print a line above the bar. Without a bar nothing is printed."""
        if self.bar is not None:
            self.bar.console.print(visible(line), style="yellow", markup=False, highlight=False)


@contextmanager
def study_progress(total: int, finished: int, failed: int) -> Iterator[StudyProgress]:
    """Show the progress of a study while this context lasts.

    Args:
        total: number of cells.
        finished: cells that are done already, including failed ones.
        failed: failed cells among them.
    """
    if not sys.stderr.isatty():
        yield StudyProgress(total, finished, failed)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[summary]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        bar.add_task("", total=total, completed=finished, summary=f"{failed:,} failed")
        yield StudyProgress(total, finished, failed, bar)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
