"""Token ids of a text or a chat, and readable texts of tokens, by the model's own tokenizer.

The ids are those of the tokenizer, unchanged. Three faults that a result would not show are
reported by a `DensitometerWarning`: decoding the ids gives another text, which is the text that the
model reads; the token that begins a sequence comes twice; the caller's token ids are padded.

What this file does not do: it does not check lengths or ids (`Model.encode` in `loading.py`).
"""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy

from ..errors import ArgumentTypeError, DensitometerWarning, InputError, ModelError

_SHOWN = 16  # characters of a text that a warning quotes


def is_chat(value: Any) -> bool:
    """Whether a value is a chat: a list of messages {"role": ..., "content": ...}."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def refuse_several(value: Any) -> None:
    """Refuse a list of texts, of chats or of rows of token ids, where one input is expected.

    Raises:
        ArgumentTypeError: the value is such a list.
    """
    if isinstance(value, numpy.ndarray):
        value = value.tolist()
    # a series of pandas or polars
    elif hasattr(value, "to_list"):
        value = value.to_list()
    if not isinstance(value, list | tuple) or not value or is_chat(value):
        return
    if all(isinstance(part, str) for part in value):
        what, names = "texts", "texts"
    elif all(is_chat(part) for part in value):
        what, names = "chats", "chats"
    elif all(isinstance(part, list | tuple) for part in value) and len(value) > 1:
        raise ArgumentTypeError(
            f"expected integer token ids of one text, got {len(value)} rows of them: {shorten(value)}. Give the rows one at a "
            "time, without padding"
        )
    else:
        return
    raise ArgumentTypeError(
        f"expected one text, chat or sequence of token ids, got a list of {len(value)} {what}: {shorten(value)}. Measure them "
        f"one by one ([measure(model, one) for one in {names}]), or all with run_study({names}, models, out=folder)"
    )


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """Render a chat by the tokenizer's chat template.

    The text ends at the place of the assistant's next token: after the opening of its answer, or at
    the end of the last message's content if that message is the assistant's.

    Raises:
        InputError: a message lacks "role" or "content", the tokenizer has no chat template, or the
            template raises an error.
    """
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(
                f"expected chat messages of the form {{'role': ..., 'content': ...}}, got {shorten(message)}"
            )
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template, so it cannot render chat messages; give the text as the model expects it, "
            "or set model.tokenizer.chat_template"
        )
    continued = messages[-1]["role"] == "assistant"
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )
        )
    # a template is a program by the model's authors, so it may raise anything
    except Exception as error:
        raise InputError(
            f"the chat template refuses these messages: {error or type(error).__name__}; got the roles "
            f"{', '.join(str(message['role']) for message in messages)}"
        ) from error


def tokenize(tokenizer: Any, text: str, special_tokens: bool = True) -> list[int]:
    """Turn a text into token ids, with a warning if decoding them gives another text.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        special_tokens: whether the tokenizer adds its special tokens. A rendered chat has them
            already.

    Raises:
        InputError: the text is not valid Unicode.
        ModelError: the tokenizer fails on the text.

    Warns:
        DensitometerWarning: decoding the ids does not give the text back.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text is not valid Unicode: character {error.start} is {text[error.start]!r}, half of a surrogate pair or a "
            "byte that is not UTF-8; decode the text with its own encoding"
        ) from None
    bare = ids_of(tokenizer, text, add_special_tokens=False)
    _warn_of_loss(tokenizer, text, bare)
    return ids_of(tokenizer, text) if special_tokens else bare


def ids_of(tokenizer: Any, text: str, **keywords: Any) -> list[int]:
    """Return the token ids that a tokenizer gives for a text.

    Raises:
        ModelError: the tokenizer raises an error, for example if its class does not fit its
            vocabulary.
    """
    try:
        return list(tokenizer(text, verbose=False, **keywords)["input_ids"])
    # tokenizers raises a bare Exception
    except Exception as error:
        raise ModelError(
            f"the tokenizer ({type(tokenizer).__name__}) fails on the text {shorten(text)}: {error or type(error).__name__}. Its "
            "class may not fit its vocabulary (tokenizer_class in tokenizer_config.json); give load_model the model's own tokenizer"
        ) from error


