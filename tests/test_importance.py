"""Every score against its definition, one edge's vector at a time; Fisher scores against the exact sum."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import CONFIGS, IDS, make_module
from snippets import registries_kept

import densitometer as dm
from densitometer.graph import forward_pass as forward_module
from densitometer.graph.importance import registry
from densitometer.graph.importance.gradients import fisher_information, random_projections
from densitometer.measuring.floor import additive_density, additive_floor

pytestmark = pytest.mark.fast

VOCABULARY = 101


def vectors(graph):
    """(edge index on the flat axis, edge's vector, target node) of every edge that can reach the output."""
    columns = graph.space.columns(graph.index)
    levels = list(graph.forward.levels())
    for i, flat in enumerate(graph.index):
        edges, t = levels[columns["level"][i]], columns["target"][i]
        kind, h, s = columns["kind"][i], columns["head"][i], columns["source"][i]
        if kind == "attention":
            vector = edges.attention_vectors(h)[t, s]
        else:
            vector = edges.units.at(columns["unit"][i])[t] if kind == "mlp" else edges.residual[t]
        yield flat, (columns["level"][i], t), vector.detach(), edges.node[t]


DEFINITIONS = {
    "l1": lambda e, n: e.abs().sum(),
    "l2": lambda e, n: e.norm(),
    "cosine": lambda e, n: torch.nn.functional.cosine_similarity(e, n, dim=0).abs(),
    "projection": lambda e, n: (e @ n).abs(),
    "proximity": lambda e, n: (n.abs().sum() - (n - e).abs().sum()).clamp_min(0),
}


@pytest.mark.parametrize("importance", sorted(DEFINITIONS))
@pytest.mark.parametrize(
    ("name", "granularity"),
    [("llama", "block"), ("neox", "block"), ("gemma2", "block"), ("gemma2", "neuron"), ("mixtral", "expert")],
)
def test_node_wise_scores_equal_their_definition(make_model, name, granularity, importance):
    graph = dm.build_graph(make_model(name), IDS, importance=importance, granularity=granularity)
    raw, totals = {}, {}
    for flat, node, e, n in vectors(graph):
        raw[flat] = (node, float(DEFINITIONS[importance](e, n)))
        totals[node] = totals.get(node, 0.0) + raw[flat][1]
    want = numpy.array([value / totals[node] for node, value in raw.values()])
    numpy.testing.assert_allclose(graph.importance[graph.index], want, atol=2e-5)


@pytest.mark.parametrize("importance", sorted(DEFINITIONS))
@pytest.mark.parametrize(
    ("name", "granularity"), [("llama", "block"), ("mistral-window", "block"), ("mixtral", "expert")]
)
def test_edges_of_a_node_where_all_are_zero_have_equal_shares(name, granularity, importance):
    model = dm.load_model(make_module(name))
    with torch.no_grad():
        model.module.get_input_embeddings().weight[IDS[0]] = 0.0  # so is all that the first token's nodes are
    graph = dm.build_graph(model, IDS[:4], importance=importance, granularity=granularity)
    counts = {}
    columns = graph.space.columns(graph.index)
    nodes = list(zip(columns["level"].tolist(), columns["target"].tolist(), strict=True))
    for node in nodes:
        counts[node] = counts.get(node, 0) + 1
    got = graph.importance[graph.index]
    first = numpy.array([target == 0 for _, target in nodes])
    want = numpy.array([1 / counts[node] for node in nodes])
    assert first.sum() >= 5
    numpy.testing.assert_allclose(got[first], want[first], rtol=1e-6)
    totals = {}
    for node, value in zip(nodes, got, strict=True):
        totals[node] = totals.get(node, 0.0) + value
    numpy.testing.assert_allclose(list(totals.values()), 1.0, atol=1e-5)


@pytest.mark.parametrize("granularity", ["block", "neuron"])
def test_proximity_does_not_depend_on_its_chunks(make_model, monkeypatch, granularity):
    model = make_model("llama")

    def scores():
        return dm.build_graph(model, IDS, importance="proximity", granularity=granularity).importance

    whole = scores()
    monkeypatch.setattr(forward_module, "CHUNK_NUMBERS", 1)
    numpy.testing.assert_allclose(scores(), whole, atol=2e-6)


def exact_information(graph):
    """sum_y p_y (d log p_y / d m_e)^2, one token of the vocabulary after the other, each edge's slope being the dot
    product of the target node's gradient with the edge's vector."""
    forward = graph.forward
    recorded = [{} for _ in forward.records]
    total = numpy.zeros(forward.space.size)
    masks = torch.ones(1, forward.space.size, requires_grad=True)
    with torch.enable_grad(), forward.model.adapter.differentiable():
        logits = forward.model.adapter.masked_logits(forward.ids, forward.block_masks(masks), recorded)
        nodes = [r[k] for r in recorded for k in ("attention_sum", "mlp_sum") if r[k] is not None]
        log_p = logits[0].log_softmax(-1)
        for y in range(VOCABULARY):
            slopes = torch.autograd.grad(log_p[y], nodes, retain_graph=True)
            p = float(log_p[y].detach().exp())
            for flat, (level, t), e, _ in vectors(graph):
                total[flat] += p * float(slopes[level][0, t] @ e) ** 2
    return total


@pytest.mark.parametrize(
    ("name", "granularity"),
    [("llama", "block"), ("neox", "block"), ("llama", "neuron"), ("olmo2", "neuron"), ("mixtral", "expert")],
)
def test_fisher_information_equals_the_sum_over_the_vocabulary(make_model, name, granularity):
    """With eps the unit vectors, K times the mean over projections is the exact sum."""
    graph = dm.build_graph(make_model(name), IDS[:4], importance="fisher", granularity=granularity)
    unit = torch.eye(VOCABULARY) * VOCABULARY**0.5
    got = fisher_information(graph.forward, unit)[graph.index]
    want = exact_information(graph)[graph.index]
    numpy.testing.assert_allclose(got.numpy(), want, rtol=2e-3, atol=1e-6 * want.max())


def test_random_projections_converge_to_the_exact_information(make_model):
    graph = dm.build_graph(make_model("llama"), IDS)
    exact = fisher_information(graph.forward, torch.eye(VOCABULARY) * VOCABULARY**0.5)
    gaps = []
    for count in (8, 512):
        draws = random_projections(graph.forward.logits, count, seed=1)
        gaps.append(float((fisher_information(graph.forward, draws) - exact).norm() / exact.norm()))
    assert gaps[1] < 0.12 < gaps[0] * 2


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_bound_is_never_below_fisher_of_the_same_projections(make_model, name, monkeypatch):
    from densitometer.graph.importance import gradients as fisher

    model = make_model(name)
    monkeypatch.setattr(fisher, "PROJECTIONS", 4)
    small = dm.build_graph(model, IDS, importance="fisher", seed=2)
    large = dm.build_graph(model, IDS, importance="bound", seed=2)
    index = small.index
    assert (large.importance[index] >= small.importance[index] * (1 - 1e-3) - 1e-6).all()


@pytest.mark.parametrize("importance", ["fisher", "bound"])
def test_gradient_scores_leave_the_model_as_it_was(make_model, importance):
    model = make_model("gemma2")
    for i, parameter in enumerate(model.module.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = [p.requires_grad for p in model.module.parameters()]
    own = model.adapter.logits(IDS)
    dm.build_graph(model, IDS, importance=importance)
    assert [p.requires_grad for p in model.module.parameters()] == before
    assert all(p.grad is None for p in model.module.parameters())
    assert torch.equal(model.adapter.logits(IDS), own)
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)


@pytest.mark.parametrize("importance", ["fisher", "bound"])
def test_gradient_scores_of_a_bfloat16_model_are_float32(importance):
    from conftest import make_module

    exact = dm.build_graph(dm.load_model(make_module("qwen3")), IDS, importance=importance)
    half = dm.build_graph(dm.load_model(make_module("qwen3").bfloat16()), IDS, importance=importance)
    assert half.importance.dtype == numpy.float32
    agreement = numpy.corrcoef(exact.importance[exact.index], half.importance[half.index])[0, 1]
    assert agreement > 0.97


def test_the_scale_of_norms_is_held_in_the_backward_pass(make_model):
    """Scaling the stream leaves an RMSNorm's output as it is; with the scale held its slope along x is not zero."""
    from densitometer.models.linear import scale_held

    norm = make_model("llama").module.model.norm
    x = torch.linspace(-1, 2, 36)[None, None].requires_grad_()
    y = norm(x)
    with scale_held(norm):
        held = norm(x)
    torch.testing.assert_close(held, y)
    whole = torch.autograd.grad(y.sum(), x)[0]
    part = torch.autograd.grad(held.sum(), x)[0]
    assert abs(float((whole * x).sum().detach())) < 1e-4
    assert float((part * x).sum().detach()) == pytest.approx(float(y.sum().detach()), rel=1e-4)


@pytest.mark.parametrize("kind", [torch.nn.RMSNorm, torch.nn.LayerNorm])
def test_a_held_norm_is_found_once_and_its_scale_at_every_input(kind):
    """The slopes are those of a norm that is found anew, at inputs whose means and sizes differ."""
    from densitometer.models.linear import scale_held

    generator = torch.Generator().manual_seed(11)
    norm = kind(36, eps=1e-5)
    norm.weight.data = torch.randn(36, generator=generator)
    # whole numbers, whose mean is exactly 0: here both kinds are alike
    flat = torch.cat([torch.arange(-18, 0), torch.arange(1, 19)]).float()[None, None]
    others = [
        scale * torch.randn(1, n, 36, generator=generator) + mean
        for n, scale, mean in ((5, 1.0, 3.0), (4, 1e-3, 0.0), (7, 40.0, -9.0))
    ]

    def slopes(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad((norm(x) * x.detach().cos()).sum(), x)[0]

    apart = []
    for x in (flat, *others):
        with scale_held(norm):
            apart.append(slopes(x))
    calls, forward = [], norm.forward
    norm.forward = lambda x: calls.append(1) or forward(x)
    with scale_held(norm):
        together, counts = [], []
        for x in (flat, *others):
            before = len(calls)
            together.append(slopes(x))
            counts.append(len(calls) - before)
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max()))
    assert counts[0] == 3  # its own output, a probe and the negated probe
    # a LayerNorm of which only an input without a mean was seen is found again, once
    assert counts[1:] == ([1, 1, 1] if kind is torch.nn.RMSNorm else [3, 1, 1])


