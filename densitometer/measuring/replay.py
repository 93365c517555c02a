"""Run a saved measurement again, and compare two measurements in settings and in every number.

A measurement's provenance holds all its settings, so its file is enough to run it again. On the
same machine with the same versions, every number is the same, bit for bit. Elsewhere matrix
products round differently. Numbers of the curve then differ by about the noise floor of the dtype,
and `top1` may change where two tokens are almost equally probable.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars
import torch

from ..errors import DensitometerWarning
from ..models.fingerprint import comparable
from ..models.loading import Model, load_model
from .measurement import Measurement, measured
from .settings import MeasureSettings

SURROUNDINGS = ("densitometer", "torch", "transformers", "python", "platform")
# columns by which rows of two measurements are matched
_ROW = ("importance", "kind", "size")


@dataclass(frozen=True, eq=False)
class Difference:
    """Differences between two measurements. Every table is empty where nothing differs.

    Args:
        asked: differences in what was measured, with a row for each part of model, text and
            settings that differs. Columns: name, one, other.
        surroundings: versions and platform: a row for each that differs. Columns: name, one, other.
        numbers: a row for each quantity that differs. Columns: quantity; n, values compared;
            n_different; largest, the largest absolute difference; importance, kind and size of the
            row where it is largest (null for a quantity of the whole measurement).
        missing: rows that only one of the two has. Columns: importance, kind, size, only_in ("one"
            or "other").

    Examples:
        >>> one, other = (dm.measure(model, text, sizes=[1.0]) for text in ("The captain looked", "The captain saw"))
        >>> found = dm.difference(one, other)
        >>> found.same_numbers, found.asked["name"].to_list(), found.surroundings.height
        (False, ['tokens'], 0)
    """

    asked: polars.DataFrame
    surroundings: polars.DataFrame
    numbers: polars.DataFrame
    missing: polars.DataFrame

    @property
    def same_numbers(self) -> bool:
        """Whether every number is the same, bit for bit."""
        return self.numbers.is_empty() and self.missing.is_empty()

    @property
    def largest_tv(self) -> float:
        """Largest difference between two total variations of the same trace, in [0, 1]."""
        tv = self.numbers.filter(quantity="tv")["largest"]
        return float(tv[0]) if len(tv) else 0.0


def replay(measurement: Measurement, model: Model | None = None) -> Measurement:
    """Measure an input again, by the settings that a measurement holds.

    Args:
        measurement: a measurement, as `measure` or `load_measurement` returns it.
        model: the model that was measured. By default it is loaded by its name, revision and dtype,
            on a GPU if it was measured on one and there is one.

    Raises:
        InputError: the measurement is of an older version that stored no settings, or depends on
            reference means.
        ModelError: the model cannot be loaded.

    Warns:
        DensitometerWarning: the weights or the tokenizer are not those that were measured.

    Examples:
        >>> m = dm.measure(model, "The captain looked", sizes=[0.3, 1.0])
        >>> dm.difference(m, dm.replay(m, model)).same_numbers
        True
    """
    settings = MeasureSettings.from_document(measurement.provenance)
    if model is None:
        about = measurement.model
        options = {} if about.revision is None else {"revision": about.revision}
        if about.device.startswith("cuda") and torch.cuda.is_available():
            options["device"] = "cuda"
        model = load_model(about.name, dtype=about.dtype, **options)
    known = measurement.model.fingerprint
    if known is not None and model.matches(known) is False:
        warnings.warn(
            f"{model.name} is not the model that was measured: its weights or its tokenizer have the fingerprint {model.commit}, "
            f"those measured {known}; numbers will differ",
            DensitometerWarning,
            stacklevel=2,
        )
    return measured(model, measurement.input.ids, settings, measurement.input.position)


def difference(one: Measurement, other: Measurement) -> Difference:
    """Compare two measurements, row by row of their curves, baselines and refined traces.

    Rows are matched by importance, kind and size. The importance of a baseline is null.

    Examples:
        >>> one = dm.measure(model, "The captain looked", sizes=[0.3, 1.0])
        >>> other = dm.measure(model, "The captain looked", sizes=[0.3, 0.5, 1.0])
        >>> dm.difference(one, other).asked["name"].to_list()
        ['sizes']
    """
    asked = [(name, *pair) for name, pair in _facts(one, other) if pair[0] != pair[1]]
    around = [(name, one.provenance.get(name), other.provenance.get(name)) for name in SURROUNDINGS]
    tables = (_rows(one), _rows(other))
    both = tables[0].join(tables[1], on=_ROW, how="inner", suffix="_other", nulls_equal=True)
    numbers = [row for name in tables[0].columns if name not in _ROW if (row := _compared(both, name))]
    for name, mine, theirs in _alone(one, other):
        if mine != theirs:
            gap = None if mine is None or theirs is None else abs(mine - theirs)
            numbers.append((name, 1, 1, gap, None, None, None))
    lacking = [
        mine.join(theirs, on=_ROW, how="anti", nulls_equal=True).select(*_ROW, only_in=polars.lit(name))
        for name, mine, theirs in (("one", tables[0], tables[1]), ("other", tables[1], tables[0]))
    ]
    compared = {"name": polars.String, "one": polars.String, "other": polars.String}
    counted = {
        "quantity": polars.String,
        "n": polars.Int64,
        "n_different": polars.Int64,
        "largest": polars.Float64,
    }
    where = {"importance": polars.String, "kind": polars.String, "size": polars.Float64}
    return Difference(
        polars.DataFrame([tuple(map(_shown, row)) for row in asked], compared, orient="row"),
        polars.DataFrame(
            [tuple(map(_shown, row)) for row in around if row[1] != row[2]], compared, orient="row"
        ),
        polars.DataFrame(numbers, counted | where, orient="row"),
        polars.concat(lacking),
    )


def _shown(value: Any) -> str:
    """Return a value as text that a table can hold.

    A lone surrogate, which stands for a byte that is not UTF-8 in a folder's name, is written as an
    escape.
    """
    return str(value).encode("utf-8", errors="backslashreplace").decode()


def _facts(one: Measurement, other: Measurement) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Parts of model, text and settings: by name, their values in two measurements."""
    for name in ("name", "revision", "architecture", "dtype", "device"):
        yield f"model {name}", (one.model.get(name), other.model.get(name))
    prints = one.model.fingerprint, other.model.fingerprint
    if comparable(*prints):
        yield "model fingerprint", prints
    yield "tokens", (one.input.ids, other.input.ids)
    yield "position", (one.input.position, other.input.position)
    for name in MeasureSettings().to_document():
        yield name, (one.provenance.get(name), other.provenance.get(name))


