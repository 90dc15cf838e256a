"""What a run found about experts' outputs: how much they add, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.report.finding import Finding, count_of, interval_of, row
from moescope.report.views import number, percent

if TYPE_CHECKING:
    from moescope.report.folder import Results

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


def _recovered(results: Results) -> Finding | None:
    frame = results.table("map_quality")
    if frame is None or not frame["expert_accuracy"].notna().any():
        return None
    frame = frame[frame["expert_accuracy"].notna()]
    best, least = row(frame, frame["expert_accuracy"].idxmax()), row(frame, frame["expert_accuracy"].idxmin())
    text = (
        f"At layer {best['layer']} the nearest outputs on other documents name the expert of "
        f"{percent(best['expert_accuracy'])} of {count_of(best['num_judged'], 'output')} "
        f"({interval_of(best['expert_ci_low'], best['expert_ci_high'], share=True)}; chance "
        f"{percent(best['expert_chance'])})"
    )
    text += f"; at layer {least['layer']}, {percent(least['expert_accuracy'])}." if len(frame) > 1 else "."
    domain = row(frame, frame["domain_accuracy"].idxmax())
    several = domain["domain_chance"] < 1
    above = domain["domain_ci_low"] > domain["domain_chance"]
    where = f" at layer {domain['layer']}, the most" if len(frame) > 1 else ""
    if several:
        text += (
            f" They name the domain of {percent(domain['domain_accuracy'])} "
            f"({interval_of(domain['domain_ci_low'], domain['domain_ci_high'], share=True)}; chance "
            f"{percent(domain['domain_chance'])}){where}."
        )
    if best["expert_ci_low"] > best["expert_chance"]:
        title = "An output tells which expert made it"
        if several:
            domain_excess = domain["domain_accuracy"] - domain["domain_chance"]
            expert_excess = best["expert_accuracy"] - best["expert_chance"]
            title += ", and less of its domain" if above and domain_excess < expert_excess else ""
            title += ", but not its domain" if not above else ""
        return Finding("map", title, text)
    return Finding("map", "An output does not surely tell which expert made it", text)


FINDINGS: list[Callable[[Results], Finding | None]] = [_faint_layers, _foremost, _recovered]
