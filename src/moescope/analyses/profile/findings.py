"""What a run found: profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, interval_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results



def _labels(results: Results) -> Finding | None:
    frame = results.table("profile")
    if frame is None or results.table("profile_best") is None:  # only some experts were asked for
        return None
    labelled = frame[(frame["label"] != "") & frame["balanced_accuracy"].notna()]
    known = labelled[labelled["ci_low"].notna()]
    if known.empty:
        return None
    # Chosen and measured on different halves of the documents.
    best = row(known, known["choosing_balanced_accuracy"].idxmax())
    told = int((known["ci_low"] > 0.5).sum())
    text = (
        f"Of {count_of(len(known), 'expert')}, {told:,} have a label that tells their tokens from others' better than "
        "a coin, even at the lower end of its 95 % interval, on documents that had no say in choosing it; the median "
        f"balanced accuracy is {number(float(known['balanced_accuracy'].median()))}, on the documents that chose them "
        f"{number(float(known['choosing_balanced_accuracy'].median()))}. Best told is expert {best['expert']} of layer "
        f"{best['layer']}, by {best['label']}: {number(best['balanced_accuracy'])} "
        f"({interval_of(best['ci_low'], best['ci_high'])}). A label says what goes with an expert, not what it does."
    )
    by_layer = known.groupby("layer")["balanced_accuracy"].median()
    if len(by_layer) > 1:
        text += f" Labels tell most at layer {by_layer.idxmax()}, least at layer {by_layer.idxmin()}."
    share = told / len(known)
    title = (
        "No expert's tokens can be told by a plain label"
        if not told
        else (f"A plain label tells the tokens of {percent(share, 0)} of experts better than a coin")
    )
    return Finding("profile", title, text)


FINDINGS: list[Callable[[Results], Finding | None]] = [_labels]
