"""A results folder as it lies on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from moescope.errors import ResultsError
from moescope.results.manifest import MANIFEST, Manifest
from moescope.results.places import expanded

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """What a run left behind. Tables are read when asked for.

    Attributes:
        path: The folder.
        manifest: What was run, on what, with what.
        given: Tables that are in memory already, by name; they take the place of files.
    """

    path: Path
    manifest: Manifest
    given: dict[str, pd.DataFrame] | None = None

    @classmethod
    def read(cls, path: str | Path) -> Results:
        """Opens a folder.

        Raises:
            ResultsError: It is no results folder, or one of another version.
        """
        path = expanded(path)
        file = path / MANIFEST
        if not file.is_file():
            raise ResultsError(
                f"{path} is no results folder: it has no {MANIFEST}",
                remedy="name a folder that a moescope command wrote (its last line says which)",
            )
        try:
            return cls(path, Manifest.model_validate_json(file.read_text(encoding="utf-8")))
        except (ValidationError, UnicodeDecodeError) as error:
            raise ResultsError(
                f"{file} cannot be read: {str(error).splitlines()[0]}",
                expected="a manifest as this version of moescope writes it",
                remedy="run the command again",
            ) from error

    @cached_property
    def tables(self) -> dict[str, Path]:
        """The tables' CSV files by name, in alphabetical order."""
        return {file.stem: file for file in sorted((self.path / "tables").glob("*.csv"))}

    @cached_property
    def figures(self) -> dict[str, Path]:
        """The figures' PNG files by name, in alphabetical order."""
        return {file.stem: file for file in sorted((self.path / "figures").glob("*.png"))}

    def table(self, name: str) -> pd.DataFrame | None:
        """A table, or None where its analysis was not run.

        The Parquet twin is read: it knows that a domain called "1984" and a token spelled "NA" are text.
        """
        import pandas as pd

        if self.given is not None:
            return self.given.get(name)
        file = self.path / "tables" / f"{name}.parquet"
        return pd.read_parquet(file) if file.is_file() else None

    @property
    def headline(self) -> str:
        """Model, sample and corpus in a line."""
        manifest = self.manifest
        sample = f" · {manifest.num_tokens:,} tokens of {manifest.corpus}" if manifest.corpus is not None else ""
        return f"{manifest.model}{sample} · {self.layers_in_words}"

    @property
    def layers_in_words(self) -> str:
        """`16 layers`, or `layers 1, 7, 15` where they are few."""
        layers = self.manifest.layers
        if len(layers) > 4:
            return f"{len(layers)} MoE layers"
        return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
