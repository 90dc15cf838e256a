"""Facts of a run: which model routed, which layers and domains were looked at. No model, nothing that changes.

A question is answered from statistics and these facts alone, so that routing recorded elsewhere can be asked the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moescope.errors import UsageError, whole_numbers


@dataclass(frozen=True)
class ModelInfo:
    """What is known of the model that routed.

    Attributes:
        name: As it was asked for.
        revision: The commit of a hub repository; None for others.
        family: transformers' `model_type`.
        config_hash: SHA-256 of the configuration.
        dtype: Number format computed in, as "float32".
        device: Where statistics are accumulated.
        num_experts: E, routed experts of a layer.
        num_experts_per_token: K.
        num_shared_experts: Experts of a layer that every token goes through.
        model_width: M.
        expert_width: F.
        vocab_size: V.
        scoring: "softmax" over all experts, or "sigmoid" of each logit by itself.
        selects_by: What the K largest are taken of, in words.
        complete: Whether the whole depth is loaded, so that predictions can be had.
        tokenizer: The checkpoint's; None where it has none.
        interventions: Changes in force on the model while it ran, as plain values; none of a model as it is.
        changes: What was changed on the model after it was loaded, in sentences.
    """

    name: str
    revision: str | None
    family: str
    config_hash: str
    dtype: str
    device: str
    num_experts: int
    num_experts_per_token: int
    num_shared_experts: int
    model_width: int
    expert_width: int
    vocab_size: int
    scoring: str
    selects_by: str
    complete: bool
    tokenizer: Any = field(repr=False, compare=False)
    interventions: tuple[Mapping[str, Any], ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the model from others whose counts must not be added to its own, as plain values."""
        return {
            "name": self.name.rstrip("/").rpartition("/")[2],
            "revision": self.revision,
            "config_hash": self.config_hash,
            "dtype": self.dtype,
            "num_experts_per_token": self.num_experts_per_token,
            "interventions": [dict(change) for change in self.interventions],
            "changes": list(self.changes),
        }

    def check_experts(self, experts: Sequence[int] | None) -> list[int]:
        """Experts to look at, in the order given; None means all.

        Raises:
            UsageError: An expert that does not exist.
        """
        return check_experts(experts, self.num_experts, self.name)


def check_experts(experts: Sequence[int] | None, num_experts: int, name: str) -> list[int]:
    """Experts to look at, in the order given; None means all.

    Args:
        experts: Their ids.
        num_experts: E.
        name: The model, in messages.

    Raises:
        UsageError: An expert that does not exist, or no list of them.
    """
    if experts is None:
        return list(range(num_experts))
    experts = whole_numbers(experts, "experts")
    unknown = [expert for expert in experts if not 0 <= expert < num_experts]
    if unknown or not experts:
        what = f"{name} has no expert {', '.join(map(str, unknown))}" if unknown else "no expert was asked for"
        raise UsageError(what, expected=f"experts 0-{num_experts - 1}, counted from 0")
    return experts


@dataclass(frozen=True)
class Context:
    """What a run is about: everything that a question may need to know beside its statistics.

    Attributes:
        model: The model that routed.
        layers: The MoE layers looked at, decoder block indices, ascending.
        domains: The corpus' domains, in order; index is `domain_id`.
        groups: Group of each domain (prose, reference, ...); empty where the corpus has none.
        corpus_name: Name of the corpus, for captions; empty where no text was read.
        num_tokens: Tokens asked for (before the pass) or counted (after it).
        seed: The run's seed.
        predictions: Whether the whole depth runs and predicted tokens are known.
        corpus_fingerprint: Hash of the corpus.
    """

    model: ModelInfo
    layers: Sequence[int]
    domains: Sequence[str]
    groups: Mapping[str, str]
    corpus_name: str
    num_tokens: int
    seed: int
    predictions: bool
    corpus_fingerprint: str = ""

    @property
    def caption(self) -> str:
        """Model, tokens and corpus, for the line below a figure; the model alone where no token was counted."""
        sample = f" · {self.num_tokens:,} tokens · {self.corpus_name}" if self.num_tokens else ""
        changed = " (changed)" if self.model.interventions or self.model.changes else ""
        return f"{self.model.name}{changed}{sample}"
