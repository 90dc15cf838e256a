"""Records out of .json: an array of objects, objects one after another, or (as in C4) one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moescope.corpora.document import MAX_RECORD_BYTES
from moescope.corpora.problems import Problems
from moescope.corpora.readers import json_lines
from moescope.corpora.readers.opening import lines, open_bytes

_CHUNK = 2**18

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
        self.kept = bytearray()
        self.too_long = self.in_string = self.escaped = self.lost = False
        self.depth = self.base = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yields the values that end in this part of the file, and what lies between values and is not blank."""
        bytes_n = np.frombuffer(chunk, dtype=np.uint8)
        steps_n = self._steps(bytes_n)
        depths_n = self.depth + np.cumsum(steps_n)
        start = 0
        # Deeper brackets neither begin nor end a value of an array, or one beside others.
        for position in np.flatnonzero((steps_n != 0) & (depths_n - (steps_n > 0) <= 1)).tolist():
            depth, opens = int(depths_n[position]), steps_n[position] > 0
            if opens and depth == self.base + 1:
                self._keep(chunk[start:position])
                yield from self._take(blank=False)
                start = position
                if depth == 1 and chunk[position] == ord("["):
                    self.base, start = 1, position + 1
            elif not opens and depth == self.base:
                self._keep(chunk[start : position + 1])
                yield from self._take()
                start = position + 1
            elif not opens and depth < self.base:
                self._keep(chunk[start:position])
                yield from self._take(blank=False)
                self.base, start = 0, position + 1
            if depth < 0:
                self.lost = True
                return
        self._keep(chunk[start:])
        self.depth = int(depths_n[-1])

    def rest(self) -> Iterator[bytes | None]:
        """What is left where the file ends."""
        yield from self._take(blank=False)

    def _steps(self, bytes_n: NDArray[np.uint8]) -> NDArray[np.int64]:
        """+1 at each bracket that opens, -1 at each that closes, outside of strings."""
        places_n = np.arange(len(bytes_n))
        # A quote is escaped by an odd number of backslashes before it, which may begin in the part before.
        other_n = np.where(bytes_n != ord("\\"), places_n, -1 - self.escaped)
        before_n = np.concatenate([[-1 - self.escaped], np.maximum.accumulate(other_n)])
        odd_n = (np.arange(len(bytes_n) + 1) - 1 - before_n) % 2 == 1
        in_string_n = (np.cumsum((bytes_n == ord('"')) & ~odd_n[:-1]) + self.in_string) % 2 == 1
        opens_n = (bytes_n == ord("[")) | (bytes_n == ord("{"))
        closes_n = (bytes_n == ord("]")) | (bytes_n == ord("}"))
        self.escaped, self.in_string = bool(odd_n[-1]), bool(in_string_n[-1])
        return np.where(in_string_n, 0, opens_n.astype(np.int64) - closes_n)

    def _keep(self, part: bytes) -> None:
        self.too_long |= len(self.kept) + len(part) > MAX_RECORD_BYTES
        if self.too_long:
            self.kept.clear()
        else:
            self.kept += part

    def _take(self, *, blank: bool = True) -> Iterator[bytes | None]:
        if self.too_long:
            yield None
        elif blank or self.kept.strip(b" \t\r\n,"):
            yield bytes(self.kept)
        self.kept.clear()
        self.too_long = False


def values(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yields the bytes of each value of an array, or of values one after another; None for one that is too long.

    Memory is bounded by `MAX_RECORD_BYTES`, however long the file, a value or an array is. What is broken comes as a
    value that can't be parsed; where a bracket closes that was not opened, the rest is not read.
    """
    splitter = _Splitter()
    first = True
    while (chunk := file.read(_CHUNK)) and not splitter.lost:
        yield from splitter.feed(chunk.removeprefix(b"\xef\xbb\xbf") if first else chunk)
        first = False
    yield from splitter.rest()
