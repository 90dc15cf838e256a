"""What a finding is, and the words its sentences are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moescope.report import words
from moescope.report.views import number, percent

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        topic: The analysis it comes from.
        title: What was found, in a few words.
        text: The figures, with their uncertainty or their value by chance.
    """

    topic: str
    title: str
    text: str

    @property
    def label(self) -> str:
        """The topic as a heading."""
        return words.title(self.topic)


def row(frame: pd.DataFrame, index: Any) -> dict[str, Any]:
    """One row as plain Python values, each of its own column's kind: a row as a Series would make integers floats."""
    values = {str(name): frame[name].loc[index] for name in frame.columns}
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def interval_of(low: float, high: float, share: bool = False) -> str:
    """An interval in words, as a percentage where it is one of shares."""
    if math.isnan(low) or math.isnan(high):
        return "too few documents for an interval"
    show = percent if share else number
    return f"95 % interval {show(low).removesuffix(' %')} to {show(high)}"


def count_of(count: float, noun: str) -> str:
    """So many of something."""
    return f"{int(count):,} {noun}{'' if count == 1 else 's'}"


def names_of(names: list[Any]) -> str:
    """Names in a row, the first `MOST_NAMED` of them."""
    shown = ", ".join(str(name) for name in names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown
