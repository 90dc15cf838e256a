"""What a finding is, the words its sentences are made of, and all that a run found.

A finding is a claim of dependence or difference, with a test; what is merely the level of a number (how even the load
is, how high the entropy) is a fact. Over all claims of a run together, Holm's procedure holds the probability that any
is called shown where nothing depends on anything to 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from moescope.analyses import registry
from moescope.measures.constants import ALL, COVERAGE, MIN_DOCUMENTS, MIN_EFFECTIVE_DOCUMENTS
from moescope.measures.multiple import holm
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

Verdict = Literal["shown", "not shown", "not testable"]
MOST_NAMED = 8
NEEDED = (
    f"A test needs at least {MIN_DOCUMENTS} documents in each half, and an effective number of "
    f"{MIN_EFFECTIVE_DOCUMENTS} (long documents count for more than short ones)."
)


@dataclass(frozen=True)
class Finding:
    """One claim of a run and whether its sample shows it.

    Attributes:
        topic: The analysis it comes from.
        title: What was found, or that it is not shown, in a few words.
        text: The figures, with their uncertainty or their value by chance.
        verdict: Whether the sample shows it.
        p_value: Adjusted for all claims of the run (Holm); None where the sample is too small for a test.
    """

    topic: str
    title: str
    text: str
    verdict: Verdict
    p_value: float | None = None


@dataclass(frozen=True)
class Claim:
    """What a question's tables may show, before it is judged beside the run's other claims.

    Attributes:
        topic: The analysis it comes from.
        shown: Title if the sample shows it.
        not_shown: Title if it does not.
        text: The figures, whatever the verdict.
        p_value: Probability of evidence this strong where the claim is false, one test for the whole claim: what was
            selected among layers, experts or domains was selected on other documents, or is corrected for. NaN where
            the sample is too small.
        not_testable: Title if the sample is too small.
        needed: What a test would take, in a sentence; appended to the text where there is none.
    """

    topic: str
    shown: str
    not_shown: str
    text: str
    p_value: float
    not_testable: str
    needed: str = NEEDED

    def judged(self, adjusted: float) -> Finding:
        """The finding, by the p-value adjusted for all claims."""
        if math.isnan(adjusted):
            return Finding(self.topic, self.not_testable, f"{self.needed} {self.text}".strip(), "not testable")
        if adjusted <= 1 - COVERAGE:
            return Finding(self.topic, self.shown, self.text, "shown", adjusted)
        return Finding(self.topic, self.not_shown, self.text, "not shown", adjusted)


@dataclass(frozen=True)
class Fact:
    """The level of a number in the sample, with no claim about what it depends on.

    Attributes:
        topic: The analysis it comes from.
        title: It, in a few words.
        text: The figures.
    """

    topic: str
    title: str
    text: str


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

    Each question's folder may have a file `findings`, whose `FINDINGS` are functions from results to a claim, a finding
    that needs no test, or None.
    """
    found = list(_made(results, "FINDINGS"))
    claims = [claim for claim in found if isinstance(claim, Claim)]
    adjusted = iter(holm([claim.p_value for claim in claims]))
    return [claim.judged(next(adjusted)) if isinstance(claim, Claim) else claim for claim in found]


def facts(results: Results) -> list[Fact]:
    """The facts that the tables of a run give, from the `FACTS` of the files `findings`."""
    return list(_made(results, "FACTS"))


def _made(results: Results, name: str) -> Iterator[Any]:
    modules = (entry.part("findings") for entry in registry.ENTRIES)
    makers = (make for module in modules if module is not None for make in getattr(module, name, ()))
    return (made for make in makers if (made := make(results)) is not None)


def as_records(made: Iterable[Finding | Fact]) -> list[dict[str, Any]]:
    """Findings or facts as plain dictionaries, as `findings.json` and `facts.json` hold them."""
    return [asdict(finding) for finding in made]


def row(frame: pd.DataFrame, index: Any) -> dict[str, Any]:
    """One row as plain Python values, each of its own column's kind: a row as a Series would make integers floats."""
    values = {str(name): frame[name].loc[index] for name in frame.columns}
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def chance_of(p_value: float) -> str:
    """A p-value in words."""
    return "p < 0.0001" if p_value < 1e-4 else f"p = {number(p_value, 2)}"


def named_with_ties(names: Sequence[Any], noun: str = "") -> str:
    """Those that are not distinguishable from the highest: "layer 3", or "layers 1 to 4 (not distinguishable)"."""
    listed = [str(name) for name in names]
    if len(listed) == 1:
        return f"{noun} {listed[0]}".strip()
    run = all(isinstance(name, int) for name in names) and list(names) == list(range(names[0], names[0] + len(names)))
    words = f"{listed[0]} to {listed[-1]}" if run and len(names) > 2 else names_of(list(names))
    return f"{noun}s {words} (not distinguishable)" if noun else f"{words} (not distinguishable)"


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
