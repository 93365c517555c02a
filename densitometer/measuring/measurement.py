"""Measure one text: all steps from its token ids to its computation density.

    1. Run the model as it is, and keep its prediction p.                   models/adapter.py
    2. Run it again, recorded, and build the graph of its edges.            graph/forward_pass.py
    3. Compute the importance of every edge.                                graph/importance/
    4. Grow nested traces from the output, most important edges first.      graph/growth.py
    5. Run the model with each trace's edges alone. Keep its prediction q.  graph/masked_runs.py
    6. Compare q with p.                                                    _util/metrics.py
    7. Summarise how fast q approaches p as traces grow: the density.       density.py
    8. Run some traces again with streams moved by rounding: the noise.     noise.py

With a target (`graph/targets.py`), its value is computed for the same traces, and importances from
gradients use the gradient of that value instead of the whole prediction.

Traces are compared with two baselines: all edges but the trace (inverse), and a connected random
subgraph with the same number of edges (random). Both are run at a few sizes unless sizes are given.
Besides the curve, subgraphs that need no importance are run. On request, the papers' versions of
the two baselines are run, too, with every residual edge on.

A `Measurement` is data. Its graphs are dropped when it is made, unless they are kept on request.
They are built again when something needs them (`Measurement.with_graphs`).

Inputs with more edges than can be stored go through the same steps tile by tile (`tiles.py`). Their
traces are cut at thresholds.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from html import escape
from typing import Any, Literal

import numpy
import polars
import torch
from torch import Tensor

from .._util.digits import percent, significant
from .._util.metrics import compute_metrics, entropy, total_variation
from .._util.progress import progress, visible
from ..errors import DensitometerWarning, IdentityError, InputError, ModelError
from ..graph.components import ComponentTrace
from ..graph.edge_graph import TraceGranularity
from ..graph.forward_pass import checked_position, run_forward
from ..graph.graph import Graph, Trace, graph_of
from ..graph.importance.registry import describe_importance
from ..graph.masked_runs import masked_logits
from ..graph.reference_means import ReferenceMeans
from ..graph.sinks import Sinks, find_sinks
from ..graph.targets import Scale, Target, space_lacking
from ..graph.tiled.tiles import TiledTrace, check_tiled, is_long, run_tiled, tiled_graph
from ..models.conditions import tensors_on_cpu
from ..models.loading import AnyModel, Model, Text
from ..models.placement import memory_watched
from ..models.tolerances import tolerance_tv
from ..models.unembedding import states_read
from .bisection import counts_inside, goal_of, holding, narrow, size_of
from .check import verdict
from .density import DEFAULT_SIZES, Density, density_of, empty_sizes
from .floor import ADDITIVE_FLOOR, additive_density
from .noise import TARGET_NOISE, noise_near, noise_of, noise_table, rows_to_repeat
from .records import (
    MeasuredCounterfactual,
    MeasuredGraph,
    MeasuredInput,
    MeasuredModel,
    MeasuredTarget,
    NextToken,
    Provenance,
    shown_name,
)
from .settings import DEFAULT_BASELINES, DEFAULT_IMPORTANCE, Ablation, Attention, By, MeasureSettings
from .tables import curve_of, densities, prediction_of, table_of
from .trace_sets import (
    BASELINE,
    BASELINE_SIZES,
    natural_traces,
    nearest_sizes,
    traces_by_size,
    traces_by_threshold,
)

# Kind of the full trace, which must be the model. It has no row in a table.
_FULL = "full"
# Relative rounding of one operation, by name of the dtype: half of the distance from 1 to the next
# number.
DTYPE_ROUNDING = {
    name: torch.finfo(getattr(torch, name)).eps / 2 for name in ("float64", "float32", "bfloat16", "float16")
}


@dataclass(frozen=True, eq=False)
class Measurement:
    """Result of `measure`: how much of the computation one prediction needs.

    Args:
        model: the model that was measured (`records.py`). Its values are read by attribute, or by
            key as in the JSON. So are those of `input` and `graph`.
        input: the text, its tokens, and the position.
        graph: sizes of the graph.
        prediction: the model's most probable next tokens: rank, token, id, probability.
        entropy: entropy of the model's prediction, nats.
        next_token: the token that comes next in the text. None at the end of the text.
        curve: one row per importance, kind (trace, inverse, random) and size.
        baselines: one row per subgraph that needs no importance (`growth.NATURAL`; windows on
            request). On request, also one per size of the papers' versions of the baselines,
            inverse_residual (of the first importance) and random_residual.
        density: one `Density` per importance.
        refined: further traces that were run to place `size_at`, in the columns of the curve. They
            are not part of the areas.
        full_trace_tv: total variation between the model and its full trace.
        noise_runs: how much rounding alone changes some of the traces, a row each
            (`noise.noise_table`).
        provenance: versions, seed and settings.
        floor: the density that the measured Fisher information would give if removals did not
            interact (`floor.additive_density`). It is a model, not a bound. None where `fisher` was
            not measured, for long inputs, and in files of older versions.
        sinks: sink tokens, massive activations and the edges that serve sinks (`sinks.py`). None
            for long inputs, and in files of older versions.
        target: the target, and its values in the full model and with no edge on. None without one.
            With one, `curve`, `baselines` and `refined` also have its value, target, and its
            faithfulness, (value - value with no edge on) / (value in full - value with no edge on).
        counterfactual: the other input, whose vectors are carried by edges that are off. None
            without one.
        session: the model and the graphs, if they are kept; None otherwise.

    Examples:
        >>> m = dm.measure(model, "The captain looked at the sea", sizes=[0.1, 0.3, 0.6, 1.0])
        >>> m.input.tokens[-2:], m.graph.n_edges, m.prediction.columns
        ((' the', ' sea'), 981, ['rank', 'token', 'id', 'probability'])
        >>> m.curve.columns[:7]
        ['importance', 'kind', 'size', 'n_edges', 'threshold', 'flops_share', 'parameter_share']
        >>> {name: round(density.size_at(0.1), 2) for name, density in m.density.items()}
        {'l1': 0.37, 'fisher': 0.25}
    """

    model: MeasuredModel
    input: MeasuredInput
    graph: MeasuredGraph
    prediction: polars.DataFrame
    entropy: float
    next_token: NextToken | None
    curve: polars.DataFrame
    baselines: polars.DataFrame
    density: dict[str, Density]
    refined: polars.DataFrame
    full_trace_tv: float
    noise_runs: polars.DataFrame
    provenance: Provenance
    floor: Density | None = None
    sinks: Sinks | None = None
    target: MeasuredTarget | None = None
    counterfactual: MeasuredCounterfactual | None = None
    session: _Session | None = field(default=None, repr=False)
    _origin: _Origin | None = field(default=None, repr=False)

    @property
    def granularity(self) -> str:
        """What an MLP edge is ("block", "expert" or "neuron"), or "component" for such traces."""
        return str(self.provenance.settings.get("granularity", "block"))

    @property
    def units(self) -> Literal["edges", "components"]:
        """What sizes and `n_edges` count: edges, or with granularity "component" components."""
        return "components" if self.granularity == "component" else "edges"

    @property
    def noise(self) -> float:
        """Total variation that rounding alone causes in the pruned runs of a measurement.

        Smaller differences mean nothing (`noise.py`). It is the largest noise of the traces that
        were run again, but at least the total variation of the full trace and the dtype's rounding.
        The noise of the trace at `size_at` alone is `Density.noise`, which is often smaller.
        `Density.bracket` takes it into account.
        """
        return least_noise(self.model.dtype, self.full_trace_tv, self.noise_runs)

    def density_in(
        self,
        currency: Literal["edges", "edges_without_sinks", "components", "heads", "flops", "parameters"],
    ) -> dict[str, Density]:
        """Return densities over the share of edges, operations or parameters that traces use.

        Args:
            currency: what is counted: "edges", "edges_without_sinks" (the edges that serve no sink
                token, as a share of all such edges, `sinks.py`), "flops" or "parameters". For
                traces of components, "components" and "heads" take the place of the first two.

        Raises:
            InputError: the currency is unknown or does not fit these traces, or sinks were not
                recorded.
        """
        columns = {self.units: "size", "flops": "flops_share", "parameters": "parameter_share"}
        names = (*columns, "heads" if self.units == "components" else "edges_without_sinks")
        if currency not in names:
            raise InputError(
                f"unknown currency {currency!r}; expected one of {', '.join(names)}"
                + (" (traces are of components)" if self.units == "components" else "")
            )

        def shares(table: polars.DataFrame) -> list[float]:
            if currency in columns:
                return table[columns[currency]].to_list()
            if currency == "heads":
                return [count / self._n_heads for count in table["n_heads"]]
            if self.sinks is None:
                raise InputError(
                    "sinks were not recorded: the input is long, or an older version saved this measurement; measure again, "
                    "or use currency 'edges'"
                )
            return self.sinks.shares_of_others(table)

        traces = self.curve.filter(polars.col("kind") == "trace")
        n_edges = self.graph.n_edges
        if currency == "edges_without_sinks" and self.sinks is not None:
            n_edges -= self.sinks.n_read + self.sinks.n_own
        by_importance = {}
        for name in self.density:
            rows = traces.filter(polars.col("importance") == name).sort("n_edges")
            extra = self.refined.filter(polars.col("importance") == name).sort("n_edges")
            refined = list(zip(shares(extra), extra["tv"], strict=True))
            noise = self.density[name].noise
            costs, tv = shares(rows), rows["tv"].to_list()
            kept: list[float] = [] if self.target is None else rows["faithfulness"].to_list()
            more: list[float] = [] if self.target is None else extra["faithfulness"].to_list()
            if currency in (self.units, "edges_without_sinks") and rows["size"][0] == 0:
                empty = empty_sizes(n_edges)  # as in `tables.densities`
                costs, tv = [*empty, *costs[1:]], [tv[0]] * len(empty) + tv[1:]
                kept = kept[:1] * len(empty) + kept[1:]
            density = density_of(costs, tv, refined, noise, kept, more)
            by_importance[name] = replace(density, faithfulness_noise=self.density[name].faithfulness_noise)
        return by_importance

    @property
    def _n_heads(self) -> int:
        """Number of heads of all layers, for traces of components."""
        return self.graph.n_edges - round(self.graph.landmarks["residual_mlp_chain"] * self.graph.n_edges)

    def bracket(self, eps: float = 0.1) -> polars.DataFrame:
        """Return a table of lower and upper estimates of how many edges the prediction needs.

        The lower one is the additive floor, which is a model. The upper ones are `size_at(eps)` of
        every importance. They are upper bounds, because these traces were run.

        Returns:
            A row each, the smallest size first. Columns: name ("floor", or an importance), size_at
            (a share of the edges; null where TV never holds), above_tightest (size_at over that of
            the smallest trace that was run), what (a sentence).

        Examples:
            >>> m = dm.measure(model, "The captain looked at the sea")
            >>> m.bracket().select("name", polars.col("size_at", "above_tightest").round(2)).rows()
            [('fisher', 0.25, 1.0), ('floor', 0.25, 1.01), ('l1', 0.37, 1.48)]
        """
        rows = [
            (name, density.size_at(eps), describe_importance(name)) for name, density in self.density.items()
        ]
        tightest = min((size for _, size, _ in rows if size is not None), default=None)
        if self.floor is not None:
            rows.insert(0, ("floor", self.floor.size_at(eps), ADDITIVE_FLOOR))
        columns = {"name": polars.String, "size_at": polars.Float64, "what": polars.String}
        return (
            polars.DataFrame(rows, columns, orient="row")
            .sort("size_at", nulls_last=True, maintain_order=True)
            .select("name", "size_at", (polars.col("size_at") / tightest).alias("above_tightest"), "what")
        )

    def tightest(self, eps: float = 0.1) -> str | None:
        """Importance with the smallest `size_at(eps)`. None if no importance has a `size_at`."""
        sizes = {name: density.size_at(eps) for name, density in self.density.items()}
        held = {name: size for name, size in sizes.items() if size is not None}
        return min(held, key=lambda name: held[name]) if held else None

    def summary(self, eps: float = 0.1) -> str:
        """One line to quote: how many edges the prediction needs, by which importance and model."""
        tightest = self.tightest(eps)
        n_tokens, n_edges = self.input.position + 1, self.graph.n_edges
        where = (
            f"{shown_name(self.model.name)}, {n_tokens} token{'s' * (n_tokens > 1)}, {n_edges:,} {self.units}"
        )
        if self.counterfactual is not None:
            where += f", off edges as in {self.counterfactual.shown!r}"
        if self.provenance.settings.get("attention") == "kept":
            where += ", every attention edge kept on"
        if self.granularity not in ("block", "component"):
            where += f" by {self.granularity}"
        if tightest is None:
            return (
                f"TV <= {eps:g} is never reached below the full model by {', '.join(self.density)}"
                f"{self._target_summary(eps)} ({where})"
            )
        smallest = self.density[tightest].size_at(eps)
        assert smallest is not None
        # Such a density is about 0 whatever the model does, so that the reason has to be given.
        tokens = f"its entropy is that of {math.exp(max(self.entropy, 0.0)):,.0f} equally probable tokens"
        if math.floor(smallest * n_edges) == 0:
            return (
                f"TV <= {eps:g} with no {self.units.removesuffix('s')} at all ({tightest}): the prediction is close to what "
                f"the {'biases' if self.units == 'edges' else 'residual edges'} alone give; {tokens}{self._target_summary(eps)} ({where})"
            )
        low, high = _placed(self.density[tightest], eps, n_edges)
        line = f"TV <= {eps:g} from {size_range(low, high)} of the {self.units} ({tightest}"
        if tightest != "l1" and "l1" in self.density and self.density["l1"].size_at(eps) is not None:
            line += f"; {size_range(*_placed(self.density['l1'], eps, n_edges))} by l1"
        every = smallest == self.density[tightest].sizes[0] and max(self.density[tightest].tv) <= eps
        rest = f"; TV <= {eps:g} at every size that was run, and {tokens}" if every else ""
        rest += self._target_summary(eps)
        ends = [self._costs(tightest, size) for size in (low, high)]
        flops, parameters = (size_range(*column) for column in zip(*ends, strict=True))
        uses = f"{flops} of the operations and {parameters} of the parameters"
        if self.units == "components":
            n_heads, n_mlps = self._heads_and_mlps(tightest, high)
            uses = f"{n_heads} of {self._n_heads} heads, {n_mlps} of {n_edges - self._n_heads} MLPs, {uses}"
        return f"{line}), which use {uses}{rest} ({where})"

    def _heads_and_mlps(self, importance: str, size: float) -> tuple[int, int]:
        """Count heads and MLPs of the smallest trace that was run and has at least a given size."""
        columns = ("importance", "kind", "size", "n_heads", "n_mlps")
        runs = polars.concat([self.curve.select(columns), self.refined.select(columns)])
        runs = runs.filter(polars.col("size") >= size, importance=importance, kind="trace").sort("size")
        return runs.select("n_heads", "n_mlps").row(0)

    def _target_summary(self, eps: float) -> str:
        """Write the summary's part on the target: how many edges keep it, by which importance."""
        if self.target is None:
            return ""
        sizes = {name: d.size_at(eps, by="faithfulness") for name, d in self.density.items()}
        held = {name: size for name, size in sizes.items() if size is not None}
        if not held:
            return f"; faithfulness of {self.target.name} within {eps:g} of 1 is never reached below the full model"
        name = min(held, key=lambda name: held[name])
        low, high = _placed(self.density[name], eps, self.graph.n_edges, "faithfulness")
        return (
            f"; faithfulness of {self.target.name} within {eps:g} of 1 from {size_range(low, high)} ({name})"
        )

    def _costs(self, importance: str, size: float) -> tuple[float, float]:
        """Return shares of operations and of parameters of the curve's trace with a given size."""
        if math.floor(size * self.graph.n_edges) == 0:
            return 0.0, 0.0
        columns = ("importance", "kind", "size", "flops_share", "parameter_share")
        runs = polars.concat([self.curve.select(columns), self.refined.select(columns)])
        runs = runs.filter(polars.col("size") >= size, importance=importance, kind="trace").sort("size")
        return runs.select("flops_share", "parameter_share").row(0) if len(runs) else (1.0, 1.0)

    def components(
        self, importance: str | None = None, size: float | None = None, *, effect: bool = True
    ) -> polars.DataFrame:
        """Table of the attention heads, MLPs and residual edges of each layer that a trace needs.

        Args:
            importance: the importance of the trace; None for the tightest that was measured.
            size: share of the edges; None for `size_at(0.1)`.
            effect: whether to run the model without each component, which costs a run each.

        Returns:
            The table of `Trace.components`, the largest effect first; without effects, the largest
            share of importance first.

        Raises:
            InputError: the importance was not measured, its trace never holds the prediction, the
                measurement holds no model, or the input is long.

        Examples:
            >>> m = dm.measure(model, "The captain looked at the sea")
            >>> m.components("fisher").select("layer", "kind", "head").row(0)
            (5, 'residual_attention', None)
        """
        name = importance or self.tightest() or next(iter(self.density))
        if name not in self.density:
            raise InputError(f"importance {name!r} was not measured; expected one of {list(self.density)}")
        size = self.density[name].size_at(0.1) if size is None else size
        if size is None:
            raise InputError(f"no trace by {name} holds TV <= 0.1 below the full model; give a size")
        session = self.with_graphs().session
        if session is None:
            raise InputError(
                "this measurement holds no model to run, because it was loaded from a file or its model is gone; give it one, "
                "measurement.with_model(model), or measure with keep_graphs=True"
            )
        table = session.graphs[name].trace(size=size).components(effect=effect)
        by = "effect" if effect else "importance_share"
        return table.sort(by, descending=True, maintain_order=True)

    def minimal_trace(
        self,
        tv: float | None = None,
        *,
        kl: float | None = None,
        top1: bool | None = None,
        nucleus: int | None = None,
        faithfulness: float | None = None,
        flops: float = 1.0,
        parameters: float = 1.0,
        importance: str | None = None,
        first_crossing: bool = False,
    ) -> Trace | ComponentTrace | TiledTrace | None:
        """Return the smallest best-first trace from which a goal holds at every larger size tried.

        Its size is known to 5 %. One goal is given: tv, kl, top1, nucleus or faithfulness.

        Args:
            tv: the goal is a total variation of at most this. Without any goal it is 0.1.
            kl: the goal is a KL divergence of at most this, nats.
            top1: with True, the goal is the same most probable token.
            nucleus: the goal is a nucleus recovery of at least this, per cent.
            faithfulness: the goal is a faithfulness of the target within this of 1.
            flops: the most operations, as a share of the full trace's.
            parameters: the most parameters, as a share of the full trace's.
            importance: the importance by which traces grow. By default the first that was measured.
            first_crossing: whether to return the smallest trace for which the goal holds instead,
                even if the goal fails for a larger one.

        Returns:
            The trace: a `TiledTrace` for a long input, a `ComponentTrace` for components. None,
            with a warning that gives the reason, if the goal never holds, or only with a trace
            that costs more than the budget.

        Raises:
            InputError: the measurement has no model, as it was loaded from a file. The importance
                was not measured. More than one goal is given, or a goal or budget is out of range.
                Faithfulness is the goal, and no target was measured.
        """
        goals = {"tv": tv, "kl": kl, "top1": top1, "nucleus": nucleus, "faithfulness": faithfulness}
        given = {name: value for name, value in goals.items() if value is not None} or {"tv": 0.1}
        if len(given) != 1:
            raise InputError(f"give one goal of {', '.join(goals)}; got {', '.join(given)}")
        (metric, goal), *_ = given.items()
        holds = goal_of(metric, goal)
        for currency, budget in (("flops", flops), ("parameters", parameters)):
            self._check_budget(currency, budget)
        name = importance or next(iter(self.density))
        if name not in self.density:
            raise InputError(f"importance {name!r} was not measured; expected one of {list(self.density)}")
        if metric == "faithfulness" and self.target is None:
            raise InputError(
                "no target was measured, so there is no faithfulness; measure with a target: measure(..., target=...)"
            )
        noises = {"tv": self.density[name].noise, "faithfulness": self.density[name].faithfulness_noise}
        if metric in noises and goal < (noise := noises[metric]):
            raise InputError(
                f"{metric} = {goal!r} is below what rounding alone makes in traces of this size, {noise:.1e} "
                f"({self.model['dtype']}); no trace can be shown to be that close"
            )
        # the metric by number of edges: traces that were run already, then the full trace, then
        # those that narrow the bracket
        traces = self.curve.filter((polars.col("importance") == name) & (polars.col("kind") == "trace"))
        values = dict(zip(traces["n_edges"], traces[metric], strict=True))
        session = self.with_graphs().session
        if session is None:
            raise InputError(
                "this measurement holds no model to run, as it was loaded from a file or its model is gone; give it one, "
                "measurement.with_model(model)"
            )
        graph = session.graphs[name]
        values[graph.n_edges] = session.values(name, metric, [graph.n_edges])[0]
        narrow(values, holds, lambda counts: session.values(name, metric, counts), first_crossing)
        bracket = holding(values, holds, first_crossing)
        if bracket is None:
            warnings.warn(
                f"{metric} = {goal} holds at no size, not even in the full trace",
                DensitometerWarning,
                stacklevel=2,
            )
            return None
        trace: Trace | ComponentTrace | TiledTrace = graph.trace(n_edges=bracket[1])
        for currency, cost, budget in (
            ("operations", trace.flops_share, flops),
            ("parameters", trace.parameter_share, parameters),
        ):
            if cost > budget:
                warnings.warn(
                    f"{metric} = {goal} needs {bracket[1]} {self.units} with {significant(cost, 3)} of the full trace's {currency}, more than "
                    f"the budget of {budget:g}",
                    DensitometerWarning,
                    stacklevel=2,
                )
                return None
        return trace

    def _check_budget(self, currency: str, budget: float) -> None:
        """Refuse a budget below the cost of the last token's residual chain and MLPs.

        Raises:
            InputError: the budget is below that, or not in (0, 1].
        """
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
            raise InputError(f"{currency} is a budget, a share of the full trace's in (0, 1]; got {budget!r}")
        if self.units == "components":  # the residual chain alone is a trace, and costs nothing
            return
        column = "flops_share" if currency == "flops" else "parameter_share"
        chain = self.baselines.filter(polars.col("kind") == "residual_mlp_chain")[column].item()
        if budget < chain:
            raise InputError(
                f"a budget of {currency}={budget:g} does not pay for the output token's own path, its residual chain with "
                f"MLPs, which costs {significant(chain, 3)} of the full trace's; give at least that"
            )

    def with_model(self, model: Model) -> Measurement:
        """Return a measurement that was loaded from a file, with its model and graphs.

        The graphs are built again, and kept.

        Raises:
            InputError: the model is not the one that was measured. Or the measurement is with
                reference means, which are not saved.
        """
        if self.provenance.settings.get("ablation", "zero") != "zero":
            raise InputError(
                "a measurement with reference means cannot be taken up again; call measure(...) again"
            )
        known = self.model.fingerprint
        if known is not None and model.matches(known) is False:
            raise InputError(
                f"{model.name} is not the model that was measured: its weights or its tokenizer have the fingerprint {model.commit}, "
                f"those measured {known}; give the model as it was, or measure again"
            )
        session = self._session_of(model, None, None)
        expected = self.prediction["probability"][0]
        probability = float(session.full.softmax(-1).max())
        n_edges = session.first.n_edges
        if n_edges != self.graph.n_edges or abs(probability - expected) > 1e-2:
            raise InputError(
                f"{model.name} is not the model that was measured ({self.model['name']}): {n_edges:,} edges and "
                f"p = {probability:.3f} for its first token, expected {self.graph['n_edges']:,} and {expected:.3f}"
            )
        return replace(self, session=session)

    def with_graphs(self) -> Measurement:
        """Return the measurement with its model and graphs, as long as the model is in memory.

        Graphs are built again. The measurement itself is returned where it has them already, or
        where the model that was measured is gone.

        Raises:
            InputError: the module was cast to another dtype since.
        """
        model, means, target = self._origin.alive() if self._origin is not None else (None, None, None)
        if self.session is not None or model is None:
            return self
        session = self._session_of(model, means, target)
        now = str(model.adapter.dtype).removeprefix("torch.")
        if now != self.model.dtype:
            raise InputError(
                f"{model.name} was measured in {self.model.dtype}, and its module is {now} now; measure again, or cast it back"
            )
        return replace(self, session=session)

    def _session_of(self, model: Model, means: ReferenceMeans | None, target: Target | None) -> _Session:
        """Build the graphs of all measured importances again."""
        settings = replace(self._settings(means, target), importance=list(self.density))
        return _open_session(model, self.input.ids, self.input.position, settings)[0]

    @property
    def settings(self) -> MeasureSettings:
        """Settings with which this measurement was made.

        A setting that an older version did not store has its default.

        Raises:
            InputError: the settings hold reference means or a function, which are not in memory.
        """
        return self._settings(*(self._origin.alive()[1:] if self._origin is not None else (None, None)))

    def _settings(self, means: ReferenceMeans | None, target: Target | None) -> MeasureSettings:
        return MeasureSettings.from_document(
            {**MeasureSettings().to_document(), **self.provenance.settings}, means, target
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: data alone, without model and graphs."""
        return {**vars(self), "session": None, "_origin": None}

    def show(self) -> Any:
        """Show the explorer in a notebook cell, as a widget where widgets work, else as a frame."""
        from ..viewer.notebook import Explorer

        return Explorer(self)

    def save(self, path: Any) -> None:
        """Write all data as JSON (schema densitometer.measurement/1), for `load_measurement`."""
        from .json_io import save_measurement

        save_measurement(self, path)

    @staticmethod
    def load(path: Any) -> Measurement:
        """Read a measurement that `save` wrote."""
        from .json_io import load_measurement

        return load_measurement(path)

    def __repr__(self) -> str:
        return f"Measurement({self.summary()})"

    def _repr_html_(self) -> str:
        """Summary and densities as HTML, for notebooks. `show` opens the explorer."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{percent(density.size_at(0.1))}</td><td>{density.auc_log:.3f}</td>"
            f"<td>{density.auc_linear:.3f}</td></tr>"
            for name, density in self.density.items()
        )
        heads = "".join(
            f"<th>{name}</th>" for name in ("importance", "TV &le; 0.1 from", "auc_log", "auc_linear")
        )
        return f"<p>{escape(visible(self.summary()))}</p><table><tr>{heads}</tr>{rows}</table>"


