"""Density of an answer of several tokens, token by token (teacher forcing).

The prompt and the whole answer are given. For each token of the answer, the prediction after the
prompt and the answer's earlier tokens is measured, even if the model would write other tokens:

    1. Record the model once on prompt and answer (`positions.py`).
    2. For each token of the answer, build the graph of the prediction before it. Importances from
       gradients follow the logarithm of that token's probability.
    3. At each size s, run for each token the trace of size s of its graph.
    4. The answer's TV is the mean over its tokens. Its value is the sum of the logarithms of their
       probabilities, the log probability of the answer. Faithfulness follows from that value, from
       the full model's, and from the one with no edge on.

So a size is a share of the edges of each prediction, and each token has its own trace. Whether one
set of edges would suffice for all tokens is not measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import polars
import torch
from torch import Tensor

from .._util.digits import percent, significant
from .._util.metrics import total_variation
from .._util.notebook_table import Described
from .._util.progress import progress
from ..errors import DensitometerWarning, InputError
from ..graph.edge_graph import TraceGranularity
from ..graph.targets import Scale, Target, TargetScore, space_lacking
from ..models.conditions import tensors_on_cpu
from ..models.loading import AnyModel, Model, Text
from ..models.placement import memory_watched
from ..models.tokenization import ids_of, is_chat
from .bisection import goal_of, narrow
from .density import DEFAULT_SIZES, Density
from .positions import MASK_BYTES, Position, Recording, record, refuse_another_model
from .records import shown_name
from .settings import Ablation, Attention, MeasureSettings


@dataclass(frozen=True, eq=False)
class Answer(Described):
    """Density of an answer, by importance.

    Args:
        model: name of the model.
        tokens: a row per token of the answer: position (of the prediction), token, id,
            log_probability (nats), and nothing, the same with no edge on.
        curve: a row per importance and size: importance, size, tv (mean over the tokens),
            log_probability (of the answer, nats), faithfulness.
        density: one `Density` per importance, of mean TV and faithfulness.

    Examples:
        >>> found = dm.measure_answer(model, "He was born in", answer=" New York", sizes=[0.2, 0.5, 1.0])
        >>> found.tokens["token"].to_list(), found.curve.columns
        ([' New', ' York'], ['importance', 'size', 'tv', 'log_probability', 'faithfulness'])
    """

    model: str
    tokens: polars.DataFrame
    curve: polars.DataFrame
    density: dict[str, Density]

    @property
    def log_probability(self) -> float:
        """Log probability of the answer under the full model, nats."""
        return float(self.tokens["log_probability"].sum())

    def summary(self, eps: float = 0.1) -> str:
        """One line to quote: how many edges the answer's tokens need."""
        sizes = ", ".join(
            f"{percent(d.size_at(eps), 2)} by TV and {percent(d.size_at(eps, by='faithfulness'), 2)} by faithfulness ({name})"
            for name, d in self.density.items()
        )
        text = "".join(self.tokens["token"])
        return (
            f"{text!r}: within {eps:g} from {sizes} ({shown_name(self.model)}, {len(self.tokens)} tokens, log probability "
            f"{significant(self.log_probability, 3)})"
        )

    def _facts(self) -> dict[str, str]:
        return {"answer": "".join(self.tokens["token"]), "summary": self.summary()}

    def __repr__(self) -> str:
        return f"Answer({self.summary()})"


