"""Settings of a measurement, and how a model is loaded, as command-line options.

Each option is declared once for all commands.
"""

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
    "attention": (
        str,
        "Attention weights: recomputed, frozen, or kept (every attention edge stays on).",
        None,
    ),
    "means": (Path, "Means that stand in for removed edges (densitometer means).", "PATH"),
    "granularity": (
        str,
        "What an MLP edge is: a block, an expert or a neuron. With component, traces are of whole heads and MLPs.",
        None,
    ),
    "target": (str, "Token whose probability is measured, such as ' Paris'.", "TOKEN"),
    "against": (str, "With --target: another token. The logit difference of the two is measured.", "TOKEN"),
    "counterfactual": (
        str,
        "Another text of as many tokens: edges that are off carry what they carry there.",
        "TEXT",
    ),
}

# Options that say how a model is loaded, in the same form.
LOADING: dict[str, tuple[type, str, str | None]] = {
    "dtype": (
        str,
        "dtype of the model: float64, float32, bfloat16 or float16. By default as the model was saved.",
        None,
    ),
    "device": (str, "Where to run it: cpu, cuda, cuda:1, mps.", None),
    "tokenizer": (str, "Tokenizer of another model or folder. By default the model's own.", "NAME"),
    "quantization": (str, "Quantise the weights by bitsandbytes while loading: nf4, fp4 or int8.", None),
    "subfolder": (str, "Folder in the model's folder or Hub repository where the model is.", None),
    "trust_remote_code": (bool, "Run code that comes with the model. Read that code first.", None),
}
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}


def takes_loading(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that gives a command the options of `LOADING` in place of its parameter `loading`.

    The command gets them as keyword arguments of `load_model`.

    Args:
        without: options that this command does not have.
    """
    names = [name for name in LOADING if name not in without]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            chosen = {name: value for name in names if (value := given.pop(name)) not in (None, False)}
            command(**given, loading=chosen)

        return _expanded(command, run, "loading", [_parameter(name, "", LOADING) for name in names])

    return decorate


def load_keywords(loading: dict[str, Any]) -> dict[str, Any]:
    """Return options of `LOADING` as keyword arguments of `load_model`.

    Raises:
        InputError: the quantisation is not one of `QUANTIZATIONS`.
    """
    keywords = dict(loading)
    name = keywords.pop("quantization", None)
    if name is None:
        return keywords
    if name not in QUANTIZATIONS:
        raise InputError(f"unknown quantization {name!r}; expected one of {', '.join(QUANTIZATIONS)}")
    return keywords | {"quantization_config": dict(QUANTIZATIONS[name])}


def takes_settings(**defaults: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that gives a command options of `OPTIONS` in place of its parameter `settings`.

    Args:
        defaults: options to give, each with the default that --help shows.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            settings = {name: value for name in defaults if (value := given.pop(name)) is not None}
            command(**given, settings=settings)

        return _expanded(command, run, "settings", [_parameter(*item, OPTIONS) for item in defaults.items()])

    return decorate


def _expanded(
    command: Callable[..., None], run: Callable[..., None], name: str, options: list[inspect.Parameter]
) -> Callable[..., None]:
    """Give `run` a command's name, help and parameters, with options in place of one of them."""
    parameters = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == name:
            parameters += options
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    # typer reads options from the signature
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(
    name: str, default: str, options: dict[str, tuple[type, str, str | None]]
) -> inspect.Parameter:
    kind, text, metavar = options[name]
    if kind is bool:
        # a flag has its own name only, without --no-...
        flag = Annotated[bool, typer.Option("--" + name.replace("_", "-"), help=text)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag)
    option = typer.Option(help=text, metavar=metavar, show_default=default or False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def parsed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as Python functions take them: lists for commas, loaded means for their file.

    Args:
        settings: options that the user gave, by name.

    Raises:
        InputError: a size is not a number, or a contrast has no target.
        StorageError: the means cannot be read.
    """
    arguments = dict(settings)
    for name in ("importance", "baselines"):
        if name in arguments:
            arguments[name] = by_commas(arguments[name])
    if "sizes" in arguments:
        arguments["sizes"] = [_number(size) for size in by_commas(arguments["sizes"])]
    if "against" in arguments:
        if "target" not in arguments:
            raise InputError(
                f"--against {arguments['against']!r} needs --target, the token that it is compared with"
            )
        arguments["target"] = (arguments["target"], arguments.pop("against"))
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
