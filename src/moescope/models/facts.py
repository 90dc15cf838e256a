"""What kind of model a checkpoint is, known before any weight is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from moescope.errors import ModelError
from moescope.models.current import experts_per_token
from moescope.models.layout import Layout, beyond, num_shared_experts, text_config

_SEE = "compare its config.json with the one that was published: numbers of experts and of experts per token"
_VOLATILE = ("_name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype")


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a whole checkpoint.

    Attributes:
        family: transformers' `model_type`.
        num_blocks: Decoder blocks.
        layers: Those with routed experts.
        num_experts: E, routed experts of a layer.
        num_experts_per_token: K.
        num_shared_experts: Experts of a layer that every token goes through.
        model_width: M.
        expert_width: F.
        vocab_size: V.
        max_positions: Longest sequence the model was made for; None where nothing bounds it.
        num_parameters: All of the checkpoint.
        num_active_parameters: Those that take part in one token: all but the routed experts it is not sent to.
        config_hash: SHA-256 of the configuration without names, versions and dtypes.
    """

    family: str
    num_blocks: int
    layers: tuple[int, ...]
    num_experts: int
    num_experts_per_token: int
    num_shared_experts: int
    model_width: int
    expert_width: int
    vocab_size: int
    max_positions: int | None
    num_parameters: int
    num_active_parameters: int
    config_hash: str


def gather_facts(whole: PreTrainedModel, where: Layout, name: str) -> ModelFacts:
    """Reads the facts off a model, which may be on the meta device.

    Raises:
        ModelError: Layers differ in their number of experts, there are none, or a token is sent to none or to more than
            there are.
    """
    config = text_config(whole.config)
    experts: list[Any] = [where.experts_module(whole, layer) for layer in where.experts]
    counts = sorted({int(module.num_experts) for module in experts})
    if len(counts) > 1:
        raise ModelError(f"the layers of {name} have {counts} experts", expected="as many experts in every MoE layer")
    first = next(iter(where.experts))
    per_token = experts_per_token(whole, where, first)
    _check_counts(counts[0], per_token, name)
    routed = sum(parameter.numel() for module in experts for parameter in module.parameters())
    total = sum(parameter.numel() for parameter in whole.parameters())
    return ModelFacts(
        family=whole.config.model_type,
        num_blocks=where.num_blocks,
        layers=tuple(where.experts),
        num_experts=counts[0],
        num_experts_per_token=per_token,
        num_shared_experts=num_shared_experts(config, where.moe_block(whole, first)),
        model_width=int(config.hidden_size),
        expert_width=int(experts[0].down_proj.shape[1 if experts[0].is_transposed else 2]),
        vocab_size=int(config.vocab_size),
        max_positions=getattr(config, "max_position_embeddings", None),
        num_parameters=total,
        num_active_parameters=total - routed + routed * per_token // counts[0],
        config_hash=config_hash(whole.config),
    )


def _check_counts(num_experts: int, per_token: int, name: str) -> None:
    """Refuses numbers of experts that no routing can come from."""
    if num_experts < 1:
        raise ModelError(
            f"the layers of {name} hold {num_experts} routed experts", expected="at least one", remedy=_SEE
        )
    if not 1 <= per_token <= num_experts:
        raise ModelError(
            f"{name} sends each token to {per_token} of {num_experts} experts",
            expected="at least one expert, and no more than there are",
            remedy=_SEE,
        )


def bytes_needed(whole: PreTrainedModel, where: Layout, num_blocks: int, dtype: torch.dtype) -> int:
    """Bytes that the weights of the first `num_blocks` blocks, and what stands before them, take in memory."""
    is_beyond = beyond(whole, where, num_blocks) if num_blocks < where.num_blocks else None
    return dtype.itemsize * sum(
        parameter.numel() for name, parameter in whole.named_parameters() if is_beyond is None or not is_beyond(name)
    )


def config_hash(config: Any) -> str:
    """SHA-256 of a configuration as sorted JSON, without what changes when it is only moved or cast."""
    plain = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()
