"""Counts of selected experts as measures with labels, with intervals and nulls; what `ExpertUsage.compute` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from moescope.measures import intervals, permutation
from moescope.measures import usage as measures
from moescope.measures.constants import MIN_DOCUMENTS, MIN_EFFECTIVE_DOCUMENTS
from moescope.measures.intervals import DocumentSums
from moescope.measures.usage import Floats, Numbers
from moescope.statistics.samples.base import EMPTY

OLMOE = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060)"
INTERVAL = (
    "95 % interval over documents (linearized standard error on the scale of the logit, Student's t); NaN under "
    f"{MIN_DOCUMENTS} documents or {MIN_EFFECTIVE_DOCUMENTS} effective ones"
)
NULL = "labels permuted over documents"

PER_DOMAIN = ("layer", "domain")
PER_CELL = ("layer", "domain", "expert")
PER_EXPERT = ("layer", "expert")

# name: (dims, unit, definition, source)
_DEFINITIONS: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "num_tokens": (PER_DOMAIN, "tokens", "N_d: tokens counted; padding and special tokens are not", ""),
    "num_documents": (PER_DOMAIN, "documents", "documents with a token counted", ""),
    "effective_documents": (
        PER_DOMAIN,
        "documents",
        "effective number of documents by tokens, (sum t)^2 / sum t^2 over the documents' tokens t",
        "Kish 1965, Survey Sampling",
    ),
    "num_selected": (PER_CELL, "tokens", "N_ed: tokens of the domain with the expert among their K", ""),
    "domain_specialization": (PER_CELL, "share of tokens", "N_ed / N_d; sums to K over experts", f"{OLMOE}, eq. 7"),
    "lift": (PER_CELL, "ratio", "domain specialization / its unweighted mean over the domains with tokens", ""),
    "lift_logit_se": (PER_CELL, "logits", "standard error over documents of logit(lift / D), D domains", ""),
    "lift_degrees_of_freedom": (PER_CELL, "1", "Satterthwaite's degrees of freedom of that standard error", ""),
    "lift_p_value": (PER_CELL, "probability", "one-sided p-value of a lift of at most 1, Student's t", ""),
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
    "selection_half": "on the selection half of the documents (half 0): for selecting findings, not for reporting "
    "them; intervals also of few documents, from 2 on",
    "evaluation_half": "on the evaluation half of the documents (half 1): to report findings selected on half 0",
}


@dataclass(frozen=True)
class UsageCounts:
    """What `ExpertUsage` counted, as arrays; H are the halves of the documents, B those kept.

    Attributes:
        counts_LHDE: Tokens with the expert among their K.
        tokens_LHD: Tokens.
        documents_LHD: Documents with a token.
        probabilities_LDE: Sums of router probabilities over tokens.
        count_squares_LHDE: Sums over documents of the square of their tokens with the expert.
        products_LHDE: Sums over documents of their tokens with the expert times their tokens.
        token_squares_LHD: Sums over documents of the square of their tokens.
        document_order_LB: Hash of each document kept, by domain and hash.
        document_counts_LBE: Its tokens with the expert among their K.
        layers: Decoder block indices.
        domains: Names of the domains.
        num_experts_per_token: K.
        num_null: Permutations of the null.
        seed: What halves, documents and permutations were drawn with.
    """

    counts_LHDE: NDArray[np.int64]
    tokens_LHD: NDArray[np.int64]
    documents_LHD: NDArray[np.int64]
    probabilities_LDE: NDArray[np.float64]
    count_squares_LHDE: NDArray[np.int64]
    products_LHDE: NDArray[np.int64]
    token_squares_LHD: NDArray[np.int64]
    document_order_LB: NDArray[np.int64]
    document_counts_LBE: NDArray[np.int32]
    layers: Sequence[int]
    domains: Sequence[str]
    num_experts_per_token: int
    num_null: int
    seed: int

    def sums(self, layer: int, halves: slice) -> DocumentSums:
        """The sums over the documents of a layer and some halves, (D, E) and (D, 1)."""
        counts, squares, products = (
            values[layer, halves].sum(0) for values in (self.counts_LHDE, self.count_squares_LHDE, self.products_LHDE)
        )
        tokens, token_squares, documents = (
            values[layer, halves].sum(0)[:, None]
            for values in (self.tokens_LHD, self.token_squares_LHD, self.documents_LHD)
        )
        return DocumentSums(counts, tokens, squares, products, token_squares, documents)


def usage_table(counted: UsageCounts) -> xr.Dataset:
    """All measures of usage and specialization, with labels.

    Variables have dims `layer`, `domain`, `expert`, or fewer. Load measures without suffix are by layer and domain,
    with `_all` by layer, all tokens pooled; likewise `num_tokens`, `num_documents`, `num_selected`.
    `selection_frequency` pools all tokens; by domain it is `domain_specialization`. Intervals end in `_ci_low`,
    `_ci_high`; nulls in `_null_mean`, `_null_low`, `_null_high`, `_excess` (value - null mean). Names that begin with
    `selection_half_` are of half 0 of the documents (selection), with `evaluation_half_` of half 1 (evaluation).

    Args:
        counted: The counts and what their uncertainty is made of.

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
        attrs=_attrs(counted, values),
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
    """Intervals of all documents and of each half, layer by layer, since a model may have many domains and experts.

    Those of the selection half, which findings are selected by, are of lifts alone and of however few documents.
    """
    num_layers = values["lift"].shape[0]
    for prefix, halves in (("", slice(0, 2)), ("selection_half_", slice(0, 1)), ("evaluation_half_", slice(1, 2))):
        selecting = prefix == "selection_half_"
        for layer in range(num_layers):
            for name, array in _layer_intervals(counted.sums(layer, halves), masked=not selecting).items():
                if not selecting or name.startswith("lift"):
                    values.setdefault(f"{prefix}{name}", np.full((num_layers, *array.shape), np.nan))[layer] = array


