"""Sink tokens and massive activations of one forward pass, and the edges of a trace that serve sinks.

A *sink* is a token that much of the attention goes to whatever it says, most often the first. The rule of Gu et al.,
"When Attention Sink Emerges in Language Models" (arXiv 2410.10781), over all heads of all layers: with n the number of
later tokens that may attend to s by the layer's own mask (s itself left out),

    mean(h, s) = 1/n  sum over t > s of  a[h, t, s]           a: attention after the softmax
    s is a sink where  mean(h, s) > 0.3  for more than a third of the heads h,  n being at least 8

Why 8: to the first token of a short text even uniform attention gives more than 0.3 (n = 4: 0.32; n = 8: 0.23).
Why a third: in SmolLM2-135M, Gemma 3 270M and Qwen2.5-Coder-0.5B (12 texts each, English, French and code, 12 to 60
tokens) the first token is attended to by 51 to 96 % of the heads (at 120 tokens, one text each: 49 to 68 %) and no other
by more than 22 %; in `demo`, `demo-parallel` and `demo-branchnorm`, which have no sinks, no token by more than 25 %.

A *massive activation* is one number of the residual stream that is far larger than the others (Sun et al., "Massive
Activations in Large Language Models", arXiv 2402.17762). The rule here: |x[t, d]| is more than 50 times the median of |x|
over the stream (T, D) that enters a block. It is wide: in the real models it holds in some layer for most tokens of an
English text (Gemma 3: for all of any text), and in the upper half of the layers above 1,000 times, as Sun et al. have it,
for the sink alone. So what serves a *sink* is counted, and massive activations are reported beside it.

An edge serves a sink s where its target is s (*own*), or where its source is s and its target is not a sink (*read*).
Nothing is left out of a trace or of a density because of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import polars
import torch
from torch import Tensor

from ..errors import InputError
from .forward_pass import EdgeSpace, ForwardPass

SINK_ATTENTION = 0.3  # a head attends to a token where its mean attention is above this
SINK_HEADS = 1 / 3  # a token is a sink where more than this share of the heads attends to it
LEAST_LATER = 8  # later tokens that may attend to a token, for a head to count
MASSIVE = 50.0  # times the median
READ, OWN = 1, 2  # how an edge serves a sink
TOKEN_TYPES = {
    "token": polars.Int64, "text": polars.String, "heads": polars.Float64, "attention": polars.Float64,
}  # fmt: skip
ACTIVATION_TYPES = {
    "token": polars.Int64, "dimension": polars.Int64, "first_layer": polars.Int64, "last_layer": polars.Int64,
    "ratio": polars.Float64,
}  # fmt: skip
SERVED_TYPES = {
    "importance": polars.String, "size": polars.Float64, "n_edges": polars.Int64, "read": polars.Int64,
    "own": polars.Int64,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sinks:
    """Sink tokens and massive activations of a measured text, and how much of each trace serves the sinks.

    Args:
        tokens: a row per sink (arXiv 2410.10781): token (its index), text, heads (the share of all heads of all layers that
            attend to it), attention (the mean attention that these heads give it, 0 to 1).
        activations: a row per token and dimension with a massive activation (arXiv 2402.17762), the largest first: token,
            dimension, first_layer and last_layer (the blocks, counted from 0, that it enters as one, not always all between),
            ratio (the largest, to the median of its layer). Layers whose median is 0 are left out.
        served: a row per trace that was run, in the order of the curve, then of the refined ones: importance, size, n_edges,
            read (its edges from a sink to another token), own (its edges into a sink). Empty where there is no sink.
        n_edges: the edges of the graph; n_read and n_own: those of them that serve a sink so.

    Examples:
        >>> m = dm.measure(model, "The captain looked at the sea, and the sea was as calm as a pond")
        >>> m.sinks.tokens.height, m.sinks.activations.height  # the bundled models have neither
        (0, 0)
        >>> m.sinks.share_of_graph, m.density_in("edges_without_sinks") == m.density_in("edges")
        (0.0, True)
    """

    tokens: polars.DataFrame
    activations: polars.DataFrame
    served: polars.DataFrame
    n_edges: int
    n_read: int
    n_own: int

    @property
    def share_of_graph(self) -> float:
        """The share of all edges that serve a sink."""
        return (self.n_read + self.n_own) / self.n_edges

    def share_of_trace(self, importance: str, size: float) -> float:
        """The share of a trace's edges that serve a sink.

        Args:
            size: as the curve or the refined traces have it, such as `size_at(0.1)`.

        Raises:
            InputError: no such trace was run.
        """
        if self.tokens.is_empty():
            return 0.0
        own = self.served.filter((polars.col("importance") == importance) & (polars.col("size") == size))
        if own.is_empty():
            raise InputError(
                f"no trace by {importance!r} of size {size!r} was run; expected one of sinks.served"
            )
        row = own.row(0, named=True)
        return float((row["read"] + row["own"]) / max(row["n_edges"], 1))

    def shares_of_others(self, traces: polars.DataFrame) -> list[float]:
        """The share that each trace has of the edges that serve no sink.

        Args:
            traces: importance, size and n_edges of traces that were run, such as rows of the curve.

        Returns:
            One share per row; its size where there is no sink.
        """
        if self.tokens.is_empty():
            return traces["size"].to_list()
        others = self.n_edges - self.n_read - self.n_own
        rows = traces.select("importance", "n_edges").iter_rows()
        return [(row[1] - self._serving[row]) / others for row in rows]

    @cached_property
    def _serving(self) -> dict[tuple[Any, ...], int]:
        """How many edges serve a sink, by importance and number of edges of a trace."""
        columns = self.served.select("importance", "n_edges", polars.col("read") + polars.col("own"))
        return {row[:2]: row[2] for row in columns.iter_rows()}


def find_sinks(forward: ForwardPass, traces: Iterable[tuple[str, str, float, Any]] = ()) -> Sinks:
    """The sinks and massive activations of a recorded pass, and how much of some traces serves the sinks.

    Args:
        traces: importance, kind, size and trace of each run; those of another kind than "trace" are passed over.
    """
    tokens = sink_tokens(forward)
    serving = serving_edges(forward.space, tokens["token"].to_list()) * forward.reachable
    read, own = numpy.flatnonzero(serving == READ), numpy.flatnonzero(serving == OWN)
    rows = []
    if len(tokens):
        for importance, kind, size, trace in traces:
            if kind == "trace":
                flat = trace.flat
                counts = (int(flat[edges].sum()) for edges in (read, own))
                rows.append((importance, size, trace.n_edges, *counts))
    served = polars.DataFrame(rows, schema=SERVED_TYPES, orient="row")
    n_edges = int(forward.reachable.sum())
    return Sinks(tokens, massive_activations(forward), served, n_edges, len(read), len(own))


def mean_attention(forward: ForwardPass) -> Tensor:
    """Mean attention of each head to a token, (heads of all layers, T) float32.

    The mean is over the later tokens that may attend to it. It is 0 where these are fewer than
    `LEAST_LATER`.
    """
    found = []
    for record in forward.records:
        later = record.allowed.tril(-1)  # (T, S)
        n_later = later.sum(0)
        mean = (record.weights.float() * later).sum(1) / n_later.clamp_min(1)
        found.append(mean.where(n_later >= LEAST_LATER, 0.0).cpu())
    return torch.cat(found)


def sink_tokens(forward: ForwardPass) -> polars.DataFrame:
    """A row per sink, as in `Sinks.tokens`."""
    mean = mean_attention(forward)
    attends = mean > SINK_ATTENTION
    heads = attends.double().mean(0)
    attention = (mean * attends).double().sum(0) / attends.sum(0).clamp_min(1)
    tokens = (heads > SINK_HEADS).nonzero()[:, 0]
    columns = {
        "token": tokens.tolist(),
        "text": forward.model.pieces([forward.ids[token] for token in tokens.tolist()]),
        "heads": heads[tokens].tolist(),
        "attention": attention[tokens].tolist(),
    }
    return polars.DataFrame(columns, schema=TOKEN_TYPES)


def massive_activations(forward: ForwardPass) -> polars.DataFrame:
    """A row per token and dimension with a massive activation, as in `Sinks.activations`."""
    places, ratios = [], []
    for layer, record in enumerate(forward.records):
        size = record.stream.float().abs()  # (T, D)
        median = size.median()
        # A stream of mostly zeros has no scale to compare with.
        if median <= 0:
            continue
        found = (size > MASSIVE * median).nonzero()
        ratios.append((size[found[:, 0], found[:, 1]] / median).double().cpu())
        places.append(torch.cat([found, torch.full_like(found[:, :1], layer)], dim=1).cpu())
    if not places:
        return polars.DataFrame(schema=ACTIVATION_TYPES)
    columns = polars.DataFrame(torch.cat(places).numpy(), schema=["token", "dimension", "layer"])
    return (
        columns.with_columns(ratio=torch.cat(ratios).numpy())
        .group_by("token", "dimension", maintain_order=True)
        .agg(
            first_layer=polars.col("layer").min(),
            last_layer=polars.col("layer").max(),
            ratio=polars.col("ratio").max(),
        )
        .sort("ratio", "token", "dimension", descending=[True, False, False])
        .select(polars.col(name).cast(dtype) for name, dtype in ACTIVATION_TYPES.items())
    )


def serving_edges(space: EdgeSpace, tokens: Sequence[int]) -> numpy.ndarray:
    """How each edge serves a sink, (F,) int8.

    READ for edges from a sink to another token, OWN for those into a sink.

    0 for all other edges.
    """
    serving = numpy.zeros(space.size, dtype=numpy.int8)
    own = list(tokens)
    for place in space.views(serving):
        place.residual[own] = OWN
        if place.attention is not None:
            place.attention[:, :, own] = READ
            place.attention[:, own, :] = OWN
        if place.mlp is not None:
            place.mlp[:, own] = OWN
    return serving


def describe_tokens(tokens: polars.DataFrame) -> str:
    """The sinks in words: each with the share of heads that attend to it."""
    shown = (
        f"{row['text']!r} (token {row['token']}; {100 * row['heads']:.0f} % of the heads attend to it)"
        for row in tokens.iter_rows(named=True)
    )
    return ", ".join(shown) or "none"


def describe_activations(activations: polars.DataFrame) -> str:
    """The dimensions with massive activations in words: the largest two, and how many there are."""
    if activations.is_empty():
        return "none"
    largest = activations.unique("dimension", keep="first", maintain_order=True)
    first, *others = largest.head(2).iter_rows(named=True)
    shown = [
        f"{first['dimension']} ({first['ratio']:,.0f} times the median; token {first['token']}, layers "
        f"{first['first_layer']} to {first['last_layer']})"
    ]
    shown += [f"{row['dimension']} ({row['ratio']:,.0f} times)" for row in others]
    more = len(largest) - len(shown)
    shown += [f"{more} more"] if more else []
    n_tokens = activations["token"].n_unique()
    return f"{', '.join(shown)}; in {n_tokens} token{'s' * (n_tokens > 1)}"
