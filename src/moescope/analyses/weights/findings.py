"""Findings of weights: where experts' weights are most similar, beside random directions with matched norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber, count_of, names_of, row
from moescope.measures.usage import SILENT
from moescope.results.text import number

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results


SAME = 1e-4
"""Relative distance of outputs up to which two experts are duplicates: float32's rounding gives about 1e-6."""


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


def _duplicates(results: Results) -> Finding | None:
    """Pairs of experts that compute the same; none is found where there are none."""
    frame = results.table("weights_duplicates")
    if frame is None or frame.empty:
        return None
    named = [f"{found.expert} and {found.other_expert} of layer {found.layer}" for found in frame.itertuples()]
    text = (
        f"The same output for the same input (relative distance at most {SAME:g}, random inputs): experts "
        f"{names_of(named)}."
    )
    if "joined_matched_cosine" in frame.columns and frame["joined_matched_cosine"].notna().any():
        matched, stored = (number(float(frame[f"joined{kind}_cosine"].min())) for kind in ("_matched", ""))
        text += (
            " Cosine of their weights with hidden neurons matched in order and, where that changes nothing, in sign "
            f"of up and down together: at least {matched}; as stored: at least {stored}."
        )
    if "router_cosine" in frame.columns:
        text += f" Cosine of their router rows: at least {number(float(frame['router_cosine'].min()))}."
    title = (
        f"Experts {named[0]} are duplicates" if len(named) == 1 else f"{len(named):,} pairs of experts are duplicates"
    )
    return Finding("weights", title, text, "shown")


def _silent(results: Results) -> Finding | None:
    """Experts whose weights give nothing; `contribution` says it of those that tokens select, where it was asked."""
    frame = results.table("weights_experts")
    if frame is None or "silent" not in frame.columns or results.table("contribution") is not None:
        return None
    found = frame[frame["silent"]]
    if found.empty:
        return None
    named = [f"expert {one.expert} of layer {one.layer}" for one in found.itertuples()]
    text = (
        f"Output norm for random inputs of at most {SILENT:g} of the layer's median: {names_of(named)}. Whether tokens "
        "select them is a question of usage."
    )
    title = f"{len(found):,} of {len(frame):,} experts {'is' if len(found) == 1 else 'are'} silent"
    return Finding("weights", title, text, "shown")


FINDINGS: list[Callable[[Results], Finding | None]] = [_weights, _duplicates, _silent]

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
