"""How a branch writes the residual stream, read as a linear map: output projections and norms at their actual scale.

Axes: H query heads, V value head size, D hidden size, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnknownLayoutError


def head_weights(projection: nn.Module, n_heads: int) -> Tensor:
    """The output projection split by head, (H, V, D) float32: head h writes value @ weights[h].

    Read from the weight of a linear layer; of any other module (quantised, with an adapter) by what it does to
    the unit vectors.
    """
    weight: Tensor
    if isinstance(projection, Conv1D):
        weight = projection.weight
    elif type(projection) is nn.Linear:
        weight = projection.weight.T
    else:
        weight = _response(projection)
    return weight.detach().float().unflatten(0, (n_heads, -1))


def _response(projection: nn.Module) -> Tensor:
    size = getattr(projection, "in_features", None)
    if size is None:
        raise UnknownLayoutError(f"{type(projection).__name__} is no linear layer that densitometer can read")
    parameter = next(projection.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else None
    with torch.no_grad():
        unit = torch.eye(size, device=device, dtype=dtype)
        return projection(unit) - projection(torch.zeros_like(unit[:1]))


@dataclass(frozen=True)
class Norm:
    """A norm at its actual scale: norm(x) = scale * weight * (x - mean if centred) + constant.

    Args:
        weight: (D,) float32; constant: (D,) float32.
        scale: (T,) float32, positive, one per token.
        centred: whether the mean over D is taken off first (LayerNorm).
    """

    weight: Tensor
    constant: Tensor
    scale: Tensor
    centred: bool


def linearise(norm: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Norm:
    """Find how a norm acts, by what it does and not by its name, and its scale at x.

    Args:
        norm: RMSNorm or LayerNorm of any make, over the last axis.
        x: (T, D), its input; y: (T, D), its output there.

    Raises:
        UnknownLayoutError: it is neither kind of norm.
    """
    size = x.shape[-1]
    probe = torch.linspace(1.0, 2.0, size, device=x.device) * 64
    probe[1::2] *= -1
    dtype = next((p.dtype for p in getattr(norm, "parameters", list)()), x.dtype)

    def apply(v: Tensor) -> Tensor:
        with torch.no_grad():
            return norm(v.to(dtype)[None, None])[0, 0].float()

    def unit(v: Tensor, centred: bool) -> Tensor:
        v = v - v.mean(-1, keepdim=True) if centred else v
        return v / v.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)

    constant = (apply(probe) + apply(-probe)) / 2
    fits = []
    for centred in (False, True):
        weight = (apply(probe) - apply(-probe)) / 2 / unit(probe, centred)
        direction = weight * (x.float() - x.float().mean(-1, keepdim=True) if centred else x.float())
        rest = y.float() - constant
        scale = (direction * rest).sum(-1) / direction.square().sum(-1).clamp_min(1e-30)
        gap = (rest - scale[:, None] * direction).norm() / rest.norm().clamp_min(1e-30)
        fits.append((float(gap), Norm(weight, constant, scale, centred)))
    gap, best = min(fits, key=lambda fit: fit[0])
    if gap > 0.02:
        raise UnknownLayoutError(
            f"{type(norm).__name__} after a branch is neither an RMSNorm nor a LayerNorm: at its actual scale it is off "
            f"by {gap:.1e}"
        )
    return best
