"""Long inputs: importances, thresholds and masked runs without any stored T x T array.

A *tile* is the attention edges, of all heads, into a few targets. Each decoder block keeps its
queries and keys, the norm that each head writes from each source, and the norms of its residual and
MLP edges. These are O(T) numbers. The rest is computed again, tile by tile, whenever it is needed,
and is the same each time:

    importance    weight x written norm x scale of the branch norm, over its sum into the target
    bottleneck    B(source) = max of the keys out of it, by one sweep from the output back
    key           min(importance, B(target)): an edge is in a trace if its key is above a threshold
    threshold     radix selection among all keys (`histogram.py`), with exact counts
    mask          key > threshold, computed while the model runs on packed rows

A `TiledGraph` answers what a stored graph (`graph.py`) answers, with one difference: its traces are
those of thresholds. Where several edges share a key, best-first growth can stop among them and a
threshold cannot. So a trace of a size has the most edges that a threshold gives without exceeding
that size, and `n_edges` tells how many those are.

Importances that work here: those whose norms are separable (`norms.SEPARABLE`), and those made of
gradients of nodes and heads (`slopes.py`). Models with a gate between heads and output projection
are refused, because there the norm of an edge is not a product.

Axes: T tokens, H query heads, S sources, t targets and s sources of a tile, K subgraphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy
import torch
from torch import Tensor

from ..._util.arguments import checked_count, checked_number, checked_seed, checked_share, only_one
from ...errors import IdentityError, InputError, ModelError, NonFiniteError, PluginError
from ...models.attention import AttentionInputs
from ...models.blocks import Block, BlockMask, BlockRecord, Tile
from ...models.counting import BlockCost, block_cost
from ...models.loading import Model
from ...models.placement import memory_watched
from ...models.unembedding import states_read
from ..forward_pass import EdgeSpace, Level, PerLevel, attention_writes, gate_of, levels_of
from ..growth import NATURAL
from ..importance.gradients import BOUND_PROJECTIONS, PROJECTIONS, random_projections
from ..importance.norms import SEPARABLE, shares
from ..targets import TargetScore
from .histogram import KeyHistogram
from .slopes import BlockSlopes, block_slopes

# An input with more possible edges (layers x heads x tokens squared) than this is measured tile by
# tile. Stored edges take 57 bytes each for one importance (dev/LOG.md, 2026-11-25), here 7.6 GB.
# The number is fixed, so that the path that a measurement takes does not depend on the machine.
STORED_EDGES = 2**27
# Attention weights in a tile, by type of device.
TILE_NUMBERS = {"cpu": 2**21, "cuda": 2**26}
# Bytes of activations of the variants that run together. Up to 1.3 times as much was seen.
BATCH_BYTES = 2**29

# Importances from gradients, with their numbers of projections.
SLOPES = {"fisher": PROJECTIONS, "bound": BOUND_PROJECTIONS}
# The norm of edges that an importance from gradients is multiplied by.
NORMS = {"bound": "l2"}
# Importances that can be computed tile by tile.
TILED = (*SEPARABLE, *SLOPES)

# Bottleneck of a node from which the output cannot be reached, and key of an edge that does not
# exist. Keys of edges are at least 0.
NOWHERE = -math.inf
# Threshold below the key of every edge, but not below NOWHERE.
EVERYTHING = -1.0


def is_long(model: Model, n_tokens: int) -> bool:
    """Whether an input has more edges than are stored."""
    heads = sum(block.n_heads for block in model.adapter.blocks)
    return heads * n_tokens**2 > STORED_EDGES


def check_tiled(
    model: Model, names: Sequence[str], n_tokens: int, with_means: bool, granularity: str = "block"
) -> None:
    """Refuse a long input that cannot be measured tile by tile.

    Args:
        names: the importances.
        n_tokens: tokens up to the position.
        with_means: whether reference means stand in for removed edges.

    Raises:
        InputError: an importance, mean ablation or the granularity needs every edge stored.
        ModelError: the norms of the model's edges are not products, or its rows cannot be run
            separately.
    """
    heads = sum(block.n_heads for block in model.adapter.blocks)
    fits = math.isqrt(STORED_EDGES // heads)
    shorter = f"or measure at most {fits} tokens"
    long = f"{n_tokens} tokens of {model.name} have {heads * n_tokens**2:,} possible edges, too many to store"
    for name in names:
        if name not in TILED:
            raise InputError(
                f"{long}, and importance {name!r} needs them stored; use one of {', '.join(TILED)}, which are computed tile "
                f"by tile, {shorter}"
            )
    if with_means:
        raise InputError(f"{long}, and reference means need them stored; use ablation='zero', {shorter}")
    if granularity != "block":
        raise InputError(
            f"{long}, and granularity={granularity!r} needs them stored; use granularity='block', {shorter}"
        )
    gated = [block.index for block in model.adapter.blocks if block.gated]
    if gated:
        raise ModelError(
            f"{long}, and layer {gated[0]} has a gate between its heads and their projection, so that the norm of an edge is "
            f"not a product; measure at most {fits} tokens"
        )
    if not model.adapter.packs:
        raise ModelError(
            f"{long}, and {model.architecture} cannot be run on some rows alone; measure at most {fits} tokens"
        )


class LevelSizes(NamedTuple):
    """Norms of the edges into one level, or what they are made of, float32.

    Args:
        residual: (T,), norms of the residual edges.
        written: (H, S), norm of what each head writes from each source per unit of attention
            weight. None where no attention leads into the level.
        scale: (T,), factor by which a norm after the attention scales what is written.
        mlp: (T,), norms of the MLP edges. None where no MLP leads into the level.
    """

    residual: Tensor
    written: Tensor | None
    scale: Tensor
    mlp: Tensor | None


@dataclass(frozen=True)
class TiledLayer:
    """The parts of one decoder block's run that are kept: O(T) numbers.

    Args:
        levels: one in a parallel block, else two.
        inputs: queries and keys, from which attention weights are computed again.
        sizes: by name of a norm, the norms of each level's edges.
        cost: operations and parameters of the block's parts.
    """

    levels: tuple[Level, ...]
    inputs: AttentionInputs
    sizes: dict[str, tuple[LevelSizes, ...]]
    cost: BlockCost


@dataclass(frozen=True)
class TiledPass:
    """One run of a model on one input up to one position, without its attention weights.

    Args:
        ids: token ids up to and including the position.
        logits: (vocabulary,) float32, after the last of them.
        layers: the kept parts of each decoder block.
        target: what importances from gradients follow; None for the whole distribution.
    """

    model: Model
    ids: tuple[int, ...]
    logits: Tensor
    layers: tuple[TiledLayer, ...]
    target: TargetScore | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @cached_property
    def space(self) -> EdgeSpace:
        levels = tuple(level for layer in self.layers for level in layer.levels)
        return EdgeSpace(levels, self.n_tokens)

    def tiles(self, level: int) -> Sequence[Tile]:
        """Tiles of a level. Where no attention leads into it, one tile holds all of it."""
        if self.space.levels[level].n_heads:
            return self.inputs(level).tiles
        everything = slice(0, self.n_tokens)
        return (Tile(everything, everything),)

    def inputs(self, level: int) -> AttentionInputs:
        return self.layers[self.space.levels[level].layer].inputs

    def sizes_of(self, level: int, name: str, tile: Tile) -> PerLevel:
        """Norms of a tile's edges: residual (t,), attention (H, t, s) or None, mlp (t,) or None."""
        layer = self.layers[self.space.levels[level].layer]
        sizes = layer.sizes[name][layer.levels.index(self.space.levels[level])]
        attention = None
        if sizes.written is not None:
            # the norm of an edge is a product: weight x written norm x scale of the branch norm
            attention = layer.inputs.weights(tile).float()  # (H, t, s)
            attention *= sizes.written[:, None, tile.sources]
            attention *= sizes.scale[tile.targets, None]
        mlp = None if sizes.mlp is None else sizes.mlp[tile.targets]
        return PerLevel(sizes.residual[tile.targets], attention, mlp)


