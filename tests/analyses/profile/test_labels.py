"""Labels on planted data: what takes exactly some tokens is told perfectly, what takes any is told by no one."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.analyses.profile.labels import labels
from moescope.measures.resampling import halves
from moescope.statistics.samples.tokens import SampledTokens

DOMAINS = ["law", "statutes", "verse", "code"]
GROUPS = {"law": "formal", "statutes": "formal", "verse": "prose", "code": "code"}
NUM_TOKENS, NUM_DOCUMENTS, NUM_TYPES = 12_000, 240, 40


def sample(seed: int = 0) -> SampledTokens:
    """Four experts, two a token: 0 takes types 3 and 5, 1 the formal domains, 2 and 3 anything."""
    draw = np.random.default_rng(seed)
    document_N = draw.integers(0, NUM_DOCUMENTS, NUM_TOKENS)
    hashes = draw.integers(-(2**62), 2**62, NUM_DOCUMENTS)
    domain_N = document_N % 4
    types_N = draw.integers(0, NUM_TYPES, NUM_TOKENS)
    planted = np.isin(types_N, (3, 5))
    formal = domain_N < 2
    others = 2 + draw.integers(0, 2, NUM_TOKENS)
    first = np.where(planted, 0, np.where(formal, 1, others))
    second = np.where(planted & formal, 1, np.where(first == others, 5 - others, others))
    return SampledTokens(
        token_ids_N=types_N,
        document_hashes_N=hashes[document_N],
        domain_ids_N=domain_N,
        halves_N=halves(hashes[document_N], seed=0),
        expert_ids_NK=np.stack([first, second], axis=1),
    )


def test_planted_tokens_are_named_and_told_perfectly():
    tokens, group, *_ = labels(sample(), 4, DOMAINS, GROUPS)
    assert tokens.rule == "tokens"
    assert {part.token_id for part in tokens.tokens[:2]} == {3, 5}
    assert tokens.score.balanced_accuracy == 1.0
    assert (tokens.score.low, tokens.score.high) == (1.0, 1.0)
    assert tokens.tokens[0].lift == pytest.approx(1 / tokens.score.num_selected * tokens.score.num_tokens, rel=0.1)
    assert group.rule == "domains"
    assert group.domain.name == "formal"
    assert group.domains == (0, 1)
    assert group.score.balanced_accuracy == 1.0
    assert group.domain.lift == pytest.approx(2.0, rel=0.1)


def test_one_domain_is_preferred_to_its_group_where_it_is_enough():
    planted = sample()
    ids_NK = planted.expert_ids_NK.copy()
    ids_NK[:, 0] = np.where(planted.domain_ids_N == 1, 1, 0)
    ids_NK[:, 1] = 2
    label = labels(SampledTokens(**{**vars(planted), "expert_ids_NK": ids_NK}), 4, DOMAINS, GROUPS)[1]
    assert (label.domain.name, label.domains) == ("statutes", (1,))
    assert label.score.balanced_accuracy == 1.0


def test_random_experts_are_told_no_better_than_by_a_coin():
    inside, flattered, scored = 0, [], []
    for seed in range(20):
        random = sample(seed)
        draw = np.random.default_rng(1000 + seed)
        ids_NK = np.argsort(draw.random((NUM_TOKENS, 8)), axis=1)[:, :2]
        found = labels(SampledTokens(**{**vars(random), "expert_ids_NK": ids_NK}), 8, DOMAINS, GROUPS, seed=seed)
        for label in found:
            inside += label.score.low <= 0.5 <= label.score.high
            flattered.append(label.chosen)
            scored.append(label.score.balanced_accuracy)
    assert 0.89 < inside / len(scored) <= 1.0
    assert abs(np.mean(scored) - 0.5) < 0.003
    assert np.mean(flattered) > 0.51  # the half that chose it says otherwise: why it is not what is shown


def test_the_score_is_the_mean_of_two_rates_on_the_half_that_did_not_choose():
    planted = sample(4)
    noise = np.random.default_rng(9).random(NUM_TOKENS)
    ids_NK = planted.expert_ids_NK.copy()
    swapped = (noise < 0.2) & (ids_NK[:, 0] == 0)
    ids_NK[swapped, 0] = 4
    changed = SampledTokens(**{**vars(planted), "expert_ids_NK": ids_NK})
    label = labels(changed, 5, DOMAINS, GROUPS)[0]
    other = changed.halves_N == 1
    own = (ids_NK == 0).any(axis=1)
    named = np.isin(changed.token_ids_N, [part.token_id for part in label.tokens])
    assert label.rule == "tokens"
    rates = named[other & own].mean(), 1 - named[other & ~own].mean()
    assert label.score.balanced_accuracy == pytest.approx(np.mean(rates))
    assert label.score.low < label.score.balanced_accuracy < label.score.high
    assert label.score.num_selected == (other & own).sum()
    assert label.score.num_documents == len(np.unique(changed.document_hashes_N[other & own]))


def test_who_takes_nothing_or_everything_has_no_label():
    planted = sample()
    ids_NK = np.stack([np.zeros(NUM_TOKENS, dtype=int), 1 + (planted.token_ids_N == 3)], axis=1)
    every, *_, never = labels(SampledTokens(**{**vars(planted), "expert_ids_NK": ids_NK}), 4, DOMAINS, GROUPS)
    assert every is None
    assert never is None


def test_few_documents_have_no_interval_and_one_domain_names_no_domain():
    planted = sample()
    few = np.unique(planted.document_hashes_N)[:8]
    kept = np.isin(planted.document_hashes_N, few)
    small = SampledTokens(**{name: values[kept] for name, values in vars(planted).items()})
    for label in labels(small, 4, DOMAINS, {}):
        assert np.isnan(label.score.low)
    alone = SampledTokens(**{**vars(planted), "domain_ids_N": np.zeros(NUM_TOKENS, dtype=int)})
    assert all(label is None or label.domain is None for label in labels(alone, 4, ["all"], {}))


def test_no_token_at_all():
    empty = SampledTokens(*(np.zeros(0, dtype=int) for _ in range(4)), np.zeros((0, 2), dtype=int))
    assert labels(empty, 3, DOMAINS, GROUPS) == [None] * 3
