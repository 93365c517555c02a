"""Questions that the page may ask of Python while it is open, on a server or in a notebook.

A question is a method with parameters; parameters and answers are plain data.

    measure     {text, importance: [..]}            payload of the text
    run         {id, importance, n_edges, pinned, hidden, hidden_components}
                                                    prediction with those edges on
    edge        {id, edge}                          tokens that the edge promotes and demotes
    node        {id, row, token}                    logit lens of the node
    tokens      {id, importance}                    payload of the density along the text
    trace_at    {id, position, importance}          payload of another token of the text

The latest inputs are kept in memory by id. Parameters come from the page and may be anything, so
they are checked here.
"""

from __future__ import annotations

import secrets
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import polars
from torch import Tensor

from ..errors import ArgumentTypeError, DensitometerWarning, InputError, ModelError
from ..graph.importance.registry import list_importances
from ..measuring.json_io import load_measurement
from ..measuring.measurement import Measurement, measure, measured
from ..measuring.positions import measure_positions
from ..measuring.settings import DEFAULT_BASELINES, MeasureSettings
from ..models.loading import Model, Text
from .payload import EDGE_BUDGET, tokens_payload, traces_and_readers
from .reading import Node, Reader

# Inputs that are kept in memory, and bytes of all of them together. The latest of each model, and
# all views of the latest payload, are always kept.
KEPT = 12
KEPT_BYTES = 512 * 2**20
# Most characters of a text.
MOST_CHARACTERS = 200_000


def opened(
    what: str,
    load: Callable[[str], Model],
    settings: Mapping[str, Any],
    model: str | None = None,
    beside: Sequence[str] = (),
) -> tuple[list[Measurement], list[Model]]:
    """Open what the page shows first. Return the measurements, and the models behind them.

    A text is measured with each model. A measurement from a file comes first, with its model if the
    model can be loaded.

    Args:
        what: a text, or the path of a measurement that ends in .json.
        load: function that loads a model by name.
        settings: keyword arguments of `measure`, for a text.
        model: the first model; by default `demo`, or the one that was measured.
        beside: names of further models to compare with.

    Raises:
        StorageError: the .json file cannot be read.
        InputError: a further model tokenizes the text differently.
    """
    if not what.endswith(".json"):
        models = [load(name) for name in (model or "demo", *beside)]
        return Answers(models).measured(what, settings), models
    measurement = load_measurement(what)
    try:
        models = [load(model or measurement.model.name)]
        measurement = measurement.with_model(models[0])
    except ModelError as error:
        warnings.warn(
            f"the page shows the curve without traces, because the model cannot be loaded: {error}",
            DensitometerWarning,
            stacklevel=2,
        )
        return [measurement], []
    others = [load(name) for name in beside]
    more = [_beside(measurement, model) for model in others]
    return [measurement, *more], [*models, *others]


