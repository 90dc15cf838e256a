"""Corpora out of what a Python program holds: texts, records, a pandas frame, a dataset that is open already."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from moescope.corpora.base import Corpus, in_turn, shuffled
from moescope.corpora.document import Document, readable, stable_hash
from moescope.corpora.files import (
    BUFFER_CHARACTERS,
    BUFFER_DOCUMENTS,
    MAX_DOMAINS,
    by_frequency,
    hash_records,
    too_many_domains,
)
from moescope.corpora.names import listed
from moescope.corpora.problems import Problems
from moescope.corpora.records import Fields, domains_of, to_documents
from moescope.errors import CorpusError

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

# Rows read at a time, and those that a fingerprint covers: all, or of more these at the beginning, middle and end.
BLOCK_ROWS = 512
WHOLE_ROWS = 100_000
SAMPLE_ROWS = 10_000


class TextsCorpus(Corpus):
    """Texts in memory, by domain in the mapping's order.

    A document's id is its domain and its index. The fingerprint covers all texts.

    Args:
        texts: The texts of each domain.
        name: What to call the corpus.

    Raises:
        CorpusError: No text, or something that is none.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], name: str = "texts") -> None:
        self.name = name
        self.domains = tuple(texts)
        self.groups = {}
        self._texts = {domain: tuple(some) for domain, some in texts.items()}
        for domain, some in self._texts.items():
            for index, text in enumerate(some):
                if not isinstance(text, str):
                    raise CorpusError(
                        f"item {index} of domain {domain!r} is of type {type(text).__name__}", expected="a text (str)"
                    )
        if not any(text.strip() for some in self._texts.values() for text in some):
            raise CorpusError("the texts given are empty", expected="texts of two words or more, by domain")

    @cached_property
    def fingerprint(self) -> str:
        """`texts:` and a BLAKE2b hash of all texts and their domains."""
        return f"texts:{hash_records(([domain, *some] for domain, some in self._texts.items()))}"

    def stream(self, seed: int, wanted: Container[str], problems: Problems) -> Iterator[Document]:
        """See `Corpus.stream`. Domains come in turn; the order within one is that of a hash of seed and id."""
        yield from in_turn({domain: self._documents(domain, seed, problems) for domain in self.domains}, wanted)

    def _documents(self, domain: str, seed: int, problems: Problems) -> Iterator[Document]:
        some = self._texts[domain]
        for index in sorted(range(len(some)), key=lambda index: stable_hash(seed, domain, index)):
            text, truncated = readable(some[index])
            place = f"{domain}/{index}"
            if not text.strip():
                problems.add("no_text", place)
                continue
            if truncated:
                problems.add("long", place)
            yield Document(text, domain, place, truncated=truncated)


class Table(ABC):
    """Rows that can be read from any position, as records."""

    columns: Sequence[str]
    num_rows: int

    @abstractmethod
    def rows(self, start: int, stop: int) -> list[Mapping[str, Any]]:
        """The rows from `start` to before `stop`, of the columns that are read."""


