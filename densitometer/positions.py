"""Density along a text: how much of the computation each token's prediction needs, from one recording.

In a causal model the edges among the first tokens do not depend on later ones; only the root moves. So:

    1. Record the model on the whole text; score every edge. Scores that depend only on the tokens up to an edge's target
       (l1, l2, ...) are computed once; those that look at the prediction (fisher, ...) once for each position.
    2. For each position cut the graph of the tokens up to it out of the recording, and its traces out of that graph.
    3. Run the traces of many positions together, each read at its own position, and place `size_at` for all of them in
       common rounds.

Each row is what `measure(..., position=p)` finds for that position. Two things are held to that while it runs: the model's
own predictions must not depend on later tokens, and the full trace of every position must be the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import polars
from torch import Tensor

from .ablation import masked_logits
from .density import Density, check_eps
from .errors import ArgumentTypeError, IdentityError, ModelError
from .forward import ForwardPass, run_forward
from .graph import Graph
from .importance import is_local, score_edges
from .means import ReferenceMeans
from .measurement import checked_importances, checked_sizes, counts_inside, goal_of, size_of
from .metrics import entropy, surprisal, total_variation
from .models.adapter import TOLERANCE_TV
from .models.loading import Model
from .progress import progress
from .reconstruction import check_semantics

MASK_BYTES = 2**28  # of the masks of the positions that are run together


def measure_positions(
    model: Model,
    text_or_ids: str | Sequence[int],
    importance: str | Sequence[str] = "l1",
    sizes: Sequence[float] | None = None,
    *,
    seed: int = 0,
    attention: Literal["recomputed", "frozen"] = "recomputed",
    ablation: Literal["zero", "mean"] = "zero",
    means: ReferenceMeans | None = None,
    eps: float = 0.1,
) -> polars.DataFrame:
    """The density of every token's next-token prediction.

    Args:
        model: from `load_model`.
        text_or_ids: a text, or token ids.
        importance: a score, or several.
        sizes, seed, attention, ablation, means, eps: as for `measure`.

    Returns:
        A row per score and token: position, token (the one read there; the prediction is of the next), importance, auc_log,
        auc_linear, size_at (of eps; null where it never holds), entropy of the model's prediction (nats), surprisal of the
        token that comes next (nats; null at the last), n_edges.

    Raises:
        InputError: an unusable text, importance or size.
        ModelError: the model cannot be measured on this text, or its predictions depend on later tokens; IdentityError
            where a full trace is not the model.
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"expected a model from densitometer.load_model, got {type(model).__name__}")
    names = checked_importances(importance)
    wanted = checked_sizes(sizes)
    check_eps(eps)
    check_semantics(model, attention, ablation, means)
    ids = model.encode(text_or_ids)
    forward, last = run_forward(model, ids)
    own = model.adapter.logits_of_all(ids).cpu()
    _refuse_later_tokens(model, ids, own)
    tokens = model.pieces(ids)

    def run(rows: Sequence[tuple[_Position, int]]) -> list[float]:
        """TV of the best-first traces of these numbers of edges, each at its position."""
        masks = [position.mask(count, forward) for position, count in rows]
        places = [position.place for position, _ in rows]
        logits = masked_logits(
            forward, masks, attention == "frozen", means, positions=None if set(places) == {last} else places
        )
        return total_variation(own[places], logits).tolist()

    found: list[dict[str, Any]] = []
    with progress("measuring positions", len(names) * len(ids)) as advance:
        for name in names:
            for group in _groups(forward, own, tokens, name, seed, len(wanted)):
                _evaluate(group, wanted, eps, run)
                found += [position.row(wanted, eps, own, ids) for position in group]
                advance(len(group))
    return polars.DataFrame(found, schema=TYPES)


TYPES = {
    "position": polars.Int64, "token": polars.String, "importance": polars.String, "auc_log": polars.Float64,
    "auc_linear": polars.Float64, "size_at": polars.Float64, "entropy": polars.Float64, "surprisal": polars.Float64,
    "n_edges": polars.Int64,
}  # fmt: skip


