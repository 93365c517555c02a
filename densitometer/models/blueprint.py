"""Find the sizes of a model from its config alone, before its weights are loaded.

The module is built on torch's meta device, without memory, and run once on token ids without
values. Two functions are replaced for this run:

1. the attention function, by one that records the sizes of heads and the mask;
2. the function that makes masks, by one that makes them on the CPU, with values. Masks depend on
   positions only, so the windows and chunks of every layer are those of a real run.

The run also shows whether a block runs attention and MLP in parallel: in that case the MLP's input
does not depend on the attention's output. `torch.autograd` shows this without values, too.

Some models cannot be run without values, because their code reads them. Then sizes are read from
the config, every layer is assumed to attend to all earlier tokens, and `exact` is False. The number
of edges is then an upper bound.

What this file does not do: it reads no weights, and it does not check that a layout reproduces its
block's output.

Axes: T target tokens, S source tokens.
"""

from __future__ import annotations

import inspect
import json
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
from .checkpoint import config_path, read_config
from .layouts import fitting_layouts
from .source import Source, bundled_models, source_of, with_subfolder

IMPLEMENTATION = "densitometer-blueprint"
# Largest number of tokens for which masks are made. For more tokens, every layer is assumed to
# attend to all earlier tokens.
LONGEST = 4096
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


# Names of the dtypes in a safetensors file, and the largest header that the format allows.
STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class LayerBlueprint:
    """Sizes of one decoder block.

    Args:
        parallel: whether attention and MLP read the same stream.
        n_heads: number of query heads.
        n_groups: number of key-value heads.
        key_size: size of a query or key head.
        value_size: size of a value head.
        allowed: (T, S) bool, the sources to which the layer's mask lets each token attend; None for
            all earlier tokens.
    """

    parallel: bool
    n_heads: int
    n_groups: int
    key_size: int
    value_size: int
    allowed: Tensor | None = field(repr=False)


