"""Published routing counts of OLMoE-1B-7B-0924 against what we compute of them.

The counts are not part of this project. They are looked for in the folder `MOESCOPE_GOLDEN` names, else in
`shared/golden` beside the checkout; without them these tests are skipped.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import moescope.statistics.usage as usage

GOLDEN = Path(os.environ.get("MOESCOPE_GOLDEN") or Path(__file__).parents[2] / "shared" / "golden")
COUNTS = GOLDEN / "olmoe-0924-routing.npz"
pytestmark = pytest.mark.skipif(not COUNTS.is_file(), reason=f"no {COUNTS.name} in {GOLDEN}")

TOKENS = 208_896
LAYERS = [0, 7, 15]
DOMAINS = ["github", "arxiv", "book"]

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
def golden():
    with np.load(COUNTS) as arrays:
        return {name: arrays[name] for name in ("layers", "domains", "expert_counts_LDE", "top1_counts_LDE")}


@pytest.fixture(scope="module")
def table(golden):
    assert golden["layers"].tolist() == LAYERS
    assert golden["domains"].tolist() == DOMAINS
    statistic = usage.ExpertUsage.from_counts(
        golden["expert_counts_LDE"], [TOKENS] * 3, num_experts_per_token=8, layers=LAYERS, domains=DOMAINS
    )
    return statistic.compute()


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


def test_top_one_counts_are_a_top_one_model(golden):
    statistic = usage.ExpertUsage.from_counts(
        golden["top1_counts_LDE"], [TOKENS] * 3, num_experts_per_token=1, layers=LAYERS, domains=DOMAINS
    )
    table = statistic.compute()
    np.testing.assert_allclose(table["domain_specialization"].sum("expert"), 1.0, rtol=1e-12)
    assert (golden["top1_counts_LDE"] <= golden["expert_counts_LDE"]).all()
