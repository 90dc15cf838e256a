"""Figures of overlap: spread over pairs by layer, and heat maps of all pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import cluster_order, matrix_panels, quantiles_over_pairs, spread

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context


@styled
def by_layer(table: xr.Dataset, context: Context) -> Figure:
    """Both readings: the median pair and the spread over pairs per layer, beside independent routing."""
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    layers = table["layer"].values
    fig, axes = style.figure("page", 2.4, 1, 2)
    panels = (("jaccard", "occurrences: Jaccard"), ("weighted_jaccard", "vocabulary: weighted Jaccard"))
    for ax, (measure, title) in zip(axes, panels, strict=True):
        for name, color, suffix in (
            ("pairs of experts", style.COLORS[0], ""),
            ("independent routing", style.NEUTRAL, "_chance"),
        ):
            quantiles = quantiles_over_pairs(table[f"{measure}{suffix}"].values[:, i_P, j_P])
            spread(ax, layers, *quantiles, name=name, color=color, dashed=bool(suffix))
        charts.label(ax, x="layer", y="overlap (share)" if ax is axes[0] else None, title=title)
        ax.set_ylim(bottom=0)
    handles, names = axes[0].get_legend_handles_labels()
    charts.top_legend(fig, handles, names)
    caption(fig, context.caption, "lines: median pair; bands: 5-95 % of pairs")
    return fig


def occurrences(table: xr.Dataset, context: Context) -> Figure:
    """Jaccard of the tokens routed to two experts, a heat map per layer."""
    return _heat_maps(table, context, "jaccard", "occurrences", "Jaccard (share)")


def vocabulary(table: xr.Dataset, context: Context) -> Figure:
    """Weighted Jaccard of the token types of two experts, a heat map per layer."""
    return _heat_maps(table, context, "weighted_jaccard", "vocabulary", "weighted Jaccard (share)")


def _heat_maps(table: xr.Dataset, context: Context, measure: str, reading: str, label: str) -> Figure:
    measured_LEE, independent_LEE = table[measure].values, table[f"{measure}_chance"].values
    above_EE = np.triu(np.ones(measured_LEE.shape[1:], dtype=bool), 1)
    matrices, orders = [], []
    for measured_EE, independent_EE in zip(measured_LEE, independent_LEE, strict=True):
        order, _ = cluster_order(measured_EE)
        ordered = np.ix_(order, order)
        both_EE = np.where(above_EE, measured_EE[ordered], independent_EE[ordered])
        np.fill_diagonal(both_EE, np.nan)
        matrices.append(both_EE)
        orders.append(order)
    values = np.array(matrices)
    finite = values[np.isfinite(values)]
    return matrix_panels(
        matrices,
        [f"layer {layer}" for layer in table["layer"].values],
        context.caption,
        label=label,
        labels=(orders, orders),
        xlabel="experts, ordered by similarity",
        ylabel="experts, in the same order",
        vmin=0.0,
        vmax=float(np.quantile(finite, 0.995)) if finite.size else 1.0,
        note=f"overlap of {reading}; above the diagonal: measured, below: independent routing; each layer has its own "
        "order; color scale ends at 99.5 % of all values",
    )
