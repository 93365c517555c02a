"""Reference means: the mean vectors of each kind of edge over a corpus.

Under mean ablation, a removed edge contributes its mean instead of nothing:

    residual    the mean stream at that half-layer
    MLP         the mean of what the layer's MLP adds
    attention   a W_O v', where a is the edge's weight and v' the head's mean output per unit of
                attention weight. So a removed edge keeps its weight, and its value is replaced. If
                every edge of a head is removed, the head's mean output remains

Means are over all tokens of all texts. They are stored as safetensors with their provenance.

What this file does not do: it runs no masked model (`models/blocks.py` puts the means in).

Axes: T tokens, H query heads, S source tokens, V value head size, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .._util.arguments import checked_list
from .._util.files import checked_path, write_file
from .._util.json_schema import MAPPING, PATH, TEXT, check_keys, or_null, read_json
from .._util.progress import progress
from ..errors import ArgumentTypeError, InputError, StorageError
from ..models.blocks import Block, BlockMeans, BlockRecord
from ..models.conditions import tensors_on_cpu
from ..models.loading import Model
from ..models.weights import is_readable, matrix_size

SCHEMA = "densitometer.means/1"
# number of axes of each mean
AXES = {"residual_attention": 1, "attention": 2, "residual_mlp": 1, "mlp": 1}
MODEL = {"name": PATH, "revision": or_null(TEXT), "architecture": TEXT}


@dataclass(frozen=True)
class ReferenceMeans:
    """Reference means of one model over one corpus.

    Args:
        blocks: the means of each decoder block.
        provenance: model (name, revision, architecture), n_texts, n_tokens, and sha256 (of all
            token ids).

    Examples:
        >>> means = dm.reference_means(model, ["The captain looked at the sea", "One two three"])
        >>> len(means.blocks), means.provenance["n_texts"], means.provenance["n_tokens"]
        (6, 2, 9)
    """

    blocks: tuple[BlockMeans, ...]
    provenance: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the means to a safetensors file, which `load_means` reads.

        Raises:
            StorageError: the path cannot be written.
        """
        tensors = {
            f"{i}.{field.name}": value.contiguous()
            for i, block in enumerate(self.blocks)
            for field in fields(BlockMeans)
            if (value := getattr(block, field.name)) is not None
        }
        metadata = {"schema": SCHEMA, "provenance": json.dumps(self.provenance)}
        write_file(path, lambda file: file.write(save(tensors, metadata)))


