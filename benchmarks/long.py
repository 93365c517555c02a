"""Memory and time of one long input, part by part: importances, thresholds and masked runs tile by tile.

    python benchmarks/long.py                          Qwen3-0.6B's shape, 4,096 tokens
    python benchmarks/long.py --tokens 1024 --sizes 0.01

Random weights. Memory is the process's own peak (maximum resident set), with the model in it; times belong to the machine,
so each is given in plain forwards, too.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import torch
import transformers
from speed import SHAPES

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.graph.tiled.tiles import NormImportance, TiledGraph, run_tiled, tiled_logits


def peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.001, 1.0])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    forward_seconds = None

    def part(name: str, work: Callable[[], object]) -> object:
        nonlocal forward_seconds
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        forward_seconds = seconds if name == "plain forward" else forward_seconds
        relative = f"{seconds / forward_seconds:8.2f}" if forward_seconds else " " * 8
        print(f"{name:<40}{seconds:9.1f} s {relative} forwards   peak {peak_gib():5.2f} GiB", flush=True)
        return result

    config = transformers.Qwen3Config(
        **SHAPES[arguments.shape], tie_word_embeddings=True, max_position_embeddings=arguments.tokens
    )
    model = part("model", lambda: dm.load_model(transformers.Qwen3ForCausalLM(config)))
    ids = torch.randint(0, config.vocab_size, (arguments.tokens,)).tolist()
    own = part("plain forward", lambda: model.adapter.logits(ids))
    forward = part("recorded run", lambda: run_tiled(model, ids, ["l1"]))
    tokens = tuple(map(str, ids))
    graph = TiledGraph(forward, NormImportance(forward, "l1"), tuple(ids), tokens, len(ids) - 1, "l1")
    n_edges = part("sweep: bottlenecks, edges, histogram", lambda: graph.n_edges)
    print(f"{n_edges:,} edges, {forward.space.size:,} possible", flush=True)
    traces = part("thresholds of all sizes", lambda: graph.traces(arguments.sizes))
    for size, trace in zip(arguments.sizes, traces, strict=True):
        logits = part(f"masked run, {size:g}", lambda trace=trace: tiled_logits([trace]))
        tv = float(total_variation(own, logits))
        print(
            f"  {trace.n_edges:,} edges, threshold {graph.reached_by(trace):.3e}, TV {tv:.2e}, operations {trace.tally.flops:.4g}"
        )


if __name__ == "__main__":
    main()
