"""Quantized weights: expanded as their values and scales say, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moescope.errors import ModelError
from moescope.models import load_model
from moescope.models.expansion import BlockDequantize, block_size
from tests.families import build, save
from tests.models.quantizing import declare, quantize_fp8

EDGES = ("kv_a_proj_with_mqa", "q_a_proj", "o_proj", "experts.")


def fp8(folder: Path, size: int, **options: object) -> dict[str, Tensor]:
    """A tiny DeepSeek-V3; kv_a_proj_with_mqa has 24 rows, its experts are 16 x 32."""
    return quantize_fp8(save(build("deepseek_v3"), folder), size, EDGES, **options)  # type: ignore[arg-type]


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize("size", [5, 7, 12, 16, 128])
def test_fp8_with_partial_blocks(size: int, tmp_path: Path) -> None:
    stand_for = fp8(tmp_path, size)
    for layers in (None, [2]):
        model = load_model(str(tmp_path), dtype="float32", layers=layers)
        parameters = dict(model.hf.named_parameters())
        compared = 0
        for name, values in stand_for.items():
            short = name.removeprefix("model.") if layers else name
            if short in parameters:
                assert torch.allclose(parameters[short], values, rtol=1e-6, atol=0), name
                compared += 1
        assert compared >= 8
        weights = model.expert_weights(2)
        for part, matrices in (("gate", weights.gate_EFM), ("up", weights.up_EFM), ("down", weights.down_EMF)):
            for expert in range(model.num_experts):
                values = stand_for[f"model.layers.2.mlp.experts.{expert}.{part}_proj.weight"]
                assert torch.allclose(matrices[expert], values, rtol=1e-6, atol=0)


def test_fp8_in_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    stand_for = fp8(tmp_path, 12)
    model = load_model(str(tmp_path), dtype="bfloat16")
    for name in (name for name in stand_for if "self_attn" in name):
        assert torch.equal(model.hf.get_parameter(name), stand_for[name].to(torch.bfloat16))


def test_one_scale_for_a_matrix(tmp_path: Path) -> None:
    stand_for = fp8(tmp_path, 4096)  # one block, whatever the matrix
    declare(tmp_path, quant_method="fp8", activation_scheme="dynamic", weight_block_size=None)
    model = load_model(str(tmp_path), dtype="float32")
    for name in (name for name in stand_for if "self_attn" in name):
        assert torch.allclose(model.hf.get_parameter(name), stand_for[name], rtol=1e-6, atol=0)


def test_a_block_size_that_is_not_the_one_declared_is_refused(tmp_path: Path) -> None:
    fp8(tmp_path, 12)
    for declared in ([16, 16], [8, 8], [128, 128], None, [12, 8]):
        declare(tmp_path, quant_method="fp8", activation_scheme="dynamic", weight_block_size=declared)
        with pytest.raises(ModelError, match=r"scales for a matrix of|can't be read"):
            load_model(str(tmp_path))


@pytest.mark.parametrize("wrong", [[0, 16], [-1, 16], "x", [16], 5, {}, ["a", "b"]])
def test_block_sizes_that_are_none(wrong: object, tmp_path: Path) -> None:
    fp8(tmp_path, 16)
    declare(tmp_path, quant_method="fp8", activation_scheme="dynamic", weight_block_size=wrong)
    with pytest.raises(ModelError):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "wrong", ["x", 5, ["fp8"], {"quant_method": 5}, {"quant_method": None}, {"bits": 4}, {"quant_method": ["fp8"]}]
)
def test_quantization_configs_that_are_none(wrong: object, tmp_path: Path) -> None:
    folder = save(build("qwen3_moe"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": wrong}))
    with pytest.raises(ModelError):
        load_model(str(folder))


def test_fp8_that_nobody_declared_is_refused(tmp_path: Path) -> None:
    fp8(tmp_path, 16)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"stored as F8_E4M3 .* declares no quantization"):
        load_model(str(tmp_path))


def test_fp8_without_scales_is_refused(tmp_path: Path) -> None:
    fp8(tmp_path, 16)
    edit(tmp_path, lambda state: [state.pop(name) for name in list(state) if "q_a_proj.weight_scale" in name])
    with pytest.raises(ModelError, match=r"q_a_proj.weight .*can't be expanded: it has no scales"):
        load_model(str(tmp_path))


def test_scales_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    fp8(tmp_path, 16)
    edit(tmp_path, lambda state: [state[name].fill_(float("nan")) for name in state if "q_a_proj.weight_scale" in name])
    with pytest.raises(ModelError):
        load_model(str(tmp_path))


@pytest.mark.parametrize("part", ["self_attn", "experts"])
def test_a_wrong_expansion_is_found(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check does not trust what expands: an expansion that is off in one block does not pass."""
    fp8(tmp_path, 12)
    right = BlockDequantize._dequantize_one

    def wrong(self: BlockDequantize, values: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
        expanded = right(self, values, scales, output_dtype)
        is_experts = values.shape in ((16, 32), (32, 16))
        if is_experts == (part == "experts"):
            expanded[-1, -1] *= 1.1
        return expanded

    monkeypatch.setattr(BlockDequantize, "_dequantize_one", wrong)
    with pytest.raises(ModelError, match=rf"{part}.* was expanded wrongly"):
        load_model(str(tmp_path))


def test_transformers_takes_another_block_size_where_the_last_block_is_partial() -> None:
    """Why moescope has an expansion of its own: 24 rows under 2 rows of scales are 16 and 8, not 12 and 12."""
    assert block_size(24, 32, (2, 2), [16, 16]) == (16, 16)
    assert block_size(576, 7168, (5, 56), [128, 128]) == (128, 128)
    assert block_size(24, 32, (1, 1), [16, 16]) == (24, 32)
    assert block_size(24, 32, (), None) == (24, 32)
    assert block_size(24, 32, (24, 1), None) == (1, 32)
    for grid, declared in (((3, 2), [16, 16]), ((2, 2), [12, 12]), ((2, 2), None), ((2,), [16, 16]), ((2, 2), "x")):
        with pytest.raises(ValueError, match="scales for a matrix of 24 x 32"):
            block_size(24, 32, grid, declared)
