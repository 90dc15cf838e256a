"""Figures of expert weights: cosines over layers, heat maps with a dendrogram, singular spectra, effective ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moescope.analyses.weights.matching import JOINED
from moescope.analyses.weights.table import BASELINE
from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import DASHES, cluster_order, dendrogram, evenly, quantiles_over_pairs, spread

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.analyses.base import Drawing

MOST_MAPS = 4
"""Layers with a heat map of their own at most: the first, the last, and some between."""
CONTROL = "random directions"
CONTROL_NOTE = f"{CONTROL}: neurons with random directions and matched norms"
_PANELS = {
    f"{JOINED}_matched_cosine": "neurons matched",
    f"{JOINED}_cosine": "as stored",
    "router_cosine": "router rows",
}


def drawings(table: xr.Dataset, about: str) -> Iterator[Drawing]:
    """All figures.

    Args:
        table: The weights' table.
        about: The model, for the line below: no text was needed for any of them.
    """
    yield "weights_by_layer", partial(by_layer, table, about)
    for position in evenly(table.sizes["layer"], MOST_MAPS):
        at = table.isel(layer=position)
        yield f"weights_layer_{int(at['layer'])}", partial(clustered_map, at, about)
    yield "weights_effective_rank", partial(effective_ranks, table, about)
    yield "weights_spectra", partial(spectra, table, about)


@styled
def by_layer(table: xr.Dataset, about: str) -> Figure:
    """Cosines of pairs over layers, with neurons matched, as stored, and of router rows."""
    shown = {name: title for name, title in _PANELS.items() if np.isfinite(_pairs(table, name)).any()}
    fig, axes = style.figure("page", 2.2, 1, len(shown), squeeze=False, sharey=True)
    for ax, (name, title) in zip(axes[0], shown.items(), strict=True):
        quantiles = quantiles_over_pairs(_pairs(table, name))
        spread(ax, table["layer"].values, *quantiles, name="pairs of experts", color=style.COLORS[0])
        quantiles = quantiles_over_pairs(_pairs(table, name + BASELINE))
        spread(ax, table["layer"].values, *quantiles, name=CONTROL, color=style.NEUTRAL, dashed=True)
        charts.label(ax, x="layer", y="cosine of weights" if ax is axes[0][0] else None, title=title)
    handles, names = axes[0][0].get_legend_handles_labels()
    charts.top_legend(fig, handles, names)
    note = "gate, up and down joined, neurons matched or as stored, and router rows; " if len(shown) == 3 else ""
    note += (
        f"lines: median pair, bands: 5-95 % of pairs{_sampled(table)}; {CONTROL}: neurons (router rows) with random "
    )
    caption(fig, about, f"{note}directions and matched norms")
    return fig


def _pairs(table: xr.Dataset, name: str) -> np.ndarray:
    if name not in table:
        return np.empty((0, 0))
    if "other_expert" not in table[name].dims:
        return np.asarray(table[name].values)
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    return np.asarray(table[name].values[:, i_P, j_P])


def _sampled(table: xr.Dataset) -> str:
    most = table.sizes["expert"] * (table.sizes["expert"] - 1) // 2
    fewest = int(table["num_pairs_matched"].min())
    return f"; matched in {fewest:,} of {most:,} pairs, a random sample" if 0 < fewest < most else ""


@styled
def clustered_map(at: xr.Dataset, about: str) -> Figure:
    """One layer's cosines of pairs, in the order of the dendrogram on the left."""
    most = at.sizes["expert"] * (at.sizes["expert"] - 1) // 2
    matched = int(at["num_pairs_matched"]) == most
    first = f"{JOINED}_matched_cosine" if matched else f"{JOINED}_cosine"
    order, tree = cluster_order(at[first].values)
    shown_EE = at[first].values[np.ix_(order, order)].copy()
    np.fill_diagonal(shown_EE, np.nan)
    words = "cosine of weights, " + ("neurons matched" if matched else "as stored")
    finite = shown_EE[np.isfinite(shown_EE)]
    low, high = (float(value) for value in np.quantile(finite, (0.005, 0.995))) if finite.size else (0.0, 1.0)
    fig, (left, ax) = style.figure("page", 6.1, 1, 2, width_ratios=[1, 6.2])
    dendrogram(left, tree, len(order))
    charts.label(left, x="1 - cosine")
    mesh = charts.heatmap(
        ax,
        shown_EE,
        label=words,
        rows=order,
        columns=order,
        xlabel="expert, in the order of the dendrogram",
        title=f"layer {int(at['layer'])}: {words}",
        vmin=low,
        vmax=high,
        center=None if low >= 0 else 0.0,
        colorbar=False,
    )
    charts.panel_colorbar(mesh, [ax], words)
    control = at[first + BASELINE].values
    mean = float(np.nanmean(control)) if np.isfinite(control).any() else np.nan
    note = (
        f"gate, up and down joined; {CONTROL} with matched norms: mean {mean:.2f}; average linkage; diagonal left out"
    )
    caption(fig, about, f"{note}; colors end at 0.5 and 99.5 % of pairs")
    return fig


