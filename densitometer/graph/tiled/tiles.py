"""Long inputs: importances, thresholds and masked runs without any stored T x T array.

A *tile* is the attention edges, of all heads, into a few targets. For each decoder block, O(T)
numbers are kept: its queries and keys, the norm of what each head writes from each source, and the
norms of its residual and MLP edges. With a counterfactual, the vectors of its edges are kept, too.
The rest is computed again, tile by tile, whenever it is needed, and is the same each time:

    importance    attention weight x written norm x scale of the branch norm, divided by the sum of
                  these over all edges into the target
    key           as for stored edges, by one sweep from the output back (`growth.py`): an edge is
                  in a trace if its key is above a threshold
    threshold     radix selection among all keys (`histogram.py`), with exact counts
    mask          key > threshold, computed while the model runs on packed rows

A `TiledGraph` has the methods of a stored graph (`edge_graph.py`), with one difference: its traces
are cut at thresholds. If several edges share a key, best-first growth can stop between them, but a
threshold cannot. So the trace of a size has the largest number of edges that a threshold gives
without exceeding that size. Its `n_edges` is that number.

Importances that work here: those whose norms are separable (`norms.SEPARABLE`), those made of dot
products with the target's node (`norms.ALONG`), and those made of gradients of nodes and heads
(`slopes.py`). If a gate multiplies the heads' outputs before the output projection, the norm of an
edge is not such a product. Importances that need norms then raise an error.

Axes: T tokens, H query heads, S sources, M units of an MLP, t targets and s sources of a tile,
K subgraphs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy
import torch
from torch import Tensor

from ...errors import IdentityError, InputError, ModelError, PluginError
from ...models.attention import AttentionInputs
from ...models.blocks import Block, BlockMask, BlockOfAnotherRun, BlockRecord, StandIns, Tile
from ...models.counting import BlockCost, block_cost
from ...models.loading import Model
from ...models.placement import memory_watched
from ...models.units import Experts, Granularity, Units
from ..cost import Sets, Tally, countable
from ..edge_graph import EdgeGraph, EdgeSet
from ..forward_pass import EdgeSpace, Level, LevelEdges, PerLevel, block_masks_of, edges_of_block
from ..graph import Graph, Trace
from ..growth import NATURAL, NOWHERE, KeyTile, level_keys, sweep
from ..importance.gradients import BOUND_PROJECTIONS, PROJECTIONS, random_projections, times_gradient
from ..importance.norms import ALONG, SEPARABLE, TINY, along_node, shares
from ..targets import TargetScore
from .histogram import KeyHistogram
from .slopes import BlockSlopes, along_values, block_slopes

# An input with more possible edges (layers x heads x tokens squared) than this is measured tile by
# tile. Stored edges take 57 bytes each for one importance (dev/LOG.md, 2026-11-25), here 7.6 GB.
# The number is fixed, so that the path that a measurement takes does not depend on the machine.
STORED_EDGES = 2**27
# Attention weights in a tile, by type of device.
TILE_NUMBERS = {"cpu": 2**21, "cuda": 2**26}

# Importances from gradients, with their numbers of projections.
SLOPES = {"fisher": PROJECTIONS, "bound": BOUND_PROJECTIONS}
# The norm of edges that an importance from gradients is multiplied by.
NORMS = {"bound": "l2"}
# Importances that can be computed tile by tile, and the ones that do not need the edges' norms.
TILED = (*SEPARABLE, *ALONG, *SLOPES)
WITHOUT_NORMS = ("projection", "fisher")

# Threshold below the key of every edge, but not below NOWHERE.
EVERYTHING = -1.0


def is_long(model: Model, n_tokens: int) -> bool:
    """Whether an input has too many edges to store them, so that it is measured tile by tile."""
    return n_tokens > stored_tokens(model)


def stored_tokens(model: Model) -> int:
    """Return the largest number of tokens of an input whose edges are stored."""
    return math.isqrt(STORED_EDGES // sum(block.n_heads for block in model.adapter.blocks))


def check_tiled(model: Model, names: Sequence[str], n_tokens: int, granularity: str = "block") -> None:
    """Refuse a long input that cannot be measured tile by tile.

    Args:
        names: the importances.
        n_tokens: tokens up to the position.

    Raises:
        InputError: an importance, or traces of whole components, need every edge stored.
        ModelError: the norms of the model's edges are not products and an importance needs them, or
            an attention module computes all weights itself.
    """
    heads = sum(block.n_heads for block in model.adapter.blocks)
    fits = stored_tokens(model)
    shorter = f"or measure at most {fits} tokens"
    long = f"{n_tokens} tokens of {model.name} have {heads * n_tokens**2:,} possible edges, too many to store"
    for name in names:
        if name not in TILED:
            raise InputError(
                f"{long}, and importance {name!r} needs them stored; use one of {', '.join(TILED)}, which are computed tile "
                f"by tile, {shorter}"
            )
    if granularity == "component":
        raise InputError(
            f"{long}, and granularity='component' needs them stored; use granularity='block', {shorter}"
        )
    gated = [block.index for block in model.adapter.blocks if block.gated]
    normed = [name for name in names if name not in WITHOUT_NORMS]
    if gated and normed:
        raise ModelError(
            f"{long}, and layer {gated[0]} has a gate between its heads and their projection, so that the norm of an edge, "
            f"which {normed[0]!r} needs, is not a product; use one of {', '.join(WITHOUT_NORMS)}, {shorter}"
        )
    own = [block for block in model.adapter.blocks if block.own_attention]
    if own:
        raise ModelError(
            f"{long}, and {type(own[0].attention).__name__} of {model.architecture} computes all attention weights of a layer "
            f"itself; measure at most {fits} tokens"
        )


class LevelSizes(NamedTuple):
    """Numbers from which the sizes of the edges into one level are computed, float32.

    A size is a norm of the edge's vector, or its dot product with the target's node. Sizes of
    residual and MLP edges are here. Those of attention edges are products, computed when needed.

    Args:
        residual: (T,), sizes of the residual edges.
        written: (H, S), norm of what each head writes from each source per unit of attention
            weight. None if no attention leads into the level, or no norm is needed.
        scale: (T,), factor by which a norm after the attention scales what is written.
        mlp: (M, T), sizes of the MLP edges. None if no MLP leads into the level.
        reads: (H, T, V), each node multiplied by the transposed output projection of each head, for
            dot products. None for norms.
        values: (G, S, V), the values that `reads` is multiplied by. None for norms.
    """

    residual: Tensor
    written: Tensor | None
    scale: Tensor
    mlp: Tensor | None
    reads: Tensor | None = None
    values: Tensor | None = None


class LevelChanges(NamedTuple):
    """Numbers from which the norms |e - e'| of the edges into one level are computed, float32.

    e is an edge's vector, and e' its vector in the counterfactual. So e - e' is what the stream
    loses if the edge is off. For an attention edge it is a w - a' w', where a is the attention
    weight and w what the head writes from the source at weight 1. With d = w - w', its squared norm
    is

        (a - a')^2 |w|^2 + 2 (a - a') a' <w, d> + a'^2 |d|^2

    This form stays accurate if the two runs are close to each other.

    Args:
        residual: (T,), |e - e'| of the residual edges.
        squares: |w|^2, <w, d> and |d|^2, (H, S) each. None where no attention leads into the level.
        scale: (T,), factor by which a norm after the attention scales what is written.
        mlp: (1, T), |e - e'| of the MLP edges. None where no MLP leads into the level.
    """

    residual: Tensor
    squares: tuple[Tensor, ...] | None
    scale: Tensor
    mlp: Tensor | None


@dataclass(frozen=True)
class TiledLayer:
    """The parts of one decoder block's run that are kept: O(T) numbers.

    Args:
        levels: one in a parallel block, else two.
        inputs: queries and keys, from which attention weights are computed again.
        sizes: by name of a norm or importance, the sizes of the edges into each level.
        cost: operations and parameters of the block's parts.
        routed: (M, T) bool, which units of the MLP run for each token; None where all do.
        carried: the vectors of the edges. It is kept only for the run of a counterfactual.
        changes: for each level, what `bound` needs to know about the difference between edges'
            vectors in the two runs. None without a counterfactual.
    """

    levels: tuple[Level, ...]
    inputs: AttentionInputs
    sizes: dict[str, tuple[LevelSizes, ...]]
    cost: BlockCost
    routed: Tensor | None = None
    carried: BlockOfAnotherRun | None = None
    changes: tuple[LevelChanges, ...] | None = None


@dataclass(frozen=True)
class TiledPass:
    """One run of a model on one input up to one position, without its attention weights.

    Args:
        ids: token ids up to and including the position.
        logits: (vocabulary,) float32, after the last of them.
        layers: the kept parts of each decoder block.
        dtype: dtype of the module when it was run.
        target: the function of the logits of which importances take gradients; None for the whole
            distribution.
        granularity: what an MLP edge is: "block", "expert" or "neuron".
        counterfactual: the run of another input with the same number of tokens. An edge that is off
            carries its vector of that run. None if it carries nothing.
    """

    model: Model
    ids: tuple[int, ...]
    logits: Tensor
    layers: tuple[TiledLayer, ...]
    dtype: torch.dtype | None = None
    target: TargetScore | None = None
    granularity: Granularity = "block"
    counterfactual: TiledPass | None = None
    stored: ClassVar[bool] = False

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @cached_property
    def space(self) -> EdgeSpace:
        levels = tuple(level for layer in self.layers for level in layer.levels)
        return EdgeSpace(levels, self.n_tokens)

    @property
    def block_costs(self) -> list[BlockCost]:
        """Cost of each decoder block, per token and head, in operations and parameters."""
        return [layer.cost for layer in self.layers]

    @cached_property
    def carried(self) -> tuple[BlockOfAnotherRun, ...] | None:
        """Vectors of the counterfactual that removed edges contribute, one entry per block.

        None without a counterfactual.
        """
        if self.counterfactual is None:
            return None
        carried = (layer.carried for layer in self.counterfactual.layers)
        return tuple(of_block for of_block in carried if of_block is not None)

    @property
    def stream(self) -> Tensor:
        """Residual stream into the first block, (T, D). The model is run again to compute it."""
        return self._again(0, lambda block, record, heads: record.stream)

    def levels_with(self, level: int) -> dict[int, LevelEdges]:
        """Return the edges into a level and into the other level of its block, by level.

        They are without attention weights. The model is run again to compute them, because they are
        not kept.
        """
        layer = self.space.levels[level].layer
        made = self._again(
            layer, lambda block, record, heads: list(edges_of_block(block, record, None, heads))
        )
        first = next(i for i, at in enumerate(self.space.levels) if at.layer == layer)
        return dict(enumerate(made, start=first))

    def _again(self, layer: int, make: Callable[[Block, BlockRecord, Tensor], Any]) -> Any:
        """Run the model again, and return what a function makes of the record of one block.

        Args:
            layer: index of the block.
            make: function of the block, its record and its heads' outputs (T, H, V).
        """

        def keep(block: Block, record: BlockRecord, inputs: AttentionInputs, heads: Tensor) -> Any:
            return make(block, record, heads) if block.index == layer else None

        with self.model.running():
            kept, _ = self.model.adapter.capture_tiles(
                self.ids, _tile_targets(self.model, self.n_tokens), keep
            )
        return kept[layer]

    @property
    def run_sizes(self) -> tuple[int, int, int, int, int]:
        """Sizes on which the memory of a masked run depends (`masked_runs.batch_size`).

        Heads and edges count as 0, because no attention weights and no masks are stored.
        """
        n_units = max(level.n_units for level in self.space.levels)
        return 0, self.model.adapter.blocks[0].hidden_size, self.n_tokens, 0, n_units

    def masks_of(
        self, sets: Sequence[TiledSubgraph], frozen: bool, means: Sequence[StandIns] | None
    ) -> tuple[list[BlockMask], Callable[[], None]]:
        """Return the masks of each decoder block for K subgraphs. Edges are counted as they run.

        Args:
            sets: the subgraphs.
            frozen: whether to keep this pass's attention weights instead of recomputing them.
            means: mean vectors that removed edges contribute, one entry per block. None for their
                vectors in the counterfactual, or for zeros if there is none.

        Returns:
            The masks.
            A function to call after the run. It raises IdentityError if the number of edges that
                ran differs from the number counted before.
        """
        tallies = [subgraph.new_tally() for subgraph in sets]
        levels = [
            PerLevel(
                torch.stack([each.residual(level) for each in sets]),
                _LevelEdges(sets, tallies, level, frozen) if at.n_heads else None,
                torch.stack([each.mlp(level) for each in sets]) if at.n_units else None,
            )
            for level, at in enumerate(self.space.levels)
        ]
        stand_ins = means if means is not None else self.carried
        masks = block_masks_of(self.model, levels, self.granularity, stand_ins)
        return masks, partial(_check_counts, sets, tallies)

    def tiles(self, level: int) -> Sequence[Tile]:
        """Tiles of a level. Where no attention leads into it, one tile holds all of it."""
        if self.space.levels[level].n_heads:
            return self.inputs(level).tiles
        everything = slice(0, self.n_tokens)
        return (Tile(everything, everything),)

    def inputs(self, level: int) -> AttentionInputs:
        return self.layers[self.space.levels[level].layer].inputs

    def existing(self, level: int, tile: Tile) -> PerLevel:
        """Which edges of a tile exist, bool, as `EdgeSource.existing` returns them."""
        at, n_targets = self.space.levels[level], tile.targets.stop - tile.targets.start
        everywhere = torch.ones(n_targets, dtype=torch.bool, device=self.logits.device)
        attention = self.inputs(level).allowed(tile) if at.n_heads else None
        mlp, routed = None, self.layers[at.layer].routed
        if at.n_units:
            mlp = everywhere.expand(at.n_units, -1) if routed is None else routed[:, tile.targets]
        return PerLevel(everywhere, attention, mlp)

    def sizes_of(self, level: int, name: str, tile: Tile) -> PerLevel:
        """Sizes of a tile's edges: residual (t,), attention (H, t, s) or None, mlp (M, t) or None.

        Args:
            name: a norm, or an importance of `norms.ALONG`.
        """
        layer = self.layers[self.space.levels[level].layer]
        sizes = layer.sizes[name][layer.levels.index(self.space.levels[level])]
        attention = None
        if sizes.written is not None:
            # the norm of an edge is a product: weight x written norm x scale of the branch norm
            attention = layer.inputs.weights(tile).float()  # (H, t, s)
            attention *= sizes.written[:, None, tile.sources]
            attention *= sizes.scale[tile.targets, None]
        if sizes.reads is not None and sizes.values is not None:
            along = along_values(sizes.reads[:, tile.targets], sizes.values[:, tile.sources])
            along = along.mul_(layer.inputs.weights(tile)).abs_()
            attention = along if attention is None else along.div_(attention.clamp_min_(TINY))
        mlp = None if sizes.mlp is None else sizes.mlp[:, tile.targets]
        return PerLevel(sizes.residual[tile.targets], attention, mlp)

    def changes_of(self, level: int, tile: Tile) -> PerLevel:
        """Norms |e - e'| of what the stream loses if a tile's edges are off (`LevelChanges`).

        Returns:
            residual (t,), attention (H, t, s) or None, mlp (M, t) or None.
        """
        layer = self.layers[self.space.levels[level].layer]
        if layer.changes is None or self.carried is None:
            return self.sizes_of(level, NORMS["bound"], tile)
        changes = layer.changes[layer.levels.index(self.space.levels[level])]
        attention = None
        if changes.squares is not None:
            # the formula of `LevelChanges`: `there` is a', `more` is a - a', both (H, t, s)
            there = self.carried[self.space.levels[level].layer].weights(tile).float()
            more = layer.inputs.weights(tile).float() - there
            ww, wd, dd = (square[:, None, tile.sources] for square in changes.squares)
            square = more.square() * ww + 2 * more * there * wd + there.square() * dd
            attention = square.clamp_min_(0).sqrt_().mul_(changes.scale[tile.targets, None])
        mlp = None if changes.mlp is None else changes.mlp[:, tile.targets]
        return PerLevel(changes.residual[tile.targets], attention, mlp)


def run_tiled(
    model: Model,
    ids: Sequence[int],
    names: Sequence[str],
    granularity: Granularity = "block",
    counterfactual: Sequence[int] | None = None,
) -> TiledPass:
    """Run a model on ids, and keep the numbers from which some importances are computed.

    Args:
        names: the importances.
        granularity: what an MLP edge is: "block", "expert" or "neuron".
        counterfactual: token ids of another input with the same number of tokens. Edges that are
            off carry their vectors in that input. None if they carry nothing.

    Raises:
        ModelError: the model cannot be measured on this text.
    """
    units, targets = model.adapter.units(granularity), _tile_targets(model, len(ids))
    other = None
    if counterfactual is not None:
        layers, logits = model.adapter.capture_tiles(counterfactual, targets, partial(_layer, carries=True))
        other = TiledPass(model, tuple(counterfactual), logits, tuple(layers), model.module.dtype)

    def keep(block: Block, record: BlockRecord, inputs: AttentionInputs, heads: Tensor) -> TiledLayer:
        there = None if other is None else other.layers[block.index].carried
        return _layer(block, record, inputs, heads, names, units[block.index], there)

    layers, logits = model.adapter.capture_tiles(ids, targets, keep)
    kept = tuple(layers)
    return TiledPass(
        model, tuple(ids), logits, kept, model.module.dtype, granularity=granularity, counterfactual=other
    )


def _tile_targets(model: Model, n_tokens: int) -> int:
    """Number of targets in a tile. The last tile of a level may have fewer."""
    n_heads = max(block.n_heads for block in model.adapter.blocks)
    numbers = TILE_NUMBERS.get(model.adapter.device.type, TILE_NUMBERS["cpu"])
    return max(1, numbers // (n_heads * n_tokens))


def _layer(
    block: Block,
    record: BlockRecord,
    inputs: AttentionInputs,
    heads: Tensor,
    names: Sequence[str] = (),
    units: Units | None = None,
    there: BlockOfAnotherRun | None = None,
    carries: bool = False,
) -> TiledLayer:
    """Reduce the record of a block to the O(T) numbers that are kept.

    Args:
        heads: the heads' outputs, (T, H, V).
        names: the importances that are needed.
        units: the units of the block's MLP; None where the whole MLP is one edge.
        there: the vectors of the block's edges in the counterfactual; None without one.
        carries: whether to keep the edges' vectors, because the run is that of a counterfactual.

    Raises:
        ModelError: the output projection reads something other than the heads' outputs.
    """
    edges = list(edges_of_block(block, record, units, heads))
    norms = {NORMS.get(name, name) for name in names} & (SEPARABLE.keys() | ALONG.keys())
    sizes = {name: tuple(_level_sizes(into, name) for into in edges) for name in sorted(norms)}
    n_heads, n_groups = heads.shape[1], len(record.values)
    cost = block_cost(block, n_heads, n_groups, record.key_size, record.values.shape[-1], units)
    return TiledLayer(
        tuple(into.level for into in edges), inputs, sizes, cost,
        units.routed(block, record.mlp_stream(block)) if isinstance(units, Experts) else None,
        BlockOfAnotherRun.of(record, inputs.weights) if carries else None,
        None if there is None or "bound" not in names else tuple(_level_changes(into, there) for into in edges),
    )  # fmt: skip


def _level_sizes(edges: LevelEdges, name: str) -> LevelSizes:
    """Reduce the edges into a level to the numbers from which their sizes are computed.

    Args:
        name: a norm, or an importance of `norms.ALONG`.
    """
    # cosine divides dot products by the Euclidean norm, projection does not divide them
    norm = ALONG.get(name, name)
    has_heads = bool(edges.level.n_heads)
    written = edges.written_sizes(SEPARABLE[norm]) if has_heads and norm is not None else None
    if name in SEPARABLE:
        size = SEPARABLE[name]
        mlp = None if edges.units is None else edges.units.sizes(size)
        return LevelSizes(size(edges.residual), written, edges.scale, mlp)
    residual, _, mlp = along_node(replace(edges, weights=None), norm is not None)
    reads = edges.read_back(edges.node) if has_heads else None
    return LevelSizes(residual, written, edges.scale, mlp, reads, edges.values)


def _level_changes(edges: LevelEdges, there: BlockOfAnotherRun) -> LevelChanges:
    """Compare the vectors of the edges into a level with those in the counterfactual."""
    into_attention = edges.level.residual_kind == "residual_attention"
    residual = there.residual_attention if into_attention else there.residual_mlp
    assert residual is not None
    squares = None
    if edges.level.n_heads:
        # w and w' of each head, (S, D): here and in the counterfactual
        other = replace(edges, values=there.values.float())
        pairs = ((edges.written(h), other.written(h)) for h in range(edges.level.n_heads))
        each = [(w.square().sum(-1), (w * (w - v)).sum(-1), (w - v).square().sum(-1)) for w, v in pairs]
        squares = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
    mlp = None if edges.mlp is None else (edges.mlp - there.mlp.float()).norm(dim=-1)[None]
    return LevelChanges((edges.residual - residual.float()).norm(dim=-1), squares, edges.scale, mlp)


def tiled_graph(
    forward: TiledPass, ids: Sequence[int], position: int, name: str, seed: int = 0
) -> TiledGraph:
    """Build the graph of an importance from a run of the model up to a position.

    Args:
        forward: the run, which has kept the numbers that this importance needs (`run_tiled`).
        ids: token ids of the whole input.
        position: index of the token whose prediction the graph explains.
        name: the importance.
        seed: random seed of the projections that importances from gradients use.

    Raises:
        ModelError: the model passes no gradient.
    """
    tokens = tuple(forward.model.pieces(ids))
    source = tiled_importance(forward, name, seed)
    return TiledGraph(forward.model, forward, tuple(ids), tokens, position, name, source, seed)


@dataclass(frozen=True)
class TileSource:
    """Base class of an `EdgeSource` that computes importances tile by tile."""

    forward: TiledPass

    @property
    def space(self) -> EdgeSpace:
        return self.forward.space

    def tiles(self, level: int) -> Sequence[Tile]:
        return self.forward.tiles(level)

    def existing(self, level: int, tile: Tile) -> PerLevel:
        return self.forward.existing(level, tile)

    @abstractmethod
    def importance(self, level: int, tile: Tile) -> PerLevel:
        """Importances of a tile's edges. They are 0 where the attention mask allows no edge."""


