"""Figures of the atlas, drawn from its table."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from moescope.analyses.atlas.findings import in_order_of_selection
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

BARS = ("delta_loss", "ci_low", "ci_high")
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
    """The expert named first for each domain, and its measured effect on every domain."""
    names = table["domain"].values.tolist()[1:]
    order_D = charts.domain_order(names, context.groups)
    domain_R, layer_R, expert_R = (table[f"measured_{name}"].values for name in ("domain", "layer_position", "expert"))
    first_R = (table["measured_rank"].values == 0) & (domain_R > 0)
    # Each expert once, in the order of the domains that it is named for.
    named = {(layer_R[r], expert_R[r]): None for d in order_D for r in np.flatnonzero(first_R & (domain_R == d + 1))}
    rows = {cell: row for row, cell in enumerate(named)}
    values_XD = np.full((len(rows), len(names)), np.nan)
    for r in np.flatnonzero(domain_R > 0).tolist():
        if (row := rows.get((layer_R[r], expert_R[r]))) is not None:
            values_XD[row, order_D.index(domain_R[r] - 1)] = MILLI * table["measured_delta_loss"].values[r]
    names = [names[index] for index in order_D]
    layers = table["layer"].values
    groups = [context.groups.get(name, "") for name in names]
    gaps = [column + 1 for column, (before, after) in enumerate(pairwise(groups)) if before != after]
    reach, clipped = _reach(values_XD, fewest=100)
    fig, ax = style.figure("page", style.height_for(len(rows), 0.135, 1.5))
    charts.heatmap(
        ax,
        np.clip(values_XD, -reach, reach),
        label="measured Δ loss (10⁻³ nats per token of the domain)",
        rows=[f"layer {layers[layer]}, expert {expert}" for layer, expert in rows],
        columns=names,
        vmin=-reach,
        vmax=reach,
        center=0.0,
        column_gaps=gaps,
        groups=context.groups,
    )
    charts.group_legend(fig, context.groups)
    note = f"experts named first for a domain, in the order of domains; {_chosen(table)}; ablated on the other half"
    caption(fig, context.caption, f"{note}{clipped}")
    return fig


@styled
def top(table: xr.Dataset, context: Context) -> Figure:
    """The expert named first for each domain, with experts of its layer that the domain selects as often."""
    frame = top_frame(table, seed=context.seed)
    best = in_order_of_selection(frame[frame["rank"] == 0])
    measured = {f"delta_loss_measured{end}": name for end, name in zip(("", "_ci_low", "_ci_high"), BARS, strict=True)}
    estimated = table.attrs["method"] == "gradient"
    fig = effects_with_controls(
        best.rename(columns=measured),
        context.groups,
        details=[f" · layer {row.layer}, expert {row.expert}" for row in best.itertuples()],
        unknown=f"no 95 % CI: fewer than {table.attrs['min_documents']} documents",
        control=f"{'estimate for ' if estimated else ''}controls, experts of the layer that the domain selects about "
        "as often: mean and 5–95 %",
        estimate="estimate for the expert, same documents",
    )
    note = (
        f"bars: measured by ablation on the evaluation half, with 95 % intervals; {_chosen(table)}, highest lower end "
        "of the interval first"
    )
    caption(fig, context.caption, note)
    return fig


def _chosen(table: xr.Dataset) -> str:
    by = " by the gradient's estimate" if table.attrs["method"] == "gradient" else ""
    return f"chosen{by} on the selection half of the documents"


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


def _reach(values: np.ndarray, fewest: int = 1000) -> tuple[float, str]:
    """The end of a symmetric color scale, and a note on values beyond it; none are beyond it if there are but few."""
    sizes = np.abs(values[np.isfinite(values)])
    if not sizes.size or not sizes.max():
        return 1.0, ""
    reach = float(np.quantile(sizes, CLIP))
    if sizes.size < fewest or reach <= 0:
        reach = float(sizes.max())
    beyond = int((sizes > reach).sum())
    return reach, f"; {beyond} beyond the scale's ends" if beyond else ""


def _sample(table: xr.Dataset) -> str:
    tokens, documents = int(table["num_tokens"].values[0]), int(table["num_documents"].values[0])
    return f"{METHODS[table.attrs['method']]} on {tokens:,} of them, from {documents:,} documents"
