"""Write docs/reference/command-line.md from the `--help` of every command.

    python tools/command_reference.py

A test holds the page to what the commands say today.
"""

from __future__ import annotations

from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from densitometer.cli.commands import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "command-line.md"
HEAD = """# The command line

Made from `--help` by `tools/command_reference.py`; a test holds it to that.

TEXT is a string, `@file` or `-` for standard input. Exit codes: 0 done; 1 the work failed; 2 the arguments are wrong; 130
stopped by Ctrl-C. An error is one line on stderr that ends with its [class](../errors/index.md); `--debug` shows the traceback.
"""


def command_reference() -> str:
    """The page."""
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb"})
    names: list[str] = list(get_command(app).commands)  # type: ignore[attr-defined]
    parts = [HEAD]
    for name in names:
        said = runner.invoke(app, [name, "--help"], prog_name="densitometer")
        assert said.exit_code == 0, said.output
        lines = [line.rstrip() for line in said.stdout.strip().split("\n")]
        parts.append("\n".join([f"## densitometer {name}", "", "```text", *lines, "```", ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(command_reference())