@dataclass(frozen=True)
class Blueprint:
    """Sizes of a model that are known without its weights.

    Args:
        name: the model's name or folder.
        architecture: class name of the module.
        dtype: dtype of the weights.
        n_tokens: number of tokens of the text that is planned.
        exact: whether layers and masks were recorded in a run; False if they were read from the
            config.
        layers: the decoder blocks.
        hidden_size: size of the residual stream.
        vocabulary_size: number of tokens in the vocabulary.
        mlp_width: numbers per token in the widest layer inside an MLP.
        weight_bytes: bytes of all parameters and buffers, tied ones counted once.
        mapped_bytes: those bytes that are stored in local safetensors files in the module's own
            dtype and shape. They are memory-mapped, so processes that load the model share them.
            Weights that loading converts to another dtype, or merges, do not count.
        n_parameters: number of parameters.
        keeps_logits: whether the model can compute the last token's logits alone.
        context_length: largest number of tokens of an input; None without a limit.
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
    mapped_bytes: int
    n_parameters: int
    keeps_logits: bool
    context_length: int | None


@dataclass
class _Seen:
    """Records of the blocks in a run without values. Keys are indices of blocks.

    Args:
        block_of: from the id of an attention submodule to the index of its block.
        sizes: query heads, key-value heads, key head size and value head size.
        allowed: (T, S) bool, the layer's mask; None where it is not known.
        attended: the attention's output.
        read: the MLP's input.
        mlp_width: numbers per token in the widest layer inside an MLP, of all blocks.
        hidden_size: size of the residual stream.
    """

    block_of: dict[int, int]
    sizes: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    allowed: dict[int, Tensor | None] = field(default_factory=dict)
    attended: dict[int, Tensor] = field(default_factory=dict)
    read: dict[int, Tensor] = field(default_factory=dict)
    mlp_width: int = 0
    hidden_size: int = 0


_SEEN: list[_Seen] = []  # a stack: the last entry belongs to the current run


def _note_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """Record sizes and mask, and return a tensor of the shape of the attention's output."""
    seen = _SEEN[-1]
    index = seen.block_of.get(id(module))
    if index is not None:
        seen.sizes[index] = (query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
        seen.allowed[index] = _allowed(attention_mask, query.shape[2])
    shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    # the sums make the result depend on the attention's input, which `_is_parallel` tests
    return (query.sum() + value.sum()).expand(shape).contiguous(), None


def _allowed(mask: Any, n_tokens: int) -> Tensor | None:
    """Return which sources a mask allows for each token, (T, S) bool. None if it has no values."""
    if not isinstance(mask, Tensor):
        return torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    if mask.device.type == "meta":
        return None
    mask = mask[..., :n_tokens]
    return mask[0].any(dim=0) if mask.dtype == torch.bool else above_least(mask)


def _mask_with_values(*args: Any, **kwargs: Any) -> Tensor:
    """Make a mask on the CPU, so that it has values."""
    return eager_mask(*args, **{**kwargs, "device": "cpu", "attention_mask": None})


AttentionInterface.register(IMPLEMENTATION, _note_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask_with_values)


def blueprint(name: str | Path, n_tokens: int, dtype: str | None = None, **keywords: Any) -> Blueprint:
    """Find a model's sizes from its config, without memory for its weights.

    Args:
        name: a bundled model, a folder with a config.json, or a Hub id.
        n_tokens: number of tokens of the text that is planned.
        dtype: dtype of the weights. By default, and with "auto", it is the one that `load_model`
            chooses: that of the config or, if it names none, that of the first weights in a folder.
        **keywords: passed to `AutoConfig.from_pretrained`: `revision`, `token`, `trust_remote_code`
            and others; and `gguf_file`.

    Raises:
        ModelError: the config cannot be read, is not that of a causal language model, or its blocks
            have an unknown layout.
        InputError: the dtype is unknown, or the text is longer than the model's context.
        ArgumentTypeError: `name` is neither a string nor a path.
    """
    if not isinstance(name, str | Path):
        raise ArgumentTypeError(
            f"expected a model's name or folder, got {type(name).__name__}; a plan needs no weights"
        )
    label, keywords = with_subfolder(str(name), keywords)
    source = source_of(label, keywords.pop("gguf_file", None))
    config = read_config(label, source, **keywords)
    chosen = _dtype(label, source, config, dtype)
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
    owned = {id(t): t for t in [*module.parameters(), *module.buffers()]}.values()  # tied ones once
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
        mapped_bytes=_mapped_bytes(module, source, keywords),
        n_parameters=sum(p.numel() for p in module.parameters()),
        keeps_logits="logits_to_keep" in inspect.signature(type(module).forward).parameters,
        context_length=limit,
    )


def _dtype(label: str, source: Source, config: Any, dtype: str | None) -> torch.dtype:
    """Return the dtype that the weights will have: the given one, or the one loading chooses."""
    if dtype is not None and dtype != "auto":
        if str(dtype).removeprefix("torch.") not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        return DTYPES[str(dtype).removeprefix("torch.")]
    # bundled models are shipped in float16 to be small, and loaded in float32
    if label in bundled_models() and dtype is None:
        return torch.float32
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    named = getattr(torch, named, None) if isinstance(named, str) else named
    if isinstance(named, torch.dtype):
        return named
    return (None if source.gguf_file else _stored_dtype(Path(source.place))) or torch.float32


def _stored_dtype(folder: Path) -> torch.dtype | None:
    """Return the first floating dtype of the weights in a folder, from the files' headers alone.

    None for a Hub id, and if no header can be read.
    """
    files = [*sorted(folder.glob("model*.safetensors")), *sorted(folder.glob("pytorch_model*.bin"))]
    try:
        if not files:
            return None
        if files[0].suffix == ".bin":
            weights = torch.load(files[0], map_location="meta", weights_only=True, mmap=True)
        else:
            weights = {name: entry["dtype"] for name, entry in _header(files[0]).items()}
        kinds = [STORED.get(t) if isinstance(t, str) else t.dtype for t in weights.values()]
        return next((kind for kind in kinds if kind in DTYPES.values()), None)
    except Exception:  # a damaged file is refused where it is loaded, with the reason
        return None


