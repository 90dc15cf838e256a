"""The effect of ablating each expert on the loss, estimated by gradient: one forward and one backward pass for all.

With `w_te` the weight applied to expert e at token t and `L` a document's loss, ablating the expert changes the loss by
`-Σ_t w_te ∂L/∂w_te` to first order (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", their
first-order criterion, on weights of experts and with its sign kept). The gradient includes the effect on later layers
and later tokens, routers' probabilities among them, but not that a router may then select other experts.

In a trained model the first-order term is near 0 and mostly noise, since the loss is near a minimum in each weight. The
second-order term is therefore added, `½ Σ_t (w_te ∂L/∂w_te)²`: for a log loss the second derivative is on average the
squared first one, the Fisher information (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher
pruning", arXiv 1801.05787), here without the cross terms of different tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moescope.interventions.losses import backward, check_complete, next_tokens
from moescope.models.patching import Shared
from moescope.models.seam import ExpertCall, transformed

if TYPE_CHECKING:
    from moescope.corpora import Batch
    from moescope.models import MoEModel


@dataclass(frozen=True)
class FirstOrder:
    """The estimated effect of ablating each expert, by document.

    Attributes:
        effects_BLE: The first-order term, `-Σ_t w ∂L/∂w` over the document's tokens, nats, float64.
        curvatures_BLE: The second-order term, `½ Σ_t (w ∂L/∂w)²`, nats, float64.
        selected_BLE: Counted tokens of the document that selected the expert, int64.
        weights_BLE: The sum of the weights applied to the expert at them, float64.
        losses_B: The loss summed over the document's predicted tokens, nats, float64.
        predicted_B: Its predicted tokens: counted ones with a known next token, int64.
    """

    effects_BLE: Tensor
    curvatures_BLE: Tensor
    selected_BLE: Tensor
    weights_BLE: Tensor
    losses_B: Tensor
    predicted_B: Tensor


@dataclass
class _ZeroAdder:
    """Adds zeros that require a gradient to a layer's weights, and keeps them."""

    ids_NK: Tensor | None = None
    weights_NK: Tensor | None = None
    zeros_NK: Tensor | None = None

    def __call__(self, call: ExpertCall) -> tuple[Tensor, Tensor]:
        self.ids_NK, self.weights_NK = call.expert_ids_NK, call.weights_NK.detach()
        self.zeros_NK = torch.zeros_like(self.weights_NK).requires_grad_()
        return call.expert_ids_NK, call.weights_NK + self.zeros_NK


def first_order_effects(model: MoEModel, batch: Batch, layers: Sequence[int] | None = None) -> FirstOrder:
    """Δ loss of ablating each expert of these layers, estimated by gradient, in each document of a batch.

    No gradient is computed for the model's parameters; the head is run forward and backward a few tokens at a time.
    Memory holds the activations from the first of the layers on, so batches should be small. On a CPU the same batch
    gives the same bits each time.

    Args:
        model: A complete model.
        batch: On the model's device.
        layers: MoE layers; None for all.

    Raises:
        ModelError: The model is not complete.
    """
    check_complete(model, "the effect of an ablation")
    chosen = model.check_layers(layers)
    adders = {layer: _ZeroAdder() for layer in chosen}
    next_T = batch.tokens.next_token_ids_T
    known_T = next_T >= 0
    with torch.inference_mode(False), torch.enable_grad(), _frozen(model.hf), _in_fixed_order():
        with transformed(model.seams, {layer: [adder] for layer, adder in adders.items()}):
            hidden_BSM = model.last_hidden(batch.input_ids_BS)
        assert hidden_BSM is not None
        flat_T = batch.keep_T[known_T].to(hidden_BSM.device)
        states_TM = hidden_BSM.flatten(0, 1).index_select(0, flat_T)
        leaf_TM = states_TM.detach().requires_grad_()
        losses_T = states_TM.new_zeros(0, dtype=torch.float32)
        if flat_T.shape[0]:
            losses_T = backward(model, leaf_TM, next_T[known_T])
            states_TM.backward(leaf_TM.grad)  # type: ignore[no-untyped-call]
    rows_T = batch.tokens.rows_T[known_T]
    num_rows, length = batch.input_ids_BS.shape
    home = batch.input_ids_BS.device
    by_layer = [_by_document(model.num_experts, batch, adders[layer]) for layer in chosen]
    losses_B = torch.zeros(num_rows, dtype=torch.float64, device=home)
    return FirstOrder(
        effects_BLE=torch.stack([sums[0] for sums in by_layer], 1),
        curvatures_BLE=torch.stack([sums[1] for sums in by_layer], 1),
        selected_BLE=torch.stack([sums[2] for sums in by_layer], 1),
        weights_BLE=torch.stack([sums[3] for sums in by_layer], 1),
        losses_B=losses_B.index_add_(0, rows_T, losses_T.to(home).double()),
        predicted_B=(next_tokens(batch) >= 0).view(num_rows, length).sum(1),
    )


def _by_document(num_experts: int, batch: Batch, adder: _ZeroAdder) -> tuple[Tensor, ...]:
    """One layer's sums by document and expert, in the order of `FirstOrder`.

    Effects and curvatures are over all tokens, selections and weights over counted ones.
    """
    assert adder.ids_NK is not None and adder.weights_NK is not None and adder.zeros_NK is not None
    home = batch.input_ids_BS.device
    num_rows, length = batch.input_ids_BS.shape
    ids_NK, weights_NK = adder.ids_NK.to(home), adder.weights_NK.double().to(home)
    grad = adder.zeros_NK.grad
    gradient_NK = torch.zeros_like(weights_NK) if grad is None else grad.double().to(home)
    counted_N = torch.zeros(num_rows * length, dtype=torch.bool, device=home)
    counted_N[batch.keep_T] = True
    rows_N = torch.arange(num_rows, device=home).repeat_interleave(length)
    cells_NK = rows_N[:, None] * num_experts + ids_NK

    def sums(values_X: Tensor, cells_X: Tensor) -> Tensor:
        zeros = torch.zeros(num_rows * num_experts, dtype=values_X.dtype, device=home)
        return zeros.index_add_(0, cells_X.flatten(), values_X.flatten()).view(num_rows, num_experts)

    counted_cells = cells_NK[counted_N]
    effects_NK = -weights_NK * gradient_NK
    return (
        sums(effects_NK, cells_NK),
        sums(0.5 * effects_NK**2, cells_NK),
        sums(torch.ones_like(counted_cells), counted_cells),
        sums(weights_NK[counted_N], counted_cells),
    )


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Within the context, no parameter requires a gradient."""
    requiring = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in requiring:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in requiring:
            parameter.requires_grad_(True)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Within the context, torch sums in a fixed order wherever it can.

    By default, on a CPU, the gradient of gathering each expert's tokens is summed by several threads in no fixed order;
    a fixed order takes no longer. On a GPU some operations have none, of which torch warns at each.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        if not enabled:
            warnings.filterwarnings("ignore", message=".*(deterministic implementation|not deterministic because)")
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


# Both are seen by all threads: the last of those who compute gradients at the same time restores what the first found.
_frozen = Shared(_without_gradients)
_in_fixed_order = Shared(_deterministic)
