"""Models made from those at hand, each by a fixed recipe: weights rounded to four bits, a fine-tuned model, training checkpoints.

    SmolLM2-135M-rounded-again   the dequantised weights of SmolLM2's blocks, rounded to four bits once more
    demo-rounded                 the weights of demo's blocks, which are of 16 bits, rounded to four
    SmolLM2-135M-fine-tuned      SmolLM2 after 300 steps of LoRA on the Declaration of Human Rights in French, German and Spanish
    demo-anew-step...            a model of demo's shape, trained anew on WikiText-2's validation file and kept at eight points

They are written once, into a folder beside the real models, and are too large to be committed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import texts
import torch
import transformers

STEPS = (0, 12, 25, 50, 100, 200, 400, 800)
ROUNDED = {"SmolLM2-135M-rounded-again": "smollm2", "demo-rounded": "demo"}
TUNED = {"SmolLM2-135M-fine-tuned": "smollm2"}
TRAINED = tuple(f"demo-anew-step{step}" for step in STEPS)
CHANGED = (*ROUNDED, *TUNED, *TRAINED)

TRAINED_ON = "wikitext2-valid.txt"
BITS, GROUP = 4, 32
TUNING_STEPS, TUNING_WINDOW = 300, 64
BATCH, WINDOW = 16, 128


def place_of(name: str, models: Path) -> Path:
    return models / "changed" / name


def lacks(name: str, models: Path, data: str | None) -> str:
    """What keeps a changed model from being made here. Empty if nothing does."""
    if (place_of(name, models) / "config.json").is_file():
        return ""
    base = (ROUNDED | TUNED).get(name, "demo")
    if base != "demo" and not (models / base / "config.json").is_file():
        return f"its base is not in {models / base}: make real-models lays it"
    try:
        if name not in ROUNDED:
            texts.file(data, texts.DECLARATION if name in TUNED else TRAINED_ON)
    except texts.MissingTexts as error:
        return str(error)
    return ""


def make(name: str, models: Path, data: str | None) -> Path:
    """Write a changed model, unless it is there.

    Args:
        name: one of CHANGED.
        models: folder of the real models; `changed/NAME` is written in it.
        data: folder with the texts that are trained on.

    Raises:
        MissingTexts: such a text is not there.
    """
    place = place_of(name, models)
    if not (place / "config.json").is_file():
        recipe: Callable[[str, Path, str | None], None]
        recipe = _rounded if name in ROUNDED else _tuned if name in TUNED else _trained
        recipe(name, models, data)
    return place


def _rounded(name: str, models: Path, data: str | None) -> None:
    model, tokenizer = _base(ROUNDED[name], models)
    with torch.no_grad():
        for part, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in part:
                module.weight.copy_(rounded(module.weight))
    _write(model, tokenizer, place_of(name, models))


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """The nearest of 15 levels, evenly from -max to max of each group of 32 inputs.

    Args:
        weight: (outputs, inputs). The last group of a row may be smaller.
    """
    levels = 2 ** (BITS - 1) - 1
    groups = torch.nn.functional.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    step = groups.abs().amax(-1, keepdim=True) / levels
    nearest = (groups / step.clamp(min=1e-30)).round() * step
    return nearest.flatten(1)[:, : weight.shape[1]]


def _tuned(name: str, models: Path, data: str | None) -> None:
    import peft

    articles = [row["text"] for row in texts.declaration(data) if row["language"] in ("fr", "de", "es")]
    model, tokenizer = _base(TUNED[name], models)
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    ids = numpy.array([i for text in articles for i in tokenizer(text + "\n")["input_ids"]])
    _fit(wrapped, ids, (1, TUNING_WINDOW), TUNING_STEPS, 5e-4)
    _write(wrapped.merge_and_unload(), tokenizer, place_of(name, models))


def _trained(name: str, models: Path, data: str | None) -> None:
    """All checkpoints at once, as one training gives them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import train_demo

    text = train_demo.without_unknown(
        train_demo.undo_wikitext(texts.file(data, TRAINED_ON).read_text("utf-8"))
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(train_demo.OUT / "demo")
    ids = numpy.array(tokenizer(text)["input_ids"])
    torch.manual_seed(train_demo.SEEDS["demo"])
    model = train_demo.build("demo")
    _write(model, tokenizer, place_of(TRAINED[0], models))
    for step in _fit_and_stop(model, ids, (BATCH, WINDOW), STEPS[1:], 3e-3):
        _write(model, tokenizer, place_of(f"demo-anew-step{step}", models))


def _fit(model: torch.nn.Module, ids: numpy.ndarray, shape: tuple[int, int], steps: int, rate: float) -> None:
    for _ in _fit_and_stop(model, ids, shape, [steps], rate):
        pass


def _fit_and_stop(
    model: torch.nn.Module,
    ids: numpy.ndarray,
    shape: tuple[int, int],
    stops: tuple[int, ...] | list[int],
    rate: float,
) -> Iterator[int]:
    """Train on random windows by AdamW, warmed up for 20 steps, and give each step of `stops` when it is done."""
    generator = numpy.random.default_rng(7)
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.1
    )
    rows, window = shape
    model.train()
    for step in range(1, stops[-1] + 1):
        optimiser.param_groups[0]["lr"] = rate * min(1.0, step / 20)
        starts = generator.integers(len(ids) - window, size=rows)
        batch = torch.from_numpy(numpy.stack([ids[start : start + window] for start in starts]))
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step in stops:
            model.eval()
            yield step
            model.train()
    model.eval()


def _base(name: str, models: Path) -> tuple[Any, Any]:
    import densitometer as dm

    folder = Path(dm.__file__).parent / "models/demo/demo" if name == "demo" else models / name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def _write(model: Any, tokenizer: Any, place: Path) -> None:
    """The folder, whole or not at all."""
    begun = place.with_name(place.name + ".begun")
    shutil.rmtree(begun, ignore_errors=True)
    model.save_pretrained(begun)
    tokenizer.save_pretrained(begun)
    config = begun / "config.json"
    # nothing of where the base was loaded from
    config.write_text(
        json.dumps(
            {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}, indent=2
        )
    )
    begun.rename(place)
