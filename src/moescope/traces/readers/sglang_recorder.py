"""SGLang's expert distribution recorder: `stat` (counts), `per_token` and `per_pass` (every token), torch files."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moescope.errors import UsageError
from moescope.traces.blocks import Block, Source
from moescope.traces.checks import check_ids
from moescope.traces.readers.base import (
    Counted,
    Recording,
    Request,
    checked_k,
    counted_tokens,
    layers_of,
    missing_ranks,
    needs_model,
)

_RANK = re.compile(r"expert_distribution_recorder_.*_(\d{1,6})\.pt$")
MOST_BYTES = 2**34


def files_of(paths: tuple[Path, ...]) -> list[Path]:
    """The recorder's files."""
    return sorted(file for path in paths for file in (path.glob("*.pt") if path.is_dir() else [path]))


def read(request: Request) -> Recording | Counted:
    """Reads dumps of one recording; of `stat` the counts, else every token.

    Raises:
        UsageError: A file that is no such dump, or physical ids without the map to logical ones.
    """
    files = files_of(request.paths)
    if not files:
        raise UsageError(f"{request.paths[0]} holds no .pt files", expected="dumps of SGLang's recorder")
    first = _load(files[0])
    if "logical_count" in first:
        return _counted(files, request)
    recording = Recording("sglang", [], iter(()))
    recording.num_experts = request.shape.num_experts if request.shape else None
    ranks = [int(match[1]) for file in files if (match := _RANK.search(file.name))]
    recording.notes = ["documents are not recorded in this format", *(missing_ranks(ranks) if ranks else [])]
    blocks = _blocks(files, request, recording)
    begun = next(blocks, None)
    if begun is None:
        raise UsageError(f"{files[0]} holds no tokens", expected="records with topk_ids_of_layer")

    def all_blocks() -> Iterator[Block]:
        yield begun
        yield from blocks

    recording.blocks = all_blocks()
    return recording


