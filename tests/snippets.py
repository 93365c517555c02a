"""Run what the documentation shows: blocks of code and commands of a Markdown page, and hold them to what they print."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from typer.testing import CliRunner

from densitometer._util import metrics
from densitometer.cli.commands import app
from densitometer.graph.importance import registry as importance
from densitometer.models import layouts

DATA = ("csv", "json", "jsonl", "tsv", "txt")  # written to a file where the block has a title
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(\S.*?)\s*-->", re.DOTALL)
_TITLE = re.compile(r'title="([\w.-]+)"')
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, title and content, the line it begins at, and why it is not run."""

    language: str
    title: str | None
    content: str
    line: int
    not_run: str | None


def blocks_of(page: str) -> list[Block]:
    """The code of a page; an indented block has no language and so is told like one that nobody names."""
    found: list[Block] = []
    marker = None
    for token in MarkdownIt("commonmark").enable("table").parse(page):
        if token.type == "html_block":
            match = _NOT_RUN.search(token.content)
            marker = match[1] if match else marker
        elif token.type in ("fence", "code_block"):
            title = _TITLE.search(token.info)
            language = (token.info.split() or [""])[0]
            line = (token.map or [0])[0] + 1
            found.append(Block(language, title[1] if title else None, token.content, line, marker))
            marker = None
        elif token.type == "inline":
            marker = None
    return found


def run_page(page: str, names: dict[str, Any]) -> None:
    """Run a page from top to bottom in the current folder: Python in one namespace, commands by the command line itself.

    A `text` block right after a Python block is what it prints; lines of a `console` block without `$` are what its
    command prints.
    """
    printed: str | None = None
    for block in blocks_of(page):
        where = f"the {block.language or 'unnamed'} block at line {block.line}"
        if block.title is not None:
            Path(block.title).write_text(block.content)
            printed = None
        elif block.not_run is not None or block.language in DATA:
            printed = None
        elif block.language == "python":
            out = io.StringIO()
            with redirect_stdout(out):
                exec(compile(block.content, where, "exec"), names)
            printed = out.getvalue()
        elif block.language == "console":
            printed = None
            for command, expected in commands_of(block.content):
                assert_printed(expected, run_command(command, expected), f"{where}: {command}")
        elif block.language == "text":
            assert printed is not None, (
                f"{where} is neither what code prints nor marked: <!-- not run: why -->"
            )
            assert_printed(block.content.splitlines(), printed, where)
            printed = None
        else:
            raise AssertionError(f"{where} is not run and not marked: <!-- not run: why -->")


def commands_of(console: str) -> list[tuple[str, list[str]]]:
    """Each command of a console block, and the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in console.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            assert found, f"a console block begins with a command, '$ ...'; got {line!r}"
            found[-1][1].append(line)
    return found


def run_command(command: str, expected: list[str]) -> str:
    """What a `densitometer` command prints; it must succeed unless an error is what is expected."""
    name, *arguments = shlex.split(command, comments=True)
    assert name == "densitometer", f"only densitometer's own commands are run; mark {command!r}"
    said = CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)
    fails = any(line.startswith("densitometer: ") for line in expected)
    assert (said.exit_code != 0) == fails, (
        f"{command}: exit code {said.exit_code}\n{said.output}\n{said.exception!r}"
    )
    return said.output


def assert_printed(expected: list[str], printed: str, where: str) -> None:
    """Hold lines to what was printed: words exactly, numbers to 2 % or their last digit. `...` stands for what is left out: lines
    where it is a line, the rest of a line at its end."""
    wanted = [line.rstrip() for line in expected if line.strip()]
    if not wanted:
        return
    got = [line.rstrip() for line in printed.splitlines() if line.strip()]
    at, gap = 0, False
    for line in wanted:
        if line.strip() == "...":
            gap = True
            continue
        ends = range(at, len(got)) if gap else range(at, min(at + 1, len(got)))
        found = next((i for i in ends if _same(line, got[i])), None)
        shown = "\n".join(got)
        assert found is not None, f"{where}: expected the line\n{line}\nbut it prints\n{shown}"
        at, gap = found + 1, False
    assert gap or at == len(got), f"{where}: prints more than is shown:\n" + "\n".join(got[at:])


def _same(wanted: str, got: str) -> bool:
    if wanted.endswith("..."):
        wanted = wanted.removesuffix("...").rstrip()
        numbers, words = len(_NUMBER.findall(wanted)), len(wanted.split())
        got = " ".join(got.split()[:words])
        if len(_NUMBER.findall(got)) != numbers:
            return False
    words = [" ".join(_NUMBER.sub("#", line).split()) for line in (wanted, got)]
    if words[0] != words[1]:
        return False
    pairs = zip(_NUMBER.findall(wanted), _NUMBER.findall(got), strict=True)
    return all(_close(a, b) for a, b in pairs)


def _close(wanted: str, got: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (wanted, got))
    digits = re.fullmatch(r"-?[\d,]*\.?(\d*)(?:[eE]([+-]?\d+))?", wanted)
    assert digits is not None
    last = 10.0 ** (int(digits[2] or 0) - len(digits[1] if "." in wanted else ""))
    return abs(a - b) <= max(0.02 * abs(a), 1.01 * last if "." in wanted or digits[2] else 0.0)


@contextmanager
def registries_kept() -> Iterator[None]:
    """What is registered meanwhile is forgotten."""
    kept = [
        (registry, registry.copy())
        for registry in (importance._REGISTRY, importance._LOCAL, metrics._REGISTRY, layouts._LAYOUTS)
    ]
    try:
        yield
    finally:
        for registry, before in kept:
            registry.clear()
            if isinstance(registry, list):
                registry.extend(before)
            else:
                registry.update(before)
