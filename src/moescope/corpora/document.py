"""One document, and the little that all sources do with text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MAX_CHARACTERS = 2**18
"""Of a longer document only this many characters from its beginning are read.

A window's position in its document is a number of tokens, so everything before the window must be tokenized: a bound on
the text is a bound on that work and on memory. Nearly all documents are far shorter; of a book it is the first quarter.
"""

MAX_RECORD_BYTES = 2**24
"""Lines, rows and records of files that are longer are skipped: a record is parsed as a whole, in memory."""


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says: `role` is user, assistant, system, ... and `content` its text."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """One text that a reader would call a document.

    Attributes:
        text: The text, valid Unicode, at most `MAX_CHARACTERS` characters of it.
        domain: The domain it belongs to, one of the corpus' domains.
        document_id: Unique in the corpus and the same in every run.
        source: Where it comes from, as far as the corpus says.
        license: The license it may be used under, as far as the corpus says.
        truncated: Whether the document goes on after `text`.
        messages: The conversation that the document is, if it is one: the model reads it through its tokenizer's chat
            template, and `text` is what the messages say.
        role: Of a conversation, only what this role says is counted; None for all.
    """

    text: str
    domain: str
    document_id: str
    source: str = ""
    license: str = ""
    truncated: bool = False
    messages: tuple[Message, ...] = ()
    role: str | None = None


def stable_hash(*parts: object) -> int:
    """Signed 64-bit BLAKE2b hash of the parts' text: the same on every machine, in every run."""
    data = "\0".join(str(part) for part in parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def readable(text: str) -> tuple[str, bool]:
    """The text up to `MAX_CHARACTERS` with lone surrogates (escaped in JSON) replaced, and whether it was cut."""
    truncated = len(text) > MAX_CHARACTERS
    text = text[:MAX_CHARACTERS]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    return text, truncated
