"""Co-activation: which experts are selected for the same tokens, more or less often than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.figures.experts import DASHES, matrix_panels, similarity_order, spread
from moescope.figures import caption, charts, style, styled
from moescope.statistics.cooccurrence import ExpertCooccurrence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

TOP_PAIRS = 50
MIN_EXPECTED = 20
"""Pairs that independent routing would bring together less often are not ranked by lift: theirs is noise."""
LOG2_LIMIT = 3.0


def cooccurrence(context: Context) -> dict[str, Statistic]:
    """The co-occurrence of experts under the key that analyses share it by."""
    model = context.model
    return {
        "cooccurrence": ExpertCooccurrence(
            layers=list(context.layers),
            num_experts=model.num_experts,
            num_experts_per_token=model.num_experts_per_token,
            device=model.device,
        )
    }


class Coactivation(Analysis):
    """All pairs of the K experts of a token."""

    name = "coactivation"
    summary = "Co-activation: which experts are selected for the same tokens, more or less often than chance."

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Co-occurrence of experts."""
        return cooccurrence(context)

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `layer, expert, other_expert`: num_together, co-activation and lift, both also with `_independent`."""
        names = ["coactivation", "coactivation_independent", "lift", "lift_independent"]
        return statistics["cooccurrence"].compute()[["num_tokens", "num_selected", "num_together", *names]]

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`coactivation`: a row per layer. `coactivation_pairs`: each layer's pairs of highest lift."""
        i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
        summaries, pairs = [], []
        for layer in table["layer"].values.tolist():
            at = table.sel(layer=layer)
            num_tokens, selected_E = int(at["num_tokens"]), at["num_selected"].values
            lift_P, chance_P = at["lift"].values[i_P, j_P], at["lift_independent"].values[i_P, j_P]
            together_P = at["num_together"].values[i_P, j_P]
            with np.errstate(invalid="ignore", divide="ignore"):
                expected_P = chance_P * selected_E[i_P] * selected_E[j_P] / num_tokens
            judged_P = expected_P >= MIN_EXPECTED
            judged = np.quantile(lift_P[judged_P], [0.05, 0.5, 0.95]) if judged_P.any() else np.full(3, np.nan)
            summaries.append(
                {
                    "layer": layer,
                    "num_tokens": num_tokens,
                    "num_pairs": int(judged_P.sum()),
                    "lift_q05": judged[0],
                    "lift_median": judged[1],
                    "lift_q95": judged[2],
                    "lift_independent_median": float(np.median(chance_P[judged_P])) if judged_P.any() else np.nan,
                    "num_pairs_never_together": int((together_P == 0).sum()),
                }
            )
            order = np.argsort(-np.where(judged_P, lift_P, -np.inf), kind="stable")[:TOP_PAIRS]
            for place, pair in enumerate(order[judged_P[order]]):
                i, j = int(i_P[pair]), int(j_P[pair])
                pairs.append(
                    {
                        "layer": layer,
                        "place": place,
                        "expert": i,
                        "other_expert": j,
                        "num_tokens": num_tokens,
                        "num_selected": int(selected_E[i]),
                        "other_num_selected": int(selected_E[j]),
                        "num_together": int(together_P[pair]),
                        "num_together_independent": expected_P[pair],
                        "coactivation": float(at["coactivation"][i, j]),
                        "coactivation_reverse": float(at["coactivation"][j, i]),
                        "lift": lift_P[pair],
                        "lift_independent": chance_P[pair],
                    }
                )
        return {"coactivation": pd.DataFrame(summaries), "coactivation_pairs": pd.DataFrame(pairs)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`coactivation`: every measure for every pair of experts, (layer, expert, other expert)."""
        arrays = {str(name): values.values for name, values in table.data_vars.items()}
        return {"coactivation": {"layers": table["layer"].values, **arrays}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Spread of the lift over pairs, per layer; a heat map per layer."""
        yield "coactivation_by_layer", _by_layer(self.frames(table, context)["coactivation"], context)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_LEE = np.log2((table["lift"] / table["lift_independent"]).values)
        # Pairs never seen together lie at the scale's lower end, not outside it.
        ratio_LEE = np.clip(ratio_LEE, -LOG2_LIMIT, LOG2_LIMIT)
        own = np.arange(table.sizes["expert"])
        ratio_LEE[:, own, own] = np.nan
        orders = [similarity_order(ratio_EE) for ratio_EE in ratio_LEE]
        yield (
            "coactivation_lift",
            matrix_panels(
                [ratio_EE[np.ix_(order, order)] for ratio_EE, order in zip(ratio_LEE, orders, strict=True)],
                [f"layer {layer}" for layer in table["layer"].values],
                context.caption,
                label="measured ÷ independent (log₂)",
                labels=(orders, orders),
                xlabel="experts, those often together side by side",
                ylabel="experts, in the same order",
                vmin=-LOG2_LIMIT,
                vmax=LOG2_LIMIT,
                centre=0.0,
                note="how often two experts are selected together; each layer has its own order; −3 and 3: an eighth "
                "and eight times as often, or beyond",
            ),
        )


@styled
def _by_layer(frame: pd.DataFrame, context: Context) -> Figure:
    layers = frame["layer"].to_numpy()
    fig, ax = style.figure("column", 2.4)
    spread(
        ax, layers, frame["lift_q05"], frame["lift_median"], frame["lift_q95"],
        name="pairs of experts", colour=style.COLOURS[0],
    )  # fmt: skip
    ax.plot(
        layers, frame["lift_independent_median"], color=style.NEUTRAL, linestyle=DASHES,
        marker="_" if len(layers) == 1 else "", label="independent routing",
    )  # fmt: skip
    ax.set_ylim(bottom=0)
    charts.label(ax, x="layer", y="lift of co-activation (ratio)")
    charts.legend_above(ax)
    caption(fig, context.caption, f"line: median, band: 5-95 % of pairs expected together {MIN_EXPECTED} times or more")
    return fig
