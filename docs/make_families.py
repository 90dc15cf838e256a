"""Tries every Mixture-of-Experts family of the installed transformers and writes docs/families.md.

    python docs/make_families.py [FAMILY ...]

For each family whose modeling file has routed experts it builds a tiny random model of the default configuration,
shrunk, saves it, and asks of moescope what it asks of any checkpoint: `load_model` (with its probe), a pass with
expert outputs, predictions equal to the family's own, and the same records when only the upper blocks are loaded.
With names given it only prints what it finds for those.
"""

from __future__ import annotations

import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from tests.families import FAMILIES, VOCAB_SIZE, build, padded_batch, randomize, save  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # noqa: E402
from transformers.models.auto.configuration_auto import (  # noqa: E402
    CONFIG_MAPPING,
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)

from moescope.errors import MoescopeError  # noqa: E402
from moescope.models import load_model  # noqa: E402
from moescope.records import ExpertOutputs, Routing  # noqa: E402

INTERFACE = "@use_experts_implementation"
EXPERTS = re.compile(r"^class \w*(Experts?|Moe|MoE|MOE|SparseMLP|Mixture)\w*\(nn\.Module\)", re.MULTILINE)
NUM_BLOCKS = 4
LARGEST = 20_000_000

# Shrunk sizes by the name of the configuration's entry; the first pattern that fits the whole name counts.
SIZES: list[tuple[str, Any]] = [
    (r"vocab_size|vocab_size_.*|unpadded_vocab_size", VOCAB_SIZE),
    (r"(num_hidden_layers|n_layers?|num_layers|depth|num_blocks)", NUM_BLOCKS),
    (r"mlp_dim", 24),
    (r"image_size", 32),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|num_experts_top_k", 2),
    (r"(num|n|moe_num)_(local_|routed_)?experts", 8),
    (r"hidden_size|d_model|n_embd|embed_dim|out_hidden_size", 32),
    (r"moe_intermediate_size|expert_ffn_hidden_size|expert_hidden_size", 16),
    (r"(shared_expert_|moe_shared_expert_|shared_)?intermediate_size.*|ffn_hidden_size|dense_intermediate_size", 24),
    (r"num_attention_heads|n_heads?|num_heads|swa_num_attention_heads", 4),
    (r"num_key_value_heads|num_global_key_value_heads|swa_num_key_value_heads", 2),
    (r"head_dim|global_head_dim|attention_head_dim|swa_head_dim|qk_.*head_dim|v_head_dim|swa_v_head_dim", 8),
    (r"index_head_dim", 16),
    (r"linear_(key|value)_head_dim", 8),
    (r"linear_num_(key|value)_heads|index_n_heads", 4),
    (r"index_topk", 4),
    (r"(q|kv|o)_lora_rank", 16),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"n_group|num_expert_group|topk_group|n_groups|mamba_n_groups", 1),
    (r"max_position_embeddings|max_sequence_length|original_max_position_embeddings", 256),
    (r"sliding_window(_size)?|attention_chunk_size", 8),
    (r"mamba_d_state|ssm_state_size", 16),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_head_dim", 8),
    (r"mamba_dt_rank", 4),
    (r"chunk_size|mamba_chunk_size", 16),
    (r"num_nextn_predict_layers|num_mtp_layers", 0),
    (r"patch_size|spatial_merge_size", None),
]
# What shrinking by name can't know.
_SPARSE = ["dense", "sparse", "sparse", "sparse"]
_GEMMA = {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 16, "per_layer_config": {}}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}


def _mrope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}


