"""Save and load measurements as versioned JSON, with an exact round trip.

A measurement is one JSON document of the schema `densitometer.measurement/1`. Numbers are written
so that they read back as the same doubles. A file is written whole or not at all.
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

import polars

from .._util.files import checked_path, write_file
from .._util.json_schema import (
    COUNT,
    FLAG,
    MAPPING,
    NUMBER,
    PATH,
    SHARE,
    TEXT,
    Kind,
    check_keys,
    list_of,
    mapping_of,
    one_of,
    or_null,
    read_json,
)
from ..errors import StorageError
from ..graph.sinks import ACTIVATION_TYPES, SERVED_TYPES, TOKEN_TYPES, Sinks
from .columns import COMPONENT_TYPES, CURVE_TYPES, MAY_BE_NULL, TARGET_TYPES
from .density import Density
from .measurement import DTYPE_ROUNDING, Measurement, noisy_densities
from .noise import NOISE_TYPES
from .records import (
    MeasuredCounterfactual,
    MeasuredGraph,
    MeasuredInput,
    MeasuredModel,
    MeasuredTarget,
    NextToken,
    Provenance,
)
from .tables import densities

SCHEMA = "densitometer.measurement/1"
MODEL = {
    "name": PATH, "revision": or_null(TEXT), "architecture": TEXT, "dtype": one_of(DTYPE_ROUNDING), "device": TEXT,
    "layout": list_of(TEXT),
}  # fmt: skip
# Later versions added these keys of the model. Documents of older versions lack them.
WEIGHTS = {"file": or_null(PATH), "quantization": or_null(TEXT), "fingerprint": or_null(TEXT)}
INPUT = {"text": or_null(TEXT), "ids": list_of(COUNT), "tokens": list_of(TEXT), "position": COUNT}
GRAPH = {
    "n_edges": COUNT, "n_layers": COUNT, "n_heads": COUNT, "n_tokens": COUNT, "landmarks": mapping_of(SHARE),
}  # fmt: skip
LANDMARKS = {"residual_chain": SHARE, "residual_mlp_chain": SHARE}
PREDICTION = {"rank": COUNT, "token": TEXT, "id": COUNT, "probability": SHARE}
NEXT_TOKEN = {"id": COUNT, "token": TEXT, "surprisal": NUMBER, "rank": COUNT}
TARGET = Kind(
    "a token, a list of two of them or of their lists, the name of a function, or null",
    lambda value: value is None or isinstance(value, str | int | list | dict),
)
# Later versions added some of these keys. Documents of older versions lack them.
PROVENANCE = {
    "densitometer": TEXT, "torch": TEXT, "transformers": TEXT, "python": TEXT, "platform": TEXT, "importance": list_of(TEXT),
    "sizes": or_null(list_of(NUMBER)), "baselines": list_of(TEXT), "eps": NUMBER, "by": TEXT, "seed": COUNT, "attention": TEXT,
    "ablation": TEXT, "target": TARGET, "counterfactual": or_null(list_of(COUNT)), "means": or_null(MAPPING), "granularity": TEXT, "check": or_null(MAPPING), "edges": TEXT, "created": TEXT,
}  # fmt: skip
_KINDS = {polars.String: TEXT, polars.Float64: NUMBER, polars.Int64: COUNT, polars.Boolean: FLAG}
CURVE = {
    name: or_null(_KINDS[dtype]) if name in MAY_BE_NULL else _KINDS[dtype] for name, dtype in CURVE_TYPES.items()
} | {"size": SHARE, "tv": SHARE}  # fmt: skip
METRIC = Kind(
    "a number, true or false, or null",
    lambda value: value is None or FLAG.holds(value) or NUMBER.holds(value),
)
NOISE = {name: _KINDS[dtype] for name, dtype in NOISE_TYPES.items()} | {"size": SHARE, "noise": SHARE}
FLOOR = dict.fromkeys(("sizes", "tv", "refined_sizes", "refined_tv"), list_of(SHARE))
SINKS = dict.fromkeys(("n_edges", "n_read", "n_own"), COUNT)
MEASURED_TARGET = {
    "name": TEXT, "kind": one_of(dict.fromkeys(("probability", "logit difference", "function"))), "ids": list_of(COUNT), "against": list_of(COUNT),
    "full": NUMBER, "nothing": NUMBER,
}  # fmt: skip
# These tables are written by column, as there may be hundreds of massive activations.
SINK_TABLES: dict[str, dict[str, Any]] = {
    "tokens": TOKEN_TYPES,
    "activations": ACTIVATION_TYPES,
    "served": SERVED_TYPES,
}
DENSITY = {"auc_log": NUMBER, "auc_linear": NUMBER, "size_at": mapping_of(or_null(SHARE))}
BASELINE = {name: kind for name, kind in CURVE.items() if name != "importance"}


def to_document(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement as plain data of the schema `densitometer.measurement/1`."""
    density = {
        name: {
            "auc_log": d.auc_log,
            "auc_linear": d.auc_linear,
            "size_at": {"0.1": d.size_at(0.1)},
            **({"faithful_at": {"0.1": d.size_at(0.1, by="faithfulness")}} if d.faithfulness else {}),
        }
        for name, d in measurement.density.items()
    }
    floor = measurement.floor
    return {
        "schema": SCHEMA,
        "model": measurement.model.to_document(),
        "input": measurement.input.to_document(),
        "graph": measurement.graph.to_document(),
        "prediction": measurement.prediction.to_dicts(),
        "entropy": measurement.entropy,
        "next_token": None if measurement.next_token is None else measurement.next_token.to_document(),
        "curves": measurement.curve.to_dicts(),
        "baselines": measurement.baselines.to_dicts(),
        "density": density,
        "floor": None if floor is None else {name: list(getattr(floor, name)) for name in FLOOR},
        "sinks": None if measurement.sinks is None else _sinks_document(measurement.sinks),
        **{
            name: part.to_document()
            for name in ("target", "counterfactual")
            if (part := getattr(measurement, name)) is not None
        },
        "refined": measurement.refined.to_dicts(),
        "full_trace_tv": measurement.full_trace_tv,
        "noise": measurement.noise,
        "noise_runs": measurement.noise_runs.to_dicts(),
        "provenance": measurement.provenance.to_document(),
    }


