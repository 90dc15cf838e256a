"""Key numbers of each layer: for the terminal, and for the head of the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moescope.analyses import registry
from moescope.analyses.finding import KeyNumber, pooled
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results


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


def per_layer(results: Results) -> KeyNumbers:
    """The key numbers that the tables of a folder can give; those of analyses that were not run are left out."""
    layers = results.manifest.layers
    modules = (entry.part("findings") for entry in registry.ENTRIES)
    sources = [source for module in modules if module is not None for source in getattr(module, "KEY_NUMBERS", ())]
    found = [(source.lead, series) for source in sources if (series := _series(results, source, layers)) is not None]
    leading = any(lead for lead, _ in found)
    return KeyNumbers(layers, [series for lead, series in found if lead == leading])


def _series(results: Results, source: KeyNumber, layers: list[int]) -> Series | None:
    frame = results.table(source.table)
    if frame is not None and "domain" in frame.columns:
        frame = pooled(results, source.table)
    if frame is None:
        return None
    for column, value in source.where:
        frame = frame[frame[column] == value]
    if frame.empty:
        return None
    series = Series(source.label, source.meaning, [], source.share, source.total)
    if source.chance and source.chance in frame.columns:
        chance = series.show(float(frame[source.chance].mean()))
        series = replace(series, meaning=f"{series.meaning}; {chance} {source.by_chance}")
    values = [float(value) for value in frame.set_index("layer")[source.column].reindex(layers)]
    return replace(series, values=values)
