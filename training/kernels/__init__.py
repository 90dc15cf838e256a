"""Compiled kernels for training on a CPU with AVX-512 BF16; built on first use, needed by nothing but the training."""

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = ("common.h", "moe.cpp", "attention.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-Wno-maybe-uninitialized", "-shared", "-fPIC")


def available() -> bool:
    """Whether this machine can compile and run the kernels."""
    cpu = Path("/proc/cpuinfo")
    return shutil.which("g++") is not None and cpu.exists() and "avx512_bf16" in cpu.read_text()


@functools.cache
def load(exact: bool = False) -> ctypes.CDLL:
    """Compile the kernels, once per version of their sources and machine.

    Args:
        exact: Compute in float32 instead of bfloat16; slow, for tests.

    Returns:
        The library. Calls into it release the interpreter lock.
    """
    here = Path(__file__).parent
    flags = (*FLAGS, *(("-DEXACT",) if exact else ()))
    text = "".join((here / name).read_text() for name in SOURCES) + " ".join(flags)
    folder = here.parent / "output" / "kernels"
    target = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / "kernels.so"
            subprocess.run(["g++", *flags, *(str(here / n) for n in SOURCES[1:]), "-o", str(built)], check=True)
            built.replace(target)
    library = ctypes.CDLL(str(target))
    for name in ("reduce",):
        getattr(library, name).restype = ctypes.c_double
    return library


def argument(value: torch.Tensor | float | int | None) -> object:
    """Turn one argument into what C expects: tensors become pointers to their (contiguous) data."""
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return value


def call(library: ctypes.CDLL, name: str, *arguments: torch.Tensor | float | int | None) -> float:
    """Call a kernel by name."""
    return getattr(library, name)(*(argument(a) for a in arguments))
