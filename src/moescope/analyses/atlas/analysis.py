"""Causal atlas: how much worse the model predicts each domain without each expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.atlas.table import ALL, measure, table_of
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.errors import UsageError
from moescope.interventions.ablation import Ablation
from moescope.interventions.controls import NUM_CONTROLS, matched_experts
from moescope.statistics.samples.texts import TextSample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

Method = Literal["gradient", "exact"]

SAMPLE_TOKENS: dict[str, int] = {"gradient": 24_000, "exact": 5_000}
"""What a report can afford; the command of its own takes more."""
DOCUMENTS_PER_DOMAIN = 24
"""So many documents are sampled of each domain where it has them: each half then has about 12, enough for intervals."""
SHORTEST = 32
"""But no document is cut to fewer tokens."""
TOP_EXPERTS = 3
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Atlas(Analysis):
    """Δ loss of ablating every expert, by domain, on a sample of the text read.

    Attributes:
        method: "gradient": an estimate, one backward pass for all experts; "exact": real ablations.
        experts: Experts of each layer to ablate for real. None: with "exact" all, else `num_exact` drawn by seed.
        sample_tokens: Tokens of the sample; None: 24,000, or 5,000 with "exact".
        num_exact: With "gradient", how many experts of all layers are ablated for real to see how well it agrees.
        exact_tokens: With "gradient", tokens of the sample that those are ablated on.
    """

    method: Method = "gradient"
    experts: tuple[int, ...] | None = None
    sample_tokens: int | None = None
    num_exact: int = 24
    exact_tokens: int = 2_000

    name: ClassVar[str] = "atlas"
    summary: ClassVar[str] = "Causal atlas: how much worse the model predicts each domain without each expert."
    about: ClassVar[str] = "causes"
    needs_whole_depth: ClassVar[bool] = True

    def check(self, context: Context) -> None:
        """The loss needs the whole depth, and only experts that exist can be ablated.

        Raises:
            UsageError: The model is not complete, or has no such expert.
        """
        model = context.model
        if not model.complete:
            raise UsageError(
                f"the atlas measures the loss, and {model.name} was loaded down to layer {model.layers[-1]} only",
                remedy="leave --layers out, or use the atlas command, which loads all",
            )
        if self.experts is not None:
            model.check_experts(self.experts)

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """A sample of the text: of each domain the documents of smallest hash."""
        asked = self.sample_tokens or SAMPLE_TOKENS[self.method]
        share = max(1, min(asked, context.num_tokens) // len(context.domains))
        length = max(SHORTEST, share // DOCUMENTS_PER_DOMAIN)
        return {
            "atlas_text": TextSample(
                layers=list(context.layers),
                domains=list(context.domains),
                num_documents=-(-share // length),
                length=length,
                seed=context.seed,
                device=context.model.device,
            )
        }

    def ablations(self, context: Context) -> list[Ablation]:
        """What is ablated for real."""
        layers, num_experts = list(context.layers), context.model.num_experts
        if self.experts is not None:
            return [Ablation(layer, (expert,)) for layer in layers for expert in sorted(set(self.experts))]
        every = [Ablation(layer, (expert,)) for layer in layers for expert in range(num_experts)]
        if self.method == "exact":
            return every
        drawn = np.random.default_rng([context.seed, 31]).permutation(len(every))[: self.num_exact]
        return [every[place] for place in sorted(drawn.tolist())]

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `layer, domain, expert` (first domain `all`): `delta_loss` with interval, on all documents and each half.

        Also what was ablated for real by `ablation`, and by `relation` rank correlations of effects with what might
        foretell them.
        """
        sample = cast(TextSample, statistics["atlas_text"])

        def compute() -> xr.Dataset:
            exact_tokens = self.exact_tokens if self.method == "gradient" else None
            measured = measure(sample, context, self.ablations(context), exact_tokens, BATCH_TOKENS)
            return table_of(measured, context, self.method)

        return context.once(f"atlas {self}", compute)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`atlas`: a row per layer, domain, expert; and `atlas_top`, `atlas_ablated`, `atlas_relations`."""
        return {
            "atlas": atlas_frame(table),
            "atlas_top": top_frame(table, context),
            "atlas_ablated": ablated_frame(table),
            "atlas_relations": relations_frame(table),
        }

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """All experts, the top experts by domain, each domain's expert beside its control, and how methods agree."""
        from moescope.analyses.atlas import figures as draw

        yield "atlas_experts", draw.experts(table, context)
        if len(context.domains) > 1:
            yield "atlas_domains", draw.domains(table, context)
        yield "atlas_top", draw.top(top_frame(table, context), table, context)
        if table.sizes["ablation"] > 1:
            yield "atlas_ablated", draw.agreement(table, context)
        yield "atlas_relations", draw.relations(relations_frame(table), table, context)


