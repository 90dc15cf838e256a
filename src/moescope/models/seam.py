"""The seam: the one place where every expert call of every family passes through our hands.

transformers dispatches `experts(hidden_NM, expert_ids_NK, weights_NK)` through `ALL_EXPERTS_FUNCTIONS`. We register one
implementation, "moescope". Each experts module of a loaded model carries a `LayerSeam`, which, in this order,

1. lets `transforms` change which experts are chosen and with which weights (interventions; none: nothing changes),
2. tells `listener` what was decided, with each expert's own output if it wants that,
3. has the stock implementation do the work, unless the outputs were just computed, which are then combined.

Names here end in N, all tokens of the batch, padding included; T is reserved for the tokens that are counted.

Nothing in here turns gradients off: under autograd the transforms' results take part in the graph. (For the gradient
of the loss with respect to each weight, return `weights_NK + zeros` with `zeros.requires_grad_()`: a leaf in place of
the weights would cut them off from the layers before.) `MoEModel.listen` runs it under `inference_mode`.

    def halve(call: ExpertCall) -> tuple[Tensor, Tensor]:
        return call.expert_ids_NK, torch.where(call.expert_ids_NK == 9, 0.5 * call.weights_NK, call.weights_NK)

    with transformed(model.seams, {1: [halve]}):
        model.hf(input_ids)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moescope.models.experts import SortedOutputs, combine, compute_sorted

IMPLEMENTATION = "moescope"

# From this model width and this many tokens an expert on, eager is the faster one on a CPU; see `stock`.
_WIDE = 512
_MANY = 200
_ATTRIBUTE = "_moescope_seam"


@dataclass(frozen=True)
class ExpertCall:
    """One call of one layer's experts, as the family's router made it or as transforms have changed it.

    Attributes:
        layer: The decoder block's index in the checkpoint.
        hidden_NM: What the experts are given, all tokens of the batch, rows first.
        expert_ids_NK: Chosen experts in the family's own order, which need not be sorted.
        weights_NK: The weight each will be given, in the dtype the family uses.
        logits_NE: The router's logits as the family returns them; None unless `hooked`.
    """

    layer: int
    hidden_NM: Tensor
    expert_ids_NK: Tensor
    weights_NK: Tensor
    logits_NE: Tensor | None = None


Transform = Callable[[ExpertCall], tuple[Tensor, Tensor]]
"""Takes a call and returns `(expert_ids_NK, weights_NK)`; must not write into the call's tensors."""


class Listener(Protocol):
    """Is told of a layer's calls."""

    @property
    def wants_outputs(self) -> bool:
        """Whether each expert's own output is to be computed for it."""
        ...

    def __call__(self, call: ExpertCall, outputs: SortedOutputs | None) -> None:
        """`outputs` is None unless `wants_outputs`."""


class StopForward(BaseException):
    """Ends a forward pass after the deepest layer asked; caught by `MoEModel`, never seen by users.

    A BaseException, so that no `except Exception` between the seam and us takes it for a failure.
    """


