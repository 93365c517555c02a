"""The stored studies, each table read once; and the statistics of the findings that `analysis` does not have."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import polars
import stored_studies

import densitometer as dm
from densitometer import analysis
from densitometer.analysis import statistics

# What each model is called on the page.
SHORT = {
    "SmolLM2-135M-Instruct-Q4_1": "SmolLM2 135M", "gemma-3-270m-Q4_K_M": "Gemma 3 270M",
    "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M": "Qwen2.5-Coder 0.5B",
    "demo": "demo", "demo-parallel": "demo-parallel", "demo-branchnorm": "demo-branchnorm",
}  # fmt: skip
REAL = [SHORT[name] for name in stored_studies.REAL]
MODELS = list(SHORT.values())
# Texts whose components are read: a row per trace and component is many rows.
COMPOSED = 25
# Studies of the same settings, but for what they store beside the curves, that count as one.
PARTS = {"passages": ("passages", "more")}
# The first passage that nobody had looked at when questions, rule and readings were settled.
UNSEEN = "wiki-045"


class Evidence:
    """Tables of the studies of a folder. A study that is not there has empty tables.

    With `unseen`, the tables of passages have those alone that come from UNSEEN on.
    """

    def __init__(self, folder: Path, unseen: bool = False) -> None:
        self.folder = folder
        self.unseen = unseen
        self._kept: dict[Any, Any] = {}

    def study(self, name: str) -> dm.Study | None:
        if not list((self.folder / name / "parts").glob("model=*/*.parquet")):
            return None
        return self._once(("study", name), lambda: dm.open_study(self.folder / name))

    def rows(self, name: str) -> polars.DataFrame:
        """Measurements that did not fail, with the properties of texts and `size_between`."""
        return self._once(("rows", name), lambda: self._together(name))

    def _together(self, name: str) -> polars.DataFrame:
        tables = [self._rows(part) for part in PARTS.get(name, (name,))]
        tables = [table for table in tables if len(table)]
        return polars.concat(tables, how="diagonal_relaxed") if tables else polars.DataFrame()

    def _rows(self, name: str) -> polars.DataFrame:
        study = self.study(name)
        if study is None:
            return polars.DataFrame()
        table = analysis.with_size_between(study, analysis.describe(study)).filter(
            polars.col("error").is_null()
        )
        if self.unseen and stored_studies.KINDS[name].texts == "passages":
            table = table.filter(polars.col("text_id") >= UNSEEN)
        return _renamed(table)

    def failed(self, name: str) -> int:
        found = [self.study(part) for part in PARTS.get(name, (name,))]
        return sum(len(study.measurements()["error"].drop_nulls()) for study in found if study is not None)

    def curves(self, name: str) -> polars.DataFrame:
        return self._once(("curves", name), lambda: self._curves(name))

    def _curves(self, name: str) -> polars.DataFrame:
        found = [self.study(part) for part in PARTS.get(name, (name,))]
        tables = [study.curves().drop("top_token", "top_ids") for study in found if study is not None]
        if not tables:
            return polars.DataFrame()
        table = _renamed(polars.concat(tables))
        if not self.unseen:
            return table
        rows, key = self.rows(name), ["text_id", "model", "importance"]
        return table.join(rows.select(key), on=key, how="semi") if len(rows) else polars.DataFrame()

    def components(self, name: str) -> polars.DataFrame:
        """Components of the first texts that every model of the study has measured."""
        study = self.study(name)
        if study is None:
            return polars.DataFrame()
        return self._once(
            ("components", name), lambda: _renamed(study.components(self.first(name, COMPOSED)))
        )

    def first(self, name: str, count: int) -> list[str]:
        """Ids of the first texts of a study that all of its models have measured."""
        rows = self.rows(name)
        n = rows["model"].n_unique()
        common = rows.group_by("text_id").agg(polars.col("model").n_unique()).filter(model=n)["text_id"]
        return sorted(common.to_list())[:count]

    def fewest(self, name: str) -> int:
        """How many texts of a study the model with the fewest has measured."""
        rows = self.rows(name)
        if not len(rows):
            return 0
        counts = rows.group_by("model").agg(polars.col("text_id").n_unique())
        return int(counts["text_id"].min()) if len(counts) == len(MODELS) else 0

    def benchmark(self, name: str) -> polars.DataFrame:
        """Rows that a benchmark has stored."""
        return self._once(
            ("benchmark", name),
            lambda: polars.read_parquet(stored_studies.ROOT / f"benchmarks/rows/{name}.parquet"),
        )

    def states(self) -> polars.DataFrame:
        study = self.study("states")
        return polars.DataFrame() if study is None else _renamed(study.states())

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @cached_property
    def domains(self) -> polars.DataFrame:
        """English prose, law and code together: rows of three studies of the same settings, as one table."""
        tables = [self.rows(name) for name in ("passages", "languages", "code")]
        tables = [t for t in tables if len(t)]
        if not tables:
            return polars.DataFrame()
        joined = polars.concat([t.drop("pair", strict=False) for t in tables], how="diagonal_relaxed")
        return joined.filter(polars.col("language").is_in(["en", "python"]))


def _renamed(table: polars.DataFrame) -> polars.DataFrame:
    return table.with_columns(polars.col("model").replace(SHORT))


def held(y: numpy.ndarray, x: numpy.ndarray, others: list[numpy.ndarray], seed: int = 0) -> dict[str, Any]:
    """Spearman's correlation of two columns with others held: of the ranks that are left when theirs are regressed out.

    Returns:
        rho, low, high (bootstrap over rows), p (t distribution with the degrees of freedom that the others leave) and n.
    """
    n = len(y)
    if n < max(statistics.FEWEST, len(others) + 5) or min(map(numpy.ptp, (y, x))) == 0:
        return {"rho": None, "low": None, "high": None, "p": None, "n": n}
    others = [other for other in others if numpy.ptp(other) > 0]

    columns = numpy.stack([y, x, *others])

    def rho_of(places: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        return _partial(columns[:, places])

    rho = float(_partial(columns))
    low, high = statistics.bootstrap([numpy.arange(n)], rho_of, seed, statistics.RANKED)
    free = n - 2 - len(others)
    t = rho * numpy.sqrt(free / max(1e-12, 1 - rho**2))
    p = 2 * statistics.package("scipy.stats").t.sf(abs(t), free)
    return {"rho": rho, "low": low, "high": high, "p": float(p), "n": n}


def _partial(columns: numpy.ndarray) -> numpy.ndarray:
    """Pearson of what is left of the ranks of the first two columns when those of the others are regressed out.

    Args:
        columns: (2 + others, ..., n). The result has the axes between the first and the last.
    """
    ranks = statistics.package("scipy.stats").rankdata(columns, axis=-1)
    ranks = numpy.moveaxis(ranks - ranks.mean(-1, keepdims=True), 0, -1)
    rest, others = ranks[..., :2], ranks[..., 2:]
    if others.shape[-1]:
        rest = rest - others @ (numpy.linalg.pinv(others) @ rest)
    y, x = rest[..., 0], rest[..., 1]
    norm = numpy.linalg.norm(y, axis=-1) * numpy.linalg.norm(x, axis=-1)
    return (y * x).sum(-1) / numpy.where(norm > 1e-9 * y.shape[-1], norm, numpy.inf)


def shift(values: numpy.ndarray, seed: int = 0) -> dict[str, Any]:
    """Median of differences, a row a text, with its interval and Wilcoxon's p."""
    low, high = statistics.bootstrap([values], numpy.median, seed)
    p = None
    if len(values) >= statistics.FEWEST and values.any():
        p = float(statistics.package("scipy.stats").wilcoxon(values).pvalue)
    middle = float(numpy.median(values)) if len(values) else None
    return {"rho": middle, "low": low, "high": high, "p": p, "n": len(values)}


def holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `p_holm`, corrected over all of them."""
    if not rows:
        return []
    table = polars.DataFrame({"p": [row["p"] for row in rows]}, schema={"p": polars.Float64})
    return [
        row | {"p_holm": p} for row, p in zip(rows, statistics.holm(table)["p_holm"].to_list(), strict=True)
    ]
