"""How a branch writes the residual stream, read as a linear map: output projections and norms at their actual scale.

Axes: H query heads, V value head size, D hidden size, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnknownLayoutError
from .blocks import first, instance_attribute
from .weights import is_readable

_UNITS = 512  # unit vectors that a projection is asked about at once
# Of a layer that computes more coarsely than its dtype: bfloat16 inside gives 3e-3, eight-bit activations 6e-3 (dev/LOG.md).
LINEAR_TOLERANCE = 3e-2
_LENGTH = 64.0  # of each: so that in half precision a bias does not round the weight away


def head_weights(projection: nn.Module, n_heads: int, read: Tensor, wrote: Tensor) -> Tensor:
    """The output projection split by head, (H, V, D) float32: head h writes value @ weights[h].

    Read from the weight of a linear layer, without a copy where that is float32 already; of any other module (quantised,
    with an adapter, offloaded) by what it does to the unit vectors.

    Args:
        read: (T, H V), an input of the projection: of that dtype, and on that device, it is asked.
        wrote: (T, D), its output there.

    Raises:
        UnknownLayoutError: it is not linear: what it wrote is not the sum of what it makes of the unit vectors.
    """
    weight: Any
    if not is_readable(projection):
        weight = _response(projection, read)
        always = constant_of(projection, read)
        expected = read.float() @ weight + (0.0 if always is None else always)
        gap = float((wrote.float() - expected).norm() / wrote.float().norm().clamp_min(1e-30))
        if not gap <= LINEAR_TOLERANCE:
            raise UnknownLayoutError(
                f"the output projection {type(projection).__name__} is not linear: what it writes is off by {gap:.1e} from "
                "the sum of its answers to unit vectors, so the heads' shares of it cannot be separated"
            )
    elif isinstance(projection, Conv1D):
        weight = projection.weight
    else:
        weight = projection.weight.T
    split: Tensor = weight.detach().float().unflatten(0, (n_heads, -1))
    return split


def constant_of(projection: nn.Module, like: Tensor) -> Tensor | None:
    """Constant that the projection adds whatever it reads, (D,) float32.

    None where it adds nothing.
    """
    if is_readable(projection):
        bias: Tensor | None = projection.bias  # type: ignore[assignment]
        return None if bias is None else bias.detach().float()
    with torch.no_grad():
        return first(projection(torch.zeros_like(like[None, :1])))[0, 0].float()


def _response(projection: nn.Module, like: Tensor) -> Tensor:
    """Response to each unit vector, (H V, D) float32, computed some at a time."""
    size = like.shape[-1]
    rows = []
    with torch.no_grad():
        constant = first(projection(like.new_zeros(1, 1, size)))[0].float()
        for start in range(0, size, _UNITS):
            units = like.new_zeros(min(_UNITS, size - start), size)
            units.diagonal(start).fill_(_LENGTH)
            rows.append((first(projection(units[None]))[0].float() - constant) / _LENGTH)
    return torch.cat(rows)


_LIFTED = 1e-20  # the least size of an input at which a norm's scale is found


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


def linearise(norm: Callable[..., Tensor], x: Tensor, y: Tensor) -> Norm:
    """Find how a norm acts, by what it does and not by its name, and its scale at x.

    Args:
        norm: RMSNorm or LayerNorm of any make, over the last axis.
        x: (T, D), its input; y: (T, D), its output there.

    Raises:
        UnknownLayoutError: the norm is neither an RMSNorm nor a LayerNorm.
    """
    probe = torch.full_like(x[0], 64.0, dtype=torch.float32)  # normalised, it is exact in every dtype
    probe[1::2] *= -1

    def apply(v: Tensor) -> Tensor:
        with torch.no_grad():
            return norm(v.to(x.dtype)[None, None])[0, 0].float()

    def unit(v: Tensor, centred: bool) -> Tensor:
        v = v - v.mean(-1, keepdim=True) if centred else v
        return v / v.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)

    x, y = _lifted(norm, x, y)
    constant = (apply(probe) + apply(-probe)) / 2
    fits = []
    for centred in (False, True):
        weight = (apply(probe) - apply(-probe)) / 2 / unit(probe, centred)
        direction = weight * (x.float() - x.float().mean(-1, keepdim=True) if centred else x.float())
        rest = y.float() - constant
        exact = direction.double()  # squares of a stream of which next to nothing is left would be 0
        scale = (exact * rest).sum(-1) / exact.square().sum(-1).clamp_min(1e-300)
        gap = (rest - scale[:, None] * exact).norm() / rest.double().norm().clamp_min(1e-300)
        fits.append((float(gap), Norm(weight, constant, scale.float(), centred)))
    gap, best = min(fits, key=lambda fit: fit[0])
    if gap > 0.02:
        raise UnknownLayoutError(
            f"{type(norm).__name__} after a branch is neither an RMSNorm nor a LayerNorm: at its actual scale it is off "
            f"by {gap:.1e}"
        )
    return best


def _lifted(norm: Callable[..., Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Make larger those inputs (T, D), and outputs (T, D), that have fewer digits than their dtype.

    These are numbers near the least that the dtype has.

    A norm's scale is the same for all inputs that are small beside its epsilon.
    """
    largest = x.abs().amax(-1, keepdim=True)
    if torch.finfo(x.dtype).tiny > _LIFTED * 1e-10:
        return x, y  # float16 has no such numbers that are small beside an epsilon
    lost = (largest > 0) & (largest < _LIFTED)
    if not bool(lost.any()):
        return x, y
    with torch.no_grad():
        larger = torch.where(lost, x.double() * (_LIFTED / largest.double().clamp_min(1e-60)), x.double()).to(
            x.dtype
        )
        return larger, torch.where(lost, norm(larger[None])[0].to(y.dtype), y)


@contextmanager
def scale_held(norm: nn.Module) -> Iterator[None]:
    """Hold a norm's scale constant for gradients, while this context lasts.

    Its output stays the same.

    A module that is not a norm (an identity, say) is left as it is.
    """
    forward = norm.forward

    def held(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            y = forward(x, *args, **kwargs)
        x = x.to(y.device)  # a hook may bring the norm its input from another device
        with torch.no_grad():
            if y.shape != x.shape or torch.equal(y, x):
                return x
            how = linearise(forward, x.flatten(0, -2), y.flatten(0, -2))
            scale = how.scale.view(*x.shape[:-1], 1)
        centred = x - x.mean(-1, keepdim=True) if how.centred else x
        linear = centred.float() * (how.weight * scale)
        return y + (linear - linear.detach()).to(y.dtype)

    with instance_attribute(norm, "forward", held):
        yield
