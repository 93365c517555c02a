"""Read a model and its tokenizer from a folder or the Hub, whole or not at all.

What transformers only logs is refused here by name: weights that the checkpoint lacks (transformers makes them up at
random), has in other shapes, or has in blocks where the config knows of none. What it raises, of a dozen kinds, becomes one
`ModelError`. Nothing waits for a network that is not there, nothing asks on the terminal, and no code comes with a model
unless `trust_remote_code=True` says so.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants as hub
from huggingface_hub import errors as hub_errors
from huggingface_hub import get_session, is_offline_mode
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, extract_commit_hash

from ..errors import DensitometerError, DensitometerWarning, InputError, ModelError
from .conditions import plain_torch
from .gguf import header_shared, read_header
from .placement import is_out_of_memory
from .source import Origin, Source, bundled_models, local_files

# Keywords of from_pretrained that a tokenizer and a config take too.
_SHARED_KEYWORDS = frozenset(
    {
        "revision", "token", "cache_dir", "trust_remote_code", "local_files_only", "force_download", "proxies",
        "subfolder",
    }
)  # fmt: skip
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "tekken.json",
)  # fmt: skip
_TO_DO = "Check the keywords given, and that the folder or Hub repository is what save_pretrained writes"
_SECONDS_FOR_THE_HUB = 5.0
# Constants that older versions of transformers saved with the weights: masks, positions and rotary frequencies.
_SAVED_CONSTANTS = re.compile(r"(\.inv_freq|\.masked_bias|\.position_ids|(attn|attention)\.bias)$")


@dataclass(frozen=True)
class Checkpoint:
    """What was read.

    Args:
        tokenizer: None where there is none, or none was asked for.
        revision: the commit on the Hub, where it is known; else the revision asked for, or None.
        origin: what the weights were read from.
    """

    module: PreTrainedModel
    tokenizer: Any
    revision: str | None
    origin: Origin


def read_checkpoint(label: str, source: Source, with_tokenizer: bool, keywords: dict[str, Any]) -> Checkpoint:
    """Read a model, its tokenizer first.

    Args:
        label: the model's name, for messages.
        source: where it is.
        keywords: of `from_pretrained`.

    Raises:
        ModelError: the checkpoint cannot be read, is incomplete, or is not a causal language model.
        InputError: `weights_only=False`.
    """
    if not keywords.get("weights_only", True):
        raise InputError(
            "weights_only=False would let pickled weights run code; densitometer reads them without"
        )
    dtype = keywords.get("dtype", "auto")
    if (
        isinstance(dtype, str)
        and dtype != "auto"
        and not isinstance(getattr(torch, dtype, None), torch.dtype)
    ):
        raise InputError(
            f"there is no dtype {dtype!r}; give 'float64', 'float32', 'bfloat16', 'float16' or a torch.dtype"
        )
    with _reading(label, source, keywords) as (path, config, told):
        quantization = None
        if source.gguf_file is not None:
            quantization = read_header(Path(path)).quantization
            told = {**told, "config": config, "gguf_file": source.gguf_file} | _dequantised()
        tokenizer = _read_tokenizer(label, source, config, _shared(told)) if with_tokenizer else None
        # with what is missing or has other shapes, to refuse it by name below
        told = {**told, "output_loading_info": True, "ignore_mismatched_sizes": True}
        read: Any = AutoModelForCausalLM.from_pretrained(source.place, **told)
        module, info = read
        if source.adapter is not None:
            module.load_adapter(str(source.adapter))
    _refuse_incomplete(label, module, info)
    # a folder has no revision, whatever was asked for
    revision = None if os.path.isdir(source.place) else keywords.get("revision")
    commit = extract_commit_hash(path, getattr(config, "_commit_hash", None))
    origin = Origin(commit, local_files(source), source.gguf_file, quantization)
    return Checkpoint(module, tokenizer, commit or revision, origin)


def _dequantised() -> dict[str, Any]:
    """Keywords under which transformers unpacks every weight of a GGUF file.

    It then fetches no code that would compute with packed ones. Its older versions always unpack.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def read_config(label: str, source: Source, **keywords: Any) -> Any:
    """The config of a decoder-only causal language model, without its weights.

    Args:
        label: the model's name, for messages.
        source: where it is; of a GGUF file the header alone is read.
        **keywords: of `AutoConfig.from_pretrained`.

    Raises:
        ModelError: the config cannot be read, or is not of a causal language model.
    """
    with _reading(label, source, keywords) as (_, config, told):
        return (
            AutoConfig.from_pretrained(source.place, **told) if keywords.keys() - _SHARED_KEYWORDS else config
        )


