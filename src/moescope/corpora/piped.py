"""A corpus out of a pipe (standard input): kept in a temporary file, since it is read more than once."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from moescope.corpora.files import FilesCorpus
from moescope.errors import CorpusError, EnvironmentFailure

NAME = "stdin"

# What is longer is not kept on disk.
MAX_BYTES = 2**36

_CHUNK = 2**20
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def read_pipe(path: Path | None, *, text_field: str | None, domain_field: str | None) -> FilesCorpus:
    """Reads standard input (or a named pipe) to its end, and opens what came as a corpus.

    JSON (lines, or an array), JSON compressed by gzip or zstandard, and Parquet are known by how they begin;
    everything else is one text. The temporary file goes with the corpus.

    Raises:
        CorpusError: Nothing came, no one pipes anything in, or there is no text in it.
        EnvironmentFailure: The disk refuses.
    """
    if path is None and (sys.stdin is None or sys.stdin.isatty()):
        raise CorpusError(
            "the corpus is standard input, and nothing is piped into it",
            remedy="pipe text, JSON lines or Parquet in, as in: zcat texts.jsonl.gz | moescope usage --corpus -",
        )
    folder = TemporaryDirectory(prefix="moescope-")
    try:
        file = _kept(path, Path(folder.name))
        corpus = FilesCorpus(file, text_field=text_field, domain_field=domain_field, name=NAME)
    except BaseException:
        folder.cleanup()
        raise
    # Copies of the corpus hold it too: the folder goes when the last of them does.
    corpus.kept_in = folder
    return corpus


def _kept(path: Path | None, folder: Path) -> Path:
    try:
        if path is None:
            return _spool(sys.stdin.buffer, folder)
        with path.open("rb") as source:
            return _spool(source, folder)
    except OSError as error:
        raise EnvironmentFailure(
            f"the text piped in can't be kept in {folder}: {error}",
            remedy="make room, set TMPDIR to a folder that has some, or give a file",
        ) from error


def _spool(source: IO[bytes], folder: Path) -> Path:
    beginning = source.read(_CHUNK)
    if not beginning.strip():
        raise CorpusError("the corpus is standard input, and it is empty", remedy="pipe text into it")
    file = folder / f"{NAME}{_suffix(beginning)}"
    size = 0
    with file.open("wb") as kept:
        chunk = beginning
        while chunk:
            size += len(chunk)
            if size > MAX_BYTES:
                raise CorpusError(
                    f"more than {MAX_BYTES:,} bytes came from standard input",
                    remedy="write them to a file, and give that",
                )
            kept.write(chunk)
            chunk = source.read(_CHUNK)
    return file


def _suffix(beginning: bytes) -> str:
    """The ending that says what the bytes are."""
    for magic, ending in _MAGIC.items():
        if beginning.startswith(magic):
            return f".json{ending}" if _unpacked(beginning, ending).lstrip()[:1] in (b"{", b"[") else f".txt{ending}"
    if beginning.startswith(b"PAR1"):
        return ".parquet"
    start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    return ".json" if start[:1] in (b"{", b"[") else ".txt"


def _unpacked(data: bytes, ending: str) -> bytes:
    """The first bytes of compressed data; none where it is damaged."""
    import zlib

    import zstandard

    try:
        if ending == ".gz":
            return zlib.decompressobj(wbits=31).decompress(data, 100)
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            return reader.read(100)
    except (zlib.error, zstandard.ZstdError):
        return b""
