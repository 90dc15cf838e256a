"""A results folder as it lies on the disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.errors import ResultsError
from moescope.results.checking import (
    AGAIN,
    MANIFEST_BYTES,
    PICTURE_BYTES,
    TABLE_BYTES,
    found,
    listed,
    read_table,
    refusing,
)
from moescope.results.manifest import MANIFEST, SCHEMA_VERSION, Manifest
from moescope.results.phases import of_all
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
        file = found(path, MANIFEST, MANIFEST_BYTES)
        if file is None:
            raise ResultsError(
                f"{path} is no results folder: it has no {MANIFEST}",
                remedy="name a folder that a moescope command wrote (its last line says which)",
            )
        with refusing(path / MANIFEST):
            text = file.read_bytes().decode("utf-8")
            _check_version(path / MANIFEST, json.loads(text))
            return cls(path, Manifest.model_validate_json(text))

    @cached_property
    def tables(self) -> dict[str, Path]:
        """The tables' CSV files by name, in alphabetical order."""
        return {file.stem: file for file in listed(self.path, "tables", ".csv")}

    @cached_property
    def figures(self) -> dict[str, Path]:
        """The figures' PNG files by name, in alphabetical order.

        Raises:
            ResultsError: One is no picture of ours: a link out of the folder, or too large.
        """
        files = listed(self.path, "figures", ".png")
        return {file.stem: file for file in files if found(self.path, f"figures/{file.name}", PICTURE_BYTES)}

    def table(self, name: str) -> pd.DataFrame | None:
        """A table, or None where its analysis was not run.

        Where a table has a column `phase`, the rows of all tokens. The Parquet twin is read: it knows that a domain
        called "1984" and a token spelled "NA" are text.

        Raises:
            ResultsError: It is damaged, too large, or a link out of the folder.
        """
        if self.given is not None:
            frame = self.given.get(name)
        else:
            file = found(self.path, f"tables/{name}.parquet", TABLE_BYTES)
            frame = read_table(file) if file is not None else None
        return None if frame is None else of_all(frame)

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


def _check_version(file: Path, manifest: Any) -> None:
    """Refuses a manifest of an older or newer moescope, before what it lacks or has beside is complained of."""
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version == SCHEMA_VERSION and not isinstance(version, bool):
        return
    if not isinstance(version, int) or isinstance(version, bool):
        raise ResultsError(f"{file} is no manifest of moescope", expected="one with a schema_version", remedy=AGAIN)
    newer = version > SCHEMA_VERSION
    raise ResultsError(
        f"{file} has schema_version {version}",
        expected=f"version {SCHEMA_VERSION}, which this moescope reads and writes",
        remedy="update moescope" if newer else "run the command again, or read the folder with the older moescope",
    )
