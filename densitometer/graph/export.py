"""Export of traces to networkx, GraphML and JSON, and as one boolean mask per layer.

A node is the residual stream of a token at one place: the embeddings are depth 0, and each level of
the graph (a layer's attention, its MLP, or both where they run in parallel) adds one. An edge leads
from a stream of one depth to a stream of the next:

    residual        the stream itself, from a token to the same token
    attention       one head, from the token that it reads to the query token
    mlp             the MLP, or one of its units, from a token to the same token

Several edges may join the same two nodes (heads; residual and MLP), so the graph is a directed
multigraph. The output is the last depth at the graph's position.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import polars
import torch
from torch import Tensor

from .._util.files import write_file

if TYPE_CHECKING:
    import networkx

    from .graph import Trace

SCHEMA = "densitometer.trace/1"


def links_of(trace: Trace) -> polars.DataFrame:
    """Return the table of a trace's edges, with the depths of the nodes that they connect.

    Columns: those of `Graph.edges`, source_depth and target_depth.
    """
    space = trace.graph.space
    depths = numpy.repeat(numpy.arange(len(space.levels)), numpy.diff(space.offsets))  # (F,)
    depth = polars.Series("source_depth", depths[trace.graph.index][trace.mask], dtype=polars.Int32)
    return trace.edges().with_columns(depth, (depth + 1).alias("target_depth"))


def to_document(trace: Trace) -> dict[str, Any]:
    """Return a trace as plain data, in the node-link form that networkx reads."""
    graph, links = trace.graph, links_of(trace)
    ends = [links.select(depth=f"{end}_depth", token=end) for end in ("source", "target")]
    output = polars.DataFrame({"depth": [len(graph.space.levels)], "token": [graph.position]})
    nodes = polars.concat([*ends, output.cast(dict(ends[0].schema))]).unique().sort("depth", "token")  # type: ignore[arg-type]
    layers = [None, *(level.layer for level in graph.space.levels)]  # that wrote each depth
    names = [
        {
            "id": f"{depth}:{token}", "depth": depth, "layer": layers[depth], "position": token, "token": graph.tokens[token],
        }
        for depth, token in nodes.iter_rows()
    ]  # fmt: skip
    columns = [c for c in links.columns if c not in ("source", "target", "source_depth", "target_depth")]
    rows = [
        {
            "source": f"{row['source_depth']}:{row['source']}", "target": f"{row['target_depth']}:{row['target']}",
            **{name: row[name] for name in columns if row[name] is not None},
        }
        for row in links.iter_rows(named=True)
    ]  # fmt: skip
    return {
        "schema": SCHEMA,
        "directed": True,
        "multigraph": True,
        "graph": {
            "model": graph.model.name, "tokens": list(graph.tokens), "position": graph.position,
            "importance": graph.importance_name, "granularity": graph.granularity, "n_edges": trace.n_edges,
            "n_edges_of_graph": graph.n_edges, "output": f"{len(graph.space.levels)}:{graph.position}",
        },
        "nodes": names,
        "links": rows,
    }  # fmt: skip


def to_networkx(trace: Trace) -> networkx.MultiDiGraph:
    """Return a trace as a networkx graph, with the attributes of `to_document`."""
    import networkx

    document = to_document(trace)
    found = networkx.MultiDiGraph(**document["graph"])
    for node in document["nodes"]:
        found.add_node(node["id"], **{k: v for k, v in node.items() if k != "id"})
    for link in document["links"]:
        found.add_edge(
            link["source"], link["target"], **{k: v for k, v in link.items() if k not in ("source", "target")}
        )
    return found


def write_graphml(trace: Trace, path: str | Path) -> None:
    """Write a trace as GraphML."""
    import networkx

    graph = to_networkx(trace)
    graph.graph["tokens"] = json.dumps(graph.graph["tokens"])  # GraphML has no lists
    for _, node in graph.nodes(data=True):
        node["token"] = _as_xml(node["token"])
        if node["layer"] is None:  # of the embeddings; GraphML has no null
            del node["layer"]
    text = "\n".join(networkx.generate_graphml(graph))
    write_file(path, lambda file: file.write(text.encode()))


def _as_xml(text: str) -> str:
    """Escape characters that XML 1.0 does not allow, as Python's `repr` does."""
    return "".join(c if c in "\t\n\r" or c.isprintable() else ascii(c)[1:-1] for c in text)


def write_json(trace: Trace, path: str | Path) -> None:
    """Write a trace as JSON (schema densitometer.trace/1)."""
    text = json.dumps(to_document(trace), ensure_ascii=False, allow_nan=False)
    write_file(path, lambda file: file.write(text.encode("utf-8", errors="surrogatepass")))


def to_mask(trace: Trace) -> list[dict[str, Tensor]]:
    """Return the edges that are on as boolean tensors on the CPU, a dictionary per layer."""
    layers: list[dict[str, Tensor]] = []
    space = trace.graph.space
    for level, view in zip(space.levels, space.views(torch.from_numpy(trace.flat)), strict=True):
        if level.layer == len(layers):
            layers.append({})
        layers[-1][level.residual_kind] = view.residual
        for kind, value in (("attention", view.attention), ("mlp", view.mlp)):
            if value is not None:
                layers[-1][kind] = value
    return layers