@memory_watched("measuring an answer")
@tensors_on_cpu()
def measure_answer(
    model: AnyModel,
    text_or_ids: Text,
    answer: str | Sequence[int] | None = None,
    *,
    positions: Literal["answer"] | range = "answer",
    importance: str | Sequence[str] = ("l1", "fisher"),
    sizes: Sequence[float] | None = None,
    eps: float = 0.1,
    seed: int = 0,
    attention: Attention = "recomputed",
    ablation: Ablation = "zero",
    granularity: TraceGranularity = "block",
) -> Answer:
    """Measure how much of the computation an answer of several tokens needs.

    Args:
        model: a model, or what `load_model` takes.
        text_or_ids: the prompt; or a chat that ends with the assistant's answer; or, with a range
            of positions, the whole text.
        answer: the answer to a prompt, as a text or token ids. None for a chat or a range.
        positions: "answer", or a range of positions whose next tokens are the answer.
        importance, sizes, eps, seed, attention, ablation, granularity: as for `measure`.

    Raises:
        InputError: the answer is missing, or a range is not within the text.
        ModelError, IdentityError: as for `measure_positions`.

    Examples:
        >>> found = dm.measure_answer(model, "He was born in", answer=" New York", sizes=[0.2, 0.5, 1.0])
        >>> round(found.log_probability, 2), round(found.density["fisher"].size_at(0.1, by="faithfulness"), 2)
        (-6.37, 0.2)
    """
    settings = MeasureSettings(
        importance,
        sizes,
        (),
        eps=eps,
        seed=seed,
        attention=attention,
        ablation=ablation,
        granularity=granularity,
    )
    model = settings.model_for(model)
    ids, places = _with_answer(model, text_or_ids, answer, positions)
    targets = {place: _log_probability(model, ids[place + 1]) for place in places}
    # what comes after the last prediction plays no part
    recording = record(model, ids[: max(places) + 1], settings, targets)
    if isinstance(answer, str):
        first = Target.of(model.pieces([ids[places[0] + 1]])[0])
        if first is not None and (warning := space_lacking(model, first, recording.own[places[0]])):
            warnings.warn(warning, DensitometerWarning, stacklevel=4)
    tables, densities = [], {}
    with progress("measuring an answer", len(settings.importance)) as advance:
        for name in settings.importance:
            one = _OfImportance(recording, [recording.position(name, place) for place in places])
            curve, densities[name] = one.measured(settings.sizes or DEFAULT_SIZES, eps)
            tables.append(curve.insert_column(0, polars.lit(name).alias("importance")))
            advance(1)
    ends = one.ends
    tokens = polars.DataFrame(
        {
            "position": list(places),
            "token": model.pieces([ids[place + 1] for place in places]),
            "id": [ids[place + 1] for place in places],
            "log_probability": [end.full for end in ends],
            "nothing": [end.nothing for end in ends],
        }
    )
    return Answer(model.name, tokens, polars.concat(tables), densities)


def _with_answer(
    model: Model, text_or_ids: Text, answer: str | Sequence[int] | None, positions: Any
) -> tuple[list[int], range]:
    """Return the token ids of prompt and answer, and the positions of its predictions.

    Raises:
        InputError: the answer is missing, or the range is not within the text.
    """
    if positions != "answer":
        if not isinstance(positions, range) or positions.step != 1 or answer is not None:
            raise InputError(
                f"positions is 'answer', or a range of positions of the whole text, without an answer beside it; got {positions!r}"
            )
        ids = model.encode(text_or_ids)
        if not positions or positions[0] < 0 or positions[-1] >= len(ids) - 1:
            raise InputError(
                f"{positions} is not within the text: it has {len(ids)} tokens, and the last position that has a next token is "
                f"{len(ids) - 2}"
            )
        return ids, positions
    if answer is None:
        messages: Any = text_or_ids
        if not is_chat(messages) or messages[-1].get("role") != "assistant" or len(messages) < 2:
            raise InputError(
                "the answer is missing: give answer=..., a chat that ends with the assistant's message, or a range of positions"
            )
        prompt, ids = model.encode(messages[:-1]), model.encode(messages)
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            raise InputError(
                "the chat template does not write the answer behind the opening of the assistant's turn, so its tokens are not "
                "known; give the rendered prompt and answer=..."
            )
    else:
        prompt = model.encode(text_or_ids)
        if isinstance(answer, str):
            if model.tokenizer is None:
                raise InputError(f"{model.name} was loaded without a tokenizer; give the answer as token ids")
            answer = ids_of(model.tokenizer, answer, add_special_tokens=False)
        ids = model.encode([*prompt, *answer])
        if len(ids) == len(prompt):
            raise InputError("the answer is empty; give at least one token")
    return ids, range(len(prompt) - 1, len(ids) - 1)


