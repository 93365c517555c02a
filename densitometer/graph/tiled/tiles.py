"""Long inputs: importances, thresholds and masked runs without any stored T x T array.

A *tile* is the attention edges, of all heads, into a few targets. Of each decoder block are kept its queries and keys, the
norm that each head writes from each source, and the norms of its residual and MLP edges: O(T) numbers. The rest is
computed again, tile by tile and always the same, whenever it is asked for:

    importance    weight x written norm x scale of the branch norm, over its sum into the target
    key           min(importance, B(target)); B(source) = max of the keys out of it: one sweep from the output back
    threshold     radix selection among all keys (`histogram.py`), exact counts
    mask          key > threshold, while the model runs on packed rows

What the stored path (`graph.py`) answers is answered the same here, with one difference: a trace is that of a threshold.
Where several edges share a key, best-first growth can stop among them and a threshold cannot: a trace of a size has the
most edges that a threshold gives without exceeding it, and says how many.

Importances: those whose norms are separable, `norms.SEPARABLE`, and those of gradients of nodes and heads, `slopes.py`. Models with a gate between heads and output projection are refused: there the norm of an edge is not a product.
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
from .histogram import KeyHistogram
from .slopes import BlockSlopes, block_slopes

# Edges that could exist (layers x heads x tokens squared) up to which everything about them is stored: 57 bytes each for one
# score (dev/LOG.md, 2026-11-25), 7.6 GB. A fixed number, so that which path a measurement takes does not depend on the machine.
STORED_EDGES = 2**27
TILE_NUMBERS = {"cpu": 2**21, "cuda": 2**26}  # of weights in a tile
BATCH_BYTES = 2**29  # of activations of the variants that run together; up to 1.3 times as much was seen

# Importances from gradients, and their projections.
SLOPES = {"fisher": PROJECTIONS, "bound": BOUND_PROJECTIONS}
NORMS = {"bound": "l2"}  # norms of edges that they need
TILED = (*SEPARABLE, *SLOPES)  # importances that are computed tile by tile

NOWHERE = -math.inf  # the bottleneck of a node from which the output cannot be reached
EVERYTHING = -1.0  # a threshold below every key


def is_long(model: Model, n_tokens: int) -> bool:
    """Whether an input has more edges than are stored."""
    heads = sum(block.n_heads for block in model.adapter.blocks)
    return heads * n_tokens**2 > STORED_EDGES


def check_tiled(
    model: Model, names: Sequence[str], n_tokens: int, with_means: bool, granularity: str = "block"
) -> None:
    """Refuse what cannot be measured tile by tile.

    Raises:
        InputError: an importance that needs every edge stored, or mean ablation; ModelError: a model whose edges'
            norms are not products, or whose rows cannot be run separately.
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
    """Norms of the edges into one level, float32.

    residual: (T,). written: (H, S), what each head writes per unit of weight, or None. scale: (T,), the branch norm's.
    mlp: (T,) or None.
    """

    residual: Tensor
    written: Tensor | None
    scale: Tensor
    mlp: Tensor | None


@dataclass(frozen=True)
class TiledLayer:
    """What is kept of one decoder block.

    Args:
        sizes: by score, of its one or two levels.
    """

    levels: tuple[Level, ...]
    inputs: AttentionInputs
    sizes: dict[str, tuple[LevelSizes, ...]]
    cost: BlockCost


