"""Edges between residual streams in one forward pass: axis legend, edge space, edge vectors.

A node is the residual stream of one token at one half-layer. The nodes of one half-layer form a
*level*. The levels of a model are a chain, and every edge leads from one level into the next:

    sequential block    level "mid": residual_attention, attention    level "out": residual_mlp, mlp
    parallel block      level "out": residual, attention, mlp

Each edge carries a vector that is added into its target. The vectors of a node's incoming edges sum
to the node, up to additive constants (biases), which are always on and are not edges.

The MLP of a block is one edge per token, or, at a finer *granularity*, one edge per token and unit.
A unit is an expert or a neuron (`models/units.py`). The vectors of an MLP's units sum to the MLP's
output. What is left with all of them off is a constant.

Edges are numbered along one flat axis F, level after level. Within a level come residual edges by
token, attention edges by (head, target, source), then MLP edges by (unit, token). Every importance,
key and mask of this package is an array over F, and `EdgeSpace.views` cuts such an array into
levels without a copy.

What this file does not do: it does not compute importances (`importance/`) or choose edges
(`growth.py`).

Axes, here and everywhere:
    L layers    H query heads    G key-value heads    T target tokens    S source tokens
    D hidden size    V value head size    M units of an MLP (1 at granularity "block")
    F flat edge axis, all edges that could exist    E edges that can reach the output
    K variants (traces) that are run together
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy
import torch
from torch import Tensor

from .._util.arguments import checked_integer
from ..errors import ArgumentTypeError, IdentityError, InputError
from ..models.blocks import Block, BlockMask, BlockOfAnotherRun, BlockRecord, StandIns
from ..models.conditions import describe_hooks
from ..models.counting import BlockCost
from ..models.linear import Norm, constant_of, head_weights, linearise
from ..models.loading import Model
from ..models.tolerances import branch_tolerance, units_tolerance
from ..models.units import GRANULARITIES, Experts, Granularity, Neurons, Units
from .targets import TargetScore

CHUNK_NUMBERS = 2**24  # numbers of edge vectors in memory at once, 64 MiB


class PerLevel(NamedTuple):
    """One value for each edge into one level. All arrays may have further leading axes (variants).

    Args:
        residual: (T,), of residual edges.
        attention: (H, T, S), of attention edges; None where no attention leads into the level.
        mlp: (M, T), of MLP edges; None where no MLP leads into the level.
    """

    residual: Any
    attention: Any
    mlp: Any


@dataclass(frozen=True)
class Level:
    """The nodes of one half-layer, and the kinds of edges that lead into them.

    Args:
        layer: index of the decoder block.
        residual_kind: "residual_attention", "residual_mlp" or "residual".
        n_heads: number of query heads; 0 where no attention leads into the level.
        n_units: number of units of the MLP; 0 where no MLP leads into the level.
    """

    layer: int
    residual_kind: str
    n_heads: int
    n_units: int


class Component(NamedTuple):
    """Edges into one level that are counted together: a head's, an MLP's or the residual edges.

    Args:
        level: index of the level.
        layer: index of the decoder block.
        kind: kind of the edges.
        head: the attention head; -1 for another kind.
        unit: the unit of the MLP; -1 for another kind, or for the whole MLP.
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
        """Number of edges that could exist, F."""
        return self.offsets[-1]

    def views(self, flat: Any) -> list[PerLevel]:
        """Cut an array or tensor (..., F) into its levels, without a copy."""
        t = self.n_tokens
        cut = []
        # offsets has one entry more, F, which no level begins at
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

        Args:
            by_unit: whether to list each unit of an MLP as a component instead of the whole MLP.
        """
        components = []
        for i, level in enumerate(self.levels):
            components.append(Component(i, level.layer, level.residual_kind, -1, -1))
            components += [Component(i, level.layer, "attention", head, -1) for head in range(level.n_heads)]
            units = range(level.n_units) if by_unit else [-1] * min(level.n_units, 1)
            components += [Component(i, level.layer, "mlp", -1, unit) for unit in units]
        return components

    def component_numbers(self, by_unit: bool = False) -> numpy.ndarray:
        """Component of each edge, (F,) int32, as an index into what `components` lists."""
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
        """Edge space of the first tokens alone."""
        return EdgeSpace(self.levels, n_tokens)

    def copy_to(self, space: EdgeSpace, flat: numpy.ndarray, out: numpy.ndarray) -> None:
        """Copy a value per edge to the same edges in the edge space of a shorter or longer input.

        Only edges among the first tokens that both inputs have are copied.

        Args:
            space: the other edge space, of the same model.
            flat: (F,), the values to copy.
            out: (F of the other space,), the array to write to.
        """
        n = min(self.n_tokens, space.n_tokens)
        for place, values in zip(space.views(out), self.views(flat), strict=True):
            place.residual[:n] = values.residual[:n]
            if values.attention is not None:
                place.attention[:, :n, :n] = values.attention[:, :n, :n]
            if values.mlp is not None:
                place.mlp[:, :n] = values.mlp[:, :n]

    def flatten(self, levels: Sequence[PerLevel]) -> numpy.ndarray:
        """Join values per level into one array, (F,) float32, on the CPU."""
        flat = numpy.empty(self.size, dtype=numpy.float32)
        for view, values in zip(self.views(flat), levels, strict=True):
            for place, value in zip(view, values, strict=True):
                if place is not None:
                    place[...] = value.detach().float().cpu().numpy()
        return flat

    def index_of(self, columns: Mapping[str, numpy.ndarray]) -> numpy.ndarray:
        """Return the indices of edges on the flat axis, (n,) int64. It is the inverse of `columns`.

        Args:
            columns: level, kind, head, source and target, (n,) each. An MLP is one edge.
        """
        t, level = self.n_tokens, columns["level"].astype(numpy.int64)
        heads = numpy.array([lv.n_heads for lv in self.levels])[level]
        attention = t + (columns["head"].astype(numpy.int64) * t + columns["target"]) * t + columns["source"]
        mlp = t + heads * t * t + columns["target"]
        kind = columns["kind"].astype(str)
        inside = numpy.where(
            kind == "attention", attention, numpy.where(kind == "mlp", mlp, columns["target"])
        )
        return numpy.asarray(self.offsets)[level] + inside

    def columns(self, index: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """Describe edges by their place in the model.

        Args:
            index: (n,) integers, edges of the flat axis.

        Returns:
            Arrays (n,) by name: level, layer, kind, head and unit (-1 where an edge has none), and
            the tokens source and target.
        """
        t = self.n_tokens
        level = numpy.searchsorted(self.offsets, index, side="right") - 1
        inside = index - numpy.asarray(self.offsets)[level]  # offset within the level
        heads = numpy.array([lv.n_heads for lv in self.levels])[level]
        # within a level: T residual edges, H T S attention edges, M T MLP edges
        is_residual = inside < t
        is_attention = ~is_residual & (inside < t + heads * t * t)
        is_mlp = ~is_residual & ~is_attention
        within = numpy.where(is_attention, inside - t, 0)  # head T S + target S + source
        of_mlp = numpy.where(is_mlp, inside - t - heads * t * t, 0)  # unit T + token
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
    """MLP edges whose vectors are stored: those of whole MLPs, or of the few experts of each token.

    Args:
        vectors: (K, T, D), for each token the vectors of K units.
        unit: (K, T) int64, the unit of each vector, 0 to M - 1; M for an empty slot.
        n_units: number of units, M.
    """

    vectors: Tensor
    unit: Tensor
    n_units: int

    def each(self, measure: Callable[[Tensor, Tensor], Tensor], nodes: Tensor) -> Tensor:
        """Compute a number per MLP edge from its vector and its target node, (M, T).

        Args:
            measure: maps vectors (T, 1, D) and their nodes (T, 1, D) to (T, 1).
            nodes: (T, D).
        """
        return self._by_unit(torch.stack([measure(v[:, None], nodes[:, None])[:, 0] for v in self.vectors]))

    def sizes(self, size: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the size of each MLP edge's vector, (M, T). `size` maps (..., D) to (...)."""
        return self._by_unit(size(self.vectors))

    def along(self, directions: Tensor) -> Tensor:
        """Dot product of each MLP edge's vector with the direction of its target, (M, T).

        Args:
            directions: (T, D), one direction per target.
        """
        return self._by_unit((self.vectors * directions).sum(-1))

    def sum(self) -> Tensor:
        """Sum of the MLP edges' vectors into each target, (T, D)."""
        return self.vectors.sum(0)

    def at(self, unit: int) -> Tensor:
        """Return the vector that one unit adds to the stream of each token, (T, D)."""
        return (self.vectors * (self.unit == unit)[..., None]).sum(0)

    def _by_unit(self, values: Tensor) -> Tensor:
        """Turn values by slot (K, T) into values by unit (M, T).

        A unit to which a token is not routed gets 0.
        """
        # (M + 1, T): values of empty slots go to row M, which is dropped
        padded = values.new_zeros(self.n_units + 1, values.shape[1])
        return padded.scatter(0, self.unit, values)[:-1]


