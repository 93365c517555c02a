"""Load a model and its tokenizer: bundled, from the Hub, from a folder, or a module in memory.

`load_model` hands its keywords to Hugging Face unchanged. `Model` is what everything else takes: the module, its
tokenizer, and the adapter that runs it. What a user may get wrong is named here, once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..errors import ArgumentTypeError, InputError, ModelError
from .adapter import Adapter, vocabulary_size

DEMO_FOLDER = Path(__file__).parent / "demo"

# Keywords of from_pretrained that a tokenizer takes too.
_TOKENIZER_KEYWORDS = frozenset(
    {
        "revision", "token", "cache_dir", "trust_remote_code", "local_files_only", "force_download", "proxies",
        "subfolder",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A causal language model ready to be measured.

    Args:
        module: the Hugging Face module.
        tokenizer: its tokenizer, or None: then only token ids can be measured.
        name: what it was loaded as.
        revision: the Hub revision asked for, or None.
    """

    module: PreTrainedModel
    tokenizer: Any = field(repr=False)
    name: str
    revision: str | None = None

    @cached_property
    def adapter(self) -> Adapter:
        """Runs the module and sees or masks its edges; built, and the layout found, at first use."""
        return Adapter(self.module)

    @property
    def architecture(self) -> str:
        return type(self.module).__name__

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model takes; None where its config sets no limit."""
        config = self.module.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    def encode(self, text_or_ids: str | Sequence[int] | torch.Tensor, cut: bool = False) -> list[int]:
        """Token ids of a text, or checked ids.

        Args:
            cut: keep the first tokens of an input that is longer than the model's context, instead of refusing it.

        Raises:
            InputError: empty, one token only, longer than the model's context, or an id outside the vocabulary.
            ArgumentTypeError: neither a text nor a sequence of integers.
        """
        ids = self._encode_text(text_or_ids) if isinstance(text_or_ids, str) else self._check_ids(text_or_ids)
        shown = _shorten(text_or_ids)
        if not ids:
            raise InputError(
                f"the text is empty ({shown}): it has no token; give a text of at least two tokens"
            )
        if len(ids) == 1:
            raise InputError(
                f"the text {shown} is one token long: there is no earlier token to attend to; give at least two tokens"
            )
        limit = self.context_length
        if limit is not None and len(ids) > limit:
            if cut:
                return ids[:limit]
            raise InputError(
                f"the text has {len(ids)} tokens, more than the {limit} of the context of {self.name}; "
                f"shorten it, or measure its last {limit} tokens: measure(model, model.tokenizer(text)['input_ids'][-{limit}:])"
            )
        return ids

    def _encode_text(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} was loaded without a tokenizer, so it can measure token ids only; got the text "
                f"{_shorten(text)}. Give load_model(..., tokenizer=...)"
            )
        if not text.strip():
            raise InputError(f"the text is empty (got {_shorten(text)}); give a text of at least two tokens")
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _check_ids(self, ids: Any) -> list[int]:
        if isinstance(ids, torch.Tensor):
            ids = ids.squeeze(0) if ids.ndim == 2 and ids.shape[0] == 1 else ids
            if ids.ndim != 1:
                raise InputError(f"expected token ids of one text, got a tensor of shape {tuple(ids.shape)}")
            ids = ids.tolist()
        try:
            checked = [int(i) for i in ids if not isinstance(i, bool | float | str) or _not_an_id(i)]
        except TypeError:
            raise ArgumentTypeError(
                f"expected a text or a sequence of token ids, got {_shorten(ids)} ({type(ids).__name__})"
            ) from None
        size = vocabulary_size(self.module)
        for i in checked:
            if not 0 <= i < size:
                raise InputError(f"token id {i} is outside the vocabulary of {self.name} (0 to {size - 1})")
        return checked

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as readable text; bytes that are no text alone are written \\xNN."""
        if self.tokenizer is None:
            return [str(i) for i in ids]
        return [_readable(piece) for piece in self.tokenizer.convert_ids_to_tokens(list(ids))]


def _not_an_id(i: Any) -> bool:
    raise ArgumentTypeError(f"expected integer token ids, got {i!r} ({type(i).__name__})")


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


