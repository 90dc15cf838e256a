"""Histograms of many layers: a panel for each, or all in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moescope.figures import caption, charts
from moescope.figures.bins import densities
from moescope.figures.experts import MOST_PANELS, evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike


# Where the highest peak is this many times the lowest, or the median peak, it would flatten all others.
_UNEVEN = 4.0


def panel_per_layer(
    edges: ArrayLike,
    counts_LX: ArrayLike,
    layers: Sequence[int],
    about: str,
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    cut: float = 5e-4,
    note: str = "",
) -> Figure:
    """Small multiples, one layer each; where peaks differ much, each has its own vertical scale, and the note says so.

    Args:
        edges: Fine edges.
        counts_LX: Counts of each layer, with what lies below and above the edges.
        layers: Their numbers.
        about: Model, tokens and corpus, for the line below.
        xlabel: What was counted, with its unit.
        ylabel: What the height is, with its unit.
        log: Logarithmic axis.
        cut: Share of a layer's values that may lie outside what is drawn, on each side.
        note: For the small print.
    """
    shown = evenly(len(layers), MOST_PANELS)
    bounds, density = densities(edges, np.asarray(counts_LX)[shown], num_bins=50, log=log, cut=cut)
    peaks = density.max(axis=1)
    even = bool(peaks.max() <= _UNEVEN * peaks.min())
    fig, axes = charts.small_multiples(len(shown), sharey=even)
    for ax, position, heights in zip(axes, shown, density, strict=True):
        charts.histogram(ax, bounds, heights, title=f"layer {layers[position]}", log_x=log)
        ax.locator_params(axis="y", nbins=4)
    fig.supxlabel(xlabel)
    fig.supylabel(ylabel)
    notes = [f"{len(shown)} of {len(layers)} layers shown" if len(shown) < len(layers) else "", note]
    notes.append("" if even else "each panel has its own vertical scale")
    caption(fig, about, "; ".join(words for words in notes if words))
    return fig


def all_layers(
    ax: Axes, edges: ArrayLike, counts_LX: ArrayLike, layers: Sequence[int], *, log: bool = False
) -> list[int]:
    """All layers in one panel, colored by depth; the layers are returned whose peaks are cut off at the top."""
    bounds, density = densities(edges, counts_LX, num_bins=70, log=log)
    alone = len(layers) == 1
    for heights, color in zip(density, charts.depth_colors(layers).values(), strict=True):
        charts.histogram(ax, bounds, heights, color=color, filled=alone, steps=alone, log_x=log)
    peaks = density.max(axis=1)
    top = _UNEVEN * float(np.median(peaks))
    if top <= 0 or peaks.max() <= top:
        return []
    ax.set_ylim(0, top)
    return [layer for layer, peak in zip(layers, peaks, strict=True) if peak > top]
