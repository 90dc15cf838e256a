"""Findings of weights: where experts' weights are most similar, beside random directions with matched norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Claim, Fact, KeyNumber, count_of, names_of, row
from moescope.measures.constants import COVERAGE
from moescope.measures.multiple import any_of
from moescope.measures.usage import SILENT
from moescope.results.text import number

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results


SAME = 1e-4
"""Relative distance of outputs up to which two experts are duplicates: float32's rounding gives about 1e-6."""


def _weights(results: Results) -> Claim | None:
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
    # The largest of as many differences as layers.
    p_value = any_of(frame["median_excess_p_value"].tolist())
    above = int((frame["median_excess_p_value"] * len(frame) <= 1 - COVERAGE).sum())
    where = f"layer {best['layer']}" if len(frame) == 1 else f"{above} of {len(frame)} layers"
    return Claim(
        "weights",
        shown=f"Experts' weights are more similar than random directions at {where}",
        not_shown="Experts' weights are not shown to be more similar than random directions",
        text=text,
        p_value=p_value,
        not_testable="Whether experts' weights are more similar than random directions is not testable",
        needed="A test needs at least four experts whose hidden neurons are matched.",
    )


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


def _duplicates(results: Results) -> Fact | None:
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
    return Fact("weights", title, text)


def _silent(results: Results) -> Fact | None:
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
    return Fact("weights", title, text)


FINDINGS: list[Callable[[Results], Claim | None]] = [_weights]

FACTS: list[Callable[[Results], Fact | None]] = [_duplicates, _silent]

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