class LayerSeam:
    """What is attached to one experts module. At rest it has no transforms, no listener, and costs a lookup.

    Attributes:
        layer: The decoder block's index in the checkpoint.
        experts: The experts module; `router`: the module whose output holds the logits at `logits_index`.
        transforms: Applied in order, each to the call as the one before left it.
        listener: Who is told, after the transforms.
        stop: End the forward pass once the listener has been told.
        stock: The implementation of transformers' that does the work.
    """

    def __init__(self, layer: int, experts: nn.Module, router: nn.Module, logits_index: int | None) -> None:
        self.layer = layer
        self.experts = experts
        self.router = router
        self.logits_index = logits_index
        self.transforms: Sequence[Transform] = ()
        self.listener: Listener | None = None
        self.stop = False
        self.stock = "grouped_mm"
        self._logits_NE: Tensor | None = None

    @property
    def at_rest(self) -> bool:
        """Nothing is asked of this layer."""
        return self.listener is None and not self.transforms and not self.stop

    def on_router(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook of the router: keeps its logits until the experts are called."""
        logits = output if self.logits_index is None else output[self.logits_index]
        self._logits_NE = logits.reshape(-1, logits.shape[-1])

    def forward(self, hidden_NM: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Stands in for the experts' forward."""
        logits_NE, self._logits_NE = self._logits_NE, None
        call = ExpertCall(self.layer, hidden_NM, expert_ids_NK, weights_NK, logits_NE)
        for transform in self.transforms:
            ids_NK, changed_NK = transform(call)
            call = replace(call, expert_ids_NK=ids_NK, weights_NK=changed_NK)
        outputs = None
        if self.listener is not None:
            if self.listener.wants_outputs:
                outputs = compute_sorted(self.experts, hidden_NM, call.expert_ids_NK)
            self.listener(call, outputs)
        if self.stop:
            raise StopForward
        if outputs is not None:
            return combine(outputs, call.weights_NK, hidden_NM)
        return stock(self.experts, self.stock, hidden_NM, call.expert_ids_NK, call.weights_NK)


def stock(
    experts: nn.Module, implementation: str, hidden_NM: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor
) -> Tensor:
    """The experts as transformers computes them by one of its own implementations.

    transformers' own choice is grouped_mm wherever it runs, and so is ours, but for wide experts with many tokens each
    on a CPU. Measured on two cores (64 experts, top-8): widths of 128 x 32, grouped_mm 1.15 to 2.3 times as fast as
    eager; from 512 x 128 to 2,048 x 1,024, as fast or faster with 60 tokens an expert, 0.7 to 0.97 times as fast with
    250 and more, in float32 and bfloat16. batched_mm was 4 to 60 times slower than either.
    """
    if implementation == "grouped_mm" and hidden_NM.device.type == "cpu" and hidden_NM.shape[1] >= _WIDE:
        tokens_per_expert = expert_ids_NK.numel() / experts.num_experts  # type: ignore[operator]
        if tokens_per_expert >= _MANY:
            implementation = "eager"
    eager: Any = type(experts).forward
    function = ALL_EXPERTS_FUNCTIONS.get_interface(implementation, eager.__wrapped__)
    return function(experts, hidden_NM, expert_ids_NK, weights_NK)


def _experts_forward(experts: nn.Module, hidden_NM: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """The registered implementation: experts without a seam, or with one at rest, are left to transformers."""
    seam: LayerSeam | None = experts.__dict__.get(_ATTRIBUTE)
    if seam is None or seam.at_rest:
        return stock(experts, "grouped_mm" if seam is None else seam.stock, hidden_NM, expert_ids_NK, weights_NK)
    return seam.forward(hidden_NM, expert_ids_NK, weights_NK)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)


def attach(seam: LayerSeam) -> LayerSeam:
    """Makes a seam the one that its experts module goes through, and returns it.

    One that is there already is kept, with the new one's facts: whoever holds it goes on being told.
    """
    known = seam_of(seam.experts)
    if known is None:
        seam.experts.__dict__[_ATTRIBUTE] = seam
        return seam
    known.router, known.logits_index, known.stock = seam.router, seam.logits_index, seam.stock
    return known


def seam_of(experts: nn.Module) -> LayerSeam | None:
    """The seam that an experts module goes through; None where it has none."""
    return experts.__dict__.get(_ATTRIBUTE)


def enters(module: nn.Module) -> bool:
    """Whether a module's calls are dispatched through transformers' experts interface."""
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed")) and hasattr(
        type(module).forward, "__wrapped__"
    )


@contextmanager
def hooked(seams: Mapping[int, LayerSeam], *, logits: bool = True) -> Iterator[None]:
    """For as long as it lasts, seams may be given transforms and listeners and calls carry logits.

    On leaving, whatever state the seams had on entering is theirs again and the hooks are gone; these contexts nest.
    """
    before = {layer: dict(vars(seam)) for layer, seam in seams.items()}
    handles = [seam.router.register_forward_hook(seam.on_router) for seam in seams.values() if logits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, seam in seams.items():
            vars(seam).update(before[layer], _logits_NE=None)


@contextmanager
def transformed(seams: Mapping[int, LayerSeam], transforms: Mapping[int, Sequence[Transform]]) -> Iterator[None]:
    """Has layers apply these transforms, after those already there, for as long as the context lasts."""
    with hooked({layer: seams[layer] for layer in transforms}):
        for layer, added in transforms.items():
            seams[layer].transforms = (*seams[layer].transforms, *added)
        yield
