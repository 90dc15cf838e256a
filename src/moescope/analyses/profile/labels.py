"""A statistical label of each expert: the domains and token types that best separate its tokens from all others.

Selected on one half of the documents and evaluated on the other, so that a label that fits by chance has a balanced
accuracy of 0.5 in expectation. Everything here is counts over a sample of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from moescope.measures.constants import MIN_DOCUMENTS, MIN_EFFECTIVE_DOCUMENTS
from moescope.measures.resampling import poisson_weights
from moescope.measures.usage import ratio, replicate_range
from moescope.statistics.samples.tokens import SampledTokens

Rule = Literal["domains", "tokens", "either", "both"]

RULES: dict[Rule, str] = {
    "domains": "the document is of the domains named",
    "tokens": "the token is one of those named",
    "either": "the document is of the domains named, or the token is one of those named",
    "both": "the document is of the domains named, and the token is one of those named",
}
NOTE = (
    "A statistical label: the rule that best separates this expert's tokens from all others on one half of the "
    "documents, evaluated on the other. It names what is routed to the expert, not what the expert computes."
)
CHANCE = 0.5
"""Balanced accuracy of a label that has nothing to do with the expert."""
MOST_TOKENS = 10
MIN_COUNT = 5
"""Token types seen less often on the selection half can't be part of a label."""
NUM_REPLICATES = 400


@dataclass(frozen=True)
class Part:
    """One thing a label names.

    Attributes:
        name: A domain, a group of domains; empty for a token type.
        token_id: The token type; -1 for domains.
        lift: Share of its tokens that select the expert, over the share of all tokens; on the selection half.
        num_selected: Tokens of it that selected the expert; on the selection half.
        num_occurrences: Tokens of it; on the selection half.
    """

    name: str
    token_id: int
    lift: float
    num_selected: int
    num_occurrences: int


@dataclass(frozen=True)
class Score:
    """Balanced accuracy of a rule: the mean of its two rates over the tokens of one half.

    Attributes:
        balanced_accuracy: Mean of the share of the expert's tokens the rule holds for, and of the share of all other
            tokens it does not hold for. 0.5: chance; 1: perfect. NaN where there are no tokens of either kind.
        low: Lower end of the 95 % interval of a Poisson bootstrap over documents; NaN under 8 documents.
        high: Upper end.
        num_tokens: Tokens of the sample.
        num_selected: Those of them that selected the expert.
        num_documents: Documents that these are of.
        p_value: One-sided, of a balanced accuracy of 0.5 or less; NaN where the expert's tokens are of too few
            documents.
    """

    balanced_accuracy: float
    low: float
    high: float
    num_tokens: int
    num_selected: int
    num_documents: int
    p_value: float


@dataclass(frozen=True)
class Label:
    """What separates one expert's tokens from all others.

    Attributes:
        rule: Which of `RULES` was best on the selection half.
        domains: Indices of the domains named: one, or all of a group.
        domain: The domain or group; None where the corpus has but one domain or none told anything.
        tokens: Token types named, those of highest gain first.
        chosen: The rule's balanced accuracy on the selection half: optimistically biased.
        score: Its score on the other half.
    """

    rule: Rule
    domains: tuple[int, ...]
    domain: Part | None
    tokens: tuple[Part, ...]
    chosen: float
    score: Score


