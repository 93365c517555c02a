"""What a study of 10^6 texts would take: measured pieces, and a simulation made of them (docs/scale.md).

    python benchmarks/scale.py text        what a text costs beside the model's own products, at large models' numbers of edges
    python benchmarks/scale.py forwards    operations of a measurement, in plain forward passes, counted
    python benchmarks/scale.py folder      looking for what is missing in a folder of many parts
    python benchmarks/scale.py simulate    10^6 texts on 64 GPUs, from these figures and the assumptions printed with it

`text` runs thin models: the layers, heads and vocabulary of the large one, so exactly its edges, and a hidden size of two
numbers a head, so almost none of its products. Seconds are of processor time on one core.
"""

from __future__ import annotations

import argparse
import heapq
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Large:
    """A shape: parameters, layers, query heads, key-value heads, hidden size, vocabulary; GPUs that hold it in bfloat16."""

    parameters: float
    layers: int
    heads: int
    groups: int
    hidden_size: int
    vocabulary: int
    gpus: int


SHAPES = {
    "8B": Large(8.0e9, 32, 32, 8, 4096, 128_256, 1),
    "70B": Large(70.6e9, 80, 64, 8, 8192, 128_256, 2),
}
TOKENS = (14, 28, 55)  # 55: the papers' 40 words of English

# Taken from data sheets or guessed, not measured: an H100's dense bfloat16 operations and bytes a second, the share of the
# operations that is reached, and the host's time to start one kernel.
GPU_OPERATIONS, GPU_BYTES, REACHED, LAUNCH = 989e12, 3.35e12, 0.4, 8e-6
KERNELS_A_LAYER = 150  # of a masked run, as `densitometer.measuring.planning` counts


