"""Sink tokens and massive activations of one forward pass, and the edges that serve sinks.

A *sink* is a token that gets much attention whatever its meaning, most often the first. The rule
is that of Gu et al., "When Attention Sink Emerges in Language Models" (arXiv 2410.10781), over all
heads of all layers. Let n be the number of tokens after s that may attend to s by the layer's own
mask, and a the attention after the softmax:

    mean(h, s) = 1/n  sum over t > s of  a[h, t, s]
    s is a sink where  mean(h, s) > 0.3  for more than a third of the heads h,  n being at least 8

Why 8: even uniform attention gives the first token of a short text more than 0.3 (0.32 for
n = 4; 0.23 for n = 8). Why a third: it separates sinks from other tokens. Shares of the heads that
attend to a token:

    SmolLM2-135M, Gemma 3 270M, Qwen2.5-Coder-0.5B    first token      other tokens
        12 texts each (English, French, code)
        of 12 to 60 tokens                            51 to 96 %       at most 22 %
        one text each of 120 tokens                   49 to 68 %
    demo, demo-parallel, demo-branchnorm (no sinks)   at most 25 %     at most 25 %

A *massive activation* is one number of the residual stream that is far larger than the others (Sun
et al., "Massive Activations in Large Language Models", arXiv 2402.17762). The rule here: |x[t, d]|
is more than 50 times the median of |x| over the stream (T, D) that enters a block. This rule is
wide. In the real models it holds in some layer for most tokens of an English text (in Gemma 3 for
all tokens of any text). Sun et al. require 1,000 times; in the upper half of the layers only the
sink reaches that. So edges are counted that serve a *sink*, and massive activations are reported
beside them.

An edge serves a sink s if its target is s (*own*), or if its source is s and its target is not a
sink (*read*).

What this file does not do: it does not remove edges from a trace or change a density.

Axes: F flat edge axis, H heads, T target tokens, S source tokens, D hidden size.
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

SINK_ATTENTION = 0.3  # a head attends to a token where its mean attention to it is above this
SINK_HEADS = 1 / 3  # a token is a sink where more than this share of the heads attends to it
LEAST_LATER = 8  # least number n of later tokens that may attend to a sink
MASSIVE = 50.0  # a massive activation is above this many times the median
READ, OWN = 1, 2  # how an edge serves a sink: it leads from one, or into one
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
    """Sink tokens and massive activations of a measured text, and the edges that serve the sinks.

    Args:
        tokens: one row per sink (arXiv 2410.10781): token (its index), text, heads (the share of
            all heads of all layers that attend to it), attention (the mean attention that these
            heads give it, 0 to 1).
        activations: one row per token and dimension with a massive activation (arXiv 2402.17762),
            the largest first: token, dimension, first_layer and last_layer (the first and the last
            block, counted from 0, whose input has it), ratio (the largest, to the median of its
            layer). Layers whose median is 0 are left out.
        served: one row per trace that was run, in the order of the curve, then of the refined
            traces: importance, size, n_edges, read (number of its edges from a sink to another
            token), own (number of its edges into a sink). Empty where there is no sink.
        n_edges: number of edges of the graph.
        n_read: number of these that lead from a sink to another token.
        n_own: number of these that lead into a sink.

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
        """Share of all edges of the graph that serve a sink."""
        return (self.n_read + self.n_own) / self.n_edges

    def share_of_trace(self, importance: str, size: float) -> float:
        """Share of a trace's edges that serve a sink.

        Args:
            importance: name of the importance.
            size: size of a trace that was run, exactly as in the curve or in the refined traces,
                such as `size_at(0.1)`.

        Raises:
            InputError: no such trace was run.
        """
        if self.tokens.is_empty():
            return 0.0
        rows = self.served.filter((polars.col("importance") == importance) & (polars.col("size") == size))
        if rows.is_empty():
            raise InputError(
                f"no trace by {importance!r} of size {size!r} was run; expected one of sinks.served"
            )
        row = rows.row(0, named=True)
        return float((row["read"] + row["own"]) / max(row["n_edges"], 1))

    def shares_of_others(self, traces: polars.DataFrame) -> list[float]:
        """Share of all edges that serve no sink which each of some traces has.

        Args:
            traces: importance, size and n_edges of traces that were run, such as rows of the curve.

        Returns:
            One share per row; the trace's size where there is no sink.
        """
        if self.tokens.is_empty():
            return traces["size"].to_list()
        others = self.n_edges - self.n_read - self.n_own
        rows = traces.select("importance", "n_edges").iter_rows()
        return [(row[1] - self._serving[row]) / others for row in rows]

    @cached_property
    def _serving(self) -> dict[tuple[Any, ...], int]:
        """Number of edges that serve a sink, by a trace's importance and number of edges."""
        columns = self.served.select("importance", "n_edges", polars.col("read") + polars.col("own"))
        return {row[:2]: row[2] for row in columns.iter_rows()}


