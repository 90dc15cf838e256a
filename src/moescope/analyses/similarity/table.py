"""The table of similarities: estimates with intervals, their baseline, summaries by layer, the most similar pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

from moescope.analyses.similarity.comparing import MINIBATCH, Comparison
from moescope.measures.constants import COVERAGE, MIN_DOCUMENTS
from moescope.measures.jackknife import NUM_GROUPS, interval
from moescope.measures.pairs import error_over_documents, error_over_experts, median_of_pairs
from moescope.statistics.variables import Variable, variable

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP_PAIRS = 20
BASELINE = "_control"
"""How the names of the random-weight baseline's variables end."""
MEDIAN_ERROR = "_median_error"
"""How the names of the median pair's standard errors over documents end."""

DEFINITIONS = {
    "cka": "debiased CKA: unbiased HSIC of two experts' outputs over the root of the product of the HSIC of each with "
    "itself",
    "deconfounded_cka": "debiased CKA after the inputs' Gram matrix was regressed out of each expert's",
    "linear_cka": "linear CKA, from the biased HSIC: high for few tokens and wide outputs, whatever is compared",
    "cosine": "cosine of two experts' outputs for the same token, mean over tokens",
    "centered_cosine": "the same after each expert's mean output was subtracted",
}


def measures(table: xr.Dataset, first: str) -> list[str]:
    """The measures of a table, the one that pairs are ranked by first."""
    return [first, *(name for name in DEFINITIONS if name in table and name != first)]


def estimates(compared: Comparison, estimator: str, *, suffix: str = "", intervals: bool = False) -> xr.Dataset:
    """One layer's measures by `expert, other_expert`.

    Args:
        compared: The estimates, from all tokens and without each group of documents.
        estimator: "minibatch" or "exact", for the definitions.
        suffix: What the variables' names end in: "" or `BASELINE`.
        intervals: Whether `_ci_low` and `_ci_high` are wanted.
    """
    how = f"terms averaged over {compared.num_minibatches} minibatches of about {MINIBATCH} tokens"
    if estimator == "exact":
        how = "all pairs of tokens"
    if suffix == BASELINE:
        how += "; experts with random weights, resampled at equal scale"
    groups = f"95 % interval, delete-one jackknife over {int(compared.present_G.sum())} hash groups of documents"
    variables = {}
    for name, (whole_EE, without_GEE) in compared.measures.items():
        variables[name + suffix] = _pairwise(whole_EE.numpy(), name, f"{DEFINITIONS[name]}; {how}")
        if intervals:
            low_EE, high_EE = interval(whole_EE, without_GEE, compared.present_G)
            variables[f"{name}_ci_low"] = _pairwise(low_EE.numpy(), name, f"lower end, {groups}")
            variables[f"{name}_ci_high"] = _pairwise(high_EE.numpy(), name, f"upper end, {groups}")
            error = error_over_documents(without_GEE.numpy(), compared.present_G.numpy())
            words = f"standard error over documents of the median pair's {name}; {groups}"
            variables[f"{name}{MEDIAN_ERROR}"] = variable((), np.array(error), "1", words)
    return xr.Dataset(variables)


def _pairwise(values_EE: NDArray[np.floating], measure: str, definition: str) -> Variable:
    return variable(("expert", "other_expert"), values_EE, "cosine" if "cosine" in measure else "CKA", definition)


def stacked(by_layer: Sequence[xr.Dataset], layers: Sequence[int]) -> xr.Dataset:
    """The layers' datasets as one."""
    table = cast("xr.Dataset", xr.concat(by_layer, xr.Variable("layer", list(layers))))
    experts = np.arange(table.sizes["expert"])
    return table.assign_coords(expert=experts, other_expert=experts)


def gaps(table: xr.Dataset, measure: str) -> list[str]:
    """What has no number in a table of similarities, and why, a sentence for each kind."""
    found = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        own_E = np.diagonal(at[measure].values)
        if not np.isfinite(own_E).all():
            experts = np.flatnonzero(~np.isfinite(own_E)).tolist()
            why = "no token was routed to" if "num_shared" in at else "the same output for every token of"
            found.append(f"layer {layer}: {why} {_listed(experts)}: no value in tables and figures")
        if "num_shared" in at:
            known = np.isfinite(own_E)
            i_P, j_P = np.triu_indices(len(own_E), 1)
            without = int((known[i_P] & known[j_P] & (at["num_shared"].values[i_P, j_P] == 0)).sum())
            if without:
                found.append(f"layer {layer}: {without:,} pairs of experts share no token: no value")
    documents = table["num_documents"].values.tolist() if "num_documents" in table else []
    few = {
        layer: count
        for layer, count in zip(table["layer"].values.tolist(), documents, strict=False)
        if count < MIN_DOCUMENTS
    }
    if few:
        where = "no intervals" if len(few) == table.sizes["layer"] else f"no intervals at layers {list(few)}"
        found.append(f"{where}: the sample is from {next(iter(few.values()))} documents of {MIN_DOCUMENTS} needed")
    return found


