"""Windows of documents into padded rows, rows of like length into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moescope.corpora.document import Document
from moescope.corpora.tokenizing import Ids
from moescope.records import TokenBatch

# What a further batch may cost before it is worth starting one to save padding, in tokens.
BATCH_COST = 256


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of text to run through a model, and which of their tokens count.

    Attributes:
        input_ids_BS: Token ids, int64, padded on the right. A row is what the tokenizer puts before a text, then one
            window of one document, then, if the window reaches the document's end, what the tokenizer puts after it.
        keep_T: Indices of the counted tokens in the flattened B*S, int64, ascending.
        tokens: What is known of the counted tokens.
        documents: The document of each row.
    """

    input_ids_BS: Tensor
    keep_T: Tensor
    tokens: TokenBatch
    documents: tuple[Document | None, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        columns = {field.name: getattr(self.tokens, field.name) for field in fields(self.tokens)}
        placed = TokenBatch(**{name: column.to(device) for name, column in columns.items() if column is not None})
        return Batch(self.input_ids_BS.to(device), self.keep_T.to(device), placed, self.documents)


@dataclass(frozen=True, eq=False)
class Window:
    """A run of tokens of one document, and the row it is fed as.

    Attributes:
        row: The token ids fed, with what the tokenizer puts around a text.
        counted: Indices in the row of the tokens that count.
        next_ids: The true next token of each counted token, -1 where there is none or it is special.
        positions: Position of each counted token in its document.
        document_hash: Stable 64-bit hash of corpus and document.
        domain_id: Index of the domain in the corpus.
        document: The document, where the window is of one.
    """

    row: Ids
    counted: Ids
    next_ids: Ids
    positions: Ids
    document_hash: int
    domain_id: int
    document: Document | None = None


def pack(windows: Sequence[Window], batch_tokens: int) -> list[list[Window]]:
    """Splits windows into batches of like length that cost least.

    Sorted from long to short, a batch is a run of windows and its padded size is their number times the first's length.
    Of all ways to cut the sequence into runs of at most `batch_tokens`, the one with the least total of padded sizes
    and `BATCH_COST` per batch (dynamic programming from the front).

    Args:
        windows: What to pack.
        batch_tokens: Padded size of a batch at most, unless it has one row.

    Returns:
        The batches, longest rows first.
    """
    ordered = sorted(windows, key=lambda window: -len(window.row))
    lengths = np.array([len(window.row) for window in ordered], dtype=np.int64)
    best = np.zeros(len(ordered) + 1)
    cuts = np.zeros(len(ordered) + 1, dtype=np.int64)
    first = 0
    for end in range(1, len(ordered) + 1):
        while first < end - 1 and lengths[first] * (end - first) > batch_tokens:
            first += 1
        costs = best[first:end] + lengths[first:end] * np.arange(end - first, 0, -1)
        cut = int(np.argmin(costs))
        best[end] = costs[cut] + BATCH_COST
        cuts[end] = first + cut
    batches = []
    end = len(ordered)
    while end > 0:
        start = int(cuts[end])
        batches.append(ordered[start:end])
        end = start
    return batches[::-1]


def lay_out(windows: Sequence[Window], padding_id: int) -> Batch:
    """Makes a batch of windows, one a row, padded on the right with `padding_id`."""
    width = max(len(window.row) for window in windows)
    input_ids_BS = np.full((len(windows), width), padding_id, dtype=np.int64)
    for row, window in enumerate(windows):
        input_ids_BS[row, : len(window.row)] = window.row
    rows = np.repeat(np.arange(len(windows)), [len(window.counted) for window in windows])
    columns = np.concatenate([window.counted for window in windows])
    tokens = TokenBatch(
        token_ids_T=_tensor(input_ids_BS[rows, columns]),
        next_token_ids_T=_tensor(np.concatenate([window.next_ids for window in windows])),
        positions_T=_tensor(np.concatenate([window.positions for window in windows])),
        rows_T=_tensor(rows),
        document_hashes_B=_tensor([window.document_hash for window in windows]),
        domain_ids_B=_tensor([window.domain_id for window in windows]),
    )
    documents = tuple(window.document for window in windows)
    return Batch(_tensor(input_ids_BS), _tensor(rows * width + columns), tokens, documents)


def _tensor(values: NDArray[np.int64] | Sequence[int]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
