"""The one place where what other libraries raise over a checkpoint becomes a refusal that carries their reason."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moescope.errors import ModelError, MoescopeError

_LONGEST_REASON = 200
# What a machine lacks is no fault of the checkpoint.
_SURROUNDINGS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EMFILE, errno.ENFILE)


@contextmanager
def refusing(found: str, *, expected: str, remedy: str, install: str | None = None) -> Iterator[None]:
    """Refuses the checkpoint if another library raises, whatever it raises.

    Args:
        found: What could not be done, in words that the library's reason can follow after a colon.
        expected: What was needed instead.
        remedy: What the reader can do.
        install: What to do instead where the reason is a package that is not installed; default `remedy`.

    Raises:
        ModelError: The library raised.
        MemoryError: Memory ran out; `torch.OutOfMemoryError` passes as it is.
        OSError: The disk is full, or files can't be opened for lack of handles.
    """
    try:
        yield
    except (MoescopeError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise MemoryError(reason(error)) from error
        if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
            raise
        # Libraries in Rust panic with a BaseException of that name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        is_missing = isinstance(error, ImportError)
        raise ModelError(
            f"{found}: {reason(error)}", expected=expected, remedy=(install or remedy) if is_missing else remedy
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's allocator of the CPU says so in words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def reason(error: BaseException) -> str:
    """An error's first line, with its type where the message alone says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A library's own headings ("Validation error for field 'x':") need the line after them.
    text = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    text = text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."
    plain = isinstance(error, ValueError | OSError | ImportError | RuntimeError) and not isinstance(
        error, RecursionError
    )
    return text if plain else f"{type(error).__name__}: {text}"
