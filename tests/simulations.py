"""Corpora of known shares, lifts and effects: how often the intervals of measures hold the true value.

Documents have 20 to 150 tokens. A document's rate varies around the true share: light tails (beta distribution) or
lognormal ones; its tokens are drawn with that rate. Many corpora are drawn at once, as if they were experts or changes.
`python -m docs.make_coverage` makes the table of docs/metrics.md of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from moescope.measures import intervals
from moescope.measures.correlation import correlate_rows
from moescope.measures.intervals import DocumentSums

Floats = NDArray[np.float64]

TAILS = ("light", "lognormal")
SIGMA = 1.0
"""Of the logarithm of a document's rate or effect, lognormal."""
SPREAD = 0.4
"""Of a document's rate over the mean rate, light tails."""


@dataclass(frozen=True)
class Coverage:
    """Share of the corpora with an interval whose interval holds the true value, and share without an interval."""

    held: float
    refused: float
    num_corpora: int


def lengths(generator: np.random.Generator, *shape: int) -> Floats:
    """Tokens of documents."""
    return np.clip(np.exp(generator.normal(4.4, 0.5, shape)).round(), 20, 150)


def rates(generator: np.random.Generator, share: float, tails: str, *shape: int) -> tuple[Floats, float]:
    """Rates of documents, and their expectation."""
    if tails == "light":
        total = (1 - share) / (SPREAD**2 * share) - 1
        return generator.beta(share * total, (1 - share) * total, shape), share
    center = np.log(share) - SIGMA**2 / 2
    drawn = np.minimum(np.exp(generator.normal(center, SIGMA, shape)), 1.0)
    capped = norm.sf(-center / SIGMA)  # of rates cut to 1
    return drawn, float(share * norm.cdf(-center / SIGMA - SIGMA) + capped)


def sums_of(counts_BM: NDArray, tokens_BM: Floats) -> DocumentSums:
    """Sums over the documents of each of M corpora."""
    documents = np.full(counts_BM.shape[1:], len(counts_BM))
    return DocumentSums(
        counts_BM.sum(0),
        tokens_BM.sum(0),
        (counts_BM**2).sum(0),
        (counts_BM * tokens_BM).sum(0),
        (tokens_BM**2).sum(0),
        documents,
    )


def draw(
    generator: np.random.Generator, share: float, tails: str, num_documents: int, num_corpora: int
) -> tuple[DocumentSums, float]:
    """Sums over documents of one domain in each corpus, and the true share."""
    tokens_BM = lengths(generator, num_documents, num_corpora)
    rates_BM, true = rates(generator, share, tails, num_documents, num_corpora)
    return sums_of(generator.binomial(tokens_BM.astype(np.int64), rates_BM).astype(np.float64), tokens_BM), true


def coverage(low: Floats, high: Floats, true: float) -> Coverage:
    """Of intervals; NaN ends are none."""
    known = np.isfinite(low) & np.isfinite(high)
    held = ((low <= true) & (true <= high))[known]
    return Coverage(float(held.mean()) if held.size else float("nan"), float(1 - known.mean()), known.size)


def share_coverage(share: float, tails: str, num_documents: int, num_corpora: int, seed: int = 0) -> Coverage:
    """Of the interval of selection frequency and domain specialization."""
    sums, true = draw(np.random.default_rng([seed, num_documents]), share, tails, num_documents, num_corpora)
    low, high = intervals.share_interval(sums.share, sums.variance, sums.degrees, sums.effective)
    known = intervals.enough(sums.documents, sums.effective)
    return coverage(np.where(known, low, np.nan), np.where(known, high, np.nan), true)


def lift_coverage(
    share: float, tails: str, num_documents: int, num_corpora: int, *, factor: float = 3.0, seed: int = 0
) -> Coverage:
    """Of the interval of the lift in the first of five domains, whose share is `factor` times that of the others."""
    generator = np.random.default_rng([seed, num_documents])
    parts = [draw(generator, share * (factor if d == 0 else 1), tails, num_documents, num_corpora) for d in range(5)]
    fields = ("counts", "tokens", "count_squares", "products", "token_squares", "documents")
    sums = DocumentSums(**{name: np.stack([getattr(part, name) for part, _ in parts]) for name in fields})
    found, shares = intervals.lifts(sums), np.array([true for _, true in parts])
    known = intervals.enough(sums.documents, sums.effective)[0]
    low, high = (np.where(known, end[0], np.nan) for end in (found.low, found.high))
    return coverage(low, high, float(shares[0] / shares.mean()))


def lift_false_positives(share: float, tails: str, num_documents: int, num_corpora: int, level: float) -> float:
    """Share of corpora in which a lift that is 1 has a p-value below `level`."""
    generator = np.random.default_rng([7, num_documents])
    parts = [draw(generator, share, tails, num_documents, num_corpora)[0] for _ in range(5)]
    fields = ("counts", "tokens", "count_squares", "products", "token_squares", "documents")
    sums = DocumentSums(**{name: np.stack([getattr(part, name) for part in parts]) for name in fields})
    return float((intervals.lifts(sums).p_value[0] < level).mean())


def effect_coverage(kind: str, num_documents: int, num_corpora: int, *, seed: int = 0) -> Coverage:
    """Of the interval of an effect per token: normal, lognormal, a difference of lognormal ones, or of one in ten."""
    low, high = [], []
    true = {"light": 0.3, "lognormal": float(np.exp(SIGMA**2 / 2)), "both signs": 0.2, "one in ten": 0.1}[kind]
    num_batches = 10  # corpora of a batch have documents of the same lengths and weights
    for batch in range(num_batches):
        generator = np.random.default_rng([seed, num_documents, batch])
        tokens_G = lengths(generator, num_documents)
        shape = (num_documents, num_corpora // num_batches)
        normal, other = generator.normal(size=shape), generator.normal(size=shape)
        if kind == "light":
            per_token = 0.3 + normal
        elif kind == "one in ten":
            per_token = np.where(generator.random(shape) < 0.1, 1 + 0.3 * normal, 0.02 * other)
        else:
            per_token = np.exp(SIGMA * normal)
            per_token = 0.2 + per_token - np.exp(SIGMA * other) if kind == "both signs" else per_token
        weights_GR = generator.poisson(1, (num_documents, 400))
        found = intervals.effect_intervals(per_token * tokens_G[:, None], tokens_G, weights_GR)
        low.append(found.low)
        high.append(found.high)
    return coverage(np.concatenate(low), np.concatenate(high), true)


def rank_correlation_held(common: float, seed: int, *, num_domains: int = 8, num_experts: int = 32) -> bool:
    """Whether the interval of a rank correlation within domains holds that of all experts.

    Two normal measures of correlation 1/2, of which the share `common` of the variance is an expert's in all domains.
    """
    generator = np.random.default_rng([seed, 3])
    correlation = 0.5

    def pair(*shape: int) -> Floats:
        first, second = generator.normal(size=(2, *shape))
        return np.stack([first, correlation * first + np.sqrt(1 - correlation**2) * second])

    experts_2E, cells_2DE = pair(num_experts), pair(num_domains, num_experts)
    first, second = np.sqrt(common) * experts_2E[:, None] + np.sqrt(1 - common) * cells_2DE
    found = correlate_rows(first, second, num_permutations=9, seed=seed)
    return bool(found.low <= 6 / np.pi * np.arcsin(correlation / 2) <= found.high)
