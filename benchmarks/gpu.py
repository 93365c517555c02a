"""What a default measurement costs on a GPU: its parts in plain forwards and in multiples of their floor, memory, host waits.

    python benchmarks/gpu.py                        three shapes in bfloat16, 40 tokens; for one GPU, meant to take under 8 minutes
    python benchmarks/gpu.py --shape 8b --runs 5
    python benchmarks/gpu.py --device cpu --shape tiny --dtype float32     that it runs; its times say nothing about a GPU

Weights are random, so what is live in a trace is not what it is in a trained model; the shares are printed. Seconds are of
the wall clock, medians, with the device waited for before and after. The floor is the longer of two times, at speeds measured
in the same process: that of the operations that a part cannot do without, and that of reading the weights once for each
batch. Host waits are the operations that make the host wait for the device, as torch's synchronisation debugging counts them.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from speed import plain_operations

import densitometer as dm
from densitometer.graph.forward_pass import run_forward
from densitometer.graph.graph import graph_of
from densitometer.graph.importance.registry import compute_importance
from densitometer.graph.masked_runs import masked_logits, variants_per_batch
from densitometer.measuring.density import DEFAULT_SIZES

# hidden size, layers, attention heads, key-value heads, size of a head, of the MLP, of the vocabulary
SHAPES = {
    "tiny": (96, 3, 4, 2, 24, 256, 1_024),
    "0.5b": (896, 24, 14, 2, 64, 4_864, 151_936),
    "1.7b": (2_048, 28, 16, 8, 128, 6_144, 151_936),
    "8b": (4_096, 36, 32, 8, 128, 12_288, 151_936),
}


def random_model(shape: str, dtype: torch.dtype, device: str) -> dm.Model:
    hidden, layers, heads, groups, size, mlp, vocabulary = SHAPES[shape]
    config = transformers.Qwen3Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
        head_dim=size, intermediate_size=mlp, vocab_size=vocabulary, tie_word_embeddings=shape != "8b",
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return dm.load_model(transformers.Qwen3ForCausalLM(config))
    finally:
        torch.set_default_dtype(before)


class Clock:
    """Seconds and host waits of what is called, on one device."""

    def __init__(self, device: str, runs: int) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.runs = runs

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def median(self, work: Callable[[], Any]) -> float:
        """Median of the seconds that a call takes, after one call that is not counted."""
        work()
        seconds = []
        for _ in range(self.runs):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def host_waits(self, work: Callable[[], Any]) -> int | None:
        """How often a call makes the host wait for the device; None where that cannot be counted."""
        if not self.cuda:
            return None
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in found)


def speeds(clock: Clock, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Operations per second of a matrix product, and bytes per second of a copy that is larger than the caches."""
    n, length = (8_192, 2**29) if clock.cuda else (512, 2**23)
    x, y = torch.rand(n, n, dtype=dtype, device=device), torch.rand(n, n, dtype=dtype, device=device)
    source = torch.rand(length, dtype=dtype, device=device)
    target = torch.empty_like(source)
    product, copy = clock.median(lambda: x @ y), clock.median(lambda: target.copy_(source))
    return 2.0 * n**3 / product, 2.0 * source.nbytes / copy


def table(shape: str, tokens: int, dtype: torch.dtype, device: str, runs: int) -> None:
    clock = Clock(device, runs)
    products, stream = speeds(clock, dtype, device)
    model = random_model(shape, dtype, device)
    ids = [(7919 * i + 17) % SHAPES[shape][-1] for i in range(tokens)]
    forward, position = run_forward(model, ids)
    graph = graph_of(forward, ids, position, "l1")
    masks = [trace.flat for trace in graph.traces(DEFAULT_SIZES[:-1])]
    trace_shares = [trace.flops_share for trace in graph.traces(DEFAULT_SIZES[:-1])]
    shares: list[float] = []

    def measure() -> None:
        shares.clear()
        dm.measure(
            model, ids, observe=lambda runs: shares.extend(trace.flops_share for *_, trace in runs.rows)
        )

    def graph_and_traces() -> None:
        graph_of(run_forward(model, ids)[0], ids, position, "l1").traces(DEFAULT_SIZES[:-1])

    plain = plain_operations(forward)
    owned = {id(p): p for p in [*model.module.parameters(), *model.module.buffers()]}.values()
    weights = sum(p.numel() * p.element_size() for p in owned)

    def floor(passes: int, runs: list[float]) -> float:
        batches = -(-len(runs) // variants_per_batch(forward))
        return max(plain * (passes + sum(runs)) / products, weights * (passes + batches) / stream)

    measure()  # so that the shares of its runs are known
    work: dict[str, tuple[Callable[[], Any], float | None]] = {
        "plain forward": (lambda: model.adapter.logits(ids), floor(1, [])),
        "recorded run, l1, all traces": (graph_and_traces, floor(1, [])),
        "score fisher": (lambda: compute_importance(forward, "fisher"), None),
        "runs of all sizes": (lambda: masked_logits(forward, masks), floor(0, trace_shares)),
        "measure: default": (measure, floor(2, shares)),
    }
    print(f"\n{shape}, {tokens} tokens, {graph.n_edges:,} edges, {str(dtype).removeprefix('torch.')} on {device}, median of {runs}; "
          f"{len(shares)} traces run, which need {100 * sum(shares) / len(shares):.0f} % of the operations on average; "
          f"{products:.3g} operations and {stream:.3g} bytes a second\n")  # fmt: skip
    print(
        "| part | seconds | forwards | times its floor | peak GiB above the weights | host waits |\n|---|"
        + "---:|" * 5
    )
    unit = 0.0
    for name, (call, least) in work.items():
        if clock.cuda:
            torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() if clock.cuda else 0
        seconds = clock.median(call)
        unit = unit or seconds
        peak = f"{(torch.cuda.max_memory_allocated() - held) / 2**30:.2f}" if clock.cuda else "unmeasured"
        waits = clock.host_waits(call)
        above = "" if least is None else f"{seconds / least:.1f}"
        print(f"| {name} | {seconds:.4f} | {seconds / unit:.2f} | {above} | {peak} | "
              f"{'unmeasured' if waits is None else waits} |", flush=True)  # fmt: skip
    if not clock.cuda:
        print("\nNothing was measured on a GPU.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="append", choices=SHAPES, help="by default all but tiny")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    if torch.device(given.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu --shape tiny --dtype float32 shows that the script runs")
    transformers.logging.set_verbosity_error()
    for shape in given.shape or list(SHAPES)[1:]:
        table(shape, given.tokens, getattr(torch, given.dtype), given.device, given.runs)


if __name__ == "__main__":
    main()
