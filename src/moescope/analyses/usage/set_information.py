"""How much information the set of K selected experts carries about a token's domain; see `moescope.measures.probe`."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from moescope.measures.clustered import clustered_mean, not_distinguishable
from moescope.measures.intervals import enough
from moescope.measures.probe import Probe
from moescope.measures.usage import replicate_mean, replicate_range
from moescope.statistics.samples.routed import RoutedDocuments
from moescope.statistics.variables import variable

Floats = NDArray[np.float64]

NUM_FITTED = 20_000
"""Tokens the probe is fitted on at most."""
NUM_PERMUTATIONS = 9_999
"""Permutations of the documents' labels: p-values down to 0.0001."""
VALIDATION_GROUPS = 4
"""Of 20 groups of documents, those that choose the probe's penalty."""
_BLOCK = 500

_OF = "information of the set of selected experts about the domain"
DEFINITIONS = {
    "set_information": (
        "bits",
        "H(D) - CE: H the entropy of the domain, CE the cross-entropy of a logistic probe from the K-hot vector of "
        "selected experts, fitted on the selection half of the documents; both on the evaluation half; a lower bound",
    ),
    "set_information_ci_low": ("bits", f"2.5 % end of the 95 % interval over documents (linearized, t), of {_OF}"),
    "set_information_ci_high": ("bits", f"97.5 % end of the 95 % interval over documents (linearized, t), of {_OF}"),
    "set_information_null_mean": ("bits", f"mean over permutations of the evaluation half's labels, of {_OF}"),
    "set_information_null_low": ("bits", f"2.5 % quantile over permutations of the labels, of {_OF}"),
    "set_information_null_high": ("bits", f"97.5 % quantile over permutations of the labels, of {_OF}"),
    "set_information_share": ("share", f"{_OF}, divided by H(D) of the evaluation half"),
    "set_information_p_value": (
        "probability",
        f"share of permutations whose highest value of any layer (standardized by layer) reaches this layer's: {_OF}",
    ),
    "set_information_tied": ("yes or no", "not shown to lie below the layer of the highest value (paired, Bonferroni)"),
}


def set_information(sample: RoutedDocuments, num_domains: int, seed: int) -> xr.Dataset:
    """The variables of `DEFINITIONS` by `layer`; NaN where a half has too few documents or a single domain."""
    values = {name: np.full(len(sample.layers), np.nan) for name in DEFINITIONS}
    values["set_information_tied"] = np.zeros(len(sample.layers), dtype=bool)
    judge = sample.halves_N == 1
    if _enough(sample, 0) and _enough(sample, 1):
        documents_N, domains_N = sample.documents_N[judge], sample.domain_ids_N[judge]
        log_LND = _log_probabilities(sample, num_domains, judge)
        share_D = np.bincount(domains_N, minlength=num_domains) / len(domains_N)
        with np.errstate(divide="ignore"):
            surprise_D = -np.log2(share_D)
        scores_LN = log_LND[:, np.arange(len(domains_N)), domains_N] / np.log(2) + surprise_D[domains_N]
        means = [clustered_mean(scores_N, documents_N) for scores_N in scores_LN]
        values["set_information"] = np.array([mean.mean for mean in means])
        values["set_information_ci_low"], values["set_information_ci_high"] = np.array(
            [mean.interval for mean in means]
        ).T
        entropy = float(surprise_D[domains_N].mean())
        values["set_information_share"] = values["set_information"] / entropy
        values["set_information_tied"] = not_distinguishable(scores_LN, documents_N)
        _add_null(values, log_LND / np.log(2), documents_N, domains_N, seed)
    return xr.Dataset({name: variable("layer", values[name], *about) for name, about in DEFINITIONS.items()})


def _enough(sample: RoutedDocuments, half: int) -> bool:
    of_half = sample.halves_N == half
    lengths = np.unique(sample.documents_N[of_half], return_counts=True)[1].astype(float)
    effective = lengths.sum() ** 2 / max(1.0, (lengths**2).sum())
    return bool(enough(len(lengths), effective)) and len(np.unique(sample.domain_ids_N[of_half])) > 1


def _log_probabilities(sample: RoutedDocuments, num_domains: int, judge: NDArray[np.bool_]) -> Floats:
    """Log probability, nats, of each domain for each token of the evaluation half, (layers, tokens, domains).

    The penalty is chosen at the middle layer, for all: a fit takes half a second.
    """
    # The documents lie in random order (of their hash): the first tokens are a sample of documents.
    fitted = np.flatnonzero(~judge)[:NUM_FITTED]
    labels_N, validation_N = sample.domain_ids_N[fitted], sample.groups_N[fitted] < VALIDATION_GROUPS

    def fit(layer: int, penalty: float | None) -> Probe:
        return Probe(sample.selected_NE(layer)[fitted], labels_N, num_domains, validation_N, penalty=penalty)

    middle = sample.layers[len(sample.layers) // 2]
    chosen = fit(middle, None)
    return np.stack(
        [
            (chosen if layer == middle else fit(layer, chosen.penalty)).log_probabilities(
                sample.selected_NE(layer)[judge]
            )
            for layer in sample.layers
        ]
    )


def _add_null(
    values: dict[str, Floats],
    log_LND: Floats,
    documents_N: NDArray[np.int64],
    domains_N: NDArray[np.int64],
    seed: int,
) -> None:
    """Documents' labels are permuted, so that each domain keeps its number of documents; the probe stays as it is."""
    firsts_B, documents_N = np.unique(documents_N, return_index=True, return_inverse=True)[1:]
    labels_B, num_domains = domains_N[firsts_B], log_LND.shape[2]
    lengths_B = np.bincount(documents_N).astype(np.float64)
    sums_LBD = np.zeros((len(log_LND), len(labels_B), num_domains))
    for sums_BD, log_ND in zip(sums_LBD, log_LND, strict=True):
        np.add.at(sums_BD, documents_N, log_ND)
    generator = np.random.default_rng([seed, 29])
    null_RL = []
    for start in range(0, NUM_PERMUTATIONS, _BLOCK):
        count = min(_BLOCK, NUM_PERMUTATIONS - start)
        labels_RB = generator.permuted(np.broadcast_to(labels_B, (count, len(labels_B))), axis=1)
        tokens_RD = np.stack([lengths_B @ (labels_RB == domain).T for domain in range(num_domains)], axis=1)
        share_RD = tokens_RD / lengths_B.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy_R = -np.where(share_RD > 0, share_RD * np.log2(share_RD), 0.0).sum(axis=1)
        told_LR = np.stack([sums_BD[np.arange(len(labels_B)), labels_RB].sum(axis=1) for sums_BD in sums_LBD])
        null_RL.append((told_LR / lengths_B.sum() + entropy_R).T)
    replicates_RL = np.concatenate(null_RL)
    values["set_information_null_mean"] = replicate_mean(replicates_RL)
    values["set_information_null_low"], values["set_information_null_high"] = replicate_range(replicates_RL)
    spread_L = np.maximum(replicates_RL.std(axis=0), 1e-300)
    center_L = values["set_information_null_mean"]
    highest_R = ((replicates_RL - center_L) / spread_L).max(axis=1)
    reached_L = (values["set_information"] - center_L) / spread_L
    above_L = (highest_R[None, :] >= reached_L[:, None] - 1e-9).sum(axis=1)
    values["set_information_p_value"] = (1 + above_L) / (1 + NUM_PERMUTATIONS)
