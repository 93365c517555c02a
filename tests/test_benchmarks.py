"""The benchmarks run, and the published manner that we time ourselves against computes the same numbers."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_speed_runs_every_part_and_the_published_manner_agrees(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    speed = runpy.run_path(str(BENCHMARKS / "speed.py"))
    scores = ["fisher", "bound", "best"]
    case = speed["case_of"]("demo", 7, runs=1, sizes=5, published=1, scores=scores)
    found = speed["run_case"](case)
    assert {f"score {name}" for name in scores} < set(found["times"])
    assert len(found["times"]) == 12
    assert found["difference"] < 1e-4  # of logits, each size run by itself with nothing skipped
    assert 0 < found["live"] < 1
    assert found["floor"] > 0


def test_every_table_has_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.setattr(sys, "argv", ["speed.py", "goal"])
    runpy.run_path(str(BENCHMARKS / "speed.py"), run_name="__main__")
    assert "Nothing was measured on a GPU." in capsys.readouterr().out
