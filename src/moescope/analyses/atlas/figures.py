"""Figures of the atlas, drawn from its table."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from moescope.analyses.atlas.relations import ACROSS, FIRST_ORDER, GRADIENT, WITHIN_DOMAINS, WITHIN_LAYERS
from moescope.analyses.atlas.table import relations_frame, top_frame
from moescope.figures import caption, charts, style, styled
from moescope.figures.effects import MILLI, effects_with_controls
from moescope.figures.experts import DASHES, evenly

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context

MOST_EXPERTS = 30
MOST_ROWS = 64
CLIP = 0.995
"""The color scale ends at this quantile of the effects' size: with the largest few the others would be white."""
METHODS = {"gradient": "estimated by gradient", "exact": "measured by ablation"}
SCOPE_COLORS = {
    ACROSS: style.COLORS[0],
    WITHIN_LAYERS: style.COLORS[1],
    WITHIN_DOMAINS: style.COLORS[2],
}


@styled
def experts(table: xr.Dataset, context: Context) -> Figure:
    """Δ loss of every expert over all domains, a row per layer."""
    layers = table["layer"].values.tolist()
    values_LE = MILLI * table["delta_loss"].values[:, 0]
    shown = evenly(len(layers), MOST_ROWS)
    reach, clipped = _reach(values_LE)
    fig, ax = style.figure("page", max(2.1, style.height_for(len(shown), 0.15, 0.85)))
    charts.heatmap(
        ax,
        np.clip(values_LE[shown], -reach, reach),
        label="Δ loss (10⁻³ nats per token)",
        rows=[layers[position] for position in shown],
        columns=table["expert"].values.tolist(),
        xlabel="expert",
        ylabel="layer",
        vmin=-reach,
        vmax=reach,
        center=0.0,
    )
    caption(fig, context.caption, f"{_sample(table)}; red: the loss rises without the expert; blue: it falls{clipped}")
    return fig


@styled
def domains(table: xr.Dataset, context: Context) -> Figure:
    """The experts with the largest effect on any domain, and their effect on every domain."""
    names = table["domain"].values.tolist()[1:]
    order_D = charts.domain_order(names, context.groups)
    names = [names[index] for index in order_D]
    values_LDE = MILLI * table["delta_loss"].values[:, 1:][:, order_D]
    flat_XD = values_LDE.swapaxes(1, 2).reshape(-1, len(names))
    sizes_X = np.where(np.isfinite(flat_XD), np.abs(flat_XD), 0.0).max(1)
    shown = np.argsort(-sizes_X, kind="stable")[:MOST_EXPERTS]
    shown = shown[sizes_X[shown] > 0]
    # Experts of one domain are adjacent, in the domains' order.
    shown = shown[np.lexsort((-sizes_X[shown], np.nan_to_num(np.abs(flat_XD[shown])).argmax(1)))]
    num_experts, layers = table.sizes["expert"], table["layer"].values
    groups = [context.groups.get(name, "") for name in names]
    gaps = [column + 1 for column, (before, after) in enumerate(pairwise(groups)) if before != after]
    reach, clipped = _reach(flat_XD[shown])
    fig, ax = style.figure("page", style.height_for(len(shown), 0.135, 1.5))
    charts.heatmap(
        ax,
        np.clip(flat_XD[shown], -reach, reach),
        label="Δ loss (10⁻³ nats per token of the domain)",
        rows=[f"layer {layers[cell // num_experts]}, expert {cell % num_experts}" for cell in shown],
        columns=names,
        vmin=-reach,
        vmax=reach,
        center=0.0,
        column_gaps=gaps,
        groups=context.groups,
    )
    charts.group_legend(fig, context.groups)
    note = (
        f"the {len(shown)} experts of largest effect on any domain; optimistically biased: selected and measured on "
        "the same documents"
    )
    caption(fig, context.caption, f"{_sample(table)}; {note}{clipped}")
    return fig


@styled
def top(table: xr.Dataset, context: Context) -> Figure:
    """The expert with the largest effect on each domain, with experts of its layer that the domain selects as often."""
    frame = top_frame(table, seed=context.seed)
    best = frame[frame["rank"] == 0].sort_values("delta_loss", ascending=False, kind="stable")
    fig = effects_with_controls(
        best,
        context.groups,
        details=[f" · layer {row.layer}, expert {row.expert}" for row in best.itertuples()],
        unknown=f"no 95 % CI: fewer than {table.attrs['min_documents']} documents",
        control="controls: mean and 5–95 % of experts of the layer that the domain selects about as often",
    )
    note = "selected on one half of the documents; bars and 95 % intervals from the other half"
    caption(fig, context.caption, f"{_sample(table)}; {note}")
    return fig