def _sinks_document(sinks: Sinks) -> dict[str, Any]:
    """Return sinks as plain data, tables by column."""
    tables = {name: getattr(sinks, name).to_dict(as_series=False) for name in SINK_TABLES}
    return {**tables, **{name: getattr(sinks, name) for name in SINKS}}


def save_measurement(measurement: Measurement, path: str | Path) -> None:
    """Write a measurement as JSON.

    Raises:
        StorageError: the path cannot be written.
    """
    text = json.dumps(to_document(measurement), ensure_ascii=False, indent=1, allow_nan=False)
    write_file(path, lambda file: file.write(text.encode("utf-8", errors="surrogatepass")))


def load_measurement(path: str | Path) -> Measurement:
    """Read a measurement from a file that `Measurement.save` wrote.

    The measurement has all data, but no model to run.

    Raises:
        StorageError: the file does not exist, is damaged, or has another schema.

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
        raise StorageError(f"{str(path)!r} is not a measurement: it is not UTF-8 text") from error
    try:
        document = read_json(text)
    except json.JSONDecodeError as error:
        raise StorageError(
            f"{str(path)!r} is not a measurement, or is cut short: {error.msg} at line {error.lineno}"
        ) from error
    # numbers or nesting beyond what Python reads
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{str(path)!r} is not a measurement: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise StorageError(
            f"{str(path)!r} has the schema {schema!r}; this version of densitometer reads {SCHEMA!r}"
        )
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError, polars.exceptions.PolarsError) as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise StorageError(
            f"{str(path)!r} is damaged: {fault}. Give the file as `save` wrote it, or measure again"
        ) from error


def _from_document(document: dict[str, Any]) -> Measurement:
    """Make a measurement from its JSON document, and check every part of it.

    Raises:
        KeyError: a part is missing.
        TypeError, ValueError: a part does not follow the schema.
    """
    for name, kinds in (("model", MODEL), ("input", INPUT), ("graph", GRAPH)):
        check_keys(name, document[name], kinds)
    check_keys("graph.landmarks", document["graph"]["landmarks"], LANDMARKS)
    check_keys("model", document["model"], WEIGHTS, optional=True)
    check_keys("provenance", document["provenance"], PROVENANCE, optional=True)
    check_keys("the measurement", document, {"entropy": NUMBER, "full_trace_tv": NUMBER})
    if document["next_token"] is not None:
        check_keys("next_token", document["next_token"], NEXT_TOKEN)
    if document["input"]["position"] >= len(document["input"]["ids"]):
        raise ValueError("input.position is outside input.ids")
    if not document["graph"]["n_edges"]:
        raise ValueError("graph.n_edges must be at least 1, got 0")
    curve = _table("curves", document["curves"], CURVE)
    refined = _table("refined", document["refined"], CURVE) if document["refined"] != [] else curve.clear()
    baselines = _table("baselines", document["baselines"], BASELINE)
    for name, table in (("refined", refined.drop("importance")), ("baselines", baselines)):
        apart = sorted(set(curve.drop("importance").schema.items()) ^ set(table.schema.items()), key=str)
        if apart:
            raise ValueError(f"curves and {name} differ in the column {apart[0][0]!r}")
    curve, refined = _checked_curve(curve, document), _in_order(refined)
    for name, table in (("curves", curve), ("refined", refined)):
        _check_thresholds(name, table)
    _check_components(document["provenance"].get("granularity") == "component", curve, refined)
    noise_runs = polars.DataFrame(schema=NOISE_TYPES)
    # documents of older versions have none
    if document.get("noise_runs"):
        noise_runs = _table("noise_runs", document["noise_runs"], NOISE).cast(NOISE_TYPES)  # type: ignore[arg-type]
    eps = document["provenance"].get("eps", 0.1)
    target = _target(document.get("target"), curve, refined)
    known_noise = (document["model"]["dtype"], document["full_trace_tv"], noise_runs, eps, target)
    found = _checked_densities(document, curve, refined)
    return Measurement(
        model=MeasuredModel.from_document(document["model"]),
        input=MeasuredInput.from_document(document["input"]),
        graph=MeasuredGraph.from_document(document["graph"]),
        prediction=_table("prediction", document["prediction"], PREDICTION).select(*PREDICTION),
        entropy=document["entropy"],
        next_token=None
        if document["next_token"] is None
        else NextToken.from_document(document["next_token"]),
        curve=curve,
        baselines=baselines,
        density=noisy_densities(found, *known_noise),
        refined=refined,
        full_trace_tv=document["full_trace_tv"],
        noise_runs=noise_runs,
        provenance=Provenance.from_document(document["provenance"]),
        # documents of older versions have neither
        sinks=_sinks(document.get("sinks"), document, [curve, refined]),
        floor=_floor(document.get("floor")),
        target=target,
        counterfactual=_counterfactual(document.get("counterfactual"), document),
    )


def _check_components(expected: bool, curve: polars.DataFrame, refined: polars.DataFrame) -> None:
    """Check the columns with numbers of heads and MLPs, which only traces of components have.

    Raises:
        ValueError: a column is missing, or is present without components, or the two numbers do not
            sum to `n_edges`.
    """
    apart = [name for name in COMPONENT_TYPES if (name in curve.columns) != expected]
    if apart:
        raise ValueError(f"curves have {'no' if expected else 'a'} column {apart[0]!r}")
    for name, table in (("curves", curve), ("refined", refined)) if expected else ():
        if (table["n_heads"] + table["n_mlps"] != table["n_edges"]).any():
            raise ValueError(f"{name}.n_heads and {name}.n_mlps are not {name}.n_edges together")


def _counterfactual(value: Any, document: dict[str, Any]) -> MeasuredCounterfactual | None:
    """Read the counterfactual, and check it against the input and the settings.

    Raises:
        ValueError: it cannot be paired with the input, or differs from that of the settings.
    """
    if value is None:
        return None
    check_keys("counterfactual", value, {"ids": list_of(COUNT), "tokens": list_of(TEXT)})
    if not len(value["ids"]) == len(value["tokens"]) == document["input"]["position"] + 1:
        raise ValueError("counterfactual does not have a token for each of the input up to the position")
    if value["ids"] != document["provenance"].get("counterfactual"):
        raise ValueError("counterfactual.ids are not provenance.counterfactual")
    return MeasuredCounterfactual.from_document(value)


def _target(value: Any, curve: polars.DataFrame, refined: polars.DataFrame) -> MeasuredTarget | None:
    """Read the target, and check the columns of its value and faithfulness against it.

    Raises:
        ValueError: the columns are missing, are present without a target, or do not match it.
    """
    apart = [name for name in TARGET_TYPES if (name in curve.columns) != (value is not None)]
    if apart:
        raise ValueError(f"curves have {'no' if value is not None else 'a'} column {apart[0]!r}")
    if value is None:
        return None
    check_keys("target", value, MEASURED_TARGET)
    target = MeasuredTarget.from_document(value)
    if not target.spread:
        raise ValueError("target.full and target.nothing are the same")
    for name, table in (("curves", curve), ("refined", refined)):
        kept = (polars.col("target") - target.nothing) / (target.full - target.nothing)
        gap = table.select((polars.col("faithfulness") - kept).abs() > 1e-9 * (1 + kept.abs()))
        if gap.to_series().any():
            raise ValueError(f"{name}.faithfulness is not that of {name}.target")
    return target


def _in_order(table: polars.DataFrame) -> polars.DataFrame:
    """Sort the rows of each importance and kind by size. A group keeps its places in the table."""
    order = polars.all().sort_by("size", maintain_order=True).over("importance", "kind")
    return table.select(order)


def _checked_curve(curve: polars.DataFrame, document: dict[str, Any]) -> polars.DataFrame:
    """Return the curve with sizes rising, after checking it against the graph.

    Raises:
        ValueError: an importance has no trace, two rows have the same size, or a row has more edges
            than the graph or fewer than a row of smaller size.
    """
    traces = curve.filter((polars.col("kind") == "trace") & (polars.col("size") > 0))["importance"]
    lacking = sorted(set(curve["importance"]) - set(traces))
    if lacking:
        raise ValueError(f"curves hold no trace by {lacking[0]!r}")
    key = ["importance", "kind", "size"]
    double = curve.filter(curve.select(key).is_duplicated())
    if len(double):
        importance, kind, size = double.select(key).row(0)
        raise ValueError(f"curves hold two rows of kind {kind!r} by {importance!r} of size {size!r}")
    curve = _in_order(curve)
    n_edges = document["graph"]["n_edges"]
    if curve["n_edges"].max() > n_edges:
        raise ValueError(f"curves.n_edges is more than graph.n_edges, {n_edges}")
    steps = curve.filter(kind="trace").select(polars.col("n_edges").diff().over("importance"))["n_edges"]
    if (steps < 0).any():
        raise ValueError("a trace of curves has fewer edges than one of a smaller size")
    return curve


def _check_thresholds(name: str, table: polars.DataFrame) -> None:
    """Check that every trace has a threshold. Baselines have none."""
    unknown = table.filter(polars.col("kind") == "trace", polars.col("threshold").is_null())
    if len(unknown):
        importance, size = unknown.select("importance", "size").row(0)
        raise ValueError(f"{name}.threshold of the trace of size {size!r} by {importance!r} is null")


def _checked_densities(
    document: dict[str, Any], curve: polars.DataFrame, refined: polars.DataFrame
) -> dict[str, Density]:
    """Compute the densities of the curve, and check that the file has the same ones.

    Raises:
        ValueError: a density is missing in the file, or differs.
    """
    n_edges = document["graph"]["n_edges"]
    found, older = densities(curve, refined, n_edges), densities(curve, refined, None)
    check_keys("density", document["density"], dict.fromkeys(found, MAPPING))
    for name, stated in document["density"].items():
        if name not in found:
            raise ValueError(f"density.{name} has no rows in curves")
        check_keys(f"density.{name}", stated, DENSITY)
        # Older versions left the empty trace of a threshold out.
        if not any(_same(stated, density) for density in (found[name], older[name])):
            raise ValueError(
                f"density.{name} is not that of curves: auc_log {stated['auc_log']:.6g}, but its rows give "
                f"{found[name].auc_log:.6g}"
            )
    return found


def _same(stated: dict[str, Any], density: Density) -> bool:
    """Whether a density equals the one in a file, up to rounding on different machines."""
    size = density.size_at(0.1)
    pairs = [(stated["auc_log"], density.auc_log), (stated["auc_linear"], density.auc_linear)]
    if "0.1" in stated["size_at"]:
        if (stated["size_at"]["0.1"] is None) != (size is None):
            return False
        pairs.append((stated["size_at"]["0.1"] or 0.0, size or 0.0))
    return all(math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) for one, other in pairs)


def _floor(value: Any) -> Density | None:
    """Read the additive floor.

    Raises:
        ValueError: its columns are empty, or differ in length.
    """
    if value is None:
        return None
    check_keys("floor", value, FLOOR)
    for first, second in (("sizes", "tv"), ("refined_sizes", "refined_tv")):
        if len(value[first]) != len(value[second]):
            raise ValueError(f"floor.{first} and floor.{second} differ in length")
    if not value["sizes"]:
        raise ValueError("floor.sizes is empty")
    sizes, tv, refined_sizes, refined_tv = (tuple(value[name]) for name in FLOOR)
    return Density(sizes, tv, refined_sizes, refined_tv)


def _sinks(value: Any, document: dict[str, Any], traces: list[polars.DataFrame]) -> Sinks | None:
    """Read the sinks, and check them against the document.

    Args:
        document: the whole document.
        traces: tables of the traces that were run.

    Raises:
        ValueError: a table is damaged, or does not match the text, the graph or the traces.
    """
    if value is None:
        return None
    check_keys("sinks", value, SINKS | dict.fromkeys(SINK_TABLES, MAPPING))
    tables: dict[str, polars.DataFrame] = {}
    for name, types in SINK_TABLES.items():
        check_keys(f"sinks.{name}", value[name], {column: list_of(_KINDS[types[column]]) for column in types})
        columns = {column: value[name][column] for column in types}
        if len(set(map(len, columns.values()))) > 1:
            raise ValueError(f"the columns of sinks.{name} differ in length")
        tables[name] = polars.DataFrame(columns, schema=types)
    counts: dict[str, int] = {name: value[name] for name in SINKS}
    if counts["n_edges"] != document["graph"]["n_edges"]:
        raise ValueError("sinks.n_edges is not graph.n_edges")
    if counts["n_read"] + counts["n_own"] >= counts["n_edges"]:
        raise ValueError("sinks.n_read and sinks.n_own are more than the edges")
    n_tokens = len(document["input"]["ids"])
    for name in ("tokens", "activations"):
        if not (tables[name]["token"] < n_tokens).all():
            raise ValueError(f"sinks.{name}.token is outside input.ids")
    served = tables["served"]
    if not (served["read"] + served["own"] <= served["n_edges"]).all():
        raise ValueError("sinks.served has more edges than the trace")
    known = set(served.select("importance", "n_edges").iter_rows())
    for table in traces if len(tables["tokens"]) else []:
        ran = table.filter(polars.col("kind") == "trace").select("importance", "n_edges")
        for importance, n_edges in set(ran.iter_rows()) - known:
            raise ValueError(f"sinks.served lacks the trace of {n_edges} edges by {importance!r}")
    return Sinks(tables["tokens"], tables["activations"], served, **counts)


def _table(name: str, rows: Any, kinds: dict[str, Kind]) -> polars.DataFrame:
    """Read a table whose rows all have the same columns.

    Args:
        kinds: for each column, the kind of its values. Other columns are metrics of plugins, which
            are numbers.

    Raises:
        ValueError: the table is empty, or a row has other columns or values.
    """
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{name} must be a list of rows, got {reprlib.repr(rows)}")
    for place, row in enumerate(rows):
        check_keys(f"{name}[{place}]", row, kinds)
        check_keys(f"{name}[{place}]", row, dict.fromkeys(rows[0].keys() - kinds.keys(), METRIC))
        if row.keys() != rows[0].keys():
            raise ValueError(f"{name}[{place}] does not have the columns of the first row")
    return polars.DataFrame(
        rows, schema_overrides={
            **{column: CURVE_TYPES[column] for column in kinds if column in CURVE_TYPES},
            **{column: dtype for column, dtype in (TARGET_TYPES | COMPONENT_TYPES).items() if column in rows[0]},
        },
        infer_schema_length=None,
    )  # fmt: skip
