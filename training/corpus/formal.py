"""Extractors of formal notation: proofs and molecules. Mathematics is generated, see mathematics.py."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from training.corpus.document import Document, clean, dedent, slug, unique_name
from training.corpus.sources import BY_NAME

MOLECULES_PER_DOCUMENT = 40
PROOF_CHARACTERS = 3200

# A heading of set.mm: a comment that begins with its title between two rules, one rule per level of heading.
HEADING = re.compile(
    r"^\$\(\n(?P<rule>#\*#\*|=-=-|-\.-\.)\S+\n(?P<title>.*?)\n(?P=rule)\S+\n.*?\$\)\n", re.MULTILINE | re.DOTALL
)


def proofs(unpacked: Path) -> Iterator[Document]:
    """Metamath's set.mm: groups of neighbouring theorems of one section, with their proofs."""
    package = BY_NAME["metamath-databases"]
    database = (unpacked / package.folder / "usr/share/metamath/databases/set.mm").read_text("ascii")
    starts = list(HEADING.finditer(database))
    used: set[str] = set()
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        title = " ".join(start.group("title").split())
        body = database[start.end() : end.start() if end else len(database)]
        name = unique_name(slug(title)[:60].strip("-"), used)
        for part, group in enumerate(theorem_groups(body), start=1):
            yield Document(f"{name}/group-{part:03}", clean(group), f"{package.label}: set.mm, {title}")


def theorem_groups(body: str) -> Iterator[str]:
    """Cut a section between theorems into groups of about `PROOF_CHARACTERS`; a scope `${ ... $}` stays whole."""
    group: list[str] = []
    depth = 0
    for paragraph in re.split(r"\n\n+", body):
        group.append(paragraph)
        depth += len(re.findall(r"(?<!\S)\$\{", paragraph)) - len(re.findall(r"(?<!\S)\$\}", paragraph))
        size = sum(map(len, group))
        # A comment may hold the sign of a scope; past three times the size the group ends all the same.
        if size >= (PROOF_CHARACTERS if depth <= 0 else 3 * PROOF_CHARACTERS):
            yield dedent("\n\n".join(group))
            group, depth = [], 0
    if sum(map(len, group)) > 400:
        yield dedent("\n\n".join(group))


def molecules(unpacked: Path) -> Iterator[Document]:
    """SMILES of drug-like molecules, a batch a document, one molecule a line."""
    package = BY_NAME["molsets"]
    path = unpacked / package.folder / "moses/dataset/data/train.csv.gz"
    with gzip.open(path, "rt", encoding="ascii") as file:
        smiles = [line.split(",")[0].strip() for line in file][1:]
    # One in ten is far more than is needed; taking every tenth keeps the variety of the whole file.
    smiles = smiles[::10]
    for batch, first in enumerate(range(0, len(smiles) - MOLECULES_PER_DOCUMENT, MOLECULES_PER_DOCUMENT)):
        lines = "\n".join(smiles[first : first + MOLECULES_PER_DOCUMENT])
        yield Document(f"batch-{batch:05}", clean(lines), f"{package.label}: MOSES training set")
