"""JSON Lines of an Ollama patched for moe-vis: per layer a line of experts, and one of weights after it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block
from moescope.traces.facts import spelled
from moescope.traces.readers.base import Recording, Request
from moescope.traces.readers.lines import records, whole
from moescope.traces.readers.streams import Stream, matrix


def read(request: Request) -> Recording:
    """Reads its lines. A step of one token was written by the model, one of several is of a prompt.

    Raises:
        UsageError: A line that can't be used; says which.
    """
    stream = Stream(request, "ollama")
    return stream.started(_blocks(request, stream))


def _blocks(request: Request, stream: Stream) -> Iterator[Block]:
    tables: dict[int, np.ndarray] = {}
    weights: dict[int, np.ndarray] = {}
    place = request.paths[0].name
    last = -1
    short: set[int] = set()
    for place, record in records(request.paths):
        if "wlayer" in record:
            layer = whole(record, "wlayer", place, 10_000)
            if layer != last:
                raise UsageError(
                    f"{place}: weights of layer {layer} after experts of layer {last}",
                    expected="each layer's weights after its experts",
                )
            weights[layer] = matrix(record.get("weights"), place, kind="iuf").astype(np.float32)
            if weights[layer].shape != tables[layer].shape:
                raise UsageError(
                    f"{place}: weights of {weights[layer].shape}", expected=f"{tables[layer].shape}, as the experts"
                )
            continue
        layer = whole(record, "layer", place, 10_000)
        if tables and layer <= last:
            yield from _step(tables, weights, short, stream, place)
            tables, weights = {}, {}
        tables[layer], last = matrix(record.get("experts"), place), layer
        if record.get("n_tokens", len(tables[layer])) != len(tables[layer]):
            raise UsageError(f"{place}: {len(tables[layer])} rows", expected=f"{record['n_tokens']}: n_tokens")
    if tables:
        yield from _step(tables, weights, short, stream, place)


def _step(
    tables: dict[int, np.ndarray], weights: dict[int, np.ndarray], short: set[int], stream: Stream, place: str
) -> Iterator[Block]:
    num_tokens = max(len(table) for table in tables.values())
    if not stream.recording.layers:
        # llama.cpp computes at the last layer only what it outputs: other tokens have no routing there.
        short |= {layer for layer, table in tables.items() if len(table) < num_tokens}
        stream.begin(sorted(set(tables) - short), place)
        if short:
            stream.recording.notes.append(
                f"layer {spelled(sorted(short))} is left out: not all tokens have routing there"
            )
    kept = {layer: table for layer, table in tables.items() if layer not in short}
    if weights and set(kept) - set(weights):
        raise UsageError(f"{place}: some layers have weights and others have not", expected="weights of all layers")
    block = stream.block(
        kept,
        place,
        generated=num_tokens == 1,
        weights={layer: weights[layer] for layer in kept} if weights else None,
    )
    if block is not None:
        yield block
