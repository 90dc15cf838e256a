"""One pass kept, and run again from a layer on: what lies below a change is the same with and without it.

Family-agnostic: a block below is made to hand on what it was given, and the family's own forward computes positions,
masks and everything after the changed layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moescope.interventions.losses import check_complete, next_tokens, token_losses
from moescope.models.experts import SortedOutputs, compute_sorted
from moescope.models.seam import ExpertCall, hooked

if TYPE_CHECKING:
    from moescope.corpora import Batch
    from moescope.models import MoEModel


@dataclass
class KeptPass:
    """What one forward pass over a batch leaves behind.

    Attributes:
        input_ids_BS: The batch.
        next_BS: The true next token of each place, -1 where nothing is to be predicted.
        losses_BS: Nats lost at each of those places, float32; 0 elsewhere.
        lengths_B: Places of each row up to the last that is counted; what comes after can't matter.
        inputs: For each layer kept, what its block was given, B x S x M.
        calls: For each layer kept, what its experts were called with.
    """

    input_ids_BS: Tensor
    next_BS: Tensor
    losses_BS: Tensor
    lengths_B: Tensor
    inputs: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, ExpertCall] = field(default_factory=dict)


@dataclass
class _CallKeeper:
    """Listens to the layers kept."""

    calls: dict[int, ExpertCall]
    wants_outputs = False

    def __call__(self, call: ExpertCall, outputs: SortedOutputs | None) -> None:
        self.calls[call.layer] = call


@torch.inference_mode()
def keep(model: MoEModel, batch: Batch, layers: Sequence[int]) -> KeptPass:
    """Runs a batch through the whole model once and keeps what running it again from these layers on needs.

    Keeps two hidden states a layer and token: `2 L N M` numbers.

    Args:
        model: A complete model.
        batch: On the model's device.
        layers: MoE layers.

    Raises:
        ModelError: The model is not complete.
    """
    check_complete(model, "the effect of a change")
    next_BS = next_tokens(batch)
    length = next_BS.shape[1]
    counted_BS = torch.zeros_like(next_BS, dtype=torch.bool)
    counted_BS.view(-1)[batch.keep_T] = True
    ends_BS = counted_BS * torch.arange(1, length + 1, device=next_BS.device)
    kept = KeptPass(batch.input_ids_BS, next_BS, torch.zeros(next_BS.shape, device=next_BS.device), ends_BS.amax(1))
    blocks = model.blocks
    handles = [
        blocks[layer].register_forward_pre_hook(_input_keeper(kept.inputs, layer), with_kwargs=True) for layer in layers
    ]
    seams = {layer: model.seams[layer] for layer in layers}
    try:
        with hooked(seams, logits=False):
            for seam in seams.values():
                seam.listener = _CallKeeper(kept.calls)
            hidden_BSM = model.last_hidden(batch.input_ids_BS)
    finally:
        for handle in handles:
            handle.remove()
    assert hidden_BSM is not None
    at_BS = next_BS >= 0
    kept.losses_BS[at_BS] = token_losses(model, hidden_BSM[at_BS.to(hidden_BSM.device)], next_BS[at_BS]).to(
        kept.losses_BS.device
    )
    return kept


def _input_keeper(inputs: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[layer] = args[0] if args else kwargs["hidden_states"]

    return hook


@contextmanager
def starting_at(model: MoEModel, layer: int, hidden_BSM: Tensor) -> Iterator[None]:
    """For as long as it lasts, a pass computes nothing below `layer`, whose block is given these states."""
    with ExitStack() as stack:
        for below in range(layer):
            given = hidden_BSM if below == 0 else None
            stack.enter_context(_replaced(model.blocks[below], given))
        yield


@contextmanager
def experts_giving(model: MoEModel, layer: int, outputs_NM: Tensor) -> Iterator[None]:
    """For as long as it lasts, a layer's routed experts together put out this, whatever they are called with."""
    with _replaced(model.experts(layer), outputs_NM):
        yield


@contextmanager
def _replaced(module: nn.Module, output: Tensor | None) -> Iterator[None]:
    """Lets a module return `output`, or its first argument if that is None, without computing anything."""
    own = module.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        if output is not None:
            return output
        return args[0] if args else kwargs["hidden_states"]

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@torch.inference_mode()
def run_again(model: MoEModel, layer: int, input_ids_BS: Tensor, hidden_BSM: Tensor, outputs_NM: Tensor) -> Tensor:
    """The last hidden states, B x S x M, when a layer's routed experts together put out something else.

    Args:
        model: A complete model.
        layer: The layer that is changed.
        input_ids_BS: Rows of a batch.
        hidden_BSM: What the layer's block was given for these rows.
        outputs_NM: What the routed experts are to put out, already weighted and summed, rows first.
    """
    with starting_at(model, layer, hidden_BSM), experts_giving(model, layer, outputs_NM):
        last_BSM = model.last_hidden(input_ids_BS)
    assert last_BSM is not None
    return last_BSM


@torch.inference_mode()
def weighted_outputs(model: MoEModel, call: ExpertCall) -> Tensor:
    """What each of a token's experts adds to the layer, `w o`, N x K x M, in the family's order of experts."""
    outputs = compute_sorted(model.experts(call.layer), call.hidden_NM, call.expert_ids_NK)
    num_slots = call.expert_ids_NK.shape[1]
    places_A = outputs.token_rows_A * num_slots + outputs.slots_A
    weighted_AM = outputs.outputs_AM * call.weights_NK.reshape(-1)[places_A].unsqueeze(-1)
    sorted_back_AM = torch.empty_like(weighted_AM)
    sorted_back_AM[places_A] = weighted_AM
    return sorted_back_AM.view(call.expert_ids_NK.shape[0], num_slots, -1)
