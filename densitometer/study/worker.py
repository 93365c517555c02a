"""A cell of a study: one text under one model, from the text to the rows that are stored.

    1. Load the model, once per worker; keep it while the tasks are of it.
    2. Cut the text into pieces (`corpus.Window`).
    3. Measure each piece by every importance (`measurement.measure`).
    4. Keep what the curve does not tell (`result_tables.py`).

What fails is a row with its error: a text that is too short, a model that cannot be loaded. A cell's numbers depend on its
text, its model and the settings alone: texts are never run together, and on a CPU the number of threads is a setting,
because matrix products round differently when their work is split another way. Only its correlations with unigram
frequencies depend on the corpus too, which is one for the whole study.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import polars

from .._util.arguments import checked_list
from .._util.progress import silent
from ..errors import ArgumentTypeError, DensitometerError, InputError, StorageError
from ..measuring.settings import MeasureSettings
from .corpus import Piece, Window
from .part_files import CURVE, part_of
from .unigrams import Sample, Unigrams

if TYPE_CHECKING:
    from ..graph.reference_means import ReferenceMeans
    from ..measuring.measurement import Measurement, Runs
    from ..models.loading import Model

TRACES = ("none", "top", "whole")


@dataclass(frozen=True)
class StudySettings:
    """What the numbers of a study depend on, beside text and model. All are plain data.

    Args:
        measuring: how each prediction is measured; `means` of the study are put into it by each worker.
        window: as in `corpus.Window.parse`; None for the whole text.
        traces: "none", "top" (the first 1,000 edges, and a histogram of all importances) or "whole".
        components: whether to keep which components hold the edges of each trace.
        states: whether to keep what the unembedding reads, of the model and of each trace.
        unigrams: name and SHA-256 of the corpus whose tokens are counted; None for the texts that are measured.
        means: name and SHA-256 of the corpus over which removed edges' means are taken; None where they contribute nothing.
        dtype: of the weights.
        options: further keywords of `load_model`.
        plugins: modules to import first, which may register importances and metrics; a metric is a column of the curves.
        threads: of the CPU, per worker.
    """

    measuring: MeasureSettings = field(default_factory=lambda: MeasureSettings("l1", baselines=()))
    window: str | None = None
    traces: str = "none"
    components: bool = True
    states: bool = False
    unigrams: dict[str, str] | None = None
    means: dict[str, str] | None = None
    dtype: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    threads: int = 1

    def plain(self) -> dict[str, Any]:
        """The settings as JSON holds them, on one level.

        The names in `measuring` become names beside the others.

        A default granularity is left out, as studies of older versions, which may go on, did not have it.
        """
        measuring = self.measuring.to_document()
        del measuring["ablation"], measuring["means"]  # said by the corpus of the means
        if measuring["granularity"] == "block":
            del measuring["granularity"]
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "measuring"}
        return dict(json.loads(json.dumps(measuring | own)))


@dataclass(frozen=True)
class Task:
    """Cells to do: consecutive texts under one model.

    Args:
        model: NAME or NAME@REVISION.
        start: number of the first cell.
        texts: rows of the corpus.
        seconds: when so many have passed, what is done is handed back, at least one cell.
    """

    model: str
    start: int
    texts: tuple[Mapping[str, Any], ...]
    seconds: float

    @property
    def end(self) -> int:
        return self.start + len(self.texts)


@dataclass(frozen=True)
class Outcome:
    """Cells done: a part for the store.

    Args:
        end: one more than the number of the last cell that was done.
        failed: how many of them failed; error: what the last of these said.
        memory: largest resident size of the process so far, bytes.
    """

    content: bytes
    end: int
    failed: int
    error: str | None
    memory: int


@contextmanager
def threads_kept() -> Iterator[None]:
    """Restore torch's number of threads afterwards. A worker in this process sets its own."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Worker:
    """Worker that does tasks, with one model in memory at a time.

    Args:
        settings: of the study.
        device: where to run, or None.
        commits: by model, what its weights must be, where results of it are stored already.
        sample: the texts whose tokens are counted.
        mean_texts: those over which removed edges' means are taken; none where they contribute nothing.
    """

    def __init__(
        self,
        settings: StudySettings,
        device: str | None,
        commits: Mapping[str, str | None],
        sample: Sample,
        mean_texts: Sequence[str] = (),
    ) -> None:
        import torch

        import_plugins(settings.plugins)
        torch.set_num_threads(settings.threads)
        self.settings, self.device, self.commits = settings, device, commits
        self.sample, self.mean_texts = sample, mean_texts
        self.window = Window.parse(settings.window)
        self._name: str | None = None
        self._model: Model | str = ""
        self._unigrams: Unigrams | None = None
        self._means: ReferenceMeans | None = None

    def run(self, task: Task) -> Outcome:
        """Do the cells of a task until its time is up.

        Raises:
            StorageError: the model's weights are not those that the stored results are of.
        """
        started = time.monotonic()
        rows: list[dict[str, Any]] = []
        nested: list[dict[str, polars.DataFrame]] = []
        failed, last, end = 0, None, task.start
        with silent():
            for text in task.texts:
                errors = []
                for row, tables in self._cell(task.model, end, text):
                    rows.append(row)
                    nested.append(tables)
                    if row["error"] is not None:
                        errors.append(row["error"])
                failed += bool(errors)
                last = errors[-1] if errors else last
                end += 1
                if time.monotonic() - started >= task.seconds:
                    break
        return Outcome(part_of(rows, nested, _metrics()), end, failed, last, _memory())

    def _cell(
        self, name: str, number: int, text: Mapping[str, Any]
    ) -> list[tuple[dict[str, Any], dict[str, polars.DataFrame]]]:
        base = describe_cell(name, number, text, self.settings)
        model = self._load(name)
        if isinstance(model, str):
            return failed_rows(base, self.settings, model)
        base |= _describe(model)
        if text["problem"] is not None:
            return failed_rows(base, self.settings, text["problem"])
        try:
            pieces = self._pieces(model, text)
            if not pieces:
                return failed_rows(base, self.settings, "the text is too short for any piece of the window")
        except Exception as error:  # whatever a tokenizer raises is about this text
            return failed_rows(base, self.settings, _say(error))
        found = []
        for piece in pieces:
            own = base | {
                "piece": piece.number,
                "ids": piece.ids,
                "position": piece.position,
                "n_tokens": piece.position + 1,
            }
            try:
                found += self._piece(model, own, piece)
            except Exception as error:
                if isinstance(error, StorageError):
                    raise
                found += failed_rows(own, self.settings, _say(error))
        return found

    def _load(self, name: str) -> Model | str:
        """The model, or why it cannot be had."""
        if name == self._name:
            return self._model
        from ..models.loading import load_model

        # let go of the one before first
        self._name, self._model, self._unigrams, self._means = None, "", None, None
        gc.collect()
        where, revision = split_revision(name)
        keywords = {"dtype": self.settings.dtype, "device": self.device, "revision": revision}
        keywords = {k: v for k, v in keywords.items() if v is not None} | self.settings.options
        try:
            model = load_model(where, **keywords)
            if model.tokenizer is None:
                raise DensitometerError(f"{where} has no tokenizer, so it can measure no text")
            if self.mean_texts:
                from ..graph.reference_means import reference_means

                self._means = reference_means(model, self.mean_texts)
        except Exception as error:  # a model fails in many ways; its cells tell, the other models go on
            self._model = _say(error)
        else:
            known = self.commits.get(name)
            if known is not None and known != model.commit:
                raise StorageError(
                    f"the stored results of {name} are of other weights: commit {known[:12]}, now {str(model.commit)[:12]}; "
                    f"name the revision ({where}@{known[:12]}), or give another folder"
                )
            self._model = model
        self._name = name
        return self._model

    def _pieces(self, model: Model, text: Mapping[str, Any]) -> list[Piece]:
        def encode(content: str) -> list[int]:
            return list(model.tokenizer(content, verbose=False)["input_ids"])

        start = getattr(model.tokenizer, "bos_token_id", None)
        return self.window.pieces(text["text"], text["next"], encode, start)

    def _piece(
        self, model: Model, base: dict[str, Any], piece: Piece
    ) -> list[tuple[dict[str, Any], dict[str, polars.DataFrame]]]:
        from ..measuring.measurement import measured
        from .result_tables import TOP_EDGES, Observation

        settings = self.settings
        seen: list[Runs] = []
        started = time.monotonic()
        measuring = replace(settings.measuring, ablation=self._means or "zero")
        m = measured(model, piece.ids, measuring, piece.position, seen.append)
        observed = Observation(m, seen[0], self._counts(model, base["text_id"], len(seen[0].full)))
        base = base | {
            "prompt_surprisal": observed.prompt_surprisal(model, piece.ids[: piece.position + 1]),
            "unigram_correlation": observed.full_correlation,
            "n_unigrams": observed.n_unigrams,
        }
        seconds = time.monotonic() - started
        first = settings.measuring.importance[0]
        found = []
        for name in m.density:
            row = base | _numbers(m, name, settings.measuring.eps) | {"seconds": seconds / len(m.density)}
            tables = {"curve": observed.curve(name, with_baselines=name == first)}
            if settings.states:
                tables["states"] = observed.states(name)
            stored = observed.forward is not None  # not of a long input
            if stored and settings.components:
                tables["components"] = observed.components(name)
            if stored and settings.traces != "none":
                tables |= observed.edges(name, None if settings.traces == "whole" else TOP_EDGES)
            found.append((row, tables))
        return found

    def _counts(self, model: Model, text_id: str, vocabulary: int) -> numpy.ndarray:
        """Count of each token in the sample, this text left out, (vocabulary,)."""
        if self._unigrams is None:

            def encode(content: str) -> list[int]:
                return list(model.tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"])

            self._unigrams = Unigrams(self.sample, encode, vocabulary)
        return self._unigrams.without(text_id)


def describe_cell(name: str, number: int, text: Mapping[str, Any], settings: StudySettings) -> dict[str, Any]:
    """The columns that are known before anything is run."""
    where, revision = split_revision(name)
    content = [name, *(text[column] for column in ("id", "text", "next", "problem")), settings.plain()]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "cell": number, "key": key, "text_id": text["id"], "piece": 0, "model": where, "revision": revision, "error": None,
    }  # fmt: skip


