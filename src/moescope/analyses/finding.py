"""What a finding is, the words its sentences are made of, and all that a run found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from moescope.analyses import registry
from moescope.measures.constants import ALL
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

Verdict = Literal["shown", "not shown", "not testable"]
MOST_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        topic: The analysis it comes from.
        title: What was found, in a few words.
        text: The figures, with their uncertainty or their value by chance.
        verdict: Whether the sample shows it.
    """

    topic: str
    title: str
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class KeyNumber:
    """One number of each layer, for the terminal and the head of the page.

    A question's folder may have a list `KEY_NUMBERS` in its file `findings`.

    Attributes:
        table: The table it is in.
        column: Its column.
        label: Its name, short enough for the head of a column.
        meaning: What it is, in a line.
        share: Shown as a percentage.
        total: What stands for all layers is the sum; else the mean.
        chance: Column of its chance level, baseline or null.
        by_chance: What that is, in words.
        where: Values of other columns that choose the rows.
        lead: Shown in every run; the others only where there is none that leads.
    """

    table: str
    column: str
    label: str
    meaning: str
    share: bool = False
    total: bool = False
    chance: str | None = None
    by_chance: str = "under independent routing"
    where: tuple[tuple[str, str | int], ...] = ()
    lead: bool = True


def find(results: Results) -> list[Finding]:
    """All findings that the tables of a run give, question by question; a table that is missing brings none.

    Each question's folder may have a file `findings`, whose `FINDINGS` are functions from results to a finding or None.
    """
    modules = (entry.part("findings") for entry in registry.ENTRIES)
    makers = [make for module in modules if module is not None for make in module.FINDINGS]
    return [finding for make in makers if (finding := make(results)) is not None]


def as_records(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Findings as plain dictionaries, as `findings.json` holds them."""
    return [asdict(finding) for finding in findings]


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


def pooled(results: Results, table: str, keys: Sequence[str] = ("layer", "expert")) -> pd.DataFrame | None:
    """The rows of a table that pool all domains: a layer's first, should a domain be called "all" too."""
    frame = results.table(table)
    if frame is None:
        return None
    return frame[frame["domain"] == ALL].drop_duplicates([key for key in keys if key in frame.columns])
