"""A corpus out of a Hugging Face dataset, streamed: nothing but what is read is downloaded."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.corpora.base import Corpus, shuffled
from moescope.corpora.document import Document, stable_hash
from moescope.corpora.files import by_frequency, hash_files, hash_records
from moescope.corpora.names import listed
from moescope.corpora.problems import Problems
from moescope.corpora.records import Fields, domains_of, to_documents
from moescope.errors import CorpusError, EnvironmentFailure

if TYPE_CHECKING:
    from datasets import IterableDataset

BUFFER_DOCUMENTS = 1_000
BUFFER_CHARACTERS = 2**23

# Records looked at to find out which domains there are, and records read in vain before a stream is left.
DISCOVERY_RECORDS = 10_000
PATIENCE_RECORDS = 1_000_000

# Records of a dataset that was given open that its fingerprint covers.
SAMPLED_RECORDS = 1_000

# Ids that are remembered to tell copies: 10 MB of them.
REMEMBERED_DOCUMENTS = 100_000

# Files of a dataset that are read in turn.
OPEN_FILES = 4

# Where a dataset has several parts and none is named.
SPLITS = ("validation", "test", "train")


class HuggingFaceCorpus(Corpus):
    """A dataset as `datasets.load_dataset` opens it, streamed.

    All domains are read in one pass. The order of the dataset's files and of the records within a bounded buffer is
    drawn by seed. A document's id is a hash of its text, and of copies of a text only the
    first is a document (as far as a hundred thousand ids can be remembered).

    The fingerprint covers the dataset's name, configuration, part, commit and the fields read; for files of this
    machine also their content.

    Args:
        path: A repository on the hub (`owner/name`), a folder of data files, or a builder (`parquet`, `json`).
        text_field: Field of a record that holds the text.
        domain_field: Field that holds the domain; dots go into nested records. None: one domain, the dataset's name.
        domains: The domains to use, in this order; None for those found in the first 10,000 records.
        config: The dataset's configuration.
        split: The part to read; None: validation, test or train, the first there is.
        revision: Commit, tag or branch.
        data_files: Files for a builder.
        name: What to call the corpus; None: the last part of `path`.
        dataset: A dataset that is open already; `path` is then only what to call it.

    Raises:
        CorpusError: No such dataset, configuration, part or field, or no network; says how to use a local copy.
    """

    def __init__(
        self,
        path: str,
        *,
        text_field: str | None = None,
        domain_field: str | None = None,
        domains: Sequence[str] | None = None,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        data_files: str | Sequence[str] | None = None,
        name: str | None = None,
        dataset: IterableDataset | None = None,
    ) -> None:
        self.path = path
        self.name = name or path.rstrip("/").rsplit("/", 1)[-1]
        self.groups = {}
        self.fields = Fields.of(text_field, domain_field)
        self.config = config
        self.data_files = [data_files] if isinstance(data_files, str) else list(data_files or [])
        self._given = dataset is not None
        on_hub = not self._given and not self.data_files and not Path(path).exists()
        self.revision = self._commit(revision) if on_hub else revision
        self._dataset, self.split = (dataset, split or "") if dataset is not None else self._open(split)
        notes: list[str] = []
        if split is None and not self._given:
            notes.append(f"of the dataset {path} the part {self.split!r} is read")
        if domains is not None:
            self.domains = tuple(domains)
        elif domain_field is None:
            self.domains = (self.name,)
        else:
            self.domains = self._find_domains()
            notes.append(
                f"the domains of {self.name} are those of its first {DISCOVERY_RECORDS:,} records, most frequent first"
            )
        self.notes = tuple(notes)
        self._check_there_is_text()

    @cached_property
    def fingerprint(self) -> str:
        """`huggingface:` and a BLAKE2b hash of name, configuration, part, commit, fields and local files.

        Of a dataset that was given open, of its name, the fields and its first 1,000 records.
        """
        if self._given:
            first = (dict(record) for record in self._records(self._dataset.take(SAMPLED_RECORDS)))
            return f"huggingface:{hash_records(first, self.name, self.fields.text, str(self.fields.domain))}"
        local = {Path(path).name: Path(path) for path in self.data_files if Path(path).is_file()}
        if Path(self.path).is_dir():
            below = (path for path in Path(self.path).rglob("*") if path.is_file() and ".cache" not in path.parts)
            local |= {path.relative_to(self.path).as_posix(): path for path in below}
        contents = hash_files(local) if local else ""
        source = self.name if local else [self.path, *self.data_files]
        facts = [source, self.config, self.split, self.revision, self.fields.text, self.fields.domain, contents]
        return f"huggingface:{hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()}"

    def stream(self, seed: int, wanted: Container[str], problems: Problems) -> Iterator[Document]:
        """See `Corpus.stream`. Left after a million records without a document of a domain still wanted."""
        known = set(self.domains)
        seen: set[str] = set()
        in_vain = 0
        documents = shuffled(
            self._documents(self._needed(self._dataset), seed, problems),
            stable_hash(seed, self.name),
            max_documents=BUFFER_DOCUMENTS,
            max_characters=BUFFER_CHARACTERS,
        )
        for document in documents:
            if document.domain not in known:
                problems.add("other_domain", document.domain)
            elif document.document_id in seen:
                problems.add("copy", document.document_id)
            elif document.domain in wanted:
                in_vain = 0
                if len(seen) < REMEMBERED_DOCUMENTS:
                    seen.add(document.document_id)
                yield document
                continue
            in_vain += 1
            if in_vain == PATIENCE_RECORDS:
                problems.add("gave_up", self.path)
                return

    def _needed(self, dataset: IterableDataset) -> IterableDataset:
        """Without the columns that no one looks at (images would be decoded), where the columns are known."""
        if not dataset.column_names:
            return dataset
        wanted = self.fields.columns | {"url"}
        return dataset.select_columns([column for column in dataset.column_names if column in wanted])

    def _documents(self, dataset: IterableDataset, seed: int, problems: Problems) -> Iterator[Document]:
        for number, record in enumerate(self._records(_interleaved(dataset, stable_hash(seed, self.name, "files")))):
            address = record.get("url")
            yield from to_documents(
                record,
                self.fields,
                problems,
                place=f"record {number}",
                domain=self.name if self.fields.domain is None else None,
                source=address if isinstance(address, str) else f"{self.path}/{self.split}".rstrip("/"),
            )

    def _records(self, dataset: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        try:
            yield from dataset
        except (ConnectionError, TimeoutError) as error:
            raise EnvironmentFailure(
                f"the connection to dataset {self.path} broke: {error}",
                remedy=f"try again, or {self._local_copy()}",
            ) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "aiohttp"):
                raise EnvironmentFailure(
                    f"the connection to dataset {self.path} broke: {error}",
                    remedy=f"try again, or {self._local_copy()}",
                ) from error
            raise CorpusError(
                f"dataset {self.path} cannot be read: {error}",
                expected="records that the datasets library can read",
                remedy=f"{self._local_copy()}; there, broken lines are skipped and counted",
            ) from error

    def _find_domains(self) -> tuple[str, ...]:
        counts: Counter[str] = Counter()
        for record in self._records(self._dataset.take(DISCOVERY_RECORDS)):
            counts.update(domains_of(record, self.fields))
        if not counts:
            raise CorpusError(
                f"no record of {self.path} has a domain in the field {self.fields.domain!r}",
                expected="a field whose value names the record's domain; dots go into nested records (meta.set_name)",
                remedy=f"name it with --domain-field; there are {listed(self._columns())}",
            )
        return tuple(by_frequency(counts))

    def _check_there_is_text(self) -> None:
        problems = Problems()
        fields = Fields(self.fields.texts)
        for number, record in enumerate(self._records(self._dataset.take(DISCOVERY_RECORDS))):
            if any(to_documents(record, fields, problems, place=f"record {number}", domain=self.name)):
                return
        raise CorpusError(
            f"dataset {self.path} holds no text: {'; '.join(problems.messages()) or 'it is empty'}",
            expected=f"text in the field {' or '.join(map(repr, self.fields.texts))} of each record",
            remedy=f"name the field that holds the text with --text-field; there are {listed(self._columns())}",
        )

    def _columns(self) -> list[str]:
        return self._dataset.column_names or list(next(self._records(self._dataset), {}))

    def _local_copy(self) -> str:
        if self._given:
            return "save it to files (dataset.to_parquet, dataset.save_to_disk) and give their path"
        fields = f" --text-field {self.fields.text}"
        if self.fields.domain is not None:
            fields += f" --domain-field {self.fields.domain}"
        return (
            f"download it where there is a network (hf download --repo-type dataset {self.path} --local-dir FOLDER), "
            f"copy the folder here and give it as the corpus: --corpus FOLDER{fields}"
        )

    def _commit(self, revision: str | None) -> str:
        """Asks the hub for the commit: quick, pins the run, and tells a wrong name from a missing network."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            return HfApi().dataset_info(self.path, revision=revision, timeout=20).sha or revision or "unknown"
        except GatedRepoError as error:
            raise CorpusError(
                f"dataset {self.path} is on the hub, and access to it must be granted",
                remedy=f"accept its terms on its page, then `hf auth login`; or {self._local_copy()}",
            ) from error
        except RevisionNotFoundError as error:
            raise CorpusError(f"dataset {self.path} has no revision {revision!r}") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise CorpusError(
                f"{self.path!r} is no file or folder here and no dataset on the Hugging Face hub",
                expected="`embedded`, a preset, a file, a folder, or a dataset of the hub (owner/name)",
                remedy="check the spelling; a private dataset needs `hf auth login`",
            ) from error
        except Exception as error:
            raise CorpusError(
                f"{self.path!r} is no file or folder here, and the Hugging Face hub cannot be reached: {error}",
                expected="a network, or a local copy",
                remedy=self._local_copy(),
            ) from error

    def _open(self, split: str | None) -> tuple[IterableDataset, str]:
        import datasets

        try:
            parts = datasets.load_dataset(
                self.path,
                self.config,
                revision=self.revision,
                data_files=self.data_files or None,
                streaming=True,
            )
        except Exception as error:
            available = re.search(r"Available: (\[.*\])|available configs: (\[.*\])", str(error))
            raise CorpusError(
                f"dataset {self.path} cannot be opened: {error}",
                expected=f"one of its configurations: {available.group(1) or available.group(2)}"
                if available
                else "a dataset of data files (parquet, json, csv, text); loading scripts are no longer run",
                remedy=self._local_copy(),
            ) from error
        chosen = split or next((name for name in SPLITS if name in parts), next(iter(parts)))
        if chosen not in parts:
            raise CorpusError(
                f"dataset {self.path} has no part {chosen!r}", expected=f"one of {listed([*map(str, parts)])}"
            )
        return parts[chosen], str(chosen)


def _interleaved(dataset: IterableDataset, key: int) -> Iterator[Mapping[str, Any]]:
    """Records of the dataset's files, the files in an order drawn from `key`, a few of them in turn.

    `IterableDataset.shuffle` would do the same with a thread for each file, and wait five seconds for them to end.
    """
    order = list(range(dataset.num_shards))
    random.Random(key).shuffle(order)
    waiting = iter(order)
    streams: list[Iterator[Mapping[str, Any]]] = []
    while True:
        while len(streams) < OPEN_FILES and (index := next(waiting, None)) is not None:
            streams.append(iter(dataset.shard(num_shards=len(order), index=index)))
        if not streams:
            return
        for stream in list(streams):
            record = next(stream, None)
            if record is None:
                streams.remove(stream)
            else:
                yield record
