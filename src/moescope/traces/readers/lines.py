"""Lines and JSON records of files that are not trusted, in bounded memory."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json

from moescope.errors import UsageError

MAX_LINE = 2**28
"""Bytes of a line at most: it is parsed as a whole."""
MAX_DOCUMENT = 2**28
"""Bytes of a file that is one JSON value, at most."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to read what it holds, decompressed as its name says (.gz, .zst).

    Raises:
        UsageError: It can't be opened, or is damaged.
    """
    import zstandard

    try:
        with path.open("rb") as file:
            if path.name.endswith(".gz"):
                yield gzip.GzipFile(fileobj=file)  # type: ignore[misc]
            elif path.name.endswith(".zst"):
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                yield io.BufferedReader(reader, 2**20)  # type: ignore[type-var]
            else:
                yield io.BufferedReader(file, 2**20)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", remedy="check that it was copied to the end, and its permissions"
        ) from error


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields each line that is not blank, with its place for messages.

    Raises:
        UsageError: A line of more than `MAX_LINE` bytes.
    """
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UsageError(
                    f"line {number} of {path.name} is longer than {MAX_LINE:,} bytes",
                    expected="one record in a line",
                    remedy="write shorter records",
                )
            if line.strip():
                yield f"line {number} of {path.name}", line


def records(paths: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the objects of JSON Lines files, and of files that hold one JSON object or a list of them.

    Raises:
        UsageError: What is no JSON, or no object.
    """
    for path in paths:
        if _is_one_value(path):
            yield from _of_one_value(path)
            continue
        for place, line in lines(path):
            yield place, _object(_parsed(line, place), place)


def _is_one_value(path: Path) -> bool:
    """Whether a file is one JSON value over several lines, or a list: its first line alone is no object."""
    first = next(lines(path), None)
    if first is None or first[1].lstrip()[:1] == b"[":
        return first is not None
    try:
        from_json(first[1])
    except ValueError:
        return first[1].strip() in (b"{", b"[")
    return False


def _of_one_value(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open_bytes(path) as file:
        data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise UsageError(
            f"{path.name} is one JSON value of more than {MAX_DOCUMENT:,} bytes, which is read as a whole",
            expected="JSON Lines: a record in a line",
            remedy=f"convert it, as with: jq -c '.[]' {path.name} > {path.stem}.jsonl",
        )
    value = _parsed(data, path.name)
    for position, each in enumerate(value if isinstance(value, list) else [value]):
        place = f"record {position + 1} of {path.name}"
        yield place, _object(each, place)


def _parsed(data: bytes, place: str) -> Any:
    try:
        return from_json(data.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise UsageError(
            f"{place} is no JSON: {error}", remedy="check that the file was written and copied to the end"
        ) from error


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{place} is no JSON object", expected="an object, as the engine writes it")
    return value


def text_of(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of these fields that is text or a number, as text; dots lead into nested objects."""
    for name in names:
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return None


def whole(record: Mapping[str, Any], name: str, place: str, most: int = 2**31) -> int:
    """A field that is a whole number from 0.

    Raises:
        UsageError: It is not.
    """
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < most:
        raise UsageError(f"{place}: {name} is {str(value)[:60]!r}", expected="a whole number from 0")
    return value
