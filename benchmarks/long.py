"""Memory and time of one long input of a real model, part by part: importances, thresholds and masked runs tile by tile.

    python benchmarks/long.py TEXT.txt                               SmolLM2, 2,048 tokens, l1 and fisher
    python benchmarks/long.py TEXT.txt --model .models/gemma3 --tokens 4096 --importances l1

Memory is the process's own peak (maximum resident set), with the model in it. Times belong to the machine, so each is given in
plain forwards, too.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.graph.masked_runs import masked_logits
from densitometer.graph.tiled.tiles import run_tiled, tiled_graph


def peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default=".models/smollm2")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--importances", nargs="*", default=["l1", "fisher"])
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.001, 0.1, 1.0])
    arguments = parser.parse_args()
    forward_seconds = None

    def part(name: str, work: Callable[[], object]) -> object:
        nonlocal forward_seconds
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        forward_seconds = seconds if name == "plain forward" else forward_seconds
        relative = f"{seconds / forward_seconds:8.2f}" if forward_seconds else " " * 8
        print(f"{name:<46}{seconds:9.1f} s {relative} forwards   peak {peak_gib():5.2f} GiB", flush=True)
        return result

    model = part("model", lambda: dm.load_model(arguments.model))
    ids = model.encode(arguments.text.read_text()[: 8 * arguments.tokens])[: arguments.tokens]
    own = part("plain forward", lambda: model.adapter.logits(ids))
    forward = part("recorded run", lambda: run_tiled(model, ids, arguments.importances))
    print(f"{len(ids):,} tokens, {forward.space.size:,} possible edges", flush=True)
    for name in arguments.importances:
        graph = part(f"{name}: gradients", lambda name=name: tiled_graph(forward, ids, len(ids) - 1, name))
        n_edges = part(f"{name}: sweep: bottlenecks, edges, histogram", lambda graph=graph: graph.n_edges)
        traces = part(f"{name}: thresholds of all sizes", lambda graph=graph: graph.traces(arguments.sizes))
        for size, trace in zip(arguments.sizes, traces, strict=True):
            logits = part(
                f"{name}: masked run, {size:g}", lambda trace=trace: masked_logits(forward, [trace])
            )
            tv = float(total_variation(own, logits))
            print(
                f"  {trace.n_edges:,} of {n_edges:,} edges, threshold {graph.reached_by(trace):.3e}, TV {tv:.2e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