SPECIAL: dict[str, dict[str, Any]] = {
    "gemma4_text": {**_GEMMA, "enable_moe_block": True, "vocab_size_per_layer_input": VOCAB_SIZE},
    "diffusion_gemma_text": _GEMMA,
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "dots3_note_text": {"per_layer_config": {}, "mlp_layer_types": _SPARSE, "head_dim": 16},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16], "rope_parameters": _mrope([1, 1, 2])},
    "glm4v_moe_text": {"rope_parameters": {**_mrope([1, 1, 0]), "partial_rotary_factor": 0.5}},
    "mistral4": {"head_dim": 16},
    "muse_spark_audio": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
    "glm5_next_text": {
        "qk_rope_head_dim": 0,
        "head_dim": 0,
        "index_kpool": 2,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "qwen4_exp_text": {"ngram_vocab_size_base": 100, "split_ngram_parts": 1, "hc_lowrank": 8, **_INDEXER},
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "mlp_layer_types": _SPARSE, "head_dim": 8},
    "unlimited_ocr_text": {"num_experts_per_tok": 2},
    "muse_spark_text": {"moe_hidden_size": 32},
    "jetmoe": {"kv_channels": 8},
}


@dataclass
class Row:
    """One line of the table."""

    family: str
    model_type: str
    works: bool
    note: str


def families() -> dict[str, list[str]]:
    """Model types, by folder, of those families that have routed experts."""
    folder = Path(transformers.__file__).parent / "models"
    types: dict[str, list[str]] = {}
    for model_type in CONFIG_MAPPING_NAMES:
        types.setdefault(model_type_to_module_name(model_type), []).append(model_type)
    found = {}
    for file in sorted(folder.glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        if INTERFACE in text or EXPERTS.search(text):
            found[file.parent.name] = types.get(file.parent.name, [])
    return found


def uses_interface(family: str) -> bool:
    """Whether a family's experts are dispatched through transformers' experts interface."""
    folder = Path(transformers.__file__).parent / "models" / family
    return any(INTERFACE in file.read_text(encoding="utf-8") for file in folder.glob("modeling_*.py"))


def language_model(types: list[str]) -> str | None:
    """The model type that has a language model's head: text alone if there is one."""
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        fitting = [name for name in types if CONFIG_MAPPING[name] in auto_class._model_mapping]
        if fitting:
            return next((name for name in fitting if name.endswith("_text")), fitting[0])
    return None


def shrunk(config_class: type, model_type: str) -> Any:
    """A configuration of the class' defaults with small sizes, all the way down."""
    config = config_class(**{**_small(config_class()), **SPECIAL.get(model_type, {})})
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _auto_class(config).from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"the tiny model has {size:,} parameters")
    return config


def _auto_class(config: Any) -> Any:
    fits = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if fits else AutoModelForImageTextToText


def _small(config: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "to_dict"):
            changes[name] = {**_small(part), "model_type": part.model_type, **SPECIAL.get(part.model_type, {})}
    attributes = {**config.to_dict(), **{name: getattr(config, name) for name in getattr(config, "attribute_map", {})}}
    for name, value in attributes.items():
        for pattern, size in SIZES:
            if re.fullmatch(pattern, name):
                if size is not None and isinstance(value, int) and not isinstance(value, bool) and value > 1:
                    changes[name] = size
                break
        if name.endswith("token_id") and isinstance(value, int):
            changes[name] = min(value, 5)
    if "kv_lora_rank" in attributes:  # latent attention has as many key heads as query heads
        changes["num_key_value_heads"] = 4
    return changes


