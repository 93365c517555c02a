"""How tight each importance is, on inputs and models that none of them was tuned on, beside what others would use.

    python benchmarks/importances.py                                    three real models and the bundled three: hours
    python benchmarks/importances.py --models smollm2 --inputs 3 --importances l1,fisher,best
    python benchmarks/importances.py --from benchmarks/rows/importances.parquet     the tables of docs/method.md again

24 inputs: 8, 16 and 40 tokens of eight texts (English, French, code; of each language one whose end repeats itself, which makes the
prediction sure). For each model, input and importance: TV at nine shares of the edges, `size_at(0.1)`, the areas, and the
cost of scoring in plain forward passes of the same input (processor time, one thread). Rows are written after every input, and
those that are there already are not measured again. Real models are read from `.models` (`make real-models`).

References, which are not part of the product, all per edge and under zero ablation:

    attribution-patching    |d log p(top token) / d mask| in the full run
    integrated-gradients    |mean slope of KL(full || masked)| at uniform masks of .1, .3, .5, .7 and .9 (as EAP-IG)
    relp                    attribution patching by the rules of relevance propagation (arXiv 2508.21258): norms' scales and
                            attention weights held, activations as fixed ratios, each factor of a product half of the slope

The additive floor is not an importance: it is the least share of the edges with which what is off would cost less than the goal, if removals did
not interact (`densitometer.measuring.floor.additive_floor`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy
import polars
import torch

import densitometer as dm
from densitometer.graph.forward_pass import ForwardPass, PerLevel, run_forward
from densitometer.graph.importance import registry as importance
from densitometer.graph.importance.gradients import divergence_slopes, fisher_information, random_projections
from densitometer.measuring.density import DEFAULT_SIZES
from densitometer.measuring.floor import additive_floor
from densitometer.models.blocks import instance_attribute

REAL = {name: f".models/{name}" for name in ("smollm2", "gemma3", "qwen05")}
MODELS = {**REAL, **{name: name for name in ("demo", "demo-parallel", "demo-branchnorm")}}
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
LENGTHS = (8, 16, 40)
BANDS = {"sure": (0.0, 1.0), "between": (1.0, 2.7), "unsure": (2.7, 99.0)}  # nats
IMPORTANCES = (
    "l1", "l2", "cosine", "projection", "proximity", "random", "fisher", "bound", "best", "attribution-patching",
    "integrated-gradients", "relp",
)  # fmt: skip
TEXTS = {
    "english-harbour": (
        "The harbour at the mouth of the river was built in the last years of the eighteenth century, when the town began to trade "
        "in timber and salted fish with the ports of the north. Two long walls of granite keep out the winter sea, and behind them"
    ),
    "english-letter": (
        "My dear sister, I write this in haste because the coach leaves within the hour. Nothing that you heard about the house is "
        "true: the roof held through the storm, the garden wall fell only at one end, and all the children slept through it until"
    ),
    "english-science": (
        "When a thin film of oil spreads on water, light is reflected from both of its surfaces, and the two reflected waves interfere. "
        "The colour that is seen depends on the thickness of the film and on the angle at which it is viewed, so that a moving"
    ),
    "english-repeated": (
        "One bird sat on the fence and sang. One bird sat on the fence and sang. One bird sat on the fence and sang. "
        "One bird sat on the fence and sang. One bird sat on the fence and sang. One bird sat on the fence and sang."
    ),
    "french-village": (
        "Le marché du village se tient chaque samedi sur la place, entre l'église et la vieille halle de bois. Les paysans arrivent "
        "avant l'aube avec leurs charrettes, et les premiers clients choisissent les fruits pendant que les marchands"
    ),
    "french-repeated": (
        "La pluie tombe sur le toit. La pluie tombe sur le toit. La pluie tombe sur le toit. La pluie tombe sur le toit. "
        "La pluie tombe sur le toit. La pluie tombe sur le toit. La pluie tombe sur le toit. La pluie tombe sur le toit."
    ),
    "code-function": (
        "def read_lines(path, limit=None):\n    lines = []\n    with open(path) as file:\n        for number, line in enumerate(file):\n"
        "            if limit is not None and number >= limit:\n                break\n            lines.append(line.rstrip())\n    return"
    ),
    "code-repeated": (
        "x[0] = 1\nx[1] = 1\nx[2] = 1\nx[3] = 1\nx[4] = 1\nx[5] = 1\nx[6] = 1\nx[7] = 1\nx[8] = 1\nx[9] = 1\nx[10] = 1\nx[11] = 1\n"
        "x[12] = 1\nx[13] = 1\n"
    ),
}  # fmt: skip


# --- what others would use ----------------------------------------------------------------------------


def _top_token_slopes(forward: ForwardPass, frozen: bool = False) -> torch.Tensor:
    """d log p(top token) / d mask of every edge in the full run, (F,)."""
    masks = torch.ones(1, forward.space.size, requires_grad=True)
    adapter = forward.model.adapter
    with torch.enable_grad(), adapter.differentiable():
        logits = adapter.masked_logits(forward.ids, forward.block_masks(masks, frozen))[0]
        return torch.autograd.grad(logits.log_softmax(-1)[forward.logits.argmax()], masks)[0][0]


def attribution_patching(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|d log p(top token) / d mask| in the full run."""
    return forward.space.views(_top_token_slopes(forward).abs())


