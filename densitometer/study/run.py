"""A study: measure many texts under many models, into a store from which a stopped study resumes.

    1. Read the corpus, and open or create the folder.          corpus.py, store.py
    2. Hand out the cells that no part covers, in tasks.        this file
    3. Do the tasks.                                            worker.py, on an engine of engines/
    4. Write each answer as a part.                             store.py

A cell is one text under one model, with all its pieces and importances. A task is a range of
consecutive cells with a time limit. So a part is written every few seconds, however long a cell
takes, and a killed study loses little. Small parts are merged at the end. A worker's cells are
locked in the store, so several processes may work in the same folder. If a worker dies, its task is
done again cell by cell. A cell on which workers die twice becomes a failed row.

What this file does not do: it measures nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import polars

from .._util.arguments import checked_list, checked_number
from .._util.files import checked_path
from .._util.progress import StudyProgress, study_progress
from ..errors import ArgumentTypeError, DensitometerWarning, EngineError, InputError
from ..graph.edge_graph import TraceGranularity
from ..measuring.settings import Attention, By, MeasureSettings
from .corpus import Corpus, Unit, read_corpus
from .engines import WORKER_BYTES, Pool, Run, check_engine, check_room, local, open_pool
from .engines.local import visible_gpus
from .prompts import columns_per_text
from .room import Need, need_of
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

# Most cells of one task.
MOST_CELLS = 64
# A cell fails after DEATHS workers have died on it. The study stops after DEATHS_IN_A_ROW workers
# have died without an answer between.
DEATHS = 2
DEATHS_IN_A_ROW = 10
# Small parts are merged each time that this many parts were written.
MERGE_EVERY = 64
# Seconds between two looks at the store while other processes hold all cells that are left.
POLL_SECONDS = 0.2


def run_study(
    corpus: Any,
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
    granularity: TraceGranularity = "block",
    target: Any = None,
    counterfactual: str | None = None,
    window: str | None = None,
    unit: Unit = "line",
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    traces: str = "none",
    components: bool = True,
    states: bool = False,
    unigrams: Any = None,
    means: Any = None,
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
    """Measure every text under every model.

    A second call with the same arguments resumes the study. A later call may add models, and also
    texts: its corpus must have all texts of the study, unchanged, and may have more. Token
    frequencies stay those of the texts with which the study began.

    Args:
        corpus: a path or texts, as in `read_corpus`, with `unit`, `columns` and `delimiter`. Chats
            are measured by each model's template, at the first token of the answer.
        models: names as in `load_model`, or NAME@REVISION.
        out: the study's folder.
        window: which predictions of each text are measured: None (the one after its last token),
            "words:40", "tokens:32", "sliding:32:16", "positions" or "sweep:8,16,32" (see
            `densitometer.study.corpus`).
        importance, sizes, baselines, by, eps, seed, attention, granularity: as in `measure`.
        target: as in `measure`, the same for every text, but not a function, which a study cannot
            store. If None, each text has its own target in the corpus's column `target`, and the
            wrong answer to compare it with in the column `against`, where these exist. A text whose
            target is not a single token fails. A text with a null there has no target.
        counterfactual: as in `measure`, the same text for all. If None, each text has its own in
            the corpus's column `counterfactual`, where this exists. A text fails if its
            counterfactual has a different number of tokens.
        traces: how much of each trace is stored: "none", "top" (1,000 edges and a histogram) or
            "whole".
        components: whether to store how many edges of each trace each component holds.
        states: whether to store the input of the unembedding, for the model and each trace (about
            2.4 bytes x hidden size x 28 per text and importance), for `analysis.state_geometry`.
        unigrams: a corpus, given as `corpus` is. Each prediction is compared with its token
            frequencies. By default it is the texts with which the study began, without the text
            that is measured.
        means: a corpus, given as `corpus` is, from which each worker computes reference means
            (`reference_means`). Removed edges then contribute these instead of zero.
        dtype, device: as in `load_model`.
        options: further keyword arguments of `load_model`.
        plugins: modules that each worker imports first. They may register importances and metrics;
            a metric becomes a column of the curves.
        threads: CPU threads per worker. The last digits depend on it, so it is a setting of the
            study.
        engine: "local" or "ray".
        workers: number of workers; by default one per GPU, or one without GPUs.
        address: address of a running Ray cluster; by default Ray is started on this machine.
        gpus_per_worker: GPUs per worker; by default 1 if there are GPUs. Ray takes fractions too.
        shard: "i/n" to measure only the i-th of n equal ranges of texts, for any scheduler. All
            shards may share the folder.
        retry_failed: whether to measure failed cells again.
        part_seconds: about how often a worker stores its results, in seconds.

    Returns:
        The study, as `open_study` returns it.

    Raises:
        InputError, ArgumentTypeError: the corpus or an argument cannot be used.
        StorageError: the folder cannot be written, the disk is full, or the folder holds a study
            with other settings, or with a text that the corpus lacks or has changed.
        EngineError: the workers cannot be started, or keep dying.
        KeyboardInterrupt: the user pressed Ctrl-C. It is raised once the running tasks are stored.
            A second Ctrl-C does not wait for them.

    Examples:
        >>> study = dm.run_study(["The captain looked", "One two three four"], "demo", "study", sizes=[0.3, 1.0])
        >>> study.measurements().select("text_id", "model", "importance").rows()
        [('1', 'demo', 'l1'), ('2', 'demo', 'l1')]
    """
    names, plugins = _model_names(models), checked_list("plugins", plugins)
    _check_arguments(
        components=components, states=states, retry_failed=retry_failed, options=options, plugins=plugins, device=device,
        dtype=dtype, address=address,
    )  # fmt: skip
    counted, averaged = (None if c is None else read_corpus(c) for c in (unigrams, means))
    import_plugins(plugins)
    settings = StudySettings(
        measuring=MeasureSettings(importance, sizes, baselines, by, eps, seed, attention, granularity=granularity, target=target, counterfactual=counterfactual),
        window=window, traces=traces, components=bool(components), states=bool(states), unigrams=_named(counted), means=_named(averaged),
        dtype=dtype, options=dict(options or {}), plugins=tuple(plugins), threads=threads,
    )  # fmt: skip
    check_settings(settings)
    if not checked_number("part_seconds", part_seconds) > 0:
        raise InputError(f"part_seconds must be a time above 0; got {part_seconds!r}")
    texts = read_corpus(corpus, unit, columns, delimiter)
    settings = replace(settings, per_text=columns_per_text(texts.texts.columns, settings.measuring))
    first, last = _shard(shard, len(texts))
    gpus = len(visible_gpus()) if device is None and engine == "local" else 0
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus else 0.0
    workers = max(1, gpus) if workers is None else workers
    check_engine(engine, workers, address, gpus_per_worker)
    need = _check_memory(
        names, texts.texts[first:last], settings, engine, workers, device, address, gpus_per_worker
    )
    with _alone_in(checked_path(out)):
        return _run(
            texts, names, out, settings, (counted, averaged), (first, last), shard, engine, workers, device, address,
            gpus_per_worker, need, retry_failed, part_seconds,
        )  # fmt: skip


def _run(
    texts: Corpus,
    names: Sequence[str],
    out: str | Path,
    settings: StudySettings,
    references: tuple[Corpus | None, Corpus | None],
    cells: tuple[int, int],
    shard: str | None,
    engine: str,
    workers: int,
    device: str | None,
    address: str | None,
    gpus_per_worker: float,
    need: Need,
    retry_failed: bool,
    part_seconds: float,
) -> Study:
    """Run a study whose arguments were checked.

    Args:
        references: the corpora of `unigrams` and of `means`; None where there is none.
        cells: number of the first cell, and one more than the number of the last.
        need: memory that workers are expected to need.

    All other arguments are as in `run_study`.
    """
    counted, averaged = references
    first, last = cells
    about = {"name": texts.name, "sha256": texts.sha256, "n_texts": len(texts)}
    store = StudyStore.create(out, settings.plain(), about, texts.texts, _versions())
    try:
        with store.locked():
            for name in names:
                for part in store.set_damaged_aside(name, first, last):
                    warnings.warn(
                        f"the part {part} is damaged; its texts are measured again",
                        DensitometerWarning,
                        stacklevel=3,
                    )
                for part, reason in store.set_foreign_aside(name, first, last).items():
                    warnings.warn(
                        f"the part {part} is of another study: {reason}; its texts are measured again",
                        DensitometerWarning,
                        stacklevel=3,
                    )
                if retry_failed:
                    store.forget_failures(name)
        for warning in store.warnings:
            warnings.warn(warning, DensitometerWarning, stacklevel=3)
        plan = _Plan(store, store.texts, names, first, last, workers, part_seconds)
        # The texts with which the study began. Texts that were added later do not count, so that
        # every row has the same token frequencies.
        own = store.texts.head(store.manifest.get("counted", store.texts.height))
        sample = Sample.of(own if counted is None else counted.texts, own=counted is None)
        mean_texts = () if averaged is None else tuple(averaged.usable())
        make = partial(_make, settings, {name: store.commit(name) for name in names}, sample, mean_texts)
        if plan.left():
            with (
                threads_kept(),
                study_progress(len(names) * (last - first), *_counts(store, names, first, last)) as progress,
            ):
                # no more workers are started than there are texts left
                most = min(workers, max(2, plan.left()))
                pool = open_pool(
                    engine,
                    make,
                    most,
                    device,
                    address,
                    gpus_per_worker,
                    settings.threads,
                    need.each,
                    need.shared,
                )
                try:
                    _work(plan, pool, settings, progress)
                finally:
                    pool.close()
        with store.locked():
            for name in names:
                store.merge(name)
        if plan.stopped:
            raise KeyboardInterrupt(
                f"stopped; {plan.left():,} of {len(names) * (last - first):,} texts x models are left. "
                f"Finished results are stored in {out}; run the same command again to resume"
            )
    finally:
        store.close()
    return open_study(out)


# A lock for each folder in which this process runs a study, by the folder's real path.
_UNDER_WAY: dict[str, threading.RLock] = {}
_GUARD = threading.Lock()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make other threads that run a study in the same folder wait while this context lasts.

    File locks work between processes only, not between threads.
    """
    with _GUARD:
        lock = _UNDER_WAY.setdefault(os.path.realpath(folder), threading.RLock())
    with lock:
        yield


