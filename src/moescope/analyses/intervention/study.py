"""An intervention on a prompt with everything that it leaves: tables, figures, `intervene.json`, a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from moescope.analyses.intervention.schema import ChangedExpert, PromptToken, StudyRecord, UsageSample
from moescope.analyses.intervention.table import PromptEffects
from moescope.results import Made, Manifest, Outcome

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

JSON_FILE = "intervene.json"


@dataclass(frozen=True, repr=False)
class Study(PromptEffects, Outcome):
    """The effects of interventions on one prompt; `PromptEffects` has what was measured and the tables.

    Attributes:
        manifest: What was run; the text counted is that by which controls are matched.
    """

    manifest: Manifest

    @cached_property
    def frames(self) -> Mapping[str, pd.DataFrame]:
        """`kl`, `next_tokens`, `experts`; `controls` if there are any; `continuations` if any were generated."""
        frames = {"kl": self.kl, "next_tokens": self.next_tokens, "experts": self.experts}
        if self.draws:
            frames["controls"] = self.controls
        if self.continuations:
            frames["continuations"] = self.generated
        return frames

    @property
    def figures(self) -> Mapping[str, Figure]:
        """`sweep` for a sweep, `next_tokens` for a single set of changes, `kl_by_position` for several positions."""
        from moescope.analyses.intervention import figures as draw

        return Made(dict(draw.figures(self, self.manifest.model)))

    @property
    def files(self) -> Mapping[str, str]:
        """`intervene.json`: prompt, changes and all tables."""
        return {JSON_FILE: self.record().model_dump_json(indent=2) + "\n"}

    def record(self) -> StudyRecord:
        """Everything as plain numbers, texts and lists, for a JSON file."""
        prompt, usage = self.prompt, self.usage
        tokens = zip(prompt.token_ids, prompt.tokens, strict=True)
        return StudyRecord(
            model=self.manifest.model,
            revision=self.manifest.revision,
            prompt=prompt.text,
            tokens=[PromptToken(index=i, token_id=token_id, token=token) for i, (token_id, token) in enumerate(tokens)],
            target_index=self.target,
            experts=[
                ChangedExpert(
                    layer=layer,
                    expert=expert,
                    base_weight=prompt.weight(layer, expert, self.target),
                    selection_frequency=usage.frequency(layer, expert) if usage else None,
                )
                for layer, expert in self.targets
            ],
            changes=[effect.records for effect in self.effects],
            seed=self.seed,
            matched_by=UsageSample(corpus=usage.corpus.name, num_tokens=usage.num_tokens) if usage else None,
            tables={name: frame.to_dict("records") for name, frame in self.frames.items()},
        )
