"""llama.cpp's importance matrix in GGUF (`llama-imatrix -o X.gguf`): how many tokens each expert was given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.readers.base import Counted, Request, counted_tokens

_COUNTS = re.compile(r"blk\.(\d{1,5})\.ffn_(?:gate|up|gate_up|down)_exps\.weight\.counts")


def read(request: Request) -> Counted:
    """Reads the counts of each layer; K follows from the chunks.

    Raises:
        UsageError: A file that is no importance matrix of a Mixture-of-Experts model, or counts that are not whole.
    """
    path = request.paths[0]
    fields, tensors = _open(path)
    if fields.get("general.type") != "imatrix":
        raise UsageError(
            f"{path} is a GGUF of type {str(fields.get('general.type'))[:40]!r}", expected="an importance matrix",
            remedy="write one with llama-imatrix -o NAME.gguf; the older .dat files hold no counts of experts",
        )  # fmt: skip
    counts: dict[int, np.ndarray] = {}
    for name, values in tensors.items():
        match = _COUNTS.fullmatch(name)
        if match is None:
            continue
        whole_E = values.reshape(-1)
        if not np.isfinite(whole_E).all() or (whole_E < 0).any() or (whole_E != np.rint(whole_E)).any():
            raise UsageError(f"{path}: {name} holds what is no count", expected="whole numbers from 0")
        layer, counts_E = int(match[1]), whole_E.astype(np.int64)
        if not np.array_equal(counts.setdefault(layer, counts_E), counts_E):
            raise UsageError(
                f"{path}: the matrices of layer {layer} have different counts", expected="the same tokens for each"
            )
    if not counts or len({len(counts_E) for counts_E in counts.values()}) > 1:
        raise UsageError(f"{path} holds no counts of experts", expected="blk.N.ffn_*_exps.weight.counts")
    recorded = sorted(counts)
    counts_LE = np.stack([counts[layer] for layer in recorded])
    shape = request.shape
    if shape is not None and (counts_LE.shape[1] != shape.num_experts or recorded != list(shape.layers)):
        raise UsageError(
            f"{path}: {counts_LE.shape[1]} experts at {len(recorded)} layers",
            expected=f"{shape.num_experts} experts at {len(shape.layers)} layers, as the model has",
        )
    tokens = _positive(fields, "imatrix.chunk_count", path) * _positive(fields, "imatrix.chunk_size", path)
    per_token, rest = divmod(int(counts_LE[0].sum()), tokens)
    if rest or not per_token or (shape is not None and per_token != shape.num_experts_per_token):
        raise UsageError(
            f"{path}: {int(counts_LE[0].sum()):,} selections at layer {recorded[0]} of {tokens:,} tokens",
            expected="a whole number of experts for each token"
            if shape is None
            else f"{shape.num_experts_per_token} experts for each token",
            remedy="matrices that were merged or cut off can't be used",
        )
    if counted_tokens(counts_LE, per_token, recorded, str(path)) != tokens:
        raise UsageError(f"{path}: counts that do not add up", expected=f"{tokens:,} tokens at every layer")
    return Counted("llama.cpp", recorded, [request.default_domain], counts_LE[:, None], np.array([tokens]), per_token)


def _open(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plain fields and tensors by name."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: reader.fields[name].contents() for name in
                  ("general.type", "imatrix.chunk_count", "imatrix.chunk_size") if name in reader.fields}  # fmt: skip
        tensors = {
            tensor.name: np.array(tensor.data, dtype=np.float64)
            for tensor in reader.tensors
            if tensor.name.endswith(".counts") and tensor.n_elements <= 2**20
        }
    except Exception as error:  # the reader's own errors are of all kinds
        raise UsageError(
            f"{path} is no GGUF file that can be read: {type(error).__name__} {str(error)[:200]}",
            expected="an importance matrix of llama.cpp",
            remedy="check that it was written and copied to the end",
        ) from error
    return fields, tensors


def _positive(fields: dict[str, Any], name: str, path: Path) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{path}: {name} is {str(value)[:40]}", expected="a whole number from 1")
    return value
