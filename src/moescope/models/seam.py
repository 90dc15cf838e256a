"""The seam: the one place where every expert call of every family passes through our hands.

transformers dispatches `experts(hidden_NM, expert_ids_NK, weights_NK)` through `ALL_EXPERTS_FUNCTIONS`. We register one
implementation, "moescope". Each experts module of a loaded model carries a `LayerSeam`, which, in this order,

1. lets `transforms` change which experts are chosen and with which weights (interventions; none: nothing changes),
2. tells `listener` what was decided, with each expert's own output if it wants that,
3. has the stock implementation do the work, unless the outputs were just computed, which are then combined.

What is asked of a seam belongs to the context (`contextvars`: the thread, or the task of an event loop) that asked it,
inside `hooked` or `transformed`. Passes of other threads over the same model see nothing of it, and none waits.

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

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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


@dataclass
class _Asked:
    """What is asked of one seam, between entering and leaving one `hooked`."""

    transforms: tuple[Transform, ...] = ()
    listener: Listener | None = None
    stop: bool = False
    logits: bool = False

    @property
    def nothing(self) -> bool:
        return self.listener is None and not self.transforms and not self.stop


_NOTHING = _Asked()
# Entered and not yet left in this context, the innermost last.
_ENTERED: ContextVar[tuple[dict[LayerSeam, _Asked], ...]] = ContextVar("moescope_seams", default=())


class _Logits(threading.local):
    """Logits on their way from a router to its experts, which the same thread calls next."""

    def __init__(self) -> None:
        self.by_seam: dict[LayerSeam, Tensor] = {}


_LOGITS = _Logits()


class LayerSeam:
    """What is attached to one experts module. At rest it has no transforms, no listener, and costs a lookup.

    `transforms`, `listener` and `stop` are set inside `hooked`, and are those of the context that sets them.

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
        self.stock = "grouped_mm"

    @property
    def _asked(self) -> _Asked:
        for entered in reversed(_ENTERED.get()):
            if self in entered:
                return entered[self]
        return _NOTHING

    def _ask(self, **changes: Any) -> None:
        asked = self._asked
        if asked is _NOTHING:
            raise RuntimeError(f"the seam of layer {self.layer} was asked for something outside `hooked`")
        for name, value in changes.items():
            setattr(asked, name, value)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Applied in order, each to the call as the one before left it."""
        return self._asked.transforms

    @transforms.setter
    def transforms(self, transforms: Sequence[Transform]) -> None:
        self._ask(transforms=tuple(transforms))

    @property
    def listener(self) -> Listener | None:
        """Who is told, after the transforms."""
        return self._asked.listener

    @listener.setter
    def listener(self, listener: Listener | None) -> None:
        self._ask(listener=listener)

    @property
    def stop(self) -> bool:
        """End the forward pass once the listener has been told."""
        return self._asked.stop

    @stop.setter
    def stop(self, stop: bool) -> None:
        self._ask(stop=stop)

    @property
    def at_rest(self) -> bool:
        """Nothing is asked of this layer."""
        return self._asked.nothing

    def on_router(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook of the router: keeps its logits until the experts are called."""
        if self._asked.logits:  # else the hook is another thread's
            logits = output if self.logits_index is None else output[self.logits_index]
            _LOGITS.by_seam[self] = logits.reshape(-1, logits.shape[-1])

    def forward(self, hidden_NM: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Stands in for the experts' forward."""
        asked = self._asked
        call = ExpertCall(self.layer, hidden_NM, expert_ids_NK, weights_NK, _LOGITS.by_seam.pop(self, None))
        for transform in asked.transforms:
            ids_NK, changed_NK = transform(call)
            call = replace(call, expert_ids_NK=ids_NK, weights_NK=changed_NK)
        outputs = None
        if asked.listener is not None:
            if asked.listener.wants_outputs:
                outputs = compute_sorted(self.experts, hidden_NM, call.expert_ids_NK)
            asked.listener(call, outputs)
        if asked.stop:
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
    known: LayerSeam = seam.experts.__dict__.setdefault(_ATTRIBUTE, seam)
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
    """For as long as it lasts, seams may be given transforms and listeners and calls carry logits, in this context.

    Whatever was asked of the seams before goes on, and is theirs again on leaving, when the hooks are gone too; these
    contexts nest.
    """
    entered: dict[LayerSeam, _Asked] = {}
    for seam in seams.values():
        before = seam._asked
        entered[seam] = replace(before, logits=before.logits or logits)
    with _entered(entered):
        handles = [seam.router.register_forward_hook(seam.on_router) for seam in seams.values() if logits]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def in_force(seams: Iterable[LayerSeam]) -> tuple[dict[str, Any], ...]:
    """What transforms of this context change, as plain values: what a transform says (`records`), else its name."""
    return tuple(
        record
        for seam in seams
        for transform in seam.transforms
        for record in getattr(transform, "records", None) or [{"kind": _name_of(transform), "layer": seam.layer}]
    )


def _name_of(transform: Transform) -> str:
    return str(getattr(transform, "__qualname__", type(transform).__qualname__))


@contextmanager
def at_rest(seams: Iterable[LayerSeam]) -> Iterator[None]:
    """For as long as it lasts, nothing is asked of these seams in this context, whatever was before."""
    with _entered({seam: _Asked() for seam in seams}):
        yield


@contextmanager
def _entered(asked: dict[LayerSeam, _Asked]) -> Iterator[None]:
    _ENTERED.set((*_ENTERED.get(), asked))
    try:
        yield
    finally:
        # Not by a token: generators may be left in another order than they were entered, or in another context.
        _ENTERED.set(tuple(other for other in _ENTERED.get() if other is not asked))
        for seam in asked:
            _LOGITS.by_seam.pop(seam, None)


@contextmanager
def transformed(seams: Mapping[int, LayerSeam], transforms: Mapping[int, Sequence[Transform]]) -> Iterator[None]:
    """Has layers apply these transforms, after those already there, for as long as the context lasts."""
    with hooked({layer: seams[layer] for layer in transforms}):
        for layer, added in transforms.items():
            seams[layer].transforms = (*seams[layer].transforms, *added)
        yield