def failed_rows(
    base: Mapping[str, Any], settings: StudySettings, error: str
) -> list[tuple[dict[str, Any], dict[str, polars.DataFrame]]]:
    """The rows of a piece that could not be measured, one per importance."""
    return [({**base, "importance": name, "error": error}, {}) for name in settings.measuring.importance]


def failed_part(task: Task, settings: StudySettings, error: str) -> bytes:
    """The part of a task that could not be done at all."""
    rows = []
    for number, text in enumerate(task.texts, start=task.start):
        rows += failed_rows(describe_cell(task.model, number, text, settings), settings, error)
    return part_of([row for row, _ in rows], [tables for _, tables in rows], _metrics())


def split_revision(model: str) -> tuple[str, str | None]:
    """Split NAME@REVISION into name and revision. A folder may have an @ in its name."""
    name, at, revision = model.rpartition("@")
    if not at or not name or Path(model).is_dir():
        return model, None
    return name, revision


def _say(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, DensitometerError) else f"{type(error).__name__}: {text[:500]}"


def _describe(model: Model) -> dict[str, Any]:
    from ..measuring.records import MeasuredModel

    described = MeasuredModel.of(model)
    return {name: described[name] for name in ("architecture", "dtype", "device")} | {"commit": model.commit}


def _metrics() -> list[str]:
    """Metrics that a plugin registered."""
    from .._util.metrics import list_metrics

    return [name for name in list_metrics() if name not in CURVE]


