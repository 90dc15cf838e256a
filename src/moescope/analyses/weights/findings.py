"""Findings of weights: where experts' weights are most similar, beside random directions with matched norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber, count_of, row
from moescope.results.text import number

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results


def _weights(results: Results) -> Finding | None:
    every = results.table("weights")
    if every is None:
        return None
    joined = every[(every["matrix"] == "joined") & every["median"].notna()]
    frame = joined[joined["measure"] == "matched_cosine"]
    if frame.empty:
        return None
    excess = frame["median"] - frame["median_control"]
    best, least = row(frame, excess.idxmax()), row(frame, excess.idxmin())
    stored = joined[(joined["measure"] == "cosine") & (joined["layer"] == best["layer"])]
    text = (
        f"The weights of the median pair have a cosine of {number(best['median'])} with hidden neurons matched; random "
        f"directions with matched norms: {number(best['median_control'])}."
    )
    if not stored.empty:
        text += f" As stored, in arbitrary order: {number(float(stored['median'].iloc[0]))}."
    if best["num_pairs_matched"] < best["num_pairs"]:
        text += f" n: {best['num_pairs_matched']:,} of {count_of(best['num_pairs'], 'pair')}, a random sample."
    if len(frame) > 1:
        above = int((frame["q05"] > frame["q95_control"]).sum())
        text += (
            f" Smallest difference at layer {least['layer']}: {number(least['median'])}, random directions "
            f"{number(least['median_control'])}. At {above} of {len(frame)} layers the 5th percentile of pairs exceeds "
            "the 95th percentile of random directions."
        )
    text += _directions(every)
    if excess.max() <= 0:
        title = "Experts' weights are no more similar than random directions"
        return Finding("weights", title, text, "not shown")
    if len(frame) == 1:
        title = f"Experts' weights at layer {best['layer']} are more similar than random directions"
        return Finding("weights", title, text, "shown")
    return Finding("weights", f"Experts' weights are most similar at layer {best['layer']}", text, "shown")


def _directions(every: pd.DataFrame) -> str:
    ranks = every[(every["measure"] == "effective_rank") & every["median"].notna()]
    if ranks.empty:
        return ""
    least = row(ranks, (ranks["median"] / ranks["median_control"]).idxmin())
    return (
        f" The effective rank is lowest, relative to random directions, for {least['matrix']} at layer "
        f"{least['layer']}: {number(least['median'])} in the median expert, {number(least['median_control'])} for "
        "random directions."
    )


FINDINGS: list[Callable[[Results], Finding | None]] = [_weights]

KEY_NUMBERS = [
    KeyNumber(
        "weights",
        "median",
        "similar weights",
        "cosine of two experts' weights, neurons matched, median pair",
        chance="median_control",
        by_chance="for random directions with matched norms",
        where=(("matrix", "joined"), ("measure", "matched_cosine")),
        lead=False,
    ),
    KeyNumber(
        "weights",
        "median",
        "effective rank",
        "directions that the up matrix of the median expert uses",
        chance="median_control",
        by_chance="for random directions with matched norms",
        where=(("matrix", "up"), ("measure", "effective_rank")),
        lead=False,
    ),
]