def _check_arguments(**given: Any) -> None:
    """Check the types of arguments that no other check covers before the folder is written.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
    """
    for name in ("components", "states", "retry_failed"):
        if not isinstance(given[name], bool | numpy.bool_):
            raise ArgumentTypeError(f"{name} must be True or False, got {given[name]!r}")
    options = given["options"]
    if options is not None and not (
        isinstance(options, Mapping) and all(isinstance(key, str) for key in options)
    ):
        raise ArgumentTypeError(
            f"options must map names to keyword arguments of load_model, such as {{'trust_remote_code': True}}; got {options!r}"
        )
    for plugin in given["plugins"]:
        if not isinstance(plugin, str) or not plugin:
            raise ArgumentTypeError(f"plugins must be names of modules, such as 'my_metrics'; got {plugin!r}")
    for name in ("device", "dtype", "address"):
        if not isinstance(given[name], str | None):
            raise ArgumentTypeError(
                f"{name} must be a string, got {given[name]!r} ({type(given[name]).__name__})"
            )


def _check_memory(
    names: Sequence[str],
    texts: polars.DataFrame,
    settings: StudySettings,
    engine: str,
    workers: int,
    device: str | None,
    address: str | None,
    gpus_per_worker: float,
) -> Need:
    """Check that this machine has cores and memory for the workers, and return what they need.

    All arguments are as in `run_study`, except that `texts` are only those that will be measured.

    Raises:
        InputError: the machine has room for fewer workers only.

    Warns:
        DensitometerWarning: a study of one worker may not fit.
    """
    # a cluster checks its own memory and cores
    if address is not None:
        return Need()
    free = local.free_memory()
    # the one worker runs in this process
    here = workers == 1 and engine == "local"

    def fits(need: Need) -> bool:
        return free is None or need.of(workers) - here * WORKER_BYTES <= free

    place = device or ("cuda" if gpus_per_worker else None)
    need, shorter = need_of(names, texts, settings, place, fits)
    instead = f", or a shorter window, such as window='tokens:{shorter}'" if shorter else ""
    check_room(
        engine,
        workers,
        settings.threads,
        need.each,
        address,
        gpus_per_worker,
        need.shared,
        str(need),
        instead,
    )
    if free is not None and workers == 1 and not fits(need):
        warnings.warn(
            f"memory may run out: {free / 2**30:.1f} GiB are free, and the study needs up to {need}. Texts that do not fit "
            f"fail, or end the process. Give a machine with more memory{instead}",
            DensitometerWarning,
            stacklevel=3,
        )
    return need


