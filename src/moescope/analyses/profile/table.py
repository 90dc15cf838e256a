"""All that is known of every expert of a run, as one labeled table: what profiles are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import xarray as xr

from moescope.analyses.profile.labels import Label, Part, labels
from moescope.analyses.weights.analysis import leading
from moescope.measures.constants import MIN_EXPECTED
from moescope.models.token_text import token_texts
from moescope.statistics.tokens import Reading, TokenUsage
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moescope.context import Context
    from moescope.statistics.base import Statistic
    from moescope.statistics.samples.tokens import TokenSample

TOP_TOKENS = 10
NUM_NEIGHBORS = 8
PAIR = ("layer", "expert")
OF_USAGE = [
    "num_tokens",
    "num_documents",
    "num_selected",
    *(f"{name}{end}" for name in ("domain_specialization", "lift") for end in ("", "_ci_low", "_ci_high")),
    "num_tokens_all",
    "num_documents_all",
    "num_selected_all",
    *(f"selection_frequency{end}" for end in ("", "_ci_low", "_ci_high")),
    "mean_probability",
    *(f"divergence{end}" for end in ("", "_null_mean", "_null_low", "_null_high", "_excess")),
]


def usage_part(usage: xr.Dataset) -> xr.Dataset:
    """Usage by domain and pooled, and each expert's load relative to its layer's mean."""
    table = usage[OF_USAGE]
    selected_LE = table["num_selected_all"].values
    mean_L1 = selected_LE.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        load_LE = np.where(mean_L1 > 0, selected_LE / mean_L1, np.nan)
    # Busiest first, ties to the lower id.
    order_LE = np.argsort(-selected_LE, axis=1, kind="stable")
    place_LE = np.empty_like(order_LE)
    np.put_along_axis(place_LE, order_LE, np.arange(order_LE.shape[1])[None], axis=1)
    return table.assign(
        load=variable(PAIR, load_LE, "ratio", "N_e over its mean over the layer's experts"),
        usage_rank=variable(PAIR, place_LE, "rank", "rank by N_e in the layer, 0 for the most used"),
    )


def tokens_part(statistics: Mapping[str, Statistic]) -> xr.Dataset:
    """Top token types by `reading, order, token_rank`; a reading that was not counted is absent."""
    readings = [reading for reading in get_args(Reading) if f"tokens_{reading}" in statistics]
    tops = []
    for reading in readings:
        usage = cast("TokenUsage", statistics[f"tokens_{reading}"])
        tops.append(usage.top_tokens(TOP_TOKENS))
    if not tops:
        return xr.Dataset()
    top = xr.concat(tops, xr.Variable("reading", readings), combine_attrs="drop_conflicts")
    names = {str(name): f"token_{str(name).removeprefix('token_')}" for name in top.data_vars}
    top = top.transpose("layer", "expert", "reading", "order", "rank")
    return top.rename(names | {"rank": "token_rank"}).assign_attrs(token_min_count=top.attrs["min_count"])


def pairs_part(table: xr.Dataset) -> xr.Dataset:
    """Co-activated experts of each, by lift over independent routing's, among pairs expected together often enough."""
    selected_LE, tokens_L = table["num_selected"].values, table["num_tokens"].values
    chance_LEE = table["lift_chance"].values
    with np.errstate(invalid="ignore", divide="ignore"):
        both = selected_LE[:, :, None] * selected_LE[:, None, :] / tokens_L[:, None, None]
        expected_LEE = chance_LEE * both
        key_LEE = np.where(expected_LEE >= MIN_EXPECTED, table["lift"].values / chance_LEE, np.nan)
    key_LEE = np.where(key_LEE > 1, key_LEE, np.nan)
    variables: dict[str, Any] = nearest(
        key_LEE, "coactivated", "highest lift of co-activation over independent routing"
    )
    for name in ("num_together", "coactivation", "lift", "lift_chance"):
        of_pair = picked(table[name].values, variables["coactivated_expert"][1])
        variables[f"coactivated_{name}"] = ((*PAIR, "neighbor"), of_pair, dict(table[name].attrs))
    return xr.Dataset(variables)


def nearest(key_LEE: NDArray[np.floating], name: str, words: str) -> dict[str, Any]:
    """`NAME_expert`: the other experts of highest key, highest first; -1 where there are fewer. NaN is none."""
    num_experts = key_LEE.shape[1]
    key_LEE = key_LEE.copy()
    key_LEE[:, np.arange(num_experts), np.arange(num_experts)] = np.nan
    size = min(NUM_NEIGHBORS, max(num_experts - 1, 1))
    order_LEN = np.argsort(-key_LEE, axis=2, kind="stable")[..., :size]  # NaN last
    known_LEN = ~np.isnan(np.take_along_axis(key_LEE, order_LEN, axis=2))
    experts_LEN = np.where(known_LEN, order_LEN, -1)
    definition = f"expert of the same layer with the {words}; -1: none"
    return {f"{name}_expert": variable((*PAIR, "neighbor"), experts_LEN, "index", definition)}


