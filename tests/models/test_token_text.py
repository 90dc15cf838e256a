"""Token texts show what is there, and nothing that acts."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moescope.models.token_text import token_texts, visible

RAW = [" the", "\n\n", "\tx", "a\u200bb", "\u202eevil", "\x1b[31m", "\u00a0", "\u0301", "e\u0301", "漢", "\r", "<b>"]
SHOWN = [
    *("␣the", "↵↵", "⇥x", "a⟨U+200B⟩b", "⟨U+202E⟩evil", "⟨U+001B⟩[31m", "⟨U+00A0⟩", "◌\u0301", "e\u0301", "漢"),
    *("⟨CR⟩", "<b>"),
]


@pytest.mark.parametrize(("raw", "shown"), list(zip(RAW, SHOWN, strict=True)))
def test_every_character_can_be_seen(raw: str, shown: str) -> None:
    assert visible(raw) == shown


def test_byte_level_tokens() -> None:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = ["".join(piece for piece, _ in words.pre_tokenize_str(text)) for text in RAW]
    broken = words.pre_tokenize_str("漢")[0][0][:2]  # two of its three bytes
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, broken]))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.decoder = decoders.ByteLevel()
    texts = token_texts(PreTrainedTokenizerFast(tokenizer_object=made), vocab.values())
    assert [texts[vocab[piece]] for piece in pieces] == SHOWN
    assert texts[vocab[broken]] == "⟨0xE6⟩⟨0xBC⟩"


def test_pieces_with_a_mark_for_the_space_keep_it() -> None:
    vocab = {"<unk>": 0, "▁the": 1, "ing": 2, "<0xE6>": 3}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = token_texts(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"), [1, 2, 3, 99])
    assert texts == {1: "␣the", 2: "ing", 3: "<0xE6>", 99: "⟨id 99⟩"}
