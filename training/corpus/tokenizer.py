"""nano's tokenizer: an 8,192-token byte-level BPE trained on equal shares of the 22 domains."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 8192
END_OF_TEXT = "<|endoftext|>"
CHARACTERS_PER_DOMAIN = 1_500_000
CONTEXT_LENGTH = 2048

# What may become one token, first alternative that fits: an English contraction; a word with the blank or sign before
# it; Chinese characters (a class of their own, or a sentence would count as one word); one digit; signs with the line
# end after them; line ends; indentation without the blank that belongs to the next word.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)(?!\p{L})"
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^\p{Han}]]+"
    r"| ?\p{Han}+"
    r"| ?\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|[\r\n]+"
    r"|[^\S\r\n]+(?!\S)"
    r"|\s+"
)


def train_tokenizer(training: pa.Table, folder: Path) -> None:
    """Train the tokenizer and save it as a folder that transformers loads.

    Args:
        training: The training text, with columns `text` and `domain`.
        folder: Gets `tokenizer.json` and `tokenizer_config.json`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(equal_shares(training), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def equal_shares(training: pa.Table) -> Iterator[str]:
    """Yield documents of every domain up to the same number of characters."""
    for domain in pc.unique(training["domain"]).to_pylist():
        left = CHARACTERS_PER_DOMAIN
        for text in training.filter(pc.field("domain") == domain)["text"].to_pylist():
            if left <= 0:
                break
            yield text[:left]
            left -= len(text)


def check_tokenizer(folder: Path, held_out: pa.Table, training: pa.Table, say: Callable[[str], None]) -> list[str]:
    """Check the round trip and the size of the held-out text; report bytes per token.

    Returns:
        What is wrong, empty if nothing is.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    problems = []
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE or tokenizer.token_to_id(END_OF_TEXT) != 0:
        problems.append(f"the vocabulary has {tokenizer.get_vocab_size()} tokens, or its first is not {END_OF_TEXT}")
    total = 0
    for domain in pc.unique(held_out["domain"]).to_pylist():
        texts = held_out.filter(pc.field("domain") == domain)["text"].to_pylist()
        sample = training.filter(pc.field("domain") == domain)["text"].to_pylist()[:200]
        encodings = tokenizer.encode_batch(texts)
        for text in [*texts, *sample]:
            if tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) != text:
                problems.append(f"{domain}: a text does not survive the round trip: {text[:60]!r}")
        counts = [len(encoding.ids) for encoding in encodings]
        size = sum(len(text.encode()) for text in texts)
        total += sum(counts)
        shares = [max(counts) / sum(counts), max(map(len, texts)) / sum(map(len, texts))]
        say(
            f"{domain}: held out {len(texts)} documents, {sum(counts)} tokens, {size / sum(counts):.3f} bytes per "
            f"token, largest share {max(shares):.4f}, {min(counts)} to {max(counts)} tokens"
        )
        if len(texts) < 40 or sum(counts) < 20_000 or max(shares) > 0.05:
            problems.append(f"{domain}: {len(texts)} documents, {sum(counts)} tokens, largest share {max(shares):.4f}")
    say(f"all domains: {total} held-out tokens")
    return [*problems, *([] if total >= 440_000 else [f"{total} held-out tokens in all"])]
