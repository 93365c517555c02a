"""Sources of models: names, resolved to what transformers takes, and the files behind them.

A name is a bundled model's, a Hub id, a folder that `save_pretrained` wrote, a GGUF file, or a folder with a PEFT adapter,
which is laid onto the base model that its config names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import InputError, ModelError
from .gguf import is_gguf

DEMO_FOLDER = Path(__file__).parent / "demo"
_WEIGHTS = frozenset({".safetensors", ".bin"})  # endings of files that hold weights
_END = 2**16  # bytes at either end of a folder's weights that its fingerprint reads
_BLOCK = 2**22


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with densitometer."""
    return tuple(sorted(p.name for p in DEMO_FOLDER.iterdir() if (p / "config.json").exists()))


@dataclass(frozen=True)
class Source:
    """What transformers is handed for a model's name.

    Args:
        place: a folder or a Hub id.
        gguf_file: the name of the GGUF file in it, or None.
        adapter: the folder of a PEFT adapter that is laid onto it, or None.
    """

    place: str
    gguf_file: str | None = None
    adapter: Path | None = None

    @property
    def config_file(self) -> str:
        """The file that the config is read from."""
        return self.gguf_file or "config.json"


@dataclass(frozen=True)
class Origin:
    """What a loaded model's weights were read from.

    Args:
        commit: on the Hub, where it is known.
        files: on this machine: those of a folder, a GGUF file, an adapter's; empty for what lies in the Hub's cache.
        file: the name of the GGUF file, or None.
        quantization: of a GGUF file, before its weights were dequantised (Q4_K_M, say); None elsewhere.
    """

    commit: str | None = None
    files: tuple[Path, ...] = ()
    file: str | None = None
    quantization: str | None = None

    @cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 of the files, or the Hub's commit. None where neither is known.

        A folder's weights are read at their first and last 64 KiB only; a GGUF file and an adapter whole.
        """
        if not self.files:
            return self.commit
        digest = hashlib.sha256()
        for path in self.files:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                if self.quantization is None and not path.name.startswith("adapter_"):
                    digest.update(file.read(_END))
                    file.seek(max(0, size - _END))
                    digest.update(file.read(_END))
                else:
                    while block := file.read(_BLOCK):
                        digest.update(block)
        return digest.hexdigest()


def source_of(label: str, gguf_file: str | None = None) -> Source:
    """Resolve a model's name.

    Args:
        gguf_file: the name of a GGUF file in the folder or Hub repository that the name is of.

    Raises:
        ModelError: the folder or file does not exist, or is not a model.
        InputError: the name is empty, or a GGUF file is named twice.
    """
    if not label:
        raise InputError(
            f"the name of the model is empty; give one of {', '.join(bundled_models())}, a folder, a GGUF file or a Hub id"
        )
    if label in bundled_models():
        return Source(str(DEMO_FOLDER / label), _within(DEMO_FOLDER / label, gguf_file))
    path = Path(label).expanduser()
    if is_gguf(label) and (path.is_file() or label.count("/") != 2 or label.startswith((".", "/", "~"))):
        if gguf_file is not None:
            raise InputError(
                f"{label!r} is a GGUF file already, so gguf_file={gguf_file!r} is one too many; give either a folder with "
                "gguf_file=, or the file"
            )
        if not path.is_file():
            raise ModelError(f"there is no file {label!r}")
        return Source(str(path.parent), path.name)
    if path.is_dir():
        if gguf_file is not None:
            return Source(str(path), _within(path, gguf_file))
        if (path / "config.json").exists():
            return Source(str(path))
        if (path / "adapter_config.json").exists():
            return _with_adapter(label, path)
        found = sorted(entry.name for entry in path.iterdir() if is_gguf(entry.name))
        if found:
            more = f" (or another of its {len(found)})" if found[1:] else ""
            raise ModelError(
                f"the folder {label!r} holds GGUF files; name one: {str(path / found[0])!r}{more}"
            )
        raise ModelError(
            f"the folder {label!r} is not a model: it has no config.json. Expected a folder written by save_pretrained"
        )
    if path.exists():
        raise ModelError(
            f"{label!r} is a file; expected a folder written by save_pretrained, a GGUF file (.gguf), or a Hub id"
        )
    if is_gguf(label) and gguf_file is None:  # owner/name/file.gguf, on the Hub
        place, _, gguf_file = label.rpartition("/")
        return Source(place, gguf_file)
    if label.startswith((".", "/", "~")) or label.count("/") > 1:
        raise ModelError(f"there is no folder {label!r}; bundled models are {', '.join(bundled_models())}")
    return Source(label, gguf_file)


def _within(folder: Path, gguf_file: str | None) -> str | None:
    if gguf_file is not None and not (folder / gguf_file).is_file():
        found = sorted(entry.name for entry in folder.iterdir() if is_gguf(entry.name))
        raise ModelError(
            f"there is no file {gguf_file!r} in {str(folder)!r}"
            + (f"; it holds {', '.join(found[:5])}" if found else ", nor any other GGUF file")
        )
    return gguf_file


def _with_adapter(label: str, folder: Path) -> Source:
    """The base model that an adapter's config names, with the adapter."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"the folder {label!r} holds a PEFT adapter, and laying it onto its base model needs peft, which is not installed: "
            "pip install peft"
        )
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(
            f"the adapter_config.json of {label!r} names no base model ({type(error).__name__}: {error}); expected a folder "
            "written by PeftModel.save_pretrained"
        ) from error
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"the adapter_config.json of {label!r} gives {base!r} as base_model_name_or_path; expected a name, a folder or a Hub "
            "id. Put the base model's there"
        )
    try:
        found = source_of(base)
    except (ModelError, InputError) as error:
        raise ModelError(
            f"the base model {base!r} of the adapter {label!r} cannot be had: {error}"
        ) from error
    if found.adapter is not None:
        raise ModelError(
            f"the base model {base!r} of the adapter {label!r} is an adapter itself; merge them first"
        )
    return replace(found, adapter=folder)


def local_files(source: Source) -> tuple[Path, ...]:
    """Files on this machine that hold a model's weights and config, in a fixed order.

    Empty for a Hub id.
    """
    return _base_files(source) + (
        _files_of(source.adapter, "adapter_*") if source.adapter is not None else ()
    )


def _base_files(source: Source) -> tuple[Path, ...]:
    folder = Path(source.place)
    if not folder.is_dir():
        return ()
    if source.gguf_file is not None:
        return (folder / source.gguf_file,)
    return tuple(
        path for path in _files_of(folder, "*") if _holds_weights(path) or path.name == "config.json"
    )


def _files_of(folder: Path, pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.glob(pattern) if path.is_file()))


def _holds_weights(path: Path) -> bool:
    return path.suffix in _WEIGHTS
