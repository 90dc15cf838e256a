"""Profiles of experts: domains and tokens routed to each, top contexts, promoted tokens, nearest experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast, get_args

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.atlas.analysis import Atlas
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.coactivation.analysis import Coactivation
from moescope.analyses.contribution.analysis import Contribution
from moescope.analyses.profile import table as parts
from moescope.analyses.profile.measured import best_labeled, measured_effects
from moescope.analyses.profile.options import ProfileOptions
from moescope.analyses.profile.records import ProfileMaker
from moescope.analyses.similarity.analysis import Similarity
from moescope.analyses.usage.analysis import Usage
from moescope.analyses.vocabulary.analysis import token_usage
from moescope.analyses.weights.analysis import Weights
from moescope.context import Context
from moescope.errors import UsageError
from moescope.results.spreadsheets import to_csv
from moescope.statistics.margins import SelectionMargins
from moescope.statistics.samples.contexts import TopContexts
from moescope.statistics.samples.tokens import TokenSample
from moescope.statistics.tokens import Reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic
    from moescope.statistics.samples.texts import TextSample

FOLDER = "profiles"
LINES = f"{FOLDER}/profiles.jsonl"
INDEX = f"{FOLDER}/profiles_index.csv"
NUM_BEST = 100
"""Rows of the table of best labels."""


@dataclass(frozen=True)
class Measured:
    """What takes the model: the labels that choose pages, and the effects of the experts on them."""

    labels: xr.Dataset
    effects: xr.Dataset


@dataclass(frozen=True)
class Profile(ProfileOptions, Analysis):
    """Everything the run knows of each expert, in one published form."""

    name: ClassVar[str] = "profile"

    def check(self, context: Context) -> None:
        """Refuses experts that do not exist."""
        context.model.check_experts(self.experts)

    def needs(self, context: Context) -> Mapping[str, Analysis]:
        """Usage, co-activation and contribution; similarity, weights and the atlas where they can be answered."""
        return {
            "usage": Usage(),
            "coactivation": Coactivation(),
            "contribution": Contribution(),
            **{name: other for name, other in self._comparisons().items() if _refusal(other, context) is None},
        }

    def _comparisons(self) -> dict[str, Analysis]:
        found: dict[str, Analysis] = {}
        if self.neighbors:
            found |= {
                "similarity": Similarity(num_samples=self.neighbor_tokens, control=False),
                "weights": Weights(),
            }
        if self.effects:
            found["atlas"] = Atlas(sample_tokens=self.effect_tokens, num_exact=0, named_tokens=0)
        return found

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Counts of tokens; margins; contexts; a sample of tokens."""
        model, layers = context.model, list(context.layers)
        statistics: dict[str, Statistic] = {}
        for reading in self._readings(context):
            statistics |= token_usage(context, reading)
        statistics["contexts"] = TopContexts(
            layers=layers,
            num_experts=model.num_experts,
            num_contexts=self.num_contexts,
            seed=context.seed,
            device=model.device,
        )
        statistics["margins"] = SelectionMargins(
            layers=layers, num_experts=model.num_experts, selects_by=model.selects_by, device=model.device
        )
        statistics["token_sample"] = TokenSample(
            layers=layers,
            num_experts_per_token=model.num_experts_per_token,
            num_samples=min(context.num_tokens, self.num_samples),
            seed=context.seed,
            device=model.device,
        )
        return statistics

    def _readings(self, context: Context) -> list[Reading]:
        """Readings of token types that this run has."""
        return [reading for reading in get_args(Reading) if reading != "predicted" or context.predictions]

    def measure(self, model: MoEModel, statistics: Mapping[str, Statistic], context: Context) -> Measured:
        """Labels of all experts; and the experts that have a page, ablated on the text that the atlas takes."""
        labels = parts.labels_part(statistics["token_sample"], context)
        atlas = self.needs(context).get("atlas")
        if not isinstance(atlas, Atlas):
            return Measured(labels, xr.Dataset())
        cells = best_labeled(labels)[: self.num_pages]
        if self.experts is not None:
            cells = [(position, expert) for position in range(len(context.layers)) for expert in self.experts]
        sample = cast("TextSample", statistics[atlas.sample_key])
        return Measured(labels, measured_effects(model, sample, context, cells))

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer, expert` (and `domain`, `reading`, `context`, `window`, ...): all that profiles hold."""
        tables = [
            parts.usage_part(given.tables["usage"]),
            parts.tokens_part(statistics),
            parts.pairs_part(given.tables["coactivation"]),
            parts.contexts_part(statistics["contexts"]),
            parts.margins_part(statistics["margins"]),
            given.measured.labels,
            parts.outputs_part(given.tables["contribution"]),
        ]
        missing: dict[str, str] = {}
        refused = {name: why for name, other in self._comparisons().items() if (why := _refusal(other, context))}
        for name, key, make in (
            ("similarity", "nearest_by_output", parts.outputs_neighbors_part),
            ("weights", "nearest_by_weight", parts.weights_part),
            ("atlas", "effect", partial(parts.effect_part, measured=given.measured.effects)),
        ):
            if name in given.tables:
                tables.append(make(given.tables[name]))
            elif (why := refused.get(name) or given.refused.get(name)) is not None:
                missing[f"missing_{key}"] = why
        table = xr.merge(tables, combine_attrs="override", compat="override", join="exact")
        attrs: dict[str, object] = {}
        for part in tables:
            attrs |= part.attrs
        return table.assign_attrs(attrs | missing | {"selects_by": context.model.selects_by})

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`profile`: a row per expert. `profile_best`: those of highest balanced accuracy on the selection half."""
        frame = profile_frame(table)
        if self.experts is not None:
            return {"profile": frame[frame["expert"].isin(self.experts)].reset_index(drop=True)}
        best = frame[frame["label"] != ""].sort_values(
            "selection_half_balanced_accuracy", ascending=False, kind="stable"
        )
        return {"profile": frame, "profile_best": best.head(NUM_BEST).reset_index(drop=True)}

    def files(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, str]]:
        """Of experts asked for a JSON file each; of all, JSON Lines and an index with each line's place in bytes."""
        maker = ProfileMaker(table, context)
        if self.experts is not None:
            for profile in maker.all(self.experts):
                yield f"{FOLDER}/{title(profile.layer, profile.expert)}.json", profile.model_dump_json(indent=2) + "\n"
            return
        lines, rows, offset = [], [], 0
        for profile in maker.all():
            line = profile.model_dump_json() + "\n"
            size = len(line.encode("utf-8"))
            label = profile.label
            rows.append(
                {
                    "layer": profile.layer,
                    "expert": profile.expert,
                    "label": label.text if label else "",
                    "balanced_accuracy": label.balanced_accuracy if label else None,
                    "byte_offset": offset,
                    "num_bytes": size,
                }
            )
            lines.append(line)
            offset += size
        yield LINES, "".join(lines)
        yield INDEX, to_csv(pd.DataFrame(rows)) or ""

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """A page about each expert asked for; or accuracy of all labels, and pages about the best labeled experts."""
        from moescope.analyses.profile import figures as draw

        def page(layer: int, expert: int) -> Drawing:
            def drawn() -> Figure:
                return draw.page(ProfileMaker(table, context).profile(layer, expert), context)

            return f"profile_{title(layer, expert)}", drawn

        if self.experts is not None:
            for layer in table["layer"].values.tolist():
                for expert in self.experts:
                    yield page(layer, expert)
            return
        frames = self.frames(table, context)
        yield "profile_labels", partial(draw.labels, frames["profile"], context)
        for row in frames["profile_best"].head(self.num_pages).itertuples():
            yield page(int(cast("int", row.layer)), int(cast("int", row.expert)))


def _refusal(other: Analysis, context: Context) -> str | None:
    """Why an analysis can't be asked in this run; None if it can."""
    try:
        other.check(context)
    except UsageError as error:
        return error.found
    return None


def title(layer: int, expert: int) -> str:
    """`L01E09`."""
    return f"L{layer:02d}E{expert:02d}"


def profile_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and expert: its use, its label, and the label's balanced accuracy."""
    num_layers, num_experts = table["num_selected_all"].shape
    columns = {
        "num_selected": "num_selected_all",
        "selection_frequency": "selection_frequency",
        "load": "load",
        "first_rank_share": "first_rank_share",
        "selection_weight": "selection_weight",
        "selection_margin_mean": "selection_margin_mean",
        "label": "label_text",
        "rule": "label_rule",
        "balanced_accuracy": "label_balanced_accuracy",
        "ci_low": "label_ci_low",
        "ci_high": "label_ci_high",
        "p_value": "label_p_value",
        "selection_half_balanced_accuracy": "label_selection_half_balanced_accuracy",
        "evaluation_half_num_tokens": "label_num_tokens",
        "evaluation_half_num_documents": "label_num_documents",
    }
    rows = {
        "layer": np.repeat(table["layer"].values, num_experts),
        "expert": np.tile(table["expert"].values, num_layers),
    }
    frame = pd.DataFrame(rows | {name: table[key].values.ravel() for name, key in columns.items()})
    for name in ("label", "rule"):
        frame[name] = frame[name].astype(object)
    return frame
