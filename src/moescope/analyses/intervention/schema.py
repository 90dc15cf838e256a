"""The form of `intervene.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 2


class PromptToken(BaseModel):
    """One token of the prompt.

    Attributes:
        index: Its index in the prompt, from 0.
        token_id: Its id.
        token: Its text, spaces and line breaks visible.
    """

    index: int
    token_id: int
    token: str


class ChangedExpert(BaseModel):
    """One expert that is changed.

    Attributes:
        layer: The decoder block's index in the checkpoint.
        expert: Its index.
        base_weight: The target token's weight for it without changes; None where it is not selected.
        selection_frequency: Share of the sampled tokens that select it; None without controls.
    """

    layer: int
    expert: int
    base_weight: float | None
    selection_frequency: float | None


class UsageSample(BaseModel):
    """The text in which the usage was counted that controls are matched by.

    Attributes:
        corpus: Its name.
        num_tokens: Tokens counted.
    """

    corpus: str
    num_tokens: int


class StudyRecord(BaseModel):
    """An intervention on a prompt: the prompt, the changes, and all tables row by row.

    Attributes:
        schema_version: Of this form.
        model: The model's name.
        revision: Commit of a hub repository; None for others.
        prompt: The prompt's text.
        tokens: Its tokens.
        target_index: The token from which on effects are read.
        experts: The experts that are changed.
        changes: The changes of each variant, with their `kind` and their parameters.
        seed: Seed of the controls.
        matched_by: The text that controls are matched by; None without controls.
        tables: Rows of each table, by its file name; NaN is null.
    """

    model_config = ConfigDict(ser_json_inf_nan="null")

    schema_version: int = SCHEMA_VERSION
    model: str
    revision: str | None
    prompt: str
    tokens: list[PromptToken]
    target_index: int
    experts: list[ChangedExpert]
    changes: list[list[dict[str, Any]]]
    seed: int
    matched_by: UsageSample | None
    tables: dict[str, list[dict[str, Any]]]
