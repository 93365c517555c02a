"""Calibrate importances on models whose minimal trace is known.

A densitometer for film is calibrated on a step tablet, whose densities are known. Here each *step*
is a model built by hand (`models/tablet.py`), one input, and the exact minimal set of edges that
its prediction needs. An importance is measured on a step like this:

    1. Build the graph, and take the edges in the importance's best-first order.
    2. Run every prefix of that order, from 0 to E edges.
    3. measured = the smallest n such that TV <= 0.05 for all n' >= n. ratio = measured / expected,
       where expected is the size of the minimal set. A ratio of 1 is perfect.

The test suite shows by intervention that the set is minimal. With its edges alone TV <= 0.01. With
any one of them removed, from the set or from the full model, TV > 0.1. Components that do nothing
write zero vectors and are not in the set. An importance that puts their edges last is not
affected by them. Otherwise each of these edges adds one to the measured number.

An importance may need more edges than expected for three reasons that are not errors:

    connectivity  Every edge of a prefix has a path of edges in it to the output. Minimal sets are
                  connected, so an importance that ranks their edges above all others needs no other
                  edge. But the first edge of a path may be the least important one of the set. Then
                  every more important edge that can be reached comes before it.
    ties          Edges of equal importance are taken by index. Node-wise importances give 1 to an
                  edge that alone leads into its node, so residual chains of tokens that do not
                  matter have importance 1 too. They come only after an edge that reaches their
                  token.
    saturation    `fisher` and `bound` measure slopes. If an attention weight is near 1, a small
                  change of the key changes little. So edges that build the key have small
                  importances (`induction`). They are above those of dead edges, which are 0.
                  In a larger model they would not be above all others.

What this file does not do: it does not show how good an importance is on a trained model. The steps
are sparse, without noise, and have one path per bit of the output. `bound` uses no direction, so a
distractor misleads it as it misleads `l1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
import polars

from .._util.arguments import checked_seed
from .._util.metrics import total_variation
from ..graph.graph import Graph, build_graph
from ..graph.importance.registry import list_importances
from ..graph.masked_runs import masked_logits
from ..models import tablet
from ..models.loading import Model, load_model
from .settings import checked_importances

# One row of `Graph.edges()`: layer, kind, head, source, target.
Row = tuple[int, str, int | None, int, int]

# The measured number of edges is the smallest from which TV stays at most this.
ASKED_TV = 0.05

# Layers of the step of live MLPs, and how many of its MLPs are live.
_STAIRCASE_LAYERS = 8
_STAIRCASE_LIVE = (1, 2, 4, 8)


@dataclass(frozen=True)
class Step:
    """A model, an input, and the edges that its prediction needs.

    Args:
        description: which edges are needed, and why.
        ids: token ids. The prediction after the last one is measured.
        needed: the exact minimal set, as rows (layer, kind, head, source, target) of
            `Graph.edges()`.
    """

    name: str
    description: str
    model: Model = field(repr=False)
    ids: tuple[int, ...]
    needed: frozenset[Row] = field(repr=False)


@dataclass(frozen=True)
class CalibrationRow:
    """Number of edges that one importance needs on one step.

    Args:
        step: name of the step.
        expected_edges: edges of the minimal set.
        measured_edges: edges of the smallest best-first trace from which on TV stays at most 0.05.
            None if not even the full trace gives the prediction.
        n_edges: number E of edges of the graph.
    """

    step: str
    importance: str
    expected_edges: int
    measured_edges: int | None
    n_edges: int

    @property
    def ratio(self) -> float | None:
        """Measured over expected edges. It is at least 1, as the expected set is minimal."""
        return None if self.measured_edges is None else self.measured_edges / self.expected_edges


def calibration_steps() -> list[Step]:
    """Build every step: the staircase of live MLPs, copy, induction, distractor and relay."""
    return [*map(_live_mlps, _STAIRCASE_LIVE), _copy_head(), _induction(), _distractor(), _relay()]


def calibrate(importances: Sequence[str] | None = None, seed: int = 0) -> polars.DataFrame:
    """Measure how many edges each importance needs on models whose minimal trace is known.

    Args:
        importances: names of importances. By default all but `learned`, which takes minutes.
        seed: random seed of the importances that draw random numbers.

    Returns:
        One row per step and importance. Columns: step, importance, expected_edges, measured_edges,
        ratio, n_edges (number E of edges of the graph). measured_edges and ratio are null where
        even the full trace does not give the prediction.

    Raises:
        InputError: an importance is unknown, or none is given.

    Examples:
        >>> rows = dm.calibrate("l1")
        >>> rows.filter(rows["step"] == "distractor").select("expected_edges", "measured_edges").row(0)
        (9, 113)
    """
    quick = [name for name in list_importances() if name != "learned"]
    names = quick if importances is None else checked_importances(importances)
    seed = checked_seed(seed)
    rows = [calibrate_step(step, name, seed) for step in calibration_steps() for name in names]
    return polars.DataFrame(
        {
            "step": [row.step for row in rows],
            "importance": [row.importance for row in rows],
            "expected_edges": [row.expected_edges for row in rows],
            "measured_edges": [row.measured_edges for row in rows],
            "ratio": [row.ratio for row in rows],
            "n_edges": [row.n_edges for row in rows],
        },
        schema_overrides={"measured_edges": polars.Int64, "ratio": polars.Float64},
    )


def calibrate_step(step: Step, importance: str, seed: int = 0) -> CalibrationRow:
    """Measure how many edges one importance needs on one step, by running every prefix."""
    graph = build_graph(step.model, step.ids, importance=importance, seed=seed)
    tv = prefix_tv(graph)
    # prefixes that are not enough; the one after the last of these is measured
    off = numpy.flatnonzero(~(tv <= ASKED_TV))
    measured = int(off[-1]) + 1 if off.size else 0
    return CalibrationRow(
        step.name, importance, len(step.needed), measured if measured < tv.size else None, graph.n_edges
    )


def prefix_tv(graph: Graph) -> numpy.ndarray:
    """TV between the full model and its best-first traces of 0 to E edges, (E + 1,) float64."""
    masks = [graph.trace(n_edges=n).flat for n in range(graph.n_edges + 1)]
    return total_variation(graph.forward.logits, masked_logits(graph.forward, masks)).numpy()


# --------------------------------------------------------------------------------------- the steps


def _chain(token: int, layers: range) -> set[Row]:
    """Return the residual edges of one token through some layers, two per layer."""
    kinds = ("residual_attention", "residual_mlp")
    return {(layer, kind, None, token, token) for layer in layers for kind in kinds}


def _live_mlps(live: int) -> Step:
    """Build the step of n MLPs, of which k are live.

    There are n = 8 layers, and all attention is dead. The last MLP of every n / k is live. Each
    live one turns one bit of the last token's id into an answer. The other bits are read straight
    from the token's embedding.

    Needed are 2n + k edges:
        2n  the last token's residual chain. It carries the embedding's bits, which the MLPs and the
            output read, and what the MLPs write.
        k   the last token's live MLP edges.
    """
    layers, ids = _STAIRCASE_LAYERS, (300, 41, 77, 150, 483, 214)
    last = len(ids) - 1
    stride = layers // live
    at = range(stride - 1, layers, stride)
    module = tablet.blank_module(layers, written=range(live))
    for bit, layer in enumerate(at):
        tablet.add_mlp(module, layer, tablet.IDENTITY[bit], tablet.ANSWER[bit])
    needed = _chain(last, range(layers)) | {(layer, "mlp", None, last, last) for layer in at}
    return Step(
        f"live MLPs, {live} of {layers}",
        f"the last token's residual chain and {live} live MLPs, one bit of the answer each",
        load_model(module),
        ids,
        frozenset(needed),
    )


def _copy_head() -> Step:
    """Build the step of a head that copies a marked token.

    There are 3 layers. Head 1 of layer 1 attends to the marked token (index 2 of 7) and writes all
    of its bits but the lowest into the answer. The lowest bit is the last token's own.

    Needed are 9 edges:
        6   the last token's residual chain. It carries its own bit through all layers, the query's
            constant into layer 1, and the copied bits from there on.
        1   the head's edge from the marked token.
        2   the marked token's residual chain through layer 0. Without it key and value are 0.
    """
    ids, marked = (300, 41, 77, 150, 483, 214, 105), 2
    last, layers = len(ids) - 1, 3
    bits = range(1, tablet.N_BITS)
    module = tablet.blank_module(layers, written=bits, marked=[ids[marked]])
    tablet.add_copy_head(module, layer=1, head=1, bits=bits, gap=8.0)
    needed = _chain(last, range(layers)) | _chain(marked, range(1)) | {(1, "attention", 1, marked, last)}
    return Step(
        "copy head",
        "the last token's residual chain, the copying head's edge from the marked token, that token's chain below it",
        load_model(module),
        ids,
        frozenset(needed),
    )


def _induction() -> Step:
    """Build the step of a two-layer induction circuit: A B ... A -> B.

    A is at index 1 and last, B is at index 2, and T = 7. Head 0 of layer 0 writes each token's
    predecessor into it. Head 1 of layer 1 attends to the token whose predecessor is the last token,
    and writes all of its bits but the lowest into the answer. The lowest bit is the last token's
    own, and A and B share it.

    Needed are 8 edges:
        4   the last token's residual chain. It carries its own bit, the query and the copied bits.
        1   the edge of head 1 in layer 1, from B to the last token.
        1   the edge of head 0 in layer 0, from A to B, which makes the key.
        2   B's residual chain through layer 0. It carries the value, and its residual_mlp edge
            carries the key too.

    A needs no edge of its own, because head 0 reads its embedding.
    """
    ids = (300, 41, 77, 150, 483, 214, 41)
    first, second, last = 1, 2, len(ids) - 1
    bits = range(1, tablet.N_BITS)
    module = tablet.blank_module(2, written=bits)
    tablet.add_previous_token_head(module, layer=0, head=0, gap=8.0)
    tablet.add_induction_head(module, layer=1, head=1, bits=bits, gap=2.0)
    heads = {(0, "attention", 0, first, second), (1, "attention", 1, second, last)}
    return Step(
        "induction",
        "the last token's residual chain, the induction head's edge from B, the previous-token head's from A to B, B's "
        "chain between them",
        load_model(module),
        ids,
        frozenset(_chain(last, range(2)) | _chain(second, range(1)) | heads),
    )


def _distractor() -> Step:
    """Build the step of a distractor: heads that write large vectors without any effect.

    There are 4 layers. Head 1 of each attends to all tokens alike and writes 9 into a direction
    that nothing reads: 1.5 per edge at the last of 6 tokens, more at earlier ones. The MLP of layer
    1 writes one bit of the answer, with amount 1. So every attention edge of these heads has a
    larger norm than the MLP edge that matters. They add 1 % to the squared length of the stream, so
    layer norms scale as before.

    Needed are 9 edges: the last token's residual chain (8) and the one MLP edge.
    """
    ids, layers = (300, 41, 77, 150, 483, 214), 4
    last = len(ids) - 1
    module = tablet.blank_module(layers, written=[0])
    tablet.add_mlp(module, 1, tablet.IDENTITY[0], tablet.ANSWER[0])
    for layer in range(layers):
        tablet.add_noise_head(module, layer, head=1, amount=9.0)
    return Step(
        "distractor",
        "the last token's residual chain and one MLP; a head per layer of larger norm writes what nothing reads",
        load_model(module),
        ids,
        frozenset(_chain(last, range(layers)) | {(1, "mlp", None, last, last)}),
    )


def _relay() -> Step:
    """Build the step of a component that matters only through a later one.

    There are 3 layers. The MLP of layer 0 writes a bit of the last token into RELAY, which the
    output does not read. The MLP of layer 2 turns RELAY into the answer's bit. With the later MLP
    off, the earlier one changes nothing.

    Needed are 8 edges: the last token's residual chain (6) and both MLP edges.
    """
    ids, layers = (300, 41, 77, 150, 483, 214), 3
    last = len(ids) - 1
    module = tablet.blank_module(layers, written=[0])
    tablet.add_mlp(module, 0, tablet.IDENTITY[0], tablet.RELAY)
    tablet.add_mlp(module, 2, tablet.RELAY, tablet.ANSWER[0])
    mlps: set[Row] = {(layer, "mlp", None, last, last) for layer in (0, 2)}
    return Step(
        "relay",
        "the last token's residual chain, an MLP whose output only a later MLP reads, and that MLP",
        load_model(module),
        ids,
        frozenset(_chain(last, range(layers)) | mlps),
    )
