"""The few chart forms that all figures share. Every function draws into axes made by `style.figure`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from moescope.figures import style
from moescope.figures.keys import (
    color_labels,
    depth_colors,
    depth_key,
    domain_order,
    group_legend,
    group_starts,
    key,
    legend_above,
    top_legend,
)
from moescope.figures.style import styled
from moescope.figures.ticks import axis_inches, cell_labels, color_scale, integer_ticks, name_ticks, power_of_ten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "band",
    "bars",
    "color_labels",
    "depth_colors",
    "depth_key",
    "domain_order",
    "group_legend",
    "group_starts",
    "heatmap",
    "histogram",
    "key",
    "label",
    "legend_above",
    "lines",
    "log_ticks",
    "name_ticks",
    "panel_colorbar",
    "small_multiples",
    "top_legend",
]


@styled
def label(ax: Axes, *, x: str | None = None, y: str | None = None, title: str | None = None) -> None:
    """Sets axis labels (with their units, e.g. "entropy (nats)") and title."""
    if x is not None:
        ax.set_xlabel(x)
    if y is not None:
        ax.set_ylabel(y)
    if title is not None:
        ax.set_title(title)


@styled
def heatmap(
    ax: Axes,
    matrix: ArrayLike,
    *,
    label: str,
    rows: Sequence[Any] | NDArray[Any] | None = None,
    columns: Sequence[Any] | NDArray[Any] | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    center: float | None = None,
    row_gaps: Sequence[int] = (),
    column_gaps: Sequence[int] = (),
    groups: Mapping[str, str] | None = None,
    colorbar: bool = True,
) -> QuadMesh:
    """A matrix as colored cells, row 0 on top; cells without a number are gray.

    Args:
        ax: Where to draw.
        matrix: (rows, columns); NaN where there is none.
        label: Of the color bar, with its unit.
        rows: Label of each row; None: its index. Thinned where there is no room for all.
        columns: Label of each column; None: its index. Words are set upright.
        xlabel: Name of the horizontal axis.
        ylabel: Name of the vertical axis.
        title: Above the axes.
        vmin: Value of the palest color; None: the least.
        vmax: Value of the darkest; None: the greatest.
        center: A value that is neither high nor low (0, or 1 for a lift): colors diverge from it.
        row_gaps: Rows above which a white line separates, e.g. where a group of domains begins.
        column_gaps: The same for columns.
        groups: Domain -> group: colors the row and column labels that are domains.
        colorbar: False to draw it yourself (one for several panels): `panel_colorbar`.

    Returns:
        The mesh, for a color bar of one's own.
    """
    values = np.ma.masked_invalid(np.asarray(matrix, dtype=float))
    norm, colors = color_scale(values, vmin, vmax, center)
    mesh = ax.pcolormesh(values, cmap=colors, norm=norm, rasterized=True)
    ax.set_facecolor(style.MISSING)
    ax.set_ylim(values.shape[0], 0)
    ax.set_xlim(0, values.shape[1])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, pad=2)
    for gap in row_gaps:
        ax.axhline(gap, color="white", linewidth=1.2)
    for gap in column_gaps:
        ax.axvline(gap, color="white", linewidth=1.2)
    cell_labels(ax, "y", values.shape[0], rows)
    cell_labels(ax, "x", values.shape[1], columns)
    _label(ax, xlabel, ylabel, title)
    if groups:
        color_labels(ax, groups, "y")
        color_labels(ax, groups, "x")
    if colorbar:
        panel_colorbar(mesh, ax, label)
    return mesh


@styled
def panel_colorbar(mesh: QuadMesh, axes: Any, label: str) -> None:
    """One color bar, labeled with name and unit, for one or several panels (`axes`: an Axes or an array of them)."""
    first = np.ravel(np.asarray(axes, dtype=object))[0]
    bar = first.figure.colorbar(mesh, ax=axes, fraction=0.06, pad=0.02, aspect=28, label=label)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.ax.tick_params(length=2)
    bar.update_ticks()


@styled
def lines(
    ax: Axes,
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    colors: Mapping[str, str] | None = None,
    baseline: tuple[str, float] | None = None,
    integers: bool = True,
    legend: bool = True,
    ylim: tuple[float | None, float | None] | None = None,
    log_y: bool = False,
) -> None:
    """Lines with markers over x, one a series, and a translucent band around those that have one.

    Args:
        ax: Where to draw.
        x: Shared by all series (layers, ranks).
        series: Name -> values; NaN leaves a gap.
        xlabel: Name and unit of x; None where the figure names a shared axis.
        ylabel: Name and unit of the values; likewise.
        title: Above the axes.
        bands: Name of a series -> (low, high); the same name may not have two: draw a second band with `band`.
        colors: Name -> color; others take the next of `style.COLORS`.
        baseline: (words, value): a dashed horizontal line, such as what chance would give.
        integers: x are whole numbers (layers): ticks only at them.
        legend: Names the series; drawn only where there are two or more, or a baseline.
        ylim: Limits of the values; None at either end: as matplotlib finds.
        log_y: Logarithmic values, all of them positive.
    """
    x = np.asarray(x, dtype=float)
    for position, (name, values) in enumerate(series.items()):
        color = (colors or {}).get(name, style.COLORS[position % len(style.COLORS)])
        marker = "o" if len(x) <= 40 else ""
        ax.plot(x, np.asarray(values, dtype=float), marker=marker, color=color, label=name)
        if bands and name in bands:
            band(ax, x, *bands[name], color=color)
    if baseline is not None:
        ax.axhline(baseline[1], color=style.NEUTRAL, linewidth=0.8, linestyle=(0, (4, 2)), label=baseline[0], zorder=1)
    if integers:
        ax.xaxis.set_major_locator(FixedLocator(integer_ticks(x, axis_inches(ax, "x"))))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    # Where nothing is positive (a margin that does not exist, say) there is nothing to draw on a logarithmic axis.
    log_y = log_y and any((np.asarray(values, float) > 0).any() for values in series.values())
    if log_y:
        ax.set_yscale("log")
    if ylim is not None:
        ax.set_ylim(*ylim)
    if log_y:
        log_ticks(ax, "y")
    ax.grid(axis="y")
    _label(ax, xlabel, ylabel, title)
    if legend and len(series) + (baseline is not None) > 1:
        legend_above(ax)


@styled
def band(ax: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, *, color: str, label: str | None = None) -> None:
    """A translucent band from low to high; bands laid over each other darken. A bar where x is a single value."""
    x, low, high = (np.atleast_1d(np.asarray(values, dtype=float)) for values in (x, low, high))
    if len(x) == 1:
        ax.vlines(x, low, high, color=color, alpha=0.25, linewidth=6, label=label or "", zorder=1.5)
    else:
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, label=label, zorder=1.5)


@styled
def histogram(
    ax: Axes,
    edges: ArrayLike,
    counts: ArrayLike,
    *,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
    name: str | None = None,
    color: str = style.COLORS[0],
    filled: bool = True,
    steps: bool = True,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """A histogram whose bins are already counted, as a step line, filled or not.

    Args:
        ax: Where to draw.
        edges: (n + 1,) bin edges, ascending.
        counts: (n,) height of each bin: counts, or shares (`y` must say which).
        xlabel: Name and unit of what was binned; None where the figure names a shared axis.
        ylabel: What the height is; likewise.
        title: Above the axes.
        name: For a legend; call `legend_above` when all are drawn.
        color: Of line and filling.
        filled: Whether the area is tinted.
        steps: False for a thin line through the bins' centers: many histograms in one panel.
        log_x: Edges are spaced evenly in log10: a logarithmic axis.
        log_y: Logarithmic heights.
    """
    edges, counts = np.asarray(edges, dtype=float), np.asarray(counts, dtype=float)
    positive = counts[counts > 0]
    bottom = float(positive.min()) / 2 if log_y and positive.size else 0.0
    if log_y:
        counts = np.maximum(counts, bottom)  # an empty bin lies on the floor of the axis, not at minus infinity
    if filled:
        ax.stairs(counts, edges, baseline=bottom, fill=True, color=color, alpha=0.25, linewidth=0)
    if steps:
        ax.stairs(counts, edges, baseline=bottom, color=color, linewidth=1.0, label=name)
    else:
        centers = np.sqrt(edges[:-1] * edges[1:]) if log_x else (edges[:-1] + edges[1:]) / 2
        ax.plot(centers, counts, color=color, linewidth=0.8, label=name)
    if log_x:
        ax.set_xscale("log")
        log_ticks(ax, "x")
    if log_y:
        ax.set_yscale("log")
        log_ticks(ax, "y")
    _label(ax, xlabel, ylabel, title)


@styled
def bars(
    ax: Axes,
    names: Sequence[str],
    values: ArrayLike,
    *,
    xlabel: str,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    colors: str | Sequence[str] = style.COLORS[0],
    groups: Mapping[str, str] | None = None,
    baseline: tuple[str, float] | None = None,
    title: str | None = None,
    details: Sequence[str] | None = None,
    unknown: str = "",
    legend: bool = True,
    **labels: float,
) -> None:
    """Horizontal bars, the first on top, each with its interval; those without one are hollow.

    Args:
        ax: Where to draw.
        names: Label of each bar; long ones are shortened in the middle.
        values: Length of each bar.
        xlabel: Name and unit of the values.
        low: Lower ends of the intervals; NaN where there is none.
        high: Upper ends.
        colors: One for all, or one each.
        groups: Domain -> group: colors bars and labels that are domains (over `colors`).
        baseline: (words, value): a dashed vertical line, such as what chance would give.
        title: Above the axes.
        details: What follows each name in its label and is never shortened.
        unknown: Why hollow bars have no interval, for the legend.
        legend: False to draw it yourself: `key`.
        **labels: `size` and `room` of the labels, see `name_ticks`.
    """
    values = np.asarray(values, dtype=float)
    positions = np.arange(len(values))
    each = [colors] * len(values) if isinstance(colors, str) else list(colors)
    if groups:
        palette = style.group_colors(groups)
        each = [palette.get(groups.get(name, ""), color) for name, color in zip(names, each, strict=True)]
    drawn = ax.barh(positions, values, height=0.72, color=each)
    if low is not None and high is not None:
        low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        ax.hlines(positions, low, high, color=style.INK, linewidth=0.9)
        hollow = np.flatnonzero(np.isnan(low) | np.isnan(high))
        for position in hollow:
            drawn.patches[position].set(facecolor="white", edgecolor=each[position], linewidth=1.0)
        if unknown and np.isfinite(values[hollow]).any():
            ax.plot([], [], "s", markersize=5, color="white", markeredgecolor=style.NEUTRAL, label=unknown)
    if baseline is not None:
        ax.axvline(baseline[1], color=style.NEUTRAL, linewidth=0.8, linestyle=(0, (4, 2)), label=baseline[0])
    ax.set_ylim(len(values) - 0.5, -0.5)
    name_ticks(ax, "y", positions.tolist(), [str(name) for name in names], details, **labels)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if groups:
        color_labels(ax, groups)
    _label(ax, xlabel, None, title)
    if legend:
        legend_above(ax)


@styled
def small_multiples(
    count: int,
    *,
    columns: int | None = None,
    panel_height: float | None = None,
    around: float = 0.4,
    width: Literal["column", "page"] = "page",
    sharex: bool = True,
    sharey: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A grid of equal panels, as many as asked; panels with others below or beside them show no tick labels.

    Args:
        count: Number of panels.
        columns: Panels side by side; None: up to 4 across the page, 2 across a column.
        panel_height: Inches of each row; None: 1.15, or 1.6 where there is only one.
        around: Inches for axis names.
        width: "column" or "page".
        sharex: All panels have the same horizontal axis.
        sharey: All panels have the same vertical axis.

    Returns:
        The figure and its `count` axes, row by row. Name the shared axes with `fig.supxlabel`, `fig.supylabel`.
    """
    columns = columns or min(count, 4 if width == "page" else 2)
    rows = math.ceil(count / columns)
    panel_height = panel_height or (1.15 if rows > 1 else 1.6)
    fig, grid = style.figure(
        width, rows * panel_height + around, rows, columns, squeeze=False, sharex=sharex, sharey=sharey
    )
    axes = list(grid.flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[max(0, count - columns) : count]:
        ax.tick_params(labelbottom=True)
    return fig, axes[:count]


@styled
def log_ticks(ax: Axes, axis: Literal["x", "y"]) -> None:
    """Ticks at powers of ten, written 10⁻³; also at 2 and 5, or wherever numbers are round, where the axis is short."""
    which = ax.xaxis if axis == "x" else ax.yaxis
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    ratio = high / low if low > 0 else np.inf
    most = max(3, int(axis_inches(ax, axis) / 0.4))
    if ratio < 4:
        which.set_major_locator(MaxNLocator(min(most - 1, 4)))
    else:
        which.set_major_locator(LogLocator(10, (1, 2, 5) if ratio < 50 else (1,), numticks=most))
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(FuncFormatter((lambda value, _: f"{value:g}") if ratio < 50 else power_of_ten))


def _label(ax: Axes, xlabel: str | None, ylabel: str | None, title: str | None) -> None:
    label(ax, x=xlabel, y=ylabel, title=title)
