"""Settings of a measurement as command-line options, declared once for all commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError

# Type, help text and metavar of each option, by the name of `measure`'s argument. A command gets
# the options that the user gave as `settings`; the others keep the default of the function that it
# calls. --help shows that default without importing the function, and a test compares the two.
OPTIONS: dict[str, tuple[type, str, str | None]] = {
    "importance": (str, "One importance or several, by commas.", None),
    "sizes": (str, "Shares of the edges, by commas (importances with --by threshold).", "S,S,..."),
    "baselines": (str, "Any of inverse, random, residual, window, by commas.", None),
    "by": (str, "Cut traces by size or by importance threshold.", None),
    "eps": (float, "Total variation at which size_at is placed.", None),
    "seed": (int, "Random seed.", None),
    "attention": (str, "Attention weights: recomputed or frozen.", None),
    "means": (Path, "Means that stand in for removed edges (densitometer means).", "PATH"),
    "granularity": (str, "What an MLP edge is: a block, an expert or a neuron.", None),
}


def takes_settings(**defaults: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that gives a command options of `OPTIONS` in place of its parameter `settings`.

    Args:
        defaults: options to give, each with the default that --help shows.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            settings = {name: value for name in defaults if (value := given.pop(name)) is not None}
            command(**given, settings=settings)

        parameters = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name == "settings":
                parameters += [_parameter(name, default) for name, default in defaults.items()]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        # typer reads options from the signature
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, default: str) -> inspect.Parameter:
    kind, text, metavar = OPTIONS[name]
    option = typer.Option(help=text, metavar=metavar, show_default=default or False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def parsed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as Python functions take them: lists for commas, loaded means for their file.

    Args:
        settings: options that the user gave, by name.

    Raises:
        InputError: a size is not a number.
        StorageError: the means cannot be read.
    """
    arguments = dict(settings)
    for name in ("importance", "baselines"):
        if name in arguments:
            arguments[name] = by_commas(arguments[name])
    if "sizes" in arguments:
        arguments["sizes"] = [_number(size) for size in by_commas(arguments["sizes"])]
    if "means" in arguments:
        from ..graph.reference_means import load_means

        arguments["ablation"] = load_means(arguments.pop("means"))
    return arguments


def by_commas(names: str) -> list[str]:
    """Split a string at commas, and drop empty names."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"--sizes must be numbers separated by commas, such as 0.01,0.1,1; got {text!r}"
        ) from None
