"""Read a model and its tokenizer from a folder or the Hub, and raise an error if it is incomplete.

1. If the model may have to be downloaded, check by one short request that the Hub can be reached.
2. Read the config. Refuse kinds of models that cannot be measured, and configs or indices that name
   code or files elsewhere.
3. Read the tokenizer, then the weights.
4. Raise an error for faults that transformers only logs: weights that the checkpoint lacks
   (transformers initialises them at random), weights of other shapes, and weights in blocks for
   which the config declares none.

Errors of transformers and other libraries, of a dozen classes, become a `ModelError` that says what
to do. No step waits for a network that cannot be reached or prompts on the terminal. No code that
comes with a model runs unless `trust_remote_code=True`.

What this file does not do: it does not resolve names (`source.py`), it does not move a model to a
device (`placement.py`), and it does not look at the blocks (`adapter.py`).
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
from .fingerprint import states_of
from .gguf import header_shared, read_header
from .placement import is_out_of_memory
from .source import Origin, Source, bundled_models, local_files, model_files

# Keywords of from_pretrained that tokenizers and configs take too.
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
# Prefixes of the names of weights, if a wrapper was saved instead of the module inside it.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")
_TO_DO = "Check the keywords given, and that the folder or Hub repository is what save_pretrained writes"
_SECONDS_FOR_THE_HUB = 5.0
# Constants that older versions of transformers saved with the weights: masks, positions and rotary
# frequencies.
_SAVED_CONSTANTS = re.compile(r"(\.inv_freq|\.masked_bias|\.position_ids|(attn|attention)\.bias)$")

# Names that safetensors gives to dtypes of floats.
_FLOATS = re.compile(r"B?F\d+(_\w+)?")


@dataclass(frozen=True)
class Checkpoint:
    """A model that was read, with its tokenizer.

    Args:
        module: the Hugging Face module.
        tokenizer: its tokenizer; None where it has none, or none was requested.
        revision: the commit on the Hub, where it is known; else the revision requested, or None.
        origin: what the weights were read from.
    """

    module: PreTrainedModel
    tokenizer: Any
    revision: str | None
    origin: Origin


def read_checkpoint(label: str, source: Source, with_tokenizer: bool, keywords: dict[str, Any]) -> Checkpoint:
    """Read a model and its tokenizer.

    Args:
        label: the model's name, for messages.
        source: where the model is.
        with_tokenizer: whether to read the tokenizer.
        keywords: keywords of `from_pretrained`.

    Raises:
        ModelError: the checkpoint cannot be read, is incomplete, or is not a causal language model.
        InputError: the dtype is unknown, or `weights_only` is False.

    Warns:
        DensitometerWarning: the checkpoint holds weights that are not part of the model, or no
            tokenizer can be built from a GGUF file.
    """
    if not keywords.get("weights_only", True):
        raise InputError(
            "weights_only=False would let pickled weights run code; leave it out, densitometer reads weights without code"
        )
    dtype = keywords.get("dtype", "auto")
    if (
        isinstance(dtype, str)
        and dtype != "auto"
        and not isinstance(getattr(torch, dtype, None), torch.dtype)
    ):
        raise InputError(
            f"unknown dtype {dtype!r}; expected 'float64', 'float32', 'bfloat16', 'float16' or a torch.dtype"
        )
    with _reading(label, source, keywords) as (path, config, given):
        quantization = None
        files = local_files(source)
        states = states_of(files)
        if source.gguf_file is not None:
            quantization = read_header(Path(path)).quantization
            given = {**given, "config": config, "gguf_file": source.gguf_file} | _dequantised()
        tokenizer = _read_tokenizer(label, source, config, _shared(given)) if with_tokenizer else None
        # with these, transformers returns the names of weights that are missing or have other
        # shapes, and `_refuse_incomplete` raises an error
        given = {**given, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(source.place, **given)
        module, info = loaded
        if source.adapter is not None:
            module.load_adapter(str(source.adapter))
    _refuse_incomplete(label, module, info)
    if source.gguf_file is None:
        _refuse_other_dtypes(label, module, info, Path(path).parent)
    else:
        _align(module)
    if source.adapter is not None:
        _refuse_other_dtypes(label, module, info, source.adapter)
    # a folder has no revision, whatever was requested
    revision = None if os.path.isdir(source.place) else keywords.get("revision")
    commit = extract_commit_hash(path, getattr(config, "_commit_hash", None))
    # Files of a model from the Hub are in the cache now. A file that changes later no longer has
    # the digest that is its name in the cache.
    cached = () if files or source.gguf_file is not None else model_files(Path(path).parent)
    origin = Origin(commit, files, source.gguf_file, quantization, cached, states)
    return Checkpoint(module, tokenizer, commit or revision, origin)


def _dequantised() -> dict[str, Any]:
    """Keywords that make transformers dequantise every weight of a GGUF file.

    It then downloads no kernels for quantised weights. Older versions always dequantise.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _align(module: PreTrainedModel) -> None:
    """Copy weights whose memory does not begin at a multiple of 64 bytes to memory that does.

    torch allocates at multiples of 64 bytes. Dequantised weights are arrays of numpy, whose
    addresses differ from process to process. The last bits of a matrix product depend on them.
    """
    for weight in (*module.parameters(), *module.buffers()):
        if weight.data_ptr() % 64:
            weight.data = weight.data.clone()


