"""Histograms of what the router computes, against numpy on the raw values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.records import Routing
from moescope.statistics.distributions import QUANTILES, RoutingDistributions
from tests.records import random_batch, random_routings

ROUTERS = {
    "olmoe": {"num_experts": 16, "num_experts_per_token": 4},
    "mixtral": {"num_experts": 8, "num_experts_per_token": 2, "renormalize": True},
    "deepseek": {"num_experts": 12, "num_experts_per_token": 3, "scoring": "sigmoid", "corrected": True},
    "top1": {"num_experts": 8, "num_experts_per_token": 1},
}


def raw(records: list[Routing]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All values of each quantity, and by rank, in float64 from the definitions."""
    logits = np.concatenate([record.logits_TE.double().numpy() for record in records])
    ids = np.concatenate([record.expert_ids_TK.numpy() for record in records])
    weights = np.concatenate([record.weights_TK.double().numpy() for record in records])
    scores = np.exp(logits) if records[0].scoring == "softmax" else 1 / (1 + np.exp(-logits))
    p = scores / scores.sum(axis=1, keepdims=True)
    largest = -np.sort(-p, axis=1)[:, : ids.shape[1]]
    renormalized = largest / largest.sum(axis=1, keepdims=True)
    values = {"logit": logits, "probability": p, "renormalized": renormalized, "weight": weights}
    ranked = {name: np.take_along_axis(values[name], ids, 1) for name in ("logit", "probability")}
    return values, ranked | {"renormalized": renormalized, "weight": weights}


@pytest.mark.parametrize("router", ROUTERS)
def test_moments_quantiles_ranks_and_histograms(router: str) -> None:
    records = [random_routings(random_batch(seed), seed, layers=[3], **ROUTERS[router])[0] for seed in (1, 2, 3)]
    sizes = {name: ROUTERS[router][name] for name in ("num_experts", "num_experts_per_token")}
    statistic = RoutingDistributions(layers=[3], **sizes)
    for record in records:
        statistic.update(record)
    table = statistic.compute().sel(layer=3)
    values, ranked = raw(records)
    for name, array in values.items():
        assert float(table[f"{name}_mean"]) == pytest.approx(array.mean(), abs=1e-6)
        assert float(table[f"{name}_std"]) == pytest.approx(array.std(), rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(table[f"{name}_by_rank"], ranked[name].mean(axis=0), atol=1e-6, err_msg=name)
        exact = np.quantile(array, QUANTILES, method="inverted_cdf")
        error = np.abs(table[f"{name}_quantile"].values - exact)
        assert np.all(error <= (1 / 16 if name == "logit" else exact / 64) + 1e-6), name
        counts, edges = table[f"{name}_counts"].values, table[f"{name}_bin"].values[1:]
        assert counts.sum() == array.size
        exact_cumulative = np.searchsorted(np.sort(array.ravel()), edges)
        assert np.abs(counts.cumsum()[:-1] - exact_cumulative).max() <= 2 + 1e-4 * array.size, name
    linear = table["probability_linear_counts"].values
    assert linear.sum() == values["probability"].size
    expected = np.histogram(values["probability"], np.linspace(0, 1, 129))[0]
    assert np.abs(linear[1:-1] - expected).max() <= 2


def test_a_single_expert_per_token_has_all_the_renormalized_probability() -> None:
    record = random_routings(random_batch(5), 5, layers=[0], num_experts=8, num_experts_per_token=1)[0]
    statistic = RoutingDistributions(layers=[0], num_experts=8, num_experts_per_token=1)
    statistic.update(record)
    table = statistic.compute().sel(layer=0)
    assert float(table["renormalized_mean"]) == 1
    assert int(table["renormalized_linear_counts"].values[-2]) == record.tokens.num_tokens


def test_the_largest_probabilities_need_not_be_the_selected_experts() -> None:
    batch = random_batch(6)
    record = random_routings(batch, 6, layers=[0], corrected=True)[0]
    selected_TK = record.probabilities_TE.gather(1, record.expert_ids_TK).sort(dim=1, descending=True).values
    assert not torch.equal(selected_TK, record.largest_probabilities_TK)  # a bias did change the selection
    assert torch.equal(record.largest_probabilities_TK, record.probabilities_TE.topk(2).values)


def test_values_off_the_axis_are_counted_beside_it() -> None:
    batch = random_batch(7, lengths=[3])
    logits_TE = torch.zeros(3, 4)
    logits_TE[0, 0], logits_TE[1, 1] = 65.0, -70.0
    weights_TK, ids_TK = torch.softmax(logits_TE, -1).topk(2)
    statistic = RoutingDistributions(layers=[0], num_experts=4, num_experts_per_token=2)
    statistic.update(Routing(batch, 0, ids_TK, weights_TK, 4, logits_TE=logits_TE))
    table = statistic.compute().sel(layer=0)
    assert table["logit_counts"].values[[0, -1]].tolist() == [1, 1]
    assert int(table["probability_counts"].values[0]) == 4  # exp(-65) three times, exp(-70) once
    assert int(table["probability_linear_counts"].values[0]) == 0
    assert int(table["probability_linear_counts"].sum()) == 12
