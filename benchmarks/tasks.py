"""How many edges each importance needs for an answer, clean prompt against corrupted, beside what others would use.

    python benchmarks/tasks.py                                  a task on three real models: hours
    python benchmarks/tasks.py --models smollm2 --prompts 4 --importances l1,fisher
    python benchmarks/tasks.py --from tasks.parquet             the table of these rows again
    python benchmarks/tasks.py --exact                          models built by hand, whose circuit is known: a minute

Each prompt of a bundled task is measured with its target (the logit difference) and its counterfactual: an edge that is off carries what it
carries in the corrupted prompt. For each importance: `size_at(0.1)` by faithfulness and by total variation. Rows are written after
every prompt, and those that are there already are not measured again.

With `--exact`: of the edges that a prediction of a hand-built model needs (`densitometer calibrate`), and of the heads that have any, the share that
each importance's trace of as many edges finds. The target is the log probability of the most probable token, which needs all of the circuit (a contrast
of two tokens needs less: where their codes agree nothing is asked), and edges that are off carry nothing.

    l1                      the papers' importance, which knows neither target nor counterfactual
    fisher                  |slope of the target's value|, from clean to corrupted: attribution patching (arXiv 2310.10348)
    distribution            `fisher` of the whole distribution, whose eight random projections know no target
    integrated-gradients    mean of the slopes at uniform masks of .1, .3, .5, .7 and .9 (EAP-IG, arXiv 2403.17806)
    best                    the search, which follows the target
    random                  uniform
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars
import torch
from importances import MODELS, REAL, interval

import densitometer as dm
from densitometer.graph.forward_pass import ForwardPass, PerLevel
from densitometer.graph.importance.gradients import fisher
from densitometer.measuring.calibration import calibration_steps

IMPORTANCES = ("l1", "fisher", "distribution", "integrated-gradients", "best", "random")


def distribution(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Root of the Fisher information of the whole distribution, whatever the target."""
    return fisher(replace(forward, target=None), seed)