def test_gradients_flow_until_the_outermost_context_ends(make_model):
    model = make_model("llama")
    norm, weight = model.module.model.norm, next(model.module.parameters())
    plain = norm.forward
    weight.requires_grad_(True)
    with model.adapter.differentiable():
        held = norm.forward
        with model.adapter.differentiable():
            assert norm.forward is held
        assert norm.forward is held
        assert not weight.requires_grad
    assert norm.forward == plain != held
    assert weight.requires_grad
    with model.adapter.differentiable():
        assert norm.forward != plain


def test_which_scores_there_are_and_which_are_local():
    from densitometer.graph.importance.registry import is_local

    names = ["best", "bound", "cosine", "fisher", "l1", "l2", "learned", "projection", "proximity", "random"]
    assert [name for name in dm.list_importances() if not name.startswith("test-")] == names
    assert [name for name in names if is_local(name)] == ["cosine", "l1", "l2", "projection", "proximity"]


@pytest.fixture
def register():
    with registries_kept():
        yield dm.register_importance


def parts(forward, value=1.0):
    return [list(part) for part in forward.space.views(torch.full((forward.space.size,), value))]


def test_a_registered_score_is_local_only_where_it_says_so(register):
    from densitometer.graph.importance.registry import is_local

    register("mine", lambda forward, seed: parts(forward))
    register("mine-local", lambda forward, seed: parts(forward), local=True)
    assert (is_local("mine"), is_local("mine-local")) == (False, True)
    assert "mine-local" in dm.list_importances()
    with pytest.raises(ValueError, match=r"'mine' exists already: .*'mine-local'"):
        register("mine", lambda forward, seed: parts(forward))


