"""Importances from gradients of the prediction: what removing an edge costs, to second order.

Let m_e be the mask of edge e, 1 in the full model, z(m) the logits and p their softmax. Removing e changes the prediction by
KL ~ 1/2 s_e^2 with the Fisher information of the mask,

    s_e^2 = E_{y ~ p} [ (d log p_y / d m_e)^2 ]                                    (method.md, section 2)

With K random projections c_k = sqrt(p) * eps - p (sqrt(p) . eps), eps ~ N(0, 1) per token of the vocabulary,

    s_e^2 ~ 1/K sum_k ( d (c_k . z) / d m_e )^2.

All masks are one leaf tensor: one forward pass and K backward passes, through activations only, score every edge.
Norms pass gradients as if their scale were a constant. Importances rank globally: they are not normalised per node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import ModelError
from ...models.placement import is_out_of_memory
from ..forward_pass import ForwardPass, PerLevel

PROJECTIONS = 8
BOUND_PROJECTIONS = 4
SLOPE_BYTES = 128 * 2**20  # of the gradients that are computed at once


def fisher(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Root of the Fisher information of each edge's mask (8 random projections), nats ** 0.5."""
    squares = fisher_information(forward, random_projections(forward.logits, PROJECTIONS, seed))
    return forward.space.views(squares.sqrt())


def random_projections(logits: Tensor, count: int, seed: int) -> Tensor:
    """Standard normal projections, (count, vocabulary) float32.

    They are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, logits.shape[-1], generator=generator).to(logits.device)


def bound(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|g_n|_2 |e|_2, g_n the root-mean-square Fisher gradient of the target node: an upper bound of `fisher`.

    Needs gradients of nodes only, from 4 random projections, and no gradient per edge.
    """
    eps = random_projections(forward.logits, BOUND_PROJECTIONS, seed)
    scores = []
    for edges, gradient in zip(forward.levels(), _node_gradients(forward, eps), strict=True):
        attention = None
        if edges.weights is not None:
            attention = edges.attention_sizes(lambda v: v.norm(dim=-1)) * gradient[:, None]
        mlp = None if edges.units is None else edges.units.sizes(lambda v: v.norm(dim=-1)) * gradient
        scores.append(PerLevel(edges.residual.norm(dim=-1) * gradient, attention, mlp))
    return scores


def fisher_information(forward: ForwardPass, eps: Tensor) -> Tensor:
    """s_e^2 of every edge, (F,) float32, averaged over the projections eps (K, vocabulary)."""
    levels, leaves = _mask_leaves(forward, torch.ones(forward.space.size, device=forward.logits.device))
    squares = [torch.zeros_like(on) for on in leaves]
    with torch.enable_grad(), forward.model.adapter.differentiable():
        logits = forward.model.adapter.masked_logits(forward.ids, forward.block_masks_of(levels))
        for slopes in _slopes(logits, eps, leaves):
            for square, slope in zip(squares, slopes, strict=True):
                square += slope.square().sum(0)
    return torch.cat([square.detach().flatten() for square in squares]) / len(eps)


def divergence_slopes(forward: ForwardPass, masks: Tensor) -> Tensor:
    """d KL(full || masked) / d mask of every edge, (F,) float32, in the run under the masks (F,) in [0, 1]."""
    levels, leaves = _mask_leaves(forward, masks)
    with torch.enable_grad(), forward.model.adapter.differentiable():
        logits = forward.model.adapter.masked_logits(forward.ids, forward.block_masks_of(levels))
        full = forward.logits.to(logits.device).log_softmax(-1)
        kl = (full.exp() * (full - logits[0].log_softmax(-1))).sum()
        return torch.cat([slope.flatten() for slope in gradients_of(kl, leaves)])


def _mask_leaves(forward: ForwardPass, masks: Tensor) -> tuple[list[PerLevel], list[Tensor]]:
    """Masks (F,) as a batch of one, a leaf for each level and kind, and all leaves in flat order.

    Slices of one flat leaf would not do: the gradient of each, of some hundred, would be as long as
    all of the edges.
    """
    levels = [
        PerLevel(*(None if on is None else on.clone().requires_grad_() for on in level))
        for level in forward.space.views(masks[None])
    ]
    return levels, [on for level in levels for on in level if on is not None]


def _run_to_nodes(forward: ForwardPass, masks: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (1, V) under masks (1, F), and each level's nodes (1, T, D)."""
    recorded: list[dict[str, Any]] = [{} for _ in forward.records]
    logits = forward.model.adapter.masked_logits(forward.ids, forward.block_masks(masks), recorded)
    return logits, [r[name] for r in recorded for name in ("attention_sum", "mlp_sum") if r[name] is not None]


def _node_gradients(forward: ForwardPass, eps: Tensor) -> list[Tensor]:
    """Root-mean-square Fisher gradient of each level's nodes, (T,) each."""
    with torch.enable_grad(), forward.model.adapter.differentiable():
        logits, nodes = _run_to_nodes(forward, _all_on(forward))
        squares = [torch.zeros(forward.n_tokens, device=node.device) for node in nodes]
        for slopes in _slopes(logits, eps, nodes):
            for square, slope in zip(squares, slopes, strict=True):
                square += slope.float().square().sum((0, 1, 3))  # (k, 1, T, D)
    return [(square / len(eps)).sqrt() for square in squares]


def _all_on(forward: ForwardPass) -> Tensor:
    """Masks of the full model, (1, F) float32, that ask for a gradient."""
    return torch.ones(1, forward.space.size, device=forward.logits.device, requires_grad=True)


def _slopes(logits: Tensor, eps: Tensor, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Gradients d (c_k . z) / d inputs, (k, ...) each.

    Projections are taken together, as many as fit into `SLOPE_BYTES`.

    Several backward passes at once are products of larger matrices. Where a layer cannot do that, they follow each other.
    """
    directions = fisher_directions(logits[0], eps)
    step = max(1, SLOPE_BYTES // sum(x.numel() * x.element_size() for x in inputs))
    done = 0
    while done < len(directions):
        some = directions[done : done + step, None]
        last = done + len(some) == len(directions)
        if len(some) > 1:
            try:
                # the graph is kept, should a layer fail
                found = gradients_of(logits, inputs, some, retain_graph=True, is_grads_batched=True)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                step = 1
                continue
        else:
            single = gradients_of(logits, inputs, some[0], retain_graph=not last)
            found = tuple(slope[None] for slope in single)
        done += len(some)
        yield found


def fisher_directions(logits: Tensor, eps: Tensor) -> Tensor:
    """Directions c_k = sqrt(p) eps_k - p (sqrt(p) . eps_k) of logits (vocabulary,), (K, vocabulary).

    The squares of the slopes along them sum, in expectation, to K times the Fisher information.
    """
    root = logits.detach().softmax(-1).sqrt()
    return root * eps - root.square() * (eps @ root)[:, None]


def gradients_of(output: Tensor, inputs: Sequence[Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Call torch.autograd.grad.

    Where a layer passes no gradient, raise an error that names a remedy.
    """
    try:
        return torch.autograd.grad(output, list(inputs), *args, **kwargs)
    except RuntimeError as error:
        if not any(
            words in str(error) for words in ("does not require grad", "not have been used in the graph")
        ):
            raise
        raise ModelError(
            "a layer of this model passes no gradient to its input, which `fisher`, `bound`, `best` and `learned` need (they need no "
            f"gradient of parameters): {error}. Use importance='l1', which needs none"
        ) from error
