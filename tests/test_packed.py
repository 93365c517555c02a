"""Counted work: the rows that masked runs compute, against loops over the masks and against what really runs.

Counts do not depend on the machine's mood; they are what guards the speed of masked runs.
"""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import IDS

import densitometer as dm
from densitometer.graph.forward_pass import run_forward
from densitometer.graph.masked_runs import masked_logits
from densitometer.measuring.density import DEFAULT_SIZES
from densitometer.models import adapter, packed

pytestmark = pytest.mark.usefixtures("rows_skipped")

LAYOUTS = ("llama", "mistral-window", "neox", "olmo2", "mixtral")


def masks_of(model: dm.Model, ids: list[int]) -> tuple:
    """A pass, and seven variants: the full model, nothing, traces, a random set of edges."""
    graph = dm.build_graph(model, ids)
    drawn = numpy.random.default_rng(3).random(graph.space.size) < 0.2
    flat = [graph.trace(size=s).flat for s in (1.0, 0.0, 0.01, 0.1, 0.4, 0.7)] + [drawn & graph.reachable]
    return graph.forward, flat, graph.forward.block_masks(torch.from_numpy(numpy.stack(flat)))


def rows_of(plan: packed.RowPlan) -> dict[str, int]:
    """How many rows are computed."""
    return {
        "keys_and_values": sum(len(block.rows) for block in plan.blocks),
        "queries": sum(len(bucket.valid) for block in plan.blocks for bucket in block.buckets),
        "mlp": sum(len(block.mlp.rows) for block in plan.blocks),
    }


def weights_of(plan: packed.RowPlan) -> int:
    """How many attention weights of a head are computed, padding included."""
    return sum(
        bucket.tokens.size * bucket.sources.shape[1] for block in plan.blocks for bucket in block.buckets
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bucket", [1, 2**30])
def test_planned_rows_are_the_live_ones(make_model, layout, bucket, monkeypatch):
    monkeypatch.setattr(packed, "WEIGHTS_PER_BUCKET", bucket)
    model = make_model(layout)
    _, _, masks = masks_of(model, IDS)
    plan = packed.plan_rows(model.adapter.blocks, masks)
    n_variants, n_tokens = masks[0].residual_mlp.shape
    queries = mlp = 0
    least, most = 0, 0
    row_of = {(b, t): ("input", t) for b in range(n_variants) for t in range(n_tokens)}
    for block, mask in zip(model.adapter.blocks, masks, strict=True):
        asks = {
            (b, t)
            for b in range(n_variants)
            for t in range(n_tokens)
            if any(bool(mask.attention[b, h, t].any()) for h in range(block.n_heads))
        }
        on = {(b, t) for b in range(n_variants) for t in range(n_tokens) if bool(mask.mlp[b, :, t].any())}
        queries, mlp = queries + len(asks), mlp + len(on)
        reach = {b: max((t for v, t in asks if v == b), default=-1) for b in range(n_variants)}
        farthest = max(reach.values())
        least += len({(row_of[b, t], t) for b, t in row_of if t <= reach[b]})
        most += max(1, len({(row_of[b, t], t) for b, t in row_of if reach[b] >= 0 and t <= farthest}))
        live = set(on) | {(b, t) for b, t in row_of if bool(mask.residual_mlp[b, t])}
        if block.layout.parallel:
            live |= asks
        row_of = {(b, t): ("live", b, t) if (b, t) in live else ("constant",) for b, t in row_of}
    rows = rows_of(plan)
    assert rows["queries"] == queries
    assert rows["mlp"] == mlp
    assert least <= rows["keys_and_values"] <= most


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_rows_that_run_are_the_planned_ones(make_model, layout):
    model = make_model(layout)
    forward, flat, masks = masks_of(model, IDS)
    assert model.adapter.packs
    planned = rows_of(packed.plan_rows(model.adapter.blocks, masks))
    ran = {"keys_and_values": 0, "mlp": 0}

    def count(name):
        return lambda _, args, kwargs, output: ran.__setitem__(
            name, ran[name] + (args or tuple(kwargs.values()))[0].shape[1]
        )

    handles = []
    for block in model.adapter.blocks:
        handles.append(block.attention.register_forward_hook(count("keys_and_values"), with_kwargs=True))
        mlp = block.module.get_submodule(block.layout.mlp[0])
        handles.append(mlp.register_forward_hook(count("mlp"), with_kwargs=True))
    masked_logits(forward, flat)
    for handle in handles:
        handle.remove()
    assert ran["keys_and_values"] == planned["keys_and_values"]
    assert ran["mlp"] == planned["mlp"]


def test_buckets_save_padding_and_change_nothing(make_model, monkeypatch):
    model = make_model("llama")
    forward, flat, masks = masks_of(model, IDS)
    weights, logits = [], []
    for bucket in (1, 2**30):
        monkeypatch.setattr(packed, "WEIGHTS_PER_BUCKET", bucket)
        weights.append(weights_of(packed.plan_rows(model.adapter.blocks, masks)))
        logits.append(masked_logits(forward, flat))
    assert weights[0] < weights[1]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_rows_are_skipped_where_that_pays(demo, monkeypatch):
    monkeypatch.setattr(adapter.Adapter, "always_skip", False)
    graph = dm.build_graph(demo, [(7919 * i + 17) % 4096 for i in range(40)])
    assert demo.adapter.packs
    runs = []
    plan_rows = adapter.plan_rows
    monkeypatch.setattr(adapter, "plan_rows", lambda *a: runs.append("packed") or plan_rows(*a))
    masked_logits(graph.forward, [graph.trace(size=0.8).flat] * 9)  # nearly every row lives
    assert runs == []
    masked_logits(graph.forward, [graph.trace(size=0.01).flat])  # 40 rows in all: planning costs as much
    assert runs == []
    masked_logits(graph.forward, [graph.trace(size=0.01).flat] * 9)
    assert runs == ["packed"]


def test_most_of_the_work_of_a_trained_model_is_skipped(demo):
    """Of the 26 sizes below 1 on 40 tokens; it was 27, 24 and 25 % when this was written (dev/LOG.md)."""
    ids = [(7919 * i + 17) % 4096 for i in range(40)]
    forward, _ = run_forward(demo, ids)
    graph = dm.build_graph(demo, ids)
    flat = [trace.flat for trace in graph.traces(DEFAULT_SIZES[:-1])]
    masks = forward.block_masks(torch.from_numpy(numpy.stack(flat)))
    plan = packed.plan_rows(demo.adapter.blocks, masks)
    dense = len(demo.adapter.blocks) * len(flat) * len(ids)
    assert all(rows / dense < 0.32 for rows in rows_of(plan).values())
    assert weights_of(plan) / (dense * len(ids)) < 0.5
