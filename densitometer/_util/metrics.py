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
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError, PluginError
from .arguments import checked_name

NUCLEUS_SHARES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
# Logits that are compared at a time. Metrics hold about five float64 numbers for each.
NUMBERS = 2**19

Metric = Callable[[Tensor, Tensor], Tensor]


class Prediction:
    """Distributions of some logits (..., V). Each form is computed once, when it is first needed.

    Args:
        logits: (..., V).
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @cached_property
    def probabilities(self) -> Tensor:
        """Probabilities, (..., V) float32."""
        return torch.softmax(self.logits.float(), dim=-1)

    @cached_property
    def logs(self) -> Tensor:
        """Log probabilities, (..., V) float64."""
        return torch.log_softmax(self.logits.float(), dim=-1).double()

    @cached_property
    def masses(self) -> Tensor:
        """Probabilities that belong to `logs`, (..., V) float64."""
        return self.logs.exp()

    @cached_property
    def lists(self) -> tuple[Tensor, Tensor]:
        """Nucleus lists of one distribution (V,): its most probable tokens up to each share.

        Returns:
            All tokens by descending probability, (V,) int64.
            Length of the list of each share, (M,) int64.
        """
        ordered, tokens = self.probabilities.double().sort(descending=True, stable=True)
        return tokens, _prefix_lengths(ordered[None], _shares(ordered))[0]


class Comparison:
    """The metrics of K traces. What several of them need is computed once.

    Args:
        full: the full model's prediction, of logits (V,).
        traces: the traces' predictions, of logits (K, V).
    """

    def __init__(self, full: Prediction, traces: Prediction) -> None:
        self.full, self.traces = full, traces

    def tv(self) -> Tensor:
        return 0.5 * (self.full.probabilities.double() - self.traces.probabilities.double()).abs().sum(-1)

    def kl(self) -> Tensor:
        return (self.full.masses * (self.full.logs - self.traces.logs)).sum(-1).clamp_min(0.0)

    def js(self) -> Tensor:
        log_p, log_q = self.full.logs, self.traces.logs
        log_middle = torch.logaddexp(log_p, log_q) - math.log(2)
        halves = (self.full.masses * (log_p - log_middle)).sum(-1)
        halves = halves + (self.traces.masses * (log_q - log_middle)).sum(-1)
        return (0.5 * halves).clamp_min(0.0)

    def top1(self) -> Tensor:
        return self.traces.logits.argmax(-1) == self.full.logits.argmax(-1)

    def entropy(self) -> Tensor:
        # a minus sign would make -0.0 of 0
        return 0.0 - (self.traces.masses * self.traces.logs).sum(-1)

    def nucleus(self) -> Tensor:
        return self._nuclei[0]

    def nucleus_unordered(self) -> Tensor:
        return self._nuclei[1]

    @cached_property
    def _nuclei(self) -> tuple[Tensor, Tensor]:
        """Nucleus recovery, ordered and unordered, without sorting the traces' tokens.

        Take a trace's probabilities in the full model's order. The first n tokens of both lists are
        the same set if each of the first n probabilities is above all others. They are in the same
        order if the first n also decrease. Ties are ordered by token id; traces with ties are
        sorted.
        """
        p_tokens, of_share = self.full.lists
        masses = _shares(of_share)
        # (N,) different lengths of the full model's lists, and (M,) the length of each share
        lengths, at = of_share.unique(return_inverse=True)
        q = self.traces.probabilities
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
        same, equal = (least >= most) & reaches, least == most
        head = taken[:, : int(lengths.max())]
        steps = torch.cat([head.new_full((len(head), 1), -1.0), head[:, 1:] - head[:, :-1]], dim=-1)
        rises, stays = (
            step.to(torch.int32).cumsum(-1)[:, lengths - 1] > 0 for step in (steps > 0, steps == 0)
        )
        return (
            _largest_share(self.full, q, same & ~rises, equal | stays, ordered=True),
            _largest_share(self.full, q, same, equal, ordered=False),
        )


_REGISTRY: dict[str, Callable[[Comparison], Tensor]] = {}


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
    _REGISTRY[name] = lambda pair: function(pair.full.logits, pair.traces.logits)


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
    prediction, step = Prediction(full), max(1, NUMBERS // full.shape[-1])
    values: dict[str, list[Tensor]] = {name: [] for name in _REGISTRY}
    for part in traces.split(step):
        pair = Comparison(prediction, Prediction(part))
        for name, function in _REGISTRY.items():
            values[name].append(_computed(name, function, pair))
    return {name: torch.cat(parts) for name, parts in values.items()}


def _computed(name: str, function: Callable[[Comparison], Tensor], pair: Comparison) -> Tensor:
    """Compute one metric, and check what its function returns."""
    values, n_traces = function(pair), len(pair.traces.logits)
    if not isinstance(values, Tensor):
        raise PluginError(
            f"metric {name!r} returned {type(values).__name__}, expected a tensor of shape {(n_traces,)}"
        )
    if tuple(values.shape) != (n_traces,):
        raise PluginError(f"metric {name!r} returned shape {tuple(values.shape)}, expected {(n_traces,)}")
    if not bool(values.isfinite().all()):
        raise PluginError(
            f"metric {name!r} returned {float(values[~values.isfinite()][0])}, expected finite values"
        )
    return values


def total_variation(full: Tensor, traces: Tensor) -> Tensor:
    """Total variation distance, 0.5 sum |p - q|, (K,), in [0, 1].

    Args:
        full: (V,), or (K, V) with one for each trace.
        traces: (K, V).
    """
    own = Prediction(full)
    if full.dim() > 1 or traces.dim() < 2:
        return Comparison(own, Prediction(traces)).tv()
    parts = traces.split(max(1, NUMBERS // full.shape[-1]))
    return torch.cat([Comparison(own, Prediction(part)).tv() for part in parts])


def kl_divergence(full: Tensor, traces: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p || q) in nats, (K,)."""
    return Comparison(Prediction(full), Prediction(traces)).kl()


