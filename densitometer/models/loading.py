"""Load a model and its tokenizer: bundled, from the Hub, from a folder, or a module in memory.

`load_model` passes its keywords to Hugging Face unchanged. It returns a `Model`, which all other
functions take: the module, its tokenizer, and the adapter that runs it. `Model.encode` turns a
text, a chat or token ids into checked token ids.

What this file does not do: it does not read files (`checkpoint.py`) or tokenize
(`tokenization.py`).

Axes: T tokens.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel

from .._util.notebook_table import Described
from ..errors import ArgumentTypeError, DensitometerWarning, InputError
from .adapter import Adapter, vocabulary_size
from .checkpoint import read_checkpoint, read_tokenizer
from .conditions import plain_torch
from .fingerprint import comparable, module_fingerprint, module_state, tokenizer_digest
from .placement import memory_watched, moved
from .source import Origin, bundled_models, source_of, with_subfolder
from .tokenization import (
    is_chat,
    pieces,
    refuse_several,
    render_chat,
    shorten,
    tokenize,
    warn_of_doubled_start,
    warn_of_padding,
)
from .wrapped import unwrapped

# What can be measured: a text, a chat (messages {"role": ..., "content": ...}), or token ids.
Text = str | Sequence[int] | Sequence[Mapping[str, Any]] | numpy.ndarray | torch.Tensor


@dataclass(frozen=True, repr=False)
class Model(Described):
    """A causal language model, ready to be measured.

    Args:
        module: the Hugging Face module.
        tokenizer: its tokenizer; None if it has none, so that only token ids can be measured.
        name: the name, folder or file by which it was loaded.
        revision: the commit on the Hub if it is known, or else the requested revision, or None.
        origin: where its weights were read from; None for a module in memory.

    Examples:
        >>> model.name, model.architecture, model.context_length
        ('demo', 'Qwen3ForCausalLM', 512)
        >>> ids = model.encode("The captain looked")
        >>> model.pieces(ids)
        ['The', ' captain', ' looked']
    """

    module: PreTrainedModel
    tokenizer: Any = field(repr=False)
    name: str
    revision: str | None = None
    origin: Origin | None = field(default=None, repr=False)
    # cache: states of weights and tokenizer when they were read, and the fingerprint in memory
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def adapter(self) -> Adapter:
        """Adapter that runs the module and records or masks its edges. Built at first use."""
        return Adapter(self.module)

    def running(self) -> AbstractContextManager[None]:
        """Set the conditions for running the module and its parts (`conditions.py`)."""
        return self.adapter.running()

    @property
    def device(self) -> torch.device:
        """Device on which the model expects token ids, and on which it is measured."""
        return self.adapter.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the residual stream. Quantised weights may have a different dtype."""
        return self.adapter.dtype

    @property
    def config(self) -> Any:
        """Configuration of the Hugging Face module."""
        return self.module.config

    @property
    def architecture(self) -> str:
        return type(self.module).__name__

    @property
    def context_length(self) -> int | None:
        """Largest number of tokens of an input. None if the model's config sets no limit."""
        config = self.module.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    def _facts(self) -> dict[str, str]:
        blocks = self.adapter.blocks
        size = f"{self.module.num_parameters():,} parameters"
        facts = {
            "name": self.name,
            "architecture": self.architecture,
            "size": f"{size}, {len(blocks)} layers, {max(block.n_heads for block in blocks)} heads",
            "runs": f"{str(self.adapter.dtype).removeprefix('torch.')} on {self.adapter.device}",
            "tokenizer": "none: token ids only" if self.tokenizer is None else type(self.tokenizer).__name__,
        }
        if self.origin is not None and self.origin.quantization is not None:
            facts["read from"] = f"{self.origin.file}, {self.origin.quantization}, dequantised"
        return facts

    def __repr__(self) -> str:
        facts = self._facts()
        return f"Model({', '.join(facts[name] for name in ('name', 'architecture', 'size', 'runs'))})"

    @property
    def commit(self) -> str | None:
        """Fingerprint of the weights and the tokenizer (`fingerprint.py`).

        It is computed from the files, or it is the Hub's commit. It is computed from the numbers in
        memory for a module in memory, and if the weights or the files have changed since they were
        read. None if the numbers cannot be read because weights are offloaded.
        """
        state, cut = module_state(self.module), _state_of(self.tokenizer)
        if self.origin is not None and self._known.get("read", state) == state:
            found = self.origin.fingerprint
            if found is not None:
                own = self._known.get("tokenizer", cut) == cut
                return found if own else f"{found}+{tokenizer_digest(self.tokenizer)[:16]}"
        if state is None or self._known.get("memory of") != (state, cut):
            self._known["memory"] = module_fingerprint(self.module, self.tokenizer)
            self._known["memory of"] = (state, cut)
        found = self._known["memory"]
        return found

    def matches(self, fingerprint: str) -> bool | None:
        """Whether a fingerprint belongs to this model. Older versions' fingerprints are accepted.

        None if it is of a kind that cannot be compared with this model's fingerprint.
        """
        own = self.commit
        if fingerprint == own:
            return True
        bare = ":" not in fingerprint
        if bare and self.origin is not None and self.origin.older is not None:
            # an older version's fingerprint is of the files, so the weights in memory must not have
            # changed since they were read
            return fingerprint == self.origin.older and not str(own).startswith("memory:")
        return False if comparable(fingerprint, own) else None

    def text_of(self, text_or_ids: Text) -> str | None:
        """Return the text that is tokenized: a text as it is, a chat rendered by the chat template.

        None for token ids.

        Raises:
            InputError: the model has no tokenizer but got a text or a chat, or the chat cannot be
                rendered.
        """
        chat = is_chat(text_or_ids)
        if not chat and not isinstance(text_or_ids, str):
            return None
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} was loaded without a tokenizer, so it can measure token ids only; got the text "
                f"{shorten(text_or_ids)}. Give load_model(..., tokenizer=...)"
            )
        return render_chat(self.tokenizer, text_or_ids) if chat else text_or_ids  # type: ignore[arg-type, return-value]

    def encode(self, text_or_ids: Text, cut: bool = False) -> list[int]:
        """Turn a text, a chat or token ids into checked token ids.

        Args:
            text_or_ids: a text; or chat messages {"role": ..., "content": ...}, which the
                tokenizer's chat template renders up to the place of the assistant's next token; or
                token ids, (T,) or (1, T), alone or as the "input_ids" of a tokenizer's result.
            cut: whether to cut an input that is longer than the model's context to its first tokens
                instead of raising an error.

        Raises:
            InputError: the input is empty, has one token only, is longer than the model's context
                or has an id outside the vocabulary, or a chat cannot be rendered.
            ArgumentTypeError: the input is not a text, a chat or a sequence of integers, or is
                several texts.

        Warns:
            DensitometerWarning: decoding the ids does not give the text back, the token that begins
                a sequence comes twice, or token ids are padded.
        """
        refuse_several(text_or_ids)
        text = self.text_of(text_or_ids)
        shown = shorten(text_or_ids)
        what = "the text" if text is not None else "the list of token ids"
        if text is None:
            ids = self._checked(text_or_ids)
        elif text.strip():
            ids = self._within_vocabulary(tokenize(self.tokenizer, text, not is_chat(text_or_ids)))
        else:
            ids = []
        if not ids:
            raise InputError(f"{what} is empty (got {shown}): it has no token; give at least two tokens")
        if len(ids) == 1:
            raise InputError(
                f"{what} {shown} is one token long: there is no earlier token to attend to; give at least two tokens"
            )
        padded = text is None and warn_of_padding(self.tokenizer, ids, text_or_ids)
        if self.tokenizer is not None and not padded:
            warn_of_doubled_start(self.tokenizer, ids, text)
        limit = self.context_length
        if limit is not None and len(ids) > limit:
            if cut:
                return ids[:limit]
            raise InputError(
                f"the text has {len(ids)} tokens, more than the {limit} of the context of {self.name}; "
                f"shorten it, or measure its last {limit} tokens: measure(model, model.tokenizer(text)['input_ids'][-{limit}:])"
            )
        return ids

    def _checked(self, ids: Any) -> list[int]:
        """Check token ids from the caller, and return them as a list.

        Raises:
            InputError: an array is not of shape (T,) or (1, T), or an id is outside the vocabulary.
            ArgumentTypeError: the ids are not a sequence of integers.
        """
        # what a tokenizer returns
        if isinstance(ids, Mapping) and "input_ids" in ids:
            ids = ids["input_ids"]
            if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list):
                ids = ids[0]
        if isinstance(ids, torch.Tensor | numpy.ndarray):
            if not (ids.ndim == 1 or (ids.ndim == 2 and ids.shape[0] == 1)):
                raise InputError(
                    f"expected token ids of one text, (T,) or (1, T), got an array of shape {tuple(ids.shape)}; give its rows "
                    "one at a time, without padding"
                )
            ids = _values(ids)
        if not isinstance(ids, Sequence) or isinstance(ids, bytes | bytearray | memoryview):
            raise ArgumentTypeError(
                f"expected a text, chat messages or a sequence of token ids, got {shorten(ids)} ({type(ids).__name__})"
                + ("; decode it: text.decode('utf-8')" if isinstance(ids, bytes | bytearray) else "")
            )
        try:
            checked = [operator.index(_no_boolean(i)) for i in ids]
        except TypeError:
            odd = next(i for i in ids if isinstance(i, bool) or not hasattr(i, "__index__"))
            raise ArgumentTypeError(
                f"expected integer token ids, got {shorten(odd)} ({type(odd).__name__})"
            ) from None
        size = vocabulary_size(self.module)
        for i in checked:
            if not 0 <= i < size:
                raise InputError(f"token id {i} is outside the vocabulary of {self.name} (0 to {size - 1})")
        return checked

    def _within_vocabulary(self, ids: list[int]) -> list[int]:
        """Check that the embedding has a row for each id from the tokenizer, and return the ids.

        Raises:
            InputError: an id is not smaller than the embedding's number of rows.
        """
        size = vocabulary_size(self.module)
        for i in ids:
            if i >= size:
                raise InputError(
                    f"the tokenizer gives {self.pieces([i])[0]!r} the id {i}, but the embedding of {self.name} ends at "
                    f"{size - 1}: they do not belong together; give load_model the model's own tokenizer"
                )
        return ids

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each token as readable text. Bytes that are not text on their own become \\xNN."""
        return [str(i) for i in ids] if self.tokenizer is None else pieces(self.tokenizer, ids)


def _values(ids: Any) -> list[Any]:
    """Return the values of an array or tensor of one row.

    Raises:
        InputError: the tensor has no values, as on the meta device, or is not a plain one.
    """
    try:
        values: list[Any] = ids.reshape(-1).tolist()
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"token ids must be a plain tensor with values, got one on {str(ids.device)!r} with layout {ids.layout}; give "
            "ids.tolist() of a tensor on the CPU"
        ) from error
    return values


def _state_of(tokenizer: Any) -> tuple[Any, ...]:
    """Return a value that changes if a model gets another tokenizer or the tokenizer changes."""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    return id(tokenizer), size, str(getattr(tokenizer, "chat_template", None))


def _no_boolean(i: Any) -> Any:
    if isinstance(i, bool):
        raise TypeError
    return i


AnyModel = Model | str | Path | PreTrainedModel  # a model, or what `load_model` takes


@memory_watched("loading the model")
@plain_torch()
def load_model(name: str | Path | PreTrainedModel, tokenizer: Any = None, **keywords: Any) -> Model:
    """Load a causal language model.

    Args:
        name: `"demo"`, `"demo-parallel"` or `"demo-branchnorm"` (bundled, no network); a Hub id; a
            local folder of a model, or of a PEFT adapter, which is put on its base model; a GGUF
            file, whose weights are dequantised; or a module in memory, which may be wrapped by
            PEFT, torch.compile or DataParallel.
        tokenizer: the tokenizer, or its name or folder; False for none. By default it is the
            model's own tokenizer, or none for a module in memory.
        **keywords: passed to Hugging Face's `from_pretrained` unchanged, such as `revision`,
            `dtype`, `device_map`, `trust_remote_code`, `token`, `cache_dir`, `subfolder`,
            `quantization_config` and `gguf_file` (the name of a GGUF file in the folder or Hub
            repository); and `device`, the device to which the model is moved. On "mps" its
            predictions are compared with those on the CPU, and the model is refused if they differ.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: the model cannot be found or read, is incomplete, or is not a causal (decoder)
            language model.
        InputError: the device or the dtype does not exist, or keywords are given with a module.
        OutOfMemoryError: the model does not fit in memory.
        ArgumentTypeError: `name` is not a name, a path or a module, or `tokenizer` is not a
            tokenizer.

    Warns:
        DensitometerWarning: the checkpoint holds weights that are not part of the model, or the
            tokenizer has more entries than the embedding has rows.

    Examples:
        >>> model = dm.load_model("demo")
        >>> model.module.config.num_hidden_layers
        6
    """
    device = keywords.pop("device", None)
    asked = None if tokenizer is None or tokenizer is False else tokenizer
    revision, origin = keywords.get("revision"), None
    if isinstance(name, Model):
        raise ArgumentTypeError(f"{name.name} is loaded already; give a name, a folder or a module")
    if isinstance(name, torch.nn.Module):
        if keywords:
            raise InputError(f"{sorted(keywords)} only apply to a model that is loaded by name; got a module")
        module: Any = unwrapped(name)
        label = getattr(module, "name_or_path", "") or type(module).__name__
    elif isinstance(name, str | Path):
        label = str(name)
        label, keywords = with_subfolder(label, keywords)
        source = source_of(label, keywords.pop("gguf_file", None))
        if label in bundled_models() and "torch_dtype" not in keywords:
            # shipped in float16 to be small
            keywords = {"dtype": torch.float32} | keywords
        if isinstance(tokenizer, str | Path):
            tokenizer = _named_tokenizer(tokenizer, keywords)
        checkpoint = read_checkpoint(label, source, tokenizer is None, keywords)
        module, revision, origin = checkpoint.module, checkpoint.revision, checkpoint.origin
        tokenizer = checkpoint.tokenizer if tokenizer is None else tokenizer
    else:
        raise ArgumentTypeError(
            f"expected a model's name, folder or module, got {shorten(name)} ({type(name).__name__})"
        )
    if isinstance(tokenizer, str | Path):
        tokenizer = _named_tokenizer(tokenizer, {})
    if tokenizer is False:
        tokenizer = None
    elif tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ArgumentTypeError(
            f"expected a Hugging Face tokenizer, or the name or folder of one, got {shorten(tokenizer)} "
            f"({type(tokenizer).__name__})"
        )
    if device is not None:
        module = moved(module, device, label)
    model = Model(module, tokenizer, label, revision, origin)
    # builds the adapter, so that a model that cannot be measured raises its error now
    _ = model.adapter
    own = origin is not None and asked is None
    model._known.update(read=module_state(module), tokenizer=_state_of(tokenizer) if own else ())
    rows = vocabulary_size(module)
    if tokenizer is not None and len(tokenizer) > rows:
        warnings.warn(
            f"the tokenizer has {len(tokenizer)} entries but the embedding of {label} only {rows} rows; a text that needs one "
            "of the others is refused. Is it the model's own tokenizer?",
            DensitometerWarning,
            stacklevel=2,
        )
    return model


def _named_tokenizer(name: str | Path, keywords: dict[str, Any]) -> Any:
    """Read a tokenizer by its name or folder, with those of a model's keywords that apply to it."""
    place = source_of(str(name)).place if str(name) in bundled_models() else str(Path(name).expanduser())
    return read_tokenizer(place, **{k: keywords[k] for k in ("token", "cache_dir") if k in keywords})


def as_model(model: AnyModel) -> Model:
    """Load a model given by a name, a folder or a module. Return a `Model` as it is."""
    return model if isinstance(model, Model) else load_model(model)
