"""The folder a run leaves behind: written beside its place under a temporary name, then moved there whole."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
import traceback
from collections import deque
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import loky

from moescope.errors import EnvironmentFailure, IncompleteResults, ResultsError
from moescope.results.manifest import MANIFEST, Manifest
from moescope.results.names import FileNames
from moescope.results.places import Place, absolute, free
from moescope.results.spreadsheets import to_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Executor, Future
    from types import TracebackType

    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

FAILURES = "failures.txt"
FIGURE_DPI = 200
FEW_FIGURES = 8
"""Figures that are drawn before another process has started."""
WATCH_SECONDS = 0.5
"""How often a process that draws figures looks whether its parent is still there."""
HELD_FIGURES = 24
"""Figures that wait to be drawn at most: what comes after is made meanwhile, and a figure takes a few megabytes."""


@contextmanager
def _surroundings(path: Path) -> Iterator[None]:
    """Turns what the disk refuses into an `EnvironmentFailure`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EnvironmentFailure(
                f"no space left on the disk of {path}", remedy="free some, or name another folder with `out`"
            ) from error
        raise EnvironmentFailure(
            f"cannot write {path}: {error.strerror or error}", remedy="name a folder you may write to with `out`"
        ) from error


def _drawn(figures: Iterable[tuple[str, Figure]]) -> Iterator[tuple[str, dict[str, bytes] | Exception]]:
    """Figures as files; a few are drawn here, many by as many processes as there are processors, up to four.

    In the place of one that can't be drawn comes the error. Where the system allows no processes, or ends one, its
    figures are drawn here after all.
    """
    coming = iter(figures)
    first = list(islice(coming, FEW_FIGURES + 1))
    processes = min(4, loky.cpu_count()) if len(first) > FEW_FIGURES else 1
    pool = _pool(processes) if processes > 1 else None
    if pool is None:
        for name, figure in chain(first, coming):
            yield _received(name, figure, None)
        return
    waiting: deque[tuple[str, Figure, Future[dict[str, bytes]] | None]] = deque()
    try:
        for name, figure in chain(first, coming):
            waiting.append((name, figure, _sent(pool, figure)))
            if len(waiting) > HELD_FIGURES:
                yield _received(*waiting.popleft())
        while waiting:
            yield _received(*waiting.popleft())
    finally:
        pool.shutdown(kill_workers=True)


def _pool(processes: int) -> loky.ProcessPoolExecutor | None:
    try:
        return loky.ProcessPoolExecutor(max_workers=processes, initializer=_end_with, initargs=(os.getpid(),))
    except (OSError, NotImplementedError):  # no semaphores here, or too few
        return None