def _memory() -> int:
    try:
        import resource
    except ImportError:  # no POSIX
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _numbers(m: Measurement, name: str, eps: float) -> dict[str, Any]:
    density = m.density[name]
    bracket = density.bracket(eps)
    top = m.prediction.row(0, named=True)
    after: Mapping[str, Any] = m.next_token or {}
    return {
        "importance": name,
        "auc_log": density.auc_log,
        "auc_linear": density.auc_linear,
        "size_at": density.size_at(eps),
        "size_below": None if bracket is None else bracket[0],
        "flops_at": m.density_in("flops")[name].size_at(eps),
        "parameters_at": m.density_in("parameters")[name].size_at(eps),
        "entropy": m.entropy,
        "surprisal": after.get("surprisal"),
        "rank": after.get("rank"),
        "next_id": after.get("id"),
        "next_token": after.get("token"),
        "top_id": top["id"],
        "top_token": top["token"],
        "top_probability": top["probability"],
        **{key: m.graph[key] for key in ("n_edges", "n_layers", "n_heads")},
        **m.graph.landmarks,
        "full_trace_tv": m.full_trace_tv,
    }


def import_plugins(plugins: Sequence[str]) -> None:
    """Import modules that may register importances and metrics.

    Raises:
        InputError: a plugin cannot be imported.
    """
    for plugin in checked_list("plugins", plugins):
        try:
            importlib.import_module(plugin)
        except ImportError as error:
            raise InputError(f"cannot import the plugin {plugin!r}: {error}") from error


def check_settings(settings: StudySettings) -> None:
    """Refuse what no worker could do.

    Raises:
        InputError: a setting that `measure`, the window or the store does not know.
    """
    from ..measuring.measurement import DTYPE_ROUNDING

    if settings.dtype not in (None, *DTYPE_ROUNDING):
        raise InputError(f"unknown dtype {settings.dtype!r}; expected one of {', '.join(DTYPE_ROUNDING)}")
    Window.parse(settings.window)
    if settings.traces not in TRACES:
        raise InputError(f"unknown traces {settings.traces!r}; expected one of {', '.join(TRACES)}")
    if isinstance(settings.threads, bool) or not isinstance(settings.threads, int) or settings.threads < 1:
        raise InputError(f"threads is a number of CPU threads, at least 1; got {settings.threads!r}")
    try:
        json.dumps(settings.options)
    except TypeError as error:
        raise ArgumentTypeError(f"options must be plain data, to be written down: {error}") from error