class RecordsTable(Table):
    """A list of mappings."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._records = records
        self.num_rows = len(records)
        self.columns = list(map(str, records[0])) if records else []

    def rows(self, start: int, stop: int) -> list[Mapping[str, Any]]:
        """See `Table.rows`."""
        return list(self._records[start:stop])


class FrameTable(Table):
    """A pandas frame; of columns of one name the first."""

    def __init__(self, frame: pd.DataFrame, fields: Fields) -> None:
        self.columns = [str(column) for column in frame.columns]
        self.num_rows = len(frame)
        first = {column: position for position, column in reversed(list(enumerate(self.columns)))}
        self._frame = frame.iloc[:, sorted(first[column] for column in first if column in fields.columns)]
        self.num_same = sum(self.columns.count(column) - 1 for column in first if column in fields.columns)

    def rows(self, start: int, stop: int) -> list[Mapping[str, Any]]:
        """See `Table.rows`."""
        names = [str(column) for column in self._frame.columns]
        columns = [self._frame.iloc[start:stop, position].tolist() for position in range(len(names))]
        length = min(stop, self.num_rows) - start
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if names else [{}] * length


class DatasetTable(Table):
    """A dataset of the datasets library, without the columns that no one looks at."""

    def __init__(self, dataset: Dataset, fields: Fields) -> None:
        self.columns = list(dataset.column_names)
        self.num_rows = len(dataset)
        self._dataset = dataset.with_format(None).select_columns([c for c in self.columns if c in fields.columns])

    def rows(self, start: int, stop: int) -> list[Mapping[str, Any]]:
        """See `Table.rows`."""
        stop = min(stop, self.num_rows)
        if not self._dataset.column_names:
            return [{}] * (stop - start)
        columns: dict[str, list[Any]] = self._dataset[start:stop]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class TableCorpus(Corpus):
    """Rows of a table; each row is a document.

    With a domain field each row says its domain, the most frequent first; without, all are one domain. A document's id
    is its row's number. The fingerprint covers all rows, of more than 100,000 rows 10,000 at the beginning, in the
    middle and at the end.

    Args:
        table: The rows.
        fields: Which fields hold text and domain.
        name: What to call the corpus.

    Raises:
        CorpusError: No text, or no domain, in the fields asked for.
    """

    def __init__(self, table: Table, fields: Fields, name: str) -> None:
        self.name = name
        self.groups = {}
        self.fields = fields
        self._table = table
        if fields.domain is None:
            self.domains = (name,)
        else:
            self.domains = tuple(self._find_domains())
        problems = Problems()
        if next(self._documents(problems, range(0, table.num_rows, BLOCK_ROWS)), None) is None:
            raise CorpusError(
                f"{name} holds no text: {'; '.join(problems.messages()) or 'it has no rows'}",
                expected=f"text in the field {' or '.join(map(repr, fields.texts))}",
                remedy=f"name the field that holds the text with --text-field; there are {listed(table.columns)}",
            )
        if isinstance(table, FrameTable) and table.num_same:
            self.notes = (f"{table.num_same} columns of {name} are named like others: the first of a name is read",)

    @cached_property
    def fingerprint(self) -> str:
        """`table:` and a BLAKE2b hash of the rows, or three samples of many, and the fields."""
        total = self._table.num_rows
        starts = list(range(0, total, BLOCK_ROWS))
        if total > WHOLE_ROWS:
            sampled = (0, (total - SAMPLE_ROWS) // 2, total - SAMPLE_ROWS)
            starts = [start for first in sampled for start in range(first, first + SAMPLE_ROWS, BLOCK_ROWS)]
        rows = chain.from_iterable(self._table.rows(start, start + BLOCK_ROWS) for start in starts)
        return f"table:{hash_records(rows, str(total), self.fields.text, str(self.fields.domain))}"

    def stream(self, seed: int, wanted: Container[str], problems: Problems) -> Iterator[Document]:
        """See `Corpus.stream`. Blocks of 512 rows come in an order drawn by seed, their rows mixed in a buffer."""
        starts = list(range(0, self._table.num_rows, BLOCK_ROWS))
        random.Random(stable_hash(seed, self.name, "blocks")).shuffle(starts)
        documents = shuffled(
            self._documents(problems, starts),
            stable_hash(seed, self.name),
            max_documents=BUFFER_DOCUMENTS,
            max_characters=BUFFER_CHARACTERS,
        )
        known = set(self.domains)
        for document in documents:
            if document.domain in known and document.domain in wanted:
                yield document

    def _documents(self, problems: Problems, starts: Sequence[int]) -> Iterator[Document]:
        for start in starts:
            for number, record in enumerate(self._table.rows(start, start + BLOCK_ROWS), start=start):
                yield from to_documents(
                    record,
                    self.fields,
                    problems,
                    place=f"row {number}",
                    document_id=f"{self.name}:{number}",
                    domain=None if self.fields.domain is not None else self.name,
                    source=self.name,
                )

    def _find_domains(self) -> list[str]:
        counts: Counter[str] = Counter()
        for start in range(0, self._table.num_rows, BLOCK_ROWS):
            for record in self._table.rows(start, start + BLOCK_ROWS):
                counts.update(domains_of(record, self.fields))
            if len(counts) > MAX_DOMAINS:
                raise too_many_domains(self.name, self.fields, counts)
        if not counts:
            raise CorpusError(
                f"none of the {self._table.num_rows:,} rows of {self.name} has a domain in {self.fields.domain!r}",
                expected="a field whose value names the row's domain",
                remedy=f"name it with --domain-field; there are {listed(self._table.columns)}",
            )
        return by_frequency(counts)
