"""Contribution: how much each expert adds to its layer's output, and which tokens its output promotes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.contribution import figures as draw
from moescope.analyses.contribution.options import ContributionOptions
from moescope.analyses.contribution.table import (
    domain_rows,
    expert_rows,
    promoted_tokens,
    silent_rows,
    token_rows,
    top_experts,
)
from moescope.measures.usage import SILENT, silent
from moescope.statistics.contribution import ExpertContribution
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    from moescope.context import Context
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic


def expert_contribution(context: Context) -> dict[str, Statistic]:
    """Contribution and mean output of every expert, under the key that analyses share it by."""
    model = context.model
    return {
        "contribution": ExpertContribution(
            layers=list(context.layers),
            num_experts=model.num_experts,
            model_width=model.model_width,
            domains=list(context.domains),
            seed=context.seed,
            device=model.device,
        )
    }


@dataclass(frozen=True)
class Contribution(ContributionOptions, Analysis):
    """Norm, saliency and share of every expert's output; the tokens that its mean output promotes and suppresses."""

    name: ClassVar[str] = "contribution"

    def left_out(self, context: Context) -> Iterator[str]:
        """Promoted tokens, where the model has no head."""
        if not context.model.complete:
            yield "promoted tokens are left out: with `layers` the model's head is not loaded (`predictions` loads it)"

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Sums of norms, shares and outputs."""
        return expert_contribution(context)

    def measure(self, model: MoEModel, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset | None:
        """Promoted and suppressed tokens; None if the model was loaded without its head."""
        if not model.complete:
            return None
        contribution = cast("ExpertContribution", statistics["contribution"])
        means = {layer: contribution.mean_outputs(layer) for layer in contribution.layers}
        return promoted_tokens(model, means, self.top_tokens)

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """What `ExpertContribution.compute` gives, `mean_output`, and, of a complete model, promoted tokens."""
        contribution = cast("ExpertContribution", statistics["contribution"])
        means = torch.stack([contribution.mean_outputs(layer) for layer in contribution.layers]).float()
        mean_output = variable(
            ("layer", "expert", "dimension"),
            means.cpu().numpy(),
            "hidden state",
            "mean o_e(x) over the tokens routed to the expert",
        )
        table = contribution.compute().assign(mean_output=mean_output)
        words = f"output norm near zero: 0, or at most {SILENT:g} of the layer's median; a token may still select it"
        silent_LE = silent(table["output_norm_mean"].values)
        table = table.assign(silent=variable(("layer", "expert"), silent_LE, "bool", words))
        return table if given.measured is None else xr.merge([table, given.measured], combine_attrs="no_conflicts")

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """A row per layer and expert; by domain; the top expert of each layer; silent experts; promoted tokens."""
        frames = {
            "contribution": expert_rows(table),
            "contribution_domains": domain_rows(table),
            "contribution_top": top_experts(table),
        }
        if table["silent"].values.any():
            frames["contribution_silent"] = silent_rows(table)
        if "promoted_token_id" in table:
            frames["promoted_tokens"] = token_rows(table)
        return frames

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`mean_outputs`: each expert's mean output, (layer, expert, model width)."""
        return {"mean_outputs": {"layers": table["layer"].values, "mean_output": table["mean_output"].values}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Heat maps of share and saliency, norms by layer, and the tokens that the top experts promote."""
        num_shared = context.model.num_shared_experts
        yield "contribution_share", partial(draw.heat_maps, table, context.caption, shared_experts=bool(num_shared))
        yield "contribution_norms", partial(draw.by_layer, table, context.caption)
        if "promoted_token_id" in table:
            yield "promoted_tokens", partial(draw.token_lists, table, context.caption)
