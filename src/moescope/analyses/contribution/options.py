"""Options of `moescope contribution`."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.errors import at_least


@dataclass(frozen=True)
class ContributionOptions:
    """How much is listed of each expert."""

    top_tokens: int = 10
    """Tokens to list of each kind, promoted and suppressed, and of each expert."""

    def __post_init__(self) -> None:
        """Refuses fewer than one token."""
        at_least(1, top_tokens=self.top_tokens)
