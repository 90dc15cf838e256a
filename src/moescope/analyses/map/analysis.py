"""Map: experts' outputs on a plane, and how often an output's neighbors recover its expert and its domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.contribution.analysis import expert_contribution
from moescope.analyses.map import figures as draw
from moescope.analyses.map.options import MapOptions
from moescope.analyses.map.projection import MIN_POINTS
from moescope.analyses.map.table import make, rows
from moescope.errors import UsageError
from moescope.figures.experts import evenly
from moescope.statistics.contribution import ExpertContribution
from moescope.statistics.samples.outputs import OutputSample

if TYPE_CHECKING:
    from moescope.context import Context
    from moescope.statistics.base import Statistic


@dataclass(frozen=True)
class Map(MapOptions, Analysis):
    """A sample of every expert's outputs on its own tokens, projected by PCA and UMAP."""

    name: ClassVar[str] = "map"

    def layers_of(self, context: Context) -> list[int]:
        """The layers that are mapped."""
        count = len(context.layers)
        return [context.layers[position] for position in evenly(count, self.max_layers or count)]

    def check(self, context: Context) -> None:
        """Refuses more neighbors than there can be outputs.

        Raises:
            UsageError: That.
        """
        model = context.model
        most = min(context.num_tokens * model.num_experts_per_token, model.num_experts * self.num_samples)
        if most < MIN_POINTS or (self.method == "umap" and self.num_neighbors >= most):
            raise UsageError(
                f"`num_neighbors={self.num_neighbors}` in a layer of at most {most} outputs",
                expected="fewer neighbors than outputs",
                remedy="raise `num_tokens` or `num_samples`, lower `num_neighbors`, or use `method=pca`",
            )

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """A sample of outputs of the layers mapped, and every expert's mean output."""
        model = context.model
        sample = OutputSample(
            layers=self.layers_of(context),
            num_experts=model.num_experts,
            model_width=model.model_width,
            num_samples=self.num_samples,
            dtype=model.dtype,
            seed=context.seed,
            device=model.device,
        )
        return {"output_sample": sample} | expert_contribution(context)

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `point`: layer, expert, domain, token, document, x, y; by `layer`: quality; by `layer, expert`: means."""
        samples = cast("OutputSample", statistics["output_sample"])
        return make(samples, cast("ExpertContribution", statistics["contribution"]), context, self)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`map`: a row per output. `map_quality`: a row per layer. `map_experts`: a row per layer and expert."""
        return rows(table)

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """For each layer the outputs by domain and by expert, and each expert alone; means; recovery by layer."""
        yield from draw.drawings(table, context)
