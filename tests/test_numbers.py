"""Numbers that are what they say: areas with the empty trace, files held to their own density, summaries of one trace."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import polars
import pytest
import torch
import transformers
from conftest import CONFIGS
from rich.console import Console

import densitometer as dm
from densitometer._util.digits import percent, significant
from densitometer._util.metrics import entropy, surprisal
from densitometer.cli.terminal import show_measurement
from densitometer.measuring.density import Density, empty_sizes

TEXT = "The captain looked at the sea"


@pytest.fixture(scope="module")
def by_threshold(demo):
    return dm.measure(demo, TEXT, importance="l1", by="threshold", sizes=[1e9, 0.02], baselines=())


# --- the empty trace


def test_the_empty_trace_of_a_threshold_is_part_of_the_areas(demo, by_threshold):
    """Against a curve by size of the same traces, whose smallest sizes round down to no edge."""
    own = by_threshold.curve.filter(kind="trace")
    assert own["n_edges"][0] == 0
    n_edges = by_threshold.graph.n_edges
    sizes = [1e-5, (1 - 1e-9) / n_edges, *own["size"].to_list()[1:]]
    same = dm.measure(demo, TEXT, importance="l1", sizes=sizes, baselines=())
    assert same.curve["n_edges"].to_list() == [0, *own["n_edges"].to_list()]
    assert by_threshold.density["l1"].auc_log == pytest.approx(same.density["l1"].auc_log, abs=1e-6)
    assert by_threshold.density["l1"].auc_linear == pytest.approx(same.density["l1"].auc_linear, abs=1e-6)
    assert by_threshold.density_in("edges") == by_threshold.density
    left_out = Density(tuple(own["size"][1:]), tuple(own["tv"][1:]))
    assert by_threshold.density["l1"].auc_log > left_out.auc_log + 0.1


@pytest.mark.parametrize("n_edges", [1, 7, 981, 99_999, 10**7])
def test_the_empty_trace_stands_below_one_edge(n_edges):
    sizes = empty_sizes(n_edges)
    assert all(math.floor(size * n_edges) == 0 for size in sizes)
    assert list(sizes) == sorted(set(sizes))


def test_without_sinks_the_empty_trace_counts_too(by_threshold):
    sinks = by_threshold.sinks
    assert sinks is not None
    assert by_threshold.density_in("edges_without_sinks") == by_threshold.density


# --- files


def saved(measurement, tmp_path, change):
    path = tmp_path / "m.json"
    measurement.save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def measured(demo):
    return dm.measure(demo, TEXT, importance="l1", sizes=[0.05, 0.3, 0.6, 1.0], baselines=("inverse",))


def test_rows_in_another_order_give_the_same_measurement(measured, tmp_path):
    def reverse(document):
        document["curves"].reverse()
        document["refined"].reverse()

    loaded = dm.load_measurement(saved(measured, tmp_path, reverse))
    assert loaded.density["l1"] == measured.density["l1"]
    assert loaded.curve.filter(kind="trace").equals(measured.curve.filter(kind="trace"))
    assert loaded.refined.equals(measured.refined)
    assert loaded.summary() == measured.summary()


def test_a_density_that_is_not_that_of_the_curve_is_refused(measured, tmp_path):
    for key, value in (
        ("auc_log", 0.044),
        ("auc_linear", 0.9),
        ("size_at", {"0.1": 0.9}),
        ("size_at", {"0.1": None}),
    ):
        path = saved(
            measured, tmp_path, lambda d, key=key, value=value: d["density"]["l1"].update({key: value})
        )
        with pytest.raises(dm.DensitometerError, match=r"density\.l1 is not that of curves"):
            dm.load_measurement(path)
    path = saved(measured, tmp_path, lambda d: d["curves"][1].update(tv=0.01))
    with pytest.raises(dm.DensitometerError, match="but its rows give"):
        dm.load_measurement(path)


def test_a_file_that_left_the_empty_trace_out_still_opens(by_threshold, tmp_path):
    own = by_threshold.curve.filter(polars.col("size") > 0, kind="trace")
    refined = by_threshold.refined
    old = Density(tuple(own["size"]), tuple(own["tv"]), tuple(refined["size"]), tuple(refined["tv"]))
    path = saved(
        by_threshold,
        tmp_path,
        lambda d: d["density"]["l1"].update(auc_log=old.auc_log, auc_linear=old.auc_linear),
    )
    assert dm.load_measurement(path).density == by_threshold.density


def _last_trace(document):
    return next(row for row in reversed(document["curves"]) if row["kind"] == "trace")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["curves"][0].update(threshold=None), r"curves\.threshold.*is null"),
        (lambda d: d["refined"][0].update(threshold=None), r"refined\.threshold.*is null"),
        (lambda d: d["graph"]["landmarks"].pop("residual_chain"), r"landmarks\.residual_chain is missing"),
        (lambda d: d["graph"].update(landmarks={}), r"landmarks\.residual_chain is missing"),
        (lambda d: d["graph"]["landmarks"].update(residual_chain=1e9), "a number from 0 to 1"),
        (
            lambda d: d["curves"].append(dict(_last_trace(d))),
            r"two rows of kind 'trace' by 'l1' of size 1\.0",
        ),
        (lambda d: d["curves"][0].update(n_edges=10**6), "more than graph.n_edges"),
        (lambda d: d["curves"][0].update(n_edges=900), "fewer edges than one of a smaller size"),
        (lambda d: d["density"].clear(), r"density\.l1 is missing"),
        (lambda d: d["density"].update(l2=d["density"]["l1"]), r"density\.l2 has no rows"),
    ],
)
def test_an_edited_file_is_one_clear_error(measured, tmp_path, change, message):
    path = saved(measured, tmp_path, change)
    with pytest.raises(dm.DensitometerError, match=message):
        dm.load_measurement(path)


# --- summaries


def test_operations_and_parameters_are_of_the_trace_that_is_quoted(measured):
    size = measured.density["l1"].size_at(0.1)
    runs = polars.concat([measured.curve, measured.refined]).filter(kind="trace", size=size)
    assert runs.height == 1
    flops, parameters = runs.select("flops_share", "parameter_share").row(0)
    line = f"use {100 * flops:.2g} % of the operations and {100 * parameters:.2g} % of the parameters"
    assert line in measured.summary()


def test_operations_of_a_noisy_size_are_of_both_ends(measured):
    noisy = dataclasses.replace(measured.density["l1"], noise=0.05)
    m = dataclasses.replace(measured, density={"l1": noisy})
    runs = polars.concat([m.curve, m.refined]).filter(kind="trace")
    low, high = (runs.filter(size=size)["flops_share"].item() for size in noisy.bracket(0.1))
    assert f"use {100 * low:.2g} to {100 * high:.0f} % of the operations" in m.summary()


def test_a_share_of_operations_that_two_traces_have_is_not_taken_from_the_other(measured):
    """The larger of two traces of equal cost does not stand in for the one that is quoted."""
    size = measured.density["l1"].size_at(0.1)
    refined = measured.refined.with_columns(
        flops_share=polars.when(polars.col("size") == size)
        .then(measured.curve["flops_share"][1])
        .otherwise("flops_share")
    )
    m = dataclasses.replace(measured, refined=refined)
    assert f"use {100 * measured.curve['flops_share'][1]:.2g} % of the operations" in m.summary()


def test_a_uniform_prediction_is_said_to_be_one():
    torch.manual_seed(0)
    fresh = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    torch.nn.init.zeros_(fresh.lm_head.weight)
    model = dm.load_model(fresh)
    everything = dm.measure(model, [3, 5, 7], importance="l1", baselines=[])
    assert everything.density["l1"].auc_log == pytest.approx(0, abs=1e-6)
    assert "no edge at all" in everything.summary()
    assert "entropy is that of 101 equally probable tokens" in everything.summary()
    some = dm.measure(model, [3, 5, 7], importance="l1", sizes=[0.2, 0.6, 1.0], baselines=[])
    assert some.summary().startswith("TV <= 0.1 from 20 % of the edges (l1), which use ")
    assert "; TV <= 0.1 at every size that was run, and its entropy is that of 101 equally" in some.summary()


# --- numbers as text


@pytest.mark.parametrize(
    ("share", "digits", "expected"),
    [
        (0.9996, 3, "100 %"), (0.997, 2, "100 %"), (1.0, 2, "100 %"), (0.0999, 2, "10 %"), (0.12345, 3, "12.3 %"),
        (1e-5, 3, "0.001 %"), (0.0, 3, "0 %"), (-0.0, 3, "0 %"), (None, 3, "never"),
    ],
)  # fmt: skip
def test_a_share_has_no_exponent_and_zero_no_sign(share, digits, expected):
    assert percent(share, digits) == expected


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (99.7, 2, "100"),
        (117.0, 2, "120"),
        (999.6, 3, "1000"),
        (-0.0, 3, "0"),
        (1e-170, 3, "1e-170"),
        (-0.02, 1, "-0.02"),
    ],
)
def test_significant_digits(value, digits, expected):
    assert significant(value, digits) == expected


def test_every_share_in_per_cent_is_formatted_in_one_place():
    """A format such as `.2g` beside a per cent sign prints 1e+02 % for 99.7 %."""
    root = Path(dm.__file__).parent
    found = {
        str(path.relative_to(root)): lines
        for path in root.rglob("*.py")
        if (lines := re.findall(r".*100 \* [^\n]*:[+]?\.\dg\}.*|.*\.\dg\} ?%.*", path.read_text()))
    }
    assert found == {}


def test_a_certain_prediction_has_an_entropy_without_a_sign():
    logits = torch.tensor([0.0, 1e4, 0.0])
    for value in (entropy(logits, logits[None])[0], surprisal(logits, 1)):
        assert value == 0
        assert not torch.signbit(value)


def test_an_entropy_of_minus_zero_in_an_older_file_is_printed_without_its_sign(measured):
    m = dataclasses.replace(measured, entropy=-0.0)
    lines = "".join(segment.text for segment in Console(width=200).render(show_measurement(m)))
    assert "entropy 0.00 nats" in lines
