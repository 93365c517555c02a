"""Every public name has an example in its docstring, and the example is true."""

from __future__ import annotations

import doctest
import io

import pytest
import torch
from snippets import registries_kept

import densitometer as dm

pytestmark = pytest.mark.docs

RULES = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", dm.__all__)
def test_the_example_of_a_public_name_is_true(name, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"dm": dm, "model": demo, "torch": torch}
    found = doctest.DocTestFinder(recurse=False).find(getattr(dm, name), name, globs=names)
    assert any(test.examples for test in found), f"{name} has no example"
    told = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=RULES)
    with registries_kept():
        for test in found:
            runner.run(test, out=told.write)
    assert not runner.failures, told.getvalue()
