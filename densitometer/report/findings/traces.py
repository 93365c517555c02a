"""How a trace's prediction comes back, what traces are made of, and what they cost."""

from __future__ import annotations

import numpy
import polars

from ...analysis import STATIC, curve_quartiles, resources
from ..figures import draw_components, draw_curves, draw_lorenz, draw_resources
from .finding import Evidence, Finding, LeftOut, between, listed, percent, words


def how_it_comes_back(evidence: Evidence) -> Finding | LeftOut:
    """TV over size."""
    name = "How the prediction comes back"
    table = curve_quartiles(evidence.curves)
    if table.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    parts = []
    for (model, importance), rows in table.group_by("model", "importance", maintain_order=True):
        at = {row["size"]: row["median"] for row in rows.iter_rows(named=True)}
        told = [f"{at[size]:.2f} at {percent(size)}" for size in (1e-4, 1e-2, 0.1, 0.4) if size in at]
        parts.append(f"{model} by {importance}: " + (", ".join(told) or "see the table"))
    landmarks = evidence.measured["residual_mlp_chain"]
    landmark = landmarks.median()
    return Finding(
        name,
        f"Median TV over size. {listed(parts)}.",
        draw_curves(table, float(landmark) if isinstance(landmark, float) else None, evidence.eps),
        {"Quartiles of TV by size": table},
        "The band is the middle half of the measurements. Left of the dotted line (median over texts of 3L/E) a trace cannot hold "
        "even the last token's own path with its MLPs, so what happens there is about size and entropy, not about the model.",
        "The May paper's two phases (construction 1e-4 to 1e-2, refinement above): a curve with a single slope, or one that falls "
        "elsewhere.",
    )


def what_traces_are_made_of(evidence: Evidence) -> Finding | LeftOut:
    """Kinds, depths and components of the traces."""
    name = "What traces are made of"
    found = evidence.component_shares
    if found.kinds.is_empty():
        return LeftOut(name, "no component shares were stored, or no sizes are common")
    parts = []
    for (model, importance), depth in found.depth.group_by("model", "importance", maintain_order=True):
        own = {"model": model, "importance": importance}
        size = min(depth["size"].unique(), key=lambda s: abs(s - 0.1))
        at = dict(depth.filter(size=size).select("quarter", "share_kept").iter_rows())
        core = found.core.filter(**own, size=size).row(0, named=True)
        kinds = dict(found.kinds.filter(**own, size=size).select("kind", "share_kept").iter_rows())
        parts.append(
            f"{model} by {importance}, at {percent(size)} of all edges, keep {percent(at[min(at)])} of those of the first quarter "
            f"of the layers and {percent(at[max(at)])} of the last; "
            + ", ".join(f"{percent(v)} of {words(k)}" for k, v in kinds.items())
            + f"; {core['n_static']} of {core['n_components']} components are in at least 95 % of traces"
        )
    return Finding(
        name,
        f"Traces of {listed(parts)}.",
        draw_components(found.kinds, found.depth, found.core, found.gini),
        {
            "By kind": found.kinds, "By quarter of the layers": found.depth, "Static core": found.core,
            "Gini of component use": found.gini,
        },
        "Means over traces. share_kept is of the kind's or quarter's own edges, share_of_trace of the trace's: attention has by far "
        "the most edges. The static core shares its components, not the tokens between which they work. Gini 0: all components use "
        "the same share of their edges; towards 1: few do all. Few edges of the last layers can reach the output.",
        "Early layers first: quarters that fill alike, or the last first. A static core: no components above 95 % before most edges "
        "are on.",
    )  # fmt: skip


def how_evenly_components_work(evidence: Evidence) -> Finding | LeftOut:
    """Lorenz curves of their use, and which are always in."""
    name = "How evenly components work"
    found = evidence.component_shares
    if found.lorenz.is_empty():
        return LeftOut(name, "no component shares were stored, or no sizes are common")
    parts = []
    for own in found.gini.partition_by("model", "importance", maintain_order=True):
        group = {name: own[name][0] for name in ("model", "importance")}
        sizes = [min(own["size"], key=lambda size: abs(numpy.log(size / near))) for near in (0.01, 0.1)]
        told = []
        for size in dict.fromkeys(sizes):
            core = found.often.filter(polars.col("share_of_traces") >= STATIC, size=size, **group)
            gini = own.filter(size=size)["gini"].item()
            told.append(f"at {percent(size)} Gini {gini:.2f}, {len(core)} in the static core{_members(core)}")
        parts.append(f"{group['model']} by {group['importance']}: " + "; ".join(told))
    return Finding(
        name,
        f"How evenly components (heads and MLPs of a layer) are used, and which are in at least 95 % of traces. {listed(parts)}.",
        draw_lorenz(found.lorenz, found.gini),
        {"Gini": found.gini, "How often each component is in": found.often, "Lorenz curves": found.lorenz},
        "Lorenz curves: the share of all use that the least used components make up; the straight line is even use. Use is the share of a "
        "component's own edges that a trace holds, so that components count alike; means over traces. A component is in a trace "
        "that holds one of its edges. Few traces make a share of 95 % uncertain: n is in the table.",
        "Even use: curves far below the line. A static core: none that is in 95 % of traces of another corpus too.",
    )  # fmt: skip


def _members(core: polars.DataFrame) -> str:
    names = [
        f"{words(r['kind'])} {r['layer']}" + ("" if r["head"] is None else f".{r['head']}")
        for r in core.sort(
            "share_of_traces", "layer", "kind", "head", descending=[True, False, False, False]
        ).iter_rows(named=True)
    ]
    return f" ({', '.join(names[:6])}{' ...' if len(names) > 6 else ''})" if names else ""


def what_operations_buy(evidence: Evidence) -> Finding | LeftOut:
    """Agreement and surprisal over the share of operations."""
    name = "What operations buy"
    table = resources(evidence.curves)
    if table.is_empty():
        return LeftOut(name, "the texts' traces have no sizes in common (as by threshold)")
    parts = []
    for (model, importance), rows in table.group_by("model", "importance", maintain_order=True):
        enough = rows.filter(polars.col("top1").reverse().cum_min().reverse() >= 0.9)
        if len(enough):
            r = enough.row(0, named=True)
            parts.append(
                f"{model} by {importance}: {percent(r['flops_share'])} of the operations ({percent(r['size'])} of the edges; "
                f"{percent(r['top1'])}, 95 %: {between(r['top1_low'], r['top1_high'])}, n = {r['n']})"
            )
        else:
            parts.append(f"{model} by {importance}: no share evaluated")
    known = int(table["n_next"].sum())
    return Finding(
        name,
        "The fewest operations evaluated from which at least 90 % of traces keep the model's own most probable token: "
        f"{listed(parts)}." + ("" if known else " No text has a known next token, so surprisal is left out."),
        draw_resources(table),
        {"By size": table},
        "Operations are those of the traces' edges (median over measurements); the output head and the embeddings always run and are "
        "not counted. Excess surprisal: nats of the actual next token above the full model's; below 0 the trace predicts it better. "
        "Bands: Wilson intervals, measurements taken as independent.",
        "That much can be saved: agreement that falls in step with the operations.",
    )
