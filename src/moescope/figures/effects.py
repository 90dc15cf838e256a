"""Bars of Δ loss with intervals, each with the mean and range of its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moescope.figures import charts, style, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MILLI = 1000.0
"""Effects are drawn in thousandths of a nat: that of one expert of many is small."""


@styled
def effects_with_controls(
    frame: pd.DataFrame,
    groups: Mapping[str, str],
    *,
    control: str,
    details: Sequence[str] | None = None,
    unknown: str = "no 95 % CI: too few documents",
    estimate: str | None = None,
) -> Figure:
    """Horizontal bars of Δ loss with intervals; a diamond and a line on each: mean and range of the controls.

    Args:
        frame: A row per bar: `domain`, `delta_loss`, `ci_low`, `ci_high`, `delta_loss_control`,
            `delta_loss_control_q05`, `delta_loss_control_q95`, nats per token.
        groups: Group of each domain, for the colors.
        control: Legend of the controls.
        details: What follows each domain in its bar's label.
        unknown: Legend of the bars without an interval.
        estimate: Legend of `delta_loss_estimate`, if that is to be marked on each bar.
    """
    fig, ax = style.figure("page", style.height_for(len(frame), 0.15, 1.0))
    colors = style.group_colors(groups)
    charts.bars(
        ax,
        frame["domain"].tolist(),
        MILLI * frame["delta_loss"].to_numpy(),
        xlabel="Δ loss without the expert (10⁻³ nats per token of the domain)",
        low=MILLI * frame["ci_low"].to_numpy(),
        high=MILLI * frame["ci_high"].to_numpy(),
        colors=[colors.get(groups.get(domain, ""), style.NEUTRAL) for domain in frame["domain"]],
        details=details,
        unknown=unknown,
        legend=False,
    )
    if frame["delta_loss_control"].notna().any():
        heights = np.arange(len(frame)) + 0.22
        low, middle, high = (MILLI * frame[f"delta_loss_control{end}"].to_numpy() for end in ("_q05", "", "_q95"))
        ax.hlines(heights, low, high, color=style.NEUTRAL, linewidth=2.0, alpha=0.7)
        ax.plot(
            middle, heights, linestyle="", marker="D", markersize=2.6, color="white", markeredgecolor=style.INK,
            markeredgewidth=0.7, label=control,
        )  # fmt: skip
    if estimate is not None:
        ax.plot(
            MILLI * frame["delta_loss_estimate"].to_numpy(), np.arange(len(frame)), linestyle="", marker="x",
            markersize=3.2, color=style.INK, markeredgewidth=0.8, label=estimate,
        )  # fmt: skip
    ax.axvline(0, color=style.INK, linewidth=0.6)
    ax.grid(axis="x")
    charts.color_labels(ax, groups)
    charts.key(ax, {domain: groups[domain] for domain in frame["domain"] if domain in groups})
    return fig
