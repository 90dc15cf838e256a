"""Corpora on disk for tests, in every form that can be read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.corpora.texts import words

DOMAINS = {"alpha": 9, "beta": 7, "gamma": 5}


def texts() -> dict[str, list[str]]:
    """Documents by domain, each different, the domains of different size."""
    return {
        domain: [f"{domain} é 漢 {words(100 * number + len(domain), 40 + 5 * number)}" for number in range(count)]
        for domain, count in DOMAINS.items()
    }


def records(*, nested: bool = False) -> list[dict]:
    """The same documents as records, domains mixed."""
    rows = [
        {"text": text, **({"meta": {"set": domain}} if nested else {"domain": domain})}
        for domain, documents in texts().items()
        for text in documents
    ]
    return sorted(rows, key=lambda row: hash_of(row["text"]))


def hash_of(text: str) -> int:
    """Some order that is not the domains'."""
    return sum(ord(character) * position for position, character in enumerate(text)) % 10_007


def lines(rows: Sequence[Mapping]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write_jsonl(path: Path, rows: Sequence[Mapping]) -> Path:
    """JSON lines, compressed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = lines(rows)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        # Two frames, as tools that append to a file leave it.
        half = data.index(b"\n", len(data) // 2) + 1
        data = b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))
    path.write_bytes(data)
    return path


def write_parquet(path: Path, rows: Sequence[Mapping], *, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=row_group_size)
    return path


def write_json(path: Path, rows: Sequence[Mapping]) -> Path:
    """An array of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Mapping]) -> Path:
    """A table; a nested field is a column named by its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.json_normalize(list(rows)).to_csv(path, index=False)
    return path


def write_arrow(path: Path, rows: Sequence[Mapping]) -> Path:
    """An IPC stream, as datasets writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


def write_text_folder(folder: Path) -> Path:
    """A sub-folder a domain, a .txt file a document, some of them deeper."""
    for domain, documents in texts().items():
        for number, text in enumerate(documents):
            path = folder / domain / ("" if number % 2 else "deeper") / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return folder


def write_mixed_folder(folder: Path) -> Path:
    """A sub-folder a domain, each in another form."""
    forms = iter(("part.jsonl", "part.jsonl.gz", "part.jsonl.zst"))
    for domain, documents in texts().items():
        half = len(documents) // 2
        write_jsonl(folder / domain / next(forms), [{"text": text} for text in documents[:half]])
        write_parquet(folder / domain / "rest.parquet", [{"text": text} for text in documents[half:]])
    return folder
