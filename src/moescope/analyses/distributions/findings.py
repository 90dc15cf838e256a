"""Key numbers of the routing distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber

if TYPE_CHECKING:
    from moescope.results.reading import Results

FINDINGS: list[Callable[[Results], Finding | None]] = []

KEY_NUMBERS = [
    KeyNumber(
        "routing_distributions",
        "std",
        "logit spread",
        "standard deviation of the router's logits",
        where=(("quantity", "logit"),),
        lead=False,
    ),
    KeyNumber(
        "weights_by_rank",
        "weight_mean",
        "first weight",
        "mean applied weight of the first-ranked expert",
        where=(("rank", 0),),
        lead=False,
    ),
]
