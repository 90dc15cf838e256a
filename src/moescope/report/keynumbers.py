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


def per_layer(results: Results) -> KeyNumbers:
    """The key numbers that the tables of a folder can give; those of analyses that were not run are left out."""
    entropy, load = pooled(results, "router_entropy"), pooled(results, "usage_load")
    information, vocabulary = results.table("usage_information"), results.table("vocabulary")
    if vocabulary is not None:
        vocabulary = vocabulary[(vocabulary["reading"] == "input") & (vocabulary["ranks"] == "top-K")]
    wanted: list[tuple[pd.DataFrame | None, str, Series]] = [
        (
            entropy,
            "normalized_entropy_mean",
            Series("router entropy", "of the most there could be; at 100 % the router is undecided", [], share=True),
        ),
        (
            entropy,
            "top1_probability_mean",
            Series("top-1 probability", "that the router gives its first choice", [], share=True),
        ),
        (
            load,
            "max_violation",
            Series("MaxVio", "the busiest expert's load over its layer's mean, minus 1; balanced: 0", []),
        ),
        (load, "num_unused_experts", Series("never used", "experts that no token selected", [], total=True)),
        (
            information,
            "mutual_information_share_excess",
            Series(
                "domain information",
                "what the experts tell about the domain, beyond chance, as a share of all there is to know",
                [],
                True,
            ),
        ),
        (
            vocabulary,
            "vocabulary_specialization",
            Series(
                "vocabulary",
                "share of a token type that goes to its own expert, by the token read; chance is not 0",
                [],
                share=True,
            ),
        ),
    ]
    layers = results.manifest.layers
    series = [
        Series(kind.label, kind.meaning, _of_layers(frame, column, layers), kind.share, kind.total)
        for frame, column, kind in wanted
        if frame is not None and len(frame)
    ]
    return KeyNumbers(layers, series)


def pooled(results: Results, table: str, keys: Sequence[str] = ("layer", "expert")) -> pd.DataFrame | None:
    """The rows of a table that pool all domains: a layer's first, should a domain be called "all" too."""
    frame = results.table(table)
    if frame is None:
        return None
    return frame[frame["domain"] == ALL].drop_duplicates([key for key in keys if key in frame.columns])


def _of_layers(frame: pd.DataFrame, column: str, layers: list[int]) -> list[float]:
    """A column of a frame with one row per layer, in the order of `layers`."""
    return [float(value) for value in frame.set_index("layer")[column].reindex(layers)]
