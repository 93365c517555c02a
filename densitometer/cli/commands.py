"""Commands of the command line. Each makes one library call and prints its result.

Exit codes are 0 for success, 1 if the work failed and 2 for wrong arguments. An error is one line
on stderr.
"""

from __future__ import annotations

import gc
import io
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._util.files import check_writable, write_file
from .._util.progress import visible
from ..errors import DensitometerError, DensitometerWarning, InputError
from .options import by_commas, load_keywords, parsed, takes_loading, takes_settings

if TYPE_CHECKING:
    import polars
    from rich.console import Console

    from ..models.loading import Model

app = typer.Typer(
    name="densitometer",
    help="How much of a language model's computation does a prediction need?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# The class of click, or of typer's copy of click, which typer does not export.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# Largest text. No model's context holds as much.
_MOST_BYTES = 10_000_000
_MOST_WARNINGS = 5
_DEBUG = "Show the traceback of an error."
TextArgument = Annotated[
    str, typer.Argument(metavar="TEXT", help="A text, @FILE for a file's, or - for standard input.")
]
ModelOption = Annotated[
    str,
    typer.Option("-m", "--model", help="Model: demo, demo-parallel, demo-branchnorm, a folder or a Hub id."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help=_DEBUG)]
# Settings of `takes_settings`.
SettingsOptions = dict[str, Any]
NO_SETTINGS: SettingsOptions = {}
# Options of `takes_loading`.
LoadingOptions = dict[str, Any]
NO_LOADING: LoadingOptions = {}
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SOURCE", help="Column that has another name in the file: text=content."),
]
DelimiterOption = Annotated[
    str | None,
    typer.Option(
        metavar="CHARACTER", help="Between the fields of a .csv or .tsv, or tab. By default it is found."
    ),
]
HtmlOption = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Write a page to look at: one file, no network.")
]


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Print errors and warnings as one line each on stderr, and exit with the code for the error.

    Warnings of other packages are not shown.
    """
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", DensitometerWarning)
                warnings.showwarning = _show_warnings()
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
    except DensitometerError as error:
        if debug:
            traceback.print_exc()
        # the name of the class is also that of a page in docs/errors/
        _print_error(f"{error} [{type(error).__name__}]")
        wrong_argument = isinstance(error, ValueError | TypeError)
        raise typer.Exit(2 if wrong_argument else 1) from None
    except KeyboardInterrupt as stop:
        if str(stop):
            _print_error(str(stop))
        raise typer.Exit(130) from None
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit(0) from None
    except OSError as error:
        # from standard output; errors of files are StorageError or InputError
        if debug:
            traceback.print_exc()
        _drop_output()
        _print_error(f"cannot write to standard output: {error.strerror or error}")
        raise typer.Exit(1) from None
    except typer.Exit:
        raise
    # Any other exception is a bug of this package. It is still printed as one line, not as a
    # traceback.
    except Exception as error:
        if debug:
            traceback.print_exc()
        _print_error(
            f"a fault of densitometer, {type(error).__name__}: {error}; run it with --debug and report what it prints"
        )
        raise typer.Exit(1) from None


def _show_warnings() -> Callable[..., None]:
    """Return a function that prints the first few warnings, then one line for all others.

    A corpus may cause thousands of warnings.
    """
    shown = count(1)

    def show(message: object, *_: object) -> None:
        number = next(shown)
        if number <= _MOST_WARNINGS:
            _print_error(f"warning: {message}")
        elif number == _MOST_WARNINGS + 1:
            _print_error("warning: further warnings are not shown")

    return show


def _print_error(message: str) -> None:
    """Print a message as one line on stderr, in its encoding."""
    # typer.echo would always write UTF-8
    print(f"densitometer: {visible(' '.join(message.split()))}", file=sys.stderr, flush=True)


def _print_line(line: str) -> None:
    """Print a line on standard output in its encoding. typer.echo would always write UTF-8."""
    print(visible(line), flush=True)


def _drop_output() -> None:
    """Discard the buffer of standard output, so that Python does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _read_text(text: str) -> str:
    """Return the text of the argument TEXT: itself, the content of @FILE, or standard input."""
    if text != "-" and not text.startswith("@"):
        return text
    name = "standard input" if text == "-" else repr(text[1:])
    literal = ""
    if text != "-":
        literal = ". A text that begins with @ comes by standard input: echo '@...' | densitometer ... -"
    if "\0" in text or len(text) > 4096:
        raise InputError(
            f"cannot read {name[:60]}...: it is too long for a path, or has a null character{literal}"
        )
    try:
        if text == "-":
            if sys.stdin is None:
                raise InputError("standard input is closed; give a text or @FILE")
            content = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with Path(text[1:]).open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {name}: {error.strerror or error}; give the path of a text file{literal}"
        ) from error
    if len(content) > _MOST_BYTES:
        raise InputError(
            f"{name} has more than {_MOST_BYTES:,} bytes, more than any context holds; give a shorter part of it"
        )
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start}); convert it, or give a text file"
        ) from error


