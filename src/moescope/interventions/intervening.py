"""`with intervening(model, changes)`: a model that runs with experts scaled, set, ablated or replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from moescope.errors import UsageError, of_type
from moescope.interventions.changes import Change, Replace, apply
from moescope.interventions.positions import Positions, following
from moescope.models.given import check_model
from moescope.models.routers import RouterRule
from moescope.models.seam import ExpertCall, hooked

if TYPE_CHECKING:
    from moescope.models import MoEModel


@dataclass(frozen=True)
class LayerChanges:
    """The transform of one layer's seam: all changes in force there, each with the positions of the passes."""

    changes: tuple[tuple[Change, Positions | None], ...]
    rule: RouterRule

    @property
    def records(self) -> list[dict[str, Any]]:
        """The changes with their kind and parameters, as plain values."""
        return [change.record for change, _ in self.changes]

    def __call__(self, call: ExpertCall) -> tuple[Tensor, Tensor]:
        """The arguments of the layer's experts."""
        num_rows = call.expert_ids_NK.shape[0]
        placed = [
            (change, None if at is None or change.indices is None else at.rows(change.indices, num_rows))
            for change, at in self.changes
        ]
        return apply(call, placed, self.rule)


@contextmanager
def intervening(model: MoEModel, changes: Sequence[Change]) -> Iterator[None]:
    """Within the context, everything that this thread (or asyncio task) computes with the model has these changes.

    That includes `model.hf(...)`, `model.generate` and `model.hf.generate` (with or without a cache), `model.listen`
    and `moescope.capture`, whose manifest names the changes. Nested contexts have the effect of one context with all
    the changes. On leaving, also by an exception, the model is as it was.

    Other threads and tasks go on with the model unchanged, or with changes of their own. A thread started inside has
    the changes too if it is given the context, as asyncio does by itself:

        Thread(target=contextvars.copy_context().run, args=(model.generate, ids))

    In a padded batch, positions count each row's own tokens: pass the attention mask where padding is on the left.
    Padding itself is changed only by changes of all positions, which has no effect on other tokens.

        with moescope.intervening(model, [Scale(layer=1, expert=9, factor=2.0)]):
            ids = model.generate(prompt_ids, max_new_tokens=40)

    Args:
        model: From `load_model`.
        changes: Any number, of any layers and experts.

    Raises:
        UsageError: A layer that is not loaded, an expert that does not exist, or so many experts replaced that fewer
            are left than a token is routed to.
        ModelError: The model was changed after loading so that changes would have no effect.
    """
    check_model(model)
    checked = check_changes(model, changes)
    model.refresh()
    with ExitStack() as stack:
        positioned = any(change.positions is not None for change in checked)
        positions = stack.enter_context(following(model)) if positioned else None
        by_layer: dict[int, list[tuple[Change, Positions | None]]] = {}
        for change in checked:
            by_layer.setdefault(change.layer, []).append((change, positions))
        again = {change.layer for change in checked if isinstance(change, Replace)}
        stack.enter_context(
            hooked({layer: model.seams[layer] for layer in by_layer if layer not in again}, logits=False)
        )
        stack.enter_context(hooked({layer: model.seams[layer] for layer in sorted(again)}))
        for layer, added in by_layer.items():
            seam = model.seams[layer]
            # The changes of an outer context and those of this one act as one list.
            outer = [transform for transform in seam.transforms if isinstance(transform, LayerChanges)]
            others = [transform for transform in seam.transforms if not isinstance(transform, LayerChanges)]
            together = (*(item for transform in outer for item in transform.changes), *added)
            _check_enough_left(model, [change for change, _ in together])
            seam.transforms = (*others, LayerChanges(together, model.rules[layer]))
        yield


def check_changes(model: MoEModel, changes: Sequence[Change]) -> list[Change]:
    """The changes as a list, checked against the model.

    Raises:
        UsageError: A layer or expert that the model does not have, or an item that is not a change.
    """
    of_type(changes, Iterable, "changes", "a list of Scale, Set, Ablate or Replace")
    changes = list(changes)
    for change in changes:
        if not isinstance(change, Change):
            raise UsageError(f"{change!r} is not a change", expected="Scale, Set, Ablate or Replace")
        model.check_layers([change.layer])
        model.check_experts([change.expert])
    return changes


def _check_enough_left(model: MoEModel, changes: Sequence[Change]) -> None:
    """Refuses replacements after which fewer experts are left than a token is routed to."""
    everywhere = {change.expert for change in changes if isinstance(change, Replace) and change.indices is None}
    left = model.num_experts - len(everywhere)
    if left < model.num_experts_per_token:
        raise UsageError(
            f"layer {changes[0].layer}: {len(everywhere)} of {model.num_experts} experts are replaced",
            expected=f"{model.num_experts_per_token} left, the number that a token is routed to",
            remedy="replace fewer, or use Ablate",
        )
