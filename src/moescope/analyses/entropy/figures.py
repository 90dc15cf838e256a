"""Figures of router confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from moescope.figures import caption, charts, style
from moescope.figures.bins import densities
from moescope.figures.histograms import panel_per_layer
from moescope.measures.constants import ALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.context import Context

_NORMALIZED = "normalized entropy"
# What group-limited families select by is too long for an axis: the caption says it.
_MARGINS = {"margin": "first - second probability", "boundary_margin": "lowest selected - highest unselected"}


def _shares(num_selected: int) -> dict[str, str]:
    """Label -> measure of the probabilities drawn; where K is 1, both are the same."""
    shares = {"top-1 probability": "top1_probability"}
    return shares if num_selected == 1 else shares | {f"top-{num_selected} mass": "topk_mass"}


def _band(table: xr.Dataset, name: str, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    quantile = table[f"{name}_quantile"].sel(domain=ALL)
    return quantile.sel(quantile=low).values, quantile.sel(quantile=high).values


def _median(table: xr.Dataset, name: str) -> np.ndarray:
    return table[f"{name}_quantile"].sel(domain=ALL, quantile=0.5).values


def confidence(table: xr.Dataset, context: Context) -> Figure:
    """Entropy, and top-1 probability and top-K mass, by layer."""
    layers = table["layer"].values
    num_experts, num_selected = table.attrs["num_experts"], table.attrs["num_experts_per_token"]
    fig, (left, right) = style.figure("page", 2.5, 1, 2)
    charts.band(left, layers, *_band(table, "entropy", 0.05, 0.95), color=style.COLORS[0])
    charts.lines(
        left,
        layers,
        {"median": _median(table, "entropy")},
        bands={"median": _band(table, "entropy", 0.25, 0.75)},
        xlabel="layer",
        ylabel="router entropy (nats)",
        baseline=(f"uniform, ln {num_experts}", float(np.log(num_experts))),
        ylim=(0, None),
    )
    shares = _shares(num_selected)
    charts.lines(
        right,
        layers,
        {label: _median(table, name) for label, name in shares.items()},
        bands={label: _band(table, name, 0.25, 0.75) for label, name in shares.items()},
        xlabel="layer",
        ylabel="probability",
        baseline=(f"uniform mass, {num_selected}/{num_experts}", num_selected / num_experts),
        ylim=(0, 1),
    )
    caption(fig, context.caption, "medians over tokens; bands: 25-75 % of tokens, on the left also 5-95 %")
    return fig


def confidence_of_one(table: xr.Dataset, context: Context) -> Figure:
    """Histograms of entropy, top-1 probability and top-K mass of a single layer."""
    num_experts, num_selected = table.attrs["num_experts"], table.attrs["num_experts_per_token"]
    fig, (left, right) = style.figure("page", 2.5, 1, 2)
    edges, density = _density(table, "entropy")
    charts.histogram(left, edges, density, xlabel="router entropy (nats)", ylabel="density of tokens (1/nat)")
    shares = _shares(num_selected)
    for (label, name), color in zip(shares.items(), style.COLORS, strict=False):
        edges, density = _density(table, name)
        charts.histogram(
            right, edges, density, name=label, color=color, xlabel="probability", ylabel="density of tokens"
        )
    charts.legend_above(right)
    uniform = f"uniform: {np.log(num_experts):.2f} nats, mass {num_selected}/{num_experts}"
    caption(fig, context.caption, f"layer {table['layer'].values[0]}; {uniform}")
    return fig


def domains(table: xr.Dataset, context: Context) -> Figure:
    """Mean normalized entropy by layer and domain."""
    names, groups = _ordered(context)
    layers = table["layer"].values
    fig, ax = style.figure("column" if len(layers) <= 32 else "page", style.height_for(len(names), around=0.75))
    charts.heatmap(
        ax,
        table["normalized_entropy_mean"].sel(domain=names).values.T,
        rows=names,
        columns=layers,
        label=_NORMALIZED,
        xlabel="layer",
        groups=groups,
        row_gaps=charts.group_starts(names, groups),
    )
    charts.group_legend(fig, groups)
    caption(fig, context.caption, "entropy / ln E, means over tokens")
    return fig


def domains_of_one(table: xr.Dataset, context: Context) -> Figure:
    """Mean normalized entropy by domain, in a single layer."""
    names, groups = _ordered(context)
    by_domain = table.sel(domain=names).isel(layer=0)
    low, high = (by_domain["normalized_entropy_quantile"].sel(quantile=level).values for level in (0.25, 0.75))
    fig, ax = style.figure("column", style.height_for(len(names), around=0.75))
    values = by_domain["normalized_entropy_mean"].values
    charts.bars(ax, names, values, low=low, high=high, xlabel=_NORMALIZED, groups=groups)
    ax.set_xlim(0, 1)
    charts.group_legend(fig, groups)
    caption(
        fig, context.caption, f"layer {table['layer'].values[0]}; entropy / ln E; bars: means; lines: 25-75 % of tokens"
    )
    return fig


def histograms(table: xr.Dataset, context: Context) -> Figure:
    """Entropy's histogram, a panel for each layer."""
    return panel_per_layer(
        table["entropy_bin"].values[1:],
        table["entropy_counts"].sel(domain=ALL).values,
        table["layer"].values.tolist(),
        context.caption,
        xlabel="router entropy (nats)",
        ylabel="density of tokens (1/nat)",
        cut=0.0,
        note=f"uniform: ln E = {np.log(table.attrs['num_experts']):.2f} nats",
    )


