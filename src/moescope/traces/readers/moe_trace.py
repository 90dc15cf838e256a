"""llama.cpp's `moe-trace` example: a CSV row `layer,expert` for each selection, of tokens that are not named."""

from __future__ import annotations

import re

import numpy as np

from moescope.errors import UsageError
from moescope.traces.facts import MAX_EXPERTS, MAX_LAYERS
from moescope.traces.readers.base import Counted, Request, counted_tokens, needs_model
from moescope.traces.readers.lines import lines

HEADER = re.compile(rb"\s*layer\s*,\s*expert\s*")
_ROW = re.compile(rb"\s*(\d{1,5})\s*,\s*(\d{1,6})\s*")


def read(request: Request) -> Counted:
    """Counts the rows.

    Raises:
        UsageError: A row that is none, an expert or layer that the model does not have, or no model: how many experts
            a token selects is not in the file.
    """
    shape = request.shape
    if shape is None:
        raise needs_model(str(request.paths[0]), "how many experts there are and how many a token selects")
    counts: dict[int, np.ndarray] = {}
    for path in request.paths:
        for number, (place, line) in enumerate(lines(path)):
            if number == 0 and HEADER.fullmatch(line):
                continue
            match = _ROW.fullmatch(line)
            if match is None or int(match[1]) >= MAX_LAYERS or int(match[2]) >= MAX_EXPERTS:
                raise UsageError(f"{place} is {line[:40]!r}", expected="layer,expert: two whole numbers")
            layer, expert = int(match[1]), int(match[2])
            if layer not in shape.layers or expert >= shape.num_experts:
                raise UsageError(
                    f"{place}: expert {expert} of layer {layer}",
                    expected=f"one of {shape.num_experts} experts at an MoE layer of the model",
                    remedy="give the model that was traced",
                )
            if layer not in counts:
                counts[layer] = np.zeros(shape.num_experts, np.int64)
            counts[layer][expert] += 1
    if set(counts) != set(shape.layers):
        raise UsageError(
            f"{request.paths[0]}: rows of {len(counts)} layers",
            expected=f"all {len(shape.layers)} MoE layers of the model",
        )
    layers = list(shape.layers)
    counts_LE = np.stack([counts[layer] for layer in layers])
    tokens = counted_tokens(counts_LE, shape.num_experts_per_token, layers, str(request.paths[0]))
    return Counted(
        "llama.cpp",
        layers,
        [request.default_domain],
        counts_LE[:, None],
        np.array([tokens]),
        shape.num_experts_per_token,
    )
