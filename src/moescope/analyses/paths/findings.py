"""Finding about expert paths: between which layers the choice of experts is most dependent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber, row
from moescope.results.text import number

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _paths(results: Results) -> Finding | None:
    frame = results.table("paths")
    if frame is None or frame.empty:
        return None
    excess = (frame["top1_nmi"] - frame["top1_nmi_chance"]).dropna()
    if excess.empty:
        return None
    best, least = row(frame, excess.idxmax()), row(frame, excess.idxmin())
    text = (
        f"Normalized mutual information of the first-ranked experts: {number(best['top1_nmi'])}; independent routing "
        f"(one layer's tokens shuffled): {number(best['top1_nmi_chance'])}."
    )
    if len(excess) > 1:
        text += (
            f" Lowest between layers {least['layer']} and {least['next_layer']}: {number(least['top1_nmi'])} "
            f"({number(least['top1_nmi_chance'])})."
        )
    if excess.max() <= 0:
        title = "The expert at one layer is not shown to depend on the expert at the layer before"
        return Finding("paths", title, text, "not shown")
    if len(excess) == 1:
        title = f"The expert at layer {best['next_layer']} depends on the expert at layer {best['layer']}"
        return Finding("paths", title, text, "shown")
    title = f"Expert choice is most dependent between layers {best['layer']} and {best['next_layer']}"
    return Finding("paths", title, text, "shown")


FINDINGS: list[Callable[[Results], Finding | None]] = [_paths]

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
