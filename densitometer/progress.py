"""A progress bar for work that takes longer than a second, on terminals only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DELAY_SECONDS = 1.0


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of units done since the last call.

    Nothing is drawn before `DELAY_SECONDS`, nor where stderr is no terminal.
    """
    if not sys.stderr.isatty():
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
