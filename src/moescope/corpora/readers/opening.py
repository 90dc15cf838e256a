"""Files of bytes, compressed or not, and their lines in bounded memory."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moescope.corpora.document import MAX_RECORD_BYTES
from moescope.errors import CorpusError

COMPRESSIONS = (".gz", ".zst")
_CHUNK = 2**20


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to read what it holds, decompressed as its name says."""
    name = path.name.lower()
    if name.endswith(".gz"):
        with gzip.open(path, "rb") as unzipped:
            yield unzipped  # type: ignore[misc]
    elif name.endswith(".zst"):
        import zstandard

        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader,
        ):
            yield io.BufferedReader(reader, _CHUNK)  # type: ignore[type-var]
    else:
        with path.open("rb") as file:
            yield file


def lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yields each line with its number from 1; None in place of a line longer than `MAX_RECORD_BYTES`."""
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) <= MAX_RECORD_BYTES or line.endswith(b"\n"):
            yield number, line
        else:
            skip_line(file)
            yield number, None


def skip_line(file: IO[bytes]) -> None:
    """Reads on to the end of a line, whatever its length."""
    while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
        pass


@contextmanager
def readable_file(path: Path, expected: str) -> Iterator[None]:
    """Turns what a damaged or unreadable file raises into an error that names it.

    Raises:
        CorpusError: The file is damaged, not what its name says, or can't be opened.
    """
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    name = path.name.lower()
    if name.endswith(".zst"):
        import zstandard

        errors = (*errors, zstandard.ZstdError)
    elif name.endswith((".parquet", ".arrow")):
        import pyarrow as pa

        # Damaged metadata also shows as values or types that make no sense.
        errors = (*errors, pa.ArrowException, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError)
    try:
        yield
    except CorpusError:
        raise
    except errors as error:
        raise CorpusError(
            f"{path} cannot be read: {error}",
            expected=expected,
            remedy="check its permissions and that it was copied to the end",
        ) from error
