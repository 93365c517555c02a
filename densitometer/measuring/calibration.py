"""Calibration: models whose minimal trace is known, as a densitometer is calibrated on a step tablet.

Each step is a model built by hand (`models/tablet.py`), one input, and the exact minimal set of edges that its
prediction needs. Measured is what an importance needs:

    1. Build the graph, take the edges in the importance's best-first order.
    2. Run every prefix, 0 to E edges.
    3. measured = the smallest n such that TV <= 0.05 for all n' >= n. ratio = measured / expected; 1 is perfect.

The minimal set is minimal by intervention, and the test suite holds it: with these edges alone TV <= 0.01; with any
single one of them removed, from the set or from the full model, TV > 0.1. Components that do nothing carry zero
vectors, so they cost an importance nothing if it puts them last and one edge each if it does not; expected counts none.

Where an importance needs more than expected without being fooled:

    Connectivity  a prefix is connected to the output: to take an edge it must have taken a path down to it. Steps are
                  built so that the minimal set is connected, so an importance that ranks its edges above all others needs
                  no bridge. Where the weakest edge of the set is the first of its path, everything that is reached and
                  scores higher comes before it, and so does what becomes reachable by that.
    Ties          go to the lower edge index. Node-wise importances give 1 to an edge that is alone in feeding its node, so
                  the residual chains of tokens that do not matter score 1 too. They come only after an edge that
                  reaches their token.
    Saturation    `fisher` and `bound` see slopes. A head that is sure of its match answers little to a small change of
                  its key, so the edges that build the key score low (`induction`); above the dead edges, which score
                  0, but in a larger model not above all others.

What this does not do: it does not show how an importance does on a trained model; the steps are sparse, noiseless and
have one path per bit of the output. `bound` is a bound: it has no direction, so a distractor fools it as it does `l1`.
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

Row = tuple[int, str, int | None, int, int]  # layer, kind, head, source, target: one row of `Graph.edges()`

ASKED_TV = 0.05  # measured is the smallest size from which TV stays at most this

_STAIRCASE_LAYERS = 8
_STAIRCASE_LIVE = (1, 2, 4, 8)


@dataclass(frozen=True)
class Step:
    """A model, an input, and the edges that its prediction needs.

    Args:
        description: which edges are needed and why.
        ids: token ids; the prediction after the last one is measured.
        needed: the exact minimal set, as rows (layer, kind, head, source, target) of `Graph.edges()`.
    """

    name: str
    description: str
    model: Model = field(repr=False)
    ids: tuple[int, ...]
    needed: frozenset[Row] = field(repr=False)


@dataclass(frozen=True)
class CalibrationRow:
    """Edges that one importance needs on one step.

    Args:
        expected_edges: edges of the minimal set.
        measured_edges: the smallest best-first trace from which on TV stays at most 0.05; None if not even the full
            trace gives the prediction back.
        n_edges: E, edges of the graph.
    """

    step: str
    importance: str
    expected_edges: int
    measured_edges: int | None
    n_edges: int

    @property
    def ratio(self) -> float | None:
        """measured / expected, at least 1 where the minimal set is right."""
        return None if self.measured_edges is None else self.measured_edges / self.expected_edges


def calibration_steps() -> list[Step]:
    """Every step, built anew: the staircase of live MLPs, copy, induction, distractor, relay."""
    return [*map(_live_mlps, _STAIRCASE_LIVE), _copy_head(), _induction(), _distractor(), _relay()]


def calibrate(importances: Sequence[str] | None = None, seed: int = 0) -> polars.DataFrame:
    """Measure every step with every importance.

    Args:
        importances: by name; by default all but `learned`, which takes minutes.
        seed: for importances that draw random numbers.

    Returns:
        One row per step and importance: step, importance, expected_edges, measured_edges, ratio, n_edges (E of the
        graph). measured_edges and ratio are null where even the full trace is off.

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
    """Run every prefix of one importance's best-first order on one step."""
    graph = build_graph(step.model, step.ids, importance=importance, seed=seed)
    tv = prefix_tv(graph)
    off = numpy.flatnonzero(~(tv <= ASKED_TV))
    measured = int(off[-1]) + 1 if off.size else 0
    return CalibrationRow(
        step.name, importance, len(step.needed), measured if measured < tv.size else None, graph.n_edges
    )


def prefix_tv(graph: Graph) -> numpy.ndarray:
    """TV to the full model of the best-first traces of 0 to E edges, (E + 1,) float64."""
    masks = [graph.trace(n_edges=n).flat for n in range(graph.n_edges + 1)]
    return total_variation(graph.forward.logits, masked_logits(graph.forward, masks)).numpy()


# --------------------------------------------------------------------------------------------- the steps


def _chain(token: int, layers: range) -> set[Row]:
    """The residual edges of one token through these layers, two a layer."""
    kinds = ("residual_attention", "residual_mlp")
    return {(layer, kind, None, token, token) for layer in layers for kind in kinds}


def _live_mlps(live: int) -> Step:
    """Step of n MLPs, of which k are live.

    n = 8 layers, all attention dead, the last k MLPs of every 8 / k live: each turns one bit of the last token's id
    into an answer. The other bits are read straight from its embedding. Needed: the last token's residual chain (2n
    edges: the embedding's bits and what the MLPs read come down it, and what they write goes on in it) and its k live
    MLP edges. 2n + k.
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
    """Step of a copy head.

    3 layers; head 1 of layer 1 attends to the marked token (index 2 of 7) and writes its bits but the lowest into the
    answer; the lowest is the last token's own. Needed: the last token's residual chain (6 edges: it carries the own bit
    through all layers, the query's constant into layer 1, and the copied bits on), the head's edge from the marked
    token, and that token's residual chain through layer 0 (2 edges: without it key and value are 0). 9.
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
    """Step of a two-layer induction circuit: A B ... A -> B.

    A is at index 1 and last, B at 2, T = 7. Head 0 of layer 0 writes each token's predecessor into it; head 1 of layer 1
    attends to the token whose predecessor is the last token, and writes its bits but the lowest into the answer; the
    lowest is the last token's own (A and B share it). Needed: the last token's residual chain (4 edges: the own bit,
    the query, the copied bits), in layer 1 the head's edge from B to the last token, in layer 0 the head's edge from A to
    B (the key) and B's residual chain (2 edges: it carries the value, and the residual_mlp edge the key too). 8. A needs
    no edge of its own: the head reads its embedding.
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
    """Step of a distractor: large norm, no effect.

    4 layers; head 1 of each attends to all tokens alike and writes 9 into a direction that nothing reads (1.5 per edge
    at the last of 6 tokens, more at earlier ones); the MLP of layer 1 writes one bit of the answer, amount 1. The noise
    adds 1 % to the squared length of the stream, so the norms' scale stays. Needed: the last token's residual chain (8
    edges) and the one MLP edge. 9. Every attention edge of the noise heads has a larger norm than the edge that matters.
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
    """Step of a component that matters only through a later one.

    3 layers; the MLP of layer 0 writes a bit of the last token into RELAY, which the output does not read; the MLP of
    layer 2 turns RELAY into the answer's bit. Needed: the last token's residual chain (6 edges) and both MLP edges. 8.
    With the later MLP off, the earlier one changes nothing.
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
