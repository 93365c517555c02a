"""Fixtures of all files, and the order of the files.

Nothing heavy is imported here: the process that hands the tests out to two others runs none.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    import densitometer as dm

# Of the two processes that run the tests, and of those that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The files that take more than ten seconds, the longest first, so that no process is left with one when the other is done.
LONGEST = (
    "study", "same_bits", "report", "viewer_browser", "docs", "placement", "cli", "examples", "viewer_notebook",
    "search", "study_damage", "study_ends", "checkpoint", "plan", "importance", "analysis", "fingerprint", "raw_errors",
    "precision", "threats", "boosting", "pairs", "benchmarks", "terminal", "calibration", "state_findings", "units",
    "earlier_versions", "reconstruction", "noise", "architectures",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Fix the draws of hypothesis, and let pytest-xdist hand out files in the order below.

    `--hypothesis-profile=default` draws anew, to look for what nobody thought of. By itself
    pytest-xdist begins with the files of the most tests.
    """
    config.option.loadscopereorder = False
    hypothesis.settings.register_profile("fixed", derandomize=True)
    if not config.getoption("--hypothesis-profile"):
        hypothesis.settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """What is imported stays; else each later collection looks through its million objects, which takes half a second."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their number: packed ones hold the time, and each process must list the same tests."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `-m fast` and `-m real` a file without this marker is not imported; the imports would take each process eight seconds."""
    marker = config.option.markexpr
    if marker in ("fast", "real") and collection_path.suffix == ".py":
        return f"mark.{marker}" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.fixture(scope="session")
def make_model() -> Callable[..., dm.Model]:
    from tiny_models import make_module

    import densitometer as dm

    cache: dict[tuple[str, int], dm.Model] = {}

    def make(name: str, seed: int = 0) -> dm.Model:
        if (name, seed) not in cache:
            cache[name, seed] = dm.load_model(make_module(name, seed))
        return cache[name, seed]

    return make


@pytest.fixture(scope="session")
def demo() -> dm.Model:
    import densitometer as dm

    return dm.load_model("demo")


@pytest.fixture(scope="module", autouse=True)
def _what_a_file_registers_stays_in_it():
    from snippets import registries_kept

    with registries_kept():
        yield


@pytest.fixture(scope="module")
def rows_skipped() -> Iterator[None]:
    """Masked runs skip rows in tiny models too, where that does not pay. For a file whose numbers are of masked runs."""
    from densitometer.models.adapter import Adapter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adapter, "always_skip", True)
        yield


def __getattr__(name: str) -> Any:
    """Names of `tiny_models` that test files import from here."""
    if name not in ("BRANCH_NORMED", "CONFIGS", "IDS", "PARALLEL", "VOCABULARY", "make_module"):
        raise AttributeError(name)
    import tiny_models

    return getattr(tiny_models, name)
