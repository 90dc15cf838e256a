"""What a run found: contribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, interval_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

FAINT = 0.05
"""A layer whose median expert puts out less than this share of the median layer's is faint."""


def _faint_layers(results: Results) -> Finding | None:
    """Layers whose experts add next to nothing; none is found where there are none."""
    frame = results.table("contribution")
    if frame is None or frame["layer"].nunique() < 3:
        return None
    medians = frame.groupby("layer")["saliency_mean"].median().dropna()
    if medians.empty:
        return None
    faint = medians[medians < FAINT * medians.median()].sort_values()
    if faint.empty:
        return None
    layers = ", ".join(str(layer) for layer in sorted(faint.index))
    listed = "; ".join(f"layer {layer}: {number(value)}" for layer, value in faint.items())
    text = (
        f"Median saliency of their experts (weight times length of the output), the least first: {listed}. In the "
        f"median layer it is {number(medians.median())}. Shares of such a layer's output are shares of very little."
    )
    return Finding(
        "contribution", f"Experts add next to nothing at layer{'s' if len(faint) > 1 else ''} {layers}", text
    )


def _foremost(results: Results) -> Finding | None:
    frame = results.table("contribution_leaders")
    if frame is None or not frame["output_share"].notna().any():
        return None
    num_experts = results.manifest.num_experts
    frame = frame[frame["output_share"].notna()]
    # Which layer is shown was chosen on the half that chose the expert.
    best = row(frame, frame["output_share_choosing"].idxmax())
    fewest, most = row(frame, frame["experts_for_half"].idxmin()), row(frame, frame["experts_for_half"].idxmax())
    even = math.ceil(num_experts / 2)
    text = (
        f"On documents that had no say in choosing it, expert {best['expert']} of layer {best['layer']} is "
        f"{percent(best['output_share'])} of the layer's routed output "
        f"({interval_of(best['output_share_ci_low'], best['output_share_ci_high'], share=True)}; an even share would "
        f"be {percent(1 / num_experts)}; {count_of(best['num_tokens'], 'token')}). "
    )
    text += f"Half of the output comes from {count_of(fewest['experts_for_half'], 'expert')}"
    if len(frame) > 1:
        text += f" at layer {fewest['layer']} and {most['experts_for_half']} at layer {most['layer']}"
    text += f"; if all gave as much, it would be {even}."
    title = f"Expert {best['expert']} of layer {best['layer']} makes up more of its layer's output than any other"
    if best["output_share_ci_low"] <= 1 / num_experts:
        title = "No expert stands out for its share of the output"
    return Finding("contribution", title, text)


FINDINGS: list[Callable[[Results], Finding | None]] = [_faint_layers, _foremost]
