"""The conditions under which densitometer runs a model: the same whatever the caller's are.

    one thread at a time     a run replaces forwards, configs and hooks of modules, and loading those of transformers
    evaluation mode          dropout would draw; what was in training mode is in it again afterwards
    no inference mode        gradients flow to masks, and what is recorded is used later
    no autocast              products would be rounded to fewer bits than the model's dtype has
    default dtype float32    scores and sums of every model are float32
    default device "cpu"     tensors are put where they belong by name
    nothing compiled anew    `torch.compile` would trace a block for each of its masks

The caller's conditions are back afterwards. Hooks of others stay on, for a module with hooks is the model that its user has:
one that changes what a part gives belongs to that part. A hook that fails is named.

What this file does not do: it does not say whether a module's edges can be seen with its hooks (`adapter.py`).
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

_LOCK = threading.RLock()  # of the process: configs, transformers' settings and torch's defaults are shared
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Hooks of these packages, and ours, are how a module works; all others are a user's or another tool's.
_OWN = frozenset({"torch", "transformers", "accelerate", "peft", "densitometer"})
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_BACKWARD_HOOKS = ("_backward_pre_hooks", "_backward_hooks")
_BLAMED = "the hook "


@contextmanager
def plain_torch() -> Iterator[None]:
    """Keep other threads out, and let torch compute by its defaults, while this context lasts.

    That is: no inference mode, no autocast, float32 by default, nothing compiled.
    """
    with _LOCK, ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if "torch._dynamo" in sys.modules:  # nothing was compiled before it is loaded, which takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Run a module under `plain_torch`, in evaluation mode, with tensors on the CPU by default.

    Raises:
        ModelError: a hook of the module failed meanwhile.
    """
    with plain_torch(), ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
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
    """Foreign hooks of a module and its parts: the part's path, the handle's id and the hook.

    A foreign hook is not part of how the module works.
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
    """Switch the foreign hooks of a module off, while this context lasts."""
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
    """Put hooks back in the order they had. The dictionary itself stays, as handles refer to it."""
    hooks.clear()
    hooks.update(before)


def describe_hooks(module: nn.Module) -> str:
    """Foreign hooks of a module by place and name. Only the first few, where there are many."""
    shown = [f"{name or type(module).__name__} ({_name(hook)})" for name, _, hook in foreign_hooks(module)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _blame_hook(module: nn.Module, error: Exception) -> None:
    """Raise a ModelError that names the hook in which an error arose, if it arose in one."""
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
                    f"({type(cause).__name__}: {cause}). A hook is given batches of several variants, some with gradients, and "
                    "rows without those that cannot matter; remove it (handle.remove()), or let it take these (x.detach())"
                ) from error
            trace = trace.tb_next
        cause = cause.__cause__


def _bare(hook: Any) -> Any:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook


def _package(hook: Any) -> str:
    hook = _bare(hook)
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).split(".")[0]


def _name(hook: Any) -> str:
    hook = _bare(hook)
    return str(getattr(hook, "__qualname__", type(hook).__qualname__)).rpartition("<locals>.")[-1]


def _code(hook: Any) -> Any:
    hook = _bare(hook)
    function: Callable[..., Any] = hook if hasattr(hook, "__code__") else type(hook).__call__
    function = getattr(function, "__func__", function)
    return getattr(function, "__code__", None)
