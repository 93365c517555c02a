"""Calls everything public that makes numbers and gives a digest of what came, by name. `test_same_bits.py` runs it here and in another process."""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import polars
import torch
from test_analysis import rows as made_rows
from test_boosting import NAMES, divided

import densitometer as dm
from densitometer import analysis

import studies  # isort: skip

TEXT = "The captain looked at the sea"
OTHER = "The sailor looked at the white whale"
TEXTS = ("The storm was seen from the ship", "It was the white whale")
SIZES = (0.01, 0.1, 0.4, 1.0)
CLOCK = {
    "seconds",
    "created",
    "session",
    "available",
}  # what a clock or the machine's memory says
WORDS = [
    "sea",
    "whale",
    "ship",
    "sailor",
    "captain",
    "storm",
    "harbour",
    "island",
    "sail",
    "anchor",
    "compass",
    "wave",
]


def told(value: Any) -> Any:
    """Every bit of a value, readable; a float's repr is exact."""
    if isinstance(value, polars.DataFrame):
        return {column.name: repr(column.to_list()) for column in value if column.name not in CLOCK}
    if isinstance(value, numpy.ndarray | torch.Tensor):
        array = value.numpy() if isinstance(value, torch.Tensor) else value
        return [array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if dataclasses.is_dataclass(value):
        kept = (f.name for f in dataclasses.fields(value) if f.name[0] != "_")  # not what a result refers to
        return told({name: getattr(value, name) for name in kept})
    if isinstance(value, Mapping):
        return {str(k): told(v) for k, v in value.items() if k not in CLOCK}
    if isinstance(value, list | tuple | set):
        return [told(v) for v in value]
    assert value is None or isinstance(value, str | int | float | bool), type(value)
    return repr(value)


def calls(folder: Path, workers: int = 1) -> dict[str, Callable[[], Any]]:
    model = dm.load_model("demo")
    graph = dm.build_graph(model, TEXT, importance="fisher")
    trace = graph.trace(size=0.2)

    @functools.cache
    def measured() -> dm.Measurement:
        return dm.measure(model, TEXT, importance=["l1", "fisher"], sizes=SIZES, seed=3)

    def saved() -> dm.Measurement:
        measured().save(folder / "m.json")
        return dm.load_measurement(folder / "m.json")

    def means() -> dm.ReferenceMeans:
        return dm.reference_means(model, [TEXT, OTHER])

    def loaded_means() -> dm.ReferenceMeans:
        means().save(folder / "means.safetensors")
        return dm.load_means(folder / "means.safetensors")

    def study() -> dm.Study:
        if (folder / "study").exists():
            return dm.open_study(folder / "study")
        texts = polars.DataFrame(
            {
                "id": WORDS,
                "text": [f"The {word} was seen from the old {other}" for word, other in zip(WORDS, WORDS[::-1], strict=True)],
                "language": ["en", "fr"] * 6,
                "pair": [str(i // 2) for i in range(12)],
            }
        )  # fmt: skip
        settings = {
            "importance": ["l1", "cosine"],  # `fisher` is in what measures one text
            "sizes": SIZES,
            "states": True,
            "traces": "top",
            "workers": workers,
        }
        return dm.run_study(texts, ["demo", "demo-parallel"], folder / "study", **settings)

    def steps() -> polars.DataFrame:
        steps = polars.col("model").replace_strict({"a": "step1", "b": "step10"})
        return made_rows().with_columns(revision=steps, model=polars.lit("m"))

    numbers: dict[str, Callable[[], Any]] = {
        "load_model": lambda: model.module.state_dict(),
        "build_graph": lambda: {
            name: dm.build_graph(model, TEXT, importance=name, seed=3).edges()
            for name in dm.list_importances()
            if name != "learned"  # `best` for longer
        },
        "measure": measured,
        "load_measurement": saved,
        "replay": lambda: dm.replay(saved()),
        "difference": lambda: dm.difference(measured(), dm.measure(model, OTHER, sizes=SIZES)),
        "measure_positions": lambda: dm.measure_positions(model, TEXT, importance=["l1", "fisher"]),
        "measure_answer": lambda: dm.measure_answer(model, TEXT, " white whale", sizes=SIZES),
        "measure_generation": lambda: list(
            dm.measure_generation(model, TEXT, n_tokens=4, temperature=0.8, seed=3)
        ),
        "load_task": lambda: [dm.load_task(name, 9, seed=3) for name in dm.list_tasks()],
        "measure_task": lambda: dm.measure_task(model, [TEXT, OTHER, *TEXTS], importance="fisher", seed=3),
        "reconstruct": lambda: dm.reconstruct(model, graph, [trace]),
        "transfer": lambda: dm.transfer(model, TEXT, OTHER, seed=3),
        "overlap": lambda: dm.overlap(trace, graph.trace(size=0.4)),
        "calibrate": lambda: dm.calibrate("l1", seed=3),
        "check_model": lambda: dm.check_model(model),
        "plan": lambda: dm.plan("demo", 9),
        "reference_means": means,
        "load_means": loaded_means,
        "run_study": lambda: studies.rows(study()),
        "open_study": lambda: studies.rows(study()),
        "analysis.distribution": lambda: analysis.distribution(made_rows()),
        "analysis.correlation_across_models": lambda: analysis.correlation_across_models(made_rows()),
        "analysis.factors": lambda: analysis.factors(made_rows(), seed=3),
        "analysis.trees": lambda: analysis.trees(divided(), names=NAMES, seed=3),
        "analysis.shap_differences": lambda: analysis.shap_differences(divided(), names=NAMES, seed=3),
        "analysis.training": lambda: analysis.training(steps(), seed=3),
        "analysis.with_frequencies": lambda: analysis.with_frequencies(made_rows()),
        "analysis.with_properties": lambda: analysis.with_properties(study().measurements()),
        "analysis.with_classes": lambda: analysis.with_classes(study().measurements()),
        "analysis.named": lambda: analysis.named(made_rows()),
        "analysis.describe": lambda: (
            analysis.describe(study()).drop("seconds").sort("model", "text_id", "importance")
        ),
        "analysis.with_size_between": lambda: (
            analysis.with_size_between(study(), study().measurements())
            .drop("seconds")
            .sort("model", "text_id", "importance")
        ),
        "analysis.aligned_texts": lambda: analysis.aligned_texts(study().measurements(), seed=3),
        "analysis.state_geometry": lambda: analysis.state_geometry(study().states(), seed=3),
        "analysis.unigram_knowledge": lambda: analysis.unigram_knowledge(
            study().curves(), study().measurements(), seed=3
        ),
        "analysis.curve_quartiles": lambda: analysis.curve_quartiles(study().curves()),
        "analysis.component_shares": lambda: analysis.component_shares(study().components()),
        "analysis.resources": lambda: analysis.resources(study().curves()),
    }
    return numbers


def digests(folder: Path, workers: int) -> dict[str, str]:
    """A digest of what each call gives, by its name."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, call in calls(folder, workers).items():
            text = json.dumps(told(call()))
            assert len(text) > 60, f"{name} told nothing: {text}"
            found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


if __name__ == "__main__":
    gc.freeze()  # what is imported stays
    print(json.dumps(digests(Path(sys.argv[1]), int(sys.argv[2]))))
