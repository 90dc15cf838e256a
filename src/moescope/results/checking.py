"""A results folder as something that strangers may have made: links stay inside, sizes are bounded, files are files."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.errors import MoescopeError, ResultsError

if TYPE_CHECKING:
    import pandas as pd

MANIFEST_BYTES = 16 * 2**20
TABLE_BYTES = 2 * 2**30
PICTURE_BYTES = 64 * 2**20
TABLE_CELLS = 2**28
"""Rows times columns: a few kilobytes of Parquet may declare any number."""
FILES = 20_000
AGAIN = "run the command again, or name a folder that a moescope command wrote"


def found(folder: Path, relative: str, most_bytes: int) -> Path | None:
    """A file of the folder; None where there is none.

    Args:
        folder: The folder.
        relative: The file's path inside it.
        most_bytes: Larger ones are refused.

    Raises:
        ResultsError: It lies outside the folder by way of a link, is no file, or is larger.
    """
    path = _inside(folder, folder / relative)
    if path is None:
        return None
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ResultsError(f"{folder / relative} is no file", expected="a file", remedy=AGAIN)
    if about.st_size > most_bytes:
        raise ResultsError(
            f"{folder / relative} has {about.st_size:,} bytes", expected=f"at most {most_bytes:,}", remedy=AGAIN
        )
    return path


def listed(folder: Path, kind: str, suffix: str) -> list[Path]:
    """The files of a sub-folder with this suffix, in alphabetical order.

    Raises:
        ResultsError: The sub-folder lies outside the folder by way of a link, is none, or holds too many files.
    """
    below = _inside(folder, folder / kind)
    if below is None:
        return []
    if not below.is_dir():
        raise ResultsError(f"{folder / kind} is no folder", remedy=AGAIN)
    files = list(islice((folder / kind).glob(f"*{suffix}"), FILES + 1))
    if len(files) > FILES:
        raise ResultsError(f"{folder / kind} holds more than {FILES:,} files", remedy=AGAIN)
    return sorted(files)


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet file as a frame.

    Raises:
        ResultsError: It is damaged, or larger than any that is written.
    """
    import pyarrow.parquet as pq

    with refusing(path), pq.ParquetFile(path) as file:
        about = file.metadata
        num_bytes = sum(about.row_group(index).total_byte_size for index in range(about.num_row_groups))
        if about.num_rows * max(1, about.num_columns) > TABLE_CELLS or num_bytes > TABLE_BYTES:
            raise ResultsError(
                f"{path} holds {about.num_rows:,} rows of {about.num_columns:,} columns",
                expected=f"at most {TABLE_CELLS:,} values",
                remedy=AGAIN,
            )
        return file.read().to_pandas()


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Makes what any library finds wrong with a file, or with the values in it, an error of ours.

    What the surroundings refuse (memory, permissions, space) stays what it is.

    Raises:
        ResultsError: Says what was found.
    """
    try:
        yield
    except (MoescopeError, MemoryError, PermissionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ResultsError(
            f"{path} cannot be read: {type(error).__name__}{f': {reason}' if reason else ''}",
            expected="what this version of moescope writes",
            remedy=AGAIN,
        ) from error


def _inside(folder: Path, path: Path) -> Path | None:
    """Where a path really is; None where nothing is."""
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        raise ResultsError(f"{path} is a link to nothing", remedy=AGAIN) from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is none
        raise ResultsError(f"{path} cannot be followed: {error}", remedy=AGAIN) from error
    if not real.is_relative_to(folder.resolve()):
        raise ResultsError(
            f"{path} is a link that leads out of the folder", expected="files inside the folder", remedy=AGAIN
        )
    return real