def _log_probability(model: Model, token: int) -> TargetScore:
    """Target whose value is the logarithm of a token's probability."""
    name = f"log probability of {model.pieces([token])[0]!r}"
    return TargetScore(name, (token,), (), partial(_log_softmax, token=token))


def _log_softmax(logits: Tensor, token: int) -> Tensor:
    return logits.log_softmax(-1)[..., token]


class _OfImportance:
    """The positions of an answer, with traces by one importance.

    Args:
        recording: the recorded run.
        places: its positions.
    """

    def __init__(self, recording: Recording, places: list[Position]) -> None:
        self.recording, self.places = recording, places
        self.n_edges = max(place.graph.n_edges for place in places)
        nothing = self._run([(place, 0) for place in places])
        self.ends = [
            Scale.of(_target(place), recording.own[place.place], row)
            for place, row in zip(places, nothing, strict=True)
        ]
        for place, row in zip(
            places, self._run([(place, place.graph.n_edges) for place in places]), strict=True
        ):
            refuse_another_model(place, float(total_variation(recording.own[place.place], row[None])))

    def measured(self, sizes: Sequence[float], eps: float) -> tuple[polars.DataFrame, Density]:
        """Run the answer's traces at some sizes, and those that place `size_at`.

        Returns:
            Curve: size, tv, log_probability, faithfulness.
            The density.
        """
        # by number of edges of the largest graph, mean TV and log probability
        ran: dict[int, tuple[float, float]] = {}

        def evaluate(counts: Sequence[int], read: int) -> list[float]:
            new = [count for count in counts if count not in ran]
            found = self._at([count / self.n_edges for count in new])
            ran.update(zip(new, found, strict=True))
            return [ran[count][read] if read == 0 else self._faithfulness(ran[count][1]) for count in counts]

        at_sizes = self._at(sizes)
        for read, metric in enumerate(("tv", "faithfulness")):
            known: dict[int, Any] = {
                max(1, round(size * self.n_edges)): (tv if read == 0 else self._faithfulness(value))
                for size, (tv, value) in zip(sizes, at_sizes, strict=True)
            }
            narrow(known, goal_of(metric, eps), partial(evaluate, read=read))
        further = sorted(count for count in ran if count / self.n_edges not in sizes)
        curve = polars.DataFrame(
            {
                "size": list(sizes),
                "tv": [tv for tv, _ in at_sizes],
                "log_probability": [value for _, value in at_sizes],
                "faithfulness": [self._faithfulness(value) for _, value in at_sizes],
            }
        )
        density = Density(
            tuple(sizes), tuple(curve["tv"]),
            tuple(count / self.n_edges for count in further), tuple(ran[count][0] for count in further),
            faithfulness=tuple(curve["faithfulness"]),
            refined_faithfulness=tuple(self._faithfulness(ran[count][1]) for count in further),
        )  # fmt: skip
        return curve, density

    def _faithfulness(self, value: float) -> float:
        """Faithfulness of an answer by its log probability."""
        full, nothing = (sum(getattr(end, name) for end in self.ends) for name in ("full", "nothing"))
        return (value - nothing) / (full - nothing)

    def _at(self, sizes: Sequence[float]) -> list[tuple[float, float]]:
        """Mean TV and log probability of the answer at some sizes."""
        rows = [(place, place.graph.n_edges_at(size)) for size in sizes for place in self.places]
        if not rows:
            return []
        logits = self._run(rows).view(len(sizes), len(self.places), -1)
        found = []
        for of_size in logits:
            own = self.recording.own[[place.place for place in self.places]]
            tv = total_variation(own, of_size).mean()
            pairs = zip(self.places, of_size, strict=True)
            found.append((float(tv), sum(float(_target(place).value(row)) for place, row in pairs)))
        return found

    def _run(self, rows: Sequence[tuple[Position, int]]) -> Tensor:
        """Run traces, as many at a time as fit the memory budget for masks."""
        step = max(1, MASK_BYTES // self.recording.forward.space.size)
        return torch.cat([self.recording.run(rows[i : i + step]) for i in range(0, len(rows), step)])


def _target(place: Position) -> TargetScore:
    target = place.graph.forward.target
    assert target is not None
    return target