def read_config(label: str, source: Source, **keywords: Any) -> Any:
    """Read the config of a decoder-only causal language model, without its weights.

    Args:
        label: the model's name, for messages.
        source: where the model is; of a GGUF file only the header is read.
        **keywords: keywords of `AutoConfig.from_pretrained`.

    Raises:
        ModelError: the config cannot be read, or is not that of a causal language model.
    """
    with _reading(label, source, keywords) as (_, config, given):
        return (
            AutoConfig.from_pretrained(source.place, **given)
            if keywords.keys() - _SHARED_KEYWORDS
            else config
        )


def config_path(source: Source, **keywords: Any) -> Path | None:
    """Return the path of a model's config on this machine, or None if it is not here.

    The network is not used.

    Args:
        source: where the model is.
        **keywords: keywords of `AutoConfig.from_pretrained`.
    """
    options = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    shared = {**_shared(keywords), "local_files_only": True}
    found = _file(source.place, source.config_file, shared, **options)
    return None if found is None else Path(found)


def read_tokenizer(name: str, **keywords: Any) -> Any:
    """Read a tokenizer by its Hub id or folder.

    Raises:
        ModelError: the tokenizer cannot be read.
    """
    with _quiet():
        try:
            return AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **keywords})
        except Exception as error:
            raise ModelError(
                f"cannot load the tokenizer {name!r}: {_message(error)}; give a folder or a Hub id that holds one, or a "
                "tokenizer"
            ) from error


# --------------------------------------------------------------------------------------------------


