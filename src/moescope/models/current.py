"""What may have changed on a model since it was probed: its users hold it, too, and may set and edit what they like.

Nothing is cached that could be read: the number of experts per token is what the routers have at the time, weights are
views. What the probe found by trying (the routing rules) is found again when what it depends on has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from moescope.errors import ModelError
from moescope.models.layout import Layout, text_config
from moescope.models.seam import IMPLEMENTATION, LayerSeam, seam_of

_NAMES_OF_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "num_experts_top_k",
)
_SHOWN = 3


def experts_per_token(hf: Any, where: Layout, layer: int) -> int:
    """K of a layer now: the router module's own, else that of the configuration.

    Raises:
        ModelError: Neither has it.
    """
    for module in where.router_candidates(hf, layer).values():
        value = getattr(module, "top_k", None)
        if isinstance(value, int) and not isinstance(module, nn.ModuleList):
            return value
    config = text_config(hf.config)
    for name in _NAMES_OF_K:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise ModelError(f"can't tell how many experts a token of {config.model_type} is sent to")


def common_experts_per_token(hf: Any, where: Layout, layers: Iterable[int], name: str) -> int:
    """K of a model's layers now.

    Raises:
        ModelError: They differ.
    """
    by_layer = {layer: experts_per_token(hf, where, layer) for layer in layers}
    if len(set(by_layer.values())) > 1:
        raise ModelError(
            f"the layers of {name} send a token to different numbers of experts: "
            f"{', '.join(f'{found} at layer {layer}' for layer, found in by_layer.items())}",
            expected="one number of experts per token in all layers",
            remedy="give all routers the same, or load the model anew",
        )
    return next(iter(by_layer.values()))


def router_state(hf: Any, where: Layout, seams: Iterable[LayerSeam]) -> tuple[object, ...]:
    """All that a routing rule is made of: numbers set on routers and their blocks, and versions of their small tensors.

    Equal as long as none of it was set or edited.
    """
    state: list[object] = []
    for seam in seams:
        for holder in (seam.router, where.moe_block(hf, seam.layer)):
            state += [(name, value) for name, value in vars(holder).items() if isinstance(value, int | float)]
            # The correction bias is a buffer in some families, a parameter in others; matrices are no part of a rule.
            state += [
                version(tensor)
                for tensors in (holder._parameters, holder._buffers)
                for tensor in tensors.values()
                if tensor is not None and tensor.ndim <= 1
            ]
    return tuple(state)


def version(tensor: Tensor) -> tuple[int, int]:
    """A tensor's identity and how often it was written to; tensors made in inference mode do not count that."""
    return id(tensor), -1 if tensor.is_inference() else tensor._version


class SinceProbe:
    """What a model was when it was probed, to tell what has been changed on it since."""

    def __init__(self) -> None:
        self._num_experts_per_token = 0
        self._weights: dict[str, tuple[int, int]] = {}
        self._routers: tuple[object, ...] = ()
        self._probe: Callable[[], None] | None = None

    def remember(
        self,
        hf: nn.Module,
        where: Layout,
        seams: Iterable[LayerSeam],
        num_experts_per_token: int,
        probe: Callable[[], None],
    ) -> None:
        """Keeps what the model is, just probed, and how to probe it again."""
        self._routers = router_state(hf, where, seams)
        if self._probe is None:  # results say what differs from the model as it was loaded
            self._num_experts_per_token = num_experts_per_token
            self._weights = {name: version(parameter) for name, parameter in hf.named_parameters()}
        self._probe = probe

    def refresh(self, hf: Any, where: Layout, seams: Iterable[LayerSeam], name: str) -> None:
        """See `MoEModel.refresh`."""
        seams = list(seams)
        check_in_place(hf, where, seams, name)
        if self._probe is not None and router_state(hf, where, seams) != self._routers:
            self._probe()

    def changes(self, hf: nn.Module, num_experts_per_token: int) -> tuple[str, ...]:
        """What was changed on the model since it was loaded, in sentences for those who read its results."""
        if self._probe is None:
            return ()
        found = []
        if num_experts_per_token != self._num_experts_per_token:
            found.append(
                f"the model sends tokens to {num_experts_per_token} experts, and was loaded with "
                f"{self._num_experts_per_token}"
            )
        now = {name: version(parameter) for name, parameter in hf.named_parameters()}
        edited = sorted(name for name, seen in self._weights.items() if now.get(name) != seen)
        if edited:
            names = ", ".join(edited[:_SHOWN]) + (", ..." if len(edited) > _SHOWN else "")
            found.append(f"{len(edited)} tensors of the model's weights were edited after loading: {names}")
        return tuple(found)


def check_in_place(hf: Any, where: Layout, seams: Iterable[LayerSeam], name: str) -> None:
    """Refuses a model that was changed so that its passes no longer come by the seam.

    Raises:
        ModelError: Says what was changed.
    """
    implementation = hf.get_experts_implementation()[""]
    gone = [seam.layer for seam in seams if seam_of(where.experts_module(hf, seam.layer)) is not seam]
    found = None
    if implementation != IMPLEMENTATION:
        found = f"the experts implementation of {name} was set to {implementation} after it was loaded"
    elif gone:
        found = f"the experts of layer {', '.join(map(str, gone))} of {name} were replaced after it was loaded"
    elif hf.training:
        found = f"{name} was put into training mode after it was loaded"
    if found is not None:
        raise ModelError(
            found,
            expected="the model as load_model left it",
            remedy="call model.hf.eval()" if hf.training else "call load_model again with the model as it is now",
        )
