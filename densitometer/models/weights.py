"""Linear layers whose weight may not be a plain matrix: quantised, adapted, or kept elsewhere.

What such a layer does is found by running it. What it costs follows from the sizes that it names. Nothing here knows the
libraries that make these layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from .conditions import foreign_hooks


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer does what its weight implies, in its dtype's arithmetic."""
    if type(layer) not in (nn.Linear, Conv1D):
        return False
    weight: Any = layer.weight
    return type(weight) is nn.Parameter and type(weight.data) is Tensor and weight.is_floating_point()


def is_readable(layer: nn.Module) -> bool:
    """Whether a linear layer is plain and its weight can be read.

    Nothing brings the weight for each forward, and no foreign hook may change what the layer gives.
    """
    weight: Any = getattr(layer, "weight", None)
    plain = is_plain(layer) and not weight.is_meta and "forward" not in vars(layer)
    return plain and not foreign_hooks(layer, ("_forward_hooks",))


def matrix_size(layer: nn.Module) -> int | None:
    """Count the numbers of the matrix that a linear layer stands for, by the sizes that it names.

    None for another module.

    A layer that is made of others, such as one with adapters, is none itself.
    """
    named = _named_size(layer)
    made_of_others = any(_named_size(part) for part in layer.modules() if part is not layer)
    return None if made_of_others else named


def _named_size(layer: nn.Module) -> int | None:
    sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return sizes[0] * sizes[1] if all(isinstance(size, int) for size in sizes) else None  # type: ignore[operator]


def n_parameters(module: nn.Module, matrices_only: bool = False, without: nn.Module | None = None) -> int:
    """Count the parameters of a module. A packed weight counts as the matrix that it stands for.

    Args:
        matrices_only: leave out biases and norms.
        without: a part that is not counted.
    """
    left_out = set() if without is None else set(without.modules())
    least = 2 if matrices_only else 1
    total, seen = 0, set[int]()
    for part in module.modules():
        if part in left_out:
            continue
        own = [p for p in part.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        size = matrix_size(part)
        if size is not None and sum(p.numel() for p in own if p.ndim >= 2) != size:
            bias = getattr(part, "bias", None)
            total += size + (bias.numel() if isinstance(bias, Tensor) and not matrices_only else 0)
        else:
            total += sum(p.numel() for p in own if p.ndim >= least)
    return total


def operations_of(module: nn.Module, run: Callable[[], Any]) -> float:
    """Count the floating-point operations of a run of a module's parts, as torch counts them.

    A linear layer whose kernel torch does not know counts as the matrix product that it stands for.
    """
    uncounted = 0.0
    before: list[int] = []
    with torch.no_grad(), ExitStack() as stack, FlopCounterMode(display=False) as counter:
        # torch's counter wants a gradient function of what needs a gradient, and views of parameters have none here
        needing = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        module.requires_grad_(False)

        def restore() -> None:  # by name: offloaded weights are other objects afterwards
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in needing)

        stack.callback(restore)

        def entered(_: nn.Module, args: tuple) -> None:
            before.append(counter.get_total_flops())

        def left(layer: nn.Module, args: tuple, output: Any) -> None:
            nonlocal uncounted
            if counter.get_total_flops() == before.pop():
                size = matrix_size(layer) or 0
                uncounted += 2.0 * size * (args[0].numel() // args[0].shape[-1])

        for layer in module.modules():
            if matrix_size(layer) is not None:
                stack.callback(layer.register_forward_pre_hook(entered).remove)
                stack.callback(layer.register_forward_hook(left).remove)
        run()
    return counter.get_total_flops() + uncounted


@contextmanager
def gradients_required(module: nn.Module) -> Iterator[None]:
    """Raise an error, not a zero gradient, where a linear layer lets no gradient through.

    This holds while the context lasts, for gradients to what the layer reads.

    Raises:
        ModelError: there is such a layer (a quantised one whose kernel has no backward pass).
    """
    with ExitStack() as stack:
        for name, layer in module.named_modules():

            def passes(layer: nn.Module, args: tuple, output: Any, name: str = name) -> None:
                cut = torch.is_grad_enabled() and isinstance(output, Tensor) and not output.requires_grad
                if cut and any(isinstance(x, Tensor) and x.requires_grad for x in args):
                    raise ModelError(
                        f"{name} ({type(layer).__name__}) passes no gradient to its input, which `fisher`, `bound`, `best` "
                        "and `learned` need (they need no gradient of parameters). Use importance='l1', which needs none"
                    )

            if matrix_size(layer) is not None:
                stack.callback(layer.register_forward_hook(passes).remove)
        yield
