"""How a results folder takes its place: made in a hidden folder beside it, then moved there whole.

The hidden folder says whose it is (host, process, its start), and the process holds a lock on it. So a later run can
tell what a dead one left, and removes it; a run that lives, or that runs on another host that shares the disk, is left
alone.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

PREFIX = ".moescope-partial-"
OWNER = "owner.json"
NEW, OLD = "new", "old"
CLOCK_SECONDS = 2.0
"""How far two readings of a process' start may differ."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def absolute(path: str | Path) -> Path:
    """The path with `~` expanded, and independent of a later change of the working directory."""
    return expanded(path).absolute()


def expanded(path: str | Path) -> Path:
    """The path with `~` expanded, where there is such a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def free(path: Path) -> Path:
    """The path, or the first of `path`-2, -3, ... where nothing lies, not even a link."""
    found, number = path, 2
    while os.path.lexists(found):
        found, number = path.with_name(f"{path.name}-{number}"), number + 1
    return found


class Place:
    """The hidden folder in which a run makes its results, beside where they will be.

    Args:
        path: Where they will be; no link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder: Path | None = None
        self._lock: IO[str] | None = None
        self._made: list[Path] = []

    @property
    def new(self) -> Path:
        """Where files lie until they are complete."""
        if self._folder is None:
            raise RuntimeError("the results folder is not open: use it in a with statement")
        return self._folder / NEW

    def open(self) -> None:
        """Makes the hidden folder, after removing what dead runs have left beside it.

        Raises:
            OSError: The disk refuses; nothing is left behind.
        """
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path.parent)
            self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.path.parent))
            self._lock = (self._folder / OWNER).open("w", encoding="utf-8")
            _locked(self._lock)
            json.dump(_owner() | {"name": self.path.name}, self._lock)
            self._lock.flush()
            self.new.mkdir()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes all that was written, and the folders above it that were made on the way and hold nothing else."""
        self._close()
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()

    def settle(self, *, replace: bool) -> Path:
        """Moves what was written to its place; at no moment is there nothing of what was there before.

        Args:
            replace: Whether it may take the place of something; else, or where the system refuses, it goes to the
                first free name after it.

        Returns:
            Where it is.

        Raises:
            OSError: The disk refuses; what was written stays in the hidden folder.
        """
        try:
            if replace and os.path.lexists(self.path):
                self._exchange()
            else:
                if sys.platform == "win32" and self.path.is_dir():
                    self.path.rmdir()  # an empty folder; elsewhere it is replaced
                self.new.rename(self.path)
        except OSError:  # another run was faster; or the place is a mount, which can't be renamed
            self.path = free(self.path)
            self.new.rename(self.path)
        self._close()
        return self.path

    def _exchange(self) -> None:
        if _exchanged(self.new, self.path):
            return
        assert self._folder is not None
        # Should the process end between the two, the next run puts the new one in place.
        self.path.rename(self._folder / OLD)
        try:
            self.new.rename(self.path)
        except OSError:
            (self._folder / OLD).rename(self.path)
            raise

    def _close(self) -> None:
        if self._lock is not None:
            self._lock.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._lock = None


def remove_leftovers(parent: Path) -> None:
    """Removes hidden folders of runs of this host that ended without doing so; puts in place what was complete."""
    with suppress(OSError):
        for folder in sorted(parent.glob(f"{PREFIX}*")):
            if folder.is_symlink() or not folder.is_dir():
                continue
            with suppress(OSError):
                _remove_if_dead(folder)


def _remove_if_dead(folder: Path) -> None:
    try:
        with (folder / OWNER).open("r+", encoding="utf-8") as file:
            owner = json.load(file)
            if not _is_dead(owner) or not _locked(file):
                return
    except ValueError:
        return
    name = owner.get("name")
    if isinstance(name, str) and name and Path(name).name == name and (folder / OLD).is_dir():
        place = folder.parent / name
        if not os.path.lexists(place):
            (folder / NEW).rename(place)
    shutil.rmtree(folder, ignore_errors=True)


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _is_dead(owner: Any) -> bool:
    """Whether it ran on this host and is no longer there; a process of another host can't be asked for."""
    if not isinstance(owner, dict) or owner.get("host") != socket.gethostname():
        return False
    pid, started = owner.get("pid"), owner.get("started")
    if not isinstance(pid, int) or not isinstance(started, int | float) or pid <= 0:
        return False
    try:
        return bool(abs(psutil.Process(pid).create_time() - started) > CLOCK_SECONDS)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError):
        return False


def _locked(file: IO[str]) -> bool:
    """Locks a file for as long as it is open; False if another process has, True too where there are no locks.

    Two hosts, or two containers, may have one name: then the process can't be found, and the lock tells.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _exchanged(first: Path, second: Path) -> bool:
    """Exchanges two folders in one step where the system can (Linux)."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    result = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(result == 0)
