"""Figures of routing distributions: histograms of all layers, of each layer, and means by rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moescope.figures import caption, charts, style
from moescope.figures.histograms import all_layers, panel_per_layer

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context


@dataclass(frozen=True)
class _Panel:
    """How one quantity is drawn: title, label of its axis, whether that is logarithmic."""

    title: str
    axis: str
    log: bool


def _panels(num_selected: int) -> dict[str, _Panel]:
    return {
        "logit": _Panel("logits", "logit", False),
        "probability": _Panel("probabilities", "probability", True),
        "renormalized": _Panel(f"{num_selected} largest, renormalized", "share of their sum", True),
        "weight": _Panel("applied weights", "weight", True),
    }


def _density_label(log: bool) -> str:
    return "density (per factor of 10)" if log else "density"


def overview(table: xr.Dataset, context: Context) -> Figure:
    """Histograms of all four quantities, a line per layer."""
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


def by_layer(table: xr.Dataset, name: str, context: Context) -> Figure:
    """Histograms of one quantity, a panel per layer."""
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


def by_rank(table: xr.Dataset, context: Context) -> Figure:
    """Means of all four quantities by rank, a line per layer."""
    fig, axes = style.figure("page", 4.2, 2, 2, sharex=True)
    layers = table["layer"].values.tolist()
    colors = charts.depth_colors(layers)
    for ax, (name, panel) in zip(axes.flat, _panels(table.sizes["rank"]).items(), strict=True):
        by_layer = {str(layer): values for layer, values in zip(layers, table[f"{name}_by_rank"].values, strict=True)}
        charts.lines(
            ax,
            table["rank"].values,
            by_layer,
            colors={str(layer): color for layer, color in colors.items()},
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
