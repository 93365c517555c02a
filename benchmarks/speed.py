"""densitometer against the published pipeline's manner, in one run on one machine.

The published manner, written here from its description with the same data flow: node after node the contribution
vectors of its edges are stacked, their norms taken, and every edge is put into a networkx graph one at a time; a heap of
edges grows the trace; each size's trace becomes a networkx graph, its masks are set edge by edge, and the model runs
once. Both sides use this project's capture and masked forward pass, the published manner one size at a time and with
nothing skipped; its capture is not counted.

    python benchmarks/speed.py                         Qwen3-0.6B's shape, 40 tokens
    python benchmarks/speed.py --tokens 128 --runs 5

Ratios within one run are what counts; absolute times belong to the machine.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
import time
from collections.abc import Callable

import networkx
import numpy
import torch
import transformers

import densitometer as dm
from densitometer.ablation import masked_logits
from densitometer.density import DEFAULT_SIZES
from densitometer.forward import run_forward
from densitometer.graph import Graph, graph_of
from densitometer.importance import score_edges

SHAPES = {
    "qwen3-0.6b": {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "small": {
        "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 32, "intermediate_size": 768, "vocab_size": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def published_graph(model: dm.Model, graph: Graph) -> networkx.MultiDiGraph:
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


def published_traces(graph: networkx.MultiDiGraph, root: tuple[int, int]) -> list[tuple]:
    """Best-first growth by a heap of edges: all of them, most important first."""
    heap: list[tuple[float, int, tuple]] = []
    seen, order, count = {root}, [], 0

    def push(node: tuple[int, int]) -> None:
        nonlocal count
        for source, target, key, data in (
            graph.in_edges(node, keys=True, data=True) if graph.has_node(node) else ()
        ):
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
    """One size: the trace as a networkx graph, its masks set edge by edge, one forward pass."""
    trace = networkx.MultiDiGraph()
    for source, target, key in edges:
        trace.add_edge(source, target, **network.edges[source, target, key])
    flat = numpy.zeros(graph.space.size, dtype=bool)
    views = graph.space.views(flat)
    for (_, source), (level, target), data in trace.edges(data=True):
        into = views[level]
        if data["kind"] == "attention":
            into.attention[data["head"], target, source] = True
        else:
            (into.mlp if data["kind"] == "mlp" else into.residual)[target] = True
    return run_dense(graph, [flat])


def run_dense(graph: Graph, masks: list[numpy.ndarray]) -> torch.Tensor:
    """One batch in which nothing is skipped."""
    batch = torch.from_numpy(numpy.stack(masks)).float()
    with torch.no_grad():
        return graph.model.adapter.masked_logits(graph.forward.ids, graph.forward.block_masks(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--model", help="a model to load instead of a random one of a shape")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--without-published", action="store_true", help="leave the slow baseline out")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if arguments.model:
        model = dm.load_model(arguments.model)
    else:
        config = transformers.Qwen3Config(**SHAPES[arguments.shape])
        model = dm.load_model(transformers.Qwen3ForCausalLM(config))
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    ids = [(7919 * i + 17) % vocabulary for i in range(arguments.tokens)]
    sizes = DEFAULT_SIZES[:-1]  # 26 sizes below the full trace

    times: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)

    for _ in range(arguments.runs):
        seconds, _ = timed(lambda: model.adapter.logits(ids))
        note("plain forward", seconds)

        def graph_and_traces() -> tuple[Graph, list[dm.Trace]]:
            forward, position = run_forward(model, ids)
            graph = graph_of(forward, ids, position, "l1")
            return graph, graph.traces(sizes)

        seconds, (graph, traces) = timed(graph_and_traces)
        note("graph, importances, all traces", seconds)
        for name in ("fisher", "bound", "best"):
            seconds, _ = timed(lambda name=name: score_edges(graph.forward, name))
            note(f"importance by {name}", seconds)
        masks = [trace.flat for trace in traces]
        seconds, sparse = timed(lambda: masked_logits(graph.forward, masks))
        note("26 sizes, rows skipped", seconds)
        seconds, dense = timed(lambda: run_dense(graph, masks))
        note("26 sizes, one dense batch", seconds)
        assert float((sparse - dense).abs().max()) < 1e-3

        if arguments.without_published:
            continue
        seconds, network = timed(lambda: published_graph(model, graph))
        note("published: graph", seconds)
        root = (len(graph.space.levels) - 1, graph.position)
        seconds, order = timed(lambda: published_traces(network, root))
        note("published: heap", seconds)
        assert len(order) == graph.n_edges
        counts = [trace.n_edges for trace in traces]
        seconds, runs = timed(lambda: torch.cat([published_run(graph, network, order[:n]) for n in counts]))
        note("published: 26 sizes", seconds)
        seconds, _ = timed(lambda: [run_dense(graph, [mask]) for mask in masks])
        note("(its 26 forward passes alone)", seconds)
        print(
            f"largest difference of logits, published manner and ours: {float((runs - sparse).abs().max()):.1e}"
        )

    medians = {name: statistics.median(values) for name, values in times.items()}
    plain = medians["plain forward"]
    print(f"{arguments.model or arguments.shape}, {arguments.tokens} tokens, {graph.n_edges:,} edges, "
          f"{torch.get_num_threads()} threads, median of {arguments.runs}")  # fmt: skip
    print(f"{'part':34} {'seconds':>9} {'plain forwards':>15}")
    for name, seconds in medians.items():
        print(f"{name:34} {seconds:9.3f} {seconds / plain:15.2f}")
    ours = medians["graph, importances, all traces"] + medians["26 sizes, rows skipped"]
    published = sum(seconds for name, seconds in medians.items() if name.startswith("published"))
    if published:
        print(f"published manner / densitometer: {published / ours:.1f}")
    print(
        f"dense batch / rows skipped: {medians['26 sizes, one dense batch'] / medians['26 sizes, rows skipped']:.2f}"
    )


if __name__ == "__main__":
    main()
