"""Figures of co-activation: spread of the lift over pairs by layer, and heat maps of all pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moescope.analyses.coactivation.table import summary_frame
from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import DASHES, cluster_order, matrix_panels, spread
from moescope.measures.constants import MIN_EXPECTED

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context

LOG2_LIMIT = 3.0


@styled
def by_layer(table: xr.Dataset, context: Context) -> Figure:
    """The lift of the median pair and its spread over pairs per layer, beside independent routing."""
    frame = summary_frame(table)
    layers = frame["layer"].to_numpy()
    fig, ax = style.figure("column", 2.4)
    spread(
        ax,
        layers,
        frame["lift_q05"],
        frame["lift_median"],
        frame["lift_q95"],
        name="pairs of experts",
        color=style.COLORS[0],
    )
    ax.plot(
        layers,
        frame["lift_median_chance"],
        color=style.NEUTRAL,
        linestyle=DASHES,
        marker="_" if len(layers) == 1 else "",
        label="independent routing",
    )
    ax.set_ylim(bottom=0)
    charts.label(ax, x="layer", y="lift of co-activation (ratio)")
    charts.legend_above(ax)
    note = f"line: median, band: 5-95 % of pairs with {MIN_EXPECTED} or more expected co-activations"
    caption(fig, context.caption, note)
    return fig


def lifts(table: xr.Dataset, context: Context) -> Figure:
    """The lift of each pair over its lift under independent routing, a heat map per layer."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_LEE = np.log2((table["lift"] / table["lift_chance"]).values)
    # Pairs never selected together are at the lower end of the scale, not outside it.
    ratio_LEE = np.clip(ratio_LEE, -LOG2_LIMIT, LOG2_LIMIT)
    orders = [cluster_order(ratio_EE)[0] for ratio_EE in ratio_LEE]
    diagonal = np.arange(table.sizes["expert"])
    ratio_LEE[:, diagonal, diagonal] = np.nan
    return matrix_panels(
        [ratio_EE[np.ix_(order, order)] for ratio_EE, order in zip(ratio_LEE, orders, strict=True)],
        [f"layer {layer}" for layer in table["layer"].values],
        context.caption,
        label="measured ÷ independent (log₂)",
        labels=(orders, orders),
        xlabel="experts, ordered by co-activation",
        ylabel="experts, in the same order",
        vmin=-LOG2_LIMIT,
        vmax=LOG2_LIMIT,
        center=0.0,
        note="how often two experts are selected together; each layer has its own order; −3 and 3: an eighth and eight "
        "times as often as under independent routing, or beyond",
    )
