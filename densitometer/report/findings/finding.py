"""A finding, what it is made of, and the words in which findings are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import polars

from ...analysis import FEWEST, ComponentShares, component_shares, describe, named
from ...errors import DensitometerError
from ...measuring.density import DEFAULT_SIZES
from ...study.store import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALUE = "size_at"
MOST_COMPONENTS = 2 * 10**6  # rows of components that are read, at once in memory
MOST_TRACED = 1000  # measurements whose curves and components are read; medians of so many are as good


@dataclass(frozen=True, eq=False)
class Finding:
    """One claim and what it rests on.

    Args:
        name: short, also of its figure's and its tables' files.
        claim: what the numbers say, in a sentence or two.
        figure: its drawing.
        tables: by caption.
        reading: how to read the figure and the numbers.
        refuted: what would have shown the claim to be wrong.
    """

    name: str
    claim: str
    figure: Figure
    tables: dict[str, polars.DataFrame]
    reading: str
    refuted: str


@dataclass(frozen=True)
class LeftOut:
    """A finding that the data cannot answer."""

    name: str
    why: str


class Evidence:
    """Tables of a study, each read once and only if a finding needs it.

    Raises:
        DensitometerError: nothing in the study has been measured.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.eps: float = study.manifest["settings"]["eps"]
        self.measurements = study.measurements()  # all rows
        if self.measurements.is_empty():
            raise DensitometerError(
                f"the study {str(study.folder)!r} holds no measurement yet; run densitometer study first"
            )
        # those without an error, revisions in the model's name
        self.measured = named(self.measurements.filter(polars.col("error").is_null()))
        if self.measured.is_empty():
            common = self.measurements["error"].mode().sort()[0]
            raise DensitometerError(
                f"all {len(self.measurements):,} rows of the study {str(study.folder)!r} failed, so there is nothing to report; "
                f"most often: {common}"
            )

    @cached_property
    def traced(self) -> list[str] | None:
        """Ids of texts drawn at random, with about `MOST_TRACED` measurements.

        None where there are not more in all.
        """
        if len(self.measured) <= MOST_TRACED:
            return None
        texts = self.measured["text_id"].unique().sort()
        n = max(1, MOST_TRACED * len(texts) // len(self.measured))
        return texts.sample(n, seed=0).to_list()

    @cached_property
    def described(self) -> polars.DataFrame:
        """All rows, with the properties of predictions and prompts."""
        return describe(self.study)

    @cached_property
    def curves(self) -> polars.DataFrame:
        """Curves of the `traced` texts."""
        return self.study.curves(self.traced).drop("top_ids", "top_token")

    @cached_property
    def states(self) -> polars.DataFrame:
        """States of the `traced` texts. Empty where none were kept."""
        return self.study.states(self.traced)

    @cached_property
    def composed(self) -> list[str] | None:
        """Ids of the texts whose components are read: the traced ones, or fewer of a model that has many components."""
        texts = self.traced
        if texts is None:
            texts = (
                self.measured["text_id"].unique().sort().sample(fraction=1, seed=0, shuffle=True).to_list()
            )
        # Of each layer the heads, the MLP and the residual stream, at each size; those that a search added are as many.
        components = polars.col("n_layers") * (polars.col("n_heads") + 3) * 2 * len(DEFAULT_SIZES)
        rows = self.measured.select(components.cast(polars.Int64).sum()).item() or 0
        most = MOST_COMPONENTS * self.measured["text_id"].n_unique() // max(1, rows)
        return self.traced if len(texts) <= most else texts[: max(FEWEST, most)]

    @cached_property
    def components(self) -> polars.DataFrame:
        """Components of the `composed` texts."""
        return self.study.components(self.composed)

    @cached_property
    def component_shares(self) -> ComponentShares:
        """Component shares of the `composed` texts."""
        return component_shares(self.components)


def percent(share: float | None) -> str:
    """A share in per cent, three digits. "never" for None, a size that is never reached."""
    return "never" if share is None else f"{100 * share:.3g} %"


def number(value: float) -> str:
    """A statistic as read."""
    return f"{value:.2f}"


def between(low: float | None, high: float | None, form: Callable[[float], str] = percent) -> str:
    """An interval as read."""
    return "no interval: too few texts" if low is None or high is None else f"{form(low)} to {form(high)}"


def listed(parts: list[str], most: int = 6) -> str:
    """The first parts of a claim. The table has them all."""
    more = len(parts) - most
    return "; ".join(parts[:most]) + (f"; and {more} more in the table" if more > 0 else "")


def words(name: str) -> str:
    """A column's name as read."""
    return name.replace("_", " ")
