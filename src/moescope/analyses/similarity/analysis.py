"""Similarity: how similar the outputs of a layer's experts for the same tokens are, beside a random-weight baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.similarity import expert_runs
from moescope.analyses.similarity import figures as draw
from moescope.analyses.similarity.comparing import Comparison, compare
from moescope.analyses.similarity.options import SimilarityOptions
from moescope.analyses.similarity.table import BASELINE, estimates, gaps, measures, pair_rows, stacked, summary_rows
from moescope.errors import UsageError, warn
from moescope.measures.cka import MIN_TOKENS
from moescope.measures.jackknife import NUM_GROUPS
from moescope.statistics.samples.inputs import LayerInputs
from moescope.statistics.shared_tokens import SharedTokens

if TYPE_CHECKING:
    from moescope.context import Context
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

MOST_STATE_BYTES = 512 * 2**20
"""Beyond this size the sums of routed mode are not kept by group of documents, so that there are no intervals."""


@dataclass(frozen=True)
class Similarity(SimilarityOptions, Analysis):
    """Compares the outputs of all experts of a layer, before any routing weight."""

    name: ClassVar[str] = "similarity"

    @property
    def ranked_by(self) -> str:
        """The measure that pairs are ranked and drawn by: `method`, or its default."""
        return self.method or ("cosine" if self.mode == "routed" else "cka")

    @property
    def options(self) -> dict[str, Any]:
        """Its options by name; `method` as it was used."""
        return super().options | {"method": self.ranked_by}

    def answers(self, other: Analysis) -> bool:
        """Whether this analysis' table holds all that `other`'s would: one with the baseline holds all without it."""
        if not isinstance(other, Similarity) or other.control > self.control:
            return False
        return self.options | {"control": other.control} == other.options

    def check(self, context: Context) -> None:
        """Refuses CKA of fewer than 4 tokens."""
        self._check_size(min(context.num_tokens, self.num_samples))

    def _check_size(self, num_tokens: int) -> None:
        needed = MIN_TOKENS if self.ranked_by == "cka" else 1
        if num_tokens < needed:
            raise UsageError(
                f"{self.ranked_by} of {num_tokens} token{'' if num_tokens == 1 else 's'}",
                expected=f"{needed} or more, to run every expert on",
                remedy="raise `num_tokens`, and `num_samples` if you set it",
            )

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """A sample of the layers' inputs; in routed mode, sums over the tokens that experts share."""
        layers, model = list(context.layers), context.model
        if self.mode == "routed":
            size = 16 * NUM_GROUPS * len(layers) * model.num_experts**2
            return {
                self._key: SharedTokens(
                    layers=layers,
                    num_experts=model.num_experts,
                    num_experts_per_token=model.num_experts_per_token,
                    num_groups=NUM_GROUPS if size <= MOST_STATE_BYTES else 1,
                    seed=context.seed,
                    device=model.device,
                )
            }
        return {
            self._key: LayerInputs(
                layers=layers,
                model_width=model.model_width,
                num_samples=min(context.num_tokens, self.num_samples),
                dtype=model.dtype,
                seed=context.seed,
                device=model.device,
            )
        }

    @property
    def _key(self) -> str:
        # Runs may hold samples of different sizes; those of one size are shared.
        return "shared_tokens" if self.mode == "routed" else f"layer_inputs_{self.num_samples}"

    def measure(self, model: MoEModel, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset | None:
        """Runs all experts, and those of the baseline, on the sample of inputs; None in routed mode.

        Raises:
            UsageError: The corpus gave fewer than 4 tokens, and CKA was asked for.
        """
        inputs = statistics[self._key]
        if not isinstance(inputs, LayerInputs):
            return None
        own, baseline = [], []
        for layer in inputs.layers:
            self._check_size(inputs.sample_size(layer))
            compared = self._compare(expert_runs.trained(model, layer), inputs, layer)
            own.append(estimates(compared, self.estimator, intervals=True))
            if self.control:
                run = expert_runs.resampled(model, layer, seed=inputs.seed)
                compared = self._compare(run, inputs, layer, intervals=False)
                baseline.append(estimates(compared, self.estimator, suffix=BASELINE))
        parts = [stacked(part, inputs.layers) for part in (own, baseline) if part]
        return xr.merge([inputs.compute(), *parts])

    def _compare(self, run: expert_runs.Run, inputs: LayerInputs, layer: int, *, intervals: bool = True) -> Comparison:
        return compare(
            run,
            inputs.sample(layer),
            cka=self.ranked_by == "cka",
            exact=self.estimator == "exact",
            seed=inputs.seed,
            intervals=intervals,
            scratch=self.scratch,
        )

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer, expert, other_expert`, each measure with `_ci_low`, `_ci_high` and `_control` (the baseline).

        Measures are those of `table.DEFINITIONS` (without CKA for `method="cosine"`); in routed mode `cosine`, and
        `num_shared`. By `layer`: the sample's `num_tokens`, `num_samples`, `num_documents`.
        """
        table = statistics[self._key].compute() if self.mode == "routed" else given.measured
        for text in gaps(table, self.ranked_by):
            warn(text, stacklevel=2)
        return table

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`similarity`: a row per layer and measure. `similarity_pairs`: the most similar pairs of each layer."""
        return {
            "similarity": summary_rows(table, self.ranked_by, self.mode),
            "similarity_pairs": pair_rows(table, self.ranked_by),
        }

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`similarity`: every number of the table, pairs as (layer, expert, other expert); reals in float32."""
        numbers = {str(name): variable.values for name, variable in table.data_vars.items()}
        numbers = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in numbers.items()}
        return {"similarity": {"layers": table["layer"].values, **numbers}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Pairs by layer; a small heat map of each layer; large ones of chosen layers, and beside their baselines."""
        yield from draw.drawings(table, context.caption, measures(table, self.ranked_by), self.mode)
