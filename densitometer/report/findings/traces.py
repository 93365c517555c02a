"""Findings on how predictions return as traces grow, and on what traces consist of and cost."""

from __future__ import annotations

import numpy
import polars

from ..._util.digits import percent
from ...analysis import STATIC, curve_quartiles, resources
from ..figures import PANELS, draw_components, draw_curves, draw_lorenz, draw_resources
from .finding import Evidence, Finding, LeftOut, between, cut, number, span, words

# Components of a static core that are named; of more, only their number is given.
MOST_MEMBERS = 6


def how_it_comes_back(evidence: Evidence) -> Finding | LeftOut:
    """Finding on the total variation distance (TV) over trace size."""
    name = "How the prediction comes back"
    table = curve_quartiles(evidence.curves)
    if table.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    details, medians = [], []
    for (model, importance), rows in table.group_by("model", "importance", maintain_order=True):
        at = {row["size"]: row["median"] for row in rows.iter_rows(named=True)}
        values = [f"{at[size]:z.2f} at {percent(size)}" for size in (1e-4, 1e-2, 0.1, 0.4) if size in at]
        details.append((f"{model} by {importance}", ", ".join(values) or "see the table"))
        medians += [(size, at[size]) for size in (1e-2, 0.1) if size in at]
    quoted = [
        f"{span([tv for at, tv in medians if at == size], number)} at {percent(size)}"
        for size in sorted({size for size, _ in medians})
    ]
    landmarks = evidence.measured["residual_mlp_chain"]
    landmark = landmarks.median()
    return Finding(
        name,
        "The median distance to the model's prediction (TV) is "
        f"{' and '.join(quoted) or 'see the table'} of the edges.",
        draw_curves(table, float(landmark) if isinstance(landmark, float) else None, evidence.eps),
        {"Quartiles of TV by size": table},
        "The band is the middle half of the measurements. Left of the dotted line (median over texts of 3L/E) a trace is "
        "too small even for the last token's own path with its MLPs. TV there depends on size and entropy, not on the model.",
        "A curve with a single slope, or one that falls elsewhere, would have refuted the May paper's two phases (construction "
        "from 1e-4 to 1e-2, refinement above).",
        details=tuple(details),
    )


