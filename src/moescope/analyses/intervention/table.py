"""Effects of interventions on a prompt, by position and next token, each with its controls, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from moescope.analyses.intervention.prompts import Prompt
from moescope.interventions.changes import Change
from moescope.interventions.controls import Target, Usage

_ROW_BYTES = 64 * 2**20


def kl_divergence(base_PV: Tensor, changed_PV: Tensor) -> NDArray[np.float64]:
    """KL(base ‖ changed) `Σ_x p(x) ln(p(x) / q(x))` of each row's softmax, nats, computed in float64."""
    rows = max(1, _ROW_BYTES // (8 * base_PV.shape[1]))
    parts = []
    for base_nV, changed_nV in zip(base_PV.split(rows), changed_PV.split(rows), strict=True):
        p_nV, q_nV = base_nV.double().log_softmax(-1), changed_nV.double().log_softmax(-1)
        # 0 ln(0 / q) is 0, also where q is 0.
        terms_nV = torch.where(p_nV.isneginf(), 0.0, p_nV.exp() * (p_nV - q_nV))
        parts.append(terms_nV.sum(-1).clamp_min(0.0))
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class PromptPass:
    """One pass of a prompt, compared with the base.

    Attributes:
        kl_P: KL(base ‖ this) at the target and every later position, nats.
        log_probabilities: For each of these positions, those of the next tokens compared there.
        ranks: Their ranks in the whole vocabulary, from 0.
    """

    kl_P: NDArray[np.float64]
    log_probabilities: list[NDArray[np.float64]] = field(repr=False)
    ranks: list[NDArray[np.int64]] = field(repr=False)

    @classmethod
    def of(cls, base_PV: Tensor, this_PV: Tensor, token_ids: Sequence[NDArray[np.int64]]) -> PromptPass:
        """Computes both from the next-token logits of the two passes."""
        log_probabilities, ranks = [], []
        for logits_V, ids in zip(this_PV, token_ids, strict=True):
            ids_n = torch.from_numpy(ids)
            log_probabilities.append(logits_V.double().log_softmax(-1)[ids_n].numpy())
            ranks.append((logits_V > logits_V[ids_n].unsqueeze(-1)).sum(-1).numpy())
        return cls(kl_divergence(base_PV, this_PV), log_probabilities, ranks)


@dataclass(frozen=True)
class Effect:
    """The effect of one set of changes.

    Attributes:
        value: The value swept: a weight or a factor; None without a sweep.
        changes: All changes in force together.
        changed: The pass with the changes.
        matched: The passes with the same changes of matched experts, one for each draw.
        other: The passes with the same change of each other expert that the token selects; empty where that control
            does not apply.
    """

    value: float | None
    changes: tuple[Change, ...]
    changed: PromptPass
    matched: list[PromptPass] = field(repr=False)
    other: list[PromptPass] = field(repr=False)

    @property
    def description(self) -> str:
        """The changes in a few words."""
        return ", ".join(dict.fromkeys(change.description for change in self.changes))

    @property
    def records(self) -> list[dict[str, Any]]:
        """The changes with their kind and parameters, as plain values."""
        return [change.record for change in self.changes]

    @property
    def num_active(self) -> int:
        """Draws with an effect: the weight of an expert that no changed token selects cannot be scaled."""
        return sum(bool((control.kl_P > 0).any()) for control in self.matched)


@dataclass(frozen=True)
class Continuation:
    """A greedy continuation of the prompt.

    Attributes:
        value: The value swept, None for the base.
        run: "base", "changed", or "control" (the first draw).
        text: The generated text.
        num_tokens: Tokens generated.
        num_as_base: How many of the first of them are as in the base.
    """

    value: float | None
    run: str
    text: str
    num_tokens: int
    num_as_base: int


@dataclass(frozen=True, repr=False)
class PromptEffects:
    """The effects of interventions on one prompt.

    Attributes:
        prompt: The prompt with its routing.
        target: The token from which on effects are read.
        targets: Layer and expert of those changed.
        base: The pass without changes; its KL is 0.
        effects: One for each set of changes, in the order given.
        draws: For each control, the expert that replaces each of `targets`.
        usage: The usage that controls are matched by; None without controls.
        continuations: The base's first, then each effect's and its control's; empty if none were generated.
        token_ids: For each position from the target on, the next tokens compared.
        texts: Text of every next token compared, by id.
        top: How many of the most probable next tokens are compared.
        seed: Seed of the controls.
    """

    prompt: Prompt
    target: int
    targets: tuple[Target, ...]
    base: PromptPass
    effects: tuple[Effect, ...]
    draws: tuple[dict[Target, int], ...]
    usage: Usage | None
    continuations: tuple[Continuation, ...]
    token_ids: tuple[NDArray[np.int64], ...]
    texts: Mapping[int, str]
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

    @property
    def base_weights(self) -> dict[Target, float]:
        """The target token's weight for each changed expert, without changes; 0 where it does not select it."""
        return {
            (layer, expert): self.prompt.weight(layer, expert, self.target) or 0.0 for layer, expert in self.targets
        }

    @property
    def experts(self) -> pd.DataFrame:
        """The experts that the prompt's tokens select and their weights, without changes."""
        return self.prompt.frame()

    @cached_property
    def kl(self) -> pd.DataFrame:
        """KL(base ‖ changed) at the target and every later position, nats, with that of the controls.

        Columns: `change, value, position, token, kl`; of the matched controls the median, 5 % and 95 % quantiles, their
        number, the number with an effect, and the share with a KL at least as large; of the token's other selected
        experts the median, minimum and maximum.
        """
        rows = []
        for effect in self.effects:
            matched_RP = _stacked([control.kl_P for control in effect.matched], len(self.positions))
            other_RP = _stacked([control.kl_P for control in effect.other], len(self.positions))
            for index, position in enumerate(self.positions):
                kl = float(effect.changed.kl_P[index])
                low, middle, high = _quantiles(matched_RP[:, index], 0.05, 0.95)
                other_low, other_middle, other_high = _quantiles(other_RP[:, index], 0.0, 1.0)
                rows.append(
                    {
                        "change": effect.description,
                        "value": math.nan if effect.value is None else effect.value,
                        "position": position,
                        "token": self.prompt.tokens[position],
                        "kl": kl,
                        "kl_control_median": middle,
                        "kl_control_q05": low,
                        "kl_control_q95": high,
                        "kl_control_share_as_large": float((matched_RP[:, index] >= kl).mean())
                        if self.draws
                        else math.nan,
                        "num_controls": len(self.draws),
                        "num_controls_acting": effect.num_active,
                        "other_choices_kl_median": other_middle,
                        "other_choices_kl_low": other_low,
                        "other_choices_kl_high": other_high,
                        "num_other_choices": len(effect.other),
                    }
                )
        return pd.DataFrame(rows)

    @cached_property
    def next_tokens(self) -> pd.DataFrame:
        """Next tokens before and after, at the target and every later position, with the change of the controls.

        One row for each token that is among the `top` most probable before or after. Log-probabilities are natural;
        ranks count from 0. Of the matched controls: median, 5 % and 95 % quantiles of the change of log-probability; of
        the token's other selected experts the median, minimum and maximum.
        """
        rows = []
        for effect in self.effects:
            for index, position in enumerate(self.positions):
                before, after = self.base.log_probabilities[index], effect.changed.log_probabilities[index]
                ranks_before, ranks_after = self.base.ranks[index], effect.changed.ranks[index]
                controls = [control.log_probabilities[index] - before for control in effect.matched]
                changes_Rn = _stacked(controls, len(before))
                others = [control.log_probabilities[index] - before for control in effect.other]
                others_Rn = _stacked(others, len(before))
                for slot, token_id in enumerate(self.token_ids[index]):
                    if min(ranks_before[slot], ranks_after[slot]) >= self.top:
                        continue
                    low, middle, high = _quantiles(changes_Rn[:, slot], 0.05, 0.95)
                    other_low, other_middle, other_high = _quantiles(others_Rn[:, slot], 0.0, 1.0)
                    rows.append(
                        {
                            "change": effect.description,
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
                            "log_probability_change_control_median": middle,
                            "log_probability_change_control_q05": low,
                            "log_probability_change_control_q95": high,
                            "num_controls": len(self.draws),
                            "other_choices_change_median": other_middle,
                            "other_choices_change_low": other_low,
                            "other_choices_change_high": other_high,
                            "num_other_choices": len(effect.other),
                        }
                    )
        return pd.DataFrame(rows)

    @cached_property
    def controls(self) -> pd.DataFrame:
        """Every draw: the control of each expert, the selection frequency of both, and the KL at the target, nats."""
        rows = []
        for effect in self.effects:
            for number, (draw, outcome) in enumerate(zip(self.draws, effect.matched, strict=True)):
                for (layer, expert), drawn in draw.items():
                    assert self.usage is not None
                    rows.append(
                        {
                            "change": effect.description,
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


def _stacked(rows: Sequence[NDArray[np.float64]], width: int) -> NDArray[np.float64]:
    return np.stack(rows) if rows else np.empty((0, width))


def _quantiles(values: NDArray[np.float64], low: float, high: float) -> tuple[float, float, float]:
    if not values.size:
        return math.nan, math.nan, math.nan
    return tuple(float(value) for value in np.quantile(values, [low, 0.5, high]))  # type: ignore[return-value]
