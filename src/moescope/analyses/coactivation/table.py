"""Co-activation of pairs of experts as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from moescope.analyses.coactivation.top_pair import DEFINITIONS
from moescope.measures.constants import MIN_EXPECTED

TOP_PAIRS = 50


@dataclass(frozen=True)
class _Pairs:
    """One layer's pairs of experts: those above the diagonal.

    Attributes:
        layer: Its number.
        table: Its part of the table.
        num_tokens: N.
        i_P: The first expert of each pair.
        j_P: The second.
        lift_P: `N N_ij / (N_i N_j)`.
        independent_P: The lift under independent routing.
        expected_P: `N_ij` under independent routing.
    """

    layer: int
    table: xr.Dataset
    num_tokens: int
    i_P: NDArray[np.integer]
    j_P: NDArray[np.integer]
    lift_P: NDArray[np.floating]
    independent_P: NDArray[np.floating]
    expected_P: NDArray[np.floating]

    @property
    def ranked_P(self) -> NDArray[np.bool_]:
        """Pairs expected often enough to be ranked by lift."""
        return self.expected_P >= MIN_EXPECTED


def _by_layer(table: xr.Dataset) -> Iterator[_Pairs]:
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        num_tokens, selected_E = int(at["num_tokens"]), at["num_selected"].values
        independent_P = at["lift_chance"].values[i_P, j_P]
        with np.errstate(invalid="ignore", divide="ignore"):
            expected_P = independent_P * selected_E[i_P] * selected_E[j_P] / num_tokens
        yield _Pairs(layer, at, num_tokens, i_P, j_P, at["lift"].values[i_P, j_P], independent_P, expected_P)


def summary_frame(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer: quantiles of the lift over pairs expected `MIN_EXPECTED` times or more; the top pair."""
    rows = []
    for pairs in _by_layer(table):
        ranked_P = pairs.ranked_P
        some = bool(ranked_P.any())
        low, median, high = np.quantile(pairs.lift_P[ranked_P], [0.05, 0.5, 0.95]) if some else np.full(3, np.nan)
        rows.append(
            {
                "layer": pairs.layer,
                "num_tokens": pairs.num_tokens,
                "num_pairs": int(ranked_P.sum()),
                "lift_q05": low,
                "lift_median": median,
                "lift_q95": high,
                "lift_median_chance": float(np.median(pairs.independent_P[ranked_P])) if some else np.nan,
                "num_pairs_never_together": int((pairs.table["num_together"].values[pairs.i_P, pairs.j_P] == 0).sum()),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.merge(table[list(DEFINITIONS)].to_dataframe().reset_index(), on="layer")


def pairs_frame(table: xr.Dataset) -> pd.DataFrame:
    """The pairs of highest lift of each layer, among those expected at least `MIN_EXPECTED` times."""
    rows = []
    for pairs in _by_layer(table):
        at, ranked_P = pairs.table, pairs.ranked_P
        order = np.argsort(-np.where(ranked_P, pairs.lift_P, -np.inf), kind="stable")[:TOP_PAIRS]
        for place, pair in enumerate(order[ranked_P[order]]):
            i, j = int(pairs.i_P[pair]), int(pairs.j_P[pair])
            rows.append(
                {
                    "layer": pairs.layer,
                    "rank": place,
                    "expert": i,
                    "other_expert": j,
                    "num_tokens": pairs.num_tokens,
                    "num_selected": int(at["num_selected"][i]),
                    "other_num_selected": int(at["num_selected"][j]),
                    "num_together": int(at["num_together"][i, j]),
                    "num_together_chance": pairs.expected_P[pair],
                    "coactivation": float(at["coactivation"][i, j]),
                    "coactivation_reverse": float(at["coactivation"][j, i]),
                    "lift": pairs.lift_P[pair],
                    "lift_chance": pairs.independent_P[pair],
                }
            )
    return pd.DataFrame(rows)
