"""What a run found: vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, row
from moescope.results.text import percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

READINGS = {"input": "the token read", "predicted": "the token predicted", "next": "the token that comes next"}


def _vocabulary(results: Results) -> Finding | None:
    frame = results.table("vocabulary")
    if frame is None or frame.empty:
        return None
    name, chance = "vocabulary_specialization", "vocabulary_specialization_independent"
    # The first ranks listed are top-K; those alone, where a model has K of 1, are top-1.
    frame = frame[(frame["ranks"] == frame["ranks"].iloc[0]) & frame[name].notna() & frame[chance].notna()]
    if frame.empty:
        return None
    excess = frame[name] - frame[chance]
    best = row(frame, excess.idxmax())
    means = excess.groupby(frame["reading"]).mean()
    text = (
        f"At layer {best['layer']} a token type's own expert gets {percent(best[name])} of its occurrences, where "
        f"independent routing at the same counts would give {percent(best[chance])} (mean over "
        f"{count_of(best['num_types'], 'token type')} seen at least {best['min_count']} times, by "
        f"{READINGS[best['reading']]})."
    )
    if len(means) > 1:
        listed = ", ".join(
            f"{words} {percent(means[reading])}" for reading, words in READINGS.items() if reading in means
        )
        over = ", mean over layers" if len(set(frame["layer"])) > 1 else ""
        text += f" Excess over independent routing{over}: {listed}."
    if means.max() <= 0:
        return Finding("vocabulary", "Experts do not specialise in token types", text)
    return Finding("vocabulary", f"Experts follow {READINGS[str(means.idxmax())]}", text)


FINDINGS: list[Callable[[Results], Finding | None]] = [_vocabulary]
