"""Tokens as text that can be read: spaces and line breaks visible, nothing that would act on a page or a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A piece that stands for one byte, where a tokenizer falls back to bytes.
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")

_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "⟨CR⟩"}


def token_texts(
    tokenizer: PreTrainedTokenizerBase | Mapping[int, str] | None, token_ids: Iterable[int]
) -> dict[int, str]:
    """Each token's text by id.

    Spaces are shown as ␣, line breaks as ↵, tabs as ⇥; control, format and unassigned characters by their code point,
    ⟨U+200B⟩; bytes that are no whole character as ⟨0xE2⟩; a token without any text, or without a tokenizer, by its id.
    In place of a tokenizer there may be such texts by id, as a trace keeps them.
    """
    if isinstance(tokenizer, Mapping):  # from a file of strangers: what is visible already stays as it is
        return {token_id: _recorded(tokenizer, token_id) for token_id in map(int, set(token_ids))}
    return {int(token_id): _text(tokenizer, int(token_id)) for token_id in set(token_ids)}


def _recorded(texts: Mapping[int, str], token_id: int) -> str:
    nameless = f"⟨id {token_id}⟩"
    text = texts.get(token_id, nameless)
    return text if text == nameless else visible(text)


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


def num_bytes(tokenizer: PreTrainedTokenizerBase, ids_BS: NDArray[np.int64]) -> NDArray[np.int64]:
    """UTF-8 bytes of text that the tokens of each row stand for, (B,).

    Each token counts for what it is in running text: a piece that begins with a space counts the space wherever the
    row begins, a byte piece is one byte, an added token is its own text. So the bytes of adjacent runs add up.

    Args:
        tokenizer: The model's tokenizer.
        ids_BS: Token ids; negative ones are not counted.
    """
    ids, places = np.unique(ids_BS, return_inverse=True)
    lengths = np.array(_lengths(tokenizer, ids[ids >= 0].tolist()), dtype=np.int64)
    return np.append(np.zeros(np.count_nonzero(ids < 0), np.int64), lengths)[places].reshape(ids_BS.shape).sum(1)


def _lengths(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[int]:
    """Bytes of each token in running text."""
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    joined = tokenizer.convert_tokens_to_string
    # Between two letters, so that nothing is stripped as it is at the beginning and the end of a text.
    alone = len(joined(["a", "a"]).encode())
    known = _byte_of()
    byte_level = joined(["a", "Ġ", "a"]) == "a a"
    falls_back = joined(["a", "<0x42>", "a"]) == "aBa"
    lengths = []
    for token_id, piece in zip(token_ids, tokenizer.convert_ids_to_tokens(token_ids), strict=True):
        if piece is None:
            lengths.append(0)
        elif token_id in added and "▁" not in added[token_id]:
            lengths.append(len(added[token_id].encode()))
        elif falls_back and _BYTE_PIECE.fullmatch(piece):
            lengths.append(1)
        elif byte_level and all(character in known for character in piece):
            lengths.append(len(piece))
        else:
            lengths.append(len(joined(["a", piece, "a"]).encode()) - alone)
    return lengths


@cache
def _byte_of() -> dict[str, int]:
    """Byte that each character of a byte-level tokenizer's pieces stands for (the mapping that GPT-2 began).

    Printable bytes stand for themselves; the others, in order, are written as code points from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
