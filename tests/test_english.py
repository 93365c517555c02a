"""Docstring summaries and command-line help are plain English, by rules that a machine can hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import densitometer
from densitometer.cli.commands import app

pytestmark = pytest.mark.docs

PACKAGE = Path(densitometer.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
MOST_WORDS = 25
# a summary that begins so needs its signature to be understood
STARTS = ("Of ", "The same", "(", "While this", "Those ", "That ")
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
HELP_MAKERS = {"Argument", "Option", "Typer", "command", "callback"}


def sentences(text: str) -> list[str]:
    """Sentences of a text, without the white space around them."""
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`\"*])", " ".join(text.split()))


def summary(docstring: str) -> str:
    """First paragraph of a docstring, on one line."""
    return " ".join(docstring.strip().split("\n\n")[0].split())


def constant_text(node: ast.expr) -> str | None:
    """Text of a string literal or f-string, with "x" for each value; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(constant_text(part) or "x" for part in node.values)
    return None


def summaries(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring's summary."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, summary(docstring)


def circular_conditions(tree: ast.Module) -> Iterator[int]:
    """Line of every docstring with a condition that names nothing, as in "InputError: so it is."."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and re.search(r": so it is\b", ast.get_docstring(node) or ""):
            yield node.body[0].lineno


def helps(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every `help=` and `short_help=` that typer prints."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        for keyword in node.keywords:
            text = constant_text(keyword.value)
            if called in HELP_MAKERS and keyword.arg in ("help", "short_help") and text is not None:
                yield keyword.value.lineno, text


def faults(text: str) -> list[str]:
    """Rules that a summary or help text breaks."""
    found = [f"begins with {start!r}" for start in STARTS if text.startswith(start)]
    found += [f"contains {bad!r}" for bad in (" is no ", " are no ", "so it is") if bad in text]
    if ";" in text:
        found.append("has a semicolon")
    longest = max(len(sentence.split()) for sentence in sentences(text))
    if longest > MOST_WORDS:
        found.append(f"has a sentence of {longest} words")
    return found


def failures(path: Path) -> list[str]:
    """Each broken rule of a file, as "file:line: rules: text"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    place = path.relative_to(PACKAGE.parent)
    found = [
        f"{place}:{line}: {', '.join(broken)}: {text}"
        for line, text in [*summaries(tree), *helps(tree)]
        if (broken := faults(text))
    ]
    return found + [f"{place}:{line}: a condition is 'so it is'" for line in circular_conditions(tree)]


@pytest.mark.parametrize("name", FILES)
def test_a_summary_and_a_help_text_are_plain_english(name):
    found = failures(FILES[name])
    assert not found, "\n" + "\n".join(found)


def test_what_a_command_prints_with_help_is_plain_english():
    for name, command in get_command(app).commands.items():
        for option in command.params:
            text = getattr(option, "help", None) or ""
            assert not faults(text), f"{name} {option.name}: {faults(text)}: {text}"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Of everything random.", "begins with 'Of '"),
        ("The same for a batch.", "begins with 'The same'"),
        ("(F,) bool, True for edges that are on.", "begins with '('"),
        ("While this lasts, no hook runs.", "begins with 'While this'"),
        ("A head is no unit.", "contains ' is no '"),
        ("Heads are no units.", "contains ' are no '"),
        ("Raised where so it is.", "contains 'so it is'"),
        ("Return one; write two.", "has a semicolon"),
        ("Return " + "one " * 25 + "value.", "has a sentence of 27 words"),
    ],
)
def test_each_rule_is_held(text, rule):
    assert rule in faults(text)


def test_a_condition_that_names_nothing_is_found():
    tree = ast.parse(
        '''def f():\n    """Return one.\n\n    Raises:\n        InputError: so it is.\n    """'''
    )
    assert list(circular_conditions(tree)) == [2]


def test_a_plain_summary_breaks_no_rule():
    assert not faults("Return the importance of each head. Offsets are in tokens.")