@tensors_on_cpu()
def reference_means(model: Model, texts: Iterable[str]) -> ReferenceMeans:
    """Compute reference means over texts. Each text is cut to the model's context.

    Args:
        model: a model from `load_model`.
        texts: texts of at least two tokens each.

    Raises:
        InputError: a text is empty, too short or not valid Unicode, or no text is given.
        ArgumentTypeError: `texts` is not a list of texts, or `model` is not a model.

    Examples:
        >>> means = dm.reference_means(model, ["The captain looked at the sea", "One two three"])
        >>> dm.measure(model, "The captain", ablation=means, sizes=[1.0]).provenance["ablation"]
        'mean'
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"expected a model from densitometer.load_model, got {type(model).__name__}")
    texts = checked_list("texts", texts)
    if not texts:
        raise InputError("no texts to take means over; give at least one")
    sums: list[dict[str, Tensor]] = [{} for _ in model.adapter.blocks]
    n_tokens, digest = 0, hashlib.sha256()
    with progress("reference means", len(texts)) as advance:
        for text in texts:
            ids = model.encode(text, cut=True)
            n_tokens += len(ids)
            digest.update(json.dumps(ids).encode())
            for total, record in zip(sums, model.adapter.capture(ids)[0], strict=True):
                for name, value in _sums(record).items():
                    total[name] = total.get(name, torch.zeros_like(value)) + value
            advance(1)
    return ReferenceMeans(
        tuple(_means(total, n_tokens) for total in sums),
        {
            "model": _identity(model),
            "n_texts": len(texts),
            "n_tokens": n_tokens,
            "sha256": digest.hexdigest(),
        },
    )


def _sums(record: BlockRecord) -> dict[str, Tensor]:
    """Sum the vectors of each kind of edge over the tokens of a text, float64.

    Sums are made on the CPU, because not every device has float64.
    """
    group = record.weights.shape[0] // record.values.shape[0]  # query heads per key-value head
    # how much attention each source gets in all, (H, S)
    received = record.weights.cpu().sum(1, dtype=torch.float64)
    values = record.values.cpu().repeat_interleave(group, dim=0).double()  # (H, S, V)
    parts = {
        "heads": (received[:, None] @ values)[:, 0],  # (H, V), the heads' outputs, before a gate
        "weights": received.sum(1),  # (H,)
        "mlp": record.mlp.cpu().sum(0, dtype=torch.float64),
        "residual_mlp": record.residual_mlp.cpu().sum(0, dtype=torch.float64),
    }
    if record.residual_attention is not None:
        parts["residual_attention"] = record.residual_attention.cpu().sum(0, dtype=torch.float64)
    return parts


def _means(sums: dict[str, Tensor], n_tokens: int) -> BlockMeans:
    """Divide the sums of a decoder block by tokens, or by attention."""
    stream = sums.get("residual_attention")
    return BlockMeans(
        residual_attention=None if stream is None else (stream / n_tokens).float(),
        attention=(sums["heads"] / sums["weights"].clamp_min(1e-30)[:, None]).float(),
        residual_mlp=(sums["residual_mlp"] / n_tokens).float(),
        mlp=(sums["mlp"] / n_tokens).float(),
    )


def _identity(model: Model) -> dict[str, Any]:
    """Return name, revision and architecture of a model, which must equal those of its means."""
    return {"name": model.name, "revision": model.revision, "architecture": model.architecture}


def check_means(means: ReferenceMeans, model: Model) -> None:
    """Check that reference means belong to a model.

    Raises:
        InputError: the means have another name, revision or architecture, or other shapes.
    """
    ours, blocks = _identity(model), model.adapter.blocks
    provenance: Any = means.provenance
    theirs = provenance.get("model") if isinstance(provenance, Mapping) else None
    again = "compute them for this one"
    if theirs != ours:
        raise InputError(f"the means are of another model: {theirs}, not {ours}; {again}")
    if len(means.blocks) != len(blocks):
        raise InputError(
            f"the means are of another model: of {len(means.blocks)} blocks, not {len(blocks)}; {again}"
        )
    for block, of_block in zip(blocks, means.blocks, strict=True):
        for name, expected in _shapes(block, of_block.attention).items():
            value = getattr(of_block, name)
            shape = None if value is None else tuple(value.shape)
            if shape != expected:
                raise InputError(
                    f"the means are of another model: {block.index}.{name} has the shape {shape}, not {expected}; {again}"
                )


def _shapes(block: Block, attention: Tensor | None) -> dict[str, tuple[int, ...] | None]:
    """Shape of each mean of a decoder block. None for a mean that the block does not have.

    Args:
        attention: the mean to check, whose width is accepted where the output projection does not
            declare its sizes.
    """
    stream = (block.hidden_size,)
    projection: Any = block.projection
    size = projection.weight.numel() if is_readable(projection) else matrix_size(projection)
    if size is not None:
        width = size // block.hidden_size // block.n_heads
    else:
        width = attention.shape[-1] if attention is not None and attention.ndim else 0
    return {
        "residual_attention": None if block.layout.parallel else stream,
        "attention": (block.n_heads, width),
        "residual_mlp": stream,
        "mlp": stream,
    }


def load_means(path: str | Path) -> ReferenceMeans:
    """Read reference means from a file that `ReferenceMeans.save` or `densitometer means` wrote.

    Raises:
        StorageError: the file does not exist, is damaged, or does not hold reference means.

    Examples:
        >>> dm.reference_means(model, ["The captain looked at the sea"]).save("means.safetensors")
        >>> dm.load_means("means.safetensors").provenance["n_texts"]
        1
    """
    path = checked_path(path)
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        tensors = load(content)
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise StorageError(f"{str(path)!r} holds no reference means, or is damaged: {error}") from error
    if header.get("schema") != SCHEMA:
        raise StorageError(f"{str(path)!r} has the schema {header.get('schema')!r}; expected {SCHEMA!r}")
    try:
        provenance = read_json(header["provenance"])
        check_keys("provenance", provenance, {"model": MAPPING})
        check_keys("provenance.model", provenance["model"], MODEL)
        return ReferenceMeans(_blocks(tensors), provenance)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise StorageError(
            f"{str(path)!r} is damaged: {reason}. Give the file as `save` wrote it, or compute the means again"
        ) from error


def _blocks(tensors: Mapping[str, Tensor]) -> tuple[BlockMeans, ...]:
    """Collect the means of each decoder block from tensors named INDEX.NAME.

    Raises:
        ValueError: a tensor is missing, has an unknown name, another shape or dtype, or holds NaN
            or infinities.
    """
    count = len({name.partition(".")[0] for name in tensors})
    expected = {f"{i}.{name}": n_axes for i in range(count) for name, n_axes in AXES.items()}
    if not tensors:
        raise ValueError("it holds no means")
    for name, value in tensors.items():
        if name not in expected:
            raise ValueError(
                f"{name!r} is unknown; expected one of {', '.join(AXES)} of the blocks 0 to {count - 1}"
            )
        if value.ndim != expected[name] or not value.is_floating_point():
            raise ValueError(
                f"{name!r} must have {expected[name]} axes of floating-point numbers, got {value.ndim} of {value.dtype}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{name!r} holds NaN or infinities")
    lacking = [name for name in expected if name not in tensors and not name.endswith(".residual_attention")]
    if lacking:
        raise ValueError(f"{lacking[0]!r} is missing")
    return tuple(BlockMeans(**{name: tensors.get(f"{i}.{name}") for name in AXES}) for i in range(count))