def atlas_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer, domain (first `all`) and expert; experts that were not asked for are left out."""
    shape = table["delta_loss"].shape

    def column(name: str) -> np.ndarray:
        values = table[name].values
        return np.broadcast_to(values[None, :, None] if values.ndim == 1 else values, shape).ravel()

    layers, domains, experts = (table[name].values for name in ("layer", "domain", "expert"))
    frame = pd.DataFrame(
        {
            "layer": np.broadcast_to(layers[:, None, None], shape).ravel(),
            "domain": np.broadcast_to(domains.astype(object)[None, :, None], shape).ravel(),
            "expert": np.broadcast_to(experts, shape).ravel(),
            "num_tokens": column("num_tokens"),
            "num_documents": column("num_documents"),
            "num_selected": column("num_selected"),
            "delta_loss": column("delta_loss"),
            "ci_low": column("delta_loss_ci_low"),
            "ci_high": column("delta_loss_ci_high"),
            "delta_loss_routed": column("delta_loss_routed"),
            "first_order": column("first_order"),
            "loss": column("loss"),
        }
    )
    asked_LE = np.isfinite(table["delta_loss"].values).any(1)
    return frame[np.broadcast_to(asked_LE[:, None], shape).ravel()].reset_index(drop=True)


def top_frame(table: xr.Dataset, context: Context) -> pd.DataFrame:
    """For each domain the experts that it needs most: chosen on half 0 of the documents, measured on half 1.

    Chosen are those whose effect is surely large: with the highest lower end of the interval on half 0 (the highest
    effect, where there are too few documents for intervals). Each stands beside its control: the mean effect, on the
    same documents, of up to 20 random experts of its layer that the domain's tokens choose about as often.

    Columns: `place` from 0; `choosing_delta_loss` is of half 0, all else of half 1 but `loss`, which is of both.
    """
    rows = []
    layers = table["layer"].values.tolist()
    for domain in table["domain"].values.tolist()[1:]:
        at = table.sel(domain=domain)
        score_LE = at["choosing_delta_loss_ci_low"].values
        if not np.isfinite(score_LE).any():
            score_LE = at["choosing_delta_loss"].values
        order = np.argsort(-np.nan_to_num(score_LE, nan=-np.inf).ravel(), kind="stable")[:TOP_EXPERTS]
        for place, cell in enumerate(order[np.isfinite(score_LE.ravel()[order])].tolist()):
            position, expert = divmod(cell, score_LE.shape[1])
            measured_E = at["measured_delta_loss"].values[position]
            unknown = np.flatnonzero(~np.isfinite(measured_E)).tolist()
            controls = matched_experts(
                at["num_selected"].values[position], expert, num=NUM_CONTROLS, exclude=unknown, seed=context.seed
            )
            known = measured_E[controls]
            of = at.isel(layer=position, expert=expert)
            rows.append(
                {"domain": domain, "place": place, "layer": layers[position], "expert": expert}
                | {key: int(of[f"measured_{key}"]) for key in ("num_tokens", "num_documents")}
                | {
                    "delta_loss": float(of["measured_delta_loss"]),
                    "ci_low": float(of["measured_delta_loss_ci_low"]),
                    "ci_high": float(of["measured_delta_loss_ci_high"]),
                    "control_delta_loss": float(known.mean()) if known.size else np.nan,
                    "control_quantile_05": float(np.quantile(known, 0.05)) if known.size else np.nan,
                    "control_quantile_95": float(np.quantile(known, 0.95)) if known.size else np.nan,
                    "num_controls": len(controls),
                    "choosing_delta_loss": float(of["choosing_delta_loss"]),
                    "loss": float(at["loss"]),
                }
            )
    return pd.DataFrame(rows)


def ablated_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per expert that was ablated for real, with what the gradient says of the same documents."""
    names = {
        "layer": "ablated_layer",
        "expert": "ablated_expert",
        "delta_loss": "ablated_delta_loss",
        "ci_low": "ablated_delta_loss_ci_low",
        "ci_high": "ablated_delta_loss_ci_high",
        "gradient_delta_loss": "ablated_gradient",
        "first_order": "ablated_first_order",
    }
    frame = pd.DataFrame({column: table[name].values for column, name in names.items()})
    frame.insert(2, "num_tokens", int(table["ablated_num_tokens"]))
    frame.insert(3, "num_documents", int(table["ablated_num_documents"]))
    return frame


def relations_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per effect, predictor and scope: Spearman's rank correlation over experts with its interval."""
    names = {
        "effect": "relation_effect",
        "predictor": "relation_predictor",
        "scope": "relation_scope",
        "num": "relation_num",
        "rank_correlation": "rank_correlation",
        "ci_low": "rank_correlation_ci_low",
        "ci_high": "rank_correlation_ci_high",
    }
    return pd.DataFrame({column: table[name].values for column, name in names.items()})


__all__ = ["ALL", "Atlas"]
