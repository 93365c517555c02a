"""One forward pass seen as edges between residual streams: the axis legend, the edge space, the edge vectors.

A node is the residual stream of one token at one half-layer. Nodes of one half-layer form a *level*; the levels of a
model are a chain, and every edge leads from one level into the next:

    sequential block    level "mid":  residual_attention, attention      level "out":  residual_mlp, mlp
    parallel block      level "out":  residual, attention, mlp

Each edge carries a vector that is added into its target, so that the vectors of a node's incoming edges sum to the
node, up to additive constants (biases), which are always on and are not edges.

The MLP of a block is one edge per token, or, at a finer *granularity*, one per token and unit: expert or neuron
(`models/units.py`). Its units' vectors sum to the MLP's; what is left with all of them off is a constant.

Edges are numbered along one flat axis F, level after level, and within a level: residual edges by token, attention
edges by (head, target, source), MLP edges by (unit, token). Every score, key and mask of this package is an array over F, and
`EdgeSpace.views` cuts such an array into levels without a copy.

Axes, here and everywhere:
    L layers    H query heads    T target tokens    S source tokens    D hidden size    V value head size
    M units of an MLP (1 at the grain of blocks)
    G key-value heads    F flat edge axis, all that could exist    E edges that can reach the output
    K variants (traces) run together
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from .._util.arguments import checked_integer
from ..errors import ArgumentTypeError, IdentityError, InputError
from ..models.blocks import Block, BlockMask, BlockMeans, BlockRecord
from ..models.conditions import describe_hooks
from ..models.counting import BlockCost, block_cost
from ..models.linear import Norm, constant_of, head_weights, linearise
from ..models.loading import Model
from ..models.tolerances import branch_tolerance, units_tolerance
from ..models.units import GRANULARITIES, Experts, Granularity, Neurons, Units

CHUNK_NUMBERS = 2**24  # numbers of edge vectors in memory at once, 64 MiB


class PerLevel(NamedTuple):
    """One value per edge into one level. Leading axes (variants) may come before those named.

    residual: (T,), attention: (H, T, S) or None where no attention leads into the level, mlp: (M, T) or None.
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
    n_units: int  # of its MLP; 0 where none leads into the level


class Component(NamedTuple):
    """Edges into one level that are counted together.

    head and unit are -1 where a component has none.
    """

    level: int
    layer: int
    kind: str
    head: int
    unit: int


