"""Importances from gradients of the prediction: what removing an edge costs, to second order.

Let m_e be the mask of edge e, 1 in the full model, z(m) the logits and p their softmax. Removing e
changes the prediction by KL ~ 1/2 s_e^2, where s_e^2 is the Fisher information of the mask
(docs/method.md, section 2):

    s_e^2 = E_{y ~ p} [ (d log p_y / d m_e)^2 ]

It is estimated with K random projections c_k = sqrt(p) * eps - p (sqrt(p) . eps), where eps is
drawn from N(0, 1) for each token of the vocabulary:

    s_e^2 ~ 1/K sum_k ( d (c_k . z) / d m_e )^2

One forward pass and K backward passes, through activations only, give s_e of every edge. Norms pass
gradients as if their scale were a constant. Edges are comparable across nodes: importances are not
divided by sums over the edges into a node.

If the pass has a target (`targets.py`) with the value v, one direction takes the place of the
projections: the gradient of v with respect to the logits. So s_e is |d v / d m_e|, the size of the
change of v if e is removed, to first order, as in attribution patching (arXiv 2310.10348).

If the pass has a counterfactual, an edge's mask interpolates between its vector here (1) and its
vector there (0). So the derivative with respect to the mask is along the difference of the two.

What this file does not do: it computes no gradients of parameters, and it ignores that removals
interact (`search.py` does not).

Axes: F flat edge axis, K projections, k projections that are computed at once, T tokens, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import ModelError
from ...models.placement import is_out_of_memory
from ..edge_source import per_target
from ..forward_pass import ForwardPass, PerLevel
from ..targets import TargetScore

PROJECTIONS = 8
BOUND_PROJECTIONS = 4
SLOPE_BYTES = 128 * 2**20  # most bytes of gradients that are computed at once


def fisher(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """Root of the Fisher information of each edge's mask (8 random projections), nats ** 0.5.

    With a target it is the size of the slope of the target's value by each edge's mask.
    """
    squares = fisher_information(forward, random_projections(forward.logits, PROJECTIONS, seed))
    return forward.space.views(squares.sqrt())


def random_projections(logits: Tensor, count: int, seed: int) -> Tensor:
    """Draw standard normal numbers, (count, vocabulary) float32, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, logits.shape[-1], generator=generator).to(logits.device)


def bound(forward: ForwardPass, seed: int = 0) -> list[PerLevel]:
    """|g_n|_2 |e|_2, an upper bound of `fisher` from the gradients g_n of target nodes n.

    g_n is the root mean square of the gradients of 4 random projections; with a target, the
    gradient of the target's value. No gradient per edge is needed.
    """
    eps = random_projections(forward.logits, BOUND_PROJECTIONS, seed)
    importance = []
    for sizes, gradient in zip(_changes(forward), _node_gradients(forward, eps), strict=True):
        importance.append(times_gradient(sizes, gradient))
    return importance


def times_gradient(norms: PerLevel, gradient: Tensor) -> PerLevel:
    """Multiply norms of edges by those of their targets' gradients, (t,)."""
    return PerLevel(*(None if norm is None else norm * per_target(gradient, norm) for norm in norms))


def _changes(forward: ForwardPass) -> Iterator[PerLevel]:
    """Norms of what the stream loses if an edge is turned off, level by level.

    That is the edge's vector; with a counterfactual, its difference from the vector there.
    """
    if forward.counterfactual is None:
        yield from (edges.sizes(lambda v: v.norm(dim=-1)) for edges in forward.levels())
        return
    for here, there in zip(forward.levels(), forward.counterfactual.levels(), strict=True):
        attention = None if here.weights is None else here.attention_changes(there)
        mlp = None
        if here.mlp is not None and there.mlp is not None:
            mlp = (here.mlp - there.mlp).norm(dim=-1)[None]
        yield PerLevel((here.residual - there.residual).norm(dim=-1), attention, mlp)


def fisher_information(forward: ForwardPass, eps: Tensor) -> Tensor:
    """Estimate the Fisher information s_e^2 of every edge's mask, (F,) float32.

    With a target it is the squared slope of the target's value.

    Args:
        eps: (K, vocabulary), standard normal numbers. With a target they are not used.
    """
    levels, leaves = _mask_leaves(forward, torch.ones(forward.space.size, device=forward.logits.device))
    squares = [torch.zeros_like(on) for on in leaves]  # sums over the projections
    with torch.enable_grad(), forward.model.adapter.differentiable():
        logits = forward.model.adapter.masked_logits(forward.ids, forward.block_masks_of(levels))
        directions = directions_of(logits[0], eps, forward.target)
        for slopes in _slopes(logits, directions, leaves):
            for square, slope in zip(squares, slopes, strict=True):
                # slope: (k, *leaf), of the next k projections
                square += slope.square().sum(0)
    return torch.cat([square.detach().flatten() for square in squares]) / len(directions)


