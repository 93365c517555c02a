"""Where a module does its work, and what happens where memory runs out there.

accelerate keeps weights elsewhere (another device, the CPU, the disk) and brings them to a module's execution device for
as long as its forward lasts; outside of it they are placeholders on the `meta` device. So a module's weights do not say
where it works: its hook does.
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

# Kinds of device that a model is moved to only after a comparison with the CPU: kernels there have given wrong numbers.
CROSS_CHECKED = frozenset({"mps"})


def probe_ids(vocabulary: int, length: int) -> list[int]:
    """Fixed token ids, spread over the vocabulary."""
    return [(7919 * i + 17) % vocabulary for i in range(length)]


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on: its hook's, or its parameters' and buffers' own.

    Raises:
        ModelError: its weights are nowhere (a module that was made on the `meta` device).
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
    """A value with every tensor in it, however nested, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(on_device(part, device) for part in value)
    if isinstance(value, dict):
        return {name: on_device(part, device) for name, part in value.items()}
    return value


def moved(module: PreTrainedModel, device: Any, label: str) -> PreTrainedModel:
    """Move a model to a device.

    Where kernels are known to differ ("mps"), compare its prediction with the CPU's.

    Raises:
        InputError: the device does not exist.
        IdentityError: the model predicts something else on it than on the CPU.
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
    """Logits after each of sixteen fixed tokens, (16, vocabulary) float32, on the CPU."""
    size = int(module.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    ids = torch.tensor([probe_ids(size, 16)], device=device_of(module))
    with torch.no_grad():
        logits = module.eval()(input_ids=ids, use_cache=False).logits[0]
    return logits.float().cpu()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory could not be had, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said
        for words in ("can't allocate memory", "out of memory", "bad_alloc", "not enough memory")
    )


@contextmanager
def memory_watched(work: str) -> Iterator[None]:
    """Turn running out of memory into an error that names a remedy, while this context lasts.

    The failed run's tensors are let go: the frames that hold them, which an error keeps alive, are cleared.

    Args:
        work: what was going on, in the words of the message.

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
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemoryError(
        f"out of memory while {work}: {said}. The model is as it was and can be used. Try fewer tokens, a narrower dtype "
        "(dtype='bfloat16'), weights offloaded (device_map='auto', offload_folder=...), or a machine with more memory; "
        "`densitometer plan MODEL --length N` tells what is needed"
    ) from None
