"""The command line: arguments to one library call to a printed result. No logic of its own.

Exit codes: 0 done; 1 the work failed; 2 the arguments are wrong. An error is one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import DensitometerError, InputError, StorageError

if TYPE_CHECKING:
    from .models.loading import Model

app = typer.Typer(
    name="densitometer",
    help="How much of a language model's computation does a prediction need?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DEBUG = "Show the traceback of an error."
TextArgument = Annotated[
    str, typer.Argument(metavar="TEXT", help="A text, @FILE for a file's, or - for standard input.")
]
ModelOption = Annotated[
    str, typer.Option("-m", "--model", help="demo, demo-parallel, demo-branchnorm, a folder or a Hub id.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help=_DEBUG)]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; by default as the model was saved.")
]
HtmlOption = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Write a page to look at: one file, no network.")
]
DeviceOption = Annotated[str | None, typer.Option(help="Where to run it: cpu, cuda, cuda:1, mps.")]


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One clear line on stderr and the exit code of the contract."""
    try:
        yield
    except DensitometerError as error:
        if debug:
            raise
        typer.echo(f"densitometer: {' '.join(str(error).split())}", err=True)
        wrong_argument = isinstance(error, ValueError | TypeError)
        raise typer.Exit(2 if wrong_argument else 1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _read_text(text: str) -> str:
    """TEXT is a string, @file or -."""
    if text == "-":
        return sys.stdin.read().removesuffix("\n")
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text(encoding="utf-8").removesuffix("\n")
        except OSError as error:
            raise InputError(f"cannot read {text[1:]!r}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{text[1:]!r} is not UTF-8 text (byte {error.start})") from error
    return text


def _load(name: str, dtype: str | None, device: str | None) -> Model:
    from .models.loading import load_model

    keywords = {k: v for k, v in {"dtype": dtype, "device": device}.items() if v is not None}
    return load_model(name, **keywords)


def _print(what: object) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 132
    Console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty()).print(what)


def _check_writable(*paths: Path | None) -> None:
    """Refuse before the work what would fail after it."""
    for path in paths:
        if path is None:
            continue
        parent = path.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK) or path.is_dir():
            raise StorageError(
                f"cannot write {str(path)!r}: give a path in a folder that exists and that you may write to"
            )


@app.command()
def measure(
    text: TextArgument,
    model: ModelOption = "demo",
    importance: Annotated[str, typer.Option(help="One score or several, by commas.")] = "l1",
    position: Annotated[int, typer.Option(help="Token whose next-token prediction is measured.")] = -1,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    by: Annotated[str, typer.Option(help="Traces by size or by importance threshold.")] = "size",
    attention: Annotated[str, typer.Option(help="Attention weights: recomputed, or frozen.")] = "recomputed",
    means: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Removed edges leave these means (densitometer means)."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the measurement as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw the curve: .png, .svg, .pdf.")
    ] = None,
    html: HtmlOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    debug: DebugOption = False,
) -> None:
    """How much of the model's computation does the next token need?"""
    with _errors(debug):
        _check_writable(json, plot, html)
        if plot is not None:
            from .plots import check_extension

            check_extension(plot)
        from .measurement import measure as measure_text

        content = _read_text(text)
        reference = None
        if means is not None:
            from .means import load_means

            reference = load_means(means)
        measurement = measure_text(
            _load(model, dtype, device),
            content,
            importance=[name.strip() for name in importance.split(",") if name.strip()],
            position=position,
            seed=seed,
            attention=attention,  # type: ignore[arg-type]  # measure refuses what is neither; so with `by`
            ablation="zero" if reference is None else "mean",
            means=reference,
            by=by,  # type: ignore[arg-type]
        )
        from .terminal import show_measurement

        _print(show_measurement(measurement))
        if json is not None:
            measurement.save(json)
            typer.echo(f"measurement written to {json}")
        if plot is not None:
            from .plots import save_plot

            save_plot(measurement, plot)
            typer.echo(f"curve drawn to {plot}")
        if html is not None:
            from .viewer.page import measurement_page, save_page

            save_page(measurement_page(measurement), html)
            typer.echo(f"page written to {html}; open it in a browser")


@app.command()
def explore(
    what: Annotated[
        str, typer.Argument(metavar="[TEXT | MEASUREMENT]", help="A text, or a file that --json wrote.")
    ] = "The old captain looked at the sea and said that the white whale",
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="By default demo, or the model that was measured.")
    ] = None,
    importance: Annotated[str, typer.Option(help="One score or several, by commas.")] = "l1,fisher",
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; 0 is any that is free.")] = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    debug: DebugOption = False,
) -> None:
    """Look at traces on a local page: move the size, follow edges, take some out and run what is left."""
    with _errors(debug):
        from .viewer.server import bind, serve

        listening = bind(port)  # a port in use is told before the work
        with listening:
            from .viewer.answers import Answers, opened

            typer.echo("loading and measuring ...", err=True)
            content = what if what.endswith(".json") else _read_text(what)
            names = [name.strip() for name in importance.split(",") if name.strip()]
            measurement, loaded = opened(content, lambda name: _load(model or name, dtype, device), names)
            answers = Answers(loaded)
            typer.echo(measurement.summary())
            serve(
                answers.payload(measurement),
                answers,
                listening,
                lambda address: typer.echo(f"open {address}   (Ctrl-C ends it)"),
            )


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bundled name, a folder or a Hub id.")],
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    debug: DebugOption = False,
) -> None:
    """Hold a model to the identities that every measurement relies on; exit 1 where one fails."""
    with _errors(debug):
        from .check import check_model
        from .terminal import show_report

        report = check_model(_load(model, dtype, device))
        _print(show_report(report))
        if not report.passed:
            raise typer.Exit(1)


@app.command()
def means(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A text file, one text per line.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="A .safetensors file to write.")
    ],
    model: ModelOption = "demo",
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    debug: DebugOption = False,
) -> None:
    """What each edge carries on average over a corpus, for `measure --means`."""
    with _errors(debug):
        _check_writable(output)
        from .means import reference_means

        texts = [line for line in _read_text(f"@{corpus}").splitlines() if line.strip()]
        found = reference_means(_load(model, dtype, device), texts)
        found.save(output)
        typer.echo(
            f"means over {found.provenance['n_texts']:,} texts, {found.provenance['n_tokens']:,} tokens, written to {output}"
        )


@app.command()
def calibrate(
    importance: Annotated[
        str | None, typer.Option(help="One score or several, by commas; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    debug: DebugOption = False,
) -> None:
    """What each score asks for on models whose smallest trace is known."""
    with _errors(debug):
        from .calibration import calibrate as calibrate_scores
        from .terminal import show_calibration

        names = None if importance is None else [n.strip() for n in importance.split(",") if n.strip()]
        _print(show_calibration(calibrate_scores(names, seed)))


def main() -> None:
    """The `densitometer` command."""
    app()