def warn_of_doubled_start(tokenizer: Any, ids: Sequence[int], text: str | None) -> None:
    """Warn if the input begins with the start-of-sequence token twice.

    Args:
        tokenizer: the tokenizer.
        ids: token ids of the input.
        text: the text that was tokenized; None if the caller gave ids.

    Warns:
        DensitometerWarning: the first two ids are the start-of-sequence token.
    """
    starts = [getattr(tokenizer, name, None) for name in ("bos_token_id", "cls_token_id")]
    if len(ids) < 2 or ids[0] != ids[1] or ids[0] not in starts:
        return
    token = tokenizer.convert_ids_to_tokens(int(ids[0]))
    cause = (
        "the token ids begin with it twice"
        if text is None
        else "the text begins with it and the tokenizer adds one more"
    )
    warnings.warn(
        f"doubled {token!r}: {cause}, which the model was not trained on; leave one out (a rendered chat brings its own: "
        "give the list of messages instead)",
        DensitometerWarning,
        stacklevel=4,
    )


def warn_of_padding(tokenizer: Any, ids: Sequence[int], given: Any) -> bool:
    """Warn if token ids from the caller are padded, and return whether they are.

    A tokenizer's attention mask shows it. Without a mask, padding tokens at either end count as
    padding. If the padding token also begins or ends sequences, it must come at least twice there.

    Args:
        tokenizer: the tokenizer; None where there is none.
        ids: token ids of the input.
        given: the caller's argument, which may be a mapping with an "attention_mask".

    Warns:
        DensitometerWarning: the token ids are padded.
    """
    mask = given.get("attention_mask") if isinstance(given, Mapping) else None
    if mask is not None:
        flat = mask.reshape(-1).tolist() if hasattr(mask, "reshape") else mask
        flat = flat[0] if flat and isinstance(flat[0], list) else flat
        n_padded = sum(not value for value in flat)
        where = "its attention_mask is 0 there"
    else:
        pad = getattr(tokenizer, "pad_token_id", None)
        ends = [getattr(tokenizer, name, None) for name in ("eos_token_id", "sep_token_id")]
        begins = [getattr(tokenizer, name, None) for name in ("bos_token_id", "cls_token_id")]
        if pad is None:
            # without a padding token, callers pad with the end-of-sequence token
            pad = ends[0]
            begins.append(pad)
        if pad is None or pad not in (ids[0], ids[-1]):
            return False
        left = next((n for n, i in enumerate(ids) if i != pad), len(ids))
        right = next((n for n, i in enumerate(reversed(ids)) if i != pad), len(ids))
        n_padded = left * (left > (pad in begins)) + right * (right > (pad in ends))
        where = f"{tokenizer.convert_ids_to_tokens(int(pad))!r}, again and again at an end"
    if not n_padded:
        return False
    warnings.warn(
        f"the token ids are padded: {n_padded} of {len(ids)} tokens are padding ({where}), and are measured as a part of "
        "the text. Give the ids without them",
        DensitometerWarning,
        stacklevel=4,
    )
    return True


def _warn_of_loss(tokenizer: Any, text: str, ids: list[int]) -> None:
    """Warn if decoding ids gives another text, and name the first difference.

    Warns:
        DensitometerWarning: the decoded text differs.
    """
    read = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    place = first_difference(text, read)
    if place is None:
        return
    i, j = place
    why = ""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown in ids:
        why = f"; {ids.count(unknown)} of {len(ids)} tokens are unknown to it"
    elif unicodedata.normalize("NFKC", text) == unicodedata.normalize("NFKC", read):
        why = "; it is the same text in another Unicode form"
    elif text.lower() == read.lower():
        why = "; it does not distinguish upper and lower case"
    quote = ascii if why.endswith("form") else repr
    was, becomes = quote(text[i : i + _SHOWN]), quote(read[j : j + _SHOWN])
    warnings.warn(
        f"the tokenizer does not give the text back: from character {i} on, {was} is read as {becomes}{why}. The model is "
        "measured on what it reads",
        DensitometerWarning,
        stacklevel=5,
    )