def picked(values_LEE: NDArray, experts_LEN: NDArray[np.integer]) -> NDArray:
    """A measure of the pairs that `nearest` chose; NaN, or 0 for counts, where there are fewer."""
    chosen_LEN = np.take_along_axis(values_LEE, np.maximum(experts_LEN, 0), axis=2)
    return np.where(experts_LEN >= 0, chosen_LEN, np.nan if chosen_LEN.dtype.kind == "f" else 0)


def contexts_part(statistic: Statistic) -> xr.Dataset:
    """Contexts of largest `w ‖o‖`, with the tokens around."""
    return statistic.compute().drop_vars("num_selected")


def margins_part(statistic: Statistic) -> xr.Dataset:
    """Means over each expert's own tokens of weight, probability and margins."""
    return statistic.compute().drop_vars("num_selected")


def labels_part(statistic: Statistic, context: Context) -> xr.Dataset:
    """The statistical labels as arrays; `label_text` is empty for an expert without one."""
    sample, num_experts = cast("TokenSample", statistic), context.model.num_experts
    by_layer = [
        labels(sample.sample(layer), num_experts, context.domains, context.groups, seed=context.seed)
        for layer in context.layers
    ]
    every = [label for layer in by_layer for label in layer]
    named = {part.token_id for label in every if label is not None for part in label.tokens}
    texts = token_texts(context.model.tokenizer, named)
    lines = ["" if label is None else label_text(label, texts) for label in every]
    shape = (len(by_layer), num_experts)

    def array(values: Sequence[Any], dtype: Any) -> NDArray:
        return np.array(values, dtype=dtype).reshape(shape)

    def score(name: str) -> NDArray:
        missing = 0 if name.startswith("num_") else np.nan
        values = [missing if label is None else getattr(label.score, name) for label in every]
        return array(values, np.int64 if name.startswith("num_") else np.float64)

    one, half = "share", "evaluation half of the documents"
    variables: dict[str, Any] = {
        "label_text": (PAIR, array(lines, np.str_), "text", "what the label names, with lifts"),
        "label_rule": (PAIR, array(["" if x is None else x.rule for x in every], np.str_), "name", "rule, see RULES"),
        "label_balanced_accuracy": (PAIR, score("balanced_accuracy"), one, f"balanced accuracy of the rule, {half}"),
        "label_ci_low": (PAIR, score("low"), one, "lower end of its 95 % interval; Poisson bootstrap over documents"),
        "label_ci_high": (PAIR, score("high"), one, "upper end"),
        "label_p_value": (
            PAIR, score("p_value"), "probability", "one-sided, of a balanced accuracy of 0.5 or less; over documents"
        ),
        "label_num_tokens": (PAIR, score("num_tokens"), "tokens", f"tokens of the sample, {half}"),
        "label_num_selected": (PAIR, score("num_selected"), "tokens", "those of them that selected the expert"),
        "label_num_documents": (PAIR, score("num_documents"), "documents", "documents that these are of"),
        "label_selection_half_balanced_accuracy": (
            PAIR,
            array([np.nan if x is None else x.chosen for x in every], np.float64),
            one,
            "balanced accuracy on the selection half: optimistically biased, since the label was selected there",
        ),
        "label_domain": (PAIR, array(["" if x is None or x.domain is None else x.domain.name for x in every], np.str_),
                         "name", "domain or group of domains that the label names"),
    }  # fmt: skip
    members_LED = np.zeros((len(every), len(context.domains)), dtype=bool)
    for row, label in enumerate(every):
        members_LED[row, list(label.domains) if label is not None else []] = True
    variables["label_domain_member"] = (
        (*PAIR, "domain"), members_LED.reshape(*shape, -1), "yes or no", "domains that the label means"
    )  # fmt: skip
    domain_parts = [[label.domain] if label is not None and label.domain is not None else [] for label in every]
    token_parts = [label.tokens if label is not None else () for label in every]
    for name, parts, size in (("label_domain", domain_parts, 0), ("label_token", token_parts, TOP_TOKENS)):
        dims = (*PAIR, "label_rank") if size else PAIR
        for field, dtype, units in (
            ("token_id", np.int64, "index"),
            ("lift", np.float64, "ratio"),
            ("num_selected", np.int64, "tokens"),
            ("num_occurrences", np.int64, "tokens"),
        ):
            if field == "token_id" and not size:
                continue
            missing = np.nan if dtype is np.float64 else -1 if field == "token_id" else 0
            values = [_padded([getattr(part, field) for part in row], max(size, 1), missing) for row in parts]
            whole = np.array(values, dtype=dtype).reshape(*shape, max(size, 1))
            key = "label_token_id" if field == "token_id" else f"{name}_{field}"
            definition = f"{field} of what the label names, on the selection half"
            variables[key] = (dims, whole if size else whole[..., 0], units, definition)
    return xr.Dataset({name: variable(*parts) for name, parts in variables.items()})


