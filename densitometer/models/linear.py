"""Linear maps from a branch to the residual stream: output projections, and norms at fixed scale.

An edge's vector is the output of a head or a neuron after all modules between it and the stream.
These are linear, or become linear if a norm's scale is fixed at the actual activations:

    output projection    its weight and bias are read if possible. Otherwise they are found by
                         running the module on unit vectors (quantised weights, adapters, offloaded
                         weights)
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

_UNITS = 512  # number of unit vectors on which a projection is run at once
# Length of each unit vector: long enough that in half precision a bias does not round the weight
# away.
_LENGTH = 64.0


def head_weights(projection: nn.Module, n_heads: int, read: Tensor, wrote: Tensor) -> Tensor:
    """Split the weight of an output projection by head: head h writes value @ weights[h].

    The weight of a plain linear layer is read, without a copy if it is float32 already. Any other
    module (quantised, with an adapter, offloaded) is run on unit vectors.

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
    """Return the constant that a projection adds to any input, (D,) float32. None without a bias.

    Args:
        projection: the projection.
        like: (T, H V), an input of the projection. Only its dtype and device are used.
    """
    if is_readable(projection):
        bias: Tensor | None = projection.bias  # type: ignore[assignment]
        return None if bias is None else bias.detach().float()
    with torch.no_grad():
        return first(projection(torch.zeros_like(like[None, :1])))[0, 0].float()


def _response(projection: nn.Module, like: Tensor) -> Tensor:
    """Return a projection's outputs for all unit vectors, without its bias, (H V, D) float32."""
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


_LIFTED = 1e-20  # smaller inputs of a norm are enlarged to this size to find its scale


@dataclass(frozen=True)
class Norm:
    """Norm with its scale fixed: norm(x) = scale * weight * (x - mean if centred) + constant.

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
    """Find weight, constant and scale of a norm by running it. Its class does not matter.

    1. Constant and weight are computed from the norm's outputs for a probe and the negated probe.
    2. The scale at each token is the least-squares fit of y - constant to weight * x.
    3. Both are tried with and without subtracting the mean; the better fit is kept.

    Args:
        norm: RMSNorm or LayerNorm of any implementation, over the last axis.
        x: (T, D), inputs of the norm.
        y: (T, D), its outputs for them.

    Raises:
        UnknownLayoutError: the norm is neither an RMSNorm nor a LayerNorm.
    """
    # alternating +64 and -64: the mean is 0, and normalised values are +1 and -1, exact in any
    # dtype
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
        The error of the fit, relative to the norm of y - constant.
    """
    # (T, D), the output before scale and constant
    direction = weight * (x.float() - x.float().mean(-1, keepdim=True) if centred else x.float())
    rest = y.float() - constant  # (T, D)
    # float64, because squares of a stream near 0 would underflow to 0
    exact = direction.double()
    scale = (exact * rest).sum(-1) / exact.square().sum(-1).clamp_min(1e-300)
    gap = (rest - scale[:, None] * exact).norm() / rest.double().norm().clamp_min(1e-300)
    return scale.float(), float(gap)


def _lifted(norm: Callable[..., Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Enlarge those inputs of a norm that are so small that their dtype loses digits.

    A norm's scale is the same for all inputs that are small compared with its epsilon. So the
    enlarged inputs and their outputs give the same scale more precisely.

    Args:
        x: (T, D), inputs of the norm.
        y: (T, D), its outputs for them.

    Returns:
        Inputs and outputs, some of them enlarged.
    """
    largest = x.abs().amax(-1, keepdim=True)
    # float16: numbers that lose digits are not small compared with a norm's epsilon
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
    """Treat a norm's scale as a constant in gradients, while this context lasts.

    The norm's output stays the same. A module that returns its input, such as an identity, is not
    changed.
    """
    forward = norm.forward
    # by dtype and device of the input: the result of `linearise`, and the error of its fit
    found: dict[tuple[torch.dtype, torch.device], tuple[Norm, float]] = {}

    def linear_at(x: Tensor, y: Tensor) -> Norm:
        """Linearise at inputs (T, D). Only the scale is computed anew in each call."""
        key = (x.dtype, x.device)
        if key in found:
            norm, usual = found[key]
            scale, gap = _fitted_scale(norm.weight, norm.constant, norm.centred, *_lifted(forward, x, y))
            # if the fit has become worse, the weights may have changed: find everything again
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
