"""Token ids from a text or a chat, and readable pieces from ids, by the model's own tokenizer.

Nothing is mended: the ids are the tokenizer's. What could not be seen in the result is said by a `DensitometerWarning`: a
text that the tokenizer does not give back, so that the model reads another, and a first token that stands there twice.
"""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from ..errors import DensitometerWarning, InputError

_SHOWN = 16  # characters of a text that a warning quotes


def is_chat(value: Any) -> bool:
    """Whether this is a conversation: messages of the form {"role": ..., "content": ...}."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as the tokenizer's chat template writes it.

    It ends where the assistant's next token comes: after the opening of its answer; or, where the last message is the
    assistant's, inside that.

    Raises:
        InputError: no chat template, or one that refuses these messages.
    """
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(
                f"expected chat messages of the form {{'role': ..., 'content': ...}}, got {shorten(message)}"
            )
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template, so it cannot write chat messages; give the text as the model expects it, "
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
    except Exception as error:  # a template is a program of the model's authors: it may raise anything
        raise InputError(
            f"the chat template refuses these messages: {error or type(error).__name__}; got the roles "
            f"{', '.join(str(message['role']) for message in messages)}"
        ) from error


def tokenize(tokenizer: Any, text: str, special_tokens: bool = True) -> list[int]:
    """Token ids of a text, with a warning where it does not round-trip.

    Args:
        special_tokens: add those that the tokenizer adds by itself; a chat template has written them already.

    Raises:
        InputError: the text is not valid Unicode.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text is not valid Unicode: character {error.start} is {text[error.start]!r}, half of a pair or a byte that "
            "is not UTF-8; give it decoded as what it is"
        ) from None
    bare = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    _warn_of_loss(tokenizer, text, bare)
    if not special_tokens:
        return bare
    return list(tokenizer(text, verbose=False)["input_ids"])


def warn_of_doubled_start(tokenizer: Any, ids: Sequence[int], text: str | None) -> None:
    """Warn where the token that begins a sequence stands there twice."""
    starts = [getattr(tokenizer, name, None) for name in ("bos_token_id", "cls_token_id")]
    if len(ids) < 2 or ids[0] != ids[1] or ids[0] not in starts:
        return
    token = tokenizer.convert_ids_to_tokens(int(ids[0]))
    came = (
        "the token ids begin with it twice"
        if text is None
        else "the text begins with it and the tokenizer adds one more"
    )
    warnings.warn(
        f"doubled {token!r}: {came}, which the model was not trained on; leave one out (a rendered chat brings its own: "
        "give the list of messages instead)",
        DensitometerWarning,
        stacklevel=4,
    )


def _warn_of_loss(tokenizer: Any, text: str, ids: list[int]) -> None:
    """Warn where decoding does not give the text back, with the first place where it differs."""
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
        why = "; it makes no difference of upper and lower case"
    quote = ascii if why.endswith("form") else repr
    was, becomes = quote(text[i : i + _SHOWN]), quote(read[j : j + _SHOWN])
    warnings.warn(
        f"the tokenizer does not give the text back: from character {i} on, {was} is read as {becomes}{why}. The model is "
        "measured on what it reads",
        DensitometerWarning,
        stacklevel=5,
    )


def first_difference(text: str, read: str) -> tuple[int, int] | None:
    """Return where a text and its decoded tokens differ first, as an index into each.

    None where they do not differ.

    A space beside punctuation, or beside a Chinese character, is not a difference where only one of the two has it: decoders
    of word pieces put it there. Nor is one before the first word.
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
    neighbours = text[max(i - 1, 0) : i] + text[i + 1 : i + 2]
    return any(
        unicodedata.category(c)[0] in "PS" or unicodedata.name(c, "").startswith("CJK") for c in neighbours
    )


# ----------------------------------------------------------------------------------------------------


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token as readable text. Bytes that are not text on their own are written \\xNN."""
    decoders = list(_decoders(tokenizer))
    verbatim = set(tokenizer.get_added_vocab().values())  # special and added tokens stand as they are written
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    shown = []
    for i, token in zip(ids, tokens, strict=True):
        if token is None:  # an embedding may have more rows than its tokenizer has entries
            shown.append(f"<id {i}>")
        elif i in verbatim:
            shown.append(str(token))
        else:
            shown.append(_readable(token, decoders))
    return shown


def _decoders(tokenizer: Any) -> Iterator[dict[str, Any]]:
    """What turns tokens into text, in order: the parts of the fast tokenizer's decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        yield {"type": "ByteLevel"} if hasattr(tokenizer, "byte_decoder") else {"type": "Metaspace"}
        yield {"type": "ByteFallback"}
    elif backend.decoder is not None:
        described = json.loads(backend.decoder.__getstate__())
        yield from described.get("decoders", [described])


@cache
def _bytes_of_characters() -> dict[str, int]:
    """The table with which byte-level BPE writes bytes as printable characters (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    rest = (b for b in range(256) if b not in set(printable))
    return table | {chr(256 + i): b for i, b in enumerate(rest)}


def _readable(token: str | bytes, decoders: Sequence[dict[str, Any]]) -> str:
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
    """A value as it would be written in Python, cut to a line."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
