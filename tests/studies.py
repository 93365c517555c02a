"""What the tests of studies share: tiny models in folders, a corpus, and rows to compare."""

from __future__ import annotations

import subprocess
from pathlib import Path

import polars
import pytest
import transformers

import densitometer as dm
from densitometer.models.source import DEMO_FOLDER
from densitometer.study import run as study_room

TEXTS = [
    "The captain looked at the sea and the white whale",
    "one two three four five six seven eight nine ten eleven",
    "Le capitaine regardait la mer",
    "It rained for three days on the roof of the old house, and nobody came",
    "too short",
    "La baleine blanche nage sous le navire et",
    "A law is a rule that everyone has to follow",
]
SETTINGS = {
    "importance": ("l1", "fisher"), "window": "words:4", "sizes": (0.01, 0.1, 0.4, 1.0), "part_seconds": 0.02,
    "traces": "top", "states": True,
}  # fmt: skip


def save_model(folder: Path, seed: int) -> str:
    """A tiny random Llama with the demo's tokenizer, and other sizes for each seed."""
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER / "demo")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=44, num_hidden_layers=2 + seed,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rows(study: dm.Study, *without: str) -> list[polars.DataFrame]:
    """Every table, in an order of its own, without what a clock says; each row must be there once."""
    keys = ["model", "text_id", "piece", "importance"]
    measurements = study.measurements().drop("seconds", *without)
    assert measurements.select(keys).is_duplicated().sum() == 0
    places = {
        "measurements": (measurements, keys),
        "curves": (study.curves(), [*keys, "kind", "refined", "n_edges", "size"]),
        "components": (study.components(), [*keys, "size", "layer", "kind", "head"]),
        "states": (study.states(), [*keys, "kind", "size"]),
        "traces": (study.traces(), [*keys, "place"]),
    }
    for table, key in places.values():
        assert table.select(key).is_duplicated().sum() == 0
    return [table.sort(key) for table, key in places.values()]


def assert_same(one: dm.Study, other: dm.Study, *without: str) -> None:
    """The same rows with the same numbers, bit for bit."""
    for mine, theirs in zip(rows(one, *without), rows(other, *without), strict=True):
        assert mine.equals(theirs)
        assert len(mine)


@pytest.fixture
def nothing_starts(monkeypatch):
    """Whatever an engine would start is refused here, so that a bound that fails does no harm."""

    def refused(*arguments, **keywords):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(study_room, "open_pool", refused)
