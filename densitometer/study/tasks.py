"""Measure a task: find one set of components, or of edges, that suffices for many prompts.

    1. Record each prompt, and compute the importance of its edges for its target.
    2. Join edges into units that all prompts share: an attention head or an MLP at all tokens
       (`unit="component"`), or the edge between the same two places (`unit="edge"`). A place is
       counted from the last token, or within a span that prompts name (`prompts.align`). A unit's
       importance is the root mean square over half of the prompts.
    3. Run these prompts with only the most important units on, for increasing numbers of units,
       until the number from which the mean faithfulness stays within eps of 1 is known.
    4. Run the other half of the prompts, which were not used for the choice, with these units, and
       with random sets of as many heads and MLPs, or edges.

Components leave every residual edge on, because a head alone does not reach the output. Edges are
grown from the output, best first, as in a trace.

The mean faithfulness of prompts is computed from their mean values: with v of a trace, v1 of the
full model and v0 with no unit on, it is (mean v - mean v0) / (mean v1 - mean v0). A mean of ratios
would be dominated by prompts whose v1 is close to their v0.

What this file does not do: it starts no processes, and it stores nothing.

Axes: F flat edge axis of a prompt, U units.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy
import polars
import torch
from torch import Tensor

from .._util.arguments import checked_seed
from .._util.metrics import total_variation
from .._util.progress import progress
from ..errors import ArgumentTypeError, DensitometerWarning, InputError
from ..graph.components import Components, sum_of_squares
from ..graph.cost import costs_of_sets, full_cost
from ..graph.forward_pass import EdgeSpace, ForwardPass, run_forward
from ..graph.growth import best_first_order
from ..graph.importance.norms import uniform_importance
from ..graph.importance.registry import check_importance, compute_importance
from ..graph.input_pairs import counterfactual_ids, with_counterfactual
from ..graph.masked_runs import masked_logits
from ..graph.targets import Target, TargetScore
from ..measuring.bisection import holding, narrow
from ..measuring.density import check_eps
from ..models.conditions import tensors_on_cpu
from ..models.loading import AnyModel, Model, as_model
from ..models.tokenization import shorten
from .bundled_tasks import list_tasks, load_task
from .corpus import read_corpus
from .prompts import Alignment, Prompt, align, prompt_of

Unit = Literal["component", "edge"]
# Shares of the units at which prompts are run before the place is narrowed.
TASK_SIZES = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
HALVES = ("chosen", "held_out")
_CURVE = {
    "half": polars.String, "kind": polars.String, "seed": polars.Int64, "n_units": polars.Int64, "size": polars.Float64,
    "n_heads": polars.Int64, "n_mlps": polars.Int64, "flops_share": polars.Float64, "parameter_share": polars.Float64,
    "faithfulness": polars.Float64, "tv": polars.Float64, "accuracy": polars.Float64,
}  # fmt: skip
_PROMPTS = {
    "text": polars.String, "half": polars.String, "target": polars.String, "full": polars.Float64,
    "nothing": polars.Float64, "value": polars.Float64, "faithfulness": polars.Float64, "tv": polars.Float64,
    "right": polars.Float64, "right_with_set": polars.Float64,
}  # fmt: skip
# Fewest prompts of a task.
FEWEST = 4
# Random sets of as many units that the found one is compared with.
N_RANDOM = 5


@dataclass(frozen=True, eq=False, repr=False)
class TaskMeasurement:
    """Result of `measure_task`: which components, or edges, a task needs.

    Args:
        task: name of the task, or where its prompts come from.
        model: name of the model.
        unit: "component" or "edge".
        importance: the importance by which units were ranked.
        eps: the largest distance of the mean faithfulness from 1 with which a set counts as
            sufficient.
        n_units: number U of units.
        found: number of units of the smallest sufficient set; None if no set suffices.
        curve: a row per set that was run on one half of the prompts: half ("chosen" or "held_out"),
            kind ("trace" or "random"), seed (null for a trace), n_units, size (share of the
            units), n_heads and n_mlps (null for edges), flops_share and parameter_share (means over
            prompts), faithfulness (of the mean values; null without targets), tv (mean), accuracy
            (share of the prompts with the right answer; null for a function).
        components: a row per unit, the most important first: rank, layer, kind, head (null for an
            MLP), importance, in_set. For edges also source and target, counted back from the last
            token, which is 0; where prompts name spans, places of all prompts are counted, and
            source_span and target_span name the span of each.
        prompts: a row per prompt: text, half, target, full, nothing and value (the target's value
            in the full model, with no unit on, and with the set), faithfulness, tv, right (by the
            full model) and right_with_set.

    Examples:
        >>> he = [f"{who} said that" for who in ("He", "She", "The captain", "The sailor")]
        >>> task = dm.measure_task(model, [dm.Prompt(text, " he", " she") for text in he])
        >>> task.by, task.prompts.columns[:3], task.found == round(task.size_at(0.1) * task.n_units)
        ('faithfulness', ['text', 'half', 'target'], True)
    """

    task: str
    model: str
    unit: Unit
    importance: str
    eps: float
    n_units: int
    found: int | None
    curve: polars.DataFrame = field(repr=False)
    components: polars.DataFrame = field(repr=False)
    prompts: polars.DataFrame = field(repr=False)

    def size_at(self, eps: float = 0.1, *, half: Literal["chosen", "held_out"] = "chosen") -> float | None:
        """Smallest share of the units that suffices, as does every larger share that was run.

        Args:
            eps: a share suffices if the mean faithfulness is within eps of 1 or, without targets,
                if the mean total variation is at most eps.
            half: "chosen" for the prompts on which the set was chosen, "held_out" for the others.

        Raises:
            InputError: eps is not in (0, 1), or the half is unknown.
        """
        if half not in HALVES:
            raise InputError(f"unknown half {half!r}; expected one of {', '.join(HALVES)}")
        check_eps(eps)
        rows = self.curve.filter(half=half, kind="trace")
        bracket = holding(dict(zip(rows["n_units"], _gaps(rows), strict=True)), lambda gap: gap <= eps, False)
        return None if bracket is None else bracket[1] / self.n_units

    def overlap(self, other: TaskMeasurement) -> dict[str, float]:
        """Compare the set of this task with another task's, on the same model.

        Returns:
            shared (number of units in both), jaccard (shared over units in either), expected (the
            Jaccard index of two random sets of these sizes, from their expected number of shared
            units).

        Raises:
            InputError: the other one is of another model or of other units, or has no set.
        """
        if (self.model, self.unit, self.n_units) != (other.model, other.unit, other.n_units):
            raise InputError(
                f"sets can be compared on one model and one kind of unit; got {self.unit} sets of {self.n_units} on "
                f"{self.model}, and {other.unit} sets of {other.n_units} on {other.model}"
            )
        ours, theirs = (
            set(t.components.filter("in_set").select("layer", "kind", "head", *t._places).rows())
            for t in (self, other)
        )
        if not ours or not theirs:
            raise InputError("one of the tasks has no set that holds, or an empty one; give a larger eps")
        shared, total = len(ours & theirs), len(ours) + len(theirs)
        by_chance = len(ours) * len(theirs) / self.n_units
        return {
            "shared": shared,
            "jaccard": shared / (total - shared),
            "expected": by_chance / (total - by_chance),
        }

    @property
    def by(self) -> Literal["faithfulness", "tv"]:
        """Measure by which sets suffice: "faithfulness", or total variation without targets."""
        return "tv" if self.prompts["target"].null_count() else "faithfulness"

    @property
    def _places(self) -> list[str]:
        return ["source", "target"] if self.unit == "edge" else []

    def summary(self) -> str:
        """Return one sentence on the set, and one on the prompts that were held out."""
        n_prompts = self.prompts.height
        where = f"{self.task}, {self.model}, {n_prompts} prompts"
        if self.found is None:
            return f"No set of {self.unit}s by {self.importance} holds within {self.eps:g} ({where})."
        held = self.curve.filter(half="held_out", n_units=self.found)
        (ours,) = held.filter(kind="trace").rows(named=True)
        chance = held.filter(kind="random")[self.by].to_numpy().mean()
        what = f"{self.found:,} of {self.n_units:,} {self.unit}s"
        if ours["n_heads"] is not None:
            what += f" ({ours['n_heads']} heads, {ours['n_mlps']} MLPs)"
        name = "mean faithfulness" if self.by == "faithfulness" else "mean total variation"
        return (
            f"{what} by {self.importance} hold within {self.eps:g} ({where}). On the prompts held out: {name} "
            f"{ours[self.by]:.2f}, with as many at random {chance:.2f}."
        )

    def __repr__(self) -> str:
        return f"TaskMeasurement({self.summary()})"


@tensors_on_cpu()
def measure_task(
    model: AnyModel,
    prompts: Any,
    *,
    unit: Unit = "component",
    importance: str = "fisher",
    eps: float = 0.1,
    counterfactual: bool | None = None,
    seed: int = 0,
) -> TaskMeasurement:
    """Find the smallest set of components, or of edges, that suffices for all prompts of a task.

    The set is found on half of the prompts, drawn at random. It is evaluated on the other half, and
    compared with random sets of as many heads and MLPs, or connected random sets of as many edges.

    Args:
        model: a model, or what `load_model` takes.
        prompts: name of a bundled task (`list_tasks`); a list of `Prompt`; or a corpus
            (`run_study`) with the column text and, optionally, target, against, counterfactual and
            spans. Either all prompts have a target, or none has.
        unit: "component" for heads and MLPs at all tokens; "edge" for edges between places that
            prompts share. A place is counted from the last token of the prompt, or from the last
            token of a span that prompts name.
        importance: the importance by which units are ranked. If prompts have targets, importances
            from gradients use the gradient of the target's value.
        eps: largest distance of the mean faithfulness from 1; without targets, largest mean total
            variation.
        counterfactual: whether an edge that is off carries its vector in the prompt's
            counterfactual (resample ablation) instead of nothing. None to do so if every prompt
            has a counterfactual.
        seed: random seed of the halves, of random sets, and of importances that draw numbers.

    Raises:
        InputError: there are fewer than four prompts, only some have a target, or a target is not
            a single token.
        ModelError: the model cannot be measured on a prompt.

    Examples:
        >>> he = [f"{who} said that" for who in ("He", "She", "The captain", "The sailor")]
        >>> task = dm.measure_task(model, [dm.Prompt(text, " he", " she") for text in he])
        >>> task.n_units, task.components.columns
        (54, ['rank', 'layer', 'kind', 'head', 'importance', 'in_set'])
    """
    model = as_model(model)
    check_importance(importance)
    eps, seed = check_eps(eps), checked_seed(seed)
    unit = checked_unit(unit)
    name, given = _prompts_of(prompts)
    paired = [prompt.counterfactual is not None for prompt in given]
    counterfactual = all(paired) if counterfactual is None else counterfactual
    if counterfactual and not all(paired):
        raise InputError(
            f"{paired.count(False)} of {len(given)} prompts have no counterfactual; give each one, or counterfactual=False"
        )
    given = given if counterfactual else [replace(prompt, counterfactual=None) for prompt in given]
    bundled = isinstance(prompts, str) and prompts in list_tasks()
    given, forwards = _all_recorded(model, given, leave_out=bundled)
    held_out = set(random.Random(seed).sample(range(len(given)), len(given) // 2))
    if unit == "component":
        joined = _components(forwards)
    else:
        pieces = [model.pieces(forward.ids) for forward in forwards]
        joined = _shared_edges(forwards, align(given, pieces))
    nothing: numpy.ndarray = numpy.zeros(joined.table.height + 1, dtype=bool)
    nothing[-1] = joined.rest
    prepared = [
        _Prepared(prompt, forward, forward.target, numbers, HALVES[i in held_out], nothing)
        for i, (prompt, forward, numbers) in enumerate(zip(given, forwards, joined.numbers, strict=True))
    ]
    return _Task(name, model.name, unit, joined, prepared, importance, eps, seed).measured()


def checked_unit(unit: str) -> Unit:
    """Return what sets are made of.

    Raises:
        InputError: it is unknown.
    """
    if unit not in get_args(Unit):
        raise InputError(f"unknown unit {unit!r}; expected 'component' or 'edge'")
    return cast(Unit, unit)


def _prompts_of(source: Any) -> tuple[str, list[Prompt]]:
    """Return the name of a task, and its prompts.

    Raises:
        InputError: there are fewer than four prompts, a row has a problem, or only some have a
            target.
        ArgumentTypeError: the source is none of the kinds that `measure_task` takes.
    """
    if isinstance(source, str) and source in list_tasks():
        return source, load_task(source)
    if isinstance(source, list | tuple) and any(isinstance(item, Prompt) for item in source):
        wrong = [item for item in source if not isinstance(item, Prompt)]
        if wrong:
            raise ArgumentTypeError(
                f"expected a list of Prompt, got also {type(wrong[0]).__name__}; give Prompt(text, target) for each"
            )
        name, prompts = "prompts", list(source)
    else:
        corpus = read_corpus(source)
        name, prompts = corpus.name, [_prompt_of(row) for row in corpus.texts.iter_rows(named=True)]
    _check_number(len(prompts))
    lacking = [prompt.text for prompt in prompts if prompt.target is None]
    if 0 < len(lacking) < len(prompts):
        raise InputError(
            f"{len(lacking)} of {len(prompts)} prompts have no target, the first of them {shorten(lacking[0])}; give each a "
            "target, or none"
        )
    return name, prompts


def _prompt_of(row: Mapping[str, Any]) -> Prompt:
    """Make a prompt of a row of a corpus.

    Raises:
        InputError: the row has a problem, or `against` without `target`.
    """
    if row["problem"] is not None:
        raise InputError(f"the prompt {row['id']!r} cannot be measured: {row['problem']}")
    return prompt_of(row)


def _all_recorded(
    model: Model, prompts: Sequence[Prompt], leave_out: bool
) -> tuple[list[Prompt], list[ForwardPass]]:
    """Record prompts.

    Args:
        leave_out: whether to leave out prompts whose answers are not single tokens, with a warning.

    Raises:
        InputError: a prompt cannot be recorded, or fewer than four are left.
    """
    kept, forwards, refused = [], [], []
    with progress("reading prompts", len(prompts)) as advance:
        for prompt in prompts:
            try:
                forwards.append(_recorded(model, prompt))
                kept.append(prompt)
            except InputError as error:
                if not leave_out:
                    raise
                refused.append(str(error))
            advance(1)
    if refused:
        warnings.warn(
            f"{len(refused)} of {len(prompts)} prompts are left out: {refused[0]}",
            DensitometerWarning,
            stacklevel=3,
        )
    _check_number(len(kept))
    return kept, forwards


def _check_number(n_prompts: int) -> None:
    """Check that there are enough prompts for two halves.

    Raises:
        InputError: there are fewer than four.
    """
    if n_prompts < FEWEST:
        raise InputError(
            f"a task needs at least {FEWEST} prompts, half of them to choose units and half to try them; got {n_prompts}. "
            "For one prompt, call measure(...)"
        )


def _recorded(model: Model, prompt: Prompt) -> ForwardPass:
    """Record a prompt with its target and its counterfactual."""
    target = Target.of(prompt.asked)
    score = None if target is None else target.resolved(model)
    ids = model.encode(prompt.text)
    forward, position = run_forward(model, ids, -1)
    forward = replace(forward, target=score)
    if prompt.counterfactual is None:
        return forward
    return with_counterfactual(forward, counterfactual_ids(model, prompt.counterfactual, ids, position))


@dataclass(frozen=True, eq=False)
class _Units:
    """The units that all prompts of a task share.

    Args:
        table: a row per unit, with the columns that identify it.
        numbers: for each prompt, (F,) int64: the unit of each edge, U for edges of no unit.
        rest: whether edges that do not belong to a unit are on.
        order: function from importances (U,) to the order (U,) in which units are taken.
        random: function from that order and a seed to a random order (U,).
    """

    table: polars.DataFrame
    numbers: list[numpy.ndarray]
    rest: bool
    order: Callable[[numpy.ndarray], numpy.ndarray]
    random: Callable[[numpy.ndarray, int], numpy.ndarray]


def _components(forwards: Sequence[ForwardPass]) -> _Units:
    """Number the heads and MLPs of a model. All other edges, the residual ones, are on."""
    components = Components.of(forwards[0].space)
    return _Units(
        components.table,
        [components.numbers(forward.space) for forward in forwards],
        True,
        lambda importance: numpy.argsort(-importance, kind="stable"),
        components.shuffled,
    )


def _shared_edges(forwards: Sequence[ForwardPass], aligned: Alignment) -> _Units:
    """Number the edges between places that prompts share.

    Args:
        forwards: the recorded pass of each prompt.
        aligned: the places of the prompts' tokens.
    """
    space = forwards[0].space.prefix(len(aligned.roles))
    reachable = numpy.zeros(space.size, dtype=bool)
    for forward, places in zip(forwards, aligned.places, strict=True):
        for place, own in zip(space.views(reachable), forward.space.views(forward.reachable), strict=True):
            place.residual[places] |= own.residual
            if place.attention is not None:
                place.attention[:, places[:, None], places] |= own.attention
            if place.mlp is not None:
                place.mlp[:, places] |= own.mlp
    index = numpy.flatnonzero(reachable)
    number = numpy.full(space.size, index.size)
    number[index] = numpy.arange(index.size)
    columns, last = space.columns(index), space.n_tokens - 1
    table = polars.DataFrame(
        {
            "layer": polars.Series(columns["layer"], dtype=polars.Int32),
            "kind": polars.Series(columns["kind"].tolist(), dtype=polars.String),
            "head": polars.Series(columns["head"], dtype=polars.Int32).replace(-1, None),
            "source": polars.Series(columns["source"] - last, dtype=polars.Int32),
            "target": polars.Series(columns["target"] - last, dtype=polars.Int32),
        }
    )
    if any(aligned.roles):
        table = table.with_columns(
            polars.Series(f"{end}_span", [aligned.roles[i] for i in columns[end]], dtype=polars.String)
            for end in ("source", "target")
        )

    def order(importance: numpy.ndarray) -> numpy.ndarray:
        flat = numpy.zeros(space.size, dtype=numpy.float32)
        flat[index] = importance
        return number[best_first_order(space, flat, reachable)]

    return _Units(
        table,
        [_at_places(number, space, f.space, p) for f, p in zip(forwards, aligned.places, strict=True)],
        False,
        order,
        lambda _, seed: order(uniform_importance(index.size, seed)),
    )


def _at_places(flat: numpy.ndarray, space: EdgeSpace, own: EdgeSpace, places: numpy.ndarray) -> numpy.ndarray:
    """Copy a value per edge of the shared places, (F,), to the edges of one prompt.

    Args:
        flat: (F,), a value per edge of `space`.
        space: the edge space of the places that all prompts share.
        own: the edge space of the prompt.
        places: (T,), the place of each token of the prompt.
    """
    out = numpy.empty(own.size, dtype=flat.dtype)
    for place, values in zip(own.views(out), space.views(flat), strict=True):
        place.residual[:] = values.residual[places]
        if values.attention is not None:
            place.attention[...] = values.attention[:, places[:, None], places]
        if values.mlp is not None:
            place.mlp[...] = values.mlp[:, places]
    return out


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A prompt that is ready to run.

    Args:
        prompt: the prompt.
        forward: its recorded pass, with its target.
        score: its target; None for the whole distribution.
        numbers: (F,) int64, the unit of each edge; U for edges of no unit.
        half: "chosen" if units are chosen on this prompt, "held_out" otherwise.
        nothing: (U + 1,) bool, the set of no units.
    """

    prompt: Prompt
    forward: ForwardPass
    score: TargetScore | None
    numbers: numpy.ndarray
    half: str
    nothing: numpy.ndarray

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Target's values for the full model and with all units off. NaN without a target."""
        if self.score is None:
            return numpy.nan, numpy.nan
        return float(self.score.value(self.forward.logits.cpu())), float(self.run([self.nothing]).values[0])

    def run(self, sets: Sequence[numpy.ndarray]) -> _Outcome:
        """Run K sets of units, each (U + 1,) bool, the last for edges of no unit."""
        forward = self.forward
        # (K, F); one prompt of a task is short
        masks = numpy.stack([chosen[self.numbers] & forward.reachable for chosen in sets])
        logits = masked_logits(forward, masks)
        costs = (forward.space, forward.block_costs, forward.reachable)
        shares = [
            cost / whole for cost, whole in zip(costs_of_sets(*costs, masks), full_cost(*costs), strict=True)
        ]
        full = forward.logits.cpu()
        return _Outcome(
            values=numpy.full(len(sets), numpy.nan)
            if self.score is None
            else self.score.value(logits).double().numpy(),
            tv=total_variation(full, logits).double().numpy(),
            right=_right(self.score, full, logits).double().numpy(),
            flops=shares[0],
            parameters=shares[1],
        )


