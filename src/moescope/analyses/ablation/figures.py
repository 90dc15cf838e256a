"""The figure of an ablation, drawn from its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from moescope.figures import caption, styled
from moescope.figures.effects import effects_with_controls
from moescope.measures.constants import ALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.context import Context


@styled
def by_domain(frame: pd.DataFrame, description: str, context: Context) -> Figure:
    """Δ loss by domain, with the controls'."""
    known = frame[frame["num_tokens"] > 0]
    order = known[known["domain"] != ALL].sort_values("delta_loss", ascending=False, kind="stable")
    rows = pd.concat([known[known["domain"] == ALL], order]) if len(order) > 1 else order
    fig = effects_with_controls(
        rows,
        context.groups,
        control="controls: mean and 5–95 % of other experts selected about as often",
    )
    note = f"{description} ablated; bars: 95 % intervals over documents; {int(frame['num_controls'].iloc[0])} controls"
    caption(fig, context.caption, note)
    return fig
