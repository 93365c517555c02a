"""Resolve the name of a model to the folder or Hub id that transformers takes, and to its files.

A name is one of these, tried in this order:

1. a bundled model;
2. a GGUF file on this machine;
3. a folder that `save_pretrained` wrote, or a folder with a PEFT adapter, which is put on the base
   model that its config names;
4. OWNER/NAME/FILE.gguf, a GGUF file on the Hub;
5. a Hub id.

What this file does not do: it does not load a model or use the network (`checkpoint.py`).
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError
from .fingerprint import as_cached, files_fingerprint, older_fingerprint, states_of
from .gguf import is_gguf

DEMO_FOLDER = Path(__file__).parent / "demo"
_WEIGHTS = frozenset({".safetensors", ".bin"})  # endings of files that hold weights
_CHECKPOINT = re.compile(r"(?:checkpoint|global_step|step|iter)-?\d+")
_ADDRESS = re.compile(
    r"\s*(?:\w+://(?:www\.)?(?P<host>[^/]*)|(?P<bare>huggingface\.co|hf\.co)(?=/))", re.IGNORECASE
)
_LONGEST_NAME = 4096
# Files besides weights and config on which the numbers depend: the tokenizer, and code.
_OTHERS = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "tekken.json",
    "chat_template.*", "*.index.json", "*.py",
)  # fmt: skip


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with densitometer."""
    return tuple(sorted(p.name for p in DEMO_FOLDER.iterdir() if (p / "config.json").exists()))


@dataclass(frozen=True)
class Source:
    """Where a model is, as transformers takes it.

    Args:
        place: a folder or a Hub id.
        gguf_file: the name of the GGUF file in that place; None for another format.
        adapter: the folder of a PEFT adapter that is applied to the model; None without one.
    """

    place: str
    gguf_file: str | None = None
    adapter: Path | None = None

    @property
    def config_file(self) -> str:
        """Name of the file that holds the config."""
        return self.gguf_file or "config.json"


@dataclass(frozen=True)
class Origin:
    """Where the weights of a loaded model were read from.

    Args:
        commit: the commit on the Hub; None where it is not known.
        files: the files on this machine: those of a folder or an adapter, or a GGUF file. Empty for
            a model in the Hub's cache.
        file: the name of the GGUF file; None for another format.
        quantization: the type of a GGUF file before its weights were dequantised, such as Q4_K_M;
            None for another format.
        cached: the files in the Hub's cache; empty for a model elsewhere.
        states: state of each file before it was read (`fingerprint.states_of`).
    """

    commit: str | None = None
    files: tuple[Path, ...] = ()
    file: str | None = None
    quantization: str | None = None
    cached: tuple[Path, ...] = ()
    states: tuple[Any, ...] = field(default=(), repr=False)

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of all weights, the config and the tokenizer (`fingerprint.py`).

        For a model in the Hub's cache it is the commit, as long as the files there have the digests
        that are their names. None if it is not known, or if a file has changed since the model was
        read.
        """
        try:
            files = self.files or self.cached
            if self.states and states_of(files) != self.states:
                return None
            if self.files:
                return files_fingerprint(self.files)
            return self.commit if as_cached(self.cached) else files_fingerprint(self.cached)
        except OSError:
            return None

    @cached_property
    def older(self) -> str | None:
        """Fingerprint that older versions of densitometer gave to the same files."""
        names = tuple(path for path in self.files if _of_older(path) or path.name == self.file)
        try:
            return older_fingerprint(names, self.quantization is not None) if names else self.commit
        except OSError:
            return None


def _of_older(path: Path) -> bool:
    """Whether the fingerprint of older versions depends on a file."""
    return _holds_weights(path) or path.name == "config.json" or path.name.startswith("adapter_")


def source_of(label: str, gguf_file: str | None = None) -> Source:
    """Resolve a model's name to its folder, file or Hub id.

    Args:
        label: the model's name.
        gguf_file: the name of a GGUF file in the folder or Hub repository of that name; None for
            another format.

    Raises:
        ModelError: the folder or file does not exist, or is not a model.
        InputError: the name is empty, or it names a GGUF file and `gguf_file` is given, too.
    """
    if not label:
        raise InputError(
            f"the name of the model is empty; give one of {', '.join(bundled_models())}, a folder, a GGUF file or a Hub id"
        )
    if label in bundled_models():
        return Source(str(DEMO_FOLDER / label), _within(DEMO_FOLDER / label, gguf_file))
    _refuse_address(label)
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
        names = sorted(entry.name for entry in path.iterdir() if is_gguf(entry.name))
        if names:
            more = f" (or another of its {len(names)})" if names[1:] else ""
            raise ModelError(
                f"the folder {label!r} holds GGUF files; name one: {str(path / names[0])!r}{more}"
            )
        if checkpoints := _checkpoints(path):
            last = str(path / checkpoints[-1])
            raise ModelError(
                f"the folder {label!r} is not a model but a training run with {len(checkpoints)} checkpoints "
                f"({', '.join(checkpoints[:3])}{' ...' if checkpoints[3:] else ''}); give one of them: {last!r}"
            )
        if _CHECKPOINT.fullmatch(path.name) or any(path.glob("*_states.pt")) or any(path.glob("*.distcp")):
            raise ModelError(
                f"the folder {label!r} is a checkpoint of a trainer without the model's config.json; gather its weights and "
                "save the model (save_pretrained, or zero_to_fp32.py of DeepSpeed), and give that folder"
            )
        raise ModelError(
            f"the folder {label!r} is not a model: it has no config.json. Expected a folder written by save_pretrained"
        )
    if path.exists():
        raise ModelError(
            f"{label!r} is a file; expected a folder written by save_pretrained, a GGUF file (.gguf), or a Hub id"
        )
    # OWNER/NAME/FILE.gguf, on the Hub
    if is_gguf(label) and gguf_file is None:
        place, _, gguf_file = label.rpartition("/")
        return Source(place, gguf_file)
    if label.startswith((".", "/", "~")) or label.count("/") > 1:
        raise ModelError(f"there is no folder {label!r}; bundled models are {', '.join(bundled_models())}")
    return Source(label, gguf_file)


def with_subfolder(label: str, keywords: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Append the keyword `subfolder` to the name if the name is a folder on this machine.

    With a folder, transformers respects the keyword for some files and ignores it for others.

    Returns:
        The new name, and the keywords without `subfolder`. Both are unchanged for other names.
    """
    subfolder = keywords.get("subfolder")
    _refuse_address(label)
    if not subfolder or label in bundled_models() or not Path(label).expanduser().is_dir():
        return label, keywords
    return str(Path(label) / subfolder), {k: v for k, v in keywords.items() if k != "subfolder"}