def _layer_intervals(sums: DocumentSums, *, masked: bool) -> dict[str, Floats]:
    """What a layer's documents tell of the error of its frequencies, specializations and lifts."""
    effective_D1 = sums.effective
    enough_D1 = intervals.enough(sums.documents, effective_D1) if masked else sums.documents > 1
    variance_DE, degrees_DE = intervals.domain_variances(sums)
    effective_DE = np.broadcast_to(effective_D1, variance_DE.shape)
    lifts = intervals.lifts(sums)
    share_DE = intervals.share_interval(sums.share, variance_DE, degrees_DE, effective_DE)
    by_cell = {
        "lift_logit_se": lifts.error,
        "lift_degrees_of_freedom": lifts.degrees,
        "lift_p_value": lifts.p_value,
        "lift_ci_low": lifts.low,
        "lift_ci_high": lifts.high,
        "domain_specialization_ci_low": share_DE[0],
        "domain_specialization_ci_high": share_DE[1],
    }
    low_E, high_E = intervals.pooled_interval(sums)
    return {
        "effective_documents": effective_D1[:, 0],
        "selection_frequency_ci_low": low_E,
        "selection_frequency_ci_high": high_E,
    } | {name: np.where(enough_D1, values_DE, np.nan) for name, values_DE in by_cell.items()}


def _add_nulls(values: dict[str, Numbers], counted: UsageCounts) -> None:
    values["divergence"] = measures.divergence(values["num_selected"], values["num_tokens"])
    values["mutual_information"] = measures.mutual_information(values["num_selected"])
    values["domain_entropy"] = measures.domain_entropy(values["num_tokens"])
    values["mutual_information_share"] = measures.ratio(values["mutual_information"], values["domain_entropy"])
    replicates = dict(zip(_WITH_NULL, _replicates(values, counted), strict=True))
    for name, replicates_R in replicates.items():
        for ending, array in permutation.null_summary(replicates_R).items():
            values[f"{name}_{ending}"] = array
        values[f"{name}_excess"] = values[name] - values[f"{name}_null_mean"]
    for name in ("divergence", "mutual_information"):
        for ending, array in permutation.p_values(values[name], replicates[name]).items():
            values[f"{name}_{_P_VALUES[name].get(ending, ending)}"] = array


_WITH_NULL = ("divergence", "mutual_information", "mutual_information_share")
_P_VALUES = {"divergence": {}, "mutual_information": {"p_value_any": "p_value_any_layer"}}


