"""What a figure shows, in words read off its axes: for those who can't see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.patches import Rectangle, StepPatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TITLES = 4
COLOR_BAR = "<colorbar>"
_KINDS = {
    "heat map": "heat maps",
    "histogram": "histograms",
    "bar chart": "bar charts",
    "scatter plot": "scatter plots",
    "line chart": "line charts",
    "text panel": "text panels",
}


def description(fig: Figure) -> str:
    """Kinds and number of the panels, their titles, axes with units and ranges, colors and legends."""
    shown = [ax for ax in fig.axes if ax.get_visible()]
    panels = [ax for ax in shown if ax.get_label() != COLOR_BAR]
    kinds = Counter(kind for ax in panels if (kind := _kind(ax)))
    counted = [f"{count} {_KINDS[kind]}" if count > 1 else kind for kind, count in kinds.items()]
    sentences = [" and ".join(counted).capitalize() or "Figure"]
    sentences += _listed("Titles", [title.replace("\n", ", ") for ax in panels if (title := ax.get_title(loc="left"))])
    sentences += _listed("Text", [ax.texts[0].get_text() for ax in panels if _kind(ax) == "text panel" and ax.texts])
    drawn = [ax for ax in panels if _kind(ax) != "text panel"]
    sentences += _listed("Horizontal axis", _axes(fig, drawn, "x"))
    sentences += _listed("Vertical axis", _axes(fig, drawn, "y"))
    sentences += _listed("Color", [_range(ax, "y", ax.get_ylabel() or "value") for ax in shown if ax not in panels])
    legends = [*fig.legends, *(legend for ax in panels if (legend := ax.get_legend()) is not None)]
    names = [text.get_text() for legend in legends for text in legend.get_texts()]
    if names:
        sentences.append(f"Legend: {', '.join(dict.fromkeys(names))}")
    return ". ".join(sentences) + "."


def _kind(ax: Axes) -> str:
    of_collections = {type(drawn) for drawn in ax.collections}
    if QuadMesh in of_collections:
        return "heat map"
    if any(isinstance(patch, StepPatch) for patch in ax.patches):
        return "histogram"
    if not ax.axison:
        return "text panel" if ax.texts else ""
    if any(isinstance(patch, Rectangle) for patch in ax.patches):
        return "bar chart"
    if PathCollection in of_collections:
        return "scatter plot"
    return "line chart" if ax.lines or LineCollection in of_collections else "text panel" if ax.texts else ""


def _listed(what: str, values: Iterable[str]) -> list[str]:
    """A sentence of all different values, or the first and the last of many; none where there is none."""
    values = list(dict.fromkeys(values))
    if not values:
        return []
    said = "; ".join(values) if len(values) <= MOST_TITLES else f"{values[0]} to {values[-1]} ({len(values)})"
    return [f"{what}: {said}"]


def _axes(fig: Figure, panels: list[Axes], which: Literal["x", "y"]) -> Iterator[str]:
    shared = fig.get_supxlabel() if which == "x" else fig.get_supylabel()
    for ax in panels:
        formatter = (ax.xaxis if which == "x" else ax.yaxis).get_major_formatter()
        label = (ax.get_xlabel() if which == "x" else ax.get_ylabel()) or shared
        names = getattr(formatter, "names", None)
        if names is not None:
            if any(names):
                label = label or "names"
                yield f"{label}, {names[0]} to {names[-1]}" if len(names) > 1 and not shared else label
        elif label:
            yield _range(ax, which, label)


def _range(ax: Axes, which: Literal["x", "y"], label: str) -> str:
    low, high = sorted(ax.get_xlim() if which == "x" else ax.get_ylim())
    scale = ax.get_xscale() if which == "x" else ax.get_yscale()
    return f"{label}, {low:.3g} to {high:.3g}{', logarithmic' if scale == 'log' else ''}"