def read_tokenizer(name: str, **keywords: Any) -> Any:
    """The tokenizer of this name or folder.

    Raises:
        ModelError: the tokenizer cannot be read.
    """
    with _quiet():
        try:
            return AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **keywords})
        except Exception as error:
            raise ModelError(
                f"cannot load the tokenizer {name!r}: {_told(error)}; give a folder or a Hub id that holds one, or a tokenizer"
            ) from error


# ----------------------------------------------------------------------------------------------------


@contextmanager
def _reading(
    label: str, source: Source, keywords: dict[str, Any]
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield what reading a model needs.

    That is the path of the file that holds the config, the config, and the keywords for reading the
    rest.

    Whatever goes wrong while this context lasts is raised as one `ModelError`.
    """
    # None would have transformers ask on the terminal
    keywords = {**keywords, "trust_remote_code": keywords.get("trust_remote_code") or False}
    place, told_by = source.place, source.config_file
    with _quiet() as logged, ExitStack() as stack:
        unreachable = _why_unreachable(place, keywords)
        if unreachable is not None:
            keywords["local_files_only"] = True  # what was downloaded before can still be used
        folder = config = None
        try:
            path = _file(place, told_by, _shared(keywords))
            if path is None:
                raise ModelError(
                    f"{label!r} is not a model: it has no {told_by}. Give one that transformers can load"
                )
            attention = {k: v for k, v in keywords.items() if k == "attn_implementation"}
            if source.gguf_file is None:
                folder = Path(path).parent
                _refuse_files_elsewhere(label, folder)
            else:
                read_header(Path(path))
                stack.enter_context(header_shared(Path(path)))
                attention["gguf_file"] = source.gguf_file
            config = AutoConfig.from_pretrained(place, **_shared(keywords), **attention)
            _refuse_other_kinds(label, config)
            _refuse_weights_elsewhere(label, config)
            _refuse_kernels(label, config, attention.get("attn_implementation"))
            yield path, config, keywords
        except DensitometerError:
            raise
        except Exception as error:  # safetensors, pickle, tokenizers, validators, remote code raise anything
            if is_out_of_memory(error):
                raise
            reason = _reason(error, label, folder, unreachable, keywords, logged)
            if config is None and folder is not None:
                reason = reason.replace(_TO_DO, "Check its config.json")
            raise ModelError(f"cannot load the model {label!r}: {reason}") from error


def _shared(keywords: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keywords.items() if k in _SHARED_KEYWORDS}


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Silence transformers, and yield what it logs.

    No safetensors version of pickled weights is requested from the Hub either.

    One thread at a time: these settings, and what `from_pretrained` sets meanwhile, are the process's.
    """
    with plain_torch(), _transformers_set() as logged:
        yield logged


@contextmanager
def _transformers_set() -> Iterator[list[str]]:
    logged: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    handler = Keep()
    bars = transformers_logging.is_progress_bar_enabled()
    ordered = os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    verbosity = transformers_logging.get_verbosity()
    root = logging.getLogger("transformers")
    handlers = list(root.handlers)
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    root.addHandler(handler)
    try:
        yield logged
    finally:
        root.handlers[:] = handlers
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if ordered is None:
            del os.environ["DISABLE_SAFETENSORS_CONVERSION"]
        else:
            os.environ["DISABLE_SAFETENSORS_CONVERSION"] = ordered


def _why_unreachable(source: str, keywords: dict[str, Any]) -> str | None:
    """Return why the Hub cannot be reached, by one short request without retries.

    None where it can be reached, or need not be.
    """
    if os.path.isdir(source):
        return None
    if keywords.get("local_files_only") or is_offline_mode():
        return "the network is switched off (HF_HUB_OFFLINE, or local_files_only=True)"
    try:
        get_session().head(hub.ENDPOINT, timeout=_SECONDS_FOR_THE_HUB, follow_redirects=False)
    except Exception as error:  # the client's own, whichever one this version of the library uses
        return f"{hub.ENDPOINT} cannot be reached ({error})"
    return None


def _file(source: str, name: str, shared: dict[str, Any], **how: Any) -> Any:
    return cached_file(source, name, **{k: v for k, v in shared.items() if k != "trust_remote_code"}, **how)


def _refuse_other_kinds(label: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{label!r} is an encoder-decoder model ({config.model_type}); densitometer measures decoder-only "
            "causal language models"
        )
    if type(config) not in AutoModelForCausalLM._model_mapping and not getattr(config, "auto_map", None):
        raise ModelError(
            f"{label!r} ({config.model_type}) is not a causal language model that transformers knows; densitometer "
            "measures decoder-only causal language models"
        )


def _read_tokenizer(label: str, source: Source, config: Any, shared: dict[str, Any]) -> Any:
    """Read the model's own tokenizer.

    None where the model comes without one, or in a GGUF file from which none can be built.

    Transformers makes up an empty tokenizer for some types of models that come without one.

    Warns:
        DensitometerWarning: no tokenizer can be built from the GGUF file.
    """
    of_file = {} if source.gguf_file is None else {"gguf_file": source.gguf_file, "config": config}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source.place, **shared, **of_file)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        tokenizer, problem = None, error
    else:
        if len(tokenizer) > len(tokenizer.all_special_ids):
            return tokenizer
        problem = ValueError("it has no entries")
    if source.gguf_file is not None:
        warnings.warn(
            f"no tokenizer can be built from the GGUF file of {label!r} ({_told(problem)}), so only token ids can be measured; "
            "give the original model's by tokenizer=",
            DensitometerWarning,
            stacklevel=5,
        )
        return None
    found = [
        name
        for name in _TOKENIZER_FILES
        if _file(source.place, name, shared, _raise_exceptions_for_missing_entries=False) is not None
    ]
    if not found:
        return None
    raise ModelError(
        f"the tokenizer of {label!r} is broken ({', '.join(found)}): {_told(problem)}; give another one by tokenizer=, or "
        "tokenizer=False to measure token ids only"
    ) from problem


