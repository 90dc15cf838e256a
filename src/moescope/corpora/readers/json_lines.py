"""Records out of .jsonl: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moescope.corpora.problems import Problems
from moescope.corpora.readers.opening import lines, open_bytes
from moescope.corpora.records import decode


def read(path: Path, name: str, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields each line's record with the line's number; counts lines that hold none or are too long."""
    with open_bytes(path) as file:
        for number, line in lines(file):
            place = f"line {number} of {name}"
            if line is None:
                problems.add("too_long", place)
                continue
            if not line.strip():
                continue
            record = parse(line, problems, place)
            if record is not None:
                yield number, record


def parse(data: bytes, problems: Problems, place: str) -> Mapping[str, Any] | None:
    """A JSON object out of its bytes; None, counted, where they are none."""
    try:
        record = json.loads(decode(data, problems, place).removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        return record
    problems.add("broken_json", place)
    return None
