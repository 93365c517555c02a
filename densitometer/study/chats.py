"""Chats as rows of a corpus, in the two forms that data sets have.

    messages         [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
    conversations    [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]

A chat is measured at the first token of its last answer. So an assistant's last message is not part
of what is measured: it is what comes next.

What this file does not do: it does not render chats, which the model's template does (`worker.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Column of a corpus with the messages that are measured, as JSON. Null for texts.
CHAT = "chat_messages"
# Names that data sets of conversations have for roles.
_ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip

Message = dict[str, str]


@dataclass(frozen=True)
class Chat:
    """A chat, up to its last answer.

    Args:
        context: the messages before the answer, {"role": ..., "content": ...}.
        answer: content of the last message if it is the assistant's; None where it is yet to come.
    """

    context: tuple[Message, ...]
    answer: str | None

    @classmethod
    def parse(cls, context: str, answer: str | None) -> Chat:
        """Return the chat of a row, from its columns `chat_messages` and `next`."""
        return cls(tuple(json.loads(context)), answer)

    @property
    def context_json(self) -> str:
        return json.dumps(self.context, ensure_ascii=False)

    @property
    def text(self) -> str:
        """Contents of the messages that are measured, one after the other."""
        return "\n\n".join(message["content"] for message in self.context)

    @property
    def whole(self) -> list[Message]:
        """All messages, with the answer."""
        answer = [] if self.answer is None else [{"role": "assistant", "content": self.answer}]
        return [*self.context, *answer]


def is_chat_value(value: Any, of_chats: bool) -> bool:
    """Whether a value is meant as a chat.

    Args:
        value: value of the column of texts.
        of_chats: whether the column has a name that chats have, so that JSON is a chat too.
    """
    if isinstance(value, str):
        return of_chats and value.lstrip().startswith("[")
    return hasattr(value, "__iter__") and (
        of_chats or (isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping))
    )


def chat_of(value: Any) -> Chat | str:
    """Return a chat of either form, or what is wrong with it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            return f"the chat is not JSON: {error}"
    # pandas gives arrays
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return f"a chat must be a list of messages, got {type(value).__name__}"
    messages = []
    for number, message in enumerate(value, start=1):
        read = _message(message)
        if isinstance(read, str):
            return f"message {number} of the chat {read}"
        messages.append(read)
    if not messages:
        return "the chat is empty"
    answered = messages[-1]["role"] == "assistant"
    context = messages[:-1] if answered else messages
    if not context:
        return "the chat has no message before the answer"
    return Chat(tuple(context), messages[-1]["content"] if answered else None)


def _message(message: Any) -> Message | str:
    """Return a message as role and content, or what is wrong with it."""
    if not isinstance(message, Mapping):
        return f"is not an object, got {type(message).__name__}"
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if message.get(role_key) is None or content_key not in message:
            continue
        role, content = message[role_key], message[content_key]
        if isinstance(content, list) and content and all(_is_text(part) for part in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            return f"must have a text as {content_key}, got {type(content).__name__}"
        return {"role": _ROLES.get(str(role), str(role)), "content": content}
    keys = ", ".join(map(str, message)) or "nothing"
    return f"must have role and content (or from and value), got {keys}"


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
