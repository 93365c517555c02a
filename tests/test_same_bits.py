"""Same seed, same machine, same bits: all that is public, called in two processes that hash strings differently."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

from same_bits import calls, digests

import densitometer as dm
from densitometer import analysis

# What makes no numbers of its own.
SILENT = {
    "list_importances", "list_metrics", "list_tasks", "register_importance", "register_layout", "register_metric",
    "analysis.installed_pipelines",
}  # fmt: skip


def test_every_public_call_is_held_to_it(tmp_path):
    public = {name for name in dm.__all__ if inspect.isfunction(getattr(dm, name))}
    public |= {f"analysis.{name}" for name in analysis.__all__ if inspect.isfunction(getattr(analysis, name))}
    assert set(calls(tmp_path)) == public - SILENT


def test_tables_are_grouped_in_the_order_of_their_rows():
    """Else polars gives groups in any order, and a mean over them has other last bits."""
    calls = [
        (path.name, node.lineno)
        for path in Path(dm.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "group_by"
        if "maintain_order" not in {keyword.arg for keyword in node.keywords}
    ]
    assert calls == []


def test_same_seed_same_bits(tmp_path):
    """Here, after whatever ran before, and in a fresh process that hashes strings otherwise, where two workers share the study."""
    command = [sys.executable, "same_bits.py", tmp_path / "other", "2"]
    hashed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": hashed, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    ) as child:  # fmt: skip
        one = digests(tmp_path / "one", 1)
        other = json.loads(child.communicate()[0])
    assert [name for name in one if one[name] != other[name]] == []
