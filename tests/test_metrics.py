"""Metrics against their formulas written out, and properties that must hold for any logits."""

from __future__ import annotations

import math

import numpy
import polars
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from snippets import registries_kept

import densitometer as dm
from densitometer._util.metrics import NUCLEUS_SHARES, compute_metrics, rank, surprisal
from densitometer.errors import PluginError
from densitometer.measuring.columns import METRIC_TYPES

pytestmark = pytest.mark.fast

DTYPES = {polars.Float64: torch.float64, polars.Int64: torch.int64, polars.Boolean: torch.bool}
LOGITS = arrays(numpy.float32, (3, 11), elements=st.floats(-12, 12, width=32))


def test_the_columns_of_metrics_are_those_that_are_computed():
    found = compute_metrics(torch.zeros(11), torch.zeros(3, 11))
    assert [(name, values.dtype) for name, values in found.items()] == [
        (name, DTYPES[kind]) for name, kind in METRIC_TYPES.items()
    ]


def softmax(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / math.fsum(weights) for w in weights]


def by_hand(p, q):
    """tv, kl, js, entropy of q and both nucleus figures, one number at a time."""
    tv = 0.5 * math.fsum(abs(a - b) for a, b in zip(p, q, strict=True))
    kl = math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    js = 0.5 * math.fsum(a * math.log(a / m) for a, m in zip(p, middle, strict=True))
    js += 0.5 * math.fsum(b * math.log(b / m) for b, m in zip(q, middle, strict=True))
    entropy = -math.fsum(b * math.log(b) for b in q)
    return tv, kl, js, entropy


def top_list(p, share):
    """The smallest prefix, by descending probability, whose mass reaches share %; ties by token id."""
    tokens, mass, order = [], 0.0, sorted(range(len(p)), key=lambda i: (-p[i], i))
    for token in order:
        tokens.append(token)
        mass += p[token]
        if mass >= share / 100:
            break
    return tokens


def largest(p, q, same):
    return max([s for s in NUCLEUS_SHARES if same(top_list(p, s), top_list(q, s))], default=0)


@settings(max_examples=120, deadline=None)
@given(LOGITS)
def test_against_formulas(logits):
    full, traces = torch.from_numpy(logits[0]), torch.from_numpy(logits[1:])
    got = compute_metrics(full, traces)
    p = torch.softmax(full, -1).double().tolist()
    for k in range(2):
        q = torch.softmax(traces[k], -1).double().tolist()
        tv, kl, js, entropy = by_hand(p, q)
        assert float(got["tv"][k]) == pytest.approx(tv, abs=1e-6)
        assert float(got["kl"][k]) == pytest.approx(kl, abs=1e-5)
        assert float(got["js"][k]) == pytest.approx(js, abs=1e-6)
        assert float(got["entropy"][k]) == pytest.approx(entropy, abs=1e-5)
        assert bool(got["top1"][k]) == (numpy.argmax(logits[0]) == numpy.argmax(logits[1 + k]))
        assert int(got["nucleus"][k]) == largest(p, q, lambda a, b: a == b)
        assert int(got["nucleus_unordered"][k]) == largest(p, q, lambda a, b: set(a) == set(b))


@settings(max_examples=60, deadline=None)
@given(LOGITS)
def test_bounds(logits):
    full, traces = torch.from_numpy(logits[0]), torch.from_numpy(logits[1:])
    got = compute_metrics(full, traces)
    assert ((got["tv"] >= 0) & (got["tv"] <= 1 + 1e-6)).all()
    assert (got["kl"] >= 0).all()
    assert ((got["js"] >= 0) & (got["js"] <= math.log(2) + 1e-6)).all()
    assert (got["tv"] ** 2 <= got["kl"] / 2 + 1e-6).all()  # Pinsker
    assert (got["nucleus_unordered"] >= got["nucleus"]).all()
    same = compute_metrics(full, full[None])
    assert float(same["tv"]) == 0
    assert float(same["kl"]) == pytest.approx(0, abs=1e-9)
    assert int(same["nucleus"]) == 99


