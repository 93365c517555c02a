"""One forward pass seen as edges between residual streams: the axis legend, the edge space, the edge vectors.

A node is the residual stream of one token at one half-layer. Nodes of one half-layer form a *level*; the levels of a
model are a chain, and every edge leads from one level into the next:

    sequential block    level "mid":  residual_attention, attention      level "out":  residual_mlp, mlp
    parallel block      level "out":  residual, attention, mlp

Each edge carries a vector that is added into its target, so that the vectors of a node's incoming edges sum to the
node, up to additive constants (biases), which are always on and are no edges.

Edges are numbered along one flat axis F, level after level, and within a level: residual edges by token, attention
edges by (head, target, source), MLP edges by token. Every score, key and mask of this package is an array over F, and
`EdgeSpace.views` cuts such an array into levels without a copy.

Axes, here and everywhere:
    L layers    H query heads    T target tokens    S source tokens    D hidden size    V value head size
    G key-value heads    F flat edge axis, all that could exist    E edges that can reach the output
    K variants (traces) run together
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from .errors import IdentityError, InputError
from .models.blocks import Block, BlockMask, BlockMeans, BlockRecord
from .models.counting import BlockCost, block_cost
from .models.linear import constant_of, head_weights, linearise
from .models.loading import Model

CHUNK_NUMBERS = 2**24  # numbers of edge vectors in memory at once, 64 MiB


class PerLevel(NamedTuple):
    """One value per edge into one level. Leading axes (variants) may come before those named.

    residual: (T,), attention: (H, T, S) or None where no attention leads into the level, mlp: (T,) or None.
    """

    residual: Any
    attention: Any
    mlp: Any


@dataclass(frozen=True)
class Level:
    """The nodes of one half-layer and the kinds of edges that lead into them."""

    layer: int
    residual_kind: str  # residual_attention, residual_mlp or residual
    n_heads: int  # 0 where no attention leads into the level
    has_mlp: bool


@dataclass(frozen=True)
class EdgeSpace:
    """The flat edge axis F of a model on a number of tokens."""

    levels: tuple[Level, ...]
    n_tokens: int

    def level_size(self, level: Level) -> int:
        t = self.n_tokens
        return t + level.n_heads * t * t + level.has_mlp * t

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each level starts on the flat axis; the last entry is F."""
        sizes = [self.level_size(level) for level in self.levels]
        return tuple(int(n) for n in numpy.concatenate([[0], numpy.cumsum(sizes)]))

    @property
    def size(self) -> int:
        """F."""
        return self.offsets[-1]

    def views(self, flat: Any) -> list[PerLevel]:
        """Cut an array or tensor (..., F) into its levels, without a copy."""
        t = self.n_tokens
        cut = []
        for level, start in zip(self.levels, self.offsets, strict=False):
            residual = flat[..., start : start + t]
            middle = start + t
            end = middle + level.n_heads * t * t
            lead = flat.shape[:-1]
            attention = flat[..., middle:end].reshape(*lead, level.n_heads, t, t) if level.n_heads else None
            mlp = flat[..., end : end + t] if level.has_mlp else None
            cut.append(PerLevel(residual, attention, mlp))
        return cut

    def flatten(self, levels: Sequence[PerLevel]) -> numpy.ndarray:
        """One float32 array (F,) from values per level."""
        flat = numpy.empty(self.size, dtype=numpy.float32)
        for view, values in zip(self.views(flat), levels, strict=True):
            for place, value in zip(view, values, strict=True):
                if place is not None:
                    place[...] = value.detach().float().cpu().numpy()
        return flat

    def columns(self, index: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """Level, layer, kind, head (-1 for none), source and target of edges (n,) of the flat axis."""
        t = self.n_tokens
        level = numpy.searchsorted(self.offsets, index, side="right") - 1
        inside = index - numpy.asarray(self.offsets)[level]
        heads = numpy.array([lv.n_heads for lv in self.levels])[level]
        is_residual = inside < t
        is_attention = ~is_residual & (inside < t + heads * t * t)
        within = numpy.where(is_attention, inside - t, 0)
        token = numpy.where(is_residual, inside, inside - t - heads * t * t)
        names = numpy.array([lv.residual_kind for lv in self.levels])[level]
        kind = numpy.where(is_residual, names, numpy.where(is_attention, "attention", "mlp"))
        return {
            "level": level,
            "layer": numpy.array([lv.layer for lv in self.levels])[level],
            "kind": kind,
            "head": numpy.where(is_attention, within // (t * t), -1),
            "source": numpy.where(is_attention, within % t, token),
            "target": numpy.where(is_attention, within // t % t, token),
        }


@dataclass(frozen=True)
class LevelEdges:
    """The edges into one level, with what their vectors are made of. Everything is float32.

    The vectors themselves, T x S x H x D numbers, are never all built. An attention edge's vector is

        weights[h, t, s] * scale[t] * (values of head h [s] * gate[t, h]) @ (output projection of head h)

    Args:
        residual: (T, D), the vectors of the residual edges.
        mlp: (T, D), the vectors of the MLP edges, or None.
        weights: (H, T, S), attention after the softmax, or None.
        scale: (T,), the branch norm's scale at the target (1 without one).
        gate: (T, H, V), what multiplies the heads' outputs before the projection, or None for nothing.
        constant: (T, D), what is always on: biases.
        node: (T, D), what all of these sum to.
    """

    level: Level
    residual: Tensor
    mlp: Tensor | None
    weights: Tensor | None
    scale: Tensor
    gate: Tensor | None
    constant: Tensor
    node: Tensor
    _values: Tensor | None = None
    _write: Tensor | None = None

    def head(self, head: int) -> tuple[Tensor, Tensor]:
        """Values (S, V) and output projection (V, D)."""
        assert self._values is not None
        assert self._write is not None
        group = self._write.shape[0] // self._values.shape[0]
        return self._values[head // group], self._write[head]

    def attention_vectors(self, head: int, targets: slice = slice(None)) -> Tensor:
        """(t, S, D): the vectors of a head's edges into some targets."""
        assert self.weights is not None
        values, write = self.head(head)
        size = self.weights[head, targets] * self.scale[targets, None]  # (t, S)
        if self.gate is None:
            return size[..., None] * (values @ write)
        return size[..., None] * ((values * self.gate[targets, head, None]) @ write)

    def each_attention_edge(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(H, T, S): a number for each edge, from vectors built for a few targets at a time.

        Args:
            measure: maps vectors (t, S, D) and their nodes (t, 1, D) to (t, S).
        """
        assert self.weights is not None
        found = torch.empty_like(self.weights)
        n_tokens, hidden_size = self.node.shape
        rows = max(1, CHUNK_NUMBERS // (n_tokens * hidden_size))
        for head in range(len(self.weights)):
            for start in range(0, n_tokens, rows):
                t = slice(start, start + rows)
                found[head, t] = measure(self.attention_vectors(head, t), self.node[t, None])
        return found

    def attention_sizes(self, size: Callable[[Tensor], Tensor]) -> Tensor:
        """(H, T, S): a size of each edge's vector.

        Args:
            size: maps (..., D) to (...); a norm, so that a weight can be taken out of it. Without a gate one norm per
                head and source is enough.
        """
        if self.gate is not None:
            return self.each_attention_edge(lambda vectors, _: size(vectors))
        assert self.weights is not None
        written = torch.stack([size(torch.matmul(*self.head(h))) for h in range(len(self.weights))])  # (H, S)
        return self.weights * written[:, None] * self.scale[:, None]

    def attention_along(self, directions: Tensor) -> Tensor:
        """(H, T, S): the product of each edge's vector with a direction (T, D) of its target."""
        assert self.weights is not None
        heads = []
        for head, weights in enumerate(self.weights):
            values, write = self.head(head)
            read = (directions * self.scale[:, None]) @ write.T  # (T, V)
            if self.gate is not None:
                read = read * self.gate[:, head]
            heads.append(weights * (read @ values.T))
        return torch.stack(heads)

    def attention_sum(self) -> Tensor:
        """(T, D), the sum of the attention edges' vectors."""
        total = torch.zeros_like(self.node)
        if self.weights is None:
            return total
        for head, weights in enumerate(self.weights):
            values, write = self.head(head)
            mixed = weights @ values
            total += (mixed if self.gate is None else mixed * self.gate[:, head]) @ write
        return total * self.scale[:, None]


@dataclass(frozen=True)
class ForwardPass:
    """One run of a model on one input up to one position, recorded.

    Args:
        ids: token ids up to and including the position.
        logits: (vocabulary,) float32, after the last of them.
    """

    model: Model
    ids: tuple[int, ...]
    logits: Tensor
    records: tuple[BlockRecord, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @cached_property
    def space(self) -> EdgeSpace:
        levels: list[Level] = []
        for block, record in zip(self.model.adapter.blocks, self.records, strict=True):
            n_heads = record.weights.shape[0]
            if block.layout.parallel:
                levels.append(Level(block.index, "residual", n_heads, True))
            else:
                levels.append(Level(block.index, "residual_attention", n_heads, False))
                levels.append(Level(block.index, "residual_mlp", 0, True))
        return EdgeSpace(tuple(levels), self.n_tokens)

    @cached_property
    def reachable(self) -> numpy.ndarray:
        """(F,) bool: the edges that exist, by each layer's own mask, and from which the output can be reached."""
        t = self.n_tokens
        flat = numpy.zeros(self.space.size, dtype=bool)
        reached = numpy.zeros(t, dtype=bool)
        reached[-1] = True
        for level, view in zip(reversed(self.space.levels), reversed(self.space.views(flat)), strict=True):
            view.residual[:] = reached
            sources = reached.copy()
            if view.mlp is not None:
                view.mlp[:] = reached
            if view.attention is not None:
                allowed = self.records[level.layer].allowed
                existing = allowed.cpu().numpy() & reached[:, None]  # (T, S)
                view.attention[...] = existing
                sources |= existing.any(axis=0)
            reached = sources
        return flat

    @cached_property
    def block_costs(self) -> tuple[BlockCost, ...]:
        """What each decoder block costs, per token and head."""
        found = []
        for block, record in zip(self.model.adapter.blocks, self.records, strict=True):
            sizes = (record.weights.shape[0], record.values.shape[0])
            found.append(block_cost(block, *sizes, record.key_size, record.values.shape[-1]))
        return tuple(found)

    def block_masks(
        self, flat: Tensor, frozen: bool = False, means: Sequence[BlockMeans] | None = None
    ) -> list[BlockMask]:
        """Masks (K, F) over the flat edge axis, cut up by decoder block.

        Args:
            frozen: keep this pass's attention weights instead of recomputing them.
            means: what removed edges contribute, one per block; None for nothing.
        """
        views = iter(self.space.views(flat))
        masks = []
        for block, record in zip(self.model.adapter.blocks, self.records, strict=True):
            weights = record.weights if frozen else None
            mean = means[block.index] if means is not None else None
            into = next(views)
            if block.layout.parallel:
                masks.append(BlockMask(None, into.attention, into.residual, into.mlp, weights, mean))
            else:
                out = next(views)
                masks.append(BlockMask(into.residual, into.attention, out.residual, out.mlp, weights, mean))
        return masks

    def levels(self) -> Iterator[LevelEdges]:
        """The edges into each level, from the input to the output, one level in memory at a time."""
        for block, record in zip(self.model.adapter.blocks, self.records, strict=True):
            yield from _edges_of_block(block, record)


def _edges_of_block(block: Block, record: BlockRecord) -> Iterator[LevelEdges]:
    weights = record.weights.float()
    write, scale, constant = _attention_writes(block, record, weights.shape[0])
    gate = _gate(block, record)
    parallel = block.layout.parallel
    residual = record.residual_mlp if parallel else record.residual_attention
    node = record.mlp_sum if parallel else record.attention_sum
    assert residual is not None
    assert node is not None
    mlp = record.mlp.float()
    yield LevelEdges(
        Level(
            block.index, "residual" if parallel else "residual_attention", weights.shape[0], parallel
        ),
        residual.float(), mlp if parallel else None, weights, scale, gate, constant, node.float(),
        record.values.float(), write,
    )  # fmt: skip
    if not parallel:
        one, none = torch.ones_like(scale), torch.zeros_like(constant)
        yield LevelEdges(
            Level(block.index, "residual_mlp", 0, True),
            record.residual_mlp.float(), mlp, None, one, None, none, record.mlp_sum.float(),
        )  # fmt: skip


def _attention_writes(block: Block, record: BlockRecord, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each head writes per unit of value (H, V, D), the scale at each target (T,) and the constant (T, D).

    A branch norm is linear at its actual scale: its weight, and the mean it takes off, go into the writes.
    """
    projection = block.projection
    write = head_weights(projection, n_heads, record.projection_input, record.projected)
    multiplier = block.multiplier
    n_tokens = record.stream.shape[0]
    constant = torch.zeros(n_tokens, write.shape[-1], device=write.device)
    always = constant_of(projection, record.projection_input)
    if always is not None:
        constant = constant + always
    if block.layout.attention_branch_norm is None:
        scale = torch.ones(n_tokens, device=write.device)
        return write if multiplier == 1.0 else write * multiplier, scale, constant * multiplier
    norm = linearise(
        block.child(block.layout.attention_branch_norm),
        record.projected,
        record.attention / multiplier,
    )
    if norm.centred:
        constant = constant - constant.mean(-1, keepdim=True)
        write = write - write.mean(-1, keepdim=True)
    constant = norm.constant + norm.scale[:, None] * norm.weight * constant
    return write * norm.weight * multiplier, norm.scale, constant * multiplier


def _gate(block: Block, record: BlockRecord) -> Tensor | None:
    """What the heads' outputs are multiplied by before the projection, at its actual size, (T, H, V); None for nothing.

    Without a gate the projection must read just what the attention function returned: weights @ values.
    """
    group = record.weights.shape[0] // record.values.shape[0]
    values = record.values.to(record.weights.dtype).repeat_interleave(group, dim=0)
    heads = torch.matmul(record.weights, values).transpose(0, 1).float()  # (T, H, V)
    got = record.projection_input.float().view(heads.shape)
    if block.gated:
        return torch.where(heads == 0, 0.0, got / heads)
    tolerance = 1e-4 if record.projection_input.dtype in (torch.float32, torch.float64) else 2e-2
    gap = float((got - heads).norm() / heads.norm().clamp_min(1e-30))
    if gap > tolerance:
        raise IdentityError(
            f"in layer {block.index}, {type(block.attention).__name__} hands its output projection something else than the "
            f"heads' outputs on this text (off by {gap:.1e}), though not on the probe at loading; it cannot be measured"
        )
    return None


def run_forward(model: Model, ids: Sequence[int], position: int = -1) -> tuple[ForwardPass, int]:
    """Record the model's run up to a position.

    Args:
        ids: token ids of the whole input.
        position: index of the token whose next-token prediction is measured; negative counts from the end.

    Returns:
        The pass over ids[: position + 1], and the position counted from the start.

    Raises:
        InputError: the position is out of range.
    """
    if isinstance(position, bool) or not isinstance(position, int):
        raise InputError(f"position must be an integer, got {position!r}")
    if not -len(ids) <= position < len(ids):
        raise InputError(
            f"position {position} is out of range: the input has {len(ids)} tokens, so positions go from "
            f"{-len(ids)} to {len(ids) - 1}"
        )
    position %= len(ids)
    kept = tuple(ids[: position + 1])
    records, logits = model.adapter.capture(kept)
    return ForwardPass(model, kept, logits, tuple(records)), position
