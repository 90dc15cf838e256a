"""The page's sections: one for each analysis of the run, then whatever else the folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moescope.analyses import registry, words
from moescope.report.views import FigureView, TableView, view_figure, view_table

if TYPE_CHECKING:
    from moescope.results.reading import Results

OTHER = "other"
"""The section of what belongs to no question that is known here."""


@dataclass(frozen=True)
class Section:
    """One analysis on the page."""

    name: str
    title: str
    summary: str
    figures: list[FigureView]
    definitions: dict[str, str]
    tables: list[TableView]

    @property
    def contents(self) -> str:
        """How much there is in it: `4 figures, 2 tables`."""
        counts = ((len(self.figures), "figure"), (len(self.tables), "table"))
        return ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts if count)


def sections(results: Results, *, single_file: bool = False) -> list[Section]:
    """All sections: questions in the registry's order, then those it does not know, then the rest of the folder."""
    ran = results.manifest.analyses
    known = {entry.name: entry.summary for entry in registry.ENTRIES}
    order = [name for name in known if name in ran] + [name for name in ran if name not in known]
    made = []
    for name in [*order, OTHER]:
        section = Section(
            name=name,
            title=words.title(name),
            summary=_without_title(known.get(name, "")),
            # Those of one column first, so that two fit side by side.
            figures=sorted(
                (
                    view_figure(figure, path, words.caption(figure), single_file=single_file)
                    for figure, path in results.figures.items()
                    if _owner(figure, order) == name
                ),
                key=lambda view: view.wide,
            ),
            definitions=words.definitions(name),
            tables=[
                view_table(table, frame, path, single_file=single_file)
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
    """The question a table or figure belongs to: the one with the longest prefix of its name."""
    fitting = {
        prefix: name
        for name in names
        for prefix in words.file_prefixes(name)
        if file == prefix or file.startswith(prefix if prefix.endswith("_") else f"{prefix}_")
    }
    return fitting[max(fitting, key=len)] if fitting else OTHER
