"""Routers made by hand over documents of varied length and number, and the findings that the questions make of them.

Nothing runs a model: records are made, fed to the statistics that the questions ask for, and their tables read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from moescope.analyses import registry
from moescope.analyses.finding import Finding, find
from moescope.context import Context, ModelInfo
from moescope.records import Routing, TokenBatch
from moescope.results.reading import Results
from moescope.statistics.samples.routed import RoutedDocuments, RoutedTokens
from tests.report.folders import manifest

LAYERS, NUM_EXPERTS, NUM_SELECTED, VOCAB_SIZE = (0, 1, 2, 3), 16, 4, 60
QUESTIONS = ("usage", "vocabulary", "coactivation", "paths", "entropy")

Preferences = Callable[[np.random.Generator, TokenBatch, int], np.ndarray]
"""Logits (T, E) of one layer: what a router would prefer, beside noise of its own for each token."""


def per_token(generator: np.random.Generator, tokens: TokenBatch, layer: int) -> np.ndarray:
    """Nothing but noise."""
    return np.zeros((tokens.num_tokens, NUM_EXPERTS))


def per_document(generator: np.random.Generator, tokens: TokenBatch, layer: int) -> np.ndarray:
    """Each document prefers some experts, whatever its domain and its tokens are."""
    return 1.5 * generator.normal(size=(tokens.num_documents, NUM_EXPERTS))[tokens.rows_T.numpy()]


def per_domain(generator: np.random.Generator, tokens: TokenBatch, layer: int) -> np.ndarray:
    """Each domain prefers some experts."""
    fixed = np.random.default_rng([layer, 1])
    return 1.0 * fixed.normal(size=(64, NUM_EXPERTS))[tokens.domain_ids_T.numpy()]


def per_type(generator: np.random.Generator, tokens: TokenBatch, layer: int) -> np.ndarray:
    """Each token type prefers some experts."""
    fixed = np.random.default_rng([layer, 2])
    return 1.0 * fixed.normal(size=(VOCAB_SIZE, NUM_EXPERTS))[tokens.token_ids_T.numpy()]


def documents(seed: int, domains: Sequence[str], per: int) -> TokenBatch:
    """Documents of 10 to 80 tokens; each domain has its own number of them, and each document its own words."""
    generator = np.random.default_rng([seed, 3])
    numbers = generator.integers(per // 2, per + per // 2 + 1, len(domains))
    domain_ids_B = np.repeat(np.arange(len(domains)), numbers)
    lengths_B = generator.integers(10, 81, len(domain_ids_B))
    rows_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
    words_BV = generator.dirichlet(np.full(VOCAB_SIZE, 0.3), len(lengths_B))
    token_ids_T = np.concatenate(
        [generator.choice(VOCAB_SIZE, size, p=words_V) for size, words_V in zip(lengths_B, words_BV, strict=True)]
    )
    next_T = np.append(token_ids_T[1:], -1)
    next_T[np.append(rows_T[1:] != rows_T[:-1], True)] = -1
    positions_T = np.concatenate([np.arange(size) for size in lengths_B])
    hashes_B = generator.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, len(lengths_B))
    arrays = (token_ids_T, next_T, positions_T, rows_T, hashes_B, domain_ids_B)
    return TokenBatch(*(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays))


def routings(seed: int, tokens: TokenBatch, preferences: Preferences) -> list[Routing]:
    """The routing of each layer: K distinct experts with the highest of preference and Gumbel noise."""
    generator = np.random.default_rng([seed, 4])
    made: list[Routing] = []
    for layer in LAYERS:
        logits_TE = preferences(generator, tokens, layer) + generator.gumbel(size=(tokens.num_tokens, NUM_EXPERTS))
        logits_TE = torch.from_numpy(logits_TE).float()
        weights_TK, ids_TK = torch.softmax(logits_TE, dim=-1).topk(NUM_SELECTED, dim=-1)
        previous = made[-1] if made else None
        made.append(Routing(tokens, layer, ids_TK, weights_TK, NUM_EXPERTS, logits_TE, previous=previous))
    return made


def routed(
    seed: int, preferences: Preferences, *, num_domains: int = 4, per: int = 12, num_samples: int = 200_000
) -> RoutedDocuments:
    """The sample of whole documents, with this router's experts."""
    tokens = documents(seed, [f"domain {index}" for index in range(num_domains)], per)
    statistic = RoutedTokens(
        layers=LAYERS, num_experts=NUM_EXPERTS, num_experts_per_token=NUM_SELECTED, num_samples=num_samples, seed=seed
    )
    for routing in routings(seed, tokens, preferences):
        statistic.update(routing)
    return statistic.sample()


def findings(seed: int, preferences: Preferences, *, num_domains: int = 4, per: int = 12) -> list[Finding]:
    """All findings of one run of the questions about routing."""
    domains = [f"domain {index}" for index in range(num_domains)]
    tokens = documents(seed, domains, per)
    context = Context(
        model=ModelInfo(
            name="made", revision=None, family="made", config_hash="", dtype="float32", device="cpu",
            num_experts=NUM_EXPERTS, num_experts_per_token=NUM_SELECTED, num_shared_experts=0, model_width=8,
            expert_width=8, vocab_size=VOCAB_SIZE, scoring="softmax", selects_by="probability", complete=True,
            tokenizer=None,
        ),
        layers=LAYERS, domains=domains, groups={}, corpus_name="made", num_tokens=tokens.num_tokens, seed=seed,
        predictions=False,
    )  # fmt: skip
    analyses = [registry.find(name) for name in QUESTIONS]
    asked = [analysis.statistics(context) for analysis in analyses]
    # What two questions give the same key is fed once, as in a run.
    shared = {key: statistic for statistics in asked for key, statistic in statistics.items()}
    made = routings(seed, tokens, preferences)
    for statistic in shared.values():
        for routing in made:
            bare = dataclasses.replace(routing, logits_TE=None) if statistic.needs_predictions else routing
            statistic.update(bare)
    frames = {}
    for analysis, statistics in zip(analyses, asked, strict=True):
        frames |= analysis.frames(analysis.table({key: shared[key] for key in statistics}, context), context)
    facts = {"num_experts": NUM_EXPERTS, "num_experts_per_token": NUM_SELECTED, "layers": list(LAYERS)}
    return find(Results(Path("nowhere"), manifest(**facts), given=frames))