@dataclass(frozen=True)
class TiledPass:
    """One run of a model on one input up to one position, of which no attention weight is kept.

    Args:
        ids: token ids up to and including the position.
        logits: (vocabulary,) float32, after the last of them.
    """

    model: Model
    ids: tuple[int, ...]
    logits: Tensor
    layers: tuple[TiledLayer, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @cached_property
    def space(self) -> EdgeSpace:
        levels = tuple(level for layer in self.layers for level in layer.levels)
        return EdgeSpace(levels, self.n_tokens)

    def tiles(self, level: int) -> Sequence[Tile]:
        """Tiles of a level. One tile of everything where no attention leads into it."""
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
            attention = layer.inputs.weights(tile).float()
            attention *= sizes.written[:, None, tile.sources]
            attention *= sizes.scale[tile.targets, None]
        mlp = None if sizes.mlp is None else sizes.mlp[tile.targets]
        return PerLevel(sizes.residual[tile.targets], attention, mlp)


def run_tiled(model: Model, ids: Sequence[int], names: Sequence[str]) -> TiledPass:
    """Run a model on ids and keep what some importances are made of.

    Raises:
        ModelError: the model cannot be measured on this text.
    """
    separable = {NORMS.get(name, name) for name in names} & SEPARABLE.keys()
    keep = partial(_layer, names=sorted(separable))
    layers, logits = model.adapter.capture_tiles(ids, _tile_targets(model, len(ids)), keep)
    return TiledPass(model, tuple(ids), logits, tuple(layers))


def _tile_targets(model: Model, n_tokens: int) -> int:
    """How many targets a tile has."""
    n_heads = max(block.n_heads for block in model.adapter.blocks)
    numbers = TILE_NUMBERS.get(model.adapter.device.type, TILE_NUMBERS["cpu"])
    return max(1, numbers // (n_heads * n_tokens))


def _layer(
    block: Block, record: BlockRecord, inputs: AttentionInputs, heads: Tensor, names: Sequence[str]
) -> TiledLayer:
    n_heads = heads.shape[1]
    gate_of(block, record, heads.float())  # refuses where the projection reads something else
    write, scale, _ = attention_writes(block, record, n_heads)
    values = record.values.float()
    group = n_heads // len(values)
    sizes: dict[str, tuple[LevelSizes, ...]] = {}
    for name in names:
        size = SEPARABLE[name]
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
    """Build the graph of an importance from a recorded run up to a position.

    Args:
        ids: of the whole input.
        seed: of the projections of importances from gradients.

    Raises:
        ModelError: the model passes no gradient.
    """
    tokens = tuple(forward.model.pieces(ids))
    return TiledGraph(forward, tiled_importance(forward, name, seed), tuple(ids), tokens, position, name)


class TileImportance(Protocol):
    """An importance of the edges of one pass, a tile at a time."""

    def importance(self, level: int, tile: Tile) -> PerLevel:
        """Importances of a tile's edges, the same numbers whenever they are computed.

        residual (t,), attention (H, t, s) or None, mlp (t,) or None. An importance is 0 where the mask
        allows no edge.
        """


def tiled_importance(forward: TiledPass, name: str, seed: int = 0) -> TileImportance:
    """An importance of a pass that kept what it is made of (`run_tiled`)."""
    if name in SEPARABLE:
        return NormImportance(forward, name)
    eps = random_projections(forward.logits, SLOPES[name], seed)
    with memory_watched(f"computing {name!r} of {forward.n_tokens} tokens"):
        slopes = block_slopes(forward.model, forward.ids, _tile_targets(forward.model, forward.n_tokens), eps)
    return SlopeImportance(forward, name, tuple(slopes))


@dataclass(frozen=True)
class SlopeImportance:
    """Importance from gradients, a tile at a time: `gradients.fisher`, `gradients.bound`."""

    forward: TiledPass
    name: str
    slopes: tuple[BlockSlopes, ...]

    def importance(self, level: int, tile: Tile) -> PerLevel:
        at = self.forward.space.levels[level]
        layer, slopes = self.forward.layers[at.layer], self.slopes[at.layer]
        place = layer.levels.index(at)
        if self.name == "bound":
            gradient = slopes.nodes[place][tile.targets]
            norms = self.forward.sizes_of(level, NORMS["bound"], tile)
            attention = None if norms.attention is None else norms.attention.mul_(gradient[:, None])
            mlp = None if norms.mlp is None else norms.mlp * gradient
            return PerLevel(norms.residual * gradient, attention, mlp)
        attention = None
        if at.n_heads:
            weights = layer.inputs.weights(tile).float()
            attention = slopes.attention(weights, tile.targets, tile.sources)
        mlp = slopes.mlp[tile.targets] if at.n_units else None
        return PerLevel(slopes.residual[place][tile.targets], attention, mlp)


@dataclass(frozen=True)
class NormImportance:
    """Separable importance of a pass, a tile at a time: `norms.l1`, `norms.l2`."""

    forward: TiledPass
    name: str

    def importance(self, level: int, tile: Tile) -> PerLevel:
        sizes = self.forward.sizes_of(level, self.name, tile)
        inputs = self.forward.inputs(level)

        def existing() -> PerLevel:
            everywhere = torch.ones_like(sizes.residual, dtype=torch.bool)
            return PerLevel(everywhere, inputs.allowed(tile), everywhere)

        found = shares(sizes._replace(mlp=None if sizes.mlp is None else sizes.mlp[None]), existing)
        return found._replace(mlp=None if found.mlp is None else found.mlp[0])


@dataclass(frozen=True)
class RandomImportance:
    """Uniform importances in (0, 1], a tile at a time. Those of the output token's residual edges are 1.

    So its nodes are in every trace. Were they not, all edges would lie behind the two or three that lead
    into the output, and thresholds would give traces of few sizes only.
    """

    forward: TiledPass
    seed: int

    def importance(self, level: int, tile: Tile) -> PerLevel:
        at = self.forward.space.levels[level]
        n_targets, n_sources = tile.targets.stop - tile.targets.start, tile.sources.stop - tile.sources.start
        generator = torch.Generator().manual_seed(self.seed)
        for place in (level, tile.targets.start):  # another stream of numbers for each tile
            generator.manual_seed(int(torch.randint(2**62, (), generator=generator)) + place)
        device = self.forward.logits.device

        def drawn(*shape: int) -> Tensor:
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
    """What the sweep keeps of one level: B of its nodes, and keys of its edges, (T,) each.

    The keys are those of residual and MLP edges.

    A number is -inf where the output cannot be reached, or where there is no such edge.
    """

    bottleneck: Tensor
    residual: Tensor
    mlp: Tensor


class ReachedTile(NamedTuple):
    """Edges into some targets of one level.

    targets (t,) int64; sources: those that the tile's attention edges come from; scores: residual (t,), attention (H, t, s) or
    None, mlp (t,) or None; absent (t, s) bool: where there is no edge; bottleneck (t,): B of the targets.
    """

    level: int
    residual_kind: str
    targets: Tensor
    sources: slice
    scores: PerLevel
    absent: Tensor | None
    bottleneck: Tensor


@dataclass(frozen=True, eq=False)
class TiledGraph:
    """The edges of one forward pass with their importances, computed tile by tile.

    It answers as `graph.Graph` does.

    Args:
        input_ids: token ids of the whole input; tokens: the same, readable.
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
        """What the sweep keeps of each level."""
        return self._swept[0]

    @cached_property
    def _swept(self) -> tuple[tuple[LevelKeys, ...], KeyHistogram, float]:
        """The keys of the levels, the counts of all keys, and the largest importance."""
        device = self.forward.logits.device
        histogram, found, most = KeyHistogram(), [], torch.zeros((), device=device)
        bottleneck = torch.full((self.forward.n_tokens,), NOWHERE, device=device)
        bottleneck[-1] = math.inf
        for level in reversed(range(len(self.forward.space.levels))):
            into = (torch.full_like(bottleneck, NOWHERE), torch.full_like(bottleneck, NOWHERE))
            onward = torch.full_like(bottleneck, NOWHERE)
            for tile, rows, scores in self._reached(level, bottleneck):
                for values, place in zip((scores.residual, scores.mlp), into, strict=True):
                    if values is not None:
                        most = most.maximum(values.max())
                        place[tile.targets][rows] = values.minimum(bottleneck[tile.targets][rows])
                if scores.attention is not None:
                    most = most.maximum(scores.attention.max())
                    keys = _keys(scores.attention, bottleneck[tile.targets][rows])
                    allowed = self.forward.inputs(level).allowed(tile)[rows]
                    histogram.add(keys, len(keys) * int((~allowed).sum()))
                    best = torch.where(allowed.any(dim=0), keys.amax(dim=(0, 1)), NOWHERE)
                    onward[tile.sources] = onward[tile.sources].maximum(best)
            for place in into:
                histogram.add(place[place > NOWHERE])
                onward = onward.maximum(place)
            found.append(LevelKeys(bottleneck, *into))
            bottleneck = onward
        if not histogram.finite:
            raise PluginError(f"importance {self.importance_name!r} gave NaN or infinities")
        return tuple(reversed(found)), histogram, float(most)

    def _reached(self, level: int, bottleneck: Tensor) -> Iterator[tuple[Tile, Tensor, PerLevel]]:
        """Tiles into nodes from which the output can be reached, which rows these are (t,) bool, their importances."""
        for tile in self.forward.tiles(level):
            rows = bottleneck[tile.targets] > NOWHERE
            if not bool(rows.any()):
                continue
            scores = self.importances.importance(level, tile)
            if not bool(rows.all()):
                attention = None if scores.attention is None else scores.attention[:, rows]
                mlp = None if scores.mlp is None else scores.mlp[rows]
                scores = PerLevel(scores.residual[rows], attention, mlp)
            yield tile, rows, scores

    def reached_tiles(self) -> Iterator[ReachedTile]:
        """The importances of all edges from which the output can be reached, tile by tile, level after level."""
        for level, kept in enumerate(self.keys):
            for tile, rows, scores in self._reached(level, kept.bottleneck):
                of_attention = scores.attention is not None
                absent = ~self.forward.inputs(level).allowed(tile)[rows] if of_attention else None
                targets = rows.nonzero()[:, 0] + tile.targets.start
                yield ReachedTile(
                    level, self.forward.space.levels[level].residual_kind, targets, tile.sources, scores, absent,
                    kept.bottleneck[targets],
                )  # fmt: skip

    @property
    def threshold_steps(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Thresholds (n,), falling, and the edges (n,) of their traces, that are known already.

        No further sweep is needed for these. The last threshold is that of the full trace.
        """
        return self._swept[1].steps

    def _all_keys(self) -> Iterator[tuple[Tensor, int]]:
        """The keys of all edges that can reach the output, tile by tile, and how many zeros stand for no edge."""
        for level, kept in enumerate(self.keys):
            for values in (kept.residual, kept.mlp):
                yield values[values > NOWHERE], 0
            if self.forward.space.levels[level].n_heads:
                for tile, rows, scores in self._reached(level, kept.bottleneck):
                    absent = ~self.forward.inputs(level).allowed(tile)[rows]
                    keys = _keys(scores.attention, kept.bottleneck[tile.targets][rows])
                    yield keys, len(keys) * int(absent.sum())

    def _refined(self, bins: set[int]) -> KeyHistogram:
        """The counts of keys, exact in these bins."""
        histogram = self._swept[1]
        missing = histogram.missing(bins)
        if missing:
            histogram.refine(missing, self._all_keys())
        return histogram

    def n_edges_at(self, size: float) -> int:
        """Number of edges of a trace of a size: floor(size x E)."""
        return math.floor(checked_share("size", size) * self.n_edges)

    def trace(
        self, size: float | None = None, *, n_edges: int | None = None, threshold: float | None = None
    ) -> TiledTrace:
        """Return the trace of a threshold, or the largest within a number of edges.

        The largest is of those that a threshold gives.

        Raises:
            InputError: none or several of the three, or one out of range.
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
        """Return several traces in one pass over the edges.

        They come in the order of sizes, then numbers of edges, then thresholds.
        """
        counts = [*(self.n_edges_at(size) for size in sizes), *n_edges]
        known = self._swept[1]
        bins = {b for count in counts for b in known.bins_for_rank(count)}
        histogram = self._refined(bins | {b for tau in thresholds for b in known.bins_for_value(tau)})
        of_counts = [histogram.ranked(count) if count < self.n_edges else EVERYTHING for count in counts]
        return [self._of_threshold(threshold) for threshold in (*of_counts, *thresholds)]

    def _of_threshold(self, threshold: float) -> TiledTrace:
        histogram = self._swept[1]
        return TiledTrace(self, threshold, histogram.above(threshold))

    def natural_subgraphs(self) -> dict[str, NaturalSubgraph]:
        """Subgraphs that need no importance (`trace.NATURAL`)."""
        return {name: NaturalSubgraph(self, name) for name in NATURAL}

    def random_graph(self, seed: int = 0) -> TiledGraph:
        """Return a graph of these edges with random importances (`RandomImportance`)."""
        seed = checked_seed(seed)
        cache = self.__dict__.setdefault("_random_graphs", {})
        if seed not in cache:
            drawn = RandomImportance(self.forward, seed)
            cache[seed] = replace(self, importances=drawn, importance_name="random")
        return cache[seed]

    @property
    def threshold_range(self) -> tuple[float, float]:
        """The largest key, and the least that is above 0."""
        histogram = self._refined(self._swept[1].bins_for_rank(0) | self._swept[1].bins_for_value(0.0))
        largest = histogram.ranked(0)
        return largest, histogram.next_above(0.0) or largest

    def reached_by(self, trace: TiledTrace) -> float:
        """Return the importance that every edge of a trace reaches through a path of such edges.

        It is the largest importance of all where the trace has no edge.
        """
        least = self._swept[1].next_above(trace.threshold)
        return self._swept[2] if least is None else least

    @property
    def full_tally(self) -> Tally:
        """Cost of the full trace, which is the same for every importance."""
        known = self.forward.__dict__
        if "_full_tally" not in known:
            known["_full_tally"] = tally(self._of_threshold(EVERYTHING))
        return known["_full_tally"]


def _keys(attention: Tensor, bottleneck: Tensor) -> Tensor:
    """Compute min(importance (H, t, s), B (t,)), in place."""
    return torch.minimum(attention, bottleneck[:, None], out=attention)


class TiledSubgraph(Protocol):
    """Set of edges of a tiled graph that are on. All other edges are off."""

    @property
    def graph(self) -> TiledGraph: ...

    @property
    def n_edges(self) -> int: ...

    def residual(self, level: int) -> Tensor:
        """Targets whose residual edge is on, (T,) bool.

        `mlp` returns the same for MLP edges. `asks` returns the targets into which attention edges
        may lead.
        """

    def mlp(self, level: int) -> Tensor: ...

    def asks(self, level: int) -> Tensor: ...

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        """Edges of a tile that are on, (H, t, s) bool.

        They follow from what the mask allows (t, s), and from the importances (H, t, s), which are
        computed when needed.
        """


class _Costed:
    """Facts about a subgraph whose edges were counted, by a run or by counting alone."""

    @property
    def key(self) -> int:
        """Key of this subgraph alone, as edges are not stored to be compared."""
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
    """The edges of a graph whose keys are above a threshold, or, inverted, the others.

    Args:
        keep_residual: every residual edge is on, too.
    """

    graph: TiledGraph = field(repr=False)
    threshold: float
    n_edges: int
    inverted: bool = False
    keep_residual: bool = False

    def inverse(self, *, keep_residual: bool = False) -> TiledTrace:
        rest = TiledTrace(self.graph, self.threshold, self.graph.n_edges - self.n_edges, True)
        return rest.with_residual() if keep_residual else rest

    def with_residual(self) -> TiledTrace:
        """Return this subgraph with every residual edge, as the papers' code has it."""
        levels = range(len(self.graph.keys))
        existing = sum(int((keys.residual > NOWHERE).sum()) for keys in self.graph.keys)
        more = existing - sum(int(self.residual(level).sum()) for level in levels)
        return TiledTrace(self.graph, self.threshold, self.n_edges + more, self.inverted, True)

    def _on(self, keys: Tensor) -> Tensor:
        on = keys > self.threshold
        return (keys > NOWHERE) & ~on if self.inverted else on & (keys > NOWHERE)

    def residual(self, level: int) -> Tensor:
        keys = self.graph.keys[level].residual
        return keys > NOWHERE if self.keep_residual else self._on(keys)

    def mlp(self, level: int) -> Tensor:
        return self._on(self.graph.keys[level].mlp)

    def asks(self, level: int) -> Tensor:
        bottleneck = self.graph.keys[level].bottleneck
        return bottleneck > (NOWHERE if self.inverted else max(self.threshold, NOWHERE))

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        bottleneck = self.graph.keys[level].bottleneck[tile.targets, None]
        n_heads = self.graph.forward.space.levels[level].n_heads
        existing = allowed & (bottleneck > NOWHERE)
        if self.threshold < 0:
            on = existing.expand(n_heads, -1, -1)
            return torch.zeros_like(on) if self.inverted else on
        on = importance() > self.threshold
        on &= bottleneck > self.threshold
        return existing & ~on if self.inverted else on


@dataclass(frozen=True, eq=False)
class NaturalSubgraph(_Costed):
    """Subgraph that needs no importance (`trace.NATURAL`)."""

    graph: TiledGraph = field(repr=False)
    name: str

    @property
    def n_edges(self) -> int:
        return self.tally.n_edges

    @property
    def _reached(self) -> Callable[[int], Tensor]:
        return lambda level: self.graph.keys[level].bottleneck > NOWHERE

    def _nodes(self, level: int) -> Tensor:
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
        return reached & rule(
            tokens, tokens, len(reached)
        )  # no rule lets in other sources than the token itself alone

    def attention(self, level: int, tile: Tile, allowed: Tensor, importance: Callable[[], Tensor]) -> Tensor:
        rule = NATURAL[self.name]
        device = allowed.device
        targets = torch.arange(tile.targets.start, tile.targets.stop, device=device)[:, None]
        sources = torch.arange(tile.sources.start, tile.sources.stop, device=device)
        on = allowed & self._reached(level)[tile.targets, None]
        on = on & rule(targets, sources, self.graph.forward.n_tokens) if rule else torch.zeros_like(on)
        return on.expand(self.graph.forward.space.levels[level].n_heads, -1, -1)


class Tally:
    """Counter of a subgraph's edges and their cost, fed tile by tile in level order.

    `densitometer.graph.cost` has the rules of cost.
    """

    def __init__(self, subgraph: TiledSubgraph) -> None:
        forward = subgraph.graph.forward
        self._forward = forward
        self.n_edges, self.flops, self.parameters = 0, 0.0, 0.0
        self._live = [  # of each level, which nodes' streams are not empty
            subgraph.residual(level) | subgraph.mlp(level) for level in range(len(forward.space.levels))
        ]
        for level, at in enumerate(forward.space.levels):
            cost = forward.layers[at.layer].cost
            mlp = int(subgraph.mlp(level).sum())
            self.n_edges += int(subgraph.residual(level).sum()) + mlp
            self.flops += mlp * float(cost.mlp_flops.sum())
            self.parameters += bool(mlp) * float(cost.mlp_parameters.sum())
        self._level = -1
        self._keys = self._values = self._heads = torch.empty(0)

    def add(self, level: int, tile: Tile, allowed: Tensor, on: Tensor) -> None:
        """The attention edges (H, t, s) of a tile."""
        if level != self._level:
            self._close()
            self._level = level
            shape = (on.shape[0], self._forward.n_tokens)
            self._keys, self._values = on.new_zeros(shape), on.new_zeros(shape)
            self._heads = on.new_zeros(shape[0])
        cost = self._forward.layers[self._forward.space.levels[level].layer].cost
        active = on.any(dim=2)  # (H, t)
        count = int(on.count_nonzero())
        self.n_edges += count
        readable = allowed & self._live[level - 1][tile.sources] if level else allowed  # (t, s)
        pairs = float((active * readable.sum(dim=1)).sum())
        self.flops += int(active.sum()) * (cost.query_flops + cost.output_flops)
        self.flops += pairs * cost.score_flops + count * cost.mix_flops
        self._keys[:, tile.sources] |= active.float() @ readable.float() > 0
        self._values[:, tile.sources] |= on.any(dim=1)
        self._heads |= active.any(dim=1)
        self._live[level][tile.targets] |= active.any(dim=0)

    def _close(self) -> None:
        """Keys, values and heads of the level that was fed last, each once."""
        if self._level < 0:
            return
        cost = self._forward.layers[self._forward.space.levels[self._level].layer].cost
        group = len(self._heads) // cost.n_groups
        keys, values, heads = (
            used.unflatten(0, (-1, group)).any(dim=1) for used in (self._keys, self._values, self._heads)
        )
        self.flops += int(keys.sum()) * cost.key_flops + int(values.sum()) * cost.value_flops
        self.parameters += int(self._heads.sum()) * (cost.query_parameters + cost.output_parameters)
        self.parameters += int(heads.sum()) * (cost.key_parameters + cost.value_parameters)
        self._level = -1

    def closed(self) -> Tally:
        """Finish the count after the last tile."""
        self._close()
        return self


class _LevelEdges:
    """Which attention edges of one level are on in several subgraphs: a `blocks.EdgeMask`."""

    shares_buckets = False  # a tile's edges are computed for one variant at a time

    def __init__(
        self, subgraphs: Sequence[TiledSubgraph], tallies: Sequence[Tally], level: int, frozen: bool = False
    ) -> None:
        self._subgraphs, self._tallies, self._level = subgraphs, tallies, level
        self._forward = subgraphs[0].graph.forward
        self._tile: Tile | None = None
        self._known: dict[Any, Tensor] = {}  # of the tile
        self.query_tokens = torch.stack([subgraph.asks(level) for subgraph in subgraphs])
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
        """Which edges of a tile are on in a variant, (H, t, s) bool. They are added to its tally."""
        subgraph = self._subgraphs[variant]
        graph, level = subgraph.graph, self._level
        allowed = self._once(tile, "allowed", lambda: self._forward.inputs(level).allowed(tile))

        def importance() -> Tensor:
            return self._once(tile, graph, lambda: graph.importances.importance(level, tile).attention)

        on = subgraph.attention(level, tile, allowed, importance)
        self._tallies[variant].add(level, tile, allowed, on)
        return on

    def _once(self, tile: Tile, what: Any, compute: Callable[[], Tensor]) -> Tensor:
        if tile is not self._tile and tile != self._tile:
            self._tile, self._known = tile, {}
        if what not in self._known:
            self._known[what] = compute()
        return self._known[what]


def tally(subgraph: TiledSubgraph) -> Tally:
    """Count a subgraph without running it."""
    found = Tally(subgraph)
    for level, at in enumerate(subgraph.graph.forward.space.levels):
        if at.n_heads:
            edges = _LevelEdges([subgraph], [found], level)
            for tile in edges.tiles:
                if bool(edges.query_tokens[0, tile.targets].any()):
                    edges.counted(tile, 0)
    return found.closed()


def tiled_logits(
    subgraphs: Sequence[TiledSubgraph],
    frozen: bool = False,
    advance: Callable[[int], None] = lambda done: None,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Return logits (K, vocabulary) float32 with only the edges of each subgraph on.

    This is `masked_runs.masked_logits` for long inputs.

    Args:
        subgraphs: of one pass, whatever their importances.
        frozen: keep the full run's attention weights.
        states: as in `masked_runs.masked_logits`.

    Raises:
        IdentityError: a run did not have the edges that were counted.
        NonFiniteError: a run yields NaN or infinities.
    """
    forward = subgraphs[0].graph.forward
    blocks = forward.model.adapter.blocks
    step = max(1, BATCH_BYTES // (64 * blocks[0].hidden_size * forward.n_tokens))
    found = []
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
        found.append(logits)
        if states is not None:
            states += read[-1:]
        for subgraph, counted in zip(batch, tallies, strict=True):
            subgraph.__dict__["_tally"] = counted.closed()
            if counted.n_edges != subgraph.n_edges:
                raise IdentityError(
                    f"a run had {counted.n_edges} edges, {subgraph.n_edges} were counted before: attention weights computed "
                    f"twice on {forward.model.adapter.device} are not the same, so they cannot be measured tile by tile"
                )
            if counted.n_edges == subgraph.graph.n_edges:
                forward.__dict__["_full_tally"] = counted
        advance(len(batch))
    return torch.cat(found)


def _block_masks(
    blocks: Sequence[Block], subgraphs: Sequence[TiledSubgraph], tallies: Sequence[Tally], frozen: bool
) -> list[BlockMask]:
    def stacked(kind: str, level: int) -> Tensor:
        return torch.stack([getattr(subgraph, kind)(level) for subgraph in subgraphs])

    masks, level = [], 0
    for block in blocks:
        attention, into = _LevelEdges(subgraphs, tallies, level, frozen), None
        if not block.layout.parallel:
            into = stacked("residual", level)
            level += 1
        masks.append(BlockMask(into, attention, stacked("residual", level), stacked("mlp", level)[:, None]))
        level += 1
    return masks