def integrated_gradients(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|mean slope of the divergence| along uniform masks."""
    steps = (0.1, 0.3, 0.5, 0.7, 0.9)
    slopes = sum(divergence_slopes(forward, torch.full((forward.space.size,), step)) for step in steps)
    return forward.space.views((torch.as_tensor(slopes) / len(steps)).abs())


def relp(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Attribution patching with the rules of relevance propagation in the MLPs, attention weights held."""
    with ExitStack() as stack:
        for block in forward.model.adapter.blocks:
            for part in block.module.modules():
                name = next((n for n in ("act_fn", "act") if hasattr(part, n)), None)
                if name is not None:
                    gated = hasattr(part, "up_proj")
                    stack.enter_context(_as_ratio(part, name, gated))
                    if gated:
                        stack.enter_context(_halved(part.up_proj))
        return forward.space.views(_top_token_slopes(forward, frozen=True).abs())


@contextmanager
def _as_ratio(part: Any, name: str, gated: bool) -> Iterator[None]:
    """The activation's slope is its output over its input; half of that where its output is one of two factors."""
    activation = getattr(part, name)

    def held(x: torch.Tensor) -> torch.Tensor:
        y = activation(x).detach()
        linear = x * (y / torch.where(x == 0, 1, x)).detach() * (0.5 if gated else 1.0)
        return y + linear - linear.detach()

    with instance_attribute(part, name, held):
        yield


@contextmanager
def _halved(projection: Any) -> Iterator[None]:
    forward = projection.forward

    def held(x: torch.Tensor) -> torch.Tensor:
        half = forward(x) / 2
        return half + half.detach()

    with instance_attribute(projection, "forward", held):
        yield


REFERENCES: dict[str, Callable[[ForwardPass, int], Sequence[PerLevel]]] = {
    "attribution-patching": attribution_patching,
    "integrated-gradients": integrated_gradients,
    "relp": relp,
}


# --- measuring ----------------------------------------------------------------------------------------


def inputs_of(model: dm.Model) -> Iterator[tuple[str, int, list[int]]]:
    """Each input's text, length and tokens; the first eight are of all texts and lengths."""
    for turn in range(len(LENGTHS)):
        for number, (name, text) in enumerate(TEXTS.items()):
            length = LENGTHS[(number + turn) % len(LENGTHS)]
            ids = model.encode(text)
            if len(ids) < length:
                raise ValueError(f"{name} has {len(ids)} tokens with {model.name}, fewer than {length}")
            yield name, length, ids[:length]


def measured(model: dm.Model, ids: list[int], names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each importance."""
    forward, _ = run_forward(model, ids, -1, "block")
    plain = _seconds(lambda: model.module(torch.tensor([ids])))
    took: dict[str, float] = {}

    def timed(name: str) -> Callable[[ForwardPass, int], Sequence[PerLevel]]:
        score = importance._REGISTRY[name]

        def run(forward: ForwardPass, seed: int) -> Sequence[PerLevel]:
            start = time.process_time()
            found = score(forward, seed)
            took[name] = time.process_time() - start
            return found

        return run

    before = dict(importance._REGISTRY)
    try:
        importance._REGISTRY.update({name: timed(name) for name in names})
        m = dm.measure(
            model,
            ids,
            importance=list(names),
            sizes=(*SHARES, *DEFAULT_SIZES),
            baselines=(),
            seed=seed,
        )
    finally:
        importance._REGISTRY.update(before)
    information = fisher_information(forward, random_projections(forward.logits, 8, seed)).numpy()
    floor = additive_floor(information[forward.reachable], 0.1)
    rows = []
    for name in names:
        curve = m.curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
        tv = dict(curve.select("size", "tv").iter_rows())
        density = m.density[name]
        rows.append(
            {
                "importance": name, "entropy": m.entropy, "n_edges": m.graph.n_edges,
                "size_at": density.size_at(0.1) or 1.0, "auc_log": density.auc_log, "auc_linear": density.auc_linear,
                "forwards": took[name] / plain, "additive_floor": floor, **{f"tv_{share:g}": tv[share] for share in SHARES},
            }
        )  # fmt: skip
    return rows


def _seconds(work: Callable[[], Any], runs: int = 5) -> float:
    found = []
    with torch.no_grad():
        for _ in range(runs):
            start = time.process_time()
            work()
            found.append(time.process_time() - start)
    return float(numpy.median(found))


# --- tables -------------------------------------------------------------------------------------------


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """The median and the 95 % interval of its bootstrap."""
    own = numpy.asarray(values, dtype=float)
    picked = numpy.random.default_rng(0).integers(0, len(own), (draws, len(own)))
    low, high = numpy.quantile(numpy.median(own[picked], axis=1), (0.025, 0.975))
    return float(numpy.median(own)), float(low), float(high)


def summary(rows: polars.DataFrame, by: Sequence[str]) -> polars.DataFrame:
    """Per group and importance: n, medians with intervals, and the median ratio to `l1` on the same inputs."""
    key = ["model", "text", "length"]
    l1 = rows.filter(importance="l1").select(*key, l1="size_at")
    joined = rows.join(l1, on=key, how="left")
    found = []
    for group, own in joined.group_by([*by, "importance"], maintain_order=True):
        size, low, high = interval(own["size_at"].to_list())
        ratio, least, most = interval((own["size_at"] / own["l1"]).fill_null(float("nan")).to_list())
        found.append(
            {
                **dict(zip([*by, "importance"], group, strict=True)), "n": len(own),
                "size_at, %": f"{100 * size:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                "over l1": f"{ratio:.2f} ({least:.2f} to {most:.2f})",
                "TV at 5 %": round(float(own["tv_0.05"].median()), 2), "TV at 10 %": round(float(own["tv_0.1"].median()), 2),
                "auc_linear": round(float(own["auc_linear"].median()), 3), "auc_log": round(float(own["auc_log"].median()), 3),
                "forwards": round(float(own["forwards"].median()), 1),
            }
        )  # fmt: skip
    return polars.DataFrame(found)


def show(rows: polars.DataFrame) -> None:
    """Print the tables: real and bundled models by length and by entropy band; the floor; ranks."""
    band = polars.lit("")
    for name, (low, high) in BANDS.items():
        band = (
            polars.when(polars.col("entropy").is_between(low, high, closed="left"))
            .then(polars.lit(name))
            .otherwise(band)
        )
    rows = rows.with_columns(band=band, kind=polars.when(polars.col("model").is_in(list(REAL))).then(polars.lit("real")).otherwise(polars.lit("bundled")))  # fmt: skip
    with polars.Config(tbl_formatting="ASCII_MARKDOWN", tbl_hide_column_data_types=True, tbl_rows=-1, tbl_cols=-1, tbl_width_chars=220, tbl_hide_dataframe_shape=True):  # fmt: skip
        for by in (["kind"], ["model"], ["kind", "length"], ["kind", "band"]):
            print(f"\nby {' and '.join(by)}\n{summary(rows, by)}")
        tightest = rows.filter(polars.col("importance") != "random").group_by("model", "text", "length").agg(
            polars.col("size_at").min(), polars.col("additive_floor").first())  # fmt: skip
        beaten = (tightest["size_at"] < tightest["additive_floor"]).mean()
        print(f"\nadditive floor: median {100 * tightest['additive_floor'].median():.1f} %; the tightest trace that ran is "
              f"smaller on {100 * beaten:.0f} % of {len(tightest)} inputs")  # fmt: skip
        wide = rows.pivot("importance", index=["model", "text", "length"], values="size_at")
        names = [n for n in IMPORTANCES if n in wide.columns]
        ranks = {
            n: [wide.select(polars.corr(n, other, method="spearman")).item() for other in names]
            for n in names
        }
        print(f"\nSpearman of size_at over inputs\n{polars.DataFrame({'': names, **{k: [round(v, 2) for v in r] for k, r in ranks.items()}})}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--importances", default=",".join(IMPORTANCES))
    parser.add_argument("--inputs", type=int, default=24, help="of each model, the first so many")
    parser.add_argument("--out", type=Path, default=Path("importances.parquet"))
    parser.add_argument(
        "--from", dest="source", type=Path, help="show the rows of this file, measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.source:
        show(polars.read_parquet(arguments.source))
        return
    torch.set_num_threads(1)
    for name, score in REFERENCES.items():
        dm.register_importance(name, score)
    names = arguments.importances.split(",")
    rows = polars.read_parquet(arguments.out) if arguments.out.exists() else polars.DataFrame()
    for name in arguments.models.split(","):
        model = dm.load_model(MODELS.get(name, name))
        for text, length, ids in list(inputs_of(model))[: arguments.inputs]:
            there = set() if rows.is_empty() else set(
                rows.filter(model=name, text=text, length=length)["importance"])  # fmt: skip
            missing = [n for n in names if n not in there]
            if not missing:
                continue
            start = time.perf_counter()
            new = polars.DataFrame(measured(model, ids, missing)).select(
                polars.lit(name).alias("model"), polars.lit(text).alias("text"), polars.lit(length).alias("length"), polars.all()
            )  # fmt: skip
            rows = polars.concat([rows, new]) if not rows.is_empty() else new
            rows.write_parquet(arguments.out)
            print(f"{name}, {text}, {length} tokens: {time.perf_counter() - start:.0f} s", flush=True)
    show(rows)


if __name__ == "__main__":
    main()
