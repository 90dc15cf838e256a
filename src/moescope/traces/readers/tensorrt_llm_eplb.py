"""TensorRT-LLM's expert statistics: `meta_info.json` and, of each rank, counts by iteration and layer (safetensors)."""

from __future__ import annotations

import json
import re

import numpy as np
from safetensors import SafetensorError, safe_open

from moescope.errors import UsageError
from moescope.traces.facts import MAX_EXPERTS
from moescope.traces.readers.base import Counted, Request, counted_tokens, missing_ranks
from moescope.traces.readers.lines import whole

META = "meta_info.json"
_RANK = re.compile(r"rank(\d{1,6})\.safetensors")
_KEY = re.compile(r"\d{1,12}_(\d{1,5})")


def read(request: Request) -> Counted:
    """Adds up iterations and ranks.

    Raises:
        UsageError: A folder that holds no such statistics, or counts that do not fit.
    """
    folder = request.paths[0] if request.paths[0].is_dir() else request.paths[0].parent
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{folder / META} can't be read: {error}", expected="TensorRT-LLM's expert statistics"
        ) from error
    if not isinstance(meta, dict):
        raise UsageError(f"{folder / META} is no object", expected="num_experts, num_experts_per_token")
    num_experts = whole(meta, "num_experts", META, MAX_EXPERTS + 1)
    per_token = whole(meta, "num_experts_per_token", META, num_experts + 1)
    files = {int(match[1]): file for file in sorted(folder.iterdir()) if (match := _RANK.fullmatch(file.name))}
    if not files or not per_token:
        raise UsageError(f"{folder} holds no rank*.safetensors", expected="a file of counts for each rank")
    totals: dict[int, np.ndarray] = {}
    for file in files.values():
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (no mapping)
                    match = _KEY.fullmatch(key)
                    counts_E: np.ndarray = tensors.get_tensor(key) if match else np.zeros(0)
                    if match is None or counts_E.shape != (num_experts,) or counts_E.dtype.kind not in "iu":
                        raise UsageError(
                            f"{file}: {key[:60]} is no count of {num_experts} experts", expected="iteration_layer"
                        )
                    if (counts_E < 0).any():
                        raise UsageError(f"{file}: {key} has negative counts", expected="counts from 0")
                    layer = int(match[1])
                    totals[layer] = totals.get(layer, 0) + counts_E.astype(np.int64)
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"{file} can't be read: {error}", expected="a safetensors file written to the end"
            ) from error
    layers = sorted(totals)
    shape = request.shape
    if shape is not None and (layers != list(shape.layers) or num_experts != shape.num_experts):
        if len(layers) != len(shape.layers) or num_experts != shape.num_experts:
            raise UsageError(
                f"{folder}: counts of {num_experts} experts at {len(layers)} layers",
                expected=f"{shape.num_experts} experts at {len(shape.layers)} layers, as the model has",
            )
        layers = list(shape.layers)
    counts_LE = np.stack([totals[layer] for layer in sorted(totals)])
    tokens = counted_tokens(counts_LE, per_token, layers, str(folder))
    notes = missing_ranks(list(files), meta.get("ep_size") if isinstance(meta.get("ep_size"), int) else None)
    return Counted(
        "tensorrt-llm", layers, [request.default_domain], counts_LE[:, None], np.array([tokens]), per_token, notes=notes
    )
