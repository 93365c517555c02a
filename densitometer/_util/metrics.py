"""Metrics of how close a trace's prediction is to the full model's, as functions of logits.

p is the full model's distribution and q a trace's. Functions take K traces at once; V is the size
of the vocabulary. Softmax is in float32, sums are in float64.

    tv        0.5 sum |p - q|, in [0, 1]
    kl        sum p (log p - log q), nats
    js        Jensen-Shannon divergence, nats, in [0, log 2]
    top1      whether the most probable token is the same
    nucleus   largest k in NUCLEUS_SHARES for which the ordered top-k % lists agree (0 if none do).
              A list is the smallest prefix, by descending probability, whose mass reaches k %
    nucleus_unordered   as nucleus, with the lists compared as sets
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
# Logits that are compared at a time. Metrics hold about five float64 numbers for each.
NUMBERS = 2**19

Metric = Callable[[Tensor, Tensor], Tensor]

_REGISTRY: dict[str, Metric] = {}


def register_metric(name: str, function: Metric) -> None:
    """Register a metric. It becomes a column of every curve that is measured from then on.

    Args:
        name: name of the metric and of its column.
        function: function of the full model's logits (V,) and the traces' (K, V), both float32,
            that returns (K,).

    Raises:
        InputError: the name is taken.
        ArgumentTypeError: the name is not a string, or the function cannot be called.

    Examples:
        >>> dm.register_metric("largest_gap", lambda full, traces: (full - traces).abs().amax(-1))
        >>> "largest_gap" in dm.measure(model, "The captain", sizes=[0.5, 1.0]).curve.columns
        True
    """
    checked_name("a metric", name, function)
    if name in _REGISTRY:
        raise InputError(f"a metric named {name!r} exists already; choose another name than {list_metrics()}")
    _REGISTRY[name] = function


def list_metrics() -> list[str]:
    """Names of all metrics, in the order of the curve's columns.

    Examples:
        >>> dm.list_metrics()
        ['tv', 'kl', 'js', 'top1', 'nucleus', 'nucleus_unordered', 'entropy']
    """
    return list(_REGISTRY)


def compute_metrics(full: Tensor, traces: Tensor) -> dict[str, Tensor]:
    """Compute every metric of K traces, (K,) each, by name.

    Args:
        full: (V,), the full model's logits.
        traces: (K, V), the traces' logits.

    Raises:
        PluginError: a registered metric returned a wrong shape, or a value that is not finite.
    """
    slices = traces.split(max(1, NUMBERS // full.shape[-1]))
    return {
        name: torch.cat([_computed(name, function, full, part) for part in slices])
        for name, function in _REGISTRY.items()
    }


def _computed(name: str, function: Metric, full: Tensor, traces: Tensor) -> Tensor:
    """Compute one metric, and check what its function returns."""
    values = function(full, traces)
    if not isinstance(values, Tensor):
        raise PluginError(
            f"metric {name!r} returned {type(values).__name__}, expected a tensor of shape "
            f"{(traces.shape[0],)}"
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
    """Total variation distance, 0.5 sum |p - q|, (K,), in [0, 1]."""
    return 0.5 * (_probabilities(full) - _probabilities(traces)).abs().sum(-1)


def kl_divergence(full: Tensor, traces: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p || q) in nats, (K,)."""
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
    return 0.0 - (log_q.exp() * log_q).sum(-1)  # a minus sign would make -0.0 of 0


def nucleus_recovery(full: Tensor, traces: Tensor) -> Tensor:
    """Largest k for which the ordered top-k % token lists agree, (K,) int64. 0 if none do."""
    return _nucleus(full, traces, ordered=True)


def nucleus_recovery_unordered(full: Tensor, traces: Tensor) -> Tensor:
    """Largest k for which the top-k % token lists agree as sets, (K,) int64. 0 if none do."""
    return _nucleus(full, traces, ordered=False)


