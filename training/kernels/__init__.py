"""Compiled kernels for training on a CPU; built on first use, needed by nothing but the training.

Products are in bfloat16 where the processor has AVX-512 BF16, and in float32 where it has AVX2 only.
"""

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = ("vectors.h", "common.h", "moe.cpp", "attention.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-Wno-maybe-uninitialized", "-shared", "-fPIC")


def available() -> bool:
    """Whether this machine can compile and run the kernels."""
    return shutil.which("g++") is not None and {"avx2", "fma"} <= instruction_sets()


@functools.cache
def instruction_sets() -> frozenset[str]:
    """What the processor can do, by the names Linux uses; empty on other systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), ":").split(":")[1].split())


def half(exact: bool = False) -> bool:
    """Whether operands of products are bfloat16."""
    return not exact and "avx512_bf16" in instruction_sets()


@functools.cache
def load(exact: bool = False) -> ctypes.CDLL:
    """Compile the kernels, once per version of their sources and kind of processor.

    Args:
        exact: Compute in float32 although the processor has bfloat16.

    Returns:
        The library. Calls into it release the interpreter lock.
    """
    here = Path(__file__).parent
    flags = FLAGS if half() == half(exact) else (*FLAGS, "-DEXACT")
    text = "".join((here / name).read_text() for name in SOURCES) + " ".join((*flags, *sorted(instruction_sets())))
    folder = here.parent / "output" / "kernels"
    target = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / "kernels.so"
            compiled = [str(here / name) for name in SOURCES if name.endswith(".cpp")]
            subprocess.run(["g++", *flags, *compiled, "-o", str(built)], check=True)
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
