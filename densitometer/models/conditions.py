"""The conditions under which densitometer runs a model, independent of the caller's settings.

    one thread at a time     a run replaces forwards, configs and hooks of modules, and loading
                             replaces settings of transformers
    evaluation mode          dropout would draw random numbers; modules in training mode are put
                             back into it afterwards
    no inference mode        gradients flow to masks, and recorded tensors are used later
    no autocast              products would be rounded to fewer bits than the model's dtype has
    default dtype float32    attention scores and sums of every model are float32
    default device "cpu"     every tensor is put on its device explicitly
    no new compilation       `torch.compile` would trace a block once for each of its masks

Afterwards the caller's conditions hold again.

A hook is *foreign* if its code is not in densitometer, torch, transformers, accelerate or peft.
Foreign hooks stay on: a hook that changes a module's output is a part of the user's model. If a
foreign hook fails, the error names it.

What this file does not do: it does not decide whether a module's edges can be recorded with its
hooks (`adapter.py`).
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ModelError

# Configs, transformers' settings and torch's defaults are shared by all threads of the process.
_LOCK = threading.RLock()
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Packages whose hooks are part of how a module works. All other hooks are foreign.
_OWN = frozenset({"torch", "transformers", "accelerate", "peft", "densitometer"})
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_BACKWARD_HOOKS = ("_backward_pre_hooks", "_backward_hooks")
_BLAMED = "the hook "


@contextmanager
def plain_torch() -> Iterator[None]:
    """Make other threads wait, and run torch with its defaults, while this context lasts.

    The defaults are: no inference mode, no autocast, default dtype float32, no new compilation. If
    the default device is "meta", whose tensors have no values, it is set to "cpu". Other default
    devices are not changed.
    """
    with _LOCK, ExitStack() as stack:
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        # loading dynamo takes seconds; where it is not loaded, no module was compiled
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def tensors_on_cpu() -> Iterator[None]:
    """Set the default device to the CPU while this context lasts."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, under `plain_torch`, while this context lasts.

    New tensors are on the CPU by default.

    Raises:
        ModelError: a hook of the module raised an error during the context.
    """
    with plain_torch(), tensors_on_cpu(), ExitStack() as stack:
        training = [part for part in module.modules() if part.training]
        if training:
            stack.callback(_set_training, training)
            module.eval()
        try:
            yield
        except Exception as error:
            _blame_hook(module, error)
            raise


def _set_training(parts: list[nn.Module]) -> None:
    for part in parts:
        part.training = True


def foreign_hooks(module: nn.Module, kinds: tuple[str, ...] = _HOOKS) -> list[tuple[str, int, Any]]:
    """List the foreign hooks of a module and its parts.

    Args:
        kinds: the attributes of a module that hold hooks.

    Returns:
        For each hook the path of its part, the id of its handle, and the hook.
    """
    return [
        (name, number, hook)
        for name, part in module.named_modules()
        for kind in kinds
        for number, hook in getattr(part, kind).items()
        if _package(hook) not in _OWN
    ]


@contextmanager
def hooks_off(module: nn.Module) -> Iterator[None]:
    """Switch off the foreign hooks of a module while this context lasts."""
    foreign = {number for _, number, _ in foreign_hooks(module)}
    with ExitStack() as stack:
        for part in module.modules():
            for kind in _HOOKS:
                hooks = getattr(part, kind)
                if not foreign.isdisjoint(hooks):
                    stack.callback(_put_back, hooks, dict(hooks))
                    for number in foreign.intersection(hooks):
                        del hooks[number]
        yield


def _put_back(hooks: dict[int, Any], before: dict[int, Any]) -> None:
    """Restore hooks in their order. The dictionary object is kept, because handles refer to it."""
    hooks.clear()
    hooks.update(before)


def describe_hooks(module: nn.Module) -> str:
    """Name the first three foreign hooks of a module, with their places, and count the rest."""
    shown = [f"{name or type(module).__name__} ({_name(hook)})" for name, _, hook in foreign_hooks(module)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _blame_hook(module: nn.Module, error: Exception) -> None:
    """Raise a `ModelError` that names the hook in which an error arose, if it arose in one.

    The traceback of the error, and of its causes, is searched for a frame that runs a hook's code.
    """
    if isinstance(error, ModelError) and str(error).startswith(_BLAMED):
        return
    hooks = foreign_hooks(module, _HOOKS + _BACKWARD_HOOKS)
    of_code = {_code(hook): (name, hook) for name, _, hook in hooks}
    cause: BaseException | None = error
    while cause is not None and of_code:
        trace: types.TracebackType | None = cause.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in of_code:
                name, hook = of_code[trace.tb_frame.f_code]
                raise ModelError(
                    f"{_BLAMED}{_name(hook)} on {name or type(module).__name__} failed while densitometer ran the model "
                    f"({type(cause).__name__}: {cause}). A hook gets batches of several variants, some with gradients, and "
                    "some without the rows that cannot matter; remove it (handle.remove()), or let it take these (x.detach())"
                ) from error
            trace = trace.tb_next
        cause = cause.__cause__


def _bare(hook: Any) -> Any:
    """Unwrap a hook from `functools.partial`."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook


def _package(hook: Any) -> str:
    """Name of the top-level package that defines a hook."""
    hook = _bare(hook)
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).split(".")[0]


def _name(hook: Any) -> str:
    hook = _bare(hook)
    return str(getattr(hook, "__qualname__", type(hook).__qualname__)).rpartition("<locals>.")[-1]


def _code(hook: Any) -> Any:
    """Return the code object that a call of a hook runs. None if it is not written in Python."""
    hook = _bare(hook)
    function: Callable[..., Any] = hook if hasattr(hook, "__code__") else type(hook).__call__
    function = getattr(function, "__func__", function)
    return getattr(function, "__code__", None)
