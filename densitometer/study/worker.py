"""Measure one cell of a study, a text under a model, and return the rows to store.

    1. Load the model, and keep it while tasks need it.
    2. Cut the text into pieces (`corpus.Window`).
    3. Measure each piece by every importance (`measurement.measure`).
    4. Build the tables beyond the curve (`result_tables.py`).

A failure, such as a text that is too short or a model that cannot be loaded, becomes a row with its
error. A cell's numbers depend only on its text, its model and the settings. So texts are never
batched together, and the number of CPU threads is a setting, because matrix products round
differently when their work is split differently. Only correlations with unigram frequencies depend
on other texts too, which are the same for the whole study.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import polars

from .._util.arguments import checked_list
from .._util.progress import silent
from ..errors import ArgumentTypeError, DensitometerError, InputError, StorageError
from ..measuring.columns import COMPONENT_TYPES, TARGET_TYPES
from ..measuring.settings import MeasureSettings
from .chats import CHAT, Chat
from .corpus import Piece, Window
from .manifest import other_weights
from .part_files import CURVE, cell_key, part_of
from .prompts import measuring_of
from .unigrams import Sample, Unigrams

if TYPE_CHECKING:
    from ..graph.reference_means import ReferenceMeans
    from ..measuring.measurement import Measurement, Runs
    from ..models.loading import Model

TRACES = ("none", "top", "whole")


@dataclass(frozen=True)
class StudySettings:
    """Settings on which a study's numbers depend, besides text and model. All are plain data.

    Args:
        measuring: how each prediction is measured. Workers add the reference means of their model.
        window: as in `corpus.Window.parse`; None for the whole text.
        traces: "none", "top" (the first 1,000 edges, and a histogram of all importances) or
            "whole".
        components: whether to store how many edges of each trace each component holds.
        states: whether to store the input of the unembedding, for the model and each trace.
        unigrams: name and SHA-256 of the corpus whose tokens are counted; None for the study's
            texts.
        means: name and SHA-256 of the corpus of the reference means; None if removed edges
            contribute zero.
        dtype: dtype of the weights; None for the model's default.
        options: further keyword arguments of `load_model`.
        plugins: modules to import first. They may register importances and metrics; a metric
            becomes a column of the curves.
        threads: CPU threads per worker.
        per_text: columns of the corpus that are settings of each text (`prompts.py`).
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
    per_text: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the settings as one flat mapping of JSON values, for the manifest.

        Settings in `measuring` are at the same level as the others. The default granularity, and
        targets, counterfactuals and their columns that are not set, are left out: manifests of
        older versions do not have them, and their studies may be resumed.
        """
        measuring = self.measuring.to_document()
        # the name and hash of the means' corpus say both
        del measuring["ablation"], measuring["means"]
        if measuring["granularity"] == "block":
            del measuring["granularity"]
        for name in ("target", "counterfactual"):
            if measuring[name] is None:
                del measuring[name]
        others = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "measuring"
        }
        if not self.per_text:
            del others["per_text"]
        return dict(json.loads(json.dumps(measuring | others)))


@dataclass(frozen=True)
class Task:
    """Consecutive texts to measure under one model.

    Args:
        model: NAME or NAME@REVISION.
        start: number of the first cell.
        texts: rows of the corpus.
        seconds: time limit. The worker returns after the first cell that ends later, so it always
            does at least one.
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
    """Results of the cells of a task that were done in time, as a part for the store.

    Args:
        content: bytes of the part.
        end: one more than the number of the last cell that was done.
        failed: number of cells that failed.
        error: message of the last failure, or None.
        memory: largest resident size of the process so far, in bytes.
        commit: fingerprint of the model that measured them (`Model.commit`); None without one.
    """

    content: bytes
    end: int
    failed: int
    error: str | None
    memory: int
    commit: str | None = None


