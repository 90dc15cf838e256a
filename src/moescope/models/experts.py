"""Each expert's own output, before the routing weight, for any experts module that enters the seam.

The layouts transformers knows: gate and up joined in one matrix or up alone; stored as (out, in) or transposed; with
or without biases; the gating itself (interleaving, clamping, scaling) is the module's own `_apply_gate`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SortedOutputs:
    """Outputs of all assignments of all N tokens of a batch, sorted by expert, then by token.

    Attributes:
        outputs_AM: One row for each assignment, in the model's dtype.
        token_rows_A: The row of the batch each belongs to, 0..N.
        slots_A: Which of the token's K experts it is, in the family's own order (not the rank).
        offsets_E1: Expert e's rows are `offsets_E1[e]:offsets_E1[e + 1]`.
    """

    outputs_AM: Tensor
    token_rows_A: Tensor
    slots_A: Tensor
    offsets_E1: list[int]


def compute_sorted(experts: Any, hidden_NM: Tensor, expert_ids_NK: Tensor) -> SortedOutputs:
    """Runs every chosen expert on the tokens that chose it."""
    num_slots = expert_ids_NK.shape[1]
    ids_A = expert_ids_NK.reshape(-1)
    order_A = torch.sort(ids_A, stable=True).indices
    token_rows_A = order_A.div(num_slots, rounding_mode="floor")
    ends_E = torch.bincount(ids_A, minlength=experts.num_experts).cumsum(0)
    offsets_E1 = [0, *ends_E.tolist()]
    outputs_AM = run_sorted(experts, hidden_NM[token_rows_A], offsets_E1)
    return SortedOutputs(outputs_AM, token_rows_A, order_A - token_rows_A * num_slots, offsets_E1)


def combine(outputs: SortedOutputs, weights_NK: Tensor, hidden_NM: Tensor) -> Tensor:
    """Weighted sum over each token's experts, in the order and dtype of transformers' grouped_mm."""
    order_A = outputs.token_rows_A * weights_NK.shape[1] + outputs.slots_A
    place_A = torch.empty_like(order_A)
    place_A[order_A] = torch.arange(order_A.shape[0], device=order_A.device)
    placed_NKM = outputs.outputs_AM[place_A].view(*weights_NK.shape, -1)
    # In place where the product has the same dtype: a batch of outputs is the largest tensor there is.
    in_place = torch.result_type(placed_NKM, weights_NK) == placed_NKM.dtype and not torch.is_grad_enabled()
    weighted_NKM = torch.mul(placed_NKM, weights_NK.unsqueeze(-1), out=placed_NKM if in_place else None)
    return weighted_NKM.sum(dim=1).to(hidden_NM.dtype)


def run_sorted(experts: Any, inputs_AM: Tensor, offsets_E1: list[int]) -> Tensor:
    """Outputs for inputs that are sorted by expert already."""
    outputs_AM = inputs_AM
    for expert, (start, end) in enumerate(itertools.pairwise(offsets_E1)):
        if end > start:
            part_nM = run_expert(experts, expert, inputs_AM[start:end])
            if outputs_AM is inputs_AM:
                outputs_AM = part_nM.new_empty((inputs_AM.shape[0], part_nM.shape[1]))
            outputs_AM[start:end] = part_nM
    return outputs_AM


def run_expert(experts: Any, expert: int, inputs_nM: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """One expert on any inputs, each row by itself.

    Args:
        experts: A module that enters the seam.
        expert: Which one.
        inputs_nM: Its inputs.
        dtype: Compute in this dtype instead of the weights' own.
    """
    entry = "gate_up_proj" if experts.has_gate else "up_proj"
    dtype = dtype or getattr(experts, entry).dtype
    hidden_nF = _linear(experts, entry, expert, inputs_nM.to(dtype), dtype)
    hidden_nF = experts._apply_gate(hidden_nF) if experts.has_gate else experts.act_fn(hidden_nF)
    outputs_nM = _linear(experts, "down_proj", expert, hidden_nF, dtype)
    if getattr(experts, "has_post_expert_norm", False):
        outputs_nM = experts.post_expert_norm(outputs_nM)
    return outputs_nM


def _linear(experts: Any, name: str, expert: int, inputs_nI: Tensor, dtype: torch.dtype) -> Tensor:
    weight = getattr(experts, name)[expert].to(dtype)
    bias = getattr(experts, f"{name}_bias")[expert].to(dtype) if experts.has_bias else None
    return F.linear(inputs_nI, weight.T if experts.is_transposed else weight, bias)
