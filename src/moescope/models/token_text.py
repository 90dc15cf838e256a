"""Tokens as text that can be read: spaces and line breaks visible, nothing that would act on a page or a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "⟨CR⟩"}


def token_texts(tokenizer: PreTrainedTokenizerBase | None, token_ids: Iterable[int]) -> dict[int, str]:
    """Each token's text by id.

    Spaces are shown as ␣, line breaks as ↵, tabs as ⇥; control, format and unassigned characters by their code point,
    ⟨U+200B⟩; bytes that are no whole character as ⟨0xE2⟩; a token without any text, or without a tokenizer, by its id.
    """
    return {int(token_id): _text(tokenizer, int(token_id)) for token_id in set(token_ids)}


def visible(text: str) -> str:
    """Text in which every character can be seen."""
    shown = "".join(_MARKS.get(character) or _shown(character) for character in text)
    # A mark without a letter to sit on would sit on whatever is printed before it.
    return "◌" + shown if shown and unicodedata.category(shown[0]).startswith("M") else shown


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    return f"⟨U+{ord(character):04X}⟩" if category[0] in "CZ" else character


def _text(tokenizer: PreTrainedTokenizerBase | None, token_id: int) -> str:
    if tokenizer is None:
        return f"⟨id {token_id}⟩"
    text = str(tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if "\ufffd" in text and isinstance(piece, str):
        known = _byte_of()
        if all(character in known for character in piece):
            return visible_bytes(bytes(known[character] for character in piece))
        return visible(piece)
    # Some tokenizers drop a leading space when they decode a single token; its piece still has the mark.
    if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" "):
        text = " " + text
    return visible(text) if text else f"⟨id {token_id}⟩"


def visible_bytes(raw: bytes) -> str:
    """Bytes as text, those that are no whole character as ⟨0xE2⟩."""
    text = raw.decode("utf-8", errors="surrogateescape")
    return "".join(
        f"⟨0x{ord(character) - 0xDC00:02X}⟩" if 0xDC80 <= ord(character) <= 0xDCFF else visible(character)
        for character in text
    )


@cache
def _byte_of() -> dict[str, int]:
    """Byte that each character of a byte-level tokenizer's pieces stands for (the mapping that GPT-2 began).

    Printable bytes stand for themselves; the others, in order, are written as code points from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