@dataclass(frozen=True)
class SeparableUnits:
    """MLP edges of neurons, whose vectors are products: amounts[m, t] * writes[m].

    All M x T x D numbers are never built at once.

    Args:
        amounts: (M, T), the activation times the branch norm's scale at the token.
        writes: (M, D), the vector that each neuron writes per unit of activation.
    """

    amounts: Tensor
    writes: Tensor

    def each(self, measure: Callable[[Tensor, Tensor], Tensor], nodes: Tensor) -> Tensor:
        """Compute a number per MLP edge from its vector and its target node, (M, T).

        Vectors are built for a few neurons at a time.

        Args:
            measure: maps vectors (T, m, D) and their nodes (T, 1, D) to (T, m).
            nodes: (T, D).
        """
        step = max(1, CHUNK_NUMBERS // nodes.numel())
        values = [
            measure(amounts.T[..., None] * writes, nodes[:, None])
            for amounts, writes in zip(self.amounts.split(step), self.writes.split(step), strict=True)
        ]
        return torch.cat(values, dim=1).T

    def sizes(self, size: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the size of each MLP edge's vector, (M, T): |amount| times a size per neuron.

        Args:
            size: function from vectors (..., D) to sizes (...) with size(a v) = |a| size(v), as
                norms have it.
        """
        return self.amounts.abs() * size(self.writes)[:, None]

    def along(self, directions: Tensor) -> Tensor:
        """Dot product of each MLP edge's vector with the direction of its target, (M, T).

        Args:
            directions: (T, D), one direction per target.
        """
        return self.amounts * (self.writes @ directions.T)

    def sum(self) -> Tensor:
        """Sum of the MLP edges' vectors into each target, (T, D)."""
        return self.amounts.T @ self.writes

    def at(self, unit: int) -> Tensor:
        """Return the vector that one unit adds to the stream of each token, (T, D)."""
        return self.amounts[unit, :, None] * self.writes[unit]


@dataclass(frozen=True)
class LevelEdges:
    """The edges into one level, with the factors of their vectors. All numbers are float32.

    The vectors of attention edges, H x T x S x D numbers, are never all built. The vector of head h
    from source s into target t is

        weights[h, t, s] * scale[t] * (values[h, s] * gate[t, h]) @ write[h]

    with values[h, s] (V,) the head's value and write[h] (V, D) its rows of the output projection.

    Args:
        level: the level.
        residual: (T, D), the vectors of the residual edges.
        units: the vectors of the MLP edges; None where no MLP leads into the level.
        weights: (H, T, S), attention after the softmax; None where no attention leads into it.
        scale: (T,), the branch norm's scale at the target; 1 without a branch norm.
        gate: (T, H, V), factors of the heads' outputs before the projection; None for no gate.
        constant: (T, D), what is always on: biases, and what an MLP adds with all units off.
        node: (T, D), the sum of all edges' vectors and the constant.
        values: (G, S, V), values of the key-value heads; None where no attention leads into the
            level.
    """

    level: Level
    residual: Tensor
    units: BuiltUnits | SeparableUnits | None
    weights: Tensor | None
    scale: Tensor
    gate: Tensor | None
    constant: Tensor
    node: Tensor
    values: Tensor | None = None
    _write: Tensor | None = None

    @property
    def mlp(self) -> Tensor | None:
        """Sum of the MLP edges' vectors into each target, (T, D). None without an MLP.

        At granularity "block", these are the vectors themselves.
        """
        return None if self.units is None else self.units.sum()

    def head(self, head: int) -> tuple[Tensor, Tensor]:
        """Values (S, V) of a query head, and its rows of the output projection (V, D)."""
        assert self.values is not None
        assert self._write is not None
        # H / G query heads share a key-value head
        group = self._write.shape[0] // self.values.shape[0]
        return self.values[head // group], self._write[head]

    def attention_vectors(self, head: int, targets: slice = slice(None)) -> Tensor:
        """Build the vectors of a head's edges into some targets, (t, S, D)."""
        assert self.weights is not None
        values, write = self.head(head)
        size = self.weights[head, targets] * self.scale[targets, None]  # (t, S)
        if self.gate is None:
            return size[..., None] * (values @ write)
        return size[..., None] * ((values * self.gate[targets, head, None]) @ write)

    def attention_changes(self, other: LevelEdges) -> Tensor:
        """Norm of the difference between each attention edge's vectors in two runs, (H, T, S).

        Both vectors are computed with the gate and the branch norm's scale of this run.
        """
        there = replace(self, weights=other.weights, values=other.values)
        assert self.weights is not None
        norms = torch.empty_like(self.weights)
        n_tokens, hidden_size = self.node.shape
        rows = max(1, CHUNK_NUMBERS // (n_tokens * hidden_size))
        for head in range(len(norms)):
            for start in range(0, n_tokens, rows):
                t = slice(start, start + rows)
                # (t, S, D)
                change = self.attention_vectors(head, t) - there.attention_vectors(head, t)
                norms[head, t] = change.norm(dim=-1)
        return norms

    def each_attention_edge(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Compute a number per attention edge from its vector and its target node, (H, T, S).

        Vectors are built for a few targets at a time.

        Args:
            measure: maps vectors (t, S, D) and their nodes (t, 1, D) to (t, S).
        """
        assert self.weights is not None
        values = torch.empty_like(self.weights)  # (H, T, S)
        n_tokens, hidden_size = self.node.shape
        rows = max(1, CHUNK_NUMBERS // (n_tokens * hidden_size))
        for head in range(len(self.weights)):
            for start in range(0, n_tokens, rows):
                t = slice(start, start + rows)
                values[head, t] = measure(self.attention_vectors(head, t), self.node[t, None])
        return values

    def attention_sizes(self, size: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the size of each attention edge's vector, (H, T, S).

        Without a gate, one size per head and source is enough: the size of a weight times a vector
        is the weight times the vector's size. With a gate, the vectors are computed.

        Args:
            size: function from vectors (..., D) to sizes (...) with size(a v) = |a| size(v), as
                norms have it.
        """
        if self.gate is not None:
            return self.each_attention_edge(lambda vectors, _: size(vectors))
        assert self.weights is not None
        return self.weights * self.written_sizes(size)[:, None] * self.scale[:, None]

    def written_sizes(self, size: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the size of what each head writes from each source with weight 1, (H, S)."""
        # head by head, as the vectors of all heads together would be (H, S, D)
        return torch.stack([size(self.written(h)) for h in range(self.level.n_heads)])

    def written(self, head: int) -> Tensor:
        """Return what a head writes from each source with attention weight 1, (S, D)."""
        return torch.matmul(*self.head(head))

    def sizes(self, size: Callable[[Tensor], Tensor]) -> PerLevel:
        """Compute the size of every edge's vector: residual (T,), attention (H, T, S), mlp (M, T).

        Args:
            size: function from vectors (..., D) to sizes (...) with size(a v) = |a| size(v), as
                norms have it.
        """
        attention = None if self.weights is None else self.attention_sizes(size)
        mlp = None if self.units is None else self.units.sizes(size)
        return PerLevel(size(self.residual), attention, mlp)

    def attention_along(self, directions: Tensor) -> Tensor:
        """Dot product of each attention edge's vector with the direction of its target, (H, T, S).

        No vector is built.

        Args:
            directions: (T, D), one direction per target.
        """
        assert self.weights is not None
        reads = self.read_back(directions)
        return torch.stack(
            [weights * (reads[h] @ self.head(h)[0].T) for h, weights in enumerate(self.weights)]
        )

    def read_back(self, directions: Tensor) -> Tensor:
        """Multiply directions (T, D) by the transposed output projection of each head, (H, T, V).

        The dot product of an attention edge's vector with a direction is then the edge's weight
        times the dot product of its source's value with the result.
        """
        heads = []
        for head in range(self.level.n_heads):
            _, write = self.head(head)
            read = (directions * self.scale[:, None]) @ write.T  # (T, V)
            heads.append(read if self.gate is None else read * self.gate[:, head])
        return torch.stack(heads)

    def attention_sum(self) -> Tensor:
        """Sum of the attention edges' vectors into each target, (T, D)."""
        total = torch.zeros_like(self.node)
        if self.weights is None:
            return total
        for head, weights in enumerate(self.weights):
            values, write = self.head(head)
            mixed = weights @ values  # (T, V)
            total += (mixed if self.gate is None else mixed * self.gate[:, head]) @ write
        return total * self.scale[:, None]


@dataclass(frozen=True)
class ForwardPass:
    """One recorded run of a model on one input, up to one position.

    Args:
        model: the model.
        ids: token ids up to and including the position.
        logits: (vocabulary,) float32, after the last of these tokens.
        records: the recorded activations of each decoder block.
        granularity: what an MLP edge is: "block", "expert" or "neuron".
        dtype: dtype of the module when it was recorded; None where that is not known.
        target: the function of the logits of which importances take gradients; None for the whole
            distribution.
        counterfactual: the pass of another input with the same number of tokens. In masked runs, an
            edge that is off carries its vector of that pass. None if it carries nothing.
    """

    model: Model
    ids: tuple[int, ...]
    logits: Tensor
    records: tuple[BlockRecord, ...]
    granularity: Granularity = "block"
    dtype: torch.dtype | None = None
    target: TargetScore | None = None
    counterfactual: ForwardPass | None = None
    stored: ClassVar[bool] = True

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @cached_property
    def space(self) -> EdgeSpace:
        levels = (levels_of(block, len(record.weights), units) for block, record, units in self._blocks())
        return EdgeSpace(tuple(level for of_block in levels for level in of_block), self.n_tokens)

    def prefix(self, n_tokens: int, logits: Tensor) -> ForwardPass:
        """Cut this pass to its first tokens. In a causal model their edges do not change.

        Args:
            n_tokens: number of tokens to keep.
            logits: (vocabulary,) float32, after the last token that is kept.
        """
        records = tuple(record.prefix(n_tokens) for record in self.records)
        other = self.counterfactual
        if other is not None:
            # nothing reads the logits of a counterfactual
            other = other.prefix(n_tokens, other.logits)
        return replace(self, ids=self.ids[:n_tokens], logits=logits, records=records, counterfactual=other)

    @cached_property
    def stand_ins(self) -> tuple[StandIns, ...] | None:
        """Vectors that removed edges contribute, by block. None without a counterfactual."""
        if self.counterfactual is None:
            return None
        return tuple(BlockOfAnotherRun.of(record) for record in self.counterfactual.records)

    def _blocks(self) -> Iterator[tuple[Block, BlockRecord, Units | None]]:
        """Iterate over the decoder blocks, each with its record and the units of its MLP.

        The units are None where the whole MLP is one edge.
        """
        adapter = self.model.adapter
        return zip(adapter.blocks, self.records, adapter.units(self.granularity), strict=True)

    @cached_property
    def reachable(self) -> numpy.ndarray:
        """Edges that exist and from which the output can be reached, (F,) bool.

        An edge exists where its layer's own mask and router allow it.
        """
        from .growth import NOWHERE, bottleneck_keys  # which stands on this file

        exists = numpy.empty(self.space.size, dtype=bool)
        with self.model.running():
            for level, view in zip(self.space.levels, self.space.views(exists), strict=True):
                for place, there in zip(view, self.existing(level), strict=True):
                    if place is not None:
                        place[...] = there.cpu().numpy()
        # an edge has a key where a path leads on to the output, whatever its importance
        alike = numpy.zeros(self.space.size, dtype=numpy.float32)
        return bottleneck_keys(self.space, alike, exists) > NOWHERE

    def existing(self, level: Level) -> PerLevel:
        """Which edges into a level exist, by the layer's own mask and router, bool.

        Returns:
            residual (T,); attention (T, S), the same for every head, or None; mlp (M, T) or None.
        """
        record = self.records[level.layer]
        everywhere = torch.ones_like(record.allowed[0])
        attention = record.allowed if level.n_heads else None
        mlp = self._routed(level.layer, everywhere) if level.n_units else None
        return PerLevel(everywhere, attention, mlp)

    def _routed(self, layer: int, everywhere: Tensor) -> Tensor:
        """Which units of a layer's MLP run for each token, (M, T) bool.

        Args:
            everywhere: (T,) bool, all True.
        """
        units = self.model.adapter.units(self.granularity)[layer]
        if not isinstance(units, Experts):
            return everywhere.expand(1 if units is None else units.n_units, -1)
        block, record = self.model.adapter.blocks[layer], self.records[layer]
        return units.routed(block, record.mlp_stream(block))

    @cached_property
    def block_costs(self) -> tuple[BlockCost, ...]:
        """Cost of each decoder block, per token and head, in operations and parameters."""
        costs = []
        for block, record, units in self._blocks():
            sizes = (
                record.weights.shape[0],
                record.values.shape[0],
                record.key_size,
                record.values.shape[-1],
            )
            costs.append(self.model.adapter.cost_of(block, *sizes, units))
        return tuple(costs)

    @property
    def run_sizes(self) -> tuple[int, int, int, int, int]:
        """Sizes on which the memory of a masked run depends (`masked_runs.batch_size`)."""
        record = self.records[0]
        n_units = max(level.n_units for level in self.space.levels)
        return record.weights.shape[0], record.stream.shape[-1], self.n_tokens, self.space.size, n_units

    def masks_of(
        self, sets: Sequence[numpy.ndarray], frozen: bool, means: Sequence[StandIns] | None
    ) -> tuple[list[BlockMask], Callable[[], None]]:
        """Return the masks of each decoder block for K sets of edges, (F,) bool each.

        Args:
            frozen, means: as for `block_masks`.

        Returns:
            The masks.
            A function to call after the run, as in `TiledPass.masks_of`. Here it does nothing.
        """
        flat = torch.from_numpy(numpy.stack(sets)).to(self.logits.device)
        return self.block_masks(flat, frozen, means), lambda: None

    def block_masks(
        self, flat: Tensor, frozen: bool = False, means: Sequence[StandIns] | None = None
    ) -> list[BlockMask]:
        """Cut masks over the flat edge axis into one mask per decoder block.

        Args:
            flat: (K, F), the masks of K variants.
            frozen: whether to keep this pass's attention weights instead of recomputing them.
            means: mean vectors that removed edges contribute, one entry per block. None for their
                vectors in the counterfactual, or for zeros if there is none.
        """
        return self.block_masks_of(self.space.views(flat), frozen, means)

    def block_masks_of(
        self, levels: Sequence[PerLevel], frozen: bool = False, means: Sequence[StandIns] | None = None
    ) -> list[BlockMask]:
        """Join masks of levels into one mask per decoder block.

        Args:
            levels: one per level, each with a leading axis K of variants.
            frozen: whether to keep this pass's attention weights instead of recomputing them.
            means: mean vectors that removed edges contribute, one entry per block. None for their
                vectors in the counterfactual, or for zeros if there is none.
        """
        stand_ins = means if means is not None else self.stand_ins
        weights = [record.weights for record in self.records] if frozen else None
        return block_masks_of(self.model, levels, self.granularity, stand_ins, weights)

    @property
    def stream(self) -> Tensor:
        """Residual stream into the first block, (T, D)."""
        return self.records[0].stream

    def levels_with(self, level: int) -> dict[int, LevelEdges]:
        """Return the edges into a level, and into all others, by index."""
        with self.model.running():
            return dict(enumerate(self.levels()))

    def levels(self) -> Iterator[LevelEdges]:
        """Iterate over the edges into each level, from the input to the output.

        One level is in memory at a time. Parts of the model are run during the iteration, so
        iterate within `model.running()`.
        """
        for block, record, units in self._blocks():
            yield from edges_of_block(block, record, units)


def block_masks_of(
    model: Model,
    levels: Sequence[PerLevel],
    granularity: Granularity,
    stand_ins: Sequence[StandIns] | None,
    weights: Sequence[Tensor] | None = None,
) -> list[BlockMask]:
    """Join masks of levels into one mask per decoder block.

    Args:
        levels: one per level, each with a leading axis K of variants.
        stand_ins: vectors that removed edges contribute, one entry per block; None for zeros.
        weights: attention weights (H, T, S) to keep, one per block; None to recompute them.
    """
    assert stand_ins is None or granularity == "block", "stand-ins are of whole MLPs"
    views, masks = iter(levels), []
    for i, (block, units) in enumerate(
        zip(model.adapter.blocks, model.adapter.units(granularity), strict=True)
    ):
        # a parallel block has one level, a sequential one two: attention's, then the MLP's
        into = next(views)
        out = into if block.layout.parallel else next(views)
        residual = None if block.layout.parallel else into.residual
        masks.append(
            BlockMask(
                residual,
                into.attention,
                out.residual,
                out.mlp,
                attention_weights=None if weights is None else weights[i],
                stand_ins=None if stand_ins is None else stand_ins[i],
                units=units,
            )
        )
    return masks


def levels_of(block: Block, n_heads: int, units: Units | None = None) -> tuple[Level, ...]:
    """Levels of a decoder block, first to last: one where attention and MLP are parallel, else two.

    Args:
        block: the block.
        n_heads: number of its query heads.
        units: the units of its MLP; None where the whole MLP is one edge.
    """
    n_units = units.n_units if units is not None else 1
    if block.layout.parallel:
        return (Level(block.index, "residual", n_heads, n_units),)
    return (
        Level(block.index, "residual_attention", n_heads, 0),
        Level(block.index, "residual_mlp", 0, n_units),
    )


def edges_of_block(
    block: Block, record: BlockRecord, units: Units | None, heads: Tensor | None = None
) -> Iterator[LevelEdges]:
    """Make the edges into each level of a decoder block from its record.

    Args:
        heads: (T, H, V), the heads' outputs, needed if the record has no attention weights
            (`capture_tiles`).
    """
    weights = record.weights.float()  # (H, T, S)
    # (H, V, D), (T,) and (T, D)
    write, scale, constant = attention_writes(block, record, weights.shape[0])
    # (T, H, V) or None
    gate = _gate(block, record) if heads is None else gate_of(block, record, heads.float())
    parallel = block.layout.parallel
    # The attention is added in the first level; in a parallel block the MLP is added there too.
    residual = record.residual_mlp if parallel else record.residual_attention
    node = record.mlp_sum if parallel else record.attention_sum
    assert residual is not None
    assert node is not None
    # always: (T, D), the MLP's constant
    mlp, always = mlp_edges(block, lambda: record.mlp_stream(block), record.mlp, units)
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


def mlp_edges(
    block: Block, stream_of: Callable[[], Tensor], into: Tensor, units: Units | None
) -> tuple[BuiltUnits | SeparableUnits, Tensor]:
    """Find the vectors of a block's MLP edges, and what the MLP adds with all of them off.

    At a finer granularity the MLP runs again on its recorded input, and its units' vectors are
    multiplied by the branch norm at its actual scale. So the activations of the MLPs need not be
    kept for all layers.

    Args:
        block: the block.
        stream_of: function that computes the MLP's input, (T, D).
        into: (T, D), what the MLP added to the stream.
        units: the units of the MLP; None where the whole MLP is one edge.

    Returns:
        The MLP edges.
        The MLP's constant, (T, D).

    Raises:
        IdentityError: the units' vectors do not sum to what the MLP added in this pass.
    """
    added = into.float()
    if units is None:
        none = torch.zeros(1, len(added), dtype=torch.int64, device=added.device)
        return BuiltUnits(added[None], none, 1), torch.zeros_like(added)
    stream = stream_of()
    if isinstance(units, Neurons):
        activations, output = units.read(block, stream)
        branch = _branch(block, block.layout.mlp_branch_norm, output, into)
        edges: BuiltUnits | SeparableUnits = SeparableUnits(
            activations.T * branch.scale, branch.written(units.writes)
        )
    else:
        vectors, unit, output = units.read(block, stream)
        branch = _branch(block, block.layout.mlp_branch_norm, output, into)
        edges = BuiltUnits(branch.written(vectors) * branch.scale[:, None], unit, units.n_units)
    always = branch.always(units.constant.to(added.device))
    gap = float((edges.sum() + always - added).norm() / added.norm().clamp_min(1e-30))
    if gap > units_tolerance(into.dtype):
        raise IdentityError(
            f"in layer {block.index}, the {type(units).__name__.lower()} of {type(block.module).__name__} do not sum to its "
            f"MLP's output on this text (off by {gap:.1e}), though they did at loading; use granularity='block'"
        )
    return edges, always


@dataclass(frozen=True)
class _Branch:
    """Linear map from the output of a branch's projection to what is added to the stream.

    A norm on the branch is linear if its scale at each token is fixed. A multiplier may follow it.

    Args:
        scale: (T,), the norm's scale at each token; 1 without a norm.
        norm: the norm at that scale; None for none.
        multiplier: the factor of the branch.
    """

    scale: Tensor
    norm: Norm | None
    multiplier: float

    def written(self, vectors: Tensor) -> Tensor:
        """Apply the map to vectors (..., D), without the norm's scale.

        That is: subtract the mean if the norm does, then multiply by the norm's weight and by the
        branch's factor.
        """
        if self.norm is None:
            return vectors if self.multiplier == 1.0 else vectors * self.multiplier
        if self.norm.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * self.norm.weight * self.multiplier

    def always(self, constant: Tensor) -> Tensor:
        """Apply the map to the projection's constant, (T, D) or (D,). Returns (T, D).

        The result is always added to the stream. It includes the norm's own constant.
        """
        if self.norm is None:
            return constant.expand(len(self.scale), -1) * self.multiplier
        if self.norm.centred:
            constant = constant - constant.mean(-1, keepdim=True)
        return (self.norm.constant + self.scale[:, None] * self.norm.weight * constant) * self.multiplier


def _branch(block: Block, norm: str | None, before: Tensor, added: Tensor) -> _Branch:
    """Find the linear map of a branch from its recorded input and output.

    Args:
        block: the block.
        norm: path of the norm on the branch; None for none.
        before: (T, D), the output of the projection.
        added: (T, D), what was added to the stream.
    """
    if norm is None:
        return _Branch(torch.ones(len(added), device=added.device), None, block.multiplier)
    linear = linearise(block.child(norm), before, added / block.multiplier)
    return _Branch(linear.scale, linear, block.multiplier)


def attention_writes(block: Block, record: BlockRecord, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the linear maps from a block's attention heads to the stream.

    A norm on the branch is linear at its actual scale. Its weight, and its subtraction of the mean,
    are part of these maps.

    Returns:
        What each head writes per unit of value, (H, V, D).
        The branch norm's scale at each target, (T,).
        The constant that is always added, (T, D).

    Raises:
        IdentityError: the attention adds something else than the output of its projection.
    """
    projection = block.projection
    # (H, V, D)
    write = head_weights(projection, n_heads, record.projection_input, record.projected)
    always = constant_of(projection, record.projection_input)
    constant = write.new_zeros(record.stream.shape[0], write.shape[-1]) if always is None else always
    _refuse_another_attention(block, record)
    branch = _branch(block, block.layout.attention_branch_norm, record.projected, record.attention)
    return branch.written(write), branch.scale, branch.always(constant)


def _refuse_another_attention(block: Block, record: BlockRecord) -> None:
    """Refuse a block whose attention adds something else than the output of its projection.

    A hook may have changed it. A block with a norm after the projection is not checked here,
    because `linearise` checks it.

    Raises:
        IdentityError: the two differ.
    """
    if block.layout.attention_branch_norm is not None:
        return
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
    """Factors of the heads' outputs before the output projection, (T, H, V). None without a gate.

    Raises:
        IdentityError: there is no gate, but the projection's input is not the heads' outputs.
    """
    group = record.weights.shape[0] // record.values.shape[0]  # query heads per key-value head
    values = record.values.to(record.weights.dtype).repeat_interleave(group, dim=0)
    heads = torch.matmul(record.weights, values).transpose(0, 1).float()  # (T, H, V)
    return gate_of(block, record, heads)


def gate_of(block: Block, record: BlockRecord, heads: Tensor) -> Tensor | None:
    """Factors of the heads' outputs before the output projection, (T, H, V). None without a gate.

    Args:
        heads: (T, H, V), the heads' outputs that the attention function returned: weights @ values.

    Raises:
        IdentityError: there is no gate, but the projection's input is not the heads' outputs.
    """
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
    """Run a model on the tokens of a text up to a position, and record the pass.

    Args:
        model: the model.
        ids: token ids of the whole input.
        position: index of the token whose next-token prediction is measured; negative counts from
            the end.
        granularity: what an MLP edge is: "block", the whole MLP; "expert", one expert of a mixture;
            "neuron", one input of the down projection.

    Returns:
        The pass over ids[: position + 1].
        The position, counted from the start.

    Raises:
        InputError: the position is out of range, or the granularity is unknown.
        ModelError: the model's MLPs cannot be split into such units.
    """
    if granularity not in GRANULARITIES and str(granularity) == "component":
        raise InputError(
            "granularity='component' is of measure, measure_positions and run_study, whose traces are of whole heads and MLPs; a "
            f"graph is of edges, by {', '.join(GRANULARITIES)}"
        )
    if granularity not in GRANULARITIES:
        raise InputError(f"unknown granularity {granularity!r}; expected one of {', '.join(GRANULARITIES)}")
    position = checked_position(ids, position)
    kept = tuple(ids[: position + 1])
    # refuses a model without such units before the text is run
    model.adapter.units(granularity)
    records, logits = model.adapter.capture(kept)
    dtype = model.module.dtype
    return ForwardPass(model, kept, logits, tuple(records), granularity, dtype), position


def checked_position(ids: Sequence[int], position: int) -> int:
    """Turn a position into an index from the start. A negative one counts from the end.

    Raises:
        InputError: the position is not an integer, or out of range.
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
