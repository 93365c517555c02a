"""Plan a measurement before any weight is loaded: edges, memory, disk, time, and advice.

    1. Read the model's sizes and masks from its config, on the meta device (`models/blueprint.py`).
    2. Count the edges by one sweep from the output over the layers' masks. The count is exact.
    3. Sum the memory that a measurement holds at its largest moment, item by item (`memory_items`).
       The sum is within 25 % of the growth of a process that measures, on three shapes
       (tests/test_plan.py). What Python and torch take themselves is not in it.
    4. If a time is requested, load the model, measure two short texts, and extend a straight line
       through their times to the planned length (`dry_run`). This is a rough figure.

F is the flat edge axis, E the edges that can reach the output, n the traces that are run. See
`forward_pass.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy
import torch

from .._util.memory import free_memory
from .._util.metrics import NUMBERS
from .._util.progress import silent
from ..errors import ArgumentTypeError, InputError
from ..graph.importance.gradients import PROJECTIONS, SLOPE_BYTES
from ..graph.importance.norms import ALONG
from ..graph.masked_runs import LONG_BATCH_BYTES, batch_size
from ..graph.tiled.tiles import SLOPES, STORED_EDGES, TILED
from ..models.adapter import vocabulary_size
from ..models.attention import GRAPH_WEIGHTS
from ..models.blueprint import Blueprint, blueprint
from ..models.loading import Model, load_model
from .measurement import measured
from .settings import MeasureSettings, checked_importances, checked_sizes
from .trace_sets import BASELINE_SIZES

# Subgraphs that need no importance.
NATURAL = 3
# Traces per importance that place `size_at`.
REFINING = 6
# Importances that run backward passes.
GRADIENTS = frozenset({"fisher", "bound", "best", "learned"})
# Tokens of the texts of a dry run. A disturbance of one of the two times is larger in the planned
# time: at 128 tokens seven times with 8 and 24 tokens, less than four times with 8 and 40
# (dev/LOG.md, 2026-11-30).
DRY_LENGTHS = (8, 40)
# Runs of each text. The shorter time counts, so that what is done only once is left out.
DRY_RUNS = 2
# Random seed of the token ids of these texts.
DRY_SEED = 0
# Bytes of the units in which an amount of memory is given.
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40
}  # fmt: skip
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|b|)", re.IGNORECASE)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and an input on which the memory of a measurement depends.

    Args:
        heads: for each layer: query heads, key-value heads, key size, value size.
        levels: levels of nodes, two for each layer, one for a parallel layer.
        mlp_width: units of an MLP.
        number_bytes: bytes of one number of the model's dtype.
        weight_bytes: bytes of all weights.
        keeps_logits: whether the model can compute the logits of the last token alone.
    """

    n_tokens: int
    heads: tuple[tuple[int, int, int, int], ...]
    levels: int
    n_edges: int
    hidden_size: int
    vocabulary_size: int
    mlp_width: int
    number_bytes: int
    weight_bytes: int
    keeps_logits: bool = True

    @property
    def attention_size(self) -> int:
        """Number of attention edges on the flat axis, including those that a mask forbids."""
        return self.n_tokens**2 * sum(heads for heads, *_ in self.heads)

    @property
    def size(self) -> int:
        """Length F of the flat edge axis."""
        return self.attention_size + self.n_tokens * (self.levels + len(self.heads))


