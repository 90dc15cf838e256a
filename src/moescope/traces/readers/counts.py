"""Published counts (.npz): `counts_LDE`, `layers`, `domains`, and `tokens_D` or `num_experts_per_token`."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.readers.base import Counted, Request
from moescope.traces.readers.requests import npy

_COUNTS = ("counts_LDE", "expert_counts_LDE")
MOST_BYTES = 2**30


def read(request: Request) -> Counted:
    """Reads the arrays.

    Raises:
        UsageError: Arrays that are missing, or do not fit each other.
    """
    path = request.paths[0]
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if sum(sizes.values()) > MOST_BYTES:
                raise ValueError(f"it expands to more than {MOST_BYTES:,} bytes")
            name = next((name for name in _COUNTS if f"{name}.npy" in sizes), None)
            if name is None:
                raise ValueError(f"it has no array {_COUNTS[0]}")
            counts = npy(archive.read(f"{name}.npy"), f"{name} of {path.name}").astype(np.int64)
            given = {
                key: np.atleast_1d(npy(archive.read(f"{key}.npy"), f"{key} of {path.name}", kinds="iuU")).tolist()
                for key in ("layers", "domains", "tokens_D", "num_experts_per_token")
                if f"{key}.npy" in sizes
            }
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{path} can't be used: {error}",
            expected="an .npz of counts_LDE (layers, domains, experts), layers, domains, and tokens_D or "
            "num_experts_per_token",
        ) from error
    return _counted(request, counts, given)


def _counted(request: Request, counts: np.ndarray, given: dict[str, list[Any]]) -> Counted:
    path, shape = request.paths[0], request.shape
    layers = [int(layer) for layer in given.get("layers", range(counts.shape[0] if counts.ndim else 0))]
    domains = [str(domain) for domain in given.get("domains", [])]
    if not domains and counts.ndim == 3:
        several = counts.shape[1] > 1
        domains = [
            f"{request.default_domain} {n + 1}" if several else request.default_domain for n in range(counts.shape[1])
        ]
    if counts.ndim != 3 or counts.shape[:2] != (len(layers), len(domains)) or (counts < 0).any():
        raise UsageError(
            f"{path}: counts of shape {counts.shape} for {len(layers)} layers and {len(domains)} domains",
            expected="(layers, domains, experts), from 0",
        )
    sums_D = counts[0].sum(axis=1)
    if "num_experts_per_token" in given or shape is not None:
        per_token = int(given["num_experts_per_token"][0]) if "num_experts_per_token" in given else 0
        per_token = per_token or (shape.num_experts_per_token if shape is not None else 0)
        tokens_D = sums_D // max(1, per_token)
    else:
        tokens_D = np.array(given.get("tokens_D", [0] * len(domains)), dtype=np.int64)
        per_token = int(sums_D.sum() // max(1, tokens_D.sum()))
    if per_token < 1 or tokens_D.shape != sums_D.shape or (counts.sum(axis=2) != per_token * tokens_D).any():
        raise UsageError(
            f"{path}: counts that do not add up to the same number of experts for every token",
            expected="tokens_D or num_experts_per_token that fit them",
        )
    return Counted("published counts", layers, domains, counts, tokens_D, per_token)
