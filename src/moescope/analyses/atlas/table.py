"""The numbers of the atlas: effects on the sampled documents, how far two methods agree, and what foretells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from moescope.measures.constants import ALL
from moescope.interventions.ablation import Ablation
from moescope.interventions.atlas import (
    INTERVAL,
    MIN_DOCUMENTS,
    Documents,
    FirstOrderEffects,
    batches_of,
    domain_means,
    measure_ablations,
    measure_first_order,
)
from moescope.one_pass import feed
from moescope.statistics.contribution import ExpertContribution
from moescope.statistics.rank_correlation import RankCorrelation, rank_correlation, rank_correlation_within
from moescope.measures.resampling import halves
from moescope.measures.usage import lift, ratio

if TYPE_CHECKING:
    from moescope.context import Context
    from moescope.statistics.samples.texts import SampledDocument, TextSample

Floats = NDArray[np.float64]

CELLS = ("layer", "domain", "expert")
GRADIENT, FIRST_ORDER, EXACT = "gradient", "first order", "ablated"
ACROSS, WITHIN_LAYERS, WITHIN_DOMAINS = "all layers", "within layers", "within domains"
OTHER_HALF = "effect on other documents"


@dataclass(frozen=True)
class Measured:
    """What the passes over the sampled documents told.

    Attributes:
        documents: The documents.
        first_order: What the gradient tells, by document, layer and expert.
        ablations: What was ablated for real, one expert each.
        exact_GP: Their effects, NaN in documents that they were not measured on.
        saliency_LE: Mean `w |o|` over the tokens routed to each expert; NaN for none.
    """

    documents: Documents
    first_order: FirstOrderEffects
    ablations: list[Ablation]
    exact_GP: Floats
    saliency_LE: Floats


def measure(
    sample: TextSample, context: Context, ablations: Sequence[Ablation], exact_tokens: int | None, batch_tokens: int
) -> Measured:
    """Runs the passes.

    Args:
        sample: The text.
        context: The run's.
        ablations: What to ablate for real.
        exact_tokens: On documents of how many tokens, those of smallest hash in each domain; None: on all.
        batch_tokens: Padded tokens in a batch of the ablations.
    """
    model, layers = context.model, list(context.layers)
    by_domain = [sample.documents(domain_id) for domain_id in range(len(sample.domains))]
    documents = [document for kept in by_domain for document in kept]
    few = {document.document_hash for kept in by_domain for document in _beginning(kept, exact_tokens, len(by_domain))}
    at_G = np.array([document.document_hash in few for document in documents], dtype=bool)
    exact_GP = np.full((len(documents), len(ablations)), np.nan)
    chosen = [document for document, taken in zip(documents, at_G, strict=True) if taken]
    exact_GP[at_G] = measure_ablations(model, chosen, ablations, batch_tokens=batch_tokens)
    contribution = ExpertContribution(
        layers=layers,
        num_experts=model.num_experts,
        model_width=model.model_width,
        domains=list(context.domains),
        device=model.device,
    )
    feed(model, batches_of(chosen, model, batch_tokens), [contribution], layers=layers)
    return Measured(
        Documents.of(documents),
        measure_first_order(model, documents, layers),
        list(ablations),
        exact_GP,
        contribution.compute()["saliency_mean"].values,
    )


def _beginning(kept: Sequence[SampledDocument], tokens: int | None, num_domains: int) -> list[SampledDocument]:
    """The first documents of one domain, in ascending order of hash, that hold its share of so many tokens."""
    if tokens is None:
        return list(kept)
    before = np.cumsum([0, *(len(document.token_ids) for document in kept)])[:-1]
    return [document for document, start in zip(kept, before, strict=True) if start < tokens // num_domains]


def table_of(measured: Measured, context: Context, method: str) -> xr.Dataset:
    """The labelled numbers; see `Atlas.table`."""
    documents, first = measured.documents, measured.first_order
    num_domains, layers = len(context.domains), list(context.layers)
    num_layers, num_experts = first.effects_GLE.shape[1:]
    half_G = halves(documents.hashes_G, seed=context.seed)
    places = [layers.index(a.layer) * num_experts + a.experts[0] for a in measured.ablations]
    effects_GX = first.estimates_GLE.reshape(len(half_G), -1)
    if method == "exact":
        effects_GX = np.full_like(effects_GX, np.nan)
        effects_GX[:, places] = measured.exact_GP

    def cells(values_DX: Floats) -> Floats:
        return values_DX.reshape(num_domains + 1, num_layers, num_experts).swapaxes(0, 1)

    def by_domain(values_G: NDArray) -> NDArray:
        return _by_domain(values_G, documents, num_domains)

    words = (
        "mean over the domain's predicted tokens of the loss without the expert minus the loss with it"
        if method == "exact"
        else "estimate of the change of loss if the expert were ablated, by the gradient: the sum of -w dL/dw + "
        "(w dL/dw)^2 / 2 over the domain's tokens, divided by its predicted tokens"
    )
    variables: dict[str, tuple] = {}
    for prefix, half, added in (
        ("", None, ""),
        ("choosing_", 0, "; half 0 of the documents"),
        ("measured_", 1, "; half 1 of the documents"),
    ):
        within_G = None if half is None else half_G == half
        means = domain_means(effects_GX, documents, num_domains, within_G=within_G, seed=context.seed)
        name = f"{prefix}delta_loss"
        variables[name] = _variable(CELLS, cells(means.mean_DP), "nats per token", words + added)
        for end, values_DP in (("low", means.low_DP), ("high", means.high_DP)):
            definition = f"{end} end of the {INTERVAL}, of: {words}{added}"
            variables[f"{name}_ci_{end}"] = _variable(CELLS, cells(values_DP), "nats per token", definition)
        counted = np.ones(len(half_G), np.int64) if within_G is None else within_G.astype(np.int64)
        for key, values_G, what in (
            ("num_tokens", documents.predicted_G, "predicted tokens: those of which the next token is known"),
            ("num_documents", np.ones_like(documents.predicted_G), "documents"),
        ):
            variables[prefix + key] = _variable(("domain",), by_domain(values_G * counted), key[4:], what + added)
    selected = by_domain(first.selected_GLE).swapaxes(0, 1)
    loss_D = ratio(by_domain(first.losses_G), variables["num_tokens"][1])
    sums_LDE = variables["delta_loss"][1] * variables["num_tokens"][1][:, None]
    slopes_GX = first.effects_GLE.reshape(len(half_G), -1)
    slopes = domain_means(slopes_GX, documents, num_domains, seed=context.seed, num_bootstrap=0)
    variables |= {
        "first_order": _variable(
            CELLS,
            cells(slopes.mean_DP),
            "nats per token",
            "first-order part of the estimate: the sum of -w dL/dw alone",
        ),
        "num_selected": _variable(CELLS, selected, "tokens", "counted tokens of the domain that chose the expert"),
        "delta_loss_routed": _variable(
            CELLS, ratio(sums_LDE, selected), "nats per routed token", f"{words}, but per token that chose the expert"
        ),
        "loss": _variable(("domain",), loss_D, "nats per token", "mean loss over the domain's predicted tokens"),
        "saliency": _variable(
            ("layer", "expert"),
            measured.saliency_LE,
            "norm of a hidden state",
            "mean w |o| over the tokens that chose the expert",
        ),
    }
    variables |= _ablated(measured, context, places)
    table = xr.Dataset(
        variables, coords={"layer": layers, "domain": [ALL, *context.domains], "expert": np.arange(num_experts)}
    )
    table.attrs |= {"method": method, "min_documents": MIN_DOCUMENTS, "interval": INTERVAL}
    return table.assign(_relations(table, measured, places))


def _ablated(measured: Measured, context: Context, places: Sequence[int]) -> dict[str, tuple]:
    """By `ablation`: what was ablated for real, with what effect, and what the gradient says of the same documents."""
    at_G: NDArray[np.bool_] = np.zeros(len(measured.exact_GP), dtype=bool)
    if places:
        at_G |= np.isfinite(measured.exact_GP).all(1)
    first_GX = measured.first_order.effects_GLE.reshape(len(at_G), -1)
    estimate_GX = measured.first_order.estimates_GLE.reshape(len(at_G), -1)
    exact_GP = np.where(at_G[:, None], measured.exact_GP, 0.0)
    exact = domain_means(exact_GP, measured.documents, 0, within_G=at_G, seed=context.seed)
    first, estimate = (
        domain_means(values_GX[:, list(places)], measured.documents, 0, within_G=at_G, num_bootstrap=0)
        for values_GX in (first_GX, estimate_GX)
    )
    dims, units = ("ablation",), "nats per token"
    num_tokens, num_documents = int(measured.documents.predicted_G[at_G].sum()), int(at_G.sum())
    return {
        "ablated_layer": _variable(dims, np.array([a.layer for a in measured.ablations], int), "index", "layer"),
        "ablated_expert": _variable(
            dims, np.array([a.experts[0] for a in measured.ablations], int), "index", "expert ablated for real"
        ),
        "ablated_delta_loss": _variable(dims, exact.mean_DP[0], units, "loss without the expert minus loss with it"),
        "ablated_delta_loss_ci_low": _variable(dims, exact.low_DP[0], units, f"low end, {INTERVAL}"),
        "ablated_delta_loss_ci_high": _variable(dims, exact.high_DP[0], units, f"high end, {INTERVAL}"),
        "ablated_gradient": _variable(dims, estimate.mean_DP[0], units, "estimate by gradient on the same documents"),
        "ablated_first_order": _variable(dims, first.mean_DP[0], units, "its first-order part"),
        "ablated_num_tokens": _variable((), np.array(num_tokens), "tokens", "predicted tokens they were measured on"),
        "ablated_num_documents": _variable((), np.array(num_documents), "documents", "documents those are from"),
    }


def _relations(table: xr.Dataset, measured: Measured, places: Sequence[int]) -> dict[str, tuple]:
    """By `relation`: the rank correlation of an effect with what might foretell it, over experts."""
    first, documents = measured.first_order, measured.documents
    counted_D = _by_domain(documents.counted_G, documents, table.sizes["domain"] - 1)
    tokens = max(1, int(counted_D[0]))
    effect_LDE = table["delta_loss"].values
    selected_LDE = table["num_selected"].values
    specialization_LDE = ratio(selected_LDE, counted_D[:, None])[:, 1:]
    lift_LDE = lift(specialization_LDE)
    predictors: dict[str, Floats] = {
        "selection frequency": selected_LDE[:, 0] / tokens,
        "weight": first.weights_GLE.sum(0) / tokens,
        "saliency": np.nan_to_num(measured.saliency_LE),
        "total saliency": np.nan_to_num(measured.saliency_LE) * selected_LDE[:, 0] / tokens,
    }
    if lift_LDE.shape[1] > 1:
        predictors["highest lift"] = np.nan_to_num(lift_LDE).max(1)
    main = EXACT if table.attrs["method"] == "exact" else GRADIENT
    found: list[tuple[str, str, str, RankCorrelation]] = []
    if len(places) > 1:
        exact_P = table["ablated_delta_loss"].values
        for name, variable in ((GRADIENT, "ablated_gradient"), (FIRST_ORDER, "ablated_first_order")):
            found.append((EXACT, name, ACROSS, rank_correlation(table[variable].values, exact_P)))
        if main != EXACT:
            found += [
                (EXACT, name, ACROSS, rank_correlation(values_LE.ravel()[list(places)], exact_P))
                for name, values_LE in predictors.items()
            ]
    halves_of = (table["choosing_delta_loss"].values, table["measured_delta_loss"].values)
    for name, values_LE in {**predictors, OTHER_HALF: halves_of[0][:, 0]}.items():
        of_LE = halves_of[1][:, 0] if name == OTHER_HALF else effect_LDE[:, 0]
        found.append((main, name, ACROSS, rank_correlation(values_LE.ravel(), of_LE.ravel())))
        found.append((main, name, WITHIN_LAYERS, rank_correlation_within(values_LE, of_LE)))
    if lift_LDE.shape[1] > 1:
        by_domain = {"domain specialization": specialization_LDE, "lift": lift_LDE, OTHER_HALF: halves_of[0][:, 1:]}
        for name, values_LDE in by_domain.items():
            of_LDE = (halves_of[1] if name == OTHER_HALF else effect_LDE)[:, 1:]
            rows = [values.swapaxes(0, 1).reshape(values.shape[1], -1) for values in (values_LDE, of_LDE)]
            found.append((main, name, WITHIN_DOMAINS, rank_correlation_within(*rows)))
    columns: Mapping[str, tuple[list, str, str]] = {
        "relation_effect": (
            [f[0] for f in found],
            "name",
            "the effect: estimated by gradient, or measured by ablation",
        ),
        "relation_predictor": ([f[1] for f in found], "name", "what might foretell it"),
        "relation_scope": ([f[2] for f in found], "name", "among which experts: of all layers, or mean within each"),
        "relation_num": ([f[3].num for f in found], "pairs", "experts, or experts and domains, it is from"),
        "rank_correlation": ([f[3].value for f in found], "Spearman's rho", "rank correlation of effect and predictor"),
        "rank_correlation_ci_low": ([f[3].low for f in found], "Spearman's rho", "low end of the 95 % interval"),
        "rank_correlation_ci_high": ([f[3].high for f in found], "Spearman's rho", "high end of the 95 % interval"),
    }
    return {
        name: _variable(("relation",), np.array(values), units, definition)
        for name, (values, units, definition) in columns.items()
    }


def _by_domain(values_G: NDArray, documents: Documents, num_domains: int) -> NDArray:
    """Sums over all documents, then over each domain's."""
    return np.stack([values_G.sum(0), *(values_G[documents.domain_ids_G == d].sum(0) for d in range(num_domains))])


def _variable(dims: tuple[str, ...], values: NDArray, units: str, definition: str) -> tuple:
    return dims, values, {"units": units, "definition": definition}
