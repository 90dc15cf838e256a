"""Expert paths: where tokens of one layer's experts go in the next layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from scipy.optimize import linear_sum_assignment

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.figures.experts import against_independent, matrix_panels, similarity_order
from moescope.errors import MoescopeWarning
from moescope.figures import caption, style
from moescope.statistics.paths import ExpertPaths

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from moescope.statistics.base import Statistic

TOP_PATHS = 50
LOG2_LIMIT = 3.0
MIN_EXPECTED = 20
"""Paths that fewer tokens would take if layers were independent are left out of the table: their lift is noise."""


class Paths(Analysis):
    """Over all K x K pairs of experts of consecutive layers looked at, and between first-ranked experts only."""

    name = "paths"
    summary = "Expert paths: where tokens of one layer's experts go in the next layer."

    def check(self, context: Context) -> None:
        """Says that one layer has no next one; other questions of the run go on."""
        if len(context.layers) < 2:
            warnings.warn(
                f"paths lead from a layer to the next one looked at, and only layer {context.layers[0]} is: none is "
                "shown",
                MoescopeWarning,
                stacklevel=2,
            )

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Pairs of experts of consecutive layers."""
        model = context.model
        return {
            "paths": ExpertPaths(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                device=model.device,
            )
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `layer` (and `next_layer`): normalised mutual information; by experts: transitions, lifts, flows."""
        return statistics["paths"].compute()

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`paths`: a row per pair of layers. `paths_top`: those of highest lift. Empty for one layer."""
        names = ["num_tokens", "nmi", "nmi_independent", "top1_nmi", "top1_nmi_independent"]
        summary = table[names].to_dataframe().reset_index()[["layer", "next_layer", *names]]
        columns = ["num_paths", "transition", "lift", "top1_num_paths", "top1_transition", "top1_lift"]
        top = []
        for position, layer in enumerate(table["layer"].values.tolist()):
            at = table.isel(layer=position)
            paths_EE, lift_EE = at["num_paths"].values, at["lift"].values
            with np.errstate(invalid="ignore", divide="ignore"):
                judged_EE = paths_EE / lift_EE >= MIN_EXPECTED
            # A path never taken has no ratio; it is no candidate for the highest lift either.
            order = np.argsort(-np.where(judged_EE, lift_EE, -np.inf), axis=None, kind="stable")[:TOP_PATHS]
            for place, cell in enumerate(order):
                a, b = (int(index) for index in np.unravel_index(cell, lift_EE.shape))
                if not judged_EE[a, b]:
                    break
                where = {"layer": layer, "next_layer": int(at["next_layer"]), "place": place}
                values = {column: at[column].values[a, b] for column in columns}
                top.append(where | {"expert": a, "next_expert": b} | values)
        keys = ["layer", "next_layer", "place", "expert", "next_expert"]
        return {"paths": summary, "paths_top": pd.DataFrame(top, columns=[*keys, *columns])}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`paths`: counts, transitions, lifts, (earlier layer, its expert, next layer's expert)."""
        if not table.sizes["layer"]:
            return {}
        arrays = {str(name): values.values for name, values in table.data_vars.items()}
        return {"paths": {"layers": table["layer"].values, "next_layers": table["next_layer"].values, **arrays}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Information between layers; flows and lifts as a heat map for each pair. Nothing where there is one layer."""
        if not table.sizes["layer"]:
            return
        yield "paths_information", _information(table, context)
        pairs = zip(table["layer"].values, table["next_layer"].values, strict=True)
        titles = [f"layer {layer} → {following}" for layer, following in pairs]
        flows_PEE = table["top1_transition"].values
        finite = flows_PEE[np.isfinite(flows_PEE)]
        matrices, labels = _aligned(flows_PEE, table["top1_num_paths"].values)
        yield (
            "paths_flows",
            matrix_panels(
                matrices,
                titles,
                context.caption,
                label="share of the earlier expert's tokens",
                labels=labels,
                xlabel="first-ranked expert at the later layer, ordered so that main flows lie on the diagonal",
                ylabel="first-ranked expert at the earlier layer",
                vmin=0.0,
                vmax=float(np.quantile(finite, 0.995)) if finite.size else 1.0,
                note="rows sum to 1; a layer has one order in both its panels; colours end at 99.5 % of all values",
            ),
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            lift_PEE = np.clip(np.log2(table["lift"].values), -LOG2_LIMIT, LOG2_LIMIT)
        orders = _clustered(lift_PEE)
        yield (
            "paths_lift",
            matrix_panels(
                [lift_EE[np.ix_(*orders[place : place + 2])] for place, lift_EE in enumerate(lift_PEE)],
                titles,
                context.caption,
                label="measured ÷ independent (log₂)",
                labels=(orders[:-1], orders[1:]),
                xlabel="expert at the later layer",
                ylabel="expert at the earlier layer",
                vmin=-LOG2_LIMIT,
                vmax=LOG2_LIMIT,
                centre=0.0,
                note="tokens with both experts, all pairs of selected ones; experts of like paths side by side, "
                "a layer in one order in both its panels; −3 and 3: an eighth and eight times as often, or beyond",
            ),
        )


def _information(table: xr.Dataset, context: Context) -> Figure:
    measured, independent = (
        {
            "first-ranked expert": table[f"top1_nmi{suffix}"].values,
            f"all {context.model.num_experts_per_token} experts": table[f"nmi{suffix}"].values,
        }
        for suffix in ("", "_independent")
    )
    fig, ax = style.figure("column", 2.5)
    against_independent(
        ax,
        table["next_layer"].values,
        measured,
        independent,
        xlabel="layer, with the one looked at before it",
        ylabel="normalised information (share)",
    )
    caption(fig, context.caption, "mutual information ÷ mean entropy; independent routing: one layer's tokens shuffled")
    return fig


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


def _clustered(lift_PEE: NDArray[np.floating]) -> list[list[int]]:
    """For every layer an order that puts experts side by side whose tokens come from, and go to, the same experts."""
    profiles: list[list[NDArray[np.floating]]] = [[] for _ in range(len(lift_PEE) + 1)]
    for place, lift_EE in enumerate(np.nan_to_num(lift_PEE)):
        profiles[place].append(lift_EE)
        profiles[place + 1].append(lift_EE.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        return [similarity_order(np.corrcoef(np.concatenate(parts, axis=1))) for parts in profiles]
