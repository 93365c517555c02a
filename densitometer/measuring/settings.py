"""The settings of a measurement, with the values that each may have.

They are declared here only. `measure`, positions, generation, studies, replay and the command line
each build one `MeasureSettings`, pass it on as one object, and store it. The model, the text and
the position are not settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from .._util.arguments import checked_list, checked_number, checked_seed
from ..errors import ArgumentTypeError, InputError
from ..graph.components import ComponentGraph
from ..graph.edge_graph import TraceGranularity
from ..graph.forward_pass import ForwardPass
from ..graph.graph import Graph
from ..graph.importance.registry import check_importance
from ..graph.input_pairs import check_pairing, counterfactual_ids, with_counterfactual
from ..graph.reference_means import ReferenceMeans, check_means
from ..graph.targets import Target
from ..models.loading import Model, as_model
from ..models.units import GRANULARITIES, Granularity
from .density import DEFAULT_SIZES, check_eps

# The papers' importance, and the one that gives the smallest traces among those that are cheap.
DEFAULT_IMPORTANCE = ("l1", "fisher")
DEFAULT_BASELINES = ("inverse", "random")
BASELINES = (*DEFAULT_BASELINES, "residual", "window")

# Settings that documents of older versions lack, and what they stand for there.
LATER: dict[str, Any] = {"target": None, "counterfactual": None}

By = Literal["size", "threshold"]
Attention = Literal["recomputed", "frozen", "kept"]
Ablation = Literal["zero"] | ReferenceMeans


@dataclass(frozen=True)
class MeasureSettings:
    """Settings of how a prediction is measured.

    Every value is checked. Sequences are kept as tuples.

    Args:
        importance: the importances by which traces grow. Each gives a curve and a density of its
            own.
        sizes: shares of the edges at which traces are run, in (0, 1]. None for the 27 sizes of
            arXiv 2605.27033. With `by="threshold"` these are importances. None is then for 26
            thresholds spread over the graph's importances, and the full trace.
        baselines: any of "inverse", "random", "residual" and "window".
        by: "size" for best-first traces of sizes (arXiv 2605.27033), "threshold" for traces of
            importance thresholds (arXiv 2601.22795).
        eps: total variation, in (0, 1), at which `size_at` is placed to 5 %.
        seed: random seed of the random baseline, and of importances that draw random numbers.
        attention: "recomputed" computes a trace's attention weights from its own stream, "frozen"
            keeps the full run's, "kept" recomputes them and leaves every attention edge on.
        ablation: what replaces the vector of a removed edge: "zero" (the papers), or reference
            means.
        granularity: what an MLP edge is: "block", "expert" or "neuron"; or "component", for traces
            of whole heads and MLPs over all tokens (`graph/components.py`).
        target: what of the prediction is measured besides its whole distribution: a token, as its
            text or its id, for its probability; a pair (token, against), or of two lists of tokens,
            for their logit difference; or a function of logits (..., vocabulary) float32 that
            returns (...). None for the whole distribution alone.
        counterfactual: another input with the same number of tokens, as a text, chat messages or
            token ids. An edge that is off carries its vector in that input. None to use `ablation`.

    Raises:
        InputError: a value is unknown or out of range.
        ArgumentTypeError: a value is of another type.

    Examples:
        >>> settings = dm.MeasureSettings(importance="l1", sizes=[0.5, 0.1])
        >>> settings.importance, settings.sizes, settings.to_document()["ablation"]
        (('l1',), (0.1, 0.5), 'zero')
    """

    importance: str | Sequence[str] = DEFAULT_IMPORTANCE
    sizes: Sequence[float] | None = None
    baselines: Sequence[str] = DEFAULT_BASELINES
    by: By = "size"
    eps: float = 0.1
    seed: int = 0
    attention: Attention = "recomputed"
    ablation: Ablation = "zero"
    granularity: TraceGranularity = "block"
    target: Any = None
    counterfactual: Any = None

    def __post_init__(self) -> None:
        _check_choice("by", self.by, get_args(By))
        _check_choice("attention", self.attention, get_args(Attention))
        _check_choice("granularity", self.granularity, ("component", *GRANULARITIES))
        _check_ablation(self.ablation, self.mlp_edges)
        self._check_components()
        self._check_counterfactual()
        sizes = self.sizes
        if sizes is not None:
            sizes = tuple(checked_sizes(sizes) if self.by == "size" else checked_thresholds(sizes))
        baselines = tuple(checked_list("baselines", self.baselines))
        if any(baseline not in BASELINES for baseline in baselines):
            raise InputError(
                f"unknown baselines {self.baselines!r}; expected a sequence of {', '.join(BASELINES)}"
            )
        checked = {
            "importance": tuple(checked_importances(self.importance)),
            "sizes": sizes,
            "baselines": baselines,
            "eps": check_eps(self.eps),
            "seed": checked_seed(self.seed),
            "target": Target.of(self.target),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _check_components(self) -> None:
        """Refuse settings that cannot be combined with traces of whole heads and MLPs."""
        if self.granularity != "component":
            return
        if self.attention == "kept":
            raise InputError(
                "attention='kept' leaves every attention edge on, so that no head is ever off, and granularity='component' would "
                "measure the MLPs alone; leave one of the two out"
            )
        baselines = self.baselines if isinstance(self.baselines, list | tuple) else ()
        for baseline, why in (
            ("residual", "residual edges are always on there, so that it repeats inverse and random"),
            (
                "window",
                "a window turns off some edges of each head, and a head is on or off as a whole there",
            ),
        ):
            if baseline in baselines:
                raise InputError(
                    f"the baseline {baseline!r} makes no sense with granularity='component': {why}; leave one of the two out"
                )

    def _check_counterfactual(self) -> None:
        """Refuse settings that cannot be combined with a counterfactual, or with kept attention."""
        baselines = self.baselines if isinstance(self.baselines, list | tuple) else ()
        if self.attention == "kept" and "window" in baselines:
            raise InputError(
                "attention='kept' leaves every attention edge on, so the baseline 'window', which turns some off, makes no "
                "sense; leave one of the two out"
            )
        if self.attention == "kept" and (self.counterfactual is not None or self.means is not None):
            what = "a counterfactual" if self.means is None else "reference means"
            raise InputError(
                f"attention='kept' leaves every attention edge on, so that none can carry anything else, as by {what}; leave one "
                "of the two out"
            )
        if self.counterfactual is None:
            return
        if self.means is not None:
            raise InputError(
                "an edge that is off carries either its reference mean or what it carries in the counterfactual; give "
                "ablation or counterfactual, not both"
            )
        check_pairing(self.mlp_edges)
        # as lists come from JSON; anything else is checked when the model is known
        if isinstance(self.counterfactual, list) and all(isinstance(i, int) for i in self.counterfactual):
            object.__setattr__(self, "counterfactual", tuple(self.counterfactual))

    @property
    def means(self) -> ReferenceMeans | None:
        """Reference means that replace the vectors of removed edges. None for zeros."""
        return self.ablation if isinstance(self.ablation, ReferenceMeans) else None

    @property
    def frozen(self) -> bool:
        """Whether traces keep the full run's attention weights."""
        return self.attention == "frozen"

    @property
    def kept(self) -> bool:
        """Whether every attention edge is on, including those that are not in the trace."""
        return self.attention == "kept"

    @property
    def mlp_edges(self) -> Granularity:
        """Granularity of the recorded pass. It is "block" for traces of components."""
        return "block" if self.granularity == "component" else self.granularity

    def joined(self, graph: Graph) -> Graph | ComponentGraph:
        """Return a graph, with its edges joined to components if the granularity is "component"."""
        return ComponentGraph.of(graph) if self.granularity == "component" else graph

    def placed(self, model: Model, ids: Sequence[int], position: int) -> MeasureSettings:
        """Return these settings with the counterfactual as token ids, up to a position.

        Args:
            ids: token ids of the whole input.
            position: index of the token whose prediction is measured.

        Raises:
            InputError: the counterfactual cannot be paired with the input.
        """
        if self.counterfactual is None:
            return self
        other = counterfactual_ids(model, self.counterfactual, ids, position)
        return replace(self, counterfactual=other)

    def recorded(self, forward: ForwardPass) -> ForwardPass:
        """Return a recorded pass to which the settings' target and counterfactual are added."""
        if self.counterfactual is not None:
            forward = with_counterfactual(forward, self.counterfactual)
        score = None if self.target is None else self.target.resolved(forward.model)
        return replace(forward, target=score)

    def model_for(self, model: Any) -> Model:
        """Return the model to measure, which is loaded if a name is given.

        Args:
            model: a model, or what `load_model` takes.

        Raises:
            InputError: the reference means are of another model.
            ArgumentTypeError, ModelError: `load_model` cannot load it.
        """
        loaded = as_model(model)
        if self.means is not None:
            check_means(self.means, loaded)
        return loaded

    def to_document(self) -> dict[str, Any]:
        """Return the settings as plain data, for JSON.

        Reference means are not written, only their provenance, under "means".
        """
        means = self.means
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()},
            "target": None if self.target is None else self.target.to_document(),
            "ablation": "zero" if means is None else "mean",
            "means": None if means is None else means.provenance,
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], means: ReferenceMeans | None = None, target: Target | None = None
    ) -> MeasureSettings:
        """Return the settings that `to_document` wrote.

        Args:
            document: plain data. Keys that are not settings are left out.
            means: the reference means, where the settings name some.
            target: the target, where it is a function, which the document names only.

        Raises:
            InputError: a setting is missing, or the settings need means and none are given.
        """
        document = {**LATER, **document}
        lacking = [field.name for field in fields(cls) if field.name not in document]
        if lacking:
            raise InputError(
                f"the setting{'s' * (len(lacking) > 1)} {', '.join(lacking)} cannot be read from a measurement of "
                f"densitometer {document.get('densitometer', 'of an unknown version')}, which did not write "
                f"{'them' if len(lacking) > 1 else 'it'}; call measure(...) again"
            )
        if document["ablation"] != "zero" and means is None:
            raise InputError(
                "this measurement depends on reference means, which its file does not hold; call measure(..., ablation=means) again"
            )
        named = {field.name: document[field.name] for field in fields(cls)}
        named["target"] = target or Target.from_document(document["target"])
        return cls(**named | {"ablation": "zero" if means is None else means})