def _header(file: Path) -> dict[str, Any]:
    """Read dtype and shape of each tensor in a safetensors file, without the tensors."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(min(size, LARGEST_HEADER)))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _mapped_bytes(module: PreTrainedModel, source: Source, keywords: dict[str, Any]) -> int:
    """Count the bytes of parameters that local safetensors files have in the same dtype and shape.

    Args:
        module: the module on the meta device.
        source: where the model is.
        keywords: keywords of `AutoConfig.from_pretrained`.
    """
    if source.gguf_file is not None:
        return 0
    path = config_path(source, **keywords)
    files = [] if path is None else sorted(path.parent.glob("*.safetensors"))
    # names in a file may lack the prefix of the base model
    prefix = f"{module.base_model_prefix}."
    parameters = {name.removeprefix(prefix): p for name, p in module.named_parameters()}
    found = set()
    for file in files:
        try:
            header = _header(file)
            found |= {
                name.removeprefix(prefix)
                for name, entry in header.items()
                if (p := parameters.get(name.removeprefix(prefix))) is not None
                and STORED.get(entry["dtype"]) == p.dtype
                and entry["shape"] == list(p.shape)
            }
        # a damaged file is refused where it is loaded, with the reason
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sum(parameters[name].numel() * parameters[name].element_size() for name in found)


def _without_memory(label: str, config: Any, dtype: torch.dtype, trusted: bool) -> PreTrainedModel:
    """Build the module of a config on the meta device.

    Raises:
        ModelError: the config does not make a causal language model.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted).eval()
    except Exception as error:  # a config can break its model's code anywhere
        message = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the config of {label!r} does not make a causal language model: {message}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _lists_of_blocks(module: nn.Module, label: str) -> list[list[nn.Module]]:
    """Find the lists of modules whose members all fit a layout.

    Raises:
        UnknownLayoutError: there is no such list.
    """
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
    """Find the sizes of the blocks by a run without values.

    Args:
        lists: lists of modules that may be the decoder blocks.

    Returns:
        Layers, MLP width and hidden size; None where the model cannot be run without
        values.
    """
    # the longest list first: if a model has several, the language model has the longest one
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
            # not every block ran, or not every block called the attention function
            if len(seen.sizes) < len(blocks) or len(seen.attended) < len(blocks):
                continue
            layers = tuple(
                LayerBlueprint(_is_parallel(block, seen, i), *seen.sizes[i], seen.allowed[i])
                for i, block in enumerate(blocks)
            )
            return layers, seen.mlp_width, seen.hidden_size
        # the model's code reads values, or mixes devices
        except Exception:
            continue
        finally:
            _SEEN.pop()
    return None


def _is_parallel(block: nn.Module, seen: _Seen, index: int) -> bool:
    """Whether the MLP's input does not depend on the attention's output."""
    kinds = {layout.parallel for layout in fitting_layouts(block)}
    if len(kinds) == 1:
        return kinds.pop()
    read, given = seen.read[index], seen.attended[index]
    (slope,) = torch.autograd.grad(read.sum(), given, allow_unused=True, retain_graph=True)
    return slope is None


@contextmanager
def _noted(module: PreTrainedModel, blocks: list[nn.Module], seen: _Seen) -> Iterator[None]:
    """Record what the blocks do, with the functions of this file, while this context lasts.

    Mixtures of experts use an implementation that does not read values.
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
    """Read the sizes of a decoder block from the config."""
    layers = getattr(config, "per_layer_config", None)  # present where layers differ
    config = layers[index] if layers else config
    n_heads = int(config.num_attention_heads)
    groups = getattr(config, "num_key_value_heads", None) or n_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return LayerBlueprint(
        fitting_layouts(block)[0].parallel, n_heads, int(groups), int(size), int(size), None
    )