def _refuse_address(label: str) -> None:
    """Refuse the address of a web page, or a string that cannot be a path, as a model's name.

    Raises:
        ModelError: the name is an address, is too long or has a null character.
    """
    if "\0" in label or len(label.encode(errors="surrogateescape")) > _LONGEST_NAME:
        raise ModelError(
            f"the name of a model cannot have a null character or more than {_LONGEST_NAME:,} bytes, got {label[:60]!r}...; "
            "give a folder, a GGUF file, a Hub id or a bundled model"
        )
    found = _ADDRESS.match(label)
    if found is None:
        return
    host, path = found["host"] or found["bare"], label[found.end() :]
    if host not in ("huggingface.co", "hf.co"):
        raise ModelError(
            f"a model is not fetched from an address; got {label!r}. Download it and give its folder, or give its Hub id"
        )
    parts = [part for part in path.split("?")[0].split("#")[0].split("/") if part]
    kind = parts.pop(0) if parts[:1] and parts[0] in ("datasets", "spaces") else None
    if kind is not None:
        raise ModelError(
            f"{label!r} is the address of one of the Hub's {kind}, not of a model; give a model's name"
        )
    name = "/".join(parts[:2]) or "owner/name"
    more = ""
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):
        if is_gguf(parts[-1]):
            name = "/".join([name, *parts[4:]])
        if parts[3] != "main":
            more = f", with the revision {parts[3]!r} (revision=, or NAME@REVISION in a study)"
    raise ModelError(
        f"a model of the Hub is given by its name, not by an address; got {label!r}. Give {name!r}{more}"
    )


def _checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints of a training run in a folder, in order of their steps."""
    names = [
        entry.name
        for entry in folder.iterdir()
        if _CHECKPOINT.fullmatch(entry.name) and (entry / "config.json").exists()
    ]
    return sorted(names, key=lambda name: int(name.rpartition("-")[2]))


def _within(folder: Path, gguf_file: str | None) -> str | None:
    """Check that a GGUF file is in a folder, and return its name, or None if none is given.

    Raises:
        ModelError: the folder has no such file.
    """
    if gguf_file is not None and not (folder / gguf_file).is_file():
        names = sorted(entry.name for entry in folder.iterdir() if is_gguf(entry.name))
        raise ModelError(
            f"there is no file {gguf_file!r} in {str(folder)!r}"
            + (f"; it holds {', '.join(names[:5])}" if names else ", nor any other GGUF file")
        )
    return gguf_file


def _with_adapter(label: str, folder: Path) -> Source:
    """Resolve a folder with a PEFT adapter to its base model, with the adapter.

    Raises:
        ModelError: peft is not installed, or the adapter's config does not name a base model that
            can be found.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"the folder {label!r} holds a PEFT adapter, and putting it on its base model needs peft, which is not "
            "installed: pip install peft"
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
            f"the adapter_config.json of {label!r} gives {base!r} as base_model_name_or_path; expected a name, a folder or "
            "a Hub id. Put that of the base model there"
        )
    try:
        source = source_of(base)
    except (ModelError, InputError) as error:
        raise ModelError(
            f"the base model {base!r} of the adapter {label!r} cannot be found: {error}"
        ) from error
    if source.adapter is not None:
        raise ModelError(
            f"the base model {base!r} of the adapter {label!r} is an adapter itself; merge them first"
        )
    return replace(source, adapter=folder)


def local_files(source: Source) -> tuple[Path, ...]:
    """List the files on this machine on which a model's numbers depend, in a fixed order.

    These are its weights, its config, its tokenizer and its code. The list is empty for a Hub id.
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
    return model_files(folder)


def model_files(folder: Path) -> tuple[Path, ...]:
    """List the files of a folder on which a model's numbers depend, sorted."""
    return tuple(
        path
        for path in _files_of(folder, "*")
        if _holds_weights(path) or path.name == "config.json" or any(map(path.match, _OTHERS))
    )


def _files_of(folder: Path, pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.glob(pattern) if path.is_file()))


def _holds_weights(path: Path) -> bool:
    return path.suffix in _WEIGHTS
