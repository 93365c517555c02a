"""Mutation testing: break one place of a module at a time, and see whether the module's own tests notice.

    python tools/mutants.py measuring.density graph.growth --sample 30 --seed 1
    python tools/mutants.py measuring.density:17 measuring.density:88     # these again

A mutant lives only in the memory of a forked process, which compiles the changed syntax tree in place of the file; no file
is written, so a kill at any moment leaves nothing behind. What is heavy to import is imported once, before the forks.

Not mutated: annotations, docstrings, decorators, messages of errors, and `strict=` of zip, an assertion that changes nothing
while it holds.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.machinery
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SLOW_SCORES = "not fisher_information and not random_projections and not bound_is_never_below"
TESTS = {  # of each module: what judges it, quick ones first
    "measuring.density": ["tests/test_density.py"],
    "graph.growth": ["tests/test_trace.py"],
    "_util.metrics": ["tests/test_metrics.py"],
    "graph.graph": ["tests/test_graph.py", "tests/test_trace.py"],
    "graph.importance.registry": ["tests/test_graph.py", "tests/test_importance.py", "-k", SLOW_SCORES],
    "measuring.reconstruct": ["tests/test_reconstruction.py", "tests/test_means.py"],
    "graph.cost": ["tests/test_trace.py"],
    "measuring.bisection": ["tests/test_density.py"],
}
FAULT = 70  # exit code of a fork in which not the tests but this tool went wrong
OPTIONS = [
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "--tb=no",
    "--assert=plain",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
}  # fmt: skip


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    changed: Any = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=[first, *rest]):
            for other in COMPARISONS[type(first)]:
                changed = copy.deepcopy(node)
                changed.ops = [other(), *rest]
                yield changed
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            changed.op = ARITHMETIC[type(op)]()
            yield changed
        case ast.BoolOp(op=op):
            changed.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield changed
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield changed.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1 if isinstance(value, int) else 2 * value or 1.0)
        case ast.Constant(value=str(value)):
            yield ast.Constant(value + "-mutated")
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Continue() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case (
            ast.If(test=ast.Name() | ast.Call() | ast.Attribute())
            | ast.IfExp(test=ast.Name() | ast.Attribute())
        ):
            changed.test = ast.UnaryOp(ast.Not(), changed.test)
            yield changed
        case ast.Call(args=args, keywords=keywords):
            for i in [i for i, keyword in enumerate(keywords) if keyword.arg != "strict"]:
                changed = copy.deepcopy(node)
                del changed.keywords[i]
                yield changed
            if len(args) > 1:
                changed = copy.deepcopy(node)
                del changed.args[-1]
                yield changed


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node that may be mutated, with the parent, field and index where it stands."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            asserts = isinstance(child, ast.keyword) and child.arg == "strict"
            if not isinstance(child, ast.AST) or docstring or asserts:
                continue
            yield node, field, i if isinstance(value, list) else None, child
            if not isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                yield from places(child)


def mutants(path: Path) -> Iterator[tuple[str, ast.Module]]:
    """Description and tree of each mutant. The tree is one and the same: use it before the next is asked for."""
    tree = ast.parse(path.read_text("utf-8"))
    for parent, field, i, node in list(places(tree)):
        for other in replacements(node):
            before, after = (" ".join(ast.unparse(n).split())[:90] for n in (node, other))
            ast.fix_missing_locations(ast.copy_location(other, node))
            for value in (other, node):  # put there, and back
                if i is None:
                    setattr(parent, field, value)
                else:
                    getattr(parent, field)[i] = value
                if value is other:
                    yield f"{path.name}:{getattr(node, 'lineno', 0)}  {before}  ->  {after}", tree


class Changed(importlib.machinery.SourceFileLoader):
    """Loads a module from a tree in place of its file, wherever the import system asks for it."""

    def __init__(self, name: str, path: Path, code: Any) -> None:
        super().__init__(name, str(path))
        self.code = code

    def get_code(self, fullname: str) -> Any:
        return self.code

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname == self.name:
            return importlib.machinery.ModuleSpec(fullname, self, origin=self.path)
        return None


def judge(
    arguments: list[str], limit: int, loader: Changed | None = None, report: Path | None = None
) -> tuple[int, float]:
    """The exit code of pytest in a forked process, -SIGXCPU where it took more than `limit` seconds of processor time, which
    does not depend on what else runs; and the seconds it took."""
    child = os.fork()
    if child == 0:
        code = FAULT
        try:
            import hypothesis
            import pytest

            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            hypothesis.settings.register_profile(
                "found-is-enough",
                derandomize=True,
                database=None,
                phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
            )
            hypothesis.settings.load_profile("found-is-enough")
            if loader is not None:
                sys.meta_path.insert(0, loader)
            silence = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(silence, stream)
            code = int(pytest.main([*OPTIONS, *arguments]))
            if report is not None:
                report.write_text("\n".join(sys.modules), "utf-8")
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if (code := os.waitstatus_to_exitcode(status)) == FAULT:
        sys.exit("pytest could not be run in a fork")
    return code, usage.ru_utime + usage.ru_stime


def warm_up(names: list[str]) -> None:
    """Import what the tests import, save the package and the tests themselves."""
    ours = {"densitometer", "conftest", "__main__", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name.split(".")[0] not in ours:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)


def try_mutants(module: str, numbers: list[int], sample: int, seed: int) -> tuple[int, int]:
    """Mutants tried and killed."""
    path = (ROOT / "densitometer").joinpath(*module.split(".")).with_suffix(".py")
    name = f"densitometer.{module}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "modules"
        if judge(TESTS[module], 600, report=report)[0] != 0:
            sys.exit(f"{module}: its tests fail without any mutant; mend them first")
        warm_up(report.read_text("utf-8").split("\n"))
    unchanged = compile(ast.parse(path.read_text("utf-8")), str(path), "exec", dont_inherit=True)
    code, seconds = judge(TESTS[module], 600, Changed(name, path, unchanged))
    if code != 0:
        sys.exit(f"{module}: its tests fail on the unchanged module, loaded as mutants are")
    limit = 10 + int(3 * seconds)
    total = sum(1 for _ in mutants(path))
    chosen = set(numbers or random.Random(seed).sample(range(total), min(sample, total)))
    killed = 0
    for number, (description, tree) in enumerate(mutants(path)):
        if number not in chosen:
            continue
        changed = Changed(name, path, compile(tree, str(path), "exec", dont_inherit=True))
        code, _ = judge(TESTS[module], limit, changed)
        killed += code != 0
        verdict = {0: "SURVIVED", -signal.SIGXCPU: "timed out"}.get(code, "killed")
        print(f"{verdict:9} {module}:{number}  {description}", flush=True)
    print(f"{module}: {killed} of {len(chosen)} killed, {total} mutants in all", flush=True)
    return len(chosen), killed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "modules", nargs="*", help="module, or module:number of one mutant; all of them by default"
    )
    parser.add_argument("--sample", type=int, default=30, help="mutants of a module, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wanted: dict[str, list[int]] = {}
    for word in options.modules or TESTS:
        module, _, number = word.partition(":")
        if module not in TESTS:
            parser.error(f"no tests are named for {module!r}; expected one of {', '.join(TESTS)}")
        wanted.setdefault(module, []).extend([int(number)] if number else [])
    os.chdir(ROOT)
    results = [try_mutants(name, numbers, options.sample, options.seed) for name, numbers in wanted.items()]
    tried, killed = (sum(column) for column in zip(*results, strict=True))
    print(f"{killed} of {tried} mutants killed, {100 * killed / max(tried, 1):.1f} %")


if __name__ == "__main__":
    main()