@dataclass(frozen=True)
class EdgeSpace:
    """The flat edge axis F of a model on a number of tokens."""

    levels: tuple[Level, ...]
    n_tokens: int

    def level_size(self, level: Level) -> int:
        t = self.n_tokens
        return t + level.n_heads * t * t + level.n_units * t

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Offset of each level on the flat axis. The last entry is F."""
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
            m = level.n_units
            mlp = flat[..., end : end + m * t].reshape(*lead, m, t) if m else None
            cut.append(PerLevel(residual, attention, mlp))
        return cut

    def components(self, by_unit: bool = False) -> list[Component]:
        """List the components of each level in turn: residual, attention head by head, MLP.

        With `by_unit` the MLP is listed unit by unit.
        """
        found = []
        for i, level in enumerate(self.levels):
            found.append(Component(i, level.layer, level.residual_kind, -1, -1))
            found += [Component(i, level.layer, "attention", head, -1) for head in range(level.n_heads)]
            units = range(level.n_units) if by_unit else [-1] * min(level.n_units, 1)
            found += [Component(i, level.layer, "mlp", -1, unit) for unit in units]
        return found

    def component_numbers(self, by_unit: bool = False) -> numpy.ndarray:
        """Component of each edge, (F,) int32, as an index into `components`."""
        numbers = numpy.empty(self.size, dtype=numpy.int32)
        start = 0
        for level, view in zip(self.levels, self.views(numbers), strict=True):
            n_units = level.n_units if by_unit else min(level.n_units, 1)
            view.residual[:] = start
            if view.attention is not None:
                view.attention[...] = start + 1 + numpy.arange(level.n_heads)[:, None, None]
            if view.mlp is not None:
                view.mlp[...] = start + 1 + level.n_heads + numpy.arange(n_units)[:, None]
            start += 1 + level.n_heads + n_units
        return numbers

    def prefix(self, n_tokens: int) -> EdgeSpace:
        """The edges among the first tokens."""
        return EdgeSpace(self.levels, n_tokens)

    def copy_to(self, space: EdgeSpace, flat: numpy.ndarray, out: numpy.ndarray) -> None:
        """Copy values (F,) of edges to the same edges of another space of this model.

        Only edges among the first tokens are copied, as many tokens as both spaces have.
        """
        n = min(self.n_tokens, space.n_tokens)
        for place, values in zip(space.views(out), self.views(flat), strict=True):
            place.residual[:n] = values.residual[:n]
            if values.attention is not None:
                place.attention[:, :n, :n] = values.attention[:, :n, :n]
            if values.mlp is not None:
                place.mlp[:, :n] = values.mlp[:, :n]

    def flatten(self, levels: Sequence[PerLevel]) -> numpy.ndarray:
        """One float32 array (F,) from values per level."""
        flat = numpy.empty(self.size, dtype=numpy.float32)
        for view, values in zip(self.views(flat), levels, strict=True):
            for place, value in zip(view, values, strict=True):
                if place is not None:
                    place[...] = value.detach().float().cpu().numpy()
        return flat

    def columns(self, index: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """Level, layer, kind, head and unit of an MLP (-1 for none), source and target of edges (n,) of the flat axis."""
        t = self.n_tokens
        level = numpy.searchsorted(self.offsets, index, side="right") - 1
        inside = index - numpy.asarray(self.offsets)[level]
        heads = numpy.array([lv.n_heads for lv in self.levels])[level]
        is_residual = inside < t
        is_attention = ~is_residual & (inside < t + heads * t * t)
        is_mlp = ~is_residual & ~is_attention
        within = numpy.where(is_attention, inside - t, 0)
        of_mlp = numpy.where(is_mlp, inside - t - heads * t * t, 0)
        token = numpy.where(is_residual, inside, of_mlp % t)
        names = numpy.array([lv.residual_kind for lv in self.levels])[level]
        kind = numpy.where(is_residual, names, numpy.where(is_attention, "attention", "mlp"))
        return {
            "level": level,
            "layer": numpy.array([lv.layer for lv in self.levels])[level],
            "kind": kind,
            "head": numpy.where(is_attention, within // (t * t), -1),
            "unit": numpy.where(is_mlp, of_mlp // t, -1),
            "source": numpy.where(is_attention, within % t, token),
            "target": numpy.where(is_attention, within // t % t, token),
        }


@dataclass(frozen=True)
class BuiltUnits:
    """MLP edges whose vectors are at hand: the whole MLP, or experts, of which a token is sent to few.

    Args:
        vectors: (K, T, D), for each token those of K units.
        unit: (K, T) int64, which of the M units each is; M for none.
    """

    vectors: Tensor
    unit: Tensor
    n_units: int

    def each(self, measure: Callable[[Tensor, Tensor], Tensor], nodes: Tensor) -> Tensor:
        """Measure each edge, (M, T). See `LevelEdges.each_attention_edge`."""
        return self._by_unit(torch.stack([measure(v[:, None], nodes[:, None])[:, 0] for v in self.vectors]))

    def sizes(self, size: Callable[[Tensor], Tensor]) -> Tensor:
        """Size of each edge's vector, (M, T). See `LevelEdges.attention_sizes`."""
        return self._by_unit(size(self.vectors))

    def along(self, directions: Tensor) -> Tensor:
        """Product of each edge's vector with a direction (T, D) of its target, (M, T)."""
        return self._by_unit((self.vectors * directions).sum(-1))

    def sum(self) -> Tensor:
        """Sum of all edges' vectors, (T, D)."""
        return self.vectors.sum(0)

    def at(self, unit: int) -> Tensor:
        """Vectors of one unit, (T, D)."""
        return (self.vectors * (self.unit == unit)[..., None]).sum(0)

    def _by_unit(self, values: Tensor) -> Tensor:
        """Turn values by slot (K, T) into values by unit (M, T).

        A unit that a token is not sent to gets 0.
        """
        padded = values.new_zeros(self.n_units + 1, values.shape[1])
        return padded.scatter(0, self.unit, values)[:-1]


