"""Finding about vocabulary: whether routing depends on the identity of a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import (
    Claim,
    KeyNumber,
    chance_of,
    count_of,
    interval_of,
    named_with_ties,
    row,
)
from moescope.measures.multiple import any_of
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

READING_NAMES = {"input": "input token", "predicted": "predicted next token", "next": "true next token"}


def _dependence(results: Results) -> Claim | None:
    frame = results.table("vocabulary_dependence")
    if frame is None or frame.empty:
        return None
    p_value = any_of(frame["dependence_p_value"].tolist())
    tested = frame[frame["dependence"].notna()]
    text = ""
    shown = "Routing depends on the token's identity"
    if len(tested):
        best = row(tested, tested["dependence"].idxmax())
        tied = frame[frame["dependence_tied"] & (frame["reading"] == best["reading"])]["layer"].tolist()
        where = named_with_ties(tied, "layer")
        text = (
            f"Learned on half of the documents and measured on the others, the dependence of the selected experts on "
            f"the {READING_NAMES[best['reading']]} is highest at {where}: {number(best['dependence'])} nats per "
            f"selection ({interval_of(best['dependence_ci_low'], best['dependence_ci_high'])}; independent: 0; "
            f"{chance_of(p_value)} for any layer and reading). The types of a text are those of its topic too: this "
            "does not separate the token from its context."
        )
        low, high = float(frame["difference_ci_low"].iloc[0]), float(frame["difference_ci_high"].iloc[0])
        if low > 0 or high < 0:
            more, less = ("input", "next") if low > 0 else ("next", "input")
            shown += f", more on the {READING_NAMES[more]} than on the {READING_NAMES[less]}"
            text += (
                f" Difference between the two, mean over layers: "
                f"{number(abs(float(frame['difference'].iloc[0])))} nats "
                f"({interval_of(min(abs(low), abs(high)), max(abs(low), abs(high)))})."
            )
    text += _shares(results.table("vocabulary"))
    return Claim(
        "vocabulary",
        shown=shown,
        not_shown="Routing is not shown to depend on the token's identity",
        not_testable="Dependence on the token's identity is not testable with this sample",
        text=text.strip(),
        p_value=p_value,
    )


def _shares(frame: pd.DataFrame | None) -> str:
    """Vocabulary specialization of input tokens on held-out documents, at the layer of the highest."""
    name = "evaluation_half_vocabulary_specialization"
    if frame is None or name not in frame.columns:
        return ""
    # The first ranks listed are top-K; those alone, where a model has K of 1, are top-1.
    frame = frame[(frame["ranks"] == frame["ranks"].iloc[0]) & (frame["reading"] == "input") & frame[name].notna()]
    if frame.empty:
        return ""
    best = row(frame, frame[name].idxmax())
    return (
        f" On held-out documents, the expert that a token type selects most on the selection half is selected for "
        f"{percent(best[name])} of its occurrences at layer {best['layer']}, the highest; independent routing: "
        f"{percent(best[f'{name}_chance'])} (mean over {count_of(best['evaluation_half_num_types'], 'token type')})."
    )


FINDINGS: list[Callable[[Results], Claim | None]] = [_dependence]

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