def same_top1(full: Tensor, traces: Tensor) -> Tensor:
    """Whether the most probable token is the same, (K,) bool."""
    return Comparison(Prediction(full), Prediction(traces)).top1()


def entropy(full: Tensor, traces: Tensor) -> Tensor:
    """Entropy of each trace's distribution in nats, (K,)."""
    return Comparison(Prediction(full), Prediction(traces)).entropy()


def _shares(like: Tensor) -> Tensor:
    """Masses of the lists of the nucleus, (M,) float64, on the device of a tensor."""
    return torch.tensor(NUCLEUS_SHARES, dtype=torch.float64, device=like.device) / 100


def _largest_share(full: Prediction, q: Tensor, same: Tensor, tied: Tensor, ordered: bool) -> Tensor:
    """Largest share of each trace whose lists are the same, (K,) int64. 0 if none are.

    Args:
        full: the full model's prediction.
        q: (K, V), the traces' probabilities.
        same: (K, M) bool, whether the lists of a share are the same.
        tied: (K, M) bool, whether that rests on a tie. Then the trace's tokens are sorted.
        ordered: whether lists are compared in their order.
    """
    best = torch.zeros(len(q), dtype=torch.long, device=q.device)
    for share, agree in zip(NUCLEUS_SHARES, same.T, strict=True):
        best[agree] = share
    for row in (same & tied).any(-1).nonzero()[:, 0].tolist():
        best[row] = _nucleus_by_sorting(*full.lists, q[row].double(), ordered)
    return best


def _nucleus_by_sorting(p_tokens: Tensor, lengths: Tensor, q: Tensor, ordered: bool) -> int:
    """Nucleus recovery of one trace, by sorting its probabilities q (V,)."""
    q_sorted, q_tokens = q.sort(descending=True, stable=True)
    largest, of_trace = 0, _prefix_lengths(q_sorted[None], _shares(q))[0]
    for share, n_p, n_q in zip(NUCLEUS_SHARES, lengths.tolist(), of_trace.tolist(), strict=True):
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
    return 0.0 - Prediction(logits).logs[..., token]


def rank(logits: Tensor, token: int) -> Tensor:
    """Rank of a token by descending probability, from 1, (K,) int64. Tied tokens share a rank."""
    return (logits > logits[..., token, None]).sum(-1) + 1


_REGISTRY.update(
    tv=Comparison.tv,
    kl=Comparison.kl,
    js=Comparison.js,
    top1=Comparison.top1,
    nucleus=Comparison.nucleus,
    nucleus_unordered=Comparison.nucleus_unordered,
    entropy=Comparison.entropy,
)