def first_difference(text: str, read: str) -> tuple[int, int] | None:
    """Find the first difference between a text and its decoded tokens.

    Decoders of word pieces add spaces next to punctuation and Chinese characters, and before the
    first word. A space at such a place that only one of the two texts has is not a difference.

    Args:
        text: the text.
        read: the decoded tokens.

    Returns:
        The index of the difference in each text. None if they do not differ.
    """
    if text == read:
        return None
    i = j = 0
    while i < len(text) or j < len(read):
        if text[i : i + 1] == read[j : j + 1]:
            i, j = i + 1, j + 1
        elif read[j : j + 1] == " " and (j == 0 or _may_be_added(read, j)):
            j += 1
        elif text[i : i + 1] == " " and _may_be_added(text, i):
            i += 1
        else:
            return i, j
    return None


def _may_be_added(text: str, i: int) -> bool:
    """Whether a character next to a space is punctuation, a symbol or a Chinese character."""
    neighbours = text[max(i - 1, 0) : i] + text[i + 1 : i + 2]
    return any(
        unicodedata.category(c)[0] in "PS" or unicodedata.name(c, "").startswith("CJK") for c in neighbours
    )


# --------------------------------------------------------------------------------------------------


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token as readable text. Bytes that are not text on their own become \\xNN."""
    decoders = list(_decoders(tokenizer))
    # special and added tokens are shown as they are written
    verbatim = set(tokenizer.get_added_vocab().values())
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    shown = []
    for i, token in zip(ids, tokens, strict=True):
        # an embedding may have more rows than its tokenizer has entries
        if token is None:
            shown.append(f"<id {i}>")
        elif i in verbatim:
            shown.append(str(token))
        else:
            shown.append(_readable(token, decoders))
    return shown


def _decoders(tokenizer: Any) -> Iterator[dict[str, Any]]:
    """List the steps that turn tokens into text, in order: the parts of a tokenizer's decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # a tokenizer written in Python has no such decoder
    if backend is None:
        yield {"type": "ByteLevel"} if hasattr(tokenizer, "byte_decoder") else {"type": "Metaspace"}
        yield {"type": "ByteFallback"}
    elif backend.decoder is not None:
        described = json.loads(backend.decoder.__getstate__())
        yield from described.get("decoders", [described])


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return GPT-2's table of byte-level BPE, from printable characters to the bytes they mean."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    rest = (b for b in range(256) if b not in set(printable))
    return table | {chr(256 + i): b for i, b in enumerate(rest)}


def _readable(token: str | bytes, decoders: Sequence[dict[str, Any]]) -> str:
    """Turn one token into readable text by the steps of its tokenizer's decoder."""
    if isinstance(token, bytes):
        return token.decode("utf-8", errors="backslashreplace")
    for decoder in decoders:
        match decoder["type"]:
            case "ByteFallback" if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
                return bytes([int(token[3:5], 16)]).decode("utf-8", errors="backslashreplace")
            case "ByteLevel":
                table = _bytes_of_characters()
                if all(character in table for character in token):
                    return bytes(table[c] for c in token).decode("utf-8", errors="backslashreplace")
            case "Metaspace":
                token = token.replace(decoder.get("replacement", "\u2581"), " ")
            case "Replace" if "String" in decoder["pattern"]:
                token = token.replace(decoder["pattern"]["String"], decoder["content"])
            case "WordPiece":
                prefix = decoder["prefix"]
                token = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
            case "BPEDecoder" if decoder["suffix"] and token.endswith(decoder["suffix"]):
                token = token.removesuffix(decoder["suffix"]) + " "
    return token


def shorten(value: Any) -> str:
    """Write a value as Python does, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
