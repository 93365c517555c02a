"""Imports go one way: which room may know which."""

from __future__ import annotations

import ast
from pathlib import Path

import densitometer

ROOT = Path(densitometer.__file__).parent

# Each room may import those named, and errors. Order: nothing below imports anything above it.
MAY_IMPORT = {
    "errors": set(),
    "progress": set(),
    "models": set(),
    "metrics": set(),
    "density": set(),
    "forward": {"models"},
    "fisher": {"forward"},
    "files": set(),
    "means": {"models", "files", "progress"},
    "ablation": {"forward", "means", "models"},
    "norms": {"forward"},
    "search": {"forward", "fisher", "trace", "ablation", "metrics"},
    "importance": {"models", "forward", "norms", "fisher", "search"},
    "trace": {"forward"},
    "cost": {"forward", "models"},
    "graph": {"models", "forward", "norms", "importance", "trace", "cost"},
    "reconstruction": {"models", "graph", "ablation", "means"},
    "bracket": {"density", "metrics"},
    "families": {"density", "importance", "tiles"},
    "curve": {"density", "metrics", "models"},
    "measurement": {
        "models", "forward", "graph", "ablation", "means", "reconstruction", "metrics", "density", "bracket", "families", "curve",
        "progress", "store", "check", "planning", "tiles", "viewer",  # store and viewer only to be handed to: save, show
    },
    "histogram": set(),
    "tiles": {"forward", "histogram", "models", "norms", "trace"},
    "positions": {
        "models", "forward", "importance", "graph", "ablation", "means", "reconstruction", "measurement", "metrics", "density",
        "progress", "bracket", "families",
    },
    "machine": {"files"},
    "planning": {"models", "forward", "ablation", "density", "importance", "search", "machine"},
    "check": {"models", "forward", "graph", "ablation", "importance", "metrics"},
    "calibration": {"models", "graph", "importance", "ablation", "metrics"},
    "comparison": {
        "models", "forward", "norms", "graph", "reconstruction", "metrics", "density", "families",
    },
    "store": {"measurement", "curve", "density", "files"},
    "reproduction": {"measurement", "models"},
    "plots": {"measurement", "graph", "files", "figures"},
    "corpus": set(),
    "engines": set(),
    "parts": {"files"},
    "manifest": {"files", "parts"},
    "study_store": {"files", "manifest", "parts"},
    "unigrams": set(),
    "observation": {"models", "forward", "graph", "families", "measurement", "parts", "unigrams"},
    "cell": {"models", "means", "metrics", "families", "measurement", "corpus", "observation", "parts", "progress", "unigrams"},
    "study": {"corpus", "study_store", "cell", "engines", "progress", "unigrams"},
    "analysis": {"study_store"},
    "figures": {"files"},
    "findings": {"study_store", "density", "analysis", "figures"},
    "report": {"study_store", "analysis", "findings", "figures", "files"},
    "terminal": {"measurement", "reproduction", "check", "calibration", "planning", "study_store"},
    "viewer": {
        "models", "forward", "importance", "graph", "metrics", "measurement", "positions", "store", "files", "progress",
        "tiles", "histogram",
    },
}  # fmt: skip
ANYTHING = {"cli", "__init__"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imports_of(path: Path) -> set[str]:
    depth = len(path.relative_to(ROOT).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            up = depth - node.level
            base = path.relative_to(ROOT).parts[:up]
            target = (*base, *(node.module or "").split("."))
            found.add(next(part for part in target if part) if any(target) else "__init__")
    return found


def test_every_room_imports_only_what_it_may():
    for path in sorted(ROOT.rglob("*.py")):
        room = room_of(path)
        if room in ANYTHING:
            continue
        assert room in MAY_IMPORT, f"{path.name} is a room without a place in the order"
        forbidden = imports_of(path) - MAY_IMPORT[room] - {room, "errors"}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_only_models_imports_transformers():
    for path in ROOT.rglob("*.py"):
        if "transformers" in path.read_text() and room_of(path) != "models":
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                module = node.module if isinstance(node, ast.ImportFrom) else ""
                assert "transformers" not in names
                assert not (module or "").startswith("transformers"), path
