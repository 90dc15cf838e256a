"""The published form of an expert's profile: what is in a `profiles/LxxEyy.json`, or in a line of `profiles.jsonl`.

`docs/profile.schema.json` is the JSON Schema of `ExpertProfile`. A field whose source was not part of the run is null,
and `missing` says why. Texts are plain text: whoever shows them escapes them for wherever they are shown.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Literal["1.1"] = "1.1"

Share = float | None
VISIBLE = "text, with spaces as ␣, line breaks as ↵, what can't be seen as its code point"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFacts(_Part):
    """Whose expert it is."""

    name: str
    revision: str | None = Field(description="commit of a hub repository")
    family: str
    config_hash: str
    num_experts: int = Field(description="E, routed experts of the layer")
    num_experts_per_token: int = Field(description="K")


class Sample(_Part):
    """The text it was seen on."""

    corpus: str
    corpus_fingerprint: str = Field(description="hash of the corpus")
    num_tokens: int = Field(description="N, tokens counted; padding and special tokens are not")
    num_documents: int = Field(description="documents with a token counted")
    seed: int


class Usage(_Part):
    """How often it is selected, and its load beside the other experts of its layer."""

    num_selected: int = Field(description="N_e, tokens with the expert among their K")
    selection_frequency: Share = Field(description="N_e / N")
    ci_low: Share = Field(description="of the 95 % interval over documents; null under 8 documents")
    ci_high: Share = None
    uniform_baseline: float = Field(description="K / E")
    load: float | None = Field(description="N_e over its mean over the layer's experts; 1 when balanced")
    rank: int = Field(description="by use, 0 for the most used expert of the layer")
    mean_probability: float | None = Field(description="mean router probability over all tokens")


class RouterMargins(_Part):
    """How the router gives it its tokens: means over those that selected it."""

    selects_by: str = Field(description="what the family selects by: the unit of boundary_margin and selection_margin")
    first_rank_share: Share = Field(description="tokens for which it has the largest weight / N_e")
    weight: float | None = Field(description="weight applied")
    probability: float | None = Field(description="router probability")
    margin: float | None = Field(description="largest probability minus second largest")
    boundary_margin: float | None = Field(description="lowest selected minus highest unselected value")
    selection_margin: float | None = Field(description="its own value minus the highest unselected one")


class DomainUse(_Part):
    """How often one domain's tokens select it."""

    name: str
    group: str | None
    num_tokens: int = Field(description="N_d")
    num_documents: int
    num_selected: int = Field(description="N_ed")
    domain_specialization: Share = Field(description="N_ed / N_d")
    ci_low: Share
    ci_high: Share
    lift: float | None = Field(description="domain specialization over its mean over domains")
    lift_ci_low: float | None
    lift_ci_high: float | None


class Divergence(_Part):
    """Jensen-Shannon divergence of its domains from its layer's, bits, beside what it is where domains don't matter."""

    value: float | None
    null_mean: float | None
    null_low: float | None
    null_high: float | None
    excess: float | None


class TokenType(_Part):
    """One token type among its tokens."""

    token_id: int
    text: str = Field(description=VISIBLE)
    num_selected: int = Field(description="N_xe")
    num_occurrences: int = Field(description="N_x")
    lift: float | None = Field(description="(N_xe / N_x) / (N_e / N)")


class TokenTypes(_Part):
    """Its token types in one reading."""

    min_count: int = Field(description="types seen less often are not ranked by lift")
    by_lift: list[TokenType] = Field(description="picked among thousands: describes this sample, estimates nothing")
    by_count: list[TokenType]


class Tokens(_Part):
    """Its token types: those read, those the model predicts, those that truly come next."""

    input: TokenTypes | None
    predicted: TokenTypes | None
    next: TokenTypes | None


class Context(_Part):
    """A token at which w ‖o‖ is large, with those around it; at most one of a document."""

    domain: str
    document_hash: str = Field(description="hash of the document's id, 16 hexadecimal digits")
    position: int = Field(description="position of the token in its document, from 0")
    value: float = Field(description="w ‖o‖ at the token: length of the expert's output after the applied weight")
    weight: float = Field(description="w")
    text: str = Field(description="the stretch of text, as it is")
    target: int = Field(description="index of the token in the lists below")
    token_ids: list[int]
    tokens: list[str] = Field(description=VISIBLE)
    values: list[float] = Field(description="w ‖o‖ of this expert at each token; 0 where it was not selected")

    @model_validator(mode="after")
    def _lists_agree(self) -> Self:
        if not len(self.token_ids) == len(self.tokens) == len(self.values) > self.target >= 0:
            raise ValueError("token_ids, tokens and values are of one length, and target is an index into them")
        return self


