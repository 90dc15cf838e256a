"""Options of `moescope weights`."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.errors import at_least


@dataclass(frozen=True)
class WeightsOptions:
    """How many pairs of experts are compared with hidden neurons matched."""

    pairs: int | None = None
    """Pairs of experts whose hidden neurons are matched in each layer, a random sample if not all; 0: none. Default:
    all where that takes up to about half a minute a layer, else as many as that allows."""

    def __post_init__(self) -> None:
        """Refuses a negative number."""
        at_least(0, pairs=self.pairs)
