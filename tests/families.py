"""Tiny random models of real families, saved as real checkpoints with a tiny tokenizer: what models are tested with.

`build` makes a model in memory, `save` writes one as a folder that `load_model` reads. Everything is a function of the
seed. Routers are given weights large enough that they decide, and correction biases that are not zero.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from moescope.records import TokenBatch

VOCAB_SIZE = 272
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
_GROUPS = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}

FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_hidden_layers": 4, "num_experts": 8, "intermediate_size": 16},
    "mixtral": {"num_hidden_layers": 3, "num_local_experts": 4, "intermediate_size": 24},
    "qwen2_moe": {
        "num_hidden_layers": 4,
        "num_experts": 8,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "num_hidden_layers": 3,
        "num_experts": 8,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
    },
    "deepseek_v2": {
        **_MLA,
        **_GROUPS,
        "num_hidden_layers": 3,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "n_routed_experts": 16,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 16.0,
    },
    "deepseek_v3": {
        **_MLA,
        **_GROUPS,
        "num_hidden_layers": 4,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "first_k_dense_replace": 2,
    },
    "gpt_oss": {
        "num_hidden_layers": 3,
        "num_local_experts": 8,
        "intermediate_size": 24,
        "head_dim": 8,
        "sliding_window": 8,
        "num_experts_per_tok": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "glm4_moe": {
        "num_hidden_layers": 3,
        "n_routed_experts": 8,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.0,
    },
    "granitemoe": {
        "num_hidden_layers": 3,
        "num_local_experts": 8,
        "intermediate_size": 16,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.5,
    },
    "phimoe": {"num_hidden_layers": 3, "num_local_experts": 8, "intermediate_size": 16},
    "ernie4_5_moe": {
        "num_hidden_layers": 4,
        "moe_num_experts": 8,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
    },
    "hunyuan_v1_moe": {
        "num_hidden_layers": 3,
        "num_experts": 8,
        "moe_topk": 2,
        "intermediate_size": 16,
        "head_dim": 8,
    },
    "flex_olmo": {"num_hidden_layers": 3, "num_experts": 7, "num_experts_per_tok": 5, "intermediate_size": 16},
    "dots1": {
        **_GROUPS,
        "num_hidden_layers": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "first_k_dense_replace": 1,
        "sliding_window": 16,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
}


# Between them: shared experts and none, dense layers, sigmoid scores, groups, correction biases, biases of experts, a
# compressed cache, sliding windows. Outside the contracts the others are slow tests.
REPRESENTATIVES = ("olmoe", "qwen2_moe", "deepseek_v3", "gpt_oss")
SOME_FAMILIES = [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.slow) for name in FAMILIES]


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A tiny model of a family with random weights.

    Args:
        family: A key of `FAMILIES`.
        seed: Of the weights.
        dtype: Of the weights.
        changes: Entries of the configuration to change.
    """
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def randomize(model: PreTrainedModel, seed: int) -> None:
    """Fills weights so that hidden states stay near unit size and routers are decided."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        noise = torch.randn(tensor.shape, generator=generator)
        if "correction_bias" in name or "expert_bias" in name:
            tensor.copy_(0.1 * noise)
        elif name in dict(model.named_buffers(recurse=True)):
            continue
        elif tensor.ndim >= 2:
            router = re.search(r"\.(gate|router|wg)\.(\w+\.)?weight$", name)
            tensor.copy_(noise * (1.5 if router else 1.0) / math.sqrt(tensor.shape[-1]))
        elif "norm" in name:
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(0.1 * noise)
    if getattr(model.config, "tie_word_embeddings", False):
        model.tie_weights()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-text token with id 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|end|>": 0, **{character: index + 1 for index, character in enumerate(alphabet)}}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")


def save(model: PreTrainedModel, folder: Path, max_shard_size: str = "5GB") -> Path:
    """Writes a checkpoint with its tokenizer and returns its folder."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer().save_pretrained(folder)
    return folder


def padded_batch(lengths: list[int], seed: int = 0) -> tuple[Tensor, TokenBatch, Tensor]:
    """Random documents of these lengths, padded on the right: `(input_ids_BS, tokens, keep_T)`."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids_BS = torch.randint(1, VOCAB_SIZE, (len(lengths), longest), generator=generator)
    columns_S = torch.arange(longest)
    kept_BS = columns_S < torch.tensor(lengths)[:, None]
    ids_BS[~kept_BS] = 0
    keep_T = kept_BS.flatten().nonzero().squeeze(1)
    token_ids_T = ids_BS.flatten()[keep_T]
    rows_T = keep_T // longest
    next_T = torch.where(rows_T == rows_T.roll(-1), token_ids_T.roll(-1), -1)
    next_T[-1] = -1
    tokens = TokenBatch(
        token_ids_T=token_ids_T,
        next_token_ids_T=next_T,
        positions_T=keep_T % longest,
        rows_T=rows_T,
        document_hashes_B=torch.randint(-(2**62), 2**62, (len(lengths),), generator=generator),
        domain_ids_B=torch.arange(len(lengths)) % 2,
    )
    return ids_BS, tokens, keep_T
