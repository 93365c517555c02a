"""Methods that all graphs and all sets of edges have, with stored edges and for long inputs.

    EdgeGraph    the edges of one forward pass, with their importances
    EdgeSet      the edges of a graph that are on

`graph.Graph` and `graph.Trace` have stored edges. `tiled.tiles.TiledGraph` and its subgraphs are
for long inputs. They lack everything for which all edges have to be stored, such as a best-first
order of all edges, and raise an error that names it. `components.ComponentGraph` has stored edges,
joined to whole heads and MLPs: it counts components wherever edges are counted here.

Axes: F flat edge axis, E edges that can reach the output, K sets of edges.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy
import polars
from torch import Tensor

from .._util.arguments import (
    checked_count,
    checked_list,
    checked_number,
    checked_seed,
    checked_share,
    only_one,
)
from .._util.digits import percent
from .._util.metrics import compute_metrics
from .._util.notebook_table import Described
from ..errors import InputError
from ..models.loading import Model
from ..models.units import Granularity
from .forward_pass import EdgeSpace
from .growth import NATURAL
from .masked_runs import masked_logits

# Natural subgraphs whose sizes are landmarks of a curve.
LANDMARKS = ("residual_chain", "residual_mlp_chain")
# What traces are made of: whole heads and MLPs, or edges of which an MLP is one, or more.
TraceGranularity = Literal["component"] | Granularity


class EdgeSet(Described):
    """Set of edges of one graph that are on. All other edges are off."""

    graph: Any

    if TYPE_CHECKING:

        @property
        def n_edges(self) -> int:
            """Number of edges that are on."""

    @property
    @abstractmethod
    def key(self) -> Any:
        """Value that identifies the set: sets of one pass with equal keys have equal edges."""

    @property
    @abstractmethod
    def edges_on(self) -> Any:
        """This set in the form that `masked_logits` takes as a mask."""

    @property
    def size(self) -> float:
        """Share of the graph's edges."""
        return self.n_edges / self.graph.n_edges

    @property
    def flops_share(self) -> float:
        """Share of the full trace's operations that must run (rules: `densitometer.graph.cost`)."""
        return self._shares[0]

    @property
    def parameter_share(self) -> float:
        """Share of the full trace's parameters that is used."""
        return self._shares[1]

    @cached_property
    def _shares(self) -> tuple[float, float]:
        flops, parameters = self.graph.shares_of([self])
        return float(flops[0]), float(parameters[0])

    def logits(self, *, attention: Literal["recomputed", "frozen", "kept"] = "recomputed") -> Tensor:
        """Run the model with only these edges on.

        Args:
            attention: "recomputed" to compute attention weights from the set's own streams,
                "frozen" to keep those of the full run, "kept" to leave every attention edge on.

        Returns:
            Logits at the graph's position, (vocabulary,) float32 on the CPU.

        Raises:
            InputError: `attention` is none of these, or is "kept" for a long input.
        """
        if attention not in ("recomputed", "frozen", "kept"):
            raise InputError(f"unknown attention {attention!r}; expected one of recomputed, frozen, kept")
        kept = attention == "kept"
        if kept and not self.graph.stored:
            raise InputError(
                "attention='kept' needs every edge stored, and those of a long input are computed tile by tile; measure fewer tokens"
            )
        return masked_logits(self.graph.forward, [self.edges_on], attention == "frozen", kept=kept)[0]

    def necessity(self, *, n_random: int = 3, seed: int = 0) -> polars.DataFrame:
        """Run the model with this trace off and all other edges on, to see if the trace is needed.

        A trace that suffices may still be unnecessary, because other edges may do the same work.

        Args:
            n_random: number of connected random traces with the same number of edges that are
                turned off instead, for comparison. For a long input they may have fewer edges.
            seed: random seed of the first of them; the others follow.

        Returns:
            One row per run: removed ("trace" or "random"), seed (null for the trace), n_edges
            (number of edges that are off), and the metrics of a curve: tv, kl, js, top1, ...

        Raises:
            InputError: `n_random` is not a whole number of at least 0.
        """
        n_random = checked_count(n_random, 10_000)
        seeds = [checked_seed(seed) + i for i in range(n_random)]
        removed: list[Any] = [
            self, *(self.graph.random_graph(s).trace(n_edges=self.n_edges) for s in seeds)
        ]  # fmt: skip
        logits = masked_logits(self.graph.forward, [trace.inverse().edges_on for trace in removed])
        metrics = compute_metrics(self.graph.forward.logits.cpu(), logits)
        return polars.DataFrame(
            {
                "removed": ["trace"] + ["random"] * n_random,
                "seed": polars.Series([None, *seeds], dtype=polars.Int64),
                "n_edges": [trace.n_edges for trace in removed],
                **{name: values.tolist() for name, values in metrics.items()},
            }
        )

    def _facts(self) -> dict[str, str]:
        return {
            self.graph.units: f"{self.n_edges:,} of {self.graph.n_edges:,}, {percent(self.size)}",
            "operations": f"{percent(self.flops_share)} of the full trace's",
            "parameters": f"{percent(self.parameter_share)} of the full trace's",
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n_edges} of {self.graph.n_edges} {self.graph.units}, {percent(self.size)})"


