"""Figure of relations: a panel for each, the rank correlation by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.analyses.relations.table import POOLED
from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import DASHES

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def panels(table: xr.Dataset, about: str) -> Figure:
    """A panel for each relation: correlation by layer with its interval, on the band of its null."""
    count = table.sizes["relation"]
    fig, axes = charts.small_multiples(count, columns=min(3, count), panel_height=1.25, around=0.55)
    for position, ax in enumerate(axes):
        _panel(ax, table.isel(relation=position))
    handles, names = axes[0].get_legend_handles_labels()
    charts.top_legend(fig, handles, names)
    fig.supxlabel("layer")
    fig.supylabel("rank correlation (Spearman)")
    note = "over pairs of experts, or over experts, of a layer; bars: 95 % intervals over experts; band: null, 95 % of "
    caption(fig, about, f"{note}permutations of experts; in each title the mean over layers with its interval")
    return fig


def _panel(ax: Axes, relation: xr.Dataset) -> None:
    at = relation.isel(layer=relation["num_values"].values > 0)
    layers, color = at["layer"].values.astype(float), style.COLORS[0]
    null = at["null_low"].values, at["null_high"].values
    charts.band(ax, layers, *null, color=style.NEUTRAL, label="experts permuted")
    ax.axhline(0, color=style.NEUTRAL, linewidth=0.6, linestyle=DASHES)
    ax.vlines(layers, at["ci_low"].values, at["ci_high"].values, color=color, linewidth=0.9, alpha=0.7)
    series = {"measured": at["rank_correlation"].values}
    charts.lines(ax, layers, series, colors={"measured": color}, legend=False, ylim=(-1, 1))
    mean, low, high = (float(relation[POOLED + name]) for name in ("rank_correlation", "ci_low", "ci_high"))
    charts.label(ax, title=f"{relation['relation'].item()}\n{mean:.2f} ({low:.2f} to {high:.2f})")
    if len(layers) == 1:
        ax.set_xlim(layers[0] - 1, layers[0] + 1)
