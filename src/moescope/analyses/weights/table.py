"""The table of weights: cosines, norms, effective ranks and spectra of each layer, and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import t as student

from moescope.analyses.weights.matching import JOINED, Neurons, cosines_of_rows, effective_rank
from moescope.measures.constants import COVERAGE
from moescope.measures.pairs import error_over_experts, median_of_pairs
from moescope.statistics.variables import Variable, variable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

TOP_PAIRS = 20
CONTROL_EXPERTS = 8
BASELINE = "_control"
"""How the names of variables about random directions with matched norms end."""
ROUTER = "router"
CENTERED = "router_centered"
MATRICES = {
    "gate": "gate matrices",
    "up": "up matrices",
    "down": "down matrices",
    JOINED: "gate, up and down matrices joined",
    ROUTER: "router rows",
    CENTERED: "router rows less their mean, which a softmax does not depend on",
}
_PAIR = ("expert", "other_expert")
_RANDOM = "; of random directions with matched norms"
_QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}


def leading(table: xr.Dataset) -> str:
    """The measure that pairs are ordered by: with neurons matched if any are."""
    matched = f"{JOINED}_matched_cosine"
    return matched if (table["num_pairs_matched"].values > 0).all() else f"{JOINED}_cosine"


def stacked(by_layer: Sequence[xr.Dataset], layers: Sequence[int]) -> xr.Dataset:
    """The layers' datasets as one."""
    table = cast("xr.Dataset", xr.concat(by_layer, xr.Variable("layer", list(layers))))
    experts = np.arange(table.sizes["expert"])
    return table.assign_coords(expert=experts, other_expert=experts)