def thin(shape: Large, tokens: int) -> None:
    """One text of a thin model, in this process."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    from densitometer.models.loading import load_model
    from densitometer.models.source import DEMO_FOLDER
    from densitometer.study.corpus import Piece
    from densitometer.study.unigrams import Sample
    from densitometer.study.worker import Settings, Worker

    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=2 * shape.heads, intermediate_size=64, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.groups,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER / "demo")
    model = load_model(transformers.AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)
    _ = model.adapter.packs
    ids = [(7919 * i + 17) % 4096 for i in range(tokens)]
    model.adapter.capture(ids)
    worker = Worker(Settings(), None, {}, Sample({"1": "the sea and the whale"}, own=True))
    piece = Piece(0, ids, tokens - 1)
    started, used = time.monotonic(), time.process_time()
    ((row, _),) = worker._piece(model, {"text_id": "1"}, piece)
    used, took = time.process_time() - used, time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{row['n_edges']} {used} {took} {peak}")


def text() -> None:
    print("text       shape  tokens       edges  seconds  microseconds an edge  peak, GiB")
    for name in SHAPES:
        for tokens in TOKENS:
            command = [sys.executable, __file__, "thin", name, str(tokens)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[
                -2
            ]
            edges, used, _, peak = (float(x) for x in answer.split())
            print(
                f"text       {name:>5} {tokens:>7} {edges:>11,.0f} {used:>8.1f} {1e6 * used / edges:>21.2f} {peak:>10.2f}",
                flush=True,
            )


def forwards() -> None:
    """The bundled models are trained, so their traces' live rows are those of real texts; rows are skipped as a wide model
    would skip them, though it does not pay in these."""
    from torch.utils.flop_counter import FlopCounterMode

    import densitometer as dm
    from densitometer.models import packed

    packed.ONCE = packed.PER_ROW = 0.0
    text = ("The captain looked at the sea and said that the white whale was not the one that he had seen in the night, "
            "and the men who stood behind him on the deck did not know what to say to him about it")  # fmt: skip
    ids = dm.load_model("demo").encode(text)
    print("forwards   model          score   tokens  operations of a measurement / of a plain pass")
    for name in ("demo", "demo-parallel", "demo-branchnorm"):
        model = dm.load_model(name)
        dm.measure(model, ids[:5], importance="l1")
        for importance in ("l1", "fisher"):
            for tokens in (14, 28, len(ids)):
                counts = []
                for work in (
                    lambda: model.adapter.logits(ids[:tokens]),
                    lambda: dm.measure(model, ids[:tokens], importance=importance, baselines=()),
                ):
                    with FlopCounterMode(display=False) as counter:
                        work()
                    counts.append(counter.get_total_flops())
                print(
                    f"forwards   {name:<14} {importance:<7} {tokens:>6}  {counts[1] / counts[0]:.1f}",
                    flush=True,
                )


def folder(n: int = 100_000) -> None:
    """A task looks twice; parts are empty files here, since only their names are read."""
    from densitometer.study.part_files import slug
    from densitometer.study.store import StudyStore, _open_lock

    with tempfile.TemporaryDirectory() as place:
        store = StudyStore(Path(place), {}, _open_lock(Path(place)))
        parts = Path(place) / "parts" / slug("m")
        parts.mkdir(parents=True)
        made = 0
        for files in (100, 1_000, 10_000, n):
            for i in range(made, files):
                (parts / f"{i:08d}-{i + 1:08d}-0123456789ab.parquet").touch()
            made = files
            looks = []
            for _ in range(3):
                started = time.process_time()
                store.missing("m", 0, 10**6)
                looks.append(time.process_time() - started)
            print(
                f"folder     {files:>7,} parts: a look takes {1e3 * min(looks):.1f} ms, {1e6 * min(looks) / files:.1f} µs a part"
            )
        store.close()


def simulate(
    n_texts: int, workers: int, seconds: float, look: float, merging: bool, part_seconds: float = 10.0
) -> tuple[float, float, int]:
    """Texts handed out to workers by one process, which stores their answers and looks for what is missing.

    Args:
        seconds: of a text on a worker, mean of a lognormal distribution with a spread of a third.
        look: seconds of one look, for each part in the folder.
        merging: whether small parts are merged every 64 parts, 64 cells or more into one that stays.

    Returns:
        Seconds until all is done; the share of them in which the handing process is busy; the most parts at once.
    """
    rng = random.Random(0)
    free = [(0.0, worker) for worker in range(workers)]
    left, host, busy, parts, most, small, written = n_texts, 0.0, 0.0, 0, 0, 0, 0
    while left:
        now, worker = heapq.heappop(free)
        work = 2 * look * parts  # to look what is missing, and again when it is claimed
        if written and merging and written % 64 == 0:
            work += 64 * 0.014  # parts read and written anew: 14 ms each, of 2 texts
            small += 64
            if small >= 256:  # what has grown beyond 256 cells stays
                parts, small = parts - small + 1, 0
        host = max(host, now) + work
        busy += work
        cells, at = 0, host
        while left and cells < 64 and (cells == 0 or at - host < part_seconds):
            at += seconds * rng.lognormvariate(-(0.33**2) / 2, 0.33)
            cells, left = cells + 1, left - 1
        parts, written = parts + 1, written + 1
        most = max(most, parts)
        heapq.heappush(free, (at, worker))
    end = max(at for at, _ in free)
    return end, busy / end, most


def per_text(
    shape: Large, tokens: int, importance: str, us_per_edge: float, forwards: float
) -> dict[str, float]:
    """Seconds of a text: on the GPUs the longer of products and reading weights, beside starting kernels; on the host the
    rest, measured on thin models."""
    from densitometer.graph.masked_runs import batch_size

    t, edges = tokens, shape.layers * (shape.heads * tokens * (tokens + 1) / 2 + 3 * tokens)
    flat = shape.layers * (shape.heads * t * t + 3 * t)
    together = batch_size(shape.heads, shape.hidden_size, t, int(flat))
    passes = 3 + (27 + 12 + 1) / together + 12 / 3 + (8 if importance == "fisher" else 0)
    plain = 2 * shape.parameters * t
    return {
        "edges": edges,
        "products": forwards * plain / (REACHED * GPU_OPERATIONS),
        "weights": passes * 2 * shape.parameters / GPU_BYTES,
        "kernels": passes * KERNELS_A_LAYER * shape.layers * LAUNCH,
        "host": us_per_edge * 1e-6 * edges,
        "passes": passes,
    }


def report(us_per_edge: float, forwards_l1: float, forwards_fisher: float, look: float) -> None:
    print(f"simulate   measured: {us_per_edge} µs of host an edge, {forwards_l1} and {forwards_fisher} forwards a text by l1 and fisher, "
          f"{1e6 * look:.1f} µs a look and part")  # fmt: skip
    print(f"simulate   assumed: {GPU_OPERATIONS:.3g} operations/s of which {REACHED:.0%} are reached, {GPU_BYTES:.3g} bytes/s, "
          f"{1e6 * LAUNCH:.0f} µs a kernel")  # fmt: skip
    for name, shape in SHAPES.items():
        for importance, forwards_of in (("l1", forwards_l1), ("fisher", forwards_fisher)):
            part = per_text(shape, 55, importance, us_per_edge, forwards_of)
            gpu = max(part["products"], part["weights"], part["kernels"])
            total, workers = gpu + part["host"], 64 // shape.gpus
            print(
                f"simulate   {name} {importance}: {part['edges'] / 1e6:.1f} M edges, {part['passes']:.0f} passes; GPU {gpu:.2f} s "
                f"(products {part['products']:.2f}, weights {part['weights']:.2f}, kernels {part['kernels']:.2f}), host {part['host']:.2f} s; "
                f"{workers} workers"
            )
            for merging in (False, True):
                end, busy, most = simulate(10**6, workers, total, look, merging)
                print(
                    f"simulate     {'with' if merging else 'without'} merging under way: {end / 86400:.1f} days, the handing process busy "
                    f"{busy:.1%}, at most {most:,} parts",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["text", "forwards", "folder", "simulate", "thin"])
    parser.add_argument("more", nargs="*")
    parser.add_argument("--us-per-edge", type=float, default=2.0)
    parser.add_argument("--forwards-l1", type=float, default=20.0)
    parser.add_argument("--forwards-fisher", type=float, default=29.0)
    parser.add_argument("--look", type=float, default=12e-6)
    arguments = parser.parse_args()
    match arguments.what:
        case "thin":
            thin(SHAPES[arguments.more[0]], int(arguments.more[1]))
        case "simulate":
            report(arguments.us_per_edge, arguments.forwards_l1, arguments.forwards_fisher, arguments.look)
        case name:
            globals()[name]()
