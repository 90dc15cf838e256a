"""Figures of router saturation, drawn from its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex

from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import DASHES
from moescope.figures.ticks import axis_inches, stride

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moescope.context import Context

RANKS = {"topk": "top-K: all selected experts", "top1": "top-1: first rank only"}


@styled
def over_training(table: xr.Dataset, context: Context) -> Figure:
    """Saturation over training, a line a layer."""
    layers = table["layer"].values
    known = bool(np.isfinite(table["share"].values).all())
    order = np.argsort(table["share"].values, kind="stable") if known else np.arange(table.sizes["checkpoint"])
    x = table["share"].values[order] if known else np.arange(table.sizes["checkpoint"], dtype=float)
    colors = _ramp(len(layers))
    fig, axes = style.figure("page", 2.6, 1, 2, sharey=True)
    for ax, (ranks, title) in zip(axes, RANKS.items(), strict=True):
        for position, color in enumerate(colors):
            values = table[f"{ranks}_saturation"].values[order, position]
            ax.plot(x, values, marker="o", color=color, label=f"layer {layers[position]}")
        _chance(ax, float(table[f"{ranks}_saturation_chance"][0, 0]))
        ax.set_ylim(0, 1)
        ax.grid(axis="y")
        if known:
            ax.set_xlim(left=0)
        else:
            names = [str(name) for name in table["checkpoint"].values[order]]
            step = stride(len(names), axis_inches(ax, "x"), 0.15)
            charts.name_ticks(ax, "x", x[::step].tolist(), names[::step])
            ax.tick_params(axis="x", labelrotation=30, labelrotation_mode="xtick")
        charts.label(
            ax,
            x="share of training (%)" if known else "checkpoint",
            y="router saturation (share)" if ax is axes[0] else None,
            title=title,
        )
    _layer_key(fig, axes, layers, colors)
    caption(fig, context.caption, "share of a token's experts that the final model selects too")
    return fig


@styled
def by_layer(table: xr.Dataset, context: Context) -> Figure:
    """Saturation over layers, a line a checkpoint."""
    names = [str(name) for name in table["checkpoint"].values]
    few = len(names) <= len(style.COLORS) - 1
    colors = list(style.COLORS[: len(names)]) if few else _ramp(len(names))
    fig, axes = style.figure("page", 2.6, 1, 2, sharey=True)
    for ax, (ranks, title) in zip(axes, RANKS.items(), strict=True):
        values = table[f"{ranks}_saturation"].values
        charts.lines(
            ax, table["layer"].values, dict(zip(names, values, strict=True)),
            colors=dict(zip(names, colors, strict=True)), xlabel="layer", title=title, legend=False,
            ylabel="router saturation (share)" if ax is axes[0] else None, ylim=(0, 1),
        )  # fmt: skip
        _chance(ax, float(table[f"{ranks}_saturation_chance"][0, 0]))
    handles, labels = axes[0].get_legend_handles_labels()
    charts.top_legend(fig, handles, labels)
    caption(fig, context.caption, "share of a token's experts that the final model selects too")
    return fig


def _chance(ax: Axes, value: float) -> None:
    ax.axhline(value, color=style.NEUTRAL, linewidth=0.8, linestyle=DASHES, label="chance", zorder=1)


def _ramp(count: int) -> list[str]:
    """Colors from pale to dark, all of them visible on white."""
    colormap = matplotlib.colormaps[style.SEQUENTIAL]
    return [to_hex(colormap(0.3 + 0.7 * position / max(count - 1, 1))) for position in range(count)]


def _layer_key(fig: Figure, axes: np.ndarray, layers: np.ndarray, colors: Sequence[str]) -> None:
    """The color of each layer: a legend for a few layers, a color bar for many."""
    if len(layers) <= 6:
        handles, names = axes[0].get_legend_handles_labels()
        charts.top_legend(fig, handles, names)
        return
    scale = ScalarMappable(Normalize(-0.5, len(layers) - 0.5), ListedColormap(list(colors)))
    step = -(-len(layers) // 8)
    bar = fig.colorbar(scale, ax=axes, fraction=0.04, pad=0.02, label="layer", ticks=range(0, len(layers), step))
    bar.ax.set_yticklabels([str(layer) for layer in layers[::step]])
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes[0].legend(*[part[-1:] for part in axes[0].get_legend_handles_labels()], loc="upper left")
