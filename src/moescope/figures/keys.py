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
from moescope.figures.style import styled
from moescope.figures.ticks import axis_inches

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
    """Colors the tick labels that are domains by their group; others (such as "all") stay as they are."""
    colors = style.group_colors(groups)
    for tick in ax.get_yticklabels() if axis == "y" else ax.get_xticklabels():
        group = groups.get(tick.get_text())
        if group in colors:
            tick.set_color(style.ink(colors[group]))


@styled
def group_legend(fig: Figure, groups: Mapping[str, str]) -> None:
    """A legend of the groups' colors above the axes, in a row; nothing where there are no groups."""
    colors = style.group_colors(groups)
    handles = [Line2D([], [], marker="s", linestyle="", color=colors[group], label=group) for group in colors]
    if handles:
        fig.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.0, handletextpad=0.1
        )


@styled
def legend_above(ax: Axes) -> None:
    """The legend of what was drawn so far, between title and axes, where it can cover nothing."""
    handles, names = ax.get_legend_handles_labels()
    if not handles:
        return
    widths = [len(str(name)) * 0.055 + 0.42 for name in names]  # inches: mean advance of 7 pt, handle, gap
    room = axis_inches(ax, "x") / 0.75 * 0.85
    columns = len(names) if sum(widths) <= room else max(1, min(len(names), int(room / max(widths))))
    rows = math.ceil(len(names) / columns)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, columnspacing=1.0, borderpad=0.1)
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
    shown = range(0, len(layers), max(1, math.ceil(len(layers) / 16)))
    bar = fig.colorbar(
        ScalarMappable(norm, colors), ax=axes, label="layer", fraction=0.05, pad=0.02, aspect=30, ticks=list(shown)
    )
    bar.ax.set_yticklabels([str(layers[position]) for position in shown])
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
