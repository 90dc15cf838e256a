"""Records out of .json: an array of objects, objects one after another, or (as in C4) one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
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

# Bytes that begin or end strings and values, and what brackets do to the depth.
_MATTERS = np.zeros(256, dtype=np.bool_)
_MATTERS[list(b'"[]{}')] = True
_STEPS = np.zeros(256, dtype=np.int64)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1

# Lines looked at to tell one object a line from objects over several lines.
_SNIFFED_LINES = 10


def read(path: Path, name: str, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields each record with its number, from 1 (of lines: the line's); counts what is no record or too long."""
    if _one_a_line(path):
        yield from json_lines.read(path, name, problems)
        return
    with open_bytes(path) as file:
        splitter = Splitter()
        for number, value in enumerate(splitter.values(file), start=1):
            place = f"record {number} of {name}"
            if value is None:
                problems.add("too_long", place)
                continue
            record = json_lines.parse(value, problems, place)
            if record is not None:
                yield number, record
        if splitter.lost:
            problems.add("unclosed", name)


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


class Splitter:
    """Finds where values begin and end; keeps no more than one of them, and of that no more than is allowed.

    Attributes:
        lost: Whether the file was left before its end: a bracket closes that was not opened, or a value that is too
            long goes on and on.
    """

    def __init__(self) -> None:
        self.kept = bytearray()
        self.too_long = self.in_string = self.escaped = self.lost = False
        self.depth = self.base = self.skipped = 0

    def values(self, file: IO[bytes]) -> Iterator[bytes | None]:
        """Yields the bytes of each value of an array, or of values one after another; None for one that is too long.

        Memory is bounded by `MAX_RECORD_BYTES`, however long the file, a value or an array is. What is broken comes as
        a value that can't be parsed.
        """
        first = True
        while (chunk := file.read(_CHUNK)) and not self.lost:
            yield from self._feed(chunk.removeprefix(b"\xef\xbb\xbf") if first else chunk)
            first = False
        yield from self._take(blank=False)

    def _feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yields the values that end in this part of the file, and what lies between values and is not blank."""
        start = 0
        for position, step, depth in self._borders(chunk):
            if step > 0 and depth == self.base + 1:
                self._keep(chunk[start:position])
                yield from self._take(blank=False)
                start = position
                if depth == 1 and chunk[position] == ord("["):
                    self.base, start = 1, position + 1
            elif step < 0 and depth == self.base:
                self._keep(chunk[start : position + 1])
                yield from self._take()
                start = position + 1
            elif step < 0 and depth < self.base:
                self._keep(chunk[start:position])
                yield from self._take(blank=False)
                self.base, start = 0, position + 1
            if depth < 0:
                self.lost = True
                return
        self._keep(chunk[start:])

    def _borders(self, chunk: bytes) -> Iterable[tuple[int, int, int]]:
        """Position, step (+1 opens, -1 closes) and depth after it of each bracket where a value may begin or end.

        Brackets in strings are none, and deeper ones neither begin nor end a value of an array, or one beside others.
        """
        if self.in_string and not self.escaped and b'"' not in chunk and b"\\" not in chunk:
            return ()
        bytes_n = np.frombuffer(chunk, dtype=np.uint8)
        places_m = np.flatnonzero(_MATTERS[bytes_n])
        self.skipped += len(places_m) if self.too_long else 0
        if self.skipped > MAX_RECORD_BYTES:
            self.lost = True
            return ()
        bytes_m = bytes_n[places_m]
        escaped_m = self._escaped(chunk, bytes_n)[places_m]
        in_string_m = (np.cumsum((bytes_m == ord('"')) & ~escaped_m) + self.in_string) % 2 == 1
        steps_m = np.where(in_string_m, 0, _STEPS[bytes_m])
        depths_m = self.depth + np.cumsum(steps_m)
        if len(places_m):
            self.in_string, self.depth = bool(in_string_m[-1]), int(depths_m[-1])
        borders = (steps_m != 0) & (depths_m - (steps_m > 0) <= 1)
        return zip(places_m[borders].tolist(), steps_m[borders].tolist(), depths_m[borders].tolist(), strict=True)

    def _escaped(self, chunk: bytes, bytes_n: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether an odd number of backslashes stands before each byte; they may begin in the part before."""
        before, self.escaped = self.escaped, False
        if b"\\" not in chunk:
            escaped_n = np.zeros(len(bytes_n), dtype=np.bool_)
            escaped_n[0] = before
            return escaped_n
        places_n = np.arange(len(bytes_n) + 1, dtype=np.int32)
        # Where the last byte that is no backslash lies, before each byte and after the last.
        others_n = np.empty(len(bytes_n) + 1, dtype=np.int32)
        others_n[0] = -1 - before
        np.copyto(others_n[1:], places_n[:-1])
        others_n[1:][bytes_n == ord("\\")] = -1 - before
        np.maximum.accumulate(others_n, out=others_n)
        escaped_n = (places_n - 1 - others_n) % 2 == 1
        self.escaped = bool(escaped_n[-1])
        return escaped_n[:-1]

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
        self.too_long, self.skipped = False, 0