def _placed(
    density: Density, eps: float, n_edges: int, by: Literal["tv", "faithfulness"] = "tv"
) -> tuple[float, float]:
    """Return `size_at` twice, or its bracket if that is wider than 10 % and more than an edge.

    Both sizes are those of traces that were run. A bracket is wide because of rounding, or because
    no traces were run to narrow it at this eps.
    """
    bracket, size = density.bracket(eps, by=by), density.size_at(eps, by=by)
    assert bracket is not None
    assert size is not None
    low, high = bracket
    # 1.5 edges: sizes may differ from whole numbers of edges by rounding
    wide = high > 1.1 * low > 0 and (high - low) * n_edges > 1.5
    return (low, high) if wide else (size, size)


def size_range(low: float, high: float) -> str:
    """Format two shares in per cent, as "17 to 18 %", or as "17 %" where both are the same.

    Two digits are shown, which is what a bracket 5 % wide allows.
    """
    ends = [significant(100 * share, 2) for share in (low, high)]
    return f"{' to '.join(dict.fromkeys(ends))} %"


@dataclass(frozen=True, eq=False)
class Runs:
    """The K runs that a curve and its baselines are made from. Arrays are float32, on the CPU.

    Args:
        rows: importance, kind, size and trace of each run.
        logits: (K, vocabulary), logits of the runs.
        full: (vocabulary,), the model's own logits.
        states: (K, D), the unembedding's input in each run, of hidden size D
            (`models.unembedding`). None if the model does not call its unembedding as a module.
        full_state: (D,), the unembedding's input for the model's own logits, or None.
    """

    rows: Sequence[tuple[str, str, float, Any]]
    logits: Tensor
    full: Tensor
    states: Tensor | None
    full_state: Tensor | None

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.logits)
        assert self.states is None or len(self.rows) == len(self.states)


