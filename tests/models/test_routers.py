"""Routing rules: found from what a router did, and able to route without an expert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moescope.models.routers import RouterRule, find_rule

NUM_TOKENS, NUM_EXPERTS, NUM_SELECTED = 40, 12, 3


def logits(seed: int = 0) -> Tensor:
    return 2 * torch.randn((NUM_TOKENS, NUM_EXPERTS), generator=torch.Generator().manual_seed(seed))


class Declares(nn.Module):
    """A module with the numbers and tensors a router may declare."""

    def __init__(self, bias_E: Tensor | None = None, **numbers: float) -> None:
        super().__init__()
        for name, value in numbers.items():
            setattr(self, name, value)
        if bias_E is not None:
            self.register_buffer("e_score_correction_bias", bias_E)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalizes", [False, True])
@pytest.mark.parametrize("scaling", [1.0, 2.5])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("grouped", [None, "max", "top2"])
def test_every_rule_is_found(
    scoring: str, renormalizes: bool, scaling: float, biased: bool, grouped: str | None
) -> None:
    logits_NE = logits()
    bias_E = 0.3 * torch.randn(NUM_EXPERTS, generator=torch.Generator().manual_seed(1)) if biased else None
    made = RouterRule(
        scoring,
        NUM_SELECTED,
        renormalizes,
        scaling,
        bias_E=bias_E,
        num_groups=4 if grouped else 1,
        num_groups_selected=2 if grouped else 1,
        group_score=grouped or "max",
    )
    ids_NK, weights_NK = made.route(logits_NE)
    shuffled = torch.rand(ids_NK.shape).argsort(1)
    ids_NK, weights_NK = ids_NK.gather(1, shuffled), weights_NK.gather(1, shuffled)
    declared: dict[str, float] = {"routed_scaling_factor": scaling}
    if grouped:
        declared |= {"n_group": 4, "topk_group": 2}
    fit = find_rule(logits_NE, ids_NK, weights_NK, Declares(bias_E, **declared), nn.Module())
    assert fit.weight_error < 1e-5
    assert fit.selection_error == 0
    assert (fit.rule.scoring, fit.rule.renormalizes) == (scoring, renormalizes)
    assert fit.rule.scaling == pytest.approx(scaling, rel=1e-5)
    assert (fit.rule.bias_E is not None) == biased
    assert fit.rule.num_groups == (4 if grouped else 1)
    if grouped:
        assert fit.rule.group_score == grouped
    facts = fit.rule.facts()
    assert facts.bias_corrected == biased
    assert ("correction bias" in facts.rule) == biased
    assert ("divided by their sum" in facts.rule) == renormalizes


def test_a_scaling_factor_that_nothing_declares_is_measured() -> None:
    logits_NE = logits()
    ids_NK, weights_NK = RouterRule("softmax", NUM_SELECTED, scaling=3.25).route(logits_NE)
    fit = find_rule(logits_NE, ids_NK, weights_NK, nn.Module(), nn.Module())
    assert fit.rule.scaling == pytest.approx(3.25)
    assert fit.weight_error < 1e-5


def test_weights_and_selections_that_follow_from_nothing_fit_badly() -> None:
    logits_NE = logits()
    ids_NK, weights_NK = RouterRule("softmax", NUM_SELECTED).route(logits_NE)
    noise_NK = torch.rand(weights_NK.shape, generator=torch.Generator().manual_seed(0))
    assert find_rule(logits_NE, ids_NK, noise_NK, nn.Module(), nn.Module()).weight_error > 0.1
    others_NK = (ids_NK + 1) % NUM_EXPERTS
    weights_NK = RouterRule("softmax", NUM_SELECTED).weigh(logits_NE, others_NK)
    assert find_rule(logits_NE, others_NK, weights_NK, nn.Module(), nn.Module()).selection_error > 0.01
    assert find_rule(logits(1), ids_NK, weights_NK, nn.Module(), nn.Module()).weight_error > 0.1


@pytest.mark.parametrize(
    "rule", [RouterRule("softmax", 3), RouterRule("softmax", 3, True), RouterRule("sigmoid", 3, True, 2.0)]
)
def test_routing_without_an_expert_is_routing_by_a_router_that_never_had_it(rule: RouterRule) -> None:
    logits_NE = logits()
    gone = 4
    others = [expert for expert in range(NUM_EXPERTS) if expert != gone]
    ids_NK, weights_NK = rule.route(logits_NE, excluded=torch.tensor([gone]))
    small_ids_NK, small_weights_NK = rule.route(logits_NE[:, others])
    assert torch.equal(ids_NK, torch.tensor(others)[small_ids_NK])
    assert torch.allclose(weights_NK, small_weights_NK)


def test_an_excluded_expert_stays_out_whatever_its_bias() -> None:
    bias_E = torch.zeros(NUM_EXPERTS)
    bias_E[4] = 1e6
    rule = RouterRule("sigmoid", 3, True, bias_E=bias_E, num_groups=4, num_groups_selected=2, group_score="top2")
    assert bool((rule.route(logits())[0] == 4).any())
    assert not bool((rule.route(logits(), excluded=torch.tensor([4]))[0] == 4).any())
