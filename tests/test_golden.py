"""Published routing counts of OLMoE-1B-7B-0924 against what we compute of them."""

import numpy as np
import pytest
from scipy import stats

import moescope.statistics.usage as usage
from tests.golden import DOMAINS, LAYERS, NUM_EXPERTS, NUM_TOKENS, expert_counts, golden

# layer, domain, expert, domain specialization in percent
TOP_SPECIALIZATIONS = [
    (0, "github", 21, 62.58),
    (7, "github", 17, 76.96),
    (15, "github", 30, 56.36),
    (0, "arxiv", 0, 97.66),
    (7, "arxiv", 17, 78.54),
    (15, "arxiv", 17, 93.69),
    (0, "book", 28, 45.40),
]
USAGE_ENTROPIES = {"github": [0.9610, 0.8514, 0.8530], "arxiv": [0.9428, 0.8661, 0.8638]}


@pytest.fixture(scope="module")
def counts_LDE():
    return expert_counts()


@pytest.fixture(scope="module")
def table(counts_LDE):
    statistic = usage.ExpertUsage.from_counts(
        counts_LDE, [NUM_TOKENS] * 3, num_experts_per_token=8, layers=LAYERS, domains=DOMAINS
    )
    return statistic.compute()


def test_every_token_selects_eight_experts(counts_LDE):
    assert (counts_LDE.sum(axis=-1) == 8 * NUM_TOKENS).all()
    assert (counts_LDE <= NUM_TOKENS).all()


def test_counts_are_those_of_the_larger_file(counts_LDE):
    arrays = golden()
    assert arrays["layers"].tolist() == LAYERS
    assert arrays["domains"].tolist() == DOMAINS
    np.testing.assert_array_equal(counts_LDE, arrays["expert_counts_LDE"])


@pytest.mark.parametrize(("layer", "domain", "expert", "percent"), TOP_SPECIALIZATIONS)
def test_published_specializations(table, layer, domain, expert, percent):
    cells_E = table["domain_specialization"].sel(layer=layer, domain=domain)
    assert int(cells_E.argmax("expert")) == expert
    assert 100 * float(cells_E.sel(expert=expert)) == pytest.approx(percent, abs=0.01)


def test_the_readme_of_the_interface(table):
    assert float(table["domain_specialization"].sel(layer=0, domain="arxiv", expert=0)) == pytest.approx(
        0.9766, abs=5e-5
    )
    assert table["domain_specialization_ci_low"].isnull().all()
    assert "without documents" in table.attrs["note"]


@pytest.mark.parametrize("domain", sorted(USAGE_ENTROPIES))
def test_published_usage_entropies(table, domain):
    computed = table["normalized_usage_entropy"].sel(domain=domain).values
    assert computed == pytest.approx(USAGE_ENTROPIES[domain], abs=5e-5)


def test_usage_entropies_are_those_of_scipy(table, counts_LDE):
    computed = table["normalized_usage_entropy"].transpose("layer", "domain").values
    np.testing.assert_allclose(computed, stats.entropy(counts_LDE, axis=-1) / np.log(NUM_EXPERTS), rtol=1e-12)


def test_top_one_counts_are_a_top_one_model(counts_LDE):
    top1_LDE = golden()["top1_counts_LDE"]
    statistic = usage.ExpertUsage.from_counts(
        top1_LDE, [NUM_TOKENS] * 3, num_experts_per_token=1, layers=LAYERS, domains=DOMAINS
    )
    table = statistic.compute()
    np.testing.assert_allclose(table["domain_specialization"].sum("expert"), 1.0, rtol=1e-12)
    assert (top1_LDE <= counts_LDE).all()
