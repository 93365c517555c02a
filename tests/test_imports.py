"""The storeys of the package: a file imports only its own storey and lower ones."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import densitometer

pytestmark = pytest.mark.fast

ROOT = Path(densitometer.__file__).parent

# The rule, as CONTRIBUTING.md has it: each storey stands on those before it. The viewer stands on measuring, plots and the command line on all.
STOREYS = ("errors", "_util", "models", "graph", "measuring", "study", "analysis", "report")
BELOW = {name: set(STOREYS[: i + 1]) for i, name in enumerate(STOREYS)} | {
    "viewer": {*STOREYS[: STOREYS.index("measuring") + 1], "viewer"},
    "plots": {*STOREYS, "plots"},
    "cli": {*STOREYS, "viewer", "plots", "cli"},
}
# `Measurement.show` hands the measurement on when it is called, and the notebook's explorer hands it on for its picture.
HANDED_TO = {"densitometer.measuring.measurement": "viewer", "densitometer.viewer.notebook": "plots"}
STARTS_PROCESSES = r"(multiprocessing|subprocess|ray)\b"


class Import(NamedTuple):
    module: str
    when_called: bool  # inside a function
    for_types: bool  # under TYPE_CHECKING


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def storey_of(module: str) -> str:
    return (*module.split("."), "__init__")[1]


def imports_of(path: Path) -> set[Import]:
    package = path.relative_to(ROOT.parent).parts[:-1]
    return set(_imports(ast.parse(path.read_text()), package, when_called=False, for_types=False))


def _imports(
    parent: ast.AST, package: tuple[str, ...], when_called: bool, for_types: bool
) -> Iterator[Import]:
    for node in ast.iter_child_nodes(parent):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join((*base, node.module) if node.module else base)
            inner = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else source for name in inner]
        for name in names:
            if name.split(".")[0] == ROOT.name:
                yield Import(name, when_called, for_types)
        yield from _imports(
            node,
            package,
            when_called or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
            for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)),
        )


def test_a_file_imports_only_its_own_storey_and_lower_ones():
    seen = set()
    for module, path in FILES.items():
        storey = storey_of(module)
        if storey == "__init__":
            continue
        seen.add(storey)
        for found in imports_of(path):
            into = storey_of(found.module)
            if HANDED_TO.get(module) == into:
                assert found.when_called, f"{module} imports {found.module} before it is called"
            else:
                assert into in BELOW[storey] or into == "__init__", f"{module} imports {found.module}"
    assert seen == BELOW.keys()


def test_no_file_imports_itself_in_a_circle():
    graph = {
        module: {found.module for found in imports_of(path) if not (found.when_called or found.for_types)}
        for module, path in FILES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"imports go in a circle: {' <- '.join(error.args[1])}") from None


def _imported_from_elsewhere(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name for name in names if name.split(".")[0] != ROOT.name}


def test_only_models_imports_transformers():
    for module, path in FILES.items():
        known = {name.split(".")[0] for name in _imported_from_elsewhere(path)}
        assert "transformers" not in known or storey_of(module) == "models", module


def test_only_study_starts_processes():
    starting = {
        module
        for module, path in FILES.items()
        if any(re.match(STARTS_PROCESSES, name) for name in _imported_from_elsewhere(path))
    }
    assert {storey_of(module) for module in starting} == {"study"}, starting


def test_few_entries_stand_beside_the_folders():
    beside = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert len(beside) <= 9
    assert beside == {"__init__.py", "errors.py", "plots.py", "py.typed"}


def test_the_tree_of_contributing_is_that_of_the_package():
    page = (ROOT.parent / "CONTRIBUTING.md").read_text()
    rule = page.split("**The rule:**")[1].split("\n\n")[0]
    assert " < ".join(STOREYS).replace("errors <", "errors, _util <").replace("< _util <", "<") in " ".join(
        rule.split()
    )
    tree = page.split("The storeys of `densitometer/`:")[1].split("```")[1].splitlines()[1:]
    listed, folder = set(), ""
    for line in tree:
        name = line.split()[0]
        if line.startswith("  "):
            listed.add(f"{folder}{name}")
        else:
            folder = name if name.endswith("/") else ""
            listed.add(name)
    there = set()
    for path in ROOT.rglob("*"):
        own = path.relative_to(ROOT).as_posix()
        if "__pycache__" in own or (path.name == "__init__.py" and path.parent != ROOT):
            continue
        inner = path.relative_to(ROOT).parts
        if len(inner) == 1 or (len(inner) == 2 and inner[0] in SHOWN):
            there.add(own + "/" * path.is_dir())
    assert listed == there


SHOWN = ("_util", "graph", "measuring", "study", "report", "cli")
