"""Targets: the number of a prediction that is measured, such as a token's probability.

Without a target a prediction is its whole distribution. With one it is a single number, the value v
of the target. It is a function of the logits z and of p, their softmax:

    token            p_a
    contrast         log sum_{a in A} exp z_a - log sum_{b in B} exp z_b
    function         the result of a caller's function of the logits

For two single tokens the contrast is their logit difference (Wang et al. 2022, arXiv 2211.00593).
For two sets it is the logarithm of the ratio of their probabilities, log P(A) / P(B). So it does
not depend on tokens outside of the two sets. A very improbable token hardly changes it, whereas it
would change a difference of mean logits.

How much of the value a trace keeps is its faithfulness (`Scale`).

What this file does not do: it runs no model. Importances take the slope of a target from here
(`importance/gradients.py`).

Axes: V vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentTypeError, InputError, ModelError, PluginError
from ..models.adapter import vocabulary_size
from ..models.loading import Model
from ..models.tokenization import ids_of, shorten

# A token as a caller gives it: its text, or its id.
Token = str | int


@dataclass(frozen=True)
class Target:
    """Target as a caller gives it, before its tokens are looked up in a model's vocabulary.

    Args:
        tokens: texts or ids of tokens.
        against: texts or ids of the tokens that these are contrasted with; empty for none.
        function: a function of logits, in place of tokens.
    """

    tokens: tuple[Token, ...] = ()
    against: tuple[Token, ...] = ()
    function: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, given: Any) -> Target | None:
        """Return the target that a caller gives. None stands for the whole distribution.

        Args:
            given: None; a token, as its text or its id; a pair (token, against), each a token or a
                list of tokens; a function of logits; or a target.

        Raises:
            ArgumentTypeError, InputError: it is none of these.
        """
        if given is None or isinstance(given, cls):
            return given
        if callable(given):
            return cls(function=given)
        if isinstance(given, tuple):
            if len(given) != 2:
                raise InputError(
                    f"a target of several tokens is a pair (token, against) or ([tokens], [tokens]), got {len(given)} parts: "
                    f"{shorten(given)}"
                )
            return cls(_tokens(given[0]), _tokens(given[1]))
        if isinstance(given, list):
            raise ArgumentTypeError(
                f"target is a list, {shorten(given)}: give one token, a pair (token, against), or two lists ([tokens], "
                "[tokens])"
            )
        return cls(_tokens(given))

    @property
    def name(self) -> str:
        """The target in words: tokens in quotes, or the name of a function."""
        if self.function is not None:
            return f"function {function_name(self.function)}"
        sides = [" or ".join(map(repr, side)) for side in (self.tokens, self.against) if side]
        return " against ".join(sides)

    def to_document(self) -> Any:
        """Return the target as plain data, for JSON: as it was given, with lists for tuples.

        A function is written as its name, and cannot be read back.
        """
        if self.function is not None:
            return {"function": function_name(self.function)}
        sides = [list(side) if len(side) > 1 else side[0] for side in (self.tokens, self.against) if side]
        return sides if len(sides) > 1 else sides[0]

    @classmethod
    def from_document(cls, document: Any) -> Target | None:
        """Return the target that `to_document` wrote.

        Raises:
            InputError, ArgumentTypeError: it is the name of a function, or not a target.
        """
        if isinstance(document, dict):
            raise InputError(
                f"the target is the Python function {document.get('function')}, which a file does not hold; call "
                "measure(..., target=function) again"
            )
        return cls.of(tuple(document) if isinstance(document, list) else document)

    def resolved(self, model: Model) -> TargetScore:
        """Find the tokens in a model's vocabulary.

        Raises:
            InputError: a text is not a single token of the model, an id is not in its
                vocabulary, or both sides have the same token.
        """
        if self.function is not None:
            return TargetScore(self.name, (), (), self.function)
        ids, against = (
            tuple(dict.fromkeys(_id_of(model, t) for t in side)) for side in (self.tokens, self.against)
        )
        if shared := set(ids) & set(against):
            raise InputError(
                f"target and contrast share the token {model.pieces([min(shared)])[0]!r} ({self.name}), so that it says "
                "nothing; give two different tokens"
            )
        return TargetScore(self.name, ids, against)


@dataclass(frozen=True)
class TargetScore:
    """A target of one model: a function of its logits.

    Args:
        name: the target in words.
        ids: token ids.
        against: token ids that these are contrasted with; empty for none.
        function: a caller's function, in place of tokens.
    """

    name: str
    ids: tuple[int, ...]
    against: tuple[int, ...] = ()
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def kind(self) -> str:
        """What a value is: "probability", "logit difference" or "function"."""
        if self.function is not None:
            return "function"
        return "logit difference" if self.against else "probability"

    def value(self, logits: Tensor) -> Tensor:
        """Compute the value of predictions, (...) float32, from logits (..., V) float32.

        Raises:
            PluginError: a caller's function returns something else, or NaN or infinities.
        """
        logits = logits.float()
        if self.function is None:
            if not self.against:
                return logits.softmax(-1)[..., list(self.ids)].sum(-1)
            for_, against = (logits[..., list(side)].logsumexp(-1) for side in (self.ids, self.against))
            return for_ - against
        values = self.function(logits)
        if not isinstance(values, Tensor) or values.shape != logits.shape[:-1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise PluginError(
                f"the target's {self.name} returned {got} for logits of shape {tuple(logits.shape)}, expected a tensor of "
                f"shape {tuple(logits.shape[:-1])}"
            )
        if not bool(values.isfinite().all()):
            raise PluginError(
                f"the target's {self.name} returned {float(values[~values.isfinite()][0])}, expected finite values"
            )
        return values.float()

    def slope(self, logits: Tensor) -> Tensor:
        """Compute the gradient of the value by logits, (V,), at logits (V,).

        Raises:
            ModelError: the value passes no gradient, or does not depend on the logits there.
        """
        instead = "Give a contrast (token, against), or use an importance without gradients, such as 'l1'"
        with torch.enable_grad():
            leaf = logits.detach().float().requires_grad_()
            value = self.value(leaf[None])[0]
            if not value.requires_grad:
                raise ModelError(f"the target's {self.name} passes no gradient to the logits. {instead}")
            (slope,) = torch.autograd.grad(value, leaf)
        if not bool(slope.any()):
            raise ModelError(
                f"the target {self.name} has the value {float(value.detach()):.4g} and no slope at the model's own prediction, so that "
                f"no edge can be ranked by it. {instead}"
            )
        return slope.to(logits.dtype)


class Scale(NamedTuple):
    """The values of a target between which faithfulness goes from 0 to 1.

    Args:
        score: the target.
        full: value of the full model.
        nothing: value with no edge on.
    """

    score: TargetScore
    full: float
    nothing: float

    @classmethod
    def of(cls, score: TargetScore, full: Tensor, nothing: Tensor) -> Scale:
        """Take the two values from logits (V,) of the full model, and of a run with no edge on.

        Raises:
            InputError: they are the same, to float32.
        """
        values = [float(score.value(logits)) for logits in (full, nothing)]
        spread = abs(values[0] - values[1])
        if not spread > 4 * torch.finfo(torch.float32).eps * max(map(abs, values)):
            raise InputError(
                f"the target {score.name} has the same value in the full model and with no edge on, {values[0]:.4g}, so that "
                "no trace can be said to keep it; give another target"
            )
        return cls(score, *values)

    @property
    def spread(self) -> float:
        """Distance between the two values."""
        return abs(self.full - self.nothing)

    def faithfulness(self, values: Tensor) -> Tensor:
        """Share of the value that traces keep: (v - nothing) / (full - nothing), (K,) float64.

        It is 1 for the full model and 0 with no edge on. It may be below 0 or above 1 (Marks et al.
        2024, arXiv 2403.19647).

        Args:
            values: (K,), values of the target under K traces.
        """
        return (values.double() - self.nothing) / (self.full - self.nothing)


def space_lacking(model: Model, target: Target, logits: Tensor) -> str | None:
    """Look for a token of a target that is more probable with a space before it.

    In most vocabularies "Paris" and " Paris" are two tokens, and the wrong one is easily given.

    Args:
        target: the target as it was asked for. Tokens given as ids are left alone.
        logits: (V,), the full model's.

    Returns:
        A warning about the first such token, in words. None where there is none.
    """
    probabilities = logits.float().softmax(-1)
    given = [token for token in (*target.tokens, *target.against) if isinstance(token, str)]
    for token in given:
        if not token[:1].isalnum() or f" {token}" in given:
            continue
        try:
            plain, spaced = (float(probabilities[_id_of(model, t)]) for t in (token, f" {token}"))
        except InputError:  # with the space it is not one token
            continue
        if spaced > plain:
            # without numbers, so that the texts of a study give one warning and not one each
            return f"the model predicts {' ' + token!r} more readily than {token!r}: the space before a word is part of its token"
    return None


def function_name(function: Callable[..., Any]) -> str:
    """Name of a function, with its module where it has one."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def _tokens(given: Any) -> tuple[Token, ...]:
    """Check one side of a target, and return its tokens.

    Raises:
        ArgumentTypeError: a token is not a text or an integer.
        InputError: there is none.
    """
    side: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    if not side:
        raise InputError("one side of the target has no token; give at least one")
    tokens: list[Token] = []
    for token in side:
        if isinstance(token, str):
            tokens.append(token)
            continue
        try:
            if isinstance(token, bool):
                raise TypeError
            tokens.append(operator.index(token))
        except TypeError:
            raise ArgumentTypeError(
                f"a target is a token, as its text or its id, a pair (token, against), or a function of logits; got "
                f"{shorten(token)} ({type(token).__name__})"
            ) from None
    return tuple(tokens)


