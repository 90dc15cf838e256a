"""How state lies on disk: whole numbers in the fewest bits that hold them, long runs of zeros as a mask."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moescope.errors import MoescopeError, ResultsError

METADATA = "moescope"
VERSION = 2
"""Of the format; 1 had neither version nor checksum."""
MOST_HEADER_BYTES = 64 * 2**20

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

    Raises:
        ValueError: What is stored is not of that shape, or does not fit into that dtype.
    """
    if name in stored:
        tensor = get(name)
        if tensor.shape != declared.shape or tensor.dtype not in _narrower(declared.dtype):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not as declared")
        return tensor.to(declared)
    places, values = get(name + PLACES).cpu(), get(name + VALUES)
    if places.dtype != torch.uint8 or places.shape != ((declared.numel() + 7) // 8,):
        raise ValueError(f"the mask of {name} is {places.dtype} {tuple(places.shape)}")
    bits = np.unpackbits(places.numpy(), count=declared.numel()).astype(bool)
    if values.dtype not in _narrower(declared.dtype) or values.shape != (int(bits.sum()),):
        raise ValueError(f"{name} holds {tuple(values.shape)} values of {values.dtype} for {int(bits.sum())} places")
    tensor = torch.zeros_like(declared)
    tensor.view(-1)[torch.from_numpy(bits).to(declared.device)] = values.to(tensor)
    return tensor


def _narrower(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Dtypes that what was of this dtype may be stored in."""
    return WHOLE[: WHOLE.index(dtype) + 1] if dtype in WHOLE else (dtype,)


def narrowed(tensor: Tensor) -> Tensor:
    """The same whole numbers in the smallest dtype that holds them; a tensor of another dtype as it is."""
    if tensor.dtype not in WHOLE or not tensor.numel():
        return tensor
    low, high = (int(end) for end in tensor.aminmax())
    fitting = (dtype for dtype in WHOLE if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max)
    return tensor.to(next(fitting))


def declared(state: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Dtype and shape of each tensor, as plain values."""
    return {name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape] for name, tensor in state.items()}


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """BLAKE2b of tensors (names, dtypes, shapes, bytes) and of facts."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous().cpu()
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(tensors: dict[str, Tensor], path: str | Path, facts: Mapping[str, Any]) -> None:
    """Writes a safetensors file: tensors, facts, the format's version and a checksum of all.

    Raises:
        OSError: The disk refuses; safetensors says so in words alone.
    """
    # One entry: safetensors writes several in an order that changes from process to process.
    stored = {"version": VERSION, **facts}
    metadata = {METADATA: json.dumps({**stored, "checksum": checksum(tensors, stored)})}
    path = Path(path)
    there = path.exists()
    path.touch()
    # safetensors writes a temporary file, for its owner alone, and moves it here: this one has what the umask leaves.
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(mode)
    except SafetensorError as error:
        if not there:
            path.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@dataclass(frozen=True)
class Stored:
    """A state file that is open.

    Attributes:
        facts: What `write` was given.
        names: Names of what is stored.
        get: Reads one of these.
    """

    facts: dict[str, Any]
    names: frozenset[str]
    get: Callable[[str], Tensor]

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Compares what is stored with a state as it should be, whose tensors need hold nothing.

        Raises:
            ValueError: Says what differs.
        """
        expected, found = declared(state), self.facts["tensors"]
        wide = {name: ["int64", *about[1:]] if about[0] == "int32" else about for name, about in expected.items()}
        for name in expected.keys() | found.keys():
            if found.get(name) is None or found[name] not in (expected.get(name), wide.get(name)):
                raise ValueError(f"{name} is {found.get(name)}, where {expected.get(name)} is expected")
        parts = {name for name in expected if name in self.names}
        parts |= {name + part for name in expected.keys() - parts for part in (PLACES, VALUES)}
        if parts != self.names:
            raise ValueError(f"it holds {', '.join(sorted(self.names ^ parts)[:3])} too many or too few")
        for name, tensor in state.items():  # what a mask stands for takes 64 times its bytes at most
            stored = self.get(name if name in self.names else name + PLACES).numel()
            if stored != (tensor.numel() if name in self.names else (tensor.numel() + 7) // 8):
                raise ValueError(f"{name} holds {stored} elements")

    def tensor(self, name: str, expected: Tensor) -> Tensor:
        """One tensor of the state, widened if it was when it was saved.

        Raises:
            ValueError: It is not what is declared.
        """
        if expected.dtype == torch.int32 and self.facts["tensors"][name][0] == "int64":
            expected = expected.to(torch.int64)
        return unpack(name, expected, self.names, self.get)


@contextmanager
def opened(path: str | Path) -> Iterator[Stored]:
    """Opens what `write` wrote, after checking that it is whole.

    Raises:
        ResultsError: There is no such file, it is damaged, or of another version; also what fails inside the context.
    """
    try:
        if not Path(path).is_file():
            raise ValueError("it is no file" if Path(path).exists() else "there is no such file")
        with Path(path).open("rb") as head:
            if int.from_bytes(head.read(8), "little") > MOST_HEADER_BYTES:
                raise ValueError("its header is longer than any that is written")
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            if not isinstance(facts, dict):
                raise ValueError("its facts are no object")
            _check_version(facts, path)
            expected = facts.pop("checksum", None)
            names = frozenset(file.keys())
            if checksum({name: file.get_tensor(name) for name in names}, facts) != expected:
                raise ValueError("its checksum is another: it was cut short or changed")
            yield Stored(facts, names, file.get_tensor)
    except (MoescopeError, MemoryError):
        raise
    except Exception as error:  # of safetensors, json, torch, or a statistic that is given odd parameters
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResultsError(
            f"{path} cannot be read: {reason}",
            expected="a state as moescope writes it (state/*.safetensors of a results folder)",
            remedy="copy the file again, or run the command again",
        ) from error


def _check_version(facts: Mapping[str, Any], path: str | Path) -> None:
    version = facts.get("version", 1 if "name" in facts else None)
    if version == VERSION:
        return
    if not isinstance(version, int):
        raise ResultsError(f"{path} holds the state of nothing known", expected="a state that moescope has saved")
    newer = version > VERSION
    raise ResultsError(
        f"{path} has version {version} of the state's format",
        expected=f"version {VERSION}",
        remedy="update moescope" if newer else "run the command again with this version of moescope",
    )
