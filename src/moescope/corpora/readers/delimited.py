"""Records out of .csv and .tsv: the first row names the fields."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from moescope.corpora.document import MAX_RECORD_BYTES
from moescope.corpora.problems import Problems
from moescope.corpora.readers.opening import open_bytes, skip_line
from moescope.corpora.records import Fields, decode

# Spreadsheets of some countries separate by semicolons and still call it .csv.
_DELIMITERS = (",", ";", "\t")


class _TooLong(Exception):
    """A row is longer than what is kept in memory."""


class _Lines:
    """A file's lines as text, with the bytes of the current row counted."""

    def __init__(self, file: IO[bytes], name: str, problems: Problems) -> None:
        self.file, self.name, self.problems = file, name, problems
        self.number = self.row_bytes = self.row_lines = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.row_lines += 1
        self.row_bytes += len(line)
        if self.row_bytes > MAX_RECORD_BYTES:
            if not line.endswith(b"\n"):
                skip_line(self.file)
            raise _TooLong
        text = decode(line, self.problems, f"line {self.number} of {self.name}")
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def begin_row(self) -> int:
        """Starts counting anew; the number of the line on which the row begins."""
        self.row_bytes = self.row_lines = 0
        return self.number + 1


def read(
    path: Path, name: str, problems: Problems, fields: Fields, *, tabs: bool
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields each row's record with the number of its first line.

    Rows with more or fewer cells than the first row has names, with quotes that make no sense, or longer than
    `MAX_RECORD_BYTES` are counted and skipped. Where a quote is never closed, the file is read up to that.
    """
    if csv.field_size_limit() < MAX_RECORD_BYTES:
        csv.field_size_limit(MAX_RECORD_BYTES)
    delimiter = "\t" if tabs else _delimiter(path, name, fields)
    with open_bytes(path) as file:
        rows = _rows(_Lines(file, name, problems), delimiter, problems)
        _, header = next(rows, (0, []))
        for field in fields.columns:
            if header.count(field) > 1:
                problems.add("same_column", f"{field} of {name}", header.count(field) - 1)
        for number, row in rows:
            if len(row) != len(header):
                problems.add("broken_row", f"line {number} of {name}")
            else:
                # The first of columns of one name counts.
                yield number, dict(zip(reversed(header), reversed(row), strict=True))


def _rows(lines: _Lines, delimiter: str, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = lines.begin_row()
        place = f"line {number} of {lines.name}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except _TooLong:
            problems.add("too_long", place)
            if lines.row_lines > 1:
                problems.add("unclosed", place)
                return
            continue
        except csv.Error as error:
            unclosed = lines.row_lines > 1 and "end of data" in str(error)
            problems.add("unclosed" if unclosed else "broken_row", place)
            continue
        if row:
            yield number, row


def _delimiter(path: Path, name: str, fields: Fields) -> str:
    """The separator under which the first row names a field that is read."""
    for delimiter in _DELIMITERS:
        with open_bytes(path) as file:
            _, header = next(_rows(_Lines(file, name, Problems()), delimiter, Problems()), (0, []))
        if set(header) & fields.columns:
            return delimiter
    return _DELIMITERS[0]
