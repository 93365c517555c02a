"""A finding, the evidence it is made from, and functions that put numbers into its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import polars

from ..._util.digits import percent
from ...analysis import FEWEST, ComponentShares, component_shares, describe, named, with_size_between
from ...errors import DensitometerError, InputError
from ...measuring.density import DEFAULT_SIZES
from ...study.store import Study
from ..figures import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALUE = "size_at"
# What correlations and trees compare texts by: `size_at` ties texts that do not need the same.
PLACED = "size_between"
# Most rows of components that are read into memory.
MOST_COMPONENTS = 2 * 10**6
# Most measurements whose curves and components are read; more would not change a median visibly.
MOST_TRACED = 1000


@dataclass(frozen=True, eq=False)
class Finding:
    """One claim with its figure and tables.

    Args:
        name: title. The files of its figure and tables are named after it.
        claim: what the numbers show, in a sentence of at most two lines.
        figure: the figure.
        tables: tables by caption.
        reading: how to read the figure and the tables.
        refuted: a sentence that says which results would have refuted the claim.
        details: the evidence for the claim, most often a line for each model and importance, as
            pairs of what it is about and what was found.
    """

    name: str
    claim: str
    figure: Figure
    tables: dict[str, polars.DataFrame]
    reading: str
    refuted: str
    details: tuple[tuple[str, str], ...] = ()

    def svg(self, settings: str) -> str:
        """Return the figure as the text of an SVG file, with a caption in its metadata.

        Args:
            settings: a sentence on the study's settings.
        """
        return svg(self.figure, self.caption(settings))

    def caption(self, settings: str) -> str:
        """Return the caption that is written into the metadata of the figure's files."""
        return f"{self.name}. {self.claim} {self.reading} {settings}"


@dataclass(frozen=True)
class LeftOut:
    """A question that the study's data cannot answer, with the reason."""

    name: str
    why: str


