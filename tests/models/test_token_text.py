"""Token texts show what is there, and nothing that acts."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moescope.models.token_text import num_bytes, token_texts, visible

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


def sentencepiece_like(*, prepend: bool) -> PreTrainedTokenizerFast:
    """Pieces with ▁ for the space and bytes for the rest, put together as Llama's and Mixtral's are."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"thecaé", *(f"▁{letter}" for letter in "tc")]
    made = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
            merges=[("▁", "t"), ("▁", "c")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    steps = [normalizers.Prepend("▁")] if prepend else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def metaspace_unigram() -> PreTrainedTokenizerFast:
    vocab = [("<unk>", -9.0), *((piece, -2.0) for piece in [*"▁thecaé漢🙂", "▁the", "▁cat"])]
    made = Tokenizer(models.Unigram(vocab, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def byte_level() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.Sequence([decoders.ByteLevel()])
    made.add_tokens([AddedToken("é🙂", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def word_pieces() -> PreTrainedTokenizerFast:
    vocab = {piece: index for index, piece in enumerate(["[UNK]", "the", "cat", "##the", "é", "漢", "##🙂"])}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


TOKENIZERS = {
    "llama": lambda: sentencepiece_like(prepend=True),
    "without a leading space": lambda: sentencepiece_like(prepend=False),
    "metaspace": metaspace_unigram,
    "byte level": byte_level,
    "word pieces": word_pieces,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bytes_of_windows_add_up_to_the_texts(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    text = "the cat é the" if kind == "word pieces" else "the cat é🙂 the  漢 cat"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    # Whatever the first token stands for at the beginning, after it every byte is counted, however it is cut.
    first = len(tokenizer.decode(ids[:1], clean_up_tokenization_spaces=False).encode())
    for cut in range(1, len(ids) + 1):
        rows = np.full((2, len(ids)), -1)
        rows[0, 1:cut] = ids[1:cut]
        rows[1, cut:] = ids[cut:]
        assert num_bytes(tokenizer, rows).sum() == len(text.encode()) - first
