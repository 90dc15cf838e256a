"""Findings of similarity: where experts' outputs are most similar, beyond the random-weight baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber, Verdict, count_of, interval_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

MEASURES = {
    "cka": ("debiased CKA", "deconfounded_cka", "Deconfounded CKA (inputs regressed out)", "shared inputs"),
    "cosine": ("cosine", "centered_cosine", "Centered cosine (each expert's mean output subtracted)", "mean outputs"),
}
"""Measure -> its name, the measure that guards it against a confounder, that one's name, the confounder."""


def _similarity(results: Results) -> Finding | None:
    every = results.table("similarity")
    if every is None or every.empty:
        return None
    if "median_control" not in every.columns:
        text = "Shape, gating and shared inputs alone make outputs similar; a random-weight baseline shows how similar."
        return Finding("similarity", "Similarity of experts has no baseline in this run", text, "not testable")
    measure = str(every["measure"].iloc[0])
    frame = every[(every["measure"] == measure) & every["median"].notna() & every["median_control"].notna()]
    if measure not in MEASURES or frame.empty:
        return None
    name, guard, guard_name, confounder = MEASURES[measure]
    excess = frame["median"] - frame["median_control"]
    best, least = row(frame, excess.idxmax()), row(frame, excess.idxmin())
    text = (
        f"The median pair has a {name} of {number(best['median'])}; random-weight baseline (same experts and inputs, "
        f"weights resampled at equal scale): {number(best['median_control'])}."
    )
    guarded = every[(every["measure"] == guard) & (every["layer"] == best["layer"])]
    beyond = True
    if not guarded.empty:
        values = row(guarded, guarded.index[0])
        beyond = values["median"] > values["median_control"]
        text += f" {guard_name}: {number(values['median'])}; baseline {number(values['median_control'])}."
    if not math.isnan(best["share_above_control"]):
        text += (
            f" The lower end of the 95 % CI exceeds the baseline's 95th percentile for "
            f"{percent(best['share_above_control'])} of {count_of(best['num_pairs'], 'pair')}."
        )
    text += _most_similar(results, measure, best["layer"])
    if len(frame) > 1:
        above = int((excess > 0).sum())
        text += (
            f" The median pair exceeds the baseline at {above} of {len(frame)} layers; smallest difference at layer "
            f"{least['layer']}: {number(least['median'])}, baseline {number(least['median_control'])}."
        )
    text += (
        f" n: {count_of(best['num_samples'], 'token')} of {count_of(best['num_documents'], 'document')} for every "
        "expert."
    )
    verdict: Verdict = "not testable" if math.isnan(best["share_above_control"]) else "shown"
    if excess.max() <= 0:
        title = "Experts' outputs are no more similar than those of experts with random weights"
        return Finding("similarity", title, text, "not shown" if verdict == "shown" else verdict)
    title = (
        f"Experts' outputs are most similar at layer {best['layer']}"
        if len(frame) > 1
        else f"Experts' outputs at layer {best['layer']} are more similar than those of experts with random weights"
    )
    if not beyond:
        title += f", but not beyond {confounder}"
        verdict = "not shown" if verdict == "shown" else verdict
    return Finding("similarity", title, text, verdict)


def _most_similar(results: Results, measure: str, layer: int) -> str:
    pairs: pd.DataFrame | None = results.table("similarity_pairs")
    if pairs is None or measure not in pairs.columns or (pairs["layer"] == layer).sum() == 0:
        return ""
    best = row(pairs, pairs.index[(pairs["layer"] == layer) & (pairs["rank"] == 0)][0])
    return (
        f" Most similar: experts {best['expert']} and {best['other_expert']}, {number(best[measure])} "
        f"({interval_of(best[f'{measure}_ci_low'], best[f'{measure}_ci_high'])}); optimistically biased, the highest "
        "of all pairs."
    )


FINDINGS: list[Callable[[Results], Finding | None]] = [_similarity]

KEY_NUMBERS = [
    KeyNumber(
        "similarity",
        "median",
        name,
        f"{name} of two experts' outputs, median pair",
        chance="median_control",
        by_chance="with random weights",
        where=(("measure", measure),),
        lead=False,
    )
    for measure, name in (("cka", "debiased CKA"), ("deconfounded_cka", "deconfounded CKA"), ("cosine", "cosine"))
]