def measure(
    model: AnyModel,
    text_or_ids: Text,
    *,
    importance: str | Sequence[str] = DEFAULT_IMPORTANCE,
    sizes: Sequence[float] | None = None,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    by: By = "size",
    position: int = -1,
    eps: float = 0.1,
    seed: int = 0,
    attention: Attention = "recomputed",
    ablation: Ablation = "zero",
    granularity: TraceGranularity = "block",
    target: Any = None,
    counterfactual: Any = None,
    observe: Callable[[Runs], None] | None = None,
    keep_graphs: bool = False,
) -> Measurement:
    """Measure how much of the model's computation one prediction needs.

    An input with more than `tiles.STORED_EDGES` possible edges (layers x heads x tokens squared) is
    measured tile by tile, by l1, l2, cosine, projection, fisher or bound. The trace of a size is
    then the largest that an importance threshold gives within that size. The curve has the sizes
    that were run, and `provenance.edges` is "tiled" instead of "stored".

    Args:
        model: a model, or what `load_model` takes: a name, a folder, a module.
        text_or_ids: one text, chat messages (`Model.encode`), or token ids. A list of texts is
            refused: `run_study` measures many.
        importance: an importance, or several. Each gives a curve and a density of its own. Of the
            default two, `fisher` is left out, with a warning, where the model passes no gradient.
        sizes: shares of the edges at which traces are run, in (0, 1]. By default the 27 of arXiv
            2605.27033. With `by="threshold"` these are importances, by default 26 spread over the
            graph's, and the full trace is run too.
        baselines: any of four. "inverse" and "random" are run at each of the given sizes, by
            default at two of the 27. "residual" adds the papers' versions of these two, with every
            residual edge on. "window" adds subgraphs with all edges except attention beyond the
            latest 2, 4 or 8 tokens.
        position: the token whose next-token prediction is measured. Negative numbers count from the
            end.
        seed: random seed of the random baseline, and of importances that draw random numbers.
        attention: "recomputed" computes a trace's attention weights from its own stream, "frozen"
            keeps the full run's. "kept" recomputes them and leaves every attention edge on, also
            those that are not in the trace, as the code published with arXiv 2605.27033 does.
        ablation: what replaces the vector of a removed edge: "zero" (the papers), or reference
            means (`reference_means`, `load_means`).
        eps: total variation at which `size_at` is bisected to 5 %.
        by: "size" for best-first traces of sizes (arXiv 2605.27033), "threshold" for traces of
            importance thresholds (arXiv 2601.22795). The curve has size and threshold either way.
        granularity: what an MLP edge is. "block" is a token's whole MLP. "expert" is one expert
            that the token is sent to, in a mixture of experts (any other MLP counts as one expert).
            "neuron" is one input of the down projection. With "component", traces are made of whole
            heads and MLPs instead of edges, over all tokens, and every residual edge is on. Sizes
            and numbers of edges are then of components, and the random baseline has as many heads
            and MLPs as the trace (docs/method.md, section 3). Shares of edges at different
            granularities cannot be compared. Shares of operations and parameters can.
        target: what is measured besides the whole distribution. A token, as its text (" Paris") or
            its id: its probability. A pair (token, against), or of two lists of tokens: their logit
            difference, for lists log sum exp z over the one minus the same over the other. A
            function of logits (..., vocabulary) float32 that returns (...): its value. Importances
            from gradients (fisher, bound, best, learned) then follow the target. The curve has its
            value and its faithfulness, and `size_at(eps, by="faithfulness")` is placed as well.
        counterfactual: another text, chat or token ids with the same number of tokens. An edge that
            is off then carries its vector in that input instead of nothing (resample ablation). So
            with no edge on, the model predicts what it predicts for that input.
        observe: called once with the runs of the curve and the baselines, to compute results that
            are not in a curve.
        keep_graphs: whether to keep the model and the graphs in the measurement, instead of
            building them again when they are needed (`Measurement.minimal_trace`, `show`). A graph
            takes about 60 bytes per edge.

    Raises:
        InputError: a text, position, importance, size, baseline or other setting cannot be used.
            The target is not a token of the model, or rounding changes it as much as edges do.
        ModelError: the model cannot be measured on this text.
        IdentityError: the full trace is not the model.

    Examples:
        >>> m = dm.measure(model, "The captain looked at the sea", sizes=[0.1, 0.3, 0.6, 1.0])
        >>> round(m.density["l1"].size_at(0.1), 2), round(m.density_in("flops")["l1"].size_at(0.1), 2)
        (0.37, 0.93)
    """
    settings = MeasureSettings(
        importance, sizes, baselines, by, eps, seed, attention, ablation, granularity, target, counterfactual
    )
    return measured(
        model, text_or_ids, settings, position, observe, keep_graphs, may_lack_fisher=importance is DEFAULT_IMPORTANCE
    )  # fmt: skip


