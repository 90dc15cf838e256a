"""Finding about vocabulary specialization: which reading of a token routing depends on most."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber, count_of, row
from moescope.results.text import percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

READING_NAMES = {"input": "input token", "predicted": "predicted next token", "next": "true next token"}


def _vocabulary(results: Results) -> Finding | None:
    frame = results.table("vocabulary")
    if frame is None or frame.empty:
        return None
    name, independent = "vocabulary_specialization", "vocabulary_specialization_chance"
    # The first ranks listed are top-K; those alone, where a model has K of 1, are top-1.
    frame = frame[(frame["ranks"] == frame["ranks"].iloc[0]) & frame[name].notna() & frame[independent].notna()]
    if frame.empty:
        return None
    excess = frame[name] - frame[independent]
    best = row(frame, excess.idxmax())
    means = excess.groupby(frame["reading"]).mean()
    text = (
        f"At layer {best['layer']} a token type's most frequent expert is selected for {percent(best[name])} of its "
        f"occurrences; independent routing at the same counts: {percent(best[independent])} (mean over "
        f"{count_of(best['num_types'], 'token type')} seen at least {best['min_count']} times; reading: "
        f"{READING_NAMES[best['reading']]})."
    )
    if len(means) > 1:
        listed = ", ".join(
            f"{label} {percent(means[reading])}" for reading, label in READING_NAMES.items() if reading in means
        )
        over = ", mean over layers" if len(set(frame["layer"])) > 1 else ""
        text += f" Excess over independent routing{over}: {listed}."
    if means.max() <= 0:
        title = "Routing is not shown to depend on the token's identity"
        return Finding("vocabulary", title, text, "not shown")
    title = f"Routing depends on the token's identity, most on the {READING_NAMES[str(means.idxmax())]}"
    if len(means) == 1:
        title = f"Routing depends on the identity of the {READING_NAMES[str(means.idxmax())]}"
    return Finding("vocabulary", title, text, "shown")


FINDINGS: list[Callable[[Results], Finding | None]] = [_vocabulary]

KEY_NUMBERS = [
    KeyNumber(
        "vocabulary",
        "vocabulary_specialization",
        "vocabulary",
        "largest share of an input token type's occurrences that one expert has, mean over types",
        share=True,
        chance="vocabulary_specialization_chance",
        where=(("reading", "input"), ("ranks", "top-K")),
    )
]