@dataclass(frozen=True)
class Plan:
    """Edges, memory, disk and time that measuring texts of some length will take.

    Args:
        length: tokens of a text.
        texts: number of texts.
        edges_exact: whether `n_edges` is exact. If not, a real run has at most as many.
        memory: for each device, bytes by item at the largest moment.
        peaks: for each device, the most bytes in use at once, beyond Python and torch themselves.
        available: for each device, its free memory in bytes, if it can be read, or as given.
        seconds: time for all texts, without loading the model. It is rough, and None without a dry
            run.
        disk_bytes: bytes of the measurements of all texts as JSON.
        advice: what to change, with the peak that each change gives. Empty where the plan fits.
        budget: bytes of the devices whose memory was given, a part of `available`.

    Examples:
        >>> plan = dm.plan("demo", length=50)
        >>> plan.n_edges, plan.n_parameters, plan.edges_exact
        (52153, 2936640, True)
        >>> list(plan.memory["cpu"])[:2]  # bytes by item
        ['weights', 'recorded run']
    """

    model: str
    architecture: str
    dtype: str
    device: str
    length: int
    texts: int
    importance: tuple[str, ...]
    n_layers: int
    n_parameters: int
    n_edges: int
    edges_exact: bool
    memory: dict[str, dict[str, int]]
    peaks: dict[str, int]
    available: dict[str, int]
    seconds: float | None
    disk_bytes: int
    advice: tuple[str, ...] = field(default=())
    budget: dict[str, int] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        """The most bytes in use at once on the device that runs the model."""
        return self.peaks[self.device]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Devices whose memory is not known: it cannot be read here, and was not given."""
        return tuple(device for device in self.peaks if device not in self.available)

    @property
    def fits(self) -> bool | None:
        """Whether every peak is at most the device's memory. None where that is not known."""
        if any(
            self.peaks[device] > memory for device, memory in self.available.items() if device in self.peaks
        ):
            return False
        return None if self.unknown else True

    def __repr__(self) -> str:
        verdict = "fits" if self.fits else "does not fit: " + "; ".join(self.advice)
        if self.fits is None:
            verdict = f"not known whether it fits: {'; '.join(self.advice)}"
        seconds = "" if self.seconds is None else f"about {self.seconds:,.1f} s, "
        return (
            f"Plan({self.model}, {self.texts:,} x {self.length:,} tokens, {self.n_edges:,} edges, "
            f"{seconds}{self.peak_bytes / 1e6:,.0f} MB on {self.device}; {verdict})"
        )

    def to_document(self) -> dict[str, Any]:
        """Return the plan as plain data, for JSON."""
        return {**asdict(self), "peak_bytes": self.peak_bytes, "fits": self.fits}


