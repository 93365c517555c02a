"""A finding, the evidence it is made from, and functions that put numbers into its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import polars

from ..._util.digits import percent
from ...analysis import FEWEST, ComponentShares, component_shares, describe, named, with_size_between
from ...errors import DensitometerError
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
        claim: what the numbers show, in a sentence or two.
        figure: the figure.
        tables: tables by caption.
        reading: how to read the figure and the tables.
        refuted: results that would have refuted the claim.
    """

    name: str
    claim: str
    figure: Figure
    tables: dict[str, polars.DataFrame]
    reading: str
    refuted: str

    @cached_property
    def svg(self) -> str:
        """Text of the figure as an SVG file, for the page and for a file of its own."""
        return svg(self.figure)


@dataclass(frozen=True)
class LeftOut:
    """A question that the study's data cannot answer, with the reason."""

    name: str
    why: str


def cut(n: int, most: int) -> str:
    """Sentence that says how many of n panels a figure shows, empty if all."""
    return f" The figure shows the first {most} of {n} models and importances." if n > most else ""


class Evidence:
    """Tables of a study, each read once and only if a finding needs it.

    Raises:
        DensitometerError: nothing in the study has been measured.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.eps: float = study.manifest["settings"]["eps"]
        self.measurements = study.measurements()
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
        return with_size_between(self.study, describe(self.study))

    @cached_property
    def placed(self) -> polars.DataFrame:
        """All measurements, with the column `size_between`."""
        return with_size_between(self.study, self.measurements)

    @cached_property
    def curves(self) -> polars.DataFrame:
        """Curves of the `traced` texts."""
        return self.study.curves(self.traced).drop("top_ids", "top_token")

    @cached_property
    def states(self) -> polars.DataFrame:
        """States of the `traced` texts. Empty if the study stored none."""
        return self.study.states(self.traced)

    @cached_property
    def composed(self) -> list[str] | None:
        """Ids of the texts whose components are read. None for all texts.

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
        """Components of the `composed` texts."""
        return self.study.components(self.composed)

    @cached_property
    def component_shares(self) -> ComponentShares:
        """Component shares of the `composed` texts."""
        return component_shares(self.components)


def number(value: float) -> str:
    """Format a statistic with two decimals."""
    return f"{value:z.2f}"


def two_digits(share: float) -> str:
    """Format a size as a bracket that is 5 % wide allows."""
    return percent(share, 2)


def between(low: float | None, high: float | None, form: Callable[[float], str] = percent) -> str:
    """Format an interval, or say that there are too few texts for one."""
    return "no interval: too few texts" if low is None or high is None else f"{form(low)} to {form(high)}"


def listed(parts: list[str], most: int = 6) -> str:
    """Join the first parts of a claim, and say how many more the table has."""
    more = len(parts) - most
    return "; ".join(parts[:most]) + (f"; and {more} more in the table" if more > 0 else "")


def words(name: str) -> str:
    """Return a column's name as words."""
    return name.replace("_", " ")
