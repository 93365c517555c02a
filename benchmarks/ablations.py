"""How much of a density is the ablation's doing: the same inputs under zero, mean and counterfactual ablation, attention recomputed and kept.

    python benchmarks/ablations.py --corpus passages.txt --models smollm2,gemma3 --inputs 8
    python benchmarks/ablations.py --from benchmarks/rows/ablations.parquet       the table of docs/method.md again

The inputs are those of `importances.py`. The means are over a corpus, a text per line; without one, over the texts of the
other inputs. The counterfactual is the next text at the same number of tokens: any other text, no minimal pair. Rows are
written after every input, and those that are there already are not measured again. `fisher` is the information of a mask
under zero ablation where that or means is the ablation, and of a mask between both inputs under the counterfactual.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import polars
import torch
from importances import MODELS, TEXTS, inputs_of, interval

import densitometer as dm
from densitometer.measuring.density import DEFAULT_SIZES

SETTINGS: dict[str, tuple[str, Any]] = {
    "zero": ("zero", "recomputed"),
    "zero, attention kept": ("zero", "frozen"),
    "mean": ("mean", "recomputed"),
    "mean, attention kept": ("mean", "frozen"),
    "counterfactual": ("counterfactual", "recomputed"),
}
SHARES = (0.01, 0.05, 0.1, 0.2, 0.4)


def measured(
    model: dm.Model,
    ids: list[int],
    means: dm.ReferenceMeans,
    other: list[int],
    importances: list[str],
    settings: list[str],
) -> list[dict[str, Any]]:
    """A row for each setting and importance; `other` is the counterfactual."""
    rows = []
    sizes = (1e-5, *SHARES, *DEFAULT_SIZES)  # fewer than one edge at the first, on these inputs
    for setting in settings:
        ablation, attention = SETTINGS[setting]
        own = means if ablation == "mean" else "zero"
        against = other if ablation == "counterfactual" else None
        m = dm.measure(
            model, ids, importance=importances, sizes=sizes, baselines=(), ablation=own, attention=attention,
            counterfactual=against,
        )  # fmt: skip
        for name in importances:
            curve = m.curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
            tv = dict(curve.select("size", "tv").iter_rows())
            density = m.density[name]
            rows.append(
                {
                    "setting": setting, "importance": name, "entropy": m.entropy, "n_edges": m.graph.n_edges,
                    "size_at": density.size_at(0.1) or 1.0, "auc_log": density.auc_log, "auc_linear": density.auc_linear,
                    "tv_least": tv[1e-5], **{f"tv_{share:g}": tv[share] for share in SHARES},
                }
            )  # fmt: skip
    return rows


def show(rows: polars.DataFrame) -> None:
    """Print medians for each importance and setting, over all models and for each, and the ratio to zero ablation."""
    key = ["model", "text", "length", "importance"]
    zero = rows.filter(setting="zero").select(*key, zero="size_at")
    joined = rows.join(zero, on=key)
    with polars.Config(tbl_formatting="ASCII_MARKDOWN", tbl_hide_column_data_types=True, tbl_rows=-1, tbl_cols=-1, tbl_width_chars=220, tbl_hide_dataframe_shape=True):  # fmt: skip
        for by in ([], ["model"]):
            found = []
            for group, own in joined.group_by([*by, "importance", "setting"], maintain_order=True):
                size, low, high = interval(own["size_at"].to_list())
                ratio, least, most = interval((own["size_at"] / own["zero"]).to_list())
                found.append(
                    {
                        **dict(zip([*by, "importance", "setting"], group, strict=True)), "n": len(own),
                        "size_at, %": f"{100 * size:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                        "over zero": f"{ratio:.2f} ({least:.2f} to {most:.2f})",
                        "TV with nothing on": round(float(own["tv_least"].median()), 2),
                        **{f"TV at {100 * share:g} %": round(float(own[f"tv_{share:g}"].median()), 2) for share in SHARES},
                        "auc_linear": round(float(own["auc_linear"].median()), 3),
                    }
                )  # fmt: skip
            print(f"\n{polars.DataFrame(found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--importances", default="l1,fisher")
    parser.add_argument("--inputs", type=int, default=24, help="of each model, the first so many")
    parser.add_argument("--corpus", type=Path, help="texts of the means, one per line")
    parser.add_argument("--out", type=Path, default=Path("ablations.parquet"))
    parser.add_argument(
        "--from", dest="source", type=Path, help="show the rows of this file, measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.source:
        show(polars.read_parquet(arguments.source))
        return
    torch.set_num_threads(1)
    corpus = None if arguments.corpus is None else arguments.corpus.read_text("utf-8").splitlines()
    rows = polars.read_parquet(arguments.out) if arguments.out.exists() else polars.DataFrame()
    for name in arguments.models.split(","):
        model = dm.load_model(MODELS.get(name, name))
        shared = None if corpus is None else dm.reference_means(model, corpus)
        every = list(inputs_of(model))
        for text, length, ids in every[: arguments.inputs]:
            there = (
                []
                if rows.is_empty()
                else rows.filter(model=name, text=text, length=length)["setting"].to_list()
            )
            missing = [setting for setting in SETTINGS if setting not in there]
            if not missing:
                continue
            alike = [(key, of) for key, n, of in every if n == length]
            other = alike[([key for key, _ in alike].index(text) + 1) % len(alike)][1]
            start = time.perf_counter()
            means = shared or dm.reference_means(
                model, [other for key, other in TEXTS.items() if key != text]
            )
            new = polars.DataFrame(measured(model, ids, means, other, arguments.importances.split(","), missing)).select(
                polars.lit(name).alias("model"), polars.lit(text).alias("text"), polars.lit(length).alias("length"), polars.all()
            )  # fmt: skip
            rows = polars.concat([rows, new]) if not rows.is_empty() else new
            rows.write_parquet(arguments.out)
            print(f"{name}, {text}, {length} tokens: {time.perf_counter() - start:.0f} s", flush=True)
    show(rows)


if __name__ == "__main__":
    main()
