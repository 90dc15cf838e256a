"""What a run found about the labels of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, interval_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

CHANCE = 0.5
"""Balanced accuracy of a label that has nothing to do with the expert."""


def _labels(results: Results) -> Finding | None:
    frame = results.table("profile")
    if frame is None or results.table("profile_best") is None:  # only some experts were asked for
        return None
    labeled = frame[(frame["label"] != "") & frame["balanced_accuracy"].notna()]
    known = labeled[labeled["ci_low"].notna()]
    if known.empty:
        return None
    # Selected and evaluated on different halves of the documents.
    best = row(known, known["selection_half_balanced_accuracy"].idxmax())
    above = int((known["ci_low"] > CHANCE).sum())
    text = (
        f"For {above:,} of {count_of(len(known), 'expert')} the 95 % CI of the label's balanced accuracy lies above "
        f"chance ({CHANCE}) on held-out documents; the median is "
        f"{number(float(known['balanced_accuracy'].median()))} on the evaluation half and "
        f"{number(float(known['selection_half_balanced_accuracy'].median()))} on the selection half. Highest on the "
        f"selection half: expert {best['expert']} of layer {best['layer']}, {best['label']}: "
        f"{number(best['balanced_accuracy'])} "
        f"({interval_of(best['ci_low'], best['ci_high'])}). A label names what is routed to an expert, not what the "
        "expert computes."
    )
    by_layer = known.groupby("layer")["balanced_accuracy"].median()
    if len(by_layer) > 1:
        text += (
            f" Median balanced accuracy is highest at layer {by_layer.idxmax()}, lowest at layer {by_layer.idxmin()}."
        )
    if not above:
        return Finding("profile", "No expert's label is above chance", text, "not shown")
    title = f"A statistical label is above chance for {percent(above / len(known), 0)} of experts"
    return Finding("profile", title, text, "shown")


FINDINGS: list[Callable[[Results], Finding | None]] = [_labels]