def layer_table(neurons: Neurons, router_EM: Tensor | None, num_pairs: int, *, seed: int) -> xr.Dataset:
    """One layer's numbers.

    Args:
        neurons: The hidden neurons of its experts.
        router_EM: Its router's rows; None where it is no linear map.
        num_pairs: Pairs of experts to match, a random sample if not all.
        seed: Of the sample and of the random directions.
    """
    num_experts = neurons.num_experts
    generator = np.random.default_rng(seed)
    every_P2 = np.stack(np.triu_indices(num_experts, 1), axis=1)
    sample = np.sort(generator.choice(len(every_P2), num_pairs, replace=False))
    control = np.sort(generator.choice(num_experts, min(CONTROL_EXPERTS, num_experts), replace=False))
    random = neurons.random_directions(control.tolist(), seed=seed)
    num_control_pairs = len(control) * (len(control) - 1) // 2
    # As long as all are matched, so are all controls; else a control for every four pairs.
    if num_pairs < len(every_P2):
        num_control_pairs = min(num_control_pairs, -(-num_pairs // 4))
    variables = _cosines(neurons, random, every_P2[sample], num_control_pairs)
    for name, norms_E in neurons.norms().items():
        definition = f"Frobenius norm of an expert's {MATRICES[name]}"
        variables[f"{name}_norm"] = variable("expert", norms_E.cpu().numpy(), "1", definition)
    variables |= _spectra(neurons, random)
    if router_EM is not None:
        variables |= _router(router_EM, seed=seed)
    matched = variable((), np.array(num_pairs), "pairs", "pairs of experts whose neurons were matched")
    return xr.Dataset(variables | {"num_pairs_matched": matched})


def _cosines(
    neurons: Neurons, random: Neurons, sample_P2: NDArray[np.integer], num_control_pairs: int
) -> dict[str, Variable]:
    """Cosines of matrices as stored and matched, beside those of random directions."""
    num_experts = neurons.num_experts
    control_P2 = np.stack(np.triu_indices(random.num_experts, 1), axis=1)
    first_P, second_P = control_P2.T
    cosines, control_cosines = neurons.cosines(), random.cosines()
    matched = neurons.matched_cosines(sample_P2)
    control_matched = random.matched_cosines(control_P2[:num_control_pairs])
    found = {}
    for name in cosines:
        words = f"cosine of two experts' {MATRICES[name]}"
        found[f"{name}_cosine"] = variable(_PAIR, cosines[name].cpu().numpy(), "cosine", f"{words}, as stored")
        values_P = control_cosines[name].cpu().numpy()[first_P, second_P]
        definition = f"{words}, as stored{_RANDOM}"
        found[f"{name}_cosine{BASELINE}"] = variable("control_pair", values_P, "cosine", definition)
        words += ", neurons matched so that the cosine of all matrices joined is largest"
        matrix_EE = np.full((num_experts, num_experts), np.nan, dtype=np.float32)
        i_P, j_P = sample_P2.T
        matrix_EE[i_P, j_P] = matrix_EE[j_P, i_P] = matched[name]
        np.fill_diagonal(matrix_EE, 1.0)
        found[f"{name}_matched_cosine"] = variable(_PAIR, matrix_EE, "cosine", words)
        values_P = np.full(len(control_P2), np.nan)
        values_P[:num_control_pairs] = control_matched[name]
        found[f"{name}_matched_cosine{BASELINE}"] = variable("control_pair", values_P, "cosine", words + _RANDOM)
    return found


def _spectra(neurons: Neurons, random: Neurons) -> dict[str, Variable]:
    """Effective ranks and mean spectra of matrices, beside those of random directions."""
    found = {}
    control_spectra = random.spectra()
    for name, values_EC in neurons.spectra().items():
        words = f"exp of the entropy of the shares of energy of singular values of {MATRICES[name]}"
        found[f"{name}_effective_rank"] = variable("expert", effective_rank(values_EC), "directions", words)
        values = effective_rank(control_spectra[name])
        found[f"{name}_effective_rank{BASELINE}"] = variable("control_expert", values, "directions", words + _RANDOM)
        words = f"singular values of {MATRICES[name]} over their root mean square, descending"
        relative_EC, control_EC = _relative(values_EC), _relative(control_spectra[name])
        low_C, high_C = np.quantile(relative_EC, (0.05, 0.95), axis=0)
        for suffix, values_C, kind in (
            ("", relative_EC.mean(0), "mean over experts"),
            (BASELINE, control_EC.mean(0), f"mean{_RANDOM}"),
            ("_low", low_C, "5 % of experts"),
            ("_high", high_C, "95 % of experts"),
        ):
            found[f"{name}_singular_value{suffix}"] = variable("component", values_C, "1", f"{words}; {kind}")
    return found


def _router(router_EM: Tensor, *, seed: int) -> dict[str, Variable]:
    """Cosines and norms of the router's rows, beside random directions with matched norms."""
    noise_EM = torch.randn(router_EM.shape, generator=torch.Generator().manual_seed(seed + 1)).to(router_EM.device)
    random_EM = noise_EM * (router_EM.norm(dim=1) / noise_EM.norm(dim=1)).unsqueeze(1)
    shown = {
        ROUTER: (router_EM, random_EM),
        CENTERED: (router_EM - router_EM.mean(0), random_EM - random_EM.mean(0)),
    }
    found = {}
    for name, (rows_EM, control_EM) in shown.items():
        words = f"cosine of two experts' {MATRICES[name]}"
        found[f"{name}_cosine"] = variable(_PAIR, cosines_of_rows(rows_EM).cpu().numpy(), "cosine", words)
        values_EE = cosines_of_rows(control_EM).cpu().numpy()
        found[f"{name}_cosine{BASELINE}"] = variable(_PAIR, values_EE, "cosine", words + _RANDOM)
    norms_E = router_EM.norm(dim=1).cpu().numpy()
    found["router_norm"] = variable("expert", norms_E, "1", "norm of an expert's router row")
    return found


def _relative(values_EC: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return values_EC / np.sqrt((values_EC**2).mean(-1, keepdims=True))


def summary_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer, matrix and measure: the spread over pairs or experts, and that of random directions."""
    rows = []
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        sizes = {"num_pairs": len(i_P), "num_pairs_matched": int(at["num_pairs_matched"])}
        for matrix in MATRICES:
            for measure in ("cosine", "matched_cosine", "effective_rank"):
                name = f"{matrix}_{measure}"
                if name not in at:
                    continue
                own, random = (
                    _spread(values.values[i_P, j_P] if "other_expert" in values.dims else values.values)
                    for values in (at[name], at[name + BASELINE])
                )
                row = {"layer": layer, "matrix": matrix, "measure": measure, **sizes, **own}
                row |= {key + BASELINE: value for key, value in random.items()}
                rows.append(row | (_excess(at, name) if (matrix, measure) == (JOINED, "matched_cosine") else {}))
    return pd.DataFrame(rows)


def _excess(at: xr.Dataset, name: str) -> dict[str, float]:
    """By how much the median pair exceeds that of random directions, with interval and one-sided p-value over experts.

    The variances over experts of both add; Student's t with the degrees of freedom of the fewer experts.
    """
    control_P = at[name + BASELINE].values
    num_control = at.sizes["control_expert"]
    control_EE = np.full((num_control, num_control), np.nan)
    i_P, j_P = np.triu_indices(num_control, 1)
    control_EE[i_P, j_P] = control_EE[j_P, i_P] = control_P
    own_EE = at[name].values
    excess = median_of_pairs(own_EE) - median_of_pairs(control_EE)
    error = float(np.hypot(error_over_experts(own_EE), error_over_experts(control_EE)))
    degrees = num_control - 1
    reach = float(student.ppf((1 + COVERAGE) / 2, degrees)) * error if degrees else np.nan
    return {
        "median_excess": excess,
        "median_excess_ci_low": excess - reach,
        "median_excess_ci_high": excess + reach,
        "median_excess_p_value": float(student.sf(excess / error, degrees)) if error > 0 and degrees else np.nan,
    }


def expert_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer and expert: norms and effective ranks."""
    names = [str(name) for name, values in table.data_vars.items() if values.dims == ("layer", "expert")]
    by_layer = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        columns = {name: at[name].values for name in names}
        by_layer.append(pd.DataFrame({"layer": layer, "expert": at["expert"].values, **columns}))
    return pd.concat(by_layer, ignore_index=True)


def pair_rows(table: xr.Dataset) -> pd.DataFrame:
    """The `TOP_PAIRS` pairs of experts of each layer with the highest cosine, by `leading`, with all cosines."""
    rows = []
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    names = [
        str(name)
        for name, values in table.data_vars.items()
        if "other_expert" in values.dims and not str(name).endswith(BASELINE)
    ]
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        values_P = at[leading(at)].values[i_P, j_P]
        order = np.argsort(-np.nan_to_num(values_P, nan=-np.inf), kind="stable")[:TOP_PAIRS]
        for rank, pair in enumerate(order):
            i, j = int(i_P[pair]), int(j_P[pair])
            row = {"layer": layer, "rank": rank, "expert": i, "other_expert": j}
            rows.append(row | {name: at[name].values[i, j].item() for name in names})
    return pd.DataFrame(rows)


def _spread(values: NDArray) -> dict[str, float]:
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        return dict.fromkeys(("mean", *_QUANTILES), np.nan)
    quantiles = np.quantile(known, list(_QUANTILES.values())).tolist()
    return {"mean": float(known.mean()), **dict(zip(_QUANTILES, quantiles, strict=True))}
