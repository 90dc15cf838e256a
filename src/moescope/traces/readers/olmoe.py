"""OLMoE's published routing (`c4_results.jsonl`): input, predicted tokens and experts, (tokens, K, layers), of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block
from moescope.traces.readers.base import Recording, Request
from moescope.traces.readers.lines import records
from moescope.traces.readers.requests import Documents, source_of, started, table_of, token_ids


def read(request: Request) -> Recording:
    """Reads its lines; each is a document.

    Raises:
        UsageError: A line that can't be used; says which.
    """
    documents = Documents(request, "transformers")
    return started(documents, _blocks(request, documents))


def _blocks(request: Request, documents: Documents) -> Iterator[Block]:
    for place, record in records(request.paths):
        ids = token_ids(record.get("input_ids"), "input_ids", place)
        table = table_of(record.get("exp_ids"), place).transpose(0, 2, 1)
        block = documents.block(
            table, ids, np.zeros(0, np.int64), source=source_of(record, documents, place, 0, "id"), place=place
        )
        if block is None:
            continue
        if record.get("predicted_token_ids") is not None:
            predicted = token_ids(record["predicted_token_ids"], "predicted_token_ids", place)
            if len(predicted) != len(ids):
                raise UsageError(f"{place}: {len(predicted)} predicted tokens", expected=f"{len(ids)}, one per token")
            block = replace(block, predicted_token_ids_T=predicted[block.positions_T])
        yield block
