"""A corpus out of a folder (its sub-folders are domains) or out of files whose records name their domain."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from moescope.corpora.base import Corpus, in_turn, shuffled
from moescope.corpora.document import Document, stable_hash
from moescope.corpora.folders import Walk, sub_folders
from moescope.corpora.names import listed, printable
from moescope.corpora.problems import Problems
from moescope.corpora.readers import FORMATS, field_names, is_plain, read_documents, read_records, suffix_of
from moescope.corpora.records import Fields, domains_of
from moescope.errors import CorpusError

# A corpus up to this size is put into one random order; of a larger one this much is mixed at a time.
BUFFER_DOCUMENTS = 10_000
BUFFER_CHARACTERS = 2**25

# Records looked at to find out which domains there are, and how many there may be.
DISCOVERY_RECORDS = 1_000_000
MAX_DOMAINS = 100_000

# Files up to this size are hashed whole; of larger ones this much of the beginning, the middle and the end.
WHOLE_BYTES = 2**24
SAMPLE_BYTES = 2**20


class FilesCorpus(Corpus):
    """Files on this machine, in any of the forms that `moescope.corpora.readers` knows.

    Without a domain field, a folder's sub-folders are its domains, in order of name, with all readable files below
    them; a folder without sub-folders, or a file, is one domain named after it. With a domain field, all files below
    the path are one collection and each record says its domain; the order is the most frequent first. What lies there
    and is not read is said in `notes`.

    The fingerprint covers each file's relative name, size and content; of a file over 16 MiB it takes three samples of
    1 MiB (beginning, middle, end) instead of the whole.

    Args:
        path: A folder or a file; or the paths of each domain by name.
        text_field: Field of a record that holds the text or a conversation; None for `text` or else `messages`.
        domain_field: Field that holds the domain; dots go into nested records. None: sub-folders are domains.
        name: What to call the corpus; None: as the file or folder is called.

    Raises:
        CorpusError: There is nothing to read, or not the fields asked for.
        UsageError: A field is no name.
    """

    def __init__(
        self,
        path: str | Path | Mapping[str, Sequence[Path]],
        *,
        text_field: str | None = None,
        domain_field: str | None = None,
        name: str | None = None,
    ) -> None:
        self.groups = {}
        # Where the files lie only as long as the corpus and its copies do.
        self.kept_in: TemporaryDirectory[str] | None = None
        self.fields = Fields.of(text_field, domain_field)
        if isinstance(path, Mapping):
            given = {domain: [one.resolve() for one in paths] for domain, paths in path.items()}
            folders = [str(one.parent) for paths in given.values() for one in paths]
            self._root = self.path = Path(os.path.commonpath(folders))
        else:
            given = None
            self.path = Path(path).resolve()
            self._root = self.path if self.path.is_dir() else self.path.parent
        self.name = name or bare_name(self.path)
        walk = Walk(self._root)
        notes: list[str] = []
        if given is not None:
            self._files = {
                domain: [file for one in paths for file in walk.files_below(one)] for domain, paths in given.items()
            }
        elif domain_field is None:
            self._files = self._by_folder(walk, notes)
        else:
            self._files = {"": walk.files_below(self.path)}
        notes += walk.notes(self.name)
        self._check_there_are_files(walk)
        if domain_field is None:
            self.domains = tuple(self._files)
        else:
            self.domains = tuple(self._find_domains(notes))
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
        with_fields = [path for path in self._all_files() if not is_plain(path)]
        for document in self._mixed(with_fields, seed, problems):
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
        if all(is_plain(path) for path in files):
            return documents
        return shuffled(
            documents,
            stable_hash(seed, self.name, domain),
            max_documents=BUFFER_DOCUMENTS // share + 1,
            max_characters=BUFFER_CHARACTERS // share + 1,
        )

    def _name_of(self, path: Path) -> str:
        return printable(path.relative_to(self._root).as_posix())

    def _all_files(self) -> list[Path]:
        return [path for files in self._files.values() for path in files]

    def _by_folder(self, walk: Walk, notes: list[str]) -> dict[str, list[Path]]:
        """The files of each sub-folder that has some, by its name; all of them under the folder's own if none has."""
        domains: dict[str, list[Path]] = {}
        without: list[str] = []
        for folder in sub_folders(self.path) if self.path.is_dir() else ():
            # A folder that is lost as a whole is named, with what it holds.
            below = Walk(self._root)
            if files := below.files_below(folder):
                domains.setdefault(printable(folder.name), []).extend(files)
            else:
                without.append(f"{printable(folder.name)} ({below.summary()})")
            walk.kinds += below.kinds
            walk.passed += below.passed
            walk.outside += below.outside
        if without:
            notes.append(f"sub-folders of {self.name} without a file that is read: {listed(without)}")
        beside = walk.files_below(self.path, deep=False)
        if not domains:
            return {self.name: beside}
        if beside:
            named = listed([printable(path.name) for path in beside])
            notes.append(f"{len(beside):,} files beside the sub-folders of {self.name} belong to no domain: {named}")
        return domains

    def _check_there_are_files(self, walk: Walk) -> None:
        lost = [domain for domain, files in self._files.items() if not files]
        if not lost:
            return
        what = "is not a file we can read" if self.path.is_file() else f"has no file we can read ({walk.summary()})"
        raise CorpusError(
            f"{printable(str(self.path))} {what}" + (f" for domain {listed(lost)}" if len(self._files) > 1 else ""),
            expected=f"files ending in {FORMATS}, in a sub-folder for each domain or beside each other",
            remedy="convert the text to one of these, or point to the folder above the domains",
        )

    def _check_there_is_text(self) -> None:
        """Reads up to the first document, of whatever domain."""
        problems = Problems()
        domain = None if self.fields.domain is not None else self.name
        for path in self._all_files():
            if domain is None and is_plain(path):
                continue
            documents = read_documents(path, self._name_of(path), self.fields, problems, seed=0, domain=domain)
            if next(documents, None) is not None:
                return
        fields = self._fields_there_are()
        raise CorpusError(
            f"{printable(str(self.path))} holds no text: {'; '.join(problems.messages()) or 'its files are empty'}",
            expected=f"text in the field {' or '.join(map(repr, self.fields.texts))} of each record, or .txt and .md "
            "files that are not empty",
            remedy=f"name the field that holds the text with --text-field; there are {listed(fields)}"
            if fields
            else "check the files",
        )

    def _fields_there_are(self) -> list[str]:
        return next((fields for path in self._all_files() if (fields := field_names(path, self._name_of(path)))), [])

    def _find_domains(self, notes: list[str]) -> list[str]:
        counts: Counter[str] = Counter()
        seen = 0
        plain = [self._name_of(path) for path in self._all_files() if is_plain(path)]
        if plain:
            notes.append(f"{len(plain):,} files of {self.name} have no fields, and so no domain: {listed(plain)}")
        for path in self._all_files():
            if is_plain(path):
                continue
            for _, record in read_records(path, self._name_of(path), Problems(), self.fields):
                counts.update(domains_of(record, self.fields))
                seen += 1
                if len(counts) > MAX_DOMAINS:
                    raise too_many_domains(self.name, self.fields, counts)
                if seen == DISCOVERY_RECORDS:
                    notes.append(f"the domains of {self.name} are those of its first {DISCOVERY_RECORDS:,} records")
                    return by_frequency(counts)
        if not counts:
            fields = self._fields_there_are()
            raise CorpusError(
                f"none of the {seen:,} records in {printable(str(self.path))} has a domain in the field "
                f"{self.fields.domain!r}",
                expected="a field whose value names the record's domain; dots go into nested records (meta.set_name)",
                remedy=f"name it with --domain-field; there are {listed(fields)}" if fields else None,
            )
        return by_frequency(counts)


def too_many_domains(name: str, fields: Fields, counts: Counter[str]) -> CorpusError:
    """The error for a domain field whose values are no domains."""
    return CorpusError(
        f"the field {fields.domain!r} of {name} has more than {MAX_DOMAINS:,} values, such as "
        f"{listed(by_frequency(counts)[:3])}",
        expected="a field that names a domain, with a few values",
        remedy="name another with --domain-field",
    )


def by_frequency(counts: Counter[str]) -> list[str]:
    """Names by count, the most frequent first, ties by name."""
    return sorted(counts, key=lambda name: (-counts[name], name))


def bare_name(path: Path) -> str:
    """What a folder, or a file without its suffix, is called."""
    suffix = None if path.is_dir() else suffix_of(path)
    name = path.name[: -len(suffix)] if suffix and len(path.name) > len(suffix) else path.name or "corpus"
    return printable(name)


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


def hash_records(records: Iterable[object], *options: str) -> str:
    """BLAKE2b hash of options and records."""
    digest = hashlib.blake2b("\0".join(options).encode(), digest_size=16)
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()