def _named(corpus: Corpus | None) -> dict[str, str] | None:
    """Describe a corpus as a setting: its name and the SHA-256 of its content."""
    return None if corpus is None else {"name": corpus.name, "sha256": corpus.sha256}


def _make(
    settings: StudySettings,
    commits: Mapping[str, str | None],
    sample: Sample,
    mean_texts: tuple[Any, ...],
    device: str | None,
) -> Run:
    """Build a worker. An engine calls this in the worker's process, with the worker's device."""
    return Worker(settings, device, commits, sample, mean_texts).run


def _work(plan: _Plan, pool: Pool, settings: StudySettings, progress: StudyProgress) -> None:
    """Keep every worker busy until no cell is left or the user presses Ctrl-C."""
    tasks: dict[int, Task] = {}
    # the model that each worker has loaded, so that it gets more cells of the same model
    last: dict[int, str | None] = {}
    in_a_row = written = 0
    with _ctrl_c(plan, progress):
        while True:
            for worker in range(pool.size):
                if worker not in tasks and (task := plan.next(last.get(worker))) is not None:
                    pool.submit(worker, task)
                    tasks[worker], last[worker] = task, task.model
            if not tasks:
                if plan.stopped or not plan.left():
                    return
                # Other processes hold the cells that are left. If one dies, its locks are released
                # and its cells are taken here.
                time.sleep(POLL_SECONDS)
                progress.done(plan.covered())
                continue
            worker, answer = pool.wait()
            # a worker was added to the pool: give it a task
            if answer.grown:
                continue
            task = tasks.pop(worker, None)
            if answer.raised is not None:
                raise answer.raised
            in_a_row = 0 if answer.died is None else in_a_row + 1
            if in_a_row == DEATHS_IN_A_ROW:
                raise EngineError(f"workers keep dying, {in_a_row} in a row; the last: {answer.died}")
            # the worker died without a task, so no text caused it
            if task is None:
                continue
            outcome = answer.value if answer.died is None else plan.died(task, answer.died, settings)
            if outcome is not None:
                plan.store.note_model(task.model, outcome.commit)
                plan.store.write(task.model, task.start, outcome.end, outcome.content)
                progress.add(worker, outcome.end - task.start, outcome.failed, outcome.error, outcome.memory)
                written += 1
                # each look for missing cells lists all parts, so their number has to stay small
                if written % MERGE_EVERY == 0:
                    with plan.store.locked():
                        plan.store.merge(task.model, small=True)
            plan.finished(task)


