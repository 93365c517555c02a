"""The public list is what is there, and importing it costs little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import densitometer

pytestmark = pytest.mark.fast


def test_every_public_name_can_be_imported_and_is_listed_once():
    assert densitometer.__all__ == sorted(densitometer.__all__)
    assert set(densitometer.__all__) == set(densitometer._HOMES)
    for name in densitometer.__all__:
        assert getattr(densitometer, name) is not None
        assert name in dir(densitometer)


def test_public_names_are_documented():
    for name in densitometer.__all__:
        assert getattr(densitometer, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = densitometer.no_such_name


def test_import_and_help_do_not_import_torch():
    code = (
        "import sys, densitometer, densitometer.cli.commands; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'matplotlib', 'polars', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_type_checkers_and_the_reference_see_every_public_name():
    tree = ast.parse(Path(densitometer.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    named = {alias.name: node.module for node in block.body for alias in node.names}
    assert named.keys() == set(densitometer.__all__)
    for name, home in named.items():
        assert getattr(densitometer, name).__module__ == f"densitometer.{home}"
