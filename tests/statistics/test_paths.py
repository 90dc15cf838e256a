"""Expert paths against plain loops, scikit-learn, published counts and shuffled tokens."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn import metrics
from sklearn.metrics.cluster import expected_mutual_information as expected_by_sklearn

from moescope.errors import UsageError
from moescope.measures.independence import expected_mutual_information
from moescope.statistics.paths import ExpertPaths
from tests.golden import golden
from tests.records import random_batch, random_routings

LAYERS = [1, 4, 5]
ROUTINGS = [random_routings(random_batch(seed, num_documents=8), seed) for seed in range(3)]


def fed(batches: list) -> ExpertPaths:
    statistic = ExpertPaths(layers=LAYERS, num_experts=8, num_experts_per_token=2)
    for routings in batches:
        for routing in routings:
            statistic.update(routing)
    return statistic


def test_transitions_are_those_of_a_plain_loop() -> None:
    table = fed(ROUTINGS).compute()
    assert table.layer.values.tolist() == [1, 4]
    assert table.next_layer.values.tolist() == [4, 5]
    for position in range(2):
        pairs, first, before, after, first_before, num_tokens = Counter(), Counter(), Counter(), Counter(), Counter(), 0
        for routings in ROUTINGS:
            earlier, later = routings[position].expert_ids_TK.tolist(), routings[position + 1].expert_ids_TK.tolist()
            for ours, theirs in zip(earlier, later, strict=True):
                num_tokens += 1
                pairs.update((a, b) for a in ours for b in theirs)
                before.update(ours)
                after.update(theirs)
                first[ours[0], theirs[0]] += 1
                first_before[ours[0]] += 1
        at = table.isel(layer=position)
        assert int(at.num_tokens) == num_tokens
        for a in range(8):
            for b in range(8):
                assert int(at.num_paths[a, b]) == pairs[a, b]
                assert int(at.top1_num_paths[a, b]) == first[a, b]
                if before[a]:
                    assert float(at.transition[a, b]) == pytest.approx(pairs[a, b] / before[a])
                if before[a] and after[b]:
                    assert float(at.lift[a, b]) == pytest.approx(pairs[a, b] * num_tokens / before[a] / after[b])
                if first_before[a]:
                    assert float(at.top1_transition[a, b]) == pytest.approx(first[a, b] / first_before[a])
        used = np.array([before[a] > 0 for a in range(8)])
        np.testing.assert_allclose(at.transition.values[used].sum(axis=1), 2)


def test_information_of_first_ranks_is_scikit_learns() -> None:
    table = fed(ROUTINGS).compute()
    for position in range(2):
        ours, theirs = (
            torch.cat([routings[position + step].expert_ids_TK[:, 0] for routings in ROUTINGS]).numpy()
            for step in (0, 1)
        )
        at = table.isel(layer=position)
        assert float(at.top1_nmi) == pytest.approx(metrics.normalized_mutual_info_score(ours, theirs))
        adjusted = float((at.top1_nmi - at.top1_nmi_chance) / (1 - at.top1_nmi_chance))
        assert adjusted == pytest.approx(metrics.adjusted_mutual_info_score(ours, theirs), abs=1e-9)


def test_information_of_all_pairs_is_that_of_one_expert_drawn_from_each_set() -> None:
    table = fed(ROUTINGS).compute()
    for position in range(2):
        joint = np.zeros((8, 8))
        for routings in ROUTINGS:
            for ours, theirs in zip(
                routings[position].expert_ids_TK.tolist(), routings[position + 1].expert_ids_TK.tolist(), strict=True
            ):
                for a in ours:
                    for b in theirs:
                        joint[a, b] += 1
        joint /= joint.sum()
        p, q = joint.sum(axis=1), joint.sum(axis=0)
        information = sum(
            joint[a, b] * np.log(joint[a, b] / (p[a] * q[b])) for a in range(8) for b in range(8) if joint[a, b]
        )
        entropies = [-sum(x * np.log(x) for x in side if x) for side in (p, q)]
        assert float(table.nmi[position]) == pytest.approx(information / np.mean(entropies))


@pytest.mark.parametrize(("sizes", "num_tokens"), [((5, 9), 300), ((64, 64), 20_000), ((3, 2), 9)])
def test_expected_information_is_scikit_learns(sizes: tuple[int, int], num_tokens: int) -> None:
    generator = np.random.default_rng(num_tokens)
    rows, columns = (generator.multinomial(num_tokens, generator.dirichlet(np.ones(size))) for size in sizes)
    contingency = np.zeros(sizes, dtype=np.int64)
    labels = [np.repeat(np.arange(size), counts) for size, counts in zip(sizes, (rows, columns), strict=True)]
    np.add.at(contingency, tuple(labels), 1)
    expected = expected_by_sklearn(sparse.csr_matrix(contingency), num_tokens)
    assert expected_mutual_information(rows, columns, num_tokens) == pytest.approx(expected, rel=1e-8)


def test_shuffled_tokens_show_what_independence_predicts() -> None:
    """Shuffling one layer's tokens (whole sets) leaves as much information as the null says, in both readings."""
    generator = np.random.default_rng(6)
    tokens = random_batch(9, num_documents=60)
    earlier, later = random_routings(tokens, 9, layers=LAYERS[:2])
    found = []
    for _ in range(150):
        order_T = torch.from_numpy(generator.permutation(tokens.num_tokens))
        statistic = ExpertPaths(layers=LAYERS[:2], num_experts=8, num_experts_per_token=2)
        shuffled = dataclasses.replace(earlier, expert_ids_TK=earlier.expert_ids_TK[order_T])
        statistic.update(dataclasses.replace(later, previous=shuffled))
        table = statistic.compute()
        found.append([float(table[name][0]) for name in ("nmi", "top1_nmi")])
        expected = [float(table[f"{name}_chance"][0]) for name in ("nmi", "top1_nmi")]
    errors = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - expected) < 4 * errors).all()


