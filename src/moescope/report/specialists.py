"""The most specialized expert of each domain as a chart with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moescope.analyses.usage.findings import best_of_domains
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

AXIS_WIDTH = 300
MOST_ROWS = 24
NO_GROUP = "#858b94"


@dataclass(frozen=True)
class Row:
    """One domain's expert: in words, and where it lies on the axis."""

    layer: int
    expert: int
    domain: str
    color: str
    share: str
    interval: str
    lift: str
    x: float
    low_x: float | None
    high_x: float | None


@dataclass(frozen=True)
class Chart:
    """The rows, best first, and what the axis shows."""

    rows: list[Row]
    top: str
    baseline: str
    baseline_x: float
    groups: dict[str, str]


def specialists(results: Results) -> Chart | None:
    """The chart, from half 1 of the documents; None where there is no table to draw it from."""
    frame = best_of_domains(results)
    if frame is None:
        return None
    frame = frame.head(MOST_ROWS)
    from moescope.figures.style import group_colors

    groups = {domain.label or domain.name: domain.group for domain in results.manifest.domains if domain.group}
    colors = group_colors(groups)
    # The axis ends at the next tenth.
    longest = float(frame[["ci_high", "domain_specialization", "uniform_baseline"]].max().max())
    end = min(1.0, math.ceil(longest * 10) / 10)

    def place(share: float) -> float:
        return round(AXIS_WIDTH * share / end, 1)

    rows = []
    for record in frame.to_dict("records"):
        known = not math.isnan(record["ci_low"])
        rows.append(
            Row(
                layer=int(record["layer"]),
                expert=int(record["expert"]),
                domain=str(record["domain"]),
                color=colors.get(groups.get(record["domain"], ""), NO_GROUP),
                share=percent(record["domain_specialization"]),
                interval=_span(record["ci_low"], record["ci_high"]) if known else "too few documents",
                lift=f"{number(record['lift'])} ×",
                x=place(record["domain_specialization"]),
                low_x=place(record["ci_low"]) if known else None,
                high_x=place(record["ci_high"]) if known else None,
            )
        )
    baseline = float(frame["uniform_baseline"].iloc[0])
    return Chart(rows, percent(end, 0), percent(baseline), place(baseline), colors)


def _span(low: float, high: float) -> str:
    return f"{percent(low).removesuffix(' %')} – {percent(high)}"
