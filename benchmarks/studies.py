"""Studies: texts per second, two workers against one, what the store costs, memory over many texts, a million rows,
a report.

    python benchmarks/studies.py [speed|workers|store|memory|million|report|batch ...] [--texts N] [--model M] [--engine E]

Every figure is from one run; ratios within a run are what to quote.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "the",
    "captain",
    "sea",
    "whale",
    "ship",
    "old",
    "white",
    "man",
    "water",
    "light",
    "day",
    "night",
    "house",
    "river",
    "stone",
    "bread",
    "law",
    "rule",
    "story",
]


def texts(n: int, words: int = 24) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(n)]


def speed(n: int) -> None:
    import densitometer as dm

    for importance in ("l1", "fisher", ("l1", "fisher")):
        with tempfile.TemporaryDirectory() as folder:
            study = dm.run_study(texts(n), "demo", folder, importance=importance)
            table = study.measurements()
            seconds = table["seconds"].sum()
            tokens = table["n_tokens"].mean()
            print(
                f"speed      {importance}: {n / seconds:.2f} texts per second and core (n = {n}, {tokens:.0f} tokens)"
            )


def processor_seconds() -> float:
    """Of this process and its children so far."""
    total = 0.0
    me = str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, fields = stat.parent.name, stat.read_text().rpartition(")")[2].split()
            if name == me or fields[1] == me:
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def memory_at_once() -> tuple[int, int, int]:
    """Memory of this process and its children in MiB: resident, the same with what is shared counted once, and private."""
    total = [0, 0, 0]
    me = str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, parent = stat.parent.name, stat.read_text().rpartition(")")[2].split()[1]
            if me in (name, parent):
                lines = (stat.parent / "smaps_rollup").read_text().splitlines()[1:]
                found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
                own = found["Private_Clean"] + found["Private_Dirty"]
                for i, size in enumerate((found["Rss"], found["Pss"], own)):
                    total[i] += round(size)
    return total[0], total[1], total[2]


def workers(n: int, model: str = "demo", engine: str = "local") -> None:
    """Whole runs, and from the first part of each worker to the last part, so without the start of processes: texts per
    second, and processor seconds per text, which other work on the machine disturbs less. Memory is that after a part."""
    import densitometer as dm
    from densitometer.study.store import StudyStore

    write, marks, sizes = StudyStore.write, [], []

    def marking(self, model, start, end, content):
        marks.append((time.monotonic(), processor_seconds(), end - start))
        sizes.append(memory_at_once())
        return write(self, model, start, end, content)

    StudyStore.write, StudyStore.merge = marking, lambda self, model: None
    rates, costs, whole = {1: [], 2: []}, {1: [], 2: []}, {1: [], 2: []}
    for count in (1, 2, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            marks.clear()
            sizes.clear()
            begun = time.monotonic()
            dm.run_study(texts(n), model, folder, workers=count, part_seconds=1.0, engine=engine)
            whole[count].append(time.monotonic() - begun)
            (start, used, _), (end, spent, _) = marks[count - 1], marks[-1]
            done = sum(cells for *_, cells in marks[count:])
            rates[count].append(done / (end - start))
            costs[count].append((spent - used) / done)
            resident, shared_once, own = max(sizes, key=lambda size: size[1])
            print(
                f"workers    {count}: {rates[count][-1]:.2f} texts per second, {costs[count][-1]:.3f} processor seconds a text; "
                f"{whole[count][-1]:.1f} s in all; {resident:,} MiB resident, {shared_once:,} with what is shared once, {own:,} of "
                "their own"
            )
    print(
        f"workers    two over one: {sum(rates[2]) / sum(rates[1]):.2f}, whole runs {sum(whole[1]) / sum(whole[2]):.2f} "
        f"({model}, {engine}, n = {n} texts, twice each)"
    )
    print(
        f"workers    processor seconds a text, one over two: {sum(costs[1]) / sum(costs[2]):.2f}; 1 is no loss"
    )


def store(n: int) -> None:
    """The share of a run that is spent building, writing, listing and merging parts, in processor time."""
    import densitometer as dm
    from densitometer.study import store as study_store
    from densitometer.study import worker as cell

    spent, depth = 0.0, 0

    def timed(function):
        def call(*args, **kwargs):
            nonlocal spent, depth
            depth += 1
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                spent += (time.process_time() - started) if depth == 0 else 0.0

        return call

    cell.part_of = timed(cell.part_of)
    for name in ("write", "missing", "merge", "claim", "release", "count", "set_damaged_aside"):
        setattr(study_store.StudyStore, name, timed(getattr(study_store.StudyStore, name)))
    with tempfile.TemporaryDirectory() as folder:
        dm.run_study(texts(2), "demo", folder)  # whatever is loaded at first use
    for tracing, states in (("none", False), ("top", False), ("top", True)):
        with tempfile.TemporaryDirectory() as folder:
            spent, started = 0.0, time.process_time()
            dm.run_study(texts(n), "demo", folder, traces=tracing, states=states)
            took = time.process_time() - started
            size = sum(p.stat().st_size for p in Path(folder).rglob("*.parquet"))
            print(
                f"store      traces {tracing}{', states' if states else ''}: {100 * spent / took:.2f} % of the run; "
                f"{size / n / 1024:.1f} KiB a text (n = {n})"
            )


def memory(n: int) -> None:
    """Resident size of a worker while it measures n texts with a tiny model."""
    import transformers

    import densitometer as dm
    from densitometer.models.source import DEMO_FOLDER

    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER / "demo")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(f"{folder}/m")
        tokenizer.save_pretrained(f"{folder}/m")
        sizes = []
        from densitometer.study.worker import Worker

        run = Worker.run

        def watched(self, task):
            outcome = run(self, task)
            sizes.append(
                (
                    outcome.end,
                    int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20,
                )
            )
            return outcome

        Worker.run = watched
        started = time.monotonic()
        dm.run_study(texts(n, 8), f"{folder}/m", f"{folder}/s", sizes=[0.01, 0.1, 1.0], part_seconds=2.0)
        took = time.monotonic() - started
        for share in (0.1, 0.25, 0.5, 0.75, 1.0):
            end, size = min(sizes, key=lambda pair: abs(pair[0] - share * n))
            print(f"memory     after {end:>6} texts: {size:.0f} MiB")
        print(f"memory     n = {n}, {n / took:.1f} texts per second")


def million(n: int = 10**6) -> None:
    """A store with a million measurements: open, filter, group, each in a new process with its memory."""
    import numpy
    import polars

    from densitometer.study import part_files as parts
    from densitometer.study import store as study_store
    from densitometer.study.corpus import read_corpus

    models, per_model = [f"owner/model-{i}" for i in range(10)], n // 10
    with tempfile.TemporaryDirectory() as folder:
        rng = numpy.random.default_rng(0)
        ids = [str(i) for i in range(per_model)]
        frame = polars.DataFrame(
            {"id": ids, "text": ["x"] * per_model, "domain": rng.choice(["sea", "law", "news"], per_model)}
        )
        about = {"name": "synthetic", "sha256": "0", "n_texts": per_model}
        settings = {"eps": 0.1, "importance": ["l1"]}
        keyed = json.dumps(settings, sort_keys=True)
        store = study_store.StudyStore.create(f"{folder}/s", settings, about, read_corpus(frame).texts, {})
        curve = polars.DataFrame({"size": rng.random(27), "tv": rng.random(27), "kind": ["trace"] * 27})
        curve = curve.with_columns(
            polars.lit(None, dtype=t).alias(c) for c, t in parts.CURVE.items() if c not in curve.columns
        )
        one = polars.read_parquet(
            parts.part_of([{"piece": 0, "importance": "l1"}] * 64, [{"curve": curve}] * 64)
        )
        template = polars.concat([one] * (study_store.MERGED_CELLS // 64))
        rows = read_corpus(frame).texts.select("id", "text", "next", "problem").to_dicts()
        numbers = ("auc_log", "auc_linear", "size_at", "entropy", "surprisal", "seconds")
        for model in models:
            for start in range(0, per_model, study_store.MERGED_CELLS):
                k = min(study_store.MERGED_CELLS, per_model - start)
                table = template.head(k).with_columns(
                    cell=polars.int_range(start, start + k, dtype=polars.Int64),
                    key=polars.Series(parts.cell_key(model, row, keyed) for row in rows[start : start + k]),
                    text_id=polars.Series(ids[start : start + k]),
                    model=polars.lit(model),
                    n_tokens=polars.Series(rng.integers(10, 60, k), dtype=polars.Int32),
                    ids=polars.Series([list(range(40))] * k, dtype=polars.List(polars.Int32)),
                    **{name: polars.Series(rng.random(k)) for name in numbers},
                )
                store.write(model, start, start + k, parts.parquet_of(table))
        store.close()
        files = list(Path(folder).rglob("*.parquet"))
        print(
            f"million    {n:,} rows, {len(files)} files, {sum(f.stat().st_size for f in files) / 2**20:.0f} MiB"
        )
        for name, code in {
            "polars": "t = s.measurements(); f = t.filter((polars.col('domain') == 'sea') & (polars.col('n_tokens') > 30));"
            "g = f.group_by('model').agg(polars.col('auc_log').median()); print(len(t), len(f), len(g), end=' ')",
            "sql": "g = s.sql(\"select model, median(auc_log) from measurements where domain = 'sea' and n_tokens > 30 group by "
            'model"); print(len(g), end=" ")',
        }.items():
            script = (
                "import time, resource, polars, duckdb\nfrom densitometer import open_study\nstart, used = time.monotonic(), time.process_time()\n"
                f"s = open_study({folder + '/s'!r}); {code}\n"
                "print(f'{time.monotonic() - start:.2f} s ({time.process_time() - used:.2f} s of processor), {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB')"
            )
            print(f"million    {name}: ", end="", flush=True)
            subprocess.run([sys.executable, "-c", script], check=True)


def described_store(folder: str, n: int) -> None:
    """A store with so many measurements: 10 models on the same texts, in two languages and five domains, with words,
    entropies and frequencies that size_at depends on, and curves and components of each."""
    import numpy
    import polars

    from densitometer.measuring import density
    from densitometer.study import part_files as parts
    from densitometer.study import store as study_store
    from densitometer.study.corpus import read_corpus

    models, per_model = [f"owner/model-{i}" for i in range(10)], n // 10
    rng = numpy.random.default_rng(0)
    ids = [f"{i:06d}" for i in range(per_model)]
    domains = rng.choice(["sea", "law", "news", "talk", "lore"], per_model)
    corpus = {
        "id": ids,
        "text": texts(per_model, 25),
        "language": ["en", "fr"] * (per_model // 2),
        "domain": domains,
    }
    about = {"name": "synthetic", "sha256": "0", "n_texts": per_model}
    settings = {"eps": 0.1, "importance": ["l1"], "window": "words:24"}
    store = study_store.StudyStore.create(
        f"{folder}/s", settings, about, read_corpus(polars.DataFrame(corpus)).texts, {}
    )
    sizes = numpy.array(density.DEFAULT_SIZES)
    curve = polars.DataFrame(
        {
            "importance": "l1", "kind": "trace", "refined": False, "size": sizes, "tv": 1 - sizes**0.3, "flops_share": sizes**0.5,
            "top1": sizes > 0.01, "surprisal": 3 + 2 * (1 - sizes), "rank": 1, "top_probabilities": [[0.5, 0.2]] * len(sizes),
        }
    )  # fmt: skip
    missing = [c for c in parts.CURVE if c not in curve.columns]
    curve = curve.with_columns(polars.lit(None, parts.CURVE[c]).alias(c) for c in missing)
    every = polars.DataFrame({"layer": range(6)}).join(
        polars.DataFrame({"head": [*range(8), None]}), how="cross"
    )
    every = every.join(polars.DataFrame({"size": sizes}), how="cross").with_columns(
        kind=polars.when(polars.col("head").is_null()).then(polars.lit("mlp")).otherwise(polars.lit("attention")),
        n_edges=(300 * polars.col("size")).floor().cast(polars.Int64), total=300,
    )  # fmt: skip
    row = {"piece": 0, "importance": "l1"}
    one = polars.read_parquet(parts.part_of([row] * 64, [{"curve": curve, "components": every}] * 64))
    tokens = [f" {word}" for word in WORDS]
    rows = read_corpus(polars.DataFrame(corpus)).texts.select("id", "text", "next", "problem").to_dicts()
    keyed = json.dumps(settings, sort_keys=True)
    for i, model in enumerate(models):
        for start in range(0, per_model, 64):
            k = min(64, per_model - start)
            entropy = rng.gamma(4, 1, k)
            top, after = rng.integers(0, len(WORDS), (2, k))
            numbers = {
                "size_at": numpy.clip(0.02 * entropy + 0.002 * top + 0.02 * rng.random(k) + 0.01 * i, 0, 1),
                "auc_log": rng.random(k), "auc_linear": rng.random(k), "flops_at": rng.random(k), "entropy": entropy,
                "surprisal": rng.gamma(4, 1, k), "residual_mlp_chain": numpy.full(k, 1e-3), "seconds": rng.random(k),
            }  # fmt: skip
            table = one.head(k).with_columns(
                cell=polars.int_range(start, start + k, dtype=polars.Int64),
                key=polars.Series(parts.cell_key(model, row, keyed) for row in rows[start : start + k]),
                text_id=polars.Series(ids[start : start + k]), model=polars.lit(model),
                n_tokens=polars.Series(rng.integers(25, 60, k), dtype=polars.Int32),
                ids=polars.Series(rng.integers(0, len(WORDS), (k, 40)).tolist(), dtype=polars.List(polars.Int32)),
                top_id=polars.Series(top, dtype=polars.Int32), top_token=polars.Series([tokens[j] for j in top]),
                next_id=polars.Series(after, dtype=polars.Int32), next_token=polars.Series([tokens[j] for j in after]),
                **{name: polars.Series(values) for name, values in numbers.items()},
            )  # fmt: skip
            store.write(model, start, start + k, parts.parquet_of(table))
        store.merge(model)
    store.close()


def report(n: int) -> None:
    """The time and memory of a report, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        described_store(folder, n)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*.parquet"))
        script = (
            "import time, resource\nfrom densitometer.report.page import report\nstart, used = time.monotonic(), time.process_time()\n"
            f"page = report({folder + '/s'!r}, {folder + '/r.html'!r})\n"
            "print(f'{time.monotonic() - start:.0f} s ({time.process_time() - used:.0f} s of processor), '\n"
            "  f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, page of {page.stat().st_size / 2**20:.1f} MiB')"
        )
        print(f"report     {n:,} measurements, store of {size / 2**20:.0f} MiB: ", end="", flush=True)
        subprocess.run([sys.executable, "-c", script], check=True)


