"""Metrics of how close a trace's prediction is to the full model's: pure functions of logits.

Softmax in float32, sums in float64. p is the full model's distribution, q a trace's; K traces at once, V vocabulary.

    tv        0.5 sum |p - q|, in [0, 1]
    kl        sum p (log p - log q), nats
    js        Jensen-Shannon divergence, nats, in [0, log 2]
    top1      whether the most probable token is the same
    nucleus   largest k in NUCLEUS_SHARES for which the ordered top-k % lists agree (0 where none does);
              a list is the smallest prefix, by descending probability, whose mass reaches k %
    nucleus_unordered   the same for the lists as sets
    entropy   of q, nats
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, PluginError
from .arguments import checked_name

NUCLEUS_SHARES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
NUMBERS = 2**19  # logits compared at a time; metrics hold some five doubles for each

Metric = Callable[[Tensor, Tensor], Tensor]

_REGISTRY: dict[str, Metric] = {}


def register_metric(name: str, function: Metric) -> None:
    """Add a metric under a name. It becomes a column of every curve measured from then on.

    Args:
        function: called with the full model's logits (V,) and the traces' (K, V), float32; returns (K,).

    Raises:
        InputError: the name is taken.

    Examples:
        >>> dm.register_metric("largest_gap", lambda full, traces: (full - traces).abs().amax(-1))
        >>> "largest_gap" in dm.measure(model, "The captain", sizes=[0.5, 1.0]).curve.columns
        True
    """
    checked_name("a metric", name, function)
    if name in _REGISTRY:
        raise InputError(f"a metric named {name!r} exists already: {list_metrics()}")
    _REGISTRY[name] = function


def list_metrics() -> list[str]:
    """Names of all metrics, in the order of the curve's columns.

    Examples:
        >>> dm.list_metrics()
        ['tv', 'kl', 'js', 'top1', 'nucleus', 'nucleus_unordered', 'entropy']
    """
    return list(_REGISTRY)


def compute_metrics(full: Tensor, traces: Tensor) -> dict[str, Tensor]:
    """Compute every metric of K traces, (K,) each.

    Raises:
        PluginError: a registered metric returned a wrong shape, or a value that is not finite.
    """
    slices = traces.split(max(1, NUMBERS // full.shape[-1]))
    return {
        name: torch.cat([_computed(name, function, full, part) for part in slices])
        for name, function in _REGISTRY.items()
    }


def _computed(name: str, function: Metric, full: Tensor, traces: Tensor) -> Tensor:
    values = function(full, traces)
    if not isinstance(values, Tensor):
        raise PluginError(
            f"metric {name!r} returned {type(values).__name__}, expected a tensor of shape {(traces.shape[0],)}"
        )
    if tuple(values.shape) != (traces.shape[0],):
        raise PluginError(
            f"metric {name!r} returned shape {tuple(values.shape)}, expected {(traces.shape[0],)}"
        )
    if not bool(values.isfinite().all()):
        raise PluginError(
            f"metric {name!r} returned {float(values[~values.isfinite()][0])}, expected finite values"
        )
    return values


def _probabilities(logits: Tensor) -> Tensor:
    return torch.softmax(logits.float(), dim=-1).double()


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).double()


def total_variation(full: Tensor, traces: Tensor) -> Tensor:
    """0.5 sum |p - q|, (K,), in [0, 1]."""
    return 0.5 * (_probabilities(full) - _probabilities(traces)).abs().sum(-1)


def kl_divergence(full: Tensor, traces: Tensor) -> Tensor:
    """KL(p || q) in nats, (K,)."""
    log_p, log_q = _log_probabilities(full), _log_probabilities(traces)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)


def jensen_shannon(full: Tensor, traces: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, (K,), in [0, log 2]."""
    log_p, log_q = _log_probabilities(full).expand_as(traces), _log_probabilities(traces)
    log_middle = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = (log_p.exp() * (log_p - log_middle)).sum(-1) + (log_q.exp() * (log_q - log_middle)).sum(-1)
    return (0.5 * halves).clamp_min(0.0)


def same_top1(full: Tensor, traces: Tensor) -> Tensor:
    """Whether the most probable token is the same, (K,) bool."""
    return traces.argmax(-1) == full.argmax(-1)


def entropy(full: Tensor, traces: Tensor) -> Tensor:
    """Entropy of each trace's distribution in nats, (K,)."""
    log_q = _log_probabilities(traces)
    return -(log_q.exp() * log_q).sum(-1)


def nucleus_recovery(full: Tensor, traces: Tensor) -> Tensor:
    """Largest k for which the ordered top-k % token lists agree, (K,) int64. 0 where none does."""
    return _nucleus(full, traces, ordered=True)


