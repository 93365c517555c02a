"""Linear layers whose weights may not be plain matrices: quantised, with adapters, or offloaded.

This file decides which layers can be read, and counts what layers cost. The sizes of a layer are
taken from its attributes `in_features` and `out_features`, so no library that makes such layers
needs to be known here.

What this file does not do: it does not find the linear map of a layer that cannot be read
(`linear.py`).
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
    """Whether a layer is torch's or transformers' own linear layer, with an ordinary weight."""
    if type(layer) not in (nn.Linear, Conv1D):
        return False
    weight: Any = layer.weight
    return type(weight) is nn.Parameter and type(weight.data) is Tensor and weight.is_floating_point()


def is_readable(layer: nn.Module) -> bool:
    """Whether a linear layer's weight and bias give its output.

    That holds for a plain layer whose weight is not offloaded and that has no foreign hook.
    """
    weight: Any = getattr(layer, "weight", None)
    plain = is_plain(layer) and not weight.is_meta and "forward" not in vars(layer)
    return plain and not foreign_hooks(layer, ("_forward_hooks",))


def matrix_size(layer: nn.Module) -> int | None:
    """Return the number of entries of a linear layer's matrix, from its declared sizes.

    None for any other module, and for a layer that consists of linear layers, such as one with
    adapters.
    """
    named = _named_size(layer)
    made_of_others = any(_named_size(part) for part in layer.modules() if part is not layer)
    return None if made_of_others else named


def _named_size(layer: nn.Module) -> int | None:
    """Return a layer's `in_features` times its `out_features`. None for a layer without them."""
    sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return sizes[0] * sizes[1] if all(isinstance(size, int) for size in sizes) else None  # type: ignore[operator]


def n_parameters(module: nn.Module, matrices_only: bool = False, without: nn.Module | None = None) -> int:
    """Count the parameters of a module. A quantised weight counts as the matrix it replaces.

    Args:
        module: the module.
        matrices_only: whether to leave out vectors: biases and the weights of norms.
        without: a submodule that is not counted.
    """
    left_out = set() if without is None else set(without.modules())
    least = 2 if matrices_only else 1
    total, counted = 0, set[int]()
    for part in module.modules():
        if part in left_out:
            continue
        parameters = [p for p in part.parameters(recurse=False) if id(p) not in counted]
        counted.update(map(id, parameters))
        size = matrix_size(part)
        # the weight has fewer or more numbers than the matrix, so it is quantised
        if size is not None and sum(p.numel() for p in parameters if p.ndim >= 2) != size:
            bias = getattr(part, "bias", None)
            total += size + (bias.numel() if isinstance(bias, Tensor) and not matrices_only else 0)
        else:
            total += sum(p.numel() for p in parameters if p.ndim >= least)
    return total


def operations_of(module: nn.Module, run: Callable[[], Any]) -> float:
    """Count the floating-point operations of a run, as torch counts them.

    A linear layer whose kernel torch cannot count is counted as a matrix product of its size.

    Args:
        module: the module that is run, or whose submodules are.
        run: function that runs it.
    """
    uncounted = 0.0
    before: list[int] = []  # torch's count before each linear layer that is running (a stack)
    with torch.no_grad(), ExitStack() as stack, FlopCounterMode(display=False) as counter:
        # torch's counter needs the gradient function of every tensor that requires a gradient, and
        # views of parameters have none under no_grad
        needing = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        module.requires_grad_(False)

        # by name: offloaded weights are other objects afterwards
        def restore() -> None:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in needing)

        stack.callback(restore)

        def entered(_: nn.Module, args: tuple) -> None:
            before.append(counter.get_total_flops())

        def left(layer: nn.Module, args: tuple, output: Any) -> None:
            nonlocal uncounted
            # torch counted nothing while the layer ran
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
    """Raise an error if a linear layer passes no gradient to its input, while this context lasts.

    Without this check, gradients through such a layer would silently be 0.

    Raises:
        ModelError: there is such a layer, for example a quantised one whose kernel has no backward
            pass.
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
