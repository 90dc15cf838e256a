"""Changes of an expert's weight in a layer, and how several changes act on one call together.

Weights are the weights as applied, after the family's renormalization and scaling. All changes in force at a layer act
together on the decision of the family's router: first the router decides again without the replaced experts, then
weights are scaled and set, in the order given; last, sums are restored where requested. Nested contexts therefore have
the same effect as one context with all their changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from moescope.errors import UsageError, of_type, whole_number, whole_numbers
from moescope.models.routers import RouterRule
from moescope.models.seam import ExpertCall


@dataclass(frozen=True)
class Change(ABC):
    """A change of one expert of one layer; the subclasses are the kinds of change.

    Attributes:
        layer: The decoder block's index in the checkpoint.
        expert: Index of the routed expert.
        positions: Token positions that are changed: one index, several, or None for all. A token's position is the
            number of tokens before it in its own text, without padding, whether they are in this pass or in a cache;
            negative positions count from the end of the prompt.
        renormalize: The token's K weights keep their former sum: after all changes they are multiplied by it over
            their new sum (left alone where that is 0).
    """

    layer: int
    expert: int
    positions: int | Sequence[int] | None = field(default=None, kw_only=True)
    renormalize: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("layer", "expert"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name))
        of_type(self.renormalize, bool, "renormalize", "True or False")
        if self.positions is not None:
            many = [self.positions] if isinstance(self.positions, Integral) else self.positions
            given = whole_numbers(many, "positions")
            if not given:
                raise UsageError(
                    f"no position was given for expert {self.expert} of layer {self.layer}",
                    expected="an index, several, or None for all",
                )
            object.__setattr__(self, "positions", tuple(given))

    @property
    def indices(self) -> tuple[int, ...] | None:
        """`positions` as a tuple."""
        return self.positions  # type: ignore[return-value]

    @property
    def record(self) -> dict[str, Any]:
        """The change with its kind and parameters, as plain values."""
        return {"kind": type(self).__name__.lower(), **asdict(self)}

    @property
    @abstractmethod
    def description(self) -> str:
        """The change in a few words, for a table or a figure."""


@dataclass(frozen=True)
class Scale(Change):
    """`w <- factor * w` where the expert is selected; no change elsewhere.

    Attributes:
        factor: Any finite number; 1 changes nothing, bit for bit.
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite(self.factor, "factor")

    @property
    def description(self) -> str:
        """The change in a few words, for a table or a figure."""
        return f"weight × {self.factor:g}"


@dataclass(frozen=True)
class Set(Change):
    """The expert's weight becomes `value`; where it is not selected, it takes the slot of a selected expert.

    The slot is that of the selected expert with the least router weight (of equal ones, the higher id), without other
    experts that are set at that token.

    Attributes:
        value: Any finite number.
    """

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite(self.value, "value")

    @property
    def description(self) -> str:
        """The change in a few words, for a table or a figure."""
        return f"weight set to {self.value:g}"


@dataclass(frozen=True)
class Ablate(Change):
    """Weight 0 where the expert is selected, no replacement, the other weights unchanged."""

    @property
    def description(self) -> str:
        """The change in a few words, for a table or a figure."""
        return "ablated"


@dataclass(frozen=True)
class Replace(Change):
    """The expert cannot be selected, and the family's own router selects and weights again, as if it did not exist.

    Its selection score is -inf after any bias, and it is left out of softmaxes and sums: the router decides as it would
    without that expert's row. Where the family's weights come from a softmax over all experts, weights therefore also
    change at tokens that did not select the expert.
    """

    @property
    def description(self) -> str:
        """The change in a few words, for a table or a figure."""
        return "replaced"


def _finite(value: float, what: str) -> None:
    of_type(value, Real, what, "a finite number")
    if not math.isfinite(value):
        raise UsageError(f"`{what}={value}`", expected="a finite number")


def apply(
    call: ExpertCall, placed: Sequence[tuple[Change, Tensor | None]], rule: RouterRule | None = None
) -> tuple[Tensor, Tensor]:
    """The arguments of a layer's experts with these changes in force.

    Args:
        call: The router's decision; with logits if an expert is replaced.
        placed: Changes of this layer, in order, each with the mask (N,) of the rows that it acts on; None: all.
        rule: The layer's routing rule; required if an expert is replaced.

    Returns:
        `(expert_ids_NK, weights_NK)`; new tensors where anything changes.

    Raises:
        UsageError: More experts are set at a token than it has slots; or too few are left to select from.
    """
    ids_NK, weights_NK = _chosen_again(call, placed, rule)
    routed_NK = weights_NK.detach()
    sets = [(change, at_N) for change, at_N in placed if isinstance(change, Set)]
    for change, at_N in placed:
        if isinstance(change, Replace):
            continue
        if isinstance(change, Set):
            ids_NK = _with_slot(ids_NK, routed_NK, change, at_N, sets)
        hit_NK = _where(ids_NK == change.expert, at_N)
        if isinstance(change, Scale):
            weights_NK = torch.where(hit_NK, weights_NK * change.factor, weights_NK)
        else:
            weights_NK = weights_NK.masked_fill(hit_NK, change.value if isinstance(change, Set) else 0.0)
    return ids_NK, _with_former_sum(call.weights_NK, weights_NK, placed)


