"""How state lies on disk: whole numbers in the fewest bits that hold them, long runs of zeros as a mask."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

# From narrow to wide; torch computes little with other unsigned ones.
WHOLE = (torch.uint8, torch.int16, torch.int32, torch.int64)
PLACES, VALUES = ".places", ".values"


def pack(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor as what is stored of it: itself, narrowed, or where it is not 0 (one bit a place) and the values there.

    Counts of token types by expert are mostly zeros, counts of replicates mostly small: a report's state would be three
    times as large.
    """
    narrow = narrowed(tensor.cpu()).contiguous()
    if narrow.dtype in WHOLE:
        flat = narrow.view(-1)
        values = flat[flat != 0]
        if values.nbytes + flat.numel() // 8 < narrow.nbytes // 2:
            places = torch.from_numpy(np.packbits(flat.numpy() != 0))
            return {name + PLACES: places, name + VALUES: values}
    return {name: narrow}


def unpack(name: str, declared: Tensor, stored: Iterable[str], get: Callable[[str], Tensor]) -> Tensor:
    """The tensor again, in the shape, dtype and place of `declared`.

    Args:
        name: What it was packed as.
        declared: A tensor of its shape and dtype, on its device.
        stored: Names of what is stored.
        get: Reads one of these.
    """
    if name in stored:
        return get(name).to(declared)
    bits = np.unpackbits(get(name + PLACES).cpu().numpy(), count=declared.numel()).astype(bool)
    places = torch.from_numpy(bits).to(declared.device)
    tensor = torch.zeros_like(declared)
    tensor.view(-1)[places] = get(name + VALUES).to(tensor)
    return tensor


def narrowed(tensor: Tensor) -> Tensor:
    """The same whole numbers in the smallest dtype that holds them; a tensor of another dtype as it is."""
    if tensor.dtype not in WHOLE or not tensor.numel():
        return tensor
    low, high = (int(end) for end in tensor.aminmax())
    fitting = (dtype for dtype in WHOLE if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max)
    return tensor.to(next(fitting))


def write(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: The disk refuses; safetensors says so in words alone.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
