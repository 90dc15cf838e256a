"""The toy question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.coactivation.analysis import Coactivation
from moescope.context import Context
from moescope.figures import caption, charts, style
from moescope.statistics.base import Statistic
from moescope.statistics.variables import variable
from tests.analyses.toy.options import ToyOptions


@dataclass(frozen=True)
class Toy(ToyOptions, Analysis):
    """Tokens of each layer, from the table of another question."""

    name: ClassVar[str] = "toy"

    def needs(self, context: Context) -> Mapping[str, Analysis]:
        return {"coactivation": Coactivation()}

    def statistics(self, context: Context) -> dict[str, Statistic]:
        return {}

    def measure(self, model, statistics: Mapping[str, Statistic], context: Context) -> int:
        return int(model.num_experts)

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        counts_L = given.tables["coactivation"]["num_tokens"].values // self.step
        values = {"num_steps": variable("layer", counts_L, "steps", "tokens, counted by `step`")}
        return xr.Dataset(values, {"layer": list(context.layers)}, {"num_experts": given.measured})

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        return {"toy": table.to_dataframe().reset_index()}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        yield "toy_steps", partial(_draw, table, context)


def _draw(table: xr.Dataset, context: Context) -> Figure:
    fig, ax = style.figure("column")
    charts.lines(ax, np.asarray(table["layer"]), {"steps": table["num_steps"].values})
    caption(fig, context.caption)
    return fig