def _where(hit_NK: Tensor, at_N: Tensor | None) -> Tensor:
    return hit_NK if at_N is None else hit_NK & at_N.to(hit_NK.device).unsqueeze(-1)


def _chosen_again(
    call: ExpertCall, placed: Sequence[tuple[Change, Tensor | None]], rule: RouterRule | None
) -> tuple[Tensor, Tensor]:
    """The router's decision without the experts that are replaced."""
    gone = [(change, at_N) for change, at_N in placed if isinstance(change, Replace)]
    if not gone:
        return call.expert_ids_NK, call.weights_NK
    if rule is None or call.logits_NE is None:
        raise RuntimeError("replacing needs the router's logits and its rule")
    num_rows, num_experts = call.logits_NE.shape
    num_selected = call.expert_ids_NK.shape[1]
    excluded_NE = torch.zeros((num_rows, num_experts), dtype=torch.bool, device=call.logits_NE.device)
    acts_N = torch.zeros(num_rows, dtype=torch.bool, device=call.logits_NE.device)
    for change, at_N in gone:
        here_N = torch.ones_like(acts_N) if at_N is None else at_N.to(acts_N.device)
        excluded_NE[:, change.expert] |= here_N
        acts_N |= here_N
    ids_NK, weights_NK = rule.route(call.logits_NE, excluded_NE)
    # Within the groups that a token may select from, fewer experts may be left than it selects.
    choices = num_experts * rule.num_groups_selected // rule.num_groups - len({change.expert for change, _ in gone})
    if choices < num_selected and bool(excluded_NE.gather(1, ids_NK).any()):
        raise UsageError(
            f"layer {call.layer}: with {len(gone)} experts replaced, fewer than {num_selected} are left to select from",
            remedy="replace fewer, or use Ablate",
        )
    acts_N1 = acts_N.unsqueeze(-1)
    chosen_NK = torch.where(acts_N1, ids_NK.to(call.expert_ids_NK.dtype), call.expert_ids_NK)
    return chosen_NK, torch.where(acts_N1, weights_NK.to(call.weights_NK.dtype), call.weights_NK)


def _with_slot(
    ids_NK: Tensor, routed_NK: Tensor, change: Change, at_N: Tensor | None, sets: Sequence[tuple[Set, Tensor | None]]
) -> Tensor:
    """Expert ids in which the expert has a slot wherever it is set."""
    lacking_N1 = ~(ids_NK == change.expert).any(-1, keepdim=True)
    kept_NK = torch.zeros_like(ids_NK, dtype=torch.bool)
    for other, at_other_N in sets:
        kept_NK = kept_NK | _where(ids_NK == other.expert, at_other_N)
    key_NK = routed_NK.float().masked_fill(kept_NK, float("inf"))
    least_N1 = key_NK.amin(-1, keepdim=True)
    if len({other.expert for other, _ in sets}) > ids_NK.shape[1]:
        full_N1 = _where(lacking_N1 & torch.isinf(least_N1), at_N)
        if bool(full_N1.any()):
            raise UsageError(
                f"{len(sets)} experts of layer {change.layer} are set at one token",
                expected=f"at most {ids_NK.shape[1]}, the experts that a token is routed to",
            )
    slot_N1 = torch.where(key_NK == least_N1, ids_NK, -1).argmax(-1, keepdim=True)
    slots_NK = torch.zeros_like(kept_NK).scatter_(1, slot_N1, True)
    return ids_NK.masked_fill(_where(slots_NK & lacking_N1, at_N), change.expert)


def _with_former_sum(former_NK: Tensor, weights_NK: Tensor, placed: Sequence[tuple[Change, Tensor | None]]) -> Tensor:
    """Weights rescaled to their former sum, at the rows of changes with `renormalize`."""
    masks = [at_N for change, at_N in placed if change.renormalize]
    if not masks:
        return weights_NK
    before_N1 = former_NK.float().sum(-1, keepdim=True)
    after_N1 = weights_NK.float().sum(-1, keepdim=True)
    acts_N1 = after_N1 != 0
    if all(at_N is not None for at_N in masks):
        any_N = torch.stack([at_N.to(acts_N1.device) for at_N in masks if at_N is not None]).any(0)
        acts_N1 = acts_N1 & any_N.unsqueeze(-1)
    ratio_N1 = torch.where(acts_N1, before_N1 / after_N1, 1.0)
    return torch.where(acts_N1, (weights_NK.float() * ratio_N1).to(weights_NK.dtype), weights_NK)
