"""The corpus that comes with moescope: held-out documents of 22 domains, each with source and license."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Container, Iterator
from functools import cache, cached_property
from importlib.resources import files

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moescope.corpora.base import Corpus, in_turn
from moescope.corpora.document import Document, readable, stable_hash
from moescope.corpora.problems import Problems

NAME = "embedded"


@cache
def _bytes() -> bytes:
    return files("moescope.corpora").joinpath("embedded", "held_out.parquet").read_bytes()


@cache
def _table() -> pa.Table:
    return pq.read_table(pa.BufferReader(_bytes()))


class EmbeddedCorpus(Corpus):
    """Held-out documents of the 22 domains that the embedded model was trained on; nothing of them was trained on."""

    def __init__(self) -> None:
        listed = tomllib.loads(files("moescope.corpora").joinpath("embedded", "domains.toml").read_text("utf-8"))
        self.name = NAME
        self.domains = tuple(entry["name"] for entry in listed["domain"])
        self.groups = {entry["name"]: entry["group"] for entry in listed["domain"]}

    @cached_property
    def fingerprint(self) -> str:
        """`embedded:` and the SHA-256 of the Parquet file, its first 32 hex digits."""
        return f"embedded:{hashlib.sha256(_bytes()).hexdigest()[:32]}"

    def stream(self, seed: int, wanted: Container[str], problems: Problems) -> Iterator[Document]:
        """See `Corpus.stream`. Domains come in turn; the order within a domain is that of a hash of seed and id."""
        streams = {domain: self._documents(domain, seed) for domain in self.domains}
        yield from in_turn(streams, wanted)

    def _documents(self, domain: str, seed: int) -> Iterator[Document]:
        rows = _table().filter(pc.field("domain") == domain).to_pylist()
        rows.sort(key=lambda row: stable_hash(seed, row["document_id"]))
        for row in rows:
            row["text"], truncated = readable(row["text"])
            yield Document(license=row.pop("licence"), **row, truncated=truncated)
