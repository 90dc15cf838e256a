"""The experts that the atlas names: chosen on one half of the documents by estimate, ablated for real on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moescope.interventions.document_effects import EFFECTIVE, INTERVAL, P_VALUE, Documents, Means, domain_means
from moescope.statistics.variables import Variable, variable

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TOP_EXPERTS = 3
"""Experts named for each domain."""
NATS = "nats per token"
_ENDS = ("", "_ci_low", "_ci_high")


@dataclass(frozen=True)
class Named:
    """One expert named for one domain.

    Attributes:
        domain_id: Index of the domain.
        rank: From 0.
        cell: Layer and expert, as index into the flattened (L, E).
    """

    domain_id: int
    rank: int
    cell: int


def named_experts(selection: Means) -> list[Named]:
    """For each domain the experts with the largest effect on the selection half, `TOP_EXPERTS` of them.

    By the lower end of the interval; by the effect where there are too few documents for intervals.

    Args:
        selection: Effects on the selection half, a column for each cell.
    """
    named = []
    for domain_id, (low_X, mean_X) in enumerate(zip(selection.low_DP[1:], selection.mean_DP[1:], strict=True)):
        score_X = low_X if np.isfinite(low_X).any() else mean_X
        order = np.argsort(-np.nan_to_num(score_X, nan=-np.inf), kind="stable")[:TOP_EXPERTS]
        named += [Named(domain_id, rank, int(cell)) for rank, cell in enumerate(order) if np.isfinite(score_X[cell])]
    return named


@dataclass(frozen=True)
class Measurements:
    """The named experts' effects by document, estimated and measured.

    Attributes:
        selection: The effects of all cells on the selection half, from which the experts were chosen.
        named: The experts, for each domain.
        cells_P: Each of them once.
        everywhere_G: Documents of the evaluation half on which those of rank 0 were measured, whatever their domain.
        estimates_GP: The gradient's estimates, nats summed over a document.
        effects_GP: The measured effects; NaN in documents that an expert was not ablated on.
    """

    selection: Means
    named: list[Named]
    cells_P: list[int]
    everywhere_G: Mask
    estimates_GP: Floats
    effects_GP: Floats


def documents_of(named: Sequence[Named], documents: Documents, evaluation_G: Mask, everywhere_G: Mask) -> Mask:
    """Documents that each of the named experts is ablated on, (G, number of distinct ones).

    Those of its own domains in the evaluation half; of rank 0 for some domain also `everywhere_G`.
    """
    cells = distinct(named)
    within_GP = np.zeros((len(documents.hashes_G), len(cells)), dtype=bool)
    for expert in named:
        column = cells.index(expert.cell)
        within_GP[:, column] |= evaluation_G & (documents.domain_ids_G == expert.domain_id)
        if not expert.rank:
            within_GP[:, column] |= everywhere_G
    return within_GP


def distinct(named: Sequence[Named]) -> list[int]:
    """The cells named, each once, ascending."""
    return sorted({expert.cell for expert in named})


@dataclass(frozen=True)
class _Row:
    """One named expert on one domain; domain 0 is all, d + 1 domain d."""

    domain: int
    rank: int
    cell: int
    num_tokens: int
    num_documents: int
    measured: tuple[float, float, float]
    estimate: tuple[float, float, float]
    p_value: float
    effective: float


def measured_variables(
    found: Measurements, documents: Documents, evaluation_G: Mask, num_domains: int, num_experts: int, *, seed: int
) -> dict[str, Variable]:
    """By `measurement`: Δ loss of a named expert on a domain, measured and estimated on the same documents.

    Every expert named for a domain, on all its documents of the evaluation half. Those of rank 0 also on every other
    domain and on all, on fewer documents.
    """
    rows: list[_Row] = []
    first_P = sorted({found.cells_P.index(expert.cell) for expert in found.named if not expert.rank})
    for domain in range(num_domains + 1):
        of_domain = [expert for expert in found.named if expert.domain_id == domain - 1]
        own_P = [found.cells_P.index(expert.cell) for expert in of_domain]
        at_G = np.ones_like(evaluation_G) if domain == 0 else documents.domain_ids_G == domain - 1
        ranks = {expert.cell: expert.rank for expert in of_domain}
        others_P = [column for column in first_P if column not in own_P]
        for columns, within_G in ((own_P, evaluation_G), (others_P, found.everywhere_G)):
            rows += _rows(found, columns, domain, ranks, documents, at_G & within_G, seed=seed)
    return _variables(rows, num_experts)


def _rows(
    found: Measurements,
    columns: Sequence[int],
    domain: int,
    ranks: dict[int, int],
    documents: Documents,
    at_G: Mask,
    *,
    seed: int,
) -> list[_Row]:
    """The rows of some named experts on one domain, from these documents."""
    tokens = int(documents.predicted_G[at_G].sum())
    if not columns or not tokens:
        return []
    effects_GP, estimates_GP = found.effects_GP[:, list(columns)], found.estimates_GP[:, list(columns)]
    measured, estimate = (
        domain_means(np.where(at_G[:, None], values_GP, 0.0), documents, 0, within_G=at_G, seed=seed)
        for values_GP in (effects_GP, estimates_GP)
    )
    return [
        _Row(
            domain=domain,
            rank=ranks.get(found.cells_P[column], -1),
            cell=found.cells_P[column],
            num_tokens=tokens,
            num_documents=int(at_G.sum()),
            measured=_triple(measured, place),
            estimate=_triple(estimate, place),
            p_value=float(measured.p_value_DP[0, place]),
            effective=float(measured.effective_DP[0, place]),
        )
        for place, column in enumerate(columns)
    ]


def _triple(means: Means, column: int) -> tuple[float, float, float]:
    """Mean, low and high end."""
    mean, low, high = (float(values_DP[0, column]) for values_DP in (means.mean_DP, means.low_DP, means.high_DP))
    return mean, low, high


def _variables(rows: Sequence[_Row], num_experts: int) -> dict[str, Variable]:
    dims = ("measurement",)
    on = "on the evaluation half of the documents"
    measured = f"loss without the expert minus loss with it, measured by ablation {on}"
    estimate = "the gradient's estimate of it on the same documents"
    positions, experts = np.divmod(np.array([row.cell for row in rows], dtype=int), num_experts)
    columns: dict[str, tuple[NDArray, str, str]] = {
        "measured_domain": (np.array([row.domain for row in rows], int), "index", "0: all documents; d + 1: domain d"),
        "measured_rank": (
            np.array([row.rank for row in rows], int),
            "rank",
            "for the domain; -1: named for another",
        ),
        "measured_layer_position": (positions, "index", "layer, as position among those looked at"),
        "measured_expert": (experts, "index", "expert that was ablated"),
        "measured_num_tokens": (np.array([row.num_tokens for row in rows], int), "tokens", f"predicted tokens, {on}"),
        "measured_num_documents": (np.array([row.num_documents for row in rows], int), "documents", f"documents, {on}"),
        "measured_p_value": (np.array([row.p_value for row in rows], float), "probability", f"{P_VALUE}, measured"),
        "measured_effective_documents": (np.array([row.effective for row in rows], float), "documents", EFFECTIVE),
    }
    for prefix, definition, values in (
        ("measured_delta_loss", measured, [row.measured for row in rows]),
        ("measured_estimate", estimate, [row.estimate for row in rows]),
    ):
        table_R3 = np.array(values, float).reshape(-1, 3)
        for end, words, values_R in zip(_ENDS, ("", "low end, ", "high end, "), table_R3.T, strict=True):
            columns[prefix + end] = (values_R, NATS, f"{words}{INTERVAL + ', of: ' if words else ''}{definition}")
    return {name: variable(dims, *column) for name, column in columns.items()}