def tiled_importance(forward: TiledPass, name: str, seed: int = 0) -> TileSource:
    """Make the source that computes an importance of a run's edges, tile by tile.

    Args:
        forward: the run, which has kept the numbers that this importance needs (`run_tiled`).
        name: the importance.
        seed: random seed of the projections that importances from gradients use.

    Raises:
        ModelError: the model passes no gradient.
    """
    if name not in SLOPES:
        return NormImportance(forward, name)
    eps = random_projections(forward.logits, SLOPES[name], seed)
    with memory_watched(f"computing {name!r} of {forward.n_tokens} tokens"):
        targets = _tile_targets(forward.model, forward.n_tokens)
        units = forward.model.adapter.units(forward.granularity)
        slopes = block_slopes(
            forward.model, forward.ids, targets, eps, units, forward.target, forward.carried
        )
    return SlopeImportance(forward, name, tuple(slopes))


@dataclass(frozen=True)
class SlopeImportance(TileSource):
    """Importance from gradients, computed tile by tile: `gradients.fisher` or `gradients.bound`.

    Args:
        name: "fisher" or "bound".
        slopes: the gradients of each decoder block, first to last.
    """

    name: str
    slopes: tuple[BlockSlopes, ...]

    def importance(self, level: int, tile: Tile) -> PerLevel:
        at = self.forward.space.levels[level]
        layer, slopes = self.forward.layers[at.layer], self.slopes[at.layer]
        place = layer.levels.index(at)
        if self.name == "bound":
            # the bound on an edge's effect: norm of its vector x norm of its target's gradient
            return times_gradient(self.forward.changes_of(level, tile), slopes.nodes[place][tile.targets])
        attention = None
        if at.n_heads:
            weights = layer.inputs.weights(tile).float()  # (H, t, s)
            carried = self.forward.carried
            attention = slopes.attention(weights, tile, None if carried is None else carried[at.layer])
        mlp = slopes.mlp[:, tile.targets] if at.n_units else None
        return PerLevel(slopes.residual[place][tile.targets], attention, mlp)


