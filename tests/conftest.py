"""Tiny random models of every kind of layout, with pairwise different sizes, and the bundled ones."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from snippets import registries_kept

import densitometer as dm
from densitometer.models.adapter import Adapter

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # the suite runs in two processes
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of those, and of the processes that tests start

IDS = [3, 88, 41, 7, 59, 26, 11]  # 7 tokens
VOCABULARY = 101
_SHARED = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 3,
    "intermediate_size": 44,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
_FOUR = {"hidden_size": 24, "num_attention_heads": 4}
_NO_INTERMEDIATE = {k: v for k, v in _SHARED.items() if k != "intermediate_size"}

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_SHARED, **_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_SHARED, **_GROUPED),
    "mistral-window": lambda: transformers.MistralConfig(**_SHARED, **_GROUPED, sliding_window=3),
    "neox": lambda: transformers.GPTNeoXConfig(
        **_SHARED, hidden_size=32, num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "neox-sequential": lambda: transformers.GPTNeoXConfig(**_SHARED, **_FOUR, use_parallel_residual=False),
    "gemma2": lambda: transformers.Gemma2Config(**_SHARED, **_GROUPED, sliding_window=3),
    "olmo2": lambda: transformers.Olmo2Config(**_SHARED, **_FOUR, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "opt": lambda: transformers.OPTConfig(
        **_NO_INTERMEDIATE, **_FOUR, ffn_dim=34, word_embed_proj_dim=24, max_position_embeddings=64
    ),
    "granite": lambda: transformers.GraniteConfig(
        **_SHARED, **_FOUR, num_key_value_heads=2, residual_multiplier=0.3, attention_multiplier=0.4,
        embedding_multiplier=3.0, logits_scaling=2.0,
    ),
    "cohere": lambda: transformers.CohereConfig(**_SHARED, **_FOUR, num_key_value_heads=2),
    "phi": lambda: transformers.PhiConfig(**_SHARED, hidden_size=32, num_attention_heads=4),
    "mixtral": lambda: transformers.MixtralConfig(**_SHARED, **_FOUR, num_key_value_heads=2, num_local_experts=5),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **_SHARED, **_GROUPED, num_local_experts=5, num_experts_per_tok=2, sliding_window=3
    ),
}  # fmt: skip

PARALLEL = ("neox", "cohere", "phi")
BRANCH_NORMED = ("gemma2", "olmo2")


def make_module(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model with weights large enough that every part matters, norms and biases too."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


# The files that take more than ten seconds, the longest first, so that no process is left with one when the other is done.
LONGEST = (
    "real_models", "study", "same_bits", "report", "viewer_browser", "docs", "placement", "cli", "examples", "viewer_notebook",
    "search", "study_damage", "study_ends", "checkpoint", "plan", "importance", "analysis", "fingerprint", "raw_errors",
    "precision", "threats", "boosting", "pairs", "benchmarks", "terminal", "calibration", "state_findings", "units",
    "earlier_versions", "reconstruction", "noise", "architectures",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist hand out files in the order below; by itself it begins with those of the most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """What is imported stays; else each later collection looks through its million objects, which takes half a second."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their number: packed ones hold the time, and each process must list the same tests."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `-m fast` a file without this marker is not imported; the imports would take each process eight seconds."""
    if config.option.markexpr == "fast" and collection_path.suffix == ".py":
        return "mark.fast" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.fixture(scope="session")
def make_model() -> Callable[..., dm.Model]:
    cache: dict[tuple[str, int], dm.Model] = {}

    def make(name: str, seed: int = 0) -> dm.Model:
        if (name, seed) not in cache:
            cache[name, seed] = dm.load_model(make_module(name, seed))
        return cache[name, seed]

    return make


@pytest.fixture(scope="session")
def demo() -> dm.Model:
    return dm.load_model("demo")


@pytest.fixture(scope="module", autouse=True)
def _what_a_file_registers_stays_in_it():
    with registries_kept():
        yield


@pytest.fixture(scope="module")
def rows_skipped() -> Iterator[None]:
    """Masked runs skip rows in tiny models too, where that does not pay. For a file whose numbers are of masked runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adapter, "always_skip", True)
        yield
