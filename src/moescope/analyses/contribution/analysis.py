"""Contribution: how much each expert adds to its layer's output, and which tokens its output promotes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr

from moescope.analyses.contribution import figures as contribution_figures
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.models.token_text import token_texts
from moescope.models.unembedding import direct_logits
from moescope.statistics.contribution import MEANS, ExpertContribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

TOP_TOKENS = 10
PROMOTED = (
    "what the expert's mean output adds to a token's logit if it reaches the last hidden state as it is: mean output "
    "times the final norm's gain times the token's row of the unembedding, less its mean over the vocabulary; before "
    "the final norm's division by the size of the hidden state"
)
KINDS = ("promoted", "suppressed")


def expert_contribution(context: Context) -> dict[str, Statistic]:
    """Contribution and mean output of every expert, under the key that analyses share it by."""
    model = context.model
    return {
        "contribution": ExpertContribution(
            layers=list(context.layers),
            num_experts=model.num_experts,
            model_width=model.model_width,
            domains=list(context.domains),
            seed=context.seed,
            device=model.device,
        )
    }


@dataclass(frozen=True)
class Contribution(Analysis):
    """Norm, saliency and share of every expert's output; the tokens that its mean output promotes and suppresses.

    Attributes:
        top_tokens: Tokens listed of each kind and expert.
    """

    name: ClassVar[str] = "contribution"
    summary: ClassVar[str] = (
        "Contribution: how much each expert adds to its layer's output, and which tokens its output promotes."
    )
    about: ClassVar[str] = "experts"

    top_tokens: int = TOP_TOKENS

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Sums of norms, shares and outputs."""
        return expert_contribution(context)

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """What `ExpertContribution.compute` gives, `mean_output`, and, of a complete model, the tokens promoted."""
        contribution = cast(ExpertContribution, statistics["contribution"])
        table = contribution.compute()
        means = torch.stack([contribution.mean_outputs(layer) for layer in contribution.layers])
        words = {"units": "hidden state", "definition": "mean o_e(x) over the tokens routed to the expert"}
        table["mean_output"] = (("layer", "expert", "dimension"), means.float().cpu().numpy(), words)
        promoted = promoted_tokens(contribution, context, self.top_tokens)
        return table if promoted is None else xr.merge([table, promoted], combine_attrs="no_conflicts")

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """A row per layer and expert; the same by domain; each layer's foremost expert; tokens promoted, suppressed."""
        measures = [name for name, _, _ in MEANS.values()]
        columns = [column for name in (*measures, "output_share") for column in _with_ends(name)]
        by_expert = table[["num_tokens", "num_selected", *columns]].to_dataframe().reset_index()
        renamed = {f"{name}_by_domain": name for name in ("num_tokens", "num_selected", *measures)}
        by_domain = table[list(renamed)].rename(renamed).to_dataframe(dim_order=["layer", "domain", "expert"])
        frames = {
            "contribution": by_expert,
            "contribution_domains": by_domain.reset_index(),
            "contribution_leaders": _leaders(table),
        }
        if "promoted_token_id" in table:
            frames["promoted_tokens"] = _token_rows(table)
        return frames

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`mean_outputs`: each expert's mean output, (layer, expert, model width)."""
        return {"mean_outputs": {"layers": table["layer"].values, "mean_output": table["mean_output"].values}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Heat maps of saliency and share, norms over depth, and what the foremost experts promote."""
        yield "contribution_share", contribution_figures.heat_maps(table, context)
        yield "contribution_norms", contribution_figures.over_depth(table, context)
        if "promoted_token_id" in table:
            yield "promoted_tokens", contribution_figures.token_lists(table, context)


def promoted_tokens(contribution: ExpertContribution, context: Context, num_tokens: int) -> xr.Dataset | None:
    """The tokens each expert's mean output promotes and suppresses most, by direct logit attribution.

    Returns:
        By `layer, expert, place`: `promoted_token_id`, `promoted_token`, `promoted_logit`, the same with `suppressed_`;
        and each logit's `_above_layer`: less the mean over the layer's experts. Id -1 where the expert saw no token.
        None if the model was loaded without its head.
    """
    if not context.model.complete:
        return None
    key = f"promoted_tokens of {contribution.parameters}, {num_tokens}"
    return context.once(key, lambda: _promoted_tokens(contribution, context, num_tokens))


def _promoted_tokens(contribution: ExpertContribution, context: Context, num_tokens: int) -> xr.Dataset:
    tokenizer = context.model.tokenizer
    num_known = min(context.model.vocab_size, len(tokenizer))  # an embedding may have rows that no token uses
    num_tokens = min(num_tokens, num_known)
    found: dict[str, list[np.ndarray]] = {f"{kind}_{what}": [] for kind in KINDS for what in _LOGITS}
    for layer in contribution.layers:
        logits_EV = direct_logits(context.model, contribution.mean_outputs(layer))[:, :num_known].cpu()
        seen_E = ~logits_EV.isnan().any(dim=1)
        above_EV = logits_EV - logits_EV[seen_E].mean(dim=0) if seen_E.any() else logits_EV
        for kind in KINDS:
            values_EV = logits_EV.nan_to_num() if kind == "promoted" else -logits_EV.nan_to_num()
            ids_EP = values_EV.topk(num_tokens, dim=1).indices
            found[f"{kind}_logit"].append(logits_EV.gather(1, ids_EP).numpy())
            found[f"{kind}_logit_above_layer"].append(above_EV.gather(1, ids_EP).numpy())
            found[f"{kind}_token_id"].append(torch.where(seen_E.unsqueeze(1), ids_EP, -1).numpy())
    variables: dict[str, Any] = {}
    by_place = ("layer", "expert", "place")
    for name, parts in found.items():
        kind, _, what = name.partition("_")
        attrs = {"units": _LOGITS[what][0], "definition": _LOGITS[what][1].format(kind)}
        variables[name] = (by_place, np.stack(parts), attrs)
    ids = np.stack([variables[f"{kind}_token_id"][1] for kind in KINDS])
    texts = token_texts(tokenizer, np.unique(ids[ids >= 0]).tolist()) | {-1: ""}
    for kind, ids_LEP in zip(KINDS, ids, strict=True):
        words = np.array([texts[token_id] for token_id in ids_LEP.ravel().tolist()], dtype=np.str_)
        attrs = {"units": "text", "definition": f"the {kind} token, made visible"}
        variables[f"{kind}_token"] = (by_place, words.reshape(ids_LEP.shape), attrs)
    coords = {"layer": contribution.layers, "expert": np.arange(contribution.num_experts)}
    return xr.Dataset(
        variables, coords=coords | {"place": np.arange(num_tokens)}, attrs={"promoted_definition": PROMOTED}
    )


_LOGITS = {
    "token_id": ("token id", "the {} token; -1: the expert saw no token"),
    "logit": ("logits times the size of the last hidden state", PROMOTED + "; {} most first"),
    "logit_above_layer": (
        "logits times the size of the last hidden state",
        "the {} token's logit less its mean over the layer's experts",
    ),
}


def _with_ends(name: str) -> list[str]:
    return [name, f"{name}_ci_low", f"{name}_ci_high"]


def _leaders(table: xr.Dataset) -> pd.DataFrame:
    """For each layer the expert with the largest share on one half of the documents, as measured on the other."""
    rows = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        choosing_E = at["output_share_choosing"].values
        if not np.isfinite(choosing_E).any():
            continue
        best = at.isel(expert=int(np.nanargmax(choosing_E)))
        measured = {f"output_share{end}": best[f"output_share_measured{end}"].item() for end in _ENDS}
        chosen = {"output_share_choosing": best["output_share_choosing"].item()}
        sizes = {"num_tokens": int(at["num_tokens_measured"])}
        half = {"experts_for_half": num_for_half(at["output_share"].values)}
        rows.append({"layer": layer, "expert": int(best["expert"])} | sizes | measured | chosen | half)
    return pd.DataFrame(rows)


def num_for_half(shares_E: Sequence[float] | np.ndarray) -> int:
    """The fewest experts whose shares sum to at least half; those without a share have 0."""
    descending_E = np.sort(np.nan_to_num(np.asarray(shares_E, float)))[::-1]
    reached = np.flatnonzero(descending_E.cumsum() >= 0.5 * descending_E.sum() - 1e-12)
    return int(reached[0]) + 1 if reached.size else len(descending_E)


_ENDS = ("", "_ci_low", "_ci_high")


def _token_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer, expert, kind and place; experts that saw no token have none."""
    parts = []
    columns = {"token_id": "token_id", "token": "token", "logit": "logit", "logit_above_layer": "logit_above_layer"}
    for kind in KINDS:
        names = {f"{kind}_{column}": column for column in columns}
        frame = table[list(names)].rename(names).to_dataframe(dim_order=["layer", "expert", "place"]).reset_index()
        frame.insert(2, "kind", kind)
        parts.append(frame[frame["token_id"] >= 0])
    rows = pd.concat(parts).sort_values(["layer", "expert", "kind", "place"], kind="stable")
    return rows.reset_index(drop=True)