def find_sinks(forward: ForwardPass, traces: Iterable[tuple[str, str, float, Any]] = ()) -> Sinks:
    """Find the sinks and massive activations of a recorded pass, and which edges serve the sinks.

    Args:
        forward: the recorded pass.
        traces: importance, kind, size and trace of each run. Kinds other than "trace" are skipped.
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
    """Compute the mean attention of each head to each token, (heads of all layers, T) float32.

    The mean is over the later tokens that may attend to the token. It is 0 where these are fewer
    than `LEAST_LATER`.
    """
    means = []
    for record in forward.records:
        later = record.allowed.tril(-1)  # (T, S), without a token's attention to itself
        n_later = later.sum(0)  # (S,)
        mean = (record.weights.float() * later).sum(1) / n_later.clamp_min(1)  # (H, S)
        means.append(mean.where(n_later >= LEAST_LATER, 0.0).cpu())
    return torch.cat(means)


def sink_tokens(forward: ForwardPass) -> polars.DataFrame:
    """Find the sinks of a recorded pass, as the table of `Sinks.tokens`."""
    mean = mean_attention(forward)
    attends = mean > SINK_ATTENTION  # (heads of all layers, T)
    heads = attends.double().mean(0)  # (T,), the share of the heads that attend to a token
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
    """Find the massive activations of a recorded pass, as the table of `Sinks.activations`."""
    places, ratios = [], []
    for layer, record in enumerate(forward.records):
        size = record.stream.float().abs()  # (T, D)
        median = size.median()
        # a stream of mostly zeros has no scale to compare with
        if median <= 0:
            continue
        massive = (size > MASSIVE * median).nonzero()  # (n, 2): token, dimension
        ratios.append((size[massive[:, 0], massive[:, 1]] / median).double().cpu())
        places.append(torch.cat([massive, torch.full_like(massive[:, :1], layer)], dim=1).cpu())
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
    """Mark how each edge serves a sink, (F,) int8.

    The mark is READ for edges from a sink to another token, OWN for edges into a sink, and 0 for
    all other edges.

    Args:
        tokens: indices of the sinks.
    """
    serving = numpy.zeros(space.size, dtype=numpy.int8)
    sinks = list(tokens)
    for place in space.views(serving):
        place.residual[sinks] = OWN
        if place.attention is not None:
            place.attention[:, :, sinks] = READ
            place.attention[:, sinks, :] = OWN
        if place.mlp is not None:
            place.mlp[:, sinks] = OWN
    return serving


def describe_tokens(tokens: polars.DataFrame) -> str:
    """Write the sinks in words, each with the share of heads that attend to it."""
    shown = (
        f"{row['text']!r} (token {row['token']}; {100 * row['heads']:.0f} % of the heads attend to it)"
        for row in tokens.iter_rows(named=True)
    )
    return ", ".join(shown) or "none"


def describe_activations(activations: polars.DataFrame) -> str:
    """Write massive activations in words: the largest two dimensions, and how many there are."""
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