@memory_watched("measuring a text")
@tensors_on_cpu()
def measured(
    model: AnyModel,
    text_or_ids: Text,
    settings: MeasureSettings,
    position: int = -1,
    observe: Callable[[Runs], None] | None = None,
    keep_graphs: bool = False,
    may_lack_fisher: bool = False,
) -> Measurement:
    """Measure a text by settings that are given as one object.

    Args:
        settings: all settings. Other arguments are as for `measure`.
        may_lack_fisher: whether to leave `fisher` out, with a warning, if the model passes no
            gradient.

    Raises:
        InputError, ModelError, IdentityError: as for `measure`.
    """
    model = settings.model_for(model)
    ids = model.encode(text_or_ids)
    position = checked_position(ids, position)
    settings = settings.placed(model, ids, position)
    session, full_state = _open_session(model, ids, position, settings, may_lack_fisher)
    graphs, full, first = session.graphs, session.full, session.first
    settings, names = session.settings, list(graphs)
    sizes, baselines, eps = settings.sizes, settings.baselines, settings.eps

    # What to run: importance, kind, size and trace of each. Baselines are compared at a few sizes
    # of each family unless sizes are given, and random subgraphs at all of these sizes.
    rows: list[tuple[str, str, float, Any]] = []
    random_sizes: set[float] = set()
    for name, graph in graphs.items():
        if settings.by == "size":
            family = traces_by_size(graph, sizes or DEFAULT_SIZES)
        else:
            family = traces_by_threshold(graph, sizes)
        rows += [(name, "trace", s, t) for s, t in family]
        compared = family if sizes is not None else nearest_sizes(family, BASELINE_SIZES)
        random_sizes |= {s for s, _ in compared}
        if "inverse" in baselines:
            rows += [(name, "inverse", s, t.inverse()) for s, t in compared]
    if "random" in baselines:
        for name, graph in {"random": first}.items() if first.one_random else graphs.items():
            drawn = traces_by_size(graph.random_graph(settings.seed), sorted(random_sizes))
            rows += [(name, "random", s, t) for s, t in drawn]
    rows += natural_traces(first, baselines, settings.seed)
    # The last row is the full trace, which must be the model. It is in no table.
    rows.append((BASELINE, _FULL, 1.0, first.trace(size=1.0)))
    states: list[Tensor] = []
    # (K, vocabulary)
    logits = session.run([trace for *_, trace in rows], f"running {len(rows)} traces", states)
    full_trace_tv = _checked_full_trace(model, full, logits[-1])

    if observe is not None:
        read = (torch.cat(states)[:-1], full_state[-1][0]) if states and full_state else (None, None)
        observe(Runs(rows[:-1], logits[:-1], full, *read))

    scale = session.scale
    components = first.units == "components"
    table = table_of(model, rows[:-1], full, logits[:-1], _next_token(ids, position), scale, components)
    curve = curve_of(table, names)
    # Place `size_at`: TV by number of edges is known for the curve, and further traces are run.
    # With a target, the same is then done for its faithfulness.
    ran: dict[str, dict[int, tuple[Any, Tensor]]] = {name: {} for name in names}
    for metric in ("tv", "faithfulness") if scale is not None else ("tv",):
        traces_of = curve.filter(polars.col("kind") == "trace").select("importance", "n_edges", metric)
        known = {
            name: dict(traces_of.filter(importance=name).drop("importance").iter_rows()) for name in names
        }
        session.refine(metric, known, eps, ran)
    refined_rows, refined_logits = [], []
    for name, traces in ran.items():
        refined_rows += [
            (name, "trace", size_of(n, first.n_edges), t) for n, (t, _) in sorted(traces.items())
        ]
        refined_logits += [logits for _, (_, logits) in sorted(traces.items())]
    more = torch.stack(refined_logits) if refined_logits else full.new_empty(0, len(full))
    refined = table_of(model, refined_rows, full, more, _next_token(ids, position), scale, components)
    # Estimate noise: some traces are run again, those at `size_at` among them. Their first logits
    # are in `logits`, which `rows` are of, or in `more`, which `refined_rows` are of.
    held_from = {
        name: [density.size_at(eps), *([density.size_at(eps, by="faithfulness")] if scale else [])]
        for name, density in densities(curve, refined, first.n_edges).items()
    }
    every = [*rows, *refined_rows]
    repeated = rows_to_repeat(every, held_from)
    first_runs = [logits[i] if i < len(rows) else more[i - len(rows)] for i in repeated]
    noise_runs = noise_table(
        [every[i] for i in repeated],
        torch.stack(first_runs),
        lambda traces: session.run_moved(traces, settings.seed),
        None if scale is None else scale.score.value,
    )
    target = None if scale is None else MeasuredTarget.of(scale)
    if target is not None:
        _refuse_noise(target, noise_of(noise_runs, 0.0, TARGET_NOISE))
    if settings.target is not None and (warning := space_lacking(model, settings.target, full)):
        warnings.warn(warning, DensitometerWarning, stacklevel=5)
    about = MeasuredModel.of(model)
    # neither a floor nor sinks are of whole components, or of edges that are not stored
    of_edges = first.stored and not components
    known_noise = (about.dtype, full_trace_tv, noise_runs, eps, target)
    return Measurement(
        model=about,
        input=MeasuredInput(model.text_of(text_or_ids), tuple(ids), tuple(first.tokens), position),
        graph=MeasuredGraph(first.n_edges, first.n_layers, first.n_heads, first.n_tokens, first.landmarks),
        prediction=prediction_of(model, full),
        entropy=float(entropy(full, full[None])),
        next_token=NextToken.of(model, full, _next_token(ids, position)),
        curve=curve,
        baselines=table.filter(polars.col("importance") == BASELINE).drop("importance"),
        density=noisy_densities(densities(curve, refined, first.n_edges), *known_noise),
        refined=refined,
        full_trace_tv=full_trace_tv,
        noise_runs=noise_runs,
        provenance=Provenance.now(
            settings.to_document(),
            check=verdict(model, full_trace_tv),
            edges="stored" if first.stored else "tiled",
        ),
        # with a target, `fisher` is not the information on which the floor rests; with attention
        # edges that are kept, it counts edges that are never off
        floor=_floor_of(graphs, eps) if of_edges and scale is None and not settings.kept else None,
        sinks=find_sinks(first.forward, every) if of_edges else None,
        target=target,
        counterfactual=MeasuredCounterfactual.of(model, settings.counterfactual),
        session=session if keep_graphs else None,
        _origin=_Origin(
            weakref.ref(model),
            None if settings.means is None else weakref.ref(settings.means),
            settings.target,
        ),
    )


