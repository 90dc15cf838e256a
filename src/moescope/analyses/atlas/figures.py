"""Figures of the atlas, drawn of its tables."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moescope.analyses.atlas.table import ACROSS, ALL, FIRST_ORDER, GRADIENT, WITHIN_DOMAINS, WITHIN_LAYERS
from moescope.figures import caption, charts, style, styled

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context

MILLI = 1000.0
"""Effects are drawn in thousandths of a nat: one expert of many is worth little."""
MOST_EXPERTS = 30
MOST_ROWS = 64
CLIP = 0.995
"""Colours end at this quantile of the effects' size: the largest few would leave the others white."""
METHODS = {"gradient": "estimated by gradient", "exact": "measured by ablation"}
SCOPE_COLOURS = {
    ACROSS: style.COLOURS[0],
    WITHIN_LAYERS: style.COLOURS[1],
    WITHIN_DOMAINS: style.COLOURS[2],
}


@styled
def experts(table: xr.Dataset, context: Context) -> Figure:
    """Δ loss of every expert over all domains, a row per layer."""
    layers = table["layer"].values.tolist()
    values_LE = MILLI * table["delta_loss"].values[:, 0]
    shown = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), MOST_ROWS)).round().astype(int)).tolist()
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
        centre=0.0,
    )
    caption(fig, context.caption, f"{_sample(table)}; red: without the expert the loss would rise; blue: fall{clipped}")
    return fig


@styled
def domains(table: xr.Dataset, context: Context) -> Figure:
    """The experts with the largest effect on any domain, and their effect on every domain."""
    names = table["domain"].values.tolist()[1:]
    order_D = charts.domain_order(names, context.groups)
    names = [names[index] for index in order_D]
    values_LDE = MILLI * table["delta_loss"].values[:, 1:][:, order_D]
    flat_XD = values_LDE.swapaxes(1, 2).reshape(-1, len(names))
    sizes_X = np.where(np.isfinite(flat_XD), np.abs(flat_XD), 0.0).max(1)
    chosen = np.argsort(-sizes_X, kind="stable")[:MOST_EXPERTS]
    chosen = chosen[sizes_X[chosen] > 0]
    # Experts of one domain side by side, in the domains' order.
    chosen = chosen[np.lexsort((-sizes_X[chosen], np.nan_to_num(np.abs(flat_XD[chosen])).argmax(1)))]
    num_experts, layers = table.sizes["expert"], table["layer"].values
    groups = [context.groups.get(name, "") for name in names]
    gaps = [column + 1 for column, (before, after) in enumerate(pairwise(groups)) if before != after]
    reach, clipped = _reach(flat_XD[chosen])
    fig, ax = style.figure("page", style.height_for(len(chosen), 0.135, 1.5))
    charts.heatmap(
        ax,
        np.clip(flat_XD[chosen], -reach, reach),
        label="Δ loss (10⁻³ nats per token of the domain)",
        rows=[f"layer {layers[cell // num_experts]}, expert {cell % num_experts}" for cell in chosen],
        columns=names,
        vmin=-reach,
        vmax=reach,
        centre=0.0,
        column_gaps=gaps,
        groups=context.groups,
    )
    note = f"the {len(chosen)} experts of largest effect on any domain, found on the same documents, so flattered"
    caption(fig, context.caption, f"{_sample(table)}; {note}{clipped}")
    return fig


@styled
def top(frame: pd.DataFrame, table: xr.Dataset, context: Context) -> Figure:
    """The expert each domain needs most, beside experts of its layer that the domain uses as often."""
    best = frame[frame["place"] == 0].sort_values("delta_loss", ascending=False, kind="stable")
    fig = _beside_controls(
        best,
        [f"{row.domain} · layer {row.layer}, expert {row.expert}" for row in best.itertuples()],
        context,
        control="control: mean and 5–95 % of experts of the layer that the domain uses as often",
    )
    note = "chosen on one half of the documents; bars and 95 % intervals from the other half"
    if best["ci_low"].isna().any():
        note += f"; no interval: under {table.attrs['min_documents']} documents there"
    caption(fig, context.caption, f"{_sample(table)}; {note}")
    return fig


@styled
def ablation(frame: pd.DataFrame, words: str, context: Context) -> Figure:
    """Δ loss by domain of one ablation, beside its controls."""
    known = frame[frame["num_tokens"] > 0]
    order = known[known["domain"] != ALL].sort_values("delta_loss", ascending=False, kind="stable")
    rows = pd.concat([known[known["domain"] == ALL], order]) if len(order) > 1 else order
    fig = _beside_controls(
        rows, rows["domain"].tolist(), context, control="control: mean and 5–95 % of other experts used as often"
    )
    note = f"{words} ablated; bars: 95 % intervals over documents; {int(frame['num_controls'].iloc[0])} controls"
    caption(fig, context.caption, note)
    return fig