@dataclass(frozen=True)
class SeparableUnits:
    """MLP edges of neurons: unit m writes amounts[m, t] * writes[m] into token t. M x T x D numbers are never all built.

    Args:
        amounts: (M, T), the activation times the branch norm's scale at the token.
        writes: (M, D).
    """

    amounts: Tensor
    writes: Tensor

    def each(self, measure: Callable[[Tensor, Tensor], Tensor], nodes: Tensor) -> Tensor:
        """Measure each edge, (M, T), from vectors built for a few units at a time."""
        step = max(1, CHUNK_NUMBERS // nodes.numel())
        found = [
            measure(amounts.T[..., None] * writes, nodes[:, None])
            for amounts, writes in zip(self.amounts.split(step), self.writes.split(step), strict=True)
        ]
        return torch.cat(found, dim=1).T

    def sizes(self, size: Callable[[Tensor], Tensor]) -> Tensor:
        """Size of each edge's vector, (M, T): |amount| times one size per neuron."""
        return self.amounts.abs() * size(self.writes)[:, None]

    def along(self, directions: Tensor) -> Tensor:
        """Product of each edge's vector with a direction (T, D) of its target, (M, T)."""
        return self.amounts * (self.writes @ directions.T)

    def sum(self) -> Tensor:
        """Sum of all edges' vectors, (T, D)."""
        return self.amounts.T @ self.writes

    def at(self, unit: int) -> Tensor:
        """Vectors of one unit, (T, D)."""
        return self.amounts[unit, :, None] * self.writes[unit]


@dataclass(frozen=True)
class LevelEdges:
    """The edges into one level, with what their vectors are made of. Everything is float32.

    The vectors themselves, T x S x H x D numbers, are never all built. An attention edge's vector is

        weights[h, t, s] * scale[t] * (values of head h [s] * gate[t, h]) @ (output projection of head h)

    Args:
        residual: (T, D), the vectors of the residual edges.
        units: the vectors of the MLP edges, or None where no MLP leads into the level.
        weights: (H, T, S), attention after the softmax, or None.
        scale: (T,), the branch norm's scale at the target (1 without one).
        gate: (T, H, V), what multiplies the heads' outputs before the projection, or None for nothing.
        constant: (T, D), what is always on: biases, and what an MLP gives with all of its units off.
        node: (T, D), what all of these sum to.
    """

    level: Level
    residual: Tensor
    units: BuiltUnits | SeparableUnits | None
    weights: Tensor | None
    scale: Tensor
    gate: Tensor | None
    constant: Tensor
    node: Tensor
    _values: Tensor | None = None
    _write: Tensor | None = None

    @property
    def mlp(self) -> Tensor | None:
        """Sum of the MLP edges' vectors, (T, D), or None.

        At the grain of blocks, these are the vectors themselves.
        """
        return None if self.units is None else self.units.sum()

    def head(self, head: int) -> tuple[Tensor, Tensor]:
        """Values (S, V) and output projection (V, D)."""
        assert self._values is not None
        assert self._write is not None
        group = self._write.shape[0] // self._values.shape[0]
        return self._values[head // group], self._write[head]

    def attention_vectors(self, head: int, targets: slice = slice(None)) -> Tensor:
        """Vectors of a head's edges into some targets, (t, S, D)."""
        assert self.weights is not None
        values, write = self.head(head)
        size = self.weights[head, targets] * self.scale[targets, None]  # (t, S)
        if self.gate is None:
            return size[..., None] * (values @ write)
        return size[..., None] * ((values * self.gate[targets, head, None]) @ write)

    def each_attention_edge(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Measure each attention edge, (H, T, S), from vectors built for a few targets at a time.

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
        """Size of each attention edge's vector, (H, T, S).

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
        """Product of each attention edge's vector with its target's direction (T, D), (H, T, S)."""
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
        """Sum of the attention edges' vectors, (T, D)."""
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
        granularity: "block", "expert" or "neuron": what an MLP edge is.
    """

    model: Model
    ids: tuple[int, ...]
    logits: Tensor
    records: tuple[BlockRecord, ...]
    granularity: Granularity = "block"

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @cached_property
    def space(self) -> EdgeSpace:
        levels = (levels_of(block, len(record.weights), units) for block, record, units in self._blocks())
        return EdgeSpace(tuple(level for own in levels for level in own), self.n_tokens)

    def prefix(self, n_tokens: int, logits: Tensor) -> ForwardPass:
        """The pass up to an earlier token: in a causal model its edges do not depend on later ones.

        Args:
            logits: (vocabulary,) float32, after the last of the tokens that are kept.
        """
        records = tuple(record.prefix(n_tokens) for record in self.records)
        return replace(self, ids=self.ids[:n_tokens], logits=logits, records=records)

    def _blocks(self) -> Iterator[tuple[Block, BlockRecord, Units | None]]:
        """Each decoder block, what it did, and what its MLP edges are (None: one, the whole MLP)."""
        adapter = self.model.adapter
        return zip(adapter.blocks, self.records, adapter.units(self.granularity), strict=True)

    @cached_property
    def reachable(self) -> numpy.ndarray:
        """Edges that exist and from which the output can be reached, (F,) bool.

        They exist by each layer's own mask and router.
        """
        with self.model.running():
            return self._reachable()

    def _reachable(self) -> numpy.ndarray:
        t = self.n_tokens
        flat = numpy.zeros(self.space.size, dtype=bool)
        reached = numpy.zeros(t, dtype=bool)
        reached[-1] = True
        for level, view in zip(reversed(self.space.levels), reversed(self.space.views(flat)), strict=True):
            existing = self.existing(level)
            view.residual[:] = reached
            sources = reached.copy()
            if existing.mlp is not None:
                view.mlp[:] = existing.mlp.cpu().numpy() & reached
            if existing.attention is not None:
                attention = existing.attention.cpu().numpy() & reached[:, None]
                view.attention[...] = attention
                sources |= attention.any(axis=0)
            reached = sources
        return flat

    def existing(self, level: Level) -> PerLevel:
        """Edges into a level, by the layer's own mask and router, bool.

        residual (T,), attention (T, S) of every head or None, mlp (M, T) or None.
        """
        record = self.records[level.layer]
        everywhere = torch.ones_like(record.allowed[0])
        attention = record.allowed if level.n_heads else None
        mlp = self._routed(level.layer, everywhere) if level.n_units else None
        return PerLevel(everywhere, attention, mlp)

    def _routed(self, layer: int, everywhere: Tensor) -> Tensor:
        """Units of a layer's MLP that run for each token, (M, T) bool."""
        units = self.model.adapter.units(self.granularity)[layer]
        if not isinstance(units, Experts):
            return everywhere.expand(1 if units is None else units.n_units, -1)
        block, record = self.model.adapter.blocks[layer], self.records[layer]
        return units.routed(block, record.mlp_stream(block))

    @cached_property
    def block_costs(self) -> tuple[BlockCost, ...]:
        """What each decoder block costs, per token and head."""
        found = []
        with self.model.running():
            for block, record, units in self._blocks():
                sizes = (record.weights.shape[0], record.values.shape[0])
                found.append(block_cost(block, *sizes, record.key_size, record.values.shape[-1], units))
        return tuple(found)

    def block_masks(
        self, flat: Tensor, frozen: bool = False, means: Sequence[BlockMeans] | None = None
    ) -> list[BlockMask]:
        """Masks (K, F) over the flat edge axis, cut up by decoder block.

        Args:
            frozen: keep this pass's attention weights instead of recomputing them.
            means: what removed edges contribute, one per block; None for nothing.
        """
        return self.block_masks_of(self.space.views(flat), frozen, means)

    def block_masks_of(
        self, levels: Sequence[PerLevel], frozen: bool = False, means: Sequence[BlockMeans] | None = None
    ) -> list[BlockMask]:
        """Masks of each decoder block from masks (K, ...) of each level."""
        assert means is None or self.granularity == "block", "means are of whole MLPs"
        views = iter(levels)
        masks = []
        for block, record, units in self._blocks():
            weights = record.weights if frozen else None
            mean = means[block.index] if means is not None else None
            into = next(views)
            if block.layout.parallel:
                masks.append(BlockMask(None, into.attention, into.residual, into.mlp, weights, mean, units))
            else:
                out = next(views)
                masks.append(
                    BlockMask(into.residual, into.attention, out.residual, out.mlp, weights, mean, units)
                )
        return masks

    def levels(self) -> Iterator[LevelEdges]:
        """The edges into each level, from the input to the output, one level in memory at a time.

        Parts of the model are run on the way: take them within `model.running()`.
        """
        for block, record, units in self._blocks():
            yield from _edges_of_block(block, record, units)


def levels_of(block: Block, n_heads: int, units: Units | None = None) -> tuple[Level, ...]:
    """The levels of a block, first to last: one where attention and MLP run in parallel, else two.

    Args:
        units: what its MLP edges are; None for the whole MLP.
    """
    n_units = units.n_units if units is not None else 1
    if block.layout.parallel:
        return (Level(block.index, "residual", n_heads, n_units),)
    return (
        Level(block.index, "residual_attention", n_heads, 0),
        Level(block.index, "residual_mlp", 0, n_units),
    )


def _edges_of_block(block: Block, record: BlockRecord, units: Units | None) -> Iterator[LevelEdges]:
    weights = record.weights.float()
    write, scale, constant = attention_writes(block, record, weights.shape[0])
    gate = _gate(block, record)
    parallel = block.layout.parallel
    residual = record.residual_mlp if parallel else record.residual_attention
    node = record.mlp_sum if parallel else record.attention_sum
    assert residual is not None
    assert node is not None
    mlp, always = _mlp_units(block, record, units)
    levels = levels_of(block, len(weights), units)
    yield LevelEdges(
        levels[0],
        residual.float(), mlp if parallel else None, weights, scale, gate,
        constant + always if parallel else constant, node.float(), record.values.float(), write,
    )  # fmt: skip
    if not parallel:
        yield LevelEdges(
            levels[1],
            record.residual_mlp.float(), mlp, None, torch.ones_like(scale), None, always, record.mlp_sum.float(),
        )  # fmt: skip


def _mlp_units(
    block: Block, record: BlockRecord, units: Units | None
) -> tuple[BuiltUnits | SeparableUnits, Tensor]:
    """The vectors of a block's MLP edges, and what its MLP adds with all of them off, (T, D).

    The MLP runs once more on the stream that it got, and what its units write goes through the branch norm at its actual
    scale: nothing of the size of an MLP's activations is kept for all layers.
    """
    added = record.mlp.float()
    if units is None:
        none = torch.zeros(1, len(added), dtype=torch.int64, device=added.device)
        return BuiltUnits(added[None], none, 1), torch.zeros_like(added)
    stream = record.mlp_stream(block)
    if isinstance(units, Neurons):
        activations, output = units.read(block, stream)
        branch = _branch(block, block.layout.mlp_branch_norm, output, record.mlp)
        found: BuiltUnits | SeparableUnits = SeparableUnits(
            activations.T * branch.scale, branch.written(units.writes)
        )
    else:
        vectors, unit, output = units.read(block, stream)
        branch = _branch(block, block.layout.mlp_branch_norm, output, record.mlp)
        found = BuiltUnits(branch.written(vectors) * branch.scale[:, None], unit, units.n_units)
    always = branch.always(units.constant.to(added.device))
    gap = float((found.sum() + always - added).norm() / added.norm().clamp_min(1e-30))
    if gap > units_tolerance(record.mlp.dtype):
        raise IdentityError(
            f"in layer {block.index}, the {type(units).__name__.lower()} of {type(block.module).__name__} do not sum to its "
            f"MLP's output on this text (off by {gap:.1e}), though they did at loading; use granularity='block'"
        )
    return found, always


@dataclass(frozen=True)
class _Branch:
    """How what a branch's output projection writes reaches the stream: through a norm at its actual scale.

    Args:
        scale: (T,), one without a norm.
    """

    scale: Tensor
    norm: Norm | None
    multiplier: float

    def written(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) with all but the scale: the norm's weight, and the mean that it takes off."""
        if self.norm is None:
            return vectors if self.multiplier == 1.0 else vectors * self.multiplier
        if self.norm.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * self.norm.weight * self.multiplier

    def always(self, constant: Tensor) -> Tensor:
        """Return what a constant (T, D) or (D,) becomes by the norm, (T, D).

        The norm's own constant is added.
        """
        if self.norm is None:
            return constant.expand(len(self.scale), -1) * self.multiplier
        if self.norm.centred:
            constant = constant - constant.mean(-1, keepdim=True)
        return (self.norm.constant + self.scale[:, None] * self.norm.weight * constant) * self.multiplier


def _branch(block: Block, norm: str | None, before: Tensor, added: Tensor) -> _Branch:
    """The branch whose projection wrote `before` (T, D), of which `added` (T, D) reached the stream."""
    if norm is None:
        return _Branch(torch.ones(len(added), device=added.device), None, block.multiplier)
    how = linearise(block.child(norm), before, added / block.multiplier)
    return _Branch(how.scale, how, block.multiplier)


def attention_writes(block: Block, record: BlockRecord, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each head writes per unit of value (H, V, D), the scale at each target (T,) and the constant (T, D).

    A branch norm is linear at its actual scale: its weight, and the mean it takes off, go into the writes.
    """
    projection = block.projection
    write = head_weights(projection, n_heads, record.projection_input, record.projected)
    always = constant_of(projection, record.projection_input)
    constant = write.new_zeros(record.stream.shape[0], write.shape[-1]) if always is None else always
    _refuse_another_attention(block, record)
    branch = _branch(block, block.layout.attention_branch_norm, record.projected, record.attention)
    return branch.written(write), branch.scale, branch.always(constant)


def _refuse_another_attention(block: Block, record: BlockRecord) -> None:
    """Refuse a block whose attention adds something other than what its output projection wrote.

    A hook may change it in between. A norm that follows the projection may too, so such blocks are
    not checked.
    """
    if block.layout.attention_branch_norm is not None:
        return  # `linearise` holds the norm to both
    added = record.attention.float()
    gap = float(
        (added - record.projected.float().view_as(added) * block.multiplier).norm()
        / added.norm().clamp_min(1e-30)
    )
    if not gap <= branch_tolerance(record.attention.dtype):
        hooks = describe_hooks(block.attention)
        raise IdentityError(
            f"in layer {block.index}, what {type(block.attention).__name__} adds to the stream is not what its output projection "
            f"wrote (off by {gap:.1e}), so its edges do not sum to it"
            + (
                f": hooks change its output ({hooks}); remove them (handle.remove())"
                if hooks
                else "; it cannot be measured"
            )
        )


def _gate(block: Block, record: BlockRecord) -> Tensor | None:
    """Factor of the heads' outputs before the projection, at its actual size, (T, H, V).

    None where there is none.

    Without a gate the projection must read just what the attention function returned: weights @ values.
    """
    group = record.weights.shape[0] // record.values.shape[0]
    values = record.values.to(record.weights.dtype).repeat_interleave(group, dim=0)
    heads = torch.matmul(record.weights, values).transpose(0, 1).float()  # (T, H, V)
    return gate_of(block, record, heads)


def gate_of(block: Block, record: BlockRecord, heads: Tensor) -> Tensor | None:
    """`_gate` from the heads' outputs (T, H, V) that the attention function returned."""
    got = record.projection_input.float().view(heads.shape)
    if block.gated:
        return torch.where(heads == 0, 0.0, got / heads)
    gap = float((got - heads).norm() / heads.norm().clamp_min(1e-30))
    if gap > branch_tolerance(record.projection_input.dtype):
        raise IdentityError(
            f"in layer {block.index}, {type(block.attention).__name__} hands its output projection something else than the "
            f"heads' outputs on this text (off by {gap:.1e}), though not on the probe at loading; it cannot be measured"
        )
    return None


def run_forward(
    model: Model, ids: Sequence[int], position: int = -1, granularity: Granularity = "block"
) -> tuple[ForwardPass, int]:
    """Record the model's run up to a position.

    Args:
        ids: token ids of the whole input.
        position: index of the token whose next-token prediction is measured; negative counts from the end.
        granularity: what an MLP edge is: "block", the whole MLP; "expert", one expert of a mixture; "neuron".

    Returns:
        The pass over ids[: position + 1], and the position counted from the start.

    Raises:
        InputError: the position is out of range, or the grain is unknown.
        ModelError: the model's MLPs cannot be taken apart so.
    """
    if granularity not in GRANULARITIES:
        raise InputError(f"unknown granularity {granularity!r}; expected one of {', '.join(GRANULARITIES)}")
    position = checked_position(ids, position)
    kept = tuple(ids[: position + 1])
    model.adapter.units(granularity)
    records, logits = model.adapter.capture(kept)
    return ForwardPass(model, kept, logits, tuple(records), granularity), position


def checked_position(ids: Sequence[int], position: int) -> int:
    """A position counted from the start.

    Raises:
        InputError: it is out of range.
    """
    try:
        position = checked_integer("position", position)
    except ArgumentTypeError as error:
        raise InputError(str(error)) from None
    if not -len(ids) <= position < len(ids):
        raise InputError(
            f"position {position} is out of range: the input has {len(ids)} tokens, so positions go from "
            f"{-len(ids)} to {len(ids) - 1}"
        )
    return position % len(ids)