def integrated_gradients(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|mean slope of the target's value| along uniform masks, which go from the corrupted prompt to the clean one."""
    steps = (0.1, 0.3, 0.5, 0.7, 0.9)
    slopes = sum(_slopes_at(forward, step) for step in steps)
    return forward.space.views((torch.as_tensor(slopes) / len(steps)).abs())


def _slopes_at(forward: ForwardPass, step: float) -> torch.Tensor:
    """Slope of the target's value by each edge's mask, where all masks have one value, (F,)."""
    masks = torch.full((1, forward.space.size), step, requires_grad=True)
    adapter = forward.model.adapter
    with torch.enable_grad(), adapter.differentiable():
        value = forward.target.value(adapter.masked_logits(forward.ids, forward.block_masks(masks)))
        return torch.autograd.grad(value[0], masks)[0][0]


def measured(model: dm.Model, prompt: dm.Prompt, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each importance."""
    m = dm.measure(
        model,
        prompt.text,
        importance=list(names),
        target=(prompt.target, prompt.against),
        counterfactual=prompt.counterfactual,
        baselines=(),
    )
    return [
        {
            "importance": name, "n_edges": m.graph.n_edges, "full": m.target.full, "nothing": m.target.nothing,
            "by_faithfulness": m.density[name].size_at(0.1, by="faithfulness") or 1.0, "by_tv": m.density[name].size_at(0.1) or 1.0,
        }
        for name in names
    ]  # fmt: skip


def _log_probability(logits: torch.Tensor, token: int) -> torch.Tensor:
    return logits.log_softmax(-1)[..., token]


def exact(names: Sequence[str]) -> polars.DataFrame:
    """Share of the exact circuit that a trace of its size finds: a row per step and importance."""
    rows = []
    for step in calibration_steps():
        ids = list(step.ids)
        top = int(dm.build_graph(step.model, ids).forward.logits.argmax())
        target = partial(_log_probability, token=top)
        for name in names:
            graph = dm.build_graph(step.model, ids, importance=name, target=target)
            table = graph.trace(n_edges=len(step.needed)).edges()
            kept = set(table.select("layer", "kind", "head", "source", "target").rows())
            heads = [{row[:3] for row in edges if row[1] == "attention"} for edges in (step.needed, kept)]
            rows.append(
                {
                    "step": step.name, "n_edges": graph.n_edges, "circuit": len(step.needed), "importance": name,
                    "edges_found": len(kept & step.needed) / len(step.needed), "heads": len(heads[0]),
                    "heads_found": len(heads[0] & heads[1]) / len(heads[0]) if heads[0] else None,
                }
            )  # fmt: skip
    return polars.DataFrame(rows, infer_schema_length=None)


def show_exact(rows: polars.DataFrame) -> None:
    """Print the shares of edges and of heads, a row per step, and their means."""
    for column in ("edges_found", "heads_found"):
        table = rows.pivot("importance", index=["step", "n_edges", "circuit", "heads"], values=column)
        with polars.Config(tbl_formatting="ASCII_MARKDOWN", tbl_hide_column_data_types=True, tbl_rows=-1, tbl_cols=-1, tbl_width_chars=220, tbl_hide_dataframe_shape=True, float_precision=2):  # fmt: skip
            print(f"{column}\n{table}")
    print(
        rows.group_by("importance", maintain_order=True).agg(polars.col("edges_found", "heads_found").mean())
    )


def show(rows: polars.DataFrame) -> None:
    """Print medians with 95 % bootstrap intervals, per model and task."""
    found = []
    for (model, task, name), own in rows.group_by("model", "task", "importance", maintain_order=True):
        cells = {
            column: "{:.1f} ({:.1f} to {:.1f})".format(*(100 * v for v in interval(own[column].to_list())))
            for column in ("by_faithfulness", "by_tv")
        }
        found.append({"model": model, "task": task, "importance": name, "n": len(own), **cells})
    with polars.Config(tbl_formatting="ASCII_MARKDOWN", tbl_hide_column_data_types=True, tbl_rows=-1, tbl_cols=-1, tbl_width_chars=220, tbl_hide_dataframe_shape=True):  # fmt: skip
        print(f"size_at(0.1), % of the edges\n{polars.DataFrame(found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(REAL))
    parser.add_argument("--task", default="indirect-object")
    parser.add_argument("--importances", default=",".join(IMPORTANCES))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("tasks.parquet"))
    parser.add_argument(
        "--from", dest="source", type=Path, help="show the rows of this file, measure nothing"
    )
    parser.add_argument("--exact", action="store_true", help="hand-built models, whose circuit is known")
    arguments = parser.parse_args()
    if arguments.source:
        show(polars.read_parquet(arguments.source))
        return
    torch.set_num_threads(1)
    for name, score in {"distribution": distribution, "integrated-gradients": integrated_gradients}.items():
        dm.register_importance(name, score)
    names = arguments.importances.split(",")
    if arguments.exact:
        show_exact(exact(names))
        return
    rows = polars.read_parquet(arguments.out) if arguments.out.exists() else polars.DataFrame()
    for name in arguments.models.split(","):
        model = dm.load_model(MODELS.get(name, name))
        for prompt in dm.load_task(arguments.task, arguments.prompts):
            place = {"model": name, "task": arguments.task, "text": prompt.text}
            there = set() if rows.is_empty() else set(rows.filter(**place)["importance"])
            missing = [n for n in names if n not in there]
            if not missing:
                continue
            start = time.perf_counter()
            new = polars.DataFrame([place | row for row in measured(model, prompt, missing)])
            rows = polars.concat([rows, new]) if not rows.is_empty() else new
            rows.write_parquet(arguments.out)
            print(f"{name}, {prompt.text!r}: {time.perf_counter() - start:.0f} s", flush=True)
    show(rows)


if __name__ == "__main__":
    main()