@styled
def effective_ranks(table: xr.Dataset, about: str) -> Figure:
    """Effective ranks of experts' matrices over layers."""
    names = [name for name in ("gate", "up", "down") if f"{name}_effective_rank" in table]
    fig, axes = style.figure("page", 2.2, 1, len(names), squeeze=False, sharey=True)
    for ax, name in zip(axes[0], names, strict=True):
        quantiles = quantiles_over_pairs(table[f"{name}_effective_rank"].values)
        spread(ax, table["layer"].values, *quantiles, name="experts", color=style.COLORS[0])
        quantiles = quantiles_over_pairs(table[f"{name}_effective_rank{BASELINE}"].values)
        spread(ax, table["layer"].values, *quantiles, name=CONTROL, color=style.NEUTRAL, dashed=True)
        charts.label(ax, x="layer", y="effective rank (directions)" if ax is axes[0][0] else None, title=name)
    axes[0][0].set_ylim(0, table.sizes["component"])
    handles, labels = axes[0][0].get_legend_handles_labels()
    charts.top_legend(fig, handles, labels)
    note = f"lines: median expert, bands: 5-95 % of experts; maximum: {table.sizes['component']:,}"
    caption(fig, about, f"{note}; {CONTROL_NOTE}")
    return fig


@styled
def spectra(table: xr.Dataset, about: str) -> Figure:
    """Mean singular values of experts' matrices, a line for each layer."""
    names = [name for name in ("gate", "up", "down") if f"{name}_singular_value" in table]
    layers = table["layer"].values.tolist()
    colors = charts.depth_colors(layers)
    rank_C = np.arange(1, table.sizes["component"] + 1)
    fig, axes = style.figure("page", 2.3, 1, len(names), squeeze=False, sharey=True)
    for ax, name in zip(axes[0], names, strict=True):
        for layer, values_C in zip(layers, table[f"{name}_singular_value"].values, strict=True):
            ax.plot(rank_C, values_C, color=colors[layer], linewidth=0.9)
        if len(layers) == 1:
            ends = (table[f"{name}_singular_value{end}"].values[0] for end in ("_low", "_high"))
            charts.band(ax, rank_C, *ends, color=colors[layers[0]])
        control_C = table[f"{name}_singular_value{BASELINE}"].values.mean(0)
        ax.plot(rank_C, control_C, color=style.NEUTRAL, linestyle=DASHES, label=CONTROL)
        ax.grid(axis="y")
        y = "singular value (ratio to r.m.s.)" if ax is axes[0][0] else None
        charts.label(ax, x="singular value, largest first", y=y, title=name)
    axes[0][0].set_ylim(bottom=0)  # shared, so once all is drawn
    handles, labels = axes[0][0].get_legend_handles_labels()
    charts.top_legend(fig, handles, labels)
    charts.depth_key(fig, list(axes[0]), layers)
    band = "; band: 5-95 % of experts" if len(layers) == 1 else ""
    note = f"lines: mean over experts{band}; a flat line at 1: all directions have equal weight"
    caption(fig, about, f"{note}; {CONTROL_NOTE}")
    return fig
