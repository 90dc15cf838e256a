"""`trace.json`: what a trace is of, how it was made and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moescope.errors import UsageError

SCHEMA_VERSION = 1
FACTS = "trace.json"
TOKENS = "tokens"
DOCUMENTS = "documents.parquet"
TOKEN_TEXTS = "token_texts.parquet"
COUNTS = "counts.parquet"

MAX_EXPERTS = 65_536
MAX_LAYERS = 10_000
MOST_BYTES = 2**26

Phase = Literal["prompt", "generated"]
PHASES: tuple[Phase, ...] = ("prompt", "generated")
UNKNOWN = "unknown"


class TracedDomain(BaseModel):
    """One domain and how much of it was recorded."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    group: str | None = None
    num_tokens: int = Field(ge=0)
    num_documents: int = Field(ge=0)


class TraceFacts(BaseModel):
    """What a trace is of. Text that is not known is "unknown", numbers that are not known are 0.

    Attributes:
        schema_version: Version of the form; this is 1.
        producer: What wrote it.
        engine: What ran the model (transformers, vllm, sglang, ...).
        model: The model's name; `revision`, `family`, `config_hash`, `dtype`, `device` as in a manifest.
        router_rule: How the router selects and weighs, in words.
        scoring: "softmax" or "sigmoid".
        selects_by: What the K largest are taken of, in words.
        layers: MoE layers recorded, decoder block indices, ascending.
        num_experts: E. `num_experts_per_token`: K. `num_shared_experts`: experts that every token goes through.
        model_width: M. `expert_width`: F. `vocab_size`: V.
        interventions: Changes in force on the model while it ran. `changes`: what was changed on it after loading.
        tokenizer_hash: Hash of the tokenizer's vocabulary.
        corpus: Name of the corpus; `corpus_fingerprint` its hash.
        sample_hash: Hash of the tokens recorded: documents, positions and token ids.
        seed: Chose documents, windows and generated tokens.
        domains: The domains in order.
        sampling: The options that the sample was drawn with.
        columns: What is known: of a token `expert_ids`, `ranks`, `token_id`, ...; or only `counts`.
        phases: Those that occur, `prompt` first.
        num_tokens: Tokens recorded.
        notes: What was left out or is assumed, in sentences.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    producer: str
    engine: str
    model: str
    revision: str | None = None
    family: str = UNKNOWN
    config_hash: str = UNKNOWN
    dtype: str = UNKNOWN
    device: str = UNKNOWN
    router_rule: str = UNKNOWN
    scoring: str = UNKNOWN
    selects_by: str = UNKNOWN
    layers: list[int] = Field(min_length=1, max_length=MAX_LAYERS)
    num_experts: int = Field(ge=1, le=MAX_EXPERTS)
    num_experts_per_token: int = Field(ge=1)
    num_shared_experts: int = Field(default=0, ge=0)
    model_width: int = Field(default=0, ge=0)
    expert_width: int = Field(default=0, ge=0)
    vocab_size: int = Field(default=0, ge=0, le=2**31)
    interventions: list[dict[str, Any]] = []
    changes: list[str] = []
    tokenizer_hash: str | None = None
    corpus: str
    corpus_fingerprint: str = ""
    sample_hash: str = ""
    seed: int = 0
    domains: list[TracedDomain] = Field(min_length=1)
    sampling: dict[str, Any] = {}
    columns: list[str]
    phases: list[Phase] = ["prompt"]
    num_tokens: int = Field(ge=0)
    notes: list[str] = []

    @model_validator(mode="after")
    def _fits(self) -> TraceFacts:
        if self.num_experts_per_token > self.num_experts:
            raise ValueError("num_experts_per_token exceeds num_experts")
        if self.layers != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError("layers are not ascending, each once")
        names = [domain.name for domain in self.domains]
        if len(set(names)) != len(names):
            raise ValueError("a domain is listed twice")
        if sum(domain.num_tokens for domain in self.domains) != self.num_tokens:
            raise ValueError("num_tokens is not the sum over domains")
        return self


def read_facts(folder: Path) -> TraceFacts:
    """Reads a trace's facts.

    Raises:
        UsageError: There are none, they are of another version, or they make no sense.
    """
    file = folder / FACTS
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES:,} bytes")
        text = file.read_text(encoding="utf-8")
        return TraceFacts.model_validate_json(text)
    except (OSError, ValueError) as error:
        why = _why(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise UsageError(
            f"{file} cannot be read: {why}",
            expected=f"a trace as `moescope trace` writes it, schema version {SCHEMA_VERSION}",
            remedy="record or import the trace again",
        ) from error


def _why(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'facts'}: {first['msg']}"


def spelled(layers: Sequence[int]) -> str:
    """Layers in a sentence, the first twenty of them."""
    return ", ".join(map(str, layers[:20])) + (", ..." if len(layers) > 20 else "")
