"""Counts of selected experts as measures with labels, with intervals and nulls; what `ExpertUsage.compute` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from moescope.measures import usage as measures
from moescope.measures.constants import MIN_DOCUMENTS
from moescope.measures.usage import Numbers

OLMOE = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060)"
INTERVAL = f"95 % percentile interval of a Poisson bootstrap over documents; NaN under {MIN_DOCUMENTS} documents"
NULL = "each document's label drawn from the domain shares"

PER_DOMAIN = ("layer", "domain")
PER_CELL = ("layer", "domain", "expert")
PER_EXPERT = ("layer", "expert")

# name: (dims, unit, definition, source)
_DEFINITIONS: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "num_tokens": (PER_DOMAIN, "tokens", "N_d: tokens counted; padding and special tokens are not", ""),
    "num_documents": (PER_DOMAIN, "documents", "documents with a token counted", ""),
    "num_selected": (PER_CELL, "tokens", "N_ed: tokens of the domain with the expert among their K", ""),
    "domain_specialization": (PER_CELL, "share of tokens", "N_ed / N_d; sums to K over experts", f"{OLMOE}, eq. 7"),
    "lift": (PER_CELL, "ratio", "domain specialization / its unweighted mean over the domains with tokens", ""),
    "selection_half_lift_ci_low": (
        PER_CELL,
        "ratio",
        "2.5 % quantile of the lift over bootstrap replicates of the selection half of the documents (half 0), however "
        "few they are: what findings are selected by",
        "",
    ),
    "num_tokens_all": (("layer",), "tokens", "N: tokens of all domains", ""),
    "num_documents_all": (("layer",), "documents", "documents of all domains with a token counted", ""),
    "num_selected_all": (PER_EXPERT, "tokens", "N_e: tokens of all domains with the expert among their K", ""),
    "selection_frequency": (PER_EXPERT, "share of tokens", "N_e / N; sums to K over experts", f"{OLMOE}, section 5"),
    "mean_probability": (PER_EXPERT, "probability", "P_e: mean router probability over all tokens", ""),
    "divergence": (
        PER_EXPERT,
        "bits",
        "Jensen-Shannon divergence of the expert's distribution over domains (N_ed / N_e) from its layer's (N_d / N)",
        "as in arXiv 2604.02178; the null is ours",
    ),
    "mutual_information": (("layer",), "bits", "I(expert; domain) over token-expert assignments", ""),
    "mutual_information_share": (("layer",), "share", "I(expert; domain) / H(domain)", ""),
    "domain_entropy": (("layer",), "bits", "H(domain) of the tokens", ""),
}

_LOAD: dict[str, tuple[str, str, str]] = {
    "normalized_usage_entropy": ("share of ln E", "-sum q_e ln q_e / ln E with q_e = N_e / sum N_e", ""),
    "coefficient_of_variation": ("ratio", "standard deviation of N_e over experts / mean", ""),
    "gini": ("ratio", "sum_ij |N_i - N_j| / (2 E sum N_e)", ""),
    "max_violation": ("ratio", "MaxVio: max N_e / mean N_e - 1", "Wang et al. 2024 (arXiv 2408.15664)"),
    "num_unused_experts": ("experts", "experts with N_e = 0", ""),
    "auxiliary_loss": (
        "ratio",
        "E sum_e (N_e / N) P_e, this layer alone; K when balanced",
        "Fedus et al. 2021, Switch Transformer (arXiv 2101.03961), eq. 4",
    ),
}

_HALVES = {
    "selection_half": "on the selection half of the documents (half 0): for selecting findings, not for reporting them",
    "evaluation_half": "on the evaluation half of the documents (half 1): to report findings selected on half 0",
}


@dataclass(frozen=True)
class UsageCounts:
    """What `ExpertUsage` counted, as arrays; H are the halves of the documents, R replicates.

    Attributes:
        counts_LHDE: Tokens with the expert among their K.
        tokens_LHD: Tokens.
        documents_LHD: Documents with a token.
        probabilities_LDE: Sums of router probabilities over tokens.
        bootstrap_counts_LHDRE: `counts_LHDE` in each bootstrap replicate.
        bootstrap_tokens_LHDR: `tokens_LHD` in each bootstrap replicate.
        null_counts_LRDE: Tokens with the expert, by drawn domain, in each null replicate.
        null_tokens_LRD: Tokens by drawn domain in each null replicate.
        layers: Decoder block indices.
        domains: Names of the domains.
        num_experts_per_token: K.
        domain_shares: Probability of each domain under the null.
        seed: What halves, weights and labels were drawn with.
    """

    counts_LHDE: NDArray[np.int64]
    tokens_LHD: NDArray[np.int64]
    documents_LHD: NDArray[np.int64]
    probabilities_LDE: NDArray[np.float64]
    bootstrap_counts_LHDRE: NDArray[np.int32]
    bootstrap_tokens_LHDR: NDArray[np.int64]
    null_counts_LRDE: NDArray[np.int32]
    null_tokens_LRD: NDArray[np.int64]
    layers: Sequence[int]
    domains: Sequence[str]
    num_experts_per_token: int
    domain_shares: Sequence[float]
    seed: int


def usage_table(counted: UsageCounts) -> xr.Dataset:
    """All measures of usage and specialization, with labels.

    Variables have dims `layer`, `domain`, `expert`, or fewer. Load measures without suffix are by layer and domain,
    with `_all` by layer, all tokens pooled; likewise `num_tokens`, `num_documents`, `num_selected`.
    `selection_frequency` pools all tokens; by domain it is `domain_specialization`. Intervals end in `_ci_low`,
    `_ci_high`; nulls in `_null_mean`, `_null_low`, `_null_high`, `_excess` (value - null mean). Names that begin with
    `selection_half_` are of half 0 of the documents (selection), with `evaluation_half_` of half 1 (evaluation).

    Args:
        counted: The counts and their replicates.

    Returns:
        The dataset; each variable has `units` and `definition` in its attrs, and `source` where it has one in the
        literature.
    """
    values: dict[str, Numbers] = {
        "num_tokens": counted.tokens_LHD.sum(axis=1),
        "num_documents": counted.documents_LHD.sum(axis=1),
        "num_selected": counted.counts_LHDE.sum(axis=1),
    }
    for name in list(values):
        values[f"{name}_all"] = values[name].sum(axis=1)
    probabilities_LE = counted.probabilities_LDE.sum(axis=1)
    counted_L1 = np.where(probabilities_LE.sum(axis=1) > 0, values["num_tokens_all"], 0)[:, None]
    values["mean_probability"] = measures.ratio(probabilities_LE, counted_L1)
    _add_shares(values, "", values["num_selected"], values["num_tokens"])
    for half, prefix in enumerate(_HALVES):
        values[f"{prefix}_num_tokens"] = counted.tokens_LHD[:, half]
        values[f"{prefix}_num_documents"] = counted.documents_LHD[:, half]
        _add_shares(values, f"{prefix}_", counted.counts_LHDE[:, half], counted.tokens_LHD[:, half])
    _add_load(values, counted.probabilities_LDE)
    _add_intervals(values, counted)
    _add_nulls(values, counted)

    return xr.Dataset(
        {name: (_dims(name), array, _describe(name)) for name, array in values.items()},
        coords={
            "layer": list(counted.layers),
            "domain": list(counted.domains),
            "expert": np.arange(counted.counts_LHDE.shape[-1]),
        },
        attrs=_attrs(counted, values["num_documents"]),
    )


def _add_shares(values: dict[str, Numbers], prefix: str, counts_LDE: Numbers, tokens_LD: Numbers) -> None:
    specialization_LDE = measures.ratio(counts_LDE, tokens_LD[..., None])
    values[f"{prefix}selection_frequency"] = measures.ratio(counts_LDE.sum(axis=1), tokens_LD.sum(axis=1)[:, None])
    values[f"{prefix}domain_specialization"] = specialization_LDE
    values[f"{prefix}lift"] = measures.lift(specialization_LDE)


def _add_load(values: dict[str, Numbers], probabilities_LDE: Numbers) -> None:
    for suffix, probabilities in (("", probabilities_LDE), ("_all", probabilities_LDE.sum(axis=1))):
        counts, tokens = values[f"num_selected{suffix}"], values[f"num_tokens{suffix}"]
        values[f"normalized_usage_entropy{suffix}"] = measures.normalized_usage_entropy(counts)
        values[f"coefficient_of_variation{suffix}"] = measures.coefficient_of_variation(counts)
        values[f"gini{suffix}"] = measures.gini(counts)
        values[f"max_violation{suffix}"] = measures.max_violation(counts)
        values[f"num_unused_experts{suffix}"] = (counts == 0).sum(axis=-1)
        values[f"auxiliary_loss{suffix}"] = measures.auxiliary_loss(counts, probabilities, tokens)


def _add_intervals(values: dict[str, Numbers], counted: UsageCounts) -> None:
    """Intervals of all documents and of half 1, layer by layer: replicates of all layers at once take too much."""
    names = ("selection_frequency", "domain_specialization", "lift")
    values["selection_half_lift_ci_low"] = np.full(values["lift"].shape, np.nan)
    for layer in range(values["lift"].shape[0]):
        counts_HDRE, tokens_HDR = counted.bootstrap_counts_LHDRE[layer], counted.bootstrap_tokens_LHDR[layer]
        _, _, lift_RDE = _replicates(counts_HDRE[:1], tokens_HDR[:1])
        values["selection_half_lift_ci_low"][layer], _ = measures.replicate_range(lift_RDE)
        for prefix, first in (("", 0), ("evaluation_half_", 1)):
            documents_D = values[f"{prefix}num_documents"][layer]
            enough_D1 = (documents_D >= MIN_DOCUMENTS)[:, None]
            enough = documents_D.sum() >= MIN_DOCUMENTS
            replicates = _replicates(counts_HDRE[first:], tokens_HDR[first:])
            for name, replicates_R, known in zip(names, replicates, (enough, enough_D1, enough_D1), strict=True):
                for end, bound in zip(("low", "high"), measures.replicate_range(replicates_R), strict=True):
                    ends = values.setdefault(f"{prefix}{name}_ci_{end}", np.full(values[name].shape, np.nan))
                    ends[layer] = np.where(known, bound, np.nan)


def _replicates(counts_HDRE: Numbers, tokens_HDR: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Selection frequency (R, E), domain specialization and lift (R, D, E) of each replicate of some halves."""
    counts_RDE = counts_HDRE.sum(axis=0, dtype=np.int64).swapaxes(0, 1)
    tokens_RD = tokens_HDR.sum(axis=0).T
    specialization_RDE = measures.ratio(counts_RDE, tokens_RD[..., None])
    frequency_RE = measures.ratio(counts_RDE.sum(axis=1), tokens_RD.sum(axis=1)[:, None])
    return frequency_RE, specialization_RDE, measures.lift(specialization_RDE)


