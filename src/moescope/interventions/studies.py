"""What comes out of interventions on a prompt: numbers by position and token, each beside its controls, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from moescope.interventions.changes import Change
from moescope.interventions.controls import Target, Usage
from moescope.interventions.prompts import Prompt
from moescope.models.token_text import token_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.models import MoEModel

_ROW_BYTES = 64 * 2**20
SCHEMA_VERSION = 1


def kl_divergence(base_PV: Tensor, changed_PV: Tensor) -> NDArray[np.float64]:
    """KL(base ‖ changed) `Σ_x p(x) ln(p(x) / q(x))` of each row's softmax, nats, computed in float64."""
    rows = max(1, _ROW_BYTES // (8 * base_PV.shape[1]))
    parts = []
    for base_nV, changed_nV in zip(base_PV.split(rows), changed_PV.split(rows), strict=True):
        p_nV, q_nV = base_nV.double().log_softmax(-1), changed_nV.double().log_softmax(-1)
        # What the base holds impossible counts nothing, whatever the changed model makes of it.
        terms_nV = torch.where(p_nV.isneginf(), 0.0, p_nV.exp() * (p_nV - q_nV))
        parts.append(terms_nV.sum(-1).clamp_min(0.0))
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Outcomes:
    """One pass of a prompt, held against the base.

    Attributes:
        kl_P: KL(base ‖ this) at the target and every later position, nats.
        log_probabilities: For each of these positions, of the tokens looked at there.
        ranks: Their ranks in the whole vocabulary, from 0.
    """

    kl_P: NDArray[np.float64]
    log_probabilities: list[NDArray[np.float64]] = field(repr=False)
    ranks: list[NDArray[np.int64]] = field(repr=False)

    @classmethod
    def of(cls, base_PV: Tensor, this_PV: Tensor, token_ids: Sequence[NDArray[np.int64]]) -> Outcomes:
        """Reads one pass's next-token logits."""
        log_probabilities, ranks = [], []
        for logits_V, ids in zip(this_PV, token_ids, strict=True):
            at = torch.from_numpy(ids)
            log_probabilities.append(logits_V.double().log_softmax(-1)[at].numpy())
            ranks.append((logits_V > logits_V[at].unsqueeze(-1)).sum(-1).numpy())
        return cls(kl_divergence(base_PV, this_PV), log_probabilities, ranks)


@dataclass(frozen=True)
class Effect:
    """What one set of changes does.

    Attributes:
        value: The value swept: a weight or a factor; None where nothing is.
        changes: All in force at once.
        changed: Its outcome.
        matched: The same changes done to matched experts, one outcome a draw.
        chosen: The same done to each other expert that the token chose; empty where that makes no sense.
    """

    value: float | None
    changes: tuple[Change, ...]
    changed: Outcomes
    matched: list[Outcomes] = field(repr=False)
    chosen: list[Outcomes] = field(repr=False)

    @property
    def words(self) -> str:
        """What is done, in a few words."""
        return ", ".join(dict.fromkeys(change.words for change in self.changes))

    @property
    def num_acting(self) -> int:
        """Draws in which the change did anything: a control expert that no token concerned chose can't be scaled."""
        return sum(bool((control.kl_P > 0).any()) for control in self.matched)


@dataclass(frozen=True)
class Continuation:
    """A prompt continued greedily.

    Attributes:
        value: The value swept, None for the base.
        run: "base", "changed", or "control" (the first draw).
        text: What came.
        num_tokens: Tokens that came.
        num_as_base: How many of the first of them are as in the base.
    """

    value: float | None
    run: str
    text: str
    num_tokens: int
    num_as_base: int

    @classmethod
    def of(
        cls, model: MoEModel, value: float | None, run: str, token_ids: Sequence[int], base: Sequence[int]
    ) -> Continuation:
        """Reads what was generated."""
        same = next((i for i, (a, b) in enumerate(zip(token_ids, base, strict=False)) if a != b), None)
        text = str(model.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        return cls(value, run, text, len(token_ids), min(len(token_ids), len(base)) if same is None else same)


@dataclass(frozen=True)
class Study:
    """The effects of interventions on one prompt.

    Attributes:
        model: The model.
        prompt: The prompt, and which experts its tokens chose with what weight.
        target: The token from which on effects are read.
        targets: Layer and expert of those changed.
        base: The prompt without changes; its KL is 0.
        effects: One for each set of changes, in the order asked.
        draws: For each control, the expert that stands for each of `targets`.
        usage: What controls were matched by; None where there are none.
        continuations: The base's first, then each effect's and its control's; empty where none were asked for.
        token_ids: For each position from the target on, the next tokens looked at.
        top: How many of the most probable next tokens are compared.
        seed: What drew the controls.
    """

    model: MoEModel
    prompt: Prompt
    target: int
    targets: tuple[Target, ...]
    base: Outcomes
    effects: tuple[Effect, ...]
    draws: tuple[dict[Target, int], ...]
    usage: Usage | None
    continuations: tuple[Continuation, ...]
    token_ids: tuple[NDArray[np.int64], ...] = field(repr=False)
    top: int
    seed: int

    @property
    def positions(self) -> range:
        """The target and every later position of the prompt."""
        return range(self.target, len(self.prompt))

    @property
    def target_token(self) -> str:
        """The target's text."""
        return self.prompt.tokens[self.target]

    @cached_property
    def texts(self) -> dict[int, str]:
        """Text of every next token looked at, by id."""
        return token_texts(self.model.tokenizer, np.unique(np.concatenate(self.token_ids)).tolist())

    @property
    def base_weights(self) -> dict[Target, float]:
        """The weight that the target token gives each expert of its own; 0 where it did not choose it."""
        return {
            (layer, expert): self.prompt.weight(layer, expert, self.target) or 0.0 for layer, expert in self.targets
        }

    @property
    def experts(self) -> pd.DataFrame:
        """Which experts the prompt's tokens chose, with what weight, without any change."""
        return self.prompt.frame()

    @cached_property
    def kl(self) -> pd.DataFrame:
        """KL(base ‖ changed) at the target and every later position, nats, beside that of the controls.

        Columns: `change, value, position, token, kl`; of the matched controls their median, 5 % and 95 % quantiles,
        how many there are, how many did anything, and the share of them with a KL at least as large; of the token's
        other choices the median, least and largest.
        """
        rows = []
        for effect in self.effects:
            matched_RP = _stacked([control.kl_P for control in effect.matched], len(self.positions))
            chosen_RP = _stacked([control.kl_P for control in effect.chosen], len(self.positions))
            for place, position in enumerate(self.positions):
                kl = float(effect.changed.kl_P[place])
                low, middle, high = _quantiles(matched_RP[:, place], 0.05, 0.95)
                least, usual, most = _quantiles(chosen_RP[:, place], 0.0, 1.0)
                rows.append(
                    {
                        "change": effect.words,
                        "value": math.nan if effect.value is None else effect.value,
                        "position": position,
                        "token": self.prompt.tokens[position],
                        "kl": kl,
                        "control_kl_median": middle,
                        "control_kl_low": low,
                        "control_kl_high": high,
                        "control_share_as_large": float((matched_RP[:, place] >= kl).mean())
                        if self.draws
                        else math.nan,
                        "num_controls": len(self.draws),
                        "num_controls_acting": effect.num_acting,
                        "other_choices_kl_median": usual,
                        "other_choices_kl_low": least,
                        "other_choices_kl_high": most,
                        "num_other_choices": len(effect.chosen),
                    }
                )
        return pd.DataFrame(rows)

    @cached_property
    def next_tokens(self) -> pd.DataFrame:
        """Next tokens before and after, at the target and every later position, beside the matched controls' change.

        One row for each token that is among the `top` most probable before or after. Log-probabilities are natural;
        ranks count from 0. Controls: median, 5 % and 95 % quantiles of their change of log-probability; of the token's
        other choices the median, least and largest.
        """
        rows = []
        for effect in self.effects:
            for place, position in enumerate(self.positions):
                before, after = self.base.log_probabilities[place], effect.changed.log_probabilities[place]
                ranks_before, ranks_after = self.base.ranks[place], effect.changed.ranks[place]
                controls = [control.log_probabilities[place] - before for control in effect.matched]
                changes_Rn = _stacked(controls, len(before))
                others = [other.log_probabilities[place] - before for other in effect.chosen]
                others_Rn = _stacked(others, len(before))
                for slot, token_id in enumerate(self.token_ids[place]):
                    if min(ranks_before[slot], ranks_after[slot]) >= self.top:
                        continue
                    low, middle, high = _quantiles(changes_Rn[:, slot], 0.05, 0.95)
                    least, usual, most = _quantiles(others_Rn[:, slot], 0.0, 1.0)
                    rows.append(
                        {
                            "change": effect.words,
                            "value": math.nan if effect.value is None else effect.value,
                            "position": position,
                            "token": self.prompt.tokens[position],
                            "next_token_id": int(token_id),
                            "next_token": self.texts[int(token_id)],
                            "rank_before": int(ranks_before[slot]),
                            "rank_after": int(ranks_after[slot]),
                            "probability_before": math.exp(before[slot]),
                            "probability_after": math.exp(after[slot]),
                            "log_probability_before": float(before[slot]),
                            "log_probability_after": float(after[slot]),
                            "log_probability_change": float(after[slot] - before[slot]),
                            "control_change_median": middle,
                            "control_change_low": low,
                            "control_change_high": high,
                            "num_controls": len(self.draws),
                            "other_choices_change_median": usual,
                            "other_choices_change_low": least,
                            "other_choices_change_high": most,
                            "num_other_choices": len(effect.chosen),
                        }
                    )
        return pd.DataFrame(rows)

    @cached_property
    def controls(self) -> pd.DataFrame:
        """Every draw: which expert stands for which, how often each is used, and the KL at the target, nats."""
        rows = []
        for effect in self.effects:
            for number, (draw, outcome) in enumerate(zip(self.draws, effect.matched, strict=True)):
                for (layer, expert), drawn in draw.items():
                    assert self.usage is not None
                    rows.append(
                        {
                            "change": effect.words,
                            "value": math.nan if effect.value is None else effect.value,
                            "draw": number,
                            "layer": layer,
                            "expert": expert,
                            "expert_selection_frequency": self.usage.frequency(layer, expert),
                            "control_expert": drawn,
                            "control_selection_frequency": self.usage.frequency(layer, drawn),
                            "kl": float(outcome.kl_P[0]),
                        }
                    )
        return pd.DataFrame(rows)

    @property
    def generated(self) -> pd.DataFrame:
        """The continuations: `value, run, num_tokens, num_as_base, text`."""
        columns = ["value", "run", "num_tokens", "num_as_base", "text"]
        return pd.DataFrame([asdict(each) for each in self.continuations], columns=columns)

    def frames(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """All tables, by file name without suffix."""
        yield "kl", self.kl
        yield "next_tokens", self.next_tokens
        yield "experts", self.experts
        if self.draws:
            yield "controls", self.controls
        if self.continuations:
            yield "continuations", self.generated

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """All figures, by file name without suffix."""
        from moescope.interventions.drawing import figures

        yield from figures(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, texts and lists, for a JSON file; what there is none of is None."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model.name,
            "revision": self.model.revision,
            "prompt": self.prompt.text,
            "tokens": [
                {"index": index, "token_id": token_id, "token": token}
                for index, (token_id, token) in enumerate(zip(self.prompt.token_ids, self.prompt.tokens, strict=True))
            ],
            "target_index": self.target,
            "experts": [
                {
                    "layer": layer,
                    "expert": expert,
                    "base_weight": self.prompt.weight(layer, expert, self.target),
                    "selection_frequency": self.usage.frequency(layer, expert) if self.usage else None,
                }
                for layer, expert in self.targets
            ],
            "changes": [
                [{"kind": type(change).__name__.lower(), **asdict(change)} for change in effect.changes]
                for effect in self.effects
            ],
            "seed": self.seed,
            "matched_by": {"corpus": self.usage.corpus.name, "num_tokens": self.usage.num_tokens}
            if self.usage
            else None,
            "tables": {name: _records(frame) for name, frame in self.frames()},
        }


def _stacked(rows: Sequence[NDArray[np.float64]], width: int) -> NDArray[np.float64]:
    return np.stack(rows) if rows else np.empty((0, width))


def _quantiles(values: NDArray[np.float64], low: float, high: float) -> tuple[float, float, float]:
    if not values.size:
        return math.nan, math.nan, math.nan
    return tuple(float(value) for value in np.quantile(values, [low, 0.5, high]))  # type: ignore[return-value]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
