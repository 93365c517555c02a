"""Real language models: those that `make real-models` laid under .models; skipped where none is.

The oracle here is the untouched module of transformers with hooks: no mask, no attention function of ours.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy
import polars
import pytest
import torch
import transformers
from command import SERVER, command_in
from torch.utils.flop_counter import FlopCounterMode

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.graph.forward_pass import run_forward
from densitometer.graph.graph import graph_of
from densitometer.graph.importance.registry import compute_importance
from densitometer.graph.masked_runs import masked_logits
from densitometer.graph.tiled import tiles
from densitometer.measuring.density import DEFAULT_SIZES

FOLDER = Path(__file__).parent.parent / ".models"
NAMES = ("smollm2", "gemma3", "qwen05")
TEXT = "The old captain looked at the sea and said that the white whale"

pytestmark = pytest.mark.real


def folder_of(name: str) -> Path:
    folder = FOLDER / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"{name} is not there; make real-models fetches it")
    return folder


@pytest.fixture(scope="module", params=NAMES)
def model(request) -> dm.Model:
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    return dm.load_model(folder_of(request.param))


@pytest.fixture(scope="module")
def smollm2() -> dm.Model:
    return dm.load_model(folder_of("smollm2"))


def test_every_identity_holds_and_rows_are_skipped(model):
    report = dm.check_model(model)
    assert report.passed, report.failed
    assert "skipping rows" not in report.unsupported
    assert model.adapter.packs
    assert report.noise < 1e-3


def test_the_full_trace_is_the_model_and_a_removed_edge_is_removed(model):
    graph = dm.build_graph(model, TEXT)
    own = model.adapter.logits(graph.input_ids)
    full, none = dm.reconstruct(model, graph, [graph.trace(size=1.0), graph.trace(n_edges=0)])
    assert float(total_variation(own, full[None])) < 1e-4
    assert float(total_variation(own, none[None])) > 0.1
    for kind in ("attention", "mlp", "residual_attention"):
        rows = graph.edges().filter(polars.col("kind") == kind).sort("importance", descending=True)
        mask = numpy.ones(graph.n_edges, dtype=bool)
        mask[rows["edge"][:5].to_numpy()] = False
        without = dm.reconstruct(model, graph, [graph.trace(mask=mask)])
        assert float(total_variation(own, without)) > 1e-3, kind


def test_the_work_of_a_measurement_does_not_grow(smollm2):
    """Operations as torch counts them, in plain forward passes. A bound is what was counted when it was written, and 2 % more."""
    ids = smollm2.encode(TEXT)
    forward, position = run_forward(smollm2, ids)
    traces = graph_of(forward, ids, position, "l1").traces(DEFAULT_SIZES[:-1])

    def counted(work: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    plain = counted(lambda: smollm2.adapter.logits(ids))
    for name, work, bound in (
        ("recorded run", lambda: run_forward(smollm2, ids), 1.004),
        ("fisher", lambda: compute_importance(forward, "fisher"), 9.03),
        ("runs of 26 sizes", lambda: masked_logits(forward, [trace.flat for trace in traces]), 14.55),
        ("measurement", lambda: dm.measure(smollm2, ids), 44.97),
    ):
        assert counted(work) < 1.02 * bound * plain, name


def test_one_edge_off_is_its_vector_taken_out_of_the_untouched_module_by_a_hook(smollm2):
    """Llama's own eager attention tells the weight; a hook takes one weight times one value out of what a head hands on."""
    module = transformers.AutoModelForCausalLM.from_pretrained(
        folder_of("smollm2"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config, graph = module.config, dm.build_graph(smollm2, TEXT)
    size = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    ids = torch.tensor([graph.input_ids])
    values: dict[int, torch.Tensor] = {}
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda _, args, out, i=i: values.__setitem__(i, out[0]))
        for i, layer in enumerate(module.model.layers)
    ]
    with torch.no_grad():
        output = module(ids, output_attentions=True)
    for handle in handles:
        handle.remove()
    edges = graph.edges().with_row_index("row")
    drawn = edges.filter(polars.col("kind").is_in(["attention", "mlp"]) & (polars.col("layer") < 25))
    strongest = drawn.sort("importance", descending=True).group_by("kind", maintain_order=True).head(200)
    chosen = strongest.sample(6, seed=3)
    assert set(chosen["kind"]) == {"attention", "mlp"}
    for row in chosen.iter_rows(named=True):
        layer = module.model.layers[row["layer"]]
        if row["kind"] == "attention":
            head, at = row["head"], slice(row["head"] * size, (row["head"] + 1) * size)
            weight = output.attentions[row["layer"]][0, head, row["target"], row["source"]]
            own = slice(head // group * size, (head // group + 1) * size)
            vector = weight * values[row["layer"]][row["source"], own]

            def hook(_, args, at=at, target=row["target"], vector=vector):
                changed = args[0].clone()
                changed[0, target, at] -= vector
                return (changed,)

            handle = layer.self_attn.o_proj.register_forward_pre_hook(hook)
        else:

            def hook(_, args, out, target=row["target"]):
                changed = out.clone()
                changed[0, target] = 0.0
                return changed

            handle = layer.mlp.register_forward_hook(hook)
        with torch.no_grad():
            expected = module(ids).logits[0, -1]
        handle.remove()
        mask = numpy.ones(graph.n_edges, dtype=bool)
        mask[row["edge"]] = False
        got = dm.reconstruct(smollm2, graph, [graph.trace(mask=mask)])
        assert float(total_variation(expected, got)) < 1e-4, row
        assert float((expected - output.logits[0, -1]).abs().max()) > 1e-3, row


def test_a_measurement_tells_its_noise_against_float64(smollm2):
    m = dm.measure(smollm2, TEXT, sizes=[0.03, 0.1, 0.2, 0.4, 1.0], baselines=(), keep_graphs=True)
    wide = dm.load_model(folder_of("smollm2"), dtype="float64")
    other = dm.build_graph(wide, TEXT)
    traces = m.noise_runs.filter(polars.col("kind") == "trace")
    true = []
    for name, n_edges in traces.select("importance", "n_edges").iter_rows():
        graph = m.session.graphs[name]
        trace = graph.trace(n_edges=n_edges)
        narrow = dm.reconstruct(smollm2, graph, [trace])
        exact = dm.reconstruct(wide, other, [other.trace(mask=trace.mask)])
        true.append(float(total_variation(narrow[0], exact.float())))
    assert 0.2 * max(true) < m.noise < 20 * max(true)
    assert m.noise > 3 * m.full_trace_tv  # which is no noise of pruned runs
    assert m.density["fisher"].size_at(0.1) < m.density["l1"].size_at(0.1)


def test_positions_are_what_single_measurements_give(smollm2):
    ids = smollm2.encode(TEXT)[:7]
    table = dm.measure_positions(smollm2, ids, importance="l1")
    for position in (2, 5):
        single = dm.measure(smollm2, ids, importance="l1", position=position, baselines=()).density["l1"]
        row = table.filter(polars.col("position") == position).row(0, named=True)
        assert row["auc_linear"] == pytest.approx(single.auc_linear, abs=1e-4)
        assert row["size_at"] == pytest.approx(single.size_at(0.1), rel=1e-6)


def test_a_gguf_file_is_its_converted_folder_bit_for_bit(smollm2, monkeypatch):
    # transformers makes the same table of names for each of 400 modules, half of the time
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    file = FOLDER / "smollm2.gguf"
    direct = dm.load_model(file)
    assert direct.origin.quantization == "Q4_1"
    assert direct.encode(TEXT) == smollm2.encode(TEXT)
    ids = direct.encode("The capital of France is")
    weights = dict(smollm2.module.named_parameters())
    for name, value in direct.module.named_parameters():
        assert torch.equal(value, weights.pop(name)), name
    assert not weights
    # The folder's weights are read in place, 40 bytes past a multiple of 64. On some processors the last
    # bits of a product depend on that (AMD EPYC: up to 5e-6; copied to other memory they are equal).
    torch.testing.assert_close(direct.adapter.logits(ids), smollm2.adapter.logits(ids), atol=5e-5, rtol=0)
    top = direct.adapter.logits(ids).softmax(-1).max(-1)
    assert direct.pieces([int(top.indices)]) == [" Paris"]
    assert float(top.values) == pytest.approx(0.773, abs=1e-3)
    # the numbers of the file, dequantised by the library that defines the format
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    tensor = stored["blk.7.ffn_down.weight"]
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
    assert torch.equal(direct.module.model.layers[7].mlp.down_proj.weight.data, expected)


def test_a_study_that_is_killed_goes_on(tmp_path):
    folder_of("smollm2")
    corpus = tmp_path / "texts.txt"
    corpus.write_text(
        "".join(f"{start} of the ship was seen\n" for start in ("The captain", "A part", "Most"))
    )

    def start(out: Path) -> Any:
        options = ["-m", str(FOLDER / "smollm2"), "-o", str(out), "--part-seconds", "0.001"]
        options += ["--sizes", "0.05,0.3,1", "--importance", "l1"]
        process = SERVER.Process(target=command_in, args=(tmp_path, ["study", str(corpus), *options]))
        process.start()
        return process

    def finish(out: Path) -> None:
        process = start(out)
        process.join(300)
        assert process.exitcode == 0, (tmp_path / "err").read_text()

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    process = start(killed)
    deadline = time.monotonic() + 200
    while not list(killed.glob("parts/*/*.parquet")) and process.is_alive() and time.monotonic() < deadline:
        process.join(0.02)
    process.kill()
    process.join(60)
    assert list(killed.glob("parts/*/*.parquet"))
    done = dm.open_study(killed).measurements().height
    assert 0 < done < 3
    finish(killed)
    tables = [
        dm.open_study(folder).measurements().drop("seconds").sort("text_id", "importance")
        for folder in (whole, killed)
    ]
    assert tables[0].height == 3
    assert tables[0].equals(tables[1])


def test_a_long_input_tile_by_tile_is_the_stored_one(smollm2, monkeypatch):
    ids = smollm2.encode(TEXT)[:11]
    keywords = {
        "importance": ["l1", "fisher"],
        "by": "threshold",
        "baselines": ["inverse"],
        "keep_graphs": True,
    }
    taus = [0.02, 1e-3, 1e-4, 1e-5]
    stored = dm.measure(smollm2, ids, sizes=taus, **keywords)
    monkeypatch.setattr(tiles, "STORED_EDGES", 100)
    monkeypatch.setattr(tiles, "_tile_targets", lambda model, n_tokens: 4)
    tiled = dm.measure(smollm2, ids, sizes=taus, **keywords)
    assert (stored.provenance.edges, tiled.provenance.edges) == ("stored", "tiled")
    assert stored.graph.n_edges == tiled.graph.n_edges
    columns = ["importance", "kind", "n_edges", "tv", "flops_share", "parameter_share"]
    for one, other in zip(
        stored.curve.select(columns).rows(), tiled.curve.select(columns).rows(), strict=True
    ):
        assert one[:2] == other[:2]
        # a few importances lie within rounding of a threshold
        assert other[2] == pytest.approx(one[2], rel=1e-3, abs=2)
        assert other[3:] == pytest.approx(one[3:], abs=5e-3)


def head_patched(module, ids, layer: int, head: int, there: torch.Tensor) -> torch.Tensor:
    """Logits after the last token, while a hook on the untouched module puts a head's output from elsewhere."""
    block = module.model.layers[layer].self_attn
    part = slice(head * block.head_dim, (head + 1) * block.head_dim)

    def patch(_, args):
        z = args[0].clone()
        z[..., part] = there[..., part]
        return (z,)

    handle = block.o_proj.register_forward_pre_hook(patch)
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits


def test_a_head_that_carries_the_other_prompts_is_a_patch_by_hooks(smollm2):
    clean, corrupted = "The capital of France is", "The capital of Italy is"
    module, heads = smollm2.module, {}
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, i=i: heads.update({i: args[0]}))
        for i, layer in enumerate(module.model.layers)
    ]
    with torch.no_grad():
        module(torch.tensor([smollm2.encode(corrupted)]))
    for handle in handles:
        handle.remove()
    graph = dm.build_graph(smollm2, clean, counterfactual=corrupted)
    edges = graph.edges()
    paris, rome = (smollm2.tokenizer(word)["input_ids"][0] for word in (" Paris", " Rome"))
    moved = []
    for layer, head in ((3, 1), (16, 4), (27, 7)):
        chosen = ((edges["layer"] == layer) & (edges["head"] == head).fill_null(False)).to_numpy()
        got = graph.trace(mask=~chosen).logits()
        want = head_patched(module, list(graph.input_ids), layer, head, heads[layer])
        assert float(total_variation(want, got[None])) < 1e-4
        moved.append(float(total_variation(graph.forward.logits, got[None])))
    assert max(moved) > 1e-3
    none = graph.trace(n_edges=0).logits()
    own = smollm2.adapter.logits(smollm2.encode(corrupted))
    assert float(total_variation(own, none[None])) < 1e-4
    assert (
        float(none[rome] - none[paris])
        > 1
        > -1
        > float(graph.forward.logits[rome] - graph.forward.logits[paris])
    )


def test_kept_attention_gives_the_curve_that_the_published_code_gives(smollm2):
    sizes = (0.06, 0.1, 0.2, 0.4, 0.6)
    m = dm.measure(smollm2, TEXT, importance="l1", sizes=sizes, attention="kept", baselines=())
    assert m.curve.filter(kind="trace")["tv"].to_list() == pytest.approx(
        [0.0869, 0.0681, 0.0197, 0.0096, 0.0021], abs=6e-5
    )