def test_a_score_is_asked_once_with_the_seed_and_kept_by_place(make_model, register):
    seen = []

    def score(forward, seed):
        seen.append(seed)
        return forward.space.views(torch.arange(forward.space.size, dtype=torch.float64))

    register("counted", score)
    graph = dm.build_graph(make_model("neox"), IDS, importance="counted", seed=7)
    assert seen == [7]
    assert graph.importance.dtype == numpy.float32
    assert graph.importance.tolist() == list(range(graph.space.size))
    registry.compute_importance(graph.forward, "counted")
    assert seen == [7, 0]
    with pytest.raises(ValueError, match=r"unknown importance 'count'; expected one of best, bound, "):
        dm.build_graph(make_model("neox"), IDS, importance="count")


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (0, lambda part: part[:-1], r"shape \(6,\) for the residual edges of layer 1, expected \(7,\)"),
        (
            1,
            lambda part: part[:, 1:],
            r"shape \(6, 6, 7\) for the attention edges of layer 1, expected \(6, 7, 7\)",
        ),
        (1, lambda part: None, r"shape None for the attention edges of layer 1"),
        (2, lambda part: torch.ones(1, 7), r"shape \(1, 7\) for the mlp edges of layer 1, expected None"),
    ],
)
def test_a_score_of_a_wrong_shape_is_refused_with_its_place(make_model, register, kind, wrong, message):
    def score(forward, seed):
        found = parts(forward)
        found[2][kind] = wrong(found[2][kind])  # attention of the second layer
        return found

    register("wrong", score)
    with pytest.raises(dm.DensitometerError, match=f"'wrong' returned {message}"):
        dm.build_graph(make_model("llama"), IDS, importance="wrong")


