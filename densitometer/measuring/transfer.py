"""How well one input's trace works on another input, and how much two traces have in common.

Transfer of A's traces to B, on one model:

    1. Build both graphs. Take the edges of A in its best-first order.
    2. Map each edge to its counterpart in B: same layer, kind and head, with tokens aligned from
       the last one, so that the i-th token from the end of A meets the i-th from the end of B.
       Edges that B does not have are dropped (before its first token, or not allowed by its masks).
       B's edges without a counterpart stay off.
    3. At every size s run B with three sets of edges: the first floor(s E) of those edges
       ("transferred"), its own trace of that size ("own"), and a connected random subgraph with as
       many edges as were transferred ("random"). E is the number of edges of B.
    4. efficiency = (area of random - area of transferred) / (area of random - area of own), with
       areas `auc_log`.

Sizes are shares of B's edges, and edges are counted after the alignment. So a transferred trace has
as many edges as B's own. Where A has fewer tokens than B its edges run out. From there on the
transferred trace, and the random one with it, does not grow.

Alignment is by place, not by meaning. With different lengths, the first token of one input, which
many heads attend to, meets an ordinary token of the other.

The overlap of two traces has three measures: the Jaccard similarity of the aligned sets of edges,
that of the components used, and the rank-biased overlap of the two best-first orders (Webber,
Moffat, Zobel 2010, "A similarity measure for indefinite rankings", RBO_ext, equation 32):

    RBO = (1-p)/p ( sum_{d=1..l} X_d/d p^d + sum_{d=s+1..l} X_s (d-s)/(s d) p^d )
          + ( (X_l - X_s)/l + X_s/s ) p^l

s and l are the lengths of the shorter and the longer order. X_d is the number of edges that are
among the first d of both. p is the depth weight.

Axes: F flat edge axis of a graph, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy
import polars
import torch
from torch import Tensor

from .._util.digits import significant
from .._util.metrics import kl_divergence, same_top1, total_variation
from ..errors import ArgumentTypeError, InputError
from ..graph.forward_pass import EdgeSpace
from ..graph.graph import Graph, Trace, build_graph
from ..graph.importance.norms import uniform_importance
from ..graph.input_pairs import both_shown
from ..models.loading import AnyModel, Model
from ..models.units import Granularity
from .density import DEFAULT_SIZES, Density
from .reconstruct import reconstruct
from .settings import Attention, MeasureSettings

Align = Literal["last", "same"]
KINDS = ("own", "transferred", "random")


@dataclass(frozen=True, eq=False)
class Transfer:
    """How well the traces of one input, A, work on another, B.

    Args:
        importance: the importance by which both inputs' traces were grown.
        curve: one row per kind and size, compared with the full model on B. Columns: kind (own,
            transferred, random), size (share of B's edges), n_edges, tv (in [0, 1]), kl (nats),
            top1 (whether the most probable token is the same).
        auc_log_own: `Density.auc_log` of B's own traces, in [0, 1].
        auc_log_transferred: the same area of A's traces.
        auc_log_random: the same area of random subgraphs.
        n_tokens: tokens up to the position, of A and of B.
        n_edges: number E of edges of B's graph.
        n_counterparts: how many of these edges have a counterpart in A's graph.

    Examples:
        >>> found = dm.transfer(model, "The captain looked at the sea", on="The sailor looked at the sea", sizes=[0.1, 0.3])
        >>> sorted(set(found.curve["kind"])), round(found.efficiency, 2)
        (['own', 'random', 'transferred'], 1.0)
    """

    importance: str
    curve: polars.DataFrame = field(repr=False)
    auc_log_own: float
    auc_log_transferred: float
    auc_log_random: float
    n_tokens: tuple[int, int]
    n_edges: int
    n_counterparts: int

    @property
    def efficiency(self) -> float | None:
        """Gain of A's traces over random subgraphs, as a share of the gain of B's own traces.

        At 1 they work as well as B's own. Above 1 they work better, as importances are not perfect.
        At 0 they work as well as random edges. Below 0 they work worse: A's edges leave out more of
        what B needs than chance does. None where B's own traces are not better than random ones, so
        that there is nothing to gain.
        """
        gain = self.auc_log_random - self.auc_log_own
        return (self.auc_log_random - self.auc_log_transferred) / gain if gain > 0 else None

    def __repr__(self) -> str:
        efficiency = (
            "no efficiency" if self.efficiency is None else f"efficiency {significant(self.efficiency, 3)}"
        )
        return (
            f"Transfer({efficiency}, by {self.importance}; {self.n_counterparts} of {self.n_edges} edges "
            "have a counterpart)"
        )


@dataclass(frozen=True, eq=False)
class Overlap:
    """How much two traces have in common, with tokens aligned from the last one.

    Args:
        jaccard: edges in both traces over edges in either, in [0, 1]. None where both traces are
            empty. An edge that the other input does not have counts as not shared.
        jaccard_components: components used by both over components used by either. A component is a
            (layer, kind, head), and is used if the trace has any of its edges.
        rank_biased_overlap: rank-biased overlap of the best-first orders of the two graphs, in
            [0, 1]. It does not depend on the traces' sizes.
        depth_weight: p of the rank-biased overlap.
        n_first: edges of the first trace.
        n_second: edges of the second trace.
        n_shared: edges in both.
        kinds: one row per kind of edge. Columns: kind; n_first, n_second, n_shared and jaccard, of
            edges; components_first, components_second, components_shared and jaccard_components.
            jaccard is null where neither trace has any.
        components: one row per component that either trace uses. Columns: layer, kind, head (null
            where there is none), n_first, n_second, n_shared, jaccard, of edges.

    Examples:
        >>> graph = dm.build_graph(model, "The captain looked")
        >>> found = dm.overlap(graph.trace(n_edges=50), graph.trace(n_edges=100))
        >>> found.n_shared, found.jaccard
        (50, 0.5)
    """

    jaccard: float | None
    jaccard_components: float | None
    rank_biased_overlap: float
    depth_weight: float
    n_first: int
    n_second: int
    n_shared: int
    kinds: polars.DataFrame = field(repr=False)
    components: polars.DataFrame = field(repr=False)


def transfer(
    model: AnyModel,
    trace_of: str | Sequence[int] | Graph,
    on: str | Sequence[int] | Graph,
    *,
    importance: str = "l1",
    sizes: Sequence[float] | None = None,
    position: int = -1,
    seed: int = 0,
    attention: Attention = "recomputed",
    granularity: Granularity = "block",
    align: Align = "last",
) -> Transfer:
    """Run one input with the traces of another.

    Args:
        model: a model, or what `load_model` takes: a name, a folder, a module.
        trace_of: input A, whose traces are used: a text, token ids, or a graph from `build_graph`.
        on: input B, which is run: a text, token ids, or a graph.
        importance: the importance by which traces are grown. Graphs must have been built with it.
        sizes: shares of B's edges, in (0, 1]. By default the 27 sizes of arXiv 2605.27033. Size 1
            is always added, as A may not have a counterpart for every edge of B.
        position: the token whose prediction is measured, in A and in B. Negative numbers count from
            the end of each. A graph keeps its own position.
        seed: random seed of the random subgraphs, and of importances that draw random numbers.
        attention: "recomputed" computes attention weights from the trace's own stream, "frozen"
            keeps those of the full run on B.
        align: "last" aligns inputs of different lengths from the last token, "same" refuses them.
        granularity: what an MLP edge is. See `build_graph`. A graph keeps its own granularity.

    Raises:
        InputError: a text, position, size, importance or option cannot be used. A graph is of
            another model, importance or granularity. With `align="same"`, the numbers of tokens
            differ.
        ArgumentTypeError: an input is neither a text, nor ids, nor a graph.
        ModelError: the model cannot be measured on one of the inputs.

    Examples:
        >>> found = dm.transfer(model, "The captain looked at the sea", on="The captain looked at the sea", sizes=[0.2])
        >>> found.efficiency  # an input's own traces
        1.0
    """
    settings = MeasureSettings(importance, sizes, seed=seed, attention=attention, granularity=granularity)
    model = settings.model_for(model)
    # size 1 too: all that A has for B need not be all of B
    wanted = sorted({*(settings.sizes or DEFAULT_SIZES), 1.0})
    first = _graph(model, trace_of, "trace_of", importance, position, seed, granularity)
    second = _graph(model, on, "on", importance, position, seed, granularity)
    _check_alignable(first, second, align)

    order = mapped_order(first, second)  # (n,), A's edges in B
    random = second.with_importance("random", uniform_importance(second.space.size, seed), seed)
    rows: list[tuple[str, float, Trace]] = []
    for size in wanted:
        kept = order[: second.n_edges_at(size)]
        flat = numpy.zeros(second.space.size, dtype=bool)  # (F,), the transferred trace as a mask
        flat[kept] = True
        rows.append(("own", size, second.trace(size=size)))
        rows.append(("transferred", size, Trace(second, flat)))
        # as many edges as were transferred, which is fewer than the size where A's edges run out
        rows.append(("random", size, random.trace(n_edges=kept.size)))
    logits = _distinct_logits(model, second, [trace for *_, trace in rows], attention)
    full = model.adapter.logits(second.forward.ids).cpu()
    curve = _curve(rows, full, logits)
    return Transfer(
        importance=second.importance_name,
        curve=curve,
        auc_log_own=_area(curve, "own"),
        auc_log_transferred=_area(curve, "transferred"),
        auc_log_random=_area(curve, "random"),
        n_tokens=(first.space.n_tokens, second.space.n_tokens),
        n_edges=second.n_edges,
        n_counterparts=int(order.size),
    )


def overlap(first: Trace, second: Trace, depth_weight: float = 0.9, align: Align = "last") -> Overlap:
    """Compare two traces of one model: how much they share by edge, by component and by rank.

    Args:
        first: a trace.
        second: another trace of the same model, of the same input or another.
        depth_weight: p of the rank-biased overlap, in (0, 1). The first 1 / (1 - p) ranks weigh
            most: at 0.9 the first 10 have 86 % of the weight, at 0.999 the first 1000.
        align: "last" aligns inputs of different lengths from the last token, "same" refuses them.

    Raises:
        InputError: the traces are of different models, the depth weight or `align` is not a
            possible value, or with `align="same"` the numbers of tokens differ.
        ArgumentTypeError: an argument is not a trace.

    Examples:
        >>> one = dm.build_graph(model, "The captain looked at the sea").trace(size=0.2)
        >>> other = dm.build_graph(model, "The sailor looked at the sea").trace(size=0.2)
        >>> round(dm.overlap(one, other).jaccard, 2)
        0.42
    """
    for trace in (first, second):
        if not isinstance(trace, Trace):
            raise ArgumentTypeError(
                f"expected two traces, got {type(trace).__name__}; cut one: graph.trace(...)"
            )
    a, b = first.graph, second.graph
    if a.model.module is not b.model.module:
        raise InputError(
            f"the traces are of different models ({a.model.name} and {b.model.name}), whose heads have no "
            "counterparts; give two traces of one loaded model"
        )
    _check_alignable(a, b, align)

    # (F of a,): for each edge of a, its index in b
    places = counterparts(a.space, b.space)
    # edges of b whose counterpart is in the first trace, and of these, those in the second trace
    mapped = places[first.flat]
    shared = mapped[mapped >= 0]
    shared = shared[second.flat[shared]]
    # (F,) each, the component of every edge
    numbers_a, numbers_b = a.space.component_numbers(by_unit=True), b.space.component_numbers(by_unit=True)
    table = _component_labels(b.space).with_columns(
        n_first=_counts(numbers_a, numpy.flatnonzero(first.flat), b.space),
        n_second=_counts(numbers_b, numpy.flatnonzero(second.flat), b.space),
        n_shared=_counts(numbers_b, shared, b.space),
    )
    used_first, used_second = polars.col("n_first") > 0, polars.col("n_second") > 0
    kinds = (
        table.group_by("kind", maintain_order=True)
        .agg(
            polars.col("n_first", "n_second", "n_shared").sum(),
            components_first=used_first.sum().cast(polars.Int64),
            components_second=used_second.sum().cast(polars.Int64),
            components_shared=(used_first & used_second).sum().cast(polars.Int64),
        )
        .with_columns(
            jaccard=_jaccard_column("n"),
            jaccard_components=_jaccard_column("components"),
        )
        .select(
            "kind", "n_first", "n_second", "n_shared", "jaccard", "components_first", "components_second",
            "components_shared", "jaccard_components",
        )
    )  # fmt: skip
    # An edge of the first order that the second input lacks gets a number that no edge of the
    # second has, so that it takes up a rank and is never shared.
    numbered = numpy.where(places >= 0, places, b.space.size + numpy.arange(places.size))
    return Overlap(
        jaccard=jaccard(first.n_edges, second.n_edges, shared.size),
        jaccard_components=jaccard(
            *(int(kinds[f"components_{which}"].sum()) for which in ("first", "second", "shared"))
        ),
        rank_biased_overlap=rank_biased_overlap(numbered[a.order], b.order, depth_weight),
        depth_weight=depth_weight,
        n_first=first.n_edges,
        n_second=second.n_edges,
        n_shared=int(shared.size),
        kinds=kinds,
        components=table.filter(used_first | used_second).with_columns(jaccard=_jaccard_column("n")),
    )


def counterparts(first: EdgeSpace, second: EdgeSpace) -> numpy.ndarray:
    """Map the edges of one input to those of another, with tokens aligned from the last one.

    Both inputs are of one model.

    Returns:
        For each edge of the first input, its index on the flat axis of the second, (F,) int64. It
        is -1 where source or target would be before the second input's first token.
    """
    assert first.levels == second.levels, "two edge spaces of one model have the same levels"
    # the tokens that both inputs have, counted from the end
    shared = min(first.n_tokens, second.n_tokens)
    ends_first = slice(first.n_tokens - shared, None)
    ends_second = slice(second.n_tokens - shared, None)
    places = numpy.full(first.size, -1, dtype=numpy.int64)
    # Each edge of the second input holds its own index. The shared ends are copied level by level.
    numbers = numpy.arange(second.size, dtype=numpy.int64)
    for into, of in zip(first.views(places), second.views(numbers), strict=True):
        into.residual[ends_first] = of.residual[ends_second]
        if into.attention is not None:
            into.attention[:, ends_first, ends_first] = of.attention[:, ends_second, ends_second]
        if into.mlp is not None:
            into.mlp[:, ends_first] = of.mlp[:, ends_second]
    return places


def mapped_order(first: Graph, second: Graph) -> numpy.ndarray:
    """Map the best-first order of one graph to the edges of another, without those that it lacks.

    Returns:
        Indices on the second graph's flat axis, most important first, (n,) int64. n is at most the
        second graph's number of edges.
    """
    places = counterparts(first.space, second.space)[first.order]
    places = places[places >= 0]
    kept: numpy.ndarray = places[second.reachable[places]]
    return kept


def jaccard(n_first: int, n_second: int, n_shared: int) -> float | None:
    """Jaccard similarity of two sets, from their sizes. None where both sets are empty."""
    n_either = n_first + n_second - n_shared
    return n_shared / n_either if n_either else None


def rank_biased_overlap(first: numpy.ndarray, second: numpy.ndarray, depth_weight: float = 0.9) -> float:
    """Return the extrapolated rank-biased overlap of two orders, RBO_ext.

    The equation is at the top of this file.

    Args:
        first: (n,) integers without repetition, best first.
        second: (m,) integers without repetition, best first.
        depth_weight: p, in (0, 1).

    Returns:
        A number in [0, 1]. It is 1 for two equal orders, and where the longer order starts with the
        shorter. It is 0 where nothing is shared.

    Raises:
        InputError: the depth weight is not in (0, 1), or an order is empty.
    """
    if (
        isinstance(depth_weight, bool)
        or not isinstance(depth_weight, int | float)
        or not 0 < depth_weight < 1
    ):
        raise InputError(f"depth_weight is a number strictly between 0 and 1; got {depth_weight!r}")
    shorter, longer = sorted((len(first), len(second)))
    if not shorter:
        raise InputError("rank-biased overlap needs two orders of at least one entry; got an empty one")
    _, in_first, in_second = numpy.intersect1d(first, second, assume_unique=True, return_indices=True)
    # for each shared entry, the depth (from 0) from which on both orders hold it
    seen_at = numpy.maximum(in_first, in_second)
    # (l,): X_d, d and p^d for d = 1 to l
    in_both = numpy.bincount(seen_at, minlength=longer).cumsum()
    depth = numpy.arange(1, longer + 1)
    weight = float(depth_weight) ** depth
    # X_s and X_l
    at_shorter, at_longer = float(in_both[shorter - 1]), float(in_both[-1])
    agreement = in_both / depth + at_shorter * numpy.maximum(depth - shorter, 0) / (shorter * depth)
    tail = (at_longer - at_shorter) / longer + at_shorter / shorter
    similarity = (1 - depth_weight) / depth_weight * (agreement * weight).sum() + tail * weight[-1]
    # rounding can end above 1
    return min(float(similarity), 1.0)


def _graph(
    model: Model,
    given: str | Sequence[int] | Graph,
    name: str,
    importance: str,
    position: int,
    seed: int,
    granularity: Granularity,
) -> Graph:
    """Return the graph of an input: one that is built from text or ids, or the one that is given.

    Args:
        name: name of the parameter, for messages.

    Raises:
        InputError: a given graph is of another model or importance.
        ArgumentTypeError: a trace is given.
    """
    if isinstance(given, Trace):
        raise ArgumentTypeError(
            f"{name} is a text, token ids or a graph, whose traces of every size are used; got one trace. "
            "Give trace.graph"
        )
    if not isinstance(given, Graph):
        return build_graph(
            model, given, position=position, importance=importance, seed=seed, granularity=granularity
        )
    if given.model.module is not model.module:
        raise InputError(
            f"{name} is a graph of another model ({given.model.name}), not of {model.name}: its edges have "
            "no counterparts; build it from the model that is given"
        )
    if given.importance_name != importance:
        raise InputError(
            f"{name} is a graph by {given.importance_name!r}, but importance is {importance!r}; "
            "traces of both inputs must be grown by one importance"
        )
    return given


def _check_alignable(first: Graph, second: Graph, align: str) -> None:
    """Refuse two graphs whose edges cannot be aligned.

    Raises:
        InputError: `align` is unknown, or granularities or numbers of tokens differ.
    """
    if align not in ("last", "same"):
        raise InputError(f"unknown align {align!r}; expected 'last' or 'same'")
    if first.granularity != second.granularity:
        raise InputError(
            f"the edges of the two graphs are not of one granularity: {first.granularity!r} and {second.granularity!r}; "
            "build both with the same granularity"
        )
    counts = (first.space.n_tokens, second.space.n_tokens)
    if align == "same" and counts[0] != counts[1]:
        raise InputError(
            f"the inputs have {counts[0]} and {counts[1]} tokens up to the position, expected the same number: "
            f"{both_shown(first.model, first.forward.ids, second.forward.ids)}; align='last' aligns them from the last token"
        )


def _distinct_logits(model: Model, graph: Graph, traces: Sequence[Trace], attention: Attention) -> Tensor:
    """Run each distinct trace once, so that equal traces give equal numbers.

    Returns:
        Logits of all traces, (traces, vocabulary).
    """
    places: dict[bytes, int] = {}
    distinct: list[Trace] = []
    which: list[int] = []
    for trace in traces:
        key = numpy.packbits(trace.flat).tobytes()
        if key not in places:
            places[key] = len(distinct)
            distinct.append(trace)
        which.append(places[key])
    logits = reconstruct(model, graph, distinct, attention=attention)
    return logits[torch.tensor(which)]


def _curve(rows: Sequence[tuple[str, float, Trace]], full: Tensor, logits: Tensor) -> polars.DataFrame:
    """Return the table of a transfer, a row per trace, by kind as in KINDS and by rising size."""
    table = polars.DataFrame(
        {
            "kind": [kind for kind, *_ in rows],
            "size": [size for _, size, _ in rows],
            "n_edges": [trace.n_edges for *_, trace in rows],
            "tv": total_variation(full, logits).tolist(),
            "kl": kl_divergence(full, logits).tolist(),
            "top1": same_top1(full, logits).tolist(),
        }
    )
    return polars.concat([table.filter(polars.col("kind") == kind) for kind in KINDS])


def _area(curve: polars.DataFrame, kind: str) -> float:
    """`Density.auc_log` of the rows of one kind."""
    rows = curve.filter(polars.col("kind") == kind)
    return Density(tuple(rows["size"]), tuple(rows["tv"])).auc_log


def _component_labels(space: EdgeSpace) -> polars.DataFrame:
    """Return a row per component of a model: layer, kind, head (null where there is none).

    Where MLPs have units, there is a column unit too (null for other components).
    """
    rows = [component[1:] for component in space.components(by_unit=True)]
    schema = {"layer": polars.Int32, "kind": polars.String, "head": polars.Int32, "unit": polars.Int32}
    table = polars.DataFrame(rows, schema=schema, orient="row")
    table = table.with_columns(polars.col("head", "unit").replace(-1, None))
    return table if any(level.n_units > 1 for level in space.levels) else table.drop("unit")


def _counts(numbers: numpy.ndarray, edges: numpy.ndarray, space: EdgeSpace) -> polars.Series:
    """Count how many of some edges each component has, a number per component.

    Args:
        numbers: (F,), the component of every edge of the flat axis.
        edges: (n,), indices on the flat axis.
    """
    n_components = sum(1 + level.n_heads + level.n_units for level in space.levels)
    counts = numpy.bincount(numbers[edges], minlength=n_components)
    return polars.Series(counts, dtype=polars.Int64)


def _jaccard_column(name: str) -> polars.Expr:
    """Expression for `jaccard` of the columns name_first, name_second and name_shared.

    It is null where the first two are 0.
    """
    shared = polars.col(f"{name}_shared")
    either = polars.col(f"{name}_first") + polars.col(f"{name}_second") - shared
    return polars.when(either > 0).then(shared / either)