@contextmanager
def _reading(
    label: str, source: Source, keywords: dict[str, Any]
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Read a model's config, and turn every error into a `ModelError` while this context lasts.

    Yields:
        The path of the file that holds the config.
        The config.
        The keywords for reading tokenizer and weights.

    Raises:
        ModelError: the model cannot be read, or is refused by its config.
    """
    # if trust_remote_code is None, transformers prompts on the terminal
    keywords = {**keywords, "trust_remote_code": keywords.get("trust_remote_code") or False}
    place, config_file = source.place, source.config_file
    with _quiet() as logged, ExitStack() as stack:
        unreachable = _why_unreachable(place, keywords)
        if unreachable is not None:
            # models that were downloaded before can still be used
            keywords["local_files_only"] = True
        folder = config = None
        try:
            path = _file(place, config_file, _shared(keywords))
            if path is None:
                raise ModelError(
                    f"{label!r} is not a model: it has no {config_file}. Give one that transformers can load"
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
        # safetensors, pickle, tokenizers, validators and remote code may raise anything
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = _reason(error, label, folder, unreachable, keywords, logged)
            if config is None and folder is not None:
                reason = reason.replace(_TO_DO, "Check its config.json")
            raise ModelError(f"cannot load the model {label!r}: {reason}") from error


def _shared(keywords: dict[str, Any]) -> dict[str, Any]:
    """Choose the keywords that tokenizers and configs take too."""
    return {k: v for k, v in keywords.items() if k in _SHARED_KEYWORDS}


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Silence transformers while this context lasts, and yield the list of messages that it logs.

    Other threads wait, because these settings, and those that `from_pretrained` changes, are shared
    by the whole process. Transformers is also kept from asking the Hub to convert pickled weights
    to safetensors.
    """
    with plain_torch(), _transformers_set() as logged:
        yield logged


@contextmanager
def _transformers_set() -> Iterator[list[str]]:
    """Set transformers' logging, progress bars and conversion for `_quiet`, then restore them."""
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
    """Find out why the Hub cannot be reached, by one short request without retries.

    Returns:
        The reason. None if the Hub can be reached, or is not needed.
    """
    if os.path.isdir(source):
        return None
    if keywords.get("local_files_only") or is_offline_mode():
        return "the network is switched off (HF_HUB_OFFLINE, or local_files_only=True)"
    try:
        get_session().head(hub.ENDPOINT, timeout=_SECONDS_FOR_THE_HUB, follow_redirects=False)
    # the HTTP client's own error; the client depends on the version of the library
    except Exception as error:
        return f"{hub.ENDPOINT} cannot be reached ({error})"
    return None


def _file(source: str, name: str, shared: dict[str, Any], **options: Any) -> Any:
    """Return the path of a file in a folder or Hub repository. Download it if needed.

    With the options of `config_path`, None if there is no such file.
    """
    without_code = {k: v for k, v in shared.items() if k != "trust_remote_code"}
    return cached_file(source, name, **without_code, **options)


def _refuse_other_kinds(label: str, config: Any) -> None:
    """Refuse the config of anything but a decoder-only causal language model."""
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

    For some types of models without a tokenizer, transformers makes an empty one. It is not used.

    Returns:
        The tokenizer; None where the model comes without one, or in a GGUF file from which none can
        be built.

    Raises:
        ModelError: the model comes with files of a tokenizer that cannot be read.

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
            f"no tokenizer can be built from the GGUF file of {label!r} ({_message(problem)}), so only token ids can be "
            "measured; give the original model's by tokenizer=",
            DensitometerWarning,
            stacklevel=5,
        )
        return None
    files = [
        name
        for name in _TOKENIZER_FILES
        if _file(source.place, name, shared, _raise_exceptions_for_missing_entries=False) is not None
    ]
    if not files:
        return None
    raise ModelError(
        f"the tokenizer of {label!r} is broken ({', '.join(files)}): {_message(problem)}; give another one by tokenizer=, "
        "or tokenizer=False to measure token ids only"
    ) from problem


