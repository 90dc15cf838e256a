"""vLLM's responses with `enable_return_routed_experts`, of all its versions, saved as JSON or JSON Lines.

| version | where | rows |
|---|---|---|
| until 0.20 | `outputs[i].routed_experts` | all tokens, all decoder blocks |
| 0.21 | `prompt_routed_experts` and `choices[i].routed_experts` | the prompt's, and those written; -1: prefix cache |
| from 0.22 | `choices[i].routed_experts`, base64 of a .npy file | prompt and written less one |
| from 2026-08 | the same, after `routed_experts_prompt_start` tokens | |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block
from moescope.traces.readers.base import Recording, Request
from moescope.traces.readers.lines import records, text_of
from moescope.traces.readers.requests import Documents, choices_of, source_of, started, table_of, token_ids

_EXPERTS = ("routed_experts", "moe_topk_indices")
_PROMPT_EXPERTS = ("prompt_routed_experts", "prompt_moe_topk_indices")
_START = "routed_experts_prompt_start"


def read(request: Request, engine: str = "vllm") -> Recording:
    """Reads responses; each needs `prompt_token_ids`, and `token_ids` of each choice.

    Raises:
        UsageError: A response that can't be used; says which.
    """
    documents = Documents(request, engine)
    return started(documents, _blocks(request, documents))


def _blocks(request: Request, documents: Documents) -> Iterator[Block]:
    for place, record in records(request.paths):
        documents.recording.model = documents.recording.model or text_of(record, "model")
        choices = choices_of(record, place)
        shared = _first(record, _PROMPT_EXPERTS)
        counted = False
        for number, choice in enumerate(choices):
            value = _first(choice, _EXPERTS)
            if value is None:
                documents.skip()
                continue
            prompt = record.get("prompt_token_ids", choice.get("prompt_token_ids"))
            prompt_ids = token_ids(prompt, "prompt_token_ids", place)
            output_ids = token_ids(choice.get("token_ids", choice.get("output_ids")), "choices[].token_ids", place)
            table = table_of(value, place)
            if shared is not None:
                table = _together(table_of(shared, place), table, len(prompt_ids), place)
            block = documents.block(
                table,
                prompt_ids,
                output_ids,
                source=source_of(record, documents, place, number, "id", "request_id"),
                place=place,
                start=_start(record, choice, place),
                first=len(prompt_ids) if counted else 0,  # the choices share one prompt
            )
            counted = True
            if block is not None:
                yield block


def _together(prompt: np.ndarray, written: np.ndarray, num_prompt: int, place: str) -> np.ndarray:
    if len(prompt) != num_prompt or prompt.shape[1:] != written.shape[1:]:
        raise UsageError(
            f"{place}: routing of shape {prompt.shape} for the prompt, {written.shape} for what was written",
            expected=f"{num_prompt} rows for the prompt, and the same layers and experts per token in both",
        )
    return np.concatenate([prompt, written])


def _first(record: Any, names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _start(record: Any, choice: Any, place: str) -> int:
    """Tokens at the beginning that the request asked no routing of."""
    for holder in (choice, record, record.get("request"), record.get("sampling_params")):
        if isinstance(holder, dict) and holder.get(_START) is not None:
            start = holder[_START]
            if not isinstance(start, int) or start < 0:
                raise UsageError(f"{place}: {_START} is {str(start)[:60]!r}", expected="a whole number from 0")
            return start
    return 0
