"""Checkpoints with FP8 weights, as DeepSeek-V3's are: made with plain arithmetic, beside the values they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def quantize_fp8(
    folder: Path, size: int, parts: tuple[str, ...] = ("kv_a_proj_with_mqa", "experts."), scale: str = "_scale_inv"
) -> dict[str, Tensor]:
    """Rewrites matrices of a checkpoint in one file as FP8 in blocks of `size` x `size`.

    Returns:
        The values that each matrix now stands for.
    """
    state = load_file(folder / "model.safetensors")
    stand_for = {}
    for name in [name for name in state if name.endswith(".weight") and any(part in name for part in parts)]:
        matrix = state[name].float()
        rows, columns = matrix.shape
        # Blocks of unlike size, as in trained weights: a block taken for its neighbor shows.
        matrix = matrix * torch.where(torch.arange(rows) < size, 1.0, 8.0)[:, None]
        down, across = -(-rows // size), -(-columns // size)
        scales = torch.empty(down, across)
        codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
        values = torch.empty(rows, columns)
        for row in range(down):
            for column in range(across):
                block = (slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size))
                scales[row, column] = matrix[block].abs().max().clamp_min(1e-8) / 448
                codes[block] = (matrix[block] / scales[row, column]).to(torch.float8_e4m3fn)
                values[block] = codes[block].float() * scales[row, column]
        state[name], state[f"{name}{scale}"], stand_for[name] = codes, scales, values
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    declare(folder, quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[size, size])
    return stand_for


def declare(folder: Path, **quantization: object) -> None:
    """Writes a `quantization_config` into a checkpoint's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