def test_ordered_and_unordered_nucleus_differ_where_two_tokens_swap():
    full = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    swapped = torch.log(torch.tensor([[0.3, 0.4, 0.2, 0.1]]))
    got = compute_metrics(full, swapped)
    assert int(got["nucleus"]) == 0
    assert int(got["nucleus_unordered"]) == 99
    assert top_list([0.4, 0.3, 0.2, 0.1], 60) == [0, 1]


def test_half_precision_logits_are_compared_in_float32():
    full = torch.linspace(-3, 9, 50).half()
    other = (torch.linspace(-3, 9, 50) + 0.1 * torch.sin(torch.arange(50.0))).half()
    got = compute_metrics(full, other[None])["tv"]
    p, q = softmax(full.tolist()), softmax(other.tolist())
    assert float(got) == pytest.approx(by_hand(p, q)[0], abs=1e-6)


def test_surprisal_and_rank_of_a_token():
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.3]]))
    assert float(surprisal(logits, 1)) == pytest.approx(-math.log(0.2))
    assert int(rank(logits, 1)) == 3
    assert int(rank(logits, 0)) == 1


def test_registered_metrics_are_computed_and_checked():
    with registries_kept():
        dm.register_metric("largest-gap", lambda full, traces: (full - traces).abs().amax(-1))
        assert dm.list_metrics()[-1] == "largest-gap"
        got = compute_metrics(torch.zeros(3), torch.tensor([[0.0, 2.0, -5.0]]))
        assert float(got["largest-gap"]) == 5.0
        with pytest.raises(ValueError, match="exists already"):
            dm.register_metric("tv", lambda full, traces: traces)
        dm.register_metric("wrong", lambda full, traces: traces)
        with pytest.raises(dm.DensitometerError, match=r"'wrong'.*\(1, 3\).*\(1,\)"):
            compute_metrics(torch.zeros(3), torch.zeros(1, 3))


def test_nucleus_shares_are_those_of_the_paper_and_counts_are_integers():
    assert (1, 5, *range(10, 91, 10), 99) == NUCLEUS_SHARES
    full = torch.linspace(-1, 2, 13)
    got = compute_metrics(full, torch.stack([full, -full]))
    for name in ("nucleus", "nucleus_unordered"):
        assert got[name].dtype == torch.int64
    assert got["top1"].tolist() == [True, False]
    assert all(values.shape == (2,) for values in got.values())
    assert rank(torch.stack([full, -full]), 11).tolist() == [2, 12]


def test_large_vocabularies_are_compared_a_few_traces_at_a_time(monkeypatch):
    from densitometer._util import metrics

    generator = torch.Generator().manual_seed(2)
    full, traces = torch.randn(17, generator=generator), torch.randn(5, 17, generator=generator)
    whole = compute_metrics(full, traces)
    seen = []
    with registries_kept():
        dm.register_metric("rows", lambda f, t: seen.append(len(t)) or t[:, 0])
        for numbers, rows in ((34, [2, 2, 1]), (16, [1] * 5), (17 * 5, [5])):
            monkeypatch.setattr(metrics, "NUMBERS", numbers)
            seen.clear()
            parts = compute_metrics(full, traces)
            assert seen == rows
            for name, values in whole.items():
                torch.testing.assert_close(parts[name], values)


def test_what_several_metrics_need_is_computed_once(monkeypatch):
    from densitometer._util import metrics

    generator = torch.Generator().manual_seed(3)
    full, traces = torch.randn(17, generator=generator), torch.randn(5, 17, generator=generator)
    monkeypatch.setattr(metrics, "NUMBERS", 34)  # so traces are compared in three parts
    calls = []
    for name in ("softmax", "log_softmax"):
        real = getattr(torch, name)
        monkeypatch.setattr(
            torch,
            name,
            lambda *a, name=name, real=real, **k: calls.append((name, len(a[0]))) or real(*a, **k),
        )
    compute_metrics(full, traces)
    of_each = [17, 2, 2, 1]  # the full model's logits, and the traces of each part
    for name in ("softmax", "log_softmax"):
        assert [length for called, length in calls if called == name] == of_each


def test_a_metric_that_is_not_finite_is_refused():
    with registries_kept():
        dm.register_metric("broken", lambda full, traces: torch.full((len(traces),), torch.nan))
        with pytest.raises(PluginError, match="'broken' returned nan"):
            compute_metrics(torch.zeros(5), torch.zeros(3, 5))
