"""Documents and records out of files, by what a file's name says: one module a format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moescope.corpora.document import Document
from moescope.corpora.problems import Problems
from moescope.corpora.readers import columns, delimited, json_lines, json_values, plain
from moescope.corpora.readers.opening import COMPRESSIONS, readable_file
from moescope.corpora.records import Fields, to_documents

# Files that are one document each: prose, and all else that is plain text.
PROSE = (".txt", ".md", ".markdown", ".rst", ".tex", ".text")
CODE = (
    *(".py", ".pyi", ".js", ".mjs", ".jsx", ".ts", ".tsx", ".vue", ".svelte", ".html", ".htm", ".css", ".scss", ".xml"),
    *(
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".cxx",
        ".hh",
        ".hpp",
        ".cu",
        ".cuh",
        ".java",
        ".kt",
        ".scala",
        ".groovy",
        ".cs",
        ".fs",
    ),
    *(
        ".go",
        ".rs",
        ".rb",
        ".php",
        ".pl",
        ".pm",
        ".sh",
        ".bash",
        ".zsh",
        ".ps1",
        ".bat",
        ".sql",
        ".r",
        ".jl",
        ".m",
        ".f",
    ),
    *(".f90", ".swift", ".hs", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj", ".el", ".lisp", ".scm", ".lua", ".dart"),
    *(".zig", ".nim", ".v", ".sv", ".vhd", ".asm", ".s", ".lean", ".coq", ".agda", ".sol", ".proto", ".graphql", ".tf"),
    *(".yaml", ".yml", ".toml", ".ini", ".cfg", ".log", ".srt", ".vtt", ".bib", ".org", ".adoc", ".tei"),
)
JSON_LINES = (".jsonl", ".ndjson")
JSON_VALUES = (".json",)
DELIMITED = (".csv", ".tsv")
COLUMNS = (".parquet", ".arrow")

_PACKED = {*PROSE, *CODE, *JSON_LINES, *JSON_VALUES, *DELIMITED}
FORMATS = (
    f"{', '.join([*PROSE[:2], *JSON_LINES[:1], *JSON_VALUES, *DELIMITED])}, source code and other plain text "
    f"(.py, .tex, .html, ...), each also with .gz or .zst; {', '.join(COLUMNS)}"
)


def suffix_of(path: Path) -> str | None:
    """The suffix we can read the file by, with that of a compression, or None."""
    name = path.name.lower()
    packed = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    plain_name = name.removesuffix(packed)
    ending = plain_name[plain_name.rfind(".") :] if "." in plain_name else ""
    return ending + packed if ending in _PACKED or (ending in COLUMNS and not packed) else None


def format_of(path: Path) -> str | None:
    """The suffix without that of a compression, or None."""
    suffix = suffix_of(path)
    return suffix and suffix.removesuffix(".gz").removesuffix(".zst")


def is_prose(path: Path) -> bool:
    """Whether the file is one document, and by its name a text rather than code."""
    return format_of(path) in PROSE


def is_plain(path: Path) -> bool:
    """Whether the file is one document, with no fields."""
    return format_of(path) in PROSE + CODE


def read_documents(
    path: Path, name: str, fields: Fields, problems: Problems, *, seed: int, domain: str | None = None
) -> Iterator[Document]:
    """Yields a file's documents.

    Args:
        path: The file.
        name: What to call it in ids and messages, the same on every machine.
        fields: Where records keep text and domain.
        problems: Counts what was skipped or repaired.
        seed: Draws the order of a Parquet file's row groups.
        domain: The domain of all its documents where that does not come from the record.

    Raises:
        CorpusError: The file is damaged or not what its suffix says.
    """
    if is_plain(path):
        if domain is None:
            problems.add("no_domain", name)
            return
        with _readable(path):
            document = plain.read(path, name, problems, domain)
        if document is not None:
            yield document
        return
    unit = "row" if format_of(path) in COLUMNS else "record" if format_of(path) in JSON_VALUES else "line"
    for number, record in read_records(path, name, problems, fields, seed=seed):
        yield from to_documents(
            record,
            fields,
            problems,
            place=f"{unit} {number} of {name}",
            document_id=f"{name}:{number}",
            domain=domain,
            source=name,
        )


def read_records(
    path: Path, name: str, problems: Problems, fields: Fields, *, seed: int = 0
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields each record of a file with its number: lines and values from 1, rows of tables from 0.

    Args:
        path: The file, not a plain one.
        name: What to call it in messages.
        problems: Counts broken records.
        fields: What will be looked at; other columns of Parquet and Arrow files are not read.
        seed: Draws the order of a Parquet file's row groups.

    Raises:
        CorpusError: The file is damaged or not what its suffix says.
    """
    kind = format_of(path)
    with _readable(path):
        if kind == ".parquet":
            yield from columns.read_parquet(path, name, problems, fields, seed=seed)
        elif kind == ".arrow":
            yield from columns.read_arrow(path, name, problems, fields)
        elif kind in DELIMITED:
            yield from delimited.read(path, name, problems, fields, tabs=kind == ".tsv")
        elif kind in JSON_VALUES:
            yield from json_values.read(path, name, problems)
        else:
            yield from json_lines.read(path, name, problems)


def field_names(path: Path, name: str) -> list[str]:
    """The fields of a file's first record; none of a plain file."""
    if is_plain(path):
        return []
    with _readable(path):
        if format_of(path) == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        if format_of(path) == ".arrow":
            return columns.arrow_names(path)
    first = next(read_records(path, name, Problems(), Fields()), None)
    return [] if first is None else [str(field) for field in first[1]]


def _readable(path: Path) -> Any:
    return readable_file(path, f"a whole file of the kind its name says (one of {FORMATS})")
