"""Finding about expert paths: whether the choice of experts depends on the layer before, and where most."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Claim, KeyNumber, chance_of, interval_of, names_of, row
from moescope.measures.multiple import any_of
from moescope.results.text import number

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _paths(results: Results) -> Claim | None:
    frame = results.table("paths")
    if frame is None or frame.empty:
        return None
    p_value = any_of(frame["dependence_p_value"].tolist())
    tested = frame[frame["dependence"].notna()]
    best = row(frame, tested["dependence"].idxmax() if len(tested) else frame.index[0])
    text = (
        f"Between layers {best['layer']} and {best['next_layer']} the normalized mutual information of first-ranked "
        f"experts is {number(best['top1_nmi'])}; independent routing (one layer's tokens shuffled): "
        f"{number(best['top1_nmi_chance'])}."
    )
    pairs = [f"{layer} and {other}" for layer, other in frame[["layer", "next_layer"]][frame["dependence_tied"]].values]
    if len(tested):
        text += (
            f" Dependence learned on half of the documents, on the others: {number(best['dependence'])} nats "
            f"({interval_of(best['dependence_ci_low'], best['dependence_ci_high'])}; independent: 0; "
            f"{chance_of(p_value)}{f' for any of {len(frame)} pairs of layers' if len(frame) > 1 else ''})."
        )
    if len(frame) == 1:
        shown = f"The expert at layer {best['next_layer']} depends on the expert at layer {best['layer']}"
    elif len(pairs) == 1:
        shown = f"Expert choice is most dependent between layers {pairs[0]}"
    else:
        shown = (
            f"Expert choice depends on the layer before, most between layers {names_of(pairs)} (not distinguishable)"
        )
    return Claim(
        "paths",
        shown=shown,
        not_shown="The expert at one layer is not shown to depend on the expert at the layer before",
        not_testable="Dependence on the expert of the layer before is not testable with this sample",
        text=text,
        p_value=p_value,
    )


FINDINGS: list[Callable[[Results], Claim | None]] = [_paths]

KEY_NUMBERS = [
    KeyNumber(
        "paths",
        "top1_nmi",
        "to the next layer",
        "normalized mutual information of first-ranked experts with those of the next layer looked at",
        chance="top1_nmi_chance",
        lead=False,
    )
]
