"""The device on which a module computes, and the error that is raised if memory runs out.

accelerate keeps offloaded weights elsewhere (another device, the CPU, the disk). It moves them to a
module's execution device while the module's forward runs; at all other times they are placeholders
on the `meta` device. So a module may compute on another device than that of its weights. The hook
that accelerate puts on the module names the device.

What this file does not do: it does not choose a device. The caller does, by `device` or
`device_map`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .._util.metrics import total_variation
from ..errors import IdentityError, InputError, ModelError, OutOfMemoryError
from .tolerances import tolerance_tv

# Types of devices whose kernels have given wrong numbers. The predictions of a model that is moved
# there are compared with those on the CPU.
CROSS_CHECKED = frozenset({"mps"})


def probe_ids(vocabulary: int, length: int) -> list[int]:
    """Return a fixed list of token ids that are spread over a vocabulary.

    Args:
        vocabulary: number of tokens in the vocabulary.
        length: number of token ids.
    """
    return [(7919 * i + 17) % vocabulary for i in range(length)]


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module computes: accelerate's choice, or that of its weights.

    Raises:
        ModelError: the weights have no values, because the module was made on the `meta` device.
    """
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    tensors = (*module.parameters(), *module.buffers())
    if not tensors:
        return torch.get_default_device()
    if tensors[0].is_meta:
        raise ModelError(
            f"the weights of {type(module).__name__} are on the 'meta' device, which holds no numbers; load them "
            "(from_pretrained), or put them somewhere (to_empty, accelerate's dispatch_model)"
        )
    return tensors[0].device


def on_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in nested tuples, lists and dictionaries to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(on_device(part, device) for part in value)
    if isinstance(value, dict):
        return {name: on_device(part, device) for name, part in value.items()}
    return value


def moved(module: PreTrainedModel, device: Any, label: str) -> PreTrainedModel:
    """Move a model to a device.

    If the type of device is in `CROSS_CHECKED`, the model's predictions there are compared with
    those on the CPU.

    Args:
        module: the model.
        device: a device, as `torch.nn.Module.to` takes it.
        label: the model's name, for messages.

    Raises:
        InputError: the device does not exist.
        IdentityError: the predictions on the device differ from those on the CPU.
    """
    try:
        checked = torch.device(device).type in CROSS_CHECKED
        expected = _prediction(module) if checked else None
        module = module.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0]
        raise InputError(f"cannot move {label} to the device {device!r}: {message}") from error
    if expected is not None:
        gap = float(total_variation(expected, _prediction(module)).max())
        tolerance = tolerance_tv(module.dtype)
        if not gap <= tolerance:
            raise IdentityError(
                f"on {device!r}, {label} predicts something else than on the CPU: total variation {gap:.2g}, expected at most "
                f"{tolerance:g}. Measure it on the CPU"
            )
    return module


def _prediction(module: PreTrainedModel) -> Tensor:
    """Compute logits after each of sixteen fixed tokens, (16, vocabulary) float32, on the CPU."""
    size = int(module.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    ids = torch.tensor([probe_ids(size, 16)], device=device_of(module))
    with torch.no_grad():
        logits = module.eval()(input_ids=ids, use_cache=False).logits[0]
    return logits.float().cpu()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(
        words in message
        for words in ("can't allocate memory", "out of memory", "bad_alloc", "not enough memory")
    )


@contextmanager
def memory_watched(work: str) -> Iterator[None]:
    """Turn an error about memory into one that says what to do, while this context lasts.

    The failed run's tensors are freed: the stack frames that the error would keep alive are
    cleared.

    Args:
        work: what the program is doing, for the message: "out of memory while ...".

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
        return
    except OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemoryError(
        f"out of memory while {work}: {message}. The model is as it was and can be used. Try fewer tokens, a narrower dtype "
        "(dtype='bfloat16'), offloaded weights (device_map='auto', offload_folder=...), or a machine with more memory; "
        "`densitometer plan MODEL --length N` prints what is needed"
    ) from None
