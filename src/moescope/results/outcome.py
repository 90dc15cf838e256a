"""What every run hands out, whatever was asked: tables, rows, figures, files, a manifest, a folder."""

from __future__ import annotations

import html
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moescope.errors import of_type
from moescope.results.writing import ResultsFolder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.results.manifest import Manifest
    from moescope.statistics.base import Statistic

Value = TypeVar("Value")
MOST_SHOWN = 10
"""Rows of each table that a notebook shows."""
MOST_NAMED = 6


class Made(Mapping[str, Value]):
    """Values by name, each made anew when it is asked for: figures, of which many at once would fill the memory."""

    def __init__(self, makers: Mapping[str, Callable[[], Value]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Value:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._makers)})"


@dataclass(frozen=True)
class Part:
    """What one question gave, each kind made when it is asked for: one that fails takes no other with it.

    Attributes:
        name: The question.
        frames: Makes its tables as rows.
        arrays: Makes its matrices.
        files: Makes its text files.
        figures: Gives what draws each of its figures.
    """

    name: str
    frames: Callable[[], Mapping[str, pd.DataFrame]] = dict
    arrays: Callable[[], Mapping[str, Mapping[str, np.ndarray]]] = dict
    files: Callable[[], Mapping[str, str]] = dict
    figures: Callable[[], Mapping[str, Figure]] = dict


class Outcome(ABC):
    """A finished run.

    Attributes:
        manifest: What was run, on what, with what.
    """

    manifest: Manifest

    @property
    def tables(self) -> Mapping[str, xr.Dataset]:
        """Labeled datasets by name, each variable with `units` and `definition`."""
        return {}

    @property
    @abstractmethod
    def frames(self) -> Mapping[str, pd.DataFrame]:
        """The tables as rows, by file name without suffix."""

    @property
    @abstractmethod
    def figures(self) -> Mapping[str, Figure]:
        """Figures by file name without suffix, each drawn when it is asked for."""

    @property
    def arrays(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Matrices of experts by experts and the like: file name without suffix -> named arrays."""
        return {}

    @property
    def files(self) -> Mapping[str, str]:
        """Text files beside these: path inside the results folder -> text."""
        return {}

    @property
    def state(self) -> Mapping[str, Statistic[Any]]:
        """The accumulated statistics by file name without suffix, to merge or continue."""
        return {}

    def parts(self) -> Iterator[Part]:
        """What is written, in parts of which each can fail without the others."""
        yield Part(
            self.manifest.command, lambda: self.frames, lambda: self.arrays, lambda: self.files, lambda: self.figures
        )

    def write(self, folder: ResultsFolder) -> None:
        """Writes everything into a folder in the making: what cost most to compute first, figures last.

        What can't be made or written is left out, and the folder says so when it is left.
        """
        folder.write_manifest(self.manifest)
        parts = list(self.parts())
        for name, statistic in self.state.items():
            with folder.attempt(f"state {name}"):
                folder.write_state(name, statistic)
        for part in parts:
            with folder.attempt(f"tables of {part.name}"):
                for name, frame in part.frames().items():
                    with folder.attempt(f"table {name}"):
                        folder.write_table(name, frame)
        for part in parts:
            with folder.attempt(f"arrays of {part.name}"):
                for name, arrays in part.arrays().items():
                    folder.write_arrays(name, dict(arrays))
            with folder.attempt(f"files of {part.name}"):
                for name, text in part.files().items():
                    folder.write_text(name, text)
        with folder.attempt("figures"):
            folder.write_figures(self._made_figures(parts, folder))

    @staticmethod
    def _made_figures(parts: list[Part], folder: ResultsFolder) -> Iterator[tuple[str, Figure]]:
        for part in parts:
            figures: Mapping[str, Figure] = {}
            with folder.attempt(f"figures of {part.name}"):
                figures = part.figures()
            for name in figures:
                made: list[Figure] = []
                with folder.attempt(f"figure {name}"):
                    made.append(figures[name])
                for figure in made:
                    yield name, figure

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Writes everything to a folder.

        Args:
            out: Where to.
            force: Replace a results folder that is there.

        Raises:
            ResultsError: The folder exists and `force` is not set, or it is not one of moescope's.
            EnvironmentFailure: The disk refuses.
            IncompleteResults: Something could not be made; the rest is in the folder that the error names.
        """
        of_type(out, (str, os.PathLike), "out", "a path")
        with ResultsFolder(out, force=force) as folder:
            self.write(folder)
        return folder.path

    @cached_property
    def _summary(self) -> str:
        manifest = self.manifest
        sample = f", {manifest.num_tokens:,} tokens of {manifest.corpus}" if manifest.corpus is not None else ""
        return f"{manifest.command} on {manifest.model}{sample}"

    def __repr__(self) -> str:
        names = self.manifest.analyses or list(self.frames)
        shown = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
        return f"<{type(self).__name__}: {self._summary}; {shown}>"

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{html.escape(self._summary)}</b></p>"]
        for name, frame in self.frames.items():
            rows = f"{len(frame):,} rows"
            parts.append(f"<details><summary>{html.escape(name)} ({rows})</summary>")
            parts.append(frame.head(MOST_SHOWN).to_html(escape=True, index=False) + "</details>")
        return "".join(parts)
