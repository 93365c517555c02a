"""The benchmarks run, and the published manner that we time ourselves against computes the same numbers."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import polars
import pytest
import torch
from snippets import registries_kept

import densitometer as dm
from densitometer.measuring.calibration import calibration_steps

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_speed_runs_every_part_and_the_published_manner_agrees(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    speed = runpy.run_path(str(BENCHMARKS / "speed.py"))
    scores = ["fisher", "bound", "best"]
    case = speed["case_of"]("demo", 7, runs=1, sizes=5, published=1, scores=scores)
    found = speed["run_case"](case)
    assert {f"score {name}" for name in scores} < set(found["times"])
    assert len(found["times"]) == 13
    assert found["difference"] < 1e-4  # of logits, each size run by itself with nothing skipped
    assert 0 < found["live"] < 1
    assert set(found["floors"]) < set(found["times"])
    assert found["floors"]["measure: default"] > found["floors"]["plain forward"] > 0
    # two passes, and what is live in the traces of two importances and their baselines
    assert found["traces"]["measure: default"] > 2 * 27


def test_the_script_for_a_gpu_runs_without_one_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    options = ["--device", "cpu", "--shape", "tiny", "--dtype", "float32", "--tokens", "7", "--runs", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert told.count("| unmeasured | unmeasured |") == told.count("\n| ") - 1 == 5
    assert "Nothing was measured on a GPU." in told


def test_importances_are_measured_told_and_gone_on_with(monkeypatch, capsys, tmp_path):
    out = tmp_path / "rows.parquet"

    def run(*arguments):
        command = [
            "importances.py",
            "--models",
            "demo-parallel",
            "--inputs",
            "2",
            "--out",
            str(out),
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", command)
        with registries_kept():
            runpy.run_path(str(BENCHMARKS / "importances.py"), run_name="__main__")
        return capsys.readouterr().out

    first = run("--importances", "l1,fisher,relp")
    second = run("--importances", "l1,fisher,relp,attribution-patching,integrated-gradients")
    rows = polars.read_parquet(out)
    assert rows.group_by("importance").len()["len"].to_list() == [2] * 5
    assert rows.filter(importance="l1").height == 2
    assert (rows["forwards"] > 0).all()
    assert ((rows["tv_0.5"] >= 0) & (rows["tv_0.005"] <= 1)).all()
    for said in (first, second, run("--from", str(out))):
        assert "additive floor: median" in said
        assert "Spearman of size_at" in said


def test_the_slopes_of_relp_are_a_rule_and_its_values_the_models(monkeypatch):
    """In a model without a gate and with attention held, halves and ratios change slopes, never what is predicted."""
    found = runpy.run_path(str(BENCHMARKS / "importances.py"))
    model = dm.load_model("demo")
    part, up = torch.nn.Sequential(), torch.nn.Linear(5, 5)
    part.act = torch.nn.SiLU()
    x = torch.linspace(-2, 2, 5, requires_grad=True)
    with found["_as_ratio"](part, "act", False):
        y = part.act(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torch.nn.functional.silu(x))
    torch.testing.assert_close(slope[x != 0], (torch.nn.functional.silu(x) / x)[x != 0].detach())
    with found["_halved"](up):
        (half,) = torch.autograd.grad(up(x).sum(), x)
    (whole,) = torch.autograd.grad(up(x).sum(), x)
    torch.testing.assert_close(2 * half, whole)
    forward = dm.build_graph(model, "The captain looked").forward
    kept = found["attribution_patching"](forward)[0].residual
    assert not torch.equal(found["relp"](forward)[0].residual, kept)
    torch.testing.assert_close(
        found["attribution_patching"](forward)[0].residual, kept
    )  # nothing stays patched


def test_tasks_are_measured_told_and_gone_on_with(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    out = tmp_path / "rows.parquet"
    prompts = [
        dm.Prompt(f"{x} said that", " he", " she", f"{y} said that") for x, y in (("He", "She"), ("It", "He"))
    ]
    monkeypatch.setattr(dm, "load_task", lambda name, count: prompts[:count])
    for names in ("l1,fisher", "l1,fisher,distribution,integrated-gradients"):
        arguments = ["--models", "demo", "--prompts", "2", "--importances", names, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["tasks.py", *arguments])
        with registries_kept():
            runpy.run_path(str(BENCHMARKS / "tasks.py"), run_name="__main__")
    rows = polars.read_parquet(out)
    assert rows.group_by("importance").len()["len"].to_list() == [2] * 4
    m = dm.measure(
        "demo",
        "He said that",
        importance="fisher",
        target=(" he", " she"),
        counterfactual="She said that",
        baselines=(),
    )
    own = rows.filter(text="He said that", importance="fisher")
    assert own["by_faithfulness"].item() == m.density["fisher"].size_at(0.1, by="faithfulness")
    assert "| demo  | indirect-object | l1" in capsys.readouterr().out


def test_the_exact_circuit_of_hand_built_models_is_looked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    with registries_kept():
        found = runpy.run_path(str(BENCHMARKS / "tasks.py"))
    rows = found["exact"](["l1"])
    steps = {step.name: step for step in calibration_steps()}
    assert rows["step"].to_list() == list(steps)
    for row in rows.iter_rows(named=True):
        step = steps[row["step"]]
        trace = dm.build_graph(step.model, list(step.ids), importance="l1").trace(n_edges=len(step.needed))
        columns = trace.edges().select("layer", "kind", "head", "source", "target").rows()
        assert row["edges_found"] == pytest.approx(
            sum(edge in step.needed for edge in columns) / len(step.needed)
        )
    found["show_exact"](rows)
    assert "| copy head" in capsys.readouterr().out


def test_positions_are_compared_with_single_measurements_and_written_tokens_with_each_other(
    monkeypatch, capsys
):
    for arguments in (
        ["along", "--tokens", "4", "--every", "4", "--count"],
        ["parts", "--tokens", "2"],
        ["written", "--tokens", "2"],
    ):
        monkeypatch.setattr(sys, "argv", ["positions.py", *arguments, "--model", "demo"])
        runpy.run_path(str(BENCHMARKS / "positions.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert told.count("; ratio ") == 2
    assert "recording: " in told
    assert "2 tokens written after 8, l1, s: " in told