def _refuse_noise(target: MeasuredTarget, noise: float) -> None:
    """Refuse a target that rounding changes as much as edges do, or whose sign rounding can change.

    Args:
        noise: how much rounding alone changes the target's value in pruned runs.

    Raises:
        InputError: the target is such a one.
    """
    if target.kind == "logit difference" and abs(target.full) <= noise:
        raise InputError(
            f"the contrast {target.name} is under the noise: the logit difference is {target.full:.2g} in the full model, and "
            f"rounding alone moves it by {noise:.2g} in pruned runs, so that the model prefers neither; give another contrast"
        )
    if target.spread <= noise:
        raise InputError(
            f"the target {target.name} is under the noise: it is {target.full:.4g} in the full model and {target.nothing:.4g} "
            f"with no edge on, and rounding alone moves it by {noise:.2g} in pruned runs; give another target"
        )


def least_noise(dtype: str, full_trace_tv: float, noise_runs: polars.DataFrame) -> float:
    """Return the noise of a measurement, a total variation.

    It is the largest of three: the noise of traces that were run again, the total variation of the
    full trace, and the rounding of the dtype.
    """
    return noise_of(noise_runs, max(full_trace_tv, DTYPE_ROUNDING[dtype]))


def noisy_densities(
    densities: dict[str, Density],
    dtype: str,
    full_trace_tv: float,
    noise_runs: polars.DataFrame,
    eps: float,
    target: MeasuredTarget | None = None,
) -> dict[str, Density]:
    """Give each density its noise: that of the repeated trace nearest to its `size_at(eps)`."""
    least = max(full_trace_tv, DTYPE_ROUNDING[dtype])
    noisy = {
        name: replace(density, noise=noise_near(noise_runs, name, density.size_at(eps) or 1.0, least))
        for name, density in densities.items()
    }
    if target is None or TARGET_NOISE not in noise_runs.columns:
        return noisy
    for name, density in noisy.items():
        size = density.size_at(eps, by="faithfulness") or 1.0
        moved = noise_near(noise_runs, name, size, 0.0, TARGET_NOISE)
        noisy[name] = replace(density, faithfulness_noise=moved / target.spread)
    return noisy