@dataclass
class _Plan:
    """The cells that a study still has to measure, and those that this process has handed out.

    Args:
        store: the study's folder.
        texts: the corpus, one row per text.
        models: names of the models.
        first: number of the first cell to measure, the same for every model.
        last: one more than the number of the last.
        workers: number of workers of this process.
        part_seconds: time limit of a task.
        busy: tasks that workers of this process have.
        deaths: deaths of workers by cell. A cell with an entry becomes a task of its own.
        stopped: whether the user has pressed Ctrl-C.
    """

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
        """Number of cells that no part covers."""
        gaps = [gap for model in self.models for gap in self.store.missing(model, self.first, self.last)]
        return sum(end - start for start, end in gaps)

    def covered(self) -> int:
        return len(self.models) * (self.last - self.first) - self.left()

    def next(self, before: str | None) -> Task | None:
        """Return a task that no other worker or process has, or None if there is none.

        Args:
            before: the model that the worker has loaded, whose cells are preferred.
        """
        if self.stopped:
            return None
        # A task has at most half of a worker's share of the cells left. So tasks shrink towards the
        # end, and all workers finish at about the same time.
        for model in sorted(self.models, key=lambda name: name != before):
            gaps = self._free(model, self.first, self.last)
            count = sum(end - start for start, end in gaps)
            most = max(1, min(MOST_CELLS, count // (2 * self.workers)))
            for start, end in self._cut(model, gaps, most):
                if not self.store.claim(model, start, end):
                    continue
                # Look again under the lock: another process may have stored some of these cells
                # after the gaps were listed and before the lock was taken.
                if self._free(model, start, end) == [(start, end)]:
                    rows = self.texts[start:end].to_dicts()
                    task = Task(model, start, tuple(rows), self.part_seconds)
                    self.busy.append(task)
                    return task
                self.store.release(model, start, end)
        return None

    def _free(self, model: str, start: int, end: int) -> list[tuple[int, int]]:
        """Missing cells among start to end - 1, without those that a worker of this process has."""
        # POSIX locks do not hold between workers of one process, so `busy` keeps their cells apart.
        gaps = self.store.missing(model, start, end)
        for task in self.busy:
            if task.model == model:
                parts = [[(a, min(b, task.start)), (max(a, task.end), b)] for a, b in gaps]
                gaps = [(a, b) for pair in parts for a, b in pair if a < b]
        return gaps

    def _cut(self, model: str, gaps: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
        """Cut gaps into ranges of at most `most` cells.

        A cell on which a worker may have died becomes a range of its own.
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
        """Count a worker's death. Return failed rows if its cell has had DEATHS of them, else None.

        Args:
            task: the task that the worker had.
            reason: why it died.
            settings: settings of the study.
        """
        cells = [(task.model, cell) for cell in range(task.start, task.end)]
        for cell in cells:
            # In a task of several cells, any of them may be the cause. Each gets an entry, so that
            # it is tried alone next time, but the death counts for none of them.
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
    """Let running tasks finish on the first Ctrl-C, and interrupt at once on the second one."""

    def stop(number: int, frame: Any) -> None:
        if plan.stopped:
            raise KeyboardInterrupt(
                "stopped at once; results stored before are kept. Run the same command again to resume"
            )
        plan.stopped = True
        progress.say(
            f"finishing {len(plan.busy)} parts, at most about {plan.part_seconds:g} s; Ctrl-C again to stop "
            "at once"
        )

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:
        # only the main thread may handle signals; elsewhere Ctrl-C stays as it is
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
                "a study takes models by name, because each worker loads its own; got a "
                f"{type(name).__name__}. Give a bundled name, a folder (save_pretrained) or a Hub id"
            )
    if not names or len(set(names)) < len(names) or not all(names):
        raise InputError(f"give at least one model, each once; got {names}")
    return names


def _shard(shard: str | None, n_texts: int) -> tuple[int, int]:
    """Return the number of the first text of a shard "i/n", and one more than that of the last."""
    if shard is None:
        return 0, n_texts
    i, slash, n = shard.partition("/") if isinstance(shard, str) else ("", "", "")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise InputError(f"a shard must be i/n, with i from 1 to n; got {shard!r}")
    return (int(i) - 1) * n_texts // int(n), int(i) * n_texts // int(n)


def _counts(store: StudyStore, names: Sequence[str], first: int, last: int) -> tuple[int, int]:
    """Count the cells that are stored already, and the failed ones among them."""
    counts = [store.count(name, first, last) for name in names]
    return sum(done for done, _ in counts), sum(failed for _, failed in counts)


def _versions() -> dict[str, str]:
    versions = {name: version(name) for name in ("densitometer", "torch", "transformers")}
    return {**versions, "python": sys.version.split()[0]}