def checked_importances(importance: str | Sequence[str]) -> list[str]:
    """Return the names of importances, each once, in their order.

    Raises:
        InputError: an importance is unknown, or none is named.
    """
    names = [importance] if isinstance(importance, str) else checked_list("importance", importance)
    if not names:
        raise InputError("give at least one importance; got none")
    for name in names:
        check_importance(name)
    return list(dict.fromkeys(names))


def checked_sizes(sizes: Sequence[float] | None) -> list[float]:
    """Return sizes, rising, each once. None stands for those of arXiv 2605.27033.

    Raises:
        InputError: a size is not in (0, 1], or the list is empty.
    """
    if sizes is None:
        return list(DEFAULT_SIZES)
    checked = sorted({checked_number("each of the sizes", size) for size in checked_list("sizes", sizes)})
    if not checked or any(not 0 < size <= 1 for size in checked):
        raise InputError(f"sizes are shares of the edges in (0, 1]; got {list(sizes)}")
    return checked


def checked_thresholds(thresholds: Sequence[float]) -> list[float]:
    """Return importance thresholds as numbers, in their order."""
    return [checked_number("each of the sizes", value) for value in checked_list("sizes", thresholds)]


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        expected = " or ".join(map(repr, choices)) if len(choices) == 2 else f"one of {', '.join(choices)}"
        raise InputError(f"unknown {name} {value!r}; expected {expected}")


def _check_ablation(ablation: Any, granularity: str) -> None:
    if isinstance(ablation, ReferenceMeans):
        if granularity != "block":
            raise InputError(
                f"reference means are of whole MLPs, so they need granularity='block'; got {granularity!r}"
            )
    elif not isinstance(ablation, str):
        raise ArgumentTypeError(f"ablation is 'zero' or reference means, got {type(ablation).__name__}")
    elif ablation == "mean":
        raise InputError(
            "ablation='mean' lacks the means: give them, ablation=densitometer.reference_means(model, texts), or write them with "
            "`densitometer means CORPUS -m MODEL -o FILE` and give ablation=densitometer.load_means(FILE)"
        )
    elif ablation != "zero":
        raise InputError(f"unknown ablation {ablation!r}; expected 'zero' or reference means")
