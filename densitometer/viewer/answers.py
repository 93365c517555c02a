"""What the page may ask of Python while it is open, on a server or in a notebook: one method, plain data in and out.

    measure     {text, importance: [..]}                          -> a payload
    run         {id, importance, n_edges, pinned, hidden, hidden_components}  -> what those edges predict
    edge        {id, edge}                                        -> what the edge writes
    node        {id, row, token}                                  -> the logit lens
    tokens      {id, importance}                                  -> the payload of the density along the text
    trace_at    {id, position, importance}                        -> the payload of another token of that text

Inputs are kept by id, the latest few. What comes from the page is checked here: it may be anything.
"""

from __future__ import annotations

import secrets
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ArgumentTypeError, DensitometerWarning, InputError, ModelError
from ..graph.importance.registry import list_importances
from ..measuring.json_io import load_measurement
from ..measuring.measurement import Measurement, measure, measured
from ..measuring.positions import measure_positions
from ..measuring.settings import DEFAULT_BASELINES, MeasureSettings
from ..models.loading import Model, Text
from .payload import is_long_input, tokens_payload, traces_payload
from .reading import Node, Reader

KEPT = 12  # inputs in memory at once
MOST_CHARACTERS = 200_000  # of a text


def opened(
    what: str,
    load: Callable[[str], Model],
    settings: Mapping[str, Any],
    model: str | None = None,
    beside: Sequence[str] = (),
) -> tuple[list[Measurement], list[Model]]:
    """Open what the page starts with. Return the measurements, and the models behind them.

    A text is measured by each model. A measurement read from a file comes first, with its model
    where that loads.

    Args:
        what: a text, or the path of a file that ends in .json.
        load: loads a model by name.
        settings: keywords of `measure`, for a text.
        model: the first model; by default `demo`, or the one that was measured.
        beside: others to compare with.

    Raises:
        StorageError: a .json file that cannot be read.
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
            f"there will be no trace to look at, only the curve: {error}", DensitometerWarning, stacklevel=2
        )
        return [measurement], []
    others = [load(name) for name in beside]
    more = [_beside(measurement, model) for model in others]
    return [measurement, *more], [*models, *others]


class Answers:
    """Answers to the page's questions, about inputs of one model, or of several that are compared.

    Args:
        models: none, where a measurement was opened without its model: then there is nothing to ask.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = list(models)
        self._readers: OrderedDict[str, Reader] = OrderedDict()
        self._methods = {
            "measure": self._measure, "run": self._run, "edge": self._edge, "node": self._node, "tokens": self._tokens,
            "trace_at": self._trace_at,
        }  # fmt: skip

    def payload(self, measurements: Measurement | Sequence[Measurement]) -> dict[str, Any]:
        """The payload of a measurement, or of several to be compared, their views open to questions."""
        given = [measurements] if isinstance(measurements, Measurement) else measurements
        own = [measurement.with_graphs() for measurement in given]
        payload = traces_payload(own)
        payload["offers"] = {"importances": [name for name in list_importances() if name != "random"]}
        if not any(is_long_input(m) for m in own):  # those may have several views each
            for measurement, view in zip(own, payload["views"], strict=True):
                if measurement.session is not None:
                    view["id"] = self._keep(Reader(measurement))
        return payload

    def measured(self, text: Text, settings: Mapping[str, Any]) -> list[Measurement]:
        """A text measured by every model.

        Raises:
            InputError: there is none.
        """
        if not self.models:
            raise InputError(
                "no model is loaded: this page was opened on a measurement without its model. Open it with one: "
                "densitometer explore MEASUREMENT -m MODEL"
            )
        return [measure(model, text, keep_graphs=True, **settings) for model in self.models]

    def ask(self, method: str, parameters: Any) -> dict[str, Any]:
        """Answer one question.

        Raises:
            DensitometerError: it cannot be answered; the message says why.
        """
        if method not in self._methods:
            raise InputError(f"unknown question {method!r}; expected one of {', '.join(self._methods)}")
        if not isinstance(parameters, dict):
            raise ArgumentTypeError(f"expected an object of parameters, got {type(parameters).__name__}")
        answer: dict[str, Any] = self._methods[method](parameters)
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
            raise InputError("a residual edge carries its source; ask for that node")
        ids, changes = reader.writes([writer])
        return {"tokens": reader.pieces(ids[0].tolist()), "changes": changes[0].tolist()}

    def _node(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        space = reader.first.space
        row, token = _of(parameters, "row", int), _of(parameters, "token", int)
        if not (0 <= row <= len(space.levels) and 0 <= token < space.n_tokens):
            raise InputError(
                f"there is no node in row {row} at token {token}; rows go from 0 to {len(space.levels)}, tokens from 0 to "
                f"{space.n_tokens - 1}"
            )
        ids, probabilities = reader.nodes([Node(row, token)])
        return {"tokens": reader.pieces(ids[0].tolist()), "probabilities": probabilities[0].tolist()}

    def _tokens(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        own = reader.measurement.input
        model = reader.session.model
        name = _of(parameters, "importance", str)
        settings = reader.measurement.settings
        table = measure_positions(
            model, own["ids"], importance=name, seed=settings.seed, attention=settings.attention, ablation=settings.ablation
        )  # fmt: skip
        label = own["text"] if own["text"] is not None else "".join(own["tokens"])
        return tokens_payload(table, label=label) | {"id": parameters["id"]}

    def _trace_at(self, parameters: dict[str, Any]) -> dict[str, Any]:
        reader = self._reader(parameters)
        position, name = _of(parameters, "position", int), _of(parameters, "importance", str)
        own = reader.measurement
        settings = _settings_beside(own, [name])
        model = reader.session.model
        return self.payload(measured(model, own.input.ids, settings, position, keep_graphs=True))

    def _reader(self, parameters: dict[str, Any]) -> Reader:
        name = _of(parameters, "id", str)
        if name not in self._readers:
            raise InputError("this input is no longer in memory; measure the text again")
        self._readers.move_to_end(name)
        return self._readers[name]

    def _keep(self, reader: Reader) -> str:
        name = secrets.token_urlsafe(9)
        self._readers[name] = reader
        while len(self._readers) > KEPT:
            self._readers.popitem(last=False)
        return name


def _beside(measurement: Measurement, model: Model) -> Measurement:
    """Another model at the same place of the same text."""
    ids, position = list(measurement.input.ids), measurement.input.position
    text = measurement.input.text or ids
    if position == len(ids) - 1:
        position = -1
    elif model.encode(text) != ids:
        raise InputError(
            f"{model.name} cuts the text into other tokens than {measurement.model.name}, so there is no token {position} of its "
            "own to put beside; measure the text up to that token and open that"
        )
    return measured(model, text, _settings_beside(measurement, list(measurement.density)), position)


def _settings_beside(measurement: Measurement, importance: Sequence[str]) -> MeasureSettings:
    """The settings of a measurement that is to be compared with this one: its semantics and seed, the usual sizes."""
    return replace(
        measurement.settings,
        importance=importance,
        sizes=None,
        by="size",
        eps=0.1,
        baselines=DEFAULT_BASELINES,
    )


def _of(parameters: dict[str, Any], name: str, kind: type) -> Any:
    value = parameters.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be of type {kind.__name__}, got {_short(value)}")
    return value


def _list(parameters: dict[str, Any], name: str, kind: type, optional: bool = False) -> list[Any]:
    value = parameters.get(name, [] if optional else None)
    if not isinstance(value, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
        raise ArgumentTypeError(f"{name} must be a list of {kind.__name__}, got {_short(value)}")
    return value


def _component(entry: list[Any]) -> tuple[int, str, int]:
    match entry:
        case [int(layer), str(kind), int(head)]:
            return layer, kind, head
    raise ArgumentTypeError(f"a component is [layer, kind, head], got {_short(entry)}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
