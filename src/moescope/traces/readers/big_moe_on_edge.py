"""BigMoeOnEdge's `--route-trace`: a CSV row for each token, layer and rank, with the applied weight."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block, Source, hash_of
from moescope.traces.checks import check_ids
from moescope.traces.facts import MAX_EXPERTS, MAX_LAYERS
from moescope.traces.readers.base import Recording, Request, checked_k
from moescope.traces.readers.lines import lines
from moescope.traces.readers.streams import Stream

MAGIC = b"# route_trace v1"
_COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped"
_FACT = re.compile(r"(model|n_layer|n_expert|n_expert_used)=(\S+)")
_WRITTEN = ("decode", "gen", "tg")
MOST_ROWS = 2**24
"""Rows of one step at most."""


def read(request: Request) -> Recording:
    """Reads its rows. A turn is a document; tokens have no ids.

    Raises:
        UsageError: A row that can't be used; says which.
    """
    stream = Stream(request, "bigmoeonedge")
    stream.recording.notes[:] = ["token ids are not recorded in this format"]
    for path in request.paths:
        _header(path, stream)
    weighted = all(_has_weights(path) for path in request.paths)
    if not weighted:
        stream.recording.notes.append("weights are left out: some are not a number in the recording")
    return stream.started(_blocks(request, stream, weighted))


def _header(path: Path, stream: Stream) -> None:
    facts: dict[str, str] = {}
    for number, (_, line) in enumerate(lines(path)):
        if number == 0 and not line.startswith(MAGIC):
            raise UsageError(f"{path} does not begin with {MAGIC.decode()}", expected="a route trace of BigMoeOnEdge")
        if not line.startswith(b"#") or number > 2 * MAX_LAYERS:
            break
        facts |= dict(_FACT.findall(line.decode("utf-8", "replace")))
    stream.recording.model = facts.get("model") or stream.recording.model
    if stream.recording.num_experts is None and facts.get("n_expert", "").isdigit():
        stream.recording.num_experts = min(MAX_EXPERTS, int(facts["n_expert"]))


def _has_weights(path: Path) -> bool:
    return all(b"nan" not in line.lower() for _, line in lines(path) if not line.startswith(b"#"))


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    header = False
    for place, line in lines(path):
        text = line.decode("utf-8", "replace").strip()
        if text.startswith("#"):
            continue
        if not header:
            header = True
            if text.replace(" ", "") != _COLUMNS:
                raise UsageError(f"{place} is not the header of a route trace", expected=_COLUMNS)
            continue
        cells = text.split(",")
        if len(cells) != 10:
            raise UsageError(f"{place} has {len(cells)} cells", expected="10, as its header says")
        yield place, cells


def _blocks(request: Request, stream: Stream, weighted: bool) -> Iterator[Block]:
    positions: dict[str, int] = {}
    for path in request.paths:
        step: tuple[str, ...] = ()
        rows: list[tuple[int, int, int, float]] = []
        place = path.name
        for place, cells in _rows(path):
            if tuple(cells[:3]) != step and rows:
                yield _block(path, step, rows, stream, weighted, positions, place)
                rows = []
            step = tuple(cells[:3])
            try:
                rows.append((int(cells[3]), int(cells[4]), int(cells[5]), float(cells[6])))
            except ValueError as error:
                raise UsageError(f"{place}: {error}", expected="numbers in layer, slot, expert, weight") from error
            if len(rows) > MOST_ROWS:
                raise UsageError(f"{place}: a step of more than {MOST_ROWS:,} rows", expected="steps of few tokens")
        if rows:
            yield _block(path, step, rows, stream, weighted, positions, place)


def _block(
    path: Path,
    step: tuple[str, ...],
    rows: list[tuple[int, int, int, float]],
    stream: Stream,
    weighted: bool,
    positions: dict[str, int],
    place: str,
) -> Block:
    """The rows of one step: layer after layer, token after token, slot after slot."""
    values: Any = np.array(rows)
    layer_N, slot_N, expert_N = (values[:, column].astype(np.int64) for column in range(3))
    layers = sorted(set(layer_N.tolist()))
    num_ranks = int(slot_N.max()) + 1
    by_layer = np.argsort(layer_N, kind="stable")
    num_tokens, rest = divmod(len(rows), len(layers) * num_ranks)
    expected_N = np.tile(np.arange(num_ranks), len(layers) * num_tokens)
    counts = np.unique(layer_N, return_counts=True)[1]
    if rest or (counts != num_tokens * num_ranks).any() or (slot_N[by_layer] != expected_N).any():
        raise UsageError(
            f"{place}: the step before it (turn {step[0]}, {step[1]} {step[2]}) has {len(rows)} rows",
            expected=f"{num_ranks} slots in order, for each token at each of {len(layers)} layers",
            remedy="a recording that was cut off can't be used",
        )
    if not stream.recording.layers:
        stream.begin(layers, place)
    if layers != stream.recording.layers:
        raise UsageError(f"{place}: layers {layers}", expected=f"{stream.recording.layers}, as in the first step")
    checked_k(num_ranks, stream.request.shape, place)
    shape = (len(layers), num_tokens, num_ranks)
    ids_TLK = expert_N[by_layer].reshape(shape).transpose(1, 0, 2)
    check_ids(ids_TLK, stream.recording.num_experts, layers, place)
    name = f"{path.stem} turn {step[0]}"
    start = positions.get(name, 0)
    positions[name] = start + num_tokens
    return Block(
        documents=[Source(name, hash_of(name), stream.request.default_domain)],
        rows_T=np.zeros(num_tokens, np.int64),
        positions_T=np.arange(start, start + num_tokens),
        generated_T=np.full(num_tokens, step[1].strip().lower().startswith(_WRITTEN)),
        expert_ids_TLK=ids_TLK,
        weights_TLK=values[:, 3][by_layer].reshape(shape).transpose(1, 0, 2).astype(np.float32) if weighted else None,
    )
