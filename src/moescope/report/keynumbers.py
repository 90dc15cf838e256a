"""The few numbers that say most about each layer: for the terminal, and for the head of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moescope.report.views import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.report.folder import Results

ALL = "all"
"""The domain of rows that pool the tokens of all domains."""


@dataclass(frozen=True)
class Series:
    """One number for each layer.

    Attributes:
        label: Its name, short enough for a column's head.
        meaning: What it is, in a line.
        values: One per layer; NaN where it is not known.
        share: Shown as a percentage.
        total: What stands for all layers is the sum; else the mean.
    """

    label: str
    meaning: str
    values: list[float]
    share: bool = False
    total: bool = False

    def show(self, value: float) -> str:
        """A value of this series as text."""
        return percent(value) if self.share else number(value)

    @property
    def overall(self) -> float:
        """The number that stands for all layers."""
        known = [value for value in self.values if not math.isnan(value)]
        if not known:
            return math.nan
        return math.fsum(known) if self.total else math.fsum(known) / len(known)

    @property
    def overall_in_words(self) -> str:
        """What `overall` is; empty for one layer."""
        return "" if len(self.values) == 1 else "in all layers" if self.total else "mean over layers"


@dataclass(frozen=True)
class KeyNumbers:
    """Series over the layers looked at."""

    layers: list[int]
    series: list[Series]

    @property
    def columns(self) -> list[str]:
        """Heads of `rows`."""
        return ["layer", *(series.label for series in self.series)]

    @property
    def rows(self) -> list[list[str]]:
        """One row of text per layer: the layer, then each series."""
        return [
            [str(layer), *(series.show(series.values[position]) for series in self.series)]
            for position, layer in enumerate(self.layers)
        ]


@dataclass(frozen=True)
class _Source:
    """Where a series comes from: a table's column; `chance` is the column of its value under independent routing."""

    table: str
    column: str
    label: str
    meaning: str
    share: bool = False
    total: bool = False
    chance: str | None = None


_SOURCES = [
    _Source(
        "router_entropy",
        "normalized_entropy_mean",
        "router entropy",
        "of the most there could be; at 100 % the router is undecided",
        share=True,
    ),
    _Source(
        "router_entropy",
        "top1_probability_mean",
        "top-1 probability",
        "that the router gives its first choice",
        share=True,
    ),
    _Source(
        "usage_load", "max_violation", "MaxVio", "the busiest expert's load over its layer's mean, minus 1; balanced: 0"
    ),
    _Source("usage_load", "num_unused_experts", "never used", "experts that no token selected", total=True),
    _Source(
        "usage_information",
        "mutual_information_share_excess",
        "domain information",
        "what the experts tell about the domain, beyond chance, as a share of all there is to know",
        share=True,
    ),
    _Source(
        "vocabulary",
        "vocabulary_specialization",
        "vocabulary",
        "share of a token type, by the token read, that goes to its own expert",
        share=True,
        chance="vocabulary_specialization_independent",
    ),
]


def per_layer(results: Results) -> KeyNumbers:
    """The key numbers that the tables of a folder can give; those of analyses that were not run are left out."""
    layers = results.manifest.layers
    series = []
    for source in _SOURCES:
        frame = _one_row_a_layer(results, source.table)
        if frame is None or frame.empty:
            continue
        meaning = source.meaning
        if source.chance:
            meaning += f"; {percent(frame[source.chance].mean())} if routing were independent of it"
        values = [float(value) for value in frame.set_index("layer")[source.column].reindex(layers)]
        series.append(Series(source.label, meaning, values, source.share, source.total))
    return KeyNumbers(layers, series)


def _one_row_a_layer(results: Results, table: str) -> pd.DataFrame | None:
    """The rows of a table that stand for whole layers."""
    frame = results.table(table)
    if frame is not None and "domain" in frame.columns:
        return pooled(results, table)
    if frame is not None and "reading" in frame.columns:
        return frame[(frame["reading"] == "input") & (frame["ranks"] == "top-K")]
    return frame


def pooled(results: Results, table: str, keys: Sequence[str] = ("layer", "expert")) -> pd.DataFrame | None:
    """The rows of a table that pool all domains: a layer's first, should a domain be called "all" too."""
    frame = results.table(table)
    if frame is None:
        return None
    return frame[frame["domain"] == ALL].drop_duplicates([key for key in keys if key in frame.columns])
