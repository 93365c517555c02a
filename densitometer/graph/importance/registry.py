"""Registry of the functions that compute the importance of edges.

An importance is a function of a recorded forward pass and a seed. It returns one non-negative value
per edge, level by level (`PerLevel`).

    l1, l2, cosine, projection, proximity, random    `norms.py`: from the edges' vectors
    fisher, bound                                    `gradients.py`: from the prediction's gradients
    best, learned                                    `search.py`: from a search for a better order

`compute_importance` calls such a function and checks shapes, finiteness and signs of what it
returns.

What this file does not do: it does not compute importances itself or cut traces (`growth.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy

from ..._util.arguments import checked_name
from ...errors import ArgumentTypeError, InputError, PluginError
from ...models.placement import memory_watched
from ..forward_pass import ForwardPass, PerLevel
from .gradients import bound, fisher
from .norms import cosine, l1, l2, projection, proximity, random
from .search import best, learned

Importance = Callable[[ForwardPass, int], Sequence[PerLevel]]

_REGISTRY: dict[str, Importance] = {}
_LOCAL: set[str] = set()


def register_importance(name: str, function: Importance, local: bool = False) -> None:
    """Add an importance under a name, for `measure(..., importance=name)`.

    Args:
        name: a string that is not empty.
        function: called with a `ForwardPass` and a seed. It returns one `PerLevel` per level of
            `forward.space.levels`, with non-negative, finite values: residual (T,), attention
            (H, T, S) or None, mlp (M, T) or None. M is the level's `n_units`; where M is 1, as
            always at granularity "block", mlp may also be (T,).
        local: whether an edge's importance depends only on tokens up to its target, as for
            importances from norms. `measure_positions` then computes it once for a whole text
            instead of once for each position.

    Raises:
        InputError: the name is taken.
        ArgumentTypeError: the name is not a string or is empty, or the function cannot be called.

    Examples:
        >>> def early(forward, seed):  # earlier levels first
        ...     levels = forward.space.views(torch.zeros(forward.space.size))
        ...     return [[part if part is None else part + 1 / (1 + i) for part in level]
        ...             for i, level in enumerate(levels)]
        >>> dm.register_importance("early", early, local=True)
        >>> dm.build_graph(model, "The captain", importance="early").trace(n_edges=10)
        Trace(10 of 169 edges, 5.92 %)
    """
    checked_name("an importance", name, function)
    if name in _REGISTRY:
        raise InputError(f"an importance named {name!r} exists already: {list_importances()}")
    _REGISTRY[name] = function
    if local:
        _LOCAL.add(name)


def is_local(name: str) -> bool:
    """Whether the importance of an edge depends only on the tokens up to its target."""
    return name in _LOCAL


def list_importances() -> list[str]:
    """Names of all importances, in alphabetical order.

    Examples:
        >>> dm.list_importances()
        ['best', 'bound', 'cosine', 'fisher', 'l1', 'l2', 'learned', 'projection', 'proximity',
         'random']
    """
    return sorted(_REGISTRY)


def describe_importance(name: str) -> str:
    """First line of the docstring of an importance's function.

    It is empty where there is no docstring, or the importance is not registered.
    """
    return (inspect.getdoc(_REGISTRY.get(name)) or "").partition("\n")[0] if name in _REGISTRY else ""


def check_importance(name: str) -> None:
    """Check that an importance is registered under a name.

    Raises:
        InputError: no importance has this name.
        ArgumentTypeError: the name is not a string.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"importance must be a string, got {name!r} ({type(name).__name__})")
    if name not in _REGISTRY:
        raise InputError(f"unknown importance {name!r}; expected one of {', '.join(list_importances())}")


def compute_importance(forward: ForwardPass, name: str, seed: int = 0) -> numpy.ndarray:
    """Compute the importance of every edge, (F,) float32, on the CPU.

    Raises:
        InputError: no importance has this name.
        PluginError: the importance returned a wrong shape, NaN, infinities or negative values.
    """
    check_importance(name)
    with memory_watched(f"computing {name!r} of {forward.n_tokens} tokens"), forward.model.running():
        levels = _levels(name, _REGISTRY[name](forward, seed))
    space = forward.space
    if len(levels) != len(space.levels):
        raise PluginError(f"importance {name!r} returned {len(levels)} levels, expected {len(space.levels)}")
    expected = space.views(numpy.empty(space.size, dtype=bool))  # for its shapes
    for level, got, want in zip(space.levels, levels, expected, strict=True):
        for kind, value, place in zip(PerLevel._fields, got, want, strict=True):
            shape = None if value is None else tuple(value.shape)
            wanted = None if place is None else place.shape
            # (T,) serves as (1, T)
            of_only_unit = kind == "mlp" and level.n_units == 1 and shape == (space.n_tokens,)
            if shape != wanted and not of_only_unit:
                raise PluginError(
                    f"importance {name!r} returned shape {shape} for the {kind} edges of layer {level.layer}, expected "
                    f"{wanted}"
                )
    flat = space.flatten(levels)
    values = flat[forward.reachable]  # (E,)
    if not numpy.isfinite(values).all():
        first = numpy.flatnonzero(forward.reachable & ~numpy.isfinite(flat))[:1]
        raise PluginError(
            f"importance {name!r} returned NaN or infinities, first in layer {space.columns(first)['layer'][0]}; an importance "
            "from gradients may overflow in float16: load the model in another dtype (dtype='bfloat16' or 'float32')"
        )
    if (values < 0).any():
        raise PluginError(
            f"importance {name!r} returned negative values (least {values.min():.3g}), expected values of at least 0"
        )
    return flat


def _levels(name: str, returned: Any) -> list[PerLevel]:
    """Check that an importance returned a sequence of tensors, or None, for each level."""
    if isinstance(returned, Iterable):
        levels = list(returned)
        if all(
            isinstance(level, Sequence) and all(v is None or hasattr(v, "shape") for v in level)
            for level in levels
        ):
            return levels
    raise PluginError(
        f"importance {name!r} returned {type(returned).__name__}; expected a PerLevel of tensors for each level of nodes"
    )


register_importance("best", best)
register_importance("bound", bound)
register_importance("cosine", cosine, local=True)
register_importance("fisher", fisher)
register_importance("l1", l1, local=True)
register_importance("learned", learned)
register_importance("l2", l2, local=True)
register_importance("projection", projection, local=True)
register_importance("proximity", proximity, local=True)
register_importance("random", random)
