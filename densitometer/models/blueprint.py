"""A model from its config alone, on the meta device: what a plan has to know before any weight is loaded.

The module is built without memory and run once on token ids without values. Two things are replaced meanwhile: the
attention function, which notes the sizes of heads, and the function that makes masks, which makes them on the CPU, with
values: they depend on positions only. So the windows and chunks of every layer are those of a real run.

Whether a block runs attention and MLP in parallel is seen in the run too: then what the MLP reads does not depend on
what the attention gave (`torch.autograd` follows tensors without values as well).

Where a model cannot be run so (it looks at values), sizes are read from its config, every layer is taken to see all
earlier tokens, and `exact` is False: the number of edges is then the most that there can be.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask
from transformers.utils import logging as transformers_logging

from ..errors import ArgumentTypeError, InputError, ModelError, UnknownLayoutError
from .attention import above_least
from .blocks import configs_set, first
from .checkpoint import read_config
from .layouts import fitting_layouts
from .source import bundled_models, source_of

IMPLEMENTATION = "densitometer-blueprint"
LONGEST = 4096  # tokens up to which masks are made; above, every layer is taken to see all earlier tokens
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class LayerBlueprint:
    """One decoder block.

    Args:
        allowed: (T, S) bool, what its mask lets a token attend to; None for all earlier tokens.
    """

    parallel: bool
    n_heads: int
    n_groups: int
    key_size: int
    value_size: int
    allowed: Tensor | None = field(repr=False)


@dataclass(frozen=True)
class Blueprint:
    """What is known of a model without its weights.

    Args:
        exact: whether layers and masks were seen in a run; False where they were read from the config.
        weight_bytes: of all parameters and buffers, tied ones once.
        mlp_width: numbers per token in the widest layer inside an MLP.
        keeps_logits: whether the model can compute the last token's logits alone.
    """

    name: str
    architecture: str
    dtype: str
    n_tokens: int
    exact: bool
    layers: tuple[LayerBlueprint, ...]
    hidden_size: int
    vocabulary_size: int
    mlp_width: int
    weight_bytes: int
    n_parameters: int
    keeps_logits: bool


@dataclass
class _Seen:
    """What a run without values showed of the blocks, by index."""

    block_of: dict[int, int]
    sizes: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    allowed: dict[int, Tensor | None] = field(default_factory=dict)
    attended: dict[int, Tensor] = field(default_factory=dict)
    read: dict[int, Tensor] = field(default_factory=dict)
    mlp_width: int = 0
    hidden_size: int = 0


_SEEN: list[_Seen] = []


def _note_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """Note sizes and mask, and return what attention would return, without values."""
    seen = _SEEN[-1]
    index = seen.block_of.get(id(module))
    if index is not None:
        seen.sizes[index] = (query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
        seen.allowed[index] = _allowed(attention_mask, query.shape[2])
    shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    return (query.sum() + value.sum()).expand(shape).contiguous(), None


def _allowed(mask: Any, n_tokens: int) -> Tensor | None:
    if not isinstance(mask, Tensor):
        return torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    if mask.device.type == "meta":
        return None
    mask = mask[..., :n_tokens]
    return mask[0].any(dim=0) if mask.dtype == torch.bool else above_least(mask)


def _mask_with_values(*args: Any, **kwargs: Any) -> Tensor:
    return eager_mask(*args, **{**kwargs, "device": "cpu", "attention_mask": None})


AttentionInterface.register(IMPLEMENTATION, _note_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask_with_values)


def blueprint(name: str | Path, n_tokens: int, dtype: str | None = None, **keywords: Any) -> Blueprint:
    """Read a model's config and build the model without memory.

    Args:
        name: a bundled model, a folder with a config.json, or a Hub id.
        dtype: of the weights; by default that of the config.
        **keywords: handed to `AutoConfig.from_pretrained`: `revision`, `token`, `trust_remote_code` ...

    Raises:
        ModelError: no config, no causal language model, or blocks of an unknown layout.
        InputError: an unknown dtype, or more tokens than the model's context.
        ArgumentTypeError: no name.
    """
    if not isinstance(name, str | Path):
        raise ArgumentTypeError(
            f"expected a model's name or folder, got {type(name).__name__}; a plan needs no weights"
        )
    label = str(name)
    config = read_config(label, source_of(label, keywords.pop("gguf_file", None)), **keywords)
    chosen = _dtype(label, config, dtype)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and n_tokens > limit:
        raise InputError(f"a length of {n_tokens} tokens is more than the {limit} of the context of {label}")
    module = _without_memory(label, config, chosen, bool(keywords.get("trust_remote_code")))
    lists = _lists_of_blocks(module, label)
    ran = _run(module, lists, min(n_tokens, LONGEST))
    text = config.get_text_config()
    if ran is None:
        blocks = max(lists, key=len)
        layers: tuple[LayerBlueprint, ...] = tuple(
            _from_config(text, block, i) for i, block in enumerate(blocks)
        )
        hidden = int(text.hidden_size)
        width = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    else:
        layers, width, hidden = ran
    if n_tokens > LONGEST:
        layers = tuple(LayerBlueprint(**{**vars(layer), "allowed": None}) for layer in layers)
    owned = {id(t): t for t in [*module.parameters(), *module.buffers()]}.values()
    return Blueprint(
        name=label,
        architecture=type(module).__name__,
        dtype=str(chosen).removeprefix("torch."),
        n_tokens=n_tokens,
        exact=all(layer.allowed is not None for layer in layers),
        layers=layers,
        hidden_size=hidden,
        vocabulary_size=int(text.vocab_size),
        mlp_width=width,
        weight_bytes=sum(t.numel() * t.element_size() for t in owned),
        n_parameters=sum(p.numel() for p in module.parameters()),
        keeps_logits="logits_to_keep" in inspect.signature(type(module).forward).parameters,
    )


def _dtype(label: str, config: Any, dtype: str | None) -> torch.dtype:
    if dtype is not None:
        if str(dtype).removeprefix("torch.") not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        return DTYPES[str(dtype).removeprefix("torch.")]
    if label in bundled_models():
        return torch.float32  # shipped in float16 to be small, loaded in float32
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return found if isinstance(found, torch.dtype) else DTYPES.get(str(found), torch.float32)


def _without_memory(label: str, config: Any, dtype: torch.dtype, trusted: bool) -> PreTrainedModel:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted).eval()
    except Exception as error:  # a config can break its model's code anywhere
        message = " ".join(str(error).split())[:300]
        raise ModelError(f"the config of {label!r} makes no causal language model: {message}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _lists_of_blocks(module: nn.Module, label: str) -> list[list[nn.Module]]:
    lists = [
        list(part)
        for part in module.modules()
        if isinstance(part, nn.ModuleList) and len(part) and all(fitting_layouts(child) for child in part)
    ]
    if not lists:
        raise UnknownLayoutError(
            f"{label!r} ({type(module).__name__}) has no decoder blocks whose layout is known, so it cannot be measured; "
            "densitometer.register_layout(Layout(...)) declares one"
        )
    return lists


def _run(
    module: PreTrainedModel, lists: list[list[nn.Module]], n_tokens: int
) -> tuple[tuple[LayerBlueprint, ...], int, int] | None:
    """Find layers, MLP width and hidden size, by a run without values.

    None where the model cannot be run so.
    """
    for blocks in sorted(lists, key=len, reverse=True):
        seen = _Seen({})
        for i, block in enumerate(blocks):
            for layout in fitting_layouts(block):
                seen.block_of |= {id(part): i for part in block.get_submodule(layout.attention).modules()}
        ids = torch.zeros(1, n_tokens, dtype=torch.long, device="meta")
        keywords = {"use_cache": False, "attention_mask": torch.ones_like(ids)}
        if "logits_to_keep" in inspect.signature(type(module).forward).parameters:
            keywords["logits_to_keep"] = 1
        _SEEN.append(seen)
        try:
            with _noted(module, blocks, seen):
                module(input_ids=ids, **keywords)
            if len(seen.sizes) < len(blocks) or len(seen.attended) < len(blocks):
                continue
            layers = tuple(
                LayerBlueprint(_is_parallel(block, seen, i), *seen.sizes[i], seen.allowed[i])
                for i, block in enumerate(blocks)
            )
            return layers, seen.mlp_width, seen.hidden_size
        except Exception:  # it looks at values, or mixes devices: not to be run without weights
            continue
        finally:
            _SEEN.pop()
    return None


def _is_parallel(block: nn.Module, seen: _Seen, index: int) -> bool:
    """Whether what the MLP reads does not depend on what the attention gave."""
    kinds = {layout.parallel for layout in fitting_layouts(block)}
    if len(kinds) == 1:
        return kinds.pop()
    read, given = seen.read[index], seen.attended[index]
    (slope,) = torch.autograd.grad(read.sum(), given, allow_unused=True, retain_graph=True)
    return slope is None


@contextmanager
def _noted(module: PreTrainedModel, blocks: list[nn.Module], seen: _Seen) -> Iterator[None]:
    """Watch the blocks, with attention and masks that are ours, while this context lasts.

    Experts run without looking at values.
    """
    handles = []
    for i, block in enumerate(blocks):
        layout = fitting_layouts(block)[0]

        def attended(_: nn.Module, args: tuple, output: Any, i: int = i) -> None:
            seen.attended[i] = first(output)
            seen.hidden_size = int(first(output).shape[-1])

        def read(_: nn.Module, args: tuple, i: int = i) -> None:
            seen.read[i] = args[0]

        def widened(_: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.mlp_width = max(seen.mlp_width, int(output.shape[-1]))

        handles.append(block.get_submodule(layout.attention).register_forward_hook(attended))
        handles.append(block.get_submodule(layout.mlp[0]).register_forward_pre_hook(read))
        inside = [
            p for name in (*layout.mlp, *layout.mlp_beside) for p in block.get_submodule(name).modules()
        ]
        handles += [part.register_forward_hook(widened) for part in inside]
    try:
        with (
            configs_set(module, "_attn_implementation_internal", IMPLEMENTATION),
            configs_set(module, "_experts_implementation_internal", "batched_mm"),
        ):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _from_config(config: Any, block: nn.Module, index: int) -> LayerBlueprint:
    layers = getattr(config, "per_layer_config", None)  # where layers differ
    config = layers[index] if layers else config
    n_heads = int(config.num_attention_heads)
    groups = getattr(config, "num_key_value_heads", None) or n_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return LayerBlueprint(
        fitting_layouts(block)[0].parallel, n_heads, int(groups), int(size), int(size), None
    )
