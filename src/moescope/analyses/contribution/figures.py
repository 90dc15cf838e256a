"""Figures of contribution: heat maps over layers and experts, norms by layer, lists of promoted tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import evenly, quantiles_over_pairs, spread
from moescope.figures.fonts import MONOSPACED, fitting, text_width

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 64
MOST_LAYERS = 4
EXPERTS_PER_LAYER = 4
TEXT_SIZE = 6.5


@styled
def heat_maps(table: xr.Dataset, about: str, *, shared_experts: bool = False) -> Figure:
    """Share of the output and saliency of every expert, a row per layer.

    Args:
        table: The contributions.
        about: Model, tokens and corpus, for the line below.
        shared_experts: Whether the layers have shared experts, which are no part of the output here.
    """
    layers = table["layer"].values.tolist()
    shown = evenly(len(layers), MOST_ROWS)
    percent_LE = 100 * table["output_share"].values[shown]
    saliency_LE = table["saliency_mean"].values[shown]
    with np.errstate(invalid="ignore"):
        ratio_LE = saliency_LE / np.nanmean(saliency_LE, axis=1, keepdims=True)
    even = 100 / table.sizes["expert"]
    fig, axes = style.figure("page", 2 * max(1.5, style.height_for(len(shown), 0.13, 0.5)), 2, 1, sharex=True)
    panels = (
        (axes[0], percent_LE, even, "share of the layer's output (%)", "output share"),
        (axes[1], ratio_LE, 1.0, "saliency ÷ layer's mean", "saliency, relative to its layer"),
    )
    for ax, matrix_LE, center, label, title in panels:
        charts.heatmap(
            ax,
            matrix_LE,
            label=label,
            rows=[layers[position] for position in shown],
            columns=table["expert"].values.tolist(),
            xlabel="expert" if ax is axes[1] else None,
            ylabel="layer",
            title=title,
            vmin=min(0.0, float(np.nanmin(matrix_LE, initial=0.0))),
            vmax=max(float(np.nanquantile(matrix_LE, 0.995)) if np.isfinite(matrix_LE).any() else 0.0, 2 * center),
            center=center,
        )
    note = (
        f"white: {even:.3g} %, an even share (1/E), or the layer's mean saliency; darkest red: 99.5th percentile of "
        "experts and above; saliency: mean of weight × |output|"
    )
    if np.isnan(saliency_LE).any():
        note += "; gray: no token was routed to the expert"
    if shared_experts:
        note += "; shared experts' output is no part of it"
    caption(fig, about, note)
    return fig


@styled
def by_layer(table: xr.Dataset, about: str) -> Figure:
    """Mean norm of an output before and after its weight, over layers: the median expert and the spread."""
    layers = table["layer"].values
    fig, ax = style.figure("column", 2.4)
    drawn = (
        ("output_norm_mean", "output norm", style.COLORS[0]),
        ("saliency_mean", "saliency (weight × norm)", style.COLORS[1]),
    )
    for name, words, color in drawn:
        spread(ax, layers, *quantiles_over_pairs(table[name].values), name=words, color=color)
    values = np.concatenate([table[name].values.ravel() for name, _, _ in drawn])
    if np.nanmin(values, initial=np.inf) > 0:
        ax.set_yscale("log")
        charts.log_ticks(ax, "y")
    charts.label(ax, x="layer", y="norm of a hidden state")
    charts.legend_above(ax)
    note = "means over the tokens routed to each expert; line: median expert, band: 5-95 % of experts"
    caption(fig, about, note)
    return fig


@styled
def token_lists(table: xr.Dataset, about: str) -> Figure:
    """Tokens that the experts with the largest shares promote and suppress, a row each."""
    rows = top_experts(table)
    layers = list(dict.fromkeys(layer for layer, _ in rows))
    line = TEXT_SIZE * 1.75
    height = (len(rows) + 1.3) * line + (len(layers) - 1) * 0.45 * line + 4
    fig, ax = style.figure("page", height / 72 + 0.1)
    ax.axis("off")
    width = style.PAGE_WIDTH * 72 - 8
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    columns = {"layer": 0.0, "expert": 28.0, "share": 62.0, "promotes": 92.0, "suppresses": 0.64 * width}
    for words, x in columns.items():
        ax.text(x, line * 0.7, words, fontsize=TEXT_SIZE, weight="bold", color=style.INK)
    y, before = 1.3 * line, rows[0][0] if rows else None
    for layer, expert in rows:
        if layer != before:
            y += 0.45 * line
            ax.plot([0, width], [y - 0.1 * line] * 2, color="#d5d5d5", linewidth=0.5)
        at = table.sel(layer=layer, expert=expert)
        values = (
            str(layer) if layer != before or y < 2 * line else "",
            str(expert),
            f"{100 * at['output_share']:.1f} %",
        )
        for words, x in zip(values, list(columns.values())[:3], strict=True):
            ax.text(x, y + line * 0.7, words, fontsize=TEXT_SIZE, color=style.INK)
        for kind, start, end in (("promoted", columns["promotes"], columns["suppresses"] - 10),
                                 ("suppressed", columns["suppresses"], width)):  # fmt: skip
            _row_of_tokens(
                ax, at[f"{kind}_token"].values.tolist(), start, end, y, line, style.COLORS[kind != "promoted"]
            )
        y += line
        before = layer
    caption(
        fig,
        about,
        f"the {EXPERTS_PER_LAYER} experts of largest share at {len(layers)} of {table.sizes['layer']} layers; tokens "
        "by the logit that the mean output adds through final norm and unembedding, largest first; the effect of later "
        "layers is left out",
    )
    return fig


def _row_of_tokens(ax: Axes, tokens: list[str], start: float, end: float, y: float, line: float, color: str) -> None:
    """As many tokens as there is room for, each on a tint that shows where it begins and ends."""
    from matplotlib.patches import Rectangle

    x = start
    for token in tokens:
        text = fitting(token, TEXT_SIZE, 70.0, MONOSPACED)
        across = text_width(text, TEXT_SIZE, MONOSPACED)
        if x + across + 3 > end:
            return
        ax.add_patch(Rectangle((x, y + 0.06 * line), across + 3, 0.86 * line, facecolor=color, alpha=0.13, linewidth=0))
        ax.text(x + 1.5, y + line * 0.7, text, family=MONOSPACED, fontsize=TEXT_SIZE, color=style.INK)
        x += across + 7


def top_experts(table: xr.Dataset) -> list[tuple[int, int]]:
    """The experts of largest share in a few layers spread over depth, layer by layer."""
    rows = []
    for position in evenly(table.sizes["layer"], MOST_LAYERS):
        at = table.isel(layer=position)
        shares_E = np.where(at["num_selected"].values > 0, np.nan_to_num(at["output_share"].values), -np.inf)
        order = np.argsort(-shares_E, kind="stable")[:EXPERTS_PER_LAYER]
        rows += [(int(at["layer"]), int(expert)) for expert in order if np.isfinite(shares_E[expert])]
    return rows
