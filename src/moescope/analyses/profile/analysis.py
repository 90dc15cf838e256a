"""Profile: who an expert is: what it takes, where it acts most, what it puts out, what is like it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast, get_args

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.profile import table as parts
from moescope.analyses.atlas.analysis import Atlas
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.analyses.coactivation.analysis import cooccurrence
from moescope.analyses.contribution.analysis import expert_contribution
from moescope.analyses.profile.records import ProfileMaker
from moescope.analyses.similarity.analysis import Similarity
from moescope.analyses.usage.analysis import Usage
from moescope.analyses.vocabulary.analysis import MOST_BYTES, token_usage
from moescope.analyses.weights.analysis import Weights
from moescope.errors import UsageError
from moescope.statistics.samples.contexts import TopContexts
from moescope.statistics.margins import SelectionMargins
from moescope.statistics.samples.tokens import TokenSample
from moescope.statistics.tokens import Reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

FOLDER = "profiles"
LINES = f"{FOLDER}/profiles.jsonl"
INDEX = f"{FOLDER}/profiles_index.csv"
NUM_BEST = 100
"""Rows of the table of best labels."""


@dataclass(frozen=True)
class Profile(Analysis):
    """Everything the run knows of each expert, in one published form.

    Attributes:
        experts: Experts to write a file and a page about, of every layer looked at; None: all of them as lines of one
            file, and pages about the few whose label tells most.
        num_contexts: Contexts kept of each expert, one of a document.
        num_samples: Tokens that labels are chosen and scored on.
        num_pages: Experts with a page where all are profiled.
        neighbours: Whether experts are compared by output (every expert is run on a sample) and by weight.
        effects: Whether the effect of ablating each is estimated (a backward pass over a sample).
    """

    name = "profile"
    summary = "Profile: who an expert is: what it takes, where it acts most, what it puts out, what is like it."
    about: ClassVar[str] = "experts"

    experts: tuple[int, ...] | None = None
    num_contexts: int = 8
    num_samples: int = 20_000
    num_pages: int = 3
    neighbours: bool = True
    effects: bool = True

    def check(self, context: Context) -> None:
        """Refuses experts that do not exist."""
        context.model.check_experts(self.experts)

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Counts of use, tokens and pairs; margins; contexts; samples of tokens and of inputs."""
        model, layers = context.model, list(context.layers)
        statistics = Usage().statistics(context) | cooccurrence(context) | expert_contribution(context)
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
            layers=layers,
            num_experts=model.num_experts,
            selects_by=model.router.selects_by,
            device=model.device,
        )
        statistics["token_sample"] = TokenSample(
            layers=layers,
            num_experts_per_token=model.num_experts_per_token,
            num_samples=min(context.num_tokens, self.num_samples),
            seed=context.seed,
            device=model.device,
        )
        for other in self._others(context):
            statistics |= other.statistics(context)
        return statistics

    def _readings(self, context: Context) -> list[Reading]:
        """Readings of token types that there is memory for."""
        each = 4 * len(context.layers) * context.model.vocab_size * context.model.num_experts
        wanted = [reading for reading in get_args(Reading) if reading != "predicted" or context.predictions]
        # What is known of a token before it is read matters least.
        kept = sorted(wanted, key=["input", "predicted", "next"].index)[: max(1, MOST_BYTES // each)]
        return cast("list[Reading]", kept)

    def _others(self, context: Context) -> list[Analysis]:
        """Analyses whose tables profiles draw on, without those that can't be answered."""
        asked: list[Analysis] = [
            *([_SIMILARITY, _WEIGHTS] if self.neighbours else []),
            *([_ATLAS] if self.effects else []),
        ]
        return [other for other in asked if _refusal(other, context) is None]

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `layer, expert` (and `domain`, `reading`, `context`, `window`, ...): all that profiles hold."""
        tables = [
            parts.usage_part(statistics["usage"], context),
            parts.tokens_part(statistics, context),
            parts.pairs_part(statistics["cooccurrence"], context),
            parts.contexts_part(statistics["contexts"]),
            parts.margins_part(statistics["margins"]),
            parts.labels_part(statistics["token_sample"], context),
            parts.outputs_part(statistics["contribution"], context),
        ]
        missing: dict[str, str] = {}
        for other, name, make in (
            (_SIMILARITY, "nearest_by_output", parts.alike_part),
            (_WEIGHTS, "nearest_by_weight", parts.weights_part),
            (_ATLAS, "effect", parts.effect_part),
        ):
            if other in self._others(context):
                try:
                    tables.append(make(context.once(f"{other}", partial(other.table, statistics, context))))
                except UsageError as error:
                    missing[f"missing_{name}"] = error.found
            elif (why := _refusal(other, context)) is not None:
                missing[f"missing_{name}"] = why
        table = xr.merge(tables, combine_attrs="override", compat="override", join="exact")
        for part in tables:
            table.attrs |= part.attrs
        table.attrs |= missing
        table.attrs["selects_by"] = context.model.router.selects_by
        return table

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`profile`: a row per expert. `profile_best`: those whose label told most on the half that chose it."""
        frame = profile_frame(table)
        if self.experts is not None:
            return {"profile": frame[frame["expert"].isin(self.experts)].reset_index(drop=True)}
        best = frame[frame["label"] != ""].sort_values("choosing_balanced_accuracy", ascending=False, kind="stable")
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
        yield INDEX, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """A page about each expert asked for, or how far labels tell and pages about those whose label tells most."""
        from moescope.analyses.profile import figures as draw

        maker = ProfileMaker(table, context)
        if self.experts is not None:
            for profile in maker.all(self.experts):
                yield f"profile_{title(profile.layer, profile.expert)}", draw.page(profile, context)
            return
        frames = self.frames(table, context)
        yield "profile_labels", draw.labels(frames["profile"], context)
        for row in frames["profile_best"].head(self.num_pages).itertuples():
            layer, expert = int(cast("int", row.layer)), int(cast("int", row.expert))
            yield f"profile_{title(layer, expert)}", draw.page(maker.profile(layer, expert), context)


_SIMILARITY = Similarity(control=False)
_WEIGHTS = Weights()
_ATLAS = Atlas()


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
    """One row per layer and expert: its use, its label, and how far the label tells."""
    num_layers, num_experts = table["num_selected_all"].shape
    columns = {
        "num_selected": "num_selected_all",
        "selection_frequency": "selection_frequency",
        "load": "load",
        "first_rank_share": "first_rank_share",
        "selection_weight": "selection_weight",
        "selection_lead": "selection_lead",
        "label": "label_text",
        "rule": "label_rule",
        "balanced_accuracy": "label_balanced_accuracy",
        "ci_low": "label_ci_low",
        "ci_high": "label_ci_high",
        "choosing_balanced_accuracy": "label_choosing_balanced_accuracy",
        "num_scored_tokens": "label_num_tokens",
        "num_scored_documents": "label_num_documents",
    }
    rows = {
        "layer": np.repeat(table["layer"].values, num_experts),
        "expert": np.tile(table["expert"].values, num_layers),
    }
    frame = pd.DataFrame(rows | {name: table[key].values.ravel() for name, key in columns.items()})
    for name in ("label", "rule"):
        frame[name] = frame[name].astype(object)
    return frame
