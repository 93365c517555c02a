"""MeasureSettings: every setting is reachable from everything that measures, and is kept by everything that stores."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace

import pytest
from conftest import IDS

import densitometer as dm
from densitometer.cli.options import OPTIONS
from densitometer.errors import ArgumentTypeError, InputError
from densitometer.measuring.positions import CURVE_ONLY, positions_document
from densitometer.measuring.settings import LATER, MeasureSettings
from densitometer.study.worker import StudySettings

pytestmark = pytest.mark.fast

NAMES = [field.name for field in fields(MeasureSettings)]
OTHER = {  # another value of each than its default
    "importance": ("l2",), "sizes": (0.25, 1.0), "baselines": ("random",), "by": "threshold", "eps": 0.2, "seed": 7,
    "attention": "frozen", "granularity": "neuron", "target": (5, 17),
    "counterfactual": (3, 88, 50, 7, 59, 12, 11),
}  # fmt: skip
COMMANDS = {"measure": (), "tokens": CURVE_ONLY, "study": (), "explore": ("granularity",)}


def defaults_of(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_every_setting_but_the_ablation_has_another_value_here():
    assert {*OTHER, "ablation"} == set(NAMES)
    for name, value in OTHER.items():
        assert getattr(MeasureSettings(), name) != value


def test_the_functions_that_measure_take_every_setting_by_keyword_in_one_order():
    own = {field.name: field.default for field in fields(MeasureSettings)}
    # a text that is yet to be written has no counterfactual
    written = (*CURVE_ONLY, "counterfactual")
    functions = {dm.measure: (), dm.measure_positions: CURVE_ONLY, dm.measure_generation: written}
    for function, without in functions.items():
        parameters = inspect.signature(function).parameters
        taken = [name for name in parameters if name in NAMES]
        assert taken == [name for name in NAMES if name not in without]
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in taken)
        assert all(defaults_of(function)[name] == own[name] for name in taken if name != "importance")
    assert defaults_of(dm.measure)["importance"] == own["importance"]
    studied = defaults_of(dm.run_study)
    assert {name if name != "ablation" else "means" for name in NAMES} <= studied.keys()
    assert all(
        studied[name] == own[name] for name in NAMES if name not in ("importance", "baselines", "ablation")
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_an_option_of_the_commands_that_measure(command):
    from typer.main import get_command

    from densitometer.cli.commands import app

    options = {parameter.name for parameter in get_command(app).commands[command].params}
    wanted = {name for name in NAMES if name not in COMMANDS[command]} - {"ablation"} | {"means", "against"}
    assert wanted <= options
    assert {*OPTIONS} == {*NAMES, "means", "against"} - {"ablation"}


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("measure", dm.measure),
        ("explore", dm.measure),
        ("tokens", dm.measure_positions),
        ("study", dm.run_study),
    ],
)
def test_the_help_shows_the_defaults_of_the_function_that_a_command_calls(command, function):
    from typer.main import get_command

    from densitometer.cli.commands import app

    shown = {p.name: p.show_default for p in get_command(app).commands[command].params if p.name in OPTIONS}
    for name, default in shown.items():
        if name in ("means", "against"):
            continue
        own = defaults_of(function)[name]
        names = ",".join(own) if isinstance(own, tuple) else "" if own is None else str(own)
        assert (default or "") == ("27 sizes" if name == "sizes" else names), name


@pytest.mark.parametrize("name", OTHER)
def test_what_stores_a_setting_gives_it_back(make_model, tmp_path, name):
    model, value = make_model("llama"), OTHER[name]
    settings = replace(MeasureSettings("l1", (0.5, 1.0), baselines=()), **{name: value})
    keywords = {field: getattr(settings, field) for field in NAMES}
    one = dm.measure(model, IDS, importance="l1", sizes=(0.5, 1.0), baselines=())
    other = dm.measure(model, IDS, **keywords)
    assert other.settings == settings
    other.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.settings == settings
    assert dm.difference(one, loaded).asked["name"].to_list() == [name]
    again = dm.replay(loaded, model)
    assert again.settings == settings
    assert dm.difference(loaded, again).same_numbers
    assert MeasureSettings.from_document(json.loads(json.dumps(settings.to_document()))) == settings
    plain = StudySettings(measuring=settings).plain()
    assert plain[name] == (list(value) if isinstance(value, tuple) else value)
    older = {key: value for key, value in settings.to_document().items() if key not in LATER}
    assert MeasureSettings.from_document(older) == replace(settings, **LATER)


@pytest.mark.parametrize("name", [name for name in OTHER if name not in CURVE_ONLY])
def test_positions_are_measured_by_the_settings_and_say_so(make_model, name):
    model, value = make_model("llama"), OTHER[name]
    keywords = {"importance": "l1", "sizes": (0.5, 1.0)} | {name: value}
    table = dm.measure_positions(model, IDS, **keywords)
    place = len(IDS) - 2
    alone = dm.measure(model, IDS, position=place, baselines=(), **keywords)
    row = table.filter(position=place).row(0, named=True)
    (density,) = alone.density.values()
    assert row["n_edges"] == alone.graph["n_edges"]
    assert row["auc_log"] == pytest.approx(density.auc_log, abs=1e-5)
    said = positions_document(model, table, MeasureSettings(**keywords))["provenance"][name]
    assert said == (list(value) if isinstance(value, tuple) else value)


def test_a_study_of_defaults_has_the_settings_that_studies_of_before_stored():
    assert StudySettings().plain() == {
        "importance": ["l1"], "sizes": None, "baselines": [], "window": None, "seed": 0, "attention": "recomputed", "eps": 0.1,
        "by": "size", "traces": "none", "components": True, "states": False, "unigrams": None, "means": None, "dtype": None,
        "options": {}, "plugins": [], "threads": 1,
    }  # fmt: skip


def test_a_study_measures_by_its_settings(tmp_path):
    settings = {"granularity": "neuron", "seed": 7, "attention": "frozen", "sizes": [0.25, 1.0]}
    study = dm.run_study(["The captain looked"], "demo", tmp_path / "s", **settings)
    own = dm.measure(dm.load_model("demo"), "The captain looked", importance="l1", baselines=(), **settings)
    row = study.measurements().row(0, named=True)
    assert row["n_edges"] == own.graph["n_edges"]
    assert row["auc_log"] == own.density["l1"].auc_log


def test_sequences_are_kept_as_tuples_and_in_order():
    settings = MeasureSettings(importance=["l2", "l1", "l2"], sizes=[0.5, 0.1, 0.5], baselines=["random"])
    assert (settings.importance, settings.sizes) == (("l2", "l1"), (0.1, 0.5))
    assert settings.baselines == ("random",)
    assert MeasureSettings(sizes=[0.5, 0.1], by="threshold").sizes == (0.5, 0.1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("importance", "l9", "unknown importance 'l9'"), ("importance", [], "at least one importance"),
        ("sizes", [0.0], "shares of the edges"), ("sizes", "x", "must be a list"), ("baselines", ["none"], "unknown baselines"),
        ("by", "edges", "unknown by 'edges'; expected 'size' or 'threshold'"), ("eps", 1.0, "between 0 and 1"),
        ("seed", -1, "seed must be from 0"), ("attention", "warm", "unknown attention 'warm'"),
        ("ablation", "mean", "lacks the means"), ("granularity", "head", "expected one of component, block, expert, neuron"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_name(name, value, message):
    with pytest.raises((InputError, ArgumentTypeError), match=message):
        MeasureSettings(**{name: value})


def test_a_document_that_lacks_a_setting_or_its_means_is_refused():
    document = MeasureSettings().to_document()
    del document["seed"]
    with pytest.raises(InputError, match="setting seed cannot be read"):
        MeasureSettings.from_document(document)
    with pytest.raises(InputError, match="reference means"):
        MeasureSettings.from_document(MeasureSettings().to_document() | {"ablation": "mean"})
