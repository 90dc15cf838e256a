"""Routing distributions: histograms of logits, probabilities and weights over tokens and experts, and means by rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.figures.histograms import all_layers, panel_per_layer
from moescope.figures import caption, charts, style
from moescope.statistics.distributions import QUANTITIES, RoutingDistributions
from moescope.measures.histogram import merge_bins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic


@dataclass(frozen=True)
class _Panel:
    """How one quantity is drawn: title, what its axis says, whether that is logarithmic."""

    title: str
    axis: str
    log: bool


def _panels(num_selected: int) -> dict[str, _Panel]:
    return {
        "logit": _Panel("logits", "logit", False),
        "probability": _Panel("probabilities", "probability", True),
        "renormalized": _Panel(f"{num_selected} largest, renormalised", "share of their sum", True),
        "weight": _Panel("applied weights", "weight", True),
    }


class Distributions(Analysis):
    """What the router's numbers look like."""

    name = "distributions"
    summary = "Routing distributions: logits, probabilities, renormalised and applied weights, and their means by rank."

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Histograms and sums by rank, by layer."""
        model = context.model
        return {
            "distributions": RoutingDistributions(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                device=model.device,
            )
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """What `RoutingDistributions.compute` gives; attrs also say how the family decides."""
        table = statistics["distributions"].compute()
        table.attrs["scoring"] = context.model.router.scoring
        return table

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`routing_distributions` (moments, quantiles), `routing_histograms` (long), `weights_by_rank`."""
        return {
            "routing_distributions": summary_frame(table),
            "routing_histograms": histogram_frame(table),
            "weights_by_rank": rank_frame(table),
        }

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`routing_histograms`: of each quantity the counts (layer, place) and the edges, as fine as they were counted.

        Place 0 counts what lies below the lowest edge, the last place what lies above the highest.
        """
        arrays = {"layers": table["layer"].values}
        for name in QUANTITIES:
            arrays[f"{name}_edges"] = table[f"{name}_bin"].values[1:]
            arrays[f"{name}_counts"] = table[f"{name}_counts"].values
        return {"routing_histograms": arrays}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """All four quantities at a glance, each by layer, and means by rank."""
        yield "routing_distributions", _overview(table, context)
        if table.sizes["layer"] > 1:
            for name in QUANTITIES:
                yield f"routing_{name}_by_layer", _by_layer(table, name, context)
        yield "routing_by_rank", _by_rank(table, context)


def summary_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and quantity: mean, standard deviation, quantiles of its values."""
    parts = []
    for name in QUANTITIES:
        columns = {
            "layer": table["layer"].values,
            "quantity": name,
            "num_tokens": table["num_tokens"].values,
            "num_values": table[f"{name}_counts"].sum(f"{name}_bin").values,
            "mean": table[f"{name}_mean"].values,
            "std": table[f"{name}_std"].values,
        }
        for level in table["quantile"].values:
            columns[f"q{round(100 * level):02d}"] = table[f"{name}_quantile"].sel(quantile=level).values
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True).sort_values("layer", kind="stable", ignore_index=True)


def histogram_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer, quantity, scale and bin that holds anything: `low <= x < high`, and how many values.

    Scale is `linear` (bins of 1/4 for logits, 1/128 for probabilities, the last with 1 in it) or `log` (8 bins to each
    factor of 2). Ends of the axis are -inf and inf. The finer counts are in the arrays.
    """
    scales = [("logit", "linear", "logit", 4)]
    scales += [(name, "log", name, 8) for name in ("probability", "renormalized", "weight")]
    scales += [(name, "linear", f"{name}_linear", 1) for name in ("probability", "renormalized")]
    parts = []
    for name, scale, variable, step in scales:
        bins = "linear_bin" if variable.endswith("_linear") else f"{name}_bin"
        edges = table[bins].values[1:]
        counts = merge_bins(table[f"{variable}_counts"].values, edges, edges[::step])
        bounds = np.concatenate([[-np.inf], edges[::step], [np.inf]])
        layer, place = np.nonzero(counts)
        parts.append(
            pd.DataFrame(
                {
                    "layer": table["layer"].values[layer],
                    "quantity": name,
                    "scale": scale,
                    "low": bounds[place],
                    "high": bounds[place + 1],
                    "num_values": counts[layer, place],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def rank_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and rank: the mean of each quantity at that rank."""
    num_layers, num_ranks = table.sizes["layer"], table.sizes["rank"]
    columns = {
        "layer": np.repeat(table["layer"].values, num_ranks),
        "rank": np.tile(table["rank"].values, num_layers),
        "num_tokens": np.repeat(table["num_tokens"].values, num_ranks),
    }
    return pd.DataFrame(columns | {f"{name}_mean": table[f"{name}_by_rank"].values.ravel() for name in QUANTITIES})


def _density_label(log: bool) -> str:
    return "density (per factor of 10)" if log else "density"


def _overview(table: xr.Dataset, context: Context) -> Figure:
    fig, axes = style.figure("page", 4.2, 2, 2)
    layers = table["layer"].values.tolist()
    cut_off: set[int] = set()
    for ax, (name, panel) in zip(axes.flat, _panels(table.sizes["rank"]).items(), strict=True):
        edges, counts_LX = table[f"{name}_bin"].values[1:], table[f"{name}_counts"].values
        cut_off.update(all_layers(ax, edges, counts_LX, layers, log=panel.log))
        charts.label(ax, x=panel.axis, y=_density_label(panel.log), title=panel.title)
    charts.depth_key(fig, axes, layers)
    peaks = f"peaks cut off at the top: layers {', '.join(map(str, sorted(cut_off)))}" if cut_off else ""
    caption(fig, context.caption, _note(layers) or peaks)
    return fig


def _by_layer(table: xr.Dataset, name: str, context: Context) -> Figure:
    panel = _panels(table.sizes["rank"])[name]
    return panel_per_layer(
        table[f"{name}_bin"].values[1:],
        table[f"{name}_counts"].values,
        table["layer"].values.tolist(),
        context.caption,
        xlabel=panel.axis,
        ylabel=_density_label(panel.log),
        log=panel.log,
    )


def _by_rank(table: xr.Dataset, context: Context) -> Figure:
    fig, axes = style.figure("page", 4.2, 2, 2, sharex=True)
    layers = table["layer"].values.tolist()
    colours = charts.depth_colours(layers)
    for ax, (name, panel) in zip(axes.flat, _panels(table.sizes["rank"]).items(), strict=True):
        by_layer = {str(layer): values for layer, values in zip(layers, table[f"{name}_by_rank"].values, strict=True)}
        charts.lines(
            ax,
            table["rank"].values,
            by_layer,
            colours={str(layer): colour for layer, colour in colours.items()},
            title=panel.title + (" of the selected" if name in ("logit", "probability") else ""),
            ylabel=f"mean {panel.axis}",
            legend=False,
            log_y=panel.log,
        )
    for ax in axes[1]:
        charts.label(ax, x="rank")
    charts.depth_key(fig, axes, layers)
    caption(fig, context.caption, _note(layers))
    return fig


def _note(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else ""
