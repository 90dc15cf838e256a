"""Which documents of a trace are counted: all, or as many as give a number of tokens, split evenly over domains."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import hash_of
from moescope.traces.reading import Trace


class TraceSample:
    """Documents of a trace, as a `Sampler` is those of a corpus.

    Args:
        trace: The trace.
        num_tokens: Tokens to count, split evenly over the domains; None for all. The seed draws the documents, and of
            the last of each domain only the first tokens are taken.
        seed: Draws the documents.

    Attributes:
        wanted: Most tokens to take of each document, by its hash; None for all.
        num_tokens_D: Tokens counted, by domain; final once the trace was replayed.
        num_documents_D: Documents they are from.
        window: Tokens taken of one document at most, where the trace says it.
        warnings: Where fewer tokens were had than asked for, in sentences.

    Raises:
        UsageError: A number that makes no sense, or a trace that does not know its documents.
    """

    def __init__(self, trace: Trace, num_tokens: int | None, seed: int) -> None:
        self._trace, self._seed = trace, seed
        self.num_tokens_D, self.num_documents_D = trace.num_counted_D, trace.num_documents_D
        self.window = trace.facts.sampling.get("window")
        self.warnings: list[str] = []
        self.wanted: dict[int, int] | None = None
        if "counts" in trace.columns:
            self.num_tokens_D[:] = [domain.num_tokens for domain in trace.facts.domains]
        if num_tokens is None or num_tokens >= trace.facts.num_tokens:
            if num_tokens is not None and num_tokens > trace.facts.num_tokens:
                self.warnings.append(
                    f"fewer tokens than asked, {trace.facts.num_tokens:,} of {num_tokens:,}: the trace holds no more"
                )
            return
        num_domains = len(trace.facts.domains)
        if num_tokens < num_domains:
            raise UsageError(
                f"`num_tokens={num_tokens}`, and the trace has {num_domains} domains",
                expected="at least one token for each domain",
            )
        if "document_id" not in trace.columns:
            raise UsageError(
                f"`num_tokens={num_tokens}`: the trace has no column document_id, and documents are what is drawn",
                remedy="leave it out: all tokens are counted",
            )
        self.wanted = self._drawn(trace, num_tokens, seed)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this sample from others, as plain values: of a recording of ours, what the model's run has."""
        facts = self._trace.facts
        sampling = {"num_tokens": facts.sampling.get("num_tokens"), "window": self.window}
        if self.wanted is None and None not in sampling.values() and len(facts.phases) == 1:
            corpus = [facts.corpus, facts.corpus_fingerprint, *(domain.name for domain in facts.domains)]
            return {"corpus": corpus, "seed": facts.seed, **sampling}
        drawn = None if self.wanted is None else sum(self.wanted.values())
        return {"trace": facts.sample_hash or facts.corpus, "num_tokens": drawn, "seed": self._seed}

    def _drawn(self, trace: Trace, num_tokens: int, seed: int) -> dict[int, int]:
        documents = trace.documents()
        hashes = documents["document_hash"].to_numpy()
        lengths = documents["num_tokens"].to_numpy()
        domains = np.array(documents["domain"].to_pylist(), dtype=object)
        order = np.argsort([hash_of(seed, document_hash) for document_hash in hashes.tolist()], kind="stable")
        names = [domain.name for domain in trace.facts.domains]
        wanted: dict[int, int] = {}
        for position, name in enumerate(names):
            left = num_tokens // len(names) + (position < num_tokens % len(names))
            for row in order[domains[order] == name].tolist():
                if left <= 0:
                    break
                taken = min(left, int(lengths[row]))
                wanted[int(hashes[row])] = taken
                left -= taken
            if left:
                self.warnings.append(f"fewer tokens of {name} than asked: the trace holds no more")
        return wanted