def cut(n: int, most: int) -> str:
    """Sentence that says how many of n panels a figure shows, empty if all."""
    return f" The figure shows the first {most} of {n} models and importances." if n > most else ""


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Name models by the last parts of their names, such as folders, where these differ."""
    models = list(models)
    short = {model: model.rstrip("/").rpartition("/")[2] for model in models}
    counts = Counter(short.values())
    return {model: name if counts[name] == 1 else model for model, name in short.items()}


class Evidence:
    """Tables of a study, each read once and only if a finding needs it.

    Args:
        study: the study.
        names: names for the report by the model's name in the study. Other models are named by the
            last part of theirs.

    Raises:
        InputError: the study has no such model, or two models would have one name.
        DensitometerError: nothing in the study has been measured.
    """

    def __init__(self, study: Study, names: Mapping[str, str] | None = None) -> None:
        self.study = study
        self.eps: float = study.manifest["settings"]["eps"]
        stored = study.measurements()
        self.names = _names(stored["model"].unique().sort().to_list(), names or {})
        self.measurements = self._renamed(stored)
        if self.measurements.is_empty():
            raise DensitometerError(
                f"the study {str(study.folder)!r} has no measurement yet; run densitometer study first"
            )
        # rows without an error, with revisions in the models' names
        self.measured = named(self.measurements.filter(polars.col("error").is_null()))
        if self.measured.is_empty():
            common = self.measurements["error"].mode().sort()[0]
            raise DensitometerError(
                f"all {len(self.measurements):,} rows of the study {str(study.folder)!r} failed, so there is "
                f"nothing to report; the most frequent error: {common}"
            )

    def _renamed(self, table: polars.DataFrame) -> polars.DataFrame:
        """Replace the names of models in a table by their names in the report."""
        return table.with_columns(polars.col("model").replace(self.names))

    @cached_property
    def measured_by(self) -> str:
        """Sentence on the study's corpus and settings."""
        manifest = self.study.manifest
        settings = manifest["settings"]
        chosen = [
            f"{words(name)} {worded(settings[name])}"
            for name in ("window", "attention", "ablation", "by", "eps", "seed")
            if settings.get(name) is not None
        ]
        corpus = f"{Path(manifest['corpus']['name']).name} ({manifest['corpus']['n_texts']:,} texts)"
        versions = ", ".join(dict.fromkeys(own["densitometer"] for own in manifest["versions"]))
        return f"Corpus {corpus}; {', '.join(chosen)}; densitometer {versions}."

    @cached_property
    def traced(self) -> list[str] | None:
        """Ids of a random sample of texts, of about `MOST_TRACED` measurements. None for all."""
        if len(self.measured) <= MOST_TRACED:
            return None
        texts = self.measured["text_id"].unique().sort()
        n = max(1, MOST_TRACED * len(texts) // len(self.measured))
        return texts.sample(n, seed=0).to_list()

    @cached_property
    def described(self) -> polars.DataFrame:
        """All measurements, with the properties of predictions and prompts."""
        return self._renamed(with_size_between(self.study, describe(self.study)))

    @cached_property
    def placed(self) -> polars.DataFrame:
        """All measurements, with the column `size_between`."""
        return self._renamed(with_size_between(self.study, self.study.measurements()))

    @cached_property
    def curves(self) -> polars.DataFrame:
        """Curves of the `traced` texts."""
        return self._renamed(self.study.curves(self.traced).drop("top_ids", "top_token"))

    @cached_property
    def states(self) -> polars.DataFrame:
        """States of the `traced` texts. Empty if the study stored none."""
        return self._renamed(self.study.states(self.traced))

    @cached_property
    def composed(self) -> list[str] | None:
        """Ids of the texts for which the report reads the table of components. None for all texts.

        They are the `traced` texts, or fewer if the models have many components.
        """
        texts = self.traced
        if texts is None:
            texts = (
                self.measured["text_id"].unique().sort().sample(fraction=1, seed=0, shuffle=True).to_list()
            )
        # Components of a layer are its heads, the MLP and the residual stream. There are about as
        # many sizes from the bisection as requested ones, hence the 2.
        components = polars.col("n_layers") * (polars.col("n_heads") + 3) * 2 * len(DEFAULT_SIZES)
        rows = self.measured.select(components.cast(polars.Int64).sum()).item() or 0
        most = MOST_COMPONENTS * self.measured["text_id"].n_unique() // max(1, rows)
        return self.traced if len(texts) <= most else texts[: max(FEWEST, most)]

    @cached_property
    def components(self) -> polars.DataFrame:
        """Table of how many edges each component has in each trace, for the `composed` texts."""
        return self._renamed(self.study.components(self.composed))

    @cached_property
    def component_shares(self) -> ComponentShares:
        """Composition of the traces of the `composed` texts by component."""
        return component_shares(self.components)


def _names(models: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Name every model for the report.

    Raises:
        InputError: a given name is of no model, or two models would have one name.
    """
    if unknown := sorted(set(given) - set(models)):
        raise InputError(f"the study has no model {unknown[0]!r}; it has {', '.join(map(repr, models))}")
    names = short_names(models) | dict(given)
    twice = [name for name, n in Counter(names.values()).items() if n > 1]
    if twice:
        same = [model for model in models if names[model] == twice[0]]
        raise InputError(
            f"{' and '.join(map(repr, same))} would both be called {twice[0]!r}; give other names"
        )
    return names


def number(value: float) -> str:
    """Format a statistic with two decimals."""
    return f"{value:z.2f}"


def two_digits(share: float) -> str:
    """Format a size with two digits, which is all that a bracket of 5 % width allows."""
    return percent(share, 2)


def between(low: float | None, high: float | None, form: Callable[[float], str] = percent) -> str:
    """Format an interval, or say that there are too few texts for one."""
    return "no interval: too few texts" if low is None or high is None else f"{form(low)} to {form(high)}"


def span(values: Sequence[float], form: Callable[[float], str] = percent) -> str:
    """Format the smallest and the largest of some values, or one of them if both look the same."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def worded(value: object) -> str:
    """Return a setting's value as words."""
    if value is None or value in ([], {}, ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def words(name: str) -> str:
    """Return a column's name as words."""
    return name.replace("_", " ")