def _end_with(parent: int) -> None:
    """Has this process end soon after its parent, however that ended: else it would wait for work forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sent(pool: Executor, figure: Figure) -> Future[dict[str, bytes]] | None:
    try:
        return pool.submit(_files, figure)
    except (OSError, BrokenExecutor):
        return None


def _received(
    name: str, figure: Figure, future: Future[dict[str, bytes]] | None
) -> tuple[str, dict[str, bytes] | Exception]:
    try:
        if future is not None:
            with suppress(BrokenExecutor):
                return name, future.result()
        return name, _files(figure)
    except Exception as error:
        return name, error


def _files(figure: Figure) -> dict[str, bytes]:
    """A figure as PDF and PNG; in memory, since matplotlib stumbles over its own unfinished file on a full disk."""
    # No creation date: the same run leaves the same bytes.
    pdf = _saved(figure, "pdf", metadata={"CreationDate": None})
    # What was laid out for one file stays for the other: constrained layout is half the time of a small figure.
    figure.set_layout_engine("none")
    return {"pdf": pdf, "png": _saved(figure, "png", dpi=FIGURE_DPI)}


def _saved(figure: Figure, suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, **options)
    return buffer.getvalue()


class ResultsFolder:
    """A results folder in the making; a context manager.

    On entering, a hidden folder is made beside the final place (so an unwritable disk is known before hours of work),
    and what dead runs have left there is removed. On leaving it is moved to its place. On leaving with an error it is
    removed if no manifest was written: the pass was not finished. Else what was made is kept, and the manifest says
    what failed. A killed run leaves at most the hidden folder, never a half-written result.

    Args:
        out: Where to; refused if it exists, unless `force`. None: `default`, or `default`-2, -3, ... if that exists.
        default: Used when `out` is None.
        force: Replace an existing results folder (one with a manifest; anything else is never deleted). Where it is a
            symbolic link, the folder that it leads to is replaced and the link stays. A run that is not complete
            replaces nothing: it goes beside, to the first free name.

    Attributes:
        path: Where the results will be, an absolute path; `~` is expanded.
        failures: What could not be made, and why.

    Raises:
        ResultsError: `out` exists and may not be replaced.
        EnvironmentFailure: The disk refuses.
        IncompleteResults: On leaving: something could not be made; the rest is in place.
    """

    def __init__(self, out: str | Path | None, *, default: str | Path = "results/run", force: bool = False) -> None:
        self.path = absolute(out) if out is not None else free(absolute(default))
        self._force = force
        taken = self._taken()
        if taken and not force:
            raise ResultsError(
                f"{self.path} exists already", remedy="name another folder with `out`, or replace it with `force=True`"
            )
        if taken and not (self.path / MANIFEST).is_file():
            raise ResultsError(
                f"{self.path} is no results folder of moescope: it has no {MANIFEST}",
                remedy="name another folder with `out`; `force=True` replaces only what moescope wrote",
            )
        target = Path(os.path.realpath(self.path))
        if target.is_symlink():
            raise ResultsError(f"{self.path} is a link that leads to itself", remedy="name another folder with `out`")
        self._place = Place(target)
        self._names: dict[str, FileNames] = {}
        self._manifest: Manifest | None = None
        self.failures: list[str] = []
        self._traces: list[str] = []

    def _taken(self) -> bool:
        """Whether something is there already; an empty folder is nothing."""
        return self.path.exists() and any(self.path.iterdir() if self.path.is_dir() else [self.path])

    def __enter__(self) -> Self:
        with _surroundings(self.path):
            self._place.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._manifest is None:
            self._place.discard()
            return
        if error is not None:
            self.fail("results", error)
        self._name_failures()
        with _surroundings(self.path):
            may_replace = not self._taken() or (self._force and not self.failures)
            settled = self._place.settle(replace=may_replace)
        if settled.name != Path(os.path.realpath(self.path)).name:
            self.path = settled
        if error is not None and not isinstance(error, Exception):
            error.add_note(f"what was finished is in {self.path}")
        elif self.failures:
            raise IncompleteResults(self.path, self.failures) from error

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Goes on where what is done inside fails, and says so in the manifest and on leaving."""
        try:
            yield
        except Exception as error:
            self.fail(what, error)

    def fail(self, what: str, error: BaseException) -> None:
        """Notes that something could not be made."""
        self.failures.append(failure(what, error))
        self._traces.append("".join(traceback.format_exception(error)))

    def _name_failures(self) -> None:
        if self.failures and self._manifest is not None:
            manifest = self._manifest.model_copy(update={"failures": [*self._manifest.failures, *self.failures]})
            with suppress(EnvironmentFailure):  # a full disk: the first manifest stays
                self.write_manifest(manifest)
                self.write_text(FAILURES, "\n".join(self._traces))

    @property
    def writing_to(self) -> Path:
        """Where files lie until the folder is complete."""
        return self._place.new

    def _file(self, kind: str, name: str) -> Path:
        """A file's path without suffix; its name may be any text (see `moescope.results.names`)."""
        folder = self._place.new / kind
        folder.mkdir(exist_ok=True)
        return folder / self._names.setdefault(kind, FileNames())(name)

    @contextmanager
    def _whole(self, *files: Path) -> Iterator[None]:
        """Leaves no file that was not written to its end."""
        try:
            with _surroundings(self.path):
                yield
        except BaseException:
            for file in files:
                file.unlink(missing_ok=True)
            raise

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Writes `tables/name.csv` (see `moescope.results.spreadsheets`) and the same as `.parquet`."""
        with _surroundings(self.path):
            csv, parquet = _suffixed(self._file("tables", name), ".csv", ".parquet")
        with self._whole(csv, parquet):
            to_csv(frame, csv)
            frame.to_parquet(parquet, index=False)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes `arrays/name.npz`."""
        import numpy as np

        with _surroundings(self.path):
            (file,) = _suffixed(self._file("arrays", name), ".npz")
        with self._whole(file):
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def write_figures(self, figures: Iterable[tuple[str, Figure]]) -> None:
        """Writes `figures/name.pdf` and `.png` of each; many are drawn side by side, by other processes.

        What can't be drawn is among the folder's `failures`.
        """
        for name, files in _drawn(figures):
            if isinstance(files, Exception):
                self.fail(f"figure {name}", files)
                continue
            with _surroundings(self.path):
                paths = _suffixed(self._file("figures", name), *(f".{kind}" for kind in files))
            with self._whole(*paths):
                for path, content in zip(paths, files.values(), strict=True):
                    path.write_bytes(content)

    def write_state(self, name: str, statistic: Statistic[Any]) -> None:
        """Writes `state/name.safetensors`, to merge or continue."""
        with _surroundings(self.path):
            (file,) = _suffixed(self._file("state", name), ".safetensors")
        with self._whole(file):
            statistic.save(file)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file, given its path inside the folder."""
        path = self._place.new / name
        partial = path.with_name(f".{path.name}.partial")
        with self._whole(partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            # byte offsets in a file hold on every system
            partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            partial.replace(path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes `manifest.json`; from then on what is written is kept, whatever comes."""
        self.write_text(MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        self._manifest = manifest


def failure(what: str, error: BaseException) -> str:
    """What could not be made and why, in a line."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return f"{what}: stopped before the end"
    said = getattr(error, "found", None) or f"{type(error).__name__}: {error}".rstrip(": ")
    return " ".join(f"{what}: {said}".split())


def note_failure(folder: Path, what: str, error: Exception) -> str:
    """Notes in the manifest of a folder that is in place that something about it could not be made; returns how."""
    said = failure(what, error)
    file = folder / MANIFEST
    manifest = Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    manifest.failures.append(said)
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n")
    partial.replace(file)
    with (folder / FAILURES).open("a", encoding="utf-8", errors="backslashreplace") as traces:
        traces.write("".join(traceback.format_exception(error)))
    return said


def _suffixed(path: Path, *suffixes: str) -> list[Path]:
    """Files of one name; a dot in the name is part of it."""
    return [path.with_name(path.name + suffix) for suffix in suffixes]
