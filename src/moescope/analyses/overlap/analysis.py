"""Expert token overlap: how far two experts take the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.analyses.coactivation.analysis import cooccurrence
from moescope.figures.experts import matrix_panels, quantiles_over_pairs, similarity_order, spread
from moescope.analyses.vocabulary.analysis import token_usage
from moescope.figures import caption, charts, style, styled
from moescope.statistics.tokens import TokenUsage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

MEASURES = {
    "jaccard": "occurrences, Jaccard",
    "overlap_coefficient": "occurrences, overlap coefficient",
    "weighted_jaccard": "vocabulary, weighted Jaccard",
}
TOP_PAIRS = 20


class Overlap(Analysis):
    """Two readings: the same occurrences (tokens routed to both), and the same vocabulary (token types of both)."""

    name = "overlap"
    summary = "Expert token overlap: how far two experts take the same tokens."

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Co-occurrence of experts, and the token types of each."""
        return cooccurrence(context) | token_usage(context)

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `layer, expert, other_expert`: the measures of `MEASURES`, each also with `_independent`."""
        together = statistics["cooccurrence"].compute()
        usage = statistics["tokens_input"]
        assert isinstance(usage, TokenUsage)
        table = xr.merge([together, usage.vocabulary_overlap()], combine_attrs="drop_conflicts")
        names = [f"{name}{suffix}" for name in MEASURES for suffix in ("", "_independent")]
        return table[["num_tokens", "num_selected", *names]]

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`overlap`: a row per layer and measure. `overlap_pairs`: each layer's pairs furthest above independence."""
        num_experts = table.sizes["expert"]
        i_P, j_P = np.triu_indices(num_experts, 1)
        summaries, pairs = [], []
        for layer in table["layer"].values.tolist():
            at = table.sel(layer=layer)
            for measure in MEASURES:
                values_P = at[measure].values[i_P, j_P]
                chance_P = at[f"{measure}_independent"].values[i_P, j_P]
                known_P = np.isfinite(values_P)
                summaries.append(
                    {
                        "layer": layer,
                        "measure": measure,
                        "num_tokens": int(at["num_tokens"]),
                        "num_pairs": int(known_P.sum()),
                        "mean": _mean(values_P[known_P]),
                        "mean_independent": _mean(chance_P[known_P]),
                        "median": float(np.median(values_P[known_P])) if known_P.any() else np.nan,
                        "median_independent": float(np.median(chance_P[known_P])) if known_P.any() else np.nan,
                    }
                )
                excess_P = np.where(known_P, values_P - chance_P, -np.inf)
                for place, pair in enumerate(np.argsort(-excess_P, kind="stable")[:TOP_PAIRS]):
                    if not known_P[pair]:
                        break
                    i, j = int(i_P[pair]), int(j_P[pair])
                    pairs.append(
                        {
                            "layer": layer,
                            "measure": measure,
                            "place": place,
                            "expert": i,
                            "other_expert": j,
                            "num_selected": int(at["num_selected"][i]),
                            "other_num_selected": int(at["num_selected"][j]),
                            "overlap": values_P[pair],
                            "overlap_independent": chance_P[pair],
                        }
                    )
        return {"overlap": pd.DataFrame(summaries), "overlap_pairs": pd.DataFrame(pairs)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`overlap`: every measure for every pair of experts, (layer, expert, other expert)."""
        return {"overlap": {"layers": table["layer"].values, **{str(n): v.values for n, v in table.data_vars.items()}}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Spread over pairs per layer, both readings; a heat map per layer for each reading."""
        yield "overlap_by_layer", _by_layer(table, context)
        yield "overlap_occurrences", _heat_maps(table, context, "jaccard", "occurrences", "Jaccard")
        yield (
            "overlap_vocabulary",
            _heat_maps(table, context, "weighted_jaccard", "vocabulary", "weighted Jaccard"),
        )


@styled
def _by_layer(table: xr.Dataset, context: Context) -> Figure:
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    layers = table["layer"].values
    fig, axes = style.figure("page", 2.4, 1, 2)
    panels = (("jaccard", "occurrences: Jaccard"), ("weighted_jaccard", "vocabulary: weighted Jaccard"))
    for ax, (measure, words) in zip(axes, panels, strict=True):
        for name, colour, suffix in (
            ("pairs of experts", style.COLOURS[0], ""),
            ("independent routing", style.NEUTRAL, "_independent"),
        ):
            quantiles = quantiles_over_pairs(table[f"{measure}{suffix}"].values[:, i_P, j_P])
            spread(ax, layers, *quantiles, name=name, colour=colour, dashed=bool(suffix))
        charts.label(ax, x="layer", y="overlap (share)" if ax is axes[0] else None, title=words)
        ax.set_ylim(bottom=0)
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(names))
    caption(fig, context.caption, "lines: median pair; bands: 5-95 % of pairs")
    return fig


def _heat_maps(table: xr.Dataset, context: Context, measure: str, reading: str, words: str) -> Figure:
    measured_LEE, independent_LEE = table[measure].values, table[f"{measure}_independent"].values
    above_EE = np.triu(np.ones(measured_LEE.shape[1:], dtype=bool), 1)
    matrices, orders = [], []
    for measured_EE, independent_EE in zip(measured_LEE, independent_LEE, strict=True):
        order = similarity_order(measured_EE)
        here = np.ix_(order, order)
        both_EE = np.where(above_EE, measured_EE[here], independent_EE[here])
        np.fill_diagonal(both_EE, np.nan)
        matrices.append(both_EE)
        orders.append(order)
    values = np.array(matrices)
    finite = values[np.isfinite(values)]
    return matrix_panels(
        matrices,
        [f"layer {layer}" for layer in table["layer"].values],
        context.caption,
        label=f"{words} (share)",
        labels=(orders, orders),
        xlabel="experts, similar ones side by side",
        ylabel="experts, in the same order",
        vmin=0.0,
        vmax=float(np.quantile(finite, 0.995)) if finite.size else 1.0,
        note=f"overlap of {reading}; above the diagonal: measured, below: under independent routing; each layer has "
        "its own order; colours end at 99.5 % of all values",
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan
