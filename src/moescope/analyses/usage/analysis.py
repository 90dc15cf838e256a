"""Usage and specialization: how often each expert is selected, in which domains, with 95 % intervals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from moescope.analyses.base import Analysis, Drawing, Given, routed_tokens
from moescope.analyses.usage import table as rows
from moescope.analyses.usage.set_information import set_information
from moescope.context import Context
from moescope.statistics.samples.routed import RoutedTokens
from moescope.statistics.usage import ExpertUsage

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from moescope.statistics.base import Statistic

_COMPARING = re.compile("divergence|information|domain_entropy")


class Usage(Analysis):
    """Counts of selected experts by layer and domain, and the measures made of them."""

    name: ClassVar[str] = "usage"
    columns: ClassVar[tuple[str, ...] | None] = ()

    def left_out(self, context: Context) -> Iterator[str]:
        """What compares domains, where there is one; what takes documents or logits, where a trace has none."""
        if context.recorded is not None:
            yield "usage: mean router probability and auxiliary loss are left out: a trace has no logits"
        if not context.knows("document_id"):
            yield "usage: intervals, nulls and specialists are left out: the trace has no column document_id"
        if len(context.domains) == 1:
            yield (
                f"usage: lift, specialists, divergence and information about the domain are left out: the corpus has "
                f"one domain ({context.domains[0]}), and they compare domains"
            )

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """The counts with their replicates, and whole documents with the experts their tokens selected."""
        model = context.model
        without_documents: dict[str, Any] = {} if context.knows("document_id") else {"num_null": 0}
        return {
            **routed_tokens(context),
            "usage": ExpertUsage(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                domains=list(context.domains),
                device=model.device,
                seed=context.seed,
                **without_documents,
            ),
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """What `ExpertUsage.compute` gives, and what the set of selected experts tells about the domain.

        Attrs also say how the family turns logits into probabilities.
        """
        table = statistics["usage"].compute().assign_attrs(scoring=context.model.scoring)
        documents = statistics["routed_tokens"]
        assert isinstance(documents, RoutedTokens)
        if not self._compares(table):
            # With one domain these are 0 whatever the router does.
            empty = {name: table[name].where(False) for name in table.data_vars if _COMPARING.search(str(name))}
            return table.assign(empty)
        return table.assign(set_information(documents.sample(), len(context.domains), context.seed).data_vars)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`usage`, `usage_load`, `usage_divergence`, `usage_information`, and the top experts in `specialists`."""
        always = {"usage": rows.usage_frame(table), "usage_load": rows.load_frame(table)}
        if not self._compares(table):
            return always
        return always | {
            "usage_divergence": rows.divergence_frame(table),
            "usage_information": rows.information_frame(table),
            "specialists": rows.specialists_frame(table),
        }

    def _compares(self, table: xr.Dataset) -> bool:
        """Whether there are domains to compare, and documents that say how far differences are chance."""
        return table.sizes["domain"] > 1 and bool(table["num_documents_all"].values.any())

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Frequencies, load, specialization by domain, the top specialists, information and divergence with nulls."""
        from moescope.analyses.usage import figures as draw

        yield "usage_frequency", partial(draw.frequency, table, context)
        yield "usage_load", partial(draw.load, table, context)
        if not self._compares(table):
            return
        yield "usage_specialization", partial(draw.specialization, table, context)
        yield "usage_specialists", partial(draw.specialists, table, context)
        yield "usage_information", partial(draw.information, table, context)
        yield "usage_divergence", partial(draw.divergence, table, context)
