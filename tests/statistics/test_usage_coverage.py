"""What usage's nulls and intervals promise, over many corpora of known routing."""

import numpy as np
import pytest
from scipy.stats import binom

from moescope.statistics.usage import ExpertUsage
from tests.records import random_batch, random_routings

LAYERS = [2, 3]


def corpus(generator, design):
    """Lengths and domains of documents whose routing will not depend on the domain."""
    if design == "labels at random":
        return generator.integers(5, 60, 80), generator.integers(0, 4, 80)
    lengths, domain_ids = [], []  # every domain fills a budget of 500 tokens, one of them with short documents
    for domain, longest in enumerate((25, 25, 25, 12)):
        left = 500
        while left:
            lengths.append(min(int(generator.integers(3, longest + 1)), left))
            domain_ids.append(domain)
            left -= lengths[-1]
    return lengths, domain_ids


@pytest.mark.parametrize("num_corpora", [50, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("design", ["labels at random", "even budgets"])
def test_under_random_routing_about_five_percent_fall_outside_the_null(design, num_corpora):
    """Routing that depends on the document and not on its domain: many corpora, 2 layers, one verdict each.

    With labels at random the observed value is one more draw from the null, so its share is 5 % and the bounds are
    those of the binomial distribution at 1 in 10,000 each side. With even budgets domains are a little more even than
    chance makes them; the null holds in first order, and up to 8 % is let pass.
    """
    outside = {"mutual_information": [], "divergence": []}
    for seed in range(num_corpora):
        lengths, domain_ids = corpus(np.random.default_rng(seed), design)
        tokens = random_batch(10_000 + seed, lengths=lengths, domain_ids=domain_ids)
        statistic = ExpertUsage(
            layers=LAYERS, num_experts=6, num_experts_per_token=2, domains=list("abcd"), num_bootstrap=0, seed=seed
        )
        for record in random_routings(
            tokens, seed, layers=LAYERS, num_experts=6, specialization=0.0, document_effect=0.7
        ):
            statistic.update(record)
        table = statistic.compute()
        for name, verdicts in outside.items():
            low, high = table[f"{name}_null_low"], table[f"{name}_null_high"]
            verdicts.append(((table[name] < low) | (table[name] > high)).values.reshape(2, -1))
    share = 0.05 if design == "labels at random" else 0.08
    information = np.concatenate(outside["mutual_information"])
    trials = information.size
    assert trials == 2 * num_corpora
    least = binom.ppf(1e-4, trials, 0.05 if design == "labels at random" else 0.02)
    assert least <= information.sum() <= binom.ppf(1 - 1e-4, trials, share)
    # experts of a layer share its tokens, so each verdict of a layer counts once, by its first expert; then all experts
    divergence = np.concatenate(outside["divergence"])
    assert binom.ppf(1e-4, trials, 0.02) <= divergence[:, 0].sum() <= binom.ppf(1 - 1e-4, trials, share)
    # as if the six of a layer were two that are independent
    low, high = binom.ppf([1e-4, 1 - 1e-4], 2 * trials, [0.04, 0.06]) / (2 * trials)
    assert low <= divergence.mean() <= high


def true_specialization(**design) -> np.ndarray:
    """By expert, over 8,000 documents of another seed: its error is a fourteenth of that of a corpus of 40."""
    tokens = random_batch(999, lengths=[12] * 8000, domain_ids=[0] * 8000)
    (record,) = random_routings(tokens, 999, layers=[2], num_experts=6, **design)
    return np.bincount(record.expert_ids_TK.flatten(), minlength=6) / tokens.num_tokens


def test_intervals_cover_the_truth():
    """Coverage of the interval of a specialization over 60 corpora of 40 documents: 95 % nominal.

    Percentiles of 40 documents cover a little less, so 92 % is let pass. Verdicts of one corpus depend on each other:
    the bounds are those of 60 independent ones at 1 in 1,000 each side, for the share that all of them have.
    """
    true_E = true_specialization(document_effect=1.0)
    covered = []
    for seed in range(60):
        tokens = random_batch(20_000 + seed, lengths=[12] * 40, domain_ids=[0] * 40)
        statistic = ExpertUsage(
            layers=[2], num_experts=6, num_experts_per_token=2, domains=["one"], num_null=0, num_bootstrap=200
        )
        (record,) = random_routings(tokens, seed, layers=[2], num_experts=6, document_effect=1.0)
        statistic.update(record)
        at = statistic.compute().isel(layer=0, domain=0)
        low_E, high_E = (at[f"domain_specialization_ci_{end}"].values for end in ("low", "high"))
        covered.append((low_E <= true_E) & (true_E <= high_E))
    assert binom.ppf(1e-3, 60, 0.92) / 60 <= np.mean(covered) <= 0.99
