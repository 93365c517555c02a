"""Fingerprints, by which the weights and the tokenizer of a model are recognised.

    files:HEX     SHA-256 over the SHA-256 of each file: all weights, config, tokenizer, code
    sampled:HEX   the same for files larger than `MOST_BYTES`, which would take minutes to read. Of
                  each file of weights, only evenly spread blocks are read
    memory:HEX    of a module in memory: a checksum of every tensor, the config and the tokenizer
    HEX (40)      the commit on the Hub, if every file in the cache has the digest that is its name
    HEX (64)      of older versions: the first and last 64 KiB of each file of weights (a GGUF file
                  and an adapter whole), and the config

Fingerprints of different kinds cannot be compared: it stays unknown whether the models are equal.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._util.files import file_digest, file_state

# Of more bytes than this (about a minute of reading), only blocks of the weights are read.
MOST_BYTES = 64 * 2**30
SAMPLED_BYTES = 8 * 2**30
_BLOCK = 2**22
# Bytes at either end of a file that the fingerprint of older versions reads.
_END = 2**16
# How many numbers of each tensor are compared to see quickly whether it has changed.
_PROBES = 64
_WORDS = 2**21


def files_fingerprint(files: Sequence[Path]) -> str:
    """Return the fingerprint of files. A file is read again only if it has changed.

    Raises:
        OSError: a file cannot be read.
    """
    total = sum(path.stat().st_size for path in files)
    sampled = total > MOST_BYTES
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        part = SAMPLED_BYTES * size // max(1, total) if sampled else size
        content = file_digest(path) if part >= size or size <= _BLOCK else _blocks(path, size, part)
        digest.update(f"{path.name} {size} {content}\n".encode(errors="surrogateescape"))
    return f"{'sampled' if sampled else 'files'}:{digest.hexdigest()}"


def _blocks(path: Path, size: int, part: int) -> str:
    """Return the SHA-256 of evenly spread blocks of a file, with the first and the last one.

    Args:
        path: the file.
        size: its number of bytes.
        part: number of bytes to read.
    """
    count = max(2, part // _BLOCK)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(count):
            file.seek((size - _BLOCK) * i // (count - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def older_fingerprint(files: Sequence[Path], whole: bool) -> str:
    """Return the fingerprint that older versions of densitometer gave to files.

    Args:
        files: the files of weights, the config, and those of an adapter.
        whole: whether these versions read the files whole, as they did with a GGUF file.
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            if not whole and not path.name.startswith("adapter_"):
                digest.update(file.read(_END))
                file.seek(max(0, size - _END))
                digest.update(file.read(_END))
            else:
                while block := file.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def as_cached(files: Sequence[Path]) -> bool:
    """Whether files in the Hub's cache are unchanged since they were downloaded.

    The cache names a file of weights by its SHA-256, and any other file by the SHA-1 that git gives
    it. A file with another kind of name counts as unchanged.
    """
    for path in files:
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            right = file_digest(blob) == blob.name
        elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
            content = blob.read_bytes()
            right = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name
        else:
            right = True
        if not right:
            return False
    return True


def states_of(files: Sequence[Path]) -> tuple[tuple[int, int, int, int] | None, ...]:
    """Return size, times and inode of each file, which change with its content.

    None for a file that does not exist.
    """

    def state(path: Path) -> tuple[int, int, int, int] | None:
        try:
            return file_state(path)
        except OSError:
            return None

    return tuple(map(state, files))


# --------------------------------------------------------------------------------------------------


def module_fingerprint(module: nn.Module, tokenizer: Any) -> str | None:
    """Return the fingerprint of a module in memory, with its tokenizer.

    None if weights are offloaded, or are of a type whose numbers cannot be read.
    """
    digest = hashlib.sha256(_config(module).encode(errors="surrogateescape"))
    try:
        with torch.no_grad():
            for name, tensor in _tensors(module):
                if tensor.is_meta:
                    return None
                about = f"{name} {tensor.dtype} {tuple(tensor.shape)} {_checksum(tensor)}\n"
                digest.update(about.encode())
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    digest.update(tokenizer_digest(tokenizer).encode())
    return f"memory:{digest.hexdigest()}"


def module_state(module: nn.Module) -> tuple[Any, ...] | None:
    """Return a value that nearly always changes if a weight does. It is quick to compute.

    It has, for each tensor, its address, torch's count of changes in place, and about `_PROBES` of
    its numbers. None if weights are offloaded, because their addresses then say nothing.
    """
    seen: list[Any] = []
    probes = []
    with torch.no_grad():
        for name, tensor in _tensors(module):
            if tensor.is_meta or type(tensor.data) is not Tensor:
                return None
            version = None if tensor.is_inference() else tensor._version
            seen.append((name, tensor.data_ptr(), version, tensor.dtype, tuple(tensor.shape)))
            if tensor.numel() and not tensor.is_complex():
                flat = tensor.detach().flatten() if tensor.is_contiguous() else tensor.detach().reshape(-1)
                probes.append(
                    flat[:: max(1, len(flat) // _PROBES)][: _PROBES + 1].to(torch.float64, copy=True).cpu()
                )
    values = torch.cat(probes).numpy().tobytes() if probes else b""
    return (*seen, hashlib.sha256(values).hexdigest(), _config(module))


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer: of its definition, or else of its vocabulary."""
    if tokenizer is None:
        return "none"
    inner: Any = getattr(tokenizer, "backend_tokenizer", None)
    try:
        vocabulary = None if hasattr(inner, "to_str") else tokenizer.get_vocab()
        content = inner.to_str() if vocabulary is None else json.dumps(vocabulary, sort_keys=True)
    except Exception:
        # a tokenizer of the user's own may lack either
        content = type(tokenizer).__qualname__
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(f"{content}\n{template}".encode(errors="surrogateescape")).hexdigest()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _config(module: nn.Module) -> str:
    """Write the config of a module as JSON, without its origin, versions and dtype."""
    config = getattr(module, "config", None)
    try:
        values = config.to_dict()  # type: ignore[union-attr]
        kept = {
            k: v
            for k, v in values.items()
            if not k.startswith("_") and k not in ("transformers_version", "dtype")
        }
        return json.dumps(kept, sort_keys=True, default=str)
    except (AttributeError, TypeError, ValueError):
        return ""


def _checksum(tensor: Tensor) -> tuple[int, int]:
    """Compute two checksums of a tensor's bits, read as 64-bit words.

    The first is their sum. The second is a sum weighted by position, so that their order matters.
    """
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if len(raw) % 8:
        raw = torch.cat([raw, raw.new_zeros(8 - len(raw) % 8)])
    plain = weighed = 0
    weights = torch.arange(1, 2 * min(_WORDS, max(1, len(raw) // 8)), 2, device=raw.device)
    for i, words in enumerate(raw.view(torch.int64).split(_WORDS)):
        plain += int(words.sum())
        weighed += (2 * i + 1) * int((words * weights[: len(words)]).sum())
    return plain % 2**64, weighed % 2**64


def comparable(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints are of the same kind. Only then can they be compared."""
    kinds = [None if f is None else f.partition(":")[0] if ":" in f else len(f) for f in (one, other)]
    return None not in kinds and kinds[0] == kinds[1]