def what_traces_are_made_of(evidence: Evidence) -> Finding | LeftOut:
    """Finding on the kinds, depths and components of edges in traces."""
    name = "What traces are made of"
    shares = evidence.component_shares
    if shares.kinds.is_empty():
        return LeftOut(name, "the study stored no component shares, or its texts share no sizes")
    details, first, last = [], [], []
    for (model, importance), depth in shares.depth.group_by("model", "importance", maintain_order=True):
        group = {"model": model, "importance": importance}
        size = min(depth["size"].unique(), key=lambda s: abs(s - 0.1))
        at = dict(depth.filter(size=size).select("quarter", "share_kept").iter_rows())
        core = shares.core.filter(**group, size=size).row(0, named=True)
        kinds = dict(shares.kinds.filter(**group, size=size).select("kind", "share_kept").iter_rows())
        first.append(at[min(at)])
        last.append(at[max(at)])
        details.append(
            (
                f"{model} by {importance}, at {percent(size)} of all edges",
                f"{percent(at[min(at)])} of those of the first quarter of the layers and {percent(at[max(at)])} of the last; "
                + ", ".join(f"{percent(v)} of {words(k)}" for k, v in kinds.items())
                + f"; {core['n_static']} of {core['n_components']} components are in at least 95 % of traces",
            )
        )
    return Finding(
        name,
        f"Near 10 % of all edges, traces keep {span(first)} of those of the first quarter of the layers and {span(last)} of the "
        "last.",
        draw_components(shares.kinds, shares.depth, shares.core, shares.gini),
        {
            "By kind": shares.kinds, "By quarter of the layers": shares.depth, "Static core": shares.core,
            "Gini of component use": shares.gini,
        },
        "Means over traces. share_kept is a share of the edges of the kind or quarter, share_of_trace of the trace's "
        "edges; attention has by far the most edges. Traces share the components of the static core, not the tokens "
        "between which these work. Gini 0: all components use the same share of their edges; near 1: a few are used "
        "alone. Few edges of the last layers can reach the output."
        + cut(shares.kinds.select("model", "importance").n_unique(), PANELS // 2),
        "Quarters that fill alike, or the last one first, would have refuted that early layers come first; no component above 95 % "
        "before most edges are on, that there is a static core.",
        details=tuple(details),
    )  # fmt: skip


def how_evenly_components_work(evidence: Evidence) -> Finding | LeftOut:
    """Finding on how evenly components are used, and which are in nearly all traces."""
    name = "How evenly components work"
    shares = evidence.component_shares
    if shares.lorenz.is_empty():
        return LeftOut(name, "the study stored no component shares, or its texts share no sizes")
    details, quoted = [], []
    for ginis in shares.gini.partition_by("model", "importance", maintain_order=True):
        group = {name: ginis[name][0] for name in ("model", "importance")}
        sizes = [min(ginis["size"], key=lambda size: abs(numpy.log(size / near))) for near in (0.01, 0.1)]
        values = []
        for size in dict.fromkeys(sizes):
            core = shares.often.filter(polars.col("share_of_traces") >= STATIC, size=size, **group)
            gini = ginis.filter(size=size)["gini"].item()
            quoted.append(gini)
            values.append(
                f"at {percent(size)} Gini {gini:z.2f}, {len(core)} in the static core{_members(core)}"
            )
        details.append((f"{group['model']} by {group['importance']}", "; ".join(values)))
    return Finding(
        name,
        "The Gini coefficient of the use of components (heads and MLPs of a layer; 0 is even use) is "
        f"{span(quoted, number)} near 1 and 10 % of the edges.",
        draw_lorenz(shares.lorenz, shares.gini),
        {"Gini": shares.gini, "How often each component is in": shares.often, "Lorenz curves": shares.lorenz},
        "A Lorenz curve shows the share of all use that the least used components have; the straight line is even use. Use "
        "is the share of a component's edges that a trace holds, so each component counts the same; means over traces. A "
        "component is in a trace that holds at least one of its edges. With few traces a share of 95 % is uncertain: n is "
        "in the table." + cut(shares.lorenz.select("model", "importance").n_unique(), PANELS),
        "Curves near the straight line would have refuted that use is uneven; no component that is in 95 % of traces of another "
        "corpus too, that there is a static core.",
        details=tuple(details),
    )  # fmt: skip


def _members(core: polars.DataFrame) -> str:
    """List the components of a static core, the most frequent first. Empty if they are many."""
    if len(core) > MOST_MEMBERS:
        return ""
    names = [
        f"{words(r['kind'])} {r['layer']}" + ("" if r["head"] is None else f".{r['head']}")
        for r in core.sort(
            "share_of_traces", "layer", "kind", "head", descending=[True, False, False, False]
        ).iter_rows(named=True)
    ]
    return f" ({', '.join(names)})" if names else ""


def what_operations_buy(evidence: Evidence) -> Finding | LeftOut:
    """Finding on agreement and surprisal over the share of operations."""
    name = "What operations buy"
    table = resources(evidence.curves)
    if table.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    details, shares = [], []
    for (model, importance), rows in table.group_by("model", "importance", maintain_order=True):
        enough = rows.filter(polars.col("top1").reverse().cum_min().reverse() >= 0.9)
        if len(enough):
            r = enough.row(0, named=True)
            shares.append(r["flops_share"])
            found = (
                f"{percent(r['flops_share'])} of the operations, {percent(r['size'])} of the edges: {percent(r['top1'])} of {r['n']} "
                f"traces keep it (95 % interval {between(r['top1_low'], r['top1_high'])})"
            )
        else:
            found = "no share evaluated"
        details.append((f"{model} by {importance}", found))
    known = int(table["n_next"].sum())
    return Finding(
        name,
        (
            f"At least 90 % of traces keep the model's most probable token from {span(shares)} of the operations on."
            if shares
            else "No share of operations that was evaluated keeps the model's most probable token in 90 % of traces."
        )
        + ("" if known else " No text has a known next token, so surprisal is left out."),
        draw_resources(table),
        {"By size": table},
        "Operations are those of the traces' edges (median over measurements). The output head and the embeddings always "
        "run and are not counted. Excess surprisal is the surprisal of the actual next token above the full model's, in "
        "nats; below 0 the trace predicts it better. Bands are Wilson intervals, which take measurements as independent.",
        "Agreement that falls in step with the operations would have refuted that much can be saved.",
        details=tuple(details),
    )
