"""The folder a run leaves behind: written beside its place under a temporary name, then moved there whole."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections import deque
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import loky

from moescope.errors import EnvironmentFailure, ResultsError
from moescope.results.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Executor, Future
    from types import TracebackType

    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

FIGURE_DPI = 200
FEW_FIGURES = 8
"""Figures that are drawn before another process has started."""
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


def _drawn(figures: Iterable[tuple[str, Figure]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Figures as files; a few are drawn here, many by as many processes as there are processors, up to four.

    Where the system allows no processes, or ends one, its figures are drawn here after all.
    """
    coming = iter(figures)
    first = list(islice(coming, FEW_FIGURES + 1))
    processes = min(4, loky.cpu_count()) if len(first) > FEW_FIGURES else 1
    pool = _pool(processes) if processes > 1 else None
    if pool is None:
        for name, figure in chain(first, coming):
            yield name, _files(figure)
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
        return loky.ProcessPoolExecutor(max_workers=processes)
    except (OSError, NotImplementedError):  # no semaphores here, or too few
        return None


def _sent(pool: Executor, figure: Figure) -> Future[dict[str, bytes]] | None:
    try:
        return pool.submit(_files, figure)
    except (OSError, BrokenExecutor):
        return None


def _received(name: str, figure: Figure, future: Future[dict[str, bytes]] | None) -> tuple[str, dict[str, bytes]]:
    try:
        return name, _files(figure) if future is None else future.result()
    except BrokenExecutor:
        return name, _files(figure)


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

    On entering, a hidden folder is made beside the final place (so an unwritable disk is known before hours of work);
    on leaving without an error it is moved there, on leaving with one it is removed. A killed run leaves at most the
    hidden folder, never a half-written result.

    Args:
        out: Where to; refused if it exists, unless `force`. None: `default`, or `default`-2, -3, ... if that exists.
        default: Used when `out` is None.
        force: Replace an existing results folder (one with a manifest; anything else is never deleted).

    Raises:
        ResultsError: `out` exists and may not be replaced.
        EnvironmentFailure: The disk refuses.
    """

    def __init__(self, out: str | Path | None, *, default: str | Path = "results/run", force: bool = False) -> None:
        self.path = Path(out) if out is not None else self._free(Path(default))
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
        self._made: list[Path] = []
        self._temporary = self.path.parent / f".{self.path.name}.partial-{os.getpid()}"

    def _taken(self) -> bool:
        """Whether something is there already; an empty folder is nothing."""
        return self.path.exists() and any(self.path.iterdir() if self.path.is_dir() else [self.path])

    @staticmethod
    def _free(default: Path) -> Path:
        path, number = default, 2
        while path.exists():
            path, number = default.with_name(f"{default.name}-{number}"), number + 1
        return path

    def __enter__(self) -> Self:
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        try:
            with _surroundings(self.path):
                shutil.rmtree(self._temporary, ignore_errors=True)
                self._temporary.mkdir(parents=True)
        except BaseException:
            self._leave_nothing()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._leave_nothing()
            return
        with _surroundings(self.path):
            if self._taken() and not self._force:  # by another run that was faster
                self.path = self._free(self.path)
            old = self._temporary.with_name(self._temporary.name + "-old")
            if self.path.exists():
                self.path.rename(old)
            self._temporary.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)

    def _leave_nothing(self) -> None:
        """Removes what was written, and the folders above it that were made on the way and hold nothing else."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()

    @property
    def writing_to(self) -> Path:
        """Where files lie until the folder is complete."""
        return self._temporary

    def _place(self, kind: str, name: str) -> Path:
        folder = self._temporary / kind
        folder.mkdir(exist_ok=True)
        return folder / name

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Writes `tables/name.csv` and the same as `.parquet`."""
        with _surroundings(self.path):
            frame.to_csv(self._place("tables", f"{name}.csv"), index=False, lineterminator="\n")
            frame.to_parquet(self._place("tables", f"{name}.parquet"), index=False)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes `arrays/name.npz`."""
        import numpy as np

        with _surroundings(self.path):
            np.savez_compressed(self._place("arrays", f"{name}.npz"), allow_pickle=False, **arrays)

    def write_figures(self, figures: Iterable[tuple[str, Figure]]) -> None:
        """Writes `figures/name.pdf` and `.png` of each; many are drawn side by side, by other processes."""
        for name, files in _drawn(figures):
            with _surroundings(self.path):
                for suffix, content in files.items():
                    self._place("figures", f"{name}.{suffix}").write_bytes(content)

    def write_state(self, name: str, statistic: Statistic[Any]) -> None:
        """Writes `state/name.safetensors`, to merge or continue."""
        with _surroundings(self.path):
            statistic.save(self._place("state", f"{name}.safetensors"))

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file, given its path inside the folder."""
        with _surroundings(self.path):
            path = self._temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")  # byte offsets in a file hold on every system

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes `manifest.json`."""
        self.write_text(MANIFEST, manifest.model_dump_json(indent=2) + "\n")
