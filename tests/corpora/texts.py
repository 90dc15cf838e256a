"""Text and tokenizers made on the spot, for tests that need neither a network nor the embedded corpus."""

from __future__ import annotations

import random
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from moescope.corpora import Corpus, Document
from moescope.corpora.base import in_turn
from moescope.corpora.document import readable, stable_hash

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(seed: int, count: int) -> str:
    """`count` words, no two texts alike."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(LETTERS, k=draw.randint(1, 6))) for _ in range(count))


class ListCorpus(Corpus):
    """Texts held in memory: the smallest source there can be."""

    def __init__(self, texts: Mapping[str, Sequence[str]], name: str = "list"):
        self.name = name
        self.domains = tuple(texts)
        self.groups = {}
        self.texts = texts

    @property
    def fingerprint(self) -> str:
        return f"list:{stable_hash(sorted(self.texts.items())):x}"

    def stream(self, seed, wanted: Container[str], problems) -> Iterator[Document]:
        def documents(domain: str) -> Iterator[Document]:
            numbers = sorted(range(len(self.texts[domain])), key=lambda number: stable_hash(seed, domain, number))
            for number in numbers:
                text, truncated = readable(self.texts[domain][number])
                yield Document(text, domain, f"{domain}/{number}", truncated=truncated)

        yield from in_turn({domain: documents(domain) for domain in self.domains}, wanted)


@cache
def tokenizer(prefix: str = "", suffix: str = "") -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens; `prefix` and `suffix` are put around each text by default."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|begin|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([words(seed, 50) for seed in range(50)], trainer)
    if prefix or suffix:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(part for part in (prefix, "$A", suffix) if part),
            special_tokens=[(token, backend.token_to_id(token)) for token in specials],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        bos_token="<|begin|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