def labels(
    sample: SampledTokens, num_experts: int, domains: Sequence[str], groups: Mapping[str, str], *, seed: int = 0
) -> list[Label | None]:
    """The label of every expert of a layer; None where no token of the selection half is routed to it, or all are.

    The domain part is the domain, or the group of domains, and the token part up to ten token types, of largest gain in
    balanced accuracy `N_xe / N_e - (N_x - N_xe) / (N - N_e)` on half 0; of the four rules that can be made of the two,
    the best on half 0 is the label. `score` is of half 1.

    Args:
        sample: Tokens of one layer.
        num_experts: E.
        domains: Names of the domains.
        groups: Group of each domain; may be empty.
        seed: Chooses the bootstrap's weights.
    """
    selected_NE = sample.selected_NE(num_experts)
    selection_N, evaluation_N = sample.halves_N == 0, sample.halves_N == 1
    parts = _Parts.choose(sample, selection_N, selected_NE, domains, groups)
    holds = parts.holds(sample)
    chosen = {
        rule: _balanced_accuracy(holds_NE[selection_N], selected_NE[selection_N]) for rule, holds_NE in holds.items()
    }
    chosen_RE = np.stack([np.nan_to_num(chosen[rule], nan=0.0) for rule in get_args(Rule)])
    # Where two rules are equally good, the first: the plainer.
    best_E = chosen_RE.argmax(axis=0)
    stacked = np.stack([holds[rule] for rule in get_args(Rule)])
    best_NE = np.take_along_axis(stacked, best_E[None, None, :], axis=0)[0]
    scores = _scores(best_NE[evaluation_N], selected_NE[evaluation_N], sample.document_hashes_N[evaluation_N], seed)
    made: list[Label | None] = []
    for expert in range(num_experts):
        rule = get_args(Rule)[best_E[expert]]
        if np.isnan(chosen[rule][expert]) or not parts.any(expert):
            made.append(None)
            continue
        made.append(
            Label(
                rule=rule,
                domains=parts.domains_of(expert),
                domain=parts.domain(expert),
                tokens=parts.tokens(expert),
                chosen=float(chosen[rule][expert]),
                score=scores[expert],
            )
        )
    return made


