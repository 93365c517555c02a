"""Figures from measured tables; nothing is computed here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars

from .errors import InputError
from .figures import COLOURS
from .files import write_file
from .measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

_BASELINES = {
    "inverse": ("#7f7f7f", "--", "everything but the trace"),
    "random": ("#b0b0b0", ":", "random, same size"),
}


def plot_curve(measurement: Measurement, eps: float = 0.1) -> Figure:
    """Total variation over trace size, with baselines, landmarks and `size_at(eps)`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    curve = measurement.curve
    first = next(iter(measurement.density))
    for kind, (colour, style, label) in _BASELINES.items():
        part = curve.filter((polars.col("kind") == kind) & (polars.col("importance") == first))
        if part.height:
            axes.plot(part["size"], part["tv"], style, color=colour, label=label, linewidth=1.2)
    for (name, density), colour in zip(measurement.density.items(), COLOURS * 9, strict=False):
        part = curve.filter((polars.col("kind") == "trace") & (polars.col("importance") == name))
        size = density.size_at(eps)
        found = "never" if size is None else f"{100 * size:.2g} %"
        label = f"trace by {name}: TV ≤ {eps:g} from {found}"
        axes.plot(part["size"], part["tv"], "o-", color=colour, markersize=3, linewidth=1.6, label=label)
        if size is not None:
            axes.plot([size], [eps], marker="|", color=colour, markersize=16, markeredgewidth=2)
    axes.axhline(eps, color="#444444", linewidth=0.6)
    for name, size in measurement.graph["landmarks"].items():
        axes.axvline(size, color="#999999", linewidth=0.7, linestyle=(0, (1, 2)))
        label = {"residual_chain": "residual chain ", "residual_mlp_chain": " with MLPs"}[name]
        side = "right" if name == "residual_chain" else "left"
        axes.text(
            size, 1.015, label, ha=side, va="bottom", fontsize=7, color="#666666",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"share of the {measurement.graph['n_edges']:,} edges that are on")
    axes.set_ylabel("total variation to the model's prediction")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    token = measurement.prediction["token"][0]
    probability = measurement.prediction["probability"][0]
    title = f"{measurement.model['name']}: next token {token!r}, p = {probability:.2f}"
    axes.set_title(title.replace("$", r"\$"), fontsize=10, pad=16)
    return figure


def save_plot(measurement: Measurement, path: str | Path) -> None:
    """Write the curve as PNG, SVG or PDF, by extension.

    Raises:
        InputError: another extension; StorageError: the path cannot be written.
    """
    extension = check_extension(path)
    figure = plot_curve(measurement)
    write_file(path, lambda file: figure.savefig(file, format=extension))


def check_extension(path: str | Path) -> str:
    """The format that a path's extension names.

    Raises:
        InputError: it names none that can be written.
    """
    extension = Path(path).suffix.lower().removeprefix(".")
    if extension not in FORMATS:
        expected = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"cannot plot to {str(path)!r}: expected a path that ends in {expected}")
    return extension