def margins(table: xr.Dataset, context: Context) -> Figure:
    """Margin and boundary margin by layer, logarithmic."""
    layers = table["layer"].values
    fig, axes = style.figure("page", 2.5, 1, 2)
    for ax, (name, title), color in zip(axes, _MARGINS.items(), style.COLORS, strict=False):
        least = table[f"{name}_bin"].values[1]  # quantiles below the axis are 0, which has no logarithm
        bands = [
            tuple(np.maximum(end, least) for end in _band(table, name, *ends)) for ends in ((0.05, 0.95), (0.25, 0.75))
        ]
        charts.band(ax, layers, *bands[0], color=color)
        charts.lines(
            ax,
            layers,
            {"median": np.maximum(_median(table, name), least)},
            colors={"median": color},
            bands={"median": bands[1]},
            title=title,
            xlabel="layer",
            ylabel=f"{name.replace('_', ' ')} of tokens",
            log_y=True,
        )
    caption(fig, context.caption, f"medians; bands: 25-75 % and 5-95 % of tokens; {_selection(table)}")
    return fig


def margins_of_one(table: xr.Dataset, context: Context) -> Figure:
    """Histograms of margin and boundary margin of a single layer."""
    fig, axes = style.figure("page", 2.5, 1, 2)
    for ax, (name, title), color in zip(axes, _MARGINS.items(), style.COLORS, strict=False):
        edges, density = _density(table, name, log=True)
        charts.histogram(ax, edges, density, title=title, color=color, log_x=True, xlabel=name.replace("_", " "))
        charts.label(ax, y="density of tokens (per factor of 10)")
    caption(fig, context.caption, f"layer {table['layer'].values[0]}; {_selection(table)}")
    return fig


def _selection(table: xr.Dataset) -> str:
    """For the caption: what the family selects by, and how often the boundary margin is exactly 0."""
    ties = table["boundary_tie_share"].sel(domain=ALL).values
    share = f"at most {100 * np.nanmax(ties):.2g} % of a layer's tokens" if np.nan_to_num(ties).any() else "none"
    return f"selection is by {table.attrs['selects_by']}; exact ties at the boundary: {share}"


def _ordered(context: Context) -> tuple[list[str], dict[str, str]]:
    """The domains, those of one group adjacent, and their groups."""
    names = [context.domains[position] for position in charts.domain_order(context.domains, context.groups)]
    return names, {name: context.groups[name] for name in names if name in context.groups}


def _density(table: xr.Dataset, name: str, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Of all domains of a single layer."""
    counts = table[f"{name}_counts"].sel(domain=ALL).values[0]
    return densities(table[f"{name}_bin"].values[1:], counts, num_bins=60, log=log)
