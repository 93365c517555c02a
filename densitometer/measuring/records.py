"""Records of what was measured (the model, input, graph and next token), and how.

Each is a frozen dataclass with typed fields. It is also a mapping, whose values are those of the
measurement's JSON document. So `m.input.ids` is a tuple, `m.input["ids"]` is a list, and
`dict(record)` is that part of the document.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, Self

from torch import Tensor

from .._util.metrics import rank, surprisal
from ..graph.targets import Scale
from ..models.loading import Model


def shown_name(name: str) -> str:
    """Name of a model as summaries show it. For a path, it is the last part."""
    return (PurePath(name).name or name) if name.startswith((".", "/", "~")) else name


class Record(Mapping[str, Any]):
    """Base class of the records: a frozen dataclass that is also a mapping of its JSON values."""

    def to_document(self) -> dict[str, Any]:
        """Return the record as plain data, for JSON."""
        values = ((entry.name, getattr(self, entry.name)) for entry in fields(self))  # type: ignore[arg-type]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    def __getitem__(self, key: str) -> Any:
        return self.to_document()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_document())

    def __len__(self) -> int:
        return len(self.to_document())

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the record that `to_document` wrote. Keys that are not fields are left out."""
        known = {entry.name: document[entry.name] for entry in fields(cls) if entry.name in document}  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


@dataclass(frozen=True, eq=False)
class MeasuredModel(Record):
    """The model that was measured.

    Args:
        layout: names of the block layouts, in alphabetical order.
        file: GGUF file that the model was read from; None for other models.
        quantization: type of the weights in that file; None for other models.
        fingerprint: fingerprint of the weights (`Model.commit`); None in files of older versions.
    """

    name: str
    revision: str | None
    architecture: str
    dtype: str
    device: str
    layout: tuple[str, ...]
    file: str | None = None
    quantization: str | None = None
    fingerprint: str | None = None

    @classmethod
    def of(cls, model: Model) -> MeasuredModel:
        """Describe a loaded model."""
        adapter, origin = model.adapter, model.origin
        return cls(
            name=model.name,
            revision=model.revision,
            architecture=model.architecture,
            dtype=str(adapter.dtype).removeprefix("torch."),
            device=str(adapter.device),
            layout=tuple(sorted({block.layout.name for block in adapter.blocks})),
            file=None if origin is None else origin.file,
            quantization=None if origin is None else origin.quantization,
            fingerprint=model.commit,
        )


@dataclass(frozen=True, eq=False)
class MeasuredInput(Record):
    """The input that was measured.

    Args:
        text: the text; for a chat, the text that the chat template gives. None for token ids.
        ids: token ids of the whole input, including those after the position.
        tokens: one string per id.
        position: index of the token after which the prediction was measured.
    """

    text: str | None
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    position: int


@dataclass(frozen=True, eq=False)
class MeasuredGraph(Record):
    """Sizes of the measured graph.

    Args:
        n_edges: number E of edges from which the output can be reached.
        n_tokens: tokens of the whole input.
        landmarks: by name of a natural subgraph, its share of the edges.
    """

    n_edges: int
    n_layers: int
    n_heads: int
    n_tokens: int
    landmarks: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class NextToken(Record):
    """The token that comes next in the text, and how much the model expected it.

    Args:
        surprisal: minus the log of its probability, nats.
        rank: how many tokens are more probable; 0 for the most probable one.
    """

    id: int
    token: str
    surprisal: float
    rank: int

    @classmethod
    def of(cls, model: Model, logits: Tensor, token: int | None) -> NextToken | None:
        """Describe a token under logits (vocabulary,). Return None where the text ends."""
        if token is None:
            return None
        return cls(token, model.pieces([token])[0], float(surprisal(logits, token)), int(rank(logits, token)))


@dataclass(frozen=True, eq=False)
class MeasuredTarget(Record):
    """The target of a measurement, and its values between which faithfulness goes from 0 to 1.

    Args:
        name: the target in words.
        kind: "probability" of a token, "logit difference" of two sets, or "function".
        ids: token ids; empty for a function.
        against: token ids that these are contrasted with; empty for none.
        full: value of the full model.
        nothing: value with no edge on.
    """

    name: str
    kind: str
    ids: tuple[int, ...]
    against: tuple[int, ...]
    full: float
    nothing: float

    @classmethod
    def of(cls, scale: Scale) -> MeasuredTarget:
        """Describe a target with its values."""
        score = scale.score
        return cls(score.name, score.kind, score.ids, score.against, scale.full, scale.nothing)

    @property
    def spread(self) -> float:
        """Distance between the two values."""
        return abs(self.full - self.nothing)


@dataclass(frozen=True, eq=False)
class MeasuredCounterfactual(Record):
    """The counterfactual of a measurement: the input whose vectors removed edges carry.

    Args:
        ids: token ids, up to the measured position.
        tokens: one string per id.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, model: Model, ids: tuple[int, ...] | None) -> MeasuredCounterfactual | None:
        """Describe a counterfactual. Return None where there is none."""
        return None if ids is None else cls(ids, tuple(model.pieces(ids)))

    @property
    def shown(self) -> str:
        """The text, or its end if it is long."""
        text = "".join(self.tokens)
        return text if len(text) <= 60 else f"...{text[-60:]}"


@dataclass(frozen=True, eq=False)
class Provenance(Record):
    """How a measurement was made: versions, platform, time and settings.

    A field that an older version did not write is None, and has no key. As a mapping, the record
    has settings and other fields at the same level, as in `provenance["seed"]`.

    Args:
        created: time in UTC, ISO 8601.
        check: whether the identities of the model were checked, and whether they hold
            (`check.verdict`).
        edges: "stored", or "tiled" for long inputs.
        settings: `MeasureSettings` as plain data.
    """

    densitometer: str | None = None
    torch: str | None = None
    transformers: str | None = None
    python: str | None = None
    platform: str | None = None
    created: str | None = None
    check: Mapping[str, Any] | None = None
    edges: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """Return the record as plain data, for JSON."""
        written = {name: value for name, value in super().to_document().items() if value is not None}
        return written | dict(written.pop("settings"))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the record that `to_document` wrote."""
        about = {entry.name for entry in fields(cls)} - {"settings"}
        settings = {key: value for key, value in document.items() if key not in about}
        return cls(**{key: value for key, value in document.items() if key in about}, settings=settings)

    @classmethod
    def now(cls, settings: Mapping[str, Any], **more: Any) -> Provenance:
        """Return the provenance of a result that is made now with the installed versions.

        Args:
            settings: `MeasureSettings` as plain data.
            more: further fields.
        """
        return cls(
            densitometer=version("densitometer"),
            torch=version("torch"),
            transformers=version("transformers"),
            python=platform.python_version(),
            platform=platform.platform(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            settings=settings,
            **more,
        )