def tolerance_of(dtype: str) -> float:
    """Total variation up to which two runs of a model count as the same, by name of its dtype."""
    return tolerance_tv(getattr(torch, dtype))


def _without_fisher(settings: MeasureSettings, why: str) -> MeasureSettings:
    """Return settings without `fisher`, and warn: it was a default, not chosen by the caller."""
    warnings.warn(f"fisher is left out: {why}", DensitometerWarning, stacklevel=5)
    return replace(settings, importance=[name for name in settings.importance if name != "fisher"])


def _checked_full_trace(model: Model, full: Tensor, logits: Tensor) -> float:
    """Return the total variation between a model and its full trace.

    Args:
        full: (vocabulary,), logits of the model.
        logits: (vocabulary,), logits of the full trace.

    Raises:
        IdentityError: it is more than the tolerance of the dtype.
    """
    gap = float(total_variation(full, logits[None]))
    tolerance = tolerance_tv(model.adapter.dtype)
    if not gap <= tolerance:
        raise IdentityError(
            f"the full trace of {model.name} is not the model: total variation {gap:.2g}, expected at "
            f"most {tolerance:g}. Nothing that is measured on it can be trusted; run `densitometer doctor` on it"
        )
    return gap


@dataclass(frozen=True)
class _Origin:
    """Weak references to the model and the means of a measurement, and its target.

    They do not keep the model or the means in memory.
    """

    model: weakref.ref[Model]
    means: weakref.ref[ReferenceMeans] | None
    target: Target | None

    def alive(self) -> tuple[Model | None, ReferenceMeans | None, Target | None]:
        """Return model, means and target. The model is None if it, or the means, left memory."""
        means = None if self.means is None else self.means()
        gone = self.means is not None and means is None
        return (None if gone else self.model()), means, self.target