def test_the_axis_of_an_only_unit_may_be_left_out_and_no_other(make_model, register):
    def score(forward, seed):
        return [[r, a, None if m is None else m[0]] for r, a, m in parts(forward)]

    register("flat", score)
    assert (dm.build_graph(make_model("llama"), IDS, importance="flat").importance == 1).all()
    with pytest.raises(
        dm.DensitometerError, match=r"shape \(7,\) for the mlp edges of layer 0, expected \(5, 7\)"
    ):
        dm.build_graph(make_model("mixtral"), IDS, importance="flat", granularity="expert")

    def short(forward, seed):
        return [[r, a, None if m is None else m[0, 1:]] for r, a, m in parts(forward)]

    register("short", short)
    with pytest.raises(dm.DensitometerError, match=r"shape \(6,\) for the mlp edges"):
        dm.build_graph(make_model("llama"), IDS, importance="short")

    def flat_residual(forward, seed):
        return [[r[None], a, m] for r, a, m in parts(forward)]

    register("flat-residual", flat_residual)
    with pytest.raises(dm.DensitometerError, match=r"shape \(1, 7\) for the residual edges"):
        dm.build_graph(make_model("llama"), IDS, importance="flat-residual")


@pytest.mark.parametrize(
    ("value", "message"), [("nan", "NaN or inf"), ("inf", "NaN or inf"), ("-1e-9", r"least -1e-09")]
)
def test_values_that_are_no_score_are_refused_where_an_edge_is_and_nowhere_else(
    make_model, register, value, message
):
    def score(forward, seed):
        found = parts(forward, 0.0)  # zero is a score
        found[4][1][2, 6, 3] = float(value)  # third layer: level 4 of a sequential model
        return found

    def unreachable(forward, seed):
        found = parts(forward)
        found[4][1][2, 3, 6] = float(value)  # a later token
        return found

    register("bad", score)
    with pytest.raises(dm.DensitometerError, match=message) as caught:
        dm.build_graph(make_model("llama"), IDS, importance="bad")
    assert ("first in layer 2" in str(caught.value)) == (value != "-1e-9")
    register("elsewhere", unreachable)
    graph = dm.build_graph(make_model("llama"), IDS, importance="elsewhere")
    assert graph.trace(size=1.0).n_edges == graph.n_edges


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_the_additive_floor_equals_a_loop(eps):
    generator = numpy.random.default_rng(4)
    information = generator.exponential(size=57).astype(numpy.float32) ** 4 * 0.1
    off, cost = 0, 0.0
    for value in sorted(information.tolist()):
        cost += value / 2
        if cost > numpy.pi * eps**2:
            break
        off += 1
    assert 0 < off < 57
    assert additive_floor(information, eps) == pytest.approx(1 - off / 57)
    sizes = (0.2, 0.5, 0.9, 1.0)
    density = additive_density(information, sizes, eps)
    for size, tv in zip(density.sizes, density.tv, strict=True):
        cost = sum(sorted(information.tolist())[: 57 - int(size * 57)]) / 2
        assert tv == pytest.approx(min(1.0, (cost / numpy.pi) ** 0.5))
    assert density.size_at(eps) == pytest.approx(1 - off / 57)
    assert density.bracket(eps)[0] == pytest.approx(1 - (off + 1) / 57)


def test_the_goal_of_the_additive_floor_is_the_divergence_of_a_small_shift():
    """Normal shifts of the logits of standard deviation sigma: KL = sigma^2 / 2 and TV = sigma / sqrt(2 pi)."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, generator=generator, dtype=torch.float64)
    p = logits.softmax(-1)
    q = (logits + 0.25 * torch.randn(4000, generator=generator, dtype=torch.float64)).softmax(-1)
    tv, kl = 0.5 * float((p - q).abs().sum()), float((p * (p / q).log()).sum())
    assert kl == pytest.approx(numpy.pi * tv**2, rel=0.05)
