"""Router decisiveness: entropy of the router's probabilities, margins, ties, by layer and by layer and domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Context
from moescope.analyses.drawing import chosen_panels
from moescope.figures import caption, charts, style
from moescope.figures.bins import densities
from moescope.statistics.entropy import MEASURES, POOLED, RouterEntropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

_FIRST_COLUMNS = [
    "entropy_mean",
    "entropy_std",
    "normalized_entropy_mean",
    "top1_probability_mean",
    "topk_mass_mean",
    "margin_mean",
    "boundary_margin_mean",
    "boundary_tie_share",
]


class Entropy(Analysis):
    """How decided the router is."""

    name = "entropy"
    summary = "Router decisiveness: entropy, margins and ties, by layer and domain."

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Sums and histograms of the measures, by layer and domain."""
        model = context.model
        return {
            "entropy": RouterEntropy(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                domains=list(context.domains),
                selects_by=model.router.selects_by,
                device=model.device,
            )
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """What `RouterEntropy.compute` gives; attrs also say how the family turns logits into probabilities."""
        table = statistics["entropy"].compute()
        table.attrs["scoring"] = context.model.router.scoring
        return table

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`router_entropy`: one row per layer and domain, `all` first; quantiles are `*_q05` ... `*_q95`."""
        return {"router_entropy": router_entropy_frame(table)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`router_entropy_histograms`: of each measure the counts (layer, domain, place) and the edges.

        Place 0 counts what lies below the lowest edge, the last place what lies above the highest.
        """
        arrays = {"layers": table["layer"].values, "domains": table["domain"].values.astype(str)}
        for name in MEASURES:
            arrays[f"{name}_edges"] = table[f"{name}_bin"].values[1:]
            arrays[f"{name}_counts"] = table[f"{name}_counts"].values
        return {"router_entropy_histograms": arrays}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Entropy and shares by layer, entropy by layer and domain, entropy's histogram by layer, margins by layer."""
        yield "router_decisiveness", _decisiveness(table, context)
        if len(context.domains) > 1:
            yield "router_entropy_domains", _domains(table, context)
        yield "router_entropy_histograms", _histograms(table, context)
        yield "router_margins", _margins(table, context)


def router_entropy_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and domain (`all`, which pools tokens, first)."""
    columns = {"num_tokens": table["num_tokens"], "num_documents": table["num_documents"]}
    columns |= {name: table[name] for name in _FIRST_COLUMNS}
    for name in MEASURES:
        for level in table["quantile"].values:
            columns[f"{name}_q{round(100 * level):02d}"] = table[f"{name}_quantile"].sel(quantile=level)
    for name in (*MEASURES, "normalized_entropy", "normalized_selected_entropy"):
        for part in ("mean", "std"):
            columns.setdefault(f"{name}_{part}", table[f"{name}_{part}"])
    num_layers, num_domains = table["num_tokens"].shape
    rows = {
        "layer": np.repeat(table["layer"].values, num_domains),
        "domain": np.tile(table["domain"].values.astype(object), num_layers),
    }
    return pd.DataFrame(rows | {name: values.values.ravel() for name, values in columns.items()})


def _band(table: xr.Dataset, name: str, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    quantile = table[f"{name}_quantile"].sel(domain=POOLED)
    return quantile.sel(quantile=low).values, quantile.sel(quantile=high).values


def _median(table: xr.Dataset, name: str) -> np.ndarray:
    return table[f"{name}_quantile"].sel(domain=POOLED, quantile=0.5).values


def _decisiveness(table: xr.Dataset, context: Context) -> Figure:
    layers = table["layer"].values
    num_experts, num_selected = table.attrs["num_experts"], table.attrs["num_experts_per_token"]
    fig, (left, right) = style.figure("page", 2.5, 1, 2)
    colour = style.COLOURS[0]
    charts.band(left, layers, *_band(table, "entropy", 0.05, 0.95), colour=colour)
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
    shares = {"top-1 probability": "top1_probability", f"top-{num_selected} mass": "topk_mass"}
    if num_selected == 1:
        shares.popitem()
    charts.lines(
        right,
        layers,
        {words: _median(table, name) for words, name in shares.items()},
        bands={words: _band(table, name, 0.25, 0.75) for words, name in shares.items()},
        xlabel="layer",
        ylabel="probability",
        baseline=(f"uniform mass, {num_selected}/{num_experts}", num_selected / num_experts),
        ylim=(0, 1),
    )
    caption(fig, context, "medians over tokens; bands: 25-75 % of tokens, on the left also 5-95 %")
    return fig


def _domains(table: xr.Dataset, context: Context) -> Figure:
    order = charts.domain_order(context.domains, context.groups)
    names = [context.domains[position] for position in order]
    groups = {name: context.groups[name] for name in names if name in context.groups}
    by_domain = table.sel(domain=names)
    label = "normalised entropy (share of ln E)"
    layers = table["layer"].values
    if len(layers) == 1:
        fig, ax = style.figure("column", style.height_for(len(names), around=0.9))
        values = by_domain["normalized_entropy_mean"].values[0]
        low, high = (by_domain["normalized_entropy_quantile"].sel(quantile=q).values[0] for q in (0.25, 0.75))
        charts.bars(ax, names, values, low=low, high=high, xlabel=label, groups=groups)
        ax.set_xlim(0, 1)
        note = f"layer {layers[0]}; means over tokens; lines: 25-75 % of tokens"
    else:
        fig, ax = style.figure("column" if len(layers) <= 32 else "page", style.height_for(len(names), around=0.9))
        starts = [groups.get(name) for name in names]
        charts.heatmap(
            ax,
            by_domain["normalized_entropy_mean"].values.T,
            rows=names,
            columns=layers,
            label=label,
            xlabel="layer",
            groups=groups,
            row_gaps=[i for i in range(1, len(names)) if starts[i] != starts[i - 1]],
        )
        note = "means over tokens"
    if groups:
        charts.group_legend(fig, groups)
    caption(fig, context, note)
    return fig


def _histograms(table: xr.Dataset, context: Context) -> Figure:
    shown = chosen_panels(table.sizes["layer"])
    layers = table["layer"].values[shown]
    counts = table["entropy_counts"].sel(domain=POOLED).values[shown]
    edges, density = densities(table["entropy_bin"].values[1:], counts, num_bins=48, cut=0.0)
    if len(shown) == 1:
        fig, ax = style.figure()
        charts.histogram(ax, edges, density[0], xlabel="router entropy (nats)", ylabel="density of tokens (1/nat)")
        note = f"layer {layers[0]}"
    else:
        fig, axes = charts.small_multiples(len(shown))
        for ax, layer, heights in zip(axes, layers, density, strict=True):
            charts.histogram(ax, edges, heights, title=f"layer {layer}")
        fig.supxlabel("router entropy (nats)")
        fig.supylabel("density of tokens (1/nat)")
        note = f"{len(shown)} of {table.sizes['layer']} layers shown" if len(shown) < table.sizes["layer"] else ""
    caption(fig, context, f"{note}; uniform: ln E = {np.log(table.attrs['num_experts']):.2f} nats".lstrip("; "))
    return fig


def _margins(table: xr.Dataset, context: Context) -> Figure:
    layers = table["layer"].values
    fig, axes = style.figure("page", 2.5, 1, 2)
    selects_by = table.attrs["selects_by"]
    # the long descriptions of group-limited selection do not fit an axis; the small print has them in full
    panels = {"margin": "first - second probability", "boundary_margin": "lowest selected - highest unselected"}
    for ax, (name, words), colour in zip(axes, panels.items(), style.COLOURS, strict=False):
        least = table[f"{name}_bin"].values[1]  # quantiles below the axis read 0, which a logarithm cannot show
        bands = [
            tuple(np.maximum(end, least) for end in _band(table, name, *ends)) for ends in ((0.05, 0.95), (0.25, 0.75))
        ]
        charts.band(ax, layers, *bands[0], colour=colour)
        charts.lines(
            ax,
            layers,
            {"median": np.maximum(_median(table, name), least)},
            colours={"median": colour},
            bands={"median": bands[1]},
            title=words,
            xlabel="layer",
            ylabel=f"{name.replace('_', ' ')} of tokens",
            log_y=True,
        )
    ties = table["boundary_tie_share"].sel(domain=POOLED).values
    note = f"medians; bands: 25-75 % and 5-95 % of tokens; selection is by {selects_by}; exact ties at the boundary: "
    caption(
        fig, context, note + (f"at most {100 * np.nanmax(ties):.2g} % of a layer's tokens" if ties.any() else "none")
    )
    return fig
