"""What a run found: paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, row
from moescope.results.text import number

if TYPE_CHECKING:
    from moescope.results.reading import Results



def _paths(results: Results) -> Finding | None:
    frame = results.table("paths")
    if frame is None or frame.empty:
        return None
    excess = (frame["top1_nmi"] - frame["top1_nmi_independent"]).dropna()
    if excess.empty:
        return None
    best, least = row(frame, excess.idxmax()), row(frame, excess.idxmin())
    text = (
        f"Normalized mutual information of the first-ranked experts: {number(best['top1_nmi'])}, where shuffled tokens "
        f"give {number(best['top1_nmi_independent'])}."
    )
    title = f"The expert at layer {best['layer']} tells the one at layer {best['next_layer']}"
    if len(excess) == 1:
        return Finding("paths", title, text)
    text += (
        f" Least between layers {least['layer']} and {least['next_layer']}: {number(least['top1_nmi'])} "
        f"({number(least['top1_nmi_independent'])})."
    )
    return Finding("paths", f"{title} best", text)


FINDINGS: list[Callable[[Results], Finding | None]] = [_paths]
