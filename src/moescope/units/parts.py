"""What is done of a plan: parts, each the merged state of some units, and claims on units that are being worked on.

A part is a folder that is complete or not there: state is written under a temporary name, flushed to the disk, renamed,
and its mark, the last file, lists units and hashes. A unit is in at most one part that counts: claims keep two workers
off the same unit, and where a worker that was taken for dead comes back with one, merging leaves one of the two out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from moescope.errors import ResultsError
from moescope.units.plan import Plan, write_whole

if TYPE_CHECKING:
    from moescope.statistics.base import Statistic

MARK = "done.json"
STALE_SECONDS = 600.0
"""A claim from another machine that was not renewed for so long is taken for that of a dead process."""
MOST_BYTES = 2**20


@dataclass(frozen=True)
class Part:
    """The merged state of some units, complete on the disk.

    Attributes:
        folder: Where it lies.
        units: Their numbers.
        about: Where and how it was made: host, processor, threads.
    """

    folder: Path
    units: frozenset[int]
    about: Mapping[str, Any]

    def load(self, statistics: Mapping[str, Statistic[Any]]) -> dict[str, Statistic[Any]]:
        """The state, as statistics like those given.

        Raises:
            ResultsError: A file is damaged.
        """
        mark = _read_mark(self.folder)
        loaded = {}
        for key, statistic in statistics.items():
            path = self.folder / f"{key}.safetensors"
            if mark["files"].get(path.name) != _digest(path):
                raise ResultsError(
                    f"{path} is not what was written",
                    remedy=f"remove {self.folder}: its units will be computed again",
                )
            loaded[key] = type(statistic).load(path, device=statistic.device)
        return loaded


class Parts:
    """The parts and claims of a job.

    Args:
        job: The job's folder.
        plan: Its plan; parts of another are refused.
    """

    def __init__(self, job: Path, plan: Plan) -> None:
        self._parts, self._claims, self._plan = job / "parts", job / "claims", plan
        self._mine: set[int] = set()

    def complete(self) -> list[Part]:
        """All parts that are complete, the largest first; of two that share a unit, the smaller is left out.

        Raises:
            ResultsError: A part belongs to another plan.
        """
        found = []
        for folder in sorted(self._parts.glob("part-*")) if self._parts.is_dir() else []:
            mark = _read_mark(folder)
            if not mark:
                continue
            if mark["plan"] != self._plan.digest:
                raise ResultsError(
                    f"{folder} belongs to another plan",
                    expected=f"parts of the plan in {self._plan.folder}",
                    remedy="keep the parts of each job in its own folder",
                )
            found.append(Part(folder, frozenset(mark["units"]), mark["about"]))
        found.sort(key=lambda part: (-len(part.units), part.folder.name))
        kept: list[Part] = []
        seen: set[int] = set()
        for part in found:
            if part.units and not part.units & seen and max(part.units) < self._plan.num_units:
                kept.append(part)
                seen |= part.units
        return kept

    def done(self) -> set[int]:
        """Units that are in a part."""
        return {unit for part in self.complete() for unit in part.units}

    def save(
        self, statistics: Mapping[str, Statistic[Any]], units: Iterable[int], *, replaces: Part | None = None
    ) -> Part:
        """Saves the merged state of some units as one part; the part it takes in is removed afterwards.

        Raises:
            OSError: The disk refuses.
        """
        name = f"part-{uuid.uuid4().hex[:12]}"
        temporary = self._parts / f".{name}.{os.getpid()}"
        temporary.mkdir(parents=True)
        try:
            files = {}
            for key, statistic in statistics.items():
                path = temporary / f"{key}.safetensors"
                statistic.save(path)
                _flush(path)
                files[path.name] = _digest(path)
            folder = self._parts / name
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        about = {"host": socket.gethostname(), **processor()}
        mark = {"plan": self._plan.digest, "units": sorted(units), "files": files, "about": about}
        write_whole(folder / MARK, json.dumps(mark).encode())
        if replaces is not None:
            # The mark first: without it the old part no longer counts, whatever else is left of it.
            with suppress(FileNotFoundError):
                (replaces.folder / MARK).unlink()
            shutil.rmtree(replaces.folder, ignore_errors=True)
        return Part(folder, frozenset(mark["units"]), about)

    def claim(self, unit: int) -> bool:
        """Takes a unit for this process; False where another that is alive has it."""
        self._claims.mkdir(parents=True, exist_ok=True)
        path = self._claims / f"{unit:08d}.json"
        content = json.dumps(_identity()).encode()
        for _ in range(2):
            try:
                number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                if _alive(path):
                    return False
                with suppress(FileNotFoundError):
                    path.unlink()
                continue
            with os.fdopen(number, "wb") as file:
                file.write(content)
            self._mine.add(unit)
            return True
        return False

    def renew(self) -> None:
        """Says that this process is still at work on what it claimed."""
        for unit in self._mine:
            with suppress(FileNotFoundError):
                os.utime(self._claims / f"{unit:08d}.json")

    def release(self, units: Iterable[int]) -> None:
        """Gives up claims: the units are done, or left to others."""
        for unit in list(units):
            self._mine.discard(unit)
            with suppress(FileNotFoundError):
                (self._claims / f"{unit:08d}.json").unlink()

    def clean(self) -> None:
        """Removes what dead processes of this machine left: unfinished parts, parts without a mark, claims."""
        for path in list(self._parts.glob(".part-*")) if self._parts.is_dir() else []:
            if not psutil.pid_exists(int(path.name.rpartition(".")[2])):
                shutil.rmtree(path, ignore_errors=True)
        for path in list(self._parts.glob("part-*")) if self._parts.is_dir() else []:
            if not (path / MARK).exists() and time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        for path in list(self._claims.glob("*.json")) if self._claims.is_dir() else []:
            if not _alive(path):
                with suppress(FileNotFoundError):
                    path.unlink()


def processor() -> dict[str, Any]:
    """What arithmetic may depend on: kind of processor and its instruction sets, as torch names them."""
    import torch

    return {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def _identity() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def _alive(path: Path) -> bool:
    """Whether the process that made a claim is still there; of another machine, whether it said so lately."""
    try:
        claim = json.loads(path.read_bytes()[:MOST_BYTES])
        age = time.time() - path.stat().st_mtime
        host, pid, started = claim["host"], int(claim["pid"]), float(claim["started"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):  # just being written, or damaged
        return path.exists() and time.time() - path.stat().st_mtime < 5
    if host != socket.gethostname():
        return age < STALE_SECONDS
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.Error:
        return False


def _read_mark(folder: Path) -> dict[str, Any]:
    """A part's mark; empty where the part is not complete."""
    try:
        with (folder / MARK).open("rb") as file:
            mark = json.loads(file.read(MOST_BYTES))
        return {
            "plan": str(mark["plan"]),
            "units": [int(unit) for unit in mark["units"]],
            "files": dict(mark["files"]),
            "about": dict(mark["about"]),
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{folder / MARK} is damaged", remedy=f"remove {folder}: its units will be computed again"
        ) from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def listed(units: Iterable[int]) -> Iterator[str]:
    """Unit numbers in words: "1", "4 to 9"."""
    ordered = sorted(units)
    start = 0
    for index in range(1, len(ordered) + 1):
        if index == len(ordered) or ordered[index] != ordered[index - 1] + 1:
            first, last = ordered[start], ordered[index - 1]
            yield f"{first}" if first == last else f"{first} to {last}"
            start = index