def _refuse_incomplete(label: str, module: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a model whose weights are not all the checkpoint's, or whose checkpoint has more in its blocks."""
    faults = []
    if missing := sorted(info["missing_keys"]):
        total = len(module.state_dict())
        faults.append(
            f"the checkpoint lacks {len(missing)} of {total} weights ({_first(missing)}), which would be drawn at random"
        )
    if mismatched := sorted(info["mismatched_keys"], key=str):
        key, saved, wanted = mismatched[0]
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        faults.append(f"{key} is {tuple(saved)} in the checkpoint but {tuple(wanted)} by the config{more}")
    blocks = tuple(name for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList))
    unexpected = sorted(key for key in info["unexpected_keys"] if not _SAVED_CONSTANTS.search(key))
    inside = [key for key in unexpected if any(re.match(rf"{re.escape(name)}\.\d", key) for name in blocks)]
    if inside and getattr(module, "hf_quantizer", None) is None:
        faults.append(
            f"the checkpoint has {len(inside)} weights in its blocks that the config knows nothing of ({_first(inside)})"
        )
    if faults:
        raise ModelError(
            f"{label!r} is not the model that its config describes: {'; '.join(faults)}. Expected a config and weights that "
            "were saved together; compare config.json with them, or download again (force_download=True)"
        )
    if outside := [key for key in unexpected if key not in inside]:
        warnings.warn(
            f"{len(outside)} weights of {label!r} are not part of {type(module).__name__} and are not measured "
            f"({_first(outside)})",
            DensitometerWarning,
            stacklevel=4,
        )


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:2]) + (" ..." if len(keys) > 2 else "")


# ----------------------------------------------------------------------------------------------------