def _load(name: str, loading: LoadingOptions) -> Model:
    from ..models.loading import load_model

    return load_model(name, **load_keywords(loading))


def _columns(column: list[str] | None) -> dict[str, str]:
    """Return the options --column as names used here to names in the source.

    Raises:
        InputError: one is not NAME=SOURCE.
    """
    mapped = {}
    for pair in column or []:
        name, equals, source = pair.partition("=")
        if not equals:
            raise InputError(f"--column must be NAME=SOURCE, such as text=content; got {pair!r}")
        mapped[name] = source
    return mapped


def _console() -> Console:
    """Return a console without markup, as wide as the terminal, `COLUMNS` or 80."""
    from rich.console import Console

    width = shutil.get_terminal_size((80, 24)).columns
    return Console(width=width, markup=False, highlight=False, emoji=False)


def _print(what: object) -> None:
    from .terminal import Printed

    _console().print(Printed(what))


def _write_json(path: Path, document: dict[str, object]) -> None:
    import json

    from .._util.files import write_file

    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    write_file(path, lambda file: file.write(text.encode()))


def _print_version(wanted: bool) -> None:
    """Print the version and exit if --version was given."""
    if wanted:
        from .. import __version__

        _print_line(f"densitometer {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """How much of a language model's computation does a prediction need?"""


@app.command()
@takes_settings(
    importance="l1,fisher", sizes="27 sizes", baselines="inverse,random", by="size", eps="0.1", seed="0",
    attention="recomputed", means="", granularity="block", target="", against="", counterfactual="",
)  # fmt: skip
@takes_loading()
def measure(
    text: TextArgument,
    model: ModelOption = "demo",
    position: Annotated[int, typer.Option(help="Token whose next-token prediction is measured.")] = -1,
    settings: SettingsOptions = NO_SETTINGS,
    full: Annotated[
        bool, typer.Option("--full", help="Print every size, column and baseline, not the first screen.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the measurement as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw the curve: .png, .svg, .pdf.")
    ] = None,
    html: HtmlOption = None,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """How much of the model's computation does the next token need?"""
    with _errors(debug):
        check_writable(json, plot, html)
        granularity = settings.get("granularity", "block")
        if html is not None and granularity != "block":
            raise InputError(
                f"--html shows graphs by block; got --granularity {granularity}. Leave out one of the two options"
            )
        if plot is not None:
            from ..plots import check_extension

            check_extension(plot)
        content = _read_text(text)
        from ..measuring.measurement import measure as measure_text

        keywords = parsed(settings)
        measurement = measure_text(_load(model, loading), content, position=position, **keywords)
        from .terminal import show_measurement

        _print(show_measurement(measurement, full))
        if json is not None:
            measurement.save(json)
            _print_line(f"measurement written to {json}")
        if plot is not None:
            from ..plots import save_plot

            save_plot(measurement, plot)
            _print_line(f"curve drawn to {plot}")
        if html is not None:
            from ..viewer.page import measurement_page, save_page

            save_page(measurement_page(measurement), html)
            _print_line(f"page written to {html}; open it in a browser")


@app.command(short_help="Look at traces on a local page.")
@takes_settings(
    importance="l1,fisher", sizes="27 sizes", baselines="inverse,random", by="size", eps="0.1", seed="0", attention="recomputed",
    means="", target="", against="", counterfactual="",
)  # fmt: skip
@takes_loading()
def explore(
    what: Annotated[
        str, typer.Argument(metavar="[TEXT | MEASUREMENT]", help="A text, or a file that --json wrote.")
    ] = "The old captain looked at the sea and said that the white whale",
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", help="Model, as for measure. By default demo, or the model that was measured."
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Another model to compare with, best of the same shape. May be repeated.",
        ),
    ] = None,
    settings: SettingsOptions = NO_SETTINGS,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1. 0 is any that is free.")] = 0,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """Show traces on a local page: change their size, follow edges, run chosen edges."""
    with _errors(debug):
        from ..viewer.server import bind, serve

        # before the work, so that a port in use is reported at once
        listening = bind(port)
        with listening:
            from ..viewer.answers import Answers, opened

            if sys.stderr.isatty():
                typer.echo("loading and measuring ...", err=True)
            content = what if what.endswith(".json") else _read_text(what)
            measurements, models = opened(
                content, lambda name: _load(name, loading), parsed(settings), model, beside or []
            )
            answers = Answers(models)
            for measurement in measurements:
                _print_line(measurement.summary())
            serve(
                answers.payload(measurements),
                answers,
                listening,
                lambda address: _print_line(f"open {address}   (Ctrl-C ends it)"),
            )


@app.command(short_help="Measure every token of a text.")
@takes_settings(
    importance="l1", sizes="27 sizes", eps="0.1", seed="0", attention="recomputed", means="", granularity="block", target="",
    against="", counterfactual="",
)  # fmt: skip
@takes_loading()
def tokens(
    text: TextArgument,
    model: ModelOption = "demo",
    settings: SettingsOptions = NO_SETTINGS,
    generate: Annotated[
        int | None,
        typer.Option(metavar="N", help="Let the model write up to N tokens more, measured as it writes."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature of --generate. 0 is greedy.")
    ] = 0.0,
    csv: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the table as CSV.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="Write everything as JSON.")] = None,
    html: HtmlOption = None,
    traces: Annotated[
        int, typer.Option(help="With --html, number of tokens whose trace opens: those that need most.")
    ] = 64,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """How much of the model's computation does each token's prediction need?"""
    with _errors(debug):
        check_writable(csv, json, html)
        from ..measuring.positions import measure_positions, positions_document
        from ..measuring.settings import MeasureSettings
        from .terminal import show_positions

        content, keywords = _read_text(text), parsed(settings)
        if html is not None and "counterfactual" in keywords:
            raise InputError(
                "--html opens the trace of every token, and before the first one that differs from the counterfactual there is "
                "none; leave out one of the two options"
            )
        if generate is not None and "counterfactual" in keywords:
            raise InputError(
                "--counterfactual needs a token for each of the text, and --generate writes new ones; leave out one of the two"
            )
        used = MeasureSettings(**{"importance": "l1", "baselines": (), **keywords})
        if html is not None and used.granularity != "block":
            raise InputError(
                f"--html shows graphs by block; got --granularity {used.granularity}. Leave out one of the two options"
            )
        units = "components" if used.granularity == "component" else "edges"
        loaded, stopped = _load(model, loading), None
        names, generation = used.importance, {}
        if generate is None:
            table = measure_positions(loaded, content, **keywords)
        else:
            written = {"n_tokens": generate, "temperature": temperature, **keywords}
            table, stopped = _draw_generation(loaded, content, list(names), written)
            generation = {"generate": generate, "temperature": temperature}
        for name in names:
            _print(show_positions(table, name, generate is not None and name == names[0], units))
        if csv is not None:
            from .._util.files import write_file

            write_file(csv, lambda file: table.write_csv(file))
            _print_line(f"table written to {csv}")
        if json is not None:
            _write_json(json, positions_document(loaded, table, used, **generation))
            _print_line(f"densities written to {json}")
        if html is not None:
            from ..viewer.page import save_page, self_contained
            from ..viewer.payload import TracesOfTokens, tokens_payload

            behind = TracesOfTokens(loaded, table, used, traces)
            payload = tokens_payload(table, label=content, traces=behind)
            save_page(self_contained(payload), html)
            _print_line(
                f"page written to {html}; open it in a browser. The traces of {len(payload['views'])} of "
                f"{table['position'].n_unique()} tokens are in it"
            )
        if stopped is not None:
            raise stopped


def _draw_generation(
    model: Model, prompt: str, names: list[str], settings: dict[str, Any]
) -> tuple[polars.DataFrame, KeyboardInterrupt | None]:
    """Print each token that the model writes once it is measured. Return the table of all tokens.

    After Ctrl-C the table has the tokens measured until then, and the interruption is returned too.
    """
    import polars

    from ..measuring.positions import measure_generation
    from .terminal import Printed, shaded

    console, frames, stopped = _console(), [], None
    try:
        for frame in measure_generation(model, prompt, **settings):
            frames.append(frame)
            first = frame.filter(polars.col("importance") == names[0])
            for token, size in first.select("token", polars.col("size_at").fill_null(1.0)).iter_rows():
                console.print(Printed(shaded(token, size)), end="", soft_wrap=True)
    except KeyboardInterrupt as interruption:
        if not frames:
            raise
        stopped = interruption
    console.print("\n")
    table = polars.concat(frames)
    order = polars.col("importance").replace_strict({name: i for i, name in enumerate(names)})
    return table.sort(order, "position"), stopped


@app.command(short_help="Check every identity that measurements rely on.")
@takes_loading()
def doctor(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bundled name, a folder or a Hub id.")],
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the check-up as JSON.")] = None,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """Check the identities that every measurement relies on. Exit with 1 if one fails."""
    with _errors(debug):
        check_writable(json)
        from ..measuring.check import check_model
        from .terminal import show_report

        report = check_model(_load(model, loading))
        _print(show_report(report))
        if json is not None:
            _write_json(json, report.to_document())
            _print_line(f"check-up written to {json}")
        if not report.passed:
            raise typer.Exit(1)


@app.command(short_help="Print what measuring takes, before any weight is loaded.")
@takes_loading("tokenizer", "quantization")
def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bundled name, a folder or a Hub id.")],
    length: Annotated[int, typer.Option(help="Number of tokens of a text.")],
    texts: Annotated[int, typer.Option(help="Number of texts, measured one after the other.")] = 1,
    importance: Annotated[str, typer.Option(help="One importance or several, by commas.")] = "l1",
    time: Annotated[
        bool, typer.Option("--time", help="Load the model and measure two short texts, for a rough time.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="Memory that may be used, such as 24GB. For several devices: cuda=24GB,cpu=64GB. By default what is free.",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the plan as JSON.")] = None,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """Print what measuring texts takes: edges, memory and disk. Only --time loads weights."""
    with _errors(debug):
        check_writable(json)
        from ..measuring.planning import plan as plan_texts
        from .terminal import show_plan

        names = by_commas(importance)
        budgets: Any = memory
        if memory is not None and "=" in memory:
            budgets = dict(part.strip().partition("=")[::2] for part in memory.split(","))
        planned = plan_texts(model, length, texts, names, time=time, memory=budgets, **loading)
        _print(show_plan(planned))
        if json is not None:
            _write_json(json, planned.to_document())
            _print_line(f"plan written to {json}")


@app.command(short_help="Write what each edge carries on average over a corpus.")
@takes_loading()
def means(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="As `study` takes it: a text file, one text per line, ...")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="A .safetensors file to write.")
    ],
    model: ModelOption = "demo",
    column: ColumnOption = None,
    delimiter: DelimiterOption = None,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """Write the mean vectors of edges over a corpus, for `measure --means`."""
    with _errors(debug):
        check_writable(output)
        from ..graph.reference_means import reference_means
        from ..study.corpus import read_corpus

        texts = read_corpus(corpus, columns=_columns(column), delimiter=delimiter).usable()
        averages = reference_means(_load(model, loading), texts)
        averages.save(output)
        _print_line(
            f"means over {averages.provenance['n_texts']:,} texts, {averages.provenance['n_tokens']:,} tokens, "
            f"written to {output}"
        )


@app.command(short_help="Measure each importance on models whose smallest trace is known.")
def calibrate(
    importance: Annotated[
        str | None, typer.Option(help="One importance or several, by commas. All by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    debug: DebugOption = False,
) -> None:
    """Print the edges that each importance needs on models whose smallest trace is known."""
    with _errors(debug):
        from ..measuring.calibration import calibrate as calibrate_importances
        from .terminal import show_calibration

        names = None if importance is None else by_commas(importance)
        _print(show_calibration(calibrate_importances(names, seed)))


@app.command(short_help="Find the components that a whole task needs.")
@takes_loading()
def task(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A bundled task (induction, indirect-object, ...), or a corpus with columns text, target and against.",
        ),
    ],
    model: ModelOption = "demo",
    unit: Annotated[str, typer.Option(help="component, for whole heads and MLPs, or edge.")] = "component",
    importance: Annotated[str, typer.Option(help="Importance by which units are ranked.")] = "fisher",
    eps: Annotated[float, typer.Option(help="Largest distance of the mean faithfulness from 1.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    csv: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write all units in their order as CSV.")
    ] = None,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """Find the smallest set of heads and MLPs, or of edges, that suffices for a task's prompts."""
    with _errors(debug):
        if csv is not None:
            check_writable(csv)
        from ..study.tasks import checked_unit, measure_task
        from .terminal import show_task

        kind = checked_unit(unit)
        found = measure_task(
            _load(model, loading), prompts, unit=kind, importance=importance, eps=eps, seed=seed
        )
        _print(show_task(found))
        if csv is not None:
            write_file(csv, lambda file: file.write(found.components.write_csv().encode()))
            _print_line(f"{found.n_units:,} units written to {csv}")


@app.command(short_help="Measure every text of a corpus under every model.")
@takes_settings(
    importance="l1", sizes="27 sizes", baselines="", by="size", eps="0.1", seed="0", attention="recomputed", granularity="block",
    target="", against="", counterfactual="",
)  # fmt: skip
@takes_loading()
def study(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS",
            help="A .txt, .jsonl, .json, .csv, .tsv, .parquet or .xlsx file (also .gz, .zst), a folder, hf:NAME[:SPLIT], - or short-texts.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The study's folder.")],
    model: Annotated[
        list[str],
        typer.Option("-m", "--model", help="As for measure, or NAME@REVISION. May be repeated."),
    ],
    settings: SettingsOptions = NO_SETTINGS,
    window: Annotated[
        str | None,
        typer.Option(
            help="Window of each text: words:40, tokens:32, sliding:32:16, positions, sweep:8,16,32. By default the whole text."
        ),
    ] = None,
    unit: Annotated[
        str, typer.Option(help="What a text of a .txt file is: line, paragraph or file.")
    ] = "line",
    column: ColumnOption = None,
    delimiter: DelimiterOption = None,
    traces: Annotated[
        str, typer.Option(help="Keep each trace's edges: none, top (1,000) or whole.")
    ] = "none",
    states: Annotated[
        bool,
        typer.Option("--states", help="Keep what the unembedding reads, of the model and of each trace."),
    ] = False,
    unigrams: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS",
            help="Corpus whose token frequencies are counted. By default the study's other texts.",
        ),
    ] = None,
    means: Annotated[
        str | None,
        typer.Option(metavar="CORPUS", help="Removed edges contribute their means over this corpus."),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="Python module to import first. It may register importances and metrics."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="Engine that runs the workers: local or ray.")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Worker processes. By default one per GPU, or one.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads per worker.")] = 1,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster that runs already.")] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="GPUs per worker. With Ray also a fraction. By default 1 where there are GPUs."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Measure only the I-th of N equal shares of the texts.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure failed texts again.")] = False,
    part_seconds: Annotated[float, typer.Option(help="Seconds between writes of results.")] = 10.0,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """Measure every text of a corpus under every model.

    The same command again resumes a study that was stopped, and measures what was added to its
    corpus.
    """
    with _errors(debug):
        from ..study.run import run_study
        from .terminal import show_study

        if plugin:
            # a module in the current folder is found, as with `python -c "import ..."`
            sys.path.append(os.getcwd())

        keywords = load_keywords(loading)
        # both are settings of a study of their own
        places = {key: keywords.pop(key) for key in ("dtype", "device") if key in keywords}
        measured = run_study(
            corpus, model, output, **parsed(settings), window=window,
            unit=unit,  # type: ignore[arg-type]  # checked by read_corpus
            columns=_columns(column), traces=traces,
            delimiter=delimiter, states=states, unigrams=unigrams, means=means, options=keywords, **places,
            plugins=plugin or [],
            threads=threads, engine=engine, workers=workers, address=address, gpus_per_worker=gpus_per_worker,
            shard=shard, retry_failed=retry_failed, part_seconds=part_seconds,
        )  # fmt: skip
        _print(show_study(measured))
        _print_line(f"study in {output}")
        nothing = measured.sql(
            "select coalesce(model || '@' || revision, model) as name from measurements group by all "
            "having count(*) filter (error is null) = 0 order by all"
        )["name"].to_list()
        if failed := [name for name in nothing if name in model]:
            _print_error(f"{', '.join(failed)} failed on every text; see the errors above")
            raise typer.Exit(1)


