"""One orientation of weights for all families: experts and routers rebuilt from them, in plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moescope.models import load_model
from moescope.models.experts import run_expert
from moescope.records import Routing
from tests.families import SOME_FAMILIES, build, padded_batch, save


def silu(values: Tensor) -> Tensor:
    return values / (1 + torch.exp(-values))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate / (1 + torch.exp(-1.702 * gate))


GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gpt_oss": clamped_swiglu}


@torch.no_grad()
@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_expert_and_router_rebuilt(family: str, tmp_path: Path) -> None:
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    ids_BS, tokens, keep_T = padded_batch([13, 24])
    routings: list[Routing] = []
    model.listen(ids_BS, tokens, keep_T, layers=model.layers, on_routing=routings.append, needs_inputs=True)
    for routing in routings:
        weights = model.expert_weights(routing.layer)
        assert routing.inputs_TM is not None and weights.gate_EFM is not None and weights.router_EM is not None
        inputs = routing.inputs_TM.double()
        for expert in range(model.num_experts):
            biases = [
                0.0 if bias is None else bias[expert].double()
                for bias in (weights.gate_bias_EF, weights.up_bias_EF, weights.down_bias_EM)
            ]
            gate = inputs @ weights.gate_EFM[expert].double().T + biases[0]
            up = inputs @ weights.up_EFM[expert].double().T + biases[1]
            hidden = GATES.get(family, swiglu)(gate, up)
            outputs = hidden @ weights.down_EMF[expert].double().T + biases[2]
            own = run_expert(model.experts(routing.layer), expert, routing.inputs_TM)
            torch.testing.assert_close(own.double(), outputs, rtol=1e-4, atol=1e-5)
        # A bias of the router's is the same for all tokens: it leaves logits less their mean alone.
        assert routing.logits_TE is not None
        logits = inputs @ weights.router_EM.double().T
        centered = [values - values.mean(0) for values in (logits, routing.logits_TE.double())]
        scale = (centered[0] * centered[1]).sum() / centered[0].square().sum()
        torch.testing.assert_close(centered[1], scale * centered[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_signs_are_free_where_changing_them_changes_nothing(family: str, tmp_path: Path) -> None:
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    layer = model.layers[0]
    weights, experts = model.expert_weights(layer), model.experts(layer)
    inputs = torch.randn(20, model.model_width, generator=torch.Generator().manual_seed(1))
    before = run_expert(experts, 2, inputs)
    weights.up_EFM[2, 3] *= -1  # views: the model's own weights change
    weights.down_EMF[2, :, 3] *= -1
    if weights.up_bias_EF is not None:
        weights.up_bias_EF[2, 3] *= -1
    after = run_expert(experts, 2, inputs)
    assert torch.allclose(before, after, atol=1e-6) == weights.sign_is_free == (family != "gpt_oss")