def nucleus_recovery_unordered(full: Tensor, traces: Tensor) -> Tensor:
    """Largest k for which the top-k % token lists agree as sets, (K,) int64. 0 where none does."""
    return _nucleus(full, traces, ordered=False)


def _nucleus(full: Tensor, traces: Tensor, ordered: bool) -> Tensor:
    """What `nucleus_recovery` and its order-free version return, without sorting a trace's tokens.

    Take the trace's probabilities in the model's order. The first n tokens of both lists are the same set if each of the
    first n is above all the rest; they are in the same order if, besides, the first n fall. Where numbers tie, which of
    them comes first is decided by the token ids, and the lists are sorted.
    """
    p = _probabilities(full)
    p_sorted, p_tokens = p.sort(descending=True, stable=True)
    masses = torch.tensor([share / 100 for share in NUCLEUS_SHARES], dtype=torch.float64)
    lengths, at = _prefix_lengths(p_sorted[None], masses)[0].unique(return_inverse=True)  # (N,), (M,)
    q = torch.softmax(traces.float(), dim=-1)
    taken = q[:, p_tokens]  # (K, V), in the model's order
    # between one length and the next, and after the last
    parts = taken.tensor_split(lengths.tolist(), dim=-1)
    empty = taken.new_full((len(taken),), -1.0)  # what comes after a list that holds every token
    least = (
        torch.stack([part.amin(-1) for part in parts[:-1]], dim=-1).cummin(-1).values
    )  # (K, N), of the first n
    most = torch.stack([part.amax(-1) if part.shape[-1] else empty for part in parts[1:]], dim=-1)
    most = most.flip(-1).cummax(-1).values.flip(-1)  # (K, N), of the others
    sums = torch.stack([part.sum(-1, dtype=torch.float64) for part in parts[:-1]], dim=-1).cumsum(-1)
    least, most, sums, lengths = least[:, at], most[:, at], sums[:, at], lengths[at]  # by share
    # the smallest list of the trace that reaches the mass has n tokens
    reaches = (sums >= masses) & ((sums - least < masses) | (lengths == 1))
    same = (least >= most) & reaches
    equal = least == most
    if ordered:
        head = taken[:, : int(lengths.max())]
        steps = torch.cat([head.new_full((len(head), 1), -1.0), head[:, 1:] - head[:, :-1]], dim=-1)
        rises, stays = (
            found.to(torch.int32).cumsum(-1)[:, lengths - 1] > 0 for found in (steps > 0, steps == 0)
        )
        same, equal = same & ~rises, equal | stays
    tied = (same & equal).any(-1)
    best = torch.zeros(len(q), dtype=torch.long)
    for share, agree in zip(NUCLEUS_SHARES, same.T, strict=True):
        best[agree] = share
    for row in tied.nonzero()[:, 0].tolist():
        best[row] = _nucleus_by_sorting(p_tokens, lengths, q[row].double(), masses, ordered)
    return best


def _nucleus_by_sorting(p_tokens: Tensor, lengths: Tensor, q: Tensor, masses: Tensor, ordered: bool) -> int:
    """The nucleus of one trace's probabilities q (V,), from both sorted lists."""
    q_sorted, q_tokens = q.sort(descending=True, stable=True)
    found = 0
    for share, n_p, n_q in zip(
        NUCLEUS_SHARES, lengths.tolist(), _prefix_lengths(q_sorted[None], masses)[0].tolist(), strict=True
    ):
        ours, theirs = p_tokens[:n_p], q_tokens[:n_q]
        if not ordered:
            ours, theirs = ours.sort().values, theirs.sort().values
        if n_p == n_q and torch.equal(ours, theirs):
            found = share
    return found


def _prefix_lengths(ordered: Tensor, masses: Tensor) -> Tensor:
    """Fewest first entries of each row (K, vocabulary) whose sum reaches M masses, (K, M)."""
    total = ordered.cumsum(-1)
    reached = torch.searchsorted(total, masses.expand(len(total), -1).contiguous()) + 1
    return reached.clamp_max(ordered.shape[-1])


def surprisal(logits: Tensor, token: int) -> Tensor:
    """-log q(token) in nats, (K,)."""
    return -_log_probabilities(logits)[..., token]


def rank(logits: Tensor, token: int) -> Tensor:
    """Place of a token by descending probability, from 1, (K,) int64."""
    return (logits > logits[..., token, None]).sum(-1) + 1


register_metric("tv", total_variation)
register_metric("kl", kl_divergence)
register_metric("js", jensen_shannon)
register_metric("top1", same_top1)
register_metric("nucleus", nucleus_recovery)
register_metric("nucleus_unordered", nucleus_recovery_unordered)
register_metric("entropy", entropy)