@dataclass(frozen=True)
class _Parts:
    """What the labels of all experts of a layer may name. X: domains, then groups. U: token types seen often enough."""

    names: list[str]
    members_XD: NDArray[np.bool_]
    best_X: NDArray[np.int64]  # by expert; -1: none
    numbers_X: tuple[NDArray, NDArray, NDArray]  # (X, E) lift, (X, E) selected, (X,) occurrences
    type_ids_U: NDArray[np.int64]
    chosen_PE: NDArray[np.int64]  # places in U, -1: none
    numbers_U: tuple[NDArray, NDArray, NDArray]

    @classmethod
    def choose(
        cls,
        sample: SampledTokens,
        selection_N: NDArray[np.bool_],
        selected_NE: NDArray[np.bool_],
        domains: Sequence[str],
        groups: Mapping[str, str],
    ) -> _Parts:
        kinds = list(dict.fromkeys(groups[domain] for domain in domains if domain in groups))
        # A group of one domain, or of all, names nothing that its domain, or no name at all, would not.
        kinds = [kind for kind in kinds if 1 < sum(groups.get(domain) == kind for domain in domains) < len(domains)]
        members_XD = np.array(
            [*np.eye(len(domains), dtype=bool), *([groups.get(d) == kind for d in domains] for kind in kinds)]
        ).reshape(len(domains) + len(kinds), len(domains))
        selected_nE = selected_NE[selection_N]
        num_n, num_E = len(selected_nE), selected_nE.sum(axis=0)
        frequency_E = num_E / max(num_n, 1)

        counts_DE = _counts(sample.domain_ids_N[selection_N], selected_nE, len(domains))
        totals_D = np.bincount(sample.domain_ids_N[selection_N], minlength=len(domains))
        counts_XE, totals_X = members_XD.astype(np.int64) @ counts_DE, members_XD.astype(np.int64) @ totals_D
        gain_XE = _gain(counts_XE, totals_X, num_E, num_n)
        best_E = np.where(gain_XE.max(axis=0) > 0, gain_XE.argmax(axis=0), -1)

        type_ids_U, inverse_n, totals_U = np.unique(
            sample.token_ids_N[selection_N], return_inverse=True, return_counts=True
        )
        counts_UE = _counts(inverse_n, selected_nE, len(type_ids_U))
        often_U = totals_U >= MIN_COUNT
        type_ids_U, counts_UE, totals_U = type_ids_U[often_U], counts_UE[often_U], totals_U[often_U]
        gain_UE = _gain(counts_UE, totals_U, num_E, num_n)
        order_PE = np.argsort(-gain_UE, axis=0, kind="stable")[:MOST_TOKENS]
        chosen_PE = np.where(np.take_along_axis(gain_UE, order_PE, axis=0) > 0, order_PE, -1)
        return cls(
            names=[*domains, *kinds],
            members_XD=members_XD,
            best_X=best_E,
            numbers_X=(ratio(counts_XE, totals_X[:, None] * frequency_E), counts_XE, totals_X),
            type_ids_U=type_ids_U,
            chosen_PE=chosen_PE,
            numbers_U=(ratio(counts_UE, totals_U[:, None] * frequency_E), counts_UE, totals_U),
        )

    def holds(self, sample: SampledTokens) -> dict[Rule, NDArray[np.bool_]]:
        """For every token of the sample and every expert, whether each rule holds."""
        num_experts = len(self.best_X)
        members_DE = self.members_XD[self.best_X].T & (self.best_X >= 0)
        domain_NE = members_DE[sample.domain_ids_N]
        listed_UE = np.zeros((len(self.type_ids_U) + 1, num_experts), dtype=bool)  # the last row: any other type
        places_PE = np.where(self.chosen_PE >= 0, self.chosen_PE, len(self.type_ids_U))
        np.put_along_axis(listed_UE, places_PE, True, axis=0)
        listed_UE[-1] = False
        place_N = np.searchsorted(self.type_ids_U, sample.token_ids_N).clip(max=max(len(self.type_ids_U) - 1, 0))
        if len(self.type_ids_U):
            place_N = np.where(self.type_ids_U[place_N] == sample.token_ids_N, place_N, len(self.type_ids_U))
        token_NE = listed_UE[place_N]
        return {
            "domains": domain_NE,
            "tokens": token_NE,
            "either": domain_NE | token_NE,
            "both": domain_NE & token_NE,
        }

    def any(self, expert: int) -> bool:
        return bool(self.best_X[expert] >= 0 or (self.chosen_PE[:, expert] >= 0).any())

    def domains_of(self, expert: int) -> tuple[int, ...]:
        best = self.best_X[expert]
        return tuple(np.flatnonzero(self.members_XD[best]).tolist()) if best >= 0 else ()

    def domain(self, expert: int) -> Part | None:
        best = int(self.best_X[expert])
        if best < 0:
            return None
        lift_XE, counts_XE, totals_X = self.numbers_X
        return Part(
            self.names[best], -1, float(lift_XE[best, expert]), int(counts_XE[best, expert]), int(totals_X[best])
        )

    def tokens(self, expert: int) -> tuple[Part, ...]:
        lift_UE, counts_UE, totals_U = self.numbers_U
        return tuple(
            Part("", int(self.type_ids_U[u]), float(lift_UE[u, expert]), int(counts_UE[u, expert]), int(totals_U[u]))
            for u in self.chosen_PE[:, expert].tolist()
            if u >= 0
        )


def _counts(cells_n: NDArray[np.int64], selected_nE: NDArray[np.bool_], num_cells: int) -> NDArray[np.int64]:
    """Selections of each expert by cell, (cells, E)."""
    num_experts = selected_nE.shape[1]
    rows_A, experts_A = np.nonzero(selected_nE)
    flat = np.bincount(cells_n[rows_A] * num_experts + experts_A, minlength=num_cells * num_experts)
    return flat.reshape(num_cells, num_experts)


def _gain(counts_XE: NDArray, totals_X: NDArray, num_E: NDArray, num_tokens: int) -> NDArray[np.float64]:
    """What naming each thing adds to twice the balanced accuracy; -inf where an expert has no tokens, or all."""
    gain_XE = ratio(counts_XE, num_E) - ratio(totals_X[:, None] - counts_XE, num_tokens - num_E)
    return np.nan_to_num(gain_XE, nan=-np.inf)


