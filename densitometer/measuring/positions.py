"""Density along a text: how much of the computation each token's prediction needs.

In a causal model, edges among the first tokens do not depend on later tokens. From one position to
the next only the output node moves. So one recording of the text serves all positions:

    1. Record the model on the whole text, and compute the importance of every edge. Importances
       that depend only on the tokens up to an edge's target (l1, l2, ...) are computed once. Those
       that depend on the prediction (fisher, ...) are computed once for each position.
    2. For each position, cut the graph of the tokens up to it out of the recording, and its traces
       out of that graph.
    3. Run the traces of many positions together, and read each one's logits at its own position.
       Narrow `size_at` of all of these positions together, round by round.

If a text has more edges than are stored, it is measured tile by tile, one position at a time.

Each row has the results of `measure(..., position=p)`. Two conditions for this are checked in
each run: the model's own predictions do not depend on later tokens, and the full trace of every
position gives the model's own prediction.

`measure_generation` does the same while the model writes. It writes a few tokens ahead, records
them together, and measures one position after the other. So recording the text and computing
importances again costs only a fraction of a run for each token.

Nearly all of a position's time is taken by running its traces. Results cannot be reused at the next
position:

    - A size is a share of all edges that can reach the position, so its trace has edges at nearly
      all tokens before it. The work per position grows with the number of these tokens.
    - A row (a token in a layer) depends on which edges before it are on. With recomputed attention
      it also depends on the keys of all earlier tokens. A later position's trace of the same size
      ends at another importance, so some of these edges differ. Of the rows of nine neighbouring
      positions 82 % differ, and without full traces 89 % (SmolLM2, `l1`; dev/LOG.md, 2026-12-01).
      Full traces have the same rows at all positions. Each is run nevertheless, to show that the
      graph of its position gives the model's prediction.

Axes: T tokens, F flat edge axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy
import polars
import torch
from torch import Tensor

from .._util.metrics import entropy, surprisal, total_variation
from .._util.progress import progress, silent
from ..errors import IdentityError, InputError, ModelError
from ..graph.components import ComponentGraph
from ..graph.edge_graph import TraceGranularity
from ..graph.forward_pass import ForwardPass, run_forward
from ..graph.graph import Graph
from ..graph.importance.registry import compute_importance, is_local
from ..graph.masked_runs import masked_logits
from ..graph.targets import Scale, TargetScore
from ..graph.tiled.tiles import stored_tokens
from ..models.conditions import tensors_on_cpu
from ..models.loading import AnyModel, Model, Text
from ..models.placement import memory_watched
from ..models.tolerances import tolerance_tv
from ..models.writing import written
from .bisection import counts_inside, goal_of, size_of
from .density import DEFAULT_SIZES, Density
from .measurement import measured
from .records import MeasuredModel, Provenance
from .settings import Ablation, Attention, MeasureSettings

# Bytes of the masks of the positions that are run together.
MASK_BYTES = 2**28
# Settings of curves. Positions have no curves.
CURVE_ONLY = ("baselines", "by")
# Tokens that are written before they are recorded and measured together.
AHEAD = 8


@memory_watched("measuring the positions of a text")
@tensors_on_cpu()
def measure_positions(
    model: AnyModel,
    text_or_ids: Text,
    *,
    importance: str | Sequence[str] = "l1",
    sizes: Sequence[float] | None = None,
    eps: float = 0.1,
    seed: int = 0,
    attention: Attention = "recomputed",
    ablation: Ablation = "zero",
    granularity: TraceGranularity = "block",
    target: Any = None,
    counterfactual: Any = None,
) -> polars.DataFrame:
    """Measure the density of the prediction after every token of a text.

    Args:
        model: a model, or what `load_model` takes: a name, a folder, a module.
        text_or_ids: a text, or token ids.
        importance: an importance, or several.
        sizes, eps, seed, attention, ablation, granularity: as for `measure`.
        target, counterfactual: as for `measure`. The target is the same at every position. The
            counterfactual has the same number of tokens as the text.

    Returns:
        A row per importance and token. Columns: position; token, the one at the position, after
        which the prediction is; token_id; importance; auc_log; auc_linear; size_at, at eps (null
        where TV never holds); entropy of the model's prediction (nats); surprisal of the token that
        comes next (nats; null at the last token); n_edges. With a target also target, its value in
        the model's own prediction, and faithful_at, the `size_at` by its faithfulness.

    Raises:
        InputError: a text, importance, size or other setting cannot be used.
        ModelError: the model cannot be measured on this text, or its predictions depend on later
            tokens.
        IdentityError: the full trace of a position is not the model.

    Examples:
        >>> table = dm.measure_positions(model, "The captain looked at", sizes=[0.2, 0.5, 1.0])
        >>> table["token"].to_list(), table.columns[-1]
        (['The', ' captain', ' looked', ' at'], 'n_edges')
    """
    settings = MeasureSettings(
        importance, sizes, eps=eps, seed=seed, attention=attention, ablation=ablation, granularity=granularity,
        target=target, counterfactual=counterfactual,
    )  # fmt: skip
    model = settings.model_for(model)
    recording = record(model, model.encode(text_or_ids), settings)
    n_tokens = len(recording.ids)
    with progress("measuring positions", len(settings.importance) * n_tokens) as advance:
        tables = [
            rows for name in settings.importance for rows in recording.measured(name, 0, n_tokens, advance)
        ]
    return polars.concat(tables)


def measure_generation(
    model: AnyModel,
    prompt: Text,
    *,
    n_tokens: int,
    temperature: float = 0.0,
    importance: str | Sequence[str] = "l1",
    sizes: Sequence[float] | None = None,
    eps: float = 0.1,
    seed: int = 0,
    attention: Attention = "recomputed",
    ablation: Ablation = "zero",
    granularity: TraceGranularity = "block",
    target: Any = None,
) -> Iterator[polars.DataFrame]:
    """Measure the density of the prediction after every token while the model continues a text.

    The rows are those of `measure_positions` on the finished text. An end-of-sequence token ends
    it.

    Args:
        prompt: a text, chat messages or token ids.
        n_tokens: the most tokens to write.
        temperature: 0 takes the most probable token each time (greedy). Above 0, tokens are drawn
            with the seed.
        model, importance, sizes, eps, seed, attention, ablation, granularity, target: as for
            `measure_positions`.

    Yields:
        Tables with a row per importance and token, and the columns of `measure_positions`: first of
        the prompt's tokens, then of each token written, as soon as it is measured.

    Raises:
        InputError: a prompt, number, temperature, importance or other setting cannot be used, or
            the context holds fewer tokens.
        ModelError, IdentityError: as for `measure_positions`.

    Examples:
        >>> parts = list(dm.measure_generation(model, "The president of the", n_tokens=2, sizes=[0.5, 1.0]))
        >>> [part["token"].to_list() for part in parts]
        [['The', ' pres', 'ident', ' of', ' the'], [' US'], [' High']]
    """
    settings = MeasureSettings(
        importance, sizes, eps=eps, seed=seed, attention=attention, ablation=ablation, granularity=granularity,
        target=target,
    )  # fmt: skip
    model = settings.model_for(model)
    ids = model.encode(prompt)
    _check_writing(model, len(ids), n_tokens, temperature)
    return _generated(model, ids, n_tokens, temperature, settings)


def _generated(
    model: Model, ids: list[int], n_tokens: int, temperature: float, settings: MeasureSettings
) -> Iterator[polars.DataFrame]:
    """Let the model write tokens, and measure the density at each. Arguments were checked before.

    Yields:
        Tables as for `measure_generation`.
    """
    tokens, n_prompt = islice(written(model, ids, temperature, settings.seed), n_tokens), len(ids)
    # the next tokens to measure: the whole prompt, then one at a time
    start, stop = 0, n_prompt
    while start < len(ids):
        ahead = list(islice(tokens, AHEAD))
        ids = ids + ahead
        ended = len(ahead) < AHEAD or len(ids) == n_prompt + n_tokens
        recording = record(model, ids, settings)
        # The surprisal at the last token needs the next one, so that token waits for more.
        while start < len(ids) - (not ended):
            with progress("measuring the prompt", len(settings.importance) * stop * (start == 0)) as advance:
                parts = [recording.measured(name, start, stop, advance) for name in settings.importance]
                rows = polars.concat(frame for part in parts for frame in part)
            yield rows
            start, stop = stop, stop + 1


def _check_writing(model: Model, n_prompt: int, n_tokens: int, temperature: float) -> None:
    """Refuse options of writing that cannot be used.

    Raises:
        InputError: the number of tokens or the temperature is out of range, or the context of the
            model holds fewer tokens.
    """
    if isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or n_tokens < 1:
        raise InputError(f"the number of tokens to write is an integer of at least 1; got {n_tokens!r}")
    if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
        raise InputError(f"temperature is a number of at least 0, 0 for greedy; got {temperature!r}")
    limit = model.context_length
    if limit is not None and n_prompt + n_tokens > limit:
        raise InputError(
            f"{n_prompt} tokens and {n_tokens} more are too many for the context of {model.name}, {limit}; write at most "
            f"{max(0, limit - n_prompt)}"
        )


def positions_document(
    model: Model, table: polars.DataFrame, settings: MeasureSettings, **written: Any
) -> dict[str, Any]:
    """Return densities along a text as a JSON document (schema densitometer.positions/1).

    It holds the model, the input, the table with a list for each column, and the provenance.

    Args:
        table: from `measure_positions`, or the concatenated tables of `measure_generation`.
        settings: the settings of the measurement. Those of curves are left out of the provenance.
        written: further entries of the provenance, for text that the model wrote: the most tokens
            to write, and the temperature.
    """
    return {
        "schema": "densitometer.positions/1",
        "model": MeasuredModel.of(model).to_document(),
        "input": table.filter(polars.col("importance") == table["importance"][0])
        .select(ids="token_id", tokens="token")
        .to_dict(as_series=False),
        "positions": table.to_dict(as_series=False),
        "provenance": Provenance.now(
            {name: value for name, value in settings.to_document().items() if name not in CURVE_ONLY}
            | written
        ).to_document(),
    }


TYPES: dict[str, Any] = {
    "position": polars.Int64, "token": polars.String, "token_id": polars.Int64, "importance": polars.String,
    "auc_log": polars.Float64, "auc_linear": polars.Float64, "size_at": polars.Float64, "entropy": polars.Float64,
    "surprisal": polars.Float64, "n_edges": polars.Int64,
}  # fmt: skip
# Further columns where a target was measured.
TARGET_TYPES: dict[str, Any] = {"target": polars.Float64, "faithful_at": polars.Float64}


@dataclass(frozen=True)
class Recording:
    """Recorded run of the model on a text, or on as many first tokens as can be stored.

    Args:
        ids: token ids of the whole text.
        own: (T, vocabulary) float32, the model's own logits after each token.
        importances: by name, the importances (F,) float32 that do not depend on the prediction.
            They are computed when they are first needed.
        targets: for each position its target, if positions have different ones.
    """

    forward: ForwardPass
    own: Tensor
    ids: tuple[int, ...]
    tokens: Sequence[str]
    settings: MeasureSettings
    importances: dict[str, numpy.ndarray]
    targets: Mapping[int, TargetScore] = field(default_factory=dict)

    @property
    def sizes(self) -> Sequence[float]:
        return self.settings.sizes or DEFAULT_SIZES

    def measured(
        self, name: str, start: int, stop: int, advance: Callable[[int], None] = lambda done: None
    ) -> Iterator[polars.DataFrame]:
        """Measure the positions from `start` to before `stop`, a group at a time.

        The masks of a group fit the memory budget. Positions beyond the recording are measured one
        by one.

        Args:
            name: the importance.
            advance: called with the number of positions done since the last call.

        Yields:
            The rows of each group.
        """
        recorded = min(stop, self.forward.n_tokens)
        together = max(1, MASK_BYTES // (len(self.sizes) * self.forward.space.prefix(recorded).size))
        for first in range(start, recorded, together):
            group = [self.position(name, place) for place in range(first, min(first + together, recorded))]
            self._evaluate(group)
            rows = [p.row(self.sizes, self.settings.eps, self.own, self.ids) for p in group]
            yield polars.DataFrame(rows, schema=TYPES | (TARGET_TYPES if self.forward.target else {}))
            advance(len(group))
        for place in range(max(start, recorded), stop):
            yield polars.DataFrame([self._alone(name, place)], schema=TYPES)
            advance(1)

    def _alone(self, name: str, place: int) -> dict[str, Any]:
        """Measure a position by itself, and return its row.

        Raises:
            InputError: a target is measured, which needs stored edges along a text.
        """
        if self.forward.target is not None:
            self.position(name, place)
        settings = replace(self.settings, importance=name, baselines=())
        with silent():
            m = measured(self.forward.model, self.ids, settings, place)
        surprisal = None if m.next_token is None else m.next_token.surprisal
        about = (place, self.tokens[place], self.ids[place], name)
        return _row(about, m.density[name], settings.eps, m.entropy, surprisal, m.graph.n_edges)

    def position(self, name: str, place: int) -> Position:
        """Build the graph of a position, by an importance.

        Raises:
            InputError: the position is beyond the recorded tokens of a long text.
        """
        if place >= self.forward.n_tokens:
            raise InputError(
                f"position {place} has too many possible edges to store, and this needs them stored; measure the first "
                f"{self.forward.n_tokens} tokens, or the position by itself"
            )
        up_to = self.forward.prefix(place + 1, self.own[place].to(self.forward.logits.device))
        if self.targets:
            up_to = replace(up_to, target=self.targets[place])
        # cut: the importances on the flat axis of the tokens up to the position
        if is_local(name):
            if name not in self.importances:
                self.importances[name] = compute_importance(self.forward, name, self.settings.seed)
            cut = numpy.empty(up_to.space.size, dtype=numpy.float32)
            self.forward.space.copy_to(up_to.space, self.importances[name], cut)
        else:
            cut = compute_importance(up_to, name, self.settings.seed)
        model, tokens = self.forward.model, tuple(self.tokens)
        graph = Graph(model, up_to, self.ids, tokens, place, name, cut, self.settings.seed)
        return Position(self.settings.joined(graph), {}, {})

    def _evaluate(self, group: Sequence[Position]) -> None:
        """Run the traces of the sizes, then those that place `size_at`, and store their TV.

        All positions are evaluated in each round. A round runs, for each position, the traces that
        narrow its bracket.
        """
        sizes, target = self.sizes, self.forward.target
        goals = [("tv", goal_of("tv", self.settings.eps))]
        if target is not None:
            goals.append(("kept", goal_of("faithfulness", self.settings.eps)))
        # The first round: the sizes, and the full trace, which must be the model. With a target,
        # also no edge at all, to which faithfulness is relative.
        rows = [
            (position, count)
            for position in group
            for count in sorted(
                {
                    *(position.graph.n_edges_at(size) for size in sizes),
                    position.graph.n_edges,
                    *([] if target is None else [0]),
                }
            )
        ]
        asked = {(position.place, position.graph.n_edges_at(size)) for position in group for size in sizes}
        scales: dict[int, Scale] = {}
        while rows:
            logits = self.run(rows)
            tvs = self._total_variations([position.place for position, _ in rows], logits)
            if target is not None:
                scales = scales or self._scales(target, rows, logits)
                values = target.value(logits)
            for i, ((position, count), tv) in enumerate(zip(rows, tvs, strict=True)):
                if count == position.graph.n_edges:
                    refuse_another_model(position, tv)
                if count == 0 and (position.place, 0) not in asked:
                    continue
                if count < position.graph.n_edges or 1.0 in sizes:
                    position.tv[count] = tv
                    if position.place in scales:
                        position.kept[count] = float(scales[position.place].faithfulness(values[i]))
            narrowed = [
                (p, count)
                for p in group
                for name, goal in goals
                for count in counts_inside(getattr(p, name), goal)
            ]
            # a set, because two goals may ask for the same trace
            rows = list({(p.place, count): (p, count) for p, count in narrowed}.values())

    def _scales(
        self, target: TargetScore, rows: Sequence[tuple[Position, int]], logits: Tensor
    ) -> dict[int, Scale]:
        """Scale of the target at each position. None at positions where no edge changes the target.

        With a counterfactual, these are the positions before the first token that differs.
        """
        scales = {}
        for (position, count), row in zip(rows, logits, strict=True):
            if count == 0:
                with suppress(InputError):
                    scales[position.place] = Scale.of(target, self.own[position.place], row)
        return scales

    def _total_variations(self, places: Sequence[int], logits: Tensor) -> list[float]:
        """Return the total variation of each trace from the model's own prediction at its place.

        Args:
            places: the position of each trace.
            logits: (K, vocabulary).
        """
        at, values = torch.tensor(places), torch.empty(len(places), dtype=torch.float64)
        for place in set(places):
            values[at == place] = total_variation(self.own[place], logits[at == place])
        return values.tolist()

    def run(self, rows: Sequence[tuple[Position, int]]) -> Tensor:
        """Run best-first traces together, and return the logits of each at its position.

        The input is the tokens up to the last of these positions.

        Args:
            rows: position and number of edges of each trace.
        """
        places = [position.place for position, _ in rows]
        last = max(rows, key=lambda row: row[0].place)[0]
        forward = last.graph.forward
        masks = [position.mask(count, forward) for position, count in rows]
        logits: Tensor = masked_logits(
            forward, masks, self.settings.frozen, self.settings.means,
            positions=None if set(places) == {last.place} else places, kept=self.settings.kept,
        )  # fmt: skip
        return logits


def record(
    model: Model,
    ids: Sequence[int],
    settings: MeasureSettings,
    targets: Mapping[int, TargetScore] | None = None,
) -> Recording:
    """Record the model on a text.

    Args:
        targets: for each position its target; None for that of the settings.

    Raises:
        ModelError: the model's predictions depend on later tokens.
    """
    placed = settings.placed(model, ids, len(ids) - 1)
    stored = ids[: stored_tokens(model)]
    forward = placed.recorded(run_forward(model, stored, granularity=settings.mlp_edges)[0])
    own = model.adapter.logits_of_all(stored).cpu()
    _refuse_later_tokens(model, stored, own)
    return Recording(forward, own, tuple(ids), model.pieces(ids), placed, {}, targets or {})


@dataclass(frozen=True)
class Position:
    """Graph of one position, with the TV and the faithfulness of its traces by number of edges."""

    graph: Graph | ComponentGraph
    tv: dict[int, float]
    kept: dict[int, float]

    @property
    def place(self) -> int:
        return self.graph.position

    def mask(self, count: int, forward: ForwardPass) -> numpy.ndarray:
        """Return the best-first trace with some number of edges as a mask of a longer input.

        Args:
            count: the number of edges.
            forward: pass of the longer input, whose first tokens are those up to this position.

        Returns:
            (F,) bool, on the flat axis of the longer input.
        """
        flat = numpy.zeros(forward.space.size, dtype=bool)
        self.graph.space.copy_to(forward.space, self.graph.trace(n_edges=count).flat, flat)
        return flat

    def row(self, sizes: Sequence[float], eps: float, own: Tensor, ids: Sequence[int]) -> dict[str, Any]:
        """Return the row of the table for this position, once its traces were run.

        Args:
            own: (T, vocabulary), the model's own logits after each token.
            ids: token ids of the whole text.
        """
        counts = [self.graph.n_edges_at(size) for size in sizes]
        further = sorted(self.tv.keys() - set(counts))
        density = Density(
            tuple(sizes), tuple(self.tv[n] for n in counts),
            tuple(size_of(n, self.graph.n_edges) for n in further), tuple(self.tv[n] for n in further),
            faithfulness=tuple(self.kept[n] for n in counts if self.kept),
            refined_faithfulness=tuple(self.kept[n] for n in further if self.kept),
        )  # fmt: skip
        target = self.graph.forward.target
        measured: dict[str, Any] = {}
        if target is not None:
            measured["target"] = float(target.value(own[self.place]))
            measured["faithful_at"] = density.size_at(eps, by="faithfulness") if self.kept else None
        logits, following = own[self.place], ids[self.place + 1 : self.place + 2]
        row = _row(
            (self.place, self.graph.tokens[self.place], ids[self.place], self.graph.importance_name),
            density, eps, float(entropy(logits, logits[None])),
            float(surprisal(logits, following[0])) if following else None, self.graph.n_edges,
        )  # fmt: skip
        return row | measured


def _row(
    about: tuple[int, str, int, str],
    density: Density,
    eps: float,
    entropy: float,
    surprisal: float | None,
    n_edges: int,
) -> dict[str, Any]:
    """Row of the table.

    Args:
        about: position, token, its id, and the importance.
    """
    values = (
        *about, density.auc_log, density.auc_linear, density.size_at(eps), entropy, surprisal, n_edges,
    )  # fmt: skip
    return dict(zip(TYPES, values, strict=True))


def refuse_another_model(position: Position, tv: float) -> None:
    """Refuse a position whose full trace does not give the model's prediction.

    Args:
        tv: total variation between the two predictions.

    Raises:
        IdentityError: it is more than the tolerance of the dtype.
    """
    model = position.graph.model
    tolerance = tolerance_tv(model.adapter.dtype)
    if not tv <= tolerance:
        raise IdentityError(
            f"the full trace of {model.name} at position {position.place} is not the model: total variation {tv:.2g}, "
            f"expected at most {tolerance:g}. Nothing that is measured on it can be trusted; run `densitometer doctor` on it"
        )


def _refuse_later_tokens(model: Model, ids: Sequence[int], own: Tensor) -> None:
    """Refuse a model whose predictions change when later tokens are added.

    Such a model is not causal, or its position embeddings depend on the length of the text. Three
    positions are tried.

    Args:
        own: (T, vocabulary), logits after each token of the whole text.

    Raises:
        ModelError: a prediction changes.
    """
    for place in sorted({min(1, len(ids) - 1), len(ids) // 4, len(ids) // 2}):
        alone = model.adapter.logits(ids[: place + 1]).cpu()
        gap = float(total_variation(alone, own[place][None]))
        if not gap <= tolerance_tv(model.adapter.dtype):
            raise ModelError(
                f"the prediction of {model.name} at position {place} changes when later tokens are added (total variation "
                f"{gap:.2g}), so positions cannot share one run; measure them one by one: measure(model, ids, position=...)"
            )
