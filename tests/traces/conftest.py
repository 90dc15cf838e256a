"""nano's routing of a few tokens: recorded, as the model's own counts, and taken apart for writing in other formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.corpora import Sampler
from moescope.traces import Trace
from tests.traces.formats import Routed, documents_of

NUM_TOKENS = 330
"""Fifteen of each domain: one document each."""


@dataclass
class Known:
    """What a reader has to come to.

    `counts_DLE` are of domain, layer, expert, counted by hand in a pass of the model; `counts_LE` of all domains.
    """

    trace: Trace
    folder: Path
    layers: list[int]
    num_experts: int
    num_experts_per_token: int
    documents: list[Routed]
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def counts_LE(self) -> np.ndarray:
        return sum(self.counts.values())


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Known:
    model, corpus = moescope.load_model("nano"), moescope.load_corpus("embedded")
    counts = {name: np.zeros((len(model.layers), model.num_experts), np.int64) for name in corpus.domains}

    def count(routing):
        position = model.layers.index(routing.layer)
        domains_T = routing.tokens.domain_ids_B[routing.tokens.rows_T].tolist()
        for ids_K, domain in zip(routing.expert_ids_TK.tolist(), domains_T, strict=True):
            counts[corpus.domains[domain]][position, ids_K] += 1

    sampler = Sampler(corpus, model.tokenizer, num_tokens=NUM_TOKENS, max_positions=model.max_positions)
    for batch in sampler:
        model.listen(
            batch.input_ids_BS, batch.tokens, batch.keep_T, layers=model.layers, on_routing=count, needs_logits=False
        )
    folder = tmp_path_factory.mktemp("nano")
    trace = moescope.record_trace(model, corpus, folder / "own", NUM_TOKENS)
    return Known(
        trace, folder, list(model.layers), model.num_experts, model.num_experts_per_token, documents_of(trace), counts
    )


def counts_of(trace: Trace) -> dict[str, np.ndarray]:
    """Selections by domain: (layer, expert)."""
    facts = trace.facts
    if "counts" in trace.columns:
        counts_LDE = trace.counts_LDE()
        return {domain.name: counts_LDE[:, position] for position, domain in enumerate(facts.domains)}
    found = {domain.name: np.zeros((len(facts.layers), facts.num_experts), np.int64) for domain in facts.domains}
    for block in trace.blocks(facts.layers):
        for token, row in enumerate(block.rows_T.tolist()):
            for position in range(len(facts.layers)):
                found[block.documents[row].domain][position, block.expert_ids_TLK[token, position]] += 1
    return found