def _right(score: TargetScore | None, full: Tensor, logits: Tensor) -> Tensor:
    """Whether predictions (K, vocabulary) are right, (K,), NaN if the target is a function.

    With a target and a wrong answer, right is to give the target the larger probability. With a
    target alone, it has to be the most probable token. Without a target, the full model's most
    probable token has to be the most probable one.
    """
    if score is not None and score.kind == "logit difference":
        return score.value(logits) > 0
    if score is not None and score.kind == "function":
        return torch.full((len(logits),), torch.nan)
    answers = torch.tensor([int(full.argmax())] if score is None else score.ids)
    return torch.isin(logits.argmax(-1), answers)


class _Outcome(NamedTuple):
    """Results of running K sets of units on one prompt, or their means over several prompts.

    All arrays are (K,) float64.
    """

    values: numpy.ndarray
    tv: numpy.ndarray
    right: numpy.ndarray
    flops: numpy.ndarray
    parameters: numpy.ndarray

    @classmethod
    def mean(cls, outcomes: Sequence[_Outcome]) -> _Outcome:
        return cls(*(numpy.mean(columns, axis=0) for columns in zip(*outcomes, strict=True)))


@dataclass(frozen=True, eq=False)
class _Task:
    """A task on one model, with the importance, tolerance and seed by which units are chosen."""

    name: str
    model: str
    unit: Unit
    units: _Units
    prompts: Sequence[_Prepared]
    importance: str
    eps: float
    seed: int

    @property
    def n_units(self) -> int:
        return self.units.table.height

    def measured(self) -> TaskMeasurement:
        """Choose units on one half of the prompts, and run the other with them."""
        importance = self._importance()  # (U,)
        order = self.units.order(importance)
        counts = sorted({round(size * self.n_units) for size in TASK_SIZES})
        tables = [self._table("chosen", order, counts)]

        def evaluate(more: Sequence[int]) -> list[float]:
            tables.append(self._table("chosen", order, more))
            return _gaps(tables[-1])

        known = dict(zip(tables[0]["n_units"], _gaps(tables[0]), strict=True))
        narrow(known, self._holds, evaluate)
        bracket = holding(known, self._holds, False)
        found = None if bracket is None else bracket[1]
        counts = sorted({*counts, *([] if found is None else [found])})
        tables.append(self._table("held_out", order, counts))
        for i in range(N_RANDOM):
            drawn = self.units.random(order, self.seed + i)
            # one draw is a curve; the others are for the spread at the set that was found
            some = counts if i == 0 else counts[:0] if found is None else [found]
            tables.append(self._table("held_out", drawn, some, self.seed + i))
        return TaskMeasurement(
            self.name, self.model, self.unit, self.importance, self.eps, self.n_units, found,
            curve=polars.concat(tables).sort("half", "kind", "seed", "n_units", maintain_order=True),
            components=self._ranked(importance, order, found or 0),
            prompts=self._per_prompt(order, found),
        )  # fmt: skip

    def _holds(self, gap: float) -> bool:
        return gap <= self.eps

    def _importance(self) -> numpy.ndarray:
        """Root of the mean square importance of each unit over the chosen half, (U,) float32."""
        prompts = [prompt for prompt in self.prompts if prompt.half == "chosen"]
        squares = numpy.zeros(self.n_units)
        with progress(f"computing {self.importance}", len(prompts)) as advance:
            for prompt in prompts:
                flat = compute_importance(prompt.forward, self.importance, self.seed)
                squares += sum_of_squares(flat, prompt.forward.reachable, prompt.numbers, self.n_units)
                advance(1)
        return numpy.sqrt(squares / len(prompts)).astype(numpy.float32)

    def _sets(self, order: numpy.ndarray, counts: Sequence[int]) -> list[numpy.ndarray]:
        """Sets of the first units of an order, (U + 1,) bool each, the last for other edges."""
        rank = numpy.full(self.n_units + 1, self.n_units)
        rank[order] = numpy.arange(self.n_units)
        sets = [rank < count for count in counts]
        for chosen in sets:
            chosen[-1] = self.units.rest
        return sets

    def _table(
        self, half: str, order: numpy.ndarray, counts: Sequence[int], seed: int | None = None
    ) -> polars.DataFrame:
        """Run one half of the prompts with only the first units of an order on.

        Args:
            half: "chosen" or "held_out".
            order: (U,), units, the first to be taken first.
            counts: how many units are on, one count per row of the table.
            seed: seed of a random order; None for the order by importance.

        Returns:
            Table with a row per count, of means over the prompts.
        """
        prompts = [prompt for prompt in self.prompts if prompt.half == half]
        sets = self._sets(order, counts)
        kind = "trace" if seed is None else "random"
        with progress(f"running {len(sets)} {kind} sets", len(prompts)) as advance:
            outcomes = []
            for prompt in prompts if sets else []:
                outcomes.append(prompt.run(sets))
                advance(1)
        mean = _Outcome.mean(outcomes) if outcomes else _Outcome(*[numpy.zeros(0)] * 5)
        full, nothing = (float(numpy.mean(ends)) for ends in zip(*(p.ends for p in prompts), strict=True))
        kinds = self.units.table["kind"].to_numpy()[order]
        of_kind = {
            name: [
                int((kinds[:count] == kind).sum()) if self.unit == "component" else None for count in counts
            ]
            for name, kind in (("n_heads", "attention"), ("n_mlps", "mlp"))
        }
        columns = {
            "half": [half] * len(sets),
            "kind": [kind] * len(sets),
            "seed": [seed] * len(sets),
            "n_units": list(counts),
            "size": [count / self.n_units for count in counts],
            **of_kind,
            "flops_share": mean.flops,
            "parameter_share": mean.parameters,
            "faithfulness": (mean.values - nothing) / (full - nothing),
            "tv": mean.tv,
            "accuracy": mean.right,
        }
        return polars.DataFrame(columns, schema=_CURVE, nan_to_null=True)

    def _ranked(self, importance: numpy.ndarray, order: numpy.ndarray, found: int) -> polars.DataFrame:
        """Table of the units in their order, with whether each is in the set that was found."""
        table = self.units.table.with_columns(importance=polars.Series(importance))[order]
        places = polars.int_range(table.height)
        return table.select((places + 1).alias("rank"), polars.all(), (places < found).alias("in_set"))

    def _per_prompt(self, order: numpy.ndarray, found: int | None) -> polars.DataFrame:
        """Table of results on each prompt, with the full model and with the set that was found."""
        rows = []
        for prompt in self.prompts:
            full, nothing = prompt.ends
            logits = prompt.forward.logits.cpu()
            outcome = None if found is None else prompt.run(self._sets(order, [found]))
            value = numpy.nan if outcome is None else float(outcome.values[0])
            rows.append(
                {
                    "text": prompt.prompt.text,
                    "half": prompt.half,
                    "target": None if prompt.score is None else prompt.score.name,
                    "full": full,
                    "nothing": nothing,
                    "value": value,
                    "faithfulness": (value - nothing) / (full - nothing),
                    "tv": None if outcome is None else float(outcome.tv[0]),
                    "right": float(_right(prompt.score, logits, logits[None])[0]),
                    "right_with_set": None if outcome is None else float(outcome.right[0]),
                }
            )
        columns = {name: [row[name] for row in rows] for name in _PROMPTS}
        return polars.DataFrame(columns, schema=_PROMPTS, nan_to_null=True).with_columns(
            polars.col("right", "right_with_set").cast(polars.Boolean)
        )


def _gaps(table: polars.DataFrame) -> list[float]:
    """Return |1 - faithfulness| of each set in a table, or its total variation without targets."""
    by = (1 - polars.col("faithfulness")).abs().fill_null(polars.col("tv"))
    return table.select(by)[:, 0].to_list()