@dataclass(frozen=True)
class _Position:
    """The graph of one position, and the TV of its traces by number of edges."""

    graph: Graph
    tv: dict[int, float]

    @property
    def place(self) -> int:
        return self.graph.position

    def mask(self, count: int, forward: ForwardPass) -> numpy.ndarray:
        """The best-first trace of so many edges, (F,) bool on the axis of the whole text."""
        flat = numpy.zeros(forward.space.size, dtype=bool)
        self.graph.space.copy_to(forward.space, self.graph.trace(n_edges=count).flat, flat)
        return flat

    def row(self, sizes: Sequence[float], eps: float, own: Tensor, ids: Sequence[int]) -> dict[str, Any]:
        counts = [self.graph.n_edges_at(size) for size in sizes]
        further = sorted(self.tv.keys() - set(counts))
        density = Density(
            tuple(sizes), tuple(self.tv[n] for n in counts),
            tuple(size_of(n, self.graph.n_edges) for n in further), tuple(self.tv[n] for n in further),
        )  # fmt: skip
        logits, following = own[self.place], ids[self.place + 1 : self.place + 2]
        return {
            "position": self.place,
            "token": self.graph.tokens[self.place],
            "importance": self.graph.importance_name,
            "auc_log": density.auc_log,
            "auc_linear": density.auc_linear,
            "size_at": density.size_at(eps),
            "entropy": float(entropy(logits, logits[None])),
            "surprisal": float(surprisal(logits, following[0])) if following else None,
            "n_edges": self.graph.n_edges,
        }


def _groups(
    forward: ForwardPass, own: Tensor, tokens: Sequence[str], name: str, seed: int, n_sizes: int
) -> Iterator[list[_Position]]:
    """The positions of a text, as many at a time as have masks that fit the memory budget."""
    scores = score_edges(forward, name, seed) if is_local(name) else None
    together = max(1, MASK_BYTES // (n_sizes * forward.space.size))
    for start in range(0, forward.n_tokens, together):
        group = []
        for place in range(start, min(start + together, forward.n_tokens)):
            up_to = forward.prefix(place + 1, own[place].to(forward.logits.device))
            if scores is None:
                cut = score_edges(up_to, name, seed)
            else:
                cut = numpy.empty(up_to.space.size, dtype=numpy.float32)
                forward.space.copy_to(up_to.space, scores, cut)
            graph = Graph(forward.model, up_to, forward.ids, tuple(tokens), place, name, cut, seed)
            group.append(_Position(graph, {}))
        yield group


def _evaluate(group: Sequence[_Position], sizes: Sequence[float], eps: float, run: Any) -> None:
    """Run the traces of these sizes, then those that place `size_at`, for all positions in common rounds."""
    rows = [
        (position, count)
        for position in group
        for count in sorted({*(position.graph.n_edges_at(size) for size in sizes), position.graph.n_edges})
    ]
    while rows:
        for (position, count), tv in zip(rows, run(rows), strict=True):
            if count == position.graph.n_edges:
                _refuse_another_model(position, tv)
            if count < position.graph.n_edges or 1.0 in sizes:
                position.tv[count] = tv
        rows = [(p, count) for p in group for count in counts_inside(p.tv, goal_of("tv", eps))]


def _refuse_another_model(position: _Position, tv: float) -> None:
    model = position.graph.model
    tolerance = TOLERANCE_TV.get(model.adapter.dtype, 5e-2)
    if not tv <= tolerance:
        raise IdentityError(
            f"the full trace of {model.name} at position {position.place} is not the model: total variation {tv:.2g}, "
            f"expected at most {tolerance:g}. Nothing that is measured on it can be trusted; run `densitometer doctor` on it"
        )


def _refuse_later_tokens(model: Model, ids: Sequence[int], own: Tensor) -> None:
    """Refuse a model whose prediction at a position is another one when later tokens are there, at three positions.

    It is no causal one, or one that changes its position embeddings with the length of the text.
    """
    for place in sorted({min(1, len(ids) - 1), len(ids) // 4, len(ids) // 2}):
        alone = model.adapter.logits(ids[: place + 1]).cpu()
        gap = float(total_variation(alone, own[place][None]))
        if not gap <= TOLERANCE_TV.get(model.adapter.dtype, 5e-2):
            raise ModelError(
                f"the prediction of {model.name} at position {place} changes when later tokens are there (total variation "
                f"{gap:.2g}), so positions cannot share one run; measure them one by one: measure(model, ids, position=...)"
            )