class PromotedToken(_Part):
    """A token type its mean output makes more likely, or less."""

    token_id: int
    text: str = Field(description=VISIBLE)
    logit: float = Field(description="what the mean output adds to the token's logit, as `definition` says")
    logit_above_layer: float = Field(description="the same less its mean over the layer's experts")


class Promoted(_Part):
    """What its mean output says about the next token."""

    definition: str
    promoted: list[PromotedToken]
    suppressed: list[PromotedToken]


class Coactivated(_Part):
    """An expert of the same layer that is selected together with it more often than chance."""

    expert: int
    num_together: int = Field(description="N_ij")
    coactivation: Share = Field(description="N_ij / N_i, i this expert")
    lift: float | None = Field(description="N N_ij / (N_i N_j)")
    lift_chance: float | None = Field(description="the same under independent routing")


class Neighbor(_Part):
    """An expert of the same layer that is like it."""

    expert: int
    similarity: float
    ci_low: float | None = None
    ci_high: float | None = None
    others: dict[str, float] = Field(default={}, description="the same pair by other measures")


class Neighbors(_Part):
    """The experts of the same layer most like it, nearest first."""

    measure: str
    definition: str
    nearest: list[Neighbor]


class DomainEffect(_Part):
    """What ablating it does to the loss on one domain."""

    domain: str
    delta_loss: float | None
    ci_low: float | None
    ci_high: float | None


class MeasuredEffect(_Part):
    """The same as measured by ablation, on the evaluation half of the documents."""

    definition: str
    delta_loss: float | None
    ci_low: float | None
    ci_high: float | None
    estimate: float | None = Field(description="the gradient's estimate of it on the same documents")
    num_tokens: int
    num_documents: int
    domains: list[DomainEffect]


class Effect(_Part):
    """What ablating it does to the loss: positive where the model is worse off without it."""

    method: str
    definition: str
    units: str
    delta_loss: float | None
    ci_low: float | None
    ci_high: float | None
    num_tokens: int
    domains: list[DomainEffect]
    measured: MeasuredEffect | None = Field(description="of experts with a page; null: estimated alone")


class LabelPart(_Part):
    """Something the label names; counts are of the selection half of the documents."""

    text: str
    token_id: int | None = Field(description="null for a domain or group of domains")
    lift: float | None
    num_selected: int
    num_occurrences: int


class StatisticalLabel(_Part):
    """A rule that separates the expert's tokens, selected on one half of the documents and evaluated on the other."""

    kind: Literal["statistical"] = "statistical"
    note: str
    text: str
    rule: Literal["domains", "tokens", "either", "both"]
    rule_in_words: str
    domain: LabelPart | None
    domains: list[str] = Field(description="the domains the rule means: one, or all of a group")
    tokens: list[LabelPart]
    balanced_accuracy: Share = Field(description="on the evaluation half; 0.5 is chance, 1 is perfect")
    ci_low: Share = Field(description="95 % interval over documents; null under 8 documents")
    ci_high: Share
    num_tokens: int = Field(description="tokens it was scored on")
    num_selected: int = Field(description="those of them that selected the expert")
    num_documents: int = Field(description="documents that these are of")
    selection_half_balanced_accuracy: Share = Field(description="on the selection half: optimistically biased")


class ExpertProfile(_Part):
    """One expert: its sample, the domains and tokens routed to it, its output, its effect when ablated."""

    schema_version: Literal["1.1"] = SCHEMA_VERSION
    moescope_version: str
    model: ModelFacts
    layer: int = Field(description="decoder block's index in the checkpoint, from 0")
    expert: int
    sample: Sample
    usage: Usage
    router: RouterMargins
    output_norm: float | None = Field(description="mean ‖o‖ over its tokens, before the weight")
    saliency: float | None = Field(description="mean w ‖o‖ over its tokens (REAP)")
    domains: list[DomainUse] = Field(description="in the corpus' order")
    divergence: Divergence
    tokens: Tokens
    contexts: list[Context] = Field(description="largest first")
    promoted: Promoted | None
    coactivated: list[Coactivated] = Field(description="highest lift first")
    nearest_by_output: Neighbors | None
    nearest_by_weight: Neighbors | None
    effect: Effect | None
    label: StatisticalLabel | None
    missing: dict[str, str] = Field(description="fields that are null or empty: why")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a profile."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ExpertProfile.model_json_schema()}
