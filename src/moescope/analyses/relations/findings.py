"""What a run found: relations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, row
from moescope.results.text import number

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

OUTPUTS = ("similarity.cka", "similarity.centred_cosine")
TOGETHER = "coactivation.lift"
WEAK = 0.2


def _weights_and_outputs(results: Results) -> Finding | None:
    frame = results.table("relations_pooled")
    if frame is None or frame.empty:
        return None
    frame = frame[frame["first"].str.startswith("weights.") & frame["second"].isin(OUTPUTS)]
    main = frame[frame["first"].str.contains("matched")]
    if main.empty:
        return None
    titles = (
        "Experts with like weights put out alike",
        "Experts with like weights put out somewhat alike",
        "Experts with like weights do not put out alike",
        "Experts with like weights put out less alike than others",
    )
    return Finding("relations", _answer(main, titles), _sentences(frame))


def _outputs_and_selection(results: Results) -> Finding | None:
    frame = results.table("relations_pooled")
    if frame is None or frame.empty:
        return None
    frame = frame[frame["second"] == TOGETHER]
    main = frame[frame["first"].isin(OUTPUTS)]
    if main.empty:
        return None
    titles = (
        "Experts that put out alike are selected together",
        "Experts that put out alike are selected together somewhat more often",
        "Experts that put out alike are selected together no more often than others",
        "Experts that put out alike are selected together less often",
    )
    return Finding("relations", _answer(main, titles), _sentences(frame))


def _answer(frame: pd.DataFrame, titles: Sequence[str]) -> str:
    """One of four: strongly, somewhat, not beyond its null (for any of these measures), or the other way round."""
    surely = frame[(frame["ci_low"] > frame["null_high"]) | (frame["ci_high"] < frame["null_low"])]
    if len(surely) < len(frame) or len(set(surely["rank_correlation"] > 0)) > 1:
        return titles[2] if surely.empty else titles[1] if (surely["rank_correlation"] > 0).all() else titles[3]
    if (surely["rank_correlation"] < 0).all():
        return titles[3]
    return titles[0] if surely["rank_correlation"].min() >= WEAK else titles[1]


def _sentences(frame: pd.DataFrame) -> str:
    parts = []
    for index in frame.index:
        found = row(frame, index)
        ends = f"{number(found['ci_low'], 2)} to {number(found['ci_high'], 2)}"
        parts.append(f"{found['relation']} {number(found['rank_correlation'], 2)} ({ends})")
    first = row(frame, frame.index[0])
    low, high = float(frame["null_low"].min()), float(frame["null_high"].max())
    mean = ", mean over layers" if first["num_layers"] > 1 else ""
    text = (
        f"Rank correlation over the pairs of experts of a layer{mean}, with its 95 % interval over experts: "
        f"{'; '.join(parts)}. With experts permuted they lie within "
        f"{number(low, 2)} to {number(high, 2)}."
    )
    if first["num_layers"] > 1:
        beyond = (frame["num_layers_above_null"] + frame["num_layers_below_null"]).tolist()
        text += f" Outside that, layer by layer, at {_listed(beyond)} of {first['num_layers']} layers."
    return text


def _listed(counts: list[int]) -> str:
    if len(set(counts)) == 1:
        return str(counts[0])
    return f"{', '.join(map(str, counts[:-1]))} and {counts[-1]}"


FINDINGS: list[Callable[[Results], Finding | None]] = [_weights_and_outputs, _outputs_and_selection]
