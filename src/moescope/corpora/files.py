"""A corpus out of a folder (its sub-folders are domains) or out of files whose records name their domain."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from moescope.corpora.base import Corpus, in_turn, shuffled
from moescope.corpora.document import Document, stable_hash
from moescope.corpora.problems import Problems
from moescope.corpora.readers import SUFFIXES, Fields, domain_of, read_documents, read_records, suffix_of
from moescope.errors import CorpusError

# A corpus up to this size is put into one random order; of a larger one this much is mixed at a time.
BUFFER_DOCUMENTS = 10_000
BUFFER_CHARACTERS = 2**25

# Records looked at to find out which domains there are.
DISCOVERY_RECORDS = 1_000_000

# Files up to this size are hashed whole; of larger ones this much of the beginning, the middle and the end.
WHOLE_BYTES = 2**24
SAMPLE_BYTES = 2**20


class FilesCorpus(Corpus):
    """Text files, JSON lines and Parquet files on this machine.

    Without a domain field, a folder's sub-folders are its domains, in order of name, with all readable files below
    them; a folder without sub-folders, or a file, is one domain named after it. With a domain field, all files below
    the path are one collection and each record says its domain; the order is the most frequent first.

    The fingerprint covers each file's relative name, size and content; of a file over 16 MiB it takes three samples of
    1 MiB (beginning, middle, end) instead of the whole.

    Args:
        path: A folder or a file.
        text_field: Field of a record that holds the text.
        domain_field: Field that holds the domain; dots go into nested records. None: sub-folders are domains.

    Raises:
        CorpusError: There is nothing to read, or not the fields asked for.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        text_field: str = "text",
        domain_field: str | None = None,
    ) -> None:
        self.path = Path(path).resolve()
        self.name = _bare_name(self.path)
        self.groups = {}
        self.fields = Fields(text_field, domain_field)
        self._root = self.path if self.path.is_dir() else self.path.parent
        self._files = _files_by_folder(self.path) if domain_field is None else {"": _files_below(self.path)}
        self._check_there_are_files()
        notes: list[str] = []
        if domain_field is None:
            self.domains = tuple(self._files)
            left_out = len(_files_below(self.path)) - len(self._all_files())
            if left_out:
                notes.append(f"{left_out:,} files beside the sub-folders of {self.name} belong to no domain: left out")
        else:
            self.domains = tuple(self._find_domains(domain_field, notes))
        self.notes = tuple(notes)
        self._check_there_is_text()

    @cached_property
    def fingerprint(self) -> str:
        """`files:` and a BLAKE2b hash of names, sizes and contents (three samples of large files) and the fields."""
        files = {self._name_of(path): path for path in self._all_files()}
        return f"files:{hash_files(files, self.fields.text, str(self.fields.domain))}"

    def stream(self, seed: int, wanted: Container[str], problems: Problems) -> Iterator[Document]:
        """See `Corpus.stream`. A folder's domains come in turn; records of one collection come as they lie, mixed."""
        if self.fields.domain is None:
            streams = {
                domain: self._mixed(self._files[domain], seed, problems, domain, share=len(self.domains))
                for domain in self.domains
            }
            yield from in_turn(streams, wanted)
            return
        known = set(self.domains)
        for document in self._mixed(self._all_files(), seed, problems):
            if document.domain in known and document.domain in wanted:
                yield document

    def _mixed(
        self, files: Sequence[Path], seed: int, problems: Problems, domain: str | None = None, share: int = 1
    ) -> Iterator[Document]:
        named = sorted(((self._name_of(path), path) for path in files), key=lambda pair: stable_hash(seed, pair[0]))
        documents = (
            document
            for name, path in named
            for document in read_documents(path, name, self.fields, problems, seed=seed, domain=domain)
        )
        if all(suffix_of(path) == ".txt" for path in files):
            return documents
        return shuffled(
            documents,
            stable_hash(seed, self.name, domain),
            max_documents=BUFFER_DOCUMENTS // share + 1,
            max_characters=BUFFER_CHARACTERS // share + 1,
        )

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _all_files(self) -> list[Path]:
        return [path for files in self._files.values() for path in files]

    def _check_there_are_files(self) -> None:
        if self._all_files():
            return
        what = "is not a file we can read" if self.path.is_file() else "has no file we can read"
        raise CorpusError(
            f"{self.path} {what}",
            expected=f"files ending in {', '.join(SUFFIXES)}, in a sub-folder for each domain or beside each other",
            remedy="convert the text to one of these, or point to the folder above the domains",
        )

    def _check_there_is_text(self) -> None:
        """Reads up to the first document, of whatever domain."""
        problems = Problems()
        for path in self._all_files():
            documents = read_documents(path, self._name_of(path), self.fields, problems, seed=0, domain=self.name)
            if next(documents, None) is not None:
                return
        fields = self._fields_there_are()
        raise CorpusError(
            f"{self.path} holds no text: {'; '.join(problems.messages()) or 'its files are empty'}",
            expected=f"text in the field {self.fields.text!r} of each record, or .txt files that are not empty",
            remedy=f"name the field that holds the text with --text-field; there are {', '.join(fields)}"
            if fields
            else "check the files",
        )

    def _fields_there_are(self) -> list[str]:
        import pyarrow.parquet as pq

        for path in self._all_files():
            if suffix_of(path) == ".parquet":
                return list(pq.read_schema(path).names)
            if suffix_of(path) != ".txt":
                for _, record in read_records(path, self._name_of(path), Problems()):
                    return list(record)
        return []

    def _find_domains(self, field: str, notes: list[str]) -> list[str]:
        counts: Counter[str] = Counter()
        seen = 0
        for path in self._all_files():
            if suffix_of(path) == ".txt":
                continue
            for _, record in read_records(path, self._name_of(path), Problems(), domain=field):
                domain = domain_of(record, field)
                if domain is not None:
                    counts[domain] += 1
                seen += 1
                if seen == DISCOVERY_RECORDS:
                    notes.append(f"the domains of {self.name} are those of its first {DISCOVERY_RECORDS:,} records")
                    return by_frequency(counts)
        if not counts:
            fields = self._fields_there_are()
            raise CorpusError(
                f"none of the {seen:,} records in {self.path} has a domain in the field {field!r}",
                expected="a field whose value names the record's domain; dots go into nested records (meta.set_name)",
                remedy=f"name it with --domain-field; there are {', '.join(fields)}" if fields else None,
            )
        return by_frequency(counts)


