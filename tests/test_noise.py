"""What rounding does to pruned runs: the estimate of a measurement against the same runs in float64."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import polars
import pytest
import torch
import transformers
from conftest import CONFIGS, IDS, make_module

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.measuring.density import Density

pytestmark = pytest.mark.usefixtures("rows_skipped")

TEXT = "The old captain looked at the sea and said that the white whale"


def true_noise(measurement: dm.Measurement, module) -> polars.DataFrame:
    """The noise runs with what they really are: TV between each run and the same edges in float64."""
    ids, kept = measurement.input["ids"], measurement.session.graphs
    wide = dm.load_model(module.double())
    found = []
    for name, kind, size, n_edges, _ in measurement.noise_runs.iter_rows():
        graph = next(iter(kept.values())) if kind == "random" else kept[name]
        trace = graph.random_trace(size, seed=0) if kind == "random" else graph.trace(n_edges=n_edges)
        assert trace.n_edges == n_edges
        other = dm.build_graph(wide, ids)
        same = other.trace(mask=trace.mask)
        narrow_run = dm.reconstruct(graph.model, graph, [trace])
        wide_run = dm.reconstruct(wide, other, [same])
        found.append(float(total_variation(narrow_run[0], wide_run.float())))
    return measurement.noise_runs.with_columns(true=polars.Series(found))


def amplifying():
    """A deep model that amplifies rounding: attention so sharp that a little decides what is read."""
    config = CONFIGS["llama"]()
    config.num_hidden_layers = 12
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight.mul_(300.0)
    return module


@pytest.mark.parametrize("make", [lambda: make_module("llama"), amplifying])
def test_noise_is_about_the_distance_from_float64(make):
    m = dm.measure(dm.load_model(make()), IDS, keep_graphs=True)
    table = true_noise(m, make())
    traces = table.filter(polars.col("kind") == "trace")
    assert m.noise == pytest.approx(max(traces["noise"].max(), m.full_trace_tv, 2.0**-24))
    largest = traces["true"].max()
    assert 0.2 * largest <= m.noise <= 20 * max(largest, 1e-7)


def test_noise_rises_with_the_conditioning_and_is_near_0_in_float64():
    plain, sharp = (dm.measure(dm.load_model(make), IDS) for make in (make_module("llama"), amplifying()))
    assert sharp.noise > 10 * plain.noise
    assert dm.measure(dm.load_model(amplifying().double()), IDS).noise < 1e-9
    assert dm.measure(dm.load_model(make_module("llama").bfloat16()), IDS).noise > 100 * plain.noise


def test_noise_is_stored_and_told(demo, tmp_path):
    m = dm.measure(demo, TEXT, sizes=[0.05, 0.3, 1.0])
    assert set(m.noise_runs["kind"]) == {"trace", "random"}
    m.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.noise == m.noise
    assert loaded.noise_runs.equals(m.noise_runs)
    assert loaded.density == m.density
    report = dm.check_model(demo)
    assert 0 < report.noise < 1e-3


def test_noise_is_the_same_for_the_same_seed(demo):
    one, same, other = (dm.measure(demo, TEXT, sizes=[0.3, 1.0], seed=seed).noise_runs for seed in (4, 4, 5))
    assert one.equals(same)
    assert not one.equals(other)


def test_a_bracket_is_as_wide_as_noise_makes_it():
    sizes, tv = (0.1, 0.2, 0.3, 0.4, 1.0), (0.5, 0.104, 0.1, 0.07, 0.0)
    assert Density(sizes, tv).bracket(0.1) == (0.2, 0.3)
    noisy = Density(sizes, tv, noise=0.01)
    assert noisy.size_at(0.1) == 0.3
    assert noisy.bracket(0.1) == (0.1, 0.4)
    assert Density(sizes, tv, noise=0.001).bracket(0.1) == (0.2, 0.4)
    assert Density(sizes, tv, noise=0.2).bracket(0.1) == (
        0.1,
        1.0,
    )  # below the noise, only the full trace is sure
    assert Density(sizes, tv, noise=0.2).bracket(0.01) == (0.1, 1.0)


def test_no_goal_below_the_noise(demo):
    m = dm.measure(demo, TEXT, importance="l1", sizes=[0.3, 1.0])
    with pytest.raises(ValueError, match="below what rounding alone makes"):
        m.minimal_trace(tv=m.density["l1"].noise / 2)


# ----------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_measurements_in_a_list_are_data(make_model):
    """Each may add 250 kB; with its graphs it would hold some 4 MB: 61,803 edges."""
    model = make_model("llama")
    ids = [(7 * i) % 101 for i in range(100)]
    kept = [dm.measure(model, ids, importance="l1", sizes=[1.0], baselines=())]
    before = resident_bytes()
    for i in range(1, 61):
        kept.append(dm.measure(model, ids, importance="l1", sizes=[1.0], baselines=()))
        if i % 20 == 0:
            assert resident_bytes() - before < 15e6, f"after {i} measurements"
    assert kept[0].graph["n_edges"] > 60_000


def test_a_default_measurement_is_small(demo):
    m = dm.measure(demo, TEXT)
    assert len(pickle.dumps(m)) < 100_000
    loaded = copy.deepcopy(m)
    assert loaded.summary() == m.summary()
    with pytest.raises(ValueError, match=r"holds no model.*with_model"):
        loaded.minimal_trace()


def test_graphs_are_made_again_on_demand_as_long_as_the_model_is_there():
    model = dm.load_model(make_module("llama"))
    data = dm.measure(model, IDS, importance=["l1", "fisher"], eps=0.3)
    kept = dm.measure(model, IDS, importance=["l1", "fisher"], eps=0.3, keep_graphs=True)
    assert data.session is None
    for name in ("l1", "fisher"):
        one, other = (m.minimal_trace(tv=0.3, importance=name) for m in (data, kept))
        assert (one.mask == other.mask).all()
    again = data.with_graphs()
    assert (again.session.graphs["fisher"].importance == kept.session.graphs["fisher"].importance).all()
    del model, again, one, other, kept
    import gc

    gc.collect()
    with pytest.raises(ValueError, match="its model is gone"):
        data.minimal_trace(tv=0.3)
