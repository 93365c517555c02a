"""A study: many texts under many models, into a store that can be resumed. No mathematics here.

    1. Read the corpus; open the folder, or make it.           corpus.py, store.py
    2. What no part covers is missing: hand it out in tasks.    this file
    3. Do the tasks.                                            worker.py, on an engine of engines/
    4. Write each answer as a part.                             store.py

A cell is one text under one model, all importances and pieces of it. Tasks are consecutive cells and limited in time, so that
there is a part every few seconds and little is lost to a kill, whatever a cell costs; small parts are merged at the end.
Cells are claimed in the store, so several processes may work in the same folder. A worker that dies gives its task back; it
is then done cell by cell, and a cell on which workers die twice is a failed row.
"""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars

from .._util.arguments import checked_list, checked_number
from .._util.progress import StudyProgress, study_progress
from ..errors import ArgumentTypeError, DensitometerWarning, EngineError, InputError
from ..measuring.settings import Attention, By, MeasureSettings
from ..models.units import Granularity
from .corpus import Corpus, Unit, read_corpus
from .engines import Pool, Run, check_engine, open_pool
from .engines.local import visible_gpus
from .store import Study, StudyStore, open_study
from .unigrams import Sample
from .worker import (
    Outcome,
    StudySettings,
    Task,
    Worker,
    check_settings,
    failed_part,
    import_plugins,
    threads_kept,
)

MOST_CELLS = 64  # of one task
DEATHS = 2  # of workers on one cell, until it counts as failed
DEATHS_IN_A_ROW = 10  # of workers, until the study gives up
MERGE_EVERY = 64  # parts written
POLL_SECONDS = 0.2  # while other processes have all that is left


def run_study(
    corpus: str | Path | Corpus | polars.DataFrame | Iterable[str],
    models: str | Sequence[str],
    out: str | Path,
    *,
    importance: str | Sequence[str] = "l1",
    sizes: Sequence[float] | None = None,
    baselines: Sequence[str] = (),
    by: By = "size",
    eps: float = 0.1,
    seed: int = 0,
    attention: Attention = "recomputed",
    granularity: Granularity = "block",
    window: str | None = None,
    unit: Unit = "line",
    columns: Mapping[str, str] | None = None,
    traces: str = "none",
    components: bool = True,
    states: bool = False,
    unigrams: str | Path | Corpus | polars.DataFrame | Iterable[str] | None = None,
    means: str | Path | Corpus | polars.DataFrame | Iterable[str] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    threads: int = 1,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus_per_worker: float | None = None,
    shard: str | None = None,
    retry_failed: bool = False,
    part_seconds: float = 10.0,
) -> Study:
    """Measure every text under every model. The same call again goes on where it stopped.

    Args:
        corpus: as in `read_corpus`, with `unit` and `columns`.
        models: names as in `load_model`, or NAME@REVISION. Models may be added to a study later.
        out: the study's folder.
        window: what is measured of each text: None, the prediction after its last token; "words:40", "tokens:32",
            "sliding:32:16", "positions" or "sweep:8,16,32" (see `densitometer.study.corpus`).
        importance, sizes, baselines, by, eps, seed, attention, granularity: as in `measure`.
        traces: what is kept of each trace's edges: "none", "top" (1,000 edges and a histogram) or "whole".
        components: keep which components hold the edges of each trace.
        states: keep what the unembedding reads, of the model and of each trace (about 2.4 bytes x hidden size x 28 per
            text and importance), for `analysis.state_geometry`.
        unigrams: a corpus, as `corpus`, whose token frequencies each prediction is compared with; by default the study's own,
            each text without itself.
        means: a corpus, as `corpus`, over which each worker takes reference means (`reference_means`) of each model; removed
            edges then contribute these instead of nothing.
        dtype, device: of the models; options: further keywords of `load_model`.
        plugins: modules that each worker imports first, which may register importances and metrics; a metric becomes a column
            of the curves.
        threads: CPU threads per worker. More than one changes last digits, so it is a setting of the study.
        engine: "local" or "ray"; address: of a running Ray cluster.
        workers: how many; by default one per GPU, or one.
        gpus_per_worker: by default 1 where there are GPUs; with Ray also fractions.
        shard: "i/n": only the i-th of n equal runs of texts, for any scheduler; all shards may share the folder.
        retry_failed: do failed cells again.
        part_seconds: a part is written about so often.

    Returns:
        The study, as `open_study` gives it.

    Raises:
        InputError, ArgumentTypeError: an unusable corpus or argument.
        StorageError: the folder cannot be written, the disk is full, or the study there is another one.
        EngineError: workers cannot be started, or keep dying.
        KeyboardInterrupt: after Ctrl-C, when the tasks under way are stored. A second Ctrl-C does not wait for them.

    Examples:
        >>> study = dm.run_study(["The captain looked", "One two three four"], "demo", "study", sizes=[0.3, 1.0])
        >>> study.measurements().select("text_id", "model", "importance").rows()
        [('1', 'demo', 'l1'), ('2', 'demo', 'l1')]
    """
    names = _model_names(models)
    counted, averaged = (None if c is None else read_corpus(c) for c in (unigrams, means))
    import_plugins(plugins)
    settings = StudySettings(
        measuring=MeasureSettings(importance, sizes, baselines, by, eps, seed, attention, granularity=granularity),
        window=window, traces=traces, components=components, states=states, unigrams=_named(counted), means=_named(averaged),
        dtype=dtype, options=dict(options or {}), plugins=tuple(checked_list("plugins", plugins)), threads=threads,
    )  # fmt: skip
    check_settings(settings)
    if not checked_number("part_seconds", part_seconds) > 0:
        raise InputError(f"part_seconds is a time above 0; got {part_seconds!r}")
    texts = read_corpus(corpus, unit, columns)
    first, last = _shard(shard, len(texts))
    gpus = len(visible_gpus()) if device is None and engine == "local" else 0
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus else 0.0
    workers = max(1, gpus) if workers is None else workers
    check_engine(engine, workers, address, gpus_per_worker)

    about = {"name": texts.name, "sha256": texts.sha256, "n_texts": len(texts)}
    store = StudyStore.create(out, settings.plain(), about, texts.texts, _versions())
    try:
        with store.locked():
            for name in names:
                for part in store.set_damaged_aside(name, first, last):
                    warnings.warn(
                        f"the part {part} is damaged; its texts are measured again",
                        DensitometerWarning,
                        stacklevel=2,
                    )
                if retry_failed:
                    store.forget_failures(name)
        for warning in store.warnings:
            warnings.warn(warning, DensitometerWarning, stacklevel=2)
        plan = _Plan(store, texts.texts, names, first, last, workers, part_seconds)
        sample = Sample.of((counted or texts).texts, own=counted is None)
        mean_texts = (
            () if averaged is None else tuple(averaged.texts.filter(polars.col("problem").is_null())["text"])
        )
        make = partial(_make, settings, {name: store.commit(name) for name in names}, sample, mean_texts)
        if plan.left():
            with (
                threads_kept(),
                study_progress(len(names) * (last - first), *_counts(store, names, first, last)) as progress,
            ):
                pool = open_pool(engine, make, workers, device, address, gpus_per_worker, threads)
                try:
                    _work(plan, pool, settings, progress)
                finally:
                    pool.close()
        with store.locked():
            for name in names:
                store.merge(name)
        if plan.stopped:
            raise KeyboardInterrupt(
                f"stopped; {plan.left():,} of {len(names) * (last - first):,} texts x models are left. What is done is stored in {out}; "
                "run the same line again to go on"
            )
    finally:
        store.close()
    return open_study(out)


