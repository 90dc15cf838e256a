"""What a run found: weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, row
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
    excess = frame["median"] - frame["median_redrawn"]
    best, least = row(frame, excess.idxmax()), row(frame, excess.idxmin())
    stored = joined[(joined["measure"] == "cosine") & (joined["layer"] == best["layer"])]
    text = (
        f"There the median pair's weights have a cosine of {number(best['median'])} once hidden neurons are matched; "
        f"neurons as long that point anywhere give {number(best['median_redrawn'])}."
    )
    if not stored.empty:
        text += f" As they are stored, in no order that means anything: {number(float(stored['median'].iloc[0]))}."
    if best["num_pairs_matched"] < best["num_pairs"]:
        text += f" From {best['num_pairs_matched']:,} of {count_of(best['num_pairs'], 'pair')}, drawn at random."
    if len(frame) > 1:
        above = int((frame["quantile_05"] > frame["quantile_95_redrawn"]).sum())
        text += (
            f" Least at layer {least['layer']}: {number(least['median'])} against {number(least['median_redrawn'])}. "
            f"At {above} of {len(frame)} layers 95 % of the pairs lie above 95 % of the random ones."
        )
    text += _directions(every)
    if excess.max() <= 0:
        return Finding("weights", "Experts' weights are no more alike than random ones", text)
    if len(frame) == 1:
        return Finding("weights", f"How alike the weights of layer {best['layer']} are", text)
    return Finding("weights", f"Experts' weights are most alike at layer {best['layer']}", text)


def _directions(every: pd.DataFrame) -> str:
    ranks = every[(every["measure"] == "effective_rank") & every["median"].notna()]
    if ranks.empty:
        return ""
    least = row(ranks, (ranks["median"] / ranks["median_redrawn"]).idxmin())
    return (
        f" The fewest directions are used by {least['matrix']} at layer {least['layer']}: an effective rank of "
        f"{number(least['median'])} in the median expert, {number(least['median_redrawn'])} if neurons pointed "
        "anywhere."
    )


FINDINGS: list[Callable[[Results], Finding | None]] = [_weights]