def _balanced_accuracy(holds_nE: NDArray[np.bool_], selected_nE: NDArray[np.bool_]) -> NDArray[np.float64]:
    num_E = selected_nE.sum(axis=0)
    true_E = ratio((holds_nE & selected_nE).sum(axis=0), num_E)
    false_E = ratio((holds_nE & ~selected_nE).sum(axis=0), len(selected_nE) - num_E)
    return (true_E + 1 - false_E) / 2


def _scores(
    holds_nE: NDArray[np.bool_], selected_nE: NDArray[np.bool_], documents_n: NDArray[np.int64], seed: int
) -> list[Score]:
    num_tokens, num_experts = selected_nE.shape
    if not num_tokens:
        return [Score(np.nan, np.nan, np.nan, 0, 0, 0, np.nan)] * num_experts
    order_n = documents_n.argsort(kind="stable")
    hashes_B, starts_B = np.unique(documents_n[order_n], return_index=True)
    holds_nE, selected_nE = holds_nE[order_n], selected_nE[order_n]

    def by_document(values_nE: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.add.reduceat(values_nE.astype(np.int64), starts_B, axis=0).astype(np.float64)

    own_BE, other_BE = by_document(selected_nE), by_document(~selected_nE)
    true_BE, false_BE = by_document(holds_nE & selected_nE), by_document(holds_nE & ~selected_nE)
    weights_RB = poisson_weights(hashes_B, NUM_REPLICATES, seed=seed).T.astype(np.float64)

    def accuracy(weights_XB: NDArray[np.float64]) -> NDArray[np.float64]:
        true_XE, false_XE = weights_XB @ true_BE, weights_XB @ false_BE
        return (ratio(true_XE, weights_XB @ own_BE) + 1 - ratio(false_XE, weights_XB @ other_BE)) / 2

    value_E = accuracy(np.ones((1, len(hashes_B))))[0]
    low_E, high_E = replicate_range(accuracy(weights_RB))
    documents_E = (own_BE > 0).sum(axis=0)
    enough_E = documents_E >= MIN_DOCUMENTS
    low_E, high_E = np.where(enough_E, low_E, np.nan), np.where(enough_E, high_E, np.nan)
    p_E = _p_values(value_E, true_BE, own_BE, false_BE, other_BE)
    return [
        Score(float(value), float(low), float(high), num_tokens, int(own), int(documents), float(p_value))
        for value, low, high, own, documents, p_value in zip(
            value_E, low_E, high_E, selected_nE.sum(axis=0), documents_E, p_E, strict=True
        )
    ]


def _p_values(
    value_E: NDArray, true_BE: NDArray, own_BE: NDArray, false_BE: NDArray, other_BE: NDArray
) -> NDArray[np.float64]:
    """One-sided t tests of the balanced accuracy against 0.5, linearized over documents.

    Degrees of freedom are those of the documents that the expert's own tokens are of: few, for a rare expert.
    """
    own_E, other_E = own_BE.sum(axis=0), other_BE.sum(axis=0)
    true_E, false_E = ratio(true_BE.sum(axis=0), own_E), ratio(false_BE.sum(axis=0), other_E)
    influence_BE = (ratio(true_BE - true_E * own_BE, own_E) - ratio(false_BE - false_E * other_BE, other_E)) / 2
    documents_E = (own_BE > 0).sum(axis=0)
    effective_E = ratio(own_E**2, (own_BE**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        error_E = np.sqrt(documents_E / (documents_E - 1) * (influence_BE**2).sum(axis=0))
        p_E = student.sf((value_E - CHANCE) / error_E, effective_E - 1)
    enough_E = (documents_E >= MIN_DOCUMENTS) & (effective_E >= MIN_EFFECTIVE_DOCUMENTS)
    known_E: NDArray[np.float64] = np.where(enough_E, p_E, np.nan)
    return known_E
