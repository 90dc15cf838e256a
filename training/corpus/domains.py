"""The 22 domains in their order: group, licence, and how much of each is held out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.corpus import formal, languages, mathematics, programs, prose, reference
from training.corpus.document import Document

GROUPS = ("prose", "reference", "code", "formal", "languages")


@dataclass(frozen=True)
class Domain:
    """One of the kinds of text.

    Attributes:
        name: Its name, in snake_case.
        group: One of `GROUPS`.
        description: What it is, in one line.
        licence: The licence the held-out text is redistributed under.
        extract: Yields its documents from the folder of unpacked packages.
        passage: Characters a held-out document has at most; longer ones are cut to a passage.
        shortest: Characters a held-out document has at least.
        boundary: Where passages may begin and end: `paragraph`, `line`, or `definition` (a line at column 0).
        train_only: Yields further documents that may be trained on but not redistributed.
    """

    name: str
    group: str
    description: str
    licence: str
    extract: Callable[[Path], Iterator[Document]]
    passage: int
    shortest: int
    boundary: str = "paragraph"
    train_only: Callable[[Path], Iterator[Document]] | None = None


PUBLIC_DOMAIN = "public domain"
DOMAINS = (
    Domain("novels", "prose", "chapters of Jane Austen's novels", PUBLIC_DOMAIN, prose.novels, 1900, 900),
    Domain("drama", "prose", "scenes of Shakespeare's plays", PUBLIC_DOMAIN, prose.drama, 1750, 900),
    Domain("scripture", "prose", "chapters of the King James Bible", PUBLIC_DOMAIN, prose.scripture, 1900, 900, "line"),
    Domain("speeches", "prose", "annual messages of US presidents", PUBLIC_DOMAIN, prose.speeches, 2150, 900),
    Domain("wikipedia", "reference", "sections of English Wikipedia articles", "CC-BY-SA-3.0",
           reference.wikipedia, 2050, 900),
    Domain("factbook", "reference", "country sections of The World Factbook", PUBLIC_DOMAIN,
           reference.factbook, 1650, 700, "line"),
    Domain("biology", "reference", "definitions of the Gene Ontology", "CC-BY-4.0", reference.biology, 2250, 900),
    Domain("licences", "reference", "permissive software licences", "CC-BY-4.0", reference.licences, 2600, 800,
           train_only=reference.other_licences),
    Domain("jargon", "reference", "entries of the Jargon File", PUBLIC_DOMAIN, reference.jargon, 2000, 1000,
           train_only=reference.computing_dictionary),
    Domain("python", "code", "CPython's standard library", "PSF-2.0", programs.python, 1950, 700, "definition"),
    Domain("javascript", "code", "the three.js library", "MIT", programs.javascript, 1600, 700, "definition"),
    Domain("c", "code", "PostgreSQL's C sources", "PostgreSQL", programs.c, 1650, 700, "definition"),
    Domain("go", "code", "Go's standard library and compiler", "BSD-3-Clause", programs.go, 1600, 700, "definition"),
    Domain("rust", "code", "Rust's compiler and standard library", "MIT OR Apache-2.0", programs.rust, 1900, 700,
           "definition"),
    Domain("sql", "code", "PostgreSQL's SQL scripts and regression tests", "PostgreSQL", programs.sql, 1700, 700),
    Domain("mathematics", "formal", "generated questions and answers of school mathematics", "Apache-2.0",
           mathematics.mathematics, 1300, 500),
    Domain("proofs", "formal", "theorems and proofs of Metamath's set.mm", "CC0-1.0", formal.proofs, 1300, 600),
    Domain("molecules", "formal", "drug-like molecules in SMILES notation", "MIT", formal.molecules, 1020, 400, "line"),
    Domain("german", "languages", "LibreOffice's help in German", "MPL-2.0", languages.german, 2050, 700, "line"),
    Domain("french", "languages", "LibreOffice's help in French", "MPL-2.0", languages.french, 2150, 700, "line"),
    Domain("russian", "languages", "LibreOffice's help in Russian", "MPL-2.0", languages.russian, 1850, 700, "line"),
    Domain("chinese", "languages", "LibreOffice's help in Chinese", "MPL-2.0", languages.chinese, 950, 320, "line"),
)  # fmt: skip
