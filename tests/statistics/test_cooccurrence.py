"""Co-activation and overlap against plain loops, enumeration of all sets, and simulation."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.errors import UsageError
from moescope.measures.independence import pair_probabilities
from moescope.statistics.cooccurrence import ExpertCooccurrence
from tests.records import random_batch, random_routings

LAYERS = [1, 4, 5]


def fed(num_experts: int = 8, num_ranks: int = 3, seeds: tuple[int, ...] = (0, 1)) -> tuple[ExpertCooccurrence, list]:
    statistic = ExpertCooccurrence(layers=LAYERS, num_experts=num_experts, num_experts_per_token=num_ranks)
    records = []
    for seed in seeds:
        tokens = random_batch(seed, num_documents=8)
        records += random_routings(tokens, seed, num_experts=num_experts, num_experts_per_token=num_ranks)
    for record in records:
        statistic.update(record)
    return statistic, records


def test_every_measure_is_that_of_a_plain_loop() -> None:
    statistic, records = fed()
    table = statistic.compute()
    for layer in LAYERS:
        alone, together, num_tokens = Counter(), Counter(), 0
        for record in records:
            if record.layer != layer:
                continue
            for experts in record.expert_ids_TK.tolist():
                num_tokens += 1
                alone.update(experts)
                together.update((i, j) for i in experts for j in experts if i != j)
        at = table.sel(layer=layer)
        assert int(at.num_tokens) == num_tokens
        for i in range(8):
            assert int(at.num_selected[i]) == alone[i]
            for j in range(8):
                if i == j:
                    continue
                both, a, b = together[i, j], alone[i], alone[j]
                assert int(at.num_together[i, j]) == both
                assert float(at.coactivation[i, j]) == pytest.approx(both / a)
                assert float(at.lift[i, j]) == pytest.approx(num_tokens * both / (a * b))
                assert float(at.jaccard[i, j]) == pytest.approx(both / (a + b - both))
                assert float(at.overlap_coefficient[i, j]) == pytest.approx(both / min(a, b))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.data())
def test_invariants(seed: int, num_experts: int, data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, num_experts))
    statistic, _ = fed(num_experts, num_ranks, (seed,))
    table = statistic.compute()
    apart = ~np.eye(num_experts, dtype=bool)
    for position in range(len(LAYERS)):
        at = table.isel(layer=position)
        used = at.num_selected.values > 0
        for suffix in ("", "_chance"):
            coactivation = np.where(apart, at[f"coactivation{suffix}"].values, 0.0)
            np.testing.assert_allclose(coactivation[used].sum(axis=1), num_ranks - 1, atol=1e-6)
            for name in ("jaccard", "overlap_coefficient", "lift"):
                values = at[f"{name}{suffix}"].values
                np.testing.assert_allclose(values, values.T, atol=1e-9)
            for name in ("jaccard", "overlap_coefficient"):
                values = at[f"{name}{suffix}"].values[np.ix_(used, used)]
                np.testing.assert_allclose(np.diag(values), 1.0)
                assert (values >= 0).all()
                assert (values <= 1 + 1e-9).all()


def enumerate_sets(odds: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """P(e selected) and P(i, j selected) if a set's probability is proportional to the product of its odds."""
    num_experts = len(odds)
    one, two, total = np.zeros(num_experts), np.zeros((num_experts, num_experts)), 0.0
    for chosen in combinations(range(num_experts), size):
        weight = np.prod(odds[list(chosen)])
        total += weight
        one[list(chosen)] += weight
        for i in chosen:
            for j in chosen:
                two[i, j] += weight
    return one / total, two / total


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_pair_probabilities_are_those_of_all_sets(size: int) -> None:
    odds = np.random.default_rng(size).lognormal(sigma=1.5, size=7)
    one, two = enumerate_sets(odds, size)
    np.testing.assert_allclose(pair_probabilities(one, size), two, atol=1e-9)


def test_experts_always_or_never_selected_are_independent_of_the_rest() -> None:
    one, two = enumerate_sets(np.array([1.0, 2.0, 0.5, 0.7]), 2)
    frequencies = np.array([one[0], 1.0, *one[1:], 0.0])
    found = pair_probabilities(frequencies, 3)
    rest = [0, 2, 3, 4]
    np.testing.assert_allclose(found[np.ix_(rest, rest)], two, atol=1e-9)
    np.testing.assert_allclose(found[1], frequencies * 1.0, atol=1e-12)
    np.testing.assert_allclose(found[5], 0.0, atol=1e-12)


def test_even_experts_meet_less_often_than_free_draws_would() -> None:
    found = pair_probabilities(np.full(64, 0.125), 8)
    apart = ~np.eye(64, dtype=bool)
    np.testing.assert_allclose(found[apart], 8 * 7 / (64 * 63), rtol=1e-9)


def test_a_router_that_ignores_its_input_shows_what_independence_predicts() -> None:
    """Experts drawn one by one without replacement: lifts and overlaps scatter around the independent ones."""
    generator = np.random.default_rng(4)
    keys = torch.from_numpy(generator.normal(scale=0.8, size=16) + generator.gumbel(size=(200_000, 16)))
    selected_TE = torch.zeros(200_000, 16, dtype=torch.float64).scatter_(1, keys.topk(4).indices, 1.0)
    counts = (selected_TE.T @ selected_TE).long()[None]
    statistic = ExpertCooccurrence.from_counts(counts, [200_000], num_experts_per_token=4, layers=[0])
    table = statistic.compute()
    apart = ~np.eye(16, dtype=bool)
    for name in ("jaccard", "overlap_coefficient", "coactivation"):
        difference = (table[name] - table[f"{name}_chance"]).values[0][apart]
        # Drawing without replacement is not quite the maximum-entropy null; free draws would be off by 0.02.
        assert np.abs(difference).max() < 0.012, name
        assert abs(difference.mean()) < 0.001, name


def test_counts_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="symmetric"):
        ExpertCooccurrence.from_counts(np.arange(9).reshape(1, 3, 3), [5], num_experts_per_token=2, layers=[0])
    with pytest.raises(UsageError, match="shape"):
        ExpertCooccurrence.from_counts(np.ones((2, 3, 3)), [5], num_experts_per_token=2, layers=[0])
