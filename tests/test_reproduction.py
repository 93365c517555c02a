"""A saved measurement can be run again, and what differs between two is found, once each, with its place."""

from __future__ import annotations

import dataclasses
import json

import polars
import pytest
from typer.testing import CliRunner

import densitometer as dm
from densitometer.cli.commands import app
from densitometer.measuring.records import Provenance

TEXT = "The captain looked at the sea"
SIZES = [0.05, 0.2, 0.7, 1.0]


@pytest.fixture(scope="module")
def measured(demo):
    return dm.measure(demo, TEXT, importance=["l1", "fisher"], sizes=SIZES, seed=5, eps=0.2, position=3)


@pytest.fixture
def saved(measured, tmp_path):
    path = tmp_path / "one.json"
    measured.save(path)
    return path


def test_a_file_is_enough_to_get_the_same_bits(measured, saved):
    again = dm.replay(dm.load_measurement(saved))
    found = dm.difference(measured, again)
    assert found.same_numbers
    assert found.asked.is_empty()
    assert found.surroundings.is_empty()
    assert again.curve.equals(measured.curve)
    assert again.refined.equals(measured.refined)
    assert again.baselines.equals(measured.baselines)


@pytest.mark.parametrize(
    "settings",
    [
        {"by": "threshold", "sizes": [3.0, 0.5]},
        {"attention": "frozen", "sizes": SIZES, "baselines": []},
        {"importance": "random", "seed": 11, "sizes": SIZES, "baselines": ["random"]},
        {"granularity": "neuron", "sizes": SIZES},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_setting_is_kept(demo, tmp_path, settings):
    before = dm.measure(demo, TEXT, **settings)
    before.save(tmp_path / "m.json")
    found = dm.difference(before, dm.replay(dm.load_measurement(tmp_path / "m.json"), demo))
    assert found.same_numbers
    assert found.asked.is_empty()


def test_what_was_asked_otherwise_is_named(demo, measured):
    other = dm.measure(demo, TEXT, importance=["l1", "fisher"], sizes=SIZES[1:], seed=6, eps=0.2, position=3)
    found = dm.difference(measured, other)
    assert set(found.asked["name"]) == {"sizes", "seed"}
    assert found.missing.filter(kind="trace", size=0.05, only_in="one").height == 2
    assert not found.missing.filter(kind="trace", only_in="other").height
    assert "random" in found.numbers["kind"].to_list()


def test_one_number_that_differs_is_found_in_its_place(measured):
    wrong = measured.curve.with_columns(
        tv=polars.when(importance="fisher", kind="inverse", size=0.2)
        .then(polars.col("tv") - 0.25)
        .otherwise("tv")
    )
    found = dm.difference(measured, dataclasses.replace(measured, curve=wrong))
    (row,) = found.numbers.filter(quantity="tv").iter_rows(named=True)
    assert row["largest"] == pytest.approx(0.25)
    assert (row["n_different"], row["importance"], row["kind"], row["size"]) == (1, "fisher", "inverse", 0.2)
    assert found.numbers["quantity"].to_list() == ["tv"]
    assert found.largest_tv == pytest.approx(0.25)


def test_what_cannot_be_run_again_is_refused(measured):
    provenance = Provenance(densitometer="0.0.9", settings={"seed": 0})
    old = dataclasses.replace(measured, provenance=provenance)
    with pytest.raises(
        dm.DensitometerError,
        match=r"importance, sizes.* cannot be read from a measurement of densitometer 0\.0\.9",
    ):
        dm.replay(old)
    settings = {**measured.provenance.settings, "ablation": "mean"}
    provenance = dataclasses.replace(measured.provenance, settings=settings)
    means = dataclasses.replace(measured, provenance=provenance)
    with pytest.raises(dm.DensitometerError, match="reference means"):
        dm.replay(means)


def test_the_commands_say_what_differs_and_exit_so(saved, tmp_path):
    run = CliRunner().invoke
    again = tmp_path / "again.json"
    result = run(app, ["replay", str(saved), "--json", str(again)])
    assert result.exit_code == 0, result.output
    assert "every number is the same, bit for bit" in result.output
    assert run(app, ["diff", str(saved), str(again)]).exit_code == 0

    document = json.loads(saved.read_text())
    document["curves"][0]["kl"] += 0.125  # its total variation is held to the file's density
    document["provenance"]["eps"] = 0.3
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(document))
    result = run(app, ["diff", str(saved), str(wrong)])
    assert result.exit_code == 1
    assert "eps" in result.output
    assert "0.12" in result.output
    result = run(app, ["replay", str(wrong)])
    assert result.exit_code == 1