def _id_of(model: Model, token: Token) -> int:
    """Find the id of a token of a model.

    Raises:
        InputError: it is not one token, or not in the vocabulary.
    """
    size = vocabulary_size(model.module)
    if isinstance(token, int):
        if not 0 <= token < size:
            raise InputError(
                f"the target's token id {token} is not in the vocabulary of {model.name} (0 to {size - 1})"
            )
        return token
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} was loaded without a tokenizer, so a target can be a token id only; got {token!r}"
        )
    ids = ids_of(model.tokenizer, token, add_special_tokens=False)
    pieces = model.pieces(ids)
    if pieces == [token] and ids[0] < size:
        return int(ids[0])
    # A tokenizer may put a space before the first word, or may not make a token from its text.
    found = _named(model, token)
    if found is not None and found < size:
        return found
    if len(ids) > 1:
        split = " + ".join(map(repr, pieces))
        raise InputError(
            f"the target {token!r} is {len(ids)} tokens of {model.name}, not one: {split}. Give one of them, such as "
            f"{pieces[0]!r}, or measure an answer of several tokens: measure_answer(model, text, answer={token!r})"
        )
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if not ids or ids[0] == unknown or ids[0] >= size:
        raise InputError(
            f"the target {token!r} is not in the vocabulary of {model.name}; give another token, or a token id"
        )
    return int(ids[0])


def _named(model: Model, text: str) -> int | None:
    """Find the token whose readable text equals a text. None if there is none."""
    first = model.tokenizer.convert_tokens_to_ids(text)
    if isinstance(first, int) and first >= 0 and model.pieces([first]) == [text]:
        return first
    # sentence pieces write a space as this character
    marked = model.tokenizer.convert_tokens_to_ids(text.replace(" ", "\u2581"))
    if isinstance(marked, int) and marked >= 0 and model.pieces([marked]) == [text]:
        return marked
    return None
