"""Rows of the table of profiles -> `ExpertProfile`, the published form."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from moescope.analyses.profile import schema
from moescope.analyses.profile.labels import NOTE, RULES, Rule
from moescope.analyses.profile.measured import NAME
from moescope.models.token_text import token_texts

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from moescope.context import Context

NOT_RUN = {
    "promoted": "the directions of experts' outputs were not computed in this run",
    "nearest_by_output": "experts' outputs were not compared in this run",
    "nearest_by_weight": "experts' weights were not compared in this run",
    "effect": "no expert's ablation was measured in this run",
    "output_norm": "experts' outputs were not measured in this run",
    "saliency": "experts' outputs were not measured in this run",
}
DIGITS = 6
"""Significant digits of the numbers in a profile; the tables have them all."""


class ProfileMaker:
    """Makes the profiles of a run's experts.

    Args:
        table: What `Profile.table` gives.
        context: What was looked at.
    """

    def __init__(self, table: xr.Dataset, context: Context) -> None:
        self.context = context
        self.attrs = table.attrs
        # Plain arrays: reading an xarray cell by cell is a thousand times as slow.
        self.arrays: dict[str, NDArray] = {str(name): values.values for name, values in table.data_vars.items()}
        self.layers = table["layer"].values.tolist()
        self.readings = table["reading"].values.tolist() if "reading" in table.coords else []
        self.target = table["window"].values.tolist().index(0)
        ids = [self.arrays[name].ravel() for name in self.arrays if name.endswith("token_id")]
        self.texts = token_texts(context.model.tokenizer, np.unique(np.concatenate(ids)).clip(min=0).tolist())
        self.version = importlib.metadata.version("moescope")

    def all(self, experts: Sequence[int] | None = None) -> Iterator[schema.ExpertProfile]:
        """Every profile, by layer, then by expert; or those of some experts of every layer."""
        for layer in self.layers:
            for expert in range(self.context.model.num_experts) if experts is None else experts:
                yield self.profile(layer, expert)

    def profile(self, layer: int, expert: int) -> schema.ExpertProfile:
        """One expert's."""
        at = (self.layers.index(layer), expert)
        model, context = self.context.model, self.context
        num_selected = int(self._at("num_selected_all", at))
        parts = {
            "promoted": self._promoted(at),
            "nearest_by_output": self._neighbors("nearest_by_output", at),
            "nearest_by_weight": self._neighbors("nearest_by_weight", at),
            "effect": self._effect(at),
            "output_norm": self._number("output_norm_mean", at),
            "saliency": self._number("saliency_mean", at),
        }
        tokens = {reading: self._tokens(reading, at) for reading in ("input", "predicted", "next")}
        label = self._label(at)
        missing = {name: self.attrs.get(f"missing_{name}", NOT_RUN[name]) for name in parts if parts[name] is None}
        if tokens["predicted"] is None:
            missing["tokens.predicted"] = "the model was not run to its end (`predictions` does)"
        if label is None:
            missing["label"] = "no token of the selection half of the sample was routed to it, or all were"
        if not num_selected:
            missing["contexts"] = f"no token of {int(self.arrays['num_tokens_all'][at[0]]):,} selected this expert"
        return schema.ExpertProfile(
            moescope_version=self.version,
            model=schema.ModelFacts(
                name=model.name,
                revision=model.revision,
                family=model.family,
                config_hash=model.config_hash,
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
            ),
            layer=layer,
            expert=expert,
            sample=schema.Sample(
                corpus=context.corpus_name,
                corpus_fingerprint=context.corpus_fingerprint,
                num_tokens=int(self.arrays["num_tokens_all"][at[0]]),
                num_documents=int(self.arrays["num_documents_all"][at[0]]),
                seed=context.seed,
            ),
            usage=self._usage(at, num_selected),
            router=schema.RouterMargins(
                selects_by=self.attrs["selects_by"],
                first_rank_share=self._number("first_rank_share", at),
                weight=self._number("selection_weight", at),
                probability=self._number("selection_probability", at),
                margin=self._number("selection_margin", at),
                boundary_margin=self._number("selection_boundary_margin", at),
                selection_margin=self._number("selection_margin_mean", at),
            ),
            domains=self._domains(at),
            divergence=schema.Divergence(
                value=self._number("divergence", at),
                null_mean=self._number("divergence_null_mean", at),
                null_low=self._number("divergence_null_low", at),
                null_high=self._number("divergence_null_high", at),
                excess=self._number("divergence_excess", at),
            ),
            tokens=schema.Tokens(**tokens),
            contexts=self._contexts(at),
            coactivated=self._coactivated(at),
            label=label,
            missing=missing,
            **parts,  # type: ignore[arg-type]
        )

    def _at(self, name: str, at: tuple[int, ...]) -> Any:
        return self.arrays[name][at]

    def _number(self, name: str, at: tuple[int, ...]) -> float | None:
        return number(self.arrays[name][at]) if name in self.arrays else None

    def _usage(self, at: tuple[int, int], num_selected: int) -> schema.Usage:
        model = self.context.model
        return schema.Usage(
            num_selected=num_selected,
            selection_frequency=self._number("selection_frequency", at),
            ci_low=self._number("selection_frequency_ci_low", at),
            ci_high=self._number("selection_frequency_ci_high", at),
            uniform_baseline=model.num_experts_per_token / model.num_experts,
            load=self._number("load", at),
            rank=int(self._at("usage_rank", at)),
            mean_probability=self._number("mean_probability", at),
        )

    def _domains(self, at: tuple[int, int]) -> list[schema.DomainUse]:
        layer, expert = at
        made = []
        for place, name in enumerate(self.context.domains):
            cell = (layer, place, expert)
            made.append(
                schema.DomainUse(
                    name=name,
                    group=self.context.groups.get(name),
                    num_tokens=int(self._at("num_tokens", (layer, place))),
                    num_documents=int(self._at("num_documents", (layer, place))),
                    num_selected=int(self._at("num_selected", cell)),
                    domain_specialization=self._number("domain_specialization", cell),
                    ci_low=self._number("domain_specialization_ci_low", cell),
                    ci_high=self._number("domain_specialization_ci_high", cell),
                    lift=self._number("lift", cell),
                    lift_ci_low=self._number("lift_ci_low", cell),
                    lift_ci_high=self._number("lift_ci_high", cell),
                )
            )
        return made

    def _tokens(self, reading: str, at: tuple[int, int]) -> schema.TokenTypes | None:
        if reading not in self.readings:
            return None
        cell = (*at, self.readings.index(reading))
        lists: list[list[schema.TokenType]] = []
        for order in range(2):
            ids, selected, occurrences, lifts = (
                self._at(name, (*cell, order)).tolist()
                for name in ("token_id", "token_num_selected", "token_num_occurrences", "token_lift")
            )
            lists.append(
                [
                    schema.TokenType(
                        token_id=token_id,
                        text=self.texts[token_id],
                        num_selected=selected[place],
                        num_occurrences=occurrences[place],
                        lift=number(lifts[place]),
                    )
                    for place, token_id in enumerate(ids)
                    if token_id >= 0
                ]
            )
        return schema.TokenTypes(min_count=int(self.attrs["token_min_count"]), by_lift=lists[0], by_count=lists[1])

    def _contexts(self, at: tuple[int, int]) -> list[schema.Context]:
        made = []
        for place in range(int(self._at("num_contexts", at))):
            cell = (*at, place)
            ids_W = self._at("window_token_id", cell)
            inside = np.flatnonzero(ids_W >= 0)
            ids = ids_W[inside].tolist()
            made.append(
                schema.Context(
                    domain=self.context.domains[int(self._at("context_domain_id", cell))],
                    document_hash=f"{int(self._at('context_document_hash', cell)) & (2**64 - 1):016x}",
                    position=int(self._at("context_position", cell)),
                    value=_rounded(self._at("context_value", cell)),
                    weight=_rounded(self._at("context_weight", cell)),
                    text=str(self.context.model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)),
                    target=self.target - int(inside[0]),
                    token_ids=ids,
                    tokens=[self.texts[token_id] for token_id in ids],
                    values=[_rounded(value) for value in self._at("window_value", cell)[inside].tolist()],
                )
            )
        return made

    def _coactivated(self, at: tuple[int, int]) -> list[schema.Coactivated]:
        return [
            schema.Coactivated(
                expert=int(self._at("coactivated_expert", (*at, place))),
                num_together=int(self._at("coactivated_num_together", (*at, place))),
                coactivation=self._number("coactivated_coactivation", (*at, place)),
                lift=self._number("coactivated_lift", (*at, place)),
                lift_chance=self._number("coactivated_lift_chance", (*at, place)),
            )
            for place in np.flatnonzero(self._at("coactivated_expert", at) >= 0).tolist()
        ]

    def _neighbors(self, name: str, at: tuple[int, int]) -> schema.Neighbors | None:
        if f"{name}_expert" not in self.arrays:
            return None
        measure = str(self.attrs[f"{name}_measure"])
        measures = [key.removeprefix(f"{name}_") for key in self.arrays if key.startswith(f"{name}_")]
        others = [key for key in measures if key not in ("expert", measure, f"{measure}_ci_low", f"{measure}_ci_high")]
        return schema.Neighbors(
            measure=measure,
            definition=str(self.attrs[f"{name}_definition"]),
            nearest=[
                schema.Neighbor(
                    expert=int(self._at(f"{name}_expert", (*at, place))),
                    similarity=_rounded(self._at(f"{name}_{measure}", (*at, place))),
                    ci_low=self._number(f"{name}_{measure}_ci_low", (*at, place)),
                    ci_high=self._number(f"{name}_{measure}_ci_high", (*at, place)),
                    others={
                        key: value
                        for key in others
                        if (value := self._number(f"{name}_{key}", (*at, place))) is not None
                    },
                )
                for place in np.flatnonzero(self._at(f"{name}_expert", at) >= 0).tolist()
            ],
        )

    def _promoted(self, at: tuple[int, int]) -> schema.Promoted | None:
        if "promoted_token_id" not in self.arrays:
            return None
        lists = {
            kind: [
                schema.PromotedToken(
                    token_id=token_id,
                    text=self.texts[token_id],
                    logit=_rounded(logit),
                    logit_above_layer=_rounded(above),
                )
                for token_id, logit, above in zip(
                    *(self._at(f"{kind}_{what}", at).tolist() for what in ("token_id", "logit", "logit_above_layer")),
                    strict=True,
                )
                if token_id >= 0 and math.isfinite(logit)
            ]
            for kind in ("promoted", "suppressed")
        }
        if not lists["promoted"]:
            return None
        return schema.Promoted(definition=str(self.attrs["promoted_definition"]), **lists)

    def _effect(self, at: tuple[int, int]) -> schema.Effect | None:
        if "effect" not in self.arrays:
            return None
        return schema.Effect(
            method=str(self.attrs["effect_method"]),
            definition=str(self.attrs["effect_definition"]),
            units=str(self.attrs["effect_units"]),
            delta_loss=self._number("effect", at),
            ci_low=self._number("effect_ci_low", at),
            ci_high=self._number("effect_ci_high", at),
            num_tokens=int(self.attrs["effect_num_tokens"]),
            domains=self._effects_by_domain("effect", at),
            measured=self._measured(at),
        )

    def _effects_by_domain(self, name: str, at: tuple[int, int]) -> list[schema.DomainEffect]:
        layer, expert = at
        return [
            schema.DomainEffect(
                domain=domain,
                delta_loss=self._number(f"{name}_by_domain", (layer, place, expert)),
                ci_low=self._number(f"{name}_by_domain_ci_low", (layer, place, expert)),
                ci_high=self._number(f"{name}_by_domain_ci_high", (layer, place, expert)),
            )
            for place, domain in enumerate(self.context.domains)
        ]

    def _measured(self, at: tuple[int, int]) -> schema.MeasuredEffect | None:
        if NAME not in self.arrays or self._number(NAME, at) is None:
            return None
        return schema.MeasuredEffect(
            definition=str(self.attrs[f"{NAME}_definition"]),
            delta_loss=self._number(NAME, at),
            ci_low=self._number(f"{NAME}_ci_low", at),
            ci_high=self._number(f"{NAME}_ci_high", at),
            estimate=self._number("effect_held_out", at),
            num_tokens=int(self.attrs[f"{NAME}_num_tokens"]),
            num_documents=int(self.attrs[f"{NAME}_num_documents"]),
            domains=self._effects_by_domain(NAME, at),
        )

    def _label(self, at: tuple[int, int]) -> schema.StatisticalLabel | None:
        rule = cast("Rule", str(self._at("label_rule", at)))
        if not rule:
            return None

        def part(text: str, token_id: int | None, prefix: str, cell: tuple[int, ...]) -> schema.LabelPart:
            return schema.LabelPart(
                text=text,
                token_id=token_id,
                lift=self._number(f"{prefix}_lift", cell),
                num_selected=int(self._at(f"{prefix}_num_selected", cell)),
                num_occurrences=int(self._at(f"{prefix}_num_occurrences", cell)),
            )

        domain = str(self._at("label_domain", at))
        members = np.flatnonzero(self._at("label_domain_member", at)).tolist()
        return schema.StatisticalLabel(
            note=NOTE,
            text=str(self._at("label_text", at)),
            rule=rule,
            rule_in_words=RULES[rule],
            domain=part(domain, None, "label_domain", at) if domain else None,
            domains=[self.context.domains[place] for place in members],
            tokens=[
                part(self.texts[token_id], token_id, "label_token", (*at, place))
                for place, token_id in enumerate(self._at("label_token_id", at).tolist())
                if token_id >= 0
            ],
            balanced_accuracy=self._number("label_balanced_accuracy", at),
            ci_low=self._number("label_ci_low", at),
            ci_high=self._number("label_ci_high", at),
            num_tokens=int(self._at("label_num_tokens", at)),
            num_selected=int(self._at("label_num_selected", at)),
            num_documents=int(self._at("label_num_documents", at)),
            selection_half_balanced_accuracy=self._number("label_selection_half_balanced_accuracy", at),
        )


def number(value: Any) -> float | None:
    """A float of six significant digits; None where there is no number."""
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")
