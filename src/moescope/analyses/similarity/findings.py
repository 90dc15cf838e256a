"""Findings of similarity: where experts' outputs are most similar, beyond the random-weight baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Claim, Finding, KeyNumber, count_of, interval_of, names_of, row
from moescope.measures.constants import COVERAGE
from moescope.measures.multiple import any_of
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

MEASURES = {
    "cka": ("debiased CKA", "deconfounded_cka", "Deconfounded CKA (inputs regressed out)", "shared inputs"),
    "cosine": ("cosine", "centered_cosine", "Centered cosine (each expert's mean output subtracted)", "mean outputs"),
}
"""Measure -> its name, the measure that guards it against a confounder, that one's name, the confounder."""
SAME_OUTPUT = 1 - 1e-4
"""Mean cosine from which two experts' outputs are the same up to a factor and rounding."""


def _similarity(results: Results) -> Claim | Finding | None:
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
    best, highest = row(frame, frame["median_excess"].idxmax()), row(frame, frame["median"].idxmax())
    text = (
        f"The median pair of layer {best['layer']} has a {name} of {number(best['median'])}; random-weight baseline "
        f"(same experts and inputs, weights resampled at equal scale): {number(best['median_control'])}; excess: "
        f"{number(best['median_excess'])} "
        f"({interval_of(best['median_excess_ci_low'], best['median_excess_ci_high'])} over documents and experts)"
    )
    if len(frame) > 1:
        text += f", the largest excess of {len(frame)} layers. "
        text += (
            f"The median {name} itself is highest there too."
            if highest["layer"] == best["layer"]
            else f"The median {name} itself is highest at layer {highest['layer']}: {number(highest['median'])}, "
            f"baseline {number(highest['median_control'])}."
        )
    else:
        text += "."
    guarded = every[(every["measure"] == guard) & every["median"].notna() & every["median_control"].notna()]
    text += _guarded(guarded, guard_name, best["layer"])
    if not math.isnan(best["share_above_control"]):
        text += (
            f" The lower end of the 95 % CI exceeds the baseline's 95th percentile for "
            f"{percent(best['share_above_control'])} of {count_of(best['num_pairs'], 'pair')} of layer {best['layer']}."
        )
    text += _most_similar(results, measure)
    text += (
        f" n: {count_of(best['num_samples'], 'token')} of {count_of(best['num_documents'], 'document')} for every "
        "expert."
    )
    above = int((frame["median_excess_p_value"] * len(frame) <= 1 - COVERAGE).sum())
    where = f"at layer {best['layer']}" if len(frame) == 1 else f"at {above} of {len(frame)} layers"
    title = "more similar than those of experts with random weights"
    # The largest of as many differences as layers. Beyond the confounder too, or it is not what is claimed.
    p_value = any_of(frame["median_excess_p_value"].tolist())
    beyond = any_of(guarded["median_excess_p_value"].tolist()) if not guarded.empty else 0.0
    explained = p_value <= 1 - COVERAGE < beyond
    return Claim(
        "similarity",
        shown=f"Experts' outputs are {title} {where}, beyond {confounder}",
        not_shown=f"Experts' outputs are not shown to be {title}{f' beyond {confounder}' if explained else ''}",
        text=text,
        p_value=max(p_value, beyond),
        not_testable=f"Whether experts' outputs are {title} is not testable",
    )


def _guarded(guarded: pd.DataFrame, name: str, layer: int) -> str:
    """The measure that guards against a confounder: at that layer, and at how many it is below its baseline."""
    if guarded.empty:
        return ""
    text = ""
    if (guarded["layer"] == layer).any():
        values = row(guarded, guarded.index[guarded["layer"] == layer][0])
        text = f" {name}: {number(values['median'])}; baseline {number(values['median_control'])}."
    below = guarded[guarded["median_excess"] < 0]
    if len(guarded) > 1:
        text += f" It lies below the baseline at {len(below)} of {len(guarded)} layers"
        text += f" ({names_of(below['layer'].tolist())})." if len(below) else "."
    return text


def _most_similar(results: Results, measure: str) -> str:
    """The pair of highest similarity of all layers; pairs with the same outputs are all named."""
    pairs: pd.DataFrame | None = results.table("similarity_pairs")
    if pairs is None or measure not in pairs.columns or not pairs[measure].notna().any():
        return ""
    best = row(pairs, pairs[measure].idxmax())
    text = (
        f" Most similar: experts {best['expert']} and {best['other_expert']} of layer {best['layer']}, "
        f"{number(best[measure])} ({interval_of(best[f'{measure}_ci_low'], best[f'{measure}_ci_high'])}); "
        "optimistically biased, the highest of all pairs."
    )
    same = pairs[pairs["cosine"] >= SAME_OUTPUT] if "cosine" in pairs.columns else pairs.head(0)
    if len(same):
        named = [f"{r.expert} and {r.other_expert} of layer {r.layer}" for r in same.itertuples()]
        text += f" The same output for every token, up to a factor: experts {names_of(named)}."
    return text


FINDINGS: list[Callable[[Results], Claim | Finding | None]] = [_similarity]

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
