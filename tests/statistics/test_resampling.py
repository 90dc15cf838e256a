"""Hashes against an implementation in Python integers and published values; draws against their distributions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moescope.measures import resampling

INT64 = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15

POISSON = [[3, 2, 3, 2, 1, 0, 0, 1], [0, 2, 0, 1, 1, 3, 0, 0], [1, 0, 2, 0, 1, 1, 0, 1], [1, 0, 2, 0, 0, 1, 0, 1]]
ORDER = [4357489006400456907, 7202416455794597336, 4491733144860116129, 8748201027571494996]
HALVES = [1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1]
SAMPLE = [2101758291130257842, 925363821313500645, 7597151337515457897, 4801509646421976977]


def mix_in_python(value: int) -> int:
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash_in_python(*values: int) -> int:
    hashed = 0
    for value in values:
        hashed = mix_in_python(hashed + GOLDEN + value)
    return hashed


def documents(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count)


def test_published_values_of_splitmix64():
    # the first five outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) for the seed 1234567
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = np.array([(1234567 + step * GOLDEN) & MASK for step in range(5)], dtype=np.uint64).view(np.int64)
    assert resampling.stable_hash(states).view(np.uint64).tolist() == published


@given(st.lists(INT64, min_size=1, max_size=4))
def test_numpy_torch_and_python_integers_agree(values):
    arrays = [np.array([value]) for value in values]
    tensors = [torch.tensor([value]) for value in values]
    expected = hash_in_python(*values)
    assert int(resampling.stable_hash(*arrays)[0]) & MASK == expected
    assert int(resampling.stable_hash(*tensors)[0]) & MASK == expected
    assert int(resampling.stable_hash(arrays[0], *values[1:])[0]) & MASK == expected
    assert int(resampling.uniform_bits(resampling.stable_hash(*arrays))[0]) == expected >> 11


def test_draws_are_the_same_bits_in_numpy_and_torch():
    hashes_B = documents(500)
    positions_B = np.arange(500)
    on_torch = torch.from_numpy(hashes_B)
    pairs = [
        (resampling.poisson_weights(hashes_B, 7), resampling.poisson_weights(on_torch, 7)),
        (resampling.document_order(hashes_B), resampling.document_order(on_torch)),
        (resampling.halves(hashes_B), resampling.halves(on_torch)),
        (resampling.groups(hashes_B, 20), resampling.groups(on_torch, 20)),
        (
            resampling.sample_hashes(hashes_B, positions_B),
            resampling.sample_hashes(on_torch, torch.from_numpy(positions_B)),
        ),
    ]
    for in_numpy, in_torch in pairs:
        assert in_numpy.dtype == np.int64
        assert in_torch.dtype == torch.int64
        assert np.array_equal(in_numpy, in_torch.numpy())


def test_draws_never_change():
    # the same run must give the same intervals next year: these are the values of the first release
    hashes_B = np.array([0, 1, -1, 2**62])
    assert resampling.poisson_weights(hashes_B, 8).tolist() == POISSON
    assert resampling.document_order(hashes_B).tolist() == ORDER
    assert resampling.halves(np.arange(12)).tolist() == HALVES
    assert resampling.sample_hashes(hashes_B, np.arange(4)).tolist() == SAMPLE


def test_a_document_draws_the_same_in_whatever_company():
    hashes_B = documents(50)
    order = np.random.default_rng(1).permutation(50)
    for draw in (
        lambda hashes: resampling.poisson_weights(hashes, 11),
        resampling.document_order,
        resampling.halves,
    ):
        assert np.array_equal(draw(hashes_B)[order], draw(hashes_B[order]))
        assert np.array_equal(draw(hashes_B)[10:20], draw(hashes_B[10:20]))
    assert np.array_equal(resampling.poisson_weights(hashes_B, 11)[:, :4], resampling.poisson_weights(hashes_B, 4))


@pytest.mark.parametrize("hashes_B", [documents(20_000), np.arange(20_000)], ids=["random", "consecutive"])
def test_weights_are_poisson(hashes_B):
    weights_BR = resampling.poisson_weights(hashes_B, 3)
    for replicate in range(3):
        observed = np.bincount(np.minimum(weights_BR[:, replicate], 6), minlength=7)
        expected = stats.poisson(1).pmf(np.arange(7))
        expected[6] = stats.poisson(1).sf(5)
        assert stats.chisquare(observed, expected * len(hashes_B)).pvalue > 1e-3


def test_the_tail_of_the_weights_is_as_fine_as_the_hash():
    thresholds = resampling._poisson_thresholds()
    exact = stats.poisson(1).sf(np.arange(len(thresholds)))  # P(weight > count)
    for count, threshold in enumerate(thresholds):
        assert 1 - threshold / 2**53 == pytest.approx(exact[count], abs=2**-52)
    assert exact[-1] < 2**-52


def test_weights_of_different_replicates_and_documents_are_independent():
    weights_BR = resampling.poisson_weights(np.arange(4000), 60)
    correlations = np.corrcoef(weights_BR.T)[np.triu_indices(60, 1)] * np.sqrt(4000)
    assert stats.kstest(correlations, "norm").pvalue > 1e-3  # standard normal if independent
    correlations = np.corrcoef(weights_BR[:60])[np.triu_indices(60, 1)] * np.sqrt(60)
    assert abs(correlations.mean()) < 4 / np.sqrt(len(correlations))
    # the sum over documents of each replicate: Poisson with n, so its variance over replicates is n
    sums_R = resampling.poisson_weights(documents(1000, 5), 400).sum(axis=0)
    low, high = stats.chi2(399).ppf([1e-4, 1 - 1e-4])
    assert low < ((sums_R - 1000) ** 2).sum() / 1000 < high


def test_documents_are_ordered_at_random():
    order_B = resampling.document_order(np.arange(20_000))
    assert order_B.min() >= 0
    smallest = np.argsort(order_B)[:2000]
    assert stats.kstest(smallest / 20_000, "uniform").pvalue > 1e-3


def test_halves_and_groups_are_fair():
    halves_B = resampling.halves(np.arange(20_000))
    assert set(halves_B.tolist()) == {0, 1}
    assert stats.binomtest(int(halves_B.sum()), 20_000).pvalue > 1e-3
    groups_B = resampling.groups(np.arange(20_000), 20)
    assert stats.chisquare(np.bincount(groups_B, minlength=20)).pvalue > 1e-3


def test_purposes_and_seeds_are_independent_of_each_other():
    hashes_B = np.arange(20_000)
    halves_B = resampling.halves(hashes_B)
    others = [
        resampling.poisson_weights(hashes_B, 1)[:, 0].clip(max=4),
        resampling.poisson_weights(hashes_B, 1, seed=1)[:, 0].clip(max=4),
        resampling.document_order(hashes_B) >> 61,
        resampling.halves(hashes_B, seed=1),
        resampling.groups(hashes_B, 5),
    ]
    draws = [halves_B, *others]
    for first in range(len(draws)):
        for second in range(first):
            table = np.zeros((draws[first].max() + 1, draws[second].max() + 1))
            np.add.at(table, (draws[first], draws[second]), 1)
            assert stats.chi2_contingency(table).pvalue > 1e-4


def test_sample_hashes_order_tokens_at_random():
    hashes_T = np.repeat(documents(100), 50)
    sampled = resampling.sample_hashes(hashes_T, np.tile(np.arange(50), 100))
    assert sampled.min() >= 0
    assert len(np.unique(sampled)) == 5000
    smallest = np.argsort(sampled)[:1000]
    assert stats.chisquare(np.bincount(smallest // 50, minlength=100)).pvalue > 1e-3  # by document
    assert stats.chisquare(np.bincount(smallest % 50, minlength=50)).pvalue > 1e-3  # by position