def _named(corpus: Corpus | None) -> dict[str, str] | None:
    """Describe a corpus as a setting: its name, and what it holds."""
    return None if corpus is None else {"name": corpus.name, "sha256": corpus.sha256}


def _make(
    settings: StudySettings,
    commits: Mapping[str, str | None],
    sample: Sample,
    mean_texts: tuple[str, ...],
    device: str | None,
) -> Run:
    return Worker(settings, device, commits, sample, mean_texts).run


def _work(plan: _Plan, pool: Pool, settings: StudySettings, progress: StudyProgress) -> None:
    """Keep every worker busy until nothing is left, or Ctrl-C."""
    tasks: dict[int, Task] = {}
    last: dict[int, str | None] = dict.fromkeys(range(pool.size))
    in_a_row = written = 0
    with _ctrl_c(plan, progress):
        while True:
            for worker in range(pool.size):
                if worker not in tasks and (task := plan.next(last[worker])) is not None:
                    pool.submit(worker, task)
                    tasks[worker], last[worker] = task, task.model
            if not tasks:
                if plan.stopped or not plan.left():
                    return
                time.sleep(POLL_SECONDS)  # other processes have the rest; should one die, its cells are free
                progress.done(plan.covered())
                continue
            worker, answer = pool.wait()
            task = tasks.pop(worker)
            if answer.raised is not None:
                raise answer.raised
            in_a_row = 0 if answer.died is None else in_a_row + 1
            if in_a_row == DEATHS_IN_A_ROW:
                raise EngineError(f"workers keep dying, {in_a_row} in a row; the last: {answer.died}")
            outcome = answer.value if answer.died is None else plan.died(task, answer.died, settings)
            if outcome is not None:
                plan.store.write(task.model, task.start, outcome.end, outcome.content)
                progress.add(worker, outcome.end - task.start, outcome.failed, outcome.error, outcome.memory)
                written += 1
                if written % MERGE_EVERY == 0:  # every look at what is missing lists all parts
                    with plan.store.locked():
                        plan.store.merge(task.model, small=True)
            plan.finished(task)


