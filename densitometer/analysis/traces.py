"""What traces are made of, and what a share of the operations buys: sums over curves and components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import polars

from .statistics import GROUP, LEVEL, PIECE, named, package

STATIC = 0.95  # of the traces hold a component of the static core


def at_shared_sizes(table: polars.DataFrame) -> polars.DataFrame:
    """The rows at the sizes that at least half of the measurements of a model and importance have."""
    known = table.unique(PIECE).group_by(*GROUP, maintain_order=True).len("n_pieces")
    sizes = (
        table.unique([*PIECE, "size"])
        .group_by(*GROUP, "size", maintain_order=True)
        .len("n_traces")
        .join(known, on=GROUP)
    )
    sizes = sizes.filter(2 * polars.col("n_traces") >= polars.col("n_pieces"))
    return table.join(sizes.select(*GROUP, "size"), on=[*GROUP, "size"], maintain_order="left")


def traces_of(curves: polars.DataFrame) -> polars.DataFrame:
    """The traces of a curve at the common sizes, without those that a search added."""
    return at_shared_sizes(named(curves).filter(polars.col("kind") == "trace", ~polars.col("refined")))


def curve_quartiles(curves: polars.DataFrame) -> polars.DataFrame:
    """TV over size.

    Args:
        curves: `Study.curves()`.

    Returns:
        model, importance, size, lower_quartile, median, upper_quartile (of the TV over traces, in [0, 1]), n (traces).
    """
    tv = polars.col("tv")
    quartiles = {
        name: tv.quantile(at, "linear")
        for name, at in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75))
    }
    return (
        traces_of(curves)
        .group_by(*GROUP, "size", maintain_order=True)
        .agg(**quartiles, n=polars.len())
        .sort(*GROUP, "size")
    )


@dataclass(frozen=True, eq=False)
class ComponentShares:
    """Shares of the components that traces are made of.

    A component is a (kind, layer, head). n counts the traces that hold any edge at all.

    Args:
        kinds: model, importance, size, kind, share_of_trace (of the trace's edges), share_kept (of the kind's edges), n.
        depth: model, importance, size, quarter (of the layers, 1 is the first), and the same.
        lorenz: model, importance, size, components (share of them, from the least used on), use (share of all use that is
            theirs). Use is the share of a component's own edges that the trace holds; components count alike.
        gini: model, importance, size, gini (0 all are used alike, towards 1 one alone), n.
        often: model, importance, size, kind, layer, head, share_of_traces (that hold an edge of it).
        core: model, importance, size, n_static (components in at least `STATIC` of the traces), n_components, n.
    """

    kinds: polars.DataFrame
    depth: polars.DataFrame
    lorenz: polars.DataFrame
    gini: polars.DataFrame
    often: polars.DataFrame
    core: polars.DataFrame


def component_shares(components: polars.DataFrame) -> ComponentShares:
    """Sum up `Study.components()`: means over traces, at the sizes that at least half of the measurements share.

    Shares of edges: an attention head has many more edges than an MLP, so read share_of_trace beside share_kept.
    """
    trace = [*PIECE, "size"]
    table = at_shared_sizes(named(components).unique([*trace, "kind", "layer", "head"], maintain_order=True))
    held = polars.col("n_edges").sum().over(trace)
    table = table.with_columns(held=held).filter(polars.col("held") > 0)
    n_layers = polars.col("layer").max().over(*GROUP) + 1
    table = table.with_columns(quarter=4 * polars.col("layer") // n_layers + 1)
    key = [*GROUP, "size"]

    def shares(column: str) -> polars.DataFrame:
        own = table.group_by(*trace, column, maintain_order=True).agg(
            polars.col("n_edges", "total").sum(), polars.col("held").first()
        )
        return (
            own.group_by(*key, column, maintain_order=True)
            .agg(
                share_of_trace=(polars.col("n_edges") / polars.col("held")).mean(),
                share_kept=(polars.col("n_edges") / polars.col("total")).mean(),
                n=polars.len(),
            )
            .sort(*key, column)
        )

    use = table.with_columns(use=polars.col("n_edges") / polars.col("total")).sort(*trace, "use")
    curve = use.select(
        *trace,
        components=polars.int_range(1, polars.len() + 1).over(trace) / polars.len().over(trace),
        use=polars.col("use").cum_sum().over(trace) / polars.col("use").sum().over(trace),
    )
    lorenz = (
        curve.group_by(*key, "components", maintain_order=True)
        .agg(polars.col("use").mean())
        .sort(*key, "components")
    )
    counts = table.unique(trace).group_by(*key, maintain_order=True).len("n")
    gini = []
    for names, own in lorenz.group_by(*key, maintain_order=True):
        x, y = (numpy.concatenate([[0.0], own[c].to_numpy()]) for c in ("components", "use"))
        gini.append(dict(zip(key, names, strict=True)) | {"gini": 1 - 2 * float(numpy.trapezoid(y, x))})
    schema = {name: table.schema[name] for name in key}
    component = ["kind", "layer", "head"]
    often = table.group_by(*key, *component, maintain_order=True).agg(
        share_of_traces=(polars.col("n_edges") > 0).mean()
    )
    core = often.group_by(*key, maintain_order=True).agg(
        n_static=(polars.col("share_of_traces") >= STATIC).sum(), n_components=polars.len()
    )
    return ComponentShares(
        shares("kind"),
        shares("quarter"),
        lorenz,
        polars.DataFrame(gini, schema=schema | {"gini": polars.Float64}).join(counts, on=key).sort(*key),
        often.sort(*key, *component),
        core.join(counts, on=key).sort(*key),
    )


def resources(curves: polars.DataFrame) -> polars.DataFrame:
    """What traces of a size predict, against the operations that they need.

    Args:
        curves: `Study.curves()`; its traces at the common sizes count, not the sizes that a search added.

    Returns:
        model, importance, size, flops_share (median; of the full run's operations), top1 (share of traces whose most
        probable token is the model's own), top1_low, top1_high (Wilson; traces taken as independent), n (traces), accuracy
        (share whose most probable token is the actual next one; where several tie for the first place, as in an empty trace,
        it is wrong), excess_surprisal (mean nats of the actual next token above
        the full trace's), n_next (traces with a known next token; the two are null where there are none).
    """
    proportion = package("statsmodels.stats.proportion")
    table = traces_of(curves)
    if table.is_empty():
        return polars.DataFrame(schema=_RESOURCES)
    full = table.filter(size=1.0).select(*PIECE, full="surprisal")
    table = table.join(full, on=PIECE, how="left")
    best = polars.col("top_probabilities").list
    alone = (best.get(0, null_on_oob=True) > best.get(1, null_on_oob=True)).fill_null(True)
    found = (
        table.group_by(*GROUP, "size", maintain_order=True)
        .agg(
            flops_share=polars.col("flops_share").median(),
            n_agreeing=polars.col("top1").sum(),
            n=polars.len(),
            accuracy=((polars.col("rank") == 1) & alone).mean(),
            excess_surprisal=(polars.col("surprisal") - polars.col("full")).mean(),
            n_next=polars.col("surprisal").is_not_null().sum(),
        )
        .sort(*GROUP, "size")
    )
    low, high = proportion.proportion_confint(
        found["n_agreeing"].to_numpy(), found["n"].to_numpy(), 1 - LEVEL, "wilson"
    )
    return found.with_columns(
        top1=polars.col("n_agreeing") / polars.col("n"),
        top1_low=polars.Series(low).clip(0, 1),
        top1_high=polars.Series(high).clip(0, 1),
    ).select([polars.col(name).cast(dtype) for name, dtype in _RESOURCES.items()])


_RESOURCES = {
    "model": polars.String, "importance": polars.String, "size": polars.Float64, "flops_share": polars.Float64,
    "top1": polars.Float64, "top1_low": polars.Float64, "top1_high": polars.Float64, "n": polars.Int64,
    "accuracy": polars.Float64, "excess_surprisal": polars.Float64, "n_next": polars.Int64,
}  # fmt: skip
