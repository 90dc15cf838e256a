"""Interventions in every family: what changes nothing changes no bit; replacing is deleting the router's row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from moescope.interventions import Ablate, Replace, Scale, Set, intervening
from moescope.models import MoEModel, load_model
from moescope.records import Routing
from tests.families import FAMILIES, SOME_FAMILIES, build, padded_batch, save

LENGTHS = [9, 1, 24, 13, 24]
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@pytest.fixture(scope="module", params=SOME_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return load_model(str(save(build(family), tmp_path_factory.mktemp(family))))


@pytest.fixture(scope="module")
def ids_BS() -> Tensor:
    return padded_batch(LENGTHS)[0]


def routed(model: MoEModel, layers: list[int] | None = None) -> list[Routing]:
    ids_BS, tokens, keep_T = padded_batch(LENGTHS)
    records: list[Routing] = []
    model.listen(ids_BS, tokens, keep_T, layers=layers or model.layers, on_routing=records.append)
    return records


@torch.no_grad()
def test_a_null_intervention_changes_no_bit(model: MoEModel, ids_BS: Tensor) -> None:
    plain = model.hf(input_ids=ids_BS).logits
    every = [(layer, expert) for layer in model.layers for expert in range(model.num_experts)]
    for more in ({}, {"renormalize": True}, {"positions": [0, 3, -1]}):
        with intervening(model, [Scale(layer, expert, 1.0, **more) for layer, expert in every]):
            assert torch.equal(model.hf(input_ids=ids_BS).logits, plain)
    alone_1S, tokens, keep_T = padded_batch([11])
    records: list[Routing] = []
    model.listen(alone_1S, tokens, keep_T, layers=model.layers, on_routing=records.append)
    alone = model.hf(input_ids=alone_1S).logits
    for record in records:
        for expert, weight in zip(record.expert_ids_TK[4].tolist(), record.weights_TK[4].tolist(), strict=True):
            with intervening(model, [Set(record.layer, expert, weight, positions=4)]):
                assert torch.equal(model.hf(input_ids=alone_1S).logits, alone)
    with intervening(model, [Ablate(record.layer, expert)]):
        assert not torch.equal(model.hf(input_ids=alone_1S).logits, alone)
    assert torch.equal(model.hf(input_ids=ids_BS).logits, plain)


def test_a_null_intervention_changes_no_bit_in_bfloat16(tmp_path, ids_BS: Tensor) -> None:
    model = load_model(str(save(build("mixtral", dtype=torch.bfloat16), tmp_path)))
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        plain = model.hf(input_ids=ids_BS).logits
        with intervening(model, [Scale(1, expert, 1.0, renormalize=True) for expert in range(4)]):
            assert torch.equal(model.hf(input_ids=ids_BS).logits, plain)


def deleted(family: str, expert: int) -> PreTrainedModel:
    """The family's model, built with one expert fewer: of every tensor that has a row for each, that row is gone."""
    whole = build(family)
    count = next(name for name in COUNTS if name in FAMILIES[family])
    small = build(family, **{count: FAMILIES[family][count] - 1})
    state: dict[str, Any] = whole.state_dict()
    cut = 0
    for name, tensor in small.state_dict().items():
        source = state[name]
        if source.shape != tensor.shape:
            (axis,) = [a for a in range(source.ndim) if source.shape[a] != tensor.shape[a]]
            kept = [row for row in range(source.shape[axis]) if row != expert]
            source = source.index_select(axis, torch.tensor(kept))
            cut += 1
        tensor.copy_(source)
    assert cut >= 3  # router, and the experts' matrices
    return small


def never_chosen(family: str, expert: int, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """The family's model, whose routers can't choose an expert: a deleted row would leave groups of unequal sizes.

    By the bias that corrects selection, where the family has one; else by a logit of -inf out of the router's matrix.
    """
    own = build(family)
    biases = [tensor for name, tensor in [*own.named_buffers(), *own.named_parameters()] if "correction_bias" in name]
    for bias_E in biases:
        bias_E[expert] = -1e9
    if not biases:
        matrices = [tensor for name, tensor in own.named_parameters() if name.endswith("mlp.gate.weight")]
        assert len(matrices) == len([name for name, _ in own.named_modules() if name.endswith("mlp.experts")])
        plain = F.linear

        def linear(inputs: Tensor, weight: Tensor, *more: Any) -> Tensor:
            out = plain(inputs, weight, *more)
            if any(weight is matrix for matrix in matrices):
                out[..., expert] = float("-inf")
            return out

        monkeypatch.setattr(F, "linear", linear)
    return own


@torch.no_grad()
def test_replacing_is_deleting_the_routers_row(
    family: str, model: MoEModel, ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model.hf(input_ids=ids_BS).logits
    for expert in (0, model.num_experts - 2):
        with intervening(model, [Replace(layer, expert) for layer in model.layers]):
            logits = model.hf(input_ids=ids_BS).logits
            assert not any(bool((record.expert_ids_TK == expert).any()) for record in routed(model))
        with monkeypatch.context() as patched:
            grouped = model.router.num_groups > 1
            reference = never_chosen(family, expert, patched) if grouped else deleted(family, expert)
            expected = reference(input_ids=ids_BS).logits
        assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert not torch.allclose(plain, expected, rtol=1e-3)


@torch.no_grad()
def test_what_is_applied_is_what_records_show(model: MoEModel) -> None:
    layer = model.layers[-1]
    before = routed(model, [layer])[0]
    expert = int(before.expert_ids_TK[0, -1])
    chose_T = (before.expert_ids_TK == expert).any(1)

    def weight_of(record: Routing) -> Tensor:
        return torch.where(record.expert_ids_TK == expert, record.weights_TK, 0.0).sum(1)

    with intervening(model, [Scale(layer, expert, 0.25)]):
        after = routed(model, [layer])[0]
    assert torch.allclose(weight_of(after), 0.25 * weight_of(before))
    assert torch.equal(after.weights_TK[~chose_T], before.weights_TK[~chose_T])
    with intervening(model, [Set(layer, expert, 0.5)]):
        after = routed(model, [layer])[0]
    assert bool((weight_of(after) == 0.5).all())
    # Who did not choose it gives up the last rank, and only that.
    kept = torch.where(after.expert_ids_TK == expert, -1, after.expert_ids_TK)[~chose_T].sort(1).values[:, 1:]
    assert torch.equal(kept, before.expert_ids_TK[~chose_T, :-1].sort(1).values)
    with intervening(model, [Scale(layer, expert, 3.0, renormalize=True)]):
        after = routed(model, [layer])[0]
    assert torch.allclose(after.weights_TK.sum(1), before.weights_TK.sum(1), rtol=1e-5)
    with intervening(model, [Replace(layer, expert, positions=[1])]):
        after = routed(model, [layer])[0]
    there_T = before.tokens.positions_T == 1
    assert not bool((after.expert_ids_TK[there_T] == expert).any())
    assert torch.equal(after.expert_ids_TK[~there_T], before.expert_ids_TK[~there_T])