def _padded(values: list[Any], size: int, missing: Any) -> list[Any]:
    return values[:size] + [missing] * (size - len(values))


def label_text(label: Label, texts: Mapping[int, str]) -> str:
    """A label in a line: what its rule uses, each with its lift."""
    words = []
    if label.domain is not None and label.rule != "tokens":
        words.append(_with_lift(label.domain.name, label.domain))
    if label.tokens and label.rule != "domains":
        words.append("  ".join(_with_lift(texts[part.token_id], part) for part in label.tokens[:TOKENS_IN_TEXT]))
    return {"either": " or ", "both": " and "}.get(label.rule, "").join(words)


TOKENS_IN_TEXT = 5
"""Token types shown in a label's line; the rule uses all of them."""


def _with_lift(text: str, part: Part) -> str:
    return f"{text} ×{part.lift:.1f}"


def outputs_part(contribution: xr.Dataset) -> xr.Dataset:
    """Norm and saliency of each expert's output, and, of a complete model, which tokens its mean output promotes."""
    table = contribution[["output_norm_mean", "saliency_mean"]]
    if "promoted_token_id" not in contribution:
        return table.assign_attrs(missing_promoted="the model was loaded without its head (`predictions` loads it)")
    kinds = [
        f"{kind}_{what}" for kind in ("promoted", "suppressed") for what in ("token_id", "logit", "logit_above_layer")
    ]
    promoted = contribution[kinds].rename(rank="promoted_rank").drop_attrs(deep=False)
    definition = contribution.attrs["promoted_definition"]
    return table.merge(promoted).assign_attrs(promoted_definition=definition)


def outputs_neighbors_part(similarity: xr.Dataset) -> xr.Dataset:
    """The nearest experts of each by output on the same tokens, by debiased CKA."""
    name, measure = "nearest_by_output", "cka"
    variables = nearest(similarity[measure].values, name, "highest debiased CKA of outputs on the same tokens")
    for key in (measure, f"{measure}_ci_low", f"{measure}_ci_high", "cosine", "centered_cosine"):
        values = picked(similarity[key].values, variables[f"{name}_expert"][1])
        variables[f"{name}_{key}"] = ((*PAIR, "neighbor"), values, dict(similarity[key].attrs))
    definition = similarity[measure].attrs["definition"]
    sample = f"all experts on the same {int(similarity['num_samples'].max()):,} tokens"
    attrs = {f"{name}_measure": measure, f"{name}_definition": f"{definition}; {sample}"}
    return xr.Dataset(variables, attrs=attrs)


def weights_part(weights: xr.Dataset) -> xr.Dataset:
    """The nearest experts of each by weights: with neurons matched, if any were."""
    name, measure = "nearest_by_weight", leading(weights)
    definition = str(weights[measure].attrs["definition"])
    matched, possible = (
        int(weights["num_pairs_matched"].min()),
        weights.sizes["expert"] * (weights.sizes["expert"] - 1) // 2,
    )
    if "matched" in measure and matched < possible:
        definition += f"; among {matched:,} of {possible:,} pairs of experts, drawn at random"
    variables = nearest(weights[measure].values, name, f"highest {measure.replace('_', ' ')}")
    others = [key for key in ("router_centered_cosine",) if key in weights]
    for key in (measure, *others):
        values = picked(weights[key].values, variables[f"{name}_expert"][1])
        variables[f"{name}_{key}"] = ((*PAIR, "neighbor"), values, dict(weights[key].attrs))
    return xr.Dataset(variables, attrs={f"{name}_measure": measure, f"{name}_definition": definition})


def effect_part(atlas: xr.Dataset, measured: xr.Dataset) -> xr.Dataset:
    """What ablating each expert does to the loss, over all domains and for each; measured of those with a page."""
    variables: dict[str, Any] = {str(name): values for name, values in measured.data_vars.items()}
    held_out = atlas["evaluation_half_delta_loss"]
    variables["effect_held_out"] = (PAIR, held_out.values[:, 0], dict(held_out.attrs))
    for end in ("", "_ci_low", "_ci_high"):
        of = atlas[f"delta_loss{end}"]
        variables[f"effect{end}"] = (PAIR, of.values[:, 0], dict(of.attrs))
        variables[f"effect_by_domain{end}"] = (("layer", "domain", "expert"), of.values[:, 1:], dict(of.attrs))
    about = atlas["delta_loss"].attrs
    attrs = {
        "effect_method": {"gradient": "estimated by gradient", "exact": "ablated"}[str(atlas.attrs["method"])],
        "effect_definition": about["definition"],
        "effect_units": about["units"],
        "effect_num_tokens": int(atlas["num_tokens"].values[0]),
    }
    return xr.Dataset(variables, attrs=attrs | measured.attrs)
