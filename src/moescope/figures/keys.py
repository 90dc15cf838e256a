"""What tells a reader which color is what: legends, keys, and the order and color of domains."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.lines import Line2D

from moescope.figures import style
from moescope.figures.fonts import short_names, text_width
from moescope.figures.style import styled
from moescope.figures.ticks import NamedTicks, axis_inches, stride

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def domain_order(domains: Sequence[str], groups: Mapping[str, str]) -> list[int]:
    """Indices that put domains of one group side by side: known groups first, in their order; no group last."""
    ranks = {group: rank for rank, group in enumerate(style.group_colors(groups))}
    return sorted(range(len(domains)), key=lambda i: (ranks.get(groups.get(domains[i], ""), len(ranks)), i))


def group_starts(domains: Sequence[str], groups: Mapping[str, str]) -> list[int]:
    """Positions, in an order of domains, at which another group begins: where a heat map has a gap."""
    of_domains = [groups.get(domain, "") for domain in domains]
    return [position + 1 for position, (before, after) in enumerate(pairwise(of_domains)) if before != after]


@styled
def color_labels(ax: Axes, groups: Mapping[str, str], axis: Literal["x", "y"] = "y") -> None:
    """Colors the tick labels that stand for domains by their group; others (such as "all") stay as they are."""
    colors = style.group_colors(groups)
    which = ax.yaxis if axis == "y" else ax.xaxis
    formatter = which.get_major_formatter()
    labels = which.get_ticklabels()
    names = formatter.names if isinstance(formatter, NamedTicks) else [label.get_text() for label in labels]
    for label, name in zip(labels, names, strict=False):
        group = groups.get(name)
        if group in colors:
            label.set_color(style.ink(colors[group]))


@styled
def group_legend(fig: Figure, groups: Mapping[str, str]) -> None:
    """A legend of the groups' colors above the axes; nothing where there are no groups."""
    if handles := _group_handles(groups):
        top_legend(fig, handles, handletextpad=0.1, handlelength=0.8)


@styled
def key(ax: Axes, groups: Mapping[str, str]) -> None:
    """Legends above the only axes of a figure: the groups' colors, and what was drawn so far with a name."""
    fig = ax.get_figure(root=True)
    if fig is not None:
        group_legend(fig, groups)
    legend_above(ax, over_labels=True)


def _group_handles(groups: Mapping[str, str]) -> list[Line2D]:
    colors = style.group_colors(groups)
    shown = {group: color for group, color in colors.items() if color != style.NEUTRAL}
    if len(shown) < len(colors):
        shown["other groups"] = style.NEUTRAL
    return [Line2D([], [], marker="s", linestyle="", color=color, label=name) for name, color in shown.items()]


@styled
def top_legend(fig: Figure, handles: Sequence[Any], names: Sequence[str] | None = None, **options: Any) -> None:
    """A legend above all axes, in as many rows as it takes; the figure grows by those after the first.

    Args:
        fig: The figure, before its caption is written.
        handles: What the names stand for.
        names: One each, shortened where one is wider than the figure; None: the handles' labels.
        **options: Handed to `Figure.legend`.
    """
    width, height = (float(size) for size in fig.get_size_inches())
    full = [str(handle.get_label()) for handle in handles] if names is None else list(names)
    shown = short_names(full, style.SMALL_FONT_SIZE, style.POINTS * width - 40)
    columns = _columns(shown, width - 0.15)
    rows = math.ceil(len(shown) / columns)
    fig.set_size_inches(width, height + (rows - 1) * _LEGEND_ROW)
    fig.legend(handles, shown, loc="outside upper center", ncols=columns, **{"columnspacing": 1.0} | options)


_LEGEND_ROW = style.SMALL_FONT_SIZE * 1.45 / style.POINTS


def _columns(names: Sequence[str], inches: float) -> int:
    """How many columns of a legend fit side by side."""
    widths = [text_width(name, style.SMALL_FONT_SIZE) / style.POINTS + 0.36 for name in names]  # handle and gap
    return next(
        (columns for columns in range(len(names), 1, -1)
         if sum(max(widths[first :: columns]) for first in range(columns)) <= inches),
        1,
    )  # fmt: skip


@styled
def legend_above(ax: Axes, *, over_labels: bool = False) -> None:
    """The legend of what was drawn so far, between title and axes, where it can cover nothing.

    Args:
        ax: Where.
        over_labels: It may reach over the tick labels on the left, where a figure has no other axes.
    """
    handles, names = ax.get_legend_handles_labels()
    fig = ax.get_figure(root=True)
    if not handles or fig is None:
        return
    room = float(fig.get_size_inches()[0]) - 0.15 if over_labels else axis_inches(ax, "x") / 0.75 * 0.85
    shown = short_names([str(name) for name in names], style.SMALL_FONT_SIZE, style.POINTS * room - 24)
    columns = _columns(shown, room)
    rows = math.ceil(len(names) / columns)
    ax.legend(
        handles,
        shown,
        loc="lower right" if over_labels else "lower left",
        bbox_to_anchor=(1, 1) if over_labels else (0, 1),
        ncols=columns,
        columnspacing=1.0,
        borderpad=0.1,
    )
    title = ax.get_title(loc="left")
    if title:
        ax.set_title(title, pad=5 + rows * style.SMALL_FONT_SIZE * 1.45)


@styled
def depth_colors(layers: Sequence[int]) -> dict[int, str]:
    """A color for each layer, from pale (first) to dark (last), all of them visible on white."""
    shades = np.linspace(0.35, 1.0, len(layers)) if len(layers) > 1 else np.array([0.7])
    colors = colormaps[style.SEQUENTIAL](shades)
    return {layer: to_hex(color) for layer, color in zip(layers, colors, strict=True)}


@styled
def depth_key(fig: Figure, axes: Any, layers: Sequence[int]) -> None:
    """Says which color of `depth_colors` is which layer: a stepped bar beside the axes."""
    if len(layers) < 2:
        return
    colors = ListedColormap(list(depth_colors(layers).values()))
    norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
    room = axis_inches(np.ravel(np.asarray(axes, dtype=object))[0], "y") * len(np.atleast_2d(axes))
    shown = range(0, len(layers), stride(len(layers), room, 0.12))
    bar = fig.colorbar(
        ScalarMappable(norm, colors), ax=axes, label="layer", fraction=0.05, pad=0.02, aspect=30, ticks=list(shown)
    )
    bar.ax.set_yticklabels([str(layers[position]) for position in shown])
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