@app.command(short_help="Write a report of a study as one page.")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The study's folder.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="The page: one file, no network.")
    ] = Path("report.html"),
    tables: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every table as CSV here too, and findings.json.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every figure as SVG and as PDF here too.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="NAME=MODEL",
            help="Call a model of the study NAME in the report (repeatable).",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write a report of a study as one page.

    It has claims, figures and intervals, and what would have refuted each claim.
    """
    with _errors(debug):
        from ..report.page import report as write_report

        names = {}
        for given in model or []:
            name, equals, of = given.partition("=")
            if not (name and equals and of):
                raise InputError(f"-m {given!r} names no model of the study; expected NAME=MODEL")
            names[of] = name
        write_report(folder, output, tables, figures, names)
        _print_line(f"report written to {output}; open it in a browser")
        for where, what in ((tables, "tables"), (figures, "figures")):
            if where is not None:
                _print_line(f"{what} written to {where}")


@app.command(short_help="Run a saved measurement again from its file.")
@takes_loading()
def replay(
    result: Annotated[Path, typer.Argument(help="A measurement that --json wrote.")],
    json: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the new measurement as JSON.")
    ] = None,
    loading: LoadingOptions = NO_LOADING,
    debug: DebugOption = False,
) -> None:
    """Run a saved measurement again from its file, and print what differs.

    Exit with 1 if the difference is more than rounding.
    """
    with _errors(debug):
        check_writable(json)
        from ..measuring.json_io import load_measurement
        from ..measuring.measurement import tolerance_of
        from ..measuring.replay import difference
        from ..measuring.replay import replay as run_again
        from .terminal import show_difference

        before = load_measurement(result)
        model = None
        if loading:
            about = before.model
            of_before = {"dtype": about.dtype, "revision": about.revision}
            known = {key: value for key, value in of_before.items() if value is not None}
            model = _load(about.name, known | loading)
        after = run_again(before, model)
        if json is not None:
            after.save(json)
        differences = difference(before, after)
        _print(show_difference(differences))
        tolerance = tolerance_of(after.model.dtype)
        if not differences.missing.is_empty() or differences.largest_tv > tolerance:
            raise typer.Exit(1)


@app.command(short_help="Print what differs between two measurements.")
def diff(
    one: Annotated[Path, typer.Argument(help="A measurement that --json wrote.")],
    other: Annotated[Path, typer.Argument(help="Another measurement that --json wrote.")],
    debug: DebugOption = False,
) -> None:
    """Print what differs between two measurements: settings, versions and every number.

    Exit with 1 if a number differs.
    """
    with _errors(debug):
        from ..measuring.json_io import load_measurement
        from ..measuring.replay import difference
        from .terminal import show_difference

        differences = difference(load_measurement(one), load_measurement(other))
        _print(show_difference(differences))
        if not differences.same_numbers:
            raise typer.Exit(1)


def _of_a_dash(error: Any) -> str:
    """Write a hint how to give a text that begins with -, if a command took it as an option."""
    takes_text = error.ctx is not None and any(p.name in ("text", "what") for p in error.ctx.command.params)
    if type(error).__name__ != "NoSuchOption" or not takes_text:
        return ""
    return f"A text that begins with - goes behind --: {error.ctx.command_path} -- TEXT. "


def main() -> None:
    """Run the `densitometer` command."""
    # Garbage collection during imports took a tenth of the start (4.9 s without this line, 4.4 with
    # it).
    gc.set_threshold(100_000)
    for name in ("stdout", "stderr"):
        # the shell may have closed the stream
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # A character that the terminal's encoding lacks is replaced, so that no result is lost to it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
    except _UsageError as wrong:
        error: Any = wrong
        if type(error).__name__ == "NoArgsIsHelpError":
            # prints the help
            error.show()
        else:
            command = "densitometer" if error.ctx is None else error.ctx.command_path
            _print_error(f"{error.format_message().rstrip('.')}. {_of_a_dash(error)}See {command} --help")
        sys.exit(error.exit_code)
    sys.exit(code)
