"""One pass kept, and run again from a layer on: everything below a change is the same with and without it.

Independent of the family: a block below is made to return its input, and the family's own forward computes positions,
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
from moescope.models.experts import SortedOutputs
from moescope.models.patching import hook_scope, replaced
from moescope.models.seam import ExpertCall, hooked, stock

if TYPE_CHECKING:
    from moescope.corpora import Batch
    from moescope.models import MoEModel


@dataclass
class KeptPass:
    """What is kept of one forward pass over a batch.

    Attributes:
        input_ids_BS: The batch.
        next_BS: The true next token at each position, -1 where nothing is predicted.
        losses_BS: Loss at each of those positions, nats, float32; 0 elsewhere.
        lengths_B: Length of each row up to its last counted token; what comes after has no effect.
        inputs: For each layer kept, its block's input, B x S x M.
        calls: For each layer kept, the call of its experts.
        outputs: For each layer kept, the summed output of its routed experts, N x M.
    """

    input_ids_BS: Tensor
    next_BS: Tensor
    losses_BS: Tensor
    lengths_B: Tensor
    inputs: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, ExpertCall] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class _CallKeeper:
    """Listens to the layers kept."""

    calls: dict[int, ExpertCall]
    wants_outputs = False

    def __call__(self, call: ExpertCall, outputs: SortedOutputs | None) -> None:
        self.calls[call.layer] = call


@torch.inference_mode()
def keep(model: MoEModel, batch: Batch, layers: Sequence[int]) -> KeptPass:
    """Runs a batch through the whole model once and keeps what is needed to run it again from these layers on.

    Takes memory for three hidden states per layer and token: `3 L N M` numbers.

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
    seams = {layer: model.seams[layer] for layer in layers}
    with ExitStack() as stack:
        own = stack.enter_context(hook_scope())
        for layer in layers:
            keep_input, keep_output = own(_input_keeper(kept.inputs, layer)), own(_output_keeper(kept.outputs, layer))
            stack.callback(blocks[layer].register_forward_pre_hook(keep_input, with_kwargs=True).remove)
            stack.callback(model.experts(layer).register_forward_hook(keep_output).remove)
        stack.enter_context(hooked(seams, logits=False))
        for seam in seams.values():
            seam.listener = _CallKeeper(kept.calls)
        hidden_BSM = model.last_hidden(batch.input_ids_BS)
    assert hidden_BSM is not None
    at_BS = next_BS >= 0
    kept.losses_BS[at_BS] = token_losses(model, hidden_BSM[at_BS.to(hidden_BSM.device)], next_BS[at_BS]).to(
        kept.losses_BS.device
    )
    return kept


def _input_keeper(inputs: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy: a family may go on to add to it in place.
        inputs[layer] = (args[0] if args else kwargs["hidden_states"]).clone()

    return hook


def _output_keeper(outputs: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        outputs[layer] = output.clone()

    return hook


@contextmanager
def starting_at(model: MoEModel, layer: int, hidden_BSM: Tensor) -> Iterator[None]:
    """Within the context, a pass computes nothing below `layer`, whose block gets these states as its input."""
    with ExitStack() as stack:
        for below in range(layer):
            given = hidden_BSM if below == 0 else None
            stack.enter_context(_returning(model.blocks[below], given))
        yield


@contextmanager
def experts_giving(model: MoEModel, layer: int, outputs_NM: Tensor) -> Iterator[None]:
    """Within the context, the summed output of a layer's routed experts is this, whatever they are called with."""
    with _returning(model.experts(layer), outputs_NM):
        yield


@contextmanager
def _returning(module: nn.Module, output: Tensor | None) -> Iterator[None]:
    """Lets a module return `output`, or its first argument if that is None, without computing anything."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if output is not None:
            return output
        return args[0] if args else kwargs["hidden_states"]

    with replaced(module, forward=forward):
        yield


@torch.inference_mode()
def run_again(model: MoEModel, layer: int, input_ids_BS: Tensor, hidden_BSM: Tensor, outputs_NM: Tensor) -> Tensor:
    """The last hidden states, B x S x M, with another output of a layer's routed experts.

    Args:
        model: A complete model.
        layer: The layer that is changed.
        input_ids_BS: Rows of a batch.
        hidden_BSM: The layer's block's input for these rows.
        outputs_NM: The routed experts' output, weighted and summed, rows first.
    """
    with starting_at(model, layer, hidden_BSM), experts_giving(model, layer, outputs_NM):
        last_BSM = model.last_hidden(input_ids_BS)
    assert last_BSM is not None
    return last_BSM


@torch.inference_mode()
def outputs_without(model: MoEModel, call: ExpertCall, tokens_n: Tensor, experts: Tensor) -> Tensor:
    """The summed output of a layer's routed experts at some tokens with the weight of some experts 0, n x M.

    Only these tokens go through their experts again, by the stock implementation: exact in any dtype, which subtracting
    the expert's part from a rounded sum is not.
    """
    ids_nK = call.expert_ids_NK[tokens_n]
    weights_nK = call.weights_NK[tokens_n].masked_fill(torch.isin(ids_nK, experts), 0.0)
    seam = model.seams[call.layer]
    return stock(seam.experts, seam.stock, call.hidden_NM[tokens_n], ids_nK, weights_nK)
