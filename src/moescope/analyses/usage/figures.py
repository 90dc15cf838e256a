"""Figures of usage and specialization, drawn of the table that `ExpertUsage.compute` gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from moescope.figures import caption, charts, style, styled

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from moescope.context import Context

MOST_LAYERS_WITH_DOMAINS = 4
MOST_SPECIALISTS = 20
MOST_ROWS = 64
MOST_LABELS = 16


@styled
def frequency(table: xr.Dataset, context: Context) -> Figure:
    """Selection frequency of every expert, a row per layer: what is dead, what is overloaded."""
    layers = table["layer"].values.tolist()
    percent_LE = 100 * table["selection_frequency"].values
    baseline = 100 * table.attrs["uniform_baseline"]
    shown = _spread(len(layers), MOST_ROWS)
    fig, ax = style.figure("page", max(2.1, style.height_for(len(shown), 0.15, 0.85)))
    charts.heatmap(
        ax,
        percent_LE[shown],
        label="selected for (% of tokens)",
        rows=[layers[position] for position in shown],
        columns=table["expert"].values.tolist(),
        xlabel="expert",
        ylabel="layer",
        vmin=0.0,
        centre=baseline,
        vmax=max(float(np.nanmax(percent_LE, initial=0.0)), 2 * baseline),
    )
    caption(fig, context.caption, f"white: {baseline:.3g} %, uniform routing (K/E); blue: less; red: more")
    return fig


@styled
def load(table: xr.Dataset, context: Context) -> Figure:
    """Three measures of load over layers: all tokens, and the range over domains."""
    layers = table["layer"].values
    fig, axes = style.figure("page", 2.2, 1, 3)
    num_selected = float(table.attrs["num_experts_per_token"])
    panels = [
        ("normalized_usage_entropy", "usage entropy (share of ln E)", (None, 1.0), 1.0),
        ("max_violation", "MaxVio (busiest ÷ mean − 1)", (0.0, None), 0.0),
        ("auxiliary_loss", f"auxiliary loss ({num_selected:.0f}: balanced)", (None, None), num_selected),
    ]
    for ax, (name, title, limits, uniform) in zip(axes, panels, strict=True):
        low_L, high_L = _quantiles(table[name].values, (0.0, 1.0))
        ax.axhline(uniform, color=style.NEUTRAL, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
        _range(ax, layers, low_L, high_L, style.COLOURS[0], "lowest to highest domain")
        charts.lines(ax, layers, {"all tokens": table[f"{name}_all"].values}, ylim=limits, legend=False)
        charts.label(ax, x="layer", title=title)
    _legend(fig, axes[0], dashed="uniform routing")
    caption(fig, context.caption, "auxiliary loss: E Σ (N_e/N) P_e of one layer")
    return fig


@styled
def specialization(table: xr.Dataset, context: Context) -> Figure:
    """Domain specialization of every expert, for up to four layers; experts ordered by the domain they serve most."""
    domains = table["domain"].values.tolist()
    order_D = charts.domain_order(domains, context.groups)
    names = [domains[index] for index in order_D]
    layers = table["layer"].values.tolist()
    shown = _spread(len(layers), MOST_LAYERS_WITH_DOMAINS)
    percent_LDE = 100 * table["domain_specialization"].values[:, order_D]
    highest = float(np.nanmax(percent_LDE[shown], initial=0.0))
    across = 2 if len(shown) == 4 else len(shown)
    down = -(-len(shown) // across)
    panel = max(1.6 if down == 1 else 1.1, 0.115 * len(names) + 0.2)
    fig, grid = style.figure("page", down * panel + 0.75, down, across, squeeze=False, sharey=True)
    axes = list(grid.flat)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax, position in zip(axes, shown, strict=False):
        lift_DE = np.nan_to_num(table["lift"].values[position][order_D])
        peak_E = lift_DE.argmax(axis=0)
        order_E = np.lexsort((-lift_DE.max(axis=0), peak_E))
        mesh = charts.heatmap(
            ax,
            percent_LDE[position][:, order_E],
            label="",
            rows=names,
            columns=order_E.tolist(),
            title=f"layer {layers[position]}",
            vmin=0.0,
            vmax=max(highest, 1e-9),
            row_gaps=_group_starts(names, context),
            groups=context.groups,
            colourbar=False,
        )
        if len(order_E) > MOST_LABELS:  # ids in no order, thinned out, would say nothing
            ax.set_xticks([])
    charts.panel_colourbar(mesh, axes[: len(shown)], "% of the domain's tokens")
    fig.supxlabel(f"experts (all {table.sizes['expert']}), ordered by the domain of their highest lift")
    uniform = f"{100 * table.attrs['uniform_baseline']:.3g} %"
    note = f"domain specialization; uniform routing: {uniform} everywhere; each layer has its own order"
    if len(shown) < len(layers):
        note = f"{len(shown)} of {len(layers)} layers shown; {note}"
    caption(fig, context.caption, note)
    return fig


@styled
def specialists(table: xr.Dataset, frame: pd.DataFrame, context: Context) -> Figure:
    """The top specialists: specialization on the half of the documents that did not choose them, with intervals."""
    top = frame.head(MOST_SPECIALISTS).sort_values("domain_specialization", ascending=False, kind="stable")
    fig, ax = style.figure("column", style.height_for(len(top), 0.15, 1.0))
    colours = style.group_colours(context.groups)
    charts.bars(
        ax,
        [f"{row.domain} · layer {row.layer}, expert {row.expert}" for row in top.itertuples()],
        100 * top["domain_specialization"].to_numpy(),
        xlabel="",
        low=100 * top["ci_low"].to_numpy(),
        high=100 * top["ci_high"].to_numpy(),
        colours=[colours.get(context.groups.get(domain, ""), style.COLOURS[0]) for domain in top["domain"]],
        baseline=("uniform routing (K/E)", 100 * table.attrs["uniform_baseline"]),
    )
    ax.set_xlim(left=0)
    fig.supxlabel("domain specialization (% of the domain's tokens)")
    note = f"the {len(top)} of surest lift on one half of the documents; bars and 95 % intervals from the other half"
    if top["ci_low"].isna().any():
        note += f"; no interval: under {table.attrs['min_documents']} documents there"
    caption(fig, context.caption, note)
    return fig


@styled
def information(table: xr.Dataset, context: Context) -> Figure:
    """Mutual information of expert and domain per layer, beside the range it has where domains do not matter."""
    fig, ax = style.figure("column", 2.4)
    layers, name = table["layer"].values, "mutual_information"
    null = style.NEUTRAL
    _range(ax, layers, table[f"{name}_null_low"].values, table[f"{name}_null_high"].values, null, "")
    charts.lines(
        ax,
        layers,
        {"observed": table[name].values, "labels at random": table[f"{name}_null_mean"].values},
        xlabel="layer",
        ylabel="I(expert; domain) (bits)",
        colours={"labels at random": null},
        legend=False,
        ylim=(0.0, None),
    )
    charts.legend_above(ax)
    entropy, draws = float(table["domain_entropy"].values[0]), table.attrs["num_null"]
    caption(
        fig,
        context.caption,
        f"H(domain) = {entropy:.3g} bits; at random: mean and 95 % range of {draws} relabellings of documents",
    )
    return fig


@styled
def divergence(table: xr.Dataset, context: Context) -> Figure:
    """Jensen-Shannon divergence of the experts per layer: median and spread, observed and under the null."""
    fig, ax = style.figure("column", 2.4)
    layers = table["layer"].values
    series, colours = {}, {"observed": style.COLOURS[0], "labels at random": style.NEUTRAL}
    for name, variable in (("observed", "divergence"), ("labels at random", "divergence_null_mean")):
        low_L, median_L, high_L = _quantiles(table[variable].values, (0.05, 0.5, 0.95))
        _range(ax, layers, low_L, high_L, colours[name], "")
        series[name] = median_L
    charts.lines(
        ax,
        layers,
        series,
        xlabel="layer",
        ylabel="divergence (bits)",
        colours=colours,
        legend=False,
        ylim=(0.0, None),
    )
    charts.legend_above(ax)
    caption(
        fig,
        context.caption,
        "Jensen–Shannon, of an expert's distribution over domains from its layer's; median and 5–95 % of experts",
    )
    return fig


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` positions, evenly spread, first and last among them."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})


def _quantiles(values_LX: ArrayLike, quantiles: Sequence[float]) -> list[np.ndarray]:
    """Quantiles along the last axis over what is known; NaN where nothing is."""
    rows = [row[~np.isnan(row)] for row in np.asarray(values_LX, dtype=float)]
    return [np.array([np.quantile(row, q) if row.size else np.nan for row in rows]) for q in quantiles]


@styled
def _range(ax: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, label: str) -> None:
    """A band over layers; a bar where there is but one."""
    if np.size(x) == 1:
        ax.vlines(x, low, high, color=colour, alpha=0.35, linewidth=5, label=label or "_")
    else:
        charts.band(ax, x, low, high, colour=colour, label=label or "_")


@styled
def _legend(fig: Figure, ax: Axes, dashed: str) -> None:
    from matplotlib.lines import Line2D

    handles, _ = ax.get_legend_handles_labels()
    handles.append(Line2D([], [], color=style.NEUTRAL, linewidth=0.8, linestyle=(0, (4, 2)), label=dashed))
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2)


def _group_starts(names: Sequence[str], context: Context) -> list[int]:
    """Rows at which another group of domains begins."""
    groups = [context.groups.get(name, "") for name in names]
    return [row + 1 for row, (before, after) in enumerate(pairwise(groups)) if before != after]