def _replicates(values: dict[str, Numbers], counted: UsageCounts) -> tuple[Floats, Floats, Floats]:
    """The replicates (R, L) of divergence (also by expert), mutual information and its share under the null."""
    num_layers, num_documents, num_experts = counted.document_counts_LBE.shape
    shape = (counted.num_null, num_layers)
    divergences_RLE = np.full((*shape, num_experts), np.nan)
    information_RL, entropy_RL = np.full(shape, np.nan), np.full(shape, np.nan)
    if not counted.num_null or not num_documents:
        return divergences_RLE, information_RL, information_RL
    domain_ids_B = np.repeat(np.arange(len(counted.domains)), num_documents // len(counted.domains))
    filled_LB = counted.document_order_LB < EMPTY
    # All layers see the same documents, unless records are missing: then each kind of layers has its own permutations.
    for filled_B in np.unique(filled_LB, axis=0):
        layers = np.flatnonzero((filled_LB == filled_B).all(1))
        if not filled_B.any():
            continue
        null = permutation.permutation_null(
            counted.document_counts_LBE[layers][:, filled_B],
            domain_ids_B[filled_B],
            num_permutations=counted.num_null,
            assigned_D=values["num_tokens"][layers[0]] * counted.num_experts_per_token,
            documents_D=values["num_documents"][layers[0]],
            seed=counted.seed,
        )
        divergences_RLE[:, layers] = null.divergence_RLE
        information_RL[:, layers], entropy_RL[:, layers] = null.information_RL, null.entropy_RL
    return divergences_RLE, information_RL, measures.ratio(information_RL, entropy_RL)


_ENDINGS = {
    "ci_low": f"lower end of the {INTERVAL}, of",
    "ci_high": f"upper end of the {INTERVAL}, of",
    "null_mean": f"mean over null replicates ({NULL}) of",
    "null_low": f"2.5 % quantile over null replicates ({NULL}) of",
    "null_high": f"97.5 % quantile over null replicates ({NULL}) of",
    "excess": f"value - null mean ({NULL}) of",
    "p_value": f"share of null replicates ({NULL}), the value itself among them, at least as large as it, of",
    "p_value_tail": f"upper tail of the Pearson III distribution with the moments of the null replicates ({NULL}), of",
    "p_value_any": f"p-value ({NULL}) adjusted for the largest of all layers and experts (maxT), of",
    "p_value_any_layer": f"p-value ({NULL}) adjusted for the largest of all layers (maxT), of",
}


def _split(name: str) -> tuple[str, str, str]:
    """A variable's name as (prefix, base, ending)."""
    if name in _DEFINITIONS:
        return "", name, ""
    prefix = next((half for half in _HALVES if name.startswith(f"{half}_")), "")
    base = name.removeprefix(f"{prefix}_") if prefix else name
    if base in _DEFINITIONS:
        return prefix, base, ""
    for ending in _ENDINGS:
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
    if ending:
        definition = f"{_ENDINGS[ending]}: {definition}"
    if prefix:
        definition = f"{definition}; {_HALVES[prefix]}"
    if ending.startswith("p_value"):
        units = "probability"
    return {"units": units, "definition": definition} | ({"source": source} if source else {})


def _attrs(counted: UsageCounts, values: dict[str, Numbers]) -> dict[str, object]:
    documents_LD = values["num_documents"]
    enough_LD = intervals.enough(documents_LD, values["effective_documents"])
    few = [domain for position, domain in enumerate(counted.domains) if not enough_LD[:, position].all()]
    notes = []
    if not documents_LD.sum():
        notes.append("made of counts without documents: intervals and nulls are empty")
    elif few:
        least = f"under {MIN_DOCUMENTS} documents, or {MIN_EFFECTIVE_DOCUMENTS} effective ones by tokens"
        notes.append(f"{least}, so without intervals: {', '.join(few)}")
    sampled = int((counted.document_order_LB < EMPTY).sum(axis=1).max(initial=0))
    if counted.num_null and sampled < documents_LD.sum(axis=1).max(initial=0):
        notes.append(f"nulls are from a sample of {sampled} documents, scaled to the number of all")
    num_experts = counted.counts_LHDE.shape[-1]
    return {
        "num_experts": num_experts,
        "num_experts_per_token": counted.num_experts_per_token,
        "uniform_baseline": counted.num_experts_per_token / num_experts,
        "num_null": counted.num_null,
        "min_documents": MIN_DOCUMENTS,
        "min_effective_documents": MIN_EFFECTIVE_DOCUMENTS,
        "seed": counted.seed,
        "note": "; ".join(notes),
    }
