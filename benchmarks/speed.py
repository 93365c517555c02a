"""What a measurement costs on a CPU, as tables: its parts, how they grow, memory, the published manner, and the floor.

    python benchmarks/speed.py parts published              three real models (`make real-models`), hours; --runs 1 is quicker
    python benchmarks/speed.py parts --case smollm2:40 --case qwen3-0.6b:40
    python benchmarks/speed.py published --case demo:128
    python benchmarks/speed.py scaling --runs 3

Each case runs in a process of its own, so that peaks are its own, on one thread; seconds are medians of processor time,
which other work on the machine disturbs least. Ratios within one run are what counts, absolute times belong to the machine.
"forwards" are plain forward passes of the same model and tokens.

The floor of a part is the longer of two times, at speeds measured in the same process: that of the operations which it cannot
do without (of a pass, all; of the runs of traces, what is live in each; of a measurement, a plain pass, a recorded one and the
runs; an importance of gradients is a measurement's own choice, so it adds nothing), counted, and that of reading the weights
once for each batch.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densitometer.graph.forward_pass import ForwardPass

ROOT = Path(__file__).parents[1]
REAL = {name: str(ROOT / ".models" / name) for name in ("smollm2", "gemma3", "qwen05")}
LENGTHS = (16, 40, 128, 512)
BUNDLED = ("demo", "demo-parallel", "demo-branchnorm")
SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
    },
    "small": {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 64, "intermediate_size": 768, "vocab_size": 8192,
    },
}  # fmt: skip
# Importance, and whether baselines run at all sizes, as they do where sizes are given.
MEASURES: dict[str, tuple[str | list[str], bool]] = {
    "measure: default": (["l1", "fisher"], False),
    "measure: l1, both baselines at all sizes": ("l1", True),
}
SCALING = {
    "tokens": (16, 64, 256, 1024),
    "num_hidden_layers": (2, 4, 8, 16),
    "num_attention_heads": (2, 4, 8, 16),
    "sizes": (1, 6, 26, 104),
    "texts": (1, 4, 16),
}
DENSE_TOKENS = 256  # beyond, one dense batch of 26 would need gigabytes; of a real model, beyond half of it
BEST_TOKENS = 128  # beyond, a search costs minutes a run


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def speeds() -> tuple[float, float]:
    """Operations per second of a float32 matrix product, and bytes per second of a sum larger than the caches."""
    import torch

    x, y, long = torch.rand(512, 1024), torch.rand(1024, 3072), torch.rand(2**23)
    out = torch.empty_like(long)
    with torch.no_grad():
        product = min(timed(lambda: x @ y)[0] for _ in range(7))
        stream = min(timed(lambda: torch.add(long, long, out=out))[0] for _ in range(7))
    return 2.0 * 512 * 1024 * 3072 / product, 3.0 * long.nbytes / stream


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def resident_mib() -> float:
    from densitometer.measuring.planning import resident_bytes

    found = resident_bytes()
    return peak_mib() if found is None else found[0] / 2**20


def plain_operations(forward: ForwardPass) -> float:
    """Operations of one run of the model, output head on the last token only."""
    t, records = forward.n_tokens, forward.records
    operations = 2.0 * records[0].stream.shape[-1] * forward.logits.shape[-1]
    for cost, record in zip(forward.block_costs, records, strict=True):
        h, g = record.weights.shape[0], record.values.shape[0]
        linear = h * (cost.query_flops + cost.output_flops) + g * (cost.key_flops + cost.value_flops)
        operations += t * (linear + float(cost.mlp_flops.sum())) + h * t * t * (
            cost.score_flops + cost.mix_flops
        )
    return operations


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """One case, in this process: medians in seconds by part, counts and memory."""
    import torch
    import transformers

    import densitometer as dm
    from densitometer.graph.forward_pass import run_forward
    from densitometer.graph.graph import graph_of
    from densitometer.graph.importance.registry import compute_importance
    from densitometer.graph.masked_runs import masked_logits, variants_per_batch
    from densitometer.measuring.density import DEFAULT_SIZES
    from densitometer.models.packed import plan_rows

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if case["model"] in SHAPES:
        config = transformers.Qwen3Config(**SHAPES[case["model"]] | case["config"], tie_word_embeddings=True)
        model = dm.load_model(transformers.Qwen3ForCausalLM(config))
    else:
        model = dm.load_model(REAL.get(case["model"], case["model"]))
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    texts = [
        [(7919 * i + 17 + 131 * text) % vocabulary for i in range(case["tokens"])]
        for text in range(case["texts"])
    ]
    if case["model"] in REAL:  # what is live depends on the text: English prose
        words = model.encode(" ".join((ROOT / "LICENSE").read_text().split()))
        texts = [list(words)[: case["tokens"]]]
        assert len(texts[0]) == case["tokens"]
    ids = texts[0]
    sizes = DEFAULT_SIZES[:-1]
    if case["sizes"] != len(sizes):
        sizes = tuple(10 ** (-5 + 5 * i / case["sizes"]) for i in range(case["sizes"]))
    times: dict[str, list[float]] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        seconds, result = timed(work)
        times.setdefault(name, []).append(seconds)
        return result

    def graph_and_traces() -> tuple[Any, Any]:
        forward, position = run_forward(model, ids)
        graph = graph_of(forward, ids, position, "l1")
        return graph, graph.traces(sizes)

    shares: dict[str, list[float]] = {}

    def measure_whole(name: str, text: list[int] = ids) -> None:
        """Every measurement, and the shares of operations that its runs need."""
        own = shares[name] = []
        importance, given = MEASURES[name]
        dm.measure(
            model,
            text,
            importance=importance,
            sizes=[*sizes, 1.0] if given else None,
            observe=lambda runs: own.extend(trace.flops_share for *_, trace in runs.rows),
        )

    model.adapter.logits(ids)
    loaded = resident_mib()
    measure_whole("measure: default")
    peak = peak_mib() - loaded
    for _ in range(case["runs"]):
        part("plain forward", lambda: model.adapter.logits(ids))
        part("recorded run", lambda: run_forward(model, ids))
        graph, traces = part("recorded run, l1, all traces", graph_and_traces)
        forward = graph.forward
        for name in case["scores"]:
            part(f"score {name}", lambda name=name: compute_importance(forward, name))
        masks = [trace.flat for trace in traces]
        sparse = part("runs of all sizes, rows skipped", lambda: masked_logits(forward, masks))
        if case["tokens"] <= DENSE_TOKENS / (2 if case["model"] in REAL else 1):
            from published import run_dense

            dense = part("runs of all sizes, one dense batch", lambda: run_dense(graph, masks))
            assert float((sparse - dense).abs().max()) < 1e-3
        for name in MEASURES:
            part(name, lambda name=name: [measure_whole(name, text) for text in texts])
    found: dict[str, Any] = {}
    if case["published"]:
        from published import published_graph, published_order, published_run

        for _ in range(case["published"]):
            network = part("published: graph", lambda: published_graph(graph))
            root = (len(graph.space.levels) - 1, graph.position)
            order = part("published: heap", lambda: published_order(network, root))
            assert len(order) == graph.n_edges
            counts = [trace.n_edges for trace in traces]
            runs = part(
                "published: runs of all sizes",
                lambda: torch.cat([published_run(graph, network, order[:n]) for n in counts]),
            )
            found["difference"] = float((runs - sparse).abs().max())
    products, stream = speeds()
    plain = plain_operations(forward)
    owned = {id(p): p for p in [*model.module.parameters(), *model.module.buffers()]}.values()
    weight_bytes = sum(p.numel() * p.element_size() for p in owned)

    def floor(passes: int, runs: Sequence[float] = (), texts: int = 1) -> float:
        """Seconds of so many whole passes, and of runs of traces with these shares of the operations."""
        batches = -(-len(runs) // variants_per_batch(forward))
        operations, reads = plain * (passes + sum(runs)), weight_bytes * (passes + batches)
        return texts * max(operations / products, reads / stream)

    floors = {name: floor(1) for name in ("plain forward", "recorded run", "recorded run, l1, all traces")}
    floors["runs of all sizes, rows skipped"] = floor(0, [trace.flops_share for trace in traces])
    floors |= {name: floor(2, shares[name], len(texts)) for name in MEASURES}
    plan = plan_rows(
        model.adapter.blocks, forward.block_masks(torch.stack([torch.from_numpy(m) for m in masks]))
    )
    live = sum(
        len(block.rows) + len(block.mlp.rows) + sum(len(bucket.valid) for bucket in block.buckets)
        for block in plan.blocks
    )
    return found | {
        "times": {name: statistics.median(values) for name, values in times.items()},
        "edges": graph.n_edges, "floors": floors, "traces": {name: len(own) for name, own in shares.items()},
        "live": live / (3 * len(plan.blocks) * plan.index.size), "peak": peak, "loaded": loaded,
    }  # fmt: skip


def in_own_process(case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "case", json.dumps(case)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def case_of(model: str, tokens: int, **changes: Any) -> dict[str, Any]:
    plain = {"sizes": 26, "texts": 1, "runs": 5, "published": 0, "scores": [], "config": {}}
    return {"model": model, "tokens": tokens} | plain | changes


def head(case: dict[str, Any], found: dict[str, Any]) -> str:
    return f"{case['model']}, {case['tokens']} tokens, {found['edges']:,} edges, one thread, median of {case['runs']}"


def parts(names: Sequence[tuple[str, int]], runs: int) -> None:
    for name, tokens in names:
        scores = ["fisher", "bound"] + (["best"] if tokens <= BEST_TOKENS else [])
        case = case_of(name, tokens, runs=runs, scores=scores)
        found = in_own_process(case)
        times, floors = found["times"], found["floors"]
        plain = times["plain forward"]
        print(
            f"\n{head(case, found)}\n\n| part | seconds | forwards | times its floor |\n|---|---:|---:|---:|"
        )
        for part, seconds in times.items():
            runs_of = f" ({found['traces'][part]} traces)" if part in found["traces"] else ""
            above = f"{seconds / floors[part]:.1f}" if part in floors else ""
            print(f"| {part}{runs_of} | {seconds:.4f} | {seconds / plain:.2f} | {above} |")
        print(f"\nlive rows {100 * found['live']:.0f} %; peak memory of a default measurement {found['peak']:.0f} MiB above the "
              f"{found['loaded']:.0f} MiB of process and model")  # fmt: skip
        if (dense := times.get("runs of all sizes, one dense batch")) is not None:
            print(
                f"dense batch over rows skipped {dense / times['runs of all sizes, rows skipped']:.2f}",
                flush=True,
            )


def published(names: Sequence[tuple[str, int]], runs: int) -> None:
    print("\n| case | edges | published: graph, heap, runs (s) | ours: graph and traces, runs (s) | ratio | runs | logits differ by |"
          "\n|---|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    for name, tokens in names:
        found = in_own_process(case_of(name, tokens, runs=runs, published=runs))
        times = found["times"]
        theirs = [times[f"published: {part}"] for part in ("graph", "heap", "runs of all sizes")]
        ours = [times["recorded run, l1, all traces"], times["runs of all sizes, rows skipped"]]
        print(f"| {name}, {tokens} tokens | {found['edges']:,} | {', '.join(f'{s:.2f}' for s in theirs)} | "
              f"{', '.join(f'{s:.3f}' for s in ours)} | {sum(theirs) / sum(ours):.1f} | {runs} | {found['difference']:.0e} |",
              flush=True)  # fmt: skip


def scaling(runs: int) -> None:
    print("\nsmall, 40 tokens, 26 sizes, one text, unless said; all but the first in plain forwards\n\n"
          "| what | plain forward (s) | recorded run, l1, traces | rows skipped | dense batch | dense / skipped | live | whole, a text | "
          "whole / floor | peak MiB |\n|---|" + "---:|" * 9)  # fmt: skip
    for axis, values in SCALING.items():
        for value in values:
            own = {axis: value} if axis in ("sizes", "texts") else {}
            config: dict[str, int] = {axis: value} if axis.startswith("num") else {}
            if axis == "num_attention_heads":
                config |= {"num_key_value_heads": value, "head_dim": SHAPES["small"]["hidden_size"] // value}
            case = case_of("small", value if axis == "tokens" else 40, runs=runs, config=config, **own)
            found = in_own_process(case)
            times = found["times"]
            plain, skipped = times["plain forward"], times["runs of all sizes, rows skipped"]
            dense = times.get("runs of all sizes, one dense batch")
            name = "measure: l1, both baselines at all sizes"
            whole = times[name] / case["texts"]
            cells = [
                f"{axis.replace('num_', '').replace('_', ' ')} {value:,}", f"{plain:.4f}",
                f"{times['recorded run, l1, all traces'] / plain:.2f}", f"{skipped / plain:.2f}",
                "" if dense is None else f"{dense / plain:.2f}", "" if dense is None else f"{dense / skipped:.2f}",
                f"{100 * found['live']:.0f} %", f"{whole / plain:.1f}", f"{times[name] / found['floors'][name]:.1f}", f"{found['peak']:.0f}",
            ]  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)


def named_case(text: str) -> tuple[str, int]:
    name, _, tokens = text.partition(":")
    known = (*REAL, *BUNDLED, *SHAPES)
    if name not in known or not tokens.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME:TOKENS, NAME of {', '.join(known)}")
    return name, int(tokens)


def main() -> None:
    if sys.argv[1:2] == ["case"]:
        print(json.dumps(run_case(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ("parts", "published", "scaling")
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(tables)}; all if none is named")
    parser.add_argument(
        "--case", type=named_case, action="append", help="NAME:TOKENS, of parts and published"
    )
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    chosen = arguments.tables or tables
    if unknown := set(chosen) - set(tables):
        parser.error(f"unknown table {', '.join(unknown)}; expected {', '.join(tables)}")
    if "parts" in chosen:
        parts(arguments.case or [(name, tokens) for name in REAL for tokens in LENGTHS], arguments.runs)
    if "published" in chosen:
        published(
            arguments.case or [(name, tokens) for name in REAL for tokens in (13, 40, 128)], arguments.runs
        )
    if "scaling" in chosen:
        scaling(arguments.runs)


if __name__ == "__main__":
    main()
