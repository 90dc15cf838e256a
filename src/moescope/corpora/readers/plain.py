"""Documents out of .txt and .md: one each."""

from __future__ import annotations

from pathlib import Path

from moescope.corpora.document import MAX_CHARACTERS, Document, readable
from moescope.corpora.problems import Problems
from moescope.corpora.readers.opening import open_bytes
from moescope.corpora.records import decode


def read(path: Path, name: str, problems: Problems, domain: str) -> Document | None:
    """The file as a document; None, counted, where it has no text."""
    # Four bytes are the longest character: enough to know whether the text goes on after the last one kept.
    limit = 4 * (MAX_CHARACTERS + 1)
    with open_bytes(path) as file:
        data = file.read(limit)
    if len(data) == limit:
        data = _without_half_character(data)
    text, truncated = readable(decode(data, problems, name).removeprefix("\ufeff"))
    if not text.strip():
        problems.add("no_text", name)
        return None
    if truncated:
        problems.add("long", name)
    return Document(text=text, domain=domain, document_id=name, source=name, truncated=truncated)


def _without_half_character(data: bytes) -> bytes:
    """Drops up to three bytes of a character that goes on after the end."""
    for length in range(1, 4):
        byte = data[-length]
        if byte >= 0xC0:
            return data[:-length]
        if byte < 0x80:
            break
    return data
