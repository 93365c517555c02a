"""The settings of a measurement as options of the command line: written once, added to each command that measures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError

# A command gets these as `settings`, those that were given, by the names of `measure`'s arguments. What is not given has the
# default of the function that the command calls; --help says it without importing that function, and a test holds the two together.
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
    """Give a command the options of `OPTIONS` that are named, in place of its parameter `settings`, a dict.

    Args:
        defaults: what --help says of each.
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
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, default: str) -> inspect.Parameter:
    kind, text, metavar = OPTIONS[name]
    option = typer.Option(help=text, metavar=metavar, show_default=default or False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def parsed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings as the Python functions take them: lists in place of commas, means in place of a file.

    Raises:
        InputError: a size is not a number.
        StorageError: the means cannot be read.
    """
    found = dict(settings)
    for name in ("importance", "baselines"):
        if name in found:
            found[name] = by_commas(found[name])
    if "sizes" in found:
        found["sizes"] = [_number(size) for size in by_commas(found["sizes"])]
    if "means" in found:
        from ..graph.reference_means import load_means

        found["ablation"] = load_means(found.pop("means"))
    return found


def by_commas(names: str) -> list[str]:
    """Return the names between commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--sizes are numbers by commas, such as 0.01,0.1,1; got {text!r}") from None
