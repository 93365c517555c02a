"""Payload of the page: measurements as one gzipped JSON document, schema `densitometer.payload/1`.

    traces      {"schema", "kind": "traces", "views": [view, ...], "server": false}
    tokens      {"schema", "kind": "tokens", "tokens": [...], "views": {position: view}}

A view is one measured input: its graph, its curves, and for each importance the order in which
best-first growth adds the edges. **Large inputs stay light.** A view keeps the first edges of each
order, up to a budget. For all others it keeps exact counts: how many edges of each component
(level, kind, head) are on at each size of a grid, the cost of these traces, and a histogram of
importances. `edges.exact_to` is the largest size at which every edge of the trace can be drawn.

An input whose edges are not stored (`tiles.py`) has a view for each importance. Its costs are known
at measured sizes and NaN at others, edges with the same key are ranked by importance (`long.py`),
and it has no readings. An open page asks for them.

An array is {"dtype", "shape", "data"}, with little-endian bytes in base64. With "delta": true the
bytes are differences along the first axis.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import polars

from .._util.progress import progress, silent, visible
from ..errors import InputError, StorageError
from ..graph.forward_pass import EdgeSpace, Level
from ..graph.graph import Graph
from ..measuring.measurement import Measurement, measured
from ..measuring.records import shown_name
from ..measuring.settings import MeasureSettings
from ..models.loading import Model
from .long import LongEdges, long_edges
from .reading import LENS_TOLERANCE_TV, N_LENS, N_WRITES, Node, Reader, Writer

SCHEMA = "densitometer.payload/1"
# Edges that all views of a payload keep together.
EDGE_BUDGET = 100_000
# Edges that the traces of a text's tokens keep together.
TOKEN_EDGE_BUDGET = 250_000
# Largest payload of tokens, compressed. Traces of further tokens are left out.
PAYLOAD_BYTES = 5_000_000
# Logits that are computed for readings of nodes and edges, in all views together.
READ_OUT_BUDGET = 2**25
# Most nodes with a reading, and most writers.
READING_BUDGET = 8_000
LARGEST_INTEGER = 2**31 - 1
# Parts of Persian, Hindi and emoji, which are not escaped in a text.
JOINERS = "\u200c\u200d"
# Sizes of the slider besides measured ones.
GRID = 240
# Bins of the histogram of importances.
N_BINS = 40


def traces_payload(
    measurements: Measurement | Sequence[Measurement], edge_budget: int = EDGE_BUDGET
) -> dict[str, Any]:
    """Return the payload of one measurement, or of several to compare.

    Args:
        measurements: measurements, from `measure` or `Measurement.with_model`. Without a model the
            payload has their curves but no traces, and the page says so.
        edge_budget: edges that all measurements keep together.

    Raises:
        InputError: there is no measurement.
    """
    return traces_and_readers(measurements, edge_budget)[0]


def traces_and_readers(
    measurements: Measurement | Sequence[Measurement], edge_budget: int = EDGE_BUDGET
) -> tuple[dict[str, Any], list[Reader | None]]:
    """Return the payload of `traces_payload`, and a `Reader` for questions about each of its views.

    The reader is None for a measurement without a model.
    """
    parts = [measurements] if isinstance(measurements, Measurement) else list(measurements)
    if not parts:
        raise InputError("give at least one measurement; got none")
    parts = [part for m in parts for part in _parts_of(m.with_graphs())]
    budgets = edge_budget // len(parts), READ_OUT_BUDGET // len(parts)
    views, readers = zip(*(_view_and_reader(m, *budgets) for m in parts), strict=True)
    own = {m.model.name for m in parts}
    if len({shown_name(name) for name in own}) < len(own):  # folders that are called alike
        for view, m in zip(views, parts, strict=True):
            view["model"]["name"] = visible(m.model.name)
    return {"schema": SCHEMA, "kind": "traces", "views": list(views)}, list(readers)


def _parts_of(measurement: Measurement) -> list[Measurement]:
    """Split a measurement of a long input into one per importance. Return others unchanged."""
    session = measurement.session
    if session is None or len(session.graphs) == 1 or session.first.stored:
        return [measurement]
    return [
        replace(
            measurement,
            density={name: measurement.density[name]},
            session=replace(session, graphs={name: graph}),
        )
        for name, graph in session.graphs.items()
    ]


def tokens_payload(
    table: polars.DataFrame,
    *,
    label: str = "",
    traces: Mapping[int, Measurement] | None = None,
    edge_budget: int = TOKEN_EDGE_BUDGET,
) -> dict[str, Any]:
    """Return the payload of the density along a text.

    Args:
        table: table of `measure_positions`, a row per token and importance, with position, token,
            importance, auc_log, auc_linear, size_at, entropy and surprisal (null if unknown). A
            column `frequency` is shown too, if there is one.
        label: line above the text.
        traces: measurements by position, whose traces open with a click on their token, such as
            `TracesOfTokens`. Those that do not fit into `PAYLOAD_BYTES` are left out, and the page
            says so.
        edge_budget: edges that all traces keep together.

    Raises:
        InputError: a column is missing.
    """
    needed = ("position", "token", "importance", "auc_log", "auc_linear", "size_at", "entropy", "surprisal")
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise InputError(f"the table has no column {', '.join(missing)}; expected those of measure_positions")
    columns = [*needed, "frequency"] if "frequency" in table.columns else list(needed)
    traces = traces or {}
    budgets = (max(budget // max(len(traces), 1), 1) for budget in (edge_budget, READ_OUT_BUDGET))
    each = min(next(budgets), EDGE_BUDGET), next(budgets)
    views: dict[str, Any] = {}
    payload: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "tokens",
        "label": "".join(c if c in JOINERS else visible(c) for c in label),
        "columns": {name: table[name].to_list() for name in columns},
        "views": views,
    }
    left = PAYLOAD_BYTES - len(encode(payload))
    with progress("measuring the tokens' traces", len(traces)) as advance:
        for position, measurement in traces.items():
            view = view_of(measurement, *each)
            left -= len(encode(view))
            if left < 0:
                break
            views[str(position)] = view
            advance(1)
    return payload


class TracesOfTokens(Mapping[int, Measurement]):
    """Measurements of a text's tokens by position, the tokens with the largest `size_at` first.

    Each is measured when it is read, and is not kept.

    Args:
        model: model of the table.
        table: table of `measure_positions`.
        settings: settings of the table.
        most: largest number of tokens.
    """

    def __init__(
        self, model: Model, table: polars.DataFrame, settings: MeasureSettings, most: int = 64
    ) -> None:
        self._model = model
        self._settings = replace(settings, sizes=None, baselines=())
        rows = table.filter(polars.col("importance") == settings.importance[0])
        self._ids = rows["token_id"].to_list()
        dense = rows.with_columns(polars.col("size_at").fill_null(1.0)).sort(
            "size_at", descending=True, maintain_order=True
        )
        self._positions = dense["position"].head(most).to_list()

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int) -> Measurement:
        if position not in self._positions:
            raise KeyError(position)
        with silent():
            return measured(self._model, self._ids, self._settings, position, keep_graphs=True)


def encode(payload: Mapping[str, Any]) -> bytes:
    """Return a payload as gzipped JSON."""
    text = json.dumps(payload, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0)


def decode(data: bytes) -> dict[str, Any]:
    """Read a payload that `encode` wrote.

    Raises:
        StorageError: the payload is cut short, damaged or of another schema.
    """
    try:
        payload = json.loads(gzip.decompress(data))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise StorageError(f"the payload is cut short or damaged: {error}") from error
    schema = payload.get("schema") if isinstance(payload, dict) else None
    if schema != SCHEMA:
        raise StorageError(
            f"the payload has the schema {schema!r}; this version of densitometer reads {SCHEMA!r}. Measure again"
        )
    document: dict[str, Any] = payload
    return document


def _escaped(value: Any) -> Any:
    """Return plain data whose strings have their control characters escaped.

    A model's name may contain characters that change the direction of text, such as U+202E.
    """
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {name: _escaped(entry) for name, entry in value.items()}
    return [_escaped(entry) for entry in value] if isinstance(value, list) else value


def view_of(
    measurement: Measurement, edge_budget: int = EDGE_BUDGET, read_out_budget: int = READ_OUT_BUDGET
) -> dict[str, Any]:
    """Return the view of one measured input.

    Args:
        measurement: the measurement. Without a model its view has no edges.
        edge_budget: edges to keep.
        read_out_budget: logits to compute for readings.
    """
    return _view_and_reader(measurement, edge_budget, read_out_budget)[0]


def _view_and_reader(
    measurement: Measurement, edge_budget: int, read_out_budget: int
) -> tuple[dict[str, Any], Reader | None]:
    """Return the view of one measured input, and a `Reader` for questions about it, or None."""
    m = measurement.with_graphs()
    view: dict[str, Any] = {
        "model": _escaped(m.model.to_document() | {"name": shown_name(m.model.name)}),
        "input": m.input.to_document(),
        "graph": m.graph.to_document(),
        "summary": visible(m.summary()),
        "prediction": m.prediction.select("token", "probability").to_dicts(),
        "entropy": m.entropy,
        "next_token": None if m.next_token is None else m.next_token.to_document(),
        "noise_floor": m.noise,
        "importances": list(m.density),
        "density": {
            name: {"auc_log": d.auc_log, "auc_linear": d.auc_linear, "size_at": d.size_at(0.1)}
            | ({"faithful_at": d.size_at(0.1, by="faithfulness")} if d.faithfulness else {})
            for name, d in m.density.items()
        },
        "target": None if m.target is None else _escaped(m.target.to_document()),
        "counterfactual": None if m.counterfactual is None else m.counterfactual.to_document(),
        "curves": {name: _points(m, name) for name in m.density},
        "baselines": {
            name: {
                kind: m.curve.filter((polars.col("importance") == name) & (polars.col("kind") == kind))
                .select("size", "tv")
                .to_dicts()
                for kind in ("inverse", "random")
            }
            for name in m.density
        },
        "sinks": [] if m.sinks is None else m.sinks.tokens.select("token", "heads").to_dicts(),
        "provenance": _escaped(m.provenance.to_document()),
        "edges": None,
    }
    if m.session is None:
        return view, None
    if not m.session.first.stored:
        tables, kept = _long_edges_of(m, view, edge_budget)
        return view | tables, Reader(m, kept)
    reader = Reader(m)
    for name, graph in reader.graphs.items():
        points = view["curves"][name]
        traces = [graph.trace(n_edges=point["n_edges"]) for point in points]
        for point, run in zip(points, reader.run(traces), strict=True):
            point["top"] = run["top"]
    tables = _edges_of(reader, view, edge_budget) | _readings(reader, edge_budget, read_out_budget)
    # a new one, which holds no vectors until it is asked
    return view | tables, Reader(m)


def _points(m: Measurement, name: str) -> list[dict[str, Any]]:
    """Return the traces that were run, including those of the bisection, fewest edges first."""
    columns = ["size", "n_edges", "tv", "kl", "js", "top1", "entropy", "flops_share", "parameter_share"]
    columns += [] if m.target is None else ["target", "faithfulness"]
    shown = ["top_token", "top_probability"]
    runs = polars.concat([m.curve.select("importance", "kind", *columns, *shown),
                          m.refined.select("importance", "kind", *columns, *shown)])  # fmt: skip
    rows = (
        runs.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
        .unique("n_edges", keep="last", maintain_order=True)
        .sort("n_edges")
    )
    return [
        {column: row[column] for column in columns}
        | {"top": [{"token": row["top_token"], "probability": row["top_probability"]}]}
        for row in rows.iter_rows(named=True)
    ]


def _edges_of(reader: Reader, view: dict[str, Any], budget: int) -> dict[str, Any]:
    """Part of a view that holds the first edges of each order, and exact counts of all edges."""
    graphs, first = reader.graphs, reader.first
    space = first.space
    kept_each, kept = _kept(graphs, budget)
    component, components = space.component_numbers(), space.components()
    grid = _grid(view, first)
    orders, counts, costs, histograms = {}, {}, {}, {}
    for name, graph in graphs.items():
        rank = numpy.full(space.size, -1, dtype=numpy.int32)
        rank[graph.order] = numpy.arange(graph.n_edges, dtype=numpy.int32)
        orders[name] = (rank[kept], graph.importance[kept])
        counts[name] = _counts(component[graph.order], grid, len(components))
        costs[name] = (graph.costs.flops[grid], graph.costs.parameters[grid])
        every, shown = graph.importance[graph.index], graph.importance[kept]
        histograms[name] = _histogram(every[every > 0], None, shown[shown > 0], int((every == 0).sum()))
    edges = {"edge": numpy.searchsorted(first.index, kept), **space.columns(kept)}
    totals = numpy.bincount(component[first.index], minlength=len(components))
    return _edge_tables(
        space, edges, kept_each, orders, grid.astype("<i4"), totals, counts, costs, histograms
    )


def _long_edges_of(
    m: Measurement, view: dict[str, Any], budget: int
) -> tuple[dict[str, Any], dict[str, numpy.ndarray]]:
    """Part of a view like `_edges_of`, for an input whose edges are not stored, and its edges."""
    assert m.session is not None
    ((name, graph),) = m.session.graphs.items()
    points = view["curves"][name]
    swept = long_edges(graph, [point["n_edges"] for point in points], budget, GRID)
    # JavaScript has no arrays of 64-bit integers; float64 is exact up to 2^53
    integer = "<i4" if graph.n_edges <= LARGEST_INTEGER else "<f8"
    costs = {point["n_edges"]: (point["flops_share"], point["parameter_share"]) for point in points}
    known = numpy.array([costs.get(n, (numpy.nan, numpy.nan)) for n in swept.grid.tolist()])
    edges = {"edge": numpy.arange(swept.kept["rank"].size), **swept.kept}
    tables = _edge_tables(
        graph.space, edges, swept.exact_to, {name: (swept.kept["rank"], swept.kept["importance"])},
        swept.grid.astype(integer), swept.totals, {name: swept.counts.astype(integer)},
        {name: (known[:, 0], known[:, 1])}, {name: _long_histogram(swept)},
    )  # fmt: skip
    return tables | {"readings": None}, swept.kept


def _edge_tables(
    space: EdgeSpace,
    edges: Mapping[str, numpy.ndarray],
    exact_to: int,
    orders: Mapping[str, tuple[numpy.ndarray, numpy.ndarray]],
    grid: numpy.ndarray,
    totals: numpy.ndarray,
    counts: Mapping[str, numpy.ndarray],
    costs: Mapping[str, tuple[numpy.ndarray, numpy.ndarray]],
    histograms: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Tables of edges of a view. Mappings are by importance.

    Args:
        edges: columns of the kept edges, (n,): edge, level, kind (its name), head, source, target.
        exact_to: largest number of edges of a trace for which all its edges are kept.
        orders: rank and importance of the kept edges, (n,).
        grid: (G,), numbers of edges of traces.
        totals: (C,), edges of each component.
        counts: (G, C), edges of each component in each of these traces.
        costs: shares of operations and of parameters of each of these traces, (G,).
        histograms: from `_histogram`.
    """
    components = space.components()
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(each.kind for each in components))}
    return {
        "levels": _levels(space.levels),
        "n_tokens_run": space.n_tokens,
        "kinds": list(numbers),
        "edges": {
            "kept": int(edges["edge"].size),
            "exact_to": exact_to,
            "edge": array(edges["edge"].astype("<i4"), delta=True),
            "level": array(edges["level"].astype("<u2")),
            "kind": array(numpy.array([numbers[str(kind)] for kind in edges["kind"]], dtype="<u1")),
            "head": array(edges["head"].astype("<i2")),
            "source": array(edges["source"].astype("<u4")),
            "target": array(edges["target"].astype("<u4")),
            "orders": {
                name: {"rank": array(rank), "importance": array(importance.astype("<f4"))}
                for name, (rank, importance) in orders.items()
            },
        },
        "grid": array(grid, delta=True),
        "components": {
            "level": [each.level for each in components],
            "kind": [numbers[each.kind] for each in components],
            "head": [each.head for each in components],
            "n_edges": totals.tolist(),
            "counts": {name: array(of_traces, delta=True) for name, of_traces in counts.items()},
        },
        "costs": {
            name: {"flops": array(flops.astype("<f4")), "parameters": array(parameters.astype("<f4"))}
            for name, (flops, parameters) in costs.items()
        },
        "histograms": dict(histograms),
    }


