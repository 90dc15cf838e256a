"""Documents out of files: .txt (one each), .jsonl, .jsonl.gz and .jsonl.zst (one a line), .parquet (one a row)."""

from __future__ import annotations

import gzip
import io
import json
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from moescope.corpora.document import MAX_CHARACTERS, Document, readable, stable_hash
from moescope.corpora.problems import Problems
from moescope.errors import CorpusError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


@dataclass(frozen=True)
class Fields:
    """Where a record keeps what we read.

    Attributes:
        text: Field of the text; a dotted path goes into nested records (`meta.pile_set_name`).
        domain: Field of the domain, likewise; None where the domain does not come from the record.
    """

    text: str = "text"
    domain: str | None = None


def suffix_of(path: Path) -> str | None:
    """The suffix we can read the file by, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def lookup(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field: of that very name, else along the dotted path; None where there is none."""
    if field in record:
        return record[field]
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def domain_of(record: Mapping[str, Any], field: str) -> str | None:
    """The record's domain as text, or None where it has none."""
    value = lookup(record, field)
    return str(value) if isinstance(value, str | int) and str(value) else None


def to_document(
    record: Mapping[str, Any],
    fields: Fields,
    problems: Problems,
    *,
    place: str,
    document_id: str | None = None,
    domain: str | None = None,
    source: str = "",
) -> Document | None:
    """A record as a document; None, counted, where it has no text or no domain.

    Args:
        record: What one line or row holds.
        fields: Where its text and domain are.
        problems: Counts what was skipped or repaired.
        place: Where the record is, to be shown.
        document_id: Its id; None: a hash of its text.
        domain: Its domain where that does not come from the record.
        source: Where it comes from, unless the record says.
    """
    value = lookup(record, fields.text)
    if isinstance(value, bytes):
        value = decode(value, problems, place)
    if not isinstance(value, str) or not value.strip():
        problems.add("no_text", place)
        return None
    if fields.domain is not None:
        domain = domain_of(record, fields.domain)
    if domain is None:
        problems.add("no_domain", place)
        return None
    text, truncated = readable(value)
    if truncated:
        problems.add("long", place)
    if document_id is None:
        document_id = f"{stable_hash(value) & 0xFFFF_FFFF_FFFF_FFFF:016x}"
    return Document(
        text=text,
        domain=domain,
        document_id=document_id,
        source=_text_of(record, "source") or source,
        licence=_text_of(record, "licence") or _text_of(record, "license"),
        truncated=truncated,
    )


