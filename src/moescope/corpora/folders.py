"""Which files of a folder are text that can be read, and what else lies there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moescope.corpora.names import listed, printable
from moescope.corpora.readers import is_plain, is_prose, suffix_of
from moescope.errors import CorpusError

# What `datasets` writes beside its data, and what is about a collection and not of it.
_METADATA = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
_ABOUT = ("readme", "license", "licence", "changelog", "contributing", "attribution")
_METADATA_BYTES = 2**20


@dataclass
class Walk:
    """All that is found below some folders.

    Attributes:
        kinds: Files of kinds that are not read, by ending.
        passed: Why other files and folders are left out, each with their number.
        outside: Links that lead out of the folder and are followed.
    """

    root: Path
    kinds: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    outside: int = 0

    def files_below(self, path: Path, *, deep: bool = True) -> list[Path]:
        """Readable files in order of name, those of a folder before those of its sub-folders.

        Hidden files are left out. Each folder is read once, so that links in a circle end.

        Raises:
            CorpusError: A folder that may not be read.
        """
        if path.is_file():
            return [path] if suffix_of(path) else []
        files: list[Path] = []
        waiting = [path] if self._leads_on(path) else []
        seen: set[tuple[int, int]] = set()
        while waiting:
            folder = waiting.pop()
            try:
                place = folder.stat()
                entries = visible(folder)
            except OSError as error:
                if folder == path or isinstance(error, PermissionError):
                    raise CorpusError(f"{folder} cannot be read: {error}", remedy="check its permissions") from error
                self.passed["folders too deep to be opened"] += 1
                continue
            if (place.st_dev, place.st_ino) in seen:
                self.passed["links to a folder that is read already"] += 1
                continue
            seen.add((place.st_dev, place.st_ino))
            files += self._files_of(folder, [entry for entry in entries if not _is(entry, folder=True)])
            if deep:
                folders = [Path(entry.path) for entry in entries if _is(entry, folder=True)]
                waiting += [one for one in reversed(folders) if self._leads_on(one)]
        return files

    def _leads_on(self, path: Path) -> bool:
        """Whether a folder is to be read here: a link to what is read at its own place is not followed."""
        try:
            if not path.is_symlink():
                return True
        except OSError:
            # Its path is too long; that is counted where it can't be opened.
            return True
        real = Path(os.path.realpath(path))
        if real.is_relative_to(self.root) or self.root.is_relative_to(real):
            self.passed["links to a folder that is read already"] += 1
            return False
        self.outside += 1
        return True

    def _files_of(self, folder: Path, entries: list[os.DirEntry[str]]) -> list[Path]:
        named = _named_by_datasets(folder)
        files: list[Path] = []
        for entry in entries:
            path = Path(entry.path)
            if not _is(entry, folder=False):
                lost = entry.is_symlink()
                self.passed["links that lead nowhere" if lost else "entries that are no files"] += 1
            elif suffix_of(path) is None:
                self.kinds[path.suffix.lower() or "no ending"] += 1
            elif named is not None and path.name not in named:
                self.passed["files that the data set's state.json does not list"] += path.name not in _METADATA
            elif path.name not in _METADATA:
                files.append(path)
                if entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.root):
                    self.outside += 1
        if any(not is_plain(path) for path in files):
            about = [path for path in files if is_plain(path) and _is_about(path)]
            self.passed["files about the data beside it (README, scripts, and the like)"] += len(about)
            files = [path for path in files if path not in about]
        return files

    def notes(self, name: str) -> Iterator[str]:
        """What was left out and why, in sentences."""
        reasons = [f"{count:,} {reason}" for reason, count in self.passed.items() if count]
        if self.kinds:
            total = sum(self.kinds.values())
            each = listed([f"{count:,} {printable(kind)}" for kind, count in self.kinds.most_common()])
            reasons.append(f"{total:,} files of kinds that are not read ({each})")
        if reasons:
            yield f"left out of {name}: {'; '.join(reasons)}"
        if self.outside:
            yield f"{self.outside:,} links in {name} lead out of it: what they lead to is read"

    def summary(self) -> str:
        """What there is instead of readable files, in a few words."""
        parts = [f"{count:,} {printable(kind)}" for kind, count in self.kinds.most_common()]
        parts += [f"{count:,} {reason}" for reason, count in self.passed.items() if count]
        return listed(parts) if parts else "no files"


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, without hidden entries."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def sub_folders(folder: Path) -> list[Path]:
    """Visible folders in a folder, by name.

    Raises:
        CorpusError: It may not be read.
    """
    try:
        return [Path(entry.path) for entry in visible(folder) if _is(entry, folder=True)]
    except OSError as error:
        raise CorpusError(f"{folder} cannot be read: {error}", remedy="check its permissions") from error


def _is(entry: os.DirEntry[str], *, folder: bool) -> bool:
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:
        return False


def _is_about(path: Path) -> bool:
    return not is_prose(path) or path.name.lower().startswith(_ABOUT)


def _named_by_datasets(folder: Path) -> set[str] | None:
    """Files of a data set that `datasets.save_to_disk` wrote here; None where it did not."""
    try:
        with (folder / "state.json").open("rb") as file:
            state = json.loads(file.read(_METADATA_BYTES))
        named = {one["filename"] for one in state["_data_files"]}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return named if all(isinstance(one, str) for one in named) and (folder / "dataset_info.json").is_file() else None