def _beside_controls(frame: pd.DataFrame, names: list[str], context: Context, control: str) -> Figure:
    """Bars of Δ loss with intervals, the control's mean and range on each."""
    fig, ax = style.figure("page", style.height_for(len(frame), 0.15, 1.0))
    colours = style.group_colours(context.groups)
    charts.bars(
        ax,
        names,
        MILLI * frame["delta_loss"].to_numpy(),
        xlabel="Δ loss without the expert (10⁻³ nats per token of the domain)",
        low=MILLI * frame["ci_low"].to_numpy(),
        high=MILLI * frame["ci_high"].to_numpy(),
        colours=[colours.get(context.groups.get(domain, ""), style.NEUTRAL) for domain in frame["domain"]],
    )
    if frame["control_delta_loss"].notna().any():
        places = np.arange(len(frame)) + 0.22
        low, middle, high = (
            MILLI * frame[f"control_{name}"].to_numpy() for name in ("quantile_05", "delta_loss", "quantile_95")
        )
        ax.hlines(places, low, high, color=style.NEUTRAL, linewidth=2.0, alpha=0.7)
        ax.plot(
            middle, places, linestyle="", marker="D", markersize=2.6, color="white", markeredgecolor=style.INK,
            markeredgewidth=0.7, label=control,
        )  # fmt: skip
    ax.axvline(0, color=style.INK, linewidth=0.6)
    ax.grid(axis="x")
    charts.legend_above(ax)
    charts.colour_labels(ax, context.groups)
    return fig


@styled
def agreement(table: xr.Dataset, context: Context) -> Figure:
    """Estimate by gradient against real ablation, an expert a point."""
    fig, ax = style.figure("column", 2.9)
    estimate, exact = (MILLI * table[name].values for name in ("ablated_gradient", "ablated_delta_loss"))
    low, high = (MILLI * table[f"ablated_delta_loss_ci_{end}"].values for end in ("low", "high"))
    ends = np.array([estimate.min(), estimate.max()])
    ax.plot(ends, ends, color=style.NEUTRAL, linewidth=0.8, linestyle=(0, (4, 2)), label="equal", zorder=1)
    ax.vlines(estimate, low, high, color=style.COLOURS[0], linewidth=0.6, alpha=0.45)
    ax.plot(estimate, exact, linestyle="", marker="o", markersize=2.6, color=style.COLOURS[0], label="an expert")
    ax.grid(axis="both")
    charts.label(ax, x="estimated by gradient (10⁻³ nats per token)", y="ablated (10⁻³ nats per token)")
    charts.legend_above(ax)
    names = ("rank_correlation", "rank_correlation_ci_low", "rank_correlation_ci_high")
    value, from_, to = (float(table[name].values[0]) for name in names)
    slope = float(table["rank_correlation"].values[1])
    caption(
        fig,
        context.caption,
        f"rank correlation {value:.2f} (95 % interval {from_:.2f} to {to:.2f}), {len(estimate)} experts; of "
        f"its first-order part alone {slope:.2f}; on "
        f"{int(table['ablated_num_tokens']):,} tokens of {int(table['ablated_num_documents'])} documents; bars: 95 % "
        "intervals over documents",
    )
    return fig


@styled
def relations(frame: pd.DataFrame, table: xr.Dataset, context: Context) -> Figure:
    """How well routing statistics foretell the effect: rank correlations with intervals."""
    main = METHODS[table.attrs["method"]]
    shown = frame[~frame["predictor"].isin([GRADIENT, FIRST_ORDER]) & (frame["effect"] == _main(frame))]
    names = list(dict.fromkeys(shown["predictor"]))
    scopes = [scope for scope in SCOPE_COLOURS if scope in set(shown["scope"])]
    fig, ax = style.figure("column", style.height_for(len(names), 0.3, 0.8))
    for number, scope in enumerate(scopes):
        rows = shown[shown["scope"] == scope]
        heights = [names.index(name) + 0.24 * (number - (len(scopes) - 1) / 2) for name in rows["predictor"]]
        colour = SCOPE_COLOURS[scope]
        ax.hlines(heights, rows["ci_low"], rows["ci_high"], color=colour, linewidth=1.4, alpha=0.5)
        ax.plot(rows["rank_correlation"], heights, linestyle="", marker="o", color=colour, label=scope)
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
    """The effect that all experts have a number of."""
    return str(frame["effect"].iloc[-1])


def _reach(values: np.ndarray) -> tuple[float, str]:
    """Where a symmetric colour scale ends, and what to say of what lies beyond."""
    sizes = np.abs(values[np.isfinite(values)])
    if not sizes.size or not sizes.max():
        return 1.0, ""
    reach = float(np.quantile(sizes, CLIP))
    if sizes.size < 1000 or reach <= 0:
        reach = float(sizes.max())
    beyond = int((sizes > reach).sum())
    return reach, f"; {beyond} beyond the scale's ends" if beyond else ""


def _sample(table: xr.Dataset) -> str:
    tokens, documents = int(table["num_tokens"].values[0]), int(table["num_documents"].values[0])
    return f"{METHODS[table.attrs['method']]} on {tokens:,} of them, from {documents:,} documents"


__all__ = ["ablation", "agreement", "domains", "experts", "relations", "top"]
