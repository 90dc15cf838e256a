"""Router saturation against a plain loop and its chance levels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from moescope.errors import UsageError
from moescope.records import Routing
from moescope.statistics.saturation import RouterSaturation, RoutingPair
from tests.records import random_batch, random_routings

LAYERS = [1, 4, 5]
TOKENS = [random_batch(seed, num_documents=4) for seed in range(3)]
CHECKPOINT = [random_routings(tokens, seed) for seed, tokens in enumerate(TOKENS)]
FINAL = [random_routings(tokens, seed + 50) for seed, tokens in enumerate(TOKENS)]


def fed(checkpoint: list[list[Routing]], final: list[list[Routing]], **sizes: int) -> RouterSaturation:
    statistic = RouterSaturation(layers=LAYERS, **{"num_experts": 8, "num_experts_per_token": 2, **sizes})
    for ours, theirs in zip(checkpoint, final, strict=True):
        for pair in zip(ours, theirs, strict=True):
            statistic.update(RoutingPair(*pair))
    return statistic


def test_saturation_is_that_of_a_plain_loop() -> None:
    table = fed(CHECKPOINT, FINAL).compute()
    for position, layer in enumerate(LAYERS):
        shared, first, ours_all, theirs_all = [], [], [], []
        for ours, theirs in zip(CHECKPOINT, FINAL, strict=True):
            for a, b in zip(
                ours[position].expert_ids_TK.tolist(), theirs[position].expert_ids_TK.tolist(), strict=True
            ):
                shared.append(len(set(a) & set(b)) / 2)
                first.append(a[0] == b[0])
                ours_all.append(a)
                theirs_all.append(b)
        at = table.sel(layer=layer)
        assert int(at.num_tokens) == len(shared)
        assert float(at.topk_saturation) == pytest.approx(np.mean(shared))
        assert float(at.top1_saturation) == pytest.approx(np.mean(first))
        assert float(at.topk_saturation_chance) == 2 / 8
        assert float(at.top1_saturation_chance) == 1 / 8
        # Independent routing: every token of one model against every token of the other.
        every = [[len(set(a) & set(b)) / 2, a[0] == b[0]] for a in ours_all for b in theirs_all]
        expected = np.mean(every, axis=0)
        assert float(at.topk_saturation_independent) == pytest.approx(expected[0])
        assert float(at.top1_saturation_independent) == pytest.approx(expected[1])


def test_a_model_agrees_with_itself() -> None:
    table = fed(FINAL, FINAL).compute()
    assert (table.topk_saturation == 1).all()
    assert (table.top1_saturation == 1).all()


def test_order_of_ranks_matters_only_to_the_first() -> None:
    turned = [[dataclasses.replace(r, expert_ids_TK=r.expert_ids_TK.flip(1)) for r in routings] for routings in FINAL]
    table = fed(turned, FINAL).compute()
    assert (table.topk_saturation == 1).all()
    assert (table.top1_saturation == 0).all()


def test_unrelated_routers_agree_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = random_batch(3, num_documents=2000)

    def even(layer: int) -> Routing:
        ids_TK = torch.rand(tokens.num_tokens, 64, generator=generator).topk(8).indices
        return Routing(tokens, layer, ids_TK, torch.ones(ids_TK.shape) / 8, num_experts=64)

    ours, theirs = ([[even(layer) for layer in LAYERS]] for _ in range(2))
    table = fed(ours, theirs, num_experts=64, num_experts_per_token=8).compute()
    assert tokens.num_tokens > 30_000
    np.testing.assert_allclose(table.topk_saturation, 8 / 64, atol=0.003)
    np.testing.assert_allclose(table.top1_saturation, 1 / 64, atol=0.003)
    np.testing.assert_allclose(table.topk_saturation_independent, 8 / 64, atol=1e-4)


def test_routings_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="layers 1 and 4"):
        fed([[CHECKPOINT[0][0]]], [[FINAL[0][1]]])
    with pytest.raises(UsageError, match="same tokens"):
        fed([[CHECKPOINT[0][0]]], [[FINAL[1][0]]])
