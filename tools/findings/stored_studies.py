"""The studies behind the findings: what each measures, in which order its parts come, and what they cost.

Each study is one folder of FOLDER, of one setting. A step is a shard of a study's texts under one model. Steps come in
rounds: a round takes the next few texts of a study under every model in turn, so that whenever the work stops, models have
the same texts. What a step has stored is not measured again, as `run_study` resumes.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import changed_models
import compact
import texts

import densitometer as dm
from densitometer.errors import DensitometerWarning
from densitometer.study.corpus import Corpus
from densitometer.study.part_files import list_parts, slug

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "findings"
# Under which name a model is measured, and its folder under .models (make real-models). Weights are of four bits, dequantised.
REAL = {
    "SmolLM2-135M-Instruct-Q4_1": "smollm2",
    "gemma-3-270m-Q4_K_M": "gemma3",
    "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M": "qwen05",
}
BUNDLED = ("demo", "demo-parallel", "demo-branchnorm")
MODELS = (*REAL, *BUNDLED)


@dataclass(frozen=True)
class Kind:
    """A study.

    Args:
        texts: which of the texts it measures.
        count: texts of it that are to be measured.
        settings: of `run_study`, beside the texts, the models and the folder.
        seconds: of a core for one text, per model, as measured (SmolLM2, Gemma, Qwen; each bundled model). A changed
            model takes what its base takes.
        models: the models that are measured.
        first: the first text that is measured.
        shard: texts of a step.
        kilobytes: of disk, for one text under one model.
    """

    texts: str
    count: int
    settings: dict[str, Any]
    seconds: tuple[float, float, float, float]
    models: tuple[str, ...] = MODELS
    first: int = 0
    shard: int = 5
    kilobytes: float = 8.0


BOTH = ("l1", "fisher")
LEAN = {"components": False}
FEW = (1e-4, 1e-3, 4e-3, 1e-2, 2e-2, 4e-2, 0.1, 0.2, 0.4, 0.6, 1.0)
# Components make three quarters of a part's bytes, so that only the first 25 passages have them.
KINDS = {
    "passages": Kind("passages", 25, {"importance": BOTH}, (8, 11, 22, 1.5), kilobytes=22.0),
    "more": Kind("passages", 100, {"importance": BOTH} | LEAN, (8, 11, 22, 1.5), first=25),
    "kept": Kind(
        "passages", 50, {"importance": "l1", "attention": "kept"} | LEAN, (4, 6, 12, 0.8), kilobytes=4.0
    ),
    "languages": Kind("languages", 120, {"importance": BOTH} | LEAN, (6, 7, 12, 1), models=tuple(REAL)),
    "code": Kind("code", 30, {"importance": BOTH} | LEAN, (7, 9, 17, 1.2), models=tuple(REAL)),
    "contexts": Kind(
        "contexts",
        30,
        {"importance": BOTH, "window": "sweep:8,16,32,64"} | LEAN,
        (36, 45, 80, 3),
        models=tuple(REAL),
        shard=3,
        kilobytes=25.0,
    ),
    "states": Kind(
        "passages",
        15,
        {"importance": "fisher", "sizes": FEW, "states": True} | LEAN,
        (3, 4, 9, 0.5),
        kilobytes=25.0,
    ),
    "changed": Kind(
        "passages", 25, {"importance": BOTH} | LEAN, (8, 11, 22, 1.5), models=changed_models.CHANGED
    ),
    "search": Kind("passages", 10, {"importance": (*BOTH, "best")} | LEAN, (60, 80, 150, 6), kilobytes=12.0),
}

# The order of the work: each line is a study, and how many of its texts (all of them, from the first on) are then there.
ROUNDS = (
    ("passages", 15), ("kept", 15), ("states", 10), ("passages", 25), ("kept", 25), ("contexts", 9), ("more", 40), ("code", 10),
    ("languages", 40), ("kept", 40), ("more", 50), ("changed", 25), ("more", 100), ("search", 5), ("kept", 50),
    ("languages", 60), ("code", 20), ("contexts", 15), ("languages", 120), ("code", 30), ("states", 15), ("contexts", 30), ("search", 10),
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    study: str
    model: str
    shard: int

    @property
    def kind(self) -> Kind:
        return KINDS[self.study]

    @property
    def cells(self) -> range:
        """Numbers of its texts."""
        return range(self.shard * self.kind.shard, (self.shard + 1) * self.kind.shard)


def steps() -> Iterator[Step]:
    """All steps, in the order in which they come."""
    done = {study: kind.first for study, kind in KINDS.items()}
    for study, until in ROUNDS:
        for shard in range(done[study] // KINDS[study].shard, until // KINDS[study].shard):
            for model in KINDS[study].models:
                yield Step(study, model, shard)
        done[study] = until


def _seconds(step: Step) -> float:
    place = next((i for i, name in enumerate(REAL) if step.model.startswith(name[:7])), len(REAL))
    return step.kind.seconds[place]


@dataclass
class State:
    """What is there: for each study and model which texts, by number, are stored."""

    folder: Path
    stored: dict[tuple[str, str], list[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> State:
        state = cls(folder)
        for study in KINDS:
            for model in KINDS[study].models:
                spans = [
                    (part.start, part.end) for part in list_parts(folder / study / "parts" / slug(model))
                ]
                state.stored[study, model] = spans
        return state

    def has(self, step: Step) -> bool:
        cells = step.cells
        spans = self.stored.get((step.study, step.model), [])
        return all(any(a <= cell < b for a, b in spans) for cell in cells)

    def count(self, study: str, model: str) -> int:
        return sum(b - a for a, b in self.stored.get((study, model), []))


@dataclass(frozen=True)
class Outlook:
    """What is left, and what it takes; `missing` says what cannot be done here and why."""

    left: list[Step]
    seconds: float
    bytes: float
    missing: list[str]


def outlook(folder: Path, models: Path, data: str | None) -> Outlook:
    """Look at what is stored, which models and texts are here, and the room on the disk."""
    state = State.of(folder)
    missing = []
    absent = {name for name, place in REAL.items() if not (models / place / "config.json").is_file()}
    missing += [
        f"the model {name} is not in {models / REAL[name]}: make real-models lays it"
        for name in sorted(absent)
    ]
    for name in changed_models.CHANGED:
        if lacks := changed_models.lacks(name, models, data):
            absent.add(name)
            missing.append(f"the model {name}: {lacks}")
    untold = set()
    for study in KINDS:
        try:
            corpus_of(study, folder, data)
        except (texts.MissingTexts, dm.DensitometerError) as error:
            untold.add(study)
            missing.append(f"the study {study}: {error}")
    left = [s for s in steps() if s.model not in absent and s.study not in untold and not state.has(s)]
    size = sum(step.kind.shard * step.kind.kilobytes * 1e3 for step in left)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 2 * size + 1e8:
        missing.append(f"disk: {free / 1e9:.2f} GB are free, {(2 * size + 1e8) / 1e9:.2f} GB are wanted")
        left = []
    return Outlook(left, sum(step.kind.shard * _seconds(step) for step in left), size, missing)


def corpus_of(study: str, folder: Path, data: str | None) -> Corpus:
    name = KINDS[study].texts
    same = [other for other, kind in KINDS.items() if kind.texts == name]
    return texts.corpus(name, (folder / own for own in (study, *same)), data)


def measure(
    folder: Path,
    models: Path,
    data: str | None,
    minutes: float | None = None,
    told: Callable[[str], None] = print,
) -> Outlook:
    """Do the steps that are left, in order, until none is left or the time is up. Ctrl-C stores what is under way."""
    folder, models = folder.resolve(), models.resolve()
    if data not in (None, "hf:"):
        data = str(Path(data).resolve())
    out = outlook(folder, models, data)
    with _names(models), _deadline(minutes) as over:
        for step in out.left:
            if over.is_set():
                break
            told(f"{step.study} {step.model} {step.cells[0]} to {step.cells[-1]}")
            if step.model in changed_models.CHANGED:
                place = Path(step.model)
                if not place.exists():
                    place.symlink_to(changed_models.make(step.model, models, data))
            if not _do(step, folder, data):
                break
    return outlook(folder, models, data)


def _do(step: Step, folder: Path, data: str | None) -> bool:
    """Run a step. False where it was stopped."""
    corpus = corpus_of(step.study, folder, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DensitometerWarning)
        try:
            dm.run_study(
                corpus, step.model, folder / step.study, workers=1, retry_failed=True, part_seconds=30.0,
                shard=f"{step.shard + 1}/{len(corpus) // step.kind.shard}", **step.kind.settings,
            )  # fmt: skip
        except KeyboardInterrupt:
            return False
    compact.compact(folder / step.study / "parts" / slug(step.model))
    return True


@contextmanager
def _names(models: Path) -> Iterator[None]:
    """Let models be loaded by the names under which they are published, so that no path is stored."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        for name, own in REAL.items():
            if (models / own).is_dir():
                (Path(place) / name).symlink_to(models / own)
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)


@contextmanager
def _deadline(minutes: float | None) -> Iterator[threading.Event]:
    """Stop, as Ctrl-C does, when the time is up."""
    over = threading.Event()

    def stop() -> None:
        over.set()
        os.kill(os.getpid(), signal.SIGINT)

    if minutes is None:
        yield over
        return
    timer = threading.Timer(60 * minutes, stop)
    timer.start()
    try:
        with suppress(KeyboardInterrupt):
            yield over
    finally:
        timer.cancel()