def by_frequency(counts: Counter[str]) -> list[str]:
    """Names by count, the most frequent first, ties by name."""
    return sorted(counts, key=lambda name: (-counts[name], name))


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise CorpusError(f"{folder} cannot be read: {error}", remedy="check its permissions") from error
    yield from sorted(visible, key=lambda entry: entry.name)


def _sub_folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _visible(folder) if entry.is_dir()]


def _files_in(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _visible(folder) if entry.is_file() and suffix_of(Path(entry.path))]


def _files_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if suffix_of(path) else []
    files = _files_in(path)
    for folder in _sub_folders(path):
        files += _files_below(folder)
    return files


def _files_by_folder(path: Path) -> dict[str, list[Path]]:
    if path.is_dir():
        domains = {folder.name: files for folder in _sub_folders(path) if (files := _files_below(folder))}
        if domains:
            return domains
    return {_bare_name(path): _files_below(path)}


def _bare_name(path: Path) -> str:
    suffix = None if path.is_dir() else suffix_of(path)
    return path.name[: -len(suffix)] if suffix and len(path.name) > len(suffix) else path.name or "corpus"


def hash_files(files: Mapping[str, Path], *options: str) -> str:
    """BLAKE2b hash of options and, for each file by name, its name, its size and its content or samples of it."""
    digest = hashlib.blake2b("\0".join(options).encode(), digest_size=16)
    for name, path in sorted(files.items()):
        size = path.stat().st_size
        digest.update(f"\0{name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read())
                continue
            for start in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
