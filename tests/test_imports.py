"""The rooms of the package, and that imports go one way: which room may know which."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import densitometer

ROOT = Path(densitometer.__file__).parent

# Each room may import those named, errors and arguments. Order: nothing imports anything below it.
MAY_IMPORT = {
    "errors": set(),
    "described": set(),
    "arguments": set(),
    "progress": set(),
    "histogram": set(),
    "unigrams": set(),
    "corpus": set(),
    "engines": set(),
    "metrics": set(),
    "density": {"described"},
    "files": set(),
    "documents": set(),
    "models": {"described"},
    "machine": {"files"},
    "forward": {"models"},
    "fisher": {"models", "forward"},
    "norms": {"forward"},
    "sinks": {"forward"},
    "trace": {"forward"},
    "cost": {"forward", "models"},
    "means": {"documents", "models", "files", "progress"},
    "ablation": {"forward", "means", "models"},
    "search": {"forward", "fisher", "trace", "ablation", "metrics"},
    "importance": {"models", "forward", "norms", "fisher", "search"},
    "settings": {"density", "models", "means", "importance"},
    "graph": {"described", "models", "forward", "norms", "importance", "trace", "cost"},
    "reconstruction": {"models", "ablation", "graph", "settings"},
    "tiles": {"forward", "histogram", "models", "norms", "trace"},
    "families": {"tiles"},
    "floor": {"density"},
    "bracket": {"density", "metrics"},
    "curve": {"density", "graph", "metrics", "models"},
    "noise": {"metrics"},
    "planning": {"metrics", "models", "machine", "forward", "ablation", "search", "tiles", "families", "settings"},
    "check": {"models", "forward", "graph", "ablation", "importance", "metrics", "noise", "search", "sinks"},
    "calibration": {"metrics", "models", "ablation", "importance", "graph", "settings"},
    "measurement": {
        "progress", "metrics", "density", "models", "forward", "sinks", "means", "ablation", "importance",
        "settings", "graph", "tiles", "families", "floor", "bracket", "curve", "noise", "planning", "check",
    },
    "positions": {
        "progress", "metrics", "density", "models", "forward",
        "ablation", "importance", "graph", "bracket", "measurement", "settings",
    },
    "comparison": {"metrics", "density", "models", "forward", "norms", "graph", "reconstruction", "settings"},
    "store": {"measurement", "curve", "density", "documents", "files", "noise", "sinks"},
    "reproduction": {"models", "measurement", "settings"},
    "figures": {"files", "progress"},
    "plots": {"measurement", "graph", "figures", "sinks"},
    "viewer": {
        "progress", "histogram", "metrics", "files", "models", "forward",
        "importance", "graph", "tiles", "measurement", "positions", "store", "settings",
    },
    "parts": {"files"},
    "manifest": {"documents", "files", "parts"},
    "study_store": {"described", "files", "manifest", "parts"},
    "observation": {"models", "forward", "graph", "families", "measurement", "parts", "unigrams"},
    "cell": {
        "progress", "unigrams", "corpus", "metrics", "models",
        "means", "measurement", "parts", "observation", "settings",
    },
    "study": {"progress", "unigrams", "corpus", "engines", "models", "study_store", "cell", "settings"},
    "analysis": {"study_store", "corpus"},
    "findings": {"study_store", "density", "analysis", "figures"},
    "report": {"study_store", "analysis", "findings", "figures", "files", "progress"},
    "options": {"means"},
    "terminal": {"progress", "families", "measurement", "reproduction", "check", "calibration", "planning", "study_store", "sinks"},
}  # fmt: skip
# Above the room, but only to hand itself to (`save`, `show`), so imported when called.
HANDED_TO = {"measurement": {"store", "viewer"}}
ANYTHING = {"cli", "__init__"}


class Import(NamedTuple):
    module: str
    when_called: bool  # inside a function
    for_types: bool  # under TYPE_CHECKING


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
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


def rooms_known() -> dict[str, set[str]]:
    known: dict[str, set[str]] = {room: set() for room in map(room_of, FILES)}
    for module, path in FILES.items():
        room = room_of(module)
        known[room] |= {room_of(found.module) for found in imports_of(path)} - {room, "errors", "arguments"}
    return {room: rooms for room, rooms in known.items() if room not in ANYTHING}


def test_every_room_imports_what_it_may_and_uses_every_permission():
    known = rooms_known()
    assert known.keys() == MAY_IMPORT.keys(), "a room without a place in the order, or a place without a room"
    for room, rooms in known.items():
        may = MAY_IMPORT[room] | HANDED_TO.get(room, set())
        assert not rooms - may, f"{room} imports {sorted(rooms - may)}"
        assert not may - rooms, f"{room} may import {sorted(may - rooms)} and does not: take it out"


def test_nothing_imports_anything_below_it_in_the_order():
    above = {"errors", "arguments"}
    for room, may in MAY_IMPORT.items():
        assert may <= above, f"{room} stands above {sorted(may - above)}"
        above.add(room)
    for room, rooms in HANDED_TO.items():
        assert rooms <= MAY_IMPORT.keys()
        for module, path in FILES.items():
            if room_of(module) == room:
                early = {
                    i.module for i in imports_of(path) if room_of(i.module) in rooms and not i.when_called
                }
                assert not early, f"{module} imports {sorted(early)} before it is called"


def test_no_file_imports_itself_in_a_circle():
    graph = {
        module: {found.module for found in imports_of(path) if not (found.when_called or found.for_types)}
        for module, path in FILES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"imports go in a circle: {' <- '.join(error.args[1])}") from None


def test_only_models_imports_transformers():
    for module, path in FILES.items():
        if "transformers" in path.read_text() and room_of(module) != "models":
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                source = node.module if isinstance(node, ast.ImportFrom) else ""
                assert "transformers" not in names
                assert not (source or "").startswith("transformers"), path


def test_the_tree_of_rooms_has_each_once():
    page = (ROOT.parent / "CONTRIBUTING.md").read_text()
    tree = page.split("The rooms of `densitometer/`:")[1].split("```")[1].splitlines()[1:]
    listed = [line.split()[0] for line in tree]
    there = {path.name + "/" * path.is_dir() for path in ROOT.glob("[!.]*")} - {"__pycache__/"}
    assert sorted(listed) == sorted(there)
    assert all(len(line.split()) > 1 for line in tree)