def _refuse_incomplete(label: str, module: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a model whose weights and config do not belong together.

    Args:
        info: the keys that transformers found missing, mismatched or unexpected.

    Raises:
        ModelError: weights are missing, have other shapes, or are in blocks whose config declares
            none.

    Warns:
        DensitometerWarning: the checkpoint holds weights outside the blocks that are not part of
            the model.
    """
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
            f"the checkpoint has {len(inside)} weights in its blocks that the config does not declare ({_first(inside)})"
        )
    # as DataParallel, Lightning and torch.compile save a module that they wrap
    wrapped = [key for key in info["unexpected_keys"] if key.startswith(_WRAPPERS)]
    if missing and wrapped:
        prefix = next(name for name in _WRAPPERS if wrapped[0].startswith(name))
        raise ModelError(
            f"the weights of {label!r} are those of a wrapped module: {len(wrapped)} names begin with {prefix!r} "
            f"({wrapped[0]}). Take the prefix off and save again: module.load_state_dict({{key.removeprefix({prefix!r}): value "
            "for key, value in weights.items()}), then save_pretrained"
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


def _refuse_other_dtypes(label: str, module: PreTrainedModel, info: dict[str, Any], folder: Path) -> None:
    """Refuse weights that are stored as integers, booleans or complex numbers but must be floats.

    Transformers converts them silently. If the bits of a float were stored as an integer, the value
    of that integer would be measured. Models that declare a quantisation are not checked, nor are
    tensors that are integers in the module too.

    Args:
        info: the keys that transformers found missing, mismatched or unexpected.
        folder: where the files of weights are.

    Raises:
        ModelError: there are such weights.
    """
    if getattr(module, "hf_quantizer", None) is not None or getattr(
        module.config, "quantization_config", None
    ):
        return
    expected = {name: tensor.is_floating_point() for name, tensor in module.state_dict().items()}
    prefix = f"{module.base_model_prefix}."
    odd = []
    for name, dtype in _stored_dtypes(folder):
        if _FLOATS.fullmatch(dtype) or name in info["unexpected_keys"] or _SAVED_CONSTANTS.search(name):
            continue
        known = [expected[n] for n in (name, prefix + name, name.removeprefix(prefix)) if n in expected]
        # a name that is not in the module belongs to a part of a weight that transformers merges
        if known[0] if known else name.endswith((".weight", ".bias")):
            odd.append(f"{name} ({dtype})")
    if odd:
        raise ModelError(
            f"{len(odd)} weights of {label!r} are stored as other numbers than floats ({_first(sorted(odd))}), and its config "
            "declares no quantisation; expected F64, F32, F16 or BF16. Save the model again (save_pretrained), or add the "
            "quantization_config that it was made with"
        )


def _stored_dtypes(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and dtype of each tensor in a folder's files of weights.

    Pickled files are read only if there are no safetensors files.
    """
    paths = _files(folder.glob("*.safetensors"))
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (the file is not a mapping)
                    yield name, str(file.get_slice(name).get_dtype())
        except (OSError, SafetensorError):
            # loading would have failed if this file belonged to the model
            continue
    for path in [] if paths else _files(folder.glob("*.bin")):
        try:
            tensors = torch.load(path, map_location="meta", weights_only=True)
        except Exception:
            # other files end with .bin too
            continue
        for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
            if isinstance(tensor, torch.Tensor):
                floats = tensor.is_floating_point()
                yield str(name), "F32" if floats else str(tensor.dtype).removeprefix("torch.")


def _first(keys: Sequence[str]) -> str:
    """Write the first two keys for a message."""
    return ", ".join(keys[:2]) + (" ..." if len(keys) > 2 else "")


# --------------------------------------------------------------------------------------------------


def _reason(
    error: Exception,
    label: str,
    folder: Path | None,
    unreachable: str | None,
    keywords: dict[str, Any],
    logged: Sequence[str],
) -> str:
    """Write what went wrong and what to do, from the error, the log and the files in the folder.

    Args:
        error: what transformers raised.
        label: the model's name.
        folder: the model's folder on this machine; None where there is none.
        unreachable: why the Hub cannot be reached; None where it can.
        keywords: keywords of `from_pretrained`.
        logged: what transformers logged.
    """
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
            f"{unreachable}, and it is not among the models that were downloaded before. Connect, or give a folder written "
            f"by save_pretrained or a bundled model ({', '.join(bundled_models())})"
        )
    if unsupported := re.search(r"GGUF model with architecture (\S+) is not supported", message):
        return (
            f"this version of transformers ({version('transformers')}) cannot build a model of the architecture "
            f"{unsupported[1]!r} from a GGUF file; a newer one may, or give the original model (a Hub id or a folder)"
        )
    if caused_by(hub_errors.GatedRepoError):
        return (
            f"it is gated: its owners give access on request at {hub.ENDPOINT}/{label}. Request it there, then log in "
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
            f"this version of transformers ({version('transformers')}) does not know the model type {unknown[1]!r}; a newer "
            "one may, or the model brings code of its own (trust_remote_code=True)"
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
                f"its index names {len(lacking)} weight files that do not exist ({_first(lacking)}). Copy or download them "
                "again"
            )
    report = next((text for text in reversed(logged) if "LOAD REPORT" in text), "")
    row = re.search(r"^(.+?) +\| \S*CONVERSION(?s:.*?)^(\w+Error: .*?)$", report, re.M)
    if "above report" in message and row is not None:
        return (
            f"its weights cannot be brought into the form of {row[1]} ({row[2]}): some are missing or have other shapes. "
            "Expected a config and weights that were saved together"
        )
    return f"{_message(error)}. {_TO_DO}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and the chain of errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _message(error: BaseException) -> str:
    """Write an error's message on one line, with its class unless the message is long enough."""
    words = " ".join(str(error).split())
    kind = "" if isinstance(error, OSError | ValueError) and len(words) > 20 else f"{type(error).__name__}: "
    # after these words transformers lists all architectures that it knows
    message = (kind + words).split(" from one of: ")[0]
    return message.rstrip(".! ") if len(message) <= 240 else message[:240] + " ..."