@contextmanager
def threads_kept() -> Iterator[None]:
    """Restore torch's number of threads afterwards, which a worker in this process changes."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Worker:
    """Worker that does tasks, with one model in memory at a time.

    Args:
        settings: settings of the study.
        device: device of the models, or None for the default.
        commits: commit of the weights of each model's stored results, by name; None without
            results.
        sample: the texts whose tokens are counted.
        mean_texts: texts and chats of the reference means; none if removed edges contribute zero.
    """

    def __init__(
        self,
        settings: StudySettings,
        device: str | None,
        commits: Mapping[str, str | None],
        sample: Sample,
        mean_texts: Sequence[Any] = (),
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
        """Measure the cells of a task, in order, until its time is up.

        Raises:
            StorageError: the stored results are of other weights than the model has now.
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
        content = part_of(rows, nested, _metrics(self.settings))
        return Outcome(content, end, failed, last, _memory(), rows[-1].get("commit"))

    def _cell(
        self, name: str, number: int, text: Mapping[str, Any]
    ) -> list[tuple[dict[str, Any], dict[str, polars.DataFrame]]]:
        """Measure one text: a row and its tables for each piece and importance."""
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
        except Exception as error:
            # whatever a tokenizer raises concerns this text only, so the study goes on
            return failed_rows(base, self.settings, _say(error))
        cell_rows = []
        for piece in pieces:
            columns = base | {
                "piece": piece.number,
                "ids": piece.ids,
                "position": piece.position,
                "n_tokens": piece.position + 1,
            }
            try:
                cell_rows += self._piece(model, columns, piece, text)
            except Exception as error:
                # a StorageError concerns the whole study, all else this piece
                if isinstance(error, StorageError):
                    raise
                cell_rows += failed_rows(columns, self.settings, _say(error))
        return cell_rows

    def _load(self, name: str) -> Model | str:
        """Return the model, or the reason why it cannot be loaded."""
        if name == self._name:
            return self._model
        from ..models.loading import load_model

        # free the model before, so that two are never in memory at once
        self._name, self._model, self._unigrams, self._means = None, "", None, None
        gc.collect()
        where, revision = split_revision(name)
        keywords = {"dtype": self.settings.dtype, "device": self.device, "revision": revision}
        keywords = {k: v for k, v in keywords.items() if v is not None} | self.settings.options
        try:
            model = load_model(where, **keywords)
            if model.tokenizer is None:
                raise DensitometerError(
                    f"the model {where!r} has no tokenizer, which a study needs for its texts"
                )
            if self.mean_texts:
                from ..graph.reference_means import reference_means

                self._means = reference_means(model, self.mean_texts)
        except Exception as error:
            # Loading fails in many ways. The reason goes into the model's rows; other models go on.
            self._model = _say(error)
        else:
            # results of two versions of the weights must not mix under one name
            known = self.commits.get(name)
            if known is not None and not model.matches(known):
                raise other_weights(name, known, model.commit)
            self._model = model
        self._name = name
        return self._model

    def _pieces(self, model: Model, text: Mapping[str, Any]) -> list[Piece]:
        def encode(content: str) -> list[int]:
            return list(model.tokenizer(content, verbose=False)["input_ids"])

        start = getattr(model.tokenizer, "bos_token_id", None)
        if text.get(CHAT) is not None:
            return self._pieces_of_chat(model, Chat.parse(text[CHAT], text["next"]), start)
        return self.window.pieces(text["text"], text["next"], encode, start)

    def _pieces_of_chat(self, model: Model, chat: Chat, start: int | None) -> list[Piece]:
        """Cut a chat, as the model's template renders it, into pieces.

        Raises:
            InputError: the template refuses the chat, or the window is one of words.
        """
        if self.window.kind == "words":
            raise InputError(
                "a window of words cannot cut a chat, which the model's template renders; give tokens:N, or no window"
            )
        ids = longer = model.encode(list(chat.context))
        if chat.answer:
            # some templates refuse an answer that goes on; what comes next is then not known
            with suppress(InputError):
                longer = model.encode(chat.whole, cut=True)
        # encodes the chat, then the chat with its answer, as the window does with a text
        return self.window.pieces("", chat.answer, lambda content: longer if content else ids, start)

    def _piece(
        self, model: Model, base: dict[str, Any], piece: Piece, text: Mapping[str, Any]
    ) -> list[tuple[dict[str, Any], dict[str, polars.DataFrame]]]:
        """Measure one piece: a row and its tables for each importance."""
        from ..measuring.measurement import measured
        from .result_tables import TOP_EDGES, Observation

        settings = self.settings
        seen: list[Runs] = []
        started = time.monotonic()
        own = measuring_of(settings.measuring, settings.per_text, text)
        measuring = replace(own, ablation=self._means or "zero")
        m = measured(model, piece.ids, measuring, piece.position, seen.append)
        observed = Observation(m, seen[0], self._counts(model, base["text_id"], len(seen[0].full)))
        base = base | {
            "prompt_surprisal": observed.prompt_surprisal(model, piece.ids[: piece.position + 1]),
            "unigram_correlation": observed.full_correlation,
            "n_unigrams": observed.n_unigrams,
        }
        seconds = time.monotonic() - started
        first = settings.measuring.importance[0]
        piece_rows = []
        for name in m.density:
            # Importances share the forward pass, so each row gets an equal share of the time.
            # Baselines do not depend on the importance, so only the first one's curve has them.
            row = base | _numbers(m, name, settings.measuring.eps) | {"seconds": seconds / len(m.density)}
            curve = observed.curve(name, with_baselines=name == first)
            # a text without a target of its own, in a study where others have one
            lacking = [column for column in _metrics(settings) if column not in curve.columns]
            tables = {"curve": curve.with_columns(polars.lit(None).alias(column) for column in lacking)}
            if settings.states:
                tables["states"] = observed.states(name)
            # a long input is measured without a stored pass, and has neither of these tables
            stored = observed.forward is not None
            if stored and settings.components:
                tables["components"] = observed.components(name)
            if stored and settings.traces != "none":
                tables |= observed.edges(name, None if settings.traces == "whole" else TOP_EDGES)
            piece_rows.append((row, tables))
        return piece_rows

    def _counts(self, model: Model, text_id: str, vocabulary: int) -> numpy.ndarray:
        """Count of each token in the sample without this text, (vocabulary,) int64."""
        if self._unigrams is None:

            def encode(content: str) -> list[int]:
                return list(model.tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"])

            self._unigrams = Unigrams(self.sample, encode, vocabulary)
        return self._unigrams.without(text_id)


def describe_cell(name: str, number: int, text: Mapping[str, Any], settings: StudySettings) -> dict[str, Any]:
    """Return the columns of a cell that are known before anything is run.

    Args:
        name: NAME or NAME@REVISION of the model.
        number: number of the cell.
        text: row of the corpus.
        settings: settings of the study.
    """
    where, revision = split_revision(name)
    key = cell_key(name, text, json.dumps(settings.plain(), sort_keys=True), settings.per_text)
    return {
        "cell": number, "key": key, "text_id": text["id"], "piece": 0, "model": where, "revision": revision, "error": None,
    }  # fmt: skip


def failed_rows(
    base: Mapping[str, Any], settings: StudySettings, error: str
) -> list[tuple[dict[str, Any], dict[str, polars.DataFrame]]]:
    """Return the rows of a piece that could not be measured, one per importance, without tables."""
    return [({**base, "importance": name, "error": error}, {}) for name in settings.measuring.importance]


def failed_part(task: Task, settings: StudySettings, error: str) -> bytes:
    """Build the part of a task in which no cell could be measured."""
    rows = []
    for number, text in enumerate(task.texts, start=task.start):
        rows += failed_rows(describe_cell(task.model, number, text, settings), settings, error)
    return part_of([row for row, _ in rows], [tables for _, tables in rows], _metrics(settings))


def split_revision(model: str) -> tuple[str, str | None]:
    """Split NAME@REVISION into name and revision. A folder may have an @ in its name."""
    name, at, revision = model.rpartition("@")
    if not at or not name or Path(model).is_dir():
        return model, None
    return name, revision


def _say(error: BaseException) -> str:
    """Write an error's message on one line, with its class unless the class is this package's."""
    text = " ".join(str(error).split())
    return text if isinstance(error, DensitometerError) else f"{type(error).__name__}: {text[:500]}"


def _describe(model: Model) -> dict[str, Any]:
    from ..measuring.records import MeasuredModel

    described = MeasuredModel.of(model)
    return {name: described[name] for name in ("architecture", "dtype", "device")} | {"commit": model.commit}


def _metrics(settings: StudySettings) -> list[str]:
    """Names of the curve's columns beyond `CURVE`: of plugins' metrics, a target, components."""
    from .._util.metrics import list_metrics

    targeted = settings.measuring.target is not None or "target" in settings.per_text
    of_target = list(TARGET_TYPES) if targeted else []
    of_components = list(COMPONENT_TYPES) if settings.measuring.granularity == "component" else []
    return [name for name in list_metrics() if name not in CURVE] + of_target + of_components


def _memory() -> int:
    """Largest resident size of this process so far, in bytes. 0 if it is not known."""
    try:
        import resource
    except ImportError:
        return 0
    # macOS reports bytes, Linux KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _numbers(m: Measurement, name: str, eps: float) -> dict[str, Any]:
    """The measured columns of a row: densities by one importance, and facts of the prediction."""
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
        "faithful_at": None if m.target is None else density.size_at(eps, by="faithfulness"),
        "noise": density.noise,
        **columns_of_sinks(m, name, eps),
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


def columns_of_sinks(m: Measurement, name: str, eps: float) -> dict[str, Any]:
    """Return the columns about sinks: which shares of graph and trace at `size_at` serve them.

    They are empty if sinks were not computed: for long inputs, and for traces of components.
    """
    if m.sinks is None or m.units == "components":
        return {}
    size = m.density[name].size_at(eps)
    return {
        "n_sinks": m.sinks.tokens.height,
        "sink_share": m.sinks.share_of_graph,
        "sink_share_of_trace": None if size is None else m.sinks.share_of_trace(name, size),
        "size_at_without_sinks": m.density_in("edges_without_sinks")[name].size_at(eps),
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
    """Check settings before any worker is started.

    Raises:
        InputError: the dtype, the window, `traces` or `threads` is not one that a worker accepts.
        ArgumentTypeError: `options` cannot be written as JSON.
    """
    from ..measuring.measurement import DTYPE_ROUNDING

    target = settings.measuring.target
    if target is not None and target.function is not None:
        raise InputError(
            f"a study stores its target, and cannot store the {target.name}; give tokens: a token, or a pair (token, against)"
        )
    if settings.dtype not in (None, *DTYPE_ROUNDING):
        raise InputError(f"unknown dtype {settings.dtype!r}; expected one of {', '.join(DTYPE_ROUNDING)}")
    Window.parse(settings.window)
    if settings.traces not in TRACES:
        raise InputError(f"unknown traces {settings.traces!r}; expected one of {', '.join(TRACES)}")
    if settings.traces != "none" and settings.measuring.granularity == "component":
        raise InputError(
            f"traces={settings.traces!r} stores the edges of traces, and with granularity='component' these are of heads and "
            "MLPs, which the table of components has; leave one of the two out"
        )
    if isinstance(settings.threads, bool) or not isinstance(settings.threads, int) or settings.threads < 1:
        raise InputError(f"threads must be a number of CPU threads, at least 1; got {settings.threads!r}")
    try:
        json.dumps(settings.options)
    except TypeError as error:
        raise ArgumentTypeError(
            f"options must be plain data, which the manifest can hold: {error}"
        ) from error
