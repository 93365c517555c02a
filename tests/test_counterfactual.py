"""Counterfactuals: an edge that is off carries what it carries in another prompt, as a patch by hooks would put it there."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from command import call
from conftest import IDS

import densitometer as dm
from densitometer._util.metrics import total_variation
from densitometer.errors import InputError, StorageError
from densitometer.graph.importance.gradients import _run_to_nodes

pytestmark = pytest.mark.fast

OTHER = [3, 88, 50, 7, 59, 12, 11]
TEXT, CORRUPTED = "The captain looked at the sea", "The captain looked at the ship"
SIZES = (0.1, 0.3, 0.6, 1.0)


def graph_of(model, **keywords):
    return dm.build_graph(model, IDS, counterfactual=OTHER, **keywords)


def off(graph, **where):
    """The trace of all edges but those of one place."""
    rows = graph.edges()
    for column, value in where.items():
        rows = rows.filter(**{column: value})
    mask = numpy.ones(graph.n_edges, dtype=bool)
    mask[rows["edge"].to_numpy()] = False
    return graph.trace(mask=mask)


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2", "cohere", "olmo2", "qwen3"])
def test_without_edges_it_is_the_other_prompt_and_with_all_this_one(make_model, name):
    model = make_model(name)
    graph = graph_of(model)
    none, whole = dm.reconstruct(model, graph, [graph.trace(n_edges=0), graph.trace(size=1.0)])
    assert float(total_variation(model.adapter.logits(OTHER), none[None])) < 1e-5
    assert float(total_variation(model.adapter.logits(IDS), whole[None])) < 1e-5


def kept_of(model, ids, heads: dict, mlps: dict):
    """Heads' outputs before the output projection, and MLPs' outputs, by hooks on the module itself."""
    handles = []
    for i, layer in enumerate(model.module.model.layers):
        handles.append(
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, i=i: heads.update({i: args[0].detach().clone()})
            )
        )
        handles.append(
            layer.mlp.register_forward_hook(lambda _, args, out, i=i: mlps.update({i: out.detach().clone()}))
        )
    with torch.no_grad():
        logits = model.module(torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits


@torch.no_grad()
def patched(model, ids, layer: int, token: int, head: int | None, there: torch.Tensor):
    """Logits of the untouched module while one hook puts a head's output, or an MLP's, from elsewhere."""
    block = model.module.model.layers[layer]
    size = block.self_attn.o_proj.in_features // model.module.config.num_attention_heads

    def patch_head(_, args):
        z = args[0].clone()
        z[0, token, head * size : (head + 1) * size] = there[0, token, head * size : (head + 1) * size]
        return (z,)

    def patch_mlp(_, args, output):
        output = output.clone()
        output[0, token] = there[0, token]
        return output

    if head is None:
        handle = block.mlp.register_forward_hook(patch_mlp)
    else:
        handle = block.self_attn.o_proj.register_forward_pre_hook(patch_head)
    logits = model.module(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits


@pytest.mark.parametrize("place", [(0, 4, 1), (1, 6, 2), (0, 3, None), (2, 6, None)])
def test_a_head_or_an_mlp_that_is_off_is_a_patch_by_hooks(make_model, place):
    layer, token, head = place
    model = make_model("llama")
    heads, mlps = {}, {}
    kept_of(model, OTHER, heads, mlps)
    graph = graph_of(model)
    kind = {"kind": "mlp"} if head is None else {"kind": "attention", "head": head}
    trace = off(graph, layer=layer, target=token, **kind)
    assert trace.n_edges == graph.n_edges - (1 if head is None else token + 1)
    want = patched(model, IDS, layer, token, head, (mlps if head is None else heads)[layer])
    torch.testing.assert_close(trace.logits(), want, atol=2e-4, rtol=1e-4)
    # and it is not what nothing there would give
    assert float((dm.build_graph(model, IDS).trace(mask=trace.mask).logits() - want).abs().max()) > 1e-2


@torch.no_grad()
def test_one_attention_edge_that_is_off_is_that_edges_patch(make_model):
    model = make_model("llama")
    layer, head, source, target = 1, 2, 3, 5
    config = model.module.config
    size = config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    carried = []
    for ids in (IDS, OTHER):
        values = {}
        block = model.module.model.layers[layer].self_attn
        handle = block.v_proj.register_forward_hook(lambda _, args, out, v=values: v.update(v=out[0]))
        before = config._attn_implementation
        model.module.set_attn_implementation("eager")
        weights = model.module(torch.tensor([ids]), output_attentions=True).attentions[layer][0]
        model.module.set_attn_implementation(before)
        handle.remove()
        v = values["v"][source].view(-1, size)[head // group]
        carried.append(weights[head, target, source] * v)

    def patch(_, args):
        z = args[0].clone()
        z[0, target, head * size : (head + 1) * size] += carried[1] - carried[0]
        return (z,)

    handle = model.module.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(patch)
    want = model.module(torch.tensor([IDS])).logits[0, -1]
    handle.remove()
    trace = off(graph_of(model), kind="attention", layer=layer, head=head, source=source, target=target)
    torch.testing.assert_close(trace.logits(), want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "neox"])
@pytest.mark.parametrize("target", [(5, 17), None])
def test_gradient_importances_take_the_difference_of_the_two_prompts(make_model, name, target):
    """By hand: the gradient of the target node, times what the edge carries here less what it carries there."""
    model = make_model(name)
    graph = graph_of(model, importance="fisher", target=target)
    forward = graph.forward
    masks = torch.ones(1, forward.space.size, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    with model.adapter.differentiable():
        logits, nodes = _run_to_nodes(forward, masks)
        if target is None:
            eps = torch.randn(8, logits.shape[-1], generator=generator)
            root = logits[0].detach().softmax(-1).sqrt()
            directions = root * eps - root.square() * (eps @ root)[:, None]
        else:
            directions = torch.zeros(1, logits.shape[-1])
            directions[0, target[0]], directions[0, target[1]] = 1.0, -1.0
        gradients = [torch.autograd.grad(logits[0] @ d, nodes, retain_graph=True) for d in directions]
    want = numpy.zeros(forward.space.size)
    with torch.no_grad(), model.running():
        for i, (view, here, there) in enumerate(
            zip(forward.space.views(want), forward.levels(), forward.counterfactual.levels(), strict=True)
        ):
            g = torch.stack([some[i][0] for some in gradients])  # (K, T, D)

            def slope(vectors, g):  # (..., T, D) against (K, T, D)
                return (vectors * g).sum(-1).square().mean(0).sqrt().numpy()

            view.residual[:] = slope(here.residual - there.residual, g)
            if here.mlp is not None:
                view.mlp[0] = slope(here.mlp - there.mlp, g)
            for h in range(0 if here.weights is None else len(here.weights)):
                change = here.attention_vectors(h) - there.attention_vectors(h)  # (T, S, D)
                view.attention[h] = slope(change[None], g[:, :, None])
    index = graph.index
    assert graph.importance[index] == pytest.approx(want[index], rel=2e-3, abs=2e-5)
    bound = graph_of(model, importance="bound", target=target).importance
    if target is not None:
        assert (bound[index] >= want[index] * (1 - 1e-3) - 1e-5).all()


def test_every_importance_and_baseline_runs_in_the_same_masked_runs(make_model):
    model = make_model("llama")
    names = ("l1", "fisher", "best", "proximity")
    baselines = ("inverse", "random", "residual", "window")
    m = dm.measure(model, IDS, importance=names, sizes=SIZES, baselines=baselines, counterfactual=OTHER)
    apart = float(total_variation(model.adapter.logits(IDS), model.adapter.logits(OTHER)[None]))
    for name in names:
        graph = graph_of(model, importance=name)
        rows = m.curve.filter(importance=name, kind="trace").sort("size")
        logits = dm.reconstruct(model, graph, [graph.trace(size=s) for s in SIZES])
        tv = total_variation(model.adapter.logits(IDS), logits).tolist()
        assert rows["tv"].to_list() == pytest.approx(tv, abs=1e-5)
        inverse = m.curve.filter(importance=name, kind="inverse", size=1.0)["tv"][0]
        assert inverse == pytest.approx(apart, abs=1e-5)
    plain = dm.build_graph(model, IDS, importance="l1").importance
    assert (graph_of(model, importance="l1").importance == plain).all()


def test_target_and_counterfactual_go_together(demo):
    target = (" sea", " man")
    m = dm.measure(demo, TEXT, importance="fisher", sizes=SIZES, target=target, counterfactual=CORRUPTED)
    score = dm.build_graph(demo, TEXT, target=target).forward.target
    assert m.target.nothing == pytest.approx(
        float(score.value(demo.adapter.logits(demo.encode(CORRUPTED)))), abs=1e-4
    )
    assert "off edges as in 'The captain looked at the ship'" in m.summary()
    assert abs(m.target.nothing) > 0.1
    rows = m.curve.filter(kind="trace")
    kept = (rows["target"] - m.target.nothing) / (m.target.full - m.target.nothing)
    assert rows["faithfulness"].to_list() == pytest.approx(kept.to_list(), rel=1e-6)
    trace = m.minimal_trace(faithfulness=0.1)
    assert trace.graph.forward.counterfactual.ids == tuple(demo.encode(CORRUPTED))
    effects = m.components("fisher", size=1.0)["effect"]
    assert effects.max() > 0


def test_a_counterfactual_is_saved_loaded_replayed_and_compared(demo, tmp_path):
    m = dm.measure(demo, TEXT, importance="fisher", sizes=SIZES, counterfactual=CORRUPTED)
    m.save(tmp_path / "m.json")
    loaded = dm.load_measurement(tmp_path / "m.json")
    assert loaded.counterfactual.tokens[-1] == " ship"
    assert loaded.settings.counterfactual == tuple(demo.encode(CORRUPTED))
    found = dm.difference(loaded, dm.replay(loaded, demo))
    assert found.asked.is_empty()
    assert found.same_numbers
    plain = dm.measure(demo, TEXT, importance="fisher", sizes=SIZES)
    assert dm.difference(plain, loaded).asked["name"].to_list() == ["counterfactual"]
    document = json.loads((tmp_path / "m.json").read_text())
    document["counterfactual"]["ids"][0] += 1
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(StorageError, match=r"counterfactual\.ids are not provenance\.counterfactual"):
        dm.load_measurement(tmp_path / "m.json")


def test_a_position_within_the_text_takes_the_counterfactual_up_to_there(make_model):
    model = make_model("llama")
    keywords = {"importance": "l1", "sizes": SIZES, "baselines": ()}
    whole, cut = (
        dm.measure(model, IDS, position=4, counterfactual=o, **keywords) for o in (OTHER, OTHER[:5])
    )
    assert whole.counterfactual.ids == cut.counterfactual.ids == tuple(OTHER[:5])
    assert dm.difference(whole, cut).same_numbers
    table = dm.measure_positions(model, IDS, importance="l1", sizes=SIZES, counterfactual=OTHER)
    assert table.filter(position=4)["auc_log"][0] == pytest.approx(whole.density["l1"].auc_log, abs=1e-5)
    # gradients at a position need the counterfactual up to there
    table = dm.measure_positions(model, IDS, importance="fisher", sizes=SIZES, counterfactual=OTHER)
    one = dm.measure(model, IDS, position=4, counterfactual=OTHER, **keywords | {"importance": "fisher"})
    assert table.filter(position=4)["auc_log"][0] == pytest.approx(one.density["fisher"].auc_log, abs=1e-3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("The captain looked at", r"has 4 tokens and the text 6, but .*'The\| captain\| looked\| at\| the\| sea' and 'The\| "),
        (TEXT, "is the text itself, up to the position: 'The"), ([1, 2, 3, 4, 5, 5000], "outside the vocabulary"),
    ],
)  # fmt: skip
def test_a_counterfactual_that_does_not_pair_is_refused(demo, other, message):
    with pytest.raises(InputError, match=message) as error:
        dm.measure(demo, TEXT, importance="l1", counterfactual=other)
    assert "\n" not in str(error.value)


def test_a_long_pair_is_shown_from_where_it_differs(demo):
    words = " ".join(["one"] * 30)
    with pytest.raises(InputError, match=r"\.\.\.\|.*sea.* and .*\.\.\.\|.*ship"):
        dm.measure(demo, f"{words} the sea", importance="l1", counterfactual=f"{words} the ship was")


def test_what_another_tokenizer_returned_is_refused(demo):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", *CORRUPTED.split()])}, "?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    theirs = PreTrainedTokenizerFast(tokenizer_object=words)(CORRUPTED)
    with pytest.raises(InputError, match=r"from another tokenizer than that of demo: its token 0 is 'The'"):
        dm.measure(demo, TEXT, importance="l1", counterfactual=theirs)
    ours = demo.tokenizer(CORRUPTED)
    assert (
        dm.measure(demo, TEXT, importance="l1", sizes=[1.0], counterfactual=ours).counterfactual is not None
    )


def test_settings_that_make_no_sense_together_are_refused(demo):
    means = dm.reference_means(demo, [TEXT, CORRUPTED])
    for keywords, message in (
        ({"ablation": means, "counterfactual": OTHER}, "give ablation or counterfactual, not both"),
        ({"granularity": "neuron", "counterfactual": OTHER}, "needs granularity='block'; got 'neuron'"),
        ({"attention": "kept", "counterfactual": OTHER}, "as by a counterfactual; leave one of the two out"),
        ({"attention": "kept", "ablation": means}, "as by reference means; leave one of the two out"),
        ({"attention": "kept", "baselines": ["window"]}, "'window', which turns some off, makes no sense"),
    ):
        with pytest.raises(InputError, match=message):
            dm.MeasureSettings(**keywords)
    graph = dm.build_graph(demo, TEXT, counterfactual=CORRUPTED)
    with pytest.raises(InputError, match="the graph has a counterfactual"):
        dm.reconstruct(demo, graph, [graph.trace(size=0.5)], ablation=means)


def test_transfer_shows_both_inputs_where_they_must_align(demo):
    with pytest.raises(InputError, match=r"6 and 4 tokens .* 'The\| captain\| looked\| at\| the\| sea' and"):
        dm.transfer(demo, TEXT, on="The captain looked at", align="same")


def test_the_command_line_and_a_study_take_a_counterfactual(tmp_path):
    ended = call("measure", TEXT, "--counterfactual", CORRUPTED, "--sizes", "0.3,1", "--importance", "l1")
    assert ended.returncode == 0, ended.stderr
    assert "off edges as in 'The captain looked at the ship'" in " ".join(ended.stdout.split())
    short = call("measure", TEXT, "--counterfactual", "The captain", "--importance", "l1")
    assert short.returncode == 2
    assert "has 2 tokens and the text 6" in " ".join(short.stderr.split())
    written = call("tokens", TEXT, "--generate", "2", "--counterfactual", CORRUPTED)
    assert written.returncode == 2
    assert "--generate writes new ones" in written.stderr
    page = call("tokens", TEXT, "--html", tmp_path / "p.html", "--counterfactual", CORRUPTED)
    assert page.returncode == 2
    assert "before the first one that differs" in page.stderr
    texts = [TEXT, "The captain"]
    study = dm.run_study(texts, "demo", tmp_path / "s", sizes=[0.3, 1.0], counterfactual=CORRUPTED)
    errors = study.measurements()["error"].to_list()
    assert errors[0] is None
    assert "the counterfactual has 6 tokens and the text 2" in errors[1]
