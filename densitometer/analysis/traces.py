"""Composition of traces by component, and prediction against cost, summed over a study's tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import polars

from .statistics import GROUP, LEVEL, PIECE, named, package

# A component is in the static core if at least this share of the traces holds it.
STATIC = 0.95


def at_shared_sizes(table: polars.DataFrame) -> polars.DataFrame:
    """Return the rows at sizes that at least half of the measurements have.

    Measurements of each model and importance count separately.
    """
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
    """Return the traces of curves at shared sizes, without those that the bisection added."""
    return at_shared_sizes(named(curves).filter(polars.col("kind") == "trace", ~polars.col("refined")))


def curve_quartiles(curves: polars.DataFrame) -> polars.DataFrame:
    """Median and quartiles of the total variation distance (TV) at each trace size.

    Args:
        curves: `Study.curves()`.

    Returns:
        A row per model, importance and size, with lower_quartile, median and upper_quartile of the
        TV, in [0, 1], and n (traces).
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
    """Composition of traces by component, where a component is a (kind, layer, head).

    Each table has a row per model, importance, size and its own keys. n counts the traces with at
    least one edge.

    Args:
        kinds: by kind: share_of_trace (share of the trace's edges that are of the kind), share_kept
            (share of the kind's edges that are in the trace) and n.
        depth: by quarter of the layers, 1 being the first: share_of_trace, share_kept and n.
        lorenz: Lorenz curve of the use of components. Use is the share of a component's edges that
            the trace holds. `components` is a share of the components, from the least used on, and
            `use` is their share of all use.
        gini: Gini coefficient of use (0 if all components are used equally, near 1 if one alone is)
            and n.
        often: by kind, layer and head: share_of_traces that hold an edge of the component.
        core: n_static (components in at least `STATIC` of the traces), n_components and n.
    """

    kinds: polars.DataFrame
    depth: polars.DataFrame
    lorenz: polars.DataFrame
    gini: polars.DataFrame
    often: polars.DataFrame
    core: polars.DataFrame


def component_shares(components: polars.DataFrame) -> ComponentShares:
    """Compute the composition of traces by component.

    Values are means over traces, at sizes that at least half of the measurements share. An
    attention head has many more edges than an MLP, so read share_of_trace together with share_kept.

    Args:
        components: `Study.components()`.
    """
    trace = [*PIECE, "size"]
    table = at_shared_sizes(named(components).unique([*trace, "kind", "layer", "head"], maintain_order=True))
    held = polars.col("n_edges").sum().over(trace)
    table = table.with_columns(held=held).filter(polars.col("held") > 0)
    n_layers = polars.col("layer").max().over(*GROUP) + 1
    table = table.with_columns(quarter=4 * polars.col("layer") // n_layers + 1)
    key = [*GROUP, "size"]

    def shares(column: str) -> polars.DataFrame:
        sums = table.group_by(*trace, column, maintain_order=True).agg(
            polars.col("n_edges", "total").sum(), polars.col("held").first()
        )
        return (
            sums.group_by(*key, column, maintain_order=True)
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
    # 1 less twice the area under the Lorenz curve
    for names, line in lorenz.group_by(*key, maintain_order=True):
        x, y = (numpy.concatenate([[0.0], line[c].to_numpy()]) for c in ("components", "use"))
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
    """Compare what traces of a size predict with the operations that they need.

    Args:
        curves: `Study.curves()`. Traces at shared sizes count, without those that the bisection
            added.

    Returns:
        A row per model, importance and size.

        flops_share: median share of the full run's operations.
        top1, top1_low, top1_high: share of traces whose most probable token is the full model's,
            and its Wilson interval, which takes traces as independent.
        n: traces.
        accuracy: share of traces whose most probable token is the actual next one. A tie for the
            first place, as in an empty trace, counts as wrong.
        excess_surprisal: mean surprisal of the actual next token above that of the full trace,
            nats.
        n_next: traces with a known next token. Without any, the two values before are null.
    """
    proportion = package("statsmodels.stats.proportion")
    table = traces_of(curves)
    if table.is_empty():
        return polars.DataFrame(schema=_RESOURCES)
    full = table.filter(size=1.0).select(*PIECE, full="surprisal")
    table = table.join(full, on=PIECE, how="left")
    best = polars.col("top_probabilities").list
    # a tie for the first place counts as wrong, so the second probability must be smaller
    alone = (best.get(0, null_on_oob=True) > best.get(1, null_on_oob=True)).fill_null(True)
    sums = (
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
        sums["n_agreeing"].to_numpy(), sums["n"].to_numpy(), 1 - LEVEL, "wilson"
    )
    return sums.with_columns(
        top1=polars.col("n_agreeing") / polars.col("n"),
        top1_low=polars.Series(low).clip(0, 1),
        top1_high=polars.Series(high).clip(0, 1),
    ).select([polars.col(name).cast(dtype) for name, dtype in _RESOURCES.items()])


_RESOURCES = {
    "model": polars.String, "importance": polars.String, "size": polars.Float64, "flops_share": polars.Float64,
    "top1": polars.Float64, "top1_low": polars.Float64, "top1_high": polars.Float64, "n": polars.Int64,
    "accuracy": polars.Float64, "excess_surprisal": polars.Float64, "n_next": polars.Int64,
}  # fmt: skip