Cut = TypeVar("Cut", bound=EdgeSet)


@dataclass(frozen=True, eq=False, repr=False)
class EdgeGraph(Described, Generic[Cut]):
    """Edges of one forward pass that can reach its output, with their importances.

    Args:
        model: the model.
        forward: the recorded pass, a `ForwardPass` or a `TiledPass`.
        input_ids: token ids of the whole input.
        tokens: the same tokens as readable texts.
        position: index of the token whose prediction is measured; later tokens have no edges.
        importance_name: name of the importance.
    """

    model: Model = field(repr=False)
    forward: Any = field(repr=False)
    input_ids: tuple[int, ...] = field(repr=False)
    tokens: tuple[str, ...]
    position: int
    importance_name: str

    # Whether all edges are stored. Then each has a place in the best-first order, so that there is
    # a trace of every number of edges. Otherwise traces are those of thresholds.
    stored: ClassVar[bool]
    # What sizes and numbers count.
    units: ClassVar[str] = "edges"
    # Whether one random graph serves the graphs of all importances as a baseline.
    one_random: ClassVar[bool] = True

    def _facts(self) -> dict[str, str]:
        text = "".join(self.tokens[: self.position + 1])
        finer = self.granularity not in ("block", "component")
        return {
            self.units: f"{self.n_edges:,}" + (f" by {self.granularity}" if finer else ""),
            "importance": self.importance_name,
            "of": f"{self.n_layers} layers, {self.n_heads} heads, {self.position + 1} tokens",
            "model": self.model.name,
            "text": text if len(text) <= 60 else f"…{text[-60:]}",
        }

    def __repr__(self) -> str:
        facts = self._facts()
        return f"{type(self).__name__}({facts[self.units]} {self.units} by {facts['importance']}; {facts['of']}; {facts['model']})"

    @property
    def space(self) -> EdgeSpace:
        """Edge space of the tokens up to the position."""
        space: EdgeSpace = self.forward.space
        return space

    @property
    @abstractmethod
    def n_edges(self) -> int:
        """Number E of edges that can reach the output."""

    @property
    def granularity(self) -> TraceGranularity:
        """What an MLP edge is: "block" for a whole MLP, "expert" or "neuron".

        "component" if traces are sets of whole heads and MLPs.
        """
        granularity: Granularity = self.forward.granularity
        return granularity

    @property
    def n_layers(self) -> int:
        return len(self.model.adapter.blocks)

    @property
    def n_heads(self) -> int:
        """Number of query heads of a layer. If layers differ, it is the largest number."""
        return max(level.n_heads for level in self.space.levels)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the whole input."""
        return len(self.input_ids)

    @property
    def landmarks(self) -> dict[str, float]:
        """Sizes of the output token's own path: its residual edges, and these with its MLPs.

        With L layers and E edges the sizes are 2L/E and 3L/E (docs/method.md, section 6). In models
        of parallel blocks they are L/E and 2L/E. At a finer granularity than the block, all units
        of the output token's MLPs count.
        """
        return {name: self._natural(name).size for name in LANDMARKS}

    def natural_subgraphs(self) -> dict[str, Any]:
        """Subgraphs that need no importance, by name (`growth.NATURAL`)."""
        return {name: self._natural(name) for name in NATURAL}

    @abstractmethod
    def _natural(self, name: str) -> EdgeSet:
        """Make the subgraph of a key of `NATURAL`."""

    def n_edges_at(self, size: float) -> int:
        """Number of edges of a trace of a given size: floor(size x E).

        Raises:
            InputError: the size is not in [0, 1].
        """
        return math.floor(checked_share("size", size) * self.n_edges)

    def trace(
        self,
        size: float | None = None,
        *,
        n_edges: int | None = None,
        threshold: float | None = None,
        nucleus: float | None = None,
        flops: float | None = None,
        parameters: float | None = None,
        mask: numpy.ndarray | None = None,
    ) -> Cut:
        """Cut a trace. Exactly one argument must be given.

        Traces of a long input are cut at thresholds. With `size` or `n_edges` such a trace has the
        largest number of edges that a threshold gives within that number. The last four arguments
        then raise an error.

        Args:
            size: share of the edges, best first: floor(size x E) of them.
            n_edges: number of edges, best first.
            threshold: keep the edges with importance above it from which the output is reached
                through such edges.
            nucleus: keep, for each reached node, the fewest incoming edges whose shares of the
                node's total importance sum to at least this.
            flops: the largest best-first trace with at most this share of the full trace's
                operations.
            parameters: the largest best-first trace with at most this share of the full trace's
                parameters.
            mask: (E,) bool, one per row of `edges()`: keep exactly these edges, for example all but
                one, to see the effect of that one.

        Raises:
            InputError: no argument or several are given, one is out of range, or one needs every
                edge of a long input.
        """
        given = {
            "size": size, "n_edges": n_edges, "threshold": threshold, "nucleus": nucleus, "flops": flops,
            "parameters": parameters, "mask": mask,
        }  # fmt: skip
        ((name, value),) = only_one(given).items()
        if name in ("size", "n_edges", "threshold"):
            lists = {"size": "sizes", "threshold": "thresholds"}
            return self.traces(**{lists.get(name, name): [value]})[0]
        return self._cut_by(name, value)

    def traces(
        self,
        sizes: Sequence[float] = (),
        *,
        n_edges: Sequence[int] = (),
        thresholds: Sequence[float] = (),
    ) -> list[Cut]:
        """Cut traces of several sizes, then of numbers of edges, then of thresholds.

        They are nested: of any two of these traces, the larger contains the smaller.
        """
        return self._cut(
            [
                *(self.n_edges_at(size) for size in checked_list("sizes", sizes)),
                *(checked_count(count, self.n_edges) for count in checked_list("n_edges", n_edges)),
            ],
            [checked_number("threshold", value) for value in checked_list("thresholds", thresholds)],
        )

    @abstractmethod
    def _cut(self, counts: Sequence[int], thresholds: Sequence[float]) -> list[Cut]:
        """Cut the traces of some numbers of edges, then of some thresholds."""

    @abstractmethod
    def _cut_by(self, name: str, value: Any) -> Cut:
        """Cut a trace by nucleus, flops, parameters or mask."""

    def reached_by(self, trace: EdgeSet) -> float:
        """Return the least importance of the edges of a best-first trace.

        For an empty trace it is the largest importance of all edges.
        """
        return self._key_at(trace.n_edges - 1) if trace.n_edges else self._largest

    @property
    def threshold_range(self) -> tuple[float, float]:
        """Largest threshold of a trace, and the smallest one above 0. (0, 0) if all are 0."""
        largest = self._key_at(0)
        return largest, self._least_key_above(0.0) or largest

    @property
    @abstractmethod
    def _largest(self) -> float:
        """Largest importance of all edges."""

    @abstractmethod
    def _key_at(self, rank: int) -> float:
        """Return the key that has a rank among the keys of all edges. Rank 0 is the largest key."""

    @abstractmethod
    def _least_key_above(self, value: float) -> float | None:
        """Return the smallest key of an edge that is above a value. None if there is none."""

    def shares_of(self, sets: Sequence[Any]) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Cost of K sets of edges, as shares of the full trace's cost.

        Args:
            sets: sets of edges of this forward pass. They may be of graphs with other importances.

        Returns:
            Shares of the operations, (K,) float64.
            Shares of the parameters, (K,) float64.
        """
        if not sets:
            return numpy.zeros(0), numpy.zeros(0)
        flops, parameters = self._costs_of(sets)
        return flops / self.full_cost[0], parameters / self.full_cost[1]

    @abstractmethod
    def _costs_of(self, sets: Sequence[Any]) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Operations and parameters of K sets of edges, (K,) float64 each."""

    @property
    @abstractmethod
    def full_cost(self) -> tuple[float, float]:
        """Operations and parameters of the full trace."""

    def random_trace(self, size: float, *, seed: int = 0, keep_residual: bool = False) -> Any:
        """Cut a random trace that is connected to the output: best-first, by random importances.

        Args:
            size: share of the edges.
            seed: random seed.
            keep_residual: whether to add every residual edge, as the papers' code does. The trace
                is then larger than `size`.
        """
        trace: Any = self.random_graph(seed).trace(size=size)
        return trace.with_residual() if keep_residual else trace

    def random_graph(self, seed: int = 0) -> Any:
        """Make a graph of the same edges with uniform random importances."""
        seed = checked_seed(seed)
        cache = self.__dict__.setdefault("_random_graphs", {})
        if seed not in cache:
            cache[seed] = self._random(seed)
        return cache[seed]

    @abstractmethod
    def _random(self, seed: int) -> EdgeGraph[Cut]:
        """Make the graph of `random_graph`."""
