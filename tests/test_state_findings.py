"""Findings about states, unigrams, translations and checkpoints: claims hold the numbers of the tables."""

from __future__ import annotations

import polars
import pytest
from studies import save_model

import densitometer as dm
from densitometer.analysis import state_geometry, unigram_knowledge
from densitometer.report.findings import Evidence, Finding, LeftOut
from densitometer.report.findings.pairs import across_languages, over_training
from densitometer.report.findings.states import what_small_traces_know, where_the_state_goes

WORDS = ("the", "sea", "was", "cold", "and", "a", "whale", "came", "under", "ship", "la", "mer", "de", "nuit")
SETTINGS = {"importance": "l1", "sizes": (0.01, 0.1, 0.4, 1.0), "components": False}


def corpus(n):
    texts = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(5, 11 + i % 3)) for i in range(n)]
    return polars.DataFrame(
        {"text": texts, "language": ["en", "fr"] * (n // 2), "pair": [i // 2 for i in range(n)]}
    )


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("findings")
    early, late = save_model(folder / "m", 0), save_model(folder / "n", 1)
    models = [f"{early}@step2", f"{early}@step10", late]
    return Evidence(dm.run_study(corpus(16), models, folder / "s", states=True, **SETTINGS))


def told(finding):
    """All that a finding says: its claim, and what it rests on."""
    return "; ".join([finding.claim, *(f"{of}: {found}" for of, found in finding.details)])


def test_claims_hold_the_numbers_of_their_tables(evidence):
    goes = where_the_state_goes(evidence)
    found = state_geometry(evidence.states)
    for model in evidence.measured["model"].unique():
        at = {"model": model, "importance": "l1", "size": 0.1}
        cosine = found.paths.filter(measure="cosine", **at)["median"].item()
        cka, dealt = found.populations.filter(**at).select("cka", "cka_dealt").row(0)
        own = dict(goes.details)[f"{model} by l1"].split("; fastest")[0]
        of_cosine, claim = own.split("; CKA")
        assert f"{cosine:.2f} at 10 %" in of_cosine
        assert f"{cka:.2f} at 10 %" in claim
        assert f"{dealt:.2f} at 10 %" in claim
    knows = what_small_traces_know(evidence)
    table = unigram_knowledge(evidence.curves, evidence.measurements)
    whole = table.filter(size=1.0)
    assert whole["difference"].to_list() == pytest.approx([0] * 3, abs=1e-3)
    for row in table.filter(size=0.4).iter_rows(named=True):
        assert f"{row['rho']:z.2f} at 40 %" in told(knows) or f"{row['rho']:z.2f} (" in told(knows)
    assert knows.tables["By size"].equals(table)


def test_translations_and_checkpoints_are_told_with_their_differences(evidence):
    pairs = across_languages(evidence)
    assert set(pairs.tables["Languages in pairs"]["n"]) == {8}
    row = pairs.tables["Languages in pairs"].row(0, named=True)
    assert f"fr less en: {100 * row['difference']:+.2g} points" in told(pairs)
    trained = over_training(evidence)
    to_last = trained.tables["Each checkpoint against the last, text by text"].row(0, named=True)
    assert (to_last["one"], to_last["step"], to_last["other"]) == ("step2", 2, "step10")
    assert to_last["rho"] == pytest.approx(1)  # they are the same weights
    assert "at step 2" in told(trained)
    assert "in pairs +0 points (+0 points to +0 points; not tested, n = 16)" in told(trained)
    assert "+0 points" in trained.claim


def test_what_was_not_kept_or_is_not_in_the_corpus_is_left_out(tmp_path):
    few = dm.run_study(corpus(4).drop("pair"), save_model(tmp_path / "m", 0), tmp_path / "s", **SETTINGS)
    evidence = Evidence(few)
    for ask, why in (
        (where_the_state_goes, "--states"), (across_languages, "no column pair"), (over_training, "stepN"),
    ):  # fmt: skip
        answer = ask(evidence)
        assert isinstance(answer, LeftOut)
        assert why in answer.why
    assert isinstance(what_small_traces_know(evidence), Finding)
    four = dm.run_study(corpus(4), save_model(tmp_path / "n", 1), tmp_path / "t", states=True, **SETTINGS)
    assert "fewer than 8 pairs" in across_languages(Evidence(four)).why
    assert "no CKA" in where_the_state_goes(Evidence(four)).claim