def _reason(
    error: Exception,
    label: str,
    folder: Path | None,
    unreachable: str | None,
    keywords: dict[str, Any],
    logged: Sequence[str],
) -> str:
    """What went wrong and what to do, from what transformers raised and what lies in the folder."""
    causes = list(_causes(error))
    kinds = tuple(type(cause) for cause in causes)

    def caused_by(kind: type) -> bool:
        return any(issubclass(k, kind) for k in kinds)

    message = str(error)
    if "trust_remote_code" in message:
        return (
            "it comes with code of its own, which would run on this machine; read that code, then give "
            "trust_remote_code=True"
        )
    if unreachable is not None and not caused_by(SafetensorError) and folder is None:
        return (
            f"{unreachable}, and it is not among the models that were downloaded before. Connect, or give a folder written by "
            f"save_pretrained or a bundled model ({', '.join(bundled_models())})"
        )
    if unsupported := re.search(r"GGUF model with architecture (\S+) is not supported", message):
        return (
            f"this version of transformers ({version('transformers')}) cannot build a model of the architecture "
            f"{unsupported[1]!r} from a GGUF file; a newer one may, or give the original model (a Hub id or a folder)"
        )
    if caused_by(hub_errors.GatedRepoError):
        return (
            f"it is gated: its owners give access to those who ask on {hub.ENDPOINT}/{label}. Ask there, then log in "
            "(`hf auth login`) or give token=..."
        )
    if caused_by(hub_errors.RepositoryNotFoundError):
        return (
            f"there is no such model on {hub.ENDPOINT}, or it is private. Check the name (bundled models are "
            f"{', '.join(bundled_models())}), or log in (`hf auth login`) or give token=..."
        )
    if caused_by(hub_errors.RevisionNotFoundError):
        return f"it has no revision {keywords.get('revision')!r}; give a branch, a tag or a commit of it"
    if unknown := re.search(r"has model type `([^`]*)` but Transformers does not recognize", message):
        return (
            f"this version of transformers ({version('transformers')}) knows no model type {unknown[1]!r}; a newer one may, or "
            "the model brings code of its own (trust_remote_code=True)"
        )
    if caused_by(pickle.UnpicklingError):
        return (
            "its weights are a pickle that holds more than tensors, or is damaged; reading it could run code. Expected "
            "tensors only; convert it to safetensors where you trust it"
        )
    if folder is not None:
        if caused_by(SafetensorError) and (broken := _broken_weights(folder)):
            return f"{broken}; it is damaged or cut short. Copy or download it again (force_download=True)"
        if broken := _broken_json(folder):
            return f"{broken}; it is damaged or cut short. Copy or download it again"
        if caused_by(FileNotFoundError) and (lacking := _lacking_shards(folder)):
            return (
                f"its index names {len(lacking)} weight files that are not there ({_first(lacking)}). Copy or download them "
                "again"
            )
    report = next((text for text in reversed(logged) if "LOAD REPORT" in text), "")
    row = re.search(r"^(.+?) +\| \S*CONVERSION(?s:.*?)^(\w+Error: .*?)$", report, re.M)
    if "above report" in message and row is not None:
        return (
            f"its weights cannot be brought into the form of {row[1]} ({row[2]}): some are missing or have other shapes. "
            "Expected a config and weights that were saved together"
        )
    return f"{_told(error)}. {_TO_DO}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(error: BaseException) -> str:
    """An error's own words on one line, with its kind where the words alone say little."""
    words = " ".join(str(error).split())
    kind = "" if isinstance(error, OSError | ValueError) and len(words) > 20 else f"{type(error).__name__}: "
    told = (kind + words).split(" from one of: ")[0]  # transformers goes on for a paragraph
    return told.rstrip(".! ") if len(told) <= 240 else told[:240] + " ..."


def _broken_weights(folder: Path) -> str | None:
    for path in _files(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{path.name} ({path.stat().st_size:,} bytes) is not a safetensors file ({error})"
    return None


def _broken_json(folder: Path) -> str | None:
    for path in _files(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            return f"{path.name} is not JSON ({error})"
    return None


def _files(paths: Iterable[Path]) -> list[Path]:
    """Keep the paths that are files, or links to files.

    A folder is left out, and a pipe that nobody writes to.
    """
    return sorted(path for path in paths if path.is_file())


def _lacking_shards(folder: Path) -> list[str]:
    return sorted(name for name in _named_files(folder.glob("*.index*.json")) if not (folder / name).exists())


def _named_files(indices: Iterable[Path]) -> set[str]:
    """Files that the indices of a model's weights name. None where an index cannot be read."""
    named: set[str] = set()
    for path in _files(indices):
        try:
            named |= {
                str(name) for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
            }
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            continue  # whoever reads it says what is wrong
    return named


def _refuse_files_elsewhere(label: str, folder: Path) -> None:
    named = _named_files(folder.rglob("*.index*.json"))
    if elsewhere := sorted(name for name in named if Path(name).name != name):
        raise ModelError(
            f"the index of the weights of {label!r} names files outside of its folder ({_first(elsewhere)}), which no index that "
            "save_pretrained writes does; do not trust this model"
        )


def _refuse_weights_elsewhere(label: str, config: Any) -> None:
    name = getattr(config, "transformers_weights", None)
    if name is not None and (not isinstance(name, str) or Path(name).name != name):
        raise ModelError(
            f"the config of {label!r} takes its weights from {name!r} (transformers_weights); expected the plain name of a file "
            "beside config.json. Do not trust this model, or take that entry out"
        )


def _refuse_kernels(label: str, config: Any, asked: Any) -> None:
    """Refuse attention that is a repository of the Hub, code, unless the caller named it."""
    name = getattr(config, "_attn_implementation", None)
    named = name is None or name in (asked.values() if isinstance(asked, dict) else (asked,))
    if not named and (not isinstance(name, str) or "/" in name or ":" in name):
        raise ModelError(
            f"the config of {label!r} wants its attention computed by {name!r}, which is code from the Hub; expected an "
            f"implementation of transformers. Take that entry out of config.json, or give attn_implementation={name!r} where you "
            "trust that code"
        )
    for part in getattr(config, "sub_configs", ()):
        _refuse_kernels(label, getattr(config, part, None), asked)
