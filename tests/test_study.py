"""Studies as a user runs them: real models, real processes, real kills."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import polars
import pytest
import torch
from command import SERVER, ForkedWorker, command_in
from scipy import stats
from snippets import registries_kept
from studies import SETTINGS, TEXTS, assert_same, rows, save_model
from typer.testing import CliRunner

import densitometer as dm
from densitometer._util.progress import StudyProgress
from densitometer.cli.commands import app
from densitometer.errors import ArgumentTypeError, InputError, StorageError
from densitometer.report.page import _settings
from densitometer.study.corpus import Window
from densitometer.study.engines import check_engine, local, open_pool
from densitometer.study.unigrams import Sample
from densitometer.study.worker import StudySettings, Task, Worker, failed_part


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_model(folder / f"tiny-{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="session")
def timed(models, tmp_path_factory):
    began = time.monotonic()
    study = dm.run_study(TEXTS, models, tmp_path_factory.mktemp("study") / "s", **SETTINGS)
    return study, time.monotonic() - began


@pytest.fixture(scope="session")
def undisturbed(timed):
    return timed[0]


@pytest.fixture(scope="session")
def took(timed):
    """Seconds that the study takes when nothing kills it."""
    return timed[1]


def run(out, models, **changes):
    return dm.run_study(TEXTS, models, out, **SETTINGS | changes)


def test_numbers_are_those_of_measure(undisturbed, models):
    model = dm.load_model(models[1])
    table = undisturbed.measurements()
    assert len(table) == 2 * 2 * len(TEXTS)
    for text_id in ("1", "3", "7"):
        (piece,) = Window.parse("words:4").pieces(
            TEXTS[int(text_id) - 1], None, lambda t: model.tokenizer(t)["input_ids"]
        )
        m = dm.measure(
            model,
            piece.ids,
            importance=["l1", "fisher"],
            sizes=SETTINGS["sizes"],
            baselines=(),
            position=piece.position,
        )
        for name in ("l1", "fisher"):
            own = (polars.col("text_id") == text_id) & (polars.col("model") == models[1])
            row = table.filter(own & (polars.col("importance") == name)).row(0, named=True)
            assert row["auc_log"] == m.density[name].auc_log
            assert row["size_at"] == m.density[name].size_at(0.1)
            assert row["size_below"] == m.density[name].bracket(0.1)[0]
            assert row["flops_at"] == m.density_in("flops")[name].size_at(0.1)
            assert row["entropy"] == m.entropy
            assert row["surprisal"] == m.next_token["surprisal"]
            assert row["n_edges"] == m.graph["n_edges"]
            assert row["ids"] == list(piece.ids)
            own &= polars.col("importance") == name
            curve = undisturbed.curves().filter(own, polars.col("kind") == "trace", ~polars.col("refined"))
            shared = [c for c in m.curve.columns if c in curve.columns]
            assert curve.select(shared).equals(
                m.curve.filter(polars.col("importance") == name).select(shared)
            )
            assert curve["top_probabilities"].list.first().to_list() == pytest.approx(
                curve["top_probability"].to_list()
            )
            graph = dm.build_graph(model, piece.ids, position=piece.position, importance=name)
            for size in (0.1, 1.0):
                kept = graph.edges().filter(polars.Series(graph.trace(size=size).mask))
                counts = kept.group_by("kind", "layer", "head").len("n_edges")
                found = undisturbed.components().filter(own, size=size)
                expected = counts.select("kind", "layer", "head", polars.col("n_edges").cast(polars.Int64))
                found = found.filter(polars.col("n_edges") > 0).select(expected.columns)
                assert set(found.rows()) == set(expected.rows())
                assert found["n_edges"].sum() == graph.trace(size=size).n_edges
            edges = undisturbed.traces().filter(own)
            keys = ["kind", "layer", "head", "source", "target"]
            first = graph.edges().with_columns(place=polars.Series(graph.order).rank().cast(polars.Int64))
            assert edges.height == min(1000, graph.n_edges)
            best = graph.edges().filter(polars.Series(graph.trace(n_edges=7).mask))
            assert set(edges.head(7).select(keys).rows()) == set(best.select(keys).rows())
            assert first.height == graph.n_edges
            histogram = undisturbed.histograms().filter(own)["histogram"][0]
            assert histogram.sum() == graph.n_edges
            assert row["prompt_surprisal"] == pytest.approx(mean_surprisal(model, piece), rel=1e-5)


def mean_surprisal(model, piece):
    """Of the piece's tokens, by a plain run of the untouched module."""
    ids = torch.tensor([piece.ids[: piece.position + 1]])
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model.module(ids).logits[0, :-1], ids[0, 1:]))


