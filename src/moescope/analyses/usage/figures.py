"""Figures of usage and specialization, drawn from the table that `ExpertUsage.compute` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moescope.analyses.usage.table import specialists_frame
from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import evenly, quantiles_over_pairs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context

MOST_LAYERS_WITH_DOMAINS = 4
MOST_SPECIALISTS = 20
MOST_ROWS = 64


@styled
def frequency(table: xr.Dataset, context: Context) -> Figure:
    """Selection frequency of every expert, a row per layer."""
    layers = table["layer"].values.tolist()
    percent_LE = 100 * table["selection_frequency"].values
    baseline = 100 * table.attrs["uniform_baseline"]
    shown = evenly(len(layers), MOST_ROWS)
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
        center=baseline,
        vmax=max(float(np.nanmax(percent_LE, initial=0.0)), 2 * baseline),
    )
    caption(fig, context.caption, f"white: {baseline:.3g} % (uniform routing, K/E); blue: lower; red: higher")
    return fig


@styled
def load(table: xr.Dataset, context: Context) -> Figure:
    """Three measures of load over layers: all tokens, and the range over domains."""
    layers = table["layer"].values
    fig, axes = style.figure("page", 2.2, 1, 3)
    num_selected = float(table.attrs["num_experts_per_token"])
    panels = [
        ("normalized_usage_entropy", "usage entropy (share of ln E)", (None, 1.0), 1.0),
        ("max_violation", "MaxVio (max ÷ mean load − 1)", (0.0, None), 0.0),
        ("auxiliary_loss", f"auxiliary loss ({num_selected:.0f}: balanced)", (None, None), num_selected),
    ]
    for ax, (name, title, limits, uniform) in zip(axes, panels, strict=True):
        low_L, high_L = (end.reduce(table[name].values, axis=-1) for end in (np.fmin, np.fmax))  # NaN is left out
        if table.sizes["domain"] > 1:
            charts.band(ax, layers, low_L, high_L, color=style.COLORS[0], label="range over domains")
        charts.lines(
            ax,
            layers,
            {"all tokens": table[f"{name}_all"].values},
            xlabel="layer",
            title=title,
            baseline=("uniform routing", uniform),
            ylim=limits,
            legend=False,
        )
    handles, names = axes[0].get_legend_handles_labels()
    charts.top_legend(fig, handles, names)
    caption(fig, context.caption, "auxiliary loss: E Σ (N_e/N) P_e of one layer")
    return fig


@styled
def specialization(table: xr.Dataset, context: Context) -> Figure:
    """Domain specialization of every expert, up to four layers; experts ordered by the domain of their highest lift."""
    domains = table["domain"].values.tolist()
    order_D = charts.domain_order(domains, context.groups)
    names = [domains[index] for index in order_D]
    layers = table["layer"].values.tolist()
    shown = evenly(len(layers), MOST_LAYERS_WITH_DOMAINS)
    percent_LDE = 100 * table["domain_specialization"].values[:, order_D]
    highest = float(np.nanmax(percent_LDE[shown], initial=0.0))
    across = 2 if len(shown) == 4 else len(shown)
    down = -(-len(shown) // across)
    panel = max(1.6 if down == 1 else 1.1, 0.115 * len(names) + 0.2)
    fig, grid = style.figure("page", down * (panel + 0.3) + 0.75, down, across, squeeze=False, sharey=True)
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
            row_gaps=charts.group_starts(names, context.groups),
            groups=context.groups,
            colorbar=False,
        )
    charts.panel_colorbar(mesh, axes[: len(shown)], "% of the domain's tokens")
    charts.group_legend(fig, context.groups)
    fig.supxlabel(f"experts (all {table.sizes['expert']}), ordered by the domain of their highest lift")
    uniform = f"{100 * table.attrs['uniform_baseline']:.3g} %"
    note = f"domain specialization; uniform routing: {uniform} everywhere; each layer has its own order"
    if len(shown) < len(layers):
        note = f"{len(shown)} of {len(layers)} layers shown; {note}"
    caption(fig, context.caption, note)
    return fig


@styled
def specialists(table: xr.Dataset, context: Context) -> Figure:
    """The top specialists: specialization on the evaluation half of the documents, with intervals."""
    top = (
        specialists_frame(table)
        .head(MOST_SPECIALISTS)
        .sort_values("domain_specialization", ascending=False, kind="stable")
    )
    fig, ax = style.figure("column", style.height_for(len(top), 0.15, 1.0))
    colors = style.group_colors(context.groups)
    charts.bars(
        ax,
        top["domain"].tolist(),
        100 * top["domain_specialization"].to_numpy(),
        xlabel="",
        low=100 * top["ci_low"].to_numpy(),
        high=100 * top["ci_high"].to_numpy(),
        colors=[colors.get(context.groups.get(domain, ""), style.COLORS[0]) for domain in top["domain"]],
        baseline=("uniform routing (K/E)", 100 * table.attrs["uniform_baseline"]),
        details=[f" · layer {row.layer}, expert {row.expert}" for row in top.itertuples()],
        unknown=f"no CI: fewer than {table.attrs['min_documents']} documents",
        legend=False,
        room=140.0,
    )
    charts.color_labels(ax, context.groups)
    charts.key(ax, {domain: context.groups[domain] for domain in top["domain"] if domain in context.groups})
    ax.set_xlim(left=0)
    fig.supxlabel("domain specialization (% of the domain's tokens)")
    note = f"the {len(top)} with the highest lower end of the lift's 95 % CI on the selection half of the documents; "
    note += "bars and 95 % CI: evaluation half"
    caption(fig, context.caption, note)
    return fig


@styled
def information(table: xr.Dataset, context: Context) -> Figure:
    """Information about the domain per layer: of the set of selected experts, and of one of them with its null."""
    fig, ax = style.figure("column", 2.4)
    layers, name = table["layer"].values, "mutual_information"
    charts.band(ax, layers, table[f"{name}_null_low"].values, table[f"{name}_null_high"].values, color=style.NEUTRAL)
    num_selected = context.model.num_experts_per_token
    one = f"one of the {num_selected} selected" if num_selected > 1 else "the selected expert"
    series = {one: table[name].values, f"null, {one}": table[f"{name}_null_mean"].values}
    colors = {one: style.COLORS[0], f"null, {one}": style.NEUTRAL}
    if num_selected > 1 and table["set_information"].notnull().any():
        together = f"set of {num_selected} (lower bound)"
        ends = (table[f"set_information_ci_{end}"].values for end in ("low", "high"))
        charts.band(ax, layers, *ends, color=style.COLORS[1])
        series, colors = {together: table["set_information"].values, **series}, colors | {together: style.COLORS[1]}
    charts.lines(
        ax,
        layers,
        series,
        xlabel="layer",
        ylabel="information about the domain (bits)",
        colors=colors,
        legend=False,
        ylim=(min(0.0, float(np.nanmin(series[next(iter(series))]))), None),
    )
    charts.legend_above(ax)
    entropy, draws = float(table["domain_entropy"].values[0]), table.attrs["num_null"]
    caption(
        fig,
        context.caption,
        f"H(domain) = {entropy:.3g} bits; null: mean and 95 % range over {draws} permutations of documents; "
        "band of the set: 95 % CI over held-out documents",
    )
    return fig


@styled
def divergence(table: xr.Dataset, context: Context) -> Figure:
    """Jensen-Shannon divergence of the experts per layer: median and spread over experts, observed and null."""
    fig, ax = style.figure("column", 2.4)
    layers = table["layer"].values
    series, colors = {}, {"observed": style.COLORS[0], "null": style.NEUTRAL}
    for name, variable in (("observed", "divergence"), ("null", "divergence_null_mean")):
        low_L, median_L, high_L = quantiles_over_pairs(table[variable].values)
        charts.band(ax, layers, low_L, high_L, color=colors[name])
        series[name] = median_L
    charts.lines(
        ax,
        layers,
        series,
        xlabel="layer",
        ylabel="divergence (bits)",
        colors=colors,
        legend=False,
        ylim=(0.0, None),
    )
    charts.legend_above(ax)
    caption(
        fig,
        context.caption,
        "Jensen–Shannon, of an expert's distribution over domains from its layer's; line: median, band: 5–95 % of "
        "experts; null: labels permuted over documents",
    )
    return fig