def divergence_slopes(forward: ForwardPass, masks: Tensor) -> Tensor:
    """Compute the slope of KL(full || masked) by the mask of every edge, (F,) float32.

    With a target it is the slope of (v(masked) - v(full))^2 / 2, for its value v.

    Args:
        masks: (F,) in [0, 1], the masks under which the model is run and differentiated.
    """
    levels, leaves = _mask_leaves(forward, masks)
    with torch.enable_grad(), forward.model.adapter.differentiable():
        logits = forward.model.adapter.masked_logits(forward.ids, forward.block_masks_of(levels))
        full = forward.logits.to(logits.device)
        if forward.target is None:
            log_full = full.log_softmax(-1)
            gap = (log_full.exp() * (log_full - logits[0].log_softmax(-1))).sum()  # KL, nats
        else:
            gap = (forward.target.value(logits)[0] - forward.target.value(full)).square() / 2
        return torch.cat([slope.flatten() for slope in gradients_of(gap, leaves)])


def _mask_leaves(forward: ForwardPass, masks: Tensor) -> tuple[list[PerLevel], list[Tensor]]:
    """Copy masks (F,) to leaf tensors that require gradients, one for each level and kind of edge.

    With one flat leaf, the gradient of each of its slices, about a hundred, would have F numbers.

    Returns:
        The leaves by level, each with a batch axis of 1.
        The same leaves in the order of the flat axis.
    """
    levels = [
        PerLevel(*(None if on is None else on.clone().requires_grad_() for on in level))
        for level in forward.space.views(masks[None])
    ]
    return levels, [on for level in levels for on in level if on is not None]


def _run_to_nodes(forward: ForwardPass, masks: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run the model under masks (1, F), and keep the nodes of each level.

    Returns:
        Logits, (1, vocabulary).
        The nodes of each level, (1, T, D) each.
    """
    recorded: list[dict[str, Any]] = [{} for _ in forward.records]
    logits = forward.model.adapter.masked_logits(forward.ids, forward.block_masks(masks), recorded)
    return logits, [r[name] for r in recorded for name in ("attention_sum", "mlp_sum") if r[name] is not None]


def _node_gradients(forward: ForwardPass, eps: Tensor) -> list[Tensor]:
    """Compute |g_n|_2 of each level's nodes, (T,) each, as a root mean square over eps."""
    with torch.enable_grad(), forward.model.adapter.differentiable():
        logits, nodes = _run_to_nodes(forward, _all_on(forward))
        squares = [torch.zeros(forward.n_tokens, device=node.device) for node in nodes]
        directions = directions_of(logits[0], eps, forward.target)
        for slopes in _slopes(logits, directions, nodes):
            for square, slope in zip(squares, slopes, strict=True):
                # slope: (k, 1, T, D), of the next k projections
                square += slope.float().square().sum((0, 1, 3))
    return [(square / len(directions)).sqrt() for square in squares]


def _all_on(forward: ForwardPass) -> Tensor:
    """Make the masks of the full model, (1, F) float32, as a leaf that requires a gradient."""
    return torch.ones(1, forward.space.size, device=forward.logits.device, requires_grad=True)


def _slopes(logits: Tensor, directions: Tensor, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Compute gradients of projected logits c_k . z by some tensors, a few projections at a time.

    Several backward passes at once use products of larger matrices, so they are faster. As many are
    run at once as fit into `SLOPE_BYTES`, or one after the other if a layer cannot run several.

    Args:
        logits: (1, vocabulary), z, with its graph.
        directions: (K, vocabulary), c_k.

    Yields:
        The gradient of each input, (k, ...) each, for the next k projections.
    """
    # number of projections at a time
    step = max(1, SLOPE_BYTES // sum(x.numel() * x.element_size() for x in inputs))
    done = 0
    while done < len(directions):
        some = directions[done : done + step, None]
        last = done + len(some) == len(directions)
        if len(some) > 1:
            try:
                # the graph is kept, because it is needed again if a layer fails
                slopes = gradients_of(logits, inputs, some, retain_graph=True, is_grads_batched=True)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                # a layer cannot do several at once: try again with one
                step = 1
                continue
        else:
            single = gradients_of(logits, inputs, some[0], retain_graph=not last)
            slopes = tuple(slope[None] for slope in single)
        done += len(some)
        yield slopes


def directions_of(logits: Tensor, eps: Tensor, target: TargetScore | None) -> Tensor:
    """Return the directions in logit space along which gradients are taken, (K, vocabulary).

    They are random (`fisher_directions`). With a target there is one, its value's gradient.

    Raises:
        ModelError: the target's value has no slope.
    """
    return fisher_directions(logits, eps) if target is None else target.slope(logits)[None]


def fisher_directions(logits: Tensor, eps: Tensor) -> Tensor:
    """Directions c_k = sqrt(p) eps_k - p (sqrt(p) . eps_k) in logits, (K, vocabulary).

    p is the prediction of the logits (vocabulary,), and eps are random, (K, vocabulary). The
    squares of the slopes along them sum, in expectation, to K times the Fisher information.
    """
    root = logits.detach().softmax(-1).sqrt()
    return root * eps - root.square() * (eps @ root)[:, None]


def gradients_of(output: Tensor, inputs: Sequence[Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Compute the gradients of an output with respect to inputs, by `torch.autograd.grad`.

    Raises:
        ModelError: a layer passes no gradient to its input.
    """
    try:
        return torch.autograd.grad(output, list(inputs), *args, **kwargs)
    except RuntimeError as error:
        if not any(
            words in str(error) for words in ("does not require grad", "not have been used in the graph")
        ):
            raise
        raise ModelError(
            "a layer of this model passes no gradient to its input, which `fisher`, `bound`, `best` and `learned` need "
            f"(they need no gradient of parameters): {error}. Use importance='l1', which needs none"
        ) from error
