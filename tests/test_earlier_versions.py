"""Files that commit 49b11c9 wrote: they open, replay, go on and are reported.

They were written there by
    m = dm.measure(demo, "The captain looked at the sea", ["l1", "fisher"], [0.05, 0.3, 1.0], seed=3); m.save(...)
    dm.run_study(["The captain looked at the sea", "One two three four"], "demo", folder, importance=["l1", "l2"],
                 sizes=[0.05, 0.3, 1.0], traces="top")
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import densitometer as dm

FILES = Path(__file__).parent / "references" / "49b11c9"
TEXTS = ["The captain looked at the sea", "One two three four"]


def test_a_measurement_file_opens_and_replays(demo):
    document = json.loads((FILES / "measurement.json").read_text())
    old = dm.load_measurement(FILES / "measurement.json")
    for name, own in document["density"].items():
        assert old.density[name].auc_log == own["auc_log"]
        assert old.density[name].size_at(0.1) == own["size_at"]["0.1"]
    assert old.settings.seed == 3
    assert (old.floor, old.sinks) == (None, None)
    again = dm.replay(old, demo)
    found = dm.difference(old, again)
    assert found.asked.is_empty()
    assert found.largest_tv < 1e-4
    rows = found.numbers.filter(found.numbers["quantity"] == "tv")
    assert rows.height <= 1
    for name in old.density:
        assert again.density[name].auc_log == pytest.approx(old.density[name].auc_log, abs=1e-4)
    assert old.with_model(demo).minimal_trace(tv=0.2).size <= 1


def test_a_study_opens_and_goes_on_without_measuring_again(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    shutil.copytree(FILES / "study", folder)
    before = dm.open_study(folder)
    table, curves = before.measurements(), before.curves()
    assert table.select("text_id", "importance").rows() == [
        ("1", "l1"),
        ("1", "l2"),
        ("2", "l1"),
        ("2", "l2"),
    ]
    own = dm.measure(dm.load_model("demo"), TEXTS[0], importance="l1", sizes=[0.05, 0.3, 1.0], baselines=())
    row = table.filter(text_id="1", importance="l1").row(0, named=True)
    assert row["auc_log"] == pytest.approx(own.density["l1"].auc_log, abs=1e-4)

    def measured(*arguments, **keywords):
        raise AssertionError("a stored text was measured again")

    monkeypatch.setattr("densitometer.measuring.measurement.measured", measured)
    study = dm.run_study(TEXTS, "demo", folder, importance=["l1", "l2"], sizes=[0.05, 0.3, 1.0], traces="top")
    assert study.measurements().equals(table)
    assert study.curves().equals(curves)


def test_a_study_of_before_is_reported(tmp_path):
    from densitometer.report.page import report

    shutil.copytree(FILES / "study", tmp_path / "study")
    report(tmp_path / "study", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "demo" in page
    assert len(page) > 10_000
