"""Modules that wrap a Hugging Face model: PEFT's, and torch's own.

A measurement uses the model inside the wrapper.

PEFT puts its adapters into the layers of the model inside, so they are measured with it. Both the
wrapper and the model inside are run, and their predictions compared. If they differ, the wrapper is
refused (prompt and prefix tuning, for example, put tokens before the text).

torch's wrappers (`torch.compile`, `DataParallel`, `DistributedDataParallel`) give the same output
as the module inside, by definition. They are not run, because that would start a compilation, or
wait for other processes.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .._util.metrics import total_variation
from ..errors import ModelError
from .conditions import describe_hooks, foreign_hooks
from .placement import device_of, probe_ids
from .tolerances import tolerance_tv

_TORCH_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside its wrappers, or any other module as it is.

    Raises:
        ModelError: the predictions of a wrapper and of the model inside differ, or a wrapper has
            hooks.
    """
    while (inside := _inside_torch_wrapper(module)) is not None:
        if any(not name for name, *_ in foreign_hooks(module)):
            raise ModelError(
                f"hooks on the {type(module).__name__} around the {type(inside).__name__} ({describe_hooks(module)}) are not "
                "called when the model inside is measured; put them on the model inside, or remove them"
            )
        module = inside
    return _inside_peft(module)


def _inside_torch_wrapper(module: nn.Module) -> nn.Module | None:
    """Return the module inside one of torch's wrappers. None for any other module."""
    # loading dynamo takes seconds; where it is not loaded, no module was compiled
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        compiled: nn.Module = module._orig_mod
        return compiled
    return module.module if isinstance(module, _TORCH_WRAPPERS) else None


def _inside_peft(module: nn.Module) -> nn.Module:
    """Return the model inside PEFT's wrapper, or any other module as it is.

    Raises:
        ModelError: the predictions of the wrapper and of the model inside differ.
    """
    inside = getattr(module, "get_base_model", None)
    if isinstance(module, PreTrainedModel) or inside is None:
        return module
    model = inside()
    if not isinstance(model, PreTrainedModel):
        return module
    embedding = model.get_input_embeddings()
    size = int(embedding.weight.shape[0])  # type: ignore[index]
    ids = torch.tensor([probe_ids(size, 11)], device=device_of(embedding))
    with torch.no_grad():
        outer, inner = (m.eval()(input_ids=ids).logits[0, -1].cpu() for m in (module, model))
    gap = float(total_variation(outer, inner))
    if not gap <= tolerance_tv(model.dtype):
        raise ModelError(
            f"{type(module).__name__} predicts something else than the {type(model).__name__} inside it (total variation "
            f"{gap:.2g}): its adapter works outside of the model's layers, as prompt and prefix tuning do, and has no edges. "
            "densitometer measures adapters in layers (LoRA and its kin)"
        )
    return model
