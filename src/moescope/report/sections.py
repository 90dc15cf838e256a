"""The page's sections: one for each analysis of the run, then whatever else the folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moescope import analyses
from moescope.report import words
from moescope.report.views import FigureView, TableView, view_figure, view_table

if TYPE_CHECKING:
    from moescope.results.reading import Results

ELSE = "other"
RELATIONS = "relations"
BETWEEN = {
    RELATIONS: "Relations: whether experts that are alike in one way are alike in another; a rank correlation for each "
    "pair of answers that this run has."
}
"""What comes of several analyses together: name and summary."""

# Files whose name does not begin with their analysis' name.
_BELONGS_TO = {
    "router_": "entropy",
    "routing_": "distributions",
    "weights_by_rank": "distributions",
    "specialists": "usage",
    "promoted_": "contribution",
    "mean_outputs": "contribution",
}


@dataclass(frozen=True)
class Section:
    """One analysis on the page."""

    name: str
    title: str
    summary: str
    figures: list[FigureView]
    definitions: dict[str, str]
    tables: list[TableView]


def sections(results: Results) -> list[Section]:
    """All sections, in the order a reader wants them: the known analyses, then newer ones, then the rest."""
    ran = [*results.manifest.analyses, *(name for name in BETWEEN if name in results.tables)]
    order = [name for name in words.known() if name in ran] + [name for name in ran if name not in words.known()]
    summaries = analyses.summaries() | BETWEEN
    made = []
    for name in [*order, ELSE]:
        section = Section(
            name=name,
            title=words.title(name),
            summary=_without_title(summaries.get(name, "")),
            # Those of one column first, so that two fit side by side.
            figures=sorted(
                (
                    view_figure(figure, path, words.caption(figure))
                    for figure, path in results.figures.items()
                    if _owner(figure, order) == name
                ),
                key=lambda view: view.wide,
            ),
            definitions=words.definitions(name),
            tables=[
                view_table(table, frame, path)
                for table, path in results.tables.items()
                if _owner(table, order) == name and (frame := results.table(table)) is not None
            ],
        )
        if section.figures or section.tables:
            made.append(section)
    return made


def _without_title(summary: str) -> str:
    """A summary without the "Title: " that would stand below the same title."""
    rest = summary.partition(": ")[2] or summary
    return rest[:1].upper() + rest[1:]


def _owner(file: str, names: list[str]) -> str:
    """The analysis a table or figure belongs to, by its name."""
    for start, name in _BELONGS_TO.items():
        if file.startswith(start) and name in names:
            return name
    fitting = [name for name in names if file == name or file.startswith(f"{name}_")]
    return max(fitting, key=len, default=ELSE)
