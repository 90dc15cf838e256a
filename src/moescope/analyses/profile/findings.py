"""What a run found about the labels of experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Claim, count_of, interval_of, row
from moescope.analyses.profile.labels import CHANCE
from moescope.measures.constants import COVERAGE
from moescope.measures.multiple import any_of, holm
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _labels(results: Results) -> Claim | None:
    frame = results.table("profile")
    if frame is None or results.table("profile_best") is None:  # only some experts were asked for
        return None
    labeled = frame[(frame["label"] != "") & frame["balanced_accuracy"].notna()]
    if labeled.empty:
        return None
    # Selected and evaluated on different halves of the documents.
    best = row(labeled, labeled["selection_half_balanced_accuracy"].idxmax())
    p_values = labeled["p_value"].tolist()
    tested = [value for value in p_values if not math.isnan(value)]
    above = sum(value <= 1 - COVERAGE for value in holm(tested))
    text = (
        f"For {above:,} of {count_of(len(tested), 'expert')} that can be tested, the label's balanced accuracy on "
        f"held-out documents exceeds chance ({CHANCE}; 5 % for any of them, Holm); the median is "
        f"{number(float(labeled['balanced_accuracy'].median()))} on the evaluation half and "
        f"{number(float(labeled['selection_half_balanced_accuracy'].median()))} on the selection half. Highest on the "
        f"selection half: expert {best['expert']} of layer {best['layer']}, {best['label']}: "
        f"{number(best['balanced_accuracy'])} ({interval_of(best['ci_low'], best['ci_high'])}). A label names what is "
        "routed to an expert, not what the expert computes."
    )
    share = above / len(tested) if tested else 0.0
    return Claim(
        "profile",
        shown=f"A statistical label exceeds chance for {percent(share, 0)} of experts",
        not_shown="No expert's label is shown to exceed chance",
        not_testable="Labels of experts are not testable with this sample",
        text=text,
        p_value=any_of(p_values),
    )


FINDINGS: list[Callable[[Results], Claim | None]] = [_labels]
