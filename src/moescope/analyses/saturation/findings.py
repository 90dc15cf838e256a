"""Fact of router saturation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Fact, Finding
from moescope.results.text import percent

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _most_similar(results: Results) -> Fact | None:
    frame = results.table("saturation")
    if frame is None or not frame["topk_saturation"].notna().any():
        return None
    means = frame.groupby("checkpoint", sort=False)[
        ["topk_saturation", "topk_saturation_chance", "top1_saturation"]
    ].mean()
    best = str(means["topk_saturation"].idxmax())
    share, chance, first = means.loc[best]
    layers = frame[frame["checkpoint"] == best].groupby("layer")["topk_saturation"].mean()
    over = "" if len(layers) == 1 else ", mean over layers"
    text = (
        f"{percent(share)} of the experts it selects are selected by the final model too{over}; chance is "
        f"{percent(chance)}. For the first-ranked expert alone: {percent(first)}."
    )
    if len(layers) > 1:
        text += (
            f" Highest at layer {layers.idxmax()} ({percent(layers.max())}), lowest at layer {layers.idxmin()} "
            f"({percent(layers.min())})."
        )
    if len(means) > 1:
        earliest = str(means.index[0])
        text += f" Of {earliest}: {percent(means.loc[earliest, 'topk_saturation'])}."
    # There is no interval: agreement is counted over tokens, and its sampling error was not estimated.
    return Fact("saturation", f"Routing most similar to the final model's: {best}", text)


FINDINGS: list[Callable[[Results], Finding | None]] = []

FACTS: list[Callable[[Results], Fact | None]] = [_most_similar]
