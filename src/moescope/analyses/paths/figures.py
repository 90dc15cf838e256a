"""Figures of expert paths: information between layers, and heat maps of flows and lifts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from moescope.figures import caption, style
from moescope.figures.experts import against_independent, cluster_order, matrix_panels

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from moescope.context import Context

LOG2_LIMIT = 3.0


def information(table: xr.Dataset, context: Context) -> Figure:
    """Normalized mutual information of consecutive layers, beside independent routing."""
    measured, independent = (
        {
            "first-ranked expert": table[f"top1_nmi{suffix}"].values,
            f"all {context.model.num_experts_per_token} experts": table[f"nmi{suffix}"].values,
        }
        for suffix in ("", "_chance")
    )
    fig, ax = style.figure("column", 2.5)
    against_independent(
        ax,
        table["next_layer"].values,
        measured,
        independent,
        xlabel="layer (with the one looked at before it)",
        ylabel="normalized mutual information (share)",
    )
    caption(fig, context.caption, "mutual information ÷ mean entropy; independent routing: one layer's tokens shuffled")
    return fig


def flows(table: xr.Dataset, context: Context) -> Figure:
    """Share of the tokens of each first-ranked expert that goes to each of the next layer, a heat map per pair."""
    flows_PEE = table["top1_transition"].values
    finite = flows_PEE[np.isfinite(flows_PEE)]
    matrices, labels = _aligned(flows_PEE, table["top1_num_paths"].values)
    return matrix_panels(
        matrices,
        _titles(table),
        context.caption,
        label="share of the earlier expert's tokens",
        labels=labels,
        xlabel="first-ranked expert at the later layer, ordered so that main flows are on the diagonal",
        ylabel="first-ranked expert at the earlier layer",
        vmin=0.0,
        vmax=float(np.quantile(finite, 0.995)) if finite.size else 1.0,
        note="rows sum to 1; a layer has one order in both its panels; color scale ends at 99.5 % of all values",
    )


def lifts(table: xr.Dataset, context: Context) -> Figure:
    """The lift of each path over all pairs of selected experts, a heat map per pair of layers."""
    with np.errstate(invalid="ignore", divide="ignore"):
        lift_PEE = np.clip(np.log2(table["lift"].values), -LOG2_LIMIT, LOG2_LIMIT)
    orders = _cluster_orders(lift_PEE)
    return matrix_panels(
        [lift_EE[np.ix_(*orders[pair : pair + 2])] for pair, lift_EE in enumerate(lift_PEE)],
        _titles(table),
        context.caption,
        label="measured ÷ independent (log₂)",
        labels=(orders[:-1], orders[1:]),
        xlabel="expert at the later layer",
        ylabel="expert at the earlier layer",
        vmin=-LOG2_LIMIT,
        vmax=LOG2_LIMIT,
        center=0.0,
        note="tokens with both experts, all pairs of selected ones; experts ordered by similarity of their paths, a "
        "layer in one order in both its panels; −3 and 3: an eighth and eight times as often, or beyond",
    )


def _titles(table: xr.Dataset) -> list[str]:
    pairs = zip(table["layer"].values, table["next_layer"].values, strict=True)
    return [f"layer {layer} → {following}" for layer, following in pairs]


def _aligned(
    shown_PEE: NDArray[np.floating], strength_PEE: NDArray[np.floating] | NDArray[np.integer]
) -> tuple[list[NDArray[np.floating]], tuple[list[list[int]], list[list[int]]]]:
    """Matrices with the strongest paths on the diagonal, a layer in one order throughout; experts of rows, columns."""
    strength_PEE = np.nan_to_num(strength_PEE)
    order = [int(expert) for expert in np.argsort(-strength_PEE[0].max(axis=1), kind="stable")]
    matrices, rows, columns = [], [], []
    for shown_EE, strength_EE in zip(shown_PEE, strength_PEE, strict=True):
        rows.append(order)
        order = [int(expert) for expert in linear_sum_assignment(strength_EE[order], maximize=True)[1]]
        columns.append(order)
        matrices.append(shown_EE[np.ix_(rows[-1], order)])
    return matrices, (rows, columns)


def _cluster_orders(lift_PEE: NDArray[np.floating]) -> list[list[int]]:
    """For every layer an order in which experts are adjacent whose tokens come from, and go to, the same experts."""
    profiles: list[list[NDArray[np.floating]]] = [[] for _ in range(len(lift_PEE) + 1)]
    for pair, lift_EE in enumerate(np.nan_to_num(lift_PEE)):
        profiles[pair].append(lift_EE)
        profiles[pair + 1].append(lift_EE.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        return [cluster_order(np.corrcoef(np.concatenate(parts, axis=1)))[0] for parts in profiles]
