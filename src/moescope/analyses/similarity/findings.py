"""What a run found: similarity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, interval_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

MEASURES = {
    "cka": ("debiased CKA", "deconfounded_cka", "with what both owe to sharing inputs regressed out", "shared inputs"),
    "cosine": ("cosine", "centred_cosine", "after subtracting each expert's mean output", "their mean outputs"),
}
"""Measure of similarity -> its name, a second one that guards against a false reason, how, and that reason."""


def _similarity(results: Results) -> Finding | None:
    every = results.table("similarity")
    if every is None or "median_redrawn" not in every.columns:
        return None
    measure = str(every["measure"].iloc[0])
    frame = every[(every["measure"] == measure) & every["median"].notna() & every["median_redrawn"].notna()]
    if measure not in MEASURES or frame.empty:
        return None
    name, second, guarded, reason = MEASURES[measure]
    excess = frame["median"] - frame["median_redrawn"]
    best, least = row(frame, excess.idxmax()), row(frame, excess.idxmin())
    text = (
        f"The median pair has a {name} of {number(best['median'])}; the same experts with re-drawn weights, on the "
        f"same inputs, {number(best['median_redrawn'])}."
    )
    other = every[(every["measure"] == second) & (every["layer"] == best["layer"])]
    beyond = True
    if not other.empty:
        values = row(other, other.index[0])
        beyond = values["median"] > values["median_redrawn"]
        text += f" It is {number(values['median'])}, re-drawn {number(values['median_redrawn'])}, {guarded}."
    if not math.isnan(best["share_above_redrawn"]):
        text += (
            f" Even at the lower end of their intervals, {percent(best['share_above_redrawn'])} of "
            f"{count_of(best['num_pairs'], 'pair')} exceed 95 % of the re-drawn ones."
        )
    text += _most_alike(results, measure, best["layer"])
    if len(frame) > 1:
        above = int((excess > 0).sum())
        text += (
            f" The median pair is more alike than the re-drawn one at {above} of {len(frame)} layers; least at layer "
            f"{least['layer']}: {number(least['median'])} against {number(least['median_redrawn'])}."
        )
    text += (
        f" Every expert ran on {count_of(best['num_samples'], 'token')} of "
        f"{count_of(best['num_documents'], 'document')}."
    )
    if excess.max() <= 0:
        return Finding("similarity", "Experts are no more alike than ones with re-drawn weights", text)
    where = f"at layer {best['layer']}"
    title = (
        f"Experts are most alike {where}" if len(frame) > 1 else f"Experts {where} are more alike than re-drawn ones"
    )
    if not beyond:
        title += f", but not beyond {reason}"
    return Finding("similarity", title, text)


def _most_alike(results: Results, measure: str, layer: int) -> str:
    pairs: pd.DataFrame | None = results.table("similarity_pairs")
    if pairs is None or measure not in pairs.columns or (pairs["layer"] == layer).sum() == 0:
        return ""
    best = row(pairs, pairs.index[(pairs["layer"] == layer) & (pairs["place"] == 0)][0])
    return (
        f" The most alike are experts {best['expert']} and {best['other_expert']}: {number(best[measure])} "
        f"({interval_of(best[f'{measure}_low'], best[f'{measure}_high'])}), the highest of all pairs, so a description "
        "of this sample, not an estimate."
    )


FINDINGS: list[Callable[[Results], Finding | None]] = [_similarity]