def _add_nulls(values: dict[str, Numbers], counted: UsageCounts) -> None:
    values["divergence"] = measures.divergence(values["num_selected"], values["num_tokens"])
    values["mutual_information"] = measures.mutual_information(values["num_selected"])
    values["domain_entropy"] = measures.domain_entropy(values["num_tokens"])
    values["mutual_information_share"] = measures.ratio(values["mutual_information"], values["domain_entropy"])
    names = ("divergence", "mutual_information", "mutual_information_share")
    for name in names:
        for ending in ("null_mean", "null_low", "null_high"):
            values[f"{name}_{ending}"] = np.full(values[name].shape, np.nan)
    for layer, (counts_RDE, tokens_RD) in enumerate(
        zip(counted.null_counts_LRDE, counted.null_tokens_LRD, strict=True)
    ):
        information_R = measures.mutual_information(counts_RDE)
        shares_R = measures.ratio(information_R, measures.domain_entropy(tokens_RD))
        replicates = (measures.divergence(counts_RDE, tokens_RD), information_R, shares_R)
        for name, replicates_R in zip(names, replicates, strict=True):
            values[f"{name}_null_mean"][layer] = measures.replicate_mean(replicates_R)
            low, high = measures.replicate_range(replicates_R)
            values[f"{name}_null_low"][layer], values[f"{name}_null_high"][layer] = low, high
    for name in names:
        values[f"{name}_excess"] = values[name] - values[f"{name}_null_mean"]