@dataclass(frozen=True)
class NormImportance(TileSource):
    """Importances that depend on an edge's vector and its target alone, computed tile by tile.

    Args:
        name: a name in `norms.SEPARABLE` or `norms.ALONG`, such as "l1" or "projection".
    """

    name: str

    def importance(self, level: int, tile: Tile) -> PerLevel:
        return shares(self.forward.sizes_of(level, self.name, tile), partial(self.existing, level, tile))


@dataclass(frozen=True)
class RandomImportance(TileSource):
    """Uniform random importances in (0, 1], computed tile by tile.

    The last token's residual edges get importance 1, so that its nodes are in every trace.
    Otherwise all paths to the output would go through the two or three edges that lead into it. No
    edge's key would exceed the keys of these, so thresholds would give traces of few sizes only.
    """

    seed: int

    def importance(self, level: int, tile: Tile) -> PerLevel:
        at = self.forward.space.levels[level]
        n_targets, n_sources = tile.targets.stop - tile.targets.start, tile.sources.stop - tile.sources.start
        # Each tile has a random generator of its own, which depends on the seed and on the tile
        # alone. So tiles may be computed again, and in any order.
        generator = torch.Generator().manual_seed(self.seed)
        for place in (level, tile.targets.start):
            generator.manual_seed(int(torch.randint(2**62, (), generator=generator)) + place)
        device = self.forward.logits.device

        def drawn(*shape: int) -> Tensor:
            # rand is in [0, 1), so 1 - rand is in (0, 1]: no edge has importance 0
            return (1 - torch.rand(shape, generator=generator)).to(device)

        residual = drawn(n_targets)
        if tile.targets.stop == self.forward.n_tokens:
            residual[-1] = 1.0
        attention = None
        if at.n_heads:
            allowed = self.forward.inputs(level).allowed(tile)
            attention = drawn(at.n_heads, n_targets, n_sources).mul_(allowed)
        return PerLevel(residual, attention, drawn(at.n_units, n_targets) if at.n_units else None)


