"""Real runs of a tiny random model over a small folder of text: what analyses are tested with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moescope.corpora import Corpus, Sampler, load_corpus
from moescope.models import MoEModel, load_model
from moescope.records import Routing
from tests.families import build, save

NUM_TOKENS = 3000
WORDS = {
    "fruit": ["apple", "pear", "plum", "cherry", "melon", "quince", "grape"],
    "trade": ["sell", "buy", "12", "€", "price,", "7", "%", "loan", "—", "bank"],
    "code": ["def", "f(x):", "return\n\tx", "+", "1", "if", "x", "else", "[0]\n"],
}


def tiny_model(folder: Path, **changes: int) -> MoEModel:
    """An OLMoE of four layers of eight experts, top-2, saved and loaded as any checkpoint."""
    return load_model(str(save(build("olmoe", **changes), folder)), device="cpu")


def small_corpus(folder: Path) -> Corpus:
    """Three domains of documents of 10 to 40 words, each domain with words of its own."""
    generator = np.random.default_rng(0)
    for domain, words in WORDS.items():
        for number in range(15):
            path = folder / domain / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(" ".join(generator.choice(words, size=generator.integers(10, 40))), "utf-8")
    return load_corpus(str(folder))


def routings_of(model: MoEModel, corpus: Corpus, layers: list[int], num_tokens: int = NUM_TOKENS) -> list[Routing]:
    """Every record that a run over the corpus gives its statistics."""
    records: list[Routing] = []
    sampler = Sampler(corpus, model.tokenizer, num_tokens=num_tokens, max_positions=model.max_positions)
    for batch in sampler:
        model.listen(batch.input_ids_BS, batch.tokens, batch.keep_T, layers=layers, on_routing=records.append)
    return records
