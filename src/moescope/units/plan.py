"""The plan of a run: what is asked of which model, and the sample of text it is asked on, cut into units.

A plan is made once, without the model: windows of documents with their token ids, a Parquet file whose row groups are
the units, and a JSON file with all that decides the results. Whoever works on it, in whatever order and on however many
machines, runs the same batches.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moescope.corpora.packing import Batch, Window, lay_out, pack
from moescope.errors import ResultsError

if TYPE_CHECKING:
    import pyarrow

    from moescope.corpora.batching import Sampler

FILE, WINDOWS = "plan.json", "windows.parquet"
SCHEMA_VERSION = 1
MOST_BYTES = 64 * 2**20
"""Size of a plan's JSON file at most."""
_LISTS = ("row", "counted", "next_ids", "positions")


class PlanFile(BaseModel):
    """All that decides the results of a run, as plain values.

    Attributes:
        request: What is asked: command, analyses with their options, layers, seed and the like.
        model: What tells the model from others.
        sample: What tells the sample of text from others, with its hash.
        threads: Threads of a forward pass: with others, the last bits of a product may differ.
        batch_tokens: Padded size of a batch.
        padding_id: Token id that rows are padded with.
        num_units: Units of work.
        window: Tokens taken of one document at most.
        num_tokens_D: Tokens counted, by domain.
        num_documents_D: Documents they are from.
        warnings: Text missing or skipped, in sentences.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    request: dict[str, Any]
    model: dict[str, Any]
    sample: dict[str, Any]
    threads: int = Field(ge=1)
    batch_tokens: int = Field(ge=1)
    padding_id: int = Field(ge=0)
    num_units: int = Field(ge=0)
    window: int = Field(ge=1)
    num_tokens_D: list[int]
    num_documents_D: list[int]
    warnings: list[str] = []


@dataclass(frozen=True)
class Plan:
    """A plan on the disk.

    Attributes:
        folder: Where it lies.
        file: What decides the results.
    """

    folder: Path
    file: PlanFile

    @property
    def num_units(self) -> int:
        """Units of work."""
        return self.file.num_units

    @property
    def warnings(self) -> list[str]:
        """Text missing or skipped, in sentences."""
        return self.file.warnings

    @property
    def window(self) -> int:
        """Tokens taken of one document at most."""
        return self.file.window

    @property
    def num_tokens_D(self) -> np.ndarray:
        """Tokens counted, by domain."""
        return np.array(self.file.num_tokens_D, dtype=np.int64)

    @property
    def num_documents_D(self) -> np.ndarray:
        """Documents they are from, by domain."""
        return np.array(self.file.num_documents_D, dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides the results: parts of another plan are refused by it."""
        return hashlib.sha256(_canonical(self.file).encode()).hexdigest()

    def batches(self, unit: int) -> list[Batch]:
        """The batches of one unit; no batch holds text of two."""
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(self.folder / WINDOWS) as file:
            rows = file.read_row_group(unit).to_pylist()
        windows = [
            Window(
                **{name: np.array(row[name], dtype=np.int64) for name in _LISTS},
                document_hash=row["document_hash"],
                domain_id=row["domain_id"],
            )
            for row in rows
        ]
        return [lay_out(group, self.file.padding_id) for group in pack(windows, self.file.batch_tokens)]

    @classmethod
    def make(
        cls,
        folder: Path,
        sampler: Sampler,
        *,
        request: Mapping[str, Any],
        model: Mapping[str, Any],
        threads: int,
    ) -> Plan:
        """Draws the sample and writes the plan: the windows first, then the file that says that they are complete.

        Raises:
            CorpusError: The corpus has no text.
            OSError: The disk refuses.
        """
        import pyarrow.parquet as parquet

        folder.mkdir(parents=True, exist_ok=True)
        hashed, num_units = hashlib.sha256(), 0
        with parquet.ParquetWriter(folder / WINDOWS, _schema(), compression="zstd") as writer:
            for windows in sampler.units():
                table = _table(windows)
                writer.write_table(table, row_group_size=max(1, table.num_rows))
                for window in windows:
                    for name in _LISTS:
                        hashed.update(np.ascontiguousarray(getattr(window, name), dtype=np.int64).tobytes())
                    hashed.update(f"{window.document_hash} {window.domain_id} {num_units}\n".encode())
                num_units += 1
        made = cls(
            folder,
            PlanFile(
                request=json.loads(json.dumps(request)),
                model=json.loads(json.dumps(model)),
                sample=json.loads(json.dumps({**sampler.identity, "hash": hashed.hexdigest()})),
                threads=threads,
                batch_tokens=sampler.batch_tokens,
                padding_id=sampler.padding_id,
                num_units=num_units,
                window=sampler.window,
                num_tokens_D=[int(count) for count in sampler.num_tokens_D],
                num_documents_D=[int(count) for count in sampler.num_documents_D],
                warnings=list(sampler.warnings),
            ),
        )
        write_whole(folder / FILE, made.file.model_dump_json(indent=2).encode())
        return made

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Opens a plan.

        Raises:
            ResultsError: There is none, or it is damaged or of another version.
        """
        path = folder / FILE
        expected = "a plan that this version of moescope wrote"
        remedy = "plan the run again, in another folder or with --restart"
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ResultsError(f"{path} is larger than {MOST_BYTES >> 20} MiB", expected=expected, remedy=remedy)
            file = PlanFile.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ResultsError(
                f"{folder} holds no plan: it has no {FILE}", remedy="make one with moescope plan"
            ) from error
        except (ValidationError, UnicodeDecodeError) as error:
            found = str(error).splitlines()[0]
            raise ResultsError(f"{path} cannot be read: {found}", expected=expected, remedy=remedy) from error
        if file.schema_version != SCHEMA_VERSION:
            raise ResultsError(
                f"{path} has schema version {file.schema_version}", expected=f"version {SCHEMA_VERSION}", remedy=remedy
            )
        return cls(folder, file)


def differences(plan: PlanFile, request: Mapping[str, Any], model: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """What a request asks for that a plan has otherwise, in words; empty where they are the same."""
    found = []
    wanted = json.loads(json.dumps({"request": dict(request), "model": dict(model), "sample": dict(sample)}))
    for part, values in wanted.items():
        planned = getattr(plan, part)
        for name, value in values.items():
            if planned.get(name) != value:
                found.append(f"{name} {_short(planned.get(name))} there, {_short(value)} now")
    return "; ".join(found)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a power failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _canonical(file: PlanFile) -> str:
    return json.dumps(file.model_dump(exclude={"warnings"}), sort_keys=True)


def _schema() -> pyarrow.Schema:
    import pyarrow

    lists = [(name, pyarrow.list_(pyarrow.int64())) for name in _LISTS]
    return pyarrow.schema([*lists, ("document_hash", pyarrow.int64()), ("domain_id", pyarrow.int32())])


def _table(windows: Sequence[Window]) -> pyarrow.Table:
    import pyarrow

    columns: dict[str, Any] = {name: [getattr(window, name) for window in windows] for name in _LISTS}
    columns["document_hash"] = [window.document_hash for window in windows]
    columns["domain_id"] = [window.domain_id for window in windows]
    return pyarrow.table(columns, schema=_schema())


def units_of(share: str, units: Sequence[int], num_units: int) -> Iterator[int]:
    """Those of some units that belong to the i-th of n equal shares of all units, "i/n" with i from 1.

    Raises:
        ResultsError: It is no such share.
    """
    from moescope.errors import UsageError

    number, slash, total = share.partition("/")
    if not (slash and number.isascii() and number.isdigit() and total.isascii() and total.isdigit()):
        raise UsageError(f"`unit` is {share!r}", expected="i/n, the i-th of n shares counted from 1, as 3/8")
    i, n = int(number), int(total)
    if not 1 <= i <= n:
        raise UsageError(f"`unit` is {share!r}", expected=f"a share from 1/{n} to {n}/{n}" if n else "n of 1 or more")
    first, end = (i - 1) * num_units // n, i * num_units // n
    return (unit for unit in units if first <= unit < end)
