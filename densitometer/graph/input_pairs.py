"""Pairs of inputs of one model: a text and its counterfactual.

A counterfactual is another input with the same number of tokens, such as the corrupted version of a
clean prompt. An edge that is off then carries its vector in that input instead of nothing. This is
resample ablation (Conmy et al. 2023, arXiv 2304.14997). Turning off a single edge is activation
patching of that edge's vector.

Tokens are paired by position. So both inputs must have the same number of tokens, and should differ
only in what the measurement is about.

What this file does not do: it runs no traces (`masked_runs.py`), and does not map the edges of
inputs of different lengths (`measuring/transfer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..models.loading import Model, Text
from ..models.units import Granularity
from .forward_pass import ForwardPass, run_forward

# Tokens of an input that a message shows.
_SHOWN = 24


def counterfactual_ids(model: Model, given: Text, ids: Sequence[int], position: int) -> tuple[int, ...]:
    """Return the token ids of a counterfactual, up to a position.

    Args:
        given: the counterfactual, as a text, chat messages or token ids.
        ids: token ids of the whole input that it belongs to.
        position: index of the token whose prediction is measured.

    Raises:
        InputError: it has a different number of tokens, equals the input, or was made by another
            tokenizer.
    """
    _refuse_other_tokenizer(model, given)
    other = model.encode(given)
    kept = tuple(ids[: position + 1])
    # an input may go on after the position, where nothing is measured
    if len(other) not in (len(ids), len(kept)):
        raise InputError(
            f"the counterfactual has {len(other)} tokens and the text {len(ids)}, but each token needs its counterpart: "
            f"{both_shown(model, ids, other)}; reword one of them"
        )
    other = other[: position + 1]
    if tuple(other) == kept:
        raise InputError(
            f"the counterfactual is the text itself, up to the position: {_shown(model, kept, 0)}, so that no edge carries "
            "anything else there; give another text"
        )
    return tuple(other)


def with_counterfactual(forward: ForwardPass, ids: Sequence[int]) -> ForwardPass:
    """Return a forward pass in which edges that are off carry their vectors in another input.

    Args:
        forward: the pass.
        ids: token ids of the other input, as many as the pass has.
    """
    there, _ = run_forward(forward.model, ids, -1, forward.granularity)
    return replace(forward, counterfactual=there)


def check_pairing(granularity: Granularity) -> None:
    """Check that a counterfactual can be used with a granularity.

    Raises:
        InputError: the granularity is not "block", so that a router may send the tokens of the two
            inputs to different units.
    """
    if granularity != "block":
        raise InputError(
            f"a counterfactual is of whole MLPs, so it needs granularity='block'; got {granularity!r}"
        )


def both_shown(model: Model, ids: Sequence[int], other: Sequence[int]) -> str:
    """Write the tokens of two inputs for a message.

    Short inputs are whole. Longer ones begin three tokens before the first that differs.
    """
    pairs = zip(ids, other, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(other)))
    start = max(0, first - 3) if max(len(ids), len(other)) > _SHOWN else 0
    return f"{_shown(model, ids, start)} and {_shown(model, other, start)}"


def _shown(model: Model, ids: Sequence[int], start: int) -> str:
    """Write the tokens of an input from the token `start` on, in quotes, with bars between them.

    At most `_SHOWN` tokens are written.
    """
    pieces = model.pieces(ids[start : start + _SHOWN])
    more = "|..." if start + _SHOWN < len(ids) else ""
    return f"{'...|' if start else ''}{'|'.join(pieces)!r}{more}"


def _refuse_other_tokenizer(model: Model, given: Any) -> None:
    """Refuse the result of a different tokenizer, if this can be detected.

    Raises:
        InputError: the model's tokenizer has other tokens for the same ids.
    """
    # what a fast tokenizer returned remembers its tokens
    encodings = getattr(given, "encodings", None)
    if model.tokenizer is None or not encodings:
        return
    theirs = list(encodings[0].tokens)
    ours = model.tokenizer.convert_ids_to_tokens([int(i) for i in encodings[0].ids])
    if theirs != ours:
        place = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        raise InputError(
            f"the counterfactual is from another tokenizer than that of {model.name}: its token {place} is "
            f"{theirs[place]!r}, and its id is {ours[place]!r} here; give the text, or ids of model.tokenizer"
        )
