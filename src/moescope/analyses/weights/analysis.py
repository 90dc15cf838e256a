"""Weights: how similar the weights of a layer's experts are, and how many directions each uses; needs no text.

Weights say what an expert could compute of any input; what it computes of the inputs routed to it is measured on its
outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.weights import figures as draw
from moescope.analyses.weights.duplicates import duplicate_rows, output_table
from moescope.analyses.weights.matching import Neurons
from moescope.analyses.weights.options import WeightsOptions
from moescope.analyses.weights.table import expert_rows, layer_table, leading, pair_rows, stacked, summary_rows
from moescope.errors import warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moescope.context import Context
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

__all__ = ["Weights", "leading"]

MOST_WORK = 1e12
"""Multiplications and additions of matching in a layer beyond which a sample of pairs is matched: about half a minute
of one core."""


@dataclass(frozen=True)
class Weights(WeightsOptions, Analysis):
    """Cosines of weights, as stored and with hidden neurons matched; effective ranks and spectra."""

    name: ClassVar[str] = "weights"
    min_domains: ClassVar[int] = 0
    needs_text: ClassVar[bool] = False

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """None."""
        return {}

    def measure(self, model: MoEModel, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """Reads and compares the weights, layer by layer; warns where not all pairs are matched."""
        matched = self._num_pairs(context)
        all_pairs = model.num_experts * (model.num_experts - 1) // 2
        if matched < all_pairs and self.pairs is None:
            warn(
                f"hidden neurons are matched in a random sample of {matched:,} of the {all_pairs:,} pairs of experts "
                "of each layer, since all would take long; `pairs` sets the number",
                stacklevel=2,
            )
        by_layer = []
        for layer in context.layers:
            weights = model.expert_weights(layer)
            router_EM = None if weights.router_EM is None else weights.router_EM.float()
            seed = context.seed + 1_000_003 * layer
            by_layer.append(
                layer_table(Neurons.of(weights), router_EM, matched, seed=seed).merge(
                    output_table(model, layer, seed=seed)
                )
            )
        return stacked(by_layer, list(context.layers))

    def _num_pairs(self, context: Context) -> int:
        model = context.model
        most = model.num_experts * (model.num_experts - 1) // 2
        work = 6 * model.model_width * model.expert_width**2  # three products of F x M by M x F
        return min(most, int(MOST_WORK // work) if self.pairs is None else self.pairs)

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By layer, with X one of gate, up, down and joined, or router and router_centered.

        By `layer, expert, other_expert`: X_cosine; X_matched_cosine of matrices, NaN where a pair was not matched. By
        `layer, expert`: X_norm; X_effective_rank of matrices. By `layer, component`: X_singular_value, the mean over
        experts, with `_low` and `_high`. The same with `_control` for random directions with matched norms, of matrices
        for a few experts or pairs of them only (`control_expert`, `control_pair`). What experts give for random
        inputs: `output_distance` by pair, `random_input_output_norm` and `silent` by expert. By `layer`:
        num_pairs_matched. A
        family without gates has no gate, one whose router is no linear map no router.
        """
        table: xr.Dataset = given.measured
        return table

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`weights`: a row per layer, matrix and measure; `weights_experts`; `weights_pairs`, the most similar.

        `weights_duplicates`: pairs that compute the same, where there are any.
        """
        duplicates = duplicate_rows(table)
        return {
            "weights": summary_rows(table),
            "weights_experts": expert_rows(table),
            "weights_pairs": pair_rows(table),
            **({} if duplicates.empty else {"weights_duplicates": duplicates}),
        }

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, NDArray]]:
        """`weights`: every number of the table: pairs as (layer, expert, other expert), spectra (layer, component)."""
        numbers = {str(name): values.values for name, values in table.data_vars.items()}
        return {"weights": {"layers": table["layer"].values, **numbers}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Cosines over layers; heat maps with a dendrogram; effective ranks; singular spectra."""
        yield from draw.drawings(table, context.model.name)
