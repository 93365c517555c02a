"""Read the headers of GGUF files, the format of llama.cpp.

The `gguf` library reads the header. Transformers makes a config, a tokenizer and weights from it,
and reads the header again for each of them. Reading takes seconds if the vocabulary is large, so
the header is read once and shared (`header_shared`).

What this file does not do: it does not read weights. Transformers dequantises them, and a
measurement uses the dequantised weights, in the requested dtype (float32 by default).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy

from ..errors import ModelError

ENDING = ".gguf"
_NEEDED = ("gguf", "accelerate")  # transformers requires both


@dataclass(frozen=True)
class GgufHeader:
    """Facts in the header of a GGUF file.

    Args:
        architecture: llama.cpp's name of the model's architecture.
        quantization: the file's type, such as Q4_1 or Q4_K_M. If the header does not name it, the
            type of most of its weights, counted in bytes.
    """

    architecture: str
    quantization: str


def is_gguf(name: str) -> bool:
    """Whether a name has the ending of a GGUF file."""
    return name.lower().endswith(ENDING)


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, and check that the file is whole and not split.

    Raises:
        ModelError: `gguf` or `accelerate` is not installed, or the file is not a GGUF file, is
            damaged or cut short, or is one of several files of a model.
    """
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise ModelError(
            f"{path.name!r} is a GGUF file, and reading one needs {' and '.join(lacking)}, which {'are' if lacking[1:] else 'is'} "
            "not installed: pip install 'densitometer[gguf]'"
        )
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise ModelError(
            f"{path.name!r} is not a GGUF file: it begins with {start!r}, expected b'GGUF'. Copy or download it again"
        )
    try:
        reader = _reader(*_version(path))
        shards = _value(reader, "split.count", 1)
        architecture = str(_value(reader, "general.architecture", ""))
        quantization = _quantization(reader)
    # a wrong byte in a length or a type raises errors of numpy, enums and decoders
    except Exception as error:
        message = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ModelError(
            f"the GGUF file {path.name!r} ({path.stat().st_size:,} bytes) is damaged or cut short ({message}). Copy or "
            "download it again"
        ) from error
    if shards > 1:
        raise ModelError(
            f"{path.name!r} is one of the {shards} files of a split GGUF model, which transformers cannot load; join them: "
            f"llama-gguf-split --merge {path.name} joined.gguf"
        )
    return GgufHeader(architecture, quantization)


@contextmanager
def header_shared(path: Path) -> Iterator[None]:
    """Make `gguf.GGUFReader` read a GGUF file's header only once, while this context lasts.

    Transformers shows no progress bar during the context.
    """
    library: Any = importlib.import_module("gguf")
    conversion: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    plain, bar = library.GGUFReader, conversion.tqdm

    def shared(of: Any, *args: Any, **kwargs: Any) -> Any:
        same = not args and not kwargs and Path(of).resolve() == path.resolve()
        return _reader(*_version(path)) if same else plain(of, *args, **kwargs)

    library.GGUFReader = shared
    conversion.tqdm = partial(bar, disable=True)  # no setting of transformers switches this bar off
    try:
        yield
    finally:
        library.GGUFReader, conversion.tqdm = plain, bar
        _reader.cache_clear()


def _version(path: Path) -> tuple[Path, int, int]:
    """Return path, size and modification time of a file, as a key for its contents."""
    about = path.stat()
    return path.resolve(), about.st_size, about.st_mtime_ns


@lru_cache(maxsize=1)
def _reader(path: Path, size: int, modified: int) -> Any:
    """Read a GGUF file's header, once for the same contents."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """Subclass of `GGUFReader` that is five times as fast, and does not read beyond the end.

        It slices the memory map as a plain array. If a damaged file gives a length beyond its end,
        the library's own reader loops for that length without reading anything.
        """

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> numpy.ndarray:
            whole = vars(self).get("_whole")
            if whole is None:
                whole = self._whole = numpy.asarray(self.data)
            end = int(offset) + numpy.dtype(dtype).itemsize * int(count)
            if end > len(whole):
                raise EOFError(f"byte {end:,} was expected")
            values = whole[int(offset) : end].view(dtype)
            return values.view(values.dtype.newbyteorder(override_order or self.byte_order))

    return Reader(str(path))


def _value(reader: Any, key: str, default: Any) -> Any:
    """Value of a key in the header, or a default."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _quantization(reader: Any) -> str:
    """Name of the file's type, or else of the type of most of its weights, by bytes."""
    from gguf import LlamaFileType

    number = _value(reader, "general.file_type", None)
    named = {kind.value: kind.name for kind in LlamaFileType}
    if number in named:
        return named[number].removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
    return sizes.most_common(1)[0][0] if sizes else "unknown"