@cache
def _bytes_of_characters() -> dict[str, int]:
    """The table with which byte-level BPE writes bytes as printable characters (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    rest = (b for b in range(256) if b not in set(printable))
    return table | {chr(256 + i): b for i, b in enumerate(rest)}


def _readable(piece: str | None) -> str:
    if piece is None:
        return ""
    if "\u2581" in piece:  # SentencePiece writes a space so
        return piece.replace("\u2581", " ")
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return f"\\x{piece[3:5].lower()}"
    table = _bytes_of_characters()
    if all(character in table for character in piece):
        return bytes(table[c] for c in piece).decode("utf-8", errors="backslashreplace")
    return piece


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with densitometer."""
    return tuple(sorted(p.name for p in DEMO_FOLDER.iterdir() if (p / "config.json").exists()))


def load_model(name: str | Path | PreTrainedModel, tokenizer: Any = None, **keywords: Any) -> Model:
    """Load a causal language model.

    Args:
        name: `"demo"`, `"demo-parallel"` or `"demo-branchnorm"` (bundled, no network); a Hub id; a local folder; or
            a module in memory.
        tokenizer: the tokenizer, or a name of one. By default the model's own; a module in memory has none.
        **keywords: handed to Hugging Face's `from_pretrained` unchanged: `revision`, `dtype`, `device_map`,
            `trust_remote_code`, `token`, `cache_dir` ...; and `device`, where to move the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: it cannot be found or read, or it is no causal (decoder) language model.
        InputError: a device that does not exist.
        ArgumentTypeError: neither a name nor a module.
    """
    device = keywords.pop("device", None)
    if isinstance(name, Model):
        raise ArgumentTypeError(f"{name.name} is loaded already; give a name, a folder or a module")
    if isinstance(name, torch.nn.Module):
        if keywords:
            raise InputError(f"{sorted(keywords)} only apply to a model that is loaded by name; got a module")
        module, label = name, getattr(name, "name_or_path", "") or type(name).__name__
    elif isinstance(name, str | Path):
        label = str(name)
        source = _source(label)
        module, own_tokenizer = _from_pretrained(label, source, tokenizer is None, keywords)
        tokenizer = own_tokenizer if tokenizer is None else tokenizer
    else:
        raise ArgumentTypeError(
            f"expected a model's name, folder or module, got {_shorten(name)} ({type(name).__name__})"
        )
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if device is not None:
        try:
            module = module.to(device)
        except (RuntimeError, AssertionError) as error:
            message = str(error).splitlines()[0]
            raise InputError(f"cannot move {label} to the device {device!r}: {message}") from error
    model = Model(module, tokenizer, label, keywords.get("revision"))
    _ = model.adapter  # a model that cannot be measured is refused here, not in mid-work
    return model


def _source(label: str) -> str:
    """The folder of a bundled model, an existing folder, or a Hub id."""
    if label in bundled_models():
        return str(DEMO_FOLDER / label)
    path = Path(label)
    if not label:
        raise ModelError(f"the model's name is empty; bundled models are {', '.join(bundled_models())}")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(
                f"the folder {label!r} is no model: it has no config.json. Expected a folder written by save_pretrained"
            )
        return str(path)
    if path.exists():
        raise ModelError(f"{label!r} is a file; expected a folder written by save_pretrained, or a Hub id")
    if label.startswith((".", "/", "~")) or label.count("/") > 1:
        raise ModelError(f"there is no folder {label!r}; bundled models are {', '.join(bundled_models())}")
    return label


def _from_pretrained(
    label: str, source: str, with_tokenizer: bool, keywords: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    shared = {k: v for k, v in keywords.items() if k in _TOKENIZER_KEYWORDS}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, **shared)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{label!r} is an encoder-decoder model ({config.model_type}); densitometer measures decoder-only "
                "causal language models"
            )
        if type(config) not in AutoModelForCausalLM._model_mapping and not getattr(config, "auto_map", None):
            raise ModelError(
                f"{label!r} ({config.model_type}) is no causal language model that transformers knows; densitometer "
                "measures decoder-only causal language models"
            )
        if label in bundled_models():
            keywords = {"dtype": torch.float32} | keywords  # shipped in float16 to be small
        module = AutoModelForCausalLM.from_pretrained(source, **keywords)
        tokenizer = AutoTokenizer.from_pretrained(source, **shared) if with_tokenizer else None
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, json.JSONDecodeError) as error:
        message = " ".join(str(error).split())
        raise ModelError(
            f"cannot load the model {label!r}: {message[:300]} (bundled models: {', '.join(bundled_models())}; else give "
            "a Hub id or a folder written by save_pretrained)"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    return module, tokenizer
