"""Same seed, same machine, same bits: all that is public, called in two processes that hash strings differently."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

from same_bits import calls

import densitometer as dm
from densitometer import analysis

# What makes no numbers of its own.
SILENT = {
    "list_importances", "list_metrics", "register_importance", "register_layout", "register_metric",
    "analysis.installed_pipelines",
}  # fmt: skip


def test_every_public_call_is_held_to_it(tmp_path):
    public = {name for name in dm.__all__ if inspect.isfunction(getattr(dm, name))}
    public |= {f"analysis.{name}" for name in analysis.__all__ if inspect.isfunction(getattr(analysis, name))}
    assert set(calls(tmp_path)) == public - SILENT


def test_same_seed_same_bits(tmp_path):
    children = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        child = subprocess.Popen(
            [sys.executable, "same_bits.py", folder], cwd=Path(__file__).parent, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": seed, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        children.append(child)
    one, other = (json.loads(child.communicate()[0]) for child in children)
    assert [name for name in one if one[name] != other[name]] == []
