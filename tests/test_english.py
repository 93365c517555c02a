"""Docstrings, messages and command-line help are plain English, by rules that a machine can hold."""

from __future__ import annotations

import ast
import io
import re
import tokenize
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
MOST_COLUMNS = 100
# words that a message does not say, as patterns
UNWANTED = (
    r"(?<!there) (is|are) no (?!longer|more)", r"\btold\b", r"\basked?\b", r"\bso it is\b", r"\bcomes? to pass\b",
    r"\bscor(e|es|ed|er)\b", r"\bfault of densitometer's own\b",
)  # fmt: skip
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


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every literal that an exception or a warning is made from."""
    for node in ast.walk(tree):
        made: ast.expr | None = None
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            made = node.exc.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            made = node.args[0] if node.func.attr == "warn" else None
        if made is not None and (text := constant_text(made)) is not None:
            yield made.lineno, text


def message_faults(text: str) -> list[str]:
    """Rules that a message breaks."""
    found = [f"contains {match[0]!r}" for bad in UNWANTED if (match := re.search(bad, text))]
    # a name such as CUDA or Ray may begin a message, an ordinary word not with a capital
    if re.match(r"(A|An|The|This|That|It|There|No|Give|Cannot|Expected|Unknown|Each|Every)\b", text):
        found.append("begins with a capital")
    if text.endswith(".") and not text.endswith("..."):
        found.append("ends with a period")
    return found


def wide_lines(source: str) -> Iterator[int]:
    """Number of every line of a comment or docstring of more than MOST_COLUMNS columns.

    Lines of examples are code, and so are comments that tools read.
    """
    lines = source.split("\n")
    wide = {number for number, line in enumerate(lines, start=1) if len(line) > MOST_COLUMNS}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            first, last = node.body[0].lineno, node.body[0].end_lineno or 0
            yield from (n for n in range(first, last + 1) if n in wide and ">>>" not in lines[n - 1])
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        read_by_tools = re.match(r"# (fmt|type|noqa)", token.string)
        if token.type == tokenize.COMMENT and token.start[0] in wide and not read_by_tools:
            yield token.start[0]


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


@pytest.mark.parametrize("name", FILES)
def test_a_message_is_plain_english(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    found = [
        f"{name}:{line}: {broken}: {text}"
        for line, text in messages(tree)
        if (broken := message_faults(text))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", FILES)
def test_comments_and_docstrings_are_narrow(name):
    source = FILES[name].read_text(encoding="utf-8")
    assert not [f"{name}:{line}" for line in wide_lines(source)]


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


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("x is no number", "contains ' is no '"),
        ("weights are no part of x", "contains ' are no '"),
        ("see what was told above", "contains 'told'"),
        ("more was asked for", "contains 'asked'"),
        ("one score for each", "contains 'score'"),
        ("The file is missing", "begins with a capital"),
        ("the file is missing.", "ends with a period"),
    ],
)
def test_each_rule_of_messages_is_held(text, rule):
    assert rule in message_faults(text)


@pytest.mark.parametrize("text", ["there is no file x", "x is no longer open", "CUDA has no such device"])
def test_a_plain_message_breaks_no_rule(text):
    assert not message_faults(text)


def test_messages_of_exceptions_and_warnings_are_found():
    tree = ast.parse(
        """raise InputError(f"no {x}")\nwarnings.warn("old", Kind)\nraise KeyError(name)\nsay("other")"""
    )
    assert list(messages(tree)) == [(1, "no x"), (2, "old")]


def test_wide_comments_and_docstrings_are_found():
    source = f'def f():\n    """{"a" * 100}"""\n    x = 1  # {"b" * 100}\n    # fmt: {"c" * 100}\n'
    assert list(wide_lines(source)) == [2, 3]


def test_a_condition_that_names_nothing_is_found():
    tree = ast.parse(
        '''def f():\n    """Return one.\n\n    Raises:\n        InputError: so it is.\n    """'''
    )
    assert list(circular_conditions(tree)) == [2]


def test_a_plain_summary_breaks_no_rule():
    assert not faults("Return the importance of each head. Offsets are in tokens.")
