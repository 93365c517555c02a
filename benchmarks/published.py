"""The published pipeline's manner, written from its description with the same data flow, as a baseline for timing.

Node after node the contribution vectors of its edges are stacked, their norms taken, and every edge is put into a networkx
graph one at a time; a heap of edges grows the trace; each size's trace becomes a networkx graph, its masks are set edge by
edge, and the model runs once, nothing skipped. The recorded run and the masked forward pass are this project's; the recorded
run is not counted.
"""

from __future__ import annotations

import heapq

import networkx
import numpy
import torch

from densitometer.graph.graph import Graph


def published_graph(graph: Graph) -> networkx.MultiDiGraph:
    """Node after node: its edges' vectors stacked, their l1 norms, and one networkx edge each."""
    forward = graph.forward
    found = networkx.MultiDiGraph()
    for number, edges in enumerate(forward.levels()):
        written = None
        if edges.weights is not None:
            written = torch.stack(
                [torch.matmul(*edges.head(h)) for h in range(len(edges.weights))]
            )  # (H, S, D)
        for t in range(forward.n_tokens):
            names, vectors = [("residual", None, t)], [edges.residual[t][None]]
            if edges.mlp is not None:
                names.append(("mlp", None, t))
                vectors.append(edges.mlp[t][None])
            if edges.weights is not None:
                out = edges.weights[:, t, : t + 1, None] * written[:, : t + 1]  # (H, S, D)
                for s in range(t + 1):
                    for h in range(len(out)):
                        names.append(("attention", h, s))
                        vectors.append(out[h, s][None])
            norms = torch.cat(vectors).norm(p=1, dim=1)
            importance = norms / norms.sum()
            for i, (kind, head, source) in enumerate(names):
                found.add_edge(
                    (number - 1, source), (number, t), importance=importance[i].item(), kind=kind, head=head
                )
    return found


def published_order(network: networkx.MultiDiGraph, root: tuple[int, int]) -> list[tuple]:
    """Best-first growth by a heap of edges: all of them, most important first."""
    heap: list[tuple[float, int, tuple]] = []
    seen, order, count = {root}, [], 0

    def push(node: tuple[int, int]) -> None:
        nonlocal count
        if not network.has_node(node):
            return
        for source, target, key, data in network.in_edges(node, keys=True, data=True):
            heapq.heappush(heap, (-data["importance"], count, (source, target, key)))
            count += 1

    push(root)
    while heap:
        _, _, edge = heapq.heappop(heap)
        order.append(edge)
        if edge[0] not in seen:
            seen.add(edge[0])
            push(edge[0])
    return order


def published_run(graph: Graph, network: networkx.MultiDiGraph, edges: list[tuple]) -> torch.Tensor:
    """One size: the trace as a networkx graph, its masks set edge by edge, one forward pass: (1, vocabulary)."""
    trace = networkx.MultiDiGraph()
    for source, target, key in edges:
        trace.add_edge(source, target, **network.edges[source, target, key])
    flat = numpy.zeros(graph.space.size, dtype=bool)
    views = graph.space.views(flat)
    for (_, source), (level, target), data in trace.edges(data=True):
        into = views[level]
        if data["kind"] == "attention":
            into.attention[data["head"], target, source] = True
        elif data["kind"] == "mlp":
            into.mlp[0, target] = True
        else:
            into.residual[target] = True
    return run_dense(graph, [flat])


def run_dense(graph: Graph, masks: list[numpy.ndarray]) -> torch.Tensor:
    """One batch in which nothing is skipped: (K, vocabulary)."""
    batch = torch.from_numpy(numpy.stack(masks)).float()
    with torch.no_grad():
        return graph.model.adapter.masked_logits(graph.forward.ids, graph.forward.block_masks(batch))
