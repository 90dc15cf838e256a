"""The table of contributions: promoted tokens of each expert's mean output, and the rows of all tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import xarray as xr

from moescope.models.token_text import token_texts
from moescope.models.unembedding import direct_logits
from moescope.statistics.contribution import MEANS
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    from torch import Tensor

    from moescope.models import MoEModel

PROMOTED = (
    "what the expert's mean output adds to a token's logit if it reaches the last hidden state unchanged: mean output "
    "times the final norm's gain times the token's row of the unembedding, less its mean over the vocabulary; before "
    "the final norm's division by the norm of the hidden state"
)
KINDS = ("promoted", "suppressed")
_LOGIT_UNITS = "logits times the size of the last hidden state"
_COLUMNS = {
    "token_id": ("token id", "the {} token; -1: no token was routed to the expert"),
    "logit": (_LOGIT_UNITS, PROMOTED + "; {} most first"),
    "logit_above_layer": (_LOGIT_UNITS, "the {} token's logit less its mean over the layer's experts"),
}
_ENDS = ("", "_ci_low", "_ci_high")


def promoted_tokens(model: MoEModel, means: Mapping[int, Tensor], num_tokens: int) -> xr.Dataset:
    """The tokens each expert's mean output promotes and suppresses most, by direct logit attribution.

    Args:
        model: A complete model.
        means: Mean output of each expert by layer, (E, M); NaN for an expert that no token was routed to.
        num_tokens: Tokens of each kind.

    Returns:
        By `layer, expert, place` (the rank): `promoted_token_id`, `promoted_token`, `promoted_logit`, the same with
        `suppressed_`; and each logit's `_above_layer`: less the mean over the layer's experts. Id -1 where no token was
        routed to the expert.
    """
    num_known = min(model.vocab_size, len(model.tokenizer))  # an embedding may have rows that no token uses
    num_tokens = min(num_tokens, num_known)
    by_layer: dict[str, list[np.ndarray]] = {f"{kind}_{column}": [] for kind in KINDS for column in _COLUMNS}
    for mean_EM in means.values():
        logits_EV = direct_logits(model, mean_EM)[:, :num_known].cpu()
        seen_E = ~logits_EV.isnan().any(dim=1)
        above_EV = logits_EV - logits_EV[seen_E].mean(dim=0) if seen_E.any() else logits_EV
        for kind in KINDS:
            values_EV = logits_EV.nan_to_num() if kind == "promoted" else -logits_EV.nan_to_num()
            ids_EP = values_EV.topk(num_tokens, dim=1).indices
            by_layer[f"{kind}_logit"].append(logits_EV.gather(1, ids_EP).numpy())
            by_layer[f"{kind}_logit_above_layer"].append(above_EV.gather(1, ids_EP).numpy())
            by_layer[f"{kind}_token_id"].append(torch.where(seen_E.unsqueeze(1), ids_EP, -1).numpy())
    dims = ("layer", "expert", "rank")
    arrays = {name: np.stack(parts) for name, parts in by_layer.items()}
    variables = {}
    for name, values_LEP in arrays.items():
        kind, _, column = name.partition("_")
        units, definition = _COLUMNS[column]
        variables[name] = variable(dims, values_LEP, units, definition.format(kind))
    ids = np.stack([arrays[f"{kind}_token_id"] for kind in KINDS])
    texts = token_texts(model.tokenizer, np.unique(ids[ids >= 0]).tolist()) | {-1: ""}
    for kind, ids_LEP in zip(KINDS, ids, strict=True):
        texts_A = np.array([texts[token_id] for token_id in ids_LEP.ravel().tolist()], dtype=np.str_)
        definition = f"the {kind} token, made visible"
        variables[f"{kind}_token"] = variable(dims, texts_A.reshape(ids_LEP.shape), "text", definition)
    coords = {"layer": list(means), "expert": np.arange(ids.shape[2]), "rank": np.arange(num_tokens)}
    return xr.Dataset(variables, coords=coords, attrs={"promoted_definition": PROMOTED})


def expert_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer and expert: means with intervals."""
    names = [*(name for name, _, _ in MEANS.values()), "output_share"]
    columns = [name + end for name in names for end in _ENDS]
    return table[["num_tokens", "num_selected", *columns, "silent"]].to_dataframe().reset_index()


def silent_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per expert that was selected and gives nothing: how often, its norm and the layer's median."""
    rows = expert_rows(table)
    medians_L = rows[rows["output_norm_mean"] > 0].groupby("layer")["output_norm_mean"].median()
    rows = rows[rows["silent"]].reset_index(drop=True)
    frame = rows[["layer", "expert", "num_tokens", "num_selected"]]
    return frame.assign(
        selection_frequency=rows["num_selected"] / rows["num_tokens"],
        output_norm_mean=rows["output_norm_mean"],
        output_norm_median_of_layer=rows["layer"].map(medians_L),
    )


def domain_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer, domain and expert: means."""
    names = ("num_tokens", "num_selected", *(name for name, _, _ in MEANS.values()))
    renamed = {f"{name}_by_domain": name for name in names}
    rows = table[list(renamed)].rename(renamed).to_dataframe(dim_order=["layer", "domain", "expert"])
    return rows.reset_index()


def top_experts(table: xr.Dataset) -> pd.DataFrame:
    """For each layer the expert with the largest share on one half of the documents, as measured on the other."""
    rows = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        selection_E = at["selection_half_output_share"].values
        if not np.isfinite(selection_E).any():
            continue
        best = at.isel(expert=int(np.nanargmax(selection_E)))
        row = {"layer": layer, "expert": int(best["expert"]), "num_tokens": int(at["evaluation_half_num_tokens"])}
        row |= {f"output_share{end}": best[f"evaluation_half_output_share{end}"].item() for end in _ENDS}
        row |= {"selection_half_output_share": best["selection_half_output_share"].item()}
        rows.append(row | {"num_experts_for_half": num_for_half(at["output_share"].values)})
    return pd.DataFrame(rows)


def num_for_half(shares_E: Sequence[float] | np.ndarray) -> int:
    """The fewest experts whose shares sum to at least half; those without a share have 0."""
    descending_E = np.sort(np.nan_to_num(np.asarray(shares_E, float)))[::-1]
    reached = np.flatnonzero(descending_E.cumsum() >= 0.5 * descending_E.sum() - 1e-12)
    return int(reached[0]) + 1 if reached.size else len(descending_E)


def token_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer, expert, kind and rank; experts that no token was routed to have none."""
    parts = []
    for kind in KINDS:
        names = {f"{kind}_{column}": column for column in ("token_id", "token", "logit", "logit_above_layer")}
        frame = table[list(names)].rename(names).to_dataframe(dim_order=["layer", "expert", "rank"]).reset_index()
        frame.insert(2, "kind", kind)
        parts.append(frame[frame["token_id"] >= 0])
    rows = pd.concat(parts).sort_values(["layer", "expert", "kind", "rank"], kind="stable")
    return rows.reset_index(drop=True)
