"""Figures of expert weights: cosines over layers, heat maps with a dendrogram, singular spectra, effective ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moescope.figures.experts import DASHES, quantiles_over_pairs, spread
from moescope.analyses.weights.matching import JOINED
from moescope.analyses.similarity.figures import clustered, dendrogram
from moescope.figures import caption, charts, style, styled

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context

MOST_MAPS = 4
"""Layers with a heat map of their own at most: the first, the last, and some between."""
CONTROL = "random directions"
_PANELS = {
    f"{JOINED}_matched_cosine": "neurons matched",
    f"{JOINED}_cosine": "as stored",
    "router_cosine": "router rows",
}


def draw(table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
    """All figures."""
    context = replace(context, num_tokens=0, corpus_name="")  # no text was needed for any of them
    yield "weights_by_layer", _by_layer(table, context)
    count = table.sizes["layer"]
    for position in np.unique(np.linspace(0, count - 1, min(count, MOST_MAPS)).round().astype(int)):
        at = table.isel(layer=position)
        yield f"weights_layer_{int(at['layer'])}", _map(at, context)
    yield "weights_effective_rank", _ranks(table, context)
    yield "weights_spectra", _spectra(table, context)


@styled
def _by_layer(table: xr.Dataset, context: Context) -> Figure:
    shown = {name: title for name, title in _PANELS.items() if np.isfinite(_pairs(table, name)).any()}
    fig, axes = style.figure("page", 2.2, 1, len(shown), squeeze=False, sharey=True)
    for ax, (name, title) in zip(axes[0], shown.items(), strict=True):
        quantiles = quantiles_over_pairs(_pairs(table, name))
        spread(ax, table["layer"].values, *quantiles, name="pairs of experts", colour=style.COLOURS[0])
        quantiles = quantiles_over_pairs(_pairs(table, f"{name}_redrawn"))
        spread(ax, table["layer"].values, *quantiles, name=CONTROL, colour=style.NEUTRAL, dashed=True)
        charts.label(ax, x="layer", y="cosine of weights" if ax is axes[0][0] else None, title=title)
    handles, names = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(names))
    note = "gate, up and down joined, neurons matched or as stored, and router rows; " if len(shown) == 3 else ""
    caption(fig, context.caption, f"{note}lines: median pair, bands: 5-95 % of pairs{_sampled(table)}; {CONTROL}: neurons "
            "(router rows) as long as they are, pointing anywhere")  # fmt: skip
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
def _map(at: xr.Dataset, context: Context) -> Figure:
    most = at.sizes["expert"] * (at.sizes["expert"] - 1) // 2
    matched = int(at["num_pairs_matched"]) == most
    first = f"{JOINED}_matched_cosine" if matched else f"{JOINED}_cosine"
    order, tree = clustered(at[first].values)
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
        centre=None if low >= 0 else 0.0,
        colourbar=False,
    )
    charts.panel_colourbar(mesh, [ax], words)
    control = at[f"{first}_redrawn"].values
    mean = float(np.nanmean(control)) if np.isfinite(control).any() else np.nan
    caption(fig, context.caption, f"gate, up and down joined; neurons of random direction: {mean:.2f}; average linkage; "
            "diagonal left out; colours end at 0.5 and 99.5 % of pairs")  # fmt: skip
    return fig


@styled
def _ranks(table: xr.Dataset, context: Context) -> Figure:
    names = [name for name in ("gate", "up", "down") if f"{name}_effective_rank" in table]
    fig, axes = style.figure("page", 2.2, 1, len(names), squeeze=False, sharey=True)
    for ax, name in zip(axes[0], names, strict=True):
        quantiles = quantiles_over_pairs(table[f"{name}_effective_rank"].values)
        spread(ax, table["layer"].values, *quantiles, name="experts", colour=style.COLOURS[0])
        quantiles = quantiles_over_pairs(table[f"{name}_effective_rank_redrawn"].values)
        spread(ax, table["layer"].values, *quantiles, name=CONTROL, colour=style.NEUTRAL, dashed=True)
        charts.label(ax, x="layer", y="effective rank (directions)" if ax is axes[0][0] else None, title=name)
    axes[0][0].set_ylim(0, table.sizes["component"])
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    caption(fig, context.caption, f"lines: median expert, bands: 5-95 % of experts; at most {table.sizes['component']:,}; "
            f"{CONTROL}: neurons as long as they are, pointing anywhere")  # fmt: skip
    return fig


@styled
def _spectra(table: xr.Dataset, context: Context) -> Figure:
    names = [name for name in ("gate", "up", "down") if f"{name}_singular_value" in table]
    layers = table["layer"].values.tolist()
    colours = charts.depth_colours(layers)
    place_C = np.arange(1, table.sizes["component"] + 1)
    fig, axes = style.figure("page", 2.3, 1, len(names), squeeze=False, sharey=True)
    for ax, name in zip(axes[0], names, strict=True):
        for layer, values_C in zip(layers, table[f"{name}_singular_value"].values, strict=True):
            ax.plot(place_C, values_C, color=colours[layer], linewidth=0.9)
        if len(layers) == 1:
            ends = (table[f"{name}_singular_value{end}"].values[0] for end in ("_low", "_high"))
            charts.band(ax, place_C, *ends, colour=colours[layers[0]])
        control_C = table[f"{name}_singular_value_redrawn"].values.mean(0)
        ax.plot(place_C, control_C, color=style.NEUTRAL, linestyle=DASHES, label=CONTROL)
        ax.grid(axis="y")
        y = "singular value (ratio to r.m.s.)" if ax is axes[0][0] else None
        charts.label(ax, x="singular value, largest first", y=y, title=name)
    axes[0][0].set_ylim(bottom=0)  # shared, so once all is drawn
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=1)
    charts.depth_key(fig, list(axes[0]), layers)
    band = "; band: 5-95 % of experts" if len(layers) == 1 else ""
    caption(fig, context.caption, f"lines: mean over experts{band}; a flat line at 1: all directions alike; {CONTROL}: neurons "
            "as long as they are, pointing anywhere")  # fmt: skip
    return fig
