"""The examples run, through the public face only."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
from snippets import registries_kept

pytestmark = pytest.mark.docs

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
MAY_IMPORT = {"copy", "densitometer", "numpy", "polars", "torch", "transformers"}


def _name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_an_example_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with registries_kept():
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_an_example_uses_the_public_face_only(path):
    tree = ast.parse(path.read_text())
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= MAY_IMPORT
    assert not re.search(r"\bdm\._|\.session\b", path.read_text())


def test_there_are_five_with_cells_and_each_is_in_the_documentation():
    page = (FOLDER.parent / "docs" / "examples.md").read_text()
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert path.read_text().count("\n# %% ") >= 4, path.name
        assert f'--8<-- "examples/{path.name}"' in page
