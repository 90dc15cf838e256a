"""What figures of experts share: matrices of experts by experts per layer, lines beside independent routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from moescope.figures import caption, charts, style, styled
from moescope.figures.ticks import axis_inches, value_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray


MOST_PANELS = 20
MOST_LABELS = 16
MOST_LEAVES_IN_OPTIMAL_ORDER = 256
"""Beyond this the optimal order of leaves takes minutes."""
DASHES = (0, (3, 1.5))


@styled
def against_independent(
    ax: Axes,
    x: ArrayLike,
    measured: Mapping[str, ArrayLike],
    independent: Mapping[str, ArrayLike],
    *,
    ylabel: str | None = None,
    title: str | None = None,
    xlabel: str = "layer",
    legend: bool = True,
) -> None:
    """Lines over layers, each with its value under independent routing dashed in the same color."""
    colors = dict(zip(measured, style.COLORS, strict=False))
    for name, values in independent.items():
        ax.plot(np.asarray(x, float), np.asarray(values, float), color=colors[name], linestyle=DASHES, zorder=1)
        if np.size(x) == 1:  # a line of one point is none
            ax.plot(x, values, color=colors[name], marker="_", markersize=8, linestyle="")
    charts.lines(ax, x, measured, colors=colors, xlabel=xlabel, ylabel=ylabel, title=title, legend=False)
    ax.set_ylim(bottom=0)
    if legend:
        ax.plot([], [], color=style.NEUTRAL, linestyle=DASHES, label="independent routing")
        charts.legend_above(ax)


@styled
def shared_legend(fig: Figure, names: Sequence[str]) -> None:
    """One legend above all panels of `against_independent`."""
    handles = [Line2D([], [], color=c, marker="o", label=n) for n, c in zip(names, style.COLORS, strict=False)]
    handles.append(Line2D([], [], color=style.NEUTRAL, linestyle=DASHES, label="independent routing"))
    charts.top_legend(fig, handles)


def cluster_order(similarity_EE: NDArray[np.floating]) -> tuple[list[int], NDArray[np.floating] | None]:
    """Experts in the order of a dendrogram's leaves, so that similar ones are adjacent, and the dendrogram's tree.

    Average linkage on the distance `s - similarity`, `s` being 1 or the largest similarity of two experts if that is
    larger; optimal leaf order for up to 256 experts. Pairs without a value count as the median pair. Experts with NaN
    on the diagonal come last and are not in the tree.

    Args:
        similarity_EE: Higher is more similar; the mean of both triangles is used.

    Returns:
        All experts, and scipy's linkage matrix; None instead of it for fewer than three experts with values.
    """
    known = np.flatnonzero(np.isfinite(np.diagonal(similarity_EE)))
    missing = np.setdiff1d(np.arange(len(similarity_EE)), known).tolist()
    if len(known) < 3:
        return [*known.tolist(), *missing], None
    values = np.array(similarity_EE[np.ix_(known, known)], dtype=np.float64)
    np.fill_diagonal(values, np.nan)
    finite = np.isfinite(values)
    values = np.where(finite, values, np.median(values[finite]) if finite.any() else 0.0)
    distance = max(1.0, values.max()) - (values + values.T) / 2
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = hierarchy.linkage(condensed, "average")
    if len(known) <= MOST_LEAVES_IN_OPTIMAL_ORDER:
        tree = hierarchy.optimal_leaf_ordering(tree, condensed)
    return [*known[hierarchy.leaves_list(tree)].tolist(), *missing], tree


@styled
def dendrogram(ax: Axes, tree: NDArray[np.floating] | None, num_rows: int) -> None:
    """The tree of `cluster_order` to the left of a heat map's rows, row 0 on top; its root on the left.

    Args:
        ax: Hidden where there is no tree.
        tree: A linkage matrix, or None.
        num_rows: Rows of the heat map, those that are not in the tree included.
    """
    ax.set_ylim(num_rows, 0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if tree is None:
        ax.set_visible(False)
        return
    drawn = hierarchy.dendrogram(tree, no_plot=True)
    # scipy puts leaf i at 5 + 10 i
    lines = [
        np.column_stack([distance, np.asarray(leaf) / 10])
        for leaf, distance in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    ax.add_collection(LineCollection(lines, colors=style.INK, linewidths=0.6))
    low, high = float(tree[:, 2].min()), float(tree[:, 2].max())
    margin = 0.05 * (high - low) or 0.05
    ax.set_xlim(high + margin, max(0.0, low - 2 * margin))
    left, right = sorted(ax.get_xlim())
    value_ticks(ax, left, right, axis_inches(ax, "x"))


def quantiles_over_pairs(values_LP: NDArray[np.floating]) -> tuple[list[float], list[float], list[float]]:
    """5 %, median and 95 % of each row, NaN left out."""
    rows = [values_P[np.isfinite(values_P)] for values_P in values_LP]
    low, middle, high = (
        [float(np.quantile(row, share)) if row.size else np.nan for row in rows] for share in (0.05, 0.5, 0.95)
    )
    return low, middle, high


@styled
def spread(
    ax: Axes,
    x: ArrayLike,
    low: ArrayLike,
    middle: ArrayLike,
    high: ArrayLike,
    *,
    name: str,
    color: str,
    dashed: bool = False,
) -> None:
    """A line over layers and a band around it; at a single layer a point and a bar."""
    if np.size(x) == 1:
        ax.vlines(np.asarray(x) + (0.1 if dashed else 0), low, high, color=color, alpha=0.4, linewidth=4)
        ax.plot(np.asarray(x) + (0.1 if dashed else 0), middle, "_" if dashed else "o", color=color, label=name)
        ax.set_xlim(np.min(x) - 1, np.max(x) + 1)
        ax.set_xticks(np.ravel(x))
        return
    charts.band(ax, x, low, high, color=color)
    if dashed:
        ax.plot(x, middle, color=color, linestyle=DASHES, linewidth=1.1, label=name)
    else:
        charts.lines(ax, x, {name: middle}, colors={name: color}, legend=False)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` positions of `count`, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [int(position) for position in np.unique(np.linspace(0, count - 1, most).round())]


@styled
def matrix_panels(
    matrices: Sequence[NDArray[np.floating]] | NDArray[np.floating],
    titles: Sequence[str],
    about: str,
    *,
    label: str,
    labels: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    xlabel: str,
    ylabel: str,
    vmin: float,
    vmax: float,
    center: float | None = None,
    note: str = "",
) -> Figure:
    """A heat map per layer, all on one color scale, square cells.

    Args:
        matrices: (E, E) each, in the order to show them in; NaN is gray.
        titles: One each.
        about: Model, tokens and corpus, for the line below.
        label: Of the color bar.
        labels: For each matrix the experts that its rows are, and those that its columns are.
        xlabel: What columns are.
        ylabel: What rows are.
        vmin: Lower end of the color scale.
        vmax: Upper end.
        center: Value the colors diverge from, if they do.
        note: For the small print.
    """
    shown = evenly(len(matrices), MOST_PANELS)
    if len(shown) < len(matrices):
        note = f"{len(shown)} of {len(matrices)} layers shown; {note}"
    if len(shown) == 1:
        fig, ax = style.figure("column", 3.1)
        axes = [ax]
    else:
        across = min(len(shown), 4)
        fig, axes = charts.small_multiples(
            len(shown), columns=across, panel_height=1.6 if across == 4 else 5.6 / across + 0.2, around=0.4
        )
    num_experts = len(matrices[0])
    for ax, position in zip(axes, shown, strict=True):
        mesh = charts.heatmap(
            ax,
            matrices[position],
            label=label,
            rows=labels[0][position],
            columns=labels[1][position],
            title=titles[position],
            vmin=vmin,
            vmax=vmax,
            center=center,
            colorbar=False,
        )
        ax.set_aspect("equal")
        if num_experts > MOST_LABELS:  # numbers of reordered experts, thinned out, would say nothing
            ax.set_xticks([])
            ax.set_yticks([])
    charts.panel_colorbar(mesh, axes, label)
    if len(shown) == 1:
        charts.label(axes[0], x=xlabel, y=ylabel)
    else:
        fig.supxlabel(xlabel)
        fig.supylabel(ylabel)
    caption(fig, about, note)
    return fig
