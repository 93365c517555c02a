"""Modules that wrap a Hugging Face model: PEFT's, whose adapters sit in the layers of the model inside.

What a measurement sees is the model inside, adapters and all. That it predicts what the wrapper does is not assumed: both
are run, so a wrapper that does something of its own (prompt and prefix tuning put tokens before the text) is refused.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import ModelError
from .placement import device_of, probe_ids, tolerance_tv


def unwrapped(module: nn.Module) -> nn.Module:
    """The Hugging Face model inside a wrapper of it; any other module as it is.

    Raises:
        ModelError: the wrapper predicts something else than the model inside.
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
        own, other = (m.eval()(input_ids=ids).logits[0, -1].float().softmax(-1) for m in (module, model))
    gap = 0.5 * float((own - other).abs().sum())
    if not gap <= tolerance_tv(model.dtype):
        raise ModelError(
            f"{type(module).__name__} predicts something else than the {type(model).__name__} inside it (total variation "
            f"{gap:.2g}): its adapter works outside of the model's layers, as prompt and prefix tuning do, and has no edges. "
            "densitometer measures adapters in layers (LoRA and its kin)"
        )
    return model