def tried(model_type: str, folder: Path) -> str:
    """Everything asked of a family; returns its router's rule.

    Raises:
        MoescopeError: moescope refuses it.
        Exception: The tiny model can't be built, or does not run without us either.
    """
    if model_type in FAMILIES:
        reference = build(model_type)
    else:
        config = shrunk(CONFIG_MAPPING[model_type], model_type)
        reference = _auto_class(config).from_config(config).float().eval()
        randomize(reference, seed=0)
        for name, table in reference.named_buffers():
            if name.endswith("tid2eid"):  # a token's experts, by its id
                table.copy_(torch.rand(table.shape[0], 8).argsort(1)[:, : table.shape[1]])
    ids_BS, tokens, keep_T = padded_batch([11, 3, 16])
    with torch.inference_mode():
        expected_TV = reference(input_ids=ids_BS, use_cache=False).logits.flatten(0, 1)[keep_T]
    save(reference, folder, max_shard_size="40KB")
    model = load_model(str(folder))
    outputs: list[ExpertOutputs] = []
    routings: list[Routing] = []
    predicted_T = model.listen(
        ids_BS,
        tokens,
        keep_T,
        layers=model.layers,
        on_routing=routings.append,
        on_outputs=outputs.append,
        predictions=True,
    )
    assert predicted_T is not None
    if (predicted_T != expected_TV.argmax(-1)).float().mean() > 0.05:
        raise AssertionError("predictions differ from the family's own")
    for routing in routings:
        ids_TK, _ = model.rules[routing.layer].route(routing.logits_TE)
        if not torch.equal(ids_TK.sort(1).values, routing.expert_ids_TK.sort(1).values):
            raise AssertionError("the rule found does not select what the router does")
    note = "; ".join(model.probe.rules)
    deepest = model.layers[-1] if len(model.layers) == 1 else model.layers[-2]
    if deepest < model.num_blocks - 1:
        try:
            part = load_model(str(folder), layers=[deepest])
        except MoescopeError as error:
            return f"{note}. Whole models only: {error.found.replace(str(folder), 'the model')}"
        again: list[Routing] = []
        part.listen(ids_BS, tokens, keep_T, layers=[deepest], on_routing=again.append)
        whole = next(routing for routing in routings if routing.layer == deepest)
        if not torch.allclose(again[0].logits_TE, whole.logits_TE, atol=1e-4):
            raise AssertionError("its first blocks differ when the others are left out: only whole models")
    return note


def rows(names: list[str], verbose: bool) -> Iterator[Row]:
    """Tries families one after the other."""
    for family, types in families().items():
        if names and family not in names:
            continue
        model_type = language_model(types)
        if model_type is None:
            yield Row(family, ", ".join(types) or family, False, "no causal language model")
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield Row(family, model_type, True, tried(model_type, Path(folder)))
            except MoescopeError as error:
                yield Row(family, model_type, False, error.found.replace(folder, "the tiny model"))
            except Exception as error:
                if verbose:
                    traceback.print_exc()
                yield Row(family, model_type, False, _why_not(family, error))


def _why_not(family: str, error: Exception) -> str:
    if not uses_interface(family):
        return "its experts are not dispatched through transformers' experts interface"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"not tried, no tiny model of it could be made: {type(error).__name__}: {first}"[:200]


def main() -> None:
    """Prints each family as it is tried; without names, writes the table."""
    names = sys.argv[1:]
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    found = []
    for row in rows(names, verbose=bool(names)):
        print(f"{'works' if row.works else 'no   '} {row.family} ({row.model_type}): {row.note}", flush=True)
        found.append(row)
    if not names:
        (ROOT / "docs" / "families.md").write_text(page(found), encoding="utf-8")


def page(found: list[Row]) -> str:
    """The table as a page."""
    works = [row for row in found if row.works]
    refused = [row for row in found if not row.works]
    lines = [
        "# Model families",
        "",
        f"Generated by `docs/make_families.py` with transformers {transformers.__version__}: {len(works)} families "
        f"of {len(found)} that have experts can be looked into.",
        "",
        "Each was tried as a tiny random model of its default configuration, saved and loaded like any checkpoint. "
        "*Works* means: the probe passed (every MoE layer fires; listening leaves the hidden states equal bit for "
        "bit; the applied weights follow from the logits by the rule in the table; expert outputs computed one expert "
        "at a time combine to the stock result within 1e-5), predictions are the family's own, and loading only the "
        "upper blocks gives the same router logits, unless the table says that only whole models can be loaded. "
        "Whatever the table says, the probe runs on the real weights each time a model is loaded.",
        "",
        f"Tested on every change, with more: {', '.join(sorted(FAMILIES))} (`tests/contracts/test_families.py`).",
        "",
        "## What works",
        "",
        "| family | tried as | how its router decides |",
        "|---|---|---|",
        *(f"| {row.family} | {row.model_type} | {_cell(row.note)} |" for row in works),
        "",
        "## What does not, and why",
        "",
        "| family | tried as | why |",
        "|---|---|---|",
        *(f"| {row.family} | {row.model_type} | {_cell(row.note)} |" for row in refused),
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