def _long_histogram(found: LongEdges) -> dict[str, Any]:
    """Histogram of importances from counts by their high bits.

    Each importance counts as the smallest number with its high bits.
    """
    tiny = numpy.finfo(numpy.float32).tiny
    values, larger = found.importances.steps
    counts = numpy.diff(larger, prepend=0)
    # the last bin holds zeros and importances too small for a bin of their own
    if values[-1] < 0:
        counts[-1] -= found.zeros
        values = values.clip(min=tiny)
    values, counts = values[counts > 0], counts[counts > 0]
    kept = found.kept["importance"].astype(numpy.float32)
    # rounded down to the high bits and just below, as in `KeyHistogram.steps`
    under = (kept[kept > 0].view(numpy.int32) & ~0xFFFF) - 1
    return _histogram(values, counts, under.clip(min=0).view(numpy.float32).clip(min=tiny), found.zeros)


def _histogram(
    values: numpy.ndarray, counts: numpy.ndarray | None, kept: numpy.ndarray, zeros: int
) -> dict[str, Any]:
    """Histogram of edges by log10 importance, all and kept. Zeros are counted separately.

    Args:
        values: (n,), importances above 0.
        counts: (n,), how many edges have each; None for one.
        kept: importances above 0 of the kept edges.
        zeros: number of importances that are 0.
    """
    if not values.size:
        return {"from": 0.0, "to": 0.0, "all": [], "kept": [], "zero": zeros}
    low, high = float(numpy.log10(values.min())), float(numpy.log10(values.max()))
    bins = numpy.linspace(low, max(high, low + 1e-6), N_BINS + 1)
    bins[-1] += 1e-6
    return {
        "from": low,
        "to": high,
        "all": numpy.histogram(numpy.log10(values), bins, weights=counts)[0].astype(int).tolist(),
        "kept": numpy.histogram(numpy.log10(kept).clip(low, bins[-1]), bins)[0].tolist(),
        "zero": zeros,
    }


