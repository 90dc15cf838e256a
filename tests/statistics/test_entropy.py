"""Router decisiveness against plain loops in float64 and scipy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moescope.errors import UsageError
from moescope.records import Routing, TokenBatch
from moescope.statistics.distributions import RoutingDistributions
from moescope.statistics.entropy import MEASURES, QUANTILES, RouterEntropy
from tests.records import random_batch, random_routings

DOMAINS = ["alpha", "beta", "gamma"]
ROUTERS: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 16, "num_experts_per_token": 4},
    "mixtral": {"num_experts": 8, "num_experts_per_token": 2, "renormalize": True},
    "deepseek": {"num_experts": 12, "num_experts_per_token": 3, "scoring": "sigmoid", "corrected": True},
    "sigmoid": {"num_experts": 8, "num_experts_per_token": 2, "scoring": "sigmoid"},
    "biased": {"num_experts": 8, "num_experts_per_token": 2, "corrected": True},
    "top1": {"num_experts": 8, "num_experts_per_token": 1},
    "all": {"num_experts": 4, "num_experts_per_token": 4},
}


def tokens_of(num_tokens: int) -> TokenBatch:
    """One document with that many tokens."""
    zeros = torch.zeros(num_tokens, dtype=torch.int64)
    one = torch.ones(1, dtype=torch.int64)
    return TokenBatch(zeros, zeros, torch.arange(num_tokens), zeros, one, one)


def routing_of(logits: np.ndarray, num_selected: int = 2, **changes: Any) -> Routing:
    """A softmax router that selects the largest logits."""
    logits_TE = torch.from_numpy(np.asarray(logits, dtype=np.float32))
    weights_TK, ids_TK = torch.softmax(logits_TE, -1).topk(num_selected)
    routing = Routing(
        tokens=tokens_of(logits_TE.shape[0]),
        layer=0,
        expert_ids_TK=ids_TK,
        weights_TK=weights_TK,
        num_experts=logits_TE.shape[1],
        logits_TE=logits_TE,
    )
    return dataclasses.replace(routing, **changes)


def fed(*records: Routing, domains: list[str] = DOMAINS) -> RouterEntropy:
    statistic = RouterEntropy(
        layers=sorted({record.layer for record in records}),
        num_experts=records[0].num_experts,
        num_experts_per_token=records[0].expert_ids_TK.shape[1],
        domains=domains,
    )
    for record in records:
        statistic.update(record)
    return statistic


def by_loop(record: Routing) -> dict[str, np.ndarray]:
    """Every measure, token by token, from the definitions."""
    assert record.logits_TE is not None
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    every_p = []
    for token in range(record.tokens.num_tokens):
        logits = record.logits_TE[token].double().numpy()
        selected = record.expert_ids_TK[token].tolist()
        unselected = [expert for expert in range(record.num_experts) if expert not in selected]
        scores = np.exp(logits - logits.max()) if record.scoring == "softmax" else 1 / (1 + np.exp(-logits))
        p = scores / scores.sum()
        by = p if record.scoring == "softmax" else scores
        if record.selection_values_TE is not None:
            by = record.selection_values_TE[token].double().numpy()
        descending = sorted(p, reverse=True)
        every_p.append(p)
        found["top1_probability"].append(descending[0])
        found["topk_mass"].append(sum(p[expert] for expert in selected))
        found["margin"].append(descending[0] - descending[1])
        boundary = min(by[selected]) - max(by[unselected]) if unselected else np.nan
        found["boundary_margin"].append(boundary if np.isfinite(boundary) else np.nan)
    arrays = {name: np.array(values) for name, values in found.items()}
    # scipy takes all tokens at once: a call for each is most of what these tests would take.
    weights_TK = record.weights_TK.double().numpy()
    return arrays | {
        "entropy": scipy.stats.entropy(np.array(every_p), axis=1),
        "selected_entropy": scipy.stats.entropy(weights_TK, axis=1),
    }


@pytest.mark.parametrize("router", ROUTERS)
def test_every_measure_by_layer_and_domain_equals_a_plain_loop(router: str) -> None:
    batches = [random_batch(seed, num_documents=14) for seed in (1, 2)]
    records = [
        record for seed, batch in enumerate(batches) for record in random_routings(batch, seed, **ROUTERS[router])
    ]
    table = fed(*records).compute()
    for layer in (1, 4, 5):
        mine = [record for record in records if record.layer == layer]
        loops = [by_loop(record) for record in mine]
        domains_T = np.concatenate([record.tokens.domain_ids_T.numpy() for record in mine])
        for domain in ["all", *DOMAINS]:
            of_domain_T = np.ones(len(domains_T), bool) if domain == "all" else domains_T == DOMAINS.index(domain)
            cell = table.sel(layer=layer, domain=domain)
            assert cell["num_tokens"] == of_domain_T.sum()
            for name in MEASURES:
                values = np.concatenate([loop[name] for loop in loops])[of_domain_T]
                values = values[np.isfinite(values)]
                if not len(values):
                    assert np.isnan(cell[f"{name}_mean"])
                    continue
                assert float(cell[f"{name}_mean"]) == pytest.approx(values.mean(), abs=1e-6), (name, domain)
                assert float(cell[f"{name}_std"]) == pytest.approx(values.std(), abs=2e-6), (name, domain)


@pytest.mark.parametrize("router", ROUTERS)
def test_each_tokens_entropy_is_that_of_scipy_to_one_in_a_million(router: str) -> None:
    batch = random_batch(3)
    record = random_routings(batch, 3, layers=[0], **ROUTERS[router])[0]
    statistic = fed(record)
    values, _ = statistic._values(record)
    loop = by_loop(record)
    for name in ("entropy", "selected_entropy", "top1_probability", "topk_mass", "margin"):
        np.testing.assert_allclose(values[name].numpy(), loop[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("router", ["olmoe", "deepseek"])
def test_quantiles_are_within_a_bin_of_those_of_the_tokens(router: str) -> None:
    batch = random_batch(4, num_documents=40)
    record = random_routings(batch, 4, layers=[0], **ROUTERS[router])[0]
    statistic = fed(record)
    table = statistic.compute()
    for name, values in by_loop(record).items():
        exact = np.quantile(values, QUANTILES, method="inverted_cdf")
        found = table[f"{name}_quantile"].sel(layer=0, domain="all").values
        widths = np.diff(statistic.axes[name].edges)
        places = np.searchsorted(statistic.axes[name].edges, exact).clip(1, len(widths)) - 1
        assert np.all(np.abs(found - exact) <= widths[places] * 1.001 + 1e-6), name


def test_histograms_hold_every_token_and_lie_where_the_values_are() -> None:
    batch = random_batch(5)
    record = random_routings(batch, 5, layers=[0], num_experts=16, num_experts_per_token=4)[0]
    statistic = fed(record)
    table = statistic.compute()
    for name, values in by_loop(record).items():
        counts = table[f"{name}_counts"].sel(layer=0)
        assert counts.sel(domain="all").sum() == batch.num_tokens
        assert np.array_equal(counts.sel(domain=DOMAINS).sum("domain"), counts.sel(domain="all"))
        cumulative = counts.sel(domain="all").values.cumsum()[:-1]
        exact = np.searchsorted(np.sort(values), table[f"{name}_bin"].values[1:])
        # values that float32 moved over an edge
        assert np.abs(cumulative - exact).max() <= 2, name


def test_normalized_measures_are_shares_of_the_most_there_could_be() -> None:
    record = random_routings(random_batch(6), 6, layers=[0], num_experts=16, num_experts_per_token=4)[0]
    table = fed(record).compute()
    for part in ("mean", "std", "quantile"):
        np.testing.assert_allclose(table[f"normalized_entropy_{part}"] * math.log(16), table[f"entropy_{part}"])
        np.testing.assert_allclose(
            table[f"normalized_selected_entropy_{part}"] * math.log(4), table[f"selected_entropy_{part}"]
        )
    alone = fed(routing_of(np.random.default_rng(0).normal(size=(5, 8)), 1)).compute()
    assert (alone["selected_entropy_mean"].sel(domain="all") == 0).all()
    assert np.isnan(alone["normalized_selected_entropy_mean"]).all()


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(2, 20)),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
def test_entropy_lies_between_zero_and_that_of_the_uniform(logits: np.ndarray) -> None:
    record = routing_of(logits, 1)
    values, _ = fed(record)._values(record)
    most = math.log(logits.shape[1])
    assert ((values["entropy"] >= 0) & (values["entropy"] <= most)).all()
    np.testing.assert_allclose(values["entropy"], scipy.stats.entropy(np.exp(_log_softmax(logits)), axis=1), atol=2e-6)
    assert ((values["margin"] >= 0) & (values["margin"] <= 1)).all()
    assert (values["boundary_margin"] >= 0).all()


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_a_router_that_is_certain_and_one_that_knows_nothing() -> None:
    certain = np.full((3, 8), -200.0)
    certain[:, 5] = 200.0
    table = fed(routing_of(certain)).compute().sel(layer=0, domain="all")
    assert float(table["entropy_mean"]) == 0
    assert float(table["top1_probability_mean"]) == 1
    assert float(table["margin_mean"]) == 1
    assert table["entropy_counts"].values[[0, -1]].tolist() == [0, 0]  # the ends of the range are on the axis
    assert table["top1_probability_counts"].values[[0, -1]].tolist() == [0, 0]
    uniform = fed(routing_of(np.zeros((3, 8)))).compute().sel(layer=0, domain="all")
    assert float(uniform["entropy_mean"]) == pytest.approx(math.log(8), abs=1e-7)
    assert uniform["entropy_counts"].values[[0, -1]].tolist() == [0, 0]
    assert float(uniform["boundary_tie_share"]) == 1
    assert float(uniform["boundary_margin_mean"]) == 0
    assert uniform["boundary_margin_quantile"].values.max() <= 2.0**-24


def test_exact_ties_at_the_boundary_are_counted() -> None:
    generator = np.random.default_rng(8)
    logits = torch.from_numpy(generator.normal(size=(4000, 16))).bfloat16().float().numpy()
    descending = -np.sort(-logits, axis=1)
    ties = descending[:, 3] == descending[:, 4]
    table = fed(routing_of(logits, 4)).compute().sel(layer=0, domain="all")
    assert 0 < ties.mean() < 0.1
    assert float(table["boundary_tie_share"]) == ties.mean()


def test_excluded_experts_have_no_part_in_the_boundary() -> None:
    logits = np.random.default_rng(9).normal(size=(50, 6))
    values = torch.softmax(torch.from_numpy(logits), -1).float()
    values[:25, 3:] = -torch.inf  # two of three groups' experts cannot be selected
    values[25:, 2:] = -torch.inf  # only the two selected could be: no boundary
    weights_TK, ids_TK = values.topk(2)
    record = routing_of(logits, selection_values_TE=values, expert_ids_TK=ids_TK, weights_TK=weights_TK)
    table = fed(record).compute().sel(layer=0, domain="all")
    third = values[:25, :3].sort(dim=1).values
    assert float(table["boundary_margin_mean"]) == pytest.approx(float((third[:, 1] - third[:, 0]).double().mean()))
    assert int(table["boundary_margin_counts"].sum()) == 25
    assert float(table["boundary_tie_share"]) == 0


def test_documents_are_counted_once_and_by_domain() -> None:
    batches = [random_batch(seed, num_documents=9) for seed in (1, 2)]
    table = fed(*[random_routings(batch, layers=[4])[0] for batch in batches]).compute().sel(layer=4)
    for number, domain in enumerate(DOMAINS):
        expected = sum(int((batch.domain_ids_B == number).sum()) for batch in batches)
        assert int(table["num_documents"].sel(domain=domain)) == expected
    assert int(table["num_documents"].sel(domain="all")) == 18


def test_probabilities_under_the_name_of_logits_are_refused_with_the_remedy() -> None:
    logits = np.random.default_rng(10).normal(size=(40, 8))
    probabilities = torch.softmax(torch.from_numpy(logits), -1)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(UsageError, match=r"probabilities(.|\n)*What to do: use transformers 5\.10"):
            fed(routing_of(probabilities.to(dtype).float().numpy())).compute()
    mixed = np.concatenate([probabilities.numpy(), logits[:1]])  # one token that is none: real logits, as it happens
    fed(routing_of(mixed)).compute()


def test_logits_that_are_not_numbers_are_refused_with_their_count() -> None:
    logits = np.random.default_rng(11).normal(size=(40, 8))
    logits[[3, 7]] = np.nan
    record = routing_of(logits)
    with pytest.raises(UsageError, match="2 of 40 tokens"):
        fed(record).compute()


def test_nothing_counted_gives_no_numbers() -> None:
    statistic = RouterEntropy(layers=[2], num_experts=8, num_experts_per_token=2, domains=DOMAINS)
    table = statistic.compute()
    assert int(table["num_tokens"].sum()) == 0
    assert np.isnan(table["entropy_mean"]).all()
    assert np.isnan(table["entropy_quantile"]).all()
    assert np.isnan(table["boundary_tie_share"]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("router", ROUTERS)
def test_a_gpu_counts_what_the_cpu_counts(router: str) -> None:
    batch = random_batch(12, num_documents=40)
    record = random_routings(batch, 12, layers=[0], **ROUTERS[router])[0]
    sizes = {name: ROUTERS[router][name] for name in ("num_experts", "num_experts_per_token")}
    for kind, more in ((RouterEntropy, {"domains": DOMAINS}), (RoutingDistributions, {})):
        here, there = (kind(layers=[0], device=device, **sizes, **more) for device in ("cpu", "cuda"))
        here.update(record)
        there.update(on_gpu(record))
        for name, tensor in here.state.items():
            ours = there.state[name].cpu()
            if tensor.dtype.is_floating_point:
                torch.testing.assert_close(ours, tensor, rtol=1e-6, atol=1e-6, msg=name)
            else:  # a value within rounding of an edge may change its bin
                assert int((ours.cumsum(-1) - tensor.cumsum(-1)).abs().max()) <= 2 + tensor.sum() // 1000, name


def on_gpu(record: Routing) -> Routing:
    def moved(value: Any) -> Any:
        return value.cuda() if isinstance(value, torch.Tensor) else value

    fields = {field.name: moved(getattr(record, field.name)) for field in dataclasses.fields(record)}
    tokens = {field.name: moved(getattr(record.tokens, field.name)) for field in dataclasses.fields(record.tokens)}
    return Routing(**{**fields, "tokens": TokenBatch(**tokens), "previous": None})
