"""Loading: what is read, where it goes, and what is said when it can't be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from moescope.errors import EnvironmentFailure, ModelError, UsageError
from moescope.models import inspect_checkpoint, load_model
from tests.families import VOCAB_SIZE, build, padded_batch, save, tokenizer


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("olmoe"), tmp_path_factory.mktemp("olmoe"), max_shard_size="15KB")


def test_only_the_shards_of_the_layers_asked_need_be_there(olmoe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(olmoe, tmp_path / "part"))
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    above = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.")
    needed = {shard for key, shard in weight_map.items() if key.startswith(above)}
    for shard in set(weight_map.values()) - needed:
        (folder / shard).unlink()
    model = load_model(str(folder), layers=[1])
    assert model.layers == (0, 1)
    # No more is in memory than two blocks, the embeddings, and the norm that was not read.
    width, blocks = 32, sum(parameter.numel() for parameter in model.blocks.parameters())
    assert model.num_loaded_parameters == blocks + VOCAB_SIZE * width + width
    assert len(model.blocks) == 2
    with pytest.raises(ModelError, match=r"lacks \d+ of its weight files"):
        load_model(str(folder), layers=[2])
    with pytest.raises(ModelError, match=r"lacks \d+ of its weight files"):
        load_model(str(folder))


def test_what_was_not_read_is_not_a_number(olmoe: Path) -> None:
    model = load_model(str(olmoe), layers=[1])
    assert bool(model.hf.norm.weight.isnan().all())
    assert not any(bool(parameter.isnan().any()) for parameter in model.blocks.parameters())
    with pytest.raises(ModelError, match="without its head"):
        model.logits(torch.zeros(1, 32))
    ids_BS, tokens, keep_T = padded_batch([4])
    with pytest.raises(ModelError, match="can't predict"):
        model.listen(ids_BS, tokens, keep_T, layers=[1], on_routing=print, predictions=True)


def test_dtype_is_the_checkpoints_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = save(build("mixtral", dtype=torch.bfloat16), tmp_path)
    model = load_model(str(folder))
    assert model.dtype == torch.bfloat16
    assert model.loaded_bytes >= 2 * model.num_parameters
    assert load_model(str(folder), dtype="float32").dtype == torch.float32
    assert load_model(str(folder), dtype=torch.float16).dtype == torch.float16
    ids_BS, tokens, keep_T = padded_batch([7, 5])
    records = []
    model.listen(ids_BS, tokens, keep_T, layers=model.layers, on_routing=records.append, needs_inputs=True)
    assert records[0].weights_TK.dtype == records[0].logits_TE.dtype == torch.float32
    assert records[0].inputs_TM.dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", ["int8", "float31", "tensor"])
def test_a_dtype_that_weights_can_not_have(olmoe: Path, wrong: str) -> None:
    with pytest.raises(UsageError, match=f"no dtype {wrong}"):
        load_model(str(olmoe), dtype=wrong)


def test_a_device_that_is_not_here(olmoe: Path) -> None:
    with pytest.raises(UsageError, match=r'no device cuda:99: it is not here[\s\S]*"auto" or one of: cpu'):
        load_model(str(olmoe), device="cuda:99")
    for wrong in ("toaster", "mps" if not torch.backends.mps.is_available() else "xla", "meta"):
        with pytest.raises(UsageError, match=f"no device {wrong}"):
            load_model(str(olmoe), device=wrong)


def test_a_revision_of_what_has_none(olmoe: Path) -> None:
    for name in ("nano", str(olmoe)):
        with pytest.raises(UsageError, match=r"revision main of .* no repository") as error:
            load_model(name, revision="main")
        assert error.value.exit_code == 2


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu")])
def test_devices(olmoe: Path, device: str | torch.device) -> None:
    model = load_model(str(olmoe), device=device)
    expected = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    assert model.device.type == expected


def test_layers_that_do_not_exist(olmoe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no MoE layer 9[\s\S]*0-3"):
        load_model(str(olmoe), layers=[1, 9])
    with pytest.raises(UsageError, match="no layer was asked for"):
        load_model(str(olmoe), layers=[])
    with pytest.raises(UsageError, match="-9"):
        load_model(str(olmoe), layers=[-9])
    folder = save(build("deepseek_v3"), tmp_path)
    with pytest.raises(UsageError, match=r"has no MoE layer 1[\s\S]*2-3"):
        load_model(str(folder), layers=[1])
    model = load_model(str(folder))
    with pytest.raises(UsageError, match=r"has no MoE layer 0[\s\S]*2-3"):
        model.check_layers([0])
    with pytest.raises(UsageError, match=r"has no expert 16[\s\S]*0-15"):
        model.expert_outputs(2, torch.zeros(1, 32), [16])
    assert model.check_layers([3, 2, 3]) == [2, 3]
    assert model.check_layers(None) == [2, 3]


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no checkpoint: it holds nothing"):
        load_model(str(tmp_path))
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ModelError, match=r"it holds notes.txt[\s\S]*config.json"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        load_model(str(tmp_path / "notes.txt"))
    for missing in (tmp_path / "nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(ModelError, match="there is no folder"):
            load_model(str(missing))
    (tmp_path / "config.json").write_text('{"model_type": "no-such-family"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"does not know the model[\s\S]*update transformers"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config.json of .* can't be read: Expecting property name"):
        load_model(str(tmp_path))


def test_broken_and_incomplete_weights(tmp_path: Path) -> None:
    folder = save(build("mixtral"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name and "layernorm" in name)
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"lacks 1 tensors: {name}"):
        load_model(str(folder))
    assert load_model(str(folder), layers=[0]).layers == (0,)
    save_file({**weights, name: torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="can't be read"):
        load_model(str(folder))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="can't be read"):
        load_model(str(folder))


def test_a_model_that_is_no_mixture(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is not a Mixture-of-Experts model") as error:
        load_model(str(tmp_path))
    assert error.value.exit_code == 2


def test_a_family_that_the_seam_can_not_enter(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "llama4_text",
        vocab_size=50,
        hidden_size=16,
        intermediate_size=8,
        intermediate_size_mlp=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"llama4_text computes them in a way of its own[\s\S]*docs/families.md"):
        load_model(str(tmp_path))


def test_a_model_that_is_no_language_model(tmp_path: Path) -> None:
    config = AutoConfig.for_model("vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="is not a causal language model"):
        load_model(str(tmp_path))


def test_quantized_experts_are_expanded(tmp_path: Path) -> None:
    """MXFP4 as gpt-oss ships it: 4-bit floats in blocks of 32 that share a power of two, two in a byte."""
    folder = save(build("gpt_oss", hidden_size=64, intermediate_size=32, head_dim=16), tmp_path)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    expanded = {}
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, num_in, num_out = weights.pop(name).shape
        shape = (num_experts, num_out, num_in // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(119, 124, shape, dtype=torch.uint8, generator=generator)
        weights[f"{name}_blocks"], weights[f"{name}_scales"] = blocks, scales
        pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], dim=-1)
        wide = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        expanded[name] = wide.reshape(num_experts, num_out, num_in)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    declare(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    for layers in (None, [1]):
        model = load_model(str(folder), layers=layers)
        ours = model.expert_weights(1)
        assert torch.equal(ours.down_EMF, expanded["model.layers.1.mlp.experts.down_proj"])
        assert torch.equal(ours.gate_EFM, expanded["model.layers.1.mlp.experts.gate_up_proj"][:, ::2])
        assert torch.equal(ours.up_EFM, expanded["model.layers.1.mlp.experts.gate_up_proj"][:, 1::2])
    for other in ({"quant_method": "gptq", "bits": 4}, {"quant_method": "no-such-method"}):
        declare(folder, other)
        with pytest.raises(ModelError, match=r"are quantized \(.*\)[\s\S]*a checkpoint of the same model that is not"):
            load_model(str(folder))


def declare(folder: Path, quantization: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def test_facts_and_size_are_known_before_anything_is_read(olmoe: Path, tmp_path: Path) -> None:
    loaded = load_model(str(olmoe))
    seen = inspect_checkpoint(str(olmoe))
    assert seen.facts == loaded.facts
    assert seen.num_bytes == 4 * loaded.num_parameters
    part = load_model(str(olmoe), layers=[1])
    less = inspect_checkpoint(str(olmoe), layers=[1], dtype="bfloat16")
    assert less.facts == part.facts
    assert less.num_bytes == 2 * (part.num_loaded_parameters - 32)
    # Active parameters: all but six of eight experts, in each of four layers.
    expert = 3 * 32 * 16
    assert loaded.num_active_parameters == loaded.num_parameters - 4 * 6 * expert
    for shard in (folder := Path(shutil.copytree(olmoe, tmp_path / "empty"))).glob("*.safetensors"):
        shard.write_bytes(b"")
    assert inspect_checkpoint(str(folder)).facts == loaded.facts


def test_more_than_fits_is_refused_before_it_is_read(olmoe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(olmoe, tmp_path / "huge"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 10**10}))
    with pytest.raises(EnvironmentFailure, match=r"GB are free[\s\S]*fewer layers \(it has 0-3\)") as error:
        load_model(str(folder))
    assert error.value.exit_code == 1


def test_config_hash_tells_architectures_apart_not_names_or_dtypes(olmoe: Path, tmp_path: Path) -> None:
    here = load_model(str(olmoe), layers=[0])
    copied = Path(shutil.copytree(olmoe, tmp_path / "elsewhere"))
    assert load_model(str(copied), layers=[0], dtype="bfloat16").config_hash == here.config_hash
    other = save(build("olmoe", rms_norm_eps=1e-6), tmp_path / "other")
    assert load_model(str(other), layers=[0]).config_hash != here.config_hash


def test_tokenizer(olmoe: Path, tmp_path: Path) -> None:
    assert load_model(str(olmoe), layers=[0]).tokenizer("héllo").input_ids == tokenizer()("héllo").input_ids
    build("olmoe").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), layers=[0])
    with pytest.raises(ModelError, match="has no tokenizer"):
        _ = model.tokenizer


def test_nano_is_float32_in_memory_and_bfloat16_on_disk() -> None:
    model = load_model("nano", layers=[1])
    assert model.dtype == torch.float32
    assert (model.num_blocks, model.num_experts, model.num_experts_per_token) == (16, 64, 8)
    assert (model.model_width, model.expert_width, model.vocab_size) == (128, 32, 8192)
    assert model.family == "olmoe"
    assert len(model.tokenizer) <= model.vocab_size
    whole = inspect_checkpoint("nano").facts
    assert whole.num_parameters == model.num_parameters
    from importlib.resources import files

    with safe_open(str(files("moescope.models") / "nano" / "model.safetensors"), framework="pt") as file:
        assert file.get_tensor(next(iter(file.keys()))).dtype == torch.bfloat16