def _text_of(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    return value if isinstance(value, str) else ""


def decode(data: bytes, problems: Problems, place: str) -> str:
    """UTF-8 text; invalid bytes become U+FFFD and are counted once a document."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        problems.add("invalid_utf8", place)
        return data.decode("utf-8", "replace")


def read_documents(
    path: Path, name: str, fields: Fields, problems: Problems, *, seed: int, domain: str | None = None
) -> Iterator[Document]:
    """Yields a file's documents.

    Args:
        path: The file.
        name: What to call it in ids and messages, the same on every machine.
        fields: Where records keep text and domain.
        problems: Counts what was skipped or repaired.
        seed: Draws the order of a Parquet file's row groups.
        domain: The domain of all its documents where that does not come from the record.

    Raises:
        CorpusError: The file is damaged or not what its suffix says.
    """
    if suffix_of(path) == ".txt":
        with _readable_file(path):
            document = _whole_file(path, name, problems, domain)
        if document is not None:
            yield document
        return
    unit = "row" if suffix_of(path) == ".parquet" else "line"
    for number, record in read_records(path, name, problems, seed=seed, text=fields.text, domain=fields.domain):
        document = to_document(
            record,
            fields,
            problems,
            place=f"{unit} {number} of {name}",
            document_id=f"{name}:{number}",
            domain=domain,
            source=name,
        )
        if document is not None:
            yield document


def _whole_file(path: Path, name: str, problems: Problems, domain: str | None) -> Document | None:
    # Four bytes are the longest character: enough to know whether the text goes on after the last one kept.
    limit = 4 * (MAX_CHARACTERS + 1)
    with path.open("rb") as file:
        data = file.read(limit)
    if len(data) == limit:
        data = _without_half_character(data)
    text, truncated = readable(decode(data, problems, name).removeprefix("\ufeff"))
    if not text.strip():
        problems.add("no_text", name)
        return None
    if domain is None:
        problems.add("no_domain", name)
        return None
    if truncated:
        problems.add("long", name)
    return Document(text=text, domain=domain, document_id=name, source=name, truncated=truncated)


def _without_half_character(data: bytes) -> bytes:
    """Drops up to three bytes of a character that goes on after the end."""
    for length in range(1, 4):
        byte = data[-length]
        if byte >= 0xC0:
            return data[:-length]
        if byte < 0x80:
            break
    return data


def read_records(
    path: Path, name: str, problems: Problems, *, seed: int = 0, text: str | None = None, domain: str | None = None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields each record of a .jsonl or .parquet file with its number: lines from 1, rows from 0.

    Args:
        path: The file.
        name: What to call it in messages.
        problems: Counts broken lines.
        seed: Draws the order of a Parquet file's row groups.
        text: Field of the text, if that will be looked at; other columns of a Parquet file are not read.
        domain: Field of the domain, likewise.

    Raises:
        CorpusError: The file is damaged or not what its suffix says.
    """
    with _readable_file(path):
        if suffix_of(path) == ".parquet":
            yield from _rows(path, name, seed, text, domain)
        else:
            yield from _lines(path, name, problems)


def _lines(path: Path, name: str, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with _open_lines(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number} of {name}"
            try:
                record = json.loads(decode(line, problems, place).removeprefix("\ufeff"))
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                yield number, record
            else:
                problems.add("broken_json", place)


@contextmanager
def _open_lines(path: Path) -> Iterator[IO[bytes]]:
    suffix = suffix_of(path)
    if suffix == ".jsonl.gz":
        with gzip.open(path, "rb") as unzipped:
            yield unzipped  # type: ignore[misc]
    elif suffix == ".jsonl.zst":
        import zstandard

        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader,
        ):
            yield io.BufferedReader(reader)  # type: ignore[type-var]
    else:
        with path.open("rb") as file:
            yield file


def _rows(
    path: Path, name: str, seed: int, text: str | None, domain: str | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        fields = [field for field in (text, domain) if field is not None]
        wanted = {*fields, *(field.split(".")[0] for field in fields), "source", "licence", "license"}
        columns = [column for column in file.schema_arrow.names if column in wanted]
        starts = [0]
        for group in range(file.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        order = list(range(file.num_row_groups))
        random.Random(stable_hash(seed, name)).shuffle(order)
        for group in order:
            number = starts[group]
            if not columns:
                yield from ((row, {}) for row in range(number, starts[group + 1]))
                continue
            for batch in file.iter_batches(batch_size=512, row_groups=[group], columns=columns):
                if text in columns and pa.types.is_string(batch.schema.field(text).type):
                    # As bytes, so that text which is not valid UTF-8 can be counted and repaired.
                    position = batch.schema.get_field_index(text)
                    batch = batch.set_column(position, text, batch.column(position).cast(pa.binary()))
                for record in batch.to_pylist():
                    yield number, record
                    number += 1


@contextmanager
def _readable_file(path: Path) -> Iterator[None]:
    """Turns what a damaged or unreadable file raises into an error that names it."""
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    if suffix_of(path) == ".jsonl.zst":
        import zstandard

        errors = (*errors, zstandard.ZstdError)
    elif suffix_of(path) == ".parquet":
        import pyarrow as pa

        errors = (*errors, pa.ArrowException)
    try:
        yield
    except errors as error:
        raise CorpusError(
            f"{path} cannot be read: {error}",
            expected=f"a whole file of the kind its name says (one of {', '.join(SUFFIXES)})",
            remedy="check its permissions and that it was copied to the end",
        ) from error