@dataclass
class _Plan:
    """What is left of a study, and who has it."""

    store: StudyStore
    texts: polars.DataFrame
    models: Sequence[str]
    first: int
    last: int
    workers: int
    part_seconds: float
    busy: list[Task] = field(default_factory=list)
    deaths: dict[tuple[str, int], int] = field(default_factory=dict)
    stopped: bool = False

    def left(self) -> int:
        """How many cells no part covers."""
        gaps = [gap for model in self.models for gap in self.store.missing(model, self.first, self.last)]
        return sum(end - start for start, end in gaps)

    def covered(self) -> int:
        return len(self.models) * (self.last - self.first) - self.left()

    def next(self, before: str | None) -> Task | None:
        """Return a task that no other worker or process has.

        It is one of the model that the worker has loaded, if there is any.
        """
        if self.stopped:
            return None
        for model in sorted(self.models, key=lambda name: name != before):
            gaps = self._free(model, self.first, self.last)
            count = sum(end - start for start, end in gaps)
            most = max(1, min(MOST_CELLS, count // (2 * self.workers)))
            for start, end in self._cut(model, gaps, most):
                if not self.store.claim(model, start, end):
                    continue
                if self._free(model, start, end) == [(start, end)]:
                    rows = self.texts[start:end].to_dicts()
                    task = Task(model, start, tuple(rows), self.part_seconds)
                    self.busy.append(task)
                    return task
                self.store.release(model, start, end)  # another process has done some since we looked
        return None

    def _free(self, model: str, start: int, end: int) -> list[tuple[int, int]]:
        """Missing cells, without those that a worker of ours has."""
        gaps = self.store.missing(model, start, end)
        for task in self.busy:
            if task.model == model:
                parts = [[(a, min(b, task.start)), (max(a, task.end), b)] for a, b in gaps]
                gaps = [(a, b) for pair in parts for a, b in pair if a < b]
        return gaps

    def _cut(self, model: str, gaps: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
        """Cut gaps into ranges of at most so many cells.

        A cell on which a worker died is a range of its own.
        """
        for start, end in gaps:
            at = start
            while at < end:
                alone = (model, at) in self.deaths
                stop = at + 1
                while not alone and stop < min(end, at + most) and (model, stop) not in self.deaths:
                    stop += 1
                yield at, stop
                at = stop

    def died(self, task: Task, reason: str, settings: StudySettings) -> Outcome | None:
        """Note that a worker died. Return an outcome where the task is given up."""
        cells = [(task.model, cell) for cell in range(task.start, task.end)]
        for cell in cells:
            # in a task of several cells nobody knows which one it was
            self.deaths[cell] = self.deaths.get(cell, 0) + (len(cells) == 1)
        if len(cells) > 1 or self.deaths[cells[0]] < DEATHS:
            return None
        error = f"the worker died {DEATHS} times on this text: {reason}"
        return Outcome(failed_part(task, settings, error), task.end, 1, error, 0)

    def finished(self, task: Task) -> None:
        self.busy.remove(task)
        self.store.release(task.model, task.start, task.end)


@contextmanager
def _ctrl_c(plan: _Plan, progress: StudyProgress) -> Iterator[None]:
    """Handle Ctrl-C: the first lets the tasks under way finish, the second is an ordinary one."""

    def stop(number: int, frame: Any) -> None:
        if plan.stopped:
            raise KeyboardInterrupt(
                "stopped at once; what was stored before stays. Run the same line again to go on"
            )
        plan.stopped = True
        progress.say(
            f"finishing {len(plan.busy)} parts, at most about {plan.part_seconds:g} s; Ctrl-C again to stop at once"
        )

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _model_names(models: str | Sequence[str]) -> list[str]:
    names = [models] if isinstance(models, str) else checked_list("models", models)
    for name in names:
        if not isinstance(name, str):
            raise ArgumentTypeError(
                f"a study takes models by name, because each worker loads its own; got a {type(name).__name__}. Give a "
                "bundled name, a folder (save_pretrained) or a Hub id"
            )
    if not names or len(set(names)) < len(names) or not all(names):
        raise InputError(f"give at least one model, each once; got {names}")
    return names


def _shard(shard: str | None, n_texts: int) -> tuple[int, int]:
    """The texts of a shard "i/n", from first to last - 1."""
    if shard is None:
        return 0, n_texts
    i, slash, n = shard.partition("/") if isinstance(shard, str) else ("", "", "")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise InputError(f"a shard is i/n, with i from 1 to n; got {shard!r}")
    return (int(i) - 1) * n_texts // int(n), int(i) * n_texts // int(n)


def _counts(store: StudyStore, names: Sequence[str], first: int, last: int) -> tuple[int, int]:
    """Cells that are stored already, and failed ones among them."""
    counts = [store.count(name, first, last) for name in names]
    return sum(done for done, _ in counts), sum(failed for _, failed in counts)


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("densitometer", "torch", "transformers")}
    return {**found, "python": sys.version.split()[0]}