def _load(file: Path) -> dict[str, Any]:
    """A dump, as tensors and plain values: nothing in it is run."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES:,} bytes")
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{file} can't be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            expected="a torch file of tensors and plain values; anything else in it is not loaded",
            remedy="check that it was written and copied to the end",
        ) from error
    if not isinstance(value, dict):
        raise UsageError(f"{file} holds a {type(value).__name__}", expected="a dump of SGLang's recorder")
    return value


def _tensor(value: Any, ndim: int, what: str) -> np.ndarray:
    if not isinstance(value, torch.Tensor) or value.ndim != ndim or value.is_floating_point() or value.is_complex():
        raise UsageError(f"{what} is no tensor of {ndim} dimensions of whole numbers", expected="the recorder's own")
    return value.long().numpy()


def _counted(files: list[Path], request: Request) -> Counted:
    shape = request.shape
    if shape is None:
        raise needs_model(str(files[0]), "how many experts a token selects")
    total_LE: np.ndarray | None = None
    for file in files:
        counts_LE = _tensor(_load(file).get("logical_count"), 3, f"logical_count of {file}").sum(axis=0)
        if (counts_LE < 0).any() or (total_LE is not None and total_LE.shape != counts_LE.shape):
            raise UsageError(f"{file}: counts that do not fit those of the other files", expected="counts from 0")
        total_LE = counts_LE if total_LE is None else total_LE + counts_LE
    assert total_LE is not None
    if total_LE.shape[1] != shape.num_experts:
        raise UsageError(f"{files[0]}: counts of {total_LE.shape[1]} experts", expected=f"{shape.num_experts}")
    kept, layers = layers_of(total_LE.shape[0], shape, str(files[0]))
    total_LE = total_LE[kept]
    tokens = counted_tokens(total_LE, shape.num_experts_per_token, layers, str(files[0]))
    return Counted(
        "sglang", layers, [request.default_domain], total_LE[:, None], np.array([tokens]), shape.num_experts_per_token
    )


def _blocks(files: list[Path], request: Request, recording: Recording) -> Iterator[Block]:
    seen: set[bytes] = set()
    kept: list[int] = []
    num_ranks = doubled = 0
    for file in files:
        dump = _load(file)
        passes = dump.get("records")
        if not isinstance(passes, list):
            raise UsageError(f"{file} has no records", expected="a dump of the recorder's per_token or per_pass mode")
        mapped = dump.get("last_physical_to_logical_map")
        logical_LP = None if mapped is None else _tensor(mapped, 2, f"last_physical_to_logical_map of {file}")
        for number, record in enumerate(passes):
            place = f"record {number + 1} of {file.name}"
            if not isinstance(record, dict):
                raise UsageError(f"{place} is no record", expected="the recorder's own")
            ids_LTK = _tensor(record.get("topk_ids_of_layer"), 3, f"{place}: topk_ids_of_layer")
            tokens_T = _tensor(record.get("input_ids"), 1, f"{place}: input_ids")
            positions_T = _tensor(record.get("positions"), 1, f"{place}: positions")
            ids_LTK = ids_LTK[:, : len(tokens_T)]
            if ids_LTK.shape[1] != len(tokens_T) or len(positions_T) != len(tokens_T):
                raise UsageError(f"{place}: {ids_LTK.shape[1]} rows", expected=f"{len(tokens_T)}, one per token")
            # Ranks of one tensor-parallel group record the same tokens.
            digest = hashlib.blake2b(str(record.get("forward_pass_id")).encode(), digest_size=16)
            for array in (tokens_T, positions_T, ids_LTK):
                digest.update(np.ascontiguousarray(array).tobytes())
            if not len(tokens_T):
                continue
            if digest.digest() in seen:
                doubled += 1
                continue
            seen.add(digest.digest())
            if not recording.layers:
                kept, num_ranks = _begin(ids_LTK, request, recording, place)
            yield _block(ids_LTK, kept, num_ranks, logical_LP, tokens_T, positions_T, record, request, recording, place)
    if doubled:
        recording.notes.append(f"{doubled:,} passes that several ranks recorded are counted once")


def _begin(ids_LTK: np.ndarray, request: Request, recording: Recording, place: str) -> tuple[list[int], int]:
    kept, layers = layers_of(len(ids_LTK), request.shape, place)
    if request.shape is None:  # a layer without experts has no ids
        kept = [layer for layer in kept if (ids_LTK[layer] >= 0).any()]
        layers = kept
    filled_K = (ids_LTK[kept] >= 0).any(axis=(0, 1)) if kept else np.zeros(0, np.bool_)
    num_ranks = int(filled_K.sum())
    if not num_ranks:
        raise UsageError(f"{place} holds no expert ids", expected="ids from 0 in topk_ids_of_layer")
    checked_k(num_ranks, request.shape, place)
    recording.layers.extend(layers)
    return kept, num_ranks


def _block(
    ids_LTK: np.ndarray,
    kept: list[int],
    num_ranks: int,
    logical_LP: np.ndarray | None,
    tokens_T: np.ndarray,
    positions_T: np.ndarray,
    record: dict[str, Any],
    request: Request,
    recording: Recording,
    place: str,
) -> Block:
    ids_LTK = ids_LTK[kept][..., :num_ranks]
    if logical_LP is None:
        raise UsageError(
            f"{place}: its ids are of physical experts, and the file has no last_physical_to_logical_map",
            expected="the map beside the records, as the recorder writes it",
        )
    if len(logical_LP) <= max(kept) or (ids_LTK < 0).any() or ids_LTK.max() >= logical_LP.shape[1]:
        raise UsageError(
            f"{place}: ids {ids_LTK.min()} to {ids_LTK.max()} of physical experts",
            expected=f"0 to {logical_LP.shape[1] - 1} at each layer, as the map has",
        )
    ids_TLK = np.stack([logical_LP[layer][ids_TK] for layer, ids_TK in zip(kept, ids_LTK, strict=True)], axis=1)
    check_ids(ids_TLK, recording.num_experts, recording.layers, place)
    if tokens_T.min() < 0 or tokens_T.max() >= 2**31 or positions_T.min() < 0 or positions_T.max() >= 2**31:
        raise UsageError(f"{place}: negative token ids or positions", expected="whole numbers from 0")
    return Block(
        documents=[Source("", 0, request.default_domain)],
        rows_T=np.zeros(len(tokens_T), np.int64),
        positions_T=positions_T,
        generated_T=np.full(
            len(tokens_T), str(record.get("forward_mode", "")).upper() in ("2", "DECODE", "FORWARDMODE.DECODE")
        ),
        expert_ids_TLK=ids_TLK,
        token_ids_T=tokens_T,
    )