class Answers:
    """Answers to the page's questions about inputs of one model, or of several that are compared.

    Args:
        models: the models; none if a measurement was opened without its model, in which case
            questions are refused.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = list(models)
        self._readers: OrderedDict[str, Reader] = OrderedDict()
        # views of the latest payload; a long input has one for each importance
        self._latest = 1
        self._methods = {
            "measure": self._measure, "run": self._run, "edge": self._edge, "node": self._node, "tokens": self._tokens,
            "trace_at": self._trace_at,
        }  # fmt: skip

    def payload(
        self, measurements: Measurement | Sequence[Measurement], edge_budget: int = EDGE_BUDGET
    ) -> dict[str, Any]:
        """Return the payload of measurements to compare, and keep their inputs for questions.

        Args:
            measurements: the measurements.
            edge_budget: edges that all of them keep together.
        """
        payload, readers = traces_and_readers(measurements, edge_budget)
        self._latest = len(readers)
        payload["offers"] = {"importances": [name for name in list_importances() if name != "random"]}
        for reader, view in zip(readers, payload["views"], strict=True):
            if reader is not None:
                view["id"] = self._keep(reader)
        return payload

    def measured(self, text: Text, settings: Mapping[str, Any]) -> list[Measurement]:
        """Measure a text by every model.

        Raises:
            InputError: there is no model.
        """
        if not self.models:
            raise InputError(
                "no model is loaded, because this page was opened on a measurement without its model; open it "
                "with one: densitometer explore MEASUREMENT -m MODEL"
            )
        return [measure(model, text, keep_graphs=True, **settings) for model in self.models]

    def ask(self, method: str, parameters: Any) -> dict[str, Any]:
        """Answer one question.

        Args:
            method: name of the question (module docstring).
            parameters: an object of its parameters, unchecked.

        Raises:
            DensitometerError: the question or its parameters are not valid, or the work failed.
        """
        if method not in self._methods:
            raise InputError(f"unknown question {method!r}; expected one of {', '.join(self._methods)}")
        if not isinstance(parameters, dict):
            raise ArgumentTypeError(f"expected an object of parameters, got {type(parameters).__name__}")
        answer: dict[str, Any] = self._methods[method](parameters)
        self._let_go()  # an input grows when it is first asked about
        return answer

    def _measure(self, parameters: dict[str, Any]) -> dict[str, Any]:
        text = _of(parameters, "text", str)
        if len(text) > MOST_CHARACTERS:
            raise InputError(f"the text has {len(text):,} characters, more than {MOST_CHARACTERS:,}")
        names = _list(parameters, "importance", str)
        return self.payload(self.measured(text, {"importance": names or ["l1"]}))

    def _run(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        off = [_component(entry) for entry in _list(parameters, "hidden_components", list, optional=True)]
        trace = reader.chosen(
            _of(parameters, "importance", str),
            _of(parameters, "n_edges", int),
            _list(parameters, "pinned", int, optional=True),
            _list(parameters, "hidden", int, optional=True),
            off,
        )
        return reader.run([trace])[0]

    def _edge(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        writer = reader.writer_of(_of(parameters, "edge", int))
        if writer is None:
            raise InputError("a residual edge carries its source unchanged; give the node of its source")
        ids, changes = reader.writes([writer])
        return {"tokens": reader.pieces(ids[0].tolist()), "changes": changes[0].tolist()}

    def _node(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        space = reader.first.space
        row, token = _of(parameters, "row", int), _of(parameters, "token", int)
        if not (0 <= row <= len(space.levels) and 0 <= token < space.n_tokens):
            raise InputError(
                f"there is no node in row {row} at token {token}; rows go from 0 to {len(space.levels)}, "
                f"tokens from 0 to {space.n_tokens - 1}"
            )
        ids, probabilities = reader.nodes([Node(row, token)])
        return {"tokens": reader.pieces(ids[0].tolist()), "probabilities": probabilities[0].tolist()}

    def _tokens(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        if not reader.first.stored:
            raise InputError("the tokens of a long input take a measurement each; use measure_positions")
        measured_input = reader.measurement.input
        model = reader.session.model
        name = _of(parameters, "importance", str)
        settings = reader.measurement.settings
        table = measure_positions(
            model, measured_input["ids"], importance=name, seed=settings.seed, attention=settings.attention, ablation=settings.ablation,
            target=settings.target, counterfactual=settings.counterfactual,
        )  # fmt: skip
        label = measured_input["text"]
        if label is None:
            label = "".join(measured_input["tokens"])
        return tokens_payload(table, label=label) | {"id": parameters["id"]}

    def _trace_at(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        position, name = _of(parameters, "position", int), _of(parameters, "importance", str)
        measurement = reader.measurement
        settings = _settings_beside(measurement, [name])
        if settings.counterfactual is not None:
            settings = replace(settings, counterfactual=settings.counterfactual[: position + 1])
        model = reader.session.model
        return self.payload(measured(model, measurement.input.ids, settings, position, keep_graphs=True))

    def _reader(self, parameters: dict[str, Any]) -> Reader:
        name = _of(parameters, "id", str)
        if name not in self._readers:
            raise InputError("this input is no longer in memory; measure the text again")
        self._readers.move_to_end(name)
        return self._readers[name]

    def _keep(self, reader: Reader) -> str:
        name = secrets.token_urlsafe(9)
        self._readers[name] = reader
        self._let_go()
        return name

    def _let_go(self) -> None:
        """Forget the oldest inputs while there are too many, or they take too much memory."""
        least = max(self._latest, len(self.models))
        while len(self._readers) > least and (
            len(self._readers) > KEPT or held_bytes(list(self._readers.values())) > KEPT_BYTES
        ):
            self._readers.popitem(last=False)


def held_bytes(held: Any) -> int:
    """Bytes of the arrays, tensors and tables that something holds, each counted once.

    Models are left out: they stay in memory whatever is dropped.
    """
    seen: set[Any] = set()
    waiting, total = [held], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
        elif isinstance(value, numpy.ndarray):
            while isinstance(value.base, numpy.ndarray):  # a view holds the whole array
                value = value.base
            key, size = value.ctypes.data, value.nbytes
        else:
            key, size = id(value), 0
        if key in seen:
            continue
        seen.add(key)
        total += size
        if isinstance(value, Model | Tensor | numpy.ndarray):
            continue
        if isinstance(value, polars.DataFrame):
            total += int(value.estimated_size())
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif type(value).__module__.startswith("densitometer."):
            waiting += getattr(value, "__dict__", {}).values()
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [getattr(value, name) for name in slots if hasattr(value, name)]
    return total


def _beside(measurement: Measurement, model: Model) -> Measurement:
    """Measure the same position of the same text with another model."""
    ids, position = list(measurement.input.ids), measurement.input.position
    text = measurement.input.text or ids
    if position == len(ids) - 1:
        position = -1
    elif model.encode(text) != ids:
        raise InputError(
            f"{model.name} cuts the text into other tokens than {measurement.model.name}, so its token "
            f"{position} cannot be compared; measure the text up to that token and open that measurement"
        )
    settings = _settings_beside(measurement, list(measurement.density))
    if (
        measurement.counterfactual is not None
        and model.encode(text)[: position % len(ids) + 1] != ids[: position % len(ids) + 1]
    ):
        raise InputError(
            f"{model.name} cuts the text into other tokens than {measurement.model.name}, so the counterfactual's tokens have no "
            "counterparts; measure without a counterfactual to compare the two"
        )
    return measured(model, text, settings, position)


def _settings_beside(measurement: Measurement, importance: Sequence[str]) -> MeasureSettings:
    """Return the settings for a measurement to compare with this one.

    They have its attention, ablation, seed, target and counterfactual, and default sizes and
    baselines.
    """
    return replace(
        measurement.settings,
        importance=importance,
        sizes=None,
        by="size",
        eps=0.1,
        baselines=DEFAULT_BASELINES,
    )


def _of(parameters: dict[str, Any], name: str, kind: type) -> Any:
    """Return a parameter of a type, or raise ArgumentTypeError."""
    value = parameters.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be of type {kind.__name__}, got {_short(value)}")
    return value


def _list(parameters: dict[str, Any], name: str, kind: type, optional: bool = False) -> list[Any]:
    """Return a parameter that is a list of values of a type, or raise ArgumentTypeError."""
    value = parameters.get(name, [] if optional else None)
    if not isinstance(value, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
        raise ArgumentTypeError(f"{name} must be a list of {kind.__name__}, got {_short(value)}")
    return value


def _component(entry: list[Any]) -> tuple[int, str, int]:
    match entry:
        case [int(layer), str(kind), int(head)]:
            return layer, kind, head
    raise ArgumentTypeError(f"a component must be [layer, kind, head], got {_short(entry)}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
