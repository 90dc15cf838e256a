"""Every expert of a layer run on the same inputs, and the random-weight baseline: experts with resampled weights."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moescope.measures.resampling import stable_hash
from moescope.models.experts import run_expert
from moescope.models.weights import expert_weights

if TYPE_CHECKING:
    from moescope.models import MoEModel

Run = Callable[[Tensor], Tensor]
"""Takes inputs (N, M), gives the outputs of every expert and after them the inputs themselves, (E + 1, N, M)."""


def trained(model: MoEModel, layer: int) -> Run:
    """The layer's experts as they are, before any routing weight; computed in the model's dtype, kept in float32."""
    return _runner(model, model.experts(layer))


def resampled(model: MoEModel, layer: int, *, seed: int = 0) -> Run:
    """The random-weight baseline: the same experts, their weights resampled at equal scale.

    Every entry of every matrix (and bias) of every expert is drawn from a normal distribution of mean 0 with that
    matrix's own mean square: scale, shape, gating and inputs are the same, training has no effect. Takes as much memory
    again as the layer's experts, for as long as the function lives.
    """
    return _runner(model, resampled_experts(model.experts(layer), seed=seed + 1_000_003 * layer))


@torch.no_grad()
def resampled_experts(experts: Any, *, seed: int) -> Any:
    """A stand-in for an experts module with resampled weights; all else is the module's."""
    names = ["gate_up_proj" if experts.has_gate else "up_proj", "down_proj"]
    names += [f"{name}_bias" for name in names] if experts.has_bias else []
    own = {name: getattr(experts, name).detach().clone() for name in names}
    stand_in = _StandIn(experts, own)
    views = expert_weights(stand_in)  # gate and up separate, whichever way the family joins them
    for expert in range(experts.num_experts):
        number = int(stable_hash(torch.tensor([seed]), expert)[0])
        generator = torch.Generator().manual_seed(number)
        for tensor in (views.gate_EFM, views.up_EFM, views.down_EMF, views.gate_bias_EF, views.up_bias_EF,
                       views.down_bias_EM):  # fmt: skip
            if tensor is not None:
                scale = tensor[expert].float().square().mean().sqrt().cpu()
                drawn = torch.randn(tensor[expert].shape, generator=generator) * scale
                tensor[expert].copy_(drawn)
    return stand_in


class _StandIn(SimpleNamespace):
    """Some attributes of its own, the others another object's."""

    def __init__(self, of: Any, own: dict[str, Any]) -> None:
        super().__init__(_of=of, **own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_of"], name)


def _runner(model: MoEModel, experts: Any) -> Run:
    @torch.no_grad()
    def run(inputs_NM: Tensor) -> Tensor:
        inputs_NM = inputs_NM.to(experts.down_proj.device)
        shape = (model.num_experts + 1, *inputs_NM.shape)
        outputs_VNM = torch.empty(shape, dtype=torch.float32, device=inputs_NM.device)
        for expert in range(model.num_experts):
            outputs_VNM[expert] = run_expert(experts, expert, inputs_NM)
        outputs_VNM[-1] = inputs_NM
        return outputs_VNM

    return run