def plan(
    name: str | Path,
    length: int,
    texts: int = 1,
    importance: str | Sequence[str] = "l1",
    sizes: Sequence[float] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    time: bool = False,
    memory: str | int | Mapping[str, str | int] | None = None,
    **keywords: Any,
) -> Plan:
    """Plan what measuring texts takes, from the model's config alone.

    No weight is loaded unless a time is requested.

    Args:
        name: a bundled model, a folder with a config.json, or a Hub id.
        length: tokens of a text.
        texts: number of texts, measured one after the other.
        importance: an importance, or several.
        sizes: sizes of the traces, as for `measure`.
        dtype: dtype of the weights. By default the one that `load_model` takes.
        device: device on which the model will run, by default the CPU.
        time: whether to load the model and measure two short texts, for a rough time. Nothing is
            loaded where the memory does not fit.
        memory: memory that may be used, instead of what is free now: bytes, or an amount such as
            "24GB" or "80GiB". It is that of the device that runs the model. A mapping such as
            {"cuda": "24GB", "cpu": "64GB"} gives several.
        **keywords: passed on to Hugging Face: `revision`, `token`, `trust_remote_code` ...

    Raises:
        InputError: a length, number of texts, importance, dtype, device or amount of memory
            cannot be used.
        ArgumentTypeError: a length or number of texts is not an integer.
        ModelError: there is no config, or the model cannot be measured.

    Examples:
        >>> dm.plan("demo", length=50, texts=1000, importance=["l1", "fisher"]).n_edges
        52153
    """
    for what, value, least in (("length", length, 2), ("texts", texts, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(f"{what} must be an integer, got {value!r}")
        if value < least:
            raise InputError(f"{what} must be at least {least}, got {value}")
    names = tuple(checked_importances(importance))
    try:
        place = str(torch.device(device or "cpu"))
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
    given = _budgets(memory, place)
    free = {d: n for d in sorted({place, "cpu"}) if (n := free_bytes(d)) is not None}
    drawn = blueprint(name, length, dtype, **keywords)
    shape = shape_of(drawn)
    n_sizes = len(checked_sizes(sizes))
    found = Plan(
        model=drawn.name,
        architecture=drawn.architecture,
        dtype=drawn.dtype,
        device=place,
        length=length,
        texts=texts,
        importance=names,
        n_layers=len(drawn.layers),
        n_parameters=drawn.n_parameters,
        n_edges=shape.n_edges,
        edges_exact=drawn.exact,
        memory=memory_items(shape, names, n_sizes, place),
        peaks=peaks(shape, names, n_sizes, place),
        available=free | given,
        budget=given,
        seconds=None,
        disk_bytes=texts * disk_bytes(shape, names, n_sizes),
    )
    if found.fits is False:
        return replace(found, advice=_advice(found, shape, n_sizes))
    if found.unknown:
        where = ", ".join(found.unknown)
        found = replace(
            found,
            advice=(f"the memory of {where} cannot be read here; give it: --memory {found.unknown[0]}=24GB",),
        )
    if not time:
        return found
    if dtype is not None:
        keywords["dtype"] = dtype
    model = load_model(name, tokenizer=False, device=device, **keywords)
    return replace(found, seconds=texts * dry_run(model, length, MeasureSettings(names, sizes)))


def dry_run(model: Model, length: int, settings: MeasureSettings) -> float:
    """Estimate the seconds that a text takes, from the times of two short texts of random tokens.

    A text takes a fixed time, and a time per token. The part that grows with the square of the
    tokens is small up to some hundred tokens. So a straight line through the two times is extended
    to the length. Times of long inputs are underestimated.

    Args:
        length: tokens of the text.
    """
    longer = min(max(length, 3), DRY_LENGTHS[1])
    # two tokens are the least that can be measured
    shorter = max(2, longer * DRY_LENGTHS[0] // DRY_LENGTHS[1])
    ids = torch.randint(
        vocabulary_size(model.module), (longer,), generator=torch.Generator().manual_seed(DRY_SEED)
    ).tolist()

    def seconds(n_tokens: int) -> float:
        start = perf_counter()
        measured(model, ids[:n_tokens], settings)
        return perf_counter() - start

    with silent():
        first, second = (min(seconds(n) for _ in range(DRY_RUNS)) for n in (shorter, longer))
    return second + max(second - first, 0.0) * (length - longer) / (longer - shorter)


def shape_of(drawn: Blueprint) -> Shape:
    """Return the sizes of a model and an input from their blueprint, and count the edges."""
    return Shape(
        n_tokens=drawn.n_tokens,
        heads=tuple((b.n_heads, b.n_groups, b.key_size, b.value_size) for b in drawn.layers),
        levels=sum(1 if layer.parallel else 2 for layer in drawn.layers),
        n_edges=count_edges(drawn),
        hidden_size=drawn.hidden_size,
        vocabulary_size=drawn.vocabulary_size,
        mlp_width=drawn.mlp_width,
        number_bytes=getattr(torch, drawn.dtype).itemsize,
        weight_bytes=drawn.weight_bytes,
        keeps_logits=drawn.keeps_logits,
    )


def count_edges(drawn: Blueprint) -> int:
    """Count the edges from which the output can be reached, by a sweep back from it."""
    t = drawn.n_tokens
    # (T,), nodes of the current level from which the output can be reached
    reached = numpy.zeros(t, dtype=bool)
    reached[-1] = True
    count = 0
    for layer in reversed(drawn.layers):
        if not layer.parallel:
            # residual_mlp and mlp
            count += 2 * int(reached.sum())
        # without a mask a token attends to itself and all earlier ones
        if layer.allowed is None:
            targets = numpy.flatnonzero(reached)
            attention = int((targets + 1).sum())
            sources = numpy.arange(t) <= targets.max()
        else:
            existing = layer.allowed.numpy()[reached]
            attention, sources = int(existing.sum()), existing.any(axis=0)
        count += layer.n_heads * attention + (2 if layer.parallel else 1) * int(reached.sum())
        reached = reached | sources
    return count


def traces_of(names: Sequence[str], n_sizes: int) -> int:
    """Return the number n of traces that one measurement runs together."""
    return n_sizes * len(names) + _n_baselines(n_sizes) * (len(names) + 1) + NATURAL


def _n_baselines(n_sizes: int) -> int:
    """Return the number of sizes at which baselines are run."""
    return min(n_sizes, len(BASELINE_SIZES))


def _budgets(memory: Any, place: str) -> dict[str, int]:
    """Bytes by device, of the argument `memory`.

    Raises:
        InputError: an amount or a device is unusable, or the plan does not use the device.
    """
    if memory is None:
        return {}
    amounts = dict(memory) if isinstance(memory, Mapping) else {place: memory}
    devices = {place, "cpu"}
    for name in amounts:
        if name not in devices:
            raise InputError(
                f"memory of {name!r} is given, but the plan uses {' and '.join(sorted(devices))}; give device={name!r} too, "
                "or leave it out"
            )
    return {name: _bytes_of(amount) for name, amount in amounts.items()}


def _bytes_of(amount: Any) -> int:
    """Bytes of an amount such as "24GB", "1.5 GiB" or 24_000_000_000."""
    if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0:
        return amount
    match = _AMOUNT.fullmatch(amount.strip()) if isinstance(amount, str) else None
    if match is not None and (found := int(float(match[1]) * _UNITS[match[2].lower()])) > 0:
        return found
    raise InputError(
        f"memory must be an amount such as 24GB or 80GiB, or a number of bytes above 0; got {amount!r}"
    )


def memory_items(shape: Shape, names: Sequence[str], n_sizes: int, device: str) -> dict[str, dict[str, int]]:
    """Return the bytes of each item at the largest moment, by device.

    Items of the graph are on the CPU, wherever the model is.

    Args:
        names: the importances.
        n_sizes: number of sizes of the traces.
        device: device on which the model runs.
    """
    if is_tiled(shape, names):
        return _tiled_items(shape, names, n_sizes, device)
    t, d, w, v = shape.n_tokens, shape.hidden_size, shape.mlp_width, shape.vocabulary_size
    edges, flat, attention = shape.n_edges, shape.size, shape.attention_size
    most = max(heads for heads, *_ in shape.heads)
    values = max(h * size + g * (key + size) for h, g, key, size in shape.heads)
    n, layers, b = traces_of(names, n_sizes), len(shape.heads), shape.number_bytes
    recorded = b * (attention + layers * t * (8 * d + values)) + layers * t * t
    # one graph for each importance, and the random one
    graphs = len(names) + 1
    # Each graph has importance, index and order, and all but the random one have thresholds. Which
    # edges can reach the output is stored once.
    importances = graphs * (4 * flat + 16 * edges) + flat + len(names) * 4 * (edges + 1)
    traces = n * flat // 8
    logits = 4 * v * 2 * (n + REFINING * len(names))
    # ranks and steps, then the places and their sort
    ordering = 8 * flat + 20 * edges
    # variants of a batch
    together = min(batch_size(most, d, t, flat), max(n, 1))
    rows = together * t
    head = 0 if shape.keeps_logits else rows * v
    masked = (
        2 * flat * together + 19 * most * t * t * together + b * (rows * (10 * d + 2 * w + values) + head)
    )
    gradients = 0
    if any(name in GRADIENTS for name in names):
        slopes = min(SLOPE_BYTES, 4 * PROJECTIONS * flat)  # of all projections at once
        gradients = 12 * flat + slopes + b * (5 * attention + layers * t * (16 * d + 4 * w + 2 * values))
    on_device = {
        "weights": shape.weight_bytes,
        "recorded run": recorded,
        "masked runs": max(masked, gradients),
    }
    on_cpu = {"importances and orders": importances, "traces": traces, "logits": logits}
    if device == "cpu":
        # several copies of the numbers that are compared at a time, most of them doubles
        metrics = 60 * min(NUMBERS, n * v)
        # What gradients free is not always given back before masked runs: 20 processes of one
        # shape took 113 to 158 MB, where everything but the gradients sums to 115 MB.
        left = min(masked, gradients) // 4
        held = {name: size for name, size in on_device.items() if name != "masked runs"}
        # Gradients are computed when nothing is ordered yet, and no trace has run.
        others = 4 * flat * (len(names) - 1)
        early = {**held, "importances and orders": others, "gradients": gradients}
        late = {**held, **on_cpu, "masked runs or sorting": max(masked, ordering, metrics) + left}
        return {"cpu": max(early, late, key=lambda items: sum(items.values()))}
    return {device: on_device, "cpu": {**on_cpu, "sorting and masks": max(ordering, 2 * flat * together)}}


def is_tiled(shape: Shape, names: Sequence[str]) -> bool:
    """Whether an input of this shape is measured tile by tile by these importances."""
    return shape.attention_size > STORED_EDGES and set(names) <= set(TILED)


def _tiled_items(shape: Shape, names: Sequence[str], n_sizes: int, device: str) -> dict[str, dict[str, int]]:
    """Return the bytes of each item of an input that is measured tile by tile, by device.

    The estimate is less precise than for stored edges: SmolLM2-135M with 2,048 tokens took 3.6 GB
    beyond its weights by l1 and fisher. These items sum to 3.2 GB (dev/LOG.md, 2026-11-30).
    """
    t, b = shape.n_tokens, shape.number_bytes
    recorded = sum(t * b * (h * key + g * key) for h, g, key, _ in shape.heads)  # queries and keys
    # nodes that are read back, and values; float32
    along = [4 * t * (h + g) * value for h, g, _, value in shape.heads]
    recorded += sum(along) * len(ALONG.keys() & set(names))
    kept = {  # gradients of the heads' outputs of each projection, and values; float32
        name: sum(4 * t * (SLOPES[name] * h * value + g * value) for h, g, _, value in shape.heads)
        for name in names
        if name in SLOPES
    }
    most = max(heads for heads, *_ in shape.heads)
    block = b * t * (16 * shape.hidden_size + 4 * shape.mlp_width) + 16 * min(most * t * t, GRAPH_WEIGHTS)
    streams = b * t * shape.hidden_size * len(shape.heads)
    # twice as much as `LONG_BATCH_BYTES` says was seen in whole batches, and gradients leave holes
    running = max(3 * LONG_BATCH_BYTES, block + streams if kept else 0)
    on_device = {
        "weights": shape.weight_bytes,
        "recorded run": recorded,
        "kept gradients": sum(kept.values()),
        "masked runs or gradients": running,
    }
    logits = 4 * shape.vocabulary_size * (traces_of(names, n_sizes) + REFINING * len(names))
    if device == "cpu":
        return {"cpu": {**on_device, "logits": logits}}
    return {device: on_device, "cpu": {"logits": logits}}


def peaks(shape: Shape, names: Sequence[str], n_sizes: int, device: str) -> dict[str, int]:
    """Return the most bytes in use at once, by device."""
    return {
        place: sum(items.values()) for place, items in memory_items(shape, names, n_sizes, device).items()
    }


def disk_bytes(shape: Shape, names: Sequence[str], n_sizes: int) -> int:
    """Estimate the bytes of one measurement as JSON, from its numbers of rows and tokens."""
    rows = (n_sizes + 2 * _n_baselines(n_sizes) + REFINING) * len(names) + NATURAL
    return 3000 + 530 * rows + 45 * shape.n_tokens


def free_bytes(device: str) -> int | None:
    """Return the bytes of memory that are free on a device now, or None if unknown."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None
    return free_memory() if device == "cpu" else None


def resident_bytes() -> tuple[int, int] | None:
    """Return the bytes of memory of this process: in use now, and the most that ever were.

    None where the system does not report them.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, most = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return now, most
    except (OSError, KeyError, ValueError):
        return None


def _advice(found: Plan, shape: Shape, n_sizes: int) -> tuple[str, ...]:
    """List changes that would lower the memory of a plan that does not fit, each with its peak."""
    names, place = found.importance, found.device
    advice = []

    # text of some peaks, and whether they fit
    def fits(of: dict[str, int]) -> str:
        fit = all(peak <= found.available.get(device, peak) for device, peak in of.items())
        shown = ", ".join(f"{peak / 1e9:.3g} GB on {device}" for device, peak in of.items())
        known = all(device in found.available for device in of)
        return f"{shown}{' - fits' if fit and known else ''}"

    if shape.attention_size > STORED_EDGES and not is_tiled(shape, names):
        tiled = peaks(shape, ("l1", "fisher"), n_sizes, place)
        advice.append(f"importances that go tile by tile: --importance l1,fisher ({fits(tiled)})")
    shorter = found.length
    while shorter > 2:
        shorter //= 2
        tried = peaks(_shortened(shape, max(shorter, 2)), names, n_sizes, place)
        if all(peak <= found.available.get(device, peak) for device, peak in tried.items()):
            advice.append(f"fewer tokens: --length {max(shorter, 2)} ({fits(tried)})")
            break
    if shape.number_bytes > 2:
        half = replace(shape, number_bytes=2, weight_bytes=shape.weight_bytes * 2 // shape.number_bytes)
        advice.append(f"half precision: --dtype bfloat16 ({fits(peaks(half, names, n_sizes, place))})")
    plain = tuple(name for name in names if name not in GRADIENTS) or ("l1",)
    if plain != names:
        advice.append(
            f"no gradients: --importance {','.join(plain)} ({fits(peaks(shape, plain, n_sizes, place))})"
        )
    if n_sizes > 9:
        advice.append(f"fewer sizes: nine in place of {n_sizes} ({fits(peaks(shape, names, 9, place))})")
    items = found.memory[place]
    if items["weights"] > found.available.get(place, sys.maxsize) / 2:
        advice.append(
            "weights elsewhere: device_map='auto' spreads them over devices, CPU and disk "
            f"({items['weights'] / 1e9:.3g} GB of the peak are weights)"
        )
    return tuple(advice)


def _shortened(shape: Shape, n_tokens: int) -> Shape:
    """Return the sizes of the same model on fewer tokens, with an estimated number of edges."""
    share = n_tokens / shape.n_tokens
    return replace(shape, n_tokens=n_tokens, n_edges=int(shape.n_edges * share**2) + 1)
