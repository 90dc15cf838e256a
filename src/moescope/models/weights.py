"""Expert and router weights in one orientation for all families.

transformers keeps gate and up of all experts in one tensor, side by side or interleaved, as (out, in) or transposed.
Here every expert's gate and up are F x M and its down is M x F, as in `down(act(gate x) * up x)`. All are views of the
model's own weights wherever strides allow: nothing is copied, and nothing may be written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ExpertWeights:
    """The weights of one layer's routed experts and of its router.

    Attributes:
        gate_EFM: Gate matrices; None for experts without a gate.
        up_EFM: Up matrices.
        down_EMF: Down matrices.
        gate_bias_EF, up_bias_EF, down_bias_EM: Biases; None for families without.
        router_EM: The router's matrix, one row an expert; None where logits are no linear map of its input.
        sign_is_free: Whether a hidden neuron may change sign in both up and down (and in its bias of up) without any
            change to what the expert computes: so wherever the gate multiplies an odd function of up.
    """

    gate_EFM: Tensor | None
    up_EFM: Tensor
    down_EMF: Tensor
    gate_bias_EF: Tensor | None = None
    up_bias_EF: Tensor | None = None
    down_bias_EM: Tensor | None = None
    router_EM: Tensor | None = None
    sign_is_free: bool = False


def expert_weights(experts: Any, router: nn.Module | None = None) -> ExpertWeights:
    """Reads the weights of an experts module that enters the seam.

    Args:
        experts: The module.
        router: The router of the same layer.
    """
    down_EMF = _upright(experts.down_proj, experts)
    router_EM = _router_matrix(router, experts) if router is not None else None
    down_bias_EM = experts.down_proj_bias.detach() if experts.has_bias else None
    if not experts.has_gate:
        up_bias_EF = experts.up_proj_bias.detach() if experts.has_bias else None
        return ExpertWeights(
            None, _upright(experts.up_proj, experts), down_EMF, None, up_bias_EF, down_bias_EM, router_EM
        )
    gate_EFM, up_EFM = _halves(_upright(experts.gate_up_proj, experts), experts)
    gate_bias_EF = up_bias_EF = None
    if experts.has_bias:
        gate_bias_EF, up_bias_EF = _halves(experts.gate_up_proj_bias.detach(), experts)
    sign = _sign_is_free(experts, up_EFM)
    return ExpertWeights(gate_EFM, up_EFM, down_EMF, gate_bias_EF, up_bias_EF, down_bias_EM, router_EM, sign)


def _upright(weight_Exx: Tensor, experts: Any) -> Tensor:
    """(E, out, in), whatever way it is stored."""
    return weight_Exx.detach().transpose(1, 2) if experts.is_transposed else weight_Exx.detach()


def _halves(joined: Tensor, experts: Any) -> tuple[Tensor, Tensor]:
    """Gate and up out of their joined tensor, along dimension 1."""
    if getattr(experts, "is_concatenated", True):
        gate, up = joined.chunk(2, dim=1)
        return gate, up
    return joined[:, ::2], joined[:, 1::2]


@torch.no_grad()
def _sign_is_free(experts: Any, up_EFM: Tensor) -> bool:
    """Tries it: the gating of 64 hidden states, and of the same with up's sign changed."""
    generator = torch.Generator().manual_seed(0)
    gate_nF, up_nF = torch.randn(2, 64, up_EFM.shape[1], generator=generator).to(up_EFM)
    first_nF, second_nF = (experts._apply_gate(_joined(gate_nF, values_nF, experts)) for values_nF in (up_nF, -up_nF))
    return bool(torch.equal(first_nF, -second_nF))


def _joined(gate_nF: Tensor, up_nF: Tensor, experts: Any) -> Tensor:
    if getattr(experts, "is_concatenated", True):
        return torch.cat([gate_nF, up_nF], dim=-1)
    return torch.stack([gate_nF, up_nF], dim=-1).flatten(-2)


def _router_matrix(router: nn.Module, experts: Any) -> Tensor | None:
    for parameter in router.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == experts.num_experts:
            return parameter.detach()
    return None