@styled
def agreement(table: xr.Dataset, context: Context) -> Figure:
    """Estimate by gradient against exact ablation, an expert a point."""
    fig, ax = style.figure("column", 2.9)
    estimate, exact = (MILLI * table[name].values for name in ("ablated_gradient", "ablated_delta_loss"))
    low, high = (MILLI * table[f"ablated_delta_loss_ci_{end}"].values for end in ("low", "high"))
    ends = np.array([estimate.min(), estimate.max()])
    ax.plot(ends, ends, color=style.NEUTRAL, linewidth=0.8, linestyle=DASHES, label="equal", zorder=1)
    ax.vlines(estimate, low, high, color=style.COLORS[0], linewidth=0.6, alpha=0.45)
    ax.plot(estimate, exact, linestyle="", marker="o", markersize=2.6, color=style.COLORS[0], label="expert")
    ax.grid(axis="both")
    charts.label(ax, x="estimated by gradient (10⁻³ nats per token)", y="ablated (10⁻³ nats per token)")
    charts.legend_above(ax)
    names = ("rank_correlation", "rank_correlation_ci_low", "rank_correlation_ci_high")
    value, from_, to = (float(table[name].values[0]) for name in names)
    slope = float(table["rank_correlation"].values[1])
    caption(
        fig,
        context.caption,
        f"rank correlation {value:.2f} (95 % interval {from_:.2f} to {to:.2f}), {len(estimate)} experts; "
        f"first-order term alone {slope:.2f}; "
        f"{int(table['ablated_num_tokens']):,} tokens of {int(table['ablated_num_documents'])} documents; bars: 95 % "
        "intervals over documents",
    )
    return fig


@styled
def relations(table: xr.Dataset, context: Context) -> Figure:
    """How well routing statistics predict the effect: rank correlations with intervals."""
    frame = relations_frame(table)
    main = METHODS[table.attrs["method"]]
    shown = frame[~frame["predictor"].isin([GRADIENT, FIRST_ORDER]) & (frame["effect"] == _main(frame))]
    names = list(dict.fromkeys(shown["predictor"]))
    scopes = [scope for scope in SCOPE_COLORS if scope in set(shown["scope"])]
    fig, ax = style.figure("column", style.height_for(len(names), 0.3, 0.8))
    for number, scope in enumerate(scopes):
        rows = shown[shown["scope"] == scope]
        heights = [names.index(name) + 0.24 * (number - (len(scopes) - 1) / 2) for name in rows["predictor"]]
        color = SCOPE_COLORS[scope]
        ax.hlines(heights, rows["ci_low"], rows["ci_high"], color=color, linewidth=1.4, alpha=0.5)
        ax.plot(rows["rank_correlation"], heights, linestyle="", marker="o", color=color, label=scope)
    ax.axvline(0, color=style.NEUTRAL, linewidth=0.8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    charts.label(ax, x="rank correlation with Δ loss")
    charts.legend_above(ax)
    caption(fig, context.caption, f"{_sample(table)}; effect: {main}; bars: 95 % intervals over experts")
    return fig


def _main(frame: pd.DataFrame) -> str:
    """The effect that is known of all experts."""
    return str(frame["effect"].iloc[-1])


def _reach(values: np.ndarray) -> tuple[float, str]:
    """The end of a symmetric color scale, and a note on values beyond it."""
    sizes = np.abs(values[np.isfinite(values)])
    if not sizes.size or not sizes.max():
        return 1.0, ""
    reach = float(np.quantile(sizes, CLIP))
    if sizes.size < 1000 or reach <= 0:
        reach = float(sizes.max())
    beyond = int((sizes > reach).sum())
    return reach, f"; {beyond} beyond the scale's ends" if beyond else ""


def _sample(table: xr.Dataset) -> str:
    tokens, documents = int(table["num_tokens"].values[0]), int(table["num_documents"].values[0])
    return f"{METHODS[table.attrs['method']]} on {tokens:,} of them, from {documents:,} documents"