def _levels(levels: Sequence[Level]) -> list[dict[str, Any]]:
    return [
        {
            "layer": level.layer,
            "residual": level.residual_kind,
            "n_heads": level.n_heads,
            "mlp": level.n_units > 0,
        }
        for level in levels
    ]


def _kept(graphs: Mapping[str, Graph], budget: int) -> tuple[int, numpy.ndarray]:
    """Find the largest n for which the first n edges of all orders together fit the budget.

    Returns:
        n.
        These edges, int64 on the flat axis, increasing.
    """
    orders = [graph.order for graph in graphs.values()]
    n_edges = orders[0].size
    low, high = min(budget // len(orders), n_edges), min(budget, n_edges)
    while low < high:
        middle = (low + high + 1) // 2
        if numpy.unique(numpy.concatenate([order[:middle] for order in orders])).size <= budget:
            low = middle
        else:
            high = middle - 1
    return low, numpy.unique(numpy.concatenate([order[:low] for order in orders]))


def _grid(view: Mapping[str, Any], graph: Graph) -> numpy.ndarray:
    """Return the numbers of edges that the page's slider can select, (n,) int64, increasing.

    They are spread evenly over log size, and include every measured size.
    """
    n = graph.n_edges
    measured = [point["n_edges"] for points in view["curves"].values() for point in points]
    marks = [round(size * n) for size in graph.landmarks.values()]
    spread = numpy.geomspace(1, n, GRID).round().astype(int).tolist()
    return numpy.unique(
        numpy.array([c for c in [*spread, *measured, *marks] if 0 < c <= n], dtype=numpy.int64)
    )


def _counts(components: numpy.ndarray, grid: numpy.ndarray, n_components: int) -> numpy.ndarray:
    """Number of edges of each component among the first n, for each n of the grid.

    Returns:
        (grid, components) int32.
    """
    counts = numpy.empty((grid.size, n_components), dtype=numpy.int32)
    total, start = numpy.zeros(n_components, dtype=numpy.int64), 0
    for i, end in enumerate(grid):
        total += numpy.bincount(components[start:end], minlength=n_components)
        counts[i], start = total, end
    return counts


def _readings(reader: Reader, edge_budget: int, budget: int) -> dict[str, Any]:
    """Readings of a view: logit lens of nodes, and tokens that edges write.

    Nodes and edges are those of the most important edges, as many as the budget allows. There are
    no readings if the lens at the output is not close to the model's prediction.
    """
    graph = reader.first
    gap = reader.lens_gap
    if not gap <= LENS_TOLERANCE_TV:
        return {"readings": None}
    number = min(READING_BUDGET, max(budget // int(graph.forward.logits.numel()) // 3, 1))
    orders = [g.order[:edge_budget] for g in reader.graphs.values()]
    shortest = min(map(len, orders))
    # the importances' orders, interleaved, each edge at its first place
    merged = numpy.stack([order[:shortest] for order in orders], axis=1).ravel()
    _, firsts = numpy.unique(merged, return_index=True)
    merged = merged[numpy.sort(firsts)]
    columns = graph.space.columns(merged)
    level, head, source, target = (
        columns[n].astype(numpy.int64) for n in ("level", "head", "source", "target")
    )
    nodes = dict.fromkeys([Node(len(graph.space.levels), graph.space.n_tokens - 1)])
    for row, token in zip(
        numpy.stack([level, level + 1], 1).ravel().tolist(),
        numpy.stack([source, target], 1).ravel().tolist(),
        strict=True,
    ):
        nodes[Node(row, token)] = None
        if len(nodes) >= number:
            break
    gated = {i for i in range(len(graph.space.levels)) if reader.edges(i).gate is not None}
    residual = numpy.char.startswith(columns["kind"].astype(str), "residual")
    writers: dict[Writer, None] = {}
    written = (a[~residual].tolist() for a in (level, head, source, target))
    for lv, h, s, t in zip(*written, strict=True):
        writers[Writer(lv, h, s, t if h >= 0 and lv in gated else -1)] = None
        if len(writers) >= number:
            break
    lens_ids, probabilities = reader.nodes(list(nodes))
    write_ids, changes = reader.writes(list(writers))
    ids, places = numpy.unique(numpy.concatenate([lens_ids.ravel(), write_ids.ravel()]), return_inverse=True)
    n_lens = lens_ids.size
    return {
        "readings": {
            "tokens": reader.pieces(ids.tolist()),
            "nodes": array(numpy.array(list(nodes), dtype="<i4").reshape(-1, 2)),
            "node_tokens": array(places[:n_lens].astype("<i4").reshape(-1, N_LENS)),
            "node_probabilities": array(probabilities.astype("<f4")),
            "writers": array(numpy.array(list(writers), dtype="<i4").reshape(-1, 4)),
            "writer_tokens": array(places[n_lens:].astype("<i4").reshape(-1, 2 * N_WRITES)),
            "writer_changes": array(changes.astype("<f4")),
        }
    }


def array(values: numpy.ndarray, delta: bool = False) -> dict[str, Any]:
    """Return an array as a JSON object (module docstring)."""
    values = numpy.ascontiguousarray(values)
    if delta:
        values = numpy.diff(values, axis=0, prepend=numpy.zeros_like(values[:1]))
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    document = {
        "dtype": values.dtype.newbyteorder("<").str.lstrip("<|"),
        "shape": list(values.shape),
        "data": base64.b64encode(little.tobytes()).decode("ascii"),
    }
    return document | {"delta": True} if delta else document
