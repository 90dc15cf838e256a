"""`Trace`: recorded routing in our own form, read block by block. Nothing in the folder is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moescope.context import ModelInfo
from moescope.errors import UsageError
from moescope.traces.blocks import MEASURES, Block, Source, joined, split
from moescope.traces.checks import check_ids
from moescope.traces.facts import COUNTS, DOCUMENTS, TOKEN_TEXTS, TOKENS, Phase, TraceFacts, read_facts, spelled
from moescope.traces.schema import COUNTS_SCHEMA, OPTIONAL_IDS, token_schema

MOST_ROWS = 2**16
"""Rows read at a time."""
MOST_DOCUMENT = 2**22
"""Tokens of one document at most: a document is counted as a whole."""
_AGAIN = "record or import the trace again"


@dataclass(frozen=True)
class TracedCorpus:
    """What a trace says of the text, as far as a run asks it of a corpus."""

    name: str
    domains: tuple[str, ...]
    groups: Mapping[str, str]
    fingerprint: str
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """What tables call the domains."""
        return self.domains


class Trace:
    """Recorded routing: `capture` answers questions from it as from a model and a corpus.

    Attributes:
        path: The folder.
        facts: What it is of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: TraceFacts = read_facts(path)
        self.num_counted_D = np.zeros(len(self.facts.domains), dtype=np.int64)
        self.num_documents_D = np.zeros_like(self.num_counted_D)

    def __repr__(self) -> str:
        facts = self.facts
        return f"<Trace {facts.model}: {facts.num_tokens:,} tokens of {facts.corpus}, layers {spelled(facts.layers)}>"

    @property
    def name(self) -> str:
        """The model's name."""
        return self.facts.model

    @property
    def columns(self) -> frozenset[str]:
        """What is known of each token; only `counts` where single tokens are not known."""
        return frozenset(self.facts.columns)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """`prompt`, and `generated` where tokens of the model's own were recorded."""
        return tuple(self.facts.phases)

    @cached_property
    def info(self) -> ModelInfo:
        """Facts of the model, as far as they are known; the tokens' texts stand where its tokenizer would be."""
        facts = self.facts
        return ModelInfo(
            name=facts.model,
            revision=facts.revision,
            family=facts.family,
            config_hash=facts.config_hash,
            dtype=facts.dtype,
            device="cpu",
            num_experts=facts.num_experts,
            num_experts_per_token=facts.num_experts_per_token,
            num_shared_experts=facts.num_shared_experts,
            model_width=facts.model_width,
            expert_width=facts.expert_width,
            vocab_size=facts.vocab_size,
            scoring=facts.scoring,
            selects_by=facts.selects_by,
            complete=False,
            tokenizer=self._token_texts(),
            interventions=tuple(facts.interventions),
            changes=tuple(facts.changes),
        )

    @property
    def corpus(self) -> TracedCorpus:
        """The text that was read, as far as it is known."""
        facts = self.facts
        return TracedCorpus(
            name=facts.corpus,
            domains=tuple(_label(domain.name) for domain in facts.domains),
            groups={_label(domain.name): domain.group for domain in facts.domains if domain.group is not None},
            fingerprint=facts.corpus_fingerprint or facts.sample_hash,
            notes=tuple(facts.notes),
        )

    def check_layers(self, layers: Sequence[int] | None) -> list[int]:
        """Layers to look at, ascending, each once; None means all that were recorded, -1 the last of them.

        Raises:
            UsageError: A layer that was not recorded.
        """
        recorded = self.facts.layers
        if layers is None:
            return list(recorded)
        chosen = sorted({layer if layer >= 0 else recorded[layer] if -layer <= len(recorded) else layer
                         for layer in layers})  # fmt: skip
        unknown = [layer for layer in chosen if layer not in recorded]
        if unknown or not chosen:
            what = f"`layers={unknown}` were not recorded" if unknown else "no layer was asked for"
            raise UsageError(what, expected=f"some of layers {spelled(recorded)}")
        return chosen

    def counts_LDE(self) -> np.ndarray:
        """How often each expert was selected, of a trace that knows no more: int64, by layer, domain, expert."""
        facts = self.facts
        with _readable(self.path / COUNTS):
            table = pq.read_table(self.path / COUNTS, schema=COUNTS_SCHEMA)
        shape = (len(facts.layers), len(facts.domains), facts.num_experts)
        if table.num_rows != np.prod(shape):
            raise _wrong(self.path / COUNTS, f"has {table.num_rows:,} rows", f"{np.prod(shape):,}: {shape}")
        return table["num_selected"].to_numpy().reshape(shape)

    def blocks(self, layers: Sequence[int], wanted: Mapping[int, int] | None = None) -> Iterator[Block]:
        """All tokens, whole documents in each block, checked.

        Args:
            layers: Layers to read.
            wanted: Most tokens to take of each document, by its hash; documents that are not named are left out. None:
                everything.

        Raises:
            UsageError: The files are damaged, or not what the facts say.
        """
        self.num_counted_D[:] = self.num_documents_D[:] = 0
        held: Block | None = None
        for chunk in self._chunks(layers):
            before, held = split(chunk if held is None else joined([held, chunk]))
            if held.num_tokens > MOST_DOCUMENT:
                raise _wrong(self.path, f"has a document of more than {MOST_DOCUMENT:,} tokens", "shorter documents")
            if before is not None:
                yield from self._taken(before, wanted)
        if held is not None:
            yield from self._taken(held, wanted)
        if wanted is None:
            self._check_totals()

    def _taken(self, block: Block, wanted: Mapping[int, int] | None) -> Iterator[Block]:
        if wanted is not None:
            most_B = np.array([wanted.get(document.document_hash, 0) for document in block.documents], dtype=np.int64)
            starts_B = np.searchsorted(block.rows_T, np.arange(len(block.documents)))
            within_T = np.arange(block.num_tokens) - starts_B[block.rows_T]
            block = block.part(within_T < most_B[block.rows_T])
            if not block.num_tokens:
                return
        known = {domain.name: position for position, domain in enumerate(self.facts.domains)}
        try:
            domains_B = np.array([known[document.domain] for document in block.documents], dtype=np.int64)
        except KeyError as error:
            raise _wrong(self.path, f"has rows of domain {error}", "domains that trace.json lists") from error
        np.add.at(self.num_counted_D, domains_B[block.rows_T], 1)
        if "document_id" in self.columns:
            np.add.at(self.num_documents_D, domains_B, 1)
        yield block

    def _check_totals(self) -> None:
        for position, domain in enumerate(self.facts.domains):
            found = (int(self.num_counted_D[position]), int(self.num_documents_D[position]))
            if found != (domain.num_tokens, domain.num_documents):
                raise _wrong(
                    self.path,
                    f"has {found[0]:,} tokens in {found[1]:,} documents of domain {domain.name!r}",
                    f"{domain.num_tokens:,} tokens in {domain.num_documents:,} documents, as trace.json says",
                )

    def documents(self) -> pa.Table:
        """Hash, domain and number of tokens of each document."""
        path = self.path / DOCUMENTS
        with _readable(path):
            return pq.read_table(path, columns=["document_hash", "domain", "num_tokens"])

    def _parts(self) -> list[Path]:
        parts = sorted((self.path / TOKENS).glob("part-*.parquet"))
        if not parts:
            raise _wrong(self.path, f"holds no {TOKENS}/part-*.parquet", "the files that were written with trace.json")
        return parts

    def _chunks(self, layers: Sequence[int]) -> Iterator[Block]:
        if "expert_ids" not in self.columns:
            raise UsageError(f"{self.path} knows counts alone, not single tokens", expected="a trace of tokens")
        for path in self._parts():
            with _readable(path), pq.ParquetFile(path) as file:
                names = self._check_schema(path, file.schema_arrow, layers)
                for group in range(file.num_row_groups):
                    for batch in file.iter_batches(MOST_ROWS, row_groups=[group], columns=names):
                        if batch.num_rows:
                            yield self._block(path, batch, layers)

    def _check_schema(self, path: Path, schema: pa.Schema, layers: Sequence[int]) -> list[str]:
        first = f"expert_ids_{self.facts.layers[0]}"
        found = schema.field(first).type if first in schema.names else None
        ids = found.value_type if found is not None and pa.types.is_fixed_size_list(found) else None
        if ids not in (pa.uint8(), pa.uint16()):
            raise _wrong(path, f"has no column {first} of fixed-size lists of ids", "files that moescope wrote")
        weights = f"weights_{self.facts.layers[0]}"
        halves = weights in schema.names and schema.field(weights).type.value_type == pa.float16()
        expected = token_schema(
            self.facts.layers,
            self.facts.num_experts_per_token,
            self.columns,
            id_type=ids,
            weight_type=pa.float16() if halves else pa.float32(),
        )
        if not schema.equals(expected, check_metadata=False):
            wrong = [
                name
                for name in expected.names
                if name not in schema.names or schema.field(name) != expected.field(name)
            ]
            raise _wrong(path, f"has other columns than trace.json says ({', '.join(wrong[:5])})", "the same columns")
        skipped = {f"_{layer}" for layer in self.facts.layers if layer not in layers}
        return [name for name in expected.names if f"_{name.rpartition('_')[2]}" not in skipped]

    def _block(self, path: Path, batch: pa.RecordBatch, layers: Sequence[int]) -> Block:
        if any(batch.column(name).null_count for name in batch.schema.names):
            raise _wrong(path, "has empty cells", "a value in every cell")
        num_tokens, known = batch.num_rows, self.columns

        def numbers(name: str) -> np.ndarray:
            return batch.column(name).to_numpy(zero_copy_only=False)

        def lists(name: str) -> np.ndarray:
            return batch.column(name).flatten().to_numpy(zero_copy_only=False).reshape(num_tokens, -1)

        domain_T = batch.column("domain").dictionary_encode()
        codes_T = domain_T.indices.to_numpy()
        names = domain_T.dictionary.to_pylist()
        hashes_T = numbers("document_hash") if "document_id" in known else np.zeros(num_tokens, np.int64)
        starts_T = np.ones(num_tokens, dtype=np.bool_)
        starts_T[1:] = (hashes_T[1:] != hashes_T[:-1]) | (codes_T[1:] != codes_T[:-1])
        if "document_id" not in known:  # one row for each domain, however often it comes and goes
            order = np.argsort(codes_T, kind="stable")
            batch, codes_T = batch.take(pa.array(order)), codes_T[order]
            starts_T[1:] = codes_T[1:] != codes_T[:-1]
        first = np.flatnonzero(starts_T)
        ids = (
            batch.column("document_id").take(pa.array(first)).to_pylist()
            if "document_id" in known
            else [""] * len(first)
        )
        expert_ids_TLK = np.stack([lists(f"expert_ids_{layer}") for layer in layers], axis=1)
        check_ids(expert_ids_TLK, self.facts.num_experts, layers, str(path))
        block = Block(
            documents=[
                Source(document_id, int(hashes_T[row]), names[codes_T[row]])
                for document_id, row in zip(ids, first.tolist(), strict=True)
            ],
            rows_T=np.cumsum(starts_T) - 1,
            positions_T=numbers("position").astype(np.int64),
            generated_T=numbers("phase") == "generated",
            expert_ids_TLK=expert_ids_TLK,
            weights_TLK=np.stack([lists(f"weights_{layer}") for layer in layers], axis=1).astype(np.float32)
            if "weights" in known
            else None,
            measures={
                name: np.stack([numbers(f"{name}_{layer}") for layer in layers], axis=1).astype(np.float32)
                for name in MEASURES
                if name in known
            },
            **{f"{name}s_T": numbers(name).astype(np.int64) for name in OPTIONAL_IDS if name in known},
        )
        self._check_tokens(path, block)
        return block

    def _check_tokens(self, path: Path, block: Block) -> None:
        for name, lowest in (("token_ids_T", 0), ("next_token_ids_T", -1), ("predicted_token_ids_T", 0)):
            values = getattr(block, name)
            if values is not None and (values.min() < lowest or values.max() >= self.facts.vocab_size):
                raise _wrong(
                    path, f"has token ids {values.min()} to {values.max()}", f"0 to {self.facts.vocab_size - 1}"
                )
        if block.positions_T.min() < 0:
            raise _wrong(path, "has negative positions", "positions from 0")

    def _token_texts(self) -> dict[int, str] | None:
        path = self.path / TOKEN_TEXTS
        if not path.is_file():
            return None
        with _readable(path):
            table = pq.read_table(path, columns=["token_id", "text"])
            return dict(zip(table["token_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def _label(domain: str) -> str:
    """What tables call a domain: its name, unless all domains together are called so."""
    return domain if domain != "all" else "all (domain)"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into an error that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        if isinstance(error, UsageError):
            raise
        raise _wrong(
            path, f"cannot be read: {str(error).splitlines()[0]}", "a Parquet file as moescope writes it"
        ) from error


def _wrong(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(f"{path} {found}", expected=expected, remedy=_AGAIN)
