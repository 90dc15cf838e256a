"""What every source of text is: ordered domains, and their documents in an order drawn by seed."""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Self

from moescope.corpora.document import Document
from moescope.corpora.names import labels_of, listed, shown
from moescope.corpora.problems import Problems
from moescope.errors import CorpusError, of_type, whole_number


class Corpus(ABC):
    """Documents in domains.

    Attributes:
        name: What to call it in captions; part of every document's hash, so stable between machines.
        domains: The domains in the corpus' order; a domain's index is its id.
        groups: Group of each domain (prose, reference, code, ...); empty where the corpus has none.
        notes: What a reader of the results should know about how the corpus was read, in sentences.
    """

    name: str
    domains: tuple[str, ...]
    groups: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: the source, its name and its domains."""
        count = f"{len(self.domains):,} domain{'' if len(self.domains) == 1 else 's'}"
        first = ", ".join(shown(domain) for domain in self.domains[:4])
        return (
            f"<{type(self).__name__} {shown(self.name)}: {count} ({first}{', ...' if len(self.domains) > 4 else ''})>"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """What tables call the domains: their names, but for one that is empty or called as all domains together."""
        return labels_of(self.domains)

    @property
    def label_groups(self) -> dict[str, str]:
        """Group of each domain, by label."""
        named = zip(self.labels, self.domains, strict=True)
        return {label: self.groups[name] for label, name in named if name in self.groups}

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Stable hash of what the corpus holds, of the form `kind:hex`; each source says what goes into it."""

    @abstractmethod
    def stream(self, seed: int, wanted: Container[str], problems: Problems) -> Iterator[Document]:
        """Yields documents of all wanted domains, each document once, in one pass over the source.

        Within a domain the order depends on the seed alone, whatever is wanted beside it.

        Args:
            seed: Draws the order.
            wanted: The domains to yield. Looked at anew for each document, so that a caller who has enough of a domain
                takes it out while the stream runs; a source may end when nothing is wanted.
            problems: Counts what was skipped or repaired.
        """

    def documents(self, domain: str, seed: int = 0) -> Iterator[Document]:
        """Yields the documents of one domain in the order that `seed` draws.

        Raises:
            CorpusError: There is no such domain.
        """
        if domain not in self.domains:
            raise CorpusError(f"corpus {self.name} has no domain {domain!r}", expected=f"one of {listed(self.domains)}")
        return self.stream(seed, {domain}, Problems())

    def first(self, num_domains: int) -> Self:
        """The same corpus with the first `num_domains` of its domains, and a note that says so.

        Raises:
            CorpusError: There are fewer, or `num_domains` is not positive; says which there are.
        """
        if not 1 <= whole_number(num_domains, "num_domains") <= len(self.domains):
            raise CorpusError(
                f"{num_domains} domains were asked for, and corpus {self.name} has {len(self.domains)}: "
                f"{listed(self.domains)}",
                expected=f"1 to {len(self.domains)} domains",
                remedy="ask for fewer, or leave the number out to take all",
            )
        if num_domains == len(self.domains):
            return self
        part = self.only(self.domains[:num_domains])
        part.notes = (
            *self.notes,
            f"the first {num_domains} of the {len(self.domains)} domains of {self.name} are used: "
            f"{listed(part.domains)}",
        )
        return part

    def only(self, domains: Sequence[str]) -> Self:
        """The same corpus with these of its domains, in this order.

        Raises:
            CorpusError: One of them does not exist, or none is given.
        """
        of_type(domains, (list, tuple), "domains", "a list of names")
        missing = [domain for domain in domains if domain not in self.domains]
        if missing or not domains:
            raise CorpusError(
                f"corpus {self.name} has no domain {listed(missing)}" if missing else "no domain was asked for",
                expected=f"some of {listed(self.domains)}",
            )
        part = copy.copy(self)
        part.domains = tuple(dict.fromkeys(domains))
        part.groups = {domain: group for domain, group in self.groups.items() if domain in part.domains}
        return part


def shuffled(documents: Iterable[Document], key: int, *, max_documents: int, max_characters: int) -> Iterator[Document]:
    """Yields documents through a bounded buffer, each time one drawn at random from it.

    A corpus that fits into the buffer comes in a uniformly random order; a larger one is mixed within the buffer's
    reach, and its far end is met only by those who read that far.

    Args:
        documents: Documents in the source's order.
        key: Seed of the draws.
        max_documents: Documents the buffer holds at most.
        max_characters: Characters of text it holds at most (or one document).
    """
    # Python's generator, unlike numpy's, promises the same draws in every version.
    draw = random.Random(key)
    buffer: list[Document] = []
    characters = 0

    def take() -> Document:
        position = draw.randrange(len(buffer))
        buffer[position], buffer[-1] = buffer[-1], buffer[position]
        return buffer.pop()

    for document in documents:
        buffer.append(document)
        characters += len(document.text)
        while len(buffer) > max_documents or (characters > max_characters and len(buffer) > 1):
            taken = take()
            characters -= len(taken.text)
            yield taken
    while buffer:
        yield take()


def in_turn(streams: Mapping[str, Iterator[Document]], wanted: Container[str]) -> Iterator[Document]:
    """Yields a document of each domain in turn, skipping domains that are not (or no longer) wanted."""
    open_streams = dict(streams)
    while True:
        found = False
        for domain in list(open_streams):
            if domain not in wanted:
                continue
            document = next(open_streams[domain], None)
            if document is None:
                del open_streams[domain]
                continue
            found = True
            yield document
        if not found:
            return
