"""Save and load results: versioned JSON, an exact round trip, nothing half-written.

A measurement is one JSON document of the schema `densitometer.measurement/1`. Numbers are written so that they read back
as the same doubles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars

from .arguments import checked_path
from .curve import CURVE_TYPES, densities
from .errors import StorageError
from .files import write_file
from .measurement import Measurement

SCHEMA = "densitometer.measurement/1"


def to_document(measurement: Measurement) -> dict[str, Any]:
    """The measurement as plain data, the contract's JSON."""
    density = {
        name: {
            "auc_log": d.auc_log,
            "auc_linear": d.auc_linear,
            "size_at": {"0.1": d.size_at(0.1)},
        }
        for name, d in measurement.density.items()
    }
    return {
        "schema": SCHEMA,
        "model": measurement.model,
        "input": measurement.input,
        "graph": measurement.graph,
        "prediction": measurement.prediction.to_dicts(),
        "entropy": measurement.entropy,
        "next_token": measurement.next_token,
        "curves": measurement.curve.to_dicts(),
        "baselines": measurement.baselines.to_dicts(),
        "density": density,
        "refined": measurement.refined.to_dicts(),
        "full_trace_tv": measurement.full_trace_tv,
        "provenance": measurement.provenance,
    }


def save_measurement(measurement: Measurement, path: str | Path) -> None:
    """Write a measurement as JSON.

    Raises:
        StorageError: the path cannot be written.
    """
    text = json.dumps(to_document(measurement), ensure_ascii=False, indent=1, allow_nan=False)
    write_file(path, lambda file: file.write(text.encode("utf-8", errors="surrogatepass")))


def load_measurement(path: str | Path) -> Measurement:
    """Read what `Measurement.save` wrote; it holds everything but the model.

    Raises:
        StorageError: there is no such file, it is damaged, or it has another schema.

    Examples:
        >>> m = dm.measure(model, "The captain looked", sizes=[0.3, 1.0])
        >>> m.save("m.json")
        >>> dm.load_measurement("m.json").density == m.density
        True
    """
    try:
        text = checked_path(path).read_bytes().decode("utf-8", errors="surrogatepass")
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{str(path)!r} is no measurement: it is not UTF-8 text") from error
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise StorageError(
            f"{str(path)!r} is no measurement, or is cut short: {error.msg} at line {error.lineno}"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond what Python reads
        raise StorageError(f"{str(path)!r} is no measurement: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise StorageError(
            f"{str(path)!r} has the schema {schema!r}; this version of densitometer reads {SCHEMA!r}"
        )
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError, polars.exceptions.PolarsError) as error:
        raise StorageError(f"{str(path)!r} is damaged: {type(error).__name__} at {error}") from error


def _from_document(document: dict[str, Any]) -> Measurement:
    for name in ("model", "input", "graph", "provenance"):
        if not isinstance(document[name], dict):
            raise TypeError(f"{name!r}, which is no object")
    curve = polars.DataFrame(document["curves"], schema_overrides=CURVE_TYPES)
    refined = polars.DataFrame(document["refined"], schema_overrides=CURVE_TYPES)
    if curve["importance"].null_count() or (refined.height and refined["importance"].null_count()):
        raise ValueError("a row of the curve without an importance")
    if refined.is_empty():
        refined = curve.clear()
    return Measurement(
        model=document["model"],
        input=document["input"],
        graph=document["graph"],
        prediction=polars.DataFrame(document["prediction"]).select("rank", "token", "id", "probability"),
        entropy=document["entropy"],
        next_token=document["next_token"],
        curve=curve,
        baselines=polars.DataFrame(
            document["baselines"],
            schema_overrides={name: kind for name, kind in CURVE_TYPES.items() if name != "importance"},
        ),
        density=densities(curve, refined),
        refined=refined,
        full_trace_tv=document["full_trace_tv"],
        provenance=document["provenance"],
    )