def run_tiled(model: Model, ids: Sequence[int], names: Sequence[str]) -> TiledPass:
    """Run a model on ids, and keep the numbers from which some importances are computed.

    Args:
        names: the importances.

    Raises:
        ModelError: the model cannot be measured on this text.
    """
    separable = {NORMS.get(name, name) for name in names} & SEPARABLE.keys()
    keep = partial(_layer, names=sorted(separable))
    layers, logits = model.adapter.capture_tiles(ids, _tile_targets(model, len(ids)), keep)
    return TiledPass(model, tuple(ids), logits, tuple(layers))


def _tile_targets(model: Model, n_tokens: int) -> int:
    """Number of targets in a tile. The last tile of a level may have fewer."""
    n_heads = max(block.n_heads for block in model.adapter.blocks)
    numbers = TILE_NUMBERS.get(model.adapter.device.type, TILE_NUMBERS["cpu"])
    return max(1, numbers // (n_heads * n_tokens))


def _layer(
    block: Block, record: BlockRecord, inputs: AttentionInputs, heads: Tensor, names: Sequence[str]
) -> TiledLayer:
    """Reduce the recorded run of a block to what is kept of it.

    Args:
        heads: the heads' outputs, (T, H, V).
        names: the norms that are needed.

    Raises:
        ModelError: the output projection reads something other than the heads' outputs.
    """
    n_heads = heads.shape[1]
    # called for its check alone
    gate_of(block, record, heads.float())
    write, scale, _ = attention_writes(block, record, n_heads)
    values = record.values.float()  # (G, S, V)
    # query heads that share one key-value head
    group = n_heads // len(values)
    sizes: dict[str, tuple[LevelSizes, ...]] = {}
    for name in names:
        size = SEPARABLE[name]
        # (H, S): head by head, as the vectors of all heads together would be (H, S, D)
        written = torch.stack([size(values[h // group] @ write[h]) for h in range(n_heads)])
        residual, mlp = size(record.residual_mlp.float()), size(record.mlp.float())
        if block.layout.parallel:
            sizes[name] = (LevelSizes(residual, written, scale, mlp),)
        else:
            assert record.residual_attention is not None
            into_attention = size(record.residual_attention.float())
            sizes[name] = (
                LevelSizes(into_attention, written, scale, None),
                LevelSizes(residual, None, scale, mlp),
            )
    cost = block_cost(block, n_heads, len(values), record.key_size, values.shape[-1])
    return TiledLayer(levels_of(block, n_heads), inputs, sizes, cost)


def tiled_graph(
    forward: TiledPass, ids: Sequence[int], position: int, name: str, seed: int = 0
) -> TiledGraph:
    """Build the graph of an importance from a run of the model up to a position.

    Args:
        forward: the run, which kept what this importance is made of.
        ids: token ids of the whole input.
        position: index of the token whose prediction the graph explains.
        name: the importance.
        seed: of the random projections of importances from gradients.

    Raises:
        ModelError: the model passes no gradient.
    """
    tokens = tuple(forward.model.pieces(ids))
    return TiledGraph(forward, tiled_importance(forward, name, seed), tuple(ids), tokens, position, name)


class TileImportance(Protocol):
    """Interface of an importance that is computed a tile at a time."""

    def importance(self, level: int, tile: Tile) -> PerLevel:
        """Importances of a tile's edges. They are the same numbers whenever they are computed.

        Returns:
            residual (t,), attention (H, t, s) or None, mlp (t,) or None. An importance is 0 where
            the attention mask allows no edge.
        """


def tiled_importance(forward: TiledPass, name: str, seed: int = 0) -> TileImportance:
    """Make an importance of the edges of a run that kept what it is made of (`run_tiled`).

    Raises:
        ModelError: the model passes no gradient.
    """
    if name in SEPARABLE:
        return NormImportance(forward, name)
    eps = random_projections(forward.logits, SLOPES[name], seed)
    with memory_watched(f"computing {name!r} of {forward.n_tokens} tokens"):
        targets = _tile_targets(forward.model, forward.n_tokens)
        slopes = block_slopes(forward.model, forward.ids, targets, eps, forward.target)
    return SlopeImportance(forward, name, tuple(slopes))


@dataclass(frozen=True)
class SlopeImportance:
    """Importance from gradients, a tile at a time: `gradients.fisher` or `gradients.bound`.

    Args:
        name: "fisher" or "bound".
        slopes: of each decoder block, first to last.
    """

    forward: TiledPass
    name: str
    slopes: tuple[BlockSlopes, ...]

    def importance(self, level: int, tile: Tile) -> PerLevel:
        at = self.forward.space.levels[level]
        layer, slopes = self.forward.layers[at.layer], self.slopes[at.layer]
        place = layer.levels.index(at)
        if self.name == "bound":
            # the bound on an edge's effect: norm of its vector x norm of its target's gradient
            gradient = slopes.nodes[place][tile.targets]  # (t,)
            norms = self.forward.sizes_of(level, NORMS["bound"], tile)
            attention = None if norms.attention is None else norms.attention.mul_(gradient[:, None])
            mlp = None if norms.mlp is None else norms.mlp * gradient
            return PerLevel(norms.residual * gradient, attention, mlp)
        attention = None
        if at.n_heads:
            weights = layer.inputs.weights(tile).float()  # (H, t, s)
            attention = slopes.attention(weights, tile.targets, tile.sources)
        mlp = slopes.mlp[tile.targets] if at.n_units else None
        return PerLevel(slopes.residual[place][tile.targets], attention, mlp)


@dataclass(frozen=True)
class NormImportance:
    """Importance by separable norms, a tile at a time: `norms.l1` or `norms.l2`."""

    forward: TiledPass
    name: str

    def importance(self, level: int, tile: Tile) -> PerLevel:
        sizes = self.forward.sizes_of(level, self.name, tile)
        inputs = self.forward.inputs(level)

        def existing() -> PerLevel:
            everywhere = torch.ones_like(sizes.residual, dtype=torch.bool)
            return PerLevel(everywhere, inputs.allowed(tile), everywhere)

        # `shares` takes an axis of MLP units, which here is of one
        importance = shares(sizes._replace(mlp=None if sizes.mlp is None else sizes.mlp[None]), existing)
        return importance._replace(mlp=None if importance.mlp is None else importance.mlp[0])


@dataclass(frozen=True)
class RandomImportance:
    """Uniform random importances in (0, 1], a tile at a time.

    Those of the last token's residual edges are 1, so that its nodes are in every trace. Were they
    not, all edges would lie behind the two or three that lead into the output. No edge's key
    exceeds theirs, so thresholds would give traces of few sizes only.
    """

    forward: TiledPass
    seed: int

    def importance(self, level: int, tile: Tile) -> PerLevel:
        at = self.forward.space.levels[level]
        n_targets, n_sources = tile.targets.stop - tile.targets.start, tile.sources.stop - tile.sources.start
        # Each tile has a stream of numbers of its own, which depends on the seed and on the tile
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
        return PerLevel(residual, attention, drawn(n_targets) if at.n_units else None)


class LevelKeys(NamedTuple):
    """Bottlenecks of one level's nodes, and keys of its residual and MLP edges, (T,) float32 each.

    A number is -inf where the output cannot be reached, or where there is no such edge. Keys of
    attention edges are not kept. They are computed again from importances and bottlenecks.

    Args:
        bottleneck: B of each node: the largest importance such that a path of edges of at least
            that importance leads from the node to the output.
        residual: key of the residual edge into each node.
        mlp: key of the MLP edge into each node.
    """

    bottleneck: Tensor
    residual: Tensor
    mlp: Tensor


class ReachedTile(NamedTuple):
    """Edges into some targets of one level from which the output can be reached.

    Args:
        residual_kind: kind of the level's residual edges.
        targets: (t,) int64, target tokens.
        sources: source tokens of the tile's attention edges.
        importances: residual (t,), attention (H, t, s) or None, mlp (t,) or None.
        absent: (t, s) bool, where the attention mask allows no edge. None without attention.
        bottleneck: (t,), B of the targets.
    """

    level: int
    residual_kind: str
    targets: Tensor
    sources: slice
    importances: PerLevel
    absent: Tensor | None
    bottleneck: Tensor


@dataclass(frozen=True, eq=False)
class TiledGraph:
    """Edges of one forward pass of a long input with their importances, computed tile by tile.

    It has the methods of `graph.Graph` that measurements need.

    Args:
        forward: the run up to the position.
        importances: computes the importances of a tile.
        input_ids: token ids of the whole input.
        tokens: one readable string per id.
        position: index of the token whose prediction the graph explains.
        importance_name: name of the importance.
    """

    forward: TiledPass = field(repr=False)
    importances: TileImportance = field(repr=False)
    input_ids: tuple[int, ...] = field(repr=False)
    tokens: tuple[str, ...] = field(repr=False)
    position: int
    importance_name: str

    @property
    def n_edges(self) -> int:
        """Number E of edges that can reach the output."""
        return self._swept[1].total

    @property
    def n_layers(self) -> int:
        return len(self.forward.layers)

    @property
    def n_heads(self) -> int:
        return max(level.n_heads for level in self.forward.space.levels)

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def landmarks(self) -> dict[str, float]:
        levels = self.forward.space.levels
        mlps = sum(level.n_units for level in levels)
        return {
            "residual_chain": len(levels) / self.n_edges,
            "residual_mlp_chain": (len(levels) + mlps) / self.n_edges,
        }

    @property
    def keys(self) -> tuple[LevelKeys, ...]:
        """Bottlenecks and keys of each level, from the sweep."""
        return self._swept[0]

    @cached_property
    def _swept(self) -> tuple[tuple[LevelKeys, ...], KeyHistogram, float]:
        """The keys of each level, the counts of all keys, and the largest importance.

        They come from one sweep from the output back. All edges out of a level's nodes lead into
        the level above, so once that level is done, the bottlenecks of these nodes are known.

        Raises:
            PluginError: an importance is NaN or infinite.
        """
        device = self.forward.logits.device
        histogram, levels, most = KeyHistogram(), [], torch.zeros((), device=device)
        # (T,), B of the targets of the level. The last token's last stream is the output itself.
        bottleneck = torch.full((self.forward.n_tokens,), NOWHERE, device=device)
        bottleneck[-1] = math.inf
        for level in reversed(range(len(self.forward.space.levels))):
            # (T,) each, keys of the residual edges and of the MLP edges into the level
            into = (torch.full_like(bottleneck, NOWHERE), torch.full_like(bottleneck, NOWHERE))
            # (T,), B of the sources: the largest key of an edge out of each
            onward = torch.full_like(bottleneck, NOWHERE)
            for tile, rows, importances in self._reached(level, bottleneck):
                for values, place in zip((importances.residual, importances.mlp), into, strict=True):
                    if values is not None:
                        most = most.maximum(values.max())
                        place[tile.targets][rows] = values.minimum(bottleneck[tile.targets][rows])
                if importances.attention is not None:
                    most = most.maximum(importances.attention.max())
                    # (H, t, s); overwrites the importances, which are not needed any more
                    keys = _keys(importances.attention, bottleneck[tile.targets][rows])
                    allowed = self.forward.inputs(level).allowed(tile)[rows]  # (t, s)
                    # where no edge is allowed each head has a key of 0, which is not to be counted
                    histogram.add(keys, len(keys) * int((~allowed).sum()))
                    # (s,); a source without any edge keeps NOWHERE, which an edge of key 0 does not
                    best = torch.where(allowed.any(dim=0), keys.amax(dim=(0, 1)), NOWHERE)
                    onward[tile.sources] = onward[tile.sources].maximum(best)
            # residual and MLP edges come from the same token as they lead to
            for place in into:
                histogram.add(place[place > NOWHERE])
                onward = onward.maximum(place)
            levels.append(LevelKeys(bottleneck, *into))
            bottleneck = onward
        if not histogram.finite:
            raise PluginError(f"importance {self.importance_name!r} gave NaN or infinities")
        return tuple(reversed(levels)), histogram, float(most)

    def _reached(self, level: int, bottleneck: Tensor) -> Iterator[tuple[Tile, Tensor, PerLevel]]:
        """Tiles of a level with at least one target from which the output can be reached.

        Yields:
            The tile.
            Which of its targets these are, (t,) bool.
            The importances of the edges into these targets alone.
        """
        for tile in self.forward.tiles(level):
            rows = bottleneck[tile.targets] > NOWHERE
            if not bool(rows.any()):
                continue
            importances = self.importances.importance(level, tile)
            if not bool(rows.all()):
                attention = None if importances.attention is None else importances.attention[:, rows]
                mlp = None if importances.mlp is None else importances.mlp[rows]
                importances = PerLevel(importances.residual[rows], attention, mlp)
            yield tile, rows, importances

    def reached_tiles(self) -> Iterator[ReachedTile]:
        """Importances of all edges from which the output can be reached, tile by tile.

        Levels come first to last.
        """
        for level, kept in enumerate(self.keys):
            for tile, rows, importances in self._reached(level, kept.bottleneck):
                of_attention = importances.attention is not None
                absent = ~self.forward.inputs(level).allowed(tile)[rows] if of_attention else None
                targets = rows.nonzero()[:, 0] + tile.targets.start
                yield ReachedTile(
                    level, self.forward.space.levels[level].residual_kind, targets, tile.sources, importances, absent,
                    kept.bottleneck[targets],
                )  # fmt: skip

    @property
    def threshold_steps(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Thresholds (n,), falling, and numbers of edges (n,) above them, known without a sweep.

        The last threshold is that of the full trace.
        """
        return self._swept[1].steps

    def _all_keys(self) -> Iterator[tuple[Tensor, int]]:
        """Keys of all edges that can reach the output, tile by tile.

        Yields:
            Keys, of any shape.
            How many of them are zeros that stand for no edge.
        """
        for level, kept in enumerate(self.keys):
            for values in (kept.residual, kept.mlp):
                yield values[values > NOWHERE], 0
            if self.forward.space.levels[level].n_heads:
                for tile, rows, importances in self._reached(level, kept.bottleneck):
                    absent = ~self.forward.inputs(level).allowed(tile)[rows]
                    keys = _keys(importances.attention, kept.bottleneck[tile.targets][rows])
                    yield keys, len(keys) * int(absent.sum())

    def _refined(self, bins: set[int]) -> KeyHistogram:
        """Return the histogram of all keys, with these of its high bins counted finely."""
        histogram = self._swept[1]
        missing = histogram.missing(bins)
        if missing:
            histogram.refine(missing, self._all_keys())
        return histogram

    def n_edges_at(self, size: float) -> int:
        """Most edges that a trace of a size may have: floor(size x E)."""
        return math.floor(checked_share("size", size) * self.n_edges)

    def trace(
        self, size: float | None = None, *, n_edges: int | None = None, threshold: float | None = None
    ) -> TiledTrace:
        """Return the trace of a threshold, or the largest one within a size or number of edges.

        A trace has all edges above some threshold, so it may have fewer edges than the limit.

        Args:
            size: the most edges, as a share of all, in (0, 1].
            n_edges: the most edges.
            threshold: key above which edges are on.

        Raises:
            InputError: none or several of the three are given, or one is out of range.
        """
        only_one({"size": size, "n_edges": n_edges, "threshold": threshold})
        if threshold is not None:
            return self.traces(thresholds=[checked_number("threshold", threshold)])[0]
        if size is not None:
            return self.traces([size])[0]
        return self.traces(n_edges=[checked_count(n_edges, self.n_edges)])[0]

    def traces(
        self,
        sizes: Sequence[float] = (),
        *,
        n_edges: Sequence[int] = (),
        thresholds: Sequence[float] = (),
    ) -> list[TiledTrace]:
        """Return several traces after at most one pass over the edges.

        They come in the order of sizes, then numbers of edges, then thresholds.
        """
        counts = [*(self.n_edges_at(size) for size in sizes), *n_edges]
        known = self._swept[1]
        # One pass refines the bins that all of these traces need.
        bins = {b for count in counts for b in known.bins_for_rank(count)}
        histogram = self._refined(bins | {b for tau in thresholds for b in known.bins_for_value(tau)})
        # Ranks count from 0, so at most `count` keys are above the key of rank `count`. They are
        # fewer where that key is shared.
        of_counts = [histogram.ranked(count) if count < self.n_edges else EVERYTHING for count in counts]
        return [self._of_threshold(threshold) for threshold in (*of_counts, *thresholds)]

    def _of_threshold(self, threshold: float) -> TiledTrace:
        histogram = self._swept[1]
        return TiledTrace(self, threshold, histogram.above(threshold))

    def natural_subgraphs(self) -> dict[str, NaturalSubgraph]:
        """Return the subgraphs that need no importance, by name (`growth.NATURAL`)."""
        return {name: NaturalSubgraph(self, name) for name in NATURAL}

    def random_graph(self, seed: int = 0) -> TiledGraph:
        """Return a graph of the same edges with random importances (`RandomImportance`)."""
        seed = checked_seed(seed)
        cache = self.__dict__.setdefault("_random_graphs", {})
        if seed not in cache:
            drawn = RandomImportance(self.forward, seed)
            cache[seed] = replace(self, importances=drawn, importance_name="random")
        return cache[seed]

    @property
    def threshold_range(self) -> tuple[float, float]:
        """The largest key, and the smallest one above 0. If all keys are 0, both are 0."""
        histogram = self._refined(self._swept[1].bins_for_rank(0) | self._swept[1].bins_for_value(0.0))
        largest = histogram.ranked(0)
        return largest, histogram.next_above(0.0) or largest

    def reached_by(self, trace: TiledTrace) -> float:
        """Return the smallest key of a trace's edges.

        Each edge of the trace has at least this importance, and so has every edge of some path from
        it to the output. Of an empty trace, return the largest importance of all.
        """
        least = self._swept[1].next_above(trace.threshold)
        return self._swept[2] if least is None else least

    @property
    def full_tally(self) -> Tally:
        """Edges and cost of the full trace, counted once for all importances of a run."""
        known = self.forward.__dict__
        if "_full_tally" not in known:
            known["_full_tally"] = tally(self._of_threshold(EVERYTHING))
        return known["_full_tally"]


def _keys(attention: Tensor, bottleneck: Tensor) -> Tensor:
    """Return the keys of attention edges, min(importance (H, t, s), B (t,)), made in place."""
    return torch.minimum(attention, bottleneck[:, None], out=attention)


class TiledSubgraph(Protocol):
    """Interface of a set of edges of a tiled graph that are on. All other edges are off."""

    @property
    def graph(self) -> TiledGraph: ...

    @property
    def n_edges(self) -> int: ...

    def residual(self, level: int) -> Tensor:
        """Targets whose residual edge is on, (T,) bool."""

    def mlp(self, level: int) -> Tensor:
        """Targets whose MLP edge is on, (T,) bool."""

    def asks(self, level: int) -> Tensor:
        """Targets into which attention edges may lead, (T,) bool. They include all query tokens."""

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        """Attention edges of a tile that are on, (H, t, s) bool.

        Args:
            allowed: (t, s) bool, edges that the attention mask allows.
            importance: computes the importances (H, t, s). It is called only where they are needed.
        """


class _Costed:
    """Base of subgraphs, with their cost. Edges are counted while a subgraph runs, or alone."""

    @property
    def key(self) -> int:
        """Key that no other subgraph has. Edges are not stored, so they cannot be compared."""
        return id(self)

    @property
    def tally(self) -> Tally:
        if "_tally" not in self.__dict__:
            self.__dict__["_tally"] = tally(self)  # type: ignore[arg-type]
        return self.__dict__["_tally"]

    @property
    def size(self) -> float:
        return self.n_edges / self.graph.n_edges  # type: ignore[attr-defined]

    @property
    def flops_share(self) -> float:
        return self.tally.flops / self.graph.full_tally.flops  # type: ignore[attr-defined]

    @property
    def parameter_share(self) -> float:
        return self.tally.parameters / self.graph.full_tally.parameters  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class TiledTrace(_Costed):
    """The edges of a tiled graph whose keys are above a threshold, or all others (inverted).

    Args:
        n_edges: number of edges that are on.
        inverted: whether the edges at or below the threshold are on instead.
        keep_residual: whether every residual edge is on, too.
    """

    graph: TiledGraph = field(repr=False)
    threshold: float
    n_edges: int
    inverted: bool = False
    keep_residual: bool = False

    def inverse(self, *, keep_residual: bool = False) -> TiledTrace:
        """Return the edges that this trace leaves out, with every residual edge on request."""
        rest = TiledTrace(self.graph, self.threshold, self.graph.n_edges - self.n_edges, True)
        return rest.with_residual() if keep_residual else rest

    def with_residual(self) -> TiledTrace:
        """Return this subgraph with every residual edge added, as in the papers' code."""
        levels = range(len(self.graph.keys))
        existing = sum(int((keys.residual > NOWHERE).sum()) for keys in self.graph.keys)
        more = existing - sum(int(self.residual(level).sum()) for level in levels)
        return TiledTrace(self.graph, self.threshold, self.n_edges + more, self.inverted, True)

    def _on(self, keys: Tensor) -> Tensor:
        """Whether edges of these keys are on. A key of NOWHERE is not an edge, so it never is."""
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
        n_heads = self.graph.forward.space.levels[level].n_heads
        existing = allowed & (bottleneck > NOWHERE)  # (t, s)
        # Every key is above a negative threshold, so no importance is computed.
        if self.threshold < 0:
            on = existing.expand(n_heads, -1, -1)
            return torch.zeros_like(on) if self.inverted else on
        # min(importance, bottleneck) > threshold, (H, t, s)
        on = importance() > self.threshold
        on &= bottleneck > self.threshold
        return existing & ~on if self.inverted else on


@dataclass(frozen=True, eq=False)
class NaturalSubgraph(_Costed):
    """Subgraph that needs no importance (`growth.NATURAL`).

    Args:
        name: key of `NATURAL`, which has the rule by which attention edges are on.
    """

    graph: TiledGraph = field(repr=False)
    name: str

    @property
    def n_edges(self) -> int:
        return self.tally.n_edges

    @property
    def _reached(self) -> Callable[[int], Tensor]:
        return lambda level: self.graph.keys[level].bottleneck > NOWHERE

    def _nodes(self, level: int) -> Tensor:
        """Nodes of the subgraph, (T,) bool. Without attention edges only the last token has any."""
        reached = self._reached(level)
        if NATURAL[self.name] is None:
            reached = reached.clone()
            reached[:-1] = False
        return reached

    def residual(self, level: int) -> Tensor:
        return self._nodes(level)

    def mlp(self, level: int) -> Tensor:
        has = self.graph.forward.space.levels[level].n_units and self.name != "residual_chain"
        return self._nodes(level) if has else torch.zeros_like(self._nodes(level))

    def asks(self, level: int) -> Tensor:
        reached = self._reached(level)
        rule = NATURAL[self.name]
        if rule is None:
            return torch.zeros_like(reached)
        tokens = torch.arange(len(reached), device=reached.device)
        # A rule that lets any source in lets the token itself in, so asking for that is enough.
        return reached & rule(tokens, tokens, len(reached))

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        rule = NATURAL[self.name]
        device = allowed.device
        # (t, 1) and (s,)
        targets = torch.arange(tile.targets.start, tile.targets.stop, device=device)[:, None]
        sources = torch.arange(tile.sources.start, tile.sources.stop, device=device)
        on = allowed & self._reached(level)[tile.targets, None]  # (t, s)
        on = on & rule(targets, sources, self.graph.forward.n_tokens) if rule else torch.zeros_like(on)
        return on.expand(self.graph.forward.space.levels[level].n_heads, -1, -1)


class Tally:
    """Counter of a subgraph's edges and their cost, fed tile by tile in level order.

    `densitometer.graph.cost` has the rules of cost: a query and an output are computed for each
    (head, target) with an edge, a key for each source that such a target can read, a value for each
    source with an edge. Keys and values are shared by the heads of a group, and are computed once.
    """

    def __init__(self, subgraph: TiledSubgraph) -> None:
        forward = subgraph.graph.forward
        self._forward = forward
        self.n_edges, self.flops, self.parameters = 0, 0.0, 0.0
        # (T,) bool of each level: nodes with an incoming edge that is on. Attention edges are added
        # as they come, and a level is complete before the next one reads its streams.
        self._live = [
            subgraph.residual(level) | subgraph.mlp(level) for level in range(len(forward.space.levels))
        ]
        for level, at in enumerate(forward.space.levels):
            cost = forward.layers[at.layer].cost
            mlp = int(subgraph.mlp(level).sum())
            self.n_edges += int(subgraph.residual(level).sum()) + mlp
            self.flops += mlp * float(cost.mlp_flops.sum())
            self.parameters += bool(mlp) * float(cost.mlp_parameters.sum())
        # the level that is being fed, -1 before the first
        self._level = -1
        # which keys (H, S), values (H, S) and heads (H,) of that level are needed, bool
        self._keys = self._values = self._heads = torch.empty(0)

    def add(self, level: int, tile: Tile, allowed: Tensor, on: Tensor) -> None:
        """Count the attention edges of a tile that are on.

        Args:
            allowed: (t, s) bool, edges that the attention mask allows.
            on: (H, t, s) bool.
        """
        if level != self._level:
            self._close()
            self._level = level
            shape = (on.shape[0], self._forward.n_tokens)
            self._keys, self._values = on.new_zeros(shape), on.new_zeros(shape)
            self._heads = on.new_zeros(shape[0])
        cost = self._forward.layers[self._forward.space.levels[level].layer].cost
        # (H, t), query tokens of each head
        active = on.any(dim=2)
        count = int(on.count_nonzero())
        self.n_edges += count
        # (t, s): a query meets the key of every source that it may attend to and whose stream is
        # live, also where the edge is off, because the softmax is over all of them
        readable = allowed & self._live[level - 1][tile.sources] if level else allowed
        pairs = float((active * readable.sum(dim=1)).sum())
        self.flops += int(active.sum()) * (cost.query_flops + cost.output_flops)
        self.flops += pairs * cost.score_flops + count * cost.mix_flops
        # (H, t) @ (t, s): whether any query of the head reads the source
        self._keys[:, tile.sources] |= active.float() @ readable.float() > 0
        self._values[:, tile.sources] |= on.any(dim=1)
        self._heads |= active.any(dim=1)
        self._live[level][tile.targets] |= active.any(dim=0)

    def _close(self) -> None:
        """Add the cost of the keys, values and heads of the level that was fed last, each once."""
        if self._level < 0:
            return
        cost = self._forward.layers[self._forward.space.levels[self._level].layer].cost
        # query heads that share one key-value head
        group = len(self._heads) // cost.n_groups
        # (G, S), (G, S), (G,)
        keys, values, heads = (
            used.unflatten(0, (-1, group)).any(dim=1) for used in (self._keys, self._values, self._heads)
        )
        self.flops += int(keys.sum()) * cost.key_flops + int(values.sum()) * cost.value_flops
        self.parameters += int(self._heads.sum()) * (cost.query_parameters + cost.output_parameters)
        self.parameters += int(heads.sum()) * (cost.key_parameters + cost.value_parameters)
        self._level = -1

    def closed(self) -> Tally:
        """Finish the count after the last tile, and return it."""
        self._close()
        return self


class _LevelEdges:
    """Attention edges of one level that are on in K subgraphs, as the adapter takes them.

    It implements `blocks.EdgeMask`. What several subgraphs need of a tile is computed once:
    weights, allowed edges, and the importances of each graph. Every tile that is run is tallied.
    """

    # a tile's edges are computed for one variant at a time
    shares_buckets = False

    def __init__(
        self, subgraphs: Sequence[TiledSubgraph], tallies: Sequence[Tally], level: int, frozen: bool = False
    ) -> None:
        self._subgraphs, self._tallies, self._level = subgraphs, tallies, level
        self._forward = subgraphs[0].graph.forward
        # the last tile that was computed, and what is known of it, by name or graph
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

    def on(self, tile: Tile, variants: Tensor, rows: Tensor, n_sources: int) -> Tensor:
        (variant,) = variants.flatten().tolist()
        return self.counted(tile, variant)[:, rows[0], :n_sources][None]

    def counted(self, tile: Tile, variant: int) -> Tensor:
        """Edges of a tile that are on in a variant, (H, t, s) bool. They are tallied."""
        subgraph = self._subgraphs[variant]
        graph, level = subgraph.graph, self._level
        allowed = self._once(tile, "allowed", lambda: self._forward.inputs(level).allowed(tile))

        def importance() -> Tensor:
            return self._once(tile, graph, lambda: graph.importances.importance(level, tile).attention)

        on = subgraph.attention(level, tile, allowed, importance)
        self._tallies[variant].add(level, tile, allowed, on)
        return on

    def _once(self, tile: Tile, what: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something of a tile, unless it is known. Only the last tile's is remembered."""
        if tile is not self._tile and tile != self._tile:
            self._tile, self._known = tile, {}
        if what not in self._known:
            self._known[what] = compute()
        return self._known[what]


def tally(subgraph: TiledSubgraph) -> Tally:
    """Count a subgraph's edges and their cost without running it."""
    counted = Tally(subgraph)
    for level, at in enumerate(subgraph.graph.forward.space.levels):
        if at.n_heads:
            edges = _LevelEdges([subgraph], [counted], level)
            for tile in edges.tiles:
                if bool(edges.query_tokens[0, tile.targets].any()):
                    # called for its effect: it tallies the tile
                    edges.counted(tile, 0)
    return counted.closed()


def tiled_logits(
    subgraphs: Sequence[TiledSubgraph],
    frozen: bool = False,
    advance: Callable[[int], None] = lambda done: None,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Run the model on a long input with only the edges of each of K subgraphs on.

    This is `masked_runs.masked_logits` for long inputs.

    Args:
        subgraphs: of one forward pass. Their importances may differ.
        frozen: keep the full run's attention weights.
        advance: called with the number of subgraphs done since the last call.
        states: a list that gets what the unembedding read, as in `masked_runs.masked_logits`.

    Returns:
        Logits (K, vocabulary) float32, on the CPU.

    Raises:
        IdentityError: a run had another number of edges than was counted before.
        NonFiniteError: a run yields NaN or infinities.
    """
    forward = subgraphs[0].graph.forward
    blocks = forward.model.adapter.blocks
    # variants per batch: about sixteen float32 copies of the stream (T, D) are in memory for each
    step = max(1, BATCH_BYTES // (64 * blocks[0].hidden_size * forward.n_tokens))
    batches = []
    for start in range(0, len(subgraphs), step):
        batch = subgraphs[start : start + step]
        tallies = [Tally(subgraph) for subgraph in batch]
        masks = _block_masks(blocks, batch, tallies, frozen)
        with states_read(forward.model.adapter) as read:
            logits = forward.model.adapter.masked_logits(forward.ids, masks).cpu()
        if not bool(logits.isfinite().all()):
            raise NonFiniteError(
                f"with only some edges on, {forward.model.name} yields NaN or infinities, though the full model does not "
                f"({forward.model.adapter.dtype}); load it in a wider dtype (dtype='float32' or 'bfloat16')"
            )
        batches.append(logits)
        if states is not None:
            states += read[-1:]
        # The run counted its edges as it went. A threshold is only right if importances that are
        # computed again are the same, so the two counts must agree.
        for subgraph, counted in zip(batch, tallies, strict=True):
            subgraph.__dict__["_tally"] = counted.closed()
            if counted.n_edges != subgraph.n_edges:
                raise IdentityError(
                    f"a run had {counted.n_edges} edges, {subgraph.n_edges} were counted before: attention weights computed "
                    f"twice on {forward.model.adapter.device} are not the same, so this input cannot be measured tile by tile"
                )
            if counted.n_edges == subgraph.graph.n_edges:
                forward.__dict__["_full_tally"] = counted
        advance(len(batch))
    return torch.cat(batches)


def _block_masks(
    blocks: Sequence[Block], subgraphs: Sequence[TiledSubgraph], tallies: Sequence[Tally], frozen: bool
) -> list[BlockMask]:
    """Masks of each decoder block for K subgraphs, which are tallied as the masks are used."""

    def stacked(kind: str, level: int) -> Tensor:
        return torch.stack([getattr(subgraph, kind)(level) for subgraph in subgraphs])

    # a parallel block is one level; in a sequential one the attention leads into a level of its own
    masks, level = [], 0
    for block in blocks:
        attention, into = _LevelEdges(subgraphs, tallies, level, frozen), None
        if not block.layout.parallel:
            into = stacked("residual", level)
            level += 1
        masks.append(BlockMask(into, attention, stacked("residual", level), stacked("mlp", level)[:, None]))
        level += 1
    return masks
