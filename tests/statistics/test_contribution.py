"""Norm, saliency, share and mean output against a loop over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.errors import UsageError
from moescope.measures.resampling import groups
from moescope.statistics.contribution import ExpertContribution
from tests.records import random_batch, random_outputs, random_routings

DOMAINS = ["alpha", "beta", "gamma"]
GROUPS = 6


def make(**changes) -> ExpertContribution:
    return ExpertContribution(
        **{"layers": [1], "num_experts": 8, "model_width": 6, "domains": DOMAINS, "num_groups": GROUPS, **changes}
    )


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_measures_token_by_token(num_ranks: int) -> None:
    statistic = make()
    rows = []  # expert, domain, group, weight, norm, saliency, share
    sums_EM, num_tokens = np.zeros((8, 6)), 0
    for seed in range(3):
        tokens = random_batch(seed, shuffle=True)
        routing = random_routings(tokens, seed, layers=[1], num_experts_per_token=num_ranks)[0]
        outputs = random_outputs(routing, seed)
        statistic.update(outputs)
        num_tokens += tokens.num_tokens
        of_token: list[dict[int, np.ndarray]] = [{} for _ in range(tokens.num_tokens)]
        for expert in range(8):
            for row, t in zip(*outputs.of(expert)[:2], strict=True):
                of_token[int(t)][expert] = row.double().numpy()
                sums_EM[expert] += row.double().numpy()
        groups_B = groups(tokens.document_hashes_B, GROUPS)
        for t, given in enumerate(of_token):
            ids = routing.expert_ids_TK[t].tolist()
            weights = routing.weights_TK[t].double().tolist()
            total = sum(weight * given[expert] for expert, weight in zip(ids, weights, strict=True))
            for expert, weight in zip(ids, weights, strict=True):
                norm = np.linalg.norm(given[expert])
                share = weight * given[expert] @ total / (total @ total)
                row_of = int(tokens.rows_T[t])
                labels = expert, int(tokens.domain_ids_B[row_of]), int(groups_B[row_of])
                rows.append((*labels, weight, norm, weight * norm, share))
    table = np.array(rows)
    found = statistic.compute().sel(layer=1)
    assert int(found.num_tokens) == num_tokens
    for expert in range(8):
        own = table[table[:, 0] == expert]
        at = found.sel(expert=expert)
        assert int(at.num_selected) == len(own)
        for column, name in enumerate(("weight_mean", "output_norm_mean", "saliency_mean", "output_share_mean"), 3):
            assert float(at[name]) == pytest.approx(own[:, column].mean(), rel=1e-5, abs=1e-6), name
            assert float(at[f"{name}_ci_low"]) < float(at[name]) < float(at[f"{name}_ci_high"]) or num_ranks == 1
            for number, domain in enumerate(DOMAINS):
                there = own[own[:, 1] == number][:, column]
                value = float(at[f"{name}_by_domain"].sel(domain=domain))
                assert value == pytest.approx(there.mean(), rel=1e-5, abs=1e-6) if len(there) else np.isnan(value)
        assert float(at.output_share) == pytest.approx(own[:, 6].sum() / num_tokens, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(statistic.mean_outputs(1)[expert].numpy(), sums_EM[expert] / len(own), rtol=1e-6)
    assert float(found.output_share.sum()) == pytest.approx(1.0, abs=1e-9)
    half = table[:, 2] >= GROUPS // 2
    measured = np.array([table[half & (table[:, 0] == expert), 6].sum() for expert in range(8)])
    measured /= int(found.evaluation_half_num_tokens)
    np.testing.assert_allclose(found.evaluation_half_output_share, measured, rtol=1e-5, atol=1e-6)


def test_the_jackknife_is_leaving_out_each_group() -> None:
    statistic, parts = make(), [make() for _ in range(GROUPS)]
    tokens = random_batch(0, num_documents=30)
    outputs = random_outputs(random_routings(tokens, 0, layers=[1])[0])
    statistic.update(outputs)
    sums_GE, counts_GE = statistic.totals()["saliency_sum_LGE"][0], statistic.state["num_selected_LGE"][0]
    assert (counts_GE > 0).all() and len(parts) == GROUPS
    without_GE = np.array([
        (sums_GE.sum(0) - sums_GE[g]).numpy() / (counts_GE.sum(0) - counts_GE[g]).numpy() for g in range(GROUPS)
    ])  # fmt: skip
    error_E = np.sqrt((GROUPS - 1) / GROUPS * ((without_GE - without_GE.mean(0)) ** 2).sum(0))
    at = statistic.compute().sel(layer=1)
    np.testing.assert_allclose(at.saliency_mean_ci_high - at.saliency_mean, 2.5705818 * error_E, rtol=1e-6)


def test_an_output_of_nothing_and_an_expert_without_tokens() -> None:
    tokens = random_batch(0, lengths=[5, 4])
    outputs = random_outputs(random_routings(tokens, 0, layers=[1], num_experts=12)[0])
    outputs.outputs_AM.zero_()
    statistic = make(num_experts=12)
    statistic.update(outputs)
    at = statistic.compute().sel(layer=1)
    seen = at.num_selected.values > 0
    assert (at.output_share_mean.values[seen] == 0).all() and (at.saliency_mean.values[seen] == 0).all()
    assert not seen.all() and np.isnan(at.saliency_mean.values[~seen]).all()
    assert torch.isnan(statistic.mean_outputs(1)[~seen]).all()


def test_no_domain_is_refused() -> None:
    with pytest.raises(UsageError, match="no domain"):
        make(domains=[])