def test_one_token_has_no_prompt_surprisal(models, tmp_path):
    options = {"importance": "random", "sizes": [1.0], "window": "words:1"}
    found = dm.run_study(["the sea", "captains of"], models[0], tmp_path / "s", **options).measurements()
    table = found.sort("text_id")
    assert table["error"].null_count() == 2
    assert (table["n_tokens"] == 1).to_list() == [True, False]
    assert table["prompt_surprisal"].is_null().to_list() == [True, False]


def test_what_a_tokenizer_puts_first_is_no_unigram():
    def tokenizer(text, add_special_tokens=True, verbose=True):
        return {"input_ids": [0] * add_special_tokens + [len(word) for word in text.split()]}

    sample = Sample({"1": "a bb bb", "2": "ccc"}, own=True)
    worker = Worker(StudySettings(), None, {}, sample)
    assert worker._counts(SimpleNamespace(tokenizer=tokenizer), "2", 5).tolist() == [0, 1, 2, 0, 0]


def test_states_and_unigrams_are_those_of_the_same_traces_run_by_hand(undisturbed, models):
    model = dm.load_model(models[1])
    encoded = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    vocabulary = len(model.tokenizer)
    head = model.module.get_output_embeddings().weight
    for text_id in ("1", "6"):
        others = [i for number, ids in enumerate(encoded, start=1) if str(number) != text_id for i in ids]
        counts = numpy.bincount(others, minlength=vocabulary)
        own = (polars.col("text_id") == text_id) & (polars.col("model") == models[1])
        own &= polars.col("importance") == "fisher"
        row = undisturbed.measurements().filter(own).row(0, named=True)
        graph = dm.build_graph(model, row["ids"], position=row["position"], importance="fisher")
        logits = dm.reconstruct(model, graph, graph.traces(SETTINGS["sizes"]))
        full = model.adapter.logits(graph.forward.ids)
        states = undisturbed.states().filter(own)
        assert states["kind"].to_list() == ["model"] + 4 * ["trace"]
        assert states["size"].to_list() == [None, *SETTINGS["sizes"]]
        got = torch.tensor(states["state"].to_list()) @ head.T.detach()
        torch.testing.assert_close(
            got, torch.cat([full[None], logits]), atol=0.02, rtol=5e-3
        )  # 11 bits are kept
        curve = undisturbed.curves().filter(own, polars.col("kind") == "trace", ~polars.col("refined"))
        for rho, q in zip(
            [row["unigram_correlation"], *curve["unigram_correlation"]], [full, *logits], strict=True
        ):
            assert rho == pytest.approx(spearman(counts, q), abs=1e-6)
        assert row["n_unigrams"] == (counts > 0).sum()
    refined = undisturbed.curves().filter(polars.col("refined"))
    assert refined["unigram_correlation"].null_count() == len(refined)


def spearman(counts, logits):
    """Over the tokens that occur; None of a uniform prediction."""
    q = logits.numpy()[counts > 0]
    return None if numpy.ptp(q) == 0 else stats.spearmanr(counts[counts > 0], q).statistic


