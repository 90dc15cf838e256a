"""Findings of relations: whether similar weights predict similar outputs, and similar outputs joint selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, Verdict, row
from moescope.results.text import number

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

OUTPUTS = ("similarity.cka", "similarity.centered_cosine")
COACTIVATION = "coactivation.lift"
WEAK = 0.2
"""A rank correlation below this is called weak."""


def _weights_and_outputs(results: Results) -> Finding | None:
    frame = results.table("relations_pooled")
    if frame is None or frame.empty:
        return None
    frame = frame[frame["first"].str.startswith("weights.") & frame["second"].isin(OUTPUTS)]
    main = frame[frame["first"].str.contains("matched")]
    if main.empty:
        return None
    titles = (
        "Experts with similar weights have similar outputs",
        "Experts with similar weights have somewhat similar outputs",
        "Similar weights do not predict similar outputs (CI overlaps the null)",
        "Experts with similar weights have less similar outputs than others",
    )
    title, verdict = _answer(main, titles)
    return Finding("relations", title, _sentences(frame), verdict)


def _outputs_and_selection(results: Results) -> Finding | None:
    frame = results.table("relations_pooled")
    if frame is None or frame.empty:
        return None
    frame = frame[frame["second"] == COACTIVATION]
    main = frame[frame["first"].isin(OUTPUTS)]
    if main.empty:
        return None
    titles = (
        "Experts with similar outputs are selected together",
        "Experts with similar outputs are selected together somewhat more often than others",
        "Experts with similar outputs are not selected together more often than others",
        "Experts with similar outputs are selected together less often than others",
    )
    title, verdict = _answer(main, titles)
    return Finding("relations", title, _sentences(frame), verdict)


def _answer(frame: pd.DataFrame, titles: Sequence[str]) -> tuple[str, Verdict]:
    """One of four titles: strongly, weakly, not beyond the null (by any of these measures), or negatively."""
    beyond = frame[(frame["ci_low"] > frame["null_high"]) | (frame["ci_high"] < frame["null_low"])]
    positive = beyond["rank_correlation"] > 0
    if beyond.empty:
        return titles[2], "not testable" if frame["ci_low"].isna().all() else "not shown"
    if len(beyond) == len(frame) and positive.all() and beyond["rank_correlation"].min() >= WEAK:
        return titles[0], "shown"
    return titles[1] if positive.all() else titles[3], "shown"


def _sentences(frame: pd.DataFrame) -> str:
    parts = []
    for index in frame.index:
        relation = row(frame, index)
        ends = f"{number(relation['ci_low'], 2)} to {number(relation['ci_high'], 2)}"
        parts.append(f"{relation['relation']} {number(relation['rank_correlation'], 2)} ({ends})")
    first = row(frame, frame.index[0])
    low, high = float(frame["null_low"].min()), float(frame["null_high"].max())
    mean = ", mean over layers" if first["num_layers"] > 1 else ""
    text = (
        f"Rank correlation over the pairs of experts of a layer{mean}, with its 95 % CI over experts: "
        f"{'; '.join(parts)}. Null (experts permuted): 95 % of values within {number(low, 2)} to {number(high, 2)}."
    )
    if first["num_layers"] > 1:
        outside = (frame["num_layers_above_null"] + frame["num_layers_below_null"]).tolist()
        text += f" Outside the null at {_listed(outside)} of {first['num_layers']} layers."
    return text


def _listed(counts: list[int]) -> str:
    if len(set(counts)) == 1:
        return str(counts[0])
    return f"{', '.join(map(str, counts[:-1]))} and {counts[-1]}"


FINDINGS: list[Callable[[Results], Finding | None]] = [_weights_and_outputs, _outputs_and_selection]
