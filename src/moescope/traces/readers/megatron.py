"""Megatron-core's `router_trace_rank*.jsonl`: a line per step and layer, experts in their own order, not by weight."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block
from moescope.traces.readers.base import Recording, Request, missing_ranks
from moescope.traces.readers.lines import records, whole
from moescope.traces.readers.streams import Stream, matrix

_RANK = re.compile(r"router_trace_rank(\d{1,6})\.jsonl")


def files_of(paths: tuple[Path, ...]) -> list[Path]:
    """The ranks' files, in order."""
    found = [file for path in paths for file in (path.glob("router_trace_rank*.jsonl") if path.is_dir() else [path])]
    return sorted(found, key=lambda file: (rank_of(file), file.name))


def rank_of(file: Path) -> int:
    """The rank in a file's name; -1 where it has none."""
    match = _RANK.search(file.name)
    return int(match[1]) if match else -1


def read(request: Request) -> Recording:
    """Reads the traces of all ranks; those of the decoder, not of modules that predict several tokens.

    Raises:
        UsageError: A line that can't be used; says which.
    """
    stream = Stream(request, "megatron", ranked=False)
    files = files_of(request.paths)
    if not files:
        raise UsageError(f"{request.paths[0]} holds no router_trace_rank*.jsonl", expected="Megatron's router traces")
    stream.recording.notes += missing_ranks([rank_of(file) for file in files if rank_of(file) >= 0])
    stream.recording.notes.append("padding tokens can't be told from others in this format")
    return stream.started(_blocks(files, stream))


def _blocks(files: list[Path], stream: Stream) -> Iterator[Block]:
    seen: set[tuple[int, int, bytes]] = set()
    doubled = others = 0
    for file in files:
        number_in_step: dict[int, int] = {}
        step, tables, place = -1, dict[int, np.ndarray](), file.name

        def finished(step: int, tables: dict[int, np.ndarray], place: str) -> Block | None:
            nonlocal doubled
            if not tables:
                return None
            if not stream.recording.layers:
                stream.begin(sorted(tables), place)
            digest = hashlib.blake2b(digest_size=16)
            for layer in sorted(tables):
                digest.update(tables[layer].astype("<i4").tobytes())
            key = (step, number_in_step.get(step, 0), digest.digest())  # noqa: B023 (called at once)
            number_in_step[step] = number_in_step.get(step, 0) + 1  # noqa: B023
            if key in seen:  # ranks of one tensor-parallel group see the same tokens
                doubled += 1
                return None
            seen.add(key)
            return stream.block(tables, place, generated=False)

        for place, record in records([file]):
            if record.get("block", "decoder") != "decoder":
                others += 1
                continue
            layer, at = whole(record, "layer", place, 10_000), whole(record, "step", place, 2**62)
            if tables and (at != step or layer in tables):
                block = finished(step, tables, place)
                tables = {}
                if block is not None:
                    yield block
            step = at
            tables[layer] = _table(record, place)
        block = finished(step, tables, place)
        if block is not None:
            yield block
    if doubled:
        stream.recording.notes.append(f"{doubled:,} steps that several ranks recorded are counted once")
    if others:
        stream.recording.notes.append(f"{others:,} records of modules that predict several tokens are left out")


def _table(record: object, place: str) -> np.ndarray:
    assert isinstance(record, dict)
    table = matrix(record.get("top_indices"), place)
    declared = (record.get("num_tokens", table.shape[0]), record.get("topk", table.shape[1]))
    if declared != table.shape:
        raise UsageError(f"{place}: top_indices of {table.shape}", expected=f"{declared}: num_tokens and topk")
    return table
