"""Conversations: messages with roles, and the tokens that a tokenizer's chat template makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moescope.corpora.document import MAX_CHARACTERS, Message, readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of a longer conversation only so many messages are read.
MAX_MESSAGES = 1_000

# Roles as datasets with `from` and `value` call them.
ROLES = {"human": "user", "gpt": "assistant"}

# What stands for message number N where a template's own text is sought.
_MARK = "\ue000{}\ue001"


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as tokens.

    Attributes:
        ids: Token ids of the whole conversation, as `tokenizer.apply_chat_template` gives them.
        content: Whether each is (in part) text of a message, and not of the template.
        templated: Whether a template put it together; otherwise the messages' texts are joined by blank lines.
        changed: Messages that the template changed or left out: their tokens are no content.
    """

    ids: NDArray[np.int64]
    content: NDArray[np.bool_]
    templated: bool
    changed: int


def messages_of(value: Any) -> tuple[tuple[Message, ...], bool] | None:
    """Messages out of a record's field, and whether they were cut; None where it holds no conversation.

    A message is a mapping with `role` and `content` (text, or a list of parts of which some have `text`), or with
    `from` and `value`. Messages without text are left out. A mapping of columns is taken as a list of rows.
    """
    if isinstance(value, Mapping):
        columns = {name: column for name, column in value.items() if isinstance(column, list)}
        value = [dict(zip(columns, row, strict=False)) for row in zip(*columns.values(), strict=False)]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        return None
    if not all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in value[:MAX_MESSAGES]):
        return None
    messages: list[Message] = []
    left, cut = MAX_CHARACTERS, len(value) > MAX_MESSAGES
    for one in value[:MAX_MESSAGES]:
        role = one.get("role", one.get("from"))
        text = _content(one.get("content", one.get("value")))
        if not isinstance(role, str) or not text.strip():
            continue
        if not left:
            cut = True
            break
        cut |= len(text) > left
        messages.append(Message(ROLES.get(role, role), readable(text[:left])[0]))
        left -= len(messages[-1].content)
    return tuple(messages), cut


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in value)
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def joined(messages: Sequence[Message]) -> str:
    """The messages' texts, a blank line between them."""
    return "\n\n".join(message.content for message in messages)


def tokens_of(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], role: str | None = None) -> ChatTokens:
    """A conversation as tokens, through the tokenizer's chat template if it has one.

    Args:
        tokenizer: The model's tokenizer.
        messages: The conversation.
        role: Only messages of this role are content; None for all.

    Raises:
        ValueError: The template refuses the conversation (some want roles in turn).
        LookupError: The tokenizer can't tell which text a token came from, which a role needs.
    """
    templated = bool(tokenizer.chat_template)
    if templated:
        text = _rendered(tokenizer, messages)
        spans = list(_spans(tokenizer, messages, text))
    else:
        text = joined(messages)
        ends = np.cumsum([len(message.content) + 2 for message in messages])
        spans = [
            (int(end) - 2 - len(message.content), int(end) - 2) for end, message in zip(ends, messages, strict=True)
        ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        if role is not None:
            raise LookupError("its tokenizer does not tell which text a token came from")
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
        return ChatTokens(ids, np.ones(len(ids), dtype=np.bool_), templated, 0)
    encoding = backend.encode(text, add_special_tokens=False)
    content = np.zeros(len(encoding.ids), dtype=np.bool_)
    starts, stops = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    for span, message in zip(spans, messages, strict=True):
        if span is not None and role in (None, message.role):
            content |= (starts < span[1]) & (stops > span[0])
    ids = np.array(encoding.ids, dtype=np.int64)
    return ChatTokens(ids, content, templated, sum(span is None for span in spans))


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except Exception as error:  # A template is a program out of the checkpoint: it may fail in any way.
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str
) -> Iterator[tuple[int, int] | None]:
    """Where each message's text lies in the rendered one; None where the template changed it.

    A second rendering with marks in place of the texts shows what the template puts between them.
    """
    marks = [Message(message.role, _MARK.format(number)) for number, message in enumerate(messages)]
    try:
        rest = _rendered(tokenizer, marks)
    except ValueError:
        rest = ""
    position = 0
    for message, mark in zip(messages, marks, strict=True):
        before, found, after = rest.partition(mark.content)
        start = position + len(before) if found and text.startswith(before, position) else position
        for content in (message.content, message.content.strip()):
            at = start if text.startswith(content, start) else text.find(content, start)
            if at >= 0:
                break
        if at < 0:
            yield None
            continue
        yield at, at + len(content)
        position = at + len(content)
        rest = after if found else rest
