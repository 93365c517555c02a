"""What densities along a text cost beside measurements of single positions, and how the cost of written tokens grows.

    python benchmarks/positions.py along                         64 tokens of prose on SmolLM2 (`make real-models`): minutes
    python benchmarks/positions.py along --importance fisher --count
    python benchmarks/positions.py written --count               8 tokens of prose, and 100 that the model writes
    python benchmarks/positions.py along --model demo --tokens 24 --every 4
    python benchmarks/positions.py parts                         where its time goes

Seconds are processor time on one thread. With `--count`, floating-point operations of matrix products are counted instead
(`torch.utils.flop_counter`), which no other work on the machine moves.

`along` compares one `measure_positions` with the sum of single measurements, of which every eighth is run and the sum
scaled: the same work (this importance, these sizes, no baselines), and the default `measure` on the tokens up to the
position. `written` compares the last ten tokens with the first ten.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import densitometer as dm
from densitometer.graph import graph, growth
from densitometer.measuring import positions

ROOT = Path(__file__).parents[1]
REAL = {name: str(ROOT / ".models" / name) for name in ("smollm2", "gemma3", "qwen05")}


class Cost:
    """Seconds of processor time, or operations, of what runs in a `with` block."""

    def __init__(self, count: bool) -> None:
        self.counter: Any = FlopCounterMode(display=False) if count else nullcontext()
        self.count = count

    def __enter__(self) -> Cost:
        self.counter.__enter__()
        self.start = time.process_time()
        return self

    def __exit__(self, *raised: Any) -> None:
        seconds = time.process_time() - self.start
        self.counter.__exit__(*raised)
        self.value = self.counter.get_total_flops() if self.count else seconds


def watched(owner: Any, name: str, times: dict[str, float], label: str) -> Any:
    """Return a context in which the processor time of a function is added to `times`."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            times[label] = times.get(label, 0.0) + time.process_time() - start

    return mock.patch.object(owner, name, timed)


def along(model: dm.Model, ids: list[int], importance: str, every: int, count: bool) -> None:
    plain = statistics.median(cost_of(lambda: model.adapter.logits(ids), count) for _ in range(3))
    # in the middle of each part of the text, so that what grows with the length is not overstated
    places = range(every // 2, len(ids), every) if every else ()
    alone = [
        cost_of(lambda p=p: dm.measure(model, ids, position=p, importance=importance, baselines=()), count)
        for p in places
    ]
    default = [cost_of(lambda p=p: dm.measure(model, ids[: p + 1]), count) for p in places]
    together = cost_of(lambda: dm.measure_positions(model, ids, importance=importance), count)
    print(f"\n{len(ids)} tokens, {importance}; n = {len(places)} single measurements, in plain forwards of all tokens ({plain:.4g} "
          f"{'operations' if count else 's'})\n")  # fmt: skip
    print(f"measure_positions {together / plain:.1f}")
    for label, costs in (("the same work", alone), ("default", default)):
        if not costs:
            continue
        total = every * sum(costs)
        print(f"single measurements, {label}: {total / plain:.1f} (at {', '.join(str(p + 1) for p in places)} tokens "
              f"{', '.join(f'{c / plain:.1f}' for c in costs)}); ratio {together / total:.3f}")  # fmt: skip


def parts(model: dm.Model, ids: list[int], importance: str) -> None:
    """Where the time of `measure_positions` goes."""
    times: dict[str, float] = {}
    with ExitStack() as stack:
        for owner, name, label in (
            (positions, "record", "recording"),
            (positions, "compute_importance", "importance"),
            (positions, "masked_logits", "traces"),
            (positions, "total_variation", "metrics"),
            (graph, "best_first_order", "orders"),
            (growth, "bottleneck_keys", "reachable edges"),
            (positions.Position, "mask", "masks, with orders and reachable edges"),
        ):
            stack.enter_context(watched(owner, name, times, label))
        total = cost_of(lambda: dm.measure_positions(model, ids, importance=importance), False)
    print(f"\nparts of {total:.1f} s")
    for label, seconds in times.items():
        print(f"{label}: {seconds:.2f} s, {100 * seconds / total:.1f} %")


def written(model: dm.Model, ids: list[int], n_tokens: int, importance: str, count: bool) -> None:
    parts = dm.measure_generation(model, ids, n_tokens=n_tokens, importance=importance)
    costs = []
    for i in range(n_tokens + 1):
        cost = cost_of(lambda: next(parts, None), count)
        costs += [cost] if i else []  # the first is the prompt's
    first, last = costs[:10], costs[-10:]
    print(f"\n{n_tokens} tokens written after {len(ids)}, {importance}, {'operations' if count else 's'}: first ten {sum(first):.4g}, last ten "
          f"{sum(last):.4g}, ratio {sum(last) / sum(first):.2f}; medians {statistics.median(first):.4g} and {statistics.median(last):.4g}, "
          f"ratio {statistics.median(last) / statistics.median(first):.2f}")  # fmt: skip
    print("by tens: " + ", ".join(f"{sum(costs[i : i + 10]):.4g}" for i in range(0, n_tokens, 10)))


def cost_of(work: Callable[[], Any], count: bool) -> float:
    with Cost(count) as cost:
        work()
    return float(cost.value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("along", "parts", "written"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, help="file of prose; the licence without one")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--every", type=int, default=8, help="0 for no single measurements")
    parser.add_argument("--importance", default="l1")
    parser.add_argument("--count", action="store_true")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = dm.load_model(REAL.get(given.model, given.model))
    text = " ".join((given.text or ROOT / "LICENSE").read_text().split())
    ids = list(model.encode(text[:1000]))  # about 200 tokens
    model.adapter.logits(ids[:8])
    dm.measure_positions(model, ids[:2])  # what is tried once for each model
    if given.table == "written":
        written(model, ids[:8], given.tokens or 100, given.importance, given.count)
    elif given.table == "parts":
        parts(model, ids[: given.tokens or 64], given.importance)
    else:
        along(model, ids[: given.tokens or 64], given.importance, given.every, given.count)


if __name__ == "__main__":
    main()
