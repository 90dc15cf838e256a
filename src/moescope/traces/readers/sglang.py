"""SGLang's responses with `return_routed_experts`: base64 of int32, (tokens, decoder blocks, K) flattened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block
from moescope.traces.readers.base import Recording, Request, needs_model
from moescope.traces.readers.lines import records, text_of
from moescope.traces.readers.requests import Documents, choices_of, decoded, source_of, started, token_ids

_START = "routed_experts_start_len"


def read(request: Request) -> Recording:
    """Reads responses of `/generate` (`meta_info.routed_experts`) and of OpenAI's form (`choices[i].sgl_ext`).

    Raises:
        UsageError: A response that can't be used, or no model: the table's shape is not in the response.
    """
    if request.shape is None:
        raise needs_model(str(request.paths[0]), "how many layers and experts per token a row has")
    documents = Documents(request, "sglang")
    return started(documents, _blocks(request, documents))


def routing_in(record: Mapping[str, Any]) -> str | None:
    """The routing of a `/generate` response or of a choice, where it has any."""
    for name in ("meta_info", "sgl_ext"):
        if isinstance(holder := record.get(name), dict) and isinstance(holder.get("routed_experts"), str):
            return str(holder["routed_experts"])
    return None


def _blocks(request: Request, documents: Documents) -> Iterator[Block]:
    assert request.shape is not None
    for place, record in records(request.paths):
        documents.recording.model = documents.recording.model or text_of(record, "model")
        for number, choice in enumerate(choices_of(record, place)):
            text = routing_in(choice)
            if text is None:
                documents.skip()
                continue
            prompt = _first(choice, record, ("prompt_token_ids", "input_ids", "input_token_ids"))
            output = _first(choice, record, ("output_ids", "token_ids", "output_token_ids"))
            prompt_ids = token_ids(prompt, "prompt_token_ids (or input_ids)", place)
            output_ids = token_ids(output, "output_ids (or token_ids)", place)
            start = _first(choice, record, (_START,)) or 0
            if not isinstance(start, int) or start < 0:
                raise UsageError(f"{place}: {_START} is {str(start)[:60]!r}", expected="a whole number from 0")
            block = documents.block(
                _table(text, request, place),
                prompt_ids,
                output_ids,
                source=source_of(record, documents, place, number, "id", "rid", "meta_info.id"),
                place=place,
                start=start,
                first=len(prompt_ids) if number else 0,
            )
            if block is not None:
                yield block


def _table(text: str, request: Request, place: str) -> np.ndarray:
    shape = request.shape
    assert shape is not None
    data = decoded(text, place)
    row = 4 * shape.num_blocks * shape.num_experts_per_token
    if not data or len(data) % row:
        raise UsageError(
            f"{place}: {len(data):,} bytes of routing",
            expected=f"a multiple of {row}: int32, {shape.num_blocks} blocks x {shape.num_experts_per_token} experts",
            remedy="give the model that was traced, and check that the file was written to the end",
        )
    return np.frombuffer(data, "<i4").reshape(-1, shape.num_blocks, shape.num_experts_per_token).astype(np.int64)


def _first(choice: Mapping[str, Any], record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for holder in (choice, record, record.get("meta_info"), record.get("request")):
        if isinstance(holder, Mapping):
            for name in names:
                if holder.get(name) is not None:
                    return holder[name]
    return None