def _open_session(
    model: Model, ids: Sequence[int], position: int, settings: MeasureSettings, may_lack_fisher: bool = False
) -> tuple[_Session, list[Tensor]]:
    """Build the graph of an input by each importance, and compute the model's own prediction.

    Args:
        may_lack_fisher: whether to leave `fisher` out, with a warning, if the model passes no
            gradient.

    Returns:
        The session.
        The unembedding's input for the model's own prediction.

    Raises:
        ModelError: the model cannot be measured on this text.
    """
    graphs: dict[str, Any] = {}
    build: Callable[..., Any]
    if is_long(model, position + 1):
        check_tiled(model, settings.importance, position + 1, settings.granularity)
        target = None if settings.target is None else settings.target.resolved(model)
        long = run_tiled(
            model, ids[: position + 1], settings.importance, settings.mlp_edges, settings.counterfactual
        )
        build = partial(tiled_graph, replace(long, target=target))
    else:
        recorded = settings.recorded(run_forward(model, ids, position, settings.mlp_edges)[0])

        def build(*about: Any) -> Any:
            return settings.joined(graph_of(recorded, *about))

    for name in settings.importance:
        try:
            graphs[name] = build(ids, position, name, settings.seed)
        except ModelError as error:
            if name != "fisher" or not may_lack_fisher:
                raise
            settings = _without_fisher(settings, str(error))
    with states_read(model.adapter) as full_state:
        full = model.adapter.logits(ids[: position + 1]).cpu()
    return _Session(model, full, graphs, settings), full_state