def batch(n: int) -> None:
    """Does it pay to run more traces together than one text has? The traces of a text, repeated, in larger batches."""
    import torch

    import densitometer as dm
    from densitometer.graph import masked_runs as ablation

    torch.set_num_threads(1)
    graph = dm.build_graph(dm.load_model("demo"), texts(1)[0])
    masks = [trace.flat for trace in graph.traces([0.001 * 1.3**i for i in range(26)])]
    times = {}
    for step in (1, 4, 13, 26, 52, 104, 208):
        ablation.variants_per_batch = lambda forward, step=step: step
        repeated = masks * max(1, step // len(masks)) * 2
        started = time.monotonic()
        ablation.masked_logits(graph.forward, repeated)
        times[step] = (time.monotonic() - started) / len(repeated)
    print(
        "batch      time a trace against 26 together: "
        + ", ".join(f"{k}: {t / times[26]:.2f}" for k, t in times.items())
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = {
        "speed": 30,
        "workers": 80,
        "store": 60,
        "memory": 10_000,
        "million": 10**6,
        "report": 10**5,
        "batch": 0,
    }
    parser.add_argument("what", nargs="*", default=list(every))
    parser.add_argument("--texts", type=int)
    parser.add_argument("--model", default="demo", help="for workers")
    parser.add_argument("--engine", default="local", help="for workers")
    arguments = parser.parse_args()
    for what in arguments.what:
        more = (arguments.model, arguments.engine) if what == "workers" else ()
        globals()[what](arguments.texts or every[what], *more)
