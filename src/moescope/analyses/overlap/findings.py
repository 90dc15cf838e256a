"""Key numbers of the overlap of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber

if TYPE_CHECKING:
    from moescope.results.reading import Results

FINDINGS: list[Callable[[Results], Finding | None]] = []

KEY_NUMBERS = [
    KeyNumber(
        "overlap",
        "mean",
        "overlap (Jaccard)",
        "share of the tokens of either of two experts that both are selected for, mean over pairs",
        share=True,
        chance="mean_chance",
        where=(("measure", "jaccard"),),
        lead=False,
    ),
    KeyNumber(
        "overlap",
        "mean",
        "vocabulary overlap",
        "weighted Jaccard of two experts' token types, mean over pairs",
        share=True,
        chance="mean_chance",
        where=(("measure", "weighted_jaccard"),),
        lead=False,
    ),
]