class LevelKeys(NamedTuple):
    """Bottlenecks of one level's nodes, and keys of its residual and MLP edges, float32.

    Bottleneck and key are defined in `graph/growth.py`. A number is NOWHERE if the output cannot be
    reached, or if there is no such edge. Keys of attention edges are not kept. They are computed
    again from importances and bottlenecks.

    Args:
        bottleneck: (T,), B of each node.
        residual: (T,), key of the residual edge into each node.
        mlp: (M, T), keys of the MLP edges into each node; M is 0 where there are none.
    """

    bottleneck: Tensor
    residual: Tensor
    mlp: Tensor


class _OfLongInput:
    """Base class that raises an error for every attribute that only stored edges have.

    Subclasses name their counterpart among the classes of stored edges. The error names the
    attribute of the counterpart.
    """

    _counterpart: ClassVar[type]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or not hasattr(self._counterpart, name):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise _refusal(f"{self._counterpart.__name__}.{name}")


def _refusal(name: str) -> InputError:
    return InputError(
        f"{name} needs every edge stored, and those of a long input are computed tile by tile; measure fewer tokens"
    )


@dataclass(frozen=True, eq=False, repr=False)
class TiledGraph(_OfLongInput, EdgeGraph["TiledTrace"]):
    """Edges of one forward pass of a long input with their importances, computed tile by tile.

    Args:
        forward: the run up to the position.
        source: computes the edges of a tile.
        seed: random seed of the importance.
    """

    forward: TiledPass = field(repr=False)
    source: TileSource = field(repr=False)
    seed: int = 0
    stored: ClassVar[bool] = False
    _counterpart: ClassVar[type] = Graph

    @property
    def n_edges(self) -> int:
        return self._swept[1].total

    @property
    def keys(self) -> tuple[LevelKeys, ...]:
        """Bottlenecks and keys of each level, from the sweep."""
        return self._swept[0]

    @cached_property
    def _swept(self) -> tuple[tuple[LevelKeys, ...], KeyHistogram, float]:
        """Keys of each level, histogram of all keys, and the largest importance.

        All come from one sweep over the edges, from the output back.

        Raises:
            PluginError: an importance is NaN or infinite.
        """
        device, histogram = self.forward.logits.device, KeyHistogram()
        nowhere = torch.full((self.forward.n_tokens,), NOWHERE, device=device)
        levels = tuple(
            LevelKeys(nowhere.clone(), nowhere.clone(), nowhere.repeat(level.n_units, 1))
            for level in self.space.levels
        )
        largest = torch.zeros((), device=device)
        for level, tile, importance, keys, bottleneck in sweep(self.source, device):
            kept = levels[level]
            kept.bottleneck[tile.targets] = bottleneck
            kept.residual[tile.targets] = keys.residual
            if keys.mlp is not None:
                kept.mlp[:, tile.targets] = keys.mlp
            for values, of_values in zip(importance, keys, strict=True):
                if values is not None:
                    histogram.add(of_values)
                    largest = largest.maximum(values.masked_fill(of_values == NOWHERE, 0.0).max())
        if not histogram.finite:
            raise PluginError(f"importance {self.importance_name!r} gave NaN or infinities")
        return levels, histogram, float(largest)

    def key_tiles(self) -> Iterator[KeyTile]:
        """Keys of all edges that can reach the output, tile by tile. Levels come first to last."""
        for level, kept in enumerate(self.keys):
            yield from level_keys(self.source, level, kept.bottleneck)

    @property
    def threshold_steps(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Some thresholds (n,), falling, and the numbers of edges (n,) above them.

        They are known without another pass over the edges. The last threshold is that of the full
        trace.
        """
        return self._swept[1].steps

    def _refined(self, bins: set[int]) -> KeyHistogram:
        """Return the histogram of all keys, after counting the keys of some high bins exactly."""
        histogram = self._swept[1]
        missing = histogram.missing(bins)
        if missing:
            every = (keys for swept in self.key_tiles() for keys in swept.keys if keys is not None)
            histogram.refine(missing, every)
        return histogram

    def _cut(self, counts: Sequence[int], thresholds: Sequence[float]) -> list[TiledTrace]:
        """Cut the traces of thresholds, after at most one pass over the edges."""
        known = self._swept[1]
        # One pass refines the bins that all of these traces need.
        bins = {b for count in counts for b in known.bins_for_rank(count)}
        histogram = self._refined(bins | {b for tau in thresholds for b in known.bins_for_value(tau)})
        # Ranks count from 0, so at most `count` keys are above the key of rank `count`. Fewer are
        # above it if several edges have that key.
        of_counts = [histogram.ranked(count) if count < self.n_edges else EVERYTHING for count in counts]
        return [self._of_threshold(threshold) for threshold in (*of_counts, *thresholds)]

    def _cut_by(self, name: str, value: Any) -> TiledTrace:
        raise _refusal(f"trace({name}=...)")

    def _of_threshold(self, threshold: float) -> TiledTrace:
        return TiledTrace(self, threshold, self._swept[1].above(threshold))

    def _natural(self, name: str) -> NaturalSubgraph:
        return NaturalSubgraph(self, name)

    def _random(self, seed: int) -> TiledGraph:
        """Make a graph of the same edges with random importances (`RandomImportance`)."""
        drawn = RandomImportance(self.forward, seed)
        return replace(self, source=drawn, importance_name="random", seed=seed)

    @property
    def _largest(self) -> float:
        return self._swept[2]

    def _key_at(self, rank: int) -> float:
        return self._refined({self._swept[1].bin_of_rank(rank)}).ranked(rank)

    def _least_key_above(self, value: float) -> float | None:
        return self._refined(self._swept[1].bins_for_value(value)).next_above(value)

    def _costs_of(self, sets: Sequence[TiledSubgraph]) -> tuple[numpy.ndarray, numpy.ndarray]:
        tallies = [each.tally for each in sets]
        flops, parameters = (
            [getattr(tally, name)[0] for tally in tallies] for name in ("flops", "parameters")
        )
        return numpy.array(flops), numpy.array(parameters)

    @property
    def full_cost(self) -> tuple[float, float]:
        """Operations and parameters of the full trace, counted once for all importances."""
        known = self.forward.__dict__
        if "_full_tally" not in known:
            known["_full_tally"] = self._of_threshold(EVERYTHING).tally
        tally = known["_full_tally"]
        return float(tally.flops[0]), float(tally.parameters[0])


class TiledSubgraph(_OfLongInput, EdgeSet):
    """Base class of a set of edges of a tiled graph that are on. All other edges are off.

    Its edges are counted while it runs, or in a pass without a run if it has not run.
    """

    graph: TiledGraph
    _counterpart: ClassVar[type] = Trace

    @abstractmethod
    def residual(self, level: int) -> Tensor:
        """Targets whose residual edge is on, (T,) bool."""

    @abstractmethod
    def mlp(self, level: int) -> Tensor:
        """MLP edges that are on, (M, T) bool. M is 0 where there are none."""

    @abstractmethod
    def asks(self, level: int) -> Tensor:
        """Targets into which attention edges that are on may lead, (T,) bool.

        They include every target that has such an edge, and may include others.
        """

    @abstractmethod
    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        """Attention edges of a tile that are on, (H, t, s) bool.

        Args:
            allowed: (t, s) bool, edges that the attention mask allows.
            importance: computes the importances (H, t, s). It is called only where they are needed.
        """

    @property
    def key(self) -> int:
        """Number that identifies this object. Edges are not stored, so they cannot be compared."""
        return id(self)

    @property
    def edges_on(self) -> TiledSubgraph:
        return self

    def new_tally(self) -> Tally:
        """Make a counter of the subgraph's edges, which has counted residual and MLP edges only.

        Its attention edges are added tile by tile.
        """
        forward = self.graph.forward
        nodes = [
            PerLevel(
                countable(self.residual(level)[None]),
                None,
                countable(self.mlp(level)[None]) if at.n_units else None,
            )
            for level, at in enumerate(forward.space.levels)
        ]
        return Tally(Sets(1), forward.space, forward.block_costs, nodes)

    @property
    def tally(self) -> Tally:
        """Number of edges, and their cost, counted in a pass over the edges if no run has."""
        if "_tally" not in self.__dict__:
            counted = self.new_tally()
            for level, at in enumerate(self.graph.space.levels):
                if at.n_heads:
                    edges = _LevelEdges([self], [counted], level)
                    for tile in edges.tiles:
                        if bool(edges.query_tokens[0, tile.targets].any()):
                            # called for its effect: it tallies the tile
                            edges.counted(tile, 0)
            counted.close()
            self.__dict__["_tally"] = counted
        known: Tally = self.__dict__["_tally"]
        return known


@dataclass(frozen=True, eq=False, repr=False)
class TiledTrace(TiledSubgraph):
    """Edges of a tiled graph whose keys are above a threshold, or all of its other edges.

    Args:
        n_edges: number of edges that are on.
        inverted: whether the edges at or below the threshold are on instead.
        keep_residual: whether every residual edge is on, too.
    """

    graph: TiledGraph
    threshold: float
    n_edges: int
    inverted: bool = False
    keep_residual: bool = False

    def inverse(self, *, keep_residual: bool = False) -> TiledTrace:
        """Return the subgraph of the edges that are not in this trace.

        Args:
            keep_residual: whether every residual edge is on, too.
        """
        rest = TiledTrace(self.graph, self.threshold, self.graph.n_edges - self.n_edges, True)
        return rest.with_residual() if keep_residual else rest

    def with_residual(self) -> TiledTrace:
        """Return this subgraph with every residual edge added, as in the papers' code."""
        levels = range(len(self.graph.keys))
        existing = sum(int((keys.residual > NOWHERE).sum()) for keys in self.graph.keys)
        more = existing - sum(int(self.residual(level).sum()) for level in levels)
        return TiledTrace(self.graph, self.threshold, self.n_edges + more, self.inverted, True)

    def altered(
        self,
        components: Sequence[tuple[int, str, int]],
        off: Mapping[str, numpy.ndarray],
        on: Mapping[str, numpy.ndarray],
    ) -> AlteredTrace:
        """Make a subgraph of this trace's edges with some edges switched off and others on.

        Args:
            components: components (layer, kind, head) whose edges are off; head is -1 for a
                component that is not a head.
            off: columns level, kind, head, source and target of edges that are off.
            on: columns of edges that are on. They win over `off` and `components`.
        """
        return AlteredTrace(self.graph, self, tuple(components), ((off, False), (on, True)))

    def _on(self, keys: Tensor) -> Tensor:
        """Whether edges with these keys are on. NOWHERE marks a missing edge, which is never on."""
        on = keys > self.threshold
        return (keys > NOWHERE) & ~on if self.inverted else on & (keys > NOWHERE)

    def residual(self, level: int) -> Tensor:
        keys = self.graph.keys[level].residual
        return keys > NOWHERE if self.keep_residual else self._on(keys)

    def mlp(self, level: int) -> Tensor:
        return self._on(self.graph.keys[level].mlp)

    def asks(self, level: int) -> Tensor:
        # A key is at most its target's bottleneck, so no edge into the other targets is on.
        bottleneck = self.graph.keys[level].bottleneck
        return bottleneck > (NOWHERE if self.inverted else max(self.threshold, NOWHERE))

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        bottleneck = self.graph.keys[level].bottleneck[tile.targets, None]  # (t, 1)
        n_heads = self.graph.space.levels[level].n_heads
        existing = allowed & (bottleneck > NOWHERE)  # (t, s)
        # Every key is above a negative threshold, so no importance is computed.
        if self.threshold < 0:
            on = existing.expand(n_heads, -1, -1)
            return torch.zeros_like(on) if self.inverted else on
        # min(importance, bottleneck) > threshold, (H, t, s)
        on = importance() > self.threshold
        on &= bottleneck > self.threshold
        return existing & ~on if self.inverted else on


@dataclass(frozen=True, eq=False, repr=False)
class AlteredTrace(TiledSubgraph):
    """Trace cut at a threshold, in which single edges and whole components are switched by hand.

    Args:
        base: the trace.
        components: components (layer, kind, head) whose edges are off.
        chosen: pairs of columns of further edges and whether these are on. Later pairs win.
    """

    graph: TiledGraph
    base: TiledTrace
    components: tuple[tuple[int, str, int], ...]
    chosen: tuple[tuple[Mapping[str, numpy.ndarray], bool], ...]

    @property
    def n_edges(self) -> int:
        return int(self.tally.n_edges[0])

    def _of_kind(self, level: int, kind: str, on: Tensor) -> Tensor:
        """Apply the switches to residual edges (T,) or MLP edges (M, T) of a level."""
        off = (self.graph.space.levels[level].layer, kind, -1) in self.components
        on = torch.zeros_like(on) if off else on.clone()
        for columns, value in self.chosen:
            here = (columns["level"] == level) & (columns["kind"] == kind)
            on[..., torch.from_numpy(columns["target"][here].astype(numpy.int64))] = value
        return on

    def residual(self, level: int) -> Tensor:
        return self._of_kind(level, self.graph.space.levels[level].residual_kind, self.base.residual(level))

    def mlp(self, level: int) -> Tensor:
        return self._of_kind(level, "mlp", self.base.mlp(level))

    def asks(self, level: int) -> Tensor:
        asks = self.base.asks(level).clone()
        for columns, _ in self.chosen:
            here = (columns["level"] == level) & (columns["kind"] == "attention")
            asks[torch.from_numpy(columns["target"][here].astype(numpy.int64))] = True
        return asks

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        on = self.base.attention(level, tile, allowed, importance).clone()
        for layer, kind, head in self.components:
            if (layer, kind) == (self.graph.space.levels[level].layer, "attention"):
                on[head] = False
        for columns, value in self.chosen:
            here = (columns["level"] == level) & (columns["kind"] == "attention")
            here &= (columns["target"] >= tile.targets.start) & (columns["target"] < tile.targets.stop)
            heads, target, source = (
                torch.from_numpy(columns[name][here].astype(numpy.int64))
                for name in ("head", "target", "source")
            )
            on[heads, target - tile.targets.start, source - tile.sources.start] = value
        return on


@dataclass(frozen=True, eq=False, repr=False)
class NaturalSubgraph(TiledSubgraph):
    """Subgraph that needs no importance, such as a window of attention.

    Args:
        name: key of `growth.NATURAL`, which has the rule for its edges.
    """

    graph: TiledGraph
    name: str

    @property
    def n_edges(self) -> int:
        return int(self.tally.n_edges[0])

    @cached_property
    def _tokens(self) -> Tensor:
        return torch.arange(self.graph.forward.n_tokens, device=self.graph.forward.logits.device)

    def _reached(self, level: int) -> Tensor:
        return self.graph.keys[level].bottleneck > NOWHERE

    def residual(self, level: int) -> Tensor:
        return self._reached(level) & NATURAL[self.name].nodes(self._tokens)

    def mlp(self, level: int) -> Tensor:
        return (self.graph.keys[level].mlp > NOWHERE) & self.residual(level) & NATURAL[self.name].mlps

    def asks(self, level: int) -> Tensor:
        tokens = self._tokens
        return self._reached(level) & NATURAL[self.name].attention(tokens, tokens, len(tokens))

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        tokens = self._tokens
        chosen = NATURAL[self.name].attention(tokens[tile.targets, None], tokens[tile.sources], len(tokens))
        on = allowed & chosen & self._reached(level)[tile.targets, None]  # (t, s)
        return on.expand(self.graph.space.levels[level].n_heads, -1, -1)


class _LevelEdges:
    """Attention edges of one level that are on in K subgraphs: a `blocks.EdgeMask`.

    What several subgraphs need of a tile is computed once: weights, allowed edges, and the
    importances of each graph. The edges of every tile that runs are counted.

    Args:
        subgraphs: the K subgraphs.
        tallies: the counter of each subgraph, to which its edges are added.
        level: index of the level.
        frozen: whether the full run's attention weights are kept.
    """

    # edges of a tile are computed for one variant at a time, so a bucket has one variant
    shares_buckets = False

    def __init__(
        self, subgraphs: Sequence[TiledSubgraph], tallies: Sequence[Tally], level: int, frozen: bool = False
    ) -> None:
        self._subgraphs, self._tallies, self._level = subgraphs, tallies, level
        self._forward = subgraphs[0].graph.forward
        # the latest tile, and what was computed for it: weights and allowed edges by name, and
        # importances by graph
        self._tile: Tile | None = None
        self._known: dict[Any, Tensor] = {}
        self.query_tokens = torch.stack([subgraph.asks(level) for subgraph in subgraphs])  # (K, T)
        self._frozen = frozen

    @property
    def tiles(self) -> Sequence[Tile]:
        return self._forward.tiles(self._level)

    def full_weights(self, tile: Tile) -> Tensor | None:
        if not self._frozen:
            return None
        return self._once(tile, "weights", lambda: self._forward.inputs(self._level).weights(tile))

    def on(self, tile: Tile, variants: Tensor | None, tokens: Tensor | None, n_sources: int) -> Tensor:
        asked = range(len(self._subgraphs)) if variants is None else variants.flatten().tolist()
        every = [self.counted(tile, variant) for variant in asked]
        on = every[0][None] if len(every) == 1 else torch.stack(every)  # (A, H, t, s)
        return on if tokens is None else on[:, :, tokens[0] - tile.targets.start, :n_sources]

    def counted(self, tile: Tile, variant: int) -> Tensor:
        """Return which edges of a tile are on in a variant, (H, t, s) bool, and count them."""
        subgraph = self._subgraphs[variant]
        graph, level = subgraph.graph, self._level
        allowed = self._once(tile, "allowed", lambda: self._forward.inputs(level).allowed(tile))

        def importance() -> Tensor:
            return self._once(tile, graph, lambda: graph.source.importance(level, tile).attention)

        on = subgraph.attention(level, tile, allowed, importance)
        self._tallies[variant].add(level, tile, countable(on[None]), countable(allowed))
        return on

    def _once(self, tile: Tile, what: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something for a tile, or return the earlier result if the tile is the same."""
        if tile is not self._tile and tile != self._tile:
            self._tile, self._known = tile, {}
        if what not in self._known:
            self._known[what] = compute()
        return self._known[what]


def _check_counts(subgraphs: Sequence[TiledSubgraph], tallies: Sequence[Tally]) -> None:
    """Compare the number of edges that ran with the number counted before, and keep the counters.

    A threshold is only right if importances that are computed again are the same numbers.

    Raises:
        IdentityError: the numbers of edges differ.
    """
    for subgraph, counted in zip(subgraphs, tallies, strict=True):
        counted.close()
        subgraph.__dict__["_tally"] = counted
        forward, ran = subgraph.graph.forward, int(counted.n_edges[0])
        if ran != subgraph.n_edges:
            raise IdentityError(
                f"a run had {ran} edges, {subgraph.n_edges} were counted before: attention weights computed "
                f"twice on {forward.model.adapter.device} are not the same, so this input cannot be measured tile by tile"
            )
        if ran == subgraph.graph.n_edges:
            forward.__dict__["_full_tally"] = counted
