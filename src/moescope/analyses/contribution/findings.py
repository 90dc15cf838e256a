"""Facts of contribution: layers with an output near zero, and the expert of largest share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Fact, Finding, count_of, interval_of, names_of, row
from moescope.measures.usage import SILENT
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

NEAR_ZERO = 0.05
"""A layer's output is near zero if its median expert's saliency is below this share of the median layer's."""


def _layers_near_zero(results: Results) -> Fact | None:
    """Layers whose experts' outputs are near zero; none is found where there are none."""
    frame = results.table("contribution")
    if frame is None or frame["layer"].nunique() < 3:
        return None
    medians = frame.groupby("layer")["saliency_mean"].median().dropna()
    if medians.empty:
        return None
    small = medians[medians < NEAR_ZERO * medians.median()].sort_values()
    if small.empty:
        return None
    layers = ", ".join(str(layer) for layer in sorted(small.index))
    listed = "; ".join(f"layer {layer}: {number(value)}" for layer, value in small.items())
    text = (
        f"Saliency (weight times output norm) of the median expert: {listed}; at the median layer: "
        f"{number(medians.median())}. Output shares at such a layer are shares of an output near zero."
    )
    title = f"Output norm near zero at layer{'s' if len(small) > 1 else ''} {layers}"
    return Fact("contribution", title, text)


def _largest_share(results: Results) -> Fact | None:
    frame = results.table("contribution_top")
    if frame is None or not frame["output_share"].notna().any():
        return None
    num_experts = results.manifest.num_experts
    frame = frame[frame["output_share"].notna()]
    # The layer is selected on the same half as the expert.
    best = row(frame, frame["selection_half_output_share"].idxmax())
    fewest, most = (
        row(frame, frame["num_experts_for_half"].idxmin()),
        row(frame, frame["num_experts_for_half"].idxmax()),
    )
    text = (
        f"On held-out documents (evaluation half), expert {best['expert']} of layer {best['layer']} contributes "
        f"{percent(best['output_share'])} of the layer's routed output "
        f"({interval_of(best['output_share_ci_low'], best['output_share_ci_high'], share=True)}; even share 1/E: "
        f"{percent(1 / num_experts)}; n: {count_of(best['num_tokens'], 'token')}). Half of the output comes from "
        f"{count_of(fewest['num_experts_for_half'], 'expert')}"
    )
    if len(frame) > 1:
        text += f" at layer {fewest['layer']} and {most['num_experts_for_half']} at layer {most['layer']}"
    text += f"; with even shares, from {math.ceil(num_experts / 2)}."
    title = (
        f"Expert {best['expert']} of layer {best['layer']} has {percent(best['output_share'])} of its layer's output"
    )
    return Fact("contribution", title, text)


def _silent(results: Results) -> Fact | None:
    """Experts that tokens select and that give nothing; none is found where there are none."""
    frame, every = results.table("contribution_silent"), results.table("contribution")
    if frame is None or every is None or frame.empty:
        return None
    named = [
        f"expert {found.expert} of layer {found.layer} (norm {number(found.output_norm_mean)}, median of the layer "
        f"{number(found.output_norm_median_of_layer)}; selected for {percent(found.selection_frequency)} of the tokens)"
        for found in frame.sort_values("num_selected", ascending=False, kind="stable").itertuples()
    ]
    unused = int((every["num_selected"] == 0).sum())
    text = (
        f"Selected, with a mean output norm of at most {SILENT:g} of the layer's median: {names_of(named)}. Another "
        f"sense of dead, never selected: {count_of(unused, 'expert')} of {len(every):,}."
    )
    title = f"{len(frame):,} of {len(every):,} experts {'is' if len(frame) == 1 else 'are'} selected and silent"
    return Fact("contribution", title, text)


FINDINGS: list[Callable[[Results], Finding | None]] = []

FACTS: list[Callable[[Results], Fact | None]] = [_layers_near_zero, _largest_share, _silent]