@dataclass(frozen=True, eq=False)
class _Session:
    """Model and graphs of a measured input, with which further traces can be run.

    Graphs are stored or tiled, and traces are of the same kind.

    Args:
        full: (vocabulary,) float32, the model's own logits.
        graphs: the graph of each importance.
    """

    model: Model
    full: Tensor
    graphs: dict[str, Any]
    settings: MeasureSettings

    @property
    def first(self) -> Any:
        """Graph of the first importance."""
        return next(iter(self.graphs.values()))

    @cached_property
    def scale(self) -> Scale | None:
        """The target, with its values in the full model and with no edge on. None without one.

        Raises:
            InputError: the two values are the same.
        """
        target = self.first.forward.target
        if target is None:
            return None
        return Scale.of(target, self.full, self.run([self.first.trace(n_edges=0)], "running no edge")[0])

    def gauged(self, metric: str, logits: Tensor) -> list[Any]:
        """Compute a metric, or the faithfulness of the target, of logits (K, vocabulary)."""
        if metric == "faithfulness":
            assert self.scale is not None
            return list(self.scale.faithfulness(self.scale.score.value(logits)).tolist())
        if metric == "tv":
            return list(total_variation(self.full, logits).tolist())
        return list(compute_metrics(self.full, logits)[metric].tolist())

    def run(self, traces: Sequence[Any], label: str, states: list[Tensor] | None = None) -> Tensor:
        """Run K traces, each distinct set of edges once, and return their logits (K, vocabulary).

        Args:
            label: name of the progress bar.
            states: a list to which the unembedding's inputs are appended, a row per trace.
        """
        # where: for each trace, the index of its set of edges among the distinct ones
        places: dict[Any, int] = {}
        where = [places.setdefault(trace.key, len(places)) for trace in traces]
        distinct = [traces[where.index(i)] for i in range(len(places))]
        read: list[Tensor] | None = None if states is None else []
        frozen = self.settings.frozen
        with progress(label, len(distinct)) as advance:
            # a generator, so that one batch of masks is in memory at a time
            masks = (trace.edges_on for trace in distinct)
            logits = masked_logits(
                self.first.forward,
                masks,
                frozen,
                self.settings.means,
                advance,
                states=read,
                kept=self.settings.kept,
            )
        if states is not None and read:
            states.append(torch.cat(read)[where])
        return logits if len(distinct) == len(traces) else logits[where]

    def run_moved(self, traces: Sequence[Any], seed: int) -> Tensor:
        """Run traces with every residual stream moved by one unit in the last place, at random."""
        with self.model.adapter.streams_moved(seed):
            return self.run(traces, "estimating noise")

    def refine(
        self,
        metric: str,
        known: Mapping[str, dict[int, float]],
        eps: float,
        ran: dict[str, dict[int, tuple[Any, Tensor]]],
    ) -> None:
        """Run traces until the number of edges from which a goal holds is known to 5 % or one edge.

        The brackets of all importances are narrowed together, round by round (`bisection.py`).

        Args:
            metric: "tv" for TV <= eps, or "faithfulness" for |1 - faithfulness| <= eps.
            known: by importance, the metric of traces of the curve, by number of edges.
            ran: by importance, further traces that were run, with their logits (vocabulary,), by
                number of edges. Those that are run are added.
        """
        # The metric by number of edges. A tiled graph may lack a trace with a requested number, and
        # gives the next smaller one. Then its value is stored under both numbers.
        tried = {name: dict(values) for name, values in known.items()}
        for name, traces in ran.items():
            if traces:
                before = torch.stack([logits for _, logits in traces.values()])
                tried[name] |= dict(zip(traces, self.gauged(metric, before), strict=True))
        holds = goal_of(metric, eps)
        while wanted := {name: counts for name in tried if (counts := counts_inside(tried[name], holds))}:
            requests, new = [], {}
            for name, counts in wanted.items():
                for count, trace in zip(counts, self.graphs[name].traces(n_edges=counts), strict=True):
                    requests.append((name, count, trace))
                    # several requests may give the same trace of a tiled graph
                    if trace.n_edges not in known[name] and trace.n_edges not in ran[name]:
                        new[name, trace.n_edges] = trace
            if new:
                logits = self.run(list(new.values()), f"placing {'TV' if metric == 'tv' else metric}")
                gaps = self.gauged(metric, logits)
                for (name, n_edges), trace, row, gap in zip(new, new.values(), logits, gaps, strict=True):
                    ran[name][n_edges] = (trace, row)
                    tried[name][n_edges] = gap
            for name, count, trace in requests:
                tried[name][count] = tried[name][trace.n_edges]

    def values(self, name: str, metric: str, counts: Sequence[int]) -> list[Any]:
        """Run the best-first traces with these numbers of edges, and return a metric of each.

        Args:
            name: the importance.
        """
        traces = self.graphs[name].traces(n_edges=counts)
        logits = self.run(traces, f"placing {metric}")
        return self.gauged(metric, logits)


def _floor_of(graphs: Mapping[str, Graph], eps: float) -> Density | None:
    """Density of the additive floor at the papers' sizes. None where `fisher` was not measured."""
    if "fisher" not in graphs:
        return None
    # importances by fisher are the roots of the information, (E,)
    roots = graphs["fisher"].importance[graphs["fisher"].index]
    return additive_density(roots.astype(numpy.float64) ** 2, DEFAULT_SIZES, eps)


def _next_token(ids: Sequence[int], position: int) -> int | None:
    """Id of the token after a position. None at the end."""
    return ids[position + 1] if position + 1 < len(ids) else None
