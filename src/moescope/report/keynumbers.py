"""The few numbers that say most about each layer: for the terminal, and for the head of the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moescope.analyses.finding import pooled
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


@dataclass(frozen=True)
class _Source:
    """Where a series comes from: a table's column, and which of its rows.

    `chance` is the column of its value for no reason, `by_chance` what that reason is. `lead`: shown in every run; the
    others only where there is no leading one.
    """

    table: str
    column: str
    label: str
    meaning: str
    share: bool = False
    total: bool = False
    chance: str | None = None
    where: tuple[tuple[str, str | int], ...] = ()
    lead: bool = True
    by_chance: str = "if routing were independent of it"


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
        chance="vocabulary_specialization_chance",
        where=(("reading", "input"), ("ranks", "top-K")),
    ),
    _Source(
        "routing_distributions",
        "std",
        "logit spread",
        "standard deviation of the router's logits",
        where=(("quantity", "logit"),),
        lead=False,
    ),
    _Source(
        "weights_by_rank",
        "weight_mean",
        "first weight",
        "mean weight that the model applies to the first-ranked expert",
        where=(("rank", 0),),
        lead=False,
    ),
    _Source(
        "overlap",
        "mean",
        "overlap (Jaccard)",
        "of the tokens of either of two experts, the share of both, mean over pairs",
        share=True,
        chance="mean_chance",
        where=(("measure", "jaccard"),),
        lead=False,
    ),
    _Source(
        "overlap",
        "mean",
        "vocabulary overlap",
        "weighted Jaccard of two experts' token types, mean over pairs",
        share=True,
        chance="mean_chance",
        where=(("measure", "weighted_jaccard"),),
        lead=False,
    ),
    _Source(
        "coactivation", "lift_q95", "lift, top 5 %", "of co-activation: a twentieth of the pairs exceed it", lead=False
    ),
    _Source(
        "paths",
        "top1_nmi",
        "to the next layer",
        "normalized mutual information with the first-ranked expert of the next layer looked at",
        chance="top1_nmi_chance",
        lead=False,
    ),
    *(
        _Source(
            "similarity",
            "median",
            name,
            f"{name} of two experts' outputs, median pair",
            chance="median_control",
            where=(("measure", measure),),
            lead=False,
            by_chance="with re-drawn weights",
        )
        for measure, name in (("cka", "debiased CKA"), ("deconfounded_cka", "deconfounded CKA"), ("cosine", "cosine"))
    ),
    _Source(
        "weights",
        "median",
        "alike in weights",
        "cosine of two experts' weights, neurons matched, the median pair",
        chance="median_control",
        where=(("matrix", "joined"), ("measure", "matched_cosine")),
        lead=False,
        by_chance="for neurons as long that point anywhere",
    ),
    _Source(
        "weights",
        "median",
        "effective rank",
        "directions that the up matrix of the median expert uses",
        chance="median_control",
        where=(("matrix", "up"), ("measure", "effective_rank")),
        lead=False,
        by_chance="for neurons as long that point anywhere",
    ),
]


def per_layer(results: Results) -> KeyNumbers:
    """The key numbers that the tables of a folder can give; those of analyses that were not run are left out."""
    layers = results.manifest.layers
    found = [(source.lead, series) for source in _SOURCES if (series := _series(results, source, layers)) is not None]
    leading = any(lead for lead, _ in found)
    return KeyNumbers(layers, [series for lead, series in found if lead == leading])


def _series(results: Results, source: _Source, layers: list[int]) -> Series | None:
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
