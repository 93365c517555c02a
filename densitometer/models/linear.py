"""Linear maps from a branch to the residual stream: output projections, and norms at their scale.

An edge's vector is what a head or a neuron writes, carried through everything between it and the
stream. That is linear, or becomes so at the actual activations:

    output projection    its weight and bias, read where that is possible, else found by running the
                         module on unit vectors (quantised weights, adapters, offloaded weights)
    norm on a branch     norm(x) = scale * weight * (x - mean) + constant, where only the scale
                         depends on x (`linearise`)

What this file does not do: it does not say which edges there are (`graph/forward_pass.py`).

Axes: H query heads, V value head size, D hidden size, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnknownLayoutError
from .blocks import first, instance_attribute
from .tolerances import LINEAR_TOLERANCE
from .weights import is_readable

_UNITS = 512  # unit vectors that a projection is run on at once
# Length of each unit vector: long enough that in half precision a bias does not round the weight
# away.
_LENGTH = 64.0


def head_weights(projection: nn.Module, n_heads: int, read: Tensor, wrote: Tensor) -> Tensor:
    """Split the weight of an output projection by head: head h writes value @ weights[h].

    The weight of a plain linear layer is read, without a copy where it is float32 already. Any
    other module (quantised, with an adapter, offloaded) is run on unit vectors.

    Args:
        projection: the output projection.
        n_heads: number of heads, H.
        read: (T, H V), an input of the projection; unit vectors get its dtype and device.
        wrote: (T, D), the projection's output for that input.

    Returns:
        The weights, (H, V, D) float32.

    Raises:
        UnknownLayoutError: the projection is not linear.
    """
    weight: Any
    if not is_readable(projection):
        weight = _response(projection, read)  # (H V, D)
        always = constant_of(projection, read)
        expected = read.float() @ weight + (0.0 if always is None else always)
        gap = float((wrote.float() - expected).norm() / wrote.float().norm().clamp_min(1e-30))
        if not gap <= LINEAR_TOLERANCE:
            raise UnknownLayoutError(
                f"the output projection {type(projection).__name__} is not linear: what it writes is off by {gap:.1e} from "
                "the sum of its responses to unit vectors, so the heads' shares of it cannot be separated"
            )
    elif isinstance(projection, Conv1D):
        weight = projection.weight
    else:
        weight = projection.weight.T
    split: Tensor = weight.detach().float().unflatten(0, (n_heads, -1))
    return split


def constant_of(projection: nn.Module, like: Tensor) -> Tensor | None:
    """Constant that a projection adds whatever it reads, (D,) float32. None where it adds nothing.

    Args:
        like: (T, H V), an input of the projection, for its dtype and device.
    """
    if is_readable(projection):
        bias: Tensor | None = projection.bias  # type: ignore[assignment]
        return None if bias is None else bias.detach().float()
    with torch.no_grad():
        return first(projection(torch.zeros_like(like[None, :1])))[0, 0].float()


def _response(projection: nn.Module, like: Tensor) -> Tensor:
    """Run a projection on every unit vector, some at a time, (H V, D) float32."""
    size = like.shape[-1]
    rows = []
    with torch.no_grad():
        constant = first(projection(like.new_zeros(1, 1, size)))[0].float()
        for start in range(0, size, _UNITS):
            # some rows of the identity matrix, times `_LENGTH`
            units = like.new_zeros(min(_UNITS, size - start), size)
            units.diagonal(start).fill_(_LENGTH)
            rows.append((first(projection(units[None]))[0].float() - constant) / _LENGTH)
    return torch.cat(rows)


_LIFTED = 1e-20  # least size of an input at which the scale of a norm is found


@dataclass(frozen=True)
class Norm:
    """A norm at its actual scale: norm(x) = scale * weight * (x - mean if centred) + constant.

    Args:
        weight: (D,) float32.
        constant: (D,) float32.
        scale: (T,) float32, positive, one per token.
        centred: whether the mean over D is subtracted first (LayerNorm).
    """

    weight: Tensor
    constant: Tensor
    scale: Tensor
    centred: bool


def linearise(norm: Callable[..., Tensor], x: Tensor, y: Tensor) -> Norm:
    """Find weight, constant and scale of a norm by what it does, not by its name.

    1. Constant and weight follow from what the norm makes of a probe and of the negated probe.
    2. The scale at each token is the least-squares fit of y - constant to weight * x.
    3. Both are tried with and without subtracting the mean; the better fit is kept.

    Args:
        norm: RMSNorm or LayerNorm of any make, over the last axis.
        x: (T, D), inputs of the norm.
        y: (T, D), its outputs for them.

    Raises:
        UnknownLayoutError: the norm is neither an RMSNorm nor a LayerNorm.
    """
    # +64 and -64 in turn: its mean is 0, and normalised it is +1 and -1, exact in every dtype
    probe = torch.full_like(x[0], 64.0, dtype=torch.float32)
    probe[1::2] *= -1

    def apply(v: Tensor) -> Tensor:
        with torch.no_grad():
            return norm(v.to(x.dtype)[None, None])[0, 0].float()

    def unit(v: Tensor, centred: bool) -> Tensor:
        v = v - v.mean(-1, keepdim=True) if centred else v
        return v / v.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)

    x, y = _lifted(norm, x, y)
    above, below = apply(probe), apply(-probe)
    constant = (above + below) / 2  # (D,)
    fits = []
    for centred in (False, True):
        weight = (above - below) / 2 / unit(probe, centred)  # (D,)
        scale, gap = _fitted_scale(weight, constant, centred, x, y)
        fits.append((gap, Norm(weight, constant, scale, centred)))
    gap, best = min(fits, key=lambda fit: fit[0])
    if gap > 0.02:
        raise UnknownLayoutError(
            f"{type(norm).__name__} after a branch is neither an RMSNorm nor a LayerNorm: at its actual scale it is off "
            f"by {gap:.1e}"
        )
    return best


def _fitted_scale(
    weight: Tensor, constant: Tensor, centred: bool, x: Tensor, y: Tensor
) -> tuple[Tensor, float]:
    """Fit a norm's scale at each token, with its weight, its constant and whether it is centred.

    Args:
        weight: (D,) float32.
        constant: (D,) float32.
        centred: whether the mean over D is subtracted first.
        x: (T, D), inputs of the norm.
        y: (T, D), its outputs for them.

    Returns:
        The scale, (T,) float32.
        How far off the fit is, relative to the outputs less the constant.
    """
    # (T, D), the output but for scale and constant
    direction = weight * (x.float() - x.float().mean(-1, keepdim=True) if centred else x.float())
    rest = y.float() - constant  # (T, D)
    # float64, because squares of a stream that is next to 0 would be 0
    exact = direction.double()
    scale = (exact * rest).sum(-1) / exact.square().sum(-1).clamp_min(1e-300)
    gap = (rest - scale[:, None] * exact).norm() / rest.double().norm().clamp_min(1e-300)
    return scale.float(), float(gap)


def _lifted(norm: Callable[..., Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Enlarge the inputs of a norm that are too small to have all digits of their dtype.

    A norm's scale is the same for all inputs that are small beside its epsilon, so the enlarged
    inputs, and what the norm makes of them, give the same scale more exactly.

    Args:
        x: (T, D), inputs of the norm.
        y: (T, D), its outputs for them.

    Returns:
        Inputs and outputs, some of them enlarged.
    """
    largest = x.abs().amax(-1, keepdim=True)
    # in float16, numbers that lose digits are not small beside an epsilon
    if torch.finfo(x.dtype).tiny > _LIFTED * 1e-10:
        return x, y
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

    The norm's output stays the same. A module that changes nothing, such as an identity, is left as
    it is.
    """
    forward = norm.forward
    # by dtype and device of the input: what `linearise` found, and how far off it was
    found: dict[tuple[torch.dtype, torch.device], tuple[Norm, float]] = {}

    def linear_at(x: Tensor, y: Tensor) -> Norm:
        """Linearise at inputs (T, D). Weight and constant are found once, the scale each time."""
        key = (x.dtype, x.device)
        if key in found:
            norm, usual = found[key]
            scale, gap = _fitted_scale(norm.weight, norm.constant, norm.centred, *_lifted(forward, x, y))
            # where the fit is worse than it was, everything is found again
            if gap <= max(2 * usual, 1e-6):
                return replace(norm, scale=scale)
        norm = linearise(forward, x, y)
        fit = _fitted_scale(norm.weight, norm.constant, norm.centred, *_lifted(forward, x, y))
        found[key] = norm, fit[1]
        return norm

    def held(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            y = forward(x, *args, **kwargs)
        # a hook may move the norm's input here from another device
        x = x.to(y.device)
        with torch.no_grad():
            if y.shape != x.shape or torch.equal(y, x):
                return x
            measured = linear_at(x.flatten(0, -2), y.flatten(0, -2))
            scale = measured.scale.view(*x.shape[:-1], 1)
        centred = x - x.mean(-1, keepdim=True) if measured.centred else x
        linear = centred.float() * (measured.weight * scale)
        # the value is y; the gradient is that of the linear map
        return y + (linear - linear.detach()).to(y.dtype)

    with instance_attribute(norm, "forward", held):
        yield
