"""Causal atlas: how much the loss of each domain rises without each expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.atlas.options import SAMPLE_TOKENS, AtlasOptions
from moescope.analyses.atlas.passes import Measured, run_passes
from moescope.analyses.atlas.table import (
    ablated_frame,
    atlas_frame,
    measured_frame,
    relations_frame,
    table_of,
    top_frame,
)
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.errors import UsageError
from moescope.interventions.ablation import Ablation
from moescope.statistics.samples.texts import TextSample

if TYPE_CHECKING:
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

DOCUMENTS_PER_DOMAIN = 24
"""Documents sampled of each domain where it has them: each half then has about 12, enough for intervals."""
MIN_LENGTH = 32
"""Tokens of a sampled document at least, where it has them."""
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Atlas(AtlasOptions, Analysis):
    """Δ loss of ablating every expert, by domain, on a sample of the text; `AtlasOptions` has the options."""

    name: ClassVar[str] = "atlas"
    needs_whole_depth: ClassVar[bool] = True

    def check(self, context: Context) -> None:
        """Refuses a model that is not complete, and experts that do not exist.

        Raises:
            UsageError: The model is not complete, or has no such expert.
        """
        if not context.model.complete:
            raise UsageError(
                f"the atlas measures the loss, and only the first layers of {context.model.name} are loaded",
                expected="the whole model",
                remedy="load it without `layers`",
            )
        context.model.check_experts(self.experts)

    @property
    def _num_tokens(self) -> int:
        return self.sample_tokens or SAMPLE_TOKENS[self.method]

    @property
    def sample_key(self) -> str:
        """Key of the sample among the run's statistics; samples of different sizes stand side by side."""
        return f"atlas_text_{self._num_tokens}"

    def answers(self, other: Analysis) -> bool:
        """An atlas on the same sample answers one that asks for no ablations beside the gradient."""
        if not isinstance(other, Atlas) or (self.method, self._num_tokens) != (other.method, other._num_tokens):
            return False
        exact = ("experts", "num_exact", "exact_tokens", "named_tokens")
        same = all(getattr(self, name) == getattr(other, name) for name in exact)
        none = other.experts is None and not other.num_exact and not other.named_tokens
        return same or (other.method == "gradient" and none)

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """A sample of the text: of each domain the documents of smallest hash."""
        share = max(1, min(self._num_tokens, context.num_tokens) // len(context.domains))
        length = max(MIN_LENGTH, share // DOCUMENTS_PER_DOMAIN)
        return {
            self.sample_key: TextSample(
                layers=list(context.layers),
                domains=list(context.domains),
                num_documents=-(-share // length),
                length=length,
                seed=context.seed,
                device=context.model.device,
            )
        }

    def ablations(self, context: Context) -> list[Ablation]:
        """The exact ablations."""
        layers, num_experts = list(context.layers), context.model.num_experts
        if self.experts is not None:
            return [Ablation(layer, (expert,)) for layer in layers for expert in sorted(set(self.experts))]
        every = [Ablation(layer, (expert,)) for layer in layers for expert in range(num_experts)]
        if self.method == "exact":
            return every
        drawn = np.random.default_rng([context.seed, 31]).permutation(len(every))[: self.num_exact]
        return [every[index] for index in sorted(drawn.tolist())]

    def measure(self, model: MoEModel, statistics: Mapping[str, Statistic], context: Context) -> Measured:
        """Runs the sampled documents again: the gradient of all experts, exact ablations, and the named experts."""
        sample = cast("TextSample", statistics[self.sample_key])
        exact_tokens = self.exact_tokens if self.method == "gradient" else None
        return run_passes(
            model,
            sample,
            context,
            self.ablations(context),
            exact_tokens=exact_tokens,
            named_tokens=self.named_tokens,
            batch_tokens=BATCH_TOKENS,
        )

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer, domain, expert` (first domain `all`): `delta_loss` with interval, on all documents and each half.

        By `ablation`: the exact ablations. By `measurement`: the named experts, ablated on the evaluation half. By
        `relation`: rank correlations of effects with routing statistics.
        """
        return table_of(given.measured, context, self.method)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`atlas`: a row per layer, domain, expert; `atlas_top` and `_measured`, `_ablated`, `_relations`."""
        named = (
            {"atlas_top": top_frame(table, seed=context.seed), "atlas_measured": measured_frame(table)}
            if table.sizes["measurement"]
            else {}
        )
        return {
            "atlas": atlas_frame(table),
            **named,
            "atlas_ablated": ablated_frame(table),
            "atlas_relations": relations_frame(table),
        }

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """All experts, the top experts by domain, each domain's expert with its control, and how methods agree."""
        from moescope.analyses.atlas import figures as draw

        yield "atlas_experts", partial(draw.experts, table, context)
        if table.sizes["measurement"]:
            if len(context.domains) > 1:
                yield "atlas_domains", partial(draw.domains, table, context)
            yield "atlas_top", partial(draw.top, table, context)
        if table.sizes["ablation"] > 1:
            yield "atlas_ablated", partial(draw.agreement, table, context)
        yield "atlas_relations", partial(draw.relations, table, context)
