"""Studies of prompts: each text by its own target and its own counterfactual, as `measure` measures it alone."""

from __future__ import annotations

import pytest

import densitometer as dm
from densitometer.errors import DensitometerWarning, StorageError
from densitometer.measuring.settings import MeasureSettings
from densitometer.report.findings import Evidence
from densitometer.report.page import _summary
from densitometer.study.part_files import cell_key
from densitometer.study.prompts import columns_per_text, measuring_of

pytestmark = pytest.mark.models

SIZES = (0.2, 0.6, 1.0)
ROWS = [
    {"id": "both", "text": "The captain looked at the", "target": " sea", "against": " man", "counterfactual": "The captain looked in the"},
    {"id": "token", "text": "She said that the", "target": " man"},
    {"id": "none", "text": "It was a dark night and"},
    {"id": "several", "text": "He was born in", "target": " New York"},
    {"id": "longer", "text": "The old captain", "target": " sea", "counterfactual": "The very old captain"},
    {"id": "alone", "text": "A law is a rule", "against": " sea"},
]  # fmt: skip


def study_of(rows, folder, **keywords):
    return dm.run_study(rows, "demo", folder, importance="fisher", sizes=SIZES, components=False, **keywords)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return study_of(ROWS, tmp_path_factory.mktemp("prompts") / "s")


def test_each_text_is_measured_by_its_own_target_and_counterfactual(demo, study):
    assert study.manifest["settings"]["per_text"] == ["target", "against", "counterfactual"]
    table = study.measurements()
    rows = {row["text_id"]: row for row in table.iter_rows(named=True)}
    wanted = {
        "both": {"target": (" sea", " man"), "counterfactual": "The captain looked in the"},
        "token": {"target": " man"},
        "none": {},
    }
    for name, keywords in wanted.items():
        text = next(row["text"] for row in ROWS if row["id"] == name)
        m = dm.measure(demo, text, importance="fisher", sizes=SIZES, baselines=(), **keywords)
        density = m.density["fisher"]
        assert rows[name]["error"] is None
        assert rows[name]["size_at"] == density.size_at(0.1)
        faithful = density.size_at(0.1, by="faithfulness") if keywords else None
        assert rows[name]["faithful_at"] == faithful
        assert rows[name]["noise"] == density.noise > 0
        assert rows[name]["n_sinks"] == rows[name]["sink_share"] == rows[name]["sink_share_of_trace"] == 0
        assert rows[name]["size_at_without_sinks"] == density.size_at(0.1)
        curve = study.curves().filter(text_id=name, refined=False, kind="trace")
        want = m.curve["target"].to_list() if keywords else [None] * 3
        assert curve["target"].to_list() == pytest.approx(want, abs=1e-6) or not keywords
        assert (curve["target"].null_count() == 3) == (not keywords)
        assert curve["tv"].to_list() == pytest.approx(m.curve["tv"].to_list(), abs=1e-6)
    assert table.filter(text_id="both")["target"].to_list() == [" sea"]


def test_a_text_whose_target_or_counterfactual_cannot_be_used_fails_alone(study):
    errors = dict(study.measurements().select("text_id", "error").iter_rows())
    assert [name for name, error in errors.items() if error is None] == ["both", "token", "none"]
    assert "the target ' New York' is 2 tokens of demo" in errors["several"]
    assert "the counterfactual has 4 tokens and the text 3" in errors["longer"]
    assert errors["alone"] == "the text 'alone' has `against` and no `target`; give both"


def test_what_the_study_gives_for_all_goes_before_a_column(demo, tmp_path):
    study = study_of(ROWS[:2], tmp_path / "s", target=" sea", counterfactual=None)
    assert study.manifest["settings"]["per_text"] == ["counterfactual"]
    m = dm.measure(demo, ROWS[1]["text"], importance="fisher", sizes=SIZES, baselines=(), target=" sea")
    row = study.measurements().filter(text_id="token").row(0, named=True)
    assert row["faithful_at"] == m.density["fisher"].size_at(0.1, by="faithfulness")
    assert row["target"] == " man"  # carried along


def test_columns_that_are_settings():
    plain = MeasureSettings("l1")
    for columns, given, wanted in (
        (["id", "text"], {}, ()),
        (["target", "text", "against"], {}, ("target", "against")),
        (["against"], {}, ()),
        (["against", "counterfactual", "target"], {"target": 3}, ("counterfactual",)),
        (["counterfactual", "target"], {"counterfactual": "x"}, ("target",)),
    ):
        assert columns_per_text(columns, MeasureSettings("l1", **given)) == wanted
    row = {"id": "1", "text": "x", "target": [" a", " b"], "against": [" c"], "counterfactual": "y"}
    own = measuring_of(plain, ("target", "against"), row)
    assert own.target.to_document() == [[" a", " b"], " c"]
    assert own.counterfactual is None
    assert measuring_of(plain, (), row) == plain


def test_it_goes_on_where_it_stopped_and_refuses_another_target(tmp_path):
    before = study_of(ROWS[:1], tmp_path / "s").measurements()
    with pytest.warns(DensitometerWarning, match="1 text was added"):
        more = study_of(ROWS[:2], tmp_path / "s")
    assert more.measurements().head(1).equals(before)
    assert more.measurements().height == 2
    other = [ROWS[0] | {"target": " ship"}, ROWS[1]]
    with pytest.raises(
        StorageError, match="has another target for the id 'both', ' ship' where the study has ' sea'"
    ):
        study_of(other, tmp_path / "s")


def test_the_key_of_a_row_is_of_its_target_too():
    row = {"id": "1", "text": "x", "next": None, "problem": None, "target": " a"}
    keys = {
        cell_key("demo", row, "{}"),
        cell_key("demo", row, "{}", ("target",)),
        cell_key("demo", row | {"target": " b"}, "{}", ("target",)),
        cell_key("demo", row | {"target": [" a", " b"]}, "{}", ("target",)),
    }
    assert len(keys) == 4


def test_such_a_study_is_reported_and_asked_by_sql(study):
    held = study.sql("select count(faithful_at) as n, count(size_at) as all from measurements")
    assert held.row(0) == (2, 3)
    page = "".join(_summary(Evidence(study), []))
    assert "3 measurements, 3 pieces of text failed" in page
    assert "is 2 tokens of demo" in page