def test_unigrams_may_be_counted_in_another_corpus(undisturbed, models, tmp_path):
    reference = ["the sea the whale", "the captain", "a law"]
    options = {"importance": "random", "sizes": [0.5, 1.0]}
    found = dm.run_study(TEXTS[:2], models[0], tmp_path / "s", unigrams=reference, **options)
    model = dm.load_model(models[0])
    ids = [i for text in reference for i in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    counts = numpy.bincount(ids, minlength=len(model.tokenizer))
    for row in found.measurements().iter_rows(named=True):
        q = model.adapter.logits(row["ids"][: row["position"] + 1])
        assert row["unigram_correlation"] == pytest.approx(spearman(counts, q), abs=1e-6)
        assert row["n_unigrams"] == len(set(ids))
    with pytest.raises(StorageError, match="unigrams was"):
        dm.run_study(TEXTS[:2], models[0], tmp_path / "s", unigrams=reference[:2], **options)


def test_removed_edges_may_leave_their_means_over_a_corpus(models, tmp_path):
    reference = ["the sea the whale and the ship", "the old captain looked"]
    options = {"importance": "l1", "sizes": [0.1, 0.4, 1.0]}
    found = dm.run_study(TEXTS[:2], models, tmp_path / "s", means=reference, **options)
    zero = dm.run_study(TEXTS[:2], models, tmp_path / "z", **options).measurements()
    for row in found.measurements().iter_rows(named=True):
        model = dm.load_model(row["model"])
        means = dm.reference_means(model, reference)
        m = dm.measure(
            model,
            row["ids"],
            importance="l1",
            sizes=options["sizes"],
            baselines=(),
            position=row["position"],
            ablation=means,
        )
        assert row["auc_log"] == m.density["l1"].auc_log
        assert row["auc_log"] not in zero["auc_log"]
    with pytest.raises(StorageError, match="means was"):
        dm.run_study(TEXTS[:2], models, tmp_path / "s", **options)


def test_baselines_that_need_no_score_are_told_once_per_piece(undisturbed):
    curves = undisturbed.curves().filter(polars.col("kind") == "residual_chain")
    assert set(curves["importance"]) == {"baseline"}
    assert len(curves) == 2 * (len(TEXTS) - 1)


def test_a_text_that_cannot_be_measured_is_a_failed_row(undisturbed):
    failed = undisturbed.measurements().filter(polars.col("error").is_not_null())
    assert set(failed["text_id"]) == {"5"}
    assert len(failed) == 4
    assert failed["error"][0] == "the text has 2 words, fewer than the 4 of the window"
    assert failed["auc_log"].null_count() == 4


def test_the_same_call_again_measures_nothing(undisturbed, models):
    files = {p: p.stat().st_mtime_ns for p in undisturbed.folder.rglob("*.parquet")}
    before = rows(undisturbed)
    again = run(undisturbed.folder, models)
    assert {p: p.stat().st_mtime_ns for p in undisturbed.folder.rglob("*.parquet")} == files
    for mine, theirs in zip(rows(again), before, strict=True):
        assert mine.equals(theirs)


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_rows_also_when_a_worker_is_killed_in_mid_run(
    undisturbed, models, tmp_path, monkeypatch
):
    ray = pytest.importorskip("ray")
    # else the workers wait for all else on this machine, beside two more that nothing asks for
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    try:
        plugin = kill_one_worker(tmp_path)
        found = run(tmp_path / "s", models, engine="ray", workers=2, plugins=plugin)
        assert (tmp_path / "killed").exists()
        assert_same(found, undisturbed, "key")  # the plugin is a setting
    finally:
        ray.shutdown()
        sys.path.remove(str(tmp_path))


def kill_one_worker(folder: Path, fatal: str = "") -> list[str]:
    """A plugin that kills, once, the worker process that is measuring its second text, and always one at a fatal text."""
    name = f"killer_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(f"""
import os, signal
from pathlib import Path
from densitometer.study import worker as cell

def run(self, model, base, piece, text, measure=cell.Worker._piece, seen=[]):
    seen.append(piece)
    if base["text_id"] == {fatal!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        if len(seen) == 2:
            os.close(os.open({str(folder / "killed")!r}, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
    return measure(self, model, base, piece, text)

if os.getpid() != {os.getpid()}:
    cell.Worker._piece = run
""")
    sys.path.insert(0, str(folder))
    return [name]


def test_worker_processes_that_are_killed_lose_nothing_but_a_text_that_kills_them_all(
    undisturbed, models, tmp_path, monkeypatch
):
    monkeypatch.setattr(local, "subprocess", SimpleNamespace(Popen=ForkedWorker, DEVNULL=None))
    plugin = kill_one_worker(tmp_path, fatal="4")
    try:
        found = run(tmp_path / "s", models[:1], workers=2, plugins=plugin, part_seconds=5.0)
    finally:
        sys.path.remove(str(tmp_path))
    assert (tmp_path / "killed").exists()
    table, others = found.measurements(), ["4", "5"]
    assert set(table.filter(polars.col("error").is_not_null())["text_id"]) == set(others)
    (error,) = set(table.filter(text_id="4")["error"])
    assert error.startswith("the worker died 2 times on this text: its process was ended by SIGKILL")
    good = ~polars.col("text_id").is_in(others) & (polars.col("model") == models[0])
    for mine, theirs in zip(rows(found, "key"), rows(undisturbed, "key"), strict=True):
        assert mine.filter(good).equals(theirs.filter(good))


def test_a_model_that_cannot_be_loaded_fails_its_cells_only(models, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    names = [str(tmp_path / "broken"), models[0]]
    options = {"importance": "random", "sizes": [0.5, 1.0]}
    found = dm.run_study(TEXTS[:3], names, tmp_path / "s", **options)
    table = found.measurements().sort("model", "text_id")
    assert table.filter(model=models[0])["error"].null_count() == 3
    failed = table.filter(model=names[0])
    assert failed["error"].str.contains("config.json").all()
    assert len(failed) == 3
    again = dm.run_study(TEXTS[:3], names, tmp_path / "s", **options)
    assert again.measurements().sort("model", "text_id").equals(table)
    save_model(tmp_path / "broken", 1)
    mended = dm.run_study(TEXTS[:3], names, tmp_path / "s", **options, retry_failed=True).measurements()
    assert mended["error"].null_count() == 6
    assert mended.filter(model=models[0]).equals(table.filter(model=models[0]))


def test_a_model_whose_weights_changed_is_refused(tmp_path):
    name = save_model(tmp_path / "m", 0)
    options = {"importance": "random", "sizes": [1.0]}
    dm.run_study(TEXTS[:2], name, tmp_path / "s", **options)
    folder = next((tmp_path / "s" / "parts").iterdir())
    next(folder.glob("*.parquet")).with_suffix(".damaged")
    save_model(tmp_path / "m", 1)
    dm.run_study(TEXTS[:2], name, tmp_path / "s", **options)  # nothing left to do
    part = next(folder.glob("*.parquet"))
    one = polars.read_parquet(part, hive_partitioning=False).filter(polars.col("cell") == 0)
    part.unlink()
    from densitometer.study.part_files import digest_of

    one.write_parquet(folder / "new.parquet")
    content = (folder / "new.parquet").read_bytes()
    (folder / "new.parquet").rename(folder / f"00000000-00000001-{digest_of(content)}.parquet")
    with pytest.raises(StorageError, match="other weights"):
        dm.run_study(TEXTS[:2], name, tmp_path / "s", **options)


def test_models_may_be_added(models, tmp_path):
    options = {"importance": "random", "sizes": [1.0]}
    one = dm.run_study(TEXTS[:3], models[0], tmp_path / "s", **options).measurements()
    both = dm.run_study(TEXTS[:3], models, tmp_path / "s", **options).measurements()
    assert len(both) == 6
    assert both.filter(model=models[0]).equals(one)


def test_shards_make_the_whole(undisturbed, models, tmp_path):
    for shard in ("2/3", "3/3", "1/3"):
        found = run(tmp_path / "s", models, shard=shard)
    assert_same(found, undisturbed)
    two = run(tmp_path / "t", models, shard="2/3").measurements()
    assert set(two["text_id"]) == {"3", "4"}


def test_windows_give_several_pieces_of_a_text(models, tmp_path):
    found = dm.run_study(
        TEXTS[:2], models[0], tmp_path / "s", importance="random", sizes=[1.0], window="sweep:2,5"
    )
    table = found.measurements().sort("text_id", "piece")
    assert table.select("text_id", "piece", "n_tokens").rows() == [
        ("1", 0, 2),
        ("1", 1, 5),
        ("2", 0, 2),
        ("2", 1, 5),
    ]
    assert table["next_id"].n_unique() == 2
    ids = table["ids"].to_list()
    assert ids[0] == ids[1][-3:]


def test_what_the_corpus_says_of_a_text_is_in_its_rows(models, tmp_path):
    corpus = polars.DataFrame({"id": ["x", "y"], "text": TEXTS[:2], "language": ["en", "en"], "domain": ["sea", None],
                               "year": [1851, 2020], "rank": [1, 2]})  # fmt: skip
    found = dm.run_study(corpus, models[0], tmp_path / "s", importance="random", sizes=[1.0])
    assert found.measurements().select("text_id", "language", "domain", "year", "rank_of_text").rows() == [
        ("x", "en", "sea", 1851, 1), ("y", "en", None, 2020, 2),
    ]  # fmt: skip
    assert found.sql("select year, error from measurements order by 1").rows() == [(1851, None), (2020, None)]


def test_a_plugin_adds_a_metric_to_the_curves(models, tmp_path):
    (tmp_path / "more_metrics.py").write_text(
        "import densitometer as dm\n"
        "if 'largest' not in dm.list_metrics():\n"
        "    dm.register_metric('largest', lambda full, traces: traces.max(-1).values)\n"
    )
    process = SERVER.Process(target=run_with_plugin, args=(tmp_path, models[0]))
    process.start()
    process.join()
    assert process.exitcode == 0


def run_with_plugin(folder, model):
    sys.path.insert(0, str(folder))
    found = dm.run_study(TEXTS[:2], model, folder / "s", plugins=["more_metrics"], sizes=[0.5, 1.0])
    assert found.curves()["largest"].null_count() == 0
    assert found.sql("select count(largest) from curves").item() == len(found.curves())


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"models": []}, InputError, "at least one model"),
        ({"models": ["a", "a"]}, InputError, "each once"),
        ({"models": [3]}, ArgumentTypeError, "by name"),
        ({"importance": "l7"}, InputError, "l7"),
        ({"window": "all"}, InputError, "window"),
        ({"shard": "3/2"}, InputError, "3/2"),
        ({"shard": "1"}, InputError, "i/n"),
        ({"traces": "some"}, InputError, "traces"),
        ({"attention": "thawed"}, InputError, "attention"),
        ({"dtype": "float8"}, InputError, "float8"),
        ({"engine": "slurm"}, InputError, "slurm"),
        ({"address": "x:1"}, InputError, "address"),
        ({"workers": -1}, InputError, "workers"),
        ({"threads": 0}, InputError, "threads"),
        ({"plugins": ["no_such_module"]}, InputError, "no_such_module"),
        ({"part_seconds": 0}, InputError, "part_seconds"),
        ({"options": {"x": object()}}, ArgumentTypeError, "plain data"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(tmp_path, changes, kind, message):
    arguments = {"models": ["demo"]} | changes
    with pytest.raises(kind, match=message):
        dm.run_study(TEXTS, arguments.pop("models"), tmp_path / "s", **arguments)
    assert (
        not list(tmp_path.rglob("*.parquet"))
        or "engine" in changes
        or "address" in changes
        or "workers" in changes
    )


def start(out, models, **changes):
    process = SERVER.Process(target=run, args=(str(out), models), kwargs=changes)
    process.start()
    return process


def kill_at_random(out, models, took, times, seed) -> int:
    """Start a study again and again and kill each at a random moment; how many were killed at work."""
    first = SERVER.Process(target=int)  # so that the server's own imports are not timed
    first.start()
    first.join()
    rng, killed = random.Random(seed), 0
    for _ in range(times):
        process = start(out, models)
        process.join(rng.uniform(0.2, 0.9) * took)
        os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
    return killed


def test_kills_at_random_moments_lose_nothing(undisturbed, models, took, tmp_path):
    assert kill_at_random(tmp_path / "s", models, took, times=5, seed=7) >= 1
    assert_same(run(tmp_path / "s", models), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_many_kills_at_random_moments_lose_nothing(undisturbed, models, took, tmp_path, seed):
    assert kill_at_random(tmp_path / "s", models, took, times=20, seed=seed) >= 1
    assert_same(run(tmp_path / "s", models), undisturbed)


def test_a_kill_at_every_write_loses_nothing(undisturbed, models, tmp_path):
    """Killed just before, and just after, the rename of the first, third and fifth part."""
    for n, when in ((1, "before"), (3, "after"), (5, "before")):
        process = SERVER.Process(target=run_until, args=(str(tmp_path / "s"), models, n, when))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.rglob(".*.parquet.*"))  # a temporary file that the kill left
    assert_same(run(tmp_path / "s", models), undisturbed)


def run_until(out, models, n, when):
    count, replace = 0, os.replace

    def killing(source, target):
        nonlocal count
        count += "parts" in str(target)
        if count == n and when == "after":
            replace(source, target)
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killing
    run(out, models)


def test_parts_that_are_merged_under_way_change_nothing(undisturbed, models, tmp_path, monkeypatch):
    from densitometer.study import run as study
    from densitometer.study import store as study_store

    monkeypatch.setattr(study, "MERGE_EVERY", 2)
    monkeypatch.setattr(study_store, "SMALL_PARTS", 2)
    merge, small = study_store.StudyStore.merge, []

    def counting(self, model, **options):
        small.append("small" in options)
        merge(self, model, **options)

    monkeypatch.setattr(study_store.StudyStore, "merge", counting)
    assert_same(run(tmp_path / "s", models), undisturbed)
    assert sum(small) > 2


def test_two_processes_share_a_folder(undisturbed, models, tmp_path):
    both = [start(tmp_path / "s", models), start(tmp_path / "s", models)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert_same(dm.open_study(tmp_path / "s"), undisturbed)


def test_one_of_two_processes_is_killed_and_the_other_does_its_work(undisturbed, models, tmp_path):
    both = [start(tmp_path / "s", models), start(tmp_path / "s", models, part_seconds=60.0)]
    while not list((tmp_path / "s" / "parts").glob("*/*.parquet")) and both[1].is_alive():
        both[0].join(0.02)
    both[1].kill()
    for process in both:
        process.join()
    assert both[0].exitcode == 0
    assert_same(dm.open_study(tmp_path / "s"), undisturbed)


def test_a_part_cut_short_is_told_and_measured_again(undisturbed, models, tmp_path):
    found = run(tmp_path / "s", models)
    part = next(found.folder.glob("parts/*/*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=part.name):
        again = run(tmp_path / "s", models)
    assert_same(again, undisturbed)


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(models, tmp_path):
    (tmp_path / "c.txt").write_text("\n".join(TEXTS))
    arguments = ["c.txt", "-m", models[0], "-o", "s", "--traces", "whole"]
    process = SERVER.Process(target=command_in, args=(tmp_path, ["study", *arguments], 20_000))
    process.start()
    process.join()
    stderr = (tmp_path / "err").read_text()
    assert process.exitcode == 1, stderr
    assert len(stderr.strip().splitlines()) == 1
    assert "File too large" in stderr
    assert {p.name for p in (tmp_path / "s").rglob("*") if p.is_file()} == {
        "lock",
        "manifest.json",
        "texts.parquet",
    }
    found = dm.run_study(str(tmp_path / "c.txt"), models[0], tmp_path / "s", traces="whole")
    assert len(found.measurements()) == len(TEXTS)


def test_ctrl_c_stores_what_is_under_way_and_says_how_to_go_on(models, tmp_path):
    (tmp_path / "c.txt").write_text("\n".join(TEXTS * 40))
    arguments = ["c.txt", "-m", models[0], "-o", "s", "--part-seconds", "0.2"]
    process = SERVER.Process(target=command_in, args=(tmp_path, ["study", *arguments]))
    process.start()
    while not list((tmp_path / "s").glob("parts/*/*.parquet")) and process.is_alive():
        process.join(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    stderr = (tmp_path / "err").read_text()
    assert process.exitcode == 130, stderr
    assert "run the same command again" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert (tmp_path / "out").read_text() == ""
    done = dm.open_study(tmp_path / "s").measurements()
    assert 0 < len(done) < 40 * len(TEXTS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such.txt", "-m", "demo"], 2, "no-such.txt"),
        (["empty.txt", "-m", "demo"], 2, "empty"),
        (["c.txt", "-m", "demo", "--column", "text"], 2, "NAME=SOURCE"),
        (["c.txt", "-m", "demo", "--window", "words"], 2, "window"),
        (["c.txt"], 2, "--model"),
        (["c.txt", "-m", "demo", "--workers", "0"], 2, "at least 1"),
        (["c.txt", "-m", "demo", "--engine", "slurm"], 2, "local, ray"),
        (["c.txt", "-m", "demo", "--seed", "-1"], 2, "seed"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.txt").write_text("\n".join(TEXTS))
    (tmp_path / "empty.txt").write_text("\n")
    result = CliRunner().invoke(app, ["study", *arguments, "-o", "s"])
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "s").exists()


def test_the_command_prints_what_it_found(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.tsv").write_text("the white\twhale\nand the old\tship\nshort\tx\n")
    options = ["-o", "s", "--window", "words:2"]
    result = CliRunner().invoke(app, ["study", "c.tsv", "-m", models[0], "-m", "./none", *options])
    assert result.exit_code == 1  # of one model there is nothing
    assert result.stderr == "densitometer: ./none failed on every text; see the errors above\n"
    again = CliRunner().invoke(app, ["study", "c.tsv", "-m", models[0], *options])
    assert (again.exit_code, again.stderr) == (0, "")
    for part in ("measured", "failed", "fewer than the 2 of the window", "no folder './none'", "study in s"):
        assert part in result.stdout
    other = CliRunner().invoke(app, ["study", "c.tsv", "-m", models[0], "-o", "s", "--window", "words:1"])
    assert other.exit_code == 1
    assert "window was 'words:2', now 'words:1'" in other.stderr
    assert CliRunner().invoke(app, ["study", "c.tsv", "-m", "./none", "-o", "t"]).exit_code == 1


def test_where_there_is_no_terminal_a_study_says_now_and_then_how_far_it_is(capsys):
    progress = StudyProgress(total=1200, finished=100, failed=2, line_seconds=0.0)
    progress.add(0, 50, 1, "too long", 2**30)
    seldom = StudyProgress(total=1200, finished=100, failed=2, line_seconds=math.inf)
    seldom.add(0, 50, 1, "too long", 2**30)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("densitometer: 150 of 1,200 texts x models, 3 failed, ")
    assert line.endswith(" left, 1.0 GiB")


def test_a_gpu_is_used_and_more_than_there_are_is_refused(monkeypatch):
    """As told by what can be seen; no GPU is needed."""
    monkeypatch.setattr(local, "visible_gpus", lambda: ["3"])
    devices: list[str | None] = []
    open_pool("local", lambda device: devices.append(device) or str, 1, gpus_per_worker=1.0)
    open_pool("local", lambda device: devices.append(device) or str, 1, "cuda:5", gpus_per_worker=1.0)
    open_pool("local", lambda device: devices.append(device) or str, 1)
    assert devices == ["cuda", "cuda:5", None]
    with pytest.raises(InputError, match="4 workers with 1 GPUs each need 4, and 1 can be seen"):
        check_engine("local", 4, gpus_per_worker=1.0)
    with pytest.raises(InputError, match="whole GPUs"):
        check_engine("local", 1, gpus_per_worker=0.5)
    check_engine("ray", 4, gpus_per_worker=0.5)


def test_gpus_that_can_be_seen_are_those_that_the_process_was_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert local.visible_gpus() == ["5", "7"]


def test_a_folder_s_hidden_files_are_the_user_s_and_no_lock_stays_open(models, tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    ours = [".manifest.json.a1b2c3d4", ".texts.parquet.a1b2c3d4"]
    for name in (".gitignore", ".env", ".notes.txt.a1b2c3d4", *ours):
        (folder / name).write_text("x")
        os.utime(folder / name, (0, 0))
    dm.run_study(TEXTS[:2], models[0], folder, **SETTINGS)
    hidden = {path.name for path in folder.glob(".*")}
    assert hidden == {".gitignore", ".env", ".notes.txt.a1b2c3d4"}
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError, match="other settings"):
        dm.run_study(TEXTS[:2], models[0], folder, **SETTINGS | {"seed": 1})
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_task_that_failed_has_the_columns_of_those_that_did_not(models, tmp_path):
    with registries_kept():
        dm.register_metric("gap", lambda full, traces: (full - traces).abs().amax(-1))
        task = Task(models[0], 0, ({"id": "1", "text": "a b", "next": None, "problem": None},), 1.0)
        failed = polars.read_parquet(failed_part(task, StudySettings(), "it died"))
        study = dm.run_study(TEXTS[:1], models[0], tmp_path / "s", sizes=[0.5, 1.0])
        done = polars.read_parquet(next((tmp_path / "s").glob("parts/*/*.parquet")), hive_partitioning=False)
    assert "gap" in study.curves().columns
    assert failed.schema == done.schema


def test_means_are_taken_over_the_texts_that_are_texts(models, tmp_path):
    study = dm.run_study(TEXTS[:1], models[0], tmp_path / "s", means=[*TEXTS[:2], "  "], sizes=[0.5, 1.0])
    assert study.measurements()["error"].to_list() == [None]


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": 3}, {"models": None}, {"importance": None}, {"importance": [3]}, {"sizes": 0.1}, {"sizes": ["a"]},
        {"baselines": None}, {"part_seconds": "a"}, {"gpus_per_worker": "a"}, {"columns": 3}, {"window": 3}, {"shard": 3},
        {"seed": "a"}, {"seed": -1}, {"out": None}, {"workers": 0}, {"plugins": "json"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument_is_told_before_anything_is_written(models, tmp_path, wrong):
    arguments = {"corpus": TEXTS[:1], "models": models[0], "out": tmp_path / "s"} | wrong
    with pytest.raises(dm.DensitometerError) as caught:
        dm.run_study(**arguments)
    assert isinstance(caught.value, ValueError | TypeError)
    assert not (tmp_path / "s").exists()


def test_a_plugin_is_found_beside_the_corpus_and_what_is_damaged_is_told(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.txt").write_text("\n".join(TEXTS[:2]))
    (tmp_path / "my_gap.py").write_text(
        "import densitometer as dm\ndm.register_metric('gap', lambda p, q: (p - q).abs().amax(-1))\n"
    )
    line = ["study", "c.txt", "-m", models[0], "-o", "s", "--window", "words:3", "--plugin", "my_gap"]

    def told() -> str:
        process = SERVER.Process(target=command_in, args=(tmp_path, line))
        process.start()
        process.join()
        assert process.exitcode == 0
        return (tmp_path / "err").read_text()

    assert told() == ""
    assert "gap" in dm.open_study("s").curves().columns
    part = next((tmp_path / "s").glob("parts/*/*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    assert told().count("is damaged; its texts are measured again") == 1


def test_a_report_tells_how_to_study_it_again(models, tmp_path):
    (tmp_path / "c.txt").write_text("\n".join(TEXTS[:2]))
    corpus = str(tmp_path / "c.txt")
    study = dm.run_study(corpus, models[0], tmp_path / "s", states=True, means=corpus, sizes=[0.5, 1.0])
    page = "".join(_settings(study, {}))
    for words in ("--states", f"--means {corpus}", f"-m {models[0]}"):
        assert words in page
    assert "--unigrams" not in page


def test_numbers_of_numpy_are_settings_too(models, tmp_path):
    asked = {"sizes": numpy.array([0.5, 1.0]), "seed": numpy.int64(3), "eps": numpy.float32(0.25)}
    study = dm.run_study(TEXTS[:1], models[0], tmp_path / "s", **asked)
    assert study.manifest["settings"]["sizes"] == [0.5, 1.0]
    assert (study.manifest["settings"]["seed"], study.manifest["settings"]["eps"]) == (3, 0.25)
