"""What a run found: saturation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding
from moescope.results.text import percent

if TYPE_CHECKING:
    from moescope.results.reading import Results



def _saturation(results: Results) -> Finding | None:
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
        f"{percent(share)} of the experts it selects are those the final model selects{over}; chance is "
        f"{percent(chance)}. Of the first-ranked alone, {percent(first)}."
    )
    if len(layers) > 1:
        text += (
            f" Most at layer {layers.idxmax()} ({percent(layers.max())}), least at layer {layers.idxmin()} "
            f"({percent(layers.min())})."
        )
    if len(means) > 1:
        first_of = str(means.index[0])
        text += f" At {first_of}: {percent(means.loc[first_of, 'topk_saturation'])}."
    return Finding("saturation", f"Nearest to the final router is {best}", text)


FINDINGS: list[Callable[[Results], Finding | None]] = [_saturation]