def _listed(experts: list[int]) -> str:
    shown = ", ".join(map(str, experts[:12])) + (f" and {len(experts) - 12} more" if len(experts) > 12 else "")
    return f"expert{'s' if len(experts) > 1 else ''} {shown}"


def summary_rows(table: xr.Dataset, first: str, mode: str) -> pd.DataFrame:
    """A row per layer and measure: how its pairs are distributed, and those of the baseline."""
    rows = []
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        sizes = {name: int(at[name]) for name in ("num_samples", "num_documents") if name in at}
        for measure in measures(table, first):
            values_P = at[measure].values[i_P, j_P]
            known_P = np.isfinite(values_P)
            row = {"layer": layer, "measure": measure, "mode": mode, "num_tokens": int(at["num_tokens"])}
            row |= sizes | {"num_pairs": int(known_P.sum()), "num_gaps": int((~known_P).sum())}
            row |= _spread(values_P[known_P])
            if measure + BASELINE in at:
                baseline_P = at[measure + BASELINE].values[i_P, j_P]
                spread = _spread(baseline_P[np.isfinite(baseline_P)])
                row |= {name + BASELINE: value for name, value in spread.items()}
                low_P = at[f"{measure}_ci_low"].values[i_P, j_P]
                above_P = low_P[np.isfinite(low_P)] > spread["q95"]
                row[f"share_above{BASELINE}"] = float(above_P.mean()) if above_P.size else np.nan
                row |= _excess(at, measure)
            rows.append(row)
    return pd.DataFrame(rows)


def _excess(at: xr.Dataset, measure: str) -> dict[str, float]:
    """By how much the median pair of one layer exceeds that of the baseline, with interval and one-sided p-value.

    Its variance is that over documents, plus that over experts of each of the two: with other experts, or other random
    weights, the medians would be others. Student's t with the degrees of freedom of the fewest groups.
    """
    own_EE, baseline_EE = at[measure].values, at[measure + BASELINE].values
    excess = median_of_pairs(own_EE) - median_of_pairs(baseline_EE)
    errors = [float(at[measure + MEDIAN_ERROR]), error_over_experts(own_EE), error_over_experts(baseline_EE)]
    error = float(np.sqrt(np.sum(np.square(errors))))
    degrees = min(NUM_GROUPS, len(own_EE)) - 1
    reach = float(student.ppf((1 + COVERAGE) / 2, degrees)) * error if degrees else np.nan
    p_value = float(student.sf(excess / error, degrees)) if error > 0 and degrees else np.nan
    return {
        "median_excess": excess,
        "median_excess_ci_low": excess - reach,
        "median_excess_ci_high": excess + reach,
        "median_excess_p_value": p_value,
    }


def pair_rows(table: xr.Dataset, first: str) -> pd.DataFrame:
    """The `TOP_PAIRS` pairs of each layer of highest similarity by the measure asked for, with all measures."""
    rows = []
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        values_P = at[first].values[i_P, j_P]
        order = np.argsort(np.where(np.isfinite(values_P), -values_P, np.inf), kind="stable")
        pairwise = {str(name): values for name, values in at.data_vars.items() if "other_expert" in values.dims}
        for rank, pair in enumerate(order[: min(TOP_PAIRS, int(np.isfinite(values_P).sum()))]):
            i, j = int(i_P[pair]), int(j_P[pair])
            row = {"layer": layer, "rank": rank, "expert": i, "other_expert": j}
            rows.append(row | {name: values.values[i, j].item() for name, values in pairwise.items()})
    return pd.DataFrame(rows)


def _spread(values: NDArray[np.floating]) -> dict[str, float]:
    if not values.size:
        return dict.fromkeys(("mean", "q05", "median", "q95"), np.nan)
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {"mean": float(values.mean()), "q05": low, "median": median, "q95": high}
