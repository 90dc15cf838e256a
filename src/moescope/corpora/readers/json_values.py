"""Records out of .json: an array of objects, objects one after another, or (as in C4) one object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from moescope.corpora.document import MAX_RECORD_BYTES
from moescope.corpora.problems import Problems
from moescope.corpora.readers import json_lines
from moescope.corpora.readers.opening import lines, open_bytes

_CHUNK = 2**16

# What a string goes on with, what changes the depth outside of strings, and where a value begins.
_IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_STRUCTURE = re.compile(rb'["\[\]{}]')
_BEGINNING = re.compile(rb"[^\s,]")
_SCALAR_END = re.compile(rb"[\s,\]]")

# Lines looked at to tell one object a line from objects over several lines.
_SNIFFED_LINES = 10


def read(path: Path, name: str, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields each record with its number, from 1 (of lines: the line's); counts what is no record or too long."""
    if _one_a_line(path):
        yield from json_lines.read(path, name, problems)
        return
    with open_bytes(path) as file:
        for number, value in enumerate(values(file), start=1):
            place = f"record {number} of {name}"
            if value is None:
                problems.add("too_long", place)
                continue
            record = json_lines.parse(value, problems, place)
            if record is not None:
                yield number, record


def _one_a_line(path: Path) -> bool:
    with open_bytes(path) as file:
        first = (line for _, line in lines(file) if line is None or line.strip())
        for position, line in enumerate(islice(first, _SNIFFED_LINES)):
            if line is None:
                return False
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if position == 0 and line.startswith(b"["):
                return False
            try:
                if isinstance(json.loads(line), dict):
                    return True
            except (ValueError, RecursionError):
                continue
    return False


class _Splitter:
    """Finds where values begin and end; keeps no more than one of them, and of that no more than is allowed."""

    def __init__(self) -> None:
        self.value = bytearray()
        self.too_long = False
        self.depth = 0
        self.in_value = self.in_string = self.escaped = self.in_array = False

    def keep(self, part: bytes) -> None:
        self.too_long |= len(self.value) + len(part) > MAX_RECORD_BYTES
        if self.too_long:
            self.value.clear()
        else:
            self.value += part

    def take(self) -> bytes | None:
        value = None if self.too_long else bytes(self.value)
        self.value.clear()
        self.too_long = self.in_value = self.in_string = self.escaped = False
        self.depth = 0
        return value

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        position = start = 0
        while position < len(chunk):
            if not self.in_value:
                position = start = self._begin(chunk, position)
                continue
            position, ended = self._go_on(chunk, position)
            if ended:
                self.keep(chunk[start:position])
                yield self.take()
        if self.in_value:
            self.keep(chunk[start:])

    def _begin(self, chunk: bytes, position: int) -> int:
        """Where the next value begins, past what lies between values."""
        found = _BEGINNING.search(chunk, position)
        if found is None:
            return len(chunk)
        position = found.start()
        if chunk[position] == ord("]"):
            self.in_array = False
            return position + 1
        if chunk[position] == ord("[") and not self.in_array:
            self.in_array = True
            return position + 1
        self.in_value = True
        return position

    def _go_on(self, chunk: bytes, position: int) -> tuple[int, bool]:
        """The next place that matters inside a value, and whether the value ends there."""
        if self.escaped:
            self.escaped = False
            return position + 1, False
        if self.in_string:
            found = _IN_STRING.match(chunk, position)
            end = found.end() if found else position
            if end == len(chunk):
                return end, False
            self.escaped = chunk[end] == ord("\\")
            self.in_string = self.escaped
            return end + 1, not self.in_string and self.depth == 0
        if self.depth == 0 and chunk[position] not in b'"[{':
            found = _SCALAR_END.search(chunk, position)
            return (len(chunk), False) if found is None else (found.start(), True)
        found = _STRUCTURE.search(chunk, position)
        if found is None:
            return len(chunk), False
        byte = found.group()
        if byte == b'"':
            self.in_string = True
        else:
            self.depth += 1 if byte in b"[{" else -1
        return found.end(), byte in b"]}" and self.depth <= 0


def values(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yields the bytes of each value of an array, or of values one after another; None for one that is too long.

    Memory is bounded by `MAX_RECORD_BYTES`, however long the file, a value or an array is. What is broken comes as a
    value that can't be parsed.
    """
    splitter = _Splitter()
    first = True
    while chunk := file.read(_CHUNK):
        yield from splitter.feed(chunk.removeprefix(b"\xef\xbb\xbf") if first else chunk)
        first = False
    if splitter.in_value:
        yield splitter.take()
