"""Records out of .parquet, and of .arrow as `datasets.save_to_disk` leaves it: one a row, few at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.corpora.document import MAX_RECORD_BYTES, stable_hash
from moescope.corpora.problems import Problems
from moescope.corpora.records import Fields

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 512

# A column of a row group that claims to be so much larger than what is stored is not unpacked.
_MAX_EXPANSION = 500
_ALWAYS_UNPACKED = 2**26

_Rows = Iterator[tuple[int, Mapping[str, Any]]]


def read_parquet(path: Path, name: str, problems: Problems, fields: Fields, *, seed: int) -> _Rows:
    """Yields each row with its number from 0; row groups in an order drawn from the seed."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as plain:
        names, text = plain.schema_arrow.names, fields.texts
        columns = [column for column in dict.fromkeys(names) if column in fields.columns]
        metadata = plain.metadata
        flat = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
    _count_same_columns(names, columns, name, problems)
    # A value that is repeated is kept once, however often it is repeated.
    repeated = [column for column in columns if column in flat and column in text]
    with pq.ParquetFile(path, read_dictionary=repeated) as file:
        starts = [0]
        for group in range(file.num_row_groups):
            starts.append(starts[-1] + metadata.row_group(group).num_rows)
        order = list(range(file.num_row_groups))
        random.Random(stable_hash(seed, name)).shuffle(order)
        for group in order:
            number, num_rows = starts[group], starts[group + 1] - starts[group]
            if not columns:
                problems.add("no_text", f"row {number} of {name}", num_rows)
                continue
            sizes = [
                metadata.row_group(group).column(index)
                for path_, index in flat.items()
                if path_.split(".")[0] in fields.columns or path_ in fields.columns
            ]
            unpacked = sum(size.total_uncompressed_size for size in sizes)
            stored = max(1, sum(size.total_compressed_size for size in sizes))
            if unpacked > _ALWAYS_UNPACKED and unpacked > _MAX_EXPANSION * stored:
                problems.add("expands", f"row group {group} of {name}")
                continue
            rows = max(1, min(_BATCH_ROWS, MAX_RECORD_BYTES * num_rows // max(unpacked, 1)))
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                yield from _records(batch, number, name, problems)
                number += batch.num_rows


def read_arrow(path: Path, name: str, problems: Problems, fields: Fields) -> _Rows:
    """Yields each row of an IPC stream or file with its number from 0."""
    import pyarrow as pa

    with pa.OSFile(str(path), "rb") as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        schema = (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).schema
        positions: dict[str, int] = {}
        for position, column in enumerate(schema.names):
            if column in fields.columns:
                positions.setdefault(column, position)
        _count_same_columns(schema.names, list(positions), name, problems)
        source.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(positions.values()), use_threads=False)
        reader = pa.ipc.open_file(source, options=options) if is_file else pa.ipc.open_stream(source, options=options)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        number = 0
        for batch in batches:
            if not positions:
                problems.add("no_text", f"row {number} of {name}", batch.num_rows)
            else:
                # What a file claims of offsets and lengths is checked before a byte is looked at.
                batch = _as_bytes(batch)
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from _records(batch.slice(start, _BATCH_ROWS), number + start, name, problems)
            number += batch.num_rows


def arrow_names(path: Path) -> list[str]:
    """The columns of an IPC stream or file."""
    import pyarrow as pa

    with pa.OSFile(str(path), "rb") as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        return list((pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).schema.names)


def _count_same_columns(names: list[str], columns: list[str], name: str, problems: Problems) -> None:
    for column in columns:
        if names.count(column) > 1:
            problems.add("same_column", f"{column} of {name}", names.count(column) - 1)


def _as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Strings as bytes, so that text which is not valid UTF-8 can be counted and repaired."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        if pa.types.is_string(column.type):
            column = column.view(pa.binary())
        elif pa.types.is_large_string(column.type):
            column = column.view(pa.large_binary())
        elif pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type):
            column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.view(pa.binary()))
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _records(batch: pa.RecordBatch, number: int, name: str, problems: Problems) -> _Rows:
    batch = _as_bytes(batch)
    columns: dict[str, Any] = {}
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        columns.setdefault(column, values)
    for row in range(batch.num_rows):
        try:
            record = {column: values[row].as_py() for column, values in columns.items()}
        except (ValueError, TypeError, OverflowError, KeyError):
            # A value that Python has no form for: text inside a nested record that is not UTF-8, a date before year 1.
            problems.add("broken_row", f"row {number + row} of {name}")
            continue
        yield number + row, record
