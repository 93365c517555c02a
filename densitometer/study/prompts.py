"""Prompts: texts with a right next token, a wrong one to compare it with, and a counterfactual.

Tasks are lists of prompts (`tasks.py`), and so are corpora with the columns `target`, `against` and
`counterfactual`. A study measures each text by its own target and its own counterfactual
(`measuring_of`), so that one text may fail and the others go on.

Prompts whose tokens have the same roles can be measured with one set of edges (`align`). Each span
that a prompt names, such as its subject, is one role. So is the text before, between and after the
spans. Within a role, tokens are counted from its end, because the model predicts what follows the
last token. Without spans, all of a prompt is one role.

What this file does not do: it does not tokenize. Whether a target is a single token, and whether a
counterfactual has the same number of tokens, depends on the model (`graph/targets.py`,
`graph/input_pairs.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy

from ..errors import InputError
from ..measuring.settings import MeasureSettings
from ..models.tokenization import shorten

# Columns of a corpus that are settings of their own text.
PER_TEXT = ("target", "against", "counterfactual")


@dataclass(frozen=True)
class Prompt:
    """A prompt of a task, with its right answer and a wrong one to compare it with.

    Args:
        text: the prompt.
        target: the right next token, or several of them. None for the whole distribution.
        against: the wrong next token, or several of them. None where the task has none.
        counterfactual: a prompt with the same number of tokens, to which `against` is the right
            answer. None where the task has none.
        spans: named parts of the text, such as its subject. A part is given as a string that occurs
            in the text exactly once, or as the index of its first character and of the one after
            its last. All prompts of a task name the same spans, in the same order.

    Examples:
        >>> prompt = dm.load_task("capitals")[0]
        >>> prompt.text, prompt.target, prompt.against
        ('The capital of Portugal is the city of', ' Lisbon', ' Havana')
        >>> prompt.counterfactual
        'The capital of Cuba is the city of'
    """

    text: str
    target: str | tuple[str, ...] | None = None
    against: str | tuple[str, ...] | None = None
    counterfactual: str | None = None
    spans: Mapping[str, str | tuple[int, int]] = field(default_factory=dict, hash=False)

    @property
    def asked(self) -> Any:
        """Target and wrong answer in the form of the argument `target` of `measure`."""
        sides = [list(side) if isinstance(side, tuple) else side for side in (self.target, self.against)]
        return sides[0] if sides[1] is None else tuple(sides)


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """Make a prompt from a row of a corpus.

    Raises:
        InputError: the row has `against` and no `target`.
    """
    target, against = (
        tuple(side) if isinstance(side, list) else side for side in (row.get("target"), row.get("against"))
    )
    if against is not None and target is None:
        raise InputError(f"the text {row['id']!r} has `against` and no `target`; give both")
    return Prompt(row["text"], target, against, row.get("counterfactual"), _spans_in(row))


def _spans_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """Read the spans of a row of a corpus, given as an object or as JSON.

    Raises:
        InputError: they are neither.
    """
    spans = row.get("spans") or {}
    if isinstance(spans, str):
        with suppress(ValueError):
            spans = json.loads(spans)
    if not isinstance(spans, Mapping):
        raise InputError(
            f"the spans of the text {row['id']!r} are {shorten(spans)}; give an object, {{NAME: part of the text}}"
        )
    # a row of a file has a null for each span that only other rows name
    return {name: span for name, span in spans.items() if span is not None}


def columns_per_text(columns: Sequence[str], measuring: MeasureSettings) -> tuple[str, ...]:
    """Return the columns of a corpus that a study takes as settings of each text.

    Where a study has one target for all texts, or one counterfactual, a column of that name is
    carried along like any other.

    Args:
        columns: the columns of the corpus.
        measuring: the settings that all texts share.
    """
    given = {name for name in ("target", "counterfactual") if getattr(measuring, name) is not None}
    given |= {"against"} if "target" in given or "target" not in columns else set()
    return tuple(name for name in PER_TEXT if name in columns and name not in given)


def measuring_of(
    measuring: MeasureSettings, columns: Sequence[str], row: Mapping[str, Any]
) -> MeasureSettings:
    """Return the settings of one text of a study.

    Args:
        measuring: the settings that all texts share.
        columns: those that are settings of each text (`columns_per_text`).
        row: the text's row of the corpus.

    Raises:
        InputError: a value cannot be used, or `against` stands without `target`.
    """
    prompt = prompt_of({"id": row["id"], "text": row["text"]} | {name: row.get(name) for name in columns})
    own = {"target": prompt.asked, "counterfactual": prompt.counterfactual}
    return replace(measuring, **{name: own[name] for name in own if name in columns})


class Alignment(NamedTuple):
    """Common places for the tokens of several prompts, so that tokens with the same role meet.

    Args:
        places: for each prompt, (T,) int64: the place of each of its tokens. Places rise along a
            prompt, and the last token of every prompt has the last place.
        roles: for each place, the name of its span; None for places outside of all spans.
    """

    places: list[numpy.ndarray]
    roles: tuple[str | None, ...]


def align(prompts: Sequence[Prompt], pieces: Sequence[Sequence[str]]) -> Alignment:
    """Give tokens with the same role the same place in all prompts.

    Args:
        prompts: the prompts.
        pieces: the tokens of each prompt as readable texts.

    Raises:
        InputError: two prompts name different spans, a span does not occur exactly once in its
            prompt, spans overlap, or the last tokens of two prompts have different roles.
    """
    named = [_spans_of(prompt, tokens) for prompt, tokens in zip(prompts, pieces, strict=True)]
    names = [name for name, *_ in named[0]]
    for prompt, spans in zip(prompts, named, strict=True):
        if (theirs := [name for name, *_ in spans]) != names:
            raise InputError(
                f"prompts of a task name the same spans in the same order; {shorten(prompts[0].text)} has "
                f"{', '.join(names) or 'none'}, and {shorten(prompt.text)} {', '.join(theirs) or 'none'}"
            )
    # lengths of what is before the first span, of that span, of what comes next, ...
    # (prompts, roles)
    lengths = numpy.array(
        [
            numpy.diff([0, *(end for _, *ends in spans for end in ends), len(tokens)])
            for spans, tokens in zip(named, pieces, strict=True)
        ]
    )
    longest = lengths.max(axis=0)
    ends = longest.cumsum()
    places = [
        numpy.concatenate([numpy.arange(end - n, end) for end, n in zip(ends, own, strict=True)])
        for own in lengths
    ]
    n_places = int(longest.sum())
    for prompt, own in zip(prompts, places, strict=True):
        if own[-1] != n_places - 1:
            raise InputError(
                f"{shorten(prompt.text)} ends with a span, and other prompts go on after it; name that span longer or shorter, "
                "so that the last tokens of all prompts have one role"
            )
    of_role = [None, *(role for name in names for role in (name, None))]
    roles = tuple(role for role, n in zip(of_role, longest, strict=True) for _ in range(n))
    return Alignment(places, roles)


def _spans_of(prompt: Prompt, pieces: Sequence[str]) -> list[tuple[str, int, int]]:
    """Find the spans of a prompt among its tokens: name, first token, and the one after the last.

    A token is in a span if any of its characters is.

    Raises:
        InputError: a span does not occur exactly once in the prompt, spans overlap, or the tokens
            do not spell the text.
    """
    text, shown = "".join(pieces), shorten(prompt.text)
    if not prompt.spans:
        return []
    # a tokenizer may put a token of its own first
    start = text.find(prompt.text)
    if start < 0:
        raise InputError(
            f"the tokens of {shown} do not spell it, so that its spans cannot be found; give no spans"
        )
    stops = numpy.cumsum([len(piece) for piece in pieces]) - start
    found = []
    for name, span in prompt.spans.items():
        if isinstance(span, str):
            if prompt.text.count(span) != 1 or not span:
                raise InputError(
                    f"the span {name!r} of {shown} is {span!r}, which occurs {prompt.text.count(span) if span else 0} times in it; "
                    "give a text that occurs once, or its first character and the one after its last"
                )
            span = (at := prompt.text.index(span), at + len(span))
        first, last = (int(end) for end in span)
        if not 0 <= first < last <= len(prompt.text):
            raise InputError(
                f"the span {name!r} of {shown} is from character {first} to {last}, of {len(prompt.text)}; give a part of the text"
            )
        found.append((name, int((stops <= first).sum()), int((stops < last).sum()) + 1))
    found.sort(key=lambda span: span[1])
    for (one, _, stop), (other, begin, _) in pairwise(found):
        if begin < stop:
            raise InputError(f"the spans {one!r} and {other!r} of {shown} share a token; name them apart")
    return found
