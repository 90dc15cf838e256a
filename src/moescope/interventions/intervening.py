"""`with intervening(model, changes)`: a model that runs with experts turned up, down or off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from moescope.errors import UsageError
from moescope.interventions.changes import Change, Replace, apply
from moescope.interventions.places import Places, following
from moescope.models.routers import RouterRule
from moescope.models.seam import ExpertCall, hooked

if TYPE_CHECKING:
    from moescope.models import MoEModel


@dataclass(frozen=True)
class LayerChanges:
    """The transform of one layer's seam: all changes in force there, each with what knows its positions."""

    changes: tuple[tuple[Change, Places | None], ...]
    rule: RouterRule

    def __call__(self, call: ExpertCall) -> tuple[Tensor, Tensor]:
        """What the layer's experts are called with."""
        num_rows = call.expert_ids_NK.shape[0]
        placed = [
            (change, None if places is None or change.places is None else places.rows(change.places, num_rows))
            for change, places in self.changes
        ]
        return apply(call, placed, self.rule)


@contextmanager
def intervening(model: MoEModel, changes: Sequence[Change]) -> Iterator[None]:
    """For as long as the context lasts, everything the model computes is computed with these changes.

    That holds for `model.hf(...)`, `model.generate` and `model.hf.generate` (with or without a cache), `model.listen`
    and `moescope.capture`. Contexts nest, and do then what one with all the changes does. On leaving, also by an
    exception, the model is as it was.

    In a padded batch, positions count each row's own tokens: pass the attention mask where padding is on the left.
    Padding itself is changed only by changes of all positions, and no other token sees that.

        with moescope.intervening(model, [Scale(layer=1, expert=9, factor=2.0)]):
            ids = model.generate(prompt_ids, max_new_tokens=40)

    Args:
        model: From `load_model`.
        changes: Any number, of any layers and experts.

    Raises:
        UsageError: A layer that is not loaded, an expert that does not exist, or more experts replaced than a token
            could do without.
    """
    checked = check_changes(model, changes)
    with ExitStack() as stack:
        positioned = any(change.positions is not None for change in checked)
        places = stack.enter_context(following(model)) if positioned else None
        by_layer: dict[int, list[tuple[Change, Places | None]]] = {}
        for change in checked:
            by_layer.setdefault(change.layer, []).append((change, places))
        again = {change.layer for change in checked if isinstance(change, Replace)}
        stack.enter_context(
            hooked({layer: model.seams[layer] for layer in by_layer if layer not in again}, logits=False)
        )
        stack.enter_context(hooked({layer: model.seams[layer] for layer in sorted(again)}))
        for layer, added in by_layer.items():
            seam = model.seams[layer]
            # What an outer context does here and what this one adds act as one.
            outer = [transform for transform in seam.transforms if isinstance(transform, LayerChanges)]
            others = [transform for transform in seam.transforms if not isinstance(transform, LayerChanges)]
            together = (*(item for transform in outer for item in transform.changes), *added)
            _check_enough_left(model, [change for change, _ in together])
            seam.transforms = (*others, LayerChanges(together, model.rules[layer]))
        yield


def check_changes(model: MoEModel, changes: Sequence[Change]) -> list[Change]:
    """The changes, if the model has the layers and experts they name.

    Raises:
        UsageError: It has not, or something is no change.
    """
    for change in changes:
        if not isinstance(change, Change):
            raise UsageError(f"{change!r} is no change", expected="Scale, Set, Ablate or Replace")
        model.check_layers([change.layer])
        model.check_experts([change.expert])
    return list(changes)


def _check_enough_left(model: MoEModel, changes: Sequence[Change]) -> None:
    """At every position there are as many experts left as a token is sent to."""
    everywhere = {change.expert for change in changes if isinstance(change, Replace) and change.places is None}
    left = model.num_experts - len(everywhere)
    if left < model.num_experts_per_token:
        raise UsageError(
            f"layer {changes[0].layer}: {len(everywhere)} of {model.num_experts} experts are replaced",
            expected=f"{model.num_experts_per_token} left for each token to be sent to",
            remedy="replace fewer, or use Ablate",
        )
