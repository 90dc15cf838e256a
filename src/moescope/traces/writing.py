"""Writes a trace: routing block by block, in memory that does not grow with the tokens; its facts at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moescope.errors import UsageError
from moescope.traces.blocks import MEASURES, Block, joined, split
from moescope.traces.facts import COUNTS, DOCUMENTS, FACTS, PHASES, TOKEN_TEXTS, TOKENS, TraceFacts
from moescope.traces.schema import (
    COUNTS_SCHEMA,
    DOCUMENTS_SCHEMA,
    HALF_PRECISION,
    OPTIONAL_IDS,
    TEXTS_SCHEMA,
    dictionary_columns,
    id_type,
    token_schema,
)

ROW_GROUP = 8192
"""Tokens that are written at a time, at least; one document is never split."""
PART = 2**19
"""Tokens in one file, about."""
_COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "write_statistics": True}
_LEAST_NORMAL = float(np.finfo(np.float16).smallest_normal)


class TraceWriter:
    """Writes the tables of a trace into a folder that exists; a context manager.

    Blocks are buffered to row groups of `ROW_GROUP` tokens, row groups to files of about `PART`.

    Args:
        folder: Where to.
        layers: MoE layers recorded, decoder block indices.
        num_experts: E; None where only the largest id will tell: ids are then stored in 16 bits.
        with_text: Whether the documents' texts are kept.

    Attributes:
        num_tokens: Tokens by domain, in the order in which domains were met.
        num_documents: Documents by domain.
        columns: What is known, as of `TraceFacts`; known with the first block.
        num_experts_per_token: K, of the first block.
        largest_expert: The largest expert id met.
    """

    def __init__(
        self, folder: Path, *, layers: Sequence[int], num_experts: int | None = None, with_text: bool = False
    ) -> None:
        self._folder = folder
        self.layers = list(layers)
        self._id_type = id_type(num_experts if num_experts is not None else 2**16)
        self._with_text = with_text
        self._waiting: list[Block] = []
        self._num_waiting = self._num_held = 0
        self._in_part = 0
        self._part = 0
        self._tokens: pq.ParquetWriter | None = None
        self._documents: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None
        self._weight_type = pa.float16()
        self._hash = hashlib.sha256()
        self._seen_V = np.zeros(0, dtype=np.bool_)
        self.num_tokens: dict[str, int] = {}
        self.num_documents: dict[str, int] = {}
        self.columns: frozenset[str] = frozenset()
        self.num_experts_per_token = 0
        self.largest_expert = -1
        self._generated = False

    def __enter__(self) -> Self:
        (self._folder / TOKENS).mkdir(exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush(last=True)
        for writer in (self._tokens, self._documents):
            if writer is not None:
                writer.close()

    @property
    def token_ids(self) -> list[int]:
        """Token ids that occur, ascending."""
        return [int(token_id) for token_id in self._seen_V.nonzero()[0]]

    @property
    def sample_hash(self) -> str:
        """Hash of documents, positions and token ids, in the order they were written."""
        return f"sha256:{self._hash.hexdigest()}"

    @property
    def phases(self) -> list[Any]:
        """Those that occur."""
        return list(PHASES if self._generated else PHASES[:1])

    def add(self, block: Block) -> None:
        """Takes in routing; every block has the same columns as the first."""
        if not block.num_tokens:
            return
        if self._schema is None:
            self._begin(block)
        elif block.columns != self._of_blocks:
            missing = ", ".join(sorted(self._of_blocks ^ block.columns))
            raise UsageError(f"some documents have {missing} and others have not", expected="the same for all")
        self._waiting.append(block)
        self._num_waiting += block.num_tokens
        if self._num_waiting >= max(ROW_GROUP, 2 * self._num_held):
            self._flush()

    def _begin(self, block: Block) -> None:
        self._of_blocks = block.columns
        ids = {"document_id"} if block.documents[0].document_id else set()
        self.columns = frozenset(block.columns | ids)
        self.num_experts_per_token = block.expert_ids_TLK.shape[2]
        if block.weights_TLK is not None:
            values = np.abs(block.weights_TLK)
            largest = float(np.finfo(np.float16).max)
            keeps = ((values == 0) | ((values >= _LEAST_NORMAL) & (values <= largest))).all()
            self._weight_type = pa.float16() if keeps else pa.float32()
        self._schema = token_schema(
            self.layers, self.num_experts_per_token, self.columns, id_type=self._id_type, weight_type=self._weight_type
        )

    def _flush(self, *, last: bool = False) -> None:
        """Writes what waits, but for the last document, which may go on in the next block."""
        if not self._waiting:
            return
        block: Block | None = joined(self._waiting)
        assert block is not None
        self._waiting, self._num_held = [], 0
        if not last and block.documents[-1].document_id:
            block, held = split(block)
            self._waiting, self._num_held = [held], held.num_tokens
        self._num_waiting = self._num_held
        if block is None:
            return
        if self._tokens is not None and self._in_part >= PART:
            self._tokens.close()
            self._tokens = None
        if self._tokens is None:
            path = self._folder / TOKENS / f"part-{self._part:05d}.parquet"
            self._tokens = pq.ParquetWriter(
                path, self._schema, use_dictionary=dictionary_columns(self._schema), **_COMPRESSION
            )
            self._part, self._in_part = self._part + 1, 0
        self._tokens.write_table(self._table(block), row_group_size=block.num_tokens)
        self._in_part += block.num_tokens
        self._count(block)

    def _table(self, block: Block) -> pa.Table:
        assert self._schema is not None
        rows_T = block.rows_T

        def by_document(values: list[Any], kind: pa.DataType) -> pa.Array:
            return pa.DictionaryArray.from_arrays(pa.array(rows_T.astype(np.int32)), pa.array(values, kind)).cast(kind)

        columns: dict[str, pa.Array] = {
            "domain": by_document([document.domain for document in block.documents], pa.string()),
            "position": pa.array(block.positions_T.astype(np.int32)),
            "phase": pa.DictionaryArray.from_arrays(
                pa.array(block.generated_T.astype(np.int8)), pa.array(PHASES, pa.string())
            ).cast(pa.string()),
        }
        if "document_id" in self.columns:
            columns["document_id"] = by_document([document.document_id for document in block.documents], pa.string())
            hashes_B = np.array([document.document_hash for document in block.documents], dtype=np.int64)
            columns["document_hash"] = pa.array(hashes_B[rows_T])
        for name in OPTIONAL_IDS:
            if name in self.columns:
                columns[name] = pa.array(getattr(block, f"{name}s_T").astype(np.int32))
        for position, layer in enumerate(self.layers):
            ids_TK = block.expert_ids_TLK[:, position]
            columns[f"expert_ids_{layer}"] = _lists(ids_TK, self._id_type)
            if block.weights_TLK is not None:
                columns[f"weights_{layer}"] = _lists(block.weights_TLK[:, position], self._weight_type)
            for name in MEASURES:
                if name in self.columns:
                    kind = np.float16 if name in HALF_PRECISION else np.float32
                    columns[f"{name}_{layer}"] = pa.array(block.measures[name][:, position].astype(kind))
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _count(self, block: Block) -> None:
        lengths_B = np.bincount(block.rows_T, minlength=len(block.documents))
        for document, length in zip(block.documents, lengths_B.tolist(), strict=True):
            self.num_tokens[document.domain] = self.num_tokens.get(document.domain, 0) + length
            documents = int(bool(document.document_id))
            self.num_documents[document.domain] = self.num_documents.get(document.domain, 0) + documents
        self.largest_expert = max(self.largest_expert, int(block.expert_ids_TLK.max()))
        self._generated |= bool(block.generated_T.any())
        for values in (block.positions_T, block.token_ids_T):
            if values is not None:
                self._hash.update(values.astype("<i8").tobytes())
        self._hash.update(np.array([document.document_hash for document in block.documents], "<i8").tobytes())
        for values in (block.token_ids_T, block.next_token_ids_T, block.predicted_token_ids_T):
            if values is not None:
                self._see(values)
        if "document_id" in self.columns:
            self._write_documents(block, lengths_B.tolist())

    def _see(self, token_ids_T: np.ndarray) -> None:
        largest = int(token_ids_T.max())
        if largest >= self._seen_V.shape[0]:
            self._seen_V = np.concatenate([self._seen_V, np.zeros(largest + 1 - self._seen_V.shape[0], np.bool_)])
        self._seen_V[token_ids_T[token_ids_T >= 0]] = True

    def _write_documents(self, block: Block, lengths: list[int]) -> None:
        if self._documents is None:
            self._documents = pq.ParquetWriter(self._folder / DOCUMENTS, DOCUMENTS_SCHEMA, **_COMPRESSION)
        documents = block.documents
        columns = [
            [document.document_id for document in documents],
            [document.document_hash for document in documents],
            [document.domain for document in documents],
            lengths,
            [document.source for document in documents],
            [document.text if self._with_text else None for document in documents],
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, DOCUMENTS_SCHEMA, strict=True)]
        self._documents.write_table(pa.table(arrays, schema=DOCUMENTS_SCHEMA))


def write_facts(folder: Path, facts: TraceFacts, token_texts: Mapping[int, str] | None = None) -> None:
    """Writes what a trace is of, and the texts of its tokens where there is a tokenizer."""
    if token_texts:
        ids = sorted(token_texts)
        arrays = [pa.array(ids, pa.int32()), pa.array([token_texts[token_id] for token_id in ids], pa.string())]
        pq.write_table(pa.table(arrays, schema=TEXTS_SCHEMA), folder / TOKEN_TEXTS, compression="zstd")
    (folder / FACTS).write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_counts(folder: Path, layers: Sequence[int], domains: Sequence[str], counts_LDE: np.ndarray) -> None:
    """Writes how often each expert was selected, where that is all that is known."""
    num_layers, num_domains, num_experts = counts_LDE.shape
    columns = [
        np.repeat(np.asarray(layers), num_domains * num_experts),
        np.tile(np.repeat(np.asarray(domains, dtype=object), num_experts), num_layers),
        np.tile(np.arange(num_experts), num_layers * num_domains),
        counts_LDE.reshape(-1),
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, COUNTS_SCHEMA, strict=True)]
    pq.write_table(pa.table(arrays, schema=COUNTS_SCHEMA), folder / COUNTS, compression="zstd")


def _lists(values_TK: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = np.ascontiguousarray(values_TK, dtype=kind.to_pandas_dtype()).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind), values_TK.shape[1])
