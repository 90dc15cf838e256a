"""What the causal atlas can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moescope.errors import UsageError, at_least

Method = Literal["gradient", "exact"]

SAMPLE_TOKENS: dict[Method, int] = {"gradient": 40_000, "exact": 5_000}
"""Tokens of the sample by default."""


@dataclass(frozen=True)
class AtlasOptions:
    """Options of the causal atlas."""

    method: Method = "gradient"
    """gradient: an estimate, from one forward and one backward pass for all experts; exact: ablations, computed again
    from the changed layer on (for all 1,024 experts of nano about a thousand times the time of the gradient)."""

    experts: tuple[int, ...] | None = None
    """Experts of each layer to ablate. Default: all with the exact method; with the gradient a random sample, for
    comparison."""

    sample_tokens: int | None = None
    """Tokens of the sample that effects are measured on, split over the domains; at most the tokens read. Default:
    40,000, or 5,000 with the exact method."""

    num_exact: int = 32
    """With the gradient: experts of all layers, drawn at random, that are also ablated, for comparison with the
    estimate."""

    exact_tokens: int = 4_000
    """With the gradient: tokens of the sample that these are ablated on."""

    named_tokens: int = 8_000
    """With the gradient: the experts named for a domain are ablated on all its documents of the evaluation half, and
    the first of each on so many tokens of the evaluation half of all domains; 0: none is named."""

    def __post_init__(self) -> None:
        if self.method not in SAMPLE_TOKENS:
            raise UsageError(f"`method={self.method}`", expected=f"one of {', '.join(SAMPLE_TOKENS)}")
        at_least(1, sample_tokens=self.sample_tokens, exact_tokens=self.exact_tokens)
        at_least(0, num_exact=self.num_exact, named_tokens=self.named_tokens)