def _alone(one: Measurement, other: Measurement) -> Iterator[tuple[str, float | None, float | None]]:
    """Numbers that a measurement has once: by name, their values in two measurements."""
    yield "edges of the graph", one.graph.n_edges, other.graph.n_edges
    yield "entropy of the model", one.entropy, other.entropy
    yield "full trace's TV", one.full_trace_tv, other.full_trace_tv
    for name in one.density:
        if name in other.density:
            mine, others = one.density[name], other.density[name]
            yield f"auc_log by {name}", mine.auc_log, others.auc_log
            yield f"auc_linear by {name}", mine.auc_linear, others.auc_linear
            yield f"size_at(0.1) by {name}", mine.size_at(0.1), others.size_at(0.1)


def _rows(measurement: Measurement) -> polars.DataFrame:
    """Table of all traces that a measurement ran, with one row for each."""
    baselines = measurement.baselines.with_columns(importance=polars.lit(None, polars.String))
    tables = [measurement.curve, measurement.refined, baselines.select(measurement.curve.columns)]
    return polars.concat(tables).unique(_ROW, keep="first", maintain_order=True)


def _compared(both: polars.DataFrame, name: str) -> tuple[Any, ...] | None:
    """Row of `Difference.numbers` for a column, or None where it does not differ.

    Args:
        both: matched rows of two measurements. Columns of the second end in "_other".
        name: the column.
    """
    other = f"{name}_other"
    apart = both.filter(polars.col(name).ne_missing(polars.col(other)))
    if apart.is_empty():
        return None
    if both.schema[name] == polars.String:
        # text has no distance, so any row stands for all
        gap, worst = None, apart.row(0, named=True)
    else:
        distance = (polars.col(name).cast(polars.Float64) - polars.col(other).cast(polars.Float64)).abs()
        apart = apart.with_columns(distance=distance).sort("distance", descending=True, nulls_last=True)
        worst = apart.row(0, named=True)
        gap = worst["distance"]
    return (name, len(both), len(apart), gap, *(worst[key] for key in _ROW))