def _nucleus(full: Tensor, traces: Tensor, ordered: bool) -> Tensor:
    """Compute `nucleus_recovery`, or the unordered version, without sorting the traces' tokens.

    Take a trace's probabilities in the full model's order. The first n tokens of both lists are the
    same set if each of the first n probabilities is above all others. They are in the same order if
    the first n also decrease. Ties are ordered by token id; traces with ties are sorted.
    """
    p = _probabilities(full)
    p_sorted, p_tokens = p.sort(descending=True, stable=True)
    masses = torch.tensor([share / 100 for share in NUCLEUS_SHARES], dtype=torch.float64, device=full.device)
    # (N,) different lengths of the full model's lists, and (M,) the length of each share
    lengths, at = _prefix_lengths(p_sorted[None], masses)[0].unique(return_inverse=True)
    q = torch.softmax(traces.float(), dim=-1)
    # (K, V), in the full model's order
    taken = q[:, p_tokens]
    # tokens between one length and the next, and after the last
    parts = taken.tensor_split(lengths.tolist(), dim=-1)
    # nothing comes after a list that holds every token
    empty = taken.new_full((len(taken),), -1.0)
    # (K, N), smallest of the first n probabilities
    least = torch.stack([part.amin(-1) for part in parts[:-1]], dim=-1).cummin(-1).values
    # (K, N), largest of the others
    most = torch.stack([part.amax(-1) if part.shape[-1] else empty for part in parts[1:]], dim=-1)
    most = most.flip(-1).cummax(-1).values.flip(-1)
    sums = torch.stack([part.sum(-1, dtype=torch.float64) for part in parts[:-1]], dim=-1).cumsum(-1)
    # from one column per length to one per share
    least, most, sums, lengths = least[:, at], most[:, at], sums[:, at], lengths[at]
    # whether the trace's own list has n tokens too: n reach the mass, and n - 1 do not
    reaches = (sums >= masses) & ((sums - least < masses) | (lengths == 1))
    same = (least >= most) & reaches
    equal = least == most
    if ordered:
        head = taken[:, : int(lengths.max())]
        steps = torch.cat([head.new_full((len(head), 1), -1.0), head[:, 1:] - head[:, :-1]], dim=-1)
        rises, stays = (
            step.to(torch.int32).cumsum(-1)[:, lengths - 1] > 0 for step in (steps > 0, steps == 0)
        )
        same, equal = same & ~rises, equal | stays
    tied = (same & equal).any(-1)
    best = torch.zeros(len(q), dtype=torch.long, device=full.device)
    for share, agree in zip(NUCLEUS_SHARES, same.T, strict=True):
        best[agree] = share
    for row in tied.nonzero()[:, 0].tolist():
        best[row] = _nucleus_by_sorting(p_tokens, lengths, q[row].double(), masses, ordered)
    return best


def _nucleus_by_sorting(p_tokens: Tensor, lengths: Tensor, q: Tensor, masses: Tensor, ordered: bool) -> int:
    """Nucleus recovery of one trace, by sorting its probabilities q (V,)."""
    q_sorted, q_tokens = q.sort(descending=True, stable=True)
    largest = 0
    for share, n_p, n_q in zip(
        NUCLEUS_SHARES, lengths.tolist(), _prefix_lengths(q_sorted[None], masses)[0].tolist(), strict=True
    ):
        ours, theirs = p_tokens[:n_p], q_tokens[:n_q]
        if not ordered:
            ours, theirs = ours.sort().values, theirs.sort().values
        if n_p == n_q and torch.equal(ours, theirs):
            largest = share
    return largest


def _prefix_lengths(ordered: Tensor, masses: Tensor) -> Tensor:
    """Smallest number of first entries of each row whose sum reaches each mass, (K, M).

    Args:
        ordered: (K, V), probabilities in decreasing order.
        masses: (M,).
    """
    total = ordered.cumsum(-1)
    reached = torch.searchsorted(total, masses.expand(len(total), -1).contiguous()) + 1
    return reached.clamp_max(ordered.shape[-1])


def surprisal(logits: Tensor, token: int) -> Tensor:
    """Surprisal of a token, -log q(token), in nats, (K,)."""
    return 0.0 - _log_probabilities(logits)[..., token]


def rank(logits: Tensor, token: int) -> Tensor:
    """Rank of a token by descending probability, from 1, (K,) int64. Tied tokens share a rank."""
    return (logits > logits[..., token, None]).sum(-1) + 1


register_metric("tv", total_variation)
register_metric("kl", kl_divergence)
register_metric("js", jensen_shannon)
register_metric("top1", same_top1)
register_metric("nucleus", nucleus_recovery)
register_metric("nucleus_unordered", nucleus_recovery_unordered)
register_metric("entropy", entropy)