def test_published_flows() -> None:
    """Counts of the real OLMoE between layers 0, 7 and 15."""
    counts_DPEE = golden()["crosslayer_top1_counts_DPEE"]
    top1_LDE = golden()["top1_counts_LDE"]
    for domain in range(3):
        paths = ExpertPaths.from_counts(counts_DPEE[domain], num_experts_per_token=8, layers=[0, 7, 15])
        table = paths.compute()
        assert table.num_tokens.values.tolist() == [208_896, 208_896]
        assert table.next_layer.values.tolist() == [7, 15]
        for position in range(2):
            at = table.isel(layer=position)
            counts = counts_DPEE[domain, position]
            expected = counts / np.maximum(top1_LDE[position, domain], 1)[:, None]
            np.testing.assert_allclose(np.nan_to_num(at.top1_transition.values), expected)
            information = metrics.mutual_info_score(None, None, contingency=counts)
            entropies = [-sum(p * np.log(p) for p in counts.sum(axis=axis) / counts.sum() if p) for axis in (0, 1)]
            assert float(at.top1_nmi) == pytest.approx(information / np.mean(entropies))
            assert at.top1_nmi > 10 * at.top1_nmi_chance
            assert np.isnan(at.nmi)


def test_one_layer_has_no_paths() -> None:
    statistic = ExpertPaths(layers=[1], num_experts=8, num_experts_per_token=2)
    statistic.update(ROUTINGS[0][0])
    table = statistic.compute()
    assert table.sizes["layer"] == 0
    assert table.transition.shape == (0, 8, 8)


def test_another_previous_layer_is_an_error() -> None:
    statistic = ExpertPaths(layers=[1, 5], num_experts=8, num_experts_per_token=2)
    with pytest.raises(RuntimeError, match="layer 4 before layer 5"):
        statistic.update(ROUTINGS[0][2])
    with pytest.raises(RuntimeError, match="no layer before layer 5"):
        statistic.update(dataclasses.replace(ROUTINGS[0][2], previous=None))


def test_flows_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="top1_counts_PEE"):
        ExpertPaths.from_counts(np.ones((2, 4, 4)), num_experts_per_token=2, layers=[0, 1])
