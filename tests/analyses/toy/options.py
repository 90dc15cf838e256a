"""Options of the toy question."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.errors import at_least


@dataclass(frozen=True)
class ToyOptions:
    """How it counts."""

    step: int = 1
    """Count by so many at a time."""

    def __post_init__(self) -> None:
        at_least(1, step=self.step)
