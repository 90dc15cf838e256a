"""Which documents are held out, and which are trained on; both by seed, neither by hand."""

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from training.corpus.deduplicate import KnownRuns
from training.corpus.document import Document
from training.corpus.domains import Domain

HELD_OUT_DOCUMENTS = 48
TRAINING_BYTES = 4_500_000
FURTHER_BYTES = 7_500_000
MAX_REPEATED_SHARE = 0.15
REPEAT_WINDOW = 64

BOUNDARIES = {
    "paragraph": (r"\n\n+(?=\S|   )", r"\n+(?=\S)"),
    "line": (r"\n+(?=\S)",),
    "definition": (
        r"\n\n+(?=[^\s})\]#*/])",
        r"\n\n+(?=(?: {4}|\t)(?:[a-z() ]*\b(?:def|fn|func)\b|\w+\(|@|/\*\*|///))",
        r"\n\n+(?=\S)",
        r"\n\n+",
    ),
}


class TooLittleTextError(RuntimeError):
    """A domain has too few documents that can be held out."""


def split(
    domain: Domain, documents: Sequence[Document], train_only: Sequence[Document], seed: int
) -> tuple[list[Document], list[Document]]:
    """Choose a domain's held-out documents and its training documents.

    Documents come in an order drawn by a hash of the seed and their key alone, so the pages of the four translations
    of one handbook come in the same order. From the front, those that can be cut to a passage and repeat little of
    the rest are held out; of the others, `TRAINING_BYTES` are trained on. Nothing else of a held-out document is used:
    what surrounds a passage is neither shipped nor trained on. Up to `FURTHER_BYTES` more are trained on, of documents
    that share no run of `REPEAT_WINDOW` characters with a passage, so what is held out repeats no more than before.

    Args:
        domain: What is split.
        documents: All its documents that may be redistributed, without exact duplicates.
        train_only: Further documents, used to fill up the training text.
        seed: Any integer.

    Returns:
        The held-out documents (cut to passages), and the training documents, each in its drawn order.

    Raises:
        TooLittleTextError: If fewer than `HELD_OUT_DOCUMENTS` qualify.
    """
    order = sorted(documents, key=lambda document: _draw(seed, document.key))
    candidates: list[tuple[Document, Document]] = []
    rest: list[Document] = []
    for document in order:
        passage = None
        if len(candidates) < 4 * HELD_OUT_DOCUMENTS:
            passage = cut_passage(document.text, domain, random.Random(_draw(seed, "passage " + document.key)))
        if passage is None:
            rest.append(document)
        else:
            candidates.append((document, replace(document, text=passage)))

    # A candidate is judged against everything else that could be trained on or held out.
    training = _take(rest, TRAINING_BYTES)
    further = rest[len(training) :]
    known = KnownRuns((document.text for document in training), REPEAT_WINDOW)
    held_out: list[Document] = []
    for document, passage in candidates:
        repeated = 1.0
        if len(held_out) < HELD_OUT_DOCUMENTS:
            earlier = KnownRuns((other.text for other in held_out), REPEAT_WINDOW)
            repeated = max(known.found_in(passage.text).mean(), earlier.found_in(passage.text).mean())
        if repeated <= MAX_REPEATED_SHARE:
            held_out.append(passage)
        else:
            training.append(document)
    if len(held_out) < HELD_OUT_DOCUMENTS:
        raise TooLittleTextError(f"{domain.name}: {len(held_out)} documents qualify, {HELD_OUT_DOCUMENTS} are needed")
    training.sort(key=lambda document: _draw(seed, document.key))
    training += sorted(train_only, key=lambda document: _draw(seed, document.key))
    taken = _take(training, TRAINING_BYTES)
    passages = KnownRuns((passage.text for passage in held_out), REPEAT_WINDOW)
    apart = (other for other in [*training[len(taken) :], *further] if not passages.found_in(other.text).any())
    return held_out, [*taken, *_take(apart, FURTHER_BYTES)]


def cut_passage(text: str, domain: Domain, rng: random.Random) -> str | None:
    """Cut a document down to a passage that begins and ends where a reader would, or return it whole if short.

    Returns:
        The passage, or None if the document is too short or has no fitting passage.
    """
    if len(text) < domain.shortest:
        return None
    if len(text) <= domain.passage:
        return text
    for boundary in BOUNDARIES[domain.boundary]:
        starts = [0, *(match.end() for match in re.finditer(boundary, text)), len(text)]
        for first in rng.sample(range(len(starts) - 1), len(starts) - 1):
            last = max(index for index, at in enumerate(starts) if at <= starts[first] + domain.passage)
            if starts[last] - starts[first] >= max(0.7 * domain.passage, domain.shortest):
                return text[starts[first] : starts[last]].strip("\n") + "\n"
    return None


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


def _take(documents: Iterable[Document], size: int) -> list[Document]:
    taken = []
    for document in documents:
        if size <= 0:
            break
        taken.append(document)
        size -= len(document.text.encode())
    return taken