def _broken_weights(folder: Path) -> str | None:
    """Write which file of weights in a folder cannot be opened. None if all can."""
    for path in _files(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{path.name} ({path.stat().st_size:,} bytes) is not a safetensors file ({error})"
    return None


def _broken_json(folder: Path) -> str | None:
    """Write which JSON file in a folder cannot be parsed. None if all can."""
    for path in _files(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            return f"{path.name} is not JSON ({error})"
    return None


def _files(paths: Iterable[Path]) -> list[Path]:
    """Keep the paths that are files or links to files, sorted.

    Folders are left out, and so are pipes: reading from one could wait forever.
    """
    return sorted(path for path in paths if path.is_file())


def _lacking_shards(folder: Path) -> list[str]:
    """List the weight files that a folder's index names but that do not exist, sorted."""
    return sorted(name for name in _named_files(folder.glob("*.index*.json")) if not (folder / name).exists())


def _named_files(indices: Iterable[Path]) -> set[str]:
    """Return the names of files in a model's weight indices. Unreadable indices are skipped."""
    named: set[str] = set()
    for path in _files(indices):
        try:
            named |= {
                str(name) for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
            }
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            # transformers raises an error when it reads it
            continue
    return named


def _refuse_files_elsewhere(label: str, folder: Path) -> None:
    """Refuse a model whose index names weight files outside of its folder."""
    named = _named_files(folder.rglob("*.index*.json"))
    if elsewhere := sorted(name for name in named if Path(name).name != name):
        raise ModelError(
            f"the index of the weights of {label!r} names files outside of its folder ({_first(elsewhere)}), which an index "
            "that save_pretrained writes never does; do not trust this model"
        )


def _refuse_weights_elsewhere(label: str, config: Any) -> None:
    """Refuse a config that names a weight file outside of its folder."""
    name = getattr(config, "transformers_weights", None)
    if name is not None and (not isinstance(name, str) or Path(name).name != name):
        raise ModelError(
            f"the config of {label!r} takes its weights from {name!r} (transformers_weights); expected the plain name of a file "
            "beside config.json. Do not trust this model, or take that entry out"
        )


def _refuse_kernels(label: str, config: Any, asked: Any) -> None:
    """Refuse a config whose attention is code from the Hub, unless the caller named that code.

    Args:
        label: the model's name, for messages.
        config: the config.
        asked: the attention implementation that the caller gave; None if none was given.
    """
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