def _split(name: str) -> tuple[str, str, str]:
    """A variable's name as (prefix, base, ending)."""
    if name in _DEFINITIONS:
        return "", name, ""
    prefix = next((half for half in _HALVES if name.startswith(f"{half}_")), "")
    base = name.removeprefix(f"{prefix}_") if prefix else name
    for ending in ("ci_low", "ci_high", "null_mean", "null_low", "null_high", "excess"):
        if base.endswith(f"_{ending}"):
            return prefix, base.removesuffix(f"_{ending}"), ending
    return prefix, base, ""


def _dims(name: str) -> tuple[str, ...]:
    _, base, _ = _split(name)
    if base in _DEFINITIONS:
        return _DEFINITIONS[base][0]
    return PER_DOMAIN if base in _LOAD else ("layer",)


def _describe(name: str) -> dict[str, str]:
    prefix, base, ending = _split(name)
    if base in _DEFINITIONS:
        _, units, definition, source = _DEFINITIONS[base]
    else:
        units, definition, source = _LOAD[base.removesuffix("_all")]
        definition += "; all domains pooled" if base.endswith("_all") else "; of the domain's tokens"
    endings = {
        "ci_low": f"2.5 % end of the {INTERVAL}, of",
        "ci_high": f"97.5 % end of the {INTERVAL}, of",
        "null_mean": f"mean over null replicates ({NULL}) of",
        "null_low": f"2.5 % quantile over null replicates ({NULL}) of",
        "null_high": f"97.5 % quantile over null replicates ({NULL}) of",
        "excess": f"value - null mean ({NULL}) of",
    }
    if ending:
        definition = f"{endings[ending]}: {definition}"
    if prefix:
        definition = f"{definition}; {_HALVES[prefix]}"
    return {"units": units, "definition": definition} | ({"source": source} if source else {})


def _attrs(counted: UsageCounts, documents_LD: Numbers) -> dict[str, object]:
    few = [
        domain
        for domain, documents in zip(counted.domains, documents_LD.min(axis=0, initial=2**62), strict=True)
        if documents < MIN_DOCUMENTS
    ]
    if not documents_LD.sum():
        note = "made of counts without documents: intervals and nulls are empty"
    elif few:
        note = f"under {MIN_DOCUMENTS} documents, so without intervals: {', '.join(few)}"
    else:
        note = ""
    num_experts = counted.counts_LHDE.shape[-1]
    return {
        "num_experts": num_experts,
        "num_experts_per_token": counted.num_experts_per_token,
        "uniform_baseline": counted.num_experts_per_token / num_experts,
        "num_bootstrap": counted.bootstrap_tokens_LHDR.shape[-1],
        "num_null": counted.null_tokens_LRD.shape[1],
        "min_documents": MIN_DOCUMENTS,
        "null_domain_shares": list(counted.domain_shares),
        "seed": counted.seed,
        "note": note,
    }
